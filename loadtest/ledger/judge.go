package ledger

import (
	"fmt"

	"github.com/fastedge/fastedge/loadtest/report"
)

const maxExamples = 10

// examples collects a few lines of each kind.
type examples [4][]string

const (
	exampleLost = iota
	exampleCorrupt
	exampleDuplicate
	examplePhantom
)

func (e *examples) add(kind int, format string, args ...any) {
	if len(e[kind]) < maxExamples {
		e[kind] = append(e[kind], fmt.Sprintf(format, args...))
	}
}

// lines takes from each kind in turn, so that a thousand lost messages do not hide the one that is corrupt.
func (e *examples) lines() (lines []string) {
	share := [len(e)]int{}
	for n := 0; n < maxExamples; {
		before := n
		for kind := range e {
			if share[kind] < len(e[kind]) && n < maxExamples {
				share[kind]++
				n++
			}
		}
		if n == before {
			break
		}
	}
	for kind := range e {
		lines = append(lines, e[kind][:share[kind]]...)
	}
	return lines
}

// Judge compares what was noted with what arrived. Nothing should be under way any more: a delivery that arrives after its receipts were
// read is lost, one whose note comes later a phantom. The verdict passes when nothing is lost, corrupt, duplicate or phantom, and all of the
// run fitted into book and receipts. The caller names the verifier. It panics when the two are of different runs.
func Judge(b *Book, r *Receipts) report.Verdict {
	if b.run != r.run {
		panic(fmt.Sprintf("ledger: the book of run %v judged against receipts of %v", b.run, r.run))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var v report.Verdict
	var e examples
	v.Acknowledged, v.Refused, v.Unknown = b.Count()
	end := b.end()

	// Page by page of the receipts, each of which has one position; within the book they are some KiB apart.
	for first := uint64(0); first < end; first += 1 << receiptPageBits {
		for i := range b.stride {
			page := r.pages[pageKey{uint32(i), uint32(first >> receiptPageBits)}]
			for seq := first; seq < min(first+1<<receiptPageBits, end); seq++ {
				var d uint64
				if page != nil {
					d = page.get(seq)
				}
				o := b.Outcome(seq, i)
				if d == 0 {
					if o == Acknowledged {
						v.Lost++
						e.add(exampleLost, "lost: message %d to recipient %d", seq, i)
					}
					continue
				}
				received(&v, &e, seq, i, d, o)
			}
		}
	}
	for key, page := range r.pages {
		for at := range uint64(1 << receiptPageBits) {
			seq := uint64(key.page)<<receiptPageBits + at
			if d := page.get(seq); d != 0 && (seq >= end || int(key.position) >= b.stride) {
				received(&v, &e, seq, int(key.position), d, Unsent)
			}
		}
	}
	for _, c := range r.corrupt {
		e.add(exampleCorrupt, "corrupt: message %d to recipient %d has %v", c.Seq, c.Recipient, c.Why)
	}
	v.Examples = e.lines()
	whole := b.Beyond() == 0 && r.beyond == 0
	if !whole {
		v.Examples = append([]string{fmt.Sprintf("not judged: %d deliveries sent and %d received, beyond the %d that fit",
			b.Beyond(), r.beyond, int64(MaxDeliveries))}, v.Examples[:min(len(v.Examples), maxExamples-1)]...)
	}
	v.Pass = whole && v.Lost == 0 && v.Corrupt == 0 && v.Duplicates == 0 && v.Phantom == 0
	return v
}

// received counts a delivery that arrived; d is its four bits.
func received(v *report.Verdict, e *examples, seq uint64, i int, d uint64, o Outcome) {
	v.Received++
	if d&corruptFlag != 0 {
		v.Corrupt++
	}
	if d&alteredFlag != 0 {
		v.Altered++
	}
	again := d&countBits > 1
	switch o {
	case Acknowledged:
		if again {
			v.Duplicates++
			e.add(exampleDuplicate, "duplicate: message %d to recipient %d arrived %s", seq, i, times(d))
		}
	case Unknown:
		if again {
			v.Repeats++
		}
	default:
		v.Phantom++
		e.add(examplePhantom, "phantom: message %d to recipient %d arrived and was %v", seq, i, o)
	}
}

func times(d uint64) string {
	if d&countBits == countBits {
		return "three times or more"
	}
	return "twice"
}

// end is behind the last message that may have a note.
func (b *Book) end() uint64 {
	for i := len(b.pages) - 1; i >= 0; i-- {
		if b.pages[i].Load() != nil {
			return min(uint64(i+1)<<bookPageBits/uint64(b.stride)+1, MaxDeliveries/uint64(b.stride))
		}
	}
	return 0
}
