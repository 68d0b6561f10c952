//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"
)

// A step is one write and the replies that answer it. A session is a walk over steps; next chooses where to.
type step struct {
	send []byte
	want string // first digit of each reply, in order; "" waits for the server to close
	ack  bool   // the first of these replies acknowledges a message
}

// conn is one of options.connections. Its socket changes with every session.
type conn struct {
	fd     int
	step   *step
	got    int    // replies to step read so far
	unsent []byte // what the socket did not take of step.send; shared, read only

	// The reply line being read. Its first four octets say all that matters: code, and "-" if more lines follow.
	line    [4]byte
	lineLen int

	inSession int       // messages not yet begun in this session
	left      int       // messages (with -session-only: sessions) not yet begun after this session
	sentAt    time.Time // when the last octet of step.send was written
}

type generator struct {
	options
	ep    int
	conns []conn
	buf   []byte

	banner, ehlo, quit, eof step
	mail, rcpt, data, group step
	body, bodyGroup         step

	working    int // connections with work left
	held       int // connections waiting in -idle
	sessions   int
	good       int
	errors     int
	firstError string
	acks       []int32 // latency of each acknowledged message, microseconds

	started time.Time
	seconds float64
	cpu     time.Duration
}

func newGenerator(o options) (*generator, error) {
	if o.idle > 0 {
		o.connections, o.messages = o.idle, 1
	}
	if o.connections < 1 || o.messages < 1 || o.sources < 1 || o.sources > 250 {
		return nil, fmt.Errorf("-connections and -messages must be at least 1, -sources 1 to 250")
	}
	data, err := message(o.size)
	if err != nil {
		return nil, err
	}
	ep, err := syscall.EpollCreate1(0)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}

	const mail, rcpt, dataVerb = "MAIL FROM:<sender@client.example>\r\n", "RCPT TO:<recipient@bench.example>\r\n", "DATA\r\n"
	group := mail + rcpt + dataVerb
	g := &generator{
		options: o,
		ep:      ep,
		conns:   make([]conn, o.connections),
		buf:     make([]byte, 64<<10),
		acks:    make([]int32, 0, o.connections*o.messages),

		banner:    step{want: "2"},
		ehlo:      step{send: []byte("EHLO client.example\r\n"), want: "2"},
		quit:      step{send: []byte("QUIT\r\n"), want: "2"},
		eof:       step{},
		mail:      step{send: []byte(mail), want: "2"},
		rcpt:      step{send: []byte(rcpt), want: "2"},
		data:      step{send: []byte(dataVerb), want: "3"},
		group:     step{send: []byte(group), want: "223"},
		body:      step{send: data, want: "2", ack: true},
		bodyGroup: step{send: slices.Concat(data, []byte(group)), want: "2223", ack: true},
	}
	return g, nil
}

// run opens the connections and drives them until each has done its share, failed, or time is up. With -idle it
// returns as soon as all are held, leaving them open.
func (g *generator) run() error {
	g.started = time.Now()
	deadline := g.started.Add(g.timeout)
	cpu := ownCPU()
	g.working = len(g.conns)
	// A backlog is finite: with many connections to open, answer between bursts of them.
	const burst = 200
	opened := 0

	events := make([]syscall.EpollEvent, 256)
	for g.working > 0 {
		for range min(burst, len(g.conns)-opened) {
			c := &g.conns[opened]
			c.left = g.messages
			if err := g.connect(opened); err != nil {
				return err
			}
			opened++
		}
		wait := time.Until(deadline)
		if wait <= 0 {
			g.errors += g.working
			g.note(fmt.Sprintf("%d connections not done after %v", g.working, g.timeout))
			break
		}
		if opened < len(g.conns) {
			wait = time.Millisecond
		}
		n, err := syscall.EpollWait(g.ep, events, max(1, int(wait.Milliseconds())))
		if err != nil && err != syscall.EINTR {
			return os.NewSyscallError("epoll_wait", err)
		}
		for i := range n {
			// The slot travels in the event's data; Go names those 32 bits Fd.
			slot := int(events[i].Fd)
			if events[i].Events&syscall.EPOLLOUT != 0 && len(g.conns[slot].unsent) > 0 {
				g.flush(slot)
			}
			if events[i].Events&^syscall.EPOLLOUT != 0 {
				g.read(slot)
			}
		}
	}
	g.seconds = time.Since(g.started).Seconds()
	g.cpu = ownCPU() - cpu
	return nil
}

// connect begins the next session of a slot. Running out of descriptors or ports is our failure, not the server's.
func (g *generator) connect(slot int) error {
	c := &g.conns[slot]
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w (raise ulimit -n?)", os.NewSyscallError("socket", err))
	}
	if g.sources > 1 {
		// Without IP_BIND_ADDRESS_NO_PORT bind would take a port for good; with it connect picks one that is free
		// towards this server.
		const ipBindAddressNoPort = 24
		_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, ipBindAddressNoPort, 1)
		from := syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(1 + slot%g.sources)}}
		if err := syscall.Bind(fd, &from); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	// Write always goes out at once: a real client that cares about latency does the same.
	_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	if err := syscall.Connect(fd, &g.server); err != nil && err != syscall.EINPROGRESS {
		return fmt.Errorf("connect to %v:%d: %w", net.IP(g.server.Addr[:]), g.server.Port, err)
	}
	const edge = 1 << 31 // syscall.EPOLLET is negative and does not fit the field
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP | edge, Fd: int32(slot)}
	if err := syscall.EpollCtl(g.ep, syscall.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}

	share := c.left
	if g.perSession > 0 {
		share = min(share, g.perSession)
	}
	if g.sessionOnly || g.idle > 0 {
		share = 0
		c.left--
	}
	*c = conn{fd: fd, step: &g.banner, inSession: share, left: c.left - share}
	return nil
}

