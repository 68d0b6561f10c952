package httpedge

import (
	"io"
	"sync"
	"time"
)

const (
	// maxGatheredLines bytes of message lines are gathered before they are handed over, or lineDelay has passed: each hand-over is a write to the
	// log, which costs more than the line.
	maxGatheredLines = 16 << 10
	lineDelay        = 100 * time.Millisecond
)

// lines gathers the lines that messages cause. Any goroutine.
type lines struct {
	out io.Writer // nil: there are none

	mu      sync.Mutex
	waiting []byte
	timer   *time.Timer // runs while something waits
	atOnce  bool        // the end is near: nothing may wait any more
}

// add takes a whole line, borrowed.
func (g *lines) add(line []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	first := len(g.waiting) == 0
	g.waiting = append(g.waiting, line...)
	switch {
	case g.atOnce || len(g.waiting) >= maxGatheredLines:
		g.handOver()
	case first && g.timer == nil:
		g.timer = time.AfterFunc(lineDelay, g.flush)
	case first:
		g.timer.Reset(lineDelay)
	}
}

// handOver is called with mu held.
func (g *lines) handOver() {
	if len(g.waiting) > 0 {
		g.out.Write(g.waiting) // it does not block
		g.waiting = g.waiting[:0]
	}
}

func (g *lines) flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handOver()
}

// noMore hands over what waits; lines that come later don't.
func (g *lines) noMore() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.atOnce = true
	g.handOver()
}
