package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"
)

// script is one exchange in full. "-" as the first response means none.
type script struct {
	mechanism  string
	responses  []string
	challenges []string // of all steps but the last; nil: not looked at
	want       Result
	user       string
}

func (c script) run(t *testing.T, s *Service, p Peer) {
	t.Helper()
	var responses [][]byte
	for i, r := range c.responses {
		if i == 0 && r == "-" {
			responses = append(responses, nil)
		} else {
			responses = append(responses, append([]byte{}, r...))
		}
	}
	challenges, o := converse(t, s, c.mechanism, p, responses...)
	if o.Result != c.want || o.User != c.user {
		t.Errorf("%s %q: %v %q, want %v %q", c.mechanism, c.responses, o.Result, o.User, c.want, c.user)
	}
	if c.challenges != nil && strings.Join(challenges, "|") != strings.Join(c.challenges, "|") {
		t.Errorf("%s %q: challenges %q, want %q", c.mechanism, c.responses, challenges, c.challenges)
	}
}

func TestPlain(t *testing.T) {
	file := testUsers(t, scramUser(t, "alice", "secret"), argonUser(t, "bob", "hunter2"), User{Name: "carol"},
		scramUser(t, "jürgen", "Grüße"), func() User { u := scramUser(t, "dora", "secret"); u.Disabled = true; return u }())
	s := testService(t, Options{Store: file})
	for _, c := range []script{
		{PLAIN, []string{"\x00alice\x00secret"}, nil, Success, "alice"},
		{PLAIN, []string{"-", "\x00alice\x00secret"}, []string{""}, Success, "alice"},
		{PLAIN, []string{"alice\x00alice\x00secret"}, nil, Success, "alice"},
		{PLAIN, []string{"\x00bob\x00hunter2"}, nil, Success, "bob"},
		{PLAIN, []string{"\x00j\u00fcrgen\x00Gr\u00fc\u00dfe"}, nil, Success, "jürgen"},
		{PLAIN, []string{"\x00ju\u0308rgen\x00Gru\u0308\u00dfe"}, nil, Success, "jürgen"}, // RFC 4616 §2: SASLprep
		{PLAIN, []string{"\x00alice\x00Secret"}, nil, Failed, ""},
		{PLAIN, []string{"\x00alice\x00"}, nil, Failed, ""}, // an empty password is in order, and wrong
		{PLAIN, []string{"\x00Alice\x00secret"}, nil, Failed, ""},
		{PLAIN, []string{"\x00nobody\x00secret"}, nil, Failed, ""},
		{PLAIN, []string{"\x00carol\x00"}, nil, Failed, ""},                 // certificate only
		{PLAIN, []string{"\x00dora\x00secret"}, nil, Failed, ""},            // disabled
		{PLAIN, []string{"bob\x00alice\x00secret"}, nil, Failed, ""},        // may not act as another
		{PLAIN, []string{"\x00ali\u0007ce\x00secret"}, nil, Failed, ""},     // SASLprep forbids it: nobody's name
		{PLAIN, []string{"\x00alice\x00sec\u0007ret"}, nil, Failed, ""},     // nobody's password
		{PLAIN, []string{"\x00\x00secret"}, nil, Malformed, ""},             // A13
		{PLAIN, []string{""}, nil, Malformed, ""},                           // "=" alone
		{PLAIN, []string{"-", ""}, nil, Malformed, ""},                      // an empty line
		{PLAIN, []string{"alice"}, nil, Malformed, ""},                      // no NUL
		{PLAIN, []string{"\x00alice"}, nil, Malformed, ""},                  // one
		{PLAIN, []string{"\x00alice\x00sec\x00ret"}, nil, Malformed, ""},    // three
		{PLAIN, []string{"\x00alice\x00secret\xff"}, nil, Malformed, ""},    // not UTF-8
		{PLAIN, []string{"\x00al\xc3ice\x00secret"}, nil, Malformed, ""},    // nor this
		{PLAIN, []string{"\xed\xa0\x80\x00alice\x00x"}, nil, Malformed, ""}, // a surrogate
	} {
		c.run(t, s, client)
	}
}

