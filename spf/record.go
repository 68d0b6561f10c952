package spf

import (
	"net/netip"
	"strconv"
	"strings"
	"unsafe"
)

// TXT is a TXT record set and the SPF record in it, parsed once however many checks read it.
type TXT struct {
	Strings []string // one a record, the character-strings of each joined without a space (RFC 7208 §3.3)
	record  *record  // the SPF record; nil without one, and when problem says why it is of no use
	problem string   // printable
}

// NewTXT takes ownership of a TXT record set, each element the joined character-strings of one record, and parses the SPF record in it.
// It never fails: what is wrong with the record is told to the check that reads it.
func NewTXT(strings []string) *TXT {
	t := &TXT{Strings: strings}
	text, found := "", false
	for _, s := range strings {
		if !isSPF(s) {
			continue
		}
		if found { // RFC 7208 §4.5: equal ones, too
			t.problem = "several SPF records"
			return t
		}
		text, found = s, true
	}
	if found {
		t.record, t.problem = parseRecord(text)
	}
	return t
}

// Size is about how many bytes t holds, for caches that count.
func (t *TXT) Size() int {
	n := int(unsafe.Sizeof(*t)) + len(t.problem)
	for _, s := range t.Strings {
		n += int(unsafe.Sizeof(s)) + len(s)
	}
	if r := t.record; r != nil {
		n += int(unsafe.Sizeof(*r)) + len(r.terms)*int(unsafe.Sizeof(term{}))
		for i := range r.terms {
			n += r.terms[i].spec.size()
		}
		n += r.redirect.size() + r.exp.size()
	}
	return n
}

// SPF says whether there is an SPF record in t, and what is wrong with it; an empty problem means that it may be evaluated.
func (t *TXT) SPF() (found bool, problem string) {
	return t.record != nil || t.problem != "", t.problem
}

// isSPF is RFC 7208 §4.5: the version is terminated by a space or by the end of the record.
func isSPF(s string) bool {
	const version = "v=spf1"
	return len(s) >= len(version) && strings.EqualFold(s[:len(version)], version) && (len(s) == len(version) || s[len(version)] == ' ')
}

// record is a parsed SPF record, immutable. Mechanisms that can't be reached are checked for syntax but not kept: those after "all", and
// those after more than MaxLookups terms that ask DNS. So a hostile record grows by a factor of about eight at most.
type record struct {
	text     string
	terms    []term
	redirect *spec // nil without one
	exp      *spec // nil without one
}

// kind is a mechanism of RFC 7208 §5.
type kind uint8

const (
	kindAll kind = iota + 1
	kindIP
	kindA
	kindMX
	kindInclude
	kindExists
	kindPTR
)

// term is a directive: a qualifier and a mechanism (RFC 7208 §4.6.1).
type term struct {
	kind   kind
	code   Code         // what a match means
	bits4  uint8        // of a and mx
	bits6  uint8        // of a and mx
	prefix netip.Prefix // of ip4 and ip6
	spec   *spec        // nil without a domain-spec: the domain whose record this is
	text   string       // as written, with its qualifier
}

// mechanism is the term without its qualifier.
func (t *term) mechanism() string {
	s := t.text
	if qualifier(s[0]) != None {
		s = s[1:]
	}
	return clip(s)
}

// clip bounds what is quoted of a record. RFC 7208 §4.6.1: terms are visible ASCII, so any byte is a boundary.
func clip(s string) string { return s[:min(len(s), 200)] }

func qualifier(c byte) Code {
	switch c {
	case '+':
		return Pass
	case '-':
		return Fail
	case '~':
		return SoftFail
	case '?':
		return Neutral
	}
	return None
}

// parseRecord parses a record whose version isSPF has seen. Errors anywhere spoil the whole record (RFC 7208 §4.6).
func parseRecord(text string) (*record, string) {
	r := &record{text: text}
	asking, over := 0, false // over: the terms from here on can't be reached
	for rest := text[len("v=spf1"):]; rest != ""; {
		var word string
		if i := strings.IndexByte(rest, ' '); i >= 0 {
			word, rest = rest[:i], rest[i+1:]
		} else {
			word, rest = rest, ""
		}
		if word == "" { // RFC 7208 §4.6.1 has 1*SP between terms and *SP after the last
			continue
		}
		for i := range len(word) {
			if word[i] < 0x21 || word[i] > 0x7E { // RFC 7208 §3.1
				return nil, wrong(word, "has a byte that is no visible ASCII character")
			}
		}
		if name, value, ok := cutModifier(word); ok {
			if problem := r.modifier(word, name, value); problem != "" {
				return nil, problem
			}
			continue
		}
		t, problem := parseTerm(word)
		if problem != "" {
			return nil, problem
		}
		if over {
			continue
		}
		r.terms = append(r.terms, t)
		switch t.kind {
		case kindAll:
			over = true
		case kindIP:
		default:
			asking++
			over = asking > MaxLookups
		}
	}
	return r, ""
}

// wrong makes the sentence about a term.
func wrong(word, what string) string {
	b := make([]byte, 0, 256)
	b = append(b, '"')
	for i := range len(clip(word)) {
		c := word[i]
		if c < 0x20 || c > 0x7E {
			c = '?'
		}
		b = append(b, c)
	}
	b = append(b, `" `...)
	return string(append(b, what...))
}

