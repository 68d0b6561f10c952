package smtptest

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fastedge/fastedge/envelope"
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
}

// setup is what the directives at the top of a transcript say.
type setup struct {
	options session.Options
	memory  int64
	relay   bool
}

// NewClient opens a session. memory bounds the message data in use, in bytes; zero means no limit.
func NewClient(o session.Options, memory int64, relay bool) *Client {
	c := &Client{now: Start, Budget: pool.NewBudget(memory), server: session.NewServer(o)}
	c.resources = &session.Resources{Envelopes: envelope.NewList(pool.NewList(1<<20, c.Budget))}
	peer := session.Peer{Addr: netip.MustParseAddrPort("192.0.2.7:40025"), MayRelay: relay, ID: envelope.ID{1}}
	out, step := c.Session.Open(c.server, c.resources, peer, c.now, nil)
	c.took(out, step)
	return c
}

// Send gives bytes to the session in one piece, behind those it has not used.
func (c *Client) Send(p []byte) {
	if c.closed {
		return
	}
	c.pending = append(c.pending, p...)
	for !c.closed {
		n, out, step := c.Session.Feed(c.pending, c.now, nil)
		c.pending = c.pending[n:]
		c.took(out, step)
		if step == session.NeedInput && n > 0 && len(c.pending) > 0 {
			continue // the replies were to be sent first
		}
		if step != session.AwaitCommit {
			return
		}
		if !c.Session.Deadline().IsZero() {
			c.Lines = append(c.Lines, "error: a suspended session has a deadline")
		}
		c.took(c.settle())
	}
}

// settle answers a message that awaits its commit.
func (c *Client) settle() ([]byte, session.Step) {
	refusal := c.commit
	c.commit = nil
	if c.untaken {
		c.untaken = false
		return c.Session.Committed(refusal, c.now, nil)
	}
	c.messages++
	env := c.Session.TakeEnvelope(envelope.ID{15: c.messages})
	c.Lines = append(c.Lines, "M: "+describe(env))
	env.Release() // before Committed: the session must not look at it any more
	return c.Session.Committed(refusal, c.now, nil)
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
		c.took(c.Session.Expire(c.now, nil))
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
	fmt.Fprintf(&b, " | %q", bytes.Join(env.Data.AppendBuffers(nil), nil))
	return b.String()
}
