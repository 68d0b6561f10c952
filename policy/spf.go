package policy

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/smtpcodec"
	"github.com/fastedge/fastedge/spf"
)

// Resolver answers DNS queries. Lookup gives the answer at once, with now true, or calls done exactly once, from any other goroutine, perhaps before
// it has returned, and done must not block. Lookup may call what others wait for, so no lock that these need may be held. client is whose share
// of the queries it counts against.
type Resolver interface {
	Lookup(q spf.Query, client netip.Addr, done func(spf.Answer)) (a spf.Answer, now bool)
}

// timed is a Resolver that need not ask for the time, which costs as much as a cached answer.
type timed interface {
	LookupAt(at time.Time, q spf.Query, client netip.Addr, done func(spf.Answer)) (a spf.Answer, now bool)
}

// SPFRule is what happens to a transaction whose check has one certain result.
type SPFRule struct {
	// Code is the reply code: a 2yz accepts with these words, a 4yz or 5yz refuses.
	Code uint16
	// Message is an enhanced status code and text, in which {reason} stands for why: the domain's own explanation, or a phrase. Empty is
	// the reply of RFC 7372 for the result, which says whose explanation it is.
	Message string
}

// SPFOptions of an SPF. Zero values mean the defaults named.
type SPFOptions struct {
	Resolver Resolver
	// Enforce applies the rules. Otherwise results are counted, logged and written into the message only, and no command waits for them.
	Enforce bool
	// HeloFirst checks the HELO identity too (RFC 7208 §2.3); its fail is the result, whatever the reverse-path says.
	HeloFirst bool
	// At is where rules are applied: AtMail, AtRcpt or AtData. The check begins at MAIL, so later is less waiting. Default AtMail.
	At Stage
	// Rules by result. A result without a rule changes nothing, but for a temperror by the client's own flood of lookups (spf.CauseClient), which is
	// deferred: it could choose else whether its fail is found.
	Rules map[spf.Code]SPFRule
	// Skip are networks that are not checked. Clients that may relay or have logged in, loopback and unix sockets never are.
	Skip *Networks
	// Timeout is for all lookups of one transaction together; then the result is temperror. Default 10 seconds.
	Timeout time.Duration
	// MaxVoid is spf.Params.MaxVoid.
	MaxVoid int
	// Hostname is ours, %{r}.
	Hostname string
	// Told is told of each result of a transaction, once, and what became of it. It runs on any goroutine and must not block. Nil means nobody.
	Told func(result spf.Code, action SPFAction)
	// Checked gets each finished check; for the log. It runs on any goroutine and must not block or ask the SPF anything. Nil means nobody.
	Checked func(c SPFChecked)
	// OnlyTrouble keeps from Checked what nobody looks for: none, neutral and pass.
	OnlyTrouble bool
}

// SPFAction is what became of a result.
type SPFAction uint8

const (
	SPFNone     SPFAction = iota // no rule
	SPFAccepted                  // with a reply of the rule
	SPFRefused
	SPFObserved // would have been refused
)

func (a SPFAction) String() string { return [...]string{"none", "accepted", "refused", "observed"}[a] }

// SPFChecked is one finished check.
type SPFChecked struct {
	Session  envelope.ID
	Client   netip.Addr
	Identity spf.Identity
	Sender   string
	Result   spf.Result
	Elapsed  time.Duration // 0 when the cache had all the answers
}

// SPF checks senders (RFC 7208), once for each transaction and always the present one. It is a Validator for all listeners. By itself it writes
// nothing into messages: see Results.
//
// The check is a state machine that asks for one DNS answer after the other (package spf). It runs on the event loop as long as the cache
// has the answers, and goes on wherever later ones come in; whoever needs the result then waits with Pend.
type SPF struct {
	o     SPFOptions
	timed timed // Resolver, if it is one
	on    Stages
	rules [spf.PermError + 1]*compiledSPF
	flood *compiledSPF
	runs  sync.Pool  // of *spfRun, with no lookup under way
	ours  *ourFields // of the Results that has taken it over, which has them written once for each kept result; nil: none
	seed  maphash.Seed
	kept  [keptResults / 2]keptPair
}

