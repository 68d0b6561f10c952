package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The spool of fastedge as its documentation draws it (package queue/spool, format 1; package envelope, codec versions 1 to 3). Nothing of theirs is
// used here: what they misread must not be misread here in the same way. Integers are little-endian, checksums are CRC32C.
const (
	spoolMagic   = "fedgspol"
	spoolVersion = 1
	spoolSegment = 1 // kinds of file
	spoolAcks    = 2

	spoolHeaderBytes = 4096 // in front of the records; the header stands there twice
	spoolHeaderUsed  = 64
	spoolSecondCopy  = 512

	recordMagic       = "FEm1"
	recordHeaderBytes = 64
	recordAlign       = 64
	batchAlign        = 4096
	lastOfBatch       = 1

	ackAlign = 8
	ackMark  = 3 // the one kind of ack record that is of interest: segment 8, end 8, what 4
	markCut  = 2
	markGone = 3

	envelopeVersion = 1 // 2 has two more fields of variable length, 3 has three and perhaps an idempotency key
	envelopeNewest  = 3
	envelopeFixed   = 46 // octets before the first field of variable length
	envelopeFlags   = 17
	envelopeKeyed   = 1 << 6 // in the flags: key and payload are there, and an answer behind them
	envelopeKey     = 64     // octets of key and payload
)

// Bounds on what a spool's files can make the reader do.
const (
	MaxEnvelopeBytes = 64 << 20 // an envelope that claims more is damaged: a million recipients take less
	MaxAckLogBytes   = 1 << 30  // an ack log is read whole; a longer one is an error

	spoolWindow  = 1 << 20 // read at a time
	spoolRereads = 5       // how often files may be exchanged under the reader before it gives up
)

var (
	errNotSpool  = errors.New("neither copy of the file header is intact")
	errNewSpool  = errors.New("written by a newer version of fastedge")
	errAckChange = errors.New("a failed write was noted at each of several readings")
	errNoSpool   = errors.New("there is no segment and no ack log")
)

// ReadSpool gives the receipts of a run from the spool directory of a fastedge server: each intact record counts as one delivery to each
// recipient of its envelope, of the message as it would be handed on (trace field, then message data). Messages of other runs are
// strangers.
//
// The server may be running, or have been killed. A record that is being written fails its checksum and is not there yet; so does a record of an
// earlier use of a file, since every checksum is seeded with the file's salt. What lies behind a noted cut was refused, and is not counted.
//
// The server must have no next hop: mail that is settled is soon overwritten, and can't be seen here. Whether a record that is still there was
// settled is not looked at. An error means that the spool could not be read, not that mail is missing.
func ReadSpool(dir string, run RunID) (r *Receipts, err error) {
	for range spoolRereads {
		var before, after spoolNotes
		if before, err = readSpoolNotes(dir); err != nil {
			continue
		}
		if r, err = readSegments(dir, run, before); err != nil {
			continue
		}
		// A cut that was noted after the ack log was read concerns what may have been read since.
		if after, err = readSpoolNotes(dir); err != nil {
			continue
		}
		if maps.Equal(before.cuts, after.cuts) {
			return r, nil
		}
		err = errAckChange
	}
	return nil, fmt.Errorf("ledger: spool %s: %w", dir, err)
}

// spoolNotes are what the ack log says about segments.
type spoolNotes struct {
	cuts map[uint64]int64 // all behind was refused
	gone map[uint64]bool  // all of it is settled; the file is about to be removed or used again
}

// spoolFiles gives the numbers of the files NNNNNNNN.ext, ascending.
func spoolFiles(dir, ext string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, entry := range entries {
		base, found := strings.CutSuffix(entry.Name(), "."+ext)
		n, err := strconv.ParseUint(base, 10, 63)
		if found && err == nil && entry.Name() == filepath.Base(spoolFile(dir, n, ext)) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func spoolFile(dir string, number uint64, ext string) string {
	return filepath.Join(dir, fmt.Sprintf("%08d.%s", number, ext))
}

// parseSpoolHeader checks the block at the start of a file and gives the seed of its checksums. ok is false when the header is intact
// but of another file: a segment that is being renamed for another use.
func parseSpoolHeader(block []byte, kind uint32, number uint64) (seed uint32, ok bool, err error) {
	for _, at := range []int{0, spoolSecondCopy} {
		if len(block) < at+spoolHeaderUsed {
			break
		}
		b := block[at : at+spoolHeaderUsed]
		if string(b[:8]) != spoolMagic || binary.LittleEndian.Uint32(b[8:]) != crc32.Checksum(b[12:], castagnoli) {
			continue
		}
		if binary.LittleEndian.Uint32(b[12:]) != spoolVersion {
			return 0, false, errNewSpool
		}
		if binary.LittleEndian.Uint32(b[16:]) != kind || binary.LittleEndian.Uint64(b[24:]) != number {
			return 0, false, nil
		}
		// The checksum of the kind, then salt and number: kind stands for a checksum that has come so far.
		seed := crc32.Update(kind, castagnoli, b[32:40])
		return crc32.Update(seed, castagnoli, b[24:32]), true, nil
	}
	return 0, false, errNotSpool
}

// readSpoolNotes reads the newest intact ack log. Its end may be torn, and damage in the middle is passed over: most of it is about what
// was settled.
func readSpoolNotes(dir string) (notes spoolNotes, err error) {
	notes = spoolNotes{map[uint64]int64{}, map[uint64]bool{}}
	numbers, err := spoolFiles(dir, "ack")
	if err != nil {
		return notes, err
	}
	for _, number := range slices.Backward(numbers) {
		b, err := readAckLog(spoolFile(dir, number, "ack"))
		if err != nil {
			return notes, err
		}
		seed, ok, err := parseSpoolHeader(b, spoolAcks, number)
		if errors.Is(err, errNewSpool) {
			return notes, err
		}
		if err == nil && ok {
			notes.read(b, seed)
			break
		}
		// The server sets such a file aside and takes the older one.
	}
	return notes, nil
}

func readAckLog(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxAckLogBytes+1))
	if err == nil && len(b) > MaxAckLogBytes {
		err = fmt.Errorf("%s is longer than %d bytes", filepath.Base(name), int64(MaxAckLogBytes))
	}
	return b, err
}

