package jetstream

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	js "github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// usable says why the cluster can't be asked now.
func (q *Queue) usable() error {
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if closed {
		return queue.ErrClosed
	}
	return q.available()
}

// settled waits, within ctx, until what was settled here is with the cluster. What has failed several times is not waited for.
func (q *Queue) settled(ctx context.Context) {
	q.mu.Lock()
	var jobs []chan struct{}
	for _, e := range q.byID {
		if e.job != nil && !e.stuck {
			jobs = append(jobs, e.job)
		}
	}
	q.mu.Unlock()
	for _, job := range jobs {
		select {
		case <-job:
		case <-ctx.Done():
			return
		}
	}
}

// local counts what is here.
type local struct {
	ready, leased, waiting int
	records                int // of them have a state record
	ids                    map[envelope.ID]queue.State
	noted                  map[envelope.ID]uint64 // of those waiting whose record is with the cluster: its place
}

func (q *Queue) local() (l local) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l.ids, l.noted = make(map[envelope.ID]queue.State, len(q.byID)), map[envelope.ID]uint64{}
	now := q.o.Now()
	for id, e := range q.byID {
		state := e.state
		switch {
		case state == queue.Leased:
			l.leased++
		case state == queue.Waiting && e.due.After(now):
			l.waiting++
			if e.job == nil && e.recordSeq != 0 {
				l.noted[id] = e.recordSeq
			}
		case state == queue.Waiting, state == queue.Ready:
			state = queue.Ready
			l.ready++
		}
		if e.recordSeq != 0 || e.again {
			l.records++
		}
		l.ids[id] = state
	}
	return l
}

// Stats asks the cluster, within Timeout. What other relays do is seen from outside: what their consumer has given out and has no state
// record counts as leased. Damaged messages are among the dead.
func (q *Queue) Stats() queue.Stats {
	st := queue.Stats{
		Committed: q.committed.Load(), Commits: q.commits.Load(), Syncs: q.commits.Load(), SyncErrors: q.failures.Load(), Damaged: q.damaged.Load(),
		Durability: fmt.Sprintf("jetstream, %d replicas, published %v", q.o.Replicas, q.published()), Alarm: q.brk.alarm(), Messages: map[string]int{},
	}
	for state := queue.Ready; state <= queue.Damaged; state++ {
		st.Messages[state.String()] = 0
	}
	if err := q.usable(); err != nil {
		if st.Partial = true; st.Alarm == "" {
			st.Alarm = "JetStream: " + trouble(err)
		}
		return st
	}
	ctx, cancel := context.WithTimeout(q.ctx, q.o.Timeout)
	defer cancel()
	settling, done := context.WithTimeout(ctx, min(q.o.Timeout, statPatience))
	q.settled(settling)
	done()
	if st.Alarm == "" {
		st.Alarm = q.stuckAlarm()
	}
	var infos [4]*js.StreamInfo
	for i, name := range []string{q.o.Stream, q.o.stateStream(), q.o.heldStream(), q.o.deadStream()} {
		info, err := q.streamInfo(ctx, name)
		if err != nil {
			if st.Partial = true; st.Alarm == "" {
				st.Alarm = "JetStream: " + trouble(err)
			}
			return st
		}
		infos[i] = info
	}
	mail, states, held, dead := infos[0], infos[1], infos[2], infos[3]
	for i, want := range q.want() {
		// Somebody may have changed it since the start.
		if wrong, _ := differences(&want, &infos[i].Config); len(wrong) > 0 && st.Alarm == "" {
			st.Alarm = "JetStream: " + strings.Join(wrong, "; ")
		}
	}
	if err := quorum(mail); err != nil && st.Alarm == "" {
		st.Alarm = "JetStream: " + trouble(err)
	}
	st.Bytes = int64(mail.State.Bytes + held.State.Bytes + dead.State.Bytes)
	if objects, err := q.streamInfo(ctx, q.o.objStream()); err == nil {
		st.Bytes += int64(objects.State.Bytes)
	}
	if mail.Config.MaxBytes > 0 {
		st.FreeBytes = max(mail.Config.MaxBytes-int64(mail.State.Bytes), 0)
	}
	st.Oldest = q.oldestOf(ctx, mail, held, dead)

	st.Messages["held"], st.Messages["dead"] = int(held.State.Msgs), int(dead.State.Msgs)
	if q.o.Hold != "" {
		st.Messages["held"] += int(mail.State.Msgs)
		return st
	}
	l := q.local()
	var c js.ConsumerInfo
	if err := q.api(ctx, "CONSUMER.INFO."+q.o.Stream+"."+q.o.Durable, struct{}{}, &c); err != nil && !isAPI(err, js.JSErrCodeConsumerNotFound) {
		if st.Partial = true; st.Alarm == "" {
			st.Alarm = "JetStream: " + trouble(err)
		}
		return st
	}
	// State records of others: each is of a message that waits, or is due and not taken yet.
	waiting, due := max(0, int(states.State.Msgs)-int(held.State.Msgs)-int(dead.State.Msgs)-l.records), 0
	if (waiting > 0 || len(l.noted) > 0) && states.State.Msgs <= maxStatStates {
		waiting = 0
		now := q.o.Now()
		gone := len(l.noted) // of those that wait here: held, dropped or settled from elsewhere, unless their record is what we know
		for m, err := range q.page(ctx, q.o.stateStream()) {
			if err != nil {
				gone = 0
				break
			}
			r, err := parseRecord(m)
			if err != nil || r.State == queue.Held || r.State == queue.Dead || r.State == queue.Damaged {
				continue
			}
			if id, err := envelope.ParseID(m.subject[strings.LastIndexByte(m.subject, '.')+1:]); err != nil {
				continue
			} else if _, here := l.ids[id]; here {
				if seq, ok := l.noted[id]; ok && seq == m.seq {
					gone--
				}
				continue
			}
			if r.State == queue.Waiting && r.Next.After(now) {
				waiting++
			} else {
				due++
			}
		}
		l.waiting -= min(max(gone, 0), l.waiting)
	}
	elsewhere := max(0, c.NumAckPending-l.ready-l.leased-l.waiting-waiting-due)
	st.Messages["waiting"] = min(l.waiting+waiting, int(mail.State.Msgs))
	st.Messages["leased"] = min(l.leased+elsewhere, int(mail.State.Msgs)-st.Messages["waiting"])
	st.Messages["ready"] = max(0, int(mail.State.Msgs)-st.Messages["waiting"]-st.Messages["leased"])
	return st
}

