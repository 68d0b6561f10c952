package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/smtp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/queue"
)

// sink is a next hop that throws mail away: it looks at the first letter of a command and, in data, for the terminator.
func sink(b testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveSink(nc) })
		}
	})
	b.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func serveSink(nc net.Conn) {
	defer nc.Close()
	in, out := bufio.NewReaderSize(nc, 64<<10), bufio.NewWriter(nc)
	out.WriteString("220 sink\r\n")
	for {
		if in.Buffered() == 0 {
			if out.Flush() != nil {
				return
			}
		}
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		switch line[0] {
		case 'E':
			out.WriteString("250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
		case 'D':
			out.WriteString("354 go on\r\n")
			out.Flush()
			for len(line) != 3 || line[0] != '.' {
				if line, err = in.ReadSlice('\n'); err != nil {
					return
				}
			}
			out.WriteString("250 2.0.0 taken\r\n")
		case 'Q':
			out.WriteString("221 2.0.0 bye\r\n")
			out.Flush()
			return
		default:
			out.WriteString("250 2.0.0 ok\r\n")
		}
	}
}

// benchSource leases the same message until it has been settled n times.
type benchSource struct {
	d       *queue.Delivery
	mu      sync.Mutex
	left    int // leases to come
	running int
	done    chan struct{}
}

func (s *benchSource) Lease(ctx context.Context) (*queue.Delivery, error) {
	s.mu.Lock()
	if s.left > 0 {
		s.left--
		s.running++
		s.mu.Unlock()
		return s.d, nil
	}
	s.mu.Unlock()
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s *benchSource) Settle(_ *queue.Delivery, outcomes []queue.Outcome, _ time.Time) error {
	if outcomes[0].State != queue.Delivered {
		panic(outcomes[0].Reply)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running--; s.running == 0 && s.left == 0 {
		close(s.done)
	}
	return nil
}

func (s *benchSource) Kill(*queue.Delivery, []queue.Outcome, string) error { panic("killed") }

func BenchmarkRelay(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		msg := string(ordinary(size))
		for _, connections := range []int{1, 8} {
			b.Run(fmt.Sprintf("impl=fastedge/size=%dKiB/conns=%d", size>>10, connections), func(b *testing.B) {
				hop := NextHop{Network: "tcp", Address: sink(b)}
				d := mail(msg, "a@example.net")
				src := &benchSource{d: d, left: b.N, done: make(chan struct{})}
				r, err := New(src, Options{NextHops: []NextHop{hop}, Connections: connections, Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithCancel(b.Context())
				ended := make(chan error)
				b.SetBytes(int64(len(msg)))
				b.ReportAllocs()
				b.ResetTimer() // b.Loop can't be used: the messages run concurrently
				go func() { ended <- r.Run(ctx) }()
				<-src.done
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
				cancel()
				<-ended
			})
			b.Run(fmt.Sprintf("impl=naive/size=%dKiB/conns=%d", size>>10, connections), func(b *testing.B) {
				address := sink(b)
				b.SetBytes(int64(len(msg)))
				b.ReportAllocs()
				b.ResetTimer()
				work := make(chan struct{})
				var wg sync.WaitGroup
				for range connections {
					wg.Go(func() {
						for range work {
							body, _ := io.ReadAll(strings.NewReader(msg))
							if err := smtp.SendMail(address, nil, "sender@example.org", []string{"a@example.net"}, body); err != nil {
								b.Error(err)
							}
						}
					})
				}
				for range b.N {
					work <- struct{}{}
				}
				close(work)
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
			})
		}
	}
}
