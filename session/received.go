package session

import (
	"bytes"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
)

// appendDate appends a time in UTC as RFC 5322 §3.3 has it. By hand, since each message needs it and time.AppendFormat reads its layout each time
// (BenchmarkDate).
func appendDate(dst []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	two := func(n int) { dst = append(dst, byte('0'+n/10), byte('0'+n%10)) }
	dst = append(append(dst, t.Weekday().String()[:3]...), ", "...)
	two(day)
	dst = append(append(append(dst, ' '), month.String()[:3]...), ' ')
	two(year / 100)
	two(year % 100)
	dst = append(dst, ' ')
	two(hour)
	dst = append(dst, ':')
	two(minute)
	dst = append(dst, ':')
	two(second)
	return append(dst, " +0000"...)
}

// appendReceived appends the Received field of RFC 5321 §4.4 for env, CRLF included:
//
//	Received: from client.example.com (mail.example.com [192.0.2.7])
//		by mx1.example.net (fastedge) with ESMTP id 01arz3ndektsv4rrffq69g5fav
//		for <rcpt@example.net>;
//		Sun, 22 Nov 2026 08:00:39 +0000
//
// host is the client's verified name, empty without one. After a handshake the protocol is followed by a comment, (TLS1.3 TLS_AES_128_GCM_SHA256). The for clause is left out when there are several recipients: it may name only one (RFC 5321 §4.4), and would tell the others,
// blind copies among them, about that one (RFC 5321 §7.2).
// Nothing that a stranger chose can end the field, a comment or a line in it.
func appendReceived(dst []byte, env *envelope.Envelope, tls *policy.TLS, host, hostname string) []byte {
	dst = append(dst, "Received: from "...)
	dst = appendWord(dst, env.Client.Helo)
	if a := env.Client.Addr.Addr(); a.IsValid() { // a unix socket has none
		dst = append(dst, " ("...)
		if host != "" { // RFC 5321 §4.4: TCP-info
			dst = append(appendWord(dst, []byte(host)), ' ')
		}
		dst = append(dst, '[')
		if a = a.Unmap(); a.Is6() {
			dst = append(dst, "IPv6:"...) // RFC 5321 §4.1.3
		}
		dst = a.WithZone("").AppendTo(dst)
		dst = append(dst, "])"...)
	}
	dst = append(append(dst, "\r\n\tby "...), hostname...)
	dst = append(append(dst, " (fastedge) with "...), env.Client.Protocol...)
	if tls != nil {
		dst = appendWord(append(dst, "\r\n\t("...), []byte(tls.Version))
		dst = appendWord(append(dst, ' '), []byte(tls.Cipher))
		dst = append(dst, ')')
	}
	dst = append(dst, " id "...)
	dst = env.ID.AppendTo(dst)
	if len(env.Recipients) == 1 && mayStandInField(env.Recipients[0].Path, env.SMTPUTF8) {
		dst = append(append(dst, "\r\n\tfor <"...), env.Recipients[0].Path...)
		dst = append(dst, '>')
	}
	dst = append(dst, ";\r\n\t"...)
	dst = appendDate(dst, env.Arrived)
	return append(dst, "\r\n"...)
}

// appendResults appends what the first Authentication-Results among fields that we have made says, behind our name and unfolded. A milter may have made
// one of its own behind it.
func appendResults(dst, fields []byte) []byte {
	const name = "Authentication-Results:"
	within := false
	for had := len(dst); len(fields) > 0; {
		line := fields
		if n := bytes.IndexByte(fields, '\n'); n >= 0 {
			line = fields[:n]
		}
		fields = fields[min(len(line)+1, len(fields)):]
		switch {
		case len(line) > 0 && (line[0] == '\t' || line[0] == ' '):
			if !within {
				continue
			}
		case len(dst) > had: // another field, behind it
			return dst
		default:
			if within = bytes.HasPrefix(line, []byte(name)); !within {
				continue
			}
			if _, line, _ = bytes.Cut(line, []byte{';'}); len(line) == 0 {
				continue
			}
		}
		for len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			line = line[1:]
		}
		for n := len(line) - 1; n >= 0 && (line[n] == '\r' || line[n] == ' ' || line[n] == '\t'); n-- { // not bytes.Trim, which makes a set first
			line = line[:n]
		}
		if len(line) == 0 {
			continue
		}
		if len(dst) > had {
			dst = append(dst, ' ')
		}
		dst = append(dst, line...)
	}
	return dst
}

// appendWord appends a HELO name. What is neither part of a host name nor of an address literal becomes '?': a parenthesis would open
// a comment, a semicolon would begin the date.
func appendWord(dst, p []byte) []byte {
	if len(p) == 0 {
		return append(dst, "unknown"...)
	}
	for _, c := range p[:min(len(p), maxHeloBytes)] {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case bytes.IndexByte([]byte("-._:[]"), c) >= 0:
		default:
			c = '?'
		}
		dst = append(dst, c)
	}
	return dst
}

// maxForBytes keeps the line with the for clause well below the 998 bytes of RFC 5322 §2.1.1.
const maxForBytes = 512

// mayStandInField says whether a forward-path can be printed: no controls, and no 8-bit bytes unless the transaction has SMTPUTF8
// (RFC 6531 §3.7.3).
func mayStandInField(path []byte, utf8 bool) bool {
	if len(path) > maxForBytes {
		return false
	}
	for _, c := range path {
		if c < ' ' || c == 0x7F || c >= 0x80 && !utf8 {
			return false
		}
	}
	return true
}

// fieldCounter counts the Received fields of a message as its bytes come in, in any pieces: names at the start of a line, in any
// case, blanks allowed before the colon (RFC 5322 §4.5.7), up to the first empty line. The zero value stands at the start of the message.
type fieldCounter struct {
	count int
	at    fieldState
}

// fieldState below nameRead is how many bytes of "received" the line began with.
type fieldState uint8

const (
	lineStart  fieldState = 0
	nameRead   fieldState = 8 // all of "received"; blanks may follow, then the colon
	inField    fieldState = 9 // another name, or behind the colon: up to LF
	emptyCR    fieldState = 10
	headerDone fieldState = 11
)

const receivedName = "received"

func (f *fieldCounter) scan(p []byte) {
	for i := 0; i < len(p); i++ {
		c := p[i]
		switch {
		case f.at == headerDone:
			return
		case f.at == inField:
			n := bytes.IndexByte(p[i:], '\n')
			if n < 0 {
				return
			}
			i += n
			f.at = lineStart
		case c == '\n':
			if f.at == lineStart || f.at == emptyCR {
				f.at = headerDone
			} else {
				f.at = lineStart
			}
		case c == '\r' && f.at == lineStart:
			f.at = emptyCR
		case f.at < nameRead && c|0x20 == receivedName[f.at]:
			f.at++
		case f.at == nameRead && c == ':':
			f.count++
			f.at = inField
		case f.at == nameRead && (c == ' ' || c == '\t'):
		default:
			f.at = inField
		}
	}
}
