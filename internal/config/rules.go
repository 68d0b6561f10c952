package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// rules checks what concerns several keys, and fills in listener names. Keys with a problem of their own are left alone.
func (l *loader) rules() {
	l.listeners()
	l.openRelay()
	l.nextHops()
	c := l.cfg
	if !l.bad["limits.memory"] && !l.bad["limits.message_size"] && c.Limits.Memory < c.Limits.MessageSize {
		l.reportAt("limits.memory", fmt.Sprintf("%v is less than limits.message_size (%v): no message of that size could be taken",
			c.Limits.Memory, c.Limits.MessageSize))
	}
	if !l.bad["relay.retry"] && len(c.Relay.Retry) == 0 {
		l.reportAt("relay.retry", "needs at least one wait")
	}
	if !l.bad["state_dir"] && len(c.AdminSocket()) > maxUnixPath {
		l.reportAt("state_dir", fmt.Sprintf("too long: the admin socket in it may have a path of %d bytes at most", maxUnixPath))
	}
}

func listenKey(i int, name string) string {
	return "listen[" + strconv.Itoa(i) + "]." + name
}

// listeners names the nameless, and refuses to open the same name or address twice.
func (l *loader) listeners() {
	c := l.cfg
	if len(c.Listen) == 0 && !l.bad["listen"] {
		l.reportAt("listen", "needs at least one table")
	}
	if l.bad["listen"] && len(c.Listen) == 0 {
		return
	}
	for i := range c.Listen {
		one := &c.Listen[i]
		if one.Name == "" && !l.bad[listenKey(i, "name")] {
			one.Name = one.Protocol
		}
		for j := range i {
			if c.Listen[j].Name == one.Name && one.Name != "" && !l.bad[listenKey(i, "name")] && !l.bad[listenKey(i, "protocol")] {
				l.reportAt(listenKey(i, "name"), fmt.Sprintf("%q is the name of another listener: each needs its own", one.Name))
				break
			}
		}
		address := listenKey(i, "address")
		if l.bad[address] {
			continue
		}
		if one.Address.Network == "" {
			l.reportAt(address, "missing")
			continue
		}
		for j := range i {
			if other := c.Listen[j]; one.Address.overlaps(other.Address) {
				l.reportAt(address, fmt.Sprintf("%v overlaps with %v of listener %q", one.Address, other.Address, other.Name))
				break
			}
		}
		if one.Address.overlaps(c.Admin.HTTP) && !l.bad["admin.http"] {
			l.reportAt(address, fmt.Sprintf("%v overlaps with admin.http (%v)", one.Address, c.Admin.HTTP))
		}
		if _, port := one.Address.HostPort(); one.Protocol == "lmtp" && one.Address.Network == "tcp" && port == 25 {
			l.reportAt(address, "LMTP may not use TCP port 25 (RFC 2033 §5)")
		}
	}
}

// openRelay refuses listeners that strangers can reach and that would take mail for anywhere from them, or, without a single accepted
// domain or network, for nowhere.
func (l *loader) openRelay() {
	c := l.cfg
	for i, one := range c.Listen {
		relayFrom := listenKey(i, "relay_from")
		if one.Address.Network == "" || one.Address.IsLocal() || l.bad[listenKey(i, "address")] || l.bad[relayFrom] || l.bad["domains.accept"] {
			continue
		}
		everybody := slices.IndexFunc(one.RelayFrom, tooWide)
		switch {
		case everybody >= 0:
			l.reportAt(relayFrom, fmt.Sprintf("%v would make %v an open relay: name the networks that are yours", one.RelayFrom[everybody], one.Address))
		case len(c.Domains.Accept) == 0 && !slices.ContainsFunc(one.RelayFrom, func(p netip.Prefix) bool { return !p.Addr().IsLoopback() }):
			l.reportAt(listenKey(i, "address"), fmt.Sprintf("%v is open to other machines: set domains.accept, or relay_from of this listener", one.Address))
		}
	}
}

// Networks that are wide and still nobody's but the operator's: RFC 4193 and link-local.
var ownWide = []netip.Prefix{netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10")}

// tooWide says that a network can't be one organisation's: shorter than /8, or /16 in IPv6. So 0.0.0.0/1 and 128.0.0.0/1 together are
// caught as well as 0.0.0.0/0.
func tooWide(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8
	}
	return p.Bits() < 16 && !slices.ContainsFunc(ownWide, func(own netip.Prefix) bool {
		return own.Bits() <= p.Bits() && own.Contains(p.Addr())
	})
}

// nextHops refuses to hand mail to ourselves, which would send it round until its Received fields are too many.
func (l *loader) nextHops() {
	if l.bad["relay.next_hop"] {
		return
	}
	for h, hop := range l.cfg.Relay.NextHop {
		for i, one := range l.cfg.Listen {
			if l.bad[listenKey(i, "address")] || !hop.reaches(one.Address) {
				continue
			}
			l.reportAt("relay.next_hop["+strconv.Itoa(h)+"]", fmt.Sprintf("%v is listener %q itself: mail would go round in circles", hop, one.Name))
		}
	}
}

// reaches says that the next hop is surely this listener. Other names and addresses of the machine are not looked up.
func (h NextHop) reaches(a Address) bool {
	if h.Network != a.Network {
		return false
	}
	if h.Network == "unix" {
		return h.Addr == a.Addr
	}
	host, _, err := net.SplitHostPort(h.Addr)
	if err != nil {
		return false
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return false
	}
	ipHop, portHop := Address{"tcp", h.Addr}.HostPort()
	ip, port := a.HostPort()
	return portHop == port && (ipHop == ip || !ipHop.IsValid() || !ip.IsValid() && ipHop.IsLoopback())
}

// Warnings are what an operator should know and may want.
func (c *Config) Warnings() []Problem {
	var list []Problem
	warn := func(key, format string, args ...any) {
		list = append(list, Problem{Key: key, Message: key + ": " + fmt.Sprintf(format, args...)})
	}
	if c.Queue.Engine == "discard" {
		warn("queue.engine", "discard throws every message away: for benchmarks only")
	} else if c.Queue.Durability == "os" {
		warn("queue.durability", "with os a power cut may lose acknowledged mail")
	}
	if c.Queue.Engine == "spool" && c.Queue.MinFree < c.Limits.Memory {
		warn("queue.min_free", "%v is less than limits.memory (%v): the disk may fill up with messages that are on their way when it is reached",
			c.Queue.MinFree, c.Limits.Memory)
	}
	open := slices.ContainsFunc(c.Listen, func(l Listener) bool { return !l.Address.IsLocal() })
	if open && !strings.Contains(c.Hostname, ".") {
		warn("hostname", "%q is no full name: other servers may distrust it (RFC 5321 §4.1.1.1)", c.Hostname)
	}
	return list
}
