package loop

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
)

// behindProxy makes loopback a listed proxy.
func behindProxy(o *Options, _ *session.Options) {
	o.Listeners[0].Proxies = netip.Addr.IsLoopback
}

const proxyLine = "PROXY TCP4 192.0.2.9 198.51.100.1 4444 25\r\n"

// dataOf sends a message and gives what reached the backend.
func (s *server) messageBy(c *client) message {
	s.t.Helper()
	c.send("EHLO c\r\n" + group + "x\r\n.\r\n")
	c.expect("250", "250", "250", "354", "250 2.6.0")
	all := s.backend.all()
	return all[len(all)-1]
}

func TestBehindAProxyTheClientsAddressCounts(t *testing.T) {
	seen := make(chan policy.Client, 1)
	v := validator{policy.On(policy.AtConnect), func(e *policy.Event) error { seen <- e.Client; return nil }}
	s := start(t, both(behindProxy, func(o *Options, so *session.Options) {
		o.Loops = 1
		o.Listeners[0].MayRelay = func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.9") }
		so.Validators = []policy.Validator{v}
	}))
	for _, header := range []string{
		proxyLine,
		v2(0x21, 0x11, inet4),
		v2(0x21, 0x11, inet4, tlv(0x20, "\x01\x00\x00\x00\x00"+string(tlv(0x21, "TLSv1.3")))),
	} {
		c := s.dial()
		c.send(header)
		c.expect("220")
		if m := s.messageBy(c); m.client != netip.MustParseAddrPort("192.0.2.9:4444") {
			t.Errorf("client is %v", m.client)
		}
		facts := <-seen
		if local := netip.MustParseAddrPort(c.LocalAddr().String()); facts.ProxyAddr != local || !facts.MayRelay {
			t.Errorf("proxy is %v, want %v; may relay %v", facts.ProxyAddr, local, facts.MayRelay)
		}
		if proxied := strings.Contains(header, "TLSv1.3"); proxied != (facts.TLS != nil) || proxied && !facts.TLS.Proxied {
			t.Errorf("TLS of the client: %+v", facts.TLS)
		}
	}
}

func TestNobodyIsGreetedBeforeThePROXYHeader(t *testing.T) {
	s := start(t, behindProxy)
	c := s.dial()
	c.send(proxyLine[:len(proxyLine)-1])
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if b, err := c.r.Peek(1); err == nil {
		t.Fatalf("%q before the header's end", b)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	c.send("\n")
	c.expect("220")
}

func TestAPROXYHeaderByteByByteWithCommandsOrAClientHelloBehindIt(t *testing.T) {
	s := start(t, behindProxy)
	for _, header := range []string{proxyLine, v2(0x21, 0x21, inet6, tlv(0x04, strings.Repeat("x", 300))), "PROXY UNKNOWN\r\n", v2(0x20, 0)} {
		c := s.dial()
		c.Conn = pieces{c.Conn, 1}
		c.send(header + "EHLO c\r\n")
		c.expect("220", "250")
		c = s.dial()
		c.send(header + "EHLO c\r\n" + group)
		c.expect("220", "250", "250", "250", "354")
	}
	s = start(t, both(behindProxy, withImplicitTLS))
	for _, n := range []int{1, 1 << 20} {
		c := s.dial()
		c.Conn = &prefixing{pieces{c.Conn, n}, proxyLine}
		c.secure(clientTLS())
		c.expect("220")
		if m := s.messageBy(c); m.client != netip.MustParseAddrPort("192.0.2.9:4444") || m.protocol != "ESMTPS" {
			t.Errorf("%+v", m)
		}
	}
}

// prefixing sends something in front of the first write, in the same segment.
type prefixing struct {
	net.Conn
	first string
}

func (p *prefixing) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(append([]byte(p.first), b...))
	n = max(n-len(p.first), 0)
	p.first = ""
	return n, err
}

func TestBadBeginningsAreClosedWithoutAByteAndDiagnosedOnce(t *testing.T) {
	for _, tc := range []struct {
		name, sent, cause string
		event             Event
		late              bool // the time for a header passes
	}{
		{"no header", "EHLO c\r\n", "must send one", EventProxyMissing, false},
		{"TLS instead", "\x16\x03\x01\x02\x00\x01", "must send one", EventProxyMissing, false},
		{"silence", "", "must send one", EventProxyMissing, true},
		{"half a header", "PROXY TCP4 192.0.2", "not complete in time", EventProxyBad, true},
		{"bad version", v2(0x11, 0x11, inet4), "unknown version or command", EventProxyBad, false},
		{"bad family", v2(0x21, 0x41, inet4), "address family", EventProxyBad, false},
		{"UNIX family", v2(0x21, 0x31, make([]byte, 216)), "address family", EventProxyBad, false},
		{"bad port", "PROXY TCP4 192.0.2.9 198.51.100.1 70000 25\r\n", "invalid port", EventProxyBad, false},
		{"too long", "PROXY " + strings.Repeat("x", 200), "too long", EventProxyBad, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, both(behindProxy, func(o *Options, _ *session.Options) { o.ProxyTimeout = time.Hour }))
			c := s.dial()
			peer := c.LocalAddr().String()
			c.send(tc.sent)
			if tc.late {
				waitFor(t, "what was sent", func() bool { return s.Connections() == 1 && s.rawBuffered() == len(tc.sent) })
				s.pass(time.Hour)
			}
			if b, _ := c.r.ReadByte(); b != 0 {
				t.Errorf("%q came back", b)
			}
			waitFor(t, "the end", func() bool { return s.Connections() == 0 })
			log := s.log.String()
			if n := strings.Count(log, "\n"); s.event(tc.event) != 1 || n != 1 {
				t.Errorf("counted %d times, %d lines", s.event(tc.event), n)
			}
			for _, want := range []string{"listener=mx", peer, tc.cause} {
				if !strings.Contains(log, want) {
					t.Errorf("%q does not tell %q", log, want)
				}
			}
		})
	}
}

