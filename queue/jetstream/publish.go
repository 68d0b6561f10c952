package jetstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	js "github.com/nats-io/nats.go/jetstream"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// flight is a row of messages to publish.
type flight struct {
	stream   string // whose acknowledgement counts
	n        int
	message  func(i int) (*nats.Msg, error) // builds message i; borrowed until the next call
	size     func(i int) int64
	mode     batchMode
	strict   bool // order matters, and nothing may be sent twice: any trouble ends it
	deadline time.Time

	errs []error  // of each message; nil is stored
	seqs []uint64 // in the stream, when acknowledged one by one

	unsure []bool // it was sent once and there is no knowing what became of that
}

// itemState is where one message of a flight stands.
type itemState uint8

const (
	unsent itemState = iota
	sent
	done   // stored, or refused for good
	resend // refused for now, or its acknowledgement is lost
)

// publisher sends flights, one at a time, and takes the acknowledgements. nats.go has asynchronous publishing of its own; it blocks when
// its window is full, and keeps a message that it may send again, whose memory can then not be used for the next one.
type publisher struct {
	q    *Queue
	wake chan struct{} // capacity 1: something to look at

	mu          sync.Mutex
	f           *flight
	generation  uint64 // of what is on its way; answers to an older one are late and ignored
	items       []itemState
	outstanding int
	bytes       int64 // of outstanding
	answered    int   // answers taken, to see progress
	interrupted bool  // the connection was lost: what is outstanding is unknown
	wantRoom    bool  // the sender sleeps until half the window is free
	reason      string

	batch struct { // of a fast or atomic batch
		order   []int // item of each place, from 0
		acked   int   // places stored
		count   int   // places stored at its end, -1 before
		tainted bool  // something went wrong: nothing beyond acked is believed
	}
}

func (p *publisher) init(q *Queue) {
	p.q, p.wake = q, make(chan struct{}, 1)
}

func (p *publisher) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// interrupt is called when the connection is lost or back.
func (p *publisher) interrupt() {
	p.mu.Lock()
	p.interrupted = true
	p.mu.Unlock()
	p.signal()
}

// errTrouble is what a flight gives to messages without an answer.
func (p *publisher) errTrouble() error {
	reason := p.reason
	if reason == "" {
		reason = "no acknowledgement in time"
		if complaint := p.q.asyncErr.Load(); complaint != nil {
			reason += "; the server said: " + *complaint
		}
	}
	return fmt.Errorf("jetstream: %w: %s", queue.ErrUnavailable, reason)
}

// run publishes f and returns when each message is stored, refused, or out of time.
func (p *publisher) run(f *flight) {
	f.errs, f.seqs, f.unsure = make([]error, f.n), make([]uint64, f.n), make([]bool, f.n)
	p.mu.Lock()
	p.f, p.reason = f, ""
	if cap(p.items) < f.n {
		p.items = make([]itemState, f.n)
	}
	p.items = p.items[:f.n]
	clear(p.items)
	p.mu.Unlock()

	mode := f.mode
	for round := 0; ; round++ {
		todo := p.begin()
		if len(todo) == 0 {
			break
		}
		if !p.q.nc.IsConnected() {
			p.fail("not connected")
		} else {
			switch {
			case mode == modeFast && len(todo) >= minFast:
				p.fast(todo)
			case mode == modeAtomic && len(todo) > 1:
				for len(todo) > 0 {
					n := min(len(todo), maxAtomic)
					p.atomic(todo[:n])
					todo = todo[n:]
				}
			default:
				p.async(todo)
			}
		}
		mode = modeAsync // a batch that failed is sorted out message by message; those stored already are duplicates
		if p.finished() || f.strict || !p.pause(round) {
			break
		}
	}
	p.mu.Lock()
	p.generation++
	for i, state := range p.items {
		if state != done && f.errs[i] == nil {
			f.errs[i] = p.errTrouble()
		}
	}
	p.f = nil
	p.outstanding, p.bytes = 0, 0
	p.mu.Unlock()
}

// begin starts a round: what has no answer yet goes out again.
func (p *publisher) begin() (todo []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.generation++
	p.outstanding, p.bytes, p.interrupted = 0, 0, false
	for i, state := range p.items {
		if state != done {
			p.f.unsure[i] = p.f.unsure[i] || state == sent
			p.items[i] = unsent
			todo = append(todo, i)
		}
	}
	return todo
}

