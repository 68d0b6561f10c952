package spool

import (
	"log/slog"
	"testing"
	"time"

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
}
