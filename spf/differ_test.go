package spf

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	blitiri "blitiri.com.ar/go/spf"
)

// world is a zone made at random, and who asks. Its names are d0 to d5.example.org, as senders, targets, hosts of MX and names of clients.
type world struct {
	zone   zone
	params Params
}

func (w world) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s helo %q sender %q\n", w.params.IP, w.params.Helo, w.params.Sender)
	for _, name := range slices.Sorted(maps.Keys(w.zone)) {
		for _, r := range w.zone[name] {
			fmt.Fprintf(&b, "  %s %s %s\n", name, r.kind, r.value)
		}
	}
	return b.String()
}

func makeWorld(r *rand.Rand) world {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	host := func() string { return fmt.Sprintf("d%d.example.org", r.IntN(6)) }
	length := func() string { return pick("", "", "", "/32", "/24", "/0", "//64", "/28//48", "/8//0") }
	target := func() string {
		return pick(host(), host(), host(), host(), "none.example.org", "D1.Example.Org", "d2.example.org.",
			"%{d}", "%{o}", "%{h}", "%{l}.example.org", "%{l1r-}.%{d}", "%{i}._x.%{d2}", "%{ir}.%{v}.example.org", "%{d3r}.%{L}.%%.org",
			"x..example.org", "%{p}.example.org")
	}
	domain := func() string { return pick("", "", ":"+target(), ":"+target()) }
	odd := func() string { // rarely, something that is wrong or unusual
		return pick("ip4:192.0.2.1/33", "a:", "mx/", "foo", "a:192.0.2.1", "exp=why.example.org", "exp=", "x=%", "x=%{z}", "all:x", "ip6", "a:museum",
			"ptr/8", "include", "-redirect=d1.example.org", "moo=", "e-x.y_z=%{d}", "ip4:192.0.2.01", "ip6:::ffff:192.0.2.1", "a:%{d", "%{d}", "ip4:192.0.2.0/024",
			"exists:%{d0}.org", "ip4:1.2.3")
	}
	term := func() string {
		q := pick("", "", "", "+", "-", "~", "?")
		switch r.IntN(22) {
		case 0, 1:
			return q + "ip4:" + pick("192.0.2.1", "192.0.2.0/24", "198.51.100.7", "203.0.113.0/25", "0.0.0.0/0")
		case 2, 3:
			return q + "ip6:" + pick("2001:db8::1", "2001:db8::/32", "2001:db8:f::/48", "::/0")
		case 4, 5, 6:
			return q + "a" + domain() + length()
		case 7, 8, 9:
			return q + "mx" + domain() + length()
		case 10, 11, 12, 13:
			return q + "include:" + target()
		case 14, 15:
			return q + "exists:" + target()
		case 16, 17:
			return q + "ptr" + domain()
		case 18, 19:
			return "redirect=" + target()
		case 20:
			return q + pick("all", "ALL")
		}
		if r.IntN(4) == 0 {
			return odd()
		}
		return "unknown=" + pick("", "x", "%{i}")
	}
	z := zone{}
	add := func(name, kind, value string) {
		z[name] = append(z[name], rr{kind: kind, value: value, pref: len(z[name])})
	}
	v4 := func() string { return pick("192.0.2.1", "192.0.2.9", "198.51.100.7", "203.0.113.4") }
	v6 := func() string { return pick("2001:db8::1", "2001:db8::9", "2001:db8:f::7") }
	for i := range 6 {
		name := fmt.Sprintf("d%d.example.org", i)
		switch r.IntN(12) {
		case 0:
			add(name, "TXT", "unrelated")
		case 1:
		case 2:
			if r.IntN(3) == 0 {
				add(name, "TXT", "v=spf1 -all")
			}
			fallthrough
		default:
			s := pick("v=spf1", "v=spf1", "V=SPF1 ")
			for range r.IntN(6) {
				s += " " + term()
			}
			s += pick("", "", " -all", " ~all", " ?all")
			add(name, "TXT", s)
		}
		if r.IntN(8) > 0 {
			for range 1 + r.IntN(2) {
				add(name, "A", v4())
				if r.IntN(6) > 0 {
					add(name, "AAAA", v6())
				}
			}
		}
		if r.IntN(3) > 0 {
			for n := 1 + r.IntN(3); n > 0; n-- {
				add(name, "MX", pick(host(), host(), host(), host(), "none.example.org"))
			}
			if r.IntN(20) == 0 {
				for range 9 {
					add(name, "MX", host())
				}
			}
		}
		if r.IntN(25) == 0 {
			add(name, "TIMEOUT", "true")
		}
	}
	p := Params{IP: netip.MustParseAddr(pick("192.0.2.1", "192.0.2.1", "198.51.100.7", "2001:db8::1", "::ffff:192.0.2.1")), Helo: host()}
	for range r.IntN(4) {
		add(reverseName(p.IP.Unmap()), "PTR", host()+".")
	}
	if r.IntN(10) == 0 {
		add(reverseName(p.IP.Unmap()), "TIMEOUT", "true")
	}
	p.Sender = pick("user", "user", "strong-bad", "a-b-c", "a.b", "a..b", "A+b", "d1") + "@" + host()
	if r.IntN(12) == 0 {
		p.Sender = ""
	}
	return world{z, p}
}