func TestLogin(t *testing.T) {
	s := testService(t, Options{Store: testUsers(t, scramUser(t, "alice", "secret"))})
	// Clients compare the prompts: VXNlcm5hbWU6 and UGFzc3dvcmQ6 in base64.
	if b64 := base64.StdEncoding.EncodeToString; b64([]byte("Username:")) != "VXNlcm5hbWU6" || b64([]byte("Password:")) != "UGFzc3dvcmQ6" {
		t.Error("prompts")
	}
	for _, c := range []script{
		{LOGIN, []string{"-", "alice", "secret"}, []string{"Username:", "Password:"}, Success, "alice"},
		{LOGIN, []string{"alice", "secret"}, []string{"Password:"}, Success, "alice"}, // A9
		{LOGIN, []string{"alice", "wrong"}, nil, Failed, ""},
		{LOGIN, []string{"alice", ""}, nil, Failed, ""},
		{LOGIN, []string{"nobody", "secret"}, nil, Failed, ""},
		{LOGIN, []string{""}, nil, Malformed, ""},
		{LOGIN, []string{"-", ""}, nil, Malformed, ""},
		{LOGIN, []string{"ali\x00ce"}, nil, Malformed, ""},
		{LOGIN, []string{"\xff"}, nil, Malformed, ""},
		{LOGIN, []string{"alice", "sec\x00ret"}, nil, Malformed, ""},
		{LOGIN, []string{"alice", "\xff"}, nil, Malformed, ""},
	} {
		c.run(t, s, client)
	}
}

func TestExternal(t *testing.T) {
	disabled := scramUser(t, "mallory", "x")
	disabled.Disabled = true
	s := testService(t, Options{Store: testUsers(t, User{Name: "alice"}, disabled)})
	with := func(name string) Peer { p := client; p.Certificate = name; return p }
	for _, c := range []struct {
		certificate string
		script
	}{
		{"alice", script{EXTERNAL, []string{""}, nil, Success, "alice"}}, // "="
		{"alice", script{EXTERNAL, []string{"-", ""}, []string{""}, Success, "alice"}},
		{"alice", script{EXTERNAL, []string{"alice"}, nil, Success, "alice"}},
		{"alice", script{EXTERNAL, []string{"root"}, nil, Failed, ""}},
		{"alice", script{EXTERNAL, []string{"ali\x00ce"}, nil, Malformed, ""}},
		{"alice", script{EXTERNAL, []string{"\xff"}, nil, Malformed, ""}},
		{"mallory", script{EXTERNAL, []string{""}, nil, Failed, ""}},
		{"nobody", script{EXTERNAL, []string{""}, nil, Failed, ""}},
		{"", script{EXTERNAL, []string{""}, nil, Failed, ""}},
		{"", script{EXTERNAL, []string{"alice"}, nil, Failed, ""}},
	} {
		c.run(t, s, with(c.certificate))
	}
}

const oauthRefusal = `{"status":"invalid_token","schemes":"bearer","scope":""}`

func TestOAuthBearer(t *testing.T) {
	s := testService(t, Options{Store: secret()})
	for _, c := range []script{
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer t0ken\x01\x01"}, nil, Success, "alice"},
		{OAUTHBEARER, []string{"-", "n,,\x01auth=bearer t0ken\x01\x01"}, []string{""}, Success, "alice"}, // the token says who
		{OAUTHBEARER, []string{"y,a=alice,\x01host=mx.example.net\x01port=587\x01auth=Bearer t0ken\x01new=1\x01\x01"}, nil, Success, "alice"},
		{OAUTHBEARER, []string{"n,a=bob,\x01auth=Bearer t0ken\x01\x01", "\x01"}, []string{oauthRefusal}, Failed, ""}, // alice's token
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer stolen\x01\x01", "\x01"}, []string{oauthRefusal}, Failed, ""},
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer stolen\x01\x01", ""}, nil, Failed, ""}, // go-sasl crashes on this
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer stolen\x01\x01", "anything"}, nil, Failed, ""},
		{OAUTHBEARER, []string{""}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"-", ""}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer t0ken\x01"}, nil, Malformed, ""}, // no end
		{OAUTHBEARER, []string{"n,a=alice,\x01\x01"}, nil, Malformed, ""},                  // no token
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer \x01\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Basic t0ken\x01\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer to ken\x01\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer a\x01auth=Bearer t0ken\x01\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"n,a=al=ice,\x01auth=Bearer t0ken\x01\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"n,a=,\x01auth=Bearer t0ken\x01\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"n,alice,\x01auth=Bearer t0ken\x01\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"p=tls-exporter,a=alice,\x01auth=Bearer t0ken\x01\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"n,a=alice,\x01port=70000\x01auth=Bearer t0ken\x01\x01"}, nil, Malformed, ""},
		{OAUTHBEARER, []string{"n,a=alice,\x01novalue\x01auth=Bearer t0ken\x01\x01"}, nil, Malformed, ""},
	} {
		c.run(t, s, client)
	}
}

