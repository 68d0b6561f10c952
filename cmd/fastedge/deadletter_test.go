package main

import (
	"bufio"
	"encoding/json"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fastedge/fastedge/queue"
)

// refusingHop is a next hop that refuses one recipient for good and defers another until it is told to be kind.
func refusingHop(t *testing.T) (addr string, kind *atomic.Bool) {
	return refusingHopAt(t, "127.0.0.1:0")
}

func refusingHopAt(t *testing.T, at string) (addr string, kind *atomic.Bool) {
	t.Helper()
	kind = new(atomic.Bool)
	ln, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	serve := func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		say := func(s string) { c.Write([]byte(s + "\r\n")) }
		say("220 hop.example ESMTP")
		for inData := false; ; {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			switch verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " "); {
			case inData:
				if line == ".\r\n" {
					inData = false
					say("250 2.0.0 Ok")
				}
			case kind.Load() && verb == "RCPT", verb == "EHLO", verb == "MAIL", verb == "RSET":
				say("250 2.0.0 Ok")
			case verb == "RCPT" && strings.Contains(line, "gone@"):
				say("550 5.1.1 No such user here")
			case verb == "RCPT" && strings.Contains(line, "full@"):
				say("452 4.2.2 Mailbox full")
			case verb == "RCPT":
				say("250 2.1.5 Ok")
			case verb == "DATA":
				inData = true
				say("354 Go ahead")
			case verb == "QUIT":
				say("221 2.0.0 Bye")
				return
			default:
				say("500 5.5.2 What?")
			}
		}
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return ln.Addr().String(), kind
}

func TestRefusedMailIsKeptDeadWithTheReplyUntilAnOperatorDecides(t *testing.T) {
	for engine, config := range map[string]string{"spool": minimalConfig, "jetstream": onJetStream(embeddedNATS(t).ClientURL(), "")} {
		t.Run(engine, func(t *testing.T) { refusedMail(t, config) })
	}
}

func refusedMail(t *testing.T, config string) {
	hop, kind := refusingHop(t)
	config += "[relay]\nnext_hop = [\"smtp://" + hop + "\"]\n"
	p := serve(t, t.TempDir(), config)
	c, err := hello(p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	send := func(rcpts ...string) (id string) {
		t.Helper()
		group, want := "MAIL FROM:<a@example.org>\r\n", []string{"250"}
		for _, r := range rcpts {
			group += "RCPT TO:<" + r + ">\r\n"
			want = append(want, "250")
		}
		if _, err := c.talk(group+"DATA\r\n", append(want, "354")...); err != nil {
			t.Fatal(err)
		}
		reply, err := c.talk("Subject: x\r\n\r\nx\r\n.\r\n", "250 2.6.0")
		if err != nil {
			t.Fatal(err)
		}
		return queuedAs.FindStringSubmatch(reply)[1]
	}
	dead := send("gone@example.net", "here@example.net")
	waiting := send("full@example.net", "here@example.net")

	show := func(id string) (e queue.Entry) {
		t.Helper()
		if err := json.Unmarshal(p.fastedge("queue", "show", "--json", id), &e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	p.wait("the refusal", func() bool { return p.stat(t).Messages["dead"] == 1 && p.stat(t).Messages["waiting"] == 1 })
	e := show(dead)
	if e.State != queue.Dead || e.Recipients[0].State != queue.Failed || !strings.Contains(e.Recipients[0].Reply, "550 5.1.1 No such user here") ||
		e.Recipients[1].State != queue.Delivered {
		t.Errorf("%+v", e)
	}
	if e = show(waiting); e.State != queue.Waiting || e.Recipients[0].State != queue.Pending || !strings.Contains(e.Recipients[0].Reply, "452 4.2.2") ||
		e.Recipients[1].State != queue.Delivered || e.Next.IsZero() {
		t.Errorf("%+v", e)
	}
	if out := string(p.fastedge("queue", "list", "--state", "dead")); !strings.Contains(out, dead) || strings.Contains(out, waiting) {
		t.Errorf("queue list --state dead:\n%s", out)
	}

	// It outlives the process, and goes out when it is released and the next hop takes it.
	p.kill()
	p = serve(t, p.dir, config)
	if e = show(dead); e.State != queue.Dead || !strings.Contains(e.Recipients[0].Reply, "550 5.1.1") {
		t.Errorf("after kill -9: %+v", e)
	}
	kind.Store(true)
	p.fastedge("queue", "release", dead)
	p.fastedge("queue", "retry", waiting)
	p.wait("both to be handed on", func() bool {
		st := p.stat(t).Messages
		return st["dead"]+st["waiting"]+st["ready"]+st["leased"] == 0
	})
}
