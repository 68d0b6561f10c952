package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"slices"
	"syscall"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// An idempotency key is in the envelope of its message: one checksum covers both, so no crash comes between them. Beside each segment that
// has any, a key file says them again. While the segment is there, that file is a hint, like the index file: written lazily, never synced,
// believed as far as its checksums reach and the segment agrees. Before the segment goes, its keys are copied into a file that is complete
// and durable; that one stays until its newest key has been remembered long enough. Mail without keys has no key file and costs nothing.

const (
	keyRecordBytes = 100 // of a record before the answer
	keyAlign       = 8
	maxKeysPending = 8 << 20 // records waiting for a disk that is too slow; then they are read from the segment, once it is done
	keyPieceBytes  = 256 << 10
	expireEvery    = 10 * time.Minute
)

var keyMagic = [4]byte{'F', 'E', 'k', '1'}

func keysName(number uint64) string { return fmt.Sprintf("%08d.keys", number) }

// keyFile is what is known of the key file of a segment that is still there. Protected by Spool.mu, but for size, which is that of who holds
// Spool.keyIO.
type keyFile struct {
	count   int    // keys of the segment that are not forgotten
	newest  int64  // when the newest of them arrived, in milliseconds since 1970
	last    uint64 // sequence number of the last
	pending []byte // records not yet written
	broken  bool   // a write failed, or was too slow: nothing is written any more
	leaving bool   // all messages are done; the segment waits in Spool.finishing

	size int64 // written; zero when there is no file
}

// keptKeys is the key file of a segment that is gone.
type keptKeys struct {
	number   uint64
	firstSeq uint64
	count    int
	newest   int64
}

// storedKey is one record of a key file.
type storedKey struct {
	seq uint64
	id  envelope.ID
	envelope.Idempotency
}

func arrival(id envelope.ID) int64 { return id.Time().UnixMilli() }

func (s *Spool) expired(arrived int64) bool {
	return arrived < s.o.Now().Add(-s.o.RememberFor).UnixMilli()
}

// appendTo appends the record: doc.go draws it.
func (k *storedKey) appendTo(dst []byte, seed uint32) []byte {
	at := len(dst)
	dst = append(dst, keyMagic[:]...)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, k.seq)
	dst = append(dst, k.id[:]...)
	dst = append(dst, k.Key[:]...)
	dst = append(dst, k.Payload[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(k.Answer)))
	dst = append(dst, k.Answer...)
	for (len(dst)-at)%keyAlign != 0 {
		dst = append(dst, 0)
	}
	binary.LittleEndian.PutUint32(dst[at+4:], crc32.Update(seed, castagnoli, dst[at+8:]))
	return dst
}

// keyAt reads the record at off, if an intact one begins there. Answer and raw are borrowed until w is used again.
func keyAt(w *window, off int64, seed uint32) (k storedKey, raw []byte, ok bool) {
	b := w.at(off, keyRecordBytes)
	if b == nil || [4]byte(b) != keyMagic {
		return k, nil, false
	}
	n := binary.LittleEndian.Uint32(b[96:])
	if n > envelope.MaxAnswerBytes {
		return k, nil, false
	}
	raw = w.at(off, int(roundUp(keyRecordBytes+int64(n), keyAlign)))
	if raw == nil || binary.LittleEndian.Uint32(raw[4:]) != crc32.Update(seed, castagnoli, raw[8:]) {
		return k, nil, false
	}
	k.seq = binary.LittleEndian.Uint64(raw[8:])
	k.id = envelope.ID(raw[16:])
	copy(k.Key[:], raw[32:])
	copy(k.Payload[:], raw[64:])
	k.Answer = raw[keyRecordBytes : keyRecordBytes+n]
	return k, raw, true
}

// scanKeys calls yield for each intact record, in ascending order of sequence numbers, until it returns false. Where no record begins it looks
// for the next one. end is behind the last one, and skipped counts the bytes between.
func scanKeys(w *window, seed uint32, yield func(k *storedKey, raw []byte, skipped int64) bool) (end, skipped int64) {
	end = fileHeaderBytes
	w.far = false
	seq := uint64(0)
	for at := end; at+keyRecordBytes <= w.size; {
		k, raw, ok := keyAt(w, at, seed)
		if !ok || k.seq <= seq {
			at += keyAlign
			continue
		}
		seq = k.seq
		skipped += at - end
		if !yield(&k, raw, skipped) {
			return end, skipped
		}
		at += int64(len(raw))
		end = at
	}
	return end, skipped
}