func (p *publisher) finished() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, state := range p.items {
		if state != done {
			return false
		}
	}
	return true
}

func (p *publisher) fail(reason string) {
	p.mu.Lock()
	p.reason = reason
	p.mu.Unlock()
}

// pause waits a little, or for the connection, before another round. It says whether there is time for one.
func (p *publisher) pause(round int) bool {
	left := time.Until(p.f.deadline)
	wait := min(left, resendPause<<min(round, 3))
	if wait <= 0 {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return time.Now().Before(p.f.deadline)
		case <-p.q.ctx.Done():
			p.fail("closing")
			return false
		case <-p.wake:
			p.mu.Lock()
			again := p.interrupted && p.q.nc.IsConnected()
			p.interrupted = false
			p.mu.Unlock()
			if again {
				return true
			}
		}
	}
}

// wait sleeps until ok, called with mu held, says yes. It gives false when the round is over without: out of time, connection lost, or
// no answer for so long that one more try is better.
func (p *publisher) wait(ok func() bool, nudge func()) bool {
	patience := max(p.q.o.Timeout/3, 100*time.Millisecond)
	timer := time.NewTimer(min(patience, max(time.Until(p.f.deadline), 0)))
	defer timer.Stop()
	p.mu.Lock()
	answered := p.answered
	for {
		if ok() {
			p.mu.Unlock()
			return true
		}
		if p.interrupted {
			p.reason = "connection lost"
			p.mu.Unlock()
			return false
		}
		p.mu.Unlock()
		select {
		case <-p.wake:
		case <-p.q.ctx.Done():
			p.fail("closing")
			return false
		case <-timer.C:
			left := time.Until(p.f.deadline)
			p.mu.Lock()
			progress := p.answered != answered
			answered = p.answered
			p.mu.Unlock()
			if left <= 0 || !progress && nudge == nil {
				return false
			}
			if !progress {
				nudge()
				nudge = nil
			}
			timer.Reset(min(patience, left))
		}
		p.mu.Lock()
	}
}

// room waits until a message of size bytes fits the window.
func (p *publisher) room(size int64) bool {
	o := &p.q.o
	p.mu.Lock()
	fits := p.outstanding < o.Window && (p.outstanding == 0 || p.bytes+size <= o.WindowBytes)
	if fits && !p.interrupted {
		p.mu.Unlock()
		return true
	}
	p.wantRoom = true
	p.mu.Unlock()
	ok := p.wait(func() bool {
		return p.outstanding <= o.Window/2 && (p.outstanding == 0 || p.bytes+size <= o.WindowBytes)
	}, nil)
	p.mu.Lock()
	p.wantRoom = false
	p.mu.Unlock()
	return ok
}

// send hands one message to the connection. It gives false when the round is over.
func (p *publisher) send(i int, m *nats.Msg, size int64) bool {
	p.mu.Lock()
	p.items[i] = sent
	p.outstanding++
	p.bytes += size
	p.mu.Unlock()
	err := p.q.nc.PublishMsg(m)
	if err == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outstanding--
	p.bytes -= size
	if errors.Is(err, nats.ErrMaxPayload) {
		p.items[i], p.f.errs[i] = done, fmt.Errorf("jetstream: publish: %w", err)
		return true
	}
	p.items[i] = resend
	p.reason = err.Error()
	return false
}

// build makes message i, or notes why it can't be made.
func (p *publisher) build(i int) *nats.Msg {
	m, err := p.f.message(i)
	if err != nil {
		p.mu.Lock()
		p.items[i], p.f.errs[i] = done, err
		p.mu.Unlock()
		return nil
	}
	return m
}

func (p *publisher) empty() bool { return p.outstanding == 0 }

// async publishes each message with an acknowledgement of its own.
func (p *publisher) async(todo []int) {
	p.mu.Lock()
	prefix := p.q.inbox + ".p." + strconv.FormatUint(p.generation, 10) + "."
	p.mu.Unlock()
	for _, i := range todo {
		m := p.build(i)
		if m == nil {
			if p.f.strict {
				return
			}
			continue
		}
		size := p.f.size(i)
		if !p.room(size) {
			return
		}
		m.Reply = prefix + strconv.Itoa(i)
		for _, key := range batchHeaders { // of an atomic batch that failed
			delete(m.Header, key)
		}
		if !p.send(i, m, size) {
			return
		}
	}
	p.wait(p.empty, nil)
}

