package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// scale is a unit and how many of the base unit it is.
type scale struct {
	name string
	size float64
}

// latencyScale picks one unit for a whole line of latencies: small is its typical figure and large its longest, in milliseconds.
func latencyScale(small, large float64) scale {
	switch {
	case small >= 1000:
		return scale{"s", 1000}
	case small >= 0.1 || large >= 1000:
		return scale{"ms", 1}
	default:
		return scale{"µs", 1e-3}
	}
}

// latency formats milliseconds with a unit of their own: 850 µs, 1.40 ms, 2.50 s.
func latency(ms float64) string {
	if ms == 0 {
		return "0"
	}
	s := latencyScale(ms, ms)
	return figure(ms/s.size) + " " + s.name
}

// figure has three significant digits, and separators from a thousand on: 0.012, 1.40, 44.0, 312, 12,345. No figure ends with an
// exponent; what cannot be told from 0 is 0.
func figure(v float64) string {
	if !finite(v) {
		return "–"
	}
	a := math.Abs(v)
	switch {
	case a == 0 || a < 0.0005:
		return "0"
	case a < 0.0995:
		return strconv.FormatFloat(v, 'f', 3, 64)
	case a < 9.995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case a < 99.95:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a < 1e15:
		return grouped(int64(math.Round(v)))
	default:
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
}

// grouped writes 1234567 as 1,234,567.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	var b strings.Builder
	b.WriteString(sign)
	for i := range len(s) {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// perHour is a rate as senders of bulk mail speak of it: 18.0 M/h, 360 k/h.
func perHour(rate float64) string {
	h := rate * 3600
	switch {
	case h >= 1e6:
		return figure(h/1e6) + " M/h"
	case h >= 1e3:
		return figure(h/1e3) + " k/h"
	default:
		return figure(h) + "/h"
	}
}

// octets formats a size in binary units.
func octets(n float64) string {
	for _, s := range []scale{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if math.Abs(n) >= s.size {
			return figure(n/s.size) + " " + s.name
		}
	}
	return figure(n) + " B"
}

// span formats the length of a run.
func span(seconds float64) string {
	switch {
	case seconds >= 3600:
		return fmt.Sprintf("%d h %d min", int64(seconds)/3600, int64(seconds)/60%60)
	case seconds >= 120:
		return fmt.Sprintf("%d min %d s", int64(seconds)/60, int64(seconds)%60)
	case seconds >= 10:
		return strconv.FormatFloat(seconds, 'f', 0, 64) + " s"
	default:
		return strconv.FormatFloat(seconds, 'f', 1, 64) + " s"
	}
}

// percent formats a share; 60% rather than 60.0%.
func percent(share float64) string {
	return strings.TrimSuffix(strings.TrimSuffix(figure(100*share), ".00"), ".0") + "%"
}

// inUnit formats a value that Lookup returned.
func inUnit(v float64, unit string) string {
	switch unit {
	case "ms":
		return latency(v)
	case "B":
		return octets(v)
	case "/s":
		return figure(v) + "/s"
	case "s":
		return figure(v) + " s"
	case "%":
		return figure(v) + "%"
	case "":
		return grouped(int64(v))
	default:
		return figure(v) + " " + unit
	}
}

// plural is "1 connection", "200 connections".
func plural(n int64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return grouped(n) + " " + one + "s"
}
