package metrics

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// rotateAfter is how long the slowest callback is remembered at least; twice that at most.
const rotateAfter = time.Minute

// collector sums the blocks of all loops and asks the sources, once per scrape.
type collector struct {
	r *Registry

	connections, connectionsOpen, replies, rejections, messages *prometheus.Desc
	messageSize, ack                                            *prometheus.Desc
	handoffPending, handoffPendingBytes                         *prometheus.Desc
	spoolMessages, spoolBytes, spoolOldest, spoolFree           *prometheus.Desc
	spoolSegments, spoolCommitted, spoolCommits                 *prometheus.Desc
	spoolSyncs, spoolSyncErrors, spoolDamaged                   *prometheus.Desc
	loopConnections, loopSlowest, loopEvents, httpRequests      *prometheus.Desc
	handshakes, handshakeSeconds                                *prometheus.Desc
	memoryUsed, memoryBudget, logDropped, certificateExpiry     *prometheus.Desc
	dnsLookups, dnsLimited, dnsAnswers, dnsSent, dnsRetries     *prometheus.Desc
	dnsHedges, dnsTCP, dnsInflight, dnsWaiting, dnsCache        *prometheus.Desc
	dnsWithheld, dnsAuthentic, spfResults                       *prometheus.Desc
	validatorQuestions, validatorFailures, limitedPrefixes      *prometheus.Desc
	relayAttempts, relayDead, relayRecipients                   *prometheus.Desc
	relayConnects, relayInFlight, relayConnections, relayDown   *prometheus.Desc
	forwardMessages, forwardInHand, forwardUp                   *prometheus.Desc

	all []*prometheus.Desc
}

