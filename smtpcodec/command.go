package smtpcodec

import "encoding/binary"

// Verb is a command word. The zero value is a word that is not known.
type Verb uint8

const (
	VerbUnknown Verb = iota
	VerbHELO
	VerbEHLO
	VerbLHLO // RFC 2033 §4.1
	VerbMAIL
	VerbRCPT
	VerbDATA
	VerbBDAT // RFC 3030 §2
	VerbRSET
	VerbNOOP
	VerbVRFY
	VerbEXPN
	VerbHELP
	VerbQUIT
	VerbSTARTTLS // RFC 3207 §4
	VerbAUTH     // RFC 4954 §4
	VerbHTTP     // GET, POST, PUT, HEAD, OPTIONS, DELETE, CONNECT, PATCH, TRACE, PRI: another protocol altogether
	NumVerbs
)

var verbNames = [NumVerbs]string{
	"unknown", "HELO", "EHLO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "EXPN", "HELP", "QUIT", "STARTTLS", "AUTH",
	"HTTP",
}

// String is the command word, or "unknown" or "HTTP".
func (v Verb) String() string {
	if v < NumVerbs {
		return verbNames[v]
	}
	return "unknown"
}

// ParseCommand splits a line, CRLF already cut, into its verb and its argument, which borrows from line. Verbs are matched without
// regard to case (RFC 5321 §2.4); blanks (SP and TAB) at the end of the line and between verb and argument are cut; blanks before
// the verb make it unknown. The argument may hold any bytes; its own parser refuses what may not be there.
//
// An HTTP method counts as VerbHTTP only with a blank behind it, as in a request line; the word alone is unknown.
func ParseCommand(line []byte) (v Verb, arg []byte) {
	end := 0
	for end < len(line) && !isBlank(line[end]) {
		end++
	}
	v = verbOf(line[:end])
	if v == VerbHTTP && end == len(line) {
		v = VerbUnknown
	}
	// Deviation: RFC 5321 §4.1.1 puts exactly one SP between verb and argument. Several blanks, or a TAB, do no harm.
	for end < len(line) && isBlank(line[end]) {
		end++
	}
	// RFC 5321 §4.1.1: white space before the CRLF is tolerated.
	arg = line[end:]
	for len(arg) > 0 && isBlank(arg[len(arg)-1]) {
		arg = arg[:len(arg)-1]
	}
	return v, arg
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// lowerBits makes upper-case letters of a word lower case. It also moves other bytes, but none of them onto a letter.
const lowerBits = 0x2020202020202020

func verbOf(w []byte) Verb {
	switch len(w) {
	case 3:
		switch uint32(w[0])<<16 | uint32(w[1])<<8 | uint32(w[2]) | lowerBits&0xFFFFFF {
		case 'g'<<16 | 'e'<<8 | 't', 'p'<<16 | 'u'<<8 | 't', 'p'<<16 | 'r'<<8 | 'i':
			return VerbHTTP
		}
	case 4:
		switch binary.BigEndian.Uint32(w) | lowerBits&0xFFFFFFFF {
		case 'm'<<24 | 'a'<<16 | 'i'<<8 | 'l':
			return VerbMAIL
		case 'r'<<24 | 'c'<<16 | 'p'<<8 | 't':
			return VerbRCPT
		case 'd'<<24 | 'a'<<16 | 't'<<8 | 'a':
			return VerbDATA
		case 'e'<<24 | 'h'<<16 | 'l'<<8 | 'o':
			return VerbEHLO
		case 'q'<<24 | 'u'<<16 | 'i'<<8 | 't':
			return VerbQUIT
		case 'r'<<24 | 's'<<16 | 'e'<<8 | 't':
			return VerbRSET
		case 'b'<<24 | 'd'<<16 | 'a'<<8 | 't':
			return VerbBDAT
		case 'h'<<24 | 'e'<<16 | 'l'<<8 | 'o':
			return VerbHELO
		case 'l'<<24 | 'h'<<16 | 'l'<<8 | 'o':
			return VerbLHLO
		case 'n'<<24 | 'o'<<16 | 'o'<<8 | 'p':
			return VerbNOOP
		case 'a'<<24 | 'u'<<16 | 't'<<8 | 'h':
			return VerbAUTH
		case 'v'<<24 | 'r'<<16 | 'f'<<8 | 'y':
			return VerbVRFY
		case 'e'<<24 | 'x'<<16 | 'p'<<8 | 'n':
			return VerbEXPN
		case 'h'<<24 | 'e'<<16 | 'l'<<8 | 'p':
			return VerbHELP
		case 'p'<<24 | 'o'<<16 | 's'<<8 | 't', 'h'<<24 | 'e'<<16 | 'a'<<8 | 'd':
			return VerbHTTP
		}
	case 5:
		if equalFold(w, "PATCH") || equalFold(w, "TRACE") {
			return VerbHTTP
		}
	case 6:
		if equalFold(w, "DELETE") {
			return VerbHTTP
		}
	case 7:
		if equalFold(w, "OPTIONS") || equalFold(w, "CONNECT") {
			return VerbHTTP
		}
	case 8:
		if equalFold(w, "STARTTLS") {
			return VerbSTARTTLS
		}
	}
	return VerbUnknown
}

// equalFold compares p with an upper-case ASCII word without regard to the case of ASCII letters. (bytes.EqualFold folds Unicode too
// and would take U+017F, the long s, for an S.)
func equalFold(p []byte, upper string) bool {
	if len(p) != len(upper) {
		return false
	}
	for i, c := range p {
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != upper[i] {
			return false
		}
	}
	return true
}

// ParseBdat parses the argument of BDAT (RFC 3030 §2): a chunk size in octets, and perhaps LAST. The size has 1 to 20 digits and is
// at most MaxSize; anything else is ErrSyntax.
func ParseBdat(arg []byte) (size int64, last bool, err SyntaxError) {
	digits, rest := cutSpace(arg)
	size, ok := parseSize(digits)
	if !ok {
		return 0, false, ErrSyntax
	}
	if len(rest) > 0 {
		if !equalFold(rest, "LAST") {
			return 0, false, ErrSyntax
		}
		last = true
	}
	return size, last, ErrNone
}

// MaxSize is the largest size in octets that SIZE= and BDAT may name. Larger ones are refused rather than cut: sums of a few of them
// still fit an int64, so no caller can be made to overflow.
const MaxSize = 1_000_000_000_000_000_000

// parseSize reads 1*20DIGIT (RFC 1870 §3, RFC 3030 §2) up to MaxSize.
func parseSize(p []byte) (int64, bool) {
	if len(p) == 0 || len(p) > 20 {
		return 0, false
	}
	var v int64
	for _, c := range p {
		if c < '0' || c > '9' {
			return 0, false
		}
		if v > MaxSize/10 {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	return v, v <= MaxSize
}

// cutSpace splits p at its first run of SP.
func cutSpace(p []byte) (word, rest []byte) {
	i := 0
	for i < len(p) && p[i] != ' ' {
		i++
	}
	word = p[:i]
	for i < len(p) && p[i] == ' ' {
		i++
	}
	return word, p[i:]
}

// ValidHelo says whether arg can be the name given with HELO, EHLO or LHLO.
//
// Deviation: RFC 5321 §4.1.1.1 wants a domain or an address literal. Real clients send bare host names, underscores, and addresses
// without brackets, so any word of 1 to 255 characters is taken whose characters are letters, digits, "." ":" or those of an RFC 5322
// §3.2.3 atom. They cannot break the Received field that the name is put into: what has a meaning there (blanks, controls, 8-bit,
// brackets of any kind, quotes, backslash, comma, semicolon, at sign) is refused. "[" and "]" may stand as the first and last
// character, with what an address could be made of between them. Names outside ASCII must come as A-labels (RFC 6531 §3.7.1).
func ValidHelo(arg []byte) bool {
	if len(arg) == 0 || len(arg) > MaxDomainBytes {
		return false
	}
	if arg[0] == '[' {
		if len(arg) < 3 || arg[len(arg)-1] != ']' {
			return false
		}
		arg = arg[1 : len(arg)-1]
	}
	for _, c := range arg {
		if c >= 0x80 || class[c]&isAtext == 0 && c != '.' && c != ':' {
			return false
		}
	}
	return true
}
