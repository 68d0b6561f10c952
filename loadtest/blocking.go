package loadtest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// A slow client writes slowPiece octets at a time, slowPause apart: about 2 KiB a second.
const (
	slowPiece = 64
	slowPause = 30 * time.Millisecond
)

// peekWait is for TLS to find out whether what has arrived unasked is for the client.
const peekWait = 10 * time.Millisecond

// group drives connections with a goroutine each: those with TLS, and slow ones. The clients are the same machines as a worker's; the
// tally's lock is held while one of them is called.
type group struct {
	schedule
	plan   *plan
	target target
	first  int
	n      int
	slow   bool
	idle   int        // clients that wait for a message
	cond   *sync.Cond // of tally.mu: something is due, or the run was stopped
	config *tls.Config
}

func newGroup(p *plan, c *control, t target, first, n int, slow bool) *group {
	g := &group{schedule: newSchedule(p, c, first, n), plan: p, target: t, first: first, n: n, slow: slow}
	g.tally.muted = slow
	g.cond = sync.NewCond(&g.tally.mu)
	// Certificates are not verified: this measures a server, and often one with a certificate of its own making.
	g.config = &tls.Config{InsecureSkipVerify: true, ServerName: p.ServerName}
	return g
}

// run drives all connections until they have finished.
func (g *group) run() {
	var all sync.WaitGroup
	for i := range g.n {
		all.Go(func() { g.sessions(g.first + i) })
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for {
		select {
		case <-done:
			return
		case <-time.After(g.patience()):
		}
		g.locked(g.arrivals)
	}
}

// arrivals wakes clients for what is due. The lock is held.
func (g *group) arrivals(now int64) {
	g.begin(now)
	for {
		at, ok := g.due(now)
		if !ok {
			break
		}
		if len(g.waiting)-g.head < g.idle {
			g.keep(at) // not for long
			g.cond.Signal()
		} else {
			g.wait(at)
		}
	}
	if g.over() || g.flows() && !g.open() && g.plan.Hold == 0 {
		g.cond.Broadcast()
	}
}

func (g *group) patience() (d time.Duration) {
	d = turnLimit
	g.locked(func(now int64) {
		if g.started {
			d = min(d, max(0, time.Duration(g.schedule.next-now)))
		}
	})
	return d
}

// sessions is one connection after the other.
func (g *group) sessions(i int) {
	for {
		var begins, inOrder bool
		g.locked(func(int64) { begins = g.beginSession() })
		if !begins {
			return
		}
		inOrder = g.session(i)
		g.locked(func(now int64) { g.endSession(inOrder, now) })
		if !inOrder {
			select {
			case <-time.After(retryAfter):
			case <-g.control.cutting.Done():
			}
		}
	}
}

// seat is the host of one client: where it is parked.
type seat struct {
	*group
	parked bool
}

func (s *seat) park(client) (finished bool) {
	if s.plan.Hold == 0 && s.over() {
		return true
	}
	s.parked = true
	return false
}

// session is one connection from the first octet to the last. It says whether that went in order.
func (g *group) session(i int) bool {
	begun := g.control.now()
	raw, err := g.dial(i)
	if err != nil {
		g.locked(func(now int64) {
			g.tally.took(phaseConnect, failed, now-begun)
			g.tally.note(phaseConnect, "connection: "+g.reason(err))
		})
		return false
	}
	defer raw.Close()
	stop := context.AfterFunc(g.control.cutting, func() { raw.Close() })
	defer stop()
	place := &seat{group: g}
	var c client
	g.locked(func(now int64) {
		g.tally.took(phaseConnect, good, now-begun)
		g.tally.open++
		c = g.plan.newClient(g.tally, place, g.schedule.make, i, !g.plan.TLS && g.plan.STARTTLS > 0 && !g.slow)
		c.open(now)
		if g.plan.TLS {
			c.wire().wish = wantTLS
		}
	})
	defer g.locked(func(int64) { g.tally.open-- })
	if g.plan.TLS && g.plan.Proxy > 0 {
		_, _ = raw.Write(proxyHeader(g.plan.Proxy, i)) // the handshake will see an error
	}
	g.talk(raw, place, c)
	return c.wire().ended
}

// talk moves octets until the client has had enough.
func (g *group) talk(raw net.Conn, place *seat, c client) {
	conn := raw
	buf := make([]byte, 16<<10)
	for {
		if err := g.write(conn, c, buf); err != nil {
			g.locked(func(now int64) { c.lost(g.reason(err), now) })
		}
		switch c.wire().wish {
		case wantTLS:
			conn = g.handshake(conn, c)
			continue
		case wantClose:
			return
		}
		wait := g.plan.Timeout
		if place.parked {
			if !place.await(c, raw) {
				continue
			}
			wait = peekWait
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		n, err := conn.Read(buf)
		if place.parked && errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // it was TLS's own affair
		}
		g.locked(func(now int64) {
			if n > 0 {
				c.feed(buf[:n], now)
			}
			if err != nil {
				c.lost(g.reason(err), now)
			}
		})
	}
}

// await sleeps until a message is due, and starts it; at the end of the run it says QUIT. It returns true when the target has said something
// unasked, or closed: a message must not be given to such a connection.
func (s *seat) await(c client, raw net.Conn) (spoke bool) {
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	for {
		if readable(raw) {
			return true
		}
		now := s.control.now()
		if m, ok := s.take(now); ok {
			s.parked = false
			c.start(m, now)
			return false
		}
		if s.over() {
			s.parked = false
			c.quit(now)
			return false
		}
		s.idle++
		s.cond.Wait()
		s.idle--
	}
}

func (g *group) locked(do func(now int64)) {
	g.tally.mu.Lock()
	defer g.tally.mu.Unlock()
	do(g.control.now())
}

func (g *group) dial(i int) (net.Conn, error) {
	d := net.Dialer{Timeout: g.plan.Timeout}
	if from, ok := g.plan.source(i); ok && g.target.network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, ipBindAddressNoPort, 1)
			})
		}
	}
	return d.DialContext(g.control.cutting, g.target.network, g.target.text)
}