func newCollector(r *Registry) *collector {
	c := &collector{r: r}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		d := prometheus.NewDesc("fastedge_"+name, help, labels, nil)
		c.all = append(c.all, d)
		return d
	}
	c.connections = desc("connections_total", "New connections by what became of them.", "listener", "result")
	c.connectionsOpen = desc("connections_open", "Connections open now.", "listener")
	c.replies = desc("smtp_replies_total", "Replies by the stage of the session.", "stage", "code")
	c.rejections = desc("rejections_total", "Refused commands and messages; class is the first digit of the reply.", "stage", "reason", "class")
	c.messages = desc("messages_total", "Messages that were answered.", "proto", "result")
	c.messageSize = desc("message_size_bytes", "Sizes of accepted messages.")
	c.ack = desc("ack_seconds", "From the end of the data to the 250, which is after the commit.")
	c.handoffPending = desc("handoff_pending", "Messages waiting for their commit.")
	c.handoffPendingBytes = desc("handoff_pending_bytes", "Bytes of messages waiting for their commit.")
	c.spoolMessages = desc("spool_messages", "Messages in the queue.", "state")
	c.spoolBytes = desc("spool_bytes", "Bytes of messages in the queue.")
	c.spoolOldest = desc("spool_oldest_seconds", "Age of the oldest message in the queue.")
	c.spoolFree = desc("spool_free_bytes", "Free space of the queue's storage.")
	c.spoolSegments = desc("spool_segments", "Segment files.")
	c.spoolCommitted = desc("spool_committed_total", "Messages made durable.")
	c.spoolCommits = desc("spool_commits_total", "Batches made durable.")
	c.spoolSyncs = desc("spool_syncs_total", "Calls of fdatasync.")
	c.spoolSyncErrors = desc("spool_sync_errors_total", "Failed calls of fdatasync.")
	c.spoolDamaged = desc("spool_damaged_total", "Records found damaged.")
	c.loopConnections = desc("loop_connections", "Connections open on one event loop.", "loop")
	c.loopSlowest = desc("loop_callback_max_seconds", "Longest callback of the last one to two minutes.", "loop")
	c.httpRequests = desc("http_requests_total", "Answers to HTTP requests.", "status")
	c.loopEvents = desc("loop_events_total", "Rare events of the event loops.", "event")
	c.handshakes = desc("tls_handshakes_total", "TLS handshakes by the version that was agreed on; failed ones have none.", "result", "version")
	c.handshakeSeconds = desc("tls_handshake_seconds", "Duration of TLS handshakes that came about, the client's share included.")
	c.memoryUsed = desc("memory_used_bytes", "Message bytes in memory that are not yet durable.")
	c.memoryBudget = desc("memory_budget_bytes", "The bound of memory_used_bytes: limits.memory.")
	c.certificateExpiry = desc("certificate_expiry_timestamp_seconds", "When the first of the server's TLS certificates ends.")
	c.logDropped = desc("log_dropped_total", "Log lines dropped because the log could not be written fast enough.")
	c.dnsLookups = desc("dns_lookups_total", "DNS lookups by where their answer came from.", "result")
	c.dnsLimited = desc("dns_limited_total", "DNS lookups that failed without a question, or whose question was pushed out, by the limit.", "limit")
	c.dnsAnswers = desc("dns_answers_total", "What came back from DNS servers.", "result")
	c.dnsSent = desc("dns_queries_total", "DNS queries sent.")
	c.dnsRetries = desc("dns_retransmits_total", "DNS queries sent again.")
	c.dnsWithheld = desc("dns_withheld_total", "DNS queries not sent again yet because their domain, or all together, had too many without an answer.")
	c.dnsAuthentic = desc("dns_authentic_total", "DNS answers that were taken and that the server says it has validated (AD).")
	c.dnsHedges = desc("dns_hedges_total", "DNS queries sent to a second server because the first took long.")
	c.dnsTCP = desc("dns_tcp_total", "DNS queries sent by TCP.")
	c.dnsInflight = desc("dns_inflight", "DNS questions open now.")
	c.dnsWaiting = desc("dns_waiting", "Lookups that wait for them.")
	c.dnsCache = desc("dns_cache_bytes", "Memory of the DNS cache, estimated.")
	c.spfResults = desc("spf_results_total", "Transactions by the result of their SPF check and what became of it; observed would have been refused.", "result", "action")
	c.validatorQuestions = desc("validator_questions", "Questions to hooks and milters now: queued, asked, or past their time and not given up by the one asked.", "validator", "state")
	c.validatorFailures = desc("validator_failures_total", "Questions to hooks and milters that on_error answered.", "validator", "why")
	c.limitedPrefixes = desc("limited_prefixes", "Networks that the limits per address and prefix remember.")
	c.relayAttempts = desc("relay_attempts_total", "Attempts to hand a message on.")
	c.relayDead = desc("relay_dead_total", "Messages given up: too old, or damaged.")
	c.relayRecipients = desc("relay_recipients_total", "Recipients by what an attempt brought them.", "result")
	c.relayConnects = desc("relay_connects_total", "Connections to next hops, by whether they got as far as EHLO.", "result")
	c.relayInFlight = desc("relay_in_flight", "Messages being handed on now.")
	c.relayConnections = desc("relay_connections", "Connections to next hops open now.")
	c.relayDown = desc("relay_next_hops_down", "Next hops that are passed over now.")
	c.forwardMessages = desc("forward_messages_total", "Tries to bring a message from the spool to JetStream, by their result; deferred is a message that waits though others are taken.", "result")
	c.forwardInHand = desc("forward_in_hand", "Messages on their way from the spool to JetStream now.")
	c.forwardUp = desc("forward_up", "1 while JetStream takes messages from the spool, 0 while they wait.")
	return c
}

// Describe is prometheus.Collector's.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.all {
		out <- d
	}
}

