package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/nettest"
	"github.com/fastedge/fastedge/queue"
)

// Outcomes, one recipient after the other: what the next hop says, and what becomes of it.
func TestOutcomes(t *testing.T) {
	type table struct {
		name   string
		lmtp   bool
		script []string // see answer
		want   []string
	}
	for _, tc := range []table{
		{name: "all accepted", want: []string{"delivered 250 2.0.0 taken", "delivered 250 2.0.0 taken", "delivered 250"}},
		{name: "some accepted, some deferred, some refused",
			script: []string{"RCPT TO:<b@", "450 4.2.0 later", "RCPT TO:<c@", "550 5.1.1 nobody"},
			want:   []string{"delivered 250 2.0.0", "pending 450 4.2.0 later", "failed 550 5.1.1 nobody"}},
		{name: "multi-line reply is kept on one line", script: []string{"RCPT TO:<b@", "550-5.1.1 nobody\r\n550 5.1.1 of that name"},
			want: []string{"delivered", "failed 550 5.1.1 nobody of that name", "delivered"}},
		{name: "MAIL refused fails all", script: []string{"MAIL", "553 5.1.8 not you"},
			want: []string{"failed 553 5.1.8", "failed 553 5.1.8", "failed 553 5.1.8"}},
		{name: "MAIL deferred defers all", script: []string{"MAIL", "451 4.3.0 busy"},
			want: []string{"pending 451 4.3.0", "pending 451 4.3.0", "pending 451 4.3.0"}},
		{name: "DATA refused goes to the accepted", script: []string{"RCPT TO:<a@", "550 5.1.1 nobody", "DATA", "451 4.3.0 no room"},
			want: []string{"failed 550 5.1.1", "pending 451 4.3.0 no room", "pending 451 4.3.0 no room"}},
		{name: "final 5yz goes to the accepted", script: []string{"RCPT TO:<a@", "450 4.2.1 later", "END", "554 5.7.1 spam"},
			want: []string{"pending 450 4.2.1", "failed 554 5.7.1 spam", "failed 554 5.7.1 spam"}},
		{name: "final 4yz goes to the accepted", script: []string{"RCPT TO:<a@", "550 5.1.1 nobody", "END", "452 4.3.1 full"},
			want: []string{"failed 550 5.1.1", "pending 452 4.3.1 full", "pending 452 4.3.1 full"}},
		{name: "251 is an acceptance", script: []string{"RCPT TO:<a@", "251 2.1.5 forwarded"}, want: []string{"delivered", "delivered", "delivered"}},
		{name: "all refused", script: []string{"RCPT", "550 5.1.1 nobody"},
			want: []string{"failed 550 5.1.1", "failed 550 5.1.1", "failed 550 5.1.1"}},
		{name: "421 to a RCPT defers who is open", script: []string{"RCPT TO:<a@", "550 5.1.1 nobody", "RCPT TO:<c@", "421 4.3.2 going down"},
			want: []string{"failed 550 5.1.1", "pending 421 4.3.2 going down", "pending 421 4.3.2 going down"}},
		{name: "421 to the data", script: []string{"END", "421 4.3.2 going down"},
			want: []string{"pending 421 4.3.2", "pending 421 4.3.2", "pending 421 4.3.2"}},
		{name: "connection lost at RCPT", script: []string{"RCPT TO:<b@", closeNow},
			want: []string{"pending 451 4.4.2", "pending 451 4.4.2", "pending 451 4.4.2"}},
		{name: "connection lost at DATA", script: []string{"DATA", closeNow},
			want: []string{"pending 451 4.4.2", "pending 451 4.4.2", "pending 451 4.4.2"}},
		{name: "connection lost between the final dot and its reply", script: []string{"END", closeNow},
			want: []string{"pending 451 4.4.2", "pending 451 4.4.2", "pending 451 4.4.2"}},
		{name: "reply without a place: 250 to DATA", script: []string{"DATA", "250 2.0.0 fine"},
			want: []string{"pending 451 4.5.0", "pending 451 4.5.0", "pending 451 4.5.0"}},
		{name: "reply without a place: 354 to RCPT", script: []string{"RCPT TO:<a@", "354 go on"},
			want: []string{"pending 451 4.5.0", "pending 451 4.5.0", "pending 451 4.5.0"}},
		{name: "reply without a place: 354 to the data", script: []string{"END", "354 go on"},
			want: []string{"pending 451 4.5.0", "pending 451 4.5.0", "pending 451 4.5.0"}},
		{name: "garbage", script: []string{"RCPT TO:<a@", "hello there"},
			want: []string{"pending 451 4.5.0", "pending 451 4.5.0", "pending 451 4.5.0"}},
		{name: "replies are made printable", script: []string{"RCPT TO:<a@", "550 5.1.1 esc\x1b[31m\xff\x00"},
			want: []string{"failed 550 5.1.1 esc?[31m??", "delivered", "delivered"}},
		{name: "LMTP: one reply each", lmtp: true, script: []string{"END|TO:<b@", "450 4.2.2 full", "END|TO:<c@", "550 5.2.1 disabled"},
			want: []string{"delivered 250 2.0.0 taken for TO:<a@", "pending 450 4.2.2", "failed 550 5.2.1"}},
		{name: "LMTP: replies are for the accepted only", lmtp: true, script: []string{"RCPT TO:<a@", "550 5.1.1 nobody", "END|TO:<b@", "450 4.2.2 full"},
			want: []string{"failed 550 5.1.1", "pending 450 4.2.2", "delivered 250 2.0.0 taken for TO:<c@"}},
		{name: "LMTP: connection lost among the replies", lmtp: true, script: []string{"END|TO:<b@", closeNow},
			want: []string{"delivered", "pending 451 4.4.2", "pending 451 4.4.2"}},
		{name: "LMTP: 421 among the replies", lmtp: true, script: []string{"END|TO:<b@", "421 4.3.2 going down"},
			want: []string{"delivered", "pending 421 4.3.2", "pending 421 4.3.2"}},
		{name: "LMTP: 354 without a recipient", lmtp: true, script: []string{"RCPT", "550 5.1.1 nobody", "DATA", "354 go on"},
			want: []string{"failed 550 5.1.1", "failed 550 5.1.1", "failed 550 5.1.1"}},
	} {
		for _, offers := range [][]string{nil, {"PIPELINING"}} {
			t.Run(strings.Join(append([]string{tc.name}, offers...), "/"), func(t *testing.T) {
				hop := newHop(t, offers...)
				hop.speak(tc.lmtp)
				hop.on(answer(tc.script...))
				g := start(t, Options{}, hop)
				r := g.deliver(mail("hello\r\n", "a@example.net", "b@example.net", "c@example.net"))
				wantOutcomes(t, r, tc.want...)
				if r.killed != "" {
					t.Errorf("killed: %s", r.killed)
				}
			})
		}
	}
}

