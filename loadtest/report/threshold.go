package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Condition is a threshold that was parsed: a metric, an operator and a value in the metric's own unit.
//
//	ack.p99<20ms          latency of a phase in PhaseNames: p50, p99.9, …, min, mean, max; of 2xx unless said: ack.5xx.p99
//	rate>=5000/s          messages acknowledged; /s, /m or /h, with k or M before it: 18M/h
//	sessions>=200/s       sessions completed
//	lost==0               also duplicates, corrupt, phantom: deliveries, as the verifier saw them
//	errors==0             also 4xx, 5xx, dropped: messages; with % of those offered: 4xx<2%
//	cpu<0.5s              CPU-seconds of the server's processes for 1,000 messages
//	rss<512MiB            the most memory that the server's processes had
type Condition struct {
	Text   string // as given, without white space
	Metric string
	Op     string // < <= > >= == !=
	Value  float64
	Unit   string // of Value: ms, /s, s, B, %, or "" for a count
}

// Lookup returns a metric as it is named in a Condition, and its unit: ms, /s, s (CPU-seconds), B (bytes), or "" for a count. It is an
// error when the run did not measure it.
func (r *Run) Lookup(metric string) (value float64, unit string, err error) {
	kind, ok := kindOf(metric)
	if !ok {
		return 0, "", fmt.Errorf("unknown metric %q", metric)
	}
	unit = kind.unit()
	t := &r.Totals
	switch metric {
	case "rate", "sessions":
		if r.Seconds <= 0 {
			return 0, unit, fmt.Errorf("%s: the run has no length", metric)
		}
		if metric == "sessions" {
			return float64(t.Sessions) / r.Seconds, unit, nil
		}
		return r.Rate(), unit, nil
	case "errors":
		return float64(t.Errors), unit, nil
	case "4xx":
		return float64(t.Deferred), unit, nil
	case "5xx":
		return float64(t.Refused), unit, nil
	case "dropped":
		return float64(t.Dropped), unit, nil
	case "lost", "duplicates", "corrupt", "phantom":
		v := r.Verdict
		if v == nil {
			return 0, unit, fmt.Errorf("%s: not measured; it takes --verify", metric)
		}
		return float64(map[string]int64{"lost": v.Lost, "duplicates": v.Duplicates, "corrupt": v.Corrupt, "phantom": v.Phantom}[metric]), unit, nil
	case "cpu", "rss":
		if r.Server == nil {
			return 0, unit, fmt.Errorf("%s: not measured; it takes --pid", metric)
		}
		if metric == "rss" {
			return float64(r.Server.PeakRSS), unit, nil
		}
		if t.Acknowledged == 0 {
			return 0, unit, fmt.Errorf("cpu: no message was acknowledged")
		}
		return r.Server.CPUPerThousand, unit, nil
	}
	phase, outcome, stat, _ := splitLatency(metric)
	h := r.Phase(phase, outcome)
	if h == nil {
		return 0, unit, fmt.Errorf("%s: no %s of outcome %s in this run", metric, phase, outcome)
	}
	switch stat {
	case "min":
		return h.MinMs(), unit, nil
	case "mean":
		return h.MeanMs(), unit, nil
	case "max":
		return h.MaxMs(), unit, nil
	}
	p, _ := percentile(stat)
	return h.Ms(p), unit, nil
}

// Check compares one run with the condition. What was not measured does not pass, and Missing says why.
func (c Condition) Check(r *Run) Threshold {
	t := Threshold{Text: c.Text}
	v, _, err := r.Lookup(c.Metric)
	if err == nil && c.Unit == "%" {
		if r.Totals.Offered == 0 {
			err = fmt.Errorf("%s: no message was offered", c.Metric)
		} else {
			v = 100 * v / float64(r.Totals.Offered)
		}
	}
	if err != nil {
		t.Missing = err.Error()
		return t
	}
	t.Actual = v
	switch c.Op {
	case "<":
		t.Pass = v < c.Value
	case "<=":
		t.Pass = v <= c.Value
	case ">":
		t.Pass = v > c.Value
	case ">=":
		t.Pass = v >= c.Value
	case "==":
		t.Pass = v == c.Value
	case "!=":
		t.Pass = v != c.Value
	}
	return t
}

