package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/fastedge/fastedge/queue"
)

// Records of the ack log. Each is a checksum over all that follows, the kind and the length of the payload in one word, the payload,
// and zeros up to a multiple of ackAlign. doc.go draws the payloads.
const (
	ackAlign        = 8
	ackHeaderBytes  = 8
	maxAckPayload   = 1<<24 - 1
	ackReserveBytes = 1 << 20 // zeros behind the records: room for 65,536 settled messages on a full disk
	ackCompactBytes = 4 << 20 // a shorter log is never rewritten
	maxAckPending   = 8 << 20 // records waiting for a disk that is too slow; then they are dropped and the log is rewritten
)

type ackKind uint8

const (
	ackDone     ackKind = iota + 1 // seq 8: the message is done
	ackState                       // seq 8, state 1, decided 1, attempts 2, next 8, reason 2+n, outcomes 4, of each: state 1, reply 2+n
	ackMark                        // segment 8, end 8, markKind 4
	ackBitmap                      // first seq 8, count 4, bits: the messages done in one segment
	ackCounters                    // next seq 8, next segment 8
	ackHole                        // segment 8, from 8, to 8: a stretch without intact records that has been reported
)

type markKind uint32

const (
	markProgress markKind = iota // everything before end was durable when this was written; more may follow
	markSealed                   // the segment ends here
	markCut                      // the segment ends here because a write or sync failed; what follows was never acknowledged
	markGone                     // all messages of the segment are done: the file may still be there, its records count no more
)

// ackLog keeps what has become of messages. It is written lazily: what is lost of it in a crash is done or tried once more, never
// lost. The index in memory is the truth; whenever the log can't be written it is given up and later written anew from the index.
type ackLog struct {
	s    *Spool
	wake chan struct{} // room for one: there is something to write
	full chan struct{} // room for one: do not wait for more

	// Protected by Spool.mu.
	pending  []byte // records not yet written
	count    int    // of records in pending
	lastSeg  *segment
	behind   bool // pending was dropped, or the file failed: a new file must be written
	seed     uint32
	replaced bool // seed is that of the file being written, no longer the one of file

	// writing is held during input and output; it protects the rest.
	writing   sync.Mutex
	number    uint64
	file      File
	end       int64
	dirty     bool // written, not synced
	compactAt int64
	spare     []byte // pending and this change places
}

func ackName(number uint64) string { return fmt.Sprintf("%08d.ack", number) }

// The following append a record. They are called with Spool.mu held and never block.

func (l *ackLog) done(seq uint64) {
	at := l.begin(ackDone)
	l.pending = binary.LittleEndian.AppendUint64(l.pending, seq)
	l.finish(at)
}

func (l *ackLog) state(m *message) {
	at := l.begin(ackState)
	b := binary.LittleEndian.AppendUint64(l.pending, m.seq)
	decided := byte(0)
	if m.decided {
		decided = 1
	}
	b = append(b, byte(m.state), decided)
	b = binary.LittleEndian.AppendUint16(b, m.attempts)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.next))
	reason := ""
	if m.detail != nil {
		reason = m.detail.reason
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(reason)))
	b = append(b, reason...)
	outcomes := m.outcomes()
	b = binary.LittleEndian.AppendUint32(b, uint32(len(outcomes)))
	for i, o := range outcomes {
		// With very many recipients the states matter more than the replies.
		if len(b)-at+len(o.Reply)+3*(len(outcomes)-i) > maxAckPayload {
			o.Reply = ""
		}
		b = append(b, byte(o.State))
		b = binary.LittleEndian.AppendUint16(b, uint16(len(o.Reply)))
		b = append(b, o.Reply...)
	}
	l.pending = b
	l.finish(at)
}

// mark notes the end of a sealed segment.
func (l *ackLog) mark(seg *segment) {
	kind := markSealed
	switch {
	case !seg.sealed:
		kind = markProgress
	case seg.cut:
		kind = markCut
	}
	l.markAs(seg.number, seg.end, kind)
}

