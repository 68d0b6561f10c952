package report

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
)

// Comparison sets runs of two sides beside each other. A is what was before, B what is after.
type Comparison struct {
	A, B []*Run
	Rows []Row
	// Unlike are the parameters that differ; only with force.
	Unlike []Difference
	// Notes are reasons to doubt the comparison, and what to do.
	Notes []string
}

// Row is one figure on both sides.
type Row struct {
	Name, Unit string // Unit as in Lookup, or "µs"
	A, B       Spread
	// Change is (B − A) ÷ A of the medians; +Inf when only A is 0.
	Change float64
	// P is the two-sided p value of the Mann-Whitney U test; 1 with fewer than two runs a side.
	P float64
	// Better is 1 when more is better and -1 when less is; 0 when neither can be said.
	Better int
}

// Spread is a figure of one side: one value for each run that has it.
type Spread struct {
	Values           []float64
	Median, Min, Max float64
}

func spreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return Spread{values, (sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1]}
}

// Overlap says whether the ranges of the two sides have a value in common.
func (r *Row) Overlap() bool { return r.A.Min <= r.B.Max && r.B.Min <= r.A.Max }

// Significant says whether the sides differ by more than chance explains, at p < 0.05.
func (r *Row) Significant() bool { return r.P < 0.05 }

// Difference is a parameter that two runs do not share.
type Difference struct {
	Name string // as in run.json
	A, B string
}

// UnlikeError says that runs cannot be compared, and why.
type UnlikeError struct{ Differences []Difference }

func (e *UnlikeError) Error() string {
	var b strings.Builder
	b.WriteString("these runs had different load, so their figures say nothing about each other:")
	for _, d := range e.Differences {
		fmt.Fprintf(&b, "\n  %-16s %s, and %s", d.Name, d.A, d.B)
	}
	b.WriteString("\n--force compares them all the same")
	return b.String()
}

// Compare sets two runs beside each other. Unless force, an *UnlikeError refuses runs whose Parameters differ; Workers may, and so may
// everything else that a Run records.
func Compare(a, b *Run, force bool) (*Comparison, error) {
	return CompareSets([]*Run{a}, []*Run{b}, force)
}

// CompareSets is Compare for several runs a side: medians, ranges, and whether the difference is more than the runs differ among
// themselves. All runs must be alike.
func CompareSets(a, b []*Run, force bool) (*Comparison, error) {
	if len(a) == 0 || len(b) == 0 {
		return nil, errors.New("report: compare: a side without runs")
	}
	c := &Comparison{A: a, B: b}
	for _, r := range slices.Concat(a, b)[1:] {
		for _, d := range a[0].Parameters.differences(&r.Parameters) {
			if !slices.Contains(c.Unlike, d) {
				c.Unlike = append(c.Unlike, d)
			}
		}
	}
	if len(c.Unlike) > 0 && !force {
		return nil, &UnlikeError{c.Unlike}
	}
	c.rows()
	c.notes()
	return c, nil
}

// differences of all parameters except Workers, which is how the generator works rather than what it applies.
func (p *Parameters) differences(q *Parameters) []Difference {
	var out []Difference
	a, b := reflect.ValueOf(p).Elem(), reflect.ValueOf(q).Elem()
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		if name == "workers" || a.Field(i).Equal(b.Field(i)) {
			continue
		}
		show := func(v reflect.Value) string {
			if v.Kind() == reflect.String {
				return cmp.Or(printable(v.String(), 60), "not set")
			}
			return fmt.Sprint(v)
		}
		out = append(out, Difference{name, show(a.Field(i)), show(b.Field(i))})
	}
	return out
}

func (c *Comparison) rows() {
	add := func(name, unit string, better int, of func(*Run) (float64, bool)) {
		values := func(runs []*Run) (list []float64) {
			for _, r := range runs {
				if v, ok := of(r); ok && finite(v) {
					list = append(list, v)
				}
			}
			return list
		}
		row := Row{Name: name, Unit: unit, A: spreadOf(values(c.A)), B: spreadOf(values(c.B)), Better: better, P: 1}
		if len(row.A.Values) == 0 && len(row.B.Values) == 0 {
			return
		}
		// What never happened is worth a row only where its absence is the point.
		if unit == "" && row.A.Max == 0 && row.B.Max == 0 && name != "errors" && name != "lost" {
			return
		}
		if len(row.A.Values) > 0 && len(row.B.Values) > 0 {
			switch {
			case row.A.Median == row.B.Median:
			case row.A.Median == 0:
				row.Change = math.Inf(1)
			default:
				row.Change = (row.B.Median - row.A.Median) / row.A.Median
			}
			row.P = mannWhitney(row.A.Values, row.B.Values)
		}
		c.Rows = append(c.Rows, row)
	}
	lookup := func(metric string) func(*Run) (float64, bool) {
		return func(r *Run) (float64, bool) {
			v, _, err := r.Lookup(metric)
			return v, err == nil
		}
	}
	if first := c.A[0].Parameters; first.SessionsOnly || first.Idle {
		add("sessions", "/s", 1, lookup("sessions"))
	} else {
		add("rate", "/s", 1, lookup("rate"))
	}
	for _, phase := range []string{"ack", "transaction", "session"} {
		for _, stat := range []string{"p50", "p99", "p99.9"} {
			if phase == "ack" || stat == "p99" {
				add(phase+" "+stat, "ms", -1, lookup(phase+"."+stat))
			}
		}
	}
	add("server CPU a message", "µs", -1, func(r *Run) (float64, bool) {
		v, _, err := r.Lookup("cpu")
		return v * 1000, err == nil
	})
	add("server RSS", "B", -1, lookup("rss"))
	add("RSS a connection", "B", -1, func(r *Run) (float64, bool) {
		if r.Idle == nil || r.Idle.Connections <= 0 {
			return 0, false
		}
		return float64(r.Idle.RSSAfter-r.Idle.RSSBefore) / float64(r.Idle.Connections), true
	})
	for _, metric := range []string{"4xx", "5xx", "errors", "dropped", "lost", "duplicates", "corrupt", "phantom"} {
		better := -1
		if metric == "4xx" || metric == "5xx" {
			better = 0 // a target may be right to refuse
		}
		add(metric, "", better, lookup(metric))
	}
}

