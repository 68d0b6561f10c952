package smtpcodec

import (
	"strings"
	"testing"
)

// decodeByLines is the oracle: split at CRLF, stop at ".", cut one leading dot. It needs all of the input at once and is right at sight.
func decodeByLines(wire string, normalize bool) (out string, flags DataFlags, rest string, done bool) {
	for lines := 0; ; lines++ {
		line, after, found := strings.Cut(wire, "\r\n")
		if !found {
			return out, flags, wire, false
		}
		wire = after
		if line == "." {
			return out, flags, wire, true
		}
		line = strings.TrimPrefix(line, ".")
		if strings.Contains(line, "\n") {
			flags |= DataBareLF
		}
		if strings.Contains(line, "\r") {
			flags |= DataBareCR
		}
		if normalize {
			line = strings.ReplaceAll(line, "\n", "\r\n")
		}
		out += line + "\r\n"
	}
}

// scanned is all that can be seen of a scan.
type scanned struct {
	out     string
	flags   DataFlags
	nuls    int64
	longest int
	rest    string // behind the end
	done    bool
}

// scanPieces runs the scanner over the pieces, each with dst of room bytes as often as it takes (0: as large as one call may need).
func scanPieces(t testing.TB, normalize bool, room int, pieces ...string) scanned {
	t.Helper()
	d := DataScanner{Normalize: normalize}
	var s scanned
	var out []byte
	for _, piece := range pieces {
		if s.done {
			s.rest += piece
			continue
		}
		in := []byte(piece)
		for {
			dst := make([]byte, room)
			if room == 0 {
				dst = make([]byte, 2*len(in)+2)
			}
			n, consumed, done := d.Scan(dst, in)
			out = append(out, dst[:n]...)
			in = in[consumed:]
			if done {
				s.done, s.rest = true, string(in)
				break
			}
			if len(in) == 0 {
				break
			}
			if consumed == 0 || room == 0 {
				t.Fatalf("no progress: normalize %v, room %d, pieces %q, left %q", normalize, room, pieces, in)
			}
		}
	}
	s.out = string(out)
	s.flags, s.nuls, s.longest = d.Flags(), d.NULs(), d.LongestLine()
	return s
}

func longestLine(out string) (longest int) {
	for line := range strings.SplitSeq(out, "\r\n") {
		longest = max(longest, len(line))
	}
	return longest
}

// RFC 5321 §4.1.1.4, §4.5.2: every body of up to 7 symbols, ended and followed by a command, cut at every place and with dst of 4 and 5
// bytes, gives what splitting at CRLF gives.
func TestEveryShortBodyIsDecodedAsByLines(t *testing.T) {
	symbols := []byte{'.', '\r', '\n', 'a'}
	body := make([]byte, 0, 7)
	cases := 0
	var walk func()
	walk = func() {
		wire := string(body) + "\r\n.\r\nNOOP\r\n"
		for _, normalize := range []bool{false, true} {
			out, flags, rest, done := decodeByLines(wire, normalize)
			want := scanned{out: out, flags: flags, longest: longestLine(out), rest: rest, done: done}
			check := func(room int, pieces ...string) {
				cases++
				if got := scanPieces(t, normalize, room, pieces...); got != want {
					t.Fatalf("normalize %v, room %d, pieces %q:\ngot  %+v\nwant %+v", normalize, room, pieces, got, want)
				}
			}
			check(4, wire)
			check(5, wire)
			for i := range len(body) + 6 {
				check(0, wire[:i], wire[i:])
			}
		}
		if len(body) == cap(body) {
			return
		}
		for _, c := range symbols {
			body = append(body, c)
			walk()
			body = body[:len(body)-1]
		}
	}
	walk()
	t.Logf("%d cases", cases)
}

// The inbound list of the smuggling scanners (VU#302671), as an end in the middle of the data: none of them is one. RFC 5321 §4.1.1.4.
func TestOnlyCRLFDotCRLFEndsTheData(t *testing.T) {
	for _, fake := range []string{
		"\n.\n", "\n.\r", "\r.\n", "\r.\r", "\n.\r\n", "\r.\r\n", "\r\n\x00.\r\n", "\r\n.\n", "\r\n.\r", "\r\n\x00.\n", "\n\n.\r\n", "\r\r.\r\n",
		"\r\n.\x00\r\n", "\r\n. \r\n", "\r\n.\t\r\n", "\r\n.\r\r\n", "\r\n \r\n.\n\r\n", "\r\n..\r\n", "\r\n.\v\f\r\n", "\r\n.\n\r\n",
	} {
		for _, normalize := range []bool{false, true} {
			wire := "body" + fake + "MAIL FROM:<evil@example.com>\r\n.\r\nQUIT\r\n"
			want, flags, _, _ := decodeByLines(wire, normalize)
			for cut := range len(wire) {
				got := scanPieces(t, normalize, 0, wire[:cut], wire[cut:])
				if !got.done || got.rest != "QUIT\r\n" {
					t.Fatalf("%q (normalize %v) ended the data: left %q", fake, normalize, got.rest)
				}
				if got.out != want || got.flags&(DataBareCR|DataBareLF) != flags {
					t.Fatalf("%q (normalize %v): got %q, flags %b; want %q, flags %b", fake, normalize, got.out, got.flags, want, flags)
				}
			}
			if normalize && strings.Contains(strings.ReplaceAll(want, "\r\n", ""), "\n") {
				t.Fatalf("%q: a bare LF is left in %q", fake, want)
			}
		}
	}
}