// Only pending recipients are tried; what became of the others earlier is kept.
func TestOnlyPendingRecipientsAreTried(t *testing.T) {
	hop := newHop(t, "PIPELINING")
	g := start(t, Options{}, hop)
	d := mail("hello\r\n", "a@example.net", "b@example.net", "c@example.net")
	d.Outcomes[0] = queue.Outcome{State: queue.Delivered, Reply: "250 2.0.0 earlier"}
	d.Outcomes[2] = queue.Outcome{State: queue.Failed, Reply: "550 5.1.1 earlier"}
	wantOutcomes(t, g.deliver(d), "delivered 250 2.0.0 earlier", "delivered 250 2.0.0 taken", "failed 550 5.1.1 earlier")
	if n := count(hop.allCommands(), "RCPT"); n != 1 {
		t.Errorf("%d RCPT commands", n)
	}
}

func TestNextAttemptFollowsTheRetryTable(t *testing.T) {
	hop := newHop(t)
	hop.on(answer("MAIL", "451 4.3.0 busy"))
	g := start(t, Options{Retry: []time.Duration{time.Minute, time.Hour}}, hop)
	for attempts, wait := range []time.Duration{time.Minute, time.Hour, time.Hour, time.Hour} {
		d := mail("hello\r\n", "a@example.net")
		d.Attempts = attempts
		if r := g.deliver(d); !r.next.Equal(testNow.Add(wait)) {
			t.Errorf("after %d attempts: next in %s, want %s", attempts, r.next.Sub(testNow), wait)
		}
	}
}

func TestTooOldIsKilledWithTheLastReply(t *testing.T) {
	hop := newHop(t)
	hop.on(answer("RCPT TO:<b@", "450 4.2.0 later"))
	g := start(t, Options{Retry: []time.Duration{time.Hour}, MaxAge: 24 * time.Hour}, hop)
	for _, tc := range []struct {
		age    time.Duration
		killed string
	}{{23 * time.Hour, ""}, {23*time.Hour + time.Second, "too old: last reply 450 4.2.0 later"}} {
		d := mail("hello\r\n", "a@example.net", "b@example.net")
		d.Env.Arrived = testNow.Add(-tc.age)
		r := g.deliver(d)
		if r.killed != tc.killed {
			t.Errorf("age %s: killed %q, want %q", tc.age, r.killed, tc.killed)
		}
		wantOutcomes(t, r, "delivered", "pending 450 4.2.0 later")
	}
	// Old mail that goes through is delivered as any other.
	hop.on(nil)
	d := mail("hello\r\n", "a@example.net")
	d.Env.Arrived = testNow.Add(-1000 * time.Hour)
	if r := g.deliver(d); r.killed != "" {
		t.Errorf("delivered and killed: %s", r.killed)
	}
}

func TestPipeliningSendsOneGroup(t *testing.T) {
	hop := newHop(t, "PIPELINING")
	g := start(t, Options{}, hop)
	g.deliver(mail("hello\r\n", "a@example.net", "b@example.net"))
	want := "MAIL FROM:<sender@example.org>\r\nRCPT TO:<a@example.net>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"
	if reads := hop.allReads(); !slices.Contains(reads, want) {
		t.Errorf("no read is the whole group: %q", reads)
	}
	if reads := hop.allReads(); !slices.Contains(reads, "hello\r\n.\r\n") {
		t.Errorf("data and terminator are not one write: %q", reads)
	}
}

func TestWithoutPipeliningEachCommandAwaitsItsReply(t *testing.T) {
	hop := newHop(t)
	g := start(t, Options{}, hop)
	g.deliver(mail("hello\r\n", "a@example.net", "b@example.net"))
	for _, read := range hop.allReads() {
		if strings.Count(read, "\r\n") > 1 && !strings.HasSuffix(read, ".\r\n") {
			t.Errorf("more than one command: %q", read)
		}
	}
}

// RFC 2920 §3.1: everyone refused, and DATA answered with 354: just the terminator follows, and its reply means nothing.
func TestAllRefusedWith354SendsJustTheTerminator(t *testing.T) {
	hop := newHop(t, "PIPELINING")
	hop.on(answer("TO:<a@", "550 5.1.1 nobody", "DATA", "354 go on"))
	g := start(t, Options{}, hop)
	wantOutcomes(t, g.deliver(mail("secret\r\n", "a@example.net")), "failed 550 5.1.1")
	hop.on(nil)
	wantOutcomes(t, g.deliver(mail("second\r\n", "b@example.net")), "delivered")
	got := hop.allMessages()
	if len(got) != 2 || got[0].data != "" || got[1].data != "second\r\n" || hop.sessionCount() != 1 {
		t.Errorf("%d sessions, %+v", hop.sessionCount(), got)
	}
}

func TestRsetOnlyWhenATransactionWasLeftOpen(t *testing.T) {
	for _, offers := range [][]string{nil, {"PIPELINING"}} {
		hop := newHop(t, offers...)
		g := start(t, Options{}, hop)
		wantOutcomes(t, g.deliver(mail("1\r\n", "a@example.net")), "delivered")
		wantOutcomes(t, g.deliver(mail("2\r\n", "a@example.net")), "delivered")
		if n := count(hop.allCommands(), "RSET"); n != 0 {
			t.Errorf("%d RSET between good transactions", n)
		}
		hop.on(answer("RCPT TO:<no@", "550 5.1.1 nobody"))
		wantOutcomes(t, g.deliver(mail("3\r\n", "no@example.net")), "failed")
		wantOutcomes(t, g.deliver(mail("4\r\n", "a@example.net")), "delivered")
		if n := count(hop.allCommands(), "RSET"); n != 1 || hop.sessionCount() != 1 {
			t.Errorf("%d RSET in %d sessions", n, hop.sessionCount())
		}
	}
}

func TestConnectionIsReusedUpToItsLimit(t *testing.T) {
	hop := newHop(t, "PIPELINING")
	g := start(t, Options{MaxPerConnection: 3}, hop)
	for range 7 {
		wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "delivered")
	}
	if n := hop.sessionCount(); n != 3 {
		t.Errorf("%d sessions", n)
	}
	g.stop()
	if n := count(hop.allCommands(), "QUIT"); n != 3 {
		t.Errorf("%d QUIT", n)
	}
}

func TestMailmaxIsRespected(t *testing.T) {
	hop := newHop(t, "LIMITS MAILMAX=2")
	g := start(t, Options{}, hop)
	for range 4 {
		wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "delivered")
	}
	if n := hop.sessionCount(); n != 2 {
		t.Errorf("%d sessions", n)
	}
}

func TestIdleConnectionEndsWithQuit(t *testing.T) {
	hop := newHop(t)
	quit := make(chan bool, 1)
	hop.on(func(_ *fakeSession, verb, _ string) string {
		if verb == "QUIT" {
			quit <- true
		}
		return ""
	})
	g := start(t, Options{IdleTimeout: 10 * time.Millisecond}, hop)
	g.deliver(mail("hello\r\n", "a@example.net"))
	select {
	case <-quit:
	case <-time.After(time.Minute):
		t.Error("no QUIT")
	}
}

