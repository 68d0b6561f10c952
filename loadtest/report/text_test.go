package report

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; run with -update and read the difference\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

func TestTextBlocksAreAsCommitted(t *testing.T) {
	open := synthetic(1, "open")
	open.Parameters.Rate, open.Parameters.Arrivals = 5000, "constant"
	sessions := synthetic(3, "closed")
	sessions.Parameters.SessionsOnly, sessions.Verdict = true, nil
	for _, c := range []struct {
		name  string
		run   *Run
		style Style
	}{
		{"open.txt", open, Style{}},
		{"closed-phases.txt", synthetic(2, "closed"), Style{Phases: true}},
		{"troubled.txt", troubled(), Style{Phases: true}},
		{"troubled-color.txt", troubled(), Style{Color: true}},
		{"sessions.txt", sessions, Style{}},
		{"idle.txt", idle(), Style{}},
		{"empty.txt", &Run{}, Style{Phases: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := WriteText(&b, c.run, c.style); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name, b.Bytes())
		})
	}
}

func TestTargetCannotDriveTheTerminal(t *testing.T) {
	var b strings.Builder
	r := troubled()
	r.Replies[0].Text = "550 \x1b]0;title\x07 \u202egnp.exe \u009b31m"
	if err := WriteText(&b, r, Style{Phases: true}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"\x1b", "\x07", "\u202e", "\u009b"} {
		if strings.Contains(b.String(), bad) {
			t.Errorf("%q reached the terminal", bad)
		}
	}
}

func TestFiguresKeepThreeDigits(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0001: "0", 0.0123: "0.012", 0.0996: "0.10", 1.4: "1.40", 9.996: "10.0", 44: "44.0", 99.96: "100",
		312.4: "312", 12345: "12,345", -1234567: "-1,234,567"} {
		if got := figure(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
	for ms, want := range map[float64]string{0: "0", 0.064: "64.0 µs", 0.85: "0.85 ms", 1.4: "1.40 ms", 2500: "2.50 s"} {
		if got := latency(ms); got != want {
			t.Errorf("%v ms: %s, want %s", ms, got, want)
		}
	}
}
