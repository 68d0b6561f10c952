package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// scenarioNames are the loads of bench/compare/run, in the order in which they are shown.
var scenarioNames = []struct{ id, name string }{
	{"4k", "4 KiB"},
	{"4k-group", "4 KiB, pipelined"},
	{"4k-senders", "4 KiB, another domain each"},
	{"4k-group-senders", "4 KiB, pipelined, another domain each"},
	{"64k", "64 KiB"},
	{"64k-group", "64 KiB, pipelined"},
	{"1m", "1 MiB"},
	{"1m-group", "1 MiB, pipelined"},
	{"4k-single", "4 KiB, one a connection"},
	{"4k-10c", "4 KiB, 10 connections"},
	{"4k-200c", "4 KiB, 200 connections"},
	{"session", "connect, EHLO, QUIT"},
}

// onDisk says for a class whether the message was on disk before the 250.
var onDisk = map[string]string{
	classDurable:  "yes",
	classAccepted: "no, stored without sync",
	classDiscard:  "no, thrown away",
}

// table prints a result as Markdown that also reads well in a terminal.
func (res *result) table() string {
	if len(res.Rows) > 0 && res.Rows[0].Metrics != nil {
		return align(res.goCells()) + "\n" + res.caption() + "\n"
	}
	if len(res.Servers) == 0 {
		return align(res.generatorCells()) + "\n" + res.caption() + "\n"
	}
	const picture = "![Server CPU for each message of 4 KiB, by server](bench/results/compare.svg)\n"
	return align(res.summaryCells()) + "\n" + picture + "\n" + res.caption() + "\n"
}

// full prints everything that a comparison found.
func (res *result) full() string {
	tables := []string{align(res.serverCells()), align(res.loadCells())}
	for _, cells := range [][][]string{res.ackCells(), res.idleCells()} {
		if len(cells) > 1 {
			tables = append(tables, align(cells))
		}
	}
	return strings.Join(tables, "\n") + "\n" + res.caption() + "\n"
}

// generatorCells sets the first generator beside the second, load by load.
func (res *result) generatorCells() [][]string {
	const theirs, ours = "smtp-source", "fastedge loadtest"
	cells := [][]string{{"load", theirs + ", CPU µs", ours + ", CPU µs", "messages a CPU-second, ours × theirs"}}
	for _, sc := range scenarioNames {
		cell := func(server string) string {
			if w := res.row(sc.id, server); w != nil {
				return w.CPUMicros.String()
			}
			return "cannot"
		}
		if w := res.row(sc.id, ours); w != nil {
			times := ""
			if other := res.row(sc.id, theirs); other != nil {
				times = res.ratio(other, ours)
			}
			cells = append(cells, []string{sc.name, cell(theirs), cell(ours), times})
		}
	}
	return cells
}

// summaryCells has a line for each server, in the order of CPU at 4 KiB.
func (res *result) summaryCells() [][]string {
	cells := [][]string{{"server", "on disk before the 250", "CPU, µs: 4 KiB", "64 KiB", "1 MiB", "messages/s", "ack p99, ms", "at 30 %", "idle, bytes"}}
	for _, s := range res.byCPU() {
		cells = append(cells, []string{s.Name, onDisk[s.Class],
			res.plainAndPipelined(s, "4k"), res.plainAndPipelined(s, "64k"), res.plainAndPipelined(s, "1m"),
			res.cell("4k", s.Name, func(w *row) *spread { return w.PerSecond }),
			res.cell("ack", s.Name, func(w *row) *spread { return w.AckP99Ms }),
			res.cell("ack-30", s.Name, func(w *row) *spread { return w.AckP99Ms }),
			res.cell("idle", s.Name, func(w *row) *spread { return w.PSSBytes })})
	}
	return cells
}

func (res *result) plainAndPipelined(s server, scenario string) string {
	cpu := func(w *row) *spread { return w.CPUMicros }
	plain, pipelined := res.cell(scenario, s.Name, cpu), res.cell(scenario+"-group", s.Name, cpu)
	if !s.Pipelining {
		pipelined = "–"
	}
	if plain == "" && (pipelined == "" || pipelined == "–") {
		return ""
	}
	return plain + " / " + pipelined
}

// cell is one median, "failed" where every round failed, or nothing where nobody has measured.
func (res *result) cell(scenario, server string, of func(*row) *spread) string {
	w := res.row(scenario, server)
	if w == nil {
		return ""
	}
	if s := of(w); s != nil {
		return median(s)
	}
	if w.Failed > 0 {
		return "failed"
	}
	return ""
}

// byCPU returns the servers, the cheapest at 4 KiB first, those without a figure last.
func (res *result) byCPU() []server {
	cpu := func(s server) float64 {
		if w := res.row("4k", s.Name); w != nil && w.CPUMicros != nil {
			return w.CPUMicros.Median
		}
		return math.Inf(1)
	}
	return slices.SortedStableFunc(slices.Values(res.Servers), func(a, b server) int { return cmp.Compare(cpu(a), cpu(b)) })
}

