package loop

import (
	"fmt"
	"io"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/proxyhdr"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
)

const (
	// feedBytes is the most input that one Feed gets. With replies at most 25 times as long as their commands it bounds what
	// one step can add to the replies: a client that never reads costs flushBytes + 25 × feedBytes before anybody looks.
	feedBytes = 16 << 10
	// flushBytes of replies are written before more input is looked at.
	flushBytes = 32 << 10
	// A connection that we end while the client still sends is read for a while, so that the last reply is not lost to a reset.
	lingerBytes = 64 << 10
	lingerTime  = 2 * time.Second

	// replyBye answers QUIT: the client knows that it is over and sends no more.
	replyBye = 221
)

// phase says where in its life a connection is, and so whose the next byte from the client is.
type phase uint8

const (
	phaseProxy     phase = iota // the PROXY header's: a proxy is to say whose connection this is
	phaseHandshake              // the TLS handshake's, which runs on a goroutine of its own
	phaseGreet                  // nobody's yet: the greeting is held back
	phaseOpen                   // the session's
	phaseSuspended              // nobody's yet: the session waits for a commit, a validator or a SASL step
	phaseEnding                 // nobody's: the session is over, its last replies are not sent yet
	phaseLingering              // nobody's: our side is shut down, the client's is waited for
)

// conn is one connection. Its loop's goroutine owns it.
type conn struct {
	sess       session.Session
	sock       socket
	lp         *loop
	prev, next *conn          // wheel slot
	pre        *arrival       // until the session is open, where that takes time
	sec        *secure        // TLS, nil in clear
	exchange   *auth.Exchange // the SASL exchange that is not over, if any
	eod        time.Time      // end of the data of the message that awaits its commit
	since      time.Time      // blocked or lingering since
	unread     int            // blocked: bytes of replies that waited when last looked at
	logged     uint64         // reasons of refusals already logged for this session
	listener   uint16
	slot       uint16
	look       time.Duration // when its slot comes up, on the wheel's clock
	phase      phase
	first      firstBytes
	placed     bool // in the wheel
	gated      bool // counted by the listener's Gate
	bye        bool // the client has said QUIT
	closed     bool // gnet has let go of it
	blocked    bool // the client does not read its replies
	paused     bool // its socket is not read
}

func (c *conn) id() envelope.ID { return c.peer().ID }

// readable is called when bytes came in. Runs on: event loop; must not block.
func (c *conn) readable(now time.Time) {
	if c.first != firstSeen && !c.looksGood() {
		return
	}
	switch c.phase {
	case phaseOpen:
		if c.blocked {
			c.boundStash(now)
			return
		}
		c.burst(now, c.lp.out[:0], session.NeedInput)
	case phaseSuspended:
		c.boundStash(now)
	case phaseHandshake:
		c.feedHandshake(now)
	case phaseProxy:
		c.proxied(now)
	case phaseGreet:
		c.early(now)
	case phaseEnding:
		c.consumeAll()
	case phaseLingering:
		c.unread += c.consumeAll()
		if c.unread > lingerBytes {
			c.close()
		}
	}
}

// burst feeds what has come in to the session and writes the replies once; out and step are what an opened or resumed session has said
// already. A session whose client does not read is not fed, also when a commit resumes it: lookAtBlocked does it when the client has read.
// What the session wants next is done here, and nowhere else.
func (c *conn) burst(now time.Time, out []byte, step session.Step) {
	c.lp.cur = c
	var in []byte
	peeked, used := false, 0
feed:
	for c.phase == phaseOpen && step != session.Close {
		if step != session.NeedInput {
			out, step = c.act(step, now, out)
			continue
		}
		if c.blocked {
			break
		}
		if !peeked {
			if in, peeked = c.peek(), true; c.closed {
				return
			}
		}
		n := 0
		if used < len(in) {
			n, out, step = c.sess.Feed(in[used:min(len(in), used+feedBytes)], now, out)
			used += n
		}
		switch {
		case step != session.NeedInput:
		case n == 0: // the rest is the beginning of a line
			if c.sec == nil || !c.sec.full {
				break feed
			}
			c.consume(used) // there is more than fits into the loop's buffer
			peeked, used = false, 0
		case len(out) >= flushBytes:
			c.flush(out, now)
			out = out[:0]
			if c.closed {
				return
			}
		}
	}
	if c.phase == phaseHandshake {
		c.beginTLS(out, used, now)
		return
	}
	if peeked {
		c.consume(used)
	}
	c.flush(out, now)
	switch {
	case c.closed:
	case step == session.Close:
		c.bye = c.lp.lastCode == replyBye
		c.finish(now)
	case c.phase == phaseSuspended || c.blocked:
		c.boundStash(now)
		c.hasten()
	case c.sec != nil && c.sec.err != nil:
		c.tlsOver()
	default:
		if c.paused {
			c.resume()
		}
		c.hasten()
	}
}

