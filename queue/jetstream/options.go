package jetstream

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Options say which cluster, which stream and how. Zero values mean the defaults named.
type Options struct {
	// URLs are the servers, nats:// or tls://. One that is alive is enough; the others are learnt from it. Default nats://127.0.0.1:4222.
	URLs []string
	// Stream is the name of the stream that holds the mail. Default MAIL. Its neighbours are called <Stream>_STATE, _HELD and _DEAD.
	Stream string
	// Subject is what messages are published to. Default mail.inbound. The neighbours use <Subject>.state.* and <Subject>.held.*.
	Subject string
	// Replicas is how many servers keep each message. Default 1. A stream with fewer is refused by Open.
	Replicas int
	// Create lets Open make streams, bucket and consumer that are missing. What exists is never changed.
	Create bool
	// Credentials is a file with a user's JWT and key; User and Password are the plain way.
	Credentials    string
	User, Password string
	// CA is a file of PEM certificates that may sign the servers'; Cert and Key are our own for servers that ask for one.
	CA, Cert, Key string
	// Durable is the name of the consumer that relays share. Default fastedge.
	Durable string
	// Batch is how a commit is published: fast, atomic, off, or auto, the one of these that is measured to be the fastest; the package comment has
	// the differences. Default auto.
	Batch string
	// Window is the most messages on their way to the servers without an acknowledgement. Default 4096.
	Window int
	// WindowBytes is the same in bytes, unless one message alone is larger. Default 64 MiB.
	WindowBytes int64
	// Timeout bounds every wait for the cluster; a commit gets a second more for each MiB. Default 5 s.
	Timeout time.Duration
	// Duplicates is how long the servers remember message ids. Default 2 min. A stream that remembers less is refused by Open.
	Duplicates time.Duration
	// MaxBytes bounds the stream that Create makes. Default 0: the servers' own bound.
	MaxBytes int64
	// DeadSubject is where dead messages are published, with the id behind it. Default: Subject with dead for its last
	// word, mail.dead; <Subject>.dead when it has one word.
	DeadSubject string
	// ObjectBucket keeps messages that are longer than the servers' max_payload. Default <Stream>_LARGE.
	ObjectBucket string
	// Hold is why messages are held: there is no next hop, and Lease gives none. Empty when there is one.
	Hold string
	// AckWait is when a leased message goes to another relay once its relay is silent. Default 30 s. Min 1 s.
	AckWait time.Duration
	// MaxAckPending is the most messages leased or waiting for their next attempt, over all relays, in the consumer that Create
	// makes; beyond it new messages wait in the stream. Default 65536.
	MaxAckPending int
	// Prefetch is the most messages fetched ahead of Lease, 64 MiB at most. Default 64.
	Prefetch int
	// Now is the clock for due times and for the breaker. Default time.Now.
	Now func() time.Time
	// Log gets what an operator should know. Default slog.Default().
	Log *slog.Logger
}

// Bounds that have no option.
const (
	maxPayloadShare   = 4 << 10                // kept free below the servers' max_payload for headers that a later move adds
	maxToHeaderBytes  = 12 << 10               // of Fastedge-To fields; further recipients are in Fastedge-Envelope alone
	maxFieldBytes     = 2 << 10                // of any other field for consumers outside; a longer one is left out
	maxInlineEnvelope = 24 << 10               // of an envelope's binary form in a field, a third more as text; the servers take headers up to 64 KiB
	maxReplyBytes     = 512                    // of a reply or reason that is kept
	maxStateBytes     = 256 << 10              // of the replies in a state record
	chunkBytes        = 128 << 10              // of an object; what other clients of object stores use
	maxInMemory       = 4 << 20                // an object up to this is kept in memory while leased; longer ones are read again
	maxPrefetchBytes  = 64 << 20               // fetched ahead
	maxLocalWaiting   = 65536                  // messages that this relay itself wakes; the cluster wakes the rest
	maxAcks           = 64                     // acknowledgements on their way at once
	maxMoves          = 16                     // the same of what is put into other streams: notes of attempts, held and dead messages
	maxUnsettled      = 1024                   // settled and not with the cluster yet; beyond it, or maxPrefetchBytes of them, nothing is leased
	stuckTries        = 3                      // failures of a settlement before an operator is told
	maxSettlePause    = 5 * time.Second        // between two of its tries
	statPatience      = 500 * time.Millisecond // of Stats for settlements on their way
	maxScan           = 100_000                // messages looked through for one id that nothing points to
	maxStateScan      = 100_000                // state records read for one list
	maxStatStates     = 1000                   // state records read for one Stats; with more, all of them count as waiting
	pageMessages      = 256                    // fetched at once by a list
	pageBytes         = 8 << 20                // the same in bytes
	maxAtomic         = 1000                   // messages of one atomic batch: the servers' limit
	minFast           = 4                      // fewer messages are published one by one
	maxPatience       = 30 * time.Second       // for one object of a sweep
	objectGrace       = 24 * time.Hour         // before an object without a message is removed
	maxSweep          = 1000                   // objects looked at by one sweep
	sweepEvery        = 6 * time.Hour
	bytesPerSecond    = 1 << 20 // what a commit's deadline grows by
	tick              = time.Second
	resendPause       = 100 * time.Millisecond
	defaultDuplicates = 2 * time.Minute
)

