package spool

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// cpu is the processor time of this process so far, user and system.
func cpu() time.Duration {
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// closedLoop submits its submissions again as soon as they are committed, like as many clients that wait for their 250.
type closedLoop struct {
	w    *queue.Writer
	left atomic.Int64
	out  atomic.Int64
	done chan error
}

func (c *closedLoop) Committed(batch []*queue.Submission) {
	for _, s := range batch {
		if s.Err != nil || c.left.Add(-1) < 0 {
			if c.out.Add(-1) == 0 {
				c.done <- s.Err
			}
			continue
		}
		c.w.Submit(s)
	}
}

// BenchmarkCommit measures durable messages through the Writer, with 1, 16 and 256 always in flight, against two naive twins: a file and a
// sync for each message, and one file with an append and a sync for each. cpu-us/rec is the whole process's.
func BenchmarkCommit(b *testing.B) {
	for _, kib := range []int{4, 64} {
		for _, inflight := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("impl=fastedge/sync=fsync/inflight=%d/size=%dKiB", inflight, kib), func(b *testing.B) {
				benchCommit(b, inflight, kib<<10, Fsync)
			})
		}
	}
	b.Run("impl=fastedge/sync=os/inflight=256/size=4KiB", func(b *testing.B) { benchCommit(b, 256, 4<<10, OS) })
	for _, naive := range []string{"file-each", "append-each"} {
		b.Run("impl=naive-"+naive+"/sync=fsync/inflight=1/size=4KiB", func(b *testing.B) { benchNaive(b, naive == "file-each") })
	}
}

func benchCommit(b *testing.B, inflight, size int, d Durability) {
	s, err := Open(b.TempDir(), Options{Durability: d, MinFree: -1, Log: quiet})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := &closedLoop{w: queue.NewWriter(s, queue.Limits{}), done: make(chan error, 1)}
	defer c.w.Close(context.Background())
	maker := queuetest.NewMaker(nil)
	subs := make([]*queue.Submission, inflight)
	for i := range subs {
		subs[i], _ = maker.Submission(size, 1)
		subs[i].Owner = c
	}
	run := func(n int) {
		c.left.Store(int64(n - inflight))
		c.out.Store(int64(inflight))
		for _, sub := range subs {
			if err := c.w.Submit(sub); err != nil {
				b.Fatal(err)
			}
		}
		if err := <-c.done; err != nil {
			b.Fatal(err)
		}
	}
	// Warm up until a prepared segment is in use, as it is on a server that has been up for a second.
	for began := time.Now(); time.Since(began) < 3*time.Second && d == Fsync; {
		run(inflight)
		if s.makeshiftGone() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	before := s.Stats()
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	used := cpu()
	run(max(b.N, inflight))
	b.StopTimer()
	used = cpu() - used
	n := float64(max(b.N, inflight))
	after := s.Stats()
	b.ReportMetric(n/b.Elapsed().Seconds(), "rec/s")
	b.ReportMetric(float64(used.Nanoseconds())/1000/n, "cpu-us/rec")
	b.ReportMetric(float64(after.Committed-before.Committed)/float64(max(1, after.Commits-before.Commits)), "rec/commit")
}

func (s *Spool) makeshiftGone() bool {
	s.committing.Lock()
	defer s.committing.Unlock()
	return s.current != nil && !s.current.makeshift
}

func benchNaive(b *testing.B, fileEach bool) {
	dir := b.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	sub, _ := queuetest.NewMaker(nil).Submission(4<<10, 1)
	bufs := sub.Env.Data.AppendBuffers([][]byte{sub.Env.AppendBinary(nil), sub.Env.Trace})
	rec := bytes.Join(bufs, nil)
	b.SetBytes(4 << 10)
	b.ResetTimer()
	used := cpu()
	for i := range b.N {
		f := log
		if fileEach {
			if f, err = os.Create(filepath.Join(dir, fmt.Sprint(i))); err != nil {
				b.Fatal(err)
			}
		}
		if _, err = f.Write(rec); err == nil {
			err = f.Sync()
		}
		if fileEach && err == nil {
			f.Close()
			err = d.Sync()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rec/s")
	b.ReportMetric(float64((cpu()-used).Nanoseconds())/1000/float64(b.N), "cpu-us/rec")
}

// BenchmarkLease measures what a relay takes from the spool: lease, open, settle.
func BenchmarkLease(b *testing.B) {
	s, err := Open(b.TempDir(), Options{Durability: OS, MinFree: -1, Log: quiet})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	maker := queuetest.NewMaker(nil)
	b.SetBytes(4 << 10)
	b.ReportAllocs()
	for i := range b.N {
		if i%1000 == 0 {
			b.StopTimer()
			fill(b, s, maker, min(1000, b.N-i))
			b.StartTimer()
		}
		d, err := s.Lease(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		r, err := d.Open()
		if err != nil {
			b.Fatal(err)
		}
		r.Close()
		if err := s.Settle(d, []queue.Outcome{{State: queue.Delivered}}, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
}

func fill(t testing.TB, s *Spool, maker *queuetest.Maker, n int) {
	for n > 0 {
		batch := make([]*queue.Submission, min(n, 1000))
		for i := range batch {
			batch[i], _ = maker.Submission(4<<10, 1)
		}
		s.Commit(batch)
		for _, sub := range batch {
			if sub.Err != nil {
				t.Fatal(sub.Err)
			}
			sub.Env.Release()
		}
		n -= len(batch)
	}
}

// abandon ends the spool as kill -9 would.
func (s *Spool) abandon() {
	close(s.stop)
	s.workers.Wait()
	s.closeFiles()
	s.lock.Close()
}

// TestRestartWith100000Messages prints how long Open takes; the promise is a second to the first EHLO. It fails only when it is far off,
// as machines differ.
func TestRestartWith100000Messages(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("writes 430 MB to see how long something takes")
	}
	dir := t.TempDir()
	o := Options{Durability: OS, MinFree: -1, Log: quiet}
	open := func(how string) *Spool {
		began := time.Now()
		s, err := Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		t.Logf("%s: open with %d messages took %v", how, s.live.Load(), took.Round(time.Millisecond))
		if took > time.Minute {
			t.Errorf("open took %v", took)
		}
		return s
	}
	s := open("empty")
	fill(t, s, queuetest.NewMaker(nil), 100_000)
	s.abandon()
	s = open("after kill -9")
	if n := s.live.Load(); n != 100_000 {
		t.Fatalf("%d messages", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open("after close")
	if n := s.live.Load(); n != 100_000 {
		t.Fatalf("%d messages", n)
	}
	s.Close()
}
