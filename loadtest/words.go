package loadtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Range is a number of something, drawn evenly from Min to Max.
type Range struct{ Min, Max int }

func (r Range) String() string {
	if r.Min == r.Max {
		return strconv.Itoa(r.Min)
	}
	return fmt.Sprintf("%d..%d", r.Min, r.Max)
}

// ParseRange reads "3" or "1..5".
func ParseRange(s string) (Range, error) {
	low, high, two := strings.Cut(s, "..")
	a, err := strconv.Atoi(low)
	b := a
	if err == nil && two {
		b, err = strconv.Atoi(high)
	}
	if err != nil || a > b {
		return Range{}, fmt.Errorf("%q is not a number or a range such as 1..5", s)
	}
	return Range{a, b}, nil
}

// ParseShare reads "30%" or "0.3".
func ParseShare(s string) (float64, error) {
	number, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(number, 64)
	if percent {
		v /= 100
	}
	if err != nil || v < 0 || v > 1 || math.IsNaN(v) {
		return 0, fmt.Errorf("%q is not a share between 0%% and 100%%", s)
	}
	return v, nil
}

// ParseRate reads "5000", "5000/s", "300/m" or "1000000/h": messages a second.
func ParseRate(s string) (float64, error) {
	number, per, _ := strings.Cut(s, "/")
	v, err := strconv.ParseFloat(strings.ReplaceAll(number, ",", ""), 64)
	switch per {
	case "", "s":
	case "m", "min":
		v /= 60
	case "h":
		v /= 3600
	default:
		err = fmt.Errorf("unknown unit")
	}
	if err != nil || !(v > 0) || v > MaxRate {
		return 0, fmt.Errorf("%q is not a rate such as 5000/s, 300/m or 1000000/h, up to %v/s", s, MaxRate)
	}
	return v, nil
}

// ParseBytes reads "4096", "4KiB", "10MB": a number of octets.
func ParseBytes(s string) (int64, error) {
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.') {
		i++
	}
	v, err := strconv.ParseFloat(s[:i], 64)
	units := map[string]float64{"": 1, "B": 1, "k": 1e3, "kB": 1e3, "KB": 1e3, "KiB": 1 << 10, "K": 1 << 10, "MB": 1e6, "MiB": 1 << 20, "M": 1 << 20, "GiB": 1 << 30, "GB": 1e9}
	unit, known := units[strings.TrimSpace(s[i:])]
	if err != nil || !known || v*unit > 1<<50 {
		return 0, fmt.Errorf("%q is not a size such as 4KiB or 1MB", s)
	}
	return int64(v * unit), nil
}

// Ramp changes the rate evenly from From to To within Over, and keeps To afterwards.
type Ramp struct {
	From, To float64 // messages a second
	Over     time.Duration
}

func (r *Ramp) String() string { return fmt.Sprintf("%g..%g/s:%v", r.From, r.To, r.Over) }

// ParseRamp reads "0..10000/s:120s".
func ParseRamp(s string) (*Ramp, error) {
	rates, over, ok := strings.Cut(s, ":")
	from, to, ok2 := strings.Cut(rates, "..")
	r := &Ramp{}
	var err error
	if !ok || !ok2 {
		return nil, fmt.Errorf("%q is not a ramp such as 0..10000/s:120s", s)
	}
	if from != "0" {
		if r.From, err = ParseRate(from); err != nil {
			return nil, err
		}
	}
	if r.To, err = ParseRate(to); err != nil {
		return nil, err
	}
	r.Over, err = time.ParseDuration(over)
	if err != nil || r.Over <= 0 {
		return nil, fmt.Errorf("%q: how long does the ramp take? Such as 0..10000/s:120s", s)
	}
	return r, nil
}

// reaches says after how many seconds n messages were due: the inverse of the integral of rate.
func (r *Ramp) reaches(n float64) float64 {
	over := r.Over.Seconds()
	if whole := (r.From + r.To) / 2 * over; n >= whole {
		return over + (n-whole)/r.To
	}
	// n = From·t + a·t²/2 in the form that suits every sign of a, and a = 0.
	a := (r.To - r.From) / over
	return 2 * n / (r.From + math.Sqrt(max(0, r.From*r.From+2*a*n)))
}

// Sizes is a distribution of message sizes: octets of message data, header section included, as they arrive (no dot-stuffing).
type Sizes struct {
	text     string
	min, max int
	median   float64 // log-normal; 0: evenly from min to max
	sigma    float64
}

// FixedSize is always n octets.
func FixedSize(n int) Sizes { return Sizes{text: bytesText(n), min: n, max: n} }

// ParseSizes reads "4KiB", "1KiB..64KiB" (evenly) or "lognormal:MEDIAN:SIGMA", which is cut to between a sixteenth of the median
// (but 512 octets at least) and 64 times it.
func ParseSizes(s string) (Sizes, error) {
	size := Sizes{text: s}
	parse := func(s string) (n int) {
		v, err := ParseBytes(s)
		if err != nil || v < minMessageBytes || v > MaxMessageBytes {
			n = -1
			return n
		}
		return int(v)
	}
	bad := fmt.Errorf("%q is not a size such as 4KiB, 1KiB..64KiB or lognormal:16KiB:1.5, between %d octets and %s", s, minMessageBytes, bytesText(MaxMessageBytes))
	if rest, ok := strings.CutPrefix(s, "lognormal:"); ok {
		median, sigma, _ := strings.Cut(rest, ":")
		if sigma == "" {
			sigma = "1.5"
		}
		m := parse(median)
		v, err := strconv.ParseFloat(sigma, 64)
		if m < 0 || err != nil || !(v > 0) || v > 5 {
			return size, bad
		}
		size.median, size.sigma = float64(m), v
		size.min, size.max = max(minMessageBytes, m/16), min(MaxMessageBytes, m*64)
		return size, nil
	}
	low, high, two := strings.Cut(s, "..")
	size.min = parse(low)
	size.max = size.min
	if two {
		size.max = parse(high)
	}
	if size.min < 0 || size.max < size.min {
		return size, bad
	}
	return size, nil
}

func (s Sizes) isZero() bool   { return s.max == 0 }
func (s Sizes) String() string { return s.text }

func (s Sizes) check() error {
	if s.min < minMessageBytes || s.max > MaxMessageBytes {
		return fmt.Errorf("size is %s; it can be %d octets to %s", s.text, minMessageBytes, bytesText(MaxMessageBytes))
	}
	return nil
}

// classes draws the sizes that a run uses: a sample of the distribution, so that each can be prepared.
func (s Sizes) classes(random *rand.Rand) []int {
	if s.min == s.max {
		return []int{s.min}
	}
	const n = 256
	all := make([]int, n)
	for i := range all {
		if s.median > 0 {
			all[i] = int(s.median * math.Exp(s.sigma*random.NormFloat64()))
		} else {
			all[i] = s.min + (s.max-s.min)*i/(n-1)
		}
		all[i] = min(max(all[i], s.min), s.max)
	}
	slices.Sort(all)
	return all
}

func bytesText(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return strconv.Itoa(n)
}
