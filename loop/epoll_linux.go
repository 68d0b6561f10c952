package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// epollOf finds the epoll descriptor that watches fd, or -1. gnet keeps it to itself, but Linux shows in /proc what each epoll
// descriptor watches. It takes a fraction of a millisecond and is done once a loop, at the loop's first connection, when the
// list of what is watched is still short.
func epollOf(fd int) int {
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	want := fmt.Sprintf("tfd: %8d ", fd)
	for _, l := range links {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", l.Name()))
		if err != nil || target != "anon_inode:[eventpoll]" {
			continue
		}
		info, err := os.ReadFile(filepath.Join("/proc/self/fdinfo", l.Name()))
		if err != nil || !strings.Contains(string(info), want) {
			continue
		}
		n, err := strconv.Atoi(l.Name())
		if err != nil {
			continue
		}
		// What is listed may be an earlier socket with this number, of which a copy is open. Asking for what gnet has asked for
		// already changes nothing, and fails for any other socket.
		if unix.EpollCtl(n, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Fd: int32(fd), Events: unix.EPOLLIN | unix.EPOLLPRI}) == nil {
			return n
		}
	}
	return -1
}
