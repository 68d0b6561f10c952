package loop

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/panjf2000/gnet/v2"
)

// socket is what a connection holds of gnet. Only this file calls its methods.
type socket struct{ gc gnet.Conn }

// peek borrows everything that has come in and was not consumed, decrypted where there is TLS, until the callback returns. consume must
// follow, also when nothing was used.
func (c *conn) peek() []byte {
	if c.sec != nil {
		if c.closed {
			return nil
		}
		return c.sec.peek()
	}
	return c.rawPeek()
}

// consume drops the first n bytes of what peek gave.
func (c *conn) consume(n int) {
	if c.sec != nil {
		if !c.closed {
			c.sec.consume(n)
		}
		return
	}
	c.rawConsume(n)
}

// consumeAll drops everything that has come in, without a look at it, and says how much it was.
func (c *conn) consumeAll() int {
	n := c.buffered()
	if c.sec != nil {
		c.sec.stash, c.sec.left = nil, nil
	}
	c.rawConsume(c.rawBuffered())
	return n
}

// buffered is the number of bytes that came in and were not consumed, encrypted or not.
func (c *conn) buffered() int {
	n := c.rawBuffered()
	if c.sec != nil {
		n += len(c.sec.stash) + len(c.sec.left)
	}
	return n
}

// rawPeek borrows the bytes of the socket like peek. gnet's Peek(0) means "all".
func (c *conn) rawPeek() []byte {
	if c.closed || c.sock.gc.InboundBuffered() == 0 {
		return nil
	}
	in, _ := c.sock.gc.Peek(0)
	return in
}

// rawConsume drops n bytes of the socket's. gnet's Discard drops everything when n is 0 or less, so 0 never gets there.
func (c *conn) rawConsume(n int) {
	if n > 0 && !c.closed {
		c.sock.gc.Discard(n)
	}
}

func (c *conn) rawBuffered() int {
	if c.closed {
		return 0
	}
	return c.sock.gc.InboundBuffered()
}

// rawRead moves bytes of the socket to p; 0 when there are none.
func (c *conn) rawRead(p []byte) int {
	if c.rawBuffered() == 0 || len(p) == 0 {
		return 0
	}
	n, _ := c.sock.gc.Read(p)
	return n
}

// unsent is the number of bytes written that the kernel did not take yet.
func (c *conn) unsent() int {
	if c.closed {
		return 0
	}
	return c.sock.gc.OutboundBuffered()
}

// write sends p, encrypted where there is TLS. It may close the connection.
func (c *conn) write(p []byte) {
	switch {
	case c.closed:
	case c.sec != nil:
		c.sec.write(p)
	default:
		c.rawWrite(p)
	}
}

// rawWrite is the only place that writes. When it fails gnet has closed the connection inside the call, and the descriptor's number may be
// another client's already: c.closed is set by then (gone ran), and every caller looks at it.
func (c *conn) rawWrite(p []byte) {
	if !c.closed {
		c.sock.gc.Write(p)
	}
}

// close ends the connection now; what gnet still holds of the replies is tried once more.
func (c *conn) close() {
	if c.sec != nil && !c.closed {
		c.sec.closeNotify()
	}
	if !c.closed {
		c.sock.gc.EventLoop().Close(c.sock.gc)
	}
}

// shutdownWrite sends our FIN after what was written.
func (c *conn) shutdownWrite() {
	if c.sec != nil && !c.closed {
		c.sec.closeNotify()
	}
	if c.closed {
		return
	}
	if unix.Shutdown(c.sock.gc.Fd(), unix.SHUT_WR) != nil {
		c.close()
	}
}

// sendUnsent tries to write what the kernel did not take yet. Like write it may close the connection.
func (c *conn) sendUnsent() {
	if !c.closed {
		c.sock.gc.Flush()
	}
}

// pause stops reading the socket and says whether it could. No events are asked for, so that a FIN is not seen: a client that
// half-closed still gets its reply. Errors are always told.
//
// Being writable is not asked for either, though replies may wait: gnet reads again once it has sent them, 64 KiB each time before we are
// asked, and a client that keeps up with its replies but sends more than it takes to make them would fill the memory. The caller sees to
// it that sendUnsent is called.
func (c *conn) pause() bool {
	if c.closed || c.lp.epoll < 0 {
		return c.closed
	}
	if !c.setEvents(0) {
		return false
	}
	if !c.paused {
		c.paused = true
		c.lp.meter.Event(EventPaused)
	}
	return true
}

// resume reads the socket again.
func (c *conn) resume() {
	if c.closed || !c.paused {
		return
	}
	c.paused = false
	events := uint32(unix.EPOLLIN | unix.EPOLLPRI)
	if c.unsent() > 0 {
		events |= unix.EPOLLOUT
	}
	if !c.setEvents(events) {
		c.close()
	}
}

func (c *conn) setEvents(events uint32) bool {
	fd := c.sock.gc.Fd()
	return unix.EpollCtl(c.lp.epoll, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Fd: int32(fd), Events: events}) == nil
}

// peerAddr gives the client's address, IPv4-mapped ones unmapped, zones dropped (gnet recycles their memory); zero for a unix socket.
func peerAddr(gc gnet.Conn) netip.AddrPort {
	a, ok := gc.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ip, ok := netip.AddrFromSlice(a.IP)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(a.Port))
}
