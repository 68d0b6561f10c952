package spf

import (
	"net/netip"
	"strconv"
	"strings"
)

// Check is one evaluation of RFC 7208 §4. Make it by New, or Reset one that was used: then nothing is allocated for what records without
// macros need.
type Check struct {
	// Trace is called for each Step of the walk when it is not nil. Set it after New or Reset, before the first Feed.
	Trace func(Step)

	ip       netip.Addr // unmapped, without zone
	p        Params
	local    string // of the sender
	domain   string // of the sender: %{o}
	maxVoid  int
	odd      bool // the local-part is not ASCII
	redirect bool // a redirect= led to the outermost record
	depth    int
	frames   [MaxLookups + 1]frame // each include is a term that counts

	state state
	back  state // after the names of the client are there
	query Query
	hosts []string // of the MX answer, and the next of them
	host  int

	names  []string // of the PTR answer, normalized when they are first looked at
	tried  [MaxPTRNames]verdict
	name   int // that is being looked up
	looked bool

	result Result
}

// frame is a record in evaluation. The frame of depth n+1 is of the include that is term next-1 of the frame of depth n.
type frame struct {
	rec    *record
	domain string // %{d}
	next   int    // of rec.terms
}

// verdict is on a name of the client (RFC 7208 §5.5).
type verdict uint8

const (
	untried verdict = iota
	validated
	refuted
)

// state says what is to be done, or what was asked.
type state uint8

const (
	over        state = iota
	begin             // to do: ask for the record of the top frame
	advance           // to do: take the next term
	evaluate          // to do: the term taken; entered again when its %{p} is known
	leave             // to do: follow redirect=, or leave the record without a match; entered again likewise
	nextHost          // to do: ask for the addresses of the next MX host
	explain           // to do: ask for the explanation; entered again likewise
	expand            // to do: expand the explanation; entered again likewise
	askedRecord       // and all below wait for an answer
	askedAddrs
	askedExists
	askedMX
	askedHost
	askedPTR
	askedName
	askedExplanation
)

// New starts a check.
func New(p Params) *Check {
	c := new(Check)
	c.Reset(p)
	return c
}

// Reset starts another check in c, whatever has become of the one before. It keeps Trace.
func (c *Check) Reset(p Params) {
	// Field by field, because most of the frames were never used: clearing all of c costs as much as half of a check. BenchmarkProviderChain.
	if c.state != over {
		clear(c.frames[:])
	}
	c.ip, c.p, c.maxVoid = p.IP.WithZone("").Unmap(), p, p.MaxVoid
	c.odd, c.redirect, c.depth = false, false, 0
	c.state, c.back, c.query = over, over, Query{}
	c.hosts, c.host = nil, 0
	c.names, c.tried, c.name, c.looked = nil, [MaxPTRNames]verdict{}, 0, false
	c.result = Result{}
	switch {
	case p.MaxVoid == 0:
		c.maxVoid = DefaultMaxVoid
	case p.MaxVoid < 0:
		c.maxVoid = 0
	}
	// RFC 7208 §2.4, §4.3: postmaster where there is no local-part.
	c.local = "postmaster"
	if p.Identity == Helo || p.Sender == "" {
		c.domain = checkedName(p.Helo, false) // RFC 8616 §4: A-labels already
		if c.domain == "" {
			c.result.Problem = "the HELO name is no domain name of two labels"
		}
	} else {
		at := strings.LastIndexByte(p.Sender, '@')
		if at > 0 {
			c.local = p.Sender[:at]
		}
		c.domain = checkedName(p.Sender[at+1:], true)
		if c.domain == "" {
			c.result.Problem = "the sender has no domain name of two labels"
		}
	}
	for i := range len(c.local) {
		c.odd = c.odd || c.local[i] >= 0x80
	}
	if !c.ip.IsValid() {
		c.result.Problem = "the client's address is unknown"
	}
	if c.result.Problem != "" {
		c.result.Code = None
		return
	}
	c.frames[0].domain = c.domain
	c.state = begin
	c.run()
}

// Next gives the query that waits for its answer: the same until Feed. It is not ok when the check is over and Result has the outcome.
func (c *Check) Next() (q Query, ok bool) { return c.query, c.state >= askedRecord }

