package live

import (
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

func appendInt(dst []byte, n int) []byte { return strconv.AppendInt(dst, int64(n), 10) }

// count writes 1234567 as 1,234,567.
func count(n int64) string {
	text := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}

// perSecond writes 8,123/s; below 100 with one decimal.
func perSecond(rate float64) string {
	if math.IsNaN(rate) || math.IsInf(rate, 0) {
		return "-/s"
	}
	if rate > 0 && rate < 99.95 {
		return strconv.FormatFloat(rate, 'f', 1, 64) + "/s"
	}
	return count(int64(math.Round(rate))) + "/s"
}

func cores(n float64) string { return strconv.FormatFloat(n, 'f', 2, 64) }

func mebibytes(n int64) string { return count((n+1<<19)>>20) + " MiB" }

// latency writes 850 µs, 1.2 ms, 44 ms, 2.5 s; two digits are what a glance takes in. Nothing measured yet is a dash.
func (v *View) latency(d time.Duration) string {
	micro := " µs"
	if !v.o.Unicode {
		micro = " us"
	}
	switch {
	case d <= 0:
		return "-"
	case d < time.Millisecond:
		return strconv.FormatInt(max(d.Microseconds(), 1), 10) + micro
	case d < time.Second:
		return short(d.Seconds()*1e3) + " ms"
	}
	return short(d.Seconds()) + " s"
}

func short(x float64) string {
	if x < 9.95 {
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return count(int64(math.Round(x)))
}

// pad fills to a width, on the left; on the right when it is negative.
func pad(text string, width int) string {
	if width < 0 {
		return text + strings.Repeat(" ", max(-width-utf8.RuneCountInString(text), 0))
	}
	return strings.Repeat(" ", max(width-utf8.RuneCountInString(text), 0)) + text
}
