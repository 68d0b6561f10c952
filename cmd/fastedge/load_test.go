package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/internal/nettest"
	"github.com/fastedge/fastedge/loadtest/report"
	"github.com/fastedge/fastedge/loadtest/sink"
)

// loadSink is a sink that serves until the test ends.
func loadSink(t *testing.T, o sink.Options) string {
	t.Helper()
	s, err := sink.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s.Addr().String()
}

// freeAddress is for a server that must be told where to listen. Nobody else gets it while the test runs.
func freeAddress(t *testing.T) string {
	t.Helper()
	return nettest.Address(t)
}

// newProgram runs the program in a process of its own until it is told to end, or the test does. Its log is standard error.
func newProgram(t *testing.T, stdout *bytes.Buffer, args ...string) *process {
	t.Helper()
	p := &process{t: t, log: &logTail{}, done: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Env = append(os.Environ(), "FASTEDGETEST_BE_FASTEDGE=1")
	p.cmd.Stdout, p.cmd.Stderr = stdout, p.log
	p.start()
	return p
}

// loadRun runs a load that must end with the code, and gives what --out wrote.
func loadRun(t *testing.T, code int, args ...string) (*report.Run, string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "run.json")
	got, stdout, stderr := cliRun(append([]string{"loadtest", "run", "--out", out}, args...)...)
	if got != code {
		t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, stdout, stderr)
	}
	runs, err := readRuns(out)
	if err != nil {
		t.Fatal(err)
	}
	return runs[0], stdout
}

func TestLoadFlagsThatCanStandBare(t *testing.T) {
	addr := loadSink(t, sink.Options{TLS: true})
	for _, test := range []struct {
		args           string
		starttls, bdat float64
		pipelining     string
	}{
		{"", 0, 0, "off"},
		{"--starttls", 1, 0, "off"},
		{"--starttls 50%", 0.5, 0, "off"},
		{"--starttls=0.5", 0.5, 0, "off"},
		{"--bdat", 0, 1, "off"},
		{"--bdat=30%", 0, 0.3, "off"},
		{"--bdat 30%", 0, 0.3, "off"},
		{"--bdat --pipelining", 0, 1, "group"},
		{"--pipelining tight --bdat=1", 0, 1, "tight"},
		{"--pipelining=off", 0, 0, "off"},
		{"--pipelining --starttls", 1, 0, "group"},
	} {
		r, _ := loadRun(t, 0, append(strings.Fields("-n 20 --connections 2 "+test.args), addr)...)
		if p := r.Parameters; p.STARTTLS != test.starttls || p.BDAT != test.bdat || p.Pipelining != test.pipelining || r.Totals.Acknowledged != 20 {
			t.Errorf("%s: %+v, %+v", test.args, p, r.Totals)
		}
	}
}