// rawBuffered counts the bytes that have come in on all connections and wait.
func (s *server) rawBuffered() (n int) {
	for i := range *s.loops.Load() {
		s.on(i, func(lp *loop) { lp.wheel.each(func(c *conn) { n += c.rawBuffered() }) })
	}
	return n
}

func TestAProxyThatLeavesInTheMiddleOfItsHeaderIsNoHealthCheck(t *testing.T) {
	s := start(t, behindProxy)
	c := s.dial()
	c.send(proxyLine[:20])
	waitFor(t, "the bytes", func() bool { return s.rawBuffered() == 20 })
	c.Close()
	waitFor(t, "the end", func() bool { return s.Connections() == 0 })
	if s.event(EventProxyBad) != 1 || s.event(EventProxyHealthCheck) != 0 || !strings.Contains(s.log.String(), "left in the middle") {
		t.Errorf("counted %d and %d times:\n%s", s.event(EventProxyBad), s.event(EventProxyHealthCheck), s.log)
	}
}

func TestAnUnlistedPeerThatSendsAPROXYHeaderIsCutOff(t *testing.T) {
	for name, change := range map[string]func(*Options, *session.Options){
		"clear": nil, "implicit": withImplicitTLS,
		"greeting held back": func(o *Options, _ *session.Options) { o.Listeners[0].GreetDelay = time.Hour },
	} {
		for _, header := range []string{proxyLine + "EHLO c\r\n" + group, v2(0x21, 0x11, inet4), "PROXY UNKNOWN\r\n"} {
			s := start(t, change)
			c := s.dial()
			if name == "clear" {
				c.expect("220")
			}
			pieces{c.Conn, 5}.Write([]byte(header)) // which may be cut off in the midst of it
			if b, _ := c.r.ReadByte(); b != 0 {
				t.Errorf("%s: %q came back", name, b)
			}
			waitFor(t, "the end", func() bool { return s.Connections() == 0 })
			if s.event(EventProxyUnlisted) != 1 || strings.Count(s.log.String(), "not listed in proxy_protocol_from") != 1 {
				t.Errorf("%s: counted %d times:\n%s", name, s.event(EventProxyUnlisted), s.log)
			}
		}
	}
	// Only as the first thing: later it is one more unknown command.
	s := start(t, nil)
	c := s.dial()
	c.expect("220")
	c.send("NOOP\r\n" + proxyLine + "NOOP\r\n")
	c.expect("250", "500", "250")
	// Words that begin alike are commands.
	c = s.dial()
	c.expect("220")
	c.send("PRO")
	c.send("XIES\r\nNOOP\r\n")
	c.expect("500", "250")
}

func TestHealthChecksOfProxiesAreCountedAndNotLogged(t *testing.T) {
	s := start(t, behindProxy)
	s.dial().Close()
	c := s.dial()
	c.send(v2(0x20, 0))
	c.expect("220")
	c.Close()
	waitFor(t, "both to be counted", func() bool { return s.event(EventProxyHealthCheck) == 2 })
	if s.log.String() != "" {
		t.Errorf("logged: %s", s.log)
	}
	// With LOCAL the proxy itself may speak, by its own address.
	c = s.dial()
	c.send(v2(0x20, 0))
	c.expect("220")
	if m := s.messageBy(c); m.client != netip.MustParseAddrPort(c.LocalAddr().String()) {
		t.Errorf("client is %v", m.client)
	}
	c.send("QUIT\r\n")
	c.expect("221")
	c.expectEOF()
	c = s.dial()
	c.send(v2(0x20, 0) + "QUIT\r\n")
	c.expect("220", "221")
	c.expectEOF()
	waitFor(t, "the end", func() bool { return s.Connections() == 0 })
	if s.event(EventProxyHealthCheck) != 2 {
		t.Error("mail was counted as a health check")
	}
}

