package jetstream

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	js "github.com/nats-io/nats.go/jetstream"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// alter changes the configuration of a stream, as an operator may.
func alter(t testing.TB, q *Queue, name string, change func(*js.StreamConfig)) {
	t.Helper()
	info, err := q.streamInfo(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	change(&info.Config)
	if _, err := q.js.UpdateStream(t.Context(), info.Config); err != nil {
		t.Fatal(err)
	}
}

// messages is how many messages a stream has.
func messages(t testing.TB, q *Queue, name string) int {
	t.Helper()
	info, err := q.streamInfo(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.State.Msgs)
}

// The stream of dead messages is full: what is delivered is acknowledged all the same, an operator is told why, and the dead ones are there
// as soon as there is room.
func TestMailThatCannotBeSetAsideDoesNotHoldUpAcknowledgements(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	alter(t, q, q.o.deadStream(), func(c *js.StreamConfig) { c.MaxMsgs, c.Discard = 1, js.DiscardNew })
	const refused, good = maxAcks + maxMoves + 10, 50
	mustCommit(t, q, queuetest.NewMaker(nil), refused+good, 10)
	for range refused {
		if err := q.Kill(lease(t, q), []queue.Outcome{refusedOutcome}, "refused"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "an operator is told", func() bool { return strings.Contains(q.Stats().Alarm, "maximum messages exceeded") })
	for range good {
		if err := q.Settle(lease(t, q), []queue.Outcome{deliveredOutcome}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "delivered mail is acknowledged", func() bool { return messages(t, q, q.o.Stream) == refused-1 })

	alter(t, q, q.o.deadStream(), func(c *js.StreamConfig) { c.MaxMsgs = -1 })
	eventually(t, "the dead are set aside", func() bool {
		st := q.Stats()
		return st.Messages["dead"] == refused && st.Alarm == "" && messages(t, q, q.o.Stream) == 0
	})
}

func TestNothingIsLeasedWhileTooMuchCannotBeSettled(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	q.unsettled.max = 5
	alter(t, q, q.o.deadStream(), func(c *js.StreamConfig) { c.MaxMsgs, c.Discard = 1, js.DiscardNew })
	if _, err := q.js.Publish(t.Context(), q.o.deadSubject("x"), nil); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, q, queuetest.NewMaker(nil), 8, 10)
	for range 5 {
		if err := q.Kill(lease(t, q), []queue.Outcome{refusedOutcome}, "refused"); err != nil {
			t.Fatal(err)
		}
	}
	within, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if d, err := q.Lease(within); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("leased %v, %v", d, err)
	}
	alter(t, q, q.o.deadStream(), func(c *js.StreamConfig) { c.MaxMsgs = -1 })
	for range 3 {
		if err := q.Settle(lease(t, q), []queue.Outcome{deliveredOutcome}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStreamsThatSomebodyDeletedAreMadeAgain(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	maker := queuetest.NewMaker(nil)
	mustCommit(t, q, maker, 2, 10)
	dead, delayed := lease(t, q), lease(t, q)
	for _, name := range []string{q.o.deadStream(), q.o.stateStream()} {
		if err := q.js.DeleteStream(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Kill(dead, []queue.Outcome{refusedOutcome}, "refused"); err != nil {
		t.Fatal(err)
	}
	if err := q.Settle(delayed, []queue.Outcome{deferredOutcome}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are noted", func() bool {
		st := q.Stats()
		return st.Messages["dead"] == 1 && st.Messages["waiting"] == 1 && st.Alarm == ""
	})
}

// Without its stream mail is refused, and then taken again; messages of the old one are not mistaken for those that have their places now.
func TestAMailStreamThatSomebodyDeletedIsMadeAgain(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	maker := queuetest.NewMaker(nil)
	mustCommit(t, q, maker, 3, 10)
	old := []*queue.Delivery{lease(t, q), lease(t, q)}
	if err := q.js.DeleteStream(t.Context(), q.o.Stream); err != nil {
		t.Fatal(err)
	}
	var kept []envelope.ID
	eventually(t, "mail is taken again", func() bool {
		subs, m := commit(q, maker, 2, 10)
		for i, sub := range subs {
			if sub.Err == nil {
				kept = append(kept, m[i].ID)
			}
		}
		return len(kept) >= 2
	})
	for _, d := range old {
		if err := q.Settle(d, []queue.Outcome{deliveredOutcome}, time.Time{}); err != nil && !errors.Is(err, queue.ErrNotFound) {
			t.Error(err)
		}
	}
	for _, id := range kept {
		d := lease(t, q)
		if d.Env.ID != id {
			t.Errorf("leased %s, not %s", d.Env.ID, id)
		}
		if err := q.Settle(d, []queue.Outcome{deliveredOutcome}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all is done", func() bool { return messages(t, q, q.o.Stream) == 0 })
}
