package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/fastedge/fastedge/smtpcodec"
	"github.com/fastedge/fastedge/spf"
)

// Resolver answers DNS queries. Lookup gives the answer at once, with now true, or calls done exactly once, later, from any goroutine but
// never within the call, and done must not block. client is whose share of the queries it counts against.
type Resolver interface {
	Lookup(q spf.Query, client netip.Addr, done func(spf.Answer)) (a spf.Answer, now bool)
}

// SPFRule is what happens to a transaction whose check has one certain result.
type SPFRule struct {
	// Code is the reply code: a 2yz accepts with these words, a 4yz or 5yz refuses.
	Code uint16
	// Message is an enhanced status code and text, in which {reason} stands for why: the domain's own explanation, or a phrase. Empty is
	// the reply of RFC 7372 for the result.
	Message string
}

// SPFOptions of an SPF. Zero values mean the defaults named.
type SPFOptions struct {
	Resolver Resolver
	// Enforce applies the rules. Otherwise results are counted, logged and written into the message only.
	Enforce bool
	// HeloFirst checks the HELO identity too (RFC 7208 §2.3); its fail is the result, whatever the reverse-path says.
	HeloFirst bool
	// At is where rules are applied: AtMail, AtRcpt or AtData. The check begins at MAIL, so later is less waiting. Default AtMail.
	At Stage
	// Rules by result. A result without a rule changes nothing.
	Rules map[spf.Code]SPFRule
	// Skip are networks that are not checked. Clients that may relay or have logged in, loopback and unix sockets never are.
	Skip *Networks
	// Timeout is for all lookups of one transaction together; then the result is temperror. Default 10 seconds.
	Timeout time.Duration
	// MaxVoid is spf.Params.MaxVoid.
	MaxVoid int
	// Hostname is ours: %{r}, and the authserv-id of fields.
	Hostname string
	// Told is told of each result of a transaction and what became of it: "none", "accepted", "refused", or "observed" for what would
	// have been refused. It must not block. Nil means nobody.
	Told func(result spf.Code, action string)
	// Checked gets each finished check; for the log. It runs on any goroutine and must not block. Nil means nobody.
	Checked func(c SPFChecked)
}

// SPFChecked is one finished check.
type SPFChecked struct {
	Session  string
	Client   netip.Addr
	Identity spf.Identity
	Sender   string
	Result   spf.Result
	Elapsed  time.Duration
}

// SPF checks senders (RFC 7208), once for each transaction and always the present one. It is a Validator for all listeners.
//
// The check is a state machine that asks for one DNS answer after the other (package spf). It runs on the event loop as long as the cache
// has the answers, and goes on wherever later ones come in; whoever needs the result then waits with Pend.
type SPF struct {
	o     SPFOptions
	on    Stages
	rules [spf.PermError + 1]*compiledSPF
	runs  sync.Pool // of *spfRun, with no lookup under way
}

// compiledSPF is a rule with its message cut at {reason}.
type compiledSPF struct {
	reply smtpcodec.Reply
	parts []string
}

const reasonMark = "{reason}"

// rfc7372 are the replies for a rule that has only a code; RFC 7372 §3.2.
var rfc7372 = map[spf.Code]string{
	spf.Fail:      "5.7.23 SPF validation failed: " + reasonMark,
	spf.TempError: "4.7.24 SPF validation error: " + reasonMark,
	spf.PermError: "5.7.24 SPF validation error: " + reasonMark,
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
	s := &SPF{o: o, on: On(AtMail, o.At, AtMessage, AtClose)}
	if o.HeloFirst {
		s.on |= On(AtHelo)
	}
	s.runs.New = func() any { return newSPFRun(s) }
	for code, rule := range o.Rules {
		c, err := compileSPF(code, rule)
		if err != nil {
			return nil, fmt.Errorf("policy: SPF rule for %v: %w", code, err)
		}
		s.rules[code] = c
	}
	return s, nil
}