// A kept connection that the next hop has closed, or answers with 421, or on which MAIL is met by a reset: the message goes over a fresh
// one at once and no attempt is counted.
func TestStaleConnectionIsReplacedAtOnce(t *testing.T) {
	for name, second := range map[string]string{"421": "421 4.4.2 idle for too long", "closed": closeNow} {
		t.Run(name, func(t *testing.T) {
			hop := newHop(t, "PIPELINING")
			hop.on(func(s *fakeSession, verb, _ string) string {
				if verb == "MAIL" && s.n == 0 && len(s.messages) == 1 {
					return second
				}
				return ""
			})
			g := start(t, Options{}, hop)
			wantOutcomes(t, g.deliver(mail("1\r\n", "a@example.net")), "delivered")
			wantOutcomes(t, g.deliver(mail("2\r\n", "a@example.net")), "delivered")
			if n := hop.sessionCount(); n != 2 {
				t.Errorf("%d sessions", n)
			}
			if s := g.relay.Stats(); s.Attempts != 2 || s.Deferred != 0 || s.Stale != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("closed while idle", func(t *testing.T) {
		hop := newHop(t)
		hop.on(answer("END", "250 2.0.0 taken\r\n421 4.3.2 and good bye"))
		g := start(t, Options{}, hop)
		for range 3 {
			wantOutcomes(t, g.deliver(mail("1\r\n", "a@example.net")), "delivered 250 2.0.0 taken")
		}
	})
}

func TestHeloAfterEhloIsRefused(t *testing.T) {
	hop := newHop(t)
	hop.on(answer("EHLO", "502 5.5.1 what"))
	g := start(t, Options{}, hop)
	d := mail("hello\r\n", "a@example.net")
	d.Env.Ret, d.Env.Body = envelope.RetFull, envelope.Body8BitMIME
	wantOutcomes(t, g.deliver(d), "delivered")
	if got := hop.allCommands(); got[1] != "HELO relay.example.net" || got[2] != "MAIL FROM:<sender@example.org>" {
		t.Errorf("%q", got)
	}
}

func TestNoHeloWithLMTP(t *testing.T) {
	hop := newLMTP(t)
	hop.on(answer("LHLO", "502 5.5.1 what"))
	g := start(t, Options{}, hop)
	wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "pending 451 4.4.1")
	if got := hop.allCommands(); slices.Contains(got, "HELO relay.example.net") {
		t.Errorf("%q", got)
	}
}

func TestParametersOfExtensions(t *testing.T) {
	all := []string{"PIPELINING", "size 1000", "8BITMIME", "BINARYMIME", "CHUNKING", "SMTPUTF8", "DSN", "X-OTHER 1"}
	full := func() *queue.Delivery {
		d := mail("hello\r\n", "a@example.net", "b@example.net", "c@example.net")
		e := d.Env
		e.Ret, e.EnvID, e.Body = envelope.RetHdrs, []byte("QQ+2B1"), envelope.Body8BitMIME
		e.Recipients[0].Notify = envelope.NotifySuccess | envelope.NotifyDelay
		e.Recipients[0].ORcpt = []byte("rfc822;a+2Bx@example.net")
		e.Recipients[1].Notify = envelope.NotifyNever
		return d
	}
	for _, tc := range []struct {
		name   string
		offers []string
		change func(*envelope.Envelope)
		want   []string
	}{
		{"all offered", all, func(e *envelope.Envelope) { e.SMTPUTF8 = true; e.Ret = envelope.RetFull }, []string{
			"MAIL FROM:<sender@example.org> SIZE=7 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=QQ+2B1",
			"RCPT TO:<a@example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bx@example.net",
			"RCPT TO:<b@example.net> NOTIFY=NEVER",
			"RCPT TO:<c@example.net>"}},
		{"none offered", nil, func(*envelope.Envelope) {}, []string{
			"MAIL FROM:<sender@example.org>", "RCPT TO:<a@example.net>", "RCPT TO:<b@example.net>", "RCPT TO:<c@example.net>"}},
		{"SIZE and DSN", []string{"SIZE", "DSN"}, func(e *envelope.Envelope) { e.ReversePath = nil }, []string{
			"MAIL FROM:<> SIZE=7 RET=HDRS ENVID=QQ+2B1"}},
		{"7-bit", all, func(e *envelope.Envelope) { e.Body, e.Ret, e.EnvID = envelope.Body7Bit, 0, nil }, []string{
			"MAIL FROM:<sender@example.org> SIZE=7 BODY=7BIT"}},
		{"binary", all, func(e *envelope.Envelope) { e.Body, e.Ret, e.EnvID = envelope.BodyBinaryMIME, 0, nil }, []string{
			"MAIL FROM:<sender@example.org> SIZE=7 BODY=BINARYMIME", "BDAT 7 LAST"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hop := newHop(t, tc.offers...)
			g := start(t, Options{}, hop)
			d := full()
			tc.change(d.Env)
			wantOutcomes(t, g.deliver(d), "delivered", "delivered", "delivered")
			got := hop.allCommands()
			for _, want := range tc.want {
				if !slices.Contains(got, want) {
					t.Errorf("%q not sent:\n%s", want, strings.Join(got, "\n"))
				}
			}
		})
	}
}

// What a next hop can't take is failed without a MAIL, and the connection stays good.
func TestWhatTheNextHopCannotTakeIsFailed(t *testing.T) {
	for _, tc := range []struct {
		name   string
		offers []string
		data   string
		change func(*envelope.Envelope)
		want   string
	}{
		{"one byte over SIZE", []string{"SIZE 9"}, "12345678\r\n", nil, "failed 552 5.3.4"},
		{"at SIZE", []string{"SIZE 10"}, "12345678\r\n", nil, "delivered"},
		{"SIZE 0 is no limit", []string{"SIZE 0"}, "12345678\r\n", nil, "delivered"},
		{"SMTPUTF8", []string{"8BITMIME"}, "x\r\n", func(e *envelope.Envelope) { e.SMTPUTF8 = true }, "failed 553 5.6.7"},
		{"BINARYMIME", []string{"CHUNKING"}, "x\r\n", func(e *envelope.Envelope) { e.Body = envelope.BodyBinaryMIME }, "failed 554 5.6.3"},
		{"BINARYMIME without CHUNKING", []string{"BINARYMIME"}, "x\r\n", func(e *envelope.Envelope) { e.Body = envelope.BodyBinaryMIME }, "failed 554 5.6.3"},
		{"REQUIRETLS", nil, "x\r\n", func(e *envelope.Envelope) { e.RequireTLS = true }, "failed 550 5.7.30 REQUIRETLS support required"},
		{"REQUIRETLS offered in clear", []string{"REQUIRETLS"}, "x\r\n", func(e *envelope.Envelope) { e.RequireTLS = true }, "failed 550 5.7.30"},
		{"bare LF", nil, "a\nb\r\n", nil, "failed 554 5.6.3"},
		{"bare CR", nil, "a\rb\r\n", nil, "failed 554 5.6.3"},
		{"bare CR at the end", nil, "a\r", nil, "failed 554 5.6.3"},
		{"smuggling", nil, "a\n.\r\nMAIL FROM:<x@example.org>\r\n", nil, "failed 554 5.6.3"},
		{"bare LF in the last block of a small message", nil, strings.Repeat("1234567\r\n", 7000) + "a\n", nil, "failed 554 5.6.3"},
		{"control in the forward-path", nil, "x\r\n", func(e *envelope.Envelope) { e.Recipients[0].Path = []byte("a\r\nDATA") }, "failed 553 5.1.3"},
		{"control in ORCPT", nil, "x\r\n", func(e *envelope.Envelope) { e.Recipients[0].ORcpt = []byte("rfc822;a\n") }, "failed 553 5.1.3"},
		{"control in the reverse-path", nil, "x\r\n", func(e *envelope.Envelope) { e.ReversePath = []byte("a\x00") }, "failed 553 5.1.7"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hop := newHop(t, tc.offers...)
			g := start(t, Options{}, hop)
			d := mail(tc.data, "a@example.net")
			if tc.change != nil {
				tc.change(d.Env)
			}
			r := g.deliver(d)
			wantOutcomes(t, r, tc.want)
			if n := count(hop.allCommands(), "MAIL"); n > 0 && r.outcomes[0].State == queue.Failed {
				t.Errorf("MAIL was sent: %q", hop.allCommands())
			}
			wantOutcomes(t, g.deliver(mail("fine\r\n", "a@example.net")), "delivered")
			if n := hop.sessionCount(); n != 1 {
				t.Errorf("%d sessions", n)
			}
		})
	}
}

// tlsConn claims to be a connection whose peer has shown a certificate, a verified one or not.
type tlsConn struct {
	net.Conn
	verified bool
}

func (c tlsConn) ConnectionState() tls.ConnectionState {
	var s tls.ConnectionState
	if c.verified {
		s.VerifiedChains = [][]*x509.Certificate{{}}
	}
	return s
}

// RFC 8689 §4.2.1: the parameter goes on with the message, over TLS to a verified next hop that offers the extension, and to no other.
func TestRequireTLSIsPassedOnOverTLSOnly(t *testing.T) {
	for _, tc := range []struct {
		name     string
		offers   []string
		verified bool
		want     string
	}{
		{"verified and offered", []string{"REQUIRETLS"}, true, "delivered"},
		{"verified, not offered", []string{"8BITMIME"}, true, "failed 550 5.7.30 REQUIRETLS support required"},
		{"offered, not verified", []string{"REQUIRETLS"}, false, "failed 550 5.7.30 REQUIRETLS support required"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hop := newHop(t, tc.offers...)
			g := start(t, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, address)
				return tlsConn{nc, tc.verified}, err
			}}, hop)
			d := mail("hello\r\n", "a@example.net")
			d.Env.RequireTLS = true
			wantOutcomes(t, g.deliver(d), tc.want)
			wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "delivered")
			want := 0
			if tc.want == "delivered" {
				want = 1
			}
			if got := hop.allCommands(); count(got, "MAIL FROM:<sender@example.org> REQUIRETLS") != want || count(got, "MAIL") != 1+want {
				t.Errorf("%q", got)
			}
		})
	}
}

