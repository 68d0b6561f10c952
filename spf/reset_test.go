package spf

import (
	"net/netip"
	"reflect"
	"testing"
)

// A Check that is used again is as good as new, wherever the one before it was left.
func TestResetLeavesNothingOfTheCheckBefore(t *testing.T) {
	z := records(
		"a.example TXT v=spf1 include:b.example mx a ptr exists:%{l}.c.example redirect=d.example exp=e.example",
		"b.example TXT v=spf1 include:c.example ?all",
		"c.example TXT v=spf1 a:x.example -all",
		"d.example TXT v=spf1 ptr:%{p}.example -all exp=e.example",
		"e.example TXT %{p} may not",
	)
	answer := func(q Query) Answer {
		switch q.Type {
		case TypeMX:
			return Answer{Status: Found, Hosts: []string{"m1.example", "m2.example"}}
		case TypePTR:
			return Answer{Status: Found, Hosts: []string{"p.example", "q.example"}}
		}
		return z.lookup(q)
	}
	for _, used := range []Params{
		{IP: netip.MustParseAddr("2001:db8::1"), Helo: "h.example", Sender: "x@a.example", Receiver: "mx.example", MaxVoid: 20},
		{IP: netip.MustParseAddr("2001:db8::1"), Helo: "h.example", Sender: "\u00e4@d.example", MaxVoid: 20},
		{IP: netip.MustParseAddr("192.0.2.1"), Helo: "a.example", Identity: Helo, MaxVoid: -1},
	} {
		for _, next := range []Params{
			{IP: netip.MustParseAddr("192.0.2.1"), Helo: "h.example", Sender: "a@b.example"},
			{IP: netip.MustParseAddr("192.0.2.1"), Helo: "c.example", Identity: Helo, MaxVoid: -1},
			{Helo: "h.example"}, // over at once
		} {
			answers, more := 0, true
			for ; more; answers++ {
				for _, giveUp := range []bool{false, true} {
					c := New(used)
					for range answers {
						if q, more := c.Next(); more {
							c.Feed(answer(q))
						}
					}
					if _, more = c.Next(); giveUp {
						c.GiveUp("Timed out")
					}
					if c.Reset(next); !reflect.DeepEqual(c, New(next)) {
						t.Fatalf("%d answers, given up %v: %+v\nwant %+v", answers, giveUp, c, New(next))
					}
				}
			}
			if answers < 5 {
				t.Errorf("%d answers were all that was asked", answers)
			}
		}
	}
}
