package httpedge

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

const (
	asJSON   = "Content-Type: application/json"
	asNDJSON = "Content-Type: application/x-ndjson"
	simple   = `{"mail_from":"a@example.com","rcpt_to":["b@example.net"],"raw":"Subject: x\r\n\r\nhi\r\n"}`
)

type accepted struct {
	ID         string
	Durability string
	Replayed   bool
	Line       int
	Status     int
	Recipients []struct {
		Address        string
		Code           int
		EnhancedStatus string `json:"enhanced_status"`
		Text           string
	}
	Problem struct {
		Status int
		Reason string
		Detail string
	}
}

func parse[T any](t *testing.T, body string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v: %q", err, body)
	}
	return v
}

func TestAMessageInJSONIsStoredAsItStands(t *testing.T) {
	e := serve(t, nil)
	resp, body := e.do("POST", "/v1/messages", `{"raw_base64":"`+b64("Subject: 8\r\n\r\n\xff\x00\r\n")+`","rcpt_to":["b@example.net",{"address":"c@example.net","notify":["never"]}],
		"mail_from":"a@example.com","helo":"app.example.com","requiretls":true,"metadata":{"tenant":"t1"},"dsn":{"ret":"hdrs","envid":"e1"}}`, asJSON)
	got := parse[accepted](t, body)
	mail := e.queue.taken()
	if resp.StatusCode != 202 || len(mail) != 1 || got.ID != mail[0].env.ID.String() || resp.Header.Get("Location") != "/v1/messages/"+got.ID || got.Durability != "fsync" {
		t.Fatalf("%d %s %+v", resp.StatusCode, body, mail)
	}
	env := mail[0].env
	if mail[0].data != "Subject: 8\r\n\r\n\xff\x00\r\n" || !env.RequireTLS || string(env.Metadata) != `{"tenant":"t1"}` || string(env.EnvID) != "e1" ||
		string(env.Client.Helo) != "app.example.com" || env.Recipients[1].Notify == 0 || len(got.Recipients) != 2 || got.Recipients[0].EnhancedStatus != "2.1.5" {
		t.Errorf("%+v %q\n%s", env, mail[0].data, body)
	}
	if timing := resp.Header.Get("Server-Timing"); !strings.Contains(timing, "commit;dur=") {
		t.Errorf("Server-Timing %q", timing)
	}
}

func TestSomeRecipientsMayBeRefused(t *testing.T) {
	e := serve(t, func(_ *Options, _ *Listener, so *session.Options) {
		so.Validators = []policy.Validator{says{policy.On(policy.AtRcpt), func(e *policy.Event) {
			if strings.HasPrefix(string(e.Path.Mailbox), "no") {
				e.Refuse(550, 1, 1, "nobody")
			}
		}}}
	})
	_, body := e.do("POST", "/v1/messages", strings.Replace(simple, `"b@`, `"no@example.net","b@`, 1), asJSON)
	got, mail := parse[accepted](t, body), e.queue.taken()
	if len(mail) != 1 || len(mail[0].env.Recipients) != 1 || got.Recipients[0].Code != 550 || got.Recipients[0].Text != "nobody" || got.Recipients[1].Code != 250 {
		t.Errorf("%s", body)
	}
	resp, body := e.do("POST", "/v1/messages", strings.Replace(simple, `"b@`, `"no@`, 1), asJSON)
	got = parse[accepted](t, body)
	if resp.StatusCode != 403 || len(got.Recipients) != 1 || got.Recipients[0].Code != 550 || len(e.queue.taken()) > 0 {
		t.Errorf("nobody accepted: %d %s", resp.StatusCode, body)
	}
}

func TestValidateOnlyStoresNothing(t *testing.T) {
	e := serve(t, nil)
	resp, body := e.do("POST", "/v1/messages?validate=only", simple, asJSON)
	if resp.StatusCode != 200 || !strings.Contains(body, `"valid":true`) || len(e.queue.taken()) > 0 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if used := e.srv.o.Budget.Used(); used != 0 {
		t.Errorf("%d bytes are still held", used)
	}
}

