//go:build !unix

package relay

import "syscall"

// silent can't ask without waiting here; a dead connection is found out at MAIL.
func silent(syscall.RawConn, []byte) bool { return true }
