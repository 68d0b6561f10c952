// Package hook asks an HTTP server what to do with clients and messages: one POST for each question, with a JSON object of what is known.
//
// The request, of which a key is left out when there is nothing to say:
//
//	{
//	  "stage": "rcpt",                      connect, helo, tls, auth, mail, rcpt, data or message
//	  "listener": "mx",
//	  "session": "00JF...",                 as in the logs
//	  "client": {"ip": "192.0.2.1", "port": 40000, "proxy": "10.0.0.1", "may_relay": true},
//	  "helo": "mail.example.net",
//	  "protocol": "ESMTPS",                 RFC 3848
//	  "tls": {"version": "TLS1.3", "cipher": "...", "server_name": "...",
//	          "certificate": {"verified": true, "common_name": "...", "names": ["..."], "fingerprint": "..."}},
//	  "user": "ann", "mechanism": "PLAIN",
//	  "sender": "a@example.net",            from mail on; "" for <>
//	  "recipient": "b@example.org",         rcpt only
//	  "recipients": ["b@example.org"],      accepted, at data and message
//	  "size": 1000                          bytes: announced at mail, real at message
//	}
//
// Bytes that are no UTF-8 become U+FFFD. The message itself is not sent; a milter gets it. The answer is 204, which accepts, or 200 and
//
//	{"action": "accept" | "refuse" | "defer", "code": 550, "enhanced": "5.7.1", "text": "...", "fields": ["X-Spam: no"]}
//
// code is 400 to 599 and may be left out: 550 for refuse, 451 for defer, which has a 4yz code always. enhanced is 5.7.1 or 4.7.1 then. Bytes
// of text that may not stand in a reply are sent as "?". fields are header fields to be put before the message, from mail on. Keys that are
// not known are ignored. Everything else, also another status, is an error: the mail is deferred or accepted, as on_error says.
//
// Questions are asked by a bounded number of goroutines; see policy.Blocking. Equal answers may be kept for a while.
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Options are one [[hook]] of the configuration.
type Options struct {
	Name    string        // for logs
	Stages  policy.Stages // AtConnect to AtMessage
	URL     string        // http or https
	Timeout time.Duration // of one question, waiting for a worker included. Zero means 5 s
	// Cache is how long an answer holds for a question that differs in session and port only; at connect, helo, mail and rcpt. Zero means
	// that none is kept.
	Cache   time.Duration
	OnError policy.OnError
	// Workers is how many questions are asked at once, and so how many connections there are. Zero means 64.
	Workers int
	// MaxQueued is how many more may wait. Zero means 4096.
	MaxQueued int
	// MaxCached is how many answers are kept. Zero means 10,000.
	MaxCached int
	// Transport is for tests. Nil means one of the hook's own.
	Transport http.RoundTripper
	Log       *slog.Logger
}

const (
	defaultTimeout   = 5 * time.Second
	defaultWorkers   = 64
	defaultMaxQueued = 4096
	defaultMaxCached = 10_000

	// MaxAnswerBytes is how long an answer may be, and maxFieldsBytes its header fields with names.
	MaxAnswerBytes = 64 << 10
	maxFieldsBytes = 16 << 10
	maxFieldLine   = 998 // RFC 5322 §2.1.1
	// maxCachedBytes is the longest answer that is kept: 10,000 answers × 1 KiB ≈ 10 MiB.
	maxCachedBytes = 1 << 10
)

// Hook is a Validator that asks an HTTP server.
type Hook struct {
	*policy.Blocking
	o      Options
	client *http.Client
	cache  *cache // nil: nothing is kept
}

// Kind is policy.Kinded's.
func (*Hook) Kind() policy.Kind { return policy.KindHook }

