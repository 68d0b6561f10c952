package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// FS is the file system below the spool. Tests put one there that loses what was not synced, or fails on demand.
type FS interface {
	MkdirAll(dir string) error
	// ReadDir gives the names of the files in dir.
	ReadDir(dir string) ([]string, error)
	// Create makes a new file; it is an error if there is one.
	Create(name string) (File, error)
	Open(name string) (File, error)
	Rename(old, new string) error
	Remove(name string) error
	// SyncDir makes the entries of dir durable.
	SyncDir(dir string) error
	// Lock takes the spool's lock file for this process, or fails with ErrInUse.
	Lock(name string) (io.Closer, error)
	// Free gives the bytes that an ordinary user may still write to dir's file system.
	Free(dir string) (int64, error)
}

// File is one open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	// WriteBuffers writes bufs one behind the other, from off on. It may change the slice bufs, not the bytes.
	WriteBuffers(bufs [][]byte, off int64) error
	// SyncData makes the content and the size durable.
	SyncData() error
	Truncate(size int64) error
	// Forget lets go of what is cached of n bytes from off on, which are durable and will not be read soon. It may do nothing.
	Forget(off, n int64)
	// Allocate reserves storage for the first size bytes, which read as zeros where nothing was written. It may do nothing.
	Allocate(size int64) error
	Size() (int64, error)
	Close() error
}

// ErrInUse is Open's answer when another process, or another Spool of this one, has the directory.
var ErrInUse = errors.New("spool: directory is in use")

// osFS is the operating system's.
type osFS struct{}

func (osFS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (osFS) Create(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f}, nil
}

func (osFS) Open(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f}, nil
}

func (osFS) Rename(old, new string) error { return os.Rename(old, new) }
func (osFS) Remove(name string) error     { return os.Remove(name) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Lock uses flock, which the kernel drops with the process however it ends; the process number in the file is for the reader of the
// error message only.
func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("spool: lock %s: %w", name, err)
		}
		who := "another process"
		if pid := strings.TrimSpace(string(holder)); pid != "" {
			who = "process " + pid
		}
		return nil, fmt.Errorf("%w: %s belongs to %s", ErrInUse, filepath.Dir(name), who)
	}
	// The number may stay unwritten on a full disk; the lock holds all the same.
	if f.Truncate(0) == nil {
		f.WriteAt(append(strconv.AppendInt(nil, int64(os.Getpid()), 10), '\n'), 0)
	}
	return f, nil
}

// osFile adds to *os.File what differs between systems; file_linux.go has the fast forms.
type osFile struct {
	*os.File
	vectors vectors
}

func (f *osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
