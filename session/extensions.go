package session

import (
	"strconv"
	"strings"

	"github.com/fastedge/fastedge/smtpcodec"
)

// extension is one EHLO keyword (RFC 5321 §2.2). A new extension is a row here, plus, when it has commands, rows in commands.go.
type extension struct {
	word  string
	needs string          // a keyword without which this one is not offered either
	offer smtpcodec.Offer // the parameters of MAIL and RCPT that it brings
	// param appends what follows the keyword, with its leading blank; nil when nothing does.
	param func(dst []byte, o *Options) []byte
}

// extensions is in the order in which EHLO prints them. Those that need another one stand after it.
var extensions = [...]extension{
	{word: "PIPELINING"}, // RFC 2920
	{word: "SIZE", offer: smtpcodec.OfferSize, param: sizeParam}, // RFC 1870
	{word: "8BITMIME", offer: smtpcodec.Offer8BitMIME},           // RFC 6152
	{word: "CHUNKING"}, // RFC 3030
	{word: "BINARYMIME", needs: "CHUNKING", offer: smtpcodec.OfferBinaryMIME}, // RFC 3030 §3: only with CHUNKING
	{word: "SMTPUTF8", needs: "8BITMIME", offer: smtpcodec.OfferSMTPUTF8},     // RFC 6531 §3.1: only with 8BITMIME
	{word: "ENHANCEDSTATUSCODES"},                                             // RFC 2034
	{word: "DSN", offer: smtpcodec.OfferDSN},                                  // RFC 3461
	{word: "LIMITS", param: limitsParam},                                      // RFC 9422
}

// KnownExtension says whether word, in any case, is a keyword that Options.Hide can hide.
func KnownExtension(word string) bool {
	for i := range extensions {
		if strings.EqualFold(extensions[i].word, word) {
			return true
		}
	}
	return false
}

func sizeParam(dst []byte, o *Options) []byte {
	return strconv.AppendInt(append(dst, ' '), o.MaxMessageBytes, 10)
}

// maxLimitValue is the largest number that RFC 9422 §4 lets a limit have: six digits.
const maxLimitValue = 999999

func limitsParam(dst []byte, o *Options) []byte {
	dst = strconv.AppendInt(append(dst, " RCPTMAX="...), int64(min(o.MaxRecipients, maxLimitValue)), 10)
	if o.MaxTransactions > 0 {
		dst = strconv.AppendInt(append(dst, " MAILMAX="...), int64(min(o.MaxTransactions, maxLimitValue)), 10)
	}
	return dst
}

// offered gives the rows that o leaves, in order.
func offered(o *Options) []extension {
	hidden := func(word string) bool {
		for _, h := range o.Hide {
			if strings.EqualFold(h, word) {
				return true
			}
		}
		return false
	}
	var rows []extension
	for _, e := range extensions {
		if !hidden(e.word) && (e.needs == "" || !hidden(e.needs)) {
			rows = append(rows, e)
		}
	}
	return rows
}
