package machine

import (
	"cmp"
	"os"
	"slices"
	"strconv"
)

// fullScan is how many scans go by lists of children, or pass over processes that were not of the tree, before one looks at all: for
// those whose parents ended unseen, and for new processes with the numbers of old ones.
const fullScan = 16

// scan is one look at the processes. Order matters: a parent is read before its children, so that either a child is seen alive and its
// parent's record is without it, or the child is gone.
type scan struct {
	reads     int
	gone      []*process
	truncated bool
}

// scan reads the stat of all members, finds new ones, and moves those that ended to pending.
func (t *Tree) scan() (truncated bool) {
	for _, p := range t.known {
		p.read, p.freshCPU, p.freshFaults = 0, 0, 0
	}
	var s scan
	if t.lists && t.scans%fullScan != 0 {
		t.scanChildren(&s)
	} else {
		t.scanAll(&s)
	}
	t.scans++
	t.readParentsFirst(&s)
	t.mourn(s.gone)
	for _, p := range t.known {
		p.up = t.known[p.parent]
	}
	return s.truncated
}

// look reads one process. It is new if it is not a member yet; a member of that number is another one, and gone.
func (t *Tree) look(s *scan, pid int) (st stat, isNew, ok bool) {
	st, err := t.r.stat(t.proc, pid)
	if err != nil {
		return st, false, false
	}
	s.reads++
	p := t.known[pid]
	if p != nil && p.started == st.started {
		p.freshCPU += st.reaped.total() - p.reaped.total()
		p.freshFaults += st.reapedFaults - p.reapedFaults
		p.stat, p.read = st, s.reads
		return st, false, true
	}
	if p != nil {
		t.leave(s, p)
	}
	return st, true, true
}

func (t *Tree) leave(s *scan, p *process) {
	delete(t.known, p.pid)
	s.gone = append(s.gone, p)
}

// join makes a member of a process that has just been read.
func (t *Tree) join(s *scan, st stat, read int) *process {
	if len(t.known) >= MaxProcesses {
		s.truncated = true
		return nil
	}
	p := &process{stat: st, read: read, firstReaped: st.reaped}
	t.known[st.pid] = p
	return p
}

// leaveUnread takes out the members that were not there any more, so that there is room for others.
func (t *Tree) leaveUnread(s *scan) {
	for _, p := range t.known {
		if p.read == 0 {
			t.leave(s, p)
		}
	}
}

// scanChildren goes from the members to their children, and on to theirs.
func (t *Tree) scanChildren(s *scan) {
	members := make([]*process, 0, len(t.known))
	for _, p := range t.known {
		members = append(members, p)
	}
	slices.SortFunc(members, func(a, b *process) int {
		return cmp.Or(cmp.Compare(a.started, b.started), cmp.Compare(a.pid, b.pid))
	})
	for _, p := range members {
		t.look(s, p.pid)
	}
	t.leaveUnread(s)
	for i := 0; i < len(members); i++ {
		if members[i].read == 0 {
			continue
		}
		for _, pid := range t.children(members[i]) {
			if t.known[pid] != nil {
				continue
			}
			if st, isNew, ok := t.look(s, pid); ok && isNew {
				if q := t.join(s, st, s.reads); q != nil {
					members = append(members, q)
				}
			}
		}
	}
}

// children reads the lists of children of all threads.
func (t *Tree) children(p *process) (pids []int) {
	dir := t.proc + "/" + strconv.Itoa(p.pid) + "/task"
	names := []string{strconv.Itoa(p.pid)}
	if p.threads > 1 {
		names, _ = readNames(dir)
	}
	for _, name := range names {
		text, err := t.r.read(dir + "/" + name + "/children")
		if err != nil {
			continue
		}
		for f := (numbers{text: text}); ; {
			pid := f.next()
			if f.bad {
				break
			}
			pids = append(pids, int(pid))
		}
	}
	return pids
}

