package main

import "strings"

// jetstreamCells are the tables of bench/jetstream/run: mail from end to end with each engine, and the ways of publishing.
func (res *result) jetstreamCells() [][][]string {
	mail := [][]string{{"queue.engine", "accepted a second", "handed on a second", "ack p50, ms", "p99, ms", "edges, CPU µs", "relays, CPU µs", "nats-servers, CPU µs", "together", "duplicates"}}
	for _, line := range []struct{ name, as string }{
		{"spool", "spool"}, {"spool+jetstream", "spool+jetstream, three copies"}, {"jetstream-R1", "jetstream, one copy"}, {"jetstream-R3", "jetstream, three copies"},
	} {
		w := res.row("bench/jetstream", "EndToEnd/"+line.name)
		if w == nil {
			continue
		}
		m := w.Metrics
		plus := func(a, b float64) float64 { return a + b }
		together := pair(pair(m["edge-µs"], m["relay-µs"], plus), m["servers-µs"], plus)
		mail = append(mail, []string{line.as, m["accepted/s"].String(), m["delivered/s"].String(), median(m["ack-p50-ms"]), median(m["ack-p99-ms"]),
			m["edge-µs"].String(), m["relay-µs"].String(), m["servers-µs"].String(), together.String(), m["duplicates"].String()})
	}
	publish := [][]string{{"publishing", "copies", "messages a second", "× one by one", "× one after the other"}}
	for _, copies := range []string{"1", "3", "1-always"} {
		rate := func(mode string) *spread {
			if w := res.row("bench", "Publish/replicas="+copies+"/batch="+mode); w != nil {
				return w.Metrics["msgs/s"]
			}
			return nil
		}
		times := func(a, b *spread) string { return pair(a, b, func(a, b float64) float64 { return a / b }).String() }
		for _, line := range []struct{ mode, as string }{
			{"alone", "one after the other"}, {"off", "one by one, within a window"}, {"fast", "fast batch"}, {"atomic", "atomic batch"}, {"auto", "auto"},
		} {
			if r := rate(line.mode); r != nil {
				publish = append(publish, []string{line.as, strings.Replace(copies, "-", ", sync_interval: ", 1), r.String(), times(r, rate("off")), times(r, rate("alone"))})
			}
		}
	}
	return [][][]string{mail, publish}
}
