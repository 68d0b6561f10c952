package main

import (
	"os"
	"slices"
	"strings"
)

// addGo appends what go test -bench has printed, or what looks like it.
func (res *result) addGo(path string) error {
	output, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	more, err := collectGo([]byte("{}"), output)
	if err != nil {
		return err
	}
	res.Rows = append(res.Rows, more.Rows...)
	return nil
}

// spfCells are the tables of bench/spf: the evaluator alone, a session and a server without and with SPF, and what others notice of checks that wait.
func (res *result) spfCells() [][][]string {
	const chain, silent, clients = "ProviderChain/", "ChecksBesideASilentDomain/", "ClientsBesideASilentDomain/"
	checks := [][]string{{"five records", "a check", "checks a second", "allocations", "× blitiri.com.ar/go/spf"}}
	peer := res.row("spf", chain+"blitiri")
	for _, line := range []struct{ name, as string }{{"cached", "cached, parsed before"}, {"parsing", "cached, parsed each time"}, {"blitiri", "blitiri.com.ar/go/spf"}} {
		w := res.row("spf", chain+line.name)
		if w == nil || peer == nil {
			continue
		}
		ns := w.Metrics["ns/op"]
		checks = append(checks, []string{line.as, duration(ns), number(1e9 / ns.Median), median(w.Metrics["allocs/op"]),
			pair(peer.Metrics["ns/op"], ns, func(a, b float64) float64 { return a / b }).String()})
	}
	for _, line := range []struct{ name, as string }{{"mail", "with resolver and policy: MAIL"}, {"mail+message", "MAIL, and the header fields"}} {
		if w := res.row("bench", "CachedSender/"+line.name); w != nil {
			checks = append(checks, []string{line.as, duration(w.Metrics["ns/op"]), number(1e9 / w.Metrics["ns/op"].Median), median(w.Metrics["allocs/op"]), ""})
		}
	}

	cpu := [][]string{{"load", "spf.mode off, CPU µs", "enforce, no header fields: growth, µs", "enforce, CPU µs", "growth, µs"}}
	for _, sc := range scenarioNames {
		without, bare, with := res.cpu(sc.id, "fastedge-spf-off"), res.cpu(sc.id, "fastedge-spf-bare"), res.cpu(sc.id, "fastedge-spf")
		if without != nil && with != nil {
			cpu = append(cpu, []string{sc.name, without.String(), bare.minus(without).likely(), with.String(), with.minus(without).likely()})
		}
	}

	session := [][]string{{"a message of 4 KiB in a session", "µs", "growth in a round, µs", "allocations"}}
	off := res.row("bench", "SessionWithSPF/off")
	for _, line := range []struct{ name, as string }{{"off", "spf.mode off"}, {"enforce-no-fields", "enforce, no header fields"}, {"enforce", "enforce"},
		{"enforce-checked", "enforce, each checked in full"}} {
		if w := res.row("bench", "SessionWithSPF/"+line.name); w != nil && off != nil {
			micros := func(ns, _ float64) float64 { return ns / 1000 }
			growth := pair(w.Metrics["ns/op"], off.Metrics["ns/op"], func(a, b float64) float64 { return (a - b) / 1000 }).String()
			if w == off {
				growth = ""
			}
			session = append(session, []string{line.as, pair(w.Metrics["ns/op"], w.Metrics["ns/op"], micros).String(), growth, median(w.Metrics["allocs/op"])})
		}
	}

	beside := [][]string{{"beside checks that wait", "new sender: p50, µs", "p99, µs", "bytes for each that waits"}}
	through := [][]string{{"beside clients that wait", "ack p50, ms", "ack p99, ms", "MAIL by a new sender: p50, ms", "p99, ms", "RSS, bytes for each that waits", "they were deferred after, s"}}
	for _, w := range res.Rows {
		m := w.Metrics
		if n, ok := strings.CutPrefix(w.Server, silent+"waiting="); ok {
			beside = append(beside, []string{strings.NewReplacer("-of-one", ", all of one domain", "-of-as-many", ", each of a domain of its own").Replace(n), m["p50-µs"].String(), m["p99-µs"].String(), m["B/waiting"].String()})
		}
		if n, ok := strings.CutPrefix(w.Server, clients+"waiting="); ok {
			ended := ""
			if m["first-s"] != nil && m["last-s"] != nil {
				ended = number(m["first-s"].Min) + "–" + number(m["last-s"].Max)
			}
			through = append(through, []string{n, m["ack-p50-ms"].String(), m["ack-p99-ms"].String(), m["mail-p50-ms"].String(), m["mail-p99-ms"].String(),
				m["B/waiting"].String(), ended})
		}
	}
	tables := [][][]string{checks, cpu, beside, through}
	if len(session) > 1 {
		tables = slices.Insert(tables, 1, session)
	}
	return tables
}
