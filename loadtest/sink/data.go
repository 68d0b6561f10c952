package sink

import "bytes"

// dataState is where in the message data a dataReader is. It says what has just come.
type dataState uint8

const (
	lineStart dataState = iota // CRLF, or nothing yet
	lineDot                    // CRLF "."
	lineDotCR                  // CRLF "." CR
	midLine                    // anything else
	midCR                      // a CR that may begin CRLF
)

var crlfDot = []byte("\r\n.")

// unstuff takes the next part of what follows DATA, gives message data to out in pieces (borrowed until it returns), and says how much of p
// it took: all, or up to and including the end mark, when done. A leading dot is removed (RFC 5321 §4.5.2). A bare CR or LF is data like
// any other.
func (st *dataState) unstuff(p []byte, out func([]byte)) (consumed int, done bool) {
	i := 0
	for i < len(p) {
		switch *st {
		case lineStart:
			if p[i] == '.' {
				*st = lineDot
				i++
			} else {
				*st = midLine
			}
		case lineDot:
			if p[i] == '\r' {
				*st = lineDotCR
				i++
			} else {
				*st = midLine
			}
		case lineDotCR:
			if p[i] == '\n' {
				*st = lineStart
				return i + 1, true
			}
			out(crlfDot[:1])
			*st = midCR
		case midCR:
			switch p[i] {
			case '\n':
				out(p[i : i+1])
				*st = lineStart
				i++
			case '\r':
				out(p[i : i+1])
				i++
			default:
				*st = midLine
			}
		case midLine:
			rest := p[i:]
			if n := bytes.Index(rest, crlfDot); n >= 0 {
				out(rest[:n+2])
				*st = lineStart
				i += n + 2
				continue
			}
			out(rest)
			switch {
			case bytes.HasSuffix(rest, crlfDot[:2]):
				*st = lineStart
			case rest[len(rest)-1] == '\r':
				*st = midCR
			}
			i = len(p)
		}
	}
	return i, false
}
