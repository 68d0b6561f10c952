package loadtest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/internal/nettest"
	"github.com/fastedge/fastedge/loadtest/ledger"
	"github.com/fastedge/fastedge/loadtest/live"
	"github.com/fastedge/fastedge/loadtest/report"
	"github.com/fastedge/fastedge/loadtest/sink"
)

func TestMain(m *testing.M) {
	verifyPatience, unknownPatience = time.Second, 100*time.Millisecond
	os.Exit(m.Run())
}

// registered is the verifier of a target that is itself the sink.
type registered struct{ sink *sink.Sink }

func (r registered) Name() string { return "register" }
func (r registered) Begin() error { return nil }
func (r registered) Close() error { return nil }
func (r registered) Receipts(ctx context.Context, book *ledger.Book) (*ledger.Receipts, error) {
	return patiently(ctx, book, func() (*ledger.Receipts, error) { return r.sink.Register().Receipts(book.Run()), nil })
}

// newSink serves until the test ends.
func newSink(t *testing.T, o sink.Options) (s *sink.Sink, stop func()) {
	t.Helper()
	s, err := sink.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return s, stop
}

// mustRun is one run against a new sink, verified.
func mustRun(t *testing.T, o Options, at sink.Options) (*report.Run, *sink.Sink) {
	t.Helper()
	s, _ := newSink(t, at)
	if o.Target == "" {
		o.Target = s.Addr().String()
	}
	r, err := Run(t.Context(), o, Hooks{Verifier: registered{s}, Tool: "test"})
	if err != nil {
		t.Fatal(err)
	}
	checkSums(t, r)
	return r, s
}

// checkSums says whether every message is somewhere.
func checkSums(t *testing.T, r *report.Run) {
	t.Helper()
	n := &r.Totals
	sum := n.Acknowledged + n.Deferred + n.Refused + n.Errors + n.Dropped
	if r.Parameters.SessionsOnly {
		sum = n.Sessions + n.Errors
	}
	open := n.Offered - sum // when it was counted
	limit := int64(r.Parameters.Connections)*2 + n.Waited
	if r.Ended == "messages" {
		limit = 0
	}
	if open < 0 || open > limit {
		t.Errorf("ended by %s: offered %d, accounted for %d: %+v", r.Ended, n.Offered, sum, *n)
	}
}

func checkAll(t *testing.T, r *report.Run, messages int64) {
	t.Helper()
	if r.Totals.Acknowledged != messages || r.Totals.Offered != messages {
		t.Errorf("acknowledged %d of %d offered; want %d; %+v", r.Totals.Acknowledged, r.Totals.Offered, messages, r.Replies)
	}
	checkPass(t, r)
}

func checkPass(t *testing.T, r *report.Run) {
	t.Helper()
	if v := r.Verdict; v == nil || !v.Pass || v.Lost != 0 || v.Phantom != 0 || v.Corrupt != 0 || r.Totals.Acknowledged > 0 && v.Received == 0 {
		t.Errorf("verdict %+v", v)
	}
}

