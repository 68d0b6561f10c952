package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	nats "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/fastedge/fastedge/internal/nettest"
	"github.com/fastedge/fastedge/queue"
)

// The tests of this file run fastedge over a nats-server within the test's process.

// onJetStream is a fastedge with the engine jetstream; more goes behind [queue.jetstream].
func onJetStream(url, more string) string {
	return strings.Replace(minimalConfig, "[queue]\n", "[queue]\nengine = \"jetstream\"\n", 1) + fmt.Sprintf("[queue.jetstream]\nurl = %q\n%s\n", url, more)
}

// oneShot runs a verb to its end and gives its exit code and all that it printed.
func oneShot(t *testing.T, config string, args ...string) (int, string) {
	t.Helper()
	cmd := command(t, t.TempDir(), config, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !ended.Stop() {
		t.Fatalf("%v does not end:\n%s", args, &out)
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// A server without JetStream may get it: check warns, and serve starts and refuses mail until then.
func TestCheckAndServeThinkAlikeOfAServerWithoutJetStream(t *testing.T) {
	config := onJetStream(embeddedNATS(t, func(o *nats.Options) { o.JetStream = false }).ClientURL(), `timeout = "1s"`)
	if code, out := oneShot(t, config, "check"); code != exitOK || !strings.Contains(out, "not verified") {
		t.Errorf("check: %d\n%s", code, out)
	}
	p := serve(t, t.TempDir(), config)
	if st := p.stat(t); st.Alarm == "" {
		t.Errorf("no alarm: %+v", st)
	}
}

func TestQueueStatFailsAsQueueListDoesWhenTheClusterIsAway(t *testing.T) {
	for _, engine := range []string{"jetstream", "spool+jetstream"} {
		config := strings.Replace(onJetStream("nats://"+nettest.Nobody(t), `timeout = "1s"`), `"jetstream"`, `"`+engine+`"`, 1)
		p := serve(t, t.TempDir(), config)
		for _, running := range []bool{true, false} {
			if !running {
				p.term()
			}
			for _, verb := range [][]string{{"queue", "list"}, {"queue", "stat"}, {"queue", "stat", "--json"}} {
				cmd := p.verb(verb...)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				// What the client library says depends on how often it has tried by then.
				away := func(why string) bool { return strings.Contains(stderr.String(), why) }
				if cmd.ProcessState.ExitCode() != exitFailure || !away("no servers available") && !away("refused") && !away("server is disconnected") {
					t.Errorf("%s, running %v: %v: %v\n%s%s", engine, running, verb, err, out, &stderr)
				}
				if verb[1] == "stat" && !bytes.Contains(bytes.ToLower(out), []byte("alarm")) {
					t.Errorf("%s, running %v: %v says\n%s", engine, running, verb, out)
				}
			}
		}
	}
}

// delivered is the id of a message that the edge has taken, at the first try or a later one.
func delivered(p *process, text string) (id string) {
	p.t.Helper()
	p.wait("a message to be taken", func() bool {
		client, err := hello(p.addr[0])
		if err != nil {
			return false
		}
		defer client.Close()
		id, err = client.deliver(text)
		return err == nil
	})
	return id
}

// Through a running server, and without one.
func TestOperatorsHoldReleaseRetryAndDropMailOnJetStream(t *testing.T) {
	config := onJetStream(embeddedNATS(t).ClientURL(), "")
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			hop, kind := refusingHop(t)
			p := serve(t, t.TempDir(), config+"[relay]\nnext_hop = [\"smtp://"+hop+"\"]\n")
			send := func(to string) string {
				t.Helper()
				c, err := hello(p.addr[0])
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := c.talk("MAIL FROM:<a@example.org>\r\nRCPT TO:<"+to+">\r\nDATA\r\n", "250", "250", "354"); err != nil {
					t.Fatal(err)
				}
				reply, err := c.talk("Subject: x\r\n\r\nx\r\n.\r\n", "250 2.6.0")
				if err != nil {
					t.Fatal(err)
				}
				return queuedAs.FindStringSubmatch(reply)[1]
			}
			dead, waiting, dropped := send("gone@example.net"), send("full@example.net"), send("full@example.net")
			p.wait("all to be tried", func() bool { st := p.stat(t).Messages; return st["dead"] == 1 && st["waiting"] == 2 })
			if !running {
				p.term()
			}
			state := func(id string, want queue.State) {
				t.Helper()
				var e queue.Entry
				if err := json.Unmarshal(p.fastedge("queue", "show", "--json", id), &e); err != nil || e.State != want {
					t.Errorf("%s is %v, not %v: %v", id, e.State, want, err)
				}
			}
			if out := string(p.fastedge("queue", "list", "--state", "dead")); !strings.Contains(out, dead) || strings.Contains(out, waiting) {
				t.Errorf("queue list --state dead:\n%s", out)
			}
			p.fastedge("queue", "hold", "--reason", "for a look", waiting)
			state(waiting, queue.Held)
			if out := string(p.fastedge("queue", "list", "--state", "held")); !strings.Contains(out, waiting) || !strings.Contains(out, "for a look") {
				t.Errorf("queue list --state held:\n%s", out)
			}
			p.fastedge("queue", "drop", dropped)
			if out := string(p.fastedge("queue", "list")); strings.Contains(out, dropped) {
				t.Errorf("queue list after drop:\n%s", out)
			}
			kind.Store(true)
			p.fastedge("queue", "release", dead, waiting)
			if !running {
				state(dead, queue.Ready)
				p = serve(t, p.dir, config+"[relay]\nnext_hop = [\"smtp://"+hop+"\"]\n")
			}
			p.wait("both to be handed on", func() bool {
				st := p.stat(t)
				n := 0
				for _, of := range st.Messages {
					n += of
				}
				return n == 0 && st.Alarm == ""
			})
			p.term()
		})
	}
}

