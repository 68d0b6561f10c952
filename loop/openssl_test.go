package loop

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/session"
)

// openSSL is s_client as a client under the test's control.
type openSSL struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func (s *server) openSSL(args ...string) *openSSL {
	s.t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		s.t.Skip("no openssl here")
	}
	cmd := exec.CommandContext(s.t.Context(), "openssl", append([]string{"s_client", "-connect", s.Addr(0), "-starttls", "smtp", "-crlf"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, both := io.Pipe()
	cmd.Stdout, cmd.Stderr = both, both
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	killer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	go func() { cmd.Wait(); both.Close() }()
	s.t.Cleanup(func() { cmd.Process.Kill(); io.Copy(io.Discard, out); killer.Stop() })
	return &openSSL{s.t, in, bufio.NewReader(out)}
}

// say types a line. Some single letters are commands to s_client itself.
func (o *openSSL) say(line string) { io.WriteString(o.in, line+"\n") }

// until reads up to a line with the given beginning.
func (o *openSSL) until(beginning string) {
	o.t.Helper()
	var all strings.Builder
	for {
		line, err := o.out.ReadString('\n')
		all.WriteString(line)
		if strings.HasPrefix(line, beginning) {
			return
		}
		if err != nil {
			o.t.Fatalf("%q did not come, but %q", beginning, all.String())
		}
	}
}

// hello waits for s_client to be ready, which then shows the last line of the EHLO in clear, and greets once more.
func (o *openSSL) hello() {
	o.t.Helper()
	o.until("250 ")
	o.say("EHLO c")
	o.until("250-Hello")
	o.until("250 ")
}

// RFC 8446 §4.6.3.
func TestKeyUpdatesAreAnswered(t *testing.T) {
	s := start(t, withSTARTTLS)
	o := s.openSSL("-tls1_3")
	o.hello()
	for _, update := range []string{"K", "k", "K"} { // with and without a request for ours
		o.say(update)
		o.until("KEYUPDATE")
		o.say("NOOP")
		o.until("250 2.0.0")
	}
	o.say("EHLO " + strings.Repeat("c", 200))
	o.until("250-Hello ccc")
	o.until("250 ")
	if n := s.event(EventTLSError); n != 0 {
		t.Errorf("%d errors:\n%s", n, s.log)
	}
}

// RFC 5746 would make it safe, and nobody needs it.
func TestTheClientsRenegotiationIsRefused(t *testing.T) {
	s := start(t, withSTARTTLS)
	o := s.openSSL("-tls1_2")
	o.hello()
	o.say("R")
	io.Copy(io.Discard, o.out)
	waitFor(t, "the end", func() bool { return s.Connections() == 0 })
	if n := s.event(EventTLSError); n != 1 {
		t.Errorf("%d errors, want 1:\n%s", n, s.log)
	}
}

func TestOpenSSLsLargeRecordsAndReplies(t *testing.T) {
	s := start(t, both(withSTARTTLS, func(_ *Options, so *session.Options) { so.MaxJunk = 1 << 20 }))
	o := s.openSSL("-tls1_3", "-quiet")
	go io.WriteString(o.in, "EHLO c\n"+strings.Repeat("HELP\n", 5000)+strings.ReplaceAll(group, "\r", "")+strings.Repeat("0123456789\n", 20000)+".\nQUIT\n")
	o.until("250 ")
	for range 5000 {
		o.until("214 ")
	}
	o.until("250 2.6.0")
	o.until("221 ")
	if m := s.backend.all(); len(m) != 1 || len(m[0].data) != 20000*12 {
		t.Errorf("%d messages", len(m))
	}
}
