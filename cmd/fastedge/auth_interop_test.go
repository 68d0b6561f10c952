//go:build interop

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/auth"
)

// dovecotConf is Dovecot as an authentication service and nothing else.
const dovecotConf = `protocols =
ssl = no
base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
auth_verbose = yes
auth_mechanisms = plain login cram-md5 scram-sha-256
auth_failure_delay = 0
passdb {
  driver = passwd-file
  args = username_format=%%u %[1]s/passwd
}
userdb {
  driver = static
  args = uid=65534 gid=65534 home=/nonexistent
}
service auth {
  user = root
  unix_listener %[1]s/run/auth-fastedge {
    mode = 0600
  }
}
service stats {
  unix_listener stats-writer {
    mode = 0666
  }
}
`

// dovecotPasswd has users whose password is known and hashed, and one who is locked out.
const dovecotPasswd = `alice@example.org:{PLAIN}secret
bob@example.org:{SSHA256}%s
carol@example.org:{PLAIN}locked::::::nologin=y
`

// startDovecot runs Debian's Dovecot until the test ends, and gives its socket.
func startDovecot(t *testing.T) string {
	t.Helper()
	program, doveadm := need(t, "dovecot"), need(t, "doveadm")
	dir, err := os.MkdirTemp("", "dc") // a short path: sockets allow 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := filepath.Join(dir, "dovecot.conf")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, fmt.Appendf(nil, dovecotConf, dir), 0o644); err != nil {
		t.Fatal(err)
	}
	hash, err := exec.Command(doveadm, "-c", conf, "pw", "-s", "SSHA256", "-p", "hunter2").Output()
	if err != nil {
		t.Fatalf("doveadm pw: %v", err)
	}
	passwd := fmt.Sprintf(dovecotPasswd, strings.TrimPrefix(strings.TrimSpace(string(hash)), "{SSHA256}"))
	if err := os.WriteFile(filepath.Join(dir, "passwd"), []byte(passwd), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	cmd := exec.CommandContext(ctx, program, "-F", "-c", conf)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("dovecot: %s\n%s", out.String(), log)
		}
	})
	socket := filepath.Join(dir, "run", "auth-fastedge")
	for {
		if _, err := os.Stat(socket); err == nil {
			return socket
		}
		select {
		case <-ended:
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Fatalf("dovecot ended: %s\n%s", out.String(), log)
		case <-ctx.Done():
			t.Fatal("dovecot makes no socket")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// authTry steps an exchange through the answers of a client, which gets each challenge.
func authTry(t *testing.T, s *auth.Service, mechanism string, p auth.Peer, first []byte, next func(challenge []byte) []byte) auth.Outcome {
	t.Helper()
	x := s.Begin(mechanism, p)
	if x == nil {
		t.Fatalf("%s is not supported", mechanism)
	}
	defer x.Cancel()
	answers := make(chan auth.Outcome, 1)
	for response, present := first, first != nil; ; present = true {
		x.Step(response, present, func(o auth.Outcome) { answers <- o })
		o := <-answers
		if o.Result != auth.Continue {
			return o
		}
		response = next(o.Challenge)
	}
}

func TestDovecotOfDebianChecksCredentials(t *testing.T) {
	socket := startDovecot(t)
	store, err := auth.NewDovecot(auth.DovecotOptions{Address: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := store.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := auth.New(auth.Options{Store: store, CRAMMD5: true, FailureDelay: -1, StepTimeout: 30 * time.Second,
		Throttle: auth.ThrottleOptions{PerAddress: -1, PerAccount: -1}})
	if err != nil {
		t.Fatal(err)
	}
	for mechanism, want := range map[string]bool{"PLAIN": true, "LOGIN": true, "CRAM-MD5": true, "SCRAM-SHA-256": true,
		"SCRAM-SHA-256-PLUS": false, "OAUTHBEARER": false, "EXTERNAL": false} {
		if s.Supports(mechanism) != want {
			t.Errorf("Supports(%s) is not %v", mechanism, want)
		}
	}
	// Dovecot delays addresses that fail; each try has its own.
	tries := byte(0)
	peer := func() auth.Peer {
		tries++
		return auth.Peer{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, tries}), 2500), Session: "interop"}
	}
	no := func([]byte) []byte { return nil }
	for _, c := range []struct {
		user, password string
		want           auth.Result
	}{
		{"alice@example.org", "secret", auth.Success},
		{"alice@example.org", "wrong", auth.Failed},
		{"alice@example.org", "", auth.Failed},
		{"bob@example.org", "hunter2", auth.Success},
		{"nobody@example.org", "secret", auth.Failed},
		{"carol@example.org", "locked", auth.Failed},
		{"tab\there", "secret", auth.Failed},
	} {
		check := func(how string, o auth.Outcome) {
			t.Helper()
			if o.Result != c.want || c.want == auth.Success && o.User != c.user {
				t.Errorf("%s, %s %q: %v %q, want %v", how, c.user, c.password, o.Result, o.User, c.want)
			}
		}
		plain := []byte("\x00" + c.user + "\x00" + c.password)
		check("PLAIN", authTry(t, s, "PLAIN", peer(), plain, no))
		check("PLAIN, late", authTry(t, s, "PLAIN", peer(), nil, func([]byte) []byte { return plain }))
		check("LOGIN", authTry(t, s, "LOGIN", peer(), nil, func(challenge []byte) []byte {
			if string(challenge) == "Username:" {
				return []byte(c.user)
			}
			return []byte(c.password)
		}))
	}
	for _, password := range []string{"secret", "wrong"} {
		want := auth.Success
		if password != "secret" {
			want = auth.Failed
		}
		for _, mechanism := range []string{"SCRAM-SHA-256", "CRAM-MD5"} {
			o := foreignLogin(t, s, mechanism, peer(), "alice@example.org", password)
			if o.Result != want || want == auth.Success && o.User != "alice@example.org" {
				t.Errorf("%s with %s: %v %q, want %v", mechanism, password, o.Result, o.User, want)
			}
		}
	}
	// Many at a time over the one connection.
	const many = 50
	results := make(chan auth.Outcome, many)
	for i := range many {
		password := []string{"secret", "wrong"}[i%2]
		s.Begin("PLAIN", peer()).Step([]byte("\x00alice@example.org\x00"+password), true, func(o auth.Outcome) { results <- o })
	}
	good := 0
	for range many {
		if o := <-results; o.Result == auth.Success {
			good++
		} else if o.Result != auth.Failed {
			t.Errorf("one of many: %v", o.Result)
		}
	}
	if good != many/2 {
		t.Errorf("%d of %d log in, want half", good, many)
	}
}

// foreignLogin answers the challenges with Python's hmac and hashlib: nothing of ours checks itself.
func foreignLogin(t *testing.T, s *auth.Service, mechanism string, p auth.Peer, user, password string) auth.Outcome {
	t.Helper()
	python := need(t, "python3")
	ask := func(script string, args ...string) []byte {
		t.Helper()
		out, err := exec.Command(python, append([]string{"-c", script}, args...)...).Output()
		if err != nil {
			t.Fatalf("python: %v", err)
		}
		return []byte(strings.TrimSuffix(string(out), "\n"))
	}
	if mechanism == "CRAM-MD5" {
		return authTry(t, s, mechanism, p, nil, func(challenge []byte) []byte {
			return ask(`import hmac,sys; u,p,c=sys.argv[1:]; print(u, hmac.new(p.encode(), c.encode(), "md5").hexdigest())`, user, password, string(challenge))
		})
	}
	bare := "n=" + user + ",r=fyko+d2lbbFgONRv9qkxdawL"
	return authTry(t, s, mechanism, p, []byte("n,,"+bare), func(challenge []byte) []byte {
		if strings.HasPrefix(string(challenge), "v=") {
			return []byte{}
		}
		return ask(`
import base64, hashlib, hmac, sys
password, bare, first = sys.argv[1:]
f = dict(x.split("=", 1) for x in first.split(","))
mac = lambda k, m: hmac.new(k, m.encode(), "sha256").digest()
salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(f["s"]), int(f["i"]))
key = mac(salted, "Client Key")
last = "c=biws,r=" + f["r"]
signature = mac(hashlib.sha256(key).digest(), bare + "," + first + "," + last)
print(last + ",p=" + base64.b64encode(bytes(a ^ b for a, b in zip(key, signature))).decode())`, password, bare, string(challenge))
	})
}

// The users file serves a client that is not ours, too.
func TestUsersFileServesAClientInPython(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	authWant(t, 0, "", "", "secret\n", "add", "alice", "--file", path, "--cram-md5", cheap)
	store, err := auth.OpenUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := auth.New(auth.Options{Store: store, CRAMMD5: true, FailureDelay: -1})
	if err != nil {
		t.Fatal(err)
	}
	p := auth.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:2500")}
	for _, mechanism := range []string{"SCRAM-SHA-256", "CRAM-MD5"} {
		if o := foreignLogin(t, s, mechanism, p, "alice", "secret"); o.Result != auth.Success || o.User != "alice" {
			t.Errorf("%s: %v %q", mechanism, o.Result, o.User)
		}
		if o := foreignLogin(t, s, mechanism, p, "alice", "wrong"); o.Result != auth.Failed {
			t.Errorf("%s, wrong: %v", mechanism, o.Result)
		}
	}
}

// passwordAtTerminal answers prompts on a pseudo terminal: arguments are the answers as JSON and the command.
const passwordAtTerminal = `
import json, os, pty, sys
answers = json.loads(sys.argv[1])
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
seen = b""
while True:
    try:
        piece = os.read(fd, 1024)
    except OSError:
        break
    if not piece:
        break
    seen += piece
    if seen.endswith(b": ") and answers:
        os.write(fd, answers.pop(0).encode() + b"\n")
        seen += b"|"
_, status = os.waitpid(pid, 0)
sys.stdout.write(seen.decode())
sys.exit(os.waitstatus_to_exitcode(status))
`

func TestPasswordIsAskedTwiceAtATerminalAndNotShown(t *testing.T) {
	python := need(t, "python3")
	dir := t.TempDir()
	program, users := filepath.Join(dir, "fastedge"), filepath.Join(dir, "users")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	add := func(answers string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, python, "-c", passwordAtTerminal, answers, program, "auth", "add", "alice", "--file", users, cheap).CombinedOutput()
		return string(out), err
	}
	out, err := add(`["secret", "secreT"]`)
	if err == nil || !strings.Contains(out, "the two passwords differ") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(users); err == nil {
		t.Error("a user was added all the same")
	}
	out, err = add(`["secret", "secret"]`)
	if err != nil || !strings.Contains(out, "Password of alice: |") || !strings.Contains(out, "Once more: |") || !strings.Contains(out, "alice: added") || strings.Contains(out, "secret") {
		t.Errorf("%v\n%s", err, out)
	}
	store, err := auth.OpenUsers(users)
	if err != nil {
		t.Fatal(err)
	}
	if user, err := store.CheckPassword(context.Background(), auth.Login{Mechanism: "PLAIN", User: "alice", Password: "secret"}); err != nil || user != "alice" {
		t.Errorf("%q %v", user, err)
	}
}
