package jetstream

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	js "github.com/nats-io/nats.go/jetstream"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// entry is a message of the consumer that is here: fetched, leased, waiting for its next attempt, or being settled. Protected by Queue.mu,
// but for the fields of the goroutine that has it leased.
type entry struct {
	id    envelope.ID
	ours  bool
	seq   uint64 // in the mail stream
	ack   string // where its consumer takes acknowledgements
	state queue.State
	due   time.Time // of a ready one, when it arrived; of a waiting one, its next attempt
	place int       // in the heap, -1 elsewhere

	again     bool // there may be a state record
	recordSeq uint64
	attempts  int
	reason    string

	raw      *stored         // while it is fetched, leased or settled
	outcomes []queue.Outcome // while it is settled
	job      chan struct{}   // closed when its settlement is with the cluster; nil when none is on its way
	stuck    bool            // its settlement has failed more than once
	gone     bool            // settled as done
	acked    bool            // the cluster knows that; only its record and objects are left
}

// dueHeap orders waiting messages by their next attempt, then by their place in the stream.
type dueHeap []*entry

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].seq < h[j].seq
}
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *dueHeap) Push(x any) {
	e := x.(*entry)
	e.place = len(*h)
	*h = append(*h, e)
}
func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.place = -1
	return e
}

// pull is the request for messages that is with the server. Protected by Queue.mu.
type pull struct {
	generation  uint64
	outstanding int       // messages it may still bring
	heard       time.Time // when it last said something
	next        time.Time // no new one before, after trouble
}

// lost forgets the request: the connection is another one.
func (p *pull) lost() { p.outstanding = 0 }

const (
	pullExpires   = 30 * time.Second
	pullHeartbeat = 5 * time.Second
)

// Lease gives the message that has been due longest among those that are here and due.
func (q *Queue) Lease(ctx context.Context) (*queue.Delivery, error) {
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return nil, queue.ErrClosed
		}
		now := q.o.Now()
		e, next := q.takeDue(now)
		if e != nil {
			q.mu.Unlock()
			if d := q.deliver(ctx, e); d != nil {
				return d, nil
			}
			continue
		}
		signal := make(chan struct{}, 1)
		q.leasers = append(q.leasers, signal)
		q.mu.Unlock()
		q.repull()

		var due <-chan time.Time
		if !next.IsZero() {
			wait := next.Sub(now)
			if timer == nil {
				timer = time.NewTimer(wait)
			} else {
				timer.Reset(wait)
			}
			due = timer.C
		}
		select {
		case <-signal:
		case <-due:
			q.stopWaiting(signal)
		case <-ctx.Done():
			q.stopWaiting(signal)
		}
	}
}

// takeDue leases the first due message, or says when the next one will be. Protected by mu.
func (q *Queue) takeDue(now time.Time) (e *entry, next time.Time) {
	if q.o.Hold != "" || q.overloaded() {
		return nil, time.Time{}
	}
	waiting := len(q.waiting) > 0 && !q.waiting[0].due.After(now)
	switch {
	case waiting && (len(q.buffer) == 0 || !q.waiting[0].due.After(q.buffer[0].due)):
		e = heap.Pop(&q.waiting).(*entry)
	case len(q.buffer) > 0:
		e = q.buffer[0]
		q.buffer = slices.Delete(q.buffer, 0, 1)
	case len(q.waiting) > 0:
		return nil, q.waiting[0].due
	default:
		return nil, time.Time{}
	}
	e.state = queue.Leased
	return e, time.Time{}
}

// overloaded says that too much is settled and not with the cluster: what is leased now would come to that. Protected by mu.
func (q *Queue) overloaded() bool {
	return q.unsettled.messages >= q.unsettled.max || q.unsettled.bytes >= maxPrefetchBytes
}

// stopWaiting takes a leaser off the list; a signal it got meanwhile goes to the next one.
func (q *Queue) stopWaiting(signal chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, ch := range q.leasers {
		if ch == signal {
			q.leasers = slices.Delete(q.leasers, i, i+1)
			return
		}
	}
	if !q.closed {
		q.wakeLeaser()
	}
}

