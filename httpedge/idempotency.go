package httpedge

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/smtpcodec"
)

// maxKeyBytes is the longest idempotency key.
const maxKeyBytes = 255

// validKey says whether p may be an idempotency key: 1 to 255 visible ASCII characters.
func validKey(p []byte) bool {
	for _, c := range p {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(p) > 0 && len(p) <= maxKeyBytes
}

// parseKey appends the key that the value of Idempotency-Key holds to dst: a quoted string (RFC 8941 §3.3.3), as the draft of the header
// has it, or the same characters bare, as most clients send them. ok is false when it is neither; out is dst then. Blanks are refused in
// both forms, so that each key can be given in both.
func parseKey(dst, value []byte) (out []byte, ok bool) {
	value = trimBlanks(value)
	if len(value) == 0 || value[0] != '"' {
		if !validKey(value) {
			return dst, false
		}
		return append(dst, value...), true
	}
	out = dst
	for i := 1; i < len(value); i++ {
		c := value[i]
		if c == '"' {
			if i != len(value)-1 || !validKey(out[len(dst):]) {
				return dst, false
			}
			return out, true
		}
		if c == '\\' {
			if i++; i == len(value) || value[i] != '"' && value[i] != '\\' {
				return dst, false
			}
			c = value[i]
		}
		out = append(out, c)
	}
	return dst, false
}

// keyOf is what stands for a key in the table and in the queue: nobody meets a key that was given with another credential.
func keyOf(credential, key []byte) [32]byte {
	var room [512]byte
	p := binary.BigEndian.AppendUint32(room[:0], uint32(len(credential)))
	return sha256.Sum256(append(append(p, credential...), key...))
}

// keyState is what the table knows of a key.
type keyState uint8

const (
	keyFresh    keyState = iota // not known; it is in flight now, and whoever asked calls done or drop
	keyReplay                   // done, with the same payload
	keyMismatch                 // known with another payload
	keyInFlight                 // being worked on
	keyFull                     // not known, and no room for one more
)

// keyTable remembers which submissions were made under which idempotency key, for a time, and which are being made. Any goroutine.
//
// Memory: some 200 bytes a key, and the answers: of these there may be answerBytesPerKey bytes for each key that there may be, in all.
type keyTable struct {
	max     int64
	ttl     time.Duration
	keys    atomic.Int64 // in all shards
	answers atomic.Int64 // bytes
	shards  [keyShards]keyShard
}

const (
	keyShards         = 16
	answerBytesPerKey = 128 // 1,000,000 keys × 128 bytes = 128 MB
	maxExpiredAtOnce  = 64  // keys forgotten by one call of begin
)

type keyShard struct {
	mu    sync.Mutex
	known map[[32]byte]keyEntry
	// In the order in which they were done, and so in which they are forgotten, or nearly: a key is forgotten late rather than searched for.
	expiring []expiringKey
	head     int // of expiring: those before it are gone
	_        [24]byte
}

type keyEntry struct {
	payload [32]byte
	id      envelope.ID // zero while in flight
	answer  []byte
}

type expiringKey struct {
	key [32]byte
	at  int64 // Unix time in milliseconds
}

// newKeys gives a table of at most max keys, each remembered for ttl from the arrival of its message.
func newKeys(max int, ttl time.Duration) *keyTable {
	t := &keyTable{max: int64(max), ttl: ttl}
	for i := range t.shards {
		t.shards[i].known = make(map[[32]byte]keyEntry)
	}
	return t
}

func (t *keyTable) shard(key [32]byte) *keyShard { return &t.shards[key[0]%keyShards] }

// expiry is when a message's key is forgotten.
func (t *keyTable) expiry(id envelope.ID) int64 { return id.Time().Add(t.ttl).UnixMilli() }

// load adds a key that the queue has remembered; of one that comes twice the last counts. What is over the table's bounds puts out the oldest, which
// may be itself: those that clients may still ask for are the newest. For the start, before any begin, from one goroutine.
func (t *keyTable) load(r queue.Remembered) {
	s := t.shard(r.Key)
	if old, known := s.known[r.Key]; known {
		t.forget(s, r.Key, old)
	}
	for t.full() {
		if !t.forgetOldest(t.expiry(r.ID)) {
			return
		}
	}
	t.keys.Add(1)
	t.put(s, r.Key, keyEntry{payload: r.Payload, id: r.ID, answer: r.Answer})
}

func (t *keyTable) forget(s *keyShard, key [32]byte, e keyEntry) {
	delete(s.known, key)
	t.keys.Add(-1)
	t.answers.Add(-int64(len(e.answer)))
}

// forgetOldest forgets the key that is the first to expire, unless that is after before. Shards are in the order of load, which is that of arrival or
// nearly so.
func (t *keyTable) forgetOldest(before int64) bool {
	for {
		var oldest *keyShard
		for i := range t.shards {
			if s := &t.shards[i]; s.head < len(s.expiring) && (oldest == nil || s.expiring[s.head].at < oldest.expiring[oldest.head].at) {
				oldest = s
			}
		}
		if oldest == nil || oldest.expiring[oldest.head].at > before {
			return false
		}
		one := oldest.expiring[oldest.head]
		oldest.head++
		// It may have come again.
		if e, known := oldest.known[one.key]; known && t.expiry(e.id) == one.at {
			t.forget(oldest, one.key, e)
			return true
		}
	}
}

func (t *keyTable) full() bool {
	return t.keys.Load() >= t.max || t.answers.Load() >= t.max*answerBytesPerKey
}

// put notes that a key is done, and takes e.answer.
func (t *keyTable) put(s *keyShard, key [32]byte, e keyEntry) {
	t.answers.Add(int64(len(e.answer)))
	s.known[key] = e
	s.expiring = append(s.expiring, expiringKey{key, t.expiry(e.id)})
}

// begin looks at a key before its message is worked on. payload is the SHA-256 of all that makes the message what it is. With keyReplay,
// first is the submission that was made; its Answer must not be changed and may be kept. With keyFresh the caller has reserved the key:
// done or drop must follow, whatever happens.
func (t *keyTable) begin(key, payload [32]byte, now time.Time) (state keyState, first queue.Remembered) {
	s := t.shard(key)
	if state, first = t.look(s, key, payload, now); state != keyFull {
		return state, first
	}
	// Other shards may hold keys whose time is over.
	for i := range t.shards {
		o := &t.shards[i]
		o.mu.Lock()
		t.expire(o, now.UnixMilli(), len(o.expiring))
		o.mu.Unlock()
	}
	return t.look(s, key, payload, now)
}

func (t *keyTable) look(s *keyShard, key, payload [32]byte, now time.Time) (keyState, queue.Remembered) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.expire(s, now.UnixMilli(), maxExpiredAtOnce)
	e, known := s.known[key]
	switch {
	case known && e.id == (envelope.ID{}) && e.payload != payload:
		return keyMismatch, queue.Remembered{}
	case known && e.id == (envelope.ID{}):
		return keyInFlight, queue.Remembered{}
	case known && t.expiry(e.id) > now.UnixMilli():
		if e.payload != payload {
			return keyMismatch, queue.Remembered{}
		}
		return keyReplay, queue.Remembered{ID: e.id, Idempotency: envelope.Idempotency{Key: key, Payload: payload, Answer: e.answer}}
	case known: // its time is over, and its turn in expiring has not come
		t.answers.Add(-int64(len(e.answer)))
	case t.answers.Load() >= t.max*answerBytesPerKey:
		return keyFull, queue.Remembered{}
	case t.keys.Add(1) > t.max:
		t.keys.Add(-1)
		return keyFull, queue.Remembered{}
	}
	s.known[key] = keyEntry{payload: payload}
	return keyFresh, queue.Remembered{}
}

