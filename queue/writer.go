package queue

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"
)

// Limits bound a Writer. Zero values mean the defaults named.
type Limits struct {
	// MaxPending is the most messages that may wait for a commit, the running one included; more are refused with ErrFull.
	// Default 65536.
	MaxPending int
	// MaxPendingBytes is the same in message bytes. Default 1 GiB.
	MaxPendingBytes int64
	// MaxBatch is the most messages of one commit. Default 1024.
	MaxBatch int
	// MaxBatchBytes is the most message bytes of one commit, unless one message alone is larger. Default 64 MiB.
	MaxBatchBytes int64
	// MaxLinger is how long a batch may wait for company under load: when at least LingerFrom messages were about at the last
	// commit (committed by it, or waiting at its end), the next one waits until as many have come again. It trades that much
	// latency for fewer syncs and less CPU. A lone client never waits. Zero, the default, never waits at all: whatever arrived
	// during the last commit is the next batch.
	MaxLinger time.Duration
	// LingerFrom is the load from which MaxLinger applies, in messages. Default 8.
	LingerFrom int
}

func (l *Limits) defaults() {
	if l.MaxPending == 0 {
		l.MaxPending = 65536
	}
	if l.MaxPendingBytes == 0 {
		l.MaxPendingBytes = 1 << 30
	}
	if l.MaxBatch == 0 {
		l.MaxBatch = 1024
	}
	if l.MaxBatchBytes == 0 {
		l.MaxBatchBytes = 64 << 20
	}
	if l.LingerFrom == 0 {
		l.LingerFrom = 8
	}
}

// Writer turns submissions from many goroutines into batches for one Backend: group commit. While a batch is being made durable the
// next one gathers, so the cost of a sync is shared by all that wait, and a lone message never waits for company.
type Writer struct {
	backend Backend
	limits  Limits
	done    chan struct{} // closed when the writer goroutine has ended

	mu      sync.Mutex
	waiting []*Submission // not yet taken into a batch, oldest first
	pending int           // waiting plus the running batch
	bytes   int64         // of pending
	idle    bool          // the writer goroutine sleeps on wake
	wakeAt  int           // how many must be waiting to wake it
	closing bool
	wake    chan struct{} // capacity 1
	linger  *time.Timer   // the writer goroutine's
}

// NewWriter starts the writer's goroutine over backend.
func NewWriter(backend Backend, limits Limits) *Writer {
	limits.defaults()
	w := &Writer{backend: backend, limits: limits, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go w.run()
	return w
}

// Submit hands a message over without blocking; any goroutine. With nil the Owner will be told of the result exactly once. With
// ErrFull or ErrClosed nothing was taken and the submission stays the caller's.
func (w *Writer) Submit(s *Submission) error {
	size := s.Env.Size()
	w.mu.Lock()
	if w.closing {
		w.mu.Unlock()
		return ErrClosed
	}
	// One message alone is always taken, whatever its size: the edge has bounded it.
	if w.pending >= w.limits.MaxPending || w.pending > 0 && w.bytes+size > w.limits.MaxPendingBytes {
		w.mu.Unlock()
		return ErrFull
	}
	w.waiting = append(w.waiting, s)
	w.pending++
	w.bytes += size
	wake := w.idle && len(w.waiting) >= w.wakeAt
	if wake {
		w.idle = false
	}
	w.mu.Unlock()
	if wake {
		w.wake <- struct{}{}
	}
	return nil
}

// Room asks whether a message would be taken now: by the writer's own bounds, then by the backend. Any goroutine.
func (w *Writer) Room() error {
	w.mu.Lock()
	full, closing := w.pending >= w.limits.MaxPending || w.bytes >= w.limits.MaxPendingBytes, w.closing
	w.mu.Unlock()
	switch {
	case closing:
		return ErrClosed
	case full:
		return ErrFull
	}
	return w.backend.Room()
}

// Pending says how many messages and bytes wait for their commit. Any goroutine.
func (w *Writer) Pending() (messages int, bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pending, w.bytes
}

// Close refuses new submissions, commits what is waiting, and returns when the last owner has been told, or with ctx's error. It
// does not close the backend.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	already := w.closing
	w.closing = true
	wake := w.idle
	w.idle = false
	w.mu.Unlock()
	if wake {
		w.wake <- struct{}{}
	}
	select {
	case <-w.done:
		if already {
			return ErrClosed
		}
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("queue: writer still has messages to commit"), ctx.Err())
	}
}

