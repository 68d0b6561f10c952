package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
		if n, err := strconv.Atoi(l.Name()); err == nil {
			return n
		}
	}
	return -1
}
