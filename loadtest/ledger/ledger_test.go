package ledger

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"sync"
	"testing"
)

func TestRunIDRoundTrip(t *testing.T) {
	for _, r := range []RunID{0, 1, 0x0123456789abcdef, ^RunID(0), NewRunID()} {
		s := r.String()
		if len(s) != 16 {
			t.Errorf("%v has %d digits", s, len(s))
		}
		for _, text := range []string{s, strings.ToUpper(s)} {
			if got, err := ParseRunID(text); err != nil || got != r {
				t.Errorf("ParseRunID(%q) = %v, %v", text, got, err)
			}
		}
	}
	for _, bad := range []string{"", "123", "0123456789abcdeg", "0123456789abcdef0", "+123456789abcdef", "0x23456789abcdef", "012345678_abcdef"} {
		if _, err := ParseRunID(bad); err == nil {
			t.Errorf("%q was taken for a run", bad)
		}
	}
}

func TestBookKeepsEachOutcome(t *testing.T) {
	const stride = 3
	b := NewBook(7, stride)
	const messages = 1<<bookPageBits/stride + 1000 // into a second page
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for seq := b.Next(); seq < messages; seq = b.Next() {
				for i := range stride {
					b.Note(seq, i, Outcome((seq+uint64(i))%4))
				}
			}
		})
	}
	workers.Wait()
	var want [4]int64
	for seq := range uint64(messages) {
		for i := range stride {
			o := Outcome((seq + uint64(i)) % 4)
			want[o]++
			if got := b.Outcome(seq, i); got != o {
				t.Fatalf("message %d to recipient %d: %v, want %v", seq, i, got, o)
			}
		}
	}
	a, r, u := b.Count()
	if a != want[Acknowledged] || r != want[Refused] || u != want[Unknown] {
		t.Errorf("Count() = %d, %d, %d; want %d, %d, %d", a, r, u, want[Acknowledged], want[Refused], want[Unknown])
	}
}

func TestBookBoundary(t *testing.T) {
	const stride = 1 << 10
	b := NewBook(7, stride)
	last := uint64(MaxDeliveries/stride - 1)
	b.Note(last, stride-1, Acknowledged)
	if o := b.Outcome(last, stride-1); o != Acknowledged || b.Beyond() != 0 {
		t.Errorf("the last delivery: %v, %d beyond", o, b.Beyond())
	}
	b.Note(last+1, 0, Acknowledged)
	b.Note(1<<62, 0, Acknowledged)
	if a, _, _ := b.Count(); a != 1 || b.Beyond() != 2 {
		t.Errorf("%d acknowledged, %d beyond", a, b.Beyond())
	}
}

func TestBookMistakesAreLoud(t *testing.T) {
	for name, f := range map[string]func(b *Book){
		"twice":              func(b *Book) { b.Note(1, 0, Refused); b.Note(1, 0, Acknowledged) },
		"recipient":          func(b *Book) { b.Note(1, 2, Refused) },
		"negative recipient": func(b *Book) { b.Note(1, -1, Refused) },
		"outcome":            func(b *Book) { b.Note(1, 0, 4) },
		"stride 0":           func(*Book) { NewBook(1, 0) },
		"stride":             func(*Book) { NewBook(1, MaxRecipients+1) },
		"sequence number":    func(*Book) { Mark{Seq: MaxSeq + 1}.Append(nil) },
		"position":           func(*Book) { AppendRecipient(nil, 1, 1, MaxRecipients, "a") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f(NewBook(1, 2))
		}()
	}
}

var sampleMark = Mark{Run: 0x0123456789abcdef, Seq: 42, Body: sha256.Sum256([]byte("Hello\r\n")), Head: 0x00c0ffee}

func TestMarkLine(t *testing.T) {
	line := string(sampleMark.Append(nil))
	const want = "X-Loadtest: run=0123456789abcdef seq=0000000042 " +
		"body=05ade08fcfb104f40b2536a14dfcd6e916d643f5cf8044b19028b607ae8f4908 head=00c0ffee\r\n"
	if line != want {
		t.Errorf("got %q", line)
	}
	if len(line) != MarkLen {
		t.Errorf("%d octets, MarkLen is %d", len(line), MarkLen)
	}
	if m, ok := ParseMark([]byte(line)); !ok || m != sampleMark {
		t.Errorf("read back as %+v, %v", m, ok)
	}
	for name, text := range map[string]string{
		"folded":         strings.ReplaceAll(line, " ", "\r\n "),
		"folded wide":    strings.ReplaceAll(line, " ", " \r\n\t "),
		"name's case":    strings.Replace(line, MarkField, "x-LOADTEST", 1),
		"line feed":      strings.ReplaceAll(line, "\r\n", "\n"),
		"no line ending": strings.TrimSpace(line),
	} {
		if m, ok := ParseMark([]byte(text)); !ok || m != sampleMark {
			t.Errorf("%s: %+v, %v", name, m, ok)
		}
	}
	for name, text := range map[string]string{
		"empty":        "",
		"other field":  "Subject" + line,
		"no colon":     strings.Replace(line, ":", " ", 1),
		"more":         strings.TrimSpace(line) + " x=1\r\n",
		"order":        strings.Replace(strings.Replace(line, "run=", "qqq=", 1), "seq=", "run=", 1),
		"short number": strings.Replace(line, "seq=0", "seq=", 1),
		"sign":         strings.Replace(line, "seq=0", "seq=+", 1),
		"no hex":       strings.Replace(line, "head=0", "head=g", 1),
		"cut":          line[:len(line)-10],
	} {
		if m, ok := ParseMark([]byte(text)); ok {
			t.Errorf("%s: taken for %+v", name, m)
		}
	}
}

