package spool

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// crashFS is a file system in memory that knows which bytes and directory entries are durable. Crash gives what could be found after a
// power cut: everything synced, of the rest any sectors of any writes, and the first few of the directory changes.
type crashFS struct {
	bytesRead int // by ReadAt; protected by mu
	mu        sync.Mutex
	rng       *rand.Rand
	dead      bool // the machine this file system ran on is off
	locked    bool
	dieIn     int // changes until the power is cut; zero is never
	files     map[string]*inode
	durable   map[string]*inode
	dirOps    []dirOp
	space     int64 // left to write; negative is unlimited

	failSync  func(name string) error // asked before each sync
	failWrite func(name string) error
	syncs     map[string]int // successful and failed, by base name
	writes    map[string]int
}

type dirOp struct {
	name, to string // to is empty for create and remove
	file     *inode // nil for remove
}

type inode struct {
	name     string
	data     []byte // as read
	stable   []byte // as synced
	unsynced []fileOp
}

type fileOp struct {
	off  int64
	data []byte // nil: truncate to off
}

const sectorBytes = 512

var errDead = errors.New("crashfs: the power is off")

func newCrashFS(rng *rand.Rand) *crashFS {
	return &crashFS{
		rng: rng, space: -1, files: map[string]*inode{}, durable: map[string]*inode{}, syncs: map[string]int{}, writes: map[string]int{},
	}
}

func (op fileOp) apply(b []byte) []byte {
	if op.data == nil {
		return resize(b, op.off)
	}
	if end := op.off + int64(len(op.data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[op.off:], op.data)
	return b
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// Crash cuts the power: c is dead, what is left is returned.
func (c *crashFS) Crash() *crashFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	after := newCrashFS(c.rng)
	entries := maps.Clone(c.durable)
	for _, op := range c.dirOps[:c.rng.IntN(len(c.dirOps)+1)] {
		op.apply(entries)
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		old := entries[name]
		b := slices.Clone(old.stable)
		often := c.rng.IntN(5)
		for _, op := range old.unsynced {
			if op.data == nil {
				if c.rng.IntN(4) < often {
					b = op.apply(b)
				}
				continue
			}
			for at := int64(0); at < int64(len(op.data)); {
				// Tear at the sectors of the disk, not of the write.
				end := min((op.off+at)/sectorBytes*sectorBytes+sectorBytes-op.off, int64(len(op.data)))
				if c.rng.IntN(4) < often {
					b = fileOp{op.off + at, op.data[at:end]}.apply(b)
				}
				at = end
			}
		}
		f := &inode{name: filepath.Base(name), data: b, stable: slices.Clone(b)}
		after.files[name], after.durable[name] = f, f
	}
	return after
}

// Kill ends the process only: what was written stays.
func (c *crashFS) Kill() *crashFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	after := newCrashFS(c.rng)
	after.files, after.durable, after.dirOps = c.files, c.durable, c.dirOps
	return after
}

// Clone copies the file system as it is read.
func (c *crashFS) Clone() *crashFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	after := newCrashFS(c.rng)
	for name, f := range c.files {
		f := &inode{name: f.name, data: slices.Clone(f.data), stable: slices.Clone(f.data)}
		after.files[name], after.durable[name] = f, f
	}
	return after
}

func (op dirOp) apply(entries map[string]*inode) {
	switch {
	case op.to != "":
		delete(entries, op.name)
		entries[op.to] = op.file
	case op.file != nil:
		entries[op.name] = op.file
	default:
		delete(entries, op.name)
	}
}

func (c *crashFS) do(op dirOp) {
	op.apply(c.files)
	c.dirOps = append(c.dirOps, op)
}

func (c *crashFS) enter() error {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return errDead
	}
	return nil
}

// change is enter for what alters the disk.
func (c *crashFS) change() error {
	if err := c.enter(); err != nil {
		return err
	}
	if c.dieIn > 0 {
		if c.dieIn--; c.dieIn == 0 {
			c.dead = true
			c.mu.Unlock()
			return errDead
		}
	}
	return nil
}

func (c *crashFS) MkdirAll(string) error { return nil }

func (c *crashFS) ReadDir(dir string) (names []string, err error) {
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	for name := range c.files {
		names = append(names, filepath.Base(name))
	}
	slices.Sort(names)
	return names, nil
}

func (c *crashFS) Create(name string) (File, error) {
	if err := c.change(); err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	if c.files[name] != nil {
		return nil, fs.ErrExist
	}
	f := &inode{name: filepath.Base(name)}
	c.do(dirOp{name: name, file: f})
	return &crashFile{c: c, f: f}, nil
}

func (c *crashFS) Open(name string) (File, error) {
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	if f := c.files[name]; f != nil {
		return &crashFile{c: c, f: f}, nil
	}
	return nil, fs.ErrNotExist
}

func (c *crashFS) Rename(old, new string) error {
	if err := c.change(); err != nil {
		return err
	}
	defer c.mu.Unlock()
	f := c.files[old]
	if f == nil {
		return fs.ErrNotExist
	}
	f.name = filepath.Base(new)
	c.do(dirOp{name: old, to: new, file: f})
	return nil
}

