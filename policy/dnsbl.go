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
	// Observe counts and logs only.
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
	// Told is told of each answer that lists a client, and of each that did not come, by zone: "listed", "failed". Nil means nobody.
	Told func(zone, what string)
	// Refused is told of each client over the threshold, also when it is only observed. Nil means nobody.
	Refused func(session envelope.ID, client netip.Addr, zones []string, score int)
}

// DNSBL asks lists about clients when they connect, all at once. It is a Validator for all listeners.
type DNSBL struct {
	o     DNSBLOptions
	reply smtpcodec.Reply
	tells bool // the reply says why
}

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
	return &DNSBL{o: o, reply: reply, tells: !o.Observe && strings.Contains(reply.Text, reasonMark)}, nil
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
	c := &dnsblCheck{d: d, client: addr, session: e.Client.ID, left: len(d.o.Zones), answers: make([]listing, len(d.o.Zones))}
	name := reversed(addr)
	for i := range d.o.Zones {
		if a, now := d.o.Resolver.Lookup(spf.Query{Name: name + d.o.Zones[i].Zone, Type: spf.TypeA}, addr, func(a spf.Answer) { c.listed(i, a) }); now {
			c.listed(i, a)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 {
		e.Reply = c.verdict()
		return nil
	}
	c.pending = e.Pend()
	c.timer = time.AfterFunc(d.o.Timeout, c.expire)
	c.pending.OnCancel(c.giveUp)
	return nil
}

// dnsblCheck is one client's question to all lists.
type dnsblCheck struct {
	d       *DNSBL
	client  netip.Addr
	session envelope.ID

	mu      sync.Mutex
	left    int // answers that have not come
	over    bool
	answers []listing
	pending *Pending
	timer   *time.Timer
}

type listing struct {
	listed bool
	reason string
}

// listed takes a list's answer. When it lists the client, the reason is asked for (RFC 5782 §2.1).
func (c *dnsblCheck) listed(i int, a spf.Answer) {
	z := &c.d.o.Zones[i]
	hit := false
	for _, addr := range a.Addrs {
		hit = hit || z.counts(addr)
	}
	if c.d.o.Told != nil {
		if a.Status == spf.Failed {
			c.d.o.Told(z.Zone, "failed")
		} else if hit {
			c.d.o.Told(z.Zone, "listed")
		}
	}
	if !hit || !c.d.tells || z.Weight < 0 {
		c.done(i, listing{listed: hit})
		return
	}
	c.mu.Lock()
	over := c.over
	c.answers[i].listed = !over // counts, should the reason be late
	c.mu.Unlock()
	if over {
		return
	}
	q := spf.Query{Name: reversed(c.client) + z.Zone, Type: spf.TypeTXT}
	if a, now := c.d.o.Resolver.Lookup(q, c.client, func(a spf.Answer) { c.done(i, listing{true, reasonOf(a)}) }); now {
		c.done(i, listing{true, reasonOf(a)})
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

// done takes the last that a list has to say. Runs on: any goroutine.
func (c *dnsblCheck) done(i int, l listing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.answers[i] = l
	if c.left--; c.left == 0 && c.pending != nil {
		c.timer.Stop()
		c.tell()
	}
}

// giveUp is for a client that is gone.
func (c *dnsblCheck) giveUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.timer.Stop()
}

func (c *dnsblCheck) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.tell()
	}
}

// tell ends the question. c.mu is held.
func (c *dnsblCheck) tell() {
	p, r := c.pending, c.verdict()
	p.Done(r, nil)
}

// verdict adds up. c.mu is held.
func (c *dnsblCheck) verdict() (r smtpcodec.Reply) {
	c.over = true
	score := 0
	var zones []string
	reason := ""
	for i, l := range c.answers {
		if !l.listed {
			continue
		}
		z := &c.d.o.Zones[i]
		score += z.Weight
		if z.Weight > 0 {
			if zones = append(zones, z.Zone); len(zones) == 1 {
				reason = l.reason
			}
		}
	}
	if score < c.d.o.Threshold || len(zones) == 0 {
		return r
	}
	if c.d.o.Refused != nil {
		c.d.o.Refused(c.session, c.client, zones, score)
	}
	if c.d.o.Observe {
		return r
	}
	if reason == "" {
		reason = "listed"
	}
	r = c.d.reply
	// {zone} first: what a list says is never looked at for marks.
	parts := strings.Split(strings.ReplaceAll(r.Text, zoneMark, zones[0]), reasonMark)
	r.Text = strings.Join(parts, reason)
	return r
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
