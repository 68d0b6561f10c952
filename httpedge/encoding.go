package httpedge

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"

	// The standard library's gzip makes new tables for many a block; this one keeps its own (TestBodiesAllocateNothing).
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

var (
	// errEncoding: a content coding that we don't know, or more than one; 415 with acceptEncoding.
	errEncoding = errors.New("httpedge: unknown content coding")
	// errTooLarge: more bytes than may come over the wire, or than may come out; 413.
	errTooLarge = errors.New("httpedge: body too large")
	// errBadEncoding: not what the content coding says, or a window of more than maxZstdWindow bytes; 400.
	errBadEncoding = errors.New("httpedge: body can't be decompressed")
	// errInflateBusy: the memory for decompressing is spent; 503.
	errInflateBusy = errors.New("httpedge: too many bodies to decompress")
)

// acceptEncoding is the Accept-Encoding header of a 415 (RFC 9110 §12.5.3).
const acceptEncoding = "gzip, zstd"

const (
	minZstdWindow = 16 << 10
	maxZstdWindow = 8 << 20   // RFC 9659 §3: no encoder for HTTP uses a larger one
	zstdBlock     = 128 << 10 // RFC 8878 §3.1.1.2.4
	zstdTables    = 64 << 10
	zstdClasses   = 10       // maxZstdWindow = minZstdWindow << 9
	gzipBytes     = 64 << 10 // a window of 32 KiB, a buffer and tables
)

// zstdBytes is about what a decoder for windows of that size uses: the window, and a few blocks around it.
func zstdBytes(window int) int64 { return int64(window + 4*min(window, zstdBlock) + zstdTables) }

// inflater reads bodies with a content coding. All of them together use at most so many bytes for it, however slowly their clients send:
// what a decoder needs is known from the first bytes of a body, and counted. Any goroutine.
type inflater struct {
	max  int64
	used atomic.Int64
	gzip sync.Pool
	zstd [zstdClasses]sync.Pool // by window: 16 KiB, 32 KiB, ... 8 MiB
	idle sync.Pool              // of *body
}

// newInflater gives an inflater that uses at most maxBytes. 64 MiB are 1,000 bodies in gzip, 400 in zstd of up to 16 KiB each, or 7 in zstd
// with the largest window at the same time.
func newInflater(maxBytes int64) *inflater { return &inflater{max: maxBytes} }

// bodyReader gives a reader of the decoded body: encoding is the value of Content-Encoding, r the body as it comes, of which at most
// maxWire bytes are read, and at most maxInflated bytes come out. Beyond these the reader gives errTooLarge; see the other errors above;
// r's own come through. Nothing is read before the first Read. The caller closes it, once, and does not touch it again.
func (f *inflater) bodyReader(encoding []byte, r io.Reader, maxWire, maxInflated int64) (io.ReadCloser, error) {
	c := identity
	switch encoding = trimBlanks(encoding); {
	case len(encoding) == 0, isMediaType(encoding, "identity"):
	case isMediaType(encoding, "gzip"), isMediaType(encoding, "x-gzip"): // RFC 9110 §8.4.1.3
		c = gzipped
	case isMediaType(encoding, "zstd"):
		c = zstandard
	default:
		return nil, errEncoding
	}
	b, _ := f.idle.Get().(*body)
	if b == nil {
		b = &body{}
	}
	*b = body{f: f, coding: c, src: r, wire: maxWire, left: maxInflated}
	return b, nil
}

// coding is a content coding.
type coding uint8

const (
	identity coding = iota
	gzipped
	zstandard
)

// body is one body being read.
type body struct {
	f      *inflater
	coding coding
	begun  bool
	err    error // given for good

	src    io.Reader
	srcErr error // of src, other than io.EOF
	wire   int64 // bytes that may still come over the wire
	head   [zstd.HeaderMaxSize]byte
	headR  int // head[headR:headW] was read from src and not given to the decoder yet
	headW  int

	decoder io.Reader // unzip, zstd or the wire itself
	left    int64     // bytes that may still come out
	cost    int64     // counted in f.used
	class   int       // of zstd
	unzip   *gzip.Reader
	zstd    *zstd.Decoder
	beyond  [1]byte
}

// Read gives decoded bytes.
func (b *body) Read(p []byte) (n int, err error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	if !b.begun {
		b.begun = true
		if b.err = b.begin(); b.err != nil {
			return 0, b.err
		}
	}
	if b.left == 0 {
		p = b.beyond[:]
	} else if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err = b.decoder.Read(p)
	if b.left == 0 && n > 0 {
		n, err = 0, errTooLarge
	}
	b.left -= int64(n)
	b.err = b.name(err)
	return n, b.err
}

