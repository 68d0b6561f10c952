package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// MaxProcesses bounds a Tree: how many living processes it watches. Those that come beyond it are left out, and samples say so.
const MaxProcesses = 4096

// ErrGone is returned once no process of a tree is left.
var ErrGone = errors.New("machine: no process left")

// ErrBusy is returned by WaitQuiet when its limit is over.
var ErrBusy = errors.New("machine: still busy")

// Tree is a process, its descendants, and their descendants. A descendant stays in the tree when its parent ends and it gets another one.
// One whose parent came and went between two samples is found by its session, if a process of the tree began that session; a daemon that
// takes more care than that to be left alone is missed.
//
// What ended processes have used is kept. The kernel adds the use of a child to its parent's record when the parent waits for it, and
// forgets it when nobody does (orphans, and children of those who ignore SIGCHLD); a Tree tells the two apart, so that nothing counts
// twice. Where it cannot be told, the smaller figure is taken: of a process that nobody waits for, what it used after the last sample.
//
// All methods may be called from several goroutines.
type Tree struct {
	mu    sync.Mutex
	root  int
	proc  string                                      // "/proc", but for tests
	clock func(pid int) (used time.Duration, ok bool) // runTime, but for tests
	lists bool                                        // the kernel has lists of children

	r        reader
	known    map[int]*process // members, by pid: living, or ended and not yet waited for
	sessions map[int]bool     // that members began

	strangers map[int]bool // pids that were not of the tree
	pending   []*ended
	lost      usage // of ended processes for whom no living one's record answers
	last      Sample
	scans     int
}

// usage is what adds up.
type usage struct {
	cpu      cpu
	switches int64
	writes   int64
}

// process is a member.
type process struct {
	stat                      // as last read
	read        int           // when in this scan, from 1; 0: not yet
	up          *process      // the parent at the end of the last scan, if it is a member
	ran         time.Duration // its clock when it was measured,
	measured    int64         // and its reapedFaults
	used        cpu           // own, finer than stat
	firstReaped cpu           // stat.reaped when it became a member
	waited      cpu           // what we had counted for those members that it has waited for since: finer than stat.reaped
	switches    int64
	byThread    map[int]int64 // switches, once there were several threads
	writes      int64         // of children it has waited for, too: so the kernel counts

	// What it got from children it waited for since the last sample, not yet attributed to one of them.
	freshCPU    time.Duration
	freshFaults int64
}

// ended is a member that is gone, until it is known whether anybody has waited for it.
type ended struct {
	usage
	faults  int64
	parents []*process // who may have waited: the parent or, if that ended too, its nearest ancestors
	orphan  bool       // that one did
	looked  bool       // once already
}

// Sample is what a tree uses. User, System, ContextSwitches and WriteBytes count since the start of each process and never fall: take
// differences.
type Sample struct {
	User, System    time.Duration
	RSS             int64 // bytes now: as the kernel counts in passing, some pages off for each process; shared pages count for each. See Memory
	ContextSwitches int64 // voluntary and not, of the living and of what was seen of the ended
	WriteBytes      int64 // sent towards a disk, or 0 if we may not know (processes of another user)
	Processes       int   // now
	Truncated       bool  // there are more than MaxProcesses
	Gone            bool  // the process the tree began with has ended; others may live
}

// CPU is user and system time together.
func (s Sample) CPU() time.Duration { return s.User + s.System }

// Watch begins to watch a process and all its descendants.
func Watch(pid int) (*Tree, error) { return watch(pid, "/proc", runTime) }

func watch(pid int, proc string, clock func(int) (time.Duration, bool)) (*Tree, error) {
	t := &Tree{root: pid, proc: proc, clock: clock, lists: hasLists(proc, pid), known: make(map[int]*process), sessions: make(map[int]bool)}
	s, err := t.r.stat(proc, pid)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESRCH) || err == nil && s.dead() {
		err = os.ErrProcessDone
	}
	if err != nil {
		return nil, pidError(pid, err)
	}
	t.known[pid] = &process{stat: s, firstReaped: s.reaped}
	if _, err = t.Sample(); err != nil {
		return nil, pidError(pid, err)
	}
	return t, nil
}

// dead says that a process has ended, though its parent has not waited for it yet. The first thread of a living process may have ended:
// it is shown as a zombie, with the number of those that live.
func (s *stat) dead() bool { return (s.state == 'Z' || s.state == 'X') && s.threads <= 1 }

// Sample takes a sample. It reads a file for each process of the tree and two more for each that has run since the last sample, and now
// and then a file for each other process of the machine; BenchmarkSample. err is ErrGone when no process is left; the sample then holds
// what all of them have used.
func (t *Tree) Sample() (Sample, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sample()
}