func TestLoadUsageErrorsExitWith2(t *testing.T) {
	for args, text := range map[string]string{
		"127.0.0.1:1 --bdat=300%":                    `"300%" is not a share`,
		"--bdat 300% 127.0.0.1:1":                    `"300%" is not a share`,
		"127.0.0.1:1 --starttls=x":                   `"x" is not a share`,
		"--pipelining loose 127.0.0.1:1":             `"loose" is not off, group or tight`,
		"127.0.0.1:1 --pipelining=loose":             `"loose" is not off, group or tight`,
		"127.0.0.1:1 --rate fast":                    `"fast" is not a rate`,
		"127.0.0.1:1 --rate 2000000":                 `"2000000" is not a rate`,
		"127.0.0.1:1 --ramp 1..2":                    `"1..2" is not a ramp`,
		"127.0.0.1:1 --size 1":                       `"1" is not a size`,
		"127.0.0.1:1 --recipients 5..1":              `"5..1" is not a number or a range`,
		"127.0.0.1:1 --recipients 1001":              "recipients is 1001; it can be 1 to 1000",
		"127.0.0.1:1 --connections=-1":               "connections is -1",
		"127.0.0.1:1 --connections 60001":            "connections is 60001; it can be 1 to 60000",
		"127.0.0.1:1 --duration 25h":                 "duration is 25h0m0s; it can be up to 24h0m0s",
		"127.0.0.1:1 --slow-clients 2":               `"2" is not a share`,
		"127.0.0.1:1 --profile huge":                 `"huge" is not a profile; there are small, mixed, bulk, hostile`,
		"127.0.0.1:1 --threshold nonsense":           "--threshold",
		"127.0.0.1:1 --find-max nonsense<3":          "--find-max",
		"127.0.0.1:1 --find-max errors==0 --hold 1s": "neither hold nor sessions-only",
		"127.0.0.1:1 --find-max errors==0 --rate 5":  "neither rate nor ramp",
		"127.0.0.1:1 --verify mbox:x":                "--verify",
		"127.0.0.1:1 --auth secretword":              "--auth is USER:PASSWORD or @FILE",
		"127.0.0.1:1 --auth @/none":                  "--auth: open /none",
		"127.0.0.1:1 --sources x":                    `--sources "x"`,
		"127.0.0.1:1 --sources ::1":                  "cannot reach 127.0.0.1",
		"127.0.0.1:1 --sources 10.0.0.0/8":           "is not loopback",
		"127.0.0.1:1 --implicit-tls --starttls":      "exclude each other",
		"127.0.0.1:1 --lmtp --http":                  "can't be used together",
		"127.0.0.1:1 --http --bdat":                  "not for http",
		"127.0.0.1:1 --proxy v3":                     "--proxy must be one of",
		"192.0.2.1:25":                               "--i-own-this-host 192.0.2.1",
		"192.0.2.1:25 --i-own-this-host 192.0.2.2":   "--i-own-this-host 192.0.2.1",
		"mx.example.net:25":                          "--i-own-this-host mx.example.net",
		"nowhere":                                    "is not HOST:PORT or unix:/path",
		"":                                           `expected "<target>"`,
	} {
		want(t, 2, "", text, append([]string{"loadtest", "run"}, strings.Fields(args)...)...)
		if _, _, errs := cliRun(append([]string{"loadtest", "run"}, strings.Fields(args)...)...); strings.Contains(errs, "secretword") {
			t.Errorf("%s: %s", args, errs)
		}
	}
	for args, text := range map[string]string{
		"0.0.0.0:2526": "--i-own-this-host 0.0.0.0", "[::]:2526": "--i-own-this-host ::", "--delay x": `--delay "x"`, "--lose 0": `"0" is not N or 1/N`,
		"--script /none": "/none", "--hard-rcpt 2": "is not a share",
	} {
		want(t, 2, "", text, append([]string{"loadtest", "sink"}, strings.Fields(args)...)...)
	}
}

func TestLoadOfNobodyIsAFailureThatNamesTheTarget(t *testing.T) {
	addr := nettest.Nobody(t)
	want(t, 1, "", addr+": connection refused", "loadtest", "run", addr, "--connections", "2")
}

