package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Style is how the block of text at the end of a run looks.
type Style struct {
	Color  bool // the caller decides: a terminal, and NO_COLOR is not set
	Phases bool // the table of phases, too
}

const (
	green  = "\x1b[32m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	bold   = "\x1b[1m"
	plain  = "\x1b[0m"
)

func (s Style) paint(color, text string) string {
	if !s.Color {
		return text
	}
	return color + text + plain
}

// shownReplies is how many refusals the text block lists.
const shownReplies = 5

// WriteText writes the block of text that ends a run:
//
//	closed loop for 30 s: a slow target lowers the rate that it is offered
//	load         100 connections, 4KiB messages
//	messages     offered 300,000   acked 299,812   4xx 188   5xx 0   errors 0
//	rate         4,997/s   18.0 M/h   19.5 MiB/s
//	ack          p50 1.40 ms   p90 2.90   p99 8.80   …
//
// Text of the target's is written without its control characters, so that a banner cannot drive the terminal.
func WriteText(w io.Writer, r *Run, style Style) error {
	b := &block{style: style}
	b.head(r)
	b.outcomes(r)
	b.latencies(r)
	if style.Phases {
		b.phases(r)
	}
	b.usage(r)
	b.search(r)
	b.replies(r)
	b.thresholds(r)
	b.verdict(r)
	b.warnings(r)
	_, err := io.WriteString(w, b.text.String())
	return err
}

// block collects lines that start with a label of the same width.
type block struct {
	style Style
	text  strings.Builder
}

const labelWidth = 14

func (b *block) line(label, format string, args ...any) {
	line := padRight(label, labelWidth) + fmt.Sprintf(format, args...)
	b.text.WriteString(strings.TrimRight(line, " "))
	b.text.WriteByte('\n')
}

// table writes lines whose cells, after the label, are padded to columns. A cell that starts with ">" stands at the right of its column.
func (b *block) table(labels []string, rows [][]string) {
	for i, line := range columns(rows) {
		b.line(labels[i], "%s", line)
	}
}

func columns(rows [][]string) []string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(strings.TrimPrefix(cell, ">")))
		}
	}
	lines := make([]string, len(rows))
	for i, row := range rows {
		var line strings.Builder
		for j, cell := range row {
			if j > 0 {
				line.WriteString("   ")
			}
			if right, ok := strings.CutPrefix(cell, ">"); ok {
				line.WriteString(padLeft(right, widths[j]))
			} else {
				line.WriteString(padRight(cell, widths[j]))
			}
		}
		lines[i] = strings.TrimRight(line.String(), " ")
	}
	return lines
}

func padRight(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

func padLeft(s string, width int) string {
	return strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s))) + s
}

// printable replaces what a terminal would obey, and cuts to a length that fits a line.
func printable(s string, limit int) string {
	s = strings.Map(func(c rune) rune {
		// C0, DEL and C1; the line and paragraph separators; what turns the direction of text.
		if c < ' ' || c >= 0x7f && c < 0xa0 || c == 0x2028 || c == 0x2029 || c >= 0x202a && c <= 0x202e || c >= 0x2066 && c <= 0x2069 {
			return '·'
		}
		return c
	}, s)
	if utf8.RuneCountInString(s) > limit {
		s = string([]rune(s)[:limit-1]) + "…"
	}
	return s
}

// loopSentence says which loop and what to make of its figures; load says what was applied besides.
func loopSentence(r *Run) (loop, meaning string) {
	p := &r.Parameters
	switch {
	case p.Idle:
		loop, meaning = plural(int64(p.Connections), "idle connection"), "they are only held"
	case p.Loop == "open":
		loop, meaning = "open loop", "latency from the intended start, so a slow target cannot hide what waited"
		if p.Arrivals == "poisson" {
			loop += ", Poisson arrivals"
		}
		if p.Ramp != "" {
			loop += ", " + p.Ramp
		} else {
			loop += ", " + figure(p.Rate) + "/s"
		}
	default:
		loop, meaning = "closed loop", "a slow target lowers the rate that it is offered"
	}
	return printable(loop, 100) + " for " + span(r.Seconds), meaning
}

