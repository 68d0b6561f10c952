package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// sendBufferBytes is the kernel's buffer for replies. Without a bound it grows to megabytes for a client that never reads.
const sendBufferBytes = 128 << 10

// engine is one gnet engine: all TCP listeners share one; a unix socket has its own, because it switches SO_REUSEPORT off, and
// without that a burst of connections is accepted before any of them is counted.
type engine struct {
	gnet.BuiltinEventEngine
	srv       *Server
	listeners []int    // indexes into Options.Listeners
	addrs     []string // what each is bound to, as gnet names it in Conn.LocalAddr
	urls      []string
	loops     int
	reserved  []reservation

	booted chan struct{}
	once   sync.Once
	eng    gnet.Engine

	mu     sync.Mutex
	byLoop map[gnet.EventLoop]*loop
}

// executor runs a function on a loop's goroutine.
type executor interface{ execute(f func()) }

type loopExecutor struct{ el gnet.EventLoop }

type runnable func()

func (r runnable) Run(context.Context) error { r(); return nil }

func (x loopExecutor) execute(f func()) { _ = x.el.Execute(context.Background(), runnable(f)) }

func (s *Server) newEngines() (err error) {
	tcp := &engine{srv: s, loops: s.o.Loops}
	defer func() {
		if err != nil {
			tcp.release()
		}
	}()
	for i, l := range s.o.Listeners {
		e, addr, target := tcp, l.Address, ""
		switch l.Network {
		case "tcp":
			bound, hold, err := reserve(l.Address)
			if err != nil {
				return fmt.Errorf("loop: listener %q: %w", l.Name, err)
			}
			tcp.reserved = append(tcp.reserved, hold)
			if slices.Contains(tcp.addrs, bound) {
				return fmt.Errorf("loop: listener %q: %s is another listener's address too", l.Name, bound)
			}
			addr, target = bound, "tcp://"+bound
		case "unix":
			var err error
			if target, err = unixURL(l.Address); err == nil {
				err = clearSocket(l.Address)
			}
			if err != nil {
				return fmt.Errorf("loop: listener %q: %w", l.Name, err)
			}
			e = &engine{srv: s, loops: 1}
		default:
			return fmt.Errorf("loop: listener %q: unknown network %q", l.Name, l.Network)
		}
		e.listeners = append(e.listeners, i)
		e.addrs = append(e.addrs, addr)
		e.urls = append(e.urls, target)
		if e != tcp {
			s.addEngine(e)
		}
	}
	if len(tcp.listeners) > 0 {
		s.addEngine(tcp)
	}
	return nil
}

func (s *Server) addEngine(e *engine) {
	e.booted = make(chan struct{})
	e.byLoop = make(map[gnet.EventLoop]*loop)
	s.engines = append(s.engines, e)
}

// reservation holds a port between New and the moment gnet has bound it: bound, not listening, so that no client can connect to it.
type reservation struct{ fd int }

func (r reservation) release() { unix.Close(r.fd) }

// reserve finds out whether address is free and which port 0 picks: every loop opens a listener of its own on the same port, so the
// port must be known before gnet starts. The first bind goes without SO_REUSEPORT, because with it a second server on the same port
// would not be noticed. bound is the address as gnet will name it.
func reserve(address string) (bound string, r reservation, err error) {
	tcp, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return "", r, err
	}
	fd, port, err := bindTCP(tcp)
	if err != nil && tcp.IP == nil && errors.Is(err, unix.EAFNOSUPPORT) {
		tcp.IP = net.IPv4zero // no IPv6 here
		fd, port, err = bindTCP(tcp)
	}
	if err != nil {
		return "", r, fmt.Errorf("bind %s: %w", address, err)
	}
	tcp.Port = port
	// The socket stays bound, so that the port is nobody else's until the loops have theirs.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		unix.Close(fd)
		return "", r, fmt.Errorf("bind %s: %w", address, err)
	}
	return tcp.String(), reservation{fd}, nil
}

