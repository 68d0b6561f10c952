package resolver

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fastedge/fastedge/spf"
)

func TestAnswersOfEachType(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		switch q.Question[0].Qtype {
		case dns.TypeTXT:
			says(0, `@ 300 TXT "v=spf1 " "-all"`, `@ 300 TXT "a\"b\\c\200"`)(w, q)
		case dns.TypeA:
			says(0, "@ 300 A 192.0.2.1", "@ 300 A 192.0.2.2")(w, q)
		case dns.TypeAAAA:
			says(0, "@ 300 AAAA 2001:db8::1")(w, q)
		case dns.TypeMX:
			says(0, "@ 300 MX 20 B.example.net.", "@ 300 MX 10 a.example.net.", "@ 300 MX 10 c.example.net.", `@ 300 MX 5 a\.b.example.net.`)(w, q)
		case dns.TypePTR:
			says(0, "@ 300 PTR Mail.example.net.")(w, q)
		}
	})
	r, _ := resolve(t, Options{}, s)
	for _, c := range []struct {
		q    spf.Query
		want string
	}{
		{txt("_spf.example.net"), `["v=spf1 -all" "a\"b\\c\xc8"]`},
		{a("example.net"), "[192.0.2.1 192.0.2.2]"},
		{spf.Query{Name: "example.net", Type: spf.TypeAAAA}, "[2001:db8::1]"},
		{spf.Query{Name: "example.net", Type: spf.TypeMX}, "[a.example.net c.example.net b.example.net]"},
		{spf.Query{Name: "1.2.0.192.in-addr.arpa", Type: spf.TypePTR}, "[mail.example.net]"},
	} {
		want(t, ask(t, r, c.q), c.want)
		want(t, cached(t, r, c.q), c.want)
	}
	want(t, cached(t, r, a("EXAMPLE.Net.")), "[192.0.2.1 192.0.2.2]")
	if n := s.asked.Load(); n != 5 {
		t.Errorf("%d questions for 5 names", n)
	}
	for range 5 {
		q := s.next(t)
		if q.Id == 0 && q.Question[0].Qclass != dns.ClassINET || !q.RecursionDesired || !q.AuthenticatedData || q.IsEdns0() == nil || q.IsEdns0().UDPSize() != 1232 {
			t.Errorf("query %v", q)
		}
	}
}

func TestNamesThatCannotExistAreNotAsked(t *testing.T) {
	s := serve(t, silent)
	r, _ := resolve(t, Options{}, s)
	for _, name := range []string{"", ".", "a..b", ".a", strings.Repeat("x", 64) + ".example.net", strings.Repeat("x.", 127) + "x"} {
		a, now := r.Lookup(txt(name), nobody, nil)
		if !now || a.Status != spf.Empty {
			t.Errorf("%q: %v %v", name, a, now)
		}
	}
	if s.asked.Load() != 0 {
		t.Error("asked")
	}
}

func TestOneQuestionForAThousandWaiters(t *testing.T) {
	hold := make(chan struct{})
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-hold
		says(0, `@ 300 TXT "v=spf1 -all"`)(w, q)
	})
	r, _ := resolve(t, Options{}, s)
	var all []future
	for range 1000 {
		all = append(all, start(r, txt("example.net")))
	}
	close(hold)
	first := all[0].get(t)
	for _, f := range all[1:] {
		if a := f.get(t); a.TXT != first.TXT {
			t.Fatal("the answer is not shared")
		}
	}
	if n := s.asked.Load(); n != 1 {
		t.Errorf("%d questions", n)
	}
	if st := r.Stats(); st.Coalesced != 999 || st.Misses != 1 || st.Waiting != 0 || st.Inflight != 0 {
		t.Errorf("%+v", st)
	}
}

// RFC 5452 §9.1: what does not match the question is not an answer to it, and the wait goes on.
func TestWrongAnswersAreIgnored(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		evil := answer(q, 0, "@ 300 A 203.0.113.66")
		send := func(change func(m *dns.Msg)) {
			m := evil.Copy()
			change(m)
			w.Write(pack(m))
		}
		send(func(m *dns.Msg) { m.Id++ })
		send(func(m *dns.Msg) { m.Response = false })
		send(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify })
		send(func(m *dns.Msg) { m.Question[0].Name = "other.example.net." })
		send(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT })
		send(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
		send(func(m *dns.Msg) { m.Question = nil })
		send(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) })
		send(func(m *dns.Msg) { // the other case of each letter
			m.Question[0].Name = strings.Map(func(c rune) rune {
				if c|0x20 >= 'a' && c|0x20 <= 'z' {
					c ^= 0x20
				}
				return c
			}, m.Question[0].Name)
		})
		w.Write([]byte{1, 2, 3})
		w.Write(nil)
		half := pack(evil)
		w.Write(half[:len(half)-2])
		w.WriteMsg(answer(q, 0, "@ 300 A 192.0.2.1"))
		w.WriteMsg(evil) // a duplicate comes too late
	})
	r, _ := resolve(t, Options{}, s)
	want(t, ask(t, r, a("www.example.net")), "[192.0.2.1]")
	eventually(t, "the duplicate is seen", func() bool { return r.Stats().Strays >= 3 })
	if st := r.Stats(); st.WrongQuestion != 7 || st.WrongCase != 1 || st.Malformed != 1 || st.Answers != 1 || st.Sent != 1 {
		t.Errorf("%+v", st)
	}
	want(t, cached(t, r, a("www.example.net")), "[192.0.2.1]")
}

func TestLostQuestionIsAskedAgainFromAnotherSocket(t *testing.T) {
	var n atomic.Int64
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if n.Add(1) == 3 {
			says(0, "@ 300 A 192.0.2.1")(w, q)
		}
	})
	r, clock := resolve(t, Options{}, s)
	f := start(r, a("example.net"))
	first := s.next(t)
	clock.advance(r, firstRetransmit)
	second := s.next(t)
	clock.advance(r, 2*firstRetransmit)
	third := s.next(t)
	want(t, f.get(t), "[192.0.2.1]")
	if first.Question[0].Name == second.Question[0].Name && second.Question[0].Name == third.Question[0].Name || first.Id == second.Id && second.Id == third.Id {
		t.Errorf("the tries do not differ: %v %v %v", first, second, third)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ports) != 3 {
		t.Errorf("ports: %v", s.ports)
	}
	if st := r.Stats(); st.Retransmits != 2 || st.Sent != 3 {
		t.Errorf("%+v", st)
	}
}

