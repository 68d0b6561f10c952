// Package sink is the far end of a load test: a receiver for SMTP (RFC 5321) and LMTP (RFC 2033) that counts what arrives in a ledger.Register,
// discards it or stores it, and misbehaves on request.
//
// It speaks PIPELINING, 8BITMIME, SIZE, SMTPUTF8, CHUNKING, ENHANCEDSTATUSCODES and, if wanted, STARTTLS with a certificate made at start.
// Message data ends at <CRLF>.<CRLF> and nowhere else. Parameters of DSN (RFC 3461) are taken and ignored. It keeps no mail durable and
// relays none: its 250 means that the mail has been counted.
//
// What can be made to go wrong: replies by recipient (Rules; tempfail@ and permfail@ are built in), shares of 4yz and 5yz replies, delays
// by command, connections closed in mid-data, a rate limit, and three lies of its own (Lose, Corrupt, Repeat), with which a test of a load
// test proves that the verdict can fail. All chance comes from Options.Seed and the number of the connection.
//
// "XLEDGER run", from a loopback address, answers with the receipts of a run; Query asks for them.
//
// Each connection has a goroutine. It reads ahead as much as the client has sent and writes its replies when it has nothing left to read,
// so a command group (RFC 2920) costs one read and one write. Serve ends when all of them have.
package sink

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// Options of a Sink. Zero values mean the defaults named, and no faults.
type Options struct {
	Address  string // host:port, or "unix:" and a path; default 127.0.0.1:0
	LMTP     bool   // speak LMTP instead of SMTP
	Hostname string // in the greeting; default sink.test
	TLS      bool   // offer STARTTLS

	// MaxMessageBytes is the longest message data taken, dot-stuffing removed; more is read to its end and refused with 552 5.3.4. Default
	// 64 MiB.
	MaxMessageBytes int64
	// MaxRecipients in a mail transaction; more are refused with 452 4.5.3. Default 10,000, which is also the most that a run can use.
	MaxRecipients int
	// MaxLineBytes is the longest command line, CRLF included; RFC 5321 §4.5.3.1.4 requires 512 or more. A longer one is read to its end
	// and refused with 500 5.5.2; after another MiB the connection is closed. Default 4096.
	MaxLineBytes int
	// MaxConnections at a time; more get 421 4.3.2. Each takes about 50 KiB. Default 10,000.
	MaxConnections int
	// CommandTimeout is how long a command line may take, from the reply before to its end. Default 5 minutes.
	CommandTimeout time.Duration
	// IdleTimeout is how long the client may pause within message data, and in taking replies. Default 5 minutes.
	IdleTimeout time.Duration

	// Store is a directory for messages: each gets NAME.eml with the message data and NAME.json with the envelope. Default: discarded.
	Store string

	Rules  []Rule          // replies, delays and disconnections by recipient: ParseScript
	Shares Shares          // replies by chance
	Delays map[string]Span // by verb in capitals, before its reply; CONNECT is the greeting, END the end of data
	// CloseShare is the share of messages, 0 to 1, in whose data the connection is closed, when CloseAt octets of it have come.
	CloseShare float64
	CloseAt    int64

	// Rate is how many mail transactions a second may begin, on average, and Burst how many at once (default: a tenth of a second's, at
	// least 1). Over it MAIL gets 451 4.7.1, or 421 4.7.0 and the end of the connection with RateCloses. Zero means no limit.
	Rate       float64
	Burst      int
	RateCloses bool

	// Of each so many messages, one is acknowledged but not counted, or has an octet of its body changed, or is counted twice. Zero means none.
	Lose, Corrupt, Repeat int

	Seed uint64
	Now  func() time.Time // clock of the rate limit; default time.Now
}

// Shares are probabilities, 0 to 1, of a refusal: at RCPT and after the data. With SMTP the latter is drawn once a message, with LMTP for
// each recipient.
type Shares struct {
	SoftRcpt, HardRcpt float64 // 450 4.2.0, 550 5.1.1
	SoftData, HardData float64 // 451 4.3.0, 554 5.6.0
}

// Span is a duration drawn evenly between two; the same twice is fixed.
type Span struct{ Min, Max time.Duration }

