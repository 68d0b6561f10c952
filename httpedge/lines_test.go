package httpedge

import (
	"bytes"
	"strings"
	"testing"
)

// pieces are what was handed over.
type pieces chan string

func (p pieces) Write(b []byte) (int, error) {
	p <- string(b)
	return len(b), nil
}

func TestLinesAreHandedOverInLargePiecesAndNoneIsLost(t *testing.T) {
	line := []byte(strings.Repeat("x", 99) + "\n")
	out := make(pieces, 1000)
	g := lines{out: out}
	const many = 1000
	for range many {
		g.add(line)
	}
	g.noMore()
	g.noMore()
	close(out)
	var all strings.Builder
	count := 0
	for piece := range out {
		if len(piece)%len(line) != 0 || len(piece) > maxGatheredLines+len(line) {
			t.Errorf("a piece of %d bytes", len(piece))
		}
		all.WriteString(piece)
		count++
	}
	if all.Len() != many*len(line) {
		t.Errorf("%d bytes of %d", all.Len(), many*len(line))
	}
	// A timer may have made some more of them on a machine that is busy.
	if count > many/2 {
		t.Errorf("%d pieces", count)
	}
}

func TestALoneLineIsHandedOverByItself(t *testing.T) {
	out := make(pieces, 10)
	g := lines{out: out}
	for _, text := range []string{"one\n", "two\n"} { // the timer runs again
		g.add([]byte(text))
		if got := <-out; got != text {
			t.Errorf("%q", got)
		}
	}
}

func TestNoLineWaitsOnceTheEndIsNear(t *testing.T) {
	var out bytes.Buffer
	g := lines{out: &out}
	g.noMore()
	g.add([]byte("late\n"))
	if out.String() != "late\n" {
		t.Errorf("%q", out.String())
	}
}
