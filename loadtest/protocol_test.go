package loadtest

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/loadtest/report"
	"github.com/fastedge/fastedge/loadtest/sink"
)

// edge is a simple SMTP server, for what a sink does not do.
type edge struct {
	ehlo  []string
	auth  func(line string, more func() string) string // the reply to AUTH
	first func(c net.Conn, in *bufio.Reader) bool      // before the greeting
	data  func(n int) string                           // the reply to the nth message
	idle  bool                                         // says 421 and closes after each message

	mu       sync.Mutex
	messages int
	rcpt     []string
	from     map[string]bool // client addresses
}

func (e *edge) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	if e.first != nil && !e.first(c, in) {
		return
	}
	e.mu.Lock()
	if e.from == nil {
		e.from = map[string]bool{}
	}
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	e.from[host] = true
	e.mu.Unlock()
	line := func() string {
		s, err := in.ReadString('\n')
		if err != nil {
			return "GONE"
		}
		return strings.TrimRight(s, "\r\n")
	}
	say := func(s string) { fmt.Fprintf(c, "%s\r\n", s) }
	say("220 edge")
	for {
		command := line()
		verb, _, _ := strings.Cut(strings.ToUpper(command), " ")
		switch verb {
		case "EHLO":
			say("250-edge")
			for _, w := range e.ehlo {
				say("250-" + w)
			}
			say("250 HELP")
		case "AUTH":
			say(e.auth(command, func() string { say("334 more"); return line() }))
		case "RCPT":
			e.mu.Lock()
			e.rcpt = append(e.rcpt, command[len("RCPT TO:"):])
			e.mu.Unlock()
			say("250 ok")
		case "DATA":
			say("354 go on")
			for line() != "." {
			}
			e.mu.Lock()
			e.messages++
			reply := "250 ok"
			if e.data != nil {
				reply = e.data(e.messages)
			}
			e.mu.Unlock()
			if e.idle {
				say(reply + "\r\n421 idle") // in one piece: who reads the one has the other
				return
			}
			say(reply)
		case "QUIT":
			say("221 bye")
			return
		case "GONE":
			return
		default:
			say("250 ok")
		}
	}
}

func runAt(t *testing.T, e *edge, o Options) *report.Run {
	t.Helper()
	o.Target = listen(t, e.serve)
	if o.Connections == 0 {
		o.Connections = 2
	}
	if o.Messages == 0 {
		o.Messages = 20
	}
	r, err := Run(t.Context(), o, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	checkSums(t, r)
	return r
}

func TestAuthenticatedSessionsSend(t *testing.T) {
	for name, a := range map[string]struct{ offer, mechanism, first string }{
		"plain": {"AUTH PLAIN LOGIN", "", "AUTH PLAIN AHRpbQBzZWNyZXQ="}, "login": {"AUTH LOGIN", "", "AUTH LOGIN"}, "asked for": {"AUTH PLAIN LOGIN", "LOGIN", "AUTH LOGIN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &edge{ehlo: []string{a.offer}, auth: func(first string, more func() string) string {
				if first != a.first || first == "AUTH LOGIN" && (more() != "dGlt" || more() != "c2VjcmV0") {
					return "535 no"
				}
				return "235 ok"
			}}
			r := runAt(t, e, Options{Auth: &Auth{Mechanism: a.mechanism, User: "tim", Password: "secret"}})
			if r.Totals.Acknowledged != 20 || r.Phase("auth", "2xx") == nil {
				t.Errorf("%+v %v", r.Totals, r.Replies)
			}
		})
	}
}

func TestAWrongPasswordIsAnErrorThatSaysWhatTheTargetSaid(t *testing.T) {
	t.Parallel()
	e := &edge{ehlo: []string{"AUTH PLAIN"}, auth: func(string, func() string) string { return "535 5.7.8 wrong" }}
	o := Options{Target: listen(t, e.serve), Connections: 2, Timeout: time.Minute, Auth: &Auth{User: "u", Password: "p"}}
	if _, err := Run(t.Context(), o, Hooks{}); err == nil || !strings.Contains(err.Error(), "535 5.7.8 wrong") {
		t.Errorf("error %v", err)
	}
}

