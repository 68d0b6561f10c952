package ledger

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"slices"
)

// Receipts in a file or on the wire. Integers are little-endian or unsigned varints:
//
//	8 octets  "ltreceip"
//	1         version, 1
//	8         run
//	varint    strangers; then deliveries beyond MaxDeliveries
//	varint    number of corrupt deliveries listed; for each: sequence number and position (varints), reason (1 octet)
//	varint    number of pages; for each, ascending: position and page number (varints), then its 1024 words as runs of equal ones:
//	          how many (varint), the word (8)
//	4         CRC32C of all before
//
// The words are those of receiptPage: a run in which everything arrived once takes some ten octets a page of 16,384 deliveries.
const (
	receiptsMagic   = "ltreceip"
	receiptsVersion = 1
)

// ErrBadReceipts is the answer to bytes that AppendTo did not write, or that were damaged since.
var ErrBadReceipts = errors.New("ledger: malformed receipts")

func comparePages(a, b pageKey) int {
	return cmp.Or(cmp.Compare(a.position, b.position), cmp.Compare(a.page, b.page))
}

// AppendTo appends the binary form.
func (r *Receipts) AppendTo(dst []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	start := len(dst)
	dst = append(dst, receiptsMagic...)
	dst = append(dst, receiptsVersion)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.run))
	dst = binary.AppendUvarint(dst, uint64(r.strangers))
	dst = binary.AppendUvarint(dst, uint64(r.beyond))
	dst = binary.AppendUvarint(dst, uint64(len(r.corrupt)))
	for _, c := range r.corrupt {
		dst = binary.AppendUvarint(dst, c.Seq)
		dst = binary.AppendUvarint(dst, uint64(c.Recipient))
		dst = append(dst, byte(c.Why))
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.pages)))
	for _, key := range slices.SortedFunc(maps.Keys(r.pages), comparePages) {
		dst = binary.AppendUvarint(dst, uint64(key.position))
		dst = binary.AppendUvarint(dst, uint64(key.page))
		page := r.pages[key]
		for i := 0; i < len(page); {
			n := 1
			for i+n < len(page) && page[i+n] == page[i] {
				n++
			}
			dst = binary.AppendUvarint(dst, uint64(n))
			dst = binary.LittleEndian.AppendUint64(dst, page[i])
			i += n
		}
	}
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// summedReader reads and sums. After the first failure everything is zero.
type summedReader struct {
	src *bufio.Reader
	sum hash.Hash32
	err error
	one [1]byte
}

func (r *summedReader) ReadByte() (byte, error) {
	c, err := r.src.ReadByte()
	if err != nil {
		return 0, err
	}
	r.one[0] = c
	r.sum.Write(r.one[:])
	return c, nil
}

// uvarint reads one of at most limit.
func (r *summedReader) uvarint(limit uint64) uint64 {
	if r.err != nil {
		return 0
	}
	v, err := binary.ReadUvarint(r)
	if err != nil {
		r.err = err
	} else if v > limit {
		r.err, v = ErrBadReceipts, 0
	}
	return v
}

func (r *summedReader) full(b []byte) {
	if r.err == nil {
		if _, r.err = io.ReadFull(r.src, b); r.err == nil {
			r.sum.Write(b)
			return
		}
	}
	clear(b)
}

func (r *summedReader) word() uint64 {
	var b [8]byte
	r.full(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// ReadReceipts reads what AppendTo wrote, to the end of src. It takes memory only for what it has read: 8 KiB a page, 1 GiB at most.
func ReadReceipts(src io.Reader) (*Receipts, error) {
	in := &summedReader{src: bufio.NewReader(src), sum: crc32.New(castagnoli)}
	var head [len(receiptsMagic) + 1]byte
	in.full(head[:])
	if in.err == nil && string(head[:len(receiptsMagic)]) == receiptsMagic && head[len(receiptsMagic)] > receiptsVersion {
		return nil, fmt.Errorf("ledger: receipts of version %d, which is newer than %d", head[len(receiptsMagic)], receiptsVersion)
	}
	if in.err == nil && string(head[:]) != receiptsMagic+string(rune(receiptsVersion)) {
		in.err = ErrBadReceipts
	}
	r := NewReceipts(RunID(in.word()))
	r.strangers = int64(in.uvarint(1<<63 - 1))
	r.beyond = int64(in.uvarint(1<<63 - 1))
	for range in.uvarint(MaxCorrupt) {
		c := Corrupt{Seq: in.uvarint(MaxDeliveries - 1), Recipient: int(in.uvarint(MaxRecipients - 1))}
		var why [1]byte
		in.full(why[:])
		if c.Why = Corruption(why[0]); in.err == nil && (c.Why == Intact || c.Why > MarkContradicts) {
			in.err = ErrBadReceipts
		}
		if in.err != nil {
			break
		}
		r.corrupt = append(r.corrupt, c)
	}
	in.pages(r)
	sum := in.sum.Sum32()
	var tail [4]byte
	in.full(tail[:])
	if in.err == nil && binary.LittleEndian.Uint32(tail[:]) != sum {
		in.err = ErrBadReceipts
	}
	if in.err == nil {
		if _, err := in.src.ReadByte(); err != io.EOF {
			in.err = ErrBadReceipts
		}
	}
	switch {
	case in.err == io.EOF, in.err == io.ErrUnexpectedEOF, in.err == ErrBadReceipts:
		return nil, ErrBadReceipts
	case in.err != nil:
		return nil, fmt.Errorf("ledger: read receipts: %w", in.err)
	}
	return r, nil
}

func (r *summedReader) pages(into *Receipts) {
	last := pageKey{}
	for n := range r.uvarint(maxReceiptPages) {
		key := pageKey{uint32(r.uvarint(MaxRecipients - 1)), uint32(r.uvarint(maxReceiptPages - 1))}
		if r.err == nil && n > 0 && comparePages(last, key) >= 0 {
			r.err = ErrBadReceipts
		}
		if r.err != nil {
			return
		}
		page := new(receiptPage)
		for at := 0; at < len(page); {
			run := r.uvarint(uint64(len(page) - at))
			word := r.word()
			if run == 0 && r.err == nil {
				r.err = ErrBadReceipts
			}
			if r.err != nil {
				return
			}
			for range run {
				page[at] = word
				at++
			}
		}
		into.pages[key] = page
		last = key
	}
}

// ReadReceiptsFile reads a file of receipts.
func ReadReceiptsFile(name string) (*Receipts, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	defer f.Close()
	return ReadReceipts(f)
}