// Collect is prometheus.Collector's.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	c.r.mu.Lock()
	loops, sources := c.r.loops, c.r.sources // loops only grows
	now := time.Now()
	rotate := now.Sub(c.r.rotated) >= rotateAfter
	if rotate {
		c.r.rotated = now
	}
	c.r.mu.Unlock()

	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	o := &c.r.o
	connections := sum(loops, len(o.Listeners)*len(o.ConnResults), func(l *Loop) []atomic.Uint64 { return l.connections })
	for i, listener := range o.Listeners {
		for j, result := range o.ConnResults {
			counter(c.connections, connections[i*len(o.ConnResults)+j], listener, result)
		}
		open := int64(0)
		for _, l := range loops {
			open += l.open[i].Load()
		}
		gauge(c.connectionsOpen, float64(open), listener)
	}
	replies := sum(loops, len(o.Stages)*numCodes, func(l *Loop) []atomic.Uint64 { return l.replies })
	refusals := sum(loops, len(o.Stages)*len(o.Reasons)*2, func(l *Loop) []atomic.Uint64 { return l.refusals })
	for i, stage := range o.Stages {
		for j := range numCodes {
			counter(c.replies, replies[i*numCodes+j], stage, codeLabel(j))
		}
		for j, reason := range o.Reasons {
			counter(c.rejections, refusals[(i*len(o.Reasons)+j)*2], stage, reason, "4")
			counter(c.rejections, refusals[(i*len(o.Reasons)+j)*2+1], stage, reason, "5")
		}
	}
	for i, result := range spfResults {
		for j, action := range spfActions {
			counter(c.spfResults, c.r.spf[i*len(spfActions)+j].Load(), result, action)
		}
	}
	messages := sum(loops, (len(o.Protocols)+1)*2, func(l *Loop) []atomic.Uint64 { return l.messages })
	for i := range len(o.Protocols) + 1 {
		proto := "other"
		if i < len(o.Protocols) {
			proto = o.Protocols[i]
		}
		counter(c.messages, messages[i*2], proto, "accepted")
		counter(c.messages, messages[i*2+1], proto, "refused")
	}
	for status := range c.r.http {
		if n := c.r.http[status].Load(); n > 0 {
			counter(c.httpRequests, n, strconv.Itoa(status))
		}
	}
	events := sum(loops, len(o.Events), func(l *Loop) []atomic.Uint64 { return l.events })
	for i, event := range o.Events {
		counter(c.loopEvents, events[i], event)
	}
	for v := range len(tlsVersions) + 2 {
		n := uint64(0)
		for _, l := range loops {
			n += l.handshakes[v].Load()
		}
		switch {
		case v < len(tlsVersions):
			counter(c.handshakes, n, "ok", tlsVersions[v])
		case v == len(tlsVersions):
			counter(c.handshakes, n, "ok", "other")
		default:
			counter(c.handshakes, n, "failed", "none")
		}
	}
	c.histograms(out, loops)
	for i, l := range loops {
		name := strconv.Itoa(i)
		open := int64(0)
		for j := range l.open {
			open += l.open[j].Load()
		}
		gauge(c.loopConnections, float64(open), name)
		if rotate {
			l.slowestBefore.Store(l.slowest.Swap(0))
		}
		slowest := time.Duration(max(l.slowest.Load(), l.slowestBefore.Load()))
		gauge(c.loopSlowest, slowest.Seconds(), name)
	}

	if sources.HandoffPending != nil {
		n, bytes := sources.HandoffPending()
		gauge(c.handoffPending, float64(n))
		gauge(c.handoffPendingBytes, float64(bytes))
	}
	if sources.Queue != nil {
		q := sources.Queue()
		for state, n := range q.Messages {
			gauge(c.spoolMessages, float64(n), state)
		}
		age := 0.0
		if !q.Oldest.IsZero() {
			age = max(now.Sub(q.Oldest).Seconds(), 0)
		}
		gauge(c.spoolOldest, age)
		gauge(c.spoolBytes, float64(q.Bytes))
		gauge(c.spoolFree, float64(q.FreeBytes))
		gauge(c.spoolSegments, float64(q.Segments))
		counter(c.spoolCommitted, q.Committed)
		counter(c.spoolCommits, q.Commits)
		counter(c.spoolSyncs, q.Syncs)
		counter(c.spoolSyncErrors, q.SyncErrors)
		counter(c.spoolDamaged, q.Damaged)
	}
	if sources.MemoryUsed != nil {
		gauge(c.memoryUsed, float64(sources.MemoryUsed()))
	}
	if sources.MemoryBudget > 0 {
		gauge(c.memoryBudget, float64(sources.MemoryBudget))
	}
	if sources.LogDropped != nil {
		counter(c.logDropped, sources.LogDropped())
	}
	if sources.CertificateExpiry != nil {
		gauge(c.certificateExpiry, float64(sources.CertificateExpiry().Unix()))
	}
	if sources.DNS != nil {
		st := sources.DNS()
		for _, f := range []struct {
			desc   *prometheus.Desc
			counts map[string]uint64
		}{{c.dnsLookups, st.Lookups}, {c.dnsLimited, st.Limited}, {c.dnsAnswers, st.Answers}} {
			for word, n := range f.counts {
				counter(f.desc, n, word)
			}
		}
		counter(c.dnsSent, st.Sent)
		counter(c.dnsRetries, st.Retransmits)
		counter(c.dnsWithheld, st.Withheld)
		counter(c.dnsAuthentic, st.Authentic)
		counter(c.dnsHedges, st.Hedges)
		counter(c.dnsTCP, st.ByTCP)
		gauge(c.dnsInflight, float64(st.Inflight))
		gauge(c.dnsWaiting, float64(st.Waiting))
		gauge(c.dnsCache, float64(st.CacheBytes))
	}
	if sources.Validators != nil {
		for _, v := range sources.Validators() {
			gauge(c.validatorQuestions, float64(v.Queued), v.Name, "queued")
			gauge(c.validatorQuestions, float64(max(v.Busy-v.Stuck, 0)), v.Name, "asked")
			gauge(c.validatorQuestions, float64(v.Stuck), v.Name, "stuck")
			counter(c.validatorFailures, v.Full, v.Name, "full")
			counter(c.validatorFailures, v.Late, v.Name, "late")
			counter(c.validatorFailures, v.Failed, v.Name, "error")
		}
	}
	if sources.LimitedPrefixes != nil {
		gauge(c.limitedPrefixes, float64(sources.LimitedPrefixes()))
	}
	if sources.Relay != nil {
		st := sources.Relay()
		counter(c.relayAttempts, st.Attempts)
		counter(c.relayDead, st.Dead)
		counter(c.relayRecipients, st.Delivered, "delivered")
		counter(c.relayRecipients, st.Deferred, "deferred")
		counter(c.relayRecipients, st.Failed, "failed")
		counter(c.relayConnects, st.Connects, "ok")
		counter(c.relayConnects, st.ConnectErrors, "error")
		gauge(c.relayInFlight, float64(st.InFlight))
		gauge(c.relayConnections, float64(st.Connections))
		gauge(c.relayDown, float64(st.NextHopsDown))
	}
	if sources.Forward != nil {
		st := sources.Forward()
		counter(c.forwardMessages, st.Forwarded, "forwarded")
		counter(c.forwardMessages, st.Deferred, "deferred")
		counter(c.forwardMessages, st.Failed, "failed")
		gauge(c.forwardInHand, float64(st.InHand))
		up := 0.0
		if st.Up {
			up = 1
		}
		gauge(c.forwardUp, up)
	}
}

