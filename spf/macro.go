package spf

import (
	"net/netip"
	"strconv"
	"strings"
	"unsafe"
)

// spec is a domain-spec (RFC 7208 §7.1), immutable.
type spec struct {
	word   string  // the modifier as written, of redirect= and exp=
	name   string  // what to ask DNS, when macros is empty; empty when no query can be made of it (§4.8)
	macros macros  // else what to expand
	needs  letters // which of these are among the macros
}

func (s *spec) size() int {
	if s == nil {
		return 0
	}
	return int(unsafe.Sizeof(*s)) + len(s.name) + len(s.macros)*int(unsafe.Sizeof(macro{}))
}

// letters tells of macro letters that need more than expansion.
type letters uint8

const (
	needsP     letters = 1 << iota // %{p}: queries come first
	needsLocal                     // %{s} or %{l}: RFC 8616 §4
)

// macros is a macro-string or an explain-string.
type macros []macro

// macro is a literal, or a letter with its transformers.
type macro struct {
	literal    string // when letter is 0; %%, %_ and %- are in it already
	letter     byte   // lower case
	escape     bool   // the letter was upper case: URL-escape the value
	reverse    bool
	keep       uint8 // how many parts of the right; 0 means all. RFC 7208 §7.3 wants at least 127.
	delimiters uint8 // a bit for each, see delimiter; none means "."
}

// place is where a macro-string stands; it decides what may be in it.
type place uint8

const (
	inName        place = iota // domain-spec: not c, r and t (RFC 7208 §7.2)
	inUnknown                  // value of an unknown modifier
	inExplanation              // explain-string: spaces, too
)

// parseSpec is RFC 7208 §7.1 domain-spec.
func parseSpec(s string) (*spec, string) {
	if s == "" {
		return nil, "has an empty domain"
	}
	m, tail, problem := parseMacros(s, inName)
	if problem != "" {
		return nil, problem
	}
	// domain-end is "." toplabel [ "." ], all literal, or a macro-expand.
	if tail < len(s) {
		end := strings.TrimSuffix(s[tail:], ".")
		dot := strings.LastIndexByte(end, '.')
		if dot < 0 {
			return nil, "has no domain of two labels"
		}
		if !isTopLabel(end[dot+1:]) {
			if _, err := netip.ParseAddr(s); err == nil {
				return nil, "has an address where a domain should be: ip4 or ip6 was meant, perhaps"
			}
			return nil, "has a bad domain"
		}
	}
	out := &spec{macros: m}
	for i := range m {
		switch m[i].letter {
		case 'p':
			out.needs |= needsP
		case 's', 'l':
			out.needs |= needsLocal
		}
	}
	if len(m) == 1 && m[0].letter == 0 {
		out.name, out.macros = queryName(m[0].literal), nil
	}
	return out, ""
}

// isTopLabel is RFC 7208 §7.1 toplabel: letters, digits and inner hyphens, not digits alone.
func isTopLabel(s string) bool {
	word := false
	for i := range len(s) {
		switch c := s[i]; {
		case isAlpha(c):
			word = true
		case isDigit(c):
		case c == '-' && i > 0 && i < len(s)-1:
			word = true
		default:
			return false
		}
	}
	return word
}

// parseMacros is RFC 7208 §7.1 macro-string, or §6.2 explain-string. What follows the last macro-expand begins at tail.
func parseMacros(s string, where place) (m macros, tail int, problem string) {
	var joined []byte // the beginning of a literal that is not as written; the rest of it begins at tail
	flush := func(end int) {
		literal := s[tail:end]
		if len(joined) > 0 {
			literal = string(append(joined, literal...))
			joined = joined[:0]
		}
		if literal != "" {
			m = append(m, macro{literal: literal})
		}
	}
	for i := 0; i < len(s); {
		c := s[i]
		if c < 0x20 || c > 0x7E || c == ' ' && where != inExplanation {
			return nil, 0, "has a byte that is no visible ASCII character"
		}
		if c != '%' {
			i++
			continue
		}
		if i+1 == len(s) {
			return nil, 0, `has a single "%"`
		}
		instead := ""
		switch s[i+1] {
		case '%':
			instead = "%"
		case '_':
			instead = " "
		case '-':
			instead = "%20"
		case '{':
			length := strings.IndexByte(s[i:], '}') + 1
			if length == 0 {
				return nil, 0, `has a macro without "}"`
			}
			one, ok := parseMacro(s[i+2:i+length-1], where)
			if !ok {
				return nil, 0, "has a bad macro"
			}
			flush(i)
			m = append(m, one)
			i += length
			tail = i
			continue
		default:
			return nil, 0, `has a single "%"`
		}
		joined = append(joined, s[tail:i]...)
		joined = append(joined, instead...)
		i += 2
		tail = i
	}
	flush(len(s))
	return m, tail, ""
}

