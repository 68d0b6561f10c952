package report

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// MaxLatency is the longest latency that is told from a longer one.
const MaxLatency = time.Hour

// NewHistogram returns an empty histogram of microseconds, three significant digits, 1 µs to MaxLatency.
func NewHistogram() Histogram {
	return Histogram{hdrhistogram.New(1, MaxLatency.Microseconds(), 3)}
}

// Record counts one latency. Less than 1 µs counts as 1 µs, more than MaxLatency as MaxLatency: a sample is never left out.
func (h Histogram) Record(d time.Duration) {
	us := min(max(d, time.Microsecond), MaxLatency).Microseconds()
	if err := h.RecordValue(us); err != nil {
		panic(fmt.Sprintf("report: histogram of another geometry refuses %d µs: %v", us, err))
	}
}

// Count is the number of samples. A nil histogram has none.
func (h *Histogram) Count() int64 {
	if h == nil || h.Histogram == nil {
		return 0
	}
	return h.TotalCount()
}

// Ms is the given percentile, 0 to 100, in milliseconds; 0 when there are no samples.
func (h *Histogram) Ms(percentile float64) float64 {
	if h.Count() == 0 {
		return 0
	}
	return float64(h.ValueAtPercentile(percentile)) / 1000
}

// MinMs, MaxMs and MeanMs are in milliseconds; 0 when there are no samples.
func (h *Histogram) MinMs() float64 {
	if h.Count() == 0 {
		return 0
	}
	return float64(h.Min()) / 1000
}

// MaxMs: see MinMs.
func (h *Histogram) MaxMs() float64 {
	if h.Count() == 0 {
		return 0
	}
	return float64(h.Max()) / 1000
}

// MeanMs: see MinMs.
func (h *Histogram) MeanMs() float64 {
	if h.Count() == 0 {
		return 0
	}
	return h.Mean() / 1000
}

// histogramJSON is for people and scripts up to the last field, which is what counts when it is read back.
type histogramJSON struct {
	Count int64   `json:"count"`
	Min   float64 `json:"min"`
	Max   float64 `json:"max"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99.9"`
	P9999 float64 `json:"p99.99"`
	HDR   string  `json:"hdr,omitempty"`
}

// MarshalJSON writes the object that Histogram describes; an empty histogram has no "hdr".
func (h Histogram) MarshalJSON() ([]byte, error) {
	if h.Count() == 0 {
		return json.Marshal(histogramJSON{})
	}
	v2, err := h.EncodeV2()
	if err != nil {
		return nil, fmt.Errorf("report: encode histogram: %w", err)
	}
	return json.Marshal(histogramJSON{
		Count: h.TotalCount(), Min: h.MinMs(), Max: h.MaxMs(), Mean: math.Round(h.Mean()) / 1000,
		P50: h.Ms(50), P90: h.Ms(90), P99: h.Ms(99), P999: h.Ms(99.9), P9999: h.Ms(99.99), HDR: string(v2),
	})
}

// UnmarshalJSON takes the distribution from "hdr" alone; "count" must agree with it, so that a record that somebody edited by hand is
// noticed.
func (h *Histogram) UnmarshalJSON(text []byte) error {
	var j histogramJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	if j.HDR == "" {
		if j.Count != 0 {
			return fmt.Errorf("report: histogram of %d samples without \"hdr\"", j.Count)
		}
		*h = NewHistogram()
		return nil
	}
	if err := checkGeometry(j.HDR); err != nil {
		return fmt.Errorf("report: histogram: %w", err)
	}
	d, err := hdrhistogram.Decode([]byte(j.HDR))
	if err != nil {
		return fmt.Errorf("report: histogram: %w", err)
	}
	if d.TotalCount() != j.Count {
		return fmt.Errorf("report: histogram says %d samples and holds %d", j.Count, d.TotalCount())
	}
	h.Histogram = d
	return nil
}

// checkGeometry looks at the header of a V2 histogram before it is decoded. The decoder allocates what the header asks for, up to
// 50 MB; with three digits it is 450 kB at most.
//
// The 40 octets: cookie, length, offset and significant digits as int32; lowest and highest value as int64; a conversion ratio.
func checkGeometry(hdr string) error {
	raw, err := base64.StdEncoding.DecodeString(hdr)
	if err != nil {
		return err
	}
	if len(raw) < 8 {
		return errors.New("cut short")
	}
	z, err := zlib.NewReader(bytes.NewReader(raw[8:]))
	if err != nil {
		return err
	}
	var header [40]byte
	if _, err := io.ReadFull(z, header[:]); err != nil {
		return err
	}
	if digits := int32(binary.BigEndian.Uint32(header[12:])); digits < 1 || digits > 3 {
		return fmt.Errorf("%d significant digits; want 1 to 3", digits)
	}
	return nil
}
