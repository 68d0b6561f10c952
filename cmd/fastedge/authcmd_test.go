package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fastedge/fastedge/auth"
)

// authRun is the verb with something on stdin.
func authRun(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(append([]string{"auth"}, args...), strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func authWant(t *testing.T, code int, stdout, stderr, stdin string, args ...string) string {
	t.Helper()
	got, out, errs := authRun(stdin, args...)
	if got != code || !strings.Contains(out, stdout) || !strings.Contains(errs, stderr) {
		t.Errorf("%v: exit code %d, want %d\nstdout %q, want %q\nstderr %q, want %q", args, got, code, out, stdout, errs, stderr)
	}
	return out
}

// cheap keeps the tests fast.
const cheap = "--iterations=4096"

func TestAuthAddListRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	file := "--file=" + path
	authWant(t, 0, "alice: added, SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN\n", "", "secret\n", "add", "alice", file, cheap)
	authWant(t, 0, "bob: added, EXTERNAL PLAIN LOGIN\n", "", "hunter2", "add", "bob", file, "--plain-only")
	authWant(t, 0, "CRAM-MD5", "", "swordfish\r\nnot the password\n", "add", "carol", file, "--cram-md5", cheap)
	authWant(t, 0, "dora: added, EXTERNAL\n", "", "", "add", "dora", file, "--certificate-only")
	authWant(t, 0, "j\u00fcrgen: added", "", "x", "add", "ju\u0308rgen", file, cheap) // SASLprep
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	text, _ := os.ReadFile(path)
	for _, password := range []string{"secret", "hunter2", "swordfish"} {
		if bytes.Contains(text, []byte(password)) {
			t.Errorf("%q is in the file", password)
		}
	}
	list := authWant(t, 0, "alice", "", "", "list", file)
	for _, line := range []string{"carol   4096        SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN CRAM-MD5", "dora    -           EXTERNAL"} {
		if !strings.Contains(list, line) {
			t.Errorf("%q is not in\n%s", line, list)
		}
	}
	out := authWant(t, 0, "", "", "", "list", "--json", file)
	var bob struct {
		User       string
		Mechanisms []string
		Disabled   *bool
	}
	if lines := strings.Split(out, "\n"); len(lines) != 6 || json.Unmarshal([]byte(lines[1]), &bob) != nil || bob.User != "bob" || len(bob.Mechanisms) != 3 || bob.Disabled == nil {
		t.Errorf("%+v of\n%s", bob, out)
	}
	authWant(t, 1, "", "nobody is not in", "", "remove", "alice", "nobody", file)
	authWant(t, 0, "alice", "", "", "list", file) // all or none
	authWant(t, 0, "", "", "", "remove", "alice", "bob", file)
	if out := authWant(t, 0, "carol", "", "", "list", file); strings.Contains(out, "alice") || strings.Contains(out, "bob") {
		t.Error(out)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) != 0 {
		t.Error("left behind:", left)
	}
}

func TestAuthAddKeepsOtherLinesAndTheDisabledMark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	before := "# people\n\nalice disabled\n\t# indented\nbob" // no line end
	if err := os.WriteFile(path, []byte(before), 0o640); err != nil {
		t.Fatal(err)
	}
	authWant(t, 0, "carol: added", "", "x", "add", "carol", "--file", path, "--certificate-only")
	authWant(t, 0, "alice: changed", "alice is still disabled", "new\n", "add", "alice", "--file", path, cheap)
	authWant(t, 0, "", "", "", "remove", "bob", "--file", path)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) != 6 || lines[0] != "# people" || lines[1] != "" || !strings.HasPrefix(lines[2], "alice scram-sha-256=4096:") ||
		!strings.HasSuffix(lines[2], " disabled") || lines[3] != "\t# indented" || lines[4] != "carol" || lines[5] != "" {
		t.Errorf("%q", text)
	}
	if info, _ := os.Stat(path); info.Mode() != 0o640 {
		t.Errorf("mode %v: the group could read it before", info.Mode())
	}
}

func TestAuthRefusesWhatItCannotStore(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "users")
	file := "--file=" + path
	authWant(t, 1, "", "the password is empty", "", "add", "alice", file)
	authWant(t, 1, "", "the password is empty", "\nsecret\n", "add", "alice", file)
	authWant(t, 1, "", "more than 1024 bytes", strings.Repeat("x", 1025), "add", "alice", file)
	authWant(t, 1, "", "SASLprep", "bell\a\n", "add", "alice", file)
	authWant(t, 1, "", "SASLprep", "\xff\n", "add", "alice", file)
	authWant(t, 2, "", "blank", "x", "add", "two words", file)
	authWant(t, 2, "", "#", "x", "add", "#alice", file)
	authWant(t, 2, "", "empty", "x", "add", "", file)
	authWant(t, 2, "", "255", "x", "add", strings.Repeat("x", 256), file)
	authWant(t, 2, "", "4096", "x", "add", "alice", file, "--iterations=4095")
	authWant(t, 2, "", "exclude", "x", "add", "alice", file, "--plain-only", "--cram-md5")
	authWant(t, 2, "", "unexpected argument", "", "add", "alice", "secret", file) // a password is never an argument
	authWant(t, 2, "", "auth.users", "x", "add", "alice")
	authWant(t, 1, "", "no such file", "", "list", file)
	authWant(t, 1, "", "no such file", "", "remove", "alice", file)
	if _, err := os.Stat(path); err == nil {
		t.Error("a refused add leaves a file")
	}
	bad := "alice password=secret\n"
	if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	authWant(t, 1, "", "users:1: ", "x", "add", "bob", file, "--certificate-only")
	_, _, errs := authRun("", "list", file)
	if strings.Contains(errs, "secret") {
		t.Errorf("the error shows what somebody took for a password's place: %s", errs)
	}
	if text, _ := os.ReadFile(path); string(text) != bad {
		t.Errorf("a file with bad lines was changed: %q", text)
	}
}

func TestAuthUsersFileOfTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	users, conf := filepath.Join(dir, "users"), filepath.Join(dir, "fastedge.toml")
	if err := os.WriteFile(users, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte(fmt.Sprintf("[auth]\nusers = %q\n", users)), 0o600); err != nil {
		t.Fatal(err)
	}
	authWant(t, 0, "alice: added", "", "", "add", "alice", "--certificate-only", "-c", conf)
	table, err := auth.Load(users)
	if err != nil || table.Len() != 1 {
		t.Errorf("%v %v", table, err)
	}
}

func TestAuthWritersWaitForEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if code, _, errs := authRun("", "add", fmt.Sprintf("user%d", i), "--file", path, "--certificate-only"); code != 0 {
				t.Error(errs)
			}
		})
	}
	wg.Wait()
	if table, err := auth.Load(path); err != nil || table.Len() != 20 {
		t.Errorf("%v: some of 20 users are lost", err)
	}
}

func TestAuthLinkToTheUsersFileStaysALink(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	if err := os.WriteFile(real, []byte("# here\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	authWant(t, 0, "", "", "", "add", "alice", "--file", link, "--certificate-only")
	if text, _ := os.ReadFile(real); string(text) != "# here\nalice\n" {
		t.Errorf("%q", text)
	}
	if info, _ := os.Lstat(link); info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link is gone")
	}
}
