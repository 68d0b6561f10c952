package spool

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// Lease reads and verifies the whole message before it gives it away: a damaged one is marked, reported and passed over.
func (s *Spool) Lease(ctx context.Context) (*queue.Delivery, error) {
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
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, queue.ErrClosed
		}
		now := s.o.Now()
		m, next := s.takeDue(now.UnixNano())
		if m != nil {
			s.setState(m, queue.Leased)
			s.mu.Unlock()
			if d := s.read(m); d != nil {
				return d, nil
			}
			continue
		}
		signal := make(chan struct{}, 1)
		s.waiters = append(s.waiters, signal)
		s.mu.Unlock()

		var due <-chan time.Time
		if next != 0 {
			wait := time.Duration(next - now.UnixNano())
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
			s.stopWaiting(signal)
		case <-ctx.Done():
			s.stopWaiting(signal)
		}
	}
}

// stopWaiting takes a leaser off the list; a signal it got meanwhile goes to the next one.
func (s *Spool) stopWaiting(signal chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, ch := range s.waiters {
		if ch == signal {
			s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
			return
		}
	}
	if !s.closed {
		s.wake(1)
	}
}

// read makes the delivery of a message just leased. It gives nil when the message can't be handed on now.
func (s *Spool) read(m *message) *queue.Delivery {
	env, open, err := s.verify(m)
	if err != nil {
		s.unreadable(m, err)
		return nil
	}
	d := &queue.Delivery{Env: env, Size: m.size(), Open: open}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.Attempts = int(m.attempts)
	d.Outcomes = make([]queue.Outcome, len(env.Recipients))
	copy(d.Outcomes, m.outcomes())
	s.leases[d] = m
	return d
}

// damage is why a message can't be read: what is stored does not match its checksum.
type damage struct{ what string }

func (d damage) Error() string        { return "spool: " + d.what + " does not match its checksum" }
func (d damage) Is(target error) bool { return target == queue.ErrCorrupt }

// unreadable deals with a leased message that failed to verify. One that is damaged stays, for the operator to look at; one that
// the disk would not give is tried again in a minute.
func (s *Spool) unreadable(m *message, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if d, ok := err.(damage); ok {
		s.markDamaged(m, d)
		return
	}
	s.o.Log.Error("spool: message can't be read; trying again in a minute", "message", m.id, "segment", m.seg.number, "error", err)
	m.next = s.o.Now().Add(time.Minute).UnixNano()
	s.setState(m, queue.Waiting)
}

// markDamaged is told once for each message. Protected by mu.
func (s *Spool) markDamaged(m *message, d damage) {
	if m.state == queue.Damaged {
		return
	}
	s.o.Log.Error("spool: message is damaged and will not be handed on", "message", m.id, "segment", m.seg.number, "offset", m.off,
		"size", m.size(), "error", d)
	s.stats.Damaged++
	s.setState(m, queue.Damaged)
	m.detail = &detail{reason: d.what + " does not match its checksum", outcomes: m.outcomes()}
	s.acks.state(m)
}

// verify reads the record of m and checks all of it. m must not become done meanwhile: it is leased, or its segment is pinned.
func (s *Spool) verify(m *message) (*envelope.Envelope, func() (io.ReadCloser, error), error) {
	env, h, body, err := s.readEnvelope(m, m.size() <= smallRecordBytes)
	if err != nil {
		return nil, nil, err
	}
	seed := contentSeed(m.seg.seed, m.seq)
	if m.size() <= smallRecordBytes {
		if bodySum(crc32.Update(seed, castagnoli, env.Trace), crc32.Checksum(body[m.traceBytes:], castagnoli)) != h.bodyCRC {
			return nil, nil, damage{"message data"}
		}
		return env, func() (io.ReadCloser, error) { return memoryReader{bytes.NewReader(body)}, nil }, nil
	}
	// A long message is read twice: once now, once by the caller. The second reading is summed as well, and ends with an error in
	// place of EOF when the disk has changed its mind.
	whole := bodyReader{
		files: &s.files, seg: m.seg, off: m.bodyOffset(), trace: int64(m.traceBytes), left: m.size(), traceSum: seed, want: h.bodyCRC,
	}
	pass := whole
	if _, err := pass.WriteTo(io.Discard); err != nil {
		return nil, nil, err
	}
	return env, func() (io.ReadCloser, error) { again := whole; return &again, nil }, nil
}

func (m *message) bodyOffset() int64 { return m.off + recordHeaderBytes + int64(m.envBytes) }