// parseMacro is what stands between "%{" and "}": macro-letter transformers *delimiter.
func parseMacro(s string, where place) (m macro, ok bool) {
	if s == "" || !isAlpha(s[0]) {
		return m, false
	}
	m.letter, m.escape = s[0]|0x20, s[0] < 'a'
	switch m.letter {
	case 's', 'l', 'o', 'd', 'i', 'p', 'h', 'v':
	case 'c', 'r', 't':
		if where == inName {
			return m, false
		}
	default:
		return m, false
	}
	i := 1
	for ; i < len(s) && isDigit(s[i]); i++ {
		m.keep = uint8(min(int(m.keep)*10+int(s[i]-'0'), 255))
	}
	if i > 1 && m.keep == 0 {
		return m, false // RFC 7208 §7.3: nonzero
	}
	if i < len(s) && s[i]|0x20 == 'r' {
		m.reverse = true
		i++
	}
	for ; i < len(s); i++ {
		bit := delimiter(s[i])
		if bit == 0 {
			return m, false
		}
		m.delimiters |= bit
	}
	return m, true
}

// delimiter is a bit for each delimiter of RFC 7208 §7.1, 0 for other bytes.
func delimiter(c byte) uint8 {
	switch c {
	case '.':
		return 1
	case '-':
		return 2
	case '+':
		return 4
	case ',':
		return 8
	case '/':
		return 16
	case '_':
		return 32
	case '=':
		return 64
	}
	return 0
}

// appendTo appends the value of a macro, transformed (RFC 7208 §7.3).
func (m *macro) appendTo(dst []byte, value []byte) []byte {
	from := len(dst)
	switch {
	case m.keep == 0 && !m.reverse && m.delimiters == 0:
		dst = append(dst, value...)
	case m.reverse:
		// The last keep parts of the reversed list are the first of the value, backwards.
		end := len(value)
		if m.keep > 0 {
			left := int(m.keep)
			for i := range value {
				if m.splits(value[i]) {
					if left--; left == 0 {
						end = i
						break
					}
				}
			}
		}
		for end >= 0 {
			begin := end
			for begin > 0 && !m.splits(value[begin-1]) {
				begin--
			}
			dst = append(dst, value[begin:end]...)
			if begin > 0 {
				dst = append(dst, '.')
			}
			end = begin - 1
		}
	default:
		begin, left := len(value), int(m.keep)
		for ; begin > 0; begin-- {
			if m.splits(value[begin-1]) && m.keep > 0 {
				if left--; left == 0 {
					break
				}
			}
		}
		for _, c := range value[begin:] {
			if m.splits(c) {
				c = '.' // RFC 7208 §7.3: rejoined by dots whatever split them
			}
			dst = append(dst, c)
		}
	}
	if m.escape {
		return escape(dst, from)
	}
	return dst
}

func (m *macro) splits(c byte) bool {
	if m.delimiters == 0 {
		return c == '.'
	}
	return m.delimiters&delimiter(c) != 0
}

// escape escapes all of b from an index on but the unreserved characters of RFC 3986 §2.3.
func escape(b []byte, from int) []byte {
	const hex = "0123456789ABCDEF"
	extra := 0
	for _, c := range b[from:] {
		if !isUnreserved(c) {
			extra += 2
		}
	}
	r := len(b)
	b = append(b, make([]byte, extra)...)
	for w := len(b); w > r; { // in place, from the right
		r--
		if c := b[r]; isUnreserved(c) {
			w--
			b[w] = c
		} else {
			w -= 3
			b[w], b[w+1], b[w+2] = '%', hex[c>>4], hex[c&15]
		}
	}
	return b
}

func isUnreserved(c byte) bool {
	return isAlpha(c) || isDigit(c) || c == '-' || c == '.' || c == '_' || c == '~'
}

// appendDotted appends ip as %{i} has it: dotted quad, or the nibbles of IPv6 with dots between (RFC 7208 §7.3).
func appendDotted(dst []byte, ip netip.Addr) []byte {
	if ip.Is4() {
		return ip.AppendTo(dst)
	}
	const hex = "0123456789abcdef"
	for i, b := range ip.As16() {
		if i > 0 {
			dst = append(dst, '.')
		}
		dst = append(dst, hex[b>>4], '.', hex[b&15])
	}
	return dst
}

// reverseName is the name in in-addr.arpa or ip6.arpa (RFC 1035 §3.5, RFC 3596 §2.5).
func reverseName(ip netip.Addr) string {
	b := make([]byte, 0, 80)
	if ip.Is4() {
		a := ip.As4()
		for i := 3; i >= 0; i-- {
			b = strconv.AppendUint(b, uint64(a[i]), 10)
			b = append(b, '.')
		}
		return string(append(b, "in-addr.arpa"...))
	}
	const hex = "0123456789abcdef"
	a := ip.As16()
	for i := 15; i >= 0; i-- {
		b = append(b, hex[a[i]&15], '.', hex[a[i]>>4], '.')
	}
	return string(append(b, "ip6.arpa"...))
}