func compileSPF(code spf.Code, rule SPFRule) (*compiledSPF, error) {
	text := rule.Message
	if text == "" {
		if text = rfc7372[code]; text == "" {
			text = fmt.Sprintf("%d.7.0 SPF %v: %s", rule.Code/100, code, reasonMark)
		}
	}
	if rule.Code < 200 || rule.Code > 599 || rule.Code/100 == 3 {
		return nil, fmt.Errorf("%d is no reply code for it", rule.Code)
	}
	for _, b := range []byte(text) {
		if b < ' ' || b > '~' {
			return nil, fmt.Errorf("%q has other characters than printable ASCII", text)
		}
	}
	if rest := strings.ReplaceAll(text, reasonMark, ""); strings.ContainsAny(rest, "{}") {
		return nil, fmt.Errorf("%q: %s is the only thing that can be filled in", text, reasonMark)
	}
	parsed, _, err := smtpcodec.ParseReply(fmt.Appendf(nil, "%d %s\r\n", rule.Code, text))
	if err != nil {
		return nil, err
	}
	c := &compiledSPF{reply: parsed, parts: strings.Split(parsed.Text, reasonMark)}
	if c.reply.Enhanced == (smtpcodec.EnhancedCode{}) {
		c.reply.Enhanced = smtpcodec.EnhancedCode{Class: rule.Code / 100, Subject: 7}
	}
	return c, nil
}

// replyFor fills in why, by plain substitution: what a stranger wrote is never a template.
func (c *compiledSPF) replyFor(why string) smtpcodec.Reply {
	r := c.reply
	r.Text = strings.TrimRight(strings.Join(c.parts, why), " ")
	return r
}

// Stages is where the check begins, where it is enforced, and where its fields are written.
func (s *SPF) Stages() Stages { return s.on }

// Remembers is Rememberer's.
func (s *SPF) Remembers() bool { return true }

// Validate begins the check, applies its result, or writes it down.
func (s *SPF) Validate(e *Event) error {
	run, _ := (*e.Slot).(*spfRun)
	switch e.Stage {
	case AtHelo:
		s.recycle(run)
		*e.Slot = nil
		if s.skips(&e.Client) {
			return nil
		}
		run = s.run(&e.Client)
		*e.Slot = run
		run.begin(spf.Params{Identity: spf.Helo, Helo: string(e.Client.Helo)})
		return nil
	case AtClose:
		s.recycle(run)
		*e.Slot = nil
		return nil
	case AtMail:
		if s.skips(&e.Client) {
			s.recycle(run)
			*e.Slot = nil
			return nil
		}
		run = s.mailRun(run, e)
		*e.Slot = run
	}
	if run == nil {
		return nil
	}
	if e.Stage != s.o.At && e.Stage != AtMessage {
		return nil
	}
	if result, identity, done := run.outcome(); done {
		e.Reply, e.Fields = s.apply(e, result, identity)
		return nil
	}
	p := e.Pend()
	run.await(func() {
		result, identity, _ := run.outcome()
		p.Done(s.apply(&p.Event, result, identity))
	})
	return nil
}

// skips says that a client is not checked.
func (s *SPF) skips(c *Client) bool {
	addr := c.Addr.Addr()
	return !addr.IsValid() || addr.IsLoopback() || c.MayRelay || c.User != "" || s.o.Skip.Contains(addr)
}

// apply gives the reply and the fields for a result, at the stage of e.
func (s *SPF) apply(e *Event, result spf.Result, identity spf.Identity) (reply smtpcodec.Reply, fields []byte) {
	if e.Stage == AtMessage {
		fields = appendReceivedSPF(nil, e, &result, identity, s.o.Hostname)
		return reply, appendSPFResults(fields, e, &result, identity, s.o.Hostname)
	}
	rule, action := s.rules[result.Code], "none"
	if rule != nil {
		r := rule.replyFor(result.Reason)
		switch refused := r.Code/100 != 2; {
		case refused && !s.o.Enforce:
			action = "observed"
		case refused:
			reply, action = r, "refused"
		case s.o.Enforce:
			reply, action = r, "accepted"
		}
	}
	if s.o.Told != nil {
		s.o.Told(result.Code, action)
	}
	return reply, nil
}

// run gives an idle run for a client.
func (s *SPF) run(c *Client) *spfRun {
	r := s.runs.Get().(*spfRun)
	r.client, r.session = c.Addr.Addr(), c.ID.String()
	return r
}

// mailRun begins the check of the reverse-path, behind that of HELO, if there is one.
func (s *SPF) mailRun(run *spfRun, e *Event) *spfRun {
	if run == nil || !run.free() {
		// The check of a transaction that was given up is still about: it is left alone.
		old := run
		run = s.run(&e.Client)
		if old != nil {
			old.giveHelo(run)
		}
	}
	run.begin(spf.Params{Identity: spf.MailFrom, Helo: string(e.Client.Helo), Sender: string(e.Path.Mailbox)})
	return run
}

