package loop

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
)

// certificate is a self-made one for mx.example.net, made once.
var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	t := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.example.net"}, DNSNames: []string{"mx.example.net"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), EmailAddresses: []string{"client@example.org"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, &t, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

func serverTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{certificate()}, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true}
}

func clientTLS() *tls.Config {
	return &tls.Config{ServerName: "mx.example.net", InsecureSkipVerify: true}
}

// withSTARTTLS is for start.
func withSTARTTLS(o *Options, so *session.Options) {
	o.Listeners[0].TLS, so.TLS = serverTLS(), session.TLSOpportunistic
}

func withImplicitTLS(o *Options, _ *session.Options) {
	o.Listeners[0].TLS, o.Listeners[0].Implicit = serverTLS(), true
}

func both(changes ...func(*Options, *session.Options)) func(*Options, *session.Options) {
	return func(o *Options, so *session.Options) {
		for _, f := range changes {
			f(o, so)
		}
	}
}

// starttls goes over to TLS.
func (c *client) starttls(cfg *tls.Config) {
	c.t.Helper()
	c.send("STARTTLS\r\n")
	c.expect("220 2.7.0")
	c.secure(cfg)
}

func (c *client) secure(cfg *tls.Config) *tls.Conn {
	c.t.Helper()
	tc := tls.Client(c.Conn, cfg)
	if err := tc.Handshake(); err != nil {
		c.t.Fatalf("handshake: %v", err)
	}
	c.Conn, c.r = tc, bufio.NewReader(tc)
	return tc
}

// dialTLS is for implicit TLS.
func (s *server) dialTLS() *client {
	s.t.Helper()
	c := s.dial()
	c.secure(clientTLS())
	c.expect("220 mx.example.net")
	return c
}

func (s *server) event(e Event) int64 { return s.meter.events[e].Load() }

func TestAMessageAfterSTARTTLS(t *testing.T) {
	var lines lockedBuffer
	s := start(t, both(withSTARTTLS, func(o *Options, _ *session.Options) { o.Lines = &lines }))
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n")
	if r := c.expect("250"); !strings.Contains(r, "STARTTLS") {
		t.Fatalf("not offered: %q", r)
	}
	c.starttls(clientTLS())
	c.send("MAIL FROM:<a@example.org>\r\n")
	c.expect("503") // RFC 3207 §4.2: the EHLO in clear is forgotten
	c.send("EHLO c\r\n")
	if r := c.expect("250"); strings.Contains(r, "STARTTLS") {
		t.Fatalf("offered twice: %q", r)
	}
	c.send("STARTTLS\r\n")
	c.expect("503")
	c.send(group + "x\r\n.\r\nQUIT\r\n")
	c.expect("250", "250", "354", "250 2.6.0", "221")
	c.expectEOF() // close_notify: without it this is an unexpected end
	if m := s.backend.all()[0]; m.protocol != "ESMTPS" || string(m.data) != "x\r\n" {
		t.Errorf("%+v", m)
	}
	waitFor(t, "the end", func() bool { return s.Connections() == 0 })
	s.Drain(t.Context())
	waitFor(t, "the message's line", func() bool { return strings.Contains(lines.String(), "TLS1.3") })
}

func TestImplicitTLSGreetsInsideIt(t *testing.T) {
	s := start(t, withImplicitTLS)
	c := s.dialTLS()
	c.send("EHLO c\r\n" + group + "x\r\n.\r\n")
	c.expect("250", "250", "250", "354", "250 2.6.0")
	c.send("STARTTLS\r\n")
	c.expect("502") // not offered here at all
	if m := s.backend.all()[0]; m.protocol != "ESMTPS" {
		t.Errorf("%+v", m)
	}
}

// RFC 3207 §4.2, CVE-2011-0411.
func TestBytesInClearBehindSTARTTLSAreThrownAwayAndCounted(t *testing.T) {
	s := start(t, withSTARTTLS)
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n")
	c.expect("250")
	c.send("STARTTLS\r\nEHLO injected\r\n" + group)
	c.expect("220 2.7.0")
	c.secure(clientTLS())
	c.send("NOOP\r\nRCPT TO:<b@example.net>\r\nQUIT\r\n")
	c.expect("250 2.0.0", "503", "221")
	c.expectEOF()
	if s.event(EventPlainDiscarded) != 1 {
		t.Errorf("counted %d times", s.event(EventPlainDiscarded))
	}
	// A well-behaved client is not counted.
	c = s.dial()
	c.expect("220")
	c.send("EHLO c\r\n")
	c.expect("250")
	c.starttls(clientTLS())
	if s.event(EventPlainDiscarded) != 1 {
		t.Error("a client that waits was counted")
	}
}