// cutModifier is the first half of RFC 7208 §4.6.1 modifier: name "=".
func cutModifier(word string) (name, value string, ok bool) {
	for i := range len(word) {
		switch c := word[i]; {
		case isAlpha(c):
		case i > 0 && (isDigit(c) || c == '-' || c == '_' || c == '.'):
		case i > 0 && c == '=':
			return word[:i], word[i+1:], true
		default:
			return "", "", false
		}
	}
	return "", "", false
}

func isAlpha(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func (r *record) modifier(word, name, value string) (problem string) {
	var at **spec
	switch {
	case strings.EqualFold(name, "redirect"):
		at = &r.redirect
	case strings.EqualFold(name, "exp"):
		at = &r.exp
	default:
		// RFC 7208 §6: others are ignored however often they come, but have to be macro-strings (§12).
		if _, _, problem := parseMacros(value, inUnknown); problem != "" {
			return wrong(word, problem)
		}
		return ""
	}
	if *at != nil {
		return wrong(word, "is there twice") // RFC 7208 §6
	}
	s, problem := parseSpec(value)
	if problem != "" {
		return wrong(word, problem)
	}
	s.word = word
	*at = s
	return ""
}

func parseTerm(word string) (t term, problem string) {
	t = term{code: Pass, bits4: 32, bits6: 128, text: word}
	rest := word
	if code := qualifier(word[0]); code != None {
		t.code, rest = code, word[1:]
	}
	end := strings.IndexAny(rest, ":/")
	if end < 0 {
		end = len(rest)
	}
	name, rest := rest[:end], rest[end:]
	switch {
	case strings.EqualFold(name, "all"):
		t.kind = kindAll
		if rest != "" {
			return t, wrong(word, "is wrong: all takes nothing")
		}
		return t, ""
	case strings.EqualFold(name, "ip4"), strings.EqualFold(name, "ip6"):
		t.kind = kindIP
		t.prefix, problem = parseNetwork(rest, name[2] == '6')
	case strings.EqualFold(name, "a"), strings.EqualFold(name, "mx"):
		t.kind = kindA
		if len(name) == 2 {
			t.kind = kindMX
		}
		if rest, problem = t.cutLengths(rest); problem == "" && rest != "" {
			t.spec, problem = parseArgument(rest)
		}
	case strings.EqualFold(name, "ptr"):
		t.kind = kindPTR
		if rest != "" {
			t.spec, problem = parseArgument(rest)
		}
	case strings.EqualFold(name, "include"):
		t.kind = kindInclude
		t.spec, problem = parseArgument(rest)
	case strings.EqualFold(name, "exists"):
		t.kind = kindExists
		t.spec, problem = parseArgument(rest)
	case strings.EqualFold(name, "redirect"), strings.EqualFold(name, "exp"):
		problem = `is wrong: "=" has to follow the name, and no qualifier is before it`
	case strings.EqualFold(name, "ipv4"), strings.EqualFold(name, "ipv6"):
		problem = "is no mechanism: ip4 or ip6 was meant, perhaps"
	default:
		problem = "is no mechanism"
	}
	if problem != "" {
		return t, wrong(word, problem)
	}
	return t, ""
}

// parseArgument is ":" domain-spec.
func parseArgument(rest string) (*spec, string) {
	if rest == "" || rest[0] != ':' {
		return nil, `is wrong: ":" and a domain have to follow the name`
	}
	return parseSpec(rest[1:])
}

// parseNetwork is the argument of ip4 and ip6 (RFC 7208 §5.6).
func parseNetwork(rest string, six bool) (p netip.Prefix, problem string) {
	if rest == "" || rest[0] != ':' {
		return p, `is wrong: ":" and an address have to follow the name`
	}
	text, length, hasLength := strings.Cut(rest[1:], "/")
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Is6() != six || addr.Zone() != "" {
		return p, "has no such address"
	}
	bits := addr.BitLen()
	if hasLength {
		n, ok := parseLength(length, bits)
		if !ok {
			return p, "has a bad prefix length"
		}
		bits = int(n)
	}
	return netip.PrefixFrom(addr, bits), ""
}

// parseLength is RFC 7208 §5.6 ip4-cidr-length and ip6-cidr-length without the slash; no leading zeros.
func parseLength(s string, limit int) (uint8, bool) {
	if s == "" || len(s) > 3 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, false
		}
	}
	n, _ := strconv.Atoi(s)
	return uint8(n), n <= limit
}

// cutLengths takes dual-cidr-length from the end of a's and mx's arguments (RFC 7208 §5.3). A domain-spec may have slashes of its own, but it
// can't end in a slash and digits: that would be no toplabel (§7.1).
func (t *term) cutLengths(s string) (rest, problem string) {
	const bad = "has a bad prefix length"
	before, digits, ok := cutDigits(s)
	if ok && strings.HasSuffix(before, "//") {
		if t.bits6, ok = parseLength(digits, 128); !ok {
			return s, bad
		}
		s = before[:len(before)-2]
		before, digits, ok = cutDigits(s)
	}
	if ok && strings.HasSuffix(before, "/") {
		if t.bits4, ok = parseLength(digits, 32); !ok {
			return s, bad
		}
		s = before[:len(before)-1]
	}
	return s, ""
}

func cutDigits(s string) (before, digits string, ok bool) {
	i := len(s)
	for i > 0 && isDigit(s[i-1]) {
		i--
	}
	return s[:i], s[i:], i < len(s)
}