func (c Condition) String() string { return c.Text }

// SyntaxError says what is wrong with a threshold, and where. Error has two lines more, the text and a caret below the place.
type SyntaxError struct {
	Text    string // control characters replaced
	Column  int    // in characters, from 0
	Message string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("threshold: %s\n  %s\n  %s^", e.Message, e.Text, strings.Repeat(" ", e.Column))
}

// maxConditionBytes is the longest threshold that is parsed.
const maxConditionBytes = 100

// ParseThreshold reads a condition such as "ack.p99 < 20ms"; an error is a *SyntaxError.
func ParseThreshold(text string) (Condition, error) {
	fail := func(at int, format string, args ...any) (Condition, error) {
		shown := strings.Map(func(c rune) rune {
			if c < ' ' || c >= 0x7f && c < 0xa0 {
				return '?'
			}
			return c
		}, text)
		return Condition{}, &SyntaxError{Text: shown, Column: len([]rune(text[:at])), Message: fmt.Sprintf(format, args...)}
	}
	if len(text) > maxConditionBytes {
		text = text[:maxConditionBytes]
		return fail(maxConditionBytes, "longer than %d characters", maxConditionBytes)
	}
	skip := func(at int) int {
		for at < len(text) && (text[at] == ' ' || text[at] == '\t') {
			at++
		}
		return at
	}

	start := skip(0)
	at := start
	for at < len(text) && (isLetter(text[at]) || isDigit(text[at]) || text[at] == '.') {
		at++
	}
	metric := text[start:at]
	if metric == "" {
		return fail(at, "want a metric first, such as ack.p99, rate or lost")
	}
	kind, ok := kindOf(metric)
	if !ok {
		where, message := whyUnknown(metric)
		return fail(start+where, "%s", message)
	}

	at = skip(at)
	op := ""
	for _, o := range []string{"<=", ">=", "==", "!=", "<", ">"} {
		if strings.HasPrefix(text[at:], o) {
			op = o
			break
		}
	}
	if op == "" {
		if at < len(text) && text[at] == '=' {
			return fail(at, "want == to say equal")
		}
		return fail(at, "want one of < <= > >= == != after %s", metric)
	}
	at = skip(at + len(op))

	start = at
	for at < len(text) && (isDigit(text[at]) || text[at] == '.') {
		at++
	}
	number := text[start:at]
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || value > 1e15 {
		if number == "" {
			return fail(start, "want a number after %s, such as %s", op, kind.example())
		}
		return fail(start, "%s is not a number that can be used", number)
	}
	at = skip(at)

	start = at
	unit := strings.TrimRight(text[start:], " \t")
	factor, ok := kind.units()[unit]
	if !ok {
		if unit == "" {
			return fail(start, "%s needs a unit, such as %s", metric, kind.example())
		}
		return fail(start, "%q is not a unit of %s; want %s", unit, metric, kind.names())
	}
	c := Condition{Text: metric + op + number + unit, Metric: metric, Op: op, Value: value * factor, Unit: kind.unit()}
	if unit == "%" {
		c.Unit = "%"
	}
	return c, nil
}

// kind is what a metric is measured in.
type kind int

const (
	noKind kind = iota
	latencyKind
	rateKind
	messagesKind // a count, or a share of the messages offered
	countKind
	cpuKind
	sizeKind
)

var kinds = map[string]kind{
	"rate": rateKind, "sessions": rateKind,
	"errors": messagesKind, "4xx": messagesKind, "5xx": messagesKind, "dropped": messagesKind,
	"lost": countKind, "duplicates": countKind, "corrupt": countKind, "phantom": countKind,
	"cpu": cpuKind, "rss": sizeKind,
}

