package loop

import (
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/proxyhdr"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// What a loop keeps for itself between messages. 16 MiB of idle chunks serve 2,000 sessions with an ordinary message each, or 200 with
// 64 KiB; without sessions a loop keeps 1 MiB.
const (
	maxIdleChunkBytes = 16 << 20
	lonelyChunkBytes  = 1 << 20
	maxIdleSubs       = 1024
	maxKeptOut        = 64 << 10
)

// Replies that the loop itself sends.
var (
	replyTooMany  = smtpcodec.Reply{Code: 421, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 3, Detail: 2}, Text: "Too many connections, see limits.connections; try again later"}
	replyDraining = smtpcodec.Reply{Code: 421, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 3, Detail: 2}, Text: "Shutting down, try again later"}
	replyStash    = smtpcodec.Reply{Code: 421, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 7, Detail: 0}, Text: "Too much sent ahead of a reply"}

	replyMemory = smtpcodec.Reply{Code: 452, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 3, Detail: 1}, Text: "Too much mail in progress, see limits.memory; try again later"}
)

// loop is the state of one event loop. Its goroutine owns all of it but the mailbox and conns.
type loop struct {
	srv   *Server
	ex    executor // runs run on the loop's goroutine
	meter LoopMeter
	log   *slog.Logger
	epoll int // the loop's epoll descriptor, -1 when it is not known

	res          session.Resources
	ids          *envelope.IDSource
	wheel        *wheel
	out          []byte // replies of the running burst
	plain        []byte // where TLS is decrypted to, made for the first that has it
	peeked       []byte // the part of plain that is lent out
	cipher       []byte // records not written yet
	proxy        proxyhdr.Reader
	cur          *conn   // whose session is running: what the observer's calls are about
	lastCode     uint16  // of its last reply
	blocked      []*conn // connections whose client does not read its replies
	spareBlocked []*conn
	subs         []*queue.Submission
	logErr       time.Time // when a queue error was last logged
	logFailure   time.Time // when a validator's failure was last logged

	lines        []byte // of messages, not handed over yet
	logsMessages bool

	conns    atomic.Int64
	unlogged atomic.Bool // lines has something

	mu      sync.Mutex
	mailbox []task
	armed   bool // a run of the mailbox is on its way
	spare   []task
}

type taskKind uint8

const (
	taskCommitted taskKind = iota
	taskTick
	taskDrain
	taskResume // a handshake, a validator or a SASL step has something to say
)

// task is one thing to do on the loop.
type task struct {
	kind   taskKind
	sub    *queue.Submission
	resume func(now time.Time)
}

func (s *Server) newLoop(ex executor) *loop {
	lp := &loop{
		srv:   s,
		ex:    ex,
		log:   s.log,
		epoll: -1,
		ids:   newIDSource(),
		wheel: newWheel(s.o.Tick, time.Now()),
	}
	if s.o.Meter != nil {
		lp.meter = s.o.Meter.NewLoop()
	} else {
		lp.meter = noMeter{}
	}
	lp.res = session.Resources{
		Envelopes: envelope.NewList(pool.NewList(maxIdleChunkBytes, s.o.Budget)),
		Observer:  lp,
	}
	lp.logsMessages = s.o.Lines != nil && s.log.Enabled(noContext, slog.LevelInfo)
	lp.checkRoom()
	return lp
}

// post hands t to the loop's goroutine. Any goroutine; it does not block. One Execute serves all tasks posted until it runs.
func (lp *loop) post(t task) {
	lp.mu.Lock()
	lp.mailbox = append(lp.mailbox, t)
	arm := !lp.armed
	lp.armed = true
	lp.mu.Unlock()
	if arm {
		lp.ex.execute(lp.runMailbox)
	}
}

// Committed is queue.Owner: one wake-up for all messages of this loop in the commit. Runs on: writer goroutine.
func (lp *loop) Committed(batch []*queue.Submission) {
	lp.mu.Lock()
	for _, sub := range batch {
		lp.mailbox = append(lp.mailbox, task{kind: taskCommitted, sub: sub})
	}
	arm := !lp.armed
	lp.armed = true
	lp.mu.Unlock()
	if arm {
		lp.ex.execute(lp.runMailbox)
	}
}

// runMailbox does what was posted. Runs on: event loop.
func (lp *loop) runMailbox() {
	lp.mu.Lock()
	tasks := lp.mailbox
	lp.mailbox = lp.spare[:0]
	lp.armed = false
	lp.mu.Unlock()
	now := time.Now()
	for _, t := range tasks {
		switch t.kind {
		case taskCommitted:
			lp.committed(t.sub, now)
		case taskTick:
			lp.tick(now)
		case taskDrain:
			lp.drain(now)
		case taskResume:
			t.resume(now)
		}
	}
	clear(tasks)
	lp.spare = tasks[:0]
	lp.meter.Callback(time.Since(now))
}

