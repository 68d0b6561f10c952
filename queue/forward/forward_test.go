package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// The tests run in bubbles of synctest: time passes when everybody waits, so back-off takes none, and a goroutine left behind is a failure.

// message is one that a source has.
type message struct {
	queuetest.Message
	rcpts    int
	outcomes []queue.Outcome
	openErr  error // of Open
	readErr  error // in place of EOF

	leased, done, dead bool
	next               time.Time
	settled            int
}

// source is a queue.Source in memory.
type source struct {
	mu        sync.Mutex
	messages  []*message
	leases    map[*queue.Delivery]*message
	leased    int // now
	most      int // leased at one time
	settles   int
	traces    int
	settleErr error // of the next Settle
	leaseErr  error // of the next Lease
	closed    bool
	changed   chan struct{}
	maker     *queuetest.Maker
}

func newSource() *source {
	return &source{leases: map[*queue.Delivery]*message{}, changed: make(chan struct{}), maker: queuetest.NewMaker(nil)}
}

// add puts a message of size bytes of data to rcpts recipients in.
func (s *source) add(size, rcpts int) *message {
	sub, m := s.maker.Submission(size, rcpts)
	sub.Env.Release()
	s.mu.Lock()
	defer s.mu.Unlock()
	msg := &message{Message: m, rcpts: rcpts, outcomes: make([]queue.Outcome, rcpts)}
	s.messages = append(s.messages, msg)
	s.wake()
	return msg
}

func (s *source) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.wake()
}