// scanAll looks at all processes of the machine.
func (t *Tree) scanAll(s *scan) {
	type newcomer struct {
		stat
		read int
	}
	var others []newcomer
	strangers := make(map[int]bool)
	for _, pid := range t.r.pids(t.proc) { // ascending: most parents come before their children
		if t.strangers[pid] && t.scans%fullScan != 0 { // nobody enters the tree but by birth; another one may have its number, though
			strangers[pid] = true
			continue
		}
		if st, isNew, ok := t.look(s, pid); ok && isNew {
			others = append(others, newcomer{st, s.reads})
		}
	}
	t.leaveUnread(s)
	// A session that began in the tree holds nobody else, also when the process that began it has ended.
	for pid, p := range t.known {
		if p.session == pid {
			t.sessions[pid] = true
		}
	}
	for _, o := range others {
		if o.session == o.pid {
			delete(t.sessions, o.pid) // a new session with an old number
		}
	}
	for found := true; found; {
		found = false
		others = slices.DeleteFunc(others, func(o newcomer) bool {
			if t.known[o.parent] == nil && !t.sessions[o.session] || t.join(s, o.stat, o.read) == nil {
				return false
			}
			if o.session == o.pid {
				t.sessions[o.pid] = true
			}
			found = true
			return true
		})
	}
	for _, o := range others {
		strangers[o.pid] = !s.truncated // or else it may be one for whom there was no room
	}
	t.strangers = strangers
	inUse := make(map[int]bool, len(t.sessions))
	for _, p := range t.known {
		if t.sessions[p.session] {
			inUse[p.session] = true
		}
	}
	t.sessions = inUse
}

// readParentsFirst reads those again that were read before their parents: numbers of processes begin again at some time.
func (t *Tree) readParentsFirst(s *scan) {
	const maxDepth = 64
	for again, depth := true, 0; again && depth < maxDepth; depth++ {
		again = false
		for _, p := range t.known {
			if up := t.known[p.parent]; up == nil || up.read < p.read {
				continue
			}
			again = true
			if _, _, ok := t.look(s, p.pid); !ok {
				t.leave(s, p)
			} // or look made p leave for another one of its number, who is found next time
		}
	}
}

// mourn notes what ended members have used, and who may have waited for them.
func (t *Tree) mourn(gone []*process) {
	for _, e := range t.pending {
		e.find(t, e.parents)
	}
	for _, p := range gone {
		t.lost.switches += p.switches // nobody's record has them
		e := &ended{usage: usage{cpu: p.cpu(), writes: p.writes}, faults: p.faults + p.reapedFaults}
		if p.up != nil {
			e.find(t, []*process{p.up})
		}
		t.pending = append(t.pending, e)
	}
}

// find replaces parents that ended by all their living ancestors: any of them may have been given the orphan, prctl(2)
// PR_SET_CHILD_SUBREAPER.
func (e *ended) find(t *Tree, parents []*process) {
	e.parents = nil
	for _, p := range parents {
		if t.known[p.pid] == p {
			e.parents = append(e.parents, p)
			continue
		}
		e.orphan = true
		for up := p.up; up != nil; up = up.up {
			if t.known[up.pid] == up && !slices.Contains(e.parents, up) {
				e.parents = append(e.parents, up)
			}
		}
	}
}

// bury decides which of the pending have been waited for. Then the parent's record has what they used, and a little more: what they used
// after they were last seen. A child may go right after its parent was read, so it is looked for twice. Children are sought in their
// parents' records before orphans are.
func (t *Tree) bury() {
	for _, orphans := range []bool{false, true} {
		t.pending = slices.DeleteFunc(t.pending, func(e *ended) bool { return e.orphan == orphans && e.waitedFor() })
	}
	t.pending = slices.DeleteFunc(t.pending, func(e *ended) bool {
		if len(e.parents) > 0 && !e.looked {
			e.looked = true
			return false
		}
		t.lost.add(e.usage)
		return true
	})
}

// waitedFor finds a parent whose record rose by enough, and takes it from what the next may claim.
func (e *ended) waitedFor() bool {
	for _, p := range e.parents {
		// Page faults are exact, times are cut to ticks, user and system for themselves.
		if p.freshFaults >= e.faults && p.freshCPU+2*tick >= e.cpu.total() {
			p.freshFaults -= e.faults
			p.freshCPU -= e.cpu.total()
			p.waited = p.waited.plus(e.cpu)
			return true
		}
	}
	return false
}

// hasLists says whether the kernel has lists of children.
func hasLists(proc string, pid int) bool {
	name := strconv.Itoa(pid)
	_, err := os.Stat(proc + "/" + name + "/task/" + name + "/children")
	return err == nil
}
