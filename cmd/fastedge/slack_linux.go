package main

import (
	"os"
	"runtime"
	"syscall"
	"time"
)

// timerSlack is how late the kernel may deliver a timer of the server. Nothing in it is finer than the writer's linger of a millisecond.
//
// It is for the Go runtime's monitor thread: that sleeps for 20 µs at a time as long as system calls are being entered, which a server that
// syncs a hundred times a second never ends, and each of these sleeps takes the processor from a loop twice. With the kernel's default
// of 50 µs they were 10 % of the server's CPU at full load; ARCHITECTURE.md has the figures.
const timerSlack = 500 * time.Microsecond

// coarsenTimers gives the process its timer slack. The monitor thread exists before main runs, another thread's slack takes
// CAP_SYS_NICE to set, and a thread has it from the one that created it: so the program sets it on this thread and executes itself
// again, with the same process id. Where systemd has done it (TimerSlackNSec=), or anything fails, it just goes on.
func coarsenTimers(args []string) {
	const again = "_FASTEDGE_TIMER_SLACK_SET" // never twice, whatever the kernel says
	const prSetTimerSlack, prGetTimerSlack = 29, 30
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if slack, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prGetTimerSlack, 0, 0); errno != 0 || time.Duration(slack) >= timerSlack || os.Getenv(again) != "" {
		_ = os.Unsetenv(again)
		return
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetTimerSlack, uintptr(timerSlack), 0); errno != 0 {
		return
	}
	if self, err := os.Executable(); err == nil {
		_ = syscall.Exec(self, args, append(os.Environ(), again+"=1"))
	}
}
