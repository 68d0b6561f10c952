//go:build interop

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/internal/nettest"
	"github.com/fastedge/fastedge/queue"
)

// gtube is what every filter takes for spam.
const gtube = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

// rspamd with a configuration of its own, as small as can be: no network, no Redis, one module that adds a header field.
const rspamdConfig = `
options {
  pidfile = "%[1]s/pid"; rundir = "%[1]s"; dbdir = "%[1]s"; tempdir = "%[1]s"; hs_cache_dir = "%[1]s"; url_tld = "%[1]s/tld";
  control_socket = "%[1]s/control mode=0600"; filters = []; local_addrs = []; dns { nameserver = ["127.0.0.1:9"]; }
}
logging { type = "console"; level = "info"; }
actions { reject = 15; add_header = 6; }
modules { path = "/usr/share/rspamd/plugins/milter_headers.lua"; }
milter_headers { use = ["x-spamd-bar"]; skip_local = false; skip_authenticated = false; }
worker "rspamd_proxy" {
  bind_socket = "127.0.0.1:%[2]s"; count = 1; milter = yes; timeout = 30s; upstream "local" { default = yes; self_scan = yes; }
}
`

// startRspamd runs rspamd as a milter, for two minutes at most, and gives its port.
func startRspamd(t *testing.T) string {
	t.Helper()
	program := need(t, "rspamd")
	dir, port := t.TempDir(), freePort(t)
	for file, text := range map[string]string{"rspamd.conf": fmt.Sprintf(rspamdConfig, dir, port), "tld": "com\nnet\norg\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log := &logTail{}
	cmd := exec.Command(program, "-f", "-c", filepath.Join(dir, "rspamd.conf"))
	cmd.Stdout, cmd.Stderr = log, log
	if os.Getuid() == 0 { // rspamd will not run as root
		u, err := user.Lookup("_rspamd")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	end := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		end.Stop()
		cmd.Process.Signal(syscall.SIGTERM) // it ends its workers
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			t.Logf("rspamd:\n%s", log)
		}
	})
	for {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
			return port
		}
		select {
		case <-done:
			t.Fatalf("rspamd has ended:\n%s", log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// rspamd behind [[milter]]: spam is refused at the end of data, what passes gets rspamd's header field in front and is the same otherwise; without
// rspamd mail waits at the sender's.
func TestRspamdRefusesSpamAndMarksTheRest(t *testing.T) {
	port := startRspamd(t)
	dir := t.TempDir()
	p := serve(t, dir, minimalConfig+fmt.Sprintf(`
[[milter]]
name = "rspamd"
address = "127.0.0.1:%s"
timeout = "20s"
`, port))
	c, err := hello(p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const header = "From: a@example.org\r\nTo: b@example.net\r\nSubject: test\r\n\tfolded\r\nMessage-ID: <1@example.org>\r\n" +
		"Date: Sun, 22 Nov 2026 17:00:00 +0000\r\n\r\n"
	if _, err := c.talk(oneGroup, "250 2.1.0", "250 2.1.5", "354"); err != nil {
		t.Fatal(err)
	}
	if reply, err := c.talk(header+gtube+"\r\n.\r\n", "554 5.7.1"); err != nil || !strings.Contains(strings.ToLower(reply), "gtube") {
		t.Errorf("spam: %q, %v", reply, err)
	}
	// The session goes on, and a large body comes in many pieces.
	sent := map[string]string{}
	for _, body := range []string{"plain\r\n", strings.Repeat(strings.Repeat("x", 70)+"\r\n", 5000)} {
		id, err := c.deliver(header + body)
		if err != nil {
			t.Fatal(err)
		}
		sent[id] = header + body
	}
	p.term()
	s := openSpoolOf(t, dir)
	defer s.Close()
	err = s.List(func(e queue.Entry) bool {
		var b bytes.Buffer
		if err := s.Cat(e.ID, &b); err != nil {
			t.Fatal(err)
		}
		want, ok := sent[e.ID.String()]
		trace, same := strings.CutSuffix(b.String(), want)
		if !ok || !same || !strings.Contains("\r\n"+trace, "\r\nX-Spamd-Bar: ") {
			t.Errorf("%v: %.600q", e.ID, b.String())
		}
		delete(sent, e.ID.String())
		return true
	})
	if err != nil || len(sent) > 0 {
		t.Errorf("%d messages are not there, %v", len(sent), err)
	}
}

// A milter that is not there defers mail, or with on_error = "accept" lets it pass.
func TestAMilterThatIsNotThere(t *testing.T) {
	for onError, want := range map[string]string{"defer": "451 4.3.0", "accept": "250 2.6.0"} {
		p := serve(t, t.TempDir(), minimalConfig+fmt.Sprintf("[[milter]]\naddress = %q\ntimeout = \"5s\"\non_error = %q\n", nettest.Nobody(t), onError))
		c, err := hello(p.addr[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.talk(oneGroup+"a: b\r\n\r\nc\r\n.\r\n", "250 2.1.0", "250 2.1.5", "354", want); err != nil {
			t.Errorf("%s: %v", onError, err)
		}
		c.Close()
		p.wait("the log to name the milter", func() bool { return strings.Contains(p.log.String(), "milter1") })
	}
}