// wakeLeaser lets one leaser look again. Protected by mu.
func (q *Queue) wakeLeaser() {
	if len(q.leasers) > 0 {
		q.leasers[0] <- struct{}{}
		q.leasers = slices.Delete(q.leasers, 0, 1)
	}
}

// repull asks the server for messages when somebody waits for one and nothing is on its way.
func (q *Queue) repull() {
	if !q.ready.Load() || !q.nc.IsConnected() {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if q.closed || q.o.Hold != "" || len(q.leasers) == 0 || q.overloaded() || now.Before(q.pull.next) {
		return
	}
	if q.pull.outstanding > 0 && now.Sub(q.pull.heard) < 3*pullHeartbeat {
		return
	}
	if q.consumer == nil {
		// The first time, or the consumer is gone: it needs waiting for, so not here.
		q.pull.next = now.Add(tick)
		q.running.Go(q.bindConsumer)
		return
	}
	n := min(q.o.Prefetch, max(1, int(maxPrefetchBytes/max(q.maxMsg(), 1))))
	if q.consumer.most > 0 {
		n = min(n, q.consumer.most)
	}
	q.pull.generation++
	q.pull.outstanding, q.pull.heard = n, now
	request, _ := json.Marshal(struct {
		Batch     int           `json:"batch"`
		Expires   time.Duration `json:"expires"`
		Heartbeat time.Duration `json:"idle_heartbeat"`
	}{n, pullExpires, pullHeartbeat})
	err := q.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+q.o.Stream+"."+q.o.Durable,
		q.inbox+".f."+strconv.FormatUint(q.pull.generation, 10), request)
	if err != nil {
		q.pull.outstanding, q.pull.next = 0, now.Add(tick)
	}
}

func (q *Queue) bindConsumer() {
	ctx, cancel := context.WithTimeout(q.ctx, q.o.Timeout)
	defer cancel()
	c, err := q.openConsumer(ctx)
	if err == nil {
		var info *js.StreamInfo
		if info, err = q.streamInfo(ctx, q.o.Stream); err == nil {
			q.mailStream(info.Created)
		}
	}
	if err != nil {
		if noStream(err) {
			q.suspect()
		}
		if q.ctx.Err() == nil {
			q.o.Log.Error("jetstream: no consumer to lease from", "consumer", q.o.Durable, "error", err)
		}
		return
	}
	q.mu.Lock()
	q.consumer, q.pull.next = c, time.Time{}
	q.mu.Unlock()
	q.repull()
}

// fetched takes what a pull brought; nats.go calls it on a goroutine of its own.
func (q *Queue) fetched(m *nats.Msg) {
	// A message comes with the subject that it was published to, word about the pull with that of the pull.
	generation, isStatus := strings.CutPrefix(m.Subject, q.inbox+".f.")
	status := ""
	if isStatus {
		if status = m.Header.Get("Status"); status == "" {
			return
		}
	}
	var raw *stored
	var deliveries uint64
	if status == "" {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		raw = &stored{
			stream: q.o.Stream, seq: meta.Sequence.Stream, subject: m.Subject, time: meta.Timestamp, header: m.Header, data: m.Data,
		}
		deliveries = meta.NumDelivered
	}
	again := false
	q.mu.Lock()
	current := !isStatus || generation == strconv.FormatUint(q.pull.generation, 10)
	if current {
		q.pull.heard = time.Now()
	}
	switch {
	case raw != nil:
		if q.pull.outstanding > 0 {
			q.pull.outstanding--
		}
		q.arrive(raw, m.Reply, deliveries)
		again = q.pull.outstanding == 0
	case status == "100" || !current: // a heartbeat, or an old request
	default: // 408 its time is over; 503 and 409 the consumer is not there or its leader moves
		q.pull.outstanding = 0
		switch status {
		case "408":
			again = true
		case "404", "503", "409":
			q.pull.next = time.Now().Add(tick / 4)
			q.consumer = nil
			time.AfterFunc(tick/3, q.repull)
		}
	}
	q.mu.Unlock()
	if again {
		q.repull()
	}
}