func bindTCP(a *net.TCPAddr) (fd, port int, err error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: a.Port})
	if ip4 := a.IP.To4(); ip4 != nil {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(ip4)}
	} else if a.IP != nil {
		sa.(*unix.SockaddrInet6).Addr = [16]byte(a.IP.To16())
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, 0, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fd, 0, err
	}
	if family == unix.AF_INET6 && a.IP != nil {
		if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fd, 0, err
		}
	}
	if err = unix.Bind(fd, sa); err != nil {
		return fd, 0, err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fd, 0, err
	}
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		port = n.Port
	case *unix.SockaddrInet6:
		port = n.Port
	}
	return fd, port, nil
}

// unixURL gives the address of a socket for gnet, which parses a URL and cleans the path in it ("?" and "#" end it, "a/.." is nothing),
// and then removes whatever stands at the path it has found, folders and all that is in them included. It must be the one that was meant.
func unixURL(socket string) (string, error) {
	address := "unix://" + socket
	u, err := url.Parse(strings.ReplaceAll(address, "%", "%25"))
	if err != nil {
		return "", err
	}
	if found := path.Join(u.Host, u.Path); found != socket {
		return "", fmt.Errorf("%s would be read as %s: a socket needs a clean path without ? or #", socket, found)
	}
	return address, nil
}

// clearSocket removes a socket that an earlier process left behind. gnet would remove whatever stands there.
func clearSocket(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(path) // nobody listens
	}
	if err == nil {
		c.Close()
		return fmt.Errorf("%s is in use by another process", path)
	}
	// EAGAIN is a process that is too busy to take one more; for the rest it can't be known.
	return fmt.Errorf("%s may be in use by another process: %w", path, err)
}

func (e *engine) run() error {
	defer e.bootedNow()
	err := gnet.Rotate(e, e.urls,
		gnet.WithNumEventLoop(e.loops),
		gnet.WithReusePort(true),
		gnet.WithReuseAddr(true), // a successor may bind while old connections linger
		gnet.WithTCPNoDelay(gnet.TCPNoDelay),
		gnet.WithSocketSendBuffer(sendBufferBytes),
		gnet.WithLogger(gnetLogger{e.srv.log}),
	)
	return err
}

// bootedNow lets go of the reservations: gnet's own listeners hold the ports, or never will.
func (e *engine) bootedNow() {
	e.once.Do(func() {
		e.release()
		close(e.booted)
	})
}

func (e *engine) release() {
	for _, r := range e.reserved {
		r.release()
	}
}

// stop ends the engine and all its connections. It returns at once; run returns when all is closed.
func (e *engine) stop() {
	go func() {
		<-e.booted
		if e.eng.Validate() == nil {
			_ = e.eng.Stop(context.Background())
		}
	}()
}

// OnBoot is called before the loops run.
func (e *engine) OnBoot(eng gnet.Engine) gnet.Action {
	e.eng = eng
	e.bootedNow()
	return gnet.None
}

// loopOf gives the loop of a new connection. gnet does not list its loops, so each is met with its first connection.
func (e *engine) loopOf(gc gnet.Conn) *loop {
	el := gc.EventLoop()
	e.mu.Lock()
	defer e.mu.Unlock()
	lp := e.byLoop[el]
	if lp == nil {
		lp = e.srv.newLoop(loopExecutor{el})
		lp.epoll = epollOf(gc.Fd())
		e.byLoop[el] = lp
		e.srv.addLoop(lp)
	}
	return lp
}

func (s *Server) addLoop(lp *loop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	loops := append([]*loop(nil), *s.loops.Load()...)
	loops = append(loops, lp)
	s.loops.Store(&loops)
}

