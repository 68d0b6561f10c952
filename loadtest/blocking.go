package loadtest

import (
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// A slow client writes slowPiece octets at a time, slowPause apart: about 2 KiB a second.
const (
	slowPiece = 64
	slowPause = 30 * time.Millisecond
)

// group drives connections with a goroutine each: those with TLS, and slow ones. The clients are the same machines as a worker's; the
// tally's lock is held while one of them is called.
type group struct {
	schedule
	plan   *plan
	target target
	first  int
	n      int
	slow   bool
	cond   *sync.Cond // of tally.mu: something is due, or the run was stopped
	config *tls.Config
}

func newGroup(p *plan, c *control, t target, first, n int, slow bool) *group {
	tl := newTally()
	tl.muted = slow
	g := &group{
		plan: p, target: t, first: first, n: n, slow: slow, cond: sync.NewCond(&tl.mu),
		schedule: schedule{
			plan: p, control: c, tally: tl, make: newComposer(p, uint64(first)+1), share: float64(n) / float64(p.Connections),
			random: rand.New(rand.NewPCG(p.Seed, uint64(first)+1<<32)),
		},
	}
	// Certificates are not verified: this measures a server, and often one with a certificate of its own making.
	g.config = &tls.Config{InsecureSkipVerify: true, ServerName: p.ServerName}
	return g
}

// run drives all connections until they have finished.
func (g *group) run() {
	var all sync.WaitGroup
	for i := range g.n {
		all.Go(func() {
			for at := g.first + i; !g.isOver(); {
				if g.plan.SessionsOnly && !g.control.takes() {
					return
				}
				if !g.session(at) {
					time.Sleep(retryAfter)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for {
		select {
		case <-done:
			return
		case <-time.After(g.patience()):
		}
		g.tally.mu.Lock()
		now := g.control.now()
		g.begin(now)
		for {
			at, ok := g.due(now)
			if !ok {
				break
			}
			// A client that waits takes it at once.
			g.waiting = append(g.waiting, at)
			g.tally.waiting++
			g.cond.Signal()
			if len(g.waiting)-g.head > g.plan.MaxWaiting {
				g.waiting = g.waiting[:len(g.waiting)-1]
				g.tally.waiting--
				g.tally.totals.Dropped++
			}
		}
		if g.over() {
			g.cond.Broadcast()
		}
		g.tally.mu.Unlock()
	}
}

func (g *group) isOver() bool {
	g.tally.mu.Lock()
	defer g.tally.mu.Unlock()
	return g.over()
}

func (g *group) patience() time.Duration {
	g.tally.mu.Lock()
	defer g.tally.mu.Unlock()
	if !g.started {
		return turnLimit
	}
	return min(turnLimit, max(0, time.Duration(g.schedule.next-g.control.now())))
}

// seat is the host of one client: where it is parked.
type seat struct {
	*group
	parked bool
}

func (s *seat) park(client) (finished bool) {
	if s.plan.Hold == 0 && (!s.open() || s.over()) {
		return true
	}
	s.parked = true
	return false
}

// session is one connection from the first octet to the last. It says whether that went in order.
func (g *group) session(i int) bool {
	begun := g.control.now()
	conn, err := g.dial(i)
	if err != nil {
		g.locked(func(now int64) {
			g.tally.took(phaseConnect, failed, now-begun)
			g.tally.note(phaseConnect, "connection: "+reason(err))
		})
		return false
	}
	var c client
	place := &seat{group: g}
	g.locked(func(now int64) {
		g.tally.took(phaseConnect, good, now-begun)
		g.tally.open++
		c = g.plan.newClient(g.tally, place, g.schedule.make, i, !g.plan.TLS && g.plan.STARTTLS > 0 && !g.slow)
	})
	defer func() {
		conn.Close()
		g.locked(func(int64) { g.tally.open-- })
	}()

	if g.plan.TLS {
		if g.plan.Proxy > 0 {
			if _, err := conn.Write(proxyHeader(g.plan.Proxy, i)); err != nil {
				return false
			}
		}
		g.locked(func(now int64) { c.open(now) })
		if conn = g.handshake(conn, c); conn == nil {
			return false
		}
	} else {
		g.locked(func(now int64) { c.open(now) })
	}

	buf := make([]byte, 16<<10)
	for {
		if err := g.write(conn, c); err != nil {
			g.locked(func(now int64) { c.lost(reason(err), now) })
		}
		switch c.wire().wish {
		case wantTLS:
			if conn = g.handshake(conn, c); conn == nil {
				return false
			}
			continue
		case wantClose:
			return c.wire().ended
		}
		if place.parked {
			place.await(c)
			continue
		}
		n, err := g.read(conn, buf)
		g.locked(func(now int64) {
			if n > 0 {
				c.feed(buf[:n], now)
			}
			if err != nil {
				c.lost(reason(err), now)
			}
		})
	}
}

// await sleeps until a message is due, and starts it; at the end of the run it says QUIT.
func (s *seat) await(c client) {
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	for {
		now := s.control.now()
		if m, ok := s.take(now); ok {
			s.parked = false
			c.start(m, now)
			return
		}
		if s.over() {
			s.parked = false
			c.quit(now)
			return
		}
		s.cond.Wait()
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
	return d.Dial(g.target.network, g.target.text)
}

func (g *group) handshake(conn net.Conn, c client) net.Conn {
	t := tls.Client(conn, g.config)
	_ = t.SetDeadline(time.Now().Add(g.plan.Timeout))
	err := t.Handshake()
	g.locked(func(now int64) {
		if err != nil {
			g.tally.took(phaseTLS, failed, now-c.wire().since)
			g.tally.note(phaseTLS, "connection: "+reason(err))
			c.lost(reason(err), now)
			return
		}
		c.secured(now)
	})
	if err != nil {
		conn.Close()
		return nil
	}
	return t
}

// write sends all that the client has queued.
func (g *group) write(conn net.Conn, c client) error {
	for {
		var parts net.Buffers
		g.locked(func(int64) { parts = append(parts, c.wire().out...) })
		if len(parts) == 0 {
			return nil
		}
		_ = conn.SetWriteDeadline(time.Now().Add(g.plan.Timeout))
		for _, p := range parts {
			for len(p) > 0 {
				n := len(p)
				if g.slow {
					n = min(n, slowPiece)
				}
				if _, err := conn.Write(p[:n]); err != nil {
					return err
				}
				if p = p[n:]; g.slow {
					if g.control.cut.Load() {
						return errors.New("the run was over")
					}
					time.Sleep(slowPause)
					_ = conn.SetWriteDeadline(time.Now().Add(g.plan.Timeout))
				}
			}
		}
		g.locked(func(now int64) {
			w := c.wire()
			for _, p := range parts {
				w.wrote(len(p))
			}
			c.flushed(now)
		})
	}
}

// read waits for the target, but not longer than the run.
func (g *group) read(conn net.Conn, buf []byte) (int, error) {
	end := time.Now().Add(g.plan.Timeout)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
		n, err := conn.Read(buf)
		var timeout net.Error
		if n > 0 || err == nil || !errors.As(err, &timeout) || !timeout.Timeout() {
			return n, err
		}
		if g.control.cut.Load() {
			return 0, errors.New("the run was over")
		}
		if time.Now().After(end) {
			return 0, errors.New("no reply in time")
		}
	}
}

// reason is an error without addresses, so that equal ones are counted together.
func reason(err error) string {
	if errors.Is(err, io.EOF) {
		return "closed by the target"
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}
