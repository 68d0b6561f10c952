package ledger

import (
	"slices"
	"sync"
)

// Corruption says what is wrong with a delivery that arrived.
type Corruption uint8

// Intact is the zero value.
const (
	Intact          Corruption = iota
	BodyChanged                // the body is not the one that was sent
	MarkMissing                // the address is of a run, but the message has no legible mark
	MarkContradicts            // the mark is of another message than the address
)

func (c Corruption) String() string {
	switch c {
	case Intact:
		return "intact"
	case BodyChanged:
		return "another body than was sent"
	case MarkMissing:
		return "no legible mark"
	case MarkContradicts:
		return "the mark of another message"
	}
	return "corrupt"
}

// Corrupt is one delivery that arrived corrupt.
type Corrupt struct {
	Seq       uint64
	Recipient int
	Why       Corruption
}

// MaxCorrupt bounds the list of corrupt deliveries in Receipts. All are counted; the list is for examples.
const MaxCorrupt = 1000

// A delivery has four bits in Receipts: how often it arrived, up to 3, and two flags.
const (
	countBits   = 3
	corruptFlag = 1 << 2
	alteredFlag = 1 << 3

	receiptPageBits  = 14 // deliveries in a page: 8 KiB
	receiptPageWords = 1 << receiptPageBits / 16
	maxReceiptPages  = MaxDeliveries >> receiptPageBits
)

// receiptPage has the deliveries to one position of consecutive messages: the receiver does not know the stride, and a page that a
// forged number brings about stays small.
type receiptPage [receiptPageWords]uint64

func (p *receiptPage) get(seq uint64) uint64 {
	at := seq % (1 << receiptPageBits)
	return p[at/16] >> (at % 16 * 4) & 15
}

type pageKey struct {
	position uint32
	page     uint32
}

// Receipts are what arrived of one run. The methods may be called from any goroutine; those of a Register grow while mail comes in.
// They take half a byte a delivery, at most 1 GiB (MaxDeliveries).
type Receipts struct {
	run RunID

	mu        sync.Mutex
	pages     map[pageKey]*receiptPage
	lastKey   pageKey // mail comes nearly in order: saves most look-ups
	last      *receiptPage
	corrupt   []Corrupt
	strangers int64
	beyond    int64
}

// NewReceipts gives empty ones.
func NewReceipts(run RunID) *Receipts {
	return &Receipts{run: run, pages: map[pageKey]*receiptPage{}}
}

// Run is the run that they are of.
func (r *Receipts) Run() RunID { return r.run }

// Strangers counts the deliveries that the same receiver got and that were of no run, or of another one that it did not count.
func (r *Receipts) Strangers() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.strangers
}

// Beyond counts the deliveries that had no room (MaxDeliveries).
func (r *Receipts) Beyond() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.beyond
}

// Corrupt gives corrupt deliveries in the order of their coming, at most MaxCorrupt.
func (r *Receipts) Corrupt() []Corrupt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.corrupt)
}

// Count says how often a delivery arrived, 3 for three times or more, and whether it was corrupt in any of them.
func (r *Receipts) Count(seq uint64, recipient int) (times int, corrupt bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key, ok := keyOf(seq, recipient)
	if !ok {
		return 0, false
	}
	page := r.pages[key]
	if page == nil {
		return 0, false
	}
	d := page.get(seq)
	return int(d & countBits), d&corruptFlag != 0
}

// Totals counts different deliveries that arrived, and of them those that were corrupt, had a header section that was altered, and
// arrived more than once. It reads everything.
func (r *Receipts) Totals() (received, corrupt, altered, repeated int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, page := range r.pages {
		for seq := range uint64(1 << receiptPageBits) {
			d := page.get(seq)
			if d&countBits > 0 {
				received++
			}
			if d&countBits > 1 {
				repeated++
			}
			corrupt += int64(d & corruptFlag / corruptFlag)
			altered += int64(d & alteredFlag / alteredFlag)
		}
	}
	return received, corrupt, altered, repeated
}

