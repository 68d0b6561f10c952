package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/spf"
)

func mustDNSBL(t testing.TB, o DNSBLOptions) *DNSBL {
	t.Helper()
	d, err := NewDNSBL(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// RFC 5782 §2.1 and §2.4.
func TestListsAreAskedUnderTheReversedAddress(t *testing.T) {
	for ip, want := range map[string]string{
		"192.0.2.99":        "A 99.2.0.192.bl.example.org, A 99.2.0.192.wl.example.org",
		"::ffff:192.0.2.99": "A 99.2.0.192.bl.example.org, A 99.2.0.192.wl.example.org",
		"2001:db8:1:2:3:4:567:89ab": "A b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bl.example.org, " +
			"A b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.wl.example.org",
		"":          "",
		"127.0.0.1": "", "::1": "", "::ffff:127.0.0.1": "", "10.1.2.3": "", "192.168.0.1": "", "fd00::1": "", "fe80::1%eth0": "", "169.254.1.1": "", // nobody lists these
		"198.51.100.1": "", // in Skip
	} {
		dns := newDNS("")
		d := mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: []DNSBLZone{{Zone: "BL.Example.org."}, {Zone: "wl.example.org", Weight: -1}}, Skip: networks("198.51.100.0/24")})
		if got := newTalk(t, d, ip, "").at(AtConnect); got != "" {
			t.Errorf("%s: %q", ip, got)
		}
		if got := strings.Join(dns.asked, ", "); got != want {
			t.Errorf("%s: asked %s\nwant %s", ip, got, want)
		}
	}
	dns := newDNS("")
	k := newTalk(t, mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: []DNSBLZone{{Zone: "a.b"}}}), "192.0.2.99", "")
	k.client.MayRelay = true
	if k.at(AtConnect); len(dns.asked) > 0 {
		t.Errorf("asked %q about a client that may relay", dns.asked)
	}
	if got := mustDNSBL(t, DNSBLOptions{Resolver: dns}).Stages(); got != 0 {
		t.Errorf("without lists: asked at %b", got)
	}
}

// What lists say about 192.0.2.x.
const listZones = `
	A 2.2.0.192.bl.example.org 127.0.0.2
	TXT 2.2.0.192.bl.example.org Spam, see https://bl.example.org/192.0.2.2
	A 4.2.0.192.bl.example.org 127.0.0.4
	A 4.2.0.192.other.example.org 127.0.0.2
	TXT 4.2.0.192.other.example.org Other
	A 4.2.0.192.wl.example.org 127.0.10.1
	A 6.2.0.192.bl.example.org 127.255.255.254
	A 7.2.0.192.bl.example.org 192.0.2.1
	A 8.2.0.192.bl.example.org 127.0.0.2 127.0.0.9
	TXT 8.2.0.192.bl.example.org {zone} {reason} 100%
	A 9.2.0.192.bl.example.org !
	A 9.2.0.192.other.example.org 127.0.0.2
	A 10.2.0.192.bl.example.org 127.0.0.2
	TXT 10.2.0.192.bl.example.org !`

