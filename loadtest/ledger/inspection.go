package ledger

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"hash/crc32"
	"io"
)

// Finding is what an Inspection found out about a message.
type Finding struct {
	Mark       Mark
	Marked     bool // it has a mark
	BodyIntact bool // the body is the one that the mark was made for
	HeadIntact bool // so are the header fields behind the mark
}

// MaxUnmarkedBytes is how far the header section is searched: a mark field whose first line does not end in the first MiB is not seen.
const MaxUnmarkedBytes = 1 << 20

const (
	maxMarkLine  = 1024 // a longer line is no part of a mark field
	maxMarkField = 2048 // nor is a longer field
)

// inspected says where in the message an Inspection is.
type inspected uint8

const (
	beforeMark inspected = iota // in the header section; no mark yet
	inMark                      // a line began a mark field; the next may go on with it
	afterMark                   // in the header section, behind the mark
	inBody                      // behind the empty line
	unmarked                    // no mark in MaxUnmarkedBytes, or none before the body: nothing more is looked at
)

// Inspection reads message data as it comes: Reset, any number of Writes, then Close or Finish. How the data is split makes no difference. It may
// be used again after Reset, and then does not allocate. One goroutine at a time.
type Inspection struct {
	register   *Register
	recipients []byte // of Reset, one after the other
	ends       []int  // where each ends

	state    inspected
	midLine  bool   // in a line longer than maxMarkLine
	held     []byte // the line so far, when it came in pieces
	searched int    // octets of the header section without a mark
	field    []byte // the mark field so far
	mark     Mark
	head     uint32
	body     hash.Hash
	sum      [sha256.Size]byte
}

var _ io.WriteCloser = (*Inspection)(nil)

// NewInspection makes one whose Close enters what it found in the register.
func NewInspection(register *Register) *Inspection {
	return &Inspection{register: register, body: sha256.New()}
}

// Reset begins another message. Recipients are addresses of the envelope, which Close will enter.
func (in *Inspection) Reset(recipients ...[]byte) {
	in.recipients, in.ends = in.recipients[:0], in.ends[:0]
	for _, r := range recipients {
		in.recipients = append(in.recipients, r...)
		in.ends = append(in.ends, len(in.recipients))
	}
	in.state, in.midLine, in.searched, in.head = beforeMark, false, 0, 0
	in.held, in.field = in.held[:0], in.field[:0]
	in.body.Reset()
}

// Write takes the next part of the message data: dot-stuffing removed, without the end mark. It never fails.
func (in *Inspection) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && in.state < inBody {
		part := p
		if in.state == beforeMark {
			if in.searched >= MaxUnmarkedBytes {
				in.state = unmarked
				break
			}
			part = p[:min(len(p), MaxUnmarkedBytes-in.searched)]
		}
		end := bytes.IndexByte(part, '\n') + 1
		if end > 0 {
			part = part[:end]
		}
		p = p[len(part):]
		if in.state != afterMark {
			in.searched += len(part)
		}
		in.header(part, end > 0)
	}
	if in.state == inBody && len(p) > 0 {
		in.body.Write(p)
	}
	return n, nil
}

// header takes a line, or the next piece of one; last says that it has the line feed.
func (in *Inspection) header(part []byte, last bool) {
	switch {
	case in.midLine:
		if in.state == afterMark {
			in.head = crc32.Update(in.head, castagnoli, part)
		}
		in.midLine = !last
	case len(in.held)+len(part) > maxMarkLine:
		held := in.held
		in.held = in.held[:0]
		if len(held) > 0 {
			in.line(held, false)
			if in.state == afterMark {
				in.head = crc32.Update(in.head, castagnoli, part)
			}
		} else {
			in.line(part, false)
		}
		in.midLine = !last
	case !last:
		in.held = append(in.held, part...)
	case len(in.held) > 0:
		in.held = append(in.held, part...)
		in.line(in.held, true)
		in.held = in.held[:0]
	default:
		in.line(part, true)
	}
}

// line takes a line with its line feed, or the beginning of one that is too long to be of interest.
func (in *Inspection) line(line []byte, whole bool) {
	if whole && (string(line) == "\r\n" || string(line) == "\n") {
		if in.state == inMark {
			in.endMark()
		}
		if in.state != afterMark {
			in.state = unmarked
			return
		}
		in.state = inBody
		return
	}
	if in.state == inMark {
		if line[0] == ' ' || line[0] == '\t' { // RFC 5322 §2.2.3
			if whole && len(in.field)+len(line) <= maxMarkField {
				in.field = append(in.field, line...)
			} else {
				in.state = beforeMark
			}
			return
		}
		in.endMark()
	}
	switch in.state {
	case beforeMark:
		if whole && isMarkField(line) && in.searched <= MaxUnmarkedBytes {
			in.field = append(in.field[:0], line...)
			in.state = inMark
		}
	case afterMark:
		in.head = crc32.Update(in.head, castagnoli, line)
	}
}

// endMark reads the field that has come to its end. One that is not legible is passed over.
func (in *Inspection) endMark() {
	var ok bool
	if in.mark, ok = ParseMark(in.field); ok {
		in.state = afterMark
	} else {
		in.state = beforeMark
	}
}

// Finish ends the message and says what was found, without entering it. A message that ends in its header section has an empty body.
func (in *Inspection) Finish() Finding {
	if len(in.held) > 0 && in.state < inBody {
		in.line(in.held, true)
		in.held = in.held[:0]
	}
	if in.state == inMark {
		in.endMark()
	}
	if in.state != afterMark && in.state != inBody {
		return Finding{}
	}
	in.body.Sum(in.sum[:0])
	return Finding{Mark: in.mark, Marked: true, BodyIntact: in.sum == in.mark.Body, HeadIntact: in.head == in.mark.Head}
}

// Close ends the message and enters it for each recipient. It never fails.
func (in *Inspection) Close() error {
	f := in.Finish()
	start := 0
	for _, end := range in.ends {
		in.register.Enter(in.recipients[start:end], f)
		start = end
	}
	in.ends = in.ends[:0]
	return nil
}
