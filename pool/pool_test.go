package pool

import (
	"bytes"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"testing"
)

func TestGetGivesTheSmallestChunkThatHolds(t *testing.T) {
	l := NewList(1<<20, nil)
	for _, tc := range []struct{ want, size int }{
		{1, 8 << 10}, {8 << 10, 8 << 10}, {8<<10 + 1, 32 << 10}, {32 << 10, 32 << 10}, {32<<10 + 1, 128 << 10},
		{128 << 10, 128 << 10}, {128<<10 + 1, 128 << 10},
	} {
		if c := l.Get(tc.want); len(c.buf) != tc.size {
			t.Errorf("Get(%d) gives %d bytes, want %d", tc.want, len(c.buf), tc.size)
		}
	}
}

func TestReleasingTwicePanics(t *testing.T) {
	c := NewList(1<<20, nil).Get(1)
	c.Release()
	defer func() {
		if recover() == nil {
			t.Fatal("second Release did not panic")
		}
	}()
	c.Release()
}

func TestReleasePoisonsTheChunk(t *testing.T) {
	var ch Chain
	l := NewList(1<<20, nil)
	ch.Append(l, []byte("From: a@example.net"))
	kept := ch.First().Bytes()
	ch.Release()
	for i, b := range kept {
		if b != poisonByte {
			t.Fatalf("byte %d is still %q after Release", i, b)
		}
	}
}

func TestBudgetIsExact(t *testing.T) {
	b := NewBudget(16 << 10)
	l := NewList(1<<20, b)
	one, two := l.Get(1), l.Get(1)
	if one == nil || two == nil || b.Used() != 16<<10 {
		t.Fatalf("two chunks of 8 KiB within 16 KiB: %v %v, used %d", one, two, b.Used())
	}
	if l.Get(1) != nil {
		t.Fatal("a third chunk came over the budget")
	}
	if b.Used() != 16<<10 {
		t.Fatalf("a refused Get changed the budget: %d", b.Used())
	}
	one.Release()
	if l.Get(1) == nil {
		t.Fatal("no chunk after one was released")
	}
}

func TestSpentBudgetStopsAnAppendAndKeepsWhatWasWritten(t *testing.T) {
	l := NewList(0, NewBudget(8<<10))
	var ch Chain
	if !ch.Append(l, make([]byte, 8<<10)) {
		t.Fatal("8 KiB of 8 KiB refused")
	}
	if ch.Append(l, []byte{1}) || ch.Len() != 8<<10 {
		t.Fatalf("one byte past the budget was taken, length %d", ch.Len())
	}
}

func TestIdleChunksAreBoundedAndTrimmed(t *testing.T) {
	l := NewList(40<<10, nil)
	a, b, c := l.Get(8<<10), l.Get(32<<10), l.Get(8<<10)
	a.Release()
	b.Release()
	if l.Idle() != 40<<10 {
		t.Fatalf("%d bytes idle, want 40 KiB: at the limit", l.Idle())
	}
	c.Release()
	if l.Idle() != 40<<10 {
		t.Fatalf("%d bytes idle, past the limit", l.Idle())
	}
	l.Trim(8 << 10)
	if l.Idle() != 8<<10 {
		t.Fatalf("%d bytes idle after Trim(8 KiB)", l.Idle())
	}
	l.Trim(0)
	if l.Idle() != 0 {
		t.Fatalf("%d bytes idle after Trim(0)", l.Idle())
	}
}

func TestChainGivesBackWhatWasAppended(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := NewBudget(0)
	l := NewList(1<<20, b)
	for range 50 {
		var ch Chain
		want := make([]byte, 0, 1<<20)
		for len(want) < r.IntN(600<<10) {
			p := make([]byte, r.IntN(50<<10))
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			want = append(want, p...)
			ch.Append(l, p)
		}
		got := bytes.Join(ch.AppendBuffers(nil), nil)
		if !bytes.Equal(got, want) || ch.Len() != int64(len(want)) {
			t.Fatalf("%d bytes in, %d out", len(want), len(got))
		}
		if ch.Sum() != crc32.Checksum(want, castagnoli) {
			t.Fatalf("sum of %d bytes is %08x", len(want), ch.Sum())
		}
		if room := b.Used(); len(want) > 128<<10 && room > int64(len(want))*3/2+128<<10 {
			t.Errorf("%d bytes held for a message of %d", room, len(want))
		}
		ch.Release()
		if b.Used() != 0 || ch.Len() != 0 || ch.Sum() != 0 {
			t.Fatalf("%d bytes still out after Release", b.Used())
		}
	}
}

