package report

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strconv"
	"strings"
)

// The page has no script and no style attribute: hovering works with title elements and CSS alone, so the policy can forbid everything
// but the one style sheet, named by its hash. html/template escapes whatever came from a target; the images are written by our code,
// which escapes the texts in them.
var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string

	page = template.Must(template.New("page").Parse(pageHTML))
)

// WriteHTML writes r as one self-contained page. More runs are set beside it: a table of all, one plot with the curves of all, then
// each in full.
func WriteHTML(w io.Writer, r *Run, more ...*Run) error {
	runs := append([]*Run{r}, more...)
	p := newPage(name(r))
	if len(runs) > 1 {
		p.Title = fmt.Sprintf("%d runs", len(runs))
		p.Together = p.together(runs)
	}
	for _, r := range runs {
		p.Runs = append(p.Runs, p.run(r))
	}
	return p.write(w)
}

// WriteHTML writes the comparison as one self-contained page.
func (c *Comparison) WriteHTML(w io.Writer) error {
	a, b := c.names()
	p := newPage(a + " and " + b)
	p.Comparison = p.comparison(c)
	return p.write(w)
}

type pageView struct {
	Title      string
	CSS        template.CSS
	Policy     string
	Runs       []runView
	Together   *togetherView
	Comparison *comparisonView

	ids int // of images
}

type runView struct {
	Name, Address       string
	Outcome             string
	Loop, Meaning, Load string
	Ended               string
	Early               bool
	Tiles               []tile
	Warnings            []warningView
	Bar                 template.HTML
	Outcomes            []outcomeView
	Charts              []chartView
	Verdict             *verdictView
	Thresholds          []thresholdView
	Replies             *table
	Phases              *table
	Facts               []facts
	Tool, ID            string
}

// tile is one figure in large type.
type tile struct{ Label, Value, Unit, Note string }

type warningView struct{ Text, Advice string }

type outcomeView struct{ Class, Name, Count, Share string }

type chartView struct {
	Title, Note string
	Images      template.HTML
	Full        bool // as wide as the page
	Figures     *table

	plot *plot
}

type verdictView struct {
	Verifier string
	Pass     bool
	Counts   []tile
	Examples []string
}

type thresholdView struct {
	Text, Actual string
	Pass         bool
}

// table has columns; those that hold numbers stand at the right.
type table struct {
	Caption string
	Columns []column
	Rows    [][]string
}

type column struct {
	Name   string
	Number bool
}

type facts struct {
	Title string
	Rows  [][2]string
}

type togetherView struct {
	Charts []chartView
	Table  *table
}

type comparisonView struct {
	A, B               string
	Outcome, OutcomeB  string
	Loop, Load         string
	Several            bool
	CountA, CountB     int
	Rows               []comparisonRow
	Notes              []string
	Unlike             []Difference
	Charts             []chartView
	Verifier, Tool, ID string
}

type comparisonRow struct {
	Name, A, ASpread, B, BSpread, Change, Chance, Judgement string
}

func newPage(title string) *pageView {
	sum := sha256.Sum256([]byte(pageCSS))
	return &pageView{
		Title:  title,
		CSS:    template.CSS(pageCSS),
		Policy: "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'",
	}
}