// arrive takes a message that the consumer gave us. Protected by mu.
func (q *Queue) arrive(raw *stored, ack string, deliveries uint64) {
	id, ours := raw.id()
	e := q.byID[id]
	switch {
	case e != nil && e.seq == raw.seq && e.state == queue.Waiting && e.job == nil:
		// Due before its time: an operator said so, perhaps on another machine. Lease looks at its record.
		heap.Remove(&q.waiting, e.place)
		e.state, e.due, e.ack, e.raw, e.again = queue.Ready, raw.arrived(), ack, raw, true
		q.buffer = append(q.buffer, e)
		q.wakeLeaser()
		return
	case e != nil && e.seq == raw.seq:
		// A sign of life came too late. It is still ours; the new address is as good as the old one.
		e.ack = ack
		return
	case e != nil && e.state == queue.Waiting && e.job == nil:
		// An operator has moved it away and back, perhaps from another machine: the older place is empty.
		q.forget(e)
	case e != nil:
		// Twice in the stream. The second one's time comes when the first is settled.
		q.nc.Publish(ack, nakDelay(q.o.AckWait))
		return
	}
	e = &entry{
		id: id, ours: ours, seq: raw.seq, ack: ack, state: queue.Ready, due: raw.arrived(), place: -1, raw: raw,
		// A consumer that is younger than the message has not counted what an earlier one did.
		again: deliveries > 1 || raw.header.Get(hdrAgain) != "" || q.consumer == nil || raw.time.Before(q.consumer.created),
	}
	q.byID[id] = e
	q.buffer = append(q.buffer, e)
	q.wakeLeaser()
}

// mailStream is told when the mail stream was made. What came from another one is forgotten: its places are those of other messages now.
func (q *Queue) mailStream(made time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.mailMade.IsZero() && !q.mailMade.Equal(made) && len(q.byID) > 0 {
		q.o.Log.Error("jetstream: the stream was deleted and made again; messages that came from it are forgotten", "stream", q.o.Stream, "messages", len(q.byID))
		q.buffer, q.waiting = nil, nil
		clear(q.leases)
		for id, e := range q.byID {
			e.place, e.ack = -1, "" // what is being settled has nothing to acknowledge any more
			delete(q.byID, id)
		}
	}
	q.mailMade = made
}

// forget lets go of a message. Protected by mu.
func (q *Queue) forget(e *entry) {
	if e.place >= 0 {
		heap.Remove(&q.waiting, e.place)
	}
	if i := slices.Index(q.buffer, e); i >= 0 {
		q.buffer = slices.Delete(q.buffer, i, i+1)
	}
	if q.byID[e.id] == e {
		delete(q.byID, e.id)
	}
}

func nakDelay(d time.Duration) []byte {
	return fmt.Appendf(nil, `-NAK {"delay": %d}`, max(d, time.Millisecond).Nanoseconds())
}

