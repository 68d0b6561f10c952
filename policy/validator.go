package policy

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Stage is a point of a session at which validators are asked.
type Stage uint8

// The stages, in the order of a session. What a refusal does there is in package session.
const (
	AtConnect Stage = iota // before the greeting
	AtHelo                 // HELO, EHLO or LHLO
	AtTLS                  // a handshake is done
	AtAuth                 // a SASL exchange has succeeded; the 235 is not sent yet
	AtMail                 // MAIL
	AtRcpt                 // each RCPT
	AtData                 // DATA, or the first BDAT of a message
	AtMessage              // the data is complete and can be read
	AtQueued               // the queue has answered
	AtRset                 // RSET
	AtQuit                 // QUIT
	AtClose                // the session is over; nothing can be answered
	NumStages
)

var stageNames = [NumStages]string{"connect", "helo", "tls", "auth", "mail", "rcpt", "data", "message", "queued", "rset", "quit", "close"}

// String is the word for the stage in rules, logs and metrics.
func (st Stage) String() string {
	if st < NumStages {
		return stageNames[st]
	}
	return "unknown"
}

// ParseStage reads what String gives.
func ParseStage(word string) (Stage, error) {
	if i := slices.Index(stageNames[:], word); i >= 0 {
		return Stage(i), nil
	}
	return 0, fmt.Errorf("policy: %q is no stage", word)
}

// MayPend says that a validator may take its time at this stage. At the others the session does not wait.
func (st Stage) MayPend() bool { return st <= AtMessage }

// Stages is a set of stages.
type Stages uint16

// On gives the set of stages.
func On(stages ...Stage) (set Stages) {
	for _, st := range stages {
		set |= 1 << st
	}
	return set
}

// Has says that st is in the set.
func (s Stages) Has(st Stage) bool { return s&(1<<st) != 0 }

// Validator decides about what a client wants at some stages of its sessions. One Validator serves all sessions of a listener, on all
// event loops at the same time.
type Validator interface {
	// Stages says where it wants to be asked. It is called once, before any session.
	Stages() Stages
	// Validate looks at e and may set its reply; untouched means success. It runs on an event loop and must not block: what takes time
	// calls e.Pend, goes on elsewhere, and answers with Done or Fail, once. Everything that e holds is borrowed until Validate returns.
	//
	// An error is a failure of the validator's own: the client gets 451 4.3.0 and the log a line. A panic is the same.
	Validate(e *Event) error
}

// Rememberer is a Validator that wants Event.Slot.
type Rememberer interface {
	Validator
	// Remembers says so. It is called once, before any session.
	Remembers() bool
}

// Discreet is a Validator whose fields nobody but the queue shall see: they count for envelope.Envelope.Results and are not written into the message.
type Discreet interface {
	Validator
	// Discreet says so. It is called once, before any session.
	Discreet() bool
}

// Client is what is known of the peer. Slices are borrowed like the event.
type Client struct {
	Addr      netip.AddrPort // the client's, as the proxy tells it when there is one; zero on a unix socket
	ProxyAddr netip.AddrPort // the proxy's own address; zero without PROXY protocol
	ID        envelope.ID    // the session, as in the logs
	Listener  string
	MayRelay  bool   // listed in relay_from
	Helo      []byte // empty before HELO
	Protocol  string // RFC 3848 word: SMTP, ESMTPSA, ...
	TLS       *TLS   // nil in clear
	User      string // authorization identity after AUTH; empty before
	Mechanism string // SASL mechanism after AUTH
}

// TLS is what is known of an encrypted connection. It is immutable.
type TLS struct {
	Version     string // "TLS1.3"
	Cipher      string // "TLS_AES_128_GCM_SHA256"
	ServerName  string // SNI; hostile bytes are possible behind a proxy
	Certificate *Certificate
	Proxied     bool // ended at a proxy in front, which told so (PROXY v2)
}

// Certificate is the client's, nil when it gave none. It is immutable.
type Certificate struct {
	Verified    bool // by the authorities of tls.client_ca
	CommonName  string
	Subject     string   // RFC 2253
	Names       []string // DNS names and mail addresses of the subjectAltName
	Fingerprint string   // SHA-256 of the certificate, lower-case hex; empty behind a proxy
}

// Event is one question to a validator.
type Event struct {
	Stage Stage
	// Now is the session's time, from AtConnect to AtMessage: asking for it costs more than most validators.
	Now    time.Time
	Client Client
	// Envelope is the open transaction from AtMail on, nil elsewhere. Its data is there at AtMessage, to be read with Body. At AtRcpt it does
	// not have the recipient in question yet. At AtQueued it is the message that the queue has answered for.
	Envelope *envelope.Envelope
	// Path is the reverse-path at AtMail and the forward-path in question at AtRcpt.
	Path smtpcodec.Path
	// Size is what the client has announced at AtMail (0: nothing), and the data's size from AtMessage on, in bytes.
	Size int64
	// Reply is what the client will be answered. Code 0 until somebody sets it: success, in the session's own words. At AtQueued it is
	// the reply to the message.
	Reply smtpcodec.Reply
	// Fields are header fields to be put before the message, each whole: name, colon, value, CRLF. From AtMail to AtMessage. It comes empty, with
	// room that may be appended to.
	Fields []byte
	// Host is the client's verified name, for the Received field, in letters, digits, hyphens, underscores and dots. AtMessage: it is taken when
	// Validate returns, also when that has pended.
	Host string
	// Slot is a place that a Rememberer has for itself in each session, for what it will need at a later stage; nil for other validators. It
	// belongs to the event loop: a pending question has none.
	Slot *any

	pending *Pending
}

