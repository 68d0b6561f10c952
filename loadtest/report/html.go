package report

import "io"

// WriteHTML writes one self-contained page; more runs are shown beside r.
func WriteHTML(w io.Writer, r *Run, more ...*Run) error {
	panic("report: WriteHTML is not written yet")
}
