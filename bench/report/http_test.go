package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTablesOfHTTP(t *testing.T) {
	const runs = `
{"pass": "cpu", "round": 1, "scenario": "4k", "server": "fastedge", "cpu_seconds": 0.004, "gen": {"messages":100,"per_second":20000,"ack_p50_ms":1.5,"ack_p99_ms":4.5}}
{"pass": "cpu", "round": 2, "scenario": "4k", "server": "fastedge", "cpu_seconds": 0.006, "gen": {"messages":100,"per_second":20000,"ack_p50_ms":1.5,"ack_p99_ms":4.5}}
{"pass": "cpu", "round": 1, "scenario": "http-plain", "server": "fastedge", "cpu_seconds": 0.002, "gen": {"messages":100,"per_second":20000}}
{"pass": "cpu", "round": 2, "scenario": "http-plain", "server": "fastedge", "cpu_seconds": 0.0040, "gen": {"messages":100,"per_second":20000}}
{"pass": "cpu", "round": 1, "scenario": "http-batch", "server": "fastedge", "cpu_seconds": 0.001, "gen": {"messages":100,"per_second":20000}}
{"pass": "cpu", "round": 2, "scenario": "http-batch", "server": "fastedge", "cpu_seconds": 0.001, "gen": {"messages":100,"per_second":20000}}`
	output := filepath.Join(t.TempDir(), "output")
	if err := os.WriteFile(output, []byte("pkg: github.com/fastedge/fastedge/bench/http\n"+
		"BenchmarkSlowPosts/memory=64MiB 1 1000 clients 30.5 MiB-before 130 MiB-connected 181.5 MiB-peak 117.5 MiB-over-limit 900 MiB-sent 77 refused\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	res := collected(t, "http", runs)
	if err := res.addGo(output); err != nil {
		t.Fatal(err)
	}
	// 50 and 30 µs: 20,000 and 33,333 a CPU-second; in the rounds 2 and 1.5 times as many.
	has(t, special(t, res, false), "| SMTP ", "| 0.050 (0.040–0.060) ", "| 20,000 ", "| POST /, message/rfc822 ", "| 33,300 ", "| 1.75 (1.50–2.00) ",
		"| 100,000 ", "| 3.00 (2.00–4.00) ", "| 1.50 / 4.50 ", "| 64 MiB ", "| 1,000 ", "| 182 ", "| 118 ")
}
