package hook

import (
	"container/list"
	"crypto/sha256"
	"encoding/json"
	"sync"
	"time"

	"github.com/fastedge/fastedge/policy"
)

// cache keeps answers for a while, the ones that were used last. Any goroutine may use it.
type cache struct {
	max   int
	holds time.Duration

	mu      sync.Mutex
	entries map[cacheKey]*list.Element // of *cacheEntry
	order   list.List                  // the one that was used last is in front
}

type cacheEntry struct {
	key   cacheKey
	until time.Time
	answer
}

func newCache(max int, holds time.Duration) *cache {
	return &cache{max: max, holds: holds, entries: map[cacheKey]*list.Element{}}
}

// cacheKey is the SHA-256 of the question without what is never the same again: clients choose what is in a question, and so how long it
// is.
type cacheKey [sha256.Size]byte

func keyOf(e *policy.Event) cacheKey {
	q := questionOf(e)
	q.Session, q.Client.Port = "", 0
	text, err := json.Marshal(q)
	if err != nil {
		panic("hook: " + err.Error()) // strings and numbers only
	}
	return sha256.Sum256(text)
}

func (c *cache) get(key cacheKey, now time.Time) (answer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.entries[key]
	if !ok {
		return answer{}, false
	}
	entry := el.Value.(*cacheEntry)
	if !now.Before(entry.until) {
		c.order.Remove(el)
		delete(c.entries, key)
		return answer{}, false
	}
	c.order.MoveToFront(el)
	return entry.answer, true
}

func (c *cache) put(key cacheKey, a answer, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.entries[key]; ok {
		entry := el.Value.(*cacheEntry)
		entry.answer, entry.until = a, now.Add(c.holds)
		c.order.MoveToFront(el)
		return
	}
	for len(c.entries) >= c.max {
		oldest := c.order.Back()
		delete(c.entries, c.order.Remove(oldest).(*cacheEntry).key)
	}
	c.entries[key] = c.order.PushFront(&cacheEntry{key: key, until: now.Add(c.holds), answer: a})
}
