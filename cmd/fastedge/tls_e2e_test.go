package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// tlsConfig is a server with STARTTLS and the pairs of files.
func tlsConfig(listen, keys string, pairs ...pair) string {
	var list []string
	for _, p := range pairs {
		list = append(list, p.toml())
	}
	return edgeConfig("tls = \"opportunistic\"\n"+listen, "[tls]\ncertificates = ["+strings.Join(list, ", ")+"]\n"+keys)
}

// serialOf makes a handshake and gives the number of the server's certificate; the name is asked for.
func serialOf(t *testing.T, addr, name string) int64 {
	t.Helper()
	o := trusting()
	o.ServerName = name
	c, err := helloTLS(addr, o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.tlsState().PeerCertificates[0].SerialNumber.Int64()
}

func TestACertificateThatIsReplacedIsUsedAndABrokenOneIsNot(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	first := a.issue("server", false, "mx.example.net")
	recipients := filepath.Join(t.TempDir(), "recipients")
	replaceFile(t, recipients, []byte("user1@example.net\n"))
	p := serve(t, t.TempDir(), tlsConfig(strangers, fmt.Sprintf("reload_every = \"1s\"\n%srecipients = %q\n", ourDomain, recipients), first))
	addr := p.addr[0]
	if got := serialOf(t, addr, "mx.example.net"); got != first.serial {
		t.Fatalf("certificate %d, want %d", got, first.serial)
	}
	// A session that is open is not disturbed.
	open, err := helloTLS(addr, trusting())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	second := a.issue("server", false, "mx.example.net")
	p.wait("the new certificate", func() bool { return serialOf(t, addr, "mx.example.net") == second.serial })
	open.must(t, "NOOP\r\n", "250")

	before := p.lines("the old certificates stay in force", second.cert) // the server may have looked between the key and the certificate
	replaceFile(t, second.cert, []byte("-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n"))
	p.wait("word of the broken certificate", func() bool { return p.lines("ERROR", "the old certificates stay in force", second.cert) > before })
	// The file of recipients is looked at together with the certificates, so it tells when that has happened again.
	for i := 2; i <= 3; i++ {
		user := fmt.Sprintf("user%d@example.net", i)
		replaceFile(t, recipients, []byte(user+"\n"))
		p.wait("the next look at the files", func() bool { return exists(t, addr, user) })
	}
	if n := p.lines("the old certificates stay in force", second.cert) - before; n != 1 {
		t.Errorf("%d log lines about the broken certificate, want one:\n%s", n, p.log)
	}
	if got := serialOf(t, addr, "mx.example.net"); got != second.serial {
		t.Errorf("certificate %d is served beside a broken file, want the last good one, %d", got, second.serial)
	}
	third := a.issue("server", false, "mx.example.net")
	p.wait("the mended certificate", func() bool { return serialOf(t, addr, "mx.example.net") == third.serial })
}

func TestHUPReadsCertificatesAtOnceAndSaysWhatIsWrongWithThem(t *testing.T) {
	a := newAuthority(t)
	first := a.issue("server", false, "mx.example.net")
	p := serve(t, t.TempDir(), tlsConfig("", "reload_every = \"1h\"\n", first))
	second := a.issue("server", false, "mx.example.net")
	p.hup()
	p.wait("the new certificate", func() bool { return serialOf(t, p.addr[0], "") == second.serial })
	replaceFile(t, second.key, []byte("no key\n"))
	for i := 1; i <= 2; i++ { // who asks again wants to hear it again
		p.hup()
		p.wait("a line about the broken key", func() bool { return p.lines("the old certificates stay in force", second.key) == i })
	}
	if got := serialOf(t, p.addr[0], ""); got != second.serial {
		t.Errorf("certificate %d, want the last good one, %d", got, second.serial)
	}
	if _, err := helloTLS(p.addr[0], trusting()); err != nil {
		t.Error(err)
	}
}

func TestTheClientsNameChoosesTheCertificateAndItsAlgorithmsTheKey(t *testing.T) {
	a := newAuthority(t)
	ecdsa, rsa := a.issue("ecdsa", false, "mx.example.net"), a.issue("rsa", true, "mx.example.net")
	other := a.issue("other", false, "mx.example.org", "*.wild.example.org")
	p := serve(t, t.TempDir(), tlsConfig("", "", ecdsa, rsa, other))
	for name, want := range map[string]int64{
		"mx.example.net": ecdsa.serial, "mx.example.org": other.serial, "MX.Example.ORG": other.serial, "a.wild.example.org": other.serial,
		"a.b.wild.example.org": ecdsa.serial, "nowhere.example": ecdsa.serial, "": ecdsa.serial,
	} {
		if got := serialOf(t, p.addr[0], name); got != want {
			t.Errorf("%q: certificate %d, want %d", name, got, want)
		}
	}
	o := trusting()
	o.ServerName, o.MaxVersion = "mx.example.net", tls.VersionTLS12
	o.CipherSuites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	c, err := helloTLS(p.addr[0], o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.tlsState().PeerCertificates[0].SerialNumber.Int64(); got != rsa.serial {
		t.Errorf("a client that knows only RSA gets certificate %d, want %d", got, rsa.serial)
	}
	// A client that verifies finds nothing wrong.
	if c, err = helloTLS(p.addr[0], &tls.Config{RootCAs: a.pool(), ServerName: "mx.example.org"}); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

// offered are all cipher suites that crypto/tls can ask for up to TLS 1.2: RSA key exchange, CBC, RC4 and 3DES among them.
func offered() (all []*tls.CipherSuite) {
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if slices.Contains(s.SupportedVersions, tls.VersionTLS12) {
			all = append(all, s)
		}
	}
	return all
}

func TestOnlyTLS12And13WithForwardSecrecyAndAuthenticatedEncryptionAreAccepted(t *testing.T) {
	a := newAuthority(t)
	p := serve(t, t.TempDir(), tlsConfig("", "", a.issue("ecdsa", false, "mx.example.net"), a.issue("rsa", true, "mx.example.net")))
	handshake := func(o *tls.Config) error {
		c, err := helloTLS(p.addr[0], o)
		if err == nil {
			c.Close()
		}
		return err
	}
	for version, want := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		o := trusting()
		o.MinVersion, o.MaxVersion = version, version
		if err := handshake(o); (err == nil) != want {
			t.Errorf("%s: %v, accepted should be %v", tls.VersionName(version), err, want)
		}
	}
	good := 0
	for _, s := range offered() {
		want := strings.HasPrefix(s.Name, "TLS_ECDHE_") && (strings.Contains(s.Name, "_GCM_") || strings.Contains(s.Name, "_CHACHA20_POLY1305"))
		if want {
			good++
		}
		o := trusting()
		o.MaxVersion, o.CipherSuites = tls.VersionTLS12, []uint16{s.ID}
		if err := handshake(o); (err == nil) != want {
			t.Errorf("%s: %v, accepted should be %v", s.Name, err, want)
		}
	}
	if good != 6 {
		t.Errorf("%d good suites were tried, want 6", good)
	}
	// Refused handshakes are told in one line each, and nobody else notices.
	if p.lines("closed", "TLS handshake") == 0 {
		t.Errorf("no word about refused handshakes:\n%s", p.log)
	}
	if _, err := connect(t, p.addr[0]).deliver("Subject: in clear\r\n\r\n"); err != nil {
		t.Error(err)
	}
}

func TestTLS12IsRefusedWhereTheLeastVersionIs13(t *testing.T) {
	a := newAuthority(t)
	p := serve(t, t.TempDir(), tlsConfig("", "min_version = \"1.3\"\n", a.issue("server", false, "mx.example.net")))
	o := trusting()
	o.MaxVersion = tls.VersionTLS12
	if c, err := helloTLS(p.addr[0], o); err == nil {
		c.Close()
		t.Error("TLS 1.2 was accepted")
	}
	if c, err := helloTLS(p.addr[0], trusting()); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

func TestSessionsAreResumedOnlyWithSessionTickets(t *testing.T) {
	a := newAuthority(t)
	server := a.issue("server", false, "mx.example.net")
	for _, tickets := range []bool{false, true} {
		p := serve(t, t.TempDir(), tlsConfig("", fmt.Sprintf("session_tickets = %v\n", tickets), server))
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			o := &tls.Config{RootCAs: a.pool(), ServerName: "mx.example.net", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
			resumed := false
			for range 2 {
				c, err := helloTLS(p.addr[0], o)
				if err != nil {
					t.Fatal(err)
				}
				c.must(t, "QUIT\r\n", "221") // a ticket of TLS 1.3 comes with or before it
				resumed = c.tlsState().DidResume
				c.Close()
			}
			if resumed != tickets {
				t.Errorf("%s with session_tickets = %v: resumed is %v", tls.VersionName(version), tickets, resumed)
			}
		}
	}
}

func TestCommandsBehindSTARTTLSInTheSameSegmentAreNeverExecuted(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("tls = \"required\"\n", ""))
	c := connect(t, p.addr[0])
	c.must(t, "MAIL FROM:<a@example.org>\r\n", "530 5.7.0")
	c.must(t, "STARTTLS\r\nEHLO injected.example\r\nMAIL FROM:<injected@example.org>\r\nRCPT TO:<b@example.net>\r\n", "220 2.7.0")
	if n := c.r.Buffered(); n != 0 {
		t.Fatalf("%d bytes behind the reply to STARTTLS", n)
	}
	if err := c.secure(trusting()); err != nil {
		t.Fatal(err)
	}
	// Nothing of it is known within TLS: one reply for each command, and the session is at its beginning.
	c.must(t, "NOOP\r\nMAIL FROM:<a@example.org>\r\n", "250 2.0.0", "503 5.5.1")
	c.must(t, "EHLO test.example\r\nRCPT TO:<b@example.net>\r\n", "250-", "503 5.5.1")
	if id, err := c.deliver("Subject: mine\r\n\r\n"); err != nil {
		t.Error(err)
	} else if field := p.received(id); !strings.Contains(field, "from test.example") {
		t.Errorf("the injected name is in %s", field)
	}
}

func TestATransactionAndALoginBeforeSTARTTLSAreForgotten(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	addUser(t, users, "ann", "pencil")
	p := serve(t, t.TempDir(), edgeConfig("tls = \"opportunistic\"\nauth = [\"PLAIN\"]\nauth_required = true\n", fmt.Sprintf("[auth]\nusers = %q\n", users)))
	c := connect(t, p.addr[0])
	c.must(t, "MAIL FROM:<a@example.org>\r\n", "530 5.7.0")
	c.must(t, "AUTH PLAIN "+plain("ann", "pencil")+"\r\n", "235")
	c.must(t, "MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\n", "250", "250")
	c.must(t, "STARTTLS\r\n", "220")
	if err := c.secure(trusting()); err != nil {
		t.Fatal(err)
	}
	c.must(t, "DATA\r\n", "503")
	if reply := c.must(t, "EHLO test.example\r\n", "250-"); strings.Contains(reply, "STARTTLS") || !strings.Contains(reply, "AUTH PLAIN") {
		t.Errorf("offered within TLS: %q", reply)
	}
	c.must(t, "DATA\r\nMAIL FROM:<a@example.org>\r\n", "503", "530 5.7.0")
	c.must(t, "AUTH PLAIN "+plain("ann", "pencil")+"\r\nMAIL FROM:<a@example.org> AUTH=<>\r\n", "235", "250")
}

func TestOnLoopbackTLSComesWithoutFilesAndItIsSaid(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("tls = \"opportunistic\"\n", ""))
	p.waitLine("WARN", "self-made")
	c, err := helloTLS(p.addr[0], trusting())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	leaf := c.tlsState().PeerCertificates[0]
	if err := leaf.VerifyHostname("mx.example.net"); err != nil {
		t.Error(err)
	}
	if _, err := c.deliver("Subject: self-made\r\n\r\n"); err != nil {
		t.Error(err)
	}
	// Nobody vouches for it.
	var unknown x509.UnknownAuthorityError
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: x509.NewCertPool()}); !errors.As(err, &unknown) {
		t.Errorf("verified: %v", err)
	}
	public := strings.Replace(edgeConfig("tls = \"opportunistic\"\n", ourDomain), "127.0.0.1:0", "0.0.0.0:28426", 1)
	checkFails(t, public, "listen[0].tls", "needs tls.certificates", "only on loopback a self-made certificate is used")
}

