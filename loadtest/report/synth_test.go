package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// synthetic is a plausible run: latencies are log-normal with a pause now and then, the rate wavers. The same seed gives the same run,
// which the caller may change, except for its histograms.
func synthetic(seed uint64, loop string) *Run {
	key := fmt.Sprint(seed, loop)
	made, ok := synthesised.Load(key)
	if !ok {
		made, _ = synthesised.LoadOrStore(key, synthesise(seed, loop))
	}
	r := *made.(*Run)
	server, verdict := *r.Server, *r.Verdict
	r.Server, r.Verdict = &server, &verdict
	r.Phases, r.Series = slices.Clone(r.Phases), slices.Clone(r.Series)
	r.Replies, r.Thresholds = slices.Clone(r.Replies), slices.Clone(r.Thresholds)
	return &r
}

var synthesised sync.Map // runs by seed and loop

func synthesise(seed uint64, loop string) *Run {
	g := rand.New(rand.NewPCG(seed, 42))
	rate, seconds := 4997.0, 60
	ackP50 := 1.4
	if loop == "closed" {
		rate, seconds, ackP50 = 8123, 30, 9.1
	}
	rate *= 1 + 0.03*g.NormFloat64()
	r := &Run{
		Schema: Schema, Tool: "fastedge loadtest 0.1.0", ID: "5f0c21aa9be4d713", Label: "postfix",
		Started: time.Date(2026, 11, 22, 14, 0, 0, 0, time.UTC),
		Parameters: Parameters{Protocol: "smtp", Loop: loop, Connections: 200, PerConnection: 10, Duration: "60s", Warmup: "5s", Profile: "mixed",
			Size: "4KiB", Recipients: "1", Pipelining: "group", BDAT: 0.3, STARTTLS: 0.6, Workers: 2},
		Machine: Machine{Date: "2026-11-22", Host: "c0ffee12", CPU: "AMD EPYC 7B13", Cores: 4, Kernel: "Linux 6.1.0", MemoryMiB: 15990,
			Go: "go1.26.8", Platform: "linux/amd64", FileSystem: "ext4", SyncP50Ms: 0.61, SyncP99Ms: 2.4},
		Target: Target{Address: "127.0.0.1:2525", Banner: "220 mx.example.test ESMTP Postfix (Debian/GNU)",
			EHLO: []string{"PIPELINING", "SIZE 10240000", "STARTTLS", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8", "CHUNKING"}},
		Seconds: float64(seconds), Ended: "duration",
		Generator: Usage{CPUSeconds: 0.38 * float64(seconds), PeakRSS: 60 << 20, ContextSwitches: 120345, Processes: 1, LagP99Ms: 0.21},
	}
	phases := map[string]*Histogram{}
	record := func(name, outcome string, ms float64) {
		key := name + "/" + outcome
		if phases[key] == nil {
			h := NewHistogram()
			phases[key] = &h
		}
		phases[key].Record(time.Duration(ms * float64(time.Millisecond)))
	}
	logNormal := func(median, sigma float64) float64 { return median * math.Exp(sigma*g.NormFloat64()) }
	t := &r.Totals
	for second := range seconds {
		pause := 1.0
		if second%23 == 17 {
			pause = 4
		}
		s := Second{At: float64(second + 1)}
		perSecond := NewHistogram()
		offered := int64(rate * (1 + 0.02*g.NormFloat64()))
		if loop == "closed" {
			offered = int64(float64(offered) / math.Sqrt(pause))
		}
		s.Offered = offered
		for i := range offered {
			ack := logNormal(ackP50*math.Sqrt(pause), 0.6)
			if g.Float64() < 0.0008*pause {
				ack += 12 + 30*g.Float64()
			}
			switch d := g.Float64(); {
			case d < 0.0006*pause*pause:
				s.Deferred++
				record("rcpt", "4xx", logNormal(0.4, 0.5))
				continue
			case d > 0.9998:
				s.Refused++
				record("rcpt", "5xx", logNormal(0.3, 0.5))
				continue
			}
			s.Acknowledged++
			perSecond.Record(time.Duration(ack * 1e6))
			record("ack", "2xx", ack)
			record("transaction", "2xx", ack+logNormal(0.9*pause, 0.4))
			record("group", "2xx", logNormal(0.35, 0.5))
			if i%10 == 0 {
				t.Sessions++
				record("connect", "2xx", logNormal(0.06, 0.3))
				record("banner", "2xx", logNormal(0.5, 0.4))
				record("ehlo", "2xx", logNormal(0.2, 0.4))
				record("tls", "2xx", logNormal(2.1, 0.3))
				record("session", "2xx", 10*ack+logNormal(4, 0.3))
			}
		}
		s.InFlight, s.AckP50Ms, s.AckP99Ms = 90+g.Int64N(40), perSecond.Ms(50), perSecond.Ms(99)
		s.ServerCPU, s.ServerRSS = 1.5+0.1*g.NormFloat64(), int64(132<<20)+int64(second)*160<<10
		r.Series = append(r.Series, s)
		t.Offered += s.Offered
		t.Acknowledged += s.Acknowledged
		t.Deferred += s.Deferred
		t.Refused += s.Refused
	}
	t.Bytes = t.Acknowledged * 4096
	for _, name := range PhaseNames {
		for _, outcome := range OutcomeNames {
			if h := phases[name+"/"+outcome]; h != nil {
				r.Phases = append(r.Phases, Phase{Name: name, Outcome: outcome, Histogram: *h})
			}
		}
	}
	r.Replies = []Reply{
		{Phase: "rcpt", Text: "450 4.2.1 <u17@example.test>: Recipient address rejected: try later", Count: t.Deferred},
		{Phase: "rcpt", Text: "550 5.1.1 <u99@example.test>: Recipient address rejected: User unknown", Count: t.Refused},
	}
	r.Server = &Usage{CPUSeconds: 1.5 * float64(seconds), PeakRSS: 142 << 20, ContextSwitches: 1234567, Processes: 27}
	r.Server.CPUPerThousand = r.Server.CPUSeconds / float64(t.Acknowledged) * 1000
	r.Verdict = &Verdict{Verifier: "sink 127.0.0.1:2526", Acknowledged: t.Acknowledged, Refused: t.Refused + t.Deferred, Received: t.Acknowledged, Pass: true}
	for _, text := range []string{"ack.p99<50ms", "lost==0", "rate>=4000/s"} {
		c, err := ParseThreshold(text)
		if err != nil {
			panic(err)
		}
		r.Thresholds = append(r.Thresholds, c.Check(r))
	}
	return r
}

// troubled is a run in which nearly everything went wrong, against a target that writes markup and escape sequences.
func troubled() *Run {
	r := synthetic(7, "open")
	r.Label = `<img src=x onerror="alert(1)">`
	r.Parameters.Rate, r.Parameters.Arrivals = 6000, "poisson"
	r.Target.Banner = "220 </title><script>alert(1)</script> \x1b[31mred\x1b[0m"
	r.Target.EHLO = []string{"SIZE 1000", "<img src=x onerror=alert(2)>", "\"'`&"}
	r.Ended = "target gone"
	for i := range r.Series {
		s := &r.Series[i]
		s.Offered = 6000
		if i > 30 {
			s.Errors = int64(10 * (i - 30))
			s.Dropped = 300
			s.Acknowledged -= s.Errors + s.Dropped
			s.Waiting = 500
			r.Totals.Errors += s.Errors
			r.Totals.Dropped += s.Dropped
			r.Totals.Acknowledged -= s.Errors + s.Dropped
		}
	}
	r.Totals.Offered = 360000
	r.Totals.Waited = 51234
	r.Replies = append(r.Replies, Reply{Phase: "data", Text: `554 5.7.1 <img src=x onerror=alert(3)> "spam" & 'eggs'`, Count: 12},
		Reply{Phase: "ack", Text: "connection: reset by peer", Count: 9}, Reply{Phase: "connect", Text: "connection: refused", Count: 4},
		Reply{Phase: "ehlo", Text: "421 4.7.0 Too many connections", Count: 3}, Reply{Phase: "", Text: "other", Count: 2})
	r.Verdict = &Verdict{Verifier: "spool:/var/spool/x", Acknowledged: r.Totals.Acknowledged, Received: r.Totals.Acknowledged - 3, Unknown: 41, Lost: 3, Duplicates: 1,
		Repeats: 12, Phantom: 2, Corrupt: 1, Altered: 17, Examples: []string{"lost: sequence 4711", "corrupt: sequence 17 <b>bold</b>"}}
	r.Thresholds = nil
	for _, text := range []string{"ack.p99<2ms", "lost==0", "session.max<10s", "rate>=18M/h", "rss<64MiB", "4xx<0.5%", "auth.p50<1ms"} {
		c, err := ParseThreshold(text)
		if err != nil {
			panic(err)
		}
		r.Thresholds = append(r.Thresholds, c.Check(r))
	}
	r.FindMax = "ack.p99<20ms"
	r.Search = []Trial{
		{Rate: 1000, Actual: 4.1, Pass: true}, {Rate: 2000, Actual: 4.4, Pass: true}, {Rate: 4000, Actual: 5.2, Pass: true},
		{Rate: 8000, Actual: 80}, {Rate: 6000, Actual: 31}, {Rate: 5000, Actual: 8.8, Pass: true},
	}
	r.Warnings = []Warning{
		{"generator-cpu", "the generator used 91% of its cores"},
		{"faster-than-disk", "ack p50 1.40 ms is shorter than a synced write of 4 KiB, 2.00 ms"},
		{"some-new-code", "something <i>new</i>"},
	}
	return r
}

// idle holds connections, and has neither messages nor a series.
func idle() *Run {
	h := NewHistogram()
	for i := range 5000 {
		h.Record(time.Duration(40+i%30) * time.Microsecond)
	}
	return &Run{Schema: Schema, Tool: "fastedge loadtest", ID: "00", Started: time.Date(2026, 11, 22, 14, 0, 0, 0, time.UTC),
		Parameters: Parameters{Protocol: "smtp", Loop: "closed", Connections: 5000, Idle: true}, Seconds: 5, Ended: "duration",
		Totals: Totals{Sessions: 0}, Phases: []Phase{{"connect", "2xx", h}},
		Idle:   &Idle{Connections: 5000, RSSBefore: 20 << 20, RSSAfter: 96 << 20, PSSBefore: 18 << 20, PSSAfter: 93 << 20},
		Server: &Usage{CPUSeconds: 0.21, PeakRSS: 96 << 20, ContextSwitches: 1, Processes: 1}}
}