func TestNobodyAnswersInTime(t *testing.T) {
	s := serve(t, silent)
	r, clock := resolve(t, Options{}, s)
	f := start(r, a("example.net"))
	for i := range 4 {
		s.next(t)
		clock.advance(r, firstRetransmit<<i)
	}
	clock.advance(r, DefaultTimeout)
	want(t, f.get(t), "failed")
	want(t, cached(t, r, a("example.net")), "failed")
	if st := r.Stats(); st.Timeouts != 1 || st.FailureHits != 1 || st.Inflight != 0 || st.Waiting != 0 || st.Servers[0].Inflight != 0 {
		t.Errorf("%+v", st)
	}
}

// RFC 9520: for a while, each time twice as long.
func TestFailureIsRemembered(t *testing.T) {
	s := serve(t, says(dns.RcodeServerFailure))
	r, clock := resolve(t, Options{}, s)
	want(t, ask(t, r, a("example.net")), "failed")
	clock.advance(r, DefaultMinFailureTTL-1)
	want(t, cached(t, r, a("example.net")), "failed")
	clock.advance(r, 1)
	before := s.asked.Load()
	want(t, ask(t, r, a("example.net")), "failed")
	clock.advance(r, DefaultMinFailureTTL)
	want(t, cached(t, r, a("example.net")), "failed")
	clock.advance(r, DefaultMinFailureTTL)
	s.setScript(says(0, "@ 60 A 192.0.2.1"))
	want(t, ask(t, r, a("example.net")), "[192.0.2.1]")
	if n := s.asked.Load() - before; n != 2 {
		t.Errorf("%d questions", n)
	}
}

func TestFailuresGoToTheNextServer(t *testing.T) {
	for name, rcode := range map[string]int{"SERVFAIL": dns.RcodeServerFailure, "REFUSED": dns.RcodeRefused, "NOTAUTH": dns.RcodeNotAuth, "FORMERR": dns.RcodeFormatError} {
		t.Run(name, func(t *testing.T) {
			bad, good := serve(t, says(rcode)), serve(t, says(0, "@ 60 A 192.0.2.1"))
			r, _ := resolve(t, Options{}, bad, good)
			for i := range 20 {
				want(t, ask(t, r, a(fmt.Sprintf("n%d.example.net", i))), "[192.0.2.1]")
			}
			if bad.asked.Load() == 0 {
				t.Error("the bad one was never asked")
			}
			alone, _ := resolve(t, Options{}, bad, bad)
			want(t, ask(t, alone, a("example.net")), "failed")
			want(t, cached(t, alone, a("example.net")), "failed")
		})
	}
}

// RFC 2308 §2.2: a referral is not an answer.
func TestReferralIsAFailure(t *testing.T) {
	s := serve(t, says(0, "!example.net. 60 NS ns1.example.net."))
	r, _ := resolve(t, Options{}, s)
	want(t, ask(t, r, a("www.example.net")), "failed")
}

func TestTruncatedAnswerComesByOneKeptConnection(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if !isTCP(w) {
			m := answer(q, 0)
			m.Truncated = true
			w.WriteMsg(m)
			return
		}
		says(0, `@ 60 TXT "`+strings.Repeat("x", 200)+`"`)(w, q)
	})
	r, _ := resolve(t, Options{}, s)
	var all []future
	for i := range 200 {
		all = append(all, start(r, txt(fmt.Sprintf("n%d.example.net", i))))
	}
	for _, f := range all {
		want(t, f.get(t), `["`+strings.Repeat("x", 200)+`"]`)
	}
	if n := s.tcp.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if st := r.Stats(); st.ByTCP != 200 || st.Truncated != 200 {
		t.Errorf("%+v", st)
	}
}

func TestConnectionThatClosesIsMadeAgain(t *testing.T) {
	var n atomic.Int64
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		switch {
		case !isTCP(w):
			m := answer(q, 0)
			m.Truncated = true
			w.WriteMsg(m)
		case n.Add(1) < MaxTCPFailures || strings.HasPrefix(strings.ToLower(q.Question[0].Name), "never"):
			w.Close()
		default:
			says(0, "@ 60 A 192.0.2.1")(w, q)
		}
	})
	r, _ := resolve(t, Options{}, s)
	want(t, ask(t, r, a("example.net")), "[192.0.2.1]")
	want(t, ask(t, r, a("never.example.net")), "failed")
}

func TestDrippingConnectionIsGivenUp(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := answer(q, 0)
		m.Truncated = true
		w.WriteMsg(m)
	})
	drip, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer drip.Close()
	var conns atomic.Int64
	go func() {
		for {
			c, err := drip.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			go func() {
				defer c.Close()
				for _, b := range []byte{0, 200, 1, 2, 3, 4} {
					c.Write([]byte{b})
				}
				<-stop
			}()
		}
	}()
	r, _ := resolve(t, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if network == "tcp" {
			address = drip.Addr().String()
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}, s)
	r.dripTimeout = 5 * time.Millisecond
	want(t, ask(t, r, a("example.net")), "failed")
	if n := conns.Load(); n != MaxTCPFailures {
		t.Errorf("%d connections", n)
	}
}

// RFC 6891 §6.2.2
func TestServerWithoutEDNSIsAskedPlainly(t *testing.T) {
	for name, bare := range map[string]bool{"whole": false, "header only": true} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
				if q.IsEdns0() != nil {
					m := new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
					if bare {
						m.Question = nil
					}
					w.Write(pack(m))
					return
				}
				says(0, "@ 60 A 192.0.2.1")(w, q)
			})
			r, clock := resolve(t, Options{}, s)
			want(t, ask(t, r, a("one.example.net")), "[192.0.2.1]")
			want(t, ask(t, r, a("two.example.net")), "[192.0.2.1]")
			if n := s.asked.Load(); n != 3 {
				t.Errorf("%d questions, want 3: it is known by then", n)
			}
			clock.advance(r, PlainFor)
			want(t, ask(t, r, a("three.example.net")), "[192.0.2.1]")
			if n := s.asked.Load(); n != 5 {
				t.Errorf("%d questions, want 5: it is tried again", n)
			}
		})
	}
}

func TestServerThatDoesNotPreserveCaseIsAskedByTCP(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := answer(q, 0, "@ 60 A 192.0.2.1")
		m.Question[0].Name = strings.ToLower(m.Question[0].Name)
		w.WriteMsg(m)
	})
	r, clock := resolve(t, Options{}, s)
	f := start(r, a("a-name-with-many-letters.example.net"))
	eventually(t, "it is seen", func() bool { return r.Stats().WrongCase == 1 })
	clock.advance(r, firstRetransmit)
	want(t, f.get(t), "[192.0.2.1]")
	if s.tcp.Load() != 1 {
		t.Error("not by TCP")
	}
	plain, _ := resolve(t, Options{PlainCase: true}, s)
	want(t, ask(t, plain, a("a-name-with-many-letters.example.net")), "[192.0.2.1]")
	if s.tcp.Load() != 1 {
		t.Error("with PlainCase, by TCP")
	}
}

