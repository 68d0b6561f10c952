package hook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

func eventAt(at policy.Stage) *policy.Event {
	e := &policy.Event{Stage: at, Client: policy.Client{
		Addr: netip.MustParseAddrPort("192.0.2.1:40000"), Listener: "mx", Helo: []byte("mail.example.net"), Protocol: "ESMTP",
	}}
	if at >= policy.AtMail {
		e.Envelope = &envelope.Envelope{ReversePath: []byte("a@example.net")}
		e.Envelope.AddRecipient([]byte("first@example.org"), nil, 0)
	}
	switch at {
	case policy.AtMail:
		e.Path.Mailbox = []byte("a@example.net")
	case policy.AtRcpt:
		e.Path.Mailbox = []byte("b@example.org")
	case policy.AtMessage:
		e.Size = 1234
	}
	return e
}

// ask waits for the hook's decision.
func ask(h *Hook, e *policy.Event) (string, string, error) {
	if err := h.Validate(e); err != nil {
		return "", "", err
	}
	r, fields, err := e.Reply, e.Fields, error(nil)
	if p := e.Pended(); p != nil {
		woken := make(chan struct{})
		p.Arm(func(*policy.Pending) { close(woken) })
		<-woken
		r, fields, err = p.Decision()
	}
	if err != nil || r.Code == 0 {
		return "", string(fields), err
	}
	return strings.TrimSuffix(string(r.AppendTo(nil)), "\r\n"), string(fields), nil
}

// serve gives a hook whose server runs f.
func serve(t testing.TB, o Options, f http.HandlerFunc) *Hook {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	if o.URL = srv.URL; o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Stages == 0 {
		o.Stages = policy.On(policy.AtConnect, policy.AtMail, policy.AtRcpt, policy.AtMessage)
	}
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func TestAnswersBecomeReplies(t *testing.T) {
	for _, c := range []struct {
		status       int
		body         string
		reply, field string
		err          string
	}{
		{204, ``, "", "", ""},
		{200, `{"action":"accept"}`, "", "", ""},
		{200, `{"action":"accept","text":"ignored","unknown":1}`, "", "", ""},
		{200, `{"action":"accept","fields":["X-A:  b\t","X-C: d"]}`, "", "X-A: b\r\nX-C: d\r\n", ""},
		{200, `{"action":"refuse"}`, "550 5.7.1 Refused by policy", "", ""},
		{200, `{"action":"refuse","code":554,"enhanced":"5.7.9","text":"no"}`, "554 5.7.9 no", "", ""},
		{200, `{"action":"refuse","code":450,"text":"later"}`, "450 4.7.1 later", "", ""},
		{200, `{"action":"defer","text":"a\r\n250 b\nc\u0000ä"}`, "451 4.7.1 a 250 b c???", "", ""},
		{200, `{"action":"refuse","text":"` + strings.Repeat("x", 600) + `"}`, "550 5.7.1 " + strings.Repeat("x", 500), "", ""},
		{200, `{"action":"defer","code":550}`, "", "", "code 550"},
		{200, `{"action":"refuse","code":250}`, "", "", "code 250"},
		{200, `{"action":"refuse","code":600}`, "", "", "code 600"},
		{200, `{"action":"refuse","enhanced":"4.7.1"}`, "", "", "enhanced code"},
		{200, `{"action":"refuse","enhanced":"5.7.1000"}`, "", "", "enhanced code"},
		{200, `{"action":"refuse","enhanced":"5.+7.1"}`, "", "", "enhanced code"},
		{200, `{"action":"discard"}`, "", "", "action"},
		{200, `{}`, "", "", "action"},
		{200, `ok`, "", "", "JSON"},
		{200, `{"action":"accept","fields":["X-A: b\r\nX-C: d"]}`, "", "", "header field"},
		{200, `{"action":"accept","fields":["X-A"]}`, "", "", "header field"},
		{200, `{"action":"accept","fields":["X A: b"]}`, "", "", "header field"},
		{200, `{"action":"accept","fields":[": b"]}`, "", "", "header field"},
		{200, `{"action":"accept","fields":["X-A: ` + strings.Repeat("b", 1000) + `"]}`, "", "", "header field"},
		{200, `{"action":"accept","text":"` + strings.Repeat("b", MaxAnswerBytes) + `"}`, "", "", "more than"},
		{201, `{"action":"accept"}`, "", "", "status 201"},
		{302, ``, "", "", "status 302"},
		{500, `{"action":"accept"}`, "", "", "status 500"},
	} {
		h := serve(t, Options{Name: "test"}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/")
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		})
		reply, field, err := ask(h, eventAt(policy.AtMessage))
		if reply != c.reply || field != c.field || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%d %.80s: %q, %q, %v", c.status, c.body, reply, field, err)
		}
		open := serve(t, Options{OnError: policy.Accept}, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		})
		if reply, field, err = ask(open, eventAt(policy.AtMessage)); c.err != "" && (reply != "" || field != "" || err != nil) {
			t.Errorf("%d %.80s with accept on error: %q, %q, %v", c.status, c.body, reply, field, err)
		}
	}
}

