package httpedge

import (
	"errors"
	"io"
)

var (
	errEncoding    = errors.New("httpedge: unknown content coding")        // 415, with acceptEncoding
	errTooLarge    = errors.New("httpedge: body too large")                // 413
	errBadEncoding = errors.New("httpedge: body can't be decompressed")    // 400
	errInflateBusy = errors.New("httpedge: too many bodies to decompress") // 503
)

// acceptEncoding is the Accept-Encoding header of a 415 (RFC 9110 §12.5.3).
const acceptEncoding = "gzip, zstd"

// inflater reads bodies with a content coding, any goroutine; all of them together use at most so many bytes for it.
type inflater struct{}

func newInflater(maxBytes int64) *inflater { return &inflater{} }

// bodyReader gives a reader of the decoded body.
func (f *inflater) bodyReader(encoding []byte, r io.Reader, maxWire, maxInflated int64) (io.ReadCloser, error) {
	return nil, errEncoding
}
