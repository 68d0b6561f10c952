// Package queuetest is the conformance suite that every queue engine passes.
//
//	func TestConformance(t *testing.T) {
//		queuetest.TestBackend(t, func(t testing.TB, dir string, now func() time.Time) queuetest.Engine { ... })
//	}
//
// Every test opens an engine on a directory of its own and drives it as the Writer and a relay do, with a clock that only the test
// moves. Nothing sleeps.
package queuetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
)

// Engine is what an engine must be.
type Engine interface {
	queue.Backend
	queue.Source
	queue.Inspector
}

// Open opens the engine whose storage is dir; now is its clock for due times. It is called again with the same dir after Close, and
// must find everything there. It fails the test on an error.
type Open func(t testing.TB, dir string, now func() time.Time) Engine

// Clock is a clock that stands still until it is moved. Any goroutine.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock starts at the present second.
func NewClock() *Clock { return &Clock{now: time.Now().Truncate(time.Second)} }

// Now says the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Add moves the clock.
func (c *Clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Message is what a test knows of a message it submitted.
type Message struct {
	ID      envelope.ID
	Text    []byte // trace field and data: what must come out
	Binary  []byte // the envelope's binary form
	Arrived time.Time
}

// Maker makes envelopes. It belongs to one goroutine.
type Maker struct {
	Clock *Clock
	list  *envelope.List
	ids   *envelope.IDSource
	n     int
}

// NewMaker gives a Maker; clock may be nil.
func NewMaker(clock *Clock) *Maker {
	var seed [32]byte
	rand.Read(seed[:])
	return &Maker{Clock: clock, list: envelope.NewList(pool.NewSharedList(64<<20, nil)), ids: envelope.NewIDSource(seed)}
}

// Chunks is the list that the data of its messages comes from.
func (mk *Maker) Chunks() *pool.List { return mk.list.Chunks }

// Submission makes a message of size bytes of data to rcpts recipients.
func (mk *Maker) Submission(size, rcpts int) (*queue.Submission, Message) {
	mk.n++
	now := time.Now()
	if mk.Clock != nil {
		now = mk.Clock.Now()
	}
	env := mk.list.Get()
	env.ID = mk.ids.Next(now)
	env.Arrived = now.UTC()
	env.ReversePath = env.KeepString(fmt.Sprintf("sender-%d@example.net", mk.n))
	env.Client = envelope.Client{
		Addr: netip.MustParseAddrPort("192.0.2.1:4711"), Helo: env.KeepString("mx.example.net"), Protocol: "ESMTP", Listener: "mx",
	}
	for i := range rcpts {
		env.AddRecipient(fmt.Appendf(nil, "rcpt-%d@example.org", i), nil, 0)
	}
	env.Trace = env.KeepString(fmt.Sprintf("Received: from mx.example.net by mx.test with ESMTP id %s\r\n", env.ID))
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(mk.n*31 + i*7 + i>>8)
	}
	copy(data, fmt.Sprintf("Subject: %d\r\n\r\n", mk.n))
	env.Data.Append(mk.list.Chunks, data)
	m := Message{ID: env.ID, Text: append(bytes.Clone(env.Trace), data...), Binary: env.AppendBinary(nil), Arrived: env.Arrived}
	return &queue.Submission{Env: env}, m
}

// Collector is an Owner that counts how often each submission comes back, and keeps their errors.
type Collector struct {
	mu    sync.Mutex
	calls map[*queue.Submission]int
}

// Committed notes the batch and releases the envelopes.
func (c *Collector) Committed(batch []*queue.Submission) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls == nil {
		c.calls = map[*queue.Submission]int{}
	}
	for _, s := range batch {
		c.calls[s]++
	}
}

// Calls says how often s came back.
func (c *Collector) Calls(s *queue.Submission) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[s]
}

// suite is one test's engine.
type suite struct {
	*testing.T
	open  Open
	dir   string
	clock *Clock
	maker *Maker
	Engine
}