// New gives a hook. It does not ask the server.
func New(o Options) (*Hook, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("hook: %q is no http or https URL", o.URL)
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.MaxQueued <= 0 {
		o.MaxQueued = defaultMaxQueued
	}
	if o.MaxCached <= 0 {
		o.MaxCached = defaultMaxCached
	}
	if o.Name == "" {
		o.Name = u.Host
	}
	for st := range policy.NumStages {
		if o.Stages.Has(st) && !st.MayPend() {
			return nil, fmt.Errorf("hook: no hook can stand at %s: nothing is answered there", st)
		}
	}
	h := &Hook{o: o, client: &http.Client{
		Transport: o.Transport,
		// An answer is given by the server that was asked; a redirect is a status like any other wrong one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if o.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConns, t.MaxIdleConnsPerHost, t.MaxConnsPerHost = o.Workers, o.Workers, o.Workers
		t.MaxResponseHeaderBytes = MaxAnswerBytes
		t.DisableCompression = true // a small answer could become a large one
		h.client.Transport = t
	}
	if o.Cache > 0 {
		h.cache = newCache(o.MaxCached, o.Cache)
	}
	h.Blocking = policy.NewBlocking(policy.BlockingOptions{
		Name: "hook " + o.Name, Stages: o.Stages, Workers: o.Workers, MaxQueued: o.MaxQueued, Timeout: o.Timeout, OnError: o.OnError,
		Do: h.ask, Log: o.Log,
	})
	return h, nil
}

// cached are the stages whose facts come again; a message or a login does not.
var cached = policy.On(policy.AtConnect, policy.AtHelo, policy.AtMail, policy.AtRcpt)

// Validate answers from the cache or asks. Runs on: event loop.
func (h *Hook) Validate(e *policy.Event) error {
	if h.cache == nil || !cached.Has(e.Stage) {
		return h.Blocking.Validate(e)
	}
	if a, ok := h.cache.get(keyOf(e), time.Now()); ok {
		if a.reply.Code != 0 {
			e.Set(a.reply)
		}
		e.Fields = append(e.Fields, a.fields...)
		return nil
	}
	return h.Blocking.Validate(e)
}

// Close ends the workers and the idle connections.
func (h *Hook) Close() {
	h.Blocking.Close()
	h.client.CloseIdleConnections()
}

// ask runs on a worker.
func (h *Hook) ask(ctx context.Context, p *policy.Pending) (smtpcodec.Reply, []byte, error) {
	a, err := h.post(ctx, &p.Event)
	if err != nil {
		return smtpcodec.Reply{}, nil, err
	}
	if h.cache != nil && cached.Has(p.Stage) && len(a.reply.Text)+len(a.fields) <= maxCachedBytes {
		h.cache.put(keyOf(&p.Event), a, time.Now())
	}
	return a.reply, a.fields, nil
}

func (h *Hook) post(ctx context.Context, e *policy.Event) (answer, error) {
	body, err := json.Marshal(questionOf(e))
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.o.URL, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "fastedge")
	res, err := h.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, MaxAnswerBytes+1))
	switch {
	case err != nil:
		return answer{}, err
	case len(text) > MaxAnswerBytes:
		return answer{}, fmt.Errorf("an answer of more than %d bytes", MaxAnswerBytes)
	case res.StatusCode == http.StatusNoContent:
		return answer{}, nil
	case res.StatusCode != http.StatusOK:
		return answer{}, fmt.Errorf("status %d", res.StatusCode)
	}
	return parseAnswer(text, e.Stage)
}

// answer is what the client gets; the zero value accepts.
type answer struct {
	reply  smtpcodec.Reply
	fields []byte
}

// question is the request; the package's comment explains the keys.
type question struct {
	Stage      string   `json:"stage"`
	Listener   string   `json:"listener"`
	Session    string   `json:"session"`
	Client     client   `json:"client"`
	Helo       string   `json:"helo,omitempty"`
	Protocol   string   `json:"protocol,omitempty"`
	TLS        *tls     `json:"tls,omitempty"`
	User       string   `json:"user,omitempty"`
	Mechanism  string   `json:"mechanism,omitempty"`
	Sender     *string  `json:"sender,omitempty"` // nil before MAIL
	Recipient  string   `json:"recipient,omitempty"`
	Recipients []string `json:"recipients,omitempty"`
	Size       int64    `json:"size,omitempty"`
}

type client struct {
	IP       string `json:"ip,omitempty"` // empty on a unix socket
	Port     uint16 `json:"port,omitempty"`
	Proxy    string `json:"proxy,omitempty"`
	MayRelay bool   `json:"may_relay,omitempty"`
}

type tls struct {
	Version     string       `json:"version,omitempty"`
	Cipher      string       `json:"cipher,omitempty"`
	ServerName  string       `json:"server_name,omitempty"`
	Certificate *certificate `json:"certificate,omitempty"`
}

type certificate struct {
	Verified    bool     `json:"verified"`
	CommonName  string   `json:"common_name,omitempty"`
	Names       []string `json:"names,omitempty"`
	Fingerprint string   `json:"fingerprint,omitempty"`
}

