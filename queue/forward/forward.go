// Package forward moves mail from one queue to another: from the spool, which has acknowledged it, to an engine that other machines
// see, such as JetStream.
//
// What it promises: a message leaves the source only after the target has committed it. A crash or a lost reply in between means that it is
// committed again under the same id; a target that knows duplicates (JetStream, within its window) drops it, another has it twice: at least
// once, as everywhere. Nothing is dropped and nothing becomes dead for want of the target, however long it is away: messages wait in
// the source, whose own bounds (queue.min_free) then refuse new ones.
//
// # Goroutines
//
// One leases messages and reads them into memory, one gathers what was leased into the next batch, and Run's own commits a batch and settles it.
// While a batch is being committed the next one gathers, so a lone message goes at once and a backlog goes in full batches, whatever
// their number. All have ended when Run returns; messages in hand are given back to the source then.
//
// # A target that is down
//
// When nothing of a batch could be committed, the batch stays in hand and is tried again, later each time (Options.MinBackoff, doubled up to
// Options.MaxBackoff, the second half of it by chance, so that many edges do not return at the same moment). Nothing else is leased
// meanwhile but the batch behind it: an outage costs a backlog of millions neither a note in the source nor an attempt. A message that alone fails, beside
// others that do not, goes back to the source to wait for Options.Retry, and holds nobody up.
//
// # Memory
//
// Two batches are in memory at most, one more message, and what the source keeps for a lease: Options.Window bytes of
// messages, and what one message is longer than half of that. The chunks come from a list of the forwarder's own, so a slow target takes
// nothing from the budget of those who accept mail.
package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
)

// Batcher is the part of a queue.Backend that is needed: where the mail goes. Run calls it from one goroutine. Commit must end by itself when the
// target can't be reached.
type Batcher interface {
	Commit(batch []*queue.Submission)
}

// Options of a Forwarder. Zero values mean the defaults named.
type Options struct {
	// Batch is the most messages of one commit. Default 1024.
	Batch int
	// Window is how many message bytes are in hand at most, over the batch being committed and the one behind it. A message longer than half of it
	// is taken all the same, alone. Default 64 MiB.
	Window int64
	// MinBackoff and MaxBackoff bound the time between two attempts while the target is down. Defaults 100 ms and 5 s.
	MinBackoff, MaxBackoff time.Duration
	// Retry is how long a message waits that the target does not take though it takes others. Default 1 min.
	Retry time.Duration
	// Now is the clock for that. Default time.Now.
	Now func() time.Time
	// Log is told when the target goes down and comes back, and of each message that waits. Default slog.Default().
	Log *slog.Logger

	// pause waits, or gives false when ctx ended first; tests have their own.
	pause func(ctx context.Context, d time.Duration) bool
}

