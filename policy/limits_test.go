package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

var gateStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestConnectionsPerAddress(t *testing.T) {
	g := NewGate(GateOptions{PerAddress: 2})
	for _, c := range []struct {
		addr string
		want Limit
	}{
		{"192.0.2.1", LimitNone},
		{"::ffff:192.0.2.1", LimitNone}, // the same
		{"192.0.2.1", LimitPerAddress},
		{"192.0.2.2", LimitNone},
		{"2001:db8::1", LimitNone},
		{"2001:db8::2", LimitNone}, // the same /64
		{"2001:db8::ffff:3", LimitPerAddress},
		{"2001:db8:0:1::1", LimitNone},
	} {
		if got := g.Admit(ip(c.addr), gateStart); got != c.want {
			t.Errorf("%s: %v", c.addr, got)
		}
	}
	g.Leave(ip("192.0.2.1"))
	if g.Admit(ip("192.0.2.1"), gateStart) != LimitNone {
		t.Error("one has left, and nobody may come")
	}
}

func TestConnectionsPerPrefix(t *testing.T) {
	g := NewGate(GateOptions{PerPrefix: 2, Exempt: networks("192.0.2.128/25")})
	for _, c := range []struct {
		addr string
		want Limit
	}{
		{"192.0.2.1", LimitNone},
		{"192.0.2.2", LimitNone},
		{"192.0.2.3", LimitPerPrefix},
		{"192.0.2.200", LimitNone}, // exempt
		{"192.0.3.1", LimitNone},
		{"2001:db8::1", LimitNone},
		{"2001:db8:0:ff::1", LimitNone}, // the same /56
		{"2001:db8:0:80::1", LimitPerPrefix},
		{"2001:db8:0:100::1", LimitNone},
	} {
		if got := g.Admit(ip(c.addr), gateStart); got != c.want {
			t.Errorf("%s: %v", c.addr, got)
		}
	}
	for _, addr := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.200"} {
		g.Leave(ip(addr))
	}
	if g.Admit(ip("192.0.2.3"), gateStart) != LimitNone {
		t.Error("all have left, and nobody may come")
	}
}

func TestConnectionRate(t *testing.T) {
	g := NewGate(GateOptions{Rate: 6}) // one every ten seconds
	now := gateStart
	admit := func() Limit {
		l := g.Admit(ip("192.0.2.1"), now)
		if l == LimitNone {
			g.Leave(ip("192.0.2.1"))
		}
		return l
	}
	for i := range 6 {
		if l := admit(); l != LimitNone {
			t.Fatalf("%d: %v", i, l)
		}
	}
	if admit() != LimitRate {
		t.Error("seven in no time")
	}
	now = now.Add(10*time.Second - 1)
	if admit() != LimitRate {
		t.Error("a nanosecond too early")
	}
	now = now.Add(1)
	if admit() != LimitNone || admit() != LimitRate {
		t.Error("one every ten seconds")
	}
	now = now.Add(time.Hour)
	for i := range 7 {
		if got := admit(); (got == LimitNone) != (i < 6) {
			t.Errorf("after an hour, %d: %v", i, got)
		}
	}
}

func TestConnectionsThatAreRefusedDoNotCountForTheRate(t *testing.T) {
	g := NewGate(GateOptions{PerAddress: 1, PerPrefix: 2, Rate: 3})
	for _, c := range []struct {
		addr string
		want Limit
	}{
		{"192.0.2.1", LimitNone}, {"192.0.2.1", LimitPerAddress}, {"192.0.2.1", LimitPerAddress}, {"192.0.2.2", LimitNone}, {"192.0.2.3", LimitPerPrefix},
	} {
		if got := g.Admit(ip(c.addr), gateStart); got != c.want {
			t.Errorf("%s: %v", c.addr, got)
		}
	}
	g.Leave(ip("192.0.2.1"))
	if g.Admit(ip("192.0.2.9"), gateStart) != LimitNone {
		t.Error("the third")
	}
	g.Leave(ip("192.0.2.9"))
	if g.Admit(ip("192.0.2.9"), gateStart) != LimitRate {
		t.Error("the fourth")
	}
}

