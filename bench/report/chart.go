package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"strings"
)

// chart draws the server CPU for each message of 4 KiB, one bar a server, on a logarithmic scale: the servers are up to a
// hundred times apart. The class is told by colour and in words. Colours follow the reader's light or dark scheme.
func (res *result) chart() []byte {
	const (
		width            = 820
		left, right, top = 120, 210, 64 // margins: names, figures, title
		step, thick      = 28, 18       // from bar to bar; of a bar
	)
	var bars []*row
	class := make(map[string]string)
	lowest, highest := math.Inf(1), 0.0
	for _, s := range res.byCPU() {
		if w := res.row("4k", s.Name); w != nil && w.CPUMicros != nil && w.CPUMicros.Median > 0 {
			bars = append(bars, w)
			class[s.Name] = s.Class
			lowest, highest = min(lowest, w.CPUMicros.Median), max(highest, w.CPUMicros.Median)
		}
	}
	if len(bars) == 0 {
		lowest, highest = 10, 100
	}
	// Whole decades; a bar begins at the left edge, so the lowest must not be there.
	from, to := math.Floor(math.Log10(lowest*0.999)), math.Ceil(math.Log10(highest))
	x := func(v float64) float64 {
		return left + (math.Log10(v)-from)/(to-from)*(width-left-right)
	}
	height := top + len(bars)*step + 46
	bottom := top + len(bars)*step + 4

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-labelledby="title">
<title id="title">Server CPU for each message of 4 KiB, in microseconds, by server</title>
<style>
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 11px; fill: #59636e; }
  .head { font-size: 15px; font-weight: 600; }
  .ours { font-weight: 700; }
  .back { fill: #ffffff; }
  .grid { stroke: #d1d9e0; }
  .durable { fill: #1a7f37; }
  .accepted { fill: #bf8700; }
  .discard { fill: #818b98; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .small { fill: #9198a1; }
    .back { fill: #0d1117; }
    .grid { stroke: #3d444d; }
    .durable { fill: #3fb950; }
    .accepted { fill: #d29922; }
    .discard { fill: #656c76; }
  }
</style>
<rect class="back" width="100%%" height="100%%"/>
<text class="head" x="16" y="26">Server CPU for each message of 4 KiB, microseconds</text>
<text class="small" x="16" y="45">lower is better, logarithmic scale; %d connections, one core; the words say whether the message was on disk before the 250</text>
`, width, height, width, height, res.Connections)
	for d := from; d <= to; d++ {
		v := math.Pow(10, d)
		fmt.Fprintf(&b, "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>\n", x(v), top-6, x(v), bottom)
		fmt.Fprintf(&b, "<text class=\"small\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", x(v), bottom+15, strings.TrimSuffix(number(v), ".0"))
	}
	for i, w := range bars {
		y := top + i*step
		name := ""
		if w.Server == "fastedge" {
			name = ` class="ours"`
		}
		fmt.Fprintf(&b, "<text%s x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", name, left-8, y+14, html.EscapeString(w.Server))
		fmt.Fprintf(&b, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\"/>\n", class[w.Server], left, y, x(w.CPUMicros.Median)-left, thick)
		fmt.Fprintf(&b, "<text%s x=\"%.1f\" y=\"%d\">%s · %s</text>\n", name, x(w.CPUMicros.Median)+6, y+14, number(w.CPUMicros.Median), onDiskWords[class[w.Server]])
	}
	fmt.Fprintf(&b, "<text class=\"small\" x=\"16\" y=\"%d\">%s</text>\n</svg>\n", height-10,
		html.EscapeString(fmt.Sprintf("%s, %d cores, %s, %s; commit %s, %s", res.CPU, res.Cores, res.Kernel, res.FileSystem, res.Commit, res.Date)))
	return b.Bytes()
}

// onDiskWords name the classes beside the bars.
var onDiskWords = map[string]string{
	classDurable:  "on disk",
	classAccepted: "stored, not synced",
	classDiscard:  "thrown away",
}
