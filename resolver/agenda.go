package resolver

import (
	"math/bits"
	"time"
)

// agenda says which question is to be looked at next: those that are to be sent now, in the order in which they came, and those for which some time is
// waited, in a wheel with a slot for each millisecond. Putting and taking cost the same for ten questions and for 50,000. Guarded by Resolver.mu.
type agenda struct {
	ready list
	slots [wheelSlots]list
	used  [wheelSlots / 64]uint64 // a bit for each slot that is not empty
	done  int64                   // all slots up to this tick are empty
	timed int                     // questions in slots
}

const (
	wheelTick  = int64(time.Millisecond)
	wheelSlots = 4096 // what is further away than these is put into the last one, and looked at in vain
)

// list is of questions, in the order in which they came. A question has a node for each list that it may be in.
type list struct{ first, last *node }

type node struct {
	list          *list // nil when it is in none
	before, after *node
	c             *call
}

func (l *list) append(n *node) {
	n.list, n.before, n.after = l, l.last, nil
	if l.last != nil {
		l.last.after = n
	} else {
		l.first = n
	}
	l.last = n
}

// leave takes n out of the list that it is in, if any.
func (n *node) leave() {
	l := n.list
	if l == nil {
		return
	}
	if n.before != nil {
		n.before.after = n.after
	} else {
		l.first = n.after
	}
	if n.after != nil {
		n.after.before = n.before
	} else {
		l.last = n.before
	}
	n.list, n.before, n.after = nil, nil, nil
}

// put has c looked at when it is wake, less than a tick later; at once when that has come already. It may be on the agenda already.
func (g *agenda) put(c *call, wake, now int64) {
	g.remove(c)
	if wake <= now {
		g.ready.append(&c.due)
		return
	}
	if g.timed == 0 {
		g.done = now / wheelTick
	}
	tick := min((wake+wheelTick-1)/wheelTick, g.done+wheelSlots-1)
	tick = max(tick, g.done+1)
	slot := tick % wheelSlots
	c.slot = int32(slot)
	g.slots[slot].append(&c.due)
	g.used[slot/64] |= 1 << (slot % 64)
	g.timed++
}

// remove takes c off, if it is there.
func (g *agenda) remove(c *call) {
	l := c.due.list
	if l == nil {
		return
	}
	c.due.leave()
	if l != &g.ready {
		g.timed--
		if l.first == nil {
			g.used[c.slot/64] &^= 1 << (c.slot % 64)
		}
	}
}

// takeReady takes the first of those that are to be sent now, nil if there is none.
func (g *agenda) takeReady() *call {
	n := g.ready.first
	if n == nil {
		return nil
	}
	g.remove(n.c)
	return n.c
}

// takeDue takes one whose time has come, nil if there is none; some may have been put into a slot that was not far enough away.
func (g *agenda) takeDue(now int64) *call {
	next := g.next()
	if next > now {
		return nil
	}
	tick := next / wheelTick
	g.done = tick - 1 // more may be in it
	c := g.slots[tick%wheelSlots].first.c
	g.remove(c)
	return c
}

// next is when takeDue has the next one, never if nothing is waited for.
func (g *agenda) next() int64 {
	if g.timed == 0 {
		return never
	}
	from := (g.done + 1) % wheelSlots
	word, skip := from/64, from%64
	for ahead := -skip; ; ahead += 64 {
		used := g.used[word]
		if ahead < 0 {
			used = used >> skip << skip
		}
		if used != 0 {
			return (g.done + 1 + ahead + int64(bits.TrailingZeros64(used))) * wheelTick
		}
		word = (word + 1) % (wheelSlots / 64)
	}
}
