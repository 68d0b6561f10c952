//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// printQuiet prints the CPU seconds that the process tree below PID has used, once it has come to rest.
func printQuiet(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: report quiet PID")
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	cpu, err := quietCPU(pid, 15*time.Second)
	if err != nil {
		return err
	}
	fmt.Printf("%.9f\n", cpu.Seconds())
	return nil
}

// quietCPU waits until a process tree uses less than a hundredth of a core, then returns treeCPU. Work that a server
// does ahead (fastedge zeroes segments before it needs them) or behind must neither be charged to a load that did not
// cause it nor be forgotten. After limit it goes on regardless and says so.
func quietCPU(root int, limit time.Duration) (time.Duration, error) {
	const look = 300 * time.Millisecond
	last, err := treeCPU(root)
	for end := time.Now().Add(limit); err == nil; {
		time.Sleep(look)
		var now time.Duration
		now, err = treeCPU(root)
		if now-last < look/100 {
			return now, err
		}
		last = now
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "report: the server is still busy after %v\n", limit)
			break
		}
	}
	return last, err
}

// treeCPU returns the user and system time that a process, its living descendants and all descendants they have
// waited for have used. Postfix spreads a message over several processes, some of them short-lived: only the whole
// tree is a fair figure. Interrupts count for whom they interrupt; work that the kernel does in threads of its own
// (writing pages back) counts for nobody.
func treeCPU(root int) (time.Duration, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	type process struct {
		parent int
		cpu    time.Duration
	}
	procs := make(map[int]process)
	for _, path := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		text, err := os.ReadFile(path)
		if err != nil {
			continue // gone meanwhile; its parent has its time
		}
		parent, own, reaped, err := parseStat(string(text))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		// utime and stime have a grain of 10 ms, too coarse for cheap servers; the scheduler's own sum has one of
		// nanoseconds but forgets threads that ended. Take the sum unless that has visibly happened.
		if exact := scheduled(pid); exact > own-2*tick {
			own = exact
		}
		procs[pid] = process{parent, own + reaped}
	}
	if _, ok := procs[root]; !ok {
		return 0, fmt.Errorf("no process %d", root)
	}
	var total time.Duration
	for pid, p := range procs {
		for up := pid; up > 1; up = procs[up].parent {
			if up == root {
				total += p.cpu
				break
			}
		}
	}
	return total, nil
}

const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture Go runs on

// parseStat reads one /proc/PID/stat, proc(5): the parent, utime+stime and cutime+cstime.
func parseStat(text string) (parent int, own, reaped time.Duration, err error) {
	// The name in brackets may hold anything, brackets and spaces included; the fields that matter follow it.
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) < 15 {
		return 0, 0, 0, fmt.Errorf("only %d fields", len(f))
	}
	num := func(field int) int { // field as numbered in proc(5)
		n, e := strconv.Atoi(f[field-3])
		if e != nil {
			err = e
		}
		return n
	}
	parent = num(4)
	own = time.Duration(num(14)+num(15)) * tick
	reaped = time.Duration(num(16)+num(17)) * tick
	return parent, own, reaped, err
}

// scheduled sums the run times of all living threads of a process, or returns 0 where the kernel does not tell.
func scheduled(pid int) (sum time.Duration) {
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		ns, _, _ := strings.Cut(string(text), " ")
		n, _ := strconv.ParseInt(ns, 10, 64)
		sum += time.Duration(n)
	}
	return sum
}