// act does what the session wants next. It gives what the session said to it when that was done at once; otherwise c.phase says that the
// session waits.
func (c *conn) act(step session.Step, now time.Time, out []byte) ([]byte, session.Step) {
	lp := c.lp
	switch step {
	case session.AwaitCommit:
		return lp.submit(c, now, out)
	case session.AwaitPolicy:
		c.phase = phaseSuspended
		c.sess.Pending().Arm(func(p *policy.Pending) { // any goroutine
			lp.post(task{kind: taskResume, resume: func(now time.Time) { lp.decided(c, p, now) }})
		})
	case session.AwaitAuth:
		return c.stepAuth(now, out)
	case session.StartTLS:
		switch l := c.lst(); {
		case l.TLS == nil:
			return c.sess.AnswerTLS(&replyNoTLS, now, out)
		case !lp.srv.claimHandshake():
			lp.meter.Event(EventHandshakeLimit)
			return c.sess.AnswerTLS(&replyHandshakes, now, out)
		}
		out, _ = c.sess.AnswerTLS(nil, now, out)
		c.phase = phaseHandshake
	default:
		panic(fmt.Sprintf("loop: session wants step %d", step))
	}
	return out, session.NeedInput
}

// beginTLS sends what was said in clear, 220 the last, and starts the handshake of STARTTLS. What came behind the command, of which used
// bytes are part, is thrown away: somebody on the way could have put it there (RFC 3207 §4.2, CVE-2011-0411).
func (c *conn) beginTLS(out []byte, used int, now time.Time) {
	if c.buffered() > used {
		c.lp.meter.Event(EventPlainDiscarded)
	}
	c.consumeAll()
	if c.flush(out, now); c.closed {
		c.lp.srv.handshakes.Add(-1) // claimed, not begun
		return
	}
	c.startHandshake(now)
	if !c.closed && c.paused {
		c.resume()
	}
}

// decided resumes the session whose validator has answered.
func (lp *loop) decided(c *conn, p *policy.Pending, now time.Time) {
	if c.closed || c.phase != phaseSuspended || p != c.sess.Pending() {
		return
	}
	defer lp.recovered(c)
	lp.cur = c
	c.phase = phaseOpen
	out, step := c.sess.Decided(now, lp.out[:0])
	c.burst(now, out, step)
}

// tlsOver ends a connection on which nothing more can be read.
func (c *conn) tlsOver() {
	if err := c.sec.err; err != io.EOF {
		c.lp.meter.Event(EventTLSError)
		c.lp.logEnd(c, "TLS: "+err.Error())
	}
	c.close()
}

// deadline is when the phase must be over; the zero time where other limits hold.
func (c *conn) deadline() time.Time {
	switch c.phase {
	case phaseProxy, phaseGreet:
		return c.pre.deadline
	case phaseHandshake:
		return c.sec.hs.deadline
	case phaseOpen, phaseSuspended:
		if !c.blocked {
			return c.sess.Deadline()
		}
	case phaseLingering:
		return c.since.Add(lingerTime)
	}
	return time.Time{}
}

// hasten looks at the deadline sooner than planned when it has come nearer: behind the data there is less time than for the data, and
// a suspended session may have none.
func (c *conn) hasten() {
	if c.closed {
		return
	}
	if t := c.deadline(); !t.IsZero() && c.lp.wheel.late(c, t) {
		c.lp.wheel.remove(c)
		c.place(t)
	}
}

// flush writes out, and notes whether the client keeps up. It keeps out's memory for the next burst.
func (c *conn) flush(out []byte, now time.Time) {
	if cap(out) <= maxKeptOut {
		c.lp.out = out[:0]
	}
	if len(out) == 0 && c.sec == nil || c.closed { // TLS may have written on its own
		return
	}
	if len(out) > 0 {
		c.write(out)
	}
	if c.closed || c.blocked {
		return
	}
	if n := c.unsent(); n > flushBytes {
		c.block(n, now)
	}
}

// block stops the session until its client has read the n bytes of replies that wait.
func (c *conn) block(n int, now time.Time) {
	if !c.blocked {
		c.blocked, c.since, c.unread = true, now, n
		c.lp.blocked = append(c.lp.blocked, c)
	}
}

// boundStash stops reading the socket when enough has piled up behind a session that can't take it now.
func (c *conn) boundStash(now time.Time) {
	n := c.buffered()
	if n <= c.lp.srv.o.MaxStashBytes {
		return
	}
	if c.pause() {
		if n := c.unsent(); n > 0 {
			c.block(n, now) // for the tick to send it
		}
		return
	}
	// No way to pause here (no /proc, another system): beyond four times the limit the client is cut off.
	if n > 4*c.lp.srv.o.MaxStashBytes {
		c.lp.meter.Event(EventStashFull)
		c.consumeAll()
		if c.phase != phaseHandshake {
			c.flush(replyStash.AppendTo(c.lp.out[:0]), now)
		}
		c.close()
	}
}

