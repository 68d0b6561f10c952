package spool

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// segment is one file of records.
type segment struct {
	number uint64
	file   File // once sealed protected by Spool.files, and nil while it is not open
	salt   uint64
	seed   uint32
	size   int64 // the file may be filled up to here
	// makeshift is set for a file that could not wait to be zeroed: space in it is only reserved, or not even that, so that a sync
	// has metadata to write as well (half the speed). It is left as soon as a prepared one is ready.
	makeshift bool

	end       int64 // where the next batch starts; belongs to the committer, fixed once sealed
	forgotten int64 // up to here the page cache was told to let go; the committer's

	idx  indexFile
	keys keyFile

	// The rest is protected by Spool.mu.
	firstSeq uint64
	msgs     []*message // of record firstSeq+i; nil when that one is done, or never was
	head     int        // all before it in msgs are nil
	live     int        // not nil in msgs
	pins     int        // readers without a lease
	sealed   bool       // nothing will be appended
	cut      bool       // sealed after a failure: what is behind end was never acknowledged
	holes    []gap      // found at recovery and reported
}

func segmentName(number uint64) string { return fmt.Sprintf("%08d.seg", number) }

func (s *Spool) path(name string) string { return filepath.Join(s.dir, name) }

// oldest gives the first live message. Protected by Spool.mu.
func (seg *segment) oldest() *message {
	for seg.head < len(seg.msgs) && seg.msgs[seg.head] == nil {
		seg.head++
	}
	if seg.head == len(seg.msgs) {
		return nil
	}
	return seg.msgs[seg.head]
}

func newSalt() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func (s *Spool) sync(f File) error {
	if s.o.Durability == OS {
		return nil
	}
	return f.SyncData()
}

func (s *Spool) syncDir() error {
	if s.o.Durability == OS {
		return nil
	}
	return s.o.FS.SyncDir(s.dir)
}

// createSegment makes an empty segment file whose header and directory entry are durable. fill is called before the sync.
func (s *Spool) createSegment(size int64, fill func(File) error) (seg *segment, err error) {
	s.mu.Lock()
	number := s.nextSegment
	s.nextSegment++
	s.mu.Unlock()
	name := s.path(segmentName(number))
	f, err := s.o.FS.Create(name)
	if err != nil {
		return nil, fmt.Errorf("create segment %d: %w", number, err)
	}
	header := fileHeader{kind: kindSegment, number: number, salt: s.o.salt()}
	_, err = f.WriteAt(header.block(), 0)
	if err == nil {
		err = fill(f)
	}
	if err == nil {
		err = s.sync(f)
	}
	if err == nil {
		err = s.syncDir()
	}
	if err != nil {
		f.Close()
		s.o.FS.Remove(name)
		return nil, fmt.Errorf("create segment %d: %w", number, err)
	}
	return &segment{number: number, file: f, salt: header.salt, seed: header.seed(), size: size, end: fileHeaderBytes}, nil
}