func (l *ackLog) markAs(number uint64, end int64, kind markKind) {
	at := l.begin(ackMark)
	l.pending = binary.LittleEndian.AppendUint64(l.pending, number)
	l.pending = binary.LittleEndian.AppendUint64(l.pending, uint64(end))
	l.pending = binary.LittleEndian.AppendUint32(l.pending, uint32(kind))
	l.finish(at)
}

func (l *ackLog) hole(seg *segment, g gap) {
	at := l.begin(ackHole)
	l.pending = binary.LittleEndian.AppendUint64(l.pending, seg.number)
	l.pending = binary.LittleEndian.AppendUint64(l.pending, uint64(g.from))
	l.pending = binary.LittleEndian.AppendUint64(l.pending, uint64(g.to))
	l.finish(at)
}

func (l *ackLog) bitmap(seg *segment) {
	const chunk = 8 << 20 // messages in one record, 1 MiB of bits
	for from := 0; from < len(seg.msgs); from += chunk {
		msgs := seg.msgs[from:min(from+chunk, len(seg.msgs))]
		at := l.begin(ackBitmap)
		l.pending = binary.LittleEndian.AppendUint64(l.pending, seg.firstSeq+uint64(from))
		l.pending = binary.LittleEndian.AppendUint32(l.pending, uint32(len(msgs)))
		var bits byte
		for i, m := range msgs {
			if m == nil {
				bits |= 1 << (i % 8)
			}
			if i%8 == 7 || i == len(msgs)-1 {
				l.pending = append(l.pending, bits)
				bits = 0
			}
		}
		l.finish(at)
	}
}

func (l *ackLog) counters(nextSeq, nextSegment uint64) {
	at := l.begin(ackCounters)
	l.pending = binary.LittleEndian.AppendUint64(l.pending, nextSeq)
	l.pending = binary.LittleEndian.AppendUint64(l.pending, nextSegment)
	l.finish(at)
}

// progress is told after each commit; the mark itself is written with the next sync.
func (l *ackLog) progress(seg *segment) {
	l.lastSeg = seg
	signal(l.wake)
}

func (l *ackLog) begin(kind ackKind) int {
	at := len(l.pending)
	l.pending = append(l.pending, 0, 0, 0, 0, 0, 0, 0, byte(kind))
	return at
}