func TestDataScanTable(t *testing.T) {
	long := strings.Repeat("x", MaxTextLineBytes)
	for _, c := range []struct {
		name, wire string
		normalize  bool
		want       scanned
	}{
		{"an empty message is only the end mark", ".\r\n", false, scanned{done: true}},
		{"one leading dot is removed", "..stuff\r\n.\r\n", false, scanned{out: ".stuff\r\n", longest: 6, done: true}},
		{"only one leading dot is removed", "...\r\n.\r\n", false, scanned{out: "..\r\n", longest: 2, done: true}},
		{"a dot behind a bare LF stays", "a\n..b\r\n.\r\n", false, scanned{out: "a\n..b\r\n", flags: DataBareLF, longest: 5, done: true}},
		{"Normalize writes CRLF and keeps the dot", "a\n.b\r\n.\r\n", true, scanned{out: "a\r\n.b\r\n", flags: DataBareLF, longest: 2, done: true}},
		{"Normalize keeps bare CR", "a\rb\r\n.\r\n", true, scanned{out: "a\rb\r\n", flags: DataBareCR, longest: 3, done: true}},
		{"CR CR LF is a bare CR and a line end", "a\r\r\n.\r\n", true, scanned{out: "a\r\r\n", flags: DataBareCR, longest: 2, done: true}},
		{"NULs are counted", "a\x00b\x00\r\n.\r\n", false, scanned{out: "a\x00b\x00\r\n", flags: DataNUL, nuls: 2, longest: 4, done: true}},
		{"8-bit is kept", "\xC3\xA9\r\n.\r\n", false, scanned{out: "\xC3\xA9\r\n", longest: 2, done: true}},
		{"998 bytes are a legal line, RFC 5321 §4.5.3.1.6", long + "\r\n.\r\n", false, scanned{out: long + "\r\n", longest: 998, done: true}},
		{"the stuffed dot does not count", "." + long + "\r\n.\r\n", false, scanned{out: long + "\r\n", longest: 998, done: true}},
		{"999 bytes are not", long + "x\r\n.\r\n", false, scanned{out: long + "x\r\n", flags: DataLongLine, longest: 999, done: true}},
		{"bytes behind the end are not looked at", ".\r\n\x00\xFF\r\n\n", false, scanned{rest: "\x00\xFF\r\n\n", done: true}},
	} {
		for cut := range len(c.wire) + 1 {
			if got := scanPieces(t, c.normalize, 0, c.wire[:cut], c.wire[cut:]); got != c.want {
				t.Fatalf("%s: cut at %d: got %+v, want %+v", c.name, cut, got, c.want)
			}
		}
	}
}

// RFC 3030 §2: chunks have no dot-stuffing and no end mark, and a chunk's end is no line end.
func TestChunksAreCopiedAsTheyAre(t *testing.T) {
	wire := "..a\r\n.\r\nb\rc\nd\x00\r\n\r"
	for _, normalize := range []bool{false, true} {
		want := wire
		if normalize {
			want = "..a\r\n.\r\nb\rc\r\nd\x00\r\n\r"
		}
		for _, room := range []int{4, 7, 64} {
			for cut := range len(wire) + 1 {
				d := DataScanner{Normalize: normalize}
				got := scanChunks(&d, room, wire[:cut], wire[cut:])
				if got != want || d.Flags() != DataBareCR|DataBareLF|DataNUL || d.NULs() != 1 {
					t.Fatalf("normalize %v, room %d, cut %d: got %q, flags %b, %d NULs", normalize, room, cut, got, d.Flags(), d.NULs())
				}
			}
		}
	}
}

func TestCRAtTheEndOfTheLastChunkIsBare(t *testing.T) {
	var d DataScanner
	scanChunks(&d, 16, "a\r")
	if d.Flags() != DataBareCR || d.LongestLine() != 2 {
		t.Fatalf("flags %b, longest %d", d.Flags(), d.LongestLine())
	}
	d.Reset()
	if scanChunks(&d, 16, "a\r", "\n"); d.Flags() != 0 || d.LongestLine() != 1 {
		t.Fatalf("CRLF over two chunks: flags %b, longest %d", d.Flags(), d.LongestLine())
	}
}

func scanChunks(d *DataScanner, room int, chunks ...string) (out string) {
	dst := make([]byte, room)
	for _, chunk := range chunks {
		for in := []byte(chunk); len(in) > 0; {
			n, consumed := d.ScanChunk(dst, in)
			if n+consumed == 0 {
				panic("no progress")
			}
			out += string(dst[:n])
			in = in[consumed:]
		}
	}
	n := d.EndChunks(dst)
	return out + string(dst[:n])
}

