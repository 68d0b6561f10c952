package jetstream

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// Header fields of a message. Those that a consumer outside may want are plain; Fastedge-Envelope has everything, exactly.
const (
	hdrMsgID      = "Nats-Msg-Id"
	hdrID         = "Fastedge-Id"
	hdrFrom       = "Fastedge-From"
	hdrTo         = "Fastedge-To"      // one field for each recipient
	hdrToMore     = "Fastedge-To-More" // number of recipients that have no field, when there are too many
	hdrClient     = "Fastedge-Client"
	hdrHelo       = "Fastedge-Helo"
	hdrProtocol   = "Fastedge-Protocol"
	hdrUser       = "Fastedge-User"
	hdrListener   = "Fastedge-Listener"
	hdrArrived    = "Fastedge-Arrived"
	hdrResults    = "Fastedge-Results"
	hdrMetadata   = "Fastedge-Metadata"
	hdrEnvelope   = "Fastedge-Envelope"        // base64 of envelope.AppendBinary
	hdrEnvelopeAt = "Fastedge-Envelope-Object" // in its place when it is too long for a field
	hdrSum        = "Fastedge-Sum"             // CRC32C of body and of the envelope's binary form, 8 hex digits each
	hdrSize       = "Fastedge-Size"            // bytes of the body
	hdrTraceBytes = "Fastedge-Trace-Bytes"     // how many of them are ours
	hdrObject     = "Fastedge-Object"          // the body is this object of the bucket
	hdrStream     = "Fastedge-Stream"          // of a chunk of an object: whose it is
	hdrReason     = "Fastedge-Reason"          // why it is held or dead
	hdrAgain      = "Fastedge-Again"           // there is a state record
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// field makes v fit for a header field: what could end the field or disturb a reader becomes a question mark. The exact bytes are in
// Fastedge-Envelope.
func field[T []byte | string](v T) string {
	for i := range len(v) {
		if v[i] < ' ' || v[i] == 0x7F {
			b := append([]byte(nil), v...)
			for j := i; j < len(b); j++ {
				if b[j] < ' ' || b[j] == 0x7F {
					b[j] = '?'
				}
			}
			return string(b)
		}
	}
	return string(v)
}

// headers are the fields of env's message, whose body has that checksum. binary is the envelope's form, or nil when it is in an object.
func headers(env *envelope.Envelope, binary []byte, binarySum, bodySum uint32) nats.Header {
	id := env.ID.String()
	one := make([]string, 0, 18)
	h := make(nats.Header, 20)
	set := func(key, value string) {
		one = append(one, value)
		h[key] = one[len(one)-1 : len(one) : len(one)]
	}
	some := func(key string, value []byte) {
		if len(value) > 0 && len(value) <= maxFieldBytes {
			set(key, field(value))
		}
	}
	set(hdrMsgID, id)
	set(hdrID, id)
	set(hdrFrom, field(env.ReversePath[:min(len(env.ReversePath), maxFieldBytes)]))
	to, room := make([]string, 0, len(env.Recipients)), maxToHeaderBytes
	for i := range env.Recipients {
		room -= len(env.Recipients[i].Path) + len(hdrTo) + 4
		if room < 0 {
			set(hdrToMore, strconv.Itoa(len(env.Recipients)-i))
			break
		}
		to = append(to, field(env.Recipients[i].Path))
	}
	h[hdrTo] = to
	if env.Client.Addr.IsValid() {
		set(hdrClient, env.Client.Addr.String())
	}
	some(hdrHelo, env.Client.Helo)
	set(hdrProtocol, field(env.Client.Protocol))
	some(hdrUser, env.Client.User)
	set(hdrListener, field(env.Client.Listener))
	set(hdrArrived, env.Arrived.UTC().Format(time.RFC3339Nano))
	some(hdrResults, env.Results)
	some(hdrMetadata, env.Metadata)
	set(hdrSize, strconv.FormatInt(env.Size(), 10))
	set(hdrTraceBytes, strconv.Itoa(len(env.Trace)))
	set(hdrSum, sumText(bodySum, binarySum))
	if binary != nil {
		set(hdrEnvelope, base64.StdEncoding.EncodeToString(binary))
	}
	return h
}

func sumText(body, envelope uint32) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 0, 17)
	for _, v := range [2]uint32{body, envelope} {
		if len(b) > 0 {
			b = append(b, ' ')
		}
		for shift := 28; shift >= 0; shift -= 4 {
			b = append(b, digits[v>>shift&15])
		}
	}
	return string(b)
}

