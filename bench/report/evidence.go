package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The classes of servers, by what has become of a message when they say 250, weakest first.
const (
	classDiscard  = "discard"  // thrown away
	classAccepted = "accepted" // written to a file that was not synced
	classDurable  = "durable"  // on disk
)

var classes = []string{classDiscard, classAccepted, classDurable}

// evidence is what system calls say about a server's class.
type evidence struct {
	Class string   `json:"class"`
	Lines []string `json:"lines"` // the calls that show it for one message, shortened, in the order in which they returned
}

// judge reads what strace -f -yy wrote while one client sent a message for each mark, one after the other, to a server on
// port, and returns the weakest class that any of them shows. It sees writes by system call only: a server that
// wrote through a mapping would be taken for one that discards.
func judge(trace string, port int, marks []string) (evidence, error) {
	calls := parseTrace(trace)
	worst := evidence{Class: classDurable}
	for i, mark := range marks {
		e, err := judgeMark(calls, port, i, mark)
		if err != nil {
			return e, err
		}
		if i == 0 || slices.Index(classes, e.Class) < slices.Index(classes, worst.Class) {
			worst = e
		}
	}
	return worst, nil
}

// judgeMark looks at message number n, which has mark in its body.
func judgeMark(calls []call, port, n int, mark string) (evidence, error) {
	reply, ok := acknowledgement(calls, port, n)
	if !ok {
		return evidence{}, fmt.Errorf("the trace has no 250 to message %d", n+1)
	}
	// Names of the file that holds the message, and the last write of it. A file that is renamed or linked gets another name.
	names := make(map[string]bool)
	alwaysSynced := make(map[string]bool)
	var write, sync *call
	for i := range calls {
		c := &calls[i]
		switch {
		case c.end > reply.begin || c.failed:
			// Too late, or without effect.
		case c.opens() && strings.Contains(c.args, "SYNC"): // O_SYNC, O_DSYNC
			alwaysSynced[c.result] = true
		case c.writes() && strings.HasPrefix(c.file, "/") && !strings.HasPrefix(c.file, "/dev/") && strings.Contains(c.args, mark):
			names[c.file] = true
			write, sync = c, nil
			if alwaysSynced[c.file] {
				sync = c
			}
		case c.renames():
			if m := quoted.FindAllStringSubmatch(c.args, 2); len(m) == 2 && named(names, m[0][1]) {
				names[m[1][1]] = true
			}
		case c.syncs() && write != nil && c.begin > write.end && (c.name == "sync" || c.name == "syncfs" || named(names, c.file)):
			sync = c
		}
	}
	e := evidence{Class: classDiscard, Lines: []string{reply.short(mark)}}
	if write != nil {
		e.Class = classAccepted
		e.Lines = slices.Insert(e.Lines, 0, write.short(mark))
	}
	if sync != nil {
		e.Class = classDurable
		if sync != write {
			e.Lines = slices.Insert(e.Lines, 1, sync.short(mark))
		}
	}
	return e, nil
}

// named says whether one of names is path. Paths in a trace may be relative, or as seen from a mount namespace.
func named(names map[string]bool, path string) bool {
	for n := range names {
		if n == path || path != "" && (strings.HasSuffix(n, "/"+path) || strings.HasSuffix(path, "/"+n)) {
			return true
		}
	}
	return false
}

// acknowledgement finds the first write of a 250 to the client after the 354 number n, counted from 0.
func acknowledgement(calls []call, port, n int) (call, bool) {
	client := fmt.Sprintf("TCP:[127.0.0.1:%d->", port)
	seen := 0
	for _, c := range calls {
		if !c.writes() || !strings.HasPrefix(c.file, client) {
			continue
		}
		switch text := quoted.FindStringSubmatch(c.args); {
		case text == nil:
		case strings.HasPrefix(text[1], "354"):
			seen++
		case seen == n+1 && strings.HasPrefix(text[1], "250"):
			return c, true
		}
	}
	return call{}, false
}

// A call is one system call of a trace. begin and end are the numbers of the lines on which it began and returned.
type call struct {
	begin, end int
	pid, name  string
	args       string // all of them, as strace prints them
	file       string // what the first argument's descriptor stands for
	result     string // with -yy, what a descriptor that is returned stands for
	failed     bool
}

func (c *call) writes() bool {
	return slices.Contains([]string{"write", "writev", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg"}, c.name)
}
func (c *call) syncs() bool {
	return slices.Contains([]string{"fsync", "fdatasync", "sync", "syncfs"}, c.name)
}
func (c *call) opens() bool { return slices.Contains([]string{"open", "openat", "creat"}, c.name) }
func (c *call) renames() bool {
	return slices.Contains([]string{"rename", "renameat", "renameat2", "link", "linkat"}, c.name)
}

// short shows a call without most of the message.
func (c *call) short(mark string) string {
	file := c.file
	if strings.HasPrefix(file, "/") {
		file = file[strings.LastIndexByte(file, '/')+1:]
		if len(file) > 20 {
			file = file[:12] + "…" + file[len(file)-5:] // a queue id; its ends tell it from others
		}
	} else if strings.HasPrefix(file, "TCP:") {
		file = "client"
	}
	switch text := quoted.FindStringSubmatch(c.args); {
	case strings.Contains(c.args, mark):
		return fmt.Sprintf("%s(%s, … %s …)", c.name, file, "message")
	case c.writes() && text != nil:
		return fmt.Sprintf("%s(%s, \"%.3s …\")", c.name, file, text[1])
	default:
		return fmt.Sprintf("%s(%s) = 0", c.name, file)
	}
}

var (
	quoted     = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
	traceLine  = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)
	resumed    = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)$`)
	descriptor = regexp.MustCompile(`^-?\w+<((?:TCP:\[[^\]]*\]|[^>])*)>`)
	returned   = regexp.MustCompile(`\) += (-?\d+)(?:<([^>]*)>)?[^"]*$`)
)

func parseTrace(trace string) []call {
	var calls []call
	open := make(map[string]int) // by process, the call that has not returned
	number := 0
	for line := range strings.Lines(trace) {
		line = strings.TrimRight(line, "\n")
		number++
		if m := resumed.FindStringSubmatch(line); m != nil {
			if i, ok := open[m[1]]; ok {
				delete(open, m[1])
				calls[i].finish(number, m[3])
			}
			continue
		}
		m := traceLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		c := call{begin: number, end: 1 << 60, pid: m[1], name: m[2]}
		args, unfinished := strings.CutSuffix(m[3], " <unfinished ...>")
		if d := descriptor.FindStringSubmatch(args); d != nil {
			c.file = strings.TrimSuffix(d[1], " (deleted)")
		}
		if unfinished {
			c.args = args
			open[c.pid] = len(calls)
		} else {
			c.finish(number, args)
		}
		calls = append(calls, c)
	}
	return calls
}

func (c *call) finish(line int, rest string) {
	c.end = line
	c.args += rest
	if m := returned.FindStringSubmatch(rest); m != nil {
		n, _ := strconv.Atoi(m[1])
		c.failed = n < 0
		c.result = m[2]
	}
}
