// Package metrics counts what fastedge does and shows it to Prometheus.
//
// Event loops count into blocks of their own (Loop), which no other goroutine writes, so counting costs an uncontended atomic add and no
// allocation; a custom collector sums the blocks when it is scraped. What happens once a batch or less often is counted in plain
// Prometheus metrics, and what other packages count themselves is asked of them at the scrape (Sources).
//
// Every label value exists from the start with value 0, so that dashboards and alerts work from the first scrape. Labels are closed sets:
// never an address, a domain or a session. The package imports none of ours: sets of words come in as Options. It is the one door to
// client_golang.
package metrics

import (
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options are the words that label values come from. Indexes into these lists are what Loop's methods take.
type Options struct {
	Version  string
	Revision string

	Listeners   []string
	ConnResults []string // what becomes of a new connection: accepted, limit, draining
	Stages      []string // where in a session something is decided
	Reasons     []string // why something is refused
	Protocols   []string // RFC 3848 words as envelopes have them: SMTP, ESMTP, LMTP
	Events      []string // rare events of loops
	Rules       []string // names of the rules of policy
	Zones       []string // of DNS lists
}

// QueueStats is what the queue says of itself; it mirrors queue.Stats.
type QueueStats struct {
	Messages   map[string]int // by state
	Bytes      int64
	Oldest     time.Time
	Committed  uint64
	Commits    uint64
	Syncs      uint64
	SyncErrors uint64
	Damaged    uint64
	Segments   int
	FreeBytes  int64
}

// Sources are asked at each scrape; nil ones are left out. They may be called from any goroutine.
type Sources struct {
	Queue          func() QueueStats
	HandoffPending func() (messages int, bytes int64)
	MemoryUsed     func() int64 // message bytes not yet durable
	MemoryBudget   int64        // limits.memory
	LogDropped     func() uint64
	Relay          func() RelayStats
	Forward        func() ForwardStats
	// Validators are those that ask others: hooks and milters.
	Validators func() []ValidatorStats
	DNS        func() DNSStats
	// LimitedPrefixes is how many networks the limits per prefix remember.
	LimitedPrefixes func() int
	// CertificateExpiry is when the first of our certificates ends.
	CertificateExpiry func() time.Time
}

// ValidatorStats is what a validator says of itself that asks others; it mirrors policy.BlockingStats.
type ValidatorStats struct {
	Name                string
	Queued, Busy, Stuck int    // now
	Full, Late, Failed  uint64 // since the start
}

// DNSStats is what the resolver says of itself, counters by word; it mirrors resolver.Stats.
type DNSStats struct {
	Lookups, Limited, Answers        map[string]uint64
	Sent, Retransmits, Hedges, ByTCP uint64
	Withheld                         uint64 // retransmissions that were put off
	Authentic                        uint64 // of the answers that were taken, those with AD
	Inflight, Waiting                int
	CacheBytes                       int64
}

// RelayStats is what the relay says of itself; it mirrors relay.Stats.
type RelayStats struct {
	Attempts, Dead              uint64
	Delivered, Deferred, Failed uint64 // recipients
	Connects, ConnectErrors     uint64
	InFlight, Connections       int64
	NextHopsDown                int64
}

// ForwardStats is what the forwarder from the spool to JetStream says of itself; it mirrors forward.Stats.
type ForwardStats struct {
	Forwarded, Failed, Deferred uint64 // tries
	InHand                      int
	Up                          bool
}

// Registry holds all metrics of one server. Its methods may be called from any goroutine.
type Registry struct {
	o    Options
	prom *prometheus.Registry

	mu      sync.Mutex
	loops   []*Loop
	sources Sources
	rotated time.Time // when the loops' slowest callbacks were last moved to before

	http          [600]atomic.Uint64 // answers by status
	rules         map[string]prometheus.Counter
	spf           []atomic.Uint64 // result × action
	ptr           *prometheus.CounterVec
	dnsbl         *prometheus.CounterVec
	batchMessages prometheus.Histogram
	batchSeconds  prometheus.Histogram
}

// New makes a registry with every label value at 0.
func New(o Options) *Registry {
	r := &Registry{o: o, prom: prometheus.NewRegistry(), rotated: time.Now(), spf: padded[atomic.Uint64](len(spfResults) * len(spfActions))}
	r.batchMessages = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "fastedge_handoff_batch_messages", Help: "Messages of one commit.",
		Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024},
	})
	r.batchSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "fastedge_handoff_batch_seconds", Help: "Duration of one commit.",
		Buckets: secondsOf(ackBounds[:]),
	})
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "fastedge_build_info", Help: "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{"version": o.Version, "revision": o.Revision, "goversion": runtime.Version()},
	})
	build.Set(1)
	r.ptr = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fastedge_ptr_results_total", Help: "Clients by what the lookup of their name has come to (RFC 8601 iprev).",
	}, []string{"result"})
	for _, result := range []string{"pass", "fail", "permerror", "temperror"} {
		r.ptr.WithLabelValues(result)
	}
	r.dnsbl = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fastedge_dnsbl_answers_total", Help: "Answers of DNS lists that list a client, and those that did not come.",
	}, []string{"zone", "answer"})
	for _, zone := range o.Zones {
		r.dnsbl.WithLabelValues(zone, "listed")
		r.dnsbl.WithLabelValues(zone, "failed")
	}
	r.prom.MustRegister(r.ptr, r.dnsbl)
	r.rules = make(map[string]prometheus.Counter, len(o.Rules))
	if len(o.Rules) > 0 {
		matches := prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fastedge_rule_matches_total", Help: "Commands and messages that a [[rule]] has matched, those in observe mode included.",
		}, []string{"rule"})
		for _, name := range o.Rules {
			r.rules[name] = matches.WithLabelValues(name)
		}
		r.prom.MustRegister(matches)
	}
	r.prom.MustRegister(r.batchMessages, r.batchSeconds, build, newCollector(r),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Watch sets what is asked at each scrape.
func (r *Registry) Watch(s Sources) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sources = s
}

