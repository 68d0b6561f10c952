package loadtest

import (
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
	cut      atomic.Bool   // the wait for last replies is over
	exhausts chan struct{} // closed when left has run out
	emptied  atomic.Bool
}

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
	next    int64   // when the next is due
	waiting []int64 // due times without a client, oldest first from head
	head    int
}

func (s *schedule) open() bool { return s.plan.Rate > 0 || s.plan.Ramp != nil }

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
	case s.control.takes():
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
	s.started, s.zero, s.next = true, now, now
	s.step()
}

// step moves next on by the time between two arrivals.
func (s *schedule) step() {
	rate := s.plan.Rate
	if s.plan.Ramp != nil {
		// The rate at the next arrival is that of the last; a standing start would never move, so it is 1/s at least.
		rate = max(s.plan.Ramp.rate(time.Duration(s.next-s.zero)), 1)
	}
	between := 1e9 / (rate * s.share)
	if s.plan.Poisson {
		between *= s.random.ExpFloat64()
	}
	s.next += int64(between)
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
	if len(s.waiting)-s.head >= s.plan.MaxWaiting {
		s.tally.totals.Dropped++
		return
	}
	if s.head > 0 && len(s.waiting) == cap(s.waiting) {
		n := copy(s.waiting, s.waiting[s.head:])
		s.waiting, s.head = s.waiting[:n], 0
	}
	s.waiting = append(s.waiting, at)
	s.tally.waiting++
}

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
