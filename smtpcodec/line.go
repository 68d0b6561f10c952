package smtpcodec

import "bytes"

// LineStatus says what ScanLine found.
type LineStatus uint8

const (
	LineMore    LineStatus = iota // no line end yet, and fewer than max bytes: come back with more
	LineOK                        // a whole line
	LineTooLong                   // max bytes without a line end: skip with SkipLine, then refuse
	LineBare                      // a whole line with a bare CR or LF inside (RFC 5321 §2.3.8 forbids both)
)

// ScanLine finds the first line of in. line borrows from in and excludes the line end, n includes it; both are empty with LineMore
// and LineTooLong.
//
// max counts the line end: a line of exactly max bytes, CRLF included, is LineOK, one byte more is LineTooLong, and so are max bytes
// in which no line ends, whatever may follow. After LineTooLong the caller gives the same bytes, from the start of in, to SkipLine.
//
// Only CRLF ends a line (RFC 5321 §2.3.8). With bareLF a bare LF ends one too; a CR that is not followed by LF never does.
func ScanLine(in []byte, max int, bareLF bool) (line []byte, n int, st LineStatus) {
	window := in
	if len(window) > max {
		window = window[:max]
	}
	bare := false
	for at := 0; ; {
		i := bytes.IndexByte(window[at:], '\n')
		if i < 0 {
			if len(in) >= max {
				return nil, 0, LineTooLong
			}
			return nil, 0, LineMore
		}
		i += at
		end := i
		if i > 0 && window[i-1] == '\r' {
			end--
		} else if !bareLF {
			bare, at = true, i+1
			continue
		}
		line = window[:end]
		if bare || bytes.IndexByte(line, '\r') >= 0 {
			return line, i + 1, LineBare
		}
		return line, i + 1, LineOK
	}
}

// SkipLine is for a line that was too long: n bytes of in belong to it, and done says that its end was among them. It is first
// called with the bytes that ScanLine called too long and *lastCR false, then with what follows; lastCR carries "the byte before in
// was CR" from call to call.
//
// Only CRLF ends the skipping, even where a bare LF ends a line: what stands behind a bare LF in an overlong line was more likely
// meant as its tail than as a command, and running it would be an injection.
func SkipLine(in []byte, lastCR *bool) (n int, done bool) {
	for at := 0; ; {
		i := bytes.IndexByte(in[at:], '\n')
		if i < 0 {
			if len(in) > 0 {
				*lastCR = in[len(in)-1] == '\r'
			}
			return len(in), false
		}
		i += at
		if i == 0 && *lastCR || i > 0 && in[i-1] == '\r' {
			*lastCR = false
			return i + 1, true
		}
		at = i + 1
	}
}
