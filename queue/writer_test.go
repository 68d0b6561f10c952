package queue

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fastedge/fastedge/envelope"
)

// gate is a backend whose commits wait for the test.
type gate struct {
	entered chan int      // batch size
	leave   chan struct{} // one token a commit
	fail    error
}

func newGate() *gate { return &gate{entered: make(chan int, 64), leave: make(chan struct{}, 64)} }

func (g *gate) Commit(batch []*Submission) {
	g.entered <- len(batch)
	<-g.leave
	for _, s := range batch {
		s.Err = g.fail
	}
}
func (g *gate) Room() error  { return nil }
func (g *gate) Close() error { return nil }

// recorder is an owner that remembers what it was told.
type recorder struct {
	mu    sync.Mutex
	calls [][]*Submission
}

func (r *recorder) Committed(batch []*Submission) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, append([]*Submission(nil), batch...))
}

func submission(o Owner, n int) *Submission {
	return &Submission{Env: &envelope.Envelope{Trace: make([]byte, n)}, Owner: o}
}

func TestWhatArrivesDuringACommitIsTheNextBatch(t *testing.T) {
	g, o := newGate(), &recorder{}
	w := NewWriter(g, Limits{})
	w.Submit(submission(o, 1))
	if n := <-g.entered; n != 1 {
		t.Fatalf("first batch has %d messages, want 1: a lone message waits for nobody", n)
	}
	for range 5 {
		w.Submit(submission(o, 1))
	}
	g.leave <- struct{}{}
	if n := <-g.entered; n != 5 {
		t.Fatalf("second batch has %d messages, want the 5 that came during the first", n)
	}
	g.leave <- struct{}{}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestOwnersAreToldOncePerCommitInOrder(t *testing.T) {
	g, a, b := newGate(), &recorder{}, &recorder{}
	w := NewWriter(g, Limits{})
	w.Submit(submission(a, 1))
	<-g.entered
	var wantA, wantB []*Submission
	for i := range 6 {
		if i%2 == 0 {
			wantA = append(wantA, submission(a, 1))
			w.Submit(wantA[len(wantA)-1])
		} else {
			wantB = append(wantB, submission(b, 1))
			w.Submit(wantB[len(wantB)-1])
		}
	}
	g.leave <- struct{}{}
	g.leave <- struct{}{}
	w.Close(context.Background())
	if len(a.calls) != 2 || len(b.calls) != 1 {
		t.Fatalf("owner a was told %d times and b %d times, want 2 and 1", len(a.calls), len(b.calls))
	}
	for i := range wantA {
		if a.calls[1][i] != wantA[i] || b.calls[0][i] != wantB[i] {
			t.Fatalf("submission %d came back out of order", i)
		}
	}
}

func TestPendingLimitIsExact(t *testing.T) {
	g, o := newGate(), &recorder{}
	w := NewWriter(g, Limits{MaxPending: 3})
	for i := range 3 {
		if err := w.Submit(submission(o, 1)); err != nil {
			t.Fatalf("message %d of 3: %v", i+1, err)
		}
	}
	if err := w.Submit(submission(o, 1)); !errors.Is(err, ErrFull) {
		t.Fatalf("message 4 of 3: %v, want ErrFull", err)
	}
	if err := w.Room(); !errors.Is(err, ErrFull) {
		t.Fatalf("Room at the limit: %v, want ErrFull", err)
	}
	for range 3 {
		g.leave <- struct{}{}
	}
	w.Close(context.Background())
}

func TestPendingBytesLimitIsExactAndOneMessageIsAlwaysTaken(t *testing.T) {
	g, o := newGate(), &recorder{}
	w := NewWriter(g, Limits{MaxPendingBytes: 100})
	if err := w.Submit(submission(o, 60)); err != nil {
		t.Fatal(err)
	}
	if err := w.Submit(submission(o, 41)); !errors.Is(err, ErrFull) {
		t.Fatalf("byte 101 of 100: %v, want ErrFull", err)
	}
	if err := w.Submit(submission(o, 40)); err != nil {
		t.Fatalf("byte 100 of 100: %v", err)
	}
	g.leave <- struct{}{}
	g.leave <- struct{}{}
	w.Close(context.Background())
	w = NewWriter(g, Limits{MaxPendingBytes: 100})
	if err := w.Submit(submission(o, 101)); err != nil {
		t.Fatalf("a lone message over the limit: %v", err)
	}
	g.leave <- struct{}{}
	w.Close(context.Background())
}

func TestBatchLimitsAreExact(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limits Limits
		want   []int
	}{
		{"messages", Limits{MaxBatch: 3}, []int{1, 3, 1}},
		{"bytes", Limits{MaxBatchBytes: 20}, []int{1, 2, 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, o := newGate(), &recorder{}
			w := NewWriter(g, tc.limits)
			w.Submit(submission(o, 10))
			first := <-g.entered
			for range 4 {
				w.Submit(submission(o, 10))
			}
			got := []int{first}
			g.leave <- struct{}{}
			for range tc.want[1:] {
				got = append(got, <-g.entered)
				g.leave <- struct{}{}
			}
			w.Close(context.Background())
			for i := range tc.want {
				if got[i] != tc.want[i] {
					t.Fatalf("batches %v, want %v", got, tc.want)
				}
			}
		})
	}
}

func TestUnderLoadABatchLingersForCompanyAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, o := newGate(), &recorder{}
		w := NewWriter(g, Limits{MaxLinger: time.Millisecond, LingerFrom: 4})
		w.Submit(submission(o, 1))
		<-g.entered
		for range 3 {
			w.Submit(submission(o, 1))
		}
		// Four are about at the end of this commit. Three wait: the fourth is waited for.
		g.leave <- struct{}{}
		synctest.Wait()
		if len(g.entered) != 0 {
			t.Fatal("the batch did not wait for as many as were about")
		}
		w.Submit(submission(o, 1))
		if n := <-g.entered; n != 4 {
			t.Fatalf("batch of %d, want 4", n)
		}
		// Now nobody comes but one: the wait ends by itself.
		w.Submit(submission(o, 1))
		g.leave <- struct{}{}
		start := time.Now()
		if n := <-g.entered; n != 1 || time.Since(start) != time.Millisecond {
			t.Fatalf("batch of %d after %v, want 1 after 1ms", n, time.Since(start))
		}
		// And from now on it is a lone client again.
		g.leave <- struct{}{}
		w.Submit(submission(o, 1))
		start = time.Now()
		if n := <-g.entered; n != 1 || time.Since(start) != 0 {
			t.Fatalf("batch of %d after %v, want 1 at once", n, time.Since(start))
		}
		g.leave <- struct{}{}
		w.Close(context.Background())
	})
}

func TestCloseCommitsWhatWaitsAndRefusesTheRest(t *testing.T) {
	g, o := newGate(), &recorder{}
	w := NewWriter(g, Limits{})
	for range 3 {
		w.Submit(submission(o, 1))
	}
	short, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.Close(short); !errors.Is(err, context.Canceled) {
		t.Fatalf("Close while a commit runs, context over: %v", err)
	}
	if err := w.Submit(submission(o, 1)); !errors.Is(err, ErrClosed) {
		t.Fatalf("Submit after Close: %v", err)
	}
	for range 3 {
		g.leave <- struct{}{}
	}
	<-w.done
	told := 0
	for _, c := range o.calls {
		told += len(c)
	}
	if told != 3 {
		t.Fatalf("%d of 3 messages answered", told)
	}
}

func TestSubmitDoesNotAllocate(t *testing.T) {
	o := &recorder{}
	free := &gate{entered: make(chan int, 1<<16), leave: make(chan struct{}, 1<<16)}
	w := NewWriter(free, Limits{})
	s := submission(o, 1)
	w.Submit(s) // the writer is inside a commit from now on
	<-free.entered
	w.waiting = make([]*Submission, 0, 4096)
	if n := testing.AllocsPerRun(1000, func() { w.Submit(s) }); n != 0 {
		t.Errorf("%v allocations a Submit, want 0", n)
	}
	for range 1100 {
		free.leave <- struct{}{}
	}
	w.Close(context.Background())
}

// crowd is a backend that counts commits.
type crowd struct{ commits int }

func (c *crowd) Commit([]*Submission) { c.commits++ }
func (c *crowd) Room() error          { return nil }
func (c *crowd) Close() error         { return nil }

func TestGoroutinesThatAreReadyToSubmitShareACommit(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const many = 100
	c, o := &crowd{}, &recorder{}
	w := NewWriter(c, Limits{})
	var all sync.WaitGroup
	for range many {
		all.Go(func() { w.Submit(submission(o, 1)) })
	}
	all.Wait()
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	// A scheduler that is interrupted makes some more of the few; it takes many to make half of them.
	if c.commits > many/2 {
		t.Errorf("%d commits for %d messages", c.commits, many)
	}
}
