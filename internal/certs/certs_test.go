package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// RSA keys take long to make.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func ecdsaKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issued is a certificate and what else belongs to it.
type issued struct {
	leaf *x509.Certificate
	key  crypto.Signer
}

func (c issued) tls() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{c.leaf.Raw}, PrivateKey: c.key, Leaf: c.leaf}
}

func (c issued) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.leaf.Raw})
}

func (c issued) keyPEM(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

var serial atomic.Int64

// issue makes a certificate; by is nil for one that signs itself.
func issue(t testing.TB, key crypto.Signer, by *issued, change func(*x509.Certificate), names ...string) issued {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)),
		Subject:      pkix.Name{CommonName: fmt.Sprintf("certificate %d", serial.Load())},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		DNSNames:     names,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.leaf, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return issued{leaf, key}
}

func authority(t testing.TB) *issued {
	ca := issue(t, ecdsaKey(t), nil, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	})
	return &ca
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// put writes a pair of files.
func put(t testing.TB, p Pair, c issued) {
	t.Helper()
	write(t, p.Cert, c.certPEM())
	write(t, p.Key, c.keyPEM(t))
}

// files gives the options for pairs with these certificates, in a directory of their own.
func files(t testing.TB, list ...issued) Options {
	t.Helper()
	dir, o := t.TempDir(), Options{}
	for i, c := range list {
		p := Pair{filepath.Join(dir, fmt.Sprint(i, ".pem")), filepath.Join(dir, fmt.Sprint(i, "-key.pem"))}
		put(t, p, c)
		o.Pairs = append(o.Pairs, p)
	}
	return o
}

