package jetstream

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// ledger is what was acknowledged and what came out.
type ledger struct {
	mu           sync.Mutex
	acknowledged map[envelope.ID]bool
	came         map[envelope.ID]int
	refused      int
	wrong        error // of a refusal that is not for want of an answer
}

func (l *ledger) lost() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.acknowledged {
		if l.came[id] == 0 {
			n++
		}
	}
	return n
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acknowledged)
}

// feed commits small batches until stop is closed.
func (l *ledger) feed(q *Queue, stop <-chan struct{}) {
	maker := queuetest.NewMaker(nil)
	for {
		select {
		case <-stop:
			return
		default:
		}
		subs, messages := commit(q, maker, 20, 1000)
		l.mu.Lock()
		for i, s := range subs {
			switch {
			case s.Err == nil:
				l.acknowledged[messages[i].ID] = true
			case errors.Is(s.Err, queue.ErrUnavailable):
				l.refused++
			default:
				l.wrong = s.Err
			}
			s.Env.Release()
		}
		l.mu.Unlock()
		if subs[0].Err != nil { // as a client that comes again later
			select {
			case <-stop:
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// drain leases and settles until ctx ends.
func (l *ledger) drain(ctx context.Context, t *testing.T, q *Queue) {
	for {
		d, err := q.Lease(ctx)
		if err != nil {
			return
		}
		l.mu.Lock()
		l.came[d.Env.ID]++
		l.mu.Unlock()
		if err := q.Settle(d, []queue.Outcome{deliveredOutcome}, time.Time{}); err != nil {
			t.Error(err)
		}
	}
}

// Three servers, three replicas, two relays. Under load the leader dies; then another one, and with it the quorum; then one comes back.
func TestNothingAcknowledgedIsLostWhenServersOfAClusterDie(t *testing.T) {
	c := newCluster(t)
	o := Options{Replicas: 3, AckWait: 2 * time.Second}
	// The edge gives up soon, so that the test does not wait long for what must fail; what fails is only counted.
	o.Timeout = 4 * time.Second
	edge := opened(t, o, c.servers[:]...)
	o.Timeout = 20 * time.Second
	eventually(t, "the edge has room", roomy(edge))
	relays := []*Queue{opened(t, o, c.servers[:]...), opened(t, o, c.servers[:]...)}

	l := &ledger{acknowledged: map[envelope.ID]bool{}, came: map[envelope.ID]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := make(chan struct{})
	var feeding, draining sync.WaitGroup
	feeding.Go(func() { l.feed(edge, stop) })
	for _, relay := range relays {
		draining.Go(func() { l.drain(ctx, t, relay) })
	}
	more := func() {
		t.Helper()
		have := l.count()
		eventually(t, "more is acknowledged", func() bool { return l.count() >= have+200 })
	}
	more()

	first := c.leader(edge.o.Stream)
	eventually(t, "the stream has a leader", func() bool { first = c.leader(edge.o.Stream); return first >= 0 })
	c.stop(first)
	more()

	second := (first + 1) % 3
	c.stop(second)
	eventually(t, "without a quorum there is no room", func() bool { return errors.Is(edge.Room(), queue.ErrUnavailable) })
	c.start(second)
	more()
	c.start(first)

	close(stop)
	feeding.Wait()
	eventually(t, "all that was acknowledged has come out", func() bool { return l.lost() == 0 })
	cancel()
	draining.Wait()
	if l.wrong != nil {
		t.Errorf("refused for another reason: %v", l.wrong)
	}
	twice := 0
	for _, n := range l.came {
		if n > 1 {
			twice++
		}
	}
	t.Logf("%d acknowledged, none lost; %d refused with 451; %d came out more than once, %d without an acknowledgement",
		len(l.acknowledged), l.refused, twice, len(l.came)-len(l.acknowledged))
}
