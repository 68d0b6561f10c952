package auth

import (
	"container/list"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-sasl"
)

// The mechanisms, by their words in EHLO and AUTH.
const (
	SCRAMSHA256Plus = "SCRAM-SHA-256-PLUS" // RFC 7677, with channel binding
	SCRAMSHA256     = "SCRAM-SHA-256"      // RFC 7677
	EXTERNAL        = "EXTERNAL"           // RFC 4422 appendix A: the client certificate
	OAUTHBEARER     = "OAUTHBEARER"        // RFC 7628
	XOAUTH2         = "XOAUTH2"            // what OAUTHBEARER grew from
	PLAIN           = "PLAIN"              // RFC 4616
	LOGIN           = "LOGIN"              // never a standard, and asked for all the same
	CRAMMD5         = "CRAM-MD5"           // RFC 2195
)

var mechanisms = []string{SCRAMSHA256Plus, SCRAMSHA256, EXTERNAL, OAUTHBEARER, XOAUTH2, PLAIN, LOGIN, CRAMMD5}

// Mechanisms are the words of all mechanisms, strongest first.
func Mechanisms() []string { return slices.Clone(mechanisms) }

const (
	// MaxResponseBytes is the longest decoded response; longer ones are Malformed. RFC 4954 §4 wants lines of 12288 octets.
	MaxResponseBytes = 12288
	// MaxSteps bounds the responses of one exchange; no mechanism of ours needs more than four.
	MaxSteps = 8
)

// Result is what came of a step.
type Result uint8

const (
	Continue    Result = iota // 334 with the challenge; the next Step takes the answer
	Success                   // 235 2.7.0
	Failed                    // 535 5.7.8: wrong credentials, or none that may log in
	Malformed                 // 501 5.5.2: not what the mechanism wants
	Unavailable               // 454 4.7.0: the store cannot tell, or too much is waiting
	Throttled                 // 454 4.7.0: too many failures from this address or for this account
)

var resultNames = [...]string{"continue", "success", "failed", "malformed", "unavailable", "throttled"}

// String is the result's word in logs and metrics.
func (r Result) String() string {
	if int(r) < len(resultNames) {
		return resultNames[r]
	}
	return fmt.Sprintf("result(%d)", uint8(r))
}

// Outcome is the answer to one Step. With every result but Continue the exchange is over.
type Outcome struct {
	Result    Result
	Challenge []byte // Continue: to be sent in base64; may be empty. The receiver owns it.
	User      string // Success: the authorization identity
	Tried     string // not Success: the name that the client gave, "" when it has not yet. The client's own text, unchecked.
}

// Peer is what is known of a client. The service keeps it as long as the exchange.
type Peer struct {
	Addr        netip.AddrPort
	Listener    string
	Helo        string
	Session     string               // for logs and stores
	TLS         *tls.ConnectionState // ours; nil in clear, and where a proxy has ended it
	Secured     bool                 // the client's way to this machine is encrypted, by us or a proxy, or it is on this machine
	Certificate string               // identity of a verified client certificate, for EXTERNAL; "" = none
	// ServerCertificate is the leaf that the server showed in the handshake, for channel binding tls-server-end-point; nil: only
	// tls-exporter, which needs TLS 1.3.
	ServerCertificate *x509.Certificate
	// Offered are the mechanisms in the EHLO reply; nil means all that Offers allows. A SCRAM client that could bind the channel
	// and did not see SCRAM-SHA-256-PLUS, although it was offered, is refused: somebody took it out on the way (RFC 5802 §6).
	Offered []string
}