// A bare newline far into a large message is found while it is sent: the next hop never sees the end of the data.
func TestBareNewlineInALargeMessageIsNeverFinished(t *testing.T) {
	hop := newHop(t)
	g := start(t, Options{}, hop)
	wantOutcomes(t, g.deliver(mail(string(ordinary(200<<10))+"x\n.\r\n", "a@example.net")), "failed 554 5.6.3")
	wantOutcomes(t, g.deliver(mail("fine\r\n", "a@example.net")), "delivered")
	if got := hop.allMessages(); len(got) != 1 || got[0].data != "fine\r\n" || hop.sessionCount() != 2 {
		t.Errorf("%d messages, %d sessions", len(got), hop.sessionCount())
	}
}

// 8-bit mail goes as it is to a next hop without 8BITMIME.
func TestEightBitWithoutOfferGoesAsItIs(t *testing.T) {
	hop := newHop(t)
	g := start(t, Options{}, hop)
	d := mail("gr\xc3\xbc\xdfe\r\n", "a@example.net")
	d.Env.Body = envelope.Body8BitMIME
	wantOutcomes(t, g.deliver(d), "delivered")
	if got := hop.allMessages(); got[0].data != "gr\xc3\xbc\xdfe\r\n" {
		t.Errorf("%q", got[0].data)
	}
}

// Messages arrive byte for byte, by DATA and by BDAT.
func TestAwkwardMessagesArriveByteForByte(t *testing.T) {
	large := string(ordinary(10 << 20))
	for _, tc := range []struct {
		name, data string
		bdat       bool   // BDAT is used when CHUNKING is offered
		byData     string // what arrives by DATA when it differs; "-" when DATA can't carry it
	}{
		{"empty", "", false, ""},
		{"CRLF only", "\r\n", false, ""},
		{"a lone dot line", ".\r\n", false, ""},
		{"dots", ".a\r\n..\r\n...\r\n.\r\n.\r\nQUIT\r\n", false, ""},
		{"dot at the end of a line", "a.\r\n.", true, "a.\r\n.\r\n"},
		{"8-bit", "\xff\xfe\x80\r\n", false, ""},
		{"long line", strings.Repeat("x", 100000) + "\r\n", true, ""},
		{"no final CRLF", "last line", true, "last line\r\n"},
		{"no final CRLF, one byte", "x", true, "x\r\n"},
		{"NUL", "a\x00b\r\n", true, ""},
		{"NULs without newline", "\x00\x00", true, "\x00\x00\r\n"},
		{"bare LF", "a\nb\n.\nc", true, "-"},
		{"bare CR", "a\rb\r\r\n", true, "-"},
		{"smuggling", "a\r\n.\nMAIL FROM:<x>\r\n.\r\n", true, "-"},
		{"as long as a block", strings.Repeat("x", maxBlockBytes-2) + "\r\n", false, ""},
		{"CRLF across blocks", strings.Repeat("x", maxBlockBytes-1) + "\r\n.\r\n", false, ""},
		{"dot behind a block", strings.Repeat("x", maxBlockBytes-2) + "\r\n.\r\n", false, ""},
		{"dots all through", strings.Repeat(".\r\n", 20000), false, ""},
		{"as long as the buffer", strings.Repeat("x", maxWholeBytes-2) + "\r\n", false, ""},
		{"one byte longer", strings.Repeat("x", maxWholeBytes-1) + "\r\n", true, ""},
		{"10 MiB", large, true, ""},
		{"10 MiB of dots", strings.Repeat(".\r\n", 10<<20/3), true, ""},
	} {
		for _, offers := range []string{"X", "CHUNKING"} {
			for _, lmtp := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/lmtp=%v", tc.name, offers, lmtp), func(t *testing.T) {
					hop := newHop(t, offers, "PIPELINING")
					hop.speak(lmtp)
					g := start(t, Options{}, hop)
					r := g.deliver(mail(tc.data, "a@example.net"))
					want, bdat := tc.data, tc.bdat && offers == "CHUNKING"
					if !bdat && tc.byData != "" {
						want = tc.byData
					}
					if want == "-" {
						wantOutcomes(t, r, "failed 554 5.6.3")
						return
					}
					wantOutcomes(t, r, "delivered")
					got := hop.allMessages()
					if len(got) != 1 || got[0].data != want || got[0].bdat != bdat {
						t.Fatalf("%d messages; bdat %v, want %v; %d bytes, want %d", len(got), got[0].bdat, bdat, len(got[0].data), len(want))
					}
				})
			}
		}
	}
}

