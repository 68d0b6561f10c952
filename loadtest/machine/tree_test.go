package machine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample takes one and checks what must always hold.
func (w *world) sample(tree *Tree) Sample {
	w.t.Helper()
	before := tree.last
	s, err := tree.Sample()
	if (s.Processes == 0) != errors.Is(err, ErrGone) {
		w.t.Fatalf("%d processes: %v", s.Processes, err)
	}
	if s.User < before.User || s.System < before.System || s.ContextSwitches < before.ContextSwitches || s.WriteBytes < before.WriteBytes {
		w.t.Fatalf("%+v after %+v", s, before)
	}
	return s
}

// expect wants a sample to know all that was used.
func (w *world) expect(tree *Tree, processes int) {
	w.t.Helper()
	s := w.sample(tree)
	if s.CPU() != w.used || s.WriteBytes != w.wrote || s.Processes != processes {
		w.t.Fatalf("%v of %v used, %d of %d written, %d of %d processes", s.CPU(), w.used, s.WriteBytes, w.wrote, s.Processes, processes)
	}
}

// both runs a test on a kernel with lists of children and on one without.
func both(t *testing.T, test func(*testing.T, *world)) {
	for _, lists := range []bool{false, true} {
		t.Run(fmt.Sprintf("lists=%v", lists), func(t *testing.T) {
			w := newWorld(t)
			w.lists = lists
			test(t, w)
		})
	}
}

func TestATreeIsTheProcessAndItsDescendants(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.fork(10, 1)
		w.fork(11, 10)
		w.fork(12, 11)
		w.add(&invented{pid: 20, parent: 1, outside: true})
		w.run(20, time.Hour)
		for pid := 10; pid <= 12; pid++ {
			w.run(pid, 30*time.Millisecond)
		}
		tree := w.watch(10)
		w.expect(tree, 3)
		w.fork(30, 12) // later
		w.run(30, time.Second)
		w.expect(tree, 4)
		s := w.sample(tree)
		if want := int64(40 * os.Getpagesize()); s.RSS != want || s.ContextSwitches != 4 || s.Gone || s.Truncated {
			t.Errorf("%+v", s)
		}
		if rss, pss, err := tree.Memory(); rss != 160<<10 || pss != 80<<10 || err != nil {
			t.Errorf("memory %d, %d, %v", rss, pss, err)
		}
	})
}

func TestTimeOfEndedProcessesIsKeptAndCountedOnce(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		for _, ignores := range []bool{false, true} {
			w.used, w.wrote = 0, 0
			root := 10
			if ignores {
				root = 100
			}
			w.add(&invented{pid: root, parent: 1, ignores: ignores})
			tree := w.watch(root)
			for i := range 40 {
				pid := root + 1 + i%3
				w.fork(pid, root)
				w.run(pid, 20*time.Millisecond)
				w.expect(tree, 2)
				w.exit(pid)
				w.expect(tree, 1)
			}
			if got := w.sample(tree).ContextSwitches; got != 40 {
				t.Errorf("%d switches", got)
			}
		}
	})
}

func TestTimeFinerThanTicksIsNotCountedTwice(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.fork(10, 1)
		tree := w.watch(10)
		for i := range 100 {
			w.fork(11, 10)
			w.run(11, 3*time.Millisecond)
			w.sample(tree)
			w.exit(11)
			if got, want := w.sample(tree).CPU(), time.Duration(i+1)*3*time.Millisecond; got != want {
				t.Fatalf("%v, want %v", got, want)
			}
		}
	})
}

// The parent's record is read, then the child ends: it is in no record of this sample, and in the parent's of the next.
func TestAChildThatEndsWhileASampleIsTaken(t *testing.T) {
	w := newWorld(t)
	w.fork(10, 1)
	w.fork(11, 10)
	w.run(11, 50*time.Millisecond)
	tree := w.watch(10)
	w.expect(tree, 2)
	old := *w.procs[10]
	w.exit(11)
	late := *w.procs[10]
	w.write(&old)
	w.expect(tree, 1)
	w.write(&late)
	w.expect(tree, 1)
	w.expect(tree, 1)
}