func TestImplicitTLS(t *testing.T) {
	certificate := httptest.NewTLSServer(nil)
	config := &tls.Config{Certificates: certificate.TLS.Certificates}
	certificate.Close()
	for name, o := range map[string]Options{"closed": {}, "open": {Rate: 1000, MaxWaiting: 1000}, "slow": {SlowClients: 0.5, Size: FixedSize(600)}, "proxy": {Proxy: 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &edge{}
			o.TLS = true
			o.Target = listen(t, func(c net.Conn) {
				if o.Proxy == 2 {
					b := make([]byte, 28)
					if n, _ := c.Read(b); n != 28 || string(b[:12]) != "\r\n\r\n\x00\r\nQUIT\n" || b[16] != 198 {
						t.Errorf("header %q", b[:n])
					}
				}
				e.serve(tls.Server(c, config))
			})
			o.Connections, o.Messages = 4, 40
			r, err := Run(t.Context(), o, Hooks{})
			if err != nil {
				t.Fatal(err)
			}
			if r.Totals.Acknowledged != 40 || r.Phase("tls", "2xx") == nil {
				t.Errorf("%+v %v", r.Totals, r.Replies)
			}
		})
	}
}

func TestAProxyHeaderComesFirst(t *testing.T) {
	for version, want := range map[int]string{1: "PROXY TCP4 198.18.0.", 2: "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc6\x12\x00"} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			t.Parallel()
			e := &edge{first: func(c net.Conn, in *bufio.Reader) bool {
				b := make([]byte, 28)
				if version == 1 {
					line, _ := in.ReadString('\n')
					b = []byte(line)
				} else {
					for i := range b {
						b[i], _ = in.ReadByte()
					}
				}
				if !strings.HasPrefix(string(b), want) {
					t.Errorf("header %q", b)
				}
				return true
			}}
			if r := runAt(t, e, Options{Proxy: version, PerConnection: 3}); r.Totals.Acknowledged != 20 {
				t.Errorf("%+v", r.Totals)
			}
		})
	}
}

func TestSourcesAreSeenByTheTarget(t *testing.T) {
	t.Parallel()
	e := &edge{ehlo: []string{"PIPELINING"}}
	r := runAt(t, e, Options{Sources: []netip.Prefix{netip.MustParsePrefix("127.0.7.4/30")}, Connections: 5, SlowClients: 0.2, Size: FixedSize(600), PerConnection: 1, Messages: 30})
	want := []string{"127.0.7.4", "127.0.7.5", "127.0.7.6", "127.0.7.7"}
	if got := slices.Sorted(maps.Keys(e.from)); !slices.Equal(got, want) || r.Totals.Acknowledged != 30 {
		t.Errorf("from %v; %+v", got, r.Totals)
	}
}

func TestAFixedRecipientGetsEverything(t *testing.T) {
	t.Parallel()
	e := &edge{}
	runAt(t, e, Options{To: "me@here.test"})
	if len(e.rcpt) != 20 || slices.ContainsFunc(e.rcpt, func(s string) bool { return s != "<me@here.test>" }) {
		t.Errorf("%q", e.rcpt)
	}
}

// A target that closes after each message costs no message: the close is seen before the next is given away.
func TestAMessageIsNotGivenToAConnectionThatWasClosed(t *testing.T) {
	certificate := httptest.NewTLSServer(nil)
	config := &tls.Config{Certificates: certificate.TLS.Certificates}
	certificate.Close()
	for name, o := range map[string]Options{"plain": {}, "tls": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &edge{idle: true}
			o.Target = listen(t, func(c net.Conn) {
				if o.TLS {
					c = tls.Server(c, config)
				}
				e.serve(c)
			})
			o.Connections, o.Messages, o.Rate = 6, 20, 20
			for try := 1; ; try++ {
				r, err := Run(t.Context(), o, Hooks{})
				if err != nil {
					t.Fatal(err)
				}
				checkSums(t, r)
				if r.Totals.Acknowledged == 20 && r.Totals.Errors == 0 {
					return
				}
				if try == 10 { // where the machine stands still, messages wait for a connection, and one that is free takes the next at once
					t.Fatalf("%+v %v", r.Totals, r.Replies)
				}
			}
		})
	}
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	defer l.Close()
	e := &edge{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go e.serve(c)
		}
	}()
	r, err := Run(t.Context(), Options{Target: l.Addr().String(), Connections: 2, Messages: 10, Sources: []netip.Prefix{netip.MustParsePrefix("::1/128")}}, Hooks{})
	if err != nil || r.Totals.Acknowledged != 10 {
		t.Errorf("%v %+v", err, r)
	}
}