func TestRecipientRoundTrip(t *testing.T) {
	addr := AppendRecipient(nil, 0x0123456789abcdef, 17, 3, "load.test")
	if string(addr) != "lt.0000000017.0003.0123456789abcdef@load.test" || len(addr) != RecipientLen+len("load.test") {
		t.Errorf("%q", addr)
	}
	for _, text := range []string{string(addr), "<" + string(addr) + ">", strings.ToUpper(string(addr))} {
		run, seq, i, ok := ParseRecipient([]byte(text))
		if !ok || run != 0x0123456789abcdef || seq != 17 || i != 3 {
			t.Errorf("%q: %v, %d, %d, %v", text, run, seq, i, ok)
		}
	}
	for _, bad := range []string{"", "<>", "lt.", "lt.0000000017.0003.0123456789abcdef", "lt.000000017.0003.0123456789abcdef@load.test",
		"lt-0000000017.0003.0123456789abcdef@x", "lt.0000000017.0003.0123456789abcdeg@x", "xlt.0000000017.0003.0123456789abcdef@x",
		"lt.0000000017-0003.0123456789abcdef@x"} {
		if run, seq, i, ok := ParseRecipient([]byte(bad)); ok {
			t.Errorf("%q: taken for %v, %d, %d", bad, run, seq, i)
		}
	}
}

func TestBodyHashIsThatOfTheWhole(t *testing.T) {
	text := bytes.Repeat([]byte("0123456789 all work and no play\r\n"), 20)
	for n := 0; n < 300; n++ {
		b := NewBodyHash(text[:n])
		for _, tail := range []int{0, 1, 63, 64, 65, 200} {
			if got, want := b.Sum(text[n:n+tail]), sha256.Sum256(text[:n+tail]); got != want {
				t.Fatalf("prefix %d, tail %d: %x, want %x", n, tail, got, want)
			}
		}
	}
}

func TestSenderSideDoesNotAllocate(t *testing.T) {
	book, hash, buf := NewBook(1, 2), NewBodyHash(make([]byte, 4096)), make([]byte, 0, 256)
	book.Note(book.Next(), 0, Acknowledged) // makes the page
	for name, f := range map[string]func(){
		"Note":            func() { book.Note(book.Next(), 1, Acknowledged) },
		"Count":           func() { book.Count() },
		"Mark.Append":     func() { sampleMark.Append(buf) },
		"AppendRecipient": func() { AppendRecipient(buf, 1, 2, 3, "load.test") },
		"BodyHash.Sum":    func() { hash.Sum(buf[:40]) },
		"HeadSum":         func() { HeadSum(buf[:100]) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add(sampleMark.Append(nil))
	f.Add([]byte("X-Loadtest: run=\r\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, ok := ParseMark(line)
		if !ok {
			return
		}
		if again, ok := ParseMark(m.Append(nil)); !ok || again != m {
			t.Errorf("%q is %+v, written and read again %+v, %v", line, m, again, ok)
		}
	})
}

func FuzzParseRecipient(f *testing.F) {
	f.Add([]byte("lt.0000000017.0003.0123456789abcdef@load.test"))
	f.Add([]byte("<LT.0000000017.0003.0123456789ABCDEF@load.test>"))
	f.Fuzz(func(t *testing.T, addr []byte) {
		run, seq, i, ok := ParseRecipient(addr)
		if !ok {
			return
		}
		run2, seq2, i2, ok := ParseRecipient(AppendRecipient(nil, run, seq, i, "x"))
		if !ok || run2 != run || seq2 != seq || i2 != i {
			t.Errorf("%q is %v, %d, %d, written and read again %v, %d, %d, %v", addr, run, seq, i, run2, seq2, i2, ok)
		}
	})
}

// Beside a twin that keeps each outcome in a map under a lock.
func BenchmarkNote(b *testing.B) {
	b.Run("book", func(b *testing.B) {
		b.ReportAllocs()
		book := NewBook(1, 1)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				book.Note(book.Next(), 0, Acknowledged)
			}
		})
	})
	b.Run("map", func(b *testing.B) {
		b.ReportAllocs()
		var mu sync.Mutex
		book, next := map[uint64]Outcome{}, uint64(0)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				mu.Lock()
				book[next] = Acknowledged
				next++
				mu.Unlock()
			}
		})
	})
}

func BenchmarkMarkAppend(b *testing.B) {
	b.ReportAllocs()
	buf := make([]byte, 0, 256)
	for b.Loop() {
		sampleMark.Append(buf)
	}
}

// Beside a twin that hashes the whole body for each message.
func BenchmarkBodyHash(b *testing.B) {
	body := make([]byte, 4096)
	b.Run("midstate/size=4KiB/tail=32", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(body)))
		h := NewBodyHash(body[:len(body)-32])
		for b.Loop() {
			h.Sum(body[len(body)-32:])
		}
	})
	b.Run("whole/size=4KiB", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			sha256.Sum256(body)
		}
	})
}
