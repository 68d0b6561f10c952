package loop

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/logline"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

// Listener is one address that clients connect to.
type Listener struct {
	Name string
	// Network is "tcp" or "unix".
	Network string
	// Address is host:port, or the path of a unix socket. Port 0 picks a free one: see Server.Addr.
	Address string
	// Session decides every reply on this listener.
	Session *session.Server
	// MayRelay says whether a client address may send to any domain; nil means none may. Clients of a unix socket always may, and those
	// whose address a proxy does not know never.
	MayRelay func(netip.Addr) bool
	// Proxies says whether a peer is a proxy that must send a PROXY header; nil means none is, and who sends one is cut off. TCP only.
	Proxies func(netip.Addr) bool
	// Gate counts connections per client; nil has no limits. Connections for which a proxy knows no address are not counted.
	Gate *policy.Gate
	// TLS is for STARTTLS, which Session offers or not, and for Implicit; nil: none. It is used as it is for every handshake, so that
	// what its callbacks choose may change while the server runs. A listener with TLS must have a Session whose MaxLineBytes is at most 32 KiB.
	TLS *tls.Config
	// Implicit makes the handshake the first thing on a connection (RFC 8314 §3.3), behind a PROXY header.
	Implicit bool
	// TLSFacts makes what sessions and validators see of a handshake. It runs on the handshake's goroutine. nil: version, cipher and
	// server name. Giving nil fails the handshake.
	TLSFacts func(tls.ConnectionState) *policy.TLS
	// Auth works SASL out; nil: every AUTH is answered with 454.
	Auth *auth.Service
	// GreetDelay holds the greeting back to see who does not wait for it (RFC 5321 §3.1 has the server speak first); zero: no delay.
	// Clients that may relay are not made to wait.
	GreetDelay time.Duration
	// RefuseEarly answers who speaks before the greeting with 421; otherwise they are counted only.
	RefuseEarly bool
}

// Options of a Server. Zero values mean the defaults named.
type Options struct {
	Listeners []Listener
	Writer    *queue.Writer
	// Budget bounds the bytes of message data held by all loops: limits.memory.
	Budget *pool.Budget
	// Loops is the number of event loops. Default: the cores that the process may use.
	Loops int
	// MaxConnections is the most connections open at once over all listeners: limits.connections; more get 421 4.3.2. It must stay below
	// the descriptor limit with room for the queue and the relay. Default 20000.
	MaxConnections int
	// MaxStashBytes is how much a client may send while its session waits for a commit or does not read its replies, before its
	// socket is not read any more. Default 64 KiB.
	MaxStashBytes int
	// MaxUnreadBytes is how many bytes of replies may wait for a client that does not read them before its connection is closed. Default 512 KiB.
	MaxUnreadBytes int
	// UnreadTimeout is how long a client that owes reads may make no progress. Default 30 s.
	UnreadTimeout time.Duration
	// MaxHandshakes is how many TLS handshakes may be under way at once, stalled ones included: limits.handshakes. Beyond it STARTTLS gets
	// 454 4.7.0, and implicit TLS is closed. A stalled one takes some 20 KiB. Default 4096.
	MaxHandshakes int
	// HandshakeTimeout is the time for one. Default 30 s.
	HandshakeTimeout time.Duration
	// ProxyTimeout is the time for a PROXY header. Default 5 s.
	ProxyTimeout time.Duration
	// Tick is the resolution of all time limits. Default 250 ms.
	Tick time.Duration
	Log  *slog.Logger
	// Lines gets the line that every message causes, some at a time, in LineFormat. Its Write must take whole lines and not block, and
	// may be called by all loops. nil: no such lines.
	Lines      io.Writer
	LineFormat logline.Format
	Meter      Meter // may be nil
}

// Meter hands out the counters of one loop.
type Meter interface {
	NewLoop() LoopMeter
}

