// Package relay hands leased messages to the next hop, as an SMTP (RFC 5321) or LMTP (RFC 2033) client.
//
// What it promises: a message leaves the queue only after the next hop's 2yz for every recipient. A 4yz, a lost connection or a
// next hop that can't be reached leaves recipients pending, to be tried again; a 5yz makes the message dead, kept in the queue
// with the reply for an operator to look at. Nothing is dropped and nothing is bounced to a reverse-path that a stranger
// has chosen. When a connection is lost between the end of the data and its reply the message is sent again later, so
// the next hop may see it twice (RFC 5321 §4.5.4.1, RFC 1047).
//
// It leaves to others: storing (queue.Source), choosing what to accept (the edges), TLS and AUTH towards the next hop (the next hop
// is a neighbour that the configuration names, not an MX looked up in the DNS).
//
// Extensions used when offered: PIPELINING (RFC 2920), SIZE (RFC 1870), 8BITMIME (RFC 6152), CHUNKING and BINARYMIME
// (RFC 3030), SMTPUTF8 (RFC 6531), DSN (RFC 3461), LIMITS (RFC 9422), ENHANCEDSTATUSCODES as it comes. A message that requires
// TLS (RFC 8689) is refused for good where the next hop does not offer REQUIRETLS over TLS with a verified certificate.
//
// # Goroutines
//
// A few goroutines lease and start one for each message; at most Options.Connections of them run at once. A delivery takes an idle connection, the one used last first, or dials; afterwards the connection goes back. So
// one slow message at a time needs one connection, a backlog opens more, and idle ones end after Options.IdleTimeout.
// Every network step has a deadline. All goroutines have ended when Run returns.
//
// # Next hops that are down
//
// The first next hop that is up gets the messages. One that can't be reached, or refuses at the greeting or EHLO, is passed over for
// Options.MinBackoff, doubled with each further failure up to Options.MaxBackoff; then a single connection probes it. While
// every next hop is down and no connection is left, nothing is leased: messages stay ready in the queue and burn no attempts, whether
// they are ten or 100,000, and one goroutine probes until one next hop answers EHLO. Messages in hand when
// the last next hop goes down are settled as pending.
// A next hop that refuses one more connection while some are open is not down but full: messages in hand wait for those.
//
// # Ownership
//
// A queue.Delivery belongs to its goroutine until Settle or Kill; the outcomes given to Settle belong to the source. Message data
// is never held whole unless it fits one 64 KiB buffer: a delivery in hand costs two of these, and commands.
package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/queue"
)

// Timeouts bound the steps of a session. Zero values mean those of RFC 5321 §4.5.3.2, where it names one.
type Timeouts struct {
	Dial      time.Duration // until connected; 30 s
	Greeting  time.Duration // until the 220; 5 min (§4.5.3.2.1)
	Hello     time.Duration // EHLO, HELO, LHLO, RSET; 5 min
	Mail      time.Duration // 5 min (§4.5.3.2.2)
	Rcpt      time.Duration // each; 5 min (§4.5.3.2.3)
	DataInit  time.Duration // until the 354; 2 min (§4.5.3.2.4)
	DataBlock time.Duration // each write of at most 64 KiB, commands as well; 3 min (§4.5.3.2.5)
	DataDone  time.Duration // from the end of the data until each final reply; 10 min (§4.5.3.2.6)
	Quit      time.Duration // until the 221, which is not needed for anything; 5 s
}

func (t *Timeouts) defaults() {
	for _, d := range []struct {
		value *time.Duration
		unset time.Duration
	}{
		{&t.Dial, 30 * time.Second}, {&t.Greeting, 5 * time.Minute}, {&t.Hello, 5 * time.Minute}, {&t.Mail, 5 * time.Minute},
		{&t.Rcpt, 5 * time.Minute}, {&t.DataInit, 2 * time.Minute}, {&t.DataBlock, 3 * time.Minute},
		{&t.DataDone, 10 * time.Minute}, {&t.Quit, 5 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.unset
		}
	}
}

