package httpedge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

var wideLines = batchLimits{MaxLineBytes: 1 << 20, MaxBytes: 1 << 20, MaxLines: 1 << 20}

// linesOf reads everything and writes it down; a line of which take gives false is left after its first byte.
func linesOf(r io.Reader, limit batchLimits, take func(number int) bool) string {
	var out strings.Builder
	var l lineReader
	l.Reset(r, limit)
	for {
		line, number, err := l.Next()
		if err == io.EOF {
			return out.String()
		}
		if err != nil {
			fmt.Fprintf(&out, "%d end: %v\n", number, err)
			if _, _, again := l.Next(); again != io.EOF {
				out.WriteString("told twice\n")
			}
			return out.String()
		}
		var p []byte
		if take(number) {
			p, err = io.ReadAll(line)
		} else {
			p = make([]byte, 1)
			_, err = line.Read(p)
		}
		if err != nil {
			// How much of a line came before its error is not part of what a caller relies on.
			fmt.Fprintf(&out, "%d error: %v\n", number, err)
			continue
		}
		fmt.Fprintf(&out, "%d %q\n", number, bytes.TrimRight(p, " \t\r"))
	}
}

func all(int) bool { return true }

func TestLinesOfABatch(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"\n\r\n \t\n", ""},
		{"a", "1 \"a\"\n"},
		{"a\n", "1 \"a\"\n"},
		{"a\r\nb\r\n", "1 \"a\"\n2 \"b\"\n"},
		{"\n\na\n\r\n  b\n", "3 \"a\"\n5 \"b\"\n"},
		{"a\rb\nc", "1 \"a\\rb\"\n2 \"c\"\n"},
		{"a\r", "1 \"a\"\n"},
	} {
		if got := linesOf(strings.NewReader(c.in), wideLines, all); got != c.want {
			t.Errorf("%q:\n%s\nand not\n%s", c.in, got, c.want)
		}
	}
}

func TestALineTooLongIsOneErrorAndTheRestIsRead(t *testing.T) {
	limit := batchLimits{MaxLineBytes: 4, MaxBytes: 1000, MaxLines: 10}
	want := "1 \"abcd\"\n2 error: httpedge: request: line of more than 4 bytes\n3 \"abcd\"\n4 error: httpedge: request: line of more than 4 bytes\n5 \"e\"\n"
	in := "abcd\nabcde\nabcd\r\n" + strings.Repeat("x", 500) + "\ne"
	for _, r := range append(readers([]byte(in), 3), strings.NewReader(in)) {
		if got := linesOf(r, limit, all); got != want {
			t.Errorf("%s\nand not\n%s", got, want)
		}
	}
}

func TestBoundsOfABatch(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit batchLimits
		want  string
	}{
		{"a\nb\n", batchLimits{MaxLineBytes: 9, MaxBytes: 4, MaxLines: 9}, "1 \"a\"\n2 \"b\"\n"},
		{"a\nb\n\n", batchLimits{MaxLineBytes: 9, MaxBytes: 4, MaxLines: 9}, "1 \"a\"\n2 \"b\"\n3 end: httpedge: body too large\n"},
		{"a\nbcd", batchLimits{MaxLineBytes: 9, MaxBytes: 4, MaxLines: 9}, "1 \"a\"\n2 error: httpedge: body too large\n"},
		{"a\n\nb\n\n", batchLimits{MaxLineBytes: 9, MaxBytes: 9, MaxLines: 2}, "1 \"a\"\n3 \"b\"\n"},
		{"a\n\nb\n\nc", batchLimits{MaxLineBytes: 9, MaxBytes: 9, MaxLines: 2}, "1 \"a\"\n3 \"b\"\n5 end: httpedge: request: more than 2 lines\n"},
	} {
		for _, r := range append(readers([]byte(c.in), 3), strings.NewReader(c.in)) {
			if got := linesOf(r, c.limit, all); got != c.want {
				t.Errorf("%q:\n%s\nand not\n%s", c.in, got, c.want)
			}
		}
	}
}

func TestWhatIsLeftOfALineIsSkipped(t *testing.T) {
	in := "abc\n" + strings.Repeat("x", 3*lineBufferBytes) + "\ndef\n"
	if got := linesOf(strings.NewReader(in), wideLines, func(n int) bool { return n == 3 }); got != "1 \"a\"\n2 \"x\"\n3 \"def\"\n" {
		t.Error(got)
	}
}

func TestALineIsThereAsSoonAsItsEndIs(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	go w.Write([]byte("abc\n")) // and no more
	var l lineReader
	l.Reset(r, wideLines)
	line, _, err := l.Next()
	if err != nil {
		t.Fatal(err)
	}
	if p, err := io.ReadAll(line); err != nil || string(p) != "abc" {
		t.Error(string(p), err)
	}
}

