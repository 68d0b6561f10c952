package ledger

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

const testRun RunID = 0x0123456789abcdef

// message makes a marked one: before and after are header lines around the mark.
func message(seq uint64, before, after, body string) []byte {
	m := Mark{Run: testRun, Seq: seq, Body: sha256.Sum256([]byte(body)), Head: HeadSum([]byte(after))}
	return append(m.Append([]byte(before)), after+"\r\n"+body...)
}

// whole is the oracle: what Inspection must find, from the message in one piece.
func whole(msg []byte) Finding {
	lines := bytes.SplitAfter(msg, []byte("\n"))
	at := 0
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		if s := string(line); s == "\r\n" || s == "\n" || s == "" {
			return Finding{}
		}
		if !isMarkField(line) || len(line) > maxMarkLine || at+len(line) > MaxUnmarkedBytes {
			at += len(line)
			continue
		}
		field, good := bytes.Clone(line), true
		at += len(line)
		for i+1 < len(lines) && good && (bytes.HasPrefix(lines[i+1], []byte(" ")) || bytes.HasPrefix(lines[i+1], []byte("\t"))) {
			i++
			field = append(field, lines[i]...)
			at += len(lines[i])
			good = len(lines[i]) <= maxMarkLine && len(field) <= maxMarkField
		}
		m, ok := ParseMark(field)
		if !ok || !good {
			continue
		}
		rest, start := msg[at:], 0
		for start < len(rest) && !bytes.HasPrefix(rest[start:], []byte("\r\n")) && rest[start] != '\n' {
			n := bytes.IndexByte(rest[start:], '\n')
			if n < 0 {
				start = len(rest)
				break
			}
			start += n + 1
		}
		var body []byte
		if start < len(rest) {
			body = rest[start+bytes.IndexByte(rest[start:], '\n')+1:]
		}
		return Finding{Mark: m, Marked: true, BodyIntact: sha256.Sum256(body) == m.Body, HeadIntact: HeadSum(rest[:start]) == m.Head}
	}
	return Finding{}
}

func inspect(in *Inspection, pieces ...[]byte) Finding {
	in.Reset()
	for _, p := range pieces {
		in.Write(p)
	}
	return in.Finish()
}

var inspected100 = strings.Repeat("X-Filler: 0123456789 0123456789 0123456789 0123456789\r\n", 100)

// inspections are messages by name, and whether mark, body and header are as they should be.
var inspections = map[string]struct {
	msg                  []byte
	marked, body, header bool
}{
	"plain":             {message(1, "", "Subject: a\r\n", "Hello\r\n"), true, true, true},
	"trace before":      {message(1, "Received: from a\r\n\tby b; now\r\n"+inspected100, "Subject: a\r\n", "Hello\r\n"), true, true, true},
	"nothing behind":    {message(1, "Subject: a\r\n", "", "Hello\r\n"), true, true, true},
	"empty body":        {message(1, "Subject: a\r\n", "To: b\r\n", ""), true, true, true},
	"folded":            {bytes.ReplaceAll(message(1, "", "Subject: a\r\n", "Hello\r\n"), []byte(" body="), []byte("\r\n\tbody=")), true, true, true},
	"body changed":      {bytes.Replace(message(1, "", "Subject: a\r\n", "Hello\r\n"), []byte("Hello"), []byte("Hallo"), 1), true, false, true},
	"body cut":          {bytes.TrimSuffix(message(1, "", "Subject: a\r\n", "Hello\r\n"), []byte("\r\n")), true, false, true},
	"header changed":    {bytes.Replace(message(1, "", "Subject: a\r\n", "Hello\r\n"), []byte("Subject: a"), []byte("Subject: b"), 1), true, true, false},
	"field added":       {bytes.Replace(message(1, "", "Subject: a\r\n", "Hello\r\n"), []byte("Subject: a\r\n"), []byte("Subject: a\r\nX: y\r\n"), 1), true, true, false},
	"long line behind":  {message(1, "", "X: "+strings.Repeat("y", 5000)+"\r\nSubject: a\r\n", "Hello\r\n"), true, true, true},
	"long line before":  {message(1, "X: "+strings.Repeat("y", 5000)+"\r\n", "Subject: a\r\n", "Hello\r\n"), true, true, true},
	"line feeds":        {bytes.ReplaceAll(message(1, "", "Subject: a\r\n", "Hello\r\n"), []byte("\r\n"), []byte("\n")), true, false, false},
	"mark in the body":  {append([]byte("Subject: a\r\n\r\n"), message(1, "", "", "Hello\r\n")...), false, false, false},
	"two marks":         {append(sampleMark.Append(nil), message(1, "", "", "Hello\r\n")...), true, true, false},
	"illegible first":   {append([]byte(MarkField+": none\r\n"), message(1, "", "", "Hello\r\n")...), true, true, true},
	"mark continued":    {bytes.Replace(message(1, "", "Subject: a\r\n", "Hello\r\n"), []byte("Subject: a"), []byte(" more"), 1), false, false, false},
	"overlong field":    {bytes.Replace(message(1, "", "Subject: a\r\n", "Hello\r\n"), []byte("Subject: a"), []byte(" "+strings.Repeat(" ", 1100)), 1), false, false, false},
	"no header section": {[]byte("\r\nHello\r\n"), false, false, false},
	"empty":             {nil, false, false, false},
	"no empty line":     {sampleMark.Append(nil), true, false, false},
	"unfinished line":   {[]byte("Subject: a\r\nX-Loadtest"), false, false, false},
	"carriage returns":  {message(1, "", "Subject: a\r\r\n\rX: y\r\n", "\rHello\r\n"), true, true, true},
}