// openKeys opens a key file and reads its header. The caller closes f when there is no error.
func (s *Spool) openKeys(number uint64, w *window) (f File, h fileHeader, err error) {
	if f, err = s.o.FS.Open(s.path(keysName(number))); err != nil {
		return nil, h, err
	}
	size, err := f.Size()
	if err == nil {
		w.reset(f, size)
		h, err = parseFileHeader(w.at(0, int(min(size, fileHeaderBytes))))
	}
	if err == nil && (h.kind != kindKeys || h.number != number) {
		err = errNoHeader
	}
	if err != nil {
		f.Close()
		return nil, h, err
	}
	return f, h, nil
}

func (seg *segment) keysHeader() fileHeader {
	return fileHeader{kind: kindKeys, number: seg.number, salt: seg.salt}
}

// admitKeys refuses what has a key that can't be kept, and gives the rest of the batch. It runs on the committer.
func (s *Spool) admitKeys(batch []*queue.Submission) []*queue.Submission {
	if !slices.ContainsFunc(batch, func(sub *queue.Submission) bool { return sub.Env.Idempotency.Given() }) {
		return batch
	}
	s.mu.Lock()
	room := s.o.MaxRemembered - s.remembered
	s.mu.Unlock()
	admitted := make([]*queue.Submission, 0, len(batch))
	for _, sub := range batch {
		k := &sub.Env.Idempotency
		switch {
		case !k.Given():
		case len(k.Answer) > envelope.MaxAnswerBytes:
			sub.Err = fmt.Errorf("spool: message %s: an answer of %d bytes to be remembered; the limit is %d", sub.Env.ID, len(k.Answer), envelope.MaxAnswerBytes)
			continue
		case room <= 0:
			sub.Err = fmt.Errorf("spool: %d idempotency keys are remembered: %w", s.o.MaxRemembered, queue.ErrFull)
			s.wakePrepare() // some may have had their time
			continue
		default:
			room--
		}
		admitted = append(admitted, sub)
	}
	return admitted
}

// noteKeys takes down the keys of a batch that is durable. It runs on the committer.
func (s *Spool) noteKeys(seg *segment, batch []*queue.Submission, msgs []message) {
	i := 0
	for i < len(msgs) && !msgs[i].keyed {
		i++
	}
	if i == len(msgs) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; i < len(msgs); i++ {
		if m := &msgs[i]; m.keyed {
			s.noteKey(seg, &storedKey{m.seq, m.id, batch[i].Env.Idempotency})
		}
	}
}

// noteKey is told of a key that is not yet in its key file. Protected by mu.
func (s *Spool) noteKey(seg *segment, k *storedKey) {
	s.countKey(seg, k)
	x := &seg.keys
	if x.broken {
		return
	}
	if x.pending = k.appendTo(x.pending, seg.keysHeader().seed()); len(x.pending) > maxKeysPending {
		x.pending, x.broken = nil, true
		return
	}
	if !slices.Contains(s.keying, seg) {
		s.keying = append(s.keying, seg)
	}
}

func (s *Spool) countKey(seg *segment, k *storedKey) {
	s.remembered++
	seg.keys.count++
	seg.keys.newest = max(seg.keys.newest, arrival(k.id))
	seg.keys.last = k.seq
}

// writeKeys writes what was noted since the last time. It runs where the ack log is written. Failing costs only time.
func (s *Spool) writeKeys() {
	s.mu.Lock()
	segments := s.keying
	s.keying = nil
	s.mu.Unlock()
	if len(segments) == 0 {
		return
	}
	s.keyIO.Lock()
	defer s.keyIO.Unlock()
	for _, seg := range segments {
		s.writePendingKeys(seg)
	}
}

