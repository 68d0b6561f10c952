package resolver

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/spf"
)

const (
	// JostleAfter is how long a question must have been open before a new one may push it out.
	JostleAfter = 200 * time.Millisecond
	// MaxWaitingPerQuestion times MaxInflight is how many lookups may wait in all, and times MaxPerClient how many of one client's may wait for questions
	// that are open already; more are Failed. 16 × 4,096 × 40 bytes are 2.5 MiB.
	MaxWaitingPerQuestion = 16
	// MaxTries is how often a question is sent, over all servers, by UDP and TCP.
	MaxTries = 10
	// MaxTCPFailures is after how many lost connections a question is given up at a server.
	MaxTCPFailures = 3
	// StaleRecheck is how long an answer past its time is served before the servers are asked again (RFC 8767 §5).
	StaleRecheck = 30 * time.Second

	never = int64(1<<63 - 1)
)

// ErrClosed is what LookupSync says after Close.
var ErrClosed = errors.New("resolver: closed")

// Resolver asks and remembers. Any goroutine may use it.
type Resolver struct {
	o     Options
	log   *slog.Logger
	cache *caches
	began time.Time // zero of the resolver's clock

	hits, negativeHits, failureHits, staleHits atomic.Uint64

	wake chan struct{} // the driver is to look at the agenda; one is enough
	done chan struct{} // closed by Close
	all  sync.WaitGroup
	ctx  context.Context // of TCP dialling
	stop context.CancelFunc

	dripTimeout, idleTimeout time.Duration // of TCP, real time; changed by tests only

	mu       sync.Mutex // guards what follows
	closed   bool
	calls    map[spf.Query]*call
	oldest   *call // list in the order of their start
	newest   *call
	agenda   agenda
	again    allowance // of retransmissions, over all zones
	waiting  int
	clients  map[netip.Addr]share // of lookups that wait
	zones    map[string]*zone     // with open questions
	servers  []*server
	hedges   float64 // how many may be sent
	random   entropy // used by the driver alone, but for the choice of sockets; under mu
	arena    []byte  // queries to be sent; the driver's
	st       Stats
	maxWaits int
}

// waiter is a lookup that waits.
type waiter struct {
	done   func(spf.Answer)
	client netip.Addr
	opened bool // its question
}

// share is what waits for one client.
type share struct {
	opened int // lookups that made a question: MaxPerClient
	joined int // lookups that joined one
}

// call is one question, however many wait for its answer.
type call struct {
	q        spf.Query
	zone     *zone
	question []byte // on the wire, in lower case
	waiters  []waiter
	stale    *entry // to be served instead of Failed
	start    int64
	deadline int64

	tryAt   int64 // when it is sent next
	hedgeAt int64 // when another server is asked too
	staleAt int64 // when the waiters get the stale answer

	due  node  // in the agenda
	slot int32 // there
	off  node  // in zone.off

	older, newer *call

	tries       []*try // that may still be answered
	sent        int
	retransmits uint
	failed      uint32  // servers that gave a failure, by index
	prefer      *server // for the next try
	turned      bool    // the next try needs no allowance: a server has turned it away or is not there, or its zone answers
	byTCP       bool    // an answer was truncated
	suspect     bool    // an answer had the wrong capitals or was nonsense: TCP next time
	plain       bool    // without EDNS0
	staleServed bool
	tcpFailures int
}

// try is a question on its way to one server, from one socket.
type try struct {
	c        *call // nil when the question has ended and this is a probe
	server   *server
	link     *link
	id       uint16
	sent     int64
	question []byte // as sent; its capitals are its own
	edns     bool
	again    bool // the question was sent before, for all that is known in vain
	lost     bool // its time to retransmit has passed
}

// effects are what is done when the mutex is free again.
type effects struct {
	sends  []send
	closes []*link
	ends   []ended
}

type send struct {
	link     *link
	from, to int // in the arena
}

type ended struct {
	waiters []waiter
	answer  spf.Answer
}

