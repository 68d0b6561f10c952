// Package live shows a load test while it runs: one block that refreshes itself on a terminal, and elsewhere one line for each call.
//
// A View has no goroutine and no clock, and takes no lock: one caller draws when it likes, four times a second on a terminal and once a
// second elsewhere. Nothing it writes is ever wider than the terminal, and no figure is cut in two: what does not fit is left out.
package live

import (
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Snapshot is what there is to show.
type Snapshot struct {
	Elapsed, Left time.Duration // Left: zero when the end is not known
	Progress      float64       // 0 to 1; negative when the end is not known
	Phase         string        // connecting, warm-up, running, draining, verifying

	Rate    float64 // messages acknowledged a second, lately
	Offered float64 // arrivals a second; zero in a closed loop, which has none

	InFlight, Waiting, Connections                   int
	Acknowledged, Deferred, Refused, Errors, Dropped int64 // in messages: 2yz, 4yz, 5yz, connection lost, no room to wait

	AckP50, AckP99 time.Duration
	ServerCPU      float64 // cores; with ServerRSS zero when the server is not watched
	ServerRSS      int64   // bytes
	GeneratorCPU   float64 // cores
}

// Options say what can be drawn on. Detect finds them for a file.
type Options struct {
	Title    string     // target and loop, in the first line of the block
	Terminal bool       // the block; otherwise lines
	Color    bool       // with Terminal
	Unicode  bool       // bars and the sparkline in block characters instead of ASCII
	Width    func() int // in columns, asked at each Draw; nil: 80 for the block, no limit for lines
	Height   func() int // in lines; nil: the block fits
}

// View draws snapshots. It belongs to one goroutine.
type View struct {
	w    io.Writer
	o    Options
	out  []byte
	rate []float64 // a value for each second, the last one still changing
	at   time.Duration
	open bool // arrivals were offered once: what only an open loop has is shown from then on

	last  Snapshot
	drawn []int // widths of the lines of the block on the terminal; nil: there is none
	pads  []int // of lines: how wide each figure was so far
}

// maxRates is how many values the sparkline has: a minute.
const maxRates = 60

// New returns a View that draws on w. What w does not take is lost: a load test does not fail because nobody looks.
func New(w io.Writer, o Options) *View { return &View{w: w, o: o} }

// Draw shows a snapshot.
func (v *View) Draw(s Snapshot) {
	v.note(s)
	v.last = s
	v.out = v.out[:0]
	if v.o.Terminal {
		v.drawBlock(&s)
	} else {
		v.drawLine(&s)
	}
	v.w.Write(v.out)
}

// Print writes a line of text that stays, above the block.
func (v *View) Print(text string) {
	v.out = v.out[:0]
	block := v.drawn != nil
	v.erase()
	v.out = append(v.out, printable(text)...)
	v.newline()
	if block {
		v.drawBlock(&v.last)
	}
	v.w.Write(v.out)
}

// Close erases the block and gives the cursor back. The View can be used again.
func (v *View) Close() {
	v.out = v.out[:0]
	v.erase()
	if len(v.out) > 0 {
		v.w.Write(v.out)
	}
}

// note keeps the rate of each second.
func (v *View) note(s Snapshot) {
	second := s.Elapsed.Truncate(time.Second)
	if len(v.rate) == 0 || second != v.at {
		if len(v.rate) == maxRates {
			v.rate = slices.Delete(v.rate, 0, 1)
		}
		v.rate = append(v.rate, 0)
		v.at = second
	}
	if s.Rate >= 0 && !math.IsInf(s.Rate, 1) { // nor not a number
		v.rate[len(v.rate)-1] = s.Rate
	}
	v.open = v.open || s.Offered > 0
}

// Control sequences that every terminal since the VT100 has.
const (
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	wrapOff    = "\x1b[?7l" // a width that is out of date must not make a mess
	wrapOn     = "\x1b[?7h"
	eraseRight = "\x1b[K"
	eraseBelow = "\x1b[J"
)

func (v *View) width(otherwise int) int {
	if v.o.Width == nil {
		return otherwise
	}
	if w := v.o.Width(); w > 0 {
		return w
	}
	return 80
}

// top moves the cursor to where the block begins. Terminals break the lines of an old block again when they become narrower.
func (v *View) top() {
	if v.drawn == nil {
		return
	}
	width, rows := v.width(80), 0
	for _, cols := range v.drawn {
		rows += max((cols+width-1)/width, 1)
	}
	v.out = append(v.out, '\r')
	if rows > 1 {
		v.out = appendInt(append(v.out, "\x1b["...), rows-1)
		v.out = append(v.out, 'A')
	}
}

func (v *View) erase() {
	if v.drawn == nil {
		return
	}
	v.top()
	v.out = append(v.out, eraseBelow+showCursor...)
	v.drawn = nil
}

func (v *View) newline() {
	if v.o.Terminal {
		v.out = append(v.out, '\r')
	}
	v.out = append(v.out, '\n')
}

// printable replaces what could move the cursor or be wider than it looks.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
}

// row is one line that grows until it is full.
type row struct {
	out         []byte
	cols, width int
	color, full bool
}

// Colors, as select graphic rendition; "" is the terminal's own.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// put adds a text if all of it fits; once one did not, nothing more is added.
func (r *row) put(color, text string) bool {
	n := utf8.RuneCountInString(text)
	if r.full = r.full || r.cols+n > r.width; r.full {
		return false
	}
	r.cols += n
	if text == "" {
		return true
	}
	if r.color && color != "" {
		r.out = append(append(append(r.out, "\x1b["...), color...), 'm')
		r.out = append(append(r.out, text...), "\x1b[0m"...)
		return true
	}
	r.out = append(r.out, text...)
	return true
}

// left is how many columns are free.
func (r *row) left() int {
	if r.full {
		return 0
	}
	return r.width - r.cols
}
