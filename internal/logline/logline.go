// Package logline encodes log lines without allocating, for the lines that are written for every message.
//
// A Format appends in the form of slog's JSON or text handler, so that these lines and slog's own stand in one log. Every byte of a
// stranger is escaped: no value can end its line, its string or its key. The package has no I/O and no clock; any goroutine may use
// a Format on a buffer of its own.
package logline

import (
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// Format is how lines look.
type Format uint8

// JSON is one object a line, Text is key=value.
const (
	JSON Format = iota
	Text
)

// Begin appends the time, level and message of a new line. msg is a constant of ours: it is not escaped.
func (f Format) Begin(dst []byte, now time.Time, level, msg string) []byte {
	if f == JSON {
		dst = append(dst, `{"time":"`...)
		dst = now.AppendFormat(dst, time.RFC3339Nano)
		dst = append(dst, `","level":"`...)
		dst = append(dst, level...)
		dst = append(dst, `","msg":"`...)
		dst = append(dst, msg...)
		return append(dst, '"')
	}
	dst = append(dst, "time="...)
	dst = now.AppendFormat(dst, "2006-01-02T15:04:05.000Z07:00")
	dst = append(dst, " level="...)
	dst = append(dst, level...)
	dst = append(dst, " msg="...)
	return append(dst, msg...)
}

// End appends the end of the line.
func (f Format) End(dst []byte) []byte {
	if f == JSON {
		dst = append(dst, '}')
	}
	return append(dst, '\n')
}

// key appends a key of ours.
func (f Format) key(dst []byte, key string) []byte {
	if f == JSON {
		dst = append(dst, ',', '"')
		dst = append(dst, key...)
		return append(dst, '"', ':')
	}
	dst = append(dst, ' ')
	dst = append(dst, key...)
	return append(dst, '=')
}

// Int appends a number.
func (f Format) Int(dst []byte, key string, v int64) []byte {
	return strconv.AppendInt(f.key(dst, key), v, 10)
}

// Millis appends a duration as milliseconds with three decimals.
func (f Format) Millis(dst []byte, key string, d time.Duration) []byte {
	dst = f.key(dst, key)
	us := max(d.Microseconds(), 0)
	dst = strconv.AppendInt(dst, us/1000, 10)
	us %= 1000
	return append(dst, '.', byte('0'+us/100), byte('0'+us/10%10), byte('0'+us%10))
}

// Word appends a value that is ours, or made of letters, digits, dots and colons: it is not escaped.
func (f Format) Word(dst []byte, key, v string) []byte {
	dst = f.key(dst, key)
	if f == JSON {
		dst = append(dst, '"')
		dst = append(dst, v...)
		return append(dst, '"')
	}
	return append(dst, v...)
}

// Appended appends a value that add appends itself, with the promise that Word wants.
func (f Format) Appended(dst []byte, key string, add func([]byte) []byte) []byte {
	dst = f.key(dst, key)
	if f == JSON {
		dst = append(dst, '"')
		return append(add(dst), '"')
	}
	return add(dst)
}

// Bytes appends a value that may hold anything.
func (f Format) Bytes(dst []byte, key string, v []byte) []byte {
	dst = f.key(dst, key)
	if f == Text && plainWord(v) {
		return append(dst, v...)
	}
	dst = append(dst, '"')
	for i := 0; i < len(v); {
		c := v[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
			i++
		case c >= 0x20 && c < 0x7F:
			dst = append(dst, c)
			i++
		case c < utf8.RuneSelf:
			dst = append(dst, `\u00`...)
			dst = append(dst, hex[c>>4], hex[c&15])
			i++
		default:
			r, n := utf8.DecodeRune(v[i:])
			// Line and paragraph separators, C1 controls and marks that turn the direction of text are obeyed by what shows the log.
			if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) {
				dst = append(dst, "\uFFFD"...)
			} else {
				dst = append(dst, v[i:i+n]...)
			}
			i += n
		}
	}
	return append(dst, '"')
}

const hex = "0123456789abcdef"

// plainWord says that v can stand in a text line without quotes.
func plainWord(v []byte) bool {
	for _, c := range v {
		if c <= ' ' || c >= 0x7F || c == '"' || c == '=' || c == '\\' {
			return false
		}
	}
	return len(v) > 0
}