func TestTheQuestionHasTheKeysThatAreDocumented(t *testing.T) {
	var got bytes.Buffer
	h := serve(t, Options{Stages: policy.On(policy.AtConnect, policy.AtMail, policy.AtRcpt, policy.AtMessage)}, func(w http.ResponseWriter, r *http.Request) {
		got.Reset()
		if r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s, %s", r.Method, r.Header.Get("Content-Type"))
		}
		io.Copy(&got, r.Body)
		w.WriteHeader(204)
	})
	id := envelope.ID{}.String()
	rcpt := eventAt(policy.AtRcpt)
	rcpt.Client.TLS = &policy.TLS{Version: "TLS1.3", Cipher: "C", ServerName: "sni\xff", Certificate: &policy.Certificate{CommonName: "x", Names: []string{"y"}}}
	rcpt.Client.User, rcpt.Client.Mechanism, rcpt.Client.MayRelay = "ann", "PLAIN", true
	rcpt.Client.ProxyAddr = netip.MustParseAddrPort("10.0.0.1:5")
	bounce := eventAt(policy.AtMail)
	bounce.Path.Mailbox, bounce.Size = nil, 77
	unix := &policy.Event{Stage: policy.AtConnect, Client: policy.Client{Listener: "local"}}
	const common = `"client":{"ip":"192.0.2.1","port":40000},"helo":"mail.example.net","protocol":"ESMTP"`
	for _, c := range []struct {
		e    *policy.Event
		want string
	}{
		{unix, `{"stage":"connect","listener":"local","session":"` + id + `","client":{}}`},
		{bounce, `{"stage":"mail","listener":"mx","session":"` + id + `",` + common + `,"sender":"","size":77}`},
		{rcpt, `{"stage":"rcpt","listener":"mx","session":"` + id + `","client":{"ip":"192.0.2.1","port":40000,"proxy":"10.0.0.1","may_relay":true},` +
			`"helo":"mail.example.net","protocol":"ESMTP","tls":{"version":"TLS1.3","cipher":"C","server_name":"sni\ufffd",` +
			`"certificate":{"verified":false,"common_name":"x","names":["y"]}},"user":"ann","mechanism":"PLAIN",` +
			`"sender":"a@example.net","recipient":"b@example.org"}`},
		{eventAt(policy.AtMessage), `{"stage":"message","listener":"mx","session":"` + id + `",` + common +
			`,"sender":"a@example.net","recipients":["first@example.org"],"size":1234}`},
	} {
		if _, _, err := ask(h, c.e); err != nil {
			t.Fatal(err)
		}
		if got.String() != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.e.Stage, got.String(), c.want)
		}
	}
}

