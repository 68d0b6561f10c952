package httpedge

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

// dial opens a connection that is closed with the test.
func (e *edge) dial() net.Conn {
	e.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// alone waits until nobody is connected, and checks that nothing is held for anybody.
func (e *edge) alone() {
	e.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		e.srv.mu.Lock()
		n := len(e.srv.conns)
		e.srv.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			e.Fatalf("%d connections are still there", n)
		}
	}
	if lanes, used, inflating := e.srv.extra.Load(), e.srv.o.Budget.Used(), e.srv.inflater.used.Load(); lanes != 0 || used != 0 || inflating != 0 {
		e.Errorf("%d lanes, %d bytes and %d bytes for decompressing are still held", lanes, used, inflating)
	}
}

// Requests that are answered, and then closed or read to their very end: what is behind them, or hidden in them, is no request.
func TestNothingHiddenInARequestIsRead(t *testing.T) {
	certificate := pair(t, "mx.example.net", nil)
	hidden := "POST /hidden HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\nContent-Length: 6\r\n\r\nhidden"
	head := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\n"
	chunked := head + "Transfer-Encoding: chunked\r\n"
	length := fmt.Sprintf("Content-Length: %d\r\n", len(hidden))
	for name, request := range map[string]string{
		"identity and a length":            head + "Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n" + hidden,
		"a length and identity":            head + "Content-Length: 0\r\nTransfer-Encoding: identity\r\n\r\n" + hidden,
		"identity alone":                   head + "Transfer-Encoding: identity\r\n\r\n" + hidden,
		"a list of encodings":              head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + hidden,
		"chunked, chunked":                 head + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + hidden,
		"chunked with a parameter":         head + "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n" + hidden,
		"chunked in quotes":                head + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n" + hidden,
		"chunked behind a vertical tab":    head + "Transfer-Encoding:\x0bchunked\r\nContent-Length: 0\r\n\r\n" + hidden,
		"a length with an underscore":      head + "Content_Length: 100\r\n\r\n" + hidden,
		"a length with a blank in front":   head + "X-A: b\r\n Content-Length: 0\r\n\r\n" + hidden,
		"a blank in a name":                head + "Transfer-Encoding x: chunked\r\nContent-Length: 0\r\n\r\n" + hidden,
		"a tab before the colon":           head + "Transfer-Encoding\t: chunked\r\nContent-Length: 0\r\n\r\n" + hidden,
		"no name":                          head + ": chunked\r\nContent-Length: 0\r\n\r\n" + hidden,
		"no colon":                         head + "Transfer-Encoding chunked\r\nContent-Length: 0\r\n\r\n" + hidden,
		"a list of lengths":                head + "Content-Length: 0, 0\r\n\r\n" + hidden,
		"an empty length":                  head + "Content-Length:\r\n\r\n" + hidden,
		"a length of 65 bits":              head + "Content-Length: 18446744073709551616\r\n\r\n" + hidden,
		"a length with an underscore in":   head + "Content-Length: 0_0\r\n\r\n" + hidden,
		"a CR in a value":                  head + "X-A: b\rContent-Length: 0\r\n\r\n" + hidden,
		"a CR before CRLF":                 head + "Content-Length: 0\r\r\n\r\n" + hidden,
		"NUL in a name":                    head + "X\x00A: b\r\nContent-Length: 0\r\n\r\n" + hidden,
		"two hosts":                        head + "Host: y\r\nContent-Length: 0\r\n\r\n" + hidden,
		"HTTP/1.2":                         "POST / HTTP/1.2x\r\nHost: x\r\nContent-Length: 0\r\n\r\n" + hidden,
		"HTTP/2 without TLS":               "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + hidden,
		"HTTP/0.9":                         "POST /\r\n" + hidden,
		"two blanks in the first line":     "POST  / HTTP/1.1\r\nHost: x\r\n" + length + "\r\n" + hidden,
		"a chunk's size with an underline": chunked + "\r\n0_0\r\n\r\n" + hidden,
		"a chunk's size with 0x":           chunked + "\r\n0x0\r\n\r\n" + hidden,
		"a chunk of 65 bits":               chunked + "\r\n10000000000000000\r\n\r\n" + hidden,
		"a chunk extension with LF":        chunked + "\r\n0;a=\nb\r\n\r\n" + hidden,
		"a chunk extension with CR":        chunked + "\r\n0;a=\rb\r\n\r\n" + hidden,
		"a blank and an extension":         chunked + "\r\n0 ;a=b\r\n\r\n" + hidden,
		"bare LF behind a chunk's size":    chunked + "\r\n0\n\r\n" + hidden,
		"bare LF behind a chunk":           chunked + "\r\n3\r\nabc\n0\r\n\r\n" + hidden,
		"bare LF behind the last chunk":    chunked + "\r\n0\r\n\n" + hidden,
		"a chunk without its end":          chunked + "\r\n3\r\nabc0\r\n\r\n" + hidden,
		"a trailer that frames":            chunked + "\r\n0\r\nContent-Length: 3\r\n\r\n" + hidden,
		"a trailer that encodes":           chunked + "\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n" + hidden,
		"a trailer without a colon":        chunked + "\r\n0\r\nnothing\r\n\r\n" + hidden,
		"an announced trailer that frames": chunked + "Trailer: Content-Length\r\n\r\n0\r\nContent-Length: 3\r\n\r\n" + hidden,
		"a body of GET":                    "GET /v1/messages/x HTTP/1.1\r\nHost: x\r\n" + length + "\r\n" + hidden,
		"a chunked body of GET":            "GET /v1/messages/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(hidden), hidden),
		"a body of HEAD":                   "HEAD /openapi.json HTTP/1.1\r\nHost: x\r\n" + length + "\r\n" + hidden,
		"a body of OPTIONS":                "OPTIONS * HTTP/1.1\r\nHost: x\r\n" + length + "\r\n" + hidden,
		"a body of CONNECT":                "CONNECT x:25 HTTP/1.1\r\nHost: x:25\r\n\r\n" + hidden,
		"an upgrade":                       "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + hidden,
		"too long a body":                  head + "Content-Length: 9999999999\r\n\r\n" + hidden,
		"a body of a wrong type":           "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n" + length + "\r\n" + hidden,
		"a body of a wrong type, expected": "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Type: text/plain\r\n" + length + "\r\n" + hidden,
		"a body that nobody reads":         "POST / HTTP/1.1\r\nHost: x\r\nX-Envelope-Recipient: !\r\n" + length + "\r\n" + hidden,
		"a body of a nameless message":     "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: message/rfc822\r\nX-Envelope-Sender: !\r\n" + length + "\r\n" + hidden,
		"JSON that ends too soon":          "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + length + "\r\n" + hidden,
		"a batch that ends too soon":       "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n" + length + "\r\n" + hidden,
		"no gzip":                          "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Type: application/json\r\n" + length + "\r\n" + hidden,
		"HTTP/1.0 without keep-alive":      "POST / HTTP/1.0\r\nHost: x\r\n" + toHeader + "\r\nContent-Length: 1\r\n\r\nx" + hidden,
		"closed by the client":             head + "Connection: close\r\nContent-Length: 1\r\n\r\nx" + hidden,
		"a multipart form":                 "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n" + length + "\r\n" + hidden,
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %v", name, secure), func(t *testing.T) {
				t.Parallel()
				e := serve(t, func(o *Options, l *Listener, _ *session.Options) {
					o.HeaderTimeout = 5 * time.Second
					if secure {
						l.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
					}
				})
				c := e.dial()
				if secure {
					c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
				}
				if _, err := io.WriteString(c, request); err != nil {
					t.Fatal(err)
				}
				c.(interface{ CloseWrite() error }).CloseWrite()
				b, _ := io.ReadAll(c)
				for _, m := range e.queue.taken() {
					if strings.Contains(m.data, "hidden") {
						t.Errorf("stored %q: %q", m.data, b)
					}
				}
			})
		}
	}
}

