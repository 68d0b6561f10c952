package bench

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/jetstream"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// BenchmarkPublish commits messages of 4 KiB to the servers that FASTEDGE_BENCH_NATS names: one after the other, each when the last was acknowledged; and 1024
// in a commit, as the writer of a busy edge does, published one by one within a window (off), as a fast batch, as an atomic one, and as auto finds
// best after its first looks. An operation is 1024 messages. Each case has a stream of its own, which keeps what it gets.
func BenchmarkPublish(b *testing.B) { pool.WithoutPoison(func() { benchPublish(b) }) }

const (
	publishBatch = 1024
	autoLooks    = 12 // commits until auto has seen each way twice
)

func benchPublish(b *testing.B) {
	servers := os.Getenv("FASTEDGE_BENCH_NATS")
	if servers == "" {
		b.Skip("FASTEDGE_BENCH_NATS names no servers; bench/jetstream/run starts some")
	}
	stamp := time.Now().UnixNano()
	for _, replicas := range []int{1, 3} {
		if replicas > len(strings.Split(servers, ",")) {
			continue
		}
		for _, mode := range []string{"alone", "off", "fast", "atomic", "auto"} {
			b.Run(fmt.Sprintf("replicas=%d/batch=%s", replicas, mode), func(b *testing.B) {
				size := publishBatch
				if mode == "alone" {
					mode, size = "off", 1
				}
				stamp++
				name := fmt.Sprintf("P%d", stamp)
				q, err := jetstream.Open(context.Background(), jetstream.Options{
					URLs: strings.Split(servers, ","), Stream: name, Subject: "publish." + name, DeadSubject: "dead." + name, Replicas: replicas, Create: true,
					Batch: mode, Window: 4096, WindowBytes: 64 << 20, Hold: "bench", Log: slog.New(slog.DiscardHandler),
				})
				if err != nil {
					b.Fatal(err)
				}
				defer q.Close()
				maker := queuetest.NewMaker(nil)
				batch := make([]*queue.Submission, publishBatch)
				for i := range batch {
					batch[i], _ = maker.Submission(4096, 1)
				}
				ids := envelope.NewIDSource([32]byte{1})
				publish := func() {
					for _, s := range batch {
						s.Env.ID, s.Err = ids.Next(time.Now()), nil
					}
					for of := range slices.Chunk(batch, size) {
						q.Commit(of)
					}
					for _, s := range batch {
						if s.Err != nil {
							b.Fatal(s.Err)
						}
					}
				}
				if mode == "auto" {
					for range autoLooks {
						publish()
					}
				}
				for b.Loop() {
					publish()
				}
				b.ReportMetric(float64(b.N*publishBatch)/b.Elapsed().Seconds(), "msgs/s")
			})
		}
	}
}
