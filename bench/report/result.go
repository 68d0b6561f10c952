package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// result is one file of bench/results: where it was measured, and one row for each scenario and server.
type result struct {
	facts
	Kind        string   `json:"kind,omitempty"` // of its tables: tls, policy, stalled; none for those of compare, generators and go
	Connections int      `json:"connections,omitempty"`
	Counter     string   `json:"counter,omitempty"` // perf or strace
	Servers     []server `json:"servers,omitempty"`
	Missing     []absent `json:"missing,omitempty"`
	Rows        []row    `json:"rows"`
}

// server is what is known of one server before any load. Its class is not taken from its manual but from Evidence.
type server struct {
	Name       string   `json:"name"`
	Version    string   `json:"version"`
	Class      string   `json:"class"`
	Evidence   []string `json:"evidence"`   // system calls that show the class
	Pipelining bool     `json:"pipelining"` // offered; a server that does not offer it is not sent command groups
}

// absent is a server that could not be had.
type absent struct {
	Name string `json:"name"`
	Why  string `json:"why"`
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
}

// row is what one server did with one load. A unit is a message, or a session in the scenarios whose name
// says so. For Go
// benchmarks Scenario is the package and Server the benchmark's name.
type row struct {
	Scenario string `json:"scenario"`
	Server   string `json:"server"`
	Units    int    `json:"units,omitempty"` // in each run
	Failed   int    `json:"failed_runs,omitempty"`
	From     string `json:"from,omitempty"` // commit and date, where they are not the result's

	Rate     *spread `json:"rate,omitempty"`     // messages a second that arrived; without it each connection waits for its reply
	Held     int     `json:"held,omitempty"`     // idle connections
	Beside   int     `json:"beside,omitempty"`   // clients that stop within a handshake, and as many that are slow at AUTH, at the same time
	Security string  `json:"security,omitempty"` // what TLS had agreed on, in all sessions of all rounds

	CPUMicros    *spread `json:"cpu_us,omitempty"`
	PerSecond    *spread `json:"per_second,omitempty"`
	AckP50Ms     *spread `json:"ack_p50_ms,omitempty"`
	AckP99Ms     *spread `json:"ack_p99_ms,omitempty"`
	GenCPUMicros *spread `json:"gen_cpu_us,omitempty"`
	SystemCalls  *spread `json:"system_calls,omitempty"`
	Syncs        *spread `json:"syncs,omitempty"`

	RSSBytes  *spread `json:"rss_bytes,omitempty"`        // of each idle connection
	PSSBytes  *spread `json:"pss_bytes,omitempty"`        // the same, memory that processes share counted once
	HeapBytes *spread `json:"heap_bytes,omitempty"`       // live, of each idle connection; of servers in Go
	RSSBefore *spread `json:"rss_before_bytes,omitempty"` // of the whole server, before the connections

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

// aRun is a line that bench/compare/run wrote. Gen is what the load generator said.
type aRun struct {
	Pass     string `json:"pass"` // cpu, count; server, missing
	Scenario string `json:"scenario"`
	Server   string `json:"server"`

	CPUSeconds  float64 `json:"cpu_seconds"`
	Counter     string  `json:"counter"`
	SystemCalls float64 `json:"system_calls"`
	Syncs       float64 `json:"syncs"`
	Rate        float64 `json:"rate"`
	Held        int     `json:"held"`
	Beside      int     `json:"beside"`
	RSSBytes    float64 `json:"rss_bytes"`
	HeapBytes   float64 `json:"heap_bytes"`
	PSSBytes    float64 `json:"pss_bytes"`
	RSSBefore   float64 `json:"rss_before_bytes"`
	Gen         struct {
		figures
		Security string `json:"security"` // of the dialer
		Tickets  int    `json:"tickets"`  // that let sessions resume
	} `json:"gen"`

	Version    string   `json:"version"`
	Pipelining bool     `json:"pipelining"`
	Evidence   evidence `json:"evidence"`
	Why        string   `json:"why"`
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
		switch r.Pass {
		case "server":
			res.Servers = append(res.Servers, server{r.Server, r.Version, r.Evidence.Class, r.Evidence.Lines, r.Pipelining})
		case "missing":
			res.Missing = append(res.Missing, absent{r.Server, r.Why})
		default:
			res.add(r)
		}
	}
	return res, nil
}

