package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/httpedge"
	"github.com/fastedge/fastedge/internal/admin"
	"github.com/fastedge/fastedge/internal/certs"
	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/internal/metrics"
	"github.com/fastedge/fastedge/loop"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/relay"
	"github.com/fastedge/fastedge/session"
)

// maxLinger is how long a commit waits for company under load; see queue.Limits.
const maxLinger = time.Millisecond

// gcPercent trades memory for fewer collections: the live heap is small, because message data is recycled.
const gcPercent = 200

// server is everything that runs.
type server struct {
	cfg      *config.Config
	log      *slog.Logger
	engine   engine
	writer   *queue.Writer
	parts    *parts
	loops    *loop.Server
	http     *httpedge.Server // nil without a listener for it
	again    chan struct{}    // the files that parts were read from are to be looked at now
	relay    *relay.Relay     // nil without a next hop
	draining atomic.Bool

	admin     []*http.Server
	listeners []net.Listener // of admin, in the same order
}

// wire builds the server and opens what it listens on. What can fail is tried here, so that a wrong start is an error and not half a
// server.
func wire(cfg *config.Config, log *slog.Logger, lines *logWriter) (_ *server, err error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	loops := runtime.NumCPU() // those that we may run on: a pinned process has fewer than the machine
	s := &server{cfg: cfg, log: log, again: make(chan struct{}, 1)}
	if s.engine, err = openEngine(cfg, log); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.closeAll()
		}
	}()
	reg := newRegistry(cfg)
	var problems config.Problems
	if s.parts, problems = newParts(cfg, log, reg); len(problems) > 0 {
		return nil, problems
	}
	s.writer = queue.NewWriter(&measured{s.engine.Backend, reg}, queue.Limits{MaxLinger: maxLinger})
	budget := pool.NewBudget(int64(cfg.Limits.Memory))
	if err = s.newLoops(lines, loops, budget, reg); err != nil {
		return nil, err
	}
	if err = s.newHTTP(lines, budget, reg); err != nil {
		return nil, err
	}
	if err = s.newRelay(); err != nil {
		return nil, err
	}
	reg.Watch(metrics.Sources{
		Queue:             s.queueStats(),
		HandoffPending:    s.writer.Pending,
		MemoryUsed:        budget.Used,
		MemoryBudget:      int64(cfg.Limits.Memory),
		LogDropped:        lines.Dropped,
		Relay:             s.relayStats(),
		Forward:           s.engine.forwarded,
		CertificateExpiry: s.parts.expiry(),
		Validators:        s.parts.stats,
		DNS:               s.parts.dnsStats(),
		LimitedPrefixes:   s.parts.gate.Entries,
	})
	return s, s.newAdmin(reg)
}

func (s *server) newLoops(lines *logWriter, n int, budget *pool.Budget, reg *metrics.Registry) (err error) {
	cfg := s.cfg
	o := loop.Options{
		Writer:           s.writer,
		Budget:           budget,
		Loops:            n,
		MaxConnections:   cfg.Limits.Connections,
		MaxHandshakes:    cfg.Limits.Handshakes,
		HandshakeTimeout: cfg.Timeouts.Handshake,
		ProxyTimeout:     cfg.Timeouts.ProxyHeader,
		Log:              s.log,
		Lines:            lines,
		LineFormat:       lines.format,
	}
	var places []int
	for i := range cfg.Listen {
		if !isHTTP(&cfg.Listen[i]) {
			o.Listeners = append(o.Listeners, s.newListener(&cfg.Listen[i]))
			places = append(places, i)
		}
	}
	o.Meter = meter{reg, places}
	s.loops, err = loop.New(o)
	return err
}

// sessionOptions are what decides the replies on one address, whatever the clients speak.
func (s *server) sessionOptions(l *config.Listener) session.Options {
	cfg, p := s.cfg, s.parts
	return session.Options{
		Hostname:        cfg.Hostname,
		Listener:        l.Name,
		Normalize:       cfg.SMTP.LineEndings == "normalize",
		Hide:            cfg.SMTP.Hide,
		MaxMessageBytes: int64(cfg.Limits.MessageSize),
		MaxRecipients:   cfg.Limits.Recipients,
		MaxErrors:       cfg.Limits.Errors,
		MaxJunk:         cfg.Limits.JunkCommands,
		MaxAuthFailures: cfg.Limits.AuthFailures,
		MinDataRate:     int64(cfg.Limits.DataRate),
		CommandTimeout:  cfg.Timeouts.Command,
		DataTimeout:     cfg.Timeouts.Data,
		PolicyTimeout:   cfg.Timeouts.Policy,
		Accept:          p.relay.Accept,
		Validators:      p.validators,
		AuthservID:      p.authservID,
	}
}

