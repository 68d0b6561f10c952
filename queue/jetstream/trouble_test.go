package jetstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	js "github.com/nats-io/nats.go/jetstream"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/nettest"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

func TestAFullStreamRefusesWith452AndTakesMailAgainWhenItHasRoom(t *testing.T) {
	for _, batch := range []string{"fast", "atomic", "off"} {
		t.Run(batch, func(t *testing.T) {
			s := alone(t, t.TempDir())
			clock := queuetest.NewClock()
			q := opened(t, Options{MaxBytes: 100_000, Batch: batch, Now: clock.Now}, s)
			maker := queuetest.NewMaker(clock)
			var stored []envelope.ID
			full := 0
			for range 4 {
				subs, messages := commit(q, maker, 10, 5000)
				for i, sub := range subs {
					switch {
					case sub.Err == nil:
						stored = append(stored, messages[i].ID)
					case errors.Is(sub.Err, queue.ErrFull):
						full++
					default:
						t.Fatal(sub.Err)
					}
				}
			}
			if full == 0 || len(stored) < 10 || len(stored) > 20 {
				t.Fatalf("%d stored, %d refused", len(stored), full)
			}
			if err := q.Room(); !errors.Is(err, queue.ErrFull) {
				t.Errorf("room of a full stream: %v", err)
			}
			clock.Add(2 * time.Second)
			if err := q.Room(); err != nil {
				t.Errorf("room is asked for again after a while: %v", err)
			}
			for range stored {
				d := lease(t, q)
				if err := q.Settle(d, []queue.Outcome{deliveredOutcome}, time.Time{}); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "all are settled", func() bool { return q.Stats().Messages["leased"] == 0 })
			mustCommit(t, q, maker, 10, 5000)
		})
	}
}

func TestAWrongPasswordIsAnErrorAtOnce(t *testing.T) {
	s := alone(t, t.TempDir(), func(o *server.Options) { o.Username, o.Password = "edge", "right" })
	o := Options{URLs: []string{s.ClientURL()}, Create: true, Log: quiet, User: "edge", Password: "wrong"}
	if _, err := Open(context.Background(), o); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("open: %v", err)
	} else if strings.Contains(err.Error(), "wrong") {
		t.Errorf("the error shows the password: %v", err)
	}
	if _, err := Check(context.Background(), o); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("check: %v", err)
	}
	o.Credentials = t.TempDir() + "/nobody.creds"
	if _, err := Open(context.Background(), o); err == nil {
		t.Error("a file of credentials that is not there is no error")
	}
	o.Credentials, o.Password = "", "right"
	q := opened(t, o)
	mustCommit(t, q, queuetest.NewMaker(nil), 3, 10)
}

func TestAStreamThatCannotKeepThePromiseIsRefusedWithEachDifference(t *testing.T) {
	s := alone(t, t.TempDir())
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	api, err := js.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	o := Options{URLs: []string{s.ClientURL()}, Create: true, Log: quiet}

	missing, err := Check(ctx, o)
	if err != nil || len(missing.Missing) != 5 || !strings.Contains(missing.Missing[0], "MAIL does not exist") || len(missing.Wrong) > 0 {
		t.Errorf("check of an empty server: %+v, %v", missing, err)
	}
	if _, err := api.CreateStream(ctx, js.StreamConfig{
		Name: "MAIL", Subjects: []string{"mail.other"}, Retention: js.LimitsPolicy, Discard: js.DiscardOld, MaxAge: time.Hour, Storage: js.MemoryStorage,
		Duplicates: time.Second,
	}); err != nil {
		t.Fatal(err)
	}
	o.Replicas = 3
	_, err = Open(ctx, Options{URLs: o.URLs, Log: quiet, Replicas: 3})
	wrong, ok := errors.AsType[*Misconfigured](err)
	if !ok {
		t.Fatalf("open: %v", err)
	}
	all := strings.Join(wrong.Differences, "\n")
	for _, want := range []string{
		"retention", "replicas, not 3", "storage", "throws old mail away", "duplicate window of 1s", "throws mail away after 1h", "does not take subject mail.inbound",
		"MAIL_STATE does not exist", "MAIL_DEAD does not exist", "bucket MAIL_LARGE does not exist",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("the error does not say %q:\n%s", want, all)
		}
	}
	if got, err := Check(ctx, o); err != nil || len(got.Wrong)+len(got.Missing) != len(wrong.Differences) {
		t.Errorf("check: %+v, %v", got, err)
	}
	if err := api.DeleteStream(ctx, "MAIL"); err != nil {
		t.Fatal(err)
	}
	o.Replicas = 1
	q := opened(t, o)
	if got, err := Check(ctx, o); err != nil || len(got.Wrong)+len(got.Missing)+len(got.Notes) != 0 {
		t.Errorf("check of what Open has made: %+v, %v", got, err)
	}
	q.Close()
}

