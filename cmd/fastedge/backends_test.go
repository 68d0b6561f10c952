package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"

	nats "github.com/nats-io/nats-server/v2/server"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// embeddedNATS is a server within this process.
func embeddedNATS(t *testing.T, change ...func(*nats.Options)) *nats.Server {
	t.Helper()
	o := &nats.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true}
	for _, f := range change {
		f(o)
	}
	s, err := nats.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server does not start")
	}
	return s
}

func TestFromTheSpoolToJetStreamAndOn(t *testing.T) {
	there := embeddedNATS(t)
	cfg := config.Default()
	cfg.StateDir = t.TempDir()
	cfg.Queue.Engine = "spool+jetstream"
	cfg.Queue.MinFree = 0
	cfg.Queue.SegmentSize = 16 << 20
	cfg.Queue.JetStream.URL = config.NATSServers{there.ClientURL()}
	cfg.Relay.NextHop = []config.NextHop{{}} // so that JetStream leases
	e, err := openEngine(&cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			e.Close()
		}
	}()
	maker := queuetest.NewMaker(nil)
	var want []queuetest.Message
	for _, size := range []int{100, 4096, 2 << 20} {
		sub, m := maker.Submission(size, 2)
		e.Commit([]*queue.Submission{sub})
		if sub.Err != nil {
			t.Fatal(sub.Err)
		}
		sub.Env.Release()
		want = append(want, m)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	got := map[string][]byte{}
	for range want {
		d, err := e.source.Lease(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := e.inspector.Cat(d.Env.ID, &text); err != nil {
			t.Errorf("cat: %v", err)
		}
		if entry, err := e.inspector.Show(d.Env.ID); err != nil || entry.ID != d.Env.ID || len(entry.Recipients) != 2 {
			t.Errorf("show: %v, %+v", err, entry)
		}
		got[d.Env.ID.String()] = text.Bytes()
		outcomes := []queue.Outcome{{State: queue.Delivered}, {State: queue.Delivered}}
		if err := e.source.Settle(d, outcomes, d.Env.Arrived); err != nil {
			t.Error(err)
		}
	}
	for _, m := range want {
		if !bytes.Equal(got[m.ID.String()], m.Text) {
			t.Errorf("message of %d bytes came out with %d", len(m.Text), len(got[m.ID.String()]))
		}
	}
	if f := e.forwarded(); f.Forwarded != 3 || !f.Up {
		t.Errorf("forwarded: %+v", f)
	}
	if err := e.inspector.Drop(envelope.ID{1}); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("drop of an unknown message: %v", err)
	}
	st := e.inspector.Stats()
	if len(st.Parts) != 2 || st.Parts["spool"].Committed != 3 || st.Alarm != "" || e.local.Stats().Parts != nil {
		t.Errorf("stats: %+v", st)
	}
	closed = true
	if err := e.Close(); err != nil {
		t.Error(err)
	}

	// What was acknowledged while the cluster is away is seen, and waits.
	there.Shutdown()
	there.WaitForShutdown()
	if e, err = openEngine(&cfg, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	sub, m := maker.Submission(100, 1)
	e.Commit([]*queue.Submission{sub})
	if sub.Err != nil || e.Room() != nil {
		t.Errorf("without a cluster: %v, room: %v", sub.Err, e.Room())
	}
	sub.Env.Release()
	seen := 0
	if err := e.inspector.List(func(entry queue.Entry) bool { seen++; return entry.ID == m.ID }); err == nil || seen != 1 {
		t.Errorf("list without a cluster: %d messages, %v", seen, err)
	}
	if alarm := e.inspector.Stats().Alarm; alarm == "" || e.local.Stats().Alarm != "" {
		t.Errorf("alarm %q, of this machine %q", alarm, e.local.Stats().Alarm)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
