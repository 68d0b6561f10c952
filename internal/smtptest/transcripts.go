package smtptest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/session"
)

var update = flag.Bool("update", false, "write the S and M lines of transcripts that do not match anew")

// Run runs every transcript that pattern names, each as a subtest.
func Run(t *testing.T, pattern string) {
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no transcripts in %s (%v)", pattern, err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".smtp"), func(t *testing.T) { runFile(t, path) })
	}
}

func runFile(t *testing.T, path string) {
	lines, err := parse(path)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, l := range lines {
		if l.mark == 'S' || l.mark == 'M' {
			want = append(want, l.String())
		}
	}
	got := play(t, lines, inOnePiece)
	if i := firstDifference(want, got); i >= 0 {
		if *update {
			rewrite(t, path, lines)
			return
		}
		t.Fatalf("%s: line %d of the server's part is %s\nwant, in order:\n\t%s\ngot:\n\t%s", path, i+1, at(got, i),
			strings.Join(want, "\n\t"), strings.Join(got, "\n\t"))
	}

	total := 0
	for _, l := range lines {
		total += len(l.data)
	}
	same := func(how string, cut func(i int, prev byte) bool) {
		t.Helper()
		again := play(t, lines, cut)
		for i := range max(len(got), len(again)) {
			if at(got, i) != at(again, i) {
				t.Fatalf("%s, %s: line %d of the server's part\nin one piece %s\n now %s", path, how, i+1, at(got, i), at(again, i))
			}
		}
	}
	same("byte by byte", func(int, byte) bool { return true })
	same("line by line", func(_ int, prev byte) bool { return prev == '\n' })
	for p := 1; p < total; p += stride {
		same(fmt.Sprintf("cut at byte %d", p), func(i int, _ byte) bool { return i == p })
	}
}

func inOnePiece(int, byte) bool { return false }

// play runs a transcript once and gives the server's lines. cut says whether to cut the client's stream in front of its byte i; prev
// is the byte before.
func play(t *testing.T, lines []line, cut func(i int, prev byte) bool) []string {
	t.Helper()
	c := begin(t, lines)
	var piece []byte
	var prev byte
	i := 0
	for _, l := range lines {
		for _, b := range l.data {
			if len(piece) > 0 && cut(i, prev) {
				c.Send(piece)
				piece = piece[:0]
			}
			piece = append(piece, b)
			prev = b
			i++
		}
		if l.mark == '!' && !isSetup(l.text) {
			if len(piece) > 0 {
				c.Send(piece)
				piece = piece[:0]
			}
			if err := c.direct(l.text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(piece) > 0 {
		c.Send(piece)
	}
	c.Lose()
	if used := c.Budget.Used(); used != 0 {
		t.Fatalf("%d bytes of message data are in use after the session", used)
	}
	return c.Lines
}

func begin(t *testing.T, lines []line) *Client {
	t.Helper()
	s := setup{options: session.Options{Hostname: "mx.example.net", Listener: "mx"}}
	for _, l := range lines {
		if l.mark == '!' {
			if _, err := s.configure(l.text); err != nil {
				t.Fatal(err)
			}
		}
	}
	return newClient(&s)
}

func isSetup(text string) bool {
	known, _ := new(setup).configure(text)
	return known
}

// firstDifference gives the index of the first line of got that want does not have, -1 when there is none.
func firstDifference(want, got []string) int {
	i := 0
	for _, w := range want {
		if !matches(w, at(got, i)) {
			return i
		}
		if isFolded(w) {
			for strings.HasPrefix(at(got, i), w[:len("S: 250-")]) {
				i++
			}
		}
		i++
	}
	if i < len(got) {
		return i
	}
	return -1
}

// isFolded says whether a line stands for a whole reply of several lines: "S: 250-…".
func isFolded(l string) bool { return len(l) == len("S: 250-…") && strings.HasSuffix(l, "-…") }

// fold shortens replies of several lines to one.
func fold(lines []string) (folded []string) {
	for i := 0; i < len(lines); i++ {
		l := lines[i]
		if len(l) > len("S: 250-") && l[:3] == "S: " && l[6] == '-' {
			start := l[:len("S: 250-")]
			for strings.HasPrefix(at(lines, i), start) {
				i++
			}
			l = start + "…"
		}
		folded = append(folded, l)
	}
	return folded
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(nothing)"
}

// rewrite writes the transcript with the lines that the server sends now, each behind the client's line that brings it about.
func rewrite(t *testing.T, path string, lines []line) {
	t.Helper()
	c := begin(t, lines)
	folding := false
	for _, l := range lines {
		folding = folding || isFolded(l.String())
	}
	var b strings.Builder
	flush := func() {
		if folding {
			c.Lines = fold(c.Lines)
		}
		for _, l := range c.Lines {
			b.WriteString(l + "\n")
		}
		c.Lines = nil
	}
	for _, l := range lines {
		if l.mark == 'S' || l.mark == 'M' {
			continue
		}
		dialogue := l.data != nil || l.mark == '!' && !isSetup(l.text)
		if dialogue {
			flush() // the greeting
		}
		b.WriteString(l.String() + "\n")
		if l.data != nil {
			c.Send(l.data)
		} else if dialogue {
			if err := c.direct(l.text); err != nil {
				t.Fatal(err)
			}
		}
		if dialogue {
			flush()
		}
	}
	flush()
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: rewritten", path)
}
