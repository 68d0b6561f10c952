package resolver

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fastedge/fastedge/spf"
)

func newTestCaches(t testing.TB, bytes int64) *caches {
	o := Options{Servers: []string{"127.0.0.1:53"}, CacheBytes: bytes}
	if _, err := o.complete(); err != nil {
		t.Fatal(err)
	}
	c, err := newCaches(&o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const providerRecord = "v=spf1 ip4:192.0.2.0/24 ip4:198.51.100.0/24 ip6:2001:db8::/32 include:_netblocks.example.net include:_spf.example.org a:mail.example.com -all"

func txtAnswer(s ...string) spf.Answer { return spf.Answer{Status: spf.Found, TXT: spf.NewTXT(s)} }

// Names that nobody asks for again come by the hundred thousand: there is never more than the budget, and what is asked for often stays.
func TestFloodOfRandomNamesPushesOutNothingPopular(t *testing.T) {
	for name, flood := range map[string]func(c *caches, q spf.Query){
		"no such name": func(c *caches, q spf.Query) { c.keep(q, spf.Answer{Status: spf.Empty}, 900, 0) },
		"failures":     func(c *caches, q spf.Query) { c.keepFailure(q, 0, 0) },
		"a wildcard":   func(c *caches, q spf.Query) { c.keep(q, txtAnswer(providerRecord), 86400, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			const bytes = 2 << 20
			c := newTestCaches(t, bytes)
			popular := make([]spf.Query, 100)
			for i := range popular {
				popular[i] = txt(fmt.Sprintf("_spf%d.example.com", i))
				c.keep(popular[i], txtAnswer(providerRecord), 86400, 0)
			}
			most, asked, missed := int64(0), 0, 0
			for i := range 30_000 {
				flood(c, txt(fmt.Sprintf("%x.example.net", rand.Uint64())))
				if i%4 == 0 {
					q := popular[i/4%len(popular)]
					asked++
					if e, _ := c.fresh(q, 0); e == nil {
						missed++
						c.keep(q, txtAnswer(providerRecord), 86400, 0)
					}
				}
				if i%16 == 0 {
					p, n, f := c.stats()
					most = max(most, p.Bytes+n.Bytes+f.Bytes)
					if p.Bytes > p.Max || n.Bytes > n.Max || f.Bytes > f.Max || p.Bytes+n.Bytes+f.Bytes > bytes {
						t.Fatalf("after %d: %+v %+v %+v", i, p, n, f)
					}
				}
			}
			left := 0
			for _, q := range popular {
				if e, _ := c.fresh(q, 0); e != nil {
					left++
				}
			}
			t.Logf("%d of %d asked for popular ones were missing", missed, asked)
			if missed > asked/200 {
				t.Errorf("%d of %d asked for popular ones were missing", missed, asked)
			}
			t.Logf("%d of %d popular ones are left, %d KiB at the most", left, len(popular), most>>10)
			if left < len(popular)*95/100 {
				t.Errorf("only %d of %d popular ones are left", left, len(popular))
			}
		})
	}
}

// The same from many goroutines: the bound holds while they write.
func TestCacheIsBoundedUnderConcurrentWrites(t *testing.T) {
	c := newTestCaches(t, MinCacheBytes)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				q := txt(fmt.Sprintf("%d-%d.example.net", g, i))
				switch i % 3 {
				case 0:
					c.keep(q, txtAnswer("v=spf1 -all"), 60, 0)
				case 1:
					c.keep(q, spf.Answer{Status: spf.Empty}, 60, 0)
				default:
					c.keepFailure(q, 0, 0)
				}
				c.fresh(q, 0)
			}
		})
	}
	wg.Wait()
	// Whoever wrote last while another was at it may have left its entry to the next one.
	c.keep(txt("last.example.net"), txtAnswer("v=spf1 -all"), 60, 0)
	c.keep(txt("least.example.net"), spf.Answer{Status: spf.Empty}, 60, 0)
	c.keepFailure(txt("lost.example.net"), 0, 0)
	p, n, f := c.stats()
	if p.Bytes > p.Max || n.Bytes > n.Max || f.Bytes > f.Max {
		t.Errorf("%+v %+v %+v", p, n, f)
	}
}