func (o *Options) defaults() {
	if o.Batch <= 0 {
		o.Batch = 1024
	}
	if o.Window <= 0 {
		o.Window = 64 << 20
	}
	if o.MinBackoff <= 0 {
		o.MinBackoff = 100 * time.Millisecond
	}
	if o.MaxBackoff < o.MinBackoff {
		o.MaxBackoff = max(5*time.Second, o.MinBackoff)
	}
	if o.Retry <= 0 {
		o.Retry = time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.pause == nil {
		o.pause = pause
	}
}

const (
	// maxLoneTries is how often a batch whose every message failed for a reason of its own is committed again before these are believed.
	maxLoneTries = 3
	// maxIdleChunks is how many bytes of unused chunks are kept for the next batch.
	maxIdleChunks = 16 << 20
	// maxReplyBytes is how much of an error is kept with a message.
	maxReplyBytes = 512
)

// Stats are counters since New, and how the target is.
type Stats struct {
	Forwarded    uint64    `json:"forwarded"`       // messages that the target has committed
	Commits      uint64    `json:"commits"`         // batches of which it has committed some
	Failed       uint64    `json:"failed"`          // messages that it did not commit and that are tried again at once, counted for each try
	Deferred     uint64    `json:"deferred"`        // messages that go back to the source to wait: refused alone, or not readable
	SettleErrors uint64    `json:"settle_errors"`   // messages committed that the source could not forget: they come again
	InHand       int       `json:"in_hand"`         // messages leased now
	Up           bool      `json:"up"`              // the last batch could be committed, or none was tried yet
	Since        time.Time `json:"since,omitzero"`  // when it went down
	Error        string    `json:"error,omitempty"` // why
}

// Forwarder moves messages until its Run ends.
type Forwarder struct {
	o      Options
	src    queue.Source
	to     Batcher
	chunks *pool.List
	ran    atomic.Bool

	forwarded, commits, failed, deferred, settleErrors atomic.Uint64
	inHand                                             atomic.Int64

	mu    sync.Mutex
	since time.Time // zero while the target is up
	err   string
}

// New gives a forwarder from src to to. Run starts it.
func New(src queue.Source, to Batcher, o Options) *Forwarder {
	o.defaults()
	return &Forwarder{o: o, src: src, to: to, chunks: pool.NewSharedList(maxIdleChunks, nil)}
}

// Stats gives the counters. Any goroutine.
func (f *Forwarder) Stats() Stats {
	f.mu.Lock()
	since, err := f.since, f.err
	f.mu.Unlock()
	return Stats{
		Forwarded: f.forwarded.Load(), Commits: f.commits.Load(), Failed: f.failed.Load(), Deferred: f.deferred.Load(),
		SettleErrors: f.settleErrors.Load(), InHand: int(f.inHand.Load()), Up: since.IsZero(), Since: since, Error: err,
	}
}

// item is a leased message. sub.Env has its data.
type item struct {
	d     *queue.Delivery
	sub   queue.Submission
	whole bool // sub.Env is d.Env: all recipients are pending
}

// Run forwards until ctx ends, whose error it gives, or the source is closed, which is nil. It may be called once.
func (f *Forwarder) Run(ctx context.Context) error {
	if f.ran.Swap(true) {
		return errors.New("forward: Run called twice")
	}
	leased, batches := make(chan *item), make(chan []*item)
	var err error
	var workers sync.WaitGroup
	workers.Go(func() {
		defer close(leased)
		err = f.lease(ctx, leased)
	})
	workers.Go(func() {
		defer close(batches)
		f.gather(leased, batches)
	})
	for batch := range batches {
		f.forward(ctx, batch)
	}
	workers.Wait()
	if errors.Is(err, queue.ErrClosed) {
		return nil
	}
	return err
}

// lease takes one message after the other and reads it, until ctx ends or the source is closed.
func (f *Forwarder) lease(ctx context.Context, out chan<- *item) error {
	for {
		if ctx.Err() != nil {
			return ctx.Err() // a source may have a message all the same: the one just given back
		}
		d, err := f.src.Lease(ctx)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, queue.ErrClosed):
			return err
		default:
			// The source has trouble of its own, which may pass; asking again at once would spin.
			f.o.Log.Error("forward: lease failed", "error", err)
			if !f.o.pause(ctx, f.o.MaxBackoff) {
				return ctx.Err()
			}
			continue
		}
		f.inHand.Add(1)
		if it := f.read(d); it != nil {
			out <- it // the gatherer takes all there are, and Run all batches
		}
	}
}

// read makes a submission of a delivery: the recipients that are still pending, and the message in memory. It gives nil after it has settled
// what can't be forwarded.
func (f *Forwarder) read(d *queue.Delivery) *item {
	it := &item{d: d, whole: true}
	for _, o := range d.Outcomes {
		it.whole = it.whole && o.State == queue.Pending
	}
	env := d.Env
	if !it.whole {
		// It was tried by a relay before it came here. Nobody gets it twice for that.
		env = d.Env.CloneHead()
		env.Recipients = env.Recipients[:0]
		for i, o := range d.Outcomes {
			if o.State == queue.Pending {
				env.Recipients = append(env.Recipients, d.Env.Recipients[i])
			}
		}
		if len(env.Recipients) == 0 {
			f.settle(d, d.Outcomes, f.o.Now())
			return nil
		}
	}
	if err := f.fill(env, d); err != nil {
		env.Data.Release()
		f.unreadable(d, err)
		return nil
	}
	it.sub.Env = env
	return it
}

