package jetstream

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/fastedge/fastedge/queue/queuetest"
)

var quiet = slog.New(slog.DiscardHandler)

// alone starts a server of its own, on a port that the system chooses.
func alone(t testing.TB, dir string, change ...func(*server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true, MaxPayload: 1 << 20, MaxPending: 64 << 20,
	}
	for _, f := range change {
		f(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s
}

func TestConformance(t *testing.T) {
	for _, batch := range []string{"auto", "fast", "atomic", "off"} {
		t.Run(batch, func(t *testing.T) {
			servers := map[string]*server.Server{}
			queuetest.TestBackend(t, func(t testing.TB, dir string, now func() time.Time) queuetest.Engine {
				s := servers[dir]
				if s == nil {
					s = alone(t, dir)
					servers[dir] = s
				}
				q, err := Open(context.Background(), Options{
					URLs: []string{s.ClientURL()}, Create: true, Now: now, Log: quiet, Batch: batch, Timeout: 30 * time.Second,
				})
				if err != nil {
					t.Fatal(err)
				}
				return q
			})
		})
	}
}