func TestEveryMessageOfARunArrives(t *testing.T) {
	unix := func(t *testing.T) string { return "unix:" + filepath.Join(t.TempDir(), "s") }
	for name, test := range map[string]struct {
		o    Options
		at   sink.Options
		unix bool
	}{
		"closed":                   {o: Options{}},
		"group":                    {o: Options{Pipelining: "group", Recipients: Range{1, 5}}},
		"tight":                    {o: Options{Pipelining: "tight", Recipients: Range{1, 3}}},
		"bdat":                     {o: Options{BDAT: 1}},
		"bdat in groups":           {o: Options{BDAT: 0.5, Pipelining: "group", Recipients: Range{1, 3}}},
		"bdat, tight":              {o: Options{BDAT: 0.5, Pipelining: "tight"}},
		"one message a connection": {o: Options{PerConnection: 1}},
		"three, tight":             {o: Options{PerConnection: 3, Pipelining: "tight"}},
		"open":                     {o: Options{Rate: 5000}},
		"open, poisson":            {o: Options{Rate: 5000, Poisson: true, PerConnection: 7}},
		"ramp":                     {o: Options{Ramp: &Ramp{0, 8000, 100 * time.Millisecond}}},
		"open, faster than it can": {o: Options{Rate: 1e6}},
		"lmtp":                     {o: Options{Protocol: "lmtp", Recipients: Range{1, 4}}, at: sink.Options{LMTP: true}},
		"lmtp, tight, bdat":        {o: Options{Protocol: "lmtp", Recipients: Range{2, 4}, Pipelining: "tight", BDAT: 0.3}, at: sink.Options{LMTP: true}},
		"unix socket":              {unix: true},
		"lmtp on a unix socket":    {o: Options{Protocol: "lmtp"}, at: sink.Options{LMTP: true}, unix: true},
		"starttls":                 {o: Options{STARTTLS: 0.5, Pipelining: "tight"}, at: sink.Options{TLS: true}},
		"starttls, open":           {o: Options{STARTTLS: 1, Rate: 2000, PerConnection: 20}, at: sink.Options{TLS: true}},
		"two workers":              {o: Options{Workers: 2, Pipelining: "group"}},
		"sizes":                    {o: Options{Size: Sizes{"x", 512, 20000, 3000, 2}, Pipelining: "group"}},
		"slow ones":                {o: Options{SlowClients: 0.25, Size: FixedSize(700)}},
		"after a warm-up":          {o: Options{Warmup: 50 * time.Millisecond, Pipelining: "tight"}},
		"open after a warm-up":     {o: Options{Warmup: 50 * time.Millisecond, Rate: 5000}},
		"bad clients":              {o: Options{BadClients: 1, Rate: 1000}, at: sink.Options{TLS: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.unix {
				test.at.Address = unix(t)
				test.o.Target = test.at.Address
			}
			test.o.Connections, test.o.Messages, test.o.MaxWaiting = 8, 500, 4000
			r, _ := mustRun(t, test.o, test.at)
			checkAll(t, r, 500)
			if r.Ended != "messages" || r.Seconds <= 0 || r.Seconds > 60 {
				t.Errorf("ended by %s after %v s", r.Ended, r.Seconds)
			}
			if !strings.HasPrefix(r.Target.Banner, "220 ") || len(r.Target.EHLO) < 4 || len(r.Target.EHLO) > 20 {
				t.Errorf("target %+v", r.Target)
			}
			if ack := r.Phase("ack", "2xx"); ack == nil || name != "slow ones" && r.Parameters.Warmup == "" && ack.Count() != 500 {
				t.Errorf("ack: %d samples", ack.Count())
			}
			for _, p := range r.Phases {
				if p.Outcome == "error" {
					t.Errorf("%s has %d errors: %v", p.Name, p.Histogram.TotalCount(), r.Replies)
				}
			}
		})
	}
}

func TestARunEndsWithItsDuration(t *testing.T) {
	for name, o := range map[string]Options{
		"closed":        {Pipelining: "group"},
		"open":          {Rate: 2000},
		"warmed up":     {Warmup: 100 * time.Millisecond},
		"sessions only": {SessionsOnly: true},
		"slow":          {SlowClients: 1, Size: FixedSize(200 << 10)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Connections, o.Duration = 4, 1100*time.Millisecond
			var seen []live.Snapshot
			s, _ := newSink(t, sink.Options{})
			o.Target = s.Addr().String()
			r, err := Run(t.Context(), o, Hooks{Verifier: registered{s}, Every: 50 * time.Millisecond, View: func(v live.Snapshot) { seen = append(seen, v) }})
			if err != nil {
				t.Fatal(err)
			}
			checkSums(t, r)
			checkPass(t, r)
			if r.Ended != "duration" || r.Seconds < 1 || r.Seconds > 30 || len(r.Series) == 0 {
				t.Errorf("ended by %s after %v s; %d seconds", r.Ended, r.Seconds, len(r.Series))
			}
			if n := r.Totals.Acknowledged + r.Totals.Sessions; n == 0 && name != "slow" {
				t.Error("nothing happened")
			}
			if o.SessionsOnly && (r.Totals.Errors != 0 || r.Totals.Acknowledged != 0 || r.Verdict.Received != 0) {
				t.Errorf("sessions only: %+v %v", r.Totals, r.Replies)
			}
			var running int
			for _, v := range seen {
				if v.Phase == "running" {
					running++
				}
				if v.Progress > 1 || v.Rate < 0 || v.Rate > 1e6 || v.InFlight < 0 || v.Waiting < 0 || v.Offered < 0 || v.Left < 0 {
					t.Errorf("snapshot %+v", v)
				}
			}
			if running == 0 {
				t.Error("no view of the run")
			}
		})
	}
}

func TestSessionsOnlyEndsAfterSoMany(t *testing.T) {
	for name, o := range map[string]Options{"plain": {}, "starttls": {STARTTLS: 0.5}, "warmed up": {Warmup: 20 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.SessionsOnly, o.Messages, o.Connections = true, 100, 4
			r, s := mustRun(t, o, sink.Options{TLS: true})
			if r.Totals.Sessions != 100 || r.Totals.Offered != 100 || r.Totals.Errors != 0 {
				t.Errorf("%+v %v", r.Totals, r.Replies)
			}
			if n := s.Counters().Messages; n != 0 {
				t.Errorf("%d messages", n)
			}
		})
	}
}

