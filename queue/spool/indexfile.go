package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"slices"

	"github.com/fastedge/fastedge/envelope"
)

// An index file says where a segment's records are, so that a start need not read the segment: with 100,000 messages of 4 KiB that is 4 MB
// instead of 450. It is a hint. It is written lazily and never synced, holds only what was durable when it was noted, and is
// believed as far as its checksums reach from its beginning; the rest of the segment is scanned. What it says of a message is checked
// against the record when that is read. See doc.go for the layout.

const (
	indexBlockBytes = 32 // of a block before its entries
	indexEntryBytes = 40
	indexKeyed      = 1 << 63 // in an entry's data length: the envelope has an idempotency key
)

var indexMagic = [4]byte{'F', 'E', 'i', '1'}

// indexFile is what is known of one segment's index file. Protected by Spool.mu, but for size and broken, which are the writer's.
type indexFile struct {
	size   int64 // of the blocks written
	broken bool  // a write failed: nothing is written any more

	pending  []byte // entries not yet written
	firstSeq uint64 // of pending
	end      int64  // of the segment behind the last pending record
}

func indexName(number uint64) string { return fmt.Sprintf("%08d.idx", number) }

// note appends a batch that is durable. Protected by mu.
func (x *indexFile) note(msgs []message, end int64) {
	if len(x.pending) == 0 {
		x.firstSeq = msgs[0].seq
	}
	for i := range msgs {
		m := &msgs[i]
		x.pending = append(x.pending, m.id[:]...)
		x.pending = binary.LittleEndian.AppendUint64(x.pending, uint64(m.off))
		x.pending = binary.LittleEndian.AppendUint32(x.pending, m.envBytes)
		x.pending = binary.LittleEndian.AppendUint32(x.pending, m.traceBytes)
		data := uint64(m.dataBytes)
		if m.keyed {
			data |= indexKeyed
		}
		x.pending = binary.LittleEndian.AppendUint64(x.pending, data)
	}
	x.end = end
}

// writeIndexes writes what was noted since the last time. It runs where the ack log is written. Failing costs only time at the next start.
func (s *Spool) writeIndexes() {
	type block struct {
		seg      *segment
		entries  []byte
		firstSeq uint64
		end      int64
	}
	var blocks []block
	s.mu.Lock()
	for _, seg := range s.indexing {
		blocks = append(blocks, block{seg, seg.idx.pending, seg.idx.firstSeq, seg.idx.end})
		seg.idx.pending = nil
	}
	s.indexing = s.indexing[:0]
	s.mu.Unlock()
	for _, b := range blocks {
		x := &b.seg.idx
		if x.broken {
			continue
		}
		out := make([]byte, 0, indexBlockBytes+len(b.entries))
		out = append(out, indexMagic[:]...)
		out = append(out, 0, 0, 0, 0)
		out = binary.LittleEndian.AppendUint64(out, b.firstSeq)
		out = binary.LittleEndian.AppendUint64(out, uint64(b.end))
		out = binary.LittleEndian.AppendUint64(out, uint64(len(b.entries)/indexEntryBytes))
		out = append(out, b.entries...)
		binary.LittleEndian.PutUint32(out[4:], crc32.Update(b.seg.seed, castagnoli, out[8:]))
		if err := s.appendIndex(b.seg.number, out, x.size); err != nil {
			x.broken = true
			s.o.Log.Warn("spool: an index file can't be written; the next start reads the whole segment", "segment", b.seg.number, "error", err)
			continue
		}
		x.size += int64(len(out))
	}
}

func (s *Spool) appendIndex(number uint64, block []byte, off int64) error {
	name := s.path(indexName(number))
	f, err := s.o.FS.Open(name)
	if errors.Is(err, fs.ErrNotExist) && off == 0 {
		f, err = s.o.FS.Create(name)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(block, off)
	return errors.Join(err, f.Close())
}

// wantIndex puts seg on the list of writeIndexes. Protected by mu.
func (s *Spool) wantIndex(seg *segment) {
	if len(seg.idx.pending) > 0 && !slices.Contains(s.indexing, seg) {
		s.indexing = append(s.indexing, seg)
	}
}

// dropIndex removes a segment's index file, if there is one.
func (s *Spool) dropIndex(number uint64) {
	if err := s.o.FS.Remove(s.path(indexName(number))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Warn("spool: index file not removed", "segment", number, "error", err)
	}
}

// indexed is what an index file says.
type indexed struct {
	msgs []message
	end  int64 // of the segment's part that it describes
	size int64 // of the file's part that is believed
}

// readIndex reads as much of an index file as is intact and makes sense in a segment that ends at limit.
func (s *Spool) readIndex(number uint64, seed uint32, limit int64) (found indexed) {
	found.end = fileHeaderBytes
	f, err := s.o.FS.Open(s.path(indexName(number)))
	if err != nil {
		return found
	}
	defer f.Close()
	size, err := f.Size()
	// No record is shorter than its entry, so no index is longer than its segment.
	if err != nil || size > limit {
		return found
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); n < len(b) || len(b) == 0 {
		_ = err // what could not be read is scanned
		return found
	}
	for len(b) >= indexBlockBytes && [4]byte(b) == indexMagic {
		firstSeq, end, n := binary.LittleEndian.Uint64(b[8:]), int64(binary.LittleEndian.Uint64(b[16:])), binary.LittleEndian.Uint64(b[24:])
		if n == 0 || n > uint64(len(b)-indexBlockBytes)/indexEntryBytes {
			break
		}
		entries := b[indexBlockBytes : indexBlockBytes+n*indexEntryBytes]
		block := b[:indexBlockBytes+len(entries)]
		if binary.LittleEndian.Uint32(b[4:]) != crc32.Update(seed, castagnoli, block[8:]) || end > limit {
			break
		}
		before := len(found.msgs)
		if before > 0 && firstSeq != found.msgs[before-1].seq+1 {
			break
		}
		at, ok := found.end, true
		for i := uint64(0); i < n && ok; i++ {
			e := entries[i*indexEntryBytes:]
			data := binary.LittleEndian.Uint64(e[32:])
			m := message{
				seq: firstSeq + i, id: envelope.ID(e), off: int64(binary.LittleEndian.Uint64(e[16:])),
				envBytes: binary.LittleEndian.Uint32(e[24:]), traceBytes: binary.LittleEndian.Uint32(e[28:]),
				dataBytes: int64(data &^ indexKeyed), keyed: data&indexKeyed != 0,
			}
			recordEnd := m.off + recordHeaderBytes + int64(m.envBytes) + m.size()
			ok = m.off >= at && recordEnd > m.off && recordEnd <= end
			at = recordEnd
			found.msgs = append(found.msgs, m)
		}
		if !ok {
			found.msgs = found.msgs[:before]
			break
		}
		found.end = end
		found.size += int64(len(block))
		b = b[len(block):]
	}
	return found
}
