package pool

import (
	"fmt"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Chain is a message's bytes in order, in chunks. The zero value is empty. Whoever holds the chain owns its chunks; copying a
// Chain value moves that ownership, and the old value must not be used again.
type Chain struct {
	head, tail *Chunk
	size       int64
	sum        uint32
}

// Len is the number of bytes written.
func (ch *Chain) Len() int64 { return ch.size }

// Sum is the CRC32C of the bytes written. It is kept while they are written, when they are in the processor's cache; at the commit
// they have left it. It also covers the time that they wait in memory.
func (ch *Chain) Sum() uint32 { return ch.sum }

// First gives the first chunk, nil when the chain is empty; Chunk.Next leads on.
func (ch *Chain) First() *Chunk { return ch.head }

// Spare gives room to write into, never empty: what is left of the last chunk, or a new chunk from l. It gives nil when l's
// budget is spent. Extend says how much of it was used. Chunks grow with the message: 8 KiB, then 32 KiB up to 64 KiB of
// message, then 128 KiB, so that at most a third of a message's memory is unused.
func (ch *Chain) Spare(l *List) []byte {
	if t := ch.tail; t != nil && t.n < len(t.buf) {
		return t.buf[t.n:]
	}
	want := sizes[0]
	switch {
	case ch.size >= 64<<10:
		want = sizes[2]
	case ch.size > 0:
		want = sizes[1]
	}
	c := l.Get(want)
	if c == nil {
		return nil
	}
	if ch.tail == nil {
		ch.head = c
	} else {
		ch.tail.next = c
	}
	ch.tail = c
	return c.buf
}

// Extend counts n bytes of the last Spare as written.
func (ch *Chain) Extend(n int) {
	if n == 0 {
		return
	}
	t := ch.tail
	ch.sum = crc32.Update(ch.sum, castagnoli, t.buf[t.n:t.n+n])
	t.n += n
	ch.size += int64(n)
}

// Append copies p to the end. It gives false when l's budget is spent; what was copied until then stays.
func (ch *Chain) Append(l *List, p []byte) bool {
	for len(p) > 0 {
		room := ch.Spare(l)
		if room == nil {
			return false
		}
		n := copy(room, p)
		ch.Extend(n)
		p = p[n:]
	}
	return true
}

// Pop takes the first chunk out of the chain and gives it to the caller, nil when the chain is empty. Sum means nothing afterwards.
func (ch *Chain) Pop() *Chunk {
	c := ch.head
	if c == nil {
		return nil
	}
	if ch.head = c.next; ch.head == nil {
		ch.tail = nil
	}
	c.next = nil
	ch.size -= int64(c.n)
	return c
}

// AppendBuffers appends the written part of each chunk to dst, borrowed until Release.
func (ch *Chain) AppendBuffers(dst [][]byte) [][]byte {
	for c := ch.head; c != nil; c = c.next {
		if c.n > 0 {
			dst = append(dst, c.Bytes())
		}
	}
	return dst
}

// Range is bytes From to To of a chain, To not included.
type Range struct{ From, To int64 }

// Delete takes ranges out of the chain, which must be in order and apart. It moves each byte at most once, and reads all of them for Sum: it is for
// what happens rarely.
func (ch *Chain) Delete(ranges []Range) {
	last := int64(0)
	for _, r := range ranges {
		if r.From < last || r.To < r.From || r.To > ch.size {
			panic(fmt.Sprintf("pool: delete %v of %d bytes", ranges, ch.size))
		}
		last = r.To
	}
	at, size := int64(0), int64(0)
	ch.sum = 0
	for c := ch.head; c != nil; c = c.next {
		n := int64(c.n)
		kept, from := 0, int64(0) // bytes kept of the chunk, and how far it has been looked at
		for len(ranges) > 0 && ranges[0].From < at+n {
			kept += copy(c.buf[kept:], c.buf[from:max(ranges[0].From-at, from)])
			from = min(ranges[0].To-at, n)
			if ranges[0].To > at+n {
				break // goes on in the next chunk
			}
			ranges = ranges[1:]
		}
		kept += copy(c.buf[kept:], c.buf[from:n])
		c.n = kept
		ch.sum = crc32.Update(ch.sum, castagnoli, c.Bytes())
		size += int64(kept)
		at += n
	}
	ch.size = size
}

// Release gives all chunks back to their lists and empties the chain. Releasing an empty chain does nothing.
func (ch *Chain) Release() {
	for c := ch.head; c != nil; {
		next := c.next
		c.Release()
		c = next
	}
	*ch = Chain{}
}
