package envelope

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// The binary form of an envelope, without Trace and Data, as an engine stores it beside the message. Integers are little-endian;
// "bytes" is a length as the shortest possible unsigned varint, then that many bytes; there are no delimiters, so no address,
// however hostile, can be read as anything but itself.
//
//	offset  width  field
//	0       1      version: 3 with RequireTLS, Metadata or an idempotency key; otherwise 2 with a Client.User or Results; otherwise 1
//	1       16     ID
//	17      1      bits 0-1 Body, bits 2-3 Ret, bit 4 SMTPUTF8, version 3: bit 5 RequireTLS, bit 6 idempotency key; rest zero
//	18      8      Arrived, seconds since 1970, signed
//	26      4      Arrived, nanoseconds, below 10^9
//	30      16     Client.Session
//	46             Client.Addr as netip.AddrPort.AppendBinary writes it; Client.Helo; Client.Protocol; Client.Listener;
//	               versions 2 and 3: Client.User; Results, in version 2 not both empty; version 3: Metadata: bytes each
//	               version 3, with bit 6: Idempotency.Key, not zero; Payload: 32 bytes each; Answer: bytes, at most MaxAnswerBytes
//	               ReversePath; EnvID: bytes each
//	               number of recipients: varint
//	               for each recipient: Notify, 1 byte; Path; ORcpt: bytes
//
// Nothing may follow. Each envelope has exactly one form.
const (
	codecVersion    = 1
	codecWithFacts  = 2
	codecWithWishes = 3
	codecFixed      = 46
	minRecipientLen = 3 // notify, two empty strings
	flagUTF8        = 1 << 4
	flagRequireTLS  = 1 << 5
	flagKey         = 1 << 6
	maxNotify       = NotifyNever | NotifySuccess | NotifyFailure | NotifyDelay
)

// ErrBadEnvelope is Decode's answer to bytes that AppendBinary did not write.
var ErrBadEnvelope = errors.New("envelope: malformed binary form")

// AppendBinary appends the binary form of everything but Trace and Data. An Answer over MaxAnswerBytes makes a form that Decode refuses.
func (e *Envelope) AppendBinary(dst []byte) []byte {
	version, keyed := byte(codecVersion), e.Idempotency.Given()
	switch {
	case e.RequireTLS || len(e.Metadata) > 0 || keyed:
		version = codecWithWishes
	case len(e.Client.User) > 0 || len(e.Results) > 0:
		version = codecWithFacts
	}
	dst = append(dst, version)
	dst = append(dst, e.ID[:]...)
	flags := byte(e.Body)&3 | byte(e.Ret)&3<<2
	if e.SMTPUTF8 {
		flags |= flagUTF8
	}
	if e.RequireTLS {
		flags |= flagRequireTLS
	}
	if keyed {
		flags |= flagKey
	}
	dst = append(dst, flags)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Arrived.Unix()))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(e.Arrived.Nanosecond()))
	dst = append(dst, e.Client.Session[:]...)

	// The address is written behind a one-byte length: at most 16 bytes, a zone, and the port.
	mark := len(dst)
	dst = append(dst, 0)
	if e.Client.Addr.IsValid() {
		dst, _ = e.Client.Addr.AppendBinary(dst)
		if n := len(dst) - mark - 1; n < 0x80 {
			dst[mark] = byte(n)
		} else { // a zone of more than 100 bytes is no interface name: store the address without it
			dst, _ = netip.AddrPortFrom(e.Client.Addr.Addr().WithZone(""), e.Client.Addr.Port()).AppendBinary(dst[:mark+1])
			dst[mark] = byte(len(dst) - mark - 1)
		}
	}
	dst = appendBytes(dst, e.Client.Helo)
	dst = appendBytes(dst, e.Client.Protocol)
	dst = appendBytes(dst, e.Client.Listener)
	if version >= codecWithFacts {
		dst = appendBytes(appendBytes(dst, e.Client.User), e.Results)
	}
	if version == codecWithWishes {
		dst = appendBytes(dst, e.Metadata)
	}
	if keyed {
		dst = append(dst, e.Idempotency.Key[:]...)
		dst = append(dst, e.Idempotency.Payload[:]...)
		dst = appendBytes(dst, e.Idempotency.Answer)
	}
	dst = appendBytes(dst, e.ReversePath)
	dst = appendBytes(dst, e.EnvID)
	dst = binary.AppendUvarint(dst, uint64(len(e.Recipients)))
	for i := range e.Recipients {
		r := &e.Recipients[i]
		dst = append(dst, byte(r.Notify&maxNotify))
		dst = appendBytes(dst, r.Path)
		dst = appendBytes(dst, r.ORcpt)
	}
	return dst
}

