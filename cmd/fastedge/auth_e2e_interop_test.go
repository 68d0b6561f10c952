//go:build interop

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/auth"
)

// These tests log in to the real program with swaks, curl, Python's smtplib, GNU SASL's gsasl and OpenSSL's s_client: each mechanism by at
// least one client that we have not written.

// token is what the test's service takes from ann.
const token = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"

// submission is a server that wants a login, by STARTTLS and by implicit TLS. Its only user is ann, with the password pencil, the token and
// the certificate client.
type submission struct {
	*process
	a      *authority
	client pair
}

const allMechanisms = `["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "EXTERNAL", "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN", "CRAM-MD5"]`

// newSubmission runs the test beside others: most of it is waiting for replies that are late on purpose.
func newSubmission(t *testing.T, mechanisms string) *submission {
	t.Helper()
	t.Parallel()
	return startSubmission(t, mechanisms)
}

func startSubmission(t *testing.T, mechanisms string) *submission {
	t.Helper()
	a := newAuthority(t)
	users := filepath.Join(t.TempDir(), "users")
	addUser(t, users, "ann", "pencil")
	service := authService(t, func(q auth.HTTPQuestion) bool { return q.User == "ann" && q.Token == token })
	listen := "client_certificates = \"request\"\nauth_required = true\nauth = " + mechanisms + "\n"
	return &submission{
		a:      a,
		client: a.issue("client", false, "ann"),
		process: serve(t, t.TempDir(), tlsConfig(listen, fmt.Sprintf("client_ca = %q\n[auth]\nusers = %q\nhttp = %q\ncram_md5 = true\n", a.file, users, service),
			a.issue("server", true, "mx.example.net", "127.0.0.1"))+
			"[[listen]]\nname = \"implicit\"\naddress = \"127.0.0.1:0\"\ntls = \"implicit\"\n"+listen),
	}
}

// took says whether ann's message came in over TLS and with her login, going by what the client printed.
func (s *submission) took(t *testing.T, out string) {
	t.Helper()
	_, id, ok := strings.Cut(out, "250 2.6.0 Message queued as ")
	if !ok || len(id) < 26 {
		t.Errorf("no message was queued:\n%s", out)
		return
	}
	id = id[:26]
	if field := s.received(id); !strings.Contains(field, " with ESMTPSA (TLS1.3 TLS_") {
		t.Errorf("not over TLS and with a login: %s", field)
	}
	s.waitLine(id, `"proto":"ESMTPSA"`, `"user":"ann"`)
}

// fails runs a client that must end with an error, and gives what it said.
func fails(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command("timeout", append([]string{"60", need(t, name)}, args...)...).CombinedOutput()
	if err == nil {
		t.Errorf("%s %v went through:\n%s", name, args, out)
	}
	return string(out)
}

func TestSwaksLogsInByPlainLoginAndCRAMMD5(t *testing.T) {
	s := newSubmission(t, allMechanisms)
	for i, way := range []string{"--tls", "--tls-on-connect"} {
		args := []string{"--server", s.addr[i], way, "--from", "ann@example.net", "--to", "b@example.org"}
		for _, mechanism := range []string{"PLAIN", "LOGIN", "CRAM-MD5"} {
			s.took(t, runClient(t, nil, "swaks", append(args, "--auth", mechanism, "--auth-user", "ann", "--auth-password", "pencil")...))
			if i == 0 {
				out := fails(t, "swaks", append(args, "--auth", mechanism, "--auth-user", "ann", "--auth-password", "wrong")...)
				if !strings.Contains(out, "535 5.7.8") {
					t.Errorf("a wrong password by %s:\n%s", mechanism, out)
				}
			}
		}
		if out := fails(t, "swaks", args...); !strings.Contains(out, "530 5.7.0") {
			t.Errorf("without a login:\n%s", out)
		}
	}
}

