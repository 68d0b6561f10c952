package resolver

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fastedge/fastedge/spf"
)

func TestZoneIsWhatOneRegistrantHas(t *testing.T) {
	for name, want := range map[string]string{
		"example.net":                      "example.net",
		"a.b.c.example.net":                "example.net",
		"net":                              "net",
		"a.example.co.uk":                  "example.co.uk",
		"other.co.uk":                      "other.co.uk",
		"co.uk":                            "co.uk",
		"www.example.sch.uk":               "www.example.sch.uk", // a rule with an asterisk
		"customer.github.io":               "github.io",          // the private section: one operator
		"a.b.customer.github.io":           "github.io",
		"x.cn-north-1.eb.amazonaws.com.cn": "amazonaws.com.cn",
		"a.b.nosuchtld":                    "b.nosuchtld",
		"4.3.2.1.in-addr.arpa":             "2.1.in-addr.arpa",
		"1.in-addr.arpa":                   "1.in-addr.arpa",
		"in-addr.arpa":                     "in-addr.arpa",
		"d.c.b.a.8.b.d.0.1.0.0.2.ip6.arpa": "8.b.d.0.1.0.0.2.ip6.arpa",
	} {
		if got := zoneOf(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// The zone of any name that can be asked for is made of whole labels at its end, and is its own zone.
func FuzzZone(f *testing.F) {
	for _, name := range []string{"www.example.co.uk", "customer.github.io", "4.3.2.1.in-addr.arpa", "a", "x.ck", "\x00.\xff.kobe.jp", "%2e.com"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		q := spf.Query{Name: canonical(name), Type: spf.TypeA}
		if _, ok := appendQuestion(nil, q); !ok {
			return
		}
		z := zoneOf(q.Name)
		if z != q.Name && !strings.HasSuffix(q.Name, "."+z) || z == "" {
			t.Fatalf("%q of %q", z, q.Name)
		}
		if again := zoneOf(z); again != z {
			t.Fatalf("%q of %q, and %q of that", z, q.Name, again)
		}
	})
}

// settled waits until the driver has nothing to do at this time: it has looked at all questions whose time has come.
func settled(t testing.TB, r *Resolver) {
	t.Helper()
	eventually(t, "the driver is done", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.agenda.ready.first == nil && r.agenda.next() > r.now()
	})
}

// 1,000 lookups wait for one silent domain. Few of their questions are sent again, the others only seem to be, and a packet that was lost of another
// domain is sent again in time.
func TestSilentDomainIsAskedAgainWithinItsAllowance(t *testing.T) {
	s := serve(t, silent)
	s.quiet.Store(true)
	r, clock := resolve(t, Options{}, s)
	var all []future
	for i := range 1000 {
		all = append(all, start(r, a(fmt.Sprintf("n%d.silent.example", i))))
	}
	settled(t, r)
	clock.advance(r, firstRetransmit)
	settled(t, r)
	if st := r.Stats(); st.Retransmits != zoneBurst || st.Withheld != 1000-zoneBurst || st.Sent != 1000+zoneBurst {
		t.Errorf("at the first time: %+v", st)
	}
	clock.advance(r, 2*firstRetransmit)
	settled(t, r)
	// Those that were saved up since, but for the half that is kept for what is sent the second time.
	if st := r.Stats(); st.Retransmits != zoneBurst+zoneBurst/2 || st.Withheld != 2000-zoneBurst-zoneBurst/2 {
		t.Errorf("at the second time: %+v", st)
	}

	var lost atomic.Bool
	lost.Store(true)
	s.setScript(func(w dns.ResponseWriter, q *dns.Msg) {
		if strings.HasSuffix(key(q), ".example.net. A") && !lost.Load() {
			says(0, "@ 60 A 192.0.2.1")(w, q)
		}
	})
	before := s.asked.Load()
	f := start(r, a("www.example.net"))
	eventually(t, "it is asked", func() bool { return s.asked.Load() > before })
	lost.Store(false)
	clock.advance(r, firstRetransmit)
	want(t, f.get(t), "[192.0.2.1]")

	clock.advance(r, DefaultTimeout)
	for _, f := range all {
		want(t, f.get(t), "failed")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.zones) != 0 || r.agenda.timed != 0 || r.agenda.ready.first != nil {
		t.Errorf("%d zones and %d questions are kept", len(r.zones), r.agenda.timed)
	}
}

// The same with a domain for each: they share the allowance of all.
func TestSilentDomainsAreAskedAgainWithinTheAllowanceOfAll(t *testing.T) {
	s := serve(t, silent)
	s.quiet.Store(true)
	r, clock := resolve(t, Options{}, s)
	for i := range 1000 {
		start(r, a(fmt.Sprintf("www.silent%d.example", i)))
	}
	settled(t, r)
	sent := uint64(0)
	for range 100 {
		clock.advance(r, 10*time.Millisecond)
		settled(t, r)
		st := r.Stats()
		if n := st.Retransmits - sent; n > retransmitBurst {
			t.Errorf("%d at once", n)
		}
		sent = st.Retransmits
	}
	if sent > retransmitBurst+MaxRetransmits || sent < retransmitBurst {
		t.Errorf("%d in a second", sent)
	}
}

// After an outage each answer lets more go on: a domain that many wait for is not taken for a silent one.
func TestDomainThatAnswersAgainIsAskedForAllThatWait(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		again := seen[key(q)]
		seen[key(q)] = true
		mu.Unlock()
		if again {
			says(0, "@ 60 A 192.0.2.1")(w, q)
		}
	})
	s.quiet.Store(true)
	r, clock := resolve(t, Options{}, s)
	var all []future
	for i := range 200 {
		all = append(all, start(r, a(fmt.Sprintf("n%d.example.net", i))))
	}
	eventually(t, "all have been asked in vain", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen) == len(all)
	})
	clock.advance(r, firstRetransmit) // and the clock stands
	for _, f := range all {
		want(t, f.get(t), "[192.0.2.1]")
	}
	if st := r.Stats(); st.Retransmits != 200 {
		t.Errorf("%+v", st)
	}
}