// deliver makes the delivery of an entry just taken. It gives nil when the message can't be handed on now.
func (q *Queue) deliver(ctx context.Context, e *entry) *queue.Delivery {
	wait, cancel := context.WithTimeout(ctx, q.o.Timeout)
	defer cancel()
	q.mu.Lock()
	job := e.job
	q.mu.Unlock()
	if job != nil { // one that waited, and was due at once: its settlement must be with the cluster first
		select {
		case <-job:
		case <-wait.Done():
			q.later(e, e.due)
			return nil
		}
	}
	if e.raw == nil {
		// One that waited. Nobody else must have touched it meanwhile.
		r, err := q.record(wait, e.id)
		switch {
		case errors.Is(err, queue.ErrNotFound), err == nil && r.seq != e.recordSeq:
			q.mu.Lock()
			q.forget(e)
			q.mu.Unlock()
			return nil
		case err != nil:
			q.later(e, q.o.Now().Add(tick))
			return nil
		}
		q.nc.Publish(e.ack, []byte("+WPI")) // it is leased again
		raw, err := q.get(wait, q.o.Stream, getRequest{Seq: e.seq})
		if err == nil {
			if id, _ := raw.id(); id != e.id {
				err = queue.ErrNotFound
			}
		}
		switch {
		case errors.Is(err, queue.ErrNotFound):
			q.mu.Lock()
			q.forget(e)
			q.mu.Unlock()
			return nil
		case err != nil:
			q.later(e, q.o.Now().Add(tick))
			return nil
		}
		q.mu.Lock()
		e.raw = raw
		q.mu.Unlock()
		return q.makeDelivery(wait, e, r)
	}
	if !e.again {
		return q.makeDelivery(wait, e, nil)
	}
	r, err := q.record(wait, e.id)
	switch {
	case errors.Is(err, queue.ErrNotFound):
		q.mu.Lock()
		e.again = false
		q.mu.Unlock()
		return q.makeDelivery(wait, e, nil)
	case err != nil:
		q.mu.Lock()
		e.state = queue.Ready
		q.buffer = slices.Insert(q.buffer, 0, e)
		q.mu.Unlock()
		select { // the cluster does not answer: not in a tight loop
		case <-time.After(resendPause):
		case <-ctx.Done():
		}
		return nil
	}
	q.mu.Lock()
	e.recordSeq = r.seq
	q.mu.Unlock()
	switch r.State {
	case queue.Held, queue.Dead, queue.Damaged:
		// Somebody died between noting that and taking the message away. A message that came in later is another one.
		if !r.time.Before(e.raw.time) {
			q.mu.Lock()
			e.attempts, e.reason, e.outcomes = r.Attempts, r.Reason, r.outcomes(len(r.Recipients))
			q.mu.Unlock()
			q.start(e, r.State)
			return nil
		}
	case queue.Waiting:
		if r.Next.After(q.o.Now()) {
			q.mu.Lock()
			e.state, e.due, e.attempts, e.raw = queue.Waiting, r.Next, r.Attempts, nil
			heap.Push(&q.waiting, e)
			q.wakeLeaser()
			q.mu.Unlock()
			q.nc.Publish(e.ack, nakDelay(r.Next.Sub(q.o.Now())+q.o.AckWait))
			return nil
		}
	}
	return q.makeDelivery(wait, e, r)
}

// later puts an entry that could not be read back among the waiting ones.
func (q *Queue) later(e *entry, due time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	e.state, e.due = queue.Waiting, due
	heap.Push(&q.waiting, e)
	q.wakeLeaser()
}

func (q *Queue) makeDelivery(ctx context.Context, e *entry, r *record) *queue.Delivery {
	p, open, err := q.openBody(ctx, e.raw)
	if errors.Is(err, queue.ErrCorrupt) {
		// Before it is set aside for good: the stream may have it as it was, and only what came here not, such as from a consumer that leaves bodies out.
		fresh, again := q.get(ctx, q.o.Stream, getRequest{Seq: e.seq})
		if again == nil {
			q.mu.Lock()
			e.raw = fresh
			q.mu.Unlock()
			p, open, err = q.openBody(ctx, fresh)
		} else if !errors.Is(again, queue.ErrNotFound) {
			err = again
		}
	}
	if err != nil {
		if e.ours && !errors.Is(err, queue.ErrCorrupt) {
			q.o.Log.Error("jetstream: message can't be read; trying again in a minute", "message", e.id, "error", err)
			q.mu.Lock()
			e.due = q.o.Now().Add(time.Minute)
			if r != nil {
				e.attempts, e.outcomes = r.Attempts, r.outcomes(len(r.Recipients))
			}
			q.mu.Unlock()
			q.start(e, queue.Waiting)
			return nil
		}
		q.o.Log.Error("jetstream: message is damaged and will not be handed on", "message", e.id, "sequence", e.seq, "error", err)
		q.damaged.Add(1)
		q.mu.Lock()
		e.reason, e.outcomes = trouble(err), nil
		q.mu.Unlock()
		q.start(e, queue.Damaged)
		return nil
	}
	d := &queue.Delivery{Env: p.env, Size: p.size, Outcomes: r.outcomes(len(p.env.Recipients)), Open: open}
	q.mu.Lock()
	defer q.mu.Unlock()
	if r != nil {
		e.attempts = r.Attempts
	}
	d.Attempts = e.attempts
	q.leases[d] = e
	return d
}