func rcpts(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("r%d@example.net", i))
	}
	return all
}

func TestManyRecipientsAreSplit(t *testing.T) {
	for _, tc := range []struct {
		offers string
		n      int
		want   []int // recipients of each transaction
	}{
		{"X", 100, []int{100}},
		{"X", 101, []int{100, 1}},
		{"LIMITS RCPTMAX=3", 7, []int{3, 3, 1}},
		{"LIMITS MAILMAX=5 RCPTMAX=250", 250, []int{250}},
		{"LIMITS RCPTMAX=99999", 1001, []int{1000, 1}},
		{"LIMITS RCPTMAX=0", 101, []int{100, 1}},
	} {
		for _, lmtp := range []bool{false, true} {
			hop := newHop(t, "PIPELINING", tc.offers)
			hop.speak(lmtp)
			g := start(t, Options{}, hop)
			r := g.deliver(mail("hello\r\n", rcpts(tc.n)...))
			for i, o := range r.outcomes {
				if o.State != queue.Delivered {
					t.Errorf("recipient %d: %+v", i, o)
				}
			}
			var got []int
			for _, m := range hop.allMessages() {
				got = append(got, len(m.rcpts))
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("%s: transactions of %v recipients, want %v", tc.offers, got, tc.want)
			}
		}
	}
}

// 452 4.5.3: too many for one transaction; those go into the next at once.
func TestTooManyRecipientsGoIntoTheNextTransaction(t *testing.T) {
	for _, full := range []string{"452 4.5.3 too many", "452 too many", "552 5.5.3 too many"} {
		hop := newHop(t, "PIPELINING")
		hop.on(func(s *fakeSession, verb, _ string) string {
			if verb == "RCPT" && len(s.rcpts) == 4 {
				return full
			}
			return ""
		})
		g := start(t, Options{}, hop)
		r := g.deliver(mail("hello\r\n", rcpts(10)...))
		for i, o := range r.outcomes {
			if o.State != queue.Delivered {
				t.Errorf("%s: recipient %d: %+v", full, i, o)
			}
		}
		if n := len(hop.allMessages()); n != 3 {
			t.Errorf("%s: %d transactions", full, n)
		}
	}
	// To the first recipient it means something else.
	hop := newHop(t)
	hop.on(answer("RCPT", "452 4.5.3 too many"))
	g := start(t, Options{}, hop)
	wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net", "b@example.net")), "pending 452 4.5.3", "pending 452 4.5.3")
	// And a full mailbox is a full mailbox.
	hop = newHop(t)
	hop.on(answer("RCPT TO:<b@", "552 5.2.2 over quota"))
	g = start(t, Options{}, hop)
	wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net", "b@example.net")), "delivered", "failed 552 5.2.2")
}

func TestUnixSockets(t *testing.T) {
	for _, lmtp := range []bool{false, true} {
		hop := newHopOn(t, "unix", filepath.Join(t.TempDir(), "s"), "PIPELINING")
		hop.speak(lmtp)
		g := start(t, Options{}, hop)
		wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "delivered")
		wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "delivered")
		if n := hop.sessionCount(); n != 1 {
			t.Errorf("%d sessions", n)
		}
	}
}

// The connection is cut after each byte that the next hop says: only a whole final reply delivers; whatever else happens, everyone
// stays pending and the attempt ends.
func TestConnectionCutAtEveryReplyByte(t *testing.T) {
	for _, lmtp := range []bool{false, true} {
		// The replies up to the end of the data, and to the first LMTP reply.
		replies := "220 fake ESMTP\r\n" + ehlo([]string{"PIPELINING"}) + "\r\n250 2.1.0 sender ok\r\n250 2.1.5 recipient ok\r\n250 2.1.5 recipient ok\r\n354 go on\r\n"
		first := len(replies) + len("250 2.0.0 taken\r\n")
		last := first
		if lmtp {
			first = len(replies) + len("250 2.0.0 taken for TO:<a@example.net>\r\n")
			last = first + len("250 2.0.0 taken for TO:<b@example.net>\r\n")
		}
		for cut := range last + 1 {
			hop := newHop(t, "PIPELINING")
			hop.speak(lmtp)
			hop.mu.Lock()
			hop.cut = cut
			hop.mu.Unlock()
			g := start(t, Options{MinBackoff: time.Hour, MaxBackoff: time.Hour}, hop)
			r := g.deliver(mail("hello\r\n", "a@example.net", "b@example.net"))
			want := []string{"pending 451 4.4.2", "pending 451 4.4.2"}
			if cut >= first {
				want[0] = "delivered 250 2.0.0 taken"
			}
			if cut >= last {
				want[1] = "delivered 250 2.0.0 taken"
			}
			wantOutcomes(t, r, want...)
			if t.Failed() {
				t.Fatalf("lmtp %v, cut after %d of %d bytes", lmtp, cut, last)
			}
			g.stop()
			hop.close()
		}
	}
}

// A message is never in memory: 64 MiB pass through two buffers.
func TestLargeMessageIsStreamed(t *testing.T) {
	const size = 64 << 20
	block := ordinary(60 << 10)
	n := size / len(block)
	d := mail("", "a@example.net")
	d.Size = int64(n * len(block))
	d.Open = func() (io.ReadCloser, error) {
		readers := make([]io.Reader, n)
		for i := range readers {
			readers[i] = bytes.NewReader(block)
		}
		return io.NopCloser(io.MultiReader(readers...)), nil
	}
	g := start(t, Options{NextHops: []NextHop{{Network: "tcp", Address: sink(t)}}})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	wantOutcomes(t, g.deliver(d), "delivered")
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 2<<20 {
		t.Errorf("%d bytes allocated for a message of %d", used, d.Size)
	}
	g.stop()
}