// submit hands the session's envelope to the queue, and the session is suspended until committed. When the queue does not take it, the
// session is told so here.
func (lp *loop) submit(c *conn, now time.Time, out []byte) ([]byte, session.Step) {
	env := c.sess.TakeEnvelope(lp.ids.Next(now))
	c.eod = now
	sub := lp.getSub()
	*sub = queue.Submission{Env: env, Owner: lp, Token: c}
	err := lp.srv.o.Writer.Submit(sub)
	if err == nil {
		c.phase = phaseSuspended
		return out, session.NeedInput
	}
	lp.putSub(sub)
	lp.meter.Message(env.Client.Protocol, false, env.Size(), 0)
	out, step := c.sess.Committed(env, queue.Refusal(err), now, out)
	env.Release()
	return out, step
}

// committed resumes the session whose message has its answer.
func (lp *loop) committed(sub *queue.Submission, now time.Time) {
	c, env, err := sub.Token.(*conn), sub.Env, sub.Err
	lp.putSub(sub)
	defer lp.recovered(c)
	if err != nil {
		lp.logQueueError(err, now)
	}
	lp.logMessage(c, env, err, now)
	lp.meter.Message(env.Client.Protocol, err == nil, env.Size(), now.Sub(c.eod))
	if c.closed {
		// The message stays with the queue; the client will send it again (RFC 1047), which can't be helped from here.
		lp.meter.Event(EventOrphan)
		env.Release()
		return
	}
	lp.cur = c
	c.phase = phaseOpen
	out, step := c.sess.Committed(env, queue.Refusal(err), now, lp.out[:0])
	env.Release()
	c.burst(now, out, step)
}

// tick lets time pass: deadlines, slow readers, room in the queue.
func (lp *loop) tick(now time.Time) {
	defer lp.recovered(nil)
	lp.flushLines()
	lp.checkRoom()
	lp.wheel.advance(now, func(c *conn) { c.due(now) })
	looked := lp.blocked
	lp.blocked = lp.spareBlocked[:0]
	for _, c := range looked {
		// Going on with a session may block it anew: flush has listed it again then.
		if !c.closed && !c.lookAtBlocked(now) {
			lp.blocked = append(lp.blocked, c)
		}
	}
	clear(looked)
	lp.spareBlocked = looked[:0]
}

// checkRoom decides whether a MAIL command may start a message now.
func (lp *loop) checkRoom() {
	b := lp.srv.o.Budget
	lp.res.RefuseReason = session.ReasonNone
	switch {
	case lp.srv.draining.Load():
		lp.res.Refuse = &replyDraining
	case b != nil && b.Max() > 0 && b.Used() > b.Max()/4*3:
		// What is left is for the messages that have begun.
		lp.res.Refuse, lp.res.RefuseReason = &replyMemory, session.ReasonMemory
	default:
		lp.res.Refuse = queue.Refusal(lp.srv.o.Writer.Room())
	}
}

// drain tells every session that the server is going away.
func (lp *loop) drain(now time.Time) {
	defer lp.recovered(nil)
	lp.checkRoom()
	lp.wheel.each(func(c *conn) {
		defer lp.recovered(c)
		switch {
		case c.phase == phaseEnding || c.phase == phaseLingering:
			return
		case c.phase == phaseGreet:
			c.say(&replyDraining, now)
			return
		case c.pre != nil: // nothing can be said yet
			c.phase = phaseLingering
			c.close()
			return
		}
		lp.cur = c
		out, step := c.sess.Shutdown(now, lp.out[:0])
		if c.phase != phaseOpen {
			return // it says so itself when it is resumed
		}
		c.flush(out, now)
		if step == session.Close && !c.closed {
			c.finish(now)
		}
	})
}

func (lp *loop) getSub() *queue.Submission {
	if n := len(lp.subs); n > 0 {
		sub := lp.subs[n-1]
		lp.subs = lp.subs[:n-1]
		return sub
	}
	return new(queue.Submission)
}

func (lp *loop) putSub(sub *queue.Submission) {
	*sub = queue.Submission{}
	if len(lp.subs) < maxIdleSubs {
		lp.subs = append(lp.subs, sub)
	}
}

// recovered is deferred by every entry: a panic is our bug and costs one connection, not the process. c is nil where no connection is
// to blame.
func (lp *loop) recovered(c *conn) {
	r := recover()
	if r == nil {
		return
	}
	lp.meter.Event(EventPanic)
	var id envelope.ID
	if c != nil {
		id = c.id()
	}
	lp.log.Error("panic on an event loop", "panic", r, "session", id.String(), "stack", string(debug.Stack()))
	if c != nil && !c.closed {
		if c.sec != nil {
			c.sec.err = errBroken // nothing more is asked of it
		}
		c.close()
	}
}
