package spf

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fields splits a line at spaces; quoted fields, and quoted values after "=", are as in Go.
func fields(t *testing.T, line string) (out []string) {
	t.Helper()
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " ") {
		end := strings.IndexAny(line, ` "`)
		if end < 0 {
			end = len(line)
		}
		one := line[:end]
		line = line[end:]
		if strings.HasPrefix(line, `"`) {
			q, err := strconv.QuotedPrefix(line)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			value, err := strconv.Unquote(q)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			one += value
			line = line[len(q):]
		}
		out = append(out, one)
	}
	return out
}

func TestRealisticZones(t *testing.T) {
	text, err := os.ReadFile("testdata/realistic.txt")
	if err != nil {
		t.Fatal(err)
	}
	type test struct {
		number int
		f      []string
	}
	var z zone
	var tests []test
	ran := 0
	flush := func() {
		for _, tt := range tests {
			ran++
			t.Run(tt.f[1], func(t *testing.T) { realistic(t, z, tt.number, tt.f) })
		}
		z, tests = zone{}, nil
	}
	for i, line := range strings.Split(string(text), "\n") {
		switch f := fields(t, line); {
		case len(f) == 0 || f[0] == "#" || strings.HasPrefix(line, "#"):
		case f[0] == "=":
			flush()
		case f[0] == "?":
			tests = append(tests, test{i + 1, f})
		default:
			z[f[0]] = append(z[f[0]], rr{kind: f[1], value: strings.Join(f[2:], ""), pref: i})
		}
	}
	flush()
	t.Logf("%d tests", ran)
}

func realistic(t *testing.T, z zone, line int, f []string) {
	p := Params{IP: netip.MustParseAddr(f[2]), Helo: f[3], Sender: f[4], Receiver: "mx.receiver.example", Now: time.Unix(1893456000, 0)}
	if p.Sender == "<>" {
		p.Sender = ""
	}
	want := map[string]string{}
	for _, o := range f[6:] {
		key, value, ok := strings.Cut(o, "=")
		if !ok {
			t.Fatalf("line %d: %q", line, o)
		}
		switch key {
		case "identity":
			p.Identity = Helo
		case "maxvoid":
			p.MaxVoid, _ = strconv.Atoi(value)
		default:
			want[key] = value
		}
	}
	r := New(p).Run(z.lookup)
	if r.Code.String() != f[5] {
		t.Errorf("line %d: %s, want %s (%s)", line, r.Code, f[5], r.Problem)
	}
	got := map[string]string{"exp": r.Explanation, "mech": r.Mechanism, "dom": r.Domain, "queries": strconv.Itoa(r.Queries),
		"voids": strconv.Itoa(r.Voids), "lookups": strconv.Itoa(r.Lookups)}
	for key, value := range want {
		if v, ok := got[key]; !ok || v != value {
			t.Errorf("line %d: %s=%q, want %q", line, key, v, value)
		}
	}
}
