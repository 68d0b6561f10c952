package httpedge

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// credentials makes a file of API keys and a store with one user, and gives the key's text.
func credentials(t *testing.T, change func(k *auth.Key)) (o func(*Options), key string) {
	t.Helper()
	k, text := auth.NewKey("shop")
	if change != nil {
		change(&k)
	}
	file := filepath.Join(t.TempDir(), "keys")
	if err := auth.UpdateKeys(file, true, func(f *auth.KeysFile) error { return f.Add(k) }); err != nil {
		t.Fatal(err)
	}
	keys, err := auth.OpenKeys(file)
	if err != nil {
		t.Fatal(err)
	}
	service, err := auth.New(auth.Options{Store: oneUser{}, Hostname: "mx.example.net", FailureDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return func(o *Options) { o.Keys, o.Passwords = keys, auth.NewPasswords(service, auth.PasswordsOptions{}) }, text
}

type oneUser struct{}

func (oneUser) Supports(mechanism string) bool {
	return mechanism == auth.PLAIN || mechanism == auth.EXTERNAL
}
func (oneUser) CheckPassword(_ context.Context, l auth.Login) (string, error) {
	if l.User == "alice" && l.Password == "secret:word" {
		return "alice", nil
	}
	return "", auth.ErrRefused
}

func (oneUser) CheckIdentity(_ context.Context, l auth.Login) (string, error) {
	if l.User == "bob@example.com" {
		return l.User, nil
	}
	return "", auth.ErrRefused
}

func TestWhoMayPost(t *testing.T) {
	options, key := credentials(t, func(k *auth.Key) { k.Senders = []string{"example.com"} })
	var who []string
	e := serve(t, func(o *Options, l *Listener, so *session.Options) {
		options(o)
		l.MayPost, l.MayRelay, l.Bearer, l.Basic = nil, nil, true, true
		so.Accept = func(_ smtpcodec.Path, relay bool) *smtpcodec.Reply {
			if !relay {
				r := refusal(550, 7, 1, "Relaying denied")
				return &r
			}
			return nil
		}
		so.Validators = []policy.Validator{says{policy.On(policy.AtAuth), func(e *policy.Event) { who = append(who, e.Client.User+" "+e.Client.Mechanism) }}}
	})
	for _, tc := range []struct {
		authorization, sender string
		plain, v1             int
		reason                string
	}{
		{"", "a@example.com", 401, 401, "authRequired"},
		{"Bearer " + key, "a@example.com", 200, 202, ""},
		{"bearer  " + key, "a@example.com", 200, 202, ""},
		{"Bearer " + key, "a@example.org", 403, 403, "forbidden"},
		{"Bearer " + key[:len(key)-1] + "x", "a@example.com", 401, 401, "authFailed"},
		{"Bearer ", "a@example.com", 401, 401, "authFailed"},
		{"Basic " + b64("alice:secret:word"), "a@example.org", 200, 202, ""},
		{"Basic " + b64("alice:wrong"), "a@example.org", 401, 401, "authFailed"},
		{"Basic " + b64("alice"), "a@example.org", 401, 401, "authFailed"},
		{"Basic " + strings.Repeat("x", 5000), "a@example.org", 401, 401, "authFailed"},
		{"Digest x", "a@example.org", 401, 401, "authFailed"},
	} {
		headers := []string{rfc822, "X-Envelope-Sender: " + b64(tc.sender), toHeader}
		if tc.authorization != "" {
			headers = append(headers, "Authorization: "+tc.authorization)
		}
		resp, _ := e.do("POST", "/", "x", headers...)
		if resp.StatusCode != tc.plain || tc.plain == 401 && len(resp.Header.Values("WWW-Authenticate")) != 2 {
			t.Errorf("%q: %d %v", tc.authorization, resp.StatusCode, resp.Header)
		}
		resp, body := e.do("POST", "/v1/messages", "x", headers...)
		if resp.StatusCode != tc.v1 || !strings.Contains(body, tc.reason) || tc.v1 == 401 && len(resp.Header.Values("WWW-Authenticate")) != 2 {
			t.Errorf("%q: /v1: %d %s", tc.authorization, resp.StatusCode, body)
		}
		if strings.Contains(body, key) {
			t.Errorf("the key is told: %s", body)
		}
	}
	for _, m := range e.queue.taken() {
		if user := string(m.env.Client.User); user != "shop" && user != "alice" {
			t.Errorf("stored for %q", user)
		}
	}
	if got := fmt.Sprint(who[0], who[len(who)-1]); got != "shop BEARERalice PLAIN" {
		t.Errorf("validators saw %q", who)
	}
	if strings.Contains(e.log.String(), key) || strings.Contains(e.log.String(), "secret") {
		t.Errorf("credentials in the log: %s", e.log)
	}
}

func TestAKeysRateIsItsOwn(t *testing.T) {
	options, key := credentials(t, func(k *auth.Key) { k.Rate = 2 })
	e := serve(t, func(o *Options, l *Listener, _ *session.Options) {
		options(o)
		l.Bearer = true
	})
	for i := range 3 {
		resp, body := e.do("POST", "/v1/messages", simple, asJSON, "Authorization: Bearer "+key)
		want := []int{202, 202, 429}[i]
		if resp.StatusCode != want || want == 429 && resp.Header.Get("Retry-After") == "" {
			t.Errorf("%d: %d %s", i, resp.StatusCode, body)
		}
	}
	if resp, _ := e.do("POST", "/", "x", rfc822, toHeader, "Authorization: Bearer "+key); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("plain: %d", resp.StatusCode)
	}
	if resp, _ := e.do("POST", "/", "x", rfc822, toHeader); resp.StatusCode != 200 {
		t.Errorf("others: %d", resp.StatusCode)
	}
}

// A key that was used with one credential is unknown with another.
func TestIdempotencyKeysBelongToTheirCredential(t *testing.T) {
	options, key := credentials(t, nil)
	e := serve(t, func(o *Options, l *Listener, _ *session.Options) {
		options(o)
		l.Bearer = true
	})
	for i, headers := range [][]string{{asJSON, "Idempotency-Key: k"}, {asJSON, "Idempotency-Key: k", "Authorization: Bearer " + key}} {
		if resp, _ := e.do("POST", "/v1/messages", simple, headers...); resp.StatusCode != 202 || resp.Header.Get("Idempotency-Replayed") != "" {
			t.Errorf("%d: %d %v", i, resp.StatusCode, resp.Header)
		}
	}
	if n := len(e.queue.taken()); n != 2 {
		t.Errorf("%d messages", n)
	}
}

func TestOnlyListedClientsPostWithoutCredentials(t *testing.T) {
	e := serve(t, func(_ *Options, l *Listener, _ *session.Options) {
		l.MayPost = func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.9") }
		l.Proxies = everybody
	})
	request := "POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + rfc822 + "\r\n" + toHeader + "\r\nContent-Length: 1\r\n\r\nx"
	for proxy, want := range map[string]string{
		"PROXY TCP4 192.0.2.9 198.51.100.1 4444 80\r\n": "HTTP/1.1 20",
		"PROXY TCP4 192.0.2.8 198.51.100.1 4444 80\r\n": "HTTP/1.1 403",
		"PROXY UNKNOWN\r\n":                             "HTTP/1.1 403",
		"":                                              "",
		"PROXY TCP4 nonsense\r\n":                       "",
	} {
		for _, path := range []string{"/", "/v1/messages"} {
			if got := e.raw(proxy + fmt.Sprintf(request, path)); !strings.HasPrefix(got, want) || want == "" && got != "" {
				t.Errorf("%q %s: %.100q", proxy, path, got)
			}
		}
	}
	for _, m := range e.queue.taken() {
		if m.env.Client.Addr.String() != "192.0.2.9:4444" || !strings.Contains(string(m.env.Trace), "[192.0.2.9]") {
			t.Errorf("client %v", m.env.Client.Addr)
		}
	}
}

// pair makes a certificate for name, signed by parent or by itself.
func pair(t *testing.T, name string, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: parent == nil, BasicConstraintsValid: true, EmailAddresses: []string{name + "@example.com"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	by, signer := template, any(key)
	if parent != nil {
		by, signer = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestHTTPSAndClientCertificates(t *testing.T) {
	ca := pair(t, "ca", nil)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	options, _ := credentials(t, nil)
	e := serve(t, func(o *Options, l *Listener, _ *session.Options) {
		options(o)
		l.MayPost, l.MayRelay, l.External, l.Proxies = nil, nil, true, func(netip.Addr) bool { return true }
		l.TLS = &tls.Config{Certificates: []tls.Certificate{pair(t, "mx.example.net", &ca)}, ClientCAs: roots, ClientAuth: tls.VerifyClientCertIfGiven}
		l.TLSFacts = func(cs tls.ConnectionState) *policy.TLS {
			facts := &policy.TLS{Version: tls.VersionName(cs.Version), Cipher: "c"}
			if len(cs.VerifiedChains) > 0 {
				facts.Certificate = &policy.Certificate{Verified: true, CommonName: cs.PeerCertificates[0].Subject.CommonName, Names: cs.PeerCertificates[0].EmailAddresses}
			}
			return facts
		}
	})
	for _, with := range []bool{true, false} {
		config := &tls.Config{RootCAs: roots, ServerName: "mx.example.net"}
		if with {
			config.Certificates = []tls.Certificate{pair(t, "bob", &ca)}
		}
		raw, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		raw.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(raw, "PROXY TCP4 192.0.2.9 198.51.100.1 4444 443\r\n")
		c := tls.Client(raw, config)
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\n%s\r\n%s\r\nContent-Length: 1\r\n\r\nx", rfc822, toHeader)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{true: 200, false: 401}[with]; resp.StatusCode != want {
			t.Errorf("certificate %v: %d", with, resp.StatusCode)
		}
		c.Close()
	}
	mail := e.queue.taken()
	if len(mail) != 1 || string(mail[0].env.Client.User) != "bob@example.com" || mail[0].env.Client.Protocol != "HTTPS" ||
		mail[0].env.Client.Addr.String() != "192.0.2.9:4444" {
		t.Errorf("%+v", mail)
	}
	// In clear there is no answer, and nobody waits.
	if got := e.raw("PROXY TCP4 192.0.2.9 198.51.100.1 4444 443\r\nPOST / HTTP/1.1\r\n\r\n"); strings.Contains(got, "HTTP/1.1 2") {
		t.Errorf("%q", got)
	}
}

func TestTheGateCountsHTTPConnections(t *testing.T) {
	e := serve(t, func(_ *Options, l *Listener, _ *session.Options) {
		l.Gate = policy.NewGate(policy.GateOptions{PerAddress: 1})
	})
	request := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\nContent-Length: 1\r\n\r\nx"
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, request)
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	if got := e.raw(request); !strings.HasPrefix(got, "HTTP/1.1 429") || !strings.Contains(got, "Retry-After") {
		t.Errorf("%q", got)
	}
	c.Close()
	for {
		if got := e.raw(request); strings.HasPrefix(got, "HTTP/1.1 200") {
			return
		} else if !strings.HasPrefix(got, "HTTP/1.1 429") {
			t.Fatalf("%q", got)
		}
	}
}
