package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/internal/nettest"
)

// The configurations that the README shows are good ones, but for the files they name.
func TestTheReadmesConfigurationsAreGood(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(blocks) < 5 {
		t.Fatalf("%d configurations in the README", len(blocks))
	}
	dir := t.TempDir()
	p := newAuthority(t).issue("readme", false, "mx1.example.net")
	for name, text := range map[string]string{"users": "", "keys": "", "recipients": "alice@example.net\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	places := strings.NewReplacer("/etc/fastedge/chain.pem", p.cert, "/etc/fastedge/key.pem", p.key,
		"/etc/fastedge/users", filepath.Join(dir, "users"), "/etc/fastedge/keys", filepath.Join(dir, "keys"), "/etc/fastedge/recipients", filepath.Join(dir, "recipients"),
		"/var/lib/fastedge", dir)
	// Ports below 1024 may not be ours, and others may be in use: the machine is not what is tested.
	ports := regexp.MustCompile(`address = ":\d+"`)
	for i, block := range blocks {
		text := places.Replace(block[1])
		text = ports.ReplaceAllStringFunc(text, func(string) string { return fmt.Sprintf(`address = ":%d"`, nettest.Port(t)) })
		if !strings.Contains(text, "hostname") {
			text = "hostname = \"mx1.example.net\"\nstate_dir = \"" + dir + "\"\n" + text
		}
		file := filepath.Join(dir, fmt.Sprintf("%d.toml", i))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := cliRun("check", "-c", file); code != exitOK {
			t.Errorf("configuration %d of the README: exit code %d\n%s\n%s", i+1, code, stderr, text)
		}
	}
}