// dissents are where the library is known to differ from RFC 7208 or from what RFC 7208 leaves to us, by kind. A kind is one for a world when it
// says so from the walk: the records that were read, in order, and what was asked.
var dissents = []struct {
	kind string
	is   func(w walk) bool
}{
	// RFC 7208 §4.6 wants the whole record parsed before; the library sees an error when it gets there, and not every one (§7.1, §5.6, §6).
	{"a syntax error in a record", func(w walk) bool { return w.problem }},
	// Void lookups: it counts terms and both families, so not hosts of MX, nor names that have the other family only (§4.6.4).
	{"void lookups of MX hosts or of one family", func(w walk) bool { return w.voids }},
	// It has the addresses of all MX hosts before it compares: a host that does not answer spoils a match before.
	{"an MX host that does not answer", func(w walk) bool { return w.failed && strings.Contains(w.text, "mx") }},
	// It asks for both families and is content with one of them: an error for the other, which is the client's, is no match.
	{"an error for one family", func(w walk) bool { return w.half }},
	// %{p} is always "unknown".
	{"%{p}", func(w walk) bool { return strings.Contains(w.text, "%{p") }},
	// Empty parts of a macro's value are dropped; %{l} of the null sender is empty, and %{o}, too (§4.3, §7.3).
	{"empty parts in a macro", func(w walk) bool { return strings.Contains(w.sender, "..") && strings.Contains(w.text, "%{") }},
	{"macros of the null sender", func(w walk) bool { return w.sender == "" && strings.Contains(w.text, "%{") }},
	// A name with an empty label is asked for; of an include that is the same result here, but it counts as a void lookup.
	{"a name that can't be asked for", func(w walk) bool { return strings.Contains(w.text, "x..example.org") }},
	// ip6 with a mapped network matches IPv4 clients (§5 says no).
	{"ip6 with a mapped address", func(w walk) bool { return strings.Contains(w.text, "::ffff:") }},
}

// walk is what is known of an evaluation.
type walk struct {
	text    string // the records that were read
	sender  string
	problem bool // one of them has a syntax error
	voids   bool // a host of an MX answer, or one family of a name, has no address
	failed  bool // an answer was not to be had
	half    bool // of addresses, while there are some of the other family
}

// compare runs both and gives the dissent between them: none, of a kind that is known, or not known.
func compare(w world) (ours Result, theirs blitiri.Result, kind string, ok bool) {
	var seen walk
	seen.sender = w.params.Sender
	lookup := func(q Query) Answer {
		a := w.zone.lookup(q)
		switch {
		case q.Type == TypeTXT && a.Status == Found:
			for _, s := range a.TXT.Strings {
				seen.text += "\n" + strings.ToLower(s)
			}
			seen.problem = seen.problem || a.TXT.problem != "" && a.TXT.problem != "several SPF records"
		case a.Status == Failed:
			seen.failed = true
		}
		return a
	}
	c := New(w.params)
	afterMX := false
	c.Trace = func(s Step) {
		switch {
		case s.Kind == StepTerm:
			afterMX = false
		case s.Kind == StepAnswer && s.Query.Type == TypeMX:
			afterMX = true
		case s.Kind == StepAnswer && s.Status != Found && (s.Query.Type == TypeA || s.Query.Type == TypeAAAA):
			other := w.zone.lookup(Query{Name: s.Query.Name, Type: TypeA + TypeAAAA - s.Query.Type}).Status == Found
			seen.voids = seen.voids || s.Status == Empty && (afterMX || other)
			seen.half = seen.half || s.Status == Failed && other
		}
	}
	ours = c.Run(lookup)
	theirs, _ = blitiri.CheckHostWithSender(net.IP(w.params.IP.AsSlice()), w.params.Helo, w.params.Sender, blitiri.WithResolver(peer{lookup}))
	if string(theirs) == ours.Code.String() {
		return ours, theirs, "", true
	}
	for _, d := range dissents {
		if d.is(seen) {
			return ours, theirs, d.kind, true
		}
	}
	return ours, theirs, "", false
}

func TestSameAsBlitiri(t *testing.T) {
	worlds := 20000
	if testing.Short() {
		worlds = 2000
	}
	codes, kinds := map[Code]int{}, map[string]int{}
	for seed := range uint64(worlds) {
		w := makeWorld(rand.New(rand.NewPCG(seed, 7208)))
		ours, theirs, kind, ok := compare(w)
		if !ok {
			t.Errorf("seed %d: %s (%s), blitiri says %s\n%s", seed, ours.Code, ours.Problem, theirs, w)
			if len(kinds) > 200 {
				break
			}
		}
		codes[ours.Code]++
		if kind != "" {
			kinds[kind]++
		}
	}
	t.Logf("%d worlds: %v", worlds, codes)
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		t.Logf("%5d dissents: %s", kinds[k], k)
	}
}

func FuzzSameAsBlitiri(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		w := makeWorld(rand.New(rand.NewPCG(a, b)))
		if ours, theirs, _, ok := compare(w); !ok {
			t.Fatalf("%s (%s), blitiri says %s\n%s", ours.Code, ours.Problem, theirs, w)
		}
	})
}
