package loop

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// plainBytes is how much is decrypted at a time, into a buffer of the loop's: as much as gnet reads at a time. A command line must fit
// into half of it.
const plainBytes = 64 << 10

// maxKeptCipher is how much of its buffer for records a loop keeps between bursts.
const maxKeptCipher = 128 << 10

var (
	// RFC 3207 §4: TLS not available due to temporary reason.
	replyHandshakes = smtpcodec.Reply{Code: 454, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 7, Detail: 0}, Text: "TLS not available now: too many handshakes, see limits.handshakes"}
	replyNoTLS      = smtpcodec.Reply{Code: 454, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 7, Detail: 0}, Text: "TLS not available now"}

	errHandshakeTime = errors.New("handshake not done in time")
	errHandshakeLeft = errors.New("client left during the handshake")
	errAborted       = errors.New("connection gone") // what the handshake's goroutine sees then
	errBroken        = errors.New("broken by a panic")
)

// wouldBlock is what reading gives when no more ciphertext is there. crypto/tls keeps an error of its transport for good unless it is a
// temporary net.Error.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "no more bytes now" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// secure is the TLS of a connection. It is also what its tls.Conn takes for the network: during the handshake it reads and writes memory
// on the handshake's goroutine, afterwards it reads gnet's buffer and writes the loop's on the loop.
//
// Nothing here waits for a client. Whoever writes to tls or reads from it calls sendRecords afterwards, once.
type secure struct {
	c   *conn
	tls *tls.Conn
	// hs is set until the loop has taken note of the handshake's end: so long nobody but the handshake's goroutine touches tls.
	hs    *handshake
	left  []byte // ciphertext that came in during the handshake and is not part of it
	stash []byte // plaintext that the session has not taken yet
	full  bool   // the last peek may have left something undecrypted

	header [5]byte // of the record that comes in
	known  uint8   // bytes of it
	record int     // bytes of the record that are still to come

	err  error // reading is over for good; io.EOF when the client has said so
	leaf *x509.Certificate
}

// handshake is one TLS handshake under way. It has a goroutine of its own, because crypto/tls can't be suspended in the midst of one, and
// holds one of the server's CPU tokens only while it computes.
type handshake struct {
	s        *secure
	lp       *loop
	peer     netip.AddrPort
	begun    time.Time
	deadline time.Time
	came     bool // some byte has come in; of the loop

	mu      sync.Mutex
	more    sync.Cond // in has something, or aborted
	in      []byte    // ciphertext from the client, not read yet
	out     []byte    // ciphertext for the client, not sent yet
	held    bool      // the loop has more for in
	posted  bool      // the loop will look
	aborted bool      // nobody wants the result
	done    bool      // with err, facts, stack

	err   error
	facts *policy.TLS
	stack []byte // err is a panic
}

// claimHandshake takes a place among limits.handshakes.
func (s *Server) claimHandshake() bool { return claim(&s.handshakes, s.o.MaxHandshakes) }

// startHandshake begins a handshake, for which a place has been claimed. c.phase tells how it goes on.
func (c *conn) startHandshake(now time.Time) {
	l, srv := c.lst(), c.lp.srv
	s := &secure{c: c}
	h := &handshake{s: s, lp: c.lp, peer: c.peer().Addr, begun: now, deadline: now.Add(srv.o.HandshakeTimeout)}
	h.more.L = &h.mu
	s.hs, s.tls = h, tls.Server(s, l.TLS)
	c.sec, c.phase = s, phaseHandshake
	go h.run(srv, l.TLSFacts)
	c.hasten()
	c.feedHandshake(now)
}

// run shakes hands. Runs on: a goroutine of its own.
func (h *handshake) run(srv *Server, facts func(tls.ConnectionState) *policy.TLS) {
	defer srv.handshakes.Add(-1)
	srv.tokens <- struct{}{}
	err := h.shake(facts)
	<-srv.tokens
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err, h.done = err, true
	h.post()
}

func (h *handshake) shake(facts func(tls.ConnectionState) *policy.TLS) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err, h.stack = fmt.Errorf("panic: %v", r), debug.Stack()
		}
	}()
	if err := h.s.tls.Handshake(); err != nil {
		return err
	}
	if facts == nil {
		facts = plainFacts
	}
	if h.facts = facts(h.s.tls.ConnectionState()); h.facts == nil {
		return errors.New("TLS facts refused the connection")
	}
	return nil
}

