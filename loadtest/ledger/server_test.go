package ledger

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/internal/nettest"
)

// The tests of this file run the real server, built as an operator builds it: the reader knows its files from their documentation only.

type server struct {
	t    *testing.T
	dir  string
	addr string
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
}

const serverConfig = `
[[listen]]
name = "mx"
address = "%s"
[admin]
http = ""
[queue]
min_free = "1MiB"
segment_size = "1MiB"
`

// buildServer gives a server that is not running, with an address to which it can come back.
func buildServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir(), addr: nettest.Address(t)}
	build := exec.Command("go", "build", "-o", filepath.Join(s.dir, "fastedge"), "github.com/fastedge/fastedge/cmd/fastedge")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "fastedge.toml"), fmt.Appendf(nil, serverConfig, s.addr), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// patience is how long the test waits for the server; a busy machine may take its time.
const patience = 2 * time.Minute

func (s *server) start() {
	s.t.Helper()
	s.log.Reset()
	s.cmd = exec.Command(filepath.Join(s.dir, "fastedge"), "-c", filepath.Join(s.dir, "fastedge.toml"), "--state-dir", s.state(), "serve")
	s.cmd.Stderr = &s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan struct{})
	go func() { s.cmd.Wait(); close(s.done) }()
	s.t.Cleanup(func() { s.end(os.Kill) })
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-s.done:
			s.t.Fatalf("the server ended:\n%s", &s.log)
		default:
		}
		if time.Now().After(deadline) {
			s.end(os.Kill)
			s.t.Fatalf("the server does not answer:\n%s", &s.log)
		}
	}
}

func (s *server) end(sig os.Signal) {
	s.cmd.Process.Signal(sig)
	select {
	case <-s.done:
	case <-time.After(patience):
		s.cmd.Process.Kill()
		<-s.done
		s.t.Errorf("no end %v after %v", patience, sig)
	}
}

func (s *server) state() string { return filepath.Join(s.dir, "state") }

// send sends messages on one connection and notes what becomes of them, until n are sent or the connection is lost.
func (s *server) send(b *Book, n int) {
	raw, err := net.DialTimeout("tcp", s.addr, patience)
	if err != nil {
		return
	}
	raw.SetDeadline(time.Now().Add(patience))
	c := textproto.NewConn(raw)
	defer c.Close()
	ask := func(want int, format string, args ...any) bool {
		if format != "" && c.PrintfLine(format, args...) != nil {
			return false
		}
		_, _, err := c.ReadResponse(want)
		return err == nil
	}
	if !ask(220, "") || !ask(250, "EHLO client.test") {
		return
	}
	for range n {
		seq := b.Next()
		to := 1 + int(seq)%b.Stride()
		if !ask(250, "MAIL FROM:<sender@load.test>") {
			return
		}
		for i := range to {
			if !ask(250, "RCPT TO:<%s>", AppendRecipient(nil, b.Run(), seq, i, "load.test")) {
				return
			}
		}
		if !ask(354, "DATA") {
			return
		}
		header := fmt.Sprintf("From: <sender@load.test>\r\nSubject: message %d\r\n", seq)
		body := strings.Repeat(fmt.Sprintf("This is message %d.\r\n..It has dots.\r\n.\r\n", seq), 1+int(seq*7%400))
		mark := Mark{Run: b.Run(), Seq: seq, Body: sha256.Sum256([]byte(body)), Head: HeadSum([]byte(header))}
		data := string(mark.Append(nil)) + header + "\r\n" + body
		stuffed := strings.ReplaceAll("\n"+data, "\n.", "\n..")[1:]
		if _, err := raw.Write([]byte(stuffed[:len(stuffed)/2])); err != nil {
			return
		}
		outcome := Acknowledged
		if _, err := raw.Write([]byte(stuffed[len(stuffed)/2:] + ".\r\n")); err != nil {
			outcome = Unknown
		} else if _, _, err := c.ReadResponse(250); err != nil {
			outcome = Unknown
			if _, refused := err.(*textproto.Error); refused {
				outcome = Refused
			}
		}
		for i := range to {
			b.Note(seq, i, outcome)
		}
		if outcome == Unknown {
			return
		}
	}
}

func (s *server) judge(b *Book, when string) {
	s.t.Helper()
	r, err := ReadSpool(filepath.Join(s.state(), "spool"), b.Run())
	if err != nil {
		s.t.Fatalf("%s: %v", when, err)
	}
	v := Judge(b, r)
	if !v.Pass || v.Acknowledged == 0 || v.Altered != 0 {
		s.t.Errorf("%s: %+v\n%s", when, v, &s.log)
	}
	s.t.Logf("%s: %d acknowledged, %d unknown, %d received", when, v.Acknowledged, v.Unknown, v.Received)
}

func TestReadSpoolOfARealServer(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the server")
	}
	s := buildServer(t)
	b := NewBook(NewRunID(), 4)
	s.start()
	s.send(b, 100)
	if a, _, u := b.Count(); a != 250 || u != 0 {
		t.Fatalf("%d acknowledged, %d unknown\n%s", a, u, &s.log)
	}
	s.judge(b, "running")
	other := NewBook(NewRunID(), 1)
	s.send(other, 1)

	// Killed while four connections send: some replies are never seen.
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() { s.send(b, 1<<20) })
	}
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if a, _, _ := b.Count(); a >= 1000 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the clients are not served:\n%s", &s.log)
		}
	}
	s.end(syscall.SIGKILL)
	clients.Wait()
	s.judge(b, "after kill -9")

	s.start()
	s.judge(b, "started again")
	s.send(b, 50)
	s.judge(b, "with more mail")
	s.end(syscall.SIGTERM)
	s.judge(b, "after the end")
	s.judge(other, "the other run")
}