func TestProblemsOfTheRequest(t *testing.T) {
	e := serve(t, nil)
	for _, tc := range []struct {
		method, path, body string
		headers            []string
		status             int
		reason             string
	}{
		{"GET", "/v1/messages", "", nil, 405, "method"},
		{"PUT", "/v1/messages:batch", "x", nil, 405, "method"},
		{"POST", "/v1/messages", "x", []string{"Content-Type: text/plain"}, 415, "mediaType"},
		{"POST", "/v1/messages:batch", "x", []string{asJSON}, 415, "mediaType"},
		{"POST", "/v1/messages", "x", []string{asJSON, "Content-Encoding: br"}, 415, "encoding"},
		{"POST", "/v1/messages", "x", []string{asJSON, "Content-Encoding: gzip"}, 400, "badEncoding"},
		{"POST", "/v1/messages", "{", []string{asJSON}, 400, "syntax"},
		{"POST", "/v1/messages", `{"mail_from":"a@example.com","rcpt_to":[],"raw":""}`, []string{asJSON}, 422, "noRecipients"},
		{"POST", "/v1/messages", `{"mail_from":"a b","rcpt_to":["b@example.com"],"raw":""}`, []string{asJSON}, 422, "badSender"},
		{"POST", "/v1/messages", `{"mail_from":"","rcpt_to":["b@example.com"],"raw":"a\nb"}`, []string{asJSON}, 422, "bareNewline"},
		{"POST", "/v1/messages", simple, []string{asJSON, "Idempotency-Key: a b"}, 400, "idempotencyKey"},
		{"POST", "/v1/messages", "x", []string{rfc822, "X-Envelope-Recipient: !!"}, 400, "syntax"},
		{"POST", "/v1/messages", "x", []string{rfc822, toHeader, "X-Client-Address: nowhere"}, 400, "syntax"},
		{"GET", "/v1/messages/01m82ez17kwtfcqt78jewwvk55", "", nil, 404, "notFound"},
		{"GET", "/v1/messages/zzz", "", nil, 404, "notFound"},
		{"GET", "/v1/nothing", "", nil, 404, "notFound"},
		{"POST", "/openapi.json", "", nil, 405, "method"},
	} {
		resp, body := e.do(tc.method, tc.path, tc.body, tc.headers...)
		p := parse[struct{ Reason, Type, Title string }](t, body)
		if resp.StatusCode != tc.status || p.Reason != tc.reason || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s %q: %d %s", tc.method, tc.path, tc.body, resp.StatusCode, body)
		}
	}
}

func TestCompressedBodies(t *testing.T) {
	e := serve(t, nil)
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	io.WriteString(w, simple)
	w.Close()
	resp, body := e.do("POST", "/v1/messages", z.String(), asJSON, "Content-Encoding: gzip")
	if mail := e.queue.taken(); resp.StatusCode != 202 || len(mail) != 1 || mail[0].data != "Subject: x\r\n\r\nhi\r\n" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestTheSameKeyIsOneMessage(t *testing.T) {
	e := serve(t, nil)
	const key = "Idempotency-Key: k-1"
	resp, first := e.do("POST", "/v1/messages", simple, asJSON, key)
	if resp.StatusCode != 202 || resp.Header.Get("Idempotency-Replayed") != "" {
		t.Fatalf("%d %s", resp.StatusCode, first)
	}
	resp, again := e.do("POST", "/v1/messages", simple, asJSON, `Idempotency-Key: "k-1"`)
	if resp.StatusCode != 202 || again != first || resp.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%d %s after %s", resp.StatusCode, again, first)
	}
	resp, body := e.do("POST", "/v1/messages", strings.Replace(simple, "hi", "ho", 1), asJSON, key)
	if resp.StatusCode != 422 || !strings.Contains(body, "idempotencyMismatch") {
		t.Errorf("another payload: %d %s", resp.StatusCode, body)
	}
	if n := len(e.queue.taken()); n != 1 {
		t.Errorf("%d messages", n)
	}

	// Another server over the same queue, as after a restart.
	next := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.Remembered = e.queue })
	resp, again = next.do("POST", "/v1/messages", simple, asJSON, key)
	if resp.StatusCode != 202 || again != first || resp.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("after a restart: %d %s", resp.StatusCode, again)
	}
	if n := len(next.queue.taken()); n != 0 {
		t.Errorf("%d messages after a restart", n)
	}
}

