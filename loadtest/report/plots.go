package report

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// plot is a chart with two axes. It is drawn in several sizes, and the style sheet shows the one that fits: an image that is merely
// scaled down to a phone has labels that nobody can read.
type plot struct {
	title, description string
	areas              []curve // stacked, from the bottom
	lines              []curve
	xTicks             []tick
	xHigh              float64 // the x axis goes from 0 to here
	yTick              func(float64) string
	log                bool
	hints              []hint // shown where the mouse is
	marks              []mark
}

// curve is a named line. Its class gives the colour: c-NAME.
type curve struct {
	class, name string
	points      []point // in values
	faint       []point // the part that rests on too few samples
}

type tick struct {
	at   float64
	text string
}

// hint is text for a stretch of the x axis.
type hint struct {
	from, to float64
	text     string
}

// mark is a dot with a hint of its own.
type mark struct {
	class string
	at    point
	text  string
}

const (
	labelSize  = 12.0 // of text in images, in px
	lineHeight = 15.0
)

// images draws p wide and narrow, and as wide as the page when full.
func (p *plot) images(ids *int, full bool) template.HTML {
	type size struct {
		class         string
		width, height float64
	}
	sizes := []size{{"wide", 560, 250}, {"narrow", 350, 230}}
	if full {
		sizes = append(sizes, size{"full", 1120, 300})
	}
	var b strings.Builder
	for _, size := range sizes {
		*ids++
		p.draw(&b, "p"+strconv.Itoa(*ids), "plot "+size.class, size.width, size.height, size.class == "narrow")
	}
	return template.HTML(b.String())
}

// draw draws one size. The names of the curves stand beside their ends, or above the plot when there is no room for that.
func (p *plot) draw(b *strings.Builder, id, class string, width, height float64, above bool) {
	legend := 0.0
	if above {
		legend = lineHeight*float64(len(p.legend(width))) + 4
	}
	c := &canvas{width: width, height: height + legend}
	c.open(id, class, p.title, p.description)

	low, high := p.extent()
	var y axis
	top, bottom := 10+legend, height+legend-26
	if p.log {
		y = logAxis(low, high, bottom, top)
	} else {
		y = linearAxis(high, bottom, top, 5)
	}
	yTicks := y.ticks(5)
	left := 0.0
	for _, v := range yTicks {
		left = max(left, textWidth(p.yTick(v), labelSize))
	}
	left += 10
	right := 0.0
	for _, k := range p.curves() {
		right = max(right, textWidth(k.name, labelSize))
	}
	right += 24
	if above {
		right = 16
		for i, row := range p.legend(width) {
			at := 0.0
			for _, k := range row {
				c.rule("key "+k.class, at, lineHeight*float64(i)+6, at+10, lineHeight*float64(i)+6)
				c.text("name", "start", at+14, lineHeight*float64(i)+10, k.name)
				at += legendWidth(k.name)
			}
		}
	}
	x := axis{low: 0, high: p.xHigh, from: left, to: width - right}

	for _, v := range yTicks {
		c.rule("grid", x.from, y.at(v), x.to, y.at(v))
		c.text("tick", "end", left-8, y.at(v)+4, p.yTick(v))
	}
	free := -math.MaxFloat64 // the first coordinate that a tick's text may use
	for _, t := range p.xTicks {
		half := textWidth(t.text, labelSize) / 2
		at := x.at(t.at)
		if at-half < free {
			continue
		}
		free = at + half + 8
		c.rule("axis", at, bottom, at, bottom+4)
		c.text("tick", "middle", at, bottom+18, t.text)
	}

	place := func(points []point) []point {
		out := make([]point, len(points))
		for i, q := range points {
			out[i] = point{x: x.at(q.x), y: y.at(q.y), lifted: q.lifted}
		}
		return out
	}
	var names []label
	var below []point
	for _, a := range p.areas {
		upper := make([]point, len(a.points))
		for i, q := range a.points {
			upper[i] = q
			if below != nil {
				upper[i].y += below[i].y
			}
		}
		lower := below
		if lower == nil {
			lower = make([]point, len(upper))
			for i := range upper {
				lower[i] = point{x: upper[i].x}
			}
		}
		c.area("area "+a.class, place(upper), place(lower))
		if n := len(upper); n > 0 && a.name != "" {
			names = append(names, label{class: a.class, text: a.name, y: (y.at(upper[n-1].y) + y.at(lower[n-1].y)) / 2})
		}
		below = upper
	}
	c.rule("axis", x.from, bottom, x.to, bottom)
	for _, l := range p.lines {
		c.line("line "+l.class, place(l.points))
		c.line("line faint "+l.class, place(l.faint))
		last := l.points
		if len(l.faint) > 0 {
			last = l.faint
		}
		if n := len(last); n > 0 && l.name != "" {
			names = append(names, label{class: l.class, text: l.name, y: y.at(last[n-1].y)})
		}
	}
	if above {
		names = nil
	}
	spread(names, lineHeight, top+2, bottom-4)
	for _, n := range names {
		c.rule("key "+n.class, x.to+4, n.y, x.to+14, n.y)
		c.text("name", "start", x.to+18, n.y+4, n.text)
	}
	for _, h := range p.hints {
		fmt.Fprintf(c, `<rect class="hint" x="%s" y="%s" width="%s" height="%s"><title>%s</title></rect>`,
			px(x.at(h.from)), px(top), px(max(0, x.at(h.to)-x.at(h.from))), px(bottom-top), template.HTMLEscapeString(h.text))
	}
	for _, m := range p.marks {
		fmt.Fprintf(c, `<circle class="mark %s" cx="%s" cy="%s" r="3.5"><title>%s</title></circle>`,
			m.class, px(x.at(m.at.x)), px(y.at(m.at.y)), template.HTMLEscapeString(m.text))
	}
	c.close()
	b.WriteString(c.String())
}