// TestBackend runs the suite.
func TestBackend(t *testing.T, open Open) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"a committed message comes out byte for byte", (*suite).byteForByte},
		{"messages come out in the order of their commits", (*suite).order},
		{"a message is leased to one caller only", (*suite).oneLease},
		{"a message accepted by all recipients is forgotten", (*suite).done},
		{"a pending recipient brings the message back when it is due", (*suite).retry},
		{"waiting messages come out in the order they are due", (*suite).dueOrder},
		{"a refused recipient makes the message dead with its reply", (*suite).dead},
		{"a killed message is dead with the reason", (*suite).kill},
		{"a released dead message tries the failed recipients again", (*suite).releaseDead},
		{"a held message is not leased until it is released", (*suite).hold},
		{"a waiting message can be retried now", (*suite).retryNow},
		{"a dropped message is gone", (*suite).drop},
		{"a leased message can't be changed", (*suite).leased},
		{"an unknown id is not found", (*suite).notFound},
		{"everything is there after reopening", (*suite).reopen},
		{"a lease that was not settled ends with reopening", (*suite).leaseEnds},
		{"a lease waits for a message and obeys its context", (*suite).leaseWaits},
		{"closing ends a waiting lease and refuses commits", (*suite).closing},
		{"a settled delivery can't be settled again", (*suite).settleTwice},
		{"concurrent submitters are each told once and lose nothing", (*suite).concurrent},
		{"stats count every state", (*suite).stats},
		{"metadata and the demand for TLS stay with the message", (*suite).wishes},
		{"an idempotency key is remembered with its message and beyond it", (*suite).remembers},
		{"a refused message leaves no idempotency key", (*suite).remembersNoRefused},
	} {
		t.Run(test.name, func(t *testing.T) {
			clock := NewClock()
			s := &suite{T: t, open: open, dir: t.TempDir(), clock: clock, maker: NewMaker(clock)}
			s.Engine = open(t, s.dir, clock.Now)
			defer func() {
				if err := s.Engine.Close(); err != nil && !errors.Is(err, queue.ErrClosed) {
					t.Error(err)
				}
			}()
			test.run(s)
		})
	}
}

func (s *suite) restart() {
	s.Helper()
	if err := s.Engine.Close(); err != nil {
		s.Fatal(err)
	}
	s.Engine = s.open(s.T, s.dir, s.clock.Now)
}

// commit commits one message in a batch of its own.
func (s *suite) commit(size, rcpts int) Message {
	s.Helper()
	sub, m := s.maker.Submission(size, rcpts)
	s.Commit([]*queue.Submission{sub})
	if sub.Err != nil {
		s.Fatal(sub.Err)
	}
	sub.Env.Release()
	return m
}

// lease expects a message to be due.
func (s *suite) lease() *queue.Delivery {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	d, err := s.Lease(ctx)
	if err != nil {
		s.Fatalf("lease: %v", err)
	}
	return d
}

// noLease expects none to be due.
func (s *suite) noLease() {
	s.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if d, err := s.tryLease(ctx); err == nil {
		s.Fatalf("message %s was leased; none is due", d.Env.ID)
	}
}

// tryLease gives an engine that looks at ctx first a little time to find something.
func (s *suite) tryLease(context.Context) (*queue.Delivery, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	return s.Lease(ctx)
}

func (s *suite) leaseOf(m Message) *queue.Delivery {
	s.Helper()
	d := s.lease()
	if d.Env.ID != m.ID {
		s.Fatalf("leased %s, want %s", d.Env.ID, m.ID)
	}
	return d
}

// text reads a delivery.
func (s *suite) text(d *queue.Delivery) []byte {
	s.Helper()
	r, err := d.Open()
	if err != nil {
		s.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		s.Fatal(err)
	}
	return text
}

func (s *suite) settle(d *queue.Delivery, next time.Time, outcomes ...queue.Outcome) {
	s.Helper()
	if err := s.Settle(d, outcomes, next); err != nil {
		s.Fatal(err)
	}
}

func (s *suite) show(m Message) queue.Entry {
	s.Helper()
	e, err := s.Show(m.ID)
	if err != nil {
		s.Fatal(err)
	}
	return e
}

func (s *suite) wantState(m Message, state queue.State) {
	s.Helper()
	if e := s.show(m); e.State != state {
		s.Fatalf("message is %s, want %s", e.State, state)
	}
}