func TestAnUnfinishedLineCounts(t *testing.T) {
	var d DataScanner
	dst := make([]byte, 2048)
	for _, c := range []struct {
		in      string
		longest int
		flags   DataFlags
	}{
		{"abc\r\nx", 3, 0},
		{strings.Repeat("x", MaxTextLineBytes-1) + "\r", MaxTextLineBytes, 0}, // the CR may belong to the line end
		{"\r", MaxTextLineBytes + 1, DataLongLine | DataBareCR},
	} {
		d.Scan(dst, []byte(c.in))
		if d.LongestLine() != c.longest || d.Flags() != c.flags {
			t.Errorf("%.8q: longest %d, flags %b", c.in, d.LongestLine(), d.Flags())
		}
	}
}

func TestResetKeepsNormalize(t *testing.T) {
	d := DataScanner{Normalize: true}
	d.Scan(make([]byte, 16), []byte("a\n\x00\r"))
	d.Reset()
	if d != (DataScanner{Normalize: true}) {
		t.Fatalf("%+v", d)
	}
}

// The byte-at-a-time scanner agrees at any split, with any room in dst, for stuffed data and for chunks.
func FuzzDataScanner(f *testing.F) {
	for _, s := range []string{
		"a\r\n.\r\n", "..a\r\n.\r\nQUIT\r\n", "a\n.\nb\r\n.\r.\r\n\x00\x80\r\n.\r\n", "\r\n.\n\r\n.\r\r\n", "\n\n\n\r\r\r...",
		strings.Repeat("0123456789abcde\r\n", 70) + ".\r\n", strings.Repeat("\n", 70), strings.Repeat("y", 1100) + "\r\n.\r\n",
	} {
		f.Add([]byte(s), uint16(3), uint16(7), false, false)
		f.Add([]byte(s), uint16(1), uint16(4), true, false)
		f.Add([]byte(s), uint16(40), uint16(90), true, true)
	}
	f.Fuzz(func(t *testing.T, wire []byte, cut, room uint16, normalize, chunks bool) {
		o := byteScanner{normalize: normalize, chunks: chunks}
		want, wantUsed, wantDone := o.scan(nil, wire)
		if chunks && o.state == dataInLineCR {
			o.flags, o.state = o.flags|DataBareCR, dataInLine
		}
		flags, nuls, longest := o.result()

		d := DataScanner{Normalize: normalize}
		dst := make([]byte, max(4, int(room)))
		step := max(1, int(cut))
		var got []byte
		used, done := 0, false
		for used < len(wire) && !done {
			in := wire[used:min(used+step, len(wire))]
			var n, consumed int
			if chunks {
				n, consumed = d.ScanChunk(dst, in)
			} else {
				n, consumed, done = d.Scan(dst, in)
			}
			if consumed == 0 && n == 0 {
				t.Fatalf("no progress at %d with state %d", used, d.state)
			}
			if limit := len(in) + 2; n > limit && !normalize || n > limit+len(in) {
				t.Fatalf("%d bytes out of %d", n, len(in))
			}
			got = append(got, dst[:n]...)
			used += consumed
		}
		if chunks {
			d.EndChunks(dst)
		}
		if string(got) != string(want) || used != wantUsed || done != wantDone {
			t.Fatalf("got %q (%d, %v), want %q (%d, %v)", got, used, done, want, wantUsed, wantDone)
		}
		if d.Flags() != flags || d.NULs() != nuls || d.LongestLine() != longest {
			t.Fatalf("flags %b nuls %d longest %d, want %b %d %d", d.Flags(), d.NULs(), d.LongestLine(), flags, nuls, longest)
		}
	})
}

// A body of many blocks, in pieces that are not multiples of anything, against the byte-at-a-time scanner.
func TestLargeMessageIsDecodedAsByteByByte(t *testing.T) {
	wire := append(ordinaryMessage(300<<10), "a\nb\rc\x00\xFF\r\n.\r\nQUIT\r\n"...)
	for _, normalize := range []bool{false, true} {
		o := byteScanner{normalize: normalize}
		want, used, _ := o.scan(nil, wire)
		flags, nuls, longest := o.result()
		for _, step := range []int{1, 1447, 16 << 10, 16<<10 + 1, len(wire)} {
			var pieces []string
			for at := 0; at < len(wire); at += step {
				pieces = append(pieces, string(wire[at:min(at+step, len(wire))]))
			}
			got := scanPieces(t, normalize, 0, pieces...)
			if w := (scanned{string(want), flags, nuls, longest, string(wire[used:]), true}); got != w {
				t.Fatalf("step %d: the outcome differs: flags %b, %d bytes; want %b, %d", step, got.flags, len(got.out), flags, len(want))
			}
		}
	}
}

func TestDataScanDoesNotAllocate(t *testing.T) {
	wire, dst := append(ordinaryMessage(8<<10), ".\r\n"...), make([]byte, 8<<10)
	var d DataScanner
	if a := testing.AllocsPerRun(100, func() { d.Reset(); d.Scan(dst, wire) }); a != 0 {
		t.Fatal(a)
	}
}