// lookAtBlocked goes on with a session whose client has read its replies, and ends one that makes no progress. It says whether the
// connection is blocked no longer (or was, and is again, and flush has listed it).
func (c *conn) lookAtBlocked(now time.Time) (settled bool) {
	defer c.lp.recovered(c)
	if c.paused {
		if c.sendUnsent(); c.closed {
			return true
		}
	}
	n := c.unsent()
	switch {
	case n == 0:
		c.blocked = false
		switch c.phase {
		case phaseEnding:
			c.finish(now)
		case phaseOpen:
			c.burst(now, c.lp.out[:0], session.NeedInput)
		case phaseSuspended, phaseHandshake, phaseGreet:
			c.boundStash(now) // sending has switched reading on again
			c.hasten()
		}
		return true
	case n > c.lp.srv.o.MaxUnreadBytes, n >= c.unread && now.Sub(c.since) > c.lp.srv.o.UnreadTimeout:
		c.lp.meter.Event(EventSlowReader)
		c.lp.logEnd(c, "client does not read its replies")
		c.close()
		return true
	case n < c.unread:
		c.unread, c.since = n, now
	}
	return false
}

// due is called when the connection's deadline may have come.
func (c *conn) due(now time.Time) {
	defer c.lp.recovered(c)
	t := c.deadline()
	late := !t.IsZero() && !now.Before(t)
	if late {
		t = time.Time{} // whatever comes of it places the connection anew
	}
	if c.place(t); !late {
		return
	}
	switch c.phase {
	case phaseProxy:
		if c.rawBuffered() == 0 {
			c.badProxy(EventProxyMissing, proxyhdr.ErrMissing)
		} else {
			c.badProxy(EventProxyBad, proxyhdr.ErrTime)
		}
	case phaseHandshake:
		c.handshakeFailed(errHandshakeTime, now)
		c.phase = phaseLingering // counted
		c.close()
	case phaseGreet:
		c.open(c.pre.peer, now)
	case phaseLingering:
		c.close()
	default:
		c.dropExchange() // late, if there is one
		c.lp.cur = c
		out, step := c.sess.Expire(now, c.lp.out[:0])
		if step == session.Close {
			c.lp.meter.Event(EventTimeout)
		}
		c.phase = phaseOpen
		c.burst(now, out, step)
	}
}

func (c *conn) place(t time.Time) {
	c.lp.wheel.put(c, t)
	c.placed = true
}

// finish closes the connection after the session's last word. A client that may still be sending is read for a while first: closing
// with unread input makes the kernel reset the connection, and the reply would be lost.
//
// What the kernel has not taken yet of the replies is waited for, like any reply that a slow client has still to read.
func (c *conn) finish(now time.Time) {
	if n := c.unsent(); n > 0 {
		c.phase = phaseEnding
		c.consumeAll()
		c.resume() // what comes now is dropped
		c.block(n, now)
		return
	}
	if c.bye && c.buffered() == 0 {
		c.close()
		return
	}
	c.consumeAll()
	if c.phase == phaseHandshake {
		c.sec.hs.abort()
	}
	c.phase = phaseLingering // also for the close that shutdownWrite may end in
	c.since, c.unread = now, 0
	if c.shutdownWrite(); c.closed {
		return
	}
	if c.resume(); c.closed {
		return
	}
	c.lp.wheel.remove(c)
	c.place(now.Add(lingerTime))
}

// gone is called once, when gnet has closed the connection for whatever reason.
func (c *conn) gone() {
	came := c.rawBuffered() > 0
	c.closed = true
	if c.placed {
		c.lp.wheel.remove(c)
		c.placed = false
	}
	lp := c.lp
	if c.sec != nil && c.sec.hs != nil {
		if c.phase == phaseHandshake {
			c.handshakeFailed(errHandshakeLeft, time.Now())
		}
		c.sec.hs.abort()
	}
	switch {
	case c.phase == phaseProxy && came:
		lp.meter.Event(EventProxyBad)
		lp.logEnd(c, proxyhdr.ErrHalf.Error())
	case c.phase == phaseProxy, c.first == firstLocal:
		lp.meter.Event(EventProxyHealthCheck)
	}
	if c.gated {
		c.lst().Gate.Leave(c.address().Addr())
	}
	// Before Abort: should a broken session panic there, its place is free all the same.
	left := lp.conns.Add(-1)
	lp.srv.open.Add(-1)
	lp.meter.OpenConnections(int(c.listener), -1)
	c.dropExchange()
	lp.cur = c
	c.sess.Abort()
	if left == 0 {
		lp.res.Envelopes.Chunks.Trim(lonelyChunkBytes)
	}
}