// plainFacts are those for a listener that does not ask for more.
func plainFacts(cs tls.ConnectionState) *policy.TLS {
	return &policy.TLS{
		Version:    strings.ReplaceAll(tls.VersionName(cs.Version), " ", ""), // "TLS1.3"
		Cipher:     tls.CipherSuiteName(cs.CipherSuite),
		ServerName: cs.ServerName,
	}
}

// post makes the loop look at what has changed. h.mu is held.
func (h *handshake) post() {
	if !h.posted && !h.aborted {
		h.posted = true
		h.lp.post(task{kind: taskResume, resume: func(now time.Time) { h.lp.handshaking(h, now) }})
	}
}

// abort ends the goroutine; the connection is gone. Runs on: event loop.
func (h *handshake) abort() {
	h.mu.Lock()
	h.aborted, h.in = true, nil
	h.mu.Unlock()
	h.more.Signal()
}

// read waits for ciphertext, without a token. Runs on: the handshake's goroutine.
func (h *handshake) read(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.in) == 0 && !h.aborted {
		if len(h.out) > 0 || h.held {
			h.post()
		}
		tokens := h.lp.srv.tokens
		<-tokens
		for len(h.in) == 0 && !h.aborted {
			h.more.Wait()
		}
		h.mu.Unlock()
		tokens <- struct{}{}
		h.mu.Lock()
	}
	if h.aborted {
		return 0, errAborted
	}
	n = copy(p, h.in)
	if h.in = h.in[n:]; len(h.in) == 0 {
		h.in = nil
	}
	return n, nil
}

// feedHandshake hands what has come in to the handshake's goroutine, bounded like any other stash. Runs on: event loop.
func (c *conn) feedHandshake(now time.Time) {
	h, in := c.sec.hs, c.rawPeek()
	if len(in) == 0 {
		return
	}
	h.came = true
	h.mu.Lock()
	n := min(len(in), max(c.lp.srv.o.MaxStashBytes-len(h.in), 0))
	h.in = append(h.in, in[:n]...)
	h.held = n < len(in)
	h.mu.Unlock()
	h.more.Signal()
	c.rawConsume(n)
	if n < len(in) {
		c.boundStash(now)
	} else if c.paused {
		c.resume()
	}
}

// handshaking sends what the handshake has to say, and goes on with the connection when it is over. Runs on: event loop.
func (lp *loop) handshaking(h *handshake, now time.Time) {
	c := h.s.c
	defer lp.recovered(c)
	h.mu.Lock()
	out, done := h.out, h.done
	h.out, h.posted = nil, false
	h.mu.Unlock()
	if c.closed || c.phase != phaseHandshake {
		return
	}
	if len(out) > 0 {
		c.rawWrite(out)
	}
	switch {
	case c.closed:
	case !done:
		c.feedHandshake(now)
	case h.err != nil:
		if h.stack != nil {
			lp.meter.Event(EventPanic)
			lp.log.Error("panic in a TLS handshake", "panic", h.err, "session", c.id().String(), "stack", string(h.stack))
		}
		c.handshakeFailed(h.err, now)
		c.finish(now)
	default:
		lp.meter.Handshake(true, h.facts.Version, now.Sub(h.begun))
		h.s.hs, h.s.left = nil, h.in
		if c.pre != nil { // implicit TLS
			p := c.pre.peer
			p.TLS = h.facts
			c.greet(p, now)
			return
		}
		lp.cur = c
		c.phase = phaseOpen
		o, step := c.sess.Secured(h.facts, now, lp.out[:0])
		c.burst(now, o, step)
	}
}

// handshakeFailed counts and logs; the caller ends the connection.
func (c *conn) handshakeFailed(why error, now time.Time) {
	h := c.sec.hs
	c.lp.meter.Event(EventHandshakeFailed)
	c.lp.meter.Handshake(false, "", now.Sub(h.begun))
	if h.came { // who connects and leaves is a health check, or looks for open ports
		c.lp.logEnd(c, "TLS handshake: "+why.Error())
	}
}

