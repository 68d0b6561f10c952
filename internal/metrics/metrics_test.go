package metrics

import (
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func testOptions() Options {
	return Options{
		Version: "v1", Revision: "abc",
		Listeners:   []string{"mx", "local"},
		ConnResults: []string{"accepted", "limit", "draining"},
		Stages:      []string{"connect", "mail", "rcpt"},
		Reasons:     []string{"syntax", "relay"},
		Protocols:   []string{"SMTP", "ESMTP"},
		Events:      []string{"paused", "slow_reader"},
	}
}

func everySource() Sources {
	return Sources{
		Queue: func() QueueStats {
			return QueueStats{Messages: map[string]int{"ready": 3, "held": 0}, Bytes: 4096, Oldest: time.Now().Add(-time.Hour), Committed: 9}
		},
		HandoffPending: func() (int, int64) { return 2, 2048 },
		MemoryUsed:     func() int64 { return 2 },
		MemoryBudget:   3,
		LogDropped:     func() uint64 { return 4 },
		Validators: func() []ValidatorStats {
			return []ValidatorStats{{Name: "rspamd", Queued: 1, Busy: 3, Stuck: 1, Full: 1, Late: 2, Failed: 4}}
		},
		LimitedPrefixes:   func() int { return 9 },
		CertificateExpiry: func() time.Time { return time.Unix(1e9, 0) },
		DNS: func() DNSStats {
			return DNSStats{Lookups: map[string]uint64{"hit": 8}, Sent: 3, Withheld: 5, Authentic: 4, Inflight: 2}
		},
		Relay:   func() RelayStats { return RelayStats{Attempts: 5, Deferred: 7, ConnectErrors: 1} },
		Forward: func() ForwardStats { return ForwardStats{Forwarded: 2, Failed: 8, Up: true} },
	}
}

func TestNamesAndTypesAreGoodPrometheus(t *testing.T) {
	r := New(testOptions())
	r.Watch(everySource())
	r.NewLoop()
	problems, err := testutil.GatherAndLint(r.prom)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	// What is gathered must agree with what the collector describes.
	if _, err := testutil.CollectAndLint(newCollector(r)); err != nil {
		t.Error(err)
	}
}

func scrape(t *testing.T, r *Registry) string {
	t.Helper()
	w := httptest.NewRecorder()
	r.Handler(nil).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func wantLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}

func TestEveryLabelIsThereFromTheStart(t *testing.T) {
	r := New(testOptions())
	r.NewLoop()
	wantLines(t, scrape(t, r),
		`fastedge_connections_total{listener="local",result="draining"} 0`,
		`fastedge_connections_open{listener="mx"} 0`,
		`fastedge_smtp_replies_total{code="550",stage="rcpt"} 0`,
		`fastedge_smtp_replies_total{code="other",stage="connect"} 0`,
		`fastedge_rejections_total{class="4",reason="relay",stage="rcpt"} 0`,
		`fastedge_messages_total{proto="ESMTP",result="refused"} 0`,
		`fastedge_loop_events_total{event="slow_reader"} 0`,
		`fastedge_ack_seconds_bucket{le="5e-05"} 0`,
		`fastedge_ack_seconds_bucket{le="10"} 0`,
	)
}

func TestLoopsAreSummed(t *testing.T) {
	r := New(testOptions())
	a, b := r.NewLoop(), r.NewLoop()
	r.Watch(everySource())
	a.Connection(0, 0)
	b.Connection(0, 0)
	b.Connection(1, 2)
	a.Open(0, 1)
	b.Open(0, 3)
	b.Open(0, -1)
	a.Reply(2, 250)
	b.Reply(2, 250)
	b.Reply(2, 550)
	b.Reply(2, 299)
	b.Reply(2, 700)
	a.Refusal(2, 1, 550)
	b.Refusal(2, 1, 451)
	a.Message("ESMTP", true, 1024, 50*time.Microsecond)
	b.Message("ESMTP", true, 1025, 51*time.Microsecond)
	b.Message("ESMTP", true, 1<<40, time.Minute)
	b.Message("ESMTP", false, 1, time.Second)
	b.Message("UUCP", true, 1, 0)
	a.Event(1)
	a.Callback(2 * time.Millisecond)
	a.Callback(time.Millisecond)
	r.Batch(3, time.Millisecond)
	wantLines(t, scrape(t, r),
		`fastedge_connections_total{listener="mx",result="accepted"} 2`,
		`fastedge_connections_total{listener="local",result="draining"} 1`,
		`fastedge_connections_open{listener="mx"} 3`,
		`fastedge_loop_connections{loop="0"} 1`,
		`fastedge_loop_connections{loop="1"} 2`,
		`fastedge_smtp_replies_total{code="250",stage="rcpt"} 2`,
		`fastedge_smtp_replies_total{code="550",stage="rcpt"} 1`,
		`fastedge_smtp_replies_total{code="other",stage="rcpt"} 2`,
		`fastedge_rejections_total{class="4",reason="relay",stage="rcpt"} 1`,
		`fastedge_rejections_total{class="5",reason="relay",stage="rcpt"} 1`,
		`fastedge_messages_total{proto="ESMTP",result="accepted"} 3`,
		`fastedge_messages_total{proto="ESMTP",result="refused"} 1`,
		`fastedge_messages_total{proto="other",result="accepted"} 1`,
		`fastedge_ack_seconds_bucket{le="5e-05"} 2`, // a bound belongs to its bucket
		`fastedge_ack_seconds_bucket{le="0.0001"} 3`,
		`fastedge_ack_seconds_bucket{le="10"} 3`,
		`fastedge_ack_seconds_bucket{le="+Inf"} 4`,
		`fastedge_ack_seconds_count 4`,
		`fastedge_message_size_bytes_bucket{le="1024"} 2`,
		`fastedge_message_size_bytes_bucket{le="4096"} 3`,
		`fastedge_message_size_bytes_count 4`,
		`fastedge_loop_events_total{event="slow_reader"} 1`,
		`fastedge_loop_callback_max_seconds{loop="0"} 0.002`,
		`fastedge_handoff_batch_messages_bucket{le="4"} 1`,
		`fastedge_handoff_pending 2`,
		`fastedge_relay_recipients_total{result="deferred"} 7`,
		`fastedge_forward_messages_total{result="failed"} 8`,
		`fastedge_forward_up 1`,
		`fastedge_spool_messages{state="ready"} 3`,
		`fastedge_memory_budget_bytes 3`,
		`fastedge_log_dropped_total 4`,
	)
}

func TestSlowestCallbackIsForgottenAfterTwoRotations(t *testing.T) {
	r := New(testOptions())
	l := r.NewLoop()
	l.Callback(time.Second)
	for i, want := range []string{"1", "1", "0"} {
		wantLines(t, scrape(t, r), `fastedge_loop_callback_max_seconds{loop="0"} `+want)
		r.mu.Lock()
		r.rotated = r.rotated.Add(-rotateAfter)
		r.mu.Unlock()
		_ = i
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	l := New(testOptions()).NewLoop()
	if allocs := testing.AllocsPerRun(100, func() { count(l) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// count is what one message costs.
func count(l *Loop) {
	l.Reply(0, 250)
	l.Reply(1, 250)
	l.Reply(2, 250)
	l.Message("ESMTP", true, 4096, 300*time.Microsecond)
	l.Callback(30 * time.Microsecond)
}

// Run with -race: scrapes and new loops beside counting loops.
func TestScrapesWhileLoopsCount(t *testing.T) {
	r := New(testOptions())
	r.Watch(everySource())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			l := r.NewLoop()
			for range 1000 {
				count(l)
				l.Refusal(1, 1, 550)
				l.Connection(0, 0)
				l.Open(0, 1)
				l.Event(0)
			}
			r.Batch(1, time.Millisecond)
		})
	}
	for range 10 {
		scrape(t, r)
	}
	wg.Wait()
	wantLines(t, scrape(t, r), `fastedge_messages_total{proto="ESMTP",result="accepted"} 4000`)
}

// The naive twin is the ready-made counter with labels.
func BenchmarkReply(b *testing.B) {
	b.Run("impl=fastedge", func(b *testing.B) {
		l := New(testOptions()).NewLoop()
		b.ReportAllocs()
		for b.Loop() {
			l.Reply(2, 250)
		}
	})
	b.Run("impl=naive", func(b *testing.B) {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"stage", "code"})
		b.ReportAllocs()
		for b.Loop() {
			v.WithLabelValues("rcpt", "250").Inc()
		}
	})
}

func BenchmarkMessage(b *testing.B) {
	l := New(testOptions()).NewLoop()
	b.ReportAllocs()
	for b.Loop() {
		count(l)
	}
}
