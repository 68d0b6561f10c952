package resolver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/fastedge/fastedge/spf"
)

const (
	// MaxSocketUses and SocketAge are when a UDP socket is replaced by one with another port.
	MaxSocketUses = 4096
	SocketAge     = 2 * time.Minute
	// MinRetransmit is the shortest time after which a question is asked again. A recursive server's answers take a millisecond or half a
	// second, by what it has cached; the round trip time alone would ask most of the latter twice.
	MinRetransmit = 300 * time.Millisecond
	// firstRetransmit is used before a server's round trip time is known, maxRetransmit never exceeded.
	firstRetransmit = 400 * time.Millisecond
	maxRetransmit   = 3 * time.Second
	// MinHedge is the shortest time after which another server is asked too. HedgeShare is for how many of all questions at most, and maxHedges how
	// many unused ones are kept for a bad moment.
	MinHedge   = 50 * time.Millisecond
	HedgeShare = 0.05
	maxHedges  = 32
	// MaxSilent is after how many tries without an answer between them a server is left out, if it has been silent for SilentFor: the questions
	// of one slow domain are not to take a server out that answers others. ProbeAfter is for how long at first; each probe that fails doubles it, up
	// to MaxProbeAfter.
	MaxSilent     = 8
	SilentFor     = time.Second
	ProbeAfter    = time.Second
	MaxProbeAfter = 30 * time.Second
	// PlainFor is how long a server is asked without EDNS0 after it gave an answer only so.
	PlainFor = 5 * time.Minute
	// exploreOneIn is how often, by chance, not the fastest server is asked, so that the others' times stay known.
	exploreOneIn = 32

	maxPending   = 1 << 14               // tries on one socket, so that free ids are found at once
	maxTCPQueue  = 256                   // queries that wait to be written to a TCP connection
	busyDelay    = 50 * time.Millisecond // until a try that found no socket or queue is made again
	writeTimeout = time.Second
	dialTimeout  = 3 * time.Second

	// TCPIdleTimeout is how long a TCP connection without questions is kept, TCPMessageTimeout how long one message may take to arrive.
	TCPIdleTimeout    = 10 * time.Second
	TCPMessageTimeout = 2 * time.Second
	// TCPOld is how old a TCP connection must be to be replaced because a question on it was not answered. So no more than Timeout / TCPOld + 1 of
	// them are open to a server.
	TCPOld = 2 * time.Second

	udpBuffer = 4096 // larger than what is offered; what is larger still cannot be decoded, and goes by TCP
)

// server is one that is asked. Guarded by Resolver.mu.
type server struct {
	index int
	addr  netip.AddrPort
	name  string
	links []*link // UDP sockets, nil where none is open
	tcp   *link   // nil when there is none

	srtt, rttvar int64 // RFC 6298; 0 before the first answer
	silent       int   // tries in a row without an answer to any
	heardAt      int64
	down         bool
	absent       bool // nobody listened at its port when it was asked last, for all that is known
	told         bool // down was logged, at
	toldAt       int64
	probeAt      int64 // when a silent server may be asked again
	backoff      int64
	probe        *try // on its way to a silent server
	plainUntil   int64

	inflight      int
	sent, answers uint64
}

// link is a UDP socket or a TCP connection. Guarded by Resolver.mu, but conn, which is set before others see it.
type link struct {
	server  *server
	conn    net.Conn // of TCP: nil until connected
	tcp     bool
	pending map[uint16]*try
	opened  int64
	heardAt int64 // when the last answer came
	uses    int
	retired bool // nothing new is sent; closed when nothing is pending

	mayWrite time.Time // of UDP, the driver's: until then a write has writeTimeout at least

	out  chan []byte   // of TCP: queries to be written, with their length
	quit chan struct{} // of TCP: closed with it
}

func (s *server) retransmitAfter() int64 {
	if s.srtt == 0 {
		return int64(firstRetransmit)
	}
	return min(max(s.srtt+4*s.rttvar, int64(MinRetransmit)), int64(maxRetransmit))
}

func (s *server) hedgeAfter() int64 { return max(s.srtt+2*s.rttvar, int64(MinHedge)) }

