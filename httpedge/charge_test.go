package httpedge

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/session"
)

// named gives n recipients of so many bytes each, as JSON.
func named(n, size int) string {
	return strings.TrimSuffix(strings.Repeat(`"`+strings.Repeat("a", size-len("@b.example"))+`@b.example",`, n), ",")
}

// chargeOf is what so many recipients cost the budget.
func chargeOf(n, size int) int64 {
	c := charge{budget: pool.NewBudget(0)}
	c.covers(n, n*size)
	return int64(c.held)
}

func TestAnOrdinaryMessageCostsTheBudgetItsDataOnly(t *testing.T) {
	e := serve(t, nil)
	e.queue.gate = make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.do("POST", "/v1/messages", `{"mail_from":"","rcpt_to":[`+named(20, 30)+`],"raw":""}`, asJSON)
	}()
	e.queue.gate <- struct{}{}
	<-done
	if got := chargeOf(20, 30); got != 0 {
		t.Errorf("%d bytes", got)
	}
}

// What a request's recipients take is a part of limits.memory: at the limit, and one byte past it.
func TestRecipientsAreCountedInTheBudget(t *testing.T) {
	const n, size = 1000, 200
	need := chargeOf(n, size)
	if need < n*size {
		t.Fatalf("%d recipients of %d bytes are counted as %d", n, size, need)
	}
	for _, tc := range []struct{ contentType, body, fields string }{
		{asJSON, `{"mail_from":"","rcpt_to":[` + named(n, size) + `],"raw":""}`, ""},
		{asNDJSON, `{"mail_from":"","rcpt_to":[` + named(n, size) + `],"raw":""}` + "\n", ""},
		{rfc822, "", "X-Envelope-Recipient: " + strings.Repeat(b64(strings.Repeat("a", size-len("@b.example"))+"@b.example")+",", n)},
	} {
		for _, room := range []int64{need, need - 1} {
			e := serve(t, func(o *Options, _ *Listener, _ *session.Options) {
				o.Budget, o.MaxHeaderBytes = pool.NewBudget(room), 1<<20
			})
			path, fields := "/v1/messages", []string{tc.contentType}
			if tc.contentType == asNDJSON {
				path = "/v1/messages:batch"
			}
			if tc.fields != "" {
				fields = append(fields, tc.fields)
			}
			_, body := e.do("POST", path, string(gzipOf(t, []byte(tc.body))), append(fields, "Content-Encoding: gzip")...)
			if refused := strings.Contains(body, `"reason":"memory"`); refused != (room < need) {
				t.Errorf("%s, %d of %d bytes: %.300s", tc.contentType, room, need, body)
			}
			if room == need && !strings.Contains(body, `"code":250`) {
				t.Errorf("%s: %.300s", tc.contentType, body)
			}
			http.DefaultClient.CloseIdleConnections()
			e.alone()
		}
	}
}

