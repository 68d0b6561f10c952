package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The one test that keeps the documents honest: their tables are what bench/results says, to the byte.
func TestReadmeTablesAgreeWithResults(t *testing.T) {
	for _, path := range readmes {
		text, err := os.ReadFile(filepath.Join("..", "..", path))
		if err != nil {
			t.Fatal(err)
		}
		want, pairs, err := fillMarkers(text, "../results")
		if err != nil {
			t.Fatal(err)
		}
		if pairs == 0 {
			t.Errorf("%s has no tables", path)
		}
		if !bytes.Equal(text, want) {
			t.Errorf("%s disagrees with bench/results; run: go run ./bench/report", path)
		}
	}
}

func TestCommittedResultsCanBeRead(t *testing.T) {
	files, _ := filepath.Glob("../results/*.json")
	for _, f := range files {
		if table, err := tableOf(f); err != nil || strings.Count(table, "\n") < 5 {
			t.Errorf("%s: %v\n%s", f, err, table)
		}
	}
}

const (
	someFacts = `{"date": "2026-11-22", "commit": "abc", "uncommitted_changes": false, "cpu": "C", "cores": 2, "kernel": "L", "file_system": "ext4", "go": "go1", "postfix": "3.7"}`
	someRuns  = `
{"pass": "cpu", "round": 1, "scenario": "4k-plain", "server": "fastedge", "class": "durable", "gen": {"messages":100,"server_cpu_us":60,"per_second":10500}}
{"pass": "cpu", "round": 1, "scenario": "4k-plain", "server": "smtp-sink", "class": "discard", "gen": {"messages":100,"server_cpu_us":100,"per_second":9000}}
{"pass": "cpu", "round": 2, "scenario": "4k-plain", "server": "fastedge", "class": "durable", "gen": {"messages":100,"server_cpu_us":40,"per_second":11500}}
{"pass": "cpu", "round": 3, "scenario": "4k-plain", "server": "fastedge", "class": "durable", "gen": {"messages":99,"errors":1,"server_cpu_us":1}}
{"pass": "count", "round": 1, "scenario": "4k-plain", "server": "fastedge", "class": "durable", "system_calls": 900, "syncs": 2, "gen": {"messages":100,"server_cpu_us":70}}
`
)

func TestCollectDividesAndLeavesFailedRunsOut(t *testing.T) {
	res, err := collect([]byte(someFacts), []byte(someRuns))
	if err != nil || len(res.Rows) != 2 {
		t.Fatal(err, res.Rows)
	}
	w := res.Rows[0]
	if w.Failed != 1 || w.CPUMicros.Median != 50 || w.CPUMicros.Min != 40 || w.CPUMicros.Max != 60 {
		t.Errorf("CPU %+v, failed %d", w.CPUMicros, w.Failed)
	}
	if w.SystemCalls.Median != 9 || w.Syncs.Median != 0.02 {
		t.Errorf("system calls %+v, syncs %+v", w.SystemCalls, w.Syncs)
	}
	table := res.table()
	for _, cell := range []string{"| 50.0 (40.0–60.0) ", "| 0.500 ", "| 11,000 ", "fastedge (1 runs failed)", "Postfix 3.7"} {
		if !strings.Contains(table, cell) {
			t.Errorf("no %q in\n%s", cell, table)
		}
	}
}

func TestGoBenchmarksAreGathered(t *testing.T) {
	const output = "goos: linux\npkg: github.com/fastedge/fastedge/smtpcodec\n" +
		"BenchmarkScan/64KiB-2 \t 100\t 20000 ns/op\t 3000 MB/s\t 0 B/op\t 0 allocs/op\n" +
		"BenchmarkScan/64KiB-2 \t 100\t 30000 ns/op\t 2000 MB/s\t 0 B/op\t 0 allocs/op\nPASS\nok x 1s\n"
	res, err := collectGo([]byte(someFacts), []byte(output))
	if err != nil || len(res.Rows) != 1 {
		t.Fatal(err, res.Rows)
	}
	if table := res.table(); !strings.Contains(table, "| smtpcodec | Scan/64KiB | 25.0 µs | 2,500 | 0 ") {
		t.Error(table)
	}
}

func TestMarkersAreFilledOnceAndForAll(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "idle.json"), []byte(`{"rows":[{"server":"fastedge","rss_bytes":{"median":700,"min":700,"max":700}}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	const before = "a\n<!-- bench:idle -->\nold\n<!-- /bench -->\nb\n<!-- bench:unmeasured -->\nkept\n<!-- /bench -->\n"
	once, pairs, err := fillMarkers([]byte(before), dir)
	if err != nil || pairs != 2 {
		t.Fatal(pairs, err)
	}
	if s := string(once); strings.Contains(s, "old") || !strings.Contains(s, "| fastedge | 700 ") || !strings.Contains(s, "kept") {
		t.Errorf("filled:\n%s", s)
	}
	if twice, _, _ := fillMarkers(once, dir); !bytes.Equal(once, twice) {
		t.Errorf("not the same the second time:\n%s", twice)
	}
}

func TestNumberKeepsThreeDigits(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0123: "0.012", 1.005: "1.00", 25.26: "25.3", 102.4: "102", 1355.9: "1,360", 66727: "66,700", 999.9: "1000", 0.9999: "1.000"} {
		if got := number(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}
