package loadtest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fastedge/fastedge/loadtest/report"
)

// Limits of a search.
const (
	trials        = 9               // after the first, which looks how fast the target is at all
	trialDuration = 5 * time.Second // unless Options.Duration is shorter
	trialWarmup   = time.Second
	keptUp        = 0.98 // of what was due must be acknowledged, or the target did not keep up
)

// FindMax searches the highest rate at which condition holds: a closed loop shows what the target can do at all, then open loops halve
// the interval. A trial also fails when the target did not keep up (acknowledged fewer than 98 % of what was due). The run returned
// is a last one at the rate found, with Options.Duration, and has the trials in Search.
func FindMax(ctx context.Context, o Options, h Hooks, condition report.Condition, told func(report.Trial)) (*report.Run, error) {
	if o.Hold > 0 || o.SessionsOnly {
		return nil, &OptionsError{errors.New("find-max sends messages: neither hold nor sessions-only")}
	}
	if o.Rate > 0 || o.Ramp != nil || o.Messages > 0 {
		return nil, &OptionsError{errors.New("find-max finds the rate: neither rate nor ramp; and its runs last for a time: no messages")}
	}
	if h.Verifier != nil {
		// A target that relays needs its next hop during the trials, too.
		if err := h.Verifier.Begin(); err != nil {
			return nil, fmt.Errorf("verifier: %w", err)
		}
	}
	return findMax(ctx, o, h, condition, told, Run)
}

func findMax(ctx context.Context, o Options, h Hooks, condition report.Condition, told func(report.Trial),
	run func(context.Context, Options, Hooks) (*report.Run, error),
) (*report.Run, error) {
	trial := o
	trial.Rate, trial.Ramp, trial.Messages, trial.Disk = 0, nil, 0, ""
	if condition.Metric != "cpu" && condition.Metric != "rss" {
		trial.PID = 0 // sampling waits until the target is quiet
	}
	trial.Duration, trial.Warmup = trialDuration, trialWarmup
	if o.Duration > 0 && o.Duration < trialDuration {
		trial.Duration, trial.Warmup = o.Duration, min(trialWarmup, o.Duration/2)
	}
	quiet := h
	quiet.Verifier = nil
	first, err := run(ctx, trial, quiet)
	if err != nil {
		return nil, err
	}
	var search []report.Trial
	low, high := 0.0, first.Rate()*1.1
	if high <= 0 {
		return nil, fmt.Errorf("%s acknowledged nothing in a closed loop", o.Target)
	}
	for range trials {
		trial.Rate = min((low+high)/2, MaxRate)
		trial.Seed++
		tried, err := run(ctx, trial, quiet)
		if err == nil {
			err = ctx.Err() // a trial cut short says nothing
		}
		if err != nil {
			return nil, err
		}
		t := condition.Check(tried)
		step := report.Trial{Rate: trial.Rate, Actual: t.Actual, Pass: t.Pass}
		if acked, due := float64(tried.Totals.Acknowledged), float64(tried.Totals.Offered); acked < keptUp*due {
			step.Pass, step.Kept = false, acked/due
		}
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
		return nil, fmt.Errorf("%s does not hold at any rate that was tried, down to %.3g/s, with %v%% of what is due acknowledged", condition, high, 100*keptUp)
	}
	o.Rate, o.Ramp, o.Messages = low, nil, 0
	last, err := run(ctx, o, h)
	if last != nil {
		last.Search, last.FindMax = search, condition.Text
	}
	return last, err
}