// compiledSPF is a rule with its message cut at {reason}.
type compiledSPF struct {
	reply smtpcodec.Reply
	parts []string
	ours  bool // the message
}

const reasonMark = "{reason}"

// explains stands between a domain and its own explanation, wherever the words around are ours (RFC 7208 §6.2 wants it to be told apart).
const explains = " explains: "

// keptTime is how long a result stands for the next messages by a client with the same name and sender's domain. It begins with a check that the cache
// answered, which lives by whole seconds and keeps everything for longer than this, so the next check would hardly ever find anything else.
const keptTime = time.Second

// keptResults is how many results are kept: 4,096 of 768 bytes, their fields included, are 3 MB.
const keptResults = 4096

// keptNames is how long the name of HELO and the domain may be together; results of longer ones, which hardly exist, are not kept.
const keptNames = 102

// keptKey is what a result is that of. helo and domain are borrowed.
type keptKey struct {
	client       netip.Addr
	helo, domain []byte
}

// keptResult is what a check has found out. Immutable. All that most messages need lies side by side: between two messages of a client others have had
// the processor's cache.
type keptResult struct {
	begun        time.Time
	client       netip.Addr
	helo, domain uint8           // their lengths
	names        [keptNames]byte // one behind the other
	result       spf.Result
	fields       spfFields
	room         [448]byte // of fields, if they are not longer
}

// newKept copies the key; nil is what is not to be kept: an explanation may hold the time, or the local-part.
func (s *SPF) newKept(begun time.Time, key *keptKey, result *spf.Result) *keptResult {
	if result == nil || len(key.helo)+len(key.domain) > keptNames || result.Code == spf.TempError || result.Explanation != "" || result.LocalPart {
		return nil
	}
	k := &keptResult{begun: begun, client: key.client, helo: uint8(len(key.helo)), domain: uint8(len(key.domain)), result: *result}
	copy(k.names[copy(k.names[:], key.helo):], key.domain)
	if s.ours != nil {
		k.fields = s.ours.spfFields(k.room[:0], key, result)
	}
	return k
}

// is says that the result is that of key, whenever.
func (k *keptResult) is(key *keptKey) bool {
	if k == nil || int(k.helo) != len(key.helo) || int(k.domain) != len(key.domain) || k.client != key.client {
		return false
	}
	domain := k.names[k.helo:]
	return string(k.names[:k.helo]) == string(key.helo) && string(domain[:k.domain]) == string(key.domain)
}

// stands says that the result is that of another message.
func (k *keptResult) stands(now time.Time, key *keptKey) bool {
	if !k.is(key) {
		return false
	}
	age := now.Sub(k.begun)
	return age >= 0 && age < keptTime
}

// keptPair are two places for the results that fall on them, of which a third one takes the older's.
type keptPair [2]atomic.Pointer[keptResult]

// places are where a result is kept, if it is.
func (s *SPF) places(key *keptKey) *keptPair {
	client := key.client.As16()
	return &s.kept[(maphash.Bytes(s.seed, key.domain)^maphash.Bytes(s.seed, client[:]))%uint64(len(s.kept))]
}

func (p *keptPair) find(now time.Time, key *keptKey) *keptResult {
	for i := range p {
		if k := p[i].Load(); k.stands(now, key) {
			return k
		}
	}
	return nil
}

func (p *keptPair) keep(key *keptKey, k *keptResult) {
	first, second := p[0].Load(), p[1].Load()
	switch {
	case first == nil || first.is(key):
		p[0].Store(k)
	case second == nil || second.is(key) || second.begun.Before(first.begun):
		p[1].Store(k)
	default:
		p[0].Store(k)
	}
}

// rfc7372 are the replies for a rule that has only a code; RFC 7372 §3.2. The class is that of the code. The other results have no status code of
// their own.
var rfc7372 = map[spf.Code]string{
	spf.Fail:      ".7.23 SPF validation failed: " + reasonMark,
	spf.TempError: ".7.24 SPF validation error: " + reasonMark,
	spf.PermError: ".7.24 SPF validation error: " + reasonMark,
}

