package main

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/auth"
)

// What the tests of TLS, AUTH, PROXY and policy share: certificates, users, clients with TLS or another address, and a service that is asked
// about logins.

// edgeConfig is the file of a server of one listener, whose keys listen adds; rest are tables. It is for tests that need more than minimalConfig.
func edgeConfig(listen, rest string) string {
	return "hostname = \"mx.example.net\"\n[[listen]]\nname = \"mx\"\naddress = \"127.0.0.1:0\"\n" + listen +
		"\n[queue]\nmin_free = \"1MiB\"\nsegment_size = \"16MiB\"\n" + withAdmin(rest)
}

func withAdmin(rest string) string {
	if strings.Contains(rest, "[admin]") {
		return rest
	}
	return "[admin]\nhttp = \"\"\n" + rest
}

// strangers makes clients on loopback what they would be from outside: they may send to our own domain only.
const strangers = "relay_from = []\n"

// ourDomain is accepted from strangers; it is the one of oneGroup.
const ourDomain = "[domains]\naccept = [\"example.net\"]\n"

// authority signs the certificates of one test.
type authority struct {
	t      *testing.T
	dir    string
	file   string // its own certificate
	cert   *x509.Certificate
	key    crypto.Signer
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), serial: 1}
	a.file = filepath.Join(a.dir, "ca.pem")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the test's authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key = key
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// pair is a certificate and its key, as files.
type pair struct {
	cert, key string
	serial    int64
}

// toml is the pair as an element of tls.certificates.
func (p pair) toml() string { return fmt.Sprintf("{ cert = %q, key = %q }", p.cert, p.key) }

// load is for a client of ours.
func (p pair) load(t *testing.T) tls.Certificate {
	t.Helper()
	c, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issue makes a certificate with the names; the first is the common name, and they may be addresses and mail addresses, too. It is good for servers and
// clients. The files are replaced as a whole, the key first, when there are some of that name.
func (a *authority) issue(file string, withRSA bool, names ...string) pair {
	a.t.Helper()
	var key crypto.Signer
	var err error
	if withRSA {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		switch ip := net.ParseIP(name); {
		case ip != nil:
			template.IPAddresses = append(template.IPAddresses, ip)
		case strings.Contains(name, "@"):
			template.EmailAddresses = append(template.EmailAddresses, name)
		case strings.Contains(name, "."):
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	p := pair{cert: filepath.Join(a.dir, file+".pem"), key: filepath.Join(a.dir, file+"-key.pem"), serial: a.serial}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, p.key, "PRIVATE KEY", secret)
	writePEM(a.t, p.cert, "CERTIFICATE", der)
	return p
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	replaceFile(t, file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// replaceFile writes a file beside the old one and puts it in its place.
func replaceFile(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// trusting is a client that takes any certificate.
func trusting() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// secure makes the connection a TLS one.
func (c *smtpClient) secure(o *tls.Config) error {
	t := tls.Client(c.Conn, o)
	if err := t.Handshake(); err != nil {
		return err
	}
	c.Conn, c.r = t, bufio.NewReader(t)
	return nil
}

func (c *smtpClient) tlsState() tls.ConnectionState { return c.Conn.(*tls.Conn).ConnectionState() }

// helloTLS connects, upgrades with STARTTLS and says EHLO again.
func helloTLS(addr string, o *tls.Config) (*smtpClient, error) {
	c, err := hello(addr)
	if err != nil {
		return nil, err
	}
	if _, err = c.talk("STARTTLS\r\n", "220 2.7.0"); err == nil {
		if err = c.secure(o); err == nil {
			_, err = c.talk("EHLO test.example\r\n", "250-")
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// dialFrom connects from another address of this machine.
func dialFrom(source, addr string) (*smtpClient, error) {
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	return &smtpClient{c, bufio.NewReader(c)}, nil
}

// must is for a dialogue whose replies are no part of what is tested. It gives the last reply.
func (c *smtpClient) must(t *testing.T, text string, prefixes ...string) string {
	t.Helper()
	last, err := c.talk(text, prefixes...)
	if err != nil {
		t.Fatalf("%.60q: %v", text, err)
	}
	return last
}

// ended says that the server closes the connection now, and says nothing more.
func (c *smtpClient) ended() error {
	rest, err := io.ReadAll(c.r)
	if len(rest) > 0 {
		return fmt.Errorf("more instead of the end: %.200q", rest)
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return fmt.Errorf("the connection stays open")
	}
	return nil
}

// connect is hello that must work; the connection is closed with the test.
func connect(t *testing.T, addr string) *smtpClient {
	t.Helper()
	c, err := hello(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// received gives the Received field of a message in the queue, unfolded.
func (p *process) received(id string) string {
	p.t.Helper()
	field, _, _ := bytes.Cut(p.fastedge("queue", "cat", id), []byte(" +0000\r\n"))
	return strings.Join(strings.Fields(string(field)), " ")
}

// hup asks the server to look at its files again.
func (p *process) hup() { p.cmd.Process.Signal(syscall.SIGHUP) }

// lines counts the log lines with all the words.
func (p *process) lines(words ...string) (n int) {
next:
	for line := range strings.Lines(p.log.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		n++
	}
	return n
}

// waitLine waits for a log line with all the words.
func (p *process) waitLine(words ...string) {
	p.t.Helper()
	p.wait("a log line with "+strings.Join(words, ", "), func() bool { return p.lines(words...) > 0 })
}

// checkFails runs check on a configuration that is wrong: exit code 78 and all the words.
func checkFails(t *testing.T, config string, words ...string) {
	t.Helper()
	out, err := command(t, t.TempDir(), config, "check").CombinedOutput()
	code := -1
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		code = exit.ExitCode()
	}
	if code != exitConfig {
		t.Errorf("check: %v, want exit code 78\n%s", err, out)
	}
	for _, w := range words {
		if !strings.Contains(string(out), w) {
			t.Errorf("check does not say %q:\n%s", w, out)
		}
	}
}

// metric reads one sample of the admin port; labels are parts of its line. It is 0 when there is no such line.
func metric(t *testing.T, admin, name string, labels ...string) float64 {
	t.Helper()
	res, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
next:
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(line, l) {
				continue next
			}
		}
		var v float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		sum += v
	}
	return sum
}

// addUser puts a user with keys for every mechanism into a users file.
func addUser(t *testing.T, file, name, password string) {
	t.Helper()
	salt := []byte("sixteen bytes of")
	keys, err := auth.NewSCRAMKeys(password, salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := auth.NewArgon2id(password, salt)
	if err != nil {
		t.Fatal(err)
	}
	cram, err := auth.NewCRAMKeys(password)
	if err != nil {
		t.Fatal(err)
	}
	err = auth.Update(file, true, func(f *auth.UsersFile) error {
		f.Set(auth.User{Name: name, SCRAM: &keys, Argon2id: &hash, CRAM: &cram})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// authService answers for auth.http: yes to whom ok lets in. It gives the URL.
func authService(t *testing.T, ok func(q auth.HTTPQuestion) bool) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q auth.HTTPQuestion
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer := struct {
			OK   bool   `json:"ok"`
			User string `json:"user,omitempty"`
		}{OK: ok(q)}
		if answer.User = q.User; q.ActAs != "" {
			answer.User = q.ActAs
		}
		json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// plain is the response of PLAIN without an authorization identity, in base64.
func plain(user, password string) string { return b64("\x00" + user + "\x00" + password) }

// matches says whether a whole reply is what the pattern wants at its beginning.
func matches(pattern, reply string) bool {
	return regexp.MustCompile(`^(?s:` + pattern + `)`).MatchString(reply)
}
