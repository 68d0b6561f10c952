package loadtest

import (
	"context"
	"fmt"
	"time"

	"github.com/fastedge/fastedge/loadtest/report"
)

// Limits of a search.
const (
	trials        = 9               // after the first, which looks how fast the target is at all
	trialDuration = 5 * time.Second // unless Options.Duration is shorter
	trialWarmup   = time.Second
)

// FindMax searches the highest rate at which condition holds: a closed loop shows what the target can do at all, then open loops halve
// the interval. A trial also fails when the target did not keep up (acknowledged fewer than 98 % of what was due). The run returned
// is a last one at the rate found, with Options.Duration, and has the trials in Search.
func FindMax(ctx context.Context, o Options, h Hooks, condition report.Condition, told func(report.Trial)) (*report.Run, error) {
	trial := o
	trial.Rate, trial.Ramp, trial.Messages, trial.PID, trial.Disk = 0, nil, 0, 0, ""
	trial.Duration, trial.Warmup = min(trialDuration, max(o.Duration, time.Second)), trialWarmup
	quiet := h
	quiet.Verifier = nil
	first, err := Run(ctx, trial, quiet)
	if err != nil {
		return nil, err
	}
	var search []report.Trial
	low, high := 0.0, first.Rate()*1.1
	if high <= 0 {
		return nil, fmt.Errorf("%s acknowledged nothing in a closed loop", o.Target)
	}
	for range trials {
		if ctx.Err() != nil {
			break
		}
		trial.Rate = (low + high) / 2
		trial.Seed++
		run, err := Run(ctx, trial, quiet)
		if err != nil {
			return nil, err
		}
		t := condition.Check(run)
		kept := float64(run.Totals.Acknowledged) >= 0.98*float64(run.Totals.Offered)
		step := report.Trial{Rate: trial.Rate, Actual: t.Actual, Pass: t.Pass && kept}
		search = append(search, step)
		if told != nil {
			told(step)
		}
		if step.Pass {
			low = trial.Rate
		} else {
			high = trial.Rate
		}
		if low > 0 && (high-low)/high < 0.03 {
			break
		}
	}
	if low == 0 {
		return nil, fmt.Errorf("%s does not hold at any rate that was tried, down to %.3g/s", condition, high)
	}
	o.Rate, o.Ramp, o.Messages = low, nil, 0
	run, err := Run(ctx, o, h)
	if run != nil {
		run.Search = search
	}
	return run, err
}