func (o *Options) defaults() error {
	def := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	if len(o.URLs) == 0 {
		o.URLs = []string{"nats://127.0.0.1:4222"}
	}
	def(&o.Stream, "MAIL")
	def(&o.Subject, "mail.inbound")
	def(&o.Durable, "fastedge")
	def(&o.Batch, "auto")
	if dot := strings.LastIndexByte(o.Subject, '.'); dot >= 0 && o.Subject[dot:] != ".dead" {
		def(&o.DeadSubject, o.Subject[:dot]+".dead")
	}
	def(&o.DeadSubject, o.Subject+".dead")
	def(&o.ObjectBucket, o.Stream+"_LARGE")
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.Window <= 0 {
		o.Window = 4096
	}
	if o.WindowBytes <= 0 {
		o.WindowBytes = 64 << 20
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Duplicates <= 0 {
		o.Duplicates = defaultDuplicates
	}
	if o.AckWait <= 0 {
		o.AckWait = 30 * time.Second
	}
	o.AckWait = max(o.AckWait, time.Second)
	if o.MaxAckPending <= 0 {
		o.MaxAckPending = 65536
	}
	if o.Prefetch <= 0 {
		o.Prefetch = 64
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	for _, name := range []struct{ what, value string }{
		{"stream", o.Stream}, {"durable", o.Durable}, {"object bucket", o.ObjectBucket},
	} {
		if strings.ContainsFunc(name.value, func(r rune) bool {
			return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		}) {
			return fmt.Errorf("jetstream: %s %q: letters, digits, _ and - only", name.what, name.value)
		}
	}
	for _, subject := range []string{o.Subject, o.DeadSubject} {
		for token := range strings.SplitSeq(subject, ".") {
			if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r == 0x7F || r == '*' || r == '>' || r == '$' }) {
				return fmt.Errorf("jetstream: subject %q: words of printable characters between dots, without wildcards", subject)
			}
		}
	}
	switch o.Batch {
	case "auto", "fast", "atomic", "off":
	default:
		return fmt.Errorf("jetstream: batch %q: auto, fast, atomic or off", o.Batch)
	}
	if o.Replicas < 1 || o.Replicas > 5 {
		return fmt.Errorf("jetstream: %d replicas: 1 to 5", o.Replicas)
	}
	return nil
}

// The streams beside the one that holds the mail, and their subjects.
func (o *Options) stateStream() string { return o.Stream + "_STATE" }
func (o *Options) heldStream() string  { return o.Stream + "_HELD" }
func (o *Options) deadStream() string  { return o.Stream + "_DEAD" }
func (o *Options) objStream() string   { return "OBJ_" + o.ObjectBucket }

func (o *Options) stateSubject(id string) string { return o.Subject + ".state." + id }
func (o *Options) heldSubject(id string) string  { return o.Subject + ".held." + id }
func (o *Options) deadSubject(id string) string  { return o.DeadSubject + "." + id }