func mustLoad(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// socketPair gives two ends that are connected. net.Pipe would not do: it has no buffer, and a side that sends an alert while the other
// still talks waits for ever.
func socketPair() (a, b net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		ends[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return ends[0], ends[1], nil
}

// shake makes a handshake and lets one byte go from server to client, so that session tickets arrive, too.
func shake(server, client *tls.Config) (atServer, atClient tls.ConnectionState, err error) {
	here, there, err := socketPair()
	if err != nil {
		return atServer, atClient, err
	}
	defer there.Close()
	done := make(chan error, 1)
	var s *tls.Conn
	go func() {
		defer here.Close()
		s = tls.Server(here, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
	}()
	c := tls.Client(there, client)
	_, clientErr := io.ReadFull(c, make([]byte, 1))
	there.Close()
	if err := errors.Join(<-done, clientErr); err != nil {
		return atServer, atClient, err
	}
	return s.ConnectionState(), c.ConnectionState(), nil
}

// anyServer is a client that takes any certificate.
func anyServer(name string) *tls.Config {
	return &tls.Config{ServerName: name, InsecureSkipVerify: true}
}

// onlyRSA makes a client one that can't do ECDSA. TLS 1.3 clients name their signatures elsewhere, and Go's can't be told which.
func onlyRSA(c *tls.Config) *tls.Config {
	c.MaxVersion = tls.VersionTLS12
	c.CipherSuites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	return c
}

func TestCertificateIsChosenByName(t *testing.T) {
	list := []issued{
		issue(t, ecdsaKey(t), nil, nil, "mx.example.net", "MX2.Example.NET"),
		issue(t, ecdsaKey(t), nil, nil, "*.example.org", "example.org"),
		issue(t, ecdsaKey(t), nil, nil, "mail.example.org"),
		issue(t, ecdsaKey(t), nil, func(c *x509.Certificate) { c.Subject.CommonName = "old.example.com" }),
	}
	server := mustLoad(t, files(t, list...)).Config(Off)
	for name, want := range map[string]int{
		"":                   0,
		"mx.example.net":     0,
		"mx2.example.net":    0,
		"MX2.EXAMPLE.NET":    0,
		"example.org":        1,
		"a.example.org":      1,
		"A.Example.Org":      1,
		"mail.example.org":   2, // exact before wildcard
		"a.mail.example.org": 0, // a wildcard is one label
		"old.example.com":    3,
		"unknown.example":    0,
		"org":                0,
		"127.0.0.1":          0, // clients don't send addresses
	} {
		_, got, err := shake(server, anyServer(name))
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if !got.PeerCertificates[0].Equal(list[want].leaf) {
			t.Errorf("%q: got %v, want %v", name, got.PeerCertificates[0].DNSNames, list[want].leaf.DNSNames)
		}
	}
}

func TestClientsGetTheKindOfKeyThatTheyCanDo(t *testing.T) {
	rsaBoth := issue(t, rsaKey(), nil, nil, "mx.example.net", "example.net")
	ecdsaBoth := issue(t, ecdsaKey(t), nil, nil, "example.net", "mx.example.net")
	ecdsaOther := issue(t, ecdsaKey(t), nil, nil, "other.example")
	rsaWild := issue(t, rsaKey(), nil, nil, "*.example")
	s := mustLoad(t, files(t, rsaBoth, ecdsaBoth, ecdsaOther, rsaWild))
	server := s.Config(Off)
	for _, c := range []struct {
		name   string
		client *tls.Config
		want   issued
	}{
		{"both, by name", anyServer("mx.example.net"), ecdsaBoth},
		{"both, no name", anyServer(""), ecdsaBoth},
		{"both, unknown name", anyServer("nowhere.test"), ecdsaBoth},
		{"RSA, by name", onlyRSA(anyServer("mx.example.net")), rsaBoth},
		{"RSA, no name", onlyRSA(anyServer("")), rsaBoth},
		{"both, other name", anyServer("other.example"), ecdsaOther},
		{"RSA, other name", onlyRSA(anyServer("other.example")), rsaWild},
		{"both, wildcard", anyServer("third.example"), rsaWild},
	} {
		_, got, err := shake(server, c.client)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !got.PeerCertificates[0].Equal(c.want.leaf) {
			t.Errorf("%s: got %v with %v", c.name, got.PeerCertificates[0].DNSNames, got.PeerCertificates[0].PublicKeyAlgorithm)
		}
	}
	// A name whose only certificate the client can't do: any other is better than none.
	s = mustLoad(t, files(t, ecdsaOther, rsaBoth))
	if _, got, err := shake(s.Config(Off), onlyRSA(anyServer("other.example"))); err != nil || !got.PeerCertificates[0].Equal(rsaBoth.leaf) {
		t.Errorf("the other certificate was not used: %v", err)
	}
	if _, _, err := shake(mustLoad(t, files(t, ecdsaOther, ecdsaBoth)).Config(Off), onlyRSA(anyServer(""))); err == nil {
		t.Error("a client that can do nothing got in")
	}
}

// witness is a connection that wants to know what it shows.
type witness struct {
	net.Conn
	leaf *x509.Certificate
}

func (w *witness) ServesCertificate(leaf *x509.Certificate) { w.leaf = leaf }

func TestConnectionIsToldWhichCertificateItShows(t *testing.T) {
	a, b := issue(t, ecdsaKey(t), nil, nil, "a.test"), issue(t, ecdsaKey(t), nil, nil, "b.test")
	server := mustLoad(t, files(t, a, b)).Config(Off)
	for name, want := range map[string]issued{"a.test": a, "b.test": b} {
		here, there, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		w := &witness{Conn: here}
		done := make(chan error, 1)
		go func() { done <- tls.Client(there, anyServer(name)).Handshake() }()
		if err := errors.Join(tls.Server(w, server).Handshake(), <-done); err != nil || w.leaf == nil || !w.leaf.Equal(want.leaf) {
			t.Errorf("%s: %v", name, err)
		}
		here.Close()
		there.Close()
	}
}

func TestVersionsAndSuites(t *testing.T) {
	o := files(t, issue(t, ecdsaKey(t), nil, nil, "a.test"), issue(t, rsaKey(), nil, nil, "b.test"))
	between := func(low, high uint16, suites ...uint16) *tls.Config {
		c := anyServer("b.test")
		c.MinVersion, c.MaxVersion, c.CipherSuites = low, high, suites
		return c
	}
	for _, c := range []struct {
		name, min string
		client    *tls.Config
		fine      bool
	}{
		{"1.3", "1.2", between(tls.VersionTLS13, tls.VersionTLS13), true},
		{"1.2", "", between(tls.VersionTLS12, tls.VersionTLS12), true},
		{"1.1", "1.2", between(tls.VersionTLS10, tls.VersionTLS11), false},
		{"1.0", "1.2", between(tls.VersionTLS10, tls.VersionTLS10), false},
		{"1.2 where 1.3 is needed", "1.3", between(tls.VersionTLS12, tls.VersionTLS12), false},
		{"1.3 where 1.3 is needed", "1.3", between(tls.VersionTLS12, tls.VersionTLS13), true},
		{"CBC", "1.2", between(tls.VersionTLS12, tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA), false},
		{"no forward secrecy", "1.2", between(tls.VersionTLS12, tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256), false},
	} {
		o.MinVersion = c.min
		if _, _, err := shake(mustLoad(t, o).Config(Off), c.client); (err == nil) != c.fine {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	o.MinVersion = "1.1"
	if _, err := Load(o); err == nil {
		t.Error("TLS 1.1 was taken")
	}
}

func TestSessionsAreResumedOnlyWithTickets(t *testing.T) {
	o := files(t, issue(t, ecdsaKey(t), nil, nil, "a.test"))
	for _, tickets := range []bool{false, true} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			o.SessionTickets = tickets
			s := mustLoad(t, o)
			server, client := s.Config(Off), anyServer("a.test")
			client.MaxVersion, client.ClientSessionCache = version, tls.NewLRUClientSessionCache(1)
			for i := range 3 {
				_, cs, err := shake(server, client)
				if err != nil || cs.DidResume != (tickets && i > 0) {
					t.Errorf("tickets %v, version %x, handshake %d: resumed %v, %v", tickets, version, i, cs.DidResume, err)
				}
				// A new certificate does not make tickets worthless.
				put(t, o.Pairs[0], issue(t, ecdsaKey(t), nil, nil, "a.test"))
				if changed, err := s.Reload(); !changed || err != nil {
					t.Fatal(changed, err)
				}
			}
			// A listener that requires certificates does not know the session.
			if _, _, err := shake(s.Config(Require), client); err == nil {
				t.Error("in without a certificate")
			}
		}
	}
}

func TestGoodPairsAreTakenAndBadOnesKeptOut(t *testing.T) {
	first, second := issue(t, ecdsaKey(t), nil, nil, "a.test"), issue(t, ecdsaKey(t), nil, nil, "b.test")
	o := files(t, first, second)
	pair := o.Pairs[0]
	s := mustLoad(t, o)
	server := s.Config(Off) // made once, as a listener does
	serves := func(want issued, name string) {
		t.Helper()
		if _, cs, err := shake(server, anyServer(name)); err != nil || !cs.PeerCertificates[0].Equal(want.leaf) {
			t.Errorf("%s: not the certificate that it was to be: %v", name, err)
		}
	}
	reload := func(change bool, trouble string) {
		t.Helper()
		changed, err := s.Reload()
		if changed != change || (err == nil) != (trouble == "") || err != nil && !strings.Contains(err.Error(), trouble) {
			t.Errorf("changed %v, want %v; %v, want %q", changed, change, err, trouble)
		}
	}
	reload(false, "")

	renewed := issue(t, ecdsaKey(t), nil, nil, "a.test")
	write(t, pair.Cert, renewed.certPEM()) // and not yet the key
	reload(false, "private key does not match")
	reload(false, "private key does not match")
	serves(first, "a.test")
	write(t, pair.Key, renewed.keyPEM(t))
	reload(true, "")
	serves(renewed, "a.test")

	for _, bad := range []struct {
		cert, key []byte
		trouble   string
	}{
		{nil, renewed.keyPEM(t), "no certificate in PEM form"},
		{[]byte("garbage"), renewed.keyPEM(t), "no certificate in PEM form"},
		{renewed.certPEM()[:200], renewed.keyPEM(t), "no certificate in PEM form"},
		{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), renewed.keyPEM(t), "x509: malformed"},
		{renewed.certPEM(), nil, "failed to find any PEM data"},
		{renewed.certPEM(), first.keyPEM(t), "does not match"},
		{renewed.certPEM(), pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), "encrypted"},
		{bytes.Repeat([]byte("\n"), maxFileBytes+1), renewed.keyPEM(t), "more than"},
	} {
		write(t, pair.Cert, bad.cert)
		write(t, pair.Key, bad.key)
		reload(false, bad.trouble)
		serves(renewed, "a.test")
	}
	put(t, pair, renewed)
	reload(false, "")
	for _, gone := range []string{pair.Key, pair.Cert} {
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
		reload(false, gone+": no such file")
	}
	// One bad pair does not keep the others from being renewed.
	second = issue(t, ecdsaKey(t), nil, nil, "b.test")
	put(t, o.Pairs[1], second)
	reload(true, pair.Cert+": no such file")
	serves(renewed, "a.test")
	serves(second, "b.test")
	// Back to what it was: nothing to do, and no trouble.
	put(t, pair, renewed)
	reload(false, "")
	// The same size and time stamps, as a restore from a backup may have them.
	info, err := os.Stat(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	last := issue(t, renewed.key, nil, nil, "a.test")
	write(t, pair.Cert, last.certPEM())
	if err := os.Chtimes(pair.Cert, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	reload(true, "")
	serves(last, "a.test")
}

func TestLoadTellsEachBadFileWithItsKey(t *testing.T) {
	good := issue(t, ecdsaKey(t), nil, nil, "a.test")
	o := files(t, good, good, good)
	write(t, o.Pairs[1].Key, issue(t, ecdsaKey(t), nil, nil, "b.test").keyPEM(t))
	if err := os.Remove(o.Pairs[2].Cert); err != nil {
		t.Fatal(err)
	}
	o.ClientCA = t.TempDir()
	_, err := Load(o)
	var keys []string
	for _, one := range Problems(err) {
		if !strings.HasPrefix(one.Error(), one.Path+": ") || one.Unwrap() == nil {
			t.Error(one)
		}
		keys = append(keys, one.Key())
	}
	if !slices.Equal(keys, []string{"tls.certificates[1].key", "tls.certificates[2].cert", "tls.client_ca"}) {
		t.Errorf("%v", keys)
	}
	if _, err := Load(Options{}); err == nil {
		t.Error("no certificate is no problem")
	}
}

func TestExpiredCertificateIsUsedWithAWarning(t *testing.T) {
	var log bytes.Buffer
	good := issue(t, ecdsaKey(t), nil, nil, "a.test")
	expired := issue(t, ecdsaKey(t), nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "b.test")
	early := issue(t, ecdsaKey(t), nil, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, "c.test")
	o := files(t, good, expired, early)
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := mustLoad(t, o)
	if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "has expired") || !strings.Contains(text, "not valid yet") ||
		strings.Contains(text, o.Pairs[0].Cert) {
		t.Errorf("%s", text)
	}
	if _, cs, err := shake(s.Config(Off), anyServer("b.test")); err != nil || !cs.PeerCertificates[0].Equal(expired.leaf) {
		t.Error(err)
	}
	if !s.Expiry().Equal(expired.leaf.NotAfter) {
		t.Errorf("%v", s.Expiry())
	}
}

func TestSelfMadeCertificate(t *testing.T) {
	now := time.Now().Truncate(time.Second) // certificates know no less
	s := mustLoad(t, Options{SelfMade: true, Hostname: "mx.example.net", Now: func() time.Time { return now }})
	server := s.Config(Off)
	roots := x509.NewCertPool()
	roots.AddCert(s.set.Load().all[0].Leaf)
	for _, name := range []string{"mx.example.net", "localhost", "127.0.0.1", "::1"} {
		if _, _, err := shake(server, &tls.Config{ServerName: name, RootCAs: roots}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := shake(server, &tls.Config{ServerName: "other.example", RootCAs: roots}); err == nil {
		t.Error("it is for any name")
	}
	if days := s.Expiry().Sub(now) / (24 * time.Hour); days != 90 {
		t.Errorf("valid for %d days", days)
	}
	now = now.Add(60 * 24 * time.Hour)
	if changed, err := s.Reload(); changed || err != nil {
		t.Errorf("after 60 days: %v, %v", changed, err)
	}
	now = now.Add(time.Second)
	if changed, err := s.Reload(); !changed || err != nil || s.Expiry().Sub(now) < 89*24*time.Hour {
		t.Errorf("after more: %v, %v", changed, err)
	}
}

func TestClientCertificates(t *testing.T) {
	ca, stranger := authority(t), authority(t)
	named := func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "client", Organization: []string{"Example, Inc."}}
		c.EmailAddresses = []string{"client@example.net"}
	}
	known := issue(t, ecdsaKey(t), ca, named, "client.example.net")
	foreign := issue(t, ecdsaKey(t), stranger, nil)
	expired := issue(t, ecdsaKey(t), ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	serverOnly := issue(t, ecdsaKey(t), ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	o := files(t, issue(t, ecdsaKey(t), nil, nil, "a.test"))
	o.ClientCA = filepath.Join(t.TempDir(), "ca.pem")
	write(t, o.ClientCA, ca.certPEM())
	s := mustLoad(t, o)
	o.ClientCA = ""
	system := mustLoad(t, o)

	for _, c := range []struct {
		name     string
		store    *Store
		mode     ClientCertificates
		give     *issued
		fine     bool
		given    bool
		verified bool
	}{
		{"off, known", s, Off, &known, true, false, false},
		{"request, none", s, Request, nil, true, false, false},
		{"request, known", s, Request, &known, true, true, true},
		{"request, foreign", s, Request, &foreign, true, true, false},
		{"request, expired", s, Request, &expired, true, true, false},
		{"request, not for clients", s, Request, &serverOnly, true, true, false},
		{"request, none of the system's", system, Request, &known, true, true, false},
		{"require, none", s, Require, nil, false, false, false},
		{"require, known", s, Require, &known, true, true, true},
		{"require, foreign", s, Require, &foreign, false, false, false},
		{"require, expired", s, Require, &expired, false, false, false},
		{"require, not for clients", s, Require, &serverOnly, false, false, false},
		{"require, none, any authority", system, Require, nil, false, false, false},
		{"require, known, any authority", system, Require, &known, true, true, false},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			client := anyServer("a.test")
			client.MaxVersion = version
			if c.give != nil {
				client.Certificates = []tls.Certificate{c.give.tls()}
			}
			cs, _, err := shake(c.store.Config(c.mode), client)
			if (err == nil) != c.fine {
				t.Errorf("%s, %x: %v", c.name, version, err)
				continue
			}
			f := c.store.Facts(cs)
			if (f.Client != nil) != c.given || c.given && f.Client.Verified != c.verified {
				t.Errorf("%s, %x: %+v", c.name, version, f.Client)
			}
		}
	}

	client := anyServer("a.test")
	client.Certificates = []tls.Certificate{known.tls()}
	cs, _, err := shake(s.Config(Request), client)
	if err != nil {
		t.Fatal(err)
	}
	f := s.Facts(cs)
	if f.Version != "TLS1.3" || !strings.HasPrefix(f.Cipher, "TLS_") || f.ServerName != "a.test" {
		t.Errorf("%+v", f)
	}
	if c := f.Client; c.CommonName != "client" || c.Subject != `CN=client,O=Example\, Inc.` || len(c.Fingerprint) != 64 ||
		!slices.Equal(c.Names, []string{"client.example.net", "client@example.net"}) {
		t.Errorf("%+v", c)
	}
	// Whom the authorities vouch for changes without a restart, for configurations that are in use, too.
	server := s.Config(Require)
	write(t, s.o.ClientCA, stranger.certPEM())
	if changed, err := s.Reload(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if _, _, err := shake(server, client); err == nil {
		t.Error("the old authority still counts")
	}
	client.Certificates = []tls.Certificate{foreign.tls()}
	if _, _, err := shake(server, client); err != nil {
		t.Error(err)
	}
	write(t, s.o.ClientCA, []byte("garbage"))
	if changed, err := s.Reload(); changed || err == nil {
		t.Error(changed, err)
	}
	if _, _, err := shake(server, client); err != nil {
		t.Error("a bad file was taken:", err)
	}
}

func TestWhatCertificatesSayIsBounded(t *testing.T) {
	exact, long := strings.Repeat("x", maxNameBytes), strings.Repeat("y", maxNameBytes+1)
	crowd := []string{long, exact}
	for i := range 2 * maxNames {
		crowd = append(crowd, fmt.Sprintf("%d.example.net", i))
	}
	s := mustLoad(t, files(t, issue(t, ecdsaKey(t), nil, nil, "a.test")))
	facts := func(change func(*x509.Certificate)) *Client {
		c := issue(t, ecdsaKey(t), nil, change, crowd...)
		return s.Facts(tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.leaf}}).Client
	}
	c := facts(func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: long} })
	if c.CommonName != "" || c.Subject != "CN="+long || len(c.Names) != maxNames || c.Names[0] != exact {
		t.Errorf("%+v", c)
	}
	c = facts(func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: exact, Organization: []string{strings.Repeat("z", maxSubjectBytes)}}
	})
	if c.CommonName != exact || c.Subject != "" {
		t.Errorf("%+v", c)
	}
}

