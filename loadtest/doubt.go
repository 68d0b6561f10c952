package loadtest

import (
	"time"

	"github.com/fastedge/fastedge/loadtest/machine"
	"github.com/fastedge/fastedge/loadtest/report"
)

// Where doubt begins.
const (
	busyGenerator = 0.8              // of the cores that its workers can use
	lateTimers    = time.Millisecond // 99th percentile, when it is a quarter of the ack's too
	shortRun      = 10 * time.Second
	fewSamples    = 1000 // 10 beyond the 99th percentile
)

// doubt adds what a careful reader would hold against the figures.
func (r *runner) doubt() {
	rec := r.record
	if rec.Seconds > 0 && r.Hold == 0 {
		busy := r.busy.Seconds() / rec.Seconds / float64(min(r.Workers, max(1, rec.Machine.Cores)))
		if busy > busyGenerator {
			r.warn("generator-cpu", "the generator used %.0f %% of its %d core(s), so it may have set the pace: more --workers, or compare CPU for each message instead of rates", busy*100, r.Workers)
		}
	}
	ack99 := fromMs(r.histogram(phaseAck, good).Ms(99))
	if lag := fromMs(rec.Generator.LagP99Ms); lag > lateTimers && lag > ack99/4 && r.Hold == 0 {
		r.warn("generator-lag", "the generator's timers fired %.1f ms late (p99): latencies below a few milliseconds include its own delay", ms(lag))
	}
	if rec.Ended == "interrupted" {
		r.warn("interrupted", "the run was interrupted after %.1f s", rec.Seconds)
	}
	if rec.Ended == "target gone" {
		r.warn("target-gone", "the target stopped answering: the run ended after %.1f s", rec.Seconds)
	}
	if d := time.Duration(rec.Seconds * float64(time.Second)); d < shortRun*95/100 && r.Hold == 0 {
		r.warn("too-short", "measured for %.1f s only: with less than %v, start-up and chance weigh much", rec.Seconds, shortRun)
	}
	ack := r.histogram(phaseAck, good)
	if n := ack.Count(); !r.SessionsOnly && r.Hold == 0 && n < fewSamples {
		r.warn("few-samples", "%d acknowledgements: a 99th percentile wants %d at least", n, fewSamples)
	}
	if p50 := rec.Machine.SyncP50Ms; p50 > 0 && ack.Count() > 0 && ack.Ms(1) < p50/2 {
		r.warn("faster-than-disk", "one in a hundred 250s came within %.3f ms, and the disk needs %.3f ms for a sync (p50): such a message was not on disk, or not on this disk", ack.Ms(1), p50)
	}
	if r.PID != 0 && machine.SharesCores(r.PID) && rec.Machine.Cores > 0 {
		r.warn("shared-cores", "generator and target may run on the same cores: rates and latencies include their quarrel; pin them (taskset), or compare CPU for each message")
	}
	if rec.Totals.Errors > 0 {
		r.warn("errors", "%d messages ended without a reply", rec.Totals.Errors)
	}
}

func (r *runner) histogram(p phase, o outcome) *report.Histogram {
	if h := r.record.Phase(report.PhaseNames[p], report.OutcomeNames[o]); h != nil {
		return h
	}
	h := report.NewHistogram()
	return &h
}
