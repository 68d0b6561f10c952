package report

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"runtime"
	"strconv"
	"strings"
)

// WriteCSV writes the series, one line a second, below a line with names and units.
func WriteCSV(w io.Writer, r *Run) error {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"at_s", "offered_per_s", "acknowledged_per_s", "deferred_per_s", "refused_per_s", "errors_per_s", "dropped_per_s",
		"in_flight", "waiting", "ack_p50_ms", "ack_p99_ms", "server_cpu_cores", "server_rss_bytes"})
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	f := func(v float64) string {
		if math.Abs(v) < 1e9 {
			v = math.Round(v*1e4) / 1e4
		}
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	for i := range r.Series {
		s := &r.Series[i]
		_ = c.Write([]string{f(s.At), n(s.Offered), n(s.Acknowledged), n(s.Deferred), n(s.Refused), n(s.Errors), n(s.Dropped),
			n(s.InFlight), n(s.Waiting), f(s.AckP50Ms), f(s.AckP99Ms), f(s.ServerCPU), n(s.ServerRSS)})
	}
	c.Flush()
	return c.Error() // of any Write, too
}

// WriteGoBench writes runs in the format of Go benchmarks, so that benchstat compares them:
//
//	BenchmarkLoad/target=postfix/loop=closed/size=4KiB/pipelining=off/conns=100 240000 123000 ns/op 8123 msg/s …
//
// An op is a message that was acknowledged. Every parameter that is not at its default is in the name, so runs that are unlike do not
// end up in one row. Runs with --sessions-only have no messages; their op is a session.
func WriteGoBench(w io.Writer, runs ...*Run) error {
	var b strings.Builder
	b.WriteString("Unit msg/s better=higher\nUnit session/s better=higher\n")
	head := ""
	for _, r := range runs {
		line := benchLine(r)
		if line == "" {
			continue
		}
		platform := cmp.Or(r.Machine.Platform, runtime.GOOS+"/"+runtime.GOARCH)
		goos, goarch, _ := strings.Cut(platform, "/")
		h := fmt.Sprintf("goos: %s\ngoarch: %s\npkg: load\ncpu: %s\n", benchWord(goos), benchWord(goarch), printable(cmp.Or(r.Machine.CPU, "unknown"), 100))
		if h != head {
			b.WriteString(h)
			head = h
		}
		b.WriteString(line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// benchLine is empty when nothing was measured: a benchmark has one op at least.
func benchLine(r *Run) string {
	n, unit := r.Totals.Acknowledged, "msg"
	if r.Parameters.SessionsOnly {
		n, unit = r.Totals.Sessions, "session"
	}
	if n <= 0 || r.Seconds <= 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %.0f ns/op", benchName(r), n, r.Seconds*1e9/float64(n))
	add := func(v float64, unit string) {
		fmt.Fprintf(&b, " %s %s", strconv.FormatFloat(v, 'g', 6, 64), unit)
	}
	add(float64(n)/r.Seconds, unit+"/s")
	if h := r.Phase("ack", "2xx"); h != nil && unit == "msg" {
		add(h.Ms(50), "ack-p50-ms")
		add(h.Ms(99), "ack-p99-ms")
	}
	if h := r.Phase("session", "2xx"); h != nil && unit == "session" {
		add(h.Ms(50), "session-p50-ms")
		add(h.Ms(99), "session-p99-ms")
	}
	if s := r.Server; s != nil {
		add(s.CPUSeconds*1e6/float64(n), "cpu-us/"+unit)
		add(float64(s.PeakRSS)/1e6, "rss-MB")
	}
	b.WriteByte('\n')
	return b.String()
}

// benchName ends with conns=N: a name that ends with a dash and digits, as a label may, would be taken for GOMAXPROCS.
func benchName(r *Run) string {
	p := &r.Parameters
	var b strings.Builder
	b.WriteString("BenchmarkLoad")
	add := func(key, value string) { b.WriteString("/" + key + "=" + benchWord(value)) }
	optional := func(key, value, usual string) {
		if value != "" && value != usual {
			add(key, value)
		}
	}
	amount := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	add("target", cmp.Or(r.Label, r.Target.Address))
	optional("protocol", p.Protocol, "smtp")
	add("loop", p.Loop)
	optional("rate", amount(p.Rate), "0")
	optional("arrivals", p.Arrivals, "")
	optional("ramp", p.Ramp, "")
	optional("profile", p.Profile, "")
	add("size", p.Size)
	optional("recipients", p.Recipients, "1")
	add("pipelining", p.Pipelining)
	optional("bdat", amount(p.BDAT), "0")
	optional("starttls", amount(p.STARTTLS), "0")
	if p.ImplicitTLS {
		add("tls", "implicit")
	}
	optional("auth", p.Auth, "")
	optional("sources", p.Sources, "")
	optional("proxy", p.Proxy, "")
	optional("slow", amount(p.SlowClients), "0")
	optional("bad", amount(p.BadClients), "0")
	if p.SessionsOnly {
		add("mail", "none")
	}
	optional("perconn", strconv.Itoa(p.PerConnection), "0")
	add("conns", strconv.Itoa(p.Connections))
	return b.String()
}

// benchWord makes a part of a benchmark's name: no white space, no slash, no equals sign, nothing beyond ASCII.
func benchWord(s string) string {
	s = strings.Map(func(c rune) rune {
		if c <= ' ' || c >= 0x7f || strings.ContainsRune(`/="'<>`+"`", c) {
			return '_'
		}
		return c
	}, s)
	if len(s) > 60 {
		s = s[:60]
	}
	return cmp.Or(s, "none")
}

// WriteMarkdown writes runs as a Markdown table, one row each.
func WriteMarkdown(w io.Writer, runs ...*Run) error {
	var b strings.Builder
	b.WriteString("| target | load | msg/s | ack p50 | ack p99 | CPU-s per 1,000 | RSS | 4xx | 5xx | errors | lost | |\n")
	b.WriteString("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n")
	for _, r := range runs {
		ack := r.Phase("ack", "2xx")
		cell := func(shown bool, text string) string {
			if !shown {
				return "–"
			}
			return text
		}
		cpu, rss, lost := "–", "–", "–"
		if r.Server != nil {
			cpu, rss = cell(r.Server.CPUPerThousand > 0, figure(r.Server.CPUPerThousand)), octets(float64(r.Server.PeakRSS))
		}
		if r.Verdict != nil {
			lost = grouped(r.Verdict.Lost)
		}
		loop, _ := loopSentence(r)
		load := loop
		if l := r.Parameters.load(); l != "" {
			load += ", " + l
		}
		for _, c := range []string{markdownText(cmp.Or(r.Label, r.Target.Address)), markdownText(load), figure(r.Rate()),
			cell(ack != nil, latency(ack.Ms(50))), cell(ack != nil, latency(ack.Ms(99))), cpu, rss, grouped(r.Totals.Deferred), grouped(r.Totals.Refused),
			grouped(r.Totals.Errors), lost, r.outcome()} {
			b.WriteString("| " + c + " ")
		}
		b.WriteString("|\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// outcome is PASS or FAIL, or nothing when nothing was asked.
func (r *Run) outcome() string {
	switch {
	case !r.Pass():
		return "FAIL"
	case r.Verdict == nil && len(r.Thresholds) == 0:
		return ""
	default:
		return "PASS"
	}
}

// markdownText keeps a target's text out of the table's structure, and out of the HTML that Markdown lets through.
func markdownText(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "|", `\|`, "`", "\\`", "[", `\[`, "]", `\]`, "*", `\*`, "_", `\_`, `\`, `\\`).Replace(printable(s, 120))
}
