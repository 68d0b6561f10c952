package relay

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/fastedge/fastedge/queue"
)

// deliver tries one message and settles it.
func (r *Relay) deliver(d *queue.Delivery) {
	start := time.Now()
	a := &attempt{r: r, d: d}
	a.msg.d = d
	n := len(d.Env.Recipients)
	a.outcomes = make([]queue.Outcome, n)
	copy(a.outcomes, d.Outcomes)
	a.settled = make([]bool, n)
	a.todo = make([]int, 0, n)
	for i := range a.outcomes {
		if a.outcomes[i].State == queue.Pending {
			a.todo = append(a.todo, i)
		}
	}
	if a.checkPaths() {
		r.try(a)
	}
	a.msg.free()
	r.settle(a, start)
}

// try speaks with next hops until every recipient is settled or the attempt is over.
func (r *Relay) try(a *attempt) {
	for len(a.todo) > 0 {
		c, kept, err := r.conns.get(r.hard)
		if err != nil {
			a.settleAll(queue.Pending, clean(err.Error()))
			return
		}
		a.hop = c.hop
		if kept {
			r.stats.reused.Add(1)
		}
		c.untried = true
		err = c.run(a)
		if err == nil {
			r.conns.release(c)
			continue
		}
		var local *readError
		switch {
		case errors.As(err, &local):
			if errors.Is(err, queue.ErrCorrupt) {
				a.damaged = err
			}
			r.conns.release(c)
			r.o.Log.Error("relay: message can't be read", "message", a.d.Env.ID.String(), "error", clean(err.Error()))
			a.settleAll(queue.Pending, clean("451 4.3.0 "+local.err.Error()))
		case errors.Is(err, errBareNewline):
			r.conns.release(c)
			t := transaction{c: c}
			a.settleAll(queue.Failed, t.bareNewline())
		case kept && c.untried && r.hard.Err() == nil:
			// The next hop closed the connection while it was not in use, or said 421 because it was idle: nothing has been
			// tried yet. Its other idle connections are likely to be as old.
			r.stats.stale.Add(1)
			r.conns.purge(c.hop)
			r.conns.release(c)
		default:
			r.conns.release(c)
			if c.untried && r.hard.Err() == nil {
				r.conns.down(c.hop, err, false, false) // a next hop that greets and then goes away is no better than one that is off
			}
			a.settleAll(queue.Pending, clean(err.Error()))
		}
	}
}

// settle gives the result to the source and logs it.
func (r *Relay) settle(a *attempt, start time.Time) {
	d := a.d
	now := r.o.Now()
	next := now.Add(r.o.Retry[min(d.Attempts, len(r.o.Retry)-1)])
	r.report(a, time.Since(start))

	pending := ""
	left := false
	for i := range a.outcomes {
		if a.outcomes[i].State == queue.Pending {
			left, pending = true, a.outcomes[i].Reply
			break
		}
	}
	r.stats.attempts.Add(1)
	id := d.Env.ID.String()
	var err error
	switch {
	case a.damaged != nil:
		r.stats.dead.Add(1)
		err = r.src.Kill(d, a.outcomes, clean(a.damaged.Error()))
	case left && next.Sub(d.Env.Arrived) > r.o.MaxAge:
		r.stats.dead.Add(1)
		reason := clean("too old: last reply " + pending)
		r.o.Log.Warn("relay: message is dead", "message", id, "reason", reason)
		err = r.src.Kill(d, a.outcomes, reason)
	default:
		err = r.src.Settle(d, a.outcomes, next)
	}
	if err != nil {
		r.stats.settleErrors.Add(1)
		r.o.Log.Error("relay: result not kept; the message may be handed on again", "message", id, "error", clean(err.Error()))
	}
}

// results are how each state is logged.
var results = [...]struct {
	state queue.RcptState
	level slog.Level
	text  string
}{
	{queue.Delivered, slog.LevelInfo, "delivered"},
	{queue.Pending, slog.LevelInfo, "deferred"},
	{queue.Failed, slog.LevelWarn, "failed"},
}

// report counts the recipients of this attempt and logs a line for each state among them, with the first reply that led to it.
func (r *Relay) report(a *attempt, took time.Duration) {
	hop := ""
	if a.hop != nil {
		hop = a.hop.name
	}
	for _, result := range results {
		n, reply := 0, ""
		for i, settled := range a.settled {
			if settled && a.outcomes[i].State == result.state {
				if n == 0 {
					reply = a.outcomes[i].Reply
				}
				n++
			}
		}
		if n == 0 {
			continue
		}
		switch result.state {
		case queue.Delivered:
			r.stats.delivered.Add(uint64(n))
		case queue.Pending:
			r.stats.deferred.Add(uint64(n))
		case queue.Failed:
			r.stats.failed.Add(uint64(n))
		}
		if !r.o.Log.Enabled(context.Background(), result.level) {
			continue
		}
		r.o.Log.LogAttrs(context.Background(), result.level, result.text,
			slog.String("message", a.d.Env.ID.String()), slog.String("next_hop", hop), slog.Int("recipients", n),
			slog.String("reply", reply), slog.Int("attempt", a.d.Attempts+1), slog.Int64("ms", took.Milliseconds()))
	}
}
