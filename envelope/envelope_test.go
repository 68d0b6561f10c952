package envelope

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/pool"
)

func TestIDsSortByTimeAndNeverRepeat(t *testing.T) {
	src := NewIDSource([32]byte{1})
	start := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	last := ""
	for i := range 100_000 {
		now := start.Add(time.Duration(i/1000) * time.Millisecond)
		if i > 50_000 {
			now = now.Add(-time.Second) // the clock steps back
		}
		id := src.Next(now).String()
		if id <= last {
			t.Fatalf("id %d %q does not sort after %q", i, id, last)
		}
		last = id
	}
}

func TestIDTextReadsBack(t *testing.T) {
	src := NewIDSource([32]byte{2})
	for i := range 1000 {
		now := time.UnixMilli(1_795_334_107_215 + int64(i)*7)
		id := src.Next(now)
		text := id.String()
		if len(text) != IDChars {
			t.Fatalf("%q has %d characters", text, len(text))
		}
		for _, s := range []string{text, strings.ToUpper(text)} {
			if got, err := ParseID(s); err != nil || got != id {
				t.Fatalf("ParseID(%q) = %v, %v", s, got, err)
			}
		}
		if !id.Time().Equal(now) {
			t.Fatalf("time %v, want %v", id.Time(), now)
		}
	}
	for _, bad := range []string{"", "0", strings.Repeat("0", 25), strings.Repeat("0", 27), "8" + strings.Repeat("0", 25), "0u" + strings.Repeat("0", 24), strings.Repeat("\x00", 26)} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) accepted", bad)
		}
	}
	if max, err := ParseID("7zzzzzzzzzzzzzzzzzzzzzzzzz"); err != nil || max.String() != "7zzzzzzzzzzzzzzzzzzzzzzzzz" {
		t.Errorf("the largest id: %v, %v", max, err)
	}
}

func TestIDTextSortsAsTheID(t *testing.T) {
	src := NewIDSource([32]byte{3})
	var ids []ID
	for i := range 2000 {
		ids = append(ids, src.Next(time.UnixMilli(int64(i*i))))
	}
	byText := slices.Clone(ids)
	slices.SortFunc(byText, func(a, b ID) int { return strings.Compare(a.String(), b.String()) })
	slices.SortFunc(ids, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
	if !slices.Equal(ids, byText) {
		t.Fatal("orders differ")
	}
}

func TestKeptAddressesSurviveTheArenasGrowth(t *testing.T) {
	l := NewList(pool.NewList(1<<20, nil))
	e := l.Get()
	for i := range 1000 {
		e.AddRecipient([]byte(strings.Repeat("x", i%60)+"@example.net"), nil, 0)
	}
	for i, r := range e.Recipients {
		if want := strings.Repeat("x", i%60) + "@example.net"; string(r.Path) != want {
			t.Fatalf("recipient %d is %q", i, r.Path)
		}
	}
	e.Release()
}

func TestReleasePoisonsAddressesAndASecondOnePanics(t *testing.T) {
	l := NewList(pool.NewList(1<<20, nil))
	e := l.Get()
	path := e.Keep([]byte("a@example.net"))
	e.Release()
	if string(path) == "a@example.net" {
		t.Error("address is still readable after Release")
	}
	defer func() {
		if recover() == nil {
			t.Error("second Release did not panic")
		}
	}()
	e.Release()
}

func TestACopyOfTheHeadHasMemoryOfItsOwn(t *testing.T) {
	for i, e := range sampleEnvelopes() {
		if i == 2 {
			continue // long
		}
		want := e.AppendBinary(nil)
		// Everything lies in an arena, which Release overwrites.
		kept := NewList(pool.NewList(1<<20, nil)).Get()
		owned, err := Decode(kept.Keep(want))
		if err != nil {
			t.Fatal(err)
		}
		c := owned.CloneHead()
		kept.Release()
		if got := c.AppendBinary(nil); !bytes.Equal(got, want) {
			t.Errorf("envelope %d: the copy has changed with the original", i)
		}
	}
}

func TestAReleasedEnvelopeIsUsedAgainEmptyAndWithoutAllocating(t *testing.T) {
	chunks := pool.NewList(1<<20, pool.NewBudget(1<<20))
	l := NewList(chunks)
	use := func() {
		e := l.Get()
		if e.ReversePath != nil || len(e.Recipients) != 0 || e.Data.Len() != 0 || e.RequireTLS || e.Metadata != nil || e.Idempotency.Given() || e.Idempotency.Answer != nil {
			t.Fatal("an envelope came back with something in it")
		}
		e.ReversePath = e.Keep([]byte("sender@example.net"))
		e.AddRecipient([]byte("a@example.org"), nil, 0)
		e.AddRecipient([]byte("b@example.org"), nil, 0)
		e.RequireTLS, e.Metadata, e.Idempotency = true, e.KeepString(`{"a":1}`), Idempotency{Key: [32]byte{1}, Answer: e.KeepString("202")}
		e.Data.Append(chunks, []byte("Subject: x\r\n\r\n"))
		e.Release()
	}
	if n := testing.AllocsPerRun(1000, use); n != 0 {
		t.Errorf("%v allocations a message, want 0", n)
	}
}

func BenchmarkID(b *testing.B) {
	b.ReportAllocs()
	src := NewIDSource([32]byte{4})
	now := time.Now()
	buf := make([]byte, 0, 64)
	for b.Loop() {
		buf = src.Next(now).AppendTo(buf[:0])
	}
}
