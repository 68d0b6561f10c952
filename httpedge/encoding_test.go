package httpedge

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
)

func gzipOf(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(p)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstdOf(t testing.TB, p []byte, options ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, append([]zstd.EOption{zstd.WithEncoderConcurrency(1)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(p)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// inflate reads a body whole.
func inflate(f *inflater, encoding string, r io.Reader, maxWire, maxInflated int64) ([]byte, error) {
	body, err := f.bodyReader([]byte(encoding), r, maxWire, maxInflated)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

const (
	wide             = 1 << 30
	testInflateBytes = 64 << 20
)

func TestBodiesAreDecodedByTheirCoding(t *testing.T) {
	f := newInflater(testInflateBytes)
	text := bytes.Repeat([]byte("some text that is repeated\r\n"), 5000)
	noise := make([]byte, 300_000)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	for name, p := range map[string][]byte{"nothing": {}, "short": []byte("x"), "text": text, "noise": noise} {
		for _, c := range []struct {
			encoding string
			wire     []byte
		}{
			{"", p}, {"identity", p}, {" Identity ", p},
			{"gzip", gzipOf(t, p)}, {"X-GZIP", gzipOf(t, p)},
			{"zstd", zstdOf(t, p, zstd.WithZeroFrames(true))}, {"zstd", zstdOf(t, p, zstd.WithZeroFrames(true), zstd.WithWindowSize(1<<10))},
			{"zstd", zstdOf(t, p, zstd.WithZeroFrames(true), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))},
			{"gzip", append(gzipOf(t, p[:len(p)/2]), gzipOf(t, p[len(p)/2:])...)},
			{"zstd", append(zstdOf(t, p[:len(p)/2], zstd.WithZeroFrames(true)), zstdOf(t, p[len(p)/2:], zstd.WithZeroFrames(true))...)},
		} {
			for _, r := range []io.Reader{bytes.NewReader(c.wire), iotest.HalfReader(bytes.NewReader(c.wire)), iotest.DataErrReader(bytes.NewReader(c.wire)),
				&randomReader{in: c.wire, next: 3}} {
				got, err := inflate(f, c.encoding, r, int64(len(c.wire)), int64(len(p)))
				if err != nil || !bytes.Equal(got, p) {
					t.Errorf("%s, %q, %d bytes on the wire: %d bytes of %d, %v", name, c.encoding, len(c.wire), len(got), len(p), err)
				}
			}
			// One byte less than is needed, on either side.
			if len(p) > 0 {
				if _, err := inflate(f, c.encoding, bytes.NewReader(c.wire), wide, int64(len(p)-1)); err != errTooLarge {
					t.Errorf("%s, %q, too many bytes come out: %v", name, c.encoding, err)
				}
			}
			if len(c.wire) > 0 {
				if _, err := inflate(f, c.encoding, bytes.NewReader(c.wire), int64(len(c.wire)-1), wide); err != errTooLarge {
					t.Errorf("%s, %q, too many bytes come in: %v", name, c.encoding, err)
				}
			}
		}
	}
	if used := f.used.Load(); used != 0 {
		t.Errorf("%d bytes in use", used)
	}
}

func TestOtherCodingsAreRefused(t *testing.T) {
	for _, encoding := range []string{"br", "deflate", "compress", "gzip, gzip", "identity, gzip", "*", "gzipp"} {
		if _, err := newInflater(testInflateBytes).bodyReader([]byte(encoding), nil, 1, 1); err != errEncoding {
			t.Errorf("%q: %v", encoding, err)
		}
	}
}

func TestDamagedBodiesAreTold(t *testing.T) {
	f := newInflater(testInflateBytes)
	p := bytes.Repeat([]byte("some text\r\n"), 100)
	zipped, z := gzipOf(t, p), zstdOf(t, p)
	flip := func(p []byte, i int) []byte { p = bytes.Clone(p); p[i] ^= 1; return p }
	for name, c := range map[string]struct {
		encoding string
		wire     []byte
	}{
		"gzip, empty": {"gzip", nil}, "gzip, not": {"gzip", p}, "gzip, cut": {"gzip", zipped[:len(zipped)-1]}, "gzip, header cut": {"gzip", zipped[:5]},
		"gzip, checksum": {"gzip", flip(zipped, len(zipped)-6)}, "gzip, more behind": {"gzip", append(bytes.Clone(zipped), 'x')},
		"zstd, empty": {"zstd", nil}, "zstd, not": {"zstd", p}, "zstd, cut": {"zstd", z[:len(z)-1]}, "zstd, header cut": {"zstd", z[:5]},
		"zstd, checksum": {"zstd", flip(z, len(z)-1)}, "zstd, more behind": {"zstd", append(bytes.Clone(z), "something"...)},
		// A window of 16 MiB, and a single segment of 16 MiB.
		"zstd, window":  {"zstd", []byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 14 << 3, 1, 0, 0}},
		"zstd, segment": {"zstd", []byte{0x28, 0xB5, 0x2F, 0xFD, 0xA0, 0, 0, 0, 1, 1, 0, 0}},
		// Small first, so that the decoder is one for small windows.
		"zstd, window later": {"zstd", append(zstdOf(t, []byte("x")), 0x28, 0xB5, 0x2F, 0xFD, 0x00, 13<<3, 1, 0, 0)},
	} {
		got, err := inflate(f, c.encoding, bytes.NewReader(c.wire), wide, wide)
		if !errors.Is(err, errBadEncoding) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if used := f.used.Load(); used != 0 {
		t.Errorf("%d bytes in use", used)
	}
}

func TestErrorsOfTheWireComeThroughTheDecoder(t *testing.T) {
	f := newInflater(testInflateBytes)
	broken := errors.New("broken")
	p := bytes.Repeat([]byte("some text\r\n"), 100)
	for encoding, wire := range map[string][]byte{"identity": p, "gzip": gzipOf(t, p), "zstd": zstdOf(t, p)} {
		for _, n := range []int{0, 3, 8, 20, len(wire) - 1} {
			r := io.MultiReader(bytes.NewReader(wire[:n]), iotest.ErrReader(broken))
			if _, err := inflate(f, encoding, r, wide, wide); err != broken {
				t.Errorf("%s after %d bytes: %v", encoding, n, err)
			}
		}
	}
}

// A few bytes that stand for very many must cost the memory of a decoder, and not that of what comes out.
func TestABombIsStoppedAtTheLimit(t *testing.T) {
	f := newInflater(testInflateBytes)
	const limit = 1 << 20
	for encoding, wire := range map[string][]byte{"gzip": gzipBomb(t), "zstd": zstdBomb()} {
		if len(wire) > 2<<20 {
			t.Fatalf("%s: %d bytes are no bomb", encoding, len(wire))
		}
		for range 2 { // once with a new decoder, once with a used one
			body, err := f.bodyReader([]byte(encoding), bytes.NewReader(wire), wide, limit)
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			n, err := io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{body})
			runtime.ReadMemStats(&after)
			body.Close()
			if n != limit || err != errTooLarge {
				t.Errorf("%s: %d bytes, %v", encoding, n, err)
			}
			if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 2*uint64(zstdBytes(maxZstdWindow)) {
				t.Errorf("%s: %d bytes allocated", encoding, allocated)
			}
		}
	}
}

// gzipBomb is 128 MiB of zeros, as 8 files in one.
func gzipBomb(t *testing.T) []byte { return bytes.Repeat(gzipOf(t, make([]byte, 16<<20)), 8) }

// zstdBomb is 1 GiB in runs of 128 KiB of the same byte, four bytes each, in a frame with a window of 8 MiB.
func zstdBomb() []byte {
	b := []byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 13 << 3}
	for range 8192 {
		header := uint32(zstdBlock)<<3 | 1<<1
		b = append(b, byte(header), byte(header>>8), byte(header>>16), 'x')
	}
	return append(b, 1, 0, 0)
}

func TestMemoryForDecompressingIsBounded(t *testing.T) {
	small, large := zstdOf(t, []byte("small")), zstdBomb()
	f := newInflater(zstdBytes(maxZstdWindow) + zstdBytes(minZstdWindow) + gzipBytes)
	var open []io.ReadCloser
	begin := func(encoding string, wire []byte) error {
		body, err := f.bodyReader([]byte(encoding), bytes.NewReader(wire), wide, wide)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := body.Read(make([]byte, 1)); n == 0 {
			body.Close()
			return err
		}
		open = append(open, body)
		return nil
	}
	for _, c := range []struct {
		encoding string
		wire     []byte
		want     error
	}{
		{"zstd", large, nil}, {"zstd", large, errInflateBusy}, {"gzip", gzipOf(t, []byte("x")), nil}, {"zstd", small, nil},
		{"gzip", gzipOf(t, []byte("x")), errInflateBusy}, {"zstd", small, errInflateBusy}, {"identity", small, nil},
	} {
		if err := begin(c.encoding, c.wire); err != c.want {
			t.Errorf("%s of %d bytes: %v and not %v", c.encoding, len(c.wire), err, c.want)
		}
	}
	for _, body := range open {
		body.Close()
	}
	if used := f.used.Load(); used != 0 {
		t.Errorf("%d bytes in use", used)
	}
	if err := begin("zstd", large); err != nil {
		t.Error(err)
	}
}

func TestABodyThatIsNotReadCostsNothing(t *testing.T) {
	f := newInflater(1)
	body, err := f.bodyReader([]byte("zstd"), iotest.ErrReader(errors.New("read")), wide, wide)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := body.Read(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
	body.Close()
	if used := f.used.Load(); used != 0 {
		t.Errorf("%d bytes in use", used)
	}
}

// FuzzBodyReader: any bytes in any coding give no more than the limit, no panic, the same in any split, and all memory back.
func FuzzBodyReader(f *testing.F) {
	p := []byte(strings.Repeat("some text\r\n", 20))
	f.Add(p, uint8(0), uint32(1))
	f.Add(gzipOf(f, p), uint8(1), uint32(2))
	f.Add(zstdOf(f, p), uint8(2), uint32(3))
	f.Add(zstdBomb()[:64], uint8(2), uint32(4))
	in := newInflater(testInflateBytes)
	f.Fuzz(func(t *testing.T, wire []byte, coding uint8, seed uint32) {
		encoding := []string{"identity", "gzip", "zstd"}[coding%3]
		const limit = 10000
		want, wantErr := inflate(in, encoding, bytes.NewReader(wire), wide, limit)
		if len(want) > limit {
			t.Fatalf("%d bytes", len(want))
		}
		got, err := inflate(in, encoding, &randomReader{in: wire, next: seed}, wide, limit)
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%q\n%v at once, %v in pieces", wire, wantErr, err)
		}
		if used := in.used.Load(); used != 0 {
			t.Fatalf("%d bytes in use", used)
		}
	})
}

func TestBodiesAllocateNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector's sync.Pool forgets on purpose")
	}
	f := newInflater(testInflateBytes)
	p := bytes.Repeat([]byte("some text\r\n"), 400)
	room := make([]byte, 16<<10)
	for encoding, wire := range map[string][]byte{"identity": p, "gzip": gzipOf(t, p), "zstd": zstdOf(t, p)} {
		r := bytes.NewReader(wire)
		name := []byte(encoding)
		if n := testing.AllocsPerRun(100, func() {
			r.Reset(wire)
			body, err := f.bodyReader(name, r, wide, wide)
			for err == nil {
				_, err = body.Read(room)
			}
			if err != io.EOF {
				t.Fatal(err)
			}
			body.Close()
		}); n != 0 {
			t.Errorf("%s: %v allocations", encoding, n)
		}
	}
}