// Options of a Service. Zero values mean the defaults.
type Options struct {
	Store       Store           // who knows the users; several by Stores
	Hostname    string          // in CRAM-MD5 challenges; default "localhost"
	Workers     int             // steps that run at once; default twice the cores. More helps a store that waits for a network.
	MaxQueued   int             // steps that wait for a worker; beyond it they are Unavailable at once. Default 4096.
	StepTimeout time.Duration   // from Step to Unavailable, waiting included, whatever the store does; default 10 s
	CRAMMD5     bool            // offer CRAM-MD5, if the store has keys for it. Off because its keys are as good as passwords.
	Throttle    ThrottleOptions // how many failures are too many
	// FailureDelay is how late Failed and Throttled are told, and up to a tenth more; default 1 s, negative means none. No worker
	// and no goroutine waits meanwhile.
	FailureDelay time.Duration
	Log          *slog.Logger // troubles of stores; default none
	Rand         io.Reader    // nonces, challenges and the key of made-up salts; default crypto/rand
}

// Service checks credentials for all listeners. All methods may be called from any goroutine and none blocks, so event loops may call them.
// It has no goroutines while nothing is to be checked, and needs no closing.
type Service struct {
	o        Options
	fakeKey  [32]byte // makes keys for users that are not known
	throttle *throttle
	nonce    func() string // server part of SCRAM nonces; random
	troubles troubles

	mu      sync.Mutex
	queue   list.List // of *step, waiting
	running int       // workers
}