func TestXOAuth2(t *testing.T) {
	s := testService(t, Options{Store: secret()})
	refusal := `{"status":"401","schemes":"bearer"}`
	for _, c := range []script{
		{XOAUTH2, []string{"user=alice\x01auth=Bearer t0ken\x01\x01"}, nil, Success, "alice"},
		{XOAUTH2, []string{"-", "user=alice\x01auth=Bearer t0ken\x01\x01"}, []string{""}, Success, "alice"},
		{XOAUTH2, []string{"user=bob\x01auth=Bearer t0ken\x01\x01", ""}, []string{refusal}, Failed, ""},
		{XOAUTH2, []string{"user=alice\x01auth=Bearer stolen\x01\x01", ""}, []string{refusal}, Failed, ""},
		{XOAUTH2, []string{"user=alice\x01auth=Bearer stolen\x01\x01", "anything"}, nil, Failed, ""},
		{XOAUTH2, []string{""}, nil, Malformed, ""},
		{XOAUTH2, []string{"user=\x01auth=Bearer t0ken\x01\x01"}, nil, Malformed, ""},
		{XOAUTH2, []string{"user=alice\x01auth=t0ken\x01\x01"}, nil, Malformed, ""},
		{XOAUTH2, []string{"user=alice\x01auth=Bearer t0ken\x01"}, nil, Malformed, ""},
		{XOAUTH2, []string{"user=alice\x01auth=Bearer t0ken\x01\x01\x01"}, nil, Malformed, ""},
		{XOAUTH2, []string{"user=al\x00ice\x01auth=Bearer t0ken\x01\x01"}, nil, Malformed, ""},
	} {
		c.run(t, s, client)
	}
}

