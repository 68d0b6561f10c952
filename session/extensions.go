package session

import (
	"slices"
	"strconv"
	"strings"

	"github.com/fastedge/fastedge/smtpcodec"
)

// extension is one EHLO keyword (RFC 5321 §2.2). A new extension is a row here, plus, when it has commands, rows in commands.go.
type extension struct {
	word  string
	needs string          // a keyword without which this one is not offered either
	offer smtpcodec.Offer // the parameters of MAIL and RCPT that it brings
	// when says whether it is offered at this degree of security; nil: always.
	when func(o *Options, sec security) bool
	// param appends what follows the keyword, with its leading blank; nil when nothing does.
	param func(dst []byte, o *Options, sec security) []byte
}

// extensions is in the order in which EHLO prints them. Those that need another one stand after it.
var extensions = [...]extension{
	{word: "PIPELINING"}, // RFC 2920
	{word: "SIZE", offer: smtpcodec.OfferSize, param: sizeParam}, // RFC 1870
	{word: "8BITMIME", offer: smtpcodec.Offer8BitMIME},           // RFC 6152
	{word: "CHUNKING"}, // RFC 3030
	{word: "BINARYMIME", needs: "CHUNKING", offer: smtpcodec.OfferBinaryMIME},      // RFC 3030 §3: only with CHUNKING
	{word: "SMTPUTF8", needs: "8BITMIME", offer: smtpcodec.OfferSMTPUTF8},          // RFC 6531 §3.1: only with 8BITMIME
	{word: "ENHANCEDSTATUSCODES"},                                                  // RFC 2034
	{word: "DSN", offer: smtpcodec.OfferDSN},                                       // RFC 3461
	{word: "STARTTLS", when: offersTLS},                                            // RFC 3207
	{word: "AUTH", offer: smtpcodec.OfferAuth, when: offersAuth, param: authParam}, // RFC 4954
	{word: "LIMITS", param: limitsParam},                                           // RFC 9422
}

// KnownExtension says whether word, in any case, is a keyword that Options.Hide can hide.
func KnownExtension(word string) bool {
	return slices.ContainsFunc(extensions[:], func(e extension) bool { return strings.EqualFold(e.word, word) })
}

// security is what a client has reached, as far as it changes what it is offered: a set of bits.
type security uint8

const (
	encrypted     security = 1 << iota // TLS, ours or a proxy's
	bindable                           // TLS of our own, which SASL mechanisms can bind to (RFC 5056)
	certified                          // with a verified client certificate
	numSecurities = 1 << iota
)

func sizeParam(dst []byte, o *Options, _ security) []byte {
	return strconv.AppendInt(append(dst, ' '), o.MaxMessageBytes, 10)
}

// maxLimitValue is the largest number that RFC 9422 §4 lets a limit have: six digits.
const maxLimitValue = 999999

func limitsParam(dst []byte, o *Options, _ security) []byte {
	dst = strconv.AppendInt(append(dst, " RCPTMAX="...), int64(min(o.MaxRecipients, maxLimitValue)), 10)
	if o.MaxTransactions > 0 {
		dst = strconv.AppendInt(append(dst, " MAILMAX="...), int64(min(o.MaxTransactions, maxLimitValue)), 10)
	}
	return dst
}

// offersTLS: STARTTLS is not offered within TLS (RFC 3207 §4.2).
func offersTLS(o *Options, sec security) bool { return o.TLS != TLSOff && sec&encrypted == 0 }

func offersAuth(o *Options, sec security) bool { return len(mechanisms(o, sec)) > 0 }

func authParam(dst []byte, o *Options, sec security) []byte {
	for _, m := range mechanisms(o, sec) {
		dst = append(append(dst, ' '), m...)
	}
	return dst
}

// mechanisms gives those of o.Auth that a client may use now.
func mechanisms(o *Options, sec security) (list []string) {
	if sec&encrypted == 0 && !o.AuthInClear {
		return nil
	}
	for _, m := range o.Auth {
		if m == "EXTERNAL" && sec&certified == 0 || strings.HasSuffix(m, "-PLUS") && sec&bindable == 0 {
			continue
		}
		list = append(list, m)
	}
	return list
}

// offered says that o does not hide word, nor what it needs.
func offered(o *Options, word string) bool {
	hidden := func(word string) bool {
		return slices.ContainsFunc(o.Hide, func(h string) bool { return strings.EqualFold(h, word) })
	}
	for _, e := range extensions {
		if e.word == word {
			return !hidden(word) && (e.needs == "" || !hidden(e.needs))
		}
	}
	return false
}

// offersTLS says that the listener knows STARTTLS at all, and offersAuth that it knows AUTH.
func (sv *Server) offersTLS() bool  { return sv.TLS != TLSOff && offered(&sv.Options, "STARTTLS") }
func (sv *Server) offersAuth() bool { return len(sv.Auth) > 0 && offered(&sv.Options, "AUTH") }

// offersOf writes the answer to EHLO at one degree of security.
func offersOf(o *Options, sec security) offers {
	var rows []extension
	for _, e := range extensions {
		if offered(o, e.word) && (e.when == nil || e.when(o, sec)) {
			rows = append(rows, e)
		}
	}
	f := offers{ehlo: []byte("250-Hello "), ehloRest: []byte("\r\n")}
	if len(rows) == 0 {
		f.ehlo = []byte("250 Hello ")
	}
	for i, e := range rows {
		separator := byte('-')
		if i == len(rows)-1 {
			separator = ' ' // RFC 5321 §4.2.1: the last line of a reply
		}
		f.ehloRest = append(append(f.ehloRest, "250"...), separator)
		f.ehloRest = append(f.ehloRest, e.word...)
		if e.param != nil {
			f.ehloRest = e.param(f.ehloRest, o, sec)
		}
		f.ehloRest = append(f.ehloRest, "\r\n"...)
		f.params |= e.offer
		if e.word == "AUTH" {
			f.mechanisms = mechanisms(o, sec)
		}
	}
	return f
}