func (p *Parameters) load() string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if p.Protocol != "" && p.Protocol != "smtp" {
		add("%s", strings.ToUpper(p.Protocol))
	}
	if p.Connections > 0 && !p.Idle {
		add("%s", plural(int64(p.Connections), "connection"))
	}
	switch {
	case p.Idle:
	case p.SessionsOnly:
		add("sessions without mail")
	default:
		if p.Profile != "" {
			add("profile %s", p.Profile)
		}
		if p.Size != "" {
			add("%s messages", p.Size)
		}
		if p.Recipients != "" && p.Recipients != "1" {
			add("%s recipients", p.Recipients)
		}
		if p.Pipelining != "" && p.Pipelining != "off" {
			add("pipelining %s", p.Pipelining)
		}
		if p.BDAT > 0 {
			add("%s BDAT", percent(p.BDAT))
		}
	}
	if p.ImplicitTLS {
		add("implicit TLS")
	} else if p.STARTTLS > 0 {
		add("%s STARTTLS", percent(p.STARTTLS))
	}
	if p.Auth != "" {
		add("AUTH %s", p.Auth)
	}
	if p.Proxy != "" {
		add("PROXY %s", p.Proxy)
	}
	if p.SlowClients > 0 {
		add("%s slow clients", percent(p.SlowClients))
	}
	if p.BadClients > 0 {
		add("%s bad clients", percent(p.BadClients))
	}
	return printable(strings.Join(parts, ", "), 200)
}

func (b *block) head(r *Run) {
	loop, meaning := loopSentence(r)
	fmt.Fprintf(&b.text, "%s: %s\n", b.style.paint(bold, loop), meaning)
	if load := r.Parameters.load(); load != "" {
		b.line("load", "%s", load)
	}
	if r.Target.Address != "" {
		label := ""
		if r.Label != "" && r.Label != r.Target.Address {
			label = printable(r.Label, 60) + ", "
		}
		banner := ""
		if r.Target.Banner != "" {
			banner = "   " + printable(r.Target.Banner, 100)
		}
		b.line("target", "%s%s%s", label, printable(r.Target.Address, 60), banner)
	}
	if r.early() {
		b.line("ended", "%s", b.style.paint(yellow, "early: "+printable(r.Ended, 100)))
	}
}

// early says whether something else than the plan ended the run.
func (r *Run) early() bool { return r.Ended != "" && r.Ended != "duration" && r.Ended != "messages" }

func (b *block) outcomes(r *Run) {
	t := &r.Totals
	if !r.Parameters.SessionsOnly && !r.Parameters.Idle {
		cells := []string{"offered " + grouped(t.Offered), "acked " + grouped(t.Acknowledged), "4xx " + grouped(t.Deferred),
			"5xx " + grouped(t.Refused), "errors " + grouped(t.Errors)}
		if r.Parameters.Loop == "open" {
			cells = append(cells, "waited "+grouped(t.Waited), "dropped "+grouped(t.Dropped))
		}
		b.line("messages", "%s", strings.Join(cells, "   "))
		line := figure(r.Rate()) + "/s   " + perHour(r.Rate())
		if r.Seconds > 0 && t.Bytes > 0 {
			line += "   " + octets(float64(t.Bytes)/r.Seconds) + "/s"
		}
		b.line("rate", "%s", line)
	}
	if t.Sessions > 0 && r.Seconds > 0 {
		b.line("sessions", "%s   %s/s", grouped(t.Sessions), figure(float64(t.Sessions)/r.Seconds))
	}
	if t.BadClients > 0 {
		b.line("bad clients", "%s", grouped(t.BadClients))
	}
}

// percentiles that a line of latency shows. One that has fewer than ten samples beyond it is left out: it would be the maximum under
// another name.
var percentiles = []struct {
	name string
	p    float64
}{{"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99.9", 99.9}, {"p99.99", 99.99}}

func sampled(h *Histogram, p float64) bool { return float64(h.Count())*(100-p)/100 >= 10 || p == 50 }

func (b *block) latencies(r *Run) {
	var labels []string
	var rows [][]string
	names := []string{"ack", "transaction", "session"}
	if r.Parameters.SessionsOnly || r.Parameters.Idle {
		names = []string{"connect", "banner", "ehlo", "session"}
	}
	for _, name := range names {
		h := r.Phase(name, "2xx")
		if h == nil {
			continue
		}
		s := latencyScale(h.Ms(50), h.MaxMs())
		var row []string
		for _, p := range percentiles {
			cell := ""
			if sampled(h, p.p) {
				cell = p.name + " " + figure(h.Ms(p.p)/s.size)
				if p.p == 50 {
					cell += " " + s.name
				}
			}
			row = append(row, cell)
		}
		labels = append(labels, name)
		rows = append(rows, append(row, "max "+figure(h.MaxMs()/s.size)))
	}
	b.table(labels, rows)
}