func TestListsAddUp(t *testing.T) {
	bl, other, wl := DNSBLZone{Zone: "bl.example.org"}, DNSBLZone{Zone: "other.example.org"}, DNSBLZone{Zone: "wl.example.org", Weight: -1}
	narrow := bl
	narrow.Answers = prefixes("127.0.0.4/32", "192.0.2.0/24")
	heavy := bl
	heavy.Weight = 3
	for _, c := range []struct {
		ip        string
		zones     []DNSBLZone
		threshold int
		want      string
		told      string // zones that are told of as listed
	}{
		{"192.0.2.1", []DNSBLZone{bl, other, wl}, 0, "", ""},
		{"192.0.2.2", []DNSBLZone{bl}, 0, "bl.example.org: Spam, see https://bl.example.org/192.0.2.2", "bl.example.org"},
		{"192.0.2.2", []DNSBLZone{bl}, 2, "", "bl.example.org"},
		{"192.0.2.2", []DNSBLZone{heavy}, 3, "bl.example.org: Spam, see https://bl.example.org/192.0.2.2", "bl.example.org"},
		{"192.0.2.2", []DNSBLZone{narrow}, 0, "", ""},
		{"192.0.2.4", []DNSBLZone{narrow}, 0, "bl.example.org: listed", "bl.example.org"},
		{"192.0.2.4", []DNSBLZone{bl, other}, 2, "bl.example.org: listed", "bl.example.org other.example.org"},
		{"192.0.2.4", []DNSBLZone{other, bl}, 2, "other.example.org: Other", "bl.example.org other.example.org"},
		{"192.0.2.4", []DNSBLZone{bl, other, wl}, 2, "", "bl.example.org other.example.org wl.example.org"},
		{"192.0.2.4", []DNSBLZone{bl, other, wl}, 1, "bl.example.org: listed", "bl.example.org other.example.org wl.example.org"},
		{"192.0.2.4", []DNSBLZone{wl}, 0, "", "wl.example.org"},
		{"192.0.2.6", []DNSBLZone{bl}, 0, "", ""}, // "you ask too much"
		{"192.0.2.7", []DNSBLZone{bl}, 0, "", ""}, // a parked domain
		{"192.0.2.7", []DNSBLZone{narrow}, 0, "bl.example.org: listed", "bl.example.org"},
		{"192.0.2.8", []DNSBLZone{bl}, 0, "bl.example.org: {zone} {reason} 100%", "bl.example.org"},
		{"192.0.2.9", []DNSBLZone{bl, other}, 0, "other.example.org: listed", "bl.example.org=failed other.example.org"},
		{"192.0.2.10", []DNSBLZone{bl}, 0, "bl.example.org: listed", "bl.example.org"},
	} {
		if c.want != "" {
			c.want = "554 5.7.1 Service unavailable; client blocked by " + c.want
		}
		for _, held := range []bool{false, true} {
			var told, refused []string
			dns := newDNS(listZones)
			dns.hold = held
			o := DNSBLOptions{Resolver: dns, Zones: c.zones, Threshold: c.threshold,
				Told: func(zone, what string) {
					if what != "listed" {
						zone += "=" + what
					}
					told = append(told, zone)
				},
				Refused: func(_ envelope.ID, client netip.Addr, zones []string, score int) {
					refused = append(refused, client.String())
				}}
			k := newTalk(t, mustDNSBL(t, o), c.ip, "")
			got := k.at(AtConnect)
			if held {
				waits := got == "..." // or these lists cannot refuse anybody
				if !waits && (got != "" || c.want != "") || len(dns.waiting) != len(c.zones) {
					t.Errorf("%+v: %q while %d wait", c, got, len(dns.waiting))
				}
				for dns.answer(len(dns.waiting) - 1) { // the last first
				}
				if waits {
					got = k.decision()
				}
			}
			slices.Sort(told)
			if got != c.want || strings.Join(told, " ") != c.told || (len(refused) == 1) != (c.want != "") {
				t.Errorf("%+v, held %v: %q, told %q, refused %q", c, held, got, told, refused)
			}
			// Observing tells the same, refuses nobody, and does not ask for reasons.
			dns.hold, told, refused, dns.asked, o.Observe = false, nil, nil, nil, true
			got = newTalk(t, mustDNSBL(t, o), c.ip, "").at(AtConnect)
			slices.Sort(told)
			if got != "" || strings.Join(told, " ") != c.told || (len(refused) == 1) != (c.want != "") || len(dns.asked) != len(c.zones) {
				t.Errorf("%+v, observed: %q, told %q, refused %q, asked %q", c, got, told, refused, dns.asked)
			}
		}
	}
}

