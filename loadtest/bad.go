package loadtest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// badClients are connections that misbehave while the good ones are measured. Each does one thing after the other, in turn. None of their
// messages may ever arrive: those that carry a mark are noted as refused, so that a smuggled one shows as a phantom.
type badClients struct {
	plan    *plan
	control *control
	target  target
	tally   *tally
	n       int
}

func newBadClients(p *plan, c *control, t target, n int) *badClients {
	tl := newTally()
	tl.muted = true
	return &badClients{plan: p, control: c, target: t, tally: tl, n: n}
}

// badLimit is how long one misdeed may last. badPause is between two of the same client.
const (
	badLimit = 5 * time.Second
	badPause = 20 * time.Millisecond
)

// badDeed is one way to misbehave on a connection that was just opened. It returns when it is done, refused or cut off.
type badDeed struct {
	name string
	do   func(*badTalk)
}

// badDeeds is every one of them. What they may not do: end the server, delay good clients, or get a message in.
var badDeeds = []badDeed{
	{"early-talker", func(t *badTalk) {
		t.write("EHLO early.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nQUIT\r\n")
		t.drain()
	}},
	{"smuggle-bare-lf", func(t *badTalk) { t.smuggle("\n.\n") }},
	{"smuggle-lf-crlf", func(t *badTalk) { t.smuggle("\n.\r\n") }},
	{"smuggle-crlf-lf", func(t *badTalk) { t.smuggle("\r\n.\n") }},
	{"smuggle-cr", func(t *badTalk) { t.smuggle("\r.\r") }},
	{"smuggle-crlf-cr", func(t *badTalk) { t.smuggle("\r\n.\r") }},
	{"long-line", func(t *badTalk) {
		t.hello()
		t.write("MAIL FROM:<" + strings.Repeat("x", 1<<20) + "@a.test>\r\nQUIT\r\n")
		t.drain()
	}},
	{"endless-line", func(t *badTalk) { t.flood(strings.Repeat("x", 1<<16), 64) }},
	{"nuls", func(t *badTalk) { t.hello(); t.write(strings.Repeat("\x00", 4096) + "\r\nQUIT\r\n"); t.drain() }},
	{"junk", func(t *badTalk) { t.write("GET / HTTP/1.1\r\nHost: x\r\n\r\n"); t.drain() }},
	{"rcpt-flood", func(t *badTalk) {
		t.hello()
		t.write("MAIL FROM:<a@b.test>\r\n")
		t.flood("RCPT TO:<nobody@nowhere.invalid>\r\n", 5000)
	}},
	{"auth-guessing", func(t *badTalk) { t.hello(); t.flood("AUTH PLAIN AGFkbWluAGFkbWlu\r\n", 50); t.drain() }},
	{"tls-garbage", func(t *badTalk) {
		t.hello()
		t.write("STARTTLS\r\n")
		t.line()
		t.write("\x16\x03\x01\xff\xff" + strings.Repeat("\xff", 2000))
		t.drain()
	}},
	{"reset-in-data", func(t *badTalk) {
		t.hello()
		if t.envelope(nil) {
			t.write("Subject: cut off\r\n\r\nand now")
			t.reset()
		}
	}},
	{"never-quit", func(t *badTalk) { t.hello(); t.sleep(badLimit) }},
	{"says-nothing", func(t *badTalk) { t.sleep(badLimit) }},
	{"bdat-after-refusal", func(t *badTalk) {
		t.hello()
		t.write("MAIL FROM:<>BAD\r\nRCPT TO:<nobody@nowhere.invalid>\r\nBDAT 37 LAST\r\nMAIL FROM:<evil@evil.test>\r\nNOOP x\r\n!\r\nQUIT\r\n")
		t.drain()
	}},
	{"slow-reader", func(t *badTalk) {
		t.hello()
		// Replies pile up: nobody reads them.
		t.flood(strings.Repeat("NOOP\r\n", 1000), 100)
		t.sleep(badLimit / 2)
		t.reset()
	}},
}

