package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTablesOfSPF(t *testing.T) {
	output := filepath.Join(t.TempDir(), "output")
	if err := os.WriteFile(output, []byte(`pkg: github.com/fastedge/fastedge/spf
BenchmarkProviderChain/cached-2   1000  500 ns/op  0 B/op  0 allocs/op
BenchmarkProviderChain/parsing-2   1000  4000 ns/op  9 B/op  10 allocs/op
BenchmarkProviderChain/blitiri-2   1000  20000 ns/op  99 B/op  126 allocs/op
pkg: github.com/fastedge/fastedge/bench
BenchmarkCachedSender/mail-2   1000  1600 ns/op  48 B/op  2 allocs/op
BenchmarkSessionWithSPF/off-2   1000  2300 ns/op  0 B/op  0 allocs/op
BenchmarkSessionWithSPF/enforce-2   1000  3650 ns/op  32 B/op  1 allocs/op
BenchmarkChecksBesideASilentDomain/waiting=0-2   1000  500 ns/op 20.0 p50-µs 100 p99-µs
BenchmarkChecksBesideASilentDomain/waiting=50000-2   1000  500 ns/op 21.0 p50-µs 200 p99-µs 2800 B/waiting
pkg: github.com/fastedge/fastedge/bench/spf
BenchmarkClientsBesideASilentDomain/waiting=15000 1 1.5 ack-p50-ms 4 ack-p99-ms 0.1 mail-p50-ms 0.4 mail-p99-ms 5000 B/waiting 25.01 first-s 25.2 last-s
BenchmarkClientsBesideASilentDomain/waiting=15000 1 1.5 ack-p50-ms 4 ack-p99-ms 0.1 mail-p50-ms 0.4 mail-p99-ms 5000 B/waiting 25.04 first-s 25.1 last-s
`), 0o600); err != nil {
		t.Fatal(err)
	}
	runs := strings.NewReplacer(`"fastedge"`, `"fastedge-spf-off"`, `"smtp-sink"`, `"fastedge-spf"`).Replace(someRuns)
	res, err := collect([]byte(someFacts), []byte(runs))
	if err != nil {
		t.Fatal(err)
	}
	res.Kind = "spf"
	if err := res.addGo(output); err != nil {
		t.Fatal(err)
	}
	text, err := res.special(true)
	if err != nil {
		t.Fatal(err)
	}
	has(t, text, "| cached, parsed before ", "| 1.60 µs ", "| 500 ns ", "| 2,000,000 ", "| 40.0 ", "| blitiri.com.ar/go/spf ", "| 50.0 (40.0–60.0) ", "| 100 ", "| 50000 ", "| 2,800 ", "| 15000 ",
		"| 25.0–25.2 ", "| spf.mode off ", "| 3.65 ", "| 1.35 ")
}
