package jetstream

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// asSent gives the message as the stream would give it back.
func asSent(t testing.TB, sub *queue.Submission, text []byte) *stored {
	t.Helper()
	binary := sub.Env.AppendBinary(nil)
	h := headers(sub.Env, binary, crc32.Checksum(binary, castagnoli), crc32.Checksum(text, castagnoli))
	return &stored{stream: "MAIL", seq: 7, header: overTheWire(t, h), data: text}
}

// overTheWire sends a header through nats.go's encoding and back.
func overTheWire(t testing.TB, h nats.Header) nats.Header {
	t.Helper()
	var wire bytes.Buffer
	wire.WriteString("NATS/1.0\r\n")
	for key, values := range h {
		for _, v := range values {
			wire.WriteString(key + ": " + v + "\r\n")
		}
	}
	wire.WriteString("\r\n")
	back, err := nats.DecodeHeadersMsg(wire.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return back
}

func TestHostileAddressesStayInTheirHeaderFieldsAndComeOutExactly(t *testing.T) {
	hostile := "a\r\nNats-Msg-Id: other\r\n\r\nb\x00\x7F\xFF@example.net"
	maker := queuetest.NewMaker(nil)
	sub, _ := maker.Submission(100, 0)
	env := sub.Env
	env.ReversePath = env.KeepString(hostile)
	env.AddRecipient([]byte(hostile), []byte("rfc822;\r\nx"), 0)
	env.AddRecipient([]byte("\r\n"), nil, 0)
	env.Client.Helo = env.KeepString(hostile)
	env.Client.User = env.KeepString(hostile)
	env.Results = env.KeepString("spf=pass\r\nFastedge-Object: x")
	m := asSent(t, sub, bodyOf(env))
	if got := m.header[hdrMsgID]; len(got) != 1 || got[0] != env.ID.String() {
		t.Errorf("%s is %q", hdrMsgID, got)
	}
	if m.header.Get(hdrObject) != "" {
		t.Error("a field was smuggled in")
	}
	for key, values := range m.header {
		for _, v := range values {
			if strings.ContainsAny(v, "\r\n\x00\x7F") {
				t.Errorf("%s: %q", key, v)
			}
		}
	}
	p, err := m.parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.env.AppendBinary(nil), env.AppendBinary(nil)) {
		t.Errorf("the envelope has changed\n%q\n%q", p.env.AppendBinary(nil), env.AppendBinary(nil))
	}
}

func bodyOf(env *envelope.Envelope) (body []byte) {
	for piece := range pieces(env) {
		body = append(body, piece...)
	}
	return body
}

func TestVeryManyRecipientsFitTheirHeader(t *testing.T) {
	maker := queuetest.NewMaker(nil)
	sub, _ := maker.Submission(10, 0)
	path := []byte(strings.Repeat("x", 200) + "@example.org")
	for range 1000 {
		sub.Env.AddRecipient(path, nil, 0)
	}
	sub.Env.Metadata = bytes.Repeat([]byte("x"), maxFieldBytes+1)
	binary := sub.Env.AppendBinary(nil)
	header := headers(sub.Env, binary[:maxInlineEnvelope], 0, 0) // the longest that is put into a field
	if n := headerBytes(header); n > 60<<10 {
		t.Errorf("the header has %d bytes", n)
	}
	if header.Get(hdrMetadata) != "" {
		t.Error("a field that is too long")
	}
	m := asSent(t, sub, bodyOf(sub.Env))
	n := len(m.header.Values(hdrTo))
	if more := m.header.Get(hdrToMore); n < 30 || n >= 1000 || more == "" {
		t.Errorf("%d fields and %q more", n, more)
	}
	if p, err := m.parse(nil); err != nil || len(p.env.Recipients) != 1000 {
		t.Error("recipients are missing", err)
	}
}

// Whatever bit is turned, the message is damaged, or is what it was in all that is handed on.
func TestEveryTurnedBitOfBodyEnvelopeAndSumIsSeen(t *testing.T) {
	maker := queuetest.NewMaker(nil)
	sub, _ := maker.Submission(40, 1)
	good := asSent(t, sub, bodyOf(sub.Env))
	if _, err := good.parse(nil); err != nil {
		t.Fatal(err)
	}
	for i := range len(good.data) * 8 {
		bad := *good
		bad.data = bytes.Clone(good.data)
		bad.data[i/8] ^= 1 << (i % 8)
		if _, err := bad.parse(nil); err == nil {
			t.Fatalf("bit %d of the body", i)
		}
	}
	for _, key := range []string{hdrEnvelope, hdrSum, hdrSize, hdrID} {
		value := good.header.Get(key)
		for i := range len(value) * 8 {
			text := []byte(value)
			text[i/8] ^= 1 << (i % 8)
			bad := *good
			bad.header = nats.Header{}
			for k, v := range good.header {
				bad.header[k] = v
			}
			bad.header[key] = []string{string(text)}
			p, err := bad.parse(nil)
			// A letter of an id, of base 64's last digit or of a sum may have another case or spare bits and mean the same.
			if err == nil && (!bytes.Equal(p.env.AppendBinary(nil), sub.Env.AppendBinary(nil)) || !bytes.Equal(p.body, good.data)) {
				t.Fatalf("bit %d of %s", i, key)
			}
		}
	}
}