func kindOf(metric string) (kind, bool) {
	if k, ok := kinds[metric]; ok {
		return k, true
	}
	if _, _, _, ok := splitLatency(metric); ok {
		return latencyKind, true
	}
	return noKind, false
}

// splitLatency takes "ack.p99.9" and "ack.5xx.p99.9" apart.
func splitLatency(metric string) (phase, outcome, stat string, ok bool) {
	phase, stat, _ = strings.Cut(metric, ".")
	outcome = "2xx"
	if first, rest, more := strings.Cut(stat, "."); more && slices.Contains(OutcomeNames, first) {
		outcome, stat = first, rest
	}
	if !slices.Contains(PhaseNames, phase) {
		return
	}
	_, isPercentile := percentile(stat)
	return phase, outcome, stat, isPercentile || stat == "min" || stat == "mean" || stat == "max"
}

func percentile(stat string) (float64, bool) {
	digits, ok := strings.CutPrefix(stat, "p")
	if !ok || digits == "" || !isDigit(digits[0]) || !isDigit(digits[len(digits)-1]) || strings.Trim(digits, "0123456789.") != "" {
		return 0, false
	}
	p, err := strconv.ParseFloat(digits, 64)
	return p, err == nil && p <= 100
}

// whyUnknown finds the part of a metric that is wrong.
func whyUnknown(metric string) (at int, message string) {
	phase, rest, dotted := strings.Cut(metric, ".")
	if !slices.Contains(PhaseNames, phase) {
		if dotted {
			return 0, fmt.Sprintf("unknown phase %q; want %s", phase, strings.Join(PhaseNames, ", "))
		}
		return 0, fmt.Sprintf("unknown metric %q; want rate, sessions, lost, duplicates, corrupt, phantom, errors, 4xx, 5xx, dropped, cpu, rss, "+
			"or a phase with a percentile, such as ack.p99", phase)
	}
	if !dotted {
		return len(metric), fmt.Sprintf("%s needs a percentile, such as %s.p99", phase, phase)
	}
	at = len(phase) + 1
	if first, _, more := strings.Cut(rest, "."); more && slices.Contains(OutcomeNames, first) {
		at += len(first) + 1
	}
	return at, fmt.Sprintf("unknown figure %q; want p50, p99, p99.9, …, min, mean or max", metric[at:])
}

func (k kind) unit() string {
	return map[kind]string{latencyKind: "ms", rateKind: "/s", cpuKind: "s", sizeKind: "B"}[k]
}

func (k kind) example() string {
	return map[kind]string{latencyKind: "20ms", rateKind: "5000/s", cpuKind: "0.5s", sizeKind: "512MiB"}[k] + map[bool]string{true: "0"}[k == countKind || k == messagesKind]
}

func (k kind) names() string {
	return map[kind]string{
		latencyKind: "us, ms, s or m", rateKind: "/s, /m or /h, with k or M before it", cpuKind: "ms or s", sizeKind: "B, kB, MB, GB, KiB, MiB or GiB",
		countKind: "none, k or M", messagesKind: "none, k, M or %",
	}[k]
}

// units give the factor to the unit of the metric.
func (k kind) units() map[string]float64 {
	return map[kind]map[string]float64{
		latencyKind: {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1, "s": 1e3, "m": 60e3},
		rateKind: {"": 1, "k": 1e3, "M": 1e6, "/s": 1, "k/s": 1e3, "M/s": 1e6, "/m": 1.0 / 60, "k/m": 1e3 / 60, "M/m": 1e6 / 60,
			"/h": 1.0 / 3600, "k/h": 1e3 / 3600, "M/h": 1e6 / 3600},
		messagesKind: {"": 1, "k": 1e3, "M": 1e6, "%": 1},
		countKind:    {"": 1, "k": 1e3, "M": 1e6},
		cpuKind:      {"": 1, "s": 1, "ms": 1e-3},
		sizeKind: {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
			"K": 1 << 10, "M": 1 << 20, "G": 1 << 30},
	}[k]
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }

// finite says whether v can be drawn and written as JSON.
func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
