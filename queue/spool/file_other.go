//go:build !linux

package spool

import "syscall"

type vectors struct{}

func (f *osFile) WriteBuffers(bufs [][]byte, off int64) error {
	for _, p := range bufs {
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// SyncData is a full fsync (on macOS Go makes it F_FULLFSYNC, which also empties the drive's cache).
func (f *osFile) SyncData() error { return f.Sync() }

func (f *osFile) Allocate(int64) error { return nil }

func (f *osFile) Forget(int64, int64) {}

func (osFS) Free(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
