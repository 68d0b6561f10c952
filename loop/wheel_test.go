package loop

import (
	"testing"
	"time"
	"unsafe"
)

// wallShifted gives t as time.Now gives it after the wall clock was set: another wall clock reading, the same monotonic one.
func wallShifted(t time.Time, seconds int64) time.Time {
	// The first word of a Time with a monotonic reading holds the wall seconds above 30 bits of nanoseconds.
	wall := (*uint64)(unsafe.Pointer(&t))
	*wall = uint64(int64(*wall) + seconds<<30)
	return t
}

func TestDeadlinesHoldWhenTheWallClockIsSetBackOrForth(t *testing.T) {
	start := time.Now()
	for _, shift := range []int64{-3600, 3600} {
		after := wallShifted(start, shift)
		if after.Sub(start) != 0 || after.Unix()-start.Unix() != shift {
			t.Fatalf("the test does not set the clock: %v, %v", start, after)
		}
		w := newWheel(time.Second, start)
		c := &conn{}
		w.put(c, start.Add(5*time.Second))
		due := 0
		count := func(*conn) { due++ }
		w.advance(after.Add(4*time.Second), count)
		if due != 0 {
			t.Errorf("wall clock set by %d s: due a second early", shift)
		}
		w.advance(after.Add(6*time.Second), count)
		if due != 1 {
			t.Errorf("wall clock set by %d s: not due at its time", shift)
		}
	}
}