// read takes the last mark of each segment from an ack log.
func (notes spoolNotes) read(b []byte, seed uint32) {
	for off := spoolHeaderBytes; off+ackAlign <= len(b); {
		kind, n := b[off+7], int(b[off+4])|int(b[off+5])<<8|int(b[off+6])<<16
		if kind == 0 || n > len(b)-off-ackAlign ||
			binary.LittleEndian.Uint32(b[off:]) != crc32.Update(seed, castagnoli, b[off+4:off+ackAlign+n]) {
			off += ackAlign
			continue
		}
		if p := b[off+ackAlign : off+ackAlign+n]; kind == ackMark && n == 20 {
			number := binary.LittleEndian.Uint64(p)
			delete(notes.cuts, number)
			delete(notes.gone, number)
			switch binary.LittleEndian.Uint32(p[16:]) {
			case markCut:
				notes.cuts[number] = int64(min(binary.LittleEndian.Uint64(p[8:]), 1<<62))
			case markGone:
				notes.gone[number] = true
			}
		}
		off += (ackAlign + n + ackAlign - 1) / ackAlign * ackAlign
	}
}

// segmentReader reads the records of segments one after the other.
type segmentReader struct {
	in       *Inspection
	file     io.ReaderAt
	limit    int64 // nothing at or behind it counts
	seed     uint32
	window   []byte
	from     int64 // of window in the file
	envelope []byte
	to       [][]byte
}

func readSegments(dir string, run RunID, notes spoolNotes) (*Receipts, error) {
	numbers, err := spoolFiles(dir, "seg")
	if err != nil {
		return nil, err
	}
	if acks, err := spoolFiles(dir, "ack"); err == nil && len(numbers) == 0 && len(acks) == 0 {
		return nil, errNoSpool
	}
	g := &Register{runs: []*Receipts{NewReceipts(run)}, only: true}
	r := &segmentReader{in: NewInspection(g)}
	for _, number := range numbers {
		if notes.gone[number] {
			continue
		}
		limit, cut := notes.cuts[number]
		if !cut {
			limit = 1 << 62
		}
		if err := r.open(spoolFile(dir, number, "seg"), number, limit); err != nil {
			return nil, fmt.Errorf("segment %d: %w", number, err)
		}
	}
	return g.Receipts(run), nil
}

// open reads one file up to limit.
func (r *segmentReader) open(name string, number uint64, limit int64) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since the directory was read
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return r.read(f, number, min(limit, info.Size()))
}

// read goes through a segment. Where no intact record begins it looks for the next: behind damage there may be more, and the zeros
// behind the last one are passed quickly.
func (r *segmentReader) read(f io.ReaderAt, number uint64, limit int64) error {
	r.file, r.limit, r.window = f, limit, r.window[:0]
	block, err := r.at(0, int(min(limit, spoolHeaderBytes)))
	if err != nil {
		return err
	}
	seed, ok, err := parseSpoolHeader(block, spoolSegment, number)
	if errors.Is(err, errNewSpool) {
		return err
	}
	if err != nil || !ok {
		return nil // being prepared, or damaged: the server would set it aside, and its mail is lost
	}
	r.seed = seed
	for off := int64(spoolHeaderBytes); limit-off >= recordHeaderBytes; {
		header, err := r.at(off, recordHeaderBytes)
		if err != nil {
			return err
		}
		if len(header) < recordHeaderBytes {
			return nil // cut short since
		}
		if string(header[:4]) != recordMagic {
			off += recordAlign
			continue
		}
		size, err := r.record([recordHeaderBytes]byte(header), off)
		if err != nil {
			return err
		}
		off += size
	}
	return nil
}