// NewSPF checks the rules.
func NewSPF(o SPFOptions) (*SPF, error) {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.At == AtConnect {
		o.At = AtMail
	}
	if o.At != AtMail && o.At != AtRcpt && o.At != AtData {
		return nil, fmt.Errorf("policy: SPF can't be enforced at %v", o.At)
	}
	s := &SPF{o: o, on: On(AtMail, AtClose), seed: maphash.MakeSeed()}
	s.timed, _ = o.Resolver.(timed)
	if o.Enforce {
		s.on |= On(o.At)
	}
	if o.HeloFirst {
		s.on |= On(AtHelo)
	}
	s.runs.New = func() any { return newSPFRun(s) }
	s.flood, _ = compileSPF(spf.TempError, SPFRule{Code: 451}) // never fails
	for code, rule := range o.Rules {
		if int(code) >= len(s.rules) {
			return nil, fmt.Errorf("policy: SPF has no result %d", code)
		}
		c, err := compileSPF(code, rule)
		if err != nil {
			return nil, fmt.Errorf("policy: SPF rule for %v: %w", code, err)
		}
		s.rules[code] = c
	}
	return s, nil
}

func compileSPF(code spf.Code, rule SPFRule) (*compiledSPF, error) {
	if rule.Code < 200 || rule.Code > 599 || rule.Code/100 == 3 || rule.Code == 221 {
		return nil, fmt.Errorf("%d is no reply code for it", rule.Code)
	}
	text := rule.Message
	if text == "" {
		after := rfc7372[code]
		if after == "" {
			after = ".7.0 SPF " + code.String() + ": " + reasonMark
		}
		text = string(byte('0'+rule.Code/100)) + after
	}
	if err := checkTemplate(text, reasonMark); err != nil {
		return nil, err
	}
	r, err := parseTemplate(rule.Code, text)
	if err != nil {
		return nil, err
	}
	return &compiledSPF{reply: r, parts: strings.Split(r.Text, reasonMark), ours: rule.Message == ""}, nil
}

// checkTemplate takes the text of a reply in which some marks, like {reason}, will be filled in. Nothing else may stand in braces.
func checkTemplate(text string, marks ...string) error {
	rest := text
	for _, mark := range marks {
		rest = strings.ReplaceAll(rest, mark, "")
	}
	if strings.ContainsAny(rest, "{}") {
		return fmt.Errorf("%q: only %s can be filled in", text, strings.Join(marks, " and "))
	}
	for _, b := range []byte(text) {
		if b < ' ' || b > '~' {
			return fmt.Errorf("%q has other characters than printable ASCII", text)
		}
	}
	return nil
}

// parseTemplate takes the enhanced status code off a text, or makes one: X.7.0, other security status (RFC 3463 §3.8).
func parseTemplate(code uint16, text string) (smtpcodec.Reply, error) {
	r, n, err := smtpcodec.ParseReply(fmt.Appendf(nil, "%d %s\r\n", code, text))
	if err != nil || n == 0 {
		return r, fmt.Errorf("%q is no reply text", text)
	}
	if r.Enhanced == (smtpcodec.EnhancedCode{}) {
		if word, _, _ := strings.Cut(text, " "); strings.Count(word, ".") == 2 && strings.Trim(word, "0123456789.") == "" {
			return r, fmt.Errorf("%q is no enhanced status code of class %d", word, code/100)
		}
		r.Enhanced = smtpcodec.EnhancedCode{Class: code / 100, Subject: 7}
	}
	return r, nil
}

// replyFor fills in why, by plain substitution: what a stranger wrote is never a template.
func (c *compiledSPF) replyFor(result *spf.Result) smtpcodec.Reply {
	r, why := c.reply, whyOf(result)
	if c.ours && result.Explanation != "" {
		why = explainer(result) + explains + why
		// RFC 5321 §4.5.3.1.5: 512 bytes, with codes and CRLF.
		why = why[:min(len(why), 512-len("550 5.7.23 \r\n")-len(c.parts[0]))]
	}
	r.Text = c.parts[0]
	for _, part := range c.parts[1:] {
		r.Text += why + part
	}
	return r
}