// Counters of a Sink since it was made.
type Counters struct {
	Connections   int64 `json:"connections"`    // accepted, refused ones too
	Open          int64 `json:"open"`           // now
	TooMany       int64 `json:"too_many"`       // refused for MaxConnections
	Messages      int64 `json:"messages"`       // accepted for one recipient at least
	Deliveries    int64 `json:"deliveries"`     // accepted, by recipient
	Bytes         int64 `json:"bytes"`          // message data accepted
	RefusedRcpt   int64 `json:"refused_rcpt"`   // recipients refused at RCPT
	RefusedData   int64 `json:"refused_data"`   // recipients refused after the data
	OverRate      int64 `json:"over_rate"`      // mail transactions refused for Rate
	ClosedInData  int64 `json:"closed_in_data"` // connections closed for CloseShare or a rule
	Lost          int64 `json:"lost"`           // messages not counted for Lose
	Corrupted     int64 `json:"corrupted"`      // changed for Corrupt
	Repeated      int64 `json:"repeated"`       // counted twice for Repeat
	Handshakes    int64 `json:"handshakes"`     // of TLS, completed
	SyntaxErrors  int64 `json:"syntax_errors"`  // commands answered with 500 to 504 or 555
	StorageErrors int64 `json:"storage_errors"` // messages that could not be stored
}

type counters struct {
	connections, open, tooMany, messages, deliveries, bytes, refusedRcpt, refusedData, overRate, closedInData, lost, corrupted,
	repeated, handshakes, syntaxErrors, storageErrors atomic.Int64
}

// Sink is a receiver.
type Sink struct {
	o        Options
	listener net.Listener
	tls      *tls.Config
	register ledger.Register
	count    counters
	number   atomic.Uint64 // of messages begun
	bucket   bucket
	nameBase string // of stored messages
	// pause waits for d or the end of the context; a test puts another in its place.
	pause func(ctx context.Context, d time.Duration)

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	ended bool
}

// MaxRules bounds Options.Rules: each recipient is held against all of them.
const MaxRules = 1000

// New checks the options and listens; Serve accepts.
func New(o Options) (*Sink, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	o.Address = cmp.Or(o.Address, "127.0.0.1:0")
	o.Hostname = cmp.Or(o.Hostname, "sink.test")
	o.MaxMessageBytes = cmp.Or(o.MaxMessageBytes, 64<<20)
	o.MaxRecipients = cmp.Or(o.MaxRecipients, ledger.MaxRecipients)
	o.MaxLineBytes = cmp.Or(o.MaxLineBytes, 4096)
	o.MaxConnections = cmp.Or(o.MaxConnections, 10_000)
	o.CommandTimeout = cmp.Or(o.CommandTimeout, 5*time.Minute)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, 5*time.Minute)
	if o.Burst == 0 {
		o.Burst = max(1, int(o.Rate/10))
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Sink{o: o, conns: map[net.Conn]struct{}{}, nameBase: fmt.Sprintf("%016x", time.Now().UnixNano()), pause: pause}
	s.bucket = bucket{rate: o.Rate, burst: float64(o.Burst), left: float64(o.Burst), at: o.Now()}
	if o.TLS {
		var err error
		if s.tls, err = selfSigned(o.Hostname); err != nil {
			return nil, fmt.Errorf("sink: make a certificate: %w", err)
		}
	}
	if o.Store != "" {
		if err := os.MkdirAll(o.Store, 0o700); err != nil {
			return nil, fmt.Errorf("sink: %w", err)
		}
	}
	network, address := "tcp", o.Address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	var err error
	if s.listener, err = net.Listen(network, address); err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	return s, nil
}