// acked takes the answer to one message; nats.go calls it on a goroutine of its own.
func (p *publisher) acked(m *nats.Msg) {
	tail := m.Subject[len(p.q.inbox)+len(".p."):]
	generation, index, _ := strings.Cut(tail, ".")
	i, err := strconv.Atoi(index)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f == nil || generation != strconv.FormatUint(p.generation, 10) || i < 0 || i >= len(p.items) || p.items[i] != sent {
		return
	}
	p.outstanding--
	p.bytes -= p.f.size(i)
	p.answered++
	a := parseAck(m, p.f.stream)
	if a.nobody {
		p.q.suspect()
	}
	switch {
	case a.err == nil:
		p.items[i], p.f.seqs[i], p.f.errs[i] = done, a.seq, nil
	case a.again:
		p.items[i] = resend
		p.f.unsure[i] = p.f.unsure[i] || a.unsure
		p.reason = a.err.Error()
	default:
		p.items[i], p.f.errs[i] = done, fmt.Errorf("jetstream: %w", a.err)
	}
	if p.outstanding == 0 || p.wantRoom && p.outstanding <= p.q.o.Window/2 {
		p.signal()
	}
}

// ack is a stream's answer to one message.
type ack struct {
	seq    uint64
	count  int   // messages of the batch that are stored
	err    error // why it was not stored
	again  bool  // trying once more may help
	nobody bool  // there is no such stream now
	unsure bool  // it may be stored all the same
}

// parseAck reads an answer. Only an acknowledgement of the right stream counts.
func parseAck(m *nats.Msg, stream string) ack {
	if len(m.Data) == 0 {
		if m.Header.Get("Status") == "503" {
			return ack{err: errors.New("no server is responsible for the stream now"), again: true, nobody: true}
		}
		return ack{err: errors.New("empty acknowledgement"), again: true, unsure: true}
	}
	var a struct {
		Stream string       `json:"stream"`
		Seq    uint64       `json:"seq"`
		Count  int          `json:"count"`
		Error  *js.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return ack{err: fmt.Errorf("acknowledgement: %w", err), again: true, unsure: true}
	}
	if a.Error != nil {
		return refusal(a.Error)
	}
	if a.Stream != stream || a.Seq == 0 {
		return ack{err: fmt.Errorf("acknowledged by stream %q, not %s", printable(a.Stream, 64), stream)}
	}
	return ack{seq: a.Seq, count: a.Count}
}

// refusal sorts the reasons of a stream.
func refusal(e *js.APIError) ack {
	text := printable(e.Description, maxReplyBytes)
	switch e.ErrorCode {
	case 10077: // the store said no
		switch text {
		case "maximum bytes exceeded", "maximum messages exceeded":
			return ack{err: fmt.Errorf("%w: the stream has its %s", queue.ErrFull, text)}
		}
	case 10002, 10023, 10028, 10047: // limits of account, resources, memory, storage
		return ack{err: fmt.Errorf("%w: %s", queue.ErrFull, text)}
	case 10054:
		return ack{err: errors.New(text)}
	case 10158: // the same id is on its way already: the answer to that is lost to us
		return ack{err: errors.New(text), again: true, unsure: true}
	}
	if e.Code == 503 || e.Code == 500 || e.Code == 429 {
		return ack{err: errors.New(text), again: true}
	}
	return ack{err: fmt.Errorf("refused: %s (%d)", text, e.ErrorCode)}
}

