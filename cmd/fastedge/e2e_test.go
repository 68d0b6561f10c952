package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/spool"
)

// The tests of this file run the real program in a process of its own: the test binary, told by the environment to be it.
func TestMain(m *testing.M) {
	if os.Getenv("FASTEDGETEST_BE_FASTEDGE") == "" {
		os.Exit(m.Run())
	}
	if n, err := strconv.ParseUint(os.Getenv("FASTEDGETEST_NOFILE"), 10, 64); err == nil {
		lim := syscall.Rlimit{Cur: n, Max: n}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
			panic(err)
		}
	}
	main()
}

// process is one running fastedge.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	dir  string
	addr []string // of the listeners
	log  *logTail
	done chan struct{}
	code int
}

// logTail keeps a process's log and lets the test wait for a line.
type logTail struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logTail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

const minimalConfig = `
[[listen]]
name = "mx"
address = "127.0.0.1:0"
[admin]
http = ""
[queue]
min_free = "1MiB"
segment_size = "16MiB"
`

// command prepares fastedge with its state in dir.
func command(t *testing.T, dir, config string, args ...string) *exec.Cmd {
	t.Helper()
	file := filepath.Join(dir, "fastedge.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], append(args, "-c", file, "--state-dir", filepath.Join(dir, "state"))...)
	cmd.Env = append(os.Environ(), "FASTEDGETEST_BE_FASTEDGE=1")
	return cmd
}

// serve starts fastedge with its state in dir and waits until it serves.
func serve(t *testing.T, dir, config string, env ...string) *process {
	t.Helper()
	p := &process{t: t, dir: dir, log: &logTail{}, done: make(chan struct{})}
	p.cmd = command(t, dir, config, "serve")
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stderr = p.log
	p.start()
	serving := regexp.MustCompile(`"msg":"serving".*"listeners":(\[[^\]]*\])`)
	p.wait("the server to serve", func() bool {
		if m := serving.FindStringSubmatch(p.log.String()); m != nil {
			var all []string
			if err := json.Unmarshal([]byte(m[1]), &all); err != nil {
				t.Fatal(err)
			}
			p.addr = nil
			for _, a := range all {
				_, a, _ = strings.Cut(a, " ")
				p.addr = append(p.addr, a)
			}
			return true
		}
		return false
	})
	return p
}

// start runs p.cmd until the test ends.
func (p *process) start() {
	p.t.Helper()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		p.code = p.cmd.ProcessState.ExitCode()
		close(p.done)
	}()
	p.t.Cleanup(p.kill)
}

// patience is how long a test waits for what must come; a busy machine may take its time.
const patience = 2 * time.Minute

// wait polls until ok, or fails with the log when the process ends or patience does.
func (p *process) wait(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		select {
		case <-p.done:
			if ok() {
				return
			}
			p.t.Fatalf("fastedge ended with %d while waiting for %s:\n%s", p.code, what, p.log)
		default:
		}
		if time.Now().After(end) {
			p.t.Fatalf("waited in vain for %s:\n%s", what, p.log)
		}
	}
}

// kill ends the process as a power switch would, but for what the kernel holds.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// term asks it to drain and gives its exit code.
func (p *process) term() int {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("no end %v after TERM:\n%s", patience, p.log)
	}
	return p.code
}

