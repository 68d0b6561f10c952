package main

import (
	"strings"
	"testing"
)

const tlsRuns = `
{"pass": "server", "server": "fastedge", "version": "v1", "pipelining": true, "evidence": {"class": "durable", "lines": ["fdatasync(1.seg) = 0"]}}
{"pass": "server", "server": "postfix", "version": "3.7", "pipelining": true, "evidence": {"class": "durable", "lines": ["fsync(1) = 0"]}}
{"pass": "cpu", "round": 1, "scenario": "plain-session", "server": "fastedge", "cpu_seconds": 0.005, "gen": {"sessions":100,"per_second":1}}
{"pass": "cpu", "round": 2, "scenario": "plain-session", "server": "fastedge", "cpu_seconds": 0.009, "gen": {"sessions":100,"per_second":1}}
{"pass": "cpu", "round": 1, "scenario": "tls-session", "server": "fastedge", "cpu_seconds": 0.025, "gen": {"sessions":100,"per_second":1,"security":"TLS 1.3, X25519"}}
{"pass": "cpu", "round": 2, "scenario": "tls-session", "server": "fastedge", "cpu_seconds": 0.039, "gen": {"sessions":100,"per_second":1,"security":"TLS 1.3, X25519"}}
{"pass": "cpu", "round": 1, "scenario": "tls-session-hybrid", "server": "fastedge", "cpu_seconds": 0.045, "gen": {"sessions":100,"security":"TLS 1.3, X25519MLKEM768"}}
{"pass": "cpu", "round": 2, "scenario": "tls-session-hybrid", "server": "fastedge", "cpu_seconds": 0.049, "gen": {"sessions":100,"security":"TLS 1.3, X25519MLKEM768"}}
{"pass": "cpu", "round": 1, "scenario": "plain-session", "server": "postfix", "cpu_seconds": 0.1, "gen": {"sessions":100}}
{"pass": "cpu", "round": 1, "scenario": "tls-session", "server": "postfix", "cpu_seconds": 0.2, "gen": {"sessions":100,"security":"TLS 1.3, X25519"}}
{"pass": "cpu", "round": 1, "scenario": "tls-session-hybrid", "server": "postfix", "cpu_seconds": 0.2, "gen": {"sessions":100,"security":"TLS 1.3, X25519"}}
{"pass": "cpu", "round": 1, "scenario": "tls-1m-4c", "server": "fastedge", "cpu_seconds": 0.2, "gen": {"messages":100,"sessions":4}}
{"pass": "cpu", "round": 1, "scenario": "tls-idle", "server": "fastedge", "held": 2000, "heap_bytes": 5500, "rss_bytes": 9500, "pss_bytes": 9000, "rss_before_bytes": 2048000}
`

// collected reads runs as a result of that kind.
func collected(t *testing.T, kind, runs string) result {
	t.Helper()
	res, err := collect([]byte(someFacts), []byte(runs))
	if err != nil {
		t.Fatal(err)
	}
	res.Kind = kind
	return res
}

func special(t *testing.T, res result, all bool) string {
	t.Helper()
	text, err := res.special(all)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestAHandshakeIsTheDifferenceOfTwoSessionsInEachRound(t *testing.T) {
	res := collected(t, "tls", tlsRuns)
	// 200 and 300 µs in its rounds: 250, or 4,000 a second.
	has(t, special(t, res, false), "| fastedge | yes ", "| 250 ", "| 4,000 ", "| 400 ", "| 2,000 ", "| 500 ", "| 5,500 ", "| 9,000 ", "| postfix  | yes ", "| 1,000 ")
	has(t, special(t, res, true), "| with STARTTLS, handshake, EHLO ", "| 320 (250–390) ", "| TLS 1.3, X25519MLKEM768 |", "| fastedge               | 2,000 ", "`fsync(1) = 0`")
}

func TestServersWithoutAHybridKeyExchangeHaveNoFigureForIt(t *testing.T) {
	res := collected(t, "tls", tlsRuns)
	if got := res.tlsCells()[2][4]; got != "" {
		t.Errorf("postfix has %q", got)
	}
}

func TestSessionsThatAgreeOnSomethingElseOrCouldResumeFail(t *testing.T) {
	const other = `
{"pass": "cpu", "round": 3, "scenario": "tls-session", "server": "fastedge", "cpu_seconds": 0.025, "gen": {"sessions":100,"security":"TLS 1.3, P-256"}}
{"pass": "cpu", "round": 4, "scenario": "tls-session", "server": "fastedge", "cpu_seconds": 0.025, "gen": {"sessions":100,"security":"TLS 1.3, X25519","tickets":200}}`
	res := collected(t, "tls", tlsRuns+other)
	if w := res.row(tlsSession, "fastedge"); w.Failed != 2 || len(w.CPUMicros.Rounds) != 2 {
		t.Errorf("%d failed, %v", w.Failed, w.CPUMicros)
	}
}

func TestGrowthIsThatOfEachRound(t *testing.T) {
	var runs strings.Builder
	for _, r := range []string{
		`"server": "fastedge-strangers", "cpu_seconds": 0.004`, `"server": "fastedge-policy", "cpu_seconds": 0.0042`,
		`"server": "fastedge-strangers", "cpu_seconds": 0.008`, `"server": "fastedge-policy", "cpu_seconds": 0.0088`,
		`"server": "fastedge-strangers", "cpu_seconds": 0.006`, `"server": "fastedge-policy", "cpu_seconds": 0.0054`,
	} {
		runs.WriteString(`{"pass": "cpu", "scenario": "4k", ` + r + `, "gen": {"messages":100}}` + "\n")
	}
	has(t, special(t, collected(t, "policy", runs.String()), false), "| 4 KiB | 60.0 (40.0–80.0) ", "| 54.0 (42.0–88.0) ", "| +5.0 % (-10.0 to +10.0) |")
}

func TestStalledClientsAreNamedBesideTheLatency(t *testing.T) {
	const runs = `
{"pass": "cpu", "round": 1, "scenario": "ack", "server": "fastedge", "rate": 200, "gen": {"messages":600,"ack_p50_ms":1.25,"ack_p99_ms":3.5}}
{"pass": "cpu", "round": 1, "scenario": "ack-stalled", "server": "fastedge", "beside": 2000, "rate": 200, "gen": {"messages":600,"ack_p50_ms":1.5,"ack_p99_ms":4.5}}`
	has(t, special(t, collected(t, "stalled", runs), false), "| nobody ", "| 3.50 ", "| 2,000 within a handshake, 2,000 within AUTH | 1.50 ", "| 4.50 ")
}

func TestResultsOfAnUnknownKindAreRefused(t *testing.T) {
	res := result{Kind: "other"}
	if _, err := res.special(false); err == nil {
		t.Error("there is a table of something")
	}
}

// What bench/tls promises about the comparison holds for what is committed.
func TestCommittedTLSIsTheSameForAll(t *testing.T) {
	res, err := readResult("../results/tls.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range res.Servers {
		if w := res.row(tlsSession, s.Name); w != nil && w.Security != "TLS 1.3, TLS_AES_128_GCM_SHA256, X25519, ECDSA P-256" {
			t.Errorf("%s: %q", s.Name, w.Security)
		}
	}
	if len(res.Servers) < 3 {
		t.Errorf("only %d servers", len(res.Servers))
	}
}