func TestAKeyOfAFailedMessageIsFree(t *testing.T) {
	e := serve(t, nil)
	e.queue.err = queue.ErrFull
	if resp, _ := e.do("POST", "/v1/messages", simple, asJSON, "Idempotency-Key: k"); resp.StatusCode != 503 {
		t.Fatal(resp.StatusCode)
	}
	e.queue.err = nil
	if resp, _ := e.do("POST", "/v1/messages", simple, asJSON, "Idempotency-Key: k"); resp.StatusCode != 202 || resp.Header.Get("Idempotency-Replayed") != "" {
		t.Error(resp.StatusCode)
	}
}

func TestAKeyInFlightIs409(t *testing.T) {
	e := serve(t, nil)
	e.queue.gate = make(chan struct{})
	done := make(chan int)
	go func() {
		resp, _ := e.do("POST", "/v1/messages", simple, asJSON, "Idempotency-Key: k")
		done <- resp.StatusCode
	}()
	for e.srv.keys.keys.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	resp, body := e.do("POST", "/v1/messages", simple, asJSON, "Idempotency-Key: k")
	if resp.StatusCode != 409 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	close(e.queue.gate)
	if got := <-done; got != 202 {
		t.Error(got)
	}
}

func TestABatchIsAnsweredLineByLine(t *testing.T) {
	e := serve(t, nil)
	var b strings.Builder
	const n = 300
	for i := range n {
		switch i % 10 {
		case 3:
			b.WriteString("{\"bad\":1}\n")
		case 5:
			b.WriteString("\n") // no line
			fallthrough
		case 7:
			fmt.Fprintf(&b, `{"mail_from":"a@example.com","rcpt_to":["nobody@@"],"raw":"%d"}`+"\r\n", i)
		default:
			fmt.Fprintf(&b, `{"mail_from":"a@example.com","rcpt_to":["b@example.net"],"raw":"%d","idempotency_key":"k%d"}`+"\n", i, i)
		}
	}
	for round := range 2 {
		resp, body := e.do("POST", "/v1/messages:batch", b.String(), asNDJSON)
		lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
		if resp.StatusCode != 200 || len(lines) != n {
			t.Fatalf("%d, %d lines", resp.StatusCode, len(lines))
		}
		ids := map[string]bool{}
		for i, text := range lines {
			got := parse[accepted](t, text)
			want := 202
			switch i % 10 {
			case 3:
				want = 400
			case 5, 7:
				want = 422
			}
			if got.Status != want || want == 202 && got.Replayed != (round == 1) {
				t.Fatalf("round %d, line %d: %s", round, i, text)
			}
			ids[got.ID] = true
		}
		mail := e.queue.taken()
		if round == 1 && len(mail) != 0 || round == 0 && len(mail) != n/10*7 {
			t.Errorf("round %d: %d messages", round, len(mail))
		}
		for _, m := range mail {
			if !ids[m.env.ID.String()] {
				t.Errorf("%v is stored and was not answered", m.env.ID)
			}
		}
	}
	if most := maxOf(e.queue.batches); most < 2 {
		t.Errorf("commits of %d message at the most: lines do not share them", most)
	}
}

func maxOf(list []int) (most int) {
	for _, n := range list {
		most = max(most, n)
	}
	return most
}

// A client that waits for each answer before it sends the next line is served, too.
func TestABatchAnswersAtOnce(t *testing.T) {
	e := serve(t, nil)
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n", asNDJSON)
	line := simple + "\n"
	fmt.Fprintf(c, "%x\r\n%s\r\n", len(line), line)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(resp.Body)
	for i := range 3 {
		text, err := answers.ReadString('\n')
		if err != nil || !strings.Contains(text, `"status":202`) {
			t.Fatalf("%d: %q %v", i, text, err)
		}
		fmt.Fprintf(c, "%x\r\n%s\r\n", len(line), line)
	}
	io.WriteString(c, "0\r\n\r\n")
	if rest, err := io.ReadAll(answers); err != nil || strings.Count(string(rest), "\n") != 1 {
		t.Errorf("%q %v", rest, err)
	}
}

