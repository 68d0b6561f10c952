package envelope

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sampleEnvelopes() []*Envelope {
	full := &Envelope{
		ID: ID{1, 2, 3, 15: 255}, ReversePath: []byte("a@example.net"), EnvID: []byte("QQ314159"), Body: BodyBinaryMIME, Ret: RetHdrs,
		SMTPUTF8: true, Arrived: time.Date(2026, 11, 22, 10, 0, 0, 123456789, time.UTC),
		Client: Client{Addr: netip.MustParseAddrPort("[fe80::1%eth0]:2525"), Helo: []byte("mx.example.net"), Protocol: "ESMTPSA",
			Listener: "mx", Session: ID{9}},
		Recipients: []Recipient{
			{Path: []byte("b@example.org"), ORcpt: []byte("rfc822;b+2B@example.org"), Notify: NotifySuccess | NotifyDelay},
			{Path: []byte("postmaster")},
			{Path: []byte("\"\r\n\x00\"@example.org"), Notify: NotifyNever},
		},
	}
	many := &Envelope{Client: Client{Addr: netip.MustParseAddrPort("192.0.2.1:65535"), Protocol: "LMTP"}, Arrived: time.Unix(-1, 5).UTC()}
	for i := range 100_000 {
		many.Recipients = append(many.Recipients, Recipient{Path: fmt.Appendf(nil, "r%d@example.org", i)})
	}
	mapped := &Envelope{Client: Client{Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:1")}}
	user := &Envelope{Client: Client{User: []byte("alice")}}
	facts := &Envelope{Client: Client{User: []byte("alice")}, Results: []byte("spf=pass smtp.mailfrom=a@example.net")}
	results := &Envelope{Results: []byte("spf=none")}
	tls := &Envelope{RequireTLS: true}
	meta := &Envelope{Metadata: []byte(`{"campaign":"x"}`), Client: Client{User: []byte("alice")}}
	key := &Envelope{Idempotency: Idempotency{Key: [32]byte{31: 1}}}
	wishes := &Envelope{
		RequireTLS: true, SMTPUTF8: true, Metadata: []byte(`{}`), Results: []byte("spf=none"),
		Idempotency: Idempotency{Key: [32]byte{1}, Payload: [32]byte{2}, Answer: bytes.Repeat([]byte("a"), MaxAnswerBytes)},
		Recipients:  []Recipient{{Path: []byte("b@example.org")}},
	}
	return []*Envelope{{}, full, many, mapped, user, facts, results, tls, meta, key, wishes}
}

func TestDecodeGivesBackWhatWasAppended(t *testing.T) {
	for _, want := range sampleEnvelopes() {
		b := want.AppendBinary([]byte("before"))[len("before"):]
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Arrived.Equal(want.Arrived) {
			t.Errorf("arrived %v, want %v", got.Arrived, want.Arrived)
		}
		got.Arrived = want.Arrived // the same moment in another form
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	}
}

func TestDecodeRefusesEveryCutAndEveryExtension(t *testing.T) {
	for i, e := range sampleEnvelopes() {
		if i == 2 {
			continue // long
		}
		b := e.AppendBinary(nil)
		for n := range b {
			if _, err := Decode(b[:n:n]); err == nil {
				t.Errorf("the first %d of %d bytes decode", n, len(b))
			}
		}
		if _, err := Decode(append(b, 0)); err == nil {
			t.Error("a byte too many decodes")
		}
	}
}

// What was written before there were later versions must be read for ever: these bytes are fixed.
func TestEarlierVersionsDecode(t *testing.T) {
	fixed := "00000000000000000000000000000000" + "11" + "0100000000000000" + "02000000" + "00000000000000000000000000000000"
	for name, c := range map[string]struct {
		form string
		want Envelope
	}{
		"1": {"01" + fixed + "00" + "00" + "0453 4d5450" + "00" + "0161" + "00" + "01" + "00" + "0162" + "00", Envelope{}},
		"2": {"02" + fixed + "00" + "00" + "0453 4d5450" + "00" + "0175" + "0172" + "0161" + "00" + "01" + "00" + "0162" + "00",
			Envelope{Client: Client{User: []byte("u")}, Results: []byte("r")}},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(c.form, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		want := c.want
		want.Arrived, want.SMTPUTF8, want.Body = time.Unix(1, 2).UTC(), true, Body7Bit
		want.Client.Protocol, want.ReversePath, want.Recipients = "SMTP", []byte("a"), []Recipient{{Path: []byte("b")}}
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("version %s: %v", name, err)
		}
		if !reflect.DeepEqual(got, &want) {
			t.Errorf("version %s: got %+v\nwant %+v", name, got, &want)
		}
		if again := got.AppendBinary(nil); !bytes.Equal(again, b) {
			t.Errorf("version %s is written as %x", name, again)
		}
	}
}

func TestDecodeRefusesWhatNobodyWrites(t *testing.T) {
	with := func(i int, change func(b []byte) []byte) []byte {
		return change(sampleEnvelopes()[i].AppendBinary(nil))
	}
	long := &Envelope{Idempotency: Idempotency{Key: [32]byte{1}, Answer: make([]byte, MaxAnswerBytes+1)}}
	for name, b := range map[string][]byte{
		"an answer over its limit":            long.AppendBinary(nil),
		"version 3 without a need":            with(7, func(b []byte) []byte { b[17] &^= flagRequireTLS; return b }),
		"version 2 with RequireTLS":           with(4, func(b []byte) []byte { b[17] |= flagRequireTLS; return b }),
		"version 3 with an unknown flag":      with(7, func(b []byte) []byte { b[17] |= 1 << 7; return b }),
		"a key of zeros":                      with(9, func(b []byte) []byte { return bytes.Replace(b, []byte{0, 1}, []byte{0, 0}, 1) }),
		"a later version":                     with(7, func(b []byte) []byte { b[0] = 4; return b }),
		"the flag of a key that is not there": with(7, func(b []byte) []byte { b[17] |= flagKey; return b }),
	} {
		if e, err := Decode(b); err == nil {
			t.Errorf("%s decodes to %+v", name, e)
		}
	}
}

func TestAnImpossibleZoneIsStoredWithoutIt(t *testing.T) {
	addr := netip.MustParseAddr("fe80::1").WithZone(strings.Repeat("z", 300))
	e := &Envelope{Client: Client{Addr: netip.AddrPortFrom(addr, 25)}}
	got, err := Decode(e.AppendBinary(nil))
	if err != nil || got.Client.Addr.String() != "[fe80::1]:25" {
		t.Fatalf("got %v, %v", got, err)
	}
}

// FuzzDecode: no panic, and whatever decodes is the one form of that envelope.
func FuzzDecode(f *testing.F) {
	for i, e := range sampleEnvelopes() {
		if i != 2 {
			f.Add(e.AppendBinary(nil))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		if again := e.AppendBinary(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to an envelope that is written as %x", b, again)
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	e := sampleEnvelopes()[1]
	bin := e.AppendBinary(nil)
	b.Run("op=append", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(bin)))
		for b.Loop() {
			bin = e.AppendBinary(bin[:0])
		}
	})
	b.Run("op=decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(bin)))
		for b.Loop() {
			if _, err := Decode(bin); err != nil {
				b.Fatal(err)
			}
		}
	})
}