func TestHeldConnectionsAreHeldAndClosed(t *testing.T) {
	s, _ := newSink(t, sink.Options{TLS: true})
	o := Options{Target: s.Addr().String(), Connections: 10, Hold: time.Hour, STARTTLS: 0.5, PID: os.Getpid()}
	var most int64
	ctx, seen := context.WithTimeout(t.Context(), 2*time.Minute)
	defer seen()
	views := 0
	r, err := Run(ctx, o, Hooks{Every: 20 * time.Millisecond, View: func(v live.Snapshot) {
		if v.Phase == "running" {
			if most = max(most, s.Counters().Open); most == 10 {
				views++
			}
		}
		if views == 5 {
			seen()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if most != 10 || s.Counters().Messages != 0 || r.Idle == nil || r.Idle.Connections != 10 || r.Totals.Offered != 0 {
		t.Errorf("%d connections, idle %+v, totals %+v", most, r.Idle, r.Totals)
	}
}

func TestTheVerdictFailsWhenTheTargetLies(t *testing.T) {
	for name, test := range map[string]struct {
		at   sink.Options
		what func(*report.Verdict) int64
	}{
		"lost":       {sink.Options{Lose: 50}, func(v *report.Verdict) int64 { return v.Lost }},
		"corrupt":    {sink.Options{Corrupt: 50}, func(v *report.Verdict) int64 { return v.Corrupt }},
		"duplicates": {sink.Options{Repeat: 50}, func(v *report.Verdict) int64 { return v.Duplicates }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _ := mustRun(t, Options{Connections: 4, Messages: 200, Pipelining: "group"}, test.at)
			if r.Verdict.Pass || r.Pass() || test.what(r.Verdict) != 4 {
				t.Errorf("verdict %+v", r.Verdict)
			}
		})
	}
}

func TestRefusalsAreCountedByKindAndNeverPhantom(t *testing.T) {
	for name, o := range map[string]Options{
		"off": {}, "group": {Pipelining: "group"}, "tight": {Pipelining: "tight"}, "bdat": {Pipelining: "group", BDAT: 1},
		"lmtp": {Protocol: "lmtp", Pipelining: "tight", BDAT: 0.3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Connections, o.Messages, o.Recipients = 4, 400, Range{1, 3}
			r, _ := mustRun(t, o, sink.Options{LMTP: o.Protocol == "lmtp",
				Shares: sink.Shares{SoftRcpt: 0.2, HardRcpt: 0.2, SoftData: 0.1, HardData: 0.1}})
			checkPass(t, r)
			if n := r.Totals; n.Acknowledged == 0 || n.Deferred == 0 || n.Refused == 0 || n.Errors != 0 {
				t.Errorf("%+v %v", n, r.Replies)
			}
			if r.Verdict.Refused == 0 || r.Verdict.Unknown != 0 {
				t.Errorf("verdict %+v", r.Verdict)
			}
		})
	}
}

func TestALimitThatClosesIsDeferralsNotErrors(t *testing.T) {
	t.Parallel()
	r, _ := mustRun(t, Options{Connections: 4, Messages: 300, Pipelining: "group"}, sink.Options{Rate: 50, RateCloses: true})
	checkPass(t, r)
	if r.Totals.Deferred == 0 || r.Totals.Errors != 0 {
		t.Errorf("%+v %v", r.Totals, r.Replies)
	}
}

func TestConnectionsClosedInDataAreErrors(t *testing.T) {
	t.Parallel()
	r, _ := mustRun(t, Options{Connections: 4, Messages: 100, Pipelining: "group", Size: FixedSize(20 << 10)}, sink.Options{CloseShare: 0.2, CloseAt: 5000})
	checkPass(t, r)
	if r.Totals.Errors == 0 || r.Totals.Acknowledged == 0 {
		t.Errorf("%+v %v", r.Totals, r.Replies)
	}
}

func TestATargetThatDiesAndComesBackLosesNothing(t *testing.T) {
	for name, o := range map[string]Options{
		"off": {}, "tight": {Pipelining: "tight"}, "tls": {STARTTLS: 1, Pipelining: "group"}, "open": {Rate: 5000}, "bdat": {BDAT: 1, Pipelining: "group"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := newSink(t, sink.Options{TLS: true})
			p := newProxy(t, s.Addr().String())
			o.Target, o.Connections, o.Duration, o.Size = p.addr, 8, time.Hour, FixedSize(20<<10)
			deaths, next := 0, int64(50)
			ctx, enough := context.WithTimeout(t.Context(), 2*time.Minute)
			defer enough()
			hooks := Hooks{Verifier: registered{s}, Every: 30 * time.Millisecond, View: func(v live.Snapshot) {
				switch {
				case v.Phase != "running" || v.Acknowledged <= next:
				case deaths == 3:
					enough()
				default:
					p.die()
					p.live()
					deaths, next = deaths+1, v.Acknowledged+50
				}
			}}
			r, err := Run(ctx, o, hooks)
			if err != nil {
				t.Fatal(err)
			}
			checkSums(t, r)
			checkPass(t, r)
			if deaths != 3 || r.Totals.Errors == 0 || r.Verdict.Acknowledged < next {
				t.Errorf("%d deaths; %+v; %+v", deaths, r.Totals, r.Verdict)
			}
		})
	}
}

// proxy is a target that can die: it passes octets on to another.
type proxy struct {
	t        *testing.T
	addr, to string
	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	p := &proxy{t: t, addr: nettest.Address(t), to: to}
	p.live()
	t.Cleanup(func() { p.die() })
	return p
}

func (p *proxy) live() {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.listener = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", p.to)
			if err != nil {
				c.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, c, up)
			p.mu.Unlock()
			go pass(c, up)
			go pass(up, c)
		}
	}()
}

