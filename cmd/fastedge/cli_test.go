package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/admin"
	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/spool"
)

// cliRun is the program in this process.
func cliRun(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// want runs a command that must end with the code and say these things, stdout first.
func want(t *testing.T, code int, stdout, stderr string, args ...string) string {
	t.Helper()
	got, out, errs := cliRun(args...)
	if got != code || !strings.Contains(out, stdout) || !strings.Contains(errs, stderr) {
		t.Errorf("%v: exit code %d, want %d\nstdout %q, want %q\nstderr %q, want %q", args, got, code, out, stdout, errs, stderr)
	}
	return out
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	state := filepath.Join(dir, "state")
	good := file("good.toml", "admin.http = \"\"\nlimits.connections = 10\n[[listen]]\naddress = \"127.0.0.1:0\"\n")
	bad := file("bad.toml", "[limits]\nconections = 3\nerrors = 0\n")
	unreachable := file("far.toml", "domains.accept = [\"example.net\"]\nadmin.http = \"\"\nlimits.connections = 10\n[[listen]]\naddress = \"192.0.2.1:25\"\n")

	want(t, 0, "Usage: fastedge", "", "--help")
	want(t, 0, "queue drop", "", "queue", "--help")
	want(t, 0, "fastedge ", "", "version")
	want(t, 0, `"go":"go`, "", "version", "--json")
	want(t, 0, "ok\n", "", "check", "-c", good, "--state-dir", state)
	want(t, 0, `"ok": true`, "", "check", "--json", "-c", good, "--state-dir", state)
	want(t, 0, "[limits]", "", "config", "default")
	want(t, 0, "# "+good+":2", "", "config", "show", "-c", good)
	want(t, 0, `"key": "limits.connections"`, "", "config", "show", "--json", "-c", good)

	want(t, 1, "", "no such state: lost", "queue", "list", "--state", "lost")
	want(t, 1, "", "there is no spool in "+state, "queue", "list", "--state-dir", state)

	for _, usage := range [][]string{{}, {"serv"}, {"serve", "--nonsense"}, {"queue"}, {"queue", "drop"}, {"queue", "cat"}, {"check", "extra"}, {"-c"}} {
		want(t, 2, "", "fastedge: ", usage...)
	}

	for _, verb := range [][]string{{"check"}, {"serve"}, {"config", "show"}, {"queue", "list"}} {
		want(t, 78, "", bad+":2:1: unknown key \"limits.conections\" (did you mean \"limits.connections\"?)\n    conections = 3\n    ^^^^^^^^^^\n"+
			bad+":3:10: limits.errors: 0 is out of range (1 to 1000000)\n    errors = 0\n             ^\n", append(verb, "-c", bad)...)
	}
	want(t, 78, "", "none.toml: no such file", "serve", "-c", "none.toml")
	want(t, 78, "", unreachable+":5:11: listen[0].address: 192.0.2.1:25: ", "check", "-c", unreachable, "--state-dir", state)
	want(t, 78, "", unreachable+":5:11: listen[0].address: 192.0.2.1:25: ", "serve", "-c", unreachable, "--state-dir", state)
	want(t, 78, "", "--log-level: ", "serve", "--log-level", "loud")
	want(t, 78, "", "--state-dir: ", "check", "--state-dir", good)

	var result checkResult
	out := want(t, 78, "", "", "check", "--json", "-c", bad)
	if err := json.Unmarshal([]byte(out), &result); err != nil || result.OK || len(result.Problems) != 2 || result.Problems[0].Line != 2 {
		t.Errorf("%v, %+v", err, result)
	}
	t.Setenv("FASTEDGE_LIMITS_ERORS", "3")
	want(t, 78, "", "FASTEDGE_LIMITS_ERORS: no such variable (did you mean FASTEDGE_LIMITS_ERRORS?)", "check")
	want(t, 0, "[limits]", "", "config", "default") // works beside anything that is broken
}

// check tells what is wrong with the parts, at the place to blame, together with what is wrong with the machine.
func TestCheckExplainsWhatKeepsTheServerFromStarting(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f.toml")
	for name, c := range map[string]struct {
		text string
		want []string // in this order
		code int
	}{
		"rules": {code: 78, text: "[[rule]]\nat = \"mail\"\nwhen = 'sender_domain == \"example.org\" and nonsense'\nreply = \"550 5.7.1 no\"\n" +
			"[[rule]]\nat = \"rcpt\"\nwhen = \"\"\"\nhelo == 'x'\n  and recipient ==\"\"\"\nreply = \"550 5.7.1 no\"\n", want: []string{
			":7:44: rule[0].when: ", "    when = 'sender_domain == \"example.org\" and nonsense'\n" + strings.Repeat(" ", 47) + "^\n",
			"rule[1].when: ", "      and recipient ==\"\"\"\n"}},
		"a rule that asks for what is not known yet": {code: 78, text: "[[rule]]\nat = \"mail\"\nwhen = 'recipient == \"a@b\"'\nreply = \"550 5.7.1 no\"\n",
			want: []string{":7:9: rule[0].when: ", "            ^"}},
		"a rule without a condition": {code: 78, text: "[[rule]]\nat = \"mail\"\naccept = true\n", want: []string{":5:3: rule[0].when: missing\n"}},
		"an open relay": {code: 78, text: "[[listen]]\nname = \"mx\"\naddress = \":25\"\n", want: []string{
			":7:11: listen[1].address: :25 is open to other machines: set domains.accept"}},
		"files that are not there": {code: 78, text: "[domains]\nrecipients = \"/nowhere/recipients\"\n[[rule]]\nat = \"mail\"\nwhen = 'nonsense'\naccept = true\n",
			want: []string{":6:14: domains.recipients: /nowhere/recipients: no such file", ":9:9: rule[0].when: "}},
		"a self-made certificate": {text: "[[listen]]\nname = \"tls\"\naddress = \"127.0.0.2:0\"\ntls = \"implicit\"\n", want: []string{
			"warning: listen[1].tls: 127.0.0.2:0 has no certificate (tls.certificates): a self-made one is used"}},
	} {
		const text = "admin.http = \"\"\nlimits.connections = 10\n[[listen]]\naddress = \"127.0.0.1:0\"\n"
		if err := os.WriteFile(path, []byte(text+c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := cliRun("check", "-c", path, "--state-dir", filepath.Join(dir, "state"))
		rest := stderr
		for _, want := range c.want {
			at := strings.Index(rest, want)
			if at < 0 {
				t.Errorf("%s: %q is missing in\n%s", name, want, stderr)
				break
			}
			rest = rest[at+len(want):]
		}
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d\n%s", name, code, c.code, stderr)
		}
	}
}

// What the parts would log at the start is a warning of check.
func TestCheckWarnsOfAnExpiredCertificate(t *testing.T) {
	dir := t.TempDir()
	cert, key, path := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "f.toml")
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, cert, "CERTIFICATE", der)
	if der, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
		t.Fatal(err)
	}
	writePEM(t, key, "PRIVATE KEY", der)
	text := fmt.Sprintf("admin.http = \"\"\nlimits.connections = 10\ntls.certificates = [{ cert = %q, key = %q }]\n"+
		"[[listen]]\naddress = \"127.0.0.1:0\"\ntls = \"opportunistic\"\n", cert, key)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, 0, "ok\n", "warning: certificate has expired file="+cert, "check", "-c", path, "--state-dir", filepath.Join(dir, "state"))
	want(t, 0, `"message": "certificate has expired file=`, "", "check", "--json", "-c", path, "--state-dir", filepath.Join(dir, "state"))
}