// New starts a resolver. It opens no socket before the first question.
func New(o Options) (*Resolver, error) {
	addrs, err := o.complete()
	if err != nil {
		return nil, err
	}
	c, err := newCaches(&o)
	if err != nil {
		return nil, err
	}
	r := &Resolver{
		o:           o,
		log:         o.Log,
		cache:       c,
		began:       o.Clock(),
		wake:        make(chan struct{}, 1),
		done:        make(chan struct{}),
		calls:       make(map[spf.Query]*call),
		clients:     make(map[netip.Addr]share),
		zones:       make(map[string]*zone),
		again:       allowance{tokens: retransmitBurst},
		hedges:      maxHedges,
		maxWaits:    o.MaxInflight * MaxWaitingPerQuestion,
		dripTimeout: TCPMessageTimeout,
		idleTimeout: TCPIdleTimeout,
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	for i, a := range addrs {
		r.servers = append(r.servers, &server{index: i, addr: a, name: a.String(), links: make([]*link, o.Sockets)})
	}
	r.all.Add(1)
	go r.drive()
	return r, nil
}

func (r *Resolver) now() int64 { return int64(r.o.Clock().Sub(r.began)) }

// Lookup answers from the cache at once and returns true with the answer, or calls done exactly once later, from any goroutine, perhaps before
// it has returned itself. done must not block. client is whose budget it counts against; the zero Addr has none.
//
// A name that cannot exist is Empty. The resolver keeps q.Name only as a copy.
func (r *Resolver) Lookup(q spf.Query, client netip.Addr, done func(spf.Answer)) (a spf.Answer, now bool) {
	return r.LookupAt(r.o.Clock(), q, client, done)
}

// LookupAt is Lookup by a caller who knows the time: asking for it costs as much as finding the answer in the cache. A time that is a little old
// does no harm; what is not cached is asked for at the time that it really is.
func (r *Resolver) LookupAt(at time.Time, q spf.Query, client netip.Addr, done func(spf.Answer)) (a spf.Answer, now bool) {
	q.Name = canonical(q.Name)
	t := int64(at.Sub(r.began))
	e, stale := r.cache.fresh(q, t)
	if e == nil {
		return r.miss(q, client, done, r.now())
	}
	switch {
	case e.answer.Status == spf.Found:
		r.hits.Add(1)
		if n := e.hits.Load(); n < PrefetchHits {
			e.hits.Add(1)
		} else if t >= e.prefetchAt && e.prefetched.CompareAndSwap(false, true) {
			r.prefetch(q, t)
		}
	case e.answer.Status == spf.Empty:
		r.negativeHits.Add(1)
	case stale != nil:
		r.staleHits.Add(1)
		return stale.answer, true
	default:
		r.failureHits.Add(1)
	}
	return e.answer, true
}

// LookupSync waits for the answer. The error is ctx's or ErrClosed; whatever DNS says is an Answer.
func (r *Resolver) LookupSync(ctx context.Context, q spf.Query) (spf.Answer, error) {
	answer := make(chan spf.Answer, 1)
	a, now := r.Lookup(q, netip.Addr{}, func(a spf.Answer) { answer <- a })
	if !now {
		select {
		case a = <-answer:
		case <-ctx.Done():
			return spf.Answer{}, ctx.Err()
		}
	}
	if a.Status == spf.Failed {
		select {
		case <-r.done:
			return a, ErrClosed
		default:
		}
	}
	return a, nil
}

// clientKey is what clients are counted by: whoever has one IPv6 address has the whole /64.
func clientKey(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		return p.Addr()
	}
	return a
}

// miss joins or starts a question.
func (r *Resolver) miss(q spf.Query, client netip.Addr, done func(spf.Answer), now int64) (spf.Answer, bool) {
	var space [maxQuestionBytes]byte
	question, ok := appendQuestion(space[:0], q)
	if !ok {
		return spf.Answer{Status: spf.Empty}, true
	}
	client, in := clientKey(client), zoneOf(q.Name)
	var fx effects
	r.mu.Lock()
	a, answered := r.join(q, in, question, waiter{done: done, client: client}, now, &fx)
	r.mu.Unlock()
	r.finish(&fx)
	return a, answered
}

// join runs under mu. done may be nil: then nobody waits.
func (r *Resolver) join(q spf.Query, in string, question []byte, w waiter, now int64, fx *effects) (spf.Answer, bool) {
	// Again, under mu: what was asked meanwhile is in the cache before it leaves calls, so that no question is asked twice.
	e, stale := r.cache.fresh(q, now)
	if e != nil && w.done != nil {
		if e.answer.Status == spf.Failed && stale != nil {
			e = stale
		}
		return e.answer, true
	}
	refuse := func(count *uint64, why spf.Cause) (spf.Answer, bool) {
		*count++
		if stale != nil {
			r.st.Stale++
			return stale.answer, true
		}
		return spf.Answer{Status: spf.Failed, Cause: why}, true
	}
	c := r.calls[q]
	switch mine := r.clients[w.client]; {
	case r.closed:
		return spf.Answer{Status: spf.Failed}, true
	case w.done == nil && c != nil:
		return spf.Answer{}, true
	case c != nil && c.staleServed:
		r.st.Stale++
		return c.stale.answer, true
	case r.waiting >= r.maxWaits:
		return refuse(&r.st.OverWaiting, spf.CauseBusy)
	case !w.client.IsValid():
	case c == nil && mine.opened >= r.o.MaxPerClient, c != nil && mine.joined >= r.o.MaxPerClient*MaxWaitingPerQuestion:
		return refuse(&r.st.OverClient, spf.CauseClient)
	}
	if c != nil {
		r.st.Coalesced++
	} else {
		if z := r.zones[in]; z != nil && z.open >= r.o.MaxPerZone {
			return refuse(&r.st.OverZone, spf.CauseBusy)
		}
		if len(r.calls) >= r.o.MaxInflight {
			if w.done == nil || now-r.oldest.start < int64(JostleAfter) {
				return refuse(&r.st.OverInflight, spf.CauseBusy)
			}
			r.st.Jostled++
			r.end(r.oldest, spf.Answer{Status: spf.Failed, Cause: spf.CauseBusy}, fx)
		}
		if w.done != nil {
			r.st.Misses++
		} else {
			r.st.Prefetch++
		}
		c = r.open(q, in, question, stale, now)
		w.opened = true
	}
	if w.done != nil {
		c.waiters = append(c.waiters, w)
		r.waiting++
		if w.client.IsValid() {
			mine := r.clients[w.client]
			if w.opened {
				mine.opened++
			} else {
				mine.joined++
			}
			r.clients[w.client] = mine
		}
	}
	return spf.Answer{}, false
}

