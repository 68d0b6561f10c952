package machine

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of times in /proc/PID/stat: USER_HZ is 100 on every architecture Go runs on.
const tick = 10 * time.Millisecond

// reader reads the small files of /proc into one buffer. os.ReadFile would do, but it allocates, and a sample reads hundreds of files.
type reader struct{ buf []byte }

// read returns the file's text, borrowed until the next read.
func (r *reader) read(path string) ([]byte, error) { return r.readFile(path, false) }

// readShort is read for files of one line, which the kernel hands over at once: it does not look for more.
func (r *reader) readShort(path string) ([]byte, error) { return r.readFile(path, true) }

func (r *reader) readFile(path string, short bool) ([]byte, error) {
	var fd int
	var err error
	for {
		if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if r.buf == nil {
		r.buf = make([]byte, 4<<10)
	}
	for n := 0; ; {
		if n == len(r.buf) {
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		}
		m, err := unix.Read(fd, r.buf[n:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case m == 0:
			return r.buf[:n], nil
		default:
			if n += m; short && n < len(r.buf) {
				return r.buf[:n], nil
			}
		}
	}
}

// pids lists the processes in a /proc, in ascending order.
func (r *reader) pids(proc string) []int {
	names, err := readNames(proc)
	if err != nil {
		return nil
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// stat is what we use of /proc/PID/stat, proc(5).
type stat struct {
	pid, parent, session, threads int
	state                         byte
	name                          string
	own, reaped                   cpu   // reaped: of children that it has waited for, and theirs
	faults, reapedFaults          int64 // minor page faults, likewise; no process ends without some
	started                       int64 // ticks after boot; with pid it names a process for good
	rssPages                      int64
}

type cpu struct{ user, system time.Duration }

func (a cpu) plus(b cpu) cpu       { return cpu{a.user + b.user, a.system + b.system} }
func (a cpu) total() time.Duration { return a.user + a.system }

func (r *reader) stat(proc string, pid int) (stat, error) {
	text, err := r.readShort(proc + "/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(text)
}

var errStat = errors.New("machine: /proc/PID/stat not understood")

func parseStat(text []byte) (s stat, err error) {
	// The name in brackets may hold anything, brackets and spaces included; the fields that matter follow the last one.
	begin, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if begin < 1 || end < begin || end+2 >= len(text) {
		return s, errStat
	}
	if s.pid, err = strconv.Atoi(string(text[:begin-1])); err != nil {
		return s, errStat
	}
	s.name = string(text[begin+1 : end])
	s.state = text[end+2]
	f := numbers{text: text[end+3:]}
	for field := 4; field <= 24; field++ { // numbered as in proc(5)
		n := f.next()
		switch field {
		case 4:
			s.parent = int(n)
		case 6:
			s.session = int(n)
		case 10:
			s.faults = n
		case 11:
			s.reapedFaults = n
		case 14:
			s.own.user = time.Duration(n) * tick
		case 15:
			s.own.system = time.Duration(n) * tick
		case 16:
			s.reaped.user = time.Duration(n) * tick
		case 17:
			s.reaped.system = time.Duration(n) * tick
		case 20:
			s.threads = int(n)
		case 22:
			s.started = n
		case 24:
			s.rssPages = n
		}
	}
	if f.bad {
		return s, errStat
	}
	return s, nil
}

// numbers takes decimal numbers off a text.
type numbers struct {
	text []byte
	bad  bool
}

func (f *numbers) next() int64 {
	text := bytes.TrimLeft(f.text, " \t\n")
	end := bytes.IndexAny(text, " \t\n")
	if end < 0 {
		end = len(text)
	}
	n, err := strconv.ParseInt(string(text[:end]), 10, 64)
	f.text, f.bad = text[end:], f.bad || err != nil
	return n
}

// switches returns how often a thread got a core. That is how often it left one, too, except for the time it has one now. It is the third
// number of schedstat, one line, where the kernel keeps that (CONFIG_SCHED_INFO), and otherwise two lines in the middle of status.
func (r *reader) switches(thread string) (int64, error) {
	if text, err := r.readShort(thread + "/schedstat"); err == nil {
		f := numbers{text: text}
		f.next()
		f.next()
		if n := f.next(); !f.bad && n > 0 {
			return n, nil
		}
	}
	text, err := r.read(thread + "/status")
	if err != nil {
		return 0, err
	}
	return lineValue(text, "voluntary_ctxt_switches:") + lineValue(text, "nonvoluntary_ctxt_switches:"), nil
}

// lineValue returns the number behind a key at the start of a line, or 0.
func lineValue(text []byte, key string) int64 {
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
			f := numbers{text: rest}
			if n := f.next(); !f.bad {
				return n
			}
		}
	}
	return 0
}

// memory returns resident and proportional set size in bytes.
func (r *reader) memory(proc string, pid int) (rss, pss int64, err error) {
	text, err := r.read(proc + "/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0, 0, err
	}
	if len(text) == 0 {
		return 0, 0, io.ErrUnexpectedEOF
	}
	return lineValue(text, "Rss:") << 10, lineValue(text, "Pss:") << 10, nil
}

// runTime asks the scheduler for what a process has used, ended threads included, to the nanosecond: the clock that
// clock_getcpuclockid(3) names, of which stat shows whole ticks.
func runTime(pid int) (time.Duration, bool) {
	const scheduler = 2 // CPUCLOCK_SCHED: of the whole process
	var ts unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|scheduler), &ts) != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()), true
}