// writePendingKeys is called with keyIO held.
func (s *Spool) writePendingKeys(seg *segment) {
	s.mu.Lock()
	records := seg.keys.pending
	seg.keys.pending = nil
	s.mu.Unlock()
	if len(records) == 0 {
		return
	}
	if err := s.appendKeys(seg, records); err != nil {
		s.mu.Lock()
		seg.keys.pending, seg.keys.broken = nil, true
		s.mu.Unlock()
		s.o.Log.Warn("spool: a key file can't be written; the segment is read for its keys", "segment", seg.number, "error", err)
	}
}

func (s *Spool) appendKeys(seg *segment, records []byte) error {
	name := s.path(keysName(seg.number))
	if seg.keys.size == 0 {
		f, err := s.createAnew(name)
		if err != nil {
			return err
		}
		if _, err = f.WriteAt(append(seg.keysHeader().block(), records...), 0); err == nil {
			seg.keys.size = fileHeaderBytes + int64(len(records))
		}
		return errors.Join(err, f.Close())
	}
	f, err := s.o.FS.Open(name)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(records, seg.keys.size); err == nil {
		seg.keys.size += int64(len(records))
	}
	return errors.Join(err, f.Close())
}

// createAnew creates a file in the place of one that may be left of an attempt that failed.
func (s *Spool) createAnew(name string) (File, error) {
	f, err := s.o.FS.Create(name)
	if errors.Is(err, fs.ErrExist) {
		if err = s.o.FS.Remove(name); err == nil {
			f, err = s.o.FS.Create(name)
		}
	}
	return f, err
}

// keyWriter makes a complete key file under another name.
type keyWriter struct {
	s    *Spool
	name string // the final one
	file File
	buf  []byte
	end  int64
	kept keptKeys
}

func (s *Spool) beginKeys(h fileHeader) (*keyWriter, error) {
	w := &keyWriter{s: s, name: s.path(keysName(h.number)), kept: keptKeys{number: h.number}}
	var err error
	if w.file, err = s.createAnew(w.name + ".tmp"); err != nil {
		return nil, err
	}
	w.buf = h.block()
	return w, nil
}

// put takes one record, borrowed.
func (w *keyWriter) put(k *storedKey, raw []byte) error {
	if w.kept.count == 0 {
		w.kept.firstSeq = k.seq
	}
	w.kept.count++
	w.kept.newest = max(w.kept.newest, arrival(k.id))
	if w.buf = append(w.buf, raw...); len(w.buf) < keyPieceBytes {
		return nil
	}
	return w.flush()
}

func (w *keyWriter) flush() error {
	_, err := w.file.WriteAt(w.buf, w.end)
	w.end += int64(len(w.buf))
	w.buf = w.buf[:0]
	return err
}

// abandon removes what was made.
func (w *keyWriter) abandon() {
	w.file.Close()
	w.s.o.FS.Remove(w.name + ".tmp")
}

// finish makes the file durable, under its first name.
func (w *keyWriter) finish() error {
	err := w.flush()
	if err == nil {
		err = w.s.sync(w.file)
	}
	if err == nil {
		err = w.s.syncDir()
	}
	return err
}

// rename gives the finished file its name.
func (w *keyWriter) rename() error {
	err := w.s.o.FS.Rename(w.name+".tmp", w.name)
	if err == nil {
		err = w.s.syncDir()
	}
	return err
}

// segmentReader reads a segment's file, which may not be open.
type segmentReader struct {
	files *files
	seg   *segment
}

func (r segmentReader) ReadAt(p []byte, off int64) (int, error) { return r.files.readAt(r.seg, p, off) }

// segmentKeys finds the keys in a segment itself, of the records behind sequence number after and before limit. Records are verified as a whole:
// one that was torn off by a crash, and dropped, must not leave its key.
func (s *Spool) segmentKeys(seg *segment, limit int64, after uint64, yield func(k *storedKey) error) error {
	w := &window{}
	w.reset(segmentReader{&s.files, seg}, limit)
	found := scan(w, seg.seed, limit, math.MaxInt64, math.MaxInt64, s.readIndex(seg.number, seg.seed, limit))
	for i := range found.msgs {
		m := &found.msgs[i]
		if m.seg = seg; !m.keyed || m.seq <= after || s.expired(arrival(m.id)) {
			continue
		}
		k, err := s.keyOf(m)
		if err != nil {
			return err
		}
		if k == nil {
			continue
		}
		if err := yield(k); err != nil {
			return err
		}
	}
	return nil
}

