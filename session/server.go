package session

import (
	"strconv"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Options are the facts of one listener that decide replies. NewServer compiles them once; zero values mean the defaults named.
type Options struct {
	// Hostname stands in the greeting and in Received fields. Default "localhost".
	Hostname string
	// Listener is the listener's name, carried in envelopes.
	Listener string
	// LMTP asks for LHLO instead of HELO and EHLO, and gives one reply per recipient after the data (RFC 2033).
	LMTP bool
	// HTTP is for an edge that takes messages by HTTP and speaks to the session in their place: EHLO, LogIn, MAIL, RCPT, BDAT. Trace fields say so,
	// and the 250 does not hold the id, which such an edge tells elsewhere.
	HTTP bool
	// Normalize lets a bare LF end a command line and turns it into CRLF in message data, where it never ends the data. Otherwise,
	// and for a bare CR always, a command or message that has one is refused.
	//
	// Deviation: RFC 5321 §2.3.8 knows no line end but CRLF. This is for clients that cannot be mended; it is off by default.
	Normalize bool
	// Hide lists EHLO keywords not to offer, in any case. What belongs to a hidden one is refused as if it did not exist.
	Hide []string
	// MaxMessageBytes is the largest message accepted, counted after dot-unstuffing and without the final dot; it is what SIZE
	// announces (RFC 1870) and holds without EHLO too. Default 25 MiB.
	MaxMessageBytes int64
	// MaxRecipients is how many forward-paths a transaction may have; further ones get 452 4.5.3. RFC 5321 §4.5.3.1.8 wants 100
	// or more. Default 1000.
	MaxRecipients int
	// MaxErrors is how many faulty commands are answered; the next one gets 421 and the session ends. Default 20.
	MaxErrors int
	// MaxLineBytes is the longest command line accepted, CRLF included; RFC 5321 §4.5.3.1.4 requires 512 or more. A longer one is
	// read to its end and refused with 500 5.5.2. Default 2048.
	MaxLineBytes int
	// MaxTransactions is how many MAIL commands a session may have (MAILMAX, RFC 9422); the next one gets 421. Zero: no limit,
	// and MAILMAX is not announced.
	MaxTransactions int
	// MaxReceived is how many Received fields a message may have before it is taken to loop (RFC 5321 §6.3). Default 100.
	MaxReceived int
	// CommandTimeout is the time from a reply to the end of the next command line, however its bytes trickle in. Default 5 minutes
	// (RFC 5321 §4.5.3.2.7).
	CommandTimeout time.Duration
	// DataTimeout is the time for one message's data, from the 354 or the first BDAT to its end. Default 10 minutes.
	DataTimeout time.Duration
	// Accept decides about a forward-path: nil or a 2yz reply accepts it, anything else is the answer, and 421 closes too. Nil
	// accepts all. It runs on the loop, must not block, and borrows path. relay is Peer.MayRelay, or that the client has logged in.
	Accept func(path smtpcodec.Path, relay bool) *smtpcodec.Reply

	// TLS says whether STARTTLS is offered, and needed. A Peer with TLS has it already.
	TLS TLSMode
	// Auth lists the SASL mechanisms to offer (RFC 4954), strongest first, in their own spelling. EXTERNAL is offered to clients
	// with a verified certificate, and -PLUS mechanisms where the TLS is our own. Empty: no AUTH.
	Auth []string
	// AuthInClear offers AUTH without TLS too: for listeners that only this machine reaches.
	AuthInClear bool
	// AuthRequired refuses MAIL before AUTH with 530 5.7.0.
	AuthRequired bool
	// MaxAuthFailures is how many failed AUTH commands are answered with 535; the next one gets 421. Default 3.
	MaxAuthFailures int
	// MaxJunk is how many commands that bring no mail on its way (NOOP, RSET, VRFY, EXPN, HELP, HELO and EHLO) a session may have for
	// each message; the next one gets 421. Default 100.
	MaxJunk int
	// MinDataRate is how many bytes of message data a client must send in a second, averaged over a minute; a slower one gets 421.
	// Zero: no limit but DataTimeout.
	MinDataRate int64
	// Validators decide, in order, at the stages that they name; the first that refuses is the last that is asked. They are asked
	// after the session's own checks and Accept.
	Validators []policy.Validator
	// AuthservID is our name in Authentication-Results fields (RFC 8601 §2.5). Fields that bear it already are taken out of messages: they are
	// forged. Empty: messages are not looked at.
	AuthservID string
	// PolicyTimeout is how long a validator may take; then it has failed: 451 4.3.0. The same holds for a step of AUTH: 454 4.7.0.
	// Default 30 seconds.
	PolicyTimeout time.Duration
}

// TLSMode says what a listener does about encryption.
type TLSMode uint8

// STARTTLS is not offered, offered, or needed before MAIL and AUTH (RFC 3207 §4).
const (
	TLSOff TLSMode = iota
	TLSOpportunistic
	TLSRequired
)

const (
	defaultMessageBytes = 25 << 20
	defaultRecipients   = 1000
	defaultErrors       = 20
	defaultLineBytes    = 2048
	defaultReceived     = 100
	defaultAuthFailures = 3
	defaultJunk         = 100
)

func (o *Options) setDefaults() {
	setDefault(&o.Hostname, "localhost")
	setDefault(&o.MaxMessageBytes, defaultMessageBytes)
	setDefault(&o.MaxRecipients, defaultRecipients)
	setDefault(&o.MaxErrors, defaultErrors)
	setDefault(&o.MaxLineBytes, defaultLineBytes)
	setDefault(&o.MaxReceived, defaultReceived)
	setDefault(&o.CommandTimeout, 5*time.Minute)
	setDefault(&o.DataTimeout, 10*time.Minute)
	setDefault(&o.MaxAuthFailures, defaultAuthFailures)
	setDefault(&o.MaxJunk, defaultJunk)
	setDefault(&o.PolicyTimeout, 30*time.Second)
}

func setDefault[T comparable](value *T, otherwise T) {
	var zero T
	if *value == zero {
		*value = otherwise
	}
}

// Server is what all sessions of a listener share: the options and every text that can be made beforehand. It is immutable and may
// be used by any number of goroutines.
type Server struct {
	Options          // with the defaults filled in; for reading only
	greeting  []byte // the whole 220
	offers    [numSecurities]offers
	chunking  bool
	oversized refusal // SIZE= over the limit
	maxLine   int     // of a command
	at        [policy.NumStages][]placed
	slots     int // of validators that remember
}

// placed is a validator with its place among those that remember, -1 without one, and the word for its refusals.
type placed struct {
	policy.Validator
	slot     int
	reason   Reason
	discreet bool // its fields are for the envelope only
}

// offers is what EHLO says and allows at one degree of security.
type offers struct {
	ehlo       []byte // what stands before the client's name in the answer to EHLO or LHLO
	ehloRest   []byte // and behind it: CRLF and all further lines
	params     smtpcodec.Offer
	mechanisms []string
}

// NewServer compiles o. It panics when a validator names a stage that there is not.
func NewServer(o Options) *Server {
	o.setDefaults()
	sv := &Server{Options: o, maxLine: o.MaxLineBytes}

	protocol := "ESMTP"
	if o.LMTP {
		protocol = "LMTP"
	}
	sv.greeting = []byte("220 " + o.Hostname + " " + protocol + " Mail Gateway\r\n")
	for sec := range sv.offers {
		sv.offers[sec] = offersOf(&o, security(sec))
	}
	sv.chunking = offered(&o, "CHUNKING")
	if len(o.Auth) > 0 {
		sv.maxLine = max(sv.maxLine, maxAuthLineBytes)
	}
	for _, v := range o.Validators {
		stages := v.Stages()
		if stages >= 1<<policy.NumStages {
			panic("session: a validator names a stage that there is not")
		}
		one := placed{v, -1, kindReasons[policy.KindOf(v)], false}
		if r, ok := v.(policy.Rememberer); ok && r.Remembers() {
			one.slot = sv.slots
			sv.slots++
		}
		if d, ok := v.(policy.Discreet); ok {
			one.discreet = d.Discreet()
		}
		for st := range policy.NumStages {
			if stages.Has(st) {
				sv.at[st] = append(sv.at[st], one)
			}
		}
	}

	limit := strconv.FormatInt(o.MaxMessageBytes, 10)
	sv.oversized = refuse(552, 3, 4, "Message size exceeds "+limit+" limit", ReasonSize)
	return sv
}

// Resources are what the sessions of one loop share. They belong to the loop's goroutine.
type Resources struct {
	// Envelopes recycles envelopes and holds the chunk list that message data is drawn from.
	Envelopes *envelope.List
	// Refuse, when set, is the answer to MAIL: 452 4.3.1 when memory or disk is short, 421 4.3.2 (which closes) while draining.
	Refuse *smtpcodec.Reply
	// RefuseReason says why, where the reply's code can't: memory rather than disk. ReasonNone leaves it to the code.
	RefuseReason Reason
	// Observer is told of every reply; may be nil.
	Observer Observer

	event   policy.Event // what validators are asked, one at a time
	free    *transaction // idle ones, linked by next
	idle    int
	scratch []byte // where a Received field is put together
	waste   []byte // where data is decoded that is thrown away
}

// maxIdleTransactions bounds the free list: 1,024 of some 200 bytes are 200 KiB per loop.
const maxIdleTransactions = 1024

// wasteBytes is the piece in which refused data is decoded. Its content is never looked at.
const wasteBytes = 8 << 10

// transaction gives an empty transaction with an envelope, recycled when there is one.
func (r *Resources) transaction() *transaction {
	tx := r.free
	if tx == nil {
		tx = new(transaction)
	} else {
		r.free, tx.next = tx.next, nil
		r.idle--
	}
	tx.env = r.Envelopes.Get()
	return tx
}

// release takes a transaction back, and its envelope when it still has one.
func (r *Resources) release(tx *transaction) {
	if tx.env != nil {
		tx.env.Release()
	}
	*tx = transaction{asked: tx.asked[:0], paths: tx.paths[:0], ends: tx.ends[:0], fields: tx.fields[:0]}
	if r.idle < maxIdleTransactions && cap(tx.paths) <= wasteBytes && cap(tx.fields) <= wasteBytes {
		tx.next, r.free = r.free, tx
		r.idle++
	}
}

// Stage is where in a session something was decided.
type Stage uint8

// The stages of a session.
const (
	StageConnect Stage = iota
	StageHelo
	StageTLS
	StageAuth
	StageMail
	StageRcpt
	StageData    // DATA and BDAT commands
	StageMessage // the end of the data
	StageOther
	NumStages
)

var stageNames = [NumStages]string{"connect", "helo", "tls", "auth", "mail", "rcpt", "data", "message", "other"}

// String gives the stage as a word for logs and metrics.
func (st Stage) String() string {
	if st < NumStages {
		return stageNames[st]
	}
	return "unknown"
}

// Observer counts and logs. Calls run on the loop, must not block, and borrow all arguments.
type Observer interface {
	// Replied is called once for each decision, with its reply code. The replies per recipient of LMTP are one decision.
	Replied(stage Stage, code uint16)
	// Refused is called in addition for each 4yz and 5yz. arg is the command's argument, or the line when there was no command in
	// it: hostile bytes, to be quoted before they are printed.
	Refused(s *Session, stage Stage, r *smtpcodec.Reply, reason Reason, arg []byte)
	// ValidatorFailed is called when a validator did not decide: an error, a panic, or no answer in time. The client gets 451 4.3.0 where
	// it can be told.
	ValidatorFailed(s *Session, at policy.Stage, err error)
}