// prefetch asks anew for what is still known, unless there is much to do already. Nobody waits for it.
func (r *Resolver) prefetch(q spf.Query, now int64) {
	var space [maxQuestionBytes]byte
	question, ok := appendQuestion(space[:0], q)
	if !ok {
		return
	}
	in := zoneOf(q.Name)
	r.mu.Lock()
	if len(r.calls) < r.o.MaxInflight/2 {
		r.join(q, in, question, waiter{}, now, nil)
	}
	r.mu.Unlock()
}

// open starts a question. Runs under mu.
func (r *Resolver) open(q spf.Query, in string, question []byte, stale *entry, now int64) *call {
	c := &call{
		// The name may be a view of a buffer or of a longer string; here it stays for long.
		q:        spf.Query{Name: strings.Clone(q.Name), Type: q.Type},
		question: append([]byte(nil), question...),
		stale:    stale,
		start:    now,
		deadline: now + int64(r.o.Timeout),
		tryAt:    now,
		hedgeAt:  never,
		staleAt:  never,
		older:    r.newest,
	}
	c.due.c, c.off.c = c, c
	if stale != nil {
		c.staleAt = now + int64(r.o.StaleAfter)
	}
	if r.newest != nil {
		r.newest.newer = c
	} else {
		r.oldest = c
	}
	r.newest = c
	r.calls[c.q] = c
	if c.zone = r.zones[in]; c.zone == nil {
		c.zone = &zone{name: strings.Clone(in), again: allowance{zoneBurst, now}}
		r.zones[c.zone.name] = c.zone
	}
	c.zone.open++
	r.arm(c, now)
	return c
}

// poke makes the driver look.
func (r *Resolver) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// release takes c's waiters off the counts and leaves them to fx. Runs under mu.
func (r *Resolver) release(c *call, a spf.Answer, fx *effects) {
	if len(c.waiters) == 0 {
		return
	}
	r.waiting -= len(c.waiters)
	for _, w := range c.waiters {
		if !w.client.IsValid() {
			continue
		}
		left := r.clients[w.client]
		if w.opened {
			left.opened--
		} else {
			left.joined--
		}
		if left == (share{}) {
			delete(r.clients, w.client)
		} else {
			r.clients[w.client] = left
		}
	}
	fx.ends = append(fx.ends, ended{c.waiters, a})
	c.waiters = nil
}

// end ends a question: nothing of it is left but its waiters, in fx. Runs under mu.
func (r *Resolver) end(c *call, a spf.Answer, fx *effects) {
	if a.Status == spf.Failed && c.stale != nil && len(c.waiters) > 0 {
		r.st.Stale += uint64(len(c.waiters))
		a = c.stale.answer
	}
	r.release(c, a, fx)
	for len(c.tries) > 0 {
		r.drop(c.tries[len(c.tries)-1], fx)
	}
	delete(r.calls, c.q)
	if c.zone.open--; c.zone.open == 0 {
		delete(r.zones, c.zone.name)
	}
	c.off.leave()
	r.agenda.remove(c)
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		r.oldest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		r.newest = c.older
	}
}

// fail ends a question that nobody answered and remembers that. Runs under mu.
func (r *Resolver) fail(c *call, now int64, fx *effects) {
	why := spf.CauseDNS
	if !slices.ContainsFunc(r.servers, func(s *server) bool { return !s.absent }) {
		why = spf.CauseUnreachable
	}
	switch {
	case c.stale != nil:
		r.cache.keepFailure(c.q, now, int64(StaleRecheck))
	case slices.ContainsFunc(r.servers, func(s *server) bool { return !s.down }):
		r.cache.keepFailure(c.q, now, 0)
	default:
		r.cache.keepOutage(c.q, now, why)
	}
	r.end(c, spf.Answer{Status: spf.Failed, Cause: why}, fx)
}

