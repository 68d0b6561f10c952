package spf

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

// records makes a zone of lines "name TYPE value", MX preferences by order.
func records(lines ...string) zone {
	z := zone{}
	for i, l := range lines {
		f := strings.SplitN(l, " ", 3)
		z[f[0]] = append(z[f[0]], rr{kind: f[1], value: f[2], pref: i})
	}
	return z
}

func check(z zone, ip string) Result {
	return New(Params{IP: netip.MustParseAddr(ip), Helo: "mail.example.com", Sender: "a@example.com"}).Run(z.lookup)
}

// mxBomb is a record that makes a check ask as much as a record can: ten terms of ten hosts. RFC 7208 §11.1.
func mxBomb(hostsExist bool) zone {
	z, terms := zone{}, "v=spf1"
	for t := range MaxLookups {
		name := fmt.Sprintf("m%d.example.com", t)
		terms += " mx:" + name
		for h := range MaxMXHosts {
			host := fmt.Sprintf("h%d.%s", h, name)
			z[name] = append(z[name], rr{kind: "MX", value: host})
			if hostsExist {
				z[host] = append(z[host], rr{kind: "A", value: "198.51.100.1"})
			}
		}
	}
	z["example.com"] = []rr{{kind: "TXT", value: terms + " -all"}}
	return z
}

func TestQueriesAreBounded(t *testing.T) {
	tenIncludes := func(n int) zone {
		z, terms := zone{}, "v=spf1"
		for i := range n {
			terms += fmt.Sprintf(" include:i%d.example.com", i)
			z[fmt.Sprintf("i%d.example.com", i)] = []rr{{kind: "TXT", value: "v=spf1 ip4:198.51.100.1"}}
		}
		z["example.com"] = []rr{{kind: "TXT", value: terms + " ~all"}}
		return z
	}
	nested := zone{"example.com": {{kind: "TXT", value: "v=spf1 include:n0.example.com -all"}}}
	for i := range 12 {
		nested[fmt.Sprintf("n%d.example.com", i)] = []rr{{kind: "TXT", value: fmt.Sprintf("v=spf1 include:n%d.example.com -all", i+1)}}
	}
	names := records("example.com TXT v=spf1 ptr:example.com ptr:other.example ptr exists:%{p}.example.com -all")
	for i := range 15 {
		names["1.2.0.192.in-addr.arpa"] = append(names["1.2.0.192.in-addr.arpa"], rr{kind: "PTR", value: "h" + strconv.Itoa(i) + ".example.com."})
	}
	for _, tt := range []struct {
		name                    string
		zone                    zone
		code                    Code
		queries, lookups, voids int
	}{
		{"mx bomb", mxBomb(true), Fail, 111, 10, 0},
		{"mx bomb of hosts that do not exist", mxBomb(false), PermError, 5, 1, 3},
		{"ten includes", tenIncludes(10), SoftFail, 11, 10, 0},
		{"eleven includes", tenIncludes(11), PermError, 11, 10, 0},
		{"includes within includes", nested, PermError, 11, 10, 0},
		{"an include of itself", records("example.com TXT v=spf1 include:example.com -all"), PermError, 11, 10, 0},
		{"a redirect to itself", records("example.com TXT v=spf1 redirect=example.com"), PermError, 11, 10, 0},
		{"two redirects in a ring", records("example.com TXT v=spf1 redirect=b.example.com", "b.example.com TXT v=spf1 redirect=example.com"),
			PermError, 11, 10, 0},
		{"an include and a redirect in a ring", records("example.com TXT v=spf1 include:b.example.com -all",
			"b.example.com TXT v=spf1 redirect=example.com"), PermError, 11, 10, 0},
		// One for the record, one for the names, ten for their addresses, however many terms want them; and one for exists.
		{"fifteen names of the client", names, Fail, 13, 4, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := check(tt.zone, "192.0.2.1")
			if r.Code != tt.code || r.Queries != tt.queries || r.Lookups != tt.lookups || r.Voids != tt.voids {
				t.Errorf("%s, %d queries, %d lookups, %d voids (%s); want %s, %d, %d, %d", r.Code, r.Queries, r.Lookups, r.Voids, r.Problem,
					tt.code, tt.queries, tt.lookups, tt.voids)
			}
		})
	}
}