func (c *Comparison) notes() {
	all := slices.Concat(c.A, c.B)
	note := func(format string, args ...any) { c.Notes = append(c.Notes, fmt.Sprintf(format, args...)) }
	if len(c.Unlike) > 0 {
		var names []string
		for _, d := range c.Unlike {
			names = append(names, d.Name)
		}
		note("the load was not the same: %s", strings.Join(names, ", "))
	}
	m := all[0].Machine
	for _, r := range all {
		if r.Machine.Host != m.Host || r.Machine.CPU != m.CPU || r.Machine.Cores != m.Cores {
			note("measured on different machines: measure both on one")
			break
		}
	}
	switch least := min(len(c.A), len(c.B)); {
	case least == 1:
		note("one run a side: repeat each five times to tell a difference from chance")
	case len(all) < 8 && least < 4:
		note("%d and %d runs: with fewer than four a side no difference reaches p < 0.05", len(c.A), len(c.B))
	}
	for _, r := range all {
		if !r.Pass() {
			note("%s, %s: the run failed; a server that loses mail or breaks its thresholds is not faster", name(r), r.Started.UTC().Format("15:04:05"))
		}
		for _, w := range r.Warnings {
			text := fmt.Sprintf("%s: %s", name(r), w.Text)
			if !slices.Contains(c.Notes, text) && len(c.Notes) < 20 {
				c.Notes = append(c.Notes, text)
			}
		}
	}
}

// name is what a run is called: its label or the target's address.
func name(r *Run) string { return printable(cmp.Or(r.Label, r.Target.Address, "run"), 60) }

// names of the two sides; equal ones are told apart by a letter.
func (c *Comparison) names() (a, b string) {
	a, b = name(c.A[0]), name(c.B[0])
	if a == b {
		a, b = a+" (A)", b+" (B)"
	}
	return a, b
}

// value formats a side: the median, and the range when there are several runs.
func (r *Row) value(s *Spread) (median, spread string) {
	show := func(v float64) string {
		if r.Unit == "" && v != math.Trunc(v) {
			return figure(v) // the median of two counts
		}
		return inUnit(v, r.Unit)
	}
	switch len(s.Values) {
	case 0:
		return "–", ""
	case 1:
		return show(s.Median), ""
	default:
		if s.Min == s.Max {
			return show(s.Median), ""
		}
		low, high := show(s.Min), show(s.Max)
		// The unit once, when both have the same.
		unit := strings.TrimLeft(high, "0123456789.,")
		if unit != "" && strings.HasSuffix(low, unit) && strings.Trim(strings.TrimSuffix(low, unit), "0123456789.,") == "" {
			low = strings.TrimSuffix(low, unit)
		}
		return show(s.Median), low + "–" + high
	}
}

// change formats the difference.
func (r *Row) change() string {
	switch {
	case len(r.A.Values) == 0 || len(r.B.Values) == 0:
		return "–"
	case math.IsInf(r.Change, 0):
		return "from 0"
	case r.A.Median == r.B.Median:
		return "same"
	default:
		return fmt.Sprintf("%+.1f%%", 100*r.Change)
	}
}

// chance says what the repetitions say about the difference.
func (r *Row) chance() string {
	switch {
	case len(r.A.Values) < 2 || len(r.B.Values) < 2:
		return ""
	case r.A.Min == r.B.Min && r.A.Max == r.B.Max && r.A.Min == r.A.Max:
		return ""
	case r.Significant():
		return "p=" + figure(max(r.P, 0.001))
	case r.Overlap():
		return "overlap, p=" + figure(r.P)
	default:
		return "apart, p=" + figure(r.P)
	}
}