func TestGarbageInsteadOfAClientHelloEndsTheConnection(t *testing.T) {
	for name, change := range map[string]func(*Options, *session.Options){"STARTTLS": withSTARTTLS, "implicit": withImplicitTLS} {
		t.Run(name, func(t *testing.T) {
			s := start(t, change)
			c := s.dial()
			if name == "STARTTLS" {
				c.expect("220")
				c.send("EHLO c\r\nSTARTTLS\r\n")
				c.expect("250", "220")
			}
			c.send("EHLO garbage\r\nMAIL FROM:<a@example.org>\r\n")
			io.Copy(io.Discard, c.r)
			c.Close()
			waitFor(t, "the end", func() bool { return s.Connections() == 0 })
			if n := strings.Count(s.log.String(), "TLS handshake: "); s.event(EventHandshakeFailed) != 1 || n != 1 {
				t.Errorf("counted %d times, logged %d times:\n%s", s.event(EventHandshakeFailed), n, s.log)
			}
			waitFor(t, "its place", func() bool { return s.handshakes.Load() == 0 })
		})
	}
}

func TestHandshakesOverTheLimitAreRefusedByName(t *testing.T) {
	s := start(t, both(withSTARTTLS, func(o *Options, so *session.Options) {
		implicit := Listener{Name: "submissions", Network: "tcp", Address: "127.0.0.1:0", TLS: serverTLS(), Implicit: true}
		o.MaxHandshakes, o.Listeners = 1, append(o.Listeners, implicit)
	}))
	stalled, late := s.dial(), s.dial()
	for _, c := range []*client{stalled, late} {
		c.expect("220")
		c.send("EHLO c\r\n")
		c.expect("250")
	}
	stalled.send("STARTTLS\r\n")
	stalled.expect("220")
	late.send("STARTTLS\r\nNOOP\r\n")
	if r := late.expect("454 4.7.0"); !strings.Contains(r, "limits.handshakes") {
		t.Errorf("%q does not name the limit", r)
	}
	late.expect("250 2.0.0") // the session goes on in clear
	c := dial(t, "tcp", s.Addr(1))
	c.expectEOF()
	if s.event(EventHandshakeLimit) != 2 {
		t.Errorf("counted %d times, want 2", s.event(EventHandshakeLimit))
	}
	stalled.Close()
	waitFor(t, "a place", func() bool { return s.handshakes.Load() == 0 })
	late.starttls(clientTLS())
}

func TestStalledHandshakesKeepNobodyOutAndEnd(t *testing.T) {
	const stalled = 500
	s := start(t, both(withImplicitTLS, func(o *Options, _ *session.Options) { o.HandshakeTimeout = time.Hour }))
	hello := clientHello(t)
	for i := range stalled {
		c := s.dial()
		if i%2 == 0 {
			c.send(string(hello[:1+i%len(hello)])) // some in the middle of it, some all of it
		}
	}
	waitFor(t, "the handshakes", func() bool { return s.handshakes.Load() == stalled })
	for i := range *s.loops.Load() {
		s.on(i, func(*loop) {}) // which has begun the last one: it is counted before its goroutine is there
	}
	before := runtime.NumGoroutine()
	c := s.dialTLS()
	c.send("EHLO c\r\n" + group + "x\r\n.\r\nQUIT\r\n")
	c.expect("250", "250", "250", "354", "250 2.6.0", "221")
	s.pass(time.Hour)
	waitFor(t, "the stalled ones to end", func() bool { return s.Connections() == 0 && s.handshakes.Load() == 0 })
	if s.event(EventHandshakeFailed) != stalled {
		t.Errorf("%d counted, want %d", s.event(EventHandshakeFailed), stalled)
	}
	waitFor(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before-stalled })
}

