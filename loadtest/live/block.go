package live

import (
	"math"
	"strings"
	"time"
)

const (
	margin  = 11 // columns of a label
	maxWide = 100
)

func (v *View) drawBlock(s *Snapshot) {
	width := v.width(80)
	rows := v.block(s, width)
	if v.o.Height != nil {
		if h := v.o.Height(); h > 0 && h < len(rows) {
			rows = rows[:h]
		}
	}
	if v.drawn == nil {
		v.out = append(v.out, hideCursor...)
	}
	v.top()
	v.out = append(v.out, wrapOff...)
	v.drawn = v.drawn[:0]
	for i, r := range rows {
		if i > 0 {
			v.newline()
		}
		if i == len(rows)-1 {
			v.out = append(v.out, eraseBelow...)
		}
		if r.cols < width {
			v.out = append(append(v.out, r.out...), eraseRight...)
		} else { // the cursor stays on the last character: erasing behind would take that
			v.out = append(append(v.out, eraseRight...), r.out...)
		}
		v.drawn = append(v.drawn, r.cols)
	}
	v.out = append(v.out, wrapOn...)
}

// block lays the lines out.
func (v *View) block(s *Snapshot, width int) (rows []*row) {
	line := func(label string) *row {
		r := &row{width: width, color: v.o.Color}
		if width >= 3*margin {
			label = pad(label, 1-margin)
		}
		r.put(dim, label+" ")
		rows = append(rows, r)
		return r
	}
	title := &row{width: width, color: v.o.Color}
	text := printable(v.o.Title)
	title.put(bold, text[:min(len(text), max(width, 0))])
	rows = append(rows, title)

	v.progress(line(s.Phase), s)

	r := line("rate")
	r.put(bold, perSecond(s.Rate))
	if s.Offered > 0 {
		r.put("", "  of "+perSecond(s.Offered)+" offered")
	}
	if n := min(r.left()-2, len(v.rate)); n > 0 {
		r.put("", "  ")
		r.put(cyan, v.sparkline(v.rate[len(v.rate)-n:]))
	}

	r = line("messages")
	r.outcome("acked", green, s.Acknowledged)
	r.outcome("   4xx", yellow, s.Deferred)
	r.outcome("   5xx", red, s.Refused)
	r.outcome("   errors", red, s.Errors)
	if v.open {
		r.outcome("   dropped", red, s.Dropped)
	}

	r = line("now")
	r.put("", "in flight "+count(int64(s.InFlight)))
	if v.open {
		r.put("", "   waiting "+count(int64(s.Waiting)))
	}
	r.put("", "   connections "+count(int64(s.Connections)))

	r = line("ack")
	r.put("", "p50 "+v.latency(s.AckP50))
	r.put("", "   p99 "+v.latency(s.AckP99))

	if s.ServerCPU != 0 || s.ServerRSS != 0 {
		r = line("server")
		r.put("", cores(s.ServerCPU)+" cores")
		if s.ServerRSS > 0 {
			r.put("", "   "+mebibytes(s.ServerRSS))
		}
	}
	line("generator").put("", cores(s.GeneratorCPU)+" cores")
	return rows
}

// outcome adds a count, in color if there is reason to look.
func (r *row) outcome(name, color string, n int64) {
	if n == 0 {
		color = ""
	}
	text := name + " "
	if r.cols+len(text)+len(count(n)) > r.width {
		r.full = true // not a name without its figure
	}
	r.put("", text)
	r.put(color, count(n))
}

// progress is a bar with the time before and behind it: 53 %  12 s, 28 s left.
func (v *View) progress(r *row, s *Snapshot) {
	text := whole(s.Elapsed)
	if s.Left > 0 {
		text += ", " + whole(s.Left) + " left"
	}
	if s.Progress >= 0 { // also not a number
		done := min(s.Progress, 1)
		percent := pad(count(int64(done*100)), 3) + " %  "
		if room := min(r.left(), maxWide-margin) - len(percent) - len(text) - 2; room >= 10 {
			room = min(room, 40)
			full, empty := "#", "-"
			if v.o.Unicode {
				full, empty = "█", "░"
			}
			n := int(math.Round(done * float64(room)))
			r.put(green, strings.Repeat(full, n))
			r.put(dim, strings.Repeat(empty, room-n))
			r.put("", "  ")
		}
		r.put("", percent)
	}
	r.put("", text)
}

// sparkline draws values between zero and the largest of them.
func (v *View) sparkline(values []float64) string {
	levels := []rune("_.-=+*#@")
	if v.o.Unicode {
		levels = []rune("▁▂▃▄▅▆▇█")
	}
	most := 0.0
	for _, x := range values {
		most = max(most, x)
	}
	out := make([]rune, len(values))
	for i, x := range values {
		level := 0
		if most > 0 && x > 0 {
			level = min(int(x/most*float64(len(levels))), len(levels)-1)
		}
		out[i] = levels[level]
	}
	return string(out)
}

func whole(d time.Duration) string {
	d = d.Truncate(time.Second)
	if d < 100*time.Second {
		return count(int64(d/time.Second)) + " s"
	}
	return strings.TrimSuffix(d.String(), "0s")
}