// 1,000 recipients whose replies are as long as replies may be: neither side waits for the other to read.
func TestLongRepliesToALargeGroup(t *testing.T) {
	hop := newHop(t, "PIPELINING", "LIMITS RCPTMAX=1000")
	hop.on(answer("RCPT", "250 2.1.5 "+strings.Repeat("x", 500)))
	g := start(t, Options{}, hop)
	r := g.deliver(mail("hello\r\n", rcpts(1000)...))
	for i, o := range r.outcomes {
		if o.State != queue.Delivered {
			t.Fatalf("recipient %d: %+v", i, o)
		}
	}
}

// A next hop that says anything at all: the attempt ends, every recipient has an outcome that can be shown, and nobody is delivered
// unless a 354 or, with LMTP too, a 2yz was among what was said.
func FuzzNextHopSays(f *testing.F) {
	for _, said := range []string{
		"220 x\r\n250 x\r\n250 x\r\n250 x\r\n250 x\r\n354 x\r\n250 x\r\n",
		"220 x\r\n250-x\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 LIMITS RCPTMAX=1\r\n250 x\r\n250 x\r\n250 x\r\n",
		"220 x\r\n500 x\r\n250 x\r\n250 x\r\n550 5.1.1 x\r\n452 4.5.3 x\r\n", "421 x\r\n", "220-\r\n220\r\n", "\x00", "220 x\r\n250 SIZE 99999999999999999999\r\n",
	} {
		f.Add(said, false, "hello\r\n")
		f.Add(said, true, "bare\nnewline")
	}
	f.Fuzz(func(t *testing.T, said string, lmtp bool, data string) {
		src := newSource()
		r, err := New(src, Options{NextHops: []NextHop{{LMTP: lmtp, Network: "tcp"}}, Hostname: "relay", Log: slog.New(slog.DiscardHandler),
			Timeouts: uniformTimeouts(5 * time.Second), Dial: func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go io.Copy(io.Discard, theirs)
				go func() { io.WriteString(theirs, said); theirs.Close() }()
				return ours, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		r.hard, r.cut = context.WithCancel(t.Context())
		defer r.cut()
		r.deliver(mail(data, "a@example.net", "b@example.net"))
		r.conns.close()
		r.flights.Wait()
		res := <-src.results
		for _, o := range res.outcomes {
			if len(o.Reply) > maxOutcomeBytes || !printable([]byte(strings.ReplaceAll(o.Reply, " ", ""))) || o.Reply == "" {
				t.Errorf("%+v", o)
			}
			if o.State == queue.Delivered && !strings.Contains(said, "\r\n2") {
				t.Errorf("%+v after %q", o, said)
			}
		}
	})
}

// A next hop that says why while the data is still coming, and closes.
func TestRefusalInTheMidstOfTheData(t *testing.T) {
	ln := rawHop(t, func(nc net.Conn) {
		io.WriteString(nc, "220 x\r\n")
		expect(nc, "EHLO")
		io.WriteString(nc, "250 x\r\n")
		expect(nc, "MAIL")
		io.WriteString(nc, "250 x\r\n")
		expect(nc, "RCPT")
		io.WriteString(nc, "250 x\r\n")
		expect(nc, "DATA")
		io.WriteString(nc, "354 x\r\n")
		io.ReadFull(nc, make([]byte, 100<<10))
		io.WriteString(nc, "552 5.3.4 enough\r\n")
		nc.(*net.TCPConn).CloseWrite()
	})
	short := patience
	short.DataBlock = 100 * time.Millisecond
	g := start(t, Options{NextHops: []NextHop{ln}, Timeouts: short})
	wantOutcomes(t, g.deliver(mail(string(ordinary(20<<20)), "a@example.net")), "failed 552 5.3.4 enough")
}

// rawHop serves each connection with f.
func rawHop(t testing.TB, f func(nc net.Conn)) NextHop {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { <-stop; nc.Close() }()
			go f(nc)
		}
	}()
	t.Cleanup(func() { close(stop); ln.Close(); <-done })
	return NextHop{Network: "tcp", Address: ln.Addr().String()}
}

// expect reads until what was read holds word and a line end.
func expect(nc net.Conn, word string) {
	b, got := make([]byte, 4096), ""
	for !strings.Contains(got, word) || !strings.HasSuffix(got, "\n") {
		n, err := nc.Read(b)
		if err != nil {
			return
		}
		got += string(b[:n])
	}
}

// Hostile next hops: the attempt ends, with everyone pending, and memory stays bounded.
func TestHostileNextHop(t *testing.T) {
	endless := func(start, more string) func(net.Conn) {
		return func(nc net.Conn) {
			io.WriteString(nc, start)
			for {
				if _, err := io.WriteString(nc, more); err != nil {
					return
				}
			}
		}
	}
	upTo := func(f func(nc net.Conn)) func(net.Conn) { // a good session as far as RCPT
		return func(nc net.Conn) {
			for _, step := range []string{"EHLO", "MAIL", "RCPT"} {
				if step == "EHLO" {
					io.WriteString(nc, "220 x\r\n")
				} else {
					io.WriteString(nc, "250 x\r\n")
				}
				expect(nc, step)
			}
			f(nc)
		}
	}
	for _, tc := range []struct {
		name string
		f    func(net.Conn)
		want string
	}{
		{"never greets", func(net.Conn) {}, "pending 451 4.4.2"},
		{"closes at once", func(nc net.Conn) { nc.Close() }, "pending 451 4.4."},
		{"endless greeting line", endless("220 ", strings.Repeat("x", 1000)), "pending 451 4.5.0"},
		{"endless greeting lines", endless("", "220-x\r\n"), "pending 451 4.5.0"},
		{"garbage", endless("", "\x00\xff\r\n\r\n"), "pending 451 4.5.0"},
		{"greets twice", func(nc net.Conn) { io.WriteString(nc, "220 x\r\n250 x\r\n") }, "pending 451 4.5.0"},
		{"dripping reply", upTo(func(nc net.Conn) {
			io.WriteString(nc, "250-")
			for range 1000 {
				if _, err := io.WriteString(nc, "x"); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond) // the peer's slowness, not a wait of the test
			}
		}), "pending 451 4.4.2"},
		{"silent at RCPT", upTo(func(net.Conn) {}), "pending 451 4.4.2"},
		{"two codes in one reply", upTo(func(nc net.Conn) { io.WriteString(nc, "250-x\r\n550 x\r\n") }), "pending 451 4.5.0"},
		{"reply code 999", upTo(func(nc net.Conn) { io.WriteString(nc, "999 x\r\n") }), "pending 451 4.5.0"},
		{"150 at RCPT", upTo(func(nc net.Conn) { io.WriteString(nc, "150 x\r\n") }), "pending 451 4.5.0"},
		{"final reply before the data", upTo(func(nc net.Conn) {
			io.WriteString(nc, "250 x\r\n")
			expect(nc, "DATA")
			io.WriteString(nc, "354 x\r\n250 taken\r\n")
		}), "pending 451 4.5.0"},
		{"does not read the data", upTo(func(nc net.Conn) {
			io.WriteString(nc, "250 x\r\n")
			expect(nc, "DATA")
			io.WriteString(nc, "354 x\r\n")
		}), "pending 451 4.4.2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hop := rawHop(t, tc.f)
			timeouts := patience
			if strings.Contains(tc.want, "4.4.2") { // time runs out, at this step or at one before
				timeouts = uniformTimeouts(80 * time.Millisecond)
				timeouts.Dial = patience.Dial // to connect is not what is tried here, and on a busy machine takes what it takes
			}
			g := start(t, Options{NextHops: []NextHop{hop}, Timeouts: timeouts})
			wantOutcomes(t, g.deliver(mail(string(ordinary(8<<20)), "a@example.net")), tc.want)
		})
	}
}