// heard takes note of an answer to t, whatever it says.
func (r *Resolver) heard(t *try, now int64) {
	s := t.server
	s.answers++
	rtt := max(now-t.sent, 1) // each try has its own id, so that it is known which one is answered (Karn's problem does not arise)
	if s.srtt == 0 {
		s.srtt, s.rttvar = rtt, rtt/2
	} else {
		d := rtt - s.srtt
		s.srtt += d / 8
		s.rttvar += (max(d, -d) - s.rttvar) / 4
	}
	s.silent, s.heardAt = 0, now
	if s.down {
		s.down, s.backoff = false, 0
		if s.told {
			s.told = false
			r.log.Info("DNS server answers again", "server", s.name)
		}
	}
}

// unheard counts a try that s did not answer, and leaves s out when there were too many for too long.
func (r *Resolver) unheard(s *server, now int64) {
	if s.silent++; s.silent >= MaxSilent && now-s.heardAt >= int64(SilentFor) {
		r.leaveOut(s, now)
	}
}

// leaveOut lets s rest until a probe is answered. It is logged once a minute at most: a server on the brink must not fill the log.
func (r *Resolver) leaveOut(s *server, now int64) {
	if s.down {
		return
	}
	s.down, s.backoff = true, int64(ProbeAfter)
	s.probeAt = now + s.backoff
	if s.toldAt == 0 || now-s.toldAt >= int64(time.Minute) {
		s.told, s.toldAt = true, max(now, 1)
		r.log.Warn("DNS server does not answer", "server", s.name)
	}
}

// lose marks c's tries that are older than their time to retransmit, or than age if that is not negative. A TCP connection that is no
// longer new and has brought nothing since is given up: the other end may have forgotten it.
func (r *Resolver) lose(c *call, now, age int64, fx *effects) {
	for _, t := range c.tries {
		if limit := age; !t.lost {
			if limit < 0 {
				limit = t.server.retransmitAfter()
			}
			if now-t.sent >= limit {
				t.lost = true
				r.unheard(t.server, now)
				if l := t.link; l.tcp && l.heardAt < t.sent && now-l.opened >= int64(TCPOld) {
					r.retire(l, fx)
				}
			}
		}
	}
}

// waits says how many of c's tries are on their way to s.
func (c *call) waits(s *server) (n int) {
	for _, t := range c.tries {
		if t.server == s {
			n++
		}
	}
	return n
}

// pick chooses the server for c's next try: the fastest that is up, has not failed it and does not have it already. nil when all have failed it.
func (r *Resolver) pick(c *call, upOnly bool) *server {
	var best *server
	var least int64
	explore := c.sent == 0 && len(r.servers) > 1 && r.random.below(exploreOneIn) == 0
	for _, s := range r.servers {
		if c.failed>>s.index&1 != 0 || upOnly && s.down {
			continue
		}
		cost := s.srtt + int64(c.waits(s))*int64(10*time.Second)
		if explore {
			cost = int64(r.random.below(1000))
		}
		if s.down {
			cost += int64(time.Hour)
		}
		if best == nil || cost < least {
			best, least = s, cost
		}
	}
	return best
}

// transmit sends c once more, and sets the time for the next. Runs on: the driver, under mu.
func (r *Resolver) transmit(c *call, now int64, fx *effects) {
	r.lose(c, now, -1, fx)
	c.off.leave()
	c.tryAt = never
	if c.sent >= MaxTries {
		return // what is on its way may still be answered
	}
	s := c.prefer
	if s == nil || c.failed>>s.index&1 != 0 {
		s = r.pick(c, false)
	}
	if s == nil {
		return
	}
	first, otherwise := c.sent == 0, c.prefer != nil
	if !first && !otherwise && !c.turned && !c.suspect && !r.mayRepeat(c, s, now) {
		r.st.Withheld++
		c.retransmits++
		c.tryAt = now + c.interval(s)
		c.zone.off.append(&c.off)
		return
	}
	if !r.send(c, s, now, fx) {
		c.tryAt = now + int64(busyDelay)
		return
	}
	c.prefer, c.turned = nil, false
	if first {
		r.hedges = min(r.hedges+HedgeShare, maxHedges)
		for _, other := range r.servers {
			if other != s && other.down && now >= other.probeAt {
				r.sendProbe(c, other, now, fx)
			} else if other != s && !other.down && !s.down {
				c.hedgeAt = now + s.hedgeAfter()
			}
		}
		if s.down && now >= s.probeAt {
			s.postpone(now) // all are down; this one is its own probe
		}
	}
	if !otherwise { // by TCP or without EDNS0 it is a new question
		if !first {
			r.st.Retransmits++
			c.tries[len(c.tries)-1].again = true
		}
		c.retransmits++
	}
	c.tryAt = now + c.interval(s)
}