// record reads the record at off, if there is one, and says where to look for the next: behind it, when its header is intact.
func (r *segmentReader) record(header [recordHeaderBytes]byte, off int64) (size int64, err error) {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(header[at:]) }
	envelopeBytes, traceBytes, dataBytes := int64(u32(32)), int64(u32(36)), binary.LittleEndian.Uint64(header[40:])
	if u32(4) != crc32.Update(r.seed, castagnoli, header[8:]) || dataBytes >= 1<<48 {
		return recordAlign, nil
	}
	size = recordHeaderBytes + envelopeBytes + traceBytes + int64(dataBytes)
	if size > r.limit-off {
		return recordAlign, nil
	}
	next := off + size
	if u32(60)&lastOfBatch != 0 {
		next = (next + batchAlign - 1) / batchAlign * batchAlign
	} else {
		next = (next + recordAlign - 1) / recordAlign * recordAlign
	}
	next -= off

	// Envelope and trace field are summed behind the sequence number; the data has a sum of its own, which ends that of the trace field.
	start := crc32.Update(r.seed, castagnoli, header[8:16])
	if envelopeBytes > MaxEnvelopeBytes {
		return next, nil
	}
	r.envelope = r.envelope[:0]
	at := off + recordHeaderBytes
	sum, whole, err := r.pieces(at, envelopeBytes, start, func(p []byte) { r.envelope = append(r.envelope, p...) })
	if err != nil || !whole || sum != u32(48) {
		return next, err
	}
	if r.to, whole = envelopeRecipients(r.to[:0], r.envelope); !whole {
		return next, nil
	}
	r.in.Reset(r.to...)
	feed := func(p []byte) { r.in.Write(p) }
	at += envelopeBytes
	trace, whole, err := r.pieces(at, traceBytes, start, feed)
	if err != nil || !whole {
		return next, err
	}
	data, whole, err := r.pieces(at+traceBytes, int64(dataBytes), 0, feed)
	if err != nil || !whole {
		return next, err
	}
	if crc32.Update(trace, castagnoli, binary.LittleEndian.AppendUint32(nil, data)) == u32(52) {
		r.in.Close()
	}
	return next, nil
}

// pieces reads n bytes at off, sums them from start on, and gives them to f. whole is false when the file ends before.
func (r *segmentReader) pieces(off, n int64, start uint32, f func([]byte)) (sum uint32, whole bool, err error) {
	for n > 0 {
		p, err := r.at(off, int(min(n, spoolWindow)))
		if err != nil || len(p) == 0 {
			return 0, false, err
		}
		p = p[:min(int64(len(p)), n)]
		start = crc32.Update(start, castagnoli, p)
		f(p)
		off += int64(len(p))
		n -= int64(len(p))
	}
	return start, true, nil
}

// at gives up to n bytes at off, borrowed until the next call; fewer where the file ends. n is at most spoolWindow.
func (r *segmentReader) at(off int64, n int) ([]byte, error) {
	if off < r.from || off+int64(n) > r.from+int64(len(r.window)) {
		if r.window == nil || cap(r.window) < spoolWindow {
			r.window = make([]byte, spoolWindow)
		}
		r.window = r.window[:min(spoolWindow, max(0, r.limit-off))]
		got, err := r.file.ReadAt(r.window, off)
		r.from, r.window = off, r.window[:got]
		if err != nil && err != io.EOF {
			r.window = r.window[:0]
			return nil, err
		}
	}
	p := r.window[off-r.from:]
	return p[:min(n, len(p))], nil
}

// envelopeRecipients appends the forward-paths of an envelope's binary form to dst; they point into b. ok is false when it is malformed.
func envelopeRecipients(dst [][]byte, b []byte) (paths [][]byte, ok bool) {
	if len(b) < envelopeFixed || b[0] < envelopeVersion || b[0] > envelopeNewest {
		return dst, false
	}
	rest, bad := b[envelopeFixed:], false
	number := func() uint64 {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			rest, bad = nil, true
			return 0
		}
		rest = rest[n:]
		return v
	}
	field := func() (p []byte) {
		n := number()
		if n > uint64(len(rest)) {
			rest, bad = nil, true
			return nil
		}
		p, rest = rest[:n], rest[n:]
		return p
	}
	for range 4 { // address, HELO name, protocol, listener
		field()
	}
	if b[0] > envelopeVersion {
		for range b[0] { // user, results; in version 3 metadata: as many as the version's number
			field()
		}
	}
	if b[0] == envelopeNewest && b[envelopeFlags]&envelopeKeyed != 0 {
		if len(rest) < envelopeKey {
			return dst, false
		}
		rest = rest[envelopeKey:]
		field() // answer
	}
	for range 2 { // reverse-path, ENVID
		field()
	}
	for n := number(); n > 0 && !bad; n-- {
		if len(rest) == 0 {
			return dst, false
		}
		rest = rest[1:] // NOTIFY
		path := field()
		field() // ORCPT
		dst = append(dst, path)
	}
	return dst, !bad && len(rest) == 0
}
