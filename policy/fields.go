package policy

import (
	"net/netip"
	"strings"

	"github.com/fastedge/fastedge/spf"
)

// The header fields that tell of checks. Every value that a stranger chose is quoted where need be, and no byte of it can end a value, a comment
// or a line: what is not printable ASCII becomes '?'. Each value stands on a line of its own, which is far below the 998 bytes of RFC 5322 §2.1.1.

// maxValueBytes is the longest value or comment, as written.
const maxValueBytes = 400

// appendReceivedSPF appends Received-SPF (RFC 7208 §9.1), CRLF included.
func appendReceivedSPF(dst []byte, e *Event, r *spf.Result, identity spf.Identity, hostname string) []byte {
	dst = append(dst, "Received-SPF: "...)
	dst = append(append(dst, r.Code.String()...), "\r\n\t"...)
	dst = appendComment(dst, hostname, ": ", whyOf(r))
	dst = clientIP(e).AppendTo(append(dst, "\r\n\tclient-ip="...))
	dst = appendPair(dst, ";\r\n\tenvelope-from=", reversePath(e))
	dst = appendPair(dst, ";\r\n\thelo=", e.Client.Helo)
	dst = append(append(dst, ";\r\n\tidentity="...), identity.String()...)
	dst = appendPair(dst, "; receiver=", hostname)
	if r.Mechanism != "" {
		dst = appendPair(dst, ";\r\n\tmechanism=", r.Mechanism)
	}
	if r.Problem != "" && r.Code >= spf.TempError {
		dst = appendPair(dst, ";\r\n\tproblem=", r.Problem)
	}
	return append(dst, "\r\n"...)
}

// The methods of Authentication-Results (RFC 8601 §2.7), each with the semicolon before it.

// appendSPFResult appends the method spf. The property is what was checked: HELO's name for the null reverse-path.
func appendSPFResult(dst []byte, e *Event, r *spf.Result, identity spf.Identity) []byte {
	dst = append(append(dst, ";\r\n\tspf="...), r.Code.String()...)
	if path := reversePath(e); identity == spf.MailFrom && len(path) > 0 {
		return appendAddress(append(dst, " smtp.mailfrom="...), path)
	}
	return appendPair(dst, " smtp.helo=", e.Client.Helo)
}

// appendIPRev appends the method iprev, with the name found, if any.
func appendIPRev(dst []byte, addr netip.Addr, host string, result iprev) []byte {
	dst = append(append(dst, ";\r\n\tiprev="...), result.String()...)
	if dst = append(dst, " policy.iprev="...); addr.Is4() {
		dst = addr.AppendTo(dst)
	} else { // its colons need quotes
		dst = append(addr.AppendTo(append(dst, '"')), '"')
	}
	if host != "" {
		dst = appendComment(append(dst, ' '), host)
	}
	return dst
}

// appendAuthResult appends the method auth: who has logged in, and how.
func appendAuthResult(dst []byte, c *Client) []byte {
	dst = append(dst, ";\r\n\tauth=pass "...)
	if c.Mechanism != "" {
		dst = append(appendComment(dst, c.Mechanism), ' ')
	}
	return appendAddress(append(dst, "smtp.auth="...), c.User)
}

// clientIP is the client's address as fields have it: RFC 7208 §9.1 has no mapped ones, nor zones.
func clientIP(e *Event) netip.Addr { return plainAddr(e.Client.Addr.Addr()) }

func reversePath(e *Event) []byte {
	if e.Envelope == nil {
		return nil
	}
	return e.Envelope.ReversePath
}

// text is what a value may come as.
type text interface{ string | []byte }

// appendPair appends what stands before a value, and the value: quoted unless it is both a token (RFC 2045 §5.1) and a dot-atom (RFC 5322 §3.2.3).
func appendPair[T text](dst []byte, before string, value T) []byte {
	dst = append(dst, before...)
	if isPlain(value) {
		return append(dst, value...)
	}
	return appendQuoted(dst, value)
}

// appendAddress appends a mailbox or user name: unquoted too when it is local-part@domain in its plain form (pvalue of RFC 8601 §2.2).
func appendAddress[T text](dst []byte, value T) []byte {
	for i := range len(value) {
		if value[i] == '@' && isPlain(value[:i]) && isPlain(value[i+1:]) && len(value) <= maxValueBytes {
			return append(dst, value...)
		}
	}
	return appendPair(dst, "", value)
}

// plainBytes are those of a token that may stand in a dot-atom too, but for the dot.
var plainBytes = func() (is [256]bool) {
	for b := range is {
		is[b] = b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b < 0x80 && strings.IndexByte("!#$%&'*+-^_`{|}~", byte(b)) >= 0
	}
	return is
}()

// isPlain says that a value needs no quotes.
func isPlain[T text](value T) bool {
	if len(value) == 0 || len(value) > maxValueBytes {
		return false
	}
	dot := true // before, or at the start
	for i := range len(value) {
		switch b := value[i]; {
		case plainBytes[b]:
			dot = false
		case b != '.' || dot:
			return false
		default:
			dot = true
		}
	}
	return !dot
}

// appendQuoted appends a quoted string (RFC 5322 §3.2.4).
func appendQuoted[T text](dst []byte, value T) []byte {
	dst = appendEscaped(append(dst, '"'), value, '"', '"')
	return append(dst, '"')
}

// appendComment appends texts as one comment (RFC 5322 §3.2.2).
func appendComment(dst []byte, texts ...string) []byte {
	dst = append(dst, '(')
	for _, text := range texts {
		dst = appendEscaped(dst, text, '(', ')')
	}
	return append(dst, ')')
}

// appendEscaped appends text up to maxValueBytes, with a backslash before either mark and before backslashes.
func appendEscaped[T text](dst []byte, text T, open, end byte) []byte {
	full := len(dst) + maxValueBytes
	for from := 0; ; {
		i := from
		for i < len(text) && text[i] >= ' ' && text[i] <= '~' && text[i] != open && text[i] != end && text[i] != '\\' {
			i++
		}
		if len(dst)+i-from > full {
			return append(dst, text[from:from+full-len(dst)]...)
		}
		if dst = append(dst, text[from:i]...); i == len(text) {
			return dst
		}
		escaped := [2]byte{'\\', text[i]}
		special := escaped[:]
		if text[i] < ' ' || text[i] > '~' {
			special = append(special[:0], '?')
		}
		if len(dst)+len(special) > full {
			return dst
		}
		dst, from = append(dst, special...), i+1
	}
}
