package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/smtpcodec"
	"github.com/fastedge/fastedge/spf"
)

// DNSBLZone is one list of addresses in DNS (RFC 5782).
type DNSBLZone struct {
	Zone string
	// Weight is what being listed adds to a client's score; a negative one is a list of good clients. Zero means 1.
	Weight int
	// Answers are the addresses that mean "listed". Nil means 127.0.0.0/8 but for 127.255.255.0/24, by which lists say that they do not
	// answer us (RFC 5782 §2.1 has no rule for it, all do).
	Answers []netip.Prefix
}

// DNSBLOptions of a DNSBL. Zero values mean the defaults named.
type DNSBLOptions struct {
	Resolver Resolver
	Zones    []DNSBLZone
	// Threshold is the score from which a client is refused. Default 1.
	Threshold int
	// Observe counts and logs only, and no greeting waits for it.
	Observe bool
	// Code and Message refuse. {zone} is the first list that has the client, and {reason} what it says about it, or "listed". Default
	// 554 and "5.7.1 Service unavailable; client blocked by {zone}: {reason}".
	Code    uint16
	Message string
	// Skip are networks that are not looked up; loopback and clients that may relay never are.
	Skip *Networks
	// Timeout is how long the greeting waits. A list that has not answered by then has not listed: a dead list never stops mail. Default
	// 5 seconds.
	Timeout time.Duration
	// Told is told of each answer that lists a client, and of each that did not come or was not waited for, by zone: "listed", "failed". Nil means
	// nobody.
	Told func(zone, what string)
	// Rests is told of a list that nobody waits for from now on, because it is dead, and of its return. Nil means nobody.
	Rests func(zone string, rests bool)
	// Refused is told of each client over the threshold, also when it is only observed. Nil means nobody.
	Refused func(session envelope.ID, client netip.Addr, zones []string, score int)
}

// DNSBL asks lists about clients when they connect, all at once. It is a Validator for all listeners.
type DNSBL struct {
	o      DNSBLOptions
	reply  smtpcodec.Reply
	tells  bool // the reply says why
	health []listHealth
	now    func() time.Time // for tests
}

// refuseFlood is for a client whose own flood of lookups has kept a list from being asked: it does not choose who is asked about it.
var refuseFlood = smtpcodec.Reply{Code: 451, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 7, Detail: 1},
	Text: "Too many DNS lookups under way for your address, try again later"}

const zoneMark = "{zone}"

var (
	listedAnswers = netip.MustParsePrefix("127.0.0.0/8")
	errorAnswers  = netip.MustParsePrefix("127.255.255.0/24")
)

