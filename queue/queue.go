// Package queue says how an edge hands mail to what takes responsibility for it, and how a relay takes it from there.
//
// An edge gives each message to a Writer as a Submission; the Writer gathers everything that arrived during the last commit into
// the next batch and hands it to a Backend, which returns when the batch is durable. The edge's Owner is then told once per commit.
// A relay leases messages from a Source and settles them. An Inspector is what the queue commands of the command line use.
// queue/spool implements all three; every engine passes queue/queuetest.
package queue

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/smtpcodec"
)

// What a submission can fail with. An engine may wrap them; the edges turn them into replies.
var (
	// ErrFull: the writer or the engine holds as much as it may; 452 4.3.1.
	ErrFull = errors.New("queue: full")
	// ErrNoSpace: free space on the engine's storage is below its reserve; 452 4.3.1.
	ErrNoSpace = errors.New("queue: not enough free space")
	// ErrUnavailable: the engine's storage is elsewhere and did not answer in time; 451 4.4.0. The message may have been stored.
	ErrUnavailable = errors.New("queue: unreachable")
	// ErrClosed: shutting down; 421 4.3.2.
	ErrClosed = errors.New("queue: closed")
	// ErrNotFound: no message with that id.
	ErrNotFound = errors.New("queue: no such message")
	// ErrLeased: the message is being handed on right now.
	ErrLeased = errors.New("queue: message is being handed on")
	// ErrCorrupt: what is stored does not match its checksum and must not be handed on.
	ErrCorrupt = errors.New("queue: stored message is damaged")
)

// What Refusal gives.
var (
	replyFull    = smtpcodec.Reply{Code: 452, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 3, Detail: 1}, Text: "Queue is full, try again later"}
	replyNoSpace = smtpcodec.Reply{Code: 452, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 3, Detail: 1}, Text: "Insufficient system storage, try again later"}
	replyClosed  = smtpcodec.Reply{Code: 421, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 3, Detail: 2}, Text: "Shutting down, try again later"}
	replyAway    = smtpcodec.Reply{Code: 451, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 4, Detail: 0}, Text: "Queue is unreachable, try again later"}
	replyTrouble = smtpcodec.Reply{Code: 451, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 3, Detail: 0}, Text: "Error queuing message, try again later"}
)

// Refusal turns what a submission failed with, or what Room says, into the reply that the client gets; nil stays nil. The reply is
// shared: it must not be changed.
func Refusal(err error) *smtpcodec.Reply {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrFull):
		return &replyFull
	case errors.Is(err, ErrNoSpace):
		return &replyNoSpace
	case errors.Is(err, ErrUnavailable):
		return &replyAway
	case errors.Is(err, ErrClosed):
		return &replyClosed
	}
	return &replyTrouble
}

// Submission is one message on its way to durability. The caller owns it and its envelope again when Owner.Committed has it.
type Submission struct {
	Env   *envelope.Envelope // Env.ID is set by the edge
	Owner Owner
	Token any   // the owner's own; the queue does not look at it
	Err   error // set before Committed: nil means durable
}

// Owner is who submitted: an event loop, or a waiting HTTP handler.
type Owner interface {
	// Committed is called once per commit with all submissions of this owner in the batch, on the writer's goroutine. It must
	// not block. batch is borrowed until it returns; the submissions in it are the owner's again.
	Committed(batch []*Submission)
}

// Backend makes batches durable. Calls come from one goroutine at a time.
type Backend interface {
	// Commit returns when every submission of the batch is durable or has its Err set. It borrows the envelopes until it
	// returns. An error in one submission does not concern the others unless it is set on them too.
	Commit(batch []*Submission)
	// Room says nil when a new message could be taken now, or ErrFull, ErrNoSpace or ErrUnavailable. It is cheap, and any goroutine may call it:
	// edges ask before they let a client send a message.
	Room() error
	// Close makes everything settled so far durable and lets go of the storage.
	Close() error
}

// Remembered is one stored idempotency key. Its message arrived at ID.Time().
type Remembered struct {
	ID envelope.ID
	envelope.Idempotency
}

// Rememberer is an engine that keeps idempotency keys in the record of their message, and beyond the message's own end. It does not
// compare them: two messages with one key are two messages. That is for who submits them.
type Rememberer interface {
	// Remembered calls yield for each key whose message arrived at or after since, to the millisecond, also of messages that are done
	// by now, until yield returns false. Of one key that was given twice the later message comes later. It is meant for the start,
	// before the first commit. What yield is given is its own.
	Remembered(since time.Time, yield func(Remembered) bool) error
}

// State is where a message stands.
type State uint8

// A message is ready (due now), waiting (for its next attempt), leased (being handed on), held (by an operator or for want of a
// next hop), dead (refused for good by the next hop, or too old: kept with the reply until an operator decides) or damaged.
const (
	Ready State = iota
	Waiting
	Leased
	Held
	Dead
	Damaged
)

var stateNames = [...]string{"ready", "waiting", "leased", "held", "dead", "damaged"}

func (s State) String() string { return stateNames[s] }

// MarshalText makes a state its name in JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's name.
func (s *State) UnmarshalText(text []byte) error {
	for i, name := range stateNames {
		if name == string(text) {
			*s = State(i)
			return nil
		}
	}
	return errors.New("queue: unknown state " + string(text))
}

