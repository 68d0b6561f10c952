package spool

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fastedge/fastedge/queue"
)

// mark is what the ack log says about where a segment ends.
type mark struct {
	end  int64
	kind markKind
}

// notes are what the ack log says about segments.
type notes struct {
	marks map[uint64]mark
	holes map[uint64][]gap
}

// recover finds out what is in the directory. Nothing is removed before it is known to be of no use, and what can't be read is set
// aside under another name, never taken for an empty file. No other goroutine knows s yet.
//
// What it sees may only be in the page cache of a process that was killed, and vanish, or come back, with the next power cut. So
// everything that decides something is synced before Open returns, whatever the durability: a record that was cut off and came back
// would share its sequence number with a later message, and be settled in its place.
func (s *Spool) recover() error {
	began := time.Now()
	segments, logs, keyFiles, err := s.findFiles()
	if err != nil {
		return err
	}
	acks, err := s.openAcks(logs)
	if err != nil {
		return err
	}
	notes := notes{marks: map[uint64]mark{}, holes: map[uint64][]gap{}}
	nextSeq := uint64(1)
	_, skipped := scanAcks(acks, s.acks.seed, func(kind ackKind, p []byte) {
		switch {
		case kind == ackMark && len(p) == 20:
			number := binary.LittleEndian.Uint64(p)
			notes.marks[number] = mark{int64(binary.LittleEndian.Uint64(p[8:])), markKind(binary.LittleEndian.Uint32(p[16:]))}
			s.nextSegment = max(s.nextSegment, number+1)
		case kind == ackHole && len(p) == 24:
			number := binary.LittleEndian.Uint64(p)
			notes.holes[number] = append(notes.holes[number], gap{
				int64(binary.LittleEndian.Uint64(p[8:])), int64(binary.LittleEndian.Uint64(p[16:])),
			})
		case kind == ackCounters && len(p) == 16:
			nextSeq = max(nextSeq, binary.LittleEndian.Uint64(p))
			s.nextSegment = max(s.nextSegment, binary.LittleEndian.Uint64(p[8:]))
		case (kind == ackDone || kind == ackState) && len(p) >= 8:
			nextSeq = max(nextSeq, binary.LittleEndian.Uint64(p)+1)
		}
	})
	if skipped > 0 {
		// A torn write of the last second, or damage: both cost no more than doing something twice.
		s.o.Log.Warn("spool: part of the ack log is unreadable; messages settled there may be handed on again", "log", s.acks.number,
			"bytes", skipped)
	}
	w := &window{}
	for _, number := range segments {
		if err := s.recoverSegment(number, notes, w); err != nil {
			return fmt.Errorf("segment %d: %w", number, err)
		}
	}
	slices.SortFunc(s.segments, func(a, b *segment) int { return cmp.Compare(a.firstSeq, b.firstSeq) })
	for _, seg := range s.segments {
		nextSeq = max(nextSeq, seg.firstSeq+uint64(len(seg.msgs)))
	}
	s.nextSeq.Store(nextSeq)
	if err := s.recoverKeys(keyFiles); err != nil {
		return err
	}
	s.applyAcks(acks)
	if err := s.o.FS.SyncDir(s.dir); err != nil {
		return err
	}
	for _, seg := range slices.Clone(s.segments) {
		for _, m := range seg.msgs {
			if m != nil {
				s.adopt(m)
			}
		}
		s.retireIfDone(seg)
	}
	if n := s.live.Load(); n > 0 || s.stats.Damaged > 0 {
		s.o.Log.Info("spool: recovered", "dir", s.dir, "messages", n, "segments", len(s.segments), "damaged", s.stats.Damaged,
			"took", time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// findFiles gives the numbers of the segments, of the ack logs and of the key files, ascending, and removes what an unfinished rewrite left.
func (s *Spool) findFiles() (segments, logs, keyFiles []uint64, err error) {
	names, err := s.o.FS.ReadDir(s.dir)
	if err != nil {
		return nil, nil, nil, err
	}
	s.nextSegment = 1
	var indexes, unfinished []uint64
	for _, name := range names {
		base, ext, _ := strings.Cut(name, ".")
		number, err := strconv.ParseUint(base, 10, 63)
		if err != nil {
			continue
		}
		switch ext {
		case "seg":
			segments = append(segments, number)
			fallthrough
		case "seg.damaged":
			s.nextSegment = max(s.nextSegment, number+1)
		case "idx":
			indexes = append(indexes, number)
		case "keys":
			keyFiles = append(keyFiles, number)
			fallthrough
		case "keys.damaged":
			s.nextSegment = max(s.nextSegment, number+1)
		case "keys.tmp":
			unfinished = append(unfinished, number)
			s.nextSegment = max(s.nextSegment, number+1)
		case "ack":
			logs = append(logs, number)
		case "ack.tmp":
			s.o.FS.Remove(s.path(name))
		}
	}
	for _, number := range indexes {
		if !slices.Contains(segments, number) {
			s.dropIndex(number)
		}
	}
	for _, number := range unfinished {
		name := s.path(keysName(number))
		if slices.Contains(keyFiles, number) {
			s.o.FS.Remove(name + ".tmp")
			continue
		}
		// The copy of a damaged file, which was set aside a moment before; or one begun beside its segment, which knows what it lacks.
		if err := s.o.FS.Rename(name+".tmp", name); err != nil {
			return nil, nil, nil, err
		}
		keyFiles = append(keyFiles, number)
	}
	slices.Sort(segments)
	slices.Sort(logs)
	slices.Sort(keyFiles)
	return segments, logs, keyFiles, nil
}

// setAside keeps an unreadable file out of the way, for the operator.
func (s *Spool) setAside(name, what string, err error) error {
	s.o.Log.Error("spool: "+what+" is unreadable; it is kept as "+name+".damaged", "error", err)
	s.stats.Damaged++
	s.alarm(what + " is unreadable and was set aside as " + name + ".damaged")
	return s.o.FS.Rename(s.path(name), s.path(name+".damaged"))
}

// openAcks opens the newest intact ack log and gives its bytes. Older ones are what a rewrite had no time to remove.
func (s *Spool) openAcks(logs []uint64) (content []byte, err error) {
	l := &ackLog{s: s, wake: make(chan struct{}, 1), full: make(chan struct{}, 1)}
	s.acks = l
	for _, number := range slices.Backward(logs) {
		name := ackName(number)
		if l.file != nil {
			s.o.FS.Remove(s.path(name))
			continue
		}
		f, err := s.o.FS.Open(s.path(name))
		if err != nil {
			return nil, err
		}
		l.number = max(l.number, number)
		b, err := readAll(f)
		var h fileHeader
		if err == nil {
			h, err = parseFileHeader(b)
		}
		if err == nil && (h.kind != kindAcks || h.number != number) {
			err = errNoHeader
		}
		if err == nil {
			l.file, l.number, l.seed = f, number, h.seed()
			end, _ := scanAcks(b, l.seed, func(ackKind, []byte) {})
			l.end, l.compactAt = int64(end), max(s.o.ackCompact, 4*int64(end))
			content = b
			if err := f.SyncData(); err != nil {
				return nil, err
			}
			continue
		}
		f.Close()
		if errors.Is(err, errVersion) {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := s.setAside(name, "ack log "+name, err); err != nil {
			return nil, err
		}
	}
	return content, nil
}

// recoverSegment opens one segment and makes its index, or finds that it has no records and keeps it as a spare.
func (s *Spool) recoverSegment(number uint64, notes notes, w *window) error {
	name := segmentName(number)
	f, err := s.o.FS.Open(s.path(name))
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err != nil {
		f.Close()
		return err
	}
	w.reset(f, size)
	block := slices.Clone(w.at(0, int(min(size, 2*fileHeaderBytes))))
	h, err := parseFileHeader(block)
	m, marked := notes.marks[number]
	if marked && m.kind == markGone {
		s.leaving[number] = struct{}{}
		s.keepEmpty(&segment{number: number, file: f, size: size})
		return nil
	}
	switch {
	case err == nil && h.kind == kindSegment && h.number == number:
	case errors.Is(err, errVersion):
		f.Close()
		return err
	case err == nil, !marked && allZero(block):
		s.dropKeys(number)
		// A file that was being made, or made anew from a finished one: nothing was ever written under this number.
		s.keepEmpty(&segment{number: number, file: f, size: size})
		return nil
	default:
		f.Close()
		return s.setAside(name, "segment "+name, err)
	}

	seg := &segment{number: number, file: f, salt: h.salt, seed: h.seed(), size: size}
	limit, checkFrom := size, int64(0)
	sealed := marked && m.kind != markProgress
	if sealed {
		limit, checkFrom = min(m.end, size), math.MaxInt64
	} else if marked {
		checkFrom = m.end
	}
	known := s.readIndex(number, seg.seed, limit)
	// Where writing may have ended: behind a note, or the index. Where neither is known, zeros may be what the disk has lost. But a segment that took
	// mail is in the index within milliseconds and in the ack log within a second: one that is in neither and begins with zeros was only prepared.
	endsFrom := int64(math.MaxInt64)
	switch {
	case sealed:
	case marked, len(known.msgs) > 0:
		endsFrom = max(checkFrom, known.end)
	case s.acks.file != nil && w.blank(fileHeaderBytes, min(blankBytes, max(size-fileHeaderBytes, 0))):
		endsFrom = fileHeaderBytes
	}
	found := scan(w, seg.seed, limit, checkFrom, endsFrom, known)
	// What lies before durable was there when something later was written or noted: if it is wrong now, it was damaged since. The rest
	// is the last batch, which may never have been acknowledged.
	durable := found.durable
	if marked {
		durable = max(durable, m.end)
	}
	if end := found.end; durable > end {
		found.gaps = append(found.gaps, gap{end, durable})
		seg.end = durable
	} else {
		seg.end = end
	}
	seg.holes = found.gaps
	s.reportGaps(seg, notes, durable, w)
	if len(found.msgs) == 0 && !sealed && durable <= fileHeaderBytes {
		s.dropKeys(number)
		s.keepEmpty(seg)
		return nil
	}
	seg.sealed, seg.cut = true, marked && m.kind == markCut
	seg.idx.size = known.size
	if rest := found.msgs[len(known.msgs):]; len(rest) > 0 && len(found.bad) == 0 && len(found.gaps) == 0 && s.o.Durability == Fsync {
		seg.idx.note(rest, found.end) // synced below, if it was not noted as sealed
		s.wantIndex(seg)
	}
	s.addFound(seg, &found, durable)
	if sealed {
		s.files.add(seg)
		return nil
	}
	s.acks.mark(seg)
	// What was begun behind the last record is cut off before the last page is filled up again, with zeros: a header there whose data
	// never came must not be found next time.
	if durable <= found.exact {
		if err := f.Truncate(found.exact); err != nil {
			return err
		}
	}
	if err := f.Truncate(seg.end); err != nil {
		return err
	}
	seg.size = seg.end
	s.files.add(seg)
	return f.SyncData()
}

// reportGaps tells of the stretches without an intact record that were not told of before.
func (s *Spool) reportGaps(seg *segment, notes notes, durable int64, w *window) {
	for _, g := range seg.holes {
		if slices.Contains(notes.holes[seg.number], g) {
			continue
		}
		s.acks.hole(seg, g)
		if g.from < durable {
			s.stats.Damaged++
			s.o.Log.Error("spool: a damaged record is skipped", "segment", seg.number, "offset", g.from, "bytes", g.to-g.from, "claims", g.claim(w))
		} else {
			s.o.Log.Warn("spool: an unfinished record is skipped in the last batch, which was not followed by another", "segment", seg.number,
				"offset", g.from, "bytes", g.to-g.from, "claims", g.claim(w))
		}
	}
}

// addFound makes the index of a segment.
func (s *Spool) addFound(seg *segment, found *scanned, durable int64) {
	if len(found.msgs) > 0 {
		seg.firstSeq = found.msgs[0].seq
		last := &found.msgs[len(found.msgs)-1]
		seg.msgs = make([]*message, last.seq-seg.firstSeq+1)
	} else {
		seg.firstSeq = math.MaxUint64 // damaged altogether: it is removed at once
	}
	for i := range found.msgs {
		m := &found.msgs[i]
		m.seg, m.place, m.next = seg, -1, m.id.Time().UnixNano()
		seg.msgs[m.seq-seg.firstSeq] = m
	}
	for _, i := range found.bad {
		m := &found.msgs[i]
		if m.off < durable {
			m.state = queue.Damaged
			m.detail = &detail{reason: "message data does not match its checksum"}
			s.stats.Damaged++
			s.o.Log.Error("spool: message is damaged and will not be handed on", "message", m.id, "segment", seg.number, "offset", m.off)
			continue
		}
		s.o.Log.Warn("spool: an unfinished message is dropped; it was never acknowledged", "message", m.id, "segment", seg.number, "offset", m.off)
		seg.msgs[m.seq-seg.firstSeq] = nil
		s.acks.done(m.seq)
	}
	if seg.firstSeq == math.MaxUint64 {
		seg.firstSeq = 0
	}
	s.segments = append(s.segments, seg)
}

// keepEmpty keeps a file without records for reuse, if it has the right size.
func (s *Spool) keepEmpty(seg *segment) {
	if seg.size == s.o.SegmentSize && len(s.spares) < maxSpares {
		s.spares = append(s.spares, seg)
		return
	}
	s.retired = append(s.retired, seg)
	seg.cut = true // not to be kept by retireStep either
	s.wakePrepare()
}

// applyAcks brings the messages found to the state that the ack log gives them; later records count.
func (s *Spool) applyAcks(acks []byte) {
	find := func(seq uint64) (*segment, int) {
		i, exact := slices.BinarySearchFunc(s.segments, seq, func(seg *segment, seq uint64) int { return cmp.Compare(seg.firstSeq, seq) })
		if !exact {
			i--
		}
		if i < 0 || seq-s.segments[i].firstSeq >= uint64(len(s.segments[i].msgs)) {
			return nil, 0
		}
		return s.segments[i], int(seq - s.segments[i].firstSeq)
	}
	scanAcks(acks, s.acks.seed, func(kind ackKind, p []byte) {
		if len(p) < 8 {
			return
		}
		seq := binary.LittleEndian.Uint64(p)
		switch kind {
		case ackDone:
			if seg, i := find(seq); seg != nil {
				seg.msgs[i] = nil
			}
		case ackState:
			if seg, i := find(seq); seg != nil && seg.msgs[i] != nil {
				if !decodeState(seg.msgs[i], p[8:]) {
					s.o.Log.Error("spool: malformed state in the ack log", "message", seg.msgs[i].id)
				}
			}
		case ackBitmap:
			if len(p) < 12 {
				return
			}
			seg, at := find(seq)
			if seg == nil {
				return
			}
			n := min(int(binary.LittleEndian.Uint32(p[8:])), 8*(len(p)-12), len(seg.msgs)-at)
			for i := range n {
				if p[12+i/8]&(1<<(i%8)) != 0 {
					seg.msgs[at+i] = nil
				}
			}
		}
	})
}

// adopt counts a message found at recovery and puts it where its state belongs.
func (s *Spool) adopt(m *message) {
	m.seg.live++
	s.byID[m.id] = m
	s.bytes += m.size()
	s.live.Add(1)
	state := m.state
	m.state = queue.Ready
	s.counts[queue.Ready]++
	if state == queue.Ready || state == queue.Leased {
		s.begin(m)
		return
	}
	s.setState(m, state)
}

// gap is a stretch of a segment without an intact record.
type gap struct{ from, to int64 }

// claim reads the id where a damaged header would have it: likely right, as damage is rarely there of all places.
func (g gap) claim(w *window) string {
	b := w.at(g.from, recordHeaderBytes)
	if b == nil || [4]byte(b) != recordMagic {
		return "unknown"
	}
	var m message
	copy(m.id[:], b[16:32])
	return m.id.String()
}

// scanned is what scan found.
type scanned struct {
	msgs    []message // with an intact header, in order
	bad     []int     // of them, those whose envelope or data is not what the header says
	gaps    []gap     // between intact records
	exact   int64     // behind the last intact record
	end     int64     // the same, at a page
	durable int64     // the latest batch began here, when all before it was durable
}

// scan goes through the records before limit by their headers, skipping envelopes and data; from checkFrom on it verifies those too. Where
// there is no intact header it looks for one at each recordAlign up to limit.
// From endsFrom on a stretch of zeros ends the search. What the index file knows is taken from there: those records were durable, and are
// verified when they are read.
func scan(w *window, seed uint32, limit, checkFrom, endsFrom int64, known indexed) (found scanned) {
	found.msgs = known.msgs
	found.end = min(known.end, limit)
	found.exact = found.end
	if len(known.msgs) > 0 {
		found.durable = known.end
	}
	expected := known.end // where a record should be
	w.far = false
	for off := expected; off+recordHeaderBytes <= limit; {
		b := w.at(off, recordHeaderBytes)
		h, ok := parseRecordHeader(b, seed)
		if ok {
			ok = off+h.size() <= limit && int64(h.batch)*batchAlign <= off
			if n := len(found.msgs); ok && n > 0 {
				// The sequence says how many records there were between; more than fit there can't have been.
				step := h.seq - found.msgs[n-1].seq
				ok = h.seq > found.msgs[n-1].seq && step <= uint64(off-found.msgs[n-1].off)/recordAlign
			}
		}
		if !ok {
			if off == expected && off >= endsFrom && w.blank(off, min(blankBytes, limit-off)) {
				break // each batch follows on the one before: behind the last one there are only zeros
			}
			off += recordAlign
			continue
		}
		if off > expected {
			found.gaps = append(found.gaps, gap{expected, off})
		}
		if off >= checkFrom && !w.intact(&h, off, seed) {
			found.bad = append(found.bad, len(found.msgs))
		}
		found.msgs = append(found.msgs, message{
			seq: h.seq, id: h.id, off: off, envBytes: h.envBytes, traceBytes: h.traceBytes, dataBytes: int64(h.dataBytes),
			keyed: h.flags&flagKeyed != 0,
		})
		found.durable = max(found.durable, int64(h.batch)*batchAlign)
		w.far = h.size() > scanWindowBytes/16
		off = h.next(off)
		expected = off
		found.exact, found.end = off, roundUp(off, batchAlign)
	}
	return found
}

// window reads a file in large pieces where records are short, and in small ones where most of what is between headers is skipped.
type window struct {
	file io.ReaderAt
	size int64
	far  bool // the last record was long
	buf  []byte
	from int64 // of buf in the file
}

// reset makes w read another file.
func (w *window) reset(file io.ReaderAt, size int64) {
	w.file, w.size, w.buf, w.far = file, size, w.buf[:0], true // the header alone may be wanted
}

// at gives n bytes at off, borrowed until the next call, or nil behind the end. What the disk does not give reads as zeros.
func (w *window) at(off int64, n int) []byte {
	if off >= w.from && off+int64(n) <= w.from+int64(len(w.buf)) {
		return w.buf[off-w.from:][:n]
	}
	if off+int64(n) > w.size {
		return nil
	}
	want := scanWindowBytes
	if w.far {
		want = batchAlign
	}
	if whole := int(min(scanWindowBytes, w.size)); cap(w.buf) < whole {
		w.buf = make([]byte, whole)
	}
	w.from, w.buf = off, w.buf[:min(max(want, n), int(min(w.size-off, scanWindowBytes)))]
	got, err := w.file.ReadAt(w.buf, off)
	if got < n && err != nil && err != io.EOF {
		// One bad sector must not hide the records around it.
		w.buf = w.buf[:max(n, min(batchAlign, len(w.buf)))]
		got, _ = w.file.ReadAt(w.buf, off)
		clear(w.buf[got:])
		got = len(w.buf)
	}
	if w.buf = w.buf[:got]; got < n {
		return nil
	}
	return w.buf[:n]
}

// blank says that there are n zeros at off.
func (w *window) blank(off, n int64) bool {
	b := w.at(off, int(n))
	return b != nil && allZero(b)
}

// intact verifies envelope and data of the record at off.
func (w *window) intact(h *recordHeader, off int64, seed uint32) bool {
	w.far = false
	content := contentSeed(seed, h.seq)
	sum := func(crc uint32, from, n int64) (uint32, bool) {
		for n > 0 {
			piece := min(n, scanWindowBytes/4)
			b := w.at(from, int(piece))
			if b == nil {
				return 0, false
			}
			crc = crc32.Update(crc, castagnoli, b)
			from += piece
			n -= piece
		}
		return crc, true
	}
	off += recordHeaderBytes
	env, ok := sum(content, off, int64(h.envBytes))
	if !ok || env != h.envCRC {
		return false
	}
	off += int64(h.envBytes)
	trace, ok := sum(content, off, int64(h.traceBytes))
	if !ok {
		return false
	}
	data, ok := sum(0, off+int64(h.traceBytes), int64(h.dataBytes))
	return ok && bodySum(trace, data) == h.bodyCRC
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
