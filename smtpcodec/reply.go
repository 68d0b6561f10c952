package smtpcodec

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
)

// EnhancedCode is an RFC 3463 §2 status code; the class is that of the reply code, Subject and Detail are 0 to 999. The zero value
// means none.
type EnhancedCode struct{ Class, Subject, Detail uint16 }

// Reply is one SMTP reply (RFC 5321 §4.2).
type Reply struct {
	Code     uint16 // 200 to 599
	Enhanced EnhancedCode
	Text     string // lines separated by \n
}

// MaxReplyLineBytes is RFC 5321 §4.5.3.1.5, CRLF included.
const MaxReplyLineBytes = 512

// Limits of a reply that ParseReply reads. RFC 5321 §4.5.3.1.5 limits a line only; without these a next hop could fill the memory.
const (
	MaxReplyBytes = 64 << 10
	MaxReplyLines = 1000
)

var (
	// ErrReplySyntax is for a reply that is not one: a bad code, two codes in one reply, a bare CR or LF.
	ErrReplySyntax = errors.New("smtpcodec: malformed reply")
	// ErrReplyTooLong is for a reply over MaxReplyBytes or MaxReplyLines.
	ErrReplyTooLong = errors.New("smtpcodec: reply too long")
)

// AppendTo appends the reply as sent: every line with the code and, when set, the enhanced code (RFC 2034 §4), CRLF ended. Bytes that
// may not stand in a reply (controls, 8-bit) become '?'; a line over MaxReplyLineBytes is cut. The class of the enhanced code is
// always that of the reply code, and 3yz replies have none (RFC 2034 §4 has no class 3). The blank before an empty text is kept:
// RFC 4954 §4 needs it after 334.
//
// It panics when Code has not three digits: that is a bug of the caller, and the client could not go on.
func (r *Reply) AppendTo(dst []byte) []byte {
	if r.Code < 200 || r.Code > 599 {
		panic("smtpcodec: reply code " + strconv.Itoa(int(r.Code)) + ", text " + strconv.Quote(r.Text))
	}
	for text, more := r.Text, true; more; {
		var line string
		if i := strings.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			line, more = text, false
		}
		start := len(dst)
		dst = append(dst, byte('0'+r.Code/100), byte('0'+r.Code/10%10), byte('0'+r.Code%10), ' ')
		if more {
			dst[start+3] = '-'
		}
		if r.Enhanced != (EnhancedCode{}) && r.Code/100 != 3 {
			dst = append(dst, byte('0'+r.Code/100), '.')
			dst = strconv.AppendUint(dst, uint64(r.Enhanced.Subject), 10)
			dst = append(dst, '.')
			dst = strconv.AppendUint(dst, uint64(r.Enhanced.Detail), 10)
			dst = append(dst, ' ')
		}
		if room := MaxReplyLineBytes - len("\r\n") - (len(dst) - start); len(line) > room {
			line = line[:room]
		}
		text := len(dst)
		dst = append(dst, line...)
		for i, c := range dst[text:] {
			if c < ' ' || c > '~' {
				dst[text+i] = '?'
			}
		}
		dst = append(dst, '\r', '\n')
	}
	return dst
}

// ParseReply reads one whole reply from in: n bytes of it, 0 when more are needed. The enhanced code is that of the first line, when
// its class is the first digit of the code, and is cut from every line that has it. Control characters in the text become '?'; bytes
// over 127 stay. The text is a copy.
//
// Only CRLF ends a line, as the other side is held to RFC 5321 §2.3.8 too. Text may be missing, with or without the blank before it
// (RFC 5321 §4.2). Lines may be longer than MaxReplyLineBytes.
func ParseReply(in []byte) (r Reply, n int, err error) {
	// First find the end, so that nothing is built for a reply that is not complete.
	lines, texts := 0, 0
	for last := false; !last; lines++ {
		if lines == MaxReplyLines {
			return Reply{}, 0, ErrReplyTooLong
		}
		rest := in[n:]
		i := bytes.IndexByte(rest, '\n')
		if n+i >= MaxReplyBytes || i < 0 && len(in) >= MaxReplyBytes {
			return Reply{}, 0, ErrReplyTooLong
		}
		line := rest
		if i >= 0 {
			line = rest[:i]
		}
		code, ok := replyCode(line, i >= 0)
		if !ok || lines > 0 && code != 0 && code != r.Code {
			return Reply{}, 0, ErrReplySyntax
		}
		if k := bytes.IndexByte(line, '\r'); k >= 0 && k != len(line)-1 {
			return Reply{}, 0, ErrReplySyntax
		}
		if i < 0 {
			return Reply{}, 0, nil
		}
		if len(line) < 4 || line[len(line)-1] != '\r' {
			return Reply{}, 0, ErrReplySyntax
		}
		r.Code = code
		last = line[3] != '-'
		texts += len(line)
		n += i + 1
	}
	text := make([]byte, 0, texts)
	var prefix []byte // the enhanced code on the first line
	for at := 0; at < n; {
		end := at + bytes.IndexByte(in[at:], '\n')
		line := in[at+3 : end-1]
		if len(line) > 0 {
			line = line[1:]
		}
		if at == 0 {
			r.Enhanced, prefix = enhancedCode(line, r.Code)
		} else {
			text = append(text, '\n')
		}
		if len(prefix) > 0 && bytes.HasPrefix(line, prefix) {
			if rest := line[len(prefix):]; len(rest) == 0 || rest[0] == ' ' {
				line = bytes.TrimPrefix(rest, space)
			}
		}
		for _, c := range line {
			if c < ' ' || c == 0x7F {
				c = '?'
			}
			text = append(text, c)
		}
		at = end + 1
	}
	r.Text = string(text)
	return r, n, nil
}

var space = []byte{' '}

// replyCode looks at the first four bytes of a line, of which fewer may be there yet unless whole. code is 0 while it is not complete.
//
// Deviation: RFC 5321 §4.2 has 0 to 5 as second digit; any digit is taken.
func replyCode(line []byte, whole bool) (code uint16, ok bool) {
	for i := range min(len(line), 3) {
		c := line[i]
		if c < '0' || c > '9' || i == 0 && (c < '2' || c > '5') {
			return 0, false
		}
		code = code*10 + uint16(c-'0')
	}
	if len(line) < 3 {
		return 0, !whole
	}
	if len(line) > 3 && line[3] != ' ' && line[3] != '-' && line[3] != '\r' {
		return 0, false
	}
	return code, true
}

// enhancedCode reads class "." subject "." detail (RFC 3463 §2) at the start of a line, and gives the bytes that it took.
func enhancedCode(line []byte, code uint16) (e EnhancedCode, prefix []byte) {
	class := code / 100
	if class == 3 || len(line) < 5 || uint16(line[0]-'0') != class || line[1] != '.' {
		return e, nil
	}
	subject, i := threeDigits(line, 2)
	if i == 2 || i == len(line) || line[i] != '.' {
		return e, nil
	}
	detail, end := threeDigits(line, i+1)
	if end == i+1 || end < len(line) && line[end] != ' ' {
		return e, nil
	}
	return EnhancedCode{class, subject, detail}, line[:end]
}

// threeDigits reads up to three digits from line[at:]; end == at when there are none.
func threeDigits(line []byte, at int) (v uint16, end int) {
	for end = at; end < len(line) && end < at+3 && line[end] >= '0' && line[end] <= '9'; end++ {
		v = v*10 + uint16(line[end]-'0')
	}
	return v, end
}
