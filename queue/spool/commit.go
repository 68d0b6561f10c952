package spool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"syscall"

	"github.com/fastedge/fastedge/queue"
)

var (
	errStopped = errors.New("spool: closing")
	zeroFill   [batchAlign]byte
)

// Commit makes the batch durable: one write straight from the messages' chunks, one fdatasync, however many messages. It goes into
// two parts only where a segment ends. Each part succeeds or fails as a whole.
//
// It does not ask for MinFree: the reserve is there so that mail already let in by Room can be committed.
func (s *Spool) Commit(batch []*queue.Submission) {
	s.committing.Lock()
	defer s.committing.Unlock()
	if s.isClosed() {
		fail(batch, queue.ErrClosed)
		return
	}
	batch = s.admitKeys(batch)
	for len(batch) > 0 {
		room := int64(s.o.MaxMessages) - s.live.Load()
		if room <= 0 {
			fail(batch, queue.ErrFull)
			return
		}
		n := s.commitPart(batch[:min(int64(len(batch)), room)])
		batch = batch[n:]
	}
}

func fail(batch []*queue.Submission, err error) {
	for _, sub := range batch {
		sub.Err = err
	}
}

// commitPart commits as much of the batch as fits into the current segment, at least one message, and says how many that were.
func (s *Spool) commitPart(batch []*queue.Submission) int {
	// Envelopes are written out first: only then is it known how many messages fit.
	s.envelopes, s.envelopeEnds = s.envelopes[:0], s.envelopeEnds[:0]
	for _, sub := range batch {
		s.envelopes = sub.Env.AppendBinary(s.envelopes)
		s.envelopeEnds = append(s.envelopeEnds, len(s.envelopes))
	}
	defer s.forget()
	first := roundUp(recordHeaderBytes+int64(s.envelopeEnds[0])+batch[0].Env.Size(), batchAlign)
	seg, err := s.segmentFor(first)
	if err != nil {
		s.trouble("a segment can't be made", err)
		fail(batch, wrapWrite("begin a segment", err))
		return len(batch)
	}
	msgs, end := s.encode(seg, batch)
	batch = batch[:len(msgs)]

	if err = seg.file.WriteBuffers(s.buffers, seg.end); err != nil {
		err = wrapWrite(fmt.Sprintf("write %d bytes to segment %d", end-seg.end, seg.number), err)
	} else if s.o.Durability == Fsync {
		if err = seg.file.SyncData(); err != nil {
			// The kernel may have thrown the pages away and say yes the next time: whatever this sync was for is lost, and
			// nothing that passes through this file's cache can be believed any more.
			err = wrapWrite(fmt.Sprintf("sync segment %d", seg.number), err)
			s.mu.Lock()
			s.stats.SyncErrors++
			s.mu.Unlock()
		}
	}
	if err != nil {
		s.trouble(fmt.Sprintf("segment %d is closed for good after a failed write or sync", seg.number), err)
		s.seal(seg, true)
		s.current = nil
		fail(batch, err)
		return len(batch)
	}
	s.noteKeys(seg, batch, msgs)
	s.index(seg, msgs, end)
	s.forgetHeld(seg)
	return len(batch)
}

// forgetHeld drops from the page cache what nobody will read for a while: mail that is held for want of a next hop. Its pages are used
// again for the next batches, instead of pushing out everything else; where memory is fresh (a virtual machine that gets it page by page)
// the first touch of each page costs more than the copy into it. Mail with a next hop is read at once, from the cache.
func (s *Spool) forgetHeld(seg *segment) {
	n := seg.end - seg.forgotten
	if n < forgetBytes || s.o.Durability == OS {
		return
	}
	s.mu.Lock()
	held := s.hold != ""
	s.mu.Unlock()
	if held {
		seg.file.Forget(seg.forgotten, n)
		seg.forgotten = seg.end
	}
}

// segmentFor makes s.current a segment with room for size bytes.
func (s *Spool) segmentFor(size int64) (*segment, error) {
	if cur := s.current; cur != nil && (cur.end+size > cur.size || cur.makeshift && s.haveReady()) {
		s.seal(cur, false)
		s.current = nil
	}
	if s.current == nil {
		seg, err := s.nextCurrent(size)
		if err != nil {
			return nil, err
		}
		s.current = seg
	}
	return s.current, nil
}

