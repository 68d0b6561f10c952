package report

import "io"

// Style is how the block of text at the end of a run looks.
type Style struct {
	Color  bool // the caller decides: a terminal, and NO_COLOR is not set
	Phases bool // the table of phases, too
}

// WriteText writes the block of text that ends a run.
func WriteText(w io.Writer, r *Run, style Style) error { panic("report: WriteText is not written yet") }
