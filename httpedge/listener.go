package httpedge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fastedge/fastedge/internal/proxyhdr"
	"github.com/fastedge/fastedge/policy"
)

// door accepts the connections of one listener. fasthttp ends its loop on any error of Accept, so those that pass are waited out here.
type door struct {
	net.Listener
	srv   *Server
	index int
	at    *Listener
	done  chan struct{}
}

func newDoor(s *Server, index int) (*door, error) {
	at := &s.o.Listeners[index]
	ln, err := net.Listen("tcp", at.Address)
	if err != nil {
		return nil, fmt.Errorf("listener %q: %w", at.Name, err)
	}
	return &door{Listener: ln, srv: s, index: index, at: at, done: make(chan struct{})}, nil
}

// Accept gives the next connection that there is room for. Runs on: fasthttp's accept goroutine, which never waits for a client.
func (d *door) Accept() (net.Conn, error) {
	const longest = time.Second
	wait := 5 * time.Millisecond
	for {
		raw, err := d.Listener.Accept()
		switch {
		case err == nil:
			wait = 5 * time.Millisecond
			if c := d.admit(raw); c != nil {
				return c, nil
			}
		case passes(err):
			d.srv.log.Error("HTTP connections can't be accepted for now", "listener", d.at.Name, "error", err)
			select {
			case <-time.After(wait):
			case <-d.done:
			}
			wait = min(2*wait, longest)
		default:
			return nil, err
		}
	}
}