// Options say where messages go and how. Only NextHops must be given.
type Options struct {
	// NextHops in order of preference.
	NextHops []NextHop
	// Hostname is said in EHLO and LHLO. Default: os.Hostname.
	Hostname string
	// Connections is the most connections, and so the most messages in hand. Default 32.
	Connections int
	// Retry is how long a message waits after its first attempt, its second, and so on; the last one repeats. Default 1 min,
	// 5 min, 15 min, 1 h, 4 h.
	Retry []time.Duration
	// MaxAge is how long after its arrival a message is still tried. When the next attempt would be later the message becomes
	// dead. Default 5 days (RFC 5321 §4.5.4.1 wants 4 or more).
	MaxAge time.Duration
	// MaxPerConnection is the most messages on one connection, after which it is replaced: so load returns to a preferred next hop
	// that was down. Default 1000.
	MaxPerConnection int
	// IdleTimeout is how long an unused connection is kept. Default 30 s.
	IdleTimeout time.Duration
	// MinBackoff and MaxBackoff bound how long a next hop that is down is left alone. Defaults 1 s and 60 s.
	MinBackoff, MaxBackoff time.Duration
	// Grace is how long Run lets messages in hand finish after its context has ended. Default 30 s.
	Grace    time.Duration
	Timeouts Timeouts
	// Now is the clock for ages and times of next attempts. Default time.Now. Network deadlines always use the real clock.
	Now func() time.Time
	// Dial connects; network is "tcp" or "unix". Default: net.Dialer. A message that requires TLS (RFC 8689) goes only over what is a *tls.Conn,
	// or has its ConnectionState, with a verified certificate.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Log gets a line for each result of an attempt. Default slog.Default().
	Log *slog.Logger
}

func (o *Options) defaults() error {
	if len(o.NextHops) == 0 {
		return errors.New("relay: no next hop given")
	}
	if o.Hostname == "" {
		name, err := os.Hostname()
		if err != nil || name == "" {
			name = "localhost"
		}
		o.Hostname = name
	}
	if !printable([]byte(o.Hostname)) {
		return errors.New("relay: host name holds characters that can't stand in EHLO")
	}
	if o.Connections <= 0 {
		o.Connections = 32
	}
	if len(o.Retry) == 0 {
		o.Retry = []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour}
	}
	if o.MaxAge == 0 {
		o.MaxAge = 5 * 24 * time.Hour
	}
	if o.MaxPerConnection <= 0 {
		o.MaxPerConnection = 1000
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 30 * time.Second
	}
	if o.MinBackoff == 0 {
		o.MinBackoff = time.Second
	}
	if o.MaxBackoff == 0 {
		o.MaxBackoff = time.Minute
	}
	if o.Grace == 0 {
		o.Grace = 30 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Timeouts.defaults()
	return nil
}

// Relay hands messages of one source to the next hops.
type Relay struct {
	o       Options
	src     queue.Source
	conns   *connections
	waits   [numSteps]time.Duration // deadline of each step
	ran     atomic.Bool
	stats   counters
	flights sync.WaitGroup // deliveries, the reaper and connections saying QUIT

	// hard ends when the grace is over: everything on the network is cut off then.
	hard context.Context
	cut  context.CancelFunc
}

// New checks the options. Run starts the work.
func New(src queue.Source, o Options) (*Relay, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	r := &Relay{o: o, src: src}
	t := &r.o.Timeouts
	r.waits = [numSteps]time.Duration{
		stepGreeting: t.Greeting, stepHello: t.Hello, stepRset: t.Hello, stepMail: t.Mail, stepRcpt: t.Rcpt, stepData: t.DataInit,
		stepEndOfData: t.DataDone, stepQuit: t.Quit,
	}
	r.conns = newConnections(r)
	return r, nil
}

// Run hands on messages until ctx ends, or the source is closed; then it waits for the messages in hand, at most Options.Grace,
// and cuts off what is left (those messages stay pending). It gives ctx's error, or the source's when that came first, nil for
// queue.ErrClosed. It may be called once.
func (r *Relay) Run(ctx context.Context) error {
	if r.ran.Swap(true) {
		return errors.New("relay: Run called twice")
	}
	r.hard, r.cut = context.WithCancel(context.WithoutCancel(ctx))
	reaping, stopReaping := context.WithCancel(ctx)
	r.flights.Go(func() { r.conns.reap(reaping) })

	err := r.leaseAll(ctx)

	stopReaping()
	grace := time.AfterFunc(r.o.Grace, r.cut)
	r.stats.inFlight.wait()
	r.conns.close()
	r.flights.Wait()
	grace.Stop()
	r.cut()
	if errors.Is(err, queue.ErrClosed) {
		return nil
	}
	return err
}