// A message is there whole, or it is none: whatever its size, protocol and coding, and wherever the client has left.
func TestACutOffBodyIsNoMessage(t *testing.T) {
	e := serve(t, nil)
	plainHead, v1Head := "POST / HTTP/1.1\r\nHost: x\r\n"+toHeader+"\r\n", "POST /v1/messages HTTP/1.1\r\nHost: x\r\n"+rfc822+"\r\n"+fromHeader+"\r\n"+toHeader+"\r\n"
	batchHead := "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n" + asNDJSON + "\r\n"
	for _, size := range []int{1, 100, 8 << 10, 20_000, 100_000} {
		data := strings.Repeat("x", size)
		for name, request := range map[string]string{
			"a length, plain":          plainHead + fmt.Sprintf("Content-Length: %d\r\n\r\n", size+1) + data,
			"a length, /v1":            v1Head + fmt.Sprintf("Content-Length: %d\r\n\r\n", size+1) + data,
			"between chunks, plain":    plainHead + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", size, data),
			"between chunks, /v1":      v1Head + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", size, data),
			"in a chunk":               plainHead + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s", size+1, data),
			"behind a chunk":           plainHead + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s", size, data),
			"in the last chunk's size": plainHead + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0", size, data),
			"before the trailers' end": plainHead + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n", size, data),
			"a line of a batch":        batchHead + fmt.Sprintf("Content-Length: %d\r\n\r\n", 2*len(simple)+size) + strings.Replace(simple, "hi", data, 1),
			"a chunked line":           batchHead + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(simple), simple),
		} {
			got := e.raw(request)
			if mail := e.queue.taken(); len(mail) > 0 || strings.Contains(got, `"status":202`) {
				t.Errorf("%d bytes, %s: stored %d messages: %.300q", size, name, len(mail), got)
			}
			if !strings.HasPrefix(got, "HTTP/1.1 400") && !strings.Contains(got, `"status":400`) {
				t.Errorf("%d bytes, %s: %.300q", size, name, got)
			}
		}
	}
	e.alone()
}