func (s *source) Lease(ctx context.Context) (*queue.Delivery, error) {
	for {
		s.mu.Lock()
		err, due := s.leaseErr, time.Time{}
		s.leaseErr = nil
		if s.closed {
			err = queue.ErrClosed
		}
		for _, m := range s.messages {
			if m.leased || m.done || m.dead || err != nil {
				continue
			}
			if m.next.After(time.Now()) {
				if due.IsZero() || m.next.Before(due) {
					due = m.next
				}
				continue
			}
			m.leased = true
			s.leased++
			s.most = max(s.most, s.leased)
			d := s.delivery(m)
			s.mu.Unlock()
			return d, nil
		}
		changed := s.changed
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		wait := time.NewTimer(time.Hour)
		defer wait.Stop()
		if !due.IsZero() {
			wait.Reset(time.Until(due))
		}
		select {
		case <-changed:
		case <-wait.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *source) delivery(m *message) *queue.Delivery {
	env, err := envelope.Decode(m.Binary)
	if err != nil {
		panic(err)
	}
	switch s.traces++; s.traces % 3 { // a source may tell which part of what Open gives is ours
	case 0:
		env.Trace = m.Text[:bytes.Index(m.Text, []byte("\r\n"))+2]
	case 1:
		env.Trace = []byte("something else\r\n")
	}
	d := &queue.Delivery{Env: env, Size: int64(len(m.Text)), Outcomes: slices.Clone(m.outcomes)}
	d.Open = func() (io.ReadCloser, error) {
		if m.openErr != nil {
			return nil, m.openErr
		}
		if m.readErr != nil {
			return io.NopCloser(io.MultiReader(bytes.NewReader(m.Text), failing{m.readErr})), nil
		}
		return io.NopCloser(bytes.NewReader(m.Text)), nil
	}
	s.leases[d] = m
	return d
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (s *source) Settle(d *queue.Delivery, outcomes []queue.Outcome, next time.Time) error {
	return s.settle(d, outcomes, next, false)
}

func (s *source) Kill(d *queue.Delivery, outcomes []queue.Outcome, _ string) error {
	return s.settle(d, outcomes, time.Time{}, true)
}

func (s *source) settle(d *queue.Delivery, outcomes []queue.Outcome, next time.Time, kill bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.leases[d]
	if m == nil {
		panic("settled twice")
	}
	if d.Env.Data.Len() != 0 {
		panic("settled with its data")
	}
	delete(s.leases, d)
	m.leased = false
	s.leased--
	s.settles++
	m.settled++
	defer s.wake()
	if err := s.settleErr; err != nil {
		s.settleErr = nil
		return err
	}
	if len(outcomes) != m.rcpts {
		panic(fmt.Sprintf("%d outcomes for %d recipients", len(outcomes), m.rcpts))
	}
	m.outcomes, m.next, m.dead = outcomes, next, kill
	m.done = !kill && !slices.ContainsFunc(outcomes, func(o queue.Outcome) bool { return o.State == queue.Pending })
	return nil
}

// left counts the messages that are not done.
func (s *source) left() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.messages {
		if !m.done {
			n++
		}
	}
	return n
}

// target is a Batcher in memory.
type target struct {
	mu      sync.Mutex
	got     map[envelope.ID][]committed
	batches []int
	bytes   []int64                                 // of each batch
	fail    func(batch []*queue.Submission) []error // nil, or an error for each
	enter   chan struct{}                           // if not nil: a commit says that it began,
	leave   chan struct{}                           // and waits
}

type committed struct {
	text, binary []byte
	at           time.Time
}

func (t *target) Commit(batch []*queue.Submission) {
	if t.enter != nil {
		t.enter <- struct{}{}
		<-t.leave
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.batches = append(t.batches, len(batch))
	total := int64(0)
	var errs []error
	if t.fail != nil {
		errs = t.fail(batch)
	}
	if t.got == nil {
		t.got = map[envelope.ID][]committed{}
	}
	for i, s := range batch {
		total += s.Env.Size()
		if errs != nil && errs[i] != nil {
			s.Err = errs[i]
			continue
		}
		var text bytes.Buffer
		text.Write(s.Env.Trace)
		for _, b := range s.Env.Data.AppendBuffers(nil) {
			text.Write(b)
		}
		t.got[s.Env.ID] = append(t.got[s.Env.ID], committed{text.Bytes(), s.Env.AppendBinary(nil), time.Now()})
	}
	t.bytes = append(t.bytes, total)
}

func (t *target) setFail(fail func(batch []*queue.Submission) []error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail = fail
}

// all fails every message with err.
func all(err error) func([]*queue.Submission) []error {
	return func(batch []*queue.Submission) []error { return slices.Repeat([]error{err}, len(batch)) }
}

// only fails the message m with err.
func only(m *message, err error) func([]*queue.Submission) []error {
	return func(batch []*queue.Submission) []error {
		errs := make([]error, len(batch))
		for i, s := range batch {
			if s.Env.ID == m.ID {
				errs[i] = err
			}
		}
		return errs
	}
}

var quiet = slog.New(slog.DiscardHandler)

// run starts a forwarder; the function that it gives ends it and says what Run said.
func run(t *testing.T, s *source, to Batcher, o Options) (*Forwarder, func() error) {
	t.Helper()
	if o.Log == nil {
		o.Log = quiet
	}
	f := New(s, to, o)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	return f, func() error {
		cancel()
		err := <-ended
		if n := f.Stats().InHand; n != 0 {
			t.Errorf("%d messages in hand at the end", n)
		}
		if len(s.leases) != 0 {
			t.Errorf("%d leases at the end", len(s.leases))
		}
		return err
	}
}

func TestMessagesArriveByteForByteAndAreForgottenOnlyThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{}
		for i, size := range []int{0, 1, 4096, 8191, 100_000, 3_000_000} {
			s.add(size, i+1)
		}
		f, stop := run(t, s, to, Options{})
		synctest.Wait()
		for _, m := range s.messages {
			got := to.got[m.ID]
			if len(got) != 1 || !bytes.Equal(got[0].text, m.Text) || !bytes.Equal(got[0].binary, m.Binary) {
				t.Errorf("message of %d bytes: committed %d times, or altered", len(m.Text), len(got))
			}
		}
		if n := s.left(); n != 0 {
			t.Errorf("%d messages left", n)
		}
		if st := f.Stats(); st.Forwarded != 6 || st.Failed != 0 || !st.Up {
			t.Errorf("stats %+v", st)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run gave %v", err)
		}
	})
}

