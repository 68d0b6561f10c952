package jetstream

import (
	"testing"
	"time"
)

// world is servers of which each way of publishing takes some time for a message.
type world map[batchMode]time.Duration

// run makes commits of n messages and says how many went out by each way.
func (w world) run(c *chooser, commits, n int) (took time.Duration, by map[batchMode]int) {
	by = map[batchMode]int{}
	for range commits {
		way := c.next(n, int64(n)*4096)
		by[way]++
		d := w[way] * time.Duration(n)
		took += d
		c.done(way, n, int64(n)*4096, d)
	}
	return took, by
}

var (
	lazy   = world{modeAsync: 30 * time.Microsecond, modeFast: 34 * time.Microsecond, modeAtomic: 52 * time.Microsecond}
	synced = world{modeAsync: 400 * time.Microsecond, modeFast: 350 * time.Microsecond, modeAtomic: 66 * time.Microsecond}
)

func all() *chooser {
	c := &chooser{}
	c.offer(modeAsync, modeFast, modeAtomic)
	return c
}

func TestAutoTakesTheFastestWayAndLooksAtTheOthersRarely(t *testing.T) {
	for _, test := range []struct {
		servers world
		best    batchMode
	}{{lazy, modeAsync}, {synced, modeAtomic}, {world{modeAsync: 50, modeFast: 30, modeAtomic: 70}, modeFast}} {
		c := all()
		if _, by := test.servers.run(c, 10, 256); len(by) != 3 {
			t.Errorf("tried at first: %v", by)
		}
		_, by := test.servers.run(c, 4000, 256)
		if c.current() != test.best || by[test.best] < 3950 || len(by) != 3 {
			t.Errorf("%v: takes %d, and took %v", test.servers, c.current(), by)
		}
	}
}

func TestAutoIsNotSlowerThanOffByMoreThanItsLooks(t *testing.T) {
	for _, servers := range []world{lazy, synced, {modeAsync: 100, modeFast: 95, modeAtomic: 101}} {
		took, _ := servers.run(all(), 5000, 64)
		if off := servers[modeAsync] * 5000 * 64; float64(took) > 1.01*float64(off) {
			t.Errorf("%v: %v, with off %v", servers, took, off)
		}
	}
}

// The servers begin to sync before they acknowledge, and stop.
func TestAutoGoesOverWhenTheServersChange(t *testing.T) {
	c := all()
	for _, step := range []struct {
		servers world
		want    batchMode
	}{{lazy, modeAsync}, {synced, modeAtomic}, {lazy, modeAsync}} {
		step.servers.run(c, 2*enoughLooks*farRarer*lookEvery+lookEvery, 256)
		if c.current() != step.want {
			t.Errorf("%v: takes %d", step.servers, c.current())
		}
	}
	c.again() // a reconnect: not after hundreds of commits, but at once
	synced.run(c, 10, 256)
	if c.current() != modeAtomic {
		t.Errorf("after a reconnect: %d", c.current())
	}
}

// A bad minute hits one look, or the commits around it.
func TestAutoIsNotMisledByASlowMinute(t *testing.T) {
	c := all()
	lazy.run(c, 500, 256)
	slow := world{}
	for way, d := range lazy {
		slow[way] = 20 * d
	}
	slow.run(c, 1000, 256)
	if lazy.run(c, 1000, 256); c.current() != modeAsync {
		t.Errorf("takes %d", c.current())
	}
	if _, by := lazy.run(c, 1000, 256); by[modeAsync] < 990 {
		t.Errorf("took %v", by)
	}
}

func TestAutoLearnsForEachKindOfCommit(t *testing.T) {
	c := all()
	synced.run(c, 20, 256)
	lazy.run(c, 20, 8)
	if way := c.next(256, 256*4096); way != modeAtomic {
		t.Errorf("256 messages: %d", way)
	}
	if way := c.next(8, 8*4096); way != modeAsync {
		t.Errorf("8 messages: %d", way)
	}
	if way := c.next(256, 256<<20); way == modeAtomic {
		t.Error("what holds for 4 KiB was taken for 1 MiB")
	}
	if _, by := synced.run(c, 100, 3); by[modeFast] > 0 {
		t.Errorf("3 messages: %v", by) // too few for a fast batch
	}
}

func TestALoneMessageAlwaysGoesByItself(t *testing.T) {
	c := all()
	if _, by := synced.run(c, 1000, 1); by[modeAsync] != 1000 {
		t.Errorf("%v", by)
	}
}

func TestAutoHasNoChoiceOnServersThatKnowOneWay(t *testing.T) {
	c := all()
	synced.run(c, 20, 256)
	c.offer(modeAsync)
	if _, by := synced.run(c, 1000, 256); by[modeAsync] != 1000 {
		t.Errorf("%v", by)
	}
}