func TestAnswersAreKeptForQuestionsThatAreTheSame(t *testing.T) {
	var asked atomic.Int32
	h := serve(t, Options{Cache: time.Hour, MaxCached: 2}, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var q question
		if json.NewDecoder(r.Body).Decode(&q); q.Recipient == "b@example.org" {
			io.WriteString(w, `{"action":"refuse","text":"b"}`)
			return
		}
		io.WriteString(w, `{"action":"accept","fields":["X-A: b"]}`)
	})
	to := func(mailbox string, port uint16) *policy.Event {
		e := eventAt(policy.AtRcpt)
		e.Path.Mailbox = []byte(mailbox)
		e.Client.Addr = netip.AddrPortFrom(e.Client.Addr.Addr(), port)
		return e
	}
	for i, c := range []struct {
		e     *policy.Event
		asked int32
		want  string
	}{
		{to("b@example.org", 1), 1, "550 5.7.1 b"},
		{to("b@example.org", 2), 1, "550 5.7.1 b"},
		{to("c@example.org", 2), 2, "X-A: b\r\n"},
		{to("c@example.org", 3), 2, "X-A: b\r\n"},
		{to("b@example.org", 3), 2, "550 5.7.1 b"},
		{to("d@example.org", 3), 3, "X-A: b\r\n"}, // c is forgotten
		{to("b@example.org", 3), 3, "550 5.7.1 b"},
		{to("c@example.org", 3), 4, "X-A: b\r\n"},
		{eventAt(policy.AtMessage), 5, "X-A: b\r\n"},
		{eventAt(policy.AtMessage), 6, "X-A: b\r\n"}, // never kept
	} {
		reply, fields, err := ask(h, c.e)
		if reply+fields != c.want || err != nil || asked.Load() != c.asked {
			t.Errorf("%d: %q, %q, %v; asked %d times", i, reply, fields, err, asked.Load())
		}
	}
	// Answers end with their time, and errors are not kept.
	c := newCache(1, time.Minute)
	now := time.Unix(1000, 0)
	c.put(cacheKey{1}, answer{}, now)
	if _, ok := c.get(cacheKey{1}, now.Add(time.Minute-1)); !ok {
		t.Error("forgotten too early")
	}
	if _, ok := c.get(cacheKey{1}, now.Add(time.Minute)); ok || len(c.entries) != 0 || c.order.Len() != 0 {
		t.Error("kept too long")
	}
}

func TestErrorsAreNotKept(t *testing.T) {
	var asked atomic.Int32
	h := serve(t, Options{Cache: time.Hour}, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.WriteHeader(503)
			return
		}
		w.WriteHeader(204)
	})
	if _, _, err := ask(h, eventAt(policy.AtRcpt)); err == nil {
		t.Error("no error")
	}
	if _, _, err := ask(h, eventAt(policy.AtRcpt)); err != nil {
		t.Error(err)
	}
}

func TestASilentServerIsLate(t *testing.T) {
	release := make(chan struct{})
	h := serve(t, Options{Timeout: 20 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) { <-release })
	_, _, err := ask(h, eventAt(policy.AtRcpt))
	close(release)
	if err == nil || !strings.Contains(err.Error(), "in time") {
		t.Errorf("got %v", err)
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	peers := map[string]bool{}
	h := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		peers[r.RemoteAddr] = true
		io.WriteString(w, `{"action":"accept"}`)
	})
	for range 10 {
		if _, _, err := ask(h, eventAt(policy.AtRcpt)); err != nil {
			t.Fatal(err)
		}
	}
	if len(peers) != 1 {
		t.Errorf("%d connections for 10 questions", len(peers))
	}
}

func TestWrongOptionsAreRefused(t *testing.T) {
	for _, o := range []Options{
		{URL: ""}, {URL: "ftp://a/"}, {URL: "http://"}, {URL: "/path"}, {URL: "http://a/%"}, {URL: "http://a/", Stages: policy.On(policy.AtQueued)},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// FuzzAnswer: what the server says becomes a reply and whole header fields, or an error.
func FuzzAnswer(f *testing.F) {
	f.Add(`{"action":"refuse","code":550,"enhanced":"5.7.1","text":"x\ny","fields":["A: b"]}`)
	f.Add(`{"action":"accept","fields":["A: b","C:d"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseAnswer([]byte(text), policy.AtMessage)
		if err != nil {
			return
		}
		if a.reply.Code != 0 {
			line := a.reply.AppendTo(nil)
			if r, n, err := smtpcodec.ParseReply(line); err != nil || n != len(line) || r.Code != a.reply.Code || r.Code < 400 {
				t.Errorf("%q gives %q", text, line)
			}
		}
		for rest := a.fields; len(rest) > 0; {
			field, more, ok := bytes.Cut(rest, []byte("\r\n"))
			if name, _, colon := bytes.Cut(field, []byte(":")); !ok || !colon || len(name) == 0 || bytes.ContainsAny(field, "\r\n") || bytes.ContainsAny(name, " \t") {
				t.Errorf("%q gives the fields %q", text, a.fields)
			}
			rest = more
		}
	})
}

func BenchmarkCached(b *testing.B) {
	h := serve(b, Options{Cache: time.Hour}, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	e := eventAt(policy.AtRcpt)
	if _, _, err := ask(h, e); err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("recipients=%d", n), func(b *testing.B) {
			e := eventAt(policy.AtRcpt)
			for range n - 1 {
				e.Envelope.AddRecipient([]byte("more@example.org"), nil, 0)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := h.Validate(e); err != nil || e.Pended() != nil {
					b.Fatal("asked again", err)
				}
			}
		})
	}
}