// LMTP with too few replies runs into the deadline; with too many, the connection is not used again and nobody gets another's reply.
func TestLMTPWrongNumberOfReplies(t *testing.T) {
	hop := newLMTP(t, "PIPELINING")
	hop.on(answer("END|TO:<b@", hang))
	g := start(t, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, address)
		return &impatient{Conn: nc, words: "taken for TO:<a@"}, err
	}}, hop)
	wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net", "b@example.net")), "delivered", "pending 451 4.4.2")

	hop = newLMTP(t, "PIPELINING", "CHUNKING")
	hop.on(answer("END", "250 2.0.0 one\r\n250 2.0.0 two"))
	g = start(t, Options{}, hop)
	for range 3 {
		wantOutcomes(t, g.deliver(mail("no newline", "a@example.net")), "delivered 250 2.0.0 one")
	}
	if n := hop.sessionCount(); n != 3 {
		t.Errorf("%d sessions", n)
	}
}

// impatient is a connection whose time is over as soon as it has read the words: the next deadline has passed already.
type impatient struct {
	net.Conn
	words string
	over  bool
}

func (c *impatient) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.over = c.over || bytes.Contains(p[:n], []byte(c.words))
	return n, err
}

func (c *impatient) SetReadDeadline(at time.Time) error {
	if c.over && !at.IsZero() {
		at = time.Unix(1, 0)
	}
	return c.Conn.SetReadDeadline(at)
}

// failing is a message whose reader gives an error after n bytes.
func failing(data string, n int, err error) *queue.Delivery {
	d := mail(data, "a@example.net")
	d.Open = func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(data[:n]), &errReader{err})), nil
	}
	return d
}

type errReader struct{ err error }

func (r *errReader) Read([]byte) (int, error) { return 0, r.err }