// keyOf reads the key of one message, nil when the message is not intact, or on a bad part of the disk.
func (s *Spool) keyOf(m *message) (*storedKey, error) {
	env, _, err := s.verify(m)
	switch {
	case errors.Is(err, queue.ErrCorrupt), errors.Is(err, syscall.EIO):
		s.o.Log.Warn("spool: an idempotency key is forgotten with its message, which is not intact", "message", m.id, "segment", m.seg.number,
			"error", err)
		return nil, nil
	case err != nil:
		return nil, err
	case !env.Idempotency.Given():
		return nil, nil
	}
	return &storedKey{m.seq, m.id, env.Idempotency}, nil
}

// completeKeys makes the keys of a finished segment durable apart from it. kept.count is zero when there is none worth it.
func (s *Spool) completeKeys(seg *segment) (kept keptKeys, err error) {
	s.keyIO.Lock()
	defer s.keyIO.Unlock()
	s.writePendingKeys(seg)
	s.mu.Lock()
	count, last := seg.keys.count, seg.keys.last
	s.mu.Unlock()
	if count == 0 {
		return kept, nil
	}
	header := seg.keysHeader()
	out, err := s.beginKeys(header)
	if err != nil {
		return kept, err
	}
	defer func() {
		if err != nil || kept.count == 0 {
			out.abandon()
			return
		}
		out.file.Close()
	}()
	// Everything is copied, so that one sync of one open file covers it all.
	through := uint64(0)
	w := &window{}
	if f, h, err := s.openKeys(seg.number, w); err == nil {
		if h == header {
			var putErr error
			scanKeys(w, header.seed(), func(k *storedKey, raw []byte, skipped int64) bool {
				if skipped > 0 {
					return false
				}
				if through = k.seq; !s.expired(arrival(k.id)) {
					putErr = out.put(k, raw)
				}
				return putErr == nil
			})
			if putErr != nil {
				f.Close()
				return kept, putErr
			}
		}
		f.Close()
	}
	if through < last {
		var raw []byte
		err = s.segmentKeys(seg, seg.end, through, func(k *storedKey) error {
			raw = k.appendTo(raw[:0], header.seed())
			return out.put(k, raw)
		})
		if err != nil {
			return kept, err
		}
	}
	if out.kept.count == 0 {
		s.dropKeys(seg.number)
		return kept, nil
	}
	if err = out.finish(); err == nil {
		err = out.rename()
	}
	if err != nil {
		return kept, err
	}
	return out.kept, nil
}

// finishSegments lets those segments go whose messages are all done, once their keys are safe. After an error a segment stays and is tried
// again. It runs on the preparing goroutine, or on Close's.
func (s *Spool) finishSegments() (err error) {
	s.mu.Lock()
	finishing := s.finishing
	s.finishing = nil
	s.mu.Unlock()
	for _, seg := range finishing {
		kept, keysErr := s.completeKeys(seg)
		if keysErr != nil {
			keysErr = fmt.Errorf("keep the idempotency keys of segment %d: %w", seg.number, keysErr)
			s.trouble("a finished segment stays, for its idempotency keys can't be kept otherwise", keysErr)
			err = errors.Join(err, keysErr)
		}
		s.mu.Lock()
		if keysErr != nil {
			s.finishing = append(s.finishing, seg)
		} else {
			s.remembered += kept.count - seg.keys.count
			seg.keys = keyFile{}
			if kept.count > 0 {
				s.kept = append(s.kept, kept)
			}
			s.retire(seg)
		}
		s.mu.Unlock()
	}
	return err
}