// openBody reads and verifies a message, and gives a function to read it.
func (q *Queue) openBody(ctx context.Context, m *stored) (*parsed, func() (io.ReadCloser, error), error) {
	var binary []byte
	if name := m.header.Get(hdrEnvelopeAt); name != "" {
		var err error
		if binary, err = q.readObject(ctx, name, maxPrefetchBytes); err != nil {
			if errors.Is(err, queue.ErrNotFound) {
				err = damage{"envelope (missing)"}
			}
			return nil, nil, err
		}
	}
	p, err := m.parse(binary)
	if err != nil {
		return nil, nil, err
	}
	if p.object == "" {
		return p, func() (io.ReadCloser, error) { return memoryReader{bytes.NewReader(p.body)}, nil }, nil
	}
	// A long one is read twice, now and by the caller, both times with an eye on the checksum.
	r, err := q.openObject(ctx, p.object, p.size, p.bodySum)
	if err != nil {
		return nil, nil, err
	}
	again := *r
	if p.size <= maxInMemory {
		body := make([]byte, 0, p.size+1)
		b := bytes.NewBuffer(body)
		if _, err := io.Copy(b, r); err != nil {
			return nil, nil, err
		}
		return p, func() (io.ReadCloser, error) { return memoryReader{bytes.NewReader(b.Bytes())}, nil }, nil
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, nil, err
	}
	return p, func() (io.ReadCloser, error) { r := again; return &r, nil }, nil
}

// memoryReader is a body in memory.
type memoryReader struct{ *bytes.Reader }

func (memoryReader) Close() error { return nil }

// record reads the state record of a message. It gives ErrNotFound.
func (q *Queue) record(ctx context.Context, id envelope.ID) (*record, error) {
	m, err := q.get(ctx, q.o.stateStream(), getRequest{LastFor: q.o.stateSubject(id.String())})
	if err != nil {
		return nil, err
	}
	return parseRecord(m)
}

func (q *Queue) putRecord(ctx context.Context, id envelope.ID, r *record) (seq uint64, err error) {
	text, err := json.Marshal(r)
	if err != nil {
		panic("jetstream: state record: " + err.Error())
	}
	return q.publish(ctx, q.o.stateStream(), &nats.Msg{Subject: q.o.stateSubject(id.String()), Data: text})
}

// Settle notes what became of a leased message; the note is with the cluster a moment later, and Close waits for it.
func (q *Queue) Settle(d *queue.Delivery, outcomes []queue.Outcome, next time.Time) error {
	return q.settle(d, outcomes, next, "", false)
}

// Kill makes a leased message dead.
func (q *Queue) Kill(d *queue.Delivery, outcomes []queue.Outcome, reason string) error {
	return q.settle(d, outcomes, time.Time{}, reason, true)
}

