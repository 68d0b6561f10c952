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
)

// A load test judges a server that is not ours: Postfix takes the mail, relays it to the test's own sink, and has lost nothing.
func TestLoadtestJudgesAPostfixThatRelaysToTheSink(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start Postfix")
	}
	daemons, err := exec.Command("/usr/sbin/postconf", "-h", "daemon_directory").Output()
	if err != nil {
		t.Fatal("there is no Postfix: ", err)
	}
	mx, sink := freePort(t), freePort(t)
	conf := startPostfix(t, strings.TrimSpace(string(daemons)), mx, sink)

	var stdout, stderr bytes.Buffer
	page := filepath.Join(t.TempDir(), "run.html")
	code := run([]string{"loadtest", "run", "127.0.0.1:" + mx, "--messages", "500", "--connections", "20", "--recipients", "1..3",
		"--verify", "sink:127.0.0.1:" + sink, "--html", page}, nil, &stdout, &stderr)
	if code != exitOK || !strings.Contains(stdout.String(), "lost 0") || !strings.Contains(stdout.String(), "PASS") {
		log, _ := os.ReadFile(filepath.Join(conf, "../maillog"))
		t.Errorf("exit code %d\n%s%s%s", code, &stdout, &stderr, log[max(0, len(log)-2000):])
	}
	if text, err := os.ReadFile(page); err != nil || !bytes.Contains(text, []byte("<svg")) {
		t.Errorf("no page: %v", err)
	}
}

// startPostfix starts a Postfix of its own, which relays everything to the sink, and returns its configuration's directory.
func startPostfix(t *testing.T, daemons, mx, sink string) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil { // Postfix gives its rights up and must still reach its queue
			t.Fatal(err)
		}
	}
	conf, queue := filepath.Join(dir, "conf"), filepath.Join(dir, "queue")
	id := func(name string) int {
		u, err := user.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(u.Uid)
		return n
	}
	group := func(name string) int {
		g, err := user.LookupGroup(name)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(g.Gid)
		return n
	}
	folder := func(mode os.FileMode, uid, gid int, path string) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Chown(path, uid, gid)
		_ = os.Chmod(path, mode)
	}
	folder(0o755, 0, 0, conf)
	folder(0o755, 0, 0, filepath.Join(queue, "pid"))
	folder(0o700, id("postfix"), 0, filepath.Join(dir, "data"))
	for _, q := range strings.Fields("active bounce corrupt defer deferred flush hold incoming private saved trace") {
		folder(0o700, id("postfix"), 0, filepath.Join(queue, q))
	}
	folder(0o730, id("postfix"), group("postdrop"), filepath.Join(queue, "maildrop"))
	folder(0o710, id("postfix"), group("postdrop"), filepath.Join(queue, "public"))
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(conf, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("main.cf", fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
maillog_file_prefixes = %[1]s
maillog_file = %[1]s/maillog
myhostname = mx.bench.example
mydestination =
relayhost = [127.0.0.1]:%[2]s
smtp_host_lookup = native
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_recipient_restrictions = permit_mynetworks, reject
`, dir, sink))
	write("master.cf", fmt.Sprintf(`127.0.0.1:%s inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
smtp unix - - n - - smtp
relay unix - - n - - smtp
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
error unix - - n - - error
retry unix - - n - - error
postlog unix-dgram n - n - 1 postlogd
`, mx))
	cmd := exec.Command(filepath.Join(daemons, "master"), "-c", conf, "-d")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", "127.0.0.1:"+mx); err == nil {
			c.Close()
			return conf
		}
		if time.Now().After(end) {
			t.Fatal("Postfix does not answer")
		}
	}
}

// freePort is the port of a freeAddress.
func freePort(t *testing.T) string {
	t.Helper()
	return strconv.Itoa(nettest.Port(t))
}
