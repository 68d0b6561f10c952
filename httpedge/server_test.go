package httpedge

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/openapicheck"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// stored is one message that the test's queue has.
type stored struct {
	env  *envelope.Envelope
	data string
}

// memory is a queue that keeps everything in memory and does as it is told.
type memory struct {
	mu      sync.Mutex
	mail    []stored
	err     error         // of every commit
	gate    chan struct{} // when set, each commit takes one from it
	batches []int
	keys    []queue.Remembered
	room    error
}

func (m *memory) Commit(batch []*queue.Submission) {
	if m.gate != nil {
		<-m.gate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.batches = append(m.batches, len(batch))
	for _, s := range batch {
		if s.Err = m.err; s.Err != nil {
			continue
		}
		var data []byte
		for c := s.Env.Data.First(); c != nil; c = c.Next() {
			data = append(data, c.Bytes()...)
		}
		head := s.Env.CloneHead()
		m.mail = append(m.mail, stored{head, string(data)})
		if head.Idempotency.Given() {
			m.keys = append(m.keys, queue.Remembered{ID: head.ID, Idempotency: head.Idempotency})
		}
	}
}
func (m *memory) Room() error  { return m.room }
func (m *memory) Close() error { return nil }
func (m *memory) Remembered(_ time.Time, yield func(queue.Remembered) bool) error {
	for _, k := range m.keys {
		if !yield(k) {
			break
		}
	}
	return nil
}

// taken gives what is stored, and forgets it.
func (m *memory) taken() []stored {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.mail
	m.mail = nil
	return all
}

// edge is a server under test.
type edge struct {
	*testing.T
	srv   *Server
	queue *memory
	addr  string
	log   *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func everybody(netip.Addr) bool { return true }

// serve starts a server that change has been asked about.
func serve(t *testing.T, change func(o *Options, l *Listener, so *session.Options)) *edge {
	t.Helper()
	e := &edge{T: t, queue: &memory{}, log: &lockedBuffer{}}
	so := session.Options{Hostname: "mx.example.net", Listener: "http", HTTP: true, MaxErrors: 2000}
	l := Listener{Name: "http", Address: "127.0.0.1:0", MayPost: everybody, MayRelay: everybody}
	o := Options{Budget: pool.NewBudget(64 << 20), Remembered: e.queue, Log: slog.New(slog.NewTextHandler(e.log, nil)), HeaderTimeout: time.Minute}
	if change != nil {
		change(&o, &l, &so)
	}
	l.Session = session.NewServer(so)
	o.Listeners = []Listener{l}
	w := queue.NewWriter(e.queue, queue.Limits{})
	o.Writer = w
	var err error
	if e.srv, err = New(o); err != nil {
		t.Fatal(err)
	}
	e.addr = e.srv.Addr(0)
	served := make(chan error, 1)
	go func() { served <- e.srv.Serve() }()
	t.Cleanup(func() {
		e.srv.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		w.Close(ctx)
	})
	return e
}

// raw sends bytes and gives everything that comes back until the server closes.
func (e *edge) raw(request string) string {
	e.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, request); err != nil {
		e.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c)
	return string(b)
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// do sends one request; headers are "Name: value".
func (e *edge) do(method, path, body string, headers ...string) (*http.Response, string) {
	e.Helper()
	req, err := http.NewRequest(method, "http://"+e.addr+path, strings.NewReader(body))
	if err != nil {
		e.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		e.Fatal(err)
	}
	// Every answer that a test gets below /v1 is one that the document allows; some paths are not in it.
	if strings.HasPrefix(path, "/v1/messages") && method != "HEAD" { // which is GET's
		if err := document().CheckResponse(method, path, resp.StatusCode, resp.Header, b); err != nil {
			e.Errorf("%v\n%.1000s", err, b)
		}
	}
	return resp, string(b)
}

var document = sync.OnceValue(func() *openapicheck.Doc {
	doc, err := openapicheck.Load(openAPI)
	if err != nil {
		panic(err)
	}
	return doc
})

var (
	fromHeader = "X-Envelope-Sender: " + b64("sender@example.com")
	toHeader   = "X-Envelope-Recipient: " + b64("rcpt1@example.com")
)

const rfc822 = "Content-Type: message/rfc822"

// The wire cases of the plain protocol, by their numbers.
func TestPlainWireCases(t *testing.T) {
	both := b64("rcpt1@example.com") + ", " + b64("rcpt2@example.com")
	for _, tc := range []struct {
		name, request string
		status        int
		smtp          string // what X-Smtp-Reply begins with, empty: there is none
		rcpts         []string
	}{
		{"X60 another path", "POST /bad HTTP/1.1\nContent-Type: message/rfc822\n" + toHeader + "\n", 404, "", nil},
		{"X60 anchored at the start only", "POST /goodness HTTP/1.1\nContent-Type: message/rfc822\n" + toHeader + "\n", 200, "250;", []string{"rcpt1@example.com"}},
		{"X60 the query does not count", "POST /good?/bad HTTP/1.1\nContent-Type: message/rfc822\n" + toHeader + "\n", 200, "250;", []string{"rcpt1@example.com"}},
		{"X61 PUT", "PUT /good HTTP/1.1\n", 405, "", nil},
		{"X61 post", "post /good HTTP/1.1\n" + toHeader + "\n", 405, "", nil},
		{"X61 GET", "GET /good HTTP/1.1\n", 405, "", nil},
		{"X62 another type", "POST /good HTTP/1.1\nContent-Type: text/plain\n" + toHeader + "\n", 415, "", nil},
		{"X63 two recipients", "POST /good HTTP/1.1\nContent-Type: message/rfc822\n" + fromHeader + "\nX-Envelope-Recipient: " + both + "\n", 200, "250;",
			[]string{"rcpt1@example.com", "rcpt2@example.com"}},
		{"X63 a header each", "POST /good HTTP/1.1\n" + toHeader + "\n" + toHeader + "\n", 200, "250;", []string{"rcpt1@example.com", "rcpt1@example.com"}},
		{"a comma too many", "POST /good HTTP/1.1\n" + toHeader + ",\n", 200, "250;", []string{"rcpt1@example.com"}},
		{"no type", "POST /good HTTP/1.1\n" + toHeader + "\n", 200, "250;", []string{"rcpt1@example.com"}},
		{"X67 bad base64", "POST /good HTTP/1.1\nX-Envelope-Recipient: !!\n", 400, "501;", nil},
		{"X67 bad sender", "POST /good HTTP/1.1\nX-Envelope-Sender: !!\n" + toHeader + "\n", 400, "501;", nil},
		{"X68 no recipients", "POST /good HTTP/1.1\n" + fromHeader + "\n", 400, "554;", nil},
		{"X71 parameters", "POST /good HTTP/1.1\nContent-Type: message/rfc822; charset=utf-8\n" + toHeader + "\n", 200, "250;", []string{"rcpt1@example.com"}},
		{"X71 any case", "POST /good HTTP/1.1\nContent-Type: Message/RFC822\n" + toHeader + "\n", 200, "250;", []string{"rcpt1@example.com"}},
		{"X72 a line break in an address", "POST /good HTTP/1.1\nX-Envelope-Recipient: " + b64("a@x>\r\nRCPT TO:<evil@x") + "\n", 400, "501;", nil},
		{"a parameter in an address", "POST /good HTTP/1.1\nX-Envelope-Recipient: " + b64("a@x> NOTIFY=NEVER") + "\n", 500, "501;", nil},
		{"a parameter in the sender", "POST /good HTTP/1.1\nX-Envelope-Sender: " + b64("a@x> SIZE=1") + "\n" + toHeader + "\n", 500, "501;", nil},
		{"UTF-8", "POST /good HTTP/1.1\nX-Envelope-Recipient: " + b64("jürgen@example.com") + "\n", 200, "250;", []string{"jürgen@example.com"}},
		{"X-Ehlo with a blank", "POST /good HTTP/1.1\nX-Ehlo: a b\n" + toHeader + "\n", 400, "501;", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.Path = regexp.MustCompile("/good") })
			request := strings.ReplaceAll(tc.request, "\n", "\r\n") + "Host: x\r\nConnection: close\r\nContent-Length: 14\r\n\r\nSubject: x\r\n\r\n"
			resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(e.raw(request))), nil)
			if err != nil {
				t.Fatal(err)
			}
			got := resp.Header.Get("X-Smtp-Reply")
			if resp.StatusCode != tc.status || !strings.HasPrefix(got, tc.smtp) || tc.smtp == "" && got != "" {
				t.Errorf("%d, X-Smtp-Reply %q", resp.StatusCode, got)
			}
			if resp.StatusCode == 405 && resp.Header.Get("Allow") != "POST" {
				t.Errorf("Allow %q", resp.Header.Get("Allow"))
			}
			mail := e.queue.taken()
			if tc.rcpts == nil {
				if len(mail) > 0 {
					t.Fatal("a message was stored all the same")
				}
				return
			}
			if len(mail) != 1 || mail[0].data != "Subject: x\r\n\r\n" {
				t.Fatalf("stored: %+v", mail)
			}
			var rcpts []string
			for _, r := range mail[0].env.Recipients {
				rcpts = append(rcpts, string(r.Path))
			}
			if fmt.Sprint(rcpts) != fmt.Sprint(tc.rcpts) {
				t.Errorf("recipients %q", rcpts)
			}
			if resp.Header.Get("X-Queue-Id") != mail[0].env.ID.String() {
				t.Errorf("X-Queue-Id %q of %v", resp.Header.Get("X-Queue-Id"), mail[0].env.ID)
			}
		})
	}
}

