package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
		if table, err := tableOf(f, true); err != nil || strings.Count(table, "\n") < 5 {
			t.Errorf("%s: %v\n%s", f, err, table)
		}
	}
}

// The chart is a file of its own; it is what bench/results/compare.json says, too.
func TestChartAgreesWithResults(t *testing.T) {
	res, err := readResult("../results/compare.json")
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("../results/compare.svg")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, res.chart()) {
		t.Error("bench/results/compare.svg disagrees with compare.json; run: go run ./bench/report")
	}
}

// What run refuses to publish must not come in by hand either.
func TestCommittedClassesHaveEvidence(t *testing.T) {
	for _, name := range []string{"compare", "tls", "policy", "stalled"} {
		res, err := readResult("../results/" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Servers) == 0 {
			t.Errorf("%s has no servers", name)
		}
		for _, s := range res.Servers {
			folder, err := os.ReadFile(filepath.Join("..", "compare", s.Name, "class"))
			if err != nil {
				t.Error(err)
				continue
			}
			if !strings.Contains(string(folder), "echo "+s.Class+"\n") || len(s.Evidence) == 0 {
				t.Errorf("%s in %s: class %s by %q; its folder says\n%s", s.Name, name, s.Class, s.Evidence, folder)
			}
		}
	}
}

func TestEveryServerHasItsScripts(t *testing.T) {
	starts, _ := filepath.Glob("../compare/*/start")
	if len(starts) < 11 {
		t.Errorf("only %d servers", len(starts))
	}
	for _, start := range starts {
		folder := filepath.Dir(start)
		for _, script := range []string{"install", "start", "stop", "class", "version"} {
			if fi, err := os.Stat(filepath.Join(folder, script)); err != nil || fi.Mode()&0o111 == 0 {
				t.Errorf("%s/%s is no script: %v", filepath.Base(folder), script, err)
			}
		}
		text, _ := os.ReadFile(filepath.Join(folder, "class"))
		class := strings.TrimSpace(strings.TrimPrefix(string(text), "#!/bin/sh\necho "))
		if onDisk[class] == "" {
			t.Errorf("%s has the class %q", filepath.Base(folder), class)
		}
	}
}

const (
	someFacts = `{"date": "2026-11-22", "commit": "abc", "uncommitted_changes": false, "cpu": "C", "cores": 2, "kernel": "L", "file_system": "ext4", "go": "go1"}`
	someRuns  = `
{"pass": "server", "server": "smtp-sink", "version": "Postfix 3.7", "pipelining": false, "evidence": {"class": "discard", "lines": ["write(client, \"250 …\")"]}}
{"pass": "server", "server": "fastedge", "version": "v1", "pipelining": true, "evidence": {"class": "durable", "lines": ["fdatasync(1.seg) = 0"]}}
{"pass": "missing", "server": "exim", "why": "no apt-get"}
{"pass": "cpu", "round": 1, "scenario": "4k", "server": "fastedge", "cpu_seconds": 0.006, "gen": {"messages":100,"per_second":10500}}
{"pass": "cpu", "round": 1, "scenario": "4k", "server": "smtp-sink", "cpu_seconds": 0.01, "gen": {"messages":100,"per_second":9000}}
{"pass": "cpu", "round": 2, "scenario": "4k", "server": "fastedge", "cpu_seconds": 0.004, "gen": {"messages":100,"per_second":11500}}
{"pass": "cpu", "round": 3, "scenario": "4k", "server": "fastedge", "gen": {"messages":99,"errors":1}}
{"pass": "cpu", "round": 1, "scenario": "4k-group", "server": "fastedge", "cpu_seconds": 0.003, "gen": {"messages":100,"per_second":11500}}
{"pass": "cpu", "round": 1, "scenario": "ack", "server": "fastedge", "rate": 200, "gen": {"messages":600,"ack_p50_ms":1.25,"ack_p99_ms":3.5}}
{"pass": "cpu", "round": 1, "scenario": "idle", "server": "fastedge", "held": 5000, "rss_bytes": 950, "pss_bytes": 900, "rss_before_bytes": 2048000}
{"pass": "count", "round": 1, "scenario": "4k", "server": "fastedge", "counter": "perf", "system_calls": 900, "syncs": 2, "gen": {"messages":100}}
`
)

