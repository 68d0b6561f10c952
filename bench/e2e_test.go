// Package bench holds the benchmark of a whole server. The scripts beside it compare fastedge with other servers.
package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fastedge/fastedge/loop"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/spool"
	"github.com/fastedge/fastedge/session"
)

// BenchmarkEndToEnd sends messages over loopback to a server in this process that is put together as cmd/fastedge does it: loops, sessions,
// the batching writer and, but for sync=discard, a spool in a temporary directory. Every client waits for its replies: a closed loop.
//
// Client and server share cores, and their processor times cannot be told apart; see bench/README.md. Allocations are the server's,
// because the client makes none for a message.
func BenchmarkEndToEnd(b *testing.B) { pool.WithoutPoison(func() { benchEndToEnd(b) }) }

func benchEndToEnd(b *testing.B) {
	for _, sync := range []string{"fsync", "os", "discard"} {
		b.Run("sync="+sync, func(b *testing.B) {
			address := serve(b, sync)
			for _, size := range []int{4 << 10} {
				for _, pipelining := range []string{"off", "group"} {
					for _, conns := range []int{1, 64} {
						b.Run(fmt.Sprintf("size=%dKiB/pipelining=%s/conns=%d", size>>10, pipelining, conns), func(b *testing.B) {
							drive(b, address, message(size), pipelining == "group", conns)
						})
					}
				}
			}
		})
	}
}

// serve runs a server until the benchmark ends.
func serve(b *testing.B, sync string) (address string) {
	b.Helper()
	log := slog.New(slog.DiscardHandler)
	var backend queue.Backend = discard{}
	if sync != "discard" {
		durability := spool.Fsync
		if sync == "os" {
			durability = spool.OS
		}
		s, err := spool.Open(b.TempDir(), spool.Options{Durability: durability, MinFree: -1, Hold: "no next hop", Log: log})
		if err != nil {
			b.Fatal(err)
		}
		backend = s
	}
	gc := debug.SetGCPercent(200) // as cmd/fastedge
	writer := queue.NewWriter(backend, queue.Limits{MaxLinger: time.Millisecond})
	server, err := loop.New(loop.Options{
		Listeners: []loop.Listener{{
			Name: "mx", Network: "tcp", Address: "127.0.0.1:0",
			MayRelay: func(netip.Addr) bool { return true },
			Session:  session.NewServer(session.Options{Hostname: "mx.example.net", Listener: "mx"}),
		}},
		Writer: writer,
		Budget: pool.NewBudget(256 << 20),
		Log:    log,
	})
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	server.WaitUp()
	b.Cleanup(func() {
		server.Close()
		if err := <-served; err != nil {
			b.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := writer.Close(ctx); err != nil {
			b.Error(err)
		}
		server.Settle()
		if err := backend.Close(); err != nil {
			b.Error(err)
		}
		debug.SetGCPercent(gc)
	})
	return server.Addr(0)
}

// discard says yes and keeps nothing.
type discard struct{}

func (discard) Commit([]*queue.Submission) {}
func (discard) Room() error                { return nil }
func (discard) Close() error               { return nil }

// message is message data with its end.
func message(size int) []byte {
	var m bytes.Buffer
	m.WriteString("From: <sender@example.com>\r\nTo: <recipient@example.net>\r\nSubject: ordinary\r\n\r\n")
	line := strings.Repeat("The quick brown fox jumps. ", 3)[:74] + "\r\n"
	for m.Len() < size {
		m.WriteString(line)
	}
	m.Truncate(size - 2)
	m.WriteString("\r\n.\r\n")
	return m.Bytes()
}

const warmup = 20 // messages a connection sends before the clock starts

// drive sends b.N messages over some connections that are open already.
func drive(b *testing.B, address string, data []byte, group bool, conns int) {
	commands := [][]byte{[]byte("MAIL FROM:<sender@example.com>\r\n"), []byte("RCPT TO:<recipient@example.net>\r\n"), []byte("DATA\r\n")}
	replies := [][]string{{"250"}, {"250"}, {"354"}}
	if group {
		commands, replies = [][]byte{bytes.Join(commands, nil)}, [][]string{{"250", "250", "354"}}
	}
	clients := make([]*client, conns)
	for i := range clients {
		c, err := dial(address)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		clients[i] = c
	}
	acks := make([]time.Duration, b.N)
	each := func(do func(*client) error) {
		var wg sync.WaitGroup
		for _, c := range clients {
			wg.Go(func() {
				if err := do(c); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	send := func(c *client) (ack time.Duration, err error) {
		for i := range commands {
			if _, err := c.Write(commands[i]); err != nil {
				return 0, err
			}
			for _, code := range replies[i] {
				if err := c.expect(code); err != nil {
					return 0, err
				}
			}
		}
		// Not from the end of the write: by the time this goroutine runs again, the server may have answered.
		begin := time.Now()
		if _, err := c.Write(data); err != nil {
			return 0, err
		}
		err = c.expect("250")
		return time.Since(begin), err
	}
	each(func(c *client) error {
		for range warmup {
			if _, err := send(c); err != nil {
				return err
			}
		}
		return nil
	})
	if b.Failed() {
		return
	}
	var next atomic.Int64
	b.SetBytes(int64(len(data) - len(".\r\n")))
	b.ReportAllocs()
	b.ResetTimer() // b.Loop can't be used: the messages run concurrently
	each(func(c *client) error {
		for {
			i := next.Add(1) - 1
			if i >= int64(b.N) {
				return nil
			}
			ack, err := send(c)
			if err != nil {
				return err
			}
			acks[i] = ack
		}
	})
	b.StopTimer()
	slices.Sort(acks)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	b.ReportMetric(acks[(b.N-1)*50/100].Seconds()*1e3, "ack-p50-ms")
	b.ReportMetric(acks[(b.N-1)*99/100].Seconds()*1e3, "ack-p99-ms")
}

// client is a connection after EHLO.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(address string) (*client, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &client{conn, bufio.NewReader(conn)}
	if err = c.expect("220"); err == nil {
		if _, err = c.Write([]byte("EHLO client.example.com\r\n")); err == nil {
			err = c.expect("250")
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// expect reads one reply, of as many lines as it has.
func (c *client) expect(code string) error {
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) < 4 || string(line[:3]) != code {
			return fmt.Errorf("got %.100q, want %s", line, code)
		}
		if line[3] != '-' {
			return nil
		}
	}
}
