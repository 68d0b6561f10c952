package loop

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/session"
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

// Clients that do anything at any moment, against commits that take and fail as they like: the loops stay consistent and nothing is left.
func TestClientsThatDoAnythingLeaveTheLoopsConsistent(t *testing.T) {
	s := start(t, func(o *Options, so *session.Options) {
		o.UnreadTimeout, o.MaxConnections, o.MaxStashBytes = 100*time.Millisecond, 20, 4<<10
		so.CommandTimeout, so.DataTimeout, so.MaxErrors = 150*time.Millisecond, 150*time.Millisecond, 10
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
				c, err := net.Dial("tcp", s.Addr(0))
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(500 * time.Millisecond))
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
					c.(*net.TCPConn).SetLinger(0)
				case 1:
					c.(*net.TCPConn).CloseWrite()
					time.Sleep(10 * time.Millisecond)
				case 2:
					time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
				}
				c.Close()
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