func TestBatchLimits(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.MaxBatchMessages, o.MaxBatchLineBytes = 3, 200 })
	for n, want := range map[int]string{3: `"status":202`, 4: `"problem"`} {
		_, body := e.do("POST", "/v1/messages:batch", strings.Repeat(simple+"\n", n), asNDJSON)
		lines := strings.Split(strings.TrimSpace(body), "\n")
		if len(lines) != n || !strings.Contains(lines[n-1], want) {
			t.Errorf("%d messages: %s", n, body)
		}
	}
	for size, want := range map[int]string{200: `"status":202`, 201: `"problem"`} {
		line := strings.Replace(simple, "hi", strings.Repeat("x", size-len(simple)+2), 1)
		if _, body := e.do("POST", "/v1/messages:batch", line+"\n", asNDJSON); !strings.Contains(body, want) {
			t.Errorf("a line of %d bytes: %s", size, body)
		}
	}
}

// However many batches there are and however soon their lines have all been read: what waits for its commit is bounded, and shared evenly.
func TestLinesUnderWayAreBoundedOverAllBatches(t *testing.T) {
	e := serve(t, nil)
	e.queue.gate = make(chan struct{})
	const batches = 20
	share := int64(maxExtraLanes / batches)
	var all sync.WaitGroup
	answers := make([]string, batches)
	for i := range batches {
		all.Go(func() {
			_, answers[i] = e.do("POST", "/v1/messages:batch", strings.Repeat(simple+"\n", 100), asNDJSON, "Connection: close")
		})
	}
	// Before a commit has ended nothing is answered, so what the batches have taken they keep. The first may have been alone and taken more.
	for e.srv.batches.Load() < batches || e.srv.extra.Load() < share*batches*9/10 {
		time.Sleep(time.Millisecond)
	}
	for range 50 {
		if n := e.srv.extra.Load(); n > maxExtraLanes {
			t.Fatalf("%d lines beyond the first of each batch, %d may be", n, maxExtraLanes)
		}
		time.Sleep(time.Millisecond)
	}
	close(e.queue.gate)
	all.Wait()
	for _, answer := range answers {
		if n := strings.Count(answer, `"status":202`); n != 100 {
			t.Errorf("%d of 100 lines: %.300s", n, answer)
		}
	}
	if n := len(e.queue.taken()); n != batches*100 {
		t.Errorf("%d messages", n)
	}
	e.alone()
	if n := e.srv.batches.Load(); n != 0 {
		t.Errorf("%d batches", n)
	}
}

// Messages of a batch are transactions of few sessions, as they are with SMTP; another client's is of another one.
func TestABatchsMessagesShareSessions(t *testing.T) {
	var mu sync.Mutex
	sessions, mails := map[envelope.ID]int{}, map[string]int{}
	e := serve(t, func(_ *Options, l *Listener, so *session.Options) {
		so.Validators = []policy.Validator{says{policy.On(policy.AtMail), func(e *policy.Event) {
			mu.Lock()
			defer mu.Unlock()
			sessions[e.Client.ID]++
			mails[e.Client.Addr.Addr().String()+" "+string(e.Client.Helo)]++
		}}}
	})
	named := strings.Replace(simple, "{", `{"client":{"address":"192.0.2.7"},`, 1)
	greeted := strings.Replace(simple, "{", `{"helo":"h.example",`, 1)
	refused := strings.Replace(simple, `"mail_from":"`, `"mail_from":">`, 1)
	var lines []string
	for range 100 {
		lines = append(lines, simple, named, simple, greeted, refused, simple)
	}
	_, body := e.do("POST", "/v1/messages:batch", strings.Join(lines, "\n"), asNDJSON)
	if ok, bad := strings.Count(body, `"status":202`), strings.Count(body, `"problem"`); ok != 500 || bad != 100 {
		t.Fatalf("%d accepted, %d refused: %.500s", ok, bad, body)
	}
	want := map[string]int{"127.0.0.1 [127.0.0.1]": 300, "192.0.2.7 [192.0.2.7]": 100, "127.0.0.1 h.example": 100}
	if !maps.Equal(mails, want) {
		t.Errorf("%v, want %v", mails, want)
	}
	if len(sessions) >= 500 {
		t.Errorf("%d sessions for 500 messages", len(sessions))
	}
}

