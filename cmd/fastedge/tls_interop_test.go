//go:build interop

package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// These tests drive the real program with OpenSSL's s_client.

// dialogue is a client program that the test talks through.
type dialogue struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *logTail
	read int // bytes of out that were expected already
	done chan struct{}
}

// sclient starts s_client in its interactive mode, in which lines that begin with R, K, k or Q are commands of its own: mail is sent in
// lower case.
func sclient(t *testing.T, addr string, args ...string) *dialogue {
	t.Helper()
	d := &dialogue{t: t, out: &logTail{}, done: make(chan struct{})}
	d.cmd = exec.Command("timeout", append([]string{"60", need(t, "openssl"), "s_client", "-crlf", "-connect", addr}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	var err error
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err = d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.cmd.Wait(); close(d.done) }()
	t.Cleanup(func() { d.in.Close(); <-d.done })
	return d
}

func (d *dialogue) say(line string) { io.WriteString(d.in, line+"\n") }

// expect waits for what has not been expected before, and gives the match.
func (d *dialogue) expect(pattern string) string {
	d.t.Helper()
	re := regexp.MustCompile(`(?m)` + pattern)
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		over := false
		select {
		case <-d.done:
			over = true
		default:
		}
		text := d.out.String()[d.read:]
		if at := re.FindStringIndex(text); at != nil {
			d.read += at[1]
			return text[at[0]:at[1]]
		}
		if over || time.Now().After(end) {
			d.t.Fatalf("no %s from the client:\n%s", pattern, d.out)
		}
	}
}

// ends waits for the end of the program and gives all that it said.
func (d *dialogue) ends() string {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(patience):
		d.t.Fatalf("the client goes on:\n%s", d.out)
	}
	return d.out.String()
}

// sends goes through a transaction and gives the id of the message.
func (d *dialogue) sends() string {
	d.t.Helper()
	d.say("ehlo openssl.example")
	d.expect(`^250 `)
	d.say("mail from:<a@example.org>")
	d.expect(`^250 2\.1\.0`)
	d.say("rcpt to:<b@example.net>")
	d.expect(`^250 2\.1\.5`)
	d.say("data")
	d.expect(`^354 `)
	d.say("Subject: s_client\n\nbody\n.")
	reply := d.expect(`^250 2\.6\.0 Message queued as [0-9a-z]{26}`)
	return reply[len(reply)-26:]
}

// handshakes runs s_client until the handshake is over and says whether one came about, and what was said.
func handshakes(t *testing.T, addr string, args ...string) (bool, string) {
	t.Helper()
	cmd := exec.Command("timeout", append([]string{"20", need(t, "openssl"), "s_client", "-connect", addr}, args...)...)
	out, err := cmd.CombinedOutput()
	return err == nil, string(out)
}

func TestSclientSendsMailWithEachVersionByBothWaysIntoTLS(t *testing.T) {
	a := newAuthority(t)
	server := a.issue("server", false, "mx.example.net")
	p := serve(t, t.TempDir(), tlsConfig("", "", server)+"[[listen]]\nname = \"implicit\"\naddress = \"127.0.0.1:0\"\ntls = \"implicit\"\n")
	for _, version := range []string{"1.2", "1.3"} {
		for i, way := range [][]string{{"-starttls", "smtp", "-name", "openssl.example"}, nil} {
			args := append([]string{"-tls" + strings.Replace(version, ".", "_", 1), "-CAfile", a.file, "-verify_return_error", "-verify_hostname", "mx.example.net"}, way...)
			d := sclient(t, p.addr[i], args...)
			id := d.sends()
			d.say("quit")
			d.expect(`^221 `)
			if out := d.ends(); !strings.Contains(out, "Verify return code: 0 (ok)") || strings.Contains(out, "unexpected eof") {
				t.Errorf("TLS %s %v:\n%s", version, way, out)
			}
			cipher := map[string]string{"1.2": "TLS_ECDHE_ECDSA_WITH_", "1.3": "TLS_"}[version]
			if field := p.received(id); !strings.Contains(field, " with ESMTPS (TLS"+version+" "+cipher) {
				t.Errorf("TLS %s %v: %s", version, way, field)
			}
			p.waitLine(id, `"proto":"ESMTPS"`, `"tls":"TLS`+version+`"`)
		}
	}
}