// What its clients look for in X-Smtp-Reply.
var (
	codePattern  = regexp.MustCompile(`^\s*(\d\d\d)\s*;`)
	paramPattern = regexp.MustCompile(`\s(\w+)\s*=\s*"(.*?)"`)
)

// The bytes of a relay that speaks this protocol, headers and body in two writes.
func TestTheModelsRelayIsUnderstood(t *testing.T) {
	e := serve(t, nil)
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	body := "From: x\r\nSubject: relayed\r\n\r\nhello ther\r\n"
	head := "POST /inbound HTTP/1.1\r\nHost: 127.0.0.1:40673\r\nAccept-Encoding: identity\r\nContent-Length: 41\r\nContent-Type: message/rfc822\r\n" +
		"X-Ehlo: relay.example\r\nX-Envelope-Sender: c8OpbmRlckBleGFtcGxlLmNvbQ==\r\nX-Envelope-Recipient: cjFAZXhhbXBsZS5jb20=\r\nX-Envelope-Recipient: cjJAZXhhbXBsZS5jb20=\r\n\r\n"
	for round := range 2 { // the connection is kept
		io.WriteString(c, head)
		io.WriteString(c, body)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(round, err)
		}
		value := resp.Header.Get("X-Smtp-Reply")
		code, param := codePattern.FindStringSubmatch(value), paramPattern.FindStringSubmatch(value)
		if resp.StatusCode != 200 || resp.ContentLength != 0 || code == nil || code[1] != "250" || param == nil || param[1] != "message" ||
			param[2] != "2.6.0 Message accepted for delivery" {
			t.Fatalf("%d %q", resp.StatusCode, value)
		}
		mail := e.queue.taken()
		if len(mail) != 1 || mail[0].data != body || string(mail[0].env.ReversePath) != "sénder@example.com" || len(mail[0].env.Recipients) != 2 ||
			string(mail[0].env.Client.Helo) != "relay.example" || mail[0].env.Client.Protocol != "HTTP" {
			t.Fatalf("%+v", mail)
		}
		if received := string(mail[0].env.Trace); !strings.Contains(received, "with HTTP id "+mail[0].env.ID.String()) {
			t.Errorf("%q", received)
		}
	}
}

