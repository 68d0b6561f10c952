package ledger

import (
	"fmt"
	"math/bits"
	"sync/atomic"
)

// Outcome is what the client side knows of one delivery.
type Outcome uint8

// Two bits each in a Book.
const (
	Unsent       Outcome = iota // never attempted, or the connection was lost before the end of data
	Refused                     // 4yz or 5yz: to MAIL, to RCPT, or to the message data
	Unknown                     // the connection was lost between the end of data and its reply
	Acknowledged                // 2yz after the end of data
)

func (o Outcome) String() string {
	switch o {
	case Unsent:
		return "unsent"
	case Refused:
		return "refused"
	case Unknown:
		return "unknown"
	case Acknowledged:
		return "acknowledged"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// MaxDeliveries bounds a Book and the Receipts of a run: sequence numbers times stride. 2³¹ deliveries, more than a day at 20,000 a
// second, take 512 MiB in a Book. What is noted beyond is counted (Book.Beyond), not kept, and Judge does not pass such a run.
const MaxDeliveries = 1 << 31

const (
	bookPageBits  = 18 // deliveries in a page: 64 KiB, zeroed in some microseconds every 262,144 notes
	bookPageWords = 1 << bookPageBits / 32
)

type bookPage [bookPageWords]atomic.Uint64

// Book is the client side of a run: the outcome of each delivery, in two bits, in pages that come into being as they are needed. Its
// methods may be called from any goroutine and take no lock.
type Book struct {
	run    RunID
	stride int
	pages  [MaxDeliveries >> bookPageBits]atomic.Pointer[bookPage] // 64 KiB

	_      [64]byte // the counter changes with each message: on a cache line of its own
	next   atomic.Uint64
	_      [56]byte
	beyond atomic.Int64
}

// NewBook begins a run whose messages have at most stride recipients. stride is at least 1 and at most MaxRecipients.
func NewBook(run RunID, stride int) *Book {
	if stride < 1 || stride > MaxRecipients {
		panic(fmt.Sprintf("ledger: a book with stride %d", stride))
	}
	return &Book{run: run, stride: stride}
}

// Run is the run it was made for.
func (b *Book) Run() RunID { return b.run }

// Stride is the most recipients a message has.
func (b *Book) Stride() int { return b.stride }

// Next gives the next sequence number; the first is 0.
func (b *Book) Next() uint64 { return b.next.Add(1) - 1 }

// Issued is how many sequence numbers Next has given: all are below it.
func (b *Book) Issued() uint64 { return b.next.Load() }

// Beyond counts the notes that had no room.
func (b *Book) Beyond() int64 { return b.beyond.Load() }

// Note enters what became of message seq for its recipient at that position. It panics when the delivery has a note already: whatever
// the verdict then said, it would be wrong.
func (b *Book) Note(seq uint64, recipient int, o Outcome) {
	if uint(recipient) >= uint(b.stride) || o > Acknowledged {
		panic(fmt.Sprintf("ledger: note %v for recipient %d of a message with at most %d", o, recipient, b.stride))
	}
	if seq >= MaxDeliveries/uint64(b.stride) {
		b.beyond.Add(1)
		return
	}
	at := seq*uint64(b.stride) + uint64(recipient)
	page := b.pages[at>>bookPageBits].Load()
	if page == nil {
		page = b.grow(at >> bookPageBits)
	}
	shift := at % 32 * 2
	if old := page[at%(1<<bookPageBits)/32].Or(uint64(o) << shift); old>>shift&3 != 0 {
		panic(fmt.Sprintf("ledger: message %d to recipient %d is noted %v and was noted %v", seq, recipient, o, Outcome(old>>shift&3)))
	}
}

// grow makes a page; the first of several goroutines wins.
func (b *Book) grow(n uint64) *bookPage {
	b.pages[n].CompareAndSwap(nil, new(bookPage))
	return b.pages[n].Load()
}

// Outcome is what was noted.
func (b *Book) Outcome(seq uint64, recipient int) Outcome {
	if uint(recipient) >= uint(b.stride) || seq >= MaxDeliveries/uint64(b.stride) {
		return Unsent
	}
	at := seq*uint64(b.stride) + uint64(recipient)
	page := b.pages[at>>bookPageBits].Load()
	if page == nil {
		return Unsent
	}
	return Outcome(page[at%(1<<bookPageBits)/32].Load() >> (at % 32 * 2) & 3)
}

// Count adds up the notes. It reads the whole book, about a millisecond for ten million deliveries: counters would have to be
// shared by all cores with each note.
func (b *Book) Count() (acknowledged, refused, unknown int64) {
	for i := range b.pages {
		page := b.pages[i].Load()
		if page == nil {
			continue
		}
		for j := range page {
			a, r, u := countOutcomes(page[j].Load())
			acknowledged, refused, unknown = acknowledged+int64(a), refused+int64(r), unknown+int64(u)
		}
	}
	return acknowledged, refused, unknown
}

// countOutcomes counts the two-bit outcomes of a word.
func countOutcomes(w uint64) (acknowledged, refused, unknown int) {
	const low = 0x5555555555555555
	l, h := w&low, w>>1&low
	return bits.OnesCount64(l & h), bits.OnesCount64(l &^ h), bits.OnesCount64(h &^ l)
}
