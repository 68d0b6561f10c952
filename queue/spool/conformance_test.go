package spool

import (
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

var quiet = slog.New(slog.DiscardHandler)

func TestConformance(t *testing.T) {
	open := func(o Options) queuetest.Open {
		return func(t testing.TB, dir string, now func() time.Time) queuetest.Engine {
			o.Now, o.Log, o.MinFree = now, quiet, -1
			s, err := Open(dir, o)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	}
	t.Run("fsync", func(t *testing.T) { queuetest.TestBackend(t, open(Options{SegmentSize: 1 << 20})) })
	t.Run("os", func(t *testing.T) { queuetest.TestBackend(t, open(Options{SegmentSize: 1 << 20, Durability: OS})) })
	t.Run("tiny segments", func(t *testing.T) { queuetest.TestBackend(t, open(Options{SegmentSize: 1})) })
	t.Run("tiny segments, few open files", func(t *testing.T) { queuetest.TestBackend(t, open(Options{SegmentSize: 1, openFiles: 1})) })
}

// Readers of many segments at once share a few open files, and none of them reads from a file that was closed under it.
func TestOpenFilesAreBoundedHoweverManySegmentsThereAre(t *testing.T) {
	dir := t.TempDir()
	clock := queuetest.NewClock()
	maker := queuetest.NewMaker(clock)
	s, err := Open(dir, Options{SegmentSize: 1, MinFree: -1, Log: quiet, openFiles: 4, Hold: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := openDescriptors(t)
	fill(t, s, maker, 100) // a segment each
	if n := openDescriptors(t) - before; n > 4+maxSpares+2 {
		t.Errorf("%d files open after 100 segments, want 4 and the newest", n)
	}
	var ids []envelope.ID
	s.List(func(e queue.Entry) bool { ids = append(ids, e.ID); return true })
	if len(ids) != 100 {
		t.Fatalf("%d messages", len(ids))
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range ids {
				if err := s.Cat(ids[(j*7+i*13)%len(ids)], io.Discard); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := openDescriptors(t) - before; n > 4+maxSpares+2 {
		t.Errorf("%d files open after reading 100 segments, want 4 and the newest", n)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc here")
	}
	return len(all)
}
