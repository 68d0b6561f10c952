package main

import (
	"encoding/json"
	"fmt"
	"os"
)

// figures are what is used of one load. Durations carry their unit in the name.
type figures struct {
	Messages   int     `json:"messages"` // acknowledged with 2yz after the message data
	Sessions   int     `json:"sessions"` // ended with QUIT
	Errors     int     `json:"errors"`   // messages refused, deferred or dropped, and broken connections
	FirstError string  `json:"first_error,omitempty"`
	Seconds    float64 `json:"seconds"`
	PerSecond  float64 `json:"per_second"` // messages, or sessions where there were no messages
	AckP50Ms   float64 `json:"ack_p50_ms"` // last octet of message data written to its reply read
	AckP99Ms   float64 `json:"ack_p99_ms"`
	CPUMicros  float64 `json:"gen_cpu_us"` // the generator's, for each message or session
}

// loadtestRun is the part of a record of fastedge loadtest (loadtest/report/run.go) that is used here.
type loadtestRun struct {
	Schema  int     `json:"schema"`
	Seconds float64 `json:"seconds"`
	Totals  struct {
		Acknowledged int `json:"acknowledged"`
		Deferred     int `json:"deferred"`
		Refused      int `json:"refused"`
		Errors       int `json:"errors"`
		Dropped      int `json:"dropped"`
		Sessions     int `json:"sessions"`
	} `json:"totals"`
	Phases []struct {
		Name      string `json:"name"`
		Outcome   string `json:"outcome"`
		Histogram struct {
			P50 float64 `json:"p50"`
			P99 float64 `json:"p99"`
		} `json:"histogram"`
	} `json:"phases"`
	Replies []struct {
		Text string `json:"text"`
	} `json:"replies"`
	Generator struct {
		CPUSeconds float64 `json:"cpu_seconds"`
	} `json:"generator"`
}

// figures reduces a run. It refuses one whose fields may mean something else.
func (r *loadtestRun) figures() (figures, error) {
	if r.Schema != 1 {
		return figures{}, fmt.Errorf("the run has schema %d, this program knows 1", r.Schema)
	}
	t := r.Totals
	f := figures{Messages: t.Acknowledged, Sessions: t.Sessions, Seconds: r.Seconds, Errors: t.Deferred + t.Refused + t.Errors + t.Dropped}
	if f.Errors > 0 && len(r.Replies) > 0 {
		f.FirstError = r.Replies[0].Text
	}
	units := f.Messages
	if units == 0 {
		units = f.Sessions
	}
	if units > 0 && r.Seconds > 0 {
		f.PerSecond = float64(units) / r.Seconds
		f.CPUMicros = r.Generator.CPUSeconds * 1e6 / float64(units)
	}
	for _, p := range r.Phases {
		if p.Name == "ack" && p.Outcome == "2xx" {
			f.AckP50Ms, f.AckP99Ms = p.Histogram.P50, p.Histogram.P99
		}
	}
	return f, nil
}

func printFigures(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var r loadtestRun
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f, err := r.figures()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	line, err := json.Marshal(f)
	fmt.Println(string(line))
	return err
}
