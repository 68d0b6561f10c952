package resolver

import (
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/fastedge/fastedge/spf"
)

// How CacheBytes is shared, in sixteenths. What is there is worth most; what is not there is what a flood of random names fills.
const (
	positiveShare = 12
	negativeShare = 3
	failureShare  = 1
)

// PrefetchHits is how often an answer must have been asked for before it is fetched anew ahead of its end.
const PrefetchHits = 2

// entry is a kept answer. Immutable, but for the marks.
type entry struct {
	answer     spf.Answer
	expires    int64         // on the resolver's clock
	prefetchAt int64         // from here on a hit fetches it anew; in the last tenth of its time, so that not all come at once
	failures   uint8         // of a failure: how many in a row
	hits       atomic.Uint32 // counted up to PrefetchHits, so that a popular entry's cache line is not written to
	prefetched atomic.Bool
}

// caches are the three, each an otter cache bounded by weight in bytes. Entries have no expiry there: otter's would need a second clock and a
// goroutine, and an entry past its time is still wanted (RFC 8767). What is dead goes when its room is needed, the least used first
// (W-TinyLFU): a name that was asked for once does not push out one that is asked for often.
type caches struct {
	positive, negative, failure *otter.Cache[spf.Query, *entry]

	minTTL, maxTTL, maxNegative, minFailure, maxFailure, maxStale int64
}

func newCaches(o *Options) (*caches, error) {
	c := &caches{
		minTTL: int64(o.MinTTL), maxTTL: int64(o.MaxTTL), maxNegative: int64(o.MaxNegativeTTL),
		minFailure: int64(o.MinFailureTTL), maxFailure: int64(o.MaxFailureTTL), maxStale: int64(o.MaxStale),
	}
	for _, part := range []struct {
		to    **otter.Cache[spf.Query, *entry]
		share int64
	}{{&c.positive, positiveShare}, {&c.negative, negativeShare}, {&c.failure, failureShare}} {
		var err error
		*part.to, err = otter.New(&otter.Options[spf.Query, *entry]{
			MaximumWeight: uint64(o.CacheBytes * part.share / 16),
			Weigher:       weigh,
			// On the goroutine that writes, so that the bound holds when Set returns and not some time later.
			Executor: func(fn func()) { fn() },
		})
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// What an entry costs besides its strings, from above: otter's node with its place in the table and the queues, the entry, the key. Measured by
// TestCacheWeightsAreHonest.
const (
	entryBytes  = 352
	stringBytes = 16 + 8 // a string header, and what an allocation is rounded up by on average
	addrBytes   = 28     // 24, and what the slice is rounded up by
	txtBytes    = 128    // a spf.TXT and its slice
	spfBytes    = 128    // a parsed SPF record
	termBytes   = 80     // a term of it
	specBytes   = 96     // its domain, which only those have that ask DNS, and redirect and exp
	macroBytes  = 80
)

// weigh estimates the memory of an entry from above. Of an SPF record the terms are kept parsed.
func weigh(q spf.Query, e *entry) uint32 {
	n := entryBytes + len(q.Name) + addrBytes*len(e.answer.Addrs)
	for _, h := range e.answer.Hosts {
		n += stringBytes + len(h)
	}
	if e.answer.TXT != nil {
		n += txtBytes
		for _, s := range e.answer.TXT.Strings {
			n += stringBytes + len(s) + len(s)/8
			if len(s) >= 6 && strings.EqualFold(s[:6], "v=spf1") {
				terms := strings.Count(s, " ")
				n += spfBytes + termBytes*terms + specBytes*min(terms, spf.MaxLookups+2) + macroBytes*strings.Count(s, "%")
			}
		}
	}
	return uint32(n)
}

// fresh is the answer to q when there is one that is not past its time. Otherwise stale is an answer past its time that may be served instead of
// Failed, if any. It allocates nothing.
func (c *caches) fresh(q spf.Query, now int64) (e, stale *entry) {
	if e, ok := c.positive.GetIfPresent(q); ok {
		if now < e.expires {
			return e, nil
		}
		if now < e.expires+c.maxStale {
			stale = e
		}
	}
	if e, ok := c.negative.GetIfPresent(q); ok && now < e.expires {
		return e, nil
	}
	if e, ok := c.failure.GetIfPresent(q); ok && now < e.expires {
		return e, stale
	}
	return nil, stale
}

// keep keeps an answer that DNS gave. Whatever was known about q is forgotten.
func (c *caches) keep(q spf.Query, a spf.Answer, ttlSeconds uint32, now int64) {
	ttl := int64(ttlSeconds) * int64(time.Second)
	e := &entry{answer: a}
	if a.Status == spf.Found {
		ttl = min(max(ttl, c.minTTL), c.maxTTL)
		e.expires = now + ttl
		e.prefetchAt = e.expires - ttl/10 + rand.Int64N(ttl/20+1)
		c.positive.Set(q, e)
		c.negative.Invalidate(q)
	} else {
		e.expires = now + min(max(ttl, c.minTTL), c.maxNegative)
		c.negative.Set(q, e)
		c.positive.Invalidate(q)
	}
	c.failure.Invalidate(q)
}

// keepFailure remembers that q failed (RFC 9520): for minFailure, twice as long after each further failure in a row, up to maxFailure. atLeast is
// the shortest time.
func (c *caches) keepFailure(q spf.Query, now, atLeast int64) {
	e := &entry{answer: spf.Answer{Status: spf.Failed}, failures: 1}
	if last, ok := c.failure.GetIfPresent(q); ok && now-last.expires < c.maxFailure {
		e.failures = min(last.failures+1, 16)
	}
	e.expires = now + max(atLeast, min(c.minFailure<<(e.failures-1), c.maxFailure))
	c.failure.Set(q, e)
}

// OutageTTL is how long a failure is remembered when no server answers anybody: that is not the name's fault, and over soon after the servers
// are back.
const OutageTTL = time.Second

func (c *caches) keepOutage(q spf.Query, now int64, why spf.Cause) {
	c.failure.Set(q, &entry{answer: spf.Answer{Status: spf.Failed, Cause: why}, expires: now + int64(OutageTTL)})
}

func (c *caches) stats() (positive, negative, failure CacheStats) {
	one := func(c *otter.Cache[spf.Query, *entry]) CacheStats {
		return CacheStats{Entries: c.EstimatedSize(), Bytes: int64(c.WeightedSize()), Max: int64(c.GetMaximum())}
	}
	return one(c.positive), one(c.negative), one(c.failure)
}