// New makes a service. It fails without a store, and when the source of randomness does.
func New(o Options) (*Service, error) {
	if o.Store == nil {
		return nil, errors.New("auth: no store of users")
	}
	if o.Hostname == "" {
		o.Hostname = "localhost"
	}
	if o.Workers <= 0 {
		o.Workers = 2 * runtime.GOMAXPROCS(0)
	}
	if o.MaxQueued <= 0 {
		o.MaxQueued = 4096
	}
	if o.StepTimeout <= 0 {
		o.StepTimeout = 10 * time.Second
	}
	if o.FailureDelay == 0 {
		o.FailureDelay = time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	s := &Service{o: o, throttle: newThrottle(o.Throttle), troubles: troubles{log: o.Log}}
	s.nonce = s.randomText
	if _, err := io.ReadFull(o.Rand, s.fakeKey[:]); err != nil {
		return nil, fmt.Errorf("auth: random key: %w", err)
	}
	return s, nil
}

// Supports reports whether the mechanism can be offered at all: SCRAM needs a store with keys, OAUTHBEARER and XOAUTH2 one that checks
// tokens, CRAM-MD5 the switch. Whether it suits a certain client is Offers' answer.
func (s *Service) Supports(mechanism string) bool {
	return slices.Contains(mechanisms, mechanism) && (mechanism != CRAMMD5 || s.o.CRAMMD5) && capable(s.o.Store, mechanism) != nil
}

// Offers reports whether the mechanism makes sense for this client: Supports, and SCRAM-SHA-256-PLUS only where the channel can be bound,
// EXTERNAL only with a verified client certificate. That passwords want TLS is the caller's rule.
func (s *Service) Offers(mechanism string, p Peer) bool {
	switch mechanism {
	case SCRAMSHA256Plus:
		if len(bindings(p)) == 0 {
			return false
		}
	case EXTERNAL:
		if p.Certificate == "" {
			return false
		}
	}
	return s.Supports(mechanism)
}

// Begin starts an exchange; nothing is checked yet. It returns nil for a mechanism that Supports denies; case counts. The caller ends the
// exchange by stepping to a result other than Continue, or by Cancel.
func (s *Service) Begin(mechanism string, p Peer) *Exchange {
	if !s.Supports(mechanism) {
		return nil
	}
	return &Exchange{s: s, mechanism: mechanism, peer: p}
}

// Exchange is one AUTH command, to its end. Step and Cancel may be called from any goroutine, but one Step at a time.
type Exchange struct {
	s         *Service
	mechanism string
	peer      Peer

	mu    sync.Mutex
	state exchangeState
	step  *step // the one under way

	// Of the worker that runs the step; the queue's lock hands them on to the next.
	server  sasl.Server // nil before the first step, and when relayed
	relayed relayed
	steps   int
	tried   string // the name that the client gave
	user    string // authorization identity, once proven
	pending *Login // to be checked when the mechanism's own work is done
}

type exchangeState uint8

const (
	awaitStep exchangeState = iota // begun, or Continue was told
	stepping                       // a step waits or runs
	over                           // cancelled, or a result other than Continue was told
)

// step is one response on its way. Whoever takes it first, answers: the worker, the store's call, the time limit, or Cancel, which
// answers nothing.
type step struct {
	x        *Exchange
	response []byte // nil: none came with AUTH
	done     func(Outcome)
	ctx      context.Context
	cancel   context.CancelFunc
	taken    atomic.Bool
	finished atomic.Bool // counted; the answer may be waiting for its time

	// Under Service.mu.
	waiting *list.Element // nil when not in the queue

	// Under Exchange.mu.
	timer *time.Timer
}

// Step hands over the client's response, decoded, and returns at once. present is false when AUTH came without an initial response; an
// empty one ("=") is present. Step owns response. done is called exactly once, from another goroutine, unless Cancel comes first; it must
// not block. Step panics when the last step is not answered or the exchange is over; after Cancel it does nothing.
func (x *Exchange) Step(response []byte, present bool, done func(Outcome)) {
	st := &step{x: x, response: response, done: done}
	if !present {
		st.response = nil
	} else if response == nil {
		st.response = []byte{}
	}
	x.mu.Lock()
	switch {
	case x.state == over && x.step == nil:
		x.mu.Unlock()
		return
	case x.state != awaitStep:
		x.mu.Unlock()
		panic(fmt.Sprintf("auth: %s: Step in state %d", x.mechanism, x.state))
	}
	x.state, x.step = stepping, st
	st.ctx, st.cancel = context.WithCancel(context.Background())
	st.timer = time.AfterFunc(x.s.o.StepTimeout, st.timeout)
	x.mu.Unlock()

	if len(response) > MaxResponseBytes {
		go st.finish(Outcome{Result: Malformed})
		return
	}
	if !x.s.enqueue(st) {
		x.s.troubles.warn("auth: too many steps wait for a worker", "mechanism", x.mechanism, "max_queued", x.s.o.MaxQueued)
		go st.finish(Outcome{Result: Unavailable})
	}
}

// Cancel ends the exchange without an answer: the client is gone, or said "*". After it returns no call of done begins; one that has
// begun may still run. It may be called at any time and again.
func (x *Exchange) Cancel() {
	x.mu.Lock()
	st := x.step
	was := x.state
	x.state, x.step = over, nil
	var timer *time.Timer
	if st != nil {
		timer = st.timer
	}
	x.mu.Unlock()
	if was == awaitStep {
		x.close()
		return
	}
	if st == nil || !st.taken.CompareAndSwap(false, true) {
		return
	}
	timer.Stop()
	st.cancel()
	if x.s.dequeue(st) {
		x.close()
	}
	// What runs is closed by its worker or by the end of its context.
}

// close lets go of what an exchange holds elsewhere. Nothing of the exchange runs.
func (x *Exchange) close() {
	if x.relayed != nil {
		x.relayed.stop()
	}
}

// answer tells the outcome, unless the step is answered or cancelled already.
func (st *step) answer(o Outcome) bool {
	x := st.x
	if !st.taken.CompareAndSwap(false, true) {
		return false
	}
	x.mu.Lock()
	timer := st.timer
	cancelled := x.state != stepping // just now, too late to keep the answer back
	switch {
	case cancelled:
	case o.Result == Continue:
		x.state, x.step = awaitStep, nil
	default:
		x.state = over
	}
	x.mu.Unlock()
	if cancelled {
		x.close()
	}
	timer.Stop()
	st.cancel()
	st.done(o)
	return true
}

// timeout answers for a step that is late. It may still wait or run.
func (st *step) timeout() {
	if st.finished.Load() || st.taken.Load() {
		return // the answer is there, and only held back
	}
	waited := st.x.s.dequeue(st)
	st.x.s.troubles.warn("auth: no answer in time", "mechanism", st.x.mechanism, "step_timeout", st.x.s.o.StepTimeout)
	st.answer(Outcome{Result: Unavailable})
	if waited {
		st.x.close()
	}
}

// finish counts the outcome and tells it, a refusal later.
func (st *step) finish(o Outcome) {
	if !st.finished.CompareAndSwap(false, true) {
		return
	}
	x, s := st.x, st.x.s
	if o.Result != Continue {
		x.close()
	}
	if o.Result != Success {
		o.Tried = x.tried
	}
	switch o.Result {
	case Success:
		s.throttle.succeeded(x.peer.Addr.Addr(), x.tried)
	case Failed:
		s.throttle.failed(x.peer.Addr.Addr(), x.tried)
	}
	delay := s.o.FailureDelay
	if delay <= 0 || o.Result != Failed && o.Result != Throttled {
		if !st.answer(o) {
			x.close() // cancelled or late while it ran
		}
		return
	}
	delay += mathrand.N(delay/10 + 1)
	x.mu.Lock()
	defer x.mu.Unlock()
	st.timer.Stop()
	st.timer = time.AfterFunc(delay, func() { st.answer(o) })
	if st.taken.Load() {
		st.timer.Stop()
	}
}

// enqueue hands the step to a worker, and starts one if it may. It returns false when too many wait.
func (s *Service) enqueue(st *step) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running < s.o.Workers {
		s.running++
		go s.work(st)
		return true
	}
	if s.queue.Len() >= s.o.MaxQueued {
		return false
	}
	st.waiting = s.queue.PushBack(st)
	return true
}

