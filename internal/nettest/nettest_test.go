package nettest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// sharing listens as fastedge does, with SO_REUSEADDR and SO_REUSEPORT.
var sharing = net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
	const reusePort = 0xf // SO_REUSEPORT, which package syscall does not name everywhere
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, reusePort, 1) }), err)
}}

func TestNobodyAnswersAndNobodyCanListen(t *testing.T) {
	addr := Nobody(t)
	if c, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, %v", c, err)
	}
	if l, err := sharing.Listen(t.Context(), "tcp", addr); err == nil {
		l.Close()
		t.Error("another server can listen there")
	}
}

func TestAnAddressIsFreeForItsOwnerAndCanBeTakenAgain(t *testing.T) {
	addr := Address(t)
	for range 3 {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		served, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		served.Close() // who closes first leaves the port in TIME-WAIT
		c.Close()
	}
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
}

func TestATestGivesItsPortsBack(t *testing.T) {
	back := 0
	for range 3 { // another process may take one as soon as it is free
		var port int
		t.Run("has it", func(t *testing.T) {
			if port = Port(t); take(port) != nil {
				t.Error("given away twice")
			}
		})
		if ticket := take(port); ticket != nil {
			ticket.Close()
			back++
		}
	}
	if back == 0 {
		t.Error("none is given back")
	}
}

func TestAPortInUseIsNotGivenAway(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		addr := Address(t)
		_, number, _ := net.SplitHostPort(addr)
		var port int
		fmt.Sscan(number, &port)
		var used interface{ Close() error }
		var err error
		if network == "udp" {
			used, err = net.ListenPacket(network, addr)
		} else {
			used, err = sharing.Listen(context.Background(), network, addr)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer used.Close()
		if free(port) {
			t.Errorf("%s is in use and free", network)
		}
	}
}

// Processes that ask at the same time get different ports. Each shows its own and keeps them until the test has seen them all.
func TestProcessesNeverShareAPort(t *testing.T) {
	const processes, each, variable = 4, 50, "FASTEDGETEST_PORTS"
	if os.Getenv(variable) != "" {
		for range each {
			fmt.Println("port", Port(t))
		}
		fmt.Println("all")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	var outputs []*bufio.Scanner
	hold, release, err := os.Pipe() // what all of them wait for the end of
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	for range processes {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProcessesNeverShareAPort$")
		cmd.Env = append(os.Environ(), variable+"=1")
		cmd.Stdin = hold
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Wait() })
		outputs = append(outputs, bufio.NewScanner(out))
	}
	defer release.Close()
	owner := map[int]int{}
	for i, out := range outputs {
		for out.Scan() && out.Text() != "all" {
			var port int
			if _, err := fmt.Sscanf(out.Text(), "port %d", &port); err != nil {
				continue
			}
			if other, taken := owner[port]; taken {
				t.Errorf("port %d is given to processes %d and %d", port, other, i)
			}
			owner[port] = i
		}
	}
	if len(owner) != processes*each {
		t.Errorf("%d ports, want %d", len(owner), processes*each)
	}
}