// serverCells says what was compared, and how the class of each is known.
func (res *result) serverCells() [][]string {
	cells := [][]string{{"server", "version", "class", "system calls that show it, the last is the 250"}}
	for _, s := range res.Servers {
		calls := strings.Join(s.Evidence, "`, `")
		cells = append(cells, []string{s.Name, s.Version, s.Class, "`" + calls + "`"})
	}
	return cells
}

// loadCells has a line for each load and server.
func (res *result) loadCells() [][]string {
	cells := [][]string{{"load", "server", "on disk", "CPU, µs", "× fastedge", "× canned", "per second", "ack p50 / p99, ms", "system calls", "syncs", "generator, µs"}}
	for _, sc := range scenarioNames {
		name := sc.name
		for _, s := range res.byCPU() {
			w := res.row(sc.id, s.Name)
			if w == nil {
				continue
			}
			ack := ""
			if w.AckP50Ms != nil {
				ack = number(w.AckP50Ms.Median) + " / " + number(w.AckP99Ms.Median)
			}
			cells = append(cells, []string{name, w.name(), strings.SplitN(onDisk[s.Class], ",", 2)[0], w.CPUMicros.String(), res.ratio(w, "fastedge"), res.ratio(w, "canned"),
				w.PerSecond.String(), ack, median(w.SystemCalls), median(w.Syncs), median(w.GenCPUMicros)})
			name = ""
		}
	}
	return cells
}

// ackCells compares latencies under a load that does not wait for replies.
func (res *result) ackCells() [][]string {
	cells := [][]string{{"arrivals", "server", "on disk", "messages/s", "ack p50, ms", "ack p99, ms"}}
	for _, sc := range []struct{ id, name string }{{"ack", "the same for all"}, {"ack-30", "30 % of its own 4 KiB"}} {
		name := sc.name
		for _, s := range res.byCPU() {
			if w := res.row(sc.id, s.Name); w != nil {
				cells = append(cells, []string{name, w.name(), strings.SplitN(onDisk[s.Class], ",", 2)[0], w.Rate.String(), w.AckP50Ms.String(), w.AckP99Ms.String()})
				name = ""
			}
		}
	}
	return cells
}

func (res *result) idleCells() [][]string {
	cells := [][]string{{"idle", "connections", "PSS, bytes a connection", "RSS, bytes a connection", "RSS before, KiB"}}
	for _, s := range res.byCPU() {
		if w := res.row("idle", s.Name); w != nil {
			before := ""
			if w.RSSBefore != nil {
				before = number(w.RSSBefore.Median / 1024)
			}
			cells = append(cells, []string{w.name(), number(float64(w.Held)), w.PSSBytes.String(), w.RSSBytes.String(), before})
		}
	}
	return cells
}

// name is the server's, with what is to be known about the row.
func (w *row) name() string {
	s := w.Server
	if w.Failed > 0 {
		s += fmt.Sprintf(" (%d runs failed)", w.Failed)
	}
	if w.From != "" {
		s += " (" + w.From + ")"
	}
	return s
}

// ratio compares the CPU of a row with that of another server under the same load.
func (res *result) ratio(w *row, server string) string {
	o := res.row(w.Scenario, server)
	if o == nil || o.CPUMicros == nil || w.CPUMicros == nil || server == w.Server {
		return ""
	}
	return number(w.CPUMicros.Median / o.CPUMicros.Median)
}

func (res *result) caption() string {
	fewest, most := 0, 0
	for _, w := range res.Rows {
		for _, s := range []*spread{w.CPUMicros, w.AckP99Ms, w.RSSBytes, w.Metrics["ns/op"]} {
			if s != nil {
				most = max(most, len(s.Rounds))
				if fewest == 0 || len(s.Rounds) < fewest {
					fewest = len(s.Rounds)
				}
			}
		}
	}
	commit := res.Commit
	if res.Uncommitted {
		commit += " and uncommitted changes"
	}
	s := "One round"
	if most > 1 {
		s = fmt.Sprintf("Medians of %d rounds", most)
		if fewest < most {
			s = fmt.Sprintf("Medians of %d to %d rounds", fewest, most)
		}
	}
	if res.Connections > 0 {
		s += fmt.Sprintf(", %d connections", res.Connections)
	}
	s += fmt.Sprintf(". %s, %d cores, %s, %s; %s", res.CPU, res.Cores, res.Kernel, res.FileSystem, res.Go)
	if res.Counter != "" {
		s += "; system calls and syncs counted by " + res.Counter
	}
	s += "; commit " + commit + ", " + res.Date + "."
	for _, m := range res.Missing {
		s += " Not had: " + m.Name + " (" + m.Why + ")."
	}
	return s
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
		return grouped(math.Round(v/100) * 100)
	case a >= 1000:
		return grouped(math.Round(v/10) * 10)
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

// grouped puts a comma between thousands.
func grouped(v float64) string {
	s := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
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