func (t *Tree) sample() (Sample, error) {
	truncated := t.scan()
	t.bury()
	s := Sample{Gone: true, Truncated: truncated}
	sum := t.lost
	for _, e := range t.pending {
		sum.add(e.usage)
	}
	for _, p := range t.known {
		t.measure(p)
		sum.add(usage{p.cpu(), p.switches, p.writes})
		if p.dead() {
			continue
		}
		s.Processes++
		s.RSS += p.rssPages * int64(os.Getpagesize())
		s.Gone = s.Gone && p.pid != t.root
	}
	s.Gone = s.Gone || t.last.Gone
	// What is finer than the kernel's record of a child falls back to that, by less than two ticks, when the child ends.
	all := max(sum.cpu.total(), t.last.CPU())
	s.System = max(min(sum.cpu.system, all-t.last.User), t.last.System)
	s.User = all - s.System
	s.ContextSwitches = max(sum.switches, t.last.ContextSwitches)
	s.WriteBytes = max(sum.writes, t.last.WriteBytes)
	t.last = s
	if s.Processes == 0 {
		return s, ErrGone
	}
	return s, nil
}

func (u *usage) add(v usage) {
	u.cpu = u.cpu.plus(v.cpu)
	u.switches += v.switches
	u.writes += v.writes
}

// cpu is what a process and those it has waited for have used.
func (p *process) cpu() cpu {
	children := p.reaped
	if fine := p.firstReaped.plus(p.waited); fine.total() > children.total() {
		children = fine
	}
	return p.used.plus(children)
}

// measure reads what stat does not tell, or not well enough. A process whose clock stands has not run nor waited for a child: it is left
// alone.
func (t *Tree) measure(p *process) {
	ran, ok := t.clock(p.pid)
	if ok && ran == p.ran && p.used != (cpu{}) && p.reapedFaults == p.measured {
		return
	}
	p.measured = p.reapedFaults
	fine := p.own
	if ok {
		p.ran = ran
		if sum := p.own.total(); sum == 0 {
			fine = cpu{ran / 2, ran - ran/2}
		} else {
			fine.system = time.Duration(float64(ran) * (float64(p.own.system) / float64(sum)))
			fine.user = ran - fine.system
		}
	}
	if fine.total() > p.used.total() {
		p.used = fine
	}
	dir := t.proc + "/" + strconv.Itoa(p.pid)
	t.countSwitches(p, dir)
	// When it has just ended, its parent may have its write bytes already, so what cannot be read counts for nothing.
	p.writes = 0
	if text, err := t.r.read(dir + "/io"); err == nil {
		p.writes = lineValue(text, "write_bytes:")
	}
}

func (t *Tree) countSwitches(p *process, dir string) {
	if p.threads <= 1 && p.byThread == nil {
		if n, err := t.r.switches(dir); err == nil {
			p.switches = max(p.switches, n)
		}
		return
	}
	names, err := readNames(dir + "/task")
	if err != nil {
		return
	}
	if p.byThread == nil {
		p.byThread, p.switches = make(map[int]int64, len(names)), 0
	}
	now := make(map[int]int64, len(names))
	for _, name := range names {
		tid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		n, err := t.r.switches(dir + "/task/" + name)
		if err != nil {
			continue
		}
		if before := p.byThread[tid]; n >= before {
			p.switches += n - before
		} else {
			p.switches += n // another thread with an old number
		}
		now[tid] = n
	}
	p.byThread = now
}

// Memory returns the memory of the tree now: resident set sizes added up, and proportional ones, in which each page that several share
// counts once. The kernel walks page tables for it, some milliseconds for a large process, and answers only for processes of our own user.
func (t *Tree) Memory() (rss, pss int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for pid := range t.known {
		r, p, e := t.r.memory(t.proc, pid)
		if e != nil {
			if errors.Is(e, syscall.EACCES) || errors.Is(e, syscall.EPERM) {
				err = pidError(pid, e)
			}
			continue // ended
		}
		rss, pss = rss+r, pss+p
	}
	if err == nil && rss == 0 {
		err = ErrGone
	}
	return rss, pss, err
}

// WaitQuiet returns when the tree has used less than a hundredth of a core over 200 ms, so that what a server does ahead or behind is
// neither charged to a load that did not cause it nor forgotten. After limit it returns ErrBusy, and ErrGone when no process is left.
func (t *Tree) WaitQuiet(ctx context.Context, limit time.Duration) error {
	const look = 200 * time.Millisecond
	begin := time.Now()
	before, err := t.Sample()
	for last := begin; err == nil; {
		timer := time.NewTimer(look)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		now := time.Now()
		var s Sample
		if s, err = t.Sample(); err != nil {
			break
		}
		if s.CPU()-before.CPU() < now.Sub(last)/100 {
			return nil
		}
		if now.Sub(begin) >= limit {
			return fmt.Errorf("%w after %v", ErrBusy, limit)
		}
		before, last = s, now
	}
	return err
}