func (res *result) add(r aRun) {
	w := res.row(r.Scenario, r.Server)
	if w == nil {
		res.Rows = append(res.Rows, row{Scenario: r.Scenario, Server: r.Server})
		w = &res.Rows[len(res.Rows)-1]
	}

	units := r.Gen.Messages
	if strings.Contains(r.Scenario, "session") {
		units = r.Gen.Sessions
	}
	security := r.Gen.Security
	if r.Gen.Tickets > 0 {
		security += ", session tickets"
	}
	if r.Gen.Errors > 0 || units == 0 && r.Held == 0 || w.Security != "" && w.Security != security {
		w.Failed++
		return
	}
	w.Beside, w.Security = r.Beside, security
	switch {
	case r.Held > 0:
		w.Held = r.Held
		w.RSSBytes = w.RSSBytes.add(r.RSSBytes)
		w.PSSBytes = w.PSSBytes.add(r.PSSBytes)
		w.RSSBefore = w.RSSBefore.add(r.RSSBefore)
		if r.HeapBytes != 0 {
			w.HeapBytes = w.HeapBytes.add(r.HeapBytes)
		}
		return
	case r.Pass == "count":
		res.Counter = r.Counter
		w.SystemCalls = w.SystemCalls.add(r.SystemCalls / float64(units))
		w.Syncs = w.Syncs.add(r.Syncs / float64(units))
		return
	case r.Rate > 0:
		w.Rate = w.Rate.add(r.Rate)
	default:
		w.CPUMicros = w.CPUMicros.add(r.CPUSeconds * 1e6 / float64(units))
		w.PerSecond = w.PerSecond.add(r.Gen.PerSecond)
	}
	w.Units = units
	w.GenCPUMicros = w.GenCPUMicros.add(r.Gen.CPUMicros)
	if r.Gen.Messages > 0 {
		w.AckP50Ms = w.AckP50Ms.add(r.Gen.AckP50Ms)
		w.AckP99Ms = w.AckP99Ms.add(r.Gen.AckP99Ms)
	}
}

// row returns what a server did with a load, or nil.
func (res *result) row(scenario, server string) *row {
	for i := range res.Rows {
		if res.Rows[i].Scenario == scenario && res.Rows[i].Server == server {
			return &res.Rows[i]
		}
	}
	return nil
}

// merge takes from an older result what this one does not have. Rows that it takes say where they are from.
func (res *result) merge(path string) error {
	old, err := readResult(path)
	if err != nil {
		return err
	}
	if old.CPU != res.CPU || old.Cores != res.Cores || old.Kernel != res.Kernel || old.Connections != res.Connections {
		return fmt.Errorf("%s was measured on another machine or with other connections; figures of two machines do not belong in one table", path)
	}
	// In the old order, with what is new in its place.
	fresh := *res
	res.Servers, res.Missing, res.Rows = nil, nil, nil
	for _, s := range old.Servers {
		if !slices.ContainsFunc(fresh.Servers, func(f server) bool { return f.Name == s.Name }) {
			res.Servers = append(res.Servers, s)
		}
	}
	res.Servers = append(res.Servers, fresh.Servers...)
	for _, m := range append(old.Missing, fresh.Missing...) {
		known := func(n string) bool { return n == m.Name }
		if !slices.ContainsFunc(res.Servers, func(s server) bool { return known(s.Name) }) &&
			!slices.ContainsFunc(res.Missing, func(a absent) bool { return known(a.Name) }) {
			res.Missing = append(res.Missing, m)
		}
	}
	for _, w := range old.Rows {
		if fresh.row(w.Scenario, w.Server) == nil {
			if w.From == "" {
				w.From = old.Commit + ", " + old.Date
			}
			res.Rows = append(res.Rows, w)
		}
	}
	res.Rows = append(res.Rows, fresh.Rows...)
	if res.Counter == "" {
		res.Counter = old.Counter
	}
	return nil
}