// judgement is "better", "worse" or nothing. It needs several runs a side, or a count that was 0.
func (r *Row) judgement() string {
	if r.Better == 0 || r.Change == 0 || !r.Significant() && !(r.Unit == "" && (r.A.Max == 0 || r.B.Max == 0)) {
		return ""
	}
	if (r.B.Median > r.A.Median) == (r.Better > 0) {
		return "better"
	}
	return "worse"
}

// WriteText writes the comparison as a table.
func (c *Comparison) WriteText(w io.Writer, style Style) error {
	var out strings.Builder
	a, b := c.names()
	loop, _ := loopSentence(c.A[0])
	fmt.Fprintf(&out, "%s\n", style.paint(bold, loop+", "+c.A[0].Parameters.load()))
	several := len(c.A) > 1 || len(c.B) > 1
	head := []string{"", ">" + a, ">" + b, ">change"}
	if several {
		head = []string{"median and range", ">" + a, fmt.Sprintf("of %d", len(c.A)), ">" + b, fmt.Sprintf("of %d", len(c.B)), ">change", ""}
	}
	table := [][]string{head}
	var judged []string
	for i := range c.Rows {
		r := &c.Rows[i]
		am, as := r.value(&r.A)
		bm, bs := r.value(&r.B)
		row := []string{r.Name, ">" + am, ">" + bm, ">" + r.change()}
		if several {
			row = []string{r.Name, ">" + am, as, ">" + bm, bs, ">" + r.change(), r.chance()}
		}
		table = append(table, row)
		judged = append(judged, r.judgement())
	}
	verdict := []string{"verdict", ">" + outcomesOf(c.A), ">" + outcomesOf(c.B)}
	if several {
		verdict = []string{"verdict", ">" + outcomesOf(c.A), "", ">" + outcomesOf(c.B)}
	}
	table = append(table, verdict)
	for i, line := range columns(table) {
		if i > 0 && i <= len(judged) {
			switch judged[i-1] {
			case "better":
				line += "   " + style.paint(green, "better")
			case "worse":
				line += "   " + style.paint(red, "worse")
			}
		}
		out.WriteString(line + "\n")
	}
	for _, d := range c.Unlike {
		fmt.Fprintf(&out, "%s %s: %s, and %s\n", style.paint(yellow, "unlike "), d.Name, d.A, d.B)
	}
	for _, n := range c.Notes {
		fmt.Fprintf(&out, "%s %s\n", style.paint(yellow, "note   "), printable(n, 240))
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// outcomesOf sums up several verdicts: PASS, FAIL, "2 of 5 FAIL", or "–" when nothing was asked.
func outcomesOf(runs []*Run) string {
	failed, asked := 0, 0
	for _, r := range runs {
		switch r.outcome() {
		case "FAIL":
			failed++
			asked++
		case "PASS":
			asked++
		}
	}
	switch {
	case asked == 0:
		return "–"
	case failed == 0:
		return "PASS"
	case failed == len(runs):
		return "FAIL"
	default:
		return fmt.Sprintf("%d of %d FAIL", failed, len(runs))
	}
}

// mannWhitney is the two-sided p value that both samples come from one distribution. It counts, by dynamic programming over the ranks,
// in how many of all divisions of the values into two groups the rank sum is at least as far from its mean; ties have their mean rank.
// Beyond 60 values it uses the normal approximation with correction for ties.
func mannWhitney(a, b []float64) float64 {
	if len(a) < 2 || len(b) < 2 {
		return 1
	}
	all := slices.Sorted(slices.Values(slices.Concat(a, b)))
	n := len(all)
	// Twice the rank, so that the mean of two is whole.
	rank2 := make(map[float64]int, n)
	ties := 0.0
	for i := 0; i < n; {
		j := i
		for j < n && all[j] == all[i] {
			j++
		}
		rank2[all[i]] = i + 1 + j
		t := float64(j - i)
		ties += t*t*t - t
		i = j
	}
	sum := 0
	for _, v := range a {
		sum += rank2[v]
	}
	mean := len(a) * (n + 1) // of twice the rank sum
	away := sum - mean
	if away < 0 {
		away = -away
	}
	if n > 60 {
		na, nb, nn := float64(len(a)), float64(len(b)), float64(n)
		sigma := math.Sqrt(na * nb / 12 * (nn + 1 - ties/(nn*(nn-1))))
		if sigma == 0 {
			return 1
		}
		z := max(0, float64(away)/2-0.5) / sigma
		return math.Erfc(z / math.Sqrt2)
	}
	// ways[k][s]: in how many ways k of the values seen so far have twice the rank sum s.
	most := n * (n + 1)
	ways := make([][]float64, len(a)+1)
	for k := range ways {
		ways[k] = make([]float64, most+1)
	}
	ways[0][0] = 1
	for _, v := range all {
		r := rank2[v]
		for k := len(a); k > 0; k-- {
			for s := most; s >= r; s-- {
				ways[k][s] += ways[k-1][s-r]
			}
		}
	}
	extreme, total := 0.0, 0.0
	for s, w := range ways[len(a)] {
		total += w
		if s-mean >= away || mean-s >= away {
			extreme += w
		}
	}
	return extreme / total
}