// forget drops what commitPart borrowed, and scratch space that an unusual batch has blown up.
func (s *Spool) forget() {
	clear(s.buffers)
	s.buffers = s.buffers[:0]
	if cap(s.scratch) > maxScratchBytes {
		s.scratch = nil
	}
	if cap(s.envelopes) > maxScratchBytes {
		s.envelopes = nil
	}
}

// wrapWrite makes ErrNoSpace of a full disk or quota.
func wrapWrite(what string, err error) error {
	if isNoSpace(err) {
		return fmt.Errorf("spool: %s: %w (%w)", what, queue.ErrNoSpace, err)
	}
	return fmt.Errorf("spool: %s: %w", what, err)
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// trouble tells the operator. A full disk is no alarm that stays: it ends by itself when space returns.
func (s *Spool) trouble(what string, err error) {
	s.o.Log.Error("spool: "+what, "dir", s.dir, "error", err)
	if !isNoSpace(err) {
		s.alarm(what + ": " + err.Error())
	}
}

func (s *Spool) haveReady() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready != nil
}

// encode lays out the records of as many messages as fit, at least one, as s.buffers, and gives their index entries and where the
// segment ends then.
//
// Headers, envelopes, trace fields and fill go to s.scratch, one stretch of it between two message bodies; so an ordinary message is
// two buffers. When scratch grows, buffers made before keep the old array, whose bytes are final.
func (s *Spool) encode(seg *segment, batch []*queue.Submission) (msgs []message, end int64) {
	n := s.fitting(seg, batch)
	msgs = make([]message, n)
	out, from := s.scratch[:0], 0 // out[from:] is not yet in s.buffers
	off, envStart := seg.end, 0
	for i, sub := range batch[:n] {
		env := sub.Env
		binary := s.envelopes[envStart:s.envelopeEnds[i]]
		envStart = s.envelopeEnds[i]
		h := recordHeader{
			seq: s.nextSeq.Load(), id: env.ID, envBytes: uint32(len(binary)), traceBytes: uint32(len(env.Trace)),
			dataBytes: uint64(env.Data.Len()), batch: uint32(seg.end / batchAlign),
		}
		s.nextSeq.Add(1)
		if i == n-1 {
			h.flags |= flagBatchEnd
		}
		keyed := env.Idempotency.Given()
		if keyed {
			h.flags |= flagKeyed
		}
		content := contentSeed(seg.seed, h.seq)
		h.envCRC = crc32.Update(content, castagnoli, binary)
		h.bodyCRC = bodySum(crc32.Update(content, castagnoli, env.Trace), env.Data.Sum())
		out = h.appendTo(out, seg.seed)
		out = append(out, binary...)
		out = append(out, env.Trace...)
		if h.dataBytes <= inlineDataBytes {
			for c := env.Data.First(); c != nil; c = c.Next() {
				out = append(out, c.Bytes()...)
			}
		} else {
			s.buffers = append(s.buffers, out[from:len(out):len(out)])
			from = len(out)
			s.buffers = env.Data.AppendBuffers(s.buffers)
		}
		msgs[i] = message{
			seq: h.seq, id: h.id, seg: seg, off: off, envBytes: h.envBytes, traceBytes: h.traceBytes, dataBytes: int64(h.dataBytes),
			place: -1, keyed: keyed,
		}
		next := h.next(off)
		out = append(out, zeroFill[:next-off-h.size()]...)
		off = next
	}
	s.buffers = append(s.buffers, out[from:])
	s.scratch = out
	return msgs, off
}

// fitting says how many messages of the batch fit into seg; the first one does.
func (s *Spool) fitting(seg *segment, batch []*queue.Submission) int {
	off, envStart := seg.end, 0
	for i, sub := range batch {
		size := recordHeaderBytes + int64(s.envelopeEnds[i]-envStart) + sub.Env.Size()
		envStart = s.envelopeEnds[i]
		if i > 0 && roundUp(off+size, batchAlign) > seg.size {
			return i
		}
		off = roundUp(off+size, recordAlign)
	}
	return len(batch)
}
