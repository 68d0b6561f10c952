package relay

import (
	"context"
	"slices"
	"sync"
	"time"
)

// hop is a next hop and what is known of its health. Fields are guarded by connections.mu.
type hop struct {
	NextHop
	name     string
	failures int       // in a row; a MAIL that was answered ends the row
	until    time.Time // when down: time of the next probe; zero when up
	probing  bool      // down, and a connection is being tried
	last     error     // why it is down
	open     int       // connections that have got as far as EHLO
	full     bool      // down only in that it refused one more connection while some were open
}

// connections keeps the open connections, lends each to one delivery at a time, and knows which next hops are down.
type connections struct {
	r    *Relay
	hops []*hop // in order of preference

	probe sync.Mutex // held by the leaser that waits for a next hop to come up; taken before mu

	mu      sync.Mutex
	idle    []*conn            // the one used last at the end: it is used next, so that surplus ones age
	open    int                // idle, lent, and being dialled
	waiters []chan *conn       // oldest first; nil sent means: look again
	leasing context.Context    // what Lease runs under, until the last next hop goes down
	pause   context.CancelFunc // ends leasing; nil when it has ended, or not begun
	paused  bool
}

func newConnections(r *Relay) *connections {
	p := &connections{r: r}
	for _, h := range r.o.NextHops {
		p.hops = append(p.hops, &hop{NextHop: h, name: h.String()})
	}
	return p
}

var errAllDown = &hopError{"451 4.4.1 no next hop can be reached"}

// get lends a connection: an idle one (kept is true), a new one, or, when next hops refuse more, the first one given back. The
// error is that of the last dial. hard ends the waiting.
func (p *connections) get(hard context.Context) (c *conn, kept bool, err error) {
	for {
		if c = p.takeIdle(); c != nil {
			return c, true, nil
		}
		if c, err = p.dial(hard); c != nil {
			return c, false, nil
		}
		if hard.Err() != nil {
			return nil, false, errShutdown
		}
		p.mu.Lock()
		switch {
		case len(p.idle) > 0, slices.ContainsFunc(p.hops, func(h *hop) bool { return h.until.IsZero() }):
			p.mu.Unlock() // something has changed since we looked
			continue
		case p.allDownLocked():
			p.mu.Unlock()
			return nil, false, err
		}
		// The next hops are full, or one is being probed by another delivery.
		w := make(chan *conn, 1)
		p.waiters = append(p.waiters, w)
		due := time.NewTimer(max(time.Until(p.dueLocked()), 0) + time.Millisecond)
		p.mu.Unlock()
		select {
		case c = <-w:
		case <-due.C:
			c = p.stopWaiting(w)
		case <-hard.Done():
			if c = p.stopWaiting(w); c != nil {
				p.drop(c)
			}
			return nil, false, errShutdown
		}
		due.Stop()
		if c != nil {
			return c, true, nil
		}
	}
}

// stopWaiting takes w off the list; when it has been served meanwhile it gives what was sent.
func (p *connections) stopWaiting(w chan *conn) *conn {
	p.mu.Lock()
	i := slices.Index(p.waiters, w)
	if i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
	}
	p.mu.Unlock()
	if i >= 0 {
		return nil
	}
	return <-w
}

// takeIdle gives the idle connection used last that is still alive, or nil.
func (p *connections) takeIdle() *conn {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if c.alive() {
			return c
		}
		p.r.stats.stale.Add(1)
		p.drop(c)
	}
}

// dial tries the next hops in order until one answers EHLO. The error is the last one; of a next hop that was not tried it is why it
// is down.
func (p *connections) dial(ctx context.Context) (*conn, error) {
	err := error(errAllDown)
	for i := range p.hops {
		h, probe, why := p.mayDial(i)
		if h == nil {
			if why != nil {
				err = why
			}
			continue
		}
		c, dialErr := dialHop(ctx, p.r, h)
		if dialErr == nil {
			p.r.stats.connects.Add(1)
			p.up(h, probe)
			return c, nil
		}
		if ctx.Err() != nil {
			p.abandon(h, probe)
			return nil, errShutdown
		}
		err = dialErr
		p.r.stats.connectErrors.Add(1)
		p.down(h, dialErr, true, probe)
	}
	return nil, err
}

// abandon ends a dial that was cut short by our own shutdown: it says nothing about h.
func (p *connections) abandon(h *hop, probe bool) {
	p.mu.Lock()
	p.open--
	if probe {
		h.probing = false
	}
	p.wakeAllLocked()
	p.mu.Unlock()
}

// mayDial gives the ith next hop, counted as an open connection, unless it is down and left alone or being probed. probe says that this
// dial decides whether it is still down.
func (p *connections) mayDial(i int) (h *hop, probe bool, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h = p.hops[i]
	if !h.until.IsZero() {
		if h.probing || time.Now().Before(h.until) {
			return nil, false, h.last
		}
		h.probing, probe = true, true
	}
	p.open++
	return h, probe, nil
}

// up says that h answered EHLO. Its row of failures goes on until it answers a MAIL, so that one that greets and then hangs up
// is left alone for longer each time.
func (p *connections) up(h *hop, probe bool) {
	p.mu.Lock()
	h.open++
	switch {
	case probe:
		h.until, h.probing, h.full = time.Time{}, false, false
		p.wakeAllLocked()
	case !h.until.IsZero():
		// It was dialled before another connection found h down, which may be the later news: the next probe decides. Until then h
		// is full, as it has this connection.
		h.full = true
	}
	p.mu.Unlock()
	if probe {
		p.r.o.Log.Info("relay: next hop is up", "next_hop", h.name)
	}
}