func TestClientCertificatesAreAskedForOrRequired(t *testing.T) {
	a, elsewhere := newAuthority(t), newAuthority(t)
	server := a.issue("server", false, "mx.example.net")
	ours, theirs := a.issue("client", false, "client.example.net"), elsewhere.issue("client", false, "client.example.net")
	for _, mode := range []string{"request", "require"} {
		p := serve(t, t.TempDir(), tlsConfig(fmt.Sprintf("client_certificates = %q\n", mode), fmt.Sprintf(`client_ca = %q
[[rule]]
at = "mail"
when = 'tls_certificate != "client.example.net"'
reply = "550 5.7.1 Known clients only"
`, a.file), server))
		for name, test := range map[string]struct {
			certificates []tls.Certificate
			handshake    bool // with require; request takes whatever comes
			mail         string
		}{
			"ours":    {[]tls.Certificate{ours.load(t)}, true, "250"},
			"another": {[]tls.Certificate{theirs.load(t)}, false, "550 5.7.1 Known clients only"},
			"none":    {nil, false, "550 5.7.1 Known clients only"},
		} {
			o := trusting()
			o.Certificates = test.certificates
			c, err := helloTLS(p.addr[0], o)
			if want := test.handshake || mode == "request"; (err == nil) != want {
				t.Errorf("%s, %s: %v, accepted should be %v", mode, name, err, want)
			}
			if err == nil {
				c.must(t, "MAIL FROM:<a@example.org>\r\n", test.mail)
				c.Close()
			}
		}
	}
}

