package main

// httpLoads are the lines of the table of bench/http, in order.
var httpLoads = []struct{ scenario, server, name string }{
	{"4k", "fastedge", "SMTP"},
	{"4k-group", "fastedge", "SMTP, pipelined"},
	{"http-plain", "fastedge", "POST /, message/rfc822"},
	{"http-rfc822", "fastedge", "POST /v1/messages, message/rfc822"},
	{"http-json", "fastedge", "POST /v1/messages, JSON"},
	{"http-batch", "fastedge", "POST /v1/messages:batch, 100 a request"},
	{"http-json-one", "fastedge", "POST /v1/messages, JSON, one client"},
	{"http-batch-one", "fastedge", "POST /v1/messages:batch, 100 a request, one client"},
	{"http-plain", "net-http", "net/http, a sync for each request"},
	{"http-plain", "net-http-group", "net/http, requests share syncs"},
	{"http-json", "net-http-group", "the same, JSON as KumoMTA takes it"},
}

// httpCells are the tables of bench/http: what a message costs, and what slow clients hold.
func (res *result) httpCells() [][][]string {
	loads := [][]string{{"4 KiB, on disk before the answer", "server", "CPU-seconds for 1,000", "messages a CPU-second", "× SMTP", "× POST /", "per second", "ack p50 / p99, ms"}}
	smtp, post := res.cpu("4k", "fastedge"), res.cpu("http-plain", "fastedge")
	fewer := func(a, b float64) float64 { return a / b } // as many times the messages for the same CPU
	for _, l := range httpLoads {
		w := res.row(l.scenario, l.server)
		if w == nil || w.CPUMicros == nil {
			continue
		}
		thousand := pair(w.CPUMicros, w.CPUMicros, func(us, _ float64) float64 { return us / 1000 })
		loads = append(loads, []string{l.name, w.name(), thousand.String(), perSecond(w.CPUMicros), pair(smtp, w.CPUMicros, fewer).String(), pair(post, w.CPUMicros, fewer).String(),
			w.PerSecond.String(), median(w.AckP50Ms) + " / " + median(w.AckP99Ms)})
	}
	slow := [][]string{{"slow clients, limits.memory", "clients", "RSS before, MiB", "connected", "peak", "peak over the limit", "sent, MiB", "refused with 452"}}
	for _, mib := range []string{"512", "64"} {
		w := res.row("bench/http", "SlowPosts/memory="+mib+"MiB")
		if w == nil {
			continue
		}
		m := w.Metrics
		slow = append(slow, []string{mib + " MiB", median(m["clients"]), median(m["MiB-before"]), median(m["MiB-connected"]), m["MiB-peak"].String(),
			m["MiB-over-limit"].String(), median(m["MiB-sent"]), median(m["refused"])})
	}
	tables := [][][]string{loads}
	if len(slow) > 1 {
		tables = append(tables, slow)
	}
	return tables
}
