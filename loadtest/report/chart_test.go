package report

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func exampleChart() Chart {
	return Chart{
		Title: "Messages acknowledged a second, on one core", Subtitle: "4 KiB messages, 100 connections; the median and range of five runs", Unit: "msg/s", Log: true,
		Note: "Logarithmic scale; more is better",
		Bars: []Bar{
			{Label: "smtp-sink", Value: 66700, Low: 61000, High: 70100, Class: "throws mail away"},
			{Label: "fastedge", Value: 18500, Low: 17900, High: 19200, Class: "synced before 250", Highlight: true},
			{Label: "Postfix", Value: 431, Low: 402, High: 455, Class: "synced before 250"},
			{Label: "OpenSMTPD", Value: 312, Low: 260, High: 330, Class: "synced before 250"},
			{Label: "Exim <4.96> & \"friends\"", Value: 57.3, Low: 51, High: 60, Class: "accepted, not synced"},
		},
	}
}

func TestChartIsAnImageByItself(t *testing.T) {
	linear := exampleChart()
	linear.Log, linear.Bars = false, linear.Bars[1:3]
	for name, c := range map[string]Chart{
		"chart-log.svg": exampleChart(), "chart-linear.svg": linear, "chart-empty.svg": {},
		"chart-odd.svg": {Log: true, Bars: []Bar{{Label: "zero"}, {Label: "negative", Value: -3}, {Label: "none", Value: math.NaN()}, {Label: "endless", Value: math.Inf(1)}}},
	} {
		var b bytes.Buffer
		if err := WriteChart(&b, c); err != nil {
			t.Fatal(err)
		}
		strictXML(t, b.Bytes())
		for _, bad := range []string{"NaN\"", "Inf\"", "e+", "<4.96>"} {
			if strings.Contains(b.String(), bad) {
				t.Errorf("%s: has %s", name, bad)
			}
		}
		if dir := os.Getenv("FASTEDGE_REPORT_EXAMPLES"); dir != "" {
			if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestTicksAreRoundAndFew(t *testing.T) {
	for _, a := range []axis{linearAxis(4997, 0, 1, 5), linearAxis(0.37, 0, 1, 5), linearAxis(0, 0, 1, 5), linearAxis(math.Inf(1), 0, 1, 5), linearAxis(1e300, 0, 1, 5),
		logAxis(0.4, 44, 0, 1), logAxis(1, 1, 0, 1), logAxis(1e-300, 1e300, 0, 1), logAxis(math.NaN(), math.NaN(), 0, 1)} {
		ticks := a.ticks(5)
		if len(ticks) < 2 || len(ticks) > 12 {
			t.Errorf("%+v: %d ticks", a, len(ticks))
		}
		for i, v := range ticks {
			if v < a.low*(1-1e-9) || v > a.high*(1+1e-9) || i > 0 && v <= ticks[i-1] {
				t.Errorf("%+v: ticks %v", a, ticks)
				break
			}
		}
	}
	if a := linearAxis(4997, 0, 1, 5); a.high != 5000 {
		t.Errorf("high %v", a.high)
	}
}

func TestLabelsAreSpread(t *testing.T) {
	for _, ys := range [][]float64{{50, 50, 50}, {0, 1, 2}, {99, 99, 100}, {10, 90}, {}} {
		var labels []label
		for _, y := range ys {
			labels = append(labels, label{y: y})
		}
		spread(labels, 15, 0, 100)
		for i := range labels {
			if labels[i].y < 0 || labels[i].y > 100 || i > 0 && labels[i].y-labels[i-1].y < 15 {
				t.Errorf("%v: %+v", ys, labels)
			}
		}
	}
}
