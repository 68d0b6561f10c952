package loadtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fastedge/fastedge/loadtest/ledger"
	"github.com/fastedge/fastedge/loadtest/live"
	"github.com/fastedge/fastedge/loadtest/machine"
	"github.com/fastedge/fastedge/loadtest/report"
)

// How long a run waits for what.
const (
	connectLimit = 10 * time.Second // for the first session; then the target counts as not there
	goneLimit    = 15 * time.Second // without any connection or reply; then it counts as gone
	drainLimit   = 30 * time.Second // for the last replies
	quietLimit   = 20 * time.Second // for the target to have nothing to do, before and after
)

// Verifier knows what has arrived.
type Verifier interface {
	// Name is for the report.
	Name() string
	// Begin is called before the first message; once more for the last run of FindMax.
	Begin() error
	// Receipts waits until what was acknowledged has arrived, or no more comes.
	Receipts(ctx context.Context, book *ledger.Book) (*ledger.Receipts, error)
	Close() error
}

// Hooks are what a run calls while it lasts, from its own goroutine.
type Hooks struct {
	View     func(live.Snapshot)
	Every    time.Duration // between two calls of View; default a second
	Verifier Verifier      // nil: nothing is verified
	Tool     string        // name and version, for the report
}

// OptionsError says that Options are wrong, or that their target is not one to test: nothing was done.
type OptionsError struct{ Err error }

func (e *OptionsError) Error() string { return e.Err.Error() }
func (e *OptionsError) Unwrap() error { return e.Err }

// Run applies one load and returns what was measured. When ctx ends, the run ends early and its report says so. An error means that there is
// nothing to report: the options are wrong, the target is not there, or this machine cannot apply the load.
func Run(ctx context.Context, o Options, h Hooks) (*report.Run, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, &OptionsError{err}
	}
	t, err := resolve(&o)
	if err != nil {
		return nil, &OptionsError{err}
	}
	if err := raiseDescriptorLimit(o.Connections + o.badClients()); err != nil {
		return nil, err
	}
	if h.Every <= 0 {
		h.Every = time.Second
	}
	r := &runner{Options: o, Hooks: h, plan: newPlan(o), control: newControl()}
	r.record = &report.Run{
		Schema: report.Schema, Tool: h.Tool, ID: r.plan.runText, Label: o.Label, Started: time.Now().UTC().Truncate(time.Second),
		Parameters: o.parameters(), Machine: machine.Facts(), Target: report.Target{Address: o.Target},
	}
	if o.Disk != "" {
		p50, p99, fs, err := machine.SyncTimes(o.Disk, 200)
		if err != nil {
			return nil, fmt.Errorf("disk: %w", err)
		}
		m := &r.record.Machine
		m.FileSystem, m.SyncP50Ms, m.SyncP99Ms = fs, ms(p50), ms(p99)
	}
	if h.Verifier != nil {
		if err := h.Verifier.Begin(); err != nil {
			return nil, fmt.Errorf("verifier: %w", err)
		}
	}
	if o.PID != 0 {
		if r.tree, err = machine.Watch(o.PID); err != nil {
			return nil, fmt.Errorf("pid: %w", err)
		}
		r.settle(ctx)
	}
	if err := r.start(t); err != nil {
		return nil, err
	}
	defer releaseProcessors(len(r.workers))
	defer r.control.cut()
	if err := r.measure(ctx); err != nil {
		return nil, err
	}
	r.finish(ctx)
	return r.record, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// runner is a run underway. Its fields belong to the goroutine of Run.
type runner struct {
	Options
	Hooks
	plan    *plan
	control *control
	record  *report.Run

	tallies []*tally
	workers []*worker
	bad     *badClients
	done    chan struct{} // all drivers have ended

	tree        *machine.Tree
	before      machine.Sample // of the target, at the start of the measured part
	last        machine.Sample
	lastAt      time.Time
	peak        int64
	peakProcs   int
	own         machine.Usage // of this process, at the start of the measured part
	busy        time.Duration // CPU time that it used in the measured part
	idleBefore  [2]int64      // RSS and PSS
	measuredAt  time.Time     // start of the measured part
	phaseAt     time.Time     // start of what is shown
	shown       live.Snapshot
	lastTotals  report.Totals
	lastViewed  report.Totals
	nextView    time.Time
	nextSecond  time.Time
	lastSeconds float64
}

