//go:build interop

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/internal/nettest"
)

// The commands and the files of queue/jetstream/GUIDE.md as they are printed, but for ports and directories.
func TestTheCommandsOfTheJetStreamGuide(t *testing.T) {
	guide, err := os.ReadFile("../../queue/jetstream/GUIDE.md")
	if err != nil {
		t.Fatal(err)
	}
	dir, bin := t.TempDir(), t.TempDir()
	at := map[string]string{}
	text := strings.ReplaceAll(string(guide), "/tmp/guide", dir)
	for _, port := range []string{"4222", "2525", "2526", "2527"} {
		at[port] = nettest.Address(t)
		text = strings.ReplaceAll(text, "127.0.0.1:"+port, at[port])
	}
	blocks := func(kind string) (all []string) {
		for _, m := range regexp.MustCompile("(?s)```"+kind+"\n(.*?)```").FindAllStringSubmatch(text, -1) {
			all = append(all, m[1])
		}
		return all
	}
	shell, files := blocks("sh"), blocks("toml")
	if len(shell) < 2 || len(files) != 2 {
		t.Fatalf("the guide has %d blocks of commands and %d of files", len(shell), len(files))
	}
	for i, name := range []string{"edge.toml", "relay.toml"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(files[i]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, natsPort, _ := net.SplitHostPort(at["4222"])
	for name, script := range map[string]string{
		"fastedge":    fmt.Sprintf("FASTEDGETEST_BE_FASTEDGE=1 exec %q \"$@\"", os.Args[0]),
		"nats-server": fmt.Sprintf("exec timeout --foreground -s KILL %s %q -p %s \"$@\"", natsLimit, natsServer(t), natsPort),
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	logs := &logTail{}
	start := func(line string) *exec.Cmd {
		t.Helper()
		cmd := exec.Command("sh", "-c", line)
		cmd.Dir = dir
		// The admin address is that of another server on a busy machine, and how much room its disk has is not the guide's.
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "FASTEDGE_ADMIN_HTTP=")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return cmd
	}
	run := func(line string) string {
		t.Helper()
		out, err := start(line).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s\n%s", line, err, out, logs)
		}
		return string(out)
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain for %s\n%s", what, logs)
			}
		}
	}
	ports := []string{"4222", "2525", "2526"}
	for line := range strings.Lines(shell[0]) {
		line, background := strings.CutSuffix(strings.TrimSpace(line), " &")
		if !background {
			t.Logf("%s\n%s", line, run(line))
			continue
		}
		cmd := start(line)
		cmd.Stdout, cmd.Stderr = logs, logs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() })
		port := ports[0]
		ports = ports[1:]
		wait(line, func() bool {
			c, err := net.Dial("tcp", at[port])
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}

	// Mail that is refused for good. The sink is gone with the load.
	_, kind := refusingHopAt(t, at["2527"])
	c, err := hello(at["2525"])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.talk("MAIL FROM:<a@example.org>\r\nRCPT TO:<gone@example.net>\r\nDATA\r\n", "250", "250", "354"); err != nil {
		t.Fatal(err)
	}
	reply, err := c.talk("Subject: x\r\n\r\nx\r\n.\r\n", "250 2.6.0")
	if err != nil {
		t.Fatal(err)
	}
	id := queuedAs.FindStringSubmatch(reply)[1]
	commands := strings.Split(strings.TrimSpace(shell[1]), "\n")
	if len(commands) != 2 || !strings.Contains(commands[0], "--state dead") || !strings.HasSuffix(commands[1], " ID") {
		t.Fatalf("%q", commands)
	}
	wait("a dead message", func() bool {
		out := run(commands[0])
		return strings.Contains(out, id) && strings.Contains(out, "550 5.1.1")
	})
	kind.Store(true)
	run(strings.TrimSuffix(commands[1], "ID") + id)
	wait("no dead message", func() bool { return !bytes.Contains([]byte(run(commands[0])), []byte(id)) })
}