func TestCollectDividesAndLeavesFailedRunsOut(t *testing.T) {
	res, err := collect([]byte(someFacts), []byte(someRuns))
	if err != nil || len(res.Rows) != 5 || len(res.Servers) != 2 || len(res.Missing) != 1 {
		t.Fatal(err, res)
	}
	w := res.row("4k", "fastedge")
	if w.Failed != 1 || w.CPUMicros.Median != 50 || w.CPUMicros.Min != 40 || w.CPUMicros.Max != 60 {
		t.Errorf("CPU %+v, failed %d", w.CPUMicros, w.Failed)
	}
	if w.SystemCalls.Median != 9 || w.Syncs.Median != 0.02 {
		t.Errorf("system calls %+v, syncs %+v", w.SystemCalls, w.Syncs)
	}
	has(t, res.table(), "| fastedge  | yes ", "| 50.0 / 30.0 ", "| 3.50 ", "| 900 ", "| smtp-sink | no, thrown away ", "| 100 / – ", "Not had: exim (no apt-get).")
	has(t, res.full(), "| fastedge (1 runs failed) ", "| 50.0 (40.0–60.0) ", "| 2.00 ", "11,000 (10,500–11,500)", "Postfix 3.7", "`fdatasync(1.seg) = 0`",
		"| the same for all ", "counted by perf")
	has(t, string(res.chart()), `<rect class="durable"`, ">50.0 · on disk<", `<rect class="discard"`, ">100 · thrown away<", "prefers-color-scheme: dark")
}

func has(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("no %q in\n%s", p, text)
		}
	}
}

func TestMergeKeepsWhatWasNotMeasuredAgain(t *testing.T) {
	old := filepath.Join(t.TempDir(), "compare.json")
	res, _ := collect([]byte(someFacts), []byte(someRuns))
	text, _ := json.Marshal(res)
	if err := os.WriteFile(old, text, 0o644); err != nil {
		t.Fatal(err)
	}
	const again = `{"pass": "server", "server": "fastedge", "version": "v2", "pipelining": true, "evidence": {"class": "durable", "lines": ["x"]}}
{"pass": "cpu", "round": 1, "scenario": "4k", "server": "fastedge", "cpu_seconds": 0.002, "gen": {"messages":100,"per_second":1}}`
	res, _ = collect([]byte(strings.Replace(someFacts, "abc", "def", 1)), []byte(again))
	if err := res.merge(old); err != nil {
		t.Fatal(err)
	}
	if w := res.row("4k", "fastedge"); len(res.Rows) != 5 || w.CPUMicros.Median != 20 || w.From != "" {
		t.Errorf("%d rows, 4k of fastedge is %+v", len(res.Rows), w)
	}
	if w := res.row("4k", "smtp-sink"); w.CPUMicros.Median != 100 || w.From != "abc, 2026-11-22" {
		t.Errorf("4k of smtp-sink is %+v", w)
	}
	if len(res.Servers) != 2 || res.Servers[1].Version != "v2" {
		t.Errorf("servers %+v", res.Servers)
	}
	res, _ = collect([]byte(strings.Replace(someFacts, `"cores": 2`, `"cores": 4`, 1)), []byte(again))
	if err := res.merge(old); err == nil {
		t.Error("figures of another machine were merged")
	}
}

func TestRunOfTheGeneratorIsReduced(t *testing.T) {
	const run = `{"schema":1,"seconds":2,"totals":{"acknowledged":1000,"deferred":1,"refused":2,"errors":3,"dropped":4,"sessions":7},
		"phases":[{"name":"ack","outcome":"5xx","histogram":{"p50":9,"p99":9}},{"name":"ack","outcome":"2xx","histogram":{"p50":1.5,"p99":7}}],
		"replies":[{"text":"452 full"}],"generator":{"cpu_seconds":0.05}}`
	var r loadtestRun
	if err := json.Unmarshal([]byte(run), &r); err != nil {
		t.Fatal(err)
	}
	f, err := r.figures()
	if want := (figures{1000, 7, 10, "452 full", 2, 500, 1.5, 7, 50}); err != nil || f != want {
		t.Errorf("%+v, %v", f, err)
	}
	if r.Schema = 2; true {
		if _, err := r.figures(); err == nil {
			t.Error("a run of an unknown schema was read")
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
	const result = `{"servers":[{"name":"fastedge","version":"v7"}],"rows":[{"scenario":"idle","server":"fastedge","pss_bytes":{"median":700,"min":700,"max":700}}]}`
	if err := os.WriteFile(filepath.Join(dir, "compare.json"), []byte(result), 0o644); err != nil {
		t.Fatal(err)
	}
	const before = "a\n<!-- bench:compare -->\nold\n<!-- /bench -->\nb\n<!-- bench:compare-all -->\n<!-- /bench -->\n<!-- bench:unmeasured -->\nkept\n<!-- /bench -->\n"
	once, pairs, err := fillMarkers([]byte(before), dir)
	if err != nil || pairs != 3 {
		t.Fatal(pairs, err)
	}
	if s := string(once); strings.Contains(s, "old") || strings.Count(s, "| 700 ") != 2 || strings.Count(s, "v7") != 1 || !strings.Contains(s, "kept") {
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

func TestParseStat(t *testing.T) {
	parent, own, reaped, err := parseStat("7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 100 20 5 6 20 0 1 0")
	if err != nil || parent != 3 || own != 1200*time.Millisecond || reaped != 110*time.Millisecond {
		t.Error(parent, own, reaped, err)
	}
}