// expireKeys forgets key files whose newest key has been remembered for Options.RememberFor. It runs on the preparing goroutine.
func (s *Spool) expireKeys() {
	s.mu.Lock()
	if s.remembered == 0 {
		s.mu.Unlock()
		return
	}
	var numbers []uint64
	s.kept = slices.DeleteFunc(s.kept, func(k keptKeys) bool {
		if !s.expired(k.newest) {
			return false
		}
		numbers = append(numbers, k.number)
		s.remembered -= k.count
		return true
	})
	var segments []*segment
	for _, seg := range s.segments {
		if seg.keys.count > 0 && s.expired(seg.keys.newest) {
			segments = append(segments, seg)
		}
	}
	s.mu.Unlock()
	if len(numbers)+len(segments) == 0 {
		return
	}
	s.keyIO.Lock()
	defer s.keyIO.Unlock()
	for _, seg := range segments {
		s.mu.Lock()
		old := s.expired(seg.keys.newest) // there may be a new one
		if old {
			s.remembered -= seg.keys.count
			seg.keys = keyFile{leaving: seg.keys.leaving}
		}
		s.mu.Unlock()
		if old {
			numbers = append(numbers, seg.number)
		}
	}
	for _, number := range numbers {
		s.dropKeys(number)
	}
	if len(segments) > 0 {
		// Their files must not outlive the segments: alone, an unfinished one would look damaged. If this fails, they may.
		_ = s.syncDir()
	}
}

// dropKeys removes a key file, if there is one.
func (s *Spool) dropKeys(number uint64) {
	if err := s.o.FS.Remove(s.path(keysName(number))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Warn("spool: key file not removed", "segment", number, "error", err)
	}
}

// Remembered gives the keys that are stored: those of segments that are there and of those that are gone.
func (s *Spool) Remembered(since time.Time, yield func(queue.Remembered) bool) error {
	s.writeKeys()
	type source struct {
		keptKeys
		seg   *segment // nil when it is gone
		last  uint64
		limit int64
	}
	oldest := since.UnixMilli()
	var sources []source
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return queue.ErrClosed
	}
	for _, k := range s.kept {
		sources = append(sources, source{keptKeys: k})
	}
	for _, seg := range s.segments {
		if seg.keys.count > 0 {
			seg.pins++
			sources = append(sources, source{keptKeys{seg.number, seg.firstSeq, seg.keys.count, seg.keys.newest}, seg, seg.keys.last, seg.end})
		}
	}
	s.mu.Unlock()
	defer func() {
		for i := range sources {
			if seg := sources[i].seg; seg != nil {
				s.unpin(seg)
			}
		}
	}()
	slices.SortFunc(sources, func(a, b source) int {
		if a.firstSeq < b.firstSeq {
			return -1
		}
		return 1
	})
	more := true
	give := func(k *storedKey) bool {
		if arrival(k.id) >= oldest {
			out := queue.Remembered{ID: k.id, Idempotency: k.Idempotency}
			out.Answer = slices.Clone(out.Answer)
			more = yield(out)
		}
		return more
	}
	w := &window{}
	for i := range sources {
		from := &sources[i]
		if from.newest < oldest {
			continue
		}
		through := uint64(0)
		f, h, err := s.openKeys(from.number, w)
		switch {
		case err == nil && (from.seg == nil || h == from.seg.keysHeader()):
			scanKeys(w, h.seed(), func(k *storedKey, _ []byte, skipped int64) bool {
				if from.seg != nil && skipped > 0 {
					return false // the segment knows it
				}
				through = k.seq
				return give(k)
			})
			f.Close()
		case err == nil:
			f.Close()
		case from.seg == nil && !errors.Is(err, fs.ErrNotExist): // that is, not forgotten meanwhile
			return fmt.Errorf("spool: key file %s: %w", keysName(from.number), err)
		}
		if more && from.seg != nil && through < from.last {
			err := s.segmentKeys(from.seg, from.limit, through, func(k *storedKey) error {
				if !give(k) {
					return io.EOF
				}
				return nil
			})
			if err != nil && err != io.EOF {
				return fmt.Errorf("spool: keys of segment %d: %w", from.number, err)
			}
		}
		if !more {
			return nil
		}
	}
	return nil
}

// recoverKeys finds out which keys are stored. It comes when the records of all segments are known, and before those that are done are left
// out. Nothing is read when there are neither key files nor records with keys.
func (s *Spool) recoverKeys(files []uint64) error {
	w := &window{}
	for _, seg := range s.segments {
		at := slices.Index(files, seg.number)
		if at >= 0 {
			files = slices.Delete(files, at, at+1)
		}
		if err := s.recoverSegmentKeys(seg, at >= 0, w); err != nil {
			return err
		}
	}
	for _, number := range files {
		if err := s.recoverKept(number, w); err != nil {
			return err
		}
	}
	return nil
}