func (q *Queue) settle(d *queue.Delivery, outcomes []queue.Outcome, next time.Time, reason string, kill bool) error {
	if len(outcomes) != len(d.Env.Recipients) {
		panic(fmt.Sprintf("jetstream: message %s has %d recipients and is settled with %d outcomes", d.Env.ID, len(d.Env.Recipients), len(outcomes)))
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return queue.ErrClosed
	}
	e, ok := q.leases[d]
	if !ok {
		q.mu.Unlock()
		return fmt.Errorf("jetstream: settle %s: %w", d.Env.ID, queue.ErrNotFound)
	}
	delete(q.leases, d)
	e.attempts++
	pending, failed, refusal := false, false, ""
	kept := make([]queue.Outcome, len(outcomes))
	for i, o := range outcomes {
		kept[i] = queue.Outcome{State: o.State, Reply: printable(o.Reply, maxReplyBytes)}
		switch o.State {
		case queue.Pending:
			pending = true
		case queue.Failed:
			if !failed {
				refusal = kept[i].Reply
			}
			failed = true
		}
	}
	e.outcomes = kept
	to := queue.Dead
	switch {
	case kill:
		e.reason = printable(reason, maxReplyBytes)
	case pending:
		to, e.due = queue.Waiting, next
	case failed:
		e.reason = refusal
	default:
		e.gone = true
	}
	q.mu.Unlock()
	q.start(e, to)
	return nil
}

// start begins to tell the cluster that e is now in state to, or done when e.gone. From now on it counts as that here.
func (q *Queue) start(e *entry, to queue.State) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	e.state, e.job, e.stuck = to, make(chan struct{}), false
	if e.raw != nil && (e.gone || to == queue.Waiting) { // the stream has it, or nobody needs it
		head := *e.raw
		head.data = nil
		e.raw = &head
	}
	q.unsettled.messages++
	q.unsettled.bytes += e.raw.dataBytes()
	if to == queue.Waiting {
		heap.Push(&q.waiting, e)
		q.wakeLeaser()
	}
	q.running.Go(func() { q.tell(e, to, e.job) })
}

// tell does what start began, as often as it takes. It has a place among those that talk to the cluster only while it does.
func (q *Queue) tell(e *entry, to queue.State, job chan struct{}) {
	q.mu.Lock()
	r := &record{State: to, Attempts: e.attempts, Reason: e.reason, Seq: e.seq, Ack: e.ack}
	if to == queue.Waiting {
		r.Next = e.due.UTC()
	}
	r.setOutcomes(e.outcomes)
	gone, raw := e.gone, e.raw
	q.mu.Unlock()
	places := q.moves
	if gone {
		places = q.acks
	}
	for try := 0; ; try++ {
		select {
		case places <- struct{}{}:
		case <-q.ctx.Done():
		}
		if q.ctx.Err() != nil {
			break
		}
		ctx, cancel := context.WithTimeout(q.ctx, q.o.Timeout)
		err := q.tellOnce(ctx, e, r, raw, gone)
		cancel()
		<-places
		if err == nil {
			break
		}
		q.mu.Lock()
		closed := q.closed
		if try+1 >= stuckTries {
			q.stick(e, err)
		}
		q.mu.Unlock()
		if closed && try > 0 {
			break // it will be leased again
		}
		if try == 0 {
			q.o.Log.Warn("jetstream: what became of a message is not with the cluster yet", "message", e.id, "error", err)
		}
		if noStream(err) {
			q.suspect()
		}
		pause := time.NewTimer(min(maxSettlePause, resendPause<<min(try, 6)))
		select {
		case <-q.ctx.Done():
		case <-q.closing:
		case <-pause.C:
		}
		pause.Stop()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unsettled.messages--
	q.unsettled.bytes -= raw.dataBytes()
	if e.stuck {
		e.stuck = false
		q.unsettled.stuck--
	}
	e.job, e.raw, e.outcomes = nil, nil, nil
	if to != queue.Waiting || gone || e.place >= 0 && len(q.waiting) > maxLocalWaiting {
		q.forget(e)
	}
	close(job)
	if !q.closed {
		q.wakeLeaser() // it may have waited for this
	}
}

// stick notes that a settlement does not succeed. Protected by mu.
func (q *Queue) stick(e *entry, err error) {
	if !e.stuck {
		if q.unsettled.stuck == 0 {
			q.unsettled.since = q.o.Now()
		}
		e.stuck = true
		q.unsettled.stuck++
	}
	q.unsettled.reason = trouble(err)
}

// stuckAlarm says what can't be settled, and why, or nothing.
func (q *Queue) stuckAlarm() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := &q.unsettled
	if u.stuck == 0 {
		return ""
	}
	return fmt.Sprintf("JetStream: what became of %d messages can't be noted: %s, since %s", u.stuck, u.reason, u.since.UTC().Format(time.RFC3339))
}