// clientHello records what a client sends first.
func clientHello(t *testing.T) []byte {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go tls.Client(theirs, clientTLS()).Handshake()
	b := make([]byte, 16<<10)
	n, err := ours.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestAClientThatLeavesDuringTheHandshakeLeavesNothing(t *testing.T) {
	s := start(t, withImplicitTLS)
	hello := clientHello(t)
	for _, n := range []int{0, 1, 100, len(hello)} {
		c := s.dial()
		c.send(string(hello[:n]))
		if n == len(hello) {
			c.r.Peek(1) // our answer
		}
		c.Close()
	}
	waitFor(t, "all to be counted", func() bool { return s.event(EventHandshakeFailed) == 4 }) // some were not accepted yet
	waitFor(t, "the end", func() bool { return s.Connections() == 0 && s.handshakes.Load() == 0 })
	if n := strings.Count(s.log.String(), "TLS handshake: "); n != 3 {
		t.Errorf("%d lines, want 3: who sends nothing is a health check\n%s", n, s.log)
	}
}

// pieces hands on what is written n bytes at a time.
type pieces struct {
	net.Conn
	n int
}

func (p pieces) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); sent += p.n {
		if _, err := p.Conn.Write(b[sent:min(sent+p.n, len(b))]); err != nil {
			return sent, err
		}
	}
	return len(b), nil
}

func TestRecordsInPiecesOfAnySizeGiveTheSameDialogue(t *testing.T) {
	s := start(t, withSTARTTLS)
	body := strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef\r\n", 6000) // 300 KB
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, n := range []int{1, 7, 1400, 65536} {
			t.Run(fmt.Sprintf("%s, %d bytes", tls.VersionName(version), n), func(t *testing.T) {
				c := s.dial()
				c.t = t
				c.Conn.(*net.TCPConn).SetNoDelay(n > 7) // the kernel may join what is too small
				c.SetDeadline(time.Now().Add(patience))
				c.expect("220")
				c.send("EHLO c\r\n")
				c.expect("250")
				c.Conn = pieces{c.Conn, n}
				cfg := clientTLS()
				cfg.MinVersion, cfg.MaxVersion = version, version
				c.starttls(cfg)
				text := body
				if n == 1 {
					text = body[:20_000]
				}
				before := len(s.backend.all())
				go io.WriteString(c.Conn, "EHLO c\r\n"+group+text+".\r\n"+strings.Repeat("NOOP\r\n", 50)+group+"y\r\n.\r\nQUIT\r\n")
				c.expect("250", "250", "250", "354", "250 2.6.0")
				for range 50 {
					c.expect("250 2.0.0")
				}
				c.expect("250", "250", "354", "250 2.6.0", "221")
				c.expectEOF()
				got := s.backend.all()[before:]
				if len(got) != 2 || string(got[0].data) != text || string(got[1].data) != "y\r\n" {
					t.Errorf("%d messages, the first of %d bytes", len(got), len(got[0].data))
				}
			})
		}
	}
	if n := s.event(EventPanic) + s.event(EventTLSError); n != 0 {
		t.Errorf("%d panics and errors:\n%s", n, s.log)
	}
}

func TestTheClientsCloseNotifyEndsASessionButNotItsMessage(t *testing.T) {
	s := start(t, withImplicitTLS)
	c := s.dialTLS()
	c.Conn.(*tls.Conn).CloseWrite()
	c.expectEOF()
	waitFor(t, "the end", func() bool { return s.Connections() == 0 })

	hold := s.hold()
	c = s.dialTLS()
	c.send("EHLO c\r\n" + group + "x\r\n.\r\n")
	c.Conn.(*tls.Conn).CloseWrite()
	c.expect("250", "250", "250", "354")
	hold <- struct{}{}
	c.expect("250 2.6.0")
	c.expectEOF()
}

func TestABrokenRecordEndsTheConnectionAndIsCounted(t *testing.T) {
	s := start(t, withImplicitTLS)
	c := s.dial()
	raw := c.Conn
	c.secure(clientTLS())
	c.expect("220")
	c.send("EHLO c\r\nMAIL FROM:<a@example.org>\r\n")
	c.expect("250", "250")
	raw.Write([]byte("\x17\x03\x03\x00\x20 these are 32 bytes of nothing...."))
	if _, err := io.ReadAll(c.r); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
		t.Errorf("the client was told %v", err)
	}
	waitFor(t, "the end", func() bool { return s.Connections() == 0 })
	if s.event(EventTLSError) != 1 || !strings.Contains(s.log.String(), "bad record MAC") {
		t.Errorf("counted %d times:\n%s", s.event(EventTLSError), s.log)
	}
}

func TestDeadlinesHoldInsideTLS(t *testing.T) {
	s := start(t, both(withImplicitTLS, func(_ *Options, so *session.Options) { so.CommandTimeout = 150 * time.Millisecond }))
	c := s.dialTLS()
	c.expect("421 4.4.2")
	c.expectEOF()
}