func TestHalfAnAnswerIsFetchedByTCP(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		b := pack(answer(q, 0, "@ 60 A 192.0.2.1", "@ 60 A 192.0.2.2"))
		if !isTCP(w) {
			b = b[:len(b)-3]
		}
		w.Write(b)
	})
	r, clock := resolve(t, Options{}, s)
	f := start(r, a("example.net"))
	eventually(t, "it is seen", func() bool { return r.Stats().Malformed == 1 })
	clock.advance(r, firstRetransmit)
	want(t, f.get(t), "[192.0.2.1 192.0.2.2]")
}

func TestAliasesAreFollowedAndStrangersIgnored(t *testing.T) {
	chain := func(n int) (rr []string) {
		for i := range n {
			rr = append(rr, fmt.Sprintf("c%d.example.net. %d CNAME c%d.example.net.", i, 100-i, i+1))
		}
		return append(rr, fmt.Sprintf("c%d.example.net. 300 A 192.0.2.1", n), "www.example.org. 300 A 203.0.113.66", "c0.example.net. 300 A 203.0.113.66")
	}
	for name, c := range map[string]struct {
		rcode   int
		records []string
		want    string
	}{
		"eight":           {0, chain(MaxChain), "[192.0.2.1]"},
		"nine":            {0, chain(MaxChain + 1), "failed"},
		"loop":            {0, []string{"c0.example.net. 60 CNAME c1.example.net.", "c1.example.net. 60 CNAME C0.example.net."}, "failed"},
		"itself":          {0, []string{"c0.example.net. 60 CNAME c0.example.net."}, "failed"},
		"dangling":        {dns.RcodeNameError, []string{"c0.example.net. 60 CNAME c1.example.net.", "!example.net. 60 SOA ns. h. 1 2 3 4 60"}, "empty"},
		"to nothing":      {0, []string{"c0.example.net. 60 CNAME c1.example.net.", "!example.net. 60 SOA ns. h. 1 2 3 4 60"}, "empty"},
		"only strangers":  {0, []string{"c1.example.net. 60 A 192.0.2.1"}, "empty"},
		"other type":      {0, []string{`c0.example.net. 60 TXT "x"`}, "empty"},
		"in any order":    {0, []string{"c1.example.net. 60 A 192.0.2.7", "c0.example.net. 60 CNAME c1.example.net."}, "[192.0.2.7]"},
		"other class":     {0, []string{"c0.example.net. 60 CH A 192.0.2.7", "c0.example.net. 60 A 192.0.2.8"}, "[192.0.2.8]"},
		"name error wins": {dns.RcodeNameError, []string{"c0.example.net. 60 A 192.0.2.1"}, "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			var records []string
			for _, s := range c.records {
				if !strings.Contains(s, " CH ") {
					records = append(records, s)
				}
			}
			s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
				m := answer(q, c.rcode, records...)
				if len(records) < len(c.records) {
					m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "c0.example.net.", Rrtype: dns.TypeA, Class: dns.ClassCHAOS, Ttl: 60}, A: net.IPv4(192, 0, 2, 7).To4()})
				}
				w.WriteMsg(m)
			})
			r, _ := resolve(t, Options{}, s)
			want(t, ask(t, r, a("c0.example.net")), c.want)
		})
	}
}

func TestAnswersAboveTheLimitsFail(t *testing.T) {
	addrs := func(n int) (rr []string) {
		for i := range n {
			rr = append(rr, fmt.Sprintf("@ 60 A 192.0.2.%d", i))
		}
		return rr
	}
	long := func(n int) string {
		s := `@ 60 TXT`
		for ; n > 0; n -= 250 {
			s += ` "` + strings.Repeat("x", min(n, 250)) + `"`
		}
		return s
	}
	for name, c := range map[string]struct {
		q       spf.Query
		records []string
		ok      bool
	}{
		"64 records":   {a("example.net"), addrs(MaxAnswerRRs), true},
		"65 records":   {a("example.net"), addrs(MaxAnswerRRs + 1), false},
		"16 KiB":       {txt("example.net"), []string{long(MaxTXTBytes/2 - 1), long(MaxTXTBytes/2 + 1)}, true},
		"16 KiB and 1": {txt("example.net"), []string{long(MaxTXTBytes / 2), long(MaxTXTBytes/2 + 1)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
				if m := answer(q, 0, c.records...); isTCP(w) {
					w.WriteMsg(m)
				} else {
					m.Answer, m.Truncated = nil, true
					w.WriteMsg(m)
				}
			})
			r, _ := resolve(t, Options{}, s)
			if got := ask(t, r, c.q); (got.Status == spf.Found) != c.ok {
				t.Errorf("%s", text(got))
			}
			if st := r.Stats(); (st.TooBig == 0) != c.ok {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestTimesToLive(t *testing.T) {
	for name, c := range map[string]struct {
		rcode   int
		records []string
		ttl     time.Duration
	}{
		"as given":             {0, []string{"@ 300 A 192.0.2.1", "@ 200 A 192.0.2.2"}, 200 * time.Second},
		"alias's":              {0, []string{"@ 100 CNAME b.example.net.", "b.example.net. 200 A 192.0.2.2"}, 100 * time.Second},
		"short":                {0, []string{"@ 0 A 192.0.2.1"}, DefaultMinTTL},
		"above 2^31":           {0, []string{"@ 2147483648 A 192.0.2.1"}, DefaultMinTTL}, // RFC 2181 §8
		"long":                 {0, []string{"@ 2147483647 A 192.0.2.1"}, DefaultMaxTTL},
		"no name, SOA minimum": {dns.RcodeNameError, []string{"!example.net. 300 SOA ns. h. 1 2 3 4 60"}, time.Minute}, // RFC 2308 §5
		"no name, SOA TTL":     {dns.RcodeNameError, []string{"!example.net. 30 SOA ns. h. 1 2 3 4 60"}, 30 * time.Second},
		"no data":              {0, []string{"!net. 300 SOA ns. h. 1 2 3 4 60"}, time.Minute},
		"no name, long":        {dns.RcodeNameError, []string{"!example.net. 86400 SOA ns. h. 1 2 3 4 86400"}, DefaultMaxNegativeTTL},
		"no name, no SOA":      {dns.RcodeNameError, nil, DefaultMinTTL},
		"a stranger's SOA":     {dns.RcodeNameError, []string{"!example.org. 300 SOA ns. h. 1 2 3 4 60"}, DefaultMinTTL},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, says(c.rcode, c.records...))
			r, clock := resolve(t, Options{}, s)
			ask(t, r, a("a.example.net"))
			clock.advance(r, c.ttl-1)
			cached(t, r, a("a.example.net"))
			if n := s.questions("a.example.net", "A"); n != 1 {
				t.Fatalf("%d questions", n)
			}
			clock.advance(r, 1)
			ask(t, r, a("a.example.net"))
			if n := s.questions("a.example.net", "A"); n != 2 {
				t.Fatalf("%d questions after its time", n)
			}
		})
	}
}

