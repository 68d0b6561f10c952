package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	nats "github.com/nats-io/nats-server/v2/server"
)

// The tests of this file run fastedge over a nats-server within the test's process.

// onJetStream is a fastedge with the engine jetstream; more goes behind [queue.jetstream].
func onJetStream(url, more string) string {
	return strings.Replace(minimalConfig, "[queue]\n", "[queue]\nengine = \"jetstream\"\n", 1) + fmt.Sprintf("[queue.jetstream]\nurl = %q\n%s\n", url, more)
}

// oneShot runs a verb to its end and gives its exit code and all that it printed.
func oneShot(t *testing.T, config string, args ...string) (int, string) {
	t.Helper()
	cmd := command(t, t.TempDir(), config, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !ended.Stop() {
		t.Fatalf("%v does not end:\n%s", args, &out)
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// A server without JetStream may get it: check warns, and serve starts and refuses mail until then.
func TestCheckAndServeThinkAlikeOfAServerWithoutJetStream(t *testing.T) {
	config := onJetStream(embeddedNATS(t, func(o *nats.Options) { o.JetStream = false }).ClientURL(), `timeout = "1s"`)
	if code, out := oneShot(t, config, "check"); code != exitOK || !strings.Contains(out, "not verified") {
		t.Errorf("check: %d\n%s", code, out)
	}
	p := serve(t, t.TempDir(), config)
	if st := p.stat(t); st.Alarm == "" {
		t.Errorf("no alarm: %+v", st)
	}
}