func TestMessageThatCannotBeRead(t *testing.T) {
	large := string(ordinary(300 << 10))
	damaged := fmt.Errorf("spool: segment 3: %w", queue.ErrCorrupt)
	for _, tc := range []struct {
		name   string
		d      *queue.Delivery
		killed bool
	}{
		{"read error, small", failing("hello\r\n", 3, errors.New("disk")), false},
		{"read error, large", failing(large, 200<<10, errors.New("disk")), false},
		{"damaged, small", failing("hello\r\n", 7, damaged), true},
		{"damaged, found at the end of a large one", failing(large, len(large), damaged), true},
		{"shorter than the queue says", failing("hello\r\n", 3, io.EOF), false},
	} {
		for _, offers := range []string{"X", "CHUNKING"} {
			t.Run(tc.name+"/"+offers, func(t *testing.T) {
				hop := newHop(t, offers, "PIPELINING")
				g := start(t, Options{}, hop)
				r := g.deliver(tc.d)
				wantOutcomes(t, r, "pending 451 4.3.0")
				if (r.killed != "") != tc.killed {
					t.Errorf("killed %q", r.killed)
				}
				wantOutcomes(t, g.deliver(mail("fine\r\n", "a@example.net")), "delivered")
				if got := hop.allMessages(); len(got) != 1 || got[0].data != "fine\r\n" {
					t.Errorf("the next hop took %d messages", len(got))
				}
			})
		}
	}
	t.Run("Open fails", func(t *testing.T) {
		hop := newHop(t)
		g := start(t, Options{}, hop)
		d := mail("x\r\n", "a@example.net")
		d.Open = func() (io.ReadCloser, error) { return nil, damaged }
		if r := g.deliver(d); !strings.Contains(r.killed, "damaged") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("longer than the queue says", func(t *testing.T) {
		hop := newHop(t)
		g := start(t, Options{}, hop)
		d := mail("hello\r\n", "a@example.net")
		d.Size = 5
		wantOutcomes(t, g.deliver(d), "pending 451 4.3.0")
	})
}

// deadHop is an address where nobody listens.
func deadHop(t *testing.T) NextHop { return NextHop{Network: "tcp", Address: nettest.Nobody(t)} }

func TestFailOver(t *testing.T) {
	// Nil is a next hop at whose address nobody listens.
	for name, first := range map[string]func(h *fakeHop){
		"refused at the greeting": func(h *fakeHop) { h.on(answer("CONNECT", "421 4.3.2 too busy")) },
		"no service":              func(h *fakeHop) { h.on(answer("CONNECT", "554 5.3.2 no mail here")) },
		"EHLO deferred":           func(h *fakeHop) { h.on(answer("EHLO", "450 4.3.2 later")) },
		"closes":                  func(h *fakeHop) { h.on(answer("CONNECT", closeNow)) },
		"nobody listens":          nil,
	} {
		t.Run(name, func(t *testing.T) {
			good, bad := newHop(t), deadHop(t)
			if first != nil {
				h := newHop(t)
				first(h)
				bad = h.next()
			}
			g := start(t, Options{NextHops: []NextHop{bad}, MinBackoff: time.Hour, MaxBackoff: time.Hour}, good)
			for range 3 {
				wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "delivered")
			}
			if s := g.relay.Stats(); s.NextHopsDown != 1 || s.ConnectErrors != 1 || s.LeasingPaused {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestPreferredNextHopComesBack(t *testing.T) {
	first, second := newHop(t), newHop(t)
	first.on(answer("CONNECT", "421 4.3.2 too busy"))
	g := start(t, Options{MaxPerConnection: 1, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond}, first, second)
	wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "delivered")
	first.on(nil)
	for deadline := time.Now().Add(time.Minute); len(first.allMessages()) == 0; {
		wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "delivered")
		if time.Now().After(deadline) {
			t.Fatal("the preferred next hop is not used again")
		}
	}
}

// 10,000 messages and every next hop down: only those in hand at the first failure burn an attempt, and dials stay few. When one
// next hop is back, everything goes out.
func TestAllNextHopsDownPausesLeasing(t *testing.T) {
	const messages, connections = 10000, 8
	hop := newHop(t, "PIPELINING")
	down := make(chan struct{})
	var dials int
	probed := make(chan bool, 100000)
	o := Options{Connections: connections, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		select {
		case <-down:
			return new(net.Dialer).DialContext(ctx, network, address)
		default:
			probed <- true
			return nil, errors.New("connection refused")
		}
	}}
	g := start(t, o, hop)
	g.src.again = true
	for range messages {
		g.src.add(mail("hello\r\n", "a@example.net"))
	}
	for range connections + 20 { // at most one dial for each in hand, and then probes
		<-probed
		dials++
	}
	if ready, leased := g.src.counts(); leased > 2*connections || ready < messages-2*connections {
		t.Errorf("%d leased, %d ready", leased, ready)
	}
	if s := g.relay.Stats(); !s.LeasingPaused || s.NextHopsDown != 1 || s.Attempts > 2*connections {
		t.Errorf("%+v", s)
	}
	close(down)
	for delivered := 0; delivered < messages; {
		r := g.result()
		switch r.outcomes[0].State {
		case queue.Delivered:
			delivered++
		case queue.Pending:
			if r.outcomes[0].Reply != "451 4.4.1 connect to "+hop.next().String()+": connection refused" {
				t.Errorf("%+v", r.outcomes[0])
			}
		}
	}
	if s := g.relay.Stats(); s.LeasingPaused || s.NextHopsDown != 0 || s.Delivered != messages {
		t.Errorf("%+v", s)
	}
}

// A next hop that greets and then goes away is as good as down.
func TestNextHopThatGreetsAndGoesAway(t *testing.T) {
	hop := newHop(t)
	hop.on(answer("MAIL", closeNow))
	g := start(t, Options{Connections: 4, MinBackoff: time.Hour, MaxBackoff: time.Hour}, hop)
	for range 100 {
		g.src.add(mail("hello\r\n", "a@example.net"))
	}
	wantOutcomes(t, g.result(), "pending 451 4.4.")
	for deadline := time.Now().Add(time.Minute); !g.relay.Stats().LeasingPaused; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("leasing goes on: %+v", g.relay.Stats())
		}
	}
	if n := hop.sessionCount(); n > 4 {
		t.Errorf("%d connections", n)
	}
	if _, leased := g.src.counts(); leased > 8 {
		t.Errorf("%d messages leased", leased)
	}
}

// A next hop that takes few connections is full, not down: everything goes over those, and nothing is deferred.
func TestNextHopThatTakesFewConnections(t *testing.T) {
	hop := newHop(t, "PIPELINING")
	hop.on(func(s *fakeSession, verb, _ string) string {
		if verb == "CONNECT" {
			hop.mu.Lock()
			defer hop.mu.Unlock()
			if len(hop.conns) > 2 {
				return "421 4.7.0 too many connections"
			}
		}
		return ""
	})
	g := start(t, Options{Connections: 16}, hop)
	// The first connection is there before the others are tried.
	wantOutcomes(t, g.deliver(mail("hello\r\n", "a@example.net")), "delivered")
	const messages = 2000
	for range messages {
		g.src.add(mail("hello\r\n", "a@example.net"))
	}
	for range messages {
		wantOutcomes(t, g.result(), "delivered")
	}
}

func TestConnectionsBoundIsKept(t *testing.T) {
	hop := newHop(t, "PIPELINING")
	most := 0
	hop.on(func(s *fakeSession, verb, _ string) string {
		hop.mu.Lock()
		defer hop.mu.Unlock()
		most = max(most, len(hop.conns))
		return ""
	})
	g := start(t, Options{Connections: 3}, hop)
	for range 300 {
		g.src.add(mail("hello\r\n", "a@example.net"))
	}
	for range 300 {
		g.result()
	}
	if s := g.relay.Stats(); most > 3 || s.Connections > 3 || s.Connects > 3 || s.Delivered != 300 || s.Reused < 297 {
		t.Errorf("%d at once; %+v", most, s)
	}
}

// The end of the context: nothing more is leased, what is in hand is finished, connections end with QUIT.
func TestShutdownFinishesWhatIsInHand(t *testing.T) {
	hop := newHop(t)
	inHand, goOn := make(chan bool), make(chan bool)
	hop.on(func(_ *fakeSession, verb, _ string) string {
		if verb == "END" {
			inHand <- true
			<-goOn
		}
		return ""
	})
	g := start(t, Options{}, hop)
	g.src.add(mail("hello\r\n", "a@example.net"))
	<-inHand
	g.cancel()
	goOn <- true
	wantOutcomes(t, g.result(), "delivered")
	g.stop()
	if !slices.Contains(hop.allCommands(), "QUIT") {
		t.Errorf("%q", hop.allCommands())
	}
}

func TestGraceCutsOff(t *testing.T) {
	hop := newHop(t)
	inHand := make(chan bool, 1)
	hop.on(func(_ *fakeSession, verb, _ string) string {
		if verb == "END" {
			inHand <- true
			return hang
		}
		return ""
	})
	g := start(t, Options{Grace: 20 * time.Millisecond, Timeouts: uniformTimeouts(time.Hour)}, hop)
	g.src.add(mail("hello\r\n", "a@example.net"))
	<-inHand
	g.stop()
	wantOutcomes(t, g.result(), "pending 451 4.4.2")
}

func TestRunEndsWhenTheSourceIsClosed(t *testing.T) {
	r, err := New(closedSource{}, Options{NextHops: []NextHop{deadHop(t)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); err != nil {
		t.Error(err)
	}
	if err := r.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
}

type closedSource struct{ queue.Source }

func (closedSource) Lease(context.Context) (*queue.Delivery, error) { return nil, queue.ErrClosed }

func TestNewWantsANextHop(t *testing.T) {
	if _, err := New(newSource(), Options{}); err == nil {
		t.Error("taken")
	}
	if _, err := New(newSource(), Options{NextHops: []NextHop{{}}, Hostname: "a\r\nb"}); err == nil {
		t.Error("host name with CRLF taken")
	}
}

func TestLogHasALineForEachResult(t *testing.T) {
	hop := newHop(t)
	hop.on(answer("RCPT TO:<b@", "450 4.2.0 later", "RCPT TO:<c@", "550 5.1.1 no\x1body"))
	g := start(t, Options{}, hop)
	d := mail("hello\r\n", "a@example.net", "b@example.net", "c@example.net")
	g.deliver(d)
	g.stop()
	log := g.log.String()
	for _, want := range []string{
		`"msg":"delivered","message":"` + d.Env.ID.String() + `","next_hop":"` + hop.next().String() + `","recipients":1,"reply":"250 2.0.0 taken","attempt":1,"ms":`,
		`"msg":"deferred"`, `"reply":"450 4.2.0 later"`,
		`"msg":"failed"`, `"reply":"550 5.1.1 no?ody"`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("%s not in\n%s", want, log)
		}
	}
}