func TestNewAnswerReplacesTheOtherKind(t *testing.T) {
	s := serve(t, says(0, "@ 60 A 192.0.2.1"))
	r, clock := resolve(t, Options{}, s)
	want(t, ask(t, r, a("example.net")), "[192.0.2.1]")
	clock.advance(r, time.Minute)
	s.setScript(says(dns.RcodeNameError, "!example.net. 60 SOA ns. h. 1 2 3 4 60"))
	want(t, ask(t, r, a("example.net")), "empty")
	want(t, cached(t, r, a("example.net")), "empty")
	clock.advance(r, time.Minute)
	s.setScript(says(dns.RcodeServerFailure))
	want(t, ask(t, r, a("example.net")), "failed") // the address is gone, not stale
	clock.advance(r, time.Minute)
	s.setScript(says(0, "@ 60 A 192.0.2.2"))
	want(t, ask(t, r, a("example.net")), "[192.0.2.2]")
	want(t, cached(t, r, a("example.net")), "[192.0.2.2]")
}

// RFC 8767
func TestStaleAnswerIsServedInsteadOfFailed(t *testing.T) {
	s := serve(t, says(0, "@ 60 A 192.0.2.1"))
	r, clock := resolve(t, Options{}, s)
	want(t, ask(t, r, a("example.net")), "[192.0.2.1]")
	clock.advance(r, time.Hour)
	s.setScript(says(dns.RcodeServerFailure))
	want(t, ask(t, r, a("example.net")), "[192.0.2.1]")
	n := s.asked.Load()
	clock.advance(r, StaleRecheck-1)
	want(t, cached(t, r, a("example.net")), "[192.0.2.1]")
	if s.asked.Load() != n {
		t.Error("asked again within StaleRecheck")
	}
	clock.advance(r, 1)
	want(t, ask(t, r, a("example.net")), "[192.0.2.1]")
	if s.asked.Load() != n+1 {
		t.Error("not asked again after StaleRecheck")
	}
	if st := r.Stats(); st.Stale != 3 {
		t.Errorf("%+v", st)
	}
	clock.advance(r, DefaultMaxStale)
	want(t, ask(t, r, a("example.net")), "failed")
	// An answer is preferred, also if there is nothing any more.
	s.setScript(says(dns.RcodeNameError))
	clock.advance(r, time.Hour)
	want(t, ask(t, r, a("example.net")), "empty")
}

func TestStaleAnswerIsServedWhenTheNewOneTakesLong(t *testing.T) {
	s := serve(t, says(0, "@ 60 A 192.0.2.1"))
	r, clock := resolve(t, Options{}, s)
	want(t, ask(t, r, a("example.net")), "[192.0.2.1]")
	clock.advance(r, time.Hour)
	hold := make(chan struct{})
	s.setScript(func(w dns.ResponseWriter, q *dns.Msg) {
		<-hold
		says(0, "@ 60 A 192.0.2.2")(w, q)
	})
	f := start(r, a("example.net"))
	eventually(t, "it is asked", func() bool { return s.asked.Load() == 2 })
	clock.advance(r, DefaultStaleAfter)
	want(t, f.get(t), "[192.0.2.1]")
	want(t, cached(t, r, a("example.net")), "[192.0.2.1]") // while the question is still open
	close(hold)
	eventually(t, "the new one comes", func() bool { return text(cached(t, r, a("example.net"))) == "[192.0.2.2]" })

	none, clock2 := resolve(t, Options{MaxStale: -1}, s)
	s.setScript(says(0, "@ 60 A 192.0.2.1"))
	want(t, ask(t, none, a("example.net")), "[192.0.2.1]")
	clock2.advance(none, time.Minute)
	s.setScript(says(dns.RcodeServerFailure))
	want(t, ask(t, none, a("example.net")), "failed")
}

func TestPopularAnswerIsFetchedAheadOfItsEnd(t *testing.T) {
	s := serve(t, says(0, "@ 1000 A 192.0.2.1"))
	r, clock := resolve(t, Options{}, s)
	names := []spf.Query{a("popular.example.net"), a("once.example.net")}
	for _, q := range names {
		want(t, ask(t, r, q), "[192.0.2.1]")
	}
	for range PrefetchHits {
		cached(t, r, names[0])
	}
	clock.advance(r, 899*time.Second)
	cached(t, r, names[0])
	if n := s.asked.Load(); n != 2 {
		t.Fatalf("asked %d times before the last tenth", n)
	}
	clock.advance(r, 100*time.Second) // one second is left
	s.setScript(says(0, "@ 1000 A 192.0.2.2"))
	for range 10 {
		cached(t, r, names[0])
	}
	cached(t, r, names[1])
	eventually(t, "it is fetched", func() bool { return text(cached(t, r, names[0])) == "[192.0.2.2]" })
	if n := s.questions("popular.example.net", "A"); n != 2 {
		t.Errorf("%d questions", n)
	}
	if n := s.questions("once.example.net", "A"); n != 1 {
		t.Errorf("%d questions for what is not popular", n)
	}
	clock.advance(r, time.Second)
	want(t, cached(t, r, names[0]), "[192.0.2.2]")
}

func TestSilentServerIsLeftOutUntilAProbeIsAnswered(t *testing.T) {
	bad, good := serve(t, silent), serve(t, says(0, "@ 60 A 192.0.2.1"))
	r, clock := resolve(t, Options{}, bad, good)
	// Before anything is known the first server is preferred.
	for i := 0; r.Stats().Servers[0].Up; i++ {
		if i > 1000 {
			t.Fatal("it is never left out")
		}
		f := start(r, a(fmt.Sprintf("n%d.example.net", i)))
		for answered := false; !answered; {
			select {
			case got := <-f:
				want(t, got, "[192.0.2.1]")
				answered = true
			case <-time.After(5 * time.Millisecond):
				clock.advance(r, firstRetransmit)
			}
		}
	}
	before := bad.asked.Load()
	for i := range 50 {
		want(t, ask(t, r, a(fmt.Sprintf("m%d.example.net", i))), "[192.0.2.1]")
	}
	if n := bad.asked.Load() - before; n > 1 {
		t.Errorf("asked %d times while it is left out", n)
	}
	bad.setScript(says(0, "@ 60 A 192.0.2.1"))
	for i := 0; !r.Stats().Servers[0].Up; i++ {
		if i > 1000 {
			t.Fatal("it never comes back")
		}
		clock.advance(r, ProbeAfter)
		want(t, ask(t, r, a(fmt.Sprintf("o%d.example.net", i))), "[192.0.2.1]")
		time.Sleep(time.Millisecond) // the probe's own answer is on its way
	}
	if st := r.Stats(); st.Probes == 0 {
		t.Errorf("%+v", st)
	}
}