var (
	delivered = queue.Outcome{State: queue.Delivered, Reply: "250 2.0.0 Ok"}
	deferred  = queue.Outcome{State: queue.Pending, Reply: "451 4.3.0 Try again later"}
	refused   = queue.Outcome{State: queue.Failed, Reply: "550 5.1.1 No such user"}
)

func (s *suite) byteForByte() {
	for _, size := range []int{0, 1, 63, 64, 65, 1023, 1024, 1025, 4096, 8191, 8193, 100_000, 300_000, 3_000_000} {
		m := s.commit(size, 1)
		d := s.leaseOf(m)
		if got := s.text(d); !bytes.Equal(got, m.Text) {
			s.Fatalf("%d bytes of data came out as other %d bytes", size, len(got))
		}
		if got := s.text(d); !bytes.Equal(got, m.Text) {
			s.Fatal("opened a second time it is different")
		}
		if int(d.Size) != len(m.Text) {
			s.Errorf("size %d, want %d", d.Size, len(m.Text))
		}
		if got := d.Env.AppendBinary(nil); !bytes.Equal(got, m.Binary) {
			s.Error("the envelope has changed")
		}
		if d.Env.Data.Len() != 0 {
			s.Error("the delivery's envelope has data")
		}
		var cat bytes.Buffer
		if err := s.Cat(m.ID, &cat); err != nil || !bytes.Equal(cat.Bytes(), m.Text) {
			s.Fatalf("cat of a leased message: %v, or it differs", err)
		}
		s.settle(d, time.Time{}, delivered)
	}
}

func (s *suite) order() {
	var want []Message
	for range 3 {
		var batch []*queue.Submission
		for range 5 {
			sub, m := s.maker.Submission(100, 1)
			batch = append(batch, sub)
			want = append(want, m)
		}
		s.Commit(batch)
		for _, sub := range batch {
			if sub.Err != nil {
				s.Fatal(sub.Err)
			}
		}
	}
	i := 0
	s.List(func(e queue.Entry) bool {
		if e.ID != want[i].ID {
			s.Fatalf("entry %d of the list is %s, want %s", i, e.ID, want[i].ID)
		}
		i++
		return true
	})
	if i != len(want) {
		s.Fatalf("%d messages listed, want %d", i, len(want))
	}
	n := 0
	s.List(func(queue.Entry) bool { n++; return n < 2 })
	if n != 2 {
		s.Errorf("yield was called %d times after it gave false", n-2)
	}
	for _, m := range want {
		s.leaseOf(m)
	}
	s.noLease()
}

func (s *suite) oneLease() {
	m := s.commit(10, 1)
	s.leaseOf(m)
	s.noLease()
	s.wantState(m, queue.Leased)
}

func (s *suite) done() {
	m := s.commit(10, 2)
	s.settle(s.leaseOf(m), time.Time{}, delivered, delivered)
	s.noLease()
	if _, err := s.Show(m.ID); !errors.Is(err, queue.ErrNotFound) {
		s.Errorf("show: %v, want ErrNotFound", err)
	}
	s.restart()
	s.noLease()
}

func (s *suite) retry() {
	m := s.commit(10, 3)
	due := s.clock.Now().Add(time.Minute)
	s.settle(s.leaseOf(m), due, delivered, deferred, refused)
	s.wantState(m, queue.Waiting)
	if e := s.show(m); !e.Next.Equal(due) || e.Attempts != 1 || e.Recipients[1].Reply != deferred.Reply || e.Recipients[2].State != queue.Failed {
		s.Errorf("entry is %+v", e)
	}
	s.noLease()
	s.clock.Add(time.Minute - time.Nanosecond)
	s.noLease()
	s.clock.Add(time.Nanosecond)
	d := s.leaseOf(m)
	if d.Attempts != 1 || d.Outcomes[0] != delivered || d.Outcomes[1] != deferred || d.Outcomes[2] != refused {
		s.Errorf("attempts %d, outcomes %v", d.Attempts, d.Outcomes)
	}
	if !bytes.Equal(s.text(d), m.Text) {
		s.Error("the text has changed")
	}
	s.settle(d, due, delivered, delivered, refused)
	s.wantState(m, queue.Dead)
}

