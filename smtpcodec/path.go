package smtpcodec

import (
	"net/netip"
	"slices"
	"unicode/utf8"
)

// MaxDomainBytes is RFC 5321 §4.5.3.1.2; MaxPathBytes is §4.5.3.1.3 and counts the angle brackets and a source route.
const (
	MaxDomainBytes = 255
	MaxPathBytes   = 256
)

// Path is a reverse- or forward-path, borrowed from the line it was parsed from.
type Path struct {
	Mailbox []byte // as sent, between the angle brackets, source route removed; empty for <>
	Local   []byte // local part as sent, quotes included
	Domain  []byte // domain or address literal with its brackets; empty for <> and <postmaster>
}

// Clone gives a path that borrows nothing.
func (p Path) Clone() Path {
	whole := slices.Clone(p.Mailbox)
	if len(p.Local) > 0 || len(p.Domain) > 0 {
		// Mailbox is Local, "@" and Domain, or Local alone.
		p.Local = whole[:len(p.Local):len(p.Local)]
		p.Domain = whole[len(whole)-len(p.Domain):]
	}
	p.Mailbox = whole
	return p
}

// class sorts bytes for the grammars of RFC 5321 §4.1.2.
var class = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z':
			t[c] = isAtext | isLetDig
		case c >= 0x80: // RFC 6531 §3.3 adds UTF-8 to atext, qtext and sub-domain; the path parser asks whether it may be there
			t[c] = isAtext | isLetDig
		case c < ' ' || c == 0x7F:
			t[c] = isControl
		}
	}
	for _, c := range "!#$%&'*+-/=?^_`{|}~" {
		t[c] = isAtext
	}
	return t
}()

const (
	isAtext   = 1 << iota // RFC 5322 §3.2.3
	isLetDig              // RFC 5321 §4.1.2
	isControl             // ASCII only
)

// checkText is the first look at an argument: has8 says that bytes over 127 are there; ok is false with a control character or with
// bytes that are not UTF-8. Everything after it may rely on that.
func checkText(p []byte) (has8, ok bool) {
	var all uint8
	for _, c := range p {
		if class[c]&isControl != 0 {
			return false, false
		}
		all |= c
	}
	if all < 0x80 {
		return false, true
	}
	return true, checkUTF8(p)
}

// ValidText says whether p may stand behind a verb: UTF-8 without control characters (RFC 5321 §4.1.2 String, RFC 6531 §3.3).
func ValidText(p []byte) bool {
	_, ok := checkText(p)
	return ok
}

func checkUTF8(p []byte) bool {
	for len(p) > 0 {
		r, size := utf8.DecodeRune(p)
		if r == utf8.RuneError && size == 1 || isUnicodeControl(r) {
			return false
		}
		p = p[size:]
	}
	return true
}

// isUnicodeControl covers C0, DEL and C1 (RFC 5198 §2 bans C1 from network text), and the line and paragraph separators, which some
// readers of a log take for line ends.
func isUnicodeControl(r rune) bool {
	return r < ' ' || r >= 0x7F && r <= 0x9F || r == 0x2028 || r == 0x2029
}

// pathKind says which paths are legal besides <local@domain>.
type pathKind uint8

const (
	reversePath pathKind = iota // also <> (RFC 5321 §4.5.5)
	forwardPath                 // also <postmaster> (RFC 5321 §4.1.1.3)
)

func (k pathKind) bad() SyntaxError {
	if k == reversePath {
		return ErrBadSender
	}
	return ErrBadRcpt
}

// parsePath parses the path at the start of p and gives what follows it. p has passed checkText. ErrSyntax means that no path
// could be made out, ErrBadSender or ErrBadRcpt that what stands between the angle brackets is no mailbox.
//
// RFC 5321 §4.1.2 has no place for a path without a domain but <postmaster>. Local programs like to send MAIL FROM:<root> all the
// same; it is refused, because no bounce would find its way back to it.
func parsePath(p []byte, kind pathKind) (path Path, rest []byte, err SyntaxError) {
	if len(p) == 0 || p[0] != '<' {
		return Path{}, nil, ErrSyntax
	}
	end := closingBracket(p)
	if end < 0 {
		return Path{}, nil, ErrSyntax
	}
	rest = p[end+1:]
	if len(rest) > 0 && rest[0] != ' ' {
		return Path{}, nil, ErrSyntax
	}
	if end+1 > MaxPathBytes {
		return Path{}, nil, kind.bad()
	}
	mailbox := p[1:end]
	if len(mailbox) == 0 {
		if kind == forwardPath {
			return Path{}, nil, ErrBadRcpt
		}
		return Path{}, rest, ErrNone
	}
	if mailbox[0] == '@' {
		var ok bool
		if mailbox, ok = cutSourceRoute(mailbox); !ok {
			return Path{}, nil, kind.bad()
		}
	}
	path, ok := parseMailbox(mailbox)
	if !ok && kind == forwardPath && equalFold(mailbox, "POSTMASTER") {
		return Path{Mailbox: mailbox, Local: mailbox}, rest, ErrNone
	}
	if !ok {
		return Path{}, nil, kind.bad()
	}
	return path, rest, ErrNone
}

