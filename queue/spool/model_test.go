package spool

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

var (
	modelSeed  = flag.Uint64("spool.seed", 0, "run the model test with this seed only")
	modelSteps = flag.Int("spool.steps", 300, "steps of the model test for each seed")
	modelSeeds = flag.Int("spool.seeds", 25, "seeds of the model test")
)

// record is what the model knows of one message.
type record struct {
	queuetest.Message
	rcpts int
	// must: it was acknowledged and has to be there. may: it is allowed to be there, after a crash only for a refused or settled one.
	must, may bool
	done      bool // settled or dropped; may holds until that is durable
	held      bool
	// keyed: it has an idempotency key. key: which has to be remembered, also when the message is done, until it is too old. Of a message that
	// was neither acknowledged nor found after a crash, none may be.
	keyed, key bool
}

// model drives a spool at random and knows what must be in it.
type model struct {
	*testing.T
	rng   *rand.Rand
	fs    *crashFS
	clock *queuetest.Clock
	maker *queuetest.Maker
	spool *Spool
	all   map[envelope.ID]*record
	ids   []envelope.ID // of all, in order
	out   []*queue.Delivery
	o     Options
	trace []string
}

// TestNothingAcknowledgedIsLost runs random histories of commits, leases, outcomes, failing disks, crashes and restarts against a model:
// every acknowledged message is there until it is settled, none is altered, and its idempotency key is remembered for its time and not without it.
// A failure names the seed that repeats it.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	for _, d := range []Durability{Fsync, OS} {
		t.Run(d.String(), func(t *testing.T) {
			if *modelSeed != 0 {
				runModel(t, *modelSeed, d)
				return
			}
			seeds := *modelSeeds
			if testing.Short() {
				seeds = min(seeds, 5)
			}
			for seed := range seeds {
				if runModel(t, uint64(seed)+1, d); t.Failed() {
					t.Fatalf("repeat with -spool.seed=%d", seed+1)
				}
			}
		})
	}
}

func runModel(t *testing.T, seed uint64, d Durability) {
	rng := rand.New(rand.NewPCG(seed, uint64(d)))
	clock := queuetest.NewClock()
	m := &model{
		T: t, rng: rng, fs: newCrashFS(rng), clock: clock, maker: queuetest.NewMaker(clock), all: map[envelope.ID]*record{},
		o: Options{Durability: d, SegmentSize: 32 << 10, MinFree: -1, Log: quiet, Now: clock.Now, manual: true, ackCompact: 8 << 10, ackReserve: 4 << 10, openFiles: 2,
			RememberFor: 2 * time.Minute},
	}
	m.open()
	for range *modelSteps {
		m.step()
		if t.Failed() {
			t.Logf("seed %d: last steps %v", seed, m.trace[max(0, len(m.trace)-12):])
			return
		}
	}
}

