package spf

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// The walk tells each step in order, with the depth of includes.
func TestWalk(t *testing.T) {
	z := records(
		"example.com TXT v=spf1 redirect=b.example.com",
		"b.example.com TXT v=spf1 ip4:198.51.100.1 ~include:c.example.com mx -all",
		"c.example.com TXT v=spf1 a:gone.example.com",
		"b.example.com MX mail.example.com",
		"mail.example.com A 192.0.2.1")
	c := New(Params{IP: netip.MustParseAddr("192.0.2.1"), Sender: "a@example.com"})
	var got []string
	c.Trace = func(s Step) {
		line := fmt.Sprintf("%d %s %s %q", s.Depth, s.Domain, s.Kind, s.Text)
		switch s.Kind {
		case StepAnswer:
			line = fmt.Sprintf("%d %s %s %s %s %d", s.Depth, s.Domain, s.Kind, s.Query.Type, s.Query.Name, s.Count)
		case StepMatch, StepLeave, StepResult:
			line += " " + s.Code.String()
		}
		got = append(got, line)
	}
	c.Run(z.lookup)
	want := []string{
		`0 example.com answer TXT example.com 1`,
		`0 example.com record "v=spf1 redirect=b.example.com"`,
		`0 example.com term "redirect=b.example.com"`,
		`0 b.example.com redirect ""`,
		`0 b.example.com answer TXT b.example.com 1`,
		`0 b.example.com record "v=spf1 ip4:198.51.100.1 ~include:c.example.com mx -all"`,
		`0 b.example.com term "ip4:198.51.100.1"`,
		`0 b.example.com term "~include:c.example.com"`,
		`1 c.example.com answer TXT c.example.com 1`,
		`1 c.example.com record "v=spf1 a:gone.example.com"`,
		`1 c.example.com term "a:gone.example.com"`,
		`1 c.example.com answer A gone.example.com 0`,
		`0 b.example.com leave "~include:c.example.com" neutral`,
		`0 b.example.com term "mx"`,
		`0 b.example.com answer MX b.example.com 1`,
		`0 b.example.com answer A mail.example.com 1`,
		`0 b.example.com match "mx" pass`,
		`0 b.example.com result "sender SPF authorized" pass`,
	}
	if !slices.Equal(got, want) {
		for _, line := range got {
			t.Log(line)
		}
		t.Error("the walk is another")
	}
}

// Next gives the same query until it is answered, and a check that is over takes no answer.
func TestOneQueryAtATime(t *testing.T) {
	c := New(Params{IP: netip.MustParseAddr("192.0.2.1"), Sender: "a@example.com"})
	for range 3 {
		if q, ok := c.Next(); !ok || q != (Query{"example.com", TypeTXT}) {
			t.Fatal(q, ok)
		}
	}
	c.Feed(Answer{Status: Empty})
	if q, ok := c.Next(); ok {
		t.Fatal(q)
	}
	if r := c.Result(); r.Code != None || r.Reason != "" || r.Problem != "no SPF record" {
		t.Errorf("%+v", r)
	}
	defer func() {
		if recover() == nil {
			t.Error("an answer to nothing was taken")
		}
	}()
	c.Feed(Answer{})
}

// Every result has its word and its reason for people.
func TestReasons(t *testing.T) {
	for record, want := range map[string]string{
		"v=spf1 +all":       "pass: sender SPF authorized",
		"v=spf1 -all":       "fail: SPF fail - not authorized",
		"v=spf1 ~all":       "softfail: domain owner discourages use of this host",
		"v=spf1":            "neutral: access neither permitted nor denied",
		"other":             "none: ",
		"v=spf1 ipv4:1":     `permerror: SPF Permanent Error: example.com: "ipv4:1" is no mechanism: ip4 or ip6 was meant, perhaps`,
		"v=spf1 a:example.": `permerror: SPF Permanent Error: example.com: "a:example." has no domain of two labels`,
		"v=spf1 mx:192.0.2.1": `permerror: SPF Permanent Error: example.com: "mx:192.0.2.1" has an address where a domain should be: ` +
			`ip4 or ip6 was meant, perhaps`,
		"v=spf1 a:slow.example.com": "temperror: SPF Temporary Error: no answer for A of slow.example.com",
	} {
		z := zone{"example.com": {{kind: "TXT", value: record}}, "slow.example.com": {{kind: "TIMEOUT"}}}
		if r := check(z, "192.0.2.1"); r.Code.String()+": "+r.Reason != want {
			t.Errorf("%s: %s: %s, want %s", record, r.Code, r.Reason, want)
		}
	}
}

// An answer that says Found and has nothing is Empty; one that nobody filled in is an error.
func TestAnswersWithoutContent(t *testing.T) {
	for _, tt := range []struct {
		a    Answer
		want Code
	}{{Answer{}, TempError}, {Answer{Status: Found}, None}, {Answer{Status: Found, TXT: NewTXT(nil)}, None}} {
		c := New(Params{IP: netip.MustParseAddr("192.0.2.1"), Sender: "a@example.com"})
		c.Feed(tt.a)
		if got := c.Result().Code; got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.a, got, tt.want)
		}
	}
	if r := New(Params{Sender: "a@example.com"}).Result(); r.Code != None {
		t.Errorf("without an address: %s", r.Code)
	}
}
