package smtptest

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Start is the time at which every transcript begins.
var Start = time.Date(2026, 11, 22, 8, 0, 39, 0, time.UTC)

// Client plays the part of the loop, and of the client behind it, for one session: it feeds bytes in the pieces it is told to, takes
// envelopes, answers commits, and writes down what happens as the lines of a transcript.
type Client struct {
	Session session.Session
	Budget  *pool.Budget
	Lines   []string // "S: ..." and "M: ..."

	server    *session.Server
	resources *session.Resources
	now       time.Time
	pending   []byte // fed and not used
	messages  byte
	commit    *smtpcodec.Reply // answer to the next message
	untaken   bool             // ... without taking its envelope
	closed    bool
	busy      bool // no handshake may begin
	shaking   bool // STARTTLS was answered with 220: what comes in clear is thrown away
	hanging   bool // a validator does not answer
	sasl      *mechanism
	zone      *zone // of DNS; nil without
}

// setup is what the directives at the top of a transcript say.
type setup struct {
	options session.Options
	memory  int64
	relay   bool
	tls     *policy.TLS // the client comes with it
	senders senders
}

// NewClient opens a session. memory bounds the message data in use, in bytes; zero means no limit.
func NewClient(o session.Options, memory int64, relay bool) *Client {
	return newClient(&setup{options: o, memory: memory, relay: relay})
}

func newClient(s *setup) *Client {
	asked, err := s.senders.validators()
	if err != nil {
		panic(err) // the directives are wrong
	}
	s.options.Validators = append(s.options.Validators, asked...)
	c := &Client{now: Start, Budget: pool.NewBudget(s.memory), server: session.NewServer(s.options), zone: s.senders.zone}
	c.resources = &session.Resources{Envelopes: envelope.NewList(pool.NewList(1<<20, c.Budget))}
	peer := session.Peer{Addr: netip.MustParseAddrPort("192.0.2.7:40025"), MayRelay: s.relay, ID: envelope.ID{1}, TLS: s.tls}
	c.act(c.Session.Open(c.server, c.resources, peer, c.now, nil))
	return c
}

// Send gives bytes to the session in one piece, behind those it has not used.
func (c *Client) Send(p []byte) {
	if c.closed || c.shaking {
		return
	}
	c.pending = append(c.pending, p...)
	c.feed()
}

// feed gives what is there to the session, as far as it takes it.
func (c *Client) feed() {
	for !c.closed && !c.shaking && !c.hanging {
		n, out, step := c.Session.Feed(c.pending, c.now, nil)
		c.pending = c.pending[n:]
		c.act(out, step)
		// Replies may have been wanted first, and a step may have been acted on.
		if n == 0 && step == session.NeedInput || len(c.pending) == 0 {
			return
		}
	}
}

// act writes replies down and does what the session wants next, until it wants input.
func (c *Client) act(out []byte, step session.Step) {
	c.took(out, step)
	for {
		switch step {
		case session.AwaitCommit:
			if !c.Session.Deadline().IsZero() {
				c.Lines = append(c.Lines, "error: a session that waits for a commit has a deadline")
			}
			out, step = c.settle()
		case session.AwaitPolicy:
			answered := false
			c.Session.Pending().Arm(func(*policy.Pending) { answered = true })
			if !answered && !(c.zone.deliver() && answered) {
				c.hanging = true
				return
			}
			out, step = c.Session.Decided(c.now, nil)
		case session.AwaitAuth:
			out, step = c.Session.AuthDone(c.work(c.Session.AuthRequest()), c.now, nil)
		case session.StartTLS:
			var refusal *smtpcodec.Reply
			if c.busy {
				refusal = &smtpcodec.Reply{Code: 454, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 7}, Text: "TLS not available"}
			}
			out, step = c.Session.AnswerTLS(refusal, c.now, nil)
			if step == session.StartTLS {
				c.shaking, c.pending = true, nil
				c.took(out, step)
				return
			}
		default:
			return
		}
		c.took(out, step)
	}
}

