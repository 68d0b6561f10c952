package loop

import "time"

// wheelSlots × tick is how far ahead a deadline is placed exactly; later ones go round. 512 slots of 250 ms are 128 s.
const wheelSlots = 512

// wheel finds the connections whose time may have come. It is lazy: a connection stays in its slot while its deadline moves on, and is
// placed anew when the slot comes up. Only a deadline that comes nearer needs a new place at once. Every open connection is in exactly one slot, so the wheel is also the list of connections.
//
// It counts ticks from its own start, by the monotonic clock: an hour that the wall clock is set back must not be an hour without
// deadlines.
type wheel struct {
	tick  time.Duration
	start time.Time
	slots [wheelSlots]*conn // doubly linked lists
	now   int64             // ticks since start
}

func newWheel(tick time.Duration, now time.Time) *wheel { return &wheel{tick: tick, start: now} }

func (w *wheel) ticks(t time.Time) int64 { return int64(t.Sub(w.start) / w.tick) }

// put places c for a look at t, at the earliest in the next tick. The zero time means one turn of the wheel from now.
func (w *wheel) put(c *conn, t time.Time) {
	ticks := w.now + wheelSlots - 1
	if !t.IsZero() {
		// One tick is added so that the slot comes up after t, not just before.
		ticks = min(max(w.ticks(t)+1, w.now+1), ticks)
	}
	c.slot, c.look = uint16(ticks%wheelSlots), time.Duration(ticks)*w.tick
	head := w.slots[c.slot]
	c.prev, c.next = nil, head
	if head != nil {
		head.prev = c
	}
	w.slots[c.slot] = c
}

// late says that c, in its slot, would be looked at more than a tick after t.
func (w *wheel) late(c *conn, t time.Time) bool { return t.Sub(w.start)+w.tick < c.look }

func (w *wheel) remove(c *conn) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		w.slots[c.slot] = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
}

// advance calls due for each connection in the slots up to now, which must put it back or remove it for good: it has been taken
// out of its slot. A long sleep is one turn at the most.
func (w *wheel) advance(now time.Time, due func(*conn)) {
	target := w.ticks(now)
	w.now = max(w.now, target-wheelSlots)
	for w.now < target {
		w.now++
		c := w.slots[w.now%wheelSlots]
		w.slots[w.now%wheelSlots] = nil
		for c != nil {
			next := c.next
			c.prev, c.next = nil, nil
			due(c)
			c = next
		}
	}
}

// each calls f for every connection. f may remove the connection it is given, and no other.
func (w *wheel) each(f func(*conn)) {
	for _, c := range w.slots {
		for c != nil {
			next := c.next
			f(c)
			c = next
		}
	}
}
