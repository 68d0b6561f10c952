package bench

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/resolver"
	"github.com/fastedge/fastedge/smtpcodec"
	"github.com/fastedge/fastedge/spf"
)

// senders is what a server has to check senders, with its own DNS server: nobody there answers for silent.example, and every other name has a record
// that lists 192.0.2.0/24.
type senders struct {
	resolver *resolver.Resolver
	spf      *policy.SPF
	limit    time.Duration
	ends     atomic.Int64 // checks of silent.example that are over,
	good     atomic.Int64 // of these, those with temperror
	early    atomic.Int64 // and those that were over before their time
	fresh    int          // other domains asked for
}

// chain are the records of customer.example, of which the last lists the clients. Each fits into one string.
var chain = map[string]string{
	"\x08customer\x07example\x00":          "v=spf1 redirect=_spf.provider.example",
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
		Rules: map[spf.Code]policy.SPFRule{spf.TempError: {Code: 451}, spf.Fail: {Code: 550}}})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func answerAllButSilent(conn net.PacketConn) {
	silent := []byte("\x06silent\x07example\x00")
	for buf := make([]byte, 2048); ; {
		n, from, err := conn.ReadFrom(buf[:1500])
		if err != nil {
			return
		}
		end := bytes.IndexByte(buf[12:max(n, 12)], 0) + 12 + 5 // of the question
		if end > n || bytes.HasSuffix(bytes.ToLower(buf[12:end-4]), silent) {
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

// tarpit has n checks wait, each by a client of its own, and of a domain of its own unless all are of one.
func (s *senders) tarpit(tb testing.TB, n int, one bool) {
	for i := range n {
		begun := time.Now()
		client := netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)})
		sender := "a@silent.example"
		if !one {
			sender = fmt.Sprintf("a@d%d.silent.example", i)
		}
		s.ask(tb, client, sender, new(any), func(code uint16) {
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

// over waits until all checks of silent.example have ended, each with temperror and none before its time.
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

func TestFiftyThousandChecksOfASilentDomainEndInTemperrorAndOthersAreAnswered(t *testing.T) {
	n := 50_000
	if testing.Short() {
		n = 5_000
	}
	s := newSenders(t, n, 5*time.Second)
	before := heap()
	s.tarpit(t, n, false)
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

// BenchmarkChecksBesideASilentDomain checks one sender after the other, each of a domain that was never asked for, while others wait for a domain whose
// servers are silent: all by policy and resolver as cmd/fastedge has them, a DNS server in this process, no SMTP. At the end all that waited must
// have ended in temperror, at their limit.
func BenchmarkChecksBesideASilentDomain(b *testing.B) {
	for _, c := range []struct {
		name    string
		waiting int
		one     bool
	}{{"waiting=0", 0, false}, {"waiting=50000", 50_000, false}, {"waiting=50000-of-one", 50_000, true}} {
		b.Run(c.name, func(b *testing.B) {
			waiting := c.waiting
			s := newSenders(b, waiting, 8*time.Second)
			before := heap()
			s.tarpit(b, waiting, c.one)
			var each float64
			if waiting > 0 {
				each = float64(heap()-before) / float64(waiting)
			}
			var took []time.Duration
			b.ReportAllocs()
			for b.Loop() {
				begun := time.Now()
				s.other(b)
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			if waiting > 0 {
				b.ReportMetric(each, "B/waiting")
			}
			if s.ends.Load() > 0 {
				b.Fatal("the waiting ones ended before the end of the measurement")
			}
			s.over(b, waiting)
			if st := s.resolver.Stats(); st.OverZone+st.OverWaiting+st.OverInflight+st.Jostled > 0 {
				b.Fatalf("not all have waited: %+v", st)
			}
		})
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
					if e.Fields = nil; results.Validate(e) != nil || e.Reply.Code != 0 || e.Pended() != nil {
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