// next is called when all replies to c.step are there.
func (g *generator) next(slot int) {
	c := &g.conns[slot]
	switch c.step {
	case &g.banner:
		g.send(slot, &g.ehlo)
		return
	case &g.ehlo:
		if g.idle > 0 {
			g.held++
			g.working--
			return
		}
		g.begin(slot)
	case &g.mail:
		g.send(slot, &g.rcpt)
	case &g.rcpt:
		g.send(slot, &g.data)
	case &g.data:
		c.inSession--
		g.send(slot, &g.body)
	case &g.group, &g.bodyGroup:
		c.inSession--
		if g.mode == "tight" && c.inSession > 0 {
			g.send(slot, &g.bodyGroup)
		} else {
			g.send(slot, &g.body)
		}
	case &g.body:
		g.begin(slot)
	case &g.quit:
		// The server closes first, so that the port it used lingers on its side and can be used again at once.
		c.step = &g.eof
	}
}

// begin starts the next message of a session, or ends the session.
func (g *generator) begin(slot int) {
	switch {
	case g.conns[slot].inSession == 0:
		g.send(slot, &g.quit)
	case g.mode == "plain":
		g.send(slot, &g.mail)
	default:
		g.send(slot, &g.group)
	}
}

func (g *generator) send(slot int, s *step) {
	c := &g.conns[slot]
	c.step, c.got, c.unsent = s, 0, s.send
	g.flush(slot)
}

// flush writes what it can. Raw system calls: they never block, so the scheduler need not hear of them.
func (g *generator) flush(slot int) {
	c := &g.conns[slot]
	for len(c.unsent) > 0 {
		n, err := rawWrite(c.fd, c.unsent)
		if err == syscall.EAGAIN {
			return // edge-triggered: EPOLLOUT comes when there is room
		}
		if err != 0 {
			g.broken(slot, "write: "+err.Error())
			return
		}
		c.unsent = c.unsent[n:]
	}
	if c.step.ack {
		c.sentAt = time.Now()
	}
}

// read takes one read's worth of replies. A short read has emptied the socket, so a second read that says EAGAIN is
// saved: anything that comes later is a new edge.
func (g *generator) read(slot int) {
	c := &g.conns[slot]
	for {
		fd := c.fd
		n, err := rawRead(fd, g.buf)
		switch {
		case err == syscall.EAGAIN:
			return
		case err != 0:
			g.broken(slot, "read: "+err.Error())
			return
		case n == 0:
			if c.step == &g.eof {
				g.sessionDone(slot)
			} else {
				g.broken(slot, "closed by the server too early")
			}
			return
		}
		g.replies(slot, g.buf[:n])
		if c.fd != fd {
			return // that was the end of this socket
		}
		if c.step == &g.eof {
			continue // the close may have come together with the reply; its edge is used up
		}
		if n < len(g.buf) {
			return
		}
	}
}

func (g *generator) replies(slot int, in []byte) {
	c := &g.conns[slot]
	for len(in) > 0 {
		for c.lineLen < 4 && len(in) > 0 && in[0] != '\n' {
			c.line[c.lineLen] = in[0]
			c.lineLen++
			in = in[1:]
		}
		lf := bytes.IndexByte(in, '\n')
		if lf < 0 {
			return
		}
		text := in[:lf]
		in = in[lf+1:]
		more := c.lineLen == 4 && c.line[3] == '-'
		c.lineLen = 0
		if more {
			continue
		}
		if c.got >= len(c.step.want) || c.line[0] != c.step.want[c.got] {
			g.broken(slot, fmt.Sprintf("unexpected reply %q to %.30q", string(c.line[:])+string(bytes.TrimSpace(text)), c.step.send))
			return
		}
		if c.line[0] == '2' {
			g.good++
		}
		if c.step.ack && c.got == 0 {
			g.acks = append(g.acks, int32(time.Since(c.sentAt).Microseconds()))
		}
		c.got++
		if c.got == len(c.step.want) {
			g.next(slot)
			if c.fd < 0 {
				return
			}
		}
	}
}

func (g *generator) sessionDone(slot int) {
	c := &g.conns[slot]
	syscall.Close(c.fd)
	c.fd = -1
	g.sessions++
	if c.left > 0 {
		if err := g.connect(slot); err == nil {
			return
		} else {
			g.errors++
			g.note(err.Error())
		}
	}
	g.working--
}

// broken gives a connection up, with all it still had to send.
func (g *generator) broken(slot int, why string) {
	c := &g.conns[slot]
	if c.fd >= 0 {
		syscall.Close(c.fd)
		c.fd = -1
		g.working--
	}
	g.errors++
	g.note(why)
}

func (g *generator) note(why string) {
	if g.firstError == "" {
		g.firstError = why
	}
}

func (g *generator) result() result {
	r := result{
		Messages:   len(g.acks),
		Sessions:   g.sessions,
		Replies2yz: g.good,
		Errors:     g.errors,
		FirstError: g.firstError,
		Seconds:    g.seconds,
	}
	if n := r.units(g.sessionOnly); n > 0 {
		r.PerSecond = float64(n) / g.seconds
		r.GenCPUMicro = float64(g.cpu.Microseconds()) / float64(n)
	}
	if len(g.acks) > 0 {
		slices.Sort(g.acks)
		r.AckP50Ms = float64(g.acks[len(g.acks)/2]) / 1000
		r.AckP99Ms = float64(g.acks[len(g.acks)*99/100]) / 1000
	}
	return r
}
