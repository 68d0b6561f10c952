package loop

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// consistent checks, on the loop, what holds between any two events.
func (lp *loop) consistent() error {
	open := 0
	for i, c := range lp.wheel.slots {
		for prev := (*conn)(nil); c != nil; prev, c = c, c.next {
			open++
			switch {
			case c.closed || !c.placed || int(c.slot) != i || c.prev != prev:
				return fmt.Errorf("slot %d: closed %v, placed %v, slot %d, linked back %v", i, c.closed, c.placed, c.slot, c.prev == prev)
			case c.phase == phaseEnding && !c.blocked:
				return fmt.Errorf("ending with nothing to send")
			case c.pre == nil && (c.phase == phaseProxy || c.phase == phaseGreet), c.pre != nil && (c.phase == phaseOpen || c.phase == phaseSuspended):
				return fmt.Errorf("phase %d, arriving %v", c.phase, c.pre != nil)
			case c.phase == phaseHandshake && c.sec.hs == nil:
				return fmt.Errorf("a handshake that is over")
			case c.phase == phaseOpen && !c.blocked && c.paused:
				return fmt.Errorf("paused with nothing to wait for")
			case c.buffered() > lp.srv.o.MaxStashBytes+64<<10: // one read more than it takes to pause
				return fmt.Errorf("%d bytes wait", c.buffered())
			}
		}
	}
	if n := int(lp.conns.Load()); open != n {
		return fmt.Errorf("%d connections in the wheel, %d counted", open, n)
	}
	listed := map[*conn]bool{}
	for _, c := range lp.blocked {
		if listed[c] {
			return fmt.Errorf("a blocked connection is listed twice")
		}
		listed[c] = true
	}
	return nil
}

// unreliable answers now, later, with an error, or never.
func unreliable(e *policy.Event) error {
	switch rand.IntN(60) {
	case 0:
		return errors.New("unreliable")
	case 1:
		e.Pend()
	case 2, 3, 4, 5, 6, 7:
		p := e.Pend()
		go p.Done(smtpcodec.Reply{}, nil)
	case 8:
		p := e.Pend()
		time.AfterFunc(time.Duration(rand.IntN(40))*time.Millisecond, func() { p.Done(smtpcodec.Reply{}, nil) })
	}
	return nil
}

// upgraded asks for TLS and gives what it gets.
func upgraded(c net.Conn) net.Conn {
	r := bufio.NewReader(c)
	io.WriteString(c, "EHLO c\r\nSTARTTLS\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return c
		}
		if strings.HasPrefix(line, "220 2.7.0") {
			return tls.Client(c, clientTLS())
		}
	}
}

// Clients that do anything at any moment, against commits that take and fail as they like: the loops stay consistent and nothing is left.
func TestClientsThatDoAnythingLeaveTheLoopsConsistent(t *testing.T) {
	s := start(t, func(o *Options, so *session.Options) {
		o.UnreadTimeout, o.MaxConnections, o.MaxStashBytes = 100*time.Millisecond, 20, 4<<10
		so.CommandTimeout, so.DataTimeout, so.MaxErrors = 150*time.Millisecond, 150*time.Millisecond, 10
		so.TLS, so.PolicyTimeout = session.TLSOpportunistic, 20*time.Millisecond
		so.Validators = []policy.Validator{validator{policy.On(waitingStages...), unreliable}}
		o.Listeners[0].TLS, o.HandshakeTimeout, o.ProxyTimeout = serverTLS(), 300*time.Millisecond, 50*time.Millisecond
		implicit := o.Listeners[0]
		implicit.Implicit, implicit.Proxies = true, netip.Addr.IsLoopback
		implicit.GreetDelay = 5 * time.Millisecond
		o.Listeners = append(o.Listeners, implicit)
	})
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() { // the disk: slow, fast
		for {
			hold := s.hold()
			select {
			case <-stop:
				s.release()
				return
			case hold <- struct{}{}:
			case <-time.After(20 * time.Millisecond):
			}
			s.release()
			time.Sleep(2 * time.Millisecond)
		}
	})
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			for _, lp := range *s.loops.Load() {
				found := make(chan error, 1)
				lp.ex.execute(func() { found <- lp.consistent() })
				if err := <-found; err != nil {
					t.Error(err)
				}
			}
		}
	})
	say := []string{
		"EHLO c\r\n", group + "x\r\n.\r\n", group + strings.Repeat("text\r\n", 3000) + ".\r\n", strings.Repeat("HELP\r\n", 5000),
		strings.Repeat("EHLO c\r\n", 5000), group, "half a li", "JUNK\r\n", strings.Repeat(group+"x\r\n.\r\n", 200), "QUIT\r\n", ".\r\n",
	}
	var clients sync.WaitGroup
	for i := range 30 {
		clients.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range 12 {
				tcp, err := net.Dial("tcp", s.Addr(r.IntN(2)))
				if err != nil {
					t.Error(err)
					return
				}
				tcp.SetDeadline(time.Now().Add(500 * time.Millisecond))
				c := tcp
				if tcp.RemoteAddr().String() == s.Addr(1) && r.IntN(4) > 0 {
					io.WriteString(c, proxyLine)
					if r.IntN(4) > 0 {
						c = tls.Client(c, clientTLS())
					}
				} else if r.IntN(2) > 0 {
					c = upgraded(c)
				}
				reads := r.IntN(3) > 0
				if reads {
					go io.Copy(io.Discard, c)
				}
				for range 1 + r.IntN(6) {
					if _, err := io.WriteString(c, say[r.IntN(len(say))]); err != nil {
						break
					}
				}
				switch r.IntN(4) {
				case 0:
					tcp.(*net.TCPConn).SetLinger(0)
				case 1:
					tcp.(*net.TCPConn).CloseWrite()
					time.Sleep(10 * time.Millisecond)
				case 2:
					time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
				}
				tcp.Close()
			}
		})
	}
	clients.Wait()
	if err := s.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	close(stop)
	others.Wait()
	waitFor(t, "the last message to be committed", func() bool { n, _ := s.writer.Pending(); return n == 0 })
	waitFor(t, "all memory to come back", func() bool { return s.o.Budget.Used() == 0 })
	if n := s.meter.events[EventPanic].Load(); n > 0 || s.Connections() != 0 {
		t.Errorf("%d panics, %d connections left:\n%s", n, s.Connections(), s.log)
	}
	for e := range NumEvents {
		t.Logf("event %d: %d times", e, s.meter.events[e].Load())
	}
	t.Logf("%d messages, %d connections over the limit", len(s.backend.all()), s.meter.results[ConnOverLimit].Load())
}