// userFile writes credentials of a new user of the account, as nsc does.
func userFile(t *testing.T, account nkeys.KeyPair) string {
	t.Helper()
	user, seed := newKey(t, nkeys.CreateUser)
	claims := jwt.NewUserClaims(user)
	token, err := claims.Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "edge.creds")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// newKey makes a key and gives its public part and its seed.
func newKey(t *testing.T, create func() (nkeys.KeyPair, error)) (public string, seed []byte) {
	t.Helper()
	key, err := create()
	if err == nil {
		public, err = key.PublicKey()
	}
	if err == nil {
		seed, err = key.Seed()
	}
	if err != nil {
		t.Fatal(err)
	}
	return public, seed
}

// Servers that speak TLS only, want a certificate of their authority's, and a user of an account that their operator has signed.
func TestFastedgeShowsNATSServersItsCertificateAndCredentials(t *testing.T) {
	ca := newAuthority(t)
	serverPair, ours := ca.issue("nats", false, "127.0.0.1"), ca.issue("edge", false, "edge.example.net")
	key := func(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		public, seed := newKey(t, create)
		k, err := nkeys.FromSeed(seed)
		if err != nil {
			t.Fatal(err)
		}
		return k, public
	}
	operator, operatorID := key(nkeys.CreateOperator)
	account, accountID := key(nkeys.CreateAccount)
	_, systemID := key(nkeys.CreateAccount)
	resolver := &nats.MemAccResolver{}
	sign := func(id string, disk int64) {
		t.Helper()
		claims := jwt.NewAccountClaims(id)
		if disk != 0 {
			claims.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: disk, Streams: -1, Consumer: -1}
		}
		token, err := claims.Encode(operator)
		if err == nil {
			err = resolver.Store(id, token)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	sign(accountID, -1)
	sign(systemID, 0)
	trusted := jwt.NewOperatorClaims(operatorID)
	trusted.SystemAccount = systemID
	s := embeddedNATS(t, func(o *nats.Options) {
		o.TrustedOperators, o.AccountResolver, o.SystemAccount = []*jwt.OperatorClaims{trusted}, resolver, systemID
		o.TLSConfig = &tls.Config{
			Certificates: []tls.Certificate{serverPair.load(t)}, ClientCAs: ca.pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		}
		o.TLSVerify, o.TLSTimeout = true, patience.Seconds()
	})
	url := "tls://" + s.Addr().String()
	credentials := userFile(t, account)
	keys := func(cert, creds string) string {
		text := fmt.Sprintf("ca = %q\n", ca.file)
		if cert != "" {
			text += fmt.Sprintf("cert = %q\nkey = %q\n", cert, strings.TrimSuffix(cert, ".pem")+"-key.pem")
		}
		if creds != "" {
			text += fmt.Sprintf("credentials = %q\n", creds)
		}
		return text
	}
	p := serve(t, t.TempDir(), onJetStream(url, keys(ours.cert, credentials)))
	id := delivered(p, "Subject: in\r\n\r\n")
	if out := string(p.fastedge("queue", "list")); !strings.Contains(out, id) {
		t.Errorf("queue list:\n%s", out)
	}
	p.term()
	if out := string(p.fastedge("queue", "list")); !strings.Contains(out, id) {
		t.Errorf("queue list without a server:\n%s", out)
	}

	stranger, _ := key(nkeys.CreateAccount)
	for what, test := range map[string]struct{ config, want string }{
		"no certificate":      {keys("", credentials), "certificate"},
		"no credentials":      {keys(ours.cert, ""), "Authorization Violation"},
		"another account":     {keys(ours.cert, userFile(t, stranger)), "Authorization Violation"},
		"another authority":   {strings.Replace(keys(ours.cert, credentials), ca.file, newAuthority(t).file, 1), "certificate"},
		"not the users' file": {keys(ours.cert, ca.file), "credentials"},
	} {
		for verb, exit := range map[string]int{"check": exitConfig, "serve": exitFailure} {
			if code, out := oneShot(t, onJetStream(url, test.config), verb); code != exit || !strings.Contains(strings.ToLower(out), strings.ToLower(test.want)) {
				t.Errorf("%s, %s: exit code %d, want %d\n%s", what, verb, code, exit, out)
			}
		}
	}
}