// name says what an error of the decoder means.
func (b *body) name(err error) error {
	switch {
	case err == nil || err == io.EOF || err == errTooLarge || err == errInflateBusy:
		return err
	case b.srcErr != nil: // decoders wrap it, or have one of their own for it
		return b.srcErr
	case b.coding == identity:
		return err
	}
	return fmt.Errorf("%w: %v", errBadEncoding, err)
}

// begin makes a decoder ready. It reads the first bytes of the body.
func (b *body) begin() error {
	switch b.coding {
	case gzipped:
		if !b.reserve(gzipBytes) {
			return errInflateBusy
		}
		b.unzip, _ = b.f.gzip.Get().(*gzip.Reader)
		if b.unzip == nil {
			b.unzip = new(gzip.Reader)
		}
		if err := b.unzip.Reset(wireReader{b}); err == io.EOF {
			return b.name(io.ErrUnexpectedEOF) // an empty body is none in gzip
		} else if err != nil {
			return b.name(err)
		}
		b.decoder = b.unzip
	case zstandard:
		window, err := b.window()
		if err != nil {
			return b.name(err)
		}
		b.class = bits.Len(uint((window - 1) / minZstdWindow))
		window = minZstdWindow << b.class
		if !b.reserve(zstdBytes(window)) {
			return errInflateBusy
		}
		b.zstd, _ = b.f.zstd[b.class].Get().(*zstd.Decoder)
		if b.zstd == nil {
			// One block at a time, on this goroutine. A later frame with a larger window is an error.
			b.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecodeBuffersBelow(0),
				zstd.WithDecoderMaxWindow(uint64(window)), zstd.WithDecoderMaxMemory(uint64(window)))
			if err != nil {
				panic(fmt.Sprintf("httpedge: a zstd decoder for %d bytes: %v", window, err))
			}
		}
		if err := b.zstd.Reset(wireReader{b}); err != nil {
			return b.name(err)
		}
		b.decoder = b.zstd
	default:
		b.decoder = wireReader{b}
	}
	return nil
}

// window reads the header of the first frame and says how large a window it needs.
func (b *body) window() (int, error) {
	var h zstd.Header
	for {
		// Decode wants a block header, too; a frame header alone may be the whole of a short body.
		err := h.Decode(b.head[:b.headW])
		if err == nil && h.Skippable {
			return maxZstdWindow, nil // what follows it is not known yet
		}
		if err == nil {
			break
		}
		if err != io.ErrUnexpectedEOF {
			return 0, err
		}
		if b.headW == len(b.head) {
			return 0, io.ErrUnexpectedEOF
		}
		n, err := (wireReader{b}).read(b.head[b.headW:])
		b.headW += n
		if n == 0 && err != nil {
			return 0, io.ErrUnexpectedEOF
		}
	}
	size := h.WindowSize
	if h.SingleSegment {
		size = h.FrameContentSize
	}
	if size > maxZstdWindow {
		return 0, zstd.ErrWindowSizeExceeded
	}
	return max(int(size), 1), nil
}

// reserve counts what a decoder uses.
func (b *body) reserve(n int64) bool {
	if b.f.used.Add(n) > b.f.max {
		b.f.used.Add(-n)
		return false
	}
	b.cost = n
	return true
}

// Close lets go of the decoder.
func (b *body) Close() error {
	f := b.f
	if f == nil {
		return nil
	}
	if b.unzip != nil {
		f.gzip.Put(b.unzip)
	}
	if b.zstd != nil {
		b.zstd.Reset(nil)
		f.zstd[b.class].Put(b.zstd)
	}
	f.used.Add(-b.cost)
	*b = body{err: io.ErrClosedPipe}
	f.idle.Put(b)
	return nil
}

// wireReader reads the body as it comes over the wire.
type wireReader struct{ b *body }

func (w wireReader) Read(p []byte) (int, error) {
	if b := w.b; b.headR < b.headW {
		n := copy(p, b.head[b.headR:b.headW])
		b.headR += n
		return n, nil
	}
	return w.read(p)
}

func (w wireReader) read(p []byte) (n int, err error) {
	b := w.b
	if b.srcErr != nil {
		return 0, b.srcErr
	}
	if b.wire == 0 {
		p = p[:min(1, len(p))]
	} else if int64(len(p)) > b.wire {
		p = p[:b.wire]
	}
	n, err = b.src.Read(p)
	if b.wire == 0 && n > 0 {
		n, err = 0, errTooLarge
	}
	b.wire -= int64(n)
	if err != nil && err != io.EOF {
		b.srcErr = err
	}
	return n, err
}
