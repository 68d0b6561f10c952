package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/internal/openapicheck"
)

// defaultListeners is the configuration of a server that has none, but for the ports, which are free ones here.
func defaultListeners(t *testing.T) string {
	t.Helper()
	code, text, stderr := cliRun("config", "show")
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	listeners := regexp.MustCompile(`(?ms)^\[\[listen\]\]$.*?^$`).FindAllString(text, -1)
	if len(listeners) != 2 || !strings.Contains(listeners[1], `"127.0.0.1:8025"`) {
		t.Fatalf("the default listeners are %q", listeners)
	}
	text = regexp.MustCompile(`"127\.0\.0\.1:\d+"`).ReplaceAllString(strings.Join(listeners, ""), `"127.0.0.1:0"`)
	return text + "[admin]\nhttp = \"\"\n[queue]\nmin_free = \"1MiB\"\n"
}

// The lines of "Submit by HTTP" work as they are printed on a server without a configuration, but for the port.
func TestTheReadmesHTTPLinesWork(t *testing.T) {
	for _, program := range []string{"bash", "curl", "gzip", "base64"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)### Submit by HTTP\n.*?```sh\n(.*?)```").FindSubmatch(readme)
	if block == nil {
		t.Fatal("the README has no such lines")
	}
	p := serve(t, t.TempDir(), defaultListeners(t))
	work := t.TempDir()
	run := func() string {
		t.Helper()
		cmd := exec.Command("bash", "-e", "-o", "pipefail", "-c", strings.ReplaceAll(string(block[1]), "127.0.0.1:8025", p.addr[1]))
		cmd.Dir = work
		cmd.Env = append(os.Environ(), "no_proxy=*")
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v\n%s\n%s", err, &out, &stderr)
		}
		return out.String()
	}
	statuses := func(out string) (all []string) {
		for _, m := range regexp.MustCompile(`HTTP/1\.1 (\d+) `).FindAllStringSubmatch(out, -1) {
			if m[1] != "100" {
				all = append(all, m[1])
			}
		}
		return all
	}
	out := run()
	if got := fmt.Sprint(statuses(out)); got != "[200 202 200 200]" || strings.Count(out, `"status":202`) != 3 ||
		!strings.Contains(out, `X-Smtp-Reply: 250; message="2.6.0 Message accepted for delivery"`) || strings.Contains(out, "replayed") {
		t.Errorf("%s\n%s", got, out)
	}
	again := run()
	if strings.Count(again, `"replayed":true`) != 3 || !strings.Contains(again, "Idempotency-Replayed: true") {
		t.Errorf("the second time:\n%s", again)
	}
	api, err := os.ReadFile(work + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openapicheck.Load(api); err != nil {
		t.Error(err)
	}
	p.term()
	message, err := os.ReadFile(work + "/message.eml")
	if err != nil {
		t.Fatal(err)
	}
	there, whole := stored(t, p.dir), 0
	for _, data := range there {
		if bytes.Equal(data, message) {
			whole++
		}
	}
	if len(there) != 6 || whole != 5 { // by the plain protocol twice, the batch's three, and the one in JSON
		t.Errorf("%d messages, %d of them as they were sent", len(there), whole)
	}
}