// Handshakes go on while certificates come and go, and always see a whole pair.
func TestReloadUnderLoad(t *testing.T) {
	keys := []crypto.Signer{ecdsaKey(t), ecdsaKey(t)}
	o := files(t, issue(t, keys[0], nil, nil, "a.test"), issue(t, ecdsaKey(t), nil, nil, "b.test"))
	s := mustLoad(t, o)
	server := s.Config(Request)
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				cs, _, err := shake(server, anyServer("a.test"))
				if err != nil {
					t.Error(err)
					return
				}
				s.Facts(cs)
				s.Expiry()
			}
		})
	}
	for i := range 40 {
		put(t, o.Pairs[0], issue(t, keys[i%2], nil, nil, "a.test"))
		if i%5 == 0 {
			write(t, o.Pairs[0].Key, []byte("garbage"))
		}
		s.Reload()
	}
	close(stop)
	clients.Wait()
}

func TestWordsForClientCertificates(t *testing.T) {
	for word, want := range map[string]ClientCertificates{"off": Off, "request": Request, "require": Require} {
		if got, err := ParseClientCertificates(word); got != want || err != nil {
			t.Errorf("%s: %v, %v", word, got, err)
		}
	}
	if _, err := ParseClientCertificates("on"); err == nil {
		t.Error("on was taken")
	}
}

