package ledger

import (
	"crypto/sha256"
	"encoding"
	"hash"
)

// BodyHash gives the SHA-256 of many bodies that begin alike. The common beginning is hashed once; each Sum starts from the state
// after it, so that the price of a mark is that of the tail. BenchmarkBodyHash has the figures.
type BodyHash struct {
	h     hash.Hash
	after []byte // the state of h after the prefix
	sum   [sha256.Size]byte
}

// NewBodyHash borrows prefix until it returns.
func NewBodyHash(prefix []byte) *BodyHash {
	b := &BodyHash{h: sha256.New()}
	b.h.Write(prefix)
	after, err := b.h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		panic("ledger: the state of SHA-256 can't be saved: " + err.Error())
	}
	b.after = after
	return b
}

// Sum is the SHA-256 of prefix and tail. It does not allocate. One goroutine at a time.
func (b *BodyHash) Sum(tail []byte) [sha256.Size]byte {
	if err := b.h.(encoding.BinaryUnmarshaler).UnmarshalBinary(b.after); err != nil {
		panic("ledger: the state of SHA-256 can't be restored: " + err.Error())
	}
	b.h.Write(tail)
	b.h.Sum(b.sum[:0])
	return b.sum
}