func TestSclientGetsTheCertificateThatItAsksForAndCanUse(t *testing.T) {
	a := newAuthority(t)
	net, netRSA := a.issue("net", false, "mx.example.net"), a.issue("net-rsa", true, "mx.example.net")
	org := a.issue("org", false, "mx.example.org")
	p := serve(t, t.TempDir(), tlsConfig("", "", net, netRSA, org))
	for _, test := range []struct {
		args string
		want pair
	}{
		{"-servername mx.example.net", net},
		{"-servername mx.example.org", org},
		{"-servername nowhere.example", net},
		{"-noservername", net},
		{"-servername mx.example.net -sigalgs rsa_pss_rsae_sha256", netRSA},
		{"-servername mx.example.net -tls1_2 -cipher ECDHE-RSA-AES256-GCM-SHA384", netRSA},
		{"-servername mx.example.net -tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384", net},
	} {
		ok, out := handshakes(t, p.addr[0], append(strings.Fields(test.args), "-starttls", "smtp", "-showcerts")...)
		if !ok {
			t.Errorf("%s:\n%s", test.args, out)
			continue
		}
		block, _ := pem.Decode([]byte(out[strings.Index(out, "-----BEGIN"):]))
		if leaf, err := x509.ParseCertificate(block.Bytes); err != nil || leaf.SerialNumber.Int64() != test.want.serial {
			t.Errorf("%s: certificate %v, want %d; %v", test.args, leaf.SerialNumber, test.want.serial, err)
		}
	}
}

func TestSclientsOldVersionsAndWeakCiphersAreRefused(t *testing.T) {
	a := newAuthority(t)
	p := serve(t, t.TempDir(), edgeConfig("tls = \"implicit\"\n", fmt.Sprintf("[tls]\ncertificates = [%s, %s]\n",
		a.issue("ecdsa", false, "mx.example.net").toml(), a.issue("rsa", true, "mx.example.net").toml())))
	for version, want := range map[string]bool{"-tls1": false, "-tls1_1": false, "-tls1_2": true, "-tls1_3": true} {
		if ok, out := handshakes(t, p.addr[0], version, "-cipher", "DEFAULT:@SECLEVEL=0"); ok != want {
			t.Errorf("%s: accepted is %v:\n%s", version, ok, out)
		}
	}
	// Everything that OpenSSL knows, one by one: anonymous, NULL, CBC, RSA key exchange, finite fields, CCM, ARIA, Camellia.
	known := strings.Split(strings.TrimSpace(runClient(t, nil, "openssl", "ciphers", "-s", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0")), ":")
	var accepted []string
	for _, cipher := range known {
		if ok, _ := handshakes(t, p.addr[0], "-tls1_2", "-cipher", cipher+":@SECLEVEL=0"); ok {
			accepted = append(accepted, cipher)
		}
	}
	want := []string{"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305",
		"ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-CHACHA20-POLY1305"}
	slices.Sort(accepted)
	if !slices.Equal(accepted, want) {
		t.Errorf("of TLS 1.2's %d suites are accepted\n%v, want\n%v", len(known), accepted, want)
	}
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
		if ok, out := handshakes(t, p.addr[0], "-tls1_3", "-ciphersuites", suite); !ok {
			t.Errorf("%s:\n%s", suite, out)
		}
	}
	if _, out := handshakes(t, p.addr[0], "-tls1_2"); !strings.Contains(out, "Secure Renegotiation IS supported") || !strings.Contains(out, "Compression: NONE") {
		t.Errorf("RFC 5746 or compression:\n%s", out)
	}
}

func TestSclientsKeyUpdatesGoUnnoticed(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("tls = \"opportunistic\"\n", ""))
	d := sclient(t, p.addr[0], "-starttls", "smtp", "-tls1_3")
	first := d.sends()
	for range 3 {
		d.say("k") // its own keys
		d.expect(`KEYUPDATE`)
		d.say("noop")
		d.expect(`^250 2\.0\.0`)
		d.say("K") // ours as well
		d.expect(`KEYUPDATE`)
		d.say("noop")
		d.expect(`^250 2\.0\.0`)
	}
	if second := d.sends(); second == first {
		t.Error("one message twice")
	}
	d.say("quit")
	d.expect(`^221 `)
	d.ends()
}

func TestSclientsRenegotiationEndsTheConnection(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("tls = \"opportunistic\"\n", ""))
	d := sclient(t, p.addr[0], "-starttls", "smtp", "-tls1_2")
	d.say("ehlo openssl.example")
	d.expect(`^250 `)
	d.say("R")
	d.expect(`RENEGOTIATING`)
	if out := d.ends(); !strings.Contains(out, "alert") {
		t.Errorf("no alert:\n%s", out)
	}
	// What is left of it serves others.
	d = sclient(t, p.addr[0], "-starttls", "smtp", "-tls1_2")
	d.sends()
}