func BenchmarkBodyReader(b *testing.B) {
	p := bytes.Repeat([]byte("some text that is not quite the same\r\n"), 110)
	room := make([]byte, 16<<10)
	for _, encoding := range []string{"identity", "gzip", "zstd"} {
		wire := map[string][]byte{"identity": p, "gzip": gzipOf(b, p), "zstd": zstdOf(b, p)}[encoding]
		b.Run("impl=fastedge/coding="+encoding, func(b *testing.B) {
			f := newInflater(testInflateBytes)
			r := bytes.NewReader(wire)
			name := []byte(encoding)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				r.Reset(wire)
				body, err := f.bodyReader(name, r, wide, wide)
				for err == nil {
					_, err = body.Read(room)
				}
				body.Close()
			}
		})
		if encoding == "identity" {
			continue
		}
		b.Run("impl=naive/coding="+encoding, func(b *testing.B) { // a decoder for each body, and no limit
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				var r io.Reader
				var err error
				if encoding == "gzip" {
					r, err = gzip.NewReader(bytes.NewReader(wire))
				} else {
					var d *zstd.Decoder
					if d, err = zstd.NewReader(bytes.NewReader(wire)); err == nil {
						defer d.Close()
					}
					r = d
				}
				for err == nil {
					_, err = r.Read(room)
				}
			}
		})
	}
}
