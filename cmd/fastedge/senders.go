package main

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/internal/metrics"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/resolver"
	"github.com/fastedge/fastedge/spf"
)

// newSenders makes what asks DNS about clients and senders: lists, names, SPF, and the header fields that tell of them. counted counts; nil
// means nobody.
func (p *parts) newSenders(cfg *config.Config, log *slog.Logger, counted *metrics.Registry, wrong func(string, int, error)) {
	lists, spfOn, ptrOn := cfg.DNSBL.Mode != "off" && len(cfg.DNSBL.List) > 0, cfg.SPF.Mode != "off", cfg.PTR.Mode == "on"
	if lists || spfOn || ptrOn {
		r, err := resolver.New(resolver.Options{
			Servers:      cfg.DNS.Servers,
			Timeout:      cfg.DNS.Timeout,
			CacheBytes:   int64(cfg.DNS.CacheBytes),
			MaxInflight:  cfg.DNS.MaxInflight,
			MaxPerClient: cfg.DNS.MaxPerClient,
			MaxPerZone:   cfg.DNS.MaxPerZone,
			Log:          log,
		})
		if err != nil {
			wrong("dns.servers", -1, err)
			return
		}
		p.resolver = r
		p.closers = append(p.closers, r.Close)
	}
	o := policy.ResultsOptions{Hostname: cfg.Hostname} // no Logins: recipients need not know who logs in here, and under which name
	if spfOn {
		var ok bool
		if o.SPF, ok = p.newSPF(cfg, log, counted, wrong); !ok {
			return
		}
	}
	if ptrOn {
		po := policy.PTROptions{Resolver: p.resolver}
		if counted != nil {
			po.Told = counted.PTR
		}
		o.PTR = policy.NewPTR(po)
	}
	if cfg.SPF.Headers {
		p.authservID = cfg.Hostname
	}
	if cfg.SPF.Headers || o.SPF != nil || o.PTR != nil {
		o.EnvelopeOnly = !cfg.SPF.Headers
		p.add(policy.NewResults(o))
	}
	if lists { // behind the lookup of the name, which begins while they are waited for
		p.newDNSBL(cfg, log, counted, wrong)
	}
}

func (p *parts) newDNSBL(cfg *config.Config, log *slog.Logger, counted *metrics.Registry, wrong func(string, int, error)) {
	o := policy.DNSBLOptions{
		Resolver:  p.resolver,
		Threshold: cfg.DNSBL.Threshold,
		Observe:   cfg.DNSBL.Mode == "observe",
		Code:      uint16(cfg.DNSBL.Code),
		Message:   cfg.DNSBL.Message,
		Skip:      policy.NewNetworks(slices.Concat(cfg.DNSBL.Skip, cfg.Clients.Allow)),
		Timeout:   cfg.DNSBL.Timeout,
		Refused: func(session envelope.ID, client netip.Addr, zones []string, score int) {
			log.LogAttrs(context.Background(), slog.LevelInfo, "dnsbl", slog.String("session", session.String()),
				slog.String("client", client.String()), slog.Any("lists", zones), slog.Int("score", score))
		},
		Rests: func(zone string, rests bool) {
			if rests {
				log.Warn("DNS list does not answer, nobody waits for it", "list", zone)
			} else {
				log.Info("DNS list answers again", "list", zone)
			}
		},
	}
	if counted != nil {
		o.Told = counted.DNSBL
	}
	for _, l := range cfg.DNSBL.List {
		o.Zones = append(o.Zones, policy.DNSBLZone{Zone: l.Zone, Weight: l.Weight, Answers: l.Answers})
	}
	v, err := policy.NewDNSBL(o)
	if err != nil {
		wrong("dnsbl", -1, err)
		return
	}
	p.add(v)
}

// spfCodes are the results by their words.
var spfCodes = func() map[string]spf.Code {
	codes := map[string]spf.Code{}
	for c := spf.None; c <= spf.PermError; c++ {
		codes[c.String()] = c
	}
	return codes
}()