// expire forgets at most limit keys whose time is over.
func (t *keyTable) expire(s *keyShard, now int64, limit int) {
	for ; limit > 0 && s.head < len(s.expiring) && s.expiring[s.head].at <= now; limit-- {
		key := s.expiring[s.head].key
		s.head++
		// It may have been given again, and be in flight or done a second time.
		if e, known := s.known[key]; known && e.id != (envelope.ID{}) && t.expiry(e.id) <= now {
			delete(s.known, key)
			t.keys.Add(-1)
			t.answers.Add(-int64(len(e.answer)))
		}
	}
	if s.head > len(s.expiring)/2 {
		s.expiring = s.expiring[:copy(s.expiring, s.expiring[s.head:])]
		s.head = 0
	}
}

// done says that the message of a key that begin has reserved is durable. answer is copied.
func (t *keyTable) done(key [32]byte, id envelope.ID, answer []byte) {
	s := t.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.reserved(key)
	e.id, e.answer = id, slices.Clone(answer)
	t.put(s, key, e)
}

// drop says that nothing came of the message of a key that begin has reserved: the key is not known any more.
func (t *keyTable) drop(key [32]byte) {
	s := t.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved(key)
	delete(s.known, key)
	t.keys.Add(-1)
}

func (s *keyShard) reserved(key [32]byte) keyEntry {
	e, known := s.known[key]
	if !known || e.id != (envelope.ID{}) {
		panic(fmt.Sprintf("httpedge: idempotency key %x is not in flight", key))
	}
	return e
}

