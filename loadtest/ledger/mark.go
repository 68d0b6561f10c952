package ledger

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/crc32"
)

// Mark is what the mark field of a message says.
type Mark struct {
	Run  RunID
	Seq  uint64   // at most MaxSeq
	Body [32]byte // SHA-256 of all that follows the empty line: lines end with CRLF, dot-stuffing is removed
	Head uint32   // HeadSum of the header fields behind the mark line
}

// MarkField is the name of the header field that carries the mark.
const MarkField = "X-Loadtest"

// The widths are fixed, so that a mark can be patched into a prepared message.
const (
	MaxSeq        = 9_999_999_999 // sequence numbers are written with ten digits
	MaxRecipients = 10_000        // positions are written with four digits, from 0

	seqDigits      = 10
	positionDigits = 4
)

// markLine is a mark line of zeros; the offsets say where its numbers stand.
const (
	markLine = MarkField + ": run=0000000000000000 seq=0000000000 " +
		"body=0000000000000000000000000000000000000000000000000000000000000000 head=00000000\r\n"

	markRun  = len(MarkField) + len(": run=")
	markSeq  = markRun + runDigits + len(" seq=")
	markBody = markSeq + seqDigits + len(" body=")
	markHead = markBody + 64 + len(" head=")
)

// MarkLen is the length of the line that Mark.Append writes, CRLF included: 133 octets.
const MarkLen = len(markLine)

// Append appends the mark line, MarkLen octets.
func (m Mark) Append(dst []byte) []byte {
	if m.Seq > MaxSeq {
		panic(fmt.Sprintf("ledger: sequence number %d has more than %d digits", m.Seq, seqDigits))
	}
	dst = append(dst, markLine...)
	line := dst[len(dst)-MarkLen:]
	putHex(line[markRun:markRun+runDigits], uint64(m.Run))
	putDecimal(line[markSeq:markSeq+seqDigits], m.Seq)
	hex.Encode(line[markBody:], m.Body[:])
	putHex(line[markHead:markHead+8], uint64(m.Head))
	return dst
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// HeadSum is the CRC32C of header lines, each with its CRLF, without the empty line.
func HeadSum(lines []byte) uint32 { return crc32.Checksum(lines, castagnoli) }

// ParseMark reads a mark field, name included. A relay may have folded it anew (RFC 5322 §2.2.3) or changed the case of its name;
// everything else must be as Append wrote it.
func ParseMark(field []byte) (m Mark, ok bool) {
	if !isMarkField(field) {
		return m, false
	}
	rest := field[len(MarkField)+1:]
	run, rest := nextWord(rest, "run=")
	seq, rest := nextWord(rest, "seq=")
	body, rest := nextWord(rest, "body=")
	head, rest := nextWord(rest, "head=")
	if more, _ := nextWord(rest, ""); len(more) > 0 || len(run) != runDigits || len(seq) != seqDigits || len(body) != 64 || len(head) != 8 {
		return m, false
	}
	r, ok1 := parseHex(run)
	s, ok2 := parseDecimal(seq)
	h, ok3 := parseHex(head)
	if _, err := hex.Decode(m.Body[:], body); err != nil || !ok1 || !ok2 || !ok3 {
		return Mark{}, false
	}
	m.Run, m.Seq, m.Head = RunID(r), s, uint32(h)
	return m, true
}

// isMarkField says whether a line begins a mark field.
func isMarkField(line []byte) bool {
	return len(line) > len(MarkField) && line[len(MarkField)] == ':' && bytes.EqualFold(line[:len(MarkField)], []byte(MarkField))
}

// nextWord takes one word off p and gives what follows the prefix in it; nothing when it has another.
func nextWord(p []byte, prefix string) (value, rest []byte) {
	const space = " \t\r\n"
	p = bytes.TrimLeft(p, space)
	n := bytes.IndexAny(p, space)
	if n < 0 {
		n = len(p)
	}
	if !bytes.HasPrefix(p[:n], []byte(prefix)) {
		return nil, p[n:]
	}
	return p[len(prefix):n], p[n:]
}

const (
	recipientPrefix = "lt."
	recipientLocal  = recipientPrefix + "0000000000.0000.0000000000000000@"

	recipientSeq      = len(recipientPrefix)
	recipientPosition = recipientSeq + seqDigits + 1
	recipientRun      = recipientPosition + positionDigits + 1
)

// RecipientLen is the length of what AppendRecipient writes, without the domain.
const RecipientLen = len(recipientLocal)

// AppendRecipient appends the address of the recipient at position i of message seq, without angle brackets: RecipientLen octets and
// the domain.
func AppendRecipient(dst []byte, run RunID, seq uint64, i int, domain string) []byte {
	if seq > MaxSeq || i < 0 || i >= MaxRecipients {
		panic(fmt.Sprintf("ledger: no address for message %d, recipient %d", seq, i))
	}
	dst = append(dst, recipientLocal...)
	local := dst[len(dst)-RecipientLen:]
	putDecimal(local[recipientSeq:recipientSeq+seqDigits], seq)
	putDecimal(local[recipientPosition:recipientPosition+positionDigits], uint64(i))
	putHex(local[recipientRun:recipientRun+runDigits], uint64(run))
	return append(dst, domain...)
}

// ParseRecipient reads what AppendRecipient wrote, in either case, with or without angle brackets, whatever the domain.
func ParseRecipient(addr []byte) (run RunID, seq uint64, i int, ok bool) {
	if n := len(addr); n >= 2 && addr[0] == '<' && addr[n-1] == '>' {
		addr = addr[1 : n-1]
	}
	if len(addr) < RecipientLen || addr[recipientPosition-1] != '.' || addr[recipientRun-1] != '.' || addr[RecipientLen-1] != '@' ||
		!bytes.EqualFold(addr[:recipientSeq], []byte(recipientPrefix)) {
		return 0, 0, 0, false
	}
	s, ok1 := parseDecimal(addr[recipientSeq : recipientSeq+seqDigits])
	position, ok2 := parseDecimal(addr[recipientPosition : recipientPosition+positionDigits])
	r, ok3 := parseHex(addr[recipientRun : recipientRun+runDigits])
	if !ok1 || !ok2 || !ok3 {
		return 0, 0, 0, false
	}
	return RunID(r), s, int(position), true
}