// A dead list never stops mail, and one that only has no reason ready counts.
func TestTheGreetingWaitsForListsOnlySoLong(t *testing.T) {
	zones := []DNSBLZone{{Zone: "bl.example.org"}, {Zone: "dead.example.org"}}
	dns := newDNS(listZones)
	dns.hold = true
	d := mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: zones, Timeout: time.Millisecond})
	k := newTalk(t, d, "192.0.2.2", "")
	if k.at(AtConnect) != "..." || k.decision() != "" {
		t.Error("a dead list stopped a client")
	}
	asked := len(dns.asked)
	dns.answerAll() // too late, and no reason is asked for
	if len(dns.asked) != asked {
		t.Errorf("asked %q", dns.asked[asked:])
	}

	e := &Event{Stage: AtConnect}
	c := &dnsblCheck{d: d, client: ip("192.0.2.2"), allAsked: true, answers: make([]listing, 2), pending: e.Pend()}
	c.listed(0, spf.Answer{Status: spf.Found, Addrs: []netip.Addr{ip("127.0.0.2")}})
	c.expire()
	if r, _, _ := e.Pend().Decision(); replyText(r) != "554 5.7.1 Service unavailable; client blocked by bl.example.org: listed" {
		t.Errorf("late reason: %q", replyText(r))
	}
	dns.answerAll()
}

// Observing is for looking on: what it finds comes when it comes.
func TestNoGreetingWaitsForListsThatAreObserved(t *testing.T) {
	dns := newDNS(listZones)
	dns.hold = true
	var refused []string
	d := mustDNSBL(t, DNSBLOptions{Resolver: dns, Observe: true, Timeout: time.Hour,
		Zones: []DNSBLZone{{Zone: "bl.example.org"}, {Zone: "other.example.org"}, {Zone: "wl.example.org", Weight: -1}},
		Refused: func(_ envelope.ID, _ netip.Addr, zones []string, score int) {
			refused = append(refused, fmt.Sprint(zones, score))
		}})
	k := newTalk(t, d, "192.0.2.4", "")
	if got := k.at(AtConnect); got != "" || len(dns.waiting) != 3 {
		t.Fatalf("%q while %d lists are asked", got, len(dns.waiting))
	}
	dns.answer(0)
	dns.answer(0)
	if len(refused) > 0 {
		t.Errorf("%q before all lists have answered", refused)
	}
	dns.answerAll()
	if want := "[[bl.example.org other.example.org] 1]"; fmt.Sprint(refused) != want {
		t.Errorf("%q, want %s", refused, want)
	}

	// Those that are late are not waited for.
	refused = nil
	e := &Event{Stage: AtConnect}
	c := &dnsblCheck{d: d, client: ip("192.0.2.4"), allAsked: true, answers: make([]listing, 3)}
	c.listed(0, spf.Answer{Status: spf.Found, Addrs: []netip.Addr{ip("127.0.0.2")}})
	c.expire()
	if e.Pended() != nil || fmt.Sprint(refused) != "[[bl.example.org] 1]" {
		t.Errorf("late: %q", refused)
	}
}

