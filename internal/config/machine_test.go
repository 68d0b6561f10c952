package config

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// onMachine loads a configuration with a listener on addr and checks the machine.
func onMachine(t *testing.T, dir, addr, more string) (c *Config, warnings []Problem, busy []string, err error) {
	t.Helper()
	c = mustLoad(t, "state_dir = "+tomlString(dir)+"\nadmin.http = \"\"\n"+more+"\n[[listen]]\naddress = "+tomlString(addr)+"\n", nil)
	warnings, busy, err = c.CheckMachine()
	return c, warnings, busy, err
}

func TestMachineThatOffersEverything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "made", "yet")
	if _, warnings, busy, err := onMachine(t, dir, "127.0.0.1:0", "limits.connections = 10"); err != nil || len(warnings)+len(busy) > 0 {
		t.Errorf("%v %v %v", warnings, busy, err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("checking made the directory")
	}
}

func TestStateDirThatIsAFileIsReportedAtItsLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{file: "is not a directory", filepath.Join(file, "below"): "not a directory"} {
		_, _, _, err := onMachine(t, dir, "127.0.0.1:0", "limits.connections = 10")
		if err == nil || !strings.HasPrefix(err.Error(), "f.toml:1:13: state_dir: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func TestFilesThatCannotBeReadAreReportedAtTheirKeys(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"good": 0o600, "secret": 0} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	more := strings.ReplaceAll(`
limits.connections = 10
domains.recipients = "DIR/recipients"
[auth]
users = "DIR"
[tls]
client_ca = "DIR/pipe"
certificates = [{ cert = "DIR/good", key = "DIR/secret" }, { cert = "DIR/good/x", key = "DIR/good" }]
`, "DIR", dir)
	_, _, _, err := onMachine(t, dir, "127.0.0.1:0", more)
	var problems Problems
	errors.As(err, &problems)
	want := []string{
		"domains.recipients: " + dir + "/recipients: no such file or directory",
		"auth.users: " + dir + " is not a file",
		"tls.client_ca: " + dir + "/pipe is not a file",
		"tls.certificates[0].key: " + dir + "/secret: permission denied",
		"tls.certificates[1].cert: " + dir + "/good/x: not a directory",
	}
	if os.Geteuid() == 0 { // may read everything
		want = slices.Delete(want, 3, 4)
	}
	var got []string
	for _, p := range problems {
		if p.Line == 0 {
			t.Errorf("no place: %v", p)
		}
		got = append(got, p.Message)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAddressInUseIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, _, busy, err := onMachine(t, t.TempDir(), l.Addr().String(), "limits.connections = 10")
	if err != nil || !slices.Equal(busy, []string{l.Addr().String()}) {
		t.Errorf("%v %v", busy, err)
	}
}

func TestAddressOfAnotherMachineIsAProblem(t *testing.T) {
	_, _, _, err := onMachine(t, t.TempDir(), "192.0.2.1:25", "limits.connections = 10\ndomains.accept = [\"example.net\"]")
	if err == nil || !strings.Contains(err.Error(), "f.toml:6:11: listen[0].address: 192.0.2.1:25: ") {
		t.Errorf("%v", err)
	}
}

func TestUnixSocketPaths(t *testing.T) {
	dir := t.TempDir()
	check := func(path string) ([]string, error) {
		_, _, busy, err := onMachine(t, dir, "unix:"+path, "limits.connections = 10")
		return busy, err
	}
	socket := filepath.Join(dir, "s")
	if busy, err := check(socket); err != nil || busy != nil {
		t.Errorf("free path: %v %v", busy, err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if busy, err := check(socket); err != nil || len(busy) != 1 {
		t.Errorf("socket in use: %v %v", busy, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if busy, err := check(socket); err != nil || busy != nil {
		t.Errorf("socket left over: %v %v", busy, err)
	}
	if _, err := check(filepath.Join(dir, "none", "s")); err == nil {
		t.Error("missing directory: no problem")
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := check(file); err == nil {
		t.Error("path of a file: no problem")
	}
}

// Connections that were asked for and can't be had are an error; those of the default make way, those of HTTP to a quarter of what is left.
func TestDescriptorLimit(t *testing.T) {
	const smtpOnly = "listen = [{ address = \"127.0.0.1:25\" }]\n"
	for _, c := range []struct {
		text       string
		spare      int    // descriptors that are left for connections of clients
		smtp, http int    // connections afterwards
		lowered    string // keys
		bad        string // key and line
	}{
		{smtpOnly, 20000, 20000, 4096, "", ""},
		{smtpOnly, 300, 300, 4096, "limits.connections", ""},
		{smtpOnly, 1, 1, 4096, "limits.connections", ""},
		{smtpOnly, 0, 20000, 4096, "", "limits.connections 0"},
		{smtpOnly + "limits.connections = 1000", 1000, 1000, 4096, "", ""},
		{smtpOnly + "limits.connections = 1000", 999, 1000, 4096, "", "limits.connections 2"},
		{"", 24096, 20000, 4096, "", ""},
		{"", 24095, 19999, 4096, "limits.connections", ""},
		{"", 16384, 12288, 4096, "limits.connections", ""},
		{"", 16380, 12285, 4095, "http.connections limits.connections", ""},
		{"", 4, 3, 1, "http.connections limits.connections", ""},
		{"", 3, 20000, 4096, "", "limits.connections 0"},
		{"limits.connections = 1000", 1001, 1000, 1, "http.connections", ""},
		{"limits.connections = 1000", 1000, 1000, 4096, "", "limits.connections 1"},
		{"http.connections = 1000", 1001, 1, 1000, "limits.connections", ""},
		{"http.connections = 1000", 1000, 20000, 1000, "", "http.connections 1"},
		{"limits.connections = 5\nhttp.connections = 1000", 1005, 5, 1000, "", ""},
		{"limits.connections = 5\nhttp.connections = 1000", 1004, 5, 1000, "", "http.connections 2"},
		{"limits.connections = 1000\nhttp.connections = 5", 1004, 1000, 5, "", "limits.connections 1"},
		{"limits.connections = 1000", -5000, 1000, 4096, "", "limits.connections 1"},
	} {
		cfg := mustLoad(t, c.text, nil)
		limit := int(cfg.Descriptors()) - cfg.Limits.Connections + c.spare
		if cfg.HasHTTP() {
			limit -= cfg.HTTP.Connections
		}
		l := loader{cfg: cfg, doc: cfg.doc, bad: map[string]bool{}}
		var keys []string
		for _, w := range l.descriptors(uint64(max(limit, 0))) {
			keys = append(keys, w.Key)
		}
		bad := ""
		if len(l.problems) > 0 {
			bad = l.problems[0].Key + " " + strconv.Itoa(l.problems[0].Line)
		}
		if cfg.Limits.Connections != c.smtp || cfg.HTTP.Connections != c.http || strings.Join(keys, " ") != c.lowered || bad != c.bad {
			t.Errorf("%q with %d to spare: %d and %d connections, lowered %v, bad %q; want %d and %d, %q, %q", c.text, c.spare,
				cfg.Limits.Connections, cfg.HTTP.Connections, keys, bad, c.smtp, c.http, c.lowered, c.bad)
		}
		if need := cfg.Descriptors(); bad == "" && need > uint64(limit) {
			t.Errorf("%q with %d to spare: still %d needed of %d", c.text, c.spare, need, limit)
		}
	}
}

func TestSoftLimitIsRaised(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil || before.Max < 600 {
		t.Skip("no limit to play with", err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)
	low := syscall.Rlimit{Cur: 300, Max: before.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Skip(err)
	}
	if got := raiseDescriptorLimit(600); got != 600 {
		t.Errorf("got %d", got)
	}
	if got := raiseDescriptorLimit(500); got != 600 {
		t.Errorf("lowered to %d", got)
	}
}

func TestEveryLoopHasItsDescriptorsReserved(t *testing.T) {
	c, err := Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	few, many := c.descriptorsFor(2), c.descriptorsFor(128)
	if want := few - reservedDescriptors + 128*uint64(3+len(c.Listen)); few != c.descriptorsFor(1) || many < want {
		t.Errorf("2 loops need %d, 128 need %d, want %d or more", few, many, want)
	}
}

func TestEveryServiceHasItsDescriptors(t *testing.T) {
	without := mustLoad(t, "", nil).Descriptors()
	c := mustLoad(t, "auth = { http = 'http://a/', dovecot = '/d' }\nhook = [{ at = ['mail'], url = 'http://a/' }]\nmilter = [{ address = 'a:1' }, { address = 'b:1' }]\n", nil)
	if got := c.Descriptors(); got != without+5*serviceDescriptors {
		t.Errorf("%d, and %d without", got, without)
	}
}

// A machine without DNS is no error: it is told, and only where somebody would be looked up.
func TestMissingNameServersAreAWarning(t *testing.T) {
	write := func(text string) string {
		file := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, c := range []struct{ text, file, want string }{
		{"", "/nowhere/resolv.conf", ""},
		{openListener, write("# none\n nameserver 192.0.2.53\n"), ""},
		{openListener + "[dns]\nservers = [\"192.0.2.53\"]", "/nowhere/resolv.conf", ""},
		{openListener, "/nowhere/resolv.conf",
			"dns.servers: not set, and /nowhere/resolv.conf: no such file or directory. A server on this machine is asked (127.0.0.1:53)"},
		{openListener, write("search example.net\nnameserver\n"), "it names no server"},
	} {
		l := loader{cfg: mustLoad(t, c.text, nil)}
		got := ""
		if warning := l.nameServers(c.file); warning != nil {
			got = warning.String()
		}
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s with %s: %q", c.text, c.file, got)
		}
	}
	if none, open := mustLoad(t, "listen = [{ address = \"127.0.0.1:25\" }]", nil), mustLoad(t, openListener, nil); open.descriptorsFor(1)-none.descriptorsFor(1) != 3*dnsDescriptors {
		t.Error("sockets of the resolver are not counted")
	}
}
