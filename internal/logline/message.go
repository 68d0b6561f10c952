package logline

import (
	"time"

	"github.com/fastedge/fastedge/envelope"
)

// Message appends the line of a message that has its answer. tls is the version, empty in clear; ack is the time from the end of the data to
// the answer; accepted says that the message is durable.
func (f Format) Message(dst []byte, now time.Time, env *envelope.Envelope, tls string, ack time.Duration, accepted bool) []byte {
	event := "accepted"
	if !accepted {
		event = "deferred"
	}
	b := f.Begin(dst, now, "INFO", event)
	b = f.Appended(b, "session", env.Client.Session.AppendTo)
	b = f.Appended(b, "message", env.ID.AppendTo)
	b = f.Word(b, "listener", env.Client.Listener)
	if addr := env.Client.Addr.Addr(); addr.IsValid() {
		b = f.Appended(b, "client", addr.AppendTo)
	} else {
		b = f.Word(b, "client", "unix")
	}
	b = f.Bytes(b, "helo", env.Client.Helo)
	b = f.Word(b, "proto", env.Client.Protocol)
	if tls != "" {
		b = f.Word(b, "tls", tls)
	}
	if len(env.Client.User) > 0 {
		b = f.Bytes(b, "user", env.Client.User)
	}
	b = f.Bytes(b, "from", env.ReversePath)
	b = f.Int(b, "to_count", int64(len(env.Recipients)))
	b = f.Int(b, "size", env.Size())
	b = f.Millis(b, "ms_ack", ack)
	return f.End(b)
}