// Fields behind a chunked body say nothing of the envelope, the credentials or the key.
func TestTrailersMeanNothing(t *testing.T) {
	e := serve(t, nil)
	for _, announced := range []string{"", "Trailer: X-Envelope-Recipient, Idempotency-Key\r\n"} {
		got := e.raw("POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: message/rfc822\r\n" + fromHeader + "\r\n" + toHeader + "\r\nTransfer-Encoding: chunked\r\n" + announced +
			"\r\n1\r\nx\r\n0\r\nX-Envelope-Recipient: " + b64("evil@example.com") + "\r\nIdempotency-Key: k\r\n\r\n")
		mail := e.queue.taken()
		if !strings.HasPrefix(got, "HTTP/1.1 202") || len(mail) != 1 || len(mail[0].env.Recipients) != 1 || mail[0].env.Idempotency.Given() {
			t.Errorf("%q: %q %+v", announced, got, mail)
		}
	}
}

// Whatever leads below /v1 once it is put in order, or out of it, is another path than the one that was sent, and nothing is there.
func TestPathsAreTakenAsTheyAreSent(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) {
		o.Path = regexp.MustCompile("/in/|//|http:|/%|/V1|/x|/v1")
	})
	for path, want := range map[string]int{
		"/v1/messages": 202, "http://elsewhere/v1/messages": 202, "/v1/messages?x=/../y": 202, "/v1/messages#x": 202,
		"//v1/messages": 404, "/v1//messages": 404, "/v1/./messages": 404, "/v1/messages/": 404, "/v1/messages/.": 405, "/v1/messages/../messages": 405,
		"/x/../v1/messages": 404, "/./v1/messages": 404, "/%76%31/messages": 404, "/v1%2fmessages": 404, "/v1%2Fmessages": 404, "/v1/%6dessages": 404,
		"/x/%2e%2e/v1/messages": 404, "/x/..%2fv1/messages": 404, "/v1": 404, "/v1/": 404, "/v1/../in/x": 404, "/v1/%2e%2e/in/x": 404,
		"/v1/messages%3abatch": 404, "/openapi%2ejson": 404, "/in/../openapi.json": 404,
		"/in/x": 200, "/in/../x": 200, "/in/%20": 200, "/V1/messages": 200, "/v10": 200, "/x?/v1/messages": 200, "/else": 404, "/%69n/x": 200, "/else/../in/x": 404,
	} {
		got := e.raw("POST " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: message/rfc822\r\n" + fromHeader + "\r\n" + toHeader + "\r\nContent-Length: 1\r\n\r\nx")
		stored := len(e.queue.taken())
		if !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d", want)) || stored != map[bool]int{true: 1}[want < 300] {
			t.Errorf("%s: %.100q, %d messages", path, got, stored)
		}
	}
}