// X69 and X70: a chunked body is read whole, a request without a length is refused.
func TestBodiesAreReadWholeOrNotAtAll(t *testing.T) {
	e := serve(t, nil)
	head := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\n"
	got := e.raw(head + "Transfer-Encoding: chunked\r\n\r\n8\r\nSubject:\r\n4\r\n x\r\n\r\n3\r\nhi\r\r\n0\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 500") { // a bare CR, as on SMTP
		t.Errorf("bare CR: %q", got)
	}
	got = e.raw(head + "Transfer-Encoding: chunked\r\n\r\n8\r\nSubject:\r\n4\r\n x\r\n\r\n4\r\nhi\r\n\r\n0\r\n\r\n")
	if mail := e.queue.taken(); !strings.HasPrefix(got, "HTTP/1.1 200") || len(mail) != 1 || mail[0].data != "Subject: x\r\nhi\r\n" {
		t.Errorf("chunked: %q, %+v", got, mail)
	}
	if got := e.raw(head + "\r\n"); !strings.HasPrefix(got, "HTTP/1.1 411") || !strings.Contains(got, "Connection: close") {
		t.Errorf("no length: %q", got)
	}
	if got := e.raw(head + "Content-Length: 5\r\n\r\nab"); !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("cut off: %q", got)
	}
	if mail := e.queue.taken(); len(mail) > 0 {
		t.Errorf("stored: %+v", mail)
	}
}

