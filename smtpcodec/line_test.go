package smtpcodec

import (
	"bytes"
	"strings"
	"testing"
)

func TestScanLineTable(t *testing.T) {
	for _, c := range []struct {
		name, in string
		max      int
		bareLF   bool
		line     string
		n        int
		st       LineStatus
	}{
		{"CRLF ends a line", "NOOP\r\nQUIT\r\n", 64, false, "NOOP", 6, LineOK},
		{"an empty line is a line", "\r\nQUIT", 64, false, "", 2, LineOK},
		{"nothing yet", "", 64, false, "", 0, LineMore},
		{"CR alone is not yet an end", "NOOP\r", 64, false, "", 0, LineMore},
		{"bare LF does not end a line, RFC 5321 §2.3.8", "NOOP\nQUIT\r\n", 64, false, "NOOP\nQUIT", 11, LineBare},
		{"bare LF alone waits for CRLF", "NOOP\n", 64, false, "", 0, LineMore},
		{"bare CR inside a line is seen", "NO\rOP\r\n", 64, false, "NO\rOP", 7, LineBare},
		{"CR CR LF has a bare CR", "NOOP\r\r\n", 64, false, "NOOP\r", 7, LineBare},
		{"LF first", "\n\r\n", 64, false, "\n", 3, LineBare},
		{"bareLF: LF ends a line", "NOOP\nQUIT\r\n", 64, true, "NOOP", 5, LineOK},
		{"bareLF: CRLF too", "NOOP\r\nQUIT\n", 64, true, "NOOP", 6, LineOK},
		{"bareLF: an empty line", "\n", 64, true, "", 1, LineOK},
		{"bareLF: CR does not", "NO\rOP\n", 64, true, "NO\rOP", 6, LineBare},
		{"exactly max bytes", "12345678\r\n", 10, false, "12345678", 10, LineOK},
		{"one more", "123456789\r\n", 10, false, "", 0, LineTooLong},
		{"max-1 bytes without an end wait", "123456789", 10, false, "", 0, LineMore},
		{"max bytes without an end", "1234567890", 10, false, "", 0, LineTooLong},
		{"a bare LF is no help to a long line", "1234\n67890", 10, false, "", 0, LineTooLong},
		{"bareLF: exactly max bytes", "123456789\n", 10, true, "123456789", 10, LineOK},
		{"bareLF: one more", "1234567890\n", 10, true, "", 0, LineTooLong},
	} {
		line, n, st := ScanLine([]byte(c.in), c.max, c.bareLF)
		if string(line) != c.line || n != c.n || st != c.st {
			t.Errorf("%s: got %q, %d, %d", c.name, line, n, st)
		}
	}
}

func TestSkipLineFindsTheTrueEndAtAnySplit(t *testing.T) {
	for _, long := range []string{"aaaa\r\n", "a\na\r\n", "\n\r\r\n", "\r\n", "a\r"} {
		wire := long + "QUIT\r\n"
		want := strings.Index(wire, "\r\n") + 2
		for cut := range len(wire) {
			lastCR, used := false, 0
			n, done := SkipLine([]byte(wire[:cut]), &lastCR)
			used += n
			if !done {
				n, done = SkipLine(nil, &lastCR) // an empty read changes nothing
				if n != 0 || done {
					t.Fatal("an empty read skipped something")
				}
				n, done = SkipLine([]byte(wire[cut:]), &lastCR)
				used += n
			}
			if !done || used != want {
				t.Fatalf("%q cut at %d: skipped %d, done %v, want %d", wire, cut, used, done, want)
			}
		}
	}
}

// What a session does: lines one after the other, with what is left kept for the next read. Any split gives the same.
func scanAll(in []byte, cut, max int, bareLF bool) (events []string) {
	cut = min(cut, len(in))
	var buf []byte
	skipping, lastCR := false, false
	for _, piece := range [][]byte{in[:cut], in[cut:]} {
		buf = append(buf, piece...)
		for len(buf) > 0 {
			if skipping {
				n, done := SkipLine(buf, &lastCR)
				buf = buf[n:]
				if done {
					skipping = false
					events = append(events, "long")
				}
				continue
			}
			line, n, st := ScanLine(buf, max, bareLF)
			if st == LineMore {
				break
			}
			if st == LineTooLong {
				skipping, lastCR = true, false
				continue
			}
			events = append(events, string('0'+byte(st))+string(line))
			buf = buf[n:]
		}
	}
	return append(events, "left "+string(buf))
}

func FuzzScanLine(f *testing.F) {
	for _, s := range []string{"EHLO a\r\nMAIL FROM:<>\r\n", "a\nb\r\n", "a\r", "0123456789abcdefghi\r\nQUIT\r\n", "\r\r\n\n\n\r\n", "\n"} {
		f.Add([]byte(s), uint8(3), false)
		f.Add([]byte(s), uint8(7), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, cut uint8, bareLF bool) {
		whole, parts := scanAll(in, 0, 16, bareLF), scanAll(in, int(cut), 16, bareLF)
		if strings.Join(whole, "|") != strings.Join(parts, "|") {
			t.Fatalf("cut at %d: %q, whole: %q", cut, parts, whole)
		}
		line, n, st := ScanLine(in, 16, bareLF)
		if n > 16 || st == LineOK && (bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, '\n') >= 0) {
			t.Fatalf("%q, %d, %d", line, n, st)
		}
	})
}
