package httpedge

import (
	"errors"
	"net"
	"os"
	"time"
)

// paceWindow is the time over which the rate of a body is averaged, as session does with message data from SMTP.
const paceWindow = time.Minute

// errTooSlow is the end of a body that comes more slowly than session.Options.MinDataRate.
var errTooSlow = errors.New("httpedge: body below the least rate, see limits.data_rate")

// pace is the time that a body has, and how fast it must come. It counts bytes as they come over the wire, so that compressing is not being slow.
// The zero value is for what is no body.
type pace struct {
	on    bool
	rate  int64         // bytes a second; 0: only end counts
	limit time.Duration // from the first byte that is waited for to end
	every time.Duration // between two looks at the rate
	end   time.Time
	look  time.Time // the next look at the rate; zero: a window after the next byte is waited for
	came  int64     // bytes since the last look
	set   time.Time // the deadline that the connection has
	asSet bool      // fasthttp has set the first one already, when the header was there
	slow  bool      // it has ended for its rate
	late  bool      // it has ended for its time
}

// begin starts the times that have not begun.
func (p *pace) begin(now time.Time) {
	if p.end.IsZero() {
		p.end = now.Add(p.limit)
	}
	p.look = p.end
	if next := now.Add(p.every); p.rate > 0 && next.Before(p.end) {
		p.look = next
	}
	if p.asSet {
		p.set, p.asSet = p.look, false
	}
}

// keepsUp is asked when the deadline has come: data that has come fast enough since the last look gets a new one. Called early it changes nothing.
func (p *pace) keepsUp(now time.Time) bool {
	switch {
	case !now.Before(p.end):
		p.late = true
	case p.rate == 0 || now.Before(p.look):
		return true
	case p.came < p.rate*int64(p.every)/int64(time.Second):
		p.slow = true
	default:
		p.came = 0
		p.begin(now)
		return true
	}
	return false
}

// error is what a reader of the body is told in place of err: fasthttp hides timeouts in some of its own.
func (p *pace) error(err error) error {
	switch {
	case p.slow:
		return errTooSlow
	case p.late:
		return os.ErrDeadlineExceeded
	}
	return err
}

// waiting is for what may come as slowly as it likes until then.
func (p *pace) waiting(until time.Time) { *p = pace{on: true, end: until, look: until, set: p.set} }

// message begins within what was waited for: a line of a batch.
func (p *pace) message(rate int64, every time.Duration) {
	p.rate, p.every, p.look, p.came = rate, every, time.Time{}, 0
}

// over ends message.
func (p *pace) over() { p.rate, p.look = 0, p.end }

// readPaced reads some of a body. Runs on: the goroutine that reads the body.
func (c *conn) readPaced(p []byte) (int, error) {
	for {
		if c.pace.look.IsZero() {
			c.pace.begin(time.Now())
		}
		if !c.pace.set.Equal(c.pace.look) {
			c.pace.set = c.pace.look
			c.Conn.SetReadDeadline(c.pace.look)
			if c.cut.Load() { // after whoever has cut it off: this must not give it time again
				c.Conn.SetReadDeadline(time.Unix(1, 0))
			}
		}
		n, err := c.Conn.Read(p)
		c.line.take(p[:n])
		c.pace.came += int64(n)
		if n > 0 || err == nil {
			return n, err
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || c.cut.Load() || !c.pace.keepsUp(time.Now()) {
			c.ended = true
			return 0, err
		}
		c.pace.set = time.Time{}
	}
}

// cutOff ends a read that is under way on another goroutine, and all that follow.
func (c *conn) cutOff() {
	c.cut.Store(true)
	c.SetReadDeadline(time.Unix(1, 0))
}