func (p *parts) newSPF(cfg *config.Config, log *slog.Logger, counted *metrics.Registry, wrong func(string, int, error)) (*policy.SPF, bool) {
	at, _ := policy.ParseStage(cfg.SPF.EnforceAt)
	o := policy.SPFOptions{
		Resolver:  p.resolver,
		Enforce:   cfg.SPF.Mode == "enforce",
		HeloFirst: cfg.SPF.Identity == "helo-then-mail",
		At:        at,
		Rules:     map[spf.Code]policy.SPFRule{},
		Skip:      policy.NewNetworks(cfg.SPF.Skip),
		Timeout:   cfg.SPF.Timeout,
		MaxVoid:   cfg.SPF.VoidLookups,
		Hostname:  cfg.Hostname,
		Checked:   func(c policy.SPFChecked) { logSPF(log, &c) },
		// Asking the log for its level costs as much as half of a check that is in the cache.
		OnlyTrouble: !log.Enabled(context.Background(), slog.LevelDebug),
	}
	if o.MaxVoid == 0 {
		o.MaxVoid = -1 // none may come back empty
	}
	if counted != nil {
		o.Told = func(result spf.Code, action policy.SPFAction) { counted.SPF(int(result), int(action)) }
	}
	for word, action := range cfg.SPF.On {
		o.Rules[spfCodes[word]] = policy.SPFRule{Code: uint16(action.Code), Message: action.Message}
	}
	v, err := policy.NewSPF(o)
	if err != nil {
		wrong("spf.on", -1, err)
		return nil, false
	}
	return v, true
}

// logSPF tells of a check: of what an operator looks for at info, of the others at debug.
func logSPF(log *slog.Logger, c *policy.SPFChecked) {
	level := slog.LevelInfo
	switch c.Result.Code {
	case spf.None, spf.Neutral, spf.Pass:
		level = slog.LevelDebug
	}
	if !log.Enabled(context.Background(), level) {
		return
	}
	reason := c.Result.Reason
	if c.Result.Problem != "" {
		reason = c.Result.Problem
	}
	log.LogAttrs(context.Background(), level, "spf",
		slog.String("session", c.Session.String()), slog.String("client", c.Client.String()), slog.String("identity", c.Identity.String()),
		slog.String("from", c.Sender), slog.String("result", c.Result.Code.String()), slog.String("domain", c.Result.Domain),
		slog.String("mechanism", c.Result.Mechanism), slog.String("reason", reason), slog.Int("lookups", c.Result.Lookups),
		slog.Int("voids", c.Result.Voids), slog.String("ms", strconv.FormatFloat(float64(c.Elapsed)/float64(time.Millisecond), 'f', 3, 64)))
}

// dnsStats is for the metrics; nil when nobody asks DNS.
func (p *parts) dnsStats() func() metrics.DNSStats {
	if p.resolver == nil {
		return nil
	}
	return func() metrics.DNSStats {
		st := p.resolver.Stats()
		return metrics.DNSStats{
			Lookups: map[string]uint64{
				"hit": st.Hits, "negative_hit": st.NegativeHits, "failure_hit": st.FailureHits, "stale": st.Stale, "miss": st.Misses,
				"coalesced": st.Coalesced, "prefetch": st.Prefetch,
			},
			Limited: map[string]uint64{
				"inflight": st.OverInflight, "client": st.OverClient, "zone": st.OverZone, "waiting": st.OverWaiting, "jostled": st.Jostled,
			},
			Answers: map[string]uint64{
				"taken": st.Answers, "stray": st.Strays, "wrong_question": st.WrongQuestion, "wrong_case": st.WrongCase, "malformed": st.Malformed,
				"truncated": st.Truncated, "too_big": st.TooBig, "servfail": st.ServFail, "refused": st.Refused, "other_rcode": st.OtherRcodes,
				"timeout": st.Timeouts,
			},
			Sent: st.Sent, Retransmits: st.Retransmits, Hedges: st.Hedges, ByTCP: st.ByTCP, Withheld: st.Withheld, Authentic: st.Authentic,
			Inflight: st.Inflight, Waiting: st.Waiting,
			CacheBytes: st.Positive.Bytes + st.Negative.Bytes + st.Failure.Bytes,
		}
	}
}
