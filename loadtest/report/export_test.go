package report

import (
	"bytes"
	"encoding/csv"
	"regexp"
	"strings"
	"testing"
)

func TestCSVHasOneLineASecond(t *testing.T) {
	r := synthetic(1, "open")
	r.Series = r.Series[:3]
	var b bytes.Buffer
	if err := WriteCSV(&b, r); err != nil {
		t.Fatal(err)
	}
	golden(t, "series.csv", b.Bytes())
	if rows, err := csv.NewReader(&b).ReadAll(); err != nil || len(rows) != 4 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}

// The syntax of golang.org/x/perf/benchfmt: a name without white space, a count, then pairs of value and unit.
var benchSyntax = regexp.MustCompile(`^BenchmarkLoad(/[a-z]+=[^\s/="<>]+)+ [1-9]\d* \d+ ns/op( [0-9.e+-]+ [^\s]+)+$`)

func TestGoBenchmarkLines(t *testing.T) {
	var b bytes.Buffer
	a, s, bad := synthetic(1, "open"), synthetic(2, "closed"), troubled()
	a.Parameters.Rate, a.Parameters.Arrivals = 5000, "constant"
	s.Parameters.SessionsOnly = true
	bad.Label += " a/b=c é -2"
	if err := WriteGoBench(&b, a, synthetic(2, "closed"), s, bad, &Run{}); err != nil {
		t.Fatal(err)
	}
	golden(t, "gobench.txt", b.Bytes())
	lines := 0
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "Benchmark") {
			lines++
			if !benchSyntax.MatchString(strings.TrimSuffix(line, "\n")) {
				t.Errorf("not a benchmark line: %s", line)
			}
		}
	}
	if lines != 4 {
		t.Errorf("%d lines", lines)
	}
}

func TestUnlikeRunsHaveUnlikeBenchmarkNames(t *testing.T) {
	base := synthetic(1, "closed")
	names := map[string]bool{benchName(base): true}
	for i, change := range []func(*Parameters){
		func(p *Parameters) { p.Protocol = "lmtp" }, func(p *Parameters) { p.Rate = 7 }, func(p *Parameters) { p.Connections++ }, func(p *Parameters) { p.BDAT = 1 },
		func(p *Parameters) { p.ImplicitTLS = true }, func(p *Parameters) { p.Auth = "PLAIN" }, func(p *Parameters) { p.Proxy = "v2" }, func(p *Parameters) { p.PerConnection = 1 },
		func(p *Parameters) { p.SessionsOnly = true }, func(p *Parameters) { p.Recipients = "1..5" }, func(p *Parameters) { p.BadClients = 0.01 },
	} {
		r := *base
		change(&r.Parameters)
		if name := benchName(&r); names[name] {
			t.Errorf("change %d: %s again", i, name)
		} else {
			names[name] = true
		}
	}
}

func TestMarkdownRows(t *testing.T) {
	var b bytes.Buffer
	r := troubled()
	r.Label += " a|b `c` [d](e)"
	if err := WriteMarkdown(&b, synthetic(2, "closed"), r, idle()); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.md", b.Bytes())
	if strings.Contains(b.String(), "<img") {
		t.Error("a label's markup is in the table")
	}
}
