package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/smtpcodec"
)

// OnError says what happens to mail when a validator cannot decide.
type OnError uint8

const (
	// Defer fails closed: the client gets 451 4.3.0 and tries again later. It is the default.
	Defer OnError = iota
	// Accept fails open: it is as if the validator had not been asked. The log says so.
	Accept
)

// ParseOnError reads "defer" and "accept".
func ParseOnError(word string) (OnError, error) {
	switch word {
	case "defer":
		return Defer, nil
	case "accept":
		return Accept, nil
	}
	return 0, fmt.Errorf("policy: %q is neither defer nor accept", word)
}

// Why a blocking validator could not decide.
var (
	ErrBusy   = errors.New("policy: too many questions are waiting")
	ErrLate   = errors.New("policy: no decision in time")
	ErrClosed = errors.New("policy: validator is closed")
)

// BlockingOptions say what a blocking validator runs, and how much of it.
type BlockingOptions struct {
	// Name is how logs call it.
	Name   string
	Stages Stages // those that wait, AtConnect to AtMessage
	// Workers is how many questions are worked on at once, each by a goroutine. Zero means 16.
	Workers int
	// MaxQueued is how many more questions may wait for a worker. Zero means 1024.
	MaxQueued int
	// Timeout is the time from the question to the answer, waiting for a worker included. Zero means 10 s.
	Timeout time.Duration
	// OnError is what happens when Do gives an error, panics or is late, and when too many questions wait.
	OnError OnError
	// Do decides, on a worker's goroutine: a reply as in Event.Reply, and header fields to be put before the message. ctx ends with
	// Timeout, or when the client is gone. The event in p is Do's to read. When Do is late, its result is thrown away, and its worker is
	// busy until it returns.
	Do func(ctx context.Context, p *Pending) (reply smtpcodec.Reply, fields []byte, err error)
	// Log gets a line for what was accepted because of OnError, at most one a second. Nil means none.
	Log *slog.Logger
}

const (
	defaultWorkers   = 16
	defaultMaxQueued = 1024
	defaultTimeout   = 10 * time.Second
)

// Blocking is a Validator that runs blocking code, on a bounded number of goroutines and with a deadline.
type Blocking struct {
	o     BlockingOptions
	queue chan *blockingJob
	ctx   context.Context // of everything that runs
	stop  context.CancelFunc

	mu      sync.Mutex
	workers int // running, with a question or for the next one

	accepted atomic.Int32 // questions in the queue or with a worker
	busy     atomic.Int32
	stuck    atomic.Int32
	full     atomic.Uint64
	late     atomic.Uint64
	failed   atomic.Uint64
	logged   atomic.Int64 // when, in seconds since 1970
	unlogged atomic.Uint64
}

type blockingJob struct {
	p      *Pending
	ctx    context.Context
	cancel context.CancelFunc
	unhook func() bool // of expire; true when it has not run
	state  atomic.Uint32
}

// Where a job is. A late job that has a worker is stuck until that returns.
const (
	jobWaits uint32 = iota
	jobRuns
	jobLate
	jobOver
)