func TestASilentHandshakeEndsInTime(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("tls = \"implicit\"\n", "[timeouts]\nhandshake = \"200ms\"\n"))
	c, err := dialSMTP("tcp", p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ended(); err != nil {
		t.Error(err)
	}
	// Half a record is told; who says nothing is a health check.
	try := 0
	for ; p.lines("closed", "TLS handshake") == 0; try++ {
		if c, err = dialSMTP("tcp", p.addr[0]); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "\x16\x03\x01\x02")
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the connection stays open")
		}
		if try > 20 { // on a busy machine it may come too late to be read, and the line a little later
			t.Fatalf("no line about it:\n%s", p.log)
		}
	}
	if n := p.lines("TLS handshake"); n > try { // one line each
		t.Errorf("%d log lines about %d connections:\n%s", n, try, p.log)
	}
}

// secureLoad is load by clients that say STARTTLS and log in, on a new connection for every few messages.
func secureLoad(addr, user, password string, clients int) *load {
	l := &load{acked: map[string][32]byte{}, stop: make(chan struct{})}
	for i := range clients {
		l.wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				c, err := helloTLS(addr, trusting())
				if err != nil {
					return
				}
				if _, err := c.talk("AUTH PLAIN "+plain(user, password)+"\r\n", "235"); err == nil {
					l.some(c, r, 20)
				}
				c.Close()
			}
		})
	}
	return l
}

