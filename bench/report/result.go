package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// result is one file of bench/results: where it was measured, and one row for each scenario and server.
type result struct {
	facts
	Connections int    `json:"connections,omitempty"`
	Counter     string `json:"counter,omitempty"` // perf or strace
	Rows        []row  `json:"rows"`
}

type facts struct {
	Date        string `json:"date"`
	Commit      string `json:"commit"`
	Uncommitted bool   `json:"uncommitted_changes"` // the tree differed from Commit
	CPU         string `json:"cpu"`
	Cores       int    `json:"cores"`
	Kernel      string `json:"kernel"`
	FileSystem  string `json:"file_system"`
	Go          string `json:"go"`
	Postfix     string `json:"postfix"`
}

// row is what one server did with one load. A unit is a message, or a session in the scenario "session". For Go
// benchmarks Scenario is the package and Server the benchmark's name.
type row struct {
	Scenario string `json:"scenario"`
	Server   string `json:"server"`
	Class    string `json:"class,omitempty"` // durable or discard
	Units    int    `json:"units,omitempty"` // in each run
	Failed   int    `json:"failed_runs,omitempty"`

	CPUMicros    *spread `json:"cpu_us,omitempty"`
	PerSecond    *spread `json:"per_second,omitempty"`
	AckP50Ms     *spread `json:"ack_p50_ms,omitempty"`
	AckP99Ms     *spread `json:"ack_p99_ms,omitempty"`
	GenCPUMicros *spread `json:"gen_cpu_us,omitempty"`
	SystemCalls  *spread `json:"system_calls,omitempty"`
	Syncs        *spread `json:"syncs,omitempty"`

	RSSBytes     *spread `json:"rss_bytes,omitempty"` // of each idle connection
	PSSBytes     *spread `json:"pss_bytes,omitempty"`
	RSSBeforeKiB *spread `json:"rss_before_kib,omitempty"` // of the whole server, before the connections

	Metrics map[string]*spread `json:"metrics,omitempty"` // of a Go benchmark, by unit
}

// spread keeps every round, in the order they were run.
type spread struct {
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Rounds []float64 `json:"rounds"`
}

func (s *spread) add(v float64) *spread {
	if s == nil {
		s = &spread{}
	}
	s.Rounds = append(s.Rounds, v)
	sorted := slices.Sorted(slices.Values(s.Rounds))
	s.Min, s.Max = sorted[0], sorted[len(sorted)-1]
	s.Median = (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
	return s
}

// aRun is a line that bench/server or bench/idle wrote. Gen is the output of bench/gen.
type aRun struct {
	Pass        string  `json:"pass"` // cpu, count or idle
	Scenario    string  `json:"scenario"`
	Server      string  `json:"server"`
	Class       string  `json:"class"`
	SystemCalls float64 `json:"system_calls"`
	Syncs       float64 `json:"syncs"`
	RSSBytes    float64 `json:"rss_bytes"`
	PSSBytes    float64 `json:"pss_bytes"`
	RSSBefore   float64 `json:"rss_before_kib"`
	Gen         struct {
		Messages  int     `json:"messages"`
		Sessions  int     `json:"sessions"`
		Errors    int     `json:"errors"`
		PerSecond float64 `json:"per_second"`
		AckP50Ms  float64 `json:"ack_p50_ms"`
		AckP99Ms  float64 `json:"ack_p99_ms"`
		GenCPU    float64 `json:"gen_cpu_us"`
		ServerCPU float64 `json:"server_cpu_us"`
	} `json:"gen"`
}

// collect gathers runs into rows, in the order in which they first appear. A run with errors is not a measurement of
// anything: it is counted and left out.
func collect(factsJSON, runs []byte) (result, error) {
	var res result
	if err := json.Unmarshal(factsJSON, &res.facts); err != nil {
		return res, fmt.Errorf("facts: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(runs))
	for dec.More() {
		var r aRun
		if err := dec.Decode(&r); err != nil {
			return res, fmt.Errorf("runs: %w", err)
		}
		res.add(r)
	}
	return res, nil
}

func (res *result) add(r aRun) {
	i := slices.IndexFunc(res.Rows, func(w row) bool { return w.Scenario == r.Scenario && w.Server == r.Server })
	if i < 0 {
		i = len(res.Rows)
		res.Rows = append(res.Rows, row{Scenario: r.Scenario, Server: r.Server, Class: r.Class})
	}
	w := &res.Rows[i]

	units := r.Gen.Messages
	if r.Scenario == "session" {
		units = r.Gen.Sessions
	}
	if r.Pass != "idle" && (r.Gen.Errors > 0 || units == 0) {
		w.Failed++
		return
	}
	switch r.Pass {
	case "cpu":
		w.Units = units
		w.CPUMicros = w.CPUMicros.add(r.Gen.ServerCPU)
		w.PerSecond = w.PerSecond.add(r.Gen.PerSecond)
		w.GenCPUMicros = w.GenCPUMicros.add(r.Gen.GenCPU)
		if r.Gen.Messages > 0 {
			w.AckP50Ms = w.AckP50Ms.add(r.Gen.AckP50Ms)
			w.AckP99Ms = w.AckP99Ms.add(r.Gen.AckP99Ms)
		}
	case "count":
		w.SystemCalls = w.SystemCalls.add(r.SystemCalls / float64(units))
		w.Syncs = w.Syncs.add(r.Syncs / float64(units))
	case "idle":
		w.RSSBytes = w.RSSBytes.add(r.RSSBytes)
		w.PSSBytes = w.PSSBytes.add(r.PSSBytes)
		w.RSSBeforeKiB = w.RSSBeforeKiB.add(r.RSSBefore)
	}
}
