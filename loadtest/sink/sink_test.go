package sink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

const testRun ledger.RunID = 0x0123456789abcdef

// start serves until the test ends.
func start(t testing.TB, o Options) *Sink {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	return s
}

func serve(t testing.TB, s *Sink) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// client is a client under the test's control.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func dial(t testing.TB, s *Sink) *client {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	return &client{c, t, bufio.NewReader(c)}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, text); err != nil {
		c.t.Errorf("send %.40q: %v", text, err)
	}
}

// talk plays a transcript: "C: " lines are sent with CRLF, "S: " lines say how a line of the answer begins, "S! " is the end of the connection. Lines of
// the client that follow one another are one write.
func (c *client) talk(transcript string) {
	c.t.Helper()
	group := ""
	flush := func() {
		if group != "" {
			c.send(group)
			group = ""
		}
	}
	for _, line := range strings.Split(strings.TrimSpace(transcript), "\n") {
		line = strings.TrimLeft(line, "\t ")
		kind, text, _ := strings.Cut(line, " ")
		switch kind {
		case "C:":
			group += text + "\r\n"
		case "S:":
			flush()
			got, err := c.r.ReadString('\n')
			if err != nil || !strings.HasPrefix(got, text) || !strings.HasSuffix(got, "\r\n") {
				c.t.Fatalf("answer %q, %v; want %q", got, err, text)
			}
		case "S!":
			flush()
			if got, err := c.r.ReadString('\n'); err == nil || got != "" {
				c.t.Fatalf("answer %q, %v; want the end", got, err)
			}
		default:
			c.t.Fatalf("transcript line %q", line)
		}
	}
	flush()
}

const ehlo = `
	S: 220 sink.test ESMTP
	C: EHLO client.test
	S: 250-sink.test
	S: 250-PIPELINING
	S: 250-8BITMIME
	S: 250-SMTPUTF8
	S: 250-CHUNKING
	S: 250-ENHANCEDSTATUSCODES
	S: 250 SIZE `

const lhlo = `
	S: 220 sink.test LMTP
	C: LHLO client.test
	S: 250-sink.test
	S: 250-PIPELINING
	S: 250-8BITMIME
	S: 250-SMTPUTF8
	S: 250-CHUNKING
	S: 250-ENHANCEDSTATUSCODES
	S: 250 SIZE `

func address(seq uint64, i int) string {
	return string(ledger.AppendRecipient(nil, testRun, seq, i, "load.test"))
}

// marked is message data of the test's run.
func marked(seq uint64, body string) string {
	header := "Subject: a\r\n"
	m := ledger.Mark{Run: testRun, Seq: seq, Body: sha256.Sum256([]byte(body)), Head: ledger.HeadSum([]byte(header))}
	return string(m.Append(nil)) + header + "\r\n" + body
}

func stuffed(data string) string { return strings.ReplaceAll("\n"+data, "\n.", "\n..")[1:] + ".\r\n" }

// deliver sends a marked message to n recipients and gives the last line of the answer.
func (c *client) deliver(seq uint64, n int) string {
	c.t.Helper()
	c.talk("C: MAIL FROM:<sender@load.test>\nS: 250")
	for i := range n {
		c.talk("C: RCPT TO:<" + address(seq, i) + ">\nS: 250")
	}
	c.talk("C: DATA\nS: 354")
	c.send(stuffed(marked(seq, "Hello\r\n.dot\r\n")))
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Errorf("message %d: %v", seq, err)
	}
	return line
}

// counted gives how often the deliveries of messages to recipient 0 arrived.
func counted(s *Sink, messages int) (times []int, corrupt []bool) {
	r := s.Register().Receipts(testRun)
	for seq := range uint64(messages) {
		n, bad := 0, false
		if r != nil {
			n, bad = r.Count(seq, 0)
		}
		times, corrupt = append(times, n), append(corrupt, bad)
	}
	return times, corrupt
}