// legend breaks the names of the curves into rows that fit the width.
func (p *plot) legend(width float64) (rows [][]curve) {
	free := -1.0
	for _, k := range p.curves() {
		if k.name == "" {
			continue
		}
		if free < legendWidth(k.name)-16 {
			rows = append(rows, nil)
			free = width
		}
		rows[len(rows)-1] = append(rows[len(rows)-1], k)
		free -= legendWidth(k.name)
	}
	return rows
}

// legendWidth is a key, the name and the space after it.
func legendWidth(name string) float64 { return 14 + textWidth(name, labelSize) + 16 }

func (p *plot) curves() []curve { return append(append([]curve{}, p.areas...), p.lines...) }

// extent is the least positive and the greatest value.
func (p *plot) extent() (low, high float64) {
	low = math.MaxFloat64
	see := func(v float64) {
		if finite(v) {
			high = max(high, v)
			if v > 0 {
				low = min(low, v)
			}
		}
	}
	for _, l := range p.lines {
		for _, q := range l.points {
			see(q.y)
		}
		for _, q := range l.faint {
			see(q.y)
		}
	}
	if len(p.areas) > 0 {
		for i := range p.areas[0].points {
			sum := 0.0
			for _, a := range p.areas {
				sum += a.points[i].y
			}
			see(sum)
		}
	}
	return low, high
}

// tickLatency writes a round number of milliseconds: 200 µs, 1 ms, 5 s.
func tickLatency(ms float64) string {
	if ms == 0 {
		return "0"
	}
	s := scale{"µs", 1e-3}
	if ms >= 1000*(1-1e-9) {
		s = scale{"s", 1000}
	} else if ms >= 1-1e-9 {
		s = scale{"ms", 1}
	}
	return trimmed(ms/s.size) + " " + s.name
}

// tickCount writes a round count: 0, 500, 2,000, 50 k, 2 M.
func tickCount(v float64) string {
	switch {
	case v >= 1e6:
		return trimmed(v/1e6) + " M"
	case v >= 1e4:
		return trimmed(v/1e3) + " k"
	case v >= 1000:
		return grouped(int64(math.Round(v)))
	default:
		return trimmed(v)
	}
}

func trimmed(v float64) string {
	return strconv.FormatFloat(math.Round(v*1e6)/1e6+0, 'f', -1, 64)
}

// named is one distribution in a plot of percentiles.
type named struct {
	class, name string
	h           *Histogram
}