func TestAnOrphanStaysInTheTree(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.fork(10, 1)
		w.fork(11, 10)
		w.fork(12, 11)
		w.run(11, time.Second)
		tree := w.watch(10)
		w.exit(11)
		w.expect(tree, 2)
		w.run(12, time.Second)
		w.fork(13, 12)
		w.run(13, time.Second)
		w.expect(tree, 3)
		w.exit(12)
		w.expect(tree, 2)
		w.exit(13)
		w.expect(tree, 1)
	})
}

func TestOrphansOfUnseenParentsAreFoundBySession(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.add(&invented{pid: 10, parent: 1, session: 10})
		w.add(&invented{pid: 20, parent: 1, session: 20, outside: true})
		tree := w.watch(10)
		w.fork(11, 10)
		w.fork(12, 11)
		w.exit(11)
		w.run(12, time.Second)
		for range fullScan {
			w.sample(tree)
		}
		w.expect(tree, 2)
		w.exit(10) // the leader; its session goes on
		w.fork(13, 12)
		w.fork(14, 13)
		w.exit(13)
		for range fullScan {
			w.sample(tree)
		}
		w.expect(tree, 2)
		if !w.sample(tree).Gone {
			t.Error("the root has ended")
		}
	})
}

func TestASessionThatBeganElsewhereIsNotTheTree(t *testing.T) {
	w := newWorld(t)
	w.add(&invented{pid: 5, parent: 1, session: 5, outside: true}) // a shell
	w.fork(10, 5)
	w.add(&invented{pid: 11, parent: 5, outside: true})
	w.run(11, time.Second)
	w.expect(w.watch(10), 1)
}

func TestAnotherProcessWithAnOldNumber(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.fork(10, 1)
		w.fork(11, 10)
		w.run(11, time.Second)
		tree := w.watch(10)
		w.exit(11)
		w.add(&invented{pid: 11, parent: 1, session: 1, outside: true})
		w.run(11, time.Hour)
		w.expect(tree, 1)
		w.exit(10)
		w.add(&invented{pid: 10, parent: 1, session: 1, outside: true})
		if s := w.sample(tree); !s.Gone || s.CPU() != w.used {
			t.Errorf("%+v", s)
		}
	})
}

func TestAChildWithTheNumberOfAStranger(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.fork(10, 1)
		w.add(&invented{pid: 20, parent: 1, outside: true})
		tree := w.watch(10)
		w.expect(tree, 1)
		w.exit(20)
		w.fork(20, 10)
		w.run(20, time.Second)
		for range fullScan {
			w.sample(tree)
		}
		w.expect(tree, 2)
	})
}

func TestChildrenWithLowerNumbersThanTheirParents(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.fork(1000, 1)
		w.fork(999, 1000)
		w.fork(500, 999)
		w.fork(501, 500)
		for pid := range w.procs {
			if pid != 1 {
				w.run(pid, 10*time.Millisecond)
			}
		}
		tree := w.watch(1000)
		w.expect(tree, 4)
		for _, p := range tree.known {
			if up := tree.known[p.parent]; up != nil && up.read > p.read {
				t.Errorf("%d was read before %d", p.pid, up.pid)
			}
		}
		w.exit(501)
		w.exit(500)
		w.expect(tree, 2)
	})
}

func TestGone(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.fork(10, 1)
		w.fork(11, 10)
		w.run(10, time.Second)
		w.run(11, time.Second)
		tree := w.watch(10)
		w.procs[10].zombie = true
		w.write(w.procs[10])
		w.expect(tree, 1)
		if !w.sample(tree).Gone {
			t.Error("the root is a zombie")
		}
		w.exit(10)
		w.expect(tree, 1)
		w.exit(11)
		w.expect(tree, 0)
		w.expect(tree, 0)
		if err := tree.WaitQuiet(t.Context(), time.Minute); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		if _, _, err := tree.Memory(); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
	})
}

func TestNoSuchProcess(t *testing.T) {
	w := newWorld(t)
	w.add(&invented{pid: 10, parent: 1, zombie: true})
	for _, pid := range []int{10, 77, 0, -1} {
		if _, err := watch(pid, w.dir, runTime); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%d: %v", pid, err)
		}
	}
	w.file(11, "stat", "11 (x) S 1")
	if _, err := watch(11, w.dir, runTime); err == nil {
		t.Error("a stat of four fields")
	}
}