// fast publishes todo as one flow: the stream acknowledges now and then, and at its end says how many it has. There is no waiting for the
// first acknowledgement; if there are no fast batches after all, every message comes back and goes out by itself.
func (p *publisher) fast(todo []int) {
	p.mu.Lock()
	generation := strconv.FormatUint(p.generation, 10)
	p.batch.order, p.batch.acked, p.batch.count, p.batch.tainted = todo, 0, -1, false
	p.mu.Unlock()
	// What the stream is to acknowledge at once must fit the window some times over, by number and by length: else it waits for more messages,
	// and they for its word.
	longest := int64(1)
	for _, i := range todo {
		longest = max(longest, p.f.size(i))
	}
	flow := int(max(1, min(int64(p.q.o.Window/4), 500, p.q.o.WindowBytes/4/longest)))
	// The word before the flow is the batch's id: it must differ from all others', so the inbox's unique word is in it.
	unique := p.q.inbox[strings.LastIndexByte(p.q.inbox, '.')+1:]
	prefix := p.q.inbox + ".b." + unique + "-" + generation + "." + strconv.Itoa(flow) + ".fail."
	subject := ""
	reply := func(place int, op byte) string { return prefix + strconv.Itoa(place) + "." + string(op) + ".$FI" }
	for place, i := range todo {
		m := p.build(i)
		if m == nil { // a hole would end the batch: the rest goes out one by one
			return
		}
		size := p.f.size(i)
		if !p.room(size) {
			return
		}
		op := byte('1')
		switch place {
		case len(todo) - 1:
			op = '2'
		case 0:
			op = '0'
		}
		m.Reply, subject = reply(place+1, op), m.Subject
		if !p.send(i, m, size) {
			return
		}
		if p.tainted() {
			break
		}
	}
	p.wait(func() bool { return p.batch.tainted || p.batch.count >= 0 }, func() {
		// The answer may be lost: a ping makes the server say where the batch stands.
		ping := nats.NewMsg(subject)
		ping.Reply = reply(len(todo), '4')
		p.q.nc.PublishMsg(ping)
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endBatch()
}

// endBatch takes what the batch's answer, if there was one, says of all places. Protected by mu.
func (p *publisher) endBatch() {
	switch {
	case p.batch.tainted: // an answer, if not a good one
		for _, i := range p.batch.order {
			if p.items[i] == sent {
				p.items[i] = resend
			}
		}
	case p.batch.count == len(p.batch.order):
		p.settleBatch(p.batch.count)
	}
}

func (p *publisher) tainted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.batch.tainted
}

// settleBatch notes that the first n places are stored. Protected by mu.
func (p *publisher) settleBatch(n int) {
	for ; p.batch.acked < n; p.batch.acked++ {
		i := p.batch.order[p.batch.acked]
		if p.items[i] == sent {
			p.items[i], p.f.errs[i] = done, nil
			p.outstanding--
			p.bytes -= p.f.size(i)
		}
	}
}

// batchAcked takes what the stream says of a fast or atomic batch.
func (p *publisher) batchAcked(m *nats.Msg) {
	tail := m.Subject[len(p.q.inbox)+len(".b."):]
	id, _, _ := strings.Cut(tail, ".")
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f == nil || id[strings.LastIndexByte(id, '-')+1:] != strconv.FormatUint(p.generation, 10) {
		return
	}
	p.answered++
	switch {
	case bytes.HasPrefix(m.Data, []byte(`{"type":"ack"`)):
		var flow struct {
			Seq int `json:"seq"`
		}
		// Places up to Seq are stored, unless something went wrong before: then the servers' count is not relied upon.
		if json.Unmarshal(m.Data, &flow) == nil && !p.batch.tainted && flow.Seq > p.batch.acked && flow.Seq <= len(p.batch.order) {
			p.settleBatch(flow.Seq)
			if p.wantRoom && p.outstanding <= p.q.o.Window/2 {
				p.signal()
			}
		}
		return
	case bytes.HasPrefix(m.Data, []byte(`{"type":"`)): // gap, err
		p.batch.tainted = true
		p.reason = "the batch was refused"
	default:
		a := parseAck(m, p.f.stream)
		if a.err != nil {
			p.batch.tainted = true
			p.reason = a.err.Error()
			if a.nobody {
				p.q.suspect()
			}
			break
		}
		p.batch.count = a.count
		if a.count != len(p.batch.order) {
			p.batch.tainted = true
			p.reason = "the batch was cut"
		}
	}
	p.signal()
}

// batchHeaders make a message part of an atomic batch: which, at what place, and that it is the last.
var batchHeaders = [...]string{"Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"}

// atomic publishes todo as one batch that is stored whole or not at all. Only its last message is answered.
func (p *publisher) atomic(todo []int) {
	p.mu.Lock()
	generation := strconv.FormatUint(p.generation, 10)
	p.batch.order, p.batch.acked, p.batch.count, p.batch.tainted = todo, 0, -1, false
	p.mu.Unlock()
	unique := p.q.inbox[strings.LastIndexByte(p.q.inbox, '.')+1:]
	// The place of the first message tells the batches of one round apart.
	id := unique + "-" + strconv.Itoa(todo[0]) + "-" + generation
	for place, i := range todo {
		m := p.build(i)
		if m == nil {
			return
		}
		m.Header.Set(batchHeaders[0], id)
		m.Header.Set(batchHeaders[1], strconv.Itoa(place+1))
		if place == len(todo)-1 {
			m.Header.Set(batchHeaders[2], "1")
			m.Reply = p.q.inbox + ".b." + id
		}
		// The window does not apply: nothing is acknowledged before the end, and the servers hold at most maxAtomic.
		if !p.send(i, m, p.f.size(i)) {
			return
		}
	}
	p.wait(func() bool { return p.batch.tainted || p.batch.count >= 0 }, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endBatch()
}

// Commit publishes the batch and waits for the stream's acknowledgements.
func (q *Queue) Commit(batch []*queue.Submission) {
	q.committing.Lock()
	defer q.committing.Unlock()
	fail := func(err error) {
		for _, s := range batch {
			s.Err = err
		}
	}
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if closed {
		fail(queue.ErrClosed)
		return
	}
	if err := q.available(); err != nil {
		fail(err)
		return
	}
	total := int64(0)
	for _, s := range batch {
		s.Err = nil
		total += s.Env.Size()
	}
	deadline := time.Now().Add(q.o.Timeout + time.Duration(total/bytesPerSecond)*time.Second)
	flights := make([]*submitted, 0, len(batch))
	for _, s := range batch {
		sub := &submitted{s: s}
		if s.Err = q.pack(sub, deadline); s.Err == nil {
			flights = append(flights, sub)
		}
	}
	length := int64(0)
	for _, sub := range flights {
		length += sub.bytes
	}
	mode := batchMode(q.mode.Load())
	if q.o.Batch == "auto" {
		mode = q.choose.next(len(flights), length)
	}
	f := &flight{
		stream: q.o.Stream, n: len(flights), mode: mode, deadline: deadline,
		size: func(i int) int64 { return flights[i].bytes },
		message: func(i int) (*nats.Msg, error) {
			return flights[i].message(q)
		},
	}
	start := time.Now()
	q.pub.run(f)
	if q.o.Batch == "auto" && !slices.ContainsFunc(f.errs, func(err error) bool { return err != nil }) {
		if now, news := q.choose.done(mode, len(flights), length, time.Since(start)); news {
			q.o.Log.Info("jetstream: another way of publishing is faster now, for commits like this one",
				"messages", len(flights), "bytes", length, "published", now.String())
		}
	}
	answered := false
	for i, sub := range flights {
		sub.s.Err = f.errs[i]
	}
	full := false
	for _, s := range batch {
		switch {
		case s.Err == nil:
			q.committed.Add(1)
			answered = true
		case errors.Is(s.Err, queue.ErrFull):
			full, answered = true, true
		case !errors.Is(s.Err, queue.ErrUnavailable):
			answered = true
		}
	}
	q.commits.Add(1)
	for i, sub := range flights {
		// A message refused for good leaves nothing that points to its object. One that got no answer, be it once, may be in the stream: the
		// sweep looks after it.
		if err := f.errs[i]; err != nil && !errors.Is(err, queue.ErrUnavailable) && !f.unsure[i] {
			for _, name := range sub.objects() {
				q.forgetObject(name)
			}
		}
	}
	if full {
		q.fullUntil.Store(q.o.Now().Add(time.Second).UnixNano())
	}
	if answered {
		q.asyncErr.Store(nil)
		if q.brk.succeeded() {
			q.o.Log.Info("jetstream: the cluster acknowledges; mail is accepted again")
		}
		return
	}
	if len(batch) == 0 {
		return
	}
	q.failures.Add(1)
	reason := trouble(batch[0].Err)
	if q.brk.failed(reason) {
		q.o.Log.Error("jetstream: mail is refused with 451 until the cluster answers", "error", batch[0].Err)
	} else {
		q.o.Log.Warn("jetstream: commit failed", "messages", len(batch), "error", batch[0].Err)
	}
	if q.nc.IsConnected() && q.ctx.Err() == nil && len(q.o.URLs) > 1 {
		// The server we talk to may be the one that is cut off.
		q.nc.ForceReconnect()
	}
}

// available says why a commit should not be tried.
func (q *Queue) available() error {
	if err := q.brk.allow(); err != nil {
		return fmt.Errorf("jetstream: %w", err)
	}
	if !q.ready.Load() {
		return fmt.Errorf("jetstream: %w: the stream has not been verified", queue.ErrUnavailable)
	}
	return nil
}

// Room says whether the cluster answers and the stream took the last message.
func (q *Queue) Room() error {
	if err := q.available(); err != nil {
		return err
	}
	if until := q.fullUntil.Load(); until != 0 && q.o.Now().UnixNano() < until {
		return fmt.Errorf("jetstream: %w", queue.ErrFull)
	}
	return nil
}

// maxMsg is the longest message that the servers take, header included. It may be another one after a reconnect.
func (q *Queue) maxMsg() int64 {
	limit := q.nc.MaxPayload()
	if n := q.maxMsgSize.Load(); n > 0 {
		limit = min(limit, n)
	}
	return limit
}

// submitted is a submission on its way.
type submitted struct {
	s              *queue.Submission
	header         nats.Header
	bytes          int64
	object         string
	envelopeObject string
}

func (s *submitted) objects() (names []string) {
	for _, name := range []string{s.object, s.envelopeObject} {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// pack makes the header, and puts what is too long into objects.
func (q *Queue) pack(s *submitted, deadline time.Time) error {
	env := s.s.Env
	if len(env.Recipients) == 0 {
		return errors.New("jetstream: message without recipients")
	}
	binary := env.AppendBinary(nil)
	sum, dataSum := crc32.Update(0, castagnoli, env.Trace), uint32(0)
	for c := env.Data.First(); c != nil; c = c.Next() {
		sum, dataSum = crc32.Update(sum, castagnoli, c.Bytes()), crc32.Update(dataSum, castagnoli, c.Bytes())
	}
	if dataSum != env.Data.Sum() {
		return fmt.Errorf("jetstream: %w: message data has changed in memory", queue.ErrCorrupt)
	}
	inline := binary
	if len(binary) > maxInlineEnvelope {
		inline = nil
		s.envelopeObject = env.ID.String() + ".envelope"
		if err := q.putObject(s.envelopeObject, int64(len(binary)), func(yield func([]byte) bool) { yield(binary) }, deadline); err != nil {
			return err
		}
	}
	s.header = headers(env, inline, crc32.Checksum(binary, castagnoli), sum)
	if s.envelopeObject != "" {
		s.header.Set(hdrEnvelopeAt, s.envelopeObject)
	}
	s.bytes = headerBytes(s.header)
	if s.bytes+env.Size() > q.maxMsg()-maxPayloadShare {
		s.object = env.ID.String()
		if err := q.putObject(s.object, env.Size(), pieces(env), deadline); err != nil {
			return err
		}
		s.header.Set(hdrObject, s.object)
	} else {
		s.bytes += env.Size()
	}
	return nil
}

// pieces gives the bytes of a message as handed on.
func pieces(env *envelope.Envelope) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		if len(env.Trace) > 0 && !yield(env.Trace) {
			return
		}
		for c := env.Data.First(); c != nil; c = c.Next() {
			if !yield(c.Bytes()) {
				return
			}
		}
	}
}

func headerBytes(h nats.Header) (n int64) {
	n = int64(len("NATS/1.0\r\n\r\n"))
	for key, values := range h {
		for _, v := range values {
			n += int64(len(key) + len(v) + len(": \r\n"))
		}
	}
	return n
}

// message builds the message. nats.go copies it into its buffer at once, so that the next one can use the same memory.
func (s *submitted) message(q *Queue) (*nats.Msg, error) {
	m := &nats.Msg{Subject: q.o.Subject, Header: s.header}
	if s.object == "" {
		body := q.scratch[:0]
		for piece := range pieces(s.s.Env) {
			body = append(body, piece...)
		}
		m.Data, q.scratch = body, body
	}
	return m, nil
}

// forgetObject removes an object that no message points to, as well as it can.
func (q *Queue) forgetObject(name string) {
	ctx, cancel := context.WithTimeout(q.ctx, q.o.Timeout)
	defer cancel()
	if err := q.deleteObject(ctx, name); err != nil {
		q.o.Log.Warn("jetstream: object stays until the next sweep", "object", name, "error", err)
	}
}