// interval is how long the next answer is waited for.
func (c *call) interval(s *server) int64 {
	return s.retransmitAfter() << min(max(c.retransmits, 1)-1, 4)
}

// mayRepeat says that c may be sent again, to s, although nobody has said anything, and takes that off the allowances. When the server asked last has
// been silent to all since, and s is another that answers, it is not for the zone's silence, and always may be.
func (r *Resolver) mayRepeat(c *call, s *server, now int64) bool {
	if n := len(c.tries); n > 0 && !s.down {
		if last := c.tries[n-1]; last.server != s && last.server.heardAt <= last.sent {
			return true
		}
	}
	z := &c.zone.again
	z.grow(now, MaxZoneRetransmits, zoneBurst)
	r.again.grow(now, MaxRetransmits, retransmitBurst)
	// Half of what was saved up is for those that are sent the second time: most packets that are lost are lost once.
	keep := 0.0
	if c.retransmits > 1 {
		keep = 0.5
	}
	if z.tokens < 1+keep*zoneBurst || r.again.tokens < 1+keep*retransmitBurst {
		return false
	}
	z.tokens--
	r.again.tokens--
	return true
}

// resume hears that a retransmission was answered: not for the silence of z are answers missing. Some that were put off go on now, or as many more may
// be sent again. So after an outage all go on, faster and faster, and never more than answers come, times zoneResumes.
func (r *Resolver) resume(z *zone, now int64) {
	for range zoneResumes {
		n := z.off.first
		if n == nil {
			z.again.tokens = min(z.again.tokens+1, zoneBurst)
			r.again.tokens = min(r.again.tokens+1, retransmitBurst)
			continue
		}
		n.leave()
		n.c.tryAt, n.c.turned = now, true
		r.arm(n.c, now)
	}
}

// postpone sets the time of the next probe.
func (s *server) postpone(now int64) {
	s.probeAt = now + s.backoff
	s.backoff = min(s.backoff*2, int64(MaxProbeAfter))
}

// sendProbe asks a silent server too. The try outlives the question: it is the server that is in question.
func (r *Resolver) sendProbe(c *call, s *server, now int64, fx *effects) {
	s.postpone(now)
	r.dropProbe(s, fx)
	byTCP, suspect := c.byTCP, c.suspect
	c.byTCP, c.suspect = false, false
	if r.send(c, s, now, fx) {
		s.probe = c.tries[len(c.tries)-1]
		s.probe.lost = true // it is not counted: the server is down already
		r.st.Probes++
	}
	c.byTCP, c.suspect = byTCP, suspect
}

// hedge asks one more server when the first one takes longer than most of its answers do.
func (r *Resolver) hedge(c *call, now int64, fx *effects) {
	if r.hedges < 1 || c.sent >= MaxTries {
		return
	}
	if s := r.pick(c, true); s != nil && c.waits(s) == 0 && r.send(c, s, now, fx) {
		r.hedges--
		r.st.Hedges++
	}
}

// send puts a try of c into fx, to s. false means that there is no socket or no room for it now.
func (r *Resolver) send(c *call, s *server, now int64, fx *effects) bool {
	byTCP := c.byTCP || c.suspect
	var l *link
	if byTCP {
		l = r.tcpLink(s, now)
	} else {
		l = r.udpLink(c, s, now, fx)
	}
	if l == nil {
		return false
	}
	t := &try{c: c, server: s, link: l, sent: now, edns: !c.plain && now >= s.plainUntil}
	t.question = append(make([]byte, 0, len(c.question)), c.question...)
	if !byTCP && !r.o.PlainCase {
		// 128 letters get their own bits; a longer name's later letters repeat them.
		var bits [16]byte
		r.random.read(bits[:])
		mixCase(t.question, bits[:])
	}
	for {
		t.id = r.random.uint16()
		if l.pending[t.id] == nil {
			break
		}
	}
	if byTCP {
		b := make([]byte, 2, 2+maxQueryBytes)
		b = appendQuery(b, t.id, t.question, t.edns)
		binary.BigEndian.PutUint16(b, uint16(len(b)-2))
		select {
		case l.out <- b:
		default:
			return false
		}
		r.st.ByTCP++
	} else {
		from := len(r.arena)
		r.arena = appendQuery(r.arena, t.id, t.question, t.edns)
		fx.sends = append(fx.sends, send{l, from, len(r.arena)})
	}
	l.pending[t.id] = t
	l.uses++
	s.inflight++
	s.sent++
	r.st.Sent++
	c.sent++
	c.tries = append(c.tries, t)
	return true
}