func TestTranscripts(t *testing.T) {
	for _, test := range []struct {
		name       string
		o          Options
		transcript string
		want       Counters
	}{
		{"a session", Options{}, ehlo + `
			C: NOOP
			S: 250 2.0.0
			C: VRFY someone
			S: 252
			C: mail from:<a@load.test> SIZE=100 BODY=8BITMIME RET=HDRS ENVID=x
			S: 250 2.1.0
			C: rcpt to:<b@load.test> NOTIFY=NEVER ORCPT=rfc822;b@load.test
			S: 250 2.1.5
			C: DATA
			S: 354
			C: Subject: x
			C:
			C: .
			S: 250 2.0.0
			C: RSET
			S: 250
			C: QUIT
			S: 221
			S! `, Counters{Messages: 1, Deliveries: 1, Bytes: 14}},
		{"a command group", Options{}, ehlo + `
			C: MAIL FROM:<>
			C: RCPT TO:<b@load.test>
			C: RCPT TO:<permfail@load.test>
			C: RCPT TO:<postmaster>
			C: DATA
			S: 250 2.1.0
			S: 250 2.1.5
			S: 550 5.1.1
			S: 250 2.1.5
			S: 354
			C: x
			C: .
			C: MAIL FROM:<>
			C: QUIT
			S: 250 2.0.0
			S: 250 2.1.0
			S: 221
			S! `, Counters{Messages: 1, Deliveries: 2, Bytes: 3, RefusedRcpt: 1}},
		{"HELO", Options{}, `
			S: 220
			C: MAIL FROM:<>
			S: 503
			C: HELO client.test
			S: 250 sink.test
			C: MAIL FROM:<>
			S: 250`, Counters{SyntaxErrors: 1}},
		{"order", Options{}, ehlo + `
			C: RCPT TO:<b@load.test>
			C: DATA
			C: MAIL FROM:<>
			C: MAIL FROM:<>
			C: DATA
			C: EHLO client.test
			S: 503
			S: 503
			S: 250 2.1.0
			S: 503
			S: 503
			S: 250-`, Counters{SyntaxErrors: 4}},
		{"syntax", Options{}, ehlo + `
			C: FROB
			S: 500 5.5.1
			C:
			S: 500 5.5.1
			C: LHLO client.test
			S: 500 5.5.1
			C: STARTTLS
			S: 500 5.5.1
			C: MAIL TO:<a@load.test>
			S: 501
			C: MAIL FROM:a@load.test
			S: 501
			C: MAIL FROM:<nobody>
			S: 501
			C: MAIL FROM:<a@load.test>x
			S: 501
			C: MAIL FROM:<> FROB=1
			S: 555
			C: MAIL FROM:<> SIZE=x
			S: 501
			C: MAIL FROM:<> BODY=BINARYMIME
			S: 501
			C: MAIL FROM:<ü@load.test>
			S: 553 5.6.7
			C: MAIL FROM:<ü@load.test> SMTPUTF8
			S: 250
			C: RCPT TO:<>
			S: 501
			C: RCPT TO:<b> X=1
			S: 555
			C: RCPT TO:<"b>c"@load.test>
			S: 250
			C: RCPT TO:<@relay.test:b@load.test>
			S: 250
			C: DATA x
			S: 501
			C: VRFY
			S: 501`, Counters{SyntaxErrors: 16}},
		{"LMTP: a reply for each recipient", Options{LMTP: true}, lhlo + `
			C: EHLO client.test
			S: 500
			C: MAIL FROM:<>
			C: RCPT TO:<a@load.test>
			C: RCPT TO:<tempfail@load.test>
			C: RCPT TO:<tempfail-data@load.test>
			C: RCPT TO:<permfail-data@load.test>
			C: RCPT TO:<b@load.test>
			C: DATA
			S: 250
			S: 250
			S: 450
			S: 250
			S: 250
			S: 250
			S: 354
			C: x
			C: .
			S: 250 2.0.0
			S: 451 4.3.0
			S: 554 5.6.0
			S: 250 2.0.0
			C: NOOP
			S: 250`, Counters{Messages: 1, Deliveries: 2, Bytes: 3, RefusedRcpt: 1, RefusedData: 2, SyntaxErrors: 1}},
		{"SMTP: one reply", Options{}, ehlo + `
			C: MAIL FROM:<>
			C: RCPT TO:<a@load.test>
			C: RCPT TO:<permfail-data@load.test>
			C: DATA
			S: 250
			S: 250
			S: 250
			S: 354
			C: x
			C: .
			S: 554 5.6.0
			C: NOOP
			S: 250`, Counters{RefusedData: 2}},
		{"chunks", Options{}, ehlo + `
			C: BDAT 5 LAST
			C: abc
			S: 503
			C: MAIL FROM:<>
			C: BDAT 5 LAST
			C: abc
			C: RCPT TO:<a@load.test>
			C: BDAT 5
			C: abc
			C: DATA
			C: BDAT 7
			C: a
			C: .
			C:
			S: 250
			S: 503
			S: 250
			S: 250 2.0.0 taken
			S: 503
			S: 250 2.0.0 taken
			S: 500
			C: BDAT 0 LAST
			S: 250 2.0.0 ok
			C: BDAT x
			S: 501
			S! `, Counters{Messages: 1, Deliveries: 1, Bytes: 12, SyntaxErrors: 5}},
		{"chunks, RSET between", Options{}, ehlo + `
			C: MAIL FROM:<>
			C: RCPT TO:<a@load.test>
			C: BDAT 5
			C: abc
			C: RSET
			C: BDAT 5 LAST
			C: abc
			S: 250
			S: 250
			S: 250
			S: 250
			S: 503`, Counters{SyntaxErrors: 1}},
		{"LMTP chunks", Options{LMTP: true}, lhlo + `
			C: MAIL FROM:<>
			C: RCPT TO:<a@load.test>
			C: RCPT TO:<b@load.test>
			C: BDAT 5
			C: abc
			C: BDAT 5 LAST
			C: def
			S: 250
			S: 250
			S: 250
			S: 250 2.0.0 taken
			S: 250 2.0.0 ok
			S: 250 2.0.0 ok
			C: NOOP
			S: 250`, Counters{Messages: 1, Deliveries: 2, Bytes: 10}},
		{"rules", Options{Rules: rules(t, `
			# a comment
			rcpt nobody@* 551 5.1.6 moved
			rcpt permfail@good.test 250 2.1.5 this one is fine
			data late@* 452 4.3.1 full
			`)}, ehlo + `
			C: MAIL FROM:<>
			C: RCPT TO:<NoBody@load.test>
			C: RCPT TO:<permfail@good.test>
			C: RCPT TO:<permfail@load.test>
			C: RCPT TO:<late@load.test>
			C: DATA
			S: 250
			S: 551 5.1.6 moved
			S: 250 2.1.5 this one is fine
			S: 550
			S: 250
			S: 354
			C: .
			S: 452 4.3.1 full`, Counters{RefusedRcpt: 2, RefusedData: 2}},
		{"shares of one", Options{Shares: Shares{SoftRcpt: 1}}, ehlo + `
			C: MAIL FROM:<>
			C: RCPT TO:<a@load.test>
			S: 250
			S: 450`, Counters{RefusedRcpt: 1}},
		{"all refused after the data", Options{LMTP: true, Shares: Shares{HardData: 1}}, lhlo + `
			C: MAIL FROM:<>
			C: RCPT TO:<a@load.test>
			C: RCPT TO:<b@load.test>
			C: DATA
			S: 250
			S: 250
			S: 250
			S: 354
			C: .
			S: 554
			S: 554`, Counters{RefusedData: 2}},
		{"message size at the limit and one past", Options{MaxMessageBytes: 5}, ehlo + `5
			C: MAIL FROM:<> SIZE=6
			S: 552
			C: MAIL FROM:<> SIZE=5
			C: RCPT TO:<a@load.test>
			C: DATA
			S: 250
			S: 250
			S: 354
			C: ..bc
			C: .
			S: 250
			C: MAIL FROM:<>
			C: RCPT TO:<a@load.test>
			C: DATA
			S: 250
			S: 250
			S: 354
			C: abcd
			C: .
			S: 552 5.3.4
			C: MAIL FROM:<>
			C: RCPT TO:<a@load.test>
			C: BDAT 5
			C: abc
			C: BDAT 2
			C:
			C: BDAT 0 LAST
			S: 250
			S: 250
			S: 250
			S: 552 5.3.4
			S: 552 5.3.4`, Counters{Messages: 1, Deliveries: 1, Bytes: 5, SyntaxErrors: 1, RefusedData: 2}},
		{"recipients at the limit and one past", Options{MaxRecipients: 2}, ehlo + `
			C: MAIL FROM:<>
			C: RCPT TO:<a@load.test>
			C: RCPT TO:<b@load.test>
			C: RCPT TO:<c@load.test>
			S: 250
			S: 250
			S: 250
			S: 452 4.5.3`, Counters{RefusedRcpt: 1}},
		{"line at the limit and past it", Options{MaxLineBytes: 512}, ehlo + `
			C: NOOP ` + strings.Repeat("x", 512-7) + `
			S: 250
			C: NOOP ` + strings.Repeat("x", 512-6) + `
			S: 500 5.5.2
			C: NOOP ` + strings.Repeat("x", 100_000) + `
			S: 500 5.5.2
			C: NOOP
			S: 250`, Counters{SyntaxErrors: 2}},
		{"endless line", Options{}, ehlo + `
			C: NOOP ` + strings.Repeat("x", maxDropped+readBytes) + `
			S: 500 5.5.2`, Counters{SyntaxErrors: 1}},
		{"over the rate", Options{Rate: 0.001, Burst: 1}, ehlo + `
			C: MAIL FROM:<>
			C: RSET
			C: MAIL FROM:<>
			C: NOOP
			S: 250
			S: 250
			S: 451 4.7.1
			S: 250`, Counters{OverRate: 1}},
		{"over the rate, closing", Options{Rate: 0.001, Burst: 1, RateCloses: true}, ehlo + `
			C: MAIL FROM:<>
			C: RSET
			C: MAIL FROM:<>
			S: 250
			S: 250
			S: 421 4.7.0
			S! `, Counters{OverRate: 1}},
		{"no ledger of an unknown run", Options{}, ehlo + `
			C: XLEDGER 0123456789abcdef
			S: 550
			C: XLEDGER x
			S: 501`, Counters{SyntaxErrors: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, test.o)
			c := dial(t, s)
			c.talk(test.transcript)
			got := s.Counters()
			got.Connections, got.Open = 0, 0
			if got != test.want {
				t.Errorf("\n got %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func rules(t *testing.T, script string) []Rule {
	t.Helper()
	r, err := ParseScript(strings.NewReader(script))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBareLineFeedEndsNeitherCommandNorData(t *testing.T) {
	s := start(t, Options{})
	c := dial(t, s)
	c.talk(ehlo)
	c.send("NOOP\n")
	c.talk("S: 500 5.5.2\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<a@load.test>\nS: 250\nC: DATA\nS: 354")
	c.send("a\r\n.\nb\n.\nc\n.\r\nd\r.\re\r\n.\rf\r\n.\r\n")
	c.talk("S: 250 2.0.0\nC: NOOP\nS: 250")
	if n := s.Counters(); n.Messages != 1 || n.SyntaxErrors != 1 {
		t.Errorf("%+v", n)
	}
}

func TestMessagesAreCountedWhole(t *testing.T) {
	for _, lmtp := range []bool{false, true} {
		s := start(t, Options{LMTP: lmtp})
		c := dial(t, s)
		if c.talk(map[bool]string{false: ehlo, true: lhlo}[lmtp]); lmtp {
			c.talk("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<" + address(0, 0) + ">\nS: 250\nC: RCPT TO:<" + address(0, 1) +
				">\nS: 250\nC: RCPT TO:<permfail-data@load.test>\nS: 250\nC: DATA\nS: 354")
			c.send(stuffed(marked(0, "Hello\r\n.dot\r\n")))
			c.talk("S: 250\nS: 250\nS: 554")
		} else {
			c.deliver(0, 2)
		}
		data := marked(1, strings.Repeat("..\r\n.\r\n", 20_000))
		c.talk("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<" + address(1, 0) + ">\nS: 250")
		c.send(fmt.Sprintf("BDAT 1\r\n%sBDAT %d\r\n%sBDAT 0 LAST\r\n", data[:1], len(data)-1, data[1:]))
		c.talk("S: 250\nS: 250\nS: 250")
		b := ledger.NewBook(testRun, 2)
		b.Note(0, 0, ledger.Acknowledged)
		b.Note(0, 1, ledger.Acknowledged)
		b.Note(1, 0, ledger.Acknowledged)
		if v := ledger.Judge(b, s.Register().Receipts(testRun)); !v.Pass || v.Received != 3 || v.Altered != 0 {
			t.Errorf("LMTP %v: %+v", lmtp, v)
		}
	}
}

func TestLiesShowInTheVerdict(t *testing.T) {
	for _, test := range []struct {
		name                     string
		o                        Options
		lost, corrupt, duplicate int64
		want                     Counters
	}{
		{"lose", Options{Lose: 3}, 3, 0, 0, Counters{Lost: 3}},
		{"corrupt", Options{Corrupt: 4}, 0, 2, 0, Counters{Corrupted: 2}},
		{"repeat", Options{Repeat: 5}, 0, 0, 2, Counters{Repeated: 2}},
		{"none", Options{}, 0, 0, 0, Counters{}},
	} {
		s := start(t, test.o)
		c := dial(t, s)
		c.talk(ehlo)
		b := ledger.NewBook(testRun, 1)
		for range 10 {
			seq := b.Next()
			if line := c.deliver(seq, 1); strings.HasPrefix(line, "250") {
				b.Note(seq, 0, ledger.Acknowledged)
			}
		}
		v := ledger.Judge(b, s.Register().Receipts(testRun))
		if v.Acknowledged != 10 || v.Lost != test.lost || v.Corrupt != test.corrupt || v.Duplicates != test.duplicate ||
			v.Pass != (test.name == "none") {
			t.Errorf("%s: %+v", test.name, v)
		}
		if n := s.Counters(); n.Lost != test.want.Lost || n.Corrupted != test.want.Corrupted || n.Repeated != test.want.Repeated || n.Messages != 10 {
			t.Errorf("%s: %+v", test.name, n)
		}
	}
}

// Two sinks with one seed do the same, another seed does otherwise.
func TestChanceComesFromTheSeed(t *testing.T) {
	draw := func(seed uint64) (codes string) {
		s := start(t, Options{Seed: seed, Shares: Shares{SoftRcpt: 0.3, HardRcpt: 0.3}})
		c := dial(t, s)
		c.talk(ehlo + "\nC: MAIL FROM:<>\nS: 250")
		for range 200 {
			c.send("RCPT TO:<a@load.test>\r\n")
			line, _ := c.r.ReadString('\n')
			codes += line[:1]
		}
		return codes
	}
	one := draw(1)
	if again := draw(1); again != one {
		t.Errorf("the same seed gave\n%s\n%s", one, again)
	}
	if draw(2) == one {
		t.Error("another seed gave the same")
	}
	for _, digit := range "245" {
		if n := strings.Count(one, string(digit)); n < 30 || n > 120 {
			t.Errorf("%d of 200 replies are %cyz", n, digit)
		}
	}
}

func TestConnectionIsClosedInData(t *testing.T) {
	for name, o := range map[string]Options{
		"share": {CloseShare: 1, CloseAt: 1000},
		"rule":  {Rules: rules(t, "data x@* close-after 1000")},
	} {
		for _, command := range []string{"DATA", "BDAT"} {
			s := start(t, o)
			c := dial(t, s)
			c.talk(ehlo + "\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<x@load.test>\nS: 250")
			if command == "DATA" {
				c.talk("C: DATA\nS: 354")
			} else {
				c.send("BDAT 2000 LAST\r\n")
			}
			c.send(strings.Repeat("x", 999))
			// One octet short of it, the connection is open.
			c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if _, err := c.r.ReadByte(); err == nil || !err.(net.Error).Timeout() {
				t.Errorf("%s, %s: after 999 octets: %v", name, command, err)
			}
			c.SetReadDeadline(time.Now().Add(2 * time.Minute))
			c.send("x")
			if b, err := c.r.ReadByte(); err == nil {
				t.Errorf("%s, %s: after 1000 octets: %q", name, command, b)
			}
			if n := s.Counters(); n.ClosedInData != 1 || n.Messages != 0 {
				t.Errorf("%s, %s: %+v", name, command, n)
			}
		}
	}
}

func TestDelays(t *testing.T) {
	s, err := New(Options{
		Delays: map[string]Span{"CONNECT": {1, 1}, "MAIL": {2, 2}, "BDAT": {3, 3}, "END": {4, 4}, "QUIT": {100, 200}},
		Rules:  rules(t, "rcpt a@* delay 5ns\ndata a@* delay 6ns..6ns"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var waited []time.Duration
	s.pause = func(_ context.Context, d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		waited = append(waited, d)
	}
	serve(t, s)
	c := dial(t, s)
	c.talk(ehlo + "\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<a@load.test>\nS: 250\nC: RCPT TO:<b@load.test>\nS: 250\nC: DATA\nS: 354\nC: .\nS: 250\nC: BDAT 0\nS: 503\nC: QUIT\nS: 221\nS! ")
	mu.Lock()
	defer mu.Unlock()
	if want := []time.Duration{1, 2, 5, 4, 6, 3}; len(waited) != 7 || !slices.Equal(waited[:6], want) || waited[6] < 100 || waited[6] > 200 {
		t.Errorf("waited %v, want %v and one of 100 to 200", waited, want)
	}
}

func TestRateLimitRefillsWithTime(t *testing.T) {
	var now atomic.Int64
	s := start(t, Options{Rate: 2, Burst: 3, Now: func() time.Time { return time.Unix(0, now.Load()) }})
	c := dial(t, s)
	c.talk(ehlo)
	try := func(want string) {
		t.Helper()
		c.talk("C: MAIL FROM:<>\nS: " + want + "\nC: RSET\nS: 250")
	}
	for range 3 {
		try("250")
	}
	try("451")
	now.Add(int64(499 * time.Millisecond))
	try("451")
	now.Add(int64(time.Millisecond))
	try("250")
	try("451")
	now.Add(int64(time.Hour)) // no more than the burst
	for range 3 {
		try("250")
	}
	try("451")
}

func TestConnectionsAtTheLimitAndOnePast(t *testing.T) {
	s := start(t, Options{MaxConnections: 2})
	first, second := dial(t, s), dial(t, s)
	first.talk("S: 220")
	second.talk("S: 220")
	dial(t, s).talk("S: 421 4.3.2\nS! ")
	first.talk("C: QUIT\nS: 221\nS! ")
	for s.Counters().Open > 1 {
		time.Sleep(time.Millisecond)
	}
	dial(t, s).talk("S: 220")
	if n := s.Counters(); n.Connections != 4 || n.TooMany != 1 {
		t.Errorf("%+v", n)
	}
}

func TestTimeouts(t *testing.T) {
	// No client has anything to say in time.
	s := start(t, Options{CommandTimeout: 50 * time.Millisecond, IdleTimeout: time.Hour})
	dial(t, s).talk("S: 220\nS: 421 4.4.2\nS! ")

	s = start(t, Options{CommandTimeout: time.Hour, IdleTimeout: 50 * time.Millisecond})
	c := dial(t, s)
	c.talk(ehlo + "\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<a@load.test>\nS: 250")
	c.send("DATA\r\nSubject: x\r\n")
	c.talk("S: 354\nS: 421 4.4.2\nS! ")
	c = dial(t, s)
	c.talk(ehlo + "\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<a@load.test>\nS: 250")
	c.send("BDAT 100\r\nSubject: x\r\n")
	c.talk("S: 421 4.4.2\nS! ")
}

func TestServeEndsWithItsContext(t *testing.T) {
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	c := dial(t, s)
	c.talk(ehlo)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.talk("S! ")
}

func TestSTARTTLS(t *testing.T) {
	s := start(t, Options{TLS: true})
	c := dial(t, s)
	greeting := strings.Replace(ehlo, "S: 250 SIZE", "S: 250-STARTTLS\n\tS: 250 SIZE", 1)
	c.talk(greeting + "\nC: STARTTLS x\nS: 501\nC: MAIL FROM:<>\nS: 250\nC: STARTTLS\nS: 503\nC: RSET\nS: 250")
	// What is sent ahead in the clear is dropped: RFC 3207 §4.2.
	c.talk("C: STARTTLS\nC: NOOP\nS: 220")
	secure := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
	c.Conn, c.r = secure, bufio.NewReader(secure)
	c.talk("C: MAIL FROM:<>\nS: 503" + strings.ReplaceAll(ehlo[strings.Index(ehlo, "\n\tC:"):], "S: 220 sink.test ESMTP\n", "") +
		"\nC: STARTTLS\nS: 500")
	c.deliver(0, 1)
	if n, _ := counted(s, 1); n[0] != 1 || s.Counters().Handshakes != 1 {
		t.Errorf("%v, %+v", n, s.Counters())
	}
}

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := start(t, Options{Store: dir, LMTP: true, MaxMessageBytes: 1000})
	c := dial(t, s)
	c.talk(lhlo + `
		C: MAIL FROM:<sender@load.test> BODY=8BITMIME
		C: RCPT TO:<a@load.test>
		C: RCPT TO:<permfail-data@load.test>
		C: DATA
		S: 250
		S: 250
		S: 250
		S: 354
		C: Subject: x
		C:
		C: ..dot
		C: .
		S: 250
		S: 554
		C: MAIL FROM:<sender@load.test>
		C: RCPT TO:<permfail-data@load.test>
		C: DATA
		S: 250
		S: 250
		S: 354
		C: not wanted
		C: .
		S: 554
		C: MAIL FROM:<sender@load.test>
		C: RCPT TO:<a@load.test>
		C: DATA
		S: 250
		S: 250
		S: 354
		C: ` + strings.Repeat("x", 1000) + `
		C: .
		S: 552
		C: MAIL FROM:<sender@load.test>
		C: RCPT TO:<a@load.test>
		C: BDAT 3
		C: x
		C: RSET
		C: QUIT
		S: 250
		S: 250
		S: 250
		S: 250
		S: 221
		S! `)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	data, _ := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if filepath.Ext(files[0].Name()) != ".eml" || string(data) != "Subject: x\r\n\r\n.dot\r\n" {
		t.Errorf("%s: %q", files[0].Name(), data)
	}
	var e storedEnvelope
	text, _ := os.ReadFile(filepath.Join(dir, files[1].Name()))
	if err := json.Unmarshal(text, &e); err != nil || e.ReversePath != "sender@load.test" || !slices.Equal(e.Recipients, []string{"a@load.test"}) ||
		e.Protocol != "LMTP" || e.Hello != "client.test" || e.Parameters != "BODY=8BITMIME" {
		t.Errorf("%s: %+v, %v", text, e, err)
	}
}

func TestStoreThatFailsIsSaid(t *testing.T) {
	dir := t.TempDir()
	s := start(t, Options{Store: filepath.Join(dir, "store")})
	if err := os.Remove(filepath.Join(dir, "store")); err != nil {
		t.Fatal(err)
	}
	c := dial(t, s)
	c.talk(ehlo)
	if line := c.deliver(0, 1); !strings.HasPrefix(line, "451 4.3.0") {
		t.Errorf("%q", line)
	}
	if n, _ := counted(s, 1); n[0] != 0 || s.Counters().StorageErrors != 1 {
		t.Errorf("%v, %+v", n, s.Counters())
	}
}

func TestQuery(t *testing.T) {
	s := start(t, Options{})
	c := dial(t, s)
	c.talk(ehlo)
	for seq := range uint64(300) {
		c.deliver(seq*7919, 1+int(seq%3))
	}
	c.talk("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<stranger@load.test>\nS: 250\nC: DATA\nS: 354\nC: .\nS: 250")
	r, err := Query(s.Addr().String(), testRun)
	if err != nil {
		t.Fatal(err)
	}
	here := s.Register().Receipts(testRun)
	if !bytes.Equal(r.AppendTo(nil), here.AppendTo(nil)) || r.Strangers() != 1 {
		t.Error("the answer differs from what is here")
	}
	if received, _, _, _ := r.Totals(); received != 600 {
		t.Errorf("%d received", received)
	}
	if _, err := Query(s.Addr().String(), 1); !errors.Is(err, ErrUnknownRun) {
		t.Errorf("an unknown run: %v", err)
	}
}

func TestQueryOverAUnixSocket(t *testing.T) {
	addr := "unix:" + filepath.Join(t.TempDir(), "sink")
	s := start(t, Options{Address: addr})
	s.Register().Enter([]byte(address(1, 1)), ledger.Finding{})
	if r, err := Query(addr, testRun); err != nil || len(r.Corrupt()) != 1 {
		t.Errorf("%v", err)
	}
}

func TestQueryDoesNotTrustTheAnswer(t *testing.T) {
	for _, answer := range []string{"", "220 hello\r\n", "554 no\r\n", "220 hello\r\n250 end\r\n", "220 hello\r\n250-!!!\r\n", "220 hello\r\n250-AAAA\r\n250 end\r\n",
		"220 hello\r\n" + strings.Repeat("x", 100_000), strings.Repeat("220-x\r\n", 10)} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				io.WriteString(c, answer)
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			}
		}()
		if _, err := Query(l.Addr().String(), testRun); err == nil {
			t.Errorf("%.40q was taken", answer)
		}
		l.Close()
	}
}

// net.Pipe has no address: whoever is not known to be on loopback gets nothing.
func TestLedgerIsForLoopbackOnly(t *testing.T) {
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Register().Enter([]byte(address(1, 1)), ledger.Finding{})
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() { newSession(context.Background(), s, there, 1).run(); there.Close(); close(done) }()
	here.SetDeadline(time.Now().Add(2 * time.Minute))
	c := &client{here, t, bufio.NewReader(here)}
	c.talk("S: 220\nC: XLEDGER " + testRun.String() + "\nS: 550 5.7.1\nC: QUIT\nS: 221\nS! ")
	<-done
	if isLoopback(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}) || !isLoopback(&net.TCPAddr{IP: net.IPv6loopback}) {
		t.Error("addresses are told apart wrongly")
	}
}

func TestOptionsWithoutMeaningAreRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"line length": {MaxLineBytes: 511},
		"long lines":  {MaxLineBytes: MaxMaxLineBytes + 1},
		"negative":    {MaxMessageBytes: -1},
		"share":       {CloseShare: 1.1},
		"shares":      {Shares: Shares{SoftData: 0.6, HardData: 0.6}},
		"rate":        {Rate: -1},
		"verb":        {Delays: map[string]Span{"FROB": {1, 1}}},
		"span":        {Delays: map[string]Span{"MAIL": {2, 1}}},
		"host name":   {Hostname: "a\r\nb"},
		"rules":       {Rules: make([]Rule, MaxRules+1)},
		"address":     {Address: "no such address"},
	} {
		if s, err := New(o); err == nil {
			s.Close()
			t.Errorf("%s: taken", name)
		}
	}
}

func TestScriptMistakesAreTold(t *testing.T) {
	for _, text := range []string{"frob a@* 550 5.1.1 no", "rcpt", "rcpt a@*", "rcpt a@* 550", "rcpt a@* 350 x", "rcpt a@* 5x0 x", "rcpt a@* 550 \x01",
		"data a@* delay", "data a@* delay 2", "data a@* delay 0s", "data a@* delay 2s..1s", "data a@* close-after", "data a@* close-after 0", "rcpt a@* close-after 5",
		strings.Repeat("rcpt a@* delay 1s\n", MaxRules+1)} {
		if _, err := ParseScript(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(strings.Repeat("rcpt a@* delay 1s..2s\n", MaxRules)), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := ReadScript(file); err != nil || len(r) != MaxRules || r[0].Delay != (Span{time.Second, 2 * time.Second}) {
		t.Errorf("%d rules, %v", len(r), err)
	}
}

func TestPatterns(t *testing.T) {
	for _, test := range []struct {
		pattern, addr string
		want          bool
	}{
		{"a@b", "a@b", true}, {"a@b", "A@B", true}, {"a@b", "a@bc", false}, {"*", "", true}, {"*", "a@b", true},
		{"a@*", "a@b", true}, {"a@*", "a@", true}, {"a@*", "b@b", false}, {"*@b", "a@b", true}, {"*@b", "a@bb", false},
		{"a*b*c", "abc", true}, {"a*b*c", "aXbXbXc", true}, {"a*b*c", "acb", false}, {"a*bb*b", "abb", false}, {"a**c", "abc", true}, {"*b*", "abc", true},
		{"aa*aa", "aaa", false}, {"", "", true}, {"", "a", false},
	} {
		if got := matches(test.pattern, []byte(test.addr)); got != test.want {
			t.Errorf("%q matches %q: %v", test.pattern, test.addr, got)
		}
	}
}

// wholeData is the oracle: message data and what follows, by RFC 5321 §4.1.1.4 and §4.5.2 taken literally.
func wholeData(in string) (data, rest string, done bool) {
	text := "\r\n" + in
	if body, rest, found := strings.Cut(text, "\r\n.\r\n"); found {
		return strings.ReplaceAll(body+"\r\n", "\r\n.", "\r\n")[2:], rest, true
	}
	return "", "", false
}

// Every string of up to 7 symbols that the machine tells apart, in any split.
func TestDataAllShortInputs(t *testing.T) {
	feed := func(pieces ...string) (data, rest string, done bool) {
		var state dataState
		for _, p := range pieces {
			if done {
				rest += p
				continue
			}
			var n int
			n, done = state.unstuff([]byte(p), func(b []byte) { data += string(b) })
			if done {
				rest = p[n:]
			}
		}
		return data, rest, done
	}
	var try func(text string, depth int)
	try = func(text string, depth int) {
		want, wantRest, wantDone := wholeData(text)
		whole, rest, done := feed(text)
		if done != wantDone || done && (whole != want || rest != wantRest) {
			t.Fatalf("%q: %q, %q, %v; want %q, %q, %v", text, whole, rest, done, want, wantRest, wantDone)
		}
		for i := range text {
			if d, r, ok := feed(text[:i], text[i:]); ok != done || done && (d != whole || r != rest) {
				t.Fatalf("%q cut at %d: %q, %q, %v; whole: %q, %q, %v", text, i, d, r, ok, whole, rest, done)
			}
		}
		if depth > 0 {
			for _, c := range ".\r\na" {
				try(text+string(c), depth-1)
			}
		}
	}
	try("", 7)
}

func FuzzSession(f *testing.F) {
	f.Add("EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n.\r\nQUIT\r\n", 10)
	f.Add("EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 3\r\nabcBDAT 0 LAST\r\n", 20)
	f.Add("HELO a\r\nMAIL FROM:<@a:b@c> SIZE=1\r\nVRFY\r\nXLEDGER 0\r\n", 5)
	s, err := New(Options{MaxMessageBytes: 100, MaxRecipients: 3, MaxLineBytes: 512})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	talk := func(pieces ...string) string {
		var out bytes.Buffer
		var in []io.Reader
		for _, p := range pieces {
			in = append(in, strings.NewReader(p))
		}
		newSession(context.Background(), s, &memoryConn{r: io.MultiReader(in...), w: &out}, 1).run()
		return out.String()
	}
	f.Fuzz(func(t *testing.T, text string, cut int) {
		cut = max(0, min(cut, len(text)))
		want := talk(text)
		if got := talk(text[:cut], text[cut:]); got != want {
			t.Errorf("cut at %d:\n%q\nwhole:\n%q", cut, got, want)
		}
	})
}

// memoryConn is a connection whose client has said all it has to say.
type memoryConn struct {
	net.Conn
	r io.Reader
	w io.Writer
}

func (c *memoryConn) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *memoryConn) Write(p []byte) (int, error)      { return c.w.Write(p) }
func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }
func (c *memoryConn) RemoteAddr() net.Addr             { return &net.UnixAddr{} }

// Beside a twin that reads line by line, as net/textproto does.
func BenchmarkData(b *testing.B) {
	text := []byte(stuffed(strings.Repeat("Hello, this is a line of a message.\r\n", 110)))
	b.Run("bulk/size=4KiB", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(text)))
		total := 0
		out := func(p []byte) { total += len(p) }
		for b.Loop() {
			var state dataState
			state.unstuff(text, out)
		}
	})
	b.Run("textproto/size=4KiB", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			r := textproto.NewReader(bufio.NewReader(bytes.NewReader(text)))
			io.Copy(io.Discard, r.DotReader())
		}
	})
}

// A session without a network: commands in one group, 4 KiB of data, counted. "hash" is the price of SHA-256 alone.
func BenchmarkSession(b *testing.B) {
	s, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	data := marked(1, strings.Repeat("Hello, this is a line of a message.\r\n", 110))
	one := "MAIL FROM:<sender@load.test>\r\nRCPT TO:<" + address(1, 0) + ">\r\nDATA\r\n" + stuffed(data)
	const messages = 100
	all := "EHLO a\r\n" + strings.Repeat(one, messages)
	b.Run("sink/size=4KiB", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(all)))
		for b.Loop() {
			newSession(context.Background(), s, &memoryConn{r: strings.NewReader(all), w: io.Discard}, 1).run()
		}
		b.ReportMetric(float64(b.N)*messages/b.Elapsed().Seconds(), "msg/s")
	})
	b.Run("hash/size=4KiB", func(b *testing.B) {
		for b.Loop() {
			for range messages {
				sha256.Sum256([]byte(data))
			}
		}
		b.ReportMetric(float64(b.N)*messages/b.Elapsed().Seconds(), "msg/s")
	})
}
