// Package envelope holds the value that moves from an edge to a queue: who sends to whom (RFC 5321 §2.3.1), what is known of the
// client, and the message data, byte for byte as it came.
//
// An edge takes an Envelope from its List, fills it, and gives it away with queue.Writer.Submit; it comes back with the commit
// and is released to the same List. Byte slices in an Envelope point into the envelope's own arena (or, decoded, into the
// record it was read from) and live until Release.
package envelope

import (
	"net/netip"
	"slices"
	"time"

	"github.com/fastedge/fastedge/pool"
)

// BodyType is the BODY parameter of MAIL (RFC 6152, RFC 3030).
type BodyType uint8

// The zero value means that the client gave no BODY parameter.
const (
	BodyUnstated BodyType = iota
	Body7Bit
	Body8BitMIME
	BodyBinaryMIME
)

// Ret is the RET parameter of MAIL (RFC 3461 §4.3).
type Ret uint8

// The zero value means that the client gave no RET parameter.
const (
	RetUnstated Ret = iota
	RetFull
	RetHdrs
)

// Notify is the NOTIFY parameter of RCPT (RFC 3461 §4.1) as a set. Zero means that the client gave none.
type Notify uint8

// NotifyNever excludes the others.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// Recipient is one forward-path with its parameters.
type Recipient struct {
	Path   []byte // mailbox without angle brackets; "postmaster" may stand without a domain
	ORcpt  []byte // ORCPT as sent (addr-type;xtext), empty when not given; RFC 3461 §4.2
	Notify Notify
}

// Client is what the edge knows of the peer.
type Client struct {
	Addr     netip.AddrPort // zero on a unix socket
	Helo     []byte         // HELO, EHLO or LHLO name; empty when none was given
	Protocol string         // RFC 3848 word: SMTP, ESMTP, LMTP, ...
	Listener string         // name of the listener
	Session  ID             // session id, as in the logs
	User     []byte         // authorization identity after AUTH (RFC 4954), empty without
}

// MaxAnswerBytes is the longest Idempotency.Answer, 8 KiB. A queue refuses a message with a longer one.
const MaxAnswerBytes = 8 << 10

// Idempotency is a key under which the client may ask for the same submission again without its being done twice. The queue keeps it in
// the same record as the message, so that neither is there without the other. The zero value means that the client gave none.
type Idempotency struct {
	Key     [32]byte // SHA-256 over credential and key; zero means none, and then the other fields count for nothing
	Payload [32]byte // SHA-256 over what was submitted
	Answer  []byte   // what the edge needs to give the same answer again; at most MaxAnswerBytes; in the envelope's arena
}

// Given says that there is a key.
func (i *Idempotency) Given() bool { return i.Key != [32]byte{} }

// Envelope is one message on its way into a queue.
type Envelope struct {
	ID          ID
	ReversePath []byte // mailbox without angle brackets, empty for <>
	EnvID       []byte // ENVID as sent (xtext), RFC 3461 §4.4
	Body        BodyType
	Ret         Ret
	SMTPUTF8    bool // RFC 6531 §3.4
	RequireTLS  bool // RFC 8689 §4.2: hand on only over TLS, to who keeps to it
	Recipients  []Recipient
	Client      Client
	Arrived     time.Time
	Results     []byte // what was found out about client and sender, as in Authentication-Results (RFC 8601) behind our name; empty when nothing was
	Metadata    []byte // a JSON object of the submitter's, carried and not looked at; empty without
	Idempotency Idempotency
	Trace       []byte     // our header fields, Received the last, CRLF included; they stand before Data when the message is handed on. Ends with an empty line where Data would be taken for more of the last one
	Data        pool.Chain // message data as sent, dot-stuffing removed

	arena []byte
	home  *List
	idle  bool
}

// Keep copies p into the envelope and gives the copy, which lives until Release. It does not allocate once the envelope has
// been used for a message of the same size.
func (e *Envelope) Keep(p []byte) []byte {
	if len(p) == 0 {
		return nil
	}
	start := len(e.arena)
	e.arena = append(e.arena, p...)
	return e.arena[start:len(e.arena):len(e.arena)]
}

// KeepString is Keep for a string.
func (e *Envelope) KeepString(p string) []byte {
	if len(p) == 0 {
		return nil
	}
	start := len(e.arena)
	e.arena = append(e.arena, p...)
	return e.arena[start:len(e.arena):len(e.arena)]
}

// CloneHead gives a copy of everything but the data, on memory of its own and on no List.
func (e *Envelope) CloneHead() *Envelope {
	c := *e
	c.Data, c.arena, c.home = pool.Chain{}, nil, nil
	c.ReversePath, c.EnvID = slices.Clone(e.ReversePath), slices.Clone(e.EnvID)
	c.Client.Helo, c.Client.User = slices.Clone(e.Client.Helo), slices.Clone(e.Client.User)
	c.Trace, c.Results = slices.Clone(e.Trace), slices.Clone(e.Results)
	c.Metadata, c.Idempotency.Answer = slices.Clone(e.Metadata), slices.Clone(e.Idempotency.Answer)
	c.Recipients = slices.Clone(e.Recipients)
	for i := range c.Recipients {
		r := &c.Recipients[i]
		r.Path, r.ORcpt = slices.Clone(r.Path), slices.Clone(r.ORcpt)
	}
	return &c
}

// Size is the length of the message as handed on: trace field and data.
func (e *Envelope) Size() int64 { return int64(len(e.Trace)) + e.Data.Len() }

// AddRecipient appends a forward-path, copying its bytes.
func (e *Envelope) AddRecipient(path, orcpt []byte, notify Notify) {
	e.Recipients = append(e.Recipients, Recipient{Path: e.Keep(path), ORcpt: e.Keep(orcpt), Notify: notify})
}

// Release gives the data's chunks and the envelope back to their lists. The caller must own it and not touch it again.
func (e *Envelope) Release() {
	if e.idle {
		panic("envelope: released twice")
	}
	e.Data.Release()
	recipients, arena, home := e.Recipients, e.arena, e.home
	if pool.Poisoning() {
		for i := range arena {
			arena[i] = 0xDB
		}
	}
	clear(recipients)
	*e = Envelope{Recipients: recipients[:0], arena: arena[:0], home: home, idle: true}
	if home != nil {
		home.put(e)
	}
}

// List recycles envelopes and holds the chunk list that their data comes from. It is shared or not as that list is.
type List struct {
	Chunks *pool.List
	free   []*Envelope
}

// maxIdleEnvelopes and maxKeptArena bound what a List keeps: 256 envelopes of at most 4 KiB of addresses each is 1 MiB.
const (
	maxIdleEnvelopes = 256
	maxKeptArena     = 4 << 10
	maxKeptRcpts     = 64
)

// NewList gives a list for one goroutine.
func NewList(chunks *pool.List) *List { return &List{Chunks: chunks} }

// Get gives an empty envelope owned by the caller.
func (l *List) Get() *Envelope {
	if n := len(l.free); n > 0 {
		e := l.free[n-1]
		l.free[n-1] = nil
		l.free = l.free[:n-1]
		e.idle = false
		return e
	}
	return &Envelope{home: l}
}

func (l *List) put(e *Envelope) {
	if len(l.free) < maxIdleEnvelopes && cap(e.arena) <= maxKeptArena && cap(e.Recipients) <= maxKeptRcpts {
		l.free = append(l.free, e)
	}
}