// settle waits until the target has nothing to do.
func (r *runner) settle(ctx context.Context) {
	if err := r.tree.WaitQuiet(ctx, quietLimit); errors.Is(err, machine.ErrBusy) {
		r.warn("target-busy", "the target was busy though nothing was asked of it: its CPU figures include something else")
	}
}

func (r *runner) warn(code, format string, args ...any) {
	if !slices.ContainsFunc(r.record.Warnings, func(w report.Warning) bool { return w.Code == code }) {
		r.record.Warnings = append(r.record.Warnings, report.Warning{Code: code, Text: fmt.Sprintf(format, args...)})
	}
}

// start makes the drivers and lets them connect.
func (r *runner) start(t target) error {
	n := r.Connections
	slow := int(math.Round(r.SlowClients * float64(n)))
	secure := int(math.Round(r.STARTTLS * float64(n)))
	if r.TLS {
		secure = n
	}
	secure = min(secure, n-slow)
	plain := n - slow - secure
	if r.Hold > 0 && r.tree != nil {
		r.idleBefore[0], r.idleBefore[1], _ = r.tree.Memory()
	}
	var drivers []func()
	first := 0
	for i := range min(r.Workers, plain) {
		share := plain/min(r.Workers, plain) + btoi(i < plain%min(r.Workers, plain))
		w, err := newWorker(r.plan, r.control, t, first, share)
		if err != nil {
			for _, w := range r.workers {
				syscall.Close(w.ep)
			}
			return err
		}
		first += share
		r.tallies = append(r.tallies, w.tally)
		r.workers = append(r.workers, w)
		drivers = append(drivers, w.run)
	}
	for _, part := range []struct {
		n    int
		slow bool
	}{{secure, false}, {slow, true}} {
		if part.n > 0 {
			g := newGroup(r.plan, r.control, t, first, part.n, part.slow)
			first += part.n
			r.tallies = append(r.tallies, g.tally)
			drivers = append(drivers, g.run)
		}
	}
	if bad := r.badClients(); bad > 0 {
		r.bad = newBadClients(r.plan, r.control, t, bad)
		r.tallies = append(r.tallies, r.bad.tally)
		drivers = append(drivers, r.bad.run)
	}
	holdProcessors(len(r.workers))
	var all sync.WaitGroup
	for _, d := range drivers {
		all.Go(d)
	}
	r.done = make(chan struct{})
	go func() { all.Wait(); close(r.done) }()
	return nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// measure goes through connecting, warm-up, the measured part, and the wait for the last replies.
func (r *runner) measure(ctx context.Context) error {
	if err := r.connect(ctx); err != nil {
		r.control.cut()
		<-r.done
		return err
	}
	if r.Warmup > 0 {
		r.control.flowing.Store(true)
		r.phase("warm-up", r.Warmup)
		r.watch(ctx, time.After(r.Warmup))
	}
	r.sample(true)
	r.own = machine.Self()
	r.measuredAt = time.Now()
	r.begin()
	r.nextSecond = r.measuredAt.Add(time.Second)
	r.lastTotals = report.Totals{}
	var timer <-chan time.Time
	if r.Duration > 0 {
		timer = time.After(r.Duration)
	}
	r.phase("running", r.Duration)
	r.record.Ended = r.watch(ctx, timer)
	r.record.Seconds = time.Since(r.measuredAt).Seconds()
	r.busy = machine.Self().CPU() - r.own.CPU()
	if now := time.Now(); !now.Before(r.nextSecond.Add(-time.Second / 10)) {
		r.second(now) // the tick came a little too late for it
	}

	limit := time.After(drainLimit)
	if r.record.Ended != "messages" {
		r.take()
		r.control.stop() // else what waits is still sent: it is of the messages asked for
	}
	if r.Hold > 0 {
		r.record.Idle = r.idle()
	}
	r.phase("draining", 0)
	if r.record.Ended == "target gone" {
		limit = time.After(time.Second)
	}
	for waiting := true; waiting; {
		select {
		case <-r.done:
			waiting = false
		case <-limit:
			r.control.cut()
		case <-time.After(100 * time.Millisecond):
			r.view()
		}
	}
	if r.record.Ended == "messages" {
		// Until the last message: what comes behind it is closing.
		last := time.Duration(look(r.tallies, false, false).last)
		r.record.Seconds = max(last-r.measuredAt.Sub(r.control.began), time.Microsecond).Seconds()
		r.take()
	}
	for _, w := range r.workers {
		if w.err != nil {
			return w.err
		}
	}
	return nil
}

// begin starts the measured part. All tallies stand still meanwhile, so that what is asked for is counted neither twice nor less.
func (r *runner) begin() {
	for _, t := range r.tallies {
		t.mu.Lock()
		defer t.mu.Unlock()
	}
	left := r.Messages
	if r.Warmup > 0 || r.SessionsOnly {
		for _, t := range r.tallies {
			t.restart()
			left -= t.totals.Offered
		}
	}
	if r.Messages > 0 {
		r.control.left.Store(left)
		r.control.limited.Store(true)
	}
	r.control.flowing.Store(true)
}

// take writes down what was counted up to now.
func (r *runner) take() {
	s := look(r.tallies, false, true)
	r.record.Totals, r.record.Phases, r.record.Replies = s.totals, s.phaseList(), s.replyList()
	r.record.Generator.LagP99Ms = float64(s.lag.ValueAtPercentile(99)) / 1000
}

// connect waits for the first sessions; in an open loop and while holding, for all of them.
func (r *runner) connect(ctx context.Context) error {
	r.phase("connecting", 0)
	limit := min(connectLimit, max(2*r.Timeout, time.Second))
	wanted := int64(1)
	if r.Rate > 0 || r.Ramp != nil || r.Hold > 0 {
		wanted = int64(r.Connections) - int64(math.Round(r.SlowClients*float64(r.Connections)))
	}
	begin := time.Now()
	for {
		s := look(r.tallies, false, true)
		waited := time.Since(begin)
		switch {
		case s.ready >= max(1, wanted), r.SessionsOnly && s.totals.Sessions > 0:
			return nil
		case waited > limit && s.ready > 0 && r.Hold == 0:
			r.warn("not-all-connected", "only %d of %d connections were there after %v", s.ready, r.Connections, limit)
			return nil
		case waited > 6*limit || waited > limit && s.ready == 0:
			why := "no answer"
			if list := s.replyList(); len(list) > 0 {
				why = list[0].Text
			}
			return fmt.Errorf("%s: %d of %d sessions after %v: %s", r.Target, s.ready, r.Connections, waited.Round(time.Second), why)
		case waited > 2*time.Second && s.ready == 0 && s.open == 0:
			if list := s.replyList(); len(list) > 0 && list[0].Phase == report.PhaseNames[phaseConnect] {
				return fmt.Errorf("%s: %s", r.Target, strings.TrimPrefix(list[0].Text, "connection: "))
			}
		}
		for _, w := range r.workers {
			w.tally.mu.Lock()
			err := w.err
			w.tally.mu.Unlock()
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.done:
			return nil
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// watch lets time pass until end, the last message, or trouble, and says which: "duration", "messages", "interrupted", "target gone".
func (r *runner) watch(ctx context.Context, end <-chan time.Time) string {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	alive := time.Now()
	var progress int64
	for {
		select {
		case <-end:
			return "duration"
		case <-r.control.exhausts:
			return "messages"
		case <-r.done:
			return "messages"
		case <-ctx.Done():
			return "interrupted"
		case now := <-tick.C:
			r.view()
			if !r.nextSecond.IsZero() && !now.Before(r.nextSecond) {
				r.second(now)
			}
			s := look(r.tallies, false, false)
			if p := s.totals.Acknowledged + s.totals.Deferred + s.totals.Refused + s.ready; p != progress || r.Hold > 0 || s.open > 0 && s.inFlight == 0 {
				progress, alive = p, now
			}
			if now.Sub(alive) > goneLimit+r.Timeout/4 {
				return "target gone"
			}
		}
	}
}

// sample looks at the target's processes.
func (r *runner) sample(first bool) {
	if r.tree == nil {
		return
	}
	s, _ := r.tree.Sample() // a target that is gone shows elsewhere
	if first {
		r.before = s
	}
	r.last, r.lastAt = s, time.Now()
	r.peak, r.peakProcs = max(r.peak, s.RSS), max(r.peakProcs, s.Processes)
}

// second closes one second of the series.
func (r *runner) second(now time.Time) {
	s := look(r.tallies, true, false)
	d := s.totals
	sub(&d, &r.lastTotals)
	line := report.Second{
		At: math.Round(now.Sub(r.measuredAt).Seconds()*10) / 10, Offered: d.Offered, Acknowledged: d.Acknowledged, Deferred: d.Deferred,
		Refused: d.Refused, Errors: d.Errors, Dropped: d.Dropped, InFlight: s.inFlight, Waiting: s.waiting,
	}
	if s.second.TotalCount() > 0 {
		line.AckP50Ms = float64(s.second.ValueAtPercentile(50)) / 1000
		line.AckP99Ms = float64(s.second.ValueAtPercentile(99)) / 1000
	}
	if r.tree != nil {
		cpu, at := r.last.CPU(), r.lastAt
		r.sample(false)
		line.ServerCPU = math.Round((r.last.CPU()-cpu).Seconds()/r.lastAt.Sub(at).Seconds()*1000) / 1000
		line.ServerRSS = r.last.RSS
	}
	r.lastTotals = s.totals
	r.record.Series = append(r.record.Series, line)
	r.shown.AckP50, r.shown.AckP99 = fromMs(line.AckP50Ms), fromMs(line.AckP99Ms)
	r.shown.ServerCPU, r.shown.ServerRSS = line.ServerCPU, line.ServerRSS
	r.nextSecond = r.nextSecond.Add(time.Second)
	if now.After(r.nextSecond) {
		r.nextSecond = now.Add(time.Second) // the machine slept
	}
}

func fromMs(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }

func sub(from, t *report.Totals) {
	n := *t
	n.Offered, n.Acknowledged, n.Deferred, n.Refused = -n.Offered, -n.Acknowledged, -n.Deferred, -n.Refused
	n.Errors, n.Waited, n.Dropped, n.Sessions, n.Bytes, n.BadClients = -n.Errors, -n.Waited, -n.Dropped, -n.Sessions, -n.Bytes, -n.BadClients
	add(from, &n)
}

// phase tells the view what goes on, and how long it will.
func (r *runner) phase(name string, left time.Duration) {
	r.shown = live.Snapshot{Phase: name, Left: left, Connections: r.Connections}
	r.phaseAt, r.nextView, r.lastViewed = time.Now(), time.Time{}, report.Totals{}
	r.lastSeconds = 0
	if name == "running" {
		r.lastViewed = look(r.tallies, false, false).totals
	}
}

// view shows how it stands.
func (r *runner) view() {
	now := time.Now()
	if r.View == nil || now.Before(r.nextView) {
		return
	}
	r.nextView = now.Add(r.Every)
	s := look(r.tallies, false, false)
	v := &r.shown
	elapsed := now.Sub(r.phaseAt)
	if d := elapsed.Seconds() - r.lastSeconds; d > 0 && r.lastSeconds > 0 || v.Phase == "running" && d > 0.5 {
		v.Rate = float64(s.totals.Acknowledged-r.lastViewed.Acknowledged) / d
		if r.Rate > 0 || r.Ramp != nil {
			v.Offered = float64(s.totals.Offered-r.lastViewed.Offered) / d
		}
	}
	r.lastSeconds = elapsed.Seconds()
	v.Left = max(0, v.Left-(elapsed-v.Elapsed))
	v.Elapsed, v.Progress = elapsed, -1
	switch {
	case v.Left > 0:
		v.Progress = elapsed.Seconds() / (elapsed + v.Left).Seconds()
	case r.Messages > 0:
		v.Progress = float64(s.totals.Acknowledged+s.totals.Refused+s.totals.Deferred+s.totals.Errors) / float64(r.Messages)
		if r.SessionsOnly {
			v.Progress = float64(s.totals.Sessions) / float64(r.Messages)
		}
	}
	v.Acknowledged, v.Deferred, v.Refused, v.Errors, v.Dropped = s.totals.Acknowledged, s.totals.Deferred, s.totals.Refused, s.totals.Errors, s.totals.Dropped
	v.InFlight, v.Waiting = int(s.inFlight), int(s.waiting)
	own := machine.Self()
	if elapsed > 0 {
		v.GeneratorCPU = (own.CPU() - r.own.CPU()).Seconds() / elapsed.Seconds()
	}
	r.lastViewed = s.totals
	r.View(*v)
}

// idle is what the target's memory has grown by while connections were only held.
func (r *runner) idle() *report.Idle {
	if r.tree == nil {
		return nil
	}
	i := &report.Idle{Connections: int(look(r.tallies, false, false).open), RSSBefore: r.idleBefore[0], PSSBefore: r.idleBefore[1]}
	i.RSSAfter, i.PSSAfter, _ = r.tree.Memory()
	return i
}

// finish is what comes after the load: what it used, what arrived, what to doubt.
func (r *runner) finish(ctx context.Context) {
	own := machine.Self()
	final := look(r.tallies, false, false)
	acked := final.totals.Acknowledged
	if r.SessionsOnly {
		acked = final.totals.Sessions
	}
	g := &r.record.Generator
	g.CPUSeconds = (own.CPU() - r.own.CPU()).Seconds()
	g.PeakRSS, g.Processes = own.PeakRSS, 1
	g.ContextSwitches = own.ContextSwitches - r.own.ContextSwitches
	if acked > 0 {
		g.CPUPerThousand = g.CPUSeconds / float64(acked) * 1000
	}
	if r.tree != nil {
		r.settle(ctx)
		r.sample(false)
		u := &report.Usage{
			CPUSeconds: (r.last.CPU() - r.before.CPU()).Seconds(), PeakRSS: r.peak, Processes: r.peakProcs,
			ContextSwitches: r.last.ContextSwitches - r.before.ContextSwitches,
		}
		if acked > 0 {
			u.CPUPerThousand = u.CPUSeconds / float64(acked) * 1000
		}
		r.record.Server = u
	}
	for _, t := range r.tallies {
		if t.banner != "" && r.record.Target.Banner == "" {
			r.record.Target.Banner, r.record.Target.EHLO = t.banner, t.words
		}
		for word := range t.notOffered {
			r.warn("not-offered-"+strings.ToLower(word), "the target does not offer %s, so it was not used", word)
		}
	}
	if r.Verifier != nil {
		r.phase("verifying", 0)
		r.view()
		// Also after an interruption: what was acknowledged must still arrive.
		r.verify(context.WithoutCancel(ctx))
	}
	r.doubt()
}

// verify asks the verifier, and judges.
func (r *runner) verify(ctx context.Context) {
	receipts, err := r.Verifier.Receipts(ctx, r.plan.book)
	if err != nil {
		r.record.Verdict = &report.Verdict{Examples: []string{"could not verify: " + err.Error()}}
	} else {
		v := ledger.Judge(r.plan.book, receipts)
		r.record.Verdict = &v
	}
	r.record.Verdict.Verifier = r.Verifier.Name()
}

// badClients is how many connections misbehave beside the others.
func (o *Options) badClients() int { return int(math.Ceil(o.BadClients * float64(o.Connections))) }

// parameters is what the report says was asked for.
func (o *Options) parameters() report.Parameters {
	p := report.Parameters{
		Protocol: o.Protocol, Loop: "closed", Connections: o.Connections, PerConnection: o.PerConnection, Messages: o.Messages,
		Profile: o.Profile, Size: o.Size.String(), Recipients: o.Recipients.String(), Pipelining: o.Pipelining, BDAT: o.BDAT,
		STARTTLS: o.STARTTLS, ImplicitTLS: o.TLS, SlowClients: o.SlowClients, BadClients: o.BadClients,
		SessionsOnly: o.SessionsOnly, Idle: o.Hold > 0, Workers: o.Workers,
	}
	if o.Duration > 0 {
		p.Duration = o.Duration.String()
	}
	if o.Warmup > 0 {
		p.Warmup = o.Warmup.String()
	}
	if o.Rate > 0 || o.Ramp != nil {
		p.Loop, p.Rate, p.Arrivals = "open", o.Rate, "constant"
		if o.Poisson {
			p.Arrivals = "poisson"
		}
		if o.Ramp != nil {
			p.Rate, p.Ramp = 0, o.Ramp.String()
		}
	}
	if o.Auth != nil {
		p.Auth = cmp.Or(o.Auth.Mechanism, "auto")
	}
	var sources []string
	for _, s := range o.Sources {
		sources = append(sources, s.String())
	}
	p.Sources = strings.Join(sources, ",")
	if o.Proxy > 0 {
		p.Proxy = fmt.Sprintf("v%d", o.Proxy)
	}
	return p
}