func TestLoadWritesWhatItWasAskedForAndReportsRenderIt(t *testing.T) {
	addr := loadSink(t, sink.Options{})
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	var names []string
	for i := range 2 {
		name := file(fmt.Sprintf("run%d.json", i))
		names = append(names, name)
		out := want(t, 0, "PASS", "", "loadtest", "run", addr, "-n", "200", "--connections", "4", "--pipelining", "--label", "the sink", "--verify", "sink://"+addr,
			"--threshold", "errors==0", "--threshold", "lost==0", "-o", name, "--html", file("run.html"), "--csv", file("run.csv"), "--bench", file("bench.txt"), "--phases")
		if !strings.Contains(out, "acked 200") {
			t.Errorf("it says\n%s", out)
		}
	}
	for name, part := range map[string]string{"run0.json": `"schema": 1`, "run.html": "<html", "run.csv": "acknowledged", "bench.txt": "Benchmark"} {
		text, err := os.ReadFile(file(name))
		if err != nil || !bytes.Contains(text, []byte(part)) {
			t.Errorf("%s: %v; %.200s", name, err, text)
		}
	}
	if text, _ := os.ReadFile(file("bench.txt")); bytes.Count(text, []byte("\nBenchmark"))+btoi(bytes.HasPrefix(text, []byte("Benchmark"))) < 2 {
		t.Errorf("--bench does not append:\n%s", text)
	}
	want(t, 0, "the sink", "", "loadtest", "report", names[0])
	want(t, 0, "Benchmark", "", "loadtest", "report", "--bench", names[0], names[1])
	want(t, 0, "|", "", "loadtest", "report", "--markdown", names[0])
	want(t, 0, "", "", "loadtest", "report", "--html", file("two.html"), "--csv", file("two.csv"), names[0], names[1])
	want(t, 0, "the sink", "", "loadtest", "compare", names[0], names[1])
	want(t, 0, "", "", "loadtest", "compare", file("run*.json"), strings.Join(names, ","), "--html", file("compare.html"))
	want(t, 1, "", "no such file", "loadtest", "compare", file("none*.json"), names[0])
	other := file("other.json")
	want(t, 0, "acked 10", "", "loadtest", "run", addr, "-n", "10", "--connections", "1", "-o", other)
	want(t, 1, "", "", "loadtest", "compare", names[0], other)
	want(t, 0, "", "", "loadtest", "compare", "--force", names[0], other)
	want(t, 1, "acked 10", "is a directory", "loadtest", "run", addr, "-n", "10", "--connections", "1", "-o", file("."))
	want(t, 1, "", "no such file", "loadtest", "run", addr, "-d", "1h", "-o", file("no/where.json")) // not after an hour
	want(t, 1, "", "--verify: stat", "loadtest", "run", addr, "-d", "1h", "--verify", "spool:"+file("none"))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestAFailedVerdictOrThresholdExitsWith1(t *testing.T) {
	addr := loadSink(t, sink.Options{Repeat: 50, Corrupt: 60})
	r, out := loadRun(t, 1, addr, "-n", "200", "--connections", "2", "--verify", "sink://"+addr)
	if r.Verdict.Duplicates != 4 || r.Verdict.Corrupt != 3 || !strings.Contains(out, "FAIL") {
		t.Errorf("%+v\n%s", r.Verdict, out)
	}
	r, out = loadRun(t, 1, addr, "-n", "20", "--connections", "2", "--threshold", "ack.p99<1us")
	if r.Pass() || !strings.Contains(out, "FAIL") {
		t.Errorf("%+v\n%s", r.Thresholds, out)
	}
}

func TestAPasswordIsInNoOutput(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("tim:Xyzzy42plugh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// It repeats what it does not understand, as some servers do: AUTH, too, but for the first.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refused := make(chan struct{}, 1000)
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go parrot(c, n == 0, refused)
		}
	}()
	out := filepath.Join(dir, "run.json")
	page := filepath.Join(dir, "run.html")
	code, stdout, stderr := cliRun("loadtest", "run", l.Addr().String(), "-n", "5", "--connections", "2", "--auth", "@"+secret, "-o", out, "--html", page)
	text := stdout + stderr
	for _, name := range []string{out, page} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Errorf("exit code %d, %v\n%s", code, err, text)
		}
		text += string(b)
	}
	for _, word := range []string{"Xyzzy42plugh", "WHl6enk0MnBsdWdo", "AHRpbQBYeXp6eTQycGx1Z2g"} {
		if strings.Contains(text, word) {
			t.Errorf("%s is in it", word)
		}
	}
	if !strings.Contains(text, "(hidden)") {
		t.Errorf("the refusal is not told: %s", stdout)
	}
}

// parrot refuses what it does not know by repeating it. The kind one lets a login through, and takes no message before another was refused.
func parrot(c net.Conn, kind bool, refused chan struct{}) {
	defer c.Close()
	in := bufio.NewReader(c)
	fmt.Fprint(c, "220 parrot\r\n")
	for inData := false; ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, _, _ := strings.Cut(line, " ")
		switch {
		case inData && line != ".":
			continue
		case inData:
			inData = false
			select {
			case <-refused:
				refused <- struct{}{}
			case <-time.After(patience):
			}
			fmt.Fprint(c, "250 ok\r\n")
		case verb == "EHLO":
			fmt.Fprint(c, "250-parrot\r\n250 AUTH PLAIN\r\n")
		case verb == "AUTH" && kind:
			fmt.Fprint(c, "235 ok\r\n")
		case verb == "DATA":
			inData = true
			fmt.Fprint(c, "354 ok\r\n")
		case verb == "MAIL" || verb == "RCPT" || verb == "QUIT":
			fmt.Fprint(c, "250 ok\r\n")
		default:
			fmt.Fprintf(c, "500 what is %s?\r\n", line)
			if verb == "AUTH" {
				select {
				case refused <- struct{}{}:
				default:
				}
			}
		}
	}
}