// passes says that an error of accept is over by itself: no descriptors, no memory, a client that has left.
func passes(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR, syscall.EPROTO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Close ends Accept; safe to call twice.
func (d *door) Close() error {
	d.srv.mu.Lock()
	select {
	case <-d.done:
	default:
		close(d.done)
	}
	d.srv.mu.Unlock()
	return d.Listener.Close()
}

// canned are the answers to whom no request is read from. A relay that speaks the plain protocol takes a 4xx for good, unless X-Smtp-Reply
// says that it is not.
const (
	canned503 = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n" + cannedEnd
	canned429 = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 60\r\n" + cannedEnd
	cannedEnd = "X-Smtp-Reply: 421; message=\"4.3.2 Too many connections, try again later\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

// admit counts a connection, or turns it away.
func (d *door) admit(raw net.Conn) *conn {
	c := &conn{Conn: raw, raw: raw, srv: d.srv, index: d.index, at: d.at}
	c.peer = addrPort(raw.RemoteAddr())
	d.srv.mu.Lock()
	room := len(d.srv.conns) < d.srv.o.MaxConnections
	if room {
		d.srv.conns[c] = struct{}{}
	}
	d.srv.mu.Unlock()
	if !room {
		d.srv.meter.Connection(d.index, ConnOverLimit)
		if d.at.TLS == nil {
			raw.SetWriteDeadline(time.Now().Add(time.Second)) // it goes into an empty buffer of the kernel's
			io.WriteString(raw, canned503)
		}
		raw.Close()
		return nil
	}
	return c
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}

// conn is one connection. What comes before the first request (PROXY header, gate, handshake) is done by its first Read, on the goroutine that
// serves it.
type conn struct {
	net.Conn // what requests are read from: raw, or TLS over it
	raw      net.Conn
	srv      *Server
	index    int
	at       *Listener

	peer    netip.AddrPort  // the other end of the socket
	client  netip.AddrPort  // who it is for: the peer, or whom a proxy names
	proxy   *netip.AddrPort // the peer, when it is a proxy
	tls     *policy.TLS
	left    []byte // read behind the PROXY header
	arrived bool
	ended   bool        // the client has sent everything, or can't be heard any more
	body    whole       // of the request that is being answered
	pace    pace        // of that body
	line    firstLine   // of that request
	fields  fields      // that it has
	cut     atomic.Bool // nothing more is to be read
	lingers atomic.Bool // the client may still be sending when we are done

	// While it drains, fasthttp closes a connection that has sent nothing for some time from another goroutine, also in the middle of arrive.
	mu      sync.Mutex // of Conn, when it changes or is closed, and of what follows
	gated   bool       // counted by the Gate
	counted bool
	closed  bool
}

// requestOver is called when a request is answered, and its body is read to the end, or the connection will be closed.
func (c *conn) requestOver(h *fasthttp.RequestHeader) {
	header := len(h.RawHeaders())
	if header == 0 {
		header = len("\r\n")
	}
	c.line.next(header, max(h.ContentLength(), 0))
}

var errTurnedAway = errors.New("httpedge: turned away")

func (c *conn) Read(p []byte) (int, error) {
	if !c.arrived {
		c.arrived = true
		if err := c.arriveSafely(); err != nil {
			c.raw.Close()
			return 0, err
		}
		c.Conn.SetReadDeadline(time.Now().Add(c.srv.o.HeaderTimeout))
	}
	if c.pace.on {
		return c.readPaced(p)
	}
	n, err := c.Conn.Read(p)
	c.line.take(p[:n])
	if err != nil {
		c.ended = true
	}
	return n, err
}

// Close is called by fasthttp, sometimes twice; the server's own Close closes raw.
func (c *conn) Close() error {
	if c.lingers.Swap(false) {
		c.linger()
	}
	c.srv.mu.Lock()
	delete(c.srv.conns, c)
	c.srv.mu.Unlock()
	c.mu.Lock()
	was, inner := c.closed, c.Conn
	c.closed = true
	if !was && c.gated {
		c.at.Gate.Leave(c.client.Addr())
	}
	if !was && c.counted {
		c.srv.meter.OpenConnections(c.index, -1)
	}
	c.mu.Unlock()
	return inner.Close()
}

// arriveSafely is arrive, whose panic costs one connection.
func (c *conn) arriveSafely() (err error) {
	defer func() {
		if r := recover(); r != nil {
			c.srv.panicked(r)
			err = errPanicked
		}
	}()
	return c.arrive()
}

// lingerTime is how long a client that is still sending is listened to after its answer.
const lingerTime = 2 * time.Second

// linger reads on for a while: closing at once makes the kernel send a reset, which overtakes the answer.
func (c *conn) linger() {
	w, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		w, ok = c.raw.(interface{ CloseWrite() error })
	}
	if !ok || w.CloseWrite() != nil {
		return
	}
	c.raw.SetReadDeadline(time.Now().Add(lingerTime))
	b := c.srv.piece()
	defer c.srv.pieces.Put(b)
	for {
		if _, err := c.raw.Read(b[:]); err != nil {
			return
		}
	}
}

// arrive finds out whose connection it is, and whether it is wanted.
func (c *conn) arrive() error {
	c.client = c.peer
	var inner net.Conn = c.raw
	if c.at.Proxies != nil && c.at.Proxies(c.peer.Addr()) {
		if err := c.readProxy(); err != nil {
			return err
		}
		if len(c.left) > 0 {
			inner = &ahead{c.raw, c.left}
			c.left = nil
		}
	}
	switch limit := c.at.Gate.Admit(c.client.Addr(), time.Now()); limit {
	case policy.LimitNone:
		c.mu.Lock()
		closed := c.closed
		c.gated = c.at.Gate != nil && !closed
		c.mu.Unlock()
		if closed {
			c.at.Gate.Leave(c.client.Addr())
			return net.ErrClosed
		}
	default:
		c.srv.meter.Connection(c.index, map[policy.Limit]ConnResult{
			policy.LimitPerAddress: ConnPerAddress, policy.LimitPerPrefix: ConnPerPrefix, policy.LimitRate: ConnRate,
		}[limit])
		if c.at.TLS == nil {
			io.WriteString(c.raw, canned429)
		}
		return errTurnedAway
	}
	if c.at.TLS != nil {
		t, err := c.handshake(inner)
		if err != nil {
			return err
		}
		inner = t
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.Conn, c.counted = inner, true
	c.srv.meter.Connection(c.index, ConnAccepted)
	c.srv.meter.OpenConnections(c.index, 1)
	return nil
}

// maxProxyHeader is more than any PROXY header takes.
const maxProxyHeader = 8 << 10

// readProxy reads the header that a listed proxy must send.
func (c *conn) readProxy() error {
	c.raw.SetReadDeadline(time.Now().Add(c.srv.o.ProxyTimeout))
	buf := make([]byte, 0, 536)
	for {
		n, err := c.raw.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		whole, bad := 0, error(nil)
		if len(buf) > 0 {
			whole, bad = proxyhdr.Frame(buf)
		}
		switch {
		case bad != nil:
			return c.badProxy(EventProxyBad, bad)
		case whole > 0:
			return c.takeProxy(buf[:whole], buf[whole:])
		case err != nil && len(buf) == 0:
			return io.EOF // a health check
		case err != nil:
			return c.badProxy(EventProxyMissing, proxyhdr.ErrTime)
		case len(buf) == cap(buf) && cap(buf) >= maxProxyHeader:
			return c.badProxy(EventProxyBad, proxyhdr.ErrMissing)
		case len(buf) == cap(buf):
			buf = append(make([]byte, 0, maxProxyHeader), buf...)
		}
	}
}

func (c *conn) takeProxy(header, rest []byte) error {
	h, err := new(proxyhdr.Reader).Parse(header)
	if err != nil {
		return c.badProxy(EventProxyBad, err)
	}
	proxy := c.peer
	c.proxy, c.tls, c.left = &proxy, h.TLS, rest
	switch {
	case h.Client.IsValid():
		c.client = h.Client
	case !h.Local:
		c.client = netip.AddrPort{} // anybody
	}
	return nil
}

func (c *conn) badProxy(e Event, why error) error {
	c.srv.meter.Event(e)
	if c.srv.log.Enabled(noContext, slog.LevelInfo) {
		c.srv.log.LogAttrs(noContext, slog.LevelInfo, "closed",
			slog.String("listener", c.at.Name), slog.String("client", c.peer.String()), slog.String("why", why.Error()))
	}
	return errTurnedAway
}

func (c *conn) handshake(inner net.Conn) (net.Conn, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), c.srv.o.HandshakeTimeout)
	defer cancel()
	inner.SetDeadline(time.Time{})
	t := tls.Server(inner, c.at.TLS)
	err := t.HandshakeContext(ctx)
	if err == nil {
		state := t.ConnectionState()
		facts := policy.TLS{Version: tls.VersionName(state.Version), Cipher: tls.CipherSuiteName(state.CipherSuite), ServerName: state.ServerName}
		c.tls = &facts
		if c.at.TLSFacts != nil {
			c.tls = c.at.TLSFacts(state)
		}
		if c.tls == nil {
			err = errTurnedAway
		}
	}
	if err != nil {
		c.srv.meter.Handshake(false, "", time.Since(start))
		c.srv.meter.Event(EventHandshakeFailed)
		return nil, errTurnedAway
	}
	c.srv.meter.Handshake(true, c.tls.Version, time.Since(start))
	return t, nil
}

// ahead is a connection of which some bytes are read already.
type ahead struct {
	net.Conn
	left []byte
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(a.left) > 0 {
		n := copy(p, a.left)
		a.left = a.left[n:]
		return n, nil
	}
	return a.Conn.Read(p)
}
