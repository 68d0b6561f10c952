package bench

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/resolver"
	"github.com/fastedge/fastedge/smtpcodec"
	"github.com/fastedge/fastedge/spf"
)

// senders is what a server has to check senders, with its own DNS server: nobody there answers for names with "silent" in them, and every other name has a
// record that lists 192.0.2.0/24.
type senders struct {
	resolver *resolver.Resolver
	spf      *policy.SPF
	limit    time.Duration
	ends     atomic.Int64 // checks of silent domains that are over,
	good     atomic.Int64 // of these, those with temperror
	early    atomic.Int64 // and those that were over before their time
	fresh    int          // other domains asked for
	counted  [spf.PermError + 1][policy.SPFObserved + 1]atomic.Int64
}

// chain are the records of customer.example and of another customer, of which the last lists the clients. Each fits into one string.
var chain = map[string]string{
	"\x08customer\x07example\x00":          "v=spf1 redirect=_spf.provider.example",
	"\x08consumer\x07example\x00":          "v=spf1 redirect=_spf.provider.example",
	"\x04_spf\x08provider\x07example\x00":  "v=spf1 include:_net1.provider.example include:_net2.provider.example include:_net3.provider.example ~all",
	"\x05_net1\x08provider\x07example\x00": "v=spf1 ip4:198.51.100.0/28 ip4:198.51.100.16/28 ip4:198.51.100.32/28 ip4:198.51.100.48/28 ip4:198.51.100.64/28 ~all",
	"\x05_net2\x08provider\x07example\x00": "v=spf1 ip6:2001:db8:1::/48 ip6:2001:db8:2::/48 ip6:2001:db8:3::/48 ip6:2001:db8:4::/48 ~all",
	"\x05_net3\x08provider\x07example\x00": "v=spf1 ip4:203.0.113.0/28 ip4:203.0.113.16/28 ip4:203.0.113.32/28 ip4:203.0.113.48/28 ip4:192.0.2.0/24 ~all",
}

// newSenders lets as many checks wait as are wanted: with its defaults the resolver keeps 1,024 questions about one domain open, and what is above fails
// at once.
func newSenders(tb testing.TB, waiting int, limit time.Duration) *senders {
	tb.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	conn.(*net.UDPConn).SetReadBuffer(4 << 20)
	go answerAllButSilent(conn)
	s := &senders{limit: limit}
	s.resolver, err = resolver.New(resolver.Options{Servers: []string{conn.LocalAddr().String()}, Timeout: 2 * limit, MaxInflight: 4 * max(waiting, 1024)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.resolver.Close() })
	s.spf, err = policy.NewSPF(policy.SPFOptions{Resolver: s.resolver, Enforce: true, Timeout: limit, MaxVoid: 2, Hostname: "mx.example.net",
		Rules: map[spf.Code]policy.SPFRule{spf.TempError: {Code: 451}, spf.Fail: {Code: 550}},
		Told:  func(result spf.Code, action policy.SPFAction) { s.counted[result][action].Add(1) }, Checked: func(policy.SPFChecked) {}, OnlyTrouble: true})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func answerAllButSilent(conn net.PacketConn) {
	for buf := make([]byte, 2048); ; {
		n, from, err := conn.ReadFrom(buf[:1500])
		if err != nil {
			return
		}
		end := bytes.IndexByte(buf[12:max(n, 12)], 0) + 12 + 5 // of the question
		if end > n || bytes.Contains(bytes.ToLower(buf[12:end-4]), []byte("silent")) {
			continue
		}
		buf[2], buf[3] = 0x81, 0x80
		copy(buf[4:12], []byte{0, 1, 0, 1, 0, 0, 0, 0})
		text := chain[string(bytes.ToLower(buf[12:end-4]))]
		if text == "" {
			text = "v=spf1 ip4:192.0.2.0/24 -all"
		}
		record := append(buf[:end], 0xC0, 12, 0, 16, 0, 1, 0, 0, 1, 0, 0, byte(1+len(text)), byte(len(text)))
		conn.WriteTo(append(record, text...), from)
	}
}

// ask is a MAIL command. told is called with the reply's code, 0 for success, once and by any goroutine.
func (s *senders) ask(tb testing.TB, client netip.Addr, sender string, slot *any, told func(code uint16)) {
	e := policy.Event{Stage: policy.AtMail, Client: policy.Client{Addr: netip.AddrPortFrom(client, 25), Helo: []byte("client.example")},
		Path: smtpcodec.Path{Mailbox: []byte(sender)}, Slot: slot}
	if err := s.spf.Validate(&e); err != nil {
		tb.Fatal(err)
	}
	if p := e.Pended(); p != nil {
		p.Arm(func(p *policy.Pending) {
			reply, _, _ := p.Decision()
			told(reply.Code)
		})
		return
	}
	told(e.Reply.Code)
}

// tarpit has n checks wait, each by a client of its own, 25,000 a second. The # in name becomes the number of the check.
func (s *senders) tarpit(tb testing.TB, n int, name string) {
	start := time.Now()
	for i := range n {
		if i%100 == 99 {
			sleepUntil(start.Add(time.Duration(i) * time.Second / 25_000))
		}
		begun := time.Now()
		client := netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)})
		s.ask(tb, client, "a@"+strings.Replace(name, "#", strconv.Itoa(i), 1), new(any), func(code uint16) {
			if code == 451 {
				s.good.Add(1)
			}
			if time.Since(begun) < s.limit {
				s.early.Add(1)
			}
			s.ends.Add(1)
		})
	}
}