// whyOf says why a result is what it is; it is never empty.
func whyOf(result *spf.Result) string {
	switch {
	case result.Reason != "":
		return result.Reason
	case result.Problem != "":
		return result.Problem
	}
	return "no SPF record"
}

// explainer says whose explanation a result has. A record may lead to a name with any characters; such a one is not shown.
func explainer(result *spf.Result) string {
	if isPlain(result.Domain) {
		return result.Domain
	}
	return "the domain"
}

// Stages is where the check begins and where it is enforced.
func (s *SPF) Stages() Stages { return s.on }

// Remembers is Rememberer's.
func (s *SPF) Remembers() bool { return true }

// spfState is what is remembered of a session. It belongs to the goroutine that asks: a message whose result is kept shares nothing with others, and
// waits for no lock.
type spfState struct {
	last *keptResult // which the next transaction mostly has again
	kept *keptResult // of the present transaction
	told bool        // SPFOptions.Told knows of kept
	run  *spfRun     // has the result, unless it is kept; both nil: there is no check
}

// Validate begins the check, or applies its result.
func (s *SPF) Validate(e *Event) error {
	state, _ := (*e.Slot).(*spfState)
	if state == nil {
		state = &spfState{}
		*e.Slot = state
	}
	s.step(state, e)
	return nil
}

// step is Validate.
func (s *SPF) step(state *spfState, e *Event) {
	switch e.Stage {
	case AtHelo:
		if !s.o.HeloFirst {
			return
		}
		s.forget(state)
		if !s.skips(&e.Client) {
			state.run = s.run(&e.Client)
			state.run.begin(spf.Helo, e.Now, e.Client.Helo, nil)
		}
		return
	case AtClose:
		s.forget(state)
		return
	case AtMail:
		if s.skips(&e.Client) {
			s.forget(state)
			return
		}
		s.mail(state, e)
	}
	if !state.checks() || !s.o.Enforce || e.Stage != s.o.At {
		return
	}
	if o, done := state.outcome(); done {
		e.Reply = s.enforce(o)
		return
	}
	p := e.Pend()
	state.run.await(func(o spfOutcome) { p.Done(s.enforce(o), nil) })
}

// checks says that there is a result, or will be.
func (state *spfState) checks() bool { return state.kept != nil || state.run != nil }

// outcome is that of the transaction, once it is there.
func (state *spfState) outcome() (o spfOutcome, done bool) {
	if state.kept == nil {
		return state.run.outcome()
	}
	k := state.kept
	o = spfOutcome{&k.result, spf.MailFrom, &k.fields, !state.told}
	state.told = true
	return o, true
}

// skips says that a client is not checked.
func (s *SPF) skips(c *Client) bool {
	addr := plainAddr(c.Addr.Addr())
	return !addr.IsValid() || addr.IsLoopback() || c.MayRelay || c.User != "" || s.o.Skip.Contains(addr)
}

// enforce gives the reply for an outcome.
func (s *SPF) enforce(o spfOutcome) (reply smtpcodec.Reply) {
	rule, action := s.ruleFor(o.result), SPFNone
	if rule != nil {
		if reply, action = rule.replyFor(o.result), SPFAccepted; reply.Code/100 != 2 {
			action = SPFRefused
		}
	}
	if s.o.Told != nil && o.first {
		s.o.Told(o.result.Code, action)
	}
	return reply
}

// ruleFor is nil for a result that changes nothing.
func (s *SPF) ruleFor(result *spf.Result) *compiledSPF {
	if rule := s.rules[result.Code]; rule != nil || result.Cause != spf.CauseClient {
		return rule
	}
	return s.flood
}

// heloDecides says that the result of HELO is that of the transaction, whatever the reverse-path says: a fail, or what may have been one.
func (s *SPF) heloDecides(helo *spf.Result) bool {
	return helo.Code == spf.Fail || s.o.Enforce && helo.Cause == spf.CauseClient
}