func parseSum(s string) (body, envelope uint32, ok bool) {
	if len(s) != 17 || s[8] != ' ' {
		return 0, 0, false
	}
	a, err1 := strconv.ParseUint(s[:8], 16, 32)
	b, err2 := strconv.ParseUint(s[9:], 16, 32)
	return uint32(a), uint32(b), err1 == nil && err2 == nil
}

// stored is a message as it stands in one of the streams.
type stored struct {
	stream  string
	seq     uint64
	subject string
	time    time.Time // when the stream took it
	header  nats.Header
	data    []byte
}

// damage is why a message can't be handed on.
type damage struct{ what string }

func (d damage) Error() string        { return "jetstream: " + d.what + " does not match its checksum" }
func (d damage) Is(target error) bool { return target == queue.ErrCorrupt }

// id says whose message it is. Ours have a field for it. A message that some other program published here gets an id from when and
// where it stands, so that it can be shown, and set aside.
func (m *stored) id() (id envelope.ID, ours bool) {
	if id, err := envelope.ParseID(m.header.Get(hdrID)); err == nil {
		return id, true
	}
	binary.BigEndian.PutUint64(id[:8], uint64(max(m.time.UnixMilli(), 0))<<16)
	binary.BigEndian.PutUint64(id[8:], m.seq)
	return id, false
}

// size is the length of the message as handed on.
func (m *stored) size() int64 {
	if n, err := strconv.ParseInt(m.header.Get(hdrSize), 10, 64); err == nil && n >= 0 {
		return n
	}
	return int64(len(m.data))
}

func (m *stored) arrived() time.Time {
	if t, err := time.Parse(time.RFC3339Nano, m.header.Get(hdrArrived)); err == nil {
		return t.UTC()
	}
	return m.time.UTC()
}

// parsed is a message whose header has been read.
type parsed struct {
	env        *envelope.Envelope // without Trace, unless the body is here
	body       []byte             // nil when it is an object
	object     string
	size       int64
	traceBytes int
	bodySum    uint32
}

// parse reads and checks header and body. envelopeBinary is the envelope's form when it had to be fetched from an object, else nil.
// Its result points into m.
func (m *stored) parse(envelopeBinary []byte) (*parsed, error) {
	p := &parsed{object: m.header.Get(hdrObject)}
	env, bodySum, err := m.envelopeAndSum(envelopeBinary)
	if err != nil {
		return nil, err
	}
	p.bodySum = bodySum
	p.env = env
	size, err := strconv.ParseInt(m.header.Get(hdrSize), 10, 64)
	if err != nil || size < 0 {
		return nil, damage{"header (" + hdrSize + ")"}
	}
	trace, err := strconv.ParseUint(m.header.Get(hdrTraceBytes), 10, 31)
	if err != nil || int64(trace) > size {
		return nil, damage{"header (" + hdrTraceBytes + ")"}
	}
	p.size, p.traceBytes = size, int(trace)
	if p.object != "" {
		return p, nil
	}
	if int64(len(m.data)) != size || crc32.Checksum(m.data, castagnoli) != bodySum {
		return nil, damage{"message data"}
	}
	p.body = m.data
	if trace > 0 {
		env.Trace = m.data[:trace:trace]
	}
	return p, nil
}

// whole says ErrCorrupt when a message of ours has not the body that it was published with. An object is not looked at.
func (m *stored) whole() error {
	if m.header.Get(hdrObject) != "" {
		return nil
	}
	sum, _, ok := parseSum(m.header.Get(hdrSum))
	size, err := strconv.ParseInt(m.header.Get(hdrSize), 10, 64)
	if !ok || err != nil || int64(len(m.data)) != size || crc32.Checksum(m.data, castagnoli) != sum {
		return damage{"message data"}
	}
	return nil
}

// envelope reads the envelope alone.
func (m *stored) envelope(binary []byte) (*envelope.Envelope, error) {
	env, _, err := m.envelopeAndSum(binary)
	return env, err
}