// drop forgets a try: its answer will be a stray. A probe only loses its question. A retired socket is closed with its last one.
func (r *Resolver) drop(t *try, fx *effects) {
	if c := t.c; c != nil {
		for i, other := range c.tries {
			if other == t {
				c.tries[i] = c.tries[len(c.tries)-1]
				c.tries[len(c.tries)-1] = nil
				c.tries = c.tries[:len(c.tries)-1]
				break
			}
		}
		t.c = nil
		if t == t.server.probe {
			return // it goes on alone
		}
	}
	if t.link.pending[t.id] != t {
		return
	}
	delete(t.link.pending, t.id)
	t.server.inflight--
	if t.link.retired && len(t.link.pending) == 0 {
		fx.closes = append(fx.closes, t.link)
	}
}

// dropProbe forgets what is on its way to s as a probe.
func (r *Resolver) dropProbe(s *server, fx *effects) {
	if p := s.probe; p != nil {
		s.probe = nil
		r.drop(p, fx)
	}
}

// retire lets nothing new onto l, and closes it when nothing is pending.
func (r *Resolver) retire(l *link, fx *effects) {
	if l.retired {
		return
	}
	l.retired = true
	if l.server.tcp == l {
		l.server.tcp = nil
	}
	if len(l.pending) == 0 {
		fx.closes = append(fx.closes, l)
	}
}

// udpLink gives a random socket to s, one that c has not used if there is one. Opening a UDP socket does not block.
func (r *Resolver) udpLink(c *call, s *server, now int64, fx *effects) *link {
	n := len(s.links)
	i := r.random.below(n)
	for range n {
		used := false
		for _, t := range c.tries {
			used = used || t.link == s.links[i]
		}
		if !used {
			break
		}
		i = (i + 1) % n
	}
	old := s.links[i]
	if old != nil && !old.retired && old.uses < MaxSocketUses && now-old.opened < int64(SocketAge) && len(old.pending) < maxPending {
		return old
	}
	if r.closed {
		return nil
	}
	conn, err := r.o.Dial(r.ctx, "udp", s.name)
	if err != nil {
		// Out of file descriptors, perhaps: then one that is open must do, however old.
		r.st.SocketErrors++
		for _, l := range s.links {
			if l != nil && !l.retired && len(l.pending) < maxPending {
				return l
			}
		}
		return nil
	}
	if old != nil {
		r.retire(old, fx)
	}
	l := &link{server: s, conn: conn, pending: make(map[uint16]*try), opened: now}
	s.links[i] = l
	r.all.Add(1)
	go r.readUDP(l)
	return l
}

// tcpLink gives the connection to s, or one that is being made.
func (r *Resolver) tcpLink(s *server, now int64) *link {
	if s.tcp == nil {
		if r.closed {
			return nil
		}
		s.tcp = &link{
			server: s, tcp: true, pending: make(map[uint16]*try), opened: now,
			out: make(chan []byte, maxTCPQueue), quit: make(chan struct{}),
		}
		r.all.Add(1)
		go r.readTCP(s.tcp)
	}
	if len(s.tcp.pending) >= maxPending {
		return nil
	}
	return s.tcp
}

// write sends a datagram. Runs on: the driver, without mu.
func (l *link) write(r *Resolver, b []byte) {
	// Not before each write, for the same reason that the driver's timer is left alone.
	if now := time.Now(); now.After(l.mayWrite) {
		l.mayWrite = now.Add(writeTimeout)
		l.conn.SetWriteDeadline(l.mayWrite.Add(writeTimeout))
	}
	_, err := l.conn.Write(b)
	if errors.Is(err, syscall.ECONNREFUSED) {
		// It tells of an earlier datagram, and this one has not been sent.
		r.unreachable(l)
		_, err = l.conn.Write(b)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		r.mu.Lock()
		r.st.SocketErrors++
		r.mu.Unlock()
	}
}

