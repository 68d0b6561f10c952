package jetstream

import (
	"math/bits"
	"slices"
	"sync"
	"time"
)

// chooser is Options.Batch "auto": it measures the ways of publishing that the servers know on commits as they come, and takes the best for
// others like them. What is best differs by a factor of six, with when the servers sync, how many copies there are and how large
// commits are; none of that can be asked for.
//
// Commits of about as many messages of about the same length share a cell, which has a way that it takes. At first it looks at the others in
// turn, then at one of them in every lookEvery commits, each time against its own last commits: so a slow minute, which is slow for
// every way, changes nothing. It goes over to a way that took less than worthIt of its own time in most of the last looks. A lone message
// goes by itself, whatever the way, and says nothing.
type chooser struct {
	mu    sync.Mutex
	ways  []batchMode // modeAsync first
	cells [messageClasses][sizeClasses]cell
	last  batchMode // taken by the last commit that had a choice, looks left out
}

// cell is what is known of commits of one kind.
type cell struct {
	way     batchMode
	own     float64      // how long it takes, smoothed: nanoseconds for each byte, a message counting for 4096 more
	others  [modes]looks // by way
	commits uint64       // since it has looked at all ways twice
	turn    int          // which other way is looked at next
	looked  bool         // the last commit was a look: now the own way
}

// looks are the last times of a way, as a part of what the cell's own took.
type looks struct {
	part [3]float64
	n    int
}

const (
	messageClasses = 6
	sizeClasses    = 4
	enoughLooks    = 2
	lookEvery      = 200
	worthIt        = 0.9
	farSlower      = 2 // a way that takes this many times as long
	farRarer       = 8 // is looked at once in so many turns: a look costs clients the difference
)

// median is of the last looks; of two it is the larger.
func (l *looks) median() float64 {
	sorted := l.part
	some := sorted[:min(l.n, len(sorted))]
	slices.Sort(some)
	return some[len(some)/2]
}

func (l *looks) add(part float64) {
	l.part[l.n%len(l.part)] = part
	l.n++
	if l.n == 2*len(l.part) {
		l.n = len(l.part)
	}
}

// offer says which ways there are. All that was measured is forgotten, but not what it led to.
func (c *chooser) offer(ways ...batchMode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ways = ways
	c.forget()
}

// again is told that the servers are others, or another one of them: everything is measured again.
func (c *chooser) again() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget()
}

// forget is protected by mu.
func (c *chooser) forget() {
	for i := range c.cells {
		for j := range c.cells[i] {
			way := c.cells[i][j].way
			if !slices.Contains(c.ways, way) {
				way = modeAsync
			}
			c.cells[i][j] = cell{way: way}
		}
	}
}

// of is the cell of commits of n messages with that many bytes together.
func (c *chooser) of(n int, bytes int64) *cell {
	messages := min((bits.Len(uint(n))-1)/2, messageClasses-1) // 2 to 3, 4 to 15, 16 to 63, …
	size := 0
	for limit := int64(8 << 10); size < sizeClasses-1 && bytes/int64(n) > limit; limit *= 8 {
		size++
	}
	return &c.cells[messages][size]
}

// next says how a commit goes out.
func (c *chooser) next(n int, bytes int64) batchMode {
	if n < 2 {
		return modeAsync
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.of(n, bytes)
	c.last = k.way
	var others []batchMode
	fewest := enoughLooks
	for _, way := range c.ways {
		if way == k.way || way == modeFast && n < minFast {
			continue
		}
		others = append(others, way)
		fewest = min(fewest, k.others[way].n)
	}
	if len(others) == 0 || k.own == 0 {
		return k.way
	}
	if fewest == enoughLooks {
		k.commits++
		if k.commits%lookEvery != 0 {
			return k.way
		}
	} else if k.looked = !k.looked; !k.looked {
		return k.way
	}
	k.turn++
	way := others[k.turn%len(others)]
	if l := &k.others[way]; fewest == enoughLooks && l.median() > farSlower && k.turn/len(others)%farRarer != 0 {
		return k.way
	}
	return way
}

// done is told how long a commit took that went out by way and was stored whole. It gives the way that commits like it take from now on, and
// whether that is news.
func (c *chooser) done(way batchMode, n int, bytes int64, took time.Duration) (now batchMode, news bool) {
	if n < 2 {
		return modeAsync, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.of(n, bytes)
	cost := max(float64(took), 1) / float64(bytes+4096*int64(n))
	switch {
	case way == k.way && k.own == 0:
		k.own = cost
	case way == k.way:
		k.own += (cost - k.own) / 4
	case k.own > 0:
		l := &k.others[way]
		l.add(cost / k.own)
		m := l.median()
		if l.n < enoughLooks || m >= worthIt {
			break
		}
		for i := range k.others { // as parts of the new one's
			for j := range k.others[i].part {
				k.others[i].part[j] /= m
			}
		}
		k.others[k.way] = looks{part: [3]float64{1 / m, 1 / m, 1 / m}, n: 3}
		k.own *= m
		k.way, k.others[way] = way, looks{}
		c.last = way
		return way, true
	}
	return k.way, false
}

// current is the way that the last commit of several messages took, looks left out.
func (c *chooser) current() batchMode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}