// other checks a sender of a domain that nobody has asked for before.
func (s *senders) other(tb testing.TB) {
	s.fresh++
	done := make(chan uint16, 1)
	s.ask(tb, netip.MustParseAddr("192.0.2.1"), fmt.Sprintf("a@d%d.busy.example", s.fresh), new(any), func(code uint16) { done <- code })
	if code := <-done; code != 0 {
		tb.Fatalf("%d for a sender that may", code)
	}
}

// over waits until all checks of silent domains have ended, each with temperror and none before its time.
func (s *senders) over(tb testing.TB, n int) {
	tb.Helper()
	for end := time.Now().Add(s.limit + time.Minute); s.ends.Load() < int64(n); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("%d of %d checks have ended", s.ends.Load(), n)
		}
	}
	if s.good.Load() != int64(n) || s.early.Load() != 0 {
		tb.Fatalf("%d checks: %d ended in temperror, %d of all before their time", n, s.good.Load(), s.early.Load())
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

const below = "d#.silent.example" // a name for each, and one domain for all

func TestFiftyThousandChecksOfASilentDomainEndInTemperrorAndOthersAreAnswered(t *testing.T) {
	n := 50_000
	if testing.Short() {
		n = 5_000
	}
	s := newSenders(t, n, 5*time.Second)
	before := heap()
	s.tarpit(t, n, below)
	for range 100 {
		s.other(t)
	}
	if ended := s.ends.Load(); ended > 0 {
		t.Logf("%d checks had ended when 100 others were over", ended) // on a machine that is too slow
	}
	if each := (heap() - before) / uint64(n); each > 8<<10 {
		t.Errorf("%d bytes for each check that waits", each)
	}
	s.over(t, n)
}

// BenchmarkChecksBesideASilentDomain checks senders at a fixed rate, 1,000 a second whatever becomes of them, each of a domain that was never asked for, while
// others wait for a domain whose servers are silent: all by policy and resolver as cmd/fastedge has them, a DNS server in this process, no SMTP. The time is from
// MAIL to the call with its reply. Those that wait have all been asked for when it begins, and at the end they must have ended in temperror, at their limit.
//
//	go test -run '^$' -bench ChecksBesideASilentDomain -benchtime 3000x ./bench
//
// That is 3 s for each. Asking for those that wait takes 2 s, so what is sent again for them at 0.9, 2.1 and 4.5 s falls into it. A figure is worth something
// beside that of waiting=0 in the same minute: bench/spf takes turns.
func BenchmarkChecksBesideASilentDomain(b *testing.B) {
	for _, c := range []struct {
		name    string
		waiting int
		domain  string
	}{
		{"waiting=0", 0, ""},
		{"waiting=50000", 50_000, below},
		{"waiting=50000-of-as-many", 50_000, "silent#.example"},
		{"waiting=50000-of-one", 50_000, "silent.example"},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newSenders(b, c.waiting, 10*time.Second)
			before := heap()
			s.tarpit(b, c.waiting, c.domain)
			var each float64
			if c.waiting > 0 {
				each = float64(heap()-before) / float64(c.waiting)
			}
			const every = time.Millisecond
			type sample struct{ late, took time.Duration }
			samples := make(chan sample, 1<<16)
			asked := 0
			// A goroutine's timer may be a millisecond late when the process is idle; a thread's is not.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			b.ReportAllocs()
			began := time.Now()
			for b.Loop() {
				due := began.Add(time.Duration(asked) * every)
				sleepUntil(due)
				asked++
				at := time.Now()
				s.fresh++
				s.ask(b, netip.AddrFrom4([4]byte{192, 0, 2, byte(s.fresh)}), fmt.Sprintf("a@d%d.busy.example", s.fresh), new(any), func(code uint16) {
					took := time.Since(at)
					if code != 0 {
						took = time.Hour
					}
					samples <- sample{at.Sub(due), took}
				})
			}
			var took, late []time.Duration
			for range asked {
				one := <-samples
				took, late = append(took, one.took), append(late, one.late)
			}
			slices.Sort(took)
			slices.Sort(late)
			if took[len(took)-1] == time.Hour {
				b.Fatal("a sender that may was refused")
			}
			micro := func(all []time.Duration, share int) float64 {
				return float64(all[len(all)*share/100].Nanoseconds()) / 1e3
			}
			b.ReportMetric(micro(took, 50), "p50-µs")
			b.ReportMetric(micro(took, 99), "p99-µs")
			b.ReportMetric(micro(late, 99), "late-p99-µs")
			if c.waiting > 0 {
				b.ReportMetric(each, "B/waiting")
			}
			if s.ends.Load() > 0 {
				b.Fatal("the waiting ones ended before the end of the measurement")
			}
			s.over(b, c.waiting)
			if st := s.resolver.Stats(); st.OverZone+st.OverWaiting+st.OverInflight+st.Jostled > 0 {
				b.Fatalf("not all have waited: %+v", st)
			}
		})
	}
}

