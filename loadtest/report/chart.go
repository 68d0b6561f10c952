package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Chart is a picture of horizontal bars that stands by itself, for a README.
type Chart struct {
	Title, Subtitle string
	Unit            string // of the axis and of values without Text: "msg/s"
	Note            string // at the foot: what is better, how it was measured
	Log             bool   // a logarithmic axis; bars then start at a power of ten, not at 0
	Bars            []Bar
}

// Bar is one row of a Chart. Low and High are the range of repeated runs; both 0 when there is none.
type Bar struct {
	Label     string
	Value     float64
	Low, High float64
	Text      string // instead of the value: "12,300 msg/s"
	Class     string // rows of one class share a colour, explained above the bars when there are several
	Highlight bool
}

// chartCSS works where the image is shown by <img>, as GitHub does: the scheme is that of the reader.
const chartCSS = `
.paper{fill:#fff}.ink,.name{fill:#1a1f27}.quiet,.tick{fill:#5b6472}.grid{stroke:#e3e6eb}.range{stroke:#1a1f27;stroke-width:1.5}.band{fill:#0b6bb3;fill-opacity:.09}
.k0{fill:#2f7fc1}.k1{fill:#d98a00}.k2{fill:#00806a}.k3{fill:#8a3b8f}.k4{fill:#7d8590}
text{font:13px system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}.title{font-size:17px;font-weight:650}.bold{font-weight:700}.tick,.small{font-size:12px}
@media (prefers-color-scheme:dark){
.paper{fill:#12151a}.ink,.name{fill:#e7eaef}.quiet,.tick{fill:#a0a9b6}.grid{stroke:#2b323b}.range{stroke:#e7eaef}.band{fill:#5eb0f2;fill-opacity:.14}
.k0{fill:#4f9fdd}.k1{fill:#f2b544}.k2{fill:#3cc9ab}.k3{fill:#c987d0}.k4{fill:#8f98a5}}`

// classColours is how many classes have a colour of their own.
const classColours = 5

// WriteChart writes c as one SVG image with its own style, light and dark.
func WriteChart(w io.Writer, c Chart) error {
	const (
		width, margin = 800.0, 20.0
		row, thick    = 30.0, 16.0
		size          = 13.0
	)
	var classes []string
	low, high := 0.0, 0.0
	labels, values := 0.0, 0.0
	for i := range c.Bars {
		b := &c.Bars[i]
		if !slices.Contains(classes, b.Class) {
			classes = append(classes, b.Class)
		}
		for _, v := range []float64{b.Value, b.Low, b.High} {
			if finite(v) && v > 0 {
				high = max(high, v)
				if low == 0 || v < low {
					low = v
				}
			}
		}
		labels = max(labels, textWidth(b.Label, size+0.5))
		values = max(values, textWidth(c.text(b), size))
	}

	top := margin
	if c.Title != "" {
		top += 24
	}
	if c.Subtitle != "" {
		top += 20
	}
	subtitle, legend := top-6, top
	if len(classes) > 1 {
		legend += 4
		top += 28
	}
	top += 6
	bottom := top + row*float64(len(c.Bars))
	height := bottom + 26 + margin
	if c.Note != "" {
		height += 20
	}

	left := margin + min(labels, 260) + 12
	x := axis{}
	if c.Log {
		x = logAxis(low*0.999, high, left, width-margin-values-10)
		x.low = roundTen(x.low)
	} else {
		x = linearAxis(high, left, width-margin-values-10, 5)
	}

	s := &canvas{width: width, height: height}
	var words []string
	for i := range c.Bars {
		words = append(words, c.Bars[i].Label+": "+c.text(&c.Bars[i]))
	}
	s.openAlone(c.Title, strings.Join(words, "; ")+".")
	fmt.Fprintf(s, "<style>%s</style>", chartCSS)
	fmt.Fprintf(s, `<rect class="paper" width="%s" height="%s" rx="8"/>`, px(width), px(height))
	if c.Title != "" {
		s.text("ink title", "start", margin, margin+16, c.Title)
	}
	if c.Subtitle != "" {
		s.text("quiet", "start", margin, subtitle, c.Subtitle)
	}
	if len(classes) > 1 {
		at := margin
		for i, class := range classes {
			s.rect(classColour(i), at, legend+5, 11, 11)
			s.text("ink small", "start", at+16, legend+15, class)
			at += 16 + textWidth(class, 12) + 22
		}
	}
	free := 0.0
	ticks := x.ticks(int((x.to - x.from) / 80))
	if x.log {
		ticks = x.logTicks(int((x.to - x.from) / 110)) // 1, 2 and 5 only where all their texts have room
	}
	if len(c.Bars) == 0 {
		ticks = nil
	}
	for _, t := range ticks {
		at := x.at(t)
		s.rule("grid", at, top, at, bottom)
		text := tickCount(t)
		if half := textWidth(text, 12) / 2; at-half >= free {
			s.text("tick", "middle", at, bottom+18, text)
			free = at + half + 10
		}
	}
	if c.Unit != "" {
		s.text("tick", "end", width-margin, bottom+18, c.Unit)
	}
	for i := range c.Bars {
		b := &c.Bars[i]
		y := top + row*float64(i)
		weight := ""
		if b.Highlight {
			weight = " bold"
			fmt.Fprintf(s, `<rect class="band" x="%s" y="%s" width="%s" height="%s" rx="5"/>`, px(margin-10), px(y+1), px(width-2*margin+20), px(row-2))
		}
		middle := y + row/2
		s.text("ink"+weight, "end", left-10, middle+4.5, b.Label)
		to := x.from
		if b.Value > 0 && finite(b.Value) {
			to = x.at(b.Value)
			fmt.Fprintf(s, `<rect class="%s" x="%s" y="%s" width="%s" height="%s" rx="2.5"/>`, classColour(slices.Index(classes, b.Class)),
				px(x.from), px(middle-thick/2), px(max(1.5, to-x.from)), px(thick))
		}
		if b.High > 0 && b.High >= b.Low && finite(b.High) {
			lo, hi := x.at(b.Low), x.at(b.High)
			s.rule("range", lo, middle, hi, middle)
			s.rule("range", lo, middle-4, lo, middle+4)
			s.rule("range", hi, middle-4, hi, middle+4)
			to = max(to, hi)
		}
		s.text("ink"+weight, "start", to+8, middle+4.5, c.text(b))
	}
	if c.Note != "" {
		s.text("quiet small", "start", margin, height-margin+4, c.Note)
	}
	s.close()
	s.WriteByte('\n')
	_, err := io.WriteString(w, s.String())
	return err
}

func (c *Chart) text(b *Bar) string {
	switch {
	case b.Text != "":
		return b.Text
	case c.Unit != "":
		return figure(b.Value) + " " + c.Unit
	default:
		return figure(b.Value)
	}
}

func classColour(i int) string { return "k" + string(rune('0'+i%classColours)) }

// roundTen rounds down to a power of ten, where bars of a logarithmic axis start.
func roundTen(v float64) float64 {
	ten := 1.0
	for ten > v && ten > 1e-9 {
		ten /= 10
	}
	for ten*10 <= v*(1+1e-9) {
		ten *= 10
	}
	return ten
}
