package loop

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

// forgetful is a backend that keeps nothing.
type forgetful struct{}

func (forgetful) Commit([]*queue.Submission) {}
func (forgetful) Room() error                { return nil }
func (forgetful) Close() error               { return nil }

// BenchmarkMessage is a message of 4 KiB over loopback, one at a time, without a disk: what a loop does for it. Allocations are the server's
// and the client's together. In clear is the twin that TLS is to be compared with.
func BenchmarkMessage(b *testing.B) {
	dial := func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) }
	dialTLS := func(addr string) (net.Conn, error) { return tls.Dial("tcp", addr, clientTLS()) }
	b.Run("clear", func(b *testing.B) { benchmarkMessage(b, func(*Options, *session.Options) {}, dial) })
	b.Run("tls", func(b *testing.B) { benchmarkMessage(b, withImplicitTLS, dialTLS) })
}

func benchmarkMessage(b *testing.B, change func(*Options, *session.Options), dial func(addr string) (net.Conn, error)) {
	so := session.Options{Hostname: "mx.example.net"}
	o := Options{
		Listeners: []Listener{{Name: "mx", Network: "tcp", Address: "127.0.0.1:0"}}, Loops: 1,
		Writer: queue.NewWriter(forgetful{}, queue.Limits{}), Budget: pool.NewBudget(64 << 20),
	}
	change(&o, &so)
	o.Listeners[0].Session = session.NewServer(so)
	s, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	go s.Serve()
	defer s.Close()
	s.WaitUp()
	c, err := dial(s.Addr(0))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 4<<10)
	lines := func(n int) {
		for n > 0 {
			m, err := c.Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			n -= bytes.Count(buf[:m], []byte("\n"))
		}
	}
	lines(1)
	io.WriteString(c, "HELO c\r\n")
	lines(1)
	message := []byte(group + strings.Repeat(strings.Repeat("x", 62)+"\r\n", 64) + ".\r\n")
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for b.Loop() {
		c.Write(message)
		lines(4)
	}
}
