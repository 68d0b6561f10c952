package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Each thread of a server has the slack, the runtime's monitor among them; the process keeps its number and its name.
func TestServeCoarsensItsTimers(t *testing.T) {
	p := serve(t, t.TempDir(), minimalConfig)
	pid := p.cmd.Process.Pid
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Skip(err)
	}
	if len(tasks) < 2 {
		t.Errorf("%d threads", len(tasks))
	}
	for _, task := range tasks {
		text, err := os.ReadFile("/proc/" + task.Name() + "/timerslack_ns")
		if err != nil {
			continue // ended
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil || time.Duration(ns) != timerSlack {
			t.Errorf("thread %s has a timer slack of %s ns", task.Name(), text)
		}
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !strings.Contains(string(environ), "_FASTEDGE_TIMER_SLACK_SET") {
		t.Errorf("the program has not executed itself: %v", err)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if want := strings.TrimSpace(string(comm)); err != nil || want == "exe" || want == "" {
		t.Errorf("the process is called %q, %v", comm, err)
	}
}