// A pipelined request behind one that is refused before its body is read gets no answer, and one behind a good one does.
func TestPipelinedRequests(t *testing.T) {
	e := serve(t, nil)
	request := func(rcpt, more, body string) string {
		return fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nX-Envelope-Recipient: %s\r\n%sContent-Length: %d\r\n\r\n%s", b64(rcpt), more, len(body), body)
	}
	got := e.raw(request("a@example.com", "", "1") + request("b@example.com", "", strings.Repeat("x", 40_000)) + request("c d", "", "") + request("c@example.com", "", "3") +
		request("d@example.com", "Content-Type: text/plain\r\n", "4") + request("e@example.com", "", "5"))
	var statuses []string
	for line := range strings.Lines(got) {
		if strings.HasPrefix(line, "HTTP/1.1") {
			statuses = append(statuses, line[9:12])
		}
	}
	var sizes []int
	for _, m := range e.queue.taken() {
		sizes = append(sizes, len(m.data))
	}
	if fmt.Sprint(statuses) != "[200 200 500]" || fmt.Sprint(sizes) != "[1 40000]" {
		t.Errorf("%v, messages of %v bytes", statuses, sizes)
	}
}

func TestHTTP10IsServedAndKeptAliveWhenAsked(t *testing.T) {
	e := serve(t, nil)
	one := "POST / HTTP/1.0\r\nConnection: keep-alive\r\n" + toHeader + "\r\nContent-Length: 1\r\n\r\nx"
	if got := e.raw(one + one); strings.Count(got, " 200 ") != 2 || len(e.queue.taken()) != 2 {
		t.Errorf("%q", got)
	}
	// The answers to a batch have no length that is known before.
	got := e.raw(fmt.Sprintf("POST /v1/messages:batch HTTP/1.0\r\n%s\r\nContent-Length: %d\r\n\r\n%s\n", asNDJSON, len(simple)+1, simple))
	if !strings.HasPrefix(got, "HTTP/1.1 400") || !strings.Contains(got, "needs HTTP/1.1") || len(e.queue.taken()) != 0 {
		t.Errorf("%q", got)
	}
}

// What a validator says is no way into the header of an answer.
func TestNothingInAReplyEndsAHeaderLine(t *testing.T) {
	for _, evil := range []string{"a\r\nX-Evil: yes", "a\nX-Evil: yes", "a\x00b", "a\"; message=\"b", strings.Repeat("\\\"", 400), "é\u2028"} {
		e := serve(t, func(_ *Options, _ *Listener, so *session.Options) {
			so.Validators = []policy.Validator{says{policy.On(policy.AtRcpt), func(e *policy.Event) { e.Refuse(550, 7, 1, evil) }}}
		})
		resp, _ := e.do("POST", "/", "x", rfc822, toHeader)
		value := resp.Header.Get("X-Smtp-Reply")
		if resp.Header.Get("X-Evil") != "" || !codePattern.MatchString(value) || len(value) > MaxSMTPReplyBytes {
			t.Errorf("%q: %v", evil, resp.Header)
		}
		resp, body := e.do("POST", "/v1/messages", simple, asJSON)
		if resp.Header.Get("X-Evil") != "" || !json.Valid([]byte(body)) {
			t.Errorf("%q: %v %s", evil, resp.Header, body)
		}
	}
}