// When no server answers at all, names are not blamed for it: a second after the servers are back all is well.
func TestOutageIsForgottenSoon(t *testing.T) {
	s := serve(t, silent)
	r, clock := resolve(t, Options{}, s)
	var all []future
	for i := range 2 * MaxSilent {
		all = append(all, start(r, a(fmt.Sprintf("n%d.example.net", i))))
	}
	eventually(t, "all are sent", func() bool { return r.Stats().Sent == uint64(len(all)) })
	clock.advance(r, DefaultTimeout)
	for _, f := range all {
		want(t, f.get(t), "failed")
	}
	if r.Stats().Servers[0].Up {
		t.Fatal("the server is up")
	}
	last := a(fmt.Sprintf("n%d.example.net", len(all)-1))
	clock.advance(r, OutageTTL-1)
	want(t, cached(t, r, last), "failed")
	clock.advance(r, 1)
	s.setScript(says(0, "@ 60 A 192.0.2.1"))
	want(t, ask(t, r, last), "[192.0.2.1]")
	if !r.Stats().Servers[0].Up {
		t.Error("the server is not up")
	}
}

func TestForgottenConnectionIsReplaced(t *testing.T) {
	var conns atomic.Int64
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := answer(q, 0)
		m.Truncated = true
		if !isTCP(w) {
			w.WriteMsg(m)
		} else if key(q) == "first.example.net. A" || conns.Load() > 0 {
			says(0, "@ 60 A 192.0.2.1")(w, q)
		}
	})
	r, clock := resolve(t, Options{}, s)
	want(t, ask(t, r, a("first.example.net")), "[192.0.2.1]")
	clock.advance(r, TCPOld)
	f := start(r, a("second.example.net"))
	eventually(t, "it is asked by TCP", func() bool { return s.questions("second.example.net", "A") == 2 })
	conns.Store(1)
	clock.advance(r, 2*firstRetransmit)
	want(t, f.get(t), "[192.0.2.1]")
	if n := s.tcp.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

// With the real clock, nothing but time ends a question.
func TestTimePasses(t *testing.T) {
	s := serve(t, silent)
	r, _ := resolve(t, Options{Clock: time.Now, Timeout: 30 * time.Millisecond}, s)
	want(t, ask(t, r, a("example.net")), "failed")
}

func TestServerThatIsNotThereIsNotWaitedFor(t *testing.T) {
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := gone.LocalAddr().String()
	gone.Close()
	good := serve(t, says(0, "@ 60 A 192.0.2.1"))
	r, _ := resolve(t, Options{Servers: []string{addr}}, good)
	// The clock stands: nothing is waited for.
	for i := range 50 {
		want(t, ask(t, r, a(fmt.Sprintf("n%d.example.net", i))), "[192.0.2.1]")
	}
	if st := r.Stats(); st.Servers[0].Up {
		t.Errorf("%+v", st)
	}
}

func TestSlowAnswerIsHedgedWithinABudget(t *testing.T) {
	hold := make(chan struct{})
	slow := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-hold
		says(0, "@ 60 A 192.0.2.1")(w, q)
	})
	fast := serve(t, says(0, "@ 60 A 192.0.2.2"))
	r, clock := resolve(t, Options{}, slow, fast)
	defer close(hold)
	r.mu.Lock()
	r.servers[0].srtt, r.servers[1].srtt = 1, int64(time.Millisecond)
	r.hedges = 3
	r.mu.Unlock()
	hedged := 0
	for i := 0; hedged < 3; i++ {
		f := start(r, a(fmt.Sprintf("n%d.example.net", i)))
		eventually(t, "it is sent", func() bool { return r.Stats().Sent >= uint64(i+1+hedged) })
		if r.Stats().Inflight == 1 && slow.questions(fmt.Sprintf("n%d.example.net", i), "A") == 0 {
			eventually(t, "it arrives", func() bool {
				return slow.questions(fmt.Sprintf("n%d.example.net", i), "A")+fast.questions(fmt.Sprintf("n%d.example.net", i), "A") > 0
			})
		}
		clock.advance(r, MinHedge)
		want(t, f.get(t), "[192.0.2.2]")
		hedged = int(r.Stats().Hedges)
	}
	r.mu.Lock()
	r.hedges, r.servers[0].srtt, r.servers[1].srtt = 0.5, 1, int64(time.Second)
	r.mu.Unlock()
	before := r.Stats().Hedges
	for i := range 5 {
		start(r, a(fmt.Sprintf("o%d.example.net", i)))
		clock.advance(r, MinHedge)
	}
	eventually(t, "all are sent", func() bool { return r.Stats().Inflight == 0 || slow.asked.Load() >= 5 })
	if n := r.Stats().Hedges; n != before {
		t.Errorf("%d hedges without a budget", n-before)
	}
}

func TestSocketsAreReplacedAfterUseAndTime(t *testing.T) {
	s := serve(t, says(0, "@ 60 A 192.0.2.1"))
	r, clock := resolve(t, Options{Sockets: 1}, s)
	ports := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.ports)
	}
	for i := range 10 {
		ask(t, r, a(fmt.Sprintf("n%d.example.net", i)))
	}
	if n := ports(); n != 1 {
		t.Fatalf("%d ports", n)
	}
	clock.advance(r, SocketAge)
	ask(t, r, a("later.example.net"))
	if n := ports(); n != 2 {
		t.Errorf("%d ports after SocketAge", n)
	}
	r.mu.Lock()
	r.servers[0].links[0].uses = MaxSocketUses
	r.mu.Unlock()
	ask(t, r, a("more.example.net"))
	if n := ports(); n != 3 {
		t.Errorf("%d ports after MaxSocketUses", n)
	}
}

// When there are no file descriptors left, the sockets that are open serve on; without any, lookups fail in time.
func TestSocketsThatCannotBeOpened(t *testing.T) {
	s := serve(t, says(0, "@ 60 A 192.0.2.1"))
	var left atomic.Int64
	left.Store(1)
	r, clock := resolve(t, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if left.Add(-1) < 0 {
			return nil, syscall.EMFILE
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}, s)
	for i := range 50 {
		want(t, ask(t, r, a(fmt.Sprintf("n%d.example.net", i))), "[192.0.2.1]")
	}
	clock.advance(r, SocketAge)
	want(t, ask(t, r, a("later.example.net")), "[192.0.2.1]")

	none, clock := resolve(t, Options{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, syscall.EMFILE }}, s)
	f := start(none, a("example.net"))
	eventually(t, "it is tried", func() bool { return none.Stats().SocketErrors == 1 })
	clock.advance(none, busyDelay)
	eventually(t, "it is tried again", func() bool { return none.Stats().SocketErrors == 2 })
	clock.advance(none, DefaultTimeout)
	want(t, f.get(t), "failed")
}