func TestWhileABatchIsCommittedTheNextOneGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{enter: make(chan struct{}), leave: make(chan struct{})}
		s.add(10, 1)
		_, stop := run(t, s, to, Options{Batch: 100})
		<-to.enter
		for range 250 {
			s.add(10, 1)
		}
		synctest.Wait()
		if s.most != 1+100+1 {
			t.Errorf("%d messages leased; want the batch of one, the next one of 100, and one that waits for its place", s.most)
		}
		for range 3 {
			to.leave <- struct{}{}
			<-to.enter
			synctest.Wait()
		}
		to.leave <- struct{}{}
		synctest.Wait()
		if !slices.Equal(to.batches, []int{1, 100, 100, 50}) {
			t.Errorf("batches of %v", to.batches)
		}
		stop()
	})
}

func TestABatchIsBoundedInBytesAndALongMessageGoesAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{enter: make(chan struct{}), leave: make(chan struct{})}
		s.add(10, 1)
		_, stop := run(t, s, to, Options{Window: 200_000})
		<-to.enter
		for range 40 {
			s.add(10_000, 1)
		}
		long := s.add(1_000_000, 1)
		s.add(10, 1)
		synctest.Wait()
		for s.left() > 0 {
			to.leave <- struct{}{}
			synctest.Wait()
			select {
			case <-to.enter:
			default:
			}
		}
		for i, n := range to.bytes {
			if n > 100_000+11_000 && n < int64(len(long.Text)) {
				t.Errorf("batch %d has %d messages, %d bytes", i, to.batches[i], n)
			}
		}
		if len(to.got[long.ID]) != 1 {
			t.Error("the long message did not go")
		}
		stop()
	})
}

func TestAnOutageCostsNeitherAttemptsNorMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{}
		to.fail = all(fmt.Errorf("target: %w", queue.ErrUnavailable))
		for range 1000 {
			s.add(100, 1)
		}
		begin := time.Now()
		f, stop := run(t, s, to, Options{Batch: 64})
		synctest.Wait()
		time.Sleep(72 * time.Hour)
		synctest.Wait()
		to.mu.Lock()
		tries := len(to.batches)
		to.mu.Unlock()
		// Between half of the longest back-off and the whole of it.
		if least := int(72 * time.Hour / (5 * time.Second)); tries < least || tries > 2*least+20 {
			t.Errorf("%d tries in three days, want %d to twice as many", tries, least)
		}
		if s.settles != 0 || s.most > 2*64+1 {
			t.Errorf("%d messages settled, %d leased at one time", s.settles, s.most)
		}
		st := f.Stats()
		if st.Up || st.Since.Sub(begin) > time.Second || !strings.Contains(st.Error, "unreachable") || st.Forwarded != 0 {
			t.Errorf("stats while down: %+v", st)
		}
		to.setFail(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := s.left(); n != 0 {
			t.Errorf("%d messages left 5 s after the target is back", n)
		}
		if st = f.Stats(); !st.Up || st.Error != "" || !st.Since.IsZero() || st.Forwarded != 1000 {
			t.Errorf("stats after it: %+v", st)
		}
		for _, m := range s.messages {
			if m.settled != 1 {
				t.Errorf("message settled %d times", m.settled)
			}
		}
		stop()
	})
}

func TestBackOffGrowsToItsBoundAndEndsInChance(t *testing.T) {
	f := New(newSource(), &target{}, Options{MinBackoff: 100 * time.Millisecond, MaxBackoff: 5 * time.Second})
	seen := map[time.Duration]bool{}
	for tries, want := range map[int]time.Duration{
		0: 100 * time.Millisecond, 1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond, 6: 3200 * time.Millisecond,
		7: 5 * time.Second, 31: 5 * time.Second, 32: 5 * time.Second, 1 << 40: 5 * time.Second,
	} {
		for range 100 {
			d := f.backoff(tries)
			if d < want/2 || d > want {
				t.Fatalf("after %d tries %v, want %v to %v", tries, d, want/2, want)
			}
			seen[d] = true
		}
	}
	if len(seen) < 500 {
		t.Errorf("%d different waits of 900", len(seen))
	}
}