// Nobody waits for what makes no difference.
func TestTheGreetingComesWhenTheVerdictIsClear(t *testing.T) {
	bl, other, wl := DNSBLZone{Zone: "bl.example.org"}, DNSBLZone{Zone: "other.example.org"}, DNSBLZone{Zone: "wl.example.org", Weight: -1}
	for _, c := range []struct {
		ip        string
		zones     []DNSBLZone
		threshold int
		answers   string // of which lists, in this order, until the verdict is clear; the reason's among them as txt
		want      string
	}{
		{"192.0.2.2", []DNSBLZone{bl, other}, 1, "A TXT", "554 5.7.1 Service unavailable; client blocked by bl.example.org: Spam, see https://bl.example.org/192.0.2.2"},
		{"192.0.2.1", []DNSBLZone{bl, other}, 2, "A", ""}, // 1 at most
		{"192.0.2.1", []DNSBLZone{bl, wl}, 1, "A", ""},    // a good one is none that refuses
		{"192.0.2.2", []DNSBLZone{bl, wl}, 1, "A A TXT", "554 5.7.1 Service unavailable; client blocked by bl.example.org: Spam, see https://bl.example.org/192.0.2.2"},
		{"192.0.2.1", []DNSBLZone{bl, other, wl}, 1, "A A", ""},
	} {
		dns := newDNS(listZones)
		dns.hold = true
		k := newTalk(t, mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: c.zones, Threshold: c.threshold}), c.ip, "")
		if got := k.at(AtConnect); got != "..." {
			t.Fatalf("%+v: %q", c, got)
		}
		if c.answers == "A A TXT" {
			dns.answer(1) // the list of good ones
			c.answers = "A TXT"
		}
		for i, typ := range strings.Fields(c.answers) {
			if !k.quiet() {
				t.Fatalf("%+v: answered before %d", c, i)
			}
			at := 0
			if typ == "TXT" {
				at = len(dns.waiting) - 1
			}
			dns.answer(at)
		}
		if k.quiet() {
			t.Errorf("%+v: still waits", c)
			continue
		}
		if got := k.decision(); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
		dns.answerAll()
	}
}

// A client that has spent its own share of lookups is not let in for that: only lists that could still change the verdict count.
func TestAClientDoesNotGetPastListsByAFloodOfItsOwn(t *testing.T) {
	bl, other, wl := DNSBLZone{Zone: "bl.example.org"}, DNSBLZone{Zone: "other.example.org"}, DNSBLZone{Zone: "wl.example.org", Weight: -1}
	const later = "451 4.7.1 Too many DNS lookups under way for your address, try again later"
	for _, c := range []struct {
		zones     []DNSBLZone
		threshold int
		refused   string // by which limit, and to which zones
		want      string
		observe   bool
	}{
		{zones: []DNSBLZone{bl, other}, refused: "client bl.example.org", want: "554 5.7.1 Service unavailable; client blocked by other.example.org: Other"},
		{zones: []DNSBLZone{bl}, refused: "client bl.example.org", want: later},
		{zones: []DNSBLZone{bl, other}, threshold: 2, refused: "client bl.example.org other.example.org", want: later},
		{zones: []DNSBLZone{bl, other}, threshold: 3, refused: "client bl.example.org", want: ""},
		{zones: []DNSBLZone{other, wl}, refused: "client wl.example.org", want: later},
		{zones: []DNSBLZone{wl}, refused: "client wl.example.org", want: ""},
		{zones: []DNSBLZone{bl}, refused: "all bl.example.org", want: ""},
		{zones: []DNSBLZone{bl}, refused: "client bl.example.org", want: "", observe: true},
	} {
		for _, held := range []bool{false, true} {
			dns := newDNS(listZones)
			dns.hold = held && !c.observe
			cause, zones, _ := strings.Cut(c.refused, " ")
			for zone := range strings.FieldsSeq(zones) {
				a := spf.Answer{Status: spf.Failed, Cause: spf.CauseBusy}
				if cause == "client" {
					a.Cause = spf.CauseClient
				}
				dns.zone[spf.Query{Name: "4.2.0.192." + zone, Type: spf.TypeA}] = a
			}
			told := 0
			k := newTalk(t, mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: c.zones, Threshold: c.threshold, Observe: c.observe,
				Told: func(_, what string) {
					if what == "failed" {
						told++
					}
				}}), "192.0.2.4", "")
			got := k.at(AtConnect)
			dns.answerAll()
			if got == "..." {
				got = k.decision()
			}
			if got != c.want || told != len(strings.Fields(zones)) {
				t.Errorf("%+v: %q, %d told", c, got, told)
			}
		}
	}
}