func TestAFloodBehindASuspendedSessionIsBoundedInsideTLS(t *testing.T) {
	s := start(t, both(withImplicitTLS, func(o *Options, so *session.Options) { so.MaxJunk = 1 << 30 }))
	s.hold()
	c := s.dialTLS()
	c.send("EHLO c\r\n" + group + "x\r\n.\r\n")
	c.expect("250", "250", "250", "354")
	const most = 64 << 20
	flood := bytes.Repeat([]byte(longNOOP), 16)
	wrote := make(chan int)
	stop := make(chan struct{})
	go func() { // a deadline would break the client's TLS, so it goes on once it can
		sent := 0
		for sent < most {
			select {
			case <-stop:
				wrote <- sent
				return
			default:
			}
			n, err := c.Conn.Write(flood)
			if sent += n; err != nil {
				break
			}
		}
		wrote <- sent
	}()
	waitFor(t, "the pause", func() bool { return s.event(EventPaused) > 0 })
	select {
	case n := <-wrote:
		t.Fatalf("%d bytes taken behind a suspended session", n)
	case <-time.After(300 * time.Millisecond):
	}
	close(stop)
	s.release()
	c.expect("250 2.6.0")
	go func() { c.Conn.Write([]byte("QUIT\r\n")) }()
	replies := 0
	for !strings.HasPrefix(c.reply(), "221") {
		replies++
	}
	if sent := <-wrote; replies != sent/len(longNOOP) {
		t.Errorf("%d replies to %d bytes", replies, sent)
	}
}

func TestAClientThatNeverReadsIsClosedInsideTLS(t *testing.T) {
	s := start(t, both(withImplicitTLS, func(o *Options, so *session.Options) {
		o.UnreadTimeout, so.MaxJunk = 200*time.Millisecond, 1<<30
	}))
	c := s.dialTLS()
	flood := bytes.Repeat([]byte("HELP\r\n"), 10<<10)
	for {
		if _, err := c.Conn.Write(flood); err != nil {
			break
		}
	}
	waitFor(t, "the slow reader to be closed", func() bool { return s.event(EventSlowReader) == 1 && s.Connections() == 0 })
}

func TestASlowReaderInsideTLSIsServed(t *testing.T) {
	s := start(t, both(withImplicitTLS, func(o *Options, so *session.Options) {
		o.UnreadTimeout, so.MaxJunk = patience, 1<<30
	}))
	c := s.dial()
	c.Conn.(*net.TCPConn).SetReadBuffer(32 << 10)
	c.secure(clientTLS())
	c.expect("220")
	const commands = 10_000
	go io.WriteString(c.Conn, strings.Repeat("EHLO "+strings.Repeat("c", 60)+"\r\n", commands)+"QUIT\r\n")
	waitFor(t, "the replies to pile up", func() bool { return s.event(EventPaused) > 0 })
	for range commands {
		c.expect("250")
	}
	c.expect("221")
	c.expectEOF()
}

func TestDrainEndsHandshakesAndTellsSessionsInsideTLS(t *testing.T) {
	s := start(t, both(withSTARTTLS, func(o *Options, so *session.Options) {
		implicit := Listener{Name: "submissions", Network: "tcp", Address: "127.0.0.1:0", TLS: serverTLS(), Implicit: true}
		o.Listeners = append(o.Listeners, implicit)
	}))
	secured, upgrading := s.dial(), s.dial()
	for _, c := range []*client{secured, upgrading} {
		c.expect("220")
		c.send("EHLO c\r\n")
		c.expect("250")
	}
	secured.starttls(clientTLS())
	secured.send("EHLO c\r\n")
	secured.expect("250")
	waitFor(t, "the handshake's place", func() bool { return s.handshakes.Load() == 0 })
	upgrading.send("STARTTLS\r\n")
	upgrading.expect("220")
	arriving := dial(t, "tcp", s.Addr(1))
	waitFor(t, "the handshakes", func() bool { return s.handshakes.Load() == 2 })
	drained := make(chan error)
	go func() { drained <- s.Drain(t.Context()) }()
	secured.expect("421 4.3.2")
	secured.expectEOF()
	secured.Close()
	arriving.expectEOF()
	upgrading.secure(clientTLS())
	upgrading.expect("421 4.3.2")
	upgrading.expectEOF()
	upgrading.Close()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
}