// nextCurrent gives the segment for a batch of want bytes: the prepared one if there is one, otherwise a makeshift one.
// It runs on the committer.
func (s *Spool) nextCurrent(want int64) (*segment, error) {
	if fileHeaderBytes+want <= s.o.SegmentSize {
		s.mu.Lock()
		seg := s.ready
		s.ready = nil
		s.wantReady = true
		var spare *segment
		if seg == nil && len(s.spares) > 0 {
			spare, s.spares = s.spares[len(s.spares)-1], s.spares[:len(s.spares)-1]
		}
		s.mu.Unlock()
		s.wakePrepare()
		if seg != nil {
			return seg, nil
		}
		if spare != nil {
			return s.renew(spare)
		}
	}
	size := max(s.o.SegmentSize, fileHeaderBytes+want)
	seg, err := s.createSegment(size, func(f File) error {
		// Reserving the space makes appending three times as fast as growing. It is not worth the last of the disk, though.
		if s.free() >= max(s.o.MinFree, 0)+size {
			f.Allocate(size)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	seg.makeshift = true
	return seg, nil
}

// seal ends appending to seg. After a failure (cut) the end is noted as well, so that recovery takes nothing that was never
// acknowledged; the note and the truncation are a courtesy and may fail: then a message is delivered though its client was told to
// come again. It runs on the committer.
func (s *Spool) seal(seg *segment, cut bool) {
	if cut || seg.makeshift || s.isClosed() {
		// end is a page boundary, so no page with acknowledged mail is touched.
		seg.file.Truncate(seg.end)
		seg.size = seg.end
	}
	s.files.add(seg)
	s.mu.Lock()
	defer s.mu.Unlock()
	seg.sealed, seg.cut = true, cut
	s.acks.mark(seg)
	s.retireIfDone(seg)
}

func (s *Spool) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// retireIfDone takes a segment without messages out of use. Protected by mu; the files are dealt with on the preparing goroutine. One that
// has idempotency keys stays, in the ack log as well, until they are safe in a file of their own.
func (s *Spool) retireIfDone(seg *segment) {
	switch {
	case !seg.sealed, seg.live > 0, seg.pins > 0, seg.keys.leaving:
	case seg.keys.count > 0:
		seg.keys.leaving = true
		s.finishing = append(s.finishing, seg)
		s.wakePrepare()
	default:
		s.retire(seg)
	}
}

func (s *Spool) retire(seg *segment) {
	for i, other := range s.segments {
		if other == seg {
			s.segments = append(s.segments[:i], s.segments[i+1:]...)
			s.segments[:len(s.segments)+1][len(s.segments)] = nil
			break
		}
	}
	seg.msgs = nil
	s.leaving[seg.number] = struct{}{}
	s.acks.markAs(seg.number, 0, markGone)
	s.retired = append(s.retired, seg)
	s.wakePrepare()
}

func (s *Spool) wakePrepare() {
	select {
	case s.prepareWake <- struct{}{}:
	default:
	}
}

// prepareLoop removes finished segments and keeps one prepared, so that the committer never waits for either.
func (s *Spool) prepareLoop() {
	defer s.workers.Done()
	expire := time.NewTicker(expireEvery)
	defer expire.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.prepareWake:
		case <-expire.C:
		}
		trouble := s.retireStep()
		if err := s.prepareStep(); err != nil && !errors.Is(err, errStopped) {
			s.o.Log.Warn("spool: no segment prepared; the next one will be slower", "error", err)
			trouble = err
		}
		if trouble != nil {
			select {
			case <-s.stop:
				return
			case <-time.After(retryAfterTrouble):
			}
			s.wakePrepare()
		}
	}
}

// retireStep keeps a few whole files for reuse and removes the others. Below the reserve it keeps none: on a small disk it would be they that
// keep mail out, for ever. An error is that of segments whose idempotency keys could not be made safe; they stay.
func (s *Spool) retireStep() error {
	s.expireKeys()
	err := s.finishSegments()
	short := s.free() < s.o.MinFree
	s.mu.Lock()
	retired := s.retired
	s.retired = nil
	if short {
		retired, s.spares = append(retired, s.spares...), nil
	}
	s.mu.Unlock()
	var removed []uint64
	for _, seg := range retired {
		file := s.files.remove(seg)
		s.mu.Lock()
		// A file that a sync failed on is not trusted again.
		keep := file != nil && !short && !seg.cut && seg.size == s.o.SegmentSize && len(s.spares) < maxSpares && !s.closed
		if keep {
			s.spares = append(s.spares, seg)
		}
		s.mu.Unlock()
		if keep {
			continue
		}
		if file != nil {
			file.Close()
		}
		if err := s.o.FS.Remove(s.path(segmentName(seg.number))); err != nil {
			s.o.Log.Warn("spool: finished segment not removed", "segment", seg.number, "error", err)
			continue
		}
		s.dropIndex(seg.number)
		removed = append(removed, seg.number)
	}
	s.left(removed)
	return err
}

// left notes that the directory entries of finished segments are gone, once that is durable.
func (s *Spool) left(numbers []uint64) {
	if len(numbers) == 0 || s.syncDir() != nil {
		return // then they are noted as gone once more, in vain
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, number := range numbers {
		delete(s.leaving, number)
	}
}

// prepareStep makes a segment ready if one is wanted: from a spare file, or by writing zeros to a new one.
func (s *Spool) prepareStep() error {
	s.mu.Lock()
	if s.ready != nil || !s.wantReady || s.closed {
		s.mu.Unlock()
		return nil
	}
	var spare *segment
	if n := len(s.spares); n > 0 {
		spare, s.spares = s.spares[n-1], s.spares[:n-1]
	}
	s.mu.Unlock()

	var seg *segment
	var err error
	if spare != nil {
		seg, err = s.renew(spare)
	} else {
		if s.free() < max(s.o.MinFree, 0)+s.o.SegmentSize {
			return nil // asked again with the next segment
		}
		seg, err = s.createSegment(s.o.SegmentSize, s.zero)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.ready = seg
	s.mu.Unlock()
	return nil
}

// renew gives a finished file a new number and salt, under which none of its old records is valid. The order is: new name, durable;
// then the new header, durable. In between, the header's number differs from the name's: a file without records.
func (s *Spool) renew(old *segment) (*segment, error) {
	s.mu.Lock()
	number := s.nextSegment
	s.nextSegment++
	s.mu.Unlock()
	header := fileHeader{kind: kindSegment, number: number, salt: s.o.salt()}
	err := s.o.FS.Rename(s.path(segmentName(old.number)), s.path(segmentName(number)))
	if err != nil {
		old.file.Close()
		return nil, fmt.Errorf("rename segment %d to %d: %w", old.number, number, err)
	}
	s.dropIndex(old.number)
	if err = s.syncDir(); err == nil {
		s.mu.Lock()
		delete(s.leaving, old.number)
		s.mu.Unlock()
		if _, err = old.file.WriteAt(header.block(), 0); err == nil {
			err = s.sync(old.file)
		}
	}
	if err != nil {
		old.file.Close()
		s.o.FS.Remove(s.path(segmentName(number)))
		return nil, fmt.Errorf("renew segment %d as %d: %w", old.number, number, err)
	}
	return &segment{number: number, file: old.file, salt: header.salt, seed: header.seed(), size: old.size, end: fileHeaderBytes}, nil
}

// zero writes zeros over the whole file behind its header, in slices with a pause as long as the slice took, so that commits keep
// at least half of the disk.
//
// Zeros halve the time of a lone message's sync, but cost a second write of everything. With 256 messages in flight that was measured
// as 4 to 5 us of CPU a record against 2.9 with space merely reserved, at no gain. So when mail comes in fast the rest is reserved.
func (s *Spool) zero(f File) error {
	zeros := make([]byte, 256<<10)
	for off := int64(fileHeaderBytes); off < s.o.SegmentSize; {
		began, from, written := time.Now(), off, s.written.Load()
		for end := min(off+zeroSliceBytes, s.o.SegmentSize); off < end; {
			n, err := f.WriteAt(zeros[:min(int64(len(zeros)), end-off)], off)
			if err != nil {
				return err
			}
			off += int64(n)
		}
		if err := s.sync(f); err != nil {
			return err
		}
		f.Forget(from, off-from)
		if s.o.manual {
			continue
		}
		select {
		case <-s.stop:
			return errStopped
		case <-time.After(time.Since(began)):
		}
		if s.written.Load()-written > zeroSliceBytes/4 {
			return f.Allocate(s.o.SegmentSize)
		}
	}
	return nil
}