func TestSmuggledMailIsPhantom(t *testing.T) {
	t.Parallel()
	// A target that takes bare LF for the end of a line, and so smuggled mail for mail.
	s, _ := newSink(t, sink.Options{})
	target := listen(t, func(c net.Conn) {
		up, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			return
		}
		go pass(c, up)
		in := bufio.NewReader(c)
		for {
			line, err := in.ReadString('\n')
			if _, werr := up.Write([]byte(strings.TrimRight(line, "\r\n") + "\r\n")); err != nil || werr != nil {
				up.Close()
				return
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := Run(ctx, Options{Target: target, Connections: 8, BadClients: 1, Rate: 50, Duration: 1200 * time.Millisecond}, Hooks{Verifier: registered{s}})
	if err != nil {
		t.Fatal(err)
	}
	if v := r.Verdict; v.Pass || v.Phantom == 0 || v.Lost != 0 || r.Totals.BadClients == 0 {
		t.Errorf("verdict %+v, %d bad clients", v, r.Totals.BadClients)
	}
}

func TestFindMaxFindsWhereTheConditionBreaks(t *testing.T) {
	condition, err := report.ParseThreshold("ack.p99<10ms")
	if err != nil {
		t.Fatal(err)
	}
	run := func(limit float64) func(context.Context, Options, Hooks) (*report.Run, error) {
		return func(_ context.Context, o Options, _ Hooks) (*report.Run, error) {
			h := report.NewHistogram()
			d := time.Millisecond
			if o.Rate == 0 || o.Rate > limit {
				d = time.Second
			}
			h.Record(d)
			n := o.Rate
			if n == 0 {
				n = 10000
			}
			return &report.Run{Seconds: 1, Totals: report.Totals{Offered: int64(n), Acknowledged: int64(n)},
				Phases: []report.Phase{{Name: "ack", Outcome: "2xx", Histogram: h}}}, nil
		}
	}
	var told []report.Trial
	r, err := findMax(t.Context(), Options{}, Hooks{}, condition, func(s report.Trial) { told = append(told, s) }, run(4000))
	if err != nil || len(r.Search) < 4 || len(told) != len(r.Search) || r.FindMax != "ack.p99<10ms" {
		t.Fatalf("%v %+v", err, r)
	}
	if got := float64(r.Totals.Offered); got > 4000 || got < 3800 {
		t.Errorf("found %v", got)
	}
	if _, err := findMax(t.Context(), Options{}, Hooks{}, condition, nil, run(0)); err == nil || !strings.Contains(err.Error(), "does not hold at any rate") {
		t.Errorf("error %v", err)
	}
	behind := func(ctx context.Context, o Options, h Hooks) (*report.Run, error) {
		r, err := run(1e6)(ctx, o, h)
		if o.Rate > 4000 {
			r.Totals.Acknowledged = r.Totals.Offered * 95 / 100
		}
		return r, err
	}
	if r, err := findMax(t.Context(), Options{}, Hooks{}, condition, nil, behind); err != nil || r.Search[0].Pass || math.Abs(r.Search[0].Kept-0.95) > 0.01 {
		t.Errorf("a target that does not keep up: %v %+v", err, r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := findMax(ctx, Options{}, Hooks{}, condition, nil, run(4000)); err == nil {
		t.Error("an interrupted search finds something")
	}
	if _, err := FindMax(t.Context(), Options{Target: "127.0.0.1:25", Hold: 1}, Hooks{}, condition, nil); err == nil {
		t.Error("hold is no load to search")
	}
}

func TestFindMaxAtATargetWithALimit(t *testing.T) {
	t.Parallel()
	s, _ := newSink(t, sink.Options{Rate: 500, Burst: 50})
	condition, err := report.ParseThreshold("4xx==0")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Target: s.Addr().String(), Connections: 4, Duration: 200 * time.Millisecond, Pipelining: "group"}
	r, err := FindMax(t.Context(), o, Hooks{Verifier: registered{s}}, condition, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Parameters.Rate <= 0 || r.Parameters.Rate > 1500 || len(r.Search) == 0 || r.Verdict == nil {
		t.Errorf("found %v in %v", r.Parameters.Rate, r.Search)
	}
}