// readEnvelope reads and checks header and envelope of m, and the body unchecked in the same go if wanted.
func (s *Spool) readEnvelope(m *message, withBody bool) (env *envelope.Envelope, h recordHeader, body []byte, err error) {
	n := recordHeaderBytes + int64(m.envBytes)
	if withBody {
		n += m.size()
	}
	b := make([]byte, n)
	if _, err = s.files.readAt(m.seg, b, m.off); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil, h, nil, damage{"record (the file is shorter)"}
		}
		return nil, h, nil, fmt.Errorf("spool: read segment %d: %w", m.seg.number, err)
	}
	h, ok := parseRecordHeader(b, m.seg.seed)
	if !ok || h.seq != m.seq || h.id != m.id || h.envBytes != m.envBytes || h.traceBytes != m.traceBytes || int64(h.dataBytes) != m.dataBytes {
		return nil, h, nil, damage{"record header"}
	}
	binary := b[recordHeaderBytes : recordHeaderBytes+int64(m.envBytes)]
	if crc32.Update(contentSeed(m.seg.seed, m.seq), castagnoli, binary) != h.envCRC {
		return nil, h, nil, damage{"envelope"}
	}
	if env, err = envelope.Decode(binary); err != nil {
		return nil, h, nil, damage{"envelope (malformed)"}
	}
	if withBody {
		body = b[n-m.size():]
		env.Trace = body[:m.traceBytes:m.traceBytes]
	}
	return env, h, body, nil
}

// memoryReader is a body in memory.
type memoryReader struct{ *bytes.Reader }

func (memoryReader) Close() error { return nil }

// bodyReader reads trace field and data of a record from disk and sums what it gives.
type bodyReader struct {
	files    *files
	seg      *segment
	off      int64
	trace    int64 // bytes of the trace field still to come
	left     int64 // bytes of both
	traceSum uint32
	dataSum  uint32
	want     uint32
}

func (r *bodyReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		if bodySum(r.traceSum, r.dataSum) != r.want {
			return 0, damage{"message data"}
		}
		return 0, io.EOF
	}
	n, err := r.files.readAt(r.seg, p[:min(int64(len(p)), r.left)], r.off)
	of := min(r.trace, int64(n))
	r.trace -= of
	r.traceSum = crc32.Update(r.traceSum, castagnoli, p[:of])
	r.dataSum = crc32.Update(r.dataSum, castagnoli, p[of:n])
	r.off += int64(n)
	r.left -= int64(n)
	if n > 0 {
		err = nil
	} else if err == io.EOF {
		err = damage{"record (the file is shorter)"}
	}
	return n, err
}

var copyBuffers = sync.Pool{New: func() any { return new([smallRecordBytes]byte) }}

// WriteTo gives large pieces to w.
func (r *bodyReader) WriteTo(w io.Writer) (total int64, err error) {
	buf := copyBuffers.Get().(*[smallRecordBytes]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err = w.Write(buf[:n])
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

func (*bodyReader) Close() error { return nil }

// Settle notes what became of a leased message. The note reaches the disk within about a second.
func (s *Spool) Settle(d *queue.Delivery, outcomes []queue.Outcome, next time.Time) error {
	return s.settle(d, outcomes, next, "", false)
}

// Kill makes a leased message dead.
func (s *Spool) Kill(d *queue.Delivery, outcomes []queue.Outcome, reason string) error {
	return s.settle(d, outcomes, time.Time{}, reason, true)
}

func (s *Spool) settle(d *queue.Delivery, outcomes []queue.Outcome, next time.Time, reason string, kill bool) error {
	if len(outcomes) != len(d.Env.Recipients) {
		panic(fmt.Sprintf("spool: message %s has %d recipients and is settled with %d outcomes", d.Env.ID, len(d.Env.Recipients), len(outcomes)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return queue.ErrClosed
	}
	m, ok := s.leases[d]
	if !ok {
		return fmt.Errorf("spool: settle %s: %w", d.Env.ID, queue.ErrNotFound)
	}
	delete(s.leases, d)
	if m.attempts < 1<<16-1 {
		m.attempts++
	}
	pending, failed, refusal := false, false, ""
	for i := range outcomes {
		switch outcomes[i].State {
		case queue.Pending:
			pending = true
		case queue.Failed:
			if !failed {
				refusal = outcomes[i].Reply
			}
			failed = true
		}
	}
	if !kill && !pending && !failed {
		s.acks.done(m.seq)
		s.done(m)
		return nil
	}
	kept := make([]queue.Outcome, len(outcomes))
	for i, o := range outcomes {
		kept[i] = queue.Outcome{State: o.State, Reply: printable(o.Reply)}
	}
	m.detail = &detail{outcomes: kept}
	switch {
	case kill:
		m.detail.reason = printable(reason)
		s.setState(m, queue.Dead)
	case pending:
		m.next = next.UnixNano()
		s.setState(m, queue.Waiting)
		s.wakeForDue(m)
	default:
		m.detail.reason = printable(refusal)
		s.setState(m, queue.Dead)
	}
	s.acks.state(m)
	return nil
}

// wakeForDue: when m is now the first that falls due, one leaser must look at the clock again. Protected by mu.
func (s *Spool) wakeForDue(m *message) {
	if m.place == 0 {
		s.wake(1)
	}
}

// printable cuts a reply to maxReplyBytes and replaces what could disturb a terminal or a log.
func printable(s string) string {
	if len(s) > maxReplyBytes {
		s = s[:maxReplyBytes]
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F {
			return ' '
		}
		return r
	}, s), "?")
}
