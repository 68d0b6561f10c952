package auth

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func fullUser(t testing.TB, name string) User {
	t.Helper()
	u := scramUser(t, name, "secret")
	u.Argon2id = argonUser(t, name, "secret").Argon2id
	cram, err := NewCRAMKeys("secret")
	if err != nil {
		t.Fatal(err)
	}
	u.CRAM, u.Disabled = &cram, true
	return u
}

func TestUserLineRoundTrip(t *testing.T) {
	for _, u := range []User{fullUser(t, "alice@example.org"), {Name: "b"}, scramUser(t, "jürgen", "x"), argonUser(t, "c", "x"), {Name: "d", Disabled: true}} {
		line := string(u.AppendTo(nil))
		back, err := ParseUser(line)
		if err != nil || !reflect.DeepEqual(back, u) {
			t.Errorf("%s: %+v %v", line, back, err)
		}
	}
}

// A test vector of the reference implementation of argon2, for "password".
func TestArgon2idMadeElsewhereIsGood(t *testing.T) {
	u, err := ParseUser("alice argon2id=$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc")
	if err != nil {
		t.Fatal(err)
	}
	s := testService(t, Options{Store: testUsers(t, u)})
	script{PLAIN, []string{"\x00alice\x00password"}, nil, Success, "alice"}.run(t, s, client)
	script{PLAIN, []string{"\x00alice\x00Password"}, nil, Failed, ""}.run(t, s, client)
}

func TestNewArgon2idIsGoodForItsPasswordOnly(t *testing.T) {
	hash, err := NewArgon2id("secret", []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	s := testService(t, Options{Store: testUsers(t, User{Name: "alice", Argon2id: &hash})})
	script{PLAIN, []string{"\x00alice\x00secret"}, nil, Success, "alice"}.run(t, s, client)
	script{PLAIN, []string{"\x00alice\x00secreT"}, nil, Failed, ""}.run(t, s, client)
}

func TestBadUserLinesAreRefused(t *testing.T) {
	k := strings.TrimPrefix(string(func() []byte { u := scramUser(t, "a", "x"); return u.AppendTo(nil) }()), "a ")
	keys := strings.SplitN(k, ":", 2)[1]
	a := strings.TrimPrefix(string(func() []byte { u := argonUser(t, "a", "x"); return u.AppendTo(nil) }()), "a ")
	for _, line := range []string{
		"", " ", "a b", "a password=secret", "a secret", "a disabled disabled", "a disabled=1 x", "a Disabled",
		"a\u00a0b", "a\x00", "a\x7f", "\xff", "a#b", "\ufb01", strings.Repeat("a", MaxUserBytes+1),
		"a " + k + " " + k, "a " + a + " " + a,
		"a scram-sha-256=", "a scram-sha-256=4096:x", "a scram-sha-256=4095:" + keys, "a scram-sha-256=10000001:" + keys,
		"a scram-sha-256=04096:" + keys, "a scram-sha-256=+4096:" + keys, "a " + k + ":", "a " + k[:len(k)-1], "a " + k + "=",
		"a scram-sha-256=4096:AAAA:" + strings.SplitN(keys, ":", 2)[1], // a salt of 3 bytes
		"a argon2id=", "a " + strings.Replace(a, "argon2id$", "argon2i$", 1), "a " + strings.Replace(a, "v=19", "v=16", 1),
		"a " + strings.Replace(a, "m=8", "m=7", 1), "a " + strings.Replace(a, "m=8", "m=262145", 1), "a " + strings.Replace(a, "t=1", "t=0", 1),
		"a " + strings.Replace(a, "p=1", "p=0", 1), "a " + strings.Replace(a, "p=1", "p=17", 1), "a " + strings.Replace(a, ",p=1", "", 1), "a " + a + "$",
		"a cram-md5=", "a cram-md5=AAAA:AAAA", "a cram-md5=AAAAAAAAAAAAAAAAAAAAAA==", "a " + strings.Repeat("x", maxUsersLineBytes),
	} {
		if u, err := ParseUser(line); err == nil {
			t.Errorf("%q is read as %+v", line, u)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows what may be a password: %v", line, err)
		}
	}
}

func TestLoadTellsEveryBadLineByNumber(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	text := "# users\r\n\nalice\nbob nonsense\n\nalice\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	if err == nil || !strings.Contains(err.Error(), path+":4: ") || !strings.Contains(err.Error(), path+":6: user alice stands twice") {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("a b\n", 25)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = Load(path); err == nil || strings.Count(err.Error(), "\n") != maxUsersErrors || !strings.Contains(err.Error(), "15 more") {
		t.Error(err)
	}
	if _, err := Load(t.TempDir()); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Error("a directory:", err)
	}
	if err := os.Truncate(path, MaxUsersFileBytes+1); err != nil { // a sparse file
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Error("too large:", err)
	}
}

