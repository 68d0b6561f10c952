package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	// MaxRunBytes is the longest run.json that Read takes. A day at one Second a second is 40 MiB.
	MaxRunBytes = 64 << 20

	// maxPhases bounds memory: a histogram takes up to 450 kB. PhaseNames × OutcomeNames are 48.
	maxPhases = 64
)

// Write writes r as run.json. Lists that are always there are written as [] when they are empty, never as null.
func Write(w io.Writer, r *Run) error {
	c := *r
	if c.Schema == 0 {
		c.Schema = Schema
	}
	c.Target.EHLO = notNull(c.Target.EHLO)
	c.Phases = notNull(c.Phases)
	c.Replies = notNull(c.Replies)
	c.Series = notNull(c.Series)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(&c); err != nil {
		return fmt.Errorf("report: write run: %w", err)
	}
	return nil
}

func notNull[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Read reads a run.json. Fields it does not know are passed over; a higher schema, a file of more than MaxRunBytes and anything after
// the object are refused.
func Read(r io.Reader) (*Run, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxRunBytes+1))
	if err != nil {
		return nil, fmt.Errorf("report: read run: %w", err)
	}
	if len(text) > MaxRunBytes {
		return nil, fmt.Errorf("report: read run: longer than %d MiB", MaxRunBytes>>20)
	}
	// The schema first: a later one may give the same names other types.
	var head struct {
		Schema int               `json:"schema"`
		Phases []json.RawMessage `json:"phases"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("report: read run: %w", err)
	}
	switch {
	case head.Schema < 1:
		return nil, errors.New("report: read run: not the record of a load test: it has no schema")
	case head.Schema > Schema:
		return nil, fmt.Errorf("report: read run: schema %d is of a later version; this one knows %d", head.Schema, Schema)
	case len(head.Phases) > maxPhases:
		return nil, fmt.Errorf("report: read run: %d phases; at most %d", len(head.Phases), maxPhases)
	}
	run := new(Run)
	if err := json.Unmarshal(text, run); err != nil {
		return nil, fmt.Errorf("report: read run: %w", err)
	}
	return run, nil
}

// Phase returns the distribution of one phase and outcome, or nil when it has no samples. The methods Count, Ms, MinMs, MaxMs and
// MeanMs may be called on nil. r owns what is returned.
func (r *Run) Phase(name, outcome string) *Histogram {
	for i := range r.Phases {
		if p := &r.Phases[i]; p.Name == name && p.Outcome == outcome && p.Histogram.Count() > 0 {
			return &p.Histogram
		}
	}
	return nil
}

// Rate is messages acknowledged a second, over the measured part.
func (r *Run) Rate() float64 {
	if r.Seconds <= 0 {
		return 0
	}
	return float64(r.Totals.Acknowledged) / r.Seconds
}
