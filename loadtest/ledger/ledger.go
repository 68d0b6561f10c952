// Package ledger proves that a mail server lost nothing: what the client side noted in its Book is judged against what the receiving
// side counted in its Receipts.
//
// The unit is a delivery: one message to one recipient. Each message carries a mark (run, sequence number, SHA-256 of its body) in a
// header field, and each recipient's address carries sequence number and position, so that a server may split, reorder and repeat
// messages without confusing the count.
//
// A delivery that was never attempted is Unsent; an acknowledged one must have been received at least once; a refused one must not. Unknown
// is one whose reply was never seen: either is right, and more than once too, because a client would have sent it again.
//
// The sender asks its Book for a sequence number, prepares the message with Mark.Append, BodyHash and AppendRecipient, and notes the
// outcome of each delivery. A receiver passes the message data of each mail transaction through an Inspection, which enters what it
// found in a Register. Judge compares the two.
//
// The package measures nothing and speaks to nobody. It knows the message format of RFC 5322 only as far as the mark needs it: header
// fields, folding (§2.2.3), and the empty line. Book, Receipts and Register may be used from any goroutine; an Inspection and a BodyHash
// belong to one at a time. Slices in arguments are borrowed until the call returns.
package ledger

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"strconv"
)

// RunID names one run. It is in every message of the run, so that receipts of different runs keep apart.
type RunID uint64

// runDigits is the length of a run as text.
const runDigits = 16

// NewRunID gives a random one, never zero.
func NewRunID() RunID {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails since Go 1.24
		if r := RunID(binary.LittleEndian.Uint64(b[:])); r != 0 {
			return r
		}
	}
}

// String gives 16 hexadecimal digits.
func (r RunID) String() string {
	var b [runDigits]byte
	putHex(b[:], uint64(r))
	return string(b[:])
}

// ParseRunID reads what String wrote, in either case.
func ParseRunID(s string) (RunID, error) {
	if len(s) == runDigits {
		if v, err := strconv.ParseUint(s, 16, 64); err == nil {
			return RunID(v), nil
		}
	}
	return 0, errors.New("ledger: a run is 16 hexadecimal digits, not " + strconv.Quote(s[:min(len(s), 40)]))
}

const hexDigits = "0123456789abcdef"

// putHex fills b with the last hexadecimal digits of v.
func putHex(b []byte, v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = hexDigits[v&15]
		v >>= 4
	}
}

// putDecimal fills b with the last decimal digits of v.
func putDecimal(b []byte, v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + v%10)
		v /= 10
	}
}

// parseHex reads len(p) hexadecimal digits, at most 16, in either case.
func parseHex(p []byte) (v uint64, ok bool) {
	for _, c := range p {
		d, ok := hexValue(c)
		if !ok {
			return 0, false
		}
		v = v<<4 | uint64(d)
	}
	return v, len(p) <= 16
}

func hexValue(c byte) (v byte, ok bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

// parseDecimal reads len(p) digits, at most 18.
func parseDecimal(p []byte) (v uint64, ok bool) {
	for _, c := range p {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + uint64(c-'0')
	}
	return v, len(p) <= 18
}
