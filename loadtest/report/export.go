package report

import "io"

// WriteCSV writes the series, one line a second, below a line with names and units.
func WriteCSV(w io.Writer, r *Run) error { panic("report: WriteCSV is not written yet") }

// WriteGoBench writes runs as Go benchmark results, for benchstat.
func WriteGoBench(w io.Writer, runs ...*Run) error { panic("report: WriteGoBench is not written yet") }

// WriteMarkdown writes runs as rows of a Markdown table.
func WriteMarkdown(w io.Writer, runs ...*Run) error { panic("report: WriteMarkdown is not written yet") }
