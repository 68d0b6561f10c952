package resolver

import (
	"math/rand/v2"
	"testing"
	"time"
)

func newCall() *call {
	c := new(call)
	c.due.c = c
	return c
}

// Against a slice that is searched: nothing is taken before its time, nothing is left when that has come but for a tick, what is ready comes in order, and next
// is never later than the first.
func TestAgendaGivesEachQuestionAtItsTime(t *testing.T) {
	const tick = wheelTick
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		var g agenda
		now := random.Int64N(int64(time.Hour))
		wakes := map[*call]int64{} // of those that are not ready
		var ready, all []*call
		for range 20 {
			all = append(all, newCall())
		}
		drop := func(c *call) {
			delete(wakes, c)
			for i, other := range ready {
				if other == c {
					ready = append(ready[:i], ready[i+1:]...)
					break
				}
			}
		}
		for range 400 {
			switch c := all[random.IntN(len(all))]; random.IntN(6) {
			case 0, 1, 2:
				far := []int64{0, tick / 2, 3 * tick, 300 * tick, (wheelSlots - 1) * tick, 3 * wheelSlots * tick, int64(time.Hour)}
				wake := now + random.Int64N(far[random.IntN(len(far))]+1) - tick/4
				drop(c)
				g.put(c, wake, now)
				if wake <= now {
					ready = append(ready, c)
				} else {
					wakes[c] = wake
				}
			case 3:
				drop(c)
				g.remove(c)
			case 4:
				steps := []int64{1, tick, 100 * tick, 2 * wheelSlots * tick}
				now += random.Int64N(steps[random.IntN(len(steps))] + 1)
			default:
				for n := 0; ; n++ {
					c := g.takeReady()
					if c == nil {
						break
					}
					if len(ready) == 0 || ready[0] != c {
						t.Fatalf("seed %d: not the first that is ready", seed)
					}
					ready = ready[1:]
				}
				for n := 0; ; n++ {
					c := g.takeDue(now)
					if c == nil {
						break
					}
					if n > 10_000 {
						t.Fatalf("seed %d: no end", seed)
					}
					wake, ok := wakes[c]
					if !ok {
						t.Fatalf("seed %d: a question that is not on the agenda", seed)
					}
					delete(wakes, c)
					if wake > now { // it was further away than the wheel is wide
						g.put(c, wake, now)
						wakes[c] = wake
					}
				}
				for _, wake := range wakes {
					if wake <= now-now%tick {
						t.Fatalf("seed %d: %d ns late", seed, now-wake)
					}
				}
			}
			first := int64(never)
			for _, wake := range wakes {
				first = min(first, wake)
			}
			if next := g.next(); (next == never) != (first == never) || first != never && next >= first+tick {
				t.Fatalf("seed %d: next is %d, the first %d", seed, next, first)
			}
			if g.timed != len(wakes) || (g.ready.first == nil) != (len(ready) == 0) {
				t.Fatalf("seed %d: %d of %d", seed, g.timed, len(wakes))
			}
		}
	}
}

// A clock that stands, or goes on by less than a tick, does not bring what is due a tick later, and what is due at a whole millisecond comes then.
func TestAgendaIsExactAtWholeMilliseconds(t *testing.T) {
	var g agenda
	c := newCall()
	g.put(c, 300*wheelTick, 0)
	if g.takeDue(300*wheelTick-1) != nil || g.next() != 300*wheelTick {
		t.Error("too early")
	}
	if g.takeDue(300*wheelTick) != c || g.next() != never || g.takeDue(1<<60) != nil {
		t.Error("not in time")
	}
}

func BenchmarkAgenda(b *testing.B) {
	for _, n := range []struct {
		name string
		open int
	}{{"open=100", 100}, {"open=50000", 50_000}} {
		b.Run(n.name, func(b *testing.B) {
			var g agenda
			all := make([]call, n.open)
			for i := range all {
				all[i].due.c = &all[i]
				g.put(&all[i], int64(i%3000+1)*wheelTick, 0)
			}
			now, i := int64(0), 0
			b.ReportAllocs()
			for b.Loop() {
				now += wheelTick / 16
				for c := g.takeDue(now); c != nil; c = g.takeDue(now) {
					g.put(c, now+3000*wheelTick, now)
				}
				c := &all[i%n.open]
				g.put(c, now, now)
				g.put(g.takeReady(), now+300*wheelTick, now)
				i++
			}
		})
	}
}
