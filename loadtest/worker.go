//go:build linux

package loadtest

import (
	"errors"
	"syscall"
	"time"
)

// Waits and pauses of drivers.
const (
	turnLimit    = 20 * time.Millisecond  // the longest wait for events, so that the run's clock is obeyed
	retryAfter   = 100 * time.Millisecond // a connection that failed is opened again
	backlogPause = 2 * time.Millisecond   // so is one whose socket had no room for it
	closeTimeout = time.Second            // after QUIT the target closes first; not for ever
	connectBurst = 100                    // connections opened in a turn: a backlog is finite
)

// worker is one epoll loop and its share of the connections. Everything in it runs on its goroutine, under its tally's lock but for the
// wait.
type worker struct {
	schedule
	plan    *plan
	target  target
	ep      int
	slots   []slot
	first   int // number of slots[0] among all connections of the run
	buf     []byte
	idle    []int     // slots whose client waits for a message, the one that waited longest first
	current int       // slot whose client is being called
	pending []pending // slots to be connected
	soonest int64     // the first time in pending
	live    int       // slots that are not finished
	checked int64     // when timeouts were last looked for
	tick    int64     // when the next turn is to be at the latest
	err     error
}

// slot is a connection after the other.
type slot struct {
	fd         int
	client     client
	connecting bool
	parked     bool
	since      int64 // of connecting
}

type pending struct {
	slot int
	at   int64
}

func newWorker(p *plan, c *control, t target, first, n int) (*worker, error) {
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w := &worker{
		schedule: newSchedule(p, c, first, n),
		plan:     p, target: t, ep: ep, slots: make([]slot, n), first: first, buf: make([]byte, 64<<10), live: n,
	}
	for i := range w.slots {
		w.slots[i].fd = -1
		w.retry(i, 0)
	}
	return w, nil
}

// run drives the slots until all have finished or the run is cut.
func (w *worker) run() {
	events := make([]syscall.EpollEvent, 512)
	w.tick = w.control.now()
	for {
		n, err := epollWait(w.ep, events, w.patience())
		w.tally.mu.Lock()
		if err != nil {
			w.err = err
		}
		for i := range n {
			// The slot travels in the event's data; Go names those 32 bits Fd.
			w.event(int(events[i].Fd), events[i].Events)
		}
		now := w.control.now()
		if now >= w.tick {
			w.late(now - w.tick)
			w.tick = now + int64(turnLimit)
		}
		w.arrivals(now)
		w.connectPending(now)
		if now-w.checked > int64(time.Second)/4 {
			w.checked = now
			w.timeouts(now)
		}
		done := w.live == 0
		if w.control.isCut() || w.err != nil {
			w.abandon(now)
			done = true
		}
		w.tally.mu.Unlock()
		if done {
			syscall.Close(w.ep)
			return
		}
	}
}

func (w *worker) late(d int64) {
	if !w.open() {
		w.tally.late(d)
	}
}

// patience is how long the next wait may last.
func (w *worker) patience() time.Duration {
	now := w.control.now()
	d := time.Duration(w.tick - now)
	if w.started {
		d = min(d, time.Duration(w.schedule.next-now))
	}
	if len(w.pending) > 0 {
		d = min(d, time.Duration(w.soonest-now))
	}
	return d
}

// arrivals gives what is due to clients that wait for it.
func (w *worker) arrivals(now int64) {
	w.begin(now)
	for {
		at, ok := w.due(now)
		if !ok {
			break
		}
		if len(w.idle) == 0 {
			w.wait(at)
			continue
		}
		w.give(w.message(at), now)
	}
	for len(w.idle) > 0 {
		// In the closed loop these waited for the start.
		m, ok := w.take(now)
		if !ok {
			break
		}
		w.give(m, now)
	}
	if len(w.idle) > 0 && w.over() {
		for _, i := range w.idle {
			w.slots[i].parked = false
			w.current = i
			w.slots[i].client.quit(now)
			w.after(i, now)
		}
		w.idle = w.idle[:0]
	}
}

