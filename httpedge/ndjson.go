package httpedge

import (
	"errors"
	"io"
)

// batchLimits bound what a lineReader takes.
type batchLimits struct {
	MaxLineBytes int64 // of one line, without its end
	MaxBytes     int64 // of the whole body
	MaxLines     int   // lines that are not empty
}

// lineReader splits a stream into lines, each of them a reader of its own.
type lineReader struct{}

// Reset makes l read from src.
func (l *lineReader) Reset(src io.Reader, limit batchLimits) {}

// Next goes to the next line that is not empty.
func (l *lineReader) Next() (line io.Reader, number int, err error) {
	return nil, 0, errors.New("not yet")
}