func (l *ackLog) finish(at int) {
	n := len(l.pending) - at - ackHeaderBytes
	b := l.pending[at:]
	b[4], b[5], b[6] = byte(n), byte(n>>8), byte(n>>16)
	binary.LittleEndian.PutUint32(b, crc32.Update(l.seed, castagnoli, b[4:]))
	for len(l.pending)%ackAlign != 0 {
		l.pending = append(l.pending, 0)
	}
	l.count++
	signal(l.wake)
	if l.count >= ackBatchRecords {
		signal(l.full)
	}
	if len(l.pending) > maxAckPending && !l.replaced {
		l.pending, l.count, l.behind = nil, 0, true
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// ackRecord splits the first record off b. ok is false when there is none.
func ackRecord(b []byte, seed uint32) (kind ackKind, payload []byte, size int, ok bool) {
	if len(b) < ackHeaderBytes || b[7] == 0 {
		return 0, nil, 0, false
	}
	n := int(b[4]) | int(b[5])<<8 | int(b[6])<<16
	if n > len(b)-ackHeaderBytes || binary.LittleEndian.Uint32(b) != crc32.Update(seed, castagnoli, b[4:ackHeaderBytes+n]) {
		return 0, nil, 0, false
	}
	size = min((ackHeaderBytes+n+ackAlign-1)/ackAlign*ackAlign, len(b))
	return ackKind(b[7]), b[ackHeaderBytes : ackHeaderBytes+n], size, true
}

// scanAcks calls yield for each intact record of an ack file and gives where the last one ends. Damage is skipped, and its bytes
// are counted when intact records follow it: what is behind the last one is an unfinished write.
func scanAcks(b []byte, seed uint32, yield func(kind ackKind, payload []byte)) (end, skipped int) {
	gap := 0
	for off := fileHeaderBytes; off < len(b); {
		kind, payload, size, ok := ackRecord(b[off:], seed)
		if !ok {
			off += ackAlign
			gap += ackAlign
			continue
		}
		skipped += gap
		gap = 0
		yield(kind, payload)
		off += size
		end = off
	}
	return max(end, fileHeaderBytes), skipped
}

// decodeState fills m with an ackState payload behind its sequence number; false when it is malformed.
func decodeState(m *message, p []byte) bool {
	if len(p) < 14 || p[0] > byte(queue.Damaged) {
		return false
	}
	state, decided := queue.State(p[0]), p[1] != 0
	attempts := binary.LittleEndian.Uint16(p[2:])
	next := int64(binary.LittleEndian.Uint64(p[4:]))
	p = p[12:]
	reason, p, ok := cutString(p)
	if !ok || len(p) < 4 {
		return false
	}
	n := binary.LittleEndian.Uint32(p)
	p = p[4:]
	if int64(n)*3 > int64(len(p)) {
		return false
	}
	var outcomes []queue.Outcome
	for range n {
		if len(p) == 0 || p[0] > byte(queue.Failed) {
			return false
		}
		o := queue.Outcome{State: queue.RcptState(p[0])}
		if o.Reply, p, ok = cutString(p[1:]); !ok {
			return false
		}
		outcomes = append(outcomes, o)
	}
	m.state, m.decided, m.attempts, m.next = state, decided, attempts, next
	m.detail = nil
	if reason != "" || outcomes != nil {
		m.detail = &detail{reason: reason, outcomes: outcomes}
	}
	return true
}

func cutString(p []byte) (s string, rest []byte, ok bool) {
	if len(p) < 2 {
		return "", nil, false
	}
	n := int(binary.LittleEndian.Uint16(p))
	if p = p[2:]; n > len(p) {
		return "", nil, false
	}
	return string(p[:n]), p[n:], true
}

// loop writes what is pending, a moment after it came, and syncs about every second while there is something to sync.
func (l *ackLog) loop() {
	defer l.s.workers.Done()
	var syncAt <-chan time.Time
	for {
		var err error
		select {
		case <-l.s.stop:
			return
		case <-l.wake:
			select {
			case <-l.s.stop:
				return
			case <-l.full:
			case <-time.After(ackWriteEvery):
			}
			err = l.flush(false)
			if syncAt == nil {
				syncAt = time.After(ackSyncEvery)
			}
		case <-syncAt:
			syncAt = nil
			err = l.flush(true)
		}
		if err != nil {
			l.s.trouble("the ack log can't be written; messages settled now may be handed on again after a restart", err)
			select {
			case <-l.s.stop:
				return
			case <-time.After(retryAfterTrouble):
			}
			signal(l.wake)
		}
	}
}

// flush writes what is pending and, with sync, makes it durable.
func (l *ackLog) flush(sync bool) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	s := l.s
	s.writeIndexes()
	s.writeKeys()
	s.mu.Lock()
	if sync && l.lastSeg != nil {
		if !l.lastSeg.sealed {
			l.mark(l.lastSeg)
		}
		l.lastSeg = nil
	}
	anew := l.behind || l.file == nil || l.end+int64(len(l.pending)) > l.compactAt
	var b []byte
	if !anew {
		b = l.take()
	}
	s.mu.Unlock()
	if anew {
		if err := l.rewrite(); err != nil {
			s.mu.Lock()
			l.behind = true
			s.mu.Unlock()
			return err
		}
		return nil
	}
	if err := l.write(b, sync); err != nil {
		// As with a segment: a file that failed is never trusted again.
		s.mu.Lock()
		l.behind = true
		s.mu.Unlock()
		return fmt.Errorf("spool: ack log %d: %w", l.number, err)
	}
	return nil
}

// take gives what is pending. Protected by Spool.mu and writing.
func (l *ackLog) take() []byte {
	b := l.pending
	l.pending, l.spare, l.count = l.spare[:0], b, 0
	if cap(b) > ackReserveBytes {
		l.spare = nil
	}
	select {
	case <-l.full:
	default:
	}
	return b
}

func (l *ackLog) write(b []byte, sync bool) error {
	if len(b) > 0 {
		if _, err := l.file.WriteAt(b, l.end); err != nil {
			return err
		}
		l.end += int64(len(b))
		l.dirty = true
	}
	if sync && l.dirty {
		if err := l.s.sync(l.file); err != nil {
			return err
		}
		l.dirty = false
	}
	return nil
}

// rewrite makes a new file from the index: for each segment its mark, which messages are done, and the state of those that have one.
// The index is read one segment at a time; what changes meanwhile is appended behind, where it counts.
func (l *ackLog) rewrite() (err error) {
	s := l.s
	header := fileHeader{kind: kindAcks, number: l.number + 1, salt: s.o.salt()}
	name := s.path(ackName(header.number))
	f, err := s.o.FS.Create(name + ".tmp")
	if errors.Is(err, fs.ErrExist) { // of an attempt that failed
		if err = s.o.FS.Remove(name + ".tmp"); err == nil {
			f, err = s.o.FS.Create(name + ".tmp")
		}
	}
	if err != nil {
		return fmt.Errorf("spool: begin ack log %d: %w", header.number, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			s.o.FS.Remove(name + ".tmp")
			s.mu.Lock()
			l.replaced = false
			s.mu.Unlock()
			err = fmt.Errorf("spool: write ack log %d: %w", header.number, err)
		}
	}()
	if _, err = f.WriteAt(header.block(), 0); err != nil {
		return err
	}
	end := int64(fileHeaderBytes)
	put := func(b []byte) error {
		_, err := f.WriteAt(b, end)
		end += int64(len(b))
		return err
	}

	// From here on records are made for the new file. Should it fail, they are useless to the old one, but then the next attempt
	// starts from the index again.
	s.mu.Lock()
	l.seed, l.replaced, l.behind = header.seed(), true, true
	l.pending, l.count = l.pending[:0], 0
	l.counters(s.nextSeq.Load(), s.nextSegment)
	for number := range s.leaving {
		l.markAs(number, 0, markGone)
	}
	segments := append([]*segment(nil), s.segments...)
	s.mu.Unlock()
	for _, seg := range segments {
		s.mu.Lock()
		l.mark(seg)
		for _, g := range seg.holes {
			l.hole(seg, g)
		}
		if seg.live < len(seg.msgs) {
			l.bitmap(seg)
		}
		for _, m := range seg.msgs {
			if m != nil && (m.detail != nil || m.decided || m.attempts > 0 || m.state == queue.Waiting) {
				l.state(m)
			}
		}
		b := l.take()
		s.mu.Unlock()
		if err = put(b); err != nil {
			return err
		}
	}
	s.mu.Lock()
	b := l.take()
	s.mu.Unlock()
	if err = put(b); err != nil {
		return err
	}
	if _, err = f.WriteAt(make([]byte, s.o.ackReserve), end); err != nil {
		return err
	}
	if err = s.sync(f); err != nil {
		return err
	}
	if err = s.o.FS.Rename(name+".tmp", name); err != nil {
		return err
	}
	if err = s.syncDir(); err != nil {
		return err
	}
	old, oldNumber := l.file, l.number
	l.file, l.number, l.end, l.dirty = f, header.number, end, false
	l.compactAt = max(s.o.ackCompact, 4*end)
	s.mu.Lock()
	l.behind, l.replaced = false, false
	s.mu.Unlock()
	if old != nil {
		old.Close()
		s.o.FS.Remove(s.path(ackName(oldNumber)))
	}
	return nil
}

// readAll reads a whole file.
func readAll(f File) ([]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}