// finish does what was left until the mutex is free.
func (r *Resolver) finish(fx *effects) {
	for _, s := range fx.sends {
		s.link.write(r, r.arena[s.from:s.to])
	}
	for _, l := range fx.closes {
		l.close(r)
	}
	for _, e := range fx.ends {
		for _, w := range e.waiters {
			w.done(e.answer)
		}
	}
	clear(fx.ends)
	fx.sends, fx.closes, fx.ends = fx.sends[:0], fx.closes[:0], fx.ends[:0]
}

// maxReady and maxDue are how many questions the driver looks at before it lets go of the mutex and sends: new ones and those that go on, and those that
// something was waited for. So a new one waits for no more than maxDue old ones, however many of these there are.
const (
	maxReady = 16
	maxDue   = 8
)

// drive sends what is to be sent and keeps the times of all questions. One goroutine.
func (r *Resolver) drive() {
	defer r.all.Done()
	// The timer is left alone as long as it does not go off too late: moving one costs the runtime a walk over all the timers that there are, and each check
	// that waits has one.
	timer, rings := time.NewTimer(time.Hour), never
	timer.Stop()
	defer timer.Stop()
	var fx effects
	for {
		now := r.now()
		r.arena = r.arena[:0]
		r.mu.Lock()
		for range maxReady {
			c := r.agenda.takeReady()
			if c == nil {
				break
			}
			r.step(c, now, &fx)
		}
		for range maxDue {
			c := r.agenda.takeDue(now)
			if c == nil {
				break
			}
			r.step(c, now, &fx)
		}
		next := r.agenda.next()
		if r.agenda.ready.first != nil {
			next = now
		}
		r.mu.Unlock()
		r.finish(&fx)
		if next <= now {
			continue
		}
		if next < rings {
			timer.Reset(time.Duration(next - now))
			rings = next
		}
		select {
		case <-r.wake:
		case <-timer.C:
			rings = never
		case <-r.done:
			return
		}
	}
}

// step does what the time demands of c. Runs on: the driver, under mu.
func (r *Resolver) step(c *call, now int64, fx *effects) {
	if now >= c.deadline {
		r.st.Timeouts++
		r.lose(c, now, 0, fx)
		r.fail(c, now, fx)
		return
	}
	if now >= c.staleAt {
		c.staleAt, c.staleServed = never, true
		r.st.Stale += uint64(len(c.waiters))
		r.release(c, c.stale.answer, fx)
	}
	if now >= c.tryAt {
		r.transmit(c, now, fx)
	}
	if now >= c.hedgeAt {
		c.hedgeAt = never
		r.hedge(c, now, fx)
	}
	r.arm(c, now)
}

// arm has the driver look at c when its next time has come. Runs under mu.
func (r *Resolver) arm(c *call, now int64) {
	wake := min(c.deadline, c.tryAt, c.hedgeAt, c.staleAt)
	r.agenda.put(c, wake, now)
	if wake <= now {
		r.poke()
	}
}

// Stats counts. Any goroutine.
func (r *Resolver) Stats() Stats {
	r.mu.Lock()
	st := r.st
	st.Inflight, st.Waiting = len(r.calls), r.waiting
	for _, s := range r.servers {
		st.Servers = append(st.Servers, ServerStats{s.addr, !s.down, time.Duration(s.srtt), s.sent, s.answers, s.inflight})
	}
	r.mu.Unlock()
	st.Hits, st.NegativeHits, st.FailureHits = r.hits.Load(), r.negativeHits.Load(), r.failureHits.Load()
	st.Stale += r.staleHits.Load()
	st.Positive, st.Negative, st.Failure = r.cache.stats()
	return st
}

// Close ends all goroutines and sockets and waits for them; no callback may call it. Lookups that wait are Failed before it returns.
func (r *Resolver) Close() {
	var fx effects
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		close(r.done)
		r.stop()
		for r.oldest != nil {
			r.oldest.stale = nil
			r.end(r.oldest, spf.Answer{Status: spf.Failed}, &fx)
		}
		for _, s := range r.servers {
			for i, l := range s.links {
				if l != nil {
					r.retire(l, &fx)
					s.links[i] = nil
				}
			}
			if s.tcp != nil {
				r.retire(s.tcp, &fx)
			}
			r.dropProbe(s, &fx)
		}
	}
	r.mu.Unlock()
	r.finish(&fx)
	r.all.Wait()
}