// RFC 7208 §4.6.4: two by default, and the limit can be set.
func TestVoidLookupsAreLimited(t *testing.T) {
	z := records("example.com TXT v=spf1 a:v1.example.com mx:v2.example.com exists:v3.example.com a:v4.example.com ip4:192.0.2.1 -all")
	for _, tt := range []struct {
		limit int
		want  Code
	}{{-1, PermError}, {0, PermError}, {1, PermError}, {3, PermError}, {4, Pass}, {10, Pass}} {
		r := New(Params{IP: netip.MustParseAddr("192.0.2.1"), Sender: "a@example.com", MaxVoid: tt.limit}).Run(z.lookup)
		if r.Code != tt.want {
			t.Errorf("limit %d: %s, want %s", tt.limit, r.Code, tt.want)
		}
	}
}

// The names of the client are the client's choice: it must not be able to turn a Fail into a PermError.
func TestNamesOfTheClientAreNotHeldAgainstTheDomain(t *testing.T) {
	z := records("example.com TXT v=spf1 ptr -all")
	for i := range 10 {
		z["1.2.0.192.in-addr.arpa"] = append(z["1.2.0.192.in-addr.arpa"], rr{kind: "PTR", value: fmt.Sprintf("x%d.example.com", i)})
	}
	if r := check(z, "192.0.2.1"); r.Code != Fail || r.Voids != 0 {
		t.Errorf("%s (%s)", r.Code, r.Problem)
	}
}

// What can't be reached is not kept: a record of 16 kB must not grow to a megabyte.
func TestTermsOutOfReachAreNotKept(t *testing.T) {
	for _, text := range []string{strings.Repeat("a ", 8000), strings.Repeat("?all ", 3000), strings.Repeat("x=%{d} ", 2000)} {
		txt := NewTXT([]string{"v=spf1 " + text})
		if found, problem := txt.SPF(); !found || problem != "" {
			t.Fatal(found, problem)
		}
		if n := txt.Size(); n > len(text)+4096 {
			t.Errorf("%d bytes of %.12s… take %d", len(text), text, n)
		}
	}
	// They are checked, though.
	if _, problem := NewTXT([]string{"v=spf1 -all a:"}).SPF(); problem == "" {
		t.Error("a wrong term after all was not seen")
	}
}

// A check that is given up is a temperror; one that has its result already keeps it and is without explanation.
func TestGiveUp(t *testing.T) {
	z := records("example.com TXT v=spf1 -all exp=why.example.com", "why.example.com TXT because")
	p := Params{IP: netip.MustParseAddr("192.0.2.1"), Sender: "a@example.com"}
	c := New(p)
	c.GiveUp("timed\r\nout")
	if r := c.Result(); r.Code != TempError || r.Reason != "SPF Temporary Error: timed??out" || r.Domain != "example.com" {
		t.Errorf("%+v", r)
	}
	if _, ok := c.Next(); ok {
		t.Error("still asks")
	}
	c.Reset(p)
	q, _ := c.Next()
	c.Feed(z.lookup(q))
	if q, ok := c.Next(); !ok || q.Name != "why.example.com" {
		t.Fatal(q, ok)
	}
	c.GiveUp("timed out")
	if r := c.Result(); r.Code != Fail || r.Explanation != "" || r.Reason != "SPF fail - not authorized" {
		t.Errorf("%+v", r)
	}
}

// A limit of ours, or a server that is not there, is not the domain's fault.
func TestATempErrorTellsItsCause(t *testing.T) {
	for cause, want := range map[Cause]string{
		CauseDNS:         "no answer for A of host.example.org",
		CauseUnreachable: "connection refused by every DNS server, asked for A of host.example.org",
		CauseBusy:        "too many lookups under way, not asked for A of host.example.org",
		CauseClient:      "too many lookups under way for this client, not asked for A of host.example.org",
	} {
		got := New(Params{IP: netip.MustParseAddr("192.0.2.1"), Sender: "a@example.org"}).Run(func(q Query) Answer {
			if q.Type == TypeTXT {
				return Answer{Status: Found, TXT: NewTXT([]string{"v=spf1 a:host.example.org -all"})}
			}
			return Answer{Cause: cause}
		})
		if got.Code != TempError || got.Problem != want || got.Reason != "SPF Temporary Error: "+want || got.Cause != cause {
			t.Errorf("%+v, want %s", got, want)
		}
	}
}
