//go:build linux

package main

import (
	"bytes"
	"testing"
	"time"
)

func TestMessageHasExactlyTheSizeAskedFor(t *testing.T) {
	for size := 600; size < 900; size++ {
		checkMessage(t, size)
	}
	for _, size := range []int{1024, 4096, 64 << 10, 1 << 20} {
		checkMessage(t, size)
	}
	if _, err := message(100); err == nil {
		t.Error("a message smaller than its header section was made")
	}
}

func checkMessage(t *testing.T, size int) {
	t.Helper()
	m, err := message(size)
	if err != nil {
		t.Fatal(err)
	}
	data, ok := bytes.CutSuffix(m, []byte(".\r\n"))
	if !ok || !bytes.HasSuffix(data, []byte("\r\n")) || len(data) != size {
		t.Fatalf("size %d: %d octets of message data ending in %q", size, len(data), m[len(m)-8:])
	}
	for _, line := range bytes.SplitAfter(data, []byte("\r\n")) {
		if bytes.HasPrefix(line, []byte(".")) || len(line) > 78 || bytes.Count(line, []byte("\n")) > 1 {
			t.Fatalf("size %d: line %q", size, line)
		}
	}
}

func TestRepliesAreUnderstoodHoweverTheyAreCut(t *testing.T) {
	const in = "250-one\r\n250-two\r\n250 three\r\n"
	for cut := range len(in) {
		s := step{want: "22"} // one more than comes, so that next is not called
		g := &generator{conns: []conn{{step: &s}}}
		g.replies(0, []byte(in[:cut]))
		g.replies(0, []byte(in[cut:]))
		if g.errors != 0 || g.conns[0].got != 1 || g.good != 1 {
			t.Fatalf("cut at %d: %d errors (%s), %d replies", cut, g.errors, g.firstError, g.conns[0].got)
		}
	}
}

func TestParseStat(t *testing.T) {
	parent, own, reaped, err := parseStat("7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 100 20 5 6 20 0 1 0")
	if err != nil || parent != 3 || own != 1200*time.Millisecond || reaped != 110*time.Millisecond {
		t.Error(parent, own, reaped, err)
	}
}
