package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
)

// Defaults and limits of Options.
const (
	DefaultTimeout        = 5 * time.Second
	DefaultCacheBytes     = 64 << 20
	DefaultMaxInflight    = 4096
	DefaultMaxPerClient   = 256
	DefaultSockets        = 16
	DefaultMinTTL         = 5 * time.Second
	DefaultMaxTTL         = 24 * time.Hour
	DefaultMaxNegativeTTL = 15 * time.Minute
	DefaultMinFailureTTL  = 5 * time.Second
	DefaultMaxFailureTTL  = time.Minute
	DefaultMaxStale       = 24 * time.Hour
	DefaultStaleAfter     = 1800 * time.Millisecond // RFC 8767 §5

	MinCacheBytes = 64 << 10
	MaxServers    = 16
	MaxSockets    = 128
)

// Options of a Resolver. Zero values mean the defaults.
type Options struct {
	// Servers are recursive resolvers, "192.0.2.53:53" or "[2001:db8::53]:53"; the port may be left out. At most MaxServers. None means those of
	// /etc/resolv.conf, and 127.0.0.1:53 if that names none.
	Servers []string
	// Timeout is the time from asking to Failed, all tries included; default 5 s. An answer that comes later is lost.
	Timeout time.Duration
	// CacheBytes is the memory of all three caches together, estimated from above; default 64 MiB, at least MinCacheBytes.
	CacheBytes int64
	// MaxInflight is how many questions may be open at a time; default 4096. One more pushes out the one that has waited longest, if it has
	// waited JostleAfter, which then is Failed; else the new one is Failed. So those that nobody answers make room for those that somebody may.
	MaxInflight int
	// MaxPerClient is how many questions may be open for one client, an IPv4 address or an IPv6 /64; default 256. More are Failed without a question. A
	// lookup that joins an open question costs none, and is not counted here.
	MaxPerClient int
	// MaxPerZone is how many questions may be open for one domain, what is registered with a registry by the Public Suffix List (example.net,
	// example.co.uk, but github.io), or for one /16 or IPv6 /32 of reverse names; default a quarter of MaxInflight, 64 at least. More are Failed without a question: one domain with silent name servers, asked
	// for by many clients, leaves the others room.
	MaxPerZone int
	// Sockets is how many UDP sockets each server gets; default 16, at most MaxSockets. They are opened when there is something to ask.
	Sockets int

	MinTTL time.Duration // what is there is kept this long at least; default 5 s
	MaxTTL time.Duration // and this long at most; default 24 h
	// MaxNegativeTTL is how long at most what is not there is kept; within it for the time that its SOA record gives, from MinTTL on. Default 15 min;
	// RFC 2308 §5 finds more than 3 h troublesome.
	MaxNegativeTTL time.Duration
	MinFailureTTL  time.Duration // the first failure of a question is remembered this long; default 5 s, RFC 9520 §3.2 wants 1 s or more
	MaxFailureTTL  time.Duration // each further one twice as long, up to this; default 1 min, RFC 9520 §3.2 wants 5 min or less
	MaxStale       time.Duration // how long past its time an answer is served instead of Failed; default 24 h, negative: never
	StaleAfter     time.Duration // how long a lookup waits for the new answer while there is a stale one; default 1.8 s

	PlainCase bool // no random capitals in questions, for servers that cannot cope with them nor with TCP

	// EndUnreachable ends questions as soon as nobody listens at the address of any server, for somebody who looks on. Otherwise they keep their times,
	// for a server that is started anew is back soon.
	EndUnreachable bool

	// Clock is for tests; default time.Now. Only differences count.
	Clock func() time.Time
	// Dial opens sockets, with network "udp" or "tcp"; default net.Dialer. For "udp" it must not block. Reads must end when the connection is closed.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger // servers that fall silent or come back; default none
}

// complete fills in the defaults and says what cannot be.
func (o *Options) complete() ([]netip.AddrPort, error) {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&o.Timeout, DefaultTimeout},
		{&o.MinTTL, DefaultMinTTL},
		{&o.MaxTTL, DefaultMaxTTL},
		{&o.MaxNegativeTTL, DefaultMaxNegativeTTL},
		{&o.MinFailureTTL, DefaultMinFailureTTL},
		{&o.MaxFailureTTL, DefaultMaxFailureTTL},
		{&o.StaleAfter, DefaultStaleAfter},
	} {
		if *d.v < 0 {
			return nil, errors.New("resolver: a negative time")
		}
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	switch {
	case o.MaxStale == 0:
		o.MaxStale = DefaultMaxStale
	case o.MaxStale < 0:
		o.MaxStale = 0
	}
	for _, d := range []struct {
		v        *int
		def, max int
		name     string
	}{
		{&o.MaxInflight, DefaultMaxInflight, 1 << 20, "questions in flight"},
		{&o.MaxPerClient, DefaultMaxPerClient, 1 << 20, "lookups per client"},
		{&o.Sockets, DefaultSockets, MaxSockets, "sockets per server"},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < 1 || *d.v > d.max {
			return nil, fmt.Errorf("resolver: %d %s: from 1 to %d may be", *d.v, d.name, d.max)
		}
	}
	if o.MaxPerZone == 0 {
		o.MaxPerZone = max(o.MaxInflight/4, 64)
	}
	if o.MaxPerZone < 0 {
		return nil, errors.New("resolver: a negative number of questions per zone")
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.CacheBytes < MinCacheBytes {
		return nil, fmt.Errorf("resolver: a cache of %d bytes is too small, %d is the least", o.CacheBytes, MinCacheBytes)
	}
	// These are added to the clock in nanoseconds, which must not overflow.
	const year = 365 * 24 * time.Hour
	switch {
	case o.MinTTL > o.MaxTTL || o.MinTTL > o.MaxNegativeTTL || o.MinFailureTTL > o.MaxFailureTTL:
		return nil, errors.New("resolver: a TTL's minimum is above its maximum")
	case max(o.MaxTTL, o.MaxNegativeTTL, o.MaxStale, o.Timeout) > year:
		return nil, errors.New("resolver: a time above a year")
	case o.MaxFailureTTL > 5*time.Minute:
		return nil, errors.New("resolver: failures are remembered for 5 minutes at most (RFC 9520 §3.2)")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	servers := o.Servers
	if len(servers) == 0 {
		servers = systemServers("/etc/resolv.conf")
	}
	if len(servers) > MaxServers {
		return nil, fmt.Errorf("resolver: %d servers, at most %d may be", len(servers), MaxServers)
	}
	addrs := make([]netip.AddrPort, 0, len(servers))
	for _, s := range servers {
		a, err := parseServer(s)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// parseServer takes an address with or without a port. A host name cannot be looked up before there is a resolver.
func parseServer(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddrPort(s); err == nil && a.Port() != 0 {
		return a, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.AddrPort{}, fmt.Errorf("resolver: %q is not an IP address with a port", s)
}

// systemServers reads a resolv.conf(5). A missing or empty one means a server on this machine, as libc does.
func systemServers(path string) []string {
	var servers []string
	if f, err := os.Open(path); err == nil {
		defer f.Close()
		if c, err := dns.ClientConfigFromReader(f); err == nil {
			for _, s := range c.Servers[:min(len(c.Servers), MaxServers)] {
				servers = append(servers, net.JoinHostPort(s, c.Port))
			}
		}
	}
	if len(servers) == 0 {
		servers = []string{"127.0.0.1:53"}
	}
	return servers
}
