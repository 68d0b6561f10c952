package spf

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxNameBytes  = 253 // RFC 7208 §7.3; without the trailing dot
	maxLabelBytes = 63  // RFC 1035 §2.3.4
)

// queryName makes of an expanded domain-spec what to ask DNS: one trailing dot and labels of the left that are too much are removed (RFC 7208
// §7.3), letters are lower case. It is empty when no query can be made of s: RFC 7208 §4.8 leaves open what follows; here no such name exists.
func queryName(s string) string {
	s = strings.TrimSuffix(s, ".")
	for len(s) > maxNameBytes {
		dot := strings.IndexByte(s, '.')
		if dot < 0 {
			return ""
		}
		s = s[dot+1:]
	}
	label := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.':
			if label == 0 {
				return ""
			}
			label = 0
			continue
		case c < 0x20 || c > 0x7E:
			return ""
		}
		if label++; label > maxLabelBytes {
			return ""
		}
	}
	if label == 0 {
		return ""
	}
	return strings.ToLower(s) // gives s itself when there is nothing to do
}

// profile turns U-labels to A-labels as RFC 5895 and RFC 5891 §5 tell for lookups. Underscores stay: such domains do exist.
var profile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(false))

// checkedName is the domain that a check begins with: letters, digits, hyphens and underscores in two labels or more, the last not of digits
// alone. It is empty when s is no such name, an address literal for one: RFC 7208 §4.3 wants None then, without a query.
func checkedName(s string, international bool) string {
	if len(s) > 4*maxNameBytes { // a U-label has less than four bytes for each of its A-label
		return ""
	}
	for i := range len(s) {
		if s[i] < 0x80 {
			continue
		}
		if !international || !utf8.ValidString(s) {
			return ""
		}
		var err error
		if s, err = profile.ToASCII(s); err != nil {
			return ""
		}
		break
	}
	for i := range len(s) {
		if c := s[i]; !isAlpha(c) && !isDigit(c) && c != '-' && c != '_' && c != '.' {
			return ""
		}
	}
	s = strings.TrimSuffix(s, ".")
	if len(s) > maxNameBytes || !severalLabels(s) {
		return ""
	}
	if strings.Trim(s[strings.LastIndexByte(s, '.')+1:], "0123456789") == "" {
		return ""
	}
	return queryName(s)
}

// severalLabels: RFC 7208 §4.3 wants a multi-label domain name.
func severalLabels(name string) bool { return strings.IndexByte(name, '.') >= 0 }

// within says whether name is domain or below it.
func within(name, domain string) bool {
	return strings.HasSuffix(name, domain) && (len(name) == len(domain) || name[len(name)-len(domain)-1] == '.')
}