func TestLimitPerClient(t *testing.T) {
	s := serve(t, silent)
	r, clock := resolve(t, Options{MaxPerClient: 3}, s)
	addr := netip.MustParseAddr
	lookup := func(i int, client string) bool {
		_, now := r.Lookup(a(fmt.Sprintf("n%d.example.net", i)), addr(client), func(spf.Answer) {})
		return now
	}
	for i, client := range []string{"192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"} {
		if lookup(i, client) {
			t.Fatal("refused below the limit")
		}
	}
	if !lookup(3, "192.0.2.1") || lookup(0, "192.0.2.1") {
		t.Error("a fourth question is not refused, or joining one is")
	}
	for i, client := range []string{"2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::"} {
		if lookup(4+i, client) {
			t.Fatal("another client is refused")
		}
	}
	if !lookup(9, "2001:db8::9") || lookup(9, "2001:db8:0:1::9") {
		t.Error("a client of IPv6 is not its /64")
	}
	if st := r.Stats(); st.OverClient != 2 || st.Waiting != 8 || st.Coalesced != 1 {
		t.Errorf("%+v", st)
	}
	clock.advance(r, DefaultTimeout)
	eventually(t, "all end", func() bool { return r.Stats().Waiting == 0 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.clients) != 0 {
		t.Errorf("clients are kept: %v", r.clients)
	}
}

// Joining costs no query, but a place among those that wait, which others need too.
func TestAClientMayJoinManyOpenQuestionsButNotAnyNumber(t *testing.T) {
	s := serve(t, silent)
	r, clock := resolve(t, Options{MaxPerClient: 2}, s)
	client := netip.MustParseAddr("192.0.2.1")
	lookup := func(client netip.Addr) (spf.Answer, bool) {
		return r.Lookup(a("n.example.net"), client, func(spf.Answer) {})
	}
	lookup(netip.MustParseAddr("192.0.2.2"))
	for i := range 2 * MaxWaitingPerQuestion {
		if _, now := lookup(client); now {
			t.Fatalf("%d join, and one more is refused", i)
		}
	}
	if got, now := lookup(client); !now || got.Status != spf.Failed || got.Cause != spf.CauseClient {
		t.Errorf("one too many joins: %+v", got)
	}
	if _, now := lookup(netip.MustParseAddr("192.0.2.3")); now {
		t.Error("another client is refused")
	}
	clock.advance(r, DefaultTimeout)
	eventually(t, "all end", func() bool { return r.Stats().Waiting == 0 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.clients) != 0 {
		t.Errorf("clients are kept: %v", r.clients)
	}
}

func TestAnAnswerTellsWhoseLimitRefusedIt(t *testing.T) {
	s := serve(t, silent)
	client := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		what string
		o    Options
		want spf.Cause
	}{
		{"client", Options{MaxPerClient: 1}, spf.CauseClient},
		{"zone", Options{MaxPerZone: 1}, spf.CauseBusy},
		{"inflight", Options{MaxInflight: 1}, spf.CauseBusy},
	} {
		r, clock := resolve(t, c.o, s)
		ended := make(chan spf.Answer, 1)
		if _, now := r.Lookup(a("first.example.net"), client, func(a spf.Answer) { ended <- a }); now {
			t.Fatal(c.what)
		}
		if got, now := r.Lookup(a("second.example.net"), client, func(spf.Answer) {}); !now || got.Status != spf.Failed || got.Cause != c.want {
			t.Errorf("%s: %+v, %v", c.what, got, now)
		}
		if c.o.MaxInflight == 1 { // the first has waited long enough to be pushed out
			clock.advance(r, JostleAfter)
			r.Lookup(a("third.example.net"), client, func(spf.Answer) {})
		} else {
			clock.advance(r, DefaultTimeout)
			c.want = spf.CauseDNS
		}
		if got := <-ended; got.Status != spf.Failed || got.Cause != c.want {
			t.Errorf("%s: the first came to %+v", c.what, got)
		}
	}
}

func TestNewQuestionPushesOutTheOldest(t *testing.T) {
	s := serve(t, silent)
	r, clock := resolve(t, Options{MaxInflight: 2}, s)
	first := start(r, a("one.example.net"))
	clock.advance(r, time.Millisecond)
	second := start(r, a("two.example.net"))
	want(t, cached(t, r, a("three.example.net")), "failed")
	joined := start(r, a("two.example.net"))
	clock.advance(r, JostleAfter-time.Millisecond)
	third := start(r, a("three.example.net"))
	want(t, first.get(t), "failed")
	want(t, cached(t, r, a("four.example.net")), "failed")
	if st := r.Stats(); st.Inflight != 2 || st.OverInflight != 2 || st.Jostled != 1 {
		t.Errorf("%+v", st)
	}
	clock.advance(r, DefaultTimeout)
	for _, f := range []future{second, joined, third} {
		want(t, f.get(t), "failed")
	}
}

func TestOneDomainLeavesOthersRoom(t *testing.T) {
	s := serve(t, silent)
	r, _ := resolve(t, Options{MaxPerZone: 2}, s)
	for _, c := range []struct {
		name string
		now  bool
	}{
		{"a.example.net", false}, {"b.c.example.net", false}, {"example.net", true}, {"d.example.net", true}, {"d.example.org", false},
		{"1.0.2.192.in-addr.arpa", false}, {"2.1.2.192.in-addr.arpa", false}, {"3.2.2.192.in-addr.arpa", true}, {"3.2.3.192.in-addr.arpa", false},
		{"1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", false}, {"1.1.0.0.8.b.d.0.1.0.0.2.ip6.arpa", false},
		{"1.2.0.0.8.b.d.0.1.0.0.2.ip6.arpa", true}, {"1.0.0.0.9.b.d.0.1.0.0.2.ip6.arpa", false},
		{"a.example.co.uk", false}, {"b.example.co.uk", false}, {"c.example.co.uk", true}, {"d.other.co.uk", false},
		{"net", false},
	} {
		if _, now := r.Lookup(a(c.name), nobody, func(spf.Answer) {}); now != c.now {
			t.Errorf("%s: %v", c.name, now)
		}
	}
	if st := r.Stats(); st.OverZone != 5 {
		t.Errorf("%+v", st)
	}
	r.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.zones) != 0 {
		t.Errorf("zones are kept: %v", r.zones)
	}
}