// A dead list holds a few clients, not each new one.
func TestADeadListIsNotWaitedForUntilItAnswersAgain(t *testing.T) {
	dns := newDNS("A 2.2.0.192.bl.example.org 127.0.0.2")
	dns.hold = true
	var told, rests []string
	d := mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: []DNSBLZone{{Zone: "bl.example.org"}}, Message: "5.7.1 {zone}", Timeout: time.Hour,
		Told:  func(_, what string) { told = append(told, what) },
		Rests: func(zone string, rest bool) { rests = append(rests, fmt.Sprint(zone, " ", rest)) }})
	now := time.Unix(1e9, 0)
	d.now = func() time.Time { return now }
	fails := spf.Answer{}
	connect := func(client string) (*talk, string) {
		k := newTalk(t, d, client, "")
		return k, k.at(AtConnect)
	}
	answer := func(a spf.Answer) {
		done := dns.waiting[0].done
		dns.waiting = dns.waiting[1:]
		done(a)
	}
	held := func(n int) {
		for i := range n {
			k, got := connect("192.0.2.1")
			if got != "..." {
				t.Fatalf("client %d of %d does not wait: %q", i, n, got)
			}
			if i%2 == 1 {
				k.pending.Cancel() // a client that has waited long enough
			}
			answer(fails)
		}
	}
	held(RestAfter - 1)
	k, _ := connect("192.0.2.1")
	dns.answerAll() // one answer, and the count begins anew
	if k.decision() != "" {
		t.Error("refused")
	}
	for range 3 * RestAfter { // our own limits are not the list's fault
		connect("192.0.2.1")
		answer(spf.Answer{Cause: spf.CauseBusy})
	}
	held(RestAfter)
	if fmt.Sprint(rests) != "[bl.example.org true]" {
		t.Fatalf("rests: %q", rests)
	}
	told, dns.asked = nil, nil
	for range 3 {
		if _, got := connect("192.0.2.2"); got != "" {
			t.Errorf("a client is held, or refused: %q", got)
		}
	}
	if fmt.Sprint(told) != "[failed failed failed]" || len(dns.asked) > 0 {
		t.Errorf("told %q, asked %q", told, dns.asked)
	}
	// One in each while is asked about. It does not wait, nor do the next.
	for range 2 {
		now = now.Add(ProbeEvery)
		for range 2 {
			if _, got := connect("192.0.2.2"); got != "" {
				t.Errorf("waits for a probe: %q", got)
			}
		}
		if len(dns.asked) != 1 {
			t.Fatalf("asked %q", dns.asked)
		}
		dns.asked = nil
		answer(fails)
	}
	now = now.Add(ProbeEvery)
	connect("192.0.2.2")
	now = now.Add(time.Hour + 1)
	dns.answerAll() // later than a greeting would wait
	if _, got := connect("192.0.2.2"); got != "" || len(rests) != 1 {
		t.Errorf("a slow answer has brought it back: %q, %q", got, rests)
	}
	dns.answerAll()
	if fmt.Sprint(rests) != "[bl.example.org true bl.example.org false]" {
		t.Errorf("rests: %q", rests)
	}
	k, _ = connect("192.0.2.2")
	dns.answerAll()
	if got := k.decision(); got != "554 5.7.1 bl.example.org" {
		t.Errorf("back, but %q", got)
	}
}

func TestListsThatAreLateRest(t *testing.T) {
	dns := newDNS("")
	dns.hold = true
	d := mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: []DNSBLZone{{Zone: "bl.example.org"}}, Timeout: time.Hour})
	for range RestAfter {
		c := &dnsblCheck{d: d, client: ip("192.0.2.1"), allAsked: true, answers: make([]listing, 1)}
		c.expire()
		c.came(0, spf.Answer{Status: spf.Empty}) // too late to tell of health
	}
	if got := newTalk(t, d, "192.0.2.1", "").at(AtConnect); got != "" || len(dns.asked) > 0 {
		t.Errorf("%q, asked %q", got, dns.asked)
	}
}