func TestReloadSwapsGoodFilesAndKeepsTheOldOnBadOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	old := time.Now().Add(-time.Hour)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenUsers(path); err == nil {
		t.Error("opened without a file")
	}
	write("alice\n")
	u, err := OpenUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(changed bool, wrong string) {
		t.Helper()
		got, err := u.Reload()
		if got != changed || (err == nil) != (wrong == "") || err != nil && !strings.Contains(err.Error(), wrong) {
			t.Errorf("Reload: %v %v, want %v %q", got, err, changed, wrong)
		}
	}
	has := func(names ...string) {
		t.Helper()
		if !reflect.DeepEqual(u.Table().byName, names) {
			t.Errorf("%v, want %v", u.Table().byName, names)
		}
	}
	reload(false, "")
	write("alice\nbob\n")
	reload(true, "")
	has("alice", "bob")
	write("alice\ncarl\n") // as long, and in the same tick of a coarse clock
	reload(true, "")
	has("alice", "carl")
	write("alice nonsense\n")
	reload(false, "users:1: ")
	reload(false, "users:1: ") // each time: the caller says it once
	has("alice", "carl")
	os.Remove(path)
	reload(false, "no such file")
	has("alice", "carl")
	write("alice\ncarl\n")
	reload(false, "") // back, the same
	// A file that has not been touched for long is not read again: the time is trusted then.
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	reload(false, "")
	if err := os.WriteFile(path, []byte("alice\ndora\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	reload(false, "")
	if err := os.Chtimes(path, old, old.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	reload(true, "")
	has("alice", "dora")
}

func TestFailedUpdateLeavesTheFileAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "users")
	if err := os.WriteFile(path, []byte("alice\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(f *UsersFile) error{
		"an error":   func(f *UsersFile) error { f.Remove("alice"); return fmt.Errorf("no") },
		"a bad name": func(f *UsersFile) error { f.Set(User{Name: "two words"}); return nil },
	} {
		if err := Update(path, false, change); err == nil {
			t.Errorf("%s: no error", name)
		}
		if text, _ := os.ReadFile(path); string(text) != "alice\n" {
			t.Errorf("%s: %q", name, text)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestHashingHeedsItsContext(t *testing.T) {
	u := testUsers(t, scramUser(t, "alice", "secret"))
	for range cap(hashing) { // all cores are busy
		hashing <- struct{}{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := u.CheckPassword(ctx, Login{Mechanism: PLAIN, User: "alice", Password: "secret"})
	for range cap(hashing) {
		<-hashing
	}
	if err != context.Canceled {
		t.Error(err)
	}
}

func TestStoresAreAskedInTurn(t *testing.T) {
	trouble := &scripted{mechanisms: "PLAIN", password: func(context.Context, Login) (string, error) { return "", fmt.Errorf("down") }}
	alice := testUsers(t, scramUser(t, "alice", "a"))
	bob := testUsers(t, scramUser(t, "bob", "b"))
	both := testService(t, Options{Store: Stores(alice, bob)})
	for _, c := range []script{
		{PLAIN, []string{"\x00alice\x00a"}, nil, Success, "alice"},
		{PLAIN, []string{"\x00bob\x00b"}, nil, Success, "bob"},
		{PLAIN, []string{"\x00bob\x00a"}, nil, Failed, ""},
		{PLAIN, []string{"alice\x00bob\x00b"}, nil, Failed, ""},
	} {
		c.run(t, both, client)
	}
	for _, name := range []string{"alice", "bob"} {
		if o := login(t, both, client, newSCRAMClient(t, name, name[:1], ""), false); o.Result != Success || o.User != name {
			t.Errorf("%s: %v", name, o.Result)
		}
	}
	down := testService(t, Options{Store: Stores(trouble, bob)})
	script{PLAIN, []string{"\x00bob\x00b"}, nil, Success, "bob"}.run(t, down, client)
	script{PLAIN, []string{"\x00alice\x00a"}, nil, Unavailable, ""}.run(t, down, client) // the other might have known
}

func FuzzUserLine(f *testing.F) {
	f.Add("alice disabled")
	u := User{Name: "bob"}
	f.Add(string(u.AppendTo(nil)))
	u = fullUser(f, "alice@example.org")
	f.Add(string(u.AppendTo(nil)))
	f.Fuzz(func(t *testing.T, line string) {
		u, err := ParseUser(line)
		if err != nil {
			return
		}
		again, err := ParseUser(string(u.AppendTo(nil)))
		if err != nil || !reflect.DeepEqual(u, again) {
			t.Fatalf("%q: %+v, then %+v %v", line, u, again, err)
		}
		if _, err := parseTable("users", u.AppendTo(nil)); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	})
}