func TestLookupsThatWaitAreBounded(t *testing.T) {
	s := serve(t, silent)
	r, clock := resolve(t, Options{MaxInflight: 4}, s)
	var ends atomic.Int64
	for i := range 4*MaxWaitingPerQuestion + 10 {
		_, now := r.Lookup(a("example.net"), nobody, func(spf.Answer) { ends.Add(1) })
		if now != (i >= 4*MaxWaitingPerQuestion) {
			t.Fatalf("lookup %d: %v", i, now)
		}
	}
	clock.advance(r, DefaultTimeout)
	eventually(t, "all end", func() bool { return ends.Load() == 4*MaxWaitingPerQuestion })
}

func TestCloseFailsWhatWaits(t *testing.T) {
	before := runtime.NumGoroutine()
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := answer(q, 0)
		m.Truncated = true
		if !isTCP(w) && q.Question[0].Qtype == dns.TypeTXT {
			w.WriteMsg(m)
		}
	})
	servers := runtime.NumGoroutine()
	r, _ := resolve(t, Options{}, s)
	var all []future
	for i := range 20 {
		all = append(all, start(r, a(fmt.Sprintf("n%d.example.net", i))), start(r, txt(fmt.Sprintf("n%d.example.net", i))))
	}
	eventually(t, "there is a connection", func() bool { return s.tcp.Load() == 1 })
	sync1 := make(chan error, 1)
	go func() {
		_, err := r.LookupSync(t.Context(), a("sync.example.net"))
		sync1 <- err
	}()
	eventually(t, "it waits", func() bool { return r.Stats().Waiting == 41 })
	r.Close()
	for _, f := range all {
		want(t, f.get(t), "failed")
		select {
		case <-f:
			t.Fatal("called back twice")
		default:
		}
	}
	if err := <-sync1; err != ErrClosed {
		t.Error(err)
	}
	want(t, cached(t, r, a("example.net")), "failed")
	r.Close()
	eventually(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= max(before, servers+4) })
}

func TestCallbackMayAskAgain(t *testing.T) {
	s := serve(t, says(0, "@ 60 A 192.0.2.1"))
	r, _ := resolve(t, Options{}, s)
	end := make(future, 1)
	var step func(n int)
	step = func(n int) {
		done := func(a spf.Answer) {
			if n == 20 {
				end <- a
				return
			}
			step(n + 1)
		}
		if a, now := r.Lookup(a(fmt.Sprintf("n%d.example.net", n)), nobody, done); now {
			done(a)
		}
	}
	step(0)
	want(t, end.get(t), "[192.0.2.1]")
}