// OnOpen counts a new connection and begins its life, or refuses it. Runs on: event loop; must not block.
func (e *engine) OnOpen(gc gnet.Conn) (greeting []byte, action gnet.Action) {
	lp := e.loopOf(gc)
	now := time.Now()
	li := e.listenerOf(gc)
	l := &e.srv.o.Listeners[li]
	if !e.srv.admit() {
		lp.meter.Connection(li, ConnOverLimit)
		return lp.turnAway(l, &replyTooMany), gnet.Close
	}
	// Counted first: Drain, which sets the flag first, sees this connection or is seen by it.
	if e.srv.draining.Load() {
		e.srv.open.Add(-1)
		lp.meter.Connection(li, ConnDraining)
		return lp.turnAway(l, &replyDraining), gnet.Close
	}
	p := session.Peer{Addr: peerAddr(gc)}
	proxied := l.Proxies != nil && l.Network == "tcp" && l.Proxies(p.Addr.Addr())
	if !proxied {
		if limit := lp.ask(l, li, p.Addr.Addr(), now); limit != policy.LimitNone {
			e.srv.open.Add(-1)
			return lp.turnAway(l, limit.Reply()), gnet.Close
		}
	}
	if lp.conns.Load() == 0 {
		lp.checkRoom() // no tick has looked since the loop had its last connection
	}
	c := &conn{sock: socket{gc}, lp: lp, listener: uint16(li)}
	gc.SetContext(c)
	lp.conns.Add(1)
	lp.meter.OpenConnections(li, 1)
	c.place(time.Time{})
	defer lp.recovered(c)
	p.ID = lp.ids.Next(now)
	if proxied {
		c.wait(phaseProxy, p, now.Add(e.srv.o.ProxyTimeout))
		return nil, gnet.None
	}
	lp.meter.Connection(li, ConnAccepted)
	c.gated, c.first = l.Gate != nil, firstUnlisted
	p.MayRelay = l.Network == "unix" || l.MayRelay != nil && l.MayRelay(p.Addr.Addr())
	c.secureOrGreet(p, now)
	return nil, gnet.None
}

// turnAway gives what a client is told that gets no session: nothing where it expects a handshake.
func (lp *loop) turnAway(l *Listener, r *smtpcodec.Reply) []byte {
	if l.Implicit {
		return nil
	}
	return r.AppendTo(lp.out[:0])
}

// ask lets the listener's gate decide about a new client, and counts those that it does not let in. Leave must follow for the others.
func (lp *loop) ask(l *Listener, li int, client netip.Addr, now time.Time) policy.Limit {
	if l.Gate == nil {
		return policy.LimitNone
	}
	limit := l.Gate.Admit(client, now)
	switch limit {
	case policy.LimitNone:
	case policy.LimitPerAddress:
		lp.meter.Connection(li, ConnPerAddress)
	case policy.LimitPerPrefix:
		lp.meter.Connection(li, ConnPerPrefix)
	default:
		lp.meter.Connection(li, ConnRate)
	}
	return limit
}

// listenerOf tells on which listener the connection came in: gnet gives the listener's own address as the local one.
func (e *engine) listenerOf(gc gnet.Conn) int {
	if len(e.listeners) == 1 {
		return e.listeners[0]
	}
	local := gc.LocalAddr().String()
	if i := slices.Index(e.addrs, local); i >= 0 {
		return e.listeners[i]
	}
	panic("loop: connection on an unknown listener " + local)
}

// OnTraffic is called with new bytes. Runs on: event loop; must not block.
func (e *engine) OnTraffic(gc gnet.Conn) gnet.Action {
	c, ok := gc.Context().(*conn)
	if !ok || c.closed {
		return gnet.Close
	}
	now := time.Now()
	c.traffic(now)
	return gnet.None
}

func (c *conn) traffic(now time.Time) {
	defer c.lp.recovered(c)
	c.readable(now)
}

// OnClose is called once for every connection, whoever closed it. Runs on: event loop, possibly inside one of our own calls.
func (e *engine) OnClose(gc gnet.Conn, _ error) gnet.Action {
	if c, ok := gc.Context().(*conn); ok && !c.closed {
		defer c.lp.recovered(c)
		c.gone()
	}
	return gnet.None
}

// gnetLogger passes gnet's own lines on: its errors are warnings of ours, the rest is noise.
type gnetLogger struct{ log *slog.Logger }

func (g gnetLogger) Debugf(string, ...any) {}
func (g gnetLogger) Infof(string, ...any)  {}
func (g gnetLogger) Warnf(format string, args ...any) {
	g.log.Debug("gnet: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
}
func (g gnetLogger) Errorf(format string, args ...any) {
	g.log.Warn("gnet: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
}
func (g gnetLogger) Fatalf(format string, args ...any) {
	g.log.Error("gnet: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
}