// Run asks lookup for each answer until the check is over: for callers that may wait.
func (c *Check) Run(lookup func(Query) Answer) Result {
	for c.state >= askedRecord {
		c.Feed(lookup(c.query))
	}
	return c.result
}

// Result is the outcome, once Next has none to ask. Before, it has the counters, and the outcome if nothing but its explanation is missing.
func (c *Check) Result() Result { return c.result }

// GiveUp ends a check that waits with TempError and that problem ("timed out"; RFC 7208 §4.6.4 wants 20 seconds or more before). A check that
// is over keeps its result, and one that only waits for an explanation ends without.
func (c *Check) GiveUp(problem string) {
	switch {
	case c.state == over:
	case c.explaining():
		c.finish()
	default:
		c.fail(TempError, printable(problem))
		c.run()
	}
}

// Feed brings the answer to the query that Next gave. Slices in a are kept until the check is over; they must not change.
func (c *Check) Feed(a Answer) {
	if c.state < askedRecord {
		panic("spf: Feed without a query")
	}
	c.result.Queries++
	count := 0
	switch c.query.Type {
	case TypeTXT:
		if a.TXT != nil {
			count = len(a.TXT.Strings)
		}
	case TypeA, TypeAAAA:
		count = len(a.Addrs)
	default:
		count = len(a.Hosts)
	}
	if a.Status == Found && count == 0 {
		a.Status = Empty
	}
	if c.Trace != nil {
		c.Trace(Step{Kind: StepAnswer, Depth: c.depth, Domain: c.frames[c.depth].domain, Query: c.query, Status: a.Status, Count: count})
	}
	asked := c.state
	if a.Status == Empty && !c.explaining() && asked != askedName {
		// RFC 7208 §4.6.4. Each query counts, those for hosts of an MX answer too.
		// Deviation: the names of a PTR answer don't count: the client has chosen them, so it could turn a Fail into a PermError by names that
		// lead nowhere. §5.5 has the same care with errors.
		c.result.Voids++
		if c.result.Voids > c.maxVoid && asked != askedRecord { // no record is dealt with below
			c.fail(PermError, "more than "+strconv.Itoa(c.maxVoid)+" lookups came back without data")
			c.run()
			return
		}
	}
	switch asked {
	case askedRecord:
		c.gotRecord(a)
	case askedAddrs, askedExists, askedHost:
		switch {
		case a.Status == Failed: // RFC 7208 §5
			c.lookupFailed(a.Cause)
		case asked == askedExists && a.Status == Found, asked != askedExists && c.matches(a.Addrs):
			c.match()
		case asked == askedHost:
			c.state = nextHost
		default:
			c.state = advance
		}
	case askedMX:
		switch {
		case a.Status == Failed:
			c.lookupFailed(a.Cause)
		case len(a.Hosts) > MaxMXHosts: // RFC 7208 §4.6.4; at once, so that the order of equal preferences makes no difference
			c.fail(PermError, c.query.Name+" has more than "+strconv.Itoa(MaxMXHosts)+" MX hosts")
		default:
			c.hosts, c.host = a.Hosts, 0
			c.state = nextHost
		}
	case askedPTR:
		// RFC 7208 §5.5: an error means that there are no names; §4.6.4: those after the tenth are ignored.
		c.looked = true
		if a.Status == Found {
			c.names = a.Hosts[:min(len(a.Hosts), MaxPTRNames)]
		}
		c.state = c.back
	case askedName:
		c.tried[c.name] = refuted // by an error, too
		for _, addr := range a.Addrs {
			if a.Status == Found && addr.Unmap() == c.ip {
				c.tried[c.name] = validated
			}
		}
		c.state = c.back
	case askedExplanation:
		c.state = over
		// RFC 7208 §6.2: one record and no more.
		if a.Status == Found && len(a.TXT.Strings) == 1 {
			c.hosts = a.TXT.Strings
			c.state = expand
		}
	}
	c.run()
}

// explaining says that the result is there, but for its explanation.
func (c *Check) explaining() bool {
	return c.state == askedExplanation || (c.state == askedPTR || c.state == askedName) && (c.back == explain || c.back == expand)
}

