package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// List goes through the messages in the order in which they were committed. Each is read from disk without holding anything up, so
// the list is no snapshot: a message done meanwhile may be missing, a state may be a moment old.
func (s *Spool) List(yield func(queue.Entry) bool) error {
	var batch []*message
	for after := uint64(0); ; {
		seg, msgs := s.pinNext(after, batch[:0])
		if seg == nil {
			return nil
		}
		for _, m := range msgs {
			after = m.seq + 1
			e, ok := s.entry(m)
			if ok && !yield(e) {
				s.unpin(seg)
				return nil
			}
		}
		s.unpin(seg)
		batch = msgs
	}
}

// pinNext gives up to 256 live messages of one segment, from sequence number after on, and pins the segment.
func (s *Spool) pinNext(after uint64, msgs []*message) (*segment, []*message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil
	}
	for _, seg := range s.segments {
		if seg.firstSeq+uint64(len(seg.msgs)) <= after {
			continue
		}
		from := 0
		if after > seg.firstSeq {
			from = int(after - seg.firstSeq)
		}
		for _, m := range seg.msgs[from:] {
			if m != nil {
				if msgs = append(msgs, m); len(msgs) == 256 {
					break
				}
			}
		}
		if len(msgs) > 0 {
			seg.pins++
			return seg, msgs
		}
	}
	return nil, nil
}

// pin finds a message and keeps its segment until unpin.
func (s *Spool) pin(id envelope.ID) (*message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, queue.ErrClosed
	}
	m := s.byID[id]
	if m == nil {
		return nil, queue.ErrNotFound
	}
	m.seg.pins++
	return m, nil
}

func (s *Spool) unpin(seg *segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seg.pins--
	s.retireIfDone(seg)
}

// entry shows m, whose segment is pinned; ok is false when it is done by now.
func (s *Spool) entry(m *message) (e queue.Entry, ok bool) {
	env, _, _, err := s.readEnvelope(m, false)

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[m.id] != m {
		return e, false
	}
	e = queue.Entry{ID: m.id, State: m.state, Arrived: m.id.Time(), Size: m.size(), Attempts: int(m.attempts)}
	if m.state == queue.Waiting {
		e.Next = time.Unix(0, m.next).UTC()
	}
	if m.detail != nil {
		e.Reason = m.detail.reason
	}
	if m.heldHere {
		e.Reason = s.hold
	}
	if err != nil {
		if e.Reason == "" {
			e.Reason = err.Error()
		}
		return e, true
	}
	e.Arrived = env.Arrived
	e.ReversePath = string(env.ReversePath)
	if env.Client.Addr.IsValid() {
		e.Client = env.Client.Addr.String()
	}
	e.Helo, e.Protocol, e.Listener = string(env.Client.Helo), env.Client.Protocol, env.Client.Listener
	e.RequireTLS = env.RequireTLS
	if len(env.Metadata) > 0 && json.Valid(env.Metadata) { // what is not would spoil the whole entry
		e.Metadata = json.RawMessage(env.Metadata)
	}
	e.User, e.Results = string(env.Client.User), string(env.Results)
	e.Recipients = make([]queue.EntryRcpt, len(env.Recipients))
	outcomes := m.outcomes()
	for i := range env.Recipients {
		e.Recipients[i].ForwardPath = string(env.Recipients[i].Path)
		if i < len(outcomes) {
			e.Recipients[i].State, e.Recipients[i].Reply = outcomes[i].State, outcomes[i].Reply
		}
	}
	return e, true
}

// Show gives one message.
func (s *Spool) Show(id envelope.ID) (queue.Entry, error) {
	m, err := s.pin(id)
	if err != nil {
		return queue.Entry{}, err
	}
	defer s.unpin(m.seg)
	e, ok := s.entry(m)
	if !ok {
		return queue.Entry{}, queue.ErrNotFound
	}
	return e, nil
}

// Cat verifies the message first: of a damaged one nothing is written.
func (s *Spool) Cat(id envelope.ID, w io.Writer) error {
	m, err := s.pin(id)
	if err != nil {
		return err
	}
	defer s.unpin(m.seg)
	_, open, err := s.verify(m)
	if err != nil {
		if d, ok := errors.AsType[damage](err); ok {
			s.mu.Lock()
			if s.byID[id] == m && m.state != queue.Leased {
				s.markDamaged(m, d)
			}
			s.mu.Unlock()
		}
		return fmt.Errorf("spool: message %s: %w", id, err)
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// change finds a message that is not leased and lets f change it, which gives false when there was nothing to do.
func (s *Spool) change(id envelope.ID, f func(*message) (bool, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return queue.ErrClosed
	}
	m := s.byID[id]
	switch {
	case m == nil:
		return queue.ErrNotFound
	case m.state == queue.Leased:
		return queue.ErrLeased
	}
	changed, err := f(m)
	if changed {
		s.acks.state(m)
	}
	return err
}

// Hold holds a message that is not leased. A damaged one stays damaged.
func (s *Spool) Hold(id envelope.ID, reason string) error {
	return s.change(id, func(m *message) (bool, error) {
		if m.state == queue.Damaged {
			return false, queue.ErrCorrupt
		}
		m.detail = &detail{reason: printable(reason), outcomes: m.outcomes()}
		s.setState(m, queue.Held)
		return true, nil
	})
}

// Release makes a held or dead message ready. A damaged one is read again by the next Lease, in case the fault was the reading's.
// Others are not held: nothing to do.
func (s *Spool) Release(id envelope.ID) error {
	return s.change(id, func(m *message) (bool, error) {
		switch m.state {
		case queue.Held, queue.Dead, queue.Damaged:
		default:
			return false, nil
		}
		if outcomes := m.outcomes(); outcomes != nil {
			again := make([]queue.Outcome, len(outcomes))
			copy(again, outcomes)
			for i := range again {
				if m.state == queue.Dead && again[i].State == queue.Failed {
					again[i].State = queue.Pending
				}
			}
			m.detail = &detail{outcomes: again}
		} else {
			m.detail = nil
		}
		m.decided = true
		s.makeReady(m)
		return true, nil
	})
}

// Retry makes a waiting message due now; a ready one is. Held, dead and damaged ones want Release.
func (s *Spool) Retry(id envelope.ID) error {
	return s.change(id, func(m *message) (bool, error) {
		switch m.state {
		case queue.Ready:
			return false, nil
		case queue.Waiting:
			s.makeReady(m)
			return true, nil
		}
		return false, fmt.Errorf("spool: message %s is %s, not waiting", id, m.state)
	})
}

// makeReady puts m behind all that are due now. Protected by mu.
func (s *Spool) makeReady(m *message) {
	m.next = s.o.Now().UnixNano()
	s.setState(m, queue.Ready)
	s.wake(1)
}

// Drop forgets a message that is not leased.
func (s *Spool) Drop(id envelope.ID) error {
	return s.change(id, func(m *message) (bool, error) {
		s.acks.done(m.seq)
		s.done(m)
		return false, nil
	})
}
