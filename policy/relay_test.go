package policy

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/smtpcodec"
)

// mailbox is a forward-path as the parser gives it.
func mailbox(s string) smtpcodec.Path {
	p := smtpcodec.Path{Mailbox: []byte(s)}
	if at := bytes.LastIndexByte(p.Mailbox, '@'); at >= 0 {
		p.Local, p.Domain = p.Mailbox[:at], p.Mailbox[at+1:]
	} else {
		p.Local = p.Mailbox
	}
	return p
}

func mustRelay(t testing.TB, accept ...string) *Relay {
	t.Helper()
	r, err := NewRelay(accept)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOnlyListedDomainsAreAccepted(t *testing.T) {
	r := mustRelay(t, "example.net", "*.Example.ORG", "xn--bcher-kva.example", "bücher.example", "both.test", "*.both.test")
	for to, want := range map[string]bool{
		"a@example.net":           true,
		"a@EXAMPLE.Net":           true,
		"a@mx.example.net":        false, // not asked for
		"a@notexample.net":        false,
		"a@example.net.evil.test": false,
		"a@example.net.":          false,
		"a@example.org":           false, // *. is subdomains only
		"a@x.example.org":         true,
		"a@y.X.eXample.org":       true,
		"a@.example.org":          false,
		"a@xexample.org":          false,
		"a@xn--bcher-kva.example": true,
		"a@bücher.example":        true,
		"a@BÜCHER.example":        false, // only ASCII has one case here
		"a@both.test":             true,
		"a@z.both.test":           true,
		"a@[127.0.0.1]":           false,
		"a@[IPv6:::1]":            false,
		"a@b@evil.test":           false,
		`"a@example.net"@evil.t`:  false,
		"a":                       false,
		"postmaster":              true,
		"PostMaster":              true,
		"postmaster@evil.test":    false,
		"postmasters":             false,
		"":                        false,
		"a@" + strings.Repeat("x", 244) + ".both.test": true,  // 254 bytes
		"a@" + strings.Repeat("x", 246) + ".both.test": false, // 256: no domain is that long
	} {
		if got := r.Accept(mailbox(to), false) == nil; got != want {
			t.Errorf("%.40q: accepted %v, want %v", to, got, want)
		}
		if r.Accept(mailbox(to), true) != nil {
			t.Errorf("%.40q: refused although the client may relay", to)
		}
	}
}

func TestRefusalIs550571(t *testing.T) {
	reply := mustRelay(t).Accept(mailbox("a@example.net"), false)
	if reply == nil || string(reply.AppendTo(nil)) != "550 5.7.1 Relaying denied\r\n" {
		t.Errorf("got %v", reply)
	}
}

func TestBadPatternsAreRefused(t *testing.T) {
	for _, p := range []string{"", "*", "*.", "a.*.b", "*.*.a", "a@b", "[127.0.0.1]", ".a", "*..a", strings.Repeat("a", 256)} {
		if _, err := NewRelay([]string{p}); err == nil {
			t.Errorf("%q was taken", p)
		}
	}
}

func TestNetworks(t *testing.T) {
	n := networks("127.0.0.0/8", "fe80::/10", "2001:db8::1/128")
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.255.255.255": true, "128.0.0.0": false, "126.255.255.255": false,
		"::ffff:127.0.0.1": true, "::ffff:10.0.0.1": false,
		"fe80::1%eth0": true, "fe80::1": true, "2001:db8::1": true, "2001:db8::2": false, "::1": false,
	} {
		if got := n.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
	if n.Contains(netip.Addr{}) || (*Networks)(nil).Contains(netip.MustParseAddr("127.0.0.1")) {
		t.Error("nothing is in nothing")
	}
}

func TestDecisionsDoNotAllocate(t *testing.T) {
	r := mustRelay(t, "example.net", "*.example.org")
	n := networks("fe80::/10")
	addr := netip.MustParseAddr("::ffff:127.0.0.1")
	paths := []smtpcodec.Path{mailbox("a@Example.NET"), mailbox("a@x.y.example.org"), mailbox("a@evil.test"), mailbox("postmaster")}
	if allocs := testing.AllocsPerRun(100, func() {
		for _, p := range paths {
			r.Accept(p, false)
		}
		n.Contains(addr)
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// naiveAccept is the obvious way: lower the domain and go through the list.
func naiveAccept(accept []string, path smtpcodec.Path) bool {
	domain := strings.ToLower(string(path.Domain))
	for _, pattern := range accept {
		if rest, wild := strings.CutPrefix(pattern, "*"); domain == pattern || wild && len(domain) > len(rest) && strings.HasSuffix(domain, rest) {
			return true
		}
	}
	return false
}

func BenchmarkAccept(b *testing.B) {
	var accept []string
	for i := range 1000 {
		accept = append(accept, strings.Repeat("x", 1+i%20)+string(rune('a'+i%26))+".example.net")
	}
	accept = append(accept, "*.example.org")
	path := mailbox("user@mail.Example.org")
	b.Run("domains=1000/impl=fastedge", func(b *testing.B) {
		r := mustRelay(b, accept...)
		b.ReportAllocs()
		for b.Loop() {
			if r.Accept(path, false) != nil {
				b.Fatal("refused")
			}
		}
	})
	b.Run("domains=1000/impl=naive", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !naiveAccept(accept, path) {
				b.Fatal("refused")
			}
		}
	})
}
