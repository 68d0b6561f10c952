package loadtest

import (
	"context"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// control is what the run's clock tells all drivers.
type control struct {
	began    time.Time     // zero of the run's clock
	flowing  atomic.Bool   // arrivals have begun
	stopped  atomic.Bool   // begin nothing more
	limited  atomic.Bool   // left counts; during the warm-up it does not
	left     atomic.Int64  // messages (sessions-only: sessions) that may still begin
	exhausts chan struct{} // closed when left has run out
	emptied  atomic.Bool

	// Two moments at the end of a run: nothing more is begun, and the wait for last replies is over. What blocks watches the contexts.
	ending, cutting context.Context
	end, cutOff     context.CancelFunc
}

func newControl() *control {
	c := &control{began: time.Now(), exhausts: make(chan struct{})}
	c.ending, c.end = context.WithCancel(context.Background())
	c.cutting, c.cutOff = context.WithCancel(context.Background())
	return c
}

// stop lets nothing more begin.
func (c *control) stop() {
	c.stopped.Store(true)
	c.end()
}

// cut ends the connections that are still there.
func (c *control) cut() {
	c.stop()
	c.cutOff()
}

func (c *control) isCut() bool { return c.cutting.Err() != nil }

// now is nanoseconds since the run began.
func (c *control) now() int64 { return int64(time.Since(c.began)) }

// takes says whether one more may begin, and counts it.
func (c *control) takes() bool {
	if c.stopped.Load() {
		return false
	}
	if !c.limited.Load() {
		return true
	}
	if c.left.Add(-1) >= 0 {
		return true
	}
	if c.emptied.CompareAndSwap(false, true) {
		c.end()
		close(c.exhausts)
	}
	return false
}

// schedule says when messages are due, for one driver; its tally's lock guards it. In the closed loop a message is due when a
// client asks for one.
type schedule struct {
	plan    *plan
	control *control
	tally   *tally
	make    *composer
	share   float64 // of the run's rate, 0 to 1
	random  *rand.Rand
	started bool
	zero    int64   // when arrivals began
	count   float64 // arrivals that the whole run has at next, at its rate; not whole
	next    int64   // when the next is due
	waiting []int64 // due times without a client, oldest first from head
	head    int
}

// newSchedule makes that of the driver of n connections, the first of which has that number.
func newSchedule(p *plan, c *control, first, n int) schedule {
	all := float64(p.Connections)
	return schedule{
		plan: p, control: c, tally: newTally(), make: newComposer(p, uint64(first)+1), share: float64(n) / all,
		random: rand.New(rand.NewPCG(p.Seed, uint64(first)+1<<32)),
		// Drivers with even arrivals take turns: not all of them send at the same moments.
		count: float64(first) / all,
	}
}

func (s *schedule) open() bool { return s.plan.Rate > 0 || s.plan.Ramp != nil }

// flows says whether messages may be begun: not before all that is to be connected is.
func (s *schedule) flows() bool { return s.control.flowing.Load() }

// message makes the message that was due then.
func (s *schedule) message(due int64) message { return s.make.draw(s.plan.book.Next(), due) }

func (s *schedule) take(now int64) (m message, ok bool) {
	switch {
	case s.plan.Hold > 0 || s.plan.SessionsOnly:
	case s.open():
		if s.head < len(s.waiting) {
			m, ok = s.message(s.waiting[s.head]), true
			s.head++
			if s.head == len(s.waiting) {
				s.waiting, s.head = s.waiting[:0], 0
			}
			s.tally.waiting--
		}
	case s.flows() && s.control.takes():
		s.tally.totals.Offered++
		m, ok = s.message(now), true
	}
	return m, ok
}

// begin starts the arrivals when the run's clock has said so.
func (s *schedule) begin(now int64) {
	if s.started || !s.open() || !s.control.flowing.Load() {
		return
	}
	s.started, s.zero = true, now
	s.step()
}

// beginSession says whether a driver may begin one more session, and counts it if sessions are all there is.
func (s *schedule) beginSession() bool {
	if !s.plan.SessionsOnly {
		return !s.over()
	}
	if !s.control.takes() {
		return false
	}
	s.tally.totals.Offered++
	s.tally.inFlight++
	return true
}

// cancelSession takes beginSession back.
func (s *schedule) cancelSession() {
	if s.plan.SessionsOnly {
		s.tally.totals.Offered--
		s.tally.inFlight--
		s.control.left.Add(1)
	}
}

// endSession is the other end of beginSession. A session in order was counted when it was completed.
func (s *schedule) endSession(inOrder bool, now int64) {
	if s.plan.SessionsOnly && !inOrder {
		s.tally.inFlight--
		s.tally.last = now
		s.tally.totals.Errors++
	}
}

// step moves next on to the next arrival.
func (s *schedule) step() {
	between := 1.0
	if s.plan.Poisson {
		between = s.random.ExpFloat64()
	}
	s.count += between / s.share
	at := s.count / s.plan.Rate
	if s.plan.Ramp != nil {
		at = s.plan.Ramp.reaches(s.count)
	}
	s.next = s.zero + int64(min(at*1e9, math.MaxInt64/2))
}

// due says whether an arrival is due, and moves on. Its time is what latency counts from.
func (s *schedule) due(now int64) (at int64, ok bool) {
	if !s.started || s.next > now || !s.control.takes() {
		return 0, false
	}
	at = s.next
	s.tally.late(now - at)
	s.tally.totals.Offered++
	s.step()
	return at, true
}

// wait keeps an arrival that found no client, or drops it.
func (s *schedule) wait(at int64) {
	s.tally.totals.Waited++
	if len(s.waiting)-s.head >= s.maxWaiting() {
		s.tally.totals.Dropped++
		return
	}
	s.keep(at)
}

// keep lets an arrival wait for a client.
func (s *schedule) keep(at int64) {
	if s.head > 0 && len(s.waiting) == cap(s.waiting) {
		n := copy(s.waiting, s.waiting[s.head:])
		s.waiting, s.head = s.waiting[:n], 0
	}
	s.waiting = append(s.waiting, at)
	s.tally.waiting++
}

// maxWaiting is this driver's part of Options.MaxWaiting.
func (s *schedule) maxWaiting() int { return int(math.Ceil(float64(s.plan.MaxWaiting) * s.share)) }

// over drops what still waits when the run is stopped, and says whether nothing will be due any more.
func (s *schedule) over() bool {
	if !s.control.stopped.Load() && !(s.control.emptied.Load() && s.head == len(s.waiting)) {
		return false
	}
	n := int64(len(s.waiting) - s.head)
	s.tally.totals.Dropped += n
	s.tally.waiting -= n
	s.waiting, s.head = s.waiting[:0], 0
	return true
}
