package loadtest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Bounds of what a run may do. They protect the machine that it runs on, and whoever is mistyped as a target.
const (
	MaxConnections  = 60000   // open at one time
	MaxRate         = 1e6     // messages a second
	MaxMessages     = 1 << 30 // in a run
	MaxDuration     = 24 * time.Hour
	MaxMessageBytes = 64 << 20 // of one message
	MaxRecipients   = 1000     // of one message
	MaxWorkers      = 64
	MaxWaiting      = 1 << 20 // arrivals without a connection; Options.MaxWaiting sets a lower one
	defaultMaxPerIP = 25000   // connections that one source address can have to one target, with some ports to spare
	minMessageBytes = 512     // header section and last line need some
	maxNameBytes    = 255     // of an address or a host name. RFC 5321 §4.5.3.1.2
)

// Options say what load to apply to what. The zero value of a field is its default.
type Options struct {
	Target string // host:port, or unix:/path
	Label  string // what is measured, for reports; default Target

	Protocol      string        // "smtp" (default), "lmtp" or "http"
	HTTPPath      string        // of the POST; default "/"
	Rate          float64       // messages due each second; 0: closed loop
	Poisson       bool          // arrivals at random with that mean instead of evenly
	Ramp          *Ramp         // overrides Rate: it changes over time
	Connections   int           // default 100
	PerConnection int           // messages in a session; 0: no limit
	Duration      time.Duration // of the measured part; default 10 s unless Messages is set
	Messages      int64         // end after this many
	Warmup        time.Duration // load before the measured part
	MaxWaiting    int           // open loop: arrivals that may wait for a connection before more are dropped; default 10 × Connections

	Size       Sizes   // default 4 KiB
	Recipients Range   // default 1
	Pipelining string  // "off" (default), "group", "tight"
	BDAT       float64 // share of messages sent with CHUNKING instead of DATA
	STARTTLS   float64 // share of connections
	TLS        bool    // from the first octet
	ServerName string  // for SNI; certificates are never verified, this is a test
	Auth       *Auth
	From       string // reverse-path; default <sender@client.test>; each # in it becomes the last digit of the message's number
	To         string // a fixed recipient instead of one made up for each delivery
	Domain     string // of recipients that are made up; default bench.test
	EHLO       string // default client.test
	Profile    string // name only, for the report; ApplyProfile sets the fields

	Sources     []netip.Prefix // client addresses to connect from, in turn
	Proxy       int            // 1 or 2: begin with a PROXY header with an invented client address
	SlowClients float64        // share of connections that dribble
	BadClients  float64        // share of connections that misbehave

	SessionsOnly bool          // connect, EHLO, QUIT; no mail
	Hold         time.Duration // open the connections, EHLO, hold them this long; no mail

	Timeout      time.Duration // for any reply; default 60 s
	Workers      int           // epoll loops; default half the processors
	Seed         uint64        // of sizes, arrivals and faults; 0: 1
	PID          int           // root of the target's process tree, to be sampled
	Disk         string        // directory whose sync time is measured, to doubt a 250 that came faster
	IOwnThisHost string        // must repeat the target's host when that is not loopback
}

// Auth is how a session authenticates. Mechanism is PLAIN or LOGIN; empty: PLAIN when offered, else LOGIN.
type Auth struct {
	Mechanism      string
	User, Password string
}