func TestMaxProcesses(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		if w.lists && testing.Short() {
			t.Skip("4096 processes again")
		}
		lists := w.lists
		w.lists, w.bare = false, true // no lists yet: once is enough
		w.fork(10, 1)
		for i := range MaxProcesses - 1 {
			w.fork(11+i, 10)
		}
		w.lists = lists
		w.list(10)
		tree := w.watch(10)
		if s := w.sample(tree); s.Processes != MaxProcesses || s.Truncated {
			t.Fatalf("at the bound: %+v", s)
		}
		w.fork(9000, 10)
		w.fork(9001, 9000)
		if s := w.sample(tree); s.Processes != MaxProcesses || !s.Truncated || len(tree.known) != MaxProcesses {
			t.Fatalf("past the bound: %+v", s)
		}
		w.exit(11)
		w.exit(12)
		if s := w.sample(tree); s.Processes != MaxProcesses || s.Truncated {
			t.Errorf("at the bound again: %+v", s)
		}
	})
}

// A kernel of invented processes forks, runs, ends and orphans them at random. When each event is seen, nothing is lost; when some go
// unseen, nothing counts twice.
func TestRandomWorlds(t *testing.T) {
	both(t, func(t *testing.T, proto *world) {
		for seed := range uint64(6) {
			for _, every := range []int{1, 7} {
				w := newWorld(t)
				w.lists = proto.lists
				rnd := rand.New(rand.NewPCG(seed, uint64(every)))
				w.add(&invented{pid: 10, parent: 1, session: 10, reaper: seed%5 == 4})
				tree := w.watch(10)
				next := 11
				for step := range 80 {
					pids := []int{}
					for pid, p := range w.procs {
						if !p.outside {
							pids = append(pids, pid)
						}
					}
					slices.Sort(pids)
					pid := pids[rnd.IntN(len(pids))]
					switch rnd.IntN(5) {
					case 0, 1:
						w.add(&invented{pid: next, parent: pid, faults: 1 + rnd.Int64N(100), ignores: rnd.IntN(3) == 0})
						next++
					case 2, 3:
						w.run(pid, time.Duration(1+rnd.IntN(4))*tick)
					case 4:
						if pid != 10 {
							w.exit(pid)
						}
					}
					if step%every == 0 {
						if s := w.sample(tree); s.CPU() > w.used || every == 1 && (s.CPU() != w.used || s.WriteBytes != w.wrote) {
							t.Fatalf("seed %d, a sample every %d, step %d: %v of %v used, %d of %d written",
								seed, every, step, s.CPU(), w.used, s.WriteBytes, w.wrote)
						}
					}
				}
			}
		}
	})
}

func TestWaitQuiet(t *testing.T) {
	w := newWorld(t)
	w.fork(10, 1)
	tree := w.watch(10)
	if err := tree.WaitQuiet(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	busy := time.Duration(0)
	tree.clock = func(int) (time.Duration, bool) { busy += time.Second; return busy, true }
	if err := tree.WaitQuiet(t.Context(), time.Nanosecond); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tree.WaitQuiet(ctx, time.Minute); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestParseStat(t *testing.T) {
	good := "42 (a) b (c) R 7 42 5 0 -1 4194304 11 12 0 0 1 2 3 4 20 0 6 0 99 3133440 413 18446744073709551615 1"
	s, err := parseStat([]byte(good))
	want := stat{pid: 42, parent: 7, session: 5, threads: 6, state: 'R', name: "a) b (c", own: cpu{tick, 2 * tick},
		reaped: cpu{3 * tick, 4 * tick}, faults: 11, reapedFaults: 12, started: 99, rssPages: 413}
	if err != nil || s != want {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "42", "42 (a", "42 a) R 1", ") (", "(a) R 1 2 3", "42 (a)", "42 (a) ", "x" + good, strings.Replace(good, " 99 ", " 9x ", 1), good[:60]} {
		if s, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
}