// The recipients in a line's problem are the line's own, however late it is answered.
func TestABatchsRefusedRecipientsAreItsOwn(t *testing.T) {
	e := serve(t, func(_ *Options, _ *Listener, so *session.Options) {
		so.Validators = []policy.Validator{says{policy.On(policy.AtRcpt), func(e *policy.Event) {
			if strings.HasPrefix(string(e.Path.Mailbox), "no") {
				e.Refuse(550, 1, 1, "nobody")
			}
		}}}
	})
	const n = 200
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"mail_from":"","rcpt_to":["no%d@example.net","no-%d@example.net"],"raw":""}`+"\n", i, i)
	}
	_, body := e.do("POST", "/v1/messages:batch", b.String(), asNDJSON)
	lines := strings.Split(strings.TrimSpace(body), "\n")
	if len(lines) != n {
		t.Fatalf("%d lines", len(lines))
	}
	for i, text := range lines {
		var got struct {
			Problem struct{ Recipients []struct{ Address string } }
		}
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("[{no%d@example.net} {no-%d@example.net}]", i, i)
		if fmt.Sprint(got.Problem.Recipients) != want {
			t.Fatalf("line %d: %s", i, text)
		}
	}
}

// smallBuffer makes a client's kernel take little that the client does not read.
func smallBuffer(_ context.Context, _, _ string, c syscall.RawConn) (err error) {
	c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	return err
}

// A client that sends lines and reads none of the answers is cut off, and nothing is held for it; what it has sent stays.
func TestABatchWhoseClientReadsNothingEnds(t *testing.T) {
	e := serve(t, func(_ *Options, _ *Listener, so *session.Options) { so.DataTimeout = 300 * time.Millisecond })
	d := net.Dialer{ControlContext: smallBuffer}
	c, err := d.DialContext(t.Context(), "tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	rcpts := strings.TrimSuffix(strings.Repeat(`"someone@example.net",`, 1000), ",")
	line := `{"mail_from":"","rcpt_to":[` + rcpts + `],"raw":""}` + "\n"
	fmt.Fprintf(c, "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n", asNDJSON)
	for { // until it is cut off
		if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(line), line); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatal("never cut off")
			}
			break
		}
	}
	e.alone()
}

// A client that stops in the middle of a line has the time of a message, and the lines before it get their answers.
func TestABatchWhoseClientStopsSendingEnds(t *testing.T) {
	e := serve(t, func(_ *Options, _ *Listener, so *session.Options) { so.DataTimeout = 300 * time.Millisecond })
	for _, rest := range []string{"", " ", `{"mail_from":`} {
		c := e.dial()
		fmt.Fprintf(c, "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n", asNDJSON)
		text := simple + "\n" + rest
		fmt.Fprintf(c, "%x\r\n%s\r\n", len(text), text)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], `"status":202`) || !strings.Contains(lines[1], `"status":408`) {
			t.Errorf("%q: %s", rest, b)
		}
		c.Close()
	}
	e.alone()
}

// Close ends the reader of a batch at once, also when it is just about to give its client more time.
func TestClosingABatchDoesNotWaitForItsClient(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	e := serve(t, nil)
	c := &conn{Conn: near, raw: near, srv: e.srv, at: &e.srv.o.Listeners[0]}
	b := &batch{srv: e.srv, c: c, pending: make(chan line, batchWindow), places: make(chan struct{}, batchWindow), stop: make(chan struct{}), ended: make(chan struct{}), waits: make(chan struct{}, 1)}
	begins := make(chan struct{})
	b.lines.Reset(&batchBody{b, readerFunc(func(p []byte) (int, error) {
		close(begins)
		return near.Read(p)
	})}, batchLimits{MaxLineBytes: 1000, MaxBytes: 1000, MaxLines: 10})
	b.places <- struct{}{}
	b.body, b.begun = io.NopCloser(nil), true
	go b.read()
	<-begins
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if n, err := c.readPaced(make([]byte, 1)); err == nil {
		t.Error("the reader may go on, and has read", n)
	}
	if err := b.Close(); err != nil {
		t.Error("closed twice:", err)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Draining and closing in the middle of a batch: each line that was answered with 202 is stored, and nothing hangs.
func TestABatchIsDrainedAndClosed(t *testing.T) {
	for _, end := range []func(s *Server){
		func(s *Server) { s.Close() },
		func(s *Server) { s.draining.Store(true) },
	} {
		e := serve(t, nil)
		c := e.dial()
		fmt.Fprintf(c, "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n", asNDJSON)
		send := func() error {
			_, err := fmt.Fprintf(c, "%x\r\n%s\n\r\n", len(simple)+1, simple)
			return err
		}
		send()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		answers := bufio.NewReader(resp.Body)
		if text, err := answers.ReadString('\n'); err != nil || !strings.Contains(text, `"status":202`) {
			t.Fatalf("%q %v", text, err)
		}
		end(e.srv)
		if send() == nil {
			io.WriteString(c, "0\r\n\r\n")
		}
		rest, _ := io.ReadAll(answers)
		if strings.Contains(string(rest), `"status":202`) {
			t.Errorf("accepted while draining: %s", rest)
		}
		c.Close()
		e.alone()
		if n := len(e.queue.taken()); n != 1 {
			t.Errorf("%d messages", n)
		}
	}
}

// Whatever a client is slow with, it has so much time and no more. The limits are short here and long in life.
func TestSlowClientsAreCutOff(t *testing.T) {
	const long = time.Hour
	head := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\n"
	for name, tc := range map[string]struct {
		header, idle, data time.Duration
		send, want         string
	}{
		"nothing":                 {300 * time.Millisecond, long, long, "", ""},
		"half a first line":       {300 * time.Millisecond, long, long, "POS", "HTTP/1.1 408"},
		"half a header":           {300 * time.Millisecond, long, long, head, "HTTP/1.1 408"},
		"between requests":        {long, 300 * time.Millisecond, long, head + "Content-Length: 1\r\n\r\nx", "HTTP/1.1 200"},
		"a small body":            {long, long, 300 * time.Millisecond, head + "Content-Length: 3\r\n\r\nx", "HTTP/1.1 408"},
		"a large body":            {long, long, 300 * time.Millisecond, head + "Content-Length: 30000\r\n\r\n" + strings.Repeat("x", 20000), "HTTP/1.1 408"},
		"a chunked body":          {long, long, 300 * time.Millisecond, head + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "HTTP/1.1 408"},
		"a body that was invited": {long, long, 300 * time.Millisecond, head + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", "HTTP/1.1 100"},
		"JSON":                    {long, long, 300 * time.Millisecond, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n" + asJSON + "\r\n\r\n{" + strings.Repeat(" ", 20000), "HTTP/1.1 408"},
		"a body that is refused":  {long, long, 300 * time.Millisecond, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + strings.Repeat("x", 20000), "HTTP/1.1 400"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := serve(t, func(o *Options, _ *Listener, so *session.Options) {
				o.HeaderTimeout, o.IdleTimeout, so.DataTimeout = tc.header, tc.idle, tc.data
			})
			c := e.dial()
			io.WriteString(c, tc.send)
			b, err := io.ReadAll(c)
			if err != nil || !strings.HasPrefix(string(b), tc.want) || tc.want == "" && len(b) > 0 {
				t.Errorf("%q %v", b, err)
			}
			if strings.Contains(string(b), " 408 ") && !strings.HasPrefix(tc.send, "POST /v1") && !strings.Contains(string(b), "X-Smtp-Reply: 451;") {
				t.Errorf("a relay would take it for good: %q", b)
			}
			e.alone()
		})
	}
}

// A client that does not read its answers is cut off.
func TestAClientThatDoesNotReadIsCutOff(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.HeaderTimeout = 300 * time.Millisecond })
	d := net.Dialer{ControlContext: smallBuffer}
	c, err := d.DialContext(t.Context(), "tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	for {
		if _, err := io.WriteString(c, "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatal("never cut off")
			}
			break
		}
	}
	e.alone()
}

// breaks is a meter that panics where it is told to, and counts panics.
type breaks struct {
	noMeter
	at     atomic.Int64 // 1: replies, 2: refusals, 3: new connections
	panics atomic.Int64
}

func (m *breaks) Reply(session.Stage, uint16) {
	if m.at.Load() == 1 {
		panic("a bug")
	}
}

func (m *breaks) Refusal(session.Stage, session.Reason, uint16) {
	if m.at.Load() == 2 {
		panic("a bug")
	}
}

func (m *breaks) Connection(int, ConnResult) {
	if m.at.Load() == 3 {
		panic("a bug")
	}
}

func (m *breaks) Event(e Event) {
	if e == EventPanic {
		m.panics.Add(1)
	}
}

// A bug costs the request that meets it, wherever it is: not the process, not the next request, not a key.
func TestAPanicCostsOneRequest(t *testing.T) {
	m := &breaks{}
	e := serve(t, func(o *Options, l *Listener, _ *session.Options) {
		o.Meter = m
		l.Basic = true // without passwords to look into: another bug
	})
	for name, request := range map[string]string{
		"1 plain":                       "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\nContent-Length: 1\r\n\r\nx",
		"1 JSON with a key":             fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\n%s\r\nContent-Length: %d\r\n\r\n%s", asJSON, len(simple), simple),
		"1 batch":                       fmt.Sprintf("POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s\n", asNDJSON, len(simple)+1, simple),
		"2 batch that refuses":          fmt.Sprintf("POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s\n", asNDJSON, len(simple)+1, strings.Replace(simple, "b@", "@@", 1)),
		"0 credentials":                 "POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YTpi\r\nContent-Length: 1\r\n\r\nx",
		"0 credentials before its body": "POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YTpi\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
		"3 arrival":                     "",
	} {
		before := m.panics.Load()
		m.at.Store(int64(name[0] - '0'))
		got := e.raw(request)
		m.at.Store(0)
		if m.panics.Load() == before {
			t.Errorf("%s: no panic, %q", name, got)
		}
		if got != "" && !strings.HasPrefix(got, "HTTP/1.1 500") && !strings.Contains(name, "batch") || strings.HasSuffix(got, "\r\n0\r\n\r\n") {
			t.Errorf("%s: %q", name, got)
		}
	}
	for range 2 {
		if resp, body := e.do("POST", "/v1/messages", simple, asJSON, "Idempotency-Key: k"); resp.StatusCode != 202 {
			t.Errorf("afterwards: %d %s", resp.StatusCode, body)
		}
	}
	if n := len(e.queue.taken()); n != 1 {
		t.Errorf("%d messages", n)
	}
	http.DefaultClient.CloseIdleConnections()
	e.alone()
}

// While it drains, fasthttp closes connections that have not said anything yet, from another goroutine: what was counted for them is taken back once.
func TestAConnectionMayBeClosedWhileItArrives(t *testing.T) {
	var open openMeter
	gate := policy.NewGate(policy.GateOptions{PerAddress: 1})
	e := serve(t, func(o *Options, l *Listener, _ *session.Options) {
		o.Meter = &open
		l.Gate = gate
		l.Proxies = everybody
	})
	d := e.srv.doors[0]
	for i := range 300 {
		near, far := net.Pipe()
		c := d.admit(near)
		var all sync.WaitGroup
		all.Go(func() { // the worker
			c.Read(make([]byte, 1))
			c.Close()
		})
		all.Go(func() {
			far.SetDeadline(time.Now().Add(time.Minute))
			io.WriteString(far, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
		})
		if i%2 == 0 {
			all.Go(func() { io.ReadAll(far) })
		}
		c.Close() // the one who drains
		far.Close()
		all.Wait()
		if n := open.n.Load(); n != 0 {
			t.Fatalf("round %d: %d connections are counted", i, n)
		}
		if limit := gate.Admit(netip.MustParseAddr("192.0.2.1"), time.Now()); limit != policy.LimitNone {
			t.Fatalf("round %d: the gate still counts it", i)
		}
		gate.Leave(netip.MustParseAddr("192.0.2.1"))
	}
	e.alone()
}

type openMeter struct {
	noMeter
	n atomic.Int64
}

func (m *openMeter) OpenConnections(_, delta int) { m.n.Add(int64(delta)) }

// A relay of the plain protocol takes an answer of 4xx for good, unless X-Smtp-Reply says otherwise.
func TestWhoIsOverALimitMayComeBack(t *testing.T) {
	gate := policy.NewGate(policy.GateOptions{PerAddress: 1})
	e := serve(t, func(_ *Options, l *Listener, _ *session.Options) { l.Gate = gate })
	c := e.dial()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\n"+toHeader+"\r\nContent-Length: 1\r\n\r\nx")
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(e.dial()), nil)
	if err != nil || resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" || !strings.HasPrefix(resp.Header.Get("X-Smtp-Reply"), "421; message=") {
		t.Errorf("%v %v", resp, err)
	}
}

func TestHeadersAtTheLimitAndOnePastIt(t *testing.T) {
	const limit = 8 << 10
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.MaxHeaderBytes = limit })
	for size, want := range map[int]string{limit: "HTTP/1.1 200", limit + 1: "HTTP/1.1 431"} {
		head := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\nContent-Length: 0\r\nX-Pad: "
		head += strings.Repeat("x", size-len(head)-4) + "\r\n\r\n"
		if got := e.raw(head); !strings.HasPrefix(got, want) {
			t.Errorf("%d bytes: %.100q", size, got)
		}
	}
}

func TestABatchsBytesAtTheLimitAndOnePastIt(t *testing.T) {
	limit := int64(2*len(simple) + 2)
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.MaxBatchBytes = limit })
	for extra, want := range map[string]string{"": `"status":202`, "\n": `"status":413`} {
		body := simple + "\n" + extra + simple + "\n"
		got := e.raw(fmt.Sprintf("POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", asNDJSON, len(body), body))
		if strings.Count(got, `"line":`) < 2 || !strings.Contains(got[strings.LastIndex(got, `"line":`):], want) {
			t.Errorf("%d bytes: %s", len(body), got)
		}
		resp, _ := e.do("POST", "/v1/messages:batch", body, asNDJSON)
		if want := map[bool]int{true: 200, false: 413}[extra == ""]; resp.StatusCode != want {
			t.Errorf("%d bytes announced: %d", len(body), resp.StatusCode)
		}
	}
}

// A message is shown to who has sent it.
func TestWhoMaySeeAMessage(t *testing.T) {
	options, key := credentials(t, nil)
	for _, tc := range []struct {
		user, client string // of the message
		relay        bool   // who asks may send to any domain
		header       string
		want         int
	}{
		{"", "127.0.0.1:4", false, "", 200},
		{"", "[::ffff:127.0.0.1]:4", false, "", 200},
		{"", "192.0.2.1:4", false, "", 404},
		{"", "", false, "", 404},
		{"", "192.0.2.1:4", true, "", 200},
		{"alice", "127.0.0.1:4", true, "", 404},
		{"alice", "192.0.2.1:4", false, "Basic " + b64("alice:secret:word"), 200},
		{"alice", "192.0.2.1:4", false, "Bearer " + key, 404},
		{"shop", "192.0.2.1:4", false, "Bearer " + key, 200},
		{"", "127.0.0.1:4", true, "Bearer " + key, 404},
	} {
		e := serve(t, func(o *Options, l *Listener, _ *session.Options) {
			options(o)
			l.Bearer, l.Basic = true, true
			if !tc.relay {
				l.MayRelay = nil
			}
			o.Inspector = shown{entry: queue.Entry{ID: envelope.ID{1}, User: tc.user, Client: tc.client}}
		})
		resp, body := e.do("GET", "/v1/messages/"+envelope.ID{1}.String(), "", "Authorization: "+tc.header)
		if resp.StatusCode != tc.want {
			t.Errorf("%+v: %d %s", tc, resp.StatusCode, body)
		}
	}
}

// What a client has proved itself with is in no line of the log, and neither is its key for a message.
func TestSecretsAreNotLogged(t *testing.T) {
	options, key := credentials(t, nil)
	lines := &lockedBuffer{}
	e := serve(t, func(o *Options, l *Listener, so *session.Options) {
		options(o)
		o.Lines = lines
		l.Bearer, l.Basic = true, true
		so.Validators = []policy.Validator{says{policy.On(policy.AtRcpt), func(e *policy.Event) {
			if strings.HasPrefix(string(e.Path.Mailbox), "no") {
				e.Refuse(550, 1, 1, "nobody")
			}
		}}}
	})
	for _, authorization := range []string{"Bearer " + key, "Bearer " + key + "x", "Basic " + b64("alice:secret:word"), "Basic " + b64("alice:wrong:word")} {
		for _, rcpt := range []string{"b@example.net", "no@example.net", "@@"} {
			e.do("POST", "/", "x", rfc822, "X-Envelope-Recipient: "+b64(rcpt), "Authorization: "+authorization)
			e.do("POST", "/v1/messages", strings.Replace(simple, "b@example.net", rcpt, 1), asJSON, "Authorization: "+authorization, "Idempotency-Key: the-key-of-"+b64(authorization))
		}
	}
	log := e.log.String() + lines.String()
	if !strings.Contains(log, "nobody") {
		t.Errorf("the log does not tell of them:\n%s", log)
	}
	for _, secret := range []string{key, "secret:word", "wrong:word", b64("alice:secret:word"), b64("alice:wrong:word"), "the-key-of"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is in the log:\n%s", secret, log)
		}
	}
}

func TestHeadAndOptions(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) {
		o.Inspector = shown{entry: queue.Entry{ID: envelope.ID{1}}}
	})
	for _, tc := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"HEAD", "/openapi.json", 200, ""},
		{"HEAD", "/v1/messages/" + envelope.ID{1}.String(), 200, ""},
		{"HEAD", "/v1/messages", 405, "POST"},
		{"OPTIONS", "/v1/messages", 405, "POST"},
		{"OPTIONS", "/v1/messages/x", 405, "GET, HEAD"},
		{"OPTIONS", "/openapi.json", 405, "GET, HEAD"},
		{"OPTIONS", "/", 405, "POST"},
		{"HEAD", "/", 405, "POST"},
		{"TRACE", "/", 405, "POST"},
	} {
		resp, body := e.do(tc.method, tc.path, "")
		if resp.StatusCode != tc.status || resp.Header.Get("Allow") != tc.allow || tc.method == "HEAD" && body != "" || strings.Contains(body, "Authorization") {
			t.Errorf("%s %s: %d, Allow %q, %q", tc.method, tc.path, resp.StatusCode, resp.Header.Get("Allow"), body)
		}
		if resp.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s: any page may post", tc.method, tc.path)
		}
	}
}
