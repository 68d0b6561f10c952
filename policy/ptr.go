package policy

import (
	"net/netip"
	"strings"
	"sync"

	"github.com/fastedge/fastedge/spf"
)

// PTROptions of a PTR.
type PTROptions struct {
	Resolver Resolver
	// Told is told of each finished lookup: "pass", "fail", "permerror" or "temperror", as in Authentication-Results (RFC 8601 §2.7.3). It must
	// not block. Nil means nobody.
	Told func(result string)
}

// PTR finds out the names of clients: those of the address (PTR) whose own addresses have it too, so that nobody can give himself another's name.
// It begins at AtConnect, never lets anybody wait, and gives at AtMessage what is there by then. It is a Validator for all listeners.
type PTR struct {
	o PTROptions
}

// NewPTR makes a PTR.
func NewPTR(o PTROptions) *PTR { return &PTR{o} }

// Stages is where the lookup begins, where its name is wanted, and where nobody wants it any more.
func (p *PTR) Stages() Stages { return On(AtConnect, AtMessage, AtClose) }

// Remembers is Rememberer's.
func (p *PTR) Remembers() bool { return true }

// Validate begins the lookup, or sets Event.Host.
func (p *PTR) Validate(e *Event) error {
	run, _ := (*e.Slot).(*ptrRun)
	switch e.Stage {
	case AtConnect:
		*e.Slot = p.begin(&e.Client)
	case AtMessage:
		e.Host, _ = run.outcome()
	case AtClose:
		run.giveUp()
		*e.Slot = nil
	}
	return nil
}

// maxPTRNames is how many names of an address are tried: RFC 7208 §4.6.4 has the same bound.
const maxPTRNames = 10

// iprev is a result of RFC 8601 §2.7.3.
type iprev uint8

const (
	iprevUnknown iprev = iota // the client is not looked up
	iprevWaiting              // there is no result yet
	iprevPass                 // a name has the client's address
	iprevFail                 // there are names, and none has it
	iprevNone                 // the address has no name
	iprevError                // DNS did not answer
)

// String is the word for the result. One that is not there in time is as good as a failure of DNS.
func (r iprev) String() string {
	return [...]string{"none", "temperror", "pass", "fail", "permerror", "temperror"}[r]
}

// ptrRun is the lookup of one client. One query is under way at a time.
type ptrRun struct {
	p      *PTR
	client netip.Addr

	mu     sync.Mutex
	names  []string // yet to be tried
	name   string   // that is being tried; empty while names are asked for
	failed bool     // a query of a name was
	result iprev
	host   string // with iprevPass
}

// begin starts the lookup of a client, if that is on another machine.
func (p *PTR) begin(c *Client) *ptrRun {
	addr := plainAddr(c.Addr.Addr())
	if !addr.IsValid() || addr.IsLoopback() {
		return nil
	}
	r := &ptrRun{p: p, client: addr, result: iprevWaiting}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drive(spf.Query{Name: ptrName(addr), Type: spf.TypePTR})
	return r
}

// ptrName is the name under which the names of an address are kept: RFC 1035 §3.5, RFC 3596 §2.5.
func ptrName(addr netip.Addr) string {
	if addr.Is4() {
		return reversed(addr) + "in-addr.arpa"
	}
	return reversed(addr) + "ip6.arpa"
}

// drive asks until an answer has to be waited for, or there is a result. r.mu is held, but not while DNS is asked; see spfRun.drive.
func (r *ptrRun) drive(q spf.Query) {
	for r.result == iprevWaiting {
		r.mu.Unlock()
		a, now := r.p.o.Resolver.Lookup(q, r.client, r.answered)
		r.mu.Lock()
		if !now {
			return
		}
		if r.result == iprevWaiting {
			q = r.take(a)
		}
	}
}

// answered is what Lookup calls. Runs on: any goroutine.
func (r *ptrRun) answered(a spf.Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.result == iprevWaiting {
		r.drive(r.take(a))
	}
}

// take looks at an answer, and gives the next query unless there is a result. r.mu is held.
func (r *ptrRun) take(a spf.Answer) (q spf.Query) {
	switch {
	case r.name == "":
		for _, name := range a.Hosts[:min(len(a.Hosts), maxPTRNames)] {
			if name = hostName(name); name != "" {
				r.names = append(r.names, name)
			}
		}
		if a.Status == spf.Failed {
			r.over(iprevError)
			return q
		} else if len(a.Hosts) == 0 {
			r.over(iprevNone)
			return q
		}
	case a.Status == spf.Failed:
		r.failed = true
	default:
		for _, addr := range a.Addrs {
			if plainAddr(addr) == r.client {
				r.host = r.name
				r.over(iprevPass)
				return q
			}
		}
	}
	if len(r.names) == 0 {
		if r.failed {
			r.over(iprevError)
		} else {
			r.over(iprevFail)
		}
		return q
	}
	r.name, r.names = r.names[0], r.names[1:]
	if r.client.Is4() {
		return spf.Query{Name: r.name, Type: spf.TypeA}
	}
	return spf.Query{Name: r.name, Type: spf.TypeAAAA}
}

func (r *ptrRun) over(result iprev) {
	r.result, r.names = result, nil
	if r.p.o.Told != nil {
		r.p.o.Told(result.String())
	}
}

// giveUp asks nothing further.
func (r *ptrRun) giveUp() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.result == iprevWaiting {
		r.result, r.names = iprevUnknown, nil
	}
}

// outcome is what is there now; r may be nil.
func (r *ptrRun) outcome() (host string, result iprev) {
	if r == nil {
		return "", iprevUnknown
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.host, r.result
}

// hostName gives a name in lower case and without the dot at its end, or nothing if it could not stand in a header field: whoever has the address
// can write anything there.
func hostName(name string) string {
	name = strings.TrimSuffix(lowerASCII(name), ".")
	if name == "" || len(name) > 253 {
		return ""
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return ""
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return ""
			}
		}
	}
	return name
}