// A server that has fallen silent to all is no reason to wait: all that it was asked for goes to another at the first time, whatever the allowances.
func TestSilentServersQuestionsGoToAnother(t *testing.T) {
	bad, good := serve(t, silent), serve(t, says(0, "@ 60 A 192.0.2.1"))
	bad.quiet.Store(true)
	good.quiet.Store(true)
	r, clock := resolve(t, Options{}, bad, good)
	r.mu.Lock()
	r.servers[0].srtt, r.servers[1].srtt = 1, int64(time.Millisecond) // the silent one is preferred
	r.hedges = 0
	r.mu.Unlock()
	var all []future
	for i := range 100 {
		all = append(all, start(r, a(fmt.Sprintf("n%d.example.net", i))))
	}
	settled(t, r)
	clock.advance(r, MinRetransmit)
	for _, f := range all {
		want(t, f.get(t), "[192.0.2.1]")
	}
	if st := r.Stats(); st.Withheld != 0 {
		t.Errorf("%+v", st)
	}
}

// A server that does not preserve case has said something: by TCP all its questions are asked, whatever the allowances.
func TestServerThatDoesNotPreserveCaseIsAskedByTCPForAll(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := answer(q, 0, "@ 60 A 192.0.2.1")
		m.Question[0].Name = strings.ToUpper(m.Question[0].Name)
		w.WriteMsg(m)
	})
	s.quiet.Store(true)
	r, clock := resolve(t, Options{}, s)
	var all []future
	for i := range 100 {
		all = append(all, start(r, a(fmt.Sprintf("n%d.a-name-with-many-letters.example.net", i))))
	}
	eventually(t, "it is seen", func() bool { return r.Stats().WrongCase == 100 })
	clock.advance(r, firstRetransmit)
	for _, f := range all {
		want(t, f.get(t), "[192.0.2.1]")
	}
	if st := r.Stats(); st.Withheld != 0 || st.ByTCP != 100 {
		t.Errorf("%+v", st)
	}
}