func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	for _, o := range []Options{
		{Stream: "MA.IL"}, {Stream: "MAIL*"}, {Subject: "mail.>"}, {Subject: "mail..x"}, {Subject: "$SYS.x"}, {DeadSubject: "a b"}, {Batch: "huge"},
		{Replicas: 6}, {Replicas: -1}, {Durable: "a/b"}, {ObjectBucket: "x y"},
	} {
		if _, err := Open(t.Context(), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

func TestAQueueWithoutItsServerRefusesAtOnceAndTakesMailWhenItComes(t *testing.T) {
	port, dir := nettest.Port(t), t.TempDir()
	q, err := Open(context.Background(), Options{
		URLs: []string{fmt.Sprintf("nats://127.0.0.1:%d", port)}, Create: true, Log: quiet, Timeout: 20 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if err := q.Room(); !errors.Is(err, queue.ErrUnavailable) {
		t.Errorf("room: %v", err)
	}
	maker := queuetest.NewMaker(nil)
	subs, _ := commit(q, maker, 2, 10)
	for _, s := range subs {
		if !errors.Is(s.Err, queue.ErrUnavailable) {
			t.Errorf("commit: %v", s.Err)
		}
	}
	if err := q.List(func(queue.Entry) bool { return true }); !errors.Is(err, queue.ErrUnavailable) {
		t.Errorf("list: %v", err)
	}
	if q.Stats().Alarm == "" {
		t.Error("no alarm")
	}
	alone(t, dir, func(o *server.Options) { o.Port = port })
	eventually(t, "there is room", roomy(q))
	m := mustCommit(t, q, maker, 1, 10)
	if d := lease(t, q); d.Env.ID != m[0].ID {
		t.Errorf("leased %s", d.Env.ID)
	}
}

// The server goes away when a batch is half out, and comes back: the commit waits for it, and nothing is in the stream twice.
func TestABatchSurvivesTheRestartOfItsServer(t *testing.T) {
	for _, batch := range []string{"fast", "atomic", "off"} {
		t.Run(batch, func(t *testing.T) {
			port, dir := nettest.Port(t), t.TempDir()
			listen := func(o *server.Options) { o.Port = port }
			s := alone(t, dir, listen)
			q := opened(t, Options{Batch: batch, Timeout: patience, Window: 16}, s)
			p := newProxy(t, s)
			q.Close()
			restarted := make(chan struct{})
			go func() { // restarts the server when some of the batch is through
				defer close(restarted)
				<-p.first(100_000)
				p.cut()
				s.Shutdown()
				s.WaitForShutdown()
				s2, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true})
				if err != nil {
					t.Error(err)
					return
				}
				s2.Start()
				t.Cleanup(func() { s2.Shutdown(); s2.WaitForShutdown() })
			}()
			q, err := Open(context.Background(), Options{URLs: []string{p.url()}, Create: true, Log: quiet, Batch: batch, Timeout: patience, Window: 16})
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			maker := queuetest.NewMaker(nil)
			subs, messages := commit(q, maker, 200, 2000)
			<-restarted
			want := map[envelope.ID]bool{}
			for i, sub := range subs {
				if sub.Err != nil {
					t.Fatal(sub.Err)
				}
				want[messages[i].ID] = true
			}
			eventually(t, "the queue answers", roomy(q))
			n := 0
			if err := q.List(func(e queue.Entry) bool {
				if n++; !want[e.ID] {
					t.Errorf("%s was not sent, or is there twice", e.ID)
				}
				delete(want, e.ID)
				return true
			}); err != nil {
				t.Fatal(err)
			}
			if len(want) > 0 {
				t.Errorf("%d of 200 are missing, %d are there", len(want), n)
			}
		})
	}
}

// A partition that no end of the connection is told of.
func TestAServerThatFallsSilentMeans451AndNotAHang(t *testing.T) {
	s := alone(t, t.TempDir())
	p := newProxy(t, s)
	// Short, for the test waits for it to pass; what must succeed is tried until it does.
	q, err := Open(context.Background(), Options{URLs: []string{p.url()}, Create: true, Log: quiet, Timeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	maker := queuetest.NewMaker(nil)
	taken := func() bool {
		subs, _ := commit(q, maker, 5, 100)
		for _, sub := range subs {
			if sub.Err != nil {
				return false
			}
		}
		return true
	}
	eventually(t, "mail is taken", taken)

	p.stall()
	for range breakerFailures {
		subs, _ := commit(q, maker, 5, 100)
		for _, sub := range subs {
			if !errors.Is(sub.Err, queue.ErrUnavailable) {
				t.Fatalf("commit: %v", sub.Err)
			}
		}
	}
	if err := q.Room(); !errors.Is(err, queue.ErrUnavailable) {
		t.Errorf("room: %v", err)
	}
	if alarm := q.Stats().Alarm; alarm == "" {
		t.Error("no alarm")
	}
	p.resume()
	eventually(t, "there is room", roomy(q))
	eventually(t, "mail is taken again", taken)
}

// A server that reads little at a time: the window holds the batch back, and all of it arrives.
func TestASlowServerGetsItsBatchThroughASmallWindow(t *testing.T) {
	for _, batch := range []string{"fast", "off"} {
		t.Run(batch, func(t *testing.T) {
			s := alone(t, t.TempDir())
			p := newProxy(t, s)
			p.mu.Lock()
			p.slow = 700
			p.mu.Unlock()
			q, err := Open(context.Background(), Options{
				URLs: []string{p.url()}, Create: true, Log: quiet, Timeout: patience, Window: 4, WindowBytes: 5000, Batch: batch,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			messages := mustCommit(t, q, queuetest.NewMaker(nil), 60, 1500)
			for _, m := range messages {
				d := lease(t, q)
				if d.Env.ID != m.ID || !bytes.Equal(text(t, d), m.Text) {
					t.Fatal("another message, or it has changed")
				}
			}
		})
	}
}

// The window is full, by its bytes, before the stream would have acknowledged anything of its own accord.
func TestAFastBatchOfLongMessagesDoesNotStall(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{Batch: "fast", WindowBytes: 4 << 20, Timeout: patience}, s)
	for _, size := range []int{100 << 10, 900 << 10} {
		start := time.Now()
		mustCommit(t, q, queuetest.NewMaker(nil), 8<<20/size, size)
		if d := time.Since(start); d > patience/4 { // a stall ends after a third
			t.Errorf("%d bytes each: %v", size, d)
		}
	}
}

// The servers come back with a smaller max_payload.
func TestMessagesFitTheServersAfterAReconnect(t *testing.T) {
	port, dir := nettest.Port(t), t.TempDir()
	listen := func(most int32) func(*server.Options) {
		return func(o *server.Options) { o.Port, o.MaxPayload = port, most }
	}
	s := alone(t, dir, listen(1<<20))
	q := opened(t, Options{}, s)
	maker := queuetest.NewMaker(nil)
	before := mustCommit(t, q, maker, 2, 600<<10)
	s.Shutdown()
	s.WaitForShutdown()
	alone(t, dir, listen(256<<10))
	eventually(t, "the smaller limit is known", func() bool { return q.maxMsg() == 256<<10 && q.Room() == nil })
	after := mustCommit(t, q, maker, 1, 600<<10)

	if err := q.Kill(lease(t, q), []queue.Outcome{refusedOutcome}, "refused"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []queuetest.Message{before[1], after[0]} {
		if d := lease(t, q); d.Env.ID != want.ID || !bytes.Equal(text(t, d), want.Text) {
			t.Error("another message, or it has changed")
		}
	}
	eventually(t, "the refused one is dead", func() bool { return messages(t, q, q.o.deadStream()) == 1 })
	var b bytes.Buffer
	if err := q.Cat(before[0].ID, &b); err != nil || !bytes.Equal(b.Bytes(), before[0].Text) {
		t.Errorf("the dead one: %d bytes, %v", b.Len(), err)
	}
	if err := q.Release(before[0].ID); err != nil {
		t.Fatal(err)
	}
	if d := lease(t, q); d.Env.ID != before[0].ID || !bytes.Equal(text(t, d), before[0].Text) {
		t.Error("another message, or it has changed")
	}
}

func TestAStreamThatIsNotOursIsNotBelieved(t *testing.T) {
	// Somebody answers on the subject that is not the stream.
	a := parseAck(&nats.Msg{Data: []byte(`{"stream":"OTHER","seq":7}`)}, "MAIL")
	if a.err == nil || a.again {
		t.Errorf("%+v", a)
	}
	for text, again := range map[string]bool{
		``: true, `{}`: false, `{"stream":"MAIL"}`: false, `nonsense`: true,
		`{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}`:                   false,
		`{"error":{"code":503,"err_code":10008,"description":"jetstream system temporarily unavailable"}}`: true,
		`{"error":{"code":400,"err_code":10158,"description":"duplicate message id is in process"}}`:       true,
		`{"error":{"code":400,"err_code":10060,"description":"expected stream does not match"}}`:           false,
	} {
		if a := parseAck(&nats.Msg{Data: []byte(text)}, "MAIL"); a.err == nil || a.again != again {
			t.Errorf("%q: %+v", text, a)
		}
	}
	if a := parseAck(&nats.Msg{Data: []byte(`{"stream":"MAIL","seq":7,"duplicate":true}`)}, "MAIL"); a.err != nil || a.seq != 7 {
		t.Errorf("%+v", a)
	}
}

func TestBreakerOpensAfterFailuresInARowAndClosesWithTheFirstAnswer(t *testing.T) {
	clock := queuetest.NewClock()
	b := &breaker{now: clock.Now}
	allowed := func(want bool) {
		t.Helper()
		if err := b.allow(); (err == nil) != want || err != nil && !errors.Is(err, queue.ErrUnavailable) {
			t.Fatalf("allowed: %v", err)
		}
	}
	for range 3 { // successes between failures
		for range breakerFailures - 1 {
			if b.failed("no answer") {
				t.Fatal("open too early")
			}
			allowed(true)
		}
		b.succeeded()
	}
	for i := range breakerFailures {
		if b.failed("no answer") != (i == breakerFailures-1) {
			t.Fatalf("failure %d", i)
		}
	}
	allowed(false)
	if !strings.Contains(b.alarm(), "no answer") || !strings.Contains(b.alarm(), clock.Now().UTC().Format(time.RFC3339)) {
		t.Errorf("alarm %q", b.alarm())
	}
	b.probed()
	allowed(true)
	if b.alarm() != "" { // no mail may come before there is none
		t.Errorf("alarm while half open: %q", b.alarm())
	}
	b.failed("again") // one failure of the trial is enough
	allowed(false)
	b.probed()
	if !b.succeeded() {
		t.Error("closing is no news")
	}
	allowed(true)
	if b.alarm() != "" || b.succeeded() {
		t.Error("not closed")
	}
	if !b.trip("connection lost") || b.trip("connection lost") {
		t.Error("opening is news once")
	}
	allowed(false)
}

// The connection was lost and is back: an edge behind a load balancer gets no mail, and a relay makes no commit, until there is no alarm.
func TestAnEdgeIsReadyAgainWithoutMail(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	q.disconnected(errors.New("a blip"))
	if q.Stats().Alarm == "" || q.Room() == nil {
		t.Error("no alarm when the connection is lost")
	}
	q.reconnected()
	eventually(t, "there is no alarm", func() bool { return q.Stats().Alarm == "" && q.Room() == nil })
}

func TestWhatWaitingMayHelpAgainst(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{context.DeadlineExceeded, true},
		{nats.ErrNoServers, true},
		{nats.ErrNoResponders, true}, // no JetStream yet
		{&js.APIError{Code: 503, ErrorCode: 10008, Description: "jetstream system temporarily unavailable"}, true},
		{&js.APIError{Code: 503, ErrorCode: 10076, Description: "jetstream not enabled"}, true},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, true},
		{fmt.Errorf("%w: %w", nats.ErrTLS, &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}), true},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}, false},
		{fmt.Errorf("%w: connection closed by remote after TLS handshake: %w", nats.ErrTLS, io.EOF), false},
		{nats.ErrAuthorization, false},
		{&js.APIError{Code: 400, ErrorCode: 10065, Description: "subjects overlap with an existing stream"}, false},
		{errors.New("nats: invalid credentials"), false},
	} {
		if got := Transient(fmt.Errorf("jetstream: %w", test.err)); got != test.want {
			t.Errorf("%v: %v", test.err, got)
		}
	}
}

func TestServersAreShownWithoutTheirPasswords(t *testing.T) {
	q := &Queue{o: Options{URLs: []string{"nats://u:p@ss@10.0.0.5:4222", "10.0.0.6", "tls://token@h"}}}
	if got := q.servers(); got != "nats://10.0.0.5:4222, nats://10.0.0.6, tls://h" {
		t.Error(got)
	}
}

// first gives a channel that closes when n bytes have been passed on to the server.
func (p *proxy) first(n int64) <-chan struct{} {
	ch := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.after, p.reached = n, ch
	return ch
}
