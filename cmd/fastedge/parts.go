package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/internal/certs"
	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/internal/metrics"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/policy/hook"
	"github.com/fastedge/fastedge/policy/milter"
	"github.com/fastedge/fastedge/policy/rules"
	"github.com/fastedge/fastedge/resolver"
)

// parts are what decides about clients and mail: certificates, credentials, lists and validators. They are made of the configuration and the
// files that it names, so check makes them too, and throws them away.
type parts struct {
	certs      *certs.Store // nil without TLS
	auth       *auth.Service
	keys       *auth.Keys      // nil when no HTTP listener takes them
	passwords  *auth.Passwords // nil when no HTTP listener takes passwords or certificates
	relay      *policy.Relay
	gate       *policy.Gate
	resolver   *resolver.Resolver // nil when nobody asks DNS
	authservID string             // of the Authentication-Results that are written; empty without
	validators []policy.Validator
	asking     []asking // those of validators that ask others
	closers    []func()
	files      []reloadable
}

// asking is a hook or a milter.
type asking struct {
	name string
	*policy.Blocking
}

// reloadable is something that is read from files, and read again when they change.
type reloadable struct {
	what   string
	reload func() (changed bool, err error)
}

// newParts makes the parts. What is wrong with them is told with its place in the configuration, all of it at once. counted counts what they
// decide; nil means nobody does.
func newParts(cfg *config.Config, log *slog.Logger, counted *metrics.Registry) (*parts, config.Problems) {
	p := &parts{}
	var problems config.Problems
	wrong := func(key string, offset int, err error) {
		problems = append(problems, cfg.ProblemAt(key, offset, "%v", err))
	}

	var err error
	if p.relay, err = policy.NewRelay(cfg.Domains.Accept); err != nil {
		wrong("domains.accept", -1, err)
	}
	if err = p.newCertificates(cfg, log); err != nil {
		bad := certs.Problems(err)
		for _, one := range bad {
			wrong(one.Key(), -1, one)
		}
		if len(bad) == 0 {
			wrong("tls.certificates", -1, err)
		}
	}
	p.newAuth(cfg, log, wrong)
	p.newKeys(cfg, log, wrong)
	p.newValidators(cfg, log, counted, wrong)
	if len(problems) > 0 {
		p.close()
		return nil, problems
	}
	return p, nil
}

// newCertificates loads what TLS needs, if any listener wants it. A server that only this machine reaches may do without files.
func (p *parts) newCertificates(cfg *config.Config, log *slog.Logger) (err error) {
	wanted, local := false, true
	for _, l := range cfg.Listen {
		if l.TLS != "off" {
			wanted = true
			local = local && l.Address.IsLocal()
		}
	}
	if !wanted {
		return nil
	}
	o := certs.Options{
		MinVersion:     cfg.TLS.MinVersion,
		SessionTickets: cfg.TLS.SessionTickets,
		ClientCA:       cfg.TLS.ClientCA,
		Hostname:       cfg.Hostname,
		SelfMade:       local && len(cfg.TLS.Certificates) == 0,
		Log:            log,
	}
	for _, c := range cfg.TLS.Certificates {
		o.Pairs = append(o.Pairs, certs.Pair{Cert: c.Cert, Key: c.Key})
	}
	if p.certs, err = certs.Load(o); err != nil {
		return err
	}
	p.files = append(p.files, reloadable{"certificates", p.certs.Reload})
	return nil
}

// saslMechanism is what a store must be able to do for one of a listener's kinds of credentials; empty for API keys, which have a file of their own.
func saslMechanism(l *config.Listener, word string) string {
	switch {
	case l.Protocol != "http":
		return word
	case word == "BASIC":
		return auth.PLAIN
	case word == "EXTERNAL":
		return auth.EXTERNAL
	}
	return ""
}

// newKeys opens the file of API keys, if any listener takes them.
func (p *parts) newKeys(cfg *config.Config, log *slog.Logger, wrong func(string, int, error)) {
	if !slices.ContainsFunc(cfg.Listen, func(l config.Listener) bool { return l.Protocol == "http" && slices.Contains(l.Auth, "BEARER") }) {
		return
	}
	var err error
	if p.keys, err = auth.OpenKeys(cfg.Auth.Keys); err != nil {
		wrong("auth.keys", -1, err)
		return
	}
	if p.keys.Len() == 0 {
		log.Warn("auth.keys: no key is in " + cfg.Auth.Keys + " yet, see fastedge auth key add")
	}
	p.files = append(p.files, reloadable{"keys", p.keys.Reload})
}

