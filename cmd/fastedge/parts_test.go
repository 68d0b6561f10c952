package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/internal/config"
)

// partsOf makes the parts of a configuration, in which DIR is a directory of the test's.
func partsOf(t *testing.T, dir, text string) (*parts, config.Problems) {
	t.Helper()
	path := filepath.Join(dir, "f.toml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, problems := newParts(cfg, slog.New(slog.DiscardHandler), nil)
	if p != nil {
		t.Cleanup(p.close)
	}
	return p, problems
}

// reload reads again what the parts were read from, as the reloader does.
func (p *parts) reload(t *testing.T, what string) {
	t.Helper()
	for _, f := range p.files {
		if f.what == what {
			if changed, err := f.reload(); !changed || err != nil {
				t.Error(what, changed, err)
			}
			return
		}
	}
	t.Error(what, "are not reloaded")
}

const httpListener = "[[listen]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n"

func TestPartsHaveWhatHTTPCredentialsNeed(t *testing.T) {
	dir := t.TempDir()
	users, keys := filepath.Join(dir, "users"), filepath.Join(dir, "keys")
	authWant(t, 0, "", "", "secret\n", "add", "alice", "--file", users, cheap)
	one := addKey(t, "one", "--keys", keys)
	const files = "[auth]\nusers = \"DIR/users\"\nkeys = \"DIR/keys\"\n"
	for listeners, want := range map[string]string{ // service, keys, passwords
		httpListener:                                                "",
		httpListener + "auth = [\"BEARER\"]":                        "keys",
		httpListener + "auth = [\"BASIC\"]":                         "service passwords",
		httpListener + "auth = [\"BASIC\", \"BEARER\"]":             "service keys passwords",
		"[[listen]]\naddress = \"127.0.0.1:0\"\nauth = [\"PLAIN\"]": "service",
		"[[listen]]\naddress = \"127.0.0.1:0\"\n":                   "",
	} {
		p, problems := partsOf(t, dir, files+listeners)
		if problems != nil {
			t.Fatal(listeners, problems)
		}
		var got []string
		for name, have := range map[string]bool{"service": p.auth != nil, "keys": p.keys != nil, "passwords": p.passwords != nil} {
			if have != strings.Contains(want, name) {
				got = append(got, name)
			}
		}
		if got != nil {
			t.Errorf("%s: want %q, wrong are %v", listeners, want, got)
		}
	}

	p, _ := partsOf(t, dir, files+httpListener+"auth = [\"BASIC\", \"BEARER\"]")
	home := netip.MustParseAddr("127.0.0.1")
	check := func(password string) error {
		_, err := p.passwords.Check(context.Background(), "alice", password, home)
		return err
	}
	if err := check("secret"); err != nil {
		t.Error(err)
	}
	// A changed password counts at once, though the old one is remembered.
	authWant(t, 0, "", "", "other\n", "add", "alice", "--file", users, cheap)
	p.reload(t, "users")
	if err := check("other"); err != nil {
		t.Error(err)
	}
	if err := check("secret"); !errors.Is(err, auth.ErrAuthFailed) {
		t.Error(err)
	}
	two := addKey(t, "two", "--keys", keys)
	authWant(t, 0, "", "", "", "key", "revoke", one[3:11], "--keys", keys)
	p.reload(t, "keys")
	if _, err := p.keys.Check([]byte(two), time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := p.keys.Check([]byte(one), time.Now()); err == nil {
		t.Error("a revoked key is good")
	}
}

// Client certificates over HTTP are users, if there is any store of them, or stand for themselves.
func TestPartsTakeClientCertificatesOverHTTP(t *testing.T) {
	dir := t.TempDir()
	authWant(t, 0, "", "", "", "add", "alice", "--file", filepath.Join(dir, "users"), "--certificate-only")
	if err := os.WriteFile(filepath.Join(dir, "keys"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const behind = httpListener + "proxy_protocol_from = [\"127.0.0.1\"]\nauth = [\"EXTERNAL\"]\n[auth]\n"
	for text, bob := range map[string]error{
		behind + "users = \"DIR/users\"": auth.ErrAuthFailed,
		behind:                           nil,
		behind + "keys = \"DIR/keys\"":   nil, // keys are no users
	} {
		p, problems := partsOf(t, dir, text)
		if problems != nil {
			t.Fatal(problems)
		}
		for name, want := range map[string]error{"alice": nil, "bob": bob} {
			if _, err := p.passwords.CheckCertificate(context.Background(), name, netip.MustParseAddr("127.0.0.1")); !errors.Is(err, want) {
				t.Errorf("%s: %s: %v", text, name, err)
			}
		}
	}
}

// check tells what is wrong with the file of keys, at its key.
func TestCheckExplainsWhatIsWrongWithTheKeys(t *testing.T) {
	dir := t.TempDir()
	path, keys := filepath.Join(dir, "f.toml"), filepath.Join(dir, "keys")
	text := "admin.http = \"\"\nlimits.connections = 10\nhttp.connections = 10\nauth.keys = \"" + keys + "\"\n" + httpListener + "auth = [\"BEARER\"]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"check", "-c", path, "--state-dir", filepath.Join(dir, "state")}
	want(t, 78, "", ":4:13: auth.keys: "+keys+": no such file", args...)
	for _, c := range []struct {
		file       string
		mode       os.FileMode
		code       int
		out, wrong string
	}{
		{"# nobody yet\n", 0o600, 0, "ok\n", "warning: auth.keys: no key is in " + keys},
		{"# ours\nnonsense\n", 0o600, 78, "", ":4:13: auth.keys: " + keys + ":2: a line has an id"},
		{"# nobody yet\n", 0o644, 78, "", "has mode 0644"},
	} {
		if err := os.WriteFile(keys, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(keys, c.mode); err != nil {
			t.Fatal(err)
		}
		want(t, c.code, c.out, c.wrong, args...)
	}
	_, _, errs := cliRun(args...)
	if !strings.Contains(errs, "auth.keys = \""+keys+"\"\n"+strings.Repeat(" ", 16)+strings.Repeat("^", len(keys)+2)) {
		t.Error(errs)
	}
}
