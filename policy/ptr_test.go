package policy

import (
	"strings"
	"sync"
	"testing"
)

const ptrZone = `
	PTR 7.2.0.192.in-addr.arpa MAIL.Example.com.
	A mail.example.com 192.0.2.9 192.0.2.7
	AAAA mail.example.com 2001:db8::7
	PTR 7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa mail.example.com
	PTR 8.2.0.192.in-addr.arpa forged.example.com mail.example.com
	A forged.example.com 192.0.2.1
	PTR 9.2.0.192.in-addr.arpa broken.example.com mail.example.com
	A broken.example.com !
	PTR 10.2.0.192.in-addr.arpa !
	PTR 11.2.0.192.in-addr.arpa a.example.com b.example.com c.example.com d.example.com e.example.com f.example.com g.example.com h.example.com i.example.com j.example.com k.example.com
	A k.example.com 192.0.2.11
	PTR 12.2.0.192.in-addr.arpa evil)(.example.com
	PTR 13.2.0.192.in-addr.arpa broken.example.com
	PTR 14.2.0.192.in-addr.arpa broken.example.com good.example.com
	A good.example.com 192.0.2.14`

func TestOnlyAConfirmedNameIsAClientsName(t *testing.T) {
	for _, c := range []struct {
		ip, host, result string
		asked            int
	}{
		{"192.0.2.7", "mail.example.com", "pass", 2},
		{"::ffff:192.0.2.7", "mail.example.com", "pass", 2},
		{"2001:db8::7", "mail.example.com", "pass", 2},
		{"192.0.2.8", "", "fail", 3},
		{"192.0.2.9", "mail.example.com", "pass", 3}, // one of its names is broken
		{"192.0.2.10", "", "temperror", 1},
		{"192.0.2.11", "", "fail", 11}, // its eleventh name is not tried
		{"192.0.2.12", "", "fail", 1},  // a name that can't stand in a header field
		{"192.0.2.13", "", "temperror", 2},
		{"192.0.2.14", "good.example.com", "pass", 3},
		{"192.0.2.99", "", "permerror", 1}, // no name (RFC 8601 §2.7.3)
		{"127.0.0.1", "", "", 0},
		{"::1", "", "", 0},
		{"", "", "", 0},
	} {
		for _, held := range []bool{false, true} {
			result := ""
			dns := newDNS(ptrZone)
			dns.hold = held
			k := newTalk(t, NewPTR(PTROptions{Resolver: dns, Told: func(r string) { result += r }}), c.ip, "h.example")
			if got := k.at(AtConnect); got != "" {
				t.Fatalf("%s: %q", c.ip, got)
			}
			if held {
				if got := k.at(AtMessage); got != "" || k.host != "" {
					t.Errorf("%s: %q, host %q before there is a result", c.ip, got, k.host)
				}
				dns.answerAll()
			}
			if got := k.at(AtMessage); got != "" || k.host != c.host || result != c.result || len(dns.asked) != c.asked {
				t.Errorf("%s: %q, host %q, told %q, asked %q", c.ip, got, k.host, result, dns.asked)
			}
			k.at(AtClose)
		}
	}
}

func TestNamesOfClientsThatAreGoneAreNotLookedFor(t *testing.T) {
	dns := newDNS(ptrZone)
	dns.hold = true
	k := newTalk(t, NewPTR(PTROptions{Resolver: dns}), "192.0.2.8", "h.example")
	k.at(AtConnect)
	k.at(AtClose)
	dns.answerAll()
	if len(dns.asked) != 1 {
		t.Errorf("asked %q", dns.asked)
	}
	k.at(AtConnect) // refused at once: there is nothing to give up
	k.at(AtClose)
	k.at(AtClose)
}

func TestHostNames(t *testing.T) {
	for name, want := range map[string]string{
		"a.b": "a.b", "A.B.": "a.b", "x-1._tcp.b": "x-1._tcp.b", "": "", ".": "", "a..b": "", ".a": "", "a b.c": "", "a\r\nb.c": "", "a(b.c": "", "a;b": "", "ä.b": "", "a\x00": "",
		strings.Repeat("a", 63) + ".b": strings.Repeat("a", 63) + ".b", strings.Repeat("a", 64) + ".b": "", strings.Repeat("a.", 127) + "b": "",
		strings.Repeat("a.", 126) + "b": strings.Repeat("a.", 126) + "b",
	} {
		if got := hostName(name); got != want {
			t.Errorf("%q: %q", name, got)
		}
	}
}

func TestManyNamesAtOnce(t *testing.T) {
	dns := newDNS(ptrZone)
	dns.hold = true
	p := NewPTR(PTROptions{Resolver: dns, Told: func(string) {}})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				k := newTalk(t, p, "192.0.2.14", "h.example")
				k.at(AtConnect)
				dns.answer(0)
				k.at(AtMessage)
				dns.answer(0)
				if k.at(AtMessage); k.host != "" && k.host != "good.example.com" {
					t.Errorf("host %q", k.host)
				}
				k.at(AtClose)
			}
		})
	}
	all.Wait()
	dns.answerAll()
}