// newAuth opens the stores of credentials, if any listener asks for logins.
func (p *parts) newAuth(cfg *config.Config, log *slog.Logger, wrong func(string, int, error)) {
	wanted, overHTTP := false, false
	for i := range cfg.Listen {
		l := &cfg.Listen[i]
		for _, word := range l.Auth {
			if saslMechanism(l, word) != "" {
				wanted, overHTTP = true, overHTTP || l.Protocol == "http"
			}
		}
	}
	if !wanted {
		return
	}
	var stores []auth.Store
	unknown := cfg.Auth.Dovecot != "" // what the stores can do is known later
	workers := 0                      // as many as auth thinks best for hashing
	if file := cfg.Auth.Users; file != "" {
		users, err := auth.OpenUsers(file)
		if err != nil {
			wrong("auth.users", -1, err)
		} else {
			stores = append(stores, users)
			if users.Table().Len() == 0 {
				unknown = true
				log.Warn("auth.users: nobody is in " + file + " yet, see fastedge auth add")
			}
			p.files = append(p.files, reloadable{"users", func() (bool, error) {
				changed, err := users.Reload()
				if changed && p.passwords != nil {
					p.passwords.Forget()
				}
				return changed, err
			}})
		}
	}
	if url := cfg.Auth.HTTP; url != "" {
		store, err := auth.NewHTTP(auth.HTTPOptions{URL: url, Timeout: cfg.Auth.Timeout, Mechanisms: httpMechanisms(cfg)})
		if err != nil {
			wrong("auth.http", -1, err)
		} else {
			workers = httpWorkers
			stores = append(stores, store)
		}
	}
	if path := cfg.Auth.Dovecot; path != "" {
		store, err := auth.NewDovecot(auth.DovecotOptions{Address: path})
		if err != nil {
			wrong("auth.dovecot", -1, err)
		} else {
			stores = append(stores, store)
			p.closers = append(p.closers, func() { store.Close() })
		}
	}
	if cfg.Auth.Users == "" && cfg.Auth.HTTP == "" && cfg.Auth.Dovecot == "" {
		stores = append(stores, certificates{})
	}
	if len(stores) == 0 {
		return // told above
	}
	var err error
	p.auth, err = auth.New(auth.Options{
		Store:       auth.Stores(stores...),
		Hostname:    cfg.Hostname,
		StepTimeout: cfg.Auth.Timeout,
		CRAMMD5:     cfg.Auth.CRAMMD5,
		Workers:     workers,
		Log:         log,
	})
	if err != nil {
		wrong("auth", -1, err)
		return
	}
	if overHTTP {
		p.passwords = auth.NewPasswords(p.auth, auth.PasswordsOptions{})
	}
	for i := range cfg.Listen {
		l := &cfg.Listen[i]
		for j, word := range l.Auth {
			if m := saslMechanism(l, word); m != "" && !unknown && !p.auth.Supports(m) {
				wrong("listen["+strconv.Itoa(i)+"].auth["+strconv.Itoa(j)+"]", -1, errors.New("no store of credentials can do "+word))
			}
		}
	}
}

// httpWorkers is how many logins a service over HTTP is asked about at once: each call holds a worker while it waits.
const httpWorkers = 64

// httpMechanisms are those that listeners offer and a service behind HTTP can check.
func httpMechanisms(cfg *config.Config) (list []string) {
	for i := range cfg.Listen {
		l := &cfg.Listen[i]
		for _, word := range l.Auth {
			switch m := saslMechanism(l, word); m {
			case auth.PLAIN, auth.LOGIN, auth.EXTERNAL, auth.OAUTHBEARER, auth.XOAUTH2:
				if !slices.Contains(list, m) {
					list = append(list, m)
				}
			}
		}
	}
	return list
}

// certificates is the store without a store: whoever has a certificate of tls.client_ca is who it says.
type certificates struct{}

func (certificates) Supports(mechanism string) bool { return mechanism == auth.EXTERNAL }

func (certificates) CheckIdentity(_ context.Context, l auth.Login) (string, error) {
	return l.User, nil
}

// newValidators puts the validators in the order in which they are asked: cheap ones first, and those that ask others last.
func (p *parts) newValidators(cfg *config.Config, log *slog.Logger, counted *metrics.Registry, wrong func(string, int, error)) {
	clients := policy.NewClients(cfg.Clients.Deny, cfg.Clients.Allow)
	p.add(clients)

	limits := policy.GateOptions{
		PerAddress:  cfg.Limits.ConnectionsPerIP,
		PerPrefix:   cfg.Limits.ConnectionsPerPrefix,
		Rate:        cfg.Limits.ConnectionRate,
		MessageRate: cfg.Limits.MessageRate,
		Exempt:      policy.NewNetworks(cfg.Clients.Allow),
	}
	if limits.PerAddress+limits.PerPrefix+limits.Rate+limits.MessageRate > 0 {
		p.gate = policy.NewGate(limits)
		p.add(p.gate)
	}
	if file := cfg.Domains.Recipients; file != "" {
		if recipients, err := policy.NewRecipients(file, cfg.Domains.Subaddress); err != nil {
			wrong("domains.recipients", -1, err)
		} else {
			p.add(recipients)
			p.files = append(p.files, reloadable{"recipients", recipients.Reload})
		}
	}
	p.newRules(cfg, log, counted, wrong)
	p.newSenders(cfg, log, counted, wrong)
	for i, h := range cfg.Hook {
		key := "hook[" + strconv.Itoa(i) + "]"
		v, err := hook.New(hook.Options{
			Name: h.Name, Stages: stagesOf(h.At), URL: h.URL, Timeout: h.Timeout, Cache: h.Cache, OnError: onError(h.OnError), Log: log,
		})
		if err != nil {
			wrong(key+".url", -1, err)
			continue
		}
		p.ask(h.Name, v, v.Blocking)
	}
	for i, m := range cfg.Milter {
		v, err := milter.New(milter.Options{
			Name: m.Name, Network: m.Address.Network, Address: m.Address.Addr, Hostname: cfg.Hostname, Timeout: m.Timeout,
			OnError: onError(m.OnError), Log: log,
		})
		if err != nil {
			wrong("milter["+strconv.Itoa(i)+"].address", -1, err)
			continue
		}
		p.ask(m.Name, v, v.Blocking)
	}
}