// settle answers a message that awaits its commit.
func (c *Client) settle() ([]byte, session.Step) {
	refusal := c.commit
	c.commit = nil
	if c.untaken {
		c.untaken = false
		return c.Session.Committed(nil, refusal, c.now, nil)
	}
	c.messages++
	env := c.Session.TakeEnvelope(envelope.ID{15: c.messages})
	c.Lines = append(c.Lines, "M: "+describe(env))
	out, step := c.Session.Committed(env, refusal, c.now, nil)
	env.Release()
	return out, step
}

// took splits replies into lines and checks what holds for every reply.
func (c *Client) took(out []byte, step session.Step) {
	for len(out) > 0 {
		text, rest, ok := bytes.Cut(out, []byte("\r\n"))
		if !ok {
			c.Lines = append(c.Lines, fmt.Sprintf("error: reply without CRLF: %q", out))
			return
		}
		if len(text)+2 > 512 { // RFC 5321 §4.5.3.1.5
			c.Lines = append(c.Lines, fmt.Sprintf("error: reply of %d bytes", len(text)+2))
		}
		for _, b := range text {
			if b < ' ' || b > '~' {
				c.Lines = append(c.Lines, fmt.Sprintf("error: reply with byte %#x", b))
			}
		}
		c.Lines = append(c.Lines, "S: "+string(text))
		out = rest
	}
	if step == session.Close && !c.closed {
		c.closed = true
		c.Lines = append(c.Lines, "S: <close>")
		c.Session.Abort()
	}
}

// Wait lets time pass and calls Expire when it is due.
func (c *Client) Wait(d time.Duration) {
	c.now = c.now.Add(d)
	if due := c.Session.Deadline(); !c.closed && !due.IsZero() && !c.now.Before(due) {
		c.hanging = false
		c.act(c.Session.Expire(c.now, nil))
		c.feed()
	}
}

// Lose is the end of the connection.
func (c *Client) Lose() {
	c.closed = true
	c.Session.Abort()
}

// direct carries out a directive of the dialogue.
func (c *Client) direct(text string) error {
	word, rest, _ := strings.Cut(text, " ")
	switch word {
	case "commit", "full", "refuse":
		var r *smtpcodec.Reply
		if rest != "" {
			text, err := unescape(rest)
			if err != nil {
				return err
			}
			parsed, n, err := smtpcodec.ParseReply(append(text, '\r', '\n'))
			if err != nil || n == 0 {
				return fmt.Errorf("%q is no reply (%v)", rest, err)
			}
			r = &parsed
		}
		if word == "refuse" {
			c.resources.Refuse = r
		} else {
			c.commit, c.untaken = r, word == "full"
		}
	case "wait":
		d, err := time.ParseDuration(rest)
		if err != nil {
			return err
		}
		c.Wait(d)
	case "busy":
		c.busy = true
	case "handshake":
		if !c.shaking {
			return fmt.Errorf("handshake without STARTTLS")
		}
		t, err := parseTLS(strings.Fields(rest))
		if err != nil {
			return err
		}
		c.shaking = false
		c.act(c.Session.Secured(t, c.now, nil))
	case "shutdown":
		c.took(c.Session.Shutdown(c.now, nil))
	case "lost":
		c.Lose()
	default:
		return fmt.Errorf("unknown directive %q", text)
	}
	return nil
}