// eachPhase calls f in the order of PhaseNames and OutcomeNames.
func (r *Run) eachPhase(f func(name, outcome string, h *Histogram)) {
	for _, name := range PhaseNames {
		for _, outcome := range OutcomeNames {
			if h := r.Phase(name, outcome); h != nil {
				f(name, outcome, h)
			}
		}
	}
}

func (b *block) phases(r *Run) {
	labels, rows := []string{"phase"}, [][]string{{"outcome", ">count", "", ">p50", ">p90", ">p99", ">p99.9", ">max"}}
	r.eachPhase(func(name, outcome string, h *Histogram) {
		s := latencyScale(h.Ms(50), h.MaxMs())
		row := []string{outcome, ">" + grouped(h.Count()), s.name}
		for _, p := range percentiles[:4] {
			if sampled(h, p.p) {
				row = append(row, ">"+figure(h.Ms(p.p)/s.size))
			} else {
				row = append(row, ">–")
			}
		}
		labels = append(labels, "  "+name)
		rows = append(rows, append(row, ">"+figure(h.MaxMs()/s.size)))
	})
	if len(rows) > 1 {
		b.table(labels, rows)
	}
}

func (b *block) usage(r *Run) {
	if u := r.Server; u != nil {
		cpu := fmt.Sprintf("%s CPU-s", figure(u.CPUSeconds))
		if u.CPUPerThousand > 0 {
			cpu = fmt.Sprintf("%s CPU-s per 1,000 messages", figure(u.CPUPerThousand))
		}
		line := fmt.Sprintf("%s   RSS %s   %s", cpu, octets(float64(u.PeakRSS)), plural(u.ContextSwitches, "context switche"))
		line = strings.Replace(line, "1 context switche", "1 context switch", 1)
		if u.Processes > 1 {
			line += "   " + plural(int64(u.Processes), "processe")
		}
		b.line("server", "%s", line)
	}
	if r.Idle != nil {
		b.line("memory", "%s", r.Idle.sentence())
	}
	if r.Generator == (Usage{}) {
		return
	}
	line := fmt.Sprintf("%s of a core", percent(share(r.Generator.CPUSeconds, r.Seconds)))
	if r.Machine.Cores > 1 {
		line = fmt.Sprintf("%s of a core (of %d)", percent(share(r.Generator.CPUSeconds, r.Seconds)), r.Machine.Cores)
	}
	b.line("generator", "%s   lag p99 %s", line, latency(r.Generator.LagP99Ms))
}

// sentence says what a connection costs that is only held.
func (i *Idle) sentence() string {
	s := fmt.Sprintf("RSS %s with no connection, %s with %s", octets(float64(i.RSSBefore)), octets(float64(i.RSSAfter)), grouped(int64(i.Connections)))
	if n := float64(i.Connections); n > 0 {
		s += fmt.Sprintf(": %s each", octets(float64(i.RSSAfter-i.RSSBefore)/n))
		if i.PSSAfter > 0 {
			s += fmt.Sprintf(", %s of PSS", octets(float64(i.PSSAfter-i.PSSBefore)/n))
		}
	}
	return s
}

func share(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return part / whole
}

func (b *block) search(r *Run) {
	if len(r.Search) == 0 {
		return
	}
	condition := r.FindMax
	if condition == "" {
		condition = "condition"
	}
	var labels []string
	var rows [][]string
	best := 0.0
	for i, t := range r.Search {
		label := ""
		if i == 0 {
			label = "search"
		}
		held := trialWord(t, "no")
		if t.Pass {
			best = max(best, t.Rate)
		}
		labels = append(labels, label)
		rows = append(rows, []string{">" + figure(t.Rate) + "/s", ">" + searchValue(r, t), held})
	}
	b.table(labels, rows)
	if best > 0 {
		b.line("", "%s held up to %s", printable(condition, maxConditionBytes), b.style.paint(bold, figure(best)+"/s"))
	} else {
		b.line("", "%s held at no rate that was tried", printable(condition, maxConditionBytes))
	}
}

// trialWord says how a trial ended, and why when its value alone does not tell.
func trialWord(t Trial, broken string) string {
	switch {
	case t.Pass:
		return "held"
	case t.Kept > 0:
		return fmt.Sprintf("%s: %.3g%% of what was due was acknowledged", broken, 100*t.Kept)
	}
	return broken
}