func (m *stored) envelopeAndSum(binary []byte) (env *envelope.Envelope, bodySum uint32, err error) {
	id, ours := m.id()
	if !ours {
		return nil, 0, fmt.Errorf("jetstream: message %d of %s was not published by us: no %s", m.seq, m.stream, hdrID)
	}
	bodySum, envSum, ok := parseSum(m.header.Get(hdrSum))
	if !ok {
		return nil, 0, damage{"header (" + hdrSum + ")"}
	}
	if binary == nil {
		if binary, err = base64.StdEncoding.DecodeString(m.header.Get(hdrEnvelope)); err != nil {
			return nil, 0, damage{"envelope"}
		}
	}
	if crc32.Checksum(binary, castagnoli) != envSum {
		return nil, 0, damage{"envelope"}
	}
	if env, err = envelope.Decode(binary); err != nil || env.ID != id {
		return nil, 0, damage{"envelope (malformed)"}
	}
	return env, bodySum, nil
}

// record is what is known of a message besides the message: one to each id in the state stream, JSON. A message that was never tried has none.
type record struct {
	State    queue.State `json:"state"`
	Attempts int         `json:"attempts"`
	Next     time.Time   `json:"next,omitzero"`
	Reason   string      `json:"reason,omitempty"`
	// Seq is the message's place in the mail stream, 0 when it is not known; Ack is where its consumer takes acknowledgements.
	Seq uint64 `json:"seq,omitempty"`
	Ack string `json:"ack,omitempty"`
	// Recipients has one letter for each: p pending, d delivered, f failed. Reply[i] is the place of its reply in Replies, from 1; 0 is none.
	Recipients string   `json:"recipients,omitempty"`
	Reply      []int    `json:"reply,omitempty"`
	Replies    []string `json:"replies,omitempty"`

	seq  uint64 // the record's own, in the state stream
	time time.Time
}

const rcptLetters = "pdf"

// setOutcomes keeps outcomes; replies that many recipients share are kept once, and all are cut when together they are too long.
func (r *record) setOutcomes(outcomes []queue.Outcome) {
	r.Recipients, r.Reply, r.Replies = "", nil, nil
	if outcomes == nil {
		return
	}
	letters := make([]byte, len(outcomes))
	r.Reply = make([]int, len(outcomes))
	places, total := map[string]int{}, 0
	for i, o := range outcomes {
		letters[i] = rcptLetters[o.State]
		if o.Reply == "" {
			continue
		}
		place, ok := places[o.Reply]
		if !ok {
			r.Replies = append(r.Replies, o.Reply)
			place = len(r.Replies)
			places[o.Reply] = place
			total += len(o.Reply)
		}
		r.Reply[i] = place
	}
	if total > maxStateBytes {
		limit := maxStateBytes / len(r.Replies)
		for i, reply := range r.Replies {
			r.Replies[i] = printable(reply, limit)
		}
	}
	r.Recipients = string(letters)
}

// outcomes gives what setOutcomes kept, for n recipients; all are pending when there is nothing, or not for that many.
func (r *record) outcomes(n int) []queue.Outcome {
	outcomes := make([]queue.Outcome, n)
	if r == nil || len(r.Recipients) != n || len(r.Reply) != n {
		return outcomes
	}
	for i := range outcomes {
		state := strings.IndexByte(rcptLetters, r.Recipients[i])
		if state < 0 {
			return make([]queue.Outcome, n)
		}
		outcomes[i].State = queue.RcptState(state)
		if place := r.Reply[i]; place > 0 && place <= len(r.Replies) {
			outcomes[i].Reply = r.Replies[place-1]
		}
	}
	return outcomes
}

func parseRecord(m *stored) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(m.data, r); err != nil {
		return nil, fmt.Errorf("jetstream: state record of %s: %w", m.subject, err)
	}
	if r.Attempts < 0 || r.State > queue.Damaged {
		return nil, fmt.Errorf("jetstream: state record of %s makes no sense", m.subject)
	}
	r.seq, r.time = m.seq, m.time
	return r, nil
}

// printable cuts a reply to limit bytes and replaces what could disturb a terminal, a log or a header field.
func printable(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F {
			return ' '
		}
		return r
	}, s), "?")
}
