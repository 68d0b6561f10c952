package config

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Problem is one thing that is wrong with a configuration, or, as a warning, that an operator should know.
type Problem struct {
	File    string `json:"file,omitempty"` // empty when no file is to blame
	Line    int    `json:"line,omitempty"` // from 1
	Column  int    `json:"column,omitempty"`
	Key     string `json:"key,omitempty"`    // "limits.connections", "listen[0].name"
	Source  string `json:"source,omitempty"` // the line of the file, or the variable or flag
	Message string `json:"message"`

	width int // columns to underline
}

// String is the problem as a text of one line, or three with the source and a caret below.
func (p Problem) String() string {
	if p.Line == 0 {
		if p.Source != "" {
			return p.Source + ": " + p.Message
		}
		return p.Message
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: %s\n", p.File, p.Line, p.Column, p.Message)
	// One column for each rune, whatever it is: tabs and controls would move the caret.
	line := strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, p.Source)
	rest := max(utf8.RuneCountInString(line)-p.Column+1, 1)
	fmt.Fprintf(&b, "    %s\n    %s%s", line, strings.Repeat(" ", p.Column-1), strings.Repeat("^", min(max(p.width, 1), rest)))
	return b.String()
}

// about completes a problem that knows its place. A variable or flag names its key well enough.
func (p Problem) about(key, message string) Problem {
	p.Key, p.Message = key, message
	if p.Line > 0 || p.Source == "" {
		p.Message = key + ": " + message
	}
	return p
}

// Problems is the error of Load and CheckMachine: everything that is wrong, in the order of the file.
type Problems []Problem

func (p Problems) Error() string {
	texts := make([]string, len(p))
	for i, one := range p {
		texts[i] = one.String()
	}
	return strings.Join(texts, "\n")
}

// OrNil is the list as an error, in the order of the file; an empty list is a nil error.
func (p Problems) OrNil() error {
	if len(p) == 0 {
		return nil
	}
	slices.SortStableFunc(p, func(a, b Problem) int {
		if (a.Line == 0) != (b.Line == 0) { // what has no line comes last
			return b.Line - a.Line
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return p
}

// nearest gives the candidate that s is most likely a misspelling of, or "".
func nearest(s string, candidates []string) string {
	best, bestDistance := "", 1+len(s)/3
	for _, c := range candidates {
		if d := distance(s, c); d <= bestDistance && d < len(c) {
			if d < bestDistance || best == "" {
				best, bestDistance = c, d
			}
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