func TestTokenStoreInTroubleIsUnavailableAndNotAChallenge(t *testing.T) {
	store := &scripted{mechanisms: "OAUTHBEARER XOAUTH2", token: func(context.Context, Login) (string, error) { return "", errors.New("down") }}
	s := testService(t, Options{Store: store})
	script{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer t0ken\x01\x01"}, nil, Unavailable, ""}.run(t, s, client)
	script{XOAUTH2, []string{"user=alice\x01auth=Bearer t0ken\x01\x01"}, nil, Unavailable, ""}.run(t, s, client)
	store.token = func(context.Context, Login) (string, error) { return "", nil } // yes, but who?
	script{OAUTHBEARER, []string{"n,,\x01auth=Bearer t0ken\x01\x01"}, nil, Unavailable, ""}.run(t, s, client)
}

// RFC 7628 §4.1 (the initial response) and §4.3 (a failure).
func TestOAuthBearerExampleOfRFC7628(t *testing.T) {
	ir, err := base64.StdEncoding.DecodeString("bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9QmVhcmVyIHZGOWRmdDRxbVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB")
	if err != nil {
		t.Fatal(err)
	}
	var asked Login
	store := &scripted{mechanisms: OAUTHBEARER, token: func(_ context.Context, l Login) (string, error) { asked = l; return "", nil }}
	if _, o := converse(t, testService(t, Options{Store: store}), OAUTHBEARER, client, ir); o.Result != Success || o.User != "user@example.com" {
		t.Errorf("%v %q", o.Result, o.User)
	}
	if asked.User != "user@example.com" || asked.Token != "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==" {
		t.Errorf("asked about %q %q", asked.User, asked.Token)
	}
}

func cramService(t testing.TB, o Options, name, password string) *Service {
	t.Helper()
	k, err := NewCRAMKeys(password)
	if err != nil {
		t.Fatal(err)
	}
	u := scramUser(t, name, password)
	u.CRAM = &k
	o.Store, o.CRAMMD5 = testUsers(t, u), true
	return testService(t, o)
}

// RFC 2195 §3.
func TestCRAMExampleOfRFC2195(t *testing.T) {
	k, err := NewCRAMKeys("tanstaaftanstaaf")
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(k.digest([]byte("<1896.697170952@postoffice.reston.mci.net>"))); got != "b913a602c7eda7a495b4e6e7334d3890" {
		t.Error(got)
	}
	for _, n := range []int{1, 63, 64, 65, 200} { // RFC 2104 §2: keys longer than a block are hashed first
		password := strings.Repeat("k", n)
		k, err := NewCRAMKeys(password)
		if err != nil {
			t.Fatal(err)
		}
		h := hmac.New(md5.New, []byte(password))
		h.Write([]byte("text"))
		if got, want := k.digest([]byte("text")), h.Sum(nil); !hmac.Equal(got, want) {
			t.Errorf("%d bytes: %x, want %x", n, got, want)
		}
	}
}

func TestCRAMMD5(t *testing.T) {
	s := cramService(t, Options{Hostname: "mx.example.net"}, "tim", "tanstaaf")
	k, _ := NewCRAMKeys("tanstaaf")
	answer := func(name string, spoil func(string) string) Outcome {
		x := s.Begin(CRAMMD5, client)
		o := respond(t, x, nil, false)
		if c := string(o.Challenge); o.Result != Continue || !strings.HasPrefix(c, "<") || !strings.HasSuffix(c, "@mx.example.net>") {
			t.Fatalf("%v %q", o.Result, c)
		}
		return respond(t, x, []byte(spoil(name+" "+hex.EncodeToString(k.digest(o.Challenge)))), true)
	}
	same := func(s string) string { return s }
	for _, c := range []struct {
		name  string
		spoil func(string) string
		want  Result
	}{
		{"tim", same, Success},
		{"nobody", same, Failed},
		{"tim", func(s string) string {
			return strings.Replace(s, " ", " "+string("123456789abcdef0"[strings.IndexByte("0123456789abcdef", s[4])]), 1)[:len(s)]
		}, Failed},
		{"tim", func(s string) string { return s[:len(s)-1] }, Malformed},
		{"tim", func(s string) string { return s + "ab" }, Malformed},
		{"", same, Malformed},
		{"ti\x00m", same, Malformed},
		{"\xff", same, Malformed},
		{"tim", func(string) string { return "" }, Malformed},
		{"tim", func(string) string { return "tim" }, Malformed},
	} {
		if o := answer(c.name, c.spoil); o.Result != c.want {
			t.Errorf("%q: %v, want %v", c.name, o.Result, c.want)
		}
	}
	// A9: there is no initial response where the server speaks first.
	if _, o := converse(t, s, CRAMMD5, client, []byte("tim 00")); o.Result != Malformed {
		t.Errorf("initial response: %v", o.Result)
	}
	if _, o := converse(t, s, CRAMMD5, client, []byte{}); o.Result != Malformed {
		t.Errorf("empty initial response: %v", o.Result)
	}
}

// RFC 7677 §3.
func TestSCRAMExampleOfRFC7677(t *testing.T) {
	salt, _ := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	k, err := NewSCRAMKeys("pencil", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	s := testService(t, Options{Store: testUsers(t, User{Name: "user", SCRAM: &k})})
	s.nonce = func() string { return "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0" }
	script{SCRAMSHA256, []string{
		"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
		"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
		"",
	}, []string{
		"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
		"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
	}, Success, "user"}.run(t, s, client)
}

func TestSCRAM(t *testing.T) {
	odd := scramUser(t, "a,b=c", "secret")
	disabled := scramUser(t, "dora", "secret")
	disabled.Disabled = true
	s := testService(t, Options{Store: testUsers(t, scramUser(t, "alice", "secret"), odd, disabled, argonUser(t, "bob", "secret"))})
	for _, c := range []struct {
		user, password, actAs string
		want                  Result
	}{
		{"alice", "secret", "", Success},
		{"alice", "secret", "alice", Success},
		{"a,b=c", "secret", "", Success},
		{"ａlice", "secret", "", Success}, // SASLprep makes the wide letter an a, at the client already
		{"alice", "secret", "bob", Failed},
		{"alice", "wrong", "", Failed},
		{"nobody", "secret", "", Failed},
		{"dora", "secret", "", Failed},
		{"bob", "secret", "", Failed}, // has no SCRAM keys
	} {
		for _, late := range []bool{false, true} {
			if o := login(t, s, client, newSCRAMClient(t, c.user, c.password, c.actAs), late); o.Result != c.want || c.want == Success && o.User == "" {
				t.Errorf("%s %s %s: %v %q, want %v", c.user, c.password, c.actAs, o.Result, o.User, c.want)
			}
		}
	}
	for _, c := range []script{
		{SCRAMSHA256, []string{""}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=alice"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=alice,r="}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=,r=abc"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"x,,n=alice,r=abc"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,m=ext,n=alice,r=abc"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=al=ice,r=abc"}, nil, Malformed, ""}, // RFC 5802 §5.1
		{SCRAMSHA256, []string{"n,a=al=ice,n=alice,r=abc"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=al\x00ice,r=abc"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=alice,r=a b"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=alice,r=\xff"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"p=tls-exporter,,n=alice,r=abc"}, nil, Failed, ""}, // binding without -PLUS
		{SCRAMSHA256, []string{"n,,n=alice,r=abc", ""}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=alice,r=abc", "c=biws,r=abc"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=alice,r=abc", "c=biws,r=abc,p=!"}, nil, Malformed, ""},
		{SCRAMSHA256, []string{"n,,n=alice,r=abc", "c=biws,r=abc,p=AAAA"}, nil, Failed, ""}, // not our nonce
		{SCRAMSHA256, []string{"n,,n=alice,r=abc", "c=eSws,r=abc,p=AAAA"}, nil, Failed, ""}, // another header than at first
	} {
		c.run(t, s, client)
	}
}

func TestSCRAMEndsOnlyWithAnEmptyResponse(t *testing.T) {
	s := testService(t, Options{Store: testUsers(t, scramUser(t, "alice", "secret"))})
	c := newSCRAMClient(t, "alice", "secret", "")
	x := s.Begin(SCRAMSHA256, client)
	_, ir, _ := c.Start()
	o := respond(t, x, ir, true)
	proof, err := c.Next(o.Challenge)
	if err != nil {
		t.Fatal(err)
	}
	if o = respond(t, x, proof, true); o.Result != Continue || !strings.HasPrefix(string(o.Challenge), "v=") {
		t.Fatalf("%v %q", o.Result, o.Challenge)
	}
	if o = respond(t, x, []byte("x"), true); o.Result != Malformed || o.User != "" {
		t.Errorf("%v %q", o.Result, o.User)
	}
}

// tlsPeers are the two ends of one TLS connection of the version, and the server's certificate.
func tlsPeers(t *testing.T, version uint16) (clientState, serverState *tls.ConnectionState, leaf *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.example.net"}, DNSNames: []string{"mx.example.net"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	server := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: version, MaxVersion: version, SessionTicketsDisabled: true})
	dial := tls.Client(b, &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := errors.Join(dial.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	c, s := dial.ConnectionState(), server.ConnectionState()
	return &c, &s, leaf
}

func TestSCRAMPlusBindsTheChannel(t *testing.T) {
	s := testService(t, Options{Store: testUsers(t, scramUser(t, "alice", "secret"))})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		clientState, serverState, leaf := tlsPeers(t, version)
		otherClient, _, _ := tlsPeers(t, version)
		p := client
		p.TLS, p.ServerCertificate = serverState, leaf
		if !s.Offers(SCRAMSHA256Plus, p) {
			t.Fatalf("%x: -PLUS is not offered", version)
		}
		endPoint, err := scram.NewTLSServerEndpointBinding(clientState)
		if err != nil {
			t.Fatal(err)
		}
		exporter, err := scram.NewTLSExporterBinding(clientState)
		if err != nil && version == tls.VersionTLS13 {
			t.Fatal(err)
		}
		other, _ := scram.NewTLSServerEndpointBinding(otherClient)
		otherExporter, _ := scram.NewTLSExporterBinding(otherClient)
		exporterWant := Success
		if version < tls.VersionTLS13 {
			exporterWant = Failed // RFC 9266 §3: only where the exporter is unique
		}
		c, err := scram.SHA256.NewClient("alice", "secret", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, try := range []struct {
			name         string
			mechanism    string
			conversation *scram.ClientConversation
			want         Result
		}{
			{"end point", SCRAMSHA256Plus, c.NewConversationWithChannelBinding(endPoint), Success},
			{"exporter", SCRAMSHA256Plus, c.NewConversationWithChannelBinding(exporter), exporterWant},
			{"another server's end point", SCRAMSHA256Plus, c.NewConversationWithChannelBinding(other), Failed},
			{"another connection's exporter", SCRAMSHA256Plus, c.NewConversationWithChannelBinding(otherExporter), Failed},
			{"-PLUS without binding", SCRAMSHA256Plus, c.NewConversation(), Failed},
			{"-PLUS with y", SCRAMSHA256Plus, c.NewConversationAdvertisingChannelBinding(), Failed},
			{"tls-unique", SCRAMSHA256Plus, c.NewConversationWithChannelBinding(scram.NewTLSUniqueBinding([]byte("finished"))), Failed},
			{"binding without -PLUS", SCRAMSHA256, c.NewConversationWithChannelBinding(endPoint), Failed},
			{"no binding", SCRAMSHA256, c.NewConversation(), Success},
			{"y although offered", SCRAMSHA256, c.NewConversationAdvertisingChannelBinding(), Failed},
		} {
			if o := login(t, s, p, &scramClient{try.mechanism, try.conversation}, false); o.Result != try.want {
				t.Errorf("%x, %s: %v, want %v", version, try.name, o.Result, try.want)
			}
		}
		// RFC 5802 §6: y is in order where -PLUS was not offered.
		p.Offered = []string{SCRAMSHA256, PLAIN}
		if o := login(t, s, p, &scramClient{SCRAMSHA256, c.NewConversationAdvertisingChannelBinding()}, false); o.Result != Success {
			t.Errorf("%x, y where -PLUS is not offered: %v", version, o.Result)
		}
		p.Offered, p.ServerCertificate = nil, nil
		if s.Offers(SCRAMSHA256Plus, p) != (version == tls.VersionTLS13) {
			t.Errorf("%x: -PLUS without the server's certificate", version)
		}
	}
	if o := login(t, s, client, &scramClient{SCRAMSHA256, func() *scram.ClientConversation {
		c, _ := scram.SHA256.NewClient("alice", "secret", "")
		return c.NewConversationAdvertisingChannelBinding()
	}()}, false); o.Result != Success {
		t.Errorf("y in clear: %v", o.Result)
	}
}

func TestClientsOfGoSASL(t *testing.T) {
	s := testService(t, Options{Store: secret()})
	users := testService(t, Options{Store: testUsers(t, User{Name: "alice"})})
	certified := client
	certified.Certificate = "alice"
	for _, c := range []struct {
		name string
		s    *Service
		make func() sasl.Client
		want Result
	}{
		{"PLAIN", s, func() sasl.Client { return sasl.NewPlainClient("", "alice", "secret") }, Success},
		{"PLAIN, wrong", s, func() sasl.Client { return sasl.NewPlainClient("", "alice", "wrong") }, Failed},
		{"PLAIN, acting", s, func() sasl.Client { return sasl.NewPlainClient("root", "alice", "secret") }, Failed},
		{"LOGIN", s, func() sasl.Client { return sasl.NewLoginClient("alice", "secret") }, Success},
		{"LOGIN, wrong", s, func() sasl.Client { return sasl.NewLoginClient("alice", "wrong") }, Failed},
		{"OAUTHBEARER", s, func() sasl.Client {
			return sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: "alice", Token: "t0ken", Host: "mx", Port: 587})
		}, Success},
		{"OAUTHBEARER, wrong", s, func() sasl.Client {
			return sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: "alice", Token: "stolen"})
		}, Failed},
		{"EXTERNAL", users, func() sasl.Client { return sasl.NewExternalClient("") }, Success},
		{"EXTERNAL, acting", users, func() sasl.Client { return sasl.NewExternalClient("root") }, Failed},
	} {
		for _, late := range []bool{false, true} {
			if o := login(t, c.s, certified, c.make(), late); o.Result != c.want || (c.want == Success) != (o.User == "alice") {
				t.Errorf("%s, late %v: %v %q, want %v", c.name, late, o.Result, o.User, c.want)
			}
		}
	}
}

// work counts what a store does for one password.
type work struct{ iterations, hashes int }

func countWork(u *Users) *work {
	var w work
	pbkdf2, argon2 := u.pbkdf2, u.argon2
	u.pbkdf2 = func(p string, k *SCRAMKeys) (SCRAMKeys, error) { w.iterations += k.Iterations; return pbkdf2(p, k) }
	u.argon2 = func(p string, a *Argon2id) []byte { w.hashes++; return argon2(p, a) }
	return &w
}

func TestUnknownUsersCostWhatKnownOnesCost(t *testing.T) {
	disabled := scramUser(t, "dora", "secret")
	disabled.Disabled = true
	for name, c := range map[string]struct {
		users []User
		want  work
	}{
		"SCRAM":    {[]User{scramUser(t, "alice", "secret"), disabled}, work{iterations: testIterations}},
		"argon2id": {[]User{argonUser(t, "alice", "secret")}, work{hashes: 1}},
		"nobody":   {nil, work{iterations: DefaultIterations}},
	} {
		u := testUsers(t, append(c.users, User{Name: "carol"})...)
		w := countWork(u)
		s := testService(t, Options{Store: u})
		for _, login := range []string{"\x00alice\x00wrong", "\x00dora\x00secret", "\x00nobody\x00secret", "\x00carol\x00secret", "\x00alice\x00",
			"\x00alice\x00sec\u0007ret", "\x00ali\u0007ce\x00secret", "bob\x00alice\x00secret"} {
			*w = work{}
			if _, o := converse(t, s, PLAIN, client, []byte(login)); o.Result != Failed {
				t.Errorf("%s, %q: %v", name, login, o.Result)
			}
			if *w != c.want {
				t.Errorf("%s, %q: work %+v, want %+v", name, login, *w, c.want)
			}
		}
	}
}

func TestUnknownUsersImitateAllKindsOfUsers(t *testing.T) {
	u := testUsers(t, scramUser(t, "alice", "x"), argonUser(t, "bob", "x"))
	w := countWork(u)
	s := testService(t, Options{Store: u})
	var scrams, argons int
	for i := range 64 {
		*w = work{}
		login := fmt.Appendf(nil, "\x00nobody%d\x00x", i)
		converse(t, s, PLAIN, client, login)
		first := *w
		*w = work{}
		converse(t, s, PLAIN, client, login)
		if first != *w {
			t.Errorf("%q: %+v, then %+v", login, first, *w)
		}
		if w.hashes > 0 {
			argons++
		} else {
			scrams++
		}
	}
	if scrams == 0 || argons == 0 {
		t.Errorf("%d like SCRAM users, %d like argon2id users", scrams, argons)
	}
}

func TestSCRAMShowsUnknownUsersAStableSalt(t *testing.T) {
	strong := scramUser(t, "alice", "x")
	strong.SCRAM.Iterations = 20000
	s := testService(t, Options{Store: testUsers(t, strong, argonUser(t, "bob", "x"))})
	s.nonce = func() string { return "srv" }
	first := func(name string) string {
		cs, o := converse(t, s, SCRAMSHA256, client, []byte("n,,n="+name+",r=cli"))
		if o.Result != Continue {
			t.Fatalf("%s: %v", name, o.Result)
		}
		return cs[0]
	}
	known := first("alice")
	seen := map[string]bool{known: true}
	for _, name := range []string{"nobody", "someone", "bob"} {
		one := first(name)
		if one != first(name) {
			t.Errorf("%s: the salt changes", name)
		}
		if seen[one] || len(one) != len(known) || !strings.HasSuffix(one, ",i=20000") {
			t.Errorf("%s: %s beside %s", name, one, known)
		}
		seen[one] = true
	}
}

// RFC 4954 §4: "*" at any step; the caller cancels and answers.
func TestEveryMechanismCanBeAbortedAtEveryStep(t *testing.T) {
	k, _ := NewCRAMKeys("secret")
	u := scramUser(t, "alice", "secret")
	u.CRAM = &k
	tokens := secret()
	tokens.mechanisms = "OAUTHBEARER XOAUTH2"
	s := testService(t, Options{Store: Stores(testUsers(t, u), tokens), CRAMMD5: true})
	for mechanism, responses := range map[string][]string{
		PLAIN: {"-"}, LOGIN: {"-", "alice"}, CRAMMD5: {"-"}, EXTERNAL: {"-"}, SCRAMSHA256: {"-", "n,,n=alice,r=abc"}, SCRAMSHA256Plus: {"-"},
		OAUTHBEARER: {"-", "n,a=alice,\x01auth=Bearer x\x01\x01"}, XOAUTH2: {"-", "user=alice\x01auth=Bearer x\x01\x01"},
	} {
		for n := 0; n <= len(responses); n++ {
			x := s.Begin(mechanism, client)
			for i, r := range responses[:n] {
				if o := respond(t, x, []byte(r), i > 0 || r != "-"); o.Result != Continue {
					t.Fatalf("%s: %v after %d responses", mechanism, o.Result, i+1)
				}
			}
			x.Cancel()
			x.Step([]byte("late"), true, func(o Outcome) { t.Errorf("%s: %v after Cancel", mechanism, o.Result) })
		}
	}
	idle(s)
}
