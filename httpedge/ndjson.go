package httpedge

import (
	"bytes"
	"io"
	"strconv"
)

// batchLimits bound what a lineReader takes.
type batchLimits struct {
	MaxLineBytes int64 // of one line, without its end; the line that is longer is an error, those behind it are read
	MaxBytes     int64 // of the whole body
	MaxLines     int   // that are not empty
}

// lineBufferBytes is what a lineReader reads at a time.
const lineBufferBytes = 32 << 10

// lineReader splits NDJSON into lines, each of them a reader of its own, so that a line of any length needs one buffer. LF ends a line, the
// last one may be without; a CR before it is a blank to whoever reads the line. Lines of blanks only are skipped. It reads no further
// than it must: a line is there as soon as its end is.
type lineReader struct {
	src   io.Reader
	limit batchLimits
	buf   []byte
	r, w  int   // buf[r:w] is read and not given
	total int64 // bytes read
	err   error // of src, for good

	number int   // of the line that was given last; counts empty ones
	lines  int   // given
	open   bool  // that line is not at its end
	left   int64 // bytes that it may still have
	over   bool  // it is too long
	told   bool  // an error that ends everything was given
}

// Reset makes l read from src.
func (l *lineReader) Reset(src io.Reader, limit batchLimits) {
	buf := l.buf
	if buf == nil {
		buf = make([]byte, lineBufferBytes)
	}
	*l = lineReader{src: src, limit: limit, buf: buf}
}

// fill reads more bytes; there are none left.
func (l *lineReader) fill() error {
	if l.err != nil {
		return l.err
	}
	l.r, l.w = 0, 0
	// One byte more than may come, to see that it is too much.
	room := l.buf[:min(int64(len(l.buf)), l.limit.MaxBytes-l.total+1)]
	for range 100 {
		n, err := l.src.Read(room)
		if l.total += int64(n); l.total > l.limit.MaxBytes {
			n, err = n-1, errTooLarge
			l.total = l.limit.MaxBytes
		}
		l.w, l.err = n, err
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	l.err = io.ErrNoProgress
	return l.err
}

// Next goes to the next line that is not empty, over what is left of the one before, and gives it with its number, which counts from 1 and
// counts empty lines. io.EOF is the end. Any other error ends the batch; number is that of the line which it is about. An error of the source
// is told once: when a line's Read has given it, Next gives io.EOF.
func (l *lineReader) Next() (line io.Reader, number int, err error) {
	if l.told {
		return nil, l.number, io.EOF
	}
	if err := l.next(); err != nil {
		l.told = true
		return nil, l.number, err
	}
	if l.lines == l.limit.MaxLines {
		l.told = true
		return nil, l.number, &requestError{Reason: "too_many_messages", Text: "more than " + strconv.Itoa(l.lines) + " lines"}
	}
	l.lines++
	l.open, l.over, l.left = true, false, l.limit.MaxLineBytes
	return (*lineOf)(l), l.number, nil
}

// next goes to the first byte of the next line that is not a blank, and counts lines.
func (l *lineReader) next() error {
	for l.open {
		if i := bytes.IndexByte(l.buf[l.r:l.w], '\n'); i >= 0 {
			l.r += i + 1
			l.open = false
		} else if err := l.fill(); err != nil {
			l.number++ // the line that can't be read is the one behind
			return err
		}
	}
	l.number++
	for {
		for ; l.r < l.w; l.r++ {
			switch c := l.buf[l.r]; {
			case c == '\n':
				l.number++
			case !isBlank(c):
				return nil
			}
		}
		if err := l.fill(); err != nil {
			return err
		}
	}
}

// lineOf reads the open line of a lineReader.
type lineOf lineReader

// Read gives bytes of the line, and io.EOF at its end.
func (o *lineOf) Read(p []byte) (int, error) {
	l := (*lineReader)(o)
	switch {
	case !l.open:
		return 0, io.EOF
	case l.over:
		return 0, l.tooLong()
	case len(p) == 0:
		return 0, nil
	}
	if l.r == l.w {
		if err := l.fill(); err != nil {
			l.open = false
			l.told = err != io.EOF
			return 0, err
		}
	}
	rest := l.buf[l.r:l.w]
	if i := bytes.IndexByte(rest[:min(len(p)+1, len(rest))], '\n'); i == 0 {
		l.r++
		l.open = false
		return 0, io.EOF
	} else if i > 0 {
		rest = rest[:i]
	}
	n := copy(p, rest)
	l.r += n
	l.left -= int64(n)
	// A CR too many is that of a CRLF, or is followed by another byte too many.
	if l.left < -1 || l.left == -1 && p[n-1] != '\r' {
		l.over = true
		return 0, l.tooLong()
	}
	return n, nil
}

func (l *lineReader) tooLong() error {
	return &requestError{Reason: "size", Text: "line of more than " + strconv.FormatInt(l.limit.MaxLineBytes, 10) + " bytes"}
}
