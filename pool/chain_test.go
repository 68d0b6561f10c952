package pool

import (
	"bytes"
	"testing"
)

func TestPopGivesTheChunksOneByOne(t *testing.T) {
	l := NewList(0, NewBudget(0))
	var ch Chain
	want := bytes.Repeat([]byte("0123456789"), 20_000)
	ch.Append(l, want)
	var got []byte
	for c := ch.Pop(); c != nil; c = ch.Pop() {
		if c.Next() != nil {
			t.Fatal("a chunk that was taken out still leads on")
		}
		got = append(got, c.Bytes()...)
		c.Release()
	}
	if !bytes.Equal(got, want) || ch.Len() != 0 || ch.First() != nil {
		t.Fatalf("%d bytes of %d, %d left", len(got), len(want), ch.Len())
	}
	if !ch.Append(l, []byte("again")) || ch.Len() != 5 {
		t.Fatal("an emptied chain can't be used again")
	}
	ch.Release()
}