func searchValue(r *Run, t Trial) string {
	c, err := ParseThreshold(r.FindMax)
	if err != nil {
		return figure(t.Actual)
	}
	return c.Metric + " " + inUnit(t.Actual, c.Unit)
}

func (b *block) replies(r *Run) {
	if len(r.Replies) == 0 {
		return
	}
	var labels []string
	var rows [][]string
	for i, reply := range r.Replies[:min(len(r.Replies), shownReplies)] {
		label := ""
		if i == 0 {
			label = "refusals"
		}
		labels = append(labels, label)
		rows = append(rows, []string{">" + grouped(reply.Count) + "×", printable(reply.Phase, 12), printable(reply.Text, 100)})
	}
	b.table(labels, rows)
	if more := len(r.Replies) - shownReplies; more > 0 {
		b.line("", "and %d more", more)
	}
}

// actual is the value of a threshold in words, in the unit of its condition.
func (t *Threshold) actual() string {
	if t.Missing != "" {
		return t.Missing
	}
	c, err := ParseThreshold(t.Text)
	if err != nil {
		return figure(t.Actual)
	}
	return inUnit(t.Actual, c.Unit)
}

func (b *block) thresholds(r *Run) {
	for i := range r.Thresholds {
		t := &r.Thresholds[i]
		label := ""
		if i == 0 {
			label = "thresholds"
		}
		result := b.style.paint(green, "held  ")
		if !t.Pass {
			result = b.style.paint(red, "broken")
		}
		b.line(label, "%s   %s   %s", result, padRight(printable(t.Text, maxConditionBytes), 18), printable(t.actual(), 120))
	}
}

// verdictLine says in one line what the ledger says.
func verdictLine(v *Verdict) string {
	equals := "="
	if v.Acknowledged != v.Received {
		equals = "≠"
	}
	line := fmt.Sprintf("%s acked %s %s received   lost %s   duplicate %s   corrupt %s   phantom %s",
		grouped(v.Acknowledged), equals, grouped(v.Received), grouped(v.Lost), grouped(v.Duplicates), grouped(v.Corrupt), grouped(v.Phantom))
	if v.Unknown > 0 {
		line += fmt.Sprintf("   unknown %s", grouped(v.Unknown))
	}
	if v.Repeats > 0 {
		line += fmt.Sprintf("   repeated %s", grouped(v.Repeats))
	}
	if v.Altered > 0 {
		line += fmt.Sprintf("   header altered %s", grouped(v.Altered))
	}
	return line
}

func (b *block) verdict(r *Run) {
	result := r.outcome()
	switch result {
	case "PASS":
		result = b.style.paint(green+bold, result)
	case "FAIL":
		result = b.style.paint(red+bold, result)
	}
	if r.Verdict == nil {
		b.line("verified", "nothing: without --verify nobody knows whether what was acknowledged arrived")
		if result != "" {
			b.line("result", "%s   by the thresholds alone", result)
		}
		return
	}
	b.line("verified", "%s   %s", verdictLine(r.Verdict), result)
	if more := r.Verdict.Acknowledged - r.Totals.Acknowledged; more > 0 && r.Parameters.Recipients == "1" {
		b.line("", "%s of them in the warm-up or after the end", grouped(more))
	}
	for _, e := range r.Verdict.Examples[:min(len(r.Verdict.Examples), shownReplies)] {
		b.line("", "%s", printable(e, 160))
	}
}

// advice says what to do about a warning, by its code.
var advice = map[string]string{
	"generator-cpu":    "give the generator more cores, or lower the rate; what is shown may be its limit rather than the target's",
	"generator-lag":    "run fewer connections or pin the generator to cores of its own; latency includes this lag",
	"too-short":        "run for 10 s or more",
	"few-samples":      "run for longer, or quote a lower percentile",
	"faster-than-disk": "find out whether the target syncs before it answers; this 250 may not be durable",
	"shared-cores":     "pin target and generator to different cores, or compare CPU-seconds per message rather than rates",
	"target-closed":    "see the target's log; raise --per-connection only if its limit allows",
	"tls-resumption":   "switch session tickets off to measure full handshakes",
	"dropped":          "allow more connections, or lower the rate: the target did not keep up with what arrived",
}

func (b *block) warnings(r *Run) {
	for _, warning := range r.Warnings {
		b.line(b.style.paint(yellow, padRight("warning", labelWidth)), "%s", printable(warning.Text, 240))
		if do := advice[warning.Code]; do != "" {
			b.line("", "→ %s", do)
		}
	}
}
