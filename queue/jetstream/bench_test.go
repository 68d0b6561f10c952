package jetstream

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// BenchmarkCommit commits batches of 4 KiB messages to servers in this process, whose CPU is part of the figure. batch=single is the
// baseline: one message, one acknowledgement, then the next.
func BenchmarkCommit(b *testing.B) {
	for _, replicas := range []int{1, 3} {
		for _, batch := range []string{"single", "off", "fast", "atomic", "auto"} {
			for _, n := range []int{8, 64, 256} {
				b.Run(fmt.Sprintf("replicas=%d/batch=%s/messages=%d", replicas, batch, n), func(b *testing.B) {
					var servers []*server.Server
					if replicas == 1 {
						servers = []*server.Server{alone(b, b.TempDir())}
					} else {
						servers = newCluster(b).servers[:]
					}
					mode := batch
					if batch == "single" {
						mode = "off"
					}
					q := opened(b, Options{Replicas: replicas, Batch: mode, Timeout: time.Minute}, servers...)
					eventually(b, "there is room", roomy(q))
					maker := queuetest.NewMaker(nil)
					ids := envelope.NewIDSource([32]byte{byte(n), byte(b.N)})
					subs := make([]*queue.Submission, n)
					for i := range subs {
						subs[i], _ = maker.Submission(4096, 1)
					}
					cpu := cpuTime()
					messages := 0
					b.SetBytes(4096 * int64(n))
					b.ReportAllocs()
					for b.Loop() {
						for i := range subs {
							subs[i].Env.ID = ids.Next(time.Now())
						}
						if batch == "single" {
							for i := range subs {
								q.Commit(subs[i : i+1])
							}
						} else {
							q.Commit(subs)
						}
						for _, s := range subs {
							if s.Err != nil {
								b.Fatal(s.Err)
							}
						}
						messages += n
					}
					b.ReportMetric(float64(messages)/b.Elapsed().Seconds(), "messages/s")
					b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(messages), "cpu-us/message")
				})
			}
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