// Many requests that are small on the wire and large in memory: the budget bounds what they take together, those that have no room hear of it, and
// nothing stays counted, whatever has become of them.
func TestManyRequestsWithManyRecipientsStayWithinTheBudget(t *testing.T) {
	const room = 8 << 20
	e := serve(t, func(o *Options, _ *Listener, so *session.Options) {
		o.Budget = pool.NewBudget(room)
		so.Validators = []policy.Validator{says{policy.On(policy.AtMail), func(e *policy.Event) {
			if len(e.Path.Mailbox) > 0 {
				e.Refuse(550, 7, 1, "no")
			}
		}}}
	})
	e.queue.gate = make(chan struct{})
	taken := gzipOf(t, []byte(`{"mail_from":"","rcpt_to":[`+named(1000, 250)+`],"raw":""}`))
	if len(taken) > 4<<10 {
		t.Fatalf("%d bytes on the wire", len(taken))
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for range 40 {
		all.Go(func() {
			resp, _ := e.do("POST", "/v1/messages", string(taken), asJSON, "Content-Encoding: gzip")
			mu.Lock()
			statuses[resp.StatusCode]++
			mu.Unlock()
		})
	}
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case e.queue.gate <- struct{}{}:
			case <-stop:
				return
			}
			if used := e.srv.o.Budget.Used(); used > room {
				t.Errorf("%d bytes are in use, of %d", used, room)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	all.Wait()
	close(stop)
	if statuses[202] == 0 || statuses[503] == 0 || statuses[202]+statuses[503] != 40 {
		t.Errorf("%v", statuses)
	}
	http.DefaultClient.CloseIdleConnections()
	e.alone()
}

// Lines that are refused wait as their answers, which are counted until the client has taken them.
func TestAnswersThatNobodyReadsAreCounted(t *testing.T) {
	const room = 16 << 20 // of answers that is more than the kernel takes
	e := serve(t, func(o *Options, _ *Listener, so *session.Options) {
		o.Budget, so.DataTimeout = pool.NewBudget(room), 20*time.Second
		so.Validators = []policy.Validator{says{policy.On(policy.AtRcpt), func(e *policy.Event) { e.Refuse(550, 1, 1, "nobody") }}}
	})
	line := `{"mail_from":"","rcpt_to":[` + named(1000, 250) + `],"raw":""}` + "\n"
	body := gzipOf(t, []byte(strings.Repeat(line, 40)))
	d := net.Dialer{ControlContext: smallBuffer}
	c, err := d.DialContext(t.Context(), "tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", asNDJSON, len(body), body)
	most := int64(0)
	for range 1500 {
		if most >= room/2 {
			break
		}
		most = max(most, e.srv.o.Budget.Used())
		time.Sleep(10 * time.Millisecond)
	}
	if most < room/2 || most > room {
		t.Errorf("%d bytes at the most, of %d", most, room)
	}
	c.Close()
	e.alone()

	// One that reads gets them all.
	c = e.dial()
	fmt.Fprintf(c, "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", asNDJSON, len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if n := strings.Count(string(b), "\n"); err != nil || n != 40 {
		t.Errorf("%d lines, %v", n, err)
	}
	c.Close()
	e.alone()
}

// One recipient more than a message may have refuses it, by each protocol, and for good: who tries the same again hears the same.
func TestRecipientsAtTheLimitAndOnePastIt(t *testing.T) {
	e := serve(t, func(_ *Options, _ *Listener, so *session.Options) { so.MaxRecipients = 3 })
	for n, want := range map[int][4]string{3: {"202 ", "202 ", "200 202", "200 250;"}, 4: {"422 tooManyRecipients", "422 tooManyRecipients", "200 422", "500 550;"}} {
		list := strings.TrimSuffix(strings.Repeat(`"b@example.net",`, n), ",")
		for _, fields := range [][]string{
			{"X-Envelope-Recipient: " + strings.Repeat(b64("b@example.net")+",", n)},
			append([]string(nil), strings.Split(strings.Repeat(toHeader+"\n", n-1)+toHeader, "\n")...),
		} {
			resp, body := e.do("POST", "/v1/messages", "x", append(fields, rfc822)...)
			if got := fmt.Sprint(resp.StatusCode, " ", parse[struct{ Reason string }](t, body).Reason); got != want[0] {
				t.Errorf("%d recipients in %d fields: %s %s", n, len(fields), got, body)
			}
			resp, _ = e.do("POST", "/", "x", append(fields, rfc822)...)
			if got := fmt.Sprintf("%d %.4s", resp.StatusCode, resp.Header.Get("X-Smtp-Reply")); got != want[3] || resp.Header.Get("Retry-After") != "" {
				t.Errorf("%d recipients, plain: %s", n, resp.Header.Get("X-Smtp-Reply"))
			}
		}
		resp, body := e.do("POST", "/v1/messages", from(`[`+list+`]`, `"raw":""`), asJSON)
		if got := fmt.Sprint(resp.StatusCode, " ", parse[struct{ Reason string }](t, body).Reason); got != want[1] {
			t.Errorf("%d recipients in JSON: %s %s", n, got, body)
		}
		resp, body = e.do("POST", "/v1/messages:batch", from(`[`+list+`]`, `"raw":""`), asNDJSON)
		if got := fmt.Sprint(resp.StatusCode, " ", parse[accepted](t, body).Status); got != want[2] {
			t.Errorf("%d recipients in a line: %s %s", n, got, body)
		}
	}
	for _, m := range e.queue.taken() {
		if len(m.env.Recipients) != 3 {
			t.Errorf("stored for %d", len(m.env.Recipients))
		}
	}
	if !strings.Contains(e.log.String(), "reason=too_many_recipients") {
		t.Error("not in the log")
	}
}