func TestMessageRateIsAskedAtMail(t *testing.T) {
	now := gateStart
	g := NewGate(GateOptions{MessageRate: 2, Now: func() time.Time { return now }})
	mail := func(change func(*Client)) string {
		e := &Event{Stage: AtMail, Client: Client{Addr: netip.MustParseAddrPort("192.0.2.1:1")}}
		change(&e.Client)
		if err := g.Validate(e); err != nil {
			t.Fatal(err)
		}
		if e.Reply.Code == 0 {
			return ""
		}
		return string(e.Reply.AppendTo(nil))
	}
	stranger := func(*Client) {}
	if g.Stages() != On(AtMail) {
		t.Error("stages")
	}
	for range 2 {
		if got := mail(stranger); got != "" {
			t.Errorf("got %s", got)
		}
	}
	if got := mail(stranger); got != "450 4.7.1 Messages from your network come too fast (limits.message_rate), try again later\r\n" {
		t.Errorf("got %s", got)
	}
	for name, change := range map[string]func(*Client){
		"user": func(c *Client) { c.User = "ann" }, "relay": func(c *Client) { c.MayRelay = true },
		"unix": func(c *Client) { c.Addr = netip.AddrPort{} }, "other": func(c *Client) { c.Addr = netip.MustParseAddrPort("192.0.3.1:1") },
	} {
		if got := mail(change); got != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
	now = now.Add(30 * time.Second)
	if mail(stranger) != "" || mail(stranger) == "" {
		t.Error("one every half minute")
	}
}

func TestEachLimitHasAReplyThatNamesIt(t *testing.T) {
	for l := LimitPerAddress; l < NumLimits; l++ {
		r := l.Reply()
		if r == nil || r.Code/100 != 4 || r.Enhanced.Class != 4 || !strings.Contains(r.Text, "("+l.String()+")") {
			t.Errorf("%v: %v", l, r)
		}
	}
	if LimitNone.Reply() != nil || NumLimits.Reply() != nil {
		t.Error("a reply for no limit")
	}
}

func TestAGateWithoutLimitsIsNil(t *testing.T) {
	g := NewGate(GateOptions{Prefix4: 16})
	if g != nil || g.Admit(ip("192.0.2.1"), gateStart) != LimitNone || g.AdmitMessage(ip("192.0.2.1"), gateStart) != LimitNone || g.Stages() != 0 || g.Entries() != 0 {
		t.Error("a gate without limits does something")
	}
	g.Leave(ip("192.0.2.1"))
	if g := NewGate(GateOptions{PerAddress: 1}); g.Stages() != 0 || g.Admit(netip.Addr{}, gateStart) != LimitNone || g.Admit(netip.Addr{}, gateStart) != LimitNone {
		t.Error("unix sockets are not counted")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	const bound = 32 * gateShards
	g := NewGate(GateOptions{PerAddress: 1, PerPrefix: 10, Rate: 10, MaxEntries: bound})
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}) }
	for i := range 1 << 16 {
		if g.Admit(addr(i), gateStart) != LimitNone {
			t.Fatal("refused")
		}
		g.Leave(addr(i))
	}
	if n := g.Entries(); n != bound {
		t.Errorf("%d entries", n)
	}
	// Open connections are never forgotten, and are all that is kept beyond the bound.
	for i := range 1 << 12 {
		if g.Admit(addr(i), gateStart.Add(time.Hour)) != LimitNone {
			t.Fatal("refused")
		}
	}
	if n := g.Entries(); n != 1<<12 {
		t.Errorf("%d entries with %d open", n, 1<<12)
	}
	for i := range 1 << 12 {
		if g.Admit(addr(i), gateStart.Add(time.Hour)) != LimitPerAddress {
			t.Fatal("forgotten")
		}
		g.Leave(addr(i))
	}
	n := 0
	for i := range g.shards {
		n += len(g.shards[i].addresses)
	}
	if n != 0 || g.Entries() > bound {
		t.Errorf("%d addresses, %d entries", n, g.Entries())
	}
	// Without a rate nothing is kept of a prefix that has left.
	g = NewGate(GateOptions{PerPrefix: 10})
	for i := range 1000 {
		g.Admit(addr(i), gateStart)
		g.Leave(addr(i))
	}
	if n := g.Entries(); n != 0 {
		t.Errorf("%d entries", n)
	}
}