func appendBytes[T []byte | string](dst []byte, p T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(p)))
	return append(dst, p...)
}

// Decode reads what AppendBinary wrote. The envelope borrows b, which must stay unchanged as long as the envelope is used; it
// belongs to no List. Memory used is in proportion to len(b), whatever b claims.
func Decode(b []byte) (*Envelope, error) {
	if len(b) < codecFixed || b[0] < codecVersion || b[0] > codecWithWishes {
		return nil, ErrBadEnvelope
	}
	e := &Envelope{ID: ID(b[1:17])}
	flags := b[17]
	e.Body, e.Ret, e.SMTPUTF8 = BodyType(flags&3), Ret(flags>>2&3), flags&flagUTF8 != 0
	nsec := binary.LittleEndian.Uint32(b[26:])
	known := byte(flagRequireTLS - 1)
	if b[0] == codecWithWishes {
		known = flagKey<<1 - 1
		e.RequireTLS = flags&flagRequireTLS != 0
	}
	if flags&^known != 0 || e.Ret > RetHdrs || nsec >= 1e9 {
		return nil, ErrBadEnvelope
	}
	e.Arrived = time.Unix(int64(binary.LittleEndian.Uint64(b[18:])), int64(nsec)).UTC()
	e.Client.Session = ID(b[30:46])

	r := reader{rest: b[codecFixed:]}
	if addr := r.bytes(); len(addr) > 0 {
		if e.Client.Addr.UnmarshalBinary(addr) != nil || !e.Client.Addr.IsValid() || len(addr) >= 0x80 {
			return nil, ErrBadEnvelope
		}
		var room [64]byte
		if again, _ := e.Client.Addr.AppendBinary(room[:0]); string(again) != string(addr) {
			return nil, ErrBadEnvelope
		}
	}
	e.Client.Helo = r.bytes()
	e.Client.Protocol = protocolName(r.bytes())
	e.Client.Listener = string(r.bytes())
	if b[0] >= codecWithFacts {
		e.Client.User, e.Results = r.bytes(), r.bytes()
		if b[0] == codecWithFacts && len(e.Client.User) == 0 && len(e.Results) == 0 {
			return nil, ErrBadEnvelope
		}
	}
	if b[0] == codecWithWishes {
		e.Metadata = r.bytes()
		if flags&flagKey != 0 && !r.idempotency(&e.Idempotency) || !e.RequireTLS && len(e.Metadata) == 0 && flags&flagKey == 0 {
			return nil, ErrBadEnvelope
		}
	}
	e.ReversePath = r.bytes()
	e.EnvID = r.bytes()
	n := r.uvarint()
	if r.bad || n > uint64(len(r.rest)/minRecipientLen) {
		return nil, ErrBadEnvelope
	}
	if n > 0 {
		e.Recipients = make([]Recipient, n)
	}
	for i := range e.Recipients {
		notify := Notify(r.byte())
		e.Recipients[i] = Recipient{Notify: notify, Path: r.bytes(), ORcpt: r.bytes()}
		if r.bad || notify&^maxNotify != 0 {
			return nil, ErrBadEnvelope
		}
	}
	if r.bad || len(r.rest) > 0 {
		return nil, ErrBadEnvelope
	}
	return e, nil
}

// protocolName saves an allocation for the words of RFC 3848 that nearly every message has.
func protocolName(p []byte) string {
	switch string(p) {
	case "SMTP":
		return "SMTP"
	case "ESMTP":
		return "ESMTP"
	case "ESMTPS":
		return "ESMTPS"
	case "LMTP":
		return "LMTP"
	}
	return string(p)
}

// reader takes fields off the front of rest. After the first field that is not there, bad is set and everything is empty.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) byte() byte {
	if len(r.rest) == 0 {
		r.bad = true
		return 0
	}
	c := r.rest[0]
	r.rest = r.rest[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	// A last byte of zero is a longer form of a number that fits in fewer bytes.
	if n <= 0 || n > 1 && r.rest[n-1] == 0 {
		r.bad, r.rest = true, nil
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// idempotency fills in a key; false when there is none, or it is none.
func (r *reader) idempotency(i *Idempotency) bool {
	if len(r.rest) < len(i.Key)+len(i.Payload) {
		return false
	}
	n := copy(i.Key[:], r.rest)
	n += copy(i.Payload[:], r.rest[n:])
	r.rest = r.rest[n:]
	i.Answer = r.bytes()
	return i.Given() && len(i.Answer) <= MaxAnswerBytes
}

// bytes gives nil for an empty field, as Keep does.
func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.bad, r.rest = true, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	p := r.rest[:n:n]
	r.rest = r.rest[n:]
	return p
}