// LoopMeter counts what happens on one loop. All calls come from that loop's goroutine and must not block or allocate.
type LoopMeter interface {
	Connection(listener int, r ConnResult)
	OpenConnections(listener int, delta int)
	Reply(stage session.Stage, code uint16)
	Refusal(stage session.Stage, reason session.Reason, code uint16)
	// Message counts a message that got its answer: size in bytes, ack from the end of data to the reply.
	Message(protocol string, accepted bool, size int64, ack time.Duration)
	// Handshake counts a TLS handshake: the version that was agreed on ("TLS1.3", empty when it failed) and how long it took, the client's
	// share included.
	Handshake(ok bool, version string, d time.Duration)
	// Event counts something rare.
	Event(e Event)
	// Callback is the time one callback took.
	Callback(d time.Duration)
}

// ConnResult is what became of a new connection.
type ConnResult uint8

// Connections are accepted, over limits.connections, or refused while draining; or they have run into a limit of their listener's Gate.
// Those of a proxy are counted once it has said whose they are.
const (
	ConnAccepted ConnResult = iota
	ConnOverLimit
	ConnDraining
	ConnPerAddress
	ConnPerPrefix
	ConnRate
	NumConnResults
)

// Event is something rare that a loop counts.
type Event uint8

// The events.
const (
	EventPaused     Event = iota // a client's socket is not read for a while
	EventStashFull               // a client sent too much behind a suspended session and could not be paused
	EventSlowReader              // closed: the client does not read its replies
	EventTimeout                 // closed: time limit
	EventPanic                   // our bug: one connection closed
	EventOrphan                  // the client left before its message was committed; the message stays

	EventProxyMissing     // closed: a listed proxy that sent something else, or nothing in time
	EventProxyUnlisted    // closed: a PROXY header from a peer that is not listed
	EventProxyBad         // closed: a malformed PROXY header, or half of one
	EventProxyHealthCheck // a listed proxy that has connected and left, or sent LOCAL and left

	EventEarlyTalker     // a client that did not wait for the greeting
	EventHandshakeFailed // closed: no TLS handshake came about
	EventHandshakeLimit  // STARTTLS refused or implicit TLS closed: limits.handshakes
	EventPlainDiscarded  // bytes in clear behind STARTTLS were thrown away
	EventTLSError        // closed: TLS broke after the handshake
	EventValidatorFailed // a validator did not decide
	NumEvents
)

// ErrStopped is Serve's error when the event loops ended unasked: the process should exit and be started again.
var ErrStopped = errors.New("loop: the event loops stopped unasked")

// Server runs the event loops.
type Server struct {
	o    Options
	log  *slog.Logger
	open atomic.Int64 // connections, all loops

	handshakes atomic.Int64  // under way, all loops
	tokens     chan struct{} // one for each handshake that computes

	engines  []*engine
	draining atomic.Bool
	stopping atomic.Bool

	mu      sync.Mutex
	serving bool                    // under mu
	loops   atomic.Pointer[[]*loop] // copy on write under mu
}

