package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

var scenarioNames = map[string]string{
	"4k-plain":      "4 KiB",
	"4k-pipelined":  "4 KiB, pipelined",
	"4k-tight":      "4 KiB, body and next group in one write",
	"64k-plain":     "64 KiB",
	"64k-pipelined": "64 KiB, pipelined",
	"session":       "connect, EHLO, QUIT",
}

// table prints a result as Markdown that also reads well in a terminal.
func (res *result) table() string {
	var cells [][]string
	switch {
	case len(res.Rows) > 0 && res.Rows[0].RSSBytes != nil:
		cells = res.idleCells()
	case len(res.Rows) > 0 && res.Rows[0].Metrics != nil:
		cells = res.goCells()
	default:
		cells = res.serverCells()
	}
	return align(cells) + "\n" + res.caption() + "\n"
}

func (res *result) serverCells() [][]string {
	cells := [][]string{{"load", "server", "class", "CPU, µs", "× smtp-sink", "× canned", "per second", "ack p50 / p99, ms", "system calls", "syncs"}}
	last := ""
	for _, w := range res.Rows {
		name := scenarioNames[w.Scenario]
		if name == "" {
			name = w.Scenario
		}
		if w.Scenario == last {
			name = ""
		}
		last = w.Scenario
		server := w.Server
		if w.Failed > 0 {
			server += fmt.Sprintf(" (%d runs failed)", w.Failed)
		}
		ack := ""
		if w.AckP50Ms != nil {
			ack = number(w.AckP50Ms.Median) + " / " + number(w.AckP99Ms.Median)
		}
		cells = append(cells, []string{name, server, w.Class, w.CPUMicros.String(), res.ratio(w, "smtp-sink"), res.ratio(w, "canned"),
			median(w.PerSecond), ack, median(w.SystemCalls), median(w.Syncs)})
	}
	return cells
}

func (res *result) idleCells() [][]string {
	cells := [][]string{{"server", "RSS, bytes a connection", "PSS, bytes a connection", "RSS before, KiB"}}
	for _, w := range res.Rows {
		cells = append(cells, []string{w.Server, w.RSSBytes.String(), w.PSSBytes.String(), median(w.RSSBeforeKiB)})
	}
	return cells
}

// ratio compares the CPU of a row with that of another server under the same load.
func (res *result) ratio(w row, server string) string {
	for _, o := range res.Rows {
		if o.Scenario == w.Scenario && o.Server == server && o.CPUMicros != nil && w.CPUMicros != nil && server != w.Server {
			return number(w.CPUMicros.Median / o.CPUMicros.Median)
		}
	}
	return ""
}

func (res *result) caption() string {
	rounds := 0
	for _, w := range res.Rows {
		for _, s := range []*spread{w.CPUMicros, w.RSSBytes, w.Metrics["ns/op"]} {
			if s != nil {
				rounds = max(rounds, len(s.Rounds))
			}
		}
	}
	commit := res.Commit
	if res.Uncommitted {
		commit += " and uncommitted changes"
	}
	s := "One round"
	if rounds > 1 {
		s = fmt.Sprintf("Medians of %d rounds", rounds)
		if res.Connections > 0 { // the spread of Go benchmarks is not printed
			s += " (smallest–largest)"
		}
	}
	if res.Connections > 0 {
		s += fmt.Sprintf(", %d connections", res.Connections)
	}
	s += fmt.Sprintf(". %s, %d cores, %s, %s; %s", res.CPU, res.Cores, res.Kernel, res.FileSystem, res.Go)
	ofPostfix := func(w row) bool { return w.Server == "postfix" || w.Server == "smtp-sink" }
	if slices.ContainsFunc(res.Rows, ofPostfix) {
		s += ", Postfix " + res.Postfix
	}
	if res.Counter != "" {
		s += "; system calls and syncs counted by " + res.Counter
	}
	return s + "; commit " + commit + ", " + res.Date + "."
}

func (s *spread) String() string {
	if s == nil {
		return ""
	}
	if s.Min == s.Max {
		return number(s.Median)
	}
	return number(s.Median) + " (" + number(s.Min) + "–" + number(s.Max) + ")"
}

func median(s *spread) string {
	if s == nil {
		return ""
	}
	return number(s.Median)
}

// number keeps three significant digits, at most three of them decimals: more would be noise.
func number(v float64) string {
	a := math.Abs(v)
	switch {
	case a >= 10000:
		s := strconv.FormatFloat(math.Round(v/100)*100, 'f', 0, 64)
		return s[:len(s)-3] + "," + s[len(s)-3:]
	case a >= 1000:
		s := strconv.FormatFloat(math.Round(v/10)*10, 'f', 0, 64)
		if len(s) < 4 {
			return s
		}
		return s[:len(s)-3] + "," + s[len(s)-3:]
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case a < 0.0005:
		return "0"
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// align pads cells to columns; the first row is the head.
func align(cells [][]string) string {
	width := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, c := range line {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	write := func(line []string, pad string) {
		for i, c := range line {
			b.WriteString("| " + c + strings.Repeat(pad, width[i]-utf8.RuneCountInString(c)) + " ")
		}
		b.WriteString("|\n")
	}
	write(cells[0], " ")
	write(make([]string, len(width)), "-")
	for _, line := range cells[1:] {
		write(line, " ")
	}
	return b.String()
}
