package loop

import (
	"context"
	"log/slog"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// noContext is what slog gets: nothing of a session ends with a context.
var noContext = context.Background()

// maxLoggedArg bounds what of a hostile argument stands in a log line, in bytes; the log's own encoder escapes it.
const maxLoggedArg = 128

// Replied is session.Observer: it counts.
func (lp *loop) Replied(stage session.Stage, code uint16) {
	lp.lastCode = code
	lp.meter.Reply(stage, code)
}

// Refused is session.Observer: it counts each refusal, and logs the first of its kind in a session.
func (lp *loop) Refused(s *session.Session, stage session.Stage, r *smtpcodec.Reply, reason session.Reason, arg []byte) {
	lp.meter.Refusal(stage, reason, r.Code)
	c := lp.cur
	bit := uint64(1) << (uint(reason) & 63)
	if c.logged&bit != 0 {
		return
	}
	c.logged |= bit
	if !lp.log.Enabled(noContext, slog.LevelInfo) {
		return
	}
	lp.log.LogAttrs(noContext, slog.LevelInfo, "refused",
		slog.String("session", c.id().String()),
		slog.String("listener", c.name()),
		slog.String("client", c.client()),
		slog.String("helo", string(s.Helo())),
		slog.String("stage", stage.String()),
		slog.String("reason", reason.String()),
		slog.Int("code", int(r.Code)),
		slog.String("arg", string(arg[:min(len(arg), maxLoggedArg)])),
	)
}

// logMessage writes the one line of a message.
func (lp *loop) logMessage(c *conn, env *envelope.Envelope, err error) {
	if !lp.log.Enabled(noContext, slog.LevelInfo) {
		return
	}
	event := "accepted"
	if err != nil {
		event = "deferred"
	}
	lp.log.LogAttrs(noContext, slog.LevelInfo, event,
		slog.String("session", env.Client.Session.String()),
		slog.String("msg", env.ID.String()),
		slog.String("listener", env.Client.Listener),
		slog.String("client", env.Client.Addr.Addr().String()),
		slog.String("helo", string(env.Client.Helo)),
		slog.String("proto", env.Client.Protocol),
		slog.String("from", string(env.ReversePath)),
		slog.Int("to_count", len(env.Recipients)),
		slog.Int64("size", env.Size()),
		slog.Float64("ms_ack", float64(time.Since(c.eod))/float64(time.Millisecond)),
	)
}

// logEnd tells of a session that we ended.
func (lp *loop) logEnd(c *conn, why string) {
	lp.log.LogAttrs(noContext, slog.LevelInfo, "closed",
		slog.String("session", c.id().String()),
		slog.String("listener", c.name()),
		slog.String("client", c.client()),
		slog.String("why", why),
	)
}

// logQueueError tells of the queue's trouble, once a second at the most: every message of a batch has the same.
func (lp *loop) logQueueError(err error, now time.Time) {
	if now.Sub(lp.logErr) < time.Second {
		return
	}
	lp.logErr = now
	lp.log.Error("message not queued, client told to try again", "error", err)
}

func (c *conn) name() string { return c.lp.srv.o.Listeners[c.listener].Name }

func (c *conn) client() string {
	if a := c.sess.Peer().Addr; a.IsValid() {
		return a.String()
	}
	return "unix"
}

// noMeter counts nothing.
type noMeter struct{}

func (noMeter) Connection(int, ConnResult)                    {}
func (noMeter) OpenConnections(int, int)                      {}
func (noMeter) Reply(session.Stage, uint16)                   {}
func (noMeter) Refusal(session.Stage, session.Reason, uint16) {}
func (noMeter) Message(string, bool, int64, time.Duration)    {}
func (noMeter) Event(Event)                                   {}
func (noMeter) Callback(time.Duration)                        {}
