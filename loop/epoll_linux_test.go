package loop

import (
	"testing"

	"golang.org/x/sys/unix"
)

// An epoll descriptor goes on listing the number of a descriptor that was closed while a copy of it lives, and the number is given out anew.
func TestTheEpollOfADescriptorIsTheOneThatWatchesItNow(t *testing.T) {
	fds := func(n int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(n) })
		return n
	}
	watch := func(epoll, fd int) {
		t.Helper()
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Fd: int32(fd), Events: unix.EPOLLIN | unix.EPOLLPRI}); err != nil {
			t.Fatal(err)
		}
	}
	socket := func() int { return fds(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)) }
	stale, current := fds(unix.EpollCreate1(unix.EPOLL_CLOEXEC)), fds(unix.EpollCreate1(unix.EPOLL_CLOEXEC))
	fd := socket()
	watch(stale, fd)
	fds(unix.Dup(fd))
	if err := unix.Dup3(socket(), fd, unix.O_CLOEXEC); err != nil { // fd is another socket now
		t.Fatal(err)
	}
	watch(current, fd)
	if got := epollOf(fd); got != current {
		t.Errorf("epollOf gives %d, want %d; %d watches what had the number before", got, current, stale)
	}
}