func TestWhatWasNotCommittedOfABatchIsTriedAgainWithItsId(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{}
		var ms []*message
		for range 10 {
			ms = append(ms, s.add(100, 1))
		}
		to.fail = only(ms[3], queue.ErrUnavailable)
		_, stop := run(t, s, to, Options{Batch: 1})
		synctest.Wait()
		if n := s.left(); n != 7 {
			t.Errorf("%d left, want the one that failed and those behind it", n)
		}
		to.setFail(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		stop()
		// And in the middle of a batch.
		for range 10 {
			ms = append(ms, s.add(100, 1))
		}
		to.setFail(only(ms[13], queue.ErrUnavailable))
		_, stop = run(t, s, to, Options{})
		time.Sleep(time.Minute)
		to.setFail(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for _, m := range ms {
			if len(to.got[m.ID]) != 1 || m.settled != 1 {
				t.Errorf("committed %d times, settled %d times", len(to.got[m.ID]), m.settled)
			}
		}
		stop()
	})
}

func TestAMessageThatAloneIsRefusedWaitsAndHoldsNobodyUp(t *testing.T) {
	for _, lonely := range []bool{false, true} {
		t.Run(fmt.Sprintf("lonely=%v", lonely), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, to := newSource(), &target{enter: make(chan struct{}), leave: make(chan struct{})}
				bad := s.add(100, 2)
				to.fail = only(bad, errors.New("target: header holds what it must not"))
				f, stop := run(t, s, to, Options{Retry: time.Minute})
				go func() { // commits go on by themselves; the first waits for company
					for range to.enter {
						to.leave <- struct{}{}
					}
				}()
				if !lonely {
					for range 20 {
						s.add(100, 1)
					}
				}
				time.Sleep(20 * time.Second)
				synctest.Wait()
				s.mu.Lock()
				if bad.leased || bad.done || bad.dead || time.Until(bad.next) < 30*time.Second || !strings.Contains(bad.outcomes[1].Reply, "must not") {
					t.Errorf("the message that was refused: %+v", bad)
				}
				s.mu.Unlock()
				if n := s.left(); n != 1 {
					t.Errorf("%d messages left", n)
				}
				if st := f.Stats(); st.Deferred != 1 || !st.Up {
					t.Errorf("stats %+v", st)
				}
				to.setFail(nil)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if n := s.left(); n != 0 {
					t.Errorf("%d messages left", n)
				}
				stop()
				close(to.enter)
			})
		})
	}
}

func TestMessagesInHandAreGivenBackAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{fail: all(queue.ErrUnavailable)}
		for range 200 {
			s.add(100, 1)
		}
		_, stop := run(t, s, to, Options{Batch: 50})
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run gave %v", err)
		}
		for _, m := range s.messages {
			if m.done || m.dead || m.leased || m.next.After(time.Now()) {
				t.Errorf("after the end: %+v", m)
			}
		}
		// Another one takes them.
		to.fail = nil
		_, stop = run(t, s, to, Options{})
		synctest.Wait()
		if n := s.left(); n != 0 {
			t.Errorf("%d messages left", n)
		}
		stop()
	})
}

func TestAClosedSourceEndsItWithoutAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{}
		s.add(100, 1)
		f := New(s, to, Options{Log: quiet})
		synctest.Wait()
		go func() {
			synctest.Wait()
			s.close()
		}()
		if err := f.Run(t.Context()); err != nil {
			t.Errorf("Run gave %v", err)
		}
		if n := s.left(); n != 0 {
			t.Errorf("%d messages left", n)
		}
		if err := f.Run(t.Context()); err == nil {
			t.Error("a second Run was taken")
		}
	})
}

func TestTroubleOfTheSourcePasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{}
		s.leaseErr = errors.New("source: disk")
		s.settleErr = errors.New("source: disk again")
		m := s.add(100, 1)
		f, stop := run(t, s, to, Options{})
		time.Sleep(time.Minute)
		synctest.Wait()
		// What the source could not forget came again, under the same id: at least once.
		if len(to.got[m.ID]) != 2 || !m.done {
			t.Errorf("committed %d times, done: %v", len(to.got[m.ID]), m.done)
		}
		if st := f.Stats(); st.SettleErrors != 1 || st.Forwarded != 2 {
			t.Errorf("stats %+v", st)
		}
		stop()
	})
}