func (s *suite) dueOrder() {
	a, b, c := s.commit(10, 1), s.commit(10, 1), s.commit(10, 1)
	start := s.clock.Now()
	s.settle(s.leaseOf(a), start.Add(3*time.Minute), deferred)
	s.settle(s.leaseOf(b), start.Add(time.Minute), deferred)
	s.settle(s.leaseOf(c), start.Add(2*time.Minute), deferred)
	s.clock.Add(90 * time.Second)
	d := s.commit(10, 1) // due later than b
	s.leaseOf(b)
	s.leaseOf(d)
	s.noLease()
	s.clock.Add(time.Hour)
	s.leaseOf(c)
	s.leaseOf(a)
}

func (s *suite) dead() {
	m := s.commit(10, 2)
	s.settle(s.leaseOf(m), s.clock.Now(), delivered, refused)
	s.wantState(m, queue.Dead)
	s.clock.Add(1000 * time.Hour)
	s.noLease()
	s.restart()
	s.noLease()
	e := s.show(m)
	if e.State != queue.Dead || e.Recipients[0].State != queue.Delivered || e.Recipients[1].Reply != refused.Reply || e.Reason != refused.Reply {
		s.Errorf("after reopening: %+v", e)
	}
	var cat bytes.Buffer
	if err := s.Cat(m.ID, &cat); err != nil || !bytes.Equal(cat.Bytes(), m.Text) {
		s.Errorf("cat of a dead message: %v, or it differs", err)
	}
}

func (s *suite) kill() {
	m := s.commit(10, 1)
	if err := s.Kill(s.leaseOf(m), []queue.Outcome{deferred}, "too old"); err != nil {
		s.Fatal(err)
	}
	s.restart()
	if e := s.show(m); e.State != queue.Dead || e.Reason != "too old" || e.Recipients[0].Reply != deferred.Reply {
		s.Errorf("killed: %+v", e)
	}
}

func (s *suite) releaseDead() {
	m := s.commit(10, 3)
	s.settle(s.leaseOf(m), s.clock.Now(), delivered, refused, refused)
	if err := s.Release(m.ID); err != nil {
		s.Fatal(err)
	}
	d := s.leaseOf(m)
	if d.Outcomes[0].State != queue.Delivered || d.Outcomes[1].State != queue.Pending || d.Outcomes[2].State != queue.Pending {
		s.Errorf("outcomes %v", d.Outcomes)
	}
}

func (s *suite) hold() {
	m, other := s.commit(10, 1), s.commit(10, 1)
	if err := s.Hold(m.ID, "on request"); err != nil {
		s.Fatal(err)
	}
	s.leaseOf(other)
	s.noLease()
	s.restart()
	s.leaseOf(other)
	s.noLease()
	if e := s.show(m); e.State != queue.Held || e.Reason != "on request" {
		s.Errorf("held: %+v", e)
	}
	if err := s.Release(m.ID); err != nil {
		s.Fatal(err)
	}
	s.leaseOf(m)
	s.noLease()
}

func (s *suite) retryNow() {
	m := s.commit(10, 1)
	s.settle(s.leaseOf(m), s.clock.Now().Add(time.Hour), deferred)
	s.noLease()
	if err := s.Retry(m.ID); err != nil {
		s.Fatal(err)
	}
	s.leaseOf(m)
	s.noLease()
}

func (s *suite) drop() {
	ready, held, waiting, dead := s.commit(10, 1), s.commit(10, 1), s.commit(10, 1), s.commit(10, 1)
	if err := s.Hold(held.ID, ""); err != nil {
		s.Fatal(err)
	}
	a := s.leaseOf(ready)
	s.settle(s.leaseOf(waiting), s.clock.Now().Add(time.Hour), deferred)
	s.settle(s.leaseOf(dead), s.clock.Now(), refused)
	s.settle(a, s.clock.Now(), deferred)
	for _, m := range []Message{ready, held, waiting, dead} {
		if err := s.Drop(m.ID); err != nil {
			s.Fatal(err)
		}
	}
	check := func() {
		s.clock.Add(2 * time.Hour)
		s.noLease()
		s.List(func(e queue.Entry) bool { s.Errorf("still listed: %+v", e); return true })
	}
	check()
	s.restart()
	check()
}