// New binds the listeners, so that an address in use is an error here. Serve runs them.
func New(o Options) (*Server, error) {
	if o.Loops == 0 {
		o.Loops = runtime.NumCPU()
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 20000
	}
	if o.MaxStashBytes == 0 {
		o.MaxStashBytes = 64 << 10
	}
	if o.MaxUnreadBytes == 0 {
		o.MaxUnreadBytes = 512 << 10
	}
	if o.UnreadTimeout == 0 {
		o.UnreadTimeout = 30 * time.Second
	}
	if o.MaxHandshakes == 0 {
		o.MaxHandshakes = 4096
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 30 * time.Second
	}
	if o.ProxyTimeout == 0 {
		o.ProxyTimeout = 5 * time.Second
	}
	if o.Tick == 0 {
		o.Tick = 250 * time.Millisecond
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, l := range o.Listeners {
		if l.TLS != nil && l.Session.MaxLineBytes > plainBytes/2 {
			return nil, fmt.Errorf("loop: listener %q: command lines of %d bytes do not go with TLS", l.Name, l.Session.MaxLineBytes)
		}
		if l.Implicit && l.TLS == nil {
			return nil, fmt.Errorf("loop: listener %q: implicit TLS without a certificate", l.Name)
		}
	}
	s := &Server{o: o, log: o.Log, tokens: make(chan struct{}, runtime.NumCPU())}
	s.loops.Store(new([]*loop))
	if err := s.newEngines(); err != nil {
		return nil, err
	}
	return s, nil
}

// Addr gives the address that listener i is bound to, with the port that was picked.
func (s *Server) Addr(i int) string {
	for _, e := range s.engines {
		for j, li := range e.listeners {
			if li == i {
				return e.addrs[j]
			}
		}
	}
	return ""
}

// Connections says how many are open. Any goroutine.
func (s *Server) Connections() int { return int(s.open.Load()) }

// admit counts one more connection unless that would be too many, to the connection, whatever other loops admit meanwhile.
func (s *Server) admit() bool { return claim(&s.open, s.o.MaxConnections) }

// claim adds one to n unless it would be more than most.
func claim(n *atomic.Int64, most int) bool {
	for {
		had := n.Load()
		if had >= int64(most) {
			return false
		}
		if n.CompareAndSwap(had, had+1) {
			return true
		}
	}
}

// Serve runs the event loops until Close ends them, or one of them fails. It blocks. After Close it returns at once.
func (s *Server) Serve() error {
	s.mu.Lock()
	closed := s.stopping.Load()
	s.serving = !closed
	s.mu.Unlock()
	if closed {
		return nil
	}
	stopTick := make(chan struct{})
	defer close(stopTick)
	go s.ticker(stopTick)
	errs := make(chan error, len(s.engines))
	for _, e := range s.engines {
		go func() {
			err := e.run()
			if err == nil && !s.stopping.Load() {
				err = ErrStopped
			}
			errs <- err
		}()
	}
	var first error
	for range s.engines {
		if err := <-errs; err != nil && first == nil {
			first = err
			s.Close()
		}
	}
	s.Settle()
	return first
}

// Settle does what was posted to the loops after they ended: messages whose commit came later than Close are logged and counted, and
// their memory is given back. It is called after Serve has returned, once the Writer is closed; nobody else touches the loops then.
func (s *Server) Settle() {
	for _, lp := range *s.loops.Load() {
		lp.runMailbox()
		lp.flushLines()
	}
}

// WaitUp returns when every listener takes connections, or Serve has failed. Serve must have been called or be called by another goroutine.
func (s *Server) WaitUp() {
	for _, e := range s.engines {
		<-e.booted
	}
}

// Drain refuses new connections with 421, lets open transactions finish, answers 421 to everybody else, and returns when no
// connection is left or with ctx's error. Serve goes on until Close.
func (s *Server) Drain(ctx context.Context) error {
	s.draining.Store(true)
	for _, lp := range *s.loops.Load() {
		lp.post(task{kind: taskDrain})
	}
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for s.open.Load() > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("loop: %d connections still open: %w", s.open.Load(), ctx.Err())
		case <-poll.C:
		}
	}
	return nil
}

// Close ends the event loops and with them every connection. Serve returns. Without Serve it lets go of the ports.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping.Swap(true) {
		return
	}
	for _, e := range s.engines {
		if s.serving {
			e.stop()
		} else {
			e.bootedNow()
		}
	}
}

// ticker makes time pass on every loop that has connections.
func (s *Server) ticker(stop <-chan struct{}) {
	t := time.NewTicker(s.o.Tick)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
			for _, lp := range *s.loops.Load() {
				if lp.conns.Load() > 0 || lp.unlogged.Load() {
					lp.post(task{kind: taskTick})
				}
			}
		}
	}
}

func newIDSource() *envelope.IDSource {
	var seed [32]byte
	rand.Read(seed[:]) // never fails
	return envelope.NewIDSource(seed)
}
