package spool

import (
	"container/heap"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// message is the index entry of one message not yet done: 104 bytes, and about 40 in byID. What is not needed to find it, order it
// or count it stays on disk. Fields behind dataBytes are protected by Spool.mu; the others never change.
type message struct {
	seq        uint64
	id         envelope.ID
	seg        *segment
	off        int64 // of the record
	envBytes   uint32
	traceBytes uint32
	dataBytes  int64

	next     int64 // when it is, or became, due: nanoseconds since 1970
	detail   *detail
	place    int32 // in Spool.due, -1 when not there
	attempts uint16
	state    queue.State
	heldHere bool // held because of Options.Hold, not by an operator
	decided  bool // an operator released it: Options.Hold does not apply
	queued   bool // in Spool.fifo, also when it is no longer ready
	keyed    bool // its envelope has an idempotency key; never changes
}

// detail is what only messages with a history have.
type detail struct {
	reason   string
	outcomes []queue.Outcome
}

func (m *message) size() int64 { return int64(m.traceBytes) + m.dataBytes }

func (m *message) outcomes() []queue.Outcome {
	if m.detail == nil {
		return nil
	}
	return m.detail.outcomes
}

// index makes a committed batch known and wakes as many leasers as there are messages. It runs on the committer.
func (s *Spool) index(seg *segment, msgs []message, end int64) {
	now := s.o.Now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(seg.msgs) == 0 {
		s.segments = append(s.segments, seg)
		seg.firstSeq = msgs[0].seq
	}
	s.written.Add(end - seg.end)
	seg.end = end
	if s.o.Durability == Fsync { // otherwise the index could be on disk before what it speaks of
		seg.idx.note(msgs, end)
		s.wantIndex(seg)
	}
	for i := range msgs {
		m := &msgs[i]
		m.next = now
		s.insert(m)
		s.begin(m)
	}
	s.stats.Committed += uint64(len(msgs))
	s.stats.Commits++
	if s.o.Durability == Fsync {
		s.stats.Syncs++
	}
	s.acks.progress(seg)
	if s.hold == "" {
		s.wake(len(msgs))
	}
}

// insert adds m to its segment and to the counts, without a state. Protected by mu, as all below.
func (s *Spool) insert(m *message) {
	m.seg.msgs = append(m.seg.msgs, m)
	m.seg.live++
	s.byID[m.id] = m
	s.bytes += m.size()
	s.live.Add(1)
	s.counts[m.state]++
}

// begin gives a message its first state.
func (s *Spool) begin(m *message) {
	if s.hold != "" && !m.decided {
		s.setState(m, queue.Held)
		m.heldHere = true
		return
	}
	s.setState(m, queue.Ready)
}

// setState is the one place where a message's state changes; it keeps counts, fifo and due in step. For Waiting m.next is set
// before. The caller wakes leasers.
func (s *Spool) setState(m *message, to queue.State) {
	s.counts[m.state]--
	s.counts[to]++
	m.heldHere = false
	if m.place >= 0 {
		heap.Remove(&s.due, int(m.place))
	}
	m.state = to
	switch to {
	case queue.Ready:
		if !m.queued {
			m.queued = true
			s.fifo.push(m)
		}
	case queue.Waiting:
		heap.Push(&s.due, m)
	}
}

// done forgets m for good and lets its segment go when it was the last one.
func (s *Spool) done(m *message) {
	s.setState(m, queue.Held) // out of every list
	s.counts[queue.Held]--
	s.bytes -= m.size()
	s.live.Add(-1)
	if s.byID[m.id] == m {
		delete(s.byID, m.id)
	}
	seg := m.seg
	seg.msgs[m.seq-seg.firstSeq] = nil
	seg.live--
	s.retireIfDone(seg)
}

// takeDue gives the message that has been due longest, or nil and when the next one will be (0: none is waiting).
func (s *Spool) takeDue(now int64) (m *message, next int64) {
	for {
		first := s.fifo.first()
		if first != nil && first.state != queue.Ready {
			s.fifo.pop().queued = false
			continue
		}
		if len(s.due) > 0 {
			if d := s.due[0]; d.next <= now && (first == nil || d.next < first.next) {
				return d, 0
			}
		}
		if first == nil {
			if len(s.due) > 0 {
				return nil, s.due[0].next
			}
			return nil, 0
		}
		s.fifo.pop().queued = false
		return first, 0
	}
}

// wake signals up to n waiting leasers.
func (s *Spool) wake(n int) {
	n = min(n, len(s.waiters))
	for _, ch := range s.waiters[:n] {
		ch <- struct{}{}
	}
	rest := copy(s.waiters, s.waiters[n:])
	clear(s.waiters[rest:])
	s.waiters = s.waiters[:rest]
}

// messageFIFO is a ring that grows, and shrinks when it is empty.
type messageFIFO struct {
	ring    []*message
	head, n int
}

func (q *messageFIFO) push(m *message) {
	if q.n == len(q.ring) {
		bigger := make([]*message, max(64, 2*q.n))
		for i := range q.n {
			bigger[i] = q.ring[(q.head+i)%len(q.ring)]
		}
		q.ring, q.head = bigger, 0
	}
	q.ring[(q.head+q.n)%len(q.ring)] = m
	q.n++
}

func (q *messageFIFO) first() *message {
	if q.n == 0 {
		return nil
	}
	return q.ring[q.head]
}

func (q *messageFIFO) pop() *message {
	m := q.ring[q.head]
	q.ring[q.head] = nil
	q.head = (q.head + 1) % len(q.ring)
	if q.n--; q.n == 0 && len(q.ring) > 1<<16 {
		q.ring, q.head = nil, 0
	}
	return m
}

// messageHeap orders waiting messages by due time, then by age; container/heap.
type messageHeap []*message

func (h messageHeap) Len() int { return len(h) }

func (h messageHeap) Less(i, j int) bool {
	return h[i].next < h[j].next || h[i].next == h[j].next && h[i].seq < h[j].seq
}

func (h messageHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = int32(i), int32(j)
}

func (h *messageHeap) Push(x any) {
	m := x.(*message)
	m.place = int32(len(*h))
	*h = append(*h, m)
}

func (h *messageHeap) Pop() any {
	old := *h
	m := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	m.place = -1
	return m
}