// The first byte of an answer says what follows.
const (
	answerUnlisted = iota // nothing
	answerTexts           // runs of recipients with equal replies
	answerCodes           // the same without texts
)

// appendAnswer appends what became of the recipients, in at most envelope.MaxAnswerBytes: what a later request with the same key and
// payload is answered from. Addresses are left out, for that request has them. When texts make it too long they are left out, and when
// replies differ so much that there is no room for codes (more than 1,000 recipients, each refused with another one than the one before)
// it says nothing of recipients.
func appendAnswer(dst []byte, rcpts []recipientResult) []byte {
	start := len(dst)
	for _, kind := range [...]byte{answerTexts, answerCodes} {
		dst = append(dst, kind)
		for i := 0; i < len(rcpts) && len(dst)-start <= envelope.MaxAnswerBytes; {
			r := &rcpts[i].Reply
			n := 1
			for i+n < len(rcpts) && sameReply(r, &rcpts[i+n].Reply, kind) {
				n++
			}
			dst = binary.AppendUvarint(dst, uint64(n))
			dst = binary.AppendUvarint(dst, uint64(r.Code))
			dst = binary.AppendUvarint(dst, uint64(r.Enhanced.Class))
			dst = binary.AppendUvarint(dst, uint64(r.Enhanced.Subject))
			dst = binary.AppendUvarint(dst, uint64(r.Enhanced.Detail))
			if kind == answerTexts {
				dst = append(binary.AppendUvarint(dst, uint64(len(r.Text))), r.Text...)
			}
			i += n
		}
		if len(dst)-start <= envelope.MaxAnswerBytes && len(rcpts) <= maxAnswerRecipients {
			return dst
		}
		dst = dst[:start]
	}
	return append(dst, answerUnlisted)
}

func sameReply(a, b *smtpcodec.Reply, kind byte) bool {
	return a.Code == b.Code && a.Enhanced == b.Enhanced && (kind == answerCodes || a.Text == b.Text)
}

// maxAnswerRecipients bounds what parseAnswer makes of a few bytes.
const maxAnswerRecipients = 100_000

// parseAnswer appends the recipients' replies to dst, in order and without addresses: none when the answer says nothing of them. ok is
// false when it is none of appendAnswer's; dst is given back then.
func parseAnswer(dst []recipientResult, answer []byte) (rcpts []recipientResult, ok bool) {
	if len(answer) == 0 || answer[0] > answerCodes || answer[0] == answerUnlisted && len(answer) > 1 {
		return dst, false
	}
	p := answerReader{rest: answer[1:]}
	for rcpts = dst; len(p.rest) > 0; {
		n := p.number(uint64(maxAnswerRecipients - (len(rcpts) - len(dst))))
		r := smtpcodec.Reply{Code: uint16(p.number(599))}
		r.Enhanced = smtpcodec.EnhancedCode{Class: uint16(p.number(5)), Subject: uint16(p.number(999)), Detail: uint16(p.number(999))}
		if answer[0] == answerTexts {
			r.Text = p.text()
		}
		if p.bad || n == 0 || r.Code < 200 {
			return dst, false
		}
		for range n {
			rcpts = append(rcpts, recipientResult{Reply: r})
		}
	}
	return rcpts, true
}

// answerReader takes an answer apart.
type answerReader struct {
	rest []byte
	bad  bool
}

func (p *answerReader) number(most uint64) uint64 {
	v, n := binary.Uvarint(p.rest)
	if n <= 0 || v > most {
		p.rest, p.bad = nil, true
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

func (p *answerReader) text() string {
	n := p.number(uint64(len(p.rest)))
	if n > uint64(len(p.rest)) {
		p.rest, p.bad = nil, true
		return ""
	}
	text := string(p.rest[:n])
	p.rest = p.rest[n:]
	return text
}
