package queue

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// slowDisk is a backend whose commits take as long as a quick disk's sync, whatever their size.
type slowDisk struct{ commits atomic.Int64 }

func (d *slowDisk) Commit([]*Submission) {
	d.commits.Add(1)
	time.Sleep(100 * time.Microsecond)
}
func (d *slowDisk) Room() error  { return nil }
func (d *slowDisk) Close() error { return nil }

// again is an owner that submits its messages again until there were enough, like clients that wait for their 250.
type again struct {
	w    *Writer
	left atomic.Int64
	wg   sync.WaitGroup
}

func (a *again) Committed(batch []*Submission) {
	for _, s := range batch {
		if a.left.Add(-1) < 0 {
			a.wg.Done()
		} else if err := a.w.Submit(s); err != nil {
			panic(err)
		}
	}
}

// The twin is what one would write without a batching writer: each message commits itself, under a lock.
func BenchmarkWriter(b *testing.B) {
	for _, inflight := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("impl=fastedge/inflight=%d", inflight), func(b *testing.B) {
			b.ReportAllocs()
			d := &slowDisk{}
			a := &again{w: NewWriter(d, Limits{})}
			a.left.Store(int64(b.N))
			a.wg.Add(inflight)
			for range inflight {
				s := submission(a, 4096)
				if a.left.Add(-1) < 0 {
					a.wg.Done()
				} else if err := a.w.Submit(s); err != nil {
					b.Fatal(err)
				}
			}
			a.wg.Wait()
			a.w.Close(context.Background())
			b.ReportMetric(float64(b.N)/float64(d.commits.Load()), "msgs/commit")
		})
		b.Run(fmt.Sprintf("impl=naive/inflight=%d", inflight), func(b *testing.B) {
			b.ReportAllocs()
			d := &slowDisk{}
			var mu sync.Mutex
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range inflight {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						mu.Lock()
						d.Commit(nil)
						mu.Unlock()
					}
				})
			}
			wg.Wait()
		})
	}
}
