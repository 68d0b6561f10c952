package httpedge

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/smtpcodec"
)

// recipientResult is what became of one recipient of a request.
type recipientResult struct {
	Address []byte // as the client gave it, decoded
	Reply   smtpcodec.Reply
}

// appendAccepted appends the body of a 202: the message's id, how durable it is ("fsync", "os", or the name of an engine), and one
// entry per recipient, in the order of the request.
func appendAccepted(dst []byte, id envelope.ID, durability string, rcpts []recipientResult) []byte {
	return appendAcceptedMembers(append(dst, '{'), id, durability, rcpts)
}

// appendAcceptedMembers appends all of the object but its opening brace.
func appendAcceptedMembers(dst []byte, id envelope.ID, durability string, rcpts []recipientResult) []byte {
	dst = append(dst, `"id":"`...)
	dst = id.AppendTo(dst)
	dst = append(dst, `","durability":`...)
	dst = appendJSONString(dst, durability)
	dst = append(dst, ',')
	dst = appendRecipients(dst, rcpts)
	return append(dst, '}')
}

// appendValidated appends the body of a 200 after ?validate=only: what would have become of the message.
func appendValidated(dst []byte, rcpts []recipientResult) []byte {
	dst = append(dst, `{"valid":true,`...)
	dst = appendRecipients(dst, rcpts)
	return append(dst, '}')
}

// appendBatchAccepted appends the answer to one line of a batch, without its line end: line counts from 1, empty lines too; replayed
// says that the line's idempotency key was known, so that this is the first answer again.
func appendBatchAccepted(dst []byte, line int, id envelope.ID, durability string, replayed bool, rcpts []recipientResult) []byte {
	dst = append(dst, `{"line":`...)
	dst = strconv.AppendInt(dst, int64(line), 10)
	dst = append(dst, `,"status":202,`...)
	if replayed {
		dst = append(dst, `"replayed":true,`...)
	}
	return appendAcceptedMembers(dst, id, durability, rcpts)
}

// appendBatchProblem appends the answer to a line of a batch that was refused, without its line end. The status is the problem's.
func appendBatchProblem(dst []byte, line int, p *problem) []byte {
	dst = append(dst, `{"line":`...)
	dst = strconv.AppendInt(dst, int64(line), 10)
	dst = append(dst, `,"status":`...)
	dst = strconv.AppendInt(dst, int64(p.Status), 10)
	dst = append(dst, `,"problem":`...)
	dst = p.AppendTo(dst)
	return append(dst, '}')
}

// appendEntry appends the answer to a question for a message in the queue: the same as `fastedge queue show --json` prints. It is not on
// the path of any message.
func appendEntry(dst []byte, e *queue.Entry) []byte {
	p, err := json.Marshal(e)
	if err != nil { // Metadata that is no JSON, from an envelope of somebody else's
		without := *e
		without.Metadata = nil
		if p, err = json.Marshal(&without); err != nil {
			panic(fmt.Sprintf("httpedge: entry %v: %v", e.ID, err))
		}
	}
	return append(dst, p...)
}

// appendRecipients appends the member "recipients".
func appendRecipients(dst []byte, rcpts []recipientResult) []byte {
	dst = append(dst, `"recipients":[`...)
	for i := range rcpts {
		if i > 0 {
			dst = append(dst, ',')
		}
		r := &rcpts[i].Reply
		dst = append(dst, `{"address":`...)
		dst = appendJSONString(dst, rcpts[i].Address)
		dst = append(dst, `,"code":`...)
		dst = strconv.AppendUint(dst, uint64(r.Code), 10)
		if r.Enhanced != (smtpcodec.EnhancedCode{}) {
			dst = append(dst, `,"enhanced_status":"`...)
			dst = append(appendEnhanced(dst, *r), '"')
		}
		dst = append(dst, `,"text":`...)
		dst = appendJSONString(dst, r.Text)
		dst = append(dst, '}')
	}
	return append(dst, ']')
}

const lowerHex = "0123456789abcdef"

// appendJSONString appends s as a JSON string (RFC 8259 §7), quotes included. It takes any bytes: each one that is not UTF-8 becomes
// U+FFFD.
func appendJSONString[T []byte | string](dst []byte, s T) []byte {
	dst = append(dst, '"')
	done := 0 // s[:done] is in dst
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune([]byte(s[i:min(i+utf8.UTFMax, len(s))]))
			if r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
		}
		dst = append(dst, s[done:i]...)
		switch {
		case c >= utf8.RuneSelf:
			dst = append(dst, "\uFFFD"...)
		case c == '"', c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', lowerHex[c>>4], lowerHex[c&15])
		}
		i++
		done = i
	}
	return append(append(dst, s[done:]...), '"')
}