// dequeue takes out a step that still waits, and reports whether it did: no worker will see it then.
func (s *Service) dequeue(st *step) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.waiting == nil {
		return false
	}
	s.queue.Remove(st.waiting)
	st.waiting = nil
	return true
}

// work runs steps until none waits.
func (s *Service) work(st *step) {
	for {
		if st.taken.Load() {
			st.x.close() // cancelled or late before it ran
		} else {
			st.run()
		}
		s.mu.Lock()
		e := s.queue.Front()
		if e == nil {
			s.running--
			s.mu.Unlock()
			return
		}
		st = s.queue.Remove(e).(*step)
		st.waiting = nil
		s.mu.Unlock()
	}
}

// run is one step on a worker. A panic of a mechanism or a store ends the exchange and nothing else.
func (st *step) run() {
	defer func() {
		if r := recover(); r != nil {
			st.x.s.o.Log.Error("auth: panic in a step", "mechanism", st.x.mechanism, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			st.finish(Outcome{Result: Unavailable})
		}
	}()
	st.x.advance(st)
}

// Errors of mechanisms. ErrRefused is Failed, what is none of them is the store's trouble.
var (
	errMalformed = errors.New("auth: malformed response")
	errThrottled = errors.New("auth: too many failures")
)

// conclude turns an error into the outcome.
func (st *step) conclude(err error) {
	switch {
	case err == nil:
		st.finish(Outcome{Result: Success, User: st.x.user})
	case errors.Is(err, errMalformed):
		st.finish(Outcome{Result: Malformed})
	case errors.Is(err, errThrottled):
		st.finish(Outcome{Result: Throttled})
	case errors.Is(err, ErrRefused):
		st.finish(Outcome{Result: Failed})
	default:
		if st.ctx.Err() == nil {
			st.x.s.troubles.warn("auth: credentials could not be checked", "mechanism", st.x.mechanism, "error", err)
		}
		st.finish(Outcome{Result: Unavailable})
	}
}

// troubles logs what may happen a thousand times a second, at most once in troubleInterval.
type troubles struct {
	log     *slog.Logger
	mu      sync.Mutex
	last    time.Time
	skipped int
}

const troubleInterval = 5 * time.Second

func (t *troubles) warn(msg string, args ...any) {
	t.mu.Lock()
	now := time.Now()
	if !t.last.IsZero() && now.Sub(t.last) < troubleInterval {
		t.skipped++
		t.mu.Unlock()
		return
	}
	skipped := t.skipped
	t.last, t.skipped = now, 0
	t.mu.Unlock()
	if skipped > 0 {
		args = append(args, "not_logged", skipped)
	}
	t.log.Warn(msg, args...)
}
