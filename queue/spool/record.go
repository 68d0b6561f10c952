package spool

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/fastedge/fastedge/envelope"
)

// The numbers below are the format on disk; doc.go draws it. Changing one needs a new formatVersion.
const (
	formatVersion   = 1
	fileHeaderBytes = 4096 // at the start of each file; records follow
	fileHeaderCopy  = 512  // where the second copy stands: another sector, so that one bad sector leaves the other
	fileHeaderUsed  = 64

	recordHeaderBytes = 64
	// recordAlign: a record starts at a multiple of it, so that a search for the next one after damage looks at few places.
	recordAlign = 64
	// batchAlign: a batch starts on a page of its own. Writing it never rewrites a page that holds acknowledged mail, so a power cut
	// in the middle can't tear that (drives with 4 KiB sectors), and cutting a file at the end of a batch dirties nothing.
	batchAlign = 4096

	flagBatchEnd = 1 << 0 // the last record of its batch: the next one starts at batchAlign
	flagKeyed    = 1 << 1 // the envelope has an idempotency key
)

var (
	fileMagic   = [8]byte{'f', 'e', 'd', 'g', 's', 'p', 'o', 'l'}
	recordMagic = [4]byte{'F', 'E', 'm', '1'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// fileKind tells the sorts of files apart.
type fileKind uint32

const (
	kindSegment fileKind = 1
	kindAcks    fileKind = 2
	kindKeys    fileKind = 3
)

// fileHeader is what stands at the start of each file, twice.
type fileHeader struct {
	kind   fileKind
	number uint64
	salt   uint64 // random for each use of the file
}

// seed starts every checksum in the file. The salt makes records of an earlier use of the same file invalid, and since it is never
// told to anyone, nobody can send a message whose data contains bytes that would pass for a record.
func (h fileHeader) seed() uint32 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], h.salt)
	binary.LittleEndian.PutUint64(b[8:], h.number)
	return crc32.Update(uint32(h.kind), castagnoli, b[:])
}

// block gives the first fileHeaderBytes of a file.
func (h fileHeader) block() []byte {
	b := make([]byte, fileHeaderBytes)
	copy(b, fileMagic[:])
	binary.LittleEndian.PutUint32(b[12:], formatVersion)
	binary.LittleEndian.PutUint32(b[16:], uint32(h.kind))
	binary.LittleEndian.PutUint64(b[24:], h.number)
	binary.LittleEndian.PutUint64(b[32:], h.salt)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:fileHeaderUsed], castagnoli))
	copy(b[fileHeaderCopy:], b[:fileHeaderUsed])
	return b
}

var (
	errNoHeader = errors.New("neither copy of the file header is intact")
	errVersion  = errors.New("written by a newer version of fastedge")
)

// parseFileHeader reads either copy.
func parseFileHeader(block []byte) (h fileHeader, err error) {
	for _, at := range []int{0, fileHeaderCopy} {
		if len(block) < at+fileHeaderUsed {
			break
		}
		b := block[at : at+fileHeaderUsed]
		if [8]byte(b) != fileMagic || binary.LittleEndian.Uint32(b[8:]) != crc32.Checksum(b[12:], castagnoli) {
			continue
		}
		if binary.LittleEndian.Uint32(b[12:]) != formatVersion {
			return h, errVersion
		}
		h.kind = fileKind(binary.LittleEndian.Uint32(b[16:]))
		h.number = binary.LittleEndian.Uint64(b[24:])
		h.salt = binary.LittleEndian.Uint64(b[32:])
		return h, nil
	}
	return h, errNoHeader
}

// recordHeader is the fixed part of one record.
type recordHeader struct {
	seq        uint64
	id         envelope.ID
	envBytes   uint32
	traceBytes uint32
	dataBytes  uint64
	envCRC     uint32
	bodyCRC    uint32
	batch      uint32 // where its batch starts, in batchAlign: all before it was durable when this was written
	flags      uint32
}

// appendTo appends the header's recordHeaderBytes.
func (h *recordHeader) appendTo(dst []byte, seed uint32) []byte {
	at := len(dst)
	dst = append(dst, recordMagic[:]...)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, h.seq)
	dst = append(dst, h.id[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, h.envBytes)
	dst = binary.LittleEndian.AppendUint32(dst, h.traceBytes)
	dst = binary.LittleEndian.AppendUint64(dst, h.dataBytes)
	dst = binary.LittleEndian.AppendUint32(dst, h.envCRC)
	dst = binary.LittleEndian.AppendUint32(dst, h.bodyCRC)
	dst = binary.LittleEndian.AppendUint32(dst, h.batch)
	dst = binary.LittleEndian.AppendUint32(dst, h.flags)
	binary.LittleEndian.PutUint32(dst[at+4:], crc32.Update(seed, castagnoli, dst[at+8:]))
	return dst
}

// parseRecordHeader reads a header; ok is false when its checksum says that it is none.
func parseRecordHeader(b []byte, seed uint32) (h recordHeader, ok bool) {
	if len(b) < recordHeaderBytes || [4]byte(b) != recordMagic ||
		binary.LittleEndian.Uint32(b[4:]) != crc32.Update(seed, castagnoli, b[8:recordHeaderBytes]) {
		return h, false
	}
	h.seq = binary.LittleEndian.Uint64(b[8:])
	h.id = envelope.ID(b[16:32])
	h.envBytes = binary.LittleEndian.Uint32(b[32:])
	h.traceBytes = binary.LittleEndian.Uint32(b[36:])
	h.dataBytes = binary.LittleEndian.Uint64(b[40:])
	h.envCRC = binary.LittleEndian.Uint32(b[48:])
	h.bodyCRC = binary.LittleEndian.Uint32(b[52:])
	h.batch = binary.LittleEndian.Uint32(b[56:])
	h.flags = binary.LittleEndian.Uint32(b[60:])
	return h, h.dataBytes < 1<<48
}

// size is the length of the record without the fill behind it.
func (h *recordHeader) size() int64 {
	return recordHeaderBytes + int64(h.envBytes) + int64(h.traceBytes) + int64(h.dataBytes)
}

// next is where the record after one at off starts.
func (h *recordHeader) next(off int64) int64 {
	if h.flags&flagBatchEnd != 0 {
		return roundUp(off+h.size(), batchAlign)
	}
	return roundUp(off+h.size(), recordAlign)
}

// contentSeed starts the checksums of a record's envelope and body: an intact body of another message in its place shows too.
func contentSeed(seed uint32, seq uint64) uint32 {
	return updateWord(updateWord(seed, uint32(seq)), uint32(seq>>32))
}

// updateWord is crc32.Update over the four bytes of v, least significant first. That one takes a slice, which it lets escape: two
// allocations a record.
func updateWord(crc, v uint32) uint32 {
	crc = ^crc
	for range 4 {
		crc = castagnoli[byte(crc)^byte(v)] ^ crc>>8
		v >>= 8
	}
	return ^crc
}

// bodySum makes the checksum of a body from that of the trace field, started with contentSeed, and the plain one of the data, which was
// taken when the data came in (pool.Chain.Sum): so damage while it waited in memory shows as well.
func bodySum(trace, data uint32) uint32 { return updateWord(trace, data) }

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