// Each request is broken, and has a good one behind it that must not be read: where it begins is a matter of opinion.
func TestNothingBehindABrokenRequestIsRead(t *testing.T) {
	good := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\nContent-Length: 3\r\n\r\nabc"
	head := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\n"
	for name, request := range map[string]string{
		"two lengths":               head + "Content-Length: 3\r\nContent-Length: 0\r\n\r\n" + good,
		"two equal lengths":         head + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc" + good,
		"length and chunked":        head + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + good,
		"chunked and length":        head + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + good,
		"two encodings":             head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + good,
		"unknown encoding":          head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + good,
		"length with a sign":        head + "Content-Length: +3\r\n\r\nabc" + good,
		"length of letters":         head + "Content-Length: 0x3\r\n\r\nabc" + good,
		"negative length":           head + "Content-Length: -3\r\n\r\n" + good,
		"blank before the colon":    head + "Content-Length : 3\r\n\r\nabc" + good,
		"a chunk that is too short": head + "Transfer-Encoding: chunked\r\n\r\n5\r\nabc\r\n0\r\n\r\n" + good,
		"a chunk that is too long":  head + "Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n" + good,
		"a chunk of letters":        head + "Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n" + good,
		"a negative chunk":          head + "Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n" + good,
		"no host":                   "POST / HTTP/1.1\r\n" + toHeader + "\r\nContent-Length: 3\r\n\r\nabc" + good,
		"NUL in a header":           head + "X-A: \x00\r\nContent-Length: 3\r\n\r\nabc" + good,
		"bare LF":                   "POST / HTTP/1.1\nHost: x\n" + toHeader + "\nContent-Length: 3\n\nabc" + good,
		"a bare LF in one line":     head + "X-A: b\nContent-Length: 3\r\n\r\nabc" + good,
		"obs-fold":                  head + "X-A: b\r\n c\r\nContent-Length: 3\r\n\r\nabc" + good,
		"obs-fold of the length":    head + "Content-Length:\r\n 3\r\n\r\nabc" + good,
		"HTTP/1.0 and chunked":      "POST / HTTP/1.0\r\nHost: x\r\n" + toHeader + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + good,
		"PROXY from a stranger":     "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + good,
		"wrong type, body follows":  "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 300\r\n\r\n" + good,
		"not a word of HTTP":        "EHLO example.com\r\nMAIL FROM:<>\r\n" + good,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.HeaderTimeout = 2 * time.Second }) // bare LF waits for more
			got := e.raw(request)
			mail := e.queue.taken()
			for _, m := range mail {
				t.Errorf("stored %q: %q", m.data, got)
			}
			if n := strings.Count(got, "HTTP/1.1 "); n > 1 {
				t.Errorf("%d answers: %q", n, got)
			}
		})
	}
}

func TestTheQueuesAnswerIsTheAnswer(t *testing.T) {
	e := serve(t, nil)
	for err, want := range map[error]string{
		queue.ErrFull: "452; message=\"4.3.1", queue.ErrNoSpace: "452; message=\"4.3.1", errors.New("disk on fire"): "451; message=\"4.3.0",
	} {
		e.queue.err = err
		resp, _ := e.do("POST", "/", "Subject: x\r\n", rfc822, fromHeader, toHeader)
		if resp.StatusCode != 503 || !strings.HasPrefix(resp.Header.Get("X-Smtp-Reply"), want) || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%v: %d %q", err, resp.StatusCode, resp.Header.Get("X-Smtp-Reply"))
		}
		resp, body := e.do("POST", "/v1/messages", `{"mail_from":"a@example.com","rcpt_to":["b@example.net"],"raw":"x"}`, "Content-Type: application/json")
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, `"smtp_code":45`) {
			t.Errorf("%v: %d %q", err, resp.StatusCode, body)
		}
	}
}

// says is a validator that answers as it is told.
type says struct {
	at   policy.Stages
	does func(e *policy.Event)
}

func (v says) Stages() policy.Stages { return v.at }
func (v says) Validate(e *policy.Event) error {
	v.does(e)
	return nil
}