// RcptState is what has become of one recipient.
type RcptState uint8

// Pending recipients are still to be tried; Delivered and Failed are final.
const (
	Pending RcptState = iota
	Delivered
	Failed
)

var rcptStateNames = [...]string{"pending", "delivered", "failed"}

func (s RcptState) String() string { return rcptStateNames[s] }

// MarshalText makes a recipient's state its name in JSON.
func (s RcptState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a recipient state's name.
func (s *RcptState) UnmarshalText(text []byte) error {
	for i, name := range rcptStateNames {
		if name == string(text) {
			*s = RcptState(i)
			return nil
		}
	}
	return errors.New("queue: unknown recipient state " + string(text))
}

// Outcome is what the last attempt said of one recipient. Reply is the next hop's reply or the local error, at most 512 bytes,
// printable; it is kept and shown.
type Outcome struct {
	State RcptState
	Reply string
}

// Delivery is one leased message. It belongs to the caller until Settle.
type Delivery struct {
	Env      *envelope.Envelope // addresses and facts; Env.Data is empty: read the message with Open
	Size     int64              // bytes of the message: trace field and data
	Attempts int                // attempts before this one
	Outcomes []Outcome          // one per recipient of Env, as of the last attempt; only Pending ones are to be tried
	// Open gives the message as it is to be handed on: trace field, then data, checksum already verified. The caller closes it.
	Open func() (io.ReadCloser, error)
}

// Source hands out messages for the next hop. Methods may be called from any goroutine.
type Source interface {
	// Lease blocks until a message is due and gives it to this caller alone, the oldest due first, or returns ctx's error or
	// ErrClosed. A damaged message is never leased.
	Lease(ctx context.Context) (*Delivery, error)
	// Settle ends the lease: outcomes has one entry per recipient. With a Pending one left the message is due again at next;
	// otherwise, with a Failed one, it becomes Dead; otherwise it is done and forgotten. After a crash a settled message may
	// be leased again (at least once), but a message is never lost.
	Settle(d *Delivery, outcomes []Outcome, next time.Time) error
	// Kill makes the message Dead whatever its recipients say (it is too old, or can't be handed on), keeping outcomes.
	Kill(d *Delivery, outcomes []Outcome, reason string) error
}

// Entry is one message as the queue commands show it.
type Entry struct {
	ID          envelope.ID `json:"id"`
	State       State       `json:"state"`
	Arrived     time.Time   `json:"arrived"`
	Size        int64       `json:"size"`
	ReversePath string      `json:"reverse_path"`
	Recipients  []EntryRcpt `json:"recipients"`
	Client      string      `json:"client"`
	Helo        string      `json:"helo"`
	User        string      `json:"user,omitempty"`    // who had logged in
	Results     string      `json:"results,omitempty"` // of SPF and the like, as in Authentication-Results
	// Metadata is the submitter's JSON object; left out when it is none.
	Metadata   json.RawMessage `json:"metadata,omitempty"`
	RequireTLS bool            `json:"require_tls,omitempty"` // RFC 8689
	Protocol   string          `json:"protocol"`
	Listener   string          `json:"listener"`
	Attempts   int             `json:"attempts"`
	Next       time.Time       `json:"next,omitzero"`
	Reason     string          `json:"reason,omitempty"` // why it is held, dead or damaged
}

// EntryRcpt is one recipient of an Entry.
type EntryRcpt struct {
	ForwardPath string    `json:"forward_path"`
	State       RcptState `json:"state"`
	Reply       string    `json:"reply,omitempty"`
}

// Stats counts what an engine holds.
type Stats struct {
	Messages   map[string]int `json:"messages"` // by state name, every state present
	Bytes      int64          `json:"bytes"`    // of messages not yet done
	Oldest     time.Time      `json:"oldest,omitzero"`
	Committed  uint64         `json:"committed"` // since start
	Commits    uint64         `json:"commits"`   // batches since start
	Syncs      uint64         `json:"syncs"`
	SyncErrors uint64         `json:"sync_errors"`
	Damaged    uint64         `json:"damaged"` // records found damaged since start
	Segments   int            `json:"segments"`
	FreeBytes  int64          `json:"free_bytes"`
	Durability string         `json:"durability"`
	Alarm      string         `json:"alarm,omitempty"` // what an operator must look at now
	// Partial says that not all of the queue could be asked: Messages and Bytes are those of what could. Alarm says why.
	Partial bool `json:"partial,omitempty"`
	// Parts are the engines behind an engine made of several, by name. Messages, Bytes and Damaged above are their sums.
	Parts map[string]Stats `json:"parts,omitempty"`
}

// Inspector is what the queue commands need. Any goroutine.
type Inspector interface {
	Stats() Stats
	// List calls yield for each message, oldest first, until it returns false.
	List(yield func(Entry) bool) error
	Show(id envelope.ID) (Entry, error)
	// Cat writes the message as it would be handed on.
	Cat(id envelope.ID, w io.Writer) error
	Hold(id envelope.ID, reason string) error
	// Release makes a held or dead message ready again; failed recipients of a dead one become pending.
	Release(id envelope.ID) error
	// Retry makes a waiting message due now.
	Retry(id envelope.ID) error
	// Drop forgets the message for good.
	Drop(id envelope.ID) error
}