// The weight of an entry is not below what it takes of the heap.
func TestCacheWeightsAreHonest(t *testing.T) {
	addrs := func(n int) []netip.Addr {
		all := make([]netip.Addr, n)
		for i := range all {
			all[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		}
		return all
	}
	macros := "v=spf1 exists:%{ir}.%{v}._spf.%{d2} exists:%{l1r-}.%{o}.%{h}.example.net redirect=%{d}.example.net"
	for name, make := range map[string]func(i int) spf.Answer{
		"empty":          func(int) spf.Answer { return spf.Answer{Status: spf.Empty} },
		"an address":     func(int) spf.Answer { return spf.Answer{Status: spf.Found, Addrs: addrs(1)} },
		"many addresses": func(int) spf.Answer { return spf.Answer{Status: spf.Found, Addrs: addrs(20)} },
		"hosts": func(i int) spf.Answer {
			return spf.Answer{Status: spf.Found, Hosts: []string{fmt.Sprintf("mx1-%d.example.net", i), fmt.Sprintf("mx2-%d.example.net", i)}}
		},
		"short record": func(i int) spf.Answer { return txtAnswer(fmt.Sprintf("v=spf1 ip4:10.%d.%d.0/24 -all", i>>8, i&255)) },
		"provider":     func(i int) spf.Answer { return txtAnswer(providerRecord + fmt.Sprintf(" exp=x%d.example.net", i)) },
		"dense": func(i int) spf.Answer {
			return txtAnswer("v=spf1" + strings.Repeat(" a", 9) + strings.Repeat(" ip4:1.2.3.4", 50) + fmt.Sprintf(" exp=x%d.example.net", i))
		},
		"macros": func(i int) spf.Answer { return txtAnswer(macros + fmt.Sprintf(" exp=x%d.example.net", i)) },
		"densest": func(i int) spf.Answer {
			return txtAnswer("v=spf1" + strings.Repeat(" ip6:::", 500) + fmt.Sprintf(" exp=x%d.example.net", i))
		},
		"mx mx mx": func(i int) spf.Answer {
			return txtAnswer("v=spf1" + strings.Repeat(" mx", 150) + fmt.Sprintf(" exp=x%d.example.net", i))
		},
		"verifications": func(i int) spf.Answer {
			return txtAnswer(strings.Repeat(fmt.Sprint("verify=", i), 6), fmt.Sprintf("v=spf1 -all exp=x%d.example.net", i), "other")
		},
	} {
		t.Run(name, func(t *testing.T) {
			const n = 1000
			c := newTestCaches(t, 1<<30)
			measure := func() int64 {
				runtime.GC()
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			before := measure()
			for i := range n {
				c.keep(spf.Query{Name: fmt.Sprintf("name-%d.example.net", i), Type: spf.TypeTXT}, make(i), 300, 0)
			}
			used := measure() - before
			p, neg, _ := c.stats()
			weight := p.Bytes + neg.Bytes
			t.Logf("%d bytes an entry, weighed as %d", used/n, weight/n)
			if used > weight {
				t.Errorf("%d bytes an entry, weighed as %d", used/n, weight/n)
			}
			runtime.KeepAlive(c)
		})
	}
}

// warm is a resolver that knows n names.
func warm(t testing.TB, n int) (*Resolver, []spf.Query) {
	r, err := New(Options{Servers: []string{"127.0.0.1:9"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	qs := make([]spf.Query, n)
	for i := range qs {
		qs[i] = txt(fmt.Sprintf("_spf%d.mail.example.net", i))
		r.cache.keep(qs[i], txtAnswer(providerRecord), 86400, r.now())
	}
	return r, qs
}

func TestCachedLookupDoesNotAllocate(t *testing.T) {
	r, qs := warm(t, 64)
	missing, broken := txt("none.example.net"), txt("broken.example.net")
	r.cache.keep(missing, spf.Answer{Status: spf.Empty}, 900, r.now())
	r.cache.keepFailure(broken, r.now(), 0)
	client := netip.MustParseAddr("192.0.2.1")
	done := func(spf.Answer) {}
	i := 0
	if n := testing.AllocsPerRun(10_000, func() {
		if a, now := r.Lookup(qs[i%len(qs)], client, done); !now || a.TXT == nil {
			t.Fatal("not cached")
		}
		if a, now := r.Lookup(missing, client, done); !now || a.Status != spf.Empty {
			t.Fatal("not cached")
		}
		if a, now := r.Lookup(broken, client, done); !now || a.Status != spf.Failed {
			t.Fatal("not cached")
		}
		i++
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// naive is the baseline: a map under a mutex, without a bound.
type naive struct {
	mu sync.Mutex
	m  map[spf.Query]naiveEntry
}

type naiveEntry struct {
	a       spf.Answer
	expires time.Time
}

func (n *naive) lookup(q spf.Query) (spf.Answer, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e, ok := n.m[q]
	if !ok || time.Now().After(e.expires) {
		return spf.Answer{}, false
	}
	return e.a, true
}

func BenchmarkCachedLookup(b *testing.B) {
	const names = 4096
	r, qs := warm(b, names)
	client := netip.MustParseAddr("192.0.2.1")
	done := func(spf.Answer) {}
	n := &naive{m: map[spf.Query]naiveEntry{}}
	for _, q := range qs {
		n.m[q] = naiveEntry{txtAnswer(providerRecord), time.Now().Add(time.Hour)}
	}
	b.Run("resolver/one-goroutine", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, now := r.Lookup(qs[i%names], client, done); !now {
				b.Fatal("not cached")
			}
		}
	})
	b.Run("naive/one-goroutine", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, now := n.lookup(qs[i%names]); !now {
				b.Fatal("not cached")
			}
		}
	})
	b.Run("resolver/parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(names); pb.Next(); i++ {
				if _, now := r.Lookup(qs[i%names], client, done); !now {
					b.Error("not cached")
				}
			}
		})
	})
	b.Run("naive/parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(names); pb.Next(); i++ {
				if _, now := n.lookup(qs[i%names]); !now {
					b.Error("not cached")
				}
			}
		})
	})
}