// handshake secures conn, or tells the client that it is lost.
func (g *group) handshake(conn net.Conn, c client) net.Conn {
	t := tls.Client(conn, g.config)
	_ = t.SetDeadline(time.Now().Add(g.plan.Timeout))
	err := t.Handshake()
	g.locked(func(now int64) {
		if err != nil {
			g.tally.took(phaseTLS, failed, now-c.wire().since)
			c.lost(g.reason(err), now)
			return
		}
		c.secured(now)
	})
	return t
}

// write sends all that the client has queued.
func (g *group) write(conn net.Conn, c client, buf []byte) error {
	if c.wire().wish == wantClose {
		return nil
	}
	if g.slow {
		buf = buf[:slowPiece]
	}
	for {
		n := 0
		g.locked(func(int64) {
			for _, part := range c.wire().out {
				n += copy(buf[n:], part)
			}
		})
		if n == 0 {
			return nil
		}
		_ = conn.SetWriteDeadline(time.Now().Add(g.plan.Timeout))
		n, err := conn.Write(buf[:n])
		g.locked(func(now int64) {
			c.wire().since = now
			if n > 0 && c.wire().wrote(n) {
				c.flushed(now)
			}
		})
		if err != nil {
			return err
		}
		if g.slow {
			select {
			case <-time.After(slowPause):
			case <-g.control.ending.Done(): // the rest is no measurement any more: it hurries
			}
		}
	}
}

// reason is an error without addresses, so that equal ones are counted together.
func (g *group) reason(err error) string {
	var errno syscall.Errno
	var op *net.OpError
	switch {
	case g.control.isCut():
		return "the run was over"
	case errors.Is(err, io.EOF):
		return "closed by the target"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "no reply in time"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &op):
		return op.Err.Error()
	}
	return err.Error()
}