func TestSharedListServesManyGoroutines(t *testing.T) {
	b := NewBudget(0)
	l := NewSharedList(1<<20, b)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				var ch Chain
				ch.Append(l, make([]byte, 40<<10))
				ch.Release()
			}
		})
	}
	wg.Wait()
	if b.Used() != 0 {
		t.Fatalf("%d bytes still out", b.Used())
	}
}

func TestGetAndReleaseDoNotAllocate(t *testing.T) {
	l := NewList(1<<20, NewBudget(1<<20))
	WithoutPoison(func() {
		if n := testing.AllocsPerRun(1000, func() { l.Get(4096).Release() }); n != 0 {
			t.Errorf("%v allocations, want 0", n)
		}
	})
}

// The baselines are what one would write without thinking: a fresh buffer per message, and a sync.Pool.
func BenchmarkChunk(b *testing.B) { WithoutPoison(func() { benchChunk(b) }) }

func benchChunk(b *testing.B) {
	body := make([]byte, 4096)
	b.Run("impl=fastedge/size=4KiB", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(4096)
		l := NewList(1<<20, NewBudget(1<<30))
		for b.Loop() {
			var ch Chain
			ch.Append(l, body)
			ch.Release()
		}
	})
	b.Run("impl=naive-make/size=4KiB", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(4096)
		for b.Loop() {
			sink = append([]byte(nil), body...)
		}
	})
	b.Run("impl=naive-sync.Pool/size=4KiB", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(4096)
		p := sync.Pool{New: func() any { return make([]byte, 8<<10) }}
		for b.Loop() {
			buf := p.Get().([]byte)
			copy(buf, body)
			//lint:ignore SA6002 the allocation is the point of this twin
			p.Put(buf)
		}
	})
}

func BenchmarkChain(b *testing.B) { WithoutPoison(func() { benchChain(b) }) }

func benchChain(b *testing.B) {
	part := make([]byte, 16<<10)
	b.Run("impl=fastedge/size=1MiB", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(1 << 20)
		l := NewList(4<<20, nil)
		for b.Loop() {
			var ch Chain
			for range 64 {
				ch.Append(l, part)
			}
			ch.Release()
		}
	})
	b.Run("impl=naive/size=1MiB", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(1 << 20)
		for b.Loop() {
			sink = nil
			for range 64 {
				sink = append(sink, part...)
			}
		}
	})
}

var sink []byte

// Whatever is taken out of a chain, the rest and its sum are those of the bytes that stay.
func TestDeleteKeepsTheRest(t *testing.T) {
	l := NewList(1<<20, nil)
	whole := make([]byte, 100<<10)
	for i := range whole {
		whole[i] = byte(i * 7 >> 3)
	}
	n := int64(len(whole))
	for _, cuts := range [][]Range{
		nil, {{0, 0}}, {{0, 1}}, {{0, n}}, {{n, n}}, {{n - 1, n}}, {{5, 8<<10 - 1}}, {{8 << 10, 8<<10 + 1}}, {{8<<10 - 1, 8<<10 + 1}}, {{1, 99 << 10}},
		{{40 << 10, 41 << 10}}, {{0, 3}, {3, 4}, {7, 9}}, {{1, 2}, {8 << 10, 50 << 10}, {60 << 10, n}}, {{3, 9 << 10}, {9 << 10, 70 << 10}, {70<<10 + 1, 70<<10 + 2}},
	} {
		var ch Chain
		ch.Append(l, whole)
		ch.Delete(cuts)
		want, from := []byte{}, int64(0)
		for _, r := range cuts {
			want = append(want, whole[from:r.From]...)
			from = r.To
		}
		want = append(want, whole[from:]...)
		if got := bytes.Join(ch.AppendBuffers(nil), nil); !bytes.Equal(got, want) || ch.Len() != int64(len(want)) || ch.Sum() != crc32.Checksum(want, castagnoli) {
			t.Errorf("delete %v: %d bytes, want %d; sum %x", cuts, len(got), len(want), ch.Sum())
		}
		ch.Release()
	}
}
