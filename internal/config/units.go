package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes that is written with its unit, such as "25MiB".
type Size int64

// sizeUnits from the largest; formatting takes the first that divides, so binary units stand before their decimal neighbours.
var sizeUnits = [...]struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

const sizeHint = `write a whole number and B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, like "25MiB"`

// ParseSize reads a size: a whole number and a unit without white space between them. "0" needs no unit; nothing is negative.
func ParseSize(s string) (Size, error) {
	if s == "0" {
		return 0, nil
	}
	digits := 0
	for digits < len(s) && '0' <= s[digits] && s[digits] <= '9' {
		digits++
	}
	if digits == 0 {
		return 0, fmt.Errorf("%q is not a size: %s", s, sizeHint)
	}
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is too large for a size", s)
	}
	unit := s[digits:]
	if unit == "" {
		return 0, fmt.Errorf("%q has no unit: %s", s, sizeHint)
	}
	for _, u := range sizeUnits {
		if u.name == unit {
			if n > math.MaxInt64/u.bytes {
				return 0, fmt.Errorf("%q is too large for a size", s)
			}
			return Size(n * u.bytes), nil
		}
	}
	return 0, fmt.Errorf("%q has an unknown unit: %s", s, sizeHint)
}

// String is the shortest exact form that ParseSize reads back.
func (s Size) String() string {
	if s == 0 {
		return "0"
	}
	for _, u := range sizeUnits {
		if int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B" // not reached: B divides everything
}

// UnmarshalText is ParseSize.
func (s *Size) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSize(string(text))
	return err
}

// MarshalText is String.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

const day = 24 * time.Hour

const durationHint = `write numbers with d, h, m, s, ms or us, like "5m" or "1h30m"`

// ParseDuration is time.ParseDuration with days, without signs, and without bare numbers except "0".
func ParseDuration(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	tooLong := fmt.Errorf("%q is too long for a duration", s)
	total, rest := time.Duration(0), s
	for first := true; first || rest != ""; first = false {
		number := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		unit := len(rest) - number - len(strings.TrimLeft(rest[number:], "dhmsuµn"))
		if number == 0 {
			return 0, fmt.Errorf("%q is not a duration: %s", s, durationHint)
		}
		if number == len(rest) {
			return 0, fmt.Errorf("%q has no unit: %s", s, durationHint)
		}
		part := rest[:number+unit]
		rest = rest[number+unit:]
		d, err := parsePart(part)
		switch {
		case errors.Is(err, errRange):
			return 0, tooLong
		case err != nil:
			return 0, fmt.Errorf("%q is not a duration: %s", s, durationHint)
		case total > math.MaxInt64-d:
			return 0, tooLong
		}
		total += d
	}
	return total, nil
}

var errRange = errors.New("out of range")

// parsePart reads one number and its unit.
func parsePart(s string) (time.Duration, error) {
	days, ok := strings.CutSuffix(s, "d")
	if !ok {
		d, err := time.ParseDuration(s)
		if err == nil && d < 0 {
			err = errRange
		}
		return d, err
	}
	n, err := strconv.ParseInt(days, 10, 64)
	if err != nil && errors.Is(err, strconv.ErrRange) || n > int64(math.MaxInt64/day) {
		return 0, errRange
	}
	return time.Duration(n) * day, err
}

// FormatDuration is the form that ParseDuration reads back, without the zero parts of time.Duration's own: "5m", "1d12h".
func FormatDuration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	var b strings.Builder
	for _, u := range [...]struct {
		name string
		d    time.Duration
	}{{"d", day}, {"h", time.Hour}, {"m", time.Minute}} {
		if n := d / u.d; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10) + u.name)
			d %= u.d
		}
	}
	if d > 0 {
		b.WriteString(d.String())
	}
	return b.String()
}