// openSpoolOf opens the spool of a server that does not run.
func openSpoolOf(t *testing.T, dir string) *spool.Spool {
	t.Helper()
	s, err := spool.Open(filepath.Join(dir, "state", "spool"), spool.Options{Hold: "test", MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stored reads all that the spool holds: message data behind our Received field, by id.
func stored(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	s := openSpoolOf(t, dir)
	defer s.Close()
	all := map[string][]byte{}
	err := s.List(func(e queue.Entry) bool {
		var b bytes.Buffer
		if err := s.Cat(e.ID, &b); err != nil {
			t.Errorf("cat %v: %v", e.ID, err)
			return true
		}
		all[e.ID.String()] = withoutTrace(t, b.Bytes())
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// withoutTrace cuts our own Received field off.
func withoutTrace(t *testing.T, msg []byte) []byte {
	t.Helper()
	if !bytes.HasPrefix(msg, []byte("Received: from ")) {
		t.Fatalf("no Received field in front: %.100q", msg)
	}
	for {
		i := bytes.Index(msg, []byte("\r\n"))
		if i < 0 {
			t.Fatal("a Received field without an end")
		}
		msg = msg[i+2:]
		if len(msg) == 0 || msg[0] != '\t' {
			return msg
		}
	}
}

// smtpClient is a client under the test's control.
type smtpClient struct {
	net.Conn
	r *bufio.Reader
}

func dialSMTP(network, addr string) (*smtpClient, error) {
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	return &smtpClient{c, bufio.NewReader(c)}, nil
}

// reply reads one reply, its lines joined.
func (c *smtpClient) reply() (string, error) {
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		all.WriteString(line)
		if err != nil {
			return all.String(), err
		}
		if len(line) < 4 || line[3] != '-' {
			return all.String(), nil
		}
	}
}

// talk sends text and reads one reply for each prefix; it gives the last one.
func (c *smtpClient) talk(text string, prefixes ...string) (last string, err error) {
	if _, err := io.WriteString(c.Conn, text); err != nil {
		return "", err
	}
	for _, want := range prefixes {
		if last, err = c.reply(); err != nil {
			return last, err
		}
		if !strings.HasPrefix(last, want) {
			return last, fmt.Errorf("reply %q, want %q", last, want)
		}
	}
	return last, nil
}

var queuedAs = regexp.MustCompile(`^250 2\.6\.0 Message queued as ([0-9a-z]{26})\r\n$`)

const oneGroup = "MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"

// hello connects and says EHLO.
func hello(addr string) (*smtpClient, error) {
	c, err := dialSMTP("tcp", addr)
	if err != nil {
		return nil, err
	}
	if _, err := c.talk("", "220 "); err != nil {
		c.Close()
		return nil, err
	}
	if _, err := c.talk("EHLO test.example\r\n", "250-"); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// deliver sends one message (its data without dots at line starts) and gives its id.
func (c *smtpClient) deliver(data string) (id string, err error) {
	if _, err := c.talk(oneGroup, "250 2.1.0", "250 2.1.5", "354"); err != nil {
		return "", err
	}
	reply, err := c.talk(data+".\r\n", "250 2.6.0")
	if err != nil {
		return "", err
	}
	m := queuedAs.FindStringSubmatch(reply)
	if m == nil {
		return "", fmt.Errorf("odd reply %q", reply)
	}
	return m[1], nil
}

// load delivers from many clients until stop is closed or the server is gone, and remembers what was acknowledged.
type load struct {
	mu    sync.Mutex
	acked map[string][32]byte // SHA-256 of the data by id
	sent  int
	wg    sync.WaitGroup
	stop  chan struct{}
}

func startLoad(addr string, clients int) *load {
	l := &load{acked: map[string][32]byte{}, stop: make(chan struct{})}
	for i := range clients {
		l.wg.Go(func() { l.client(addr, uint64(i)) })
	}
	return l
}

func (l *load) client(addr string, seed uint64) {
	r := rand.New(rand.NewPCG(seed, uint64(time.Now().UnixNano())))
	for {
		c, err := hello(addr)
		if err != nil {
			return
		}
		for {
			select {
			case <-l.stop:
				c.Close()
				return
			default:
			}
			data := message(r)
			l.mu.Lock()
			l.sent++
			l.mu.Unlock()
			id, err := c.deliver(data)
			if err != nil {
				break
			}
			l.mu.Lock()
			l.acked[id] = sha256.Sum256([]byte(data))
			l.mu.Unlock()
		}
		c.Close()
	}
}

func (l *load) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// message is an ordinary message of random size, small mostly, without dots at line starts.
func message(r *rand.Rand) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Subject: %d\r\n\r\n", r.Uint64())
	lines := r.IntN(50)
	if r.IntN(20) == 0 {
		lines = r.IntN(4000)
	}
	for range lines {
		b.WriteString(strings.Repeat(string(rune('a'+r.IntN(26))), 1+r.IntN(76)))
		b.WriteString("\r\n")
	}
	return b.String()
}

// checkNothingLost compares what was acknowledged with what is there.
func checkNothingLost(t *testing.T, acked map[string][32]byte, there map[string][]byte) {
	t.Helper()
	for id, sum := range acked {
		data, ok := there[id]
		switch {
		case !ok:
			t.Errorf("message %s was acknowledged and is gone", id)
		case sha256.Sum256(data) != sum:
			t.Errorf("message %s was altered", id)
		}
	}
}

func TestKill9UnderLoadLosesNothingAcknowledged(t *testing.T) {
	cycles := 5
	if testing.Short() {
		cycles = 2
	}
	dir := t.TempDir()
	acked := map[string][32]byte{}
	sent := 0
	for i := range cycles {
		p := serve(t, dir, minimalConfig)
		l := startLoad(p.addr[0], 20)
		want := 100 + 150*i
		p.wait("some load", func() bool { return l.acknowledged() > want })
		p.kill()
		close(l.stop)
		l.wg.Wait()
		maps.Copy(acked, l.acked)
		sent += l.sent
	}
	there := stored(t, dir)
	checkNothingLost(t, acked, there)
	t.Logf("%d kills: %d sent, %d acknowledged, %d in the spool", cycles, sent, len(acked), len(there))
	if len(there) > sent {
		t.Errorf("%d messages sent, %d in the spool", sent, len(there))
	}
}

func TestTermUnderLoadDrainsAndExitsWith0(t *testing.T) {
	dir := t.TempDir()
	p := serve(t, dir, minimalConfig)
	l := startLoad(p.addr[0], 20)
	p.wait("some load", func() bool { return l.acknowledged() > 300 })
	if code := p.term(); code != 0 {
		t.Errorf("exit code %d after TERM:\n%s", code, p.log)
	}
	close(l.stop)
	l.wg.Wait()
	there := stored(t, dir)
	checkNothingLost(t, l.acked, there)
	if len(there) != len(l.acked) {
		t.Errorf("%d acknowledged, %d in the spool: a drain leaves no message without its answer", len(l.acked), len(there))
	}
}

func TestAfterARestartMessagesGoToTheNextHopByteForByte(t *testing.T) {
	dir := t.TempDir()
	p := serve(t, dir, minimalConfig)
	c, err := hello(p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		data := message(r)
		if _, err := c.deliver(data); err != nil {
			t.Fatal(err)
		}
		want[data] = true
	}
	p.kill()
	hopDir := t.TempDir()
	hop := serve(t, hopDir, minimalConfig)
	p = serve(t, dir, minimalConfig+"\n[relay]\nnext_hop = [\"smtp://"+hop.addr[0]+"\"]\n")
	p.wait("the messages to be relayed", func() bool { return strings.Count(hop.log.String(), `"msg":"accepted"`) >= 50 })
	p.wait("the queue to be empty", func() bool { return p.stat(t).Messages["ready"]+p.stat(t).Messages["leased"] == 0 })
	p.term()
	hop.term()
	got := 0
	for id, data := range stored(t, hopDir) {
		data = withoutTrace(t, data)
		if !want[string(data)] {
			t.Errorf("message %s at the next hop is none that was sent", id)
		}
		got++
	}
	if got != 50 {
		t.Errorf("%d messages at the next hop, want 50", got)
	}
}

// stat asks the running server through its socket, as `fastedge queue stat --json` does; it may fail for not all of the queue can be asked.
func (p *process) stat(t *testing.T) (st queue.Stats) {
	t.Helper()
	out, failed := p.verb("queue", "stat", "--json").Output()
	if failed != nil && len(out) == 0 {
		t.Fatalf("queue stat: %v", failed)
	}
	if err := json.Unmarshal(out, &st); err != nil || st.Partial != (failed != nil) {
		t.Fatalf("queue stat: %v, %v: %s", failed, err, out)
	}
	return st
}

// verb is another verb on the same configuration and state.
func (p *process) verb(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append(args, "-c", filepath.Join(p.dir, "fastedge.toml"), "--state-dir", filepath.Join(p.dir, "state"))...)
	cmd.Env = append(os.Environ(), "FASTEDGETEST_BE_FASTEDGE=1")
	return cmd
}

// fastedge runs another verb on the same configuration and state.
func (p *process) fastedge(args ...string) []byte {
	p.t.Helper()
	cmd := p.verb(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("fastedge %v: %v\n%s", args, err, &stderr)
	}
	return out
}

func TestQueueCommandsSeeAndChangeARunningServersQueue(t *testing.T) {
	p := serve(t, t.TempDir(), minimalConfig)
	c, err := hello(p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	data := "Subject: one\r\n\r\nbody\r\n"
	id, err := c.deliver(data)
	if err != nil {
		t.Fatal(err)
	}
	if out := string(p.fastedge("queue", "list")); !strings.Contains(out, id) || !strings.Contains(out, "held") || !strings.Contains(out, "<a@example.org>") {
		t.Errorf("queue list:\n%s", out)
	}
	out := p.fastedge("queue", "cat", id)
	if !bytes.Contains(out[:bytes.Index(out, []byte("Subject"))], []byte(id)) || string(withoutTrace(t, out)) != data {
		t.Errorf("queue cat: %q", out)
	}
	if !strings.Contains(p.log.String(), id) {
		p.wait("the id in the log", func() bool { return strings.Contains(p.log.String(), id) })
	}
	p.fastedge("queue", "drop", id)
	if n := p.stat(t).Messages["held"]; n != 0 {
		t.Errorf("%d messages after drop", n)
	}
}

func TestASecondProcessOnTheSameSpoolIsRefused(t *testing.T) {
	dir := t.TempDir()
	p := serve(t, dir, minimalConfig)
	cmd := command(t, dir, minimalConfig, "serve")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailure || !strings.Contains(string(out), "in use") || !strings.Contains(string(out), strconv.Itoa(p.cmd.Process.Pid)) {
		t.Errorf("second server: %v\n%s", err, out)
	}
}

func TestItSurvivesRunningOutOfFileDescriptors(t *testing.T) {
	dir := t.TempDir()
	p := serve(t, dir, minimalConfig, "FASTEDGETEST_NOFILE=400")
	if !strings.Contains(p.log.String(), "limits.connections: lowered") {
		t.Errorf("no word about the lowered limit:\n%s", p.log)
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	refused := 0
	for range 800 {
		c, err := net.Dial("tcp", p.addr[0])
		if err != nil {
			t.Fatalf("the port is closed: %v\n%s", err, p.log)
		}
		c.SetDeadline(time.Now().Add(patience))
		conns = append(conns, c)
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			t.Fatalf("connection %d: %v\n%s", len(conns), err, p.log)
		}
		if strings.HasPrefix(line, "421 4.3.2") {
			refused++
		}
	}
	if refused == 0 {
		t.Error("800 connections with 400 descriptors, and none was refused")
	}
	for _, c := range conns {
		c.Close()
	}
	conns = nil
	p.wait("a place", func() bool {
		c, err := hello(p.addr[0])
		if err != nil {
			return false
		}
		defer c.Close()
		_, err = c.deliver("Subject: still here\r\n\r\n")
		return err == nil
	})
	if code := p.term(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestWrongConfigurationIsShownWithLineAndCaretAndExits78(t *testing.T) {
	dir := t.TempDir()
	for _, verb := range []string{"check", "serve"} {
		out, err := command(t, dir, "[limits]\nconections = 5\n", verb).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitConfig {
			t.Errorf("%s: %v, want exit code 78", verb, err)
		}
		for _, want := range []string{"fastedge.toml:2:1", "conections = 5", "^", "limits.connections"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s does not say %q:\n%s", verb, want, out)
			}
		}
	}
}

// rss is the resident memory of a process in bytes.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skip("no /proc here")
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	n, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return n << 10
}

func TestFortyOpenMessagesOf4MiBCostLittleMoreThanTheirText(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory would be measured")
	}
	p := serve(t, t.TempDir(), minimalConfig)
	before := rss(t, p.cmd.Process.Pid)
	const open, size = 40, 4 << 20
	text := strings.Repeat(strings.Repeat("x", 76)+"\r\n", size/78)
	var wg sync.WaitGroup
	var failed atomic.Value
	for range open {
		c, err := hello(p.addr[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wg.Go(func() {
			if _, err := c.talk(oneGroup, "250", "250", "354"); err != nil {
				failed.Store(err)
				return
			}
			if _, err := io.WriteString(c, text); err != nil {
				failed.Store(err)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(err)
	}
	// The kernel's buffers hold the last of it until the loop has read them.
	total := int64(open * len(text))
	p.wait("the text to be read", func() bool { return rss(t, p.cmd.Process.Pid)-before > total*9/10 })
	time.Sleep(300 * time.Millisecond)
	grown := rss(t, p.cmd.Process.Pid) - before
	t.Logf("%d open messages of %d bytes: memory grew by %d bytes, %.2f times their text", open, len(text), grown, float64(grown)/float64(total))
	if grown > total*5/4 {
		t.Errorf("memory grew by %d bytes for %d bytes of text", grown, total)
	}
}

// EHLO has the longest answer for the shortest command.
func TestAClientThatNeverReadsCostsAtMostOneMiB(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory would be measured")
	}
	for _, command := range []string{"HELP\r\n", "EHLO x\r\n"} {
		t.Run(command[:4], func(t *testing.T) {
			p := serve(t, t.TempDir(), minimalConfig)
			warm, err := hello(p.addr[0])
			if err != nil {
				t.Fatal(err)
			}
			defer warm.Close()
			const clients = 16
			before := rss(t, p.cmd.Process.Pid)
			flood := []byte(strings.Repeat(command, 20<<10))
			for range clients {
				c, err := hello(p.addr[0])
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				for {
					if _, err := c.Write(flood); err != nil {
						break
					}
				}
			}
			grown := rss(t, p.cmd.Process.Pid) - before
			t.Logf("%d clients that never read: memory grew by %d bytes, %d each", clients, grown, grown/clients)
			if grown > clients<<20 {
				t.Errorf("memory grew by %d bytes for %d clients", grown, clients)
			}
			if _, err := warm.deliver("Subject: others are served\r\n\r\n"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOneTurnedBitIsNeverHandedOn(t *testing.T) {
	dir := t.TempDir()
	p := serve(t, dir, minimalConfig)
	c, err := hello(p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range 5 {
		id, err := c.deliver(fmt.Sprintf("Subject: %d\r\n\r\nneedle-%d\r\n", i, i))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	p.kill()
	segments, _ := filepath.Glob(filepath.Join(dir, "state", "spool", "*.seg"))
	turned := false
	for _, name := range segments {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(b, []byte("needle-2")); i >= 0 {
			b[i] ^= 1
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			turned = true
		}
	}
	if !turned {
		t.Fatal("message not found in any segment")
	}
	hop := serve(t, t.TempDir(), minimalConfig)
	p = serve(t, dir, minimalConfig+"\n[relay]\nnext_hop = [\"smtp://"+hop.addr[0]+"\"]\n")
	p.wait("the others to be handed on", func() bool { return strings.Count(hop.log.String(), `"msg":"accepted"`) == 4 })
	p.wait("the damage to be counted", func() bool { return p.stat(t).Damaged == 1 })
	if !slices.ContainsFunc(strings.Split(p.log.String(), "\n"), func(l string) bool {
		return strings.Contains(l, ids[2]) && strings.Contains(l, "damaged")
	}) {
		t.Errorf("the log does not name the damaged message %s:\n%s", ids[2], p.log)
	}
	p.term()
	hop.term()
	for id, data := range stored(t, hop.dir) {
		if bytes.Contains(data, []byte("eedle-2")) {
			t.Errorf("the altered message was handed on as %s", id)
		}
	}
}
