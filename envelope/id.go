package envelope

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"time"
)

// ID names one message everywhere: in the 250 reply, the Received field, logs, the spool and the queue commands. The first 48 bits
// are the arrival time in milliseconds since 1970, the rest is random, so ids sort by time and need no coordination.
type ID [16]byte

// IDChars is the length of an ID's text form: Crockford's base 32, lower case, which sorts as the ID does.
const IDChars = 26

const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

var idValue = func() (v [256]byte) {
	for i := range v {
		v[i] = 0xFF
	}
	for i := range len(idAlphabet) {
		c := idAlphabet[i]
		v[c] = byte(i)
		if c >= 'a' {
			v[c-'a'+'A'] = byte(i)
		}
	}
	return v
}()

// ErrBadID is the answer to a text that is no message id.
var ErrBadID = errors.New("envelope: not a message id (26 letters and digits)")

// AppendTo appends the 26-character text form.
func (id ID) AppendTo(dst []byte) []byte {
	hi, lo := binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(id[8:])
	// 128 bits are 26 groups of five; the first group holds the top three bits only.
	for i := IDChars - 1; i >= 0; i-- {
		shift := uint(5 * i)
		var v uint64
		switch {
		case shift >= 64:
			v = hi >> (shift - 64)
		default:
			v = lo>>shift | hi<<(64-shift)
		}
		dst = append(dst, idAlphabet[v&31])
	}
	return dst
}

func (id ID) String() string { return string(id.AppendTo(make([]byte, 0, IDChars))) }

// Time is the arrival time in the id, to the millisecond, in UTC.
func (id ID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)).UTC()
}

// MarshalText makes an id a string in JSON.
func (id ID) MarshalText() ([]byte, error) { return id.AppendTo(nil), nil }

// UnmarshalText is ParseID for decoders.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseID(string(text))
	return err
}

// ParseID reads the text form; case does not matter.
func ParseID(s string) (id ID, err error) {
	if len(s) != IDChars || idValue[s[0]] > 7 {
		return ID{}, ErrBadID
	}
	var hi, lo uint64
	for i := range len(s) {
		v := idValue[s[i]]
		if v == 0xFF {
			return ID{}, ErrBadID
		}
		hi = hi<<5 | lo>>59
		lo = lo<<5 | uint64(v)
	}
	binary.BigEndian.PutUint64(id[:8], hi)
	binary.BigEndian.PutUint64(id[8:], lo)
	return id, nil
}

// IDSource makes ids. Ids from one source never repeat and always grow, also within a millisecond and when the clock steps back.
// It belongs to one goroutine.
type IDSource struct {
	last ID
	rand *rand.ChaCha8
}

// NewIDSource gives a source; seed must come from a good source of randomness, and differ from that of every other source.
func NewIDSource(seed [32]byte) *IDSource { return &IDSource{rand: rand.NewChaCha8(seed)} }

// Next gives the next id for a message that arrives now.
func (s *IDSource) Next(now time.Time) ID {
	ms := uint64(now.UnixMilli())
	lastHi := binary.BigEndian.Uint64(s.last[:8])
	if ms > lastHi>>16 {
		r := s.rand.Uint64()
		binary.BigEndian.PutUint64(s.last[:8], ms<<16|r>>48)
		binary.BigEndian.PutUint64(s.last[8:], s.rand.Uint64())
		return s.last
	}
	// Same millisecond: step on by a random amount, so that ids stay unguessable and two sources stay apart.
	lo := binary.BigEndian.Uint64(s.last[8:])
	next := lo + s.rand.Uint64()>>24 + 1
	if next < lo {
		binary.BigEndian.PutUint64(s.last[:8], lastHi+1)
	}
	binary.BigEndian.PutUint64(s.last[8:], next)
	return s.last
}