func TestClientCertificateAndServerNameReachValidators(t *testing.T) {
	seen := make(chan policy.TLS, 1)
	v := validator{stages: policy.On(policy.AtTLS), f: func(e *policy.Event) error { seen <- *e.Client.TLS; return nil }}
	s := start(t, both(withSTARTTLS, func(o *Options, so *session.Options) {
		o.Listeners[0].TLS.ClientAuth = tls.RequestClientCert
		o.Listeners[0].TLSFacts = func(cs tls.ConnectionState) *policy.TLS {
			f := plainFacts(cs)
			f.Certificate = &policy.Certificate{CommonName: cs.PeerCertificates[0].Subject.CommonName}
			return f
		}
		so.Validators = []policy.Validator{v}
	}))
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n")
	c.expect("250")
	cfg := clientTLS()
	cfg.Certificates = []tls.Certificate{certificate()}
	c.starttls(cfg)
	c.send("NOOP\r\n")
	c.expect("250")
	if f := <-seen; f.Version != "TLS1.3" || f.ServerName != "mx.example.net" || f.Certificate == nil || f.Certificate.CommonName != "mx.example.net" {
		t.Errorf("%+v", f)
	}
}

func TestAPanicInAHandshakeCostsOneConnection(t *testing.T) {
	s := start(t, both(withImplicitTLS, func(o *Options, _ *session.Options) {
		o.Listeners[0].TLSFacts = func(cs tls.ConnectionState) *policy.TLS {
			if cs.ServerName == "panic.example.net" {
				panic("our bug")
			}
			return plainFacts(cs)
		}
	}))
	c := s.dial()
	cfg := clientTLS()
	cfg.ServerName = "panic.example.net"
	tc := tls.Client(c.Conn, cfg)
	tc.Handshake()
	io.Copy(io.Discard, tc)
	s.dialTLS()
	if s.event(EventPanic) != 1 || !strings.Contains(s.log.String(), "our bug") {
		t.Errorf("counted %d times:\n%s", s.event(EventPanic), s.log)
	}
	waitFor(t, "the handshake's place", func() bool { return s.handshakes.Load() == 0 })
}

func TestTheCertificateThatWasServedIsRemembered(t *testing.T) {
	cert := certificate()
	s := start(t, both(withImplicitTLS, func(o *Options, _ *session.Options) {
		o.Loops = 1
		o.Listeners[0].TLS.Certificates = nil
		o.Listeners[0].TLS.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if a := h.Conn.RemoteAddr().String(); !strings.HasPrefix(a, "127.0.0.1:") {
				return nil, errors.New("the client is " + a)
			}
			h.Conn.(interface{ ServesCertificate(*x509.Certificate) }).ServesCertificate(cert.Leaf)
			return &cert, nil
		}
	}))
	s.dialTLS()
	s.onLoop(func(lp *loop) {
		lp.wheel.each(func(c *conn) {
			if c.sec.leaf != cert.Leaf {
				t.Error("forgotten")
			}
		})
	})
}

// The clients of the memory test live in another process, so that the server's heap is all that is measured.
const idleClients = "FASTEDGE_TEST_IDLE_CLIENTS"

func TestMain(m *testing.M) {
	if addr := os.Getenv(idleClients); addr != "" {
		holdIdleClients(addr)
		return
	}
	os.Exit(m.Run())
}

const idleConnections = 500

func holdIdleClients(addr string) {
	var open []net.Conn
	for range idleConnections {
		c, err := tls.Dial("tcp", addr, clientTLS())
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Fprint(c, "EHLO c\r\n")
		io.ReadAtLeast(c, make([]byte, 1<<10), 100)
		open = append(open, c)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	for _, c := range open {
		c.Close()
	}
}

func TestAnIdleTLSConnectionTakesAtMost12KiBOfHeap(t *testing.T) {
	s := start(t, withImplicitTLS)
	c := s.dialTLS() // what a loop has once is there already
	c.send("EHLO c\r\n")
	c.expect("250")
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), idleClients+"="+s.Addr(0))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the clients said %q, %v", line, err)
	}
	if n := s.Connections(); n != 1+idleConnections {
		t.Fatalf("%d connections", n)
	}
	each := (heap() - before) / idleConnections
	t.Logf("%d bytes for each of %d idle TLS connections", each, idleConnections)
	if each > 12<<10 {
		t.Errorf("%d bytes for each idle TLS connection", each)
	}
}
