// Package pool recycles the buffers that message data lives in, and counts every byte of them.
//
// A Chunk is a fixed-size buffer with exactly one owner at a time. A Chain strings chunks together and holds one message;
// whoever holds the chain owns its chunks until Release. A List keeps idle chunks of three sizes for one goroutine (an
// event loop) or, when shared, for many; a chunk always goes home to the list that made it. A Budget is the upper bound, in
// bytes of chunk capacity, over all lists of a process: when it is spent, Get gives nil and the caller refuses mail with a
// 4yz reply instead of growing.
//
// Releasing a chunk twice panics. In test binaries Release also overwrites the chunk, so that a slice kept past its owner's
// time shows at once.
package pool

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// sizes are the chunk capacities in bytes, smallest first. 8 KiB holds an ordinary message without attachment in one piece;
// 128 KiB keeps a 25 MiB message below 1,024 chunks, the most that one writev takes.
var sizes = [...]int{8 << 10, 32 << 10, 128 << 10}

// MaxChunkBytes is the capacity of the largest chunk.
const MaxChunkBytes = 128 << 10

// poisoning is set in test binaries: released chunks are overwritten with poisonByte.
var poisoning = testing.Testing()

// Poisoning says whether what is released is overwritten, here and in package envelope.
func Poisoning() bool { return poisoning }

// WithoutPoison calls f with poisoning off: for benchmarks, and tests that count allocations. No other goroutine may use the package.
func WithoutPoison(f func()) {
	was := poisoning
	poisoning = false
	defer func() { poisoning = was }()
	f()
}

const poisonByte = 0xDB

// Budget bounds the bytes of all chunks in use across goroutines. The zero value has no limit.
type Budget struct {
	max  int64
	used atomic.Int64
}

// NewBudget gives a budget of max bytes; zero means no limit.
func NewBudget(max int64) *Budget { return &Budget{max: max} }

// Used says how many bytes of chunks are out now. Any goroutine.
func (b *Budget) Used() int64 { return b.used.Load() }

// Max says the limit in bytes, zero when there is none.
func (b *Budget) Max() int64 { return b.max }

// Reserve counts n bytes that are not in a chunk: what else a message makes its edge keep. false: the budget is spent, and nothing was counted.
// GiveBack must follow. Any goroutine; a nil budget has no limit.
func (b *Budget) Reserve(n int) bool {
	if b == nil {
		return true
	}
	if used := b.used.Add(int64(n)); b.max > 0 && used > b.max {
		b.used.Add(int64(-n))
		return false
	}
	return true
}

// GiveBack ends a Reserve, or a part of it. Any goroutine.
func (b *Budget) GiveBack(n int) {
	if b != nil {
		b.used.Add(int64(-n))
	}
}

// Chunk is one buffer. The bytes written so far are Bytes; the rest is Spare.
type Chunk struct {
	buf   []byte // whole capacity
	n     int    // bytes written
	next  *Chunk // in a Chain, or in the free list
	home  *List
	class uint8
	idle  bool // released: in the free list, or dropped
}

// Bytes borrows the written part until the chunk's owner releases it.
func (c *Chunk) Bytes() []byte { return c.buf[:c.n] }

// Next gives the following chunk of the chain, nil at its end.
func (c *Chunk) Next() *Chunk { return c.next }

// List keeps idle chunks. A List from NewList belongs to one goroutine: Get and Release of its chunks run there. A List from
// NewSharedList may be used from any.
type List struct {
	mu      *sync.Mutex // nil for a list of one goroutine
	budget  *Budget
	free    [len(sizes)]*Chunk
	idle    int64 // bytes in free
	maxIdle int64
	misses  uint64
}

// NewList gives a list for one goroutine that keeps at most maxIdle bytes of idle chunks and draws on budget (nil: no limit).
func NewList(maxIdle int64, budget *Budget) *List { return &List{budget: budget, maxIdle: maxIdle} }

// NewSharedList is NewList for use from any goroutine.
func NewSharedList(maxIdle int64, budget *Budget) *List {
	return &List{mu: new(sync.Mutex), budget: budget, maxIdle: maxIdle}
}

// classFor gives the smallest class that holds n bytes, or the largest one.
func classFor(n int) uint8 {
	for i, size := range sizes {
		if n <= size {
			return uint8(i)
		}
	}
	return uint8(len(sizes) - 1)
}

// Get gives an empty chunk of the smallest size that holds n bytes (the largest when none does), owned by the caller. It gives
// nil when the budget is spent.
func (l *List) Get(n int) *Chunk {
	class := classFor(n)
	if !l.budget.Reserve(sizes[class]) {
		return nil
	}
	if l.mu != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
	}
	if c := l.free[class]; c != nil {
		l.free[class] = c.next
		l.idle -= int64(len(c.buf))
		c.next, c.n, c.idle = nil, 0, false
		return c
	}
	l.misses++
	return &Chunk{buf: make([]byte, sizes[class]), home: l, class: class}
}

// Release gives the chunk back to the list it came from. The caller must own it and not touch it again.
func (c *Chunk) Release() {
	l := c.home
	if l.mu != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
	}
	if c.idle {
		panic(fmt.Sprintf("pool: chunk of %d bytes released twice", len(c.buf)))
	}
	if poisoning {
		for i := range c.buf {
			c.buf[i] = poisonByte
		}
	}
	c.idle, c.n, c.next = true, 0, nil
	l.budget.GiveBack(len(c.buf))
	if l.idle+int64(len(c.buf)) > l.maxIdle {
		return // the collector takes it
	}
	c.next = l.free[c.class]
	l.free[c.class] = c
	l.idle += int64(len(c.buf))
}

// Idle says how many bytes of idle chunks the list keeps.
func (l *List) Idle() int64 {
	if l.mu != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
	}
	return l.idle
}

// Trim drops idle chunks, largest first, until at most keep bytes are left.
func (l *List) Trim(keep int64) {
	if l.mu != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
	}
	for class := len(sizes) - 1; class >= 0; class-- {
		for l.idle > keep && l.free[class] != nil {
			c := l.free[class]
			l.free[class], c.next = c.next, nil
			l.idle -= int64(len(c.buf))
		}
	}
}