// maxLeasers is how many goroutines wait in Source.Lease. The source verifies a message while leasing it; with several, a large one
// doesn't hold up the small ones behind it.
const maxLeasers = 4

// leaseAll runs the leasers until ctx ends or the source is closed, and gives the first one's reason.
func (r *Relay) leaseAll(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	slots := make(chan struct{}, r.o.Connections)
	var leasers sync.WaitGroup
	for range min(maxLeasers, r.o.Connections) {
		leasers.Go(func() { stop(r.lease(ctx, slots)) })
	}
	leasers.Wait()
	return context.Cause(ctx)
}

// lease takes messages and starts a delivery for each, until ctx ends or the source is closed. A message in hand holds a slot.
func (r *Relay) lease(ctx context.Context, slots chan struct{}) error {
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		leasing, err := r.conns.whenUp(ctx)
		if err != nil {
			return err
		}
		d, err := r.src.Lease(leasing)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case leasing.Err() != nil: // the last next hop went down meanwhile
			<-slots
			continue
		case errors.Is(err, queue.ErrClosed):
			return err
		default:
			// The source has trouble of its own (a disk, a network). It may pass; asking again at once would spin.
			r.o.Log.Error("relay: lease failed", "error", err)
			<-slots
			if !pause(ctx, r.o.MinBackoff) {
				return ctx.Err()
			}
			continue
		}
		r.stats.inFlight.add()
		r.flights.Go(func() {
			r.deliver(d)
			r.stats.inFlight.done()
			<-slots
		})
	}
}

// pause sleeps for d; it gives false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Stats are counters since New, and gauges. Recipients are counted for each attempt.
type Stats struct {
	Attempts      uint64 `json:"attempts"`       // deliveries tried
	Delivered     uint64 `json:"delivered"`      // recipients with a final 2yz
	Deferred      uint64 `json:"deferred"`       // recipients left pending
	Failed        uint64 `json:"failed"`         // recipients refused for good
	Dead          uint64 `json:"dead"`           // messages too old or damaged
	Bytes         uint64 `json:"bytes"`          // message bytes of completed transactions
	Connects      uint64 `json:"connects"`       // connections that got as far as EHLO
	ConnectErrors uint64 `json:"connect_errors"` // connections that did not
	Reused        uint64 `json:"reused"`         // deliveries that found a connection waiting
	Stale         uint64 `json:"stale"`          // kept connections that turned out dead
	SettleErrors  uint64 `json:"settle_errors"`  // results that the source could not keep
	InFlight      int64  `json:"in_flight"`      // messages in hand now
	Connections   int64  `json:"connections"`    // open now
	NextHopsDown  int64  `json:"next_hops_down"` // passed over now
	LeasingPaused bool   `json:"leasing_paused"` // every next hop is down
}

type counters struct {
	attempts, delivered, deferred, failed, dead, bytes   atomic.Uint64
	connects, connectErrors, reused, stale, settleErrors atomic.Uint64
	inFlight                                             gauge
}

// gauge counts what is running and lets one goroutine wait for none.
type gauge struct {
	n  atomic.Int64
	wg sync.WaitGroup
}

func (g *gauge) add()  { g.n.Add(1); g.wg.Add(1) }
func (g *gauge) done() { g.n.Add(-1); g.wg.Done() }
func (g *gauge) wait() { g.wg.Wait() }

// Stats gives the counters. Any goroutine.
func (r *Relay) Stats() Stats {
	c := &r.stats
	s := Stats{
		Attempts: c.attempts.Load(), Delivered: c.delivered.Load(), Deferred: c.deferred.Load(), Failed: c.failed.Load(),
		Dead: c.dead.Load(), Bytes: c.bytes.Load(), Connects: c.connects.Load(), ConnectErrors: c.connectErrors.Load(),
		Reused: c.reused.Load(), Stale: c.stale.Load(), SettleErrors: c.settleErrors.Load(), InFlight: c.inFlight.n.Load(),
	}
	s.Connections, s.NextHopsDown, s.LeasingPaused = r.conns.state()
	return s
}

// closeQuietly is for a reader whose bytes have been used already, or are of no use any more.
func closeQuietly(c io.Closer) {
	if c != nil {
		_ = c.Close()
	}
}