// check refuses values without a meaning.
func (o *Options) check() error {
	share := func(v float64) bool { return v >= 0 && v <= 1 }
	switch {
	case o.MaxMessageBytes < 0, o.MaxRecipients < 0, o.MaxConnections < 0, o.CommandTimeout < 0, o.IdleTimeout < 0, o.CloseAt < 0,
		o.Burst < 0, o.Lose < 0, o.Corrupt < 0, o.Repeat < 0:
		return errors.New("a limit is negative")
	case o.MaxLineBytes != 0 && (o.MaxLineBytes < 512 || o.MaxLineBytes > MaxMaxLineBytes):
		return fmt.Errorf("MaxLineBytes is 512 to %d", MaxMaxLineBytes)
	case !share(o.Shares.SoftRcpt) || !share(o.Shares.HardRcpt) || !share(o.Shares.SoftRcpt+o.Shares.HardRcpt),
		!share(o.Shares.SoftData) || !share(o.Shares.HardData) || !share(o.Shares.SoftData+o.Shares.HardData), !share(o.CloseShare):
		return errors.New("a share is outside of 0 to 1")
	case o.Rate < 0 || math.IsNaN(o.Rate) || math.IsInf(o.Rate, 0):
		return errors.New("the rate is not a number of messages a second")
	case len(o.Rules) > MaxRules:
		return fmt.Errorf("more than %d rules", MaxRules)
	case strings.ContainsAny(o.Hostname, "\r\n "):
		return fmt.Errorf("%q is no host name", o.Hostname)
	}
	for verb, d := range o.Delays {
		if _, known := verbNamed(verb); !known && verb != verbConnect && verb != verbEnd {
			return fmt.Errorf("a delay for %q, which is no command", verb)
		}
		if d.Min < 0 || d.Max < d.Min {
			return fmt.Errorf("the delay %v to %v for %s", d.Min, d.Max, verb)
		}
	}
	return nil
}

// Addr is where it listens.
func (s *Sink) Addr() net.Addr { return s.listener.Addr() }

// Register holds what arrived.
func (s *Sink) Register() *ledger.Register { return &s.register }

// Counters says what has happened so far.
func (s *Sink) Counters() Counters {
	c := &s.count
	return Counters{
		Connections: c.connections.Load(), Open: c.open.Load(), TooMany: c.tooMany.Load(), Messages: c.messages.Load(),
		Deliveries: c.deliveries.Load(), Bytes: c.bytes.Load(), RefusedRcpt: c.refusedRcpt.Load(), RefusedData: c.refusedData.Load(),
		OverRate: c.overRate.Load(), ClosedInData: c.closedInData.Load(), Lost: c.lost.Load(), Corrupted: c.corrupted.Load(),
		Repeated: c.repeated.Load(), Handshakes: c.handshakes.Load(), SyntaxErrors: c.syntaxErrors.Load(), StorageErrors: c.storageErrors.Load(),
	}
}

// Serve accepts connections until the context ends, closes those that are open, and returns nil when their goroutines are done. It may be
// called once.
func (s *Sink) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer s.close()
	for backoff := time.Duration(0); ; {
		c, err := s.listener.Accept()
		switch {
		case err == nil:
			backoff = 0
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("sink: %w", err)
		default:
			// Out of descriptors, most likely: sessions that end give some back.
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			pause(ctx, backoff)
			continue
		}
		number := s.count.connections.Add(1)
		switch open, ended := s.add(c); {
		case ended:
			c.Close()
			return nil
		case !open:
			s.count.tooMany.Add(1)
			c.SetWriteDeadline(time.Now().Add(time.Second))
			c.Write([]byte("421 4.3.2 " + s.o.Hostname + " too many connections\r\n"))
			c.Close()
			continue
		}
		s.count.open.Add(1)
		sessions.Go(func() {
			defer s.count.open.Add(-1)
			defer s.remove(c)
			newSession(ctx, s, c, uint64(number)).run()
		})
	}
}

// add notes an open connection, unless there are too many, or Serve is ending.
func (s *Sink) add(c net.Conn) (open, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.conns) >= s.o.MaxConnections {
		return false, s.ended
	}
	s.conns[c] = struct{}{}
	return true, false
}

func (s *Sink) remove(c net.Conn) {
	c.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// close ends listener and connections.
func (s *Sink) close() {
	s.listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for c := range s.conns {
		c.Close()
	}
}

// Close gives the address back when Serve is not to be called.
func (s *Sink) Close() { s.close() }

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// bucket is a token bucket.
type bucket struct {
	mu          sync.Mutex
	rate, burst float64
	left        float64
	at          time.Time
}

// take takes a token if there is one.
func (b *bucket) take(now time.Time) bool {
	if b.rate == 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(b.burst, b.left+b.rate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
