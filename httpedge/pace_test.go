package httpedge

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/session"
)

// The look at the rate of a body, with the time as a parameter: the least rate keeps the time of the whole, one byte less ends at the first look.
func TestABodyMustComeAtTheLeastRate(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	const rate, limit = 100, 10 * time.Minute
	enough := int64(rate * paceWindow / time.Second)
	for _, tc := range []struct {
		came  int64 // in each window
		until time.Duration
		want  error
	}{
		{enough, limit, os.ErrDeadlineExceeded},
		{enough - 1, paceWindow, errTooSlow},
		{0, paceWindow, errTooSlow},
	} {
		p := pace{on: true, rate: rate, limit: limit, every: paceWindow}
		p.begin(start)
		now := start
		for {
			if p.look.After(start.Add(limit)) {
				t.Fatalf("%d: a look at %v", tc.came, p.look)
			}
			if now = now.Add(time.Second); now.Before(p.look) {
				if !p.keepsUp(now) {
					t.Fatalf("%d: asked early, it ended at %v", tc.came, now.Sub(start))
				}
				continue
			}
			p.came += tc.came
			if !p.keepsUp(now) {
				break
			}
		}
		if got := p.error(io.ErrUnexpectedEOF); now.Sub(start) != tc.until || got != tc.want {
			t.Errorf("%d bytes a window: %v after %v", tc.came, got, now.Sub(start))
		}
	}
	// Between the lines of a batch a client may take its time; within one it may not.
	p := pace{}
	p.waiting(start.Add(limit))
	if now := start.Add(5 * time.Minute); !p.keepsUp(now) {
		t.Error("between two lines")
	}
	p.message(rate, paceWindow)
	p.begin(start.Add(5 * time.Minute))
	if got := p.look.Sub(start); got != 6*time.Minute {
		t.Errorf("the first look at a line is after %v", got)
	}
	if p.keepsUp(start.Add(6*time.Minute)) || p.error(nil) != errTooSlow {
		t.Error("a line of which nothing comes")
	}
	if p = (pace{on: true, limit: limit, every: paceWindow}); true {
		p.begin(start)
	}
	if !p.look.Equal(start.Add(limit)) || p.keepsUp(start.Add(limit)) || !errors.Is(p.error(nil), os.ErrDeadlineExceeded) {
		t.Error("without a rate the time of the whole counts")
	}
}

// A body below limits.data_rate ends long before its time, by each protocol.
func TestASlowBodyIsRefused(t *testing.T) {
	for _, tc := range []struct{ head, want, reason string }{
		{"POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\n", "HTTP/1.1 408", `X-Smtp-Reply: 451;`},
		{"POST /v1/messages HTTP/1.1\r\nHost: x\r\n" + rfc822 + "\r\n" + toHeader + "\r\n", "HTTP/1.1 408", `"reason":"dataRate"`},
		{"POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n" + asNDJSON + "\r\n", "HTTP/1.1 200", `"status":408,"problem":{"type":"/openapi.json#/x-problems/dataRate"`},
	} {
		for _, framing := range []string{"Content-Length: 300000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"} {
			t.Run(tc.head[:12]+framing[:7], func(t *testing.T) {
				t.Parallel()
				e := serve(t, func(o *Options, _ *Listener, so *session.Options) {
					o.paceWindow, so.MinDataRate = 300*time.Millisecond, 30_000
				})
				body := `{"mail_from":"","rcpt_to":["b@example.net"],"raw":"` + strings.Repeat("x", 2_000) // in the first window; nothing in the second
				if strings.HasPrefix(framing, "T") {
					body = fmt.Sprintf("%x\r\n%s\r\n5", len(body), body)
				}
				c := e.dial()
				io.WriteString(c, tc.head+framing+body)
				b, err := io.ReadAll(c)
				if err != nil || !strings.HasPrefix(string(b), tc.want) || !strings.Contains(string(b), tc.reason) {
					t.Errorf("%v %.400q", err, b)
				}
				c.Close()
				e.alone()
			})
		}
	}
}

// A client may send for a while before it reads: it has the time of a message for that, not that of a header.
func TestABatchsAnswersWaitForTheirClient(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.HeaderTimeout = 300 * time.Millisecond })
	d := net.Dialer{ControlContext: smallBuffer}
	c, err := d.DialContext(t.Context(), "tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	const n = 120
	rcpts := strings.TrimSuffix(strings.Repeat(`"someone@example.net",`, 1000), ",")
	line := `{"mail_from":"","rcpt_to":[` + rcpts + `],"raw":""}` + "\n"
	go fmt.Fprintf(c, "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s", asNDJSON, n*len(line), strings.Repeat(line, n))
	time.Sleep(900 * time.Millisecond)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if got := strings.Count(string(b), "\n"); err != nil || got != n {
		t.Errorf("%d answers, %v", got, err)
	}
}

// Nothing of a message for /v1 is read while there is no room for it; what is under way is not asked again.
func TestNoRoomIsToldBeforeTheBody(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.Budget = pool.NewBudget(4 << 20) })
	if !e.srv.o.Budget.Reserve(4<<20/4*3 + 1) {
		t.Fatal("no room")
	}
	for _, head := range []string{
		"POST /v1/messages HTTP/1.1\r\nHost: x\r\n" + asJSON + "\r\nContent-Length: 100\r\n\r\n",
		"POST /v1/messages HTTP/1.1\r\nHost: x\r\n" + rfc822 + "\r\n" + toHeader + "\r\nContent-Length: 100\r\n\r\n",
		"POST /v1/messages HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" + asJSON + "\r\nContent-Length: 100\r\n\r\n",
		"POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n" + asNDJSON + "\r\nContent-Length: 100\r\n\r\n",
	} {
		c := e.dial()
		io.WriteString(c, head+"x")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 503 || !strings.Contains(string(b), `"reason":"memory"`) || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%q: %d %s", head, resp.StatusCode, b)
		}
		c.Close()
	}
	if !strings.Contains(e.log.String(), "reason=memory") {
		t.Error("not in the log")
	}
	e.srv.o.Budget.GiveBack(4<<20/4*3 + 1)
	// A message that takes more than a quarter of the budget has begun when there was room.
	if resp, body := e.do("POST", "/v1/messages", strings.Repeat("x", 3400<<10), rfc822, toHeader); resp.StatusCode != 202 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// Bodies that take several windows and are fast enough are taken, whatever else they are.
func TestAFastBodyMayTakeManyWindows(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, so *session.Options) {
		o.paceWindow, so.MinDataRate = 500*time.Millisecond, 100
	})
	for _, path := range []string{"/", "/v1/messages", "/v1/messages:batch"} {
		c := e.dial()
		fields, body := rfc822+"\r\n"+toHeader, strings.Repeat("x", 20_000)
		if path == "/v1/messages:batch" {
			fields, body = asNDJSON, from(`["b@example.net"]`, `"raw":"`+body+`"`)+"\n"
		}
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n", path, fields)
		for len(body) > 0 {
			n := min(len(body), 1000)
			fmt.Fprintf(c, "%x\r\n%s\r\n", n, body[:n])
			body = body[n:]
			time.Sleep(60 * time.Millisecond)
		}
		io.WriteString(c, "0\r\n\r\n")
		b, err := io.ReadAll(c)
		if mail := e.queue.taken(); err != nil || len(mail) != 1 || len(mail[0].data) != 20_000 {
			t.Errorf("%s: %v %.300q", path, err, b)
		}
		c.Close()
	}
	e.alone()
}
