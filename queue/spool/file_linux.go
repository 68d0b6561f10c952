package spool

import (
	"errors"
	"io"
	"runtime"
	"syscall"
	"unsafe"
)

// maxVectors is the most buffers that one pwritev takes (IOV_MAX).
const maxVectors = 1024

// vectors is reused from one write to the next: package syscall has no pwritev, and the one in x/sys makes a new array each time.
type vectors struct{ iov []syscall.Iovec }

// WriteBuffers is one pwritev per 1024 buffers. A short write is continued where it stopped.
func (f *osFile) WriteBuffers(bufs [][]byte, off int64) error {
	fd := f.Fd() // f stays reachable below, so its finalizer can't close the descriptor
	defer runtime.KeepAlive(f)
	defer func() { clear(f.vectors.iov) }() // keep no message alive
	for len(bufs) > 0 {
		iov := f.vectors.iov[:0]
		for _, p := range bufs[:min(len(bufs), maxVectors)] {
			if len(p) > 0 {
				v := syscall.Iovec{Base: &p[0]}
				v.SetLen(len(p))
				iov = append(iov, v)
			}
		}
		f.vectors.iov = iov
		if len(iov) == 0 {
			bufs = bufs[min(len(bufs), maxVectors):]
			continue
		}
		// The two offset arguments are its low and high half; on a 64-bit kernel the low one is all of it.
		n, _, errno := syscall.Syscall6(syscall.SYS_PWRITEV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)),
			uintptr(off), uintptr(uint64(off)>>32), 0)
		switch {
		case errno == syscall.EINTR:
			continue
		case errno != 0:
			return errno
		case n == 0:
			return io.ErrShortWrite
		}
		off += int64(n)
		for n > 0 || len(bufs) > 0 && len(bufs[0]) == 0 {
			if uintptr(len(bufs[0])) > n {
				bufs[0] = bufs[0][n:]
				break
			}
			n -= uintptr(len(bufs[0]))
			bufs = bufs[1:]
		}
	}
	return nil
}

// SyncData is fdatasync: the times of the file may be lost in a crash, its size and content not.
func (f *osFile) SyncData() error {
	defer runtime.KeepAlive(f)
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return err
		}
	}
}

// Forget is posix_fadvise(POSIX_FADV_DONTNEED).
func (f *osFile) Forget(off, n int64) {
	const dontNeed = 4
	defer runtime.KeepAlive(f)
	syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), uintptr(off), uintptr(n), dontNeed, 0, 0)
}

func (f *osFile) Allocate(size int64) error {
	defer runtime.KeepAlive(f)
	err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return nil
	}
	return err
}

func (osFS) Free(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