// configure carries out a directive of the listener; known is false for one of the dialogue.
func (s *setup) configure(text string) (known bool, err error) {
	words := strings.Fields(text)
	o := &s.options
	number := func() (n int64) {
		if len(words) != 2 {
			err = fmt.Errorf("%q wants a number", words[0])
			return 0
		}
		n, err = strconv.ParseInt(words[1], 10, 64)
		return n
	}
	switch words[0] {
	case "lmtp":
		o.LMTP = true
	case "normalize":
		o.Normalize = true
	case "relay":
		s.relay = true
	case "hide":
		o.Hide = words[1:]
	case "size":
		o.MaxMessageBytes = number()
	case "memory":
		s.memory = number()
	case "recipients":
		o.MaxRecipients = int(number())
	case "errors":
		o.MaxErrors = int(number())
	case "line":
		o.MaxLineBytes = int(number())
	case "mailmax":
		o.MaxTransactions = int(number())
	case "received":
		o.MaxReceived = int(number())
	case "accept":
		o.Accept = acceptOnly(words[1:])
	case "tls":
		modes := map[string]session.TLSMode{"opportunistic": session.TLSOpportunistic, "required": session.TLSRequired}
		if len(words) != 2 || modes[words[1]] == 0 {
			return true, fmt.Errorf("tls wants opportunistic or required")
		}
		o.TLS = modes[words[1]]
	case "secure":
		s.tls, err = parseTLS(words[1:])
	case "auth":
		o.Auth = words[1:]
	case "auth-in-clear":
		o.AuthInClear = true
	case "auth-required":
		o.AuthRequired = true
	case "auth-failures":
		o.MaxAuthFailures = int(number())
	case "junk":
		o.MaxJunk = int(number())
	case "data-rate":
		o.MinDataRate = number()
	case "spf":
		err = s.senders.configure(words[1:])
	case "spf-on":
		err = s.senders.rule(strings.TrimSpace(strings.TrimPrefix(text, words[0])))
	case "dns":
		err = s.senders.dns().add(strings.TrimSpace(strings.TrimPrefix(text, words[0])))
	case "ptr":
		s.senders.ptr = true
	case "authserv":
		o.AuthservID = words[1]
	case "at", "pend", "hang", "fail", "panic", "field":
		var v *validator
		if v, err = parseValidator(words[0], strings.TrimSpace(strings.TrimPrefix(text, words[0]))); err == nil {
			o.Validators = append(o.Validators, v)
		}
	default:
		return false, nil
	}
	return true, err
}

var relayDenied = smtpcodec.Reply{Code: 550, Enhanced: smtpcodec.EnhancedCode{Class: 5, Subject: 7, Detail: 1}, Text: "Relaying denied"}

func acceptOnly(domains []string) func(smtpcodec.Path, bool) *smtpcodec.Reply {
	return func(path smtpcodec.Path, relay bool) *smtpcodec.Reply {
		if relay || len(path.Domain) == 0 {
			return nil
		}
		for _, d := range domains {
			if strings.EqualFold(d, string(path.Domain)) {
				return nil
			}
		}
		return &relayDenied
	}
}

// describe gives an M line's text.
func describe(env *envelope.Envelope) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s <%s>", env.Client.Protocol, env.ReversePath)
	for _, w := range []struct {
		set  bool
		word string
	}{
		{env.Body == envelope.Body7Bit, "BODY=7BIT"},
		{env.Body == envelope.Body8BitMIME, "BODY=8BITMIME"},
		{env.Body == envelope.BodyBinaryMIME, "BODY=BINARYMIME"},
		{env.SMTPUTF8, "SMTPUTF8"},
		{env.Ret == envelope.RetFull, "RET=FULL"},
		{env.Ret == envelope.RetHdrs, "RET=HDRS"},
		{len(env.EnvID) > 0, "ENVID=" + string(env.EnvID)},
	} {
		if w.set {
			b.WriteString(" " + w.word)
		}
	}
	for _, r := range env.Recipients {
		fmt.Fprintf(&b, " | <%s>", r.Path)
		if r.Notify != 0 {
			var words []string
			for i, word := range []string{"NEVER", "SUCCESS", "FAILURE", "DELAY"} {
				if r.Notify>>i&1 != 0 {
					words = append(words, word)
				}
			}
			b.WriteString(" NOTIFY=" + strings.Join(words, ","))
		}
		if len(r.ORcpt) > 0 {
			fmt.Fprintf(&b, " ORCPT=%s", r.ORcpt)
		}
	}
	if user := env.Client.User; len(user) > 0 {
		fmt.Fprintf(&b, " | user %s", user)
	}
	if len(env.Results) > 0 {
		fmt.Fprintf(&b, " | results %s", env.Results)
	}
	if fields, _, _ := bytes.Cut(env.Trace, []byte("Received: ")); len(fields) > 0 {
		fmt.Fprintf(&b, " | fields %q", fields)
	}
	fmt.Fprintf(&b, " | %q", bytes.Join(env.Data.AppendBuffers(nil), nil))
	return b.String()
}