// newListener says how the SMTP or LMTP clients of one address are served.
func (s *server) newListener(l *config.Listener) loop.Listener {
	cfg, p := s.cfg, s.parts
	o := s.sessionOptions(l)
	o.LMTP = l.Protocol == "lmtp"
	o.Auth = l.Auth
	// Who comes through a proxy is not on this machine, though the proxy may be.
	o.AuthInClear = l.Address.IsLocal() && len(l.ProxyProtocolFrom) == 0
	o.AuthRequired = l.AuthRequired
	switch l.TLS {
	case "opportunistic":
		o.TLS = session.TLSOpportunistic
	case "required", "implicit":
		o.TLS = session.TLSRequired
	}
	listener := loop.Listener{
		Name:        l.Name,
		Network:     l.Address.Network,
		Address:     l.Address.Addr,
		MayRelay:    policy.NewNetworks(l.RelayFrom).Contains,
		Gate:        p.gate,
		Auth:        p.auth,
		Implicit:    l.TLS == "implicit",
		GreetDelay:  cfg.SMTP.GreetDelay,
		RefuseEarly: cfg.SMTP.EarlyTalkers == "refuse",
		Session:     session.NewServer(o),
	}
	if len(l.ProxyProtocolFrom) > 0 {
		listener.Proxies = policy.NewNetworks(l.ProxyProtocolFrom).Contains
	}
	if l.TLS != "off" {
		ask, _ := certs.ParseClientCertificates(l.ClientCertificates) // a word that the configuration has checked
		listener.TLS = p.certs.Config(ask)
		listener.TLSFacts = p.tlsFacts
	}
	return listener
}

func (s *server) newRelay() (err error) {
	if len(s.cfg.Relay.NextHop) == 0 || s.engine.source == nil {
		return nil
	}
	o := relay.Options{
		Hostname:    s.cfg.Hostname,
		Connections: s.cfg.Relay.Connections,
		Retry:       s.cfg.Relay.Retry,
		MaxAge:      s.cfg.Relay.MaxAge,
		Grace:       s.cfg.Timeouts.Drain,
		Log:         s.log,
	}
	for _, h := range s.cfg.Relay.NextHop {
		o.NextHops = append(o.NextHops, relay.NextHop{LMTP: h.LMTP, Network: h.Network, Address: h.Addr})
	}
	s.relay, err = relay.New(s.engine.source, o)
	return err
}

// newAdmin opens the unix socket for the queue commands and, if wanted, the port for health and metrics.
func (s *server) newAdmin(reg *metrics.Registry) error {
	o := admin.Options{
		Queue:    s.engine.inspector,
		Metrics:  reg.Handler(s.log),
		NotReady: s.notReady,
		Hostname: s.cfg.Hostname,
	}
	if err := os.MkdirAll(s.cfg.StateDir, 0o750); err != nil {
		return err
	}
	ln, err := admin.Listen(s.cfg.AdminSocket())
	if err != nil {
		return err
	}
	s.admin, s.listeners = append(s.admin, admin.NewServer(admin.Control(o), s.log)), append(s.listeners, ln)
	if a := s.cfg.Admin.HTTP; a.Network != "" {
		if ln, err = net.Listen(a.Network, a.Addr); err != nil {
			return fmt.Errorf("admin.http: %w", err)
		}
		s.admin, s.listeners = append(s.admin, admin.NewServer(admin.Public(o), s.log)), append(s.listeners, ln)
	}
	return nil
}