func (w *Writer) run() {
	defer close(w.done)
	var batch []*Submission
	load := 0 // messages about at the end of the last commit: its own, and those that waited by then
	scratch := make([]*Submission, 0, w.limits.MaxBatch)
	for {
		var open bool
		batch, open = w.next(batch, load)
		if len(batch) == 0 && !open {
			return
		}
		size := int64(0)
		for _, s := range batch {
			size += s.Env.Size() // before the owner has it back
		}
		n := len(batch)
		w.backend.Commit(batch)
		w.mu.Lock()
		w.pending -= n
		w.bytes -= size
		load = n + len(w.waiting)
		w.mu.Unlock()
		tellOwners(batch, scratch)
	}
}

// next waits for submissions and moves at most a batch of them into buf. open is false when the writer is closing and nothing is left.
func (w *Writer) next(buf []*Submission, load int) (batch []*Submission, open bool) {
	clear(buf)
	batch = buf[:0]
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.waiting) == 0 {
		if w.closing {
			return batch, false
		}
		w.sleep(1, nil)
		// Whoever woke this goroutine is about to wait for it, so the scheduler runs it next. Where each client has a goroutine, as with HTTP, those
		// that are ready to submit would come after the commit, and at a load of 100 clients every second message had one of its own: 120 µs of CPU
		// instead of 48. A lone client has nobody to wait for.
		w.mu.Unlock()
		runtime.Gosched()
		w.mu.Lock()
	}
	if load = min(load, w.limits.MaxBatch); w.limits.MaxLinger > 0 && load >= w.limits.LingerFrom && len(w.waiting) < load && !w.closing {
		if w.linger == nil {
			w.linger = time.NewTimer(w.limits.MaxLinger)
		} else {
			w.linger.Reset(w.limits.MaxLinger)
		}
		w.sleep(load, w.linger.C)
		w.linger.Stop()
	}
	n, bytes := 0, int64(0)
	for n < len(w.waiting) && n < w.limits.MaxBatch {
		size := w.waiting[n].Env.Size()
		if n > 0 && bytes+size > w.limits.MaxBatchBytes {
			break
		}
		bytes += size
		n++
	}
	batch = append(batch, w.waiting[:n]...)
	rest := copy(w.waiting, w.waiting[n:])
	clear(w.waiting[rest:])
	w.waiting = w.waiting[:rest]
	return batch, true
}

// sleep lets go of mu until n submissions wait, the writer closes, or timeout fires.
func (w *Writer) sleep(n int, timeout <-chan time.Time) {
	w.idle, w.wakeAt = true, n
	w.mu.Unlock()
	select {
	case <-w.wake:
		w.mu.Lock()
	case <-timeout:
		w.mu.Lock()
		if !w.idle { // woken at the same moment: take the token, it must not end the next sleep
			<-w.wake
		}
		w.idle = false
	}
}

// tellOwners calls each owner once with its submissions, in batch order. It overwrites batch and scratch. There are few owners (one a
// loop), so a pass per owner is cheaper than a map.
func tellOwners(batch, scratch []*Submission) {
	for len(batch) > 0 {
		owner := batch[0].Owner
		mine, others := batch[:0], scratch[:0]
		for _, s := range batch {
			if s.Owner == owner {
				mine = append(mine, s)
			} else {
				others = append(others, s)
			}
		}
		owner.Committed(mine)
		batch = batch[:copy(batch, others)]
	}
}