// run lets all of them misbehave until the run is stopped.
func (b *badClients) run() {
	var all sync.WaitGroup
	for i := range b.n {
		all.Go(func() {
			for k := i; b.control.ending.Err() == nil; k++ {
				b.misbehave(badDeeds[k%len(badDeeds)])
				b.pause(badPause)
			}
		})
	}
	all.Wait()
}

func (b *badClients) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-b.control.ending.Done():
	}
}

func (b *badClients) misbehave(d badDeed) {
	dialer := net.Dialer{Timeout: badLimit}
	conn, err := dialer.DialContext(b.control.ending, b.target.network, b.target.text)
	if err != nil {
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(b.control.ending, func() { conn.Close() })
	defer stop()
	b.tally.mu.Lock()
	b.tally.totals.BadClients++
	b.tally.mu.Unlock()
	_ = conn.SetDeadline(time.Now().Add(badLimit + time.Second))
	d.do(&badTalk{b: b, conn: conn, in: bufio.NewReader(conn)})
}

// badTalk is one such conversation. Errors end what is written and read in silence: the target may close at any point.
type badTalk struct {
	b      *badClients
	conn   net.Conn
	in     *bufio.Reader
	broken bool
}

func (t *badTalk) write(s string) {
	if !t.broken {
		_, err := t.conn.Write([]byte(s))
		t.broken = err != nil
	}
}

// line reads one whole reply and returns its code.
func (t *badTalk) line() string {
	for !t.broken {
		line, err := t.in.ReadSlice('\n')
		t.broken = err != nil
		if len(line) >= 4 && line[3] != '-' {
			return string(line[:3])
		}
	}
	return ""
}

func (t *badTalk) hello() {
	t.line()
	t.write("EHLO bad.test\r\n")
	t.line()
}

func (t *badTalk) drain() {
	_ = t.conn.SetReadDeadline(time.Now().Add(badLimit / 5))
	for !t.broken {
		_, err := t.in.Discard(max(1, t.in.Buffered()))
		t.broken = err != nil
	}
}

func (t *badTalk) flood(s string, times int) {
	_ = t.conn.SetWriteDeadline(time.Now().Add(badLimit / 2))
	for range times {
		if t.broken {
			return
		}
		t.write(s)
	}
}

func (t *badTalk) sleep(d time.Duration) { t.b.pause(d) }

// reset ends the connection with a RST.
func (t *badTalk) reset() {
	if c, ok := t.conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	t.conn.Close()
	t.broken = true
}

// envelope goes as far as 354; seq nil: a recipient of no message.
func (t *badTalk) envelope(to []byte) bool {
	if to == nil {
		to = []byte("victim@bench.test")
	}
	t.write("MAIL FROM:<sender@client.test>\r\n")
	t.line()
	t.write("RCPT TO:<" + string(to) + ">\r\n")
	t.line()
	t.write("DATA\r\n")
	return t.line() == "354"
}

// smuggle sends a message whose data has a false end of data, and behind it a second message (CVE-2023-51764 and its like). A target
// that takes the false end takes the second one, which its ledger knows as refused. What becomes of the first is the target's
// affair: it is not marked.
func (t *badTalk) smuggle(falseEnd string) {
	t.hello()
	p := t.b.plan
	seq := p.book.Next()
	p.book.Note(seq, 0, ledger.Refused)
	to := ledger.AppendRecipient(nil, p.run, seq, 0, p.Domain)
	if !t.envelope(nil) {
		return
	}
	body := fmt.Appendf(nil, "smuggled message %d\r\n", seq)
	mark := ledger.Mark{Run: p.run, Seq: seq, Body: ledger.NewBodyHash(nil).Sum(body), Head: ledger.HeadSum(nil)}
	var b bytes.Buffer
	fmt.Fprintf(&b, "Subject: carrier\r\n\r\nfirst%s", falseEnd)
	fmt.Fprintf(&b, "MAIL FROM:<smuggler@client.test>\r\nRCPT TO:<%s>\r\nDATA\r\n", to)
	b.Write(mark.Append(nil))
	fmt.Fprintf(&b, "\r\n%s\r\n.\r\nQUIT\r\n", bytes.TrimSuffix(body, []byte("\r\n")))
	t.write(b.String())
	t.drain()
}
