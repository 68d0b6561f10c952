package httpedge

import (
	"errors"
	"io"
	"net/netip"

	"github.com/fastedge/fastedge/envelope"
)

// message is what a JSON body of POST /v1/messages, or a line of a batch, says. Its slices live in its arena until the next
// decodeMessage into it.
type message struct {
	MailFrom   []byte // empty for <>
	Rcpts      []rcpt
	Helo       []byte     // what X-Ehlo says; empty when not given
	Client     netip.Addr // the client that the mail came from, for SPF and rules; invalid when not given
	ClientHelo []byte     // its HELO name
	SMTPUTF8   bool
	RequireTLS bool
	Ret        envelope.Ret
	EnvID      []byte // in xtext, as after ENVID=
	Metadata   []byte // a JSON object without blanks; empty when not given
	Key        []byte // idempotency_key, empty when not given
	RawBytes   int64  // how many bytes of message data went to the sink

	arena []byte
}

// rcpt is one recipient of a message.
type rcpt struct {
	Address []byte
	ORcpt   []byte          // as after ORCPT=, empty when not given
	Notify  envelope.Notify // its own, or the message's; zero when neither was given
}

// limits bound what decodeMessage takes.
type limits struct {
	MaxMessageBytes int64 // of message data, decoded
	MaxRecipients   int
	Key             bool // idempotency_key is a known member: in lines of a batch
}

// requestError is a fault of the request's body: what is wrong, and where.
type requestError struct {
	Reason  string // a key of problemKinds
	Text    string
	Pointer []byte // JSON pointer (RFC 6901); empty for the whole
}

func (e *requestError) Error() string {
	if len(e.Pointer) == 0 {
		return e.Text
	}
	return string(e.Pointer) + ": " + e.Text
}

// decodeMessage reads one JSON object up to the end of r.
func decodeMessage(r io.Reader, limit limits, m *message, sink func(p []byte) error) error {
	return errors.New("not yet")
}