// percentilePlot has the percentiles on an axis where each nine takes the same room, as HDR histograms are usually drawn. Beyond the
// percentile that has ten samples above it the curve is faint: there it says little.
func percentilePlot(title string, all []named) *plot {
	p := &plot{title: title, yTick: tickLatency, log: true, xHigh: 1}
	var words []string
	for _, n := range all {
		if n.h.Count() == 0 {
			continue
		}
		end := min(max(math.Log10(float64(n.h.Count())), 0.5), 5)
		firm := min(max(math.Log10(float64(n.h.Count())/10), 0.31), end)
		p.xHigh = max(p.xHigh, end)
		// The first tenth is left out: it falls steeply to the minimum, which would take half of a logarithmic axis.
		const steps, start = 160, 0.0458
		ps := make([]float64, steps+1)
		at := func(i int) float64 { return start + (end-start)*float64(i)/steps }
		for i := range ps {
			ps[i] = 100 * (1 - math.Pow(10, -at(i)))
		}
		k := curve{class: n.class, name: n.name}
		for i, us := range n.h.ValueAtPercentilesSlice(ps) {
			q := point{x: at(i), y: float64(us) / 1000}
			if q.x <= firm {
				k.points = append(k.points, q)
				k.faint = append(k.faint[:0], q)
			} else {
				k.faint = append(k.faint, q)
			}
		}
		if len(k.faint) == 1 {
			k.faint = nil
		}
		p.lines = append(p.lines, k)
		for _, s := range percentiles {
			if at := nines(s.p); at <= end {
				v := n.h.Ms(s.p)
				p.marks = append(p.marks, mark{n.class, point{x: at, y: v}, n.name + " " + s.name + ": " + latency(v)})
			}
		}
		words = append(words, fmt.Sprintf("%s: p50 %s, p99 %s, max %s", n.name, latency(n.h.Ms(50)), latency(n.h.Ms(99)), latency(n.h.MaxMs())))
	}
	p.description = strings.Join(words, "; ") + "."
	for _, s := range percentiles {
		if at := nines(s.p); at <= p.xHigh+1e-9 {
			p.xTicks = append(p.xTicks, tick{at, strings.TrimPrefix(s.name, "p")})
		}
	}
	if p.xHigh >= 5 {
		p.xTicks = append(p.xTicks, tick{5, "99.999"})
	}
	return p
}

// nines is where a percentile stands on the axis: 90 at 1, 99 at 2, 99.9 at 3.
func nines(percentile float64) float64 { return -math.Log10(1 - percentile/100) }

// bin is a stretch of the series. Counts are a second.
type bin struct {
	from, to                                             float64
	offered, acked, deferred, refused, errors, dropped   float64
	inFlight, waiting, ackP50, ackP99, serverCPU, memory float64
}

// bins sums the series up to n stretches at most: rates are means, p99, waiting and memory the highest.
func bins(series []Second, n int) []bin {
	if len(series) == 0 {
		return nil
	}
	each := (len(series) + n - 1) / n
	var out []bin
	from := 0.0
	for len(series) > 0 {
		part := series[:min(each, len(series))]
		series = series[len(part):]
		b := bin{from: from, to: part[len(part)-1].At}
		if !(b.to > from) || b.to > 1e9 {
			b.to = from + float64(len(part)) // times that do not rise: as if there was one a second
		}
		from = b.to
		of := float64(len(part))
		for i := range part {
			s := &part[i]
			b.offered += count(s.Offered) / of
			b.acked += count(s.Acknowledged) / of
			b.deferred += count(s.Deferred) / of
			b.refused += count(s.Refused) / of
			b.errors += count(s.Errors) / of
			b.dropped += count(s.Dropped) / of
			b.inFlight = max(b.inFlight, count(s.InFlight))
			b.waiting = max(b.waiting, count(s.Waiting))
			b.ackP50 += positive(s.AckP50Ms) / of
			b.ackP99 = max(b.ackP99, positive(s.AckP99Ms))
			b.serverCPU += positive(s.ServerCPU) / of
			b.memory = max(b.memory, count(s.ServerRSS))
		}
		out = append(out, b)
	}
	return out
}

func count(n int64) float64      { return float64(max(n, 0)) }
func positive(v float64) float64 { return min(max(v, 0), 1e15) }
func (b *bin) middle() float64   { return (b.from + b.to) / 2 }
func (b *bin) clock() string     { return clock(b.to) }
func end(bs []bin) float64       { return bs[len(bs)-1].to }

// clock writes a time since the start: 45 s, 2:30, 1:02:30.
func clock(seconds float64) string {
	n := int64(math.Round(seconds))
	switch {
	case n >= 3600:
		return fmt.Sprintf("%d:%02d:%02d", n/3600, n/60%60, n%60)
	case n > 90:
		return fmt.Sprintf("%d:%02d", n/60, n%60)
	default:
		return fmt.Sprintf("%d s", n)
	}
}

// timeTicks are round for a clock.
func timeTicks(high float64) []tick {
	step := 1.0
	for _, s := range []float64{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400} {
		step = s
		if high/s <= 7 {
			break
		}
	}
	step = max(step, niceStep(high/7))
	var ticks []tick
	for v := 0.0; v <= high*(1+1e-9) && len(ticks) < 10; v += step {
		ticks = append(ticks, tick{v, clock(v)})
	}
	return ticks
}