// Run serves until ctx ends, then drains: newcomers get 421, open transactions finish within timeouts.drain, what is queued is
// committed, messages in hand are settled. It returns nil after a drain, an error when something ended unasked.
func (s *server) Run(ctx context.Context) error {
	defer s.closeAll()
	failed := make(chan error, 3+len(s.admin))
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := s.loops.Serve(); err != nil {
			failed <- err
		}
	}()
	if s.http != nil {
		go func() {
			if err := s.http.Serve(); err != nil {
				failed <- fmt.Errorf("http: %w", err)
			}
		}()
	}
	for i, srv := range s.admin {
		go func() {
			if err := srv.Serve(s.listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("admin: %w", err)
			}
		}()
	}
	stopReload := make(chan struct{})
	defer close(stopReload)
	go (&reloader{files: s.parts.files, log: s.log}).run(s.cfg.TLS.ReloadEvery, s.again, stopReload)
	relayCtx, stopRelay := context.WithCancel(context.Background())
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		if s.relay != nil {
			if err := s.relay.Run(relayCtx); err != nil && relayCtx.Err() == nil {
				failed <- fmt.Errorf("relay: %w", err)
			}
		}
	}()
	s.loops.WaitUp()
	s.log.Info("serving", "hostname", s.cfg.Hostname, "listeners", s.addresses(), "state_dir", s.cfg.StateDir,
		"engine", s.cfg.Queue.Engine, "durability", s.cfg.Queue.Durability)

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	s.drain(served, stopRelay, relayed)
	return err
}

// maxLastCommit is how long the end waits for a disk; a commit takes milliseconds.
const maxLastCommit = 5 * time.Second

// drain ends the parts in the order in which a message passes them, so that none loses what the one before still gives it.
func (s *server) drain(served <-chan struct{}, stopRelay func(), relayed <-chan struct{}) {
	s.draining.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Timeouts.Drain)
	defer cancel()
	start := time.Now()
	posted := make(chan struct{})
	go func() {
		defer close(posted)
		if s.http == nil {
			return
		}
		if err := s.http.Drain(ctx); err != nil {
			s.log.Warn("drain: HTTP cut off", "error", err)
		}
	}()
	if err := s.loops.Drain(ctx); err != nil {
		s.log.Warn("drain: cut off", "error", err)
	}
	<-posted
	s.loops.Close()
	if s.http != nil {
		s.http.Close()
	}
	<-served
	// Everybody who is still owed an answer is gone now, but what was submitted is committed all the same, in a time of its own: ctx may
	// have ended with the last client.
	commit, committed := context.WithTimeout(context.Background(), maxLastCommit)
	defer committed()
	if err := s.writer.Close(commit); err != nil {
		s.log.Warn("drain: queue", "error", err)
	}
	s.loops.Settle()
	stopRelay()
	<-relayed
	s.log.Info("drained", "seconds", time.Since(start).Seconds())
}

// closeAll lets go of what wire opened; safe to call when only part of it is there.
func (s *server) closeAll() {
	for _, srv := range s.admin {
		srv.Close()
	}
	for _, ln := range s.listeners {
		ln.Close()
	}
	if s.writer != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.writer.Close(ctx)
	}
	if s.loops != nil {
		s.loops.Close()
	}
	if s.http != nil {
		s.http.Close()
	}
	if s.parts != nil {
		s.parts.close()
	}
	if err := s.engine.Close(); err != nil {
		s.log.Error("queue: close", "error", err)
	}
}

func (s *server) addresses() (all []string) {
	mail, http := 0, 0
	for i := range s.cfg.Listen {
		l := &s.cfg.Listen[i]
		if isHTTP(l) {
			all = append(all, "http "+s.http.Addr(http))
			http++
		} else {
			all = append(all, l.Protocol+" "+s.loops.Addr(mail))
			mail++
		}
	}
	return all
}

// lookAgain reads the files again that have changed. Any goroutine; it does not wait.
func (s *server) lookAgain() {
	select {
	case s.again <- struct{}{}:
	default: // it is on its way already
	}
}

// notReady is why no mail should be sent here now.
func (s *server) notReady() (why []string) {
	if s.draining.Load() {
		why = append(why, "draining")
	}
	if err := s.writer.Room(); err != nil {
		why = append(why, err.Error())
	}
	if s.engine.local != nil {
		if alarm := s.engine.local.Stats().Alarm; alarm != "" {
			why = append(why, alarm)
		}
	}
	return why
}

func (s *server) queueStats() func() metrics.QueueStats {
	if s.engine.local == nil {
		return nil
	}
	return func() metrics.QueueStats {
		st := s.engine.local.Stats()
		return metrics.QueueStats{
			Messages: st.Messages, Bytes: st.Bytes, Oldest: st.Oldest, Committed: st.Committed, Commits: st.Commits,
			Syncs: st.Syncs, SyncErrors: st.SyncErrors, Damaged: st.Damaged, Segments: st.Segments, FreeBytes: st.FreeBytes,
		}
	}
}