func questionOf(e *policy.Event) *question {
	c := &e.Client
	q := &question{
		Stage: e.Stage.String(), Listener: c.Listener, Session: c.ID.String(), Helo: string(c.Helo), Protocol: c.Protocol,
		User: c.User, Mechanism: c.Mechanism, Client: client{Port: c.Addr.Port(), MayRelay: c.MayRelay},
	}
	if a := c.Addr.Addr(); a.IsValid() {
		q.Client.IP = a.Unmap().String()
	}
	if a := c.ProxyAddr.Addr(); a.IsValid() {
		q.Client.Proxy = a.Unmap().String()
	}
	if t := c.TLS; t != nil {
		q.TLS = &tls{Version: t.Version, Cipher: t.Cipher, ServerName: t.ServerName}
		if x := t.Certificate; x != nil {
			q.TLS.Certificate = &certificate{Verified: x.Verified, CommonName: x.CommonName, Names: x.Names, Fingerprint: x.Fingerprint}
		}
	}
	switch {
	case e.Stage == policy.AtMail:
		sender := string(e.Path.Mailbox)
		q.Sender, q.Size = &sender, e.Size
	case e.Stage > policy.AtMail && e.Envelope != nil:
		sender := string(e.Envelope.ReversePath)
		q.Sender = &sender
		if e.Stage == policy.AtRcpt { // a thousand questions with up to a thousand paths each would be too much
			q.Recipient = string(e.Path.Mailbox)
			break
		}
		for _, r := range e.Envelope.Recipients {
			q.Recipients = append(q.Recipients, string(r.Path))
		}
	}
	if e.Stage == policy.AtMessage {
		q.Size = e.Size
	}
	return q
}

// parseAnswer reads a 200.
func parseAnswer(text []byte, at policy.Stage) (a answer, err error) {
	var in struct {
		Action   string   `json:"action"`
		Code     int      `json:"code"`
		Enhanced string   `json:"enhanced"`
		Text     string   `json:"text"`
		Fields   []string `json:"fields"`
	}
	if err := json.Unmarshal(text, &in); err != nil {
		return answer{}, fmt.Errorf("the answer is no JSON object: %w", err)
	}
	code, from, to := 0, 0, 0
	switch in.Action {
	case "accept":
	case "refuse":
		code, from, to = 550, 400, 599
	case "defer":
		code, from, to = 451, 400, 499
	default:
		return answer{}, fmt.Errorf("action %.40q is none of accept, refuse, defer", in.Action)
	}
	if code == 0 {
		if a.fields, err = parseFields(in.Fields); err != nil {
			return answer{}, err
		}
		if len(a.fields) > 0 && at < policy.AtMail {
			return answer{}, fmt.Errorf("fields at %s, where there is no message", at)
		}
		return a, nil
	}
	if in.Code != 0 {
		if code = in.Code; code < from || code > to {
			return answer{}, fmt.Errorf("code %d for %s", code, in.Action)
		}
	}
	class := uint16(code / 100)
	a.reply = smtpcodec.Reply{Code: uint16(code), Enhanced: smtpcodec.EnhancedCode{Class: class, Subject: 7, Detail: 1}, Text: in.Text}
	if in.Enhanced != "" {
		if a.reply.Enhanced, err = parseEnhanced(in.Enhanced, class); err != nil {
			return answer{}, err
		}
	}
	// The codec replaces what may not stand in a reply, but it takes \n for the end of a line.
	if a.reply.Text = strings.NewReplacer("\r\n", " ", "\n", " ").Replace(a.reply.Text); a.reply.Text == "" {
		a.reply.Text = "Refused by policy"
	}
	return a, nil
}

// parseEnhanced reads RFC 3463 §2.
func parseEnhanced(s string, class uint16) (e smtpcodec.EnhancedCode, err error) {
	wrong := fmt.Errorf("enhanced code %.40q for a reply %dyz", s, class)
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] != strconv.Itoa(int(class)) {
		return e, wrong
	}
	var v [2]uint16
	for i, part := range parts[1:] {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil || len(part) > 3 {
			return e, wrong
		}
		v[i] = uint16(n)
	}
	return smtpcodec.EnhancedCode{Class: class, Subject: v[0], Detail: v[1]}, nil
}

var errField = errors.New("a header field is a name, a colon and one line of text")

// parseFields makes whole header fields. A field is one line: nobody is to add a second one, or the end of the header section, by
// smuggling a line end into a value.
func parseFields(list []string) (out []byte, err error) {
	for _, field := range list {
		name, value, ok := strings.Cut(field, ":")
		if !ok || name == "" || len(field) > maxFieldLine {
			return nil, errField
		}
		for i := range len(name) { // RFC 5322 §3.6.8
			if name[i] <= ' ' || name[i] > '~' {
				return nil, errField
			}
		}
		for i := range len(value) {
			if c := value[i]; c < ' ' && c != '\t' || c > '~' {
				return nil, errField
			}
		}
		out = append(out, name...)
		out = append(out, ": "...)
		out = append(out, strings.Trim(value, " \t")...)
		out = append(out, "\r\n"...)
	}
	if len(out) > maxFieldsBytes {
		return nil, fmt.Errorf("more than %d bytes of header fields", maxFieldsBytes)
	}
	return out, nil
}