// histograms sums the loops' buckets; Prometheus wants them cumulative.
func (c *collector) histograms(out chan<- prometheus.Metric, loops []*Loop) {
	acks, nanos, count := map[float64]uint64{}, uint64(0), uint64(0)
	for b := range len(ackBounds) + 1 {
		for _, l := range loops {
			count += l.ack[b].Load()
		}
		if b < len(ackBounds) {
			acks[ackBounds[b].Seconds()] = count
		}
	}
	shakes, shakeNanos, shaken := map[float64]uint64{}, uint64(0), uint64(0)
	for b := range len(ackBounds) + 1 {
		for _, l := range loops {
			shaken += l.shake[b].Load()
		}
		if b < len(ackBounds) {
			shakes[ackBounds[b].Seconds()] = shaken
		}
	}
	sizes, bytes, sized := map[float64]uint64{}, uint64(0), uint64(0)
	for b := range len(sizeBounds) + 1 {
		for _, l := range loops {
			sized += l.sizes[b].Load()
		}
		if b < len(sizeBounds) {
			sizes[float64(sizeBounds[b])] = sized
		}
	}
	for _, l := range loops {
		nanos += l.ackNanos.Load()
		shakeNanos += l.shakeNanos.Load()
		bytes += l.bytes.Load()
	}
	out <- prometheus.MustNewConstHistogram(c.ack, count, time.Duration(nanos).Seconds(), acks)
	out <- prometheus.MustNewConstHistogram(c.handshakeSeconds, shaken, time.Duration(shakeNanos).Seconds(), shakes)
	out <- prometheus.MustNewConstHistogram(c.messageSize, sized, float64(bytes), sizes)
}

// sum adds up one array of counters over all loops.
func sum(loops []*Loop, n int, counters func(*Loop) []atomic.Uint64) []uint64 {
	totals := make([]uint64, n)
	for _, l := range loops {
		for i := range counters(l) {
			totals[i] += counters(l)[i].Load()
		}
	}
	return totals
}