func TestTheOldestIdlePrefixIsForgottenFirst(t *testing.T) {
	g := NewGate(GateOptions{Rate: 1, MaxEntries: 1}) // one a shard
	a, b := ip("10.0.0.1"), netip.Addr{}
	for i := 1; !b.IsValid(); i++ { // another prefix of the same shard
		c := netip.AddrFrom4([4]byte{10, 0, byte(i), 1})
		_, pa, _ := g.keys(a)
		if _, pc, _ := g.keys(c); g.shard(pc) == g.shard(pa) {
			b = c
		}
	}
	admit := func(addr netip.Addr) Limit {
		l := g.Admit(addr, gateStart)
		if l == LimitNone {
			g.Leave(addr)
		}
		return l
	}
	if admit(a) != LimitNone || admit(a) != LimitRate || admit(b) != LimitNone || admit(b) != LimitRate || admit(a) != LimitNone {
		t.Error("not the oldest")
	}
}

// naiveGate is the obvious way: a lock, maps that never shrink, and a list of times.
type naiveGate struct {
	mu        sync.Mutex
	o         GateOptions
	addresses map[netip.Prefix]int
	prefixes  map[netip.Prefix]int
	came      map[netip.Prefix][]time.Time // the moment at which each connection is paid for
}

func newNaiveGate(o GateOptions) *naiveGate {
	return &naiveGate{o: o, addresses: map[netip.Prefix]int{}, prefixes: map[netip.Prefix]int{}, came: map[netip.Prefix][]time.Time{}}
}

func (g *naiveGate) keys(addr netip.Addr) (address, prefix netip.Prefix) {
	addr = addr.Unmap().WithZone("")
	one, many := 32, 24
	if addr.Is6() {
		one, many = 64, 56
	}
	address, _ = addr.Prefix(one)
	prefix, _ = addr.Prefix(many)
	return address, prefix
}

// Admit counts how many have come that are not paid for yet: each is so one interval after the one before it.
func (g *naiveGate) Admit(addr netip.Addr, now time.Time) Limit {
	g.mu.Lock()
	defer g.mu.Unlock()
	address, prefix := g.keys(addr)
	if g.o.PerAddress > 0 && g.addresses[address] >= g.o.PerAddress {
		return LimitPerAddress
	}
	if g.o.PerPrefix > 0 && g.prefixes[prefix] >= g.o.PerPrefix {
		return LimitPerPrefix
	}
	if g.o.Rate > 0 {
		var owed []time.Time
		for _, at := range g.came[prefix] {
			if at.After(now) {
				owed = append(owed, at)
			}
		}
		if len(owed) >= g.o.Rate {
			return LimitRate
		}
		last := now
		if len(owed) > 0 {
			last = owed[len(owed)-1]
		}
		g.came[prefix] = append(owed, last.Add(time.Minute/time.Duration(g.o.Rate)))
	}
	g.addresses[address]++
	g.prefixes[prefix]++
	return LimitNone
}

func (g *naiveGate) Leave(addr netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	address, prefix := g.keys(addr)
	g.addresses[address]--
	g.prefixes[prefix]--
}