// A proxy that does not know its client must not lend it the right to relay that its own address has.
func TestAnUnknownClientOfAProxyMayNotRelay(t *testing.T) {
	relay := make(chan bool, 1)
	v := validator{policy.On(policy.AtConnect), func(e *policy.Event) error { relay <- e.Client.MayRelay; return nil }}
	s := start(t, both(behindProxy, func(o *Options, so *session.Options) {
		o.Listeners[0].MayRelay = netip.Addr.IsLoopback
		so.Validators = []policy.Validator{v}
	}))
	for header, want := range map[string]bool{"PROXY UNKNOWN\r\n": false, v2(0x21, 0): false, v2(0x20, 0): true, proxyLine: false} {
		c := s.dial()
		c.send(header)
		c.expect("220")
		if got := <-relay; got != want {
			t.Errorf("%q: may relay %v", header, got)
		}
	}
}

func TestTheGateLimitsClientsNotTheirProxy(t *testing.T) {
	s := start(t, both(behindProxy, func(o *Options, _ *session.Options) {
		o.Listeners[0].Gate = policy.NewGate(policy.GateOptions{PerAddress: 1})
	}))
	first, other := s.dial(), s.dial()
	first.send(proxyLine)
	first.expect("220")
	other.send("PROXY TCP4 192.0.2.10 198.51.100.1 4444 25\r\n")
	other.expect("220")
	for range 3 { // for whom a proxy knows no address
		c := s.dial()
		c.send("PROXY UNKNOWN\r\n")
		c.expect("220")
	}
	second := s.dial()
	second.send(proxyLine)
	if r := second.expect("421"); !strings.Contains(r, "limits.connections_per_ip") {
		t.Errorf("%q does not name the limit", r)
	}
	second.expectEOF()
	first.Close()
	waitFor(t, "a place", func() bool {
		c := s.dial()
		c.send(proxyLine)
		return strings.HasPrefix(c.reply(), "220")
	})
}

func TestTheGateLimitsConnectionsAndTheirPlacesComeBack(t *testing.T) {
	s := start(t, func(o *Options, _ *session.Options) {
		o.Listeners[0].Gate = policy.NewGate(policy.GateOptions{PerAddress: 2})
	})
	a, b := s.dial(), s.dial()
	a.expect("220")
	b.expect("220")
	for range 3 {
		c := s.dial()
		if r := c.expect("421"); !strings.Contains(r, "limits.connections_per_ip") {
			t.Errorf("%q does not name the limit", r)
		}
		c.expectEOF()
	}
	if n := s.meter.results[ConnPerAddress].Load(); n != 3 {
		t.Errorf("%d counted, want 3", n)
	}
	b.Close()
	waitFor(t, "the end", func() bool { return s.Connections() == 1 })
	s.dial().expect("220")
}

func TestEarlyTalkersAreCountedAndServed(t *testing.T) {
	s := start(t, func(o *Options, _ *session.Options) { o.Listeners[0].GreetDelay = time.Hour })
	early, patient := s.dial(), s.dial()
	early.send("EHLO c\r\n")
	waitFor(t, "both, and what one has sent", func() bool { return s.Connections() == 2 && s.rawBuffered() == len("EHLO c\r\n") })
	s.pass(time.Hour)
	early.expect("220", "250")
	patient.expect("220")
	patient.send("EHLO c\r\n")
	patient.expect("250")
	if s.event(EventEarlyTalker) != 1 {
		t.Errorf("%d counted, want 1", s.event(EventEarlyTalker))
	}
}

func TestEarlyTalkersAreRefusedWhereThatIsWanted(t *testing.T) {
	for name, change := range map[string]func(*Options, *session.Options){"clear": nil, "implicit": withImplicitTLS} {
		s := start(t, func(o *Options, so *session.Options) {
			if change != nil {
				change(o, so)
			}
			o.Listeners[0].GreetDelay, o.Listeners[0].RefuseEarly = time.Hour, true
		})
		c := s.dial()
		if change != nil {
			c.secure(clientTLS())
		}
		c.send("EHLO c\r\n")
		c.expect("421 4.7.0 You spoke before the greeting")
		c.expectEOF()
		if s.event(EventEarlyTalker) != 1 {
			t.Errorf("%s: %d counted, want 1", name, s.event(EventEarlyTalker))
		}
	}
}

func TestWhoMayRelayIsGreetedAtOnce(t *testing.T) {
	s := start(t, func(o *Options, _ *session.Options) {
		o.Listeners[0].GreetDelay, o.Listeners[0].MayRelay = time.Hour, netip.Addr.IsLoopback
	})
	s.dial().expect("220")
}

func TestDrainEndsConnectionsThatHaveNoSessionYet(t *testing.T) {
	s := start(t, both(behindProxy, func(o *Options, so *session.Options) {
		o.Listeners[0].GreetDelay, o.ProxyTimeout = time.Hour, time.Hour
	}))
	silent, waiting := s.dial(), s.dial()
	waiting.send(proxyLine)
	waitFor(t, "both", func() bool { return s.Connections() == 2 && s.meter.results[ConnAccepted].Load() == 1 })
	drained := make(chan error)
	go func() { drained <- s.Drain(t.Context()) }()
	silent.expectEOF()
	waiting.expect("421 4.3.2")
	waiting.expectEOF()
	waiting.Close()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
}