func TestWhoHasAMessageAlreadyDoesNotGetItAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{}
		m := s.add(100, 3)
		m.outcomes[0] = queue.Outcome{State: queue.Delivered, Reply: "250 2.0.0 Ok"}
		m.outcomes[2] = queue.Outcome{State: queue.Failed, Reply: "550 5.1.1 No"}
		nobody := s.add(100, 1)
		nobody.outcomes[0] = queue.Outcome{State: queue.Delivered}
		_, stop := run(t, s, to, Options{})
		synctest.Wait()
		env, err := envelope.Decode(to.got[m.ID][0].binary)
		if err != nil {
			t.Fatal(err)
		}
		if len(env.Recipients) != 1 || string(env.Recipients[0].Path) != "rcpt-1@example.org" || !bytes.Equal(to.got[m.ID][0].text, m.Text) {
			t.Errorf("forwarded to %d recipients, %q first", len(env.Recipients), env.Recipients[0].Path)
		}
		if o := m.outcomes; o[0].Reply != "250 2.0.0 Ok" || o[1].State != queue.Delivered || o[2].State != queue.Failed {
			t.Errorf("outcomes %v", o)
		}
		if len(to.got[nobody.ID]) != 0 || !nobody.done {
			t.Error("a message without pending recipients was forwarded, or is not done")
		}
		stop()
	})
}

func TestADamagedMessageIsKeptAndAnUnreadableOneTriedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, to := newSource(), &target{}
		damaged, unreadable, unopened := s.add(50_000, 1), s.add(50_000, 1), s.add(100, 1)
		damaged.readErr = fmt.Errorf("source: %w", queue.ErrCorrupt)
		unreadable.readErr = errors.New("source: disk")
		unopened.openErr = errors.New("source: disk")
		s.add(100, 1)
		_, stop := run(t, s, to, Options{})
		synctest.Wait()
		s.mu.Lock()
		if !damaged.dead || unreadable.dead || unreadable.done || !unreadable.next.After(time.Now()) || !unopened.next.After(time.Now()) {
			t.Errorf("damaged %+v; unreadable %+v; not opened %+v", damaged, unreadable, unopened)
		}
		unreadable.readErr, unopened.openErr = nil, nil
		s.mu.Unlock()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := s.left(); n != 1 || len(to.got[damaged.ID]) != 0 {
			t.Errorf("%d messages left, want the damaged one alone; it was committed %d times", n, len(to.got[damaged.ID]))
		}
		stop()
	})
}

// The rule that counts, under any order of faults: what the source was told is done has been committed before.
func TestNothingIsForgottenThatWasNotCommitted(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			faults := rand.New(rand.NewPCG(seed, 2)) // of the goroutine that commits
			s, to := newSource(), &target{}
			to.fail = func(batch []*queue.Submission) []error {
				errs := make([]error, len(batch))
				kind := faults.IntN(4)
				for i := range errs {
					switch {
					case kind == 0:
						errs[i] = queue.ErrUnavailable
					case kind == 1 && faults.IntN(2) == 0:
						errs[i] = queue.ErrFull
					case kind == 2 && faults.IntN(5) == 0:
						errs[i] = errors.New("its own")
					}
				}
				return errs
			}
			for range 150 {
				s.add(r.IntN(20_000), 1+r.IntN(3))
			}
			o := Options{Batch: 1 + r.IntN(64), Window: int64(1 + r.IntN(300_000)), Retry: time.Second}
			for range 5 {
				_, stop := run(t, s, to, o)
				time.Sleep(time.Duration(r.Int64N(int64(20 * time.Second))))
				if r.IntN(2) == 0 {
					s.mu.Lock()
					s.settleErr = errors.New("disk")
					s.mu.Unlock()
				}
				stop()
			}
			to.fail = nil
			_, stop := run(t, s, to, o)
			time.Sleep(time.Minute)
			stop()
			for _, m := range s.messages {
				got := to.got[m.ID]
				if !m.done || len(got) == 0 || !bytes.Equal(got[0].text, m.Text) {
					t.Errorf("seed %d: done: %v, committed %d times", seed, m.done, len(got))
				}
			}
		})
	}
}