func TestTheGateDecidesLikeTheNaiveOne(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		o := GateOptions{PerAddress: r.IntN(4), PerPrefix: r.IntN(6), Rate: r.IntN(3) * 5}
		if o.PerAddress+o.PerPrefix+o.Rate == 0 {
			o.Rate = 3
		}
		real, model := NewGate(o), newNaiveGate(o)
		now := gateStart
		var open []netip.Addr
		for step := range 2000 {
			if len(open) > 0 && r.IntN(3) == 0 {
				i := r.IntN(len(open))
				real.Leave(open[i])
				model.Leave(open[i])
				open[i] = open[len(open)-1]
				open = open[:len(open)-1]
				continue
			}
			addr := netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(3)), byte(r.IntN(3))})
			if r.IntN(2) == 0 {
				addr = ip(fmt.Sprintf("2001:db8:0:%x::%x", r.IntN(3)*0xff, r.IntN(3)))
			}
			now = now.Add(time.Duration(r.IntN(4)) * time.Second)
			got, want := real.Admit(addr, now), model.Admit(addr, now)
			if got != want {
				t.Fatalf("seed %d, step %d, %+v: %s: %v, want %v", seed, step, o, addr, got, want)
			}
			if got == LimitNone {
				open = append(open, addr)
			}
		}
	}
}

func TestManyGoroutinesLeaveNothingBehind(t *testing.T) {
	g := NewGate(GateOptions{PerAddress: 3, PerPrefix: 50, Rate: 1 << 20, MessageRate: 1 << 20, MaxEntries: 64})
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 2))
			for range 3000 {
				addr := netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(100)), byte(r.IntN(2))})
				if g.Admit(addr, gateStart) == LimitNone {
					g.AdmitMessage(addr, gateStart)
					g.Leave(addr)
				}
			}
		})
	}
	wg.Wait()
	for i := range g.shards {
		sh := &g.shards[i]
		if len(sh.addresses) > 0 || len(sh.prefixes) > sh.max || len(sh.entries) > sh.max+9 {
			t.Errorf("shard %d: %d addresses, %d prefixes, %d entries", i, len(sh.addresses), len(sh.prefixes), len(sh.entries))
		}
		for _, e := range sh.entries {
			if e.open != 0 {
				t.Errorf("%d open", e.open)
			}
		}
	}
}

func TestAKnownPrefixCostsNoAllocation(t *testing.T) {
	g := NewGate(GateOptions{PerAddress: 10, PerPrefix: 10, Rate: 1 << 30, MessageRate: 1 << 30, Exempt: networks("10.0.0.0/8")})
	addrs := []netip.Addr{ip("192.0.2.1"), ip("2001:db8::1"), ip("::ffff:192.0.2.7")}
	e := &Event{Stage: AtMail, Client: Client{Addr: netip.MustParseAddrPort("192.0.2.1:1")}}
	now := gateStart
	if allocs := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Second)
		for _, a := range addrs {
			if g.Admit(a, now) != LimitNone {
				t.Fatal("refused")
			}
		}
		g.Validate(e)
		for _, a := range addrs {
			g.Leave(a)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkGate(b *testing.B) {
	o := GateOptions{PerAddress: 10, PerPrefix: 100, Rate: 1 << 30}
	for _, prefixes := range []int{1, 50_000} {
		addrs := make([]netip.Addr, prefixes)
		for i := range addrs {
			addrs[i] = netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
		}
		type gate interface {
			Admit(netip.Addr, time.Time) Limit
			Leave(netip.Addr)
		}
		open := GateOptions{PerAddress: 10, PerPrefix: 100} // the naive one's list of times would be slow for another reason
		for _, c := range []struct {
			name string
			g    gate
		}{{"fastedge", NewGate(open)}, {"naive", newNaiveGate(open)}, {"fastedge-with-rate", NewGate(o)}} {
			g := c.g
			b.Run(fmt.Sprintf("prefixes=%d/impl=%s", prefixes, c.name), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					now := gateStart
					for i := rand.IntN(prefixes); pb.Next(); i++ {
						addr := addrs[i%prefixes]
						now = now.Add(time.Second)
						if g.Admit(addr, now) == LimitNone {
							g.Leave(addr)
						}
					}
				})
			})
		}
	}
}
