package machine

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/internal/nettest"
)

// shell runs a script; its standard input is a pipe, so that a read in it waits for us.
func shell(t *testing.T, script string) (*exec.Cmd, io.WriteCloser, io.Reader) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, in, out
}

const loop = `i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done`

func TestRealProcesses(t *testing.T) {
	cmd, in, out := shell(t, `read go
sh -c '`+loop+`'
sh -c '`+loop+`; echo looped; read end' & 
wait
read end
exec dd if=/dev/zero of=/dev/null count=1 2>/dev/null`)
	tree, err := Watch(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	first, err := tree.Sample()
	if err != nil || first.Processes != 1 || first.Gone {
		t.Fatalf("%+v, %v", first, err)
	}
	if rss, pss, err := tree.Memory(); err != nil || rss <= 0 || pss <= 0 || pss > rss {
		t.Errorf("memory %d, %d, %v", rss, pss, err)
	}
	io.WriteString(in, "go\n")
	io.ReadFull(out, make([]byte, len("looped\n")))
	last := first
	for last.Processes != 1 { // until the child in the background has read the end of its input, /dev/null
		if last, err = tree.Sample(); err != nil {
			t.Fatal(err)
		}
	}
	in.Close()
	for err == nil {
		s, e := tree.Sample()
		if s.CPU() < last.CPU() || s.ContextSwitches < last.ContextSwitches {
			t.Fatalf("%+v after %+v", s, last)
		}
		last, err = s, e
		if s.Gone && err == nil {
			t.Errorf("gone, but %+v", s)
			break
		}
	}
	if !errors.Is(err, ErrGone) || !last.Gone {
		t.Errorf("%+v, %v", last, err)
	}
	cmd.Wait()
	// What a sample has seen is not more than the kernel charged in the end, in its coarser way.
	if charged := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(); last.CPU() > charged+4*tick {
		t.Errorf("%v, the kernel says %v", last.CPU(), charged)
	}
	if last.CPU() == 0 || last.ContextSwitches == 0 {
		t.Errorf("%+v", last)
	}
}

func TestWriteBytes(t *testing.T) {
	dir := t.TempDir()
	if fs := fileSystem(dir); fs == "tmpfs" || fs == "overlay" {
		t.Skip("no disk")
	}
	cmd, in, out := shell(t, `read go; dd if=/dev/zero of=`+filepath.Join(dir, "f")+` bs=4096 count=16 2>/dev/null; echo written; read end`)
	tree, err := Watch(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := tree.Sample()
	io.WriteString(in, "go\n")
	io.ReadFull(out, make([]byte, len("written\n")))
	after, err := tree.Sample()
	if err != nil || after.WriteBytes-before.WriteBytes < 16*4096 {
		t.Errorf("%d, %v", after.WriteBytes-before.WriteBytes, err)
	}
}

func TestTheGeneratorItself(t *testing.T) {
	before := Self()
	tree, err := Watch(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	s, err := tree.Sample()
	after := Self()
	if err != nil || s.Processes < 1 || s.ContextSwitches == 0 || s.CPU() == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if after.CPU() < before.CPU() || after.RSS == 0 || after.PeakRSS < 1<<20 || after.ContextSwitches == 0 {
		t.Errorf("%+v after %+v", after, before)
	}
}

func TestFacts(t *testing.T) {
	m := Facts()
	if m.CPU == "" || m.Cores < 1 || !strings.HasPrefix(m.Kernel, "Linux ") || m.MemoryMiB < 1 || m.Go == "" || m.Platform == "" || len(m.Host) != 8 {
		t.Errorf("%+v", m)
	}
	if _, err := time.Parse(time.DateOnly, m.Date); err != nil {
		t.Error(err)
	}
	if name, _ := os.Hostname(); name != "" && strings.Contains(m.Host, name) {
		t.Errorf("%q tells the name", m.Host)
	}
	if again := Facts(); again.Host != m.Host {
		t.Error("another host a moment later")
	}
}

func TestSyncTimes(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []int{-1, 1, 20} {
		p50, p99, fs, err := SyncTimes(dir, n)
		if err != nil || p50 <= 0 || p99 < p50 || fs == "" {
			t.Errorf("%d: %v, %v, %q, %v", n, p50, p99, fs, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, _, _, err := SyncTimes(filepath.Join(dir, "missing"), 1); err == nil {
		t.Error("no error for a directory that is missing")
	}
}

func TestRank(t *testing.T) {
	times := []time.Duration{1, 2, 3, 4}
	for percent, want := range map[int]time.Duration{0: 1, 25: 1, 26: 2, 50: 2, 51: 3, 99: 4, 100: 4} {
		if got := rank(times, percent); got != want {
			t.Errorf("p%d is %d, want %d", percent, got, want)
		}
	}
}

func TestMountedAt(t *testing.T) {
	const info = `22 27 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:30 / /var rw - xfs /dev/a rw
31 27 0:31 / /var/lib\040x rw - btrfs /dev/b rw
32 30 0:32 / /var rw - tmpfs none rw
short - line
no separator
`
	for path, want := range map[string]string{"/": "ext4", "/home/a": "ext4", "/var": "tmpfs", "/various": "ext4", "/var/lib": "tmpfs",
		"/var/lib x": "btrfs", "/var/lib x/y": "btrfs", "/proc/1": "proc"} {
		if got := mountedAt(info, path); got != want {
			t.Errorf("%s is on %q, want %q", path, got, want)
		}
	}
	if got := mountedAt("", "/"); got != "" {
		t.Error(got)
	}
}

func TestParseCores(t *testing.T) {
	for list, want := range map[string][]int{"0": {0}, "0-2": {0, 1, 2}, "1,4-5,7": {1, 4, 5, 7}, "": nil, "x": nil, "3-1": nil, "0-": nil, "-1": nil, "0-65536": nil} {
		if got := parseCores(list); !slices.Equal(got, want) {
			t.Errorf("%q: %v", list, got)
		}
	}
	if Affinity(0) == nil || !slices.Equal(Affinity(0), Affinity(os.Getpid())) {
		t.Errorf("%v, %v", Affinity(0), Affinity(os.Getpid()))
	}
	if !SharesCores(os.Getpid()) || !SharesCores(1<<30) {
		t.Error("a process shares cores with itself, and with one of which nothing is known")
	}
}

func TestLoopbackTarget(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:25": true, "127.9.9.9:25": true, "[::1]:25": true, "::1": true, "127.0.0.1": true, "localhost:25": true, "LocalHost.:2525": true,
		"[::ffff:127.0.0.1]:25": true, "/run/lmtp.sock": true, "unix:/run/lmtp": true, "@abstract": true,
		"192.0.2.1:25": false, "mx.example.net:25": false, "localhost.example.net:25": false, "0.0.0.0:25": false, "[::]:25": false, "": false,
		":25": false, "127.0.0.1.example.net:25": false, "[2001:db8::1]:25": false,
	} {
		if got := LoopbackTarget(addr); got != want {
			t.Errorf("%q: %v", addr, got)
		}
	}
}

func TestPIDListening(t *testing.T) {
	for _, where := range []string{"127.0.0.1", "::1", ""} {
		port := strconv.Itoa(nettest.Port(t)) // nobody else comes by it when it is closed
		address := net.JoinHostPort(where, port)
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s: %v", address, err)
			continue
		}
		host := cmp.Or(where, "127.0.0.1")
		// A child that holds it, too, is younger.
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		child := exec.Command("sh", "-c", "read end")
		child.ExtraFiles = []*os.File{f}
		in, _ := child.StdinPipe()
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if pid, ok := PIDListening(net.JoinHostPort(host, port)); !ok || pid != os.Getpid() {
			t.Errorf("%s: %d, %v", address, pid, ok)
		}
		in.Close()
		child.Wait()
		f.Close()
		ln.Close()
		if pid, ok := PIDListening(net.JoinHostPort(host, port)); ok {
			t.Errorf("%s, closed: %d", address, pid)
		}
	}
	for _, bad := range []string{"", "127.0.0.1", "127.0.0.1:smtp", "mx.example.net:25", "127.0.0.1:99999"} {
		if pid, ok := PIDListening(bad); ok {
			t.Errorf("%q: %d", bad, pid)
		}
	}
}

func TestParseListener(t *testing.T) {
	for line, want := range map[string]string{
		"  0: 0100007F:09DD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 x":                                                 "127.0.0.1:2525",
		"  1: 00000000000000000000000001000000:0019 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 x": "[::1]:25",
	} {
		if got, inode, ok := parseListener(line); !ok || got.String() != want || inode != "4711" {
			t.Errorf("%v, %q, %v", got, inode, ok)
		}
	}
	for _, line := range []string{"", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
		"  0: 0100007F:09DD 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 x",
		"  0: 010000:09DD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 x",
		"  0: 0100007F:9DDDD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 x"} {
		if got, _, ok := parseListener(line); ok {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func BenchmarkSample(b *testing.B) {
	children, err := exec.LookPath("sleep")
	if err != nil {
		b.Skip(err)
	}
	cmd := exec.Command("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do for j in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do "+
		children+" 60 & done; done; echo up; read end; kill $(jobs -p)")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	io.ReadFull(out, make([]byte, 3))
	tree, err := Watch(cmd.Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("processes=300", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if s, err := tree.Sample(); err != nil || s.Processes < 300 {
				b.Fatalf("%+v, %v", s, err)
			}
		}
	})
}