// withDefaults fills what is empty and checks the rest.
func (o Options) withDefaults() (Options, error) {
	if o.Label == "" {
		o.Label = o.Target
	}
	orString(&o.Protocol, "smtp")
	orString(&o.HTTPPath, "/")
	orString(&o.Pipelining, "off")
	orString(&o.From, "sender@client.test")
	orString(&o.Domain, "bench.test")
	orString(&o.EHLO, "client.test")
	if o.Connections == 0 {
		o.Connections = 100
	}
	if o.Duration == 0 && o.Messages == 0 {
		o.Duration = 10 * time.Second
	}
	if o.MaxWaiting == 0 {
		o.MaxWaiting = 10 * o.Connections
	}
	if o.Recipients == (Range{}) {
		o.Recipients = Range{1, 1}
	}
	if o.Size.isZero() {
		o.Size = FixedSize(4 << 10)
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.Workers == 0 {
		o.Workers = defaultWorkers()
	}
	o.Workers = min(o.Workers, o.Connections)
	if o.Hold > 0 {
		o.Messages, o.Duration, o.Warmup, o.Rate, o.Ramp = 0, o.Hold, 0, 0, nil
	}
	return o, o.check()
}

func orString(s *string, otherwise string) {
	if *s == "" {
		*s = otherwise
	}
}

func (o *Options) check() error {
	var all []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	oneOf := func(name, got string, words ...string) {
		for _, w := range words {
			if got == w {
				return
			}
		}
		refuse(true, "%s is %q; it can be %s", name, got, strings.Join(words, ", "))
	}
	share := func(name string, v float64) {
		refuse(!(v >= 0 && v <= 1), "%s is %v; a share is between 0%% and 100%%", name, v)
	}

	oneOf("protocol", o.Protocol, "smtp", "lmtp", "http")
	oneOf("pipelining", o.Pipelining, "off", "group", "tight")
	share("bdat", o.BDAT)
	share("starttls", o.STARTTLS)
	share("slow-clients", o.SlowClients)
	share("bad-clients", o.BadClients)
	refuse(o.Connections < 1 || o.Connections > MaxConnections, "connections is %d; it can be 1 to %d", o.Connections, MaxConnections)
	rate := func(name string, v float64) {
		refuse(!(v >= 0 && v <= MaxRate), "%s is %v/s; it can be up to %v/s", name, v, MaxRate)
	}
	rate("rate", o.Rate)
	if r := o.Ramp; r != nil {
		rate("ramp", r.From)
		rate("ramp", r.To)
		refuse(!(r.To > 0), "ramp ends at %v/s; nothing would be sent any more", r.To)
		refuse(r.Over <= 0 || r.Over > MaxDuration, "ramp takes %v; it can be up to %v", r.Over, MaxDuration)
	}
	refuse(o.Messages < 0 || o.Messages > MaxMessages, "messages is %d; it can be up to %d", o.Messages, MaxMessages)
	refuse(o.Duration < 0 || o.Duration > MaxDuration, "duration is %v; it can be up to %v", o.Duration, MaxDuration)
	refuse(o.Warmup < 0 || o.Warmup > MaxDuration, "warmup is %v; it can be up to %v", o.Warmup, MaxDuration)
	refuse(o.Hold < 0, "hold is %v", o.Hold)
	refuse(o.Timeout < 0 || o.Timeout > MaxDuration, "timeout is %v; it can be up to %v", o.Timeout, MaxDuration)
	refuse(o.PerConnection < 0, "per-connection is %d", o.PerConnection)
	refuse(o.PID < 0, "pid is %d", o.PID)
	refuse(o.Recipients.Min < 1 || o.Recipients.Max > MaxRecipients || o.Recipients.Min > o.Recipients.Max,
		"recipients is %v; it can be 1 to %d", o.Recipients, MaxRecipients)
	refuse(o.Workers < 1 || o.Workers > MaxWorkers, "workers is %d; it can be 1 to %d", o.Workers, MaxWorkers)
	refuse(o.MaxWaiting < 0 || o.MaxWaiting > MaxWaiting, "max-waiting is %d; it can be up to %d", o.MaxWaiting, MaxWaiting)
	refuse(o.Proxy < 0 || o.Proxy > 2, "proxy is v%d; it can be v1 or v2", o.Proxy)
	refuse(o.To != "" && o.Recipients.Max > 1, "one fixed recipient (to) and several recipients exclude each other")
	refuse(o.TLS && o.STARTTLS > 0, "implicit-tls and starttls exclude each other")
	refuse(o.SessionsOnly && (o.Rate > 0 || o.Ramp != nil), "sessions-only has a closed loop: no rate, no ramp")
	refuse(o.Protocol == "http" && (o.STARTTLS > 0 || o.BDAT > 0 || o.Pipelining != "off" || o.Auth != nil),
		"starttls, bdat, pipelining and auth are not for http")
	refuse(o.Hold > 0 && o.SessionsOnly, "hold and sessions-only exclude each other")
	if n := o.sourceCount(); n > 0 {
		refuse(o.Connections > n*defaultMaxPerIP, "%d connections need more than %d source addresses", o.Connections, n)
	} else {
		refuse(o.Connections > defaultMaxPerIP && !o.unix(), "%d connections need more ports than one address has: use sources", o.Connections)
	}
	for name, s := range map[string]string{"from": o.From, "to": o.To, "domain": o.Domain, "ehlo": o.EHLO, "http path": o.HTTPPath} {
		strange := strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '<' || r == '>' })
		refuse(strange, "%s is %q: printable ASCII without spaces and angle brackets", name, s)
		refuse(len(s) > maxNameBytes, "%s has %d octets; it can have up to %d", name, len(s), maxNameBytes)
	}
	if err := o.Size.check(); err != nil {
		all = append(all, err)
	}
	if err := o.mayTest(); err != nil {
		all = append(all, err)
	}
	return errors.Join(all...)
}

func (o *Options) unix() bool { return strings.HasPrefix(o.Target, "unix:") }

// mayTest refuses a target that is not on this machine, unless the user has repeated its name.
func (o *Options) mayTest() error {
	if o.unix() {
		return nil
	}
	host, port, err := net.SplitHostPort(o.Target)
	if err != nil || port == "" {
		return fmt.Errorf("target %q is not HOST:PORT or unix:/path", o.Target)
	}
	for _, p := range o.Sources {
		if !p.Addr().IsLoopback() && o.IOwnThisHost != host {
			return fmt.Errorf("sources %v is not loopback", p)
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() || host == "localhost" {
		return nil
	}
	if host != "" && o.IOwnThisHost == host {
		return nil
	}
	return fmt.Errorf("target %s is not this machine: a load test of somebody else's server is an attack; if it is yours, say so: --i-own-this-host %s", host, host)
}

// sourceCount says how many addresses Sources has, at most 65,536.
func (o *Options) sourceCount() int {
	n := 0
	for _, p := range o.Sources {
		n += prefixSize(p)
	}
	return min(n, 1<<16)
}

// prefixSize is the number of addresses of a prefix, at most 65,536.
func prefixSize(p netip.Prefix) int { return 1 << min(16, p.Addr().BitLen()-p.Bits()) }

// source is the i-th address to connect from, in turn; ok is false when Sources is empty.
func (o *Options) source(i int) (addr netip.Addr, ok bool) {
	n := o.sourceCount()
	if n == 0 {
		return addr, false
	}
	i %= n
	for _, p := range o.Sources {
		if size := prefixSize(p); i >= size {
			i -= size
			continue
		}
		return nth(p.Masked().Addr(), i), true
	}
	return addr, false
}

// nth is the address i above a.
func nth(a netip.Addr, i int) netip.Addr {
	b := a.AsSlice()
	for at := len(b) - 1; at >= 0 && i > 0; at-- {
		i += int(b[at])
		b[at] = byte(i)
		i >>= 8
	}
	n, _ := netip.AddrFromSlice(b)
	return n
}