// outcomes of messages, in the order in which they are stacked.
var outcomes = []struct {
	class, name string
	of          func(*bin) float64
	total       func(*Totals) int64
}{
	{"c-acked", "acked", func(b *bin) float64 { return b.acked }, func(t *Totals) int64 { return t.Acknowledged }},
	{"c-4xx", "4xx", func(b *bin) float64 { return b.deferred }, func(t *Totals) int64 { return t.Deferred }},
	{"c-5xx", "5xx", func(b *bin) float64 { return b.refused }, func(t *Totals) int64 { return t.Refused }},
	{"c-errors", "errors", func(b *bin) float64 { return b.errors }, func(t *Totals) int64 { return t.Errors }},
	{"c-dropped", "dropped", func(b *bin) float64 { return b.dropped }, func(t *Totals) int64 { return t.Dropped }},
}

// timed turns bins into points; it skips those that f says nothing about.
func timed(bs []bin, f func(*bin) float64) []point {
	points := make([]point, 0, len(bs))
	gap := false
	for i := range bs {
		v := f(&bs[i])
		if math.IsNaN(v) {
			gap = true
			continue
		}
		x := bs[i].middle()
		switch i { // from edge to edge
		case 0:
			x = bs[i].from
		case len(bs) - 1:
			x = bs[i].to
		}
		points = append(points, point{x: x, y: v, lifted: gap && len(points) > 0})
		gap = false
	}
	return points
}

func ratePlot(bs []bin, open bool) *plot {
	p := &plot{title: "Rate over time", yTick: tickCount, xHigh: end(bs), xTicks: timeTicks(end(bs))}
	for _, o := range outcomes {
		k := curve{class: o.class, name: o.name, points: timed(bs, o.of)}
		for _, q := range k.points {
			if q.y > 0 {
				p.areas = append(p.areas, k)
				break
			}
		}
	}
	if open {
		p.lines = append(p.lines, curve{class: "c-offered", name: "offered", points: timed(bs, func(b *bin) float64 { return b.offered })})
	}
	low, high := math.MaxFloat64, 0.0
	for i := range bs {
		low, high = min(low, bs[i].acked), max(high, bs[i].acked)
		text := fmt.Sprintf("%s: offered %s/s", bs[i].clock(), figure(bs[i].offered))
		for _, o := range outcomes {
			if v := o.of(&bs[i]); v > 0 {
				text += fmt.Sprintf(", %s %s/s", o.name, figure(v))
			}
		}
		p.hints = append(p.hints, hint{bs[i].from, bs[i].to, text})
	}
	p.description = fmt.Sprintf("Messages acknowledged a second, from %s to %s.", figure(low), figure(high))
	return p
}

func ackPlot(bs []bin) *plot {
	// A stretch without any ack has no latency; zero it is not.
	measured := func(b *bin, ms float64) float64 {
		if b.ackP99 == 0 {
			return math.NaN()
		}
		return ms
	}
	p := &plot{title: "Ack latency over time", yTick: tickLatency, xHigh: end(bs), xTicks: timeTicks(end(bs))}
	p.lines = []curve{
		{class: "c-ack99", name: "p99", points: timed(bs, func(b *bin) float64 { return measured(b, b.ackP99) })},
		{class: "c-ack", name: "p50", points: timed(bs, func(b *bin) float64 { return measured(b, b.ackP50) })},
	}
	low, high := p.extent()
	p.log = high > 20*low
	worst := &bs[0]
	for i := range bs {
		if bs[i].ackP99 > worst.ackP99 {
			worst = &bs[i]
		}
		p.hints = append(p.hints, hint{bs[i].from, bs[i].to, fmt.Sprintf("%s: ack p50 %s, p99 %s", bs[i].clock(), latency(bs[i].ackP50), latency(bs[i].ackP99))})
	}
	p.description = fmt.Sprintf("The highest p99 is %s at %s.", latency(worst.ackP99), worst.clock())
	return p
}

// gaugePlot is one measured value over time.
func gaugePlot(title, class string, bs []bin, f func(*bin) float64, tick, say func(float64) string) *plot {
	p := &plot{title: title, yTick: tick, xHigh: end(bs), xTicks: timeTicks(end(bs))}
	points := timed(bs, f)
	p.areas = []curve{{class: class + " soft", points: points}}
	p.lines = []curve{{class: class, points: points}}
	high := 0.0
	for i := range bs {
		high = max(high, f(&bs[i]))
		p.hints = append(p.hints, hint{bs[i].from, bs[i].to, bs[i].clock() + ": " + say(f(&bs[i]))})
	}
	p.description = "At most " + say(high) + "."
	return p
}