func TestSclientResumesOnlyWithSessionTickets(t *testing.T) {
	a := newAuthority(t)
	server := a.issue("server", false, "mx.example.net")
	for _, tickets := range []bool{false, true} {
		p := serve(t, t.TempDir(), edgeConfig("tls = \"implicit\"\n", fmt.Sprintf("[tls]\nsession_tickets = %v\ncertificates = [%s]\n", tickets, server.toml())))
		if _, out := handshakes(t, p.addr[0], "-tls1_2", "-reconnect"); strings.Contains(out, "Reused, ") != tickets {
			t.Errorf("TLS 1.2, session_tickets = %v:\n%s", tickets, out)
		}
		// In TLS 1.3 a ticket comes behind the handshake.
		session := filepath.Join(t.TempDir(), "session")
		d := sclient(t, p.addr[0], "-tls1_3", "-sess_out", session)
		d.say("ehlo openssl.example")
		d.expect(`^250 `)
		d.say("quit")
		d.ends()
		if _, err := os.Stat(session); (err == nil) != tickets {
			t.Errorf("a session to resume: %v, session_tickets = %v:\n%s", err, tickets, d.out)
		} else if err == nil {
			if _, out := handshakes(t, p.addr[0], "-tls1_3", "-sess_in", session); !strings.Contains(out, "Reused, ") {
				t.Errorf("TLS 1.3 does not resume:\n%s", out)
			}
		}
	}
}

func TestSclientsCertificateIsRequestedOrRequired(t *testing.T) {
	a, elsewhere := newAuthority(t), newAuthority(t)
	server := a.issue("server", false, "mx.example.net")
	ours, theirs := a.issue("client", true, "client.example.net"), elsewhere.issue("client", false, "client.example.net")
	file, err := os.ReadFile(ours.cert)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(file)
	sum := sha256.Sum256(block.Bytes)
	for _, mode := range []string{"off", "request", "require"} {
		p := serve(t, t.TempDir(), tlsConfig(fmt.Sprintf("client_certificates = %q\n", mode), fmt.Sprintf(`client_ca = %q
[[rule]]
at = "mail"
when = 'tls_certificate == "client.example.net" and tls_fingerprint == %q'
reply = "250 2.1.0 Known client"
`, a.file, hex.EncodeToString(sum[:])), server))
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			for name, test := range map[string]struct {
				args    []string
				refused bool // with require
				known   bool // when it was asked for
			}{
				"ours":    {[]string{"-cert", ours.cert, "-key", ours.key}, false, true},
				"another": {[]string{"-cert", theirs.cert, "-key", theirs.key}, true, false},
				"none":    {nil, true, false},
			} {
				d := sclient(t, p.addr[0], append(test.args, "-starttls", "smtp", version)...)
				if mode == "require" && test.refused {
					// In TLS 1.3 the client believes that it is through until it reads the alert.
					if out := d.ends(); !strings.Contains(out, "alert") {
						t.Errorf("%s %s %s: no alert:\n%s", mode, version, name, out)
					}
					continue
				}
				d.say("ehlo openssl.example")
				d.expect(`^250 `)
				d.say("mail from:<a@example.org>")
				reply := d.expect(`^250 2\.1\.0 .*`)
				if known := strings.Contains(reply, "Known client"); known != (test.known && mode != "off") {
					t.Errorf("%s %s %s: %q", mode, version, name, reply)
				}
				d.say("quit")
				d.ends()
			}
		}
	}
}

const pythonTLSClient = `
import os, smtplib, ssl, sys
host, port = sys.argv[1].rsplit(":", 1)
folder, version = sys.argv[2:]
ctx = ssl.create_default_context()
ctx.check_hostname = False
ctx.verify_mode = ssl.CERT_NONE
ctx.minimum_version = ctx.maximum_version = getattr(ssl.TLSVersion, version)
s = smtplib.SMTP(host, int(port), timeout=30)
s.ehlo("python.example")
s.starttls(context=ctx)
for name in sorted(os.listdir(folder)):
    with open(os.path.join(folder, name), "rb") as f:
        msg = f.read()
    refused = s.sendmail("sender@example.org", ["rcpt@example.net"], msg, mail_options=["BODY=8BITMIME"])
    assert not refused, refused
s.quit()
`

func TestPythonsSmtplibSendsEveryMessageOverTLSThroughToTheNextHop(t *testing.T) {
	for _, version := range []string{"TLSv1_2", "TLSv1_3"} {
		hop := serve(t, t.TempDir(), minimalConfig)
		c := &chain{t: t, hop: hop, edge: serve(t, t.TempDir(), edgeConfig("tls = \"required\"\n", "[relay]\nnext_hop = [\"smtp://"+hop.addr[0]+"\"]\n"))}
		sent := mails()
		runClient(t, nil, "python3", "-c", pythonTLSClient, c.edge.addr[0], folder(t, sent), version)
		checkAll(t, c.arrived(len(sent)), sent, "")
	}
}