// observe is told of a result that no rule is applied to.
func (s *SPF) observe(result *spf.Result) {
	if s.o.Told == nil {
		return
	}
	if rule := s.ruleFor(result); rule != nil && rule.reply.Code/100 != 2 {
		s.o.Told(result.Code, SPFObserved)
	} else {
		s.o.Told(result.Code, SPFNone)
	}
}

// run gives an idle run for a client.
func (s *SPF) run(c *Client) *spfRun {
	r := s.runs.Get().(*spfRun)
	r.client, r.session = plainAddr(c.Addr.Addr()), c.ID
	return r
}

// mail finds the result of a reverse-path among those that are kept, or begins its check.
func (s *SPF) mail(state *spfState, e *Event) {
	state.kept = nil
	sender := e.Path.Mailbox
	if len(sender) == 0 || e.Now.IsZero() || s.o.HeloFirst { // the result of HELO would have a say
		state.run = s.mailRun(state.run, e)
		return
	}
	key := keptKey{plainAddr(e.Client.Addr.Addr()), e.Client.Helo, sender[bytes.LastIndexByte(sender, '@')+1:]}
	if !state.last.stands(e.Now, &key) {
		places := s.places(&key)
		k := places.find(e.Now, &key)
		if k == nil {
			state.run = s.mailRun(state.run, e)
			if k = s.newKept(e.Now, &key, state.run.cached()); k != nil {
				places.keep(&key, k)
				state.last, state.kept, state.told = k, k, !s.o.Enforce
			}
			return
		}
		state.last = k
	}
	k := state.last
	state.kept, state.told = k, !s.o.Enforce
	if s.tells(k.result.Code) {
		s.o.Checked(SPFChecked{Session: e.Client.ID, Client: key.client, Identity: spf.MailFrom, Sender: string(sender), Result: k.result})
	}
	if !s.o.Enforce {
		s.observe(&k.result)
	}
}

// mailRun begins the check of the reverse-path, behind that of HELO, if there is one.
func (s *SPF) mailRun(run *spfRun, e *Event) *spfRun {
	if run != nil && run.begin(spf.MailFrom, e.Now, e.Client.Helo, e.Path.Mailbox) {
		return run
	}
	// The check of a transaction that was given up is still about: it is left alone.
	old := run
	run = s.run(&e.Client)
	if old != nil {
		run.helo, run.hasHelo = old.heloResult()
	}
	run.begin(spf.MailFrom, e.Now, e.Client.Helo, e.Path.Mailbox)
	return run
}

// forget takes the run back, if nobody will ask it any more.
func (s *SPF) forget(state *spfState) {
	if run := state.run; run != nil && run.idle() {
		run.reset()
		s.runs.Put(run)
	}
	state.last, state.kept, state.run = nil, nil, nil
}

// spfRun is the checks of one session's present transaction: HELO's, if wanted, then the reverse-path's.
type spfRun struct {
	s       *SPF
	client  netip.Addr
	session envelope.ID
	answer  func(spf.Answer) // answered, made once

	// What a message needs in any case comes first, in as few cache lines as may be: between two messages of a session others have had the cache.
	mu       sync.Mutex
	asking   bool // a lookup is under way
	running  bool // check has no result yet
	waits    bool // next is to be checked after HELO
	told     bool // SPFOptions.Told knows
	hasHelo  bool
	hasMail  bool
	identity spf.Identity // of check
	from     string       // Sender of check
	name     string       // the last Params' Helo,
	sender   string       // and the last Sender that was not empty: a session's next message mostly has the same, and need not allocate them again
	begun    time.Time
	until    time.Time          // when the checks must be over; zero while nothing is waited for
	waiters  []func(spfOutcome) // of the present transaction
	mail     spf.Result         // if hasMail
	check    spf.Check
	timer    *time.Timer // calls expire; kept for the next check
	helo     spf.Result
	next     spf.Params
}

// spfOutcome is what a transaction's checks have come to.
type spfOutcome struct {
	result   *spf.Result // the run's own, until its next begin, or of what is kept
	identity spf.Identity
	fields   *spfFields // of what is kept, else nil
	first    bool       // nobody has had it before
}

