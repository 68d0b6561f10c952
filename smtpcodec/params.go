package smtpcodec

import (
	"bytes"
	"unicode/utf8"
)

// SyntaxError is why an argument was refused; the session maps it to a reply.
type SyntaxError uint8

const (
	ErrNone      SyntaxError = iota
	ErrSyntax                // malformed: 501 5.5.4
	ErrBadSender             // no valid mailbox: 501 5.1.7
	ErrBadRcpt               // no valid mailbox: 501 5.1.3
	ErrUTF8                  // 8-bit in a path without SMTPUTF8: 553 5.6.7 (RFC 6531 §3.5)
	ErrUnknown               // unknown parameter: 555 5.5.4 (RFC 5321 §4.1.1.11)
	ErrDuplicate             // a parameter twice: 501 5.5.4
)

// BodyType is the BODY parameter (RFC 6152 §2, RFC 3030 §3). Its numbers equal those of envelope.BodyType.
type BodyType uint8

const (
	BodyUnstated BodyType = iota
	Body7Bit
	Body8BitMIME
	BodyBinaryMIME
)

// Values of MailArgs.Ret (RFC 3461 §4.3); equal to envelope.Ret.
const (
	RetUnstated uint8 = iota
	RetFull
	RetHdrs
)

// Bits of RcptArgs.Notify (RFC 3461 §4.1); equal to envelope.Notify. NotifyNever excludes the others.
const (
	NotifyNever uint8 = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// MaxEnvIDBytes and MaxORcptBytes are the limits of RFC 3461 §4.4 and §4.2, in bytes as sent.
const (
	MaxEnvIDBytes = 100
	MaxORcptBytes = 500
)

// Offer is the set of parameters that the session accepts now (those of the extensions it offered).
type Offer uint16

const (
	OfferSize       Offer = 1 << iota // SIZE
	Offer8BitMIME                     // BODY=7BIT and BODY=8BITMIME
	OfferBinaryMIME                   // BODY=BINARYMIME
	OfferSMTPUTF8                     // SMTPUTF8
	OfferDSN                          // RET, ENVID; NOTIFY, ORCPT
	OfferAuth                         // AUTH
)

// MailArgs is a parsed "FROM:<...> params", borrowed from the line.
type MailArgs struct {
	Path     Path
	Size     int64 // octets, -1 when not given; at most MaxSize
	Body     BodyType
	Ret      uint8  // 0 none, 1 FULL, 2 HDRS
	EnvID    []byte // as sent, xtext
	SMTPUTF8 bool
	Auth     []byte // AUTH= value as sent, nil when not given
	BadParam []byte // the parameter that ErrUnknown, ErrDuplicate or ErrSyntax is about, its value included
}

// RcptArgs is a parsed "TO:<...> params", borrowed from the line.
type RcptArgs struct {
	Path     Path
	Notify   uint8  // NotifyNever, or a set of NotifySuccess, NotifyFailure, NotifyDelay; 0 when not given
	ORcpt    []byte // as sent: addr-type ";" xtext
	BadParam []byte // as in MailArgs
}

// paramKey is one bit for each parameter known, so that a set of them shows duplicates.
type paramKey uint16

const (
	keySize paramKey = 1 << iota
	keyBody
	keySMTPUTF8
	keyRet
	keyEnvID
	keyAuth
	keyNotify
	keyORcpt
)

// ParseMail parses the argument of MAIL (RFC 5321 §4.1.1.2). A parameter that is not in offer is ErrUnknown. With an error, a holds
// nothing to rely on but BadParam.
//
// Bytes over 127 in the path need the SMTPUTF8 parameter (RFC 6531 §3.4), which may stand behind them: hence they are judged last.
func ParseMail(arg []byte, offer Offer) (a MailArgs, err SyntaxError) {
	a.Size = -1
	rest, has8, err := pathArg(arg, "FROM:", reversePath, &a.Path)
	if err != ErrNone {
		return a, err
	}
	var seen paramKey
	for rest = skipSpace(rest); len(rest) > 0; {
		var param []byte
		param, rest = cutSpace(rest)
		key, value, err := splitParam(param)
		if err == ErrNone {
			err = a.set(key, value, offer)
		}
		if err == ErrNone && seen&key != 0 {
			err = ErrDuplicate
		}
		if err != ErrNone {
			a.BadParam = param
			return a, err
		}
		seen |= key
	}
	if has8 && !a.SMTPUTF8 {
		return a, ErrUTF8
	}
	return a, ErrNone
}

// ParseRcpt parses the argument of RCPT (RFC 5321 §4.1.1.3). utf8 says that SMTPUTF8 is in force for the mail transaction; without
// it bytes over 127 are ErrUTF8 in the path and ErrSyntax in ORCPT. Otherwise as ParseMail.
func ParseRcpt(arg []byte, offer Offer, utf8 bool) (a RcptArgs, err SyntaxError) {
	rest, has8, err := pathArg(arg, "TO:", forwardPath, &a.Path)
	if err != ErrNone {
		return a, err
	}
	if has8 && !utf8 {
		return a, ErrUTF8
	}
	var seen paramKey
	for rest = skipSpace(rest); len(rest) > 0; {
		var param []byte
		param, rest = cutSpace(rest)
		key, value, err := splitParam(param)
		if err == ErrNone {
			err = a.set(key, value, offer, utf8)
		}
		if err == ErrNone && seen&key != 0 {
			err = ErrDuplicate
		}
		if err != ErrNone {
			a.BadParam = param
			return a, err
		}
		seen |= key
	}
	return a, ErrNone
}

// pathArg checks the whole argument for bytes that may stand nowhere and parses the keyword ("FROM:" or "TO:") and the path. has8
// is about the path alone, a dropped source route included.
func pathArg(arg []byte, keyword string, kind pathKind, path *Path) (rest []byte, has8 bool, err SyntaxError) {
	has8, ok := checkText(arg)
	if !ok || len(arg) < len(keyword) || !equalFold(arg[:len(keyword)], keyword) {
		return nil, false, ErrSyntax
	}
	// Deviation: RFC 5321 §3.3 forbids blanks between the colon and the path. Many clients put one there.
	p := skipSpace(arg[len(keyword):])
	*path, rest, err = parsePath(p, kind)
	if err != ErrNone {
		return nil, false, err
	}
	if has8 {
		has8 = false
		for _, c := range p[:len(p)-len(rest)] {
			has8 = has8 || c >= 0x80
		}
	}
	return rest, has8, ErrNone
}

func skipSpace(p []byte) []byte {
	for len(p) > 0 && p[0] == ' ' {
		p = p[1:]
	}
	return p
}

// splitParam takes apart esmtp-keyword ["=" esmtp-value] (RFC 5321 §4.1.2). value is nil without "=", else not empty. A keyword that
// is well formed and not known to this package is ErrUnknown.
func splitParam(p []byte) (key paramKey, value []byte, err SyntaxError) {
	word := p
	if i := bytes.IndexByte(p, '='); i >= 0 {
		word, value = p[:i], p[i+1:]
		if len(value) == 0 || bytes.IndexByte(value, '=') >= 0 {
			return 0, nil, ErrSyntax
		}
	}
	if len(word) == 0 || word[0] == '-' {
		return 0, nil, ErrSyntax
	}
	for _, c := range word {
		if c >= 0x80 || class[c]&isLetDig == 0 && c != '-' {
			return 0, nil, ErrSyntax
		}
	}
	switch {
	case equalFold(word, "SIZE"):
		key = keySize
	case equalFold(word, "BODY"):
		key = keyBody
	case equalFold(word, "SMTPUTF8"):
		key = keySMTPUTF8
	case equalFold(word, "NOTIFY"):
		key = keyNotify
	case equalFold(word, "ORCPT"):
		key = keyORcpt
	case equalFold(word, "RET"):
		key = keyRet
	case equalFold(word, "ENVID"):
		key = keyEnvID
	case equalFold(word, "AUTH"):
		key = keyAuth
	default:
		return 0, nil, ErrUnknown
	}
	return key, value, ErrNone
}

// syntaxUnless is for the common ending "a bad value is a syntax error".
func syntaxUnless(ok bool) SyntaxError {
	if ok {
		return ErrNone
	}
	return ErrSyntax
}

func (a *MailArgs) set(key paramKey, value []byte, offer Offer) SyntaxError {
	switch {
	case key == keySize && offer&OfferSize != 0: // RFC 1870 §3
		size, ok := parseSize(value)
		a.Size = size
		return syntaxUnless(ok)
	case key == keyBody && offer&(Offer8BitMIME|OfferBinaryMIME) != 0:
		return a.setBody(value, offer)
	case key == keySMTPUTF8 && offer&OfferSMTPUTF8 != 0: // RFC 6531 §3.4: no value
		a.SMTPUTF8 = true
		return syntaxUnless(value == nil)
	case key == keyRet && offer&OfferDSN != 0: // RFC 3461 §4.3
		switch {
		case equalFold(value, "FULL"):
			a.Ret = RetFull
		case equalFold(value, "HDRS"):
			a.Ret = RetHdrs
		}
		return syntaxUnless(a.Ret != RetUnstated)
	case key == keyEnvID && offer&OfferDSN != 0:
		a.EnvID = value
		return syntaxUnless(validEnvID(value))
	case key == keyAuth:
		// Deviation: RFC 4954 §5 has AUTH= only where AUTH was offered. A known client adds AUTH=<> everywhere; it says
		// that nobody vouches for the sender, which is what a server without AUTH assumes anyway.
		if offer&OfferAuth == 0 && string(value) != "<>" {
			return ErrUnknown
		}
		a.Auth = value
		return syntaxUnless(validAuth(value))
	}
	return ErrUnknown
}

// setBody: RFC 6152 §2, RFC 3030 §3. A known value whose extension is not offered is not implemented, hence ErrUnknown.
func (a *MailArgs) setBody(value []byte, offer Offer) SyntaxError {
	needs := Offer8BitMIME
	switch {
	case equalFold(value, "7BIT"):
		a.Body, needs = Body7Bit, Offer8BitMIME|OfferBinaryMIME
	case equalFold(value, "8BITMIME"):
		a.Body, needs = Body8BitMIME, Offer8BitMIME|OfferBinaryMIME
	case equalFold(value, "BINARYMIME"):
		a.Body, needs = BodyBinaryMIME, OfferBinaryMIME
	default:
		return ErrSyntax
	}
	if offer&needs == 0 {
		return ErrUnknown
	}
	return ErrNone
}

func (a *RcptArgs) set(key paramKey, value []byte, offer Offer, utf8 bool) SyntaxError {
	if offer&OfferDSN == 0 {
		return ErrUnknown
	}
	switch key {
	case keyNotify:
		return a.setNotify(value)
	case keyORcpt:
		a.ORcpt = value
		return syntaxUnless(validORcpt(value, utf8))
	}
	return ErrUnknown
}

// setNotify: RFC 3461 §4.1. NEVER stands alone; a word said twice is not forbidden there.
func (a *RcptArgs) setNotify(value []byte) SyntaxError {
	for {
		word, rest, more := bytes.Cut(value, comma)
		switch {
		case equalFold(word, "NEVER"):
			a.Notify |= NotifyNever
		case equalFold(word, "SUCCESS"):
			a.Notify |= NotifySuccess
		case equalFold(word, "FAILURE"):
			a.Notify |= NotifyFailure
		case equalFold(word, "DELAY"):
			a.Notify |= NotifyDelay
		default:
			return ErrSyntax
		}
		if !more {
			return syntaxUnless(a.Notify&NotifyNever == 0 || a.Notify == NotifyNever)
		}
		value = rest
	}
}

var comma = []byte{','}

// validEnvID: RFC 3461 §4.4, xtext of printable ASCII, blanks included.
func validEnvID(p []byte) bool {
	return len(p) > 0 && len(p) <= MaxEnvIDBytes && validXtext(p, ' ', '~')
}

// validXtext says whether p is xtext of bytes from lo to hi, DEL never.
func validXtext(p []byte, lo, hi byte) bool {
	for len(p) > 0 {
		c, size := xtextByte(p)
		if size == 0 || c < lo || c > hi || c == 0x7F {
			return false
		}
		p = p[size:]
	}
	return true
}

// validAuth: RFC 4954 §5, "<>" or a mailbox in xtext.
//
// Deviation: a name without a domain is taken; the value is only passed on, and login names often have none.
func validAuth(p []byte) bool {
	if string(p) == "<>" {
		return true
	}
	var room [MaxPathBytes]byte
	if len(p) == 0 || len(p) > 3*len(room) {
		return false
	}
	n := 0
	for len(p) > 0 {
		c, size := xtextByte(p)
		if size == 0 || n == len(room) {
			return false
		}
		room[n] = c
		n++
		p = p[size:]
	}
	mailbox := room[:n]
	if _, ok := checkText(mailbox); !ok {
		return false
	}
	_, ok := parseMailbox(mailbox)
	return ok || localPart(mailbox) == n
}

// validORcpt: RFC 3461 §4.2, addr-type ";" xtext, and for the type utf-8 the forms of RFC 6533 §3. The decoded address may hold no
// control character: a line break there has been a way into the queue files of other servers.
func validORcpt(p []byte, utf8ok bool) bool {
	if len(p) > MaxORcptBytes {
		return false
	}
	kind, addr, found := bytes.Cut(p, semicolon)
	if !found || len(kind) == 0 || len(addr) == 0 {
		return false
	}
	for _, c := range kind { // an atom
		if c >= 0x80 || class[c]&isAtext == 0 {
			return false
		}
	}
	if equalFold(kind, "UTF-8") {
		return validUTF8Addr(addr, utf8ok)
	}
	return validXtext(addr, ' ', 0xFF)
}

var semicolon = []byte{';'}

// validUTF8Addr: RFC 6533 §3, utf-8-addr-xtext, or with utf8ok utf-8-addr-unitext. "\x{...}" stands for a code point.
//
// Deviation: HEXPOINT there has room for control characters; they are refused.
func validUTF8Addr(p []byte, utf8ok bool) bool {
	for len(p) > 0 {
		switch c := p[0]; {
		case c == '\\':
			r, size := embeddedRune(p)
			if size == 0 || isUnicodeControl(r) || !utf8.ValidRune(r) {
				return false
			}
			p = p[size:]
		case c >= 0x80:
			if !utf8ok { // checkText has seen that it is UTF-8
				return false
			}
			p = p[1:]
		case !isXchar(c):
			return false
		default:
			p = p[1:]
		}
	}
	return true
}

// embeddedRune reads "\x{" 2 to 6 hexadecimal digits "}"; size is 0 when p starts with anything else.
func embeddedRune(p []byte) (r rune, size int) {
	if len(p) < 4 || p[1] != 'x' || p[2] != '{' {
		return 0, 0
	}
	digits := 0
	for i := 3; i < len(p); i++ {
		if p[i] == '}' && digits >= 2 {
			return r, i + 1
		}
		v := hexDigit(p[i])
		if v < 0 || digits == 6 {
			return 0, 0
		}
		r = r<<4 | rune(v)
		digits++
	}
	return 0, 0
}
