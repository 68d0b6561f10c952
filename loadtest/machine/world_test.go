package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// world is a /proc of invented processes, and a kernel that keeps their records as Linux does.
type world struct {
	t     *testing.T
	dir   string
	lists bool // of children
	bare  bool // nothing but stat: many processes
	boot  int64
	procs map[int]*invented
	used  time.Duration // by all of the tree, ever
	wrote int64
}

type invented struct {
	pid, parent, session    int
	started                 int64
	own, reaped             time.Duration
	faults, reapedFaults    int64
	switches, writes, rss   int64
	ignores                 bool // SIGCHLD: its children are not waited for
	zombie, reaper, outside bool
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, procs: make(map[int]*invented)}
	dir, err := os.MkdirTemp("/dev/shm", "world-*") // in memory: it makes thousands of small files
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
	} else {
		dir = t.TempDir()
	}
	w.dir = dir
	w.add(&invented{pid: 1, outside: true})
	return w
}

func (w *world) add(p *invented) *invented {
	w.boot++
	p.started = w.boot
	if p.session == 0 && w.procs[p.parent] != nil {
		p.session = w.procs[p.parent].session
	}
	if p.faults == 0 {
		p.faults = 100
	}
	if p.rss == 0 {
		p.rss = 10
	}
	w.procs[p.pid] = p
	w.write(p)
	w.list(p.parent)
	return p
}

func (w *world) fork(pid, parent int) *invented { return w.add(&invented{pid: pid, parent: parent}) }

func (w *world) run(pid int, d time.Duration) {
	p := w.procs[pid]
	p.own += d
	p.faults++
	p.switches++
	p.writes += 4096
	if !p.outside {
		w.used += d
		w.wrote += 4096
	}
	w.write(p)
}

// exit ends a process; its parent waits for it at once, unless it never does.
func (w *world) exit(pid int) {
	p := w.procs[pid]
	heir := p.parent
	for heir != 0 && heir != 1 && !w.procs[heir].reaper {
		heir = w.procs[heir].parent
	}
	heir = max(heir, 1)
	for _, c := range w.procs {
		if c.parent == pid {
			c.parent = heir
			w.write(c)
		}
	}
	w.list(heir)
	delete(w.procs, pid)
	if err := os.RemoveAll(filepath.Join(w.dir, strconv.Itoa(pid))); err != nil {
		w.t.Fatal(err)
	}
	if up := w.procs[p.parent]; up != nil {
		if !up.ignores {
			up.reaped += p.own + p.reaped
			up.reapedFaults += p.faults + p.reapedFaults
			up.writes += p.writes
			w.write(up)
		}
		w.list(p.parent)
	}
}

func (w *world) file(pid int, name, text string) {
	path := filepath.Join(w.dir, strconv.Itoa(pid), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(p *invented) {
	state := "S"
	if p.zombie {
		state = "Z"
	}
	w.file(p.pid, "stat", fmt.Sprintf("%d (a (b) c) %s %d %d %d 0 -1 4194304 %d %d 0 0 %d %d %d %d 20 0 1 0 %d 3133440 %d 18446744073709551615 1 1 0\n",
		p.pid, state, p.parent, p.pid, p.session, p.faults, p.reapedFaults, p.own/tick, 0, p.reaped/tick, 0, p.started, p.rss))
	if w.bare {
		return
	}
	w.file(p.pid, "schedstat", fmt.Sprintf("%d 0 %d\n", p.own, p.switches))
	w.file(p.pid, "io", fmt.Sprintf("rchar: 1\nwrite_bytes: %d\ncancelled_write_bytes: 9\n", p.writes))
	w.file(p.pid, "smaps_rollup", fmt.Sprintf("00-ff ---p 00 00:00 0 [rollup]\nRss: %d kB\nPss: %d kB\n", p.rss*4, p.rss*2))
}

// list writes the lists of children that some kernels have.
func (w *world) list(pid int) {
	if !w.lists || w.procs[pid] == nil {
		return
	}
	var text strings.Builder
	for _, c := range w.procs {
		if c.parent == pid {
			fmt.Fprintf(&text, "%d ", c.pid)
		}
	}
	w.file(pid, "task/"+strconv.Itoa(pid)+"/children", text.String())
	if w.bare {
		return
	}
	for _, c := range w.procs {
		if c.parent == pid {
			if _, err := os.Stat(filepath.Join(w.dir, strconv.Itoa(c.pid), "task")); err != nil {
				w.list(c.pid)
			}
		}
	}
}

func (w *world) watch(pid int) *Tree {
	w.t.Helper()
	tree, err := watch(pid, w.dir, func(pid int) (time.Duration, bool) {
		if p := w.procs[pid]; p != nil {
			return p.own, true
		}
		return 0, false
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return tree
}