// BenchmarkHandshake is a full handshake with TLS 1.3, both sides of it in one process, over a pipe in memory. The twins serve the same
// certificate from a fixed configuration, and from one that is copied for each handshake by GetConfigForClient.
func BenchmarkHandshake(b *testing.B) {
	kinds := map[string]crypto.Signer{"ECDSA": ecdsaKey(b), "RSA": rsaKey()}
	for _, kind := range []string{"ECDSA", "RSA"} {
		c := issue(b, kinds[kind], nil, nil, "a.test")
		s := mustLoad(b, files(b, c, issue(b, ecdsaKey(b), nil, nil, "b.test")))
		fixed := &tls.Config{Certificates: []tls.Certificate{c.tls()}, SessionTicketsDisabled: true}
		copied := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return fixed.Clone(), nil }}
		for _, server := range []struct {
			name   string
			config *tls.Config
		}{{"store", s.Config(Off)}, {"fixed", fixed}, {"copied", copied}} {
			b.Run("key="+kind+"/impl="+server.name, func(b *testing.B) {
				b.ReportAllocs()
				client := anyServer("a.test")
				for b.Loop() {
					if _, _, err := shake(server.config, client); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkChoose is what a choice among certificates costs of a handshake.
func BenchmarkChoose(b *testing.B) {
	var all []*tls.Certificate
	for i := range 100 {
		c := issue(b, ecdsaKey(b), nil, nil, fmt.Sprintf("mx%d.example.net", i)).tls()
		all = append(all, &c)
	}
	s := newSet(all, nil)
	hello := &tls.ClientHelloInfo{
		ServerName:        "mx99.example.net",
		SupportedVersions: []uint16{tls.VersionTLS13},
		SignatureSchemes:  []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:   []tls.CurveID{tls.X25519, tls.CurveP256},
	}
	b.Run("certificates=100/impl=fastedge", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if s.choose(hello) != all[99] {
				b.Fatal("wrong")
			}
		}
	})
	b.Run("certificates=100/impl=naive", func(b *testing.B) { // as crypto/tls does with Config.Certificates
		b.ReportAllocs()
		for b.Loop() {
			for _, c := range all {
				if hello.SupportsCertificate(c) == nil {
					break
				}
			}
		}
	})
}