// NewBlocking gives a validator; its goroutines are started when they are needed and live until Close. It panics without Do and at
// stages that do not wait.
func NewBlocking(o BlockingOptions) *Blocking {
	if o.Do == nil {
		panic("policy: blocking validator without Do")
	}
	for st := range NumStages {
		if o.Stages.Has(st) && !st.MayPend() {
			panic("policy: a blocking validator cannot be asked at " + st.String())
		}
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.MaxQueued <= 0 {
		o.MaxQueued = defaultMaxQueued
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	b := &Blocking{o: o, queue: make(chan *blockingJob, o.MaxQueued)}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b
}

// Stages is what the options say.
func (b *Blocking) Stages() Stages { return b.o.Stages }

// Validate hands the question to a worker. Runs on: event loop.
func (b *Blocking) Validate(e *Event) error {
	b.Ask(e.Pend())
	return nil
}

// Ask is Validate for a question that pends already. It does not block.
func (b *Blocking) Ask(p *Pending) {
	j := &blockingJob{p: p}
	j.ctx, j.cancel = context.WithTimeout(b.ctx, b.o.Timeout)
	j.unhook = context.AfterFunc(j.ctx, func() { b.expire(j) })
	if b.ctx.Err() != nil {
		return // expire answers
	}
	p.OnCancel(j.cancel)
	b.accepted.Add(1)
	select {
	case b.queue <- j:
		b.hire()
	default:
		b.accepted.Add(-1)
		j.state.Store(jobOver)
		b.end(j)
		b.answer(p, smtpcodec.Reply{}, nil, ErrBusy)
	}
}

// hire starts a worker when there are fewer than questions and fewer than may be.
func (b *Blocking) hire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.workers < min(b.o.Workers, int(b.accepted.Load())) {
		b.workers++
		go b.work()
	}
}

func (b *Blocking) work() {
	for {
		select {
		case j := <-b.queue:
			b.run(j)
			b.accepted.Add(-1)
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *Blocking) run(j *blockingJob) {
	if !j.state.CompareAndSwap(jobWaits, jobRuns) {
		return // late, or nobody waits any more
	}
	b.busy.Add(1)
	reply, fields, err := b.do(j)
	b.busy.Add(-1)
	if j.state.Swap(jobOver) == jobLate {
		b.stuck.Add(-1)
		return
	}
	b.end(j)
	b.answer(j.p, reply, fields, err)
}

func (b *Blocking) do(j *blockingJob) (reply smtpcodec.Reply, fields []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("policy: %s: panic: %v", b.o.Name, r)
		}
	}()
	return b.o.Do(j.ctx, j.p)
}

func (b *Blocking) end(j *blockingJob) {
	j.unhook()
	j.cancel()
}

// expire runs on a goroutine of its own when the time is over, the client is gone or the validator is closed.
func (b *Blocking) expire(j *blockingJob) {
	if j.state.CompareAndSwap(jobRuns, jobLate) {
		b.stuck.Add(1)
	} else if !j.state.CompareAndSwap(jobWaits, jobOver) {
		return
	}
	switch {
	case b.ctx.Err() != nil:
		b.answer(j.p, smtpcodec.Reply{}, nil, ErrClosed)
	case errors.Is(j.ctx.Err(), context.DeadlineExceeded):
		b.answer(j.p, smtpcodec.Reply{}, nil, ErrLate)
	}
	j.cancel()
}

func (b *Blocking) answer(p *Pending, reply smtpcodec.Reply, fields []byte, err error) {
	if err == nil {
		p.Done(reply, fields)
		return
	}
	counter := &b.failed
	switch {
	case errors.Is(err, ErrBusy):
		counter = &b.full
	case errors.Is(err, ErrLate):
		counter = &b.late
	}
	err = fmt.Errorf("%s: %w", b.o.Name, err)
	if b.o.OnError == Defer {
		p.decide(smtpcodec.Reply{}, nil, err, counter) // the session logs it, unless the client is gone
	} else if p.decide(smtpcodec.Reply{}, nil, nil, counter) {
		b.logAccepted(p, err)
	}
}

// logAccepted writes at most one line a second: a validator that is down would fill the disk.
func (b *Blocking) logAccepted(p *Pending, err error) {
	if b.o.Log == nil {
		return
	}
	now := time.Now().Unix()
	if last := b.logged.Load(); last == now || !b.logged.CompareAndSwap(last, now) {
		b.unlogged.Add(1)
		return
	}
	b.o.Log.Warn("accepted without a validator's decision", "validator", b.o.Name, "stage", p.Stage.String(), "session", p.Client.ID.String(),
		"error", err, "more", b.unlogged.Swap(0))
}

// BlockingStats are the numbers of a blocking validator. The first three are of now, the others since the start.
type BlockingStats struct {
	Queued int // questions that wait for a worker
	Busy   int // workers with a question
	Stuck  int // those of them that are past their deadline
	// Questions that OnError answered: too many were waiting, no decision in time, and everything else.
	Full, Late, Failed uint64
}

// Stats may be called by any goroutine.
func (b *Blocking) Stats() BlockingStats {
	return BlockingStats{
		Queued: len(b.queue), Busy: int(b.busy.Load()), Stuck: int(b.stuck.Load()),
		Full: b.full.Load(), Late: b.late.Load(), Failed: b.failed.Load(),
	}
}

// Close answers everything that waits as OnError says, and ends the workers; those with a question end when Do returns. It does not wait
// for them.
func (b *Blocking) Close() { b.stop() }