// noStream says whether err may be that of a stream that does not exist.
func noStream(err error) bool {
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, js.ErrNoStreamResponse) || isAPI(err, js.JSErrCodeStreamNotFound)
}

func (m *stored) dataBytes() int64 {
	if m == nil {
		return 0
	}
	return int64(len(m.data))
}

func (q *Queue) tellOnce(ctx context.Context, e *entry, r *record, raw *stored, gone bool) error {
	if !gone {
		seq, err := q.putRecord(ctx, e.id, r)
		if err != nil {
			return err
		}
		q.mu.Lock()
		e.recordSeq = seq
		q.mu.Unlock()
	}
	switch {
	case gone:
		if !e.acked { // only this goroutine looks at it
			if err := q.ackSync(ctx, e); err != nil {
				return err
			}
			e.acked = true
		}
		if err := q.clean(ctx, e, raw); !isAPI(err, js.JSErrCodeStreamNotFound) {
			return err
		}
		return nil // with its stream
	case r.State == queue.Waiting:
		// The cluster wakes it as well, a little later than we do, in case we are gone by then.
		if subject := e.ackSubject(q); subject != "" {
			return q.nc.Publish(subject, nakDelay(r.Next.Sub(q.o.Now())+q.o.AckWait))
		}
		return nil
	default:
		if err := q.park(ctx, raw, e.id, r); err != nil && !errors.Is(err, queue.ErrNotFound) { // settled from elsewhere
			return err
		}
		return q.ackSync(ctx, e)
	}
}

func (e *entry) ackSubject(q *Queue) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return e.ack
}