func TestInspectionFinds(t *testing.T) {
	in := NewInspection(new(Register))
	for name, test := range inspections {
		f := inspect(in, test.msg)
		if f.Marked != test.marked || f.BodyIntact != test.body || f.HeadIntact != test.header {
			t.Errorf("%s: marked %v, body %v, header %v", name, f.Marked, f.BodyIntact, f.HeadIntact)
		}
		if w := whole(test.msg); f != w {
			t.Errorf("%s: %+v, the oracle has %+v", name, f, w)
		}
	}
}

func TestInspectionIsTheSameForAnySplit(t *testing.T) {
	in := NewInspection(new(Register))
	for name, test := range inspections {
		want := inspect(in, test.msg)
		in.Reset()
		for i := range test.msg {
			in.Write(test.msg[i : i+1])
		}
		if got := in.Finish(); got != want {
			t.Errorf("%s, octet by octet: %+v, want %+v", name, got, want)
		}
		for i := range test.msg {
			if got := inspect(in, test.msg[:i], test.msg[i:]); got != want {
				t.Fatalf("%s, cut at %d: %+v, want %+v", name, i, got, want)
			}
		}
	}
}

// Every string of up to 7 symbols, of those that the header section's machine tells apart.
func TestInspectionAllShortInputs(t *testing.T) {
	mark := string(Mark{Run: 1, Seq: 1, Body: sha256.Sum256(nil)}.Append(nil))
	symbols := []string{mark, strings.TrimSuffix(mark, "\r\n"), "a", " ", "\r", "\n", "\r\n"}
	in := NewInspection(new(Register))
	var try func(text string, depth int)
	try = func(text string, depth int) {
		msg := []byte(text)
		want := whole(msg)
		if got := inspect(in, msg); got != want {
			t.Fatalf("%q: %+v, want %+v", text, got, want)
		}
		if depth == 0 {
			return
		}
		for _, s := range symbols {
			try(text+s, depth-1)
		}
	}
	depth := 6
	if testing.Short() {
		depth = 4
	}
	try("", depth)
}

func TestMarkIsSearchedForInABoundedHeaderSection(t *testing.T) {
	mark := sampleMark.Append(nil)
	for _, test := range []struct {
		over   int // how many octets the first octet behind the mark lies beyond the bound
		marked bool
	}{{-1, true}, {0, true}, {1, false}, {MarkLen, false}} {
		filler := strings.Repeat("x", 77) + "\r\n"
		before := strings.Repeat(filler, MaxUnmarkedBytes/len(filler)+1)[:MaxUnmarkedBytes-MarkLen+test.over-2] + "\r\n"
		msg := append([]byte(before), mark...)
		msg = append(msg, "Subject: a\r\n\r\nHello\r\n"...)
		in := NewInspection(new(Register))
		for _, piece := range []int{len(msg), 4096, 1000003} {
			in.Reset()
			for rest := msg; len(rest) > 0; {
				n := min(piece, len(rest))
				in.Write(rest[:n])
				rest = rest[n:]
			}
			if f := in.Finish(); f.Marked != test.marked || f != whole(msg) {
				t.Errorf("mark ends %d behind the bound, pieces of %d: marked %v", test.over, piece, f.Marked)
			}
		}
	}
}

func TestInspectionDoesNotAllocate(t *testing.T) {
	g := new(Register)
	in := NewInspection(g)
	msg := message(3, "Received: x\r\n", "Subject: a\r\n", strings.Repeat("Hello\r\n", 1000))
	to := AppendRecipient(nil, testRun, 3, 0, "load.test")
	if n := testing.AllocsPerRun(100, func() {
		in.Reset(to)
		in.Write(msg[:50])
		in.Write(msg[50:])
		in.Close()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzInspection(f *testing.F) {
	for _, test := range inspections {
		f.Add(test.msg, 10, 100)
	}
	in := NewInspection(new(Register))
	f.Fuzz(func(t *testing.T, msg []byte, a, b int) {
		want := whole(msg)
		a, b = max(0, min(a, len(msg))), max(0, min(b, len(msg)))
		if a > b {
			a, b = b, a
		}
		if got := inspect(in, msg); got != want {
			t.Errorf("whole: %+v, want %+v", got, want)
		}
		if got := inspect(in, msg[:a], msg[a:b], msg[b:]); got != want {
			t.Errorf("cut at %d and %d: %+v, want %+v", a, b, got, want)
		}
	})
}

// Beside a twin that hashes the whole message and looks for nothing.
func BenchmarkInspection(b *testing.B) {
	for _, kib := range []int{4, 64} {
		msg := message(3, "Received: x\r\n", strings.Repeat("Subject: a\r\n", 10), strings.Repeat("Hello, w\r\n", kib<<10/10))
		to := AppendRecipient(nil, testRun, 3, 0, "load.test")
		b.Run(fmt.Sprintf("inspect/size=%dKiB", kib), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(msg)))
			in := NewInspection(new(Register))
			for b.Loop() {
				in.Reset(to)
				in.Write(msg)
				in.Close()
			}
		})
		b.Run(fmt.Sprintf("hash/size=%dKiB", kib), func(b *testing.B) {
			b.SetBytes(int64(len(msg)))
			for b.Loop() {
				sha256.Sum256(msg)
			}
		})
	}
}