// X65 and X66: validators see everything once, and their reply is in the header.
func TestValidatorsDecideAboutHTTP(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	code := uint16(0)
	e := serve(t, func(_ *Options, _ *Listener, so *session.Options) {
		so.Validators = []policy.Validator{says{policy.On(policy.AtHelo, policy.AtMail, policy.AtRcpt), func(e *policy.Event) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, e.Stage.String()+" "+string(e.Client.Helo)+" "+string(e.Path.Mailbox))
			if e.Stage == policy.AtRcpt && code != 0 {
				e.Refuse(code, 7, 1, "not\nwanted")
			}
		}}, pends{}}
	})
	resp, _ := e.do("POST", "/", "x", rfc822, "X-Ehlo: test", fromHeader, toHeader, "X-Envelope-Recipient: "+b64("rcpt2@example.com"))
	want := "[helo test  mail test sender@example.com rcpt test rcpt1@example.com rcpt test rcpt2@example.com]"
	if fmt.Sprint(seen) != want || resp.StatusCode != 200 {
		t.Errorf("%d, seen %v", resp.StatusCode, seen)
	}
	for c, status := range map[uint16]int{450: 503, 550: 500, 535: 401, 421: 503} {
		mu.Lock()
		code = c
		mu.Unlock()
		resp, _ := e.do("POST", "/", "x", rfc822, fromHeader, toHeader)
		value := resp.Header.Get("X-Smtp-Reply")
		if resp.StatusCode != status || !strings.HasPrefix(value, fmt.Sprintf(`%d; message="%d.7.1 not wanted"`, c, c/100)) {
			t.Errorf("%d: %d %q", c, resp.StatusCode, value)
		}
		resp, body := e.do("POST", "/v1/messages", `{"mail_from":"","rcpt_to":["b@example.net"],"raw":"x"}`, "Content-Type: application/json")
		if c == 550 && resp.StatusCode/100 != 4 || !strings.Contains(body, fmt.Sprintf(`"smtp_code":%d`, c)) {
			t.Errorf("/v1, %d: %d %q", c, resp.StatusCode, body)
		}
	}
}

// pends answers each message later, from another goroutine.
type pends struct{}

func (pends) Stages() policy.Stages { return policy.On(policy.AtMessage) }
func (pends) Validate(e *policy.Event) error {
	p := e.Pend()
	go p.Done(smtpcodec.Reply{}, []byte("X-Seen: yes\r\n"))
	return nil
}

func TestSizeAtTheLimitAndOnePastIt(t *testing.T) {
	e := serve(t, func(_ *Options, _ *Listener, so *session.Options) { so.MaxMessageBytes = 100_000 })
	for _, size := range []int{100_000, 100_001} {
		body := strings.Repeat("x", size)
		want := map[int]int{100_000: 200, 100_001: 413}[size]
		resp, _ := e.do("POST", "/", body, rfc822, toHeader)
		if resp.StatusCode != want {
			t.Errorf("%d announced: %d", size, resp.StatusCode)
		}
		got := e.raw(fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", toHeader, size, body))
		if !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d", want)) {
			t.Errorf("%d chunked: %.200q", size, got)
		}
		want = map[int]int{100_000: 202, 100_001: 413}[size]
		resp, text := e.do("POST", "/v1/messages", body, rfc822, toHeader)
		if resp.StatusCode != want {
			t.Errorf("%d by /v1: %d %s", size, resp.StatusCode, text)
		}
		resp, text = e.do("POST", "/v1/messages", `{"mail_from":"","rcpt_to":["a@example.com"],"raw":"`+body+`"}`, "Content-Type: application/json")
		if resp.StatusCode != want {
			t.Errorf("%d in JSON: %d %s", size, resp.StatusCode, text)
		}
	}
	for _, m := range e.queue.taken() {
		if len(m.data) != 100_000 {
			t.Errorf("stored with %d bytes", len(m.data))
		}
	}
}

func TestASpentBudgetIsARefusalThatPasses(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.Budget = pool.NewBudget(1 << 20) })
	body := strings.Repeat("x", 2<<20)
	for _, path := range []string{"/", "/v1/messages"} {
		resp, _ := e.do("POST", path, body, rfc822, toHeader)
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
		if used := e.srv.o.Budget.Used(); used != 0 {
			t.Errorf("%s: %d bytes are still counted", path, used)
		}
		if resp, _ := e.do("POST", "/", "x", rfc822, toHeader); resp.StatusCode != 200 {
			t.Errorf("%s: afterwards %d", path, resp.StatusCode)
		}
	}
}