// fill reads the message into env. What Open gives begins with the trace field, which stays apart when the source has told it.
func (f *Forwarder) fill(env *envelope.Envelope, d *queue.Delivery) error {
	r, err := d.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	if len(env.Trace) > 0 {
		front := make([]byte, len(env.Trace))
		n, err := io.ReadFull(r, front)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		if !bytes.Equal(front[:n], env.Trace) {
			env.Trace = nil
			env.Data.Append(f.chunks, front[:n])
		}
	}
	for {
		room := env.Data.Spare(f.chunks) // the list has no limit
		n, err := r.Read(room)
		env.Data.Extend(n)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// unreadable deals with a message that the source has leased and could not give.
func (f *Forwarder) unreadable(d *queue.Delivery, err error) {
	f.o.Log.Error("forward: message can't be read", "message", d.Env.ID.String(), "error", err)
	if errors.Is(err, queue.ErrCorrupt) {
		if err := f.src.Kill(d, outcomes(d, queue.Pending, err.Error()), err.Error()); err != nil {
			f.unsettled(d, err)
		}
		f.inHand.Add(-1)
		return
	}
	f.deferred.Add(1)
	f.settle(d, outcomes(d, queue.Pending, err.Error()), f.o.Now().Add(f.o.Retry))
}

// gather hands batches over as soon as the last one is done with, and meanwhile takes what is leased, to the bounds of a batch.
func (f *Forwarder) gather(leased <-chan *item, batches chan<- []*item) {
	var batch []*item
	size := int64(0)
	for leased != nil || len(batch) > 0 {
		in, out := leased, batches
		if len(batch) == 0 {
			out = nil
		}
		if len(batch) == f.o.Batch || size >= f.o.Window/2 {
			in = nil
		}
		select {
		case it, ok := <-in:
			if !ok {
				leased = nil
				continue
			}
			batch = append(batch, it)
			size += it.d.Size
		case out <- batch:
			batch, size = make([]*item, 0, len(batch)), 0
		}
	}
}

// forward commits a batch, and what is left of it again and again, until all of it is settled or ctx ends.
func (f *Forwarder) forward(ctx context.Context, batch []*item) {
	subs := make([]*queue.Submission, 0, len(batch))
	for tries := 1; ; tries++ {
		subs = subs[:0]
		for _, it := range batch {
			it.sub.Err = nil
			subs = append(subs, &it.sub)
		}
		f.to.Commit(subs)
		now := f.o.Now()
		kept, done, lone, last := batch[:0], 0, 0, error(nil)
		for _, it := range batch {
			if it.sub.Err == nil {
				done++
			} else {
				last = it.sub.Err
				if !ofTarget(last) {
					lone++
				}
			}
		}
		// A message's own error is one that others do not have, or that it has again and again.
		believe := done > 0 || lone == len(batch) && tries >= maxLoneTries
		for _, it := range batch {
			switch err := it.sub.Err; {
			case err == nil:
				f.release(it)
				f.settle(it.d, outcomes(it.d, queue.Delivered, "forwarded"), now)
			case believe && !ofTarget(err):
				f.o.Log.Warn("forward: message is not taken and waits", "message", it.d.Env.ID.String(), "error", err)
				f.deferred.Add(1)
				f.release(it)
				f.settle(it.d, outcomes(it.d, queue.Pending, err.Error()), now.Add(f.o.Retry))
			default:
				kept = append(kept, it)
			}
		}
		clear(batch[len(kept):])
		f.failed.Add(uint64(len(kept)))
		f.forwarded.Add(uint64(done))
		if done > 0 {
			f.commits.Add(1)
			tries = 0
		}
		if batch = kept; len(batch) == 0 {
			f.up(now)
			return
		}
		f.down(now, last, len(batch))
		if ctx.Err() != nil || !f.o.pause(ctx, f.backoff(tries)) {
			for _, it := range batch {
				f.release(it)
				f.settle(it.d, outcomes(it.d, queue.Pending, last.Error()), now)
			}
			return
		}
	}
}

// ofTarget tells trouble of the target, which the next message would have as well, from a message's own.
func ofTarget(err error) bool {
	for _, of := range []error{queue.ErrUnavailable, queue.ErrFull, queue.ErrNoSpace, queue.ErrClosed, context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// backoff is how long to wait after so many tries in vain.
func (f *Forwarder) backoff(tries int) time.Duration {
	d := f.o.MaxBackoff
	if tries < 32 && f.o.MinBackoff<<max(tries-1, 0) < d {
		d = f.o.MinBackoff << max(tries-1, 0)
	}
	return d/2 + rand.N(d/2+1)
}

func (f *Forwarder) up(now time.Time) {
	f.mu.Lock()
	since := f.since
	f.since, f.err = time.Time{}, ""
	f.mu.Unlock()
	if !since.IsZero() {
		f.o.Log.Info("forward: messages are taken again", "seconds", now.Sub(since).Seconds())
	}
}

func (f *Forwarder) down(now time.Time, err error, messages int) {
	f.mu.Lock()
	first := f.since.IsZero()
	if first {
		f.since = now
	}
	f.err = err.Error()
	f.mu.Unlock()
	if first {
		f.o.Log.Warn("forward: messages are not taken; they wait where they are", "messages", messages, "error", err)
	}
}

// release gives the memory of a message back, and leaves the delivery as it was leased.
func (f *Forwarder) release(it *item) {
	it.sub.Env.Data.Release()
}

func (f *Forwarder) settle(d *queue.Delivery, all []queue.Outcome, next time.Time) {
	if err := f.src.Settle(d, all, next); err != nil {
		f.unsettled(d, err)
	}
	f.inHand.Add(-1)
}

func (f *Forwarder) unsettled(d *queue.Delivery, err error) {
	f.settleErrors.Add(1)
	if !errors.Is(err, queue.ErrClosed) {
		f.o.Log.Error("forward: result not kept; the message is forwarded again", "message", d.Env.ID.String(), "error", err)
	}
}

// outcomes are those of d, with state for the recipients that were pending.
func outcomes(d *queue.Delivery, state queue.RcptState, reply string) []queue.Outcome {
	all := make([]queue.Outcome, len(d.Env.Recipients))
	copy(all, d.Outcomes)
	reply = reply[:min(len(reply), maxReplyBytes)]
	for i := range all {
		if all[i].State == queue.Pending {
			all[i] = queue.Outcome{State: state, Reply: reply}
		}
	}
	return all
}

// pause sleeps for d; it gives false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