// Batch counts one commit.
func (r *Registry) Batch(messages int, d time.Duration) {
	r.batchMessages.Observe(float64(messages))
	r.batchSeconds.Observe(d.Seconds())
}

// RuleMatched counts a match of one of Options.Rules.
func (r *Registry) RuleMatched(rule string) {
	if c := r.rules[rule]; c != nil {
		c.Inc()
	}
}

// The words of SPF, in the order of spf.Code and policy.SPFAction.
var (
	spfResults = [...]string{"none", "neutral", "pass", "fail", "softfail", "temperror", "permerror"}
	spfActions = [...]string{"none", "accepted", "refused", "observed"}
)

// SPF counts the result of a transaction, and what became of it: a spf.Code and a policy.SPFAction. Numbers, because each message does it and words
// would have to be looked up.
func (r *Registry) SPF(result, action int) { r.spf[result*len(spfActions)+action].Add(1) }

// PTR counts a finished lookup of a client's name.
func (r *Registry) PTR(result string) { r.ptr.WithLabelValues(result).Inc() }

// DNSBL counts an answer of one of Options.Zones.
func (r *Registry) DNSBL(zone, answer string) { r.dnsbl.WithLabelValues(zone, answer).Inc() }

// Handler serves the metrics. log gets what goes wrong in a scrape; it may be nil.
func (r *Registry) Handler(log *slog.Logger) http.Handler {
	o := promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 10 * time.Second}
	if log != nil {
		o.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	}
	return promhttp.HandlerFor(r.prom, o)
}

// replyCodes are the codes with a counter of their own; others count as "other".
var replyCodes = [...]uint16{
	211, 214, 220, 221, 235, 250, 251, 252, 334, 354, 421, 432, 450, 451, 452, 454, 455,
	500, 501, 502, 503, 504, 521, 530, 534, 535, 538, 550, 551, 552, 553, 554, 555, 556,
}

const numCodes = len(replyCodes) + 1

// codeIndex has the place of each code in replyCodes; others are at the end.
var codeIndex = func() (index [600]uint8) {
	for i := range index {
		index[i] = uint8(len(replyCodes))
	}
	for i, code := range replyCodes {
		index[code] = uint8(i)
	}
	return index
}()

func codeLabel(i int) string {
	if i == len(replyCodes) {
		return "other"
	}
	return strconv.Itoa(int(replyCodes[i]))
}

// ackBounds are the upper bounds of durations: a commit takes some 100 µs on good storage and seconds on bad.
var ackBounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second,
}

// sizeBounds are the upper bounds of message sizes in bytes.
var sizeBounds = [...]int64{1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20}

func secondsOf(bounds []time.Duration) []float64 {
	s := make([]float64, len(bounds))
	for i, b := range bounds {
		s[i] = b.Seconds()
	}
	return s
}

// cacheLine keeps the blocks of two loops apart: 128 bytes because processors fetch lines in pairs.
const cacheLine = 128