// proven says that h answered a MAIL.
func (p *connections) proven(h *hop) {
	p.mu.Lock()
	h.failures = 0
	p.mu.Unlock()
}

// down says that h failed: while it was dialled, as a probe or not, or later.
func (p *connections) down(h *hop, err error, dialling, probe bool) {
	p.mu.Lock()
	now := time.Now()
	wait := time.Duration(0)
	// Of many connections that fail together only the first counts: otherwise 32 at once would mean the longest back-off.
	if h.until.IsZero() || probe {
		wait = min(p.r.o.MinBackoff<<min(h.failures, 16), p.r.o.MaxBackoff)
		h.failures++
		h.until = now.Add(wait)
	}
	if probe {
		h.probing = false
		p.wakeAllLocked() // there is a new time to wait for, or nothing to wait for
	}
	h.last = err
	if dialling {
		p.open--
	}
	h.full = h.open > 0
	p.checkDownLocked()
	p.mu.Unlock()
	if wait > 0 {
		p.r.o.Log.Warn("relay: next hop is down", "next_hop", h.name, "error", clean(err.Error()), "left_alone", wait)
	}
}

// release takes a connection back; when it is broken or has done its share it is closed.
func (p *connections) release(c *conn) {
	if c.broken {
		p.drop(c)
		return
	}
	if c.spent() {
		p.quit(c)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.idleSince = time.Now()
	if len(p.waiters) > 0 {
		p.waiters[0] <- c
		p.waiters = slices.Delete(p.waiters, 0, 1)
		return
	}
	p.idle = append(p.idle, c)
}

// drop closes a connection without a word.
func (p *connections) drop(c *conn) {
	c.close()
	p.mu.Lock()
	p.open--
	c.hop.open--
	p.checkDownLocked()
	p.mu.Unlock()
}

// quit says QUIT on a goroutine of its own and closes.
func (p *connections) quit(c *conn) {
	p.r.flights.Go(func() {
		c.quit()
		p.drop(c)
	})
}

// purge closes the idle connections to h: one of them was found dead without having said so, hence the others are likely to be.
func (p *connections) purge(h *hop) {
	p.mu.Lock()
	var dead []*conn
	p.idle = slices.DeleteFunc(p.idle, func(c *conn) bool {
		if c.hop == h {
			dead = append(dead, c)
		}
		return c.hop == h
	})
	p.mu.Unlock()
	for _, c := range dead {
		p.drop(c)
	}
}

// reap closes connections that have been idle for too long, until ctx ends.
func (p *connections) reap(ctx context.Context) {
	for pause(ctx, max(p.r.o.IdleTimeout/2, time.Millisecond)) {
		p.mu.Lock()
		old := 0
		for old < len(p.idle) && time.Since(p.idle[old].idleSince) >= p.r.o.IdleTimeout {
			old++
		}
		ended := slices.Clone(p.idle[:old])
		p.idle = slices.Delete(p.idle, 0, old)
		p.mu.Unlock()
		for _, c := range ended {
			p.quit(c)
		}
	}
}

// close says QUIT on all idle connections. No delivery runs any more.
func (p *connections) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	if p.pause != nil {
		p.pause()
		p.pause = nil
	}
	p.mu.Unlock()
	for _, c := range idle {
		p.quit(c)
	}
}

// whenUp returns when messages may be leased, with the context to do so, which ends when the last next hop goes down. While all are
// down it probes them itself.
func (p *connections) whenUp(ctx context.Context) (leasing context.Context, err error) {
	p.probe.Lock() // one leaser probes, the others wait here for what it finds
	defer p.probe.Unlock()
	for {
		p.mu.Lock()
		if !p.allDownLocked() {
			p.paused = false
			if p.pause == nil {
				// One context serves many leases; it is replaced when it has been cancelled.
				p.leasing, p.pause = context.WithCancel(ctx)
			}
			leasing = p.leasing
			p.mu.Unlock()
			return leasing, nil
		}
		p.paused = true
		due := p.dueLocked()
		p.mu.Unlock()
		if !pause(ctx, time.Until(due)) {
			return nil, ctx.Err()
		}
		if c, _ := p.dial(ctx); c != nil {
			p.release(c)
		}
	}
}

// allDownLocked: every next hop is down, and there is no connection left that could still be used.
func (p *connections) allDownLocked() bool {
	if p.open > 0 {
		return false
	}
	for _, h := range p.hops {
		if h.until.IsZero() || h.full {
			return false
		}
	}
	return true
}

func (p *connections) checkDownLocked() {
	if p.open == 0 {
		p.wakeAllLocked()
	}
	if p.pause != nil && p.allDownLocked() {
		p.pause()
		p.pause, p.paused = nil, true
	}
}

func (p *connections) wakeAllLocked() {
	for _, w := range p.waiters {
		w <- nil
	}
	clear(p.waiters)
	p.waiters = p.waiters[:0]
}

// dueLocked gives the earliest time at which a next hop that is down may be probed.
func (p *connections) dueLocked() time.Time {
	var due time.Time
	for _, h := range p.hops {
		if !h.until.IsZero() && !h.probing && (due.IsZero() || h.until.Before(due)) {
			due = h.until
		}
	}
	if due.IsZero() { // all are up or being probed: whoever does so will wake us
		due = time.Now().Add(p.r.o.MaxBackoff)
	}
	return due
}

func (p *connections) state() (open, down int64, paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.hops {
		if !h.until.IsZero() && !h.full {
			down++
		}
	}
	return int64(p.open), down, p.paused
}