func (s *suite) leased() {
	m := s.commit(10, 1)
	s.leaseOf(m)
	for name, err := range map[string]error{
		"hold": s.Hold(m.ID, ""), "release": s.Release(m.ID), "retry": s.Retry(m.ID), "drop": s.Drop(m.ID),
	} {
		if !errors.Is(err, queue.ErrLeased) {
			s.Errorf("%s: %v, want ErrLeased", name, err)
		}
	}
}

func (s *suite) notFound() {
	id := envelope.ID{1}
	_, show := s.Show(id)
	for name, err := range map[string]error{
		"show": show, "cat": s.Cat(id, io.Discard), "hold": s.Hold(id, ""), "release": s.Release(id), "retry": s.Retry(id), "drop": s.Drop(id),
	} {
		if !errors.Is(err, queue.ErrNotFound) {
			s.Errorf("%s: %v, want ErrNotFound", name, err)
		}
	}
}

func (s *suite) reopen() {
	var want []Message
	for i := range 200 {
		want = append(want, s.commit(i*i, 1+i%3))
	}
	s.restart()
	s.restart()
	for _, m := range want {
		d := s.leaseOf(m)
		if !bytes.Equal(s.text(d), m.Text) || !bytes.Equal(d.Env.AppendBinary(nil), m.Binary) {
			s.Fatalf("message %s has changed", m.ID)
		}
		outcomes := make([]queue.Outcome, len(d.Env.Recipients))
		for i := range outcomes {
			outcomes[i] = delivered
		}
		s.settle(d, time.Time{}, outcomes...)
	}
	s.restart()
	s.noLease()
	m := s.commit(10, 1)
	s.restart()
	s.leaseOf(m)
}

func (s *suite) leaseEnds() {
	m := s.commit(10, 1)
	s.settle(s.leaseOf(m), s.clock.Now(), deferred)
	s.leaseOf(m)
	s.restart()
	if d := s.leaseOf(m); d.Attempts != 1 || d.Outcomes[0] != deferred {
		s.Errorf("attempts %d, outcomes %v", d.Attempts, d.Outcomes)
	}
}

func (s *suite) leaseWaits() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Lease(ctx); !errors.Is(err, context.Canceled) {
		s.Errorf("lease under a cancelled context: %v", err)
	}
	const leasers = 4
	got := make(chan *queue.Delivery, leasers)
	for range leasers {
		go func() {
			d, err := s.Lease(context.Background())
			if err != nil {
				s.Error(err)
			}
			got <- d
		}()
	}
	seen := map[envelope.ID]bool{}
	for range leasers {
		m := s.commit(10, 1)
		d := <-got
		if d == nil || d.Env.ID != m.ID || seen[m.ID] {
			s.Fatal("another message, or the same one twice")
		}
		seen[m.ID] = true
	}
}

func (s *suite) closing() {
	got := make(chan error, 1)
	go func() {
		_, err := s.Lease(context.Background())
		got <- err
	}()
	if err := s.Engine.Close(); err != nil {
		s.Fatal(err)
	}
	if err := <-got; !errors.Is(err, queue.ErrClosed) {
		s.Errorf("lease ended with %v", err)
	}
	sub, _ := s.maker.Submission(10, 1)
	s.Commit([]*queue.Submission{sub})
	if !errors.Is(sub.Err, queue.ErrClosed) {
		s.Errorf("commit after close: %v", sub.Err)
	}
	if err := s.Hold(sub.Env.ID, ""); !errors.Is(err, queue.ErrClosed) {
		s.Errorf("hold after close: %v", err)
	}
}

func (s *suite) settleTwice() {
	m := s.commit(10, 1)
	d := s.leaseOf(m)
	s.settle(d, s.clock.Now(), deferred)
	if err := s.Settle(d, []queue.Outcome{delivered}, s.clock.Now()); !errors.Is(err, queue.ErrNotFound) {
		s.Errorf("settled again: %v, want ErrNotFound", err)
	}
	s.leaseOf(m)
}

