package spf

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	blitiri "blitiri.com.ar/go/spf"
)

// providerChain is a customer of a big mail provider: a redirect to a record that includes three lists of networks. Five records.
func providerChain() zone {
	z := records(
		"customer.example TXT v=spf1 redirect=_spf.provider.example",
		"_spf.provider.example TXT v=spf1 include:_netblocks.provider.example include:_netblocks2.provider.example "+
			"include:_netblocks3.provider.example ~all")
	for i, name := range []string{"_netblocks", "_netblocks2", "_netblocks3"} {
		var b strings.Builder
		b.WriteString("v=spf1")
		for n := range 10 {
			if i == 1 {
				fmt.Fprintf(&b, " ip6:2001:db8:%x::/48", n*16)
			} else {
				fmt.Fprintf(&b, " ip4:198.%d.%d.0/20", 18+i/2, n*16)
			}
		}
		b.WriteString(" ~all")
		z[name+".provider.example"] = []rr{{kind: "TXT", value: b.String()}}
	}
	return z
}

// cached answers from what a cache would have: records parsed before.
func cached(z zone) func(Query) Answer {
	m := map[Query]Answer{}
	for name := range z {
		for t := TypeTXT; t <= TypePTR; t++ {
			q := Query{Name: name, Type: t}
			m[q] = z.lookup(q)
		}
	}
	return func(q Query) Answer {
		if a, ok := m[q]; ok {
			return a
		}
		return Answer{Status: Empty}
	}
}

func TestCachedProviderChainAllocatesNothing(t *testing.T) {
	lookup := cached(providerChain())
	p := Params{IP: netip.MustParseAddr("192.0.2.1"), Helo: "mail.customer.example", Sender: "sales@customer.example"}
	c := New(p)
	if n := testing.AllocsPerRun(100, func() {
		c.Reset(p)
		if r := c.Run(lookup); r.Code != SoftFail || r.Queries != 5 || r.Domain != "_spf.provider.example" || r.Mechanism != "all" {
			t.Fatalf("%+v", r)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// peer answers blitiri's library from a zone.
type peer struct{ lookup func(Query) Answer }

func (p peer) ask(name string, t QueryType) (Answer, error) {
	switch a := p.lookup(Query{Name: strings.ToLower(strings.TrimSuffix(name, ".")), Type: t}); a.Status {
	case Found:
		return a, nil
	case Empty:
		return a, &net.DNSError{Err: "no such name", Name: name, IsNotFound: true}
	default:
		return a, &net.DNSError{Err: "timeout", Name: name, IsTimeout: true, IsTemporary: true}
	}
}

func (p peer) LookupTXT(_ context.Context, name string) ([]string, error) {
	a, err := p.ask(name, TypeTXT)
	if err != nil {
		return nil, err
	}
	return a.TXT.Strings, nil
}

func (p peer) LookupMX(_ context.Context, name string) (out []*net.MX, err error) {
	a, err := p.ask(name, TypeMX)
	for i, h := range a.Hosts {
		out = append(out, &net.MX{Host: h, Pref: uint16(i)})
	}
	return out, err
}

func (p peer) LookupIPAddr(_ context.Context, host string) (out []net.IPAddr, err error) {
	for _, t := range []QueryType{TypeA, TypeAAAA} {
		a, e := p.ask(host, t)
		for _, ip := range a.Addrs {
			out = append(out, net.IPAddr{IP: ip.AsSlice()})
		}
		if e != nil && (err == nil || !e.(*net.DNSError).IsNotFound) {
			err = e
		}
	}
	if len(out) > 0 {
		err = nil
	}
	return out, err
}

func (p peer) LookupAddr(_ context.Context, ip string) ([]string, error) {
	a, err := p.ask(reverseName(netip.MustParseAddr(ip)), TypePTR)
	return a.Hosts, err
}

// BenchmarkProviderChain is one check of the chain by a client that it does not list: the worst case of the usual one.
func BenchmarkProviderChain(b *testing.B) {
	z := providerChain()
	lookup := cached(z)
	b.Run("cached", func(b *testing.B) {
		p := Params{IP: netip.MustParseAddr("192.0.2.1"), Helo: "mail.customer.example", Sender: "sales@customer.example"}
		c := New(p)
		b.ReportAllocs()
		for b.Loop() {
			c.Reset(p)
			if c.Run(lookup).Code != SoftFail {
				b.Fatal("not a softfail")
			}
		}
	})
	b.Run("parsing", func(b *testing.B) { // every record anew
		p := Params{IP: netip.MustParseAddr("192.0.2.1"), Helo: "mail.customer.example", Sender: "sales@customer.example"}
		c := New(p)
		b.ReportAllocs()
		for b.Loop() {
			c.Reset(p)
			if c.Run(func(q Query) Answer {
				a := lookup(q)
				a.TXT = NewTXT(a.TXT.Strings)
				return a
			}).Code != SoftFail {
				b.Fatal("not a softfail")
			}
		}
	})
	b.Run("blitiri", func(b *testing.B) {
		ip := net.ParseIP("192.0.2.1")
		with := blitiri.WithResolver(peer{lookup})
		b.ReportAllocs()
		for b.Loop() {
			if r, _ := blitiri.CheckHostWithSender(ip, "mail.customer.example", "sales@customer.example", with); r != blitiri.SoftFail {
				b.Fatal("not a softfail")
			}
		}
	})
}