func (s *server) relayStats() func() metrics.RelayStats {
	if s.relay == nil {
		return nil
	}
	return func() metrics.RelayStats {
		st := s.relay.Stats()
		return metrics.RelayStats{
			Attempts: st.Attempts, Dead: st.Dead, Delivered: st.Delivered, Deferred: st.Deferred, Failed: st.Failed,
			Connects: st.Connects, ConnectErrors: st.ConnectErrors, InFlight: st.InFlight, Connections: st.Connections,
			NextHopsDown: st.NextHopsDown,
		}
	}
}

// measured counts the batches of a backend.
type measured struct {
	queue.Backend
	reg *metrics.Registry
}

func (m *measured) Commit(batch []*queue.Submission) {
	start := time.Now()
	n := len(batch)
	m.Backend.Commit(batch)
	m.reg.Batch(n, time.Since(start))
}

// newRegistry gives the metrics their words.
func newRegistry(cfg *config.Config) *metrics.Registry {
	v := readBuildInfo()
	o := metrics.Options{
		Version: v.Version, Revision: v.Revision,
		ConnResults: []string{
			loop.ConnAccepted: "accepted", loop.ConnOverLimit: "limit", loop.ConnDraining: "draining",
			loop.ConnPerAddress: "limit_per_ip", loop.ConnPerPrefix: "limit_per_prefix", loop.ConnRate: "limit_rate",
		},
		Protocols: session.Protocols(),
		Events: []string{
			loop.EventPaused: "paused", loop.EventStashFull: "stash_full", loop.EventSlowReader: "slow_reader",
			loop.EventTimeout: "timeout", loop.EventPanic: "panic", loop.EventOrphan: "orphan",
			loop.EventProxyMissing: "proxy_missing", loop.EventProxyUnlisted: "proxy_unlisted", loop.EventProxyBad: "proxy_bad",
			loop.EventProxyHealthCheck: "proxy_health_check", loop.EventEarlyTalker: "early_talker",
			loop.EventHandshakeFailed: "tls_handshake_failed", loop.EventHandshakeLimit: "tls_handshake_limit",
			loop.EventPlainDiscarded: "starttls_discarded", loop.EventTLSError: "tls_error", loop.EventValidatorFailed: "validator_failed",
		},
	}
	for _, l := range cfg.Listen {
		o.Listeners = append(o.Listeners, l.Name)
	}
	for st := range session.NumStages {
		o.Stages = append(o.Stages, st.String())
	}
	for r := range session.NumReasons {
		o.Reasons = append(o.Reasons, r.String())
	}
	for _, l := range cfg.DNSBL.List {
		o.Zones = append(o.Zones, l.Zone)
	}
	for _, r := range cfg.Rule {
		o.Rules = append(o.Rules, r.Name)
	}
	return metrics.New(o)
}

// meter lets the loops count in their own words.
type meter struct {
	reg       *metrics.Registry
	listeners []int // the loops' listeners, as places in the configuration
}

func (m meter) NewLoop() loop.LoopMeter { return loopMeter{m.reg.NewLoop(), m.listeners} }

type loopMeter struct {
	l         *metrics.Loop
	listeners []int
}

func (m loopMeter) Connection(listener int, r loop.ConnResult) {
	m.l.Connection(m.listeners[listener], int(r))
}
func (m loopMeter) OpenConnections(listener int, delta int) { m.l.Open(m.listeners[listener], delta) }
func (m loopMeter) Reply(stage session.Stage, code uint16)  { m.l.Reply(int(stage), code) }
func (m loopMeter) Event(e loop.Event)                      { m.l.Event(int(e)) }
func (m loopMeter) Handshake(ok bool, version string, d time.Duration) {
	m.l.Handshake(ok, version, d)
}
func (m loopMeter) Callback(d time.Duration) { m.l.Callback(d) }
func (m loopMeter) Refusal(stage session.Stage, reason session.Reason, code uint16) {
	m.l.Refusal(int(stage), int(reason), code)
}
func (m loopMeter) Message(protocol string, accepted bool, size int64, ack time.Duration) {
	m.l.Message(protocol, accepted, size, ack)
}
