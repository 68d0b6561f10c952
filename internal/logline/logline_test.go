package logline

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func line(f Format, v []byte) []byte {
	b := f.Begin(nil, time.Date(2026, 11, 22, 8, 0, 39, 123456789, time.UTC), "INFO", "accepted")
	b = f.Word(b, "msg_id", "01m81fwcptr8kdrvz6533xx9dn")
	b = f.Bytes(b, "from", v)
	b = f.Int(b, "size", 409)
	b = f.Millis(b, "ms_ack", 1234567*time.Nanosecond)
	return f.End(b)
}

func TestLinesLookLikeSlogs(t *testing.T) {
	if got, want := string(line(JSON, []byte("a@b"))), `{"time":"2026-11-22T08:00:39.123456789Z","level":"INFO","msg":"accepted","msg_id":"01m81fwcptr8kdrvz6533xx9dn","from":"a@b","size":409,"ms_ack":1.234}`+"\n"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := string(line(Text, []byte("a@b"))), "time=2026-11-22T08:00:39.123Z level=INFO msg=accepted msg_id=01m81fwcptr8kdrvz6533xx9dn from=a@b size=409 ms_ack=1.234\n"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// What slog itself writes, for the fixed part.
	for f, h := range map[Format]func(io.Writer) slog.Handler{
		JSON: func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
		Text: func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
	} {
		var b bytes.Buffer
		now := time.Date(2026, 11, 22, 8, 0, 39, 123456789, time.UTC)
		r := slog.NewRecord(now, slog.LevelInfo, "accepted", 0)
		r.AddAttrs(slog.String("from", "a@b"), slog.Int("size", 409))
		h(&b).Handle(t.Context(), r)
		if got := string(f.End(f.Int(f.Bytes(f.Begin(nil, now, "INFO", "accepted"), "from", []byte("a@b")), "size", 409))); got != b.String() {
			t.Errorf("got  %sslog %s", got, &b)
		}
	}
}

// FuzzBytes: whatever the value, the line stays one line and JSON gives a value back.
func FuzzBytes(f *testing.F) {
	for _, s := range []string{"", "a@b", "a b", "x\r\ny", "\x00\x1b[31m", `"\`, "ü–日", "\xff\xfe", "\u2028", "=", "\x7f\u0085", "\u202egro.elpmaxe@a\u2066"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, v []byte) {
		for _, format := range []Format{JSON, Text} {
			got := line(format, v)
			if n := bytes.Count(got, []byte("\n")); n != 1 || got[len(got)-1] != '\n' {
				t.Fatalf("%d line ends in %q", n, got)
			}
			for _, c := range got[:len(got)-1] {
				if c < ' ' || c == 0x7F {
					t.Fatalf("control character in %q", got)
				}
			}
			if i := bytes.IndexFunc(got[:len(got)-1], func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
				t.Fatalf("%q may be obeyed by a terminal", got[i:])
			}
			if !utf8.Valid(got) {
				t.Fatalf("not UTF-8: %q", got)
			}
		}
		var back struct {
			From string
			Size int
		}
		if err := json.Unmarshal(line(JSON, v), &back); err != nil {
			t.Fatalf("%v: %s", err, line(JSON, v))
		}
		if back.Size != 409 {
			t.Fatalf("the value broke out: %s", line(JSON, v))
		}
		if s := string(v); utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x7F && !unicode.IsPrint(r) }) && back.From != s {
			t.Fatalf("%q came back as %q", s, back.From)
		}
	})
}

func TestALineDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 1024)
	now := time.Now()
	if n := testing.AllocsPerRun(1000, func() {
		buf = JSON.End(JSON.Bytes(JSON.Begin(buf[:0], now, "INFO", "accepted"), "from", []byte("a@b")))
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// The twin is what one would use first.
func BenchmarkLine(b *testing.B) {
	from := []byte("sender@example.org")
	b.Run("impl=fastedge", func(b *testing.B) {
		b.ReportAllocs()
		buf := make([]byte, 0, 1024)
		for b.Loop() {
			buf = line2(buf[:0], from)
		}
	})
	b.Run("impl=naive", func(b *testing.B) {
		b.ReportAllocs()
		log := slog.New(slog.NewJSONHandler(io.Discard, nil))
		for b.Loop() {
			log.LogAttrs(b.Context(), slog.LevelInfo, "accepted", slog.String("session", "01m81fwcptr8kdrvz6533xx9dn"),
				slog.String("from", string(from)), slog.Int64("size", 409), slog.Float64("ms_ack", 1.234))
		}
	})
}

func line2(b, from []byte) []byte {
	b = JSON.Begin(b, time.Now(), "INFO", "accepted")
	b = JSON.Word(b, "session", "01m81fwcptr8kdrvz6533xx9dn")
	b = JSON.Bytes(b, "from", from)
	b = JSON.Int(b, "size", 409)
	return JSON.End(JSON.Millis(b, "ms_ack", 1234567))
}
