// Package nettest gives tests the addresses that no other test can take from them; tests use it and nothing else does.
//
// Tests of several packages run at the same time, in processes of their own. A port found by listening on port 0 and closing again belongs to
// nobody: the kernel may give it to the next who asks, and two servers with SO_REUSEPORT even share it. What a test is given here stays
// taken until the test ends: by a socket that is bound and does not listen, or by a name that only one process can have.
//
// A server that can listen on port 0 and say where it listens needs neither, as long as it does not have to come back to the same port.
package nettest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
)

// Nobody is an address of loopback at which nobody listens, nor can while the test runs: connecting is refused.
func Nobody(t testing.TB) string {
	t.Helper()
	fd, port, err := bind(syscall.SOCK_STREAM, [4]byte{127, 0, 0, 1}, 0)
	if err != nil {
		t.Fatalf("nettest: %v", err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// Address is an address of loopback for a server that must be told its port, over TCP or UDP, and that may end and come back to it. Until
// the test ends neither the kernel nor another test gives it away.
func Address(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", Port(t))
}

// Port is the port of an Address.
func Port(t testing.TB) int {
	t.Helper()
	for range lastPort - firstPort {
		port := firstPort + int(next.Add(1)%(lastPort-firstPort))
		if ticket := take(port); ticket != nil {
			t.Cleanup(func() { ticket.Close() })
			return port
		}
	}
	t.Fatal("nettest: no port is left")
	panic("unreachable")
}

// The ports lie below those that the kernel gives to clients and to whoever asks for port 0 (ip_local_port_range; 32768 and above by
// default), so that nobody comes by one of them unasked.
const firstPort, lastPort = 20_000, 30_000

// next is where the search goes on: processes begin at different places, and a port that was used a moment ago comes last.
var next = func() *atomic.Uint32 {
	var n atomic.Uint32
	n.Store(rand.Uint32N(lastPort - firstPort))
	return &n
}()

// take gives the port's ticket, or nil when somebody else has it or uses the port. The ticket is a unix socket in the abstract name space,
// which belongs to the same network namespace as the port; the kernel takes it back from a process that ends.
func take(port int) *net.UnixConn {
	ticket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: fmt.Sprintf("@fastedge-test-port-%d", port), Net: "unixgram"})
	if err != nil {
		return nil
	}
	if !free(port) {
		ticket.Close()
		return nil
	}
	return ticket
}

// free says whether nobody uses the port, at any address of IPv4.
func free(port int) bool {
	for _, kind := range []int{syscall.SOCK_STREAM, syscall.SOCK_DGRAM} {
		fd, _, err := bind(kind, [4]byte{}, port)
		if err != nil {
			return false
		}
		syscall.Close(fd)
	}
	return true
}

// bind gives a socket that is bound and does not listen. It has no SO_REUSEADDR and no SO_REUSEPORT: nobody else can bind its port, and it
// takes none that another socket has, whatever that one's state. Port 0 is any that is free.
func bind(kind int, ip [4]byte, port int) (fd, bound int, err error) {
	if fd, err = syscall.Socket(syscall.AF_INET, kind|syscall.SOCK_CLOEXEC, 0); err != nil {
		return -1, 0, os.NewSyscallError("socket", err)
	}
	if err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: ip}); err != nil {
		syscall.Close(fd)
		return -1, 0, os.NewSyscallError("bind", err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		syscall.Close(fd)
		return -1, 0, os.NewSyscallError("getsockname", err)
	}
	return fd, name.(*syscall.SockaddrInet4).Port, nil
}