// close ends l; its goroutines see it. Once.
func (l *link) close(r *Resolver) {
	r.mu.Lock()
	if l.quit != nil {
		close(l.quit)
	}
	conn := l.conn
	r.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// readUDP takes answers from one socket until it is closed. One goroutine per socket.
func (r *Resolver) readUDP(l *link) {
	defer r.all.Done()
	buf := make([]byte, udpBuffer)
	for errs := 0; ; {
		n, err := l.conn.Read(buf)
		switch {
		case err == nil:
			errs = 0
			r.receive(l, buf[:n])
		case errors.Is(err, syscall.ECONNREFUSED) && errs < 100:
			errs++
			r.unreachable(l)
		default:
			r.broken(l)
			return
		}
	}
}

// unreachable hears that nobody listens at the server's port. Questions that have another server go there now, the others keep their times: a
// server that is started anew is back soon.
func (r *Resolver) unreachable(l *link) {
	now := r.now()
	var fx effects
	defer func() { r.finish(&fx) }()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaveOut(l.server, now)
	l.server.absent = true
	if r.o.EndUnreachable && !slices.ContainsFunc(r.servers, func(s *server) bool { return !s.absent }) {
		for r.oldest != nil {
			r.fail(r.oldest, now, &fx)
		}
	}
	if !slices.ContainsFunc(r.servers, func(s *server) bool { return !s.down }) {
		return
	}
	for _, t := range l.pending {
		if c := t.c; c != nil {
			t.lost = true
			if s := r.pick(c, true); s != nil && c.waits(s) == 0 {
				c.tryAt, c.turned = now, true
				r.arm(c, now)
			}
		}
	}
}

// broken hears that l is closed, by either side: what is pending on it is asked again.
func (r *Resolver) broken(l *link) {
	now := r.now()
	var fx effects
	r.mu.Lock()
	if !l.retired || len(l.pending) > 0 {
		r.retire(l, &fx)
		for _, t := range l.pending {
			c := t.c
			if t.server.probe == t {
				t.server.probe = nil
			}
			r.drop(t, &fx)
			if c == nil {
				continue
			}
			if l.tcp {
				c.suspect = false
				if c.tcpFailures++; c.tcpFailures >= MaxTCPFailures {
					c.failed |= 1 << l.server.index
					c.tcpFailures = 0
				}
			}
			r.next(c, now, &fx)
		}
	}
	r.mu.Unlock()
	r.finish(&fx)
}

// next sends c to whoever may still know, now, or waits for what is on its way, or ends it. Runs under mu.
func (r *Resolver) next(c *call, now int64, fx *effects) {
	switch s := r.pick(c, c.failed != 0); {
	case s != nil && c.sent < MaxTries && c.waits(s) == 0:
		c.tryAt, c.turned = now, true
		r.arm(c, now)
	case slices.ContainsFunc(c.tries, func(t *try) bool { return !t.server.down }):
		// A timed try is still to come too, if there is somebody to send it to.
	default:
		r.fail(c, now, fx)
	}
}

// readTCP connects, and takes answers until the connection ends. One goroutine per connection, and one that writes.
func (r *Resolver) readTCP(l *link) {
	defer r.all.Done()
	defer r.broken(l)
	conn, err := r.dialTCP(l)
	if err != nil {
		return
	}
	buf := make([]byte, 4096)
	for {
		// A connection without questions is closed when it has been idle; one with questions is given another such time.
		var n int
		for patience := 2; n < 2; {
			conn.SetReadDeadline(time.Now().Add(r.idleTimeout))
			m, err := conn.Read(buf[n:2])
			n += m
			if err == nil {
				continue
			}
			if patience--; patience == 0 || n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !r.busy(l) {
				return
			}
		}
		size := int(binary.BigEndian.Uint16(buf))
		if size > len(buf) {
			buf = make([]byte, 1<<16)
		}
		conn.SetReadDeadline(time.Now().Add(r.dripTimeout))
		if _, err := io.ReadFull(conn, buf[:size]); err != nil {
			return
		}
		r.receive(l, buf[:size])
	}
}

func (r *Resolver) busy(l *link) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(l.pending) > 0
}

// dialTCP connects l and starts its writer.
func (r *Resolver) dialTCP(l *link) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(r.ctx, dialTimeout)
	conn, err := r.o.Dial(ctx, "tcp", l.server.name)
	cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.st.SocketErrors++
		return nil, err
	}
	select {
	case <-l.quit:
		conn.Close()
		return nil, net.ErrClosed
	default:
	}
	l.conn = conn
	r.all.Add(1)
	go r.writeTCP(l)
	return conn, nil
}

// writeTCP writes what is queued, until l is closed.
func (r *Resolver) writeTCP(l *link) {
	defer r.all.Done()
	for {
		select {
		case b := <-l.out:
			l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := l.conn.Write(b); err != nil {
				l.conn.Close() // the reader sees it
				return
			}
		case <-l.quit:
			return
		}
	}
}