// ask adds a validator that asks others.
func (p *parts) ask(name string, v policy.Validator, b *policy.Blocking) {
	p.add(v)
	p.asking = append(p.asking, asking{name, b})
	p.closers = append(p.closers, b.Close)
}

func (p *parts) newRules(cfg *config.Config, log *slog.Logger, counted *metrics.Registry, wrong func(string, int, error)) {
	var list []rules.Rule
	for _, r := range cfg.Rule {
		at, _ := policy.ParseStage(r.At)
		list = append(list, rules.Rule{Name: r.Name, At: at, When: r.When, Reply: r.Reply, Accept: r.Accept, Observe: r.Mode == "observe"})
	}
	o := rules.Options{Log: log}
	if counted != nil {
		o.Observed = func(rule string, _ *policy.Event) { counted.RuleMatched(rule) }
	}
	set, err := rules.Compile(list, o)
	if err != nil {
		for _, one := range rules.Problems(err) {
			wrong("rule["+strconv.Itoa(one.Rule)+"]."+one.Field, one.Offset, errors.New(one.Message))
		}
		return
	}
	p.add(set)
}

// add leaves out validators that are asked nowhere.
func (p *parts) add(v policy.Validator) {
	if v.Stages() != 0 {
		p.validators = append(p.validators, v)
	}
}

// stagesOf and onError read words that the configuration has checked.
func stagesOf(words []string) (set policy.Stages) {
	for _, word := range words {
		if at, err := policy.ParseStage(word); err == nil {
			set |= policy.On(at)
		}
	}
	return set
}

func onError(word string) policy.OnError {
	e, _ := policy.ParseOnError(word)
	return e
}

// close ends what has connections.
func (p *parts) close() {
	for _, end := range p.closers {
		end()
	}
}

// tlsFacts makes what validators see of a handshake.
func (p *parts) tlsFacts(cs tls.ConnectionState) *policy.TLS {
	f := p.certs.Facts(cs)
	t := &policy.TLS{Version: f.Version, Cipher: f.Cipher, ServerName: f.ServerName}
	if c := f.Client; c != nil {
		t.Certificate = &policy.Certificate{
			Verified: c.Verified, CommonName: c.CommonName, Subject: c.Subject, Names: c.Names, Fingerprint: c.Fingerprint,
		}
	}
	return t
}

// stats is for the metrics.
func (p *parts) stats() (all []metrics.ValidatorStats) {
	for _, a := range p.asking {
		st := a.Stats()
		all = append(all, metrics.ValidatorStats{
			Name: a.name, Queued: st.Queued, Busy: st.Busy, Stuck: st.Stuck, Full: st.Full, Late: st.Late, Failed: st.Failed,
		})
	}
	return all
}

// expiry is for the metrics; nil without certificates.
func (p *parts) expiry() func() time.Time {
	if p.certs == nil {
		return nil
	}
	return p.certs.Expiry
}

// reloader reads files again when they have changed. It has a goroutine of its own, because reading may take a while.
type reloader struct {
	files []reloadable
	log   *slog.Logger
	told  map[string]string // the last trouble with each, so that it is told once
}

// run looks every so often, and at once when something comes over now, until stop is closed.
func (r *reloader) run(every time.Duration, now <-chan struct{}, stop <-chan struct{}) {
	r.told = map[string]string{}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-now:
			clear(r.told) // whoever asks wants to hear it again
		case <-tick.C:
		}
		for _, f := range r.files {
			r.look(f)
		}
	}
}

func (r *reloader) look(f reloadable) {
	changed, err := f.reload()
	switch {
	case err != nil && r.told[f.what] != err.Error():
		r.told[f.what] = err.Error()
		r.log.Error("reload: the old "+f.what+" stay in force", "error", err)
	case err == nil:
		delete(r.told, f.what)
		if changed {
			r.log.Info("reload: new " + f.what)
		}
	}
}