func (p *pageView) write(w io.Writer) error {
	var b bytes.Buffer
	if err := page.Execute(&b, p); err != nil {
		return fmt.Errorf("report: page: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (p *pageView) run(r *Run) runView {
	loop, meaning := loopSentence(r)
	v := runView{
		Name: name(r), Address: printable(r.Target.Address, 100), Outcome: r.outcome(),
		Loop: upperFirst(loop), Meaning: meaning, Load: r.Parameters.load(), Ended: printable(r.Ended, 100), Early: r.early(),
		Tool: printable(r.Tool, 100), ID: printable(r.ID, 32),
	}
	if !r.Started.IsZero() {
		if v.Load != "" {
			v.Load += " · "
		}
		v.Load += "started " + r.Started.UTC().Format("2006-01-02 15:04:05 UTC")
	}
	v.Tiles = tiles(r)
	for _, w := range r.Warnings {
		v.Warnings = append(v.Warnings, warningView{printable(w.Text, 400), advice[w.Code]})
	}
	p.outcomes(&v, r)
	p.charts(&v, r)
	v.Verdict = verdict(r.Verdict)
	for i := range r.Thresholds {
		t := &r.Thresholds[i]
		v.Thresholds = append(v.Thresholds, thresholdView{printable(t.Text, maxConditionBytes), printable(t.actual(), 200), t.Pass})
	}
	v.Replies = repliesTable(r)
	v.Phases = phasesTable(r)
	v.Facts = allFacts(r)
	return v
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// split takes "1.40 ms" apart, so that the unit can be set smaller.
func split(s string) (value, unit string) {
	value, unit, _ = strings.Cut(s, " ")
	return value, unit
}

func tiles(r *Run) []tile {
	var out []tile
	add := func(label, valueAndUnit, note string) {
		value, unit := split(valueAndUnit)
		out = append(out, tile{label, value, unit, note})
	}
	switch {
	case r.Idle != nil:
		each := float64(r.Idle.RSSAfter-r.Idle.RSSBefore) / max(1, float64(r.Idle.Connections))
		add("Memory a connection", octets(each), grouped(int64(r.Idle.Connections))+" held")
	case r.Parameters.Idle:
	case r.Parameters.SessionsOnly:
		if v, _, err := r.Lookup("sessions"); err == nil {
			add("Sessions", figure(v)+" /s", grouped(r.Totals.Sessions)+" completed")
		}
	default:
		add("Acknowledged", figure(r.Rate())+" msg/s", perHour(r.Rate()))
	}
	for _, phase := range []string{"ack", "transaction", "session", "connect"} {
		h := r.Phase(phase, "2xx")
		if h == nil || len(out) >= 4 || phase == "connect" && len(out) > 1 {
			continue
		}
		if phase == "ack" {
			add("Ack, median", latency(h.Ms(50)), "p90 "+latency(h.Ms(90)))
			note := "max " + latency(h.MaxMs())
			if sampled(h, 99.9) {
				note = "p99.9 " + latency(h.Ms(99.9))
			}
			add("Ack, p99", latency(h.Ms(99)), note)
		} else {
			add(upperFirst(phase)+", p99", latency(h.Ms(99)), "p50 "+latency(h.Ms(50)))
		}
	}
	if s := r.Server; s != nil {
		if s.CPUPerThousand > 0 {
			add("Server CPU per 1,000", figure(s.CPUPerThousand)+" s", "RSS "+octets(float64(s.PeakRSS)))
		} else {
			add("Server RSS", octets(float64(s.PeakRSS)), figure(s.CPUSeconds)+" CPU-s")
		}
	}
	if d := r.Verdict; d != nil {
		add("Lost", grouped(d.Lost), "of "+grouped(d.Acknowledged)+" acked")
	}
	return out
}

// outcomes draws what became of the messages as one bar.
func (p *pageView) outcomes(v *runView, r *Run) {
	total := 0.0
	for _, o := range outcomes {
		total += count(o.total(&r.Totals))
	}
	if total == 0 {
		return
	}
	p.ids++
	id := "p" + strconv.Itoa(p.ids)
	var words []string
	c := &canvas{width: 1000, height: 20}
	var rects canvas
	x := 0.0
	for _, o := range outcomes {
		n := count(o.total(&r.Totals))
		if n == 0 && (o.name == "dropped" && r.Parameters.Loop != "open") {
			continue
		}
		v.Outcomes = append(v.Outcomes, outcomeView{o.class, o.name, grouped(int64(n)), percentOf(n, total)})
		words = append(words, fmt.Sprintf("%s %s", o.name, grouped(int64(n))))
		if n > 0 {
			width := max(4, 1000*n/total) // a sliver is seen all the same
			width = min(width, 1000-x)
			rects.rect("area "+o.class, x, 0, width, 20)
			x += width
		}
	}
	c.open(id, "bar", "Outcomes", strings.Join(words, ", ")+".")
	c.WriteString(rects.String())
	c.close()
	v.Bar = template.HTML(strings.Replace(c.String(), "<svg ", `<svg preserveAspectRatio="none" `, 1))
}

// percentOf keeps a share that is not whole from being rounded to 0% or 100%.
func percentOf(n, total float64) string {
	share := 100 * n / total
	switch {
	case n > 0 && share < 0.01:
		return "< 0.01%"
	case n < total && share > 99.99:
		return "> 99.99%"
	case n == 0 || n == total:
		return percent(n / total)
	default:
		return strconv.FormatFloat(share, 'f', 2, 64) + "%"
	}
}

// draw draws the charts, which stand in two columns; of an odd number the first takes both.
func (p *pageView) draw(charts []chartView) []chartView {
	for i := range charts {
		c := &charts[i]
		c.Full = i == 0 && len(charts)%2 == 1
		c.Images = c.plot.images(&p.ids, c.Full)
	}
	return charts
}

// maxBins is about the width of a plot in steps of two pixels.
const maxBins = 200

func (p *pageView) charts(v *runView, r *Run) {
	var curves []named
	for _, n := range []named{{"c-transaction", "transaction", r.Phase("transaction", "2xx")}, {"c-ack", "ack", r.Phase("ack", "2xx")}} {
		if n.h != nil {
			curves = append(curves, n)
		}
	}
	if r.Parameters.SessionsOnly || r.Parameters.Idle {
		curves = nil
		for _, n := range []named{{"c-transaction", "session", r.Phase("session", "2xx")}, {"c-ack", "connect", r.Phase("connect", "2xx")}} {
			if n.h != nil {
				curves = append(curves, n)
			}
		}
	}
	if len(curves) > 0 {
		v.Charts = append(v.Charts, percentileChart(curves))
	}
	if bs := bins(r.Series, maxBins); len(bs) > 1 {
		open := r.Parameters.Loop == "open"
		some := func(f func(*bin) float64) bool { return slices.ContainsFunc(bs, func(b bin) bool { return f(&b) > 0 }) }
		if !r.Parameters.Idle {
			note := "Messages a second, stacked by outcome"
			if open {
				note += "; the line is what was offered"
			}
			v.Charts = append(v.Charts, timeChart("Rate", note, ratePlot(bs, open), r))
		}
		if some(func(b *bin) float64 { return b.ackP99 }) {
			v.Charts = append(v.Charts, timeChart("Ack latency over time", "From the last octet of a message to its reply, each second", ackPlot(bs), nil))
		}
		if some(func(b *bin) float64 { return b.waiting }) {
			v.Charts = append(v.Charts, timeChart("Waiting", "Arrivals that had no free connection, at the end of each second",
				gaugePlot("Arrivals waiting", "c-5xx", bs, func(b *bin) float64 { return b.waiting }, tickCount, figure), nil))
		}
		if some(func(b *bin) float64 { return b.serverCPU }) {
			v.Charts = append(v.Charts, timeChart("Server CPU", "Cores that the target's processes used",
				gaugePlot("Server CPU", "c-cpu", bs, func(b *bin) float64 { return b.serverCPU }, trimmed, func(f float64) string { return figure(f) + " cores" }), nil))
		}
		if some(func(b *bin) float64 { return b.memory }) {
			v.Charts = append(v.Charts, timeChart("Server memory", "Resident, of all the target's processes",
				gaugePlot("Server memory", "c-rss", bs, func(b *bin) float64 { return b.memory / (1 << 20) }, func(f float64) string { return tickCount(f) + " MiB" },
					func(f float64) string { return octets(f * (1 << 20)) }), nil))
		}
	}
	if len(r.Search) > 0 {
		v.Charts = append(v.Charts, searchChart(r))
	}
	v.Charts = p.draw(v.Charts)
}

func percentileChart(curves []named) chartView {
	t := &table{Caption: "Latency by percentile", Columns: []column{{"percentile", false}}}
	for _, n := range curves {
		t.Columns = append(t.Columns, column{n.name, true})
	}
	for _, s := range percentiles {
		row := []string{s.name}
		for _, n := range curves {
			row = append(row, latency(n.h.Ms(s.p)))
		}
		t.Rows = append(t.Rows, row)
	}
	row := []string{"max"}
	for _, n := range curves {
		row = append(row, latency(n.h.MaxMs()))
	}
	t.Rows = append(t.Rows, row)
	return chartView{Title: "Latency by percentile", Note: "Percentiles, each nine as wide as the one before; dotted where fewer than ten samples are slower",
		plot: percentilePlot("Latency by percentile", curves), Figures: t}
}

// timeChart has the series as its table when r is given, in at most 30 lines; the other plots over time refer to the same table.
func timeChart(title, note string, plot *plot, r *Run) chartView {
	c := chartView{Title: title, Note: note, plot: plot}
	if r == nil {
		return c
	}
	t := &table{Caption: "The series", Columns: []column{{"until", true}, {"offered/s", true}, {"acked/s", true}, {"4xx/s", true}, {"5xx/s", true}, {"errors/s", true},
		{"in flight", true}, {"ack p50", true}, {"ack p99", true}, {"CPU", true}, {"RSS", true}}}
	for _, b := range bins(r.Series, 30) {
		t.Rows = append(t.Rows, []string{b.clock(), figure(b.offered), figure(b.acked), figure(b.deferred), figure(b.refused), figure(b.errors), figure(b.inFlight),
			latency(b.ackP50), latency(b.ackP99), figure(b.serverCPU), octets(b.memory)})
	}
	c.Figures = t
	return c
}

// searchChart shows the trials of --find-max by rate, and where the condition stops to hold.
func searchChart(r *Run) chartView {
	trials := slices.Clone(r.Search)
	slices.SortStableFunc(trials, func(a, b Trial) int { return compareFloat(a.Rate, b.Rate) })
	condition, err := ParseThreshold(r.FindMax)
	isLatency := err == nil && condition.Unit == "ms"
	pl := &plot{title: "Search for the highest rate", yTick: tickCount}
	if isLatency {
		pl.yTick, pl.log = tickLatency, true
	}
	t := &table{Caption: "Trials in the order in which they ran", Columns: []column{{"rate", true}, {cmp.Or(condition.Metric, "value"), true}, {"condition", false}}}
	best, worst := 0.0, 0.0
	var line []point
	for _, s := range trials {
		at := point{x: positive(s.Rate), y: positive(s.Actual)}
		worst = max(worst, at.x)
		line = append(line, at)
		class, held := "c-5xx", trialWord(s, "broken")
		if s.Pass {
			class, best = "c-acked", max(best, at.x)
		}
		pl.marks = append(pl.marks, mark{class, at, fmt.Sprintf("%s/s: %s, %s", figure(s.Rate), searchValue(r, s), held)})
	}
	for _, s := range r.Search {
		t.Rows = append(t.Rows, []string{figure(s.Rate) + "/s", figure(s.Actual), trialWord(s, "broken")})
	}
	a := linearAxis(worst, 0, 1, 5)
	pl.xHigh = a.high
	for _, v := range a.ticks(5) {
		pl.xTicks = append(pl.xTicks, tick{v, tickCount(v) + "/s"})
	}
	pl.lines = []curve{{class: "c-quiet", points: line}}
	if err == nil && condition.Value > 0 {
		pl.lines = append(pl.lines, curve{class: "c-offered", name: "limit", points: []point{{y: condition.Value}, {x: pl.xHigh, y: condition.Value}}})
	}
	pl.description = fmt.Sprintf("The condition %s held up to %s messages a second.", r.FindMax, figure(best))
	note := fmt.Sprintf("%s held up to %s/s", printable(cmp.Or(r.FindMax, "The condition"), maxConditionBytes), figure(best))
	return chartView{Title: "Search for the highest rate", Note: note, plot: pl, Figures: t}
}

func verdict(d *Verdict) *verdictView {
	if d == nil {
		return nil
	}
	v := &verdictView{Verifier: printable(d.Verifier, 200), Pass: d.Pass}
	for _, c := range []struct {
		label string
		n     int64
		note  string
		rare  bool
	}{
		{"Acknowledged", d.Acknowledged, "deliveries", false},
		{"Received", d.Received, "different deliveries", false},
		{"Lost", d.Lost, "acked, not received", false},
		{"Duplicates", d.Duplicates, "acked, received twice", false},
		{"Corrupt", d.Corrupt, "another body than sent", false},
		{"Phantom", d.Phantom, "refused, yet received", false},
		{"Unknown", d.Unknown, "connection lost before the reply", true},
		{"Repeated", d.Repeats, "unknown, received twice: allowed", true},
		{"Header altered", d.Altered, "told, not judged", true},
	} {
		if !c.rare || c.n > 0 {
			v.Counts = append(v.Counts, tile{c.label, grouped(c.n), "", c.note})
		}
	}
	for _, e := range d.Examples[:min(len(d.Examples), 20)] {
		v.Examples = append(v.Examples, printable(e, 300))
	}
	return v
}

func repliesTable(r *Run) *table {
	if len(r.Replies) == 0 {
		return nil
	}
	t := &table{Columns: []column{{"count", true}, {"phase", false}, {"reply", false}}}
	for _, reply := range r.Replies[:min(len(r.Replies), MaxReplies)] {
		t.Rows = append(t.Rows, []string{grouped(reply.Count), printable(reply.Phase, 20), printable(reply.Text, 200)})
	}
	return t
}

func phasesTable(r *Run) *table {
	t := &table{Columns: []column{{"phase", false}, {"outcome", false}, {"count", true}, {"p50", true}, {"p90", true}, {"p99", true}, {"p99.9", true}, {"max", true}}}
	r.eachPhase(func(name, outcome string, h *Histogram) {
		row := []string{name, outcome, grouped(h.Count())}
		unit := latencyScale(h.Ms(50), h.MaxMs())
		for _, s := range percentiles[:4] {
			if sampled(h, s.p) {
				row = append(row, figure(h.Ms(s.p)/unit.size)+" "+unit.name)
			} else {
				row = append(row, "–")
			}
		}
		t.Rows = append(t.Rows, append(row, figure(h.MaxMs()/unit.size)+" "+unit.name))
	})
	if len(t.Rows) == 0 {
		return nil
	}
	return t
}

func allFacts(r *Run) []facts {
	var out []facts
	group := func(title string, rows ...[2]string) {
		f := facts{Title: title}
		for _, row := range rows {
			if row[1] != "" && row[1] != "0" && row[1] != "false" {
				row[1] = printable(row[1], 400)
				f.Rows = append(f.Rows, row)
			}
		}
		if len(f.Rows) > 0 {
			out = append(out, f)
		}
	}
	shareOf := func(v float64) string {
		if v == 0 {
			return ""
		}
		return percent(v)
	}
	p := &r.Parameters
	rate := ""
	if p.Rate > 0 {
		rate = figure(p.Rate) + "/s"
	}
	group("Load", [2]string{"Protocol", strings.ToUpper(p.Protocol)}, [2]string{"Loop", p.Loop}, [2]string{"Rate", rate}, [2]string{"Arrivals", p.Arrivals},
		[2]string{"Ramp", p.Ramp}, [2]string{"Connections", grouped(int64(p.Connections))}, [2]string{"Messages in a session", grouped(int64(p.PerConnection))},
		[2]string{"Duration", p.Duration}, [2]string{"Messages", grouped(p.Messages)}, [2]string{"Warm-up", p.Warmup}, [2]string{"Profile", p.Profile},
		[2]string{"Size", p.Size}, [2]string{"Recipients", p.Recipients}, [2]string{"Pipelining", p.Pipelining}, [2]string{"BDAT", shareOf(p.BDAT)},
		[2]string{"STARTTLS", shareOf(p.STARTTLS)}, [2]string{"Implicit TLS", strconv.FormatBool(p.ImplicitTLS)}, [2]string{"AUTH", p.Auth}, [2]string{"Sources", p.Sources},
		[2]string{"PROXY", p.Proxy}, [2]string{"Slow clients", shareOf(p.SlowClients)}, [2]string{"Bad clients", shareOf(p.BadClients)},
		[2]string{"Sessions only", strconv.FormatBool(p.SessionsOnly)}, [2]string{"Workers", grouped(int64(p.Workers))})
	group("Target", [2]string{"Address", r.Target.Address}, [2]string{"Banner", r.Target.Banner}, [2]string{"EHLO", strings.Join(r.Target.EHLO[:min(len(r.Target.EHLO), 40)], " · ")})
	m := &r.Machine
	sync := ""
	if m.SyncP50Ms > 0 {
		sync = fmt.Sprintf("%s, p99 %s", latency(m.SyncP50Ms), latency(m.SyncP99Ms))
	}
	memory := ""
	if m.MemoryMiB > 0 {
		memory = octets(float64(m.MemoryMiB) * (1 << 20))
	}
	group("Machine", [2]string{"Date", m.Date}, [2]string{"CPU", m.CPU}, [2]string{"Cores", grouped(int64(m.Cores))}, [2]string{"Memory", memory}, [2]string{"Kernel", m.Kernel},
		[2]string{"Platform", m.Platform}, [2]string{"Go", m.Go}, [2]string{"File system", m.FileSystem}, [2]string{"Synced write of 4 KiB", sync}, [2]string{"Host", m.Host})
	usage := func(u *Usage) [][2]string {
		if u == nil {
			return nil
		}
		rows := [][2]string{{"CPU", figure(u.CPUSeconds) + " s"}, {"Share of a core", percent(share(u.CPUSeconds, r.Seconds))}}
		if u.CPUPerThousand > 0 {
			rows = append(rows, [2]string{"CPU per 1,000 messages", figure(u.CPUPerThousand) + " s"})
		}
		rows = append(rows, [2]string{"Peak RSS", octets(float64(u.PeakRSS))}, [2]string{"Context switches", grouped(u.ContextSwitches)},
			[2]string{"Processes", grouped(int64(u.Processes))})
		if u.LagP99Ms > 0 {
			rows = append(rows, [2]string{"Lag p99", latency(u.LagP99Ms)})
		}
		return rows
	}
	server := usage(r.Server)
	if r.Idle != nil {
		server = append(server, [2]string{"Memory", r.Idle.sentence()})
	}
	group("Server", server...)
	if r.Generator != (Usage{}) {
		group("Generator", usage(&r.Generator)...)
	}
	t := &r.Totals
	size := ""
	if t.Bytes > 0 {
		size = octets(float64(t.Bytes))
	}
	group("Totals", [2]string{"Offered", grouped(t.Offered)}, [2]string{"Acknowledged", grouped(t.Acknowledged)}, [2]string{"Deferred, 4xx", grouped(t.Deferred)},
		[2]string{"Refused, 5xx", grouped(t.Refused)}, [2]string{"Errors", grouped(t.Errors)}, [2]string{"Waited", grouped(t.Waited)}, [2]string{"Dropped", grouped(t.Dropped)},
		[2]string{"Sessions", grouped(t.Sessions)}, [2]string{"Message data", size}, [2]string{"Bad clients", grouped(t.BadClients)})
	return out
}

// together sets several runs beside each other, without saying that they can be compared.
func (p *pageView) together(runs []*Run) *togetherView {
	t := &table{Columns: []column{{"run", false}, {"msg/s", true}, {"ack p50", true}, {"ack p99", true}, {"ack p99.9", true}, {"CPU-s per 1,000", true}, {"RSS", true},
		{"errors", true}, {"lost", true}, {"verdict", false}}}
	var curves []named
	times := map[string]int{}
	for i, r := range runs {
		name := printable(name(r), 16)
		if times[name]++; times[name] > 1 {
			name += fmt.Sprintf(" (%d)", times[name])
		}
		h := r.Phase("ack", "2xx")
		if h != nil && i < 6 {
			curves = append(curves, named{"c-run" + strconv.Itoa(i+1), name, h})
		}
		cpu, rss, lost := "–", "–", "–"
		if r.Server != nil {
			cpu, rss = figure(r.Server.CPUPerThousand), octets(float64(r.Server.PeakRSS))
		}
		if r.Verdict != nil {
			lost = grouped(r.Verdict.Lost)
		}
		t.Rows = append(t.Rows, []string{name, figure(r.Rate()), latency(h.Ms(50)), latency(h.Ms(99)), latency(h.Ms(99.9)), cpu, rss, grouped(r.Totals.Errors), lost,
			cmp.Or(r.outcome(), "–")})
	}
	v := &togetherView{Table: t}
	if len(curves) > 0 {
		chart := percentileChart(curves)
		chart.Title = "Ack latency by percentile"
		v.Charts = p.draw([]chartView{chart})
	}
	return v
}

func (p *pageView) comparison(c *Comparison) *comparisonView {
	a, b := c.names()
	loop, _ := loopSentence(c.A[0])
	v := &comparisonView{A: a, B: b, Outcome: outcomesOf(c.A), OutcomeB: outcomesOf(c.B), Loop: upperFirst(loop), Load: c.A[0].Parameters.load(),
		Several: len(c.A) > 1 || len(c.B) > 1, CountA: len(c.A), CountB: len(c.B), Unlike: c.Unlike, Tool: printable(c.B[0].Tool, 100)}
	for i := range c.Rows {
		r := &c.Rows[i]
		row := comparisonRow{Name: upperFirst(r.Name), Change: strings.Replace(r.change(), "-", "−", 1), Chance: r.chance(), Judgement: r.judgement()}
		row.A, row.ASpread = r.value(&r.A)
		row.B, row.BSpread = r.value(&r.B)
		v.Rows = append(v.Rows, row)
	}
	for _, n := range c.Notes {
		v.Notes = append(v.Notes, printable(n, 400))
	}
	for _, phase := range []string{"ack", "transaction", "session"} {
		var curves []named
		if h := merged(c.A, phase); h != nil {
			curves = append(curves, named{"c-run1", printable(a, 16), h})
		}
		if h := merged(c.B, phase); h != nil {
			curves = append(curves, named{"c-run2", printable(b, 16), h})
		}
		if len(curves) == 2 {
			chart := percentileChart(curves)
			chart.Title = upperFirst(phase) + " latency by percentile"
			if len(c.A) > 1 || len(c.B) > 1 {
				chart.Note = "All runs of a side together; dotted where fewer than ten samples are slower"
			}
			v.Charts = append(v.Charts, chart)
		}
	}
	v.Charts = p.draw(v.Charts)
	return v
}

// merged is one phase of all runs, or nil.
func merged(runs []*Run, phase string) *Histogram {
	var sum *Histogram
	for _, r := range runs {
		h := r.Phase(phase, "2xx")
		switch {
		case h == nil:
		case sum == nil:
			sum = &Histogram{h.Clone()}
		default:
			sum.Merge(h.Histogram)
		}
	}
	return sum
}