// recoverSegmentKeys believes the key file as far as it is intact and the segment agrees, and adds what it lacks.
func (s *Spool) recoverSegmentKeys(seg *segment, hasFile bool, w *window) error {
	if hasFile {
		if err := s.readHint(seg, w); err != nil {
			return err
		}
	}
	through := seg.keys.last
	for _, m := range seg.msgs {
		if m == nil || !m.keyed || m.seq <= through || s.expired(arrival(m.id)) {
			continue
		}
		k, err := s.keyOf(m)
		if err != nil {
			return err
		}
		if k == nil {
			continue
		}
		if s.noteKey(seg, k); len(seg.keys.pending) >= keyPieceBytes {
			s.writePendingKeys(seg)
		}
	}
	s.writePendingKeys(seg)
	if seg.keys.count == 0 && hasFile {
		// Nobody would look after it when the segment goes.
		seg.keys = keyFile{}
		s.dropKeys(seg.number)
	}
	return nil
}

func (s *Spool) readHint(seg *segment, w *window) error {
	f, h, err := s.openKeys(seg.number, w)
	if errors.Is(err, errVersion) {
		return fmt.Errorf("%s: %w", keysName(seg.number), err)
	}
	if err != nil || h != seg.keysHeader() {
		if err == nil {
			f.Close()
		}
		s.o.Log.Warn("spool: a key file is of no use; the segment is read for its keys", "segment", seg.number, "error", err)
		s.dropKeys(seg.number)
		return nil
	}
	defer f.Close()
	end, _ := scanKeys(w, h.seed(), func(k *storedKey, _ []byte, skipped int64) bool {
		i := k.seq - seg.firstSeq
		if skipped > 0 || k.seq < seg.firstSeq || i >= uint64(len(seg.msgs)) || seg.msgs[i] == nil || seg.msgs[i].id != k.id || !seg.msgs[i].keyed {
			return false
		}
		s.countKey(seg, k)
		return true
	})
	seg.keys.size = end
	if end < w.size {
		return f.Truncate(end)
	}
	return nil
}

// recoverKept takes over the key file of a segment that is gone. Of a damaged one the intact records go on in a new file.
func (s *Spool) recoverKept(number uint64, w *window) error {
	name := keysName(number)
	f, h, err := s.openKeys(number, w)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // dropped with a segment that turned out empty
	case errors.Is(err, errVersion):
		return fmt.Errorf("%s: %w", name, err)
	case err != nil:
		return s.setAside(name, "key file "+name, err)
	}
	defer f.Close()
	kept := keptKeys{number: number}
	end, skipped := scanKeys(w, h.seed(), func(k *storedKey, _ []byte, _ int64) bool {
		if kept.count == 0 {
			kept.firstSeq = k.seq
		}
		kept.count++
		kept.newest = max(kept.newest, arrival(k.id))
		return true
	})
	damaged := skipped > 0 || end != w.size
	if !damaged && s.expired(kept.newest) {
		s.dropKeys(number)
		return nil
	}
	if damaged {
		err := fmt.Errorf("%d of %d bytes are damaged; %d keys are intact", max(0, skipped+w.size-end), w.size, kept.count)
		if kept.count == 0 {
			return s.setAside(name, "key file "+name, err)
		}
		out, beginErr := s.beginKeys(h)
		if beginErr != nil {
			return beginErr
		}
		defer out.file.Close()
		var putErr error
		scanKeys(w, h.seed(), func(k *storedKey, raw []byte, _ int64) bool {
			putErr = out.put(k, raw)
			return putErr == nil
		})
		// The copy is durable before the file that it is of loses its name; findFiles finds it by the other one.
		if err := errors.Join(putErr, out.finish()); err != nil {
			return err
		}
		if err := s.setAside(name, "key file "+name, err); err != nil {
			return err
		}
		if err := out.rename(); err != nil {
			return err
		}
	}
	s.kept = append(s.kept, kept)
	s.remembered += kept.count
	return nil
}
