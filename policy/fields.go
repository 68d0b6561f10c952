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

// ourFields is what our name makes the same in all fields.
type ourFields struct {
	comment  []byte // of Received-SPF, as far as the reason
	receiver []byte // "; receiver=" and the name
	results  []byte // Authentication-Results as far as the first method
	bare     bool   // no Received-SPF
}

func newOurFields(hostname string, bare bool) *ourFields {
	o := &ourFields{bare: bare}
	o.comment = append(appendEscaped([]byte("\r\n\t("), hostname, &inComment), ": "...)
	o.receiver = appendPair(nil, "; receiver=", hostname)
	o.results = appendPair(nil, "Authentication-Results: ", hostname)
	return o
}

// spfFields are the fields of a reverse-path's result as appendSPF has them, but for the reverse-path itself: the same for all messages that have the result.
type spfFields struct {
	text []byte
	cut  int // in text, where the reverse-path stands; 0: nowhere, there is no Received-SPF
}

// spfFields writes them into room, or elsewhere if it is too small.
func (o *ourFields) spfFields(room []byte, key *keptKey, r *spf.Result) spfFields {
	f := spfFields{text: room}
	if !o.bare {
		f.text = o.beginReceivedSPF(f.text, key.client, r)
		f.cut = len(f.text)
		f.text = o.endReceivedSPF(f.text, key.helo, r, spf.MailFrom)
	}
	f.text = o.appendSPFResult(f.text, r)
	return f
}

// appendSPF appends Received-SPF (RFC 7208 §9.1), and Authentication-Results (RFC 8601) as far as the method spf. The property is what was checked: HELO's
// name for the null reverse-path.
func (o *ourFields) appendSPF(dst []byte, e *Event, found *spfOutcome) []byte {
	path, r := reversePath(e), found.result
	switch f := found.fields; {
	case f != nil:
		dst = append(dst, f.text[:f.cut]...)
		if f.cut > 0 {
			dst = appendPair(dst, "", path)
		}
		dst = append(dst, f.text[f.cut:]...)
	case o.bare:
		dst = o.appendSPFResult(dst, r)
	default:
		dst = appendPair(o.beginReceivedSPF(dst, clientIP(e), r), "", path)
		dst = o.appendSPFResult(o.endReceivedSPF(dst, e.Client.Helo, r, found.identity), r)
	}
	if found.identity == spf.MailFrom && len(path) > 0 {
		return appendAddress(append(dst, " smtp.mailfrom="...), path)
	}
	return appendPair(dst, " smtp.helo=", e.Client.Helo)
}

// beginReceivedSPF appends the field as far as the reverse-path.
func (o *ourFields) beginReceivedSPF(dst []byte, client netip.Addr, r *spf.Result) []byte {
	dst = append(append(dst, "Received-SPF: "...), r.Code.String()...)
	dst = append(dst, o.comment...)
	if r.Explanation != "" { // not in our words
		dst = append(append(dst, explainer(r)...), explains...)
	}
	dst = append(appendEscaped(dst, whyOf(r), &inComment), ")\r\n\tclient-ip="...)
	return append(appendIP(dst, client), ";\r\n\tenvelope-from="...)
}

// endReceivedSPF appends what stands behind the reverse-path, CRLF included.
func (o *ourFields) endReceivedSPF(dst, helo []byte, r *spf.Result, identity spf.Identity) []byte {
	dst = appendPair(dst, ";\r\n\thelo=", helo)
	dst = append(append(dst, ";\r\n\tidentity="...), identity.String()...)
	dst = append(dst, o.receiver...)
	if r.Mechanism != "" {
		dst = appendPair(dst, ";\r\n\tmechanism=", r.Mechanism)
	}
	if r.Problem != "" && r.Code >= spf.TempError {
		dst = appendPair(dst, ";\r\n\tproblem=", r.Problem)
	}
	return append(dst, "\r\n"...)
}

// The methods of Authentication-Results (RFC 8601 §2.7), each with the semicolon before it.

// appendSPFResult appends the field as far as the result of the method spf.
func (o *ourFields) appendSPFResult(dst []byte, r *spf.Result) []byte {
	return append(append(append(dst, o.results...), ";\r\n\tspf="...), r.Code.String()...)
}

// appendIPRev appends the method iprev, with the name found, if any.
func appendIPRev(dst []byte, addr netip.Addr, host string, result iprev) []byte {
	dst = append(append(dst, ";\r\n\tiprev="...), result.String()...)
	dst = appendIP(append(dst, " policy.iprev="...), addr)
	if host != "" {
		dst = appendComment(append(dst, " ("...), host)
	}
	return dst
}

// appendAuthResult appends the method auth: who has logged in, and how.
func appendAuthResult(dst []byte, c *Client) []byte {
	dst = append(dst, ";\r\n\tauth=pass "...)
	if c.Mechanism != "" {
		dst = append(appendComment(append(dst, '('), c.Mechanism), ' ')
	}
	return appendAddress(append(dst, "smtp.auth="...), c.User)
}

// appendIP appends an address as a value: the colons of IPv6 need quotes.
func appendIP(dst []byte, addr netip.Addr) []byte {
	if addr.Is4() {
		return addr.AppendTo(dst)
	}
	return append(addr.AppendTo(append(dst, '"')), '"')
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

// byteSet has the bytes for which it is true.
type byteSet [256]bool

func newByteSet(has func(b byte) bool) (set byteSet) {
	for b := range set {
		set[b] = has(byte(b))
	}
	return set
}

var (
	// plainBytes are those of a token that may stand in a dot-atom too, but for the dot.
	plainBytes = newByteSet(func(b byte) bool {
		return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b < 0x80 && strings.IndexByte("!#$%&'*+-^_`{|}~", b) >= 0
	})
	// inQuotes and inComment are what may stand there as it is.
	inQuotes  = newByteSet(func(b byte) bool { return b >= ' ' && b <= '~' && b != '"' && b != '\\' })
	inComment = newByteSet(func(b byte) bool { return b >= ' ' && b <= '~' && b != '(' && b != ')' && b != '\\' })
)

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
	return append(appendEscaped(append(dst, '"'), value, &inQuotes), '"')
}

// appendComment appends the rest of a comment (RFC 5322 §3.2.2) that has been opened.
func appendComment(dst []byte, text string) []byte {
	return append(appendEscaped(dst, text, &inComment), ')')
}

// appendEscaped appends text up to maxValueBytes, with a backslash before those printable characters that may not stand as they are.
func appendEscaped[T text](dst []byte, text T, asIs *byteSet) []byte {
	full := len(dst) + maxValueBytes
	for from := 0; ; {
		i := from
		for i < len(text) && asIs[text[i]] {
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