func pass(to, from net.Conn) {
	io.Copy(to, from)
	to.Close()
	from.Close()
}

func (p *proxy) die() {
	p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func TestATargetThatIsNotThereIsAnErrorWithinSeconds(t *testing.T) {
	for name, o := range map[string]Options{
		"connection refused":        {Target: nettest.Nobody(t), STARTTLS: 1},
		"no such file or directory": {Target: "unix:" + filepath.Join(t.TempDir(), "nobody")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Connections = 3
			_, err := Run(t.Context(), o, Hooks{})
			if err == nil || !strings.HasSuffix(err.Error(), ": "+name) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// listen accepts for the test and keeps what it accepted; do is called for each.
func listen(t *testing.T, do func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go do(c)
		}
	}()
	return l.Addr().String()
}

func TestATargetThatNeverAnswersIsAnError(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{"plain": {}, "starttls": {STARTTLS: 1}, "tls": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Target = listen(t, func(net.Conn) {})
			o.Connections, o.Timeout = 3, 500*time.Millisecond
			_, err := Run(t.Context(), o, Hooks{})
			// On a busy machine the run may give up before its sessions do.
			if err == nil || !strings.Contains(err.Error(), "0 of 3 sessions") ||
				!strings.Contains(err.Error(), "no reply in time") && !strings.Contains(err.Error(), "no answer") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestAnInterruptedRunSaysSoAndIsVerified(t *testing.T) {
	for name, o := range map[string]Options{"plain": {}, "tls": {STARTTLS: 1}, "warming up": {Warmup: time.Hour}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := newSink(t, sink.Options{TLS: true})
			ctx, cancel := context.WithCancel(t.Context())
			o.Target, o.Connections, o.Duration, o.Pipelining = s.Addr().String(), 4, time.Hour, "group"
			r, err := Run(ctx, o, Hooks{Verifier: registered{s}, Every: 20 * time.Millisecond, View: func(v live.Snapshot) {
				if v.Acknowledged > 50 {
					cancel()
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			checkSums(t, r)
			checkPass(t, r)
			warned := false
			for _, w := range r.Warnings {
				warned = warned || w.Code == "interrupted"
			}
			if r.Ended != "interrupted" || !warned {
				t.Errorf("ended by %s; %v", r.Ended, r.Warnings)
			}
		})
	}
}

func TestInterruptedBeforeAnyAnswerIsAnError(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Run(ctx, Options{Target: listen(t, func(net.Conn) {}), Connections: 2}, Hooks{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestAnOldKernelWillDo(t *testing.T) {
	oldKernel.Store(true)
	defer oldKernel.Store(false)
	r, _ := mustRun(t, Options{Connections: 4, Messages: 100, Rate: 2000, MaxWaiting: 100}, sink.Options{})
	checkAll(t, r, 100)
}

func TestProcessorsAreGivenBack(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	most := 0
	s, _ := newSink(t, sink.Options{})
	o := Options{Target: s.Addr().String(), Connections: 8, Workers: before + 2, Duration: time.Hour}
	ctx, seen := context.WithCancel(t.Context())
	defer seen()
	_, err := Run(ctx, o, Hooks{Every: time.Millisecond, View: func(v live.Snapshot) {
		most = max(most, runtime.GOMAXPROCS(0))
		if v.Phase == "running" && v.Acknowledged > 0 {
			seen()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if after := runtime.GOMAXPROCS(0); after != before || most != before+3 {
		t.Errorf("%d processors before, %d in the run, %d after", before, most, after)
	}
}