func (s *suite) concurrent() {
	const submitters, each = 8, 100
	w := queue.NewWriter(s.Engine, queue.Limits{})
	leased := make(chan map[envelope.ID][]byte)
	go func() {
		texts := map[envelope.ID][]byte{}
		for range submitters * each {
			d := s.lease()
			if texts[d.Env.ID] != nil {
				s.Errorf("%s was leased twice", d.Env.ID)
			}
			texts[d.Env.ID] = s.text(d)
			s.settle(d, time.Time{}, delivered)
		}
		leased <- texts
	}()
	var mu sync.Mutex
	want := map[envelope.ID][]byte{}
	var wg sync.WaitGroup
	owners := make([]Collector, submitters)
	subs := make([][]*queue.Submission, submitters)
	for i := range submitters {
		wg.Go(func() {
			maker := NewMaker(s.clock)
			for n := range each {
				sub, m := maker.Submission(n*10, 1)
				sub.Owner = &owners[i]
				mu.Lock()
				want[m.ID] = m.Text
				mu.Unlock()
				if err := w.Submit(sub); err != nil {
					s.Error(err)
				}
				subs[i] = append(subs[i], sub)
			}
		})
	}
	wg.Wait()
	if err := w.Close(context.Background()); err != nil {
		s.Fatal(err)
	}
	for i := range subs {
		for _, sub := range subs[i] {
			if n := owners[i].Calls(sub); n != 1 || sub.Err != nil {
				s.Fatalf("the owner was told %d times, error %v", n, sub.Err)
			}
		}
	}
	got := <-leased
	for id, text := range want {
		if !bytes.Equal(got[id], text) {
			s.Errorf("%s has changed", id)
		}
	}
	s.noLease()
}

func (s *suite) stats() {
	s.commit(10, 1) // ready
	s.clock.Add(time.Second)
	held, waiting, dead, leased := s.commit(10, 1), s.commit(10, 1), s.commit(10, 1), s.commit(10, 1)
	first := s.lease()
	if err := s.Hold(held.ID, ""); err != nil {
		s.Fatal(err)
	}
	s.settle(s.leaseOf(waiting), s.clock.Now().Add(time.Hour), deferred)
	s.settle(s.leaseOf(dead), s.clock.Now(), refused)
	s.leaseOf(leased)
	s.settle(first, s.clock.Now(), deferred)
	if err := s.Retry(first.Env.ID); err != nil {
		s.Fatal(err)
	}
	st := s.Stats()
	for state := queue.Ready; state <= queue.Damaged; state++ {
		want := 1
		if state == queue.Damaged {
			want = 0
		}
		if n, ok := st.Messages[state.String()]; !ok || n != want {
			s.Errorf("%d messages are %s, want %d", n, state, want)
		}
	}
	if st.Committed != 5 || st.Commits != 5 || st.Bytes == 0 {
		s.Errorf("committed %d in %d commits, %d bytes", st.Committed, st.Commits, st.Bytes)
	}
	if !st.Oldest.Equal(first.Env.Arrived) {
		s.Errorf("oldest is of %v, want %v", st.Oldest, first.Env.Arrived)
	}
	s.restart()
	if again := s.Stats(); again.Bytes != st.Bytes || again.Messages["ready"] != 2 || again.Messages["leased"] != 0 {
		s.Errorf("after reopening: %+v", again)
	}
}

func (s *suite) wishes() {
	sub, m := s.maker.Submission(100, 2)
	sub.Env.RequireTLS, sub.Env.Metadata = true, sub.Env.KeepString(`{"campaign":"a b","n":[1,2]}`)
	m.Binary = sub.Env.AppendBinary(nil)
	s.Commit([]*queue.Submission{sub})
	if sub.Err != nil {
		s.Fatal(sub.Err)
	}
	sub.Env.Release()
	plain := s.commit(100, 1)
	s.restart()
	e := s.show(m)
	var listed queue.Entry
	s.List(func(e queue.Entry) bool { listed = e; return false })
	for how, e := range map[string]queue.Entry{"shown": e, "listed": listed} {
		if e.ID != m.ID || !e.RequireTLS || string(e.Metadata) != `{"campaign":"a b","n":[1,2]}` {
			s.Errorf("%s as %+v", how, e)
		}
	}
	if e := s.show(plain); e.RequireTLS || e.Metadata != nil {
		s.Errorf("a message without is shown as %+v", e)
	}
	if d := s.leaseOf(m); !bytes.Equal(d.Env.AppendBinary(nil), m.Binary) || !d.Env.RequireTLS {
		s.Error("the envelope has changed")
	}
}