// some delivers up to n messages.
func (l *load) some(c *smtpClient, r *rand.Rand, n int) {
	for range n {
		data := message(r)
		l.mu.Lock()
		l.sent++
		l.mu.Unlock()
		id, err := c.deliver(data)
		if err != nil {
			return
		}
		l.mu.Lock()
		l.acked[id] = sha256.Sum256([]byte(data))
		l.mu.Unlock()
	}
}

func TestKill9UnderLoadWithTLSAndAUTHLosesNothingAcknowledged(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	addUser(t, users, "ann", "pencil")
	config := edgeConfig("tls = \"required\"\nauth = [\"PLAIN\"]\nauth_required = true\n", fmt.Sprintf("[auth]\nusers = %q\n", users))
	dir := t.TempDir()
	acked := map[string][32]byte{}
	sent := 0
	for i := range 2 {
		p := serve(t, dir, config)
		l := secureLoad(p.addr[0], "ann", "pencil", 10)
		want := 100 + 150*i
		p.wait("some load", func() bool { return l.acknowledged() > want })
		p.kill()
		close(l.stop)
		l.wg.Wait()
		maps.Copy(acked, l.acked)
		sent += l.sent
		if p.lines(`"proto":"ESMTPSA"`, `"user":"ann"`) == 0 {
			t.Errorf("no message came over TLS and with a login:\n%s", p.log)
		}
	}
	there := stored(t, dir)
	checkNothingLost(t, acked, there)
	t.Logf("2 kills: %d sent, %d acknowledged, %d in the spool", sent, len(acked), len(there))
	if len(there) > sent {
		t.Errorf("%d messages sent, %d in the spool", sent, len(there))
	}
}