func TestAnErrorOfTheSourceIsToldOnce(t *testing.T) {
	broken := errors.New("broken")
	for in, want := range map[string]string{
		"a\nb":   "1 \"a\"\n2 error: broken\n",
		"a\nb\n": "1 \"a\"\n2 \"b\"\n3 end: broken\n",
		"":       "1 end: broken\n",
	} {
		if got := linesOf(io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)), wideLines, all); got != want {
			t.Errorf("%q:\n%s\nand not\n%s", in, got, want)
		}
	}
	if got := linesOf(stuckReader{}, wideLines, all); got != "1 end: "+io.ErrNoProgress.Error()+"\n" {
		t.Error(got)
	}
	// The line that was left has its answer: the error is about the next one.
	r := io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken))
	if got := linesOf(r, wideLines, func(int) bool { return false }); got != "1 \"a\"\n2 end: broken\n" {
		t.Error(got)
	}
}

func TestABatchOfMessagesIsDecodedLineByLine(t *testing.T) {
	in := from(`["a@example.com"]`, `"raw":"one"`) + "\r\n\n{\"x\":1}\n" + from(`["b@example.com"]`, `"raw_base64":"dHdv"`)
	var l lineReader
	l.Reset(iotest.OneByteReader(strings.NewReader(in)), wideLines)
	var got []string
	for {
		line, number, err := l.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		d := decode(line, testLimits)
		got = append(got, fmt.Sprintf("%d %q %v", number, d.data, d.err))
	}
	if want := `[1 "one" <nil> 3 "" httpedge: request: /x: unknown member 4 "two" <nil>]`; fmt.Sprint(got) != want {
		t.Errorf("%s\nand not\n%s", got, want)
	}
}

// FuzzLines: every split gives the same, and the lines are those that bytes.Split gives.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\r\n\nbb\n ccc"), uint32(1))
	f.Add([]byte("abcdefgh\nabcdefghi\r\nx"), uint32(2))
	f.Fuzz(func(t *testing.T, in []byte, seed uint32) {
		limit := batchLimits{MaxLineBytes: 8, MaxBytes: 64, MaxLines: 4}
		take := func(number int) bool { return (seed>>(number%32))&1 == 0 }
		want := linesOf(bytes.NewReader(in), limit, take)
		for i, r := range readers(in, seed) {
			if got := linesOf(r, limit, take); got != want {
				t.Fatalf("%q, reader %d:\n%s\nat once:\n%s", in, i, got, want)
			}
		}
		var plain strings.Builder
		lines := 0
		for i, line := range bytes.Split(in, []byte{'\n'}) {
			if line = bytes.TrimLeft(line, " \t\r"); len(line) == 0 {
				continue
			}
			if lines++; lines > limit.MaxLines {
				return
			}
			if n := len(bytes.TrimSuffix(line, []byte{'\r'})); int64(n) > limit.MaxLineBytes {
				fmt.Fprintf(&plain, "%d error: httpedge: request: line of more than 8 bytes\n", i+1)
			} else {
				fmt.Fprintf(&plain, "%d %q\n", i+1, bytes.TrimRight(line, " \t\r"))
			}
		}
		if got := linesOf(bytes.NewReader(in), limit, all); int64(len(in)) <= limit.MaxBytes && got != plain.String() {
			t.Fatalf("%q:\n%s\nand not\n%s", in, got, plain.String())
		}
	})
}

func TestLinesAllocateNothing(t *testing.T) {
	var l lineReader
	in := strings.Repeat("some line of text\r\n", 10000)
	r := strings.NewReader(in)
	room := make([]byte, 4096)
	if n := testing.AllocsPerRun(10, func() {
		r.Reset(in)
		l.Reset(r, wideLines)
		for {
			line, _, err := l.Next()
			if err == io.EOF {
				return
			}
			for err == nil {
				_, err = line.Read(room)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkLines(b *testing.B) {
	in := strings.Repeat(strings.Repeat("x", 4095)+"\n", 64)
	b.Run("impl=fastedge", func(b *testing.B) {
		var l lineReader
		r := strings.NewReader(in)
		room := make([]byte, 16<<10)
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		for b.Loop() {
			r.Reset(in)
			l.Reset(r, wideLines)
			for {
				line, _, err := l.Next()
				if err == io.EOF {
					break
				}
				for err == nil {
					_, err = line.Read(room)
				}
			}
		}
	})
	b.Run("impl=naive", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		b.ReportAllocs()
		for b.Loop() {
			p, _ := io.ReadAll(strings.NewReader(in))
			for _, line := range bytes.Split(p, []byte{'\n'}) {
				_ = bytes.TrimSpace(line)
			}
		}
	})
}
