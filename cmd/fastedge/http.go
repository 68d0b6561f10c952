package main

import (
	"fmt"
	"regexp"
	"time"

	"github.com/fastedge/fastedge/httpedge"
	"github.com/fastedge/fastedge/internal/certs"
	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/internal/metrics"
	"github.com/fastedge/fastedge/loop"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

// isHTTP says that a listener is not for the event loops.
func isHTTP(l *config.Listener) bool { return l.Protocol == "http" }

// newHTTP opens the listeners for HTTP, if there are some.
func (s *server) newHTTP(lines *logWriter, budget *pool.Budget, reg *metrics.Registry) (err error) {
	cfg := s.cfg
	h := &cfg.HTTP
	o := httpedge.Options{
		Writer:             s.writer,
		Budget:             budget,
		Keys:               s.parts.keys,
		Passwords:          s.parts.passwords,
		Inspector:          s.engine.inspector,
		Durability:         durabilityWord(cfg),
		Method:             h.Method,
		SenderHeader:       h.SenderHeader,
		RecipientHeader:    h.RecipientHeader,
		EhloHeader:         h.EhloHeader,
		Success:            h.Success,
		MaxConnections:     h.Connections,
		MaxHeaderBytes:     int(h.HeaderBytes),
		MaxBatchMessages:   h.BatchMessages,
		MaxBatchLineBytes:  int64(h.BatchLine),
		MaxBatchBytes:      int64(h.BatchBytes),
		MaxIdempotencyKeys: h.IdempotencyKeys,
		IdempotencyTime:    h.IdempotencyTime,
		HeaderTimeout:      cfg.Timeouts.HTTPHeader,
		IdleTimeout:        cfg.Timeouts.HTTPIdle,
		HandshakeTimeout:   cfg.Timeouts.Handshake,
		ProxyTimeout:       cfg.Timeouts.ProxyHeader,
		Log:                s.log,
		Lines:              lines,
		LineFormat:         lines.format,
	}
	if h.Path != "" {
		if o.Path, err = regexp.Compile(h.Path); err != nil {
			return fmt.Errorf("http.path: %w", err)
		}
	}
	o.Remembered, _ = s.engine.Backend.(queue.Rememberer)
	m := httpMeter{reg: reg, l: reg.NewLoop()}
	for i := range cfg.Listen {
		if isHTTP(&cfg.Listen[i]) {
			o.Listeners = append(o.Listeners, s.newHTTPListener(&cfg.Listen[i]))
			m.listeners = append(m.listeners, i)
		}
	}
	if len(o.Listeners) == 0 {
		return nil
	}
	o.Meter = m
	s.http, err = httpedge.New(o)
	return err
}

// durabilityWord is what a 202 says of a message.
func durabilityWord(cfg *config.Config) string {
	if cfg.Queue.Engine == "spool" {
		return cfg.Queue.Durability
	}
	return cfg.Queue.Engine
}

// newHTTPListener says how the clients of one address are served.
func (s *server) newHTTPListener(l *config.Listener) httpedge.Listener {
	o := s.sessionOptions(l)
	o.HTTP = true
	o.Hide = nil // EHLO is between us
	o.MaxErrors = o.MaxRecipients + 100
	listener := httpedge.Listener{
		Name:         l.Name,
		Address:      l.Address.Addr,
		Session:      session.NewServer(o),
		MayRelay:     policy.NewNetworks(l.RelayFrom).Contains,
		MayPost:      policy.NewNetworks(l.PostFrom).Contains,
		AuthRequired: l.AuthRequired,
		Gate:         s.parts.gate,
	}
	for _, word := range l.Auth {
		switch word {
		case "BEARER":
			listener.Bearer = true
		case "BASIC":
			listener.Basic = true
		case "EXTERNAL":
			listener.External = true
		}
	}
	if len(l.ProxyProtocolFrom) > 0 {
		listener.Proxies = policy.NewNetworks(l.ProxyProtocolFrom).Contains
	}
	if l.TLS != "off" {
		ask, _ := certs.ParseClientCertificates(l.ClientCertificates) // a word that the configuration has checked
		listener.TLS = s.parts.certs.Config(ask)
		listener.TLSFacts = s.parts.tlsFacts
	}
	return listener
}

// httpMeter lets the HTTP edge count in the words of the loops.
type httpMeter struct {
	reg       *metrics.Registry
	l         *metrics.Loop
	listeners []int // their places in the configuration
}

var httpConnResults = [...]loop.ConnResult{
	httpedge.ConnAccepted: loop.ConnAccepted, httpedge.ConnOverLimit: loop.ConnOverLimit, httpedge.ConnPerAddress: loop.ConnPerAddress,
	httpedge.ConnPerPrefix: loop.ConnPerPrefix, httpedge.ConnRate: loop.ConnRate,
}

var httpEvents = [httpedge.NumEvents]loop.Event{
	httpedge.EventPanic: loop.EventPanic, httpedge.EventTimeout: loop.EventTimeout, httpedge.EventOrphan: loop.EventOrphan,
	httpedge.EventProxyMissing: loop.EventProxyMissing, httpedge.EventProxyBad: loop.EventProxyBad,
	httpedge.EventHandshakeFailed: loop.EventHandshakeFailed, httpedge.EventValidatorFailed: loop.EventValidatorFailed,
}

func (m httpMeter) Connection(listener int, r httpedge.ConnResult) {
	m.l.Connection(m.listeners[listener], int(httpConnResults[r]))
}
func (m httpMeter) OpenConnections(listener int, delta int)      { m.l.Open(m.listeners[listener], delta) }
func (m httpMeter) Reply(stage session.Stage, code uint16)       { m.l.Reply(int(stage), code) }
func (m httpMeter) Event(e httpedge.Event)                       { m.l.Event(int(httpEvents[e])) }
func (m httpMeter) Handshake(ok bool, v string, d time.Duration) { m.l.Handshake(ok, v, d) }
func (m httpMeter) Request(status int)                           { m.reg.HTTPRequest(status) }
func (m httpMeter) Refusal(stage session.Stage, reason session.Reason, code uint16) {
	m.l.Refusal(int(stage), int(reason), code)
}
func (m httpMeter) Message(protocol string, accepted bool, size int64, ack time.Duration) {
	m.l.Message(protocol, accepted, size, ack)
}
