package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// networks is a set from the words of a configuration.
func networks(words ...string) *Networks { return NewNetworks(prefixes(words...)) }

func prefixes(words ...string) (all []netip.Prefix) {
	for _, w := range words {
		all = append(all, netip.MustParsePrefix(w))
	}
	return all
}

func TestNetworksAreTakenInAnyForm(t *testing.T) {
	n := networks("10.1.2.3/8", "::ffff:192.0.2.0/120", "2001:db8::1/32", "0.0.0.0/32")
	for addr, want := range map[string]bool{
		"10.255.0.1": true, "192.0.2.77": true, "::ffff:192.0.2.77": true, "192.0.3.1": false, "2001:db8:ffff::1%eth0": true, "2001:db9::": false,
		"0.0.0.0": true, "::": false,
	} {
		if got := n.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	all := networks("0.0.0.0/0")
	if !all.Contains(netip.MustParseAddr("::ffff:1.2.3.4")) || all.Contains(netip.MustParseAddr("::1")) {
		t.Error("0.0.0.0/0 is IPv4, all of it")
	}
	if networks("::/0").Contains(netip.MustParseAddr("1.2.3.4")) {
		t.Error("::/0 is IPv6")
	}
	none := NewNetworks([]netip.Prefix{{}})
	if none.Contains(netip.Addr{}) || none.Contains(netip.MustParseAddr("0.0.0.0")) {
		t.Error("an invalid prefix has members")
	}
}

// naiveNetworks searches from the start.
type naiveNetworks []netip.Prefix

func (n naiveNetworks) Contains(addr netip.Addr) bool {
	addr = addr.Unmap()
	for _, prefix := range n {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

func randomPrefixes(r *rand.Rand, n int) (all []netip.Prefix) {
	for range n {
		addr, bits := netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4)), byte(r.IntN(256))}), 8+r.IntN(25)
		if r.IntN(2) == 0 {
			addr, bits = netip.AddrFrom16([16]byte{0x20, 1, byte(r.IntN(4)), byte(r.IntN(4)), 15: byte(r.IntN(4))}), 16+r.IntN(113)
		}
		all = append(all, netip.PrefixFrom(addr, bits).Masked())
	}
	return all
}

func TestNetworksAgreeWithASearch(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		list := randomPrefixes(r, 1+r.IntN(30))
		n := NewNetworks(list)
		for range 200 {
			addr := randomPrefixes(r, 1)[0].Addr()
			if got, want := n.Contains(addr), naiveNetworks(list).Contains(addr); got != want {
				t.Fatalf("%v in %v: %v", addr, list, got)
			}
		}
	}
}

func TestTheLongestPrefixDecidesAboutAClient(t *testing.T) {
	c := NewClients(prefixes("10.0.0.0/8", "10.1.2.0/24", "192.0.2.0/24", "::/0"), prefixes("10.1.0.0/16", "192.0.2.0/24", "2001:db8::/32"))
	for addr, want := range map[string]bool{
		"10.0.0.1": false, "10.1.0.1": true, "10.1.2.1": false, "192.0.2.1": true, "198.51.100.1": true, "::1": false, "2001:db8::1": true,
		"::ffff:10.0.0.1": false, "fe80::1%eth0": false,
	} {
		e := &Event{Stage: AtConnect, Client: Client{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 1)}}
		if err := c.Validate(e); err != nil || (e.Reply.Code == 0) != want {
			t.Errorf("%s: %d, %v", addr, e.Reply.Code, err)
		}
		if !want && string(e.Reply.AppendTo(nil)) != "554 5.7.1 Your address is not welcome here\r\n" {
			t.Errorf("%s: %s", addr, e.Reply.AppendTo(nil))
		}
	}
	if !c.Allowed(netip.Addr{}) {
		t.Error("a unix socket has no address to deny")
	}
	if c.Stages() != On(AtConnect) || NewClients(nil, nil).Stages() != 0 || !(*Clients)(nil).Allowed(netip.MustParseAddr("::1")) {
		t.Error("stages")
	}
}

func BenchmarkNetworks(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{3, 1000} {
		list := randomPrefixes(r, size)
		addr := netip.MustParseAddr("172.16.0.1") // in none
		n := NewNetworks(list)
		b.Run(fmt.Sprintf("networks=%d/impl=fastedge", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if n.Contains(addr) {
					b.Fatal("in")
				}
			}
		})
		b.Run(fmt.Sprintf("networks=%d/impl=naive", size), func(b *testing.B) {
			for b.Loop() {
				if naiveNetworks(list).Contains(addr) {
					b.Fatal("in")
				}
			}
		})
	}
}