func (m *model) note(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

func (m *model) open() {
	m.o.FS = m.fs
	s, err := Open("spool", m.o)
	if err != nil {
		m.Fatalf("open: %v", err)
	}
	m.spool = s
	m.out = nil
	if n := s.Stats().Damaged; n > 0 {
		m.Errorf("%d records are called damaged; none is", n)
	}
}

func (m *model) step() {
	switch p := m.rng.IntN(100); {
	case p < 40:
		m.commit()
	case p < 65:
		m.lease()
	case p < 75:
		m.operate()
	case p < 82:
		m.note("flush")
		if err := m.spool.acks.flush(true); err != nil {
			m.Errorf("flush: %v", err)
		}
		m.ackDurable()
	case p < 90:
		m.note("prepare")
		m.spool.retireStep()
		if err := m.spool.prepareStep(); err != nil {
			m.Errorf("prepare: %v", err)
		}
	case p < 94:
		m.clock.Add(time.Duration(m.rng.IntN(100)) * time.Second)
	case p < 96:
		m.crash()
	case p < 98:
		m.die()
	case p < 99:
		m.note("close")
		if err := m.spool.Close(); err != nil {
			m.Errorf("close: %v", err)
		}
		m.ackDurable()
		m.open()
		m.check()
	default:
		m.check()
	}
}

// die cuts the power in the middle of something.
func (m *model) die() {
	m.fs.dieIn = 1 + m.rng.IntN(8)
	m.note("die in %d", m.fs.dieIn)
	for !m.fs.dead {
		switch m.rng.IntN(4) {
		case 0:
			m.spool.acks.flush(true)
		case 1:
			m.spool.retireStep()
			m.spool.prepareStep()
		default:
			m.commit()
		}
	}
	m.crash()
}

// ackDurable: what was settled by now must not come back.
func (m *model) ackDurable() {
	for _, r := range m.all {
		if !r.must {
			r.may = false
		}
	}
}

func (m *model) commit() {
	var batch []*queue.Submission
	var recs []*record
	for range 1 + m.rng.IntN(6) {
		size := m.rng.IntN(3000)
		if m.rng.IntN(30) == 0 {
			size = m.rng.IntN(100_000)
		}
		rcpts := 1 + m.rng.IntN(3)
		sub, msg := m.maker.Submission(size, rcpts)
		keyed := m.rng.IntN(4) == 0
		if keyed {
			sub.Env.Idempotency = aKey(msg.ID, m.rng.IntN(200))
			msg.Binary = sub.Env.AppendBinary(nil)
		}
		batch = append(batch, sub)
		recs = append(recs, &record{Message: msg, rcpts: rcpts, keyed: keyed})
	}
	if m.rng.IntN(12) == 0 {
		at := m.rng.IntN(2)
		fail := func(string) error {
			if at--; at < 0 {
				return syscall.EIO
			}
			return nil
		}
		// Not with a power cut on top: a sync that failed, and then no time to cut the segment, leaves records that are read back
		// until the next power cut. They were refused; the model does not follow them.
		if m.rng.IntN(2) == 0 && m.fs.dieIn == 0 {
			m.fs.failSync = fail
		} else {
			m.fs.failWrite = fail
		}
	} else if m.rng.IntN(20) == 0 {
		m.fs.space = int64(m.rng.IntN(20_000))
	}
	m.spool.Commit(batch)
	m.fs.failSync, m.fs.failWrite, m.fs.space = nil, nil, -1
	for i, sub := range batch {
		r := recs[i]
		r.must, r.may, r.key = sub.Err == nil, true, sub.Err == nil && r.keyed
		m.all[r.ID] = r
		m.ids = append(m.ids, r.ID)
		sub.Env.Release()
		if _, err := m.spool.Show(r.ID); !m.fs.dead && (err == nil) != r.must {
			m.Errorf("after a commit with %v, show says %v", sub.Err, err)
		}
	}
	m.note("commit %d: %v", len(batch), batch[len(batch)-1].Err)
}

func (m *model) lease() {
	if len(m.out) > 0 && m.rng.IntN(3) == 0 {
		m.settle()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(time.Millisecond, cancel) // nothing may be due
	if m.spool.fifoLen() > 0 {
		ctx = context.Background()
	}
	d, err := m.spool.Lease(ctx)
	if errors.Is(err, context.Canceled) {
		return
	}
	if err != nil {
		m.Fatalf("lease: %v", err)
	}
	m.note("lease")
	r := m.all[d.Env.ID]
	switch {
	case r == nil || !r.must:
		m.Fatalf("leased a message that is not there: %+v", r)
	case r.held:
		m.Errorf("leased a held message")
	case slices.ContainsFunc(m.out, func(o *queue.Delivery) bool { return o.Env.ID == d.Env.ID }):
		m.Errorf("leased twice")
	case !bytes.Equal(d.Env.AppendBinary(nil), r.Binary):
		m.Errorf("envelope altered")
	}
	body, err := d.Open()
	if err != nil {
		m.Fatal(err)
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(body); err != nil || !bytes.Equal(text.Bytes(), r.Text) {
		m.Errorf("text altered, or %v", err)
	}
	m.out = append(m.out, d)
}

// fifoLen counts messages that are ready.
func (s *Spool) fifoLen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[queue.Ready]
}

func (m *model) settle() {
	i := m.rng.IntN(len(m.out))
	d := m.out[i]
	m.out = slices.Delete(m.out, i, i+1)
	outcomes := make([]queue.Outcome, len(d.Env.Recipients))
	done := true
	for i := range outcomes {
		outcomes[i] = queue.Outcome{State: queue.Delivered, Reply: "250 2.0.0 Ok"}
		if p := m.rng.IntN(8); p < 2 {
			outcomes[i] = queue.Outcome{State: queue.RcptState(2 * p), Reply: "another reply"}
			done = false
		}
	}
	r := m.all[d.Env.ID]
	if m.rng.IntN(10) == 0 {
		m.spool.Kill(d, outcomes, "killed")
		m.note("kill")
		return
	}
	if err := m.spool.Settle(d, outcomes, m.clock.Now().Add(time.Duration(m.rng.IntN(60))*time.Second)); err != nil {
		m.Errorf("settle: %v", err)
	}
	m.note("settle done=%v", done)
	if done {
		r.must, r.done = false, true
	}
}

func (m *model) operate() {
	if len(m.ids) == 0 {
		return
	}
	id := m.ids[m.rng.IntN(len(m.ids))]
	r := m.all[id]
	there := r.must
	var err error
	switch m.rng.IntN(4) {
	case 0:
		if err = m.spool.Hold(id, "by the model"); err == nil {
			r.held = true
		}
	case 1:
		if err = m.spool.Release(id); err == nil {
			r.held = false
		}
	case 2:
		m.spool.Retry(id)
		return
	case 3:
		if err = m.spool.Drop(id); err == nil {
			r.must, r.done, r.held = false, true, false
		}
	}
	m.note("operate: %v", err)
	if errors.Is(err, queue.ErrNotFound) == there || err != nil && !errors.Is(err, queue.ErrNotFound) && !errors.Is(err, queue.ErrLeased) {
		m.Errorf("operate: %v; was there: %v", err, there)
	}
}

func (m *model) crash() {
	if m.o.Durability == OS || m.rng.IntN(3) == 0 {
		m.note("kill -9")
		m.fs = m.fs.Kill()
	} else {
		m.note("power cut")
		m.fs = m.fs.Crash()
	}
	m.open()
	// What was settled, held or refused a moment ago may or may not be; from here on it is as found.
	seen := map[envelope.ID]queue.Entry{}
	m.spool.List(func(e queue.Entry) bool { seen[e.ID] = e; return true })
	for id, r := range m.all {
		e, there := seen[id]
		switch {
		case there && !r.must && !r.may:
			m.Errorf("a message came back that was durably settled or refused: done %v", r.done)
		case !there && r.must:
			m.Errorf("message %s, acknowledged, is lost", id)
		}
		r.must, r.may, r.key = there, there, r.key || there && r.keyed
		r.held = there && e.State == queue.Held
		if !there {
			r.done = true
		}
	}
	m.check()
}

// check compares everything.
func (m *model) check() {
	m.note("check")
	n := 0
	err := m.spool.List(func(e queue.Entry) bool {
		n++
		r := m.all[e.ID]
		if r == nil || !r.must {
			m.Errorf("%s is listed and should not be there", e.ID)
			return false
		}
		if len(e.Recipients) != r.rcpts || int(e.Size) != len(r.Text) {
			m.Errorf("entry %+v", e)
		}
		var text bytes.Buffer
		if err := m.spool.Cat(e.ID, &text); err != nil || !bytes.Equal(text.Bytes(), r.Text) {
			m.Errorf("cat: %v, or the text is altered", err)
		}
		return true
	})
	if err != nil {
		m.Error(err)
	}
	since := m.clock.Now().Add(-m.o.RememberFor)
	keys := remembered(m, m.spool, since)
	for id, k := range keys {
		if r := m.all[id]; r == nil || !r.key || k.Key != aKey(id, 0).Key || k.Payload != aKey(id, 0).Payload {
			m.Errorf("a key of %s is remembered and should not be", id)
		}
	}
	want := 0
	for id, r := range m.all {
		if _, there := keys[id]; r.key && !there && !id.Time().Before(since) {
			m.Errorf("the key of %s is lost; its message is done: %v", id, r.done)
		}
		if r.must {
			want++
			if _, err := m.spool.Show(id); err != nil {
				m.Errorf("%s: %v", id, err)
			}
		}
	}
	st := m.spool.Stats()
	total := 0
	for _, c := range st.Messages {
		total += c
	}
	if n != want || total != want || int(m.spool.live.Load()) != want {
		m.Errorf("%d messages listed, %d counted, want %d", n, total, want)
	}
}