// Loop counts what happens on one event loop. Its methods are meant for that loop's goroutine alone: others would be counted too, but
// slow both down. None of them blocks or allocates.
type Loop struct {
	_ [cacheLine]byte

	replies     []atomic.Uint64 // stage × code
	refusals    []atomic.Uint64 // stage × reason × class 4, 5
	connections []atomic.Uint64 // listener × result
	open        []atomic.Int64  // listener
	messages    []atomic.Uint64 // protocol, and one for others, × accepted, refused
	events      []atomic.Uint64
	handshakes  [len(tlsVersions) + 2]atomic.Uint64 // by version, other versions, failed
	protocols   []string
	reasons     int
	results     int

	ack      [len(ackBounds) + 1]atomic.Uint64 // the last one is beyond all bounds
	ackNanos atomic.Uint64
	sizes    [len(sizeBounds) + 1]atomic.Uint64
	bytes    atomic.Uint64

	shake      [len(ackBounds) + 1]atomic.Uint64 // times of good handshakes
	shakeNanos atomic.Uint64

	slowest       atomic.Int64 // longest callback since the last rotation
	slowestBefore atomic.Int64 // longest callback of the period before

	_ [cacheLine]byte
}

// HTTPRequest counts an answer by its status. Any goroutine.
func (r *Registry) HTTPRequest(status int) {
	if status >= 0 && status < len(r.http) {
		r.http[status].Add(1)
	}
}

// NewLoop makes the counters of one more loop.
func (r *Registry) NewLoop() *Loop {
	l := &Loop{
		replies:     padded[atomic.Uint64](len(r.o.Stages) * numCodes),
		refusals:    padded[atomic.Uint64](len(r.o.Stages) * len(r.o.Reasons) * 2),
		connections: padded[atomic.Uint64](len(r.o.Listeners) * len(r.o.ConnResults)),
		open:        padded[atomic.Int64](len(r.o.Listeners)),
		messages:    padded[atomic.Uint64]((len(r.o.Protocols) + 1) * 2),
		events:      padded[atomic.Uint64](len(r.o.Events)),
		protocols:   r.o.Protocols,
		reasons:     len(r.o.Reasons),
		results:     len(r.o.ConnResults),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loops = append(r.loops, l)
	return l
}

// padded makes n counters that share no cache line with anything else.
func padded[T any](n int) []T {
	const around = cacheLine / 8 // all counters have 8 bytes
	return make([]T, around+n+around)[around : around+n : around+n]
}

// Connection counts a new connection by its result.
func (l *Loop) Connection(listener, result int) { l.connections[listener*l.results+result].Add(1) }

// Open adds to the connections that are open.
func (l *Loop) Open(listener, delta int) { l.open[listener].Add(int64(delta)) }

// Reply counts a reply.
func (l *Loop) Reply(stage int, code uint16) {
	i := len(replyCodes)
	if int(code) < len(codeIndex) {
		i = int(codeIndex[code])
	}
	l.replies[stage*numCodes+i].Add(1)
}

// Refusal counts a 4yz or 5yz by its reason.
func (l *Loop) Refusal(stage, reason int, code uint16) {
	class := 0
	if code >= 500 {
		class = 1
	}
	l.refusals[(stage*l.reasons+reason)*2+class].Add(1)
}

// Message counts a message that has got its answer: size in bytes, ack from the last byte of the end of data to the reply. Sizes and
// times of refused messages are not counted.
func (l *Loop) Message(protocol string, accepted bool, size int64, ack time.Duration) {
	i := 0
	for i < len(l.protocols) && l.protocols[i] != protocol {
		i++
	}
	if !accepted {
		l.messages[i*2+1].Add(1)
		return
	}
	l.messages[i*2].Add(1)
	b := 0
	for b < len(ackBounds) && ack > ackBounds[b] {
		b++
	}
	l.ack[b].Add(1)
	l.ackNanos.Add(uint64(max(ack, 0)))
	b = 0
	for b < len(sizeBounds) && size > sizeBounds[b] {
		b++
	}
	l.sizes[b].Add(1)
	l.bytes.Add(uint64(size))
}

// tlsVersions are the versions with a counter of their own.
var tlsVersions = [...]string{"TLS1.2", "TLS1.3"}

// Handshake counts a TLS handshake by the version that was agreed on, and by the time it took when it came about.
func (l *Loop) Handshake(ok bool, version string, d time.Duration) {
	if !ok {
		l.handshakes[len(tlsVersions)+1].Add(1)
		return
	}
	i := 0
	for i < len(tlsVersions) && tlsVersions[i] != version {
		i++
	}
	l.handshakes[i].Add(1)
	b := 0
	for b < len(ackBounds) && d > ackBounds[b] {
		b++
	}
	l.shake[b].Add(1)
	l.shakeNanos.Add(uint64(max(d, 0)))
}

// Event counts something rare.
func (l *Loop) Event(event int) { l.events[event].Add(1) }

// Callback is the time that the loop spent in one callback, during which none of its other clients got an answer.
func (l *Loop) Callback(d time.Duration) {
	if int64(d) > l.slowest.Load() {
		l.slowest.Store(int64(d))
	}
}