// NewDNSBL checks the options.
func NewDNSBL(o DNSBLOptions) (*DNSBL, error) {
	if o.Threshold == 0 {
		o.Threshold = 1
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Code == 0 {
		o.Code = 554
	}
	if o.Code < 400 || o.Code > 599 {
		return nil, fmt.Errorf("policy: %d is no reply code that refuses", o.Code)
	}
	if o.Message == "" {
		o.Message = string(byte('0'+o.Code/100)) + ".7.1 Service unavailable; client blocked by " + zoneMark + ": " + reasonMark
	}
	for i := range o.Zones {
		z := &o.Zones[i]
		z.Zone = strings.TrimSuffix(lowerASCII(z.Zone), ".")
		if z.Zone == "" || len(z.Zone) > 180 || strings.ContainsAny(z.Zone, " \t\r\n/@") {
			return nil, fmt.Errorf("policy: %q is no DNS zone", z.Zone)
		}
		if z.Weight == 0 {
			z.Weight = 1
		}
	}
	if err := checkTemplate(o.Message, zoneMark, reasonMark); err != nil {
		return nil, fmt.Errorf("policy: DNS lists: %w", err)
	}
	reply, err := parseTemplate(o.Code, o.Message)
	if err != nil {
		return nil, fmt.Errorf("policy: DNS lists: %w", err)
	}
	return &DNSBL{o: o, reply: reply, tells: !o.Observe && strings.Contains(reply.Text, reasonMark),
		health: make([]listHealth, len(o.Zones)), now: time.Now}, nil
}

// Stages is AtConnect.
func (d *DNSBL) Stages() Stages {
	if len(d.o.Zones) == 0 {
		return 0
	}
	return On(AtConnect)
}

// Validate asks all lists.
func (d *DNSBL) Validate(e *Event) error {
	addr := plainAddr(e.Client.Addr.Addr())
	if !addr.IsValid() || addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || e.Client.MayRelay || d.o.Skip.Contains(addr) {
		return nil
	}
	c := &dnsblCheck{d: d, client: addr, session: e.Client.ID, begun: d.now(), answers: make([]listing, len(d.o.Zones))}
	name := reversed(addr)
	for i := range d.o.Zones {
		ask, wait := d.health[i].ask(c.begun)
		if !wait { // nobody has c yet
			c.answers[i].state = listNotWaited
		}
		if !ask {
			c.tell(i, "failed")
			continue
		}
		if a, now := d.o.Resolver.Lookup(spf.Query{Name: name + d.o.Zones[i].Zone, Type: spf.TypeA}, addr, func(a spf.Answer) { c.came(i, a) }); now {
			c.listed(i, a)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.allAsked = true
	if e.Reply = c.settle(); c.over {
		return nil
	}
	c.timer = time.AfterFunc(d.o.Timeout, c.expire)
	if !d.o.Observe {
		c.pending = e.Pend()
		c.pending.OnCancel(c.giveUp)
	}
	return nil
}

// dnsblCheck is one client's question to all lists.
type dnsblCheck struct {
	d       *DNSBL
	client  netip.Addr
	session envelope.ID
	begun   time.Time

	mu       sync.Mutex
	allAsked bool
	over     bool // there is a verdict, or nobody to hear it
	answers  []listing
	pending  *Pending // nil when nobody waits
	timer    *time.Timer
}

// listing is what is known from one list.
type listing struct {
	state  listState
	reason string
}

type listState uint8

const (
	listAsked     listState = iota // and waited for
	listNotWaited                  // it rests, and is asked to see whether it is back, or not at all
	listLate                       // it has not answered in time
	listSilent                     // it does not list the client, or could not be asked
	listLists                      // it does, and has said why if it will
	listSaysWhy                    // it does, and is asked why
	listFlooded                    // it was not asked: the client has too many lookups under way
)

// came is listed, for an answer that was waited for: it tells of the list's health. Runs on: any goroutine.
func (c *dnsblCheck) came(i int, a spf.Answer) {
	c.mu.Lock()
	late := c.answers[i].state == listLate
	c.mu.Unlock()
	if !late && (a.Status != spf.Failed || a.Cause == spf.CauseDNS) {
		now := c.d.now()
		c.d.healthy(i, a.Status != spf.Failed && now.Sub(c.begun) <= c.d.o.Timeout, now)
	}
	c.listed(i, a)
}

// listed takes a list's answer. When it lists the client, the reason is asked for (RFC 5782 §2.1).
func (c *dnsblCheck) listed(i int, a spf.Answer) {
	z := &c.d.o.Zones[i]
	hit := false
	for _, addr := range a.Addrs {
		hit = hit || z.counts(addr)
	}
	switch {
	case a.Status == spf.Failed && a.Cause == spf.CauseClient:
		c.tell(i, "failed")
		c.done(i, listing{state: listFlooded})
		return
	case a.Status == spf.Failed:
		c.tell(i, "failed")
	case hit:
		c.tell(i, "listed")
	}
	switch {
	case !hit:
		c.done(i, listing{state: listSilent})
		return
	case !c.d.tells || z.Weight < 0:
		c.done(i, listing{state: listLists})
		return
	}
	if c.done(i, listing{state: listSaysWhy}) { // counts, should the reason be late
		return
	}
	q := spf.Query{Name: reversed(c.client) + z.Zone, Type: spf.TypeTXT}
	if a, now := c.d.o.Resolver.Lookup(q, c.client, func(a spf.Answer) { c.done(i, listing{listLists, reasonOf(a)}) }); now {
		c.done(i, listing{listLists, reasonOf(a)})
	}
}

func (c *dnsblCheck) tell(i int, what string) {
	if c.d.o.Told != nil {
		c.d.o.Told(c.d.o.Zones[i].Zone, what)
	}
}

func (z *DNSBLZone) counts(addr netip.Addr) bool {
	if z.Answers == nil {
		return listedAnswers.Contains(addr) && !errorAnswers.Contains(addr)
	}
	for _, p := range z.Answers {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// maxReason is how much of a list's own text stands in a reply.
const maxReason = 200

// reasonOf gives a list's text, if it can be shown.
func reasonOf(a spf.Answer) string {
	if a.TXT == nil || len(a.TXT.Strings) == 0 {
		return ""
	}
	text := a.TXT.Strings[0]
	text = text[:min(len(text), maxReason)]
	for _, b := range []byte(text) {
		if b < ' ' || b > '~' {
			return ""
		}
	}
	return text
}

// done takes what a list has to say. It says whether the question is over. Runs on: any goroutine.
func (c *dnsblCheck) done(i int, l listing) (over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return true
	}
	c.answers[i] = l
	if c.allAsked {
		c.answer()
	}
	return c.over
}

// giveUp is for a client that is gone.
func (c *dnsblCheck) giveUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.timer.Stop()
}

// expire ends what has taken too long.
func (c *dnsblCheck) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	now := c.d.now()
	for i := range c.answers {
		switch c.answers[i].state {
		case listAsked:
			c.answers[i].state = listLate
			c.d.healthy(i, false, now)
		case listSaysWhy:
			c.answers[i].state = listLists
		}
	}
	c.answer()
}

// answer tells the verdict to who waits for it, if it is there. c.mu is held.
func (c *dnsblCheck) answer() {
	r := c.settle()
	if !c.over {
		return
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.pending != nil {
		c.pending.Done(r, nil)
	}
}

// settle adds up. The question is over as soon as no list that is waited for can change the verdict; an observer, who waits for nothing, hears them
// all. c.mu is held.
func (c *dnsblCheck) settle() (r smtpcodec.Reply) {
	// The score is between low and high, whatever the others say, and bad when one may list the client that is no list of good ones.
	low, high, first := 0, 0, -1
	bad, waits := false, false
	for i := range c.answers {
		switch w := c.d.o.Zones[i].Weight; c.answers[i].state {
		case listLists, listSaysWhy:
			low, high, bad = low+w, high+w, bad || w > 0
			if w > 0 && first < 0 {
				first = i
			}
		case listAsked:
			waits = true
			low, high, bad = low+min(w, 0), high+max(w, 0), bad || w > 0
		case listFlooded:
			if !c.d.o.Observe {
				low, high, bad = low+min(w, 0), high+max(w, 0), bad || w > 0
			}
		}
	}
	refuses, passes := low >= c.d.o.Threshold && first >= 0, high < c.d.o.Threshold || !bad
	switch {
	case c.d.o.Observe:
		if waits {
			return r
		}
	case refuses:
		if c.answers[first].state == listSaysWhy {
			return r
		}
	case !passes && waits:
		return r
	}
	c.over = true
	switch {
	case refuses:
		return c.refuse(first, low)
	case passes:
		return r
	}
	return refuseFlood
}

// refuse is the verdict on a client with this score, which first lists. c.mu is held.
func (c *dnsblCheck) refuse(first, score int) (r smtpcodec.Reply) {
	if c.d.o.Refused != nil {
		var zones []string
		for i, l := range c.answers {
			if z := &c.d.o.Zones[i]; z.Weight > 0 && (l.state == listLists || l.state == listSaysWhy) {
				zones = append(zones, z.Zone)
			}
		}
		c.d.o.Refused(c.session, c.client, zones, score)
	}
	if c.d.o.Observe {
		return r
	}
	reason := c.answers[first].reason
	if reason == "" {
		reason = "listed"
	}
	r = c.d.reply
	// {zone} first: what a list says is never looked at for marks.
	parts := strings.Split(strings.ReplaceAll(r.Text, zoneMark, c.d.o.Zones[first].Zone), reasonMark)
	r.Text = strings.Join(parts, reason)
	return r
}

// RestAfter is after how many answers in a row that did not come nobody waits for a list any more, or each new client would be held for the whole
// Timeout by a list that is dead. It is asked about one client in each ProbeEvery then, who does not wait either, and is back with the first answer.
const (
	RestAfter  = 5
	ProbeEvery = 5 * time.Second
)

// listHealth is of one list.
type listHealth struct {
	mu      sync.Mutex
	missing int // answers in a row
	rests   bool
	probeAt time.Time
}

// ask says whether to ask a list now, and whether to wait for it.
func (h *listHealth) ask(now time.Time) (ask, wait bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.rests {
		return true, true
	}
	if now.Before(h.probeAt) {
		return false, false
	}
	h.probeAt = now.Add(ProbeEvery)
	return true, false
}

// healthy takes note of an answer of a list that came in time, or did not.
func (d *DNSBL) healthy(i int, came bool, now time.Time) {
	h := &d.health[i]
	h.mu.Lock()
	rested := h.rests
	switch {
	case came:
		h.missing, h.rests = 0, false
	case h.rests:
	default:
		if h.missing++; h.missing >= RestAfter {
			h.rests, h.probeAt = true, now.Add(ProbeEvery)
		}
	}
	rests := h.rests
	h.mu.Unlock()
	if rests != rested && d.o.Rests != nil {
		d.o.Rests(d.o.Zones[i].Zone, rests)
	}
}

// reversed gives the labels under which lists keep an address, with the dot behind them: RFC 5782 §2.1 for IPv4, §2.4 for IPv6.
func reversed(addr netip.Addr) string {
	var b []byte
	if addr.Is4() {
		a := addr.As4()
		for i := 3; i >= 0; i-- {
			b = fmt.Appendf(b, "%d.", a[i])
		}
		return string(b)
	}
	const hex = "0123456789abcdef"
	a := addr.As16()
	for i := 15; i >= 0; i-- {
		b = append(b, hex[a[i]&15], '.', hex[a[i]>>4], '.')
	}
	return string(b)
}