func TestABatchWhoseClientLeavesEndsAndStaysDurable(t *testing.T) {
	e := serve(t, nil)
	e.queue.gate = make(chan struct{})
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	line := simple + "\n"
	fmt.Fprintf(c, "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", asNDJSON, len(line), line)
	e.queue.gate <- struct{}{} // it has been submitted
	c.Close()
	close(e.queue.gate)
	e.srv.mu.Lock()
	for len(e.srv.conns) > 0 {
		e.srv.mu.Unlock()
		time.Sleep(time.Millisecond)
		e.srv.mu.Lock()
	}
	e.srv.mu.Unlock()
	if n := len(e.queue.taken()); n != 1 {
		t.Errorf("%d messages", n)
	}
	if e.srv.extra.Load() != 0 || e.srv.o.Budget.Used() != 0 {
		t.Errorf("%d lanes and %d bytes are still held", e.srv.extra.Load(), e.srv.o.Budget.Used())
	}
}

func TestWhoMaySpeakForAClient(t *testing.T) {
	e := serve(t, func(_ *Options, l *Listener, so *session.Options) {
		so.Validators = []policy.Validator{says{policy.On(policy.AtMail), func(e *policy.Event) {
			if e.Client.Addr.Addr() == netip.MustParseAddr("192.0.2.66") {
				e.Refuse(550, 7, 1, "from "+e.Client.Addr.Addr().String()+" "+string(e.Client.Helo))
			}
		}}}
	})
	body := strings.Replace(simple, `"raw"`, `"client":{"address":"192.0.2.66","helo":"bad.example"},"raw"`, 1)
	resp, text := e.do("POST", "/v1/messages", body, asJSON)
	if resp.StatusCode/100 != 4 || !strings.Contains(text, "from 192.0.2.66 bad.example") {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	stranger := serve(t, func(_ *Options, l *Listener, _ *session.Options) { l.MayRelay = nil })
	if resp, text := stranger.do("POST", "/v1/messages", body, asJSON); resp.StatusCode != 403 {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
}

func TestExpectIsAnsweredAfterCredentialsAndSize(t *testing.T) {
	e := serve(t, func(_ *Options, _ *Listener, so *session.Options) { so.MaxMessageBytes = 1000 })
	for _, tc := range []struct{ path, headers, want string }{
		{"/", toHeader + "\r\nContent-Length: 3\r\n", "HTTP/1.1 100 Continue\r\n\r\n"},
		{"/", toHeader + "\r\nContent-Length: 1001\r\n", "HTTP/1.1 413"},
		{"/", toHeader + "\r\nAuthorization: Bearer x\r\nContent-Length: 3\r\n", "HTTP/1.1 401"},
		{"/v1/messages", asJSON + "\r\nContent-Length: 3\r\n", "HTTP/1.1 100 Continue\r\n\r\n"},
		{"/v1/messages", rfc822 + "\r\nContent-Length: 1001\r\n", "HTTP/1.1 413"},
		{"/v1/messages", "Content-Type: text/plain\r\nContent-Length: 3\r\n", "HTTP/1.1 415"},
		{"/v1/messages:batch", asNDJSON + "\r\nAuthorization: Basic eDp5\r\nContent-Length: 3\r\n", "HTTP/1.1 401"},
	} {
		c, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n%s\r\n", tc.path, tc.headers)
		got := make([]byte, len(tc.want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != tc.want {
			t.Errorf("%s %q: %q %v", tc.path, tc.headers, got, err)
		}
		c.Close()
	}
}

func TestDrainingRefusesAndEnds(t *testing.T) {
	e := serve(t, nil)
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	e.srv.draining.Store(true)
	request := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\nContent-Length: 1\r\n\r\nx"
	io.WriteString(c, request)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 503 || !strings.HasPrefix(resp.Header.Get("X-Smtp-Reply"), "421;") {
		t.Errorf("%v %v", resp, err)
	}
	if err := e.srv.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestConnectionsAtTheLimitAndOnePastIt(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.MaxConnections = 2 })
	request := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\nContent-Length: 1\r\n\r\nx"
	var open []net.Conn
	for i := range 3 {
		c, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		if i < 2 {
			io.WriteString(c, request)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if want := []int{200, 200, 503}[i]; err != nil || resp.StatusCode != want {
			t.Fatalf("%d: %v %v", i, resp, err)
		}
		open = append(open, c)
	}
	open[0].Close()
	for { // its place comes back
		if got := e.raw(request); strings.HasPrefix(got, "HTTP/1.1 200") {
			return
		} else if !strings.HasPrefix(got, "HTTP/1.1 503") {
			t.Fatalf("%q", got)
		}
	}
}
