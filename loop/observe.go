package loop

import (
	"context"
	"log/slog"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
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
	if c.logged&bit != 0 || reason == session.ReasonShutdown { // the latter befalls everybody at once
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
		slog.String("reply", r.Text),
		slog.String("arg", string(arg[:min(len(arg), maxLoggedArg)])),
	)
}

// ValidatorFailed is session.Observer: it counts, and logs once a second at the most, because what fails for one session fails for all.
func (lp *loop) ValidatorFailed(s *session.Session, at policy.Stage, err error) {
	lp.meter.Event(EventValidatorFailed)
	now := time.Now()
	if now.Sub(lp.logFailure) < time.Second {
		return
	}
	lp.logFailure = now
	lp.log.Error("a validator failed", "session", s.Peer().ID.String(), "listener", lp.cur.name(), "stage", at.String(), "error", err)
}

// maxGatheredLines bytes of message lines are gathered before they are handed over; the tick hands over what is left.
const maxGatheredLines = 16 << 10

// logMessage writes the one line of a message. It is the only line that every message causes, so it goes round slog (BenchmarkLine in
// internal/logline): a fraction of the time, and a hand-over for many lines instead of one each.
func (lp *loop) logMessage(c *conn, env *envelope.Envelope, err error, now time.Time) {
	if !lp.logsMessages {
		return
	}
	tls := ""
	if t := c.sess.Peer().TLS; t != nil {
		tls = t.Version
	}
	lp.lines = lp.srv.o.LineFormat.Message(lp.lines, now, env, tls, now.Sub(c.eod), err == nil)
	if len(lp.lines) >= maxGatheredLines {
		lp.flushLines()
	} else {
		lp.unlogged.Store(true)
	}
}

// flushLines hands the gathered message lines over.
func (lp *loop) flushLines() {
	if len(lp.lines) > 0 {
		lp.srv.o.Lines.Write(lp.lines)
		lp.lines = lp.lines[:0]
	}
	lp.unlogged.Store(false)
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

func (c *conn) name() string { return c.lst().Name }

func (c *conn) client() string {
	if a := c.address(); a.IsValid() {
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
func (noMeter) Handshake(bool, string, time.Duration)         {}
func (noMeter) Event(Event)                                   {}
func (noMeter) Callback(time.Duration)                        {}
