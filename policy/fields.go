package policy

import (
	"strings"

	"github.com/fastedge/fastedge/spf"
)

// The header fields that tell of a check. Every value that a stranger chose is quoted, and no byte of it can end a value, a comment or a
// line: what is not printable ASCII becomes '?'.

// appendReceivedSPF appends Received-SPF (RFC 7208 §9.1), CRLF included.
func appendReceivedSPF(dst []byte, e *Event, r *spf.Result, identity spf.Identity, hostname string) []byte {
	dst = append(dst, "Received-SPF: "...)
	dst = append(dst, r.Code.String()...)
	why := r.Reason
	if why == "" {
		why = r.Problem
	}
	dst = append(dst, " ("...)
	dst = append(append(dst, hostname...), ": "...)
	dst = appendComment(dst, why)
	dst = append(dst, ")\r\n\tclient-ip="...)
	dst = e.Client.Addr.Addr().AppendTo(dst)
	dst = appendPair(dst, "; envelope-from", reversePath(e))
	dst = appendPair(dst, ";\r\n\thelo", string(e.Client.Helo))
	dst = append(dst, "; identity="...)
	dst = append(dst, identity.String()...)
	dst = appendPair(dst, "; receiver", hostname)
	if r.Mechanism != "" {
		dst = appendPair(dst, ";\r\n\tmechanism", r.Mechanism)
	}
	return append(dst, "\r\n"...)
}

// appendSPFResults appends Authentication-Results (RFC 8601) with the method spf, CRLF included.
func appendSPFResults(dst []byte, e *Event, r *spf.Result, identity spf.Identity, hostname string) []byte {
	dst = append(dst, "Authentication-Results: "...)
	dst = append(append(dst, hostname...), ";\r\n\tspf="...)
	dst = append(dst, r.Code.String()...)
	if path := reversePath(e); identity == spf.MailFrom && path != "" {
		dst = appendPair(dst, " smtp.mailfrom", path)
	} else {
		dst = appendPair(dst, " smtp.helo", string(e.Client.Helo))
	}
	return append(dst, "\r\n"...)
}

func reversePath(e *Event) string {
	if e.Envelope == nil {
		return ""
	}
	return string(e.Envelope.ReversePath)
}

// maxFieldValue keeps a line well below the 998 bytes of RFC 5322 §2.1.1.
const maxFieldValue = 400

// appendPair appends name=value, quoted where need be.
func appendPair(dst []byte, name, value string) []byte {
	dst = append(append(dst, name...), '=')
	value = value[:min(len(value), maxFieldValue)]
	if isToken(value) {
		return append(dst, value...)
	}
	dst = append(dst, '"')
	for _, b := range []byte(value) {
		switch {
		case b < ' ' || b > '~':
			b = '?'
		case b == '"' || b == '\\':
			dst = append(dst, '\\')
		}
		dst = append(dst, b)
	}
	return append(dst, '"')
}

// isToken says that a value is a dot-atom (RFC 5322 §3.2.3), which needs no quotes.
func isToken(value string) bool {
	for _, b := range []byte(value) {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', strings.IndexByte("!#$%&'*+-/^_`{|}~.", b) >= 0:
		default:
			return false
		}
	}
	return value != ""
}

// appendComment appends what stands between parentheses.
func appendComment(dst []byte, text string) []byte {
	for _, b := range []byte(text[:min(len(text), maxFieldValue)]) {
		switch {
		case b < ' ' || b > '~':
			b = '?'
		case b == '(' || b == ')' || b == '\\':
			dst = append(dst, '\\')
		}
		dst = append(dst, b)
	}
	return dst
}
