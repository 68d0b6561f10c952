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
			s.out += string(dst[:n])
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
