package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var processors = regexp.MustCompile(`-\d+$`)

// collectGo reads the output of go test -bench: one row for each benchmark, -count runs of it gathered.
func collectGo(factsJSON, output []byte) (result, error) {
	var res result
	if err := json.Unmarshal(factsJSON, &res.facts); err != nil {
		return res, fmt.Errorf("facts: %w", err)
	}
	pkg := ""
	for line := range strings.Lines(string(output)) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == "pkg:" {
			_, pkg, _ = strings.Cut(f[1], "/fastedge/fastedge/")
			continue
		}
		// BenchmarkName-2  1000  123 ns/op  45 MB/s …
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		if _, err := strconv.Atoi(f[1]); err != nil {
			continue
		}
		name := processors.ReplaceAllString(strings.TrimPrefix(f[0], "Benchmark"), "")
		i := slices.IndexFunc(res.Rows, func(w row) bool { return w.Scenario == pkg && w.Server == name })
		if i < 0 {
			i = len(res.Rows)
			res.Rows = append(res.Rows, row{Scenario: pkg, Server: name, Metrics: map[string]*spread{}})
		}
		m := res.Rows[i].Metrics
		for j := 2; j+1 < len(f); j += 2 {
			v, err := strconv.ParseFloat(f[j], 64)
			if err != nil {
				return res, fmt.Errorf("%q: %w", line, err)
			}
			m[f[j+1]] = m[f[j+1]].add(v)
		}
	}
	return res, nil
}

// goCells has a column for each of the usual units, and one for whatever else a benchmark reports.
func (res *result) goCells() [][]string {
	cells := [][]string{{"package", "benchmark", "time", "MB/s", "allocations", "also"}}
	last := ""
	for _, w := range res.Rows {
		pkg := w.Scenario
		if pkg == last {
			pkg = ""
		}
		last = w.Scenario
		var also []string
		for _, unit := range slices.Sorted(maps.Keys(w.Metrics)) {
			if unit != "ns/op" && unit != "MB/s" && unit != "allocs/op" && unit != "B/op" {
				also = append(also, number(w.Metrics[unit].Median)+" "+unit)
			}
		}
		cells = append(cells, []string{pkg, w.Server, duration(w.Metrics["ns/op"]), median(w.Metrics["MB/s"]),
			median(w.Metrics["allocs/op"]), strings.Join(also, ", ")})
	}
	return cells
}

func duration(ns *spread) string {
	if ns == nil {
		return ""
	}
	for _, u := range []struct {
		size float64
		name string
	}{{1e9, "s"}, {1e6, "ms"}, {1e3, "µs"}} {
		if ns.Median >= u.size {
			return number(ns.Median/u.size) + " " + u.name
		}
	}
	return number(ns.Median) + " ns"
}