// give lets the client begin that waited longest: the load is spread over all connections.
func (w *worker) give(m message, now int64) {
	i := w.idle[0]
	w.idle = w.idle[1:]
	w.slots[i].parked = false
	w.current = i
	w.slots[i].client.start(m, now)
	w.after(i, now)
}

// park is the host's side of a client without a message.
func (w *worker) park(client) (finished bool) {
	if w.plan.Hold == 0 && w.over() {
		return true
	}
	w.slots[w.current].parked = true
	w.idle = append(w.idle, w.current)
	return false
}

// connectPending connects the slots whose time has come, a burst at a time.
func (w *worker) connectPending(now int64) {
	todo := w.pending
	w.pending, w.soonest = w.pending[:0], now+int64(time.Hour)
	var due []int
	for _, p := range todo {
		if p.at <= now && len(due) < connectBurst {
			due = append(due, p.slot)
			continue
		}
		w.retry(p.slot, p.at)
	}
	for _, i := range due {
		w.connect(i, now)
	}
}

// retry connects a slot at that time.
func (w *worker) retry(i int, at int64) {
	w.pending = append(w.pending, pending{i, at})
	w.soonest = min(w.soonest, at)
}

// connect begins the next session of a slot, if there is to be one.
func (w *worker) connect(i int, now int64) {
	if !w.beginSession() {
		w.live--
		return
	}
	s := &w.slots[i]
	s.since = now
	fd, connected, err := w.target.dial(&w.plan.Options, w.first+i)
	if err != nil {
		w.unconnected(i, err, now)
		return
	}
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP | edgeTriggered, Fd: int32(i)}
	if err := syscall.EpollCtl(w.ep, syscall.EPOLL_CTL_ADD, fd, &ev); err != nil {
		syscall.Close(fd)
		w.err = err
		return
	}
	*s = slot{fd: fd, connecting: true, since: now}
	w.tally.open++
	if connected {
		w.connected(i, now)
	}
}

func (w *worker) connected(i int, now int64) {
	s := &w.slots[i]
	s.connecting = false
	w.tally.took(phaseConnect, good, now-s.since)
	w.current = i
	s.client = w.plan.newClient(w.tally, w, w.schedule.make, w.first+i, false)
	s.client.open(now)
	w.after(i, now)
}

func (w *worker) unconnected(i int, err error, now int64) {
	var errno syscall.Errno
	if errors.As(err, &errno); errno == syscall.EAGAIN {
		// A unix socket's backlog is full. Over TCP the wait for it is the kernel's.
		w.cancelSession()
		w.retry(i, now+int64(backlogPause))
		return
	}
	w.endSession(false, now)
	if errno == 0 || errno == syscall.EMFILE || errno == syscall.ENFILE || errno == syscall.EADDRNOTAVAIL && w.tally.ready == 0 {
		w.err = err // ours, not the target's
		return
	}
	w.tally.took(phaseConnect, failed, now-w.slots[i].since)
	w.tally.note(phaseConnect, "connection: "+errno.Error())
	w.retry(i, now+int64(retryAfter))
}

// event is what epoll says of a slot. Events of a socket that was closed in the same turn are for nobody.
func (w *worker) event(i int, events uint32) {
	s := &w.slots[i]
	if s.fd < 0 {
		return
	}
	now := w.control.now()
	if s.connecting {
		if errno, err := syscall.GetsockoptInt(s.fd, syscall.SOL_SOCKET, syscall.SO_ERROR); err != nil || errno != 0 {
			w.shut(i)
			w.unconnected(i, syscall.Errno(errno), now)
			return
		}
		w.connected(i, now)
	} else if events&syscall.EPOLLOUT != 0 && len(s.client.wire().out) > 0 {
		w.after(i, now)
	}
	if events&^syscall.EPOLLOUT != 0 && s.fd >= 0 {
		w.read(i, events&(syscall.EPOLLRDHUP|syscall.EPOLLHUP|syscall.EPOLLERR) != 0, now)
	}
}

