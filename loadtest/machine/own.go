package machine

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what this process has used since its start.
type Usage struct {
	User, System    time.Duration
	RSS             int64 // bytes now
	PeakRSS         int64 // bytes, the most so far
	ContextSwitches int64 // voluntary and not
}

// CPU is user and system time together.
func (u Usage) CPU() time.Duration { return u.User + u.System }

// Self returns what this process has used, all its threads together.
func Self() Usage {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return Usage{}
	}
	u := Usage{
		User:            time.Duration(r.Utime.Nano()),
		System:          time.Duration(r.Stime.Nano()),
		PeakRSS:         int64(r.Maxrss) << 10, // getrusage(2): in KiB
		ContextSwitches: int64(r.Nvcsw) + int64(r.Nivcsw),
	}
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(text)); len(f) > 1 {
			pages, _ := strconv.ParseInt(f[1], 10, 64)
			u.RSS = pages * int64(os.Getpagesize())
		}
	}
	return u
}

// Affinity returns the cores that a process may run on, in ascending order; 0 is this process. It is nil when it cannot be told. Threads
// may differ from it; the main thread speaks for all.
func Affinity(pid int) []int {
	who := "self"
	if pid != 0 {
		who = strconv.Itoa(pid)
	}
	return parseCores(fileField("/proc/"+who+"/status", "Cpus_allowed_list"))
}

// maxCores bounds what parseCores believes.
const maxCores = 1 << 16

// parseCores reads a list such as 0-3,8; cpuset(7). A list that is not understood gives nil.
func parseCores(list string) (cores []int) {
	if list == "" {
		return nil
	}
	for part := range strings.SplitSeq(list, ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		a, err1 := strconv.Atoi(low)
		b, err2 := strconv.Atoi(high)
		if err1 != nil || err2 != nil || a < 0 || b < a || b >= maxCores {
			return nil
		}
		for c := a; c <= b; c++ {
			cores = append(cores, c)
		}
	}
	return cores
}

// SharesCores says whether a process may run on a core that this process may use too, which makes the two slow each other. It is true
// when that cannot be told.
func SharesCores(pid int) bool {
	own, theirs := Affinity(0), Affinity(pid)
	if own == nil || theirs == nil {
		return true
	}
	return slices.ContainsFunc(own, func(c int) bool { return slices.Contains(theirs, c) })
}

func pidError(pid int, err error) error { return fmt.Errorf("machine: process %d: %w", pid, err) }