// closingBracket is the index of the ">" that ends the path in p, which starts with "<"; a ">" inside quotes does not. -1: none.
func closingBracket(p []byte) int {
	quoted := false
	for i := 1; i < len(p); i++ {
		switch c := p[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == '>' && !quoted:
			return i
		}
	}
	return -1
}

// cutSourceRoute removes "@a,@b:" (RFC 5321 §4.1.2 A-d-l). It is parsed and ignored, as RFC 5321 appendix C and §3.3 ask.
func cutSourceRoute(p []byte) (mailbox []byte, ok bool) {
	for {
		if len(p) == 0 || p[0] != '@' {
			return nil, false
		}
		end := 1
		for end < len(p) && p[end] != ',' && p[end] != ':' {
			if p[end] == '[' { // an IPv6 literal has colons
				for end < len(p) && p[end] != ']' {
					end++
				}
				continue
			}
			end++
		}
		if end >= len(p) || !validDomain(p[1:end]) {
			return nil, false
		}
		if p[end] == ':' {
			return p[end+1:], true
		}
		p = p[end+1:]
	}
}

// parseMailbox takes Local-part "@" ( Domain / address-literal ) and nothing else (RFC 5321 §4.1.2).
//
// Deviation: RFC 5321 §4.5.3.1.1 limits the local part to 64 octets. Senders with an encoded recipient in the local part (VERP) go
// over it, so only the limits of the path and of the domain are enforced.
func parseMailbox(p []byte) (Path, bool) {
	n := localPart(p)
	if n == 0 || n+1 >= len(p) || p[n] != '@' || !validDomain(p[n+1:]) {
		return Path{}, false
	}
	return Path{Mailbox: p, Local: p[:n], Domain: p[n+1:]}, true
}

// localPart is the length of the Dot-string or Quoted-string that p starts with; 0 when there is none.
func localPart(p []byte) int {
	if len(p) > 0 && p[0] == '"' {
		for i := 1; i < len(p); i++ {
			switch p[i] {
			case '"':
				return i + 1
			case '\\': // quoted-pairSMTP; checkText has refused controls
				i++
			}
		}
		return 0
	}
	// Deviation: RFC 5321 §4.1.2 has no dots at the ends of a Dot-string and no two in a row. Large providers have given out such
	// addresses, and they harm nobody.
	n := 0
	for n < len(p) && (class[p[n]]&isAtext != 0 || p[n] == '.') {
		n++
	}
	return n
}

// validDomain takes Domain or an address literal (RFC 5321 §4.1.2, §4.1.3).
//
// Deviation: "_" counts as a letter; hosts with one in their name do send mail.
func validDomain(p []byte) bool {
	if len(p) == 0 || len(p) > MaxDomainBytes { // RFC 5321 §4.5.3.1.2
		return false
	}
	if p[0] == '[' {
		return p[len(p)-1] == ']' && validLiteral(p[1:len(p)-1])
	}
	start, ascii := 0, true
	for i := 0; ; i++ {
		if i == len(p) || p[i] == '.' {
			label := p[start:i]
			// RFC 1035 §2.3.4 gives a label 1 to 63 octets, which for a U-label holds of its A-label (RFC 5890 §2.3.2.1), not of
			// its UTF-8. An empty label also refuses the dot at the end that DNS allows and RFC 5321 does not.
			if len(label) == 0 || ascii && len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
				return false
			}
			if i == len(p) {
				return true
			}
			start, ascii = i+1, true
			continue
		}
		if class[p[i]]&isLetDig == 0 && p[i] != '-' && p[i] != '_' {
			return false
		}
		if p[i] >= 0x80 {
			ascii = false
		}
	}
}

// validLiteral checks what stands between "[" and "]" (RFC 5321 §4.1.3). General-address-literals are refused: no tag is registered.
func validLiteral(p []byte) bool {
	if len(p) > 5 && equalFold(p[:5], "IPV6:") {
		a, err := netip.ParseAddr(string(p[5:]))
		return err == nil && a.Is6() && a.Zone() == ""
	}
	return validIPv4(p)
}

// validIPv4 is hand-written because netip would keep, and so allocate, the text for its error.
func validIPv4(p []byte) bool {
	for field := range 4 {
		if field > 0 {
			if len(p) == 0 || p[0] != '.' {
				return false
			}
			p = p[1:]
		}
		v, k := 0, 0
		for k < len(p) && k < 3 && p[k] >= '0' && p[k] <= '9' {
			v = v*10 + int(p[k]-'0')
			k++
		}
		if k == 0 || v > 255 || k > 1 && p[0] == '0' {
			return false
		}
		p = p[k:]
	}
	return len(p) == 0
}