// curl sends a message with the arguments; the certificate is verified.
func (s *submission) curl(t *testing.T, i int, args ...string) []string {
	t.Helper()
	_, port, err := net.SplitHostPort(s.addr[i])
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "msg")
	if err := os.WriteFile(file, []byte("Subject: curl\r\n\r\nbody\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	url := []string{"smtp", "smtps"}[i] + "://mx.example.net:" + port + "/curl.example"
	return append([]string{"-sSv", "--noproxy", "*", "--ssl-reqd", "--cacert", s.a.file, "--resolve", "mx.example.net:" + port + ":127.0.0.1", url,
		"--mail-from", "ann@example.net", "--mail-rcpt", "b@example.org", "--upload-file", file}, args...)
}

// withoutMechanism is the list of all but one.
func withoutMechanism(name string) string {
	return strings.Replace(allMechanisms, `"`+name+`", `, "", 1)
}

func TestCurlLogsInByEachMechanismThatItHas(t *testing.T) {
	all := newSubmission(t, allMechanisms)
	xoauth2 := startSubmission(t, withoutMechanism("OAUTHBEARER")) // which curl prefers, whatever it is told
	for i := range 2 {
		for _, test := range []struct {
			mechanism string
			args      []string
		}{
			{"PLAIN", []string{"--user", "ann:pencil"}},
			{"PLAIN", []string{"--user", "ann:pencil", "--sasl-ir"}},
			{"LOGIN", []string{"--user", "ann:pencil"}},
			{"LOGIN", []string{"--user", "ann:pencil", "--sasl-ir"}},
			{"CRAM-MD5", []string{"--user", "ann:pencil"}},
			{"OAUTHBEARER", []string{"--user", "ann", "--oauth2-bearer", token}},
			{"OAUTHBEARER", []string{"--user", "ann", "--oauth2-bearer", token, "--sasl-ir"}},
			{"XOAUTH2", []string{"--user", "ann", "--oauth2-bearer", token}},
			{"XOAUTH2", []string{"--user", "ann", "--oauth2-bearer", token, "--sasl-ir"}},
			{"EXTERNAL", []string{"--user", "ann:", "--cert", all.client.cert, "--key", all.client.key}},
		} {
			s := all
			if test.mechanism == "XOAUTH2" {
				s = xoauth2
			}
			out := runClient(t, nil, "curl", s.curl(t, i, append(test.args, "--login-options", "AUTH="+test.mechanism)...)...)
			if !strings.Contains(out, "AUTH "+test.mechanism) {
				t.Errorf("curl did not use %s:\n%s", test.mechanism, out)
			}
			s.took(t, out)
		}
	}
}

func TestCurlIsTold535ForWrongCredentials(t *testing.T) {
	s := newSubmission(t, allMechanisms)
	for mechanism, args := range map[string][]string{
		"PLAIN":       {"--user", "ann:wrong"},
		"CRAM-MD5":    {"--user", "nobody:pencil"},
		"OAUTHBEARER": {"--user", "ann", "--oauth2-bearer", "expired"},
	} {
		if out := fails(t, "curl", s.curl(t, 0, append(args, "--login-options", "AUTH="+mechanism)...)...); !strings.Contains(out, "< 535 5.7.8") {
			t.Errorf("%s:\n%s", mechanism, out)
		}
	}
	if n := s.lines("accepted"); n != 0 {
		t.Errorf("%d messages were taken", n)
	}
}

const pythonLogins = `
import smtplib, ssl, sys
starttls, implicit, ca, cert, key = sys.argv[1:]
ctx = ssl.create_default_context(cafile=ca)
ctx.check_hostname = False

def client(which=starttls):
    host, port = which.rsplit(":", 1)
    if which is implicit:
        return smtplib.SMTP_SSL(host, int(port), local_hostname="python.example", timeout=30, context=ctx)
    s = smtplib.SMTP(host, int(port), local_hostname="python.example", timeout=30)
    code, text = s.starttls(context=ctx)
    assert code == 220, (code, text)
    return s

def send(s, how):
    refused = s.sendmail("ann@example.net", ["b@example.org"], "Subject: %s\r\n\r\n" % how)
    assert not refused, refused
    s.quit()

s = client()
s.ehlo()
assert "starttls" not in s.esmtp_features and "CRAM-MD5" in s.esmtp_features["auth"], s.esmtp_features
try:
    s.sendmail("ann@example.net", ["b@example.org"], "Subject: no login\r\n\r\n")
    raise AssertionError("a message without a login")
except smtplib.SMTPSenderRefused as e:
    assert e.smtp_code == 530, e
s.login("ann", "pencil")  # prefers CRAM-MD5
send(s, "CRAM-MD5")

for which in (starttls, implicit):
    for ir in (True, False):
        for mechanism in ("PLAIN", "LOGIN"):
            s = client(which)
            s.ehlo()
            s.user, s.password = "ann", "pencil"
            code, text = s.auth(mechanism, getattr(s, "auth_" + mechanism.lower()), initial_response_ok=ir)
            assert code == 235, (mechanism, code, text)
            send(s, mechanism)

s = client()
try:
    s.login("ann", "wrong")  # all three mechanisms
    raise AssertionError("a wrong password")
except smtplib.SMTPAuthenticationError as e:
    assert e.smtp_code == 535, e
s.close()

ctx.load_cert_chain(cert, key)
s = client()
s.ehlo()
code, text = s.docmd("AUTH EXTERNAL", "=")
assert code == 235, (code, text)
send(s, "EXTERNAL")
`

func TestPythonsSmtplibLogsIn(t *testing.T) {
	s := newSubmission(t, allMechanisms)
	runClient(t, nil, "python3", "-c", pythonLogins, s.addr[0], s.addr[1], s.a.file, s.client.cert, s.client.key)
	s.wait("the messages of all logins", func() bool {
		return s.lines("accepted", `"proto":"ESMTPSA"`, `"user":"ann"`, `"helo":"python.example"`) == 10
	})
}

func TestGsaslLogsInBySCRAM(t *testing.T) {
	s := newSubmission(t, allMechanisms)
	for _, test := range []struct {
		mechanism string
		args      []string
	}{
		{"SCRAM-SHA-256-PLUS", nil},
		{"SCRAM-SHA-256", []string{"--no-cb"}}, // gsasl does not use it where it could bind the channel
		{"PLAIN", nil},
		{"CRAM-MD5", nil},
	} {
		args := append([]string{"--smtp", "--connect=" + s.addr[0], "--x509-ca-file=" + s.a.file, "--mechanism=" + test.mechanism,
			"--authentication-id=ann"}, test.args...)
		if out := runClient(t, nil, "gsasl", append(args, "--password=pencil")...); !strings.Contains(out, "235 2.7.0") {
			t.Errorf("%s:\n%s", test.mechanism, out)
		}
		if out := fails(t, "gsasl", append(args, "--password=wrong")...); !strings.Contains(out, "535 5.7.8") {
			t.Errorf("%s with a wrong password:\n%s", test.mechanism, out)
		}
	}
}

func TestSclientLogsInByItsCertificate(t *testing.T) {
	s := newSubmission(t, allMechanisms)
	for _, response := range []string{"=", b64("ann")} {
		d := sclient(t, s.addr[0], "-starttls", "smtp", "-cert", s.client.cert, "-key", s.client.key)
		d.say("ehlo openssl.example")
		d.expect(`^250 `)
		d.say("auth external " + response)
		d.expect(`^235 2\.7\.0`)
		d.say("auth external " + response)
		d.expect(`^503 5\.5\.1`)
	}
	d := sclient(t, s.addr[0], "-starttls", "smtp", "-cert", s.client.cert, "-key", s.client.key)
	d.say("ehlo openssl.example")
	d.expect(`^250 `)
	d.say("auth external " + b64("bob")) // somebody else
	d.expect(`^535 5\.7\.8`)
	d = sclient(t, s.addr[0], "-starttls", "smtp")
	d.say("ehlo openssl.example")
	if offers := d.expect(`^250-AUTH .*`); strings.Contains(offers, "EXTERNAL") {
		t.Errorf("EXTERNAL is offered to a client without a certificate: %s", offers)
	}
	d.expect(`^250 `)
	d.say("auth external =")
	d.expect(`^504 5\.5\.4`)
}

func TestSwaksLogsInAsAUserOfDovecots(t *testing.T) {
	t.Parallel()
	p := serve(t, t.TempDir(), edgeConfig("tls = \"required\"\nauth_required = true\nauth = [\"PLAIN\", \"LOGIN\", \"CRAM-MD5\"]\n",
		fmt.Sprintf("[auth]\ndovecot = %q\ncram_md5 = true\n", startDovecot(t))))
	args := []string{"--server", p.addr[0], "--tls", "--from", "alice@example.org", "--to", "b@example.net", "--auth-user", "alice@example.org"}
	for _, mechanism := range []string{"PLAIN", "LOGIN", "CRAM-MD5"} {
		out := runClient(t, nil, "swaks", append(args, "--auth", mechanism, "--auth-password", "secret")...)
		if !strings.Contains(out, "250 2.6.0 Message queued as ") {
			t.Errorf("%s:\n%s", mechanism, out)
		}
		if out := fails(t, "swaks", append(args, "--auth", mechanism, "--auth-password", "wrong")...); !strings.Contains(out, "535 5.7.8") {
			t.Errorf("%s with a wrong password:\n%s", mechanism, out)
		}
	}
	p.wait("three messages of alice's", func() bool { return p.lines("accepted", `"user":"alice@example.org"`) == 3 })
}
