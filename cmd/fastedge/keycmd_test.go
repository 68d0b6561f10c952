package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/auth"
)

// addKey makes a key and gives its text, which is all that stdout has.
func addKey(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := authRun("", append([]string{"key", "add"}, args...)...)
	text, ok := strings.CutSuffix(out, "\n")
	if code != 0 || !ok || strings.ContainsAny(text, " \n") || !strings.HasPrefix(text, "fe_") || !strings.Contains(errs, "it is shown this once") {
		t.Fatalf("%v: %d\nstdout %q\nstderr %q", args, code, out, errs)
	}
	if strings.Contains(errs, text) {
		t.Error("the key is on stderr too, which may be a log")
	}
	return text
}

func TestAuthKeyAddListRevoke(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	file := "--keys=" + path
	billing := addKey(t, "billing", file, "--sender-domain", "Example.org", "--sender-domain=*.example.net", "--sender-domain=example.org", "--rate=100", "--expires=90d")
	bare := addKey(t, "billing", file)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	keys, err := auth.OpenKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	k, err := keys.Check([]byte(billing), now)
	if err != nil || k.Name != "billing" || strings.Join(k.Senders, " ") != "example.org *.example.net" || k.Rate != 100 || k.Expires.Sub(k.Created) != 90*24*time.Hour {
		t.Errorf("%+v %v", k, err)
	}
	if _, err := keys.Check([]byte(billing), k.Expires); err != auth.ErrKeyExpired {
		t.Error(err)
	}
	other, err := keys.Check([]byte(bare), now)
	if err != nil || other.Rate != 0 || len(other.Senders) != 0 || !other.Expires.IsZero() {
		t.Errorf("%+v %v", other, err)
	}

	list := authWant(t, 0, "ID        NAME     CREATED", "", "", "key", "list", file)
	for _, want := range []string{k.ID + "  billing  ", "100     example.org *.example.net\n", other.ID + "  billing  ", "-                 -       any\n"} {
		if !strings.Contains(list, want) {
			t.Errorf("%q is not in\n%s", want, list)
		}
	}
	lines := strings.Split(authWant(t, 0, "", "", "", "key", "list", "--json", file), "\n")
	var got struct {
		ID, Name         string
		SenderDomains    []string `json:"sender_domains"`
		Rate             *int
		Created, Expires time.Time
		Expired          *bool
	}
	if len(lines) != 3 || json.Unmarshal([]byte(lines[0]), &got) != nil || got.ID != k.ID || got.Name != "billing" || len(got.SenderDomains) != 2 ||
		*got.Rate != 100 || !got.Expires.Equal(k.Expires) || !got.Created.Equal(k.Created) || *got.Expired {
		t.Errorf("%q", lines)
	}
	if !strings.Contains(lines[1], `"sender_domains":[]`) || strings.Contains(lines[1], `"expires"`) {
		t.Error(lines[1])
	}
	text, _ := os.ReadFile(path)
	for _, secret := range []string{billing[12:], bare[12:]} {
		for name, shown := range map[string]string{"list": list, "JSON": strings.Join(lines, ""), "file": string(text)} {
			if strings.Contains(shown, secret) {
				t.Errorf("a secret is in the %s", name)
			}
		}
	}

	authWant(t, 1, "", "nobody is not in "+path+"; nothing is changed", "", "key", "revoke", k.ID, "nobody", file)
	authWant(t, 0, k.ID, "", "", "key", "list", file) // all or none
	authWant(t, 0, "", "", "", "key", "revoke", k.ID, file)
	if out := authWant(t, 0, other.ID, "", "", "key", "list", file); strings.Contains(out, k.ID) {
		t.Error(out)
	}
	if changed, err := keys.Reload(); !changed || err != nil {
		t.Error(changed, err)
	}
	if _, err := keys.Check([]byte(billing), now); err != auth.ErrUnknownKey {
		t.Error(err)
	}
	// Somebody may give the whole key: it is not repeated.
	if _, _, errs := authRun("", "key", "revoke", bare, file); strings.Contains(errs, bare[:20]) || !strings.Contains(errs, "is not in") {
		t.Error(errs)
	}
}

func TestAuthKeyListMarksExpiredKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	k, _ := auth.NewKey("old")
	k.Expires = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := auth.UpdateKeys(path, true, func(f *auth.KeysFile) error { return f.Add(k) }); err != nil {
		t.Fatal(err)
	}
	authWant(t, 0, "2020-01-02 03:04 (expired)", "", "", "key", "list", "--keys", path)
	authWant(t, 0, `"expires":"2020-01-02T03:04:05Z","expired":true`, "", "", "key", "list", "--json", "--keys", path)
}

func TestAuthKeyRefusesWhatItCannotStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	file := "--keys=" + path
	for want, args := range map[string][]string{
		"the name has a blank or a #":              {"two words"},
		"the name is empty":                        {""},
		"--rate must be 1 to":                      {"a", "--rate=-1"},
		"--rate must be 1 to 1000000000":           {"a", "--rate=1000000001"},
		"--sender-domain: \"a@b\" is not a domain": {"a", "--sender-domain=a@b"},
		"--sender-domain: \"a,b\" is not a domain": {"a", "--sender-domain=a,b"},
		"--expires: \"90\" has no unit":            {"a", "--expires=90"},
		"--expires: a key must be good":            {"a", "--expires=0"},
		"more than 100 domains":                    append([]string{"a"}, strings.Split(strings.TrimSpace(strings.Repeat("--sender-domain=a.example ", 101)), " ")...),
		"expected \"<name>\"":                      {},
		"unexpected argument b":                    {"a", "b"},
	} {
		authWant(t, 2, "", want, "", append(append([]string{"key", "add"}, args...), file)...)
	}
	authWant(t, 2, "", "auth.keys", "", "key", "add", "a")
	authWant(t, 1, "", "no such file", "", "key", "list", file)
	authWant(t, 1, "", "no such file", "", "key", "revoke", "12345678", file)
	if _, err := os.Stat(path); err == nil {
		t.Error("a refused add leaves a file")
	}
	if err := os.WriteFile(path, []byte("# ours\nsecret-line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	authWant(t, 1, "", "keys:2: ", "", "key", "add", "a", file)
	authWant(t, 1, "", "keys:2: ", "", "key", "list", file)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	authWant(t, 1, "", "has mode 0644", "", "key", "add", "a", file)
	authWant(t, 1, "", "chmod 600", "", "key", "list", file)
}

func TestAuthKeysFileOfTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	keys, conf := filepath.Join(dir, "keys"), filepath.Join(dir, "fastedge.toml")
	if err := os.WriteFile(conf, []byte(fmt.Sprintf("[auth]\nkeys = %q\n", keys)), 0o600); err != nil {
		t.Fatal(err)
	}
	text := addKey(t, "billing", "-c", conf)
	if k, err := auth.OpenKeys(keys); err != nil || k.Len() != 1 || k.All()[0].ID != text[3:11] {
		t.Error(err)
	}
	authWant(t, 0, text[3:11], "", "", "key", "list", "-c", conf)
}

func TestAuthKeyWritersWaitForEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if code, _, errs := authRun("", "key", "add", "a", "--keys", path); code != 0 {
				t.Error(errs)
			}
		})
	}
	wg.Wait()
	if k, err := auth.OpenKeys(path); err != nil || k.Len() != 20 {
		t.Errorf("%v: some of 20 keys are lost", err)
	}
}
