package smtptest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestEscapes(t *testing.T) {
	for text, want := range map[string]string{
		`plain`:              "plain",
		`a\r\n\t\0\\b`:       "a\r\n\t\x00\\b",
		`\x41\xff`:           "A\xff",
		`\{3*ab}c`:           "abababc",
		`\{2*a\r\n}`:         "a\r\na\r\n",
		`MAIL FROM:<\{3*x}>`: "MAIL FROM:<xxx>",
	} {
		got, err := unescape(text)
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{`\`, `\q`, `\xg0`, `\{a*b}`, `\{3}`, `\{3*a`} {
		if got, err := unescape(text); err == nil {
			t.Errorf("%s: %q and no error", text, got)
		}
	}
}

func TestEllipsisMatchesAnyRun(t *testing.T) {
	for _, c := range []struct {
		want, got string
		same      bool
	}{
		{"250 Ok", "250 Ok", true},
		{"250 Ok", "250 Ok.", false},
		{"250 …", "250 2.1.0 <a> Ok", true},
		{"250 … Ok", "250 2.1.0 <a> Ok", true},
		{"250 … Ok", "250 2.1.0 <a> Oh", false},
		{"250 …<a>… Ok", "250 2.1.0 <a> Ok", true},
		{"250 …<b>… Ok", "250 2.1.0 <a> Ok", false},
		{"…", "", true},
	} {
		if matches(c.want, c.got) != c.same {
			t.Errorf("%q and %q", c.want, c.got)
		}
	}
}

func TestFoldedReplyStandsForAllItsLines(t *testing.T) {
	got := []string{"S: 220 x", "S: 250-a", "S: 250-b", "S: 250 c", "S: 250 Ok"}
	if i := firstDifference([]string{"S: 220 x", "S: 250-…", "S: 250 Ok"}, got); i >= 0 {
		t.Errorf("difference at %d", i)
	}
	for _, want := range [][]string{{"S: 220 x", "S: 250-…"}, {"S: 220 x", "S: 250-…", "S: 250 Ok", "S: 250 Ok"}, {"S: 250-…"}, nil} {
		if firstDifference(want, got) < 0 {
			t.Errorf("%q matches", want)
		}
	}
	if folded := fold(got); !slices.Equal(folded, []string{"S: 220 x", "S: 250-…", "S: 250 Ok"}) {
		t.Errorf("%q", folded)
	}
}

// What -update writes is a transcript that passes, with the author's lines untouched.
func TestRewrittenTranscriptPasses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.smtp")
	script := "# Intent.\n\n! size 100\nC: EHLO a\nS: 250-…\nC: MAIL FROM:<a@x>\nC: RCPT TO:<b@x>\n# A remark.\nC: DATA\nC: text\nC: .\n! wait 5m\n"
	if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	lines, err := parse(path)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, path, lines)
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "# Intent.\n\n! size 100\nS: 220 mx.example.net ESMTP Mail Gateway\nC: EHLO a\nS: 250-…\nC: MAIL FROM:<a@x>\nS: 250 2.1.0 <a@x> Ok\n" +
		"C: RCPT TO:<b@x>\nS: 250 2.1.5 <b@x> Ok\n# A remark.\nC: DATA\nS: 354 Start mail input; end with <CRLF>.<CRLF>\nC: text\nC: .\n" +
		"M: ESMTP <a@x> | <b@x> | \"text\\r\\n\"\nS: 250 2.6.0 Message queued as 00000000000000000000000001\n! wait 5m\nS: 421 4.4.2 Connection timed out\nS: <close>\n"
	if string(written) != want {
		t.Errorf("\n got %q\nwant %q", written, want)
	}
	runFile(t, path)
}

func TestParseNamesTheLine(t *testing.T) {
	for script, want := range map[string]string{
		"C: NOOP\n":                 ":1: ",
		"# Intent.\nX: what\n":      ":2: ",
		"# Intent.\nC: \\q\n":       ":2: ",
		"# Intent.\n\nC+ \\{x*y}\n": ":3: ",
	} {
		path := filepath.Join(t.TempDir(), "x.smtp")
		if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := parse(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", script, err)
		}
	}
}
