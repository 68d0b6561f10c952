package spf

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// expandNaively makes the whole of an expansion before it is cut.
func (c *Check) expandNaively(m macros, p string) string {
	var b []byte
	for i := range m {
		if m[i].letter == 0 {
			b = append(b, m[i].literal...)
		} else {
			b = m[i].appendTo(b, c.appendValue(nil, m[i].letter, p))
		}
	}
	return queryName(string(b))
}

// hostile are parameters whose values are as long as they may be.
func hostile() Params {
	name := strings.Repeat("x.", 126) + "y"
	return Params{IP: netip.MustParseAddr("2001:db8::1"), Helo: name, Sender: strings.Repeat("a-b+", 16) + "@" + strings.Repeat("d.", 100) + "example"}
}

// Only the right end of a name counts (RFC 7208 §7.3), at whatever byte it begins.
func TestANameIsExpandedFromTheRightAsFarAsItCounts(t *testing.T) {
	same := func(c *Check, text, p string) {
		t.Helper()
		m, _, problem := parseMacros(text, inName)
		if problem != "" {
			t.Fatal(text, problem)
		}
		if got, want := c.expandName(m, p), c.expandNaively(m, p); got != want {
			t.Fatalf("%q: %q, want %q", text, got, want)
		}
	}
	c := New(hostile())
	for n := range 300 { // each length about the limit, with the last dot that counts at each place
		same(c, strings.Repeat("a", n)+".b", "")
		same(c, "%{h}"+strings.Repeat("a", n), "")
		same(c, "x."+strings.Repeat("a", n)+"."+strings.Repeat("b.", 100)+"c.", "")
		same(c, strings.Repeat("a.", n)+".", "")
		same(c, "."+strings.Repeat("a.", n), "")
		same(c, "%{d}"+strings.Repeat("%{i}.", n%7)+strings.Repeat("a", n)+".", "")
	}
	random := rand.New(rand.NewPCG(1, 2))
	words := []string{"%{h}", "%{H}", "%{HR}", "%{d}", "%{d2}", "%{dr}", "%{i}", "%{ir}", "%{I1R}", "%{s}", "%{L}", "%{l1r-}", "%{v}", "%{o1}", "%{p}", "%%", "%_", "%-",
		".", ".", "a", "b.c", "..", "x123456789"}
	helos := []string{"", ".", "..", "a", "mail.example.com", hostile().Helo, strings.Repeat("b", 255), "[192.0.2.1]", "\x00\xff.y", strings.Repeat(".", 252)}
	for range 20000 {
		p := hostile()
		p.Helo = helos[random.IntN(len(helos))]
		if random.IntN(2) == 0 {
			p.IP, p.Sender = netip.MustParseAddr("192.0.2.1"), "a.b-c@example.org"
		}
		var text strings.Builder
		for range random.IntN(12) {
			text.WriteString(words[random.IntN(len(words))])
		}
		same(New(p), text.String(), "unknown")
	}
}

// hostileRecord is 16 kB of macros in ten terms, each for as many bytes as may be.
func hostileRecord() *TXT {
	var b strings.Builder
	b.WriteString("v=spf1")
	for range MaxLookups {
		b.WriteString(" a:" + strings.Repeat("%{HR}", 16000/MaxLookups/len("%{HR}")) + ".example.org")
	}
	return NewTXT([]string{b.String() + " -all"})
}

// BenchmarkHostileMacros is a check whose record wants as much expansion as may be. naive expands it all.
func BenchmarkHostileMacros(b *testing.B) {
	record, p := hostileRecord(), hostile()
	found := Answer{Status: Found, TXT: record}
	b.Run("check", func(b *testing.B) {
		c := New(p)
		b.ReportAllocs()
		for b.Loop() {
			c.Reset(p)
			if r := c.Run(func(q Query) Answer {
				if q.Type == TypeTXT {
					return found
				}
				return Answer{Status: Found, Addrs: []netip.Addr{netip.IPv6Loopback()}}
			}); r.Code != Fail || r.Lookups != MaxLookups {
				b.Fatalf("%+v", r)
			}
		}
	})
	b.Run("naive", func(b *testing.B) {
		c := New(p)
		b.ReportAllocs()
		for b.Loop() {
			for i := range record.record.terms {
				if s := record.record.terms[i].spec; s != nil && c.expandNaively(s.macros, "") == "" {
					b.Fatal("no name")
				}
			}
		}
	})
}
