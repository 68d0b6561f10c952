package httpedge

import "bytes"

// firstLine watches the lines that requests begin with. fasthttp takes one that ends with a bare LF, or stands behind empty lines that do, and does not
// tell; whatever stands in front of us may have read something else (RFC 9112 §2.2). And it forgets the line of a request that it refuses, whose
// path decides what an answer looks like.
//
// It sees bytes as the connection gives them to fasthttp's buffer, which may be beyond the request that is being served. Where the next one begins
// is known when a request is over: its line's end, its header fields and its body are. Whatever of the next is in the buffer by then was given by the
// last Read, for that one was still about this request. It belongs to the goroutine that reads.
type firstLine struct {
	given  int64  // bytes of the connection, so far
	begin  int64  // where the request begins: before it there may be more of the one before, which fasthttp throws away
	last   []byte // what was given last: a part of fasthttp's buffer, which stands there until the next Read
	state  lineState
	length int   // of the line, as far as it has come
	wasCR  bool  // its last byte was CR
	end    int64 // where it ended
	start  [maxLineStart]byte
}

// maxLineStart is enough for a method and the beginning of a path.
const maxLineStart = 40

type lineState uint8

const (
	lineOpen  lineState = iota // empty lines, or a part of it
	lineEnded                  // by CRLF
	lineBare                   // by LF alone, it or an empty line before it
)

// take looks at what a Read gives. It borrows p until the next call.
func (l *firstLine) take(p []byte) {
	l.last = p
	old := max(l.begin-l.given, 0) // bytes of the request before
	l.given += int64(len(p))
	if l.state == lineOpen && old < int64(len(p)) {
		l.scan(p[old:])
	}
}

// scan looks at bytes of the line; behind p are the bytes that come next.
func (l *firstLine) scan(p []byte) {
	for behind := l.given; ; {
		line := p
		i := bytes.IndexByte(p, '\n')
		if i >= 0 {
			line = p[:i]
		}
		if l.length < maxLineStart {
			copy(l.start[l.length:], line)
		}
		if l.length += len(line); len(line) > 0 {
			l.wasCR = line[len(line)-1] == '\r'
		}
		if i < 0 {
			return
		}
		p = p[i+1:]
		switch {
		case !l.wasCR:
			l.state = lineBare
			return
		case l.length > 1:
			l.state, l.end = lineEnded, behind-int64(len(p))
			return
		}
		l.length, l.wasCR = 0, false // RFC 9112 §2.2: an empty line before a request is passed over
	}
}

// next says that the request is over, with so many bytes of header fields and body, and begins with the one behind it.
func (l *firstLine) next(header, body int) {
	l.begin = l.end + int64(header) + int64(body)
	l.state, l.length, l.wasCR = lineOpen, 0, false
	if ahead := l.given - l.begin; ahead > 0 && ahead <= int64(len(l.last)) {
		l.scan(l.last[len(l.last)-int(ahead):])
	}
}

// isAPI says that the path is one of the API's, as far as the line has come.
func (l *firstLine) isAPI() bool {
	_, path, _ := bytes.Cut(l.start[:min(l.length, maxLineStart)], []byte{' '})
	path, _, _ = bytes.Cut(path, []byte{' '})
	path, _, _ = bytes.Cut(path, []byte{'?'})
	return isAPI(path)
}

// isHEAD says that an answer has no body.
func (l *firstLine) isHEAD() bool { return l.length >= 5 && string(l.start[:5]) == "HEAD " }