// published is how commits of several messages go out now.
func (q *Queue) published() batchMode {
	if q.o.Batch == "auto" {
		return q.choose.current()
	}
	return batchMode(q.mode.Load())
}

// oldestOf gives the arrival of the first message of the streams that have one.
func (q *Queue) oldestOf(ctx context.Context, infos ...*js.StreamInfo) (oldest time.Time) {
	q.oldest.Lock()
	defer q.oldest.Unlock()
	for i, info := range infos {
		if info.State.Msgs == 0 {
			continue
		}
		if first := info.State.FirstSeq; q.oldest.seq[i] != first {
			m, err := q.get(ctx, info.Config.Name, getRequest{Seq: first, NextFor: ">"})
			if err != nil {
				continue
			}
			q.oldest.seq[i], q.oldest.at[i] = first, m.arrived()
		}
		if at := q.oldest.at[i]; oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
	}
	return oldest
}

// page goes through a stream, a bounded number of messages at a time. A replica may answer, a moment behind.
func (q *Queue) page(ctx context.Context, stream string) iter.Seq2[*stored, error] {
	return q.pageFrom(ctx, stream, 1, time.Time{})
}

func (q *Queue) pageFrom(ctx context.Context, stream string, seq uint64, since time.Time) iter.Seq2[*stored, error] {
	return func(yield func(*stored, error) bool) {
		single := false
		for {
			got := 0
			if !single {
				options := []jetstreamext.GetBatchOpt{jetstreamext.GetBatchMaxBytes(pageBytes)}
				if since.IsZero() {
					options = append(options, jetstreamext.GetBatchSeq(seq))
				} else {
					options = append(options, jetstreamext.GetBatchStartTime(since))
				}
				asking, cancel := context.WithTimeout(ctx, q.o.Timeout)
				batch, err := jetstreamext.GetBatch(asking, q.js, stream, pageMessages, options...)
				if err != nil {
					cancel()
					yield(nil, fmt.Errorf("jetstream: read %s: %w", stream, err))
					return
				}
				for m, err := range batch {
					if errors.Is(err, jetstreamext.ErrNoMessages) {
						cancel()
						return
					}
					if err != nil { // no direct access, or an old server: one at a time from the leader
						single = true
						break
					}
					got, since, seq = got+1, time.Time{}, m.Sequence+1
					if !yield(&stored{stream: stream, seq: m.Sequence, subject: m.Subject, time: m.Time, header: m.Header, data: m.Data}, nil) {
						cancel()
						return
					}
				}
				cancel()
				if got == 0 {
					single = true
				}
				continue
			}
			asking, cancel := context.WithTimeout(ctx, q.o.Timeout)
			m, err := q.get(asking, stream, getRequest{Seq: seq, NextFor: ">"})
			cancel()
			if errors.Is(err, queue.ErrNotFound) {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			seq = m.seq + 1
			if !since.IsZero() && m.time.Before(since) {
				continue
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

// List goes through the streams side by side, by the arrival of their messages; within a stream, in its order. It is no snapshot: a message
// settled meanwhile may be missing or shown twice.
func (q *Queue) List(yield func(queue.Entry) bool) error {
	if err := q.usable(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(q.ctx)
	defer cancel()
	wait, done := context.WithTimeout(ctx, q.o.Timeout)
	q.settled(wait)
	done()

	records := map[envelope.ID]*record{}
	for m, err := range q.page(ctx, q.o.stateStream()) {
		if err != nil {
			return err
		}
		if len(records) == maxStateScan {
			break
		}
		if id, err := envelope.ParseID(m.subject[strings.LastIndexByte(m.subject, '.')+1:]); err == nil {
			if r, err := parseRecord(m); err == nil {
				records[id] = r
			}
		}
	}
	delivered := uint64(0)
	var c js.ConsumerInfo
	if err := q.api(ctx, "CONSUMER.INFO."+q.o.Stream+"."+q.o.Durable, struct{}{}, &c); err == nil {
		delivered = c.Delivered.Stream
	}

	type head struct {
		next func() (*stored, error, bool)
		stop func()
		m    *stored
	}
	var heads []*head
	for _, stream := range []string{q.o.Stream, q.o.heldStream(), q.o.deadStream()} {
		h := &head{}
		h.next, h.stop = iter.Pull2(q.page(ctx, stream))
		defer h.stop()
		m, err, ok := h.next()
		if err != nil {
			return err
		}
		if ok {
			h.m = m
			heads = append(heads, h)
		}
	}
	for len(heads) > 0 {
		first := 0
		for i, h := range heads {
			if h.m.arrived().Before(heads[first].m.arrived()) {
				first = i
			}
		}
		h := heads[first]
		id, _ := h.m.id()
		if e, ok := q.entryOf(ctx, h.m, records[id], delivered); ok && !yield(e) {
			return nil
		}
		m, err, ok := h.next()
		if err != nil {
			return err
		}
		if h.m = m; !ok {
			heads = slices.Delete(heads, first, first+1)
		}
	}
	return nil
}

// entryOf shows a message; ok is false when it is done by now. r is its state record, or nil; delivered is how far the consumer has come.
func (q *Queue) entryOf(ctx context.Context, m *stored, r *record, delivered uint64) (e queue.Entry, ok bool) {
	id, _ := m.id()
	e = queue.Entry{ID: id, Arrived: m.arrived(), Size: m.size(), Reason: m.header.Get(hdrReason)}
	if r != nil {
		e.Attempts = r.Attempts
	}
	switch m.stream {
	case q.o.heldStream():
		e.State = queue.Held
	case q.o.deadStream():
		e.State = queue.Dead
		if m.header.Get(hdrAgain) == queue.Damaged.String() {
			e.State = queue.Damaged
		}
	default:
		e.Reason = ""
		now := q.o.Now()
		q.mu.Lock()
		here := q.byID[id]
		switch {
		case here != nil && here.seq == m.seq:
			if here.gone {
				q.mu.Unlock()
				return e, false
			}
			e.State, e.Attempts = here.state, max(here.attempts, e.Attempts)
			if here.state == queue.Waiting {
				if e.Next = here.due.UTC(); !here.due.After(now) {
					e.State, e.Next = queue.Ready, time.Time{}
				}
			}
			if here.state == queue.Dead || here.state == queue.Held || here.state == queue.Damaged {
				e.Reason = here.reason
			}
		case r != nil && r.State == queue.Waiting && r.Next.After(now):
			e.State, e.Next = queue.Waiting, r.Next
		case r != nil: // due, and given to nobody as far as is known
			e.State = queue.Ready
		case m.seq <= delivered:
			e.State = queue.Leased
		}
		q.mu.Unlock()
		if q.o.Hold != "" && e.State == queue.Ready {
			e.State, e.Reason = queue.Held, q.o.Hold
		}
	}
	var binary []byte
	if name := m.header.Get(hdrEnvelopeAt); name != "" {
		binary, _ = q.readObject(ctx, name, maxPrefetchBytes)
	}
	head := *m
	head.data = nil
	env, err := head.envelope(binary)
	if err != nil {
		e.ReversePath = m.header.Get(hdrFrom)
		for _, to := range m.header.Values(hdrTo) {
			e.Recipients = append(e.Recipients, queue.EntryRcpt{ForwardPath: to})
		}
		if e.Reason == "" {
			e.Reason = trouble(err)
		}
		return e, true
	}
	e.Arrived = env.Arrived
	e.ReversePath = string(env.ReversePath)
	if env.Client.Addr.IsValid() {
		e.Client = env.Client.Addr.String()
	}
	e.Helo, e.Protocol, e.Listener = string(env.Client.Helo), env.Client.Protocol, env.Client.Listener
	e.User, e.Results = string(env.Client.User), string(env.Results)
	e.RequireTLS = env.RequireTLS
	if len(env.Metadata) > 0 && json.Valid(env.Metadata) { // what is not would spoil the whole entry
		e.Metadata = bytes.Clone(env.Metadata)
	}
	e.Recipients = make([]queue.EntryRcpt, len(env.Recipients))
	outcomes := r.outcomes(len(env.Recipients))
	for i := range env.Recipients {
		e.Recipients[i] = queue.EntryRcpt{ForwardPath: string(env.Recipients[i].Path), State: outcomes[i].State, Reply: outcomes[i].Reply}
	}
	return e, true
}

// found is a message with what is known of it.
type found struct {
	m     *stored
	r     *record     // nil: never tried
	entry *entry      // of those that are here, nil when it is not
	was   queue.State // what the entry was before it was taken
}

// find looks for a message: here, then where its state record points, then among held and dead, at last through the mail stream from when it
// arrived. With take, an entry that is here is taken out of reach of Lease; the caller settles or returns it.
func (q *Queue) find(ctx context.Context, id envelope.ID, take bool) (*found, error) {
	for {
		q.mu.Lock()
		e := q.byID[id]
		if e == nil {
			q.mu.Unlock()
			break
		}
		if job := e.job; job != nil {
			q.mu.Unlock()
			select {
			case <-job:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("jetstream: message %s: %w: its settlement is not with the cluster yet", id, queue.ErrUnavailable)
			}
		}
		if take {
			if e.state == queue.Leased {
				q.mu.Unlock()
				return nil, queue.ErrLeased
			}
			if e.place >= 0 {
				heap.Remove(&q.waiting, e.place)
			}
			if i := slices.Index(q.buffer, e); i >= 0 {
				q.buffer = slices.Delete(q.buffer, i, i+1)
			}
		}
		was, raw := e.state, e.raw
		if take {
			e.state = queue.Leased
		}
		q.mu.Unlock()
		f := &found{m: raw, entry: e, was: was}
		var err error
		if raw == nil {
			f.m, err = q.get(ctx, q.o.Stream, getRequest{Seq: e.seq})
		}
		if err == nil {
			if f.r, err = q.record(ctx, id); errors.Is(err, queue.ErrNotFound) {
				err = nil
			}
		}
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, queue.ErrNotFound): // settled from elsewhere
			q.mu.Lock()
			q.forget(e)
			q.mu.Unlock()
			continue
		default:
			if take {
				q.putBack(e, was)
			}
			return nil, err
		}
	}
	f := &found{}
	var err error
	if f.r, err = q.record(ctx, id); err != nil && !errors.Is(err, queue.ErrNotFound) {
		return nil, err
	}
	for stream, subject := range map[string]string{q.o.heldStream(): q.o.heldSubject(id.String()), q.o.deadStream(): q.o.deadSubject(id.String())} {
		m, err := q.get(ctx, stream, getRequest{LastFor: subject})
		if err == nil && (f.m == nil || m.time.After(f.m.time)) {
			f.m = m
		}
		if err != nil && !errors.Is(err, queue.ErrNotFound) {
			return nil, err
		}
	}
	if f.m != nil {
		return f, nil
	}
	if f.r != nil && f.r.Seq != 0 {
		m, err := q.get(ctx, q.o.Stream, getRequest{Seq: f.r.Seq})
		if err == nil {
			if have, _ := m.id(); have == id {
				f.m = m
				return f, nil
			}
		} else if !errors.Is(err, queue.ErrNotFound) {
			return nil, err
		}
	}
	since := id.Time().Add(-time.Minute) // the edge's clock and the servers' may differ
	if f.r != nil {
		since = f.r.time.Add(-time.Minute)
	}
	looked := 0
	for m, err := range q.pageFrom(ctx, q.o.Stream, 1, since) {
		if err != nil {
			return nil, err
		}
		if have, _ := m.id(); have == id {
			f.m = m
			return f, nil
		}
		if looked++; looked == maxScan {
			return nil, fmt.Errorf("jetstream: message %s is not among the %d that came in with it or later: %w", id, maxScan, queue.ErrNotFound)
		}
	}
	return nil, queue.ErrNotFound
}

// putBack returns an entry that find has taken.
func (q *Queue) putBack(e *entry, was queue.State) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	e.state = was
	if was == queue.Waiting {
		heap.Push(&q.waiting, e)
	} else {
		q.buffer = slices.Insert(q.buffer, 0, e)
	}
	q.wakeLeaser()
}

func (q *Queue) asking() (context.Context, context.CancelFunc) {
	return context.WithTimeout(q.ctx, 4*q.o.Timeout)
}

// Show gives one message.
func (q *Queue) Show(id envelope.ID) (queue.Entry, error) {
	if err := q.usable(); err != nil {
		return queue.Entry{}, err
	}
	ctx, cancel := q.asking()
	defer cancel()
	f, err := q.find(ctx, id, false)
	if err != nil {
		return queue.Entry{}, err
	}
	delivered := uint64(0)
	var c js.ConsumerInfo
	if err := q.api(ctx, "CONSUMER.INFO."+q.o.Stream+"."+q.o.Durable, struct{}{}, &c); err == nil {
		delivered = c.Delivered.Stream
	}
	e, ok := q.entryOf(ctx, f.m, f.r, delivered)
	if !ok {
		return queue.Entry{}, queue.ErrNotFound
	}
	return e, nil
}

// Cat verifies the message first: of a damaged one nothing is written.
func (q *Queue) Cat(id envelope.ID, w io.Writer) error {
	if err := q.usable(); err != nil {
		return err
	}
	ctx, cancel := q.asking()
	defer cancel()
	f, err := q.find(ctx, id, false)
	if err != nil {
		return err
	}
	_, open, err := q.openBody(ctx, f.m)
	if err != nil {
		return fmt.Errorf("jetstream: message %s: %w", id, err)
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// change finds a message that nobody here has leased and lets f change it. A relay on another machine may have it leased all the same: what
// it says of it then, is not heard.
func (q *Queue) change(id envelope.ID, f func(ctx context.Context, f *found) (keep bool, err error)) error {
	if err := q.usable(); err != nil {
		return err
	}
	ctx, cancel := q.asking()
	defer cancel()
	it, err := q.find(ctx, id, true)
	if err != nil {
		return err
	}
	keep, err := f(ctx, it)
	if e := it.entry; e != nil {
		if keep || err != nil {
			q.putBack(e, it.was)
		} else {
			q.mu.Lock()
			q.forget(e)
			q.mu.Unlock()
		}
	}
	return err
}

// take removes a message from the stream it stands in.
func (q *Queue) take(ctx context.Context, f *found) error {
	if f.entry != nil {
		return q.ackSync(ctx, f.entry)
	}
	return q.remove(ctx, f.m.stream, f.m.seq)
}

// record gives a record to change.
func (f *found) record() *record {
	if f.r == nil {
		return &record{}
	}
	r := *f.r
	r.Next, r.Reason, r.Seq, r.Ack = time.Time{}, "", 0, ""
	return &r
}

// Hold moves a message to the held ones. A damaged one stays damaged.
func (q *Queue) Hold(id envelope.ID, reason string) error {
	return q.change(id, func(ctx context.Context, f *found) (bool, error) {
		if f.r != nil && f.r.State == queue.Damaged {
			return true, queue.ErrCorrupt
		}
		r := f.record()
		r.State, r.Reason = queue.Held, printable(reason, maxReplyBytes)
		if _, err := q.putRecord(ctx, id, r); err != nil {
			return true, err
		}
		if err := q.park(ctx, f.m, id, r); err != nil {
			return true, err
		}
		if f.m.stream == q.o.heldStream() {
			return false, nil // the new one has taken the place of the old one
		}
		return false, q.take(ctx, f)
	})
}

// Release publishes a held or dead message again. Others are not held: nothing to do.
func (q *Queue) Release(id envelope.ID) error {
	return q.change(id, func(ctx context.Context, f *found) (bool, error) {
		if f.m.stream == q.o.Stream {
			return true, nil
		}
		r := f.record()
		if f.m.stream == q.o.deadStream() {
			r.Recipients = strings.ReplaceAll(r.Recipients, "f", "p")
		}
		r.State = queue.Ready
		if _, err := q.putRecord(ctx, id, r); err != nil {
			return true, err
		}
		header := nats.Header{}
		for key, values := range f.m.header {
			if !strings.HasPrefix(key, "Nats-") && key != hdrReason {
				header[key] = values
			}
		}
		// Twice the same decision is one message; another decision later is another one.
		header.Set(hdrMsgID, fmt.Sprintf("%s.%s.%d", id, f.m.stream, f.m.seq))
		header.Set(hdrAgain, r.State.String())
		data, err := q.fit(ctx, id, header, f.m.data)
		if err != nil {
			return true, err
		}
		if _, err := q.publish(ctx, q.o.Stream, &nats.Msg{Subject: q.o.Subject, Header: header, Data: data}); err != nil {
			return true, err
		}
		return false, q.take(ctx, f)
	})
}

// Retry makes a waiting message due now; a ready one is. Held and dead ones want Release.
func (q *Queue) Retry(id envelope.ID) error {
	return q.change(id, func(ctx context.Context, f *found) (bool, error) {
		switch f.m.stream {
		case q.o.heldStream():
			return true, fmt.Errorf("jetstream: message %s is held, not waiting", id)
		case q.o.deadStream():
			return true, fmt.Errorf("jetstream: message %s is dead, not waiting", id)
		}
		if e := f.entry; e != nil {
			if f.was == queue.Waiting {
				e.due = q.o.Now()
			}
			return true, nil
		}
		if f.r == nil || f.r.State != queue.Waiting || f.r.Ack == "" {
			return true, nil
		}
		// It waits at another relay, or at one that is gone. With another record the relay that has it lets it go.
		r := *f.r
		r.Next = q.o.Now().UTC()
		if _, err := q.putRecord(ctx, id, &r); err != nil {
			return true, err
		}
		if err := q.nc.Publish(r.Ack, []byte("-NAK")); err != nil {
			return true, fmt.Errorf("jetstream: retry: %w", err)
		}
		return true, nil
	})
}

// Drop forgets a message that nobody here has leased.
func (q *Queue) Drop(id envelope.ID) error {
	return q.change(id, func(ctx context.Context, f *found) (bool, error) {
		if err := q.take(ctx, f); err != nil {
			return true, err
		}
		if f.r != nil {
			if err := q.purge(ctx, q.o.stateStream(), q.o.stateSubject(id.String())); err != nil {
				return false, err
			}
		}
		return false, q.cleanObjects(ctx, f.m)
	})
}