// ErrReply is the failure of a validator that has set a reply which no client could read.
var ErrReply = errors.New("policy: reply code out of range")

// Set makes r the reply. A 2yz accepts, with other words than the session's own (354 at AtData accepts too); 4yz and 5yz refuse; 421 and 221 close
// the session as well.
func (e *Event) Set(r smtpcodec.Reply) { e.Reply = r }

// Refuse sets a reply whose enhanced code has the class of code. text is one line, or several separated by \n.
func (e *Event) Refuse(code, subject, detail uint16, text string) {
	e.Reply = smtpcodec.Reply{Code: code, Enhanced: smtpcodec.EnhancedCode{Class: code / 100, Subject: subject, Detail: detail}, Text: text}
}

// Body reads the message data from its start, dot-stuffing removed, without fields of ours. AtMessage only.
func (e *Event) Body() io.Reader {
	if e.Envelope == nil {
		return &bodyReader{}
	}
	return &bodyReader{at: e.Envelope.Data.First()}
}

// Pend suspends the session until the answer is there, and gives a copy of the event that lives as long as it is wanted. Validate must
// return nil and leave the event alone afterwards. It panics at a stage that does not wait.
func (e *Event) Pend() *Pending {
	if !e.Stage.MayPend() {
		panic("policy: a validator may not pend at " + e.Stage.String())
	}
	if e.pending == nil {
		p := &Pending{Event: *e}
		p.Event.Client.Helo = slices.Clone(e.Client.Helo)
		if e.Envelope != nil {
			p.body = e.Envelope.Data.First()
			p.Event.Envelope = e.Envelope.CloneHead()
		}
		p.Event.Path = e.Path.Clone()
		p.Event.Fields = slices.Clone(e.Fields)
		p.Event.Slot = nil
		e.pending = p
	}
	return e.pending
}

// Pended says that Pend was called, and what it gave. It is for the session.
func (e *Event) Pended() *Pending { return e.pending }

// Pending is a question that is answered later. Its Event is a copy: it may be read by any goroutine, and the session no longer looks at
// its Reply or Fields.
type Pending struct {
	Event

	mu      sync.Mutex
	decided bool
	reply   smtpcodec.Reply
	fields  []byte
	err     error
	wake    func(*Pending)
	gone    func()
	body    *pool.Chunk
}

// Done answers: reply as in Event.Reply (code 0: success), fields as in Event.Fields. Only the first answer counts; true says that it was
// this one. Any goroutine; it does not block.
func (p *Pending) Done(reply smtpcodec.Reply, fields []byte) bool {
	return p.decide(reply, fields, nil, nil)
}

// Fail answers that the validator could not decide: 451 4.3.0. Like Done otherwise.
func (p *Pending) Fail(err error) bool {
	if err == nil {
		err = errors.New("policy: failed without an error")
	}
	return p.decide(smtpcodec.Reply{}, nil, err, nil)
}

// decide answers. counter, if there is one, counts an answer that counts, before anybody is woken.
func (p *Pending) decide(reply smtpcodec.Reply, fields []byte, err error, counter *atomic.Uint64) bool {
	p.mu.Lock()
	if p.decided {
		p.mu.Unlock()
		return false
	}
	p.decided, p.reply, p.fields, p.err, p.body = true, reply, fields, err, nil
	wake := p.wake
	p.wake, p.gone = nil, nil
	if counter != nil {
		counter.Add(1)
	}
	p.mu.Unlock()
	if wake != nil {
		wake(p)
	}
	return true
}

// Arm says whom to wake: wake is called once, by the goroutine that answers, or here and now when the answer is there already; never after
// Cancel. It must not block. It is for whoever drives the session.
func (p *Pending) Arm(wake func(*Pending)) {
	p.mu.Lock()
	if !p.decided {
		p.wake = wake
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	wake(p)
}

// Cancel says that nobody waits any more: later answers are ignored, and the body ends. When it returns, nobody reads the body.
func (p *Pending) Cancel() {
	p.mu.Lock()
	gone := p.gone
	p.decided, p.wake, p.gone, p.body = true, nil, nil, nil
	p.mu.Unlock()
	if gone != nil {
		gone()
	}
}

// OnCancel says whom to tell that nobody waits any more: gone is called once by Cancel, never after an answer, and must not block. It is
// for the validator.
func (p *Pending) OnCancel(gone func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.decided {
		p.gone = gone
	}
}

// Decision is the answer. It is for the session, after it was woken.
func (p *Pending) Decision() (reply smtpcodec.Reply, fields []byte, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reply, p.fields, p.err
}

// Body reads the message data like Event.Body, from any goroutine, until the question is answered or the client is gone: then Read gives
// io.ErrUnexpectedEOF. Each call begins at the start.
func (p *Pending) Body() io.Reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &bodyReader{at: p.body, of: p}
}

// bodyReader walks the chunks of a message. of guards them, where the reader may outlive them.
type bodyReader struct {
	at   *pool.Chunk
	used int
	of   *Pending
}

func (r *bodyReader) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.of != nil {
		r.of.mu.Lock()
		defer r.of.mu.Unlock()
		if r.of.decided {
			return 0, io.ErrUnexpectedEOF
		}
	}
	for r.at != nil {
		if n = copy(p, r.at.Bytes()[r.used:]); n > 0 {
			r.used += n
			return n, nil
		}
		r.at, r.used = r.at.Next(), 0
	}
	return 0, io.EOF
}