func newSPFRun(s *SPF) *spfRun {
	r := &spfRun{s: s}
	r.answer = r.answered
	return r
}

// reset forgets everything but the timer, which may be about to fire: expire finds that nothing is waited for.
func (r *spfRun) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.client, r.session, r.identity, r.from, r.next, r.name, r.sender = netip.Addr{}, envelope.ID{}, 0, "", spf.Params{}, "", ""
	r.helo, r.mail, r.hasHelo, r.hasMail = spf.Result{}, spf.Result{}, false, false
	r.waits, r.waiters, r.until = false, nil, time.Time{}
}

// idle says that no lookup is under way, so that the run may be used for something else.
func (r *spfRun) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.asking && !r.running
}

// heloResult is for the run of a later transaction.
func (r *spfRun) heloResult() (spf.Result, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.helo, r.hasHelo
}

// begin starts a check, or puts it behind HELO's; helo and sender are borrowed. It gives false, and does nothing, where the check of a reverse-path
// may not begin: the one of a transaction that was given up is under way, or a lookup for it. HELO's may be, behind which this one waits, in place
// of that of a transaction before.
func (r *spfRun) begin(identity spf.Identity, now time.Time, helo, sender []byte) bool {
	if now.IsZero() {
		now = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if identity == spf.MailFrom {
		if r.running && r.identity != spf.Helo || r.asking && !r.running {
			return false
		}
	}
	if r.name != string(helo) {
		r.name = string(helo)
	}
	if len(sender) > 0 && r.sender != string(sender) {
		r.sender = string(sender)
	}
	p := spf.Params{IP: r.client, Helo: r.name, Identity: identity, Receiver: r.s.o.Hostname, MaxVoid: r.s.o.MaxVoid, Now: now}
	if len(sender) > 0 {
		p.Sender = r.sender
	}
	r.told, r.waiters = false, nil // whoever waited for a transaction before this one was cancelled
	if identity == spf.MailFrom {
		r.hasMail = false
		switch {
		case r.running:
			r.next, r.waits = p, true
			r.limit(now) // anew: HELO's time was its own
			return true
		case r.hasHelo && r.s.heloDecides(&r.helo):
			r.concluded()
			return true
		}
	}
	r.start(p)
	r.drive(now)
	return true
}

// cached is the result of a check that had all its answers from the cache, until the next begin; nil otherwise.
func (r *spfRun) cached() *spf.Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.hasMail || !r.until.IsZero() {
		return nil
	}
	return &r.mail
}

// limit sets the time at which everything is over: counted from MAIL, or from HELO until then. r.mu is held.
func (r *spfRun) limit(from time.Time) {
	r.until = from.Add(r.s.o.Timeout)
	if r.timer == nil {
		r.timer = time.AfterFunc(r.s.o.Timeout, r.expire)
	} else {
		r.timer.Reset(r.s.o.Timeout)
	}
}

func (r *spfRun) start(p spf.Params) {
	r.identity, r.from, r.running, r.begun = p.Identity, p.Sender, true, p.Now
	r.check.Reset(p)
}

// drive asks until an answer has to be waited for, or the check is over. now is the time when the check has just begun, else zero. r.mu is held, but
// not while DNS is asked: within one's Lookup the resolver may call back another, and two that did so for each other would wait for ever.
func (r *spfRun) drive(now time.Time) {
	for r.running {
		q, more := r.check.Next()
		if !more {
			r.over()
			continue
		}
		r.asking = true
		alone := !now.IsZero() && r.until.IsZero() // no answer is to come and no time may be up, so nobody else touches the check
		r.mu.Unlock()
		a, cached := r.lookup(now, q)
		for alone && cached {
			r.check.Feed(a)
			if q, more = r.check.Next(); !more {
				break
			}
			a, cached = r.lookup(now, q)
		}
		r.mu.Lock()
		if !cached {
			// The answer may have come meanwhile, and gone on with.
			if r.asking && r.running && r.until.IsZero() {
				r.limit(r.begun)
			}
			return
		}
		if r.asking = false; r.running && !alone {
			r.check.Feed(a)
		}
	}
}

