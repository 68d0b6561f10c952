package loadtest

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// Raw system calls on sockets that do not block: the Go scheduler need not hear of them, which is a tenth of the generator's time.

func rawRead(fd int, p []byte) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	return int(n), err
}

func rawWrite(fd int, p []byte) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	return int(n), err
}

// rawWritev writes the parts that are not empty, at most eight.
func rawWritev(fd int, parts [][]byte) (int, syscall.Errno) {
	var vec [8]syscall.Iovec
	n := 0
	for _, p := range parts {
		if len(p) > 0 && n < len(vec) {
			vec[n].Base = &p[0]
			vec[n].SetLen(len(p))
			n++
		}
	}
	written, _, err := syscall.RawSyscall(syscall.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&vec[0])), uintptr(n))
	return int(written), err
}

// readable says whether a connection has octets, or its end, to be read. It does not wait.
func readable(c net.Conn) (yes bool) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return true // it is closed
	}
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		yes = err != syscall.EAGAIN && err != syscall.EINTR
	})
	return yes || err != nil
}

const (
	sysEpollPwait2 = 441
	edgeTriggered  = 1 << 31 // syscall.EPOLLET is negative and does not fit the field
	// Without IP_BIND_ADDRESS_NO_PORT bind would take a port for good; with it connect picks one that is free towards this target.
	ipBindAddressNoPort = 24
)

// epollWait waits for events for at most d. epoll_wait's milliseconds would be too coarse for arrivals. It keeps the processor for itself, as
// the reads and writes do: telling the scheduler costs 3 to 8 % of the generator's time. So d must be short, and Run sees to a spare processor.
func epollWait(ep int, events []syscall.EpollEvent, d time.Duration) (int, error) {
	ts := syscall.NsecToTimespec(max(0, d.Nanoseconds()))
	if oldKernel.Load() {
		ms := (max(0, d) + time.Millisecond - 1) / time.Millisecond
		n, _, err := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(ms), 0, 0)
		return waited("epoll_pwait", int(n), err)
	}
	n, _, err := syscall.RawSyscall6(sysEpollPwait2, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(&ts)), 0, 0)
	if err == syscall.ENOSYS {
		oldKernel.Store(true)
		return 0, nil
	}
	return waited("epoll_pwait2", int(n), err)
}

// oldKernel is one before Linux 5.11, without epoll_pwait2.
var oldKernel atomic.Bool

func waited(call string, n int, err syscall.Errno) (int, error) {
	switch err {
	case 0:
		return n, nil
	case syscall.EINTR:
		return 0, nil
	}
	return 0, fmt.Errorf("%s: %w", call, err)
}

// target is an address to connect to.
type target struct {
	family  int
	address netip.AddrPort // not of a unix socket
	network string         // for net.Dial
	text    string
}

// sockaddr makes a new one each time: package syscall writes into it.
func (t *target) sockaddr() syscall.Sockaddr {
	switch port := int(t.address.Port()); t.family {
	case syscall.AF_INET:
		return &syscall.SockaddrInet4{Addr: t.address.Addr().As4(), Port: port}
	case syscall.AF_INET6:
		return &syscall.SockaddrInet6{Addr: t.address.Addr().As16(), Port: port}
	}
	return &syscall.SockaddrUnix{Name: t.text}
}

func resolve(o *Options) (target, error) {
	if path, ok := strings.CutPrefix(o.Target, "unix:"); ok {
		return target{family: syscall.AF_UNIX, network: "unix", text: path}, nil
	}
	host, _, _ := net.SplitHostPort(o.Target) // check has seen it
	a, err := net.ResolveTCPAddr("tcp", o.Target)
	if err != nil {
		return target{}, fmt.Errorf("target: %w", err)
	}
	ap := a.AddrPort()
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	if !ap.Addr().IsLoopback() && o.IOwnThisHost != host {
		return target{}, fmt.Errorf("target %s is %v, which is not loopback", o.Target, ap.Addr())
	}
	for _, p := range o.Sources {
		if p.Addr().Unmap().Is4() != ap.Addr().Is4() {
			return target{}, fmt.Errorf("sources %v cannot reach %v", p, ap.Addr())
		}
	}
	t := target{family: syscall.AF_INET6, address: ap, network: "tcp", text: ap.String()}
	if ap.Addr().Is4() {
		t.family = syscall.AF_INET
	}
	return t, nil
}

// dial begins a connection of slot i; done says that it is there already.
func (t *target) dial(o *Options, i int) (fd int, done bool, err error) {
	fd, err = syscall.Socket(t.family, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, false, fmt.Errorf("socket: %w (is ulimit -n high enough?)", err)
	}
	if from, ok := o.source(i); ok && t.family != syscall.AF_UNIX {
		_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, ipBindAddressNoPort, 1)
		var local syscall.Sockaddr
		if t.family == syscall.AF_INET6 {
			local = &syscall.SockaddrInet6{Addr: from.As16()}
		} else {
			local = &syscall.SockaddrInet4{Addr: from.Unmap().As4()} // resolve has compared the families
		}
		if err := syscall.Bind(fd, local); err != nil {
			syscall.Close(fd)
			return -1, false, fmt.Errorf("bind to %v: %w", from, err)
		}
	}
	if t.family != syscall.AF_UNIX {
		// What is written goes out at once: so does a real client that cares.
		_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	}
	err = syscall.Connect(fd, t.sockaddr())
	if err != nil && err != syscall.EINPROGRESS {
		syscall.Close(fd)
		return -1, false, err
	}
	return fd, err == nil, nil
}

// defaultWorkers leaves half of the processors to the target, which is likely to be on the same machine.
func defaultWorkers() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// raiseDescriptorLimit makes room for n connections, as far as the hard limit allows.
func raiseDescriptorLimit(n int) error {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return err
	}
	need := uint64(n + 100)
	if r.Cur < need {
		r.Cur = min(need, r.Max)
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r)
	}
	if r.Cur < need {
		return fmt.Errorf("%d connections need %d descriptors, and the limit is %d (ulimit -Hn)", n, need, r.Cur)
	}
	return nil
}

// processors counts those that workers hold: one keeps its processor while it waits for events. Several runs may share this process.
var processors struct {
	mu         sync.Mutex
	base, held int
}

// holdProcessors sees to one more processor than there are workers. Undone by releaseProcessors.
func holdProcessors(n int) {
	processors.mu.Lock()
	defer processors.mu.Unlock()
	if processors.held == 0 {
		processors.base = runtime.GOMAXPROCS(0)
	}
	processors.held += n
	setProcessors()
}

func releaseProcessors(n int) {
	processors.mu.Lock()
	defer processors.mu.Unlock()
	processors.held -= n
	setProcessors()
}

func setProcessors() {
	if n := max(processors.base, processors.held+1); n != runtime.GOMAXPROCS(0) && processors.base > 0 {
		runtime.GOMAXPROCS(n)
	}
}