// lookupFailed ends the check for want of an answer (RFC 7208 §5).
func (c *Check) lookupFailed(why Cause) {
	what := c.query.Type.String() + " of " + c.query.Name
	switch why {
	case CauseUnreachable:
		what = "connection refused by every DNS server, asked for " + what
	case CauseBusy:
		what = "too many lookups under way, not asked for " + what
	case CauseClient:
		what = "too many lookups under way for this client, not asked for " + what
	default:
		what = "no answer for " + what
	}
	c.fail(TempError, what)
	c.result.Cause = why
}

// ask makes the query that Next gives.
func (c *Check) ask(name string, t QueryType, asked state) {
	c.query = Query{Name: name, Type: t}
	c.state = asked
}

// askAddrs asks for the addresses of the client's family (RFC 7208 §5).
func (c *Check) askAddrs(name string, asked state) {
	t := TypeA
	if c.ip.Is6() {
		t = TypeAAAA
	}
	c.ask(name, t, asked)
}

// run goes on until there is something to ask, or nothing to do.
func (c *Check) run() {
	for c.state < askedRecord {
		switch c.state {
		case over:
			c.finish()
			return
		case begin:
			c.ask(c.frames[c.depth].domain, TypeTXT, askedRecord)
		case advance:
			c.advance()
		case evaluate:
			c.evaluate()
		case leave:
			c.leave()
		case nextHost:
			c.nextHost()
		case explain:
			c.explain()
		case expand:
			c.expand()
		}
	}
}

// finish ends the check: nothing is kept but the result.
func (c *Check) finish() {
	c.state = over
	c.query = Query{}
	c.hosts, c.names = nil, nil
	clear(c.frames[:c.depth+1])
	r := &c.result
	switch r.Code {
	case Neutral:
		r.Reason = "access neither permitted nor denied"
	case Pass:
		r.Reason = "sender SPF authorized"
	case Fail:
		r.Reason = "SPF fail - not authorized"
		if r.Explanation != "" {
			r.Reason = r.Explanation
		}
	case SoftFail:
		r.Reason = "domain owner discourages use of this host"
	case TempError:
		r.Reason = "SPF Temporary Error: " + r.Problem
	case PermError:
		r.Reason = "SPF Permanent Error: " + r.Problem
	}
	if c.Trace != nil {
		c.Trace(Step{Kind: StepResult, Domain: r.Domain, Text: r.Reason, Code: r.Code})
	}
}

// fail ends the check by an error, wherever it is (RFC 7208 §2.6.6, §2.6.7).
func (c *Check) fail(code Code, problem string) {
	f := &c.frames[c.depth]
	c.result.Code, c.result.Problem, c.result.Domain = code, problem, f.domain
	switch {
	case f.rec == nil:
	case f.next > 0:
		c.result.Mechanism = f.rec.terms[f.next-1].mechanism()
	case f.rec.redirect != nil:
		c.result.Mechanism = clip(f.rec.redirect.word)
	}
	c.state = over
}

// count is RFC 7208 §4.6.4: a term that asks DNS. It fails the check and gives false when that is one too many.
func (c *Check) count() bool {
	if c.result.Lookups == MaxLookups {
		c.fail(PermError, "more than "+strconv.Itoa(MaxLookups)+" terms that ask DNS")
		return false
	}
	c.result.Lookups++
	return true
}

// gotRecord is RFC 7208 §4.4 and §4.5, and what an include and a redirect= make of no record (§5.2, §6.1).
func (c *Check) gotRecord(a Answer) {
	f := &c.frames[c.depth]
	switch {
	case a.Status == Failed:
		c.lookupFailed(a.Cause)
		return
	case a.Status == Found && a.TXT.problem != "":
		c.fail(PermError, f.domain+": "+a.TXT.problem)
		return
	case a.Status == Found && a.TXT.record != nil:
		f.rec, f.next = a.TXT.record, 0
		c.state = advance
		if c.Trace != nil {
			c.Trace(Step{Kind: StepRecord, Depth: c.depth, Domain: f.domain, Text: f.rec.text})
		}
		return
	}
	if c.Trace != nil {
		c.Trace(Step{Kind: StepNoRecord, Depth: c.depth, Domain: f.domain})
	}
	if c.depth == 0 && !c.redirect {
		c.result.Code, c.result.Domain, c.result.Problem = None, f.domain, "no SPF record"
		c.state = over
		return
	}
	c.fail(PermError, f.domain+" has no SPF record")
}

