//go:build unix

package relay

import "syscall"

// silent reads from a socket without waiting: it is open and has nothing to say when the kernel answers EAGAIN. This is one
// system call a message, and spares most of the failed writes on connections that the next hop closed long ago.
func silent(raw syscall.RawConn, peek []byte) bool {
	var err error
	if raw.Read(func(fd uintptr) bool {
		_, err = syscall.Read(int(fd), peek)
		return true
	}) != nil {
		return false
	}
	return err == syscall.EAGAIN
}