func keyOf(seq uint64, recipient int) (key pageKey, ok bool) {
	if seq >= MaxDeliveries || uint(recipient) >= MaxRecipients {
		return key, false
	}
	return pageKey{uint32(recipient), uint32(seq >> receiptPageBits)}, true
}

// add enters that a delivery arrived, once.
func (r *Receipts) add(seq uint64, recipient int, why Corruption, altered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key, ok := keyOf(seq, recipient)
	if !ok {
		r.beyond++
		return
	}
	page := r.last
	if page == nil || key != r.lastKey {
		if page = r.pages[key]; page == nil {
			if len(r.pages) >= maxReceiptPages {
				r.beyond++
				return
			}
			page = new(receiptPage)
			r.pages[key] = page
		}
		r.last, r.lastKey = page, key
	}
	at := seq % (1 << receiptPageBits)
	word, shift := &page[at/16], at%16*4
	if *word>>shift&countBits < countBits {
		*word += 1 << shift
	}
	if why != Intact {
		*word |= corruptFlag << shift
		if len(r.corrupt) < MaxCorrupt {
			r.corrupt = append(r.corrupt, Corrupt{seq, recipient, why})
		}
	}
	if altered {
		*word |= alteredFlag << shift
	}
}

// MaxRuns is how many runs a Register keeps apart. When another one begins, the one that began first is dropped.
const MaxRuns = 16

// Register keeps the receipts of several runs. The zero value is empty and ready.
type Register struct {
	mu        sync.Mutex
	runs      []*Receipts // in the order of their beginning
	strangers int64
	only      bool // take no other run than runs[0]
}

// Receipts gives those of a run, which go on growing, or nil.
func (g *Register) Receipts(run RunID) *Receipts {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.runs {
		if r.run == run {
			r.mu.Lock()
			r.strangers = g.strangers
			r.mu.Unlock()
			return r
		}
	}
	return nil
}

// Runs gives the runs it has receipts of, in the order of their beginning.
func (g *Register) Runs() []RunID {
	g.mu.Lock()
	defer g.mu.Unlock()
	var runs []RunID
	for _, r := range g.runs {
		runs = append(runs, r.run)
	}
	return runs
}

// Strangers counts the deliveries that were of no run.
func (g *Register) Strangers() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.strangers
}

// Enter enters that a message arrived for one recipient, whose address is given as it stood in the envelope. The address says which delivery it
// is; when it is no address of a run, because all mail went to a fixed one, the mark does, and the position is 0. A message of a run's address is
// corrupt when it has no mark or that of another message.
func (g *Register) Enter(recipient []byte, f Finding) {
	run, seq, i, addressed := ParseRecipient(recipient)
	why := Intact
	switch {
	case !addressed && !f.Marked:
		g.stranger()
		return
	case !addressed:
		run, seq, i = f.Mark.Run, f.Mark.Seq, 0
	case !f.Marked:
		why = MarkMissing
	case f.Mark.Run != run || f.Mark.Seq != seq:
		why = MarkContradicts
	}
	if why == Intact && !f.BodyIntact {
		why = BodyChanged
	}
	r := g.of(run)
	if r == nil {
		g.stranger()
		return
	}
	r.add(seq, i, why, f.Marked && !f.HeadIntact)
}

func (g *Register) stranger() {
	g.mu.Lock()
	g.strangers++
	g.mu.Unlock()
}

// of gives the receipts of a run, begun if need be; nil when no other run is wanted.
func (g *Register) of(run RunID) *Receipts {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.runs {
		if r.run == run {
			return r
		}
	}
	if g.only {
		return nil
	}
	if len(g.runs) == MaxRuns {
		g.runs = slices.Delete(g.runs, 0, 1)
	}
	r := NewReceipts(run)
	g.runs = append(g.runs, r)
	return r
}