// Read is the transport's. It never gives more than the rest of one record: the tls.Conn keeps its buffer for good, and with several
// records in it that grows to twice what one of them needs (45 KB instead of 26 KB for a connection after a message in full records).
func (s *secure) Read(p []byte) (n int, err error) {
	if s.record > 0 {
		if n, err = s.read(p[:min(len(p), s.record)]); n > 0 {
			s.record -= n
		}
		return n, err
	}
	n, err = s.read(p[:min(len(p), len(s.header)-int(s.known))])
	if n > 0 {
		s.known += uint8(copy(s.header[s.known:], p[:n]))
	}
	if int(s.known) == len(s.header) { // type, version, length: RFC 8446 §5.1
		s.known, s.record = 0, int(s.header[3])<<8|int(s.header[4])
	}
	return n, err
}

func (s *secure) read(p []byte) (int, error) {
	if s.hs != nil {
		return s.hs.read(p)
	}
	if len(s.left) > 0 {
		n := copy(p, s.left)
		if s.left = s.left[n:]; len(s.left) == 0 {
			s.left = nil
		}
		return n, nil
	}
	if n := s.c.rawRead(p); n > 0 {
		return n, nil
	}
	return 0, wouldBlock{}
}

// Write is the transport's. It never fails: when the connection is gone nobody looks at the bytes.
func (s *secure) Write(p []byte) (int, error) {
	if h := s.hs; h != nil {
		h.mu.Lock()
		h.out = append(h.out, p...)
		h.mu.Unlock()
	} else {
		s.c.lp.cipher = append(s.c.lp.cipher, p...)
	}
	return len(p), nil
}

// Close and the rest make a net.Conn of it. Callbacks of the tls.Config may ask for the addresses during the handshake.
func (s *secure) Close() error                     { return nil }
func (s *secure) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *secure) SetDeadline(time.Time) error      { return nil }
func (s *secure) SetReadDeadline(time.Time) error  { return nil }
func (s *secure) SetWriteDeadline(time.Time) error { return nil }
func (s *secure) RemoteAddr() net.Addr {
	if s.hs != nil {
		return net.TCPAddrFromAddrPort(s.hs.peer)
	}
	return &net.TCPAddr{}
}

// ServesCertificate is for the tls.Config's GetCertificate, which finds this method on ClientHelloInfo.Conn: leaf is the certificate that
// it has chosen. Channel binding by tls-server-end-point (RFC 5929 §4) can't be had without.
func (s *secure) ServesCertificate(leaf *x509.Certificate) { s.leaf = leaf }

// peek decrypts what has come in. What it gives is borrowed until consume, which must follow, and it is the loop's one buffer: until then
// no other connection may be looked at.
func (s *secure) peek() []byte {
	lp := s.c.lp
	if lp.plain == nil {
		lp.plain = make([]byte, plainBytes)
	}
	n := copy(lp.plain, s.stash)
	for n < len(lp.plain) && s.err == nil {
		// Until there is nothing more: what stays inside the tls.Conn is announced by nobody.
		m, err := s.tls.Read(lp.plain[n:])
		n += m
		if err == error(wouldBlock{}) {
			break
		}
		s.err = err
	}
	s.full = n == len(lp.plain)
	lp.peeked = lp.plain[:n]
	s.sendRecords() // an alert, or the answer to a KeyUpdate
	return lp.peeked
}

// consume drops n bytes of what peek gave and keeps the rest.
func (s *secure) consume(n int) {
	rest := s.c.lp.peeked[n:]
	s.c.lp.peeked = nil
	if cap(s.stash) > 4*len(rest) { // half a line does not keep what a burst needed; nothing keeps nothing
		s.stash = nil
	}
	s.stash = append(s.stash[:0], rest...)
}

// write encrypts p and sends it.
func (s *secure) write(p []byte) {
	if s.hs != nil {
		return // nothing can be said yet
	}
	if _, err := s.tls.Write(p); err != nil && s.err == nil {
		s.err = err // an alert was sent: the connection ends with the burst
	}
	s.sendRecords()
}

// closeNotify says that we are done (RFC 8446 §6.1); the client's own close_notify is not waited for.
func (s *secure) closeNotify() {
	if s.hs != nil || s.err != nil && s.err != io.EOF {
		return
	}
	_ = s.tls.CloseWrite()
	s.sendRecords()
}

// sendRecords writes what the tls.Conn has made. Like any write it may close the connection.
func (s *secure) sendRecords() {
	lp := s.c.lp
	if len(lp.cipher) == 0 {
		return
	}
	s.c.rawWrite(lp.cipher)
	if cap(lp.cipher) > maxKeptCipher {
		lp.cipher = nil
	}
	lp.cipher = lp.cipher[:0]
}