func TestAClientThatLeavesBeforeListsAnswer(t *testing.T) {
	dns := newDNS(listZones)
	dns.hold = true
	refused := 0
	d := mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: []DNSBLZone{{Zone: "bl.example.org"}, {Zone: "other.example.org"}},
		Refused: func(envelope.ID, netip.Addr, []string, int) { refused++ }})
	k := newTalk(t, d, "192.0.2.2", "")
	k.at(AtConnect)
	k.pending.Cancel()
	dns.answerAll()
	if refused > 0 || !k.quiet() {
		t.Error("somebody who was gone was refused")
	}
}

// A list's own text is shown if it is short and printable, and never breaks out of the reply.
func TestHostileReasonsOfLists(t *testing.T) {
	for reason, want := range map[string]string{
		"Fine (really) \"quoted\" <x>":   "Fine (really) \"quoted\" <x>",
		"":                               "listed",
		"two\r\n250 lines":               "listed",
		"\x00":                           "listed",
		"k\u00f6nig":                     "listed",
		"{zone}{reason}{}":               "{zone}{reason}{}",
		strings.Repeat("x", maxReason+1): strings.Repeat("x", maxReason),
		strings.Repeat("x", maxReason) + "\r\n250 2.0.0 ": strings.Repeat("x", maxReason),
	} {
		dns := newDNS("A 2.2.0.192.bl.example.org 127.0.0.2")
		dns.zone[spf.Query{Name: "2.2.0.192.bl.example.org", Type: spf.TypeTXT}] = spf.Answer{Status: spf.Found, TXT: spf.NewTXT([]string{reason, "second"})}
		d := mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: []DNSBLZone{{Zone: "bl.example.org"}}, Code: 450, Message: "4.7.1 {reason} ({zone}, {reason})"})
		if got := newTalk(t, d, "192.0.2.2", "").at(AtConnect); got != "450 4.7.1 "+want+" (bl.example.org, "+want+")" {
			t.Errorf("%q: %q", reason, got)
		}
	}
	if reasonOf(spf.Answer{}) != "" || reasonOf(spf.Answer{TXT: spf.NewTXT(nil)}) != "" {
		t.Error("a reason out of nothing")
	}
}

func TestBadListOptionsAreRefused(t *testing.T) {
	zone := []DNSBLZone{{Zone: "a.b"}}
	for _, c := range []struct {
		o    DNSBLOptions
		want string
	}{
		{DNSBLOptions{Zones: zone, Code: 250}, "250 is no reply code that refuses"},
		{DNSBLOptions{Zones: zone, Code: 600}, "600 is no reply code that refuses"},
		{DNSBLOptions{Zones: zone, Message: "5.7.1 {Zone}"}, "only {zone} and {reason} can be filled in"},
		{DNSBLOptions{Zones: zone, Message: "5.7.1 a\r\nb"}, "printable ASCII"},
		{DNSBLOptions{Zones: zone, Code: 450, Message: "5.7.1 a"}, "of class 4"},
		{DNSBLOptions{Zones: []DNSBLZone{{Zone: ""}}}, "is no DNS zone"},
		{DNSBLOptions{Zones: []DNSBLZone{{Zone: "."}}}, "is no DNS zone"},
		{DNSBLOptions{Zones: []DNSBLZone{{Zone: "http://a.b/"}}}, "is no DNS zone"},
		{DNSBLOptions{Zones: []DNSBLZone{{Zone: strings.Repeat("a.", 100) + "b"}}}, "is no DNS zone"},
	} {
		if _, err := NewDNSBL(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
	if d := mustDNSBL(t, DNSBLOptions{Zones: zone, Code: 450}); d.reply.Enhanced.Class != 4 {
		t.Error("the default message does not fit its code")
	}
}