// rememberer skips the test of an engine that keeps no keys.
func (s *suite) rememberer() queue.Rememberer {
	s.Helper()
	r, ok := s.Engine.(queue.Rememberer)
	if !ok {
		s.Skip("the engine is no queue.Rememberer")
	}
	return r
}

// keyed makes a message with a key, which follows from n.
func (s *suite) keyed(size, n int) (*queue.Submission, queue.Remembered) {
	sub, m := s.maker.Submission(size, 1)
	k := envelope.Idempotency{Key: [32]byte{byte(n), 31: 1}, Payload: [32]byte{31: byte(n)}, Answer: bytes.Repeat([]byte{byte(n)}, n*n)}
	sub.Env.Idempotency = k
	sub.Env.Idempotency.Answer = sub.Env.Keep(k.Answer)
	return sub, queue.Remembered{ID: m.ID, Idempotency: k}
}

// wantRemembered expects these keys and no others, in this order.
func (s *suite) wantRemembered(since time.Time, want []queue.Remembered) {
	s.Helper()
	var got []queue.Remembered
	if err := s.rememberer().Remembered(since, func(r queue.Remembered) bool { got = append(got, r); return true }); err != nil {
		s.Fatal(err)
	}
	same := func(a, b queue.Remembered) bool {
		return a.ID == b.ID && a.Key == b.Key && a.Payload == b.Payload && bytes.Equal(a.Answer, b.Answer)
	}
	if len(got) != len(want) {
		s.Fatalf("%d keys are remembered, want %d", len(got), len(want))
	}
	for i := range got {
		if !same(got[i], want[i]) {
			s.Fatalf("key %d of %d is that of %s, or differs; want %s", i, len(got), got[i].ID, want[i].ID)
		}
	}
}

func (s *suite) remembers() {
	s.rememberer()
	s.wantRemembered(time.Time{}, nil)
	var want []queue.Remembered
	late := 0
	var since time.Time
	for i := range 30 {
		if i == 20 {
			s.clock.Add(time.Hour)
			late, since = len(want), s.clock.Now()
		}
		sub, r := s.keyed(10*i*i, i+1)
		want = append(want, r)
		other, _ := s.maker.Submission(10, 1) // has none
		s.Commit([]*queue.Submission{other, sub})
		if other.Err != nil || sub.Err != nil {
			s.Fatal(other.Err, sub.Err)
		}
		other.Env.Release()
		sub.Env.Release()
	}
	s.restart()
	s.wantRemembered(time.Time{}, want)
	s.wantRemembered(since, want[late:])
	s.wantRemembered(since.Add(time.Minute), nil)
	n := 0
	if err := s.rememberer().Remembered(time.Time{}, func(queue.Remembered) bool { n++; return n < 3 }); err != nil || n != 3 {
		s.Errorf("yield was called %d times; it gave false the third time: %v", n, err)
	}
	// Two are dropped, two are held, the others are done.
	for i := range 4 {
		if i < 2 {
			if err := s.Drop(want[i].ID); err != nil {
				s.Fatal(err)
			}
		} else if err := s.Hold(want[i].ID, "stays"); err != nil {
			s.Fatal(err)
		}
	}
	for range 60 - 4 {
		s.settle(s.lease(), time.Time{}, delivered)
	}
	s.noLease()
	for i := range 3 {
		s.restart()
		s.wantRemembered(time.Time{}, want)
		sub, r := s.keyed(10, 88+i)
		s.Commit([]*queue.Submission{sub})
		if sub.Err != nil {
			s.Fatal(sub.Err)
		}
		sub.Env.Release()
		want = append(want, r)
		s.settle(s.lease(), time.Time{}, delivered)
	}
}

func (s *suite) remembersNoRefused() {
	s.rememberer()
	sub, _ := s.keyed(10, 5)
	if err := s.Engine.Close(); err != nil {
		s.Fatal(err)
	}
	s.Commit([]*queue.Submission{sub})
	if sub.Err == nil {
		s.Fatal("a closed engine took a message")
	}
	s.Engine = s.open(s.T, s.dir, s.clock.Now)
	s.wantRemembered(time.Time{}, nil)
}
