package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTablesOfJetStream(t *testing.T) {
	output := filepath.Join(t.TempDir(), "output")
	if err := os.WriteFile(output, []byte(`pkg: github.com/fastedge/fastedge/bench/jetstream
BenchmarkEndToEnd/spool 1 4000.0 accepted/s 3000.0 delivered/s 1.500 ack-p50-ms 9.000 ack-p99-ms 100.0 edge-µs 0.0 relay-µs 0.0 servers-µs 0 duplicates
BenchmarkEndToEnd/jetstream-R3 1 2000.0 accepted/s 1500.0 delivered/s 5.000 ack-p50-ms 90.0 ack-p99-ms 110.0 edge-µs 60.0 relay-µs 300.0 servers-µs 0 duplicates
pkg: github.com/fastedge/fastedge/bench
BenchmarkPublish/replicas=3/batch=alone-2 5 900000 ns/op 1000 msgs/s
BenchmarkPublish/replicas=3/batch=off-2 5 90000 ns/op 8000 msgs/s
BenchmarkPublish/replicas=3/batch=fast-2 5 60000 ns/op 12000 msgs/s
BenchmarkPublish/replicas=3/batch=auto-2 5 60000 ns/op 11500 msgs/s
`), 0o600); err != nil {
		t.Fatal(err)
	}
	res, err := collect([]byte(someFacts), nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Kind = "jetstream"
	if err := res.addGo(output); err != nil {
		t.Fatal(err)
	}
	text, err := res.special(true)
	if err != nil {
		t.Fatal(err)
	}
	has(t, text, "| auto ", "| 11,500 ", "| spool ", "| 4,000 ", "| jetstream, three copies ", "| 470 ", "| one by one, within a window ", "| 12,000 ", "| 1.50 ", "| 12.0 ")
}