func TestLookupSyncEndsWithItsContext(t *testing.T) {
	s := serve(t, silent)
	r, _ := resolve(t, Options{}, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.LookupSync(ctx, a("example.net")); err != context.Canceled {
		t.Error(err)
	}
	s.setScript(says(0, "@ 60 A 192.0.2.1"))
	got, err := r.LookupSync(t.Context(), a("other.example.net"))
	if err != nil {
		t.Fatal(err)
	}
	want(t, got, "[192.0.2.1]")
}

// Two servers do all the wrong things at random, sockets are replaced, connections break, and time runs: each lookup ends exactly once, and nothing
// but the truth is found.
func TestEveryLookupEndsOnceUnderFaults(t *testing.T) {
	var seed atomic.Uint32
	faults := func(w dns.ResponseWriter, q *dns.Msg) {
		n := seed.Add(2654435761) >> 16 % 16
		good := answer(q, 0, "@ 5 A 192.0.2.1")
		switch n {
		case 0, 1:
		case 2:
			says(dns.RcodeServerFailure)(w, q)
		case 3:
			says(dns.RcodeRefused)(w, q)
		case 4:
			m := answer(q, 0)
			m.Truncated = true
			w.WriteMsg(m)
		case 5:
			m := new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
			m.Question = nil
			w.WriteMsg(m)
		case 6:
			m := answer(q, 0, "@ 300 A 203.0.113.66")
			m.Id ^= 1
			w.WriteMsg(m)
		case 7:
			m := answer(q, 0, "@ 300 A 203.0.113.66")
			m.Question[0].Name = "x." + m.Question[0].Name
			w.WriteMsg(m)
		case 8:
			b := pack(good)
			w.Write(b[:len(b)-1])
		case 9:
			w.WriteMsg(good)
			w.WriteMsg(good)
		case 10:
			if isTCP(w) {
				w.Close()
			}
		case 11:
			m := good.Copy()
			m.Question[0].Name = strings.ToLower(m.Question[0].Name)
			w.WriteMsg(m)
		default:
			w.WriteMsg(good)
		}
	}
	one, two := serve(t, faults), serve(t, faults)
	r, clock := resolve(t, Options{Sockets: 4, MaxInflight: 200, CacheBytes: MinCacheBytes}, one, two)
	const clients, each = 8, 400
	ends := make([]atomic.Int32, clients*each)
	var left atomic.Int64
	left.Store(clients * each)
	stop := make(chan struct{})
	var bg sync.WaitGroup
	bg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				clock.advance(r, 50*time.Millisecond)
				r.Stats()
			}
		}
	})
	for c := range clients {
		bg.Go(func() {
			for i := range each {
				n := c*each + i
				end := func(a spf.Answer) {
					if ends[n].Add(1) != 1 {
						t.Errorf("lookup %d ended twice", n)
					}
					if a.Status == spf.Found && text(a) != "[192.0.2.1]" {
						t.Errorf("lookup %d: %s", n, text(a))
					}
					left.Add(-1)
				}
				if a, now := r.Lookup(a(fmt.Sprintf("n%d.example.net", i)), nobody, end); now {
					end(a)
				}
				if i%16 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	eventually(t, "all end", func() bool { return left.Load() == 0 })
	close(stop)
	bg.Wait()
	// The refreshing of stale answers may still go on; it ends as well.
	eventually(t, "the questions end", func() bool { clock.advance(r, time.Second); return r.Stats().Inflight == 0 })
	st := r.Stats()
	if st.Answers == 0 || st.ByTCP == 0 || st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.servers {
		probes := 0
		if s.probe != nil {
			probes = 1
		}
		if s.inflight != probes {
			t.Errorf("server %s: %d tries in flight", s.name, s.inflight)
		}
		for _, l := range append(s.links, s.tcp) {
			if l != nil && len(l.pending) > probes {
				t.Errorf("a socket of %s has %d pending tries", s.name, len(l.pending))
			}
		}
	}
}

// 50,000 lookups wait for a silent server, and other names are answered meanwhile; all end, and little memory is used.
func TestFiftyThousandWaitForASilentServer(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if strings.HasSuffix(strings.ToLower(q.Question[0].Name), ".example.net.") {
			says(0, "@ 60 A 192.0.2.1")(w, q)
		}
	})
	s.quiet.Store(true)
	r, clock := resolve(t, Options{}, s)
	want(t, ask(t, r, a("known.example.net")), "[192.0.2.1]")
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var ends, failed atomic.Int64
	end := func(a spf.Answer) {
		ends.Add(1)
		if a.Status == spf.Failed {
			failed.Add(1)
		}
	}
	const all = 50_000
	for i := range all {
		if a, now := r.Lookup(a(fmt.Sprintf("n%d.example.org", i)), nobody, end); now {
			end(a)
		}
		if i%1000 == 0 {
			clock.advance(r, 10*time.Millisecond)
			if i > 20_000 { // the limit is reached, and the oldest have waited long enough
				want(t, ask(t, r, a(fmt.Sprintf("n%d.example.net", i))), "[192.0.2.1]")
				want(t, cached(t, r, a("known.example.net")), "[192.0.2.1]")
			}
		}
		if st := len(r.wake); st > 1 {
			t.Fatal(st)
		}
	}
	st := r.Stats()
	if st.Inflight > DefaultMaxInflight {
		t.Errorf("%d in flight", st.Inflight)
	}
	used := heap() - before
	t.Logf("%d in flight, %d jostled, %d refused, %d KiB, %d bytes per question in flight", st.Inflight, st.Jostled, st.OverInflight, used>>10, used/int64(max(st.Inflight, 1)))
	if used > 32<<20 {
		t.Errorf("%d KiB used", used>>10)
	}
	clock.advance(r, DefaultTimeout)
	eventually(t, "all end", func() bool { return ends.Load() == all })
	if failed.Load() != all {
		t.Errorf("%d of %d failed", failed.Load(), all)
	}
}

func TestQuestionsDoNotRepeatThemselves(t *testing.T) {
	s := serve(t, says(0, "@ 60 A 192.0.2.1"))
	r, _ := resolve(t, Options{}, s)
	ids, names, ports := map[uint16]int{}, map[string]int{}, 0
	const n = 200
	for i := range n {
		ask(t, r, a(fmt.Sprintf("x%03d.a-long-name-of-a-host.example.net", i)))
		q := s.next(t)
		ids[q.Id]++
		names[q.Question[0].Name[4:]]++
	}
	s.mu.Lock()
	ports = len(s.ports)
	s.mu.Unlock()
	if len(ids) < n-5 || len(names) < n-2 || ports < DefaultSockets/2 {
		t.Errorf("%d ids, %d spellings, %d ports of %d", len(ids), len(names), ports, n)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{Servers: []string{"ns.example.net:53"}},
		{Servers: []string{"192.0.2.1:0"}},
		{Servers: make([]string, MaxServers+1)},
		{Sockets: MaxSockets + 1},
		{MaxInflight: -1},
		{CacheBytes: MinCacheBytes - 1},
		{Timeout: -1},
		{MinTTL: time.Hour, MaxTTL: time.Minute},
		{MaxTTL: 1 << 62},
		{MaxFailureTTL: time.Hour},
		{MaxPerZone: -1},
	} {
		if r, err := New(o); err == nil {
			r.Close()
			t.Errorf("%+v is taken", o)
		}
	}
	for in, want := range map[string]string{"192.0.2.1": "192.0.2.1:53", "2001:db8::1": "[2001:db8::1]:53", "[2001:db8::1]:5353": "[2001:db8::1]:5353", "fe80::1%lo": "[fe80::1%lo]:53"} {
		if got, err := parseServer(in); err != nil || got.String() != want {
			t.Errorf("%s: %v %v", in, got, err)
		}
	}
	if got := systemServers("testdata/resolv.conf"); fmt.Sprint(got) != "[192.0.2.53:53 [2001:db8::53]:53]" {
		t.Error(got)
	}
	if got := systemServers("testdata/none"); fmt.Sprint(got) != "[127.0.0.1:53]" {
		t.Error(got)
	}
}

func TestQueryIsWhatTheLibraryWouldWrite(t *testing.T) {
	for _, q := range []spf.Query{txt("example.net"), a("_spf.a_b.example.net"), {Name: "1.0.0.127.in-addr.arpa", Type: spf.TypePTR}} {
		question, ok := appendQuestion(nil, q)
		if !ok {
			t.Fatal(q)
		}
		m := new(dns.Msg).SetQuestion(dns.Fqdn(q.Name), wireType(q.Type))
		m.Id, m.AuthenticatedData = 4711, true
		if got := appendQuery(nil, 4711, question, false); !bytes.Equal(got, pack(m)) {
			t.Errorf("%x, want %x", got, pack(m))
		}
		m.SetEdns0(EDNSBytes, false)
		if got := appendQuery(nil, 4711, question, true); !bytes.Equal(got, pack(m)) {
			t.Errorf("%x, want %x", got, pack(m))
		}
	}
	if n := binary.Size([maxQueryBytes]byte{}); n > 512 {
		t.Error(n)
	}
}

// A server that is not there is told apart from one that is silent. Questions wait for it all the same, unless somebody looks on.
func TestAnAnswerTellsThatNobodyListens(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	nobodyThere := conn.LocalAddr().String()

	r, clock := resolve(t, Options{Servers: []string{nobodyThere}})
	f := start(r, a("n.example.net"))
	eventually(t, "the server is left out", func() bool { return !r.Stats().Servers[0].Up })
	select {
	case <-f:
		t.Fatal("the question has not kept its time")
	default:
	}
	clock.advance(r, DefaultTimeout)
	if got := f.get(t); got.Status != spf.Failed || got.Cause != spf.CauseUnreachable {
		t.Errorf("%+v", got)
	}
	if got := cached(t, r, a("n.example.net")); got.Cause != spf.CauseUnreachable {
		t.Errorf("remembered: %+v", got)
	}

	// The clock stands still.
	r, _ = resolve(t, Options{Servers: []string{nobodyThere}, EndUnreachable: true})
	if got := ask(t, r, a("n.example.net")); got.Status != spf.Failed || got.Cause != spf.CauseUnreachable {
		t.Errorf("%+v", got)
	}

	// One of two is there, and silent.
	s := serve(t, silent)
	r, clock = resolve(t, Options{Servers: []string{nobodyThere}, EndUnreachable: true}, s)
	f = start(r, a("n.example.net"))
	s.next(t)
	clock.advance(r, DefaultTimeout)
	if got := f.get(t); got.Status != spf.Failed || got.Cause != spf.CauseDNS {
		t.Errorf("%+v", got)
	}
}
