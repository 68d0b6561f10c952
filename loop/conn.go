package loop

import (
	"time"

	"github.com/fastedge/fastedge/envelope"
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

// conn is one connection. Its loop's goroutine owns it.
type conn struct {
	sess       session.Session
	sock       socket
	lp         *loop
	prev, next *conn     // wheel slot
	eod        time.Time // end of the data of the message that awaits its commit
	since      time.Time // blocked or lingering since
	unread     int       // blocked: bytes of replies that waited when last looked at
	logged     uint64    // reasons of refusals already logged for this session
	listener   uint16
	slot       uint16
	look       time.Duration // when its slot comes up, on the wheel's clock
	placed     bool          // in the wheel
	bye        bool          // the client has said QUIT
	closed     bool          // gnet has let go of it
	suspended  bool          // a message awaits its commit
	blocked    bool          // the client does not read its replies
	paused     bool          // its socket is not read
	ending     bool          // the session is over, its last replies are not sent yet
	lingering  bool          // our side is shut down, waiting for the client's
}

func (c *conn) id() envelope.ID { return c.sess.Peer().ID }

// readable is called when bytes came in. Runs on: event loop; must not block.
func (c *conn) readable(now time.Time) {
	switch {
	case c.lingering:
		c.unread += c.consumeAll()
		if c.unread > lingerBytes {
			c.close()
		}
	case c.ending:
		c.consumeAll()
	case c.suspended, c.blocked:
		c.boundStash(now)
	default:
		c.burst(now, c.lp.out[:0], session.NeedInput)
	}
}

// burst feeds what has come in to the session and writes the replies once; out and step are what a resumed session has said already.
// A session whose client does not read is not fed, also when a commit resumes it: lookAtBlocked does it when the client has read.
func (c *conn) burst(now time.Time, out []byte, step session.Step) {
	c.lp.cur = c
	in := c.peek()
	used := 0
	for step == session.NeedInput && !c.blocked && used < len(in) {
		part := in[used:min(len(in), used+feedBytes)]
		var n int
		n, out, step = c.sess.Feed(part, now, out)
		used += n
		if step == session.AwaitCommit {
			if r := c.lp.submit(c, now); r != nil {
				out, step = c.sess.Committed(nil, r, now, out)
			}
			continue
		}
		if n == 0 {
			break // the rest is the beginning of a line
		}
		if len(out) >= flushBytes && step == session.NeedInput {
			c.flush(out, now)
			out = out[:0]
			if c.closed {
				return
			}
		}
	}
	c.consume(used)
	c.flush(out, now)
	switch {
	case c.closed:
	case step == session.Close:
		c.bye = c.lp.lastCode == replyBye
		c.finish(now)
	case c.suspended || c.blocked:
		c.boundStash(now)
	default:
		if c.paused {
			c.resume()
		}
		c.hasten()
	}
}

// hasten looks at the deadline sooner than planned when it has come nearer: behind the data there is less time than for the data, and
// a suspended session had none.
func (c *conn) hasten() {
	if c.closed {
		return
	}
	if t := c.sess.Deadline(); !t.IsZero() && c.lp.wheel.late(c, t) {
		c.lp.wheel.remove(c)
		c.place(t)
	}
}

// flush writes out, and notes whether the client keeps up. It keeps out's memory for the next burst.
func (c *conn) flush(out []byte, now time.Time) {
	if cap(out) <= maxKeptOut {
		c.lp.out = out[:0]
	}
	if len(out) == 0 || c.closed {
		return
	}
	c.write(out)
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
		c.flush(replyStash.AppendTo(c.lp.out[:0]), now)
		if !c.closed {
			c.close()
		}
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
		switch {
		case c.ending:
			c.finish(now)
		case c.suspended:
			c.boundStash(now) // sending has switched reading on again
		case !c.lingering:
			c.burst(now, c.lp.out[:0], session.NeedInput)
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
	c.placed = false
	var next time.Time // zero: look again after one turn
	switch {
	case c.lingering:
		if next = c.since.Add(lingerTime); !now.Before(next) {
			c.close()
			return
		}
	case c.suspended, c.blocked: // their own limits hold
	default:
		if next = c.sess.Deadline(); !next.IsZero() && !now.Before(next) {
			c.lp.meter.Event(EventTimeout)
			c.lp.cur = c
			out, _ := c.sess.Expire(now, c.lp.out[:0])
			c.flush(out, now)
			if !c.closed {
				c.place(c.sess.Deadline())
				c.finish(now)
			}
			return
		}
	}
	c.place(next)
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
		c.ending = true
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
	c.shutdownWrite()
	if c.closed {
		return
	}
	c.lingering, c.since, c.unread = true, now, 0
	if c.resume(); c.closed {
		return
	}
	if c.placed {
		c.lp.wheel.remove(c)
	}
	c.place(now.Add(lingerTime))
}

// gone is called once, when gnet has closed the connection for whatever reason.
func (c *conn) gone() {
	c.closed = true
	if c.placed {
		c.lp.wheel.remove(c)
		c.placed = false
	}
	// Counted first: should a broken session panic in Abort, its place is free all the same.
	lp := c.lp
	left := lp.conns.Add(-1)
	lp.srv.open.Add(-1)
	lp.meter.OpenConnections(int(c.listener), -1)
	c.sess.Abort()
	if left == 0 {
		lp.res.Envelopes.Chunks.Trim(lonelyChunkBytes)
	}
}