// read takes what has arrived. A short read has emptied the socket, so a second one that would say EAGAIN is saved: what comes later is
// a new edge. With toEnd the target has closed, and its edge is used up: all is read.
func (w *worker) read(i int, toEnd bool, now int64) {
	s := &w.slots[i]
	for s.fd >= 0 {
		n, errno := rawRead(s.fd, w.buf)
		switch {
		case errno == syscall.EAGAIN:
			return
		case errno != 0:
			w.broken(i, errno.Error(), now)
			return
		case n == 0:
			w.broken(i, "closed by the target", now)
			return
		}
		w.current = i
		fd := s.fd
		s.client.feed(w.buf[:n], now)
		w.after(i, now)
		if s.fd != fd {
			return
		}
		if n < len(w.buf) && !toEnd {
			return
		}
	}
}

// after does what a client wants after it was called.
func (w *worker) after(i int, now int64) {
	s := &w.slots[i]
	io := s.client.wire()
	if len(io.out) > 0 {
		if !w.flush(i, io) {
			return
		}
	}
	// RFC 5321 §4.1.1.10: after QUIT the server closes. It is also better so: the port that lingers is the target's.
	if io.wish == wantClose && !(io.ended && w.plan.Protocol != "http") {
		w.finish(i, now)
	}
}

// flush writes what it can; false: the rest waits for room, or the connection is broken.
func (w *worker) flush(i int, io *wire) bool {
	s := &w.slots[i]
	for len(io.out) > 0 {
		var n int
		var errno syscall.Errno
		if len(io.out) == 1 {
			n, errno = rawWrite(s.fd, io.out[0])
		} else {
			n, errno = rawWritev(s.fd, io.out)
		}
		if errno == syscall.EAGAIN {
			return false // EPOLLOUT comes when there is room
		}
		if errno != 0 {
			w.broken(i, errno.Error(), w.control.now())
			return false
		}
		if !io.wrote(n) {
			io.since = w.control.now()
		}
	}
	s.client.flushed(w.control.now())
	return true
}

// broken ends a session whose connection failed or was closed.
func (w *worker) broken(i int, why string, now int64) {
	w.current = i
	w.slots[i].client.lost(why, now)
	w.finish(i, now)
}

// finish closes a slot's socket and lets it connect again.
func (w *worker) finish(i int, now int64) {
	s := &w.slots[i]
	if s.fd < 0 {
		return
	}
	if s.parked {
		s.parked = false
		for at, slot := range w.idle {
			if slot == i {
				w.idle = append(w.idle[:at], w.idle[at+1:]...)
				break
			}
		}
	}
	w.shut(i)
	inOrder := s.client.wire().ended
	w.endSession(inOrder, now)
	if !inOrder {
		now += int64(retryAfter)
	}
	w.retry(i, now)
}

func (w *worker) shut(i int) {
	s := &w.slots[i]
	syscall.Close(s.fd)
	s.fd, s.connecting = -1, false
	w.tally.open--
}

// timeouts ends what has waited too long. It looks at every slot, four times a second.
func (w *worker) timeouts(now int64) {
	limit := int64(w.plan.Timeout)
	for i := range w.slots {
		s := &w.slots[i]
		if s.fd < 0 {
			continue
		}
		if s.connecting {
			if now-s.since > limit {
				w.shut(i)
				w.unconnected(i, syscall.ETIMEDOUT, now)
			}
			continue
		}
		io := s.client.wire()
		switch {
		case io.wish == wantClose && now-io.since > int64(closeTimeout):
			w.finish(i, now)
		case (io.awaiting || len(io.out) > 0) && now-io.since > limit:
			w.broken(i, "no reply in time", now)
		}
	}
}

// abandon ends everything, at the end of a run.
func (w *worker) abandon(now int64) {
	w.control.stop()
	w.over()
	for i := range w.slots {
		s := &w.slots[i]
		if s.fd < 0 {
			continue
		}
		if !s.connecting && (s.client.wire().awaiting || len(s.client.wire().out) > 0) {
			s.client.lost("the run was over", now)
		}
		w.endSession(!s.connecting && s.client.wire().ended, now)
		w.shut(i)
	}
}
