package report

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// canvas collects the elements of one SVG image. Colours come from classes, so that one style sheet gives light and dark; there are no
// style attributes, which the page's content security policy forbids.
type canvas struct {
	strings.Builder
	width, height float64
}

// open starts the image. The title is read out by screen readers, and the description is what they offer instead of the picture; both
// are text and escaped here. id is unique in the page.
func (c *canvas) open(id, class, title, description string) {
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" class="%s" viewBox="0 0 %s %s" role="img" aria-labelledby="%s-t %s-d">`,
		class, px(c.width), px(c.height), id, id)
	fmt.Fprintf(c, `<title id="%s-t">%s</title><desc id="%s-d">%s</desc>`, id, html.EscapeString(title), id, html.EscapeString(description))
}

func (c *canvas) close() { c.WriteString("</svg>") }

func (c *canvas) text(class, anchor string, x, y float64, s string) {
	fmt.Fprintf(c, `<text class="%s" x="%s" y="%s" text-anchor="%s">%s</text>`, class, px(x), px(y), anchor, html.EscapeString(s))
}

func (c *canvas) rule(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(c, `<line class="%s" x1="%s" y1="%s" x2="%s" y2="%s"/>`, class, px(x1), px(y1), px(x2), px(y2))
}

func (c *canvas) rect(class string, x, y, w, h float64) {
	fmt.Fprintf(c, `<rect class="%s" x="%s" y="%s" width="%s" height="%s"/>`, class, px(x), px(y), px(max(0, w)), px(max(0, h)))
}

// point is a place; lifted: no line leads there from the one before.
type point struct {
	x, y   float64
	lifted bool
}

func (c *canvas) line(class string, points []point) {
	if len(points) == 0 {
		return
	}
	fmt.Fprintf(c, `<path class="%s" d="%s"/>`, class, path(points))
}

// area fills between an upper and a lower edge, both from left to right.
func (c *canvas) area(class string, upper, lower []point) {
	if len(upper) == 0 {
		return
	}
	back := slices.Clone(lower)
	slices.Reverse(back)
	fmt.Fprintf(c, `<path class="%s" d="%sL%sZ"/>`, class, path(upper), path(back)[1:])
}

func path(points []point) string {
	var b strings.Builder
	for i, p := range points {
		if i == 0 || p.lifted {
			b.WriteByte('M')
		} else {
			b.WriteByte('L')
		}
		b.WriteString(px(p.x) + " " + px(p.y))
	}
	return b.String()
}

// px writes a coordinate. A record that somebody made up may hold any number, so what cannot be drawn is drawn at the edge.
func px(v float64) string {
	if math.IsNaN(v) {
		v = 0
	}
	v = math.Round(min(max(v, -1e5), 1e5)*10) / 10
	return strconv.FormatFloat(v+0, 'f', -1, 64)
}

// axis maps values to coordinates, linearly or by logarithm.
type axis struct {
	low, high float64 // values; low > 0 when log
	from, to  float64 // coordinates
	log       bool
}

func (a axis) at(v float64) float64 {
	share := 0.0
	if a.log {
		share = math.Log(max(v, a.low)/a.low) / math.Log(a.high/a.low)
	} else {
		share = (v - a.low) / (a.high - a.low)
	}
	return a.from + min(max(share, 0), 1)*(a.to-a.from)
}

// ticks are round values within the axis, about n of them.
func (a axis) ticks(n int) []float64 {
	if a.log {
		return a.logTicks(n)
	}
	step := niceStep((a.high - a.low) / float64(max(n, 1)))
	var ticks []float64
	for i := math.Ceil(a.low/step - 1e-9); i*step <= a.high*(1+1e-9) && len(ticks) < 50; i++ {
		ticks = append(ticks, i*step+0) // + 0: never -0
	}
	return ticks
}

// logTicks are powers of ten, with 2 and 5 between them when there is room.
func (a axis) logTicks(n int) []float64 {
	first, last := math.Floor(math.Log10(a.low)+1e-9), math.Ceil(math.Log10(a.high)-1e-9)
	between := []float64{1}
	if decades := math.Log10(a.high / a.low); decades*3 <= 2*float64(n) {
		between = []float64{1, 2, 5}
	}
	stride := max(1, math.Ceil((last-first)/float64(max(n, 1))))
	var ticks []float64
	for e := first; e <= last && len(ticks) < 50; e += stride {
		for _, m := range between {
			if v := m * math.Pow(10, e); v >= a.low*(1-1e-9) && v <= a.high*(1+1e-9) {
				ticks = append(ticks, v)
			}
		}
	}
	return ticks
}

// niceStep rounds up to 1, 2 or 5 times a power of ten.
func niceStep(v float64) float64 {
	if !(v > 0) || math.IsInf(v, 0) {
		return 1
	}
	ten := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*ten*(1+1e-9) {
			return m * ten
		}
	}
	return 10 * ten
}

// linearAxis goes from 0 to a round value not below high.
func linearAxis(high, from, to float64, n int) axis {
	if !(high > 0) || !finite(high) {
		high = 1
	}
	high = min(high, 1e15)
	step := niceStep(high / float64(n))
	return axis{low: 0, high: step * math.Ceil(high/step-1e-9), from: from, to: to}
}

// logAxis holds low and high with a little air, and spans a decade at least.
func logAxis(low, high, from, to float64) axis {
	if !(low > 0) || !finite(low) {
		low = 1
	}
	if !(high > low) || !finite(high) {
		high = low
	}
	low, high = roundLog(max(low, 1e-9), math.Floor), roundLog(min(high, 1e15), math.Ceil)
	if high < 10*low {
		high = 10 * low
	}
	return axis{low: low, high: high, from: from, to: to, log: true}
}

// roundLog rounds to 1, 2 or 5 times a power of ten, down or up.
func roundLog(v float64, direction func(float64) float64) float64 {
	ten := math.Pow(10, math.Floor(math.Log10(v)+1e-9))
	steps := []float64{1, 2, 5, 10}
	if direction(0.5) == 0 {
		for _, m := range slices.Backward(steps) {
			if m*ten <= v*(1+1e-9) {
				return m * ten
			}
		}
		return ten
	}
	for _, m := range steps {
		if m*ten >= v*(1-1e-9) {
			return m * ten
		}
	}
	return 10 * ten
}

// label is text that wants to stand at y and may be moved.
type label struct {
	class, text string
	y           float64
}

// spread moves labels apart so that none stands closer than gap to the next, and all within low to high, keeping their order.
func spread(labels []label, gap, low, high float64) {
	slices.SortStableFunc(labels, func(a, b label) int { return compareFloat(a.y, b.y) })
	for i := range labels {
		least := low
		if i > 0 {
			least = labels[i-1].y + gap
		}
		labels[i].y = max(labels[i].y, least)
	}
	for i := len(labels) - 1; i >= 0; i-- {
		most := high
		if i < len(labels)-1 {
			most = labels[i+1].y - gap
		}
		labels[i].y = min(labels[i].y, most)
	}
}

func compareFloat(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return 0
	}
}

// textWidth estimates the width of s at a font size, for a sans-serif of usual proportions. It errs on the wide side.
func textWidth(s string, size float64) float64 {
	return float64(utf8.RuneCountInString(s)) * size * 0.58
}
