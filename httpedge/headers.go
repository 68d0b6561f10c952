package httpedge

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strconv"

	"github.com/fastedge/fastedge/smtpcodec"
)

// MaxAddressBytes is the longest address that a header or a JSON member may hold, in bytes of UTF-8: a local part of 64 octets, "@" and a domain
// of 255 (RFC 5321 §4.5.3.1.1, §4.5.3.1.2). §4.5.3.1.3 lets a path have 256 octets; the parser of paths refuses what is over that, with a
// reply that says so.
const MaxAddressBytes = 320

// MaxSMTPReplyBytes is the longest value of X-Smtp-Reply. A longer text is cut.
const MaxSMTPReplyBytes = 512

// What an X-Envelope header can be wrong in; all of them are 501 5.5.4 and status 400.
var (
	errBase64         = errors.New("not base64 (RFC 4648 §4)")
	errAddressText    = errors.New("not UTF-8, or with control characters")
	errAddressTooLong = errors.New("longer than " + strconv.Itoa(MaxAddressBytes) + " bytes")
)

// Neither takes bits behind the last byte that are not zero: every value has one encoding, with or without its padding.
var (
	base64Padded   = base64.StdEncoding.Strict()
	base64Unpadded = base64.RawStdEncoding.Strict()
)

// decodeAddress appends the address that value, of X-Envelope-Sender or X-Envelope-Recipient, stands for: base64 of UTF-8, padding may
// be missing. An empty value is an empty address. Control characters of any kind are refused, since what follows a line break would be
// a command of its own at a careless next hop; everything else is left to the parser of paths. With an error it gives dst.
func decodeAddress(dst, value []byte) ([]byte, error) {
	value = trimBlanks(value)
	if len(value) > base64.StdEncoding.EncodedLen(MaxAddressBytes) {
		return dst, errAddressTooLong
	}
	// The decoder skips line ends; a header has none, and whoever calls with one has not looked.
	if bytes.IndexByte(value, '\n') >= 0 || bytes.IndexByte(value, '\r') >= 0 {
		return dst, errBase64
	}
	encoding := base64Unpadded
	if len(value)%4 == 0 {
		encoding = base64Padded
	}
	start := len(dst)
	out, err := encoding.AppendDecode(dst, value)
	switch address := out[start:]; {
	case err != nil:
		return dst, errBase64
	case len(address) > MaxAddressBytes:
		return dst, errAddressTooLong
	case !smtpcodec.ValidText(address):
		return dst, errAddressText
	}
	return out, nil
}

// splitRecipients calls yield for each item of an X-Envelope-Recipient header: a list separated by commas or semicolons with blanks
// around them, or a single item. Empty items are left out, so that a comma at the end does no harm. It stops when yield gives false.
// The items are borrowed from value and not decoded.
func splitRecipients(value []byte, yield func(item []byte) bool) {
	for len(value) > 0 {
		item := value
		if i := bytes.IndexAny(value, ",;"); i >= 0 {
			item, value = value[:i], value[i+1:]
		} else {
			value = nil
		}
		if item = trimBlanks(item); len(item) > 0 && !yield(item) {
			return
		}
	}
}

// trimBlanks cuts blanks and tabs at both ends (RFC 9110 §5.6.3).
func trimBlanks(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t') {
		p = p[1:]
	}
	for len(p) > 0 && (p[len(p)-1] == ' ' || p[len(p)-1] == '\t') {
		p = p[:len(p)-1]
	}
	return p
}

// appendSMTPReply appends the value of X-Smtp-Reply:
//
//	250; message="2.6.0 Message accepted for delivery"; command="MAIL"
//
// The blank before each name is a part of the format: clients look for it. The enhanced code is the text's first word, lines are joined
// with blanks, a quote and a backslash have a backslash before them, controls and 8-bit bytes become '?', and the text is cut when the
// value would be longer than MaxSMTPReplyBytes. command is a verb of SMTP, at most 16 bytes, or empty: then it is left out.
func appendSMTPReply(dst []byte, r smtpcodec.Reply, command string) []byte {
	limit := len(dst) + MaxSMTPReplyBytes - len(`"`)
	if command != "" {
		limit -= len(`; command=""`) + len(command)
	}
	dst = strconv.AppendUint(dst, uint64(r.Code), 10)
	dst = append(dst, `; message="`...)
	if r.Enhanced != (smtpcodec.EnhancedCode{}) {
		dst = append(appendEnhanced(dst, r), ' ')
	}
	dst = append(appendQuoted(dst, r.Text, limit), '"')
	if command != "" {
		dst = append(append(append(dst, `; command="`...), command...), '"')
	}
	return dst
}

// appendQuoted appends what stands between the quotes, until dst has limit bytes.
func appendQuoted[T string | []byte](dst []byte, text T, limit int) []byte {
	for i := range len(text) {
		c := text[i]
		switch {
		case c == '\n':
			c = ' '
		case c < ' ' || c > '~':
			c = '?'
		}
		if c == '"' || c == '\\' {
			if len(dst)+2 > limit {
				break
			}
			dst = append(dst, '\\', c)
			continue
		}
		if len(dst) == limit {
			break
		}
		dst = append(dst, c)
	}
	return dst
}

// appendEnhanced appends the enhanced status code, whose class is always that of the reply code (RFC 2034 §4).
func appendEnhanced(dst []byte, r smtpcodec.Reply) []byte {
	dst = append(dst, byte('0'+r.Code/100), '.')
	dst = strconv.AppendUint(dst, uint64(r.Enhanced.Subject), 10)
	dst = append(dst, '.')
	return strconv.AppendUint(dst, uint64(r.Enhanced.Detail), 10)
}

// plainStatus is the status that goes with a reply in the protocol of X-Envelope headers; success (200 or 204) is that of 2yz. A
// permanent refusal is 500 there, since its clients take a 4xx for one too and read the reply itself from the header.
func plainStatus(r smtpcodec.Reply, success int) int {
	switch {
	case r.Code/100 == 2:
		return success
	case r.Code/100 == 4:
		return 503
	case r.Code == 535:
		return 401
	}
	return 500
}

// isMessageRFC822 says whether a Content-Type header names message/rfc822, in any case and with any parameters (RFC 9110 §8.3.1). An
// empty value is not one; that it may be missing is the caller's to allow.
func isMessageRFC822(contentType []byte) bool { return isMediaType(contentType, "message/rfc822") }

// isMediaType compares the type and subtype of a Content-Type header with want, which is in lower case.
func isMediaType(contentType []byte, want string) bool {
	if i := bytes.IndexByte(contentType, ';'); i >= 0 {
		contentType = contentType[:i]
	}
	contentType = trimBlanks(contentType)
	if len(contentType) != len(want) {
		return false
	}
	for i, c := range contentType {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != want[i] {
			return false
		}
	}
	return true
}