// recycle takes a run back that nobody will ask any more.
func (s *SPF) recycle(run *spfRun) {
	if run != nil && run.idle() {
		run.reset()
		s.runs.Put(run)
	}
}

// spfRun is the checks of one session's present transaction: HELO's, if wanted, then the reverse-path's.
type spfRun struct {
	s       *SPF
	client  netip.Addr
	session string
	answer  func(spf.Answer) // answered, made once

	mu      sync.Mutex
	check   spf.Check
	params  spf.Params // of check
	asking  bool       // a lookup is under way
	running bool       // check has no result yet
	next    *spf.Params
	begun   time.Time
	timer   *time.Timer // calls expire; kept for the next check
	until   time.Time   // when the checks must be over; zero while nothing is waited for
	helo    *spf.Result
	mail    *spf.Result
	waiters []func()
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
	r.client, r.session, r.params, r.next = netip.Addr{}, "", spf.Params{}, nil
	r.helo, r.mail, r.waiters, r.until = nil, nil, nil, time.Time{}
}

// idle says that no lookup is under way, so that the run may be used for something else.
func (r *spfRun) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.asking && !r.running
}

// free says that a check may begin on it: none is under way, nor a lookup for one that was given up; or it is HELO's, behind which another one may
// wait.
func (r *spfRun) free() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.running && !r.asking || r.running && r.params.Identity == spf.Helo && r.next == nil
}

// giveHelo hands HELO's result on to the run of a later transaction.
func (r *spfRun) giveHelo(to *spfRun) {
	r.mu.Lock()
	defer r.mu.Unlock()
	to.helo = r.helo
}

// begin starts a check, or puts it behind HELO's.
func (r *spfRun) begin(p spf.Params) {
	p.IP, p.Receiver, p.MaxVoid, p.Now = r.client, r.s.o.Hostname, r.s.o.MaxVoid, time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Identity == spf.MailFrom {
		r.mail = nil
		switch {
		case r.running:
			r.next = &p
			r.limit(p.Now) // anew: HELO's time was its own
			return
		case r.helo != nil && r.helo.Code == spf.Fail:
			return // that is the result
		}
	}
	r.start(p)
	r.drive()
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
	r.params, r.running, r.begun = p, true, p.Now
	r.check.Reset(p)
}

// drive asks until an answer has to be waited for, or the check is over. r.mu is held.
func (r *spfRun) drive() {
	for r.running {
		q, more := r.check.Next()
		if !more {
			r.over()
			continue
		}
		a, now := r.s.o.Resolver.Lookup(q, r.client, r.answer)
		if !now {
			r.asking = true
			if r.until.IsZero() {
				r.limit(r.begun)
			}
			return
		}
		r.check.Feed(a)
	}
}

// over takes a check's result, and begins the one behind it. r.mu is held.
func (r *spfRun) over() {
	result := r.check.Result()
	r.running = false
	if r.s.o.Checked != nil {
		r.s.o.Checked(SPFChecked{Session: r.session, Client: r.client, Identity: r.params.Identity, Sender: r.params.Sender,
			Result: result, Elapsed: time.Since(r.begun)})
	}
	if r.params.Identity == spf.MailFrom {
		r.mail = &result
		return
	}
	r.helo = &result
	if p := r.next; p != nil {
		r.next = nil
		if result.Code != spf.Fail {
			r.start(*p)
		}
	}
}

// answered is what Lookup calls. Runs on: any goroutine.
func (r *spfRun) answered(a spf.Answer) {
	r.mu.Lock()
	r.asking = false
	if r.running {
		r.check.Feed(a)
		r.drive()
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
	var waiters []func()
	if !r.running {
		waiters, r.waiters, r.until = r.waiters, nil, time.Time{}
		if r.timer != nil {
			r.timer.Stop()
		}
	}
	r.mu.Unlock()
	for _, f := range waiters {
		f()
	}
}

// outcome is the result of the transaction, once it is there.
func (r *spfRun) outcome() (result spf.Result, identity spf.Identity, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.running:
		return result, 0, false
	case r.helo != nil && r.helo.Code == spf.Fail:
		return *r.helo, spf.Helo, true
	case r.mail != nil:
		return *r.mail, spf.MailFrom, true
	}
	return result, 0, true
}

// await calls f when the outcome is there, which may be now.
func (r *spfRun) await(f func()) {
	r.mu.Lock()
	if r.running {
		r.waiters = append(r.waiters, f)
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	f()
}