func TestABrokenOffTLSSessionIsForgotten(t *testing.T) {
	admin := freeAddress(t)
	p := serve(t, t.TempDir(), edgeConfig("tls = \"opportunistic\"\n", "[admin]\nhttp = \""+admin+"\"\n"))
	for range 20 {
		c, err := helloTLS(p.addr[0], trusting())
		if err != nil {
			t.Fatal(err)
		}
		c.must(t, oneGroup, "250", "250", "354")
		raw := c.Conn.(*tls.Conn).NetConn().(*net.TCPConn)
		raw.SetLinger(0) // a reset, without close_notify
		raw.Close()
	}
	p.wait("all to be gone", func() bool { return metric(t, admin, "fastedge_connections_open") == 0 })
	if n := p.lines("accepted"); n != 0 {
		t.Errorf("%d messages without an end were taken", n)
	}
}

func TestTERMTellsClientsWithinTLSAndWaitsForTheirTransactions(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("tls = \"opportunistic\"\n", "[timeouts]\nhandshake = \"500ms\"\n"))
	secured := func() *smtpClient {
		t.Helper()
		for try := 1; ; try++ {
			c, err := helloTLS(p.addr[0], trusting())
			if err == nil {
				t.Cleanup(func() { c.Close() })
				return c
			}
			if try > 10 { // on a busy machine a handshake may take too long
				t.Fatal(err)
			}
		}
	}
	idle, busy := secured(), secured()
	busy.must(t, oneGroup, "250", "250", "354")
	// A handshake that has stopped half way, and one that has not begun, hold the end up until timeouts.handshake at the most.
	stalled := connect(t, p.addr[0])
	stalled.must(t, "STARTTLS\r\n", "220")
	half := connect(t, p.addr[0])
	half.must(t, "STARTTLS\r\n", "220")
	io.WriteString(half, "\x16\x03\x01\x02")

	p.cmd.Process.Signal(os.Interrupt)
	idle.must(t, "", "421 4.3.2")
	if err := idle.ended(); err != nil {
		t.Error(err)
	}
	idle.Close()
	reply := busy.must(t, "Subject: drained\r\n\r\n.\r\n", "250 2.6.0")
	busy.must(t, "", "421 4.3.2")
	busy.Close()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("no end:\n%s", p.log)
	}
	if p.code != 0 {
		t.Errorf("exit code %d:\n%s", p.code, p.log)
	}
	if there := stored(t, p.dir); len(there) != 1 || there[queuedAs.FindStringSubmatch(reply)[1]] == nil {
		t.Errorf("%d messages after the drain", len(there))
	}
}