func TestOutcomesComeBackFromTheirRecord(t *testing.T) {
	outcomes := []queue.Outcome{deliveredOutcome, deferredOutcome, refusedOutcome, deferredOutcome, {}}
	r := &record{State: queue.Waiting, Attempts: 3}
	r.setOutcomes(outcomes)
	if len(r.Replies) != 3 {
		t.Errorf("replies %q", r.Replies)
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	back, err := parseRecord(&stored{data: text})
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range back.outcomes(len(outcomes)) {
		if o != outcomes[i] {
			t.Errorf("%d: %+v", i, o)
		}
	}
	for _, o := range back.outcomes(2) { // a record of another message
		if o != (queue.Outcome{}) {
			t.Errorf("%+v", o)
		}
	}
	many := make([]queue.Outcome, 2000)
	for i := range many {
		many[i] = queue.Outcome{State: queue.Failed, Reply: strings.Repeat("x", maxReplyBytes-10) + string(rune('0'+i%10)) + string(rune('0'+i/10%10)) + string(rune('0'+i/100))}
	}
	r.setOutcomes(many)
	if text, _ := json.Marshal(r); len(text) > 2*maxStateBytes {
		t.Errorf("a record of %d bytes", len(text))
	}
}

// Nothing that stands in a stream may stop a relay, whoever has put it there.
func FuzzParse(f *testing.F) {
	maker := queuetest.NewMaker(nil)
	sub, _ := maker.Submission(30, 2)
	good := asSent(f, sub, bodyOf(sub.Env))
	f.Add(good.header.Get(hdrID), good.header.Get(hdrSum), good.header.Get(hdrSize), good.header.Get(hdrTraceBytes), good.header.Get(hdrEnvelope), good.data, "")
	f.Add("", "", "", "", "", []byte("x"), "object")
	f.Add("01m82f0t4gh1h0zv4ycatw9xy1", "00000000 00000000", "-1", "99999999999", "====", []byte(nil), "")
	f.Fuzz(func(t *testing.T, id, sum, size, trace, env string, data []byte, object string) {
		m := &stored{stream: "MAIL", seq: 1, data: data, header: nats.Header{
			hdrID: {id}, hdrSum: {sum}, hdrSize: {size}, hdrTraceBytes: {trace}, hdrEnvelope: {env}, hdrObject: {object},
		}}
		m.id()
		m.arrived()
		if m.size() < 0 {
			t.Fatal("negative size")
		}
		p, err := m.parse(nil)
		if err != nil {
			return
		}
		// What is accepted is whole: the envelope is the message's, and a body has its checksum.
		if binary, err := base64.StdEncoding.DecodeString(env); err != nil || !bytes.Equal(p.env.AppendBinary(nil), binary) {
			t.Fatal("another envelope")
		}
		if p.object == "" && (int64(len(p.body)) != p.size || len(p.env.Trace) != p.traceBytes) {
			t.Fatal("another length")
		}
	})
}

func FuzzRecord(f *testing.F) {
	r := &record{State: queue.Waiting, Attempts: 1, Seq: 5, Ack: "$JS.ACK"}
	r.setOutcomes([]queue.Outcome{deliveredOutcome, deferredOutcome})
	text, _ := json.Marshal(r)
	f.Add(text, 2)
	f.Add([]byte(`{"state":"held","recipients":"xx","reply":[9,-1],"replies":null}`), 2)
	f.Fuzz(func(t *testing.T, text []byte, n int) {
		r, err := parseRecord(&stored{data: text})
		if err != nil {
			return
		}
		n = max(0, min(n, 1000))
		outcomes := r.outcomes(n)
		if len(outcomes) != n {
			t.Fatal("another number of outcomes")
		}
		again := &record{}
		again.setOutcomes(outcomes)
		for i, o := range again.outcomes(n) {
			if o != outcomes[i] {
				t.Fatalf("%+v became %+v", outcomes[i], o)
			}
		}
	})
}

func FuzzAck(f *testing.F) {
	f.Add([]byte(`{"stream":"MAIL","seq":1}`))
	f.Add([]byte(`{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a := parseAck(&nats.Msg{Data: data}, "MAIL")
		if a.err != nil {
			return
		}
		var doc struct {
			Stream string `json:"stream"`
			Seq    uint64 `json:"seq"`
			Error  any    `json:"error"`
		}
		// Only what says the stream's name and a place in it is believed.
		if json.Unmarshal(data, &doc) != nil || doc.Stream != "MAIL" || doc.Seq == 0 || doc.Error != nil {
			t.Fatalf("believed %q", data)
		}
	})
}