// receive judges a message that came on l. msg is borrowed.
func (r *Resolver) receive(l *link, msg []byte) {
	if len(msg) < headerBytes {
		r.mu.Lock()
		r.st.Strays++
		r.mu.Unlock()
		return
	}
	id := binary.BigEndian.Uint16(msg)
	r.mu.Lock()
	t := l.pending[id]
	var typ spf.QueryType
	if t == nil {
		r.st.Strays++
	} else if t.c != nil {
		typ = t.c.q.Type
	}
	r.mu.Unlock()
	if t == nil {
		return
	}
	// t.question never changes; decoding, the costly part, goes without mu.
	rep := decode(msg, t.question, typ, l.tcp || r.o.PlainCase)
	now := r.now()
	var fx effects
	r.mu.Lock()
	if l.pending[id] == t {
		r.take(t, rep, now, &fx)
	} else {
		r.st.Strays++
	}
	r.mu.Unlock()
	r.finish(&fx)
}

// take acts on an answer to t, which is pending. Runs on: a reader goroutine, under mu.
func (r *Resolver) take(t *try, rep reply, now int64, fx *effects) {
	c := t.c
	if rep.bare && !t.edns {
		rep.verdict = wrongQuestion
	}
	switch rep.verdict {
	case wrongQuestion:
		r.st.WrongQuestion++
		return
	case wrongCase:
		r.st.WrongCase++
		if c != nil {
			c.suspect = true
		}
		return
	case malformed:
		r.st.Malformed++
		if t.link.tcp {
			break // asking again the same way would bring the same
		}
		if c != nil {
			c.suspect = true
		}
		return
	}
	t.server.absent = false
	if rep.verdict == refused {
		r.unheard(t.server, now) // it is there, but not for us
	} else {
		r.heard(t, now)
	}
	t.link.heardAt = now
	if p := t.server.probe; p == t || p != nil && p.c != nil && !t.server.down {
		t.server.probe = nil // it has done its work, or is a try like others from now on
	} else if p != nil && !t.server.down {
		r.dropProbe(t.server, fx)
	}
	r.drop(t, fx)
	if c == nil {
		return
	}
	switch rep.verdict {
	case answered:
		r.st.Answers++
		if rep.authentic {
			r.st.Authentic++
		}
		if !t.edns && c.plain {
			t.server.plainUntil = now + int64(PlainFor)
		}
		if t.again {
			r.resume(c.zone, now)
		}
		r.cache.keep(c.q, rep.answer, rep.ttl, now)
		r.end(c, rep.answer, fx)
		return
	case truncated:
		r.st.Truncated++
		if !t.link.tcp {
			if !c.byTCP { // else another try was truncated before
				c.byTCP, c.prefer, c.tryAt = true, t.server, now
				r.arm(c, now)
			}
			return
		}
	case noEDNS:
		if t.edns {
			if !c.plain {
				r.st.WithoutEDNS++
				c.plain, c.prefer, c.tryAt = true, t.server, now
				r.arm(c, now)
			}
			return
		}
		r.st.OtherRcodes++
	case tooBig:
		r.st.TooBig++
		r.fail(c, now, fx) // others would say the same
		return
	case servFail:
		r.st.ServFail++
	case refused:
		r.st.Refused++
	case otherRcode:
		r.st.OtherRcodes++
	}
	// This server has failed c; its other tries would bring the same.
	c.failed |= 1 << t.server.index
	for i := len(c.tries) - 1; i >= 0; i-- {
		if c.tries[i].server == t.server {
			r.drop(c.tries[i], fx)
		}
	}
	r.next(c, now, fx)
}

// entropy is crypto/rand, read some at a time. Guarded by Resolver.mu.
type entropy struct {
	buf  [256]byte
	left int
}

func (e *entropy) read(b []byte) {
	if e.left < len(b) {
		rand.Read(e.buf[:]) // never fails
		e.left = len(e.buf)
	}
	e.left -= len(b)
	copy(b, e.buf[e.left:e.left+len(b)])
	clear(e.buf[e.left : e.left+len(b)])
}

func (e *entropy) uint16() uint16 {
	var b [2]byte
	e.read(b[:])
	return binary.BigEndian.Uint16(b[:])
}

// below gives a number from 0 to n-1; n is small against 65,536, so that the bias does not matter.
func (e *entropy) below(n int) int { return int(e.uint16()) % n }
