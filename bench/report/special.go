package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// The scenarios of bench/tls, bench/policy and bench/stalled.
const (
	plainSession  = "plain-session"
	tlsSession    = "tls-session"
	hybridSession = "tls-session-hybrid"
	plainBulk     = "1m-4c"
	tlsBulk       = "tls-1m-4c"
	tlsIdle       = "tls-idle"
	ackAlone      = "ack"
	ackStalled    = "ack-stalled"
)

// tlsNames are the loads of bench/tls, in the order in which they are shown.
var tlsNames = []struct{ id, name string }{
	{plainSession, "connect, EHLO, QUIT"},
	{tlsSession, "with STARTTLS, handshake, EHLO"},
	{hybridSession, "the same, hybrid key exchange offered"},
	{plainBulk, "1 MiB, 4 connections"},
	{tlsBulk, "1 MiB, 4 connections, TLS"},
}

// special prints the tables of a result that has a kind; all of them, or what fits into README.md.
func (res *result) special(all bool) (string, error) {
	var tables [][][]string
	switch res.Kind {
	case "tls":
		tables = [][][]string{res.tlsCells()}
		if all {
			tables = append(tables, res.tlsLoadCells(), res.tlsIdleCells(), res.serverCells())
		}
	case "policy":
		tables = [][][]string{res.policyCells()}
	case "stalled":
		tables = [][][]string{res.stalledCells()}
	case "spf":
		tables = res.spfCells()
	case "http":
		tables = res.httpCells()
	case "jetstream":
		tables = res.jetstreamCells()
	default:
		return "", fmt.Errorf("no tables for results of the kind %q", res.Kind)
	}
	var text []string
	for _, cells := range tables {
		text = append(text, align(cells))
	}
	return strings.Join(text, "\n") + "\n" + res.caption() + "\n", nil
}

// tlsCells has a line for each server.
func (res *result) tlsCells() [][]string {
	cells := [][]string{{"server", "on disk before the 250", "handshake, CPU µs", "handshakes a CPU-second", "hybrid, µs", "1 MiB: CPU µs", "with TLS", "MiB a CPU-second", "idle: heap, bytes", "PSS"}}
	for _, s := range res.Servers {
		plain, secure, hybrid := res.cpu(plainSession, s.Name), res.cpu(tlsSession, s.Name), res.cpu(hybridSession, s.Name)
		if w := res.row(hybridSession, s.Name); w != nil && !strings.Contains(w.Security, "MLKEM") {
			hybrid = nil // the server has none
		}
		bulk := func(w *row) *spread { return w.CPUMicros }
		line := []string{s.Name, onDisk[s.Class], median(secure.minus(plain)), perSecond(secure.minus(plain)), median(hybrid.minus(plain)),
			res.cell(plainBulk, s.Name, bulk), res.cell(tlsBulk, s.Name, bulk), perSecond(res.cpu(tlsBulk, s.Name)),
			res.cell(tlsIdle, s.Name, func(w *row) *spread { return w.HeapBytes }), res.cell(tlsIdle, s.Name, func(w *row) *spread { return w.PSSBytes })}
		cells = append(cells, line)
	}
	return cells
}

// tlsLoadCells has a line for each load and server.
func (res *result) tlsLoadCells() [][]string {
	cells := [][]string{{"load", "server", "on disk", "CPU, µs", "× fastedge", "a CPU-second", "per second", "generator, µs", "agreed on"}}
	for _, sc := range tlsNames {
		name := sc.name
		for _, s := range res.Servers {
			w := res.row(sc.id, s.Name)
			if w == nil {
				continue
			}
			cells = append(cells, []string{name, w.name(), strings.SplitN(onDisk[s.Class], ",", 2)[0], w.CPUMicros.String(), res.ratio(w, "fastedge"), perSecond(w.CPUMicros),
				w.PerSecond.String(), median(w.GenCPUMicros), w.Security})
			name = ""
		}
	}
	return cells
}

func (res *result) tlsIdleCells() [][]string {
	cells := [][]string{{"idle after a handshake", "connections", "heap, bytes a connection", "PSS, bytes a connection", "RSS before, KiB"}}
	for _, s := range res.Servers {
		if w := res.row(tlsIdle, s.Name); w != nil {
			before := ""
			if w.RSSBefore != nil {
				before = number(w.RSSBefore.Median / 1024)
			}
			cells = append(cells, []string{w.name(), number(float64(w.Held)), w.HeapBytes.String(), w.PSSBytes.String(), before})
		}
	}
	return cells
}

// policyCells sets fastedge-policy beside fastedge-strangers. The growth is of each round, and the median of these: within a round both had the same
// neighbours.
func (res *result) policyCells() [][]string {
	cells := [][]string{{"load", "without, CPU µs", "with, CPU µs", "growth in a round"}}
	for _, sc := range scenarioNames {
		without, with := res.cpu(sc.id, "fastedge-strangers"), res.cpu(sc.id, "fastedge-policy")
		if without == nil || with == nil {
			continue
		}
		growth := pair(with, without, func(a, b float64) float64 { return (a/b - 1) * 100 })
		cells = append(cells, []string{sc.name, without.String(), with.String(), percent(growth)})
	}
	return cells
}

func percent(s *spread) string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("%+.1f %% (%+.1f to %+.1f)", s.Median, s.Min, s.Max)
}

func (res *result) stalledCells() [][]string {
	cells := [][]string{{"messages a second", "beside them", "ack p50, ms", "ack p99, ms"}}
	for _, id := range []string{ackAlone, ackStalled} {
		for _, w := range res.Rows {
			if w.Scenario != id {
				continue
			}
			beside := "nobody"
			if w.Beside > 0 {
				beside = fmt.Sprintf("%s within a handshake, %[1]s within AUTH", number(float64(w.Beside)))
			}
			cells = append(cells, []string{w.Rate.String(), beside + strings.TrimPrefix(w.name(), w.Server), w.AckP50Ms.String(), w.AckP99Ms.String()})
		}
	}
	return cells
}

// cpu is what a server used for a unit of a load, or nil.
func (res *result) cpu(scenario, server string) *spread {
	if w := res.row(scenario, server); w != nil {
		return w.CPUMicros
	}
	return nil
}

// pair makes one value of each round's two, or gives nil. Where a round of one has failed, the medians must do.
func pair(a, b *spread, of func(a, b float64) float64) *spread {
	if a == nil || b == nil {
		return nil
	}
	var s *spread
	if len(a.Rounds) != len(b.Rounds) {
		return s.add(of(a.Median, b.Median))
	}
	for i := range a.Rounds {
		s = s.add(of(a.Rounds[i], b.Rounds[i]))
	}
	return s
}

func (s *spread) minus(o *spread) *spread {
	return pair(s, o, func(a, b float64) float64 { return a - b })
}

// likely is the median and between which values it is with 95 %, whatever the distribution is: those that a fair coin puts around it.
func (s *spread) likely() string {
	if s == nil {
		return ""
	}
	n := float64(len(s.Rounds))
	skip := int((n - 1.96*math.Sqrt(n)) / 2)
	if skip < 1 {
		return s.String()
	}
	sorted := slices.Sorted(slices.Values(s.Rounds))
	return number(s.Median) + " (95 %: " + number(sorted[skip-1]) + " to " + number(sorted[len(sorted)-skip]) + ")"
}

// perSecond is how many fit into a second of CPU.
func perSecond(s *spread) string {
	if s == nil || s.Median <= 0 {
		return ""
	}
	return number(1e6 / s.Median)
}