func (c *crashFS) Remove(name string) error {
	if err := c.change(); err != nil {
		return err
	}
	defer c.mu.Unlock()
	f := c.files[name]
	if f == nil {
		return fs.ErrNotExist
	}
	if c.space >= 0 {
		c.space += int64(len(f.data))
	}
	c.do(dirOp{name: name})
	return nil
}

func (c *crashFS) SyncDir(string) error {
	if err := c.change(); err != nil {
		return err
	}
	defer c.mu.Unlock()
	c.durable, c.dirOps = maps.Clone(c.files), nil
	return nil
}

type crashLock struct{ c *crashFS }

func (l crashLock) Close() error { l.c.locked = false; return nil }

func (c *crashFS) Lock(string) (io.Closer, error) {
	if c.locked {
		return nil, ErrInUse
	}
	c.locked = true
	return crashLock{c}, nil
}

func (c *crashFS) Free(string) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.space < 0 {
		return 1 << 40, nil
	}
	return c.space, nil
}

// crashFile is an open file of a crashFS.
type crashFile struct {
	c      *crashFS
	f      *inode
	closed atomic.Bool
}

func (f *crashFile) ReadAt(p []byte, off int64) (int, error) {
	if f.closed.Load() {
		return 0, os.ErrClosed
	}
	if err := f.c.enter(); err != nil {
		return 0, err
	}
	defer f.c.mu.Unlock()
	if off >= int64(len(f.f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.f.data[off:])
	f.c.bytesRead += n
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *crashFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.c.change(); err != nil {
		return 0, err
	}
	defer f.c.mu.Unlock()
	c := f.c
	c.writes[f.f.name]++
	if c.failWrite != nil {
		if err := c.failWrite(f.f.name); err != nil {
			return 0, err
		}
	}
	var err error
	if grow := off + int64(len(p)) - int64(len(f.f.data)); grow > 0 && c.space >= 0 {
		if grow > c.space { // some of it is still written
			p = p[:max(0, int64(len(p))-grow+c.space)]
			grow, err = c.space, syscall.ENOSPC
		}
		c.space -= grow
	}
	if len(p) > 0 {
		op := fileOp{off, slices.Clone(p)}
		f.f.data = op.apply(f.f.data)
		f.f.unsynced = append(f.f.unsynced, op)
	}
	return len(p), err
}

func (f *crashFile) WriteBuffers(bufs [][]byte, off int64) error {
	_, err := f.WriteAt(slices.Concat(bufs...), off)
	return err
}

// SyncData that fails loses the writes the way Linux does: they are still read, but a later sync does not write them.
func (f *crashFile) SyncData() error {
	if err := f.c.change(); err != nil {
		return err
	}
	defer f.c.mu.Unlock()
	f.c.syncs[f.f.name]++
	if f.c.failSync != nil {
		if err := f.c.failSync(f.f.name); err != nil {
			f.f.unsynced = nil
			return err
		}
	}
	for _, op := range f.f.unsynced {
		f.f.stable = op.apply(f.f.stable)
	}
	f.f.unsynced = nil
	return nil
}

func (f *crashFile) Truncate(size int64) error {
	if err := f.c.change(); err != nil {
		return err
	}
	defer f.c.mu.Unlock()
	if f.c.space >= 0 {
		f.c.space += int64(len(f.f.data)) - size
	}
	f.f.data = resize(f.f.data, size)
	f.f.unsynced = append(f.f.unsynced, fileOp{off: size})
	return nil
}

func (f *crashFile) Allocate(int64) error { return nil }
func (f *crashFile) Forget(int64, int64)  {}

func (f *crashFile) Size() (int64, error) {
	if err := f.c.enter(); err != nil {
		return 0, err
	}
	defer f.c.mu.Unlock()
	return int64(len(f.f.data)), nil
}

func (f *crashFile) Close() error { f.closed.Store(true); return nil }

func TestCrashKeepsWhatWasSyncedAndMayLoseTheRest(t *testing.T) {
	lost, kept, torn := 0, 0, 0
	for seed := range uint64(200) {
		c := newCrashFS(rand.New(rand.NewPCG(seed, 0)))
		f, _ := c.Create("d/a")
		f.WriteAt([]byte("synced"), 0)
		f.SyncData()
		c.SyncDir("d")
		f.WriteAt(make([]byte, 4*sectorBytes), 100)
		c.Create("d/b")
		after := c.Crash()
		if _, err := c.Open("d/a"); err != errDead {
			t.Fatal("the old file system still works")
		}
		a := after.files["d/a"]
		if string(a.data[:6]) != "synced" {
			t.Fatal("synced data is lost")
		}
		switch n := len(a.data); {
		case n == 6:
			lost++
		case n == 100+4*sectorBytes:
			kept++
		default:
			torn++
		}
	}
	if lost == 0 || kept == 0 || torn == 0 {
		t.Errorf("of 200 crashes %d lost, %d kept, %d tore the write", lost, kept, torn)
	}
}