// advance takes the next term of the top record.
func (c *Check) advance() {
	f := &c.frames[c.depth]
	for f.next < len(f.rec.terms) {
		t := &f.rec.terms[f.next]
		f.next++
		if c.Trace != nil {
			c.Trace(Step{Kind: StepTerm, Depth: c.depth, Domain: f.domain, Text: t.text})
		}
		switch t.kind {
		case kindIP:
			if t.prefix.Contains(c.ip) {
				c.match()
				return
			}
		case kindAll:
			c.match()
			return
		default:
			if c.count() {
				c.state = evaluate
			}
			return
		}
	}
	c.state = leave
	if c.frames[c.depth].rec.redirect != nil {
		f.next = 0 // for fail: the term is the redirect=
		if c.Trace != nil {
			c.Trace(Step{Kind: StepTerm, Depth: c.depth, Domain: f.domain, Text: f.rec.redirect.word})
		}
		c.count()
	}
}

// evaluate is RFC 7208 §5 for the mechanisms that ask DNS.
func (c *Check) evaluate() {
	f := &c.frames[c.depth]
	t := &f.rec.terms[f.next-1]
	name := f.domain
	if t.spec != nil {
		var known bool
		if name, known = c.target(t.spec, evaluate); !known {
			return
		}
		if t.kind == kindInclude && t.spec.needs&needsLocal != 0 && c.odd {
			c.state = advance // RFC 8616 §4: it matches nothing
			return
		}
		if name == "" || t.kind == kindInclude && !severalLabels(name) {
			if t.kind == kindInclude { // RFC 7208 §4.3 says none, and §5.2 makes that PermError
				c.fail(PermError, "include of what is no domain name")
			} else {
				c.state = advance
			}
			return
		}
	}
	switch t.kind {
	case kindA:
		c.askAddrs(name, askedAddrs)
	case kindMX:
		c.ask(name, TypeMX, askedMX)
	case kindExists: // RFC 7208 §5.7: type A whatever the client's family
		c.ask(name, TypeA, askedExists)
	case kindInclude:
		c.depth++ // a term that counts, so there is a frame for it
		c.frames[c.depth] = frame{domain: name}
		c.state = begin
	case kindPTR:
		if !c.clientNames(evaluate) {
			return
		}
		for i := range c.names {
			n := c.clientName(i)
			switch {
			case n == "" || !within(n, name) || c.tried[i] == refuted:
			case c.tried[i] == validated:
				c.match()
				return
			default:
				c.askName(i, evaluate)
				return
			}
		}
		c.state = advance
	}
}

// match ends the record of the top frame with the term that was taken last, and the records above it as far as that decides them.
func (c *Check) match() {
	f := &c.frames[c.depth]
	t := &f.rec.terms[f.next-1]
	for {
		if c.Trace != nil {
			c.Trace(Step{Kind: StepMatch, Depth: c.depth, Domain: f.domain, Text: t.text, Code: t.code})
		}
		if c.depth == 0 {
			c.decide(t.code, t.mechanism())
			return
		}
		f, t = c.pop(t.code)
		if f == nil {
			return
		}
	}
}

// pop leaves the record of an include with a result (RFC 7208 §5.2). When that is Pass the include matches: its frame and term are given. Else
// the record above goes on.
func (c *Check) pop(code Code) (*frame, *term) {
	c.frames[c.depth] = frame{}
	c.depth--
	f := &c.frames[c.depth]
	t := &f.rec.terms[f.next-1]
	if c.Trace != nil {
		c.Trace(Step{Kind: StepLeave, Depth: c.depth, Domain: f.domain, Text: t.text, Code: code})
	}
	if code == Pass {
		return f, t
	}
	c.state = advance
	return nil, nil
}