// ackSync acknowledges a message and waits until the consumer has noted it: the stream forgets it then.
func (q *Queue) ackSync(ctx context.Context, e *entry) error {
	subject := e.ackSubject(q)
	if subject == "" {
		return nil // its stream is gone
	}
	_, err := q.nc.RequestWithContext(ctx, subject, []byte("+ACK"))
	if errors.Is(err, nats.ErrNoResponders) {
		// The consumer is gone, or has no leader now. Without the consumer the message is still in the stream, unless that is another one.
		m, err := q.get(ctx, q.o.Stream, getRequest{Seq: e.seq})
		if errors.Is(err, queue.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if id, _ := m.id(); id != e.id {
			return nil
		}
		return q.remove(ctx, q.o.Stream, e.seq)
	}
	if err != nil {
		return fmt.Errorf("jetstream: acknowledge: %w", err)
	}
	return nil
}

// clean removes what belongs to a message that is done.
func (q *Queue) clean(ctx context.Context, e *entry, raw *stored) error {
	q.mu.Lock()
	record := e.recordSeq != 0
	q.mu.Unlock()
	if record {
		if err := q.purge(ctx, q.o.stateStream(), q.o.stateSubject(e.id.String())); err != nil {
			return err
		}
	}
	return q.cleanObjects(ctx, raw)
}

func (q *Queue) cleanObjects(ctx context.Context, raw *stored) error {
	for _, key := range []string{hdrObject, hdrEnvelopeAt} {
		if name := raw.header.Get(key); name != "" {
			if err := q.deleteObject(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// park copies a message to the held or dead ones. Doing it twice leaves one. With nil the copy is there, and is what the stream has: the
// original may go. ErrNotFound: there is no original any more.
func (q *Queue) park(ctx context.Context, raw *stored, id envelope.ID, r *record) error {
	if _, ours := raw.id(); raw.stream == q.o.Stream && (!ours || errors.Is(raw.whole(), queue.ErrCorrupt)) {
		// The stream's own may be better than what came by the consumer.
		fresh, err := q.get(ctx, raw.stream, getRequest{Seq: raw.seq})
		if err != nil {
			return err
		}
		raw = fresh
	}
	stream, subject := q.o.deadStream(), q.o.deadSubject(id.String())
	if r.State == queue.Held {
		stream, subject = q.o.heldStream(), q.o.heldSubject(id.String())
	}
	header := nats.Header{}
	for key, values := range raw.header {
		if len(key) < 5 || key[:5] != "Nats-" {
			header[key] = values
		}
	}
	header.Set(hdrID, id.String())
	header.Set(hdrReason, field(r.Reason))
	header.Set(hdrAgain, r.State.String())
	data, err := q.fit(ctx, id, header, raw.data)
	if err != nil {
		return err
	}
	seq, err := q.publish(ctx, stream, &nats.Msg{Subject: subject, Header: header, Data: data})
	if err != nil {
		return err
	}
	kept, err := q.get(ctx, stream, getRequest{Seq: seq})
	if errors.Is(err, queue.ErrNotFound) {
		return fmt.Errorf("jetstream: %s has thrown away what was put there", stream)
	}
	if err != nil {
		return err
	}
	if kept.subject != subject || !bytes.Equal(kept.data, data) || kept.header.Get(hdrSum) != header.Get(hdrSum) || kept.header.Get(hdrID) != id.String() {
		return fmt.Errorf("jetstream: %s has not kept what was put there as it was", stream)
	}
	return nil
}

// fit puts data into an object when the servers take less now than when it came; header points to it then.
func (q *Queue) fit(ctx context.Context, id envelope.ID, header nats.Header, data []byte) ([]byte, error) {
	if len(data) == 0 || headerBytes(header)+int64(len(data)) <= q.maxMsg() {
		return data, nil
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(q.o.Timeout)
	}
	q.committing.Lock() // one object at a time
	defer q.committing.Unlock()
	err := q.putObject(id.String(), int64(len(data)), func(yield func([]byte) bool) { yield(data) }, deadline)
	if err != nil {
		return nil, err
	}
	header.Set(hdrObject, id.String())
	return nil, nil
}

// heartbeat tells the consumer that what is here is still being worked on.
func (q *Queue) heartbeat() {
	q.mu.Lock()
	alive := make([]string, 0, len(q.byID))
	for _, e := range q.byID {
		if e.state != queue.Waiting || e.job != nil {
			alive = append(alive, e.ack)
		}
	}
	q.mu.Unlock()
	for _, ack := range alive {
		if q.nc.Publish(ack, []byte("+WPI")) != nil {
			return
		}
	}
}

// giveBack makes what is fetched or leased due for others now, in the order of the stream.
func (q *Queue) giveBack() {
	q.mu.Lock()
	var back []*entry
	now := q.o.Now()
	for _, e := range q.byID {
		if e.job == nil && (e.state != queue.Waiting || !e.due.After(now)) {
			back = append(back, e)
		}
	}
	q.mu.Unlock()
	slices.SortFunc(back, func(a, b *entry) int {
		switch {
		case a.seq < b.seq:
			return -1
		case a.seq > b.seq:
			return 1
		}
		return 0
	})
	ctx, cancel := context.WithTimeout(q.ctx, q.o.Timeout)
	defer cancel()
	for _, e := range back {
		fresh := e.recordSeq == 0 && e.ours
		if fresh && e.again {
			_, err := q.record(ctx, e.id)
			fresh = errors.Is(err, queue.ErrNotFound)
		}
		if fresh {
			// The record says to others that nobody has it: a consumer does not tell what is given back from what is leased.
			if _, err := q.putRecord(ctx, e.id, &record{State: queue.Ready, Seq: e.seq, Ack: e.ack}); err != nil {
				q.o.Log.Warn("jetstream: leased messages go to others when their lease ends", "error", err)
				return
			}
		}
		q.nc.Publish(e.ack, []byte("-NAK"))
	}
}