// sleepUntil blocks the thread.
func sleepUntil(t time.Time) {
	if d := time.Until(t); d > 0 {
		ts := syscall.NsecToTimespec(int64(d))
		syscall.Nanosleep(&ts, nil)
	}
}

// BenchmarkCachedSender is what checking a sender with five cached records costs the event loop for each message: the check at MAIL, and the header
// fields at the end of data.
func BenchmarkCachedSender(b *testing.B) {
	s := newSenders(b, 0, 10*time.Second)
	results := policy.NewResults(policy.ResultsOptions{Hostname: "mx.example.net", SPF: s.spf})
	env := &envelope.Envelope{ReversePath: []byte("sales@customer.example")}
	var slot any
	one := func(at policy.Stage) *policy.Event {
		e := &policy.Event{Stage: at, Client: policy.Client{Addr: netip.MustParseAddrPort("192.0.2.1:25"), Helo: []byte("mail.customer.example")},
			Envelope: env, Path: smtpcodec.Path{Mailbox: env.ReversePath}, Slot: &slot}
		if err := results.Validate(e); err != nil {
			b.Fatal(err)
		}
		return e
	}
	if p := one(policy.AtMail).Pended(); p != nil { // into the cache
		done := make(chan bool)
		p.Arm(func(*policy.Pending) { close(done) })
		<-done
	}
	mail := policy.Event{Stage: policy.AtMail, Client: policy.Client{Addr: netip.MustParseAddrPort("192.0.2.1:25"), Helo: []byte("mail.customer.example")},
		Envelope: env, Path: smtpcodec.Path{Mailbox: env.ReversePath}, Slot: &slot}
	end := mail
	end.Stage = policy.AtMessage
	for _, stages := range []struct {
		name string
		at   []*policy.Event
	}{{"mail", []*policy.Event{&mail}}, {"mail+message", []*policy.Event{&mail, &end}}} {
		b.Run(stages.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, e := range stages.at {
					if e.Fields = e.Fields[:0]; results.Validate(e) != nil || e.Reply.Code != 0 || e.Pended() != nil {
						b.Fatal("not a pass from the cache")
					}
				}
			}
		})
	}
	if !bytes.Contains(end.Fields, []byte("spf=pass smtp.mailfrom=sales@customer.example\r\n")) {
		b.Fatalf("%s", end.Fields)
	}
}