// leave is what follows a record's last term: its redirect= (RFC 7208 §6.1), or Neutral (§4.7).
func (c *Check) leave() {
	f := &c.frames[c.depth]
	if f.rec.redirect == nil {
		if c.depth == 0 {
			c.decide(Neutral, "default")
		} else {
			c.pop(Neutral)
		}
		return
	}
	name, known := c.target(f.rec.redirect, leave)
	switch {
	case !known:
		return
	case name == "" || !severalLabels(name):
		c.fail(PermError, "redirect to what is no domain name")
		return
	}
	if c.depth == 0 {
		c.redirect = true
	}
	*f = frame{domain: name}
	c.state = begin
	if c.Trace != nil {
		c.Trace(Step{Kind: StepRedirect, Depth: c.depth, Domain: name})
	}
}

// decide is the result of the outermost record. RFC 7208 §6.2: exp= is its own, for Fail only.
func (c *Check) decide(code Code, mechanism string) {
	f := &c.frames[0]
	c.result.Code, c.result.Mechanism, c.result.Domain = code, mechanism, f.domain
	c.state = over
	if code == Fail && f.rec.exp != nil {
		c.state = explain
	}
}

// matches says whether the client is in the network of one of the addresses, by the prefix lengths of the term (RFC 7208 §5.3, §5.4).
func (c *Check) matches(addrs []netip.Addr) bool {
	f := &c.frames[c.depth]
	bits := int(f.rec.terms[f.next-1].bits4)
	if c.ip.Is6() {
		bits = int(f.rec.terms[f.next-1].bits6)
	}
	for _, a := range addrs {
		if c.ip.Is4() {
			a = a.Unmap() // of an A record, however it was made; Contains tells families apart
		}
		if netip.PrefixFrom(a, bits).Contains(c.ip) {
			return true
		}
	}
	return false
}

func (c *Check) nextHost() {
	for c.host < len(c.hosts) {
		name := queryName(c.hosts[c.host])
		c.host++
		if name != "" { // RFC 7505: "." is no host
			c.askAddrs(name, askedHost)
			return
		}
	}
	c.hosts = nil
	c.state = advance
}

// target expands a domain-spec to what DNS can be asked; an empty name exists nowhere. When names of the client have to be looked up first, it
// asks for them, is not known, and the state to is entered again.
func (c *Check) target(s *spec, to state) (name string, known bool) {
	if s.macros == nil {
		return s.name, true
	}
	if s.needs&needsLocal != 0 {
		c.result.LocalPart = true
		if c.odd {
			return "", true // RFC 8616 §4
		}
	}
	var p string
	if s.needs&needsP != 0 {
		if p, known = c.validatedName(to); !known {
			return "", false
		}
	}
	return c.expandName(s.macros, p), true
}

// nameTail is how much of the right end of an expanded domain-spec is looked at: a trailing dot, the 253 bytes that a name may have, and the dot before
// them, at which queryName cuts what is longer, or finds none; and one byte, so that it is longer.
const nameTail = 1 + 1 + maxNameBytes + 1

// expandName is queryName of a domain-spec's expansion. It expands from the right until the rest makes no difference: a record of 16 kB has room for
// thousands of macros, each of them good for hundreds of bytes, and this runs on the event loop. BenchmarkHostileMacros.
func (c *Check) expandName(m macros, p string) string {
	var tail [nameTail]byte
	var value [256]byte
	var space [3 * 256]byte // escaped
	at := len(tail)
	for i := len(m) - 1; i >= 0 && at > 0; i-- {
		one := &m[i]
		if one.letter == 0 {
			text := one.literal[max(0, len(one.literal)-at):]
			at -= len(text)
			copy(tail[at:], text)
			continue
		}
		text := one.appendTo(space[:0], c.appendValue(value[:0], one.letter, p))
		text = text[max(0, len(text)-at):]
		at -= len(text)
		copy(tail[at:], text)
	}
	return queryName(string(tail[at:]))
}

// clientNames sees to it that the names of the client's address are known, else it asks for them and to is entered again.
func (c *Check) clientNames(to state) bool {
	if !c.looked {
		c.back = to
		c.ask(reverseName(c.ip), TypePTR, askedPTR)
	}
	return c.looked
}

