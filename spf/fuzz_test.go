package spf

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// visible says that s may be shown anywhere: in a reply, a header, a log.
func visible(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7E }) < 0
}

// FuzzRecord: any record is parsed or has a problem that may be shown; what is kept of it can be evaluated, and parses again.
func FuzzRecord(f *testing.F) {
	for _, s := range []string{
		"v=spf1 -all", "v=spf1 a:%{l1r-}.example.com/24//64 ?mx:x.example ~ip4:192.0.2.0/24 exp=a.%{i}.example redirect=b.example.com.",
		"v=spf1 ip6:::1/128 ptr:%%%_%-.example include:%{D2} exists:%{ir}.%{v}._spf.%{d2} moo=%{c}", "v=spf1 a:%{d", "V=SPF1 ALL", "v=spf1 a//",
		"v=spf1 a:foo:bar/baz.example.com//0 all=1", "v=spf1 +redirect=x.y", "v=spf1 ip4:1.2.3.4/032", "v=spf1 exp=\x80", "v=spf1 %all",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		txt := NewTXT([]string{text})
		found, problem := txt.SPF()
		if !visible(problem) || len(problem) > 400 {
			t.Fatalf("problem %q", problem)
		}
		if !found || problem != "" {
			return
		}
		r := txt.record
		words := strings.Fields(text)
		for _, one := range r.terms {
			if !slices.Contains(words, one.text) {
				t.Fatalf("term %q is not in %q", one.text, text)
			}
			if again, problem := parseTerm(one.text); problem != "" || again.kind != one.kind || again.prefix != one.prefix {
				t.Fatalf("term %q: %s", one.text, problem)
			}
			switch {
			case one.kind == kindIP && !one.prefix.IsValid(), one.bits4 > 32, one.bits6 > 128, one.code == None:
				t.Fatalf("term %+v", one)
			case one.spec != nil && one.spec.name != "" && one.spec.name != queryName(one.spec.name):
				t.Fatalf("name %q", one.spec.name)
			}
		}
		if txt.Size() > 64*len(text)+4096 {
			t.Fatalf("%d bytes of %d", txt.Size(), len(text))
		}
	})
}

// FuzzMacro: the transformation of a value is what the sentence of RFC 7208 §7.3 says, step by step.
func FuzzMacro(f *testing.F) {
	f.Add("l", "strong-bad")
	f.Add("lr-", "strong-bad")
	f.Add("L1r-+", "a-b+c.d")
	f.Add("d2", "email.example.com")
	f.Add("s127r", "..a.")
	f.Fuzz(func(t *testing.T, text, value string) {
		m, ok := parseMacro(text, inExplanation)
		if !ok {
			return
		}
		got := string(m.appendTo([]byte("before."), []byte(value)))
		delimiters := strings.TrimLeft(text[1:], "0123456789rR")
		given := delimiters != ""
		if !given {
			delimiters = "."
		}
		want := value
		if m.keep > 0 || m.reverse || given {
			var parts []string
			begin := 0
			for i := range len(value) {
				if strings.IndexByte(delimiters, value[i]) >= 0 {
					parts = append(parts, value[begin:i])
					begin = i + 1
				}
			}
			parts = append(parts, value[begin:])
			if m.reverse {
				slices.Reverse(parts)
			}
			if m.keep > 0 {
				parts = parts[max(0, len(parts)-int(m.keep)):]
			}
			want = strings.Join(parts, ".")
		}
		if m.escape {
			var b strings.Builder
			for _, c := range []byte(want) {
				if isUnreserved(c) {
					b.WriteByte(c)
				} else {
					fmt.Fprintf(&b, "%%%02X", c)
				}
			}
			want = b.String()
		}
		if got != "before."+want {
			t.Fatalf("%%{%s} of %q is %q, want %q", text, value, got, want)
		}
	})
}