// What a question costs that is not cached, the server in the same process included; its naive twin makes a socket for each.
func BenchmarkQuestion(b *testing.B) {
	// A server that costs as little as possible: the query comes back as its answer.
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer pc.Close()
	record := append([]byte{0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, 0, 29, 28}, "v=spf1 ip4:192.0.2.0/24 -all"...)
	go func() {
		buf := make([]byte, 512)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if bytes.HasPrefix(bytes.ToLower(buf[headerBytes+1:20]), []byte("silent")) {
				continue
			}
			end := headerBytes
			for buf[end] != 0 {
				end += int(buf[end]) + 1
			}
			buf[2], buf[3], buf[7], buf[11] = 0x81, 0x80, 1, 0
			pc.WriteTo(append(buf[:end+5], record...), from)
		}
	}()
	server := pc.LocalAddr().String()
	names := make([]string, 1<<20)
	for i := range names {
		names[i] = fmt.Sprintf("n%d.example.net", i)
	}
	run := func(silent int) func(b *testing.B) {
		return func(b *testing.B) {
			r, err := New(Options{Servers: []string{server}})
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			for i := range silent {
				r.Lookup(txt(fmt.Sprintf("silent%d.example.org", i)), netip.Addr{}, func(spf.Answer) {})
			}
			slots := make(chan struct{}, 64)
			times := make([]time.Duration, 1<<20)
			b.ReportAllocs()
			n := 0
			for ; b.Loop(); n++ {
				slots <- struct{}{}
				start, i := time.Now(), n%len(times)
				if _, now := r.Lookup(txt(names[n%len(names)]), netip.Addr{}, func(a spf.Answer) {
					times[i] = time.Since(start)
					if a.Status != spf.Found {
						b.Error("failed")
					}
					<-slots
				}); now {
					<-slots
				}
			}
			for range cap(slots) {
				slots <- struct{}{}
			}
			times = times[:min(n, len(times))]
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
		}
	}
	b.Run("resolver/64-in-flight", run(0))
	// The same while one domain's questions, as many as there may be, wait for a server that is silent about it.
	b.Run("resolver/64-in-flight-50000-silent", run(50_000))
	b.Run("naive/64-in-flight", func(b *testing.B) {
		slots := make(chan struct{}, 64)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			slots <- struct{}{}
			go func() {
				m := new(dns.Msg).SetQuestion(dns.Fqdn(names[i%len(names)]), dns.TypeTXT)
				if _, _, err := new(dns.Client).Exchange(m, server); err != nil {
					b.Error(err)
				}
				<-slots
			}()
		}
		for range cap(slots) {
			slots <- struct{}{}
		}
	})
}