// clientName gives name i of the PTR answer as it may be asked for, or nothing.
func (c *Check) clientName(i int) string { return queryName(c.names[i]) }

func (c *Check) askName(i int, to state) {
	c.name, c.back = i, to
	c.askAddrs(c.clientName(i), askedName)
}

// validatedName is %{p} (RFC 7208 §7.3): the domain itself if that is a validated name of the client, else one below it, else any, else
// "unknown".
func (c *Check) validatedName(to state) (name string, known bool) {
	if !c.clientNames(to) {
		return "", false
	}
	domain := c.frames[c.depth].domain
	for class := range 3 {
		for i := range c.names {
			n := c.clientName(i)
			is := 2
			if n == domain {
				is = 0
			} else if within(n, domain) {
				is = 1
			}
			switch {
			case is != class || n == "" || c.tried[i] == refuted:
			case c.tried[i] == validated:
				return n, true
			default:
				c.askName(i, to)
				return "", false
			}
		}
	}
	return "unknown", true
}

// appendMacros expands m, until there are more than limit bytes.
func (c *Check) appendMacros(dst []byte, m macros, p string, limit int) []byte {
	var space [256]byte
	for i := range m {
		one := &m[i]
		if one.letter == 0 {
			dst = append(dst, one.literal...)
		} else {
			dst = one.appendTo(dst, c.appendValue(space[:0], one.letter, p))
		}
		if len(dst) > limit {
			break
		}
	}
	return dst
}

// appendValue appends what a macro letter stands for (RFC 7208 §7.2).
func (c *Check) appendValue(b []byte, letter byte, p string) []byte {
	switch letter {
	case 's':
		c.result.LocalPart = true
		b = append(b, c.local...)
		b = append(b, '@')
		return append(b, c.domain...)
	case 'l':
		c.result.LocalPart = true
		return append(b, c.local...)
	case 'o':
		return append(b, c.domain...)
	case 'd':
		return append(b, c.frames[c.depth].domain...)
	case 'i':
		return appendDotted(b, c.ip)
	case 'p':
		return append(b, p...)
	case 'v':
		if c.ip.Is4() {
			return append(b, "in-addr"...)
		}
		return append(b, "ip6"...)
	case 'h':
		return append(b, c.p.Helo...)
	case 'c':
		return c.ip.AppendTo(b)
	case 'r':
		if c.p.Receiver == "" {
			return append(b, "unknown"...)
		}
		return append(b, c.p.Receiver...)
	case 't':
		return strconv.AppendInt(b, c.p.Now.Unix(), 10)
	}
	panic("spf: macro letter " + string(letter))
}

// explain asks for the explanation of a Fail (RFC 7208 §6.2). Whatever goes wrong, there is none.
func (c *Check) explain() {
	name, known := c.target(c.frames[0].rec.exp, explain)
	switch {
	case !known:
	case name == "":
		c.state = over
	default:
		c.ask(name, TypeTXT, askedExplanation)
	}
}

// expand makes the explanation of its text, which is in hosts.
func (c *Check) expand() {
	m, _, problem := parseMacros(c.hosts[0], inExplanation)
	if problem != "" {
		c.state = over
		return
	}
	var p string
	for i := range m {
		if m[i].letter == 'p' {
			var known bool
			if p, known = c.validatedName(expand); !known {
				return
			}
			break
		}
	}
	var space [512]byte
	c.result.Explanation = explanation(c.appendMacros(space[:0], m, p, MaxExplanationBytes))
	c.state = over
}

// explanation is b as far as it may be shown: nothing of it when a byte is not in 0x20 to 0x7E, for it is a stranger's and ends in replies
// and headers; and no more than MaxExplanationBytes.
func explanation(b []byte) string {
	for _, c := range b {
		if c < 0x20 || c > 0x7E {
			return ""
		}
	}
	return string(b[:min(len(b), MaxExplanationBytes)])
}

// printable is s with "?" for what is not in 0x20 to 0x7E.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7E {
			return '?'
		}
		return r
	}, s)
}