// hostile is what a stranger may have sent; nothing of it may reach a terminal as it is.
const hostile = "evil\x1b[2J\r\nID\t\xff\u202e@example.org"

// fill makes a spool in dir/spool with a few messages, the first with hostile addresses, and gives their ids.
func fill(t *testing.T, dir string, n int) []envelope.ID {
	t.Helper()
	s, err := spool.Open(filepath.Join(dir, "spool"), spool.Options{SegmentSize: 1 << 20, MinFree: -1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	chunks := pool.NewList(1<<20, pool.NewBudget(1<<30))
	envelopes := envelope.NewList(chunks)
	source := envelope.NewIDSource([32]byte{1})
	var ids []envelope.ID
	for i := range n {
		env := envelopes.Get()
		env.ID = source.Next(time.Now())
		env.Arrived = time.Now().Add(-90 * time.Minute)
		env.ReversePath = env.KeepString("sender@example.org")
		env.AddRecipient([]byte("first@example.net"), nil, 0)
		if i == 0 {
			env.ReversePath = env.KeepString(hostile)
			env.AddRecipient([]byte("second@example.net"), nil, 0)
			env.Client.Helo = env.KeepString(hostile)
		}
		env.Client.Protocol, env.Client.Listener = "ESMTP", "mx"
		env.Trace = env.KeepString("Received: by test\r\n")
		sub := &queue.Submission{Env: env}
		s.Commit([]*queue.Submission{sub})
		if sub.Err != nil {
			t.Fatal(sub.Err)
		}
		ids = append(ids, env.ID)
		env.Release()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return ids
}

// The queue verbs do the same on the spool itself and through a server.
func TestQueueVerbs(t *testing.T) {
	t.Run("spool", func(t *testing.T) {
		dir := t.TempDir()
		queueVerbs(t, dir, fill(t, dir, 3))
	})
	t.Run("socket", func(t *testing.T) {
		dir := t.TempDir()
		ids := fill(t, dir, 3)
		cfg, err := config.Load("", nil, config.Flag{Name: "--state-dir", Key: "state_dir", Value: dir})
		if err != nil {
			t.Fatal(err)
		}
		s, err := spool.Open(cfg.SpoolDir(), spoolOptions(cfg, slog.New(slog.DiscardHandler)))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		l, err := admin.Listen(cfg.AdminSocket())
		if err != nil {
			t.Fatal(err)
		}
		server := admin.NewServer(admin.Control(admin.Options{Queue: s}), slog.New(slog.DiscardHandler))
		defer server.Close()
		go server.Serve(l)
		queueVerbs(t, dir, ids)
	})
}

func queueVerbs(t *testing.T, dir string, ids []envelope.ID) {
	q := func(args ...string) []string { return append(append([]string{"queue"}, args...), "--state-dir", dir) }
	first, second, third := ids[0].String(), ids[1].String(), ids[2].String()

	table := want(t, 0, "ID ", "", q("list")...)
	lines := strings.Split(strings.TrimSuffix(table, "\n"), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[1], first+"  held ") || !strings.HasSuffix(lines[1], "<first@example.net> +1  no next hop") {
		t.Errorf("list:\n%s", table)
	}
	if i := strings.IndexFunc(table, func(r rune) bool { return r < ' ' && r != '\n' || r == '\u202e' }); i >= 0 {
		t.Errorf("list lets %q through", table[i])
	}
	want(t, 0, `<evil\x1b[2J\x0d\x0aID\x09`, "", q("list")...)
	want(t, 0, `\u202e@example.org>`, "", q("list")...)
	want(t, 0, "", "no messages", q("list", "--state", "dead")...)

	out := want(t, 0, "", "", q("list", "--json")...)
	d := json.NewDecoder(strings.NewReader(out))
	for i := range 3 {
		var e queue.Entry
		if err := d.Decode(&e); err != nil || e.ID != ids[i] || e.State != queue.Held {
			t.Errorf("list --json: %v, %+v", err, e)
		}
	}
	want(t, 0, "held        3\n", "", q("stat")...)
	want(t, 0, `"held":3`, "", q("stat", "--json")...)

	want(t, 0, "first@example.net> pending", "", q("show", first)...)
	want(t, 0, `helo      evil\x1b[2J`, "", append(q("show"), second, first)...)
	if out := want(t, 0, `"id":"`+first, "", q("show", "--json", first)...); strings.Contains(out, "\x1b") {
		t.Error("JSON with an escape in it")
	}
	if out := want(t, 0, "", "", q("cat", first)...); out != "Received: by test\r\n" {
		t.Errorf("cat: %q", out)
	}
	nobody := envelope.ID{1}.String()
	want(t, 1, "", nobody+": queue: no such message", q("cat", nobody)...)
	want(t, 1, "", "not a message id", q("show", "\x1b[2J")...)

	want(t, 0, "", "", q("hold", "--reason", "under suspicion", third)...)
	want(t, 0, "under suspicion", "", q("list")...)
	want(t, 0, "", "", q("release", third)...)

	// An id that fails does not keep the others from being dropped.
	want(t, 1, "", nobody+": queue: no such message", q("drop", first, nobody, second)...)
	if out := want(t, 0, "", "", q("list", "--json")...); strings.Count(out, "\n") != 1 || !strings.Contains(out, third) {
		t.Errorf("after drop: %s", out)
	}
}

// signalled drives supervise with a server that drains when asked to, or never.
func signalled(t *testing.T, drains bool, signals ...os.Signal) (reloads int, err error) {
	t.Helper()
	c := make(chan os.Signal, len(signals))
	for _, s := range signals {
		c <- s
	}
	run := func(ctx context.Context) error {
		if !drains {
			select {}
		}
		<-ctx.Done()
		return nil
	}
	err = supervise(run, c, func() { reloads++ }, slog.New(slog.DiscardHandler))
	return reloads, err
}

func TestSignals(t *testing.T) {
	if n, err := signalled(t, true, syscall.SIGHUP, syscall.SIGHUP, syscall.SIGTERM); err != nil || n != 2 {
		t.Errorf("HUP, HUP, TERM: %v after %d reloads", err, n)
	}
	if _, err := signalled(t, true, syscall.SIGINT); err != nil {
		t.Errorf("INT: %v", err)
	}
	if _, err := signalled(t, false, syscall.SIGTERM, syscall.SIGINT); !errors.Is(err, errStopped) {
		t.Errorf("TERM, INT: %v", err)
	}
	if n, err := signalled(t, false, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGTERM); !errors.Is(err, errStopped) || n != 1 {
		t.Errorf("TERM, HUP, TERM: %v", err)
	}
	boom := errors.New("boom")
	if err := supervise(func(context.Context) error { return boom }, nil, nil, slog.New(slog.DiscardHandler)); err != boom {
		t.Errorf("a server that ends by itself: %v", err)
	}
}

func TestReloadKeepsTheOldConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.toml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("limits.errors = 5\n")
	a := &app{cli: &cli{ConfigFile: file}}
	c := &serveCmd{}
	running, err := c.load(a)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ text, want string }{
		{"limits.errors = 5\n", "nothing has changed"},
		{"limits.errors = 6\n", "limits.errors"},
		{"limits.errors = 0\n", "refused"},
		{"limits.erors = 5\n", "did you mean"},
	} {
		write(step.text)
		var log bytes.Buffer
		c.reload(a, running, slog.New(slog.NewTextHandler(&log, nil)))
		if !strings.Contains(log.String(), step.want) || running.Limits.Errors != 5 {
			t.Errorf("%s: %s", step.text, log.String())
		}
	}
}

func TestBannerTellsWhatRunsAndWhatToTry(t *testing.T) {
	cfg, err := config.Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	banner(&b, cfg)
	for _, want := range []string{"SMTP 127.0.0.1:2525", "http://127.0.0.1:9025", "fastedge-data/spool (fsync)", "mail is held", "swaks", "queue list"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
	}
	if n := strings.Count(b.String(), "\n"); n != 5 {
		t.Errorf("%d lines:\n%s", n, b.String())
	}
}

// stuck is a reader of the log that has gone away for a while.
type stuck struct {
	release chan struct{}
	mu      sync.Mutex
	got     bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(p)
}

func TestLogNeverBlocksAndCountsWhatItDrops(t *testing.T) {
	out := &stuck{release: make(chan struct{})}
	w := newLogWriter(out, 100)
	line := []byte("123456789\n")
	for range 50 {
		w.Write(line) // would hang here if it waited for out
	}
	dropped := w.Dropped()
	if dropped < 30 || dropped > 40 { // 100 bytes wait, and up to 100 are being written
		t.Errorf("%d of 50 lines dropped", dropped)
	}
	close(out.release)
	w.Close()
	if lines := uint64(strings.Count(out.got.String(), string(line))); lines+dropped != 50 {
		t.Errorf("%d written and %d dropped of 50", lines, dropped)
	}
	w.Write(line)
	if w.Dropped() != dropped+1 {
		t.Error("a line after Close was not counted")
	}
}

func TestLogFormat(t *testing.T) {
	for format, want := range map[string]string{"auto": "{", "json": "{", "text": "time="} {
		var out bytes.Buffer
		log, w := newLogger(config.Log{Format: format, Level: "warn"}, &out)
		log.Info("quiet")
		log.Warn("loud")
		w.Close()
		if !strings.HasPrefix(out.String(), want) || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%s: %s", format, out.String())
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) || isTerminal(io.Discard) {
		t.Error("taken for a terminal")
	}
}

// Whatever a stranger sent, a line of the log shows it without moving the cursor, and JSON gives it back as it was.
func TestLogShowsNoControls(t *testing.T) {
	const arg = "a\x00\r\n\x1b[2J\x7f\u0085\u009b31m\u2028\u202e\ufeff\U000e0001 grüße \"日本\\"
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		log, w := newLogger(config.Log{Format: format, Level: "info"}, &out)
		log.Info("refused", "arg", arg)
		w.Close()
		line := strings.TrimSuffix(out.String(), "\n")
		for _, r := range line {
			if !unicode.IsPrint(r) {
				t.Errorf("%s: %U in %s", format, r, line)
			}
		}
		if !strings.Contains(line, "grüße") {
			t.Errorf("%s: escapes what can be read: %s", format, line)
		}
		var back struct{ Arg string }
		if format == "json" && (json.Unmarshal([]byte(line), &back) != nil || back.Arg != arg) {
			t.Errorf("%q from %s", back.Arg, line)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain ünïcode": "plain ünïcode", hostile: `evil\x1b[2J\x0d\x0aID\x09\xff\u202e@example.org`,
		"\x00\x7f\u0085": `\x00\x7f\x85`, "\ufeff\U000e0001": `\ufeff\ue0001`, "": "",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestHumanUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 1500 * time.Millisecond: "1s", 59 * time.Second: "59s", 90 * time.Second: "1m", 90 * time.Minute: "1h30m",
		47 * time.Hour: "47h0m", 50 * time.Hour: "2d2h",
	} {
		if got := age(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1.0KiB", 1536: "1.5KiB", 1 << 20: "1.0MiB", 1 << 62: "4.0EiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestALogThatNobodyReadsDoesNotKeepTheProcessFromEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{release: make(chan struct{})}
		w := newLogWriter(out, 100)
		w.Write([]byte("one\n"))
		synctest.Wait() // it is being written
		start := time.Now()
		if err := w.Close(); !errors.Is(err, errLogNotRead) || time.Since(start) != maxLastLines {
			t.Errorf("Close gave %v after %v, want an error after %v", err, time.Since(start), maxLastLines)
		}
		close(out.release)
		<-w.done
	})
}

func TestEveryDroppedLogLineCounts(t *testing.T) {
	out := &stuck{release: make(chan struct{})}
	w := newLogWriter(out, 10)
	w.Write([]byte("a\nb\nc\nd\ne\nf\n"))
	if n := w.Dropped(); n != 6 {
		t.Errorf("%d lines dropped, want 6", n)
	}
	close(out.release)
	w.Close()
}