func (r *spfRun) lookup(now time.Time, q spf.Query) (spf.Answer, bool) {
	if r.s.timed != nil && !now.IsZero() {
		return r.s.timed.LookupAt(now, q, r.client, r.answer)
	}
	return r.s.o.Resolver.Lookup(q, r.client, r.answer)
}

// over takes a check's result, and begins the one behind it. r.mu is held.
func (r *spfRun) over() {
	result := r.check.Result()
	r.running = false
	r.tellChecked(&result)
	if r.identity == spf.MailFrom {
		r.mail, r.hasMail = result, true
		r.concluded()
		return
	}
	r.helo, r.hasHelo = result, true
	if !r.waits {
		return
	}
	r.waits = false
	if r.s.heloDecides(&result) {
		r.concluded()
	} else {
		r.start(r.next)
	}
}

func (r *spfRun) tellChecked(result *spf.Result) {
	if r.s.tells(result.Code) {
		r.s.o.Checked(SPFChecked{Session: r.session, Client: r.client, Identity: r.identity, Sender: r.from, Result: *result,
			Elapsed: r.elapsed()})
	}
}

// tells says that Checked gets such a result.
func (s *SPF) tells(code spf.Code) bool {
	return s.o.Checked != nil && !(s.o.OnlyTrouble && (code == spf.None || code == spf.Neutral || code == spf.Pass))
}

// elapsed is the time that a check has taken; none when nothing had to be waited for. Asking for the time costs more than most of a check
// that DNS's cache answers.
func (r *spfRun) elapsed() time.Duration {
	if r.until.IsZero() {
		return 0
	}
	return time.Since(r.begun)
}

// concluded tells of a transaction's result, where nothing else is done with it. r.mu is held.
func (r *spfRun) concluded() {
	if !r.s.o.Enforce {
		r.s.observe(r.take().result)
	}
}

// answered is what Lookup calls. Runs on: any goroutine.
func (r *spfRun) answered(a spf.Answer) {
	r.mu.Lock()
	r.asking = false
	if r.running {
		r.check.Feed(a)
		r.drive(time.Time{})
	}
	r.wake()
}

// expire ends what has taken too long.
func (r *spfRun) expire() {
	r.mu.Lock()
	if r.until.IsZero() || time.Now().Before(r.until) { // the timer of a check that is over
		r.mu.Unlock()
		return
	}
	for r.running { // HELO's, and the one behind it
		r.check.GiveUp("Timed out")
		r.over()
	}
	r.wake()
}

// wake calls those who wait, if there is an outcome. It unlocks r.mu.
func (r *spfRun) wake() {
	var waiters []func(spfOutcome)
	var o spfOutcome
	if !r.running {
		if waiters = r.waiters; len(waiters) > 0 {
			o = r.take()
			result := *o.result // a copy: the run may be in its next transaction when they are called
			o.result = &result
		}
		r.waiters, r.until = nil, time.Time{}
		if r.timer != nil {
			r.timer.Stop()
		}
	}
	r.mu.Unlock()
	for _, f := range waiters {
		f(o)
	}
}

// outcome is that of the transaction, once it is there.
func (r *spfRun) outcome() (o spfOutcome, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running {
		return o, false
	}
	return r.take(), true
}

// take is outcome. r.mu is held, and nothing is running.
func (r *spfRun) take() (o spfOutcome) {
	o.first, r.told = !r.told, true
	if r.hasHelo && r.s.heloDecides(&r.helo) {
		o.result, o.identity = &r.helo, spf.Helo
	} else {
		o.result, o.identity = &r.mail, spf.MailFrom
	}
	return o
}

// await calls f with the outcome when it is there, which may be now.
func (r *spfRun) await(f func(spfOutcome)) {
	r.mu.Lock()
	if r.running {
		r.waiters = append(r.waiters, f)
		r.mu.Unlock()
		return
	}
	o := r.take()
	r.mu.Unlock()
	f(o)
}
