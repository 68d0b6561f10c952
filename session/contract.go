// Package session (stub contract: bodies are being written)
package session

import (
	"net/netip"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Options are the facts of one listener that decide replies. They are compiled once by NewServer.
type Options struct {
	Hostname        string
	Listener        string
	LMTP            bool          // LHLO instead of HELO/EHLO, one reply per recipient after the data (RFC 2033)
	Normalize       bool          // smtp.line_endings = "normalize"
	Hide            []string      // EHLO keywords not to offer, any case
	MaxMessageBytes int64         // limits.message_size; SIZE; default 25 MiB
	MaxRecipients   int           // limits.recipients; RCPTMAX; default 1000
	MaxErrors       int           // limits.errors; default 20; 0 keeps the default
	MaxLineBytes    int           // command line, CRLF included; default 2048
	MaxTransactions int           // MAILMAX; 0: no limit, and MAILMAX is not offered
	MaxReceived     int           // Received fields beyond which a message loops; default 100
	CommandTimeout  time.Duration // timeouts.command, cumulative from the reply to the end of the command line; default 5m
	DataTimeout     time.Duration // timeouts.data, cumulative over one message's data; default 10m
	// Accept decides about a forward-path: nil accepts. It must not block. relay is Peer.MayRelay.
	Accept func(path smtpcodec.Path, relay bool) *smtpcodec.Reply
}

// Server is what all sessions of a listener share: options, greeting and EHLO lines made once. Immutable.
type Server struct{}

func NewServer(o Options) *Server { panic("stub") }

// Resources are what sessions of one loop share. They belong to the loop's goroutine.
type Resources struct {
	Envelopes *envelope.List
	// Refuse, when set, is the answer to MAIL (memory, disk space, draining): 452 4.3.1 or 421 4.3.2.
	Refuse *smtpcodec.Reply
	// Observer is told of every reply decision worth counting or logging; may be nil.
	Observer Observer
}

// Stage is where in a session something was decided.
type Stage uint8

const (
	StageConnect Stage = iota
	StageHelo
	StageMail
	StageRcpt
	StageData    // DATA and BDAT commands
	StageMessage // the end of the data
	StageOther
	NumStages
)

// Observer counts and logs. Calls run on the loop, must not block, and borrow all arguments.
type Observer interface {
	// Replied is called for each final decision (2xx, 354, 4xx, 5xx).
	Replied(stage Stage, code uint16)
	// Refused is called in addition for each 4xx/5xx: arg is the command's argument (hostile bytes!), reason a word of a closed set.
	Refused(s *Session, stage Stage, r *smtpcodec.Reply, reason Reason, arg []byte)
}

// Reason is the closed set of why something was refused; see reasonNames.
type Reason uint8

// Peer is what is known at connect.
type Peer struct {
	Addr     netip.AddrPort
	MayRelay bool // listed in relay_from
	ID       envelope.ID
}

// Step is what the session wants next.
type Step uint8

const (
	NeedInput   Step = iota // feed more bytes when they come
	AwaitCommit             // take the envelope with TakeEnvelope, submit it, answer with Committed
	Close                   // send what was appended, then close
)

// Session is one SMTP or LMTP session without I/O. It belongs to one goroutine. The zero value is ready for Open.
type Session struct{}

// Open starts the session and appends the greeting.
func (s *Session) Open(sv *Server, res *Resources, p Peer, now time.Time, out []byte) ([]byte, Step) {
	panic("stub")
}

// Feed borrows in until it returns, uses consumed bytes of it, and appends replies to out. Unused bytes are fed again with what
// comes after them. It stops at the first step other than NeedInput.
func (s *Session) Feed(in []byte, now time.Time, out []byte) (consumed int, o []byte, step Step) {
	panic("stub")
}

// TakeEnvelope moves ownership of the finished envelope to the caller; id becomes its ID and stands in its Received field.
func (s *Session) TakeEnvelope(id envelope.ID) *envelope.Envelope { panic("stub") }

// Committed ends AwaitCommit. refusal nil means durable. The caller releases the envelope.
func (s *Session) Committed(refusal *smtpcodec.Reply, now time.Time, out []byte) ([]byte, Step) {
	panic("stub")
}

// Deadline is when Expire is due; the zero time means never (a suspended session).
func (s *Session) Deadline() time.Time { panic("stub") }

// Expire is called after the deadline: 421 4.4.2 and Close.
func (s *Session) Expire(now time.Time, out []byte) ([]byte, Step) { panic("stub") }

// Shutdown is called while draining: between transactions it appends 421 4.3.2 and gives Close; inside one it gives NeedInput and the
// session says 421 by itself after the message.
func (s *Session) Shutdown(now time.Time, out []byte) ([]byte, Step) { panic("stub") }

// Abort releases what the session holds; the connection is gone. Safe to call at any time but while AwaitCommit is pending with the
// envelope taken (the envelope is the caller's then), and then too.
func (s *Session) Abort() { panic("stub") }

// Peer gives what Open was told.
func (s *Session) Peer() *Peer { panic("stub") }

// ID is the session's id, Peer.ID.
func (s *Session) ID() envelope.ID { panic("stub") }

// Helo borrows the HELO, EHLO or LHLO name, empty before it.
func (s *Session) Helo() []byte { panic("stub") }

// Hasty says that the session closes while its client may still be sending (an error limit, a time limit, another protocol): the loop then
// reads on for a moment, so that the last reply is not lost to a reset. It is false after QUIT.
func (s *Session) Hasty() bool { panic("stub") }

func (st Stage) String() string { panic("stub") }

func (r Reason) String() string { panic("stub") }
