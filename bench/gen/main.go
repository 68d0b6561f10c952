//go:build linux

// Gen presses on an SMTP server with a closed loop of connections and prints what it saw as one JSON object.
//
// It exists for bench/server and bench/idle: one thread, one epoll loop, no allocation per message, so that on a core
// of its own it is faster than the servers it measures, and so that it can send MAIL, RCPT and DATA as one command
// group, which smtp-source cannot. It believes replies by their first digit, keeps no ledger and sends the same
// message again and again; whether mail was lost is not its business.
//
// With -watch PID it also reads the CPU time of that process and all its descendants before the first connection and
// after the last one, each time when the process has come to rest, so that the figure covers the load, what the load
// left to do, and nothing else (see cpu.go).
//
// It imports nothing of fastedge, so that it can be pointed at any server.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"
)

func main() {
	var o options
	addr := flag.String("addr", "127.0.0.1:2525", "server, address and port")
	flag.IntVar(&o.connections, "connections", 100, "connections open at the same time")
	flag.IntVar(&o.messages, "messages", 100, "messages (with -session-only: sessions) for each of -connections")
	flag.IntVar(&o.perSession, "per-connection", 0, "messages in one session, then QUIT and connect again; 0 means all")
	flag.IntVar(&o.size, "size", 4096, "octets of message data, header section included")
	flag.StringVar(&o.mode, "mode", "plain", "plain: 4 round trips; pipelined: MAIL, RCPT and DATA in one write; "+
		"tight: the message data and the next MAIL, RCPT and DATA in one write")
	flag.BoolVar(&o.sessionOnly, "session-only", false, "connect, read the banner, EHLO, QUIT; no mail")
	flag.IntVar(&o.idle, "idle", 0, "open this many connections, EHLO on each, print \"held N\" and hold them")
	flag.DurationVar(&o.hold, "hold", 20*time.Second, "how long -idle holds")
	flag.IntVar(&o.sources, "sources", 1, "client addresses 127.0.0.1, 127.0.0.2 … to connect from; one gives out after some 28,000 ports")
	flag.DurationVar(&o.timeout, "timeout", time.Minute, "give up after this long")
	watch := flag.Int("watch", 0, "report the CPU time of this process and its descendants")
	quiet := flag.Duration("quiet", 15*time.Second, "with -watch: wait at most this long, before and after the load, for the server to have nothing to do")
	flag.Parse()

	ap, err := netip.ParseAddrPort(*addr)
	if err != nil || !ap.Addr().Is4() {
		fail("-addr: want an IPv4 address and a port, have %q", *addr)
	}
	o.server = syscall.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	if o.mode != "plain" && o.mode != "pipelined" && o.mode != "tight" {
		fail("-mode: want plain, pipelined or tight, have %q", o.mode)
	}

	// One thread: a second one would share the core with the first and add switches.
	runtime.GOMAXPROCS(1)
	runtime.LockOSThread()
	g, err := newGenerator(o)
	if err != nil {
		fail("%v", err)
	}

	var before time.Duration
	if *watch != 0 {
		if before, err = quietCPU(*watch, *quiet); err != nil {
			fail("-watch: %v", err)
		}
	}
	if err := g.run(); err != nil {
		fail("%v", err)
	}
	if o.idle > 0 {
		fmt.Printf("held %d\n", g.held)
		time.Sleep(o.hold)
		if g.held < o.idle {
			fail("only %d of %d connections held: %s", g.held, o.idle, g.firstError)
		}
		return
	}
	res := g.result()
	if *watch != 0 {
		after, err := quietCPU(*watch, *quiet)
		if err != nil {
			fail("-watch: %v (did the server die?)", err)
		}
		res.ServerCPUSeconds = (after - before).Seconds()
		if n := res.units(o.sessionOnly); n > 0 {
			res.ServerCPUMicros = res.ServerCPUSeconds * 1e6 / float64(n)
		}
	}
	out, _ := json.Marshal(res)
	fmt.Println(string(out))
	if res.Errors > 0 {
		os.Exit(1)
	}
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "gen: "+format+"\n", args...)
	os.Exit(2)
}

type options struct {
	server                                  syscall.SockaddrInet4
	connections, messages, perSession, size int
	mode                                    string
	sessionOnly                             bool
	idle, sources                           int
	hold, timeout                           time.Duration
}

// result is what gen prints. Durations carry their unit in the name.
type result struct {
	Messages    int     `json:"messages"` // acknowledged with 2yz after the message data
	Sessions    int     `json:"sessions"` // ended with QUIT and 2yz
	Replies2yz  int     `json:"replies_2yz"`
	Errors      int     `json:"errors"` // unexpected replies, broken connections, connections not done in time
	FirstError  string  `json:"first_error,omitempty"`
	Seconds     float64 `json:"seconds"` // from the first connect to the last QUIT
	PerSecond   float64 `json:"per_second"`
	AckP50Ms    float64 `json:"ack_p50_ms"` // last octet of message data written to its reply read
	AckP99Ms    float64 `json:"ack_p99_ms"`
	GenCPUMicro float64 `json:"gen_cpu_us"` // own user and system time for each message or session

	ServerCPUSeconds float64 `json:"server_cpu_seconds,omitempty"`
	ServerCPUMicros  float64 `json:"server_cpu_us,omitempty"`
}

// units is what figures are divided by: messages, or sessions where no mail was sent.
func (r result) units(sessionOnly bool) int {
	if sessionOnly {
		return r.Sessions
	}
	return r.Messages
}