func TestLoadSinkServesCountsAndLeavesReceipts(t *testing.T) {
	receipts := filepath.Join(t.TempDir(), "receipts")
	var stdout bytes.Buffer
	p := newProgram(t, &stdout, "loadtest", "sink", "127.0.0.1:0", "--receipts", receipts, "--soft-rcpt", "10%", "--delay", "rcpt=1ms", "--delay", "END=0s..1ms")
	listening := regexp.MustCompile(`listening on (\S+);`)
	p.waitLine("listening on ")
	addr := listening.FindStringSubmatch(p.log.String())[1]
	r, _ := loadRun(t, 0, addr, "-n", "100", "--connections", "4", "--verify", "sink://"+addr)
	if r.Totals.Deferred == 0 || r.Totals.Acknowledged+r.Totals.Deferred != 100 || !r.Verdict.Pass {
		t.Errorf("%+v %+v", r.Totals, r.Verdict)
	}
	code := p.term()
	var counters sink.Counters
	if err := json.Unmarshal(stdout.Bytes(), &counters); err != nil || code != 0 || counters.Messages != r.Totals.Acknowledged {
		t.Errorf("%v, exit code %d, %s%s", err, code, &stdout, p.log)
	}
	if b, err := os.ReadFile(receipts); err != nil || len(b) == 0 {
		t.Errorf("receipts: %d octets, %v", len(b), err)
	}
}

// atPort is the configuration of a server that ends and comes back to the same address.
func atPort(config, addr string) string { return strings.Replace(config, "127.0.0.1:0", addr, 1) }

func TestLoadProvesThatKill9LosesNothing(t *testing.T) {
	dir, addr := t.TempDir(), freeAddress(t)
	config := atPort(minimalConfig, addr)
	p := serve(t, dir, config)
	out := filepath.Join(dir, "run.json")
	var stdout bytes.Buffer
	load := newProgram(t, &stdout, "loadtest", "run", addr, "-d", "1h", "--connections", "20", "--pipelining", "--recipients", "1..3", "--bdat", "30%",
		"--quiet", "--out", out, "--verify", "spool:"+filepath.Join(dir, "state"))
	for range 3 {
		p.wait("some load", func() bool { return strings.Count(p.log.String(), `"msg":"accepted"`) > 50 })
		p.kill()
		p = serve(t, dir, config)
	}
	if code := load.term(); code != exitOK {
		t.Errorf("exit code %d\n%s%s", code, &stdout, load.log)
	}
	runs, err := readRuns(out)
	if err != nil {
		t.Fatal(err)
	}
	r := runs[0]
	if v := r.Verdict; !v.Pass || v.Lost != 0 || v.Acknowledged < 100 || r.Totals.Errors == 0 || !strings.Contains(stdout.String(), "PASS") {
		t.Errorf("%+v %+v\n%s", v, r.Totals, &stdout)
	}
	t.Logf("%d acknowledged, %d unknown, %d received", r.Verdict.Acknowledged, r.Verdict.Unknown, r.Verdict.Received)
}

func TestLoadFollowsMailThroughARelayToItsSink(t *testing.T) {
	hop := freeAddress(t)
	p := serve(t, t.TempDir(), minimalConfig+"[relay]\nnext_hop = [\"smtp://"+hop+"\"]\nretry = [\"100ms\"]\n")
	r, out := loadRun(t, 0, p.addr[0], "-n", "500", "--connections", "10", "--pipelining=tight", "--recipients", "1..3", "--verify", "sink:"+hop, "--pid", fmt.Sprint(p.cmd.Process.Pid))
	if v := r.Verdict; !v.Pass || v.Acknowledged < 500 || v.Received != v.Acknowledged || r.Server == nil || r.Server.CPUSeconds <= 0 || !strings.Contains(out, "PASS") {
		t.Errorf("%+v %+v\n%s", v, r.Totals, out)
	}
}

// A target that refuses everything does not make a success, also where nobody asked for a proof.
func TestALoadOfWhichNothingIsAcknowledgedExitsWith1(t *testing.T) {
	addr := loadSink(t, sink.Options{Shares: sink.Shares{HardData: 1}})
	r, _ := loadRun(t, exitFailure, "-n", "20", "--connections", "2", addr)
	if r.Totals.Refused != 20 || r.Totals.Acknowledged != 0 {
		t.Errorf("%+v", r.Totals)
	}
	loadRun(t, exitOK, "-n", "20", "--connections", "2", "--sessions-only", addr)
}