// FuzzCheck: whatever records, senders and answers strangers make, a check ends within the queries that its limits allow, asks for names that
// exist or could, and has nothing to show but visible ASCII. Asking again for the same answers gives the same result.
func FuzzCheck(f *testing.F) {
	f.Add("a@example.com", "mail.example.com", "v=spf1 -all exp=e.%{d}", "why: %{s} %{c} %{h} %{p} %{t} %{r}", []byte{1}, false)
	f.Add("ü@bücher.example", "[192.0.2.1]", "v=spf1 mx ptr exists:%{l}.%{p} include:%{d} redirect=%{o}", "%{S}%%%_", []byte{1, 1, 2, 0, 1}, true)
	f.Add("\"a b\"@x.\r\n", "x", "v=spf1 a:%{h}.x.y mx:%{L}.z.y ?all", "\r\n250 ok", []byte{2, 2, 1}, false)
	f.Fuzz(func(t *testing.T, sender, helo, record, text string, script []byte, six bool) {
		ip := netip.MustParseAddr("192.0.2.1")
		if six {
			ip = netip.MustParseAddr("2001:db8::1")
		}
		p := Params{IP: ip, Helo: helo, Sender: sender, Receiver: helo, MaxVoid: 3}
		spf, other := NewTXT([]string{record}), NewTXT([]string{text})
		once := func(c *Check) Result {
			n := 0
			c.Trace = func(s Step) {
				if !visible(s.Domain) || !visible(s.Text) {
					t.Fatalf("%+v", s)
				}
			}
			return c.Run(func(q Query) Answer {
				if queryName(q.Name) != q.Name || !visible(q.Name) {
					t.Fatalf("query for %q", q.Name)
				}
				by := byte(1)
				if len(script) > 0 {
					by = script[n%len(script)]
				}
				n++
				a := Answer{Status: Status(by & 3 % 3), TXT: spf, Hosts: []string{sender, helo, q.Name, "a.example.com"}}
				if c.explaining() {
					a.TXT = other
				}
				if by&4 != 0 {
					a.Hosts = slices.Repeat(a.Hosts, 3)
				}
				if by&8 != 0 {
					a.Addrs = []netip.Addr{ip}
				} else {
					a.Addrs = []netip.Addr{netip.IPv6Loopback(), netip.MustParseAddr("198.51.100.1")}
				}
				return a
			})
		}
		c := New(p)
		r := once(c)
		// A record, ten terms of a query and ten hosts each, the client's names and their addresses, and the explanation.
		if limit := 1 + MaxLookups*(1+MaxMXHosts) + 1 + MaxPTRNames + 1; r.Queries > limit || r.Lookups > MaxLookups || r.Voids > 4+1 {
			t.Fatalf("%+v", r)
		}
		for _, s := range []string{r.Domain, r.Mechanism, r.Problem, r.Reason, r.Explanation} {
			if !visible(s) || len(s) > 800 {
				t.Fatalf("%q", s)
			}
		}
		if len(r.Explanation) > MaxExplanationBytes || r.Explanation != "" && r.Code != Fail {
			t.Fatalf("%+v", r)
		}
		c.Reset(p)
		if again := once(c); again != r {
			t.Fatalf("%+v, then %+v", r, again)
		}
	})
}

// FuzzExplanation: bytes 0x20 to 0x7E, or nothing at all; never more than the limit.
func FuzzExplanation(f *testing.F) {
	f.Add("See http://example.com/?s=%{S}&i=%{I}", "a@example.com", "mail.example.com")
	f.Add("ok\r\n250 2.0.0 ok", "a@example.com", "mail.example.com")
	f.Add("%{h}", "a@example.com", "x\r\n.\r\n")
	f.Fuzz(func(t *testing.T, text, sender, helo string) {
		z := zone{"example.com": {{kind: "TXT", value: "v=spf1 -all exp=why.example.com"}}, "why.example.com": {{kind: "TXT", value: text}}}
		r := New(Params{IP: netip.MustParseAddr("192.0.2.1"), Helo: helo, Sender: sender + "@example.com", Receiver: sender}).Run(z.lookup)
		switch {
		case r.Code != Fail:
			t.Fatalf("%+v", r)
		case !visible(r.Explanation) || len(r.Explanation) > MaxExplanationBytes || !visible(text) && r.Explanation != "":
			t.Fatalf("%q", r.Explanation)
		case visible(text) && !strings.Contains(text, "%") && r.Explanation != text[:min(len(text), MaxExplanationBytes)]:
			t.Fatalf("%q of %q", r.Explanation, text)
		}
	})
}
