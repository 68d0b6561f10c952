package policy

import (
	"net/netip"

	"github.com/gaissmai/bart"

	"github.com/fastedge/fastedge/smtpcodec"
)

// Networks is a set of networks, of any number: a lookup does not depend on it. It is immutable; any goroutine may use it, and a nil one
// is empty.
type Networks struct {
	set bart.Lite
	n   int
}

// NewNetworks takes prefixes, whose host bits do not matter. IPv4-mapped ones (::ffff:10.0.0.0/104) are the IPv4 networks that they mean;
// invalid ones are left out.
func NewNetworks(prefixes []netip.Prefix) *Networks {
	n := &Networks{}
	for _, prefix := range prefixes {
		if prefix = plainPrefix(prefix); prefix.IsValid() {
			n.set.Insert(prefix)
			n.n++
		}
	}
	return n
}

// Contains says that addr is in one of the networks. IPv4-mapped addresses count as IPv4, and zones are ignored. It does not allocate.
func (n *Networks) Contains(addr netip.Addr) bool {
	return n != nil && n.n > 0 && n.set.Contains(plainAddr(addr))
}

// plainAddr gives the form in which addresses are compared and counted.
func plainAddr(addr netip.Addr) netip.Addr {
	addr = addr.Unmap()
	if addr.Is6() && addr.Zone() != "" {
		addr = addr.WithZone("")
	}
	return addr
}

func plainPrefix(prefix netip.Prefix) netip.Prefix {
	const mapped = 96 // the bits of ::ffff:0:0/96
	if prefix.Addr().Is4In6() && prefix.Bits() >= mapped {
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-mapped)
	}
	return prefix.Masked()
}

// clientDenied is the greeting of a denied client: RFC 5321 §3.1 has 554 for "no SMTP service here".
var clientDenied = smtpcodec.Reply{
	Code:     554,
	Enhanced: smtpcodec.EnhancedCode{Class: 5, Subject: 7, Detail: 1},
	Text:     "Your address is not welcome here",
}

// Clients is a Validator that refuses clients by their address, at AtConnect. It is immutable.
type Clients struct {
	table bart.Table[bool] // false: denied
	n     int
}

// NewClients takes networks that are denied and networks that are allowed. The longest prefix that has an address decides; at the same
// length allow wins. An address in none is allowed: who wants to admit a few only denies 0.0.0.0/0 and ::/0.
func NewClients(deny, allow []netip.Prefix) *Clients {
	c := &Clients{}
	c.add(deny, false)
	c.add(allow, true)
	return c
}

func (c *Clients) add(prefixes []netip.Prefix, allowed bool) {
	for _, prefix := range prefixes {
		if prefix = plainPrefix(prefix); prefix.IsValid() {
			c.table.Insert(prefix, allowed)
			c.n++
		}
	}
}

// Allowed decides about one address; a client on a unix socket has none and is allowed. It does not allocate.
func (c *Clients) Allowed(addr netip.Addr) bool {
	if c == nil || c.n == 0 || !addr.IsValid() {
		return true
	}
	allowed, found := c.table.Lookup(plainAddr(addr))
	return allowed || !found
}

// Stages is AtConnect, or nothing when no network is listed.
func (c *Clients) Stages() Stages {
	if c == nil || c.n == 0 {
		return 0
	}
	return On(AtConnect)
}

// Validate refuses a denied client. Runs on: event loop.
func (c *Clients) Validate(e *Event) error {
	if !c.Allowed(e.Client.Addr.Addr()) {
		e.Set(clientDenied)
	}
	return nil
}
