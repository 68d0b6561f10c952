package loop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastedge/fastedge/internal/nettest"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

// memory is a backend that keeps messages, and can be told to wait or fail.
type memory struct {
	mu       sync.Mutex
	messages []message
	fail     error
	room     error
	hold     chan struct{} // when set, each commit takes a token
	commits  int
}

type message struct {
	id, from string
	to       []string
	data     []byte
	client   netip.AddrPort
	listener string
	protocol string
}

func (m *memory) Commit(batch []*queue.Submission) {
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	if hold != nil {
		<-hold
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commits++
	for _, s := range batch {
		if s.Err = m.fail; s.Err != nil {
			continue
		}
		e := s.Env
		msg := message{id: e.ID.String(), from: string(e.ReversePath), client: e.Client.Addr, listener: e.Client.Listener, protocol: e.Client.Protocol}
		for _, r := range e.Recipients {
			msg.to = append(msg.to, string(r.Path))
		}
		msg.data = bytes.Join(e.Data.AppendBuffers(nil), nil)
		m.messages = append(m.messages, msg)
	}
}

func (m *memory) Room() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.room
}

func (m *memory) Close() error { return nil }

func (m *memory) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *memory) all() []message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]message(nil), m.messages...)
}

// counter is a Meter that any goroutine may read.
type counter struct {
	noMeter
	events   [NumEvents]atomic.Int64
	results  [NumConnResults]atomic.Int64
	refusals atomic.Int64
}

func (c *counter) NewLoop() LoopMeter                            { return c }
func (c *counter) Event(e Event)                                 { c.events[e].Add(1) }
func (c *counter) Connection(_ int, r ConnResult)                { c.results[r].Add(1) }
func (c *counter) Refusal(session.Stage, session.Reason, uint16) { c.refusals.Add(1) }

type server struct {
	*Server
	t       *testing.T
	backend *memory
	writer  *queue.Writer
	meter   *counter
	log     *lockedBuffer
	served  chan error
	ahead   time.Duration // see pass
}

// patience is how long a test waits for what must come; a busy machine may take its time.
const patience = 2 * time.Minute

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start runs a server on a free port of loopback until the test ends.
func start(t *testing.T, change func(*Options, *session.Options)) *server {
	t.Helper()
	s := &server{t: t, backend: &memory{}, meter: &counter{}, log: &lockedBuffer{}, served: make(chan error, 1)}
	s.writer = queue.NewWriter(s.backend, queue.Limits{})
	so := session.Options{Hostname: "mx.example.net", Listener: "mx", MaxJunk: 1 << 30}
	o := Options{
		Listeners: []Listener{{Name: "mx", Network: "tcp", Address: "127.0.0.1:0"}},
		Writer:    s.writer,
		Budget:    pool.NewBudget(64 << 20),
		Loops:     2,
		Tick:      10 * time.Millisecond,
		Meter:     s.meter,
		Log:       slog.New(slog.NewTextHandler(s.log, nil)),
	}
	if change != nil {
		change(&o, &so)
	}
	for i := range o.Listeners {
		if o.Listeners[i].Session == nil {
			o.Listeners[i].Session = session.NewServer(so)
		}
	}
	var err error
	if s.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	go func() { s.served <- s.Serve() }()
	t.Cleanup(func() {
		s.Server.Close()
		select {
		case <-s.served:
		case <-time.After(patience):
			t.Error("Serve did not return after Close")
		}
		s.release()
		s.writer.Close(context.Background())
	})
	s.WaitUp()
	return s
}

// hold makes commits wait for tokens until release.
func (s *server) hold() chan struct{} {
	ch := make(chan struct{})
	s.backend.set(func() { s.backend.hold = ch })
	return ch
}

func (s *server) release() {
	s.backend.set(func() {
		if s.backend.hold != nil {
			close(s.backend.hold)
			s.backend.hold = nil
		}
	})
}

// pass lets time pass on the loops: what is due within d happens now. Limits in tests are hours, so that none is over before the test
// lets it, however slow the machine is. What is placed afterwards is due no earlier than the next pass.
func (s *server) pass(d time.Duration) {
	s.ahead += d
	for i := range *s.loops.Load() {
		s.on(i, func(lp *loop) { lp.tick(time.Now().Add(s.ahead)) })
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// client is a plain SMTP client under the test's control.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (s *server) dial() *client {
	s.t.Helper()
	return dial(s.t, "tcp", s.Addr(0))
}

func dial(t *testing.T, network, addr string) *client {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, text); err != nil {
		c.t.Fatalf("send %.40q: %v", text, err)
	}
}

// reply reads one reply.
func (c *client) reply() string {
	c.t.Helper()
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		all.WriteString(line)
		if err != nil {
			c.t.Fatalf("reading a reply: %v (so far %q)", err, all.String())
		}
		if len(line) < 4 || line[3] != '-' {
			return all.String()
		}
	}
}

// expect reads a reply for each prefix and gives the last.
func (c *client) expect(prefixes ...string) (last string) {
	c.t.Helper()
	for _, p := range prefixes {
		if last = c.reply(); !strings.HasPrefix(last, p) {
			c.t.Fatalf("got %q, want %q", last, p)
		}
	}
	return last
}

func (c *client) expectEOF() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.t.Fatalf("not closed cleanly: %v, %q", err, rest)
	}
}

const group = "MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"

func TestAMessageFromNetSMTPArrivesByteForByte(t *testing.T) {
	s := start(t, nil)
	body := "Subject: hello\r\n\r\n.leading dot\r\n..two\r\n" + strings.Repeat("x", 998) + "\r\n"
	if err := smtp.SendMail(s.Addr(0), nil, "a@example.org", []string{"b@example.net", "c@example.net"}, []byte(body)); err != nil {
		t.Fatal(err)
	}
	got := s.backend.all()
	if len(got) != 1 || string(got[0].data) != body || got[0].from != "a@example.org" || len(got[0].to) != 2 {
		t.Fatalf("got %+v", got)
	}
	if got[0].client.Addr() != netip.MustParseAddr("127.0.0.1") || got[0].listener != "mx" || got[0].protocol != "UTF8SMTP" { // net/smtp asks for SMTPUTF8 whenever it is offered
		t.Errorf("client facts %v %q %q", got[0].client, got[0].listener, got[0].protocol)
	}
}

func TestThe250NamesTheIdOfTheEnvelopeAndComesAfterTheCommit(t *testing.T) {
	s := start(t, nil)
	hold := s.hold()
	c := s.dial()
	c.expect("220 mx.example.net ESMTP")
	c.send("EHLO c\r\n" + group)
	c.expect("250", "250 2.1.0", "250 2.1.5", "354")
	c.send("x\r\n.\r\n")
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if b, err := c.r.Peek(1); err == nil {
		t.Fatalf("%q before the commit", b)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	hold <- struct{}{}
	reply := c.expect("250 2.6.0 Message queued as ")
	if id := strings.TrimSpace(strings.TrimPrefix(reply, "250 2.6.0 Message queued as ")); id != s.backend.all()[0].id {
		t.Errorf("reply names %q, envelope is %q", id, s.backend.all()[0].id)
	}
}

func TestPipelinedGroupsBehindTheDataWaitForTheCommitAndAreAnsweredInOrder(t *testing.T) {
	s := start(t, nil)
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n")
	c.expect("250")
	var all strings.Builder
	for i := range 50 {
		fmt.Fprintf(&all, "%sSubject: %d\r\n\r\n.\r\n", group, i)
	}
	c.send(all.String() + "QUIT\r\n")
	for range 50 {
		c.expect("250 2.1.0", "250 2.1.5", "354", "250 2.6.0")
	}
	c.expect("221 2.0.0 Bye")
	c.expectEOF()
	for i, m := range s.backend.all() {
		if want := fmt.Sprintf("Subject: %d\r\n\r\n", i); string(m.data) != want {
			t.Fatalf("message %d is %q", i, m.data)
		}
	}
}

func TestAFailedCommitIs4yzAndTheSessionGoesOn(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{errors.New("disk on fire"), "451 4.3.0"},
		{queue.ErrFull, "452 4.3.1"},
		{fmt.Errorf("spool: %w", queue.ErrNoSpace), "452 4.3.1"},
	} {
		s := start(t, nil)
		s.backend.set(func() { s.backend.fail = tc.err })
		c := s.dial()
		c.expect("220")
		c.send("EHLO c\r\n" + group + "x\r\n.\r\n")
		c.expect("250", "250", "250", "354", tc.want)
		s.backend.set(func() { s.backend.fail = nil })
		c.send(group + "x\r\n.\r\n")
		c.expect("250", "250", "354", "250 2.6.0")
	}
}

func TestMailIsRefusedWhileTheQueueHasNoRoomAndTakenAgainAfterwards(t *testing.T) {
	s := start(t, nil)
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n")
	c.expect("250")
	s.backend.set(func() { s.backend.room = queue.ErrNoSpace })
	waitFor(t, "452", func() bool {
		c.send("MAIL FROM:<a@example.org>\r\n")
		r := c.reply()
		if strings.HasPrefix(r, "250") {
			c.send("RSET\r\n")
			c.expect("250")
		}
		return strings.HasPrefix(r, "452 4.3.1")
	})
	s.backend.set(func() { s.backend.room = nil })
	waitFor(t, "250", func() bool {
		c.send("MAIL FROM:<a@example.org>\r\n")
		return strings.HasPrefix(c.reply(), "250 2.1.0")
	})
}

func TestMailIsTakenByAnIdleLoopAsSoonAsThereIsRoom(t *testing.T) {
	s := start(t, func(o *Options, _ *session.Options) { o.Loops = 1; o.Tick = time.Hour }) // no tick comes between short connections
	s.backend.set(func() { s.backend.room = queue.ErrNoSpace })
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\nMAIL FROM:<a@example.org>\r\nQUIT\r\n")
	c.expect("250", "452 4.3.1", "221")
	c.expectEOF()
	waitFor(t, "the loop to be idle", func() bool { return s.Connections() == 0 })
	s.backend.set(func() { s.backend.room = nil })
	c = s.dial()
	c.expect("220")
	c.send("EHLO c\r\nMAIL FROM:<a@example.org>\r\n")
	c.expect("250", "250 2.1.0")
}

func TestConnectionLimitIsExactAndNamed(t *testing.T) {
	s := start(t, func(o *Options, _ *session.Options) { o.MaxConnections = 3; o.Loops = 1 })
	var open []*client
	for range 3 {
		c := s.dial()
		c.expect("220")
		open = append(open, c)
	}
	c := s.dial()
	if r := c.expect("421 4.3.2"); !strings.Contains(r, "limits.connections") {
		t.Errorf("%q does not name the limit", r)
	}
	c.expectEOF()
	if n := s.meter.results[ConnOverLimit].Load(); n != 1 {
		t.Errorf("%d counted over the limit, want 1", n)
	}
	open[0].Close()
	waitFor(t, "a place", func() bool { return s.Connections() == 2 })
	s.dial().expect("220")
}

func TestConnectionLimitIsExactOverAllLoops(t *testing.T) {
	s := &Server{o: Options{MaxConnections: 1000}}
	var admitted atomic.Int64
	var loops sync.WaitGroup
	for range 8 {
		loops.Go(func() {
			for range 1000 {
				if s.admit() {
					admitted.Add(1)
				}
			}
		})
	}
	loops.Wait()
	if admitted.Load() != 1000 || s.Connections() != 1000 {
		t.Errorf("%d admitted and %d counted, want 1000", admitted.Load(), s.Connections())
	}
}

// longNOOP makes floods of many bytes and few replies.
var longNOOP = "NOOP " + strings.Repeat("x", 500) + "\r\n"

func TestAClientThatFloodsBehindASuspendedSessionIsBounded(t *testing.T) {
	s := start(t, nil)
	s.hold()
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n" + group + "x\r\n.\r\n")
	c.expect("250", "250", "250", "354")
	// The client sends on and on; the kernel takes some megabytes, then the client is stopped.
	flood := bytes.Repeat([]byte(longNOOP), 128)
	sent := 0
	for stopped := false; !stopped; {
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Write(flood[sent%len(flood):])
		sent += n
		stopped = err != nil && s.event(EventPaused) > 0
		if sent > 64<<20 {
			t.Fatal("64 MiB taken behind a suspended session")
		}
	}
	s.release()
	c.expect("250 2.6.0")
	// It is read again: all that was sent is answered.
	c.SetDeadline(time.Now().Add(patience))
	for range sent / len(longNOOP) {
		c.expect("250 2.0.0")
	}
}

func TestAClientThatNeverReadsIsBoundedAndClosed(t *testing.T) {
	s := start(t, func(o *Options, _ *session.Options) { o.UnreadTimeout = 200 * time.Millisecond })
	c := s.dial()
	c.expect("220")
	flood := bytes.Repeat([]byte("HELP\r\n"), 10<<10)
	c.SetWriteDeadline(time.Now().Add(patience))
	for {
		if _, err := c.Write(flood); err != nil {
			break
		}
	}
	waitFor(t, "the slow reader to be closed", func() bool { return s.meter.events[EventSlowReader].Load() == 1 && s.Connections() == 0 })
}

// onLoop runs f on the only loop's goroutine and waits for it.
func (s *server) onLoop(f func(lp *loop)) { s.on(0, f) }

// on runs f on the goroutine of loop i.
func (s *server) on(i int, f func(lp *loop)) {
	lp, done := (*s.loops.Load())[i], make(chan struct{})
	lp.ex.execute(func() { f(lp); close(done) })
	<-done
}

func TestACommitDoesNotFeedASessionWhoseClientDoesNotRead(t *testing.T) {
	s := start(t, func(o *Options, _ *session.Options) { o.Loops = 1; o.UnreadTimeout = time.Minute })
	c := s.dial()
	c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	c.expect("220")
	c.send("EHLO c\r\n")
	c.expect("250")
	unit := strings.Repeat("HELP\r\n", 100) + group + "x\r\n.\r\n"
	go io.WriteString(c.Conn, strings.Repeat(unit, 2000))
	var unsent, waiting int
	waitFor(t, "the session to be blocked with its messages committed", func() (ok bool) {
		s.onLoop(func(lp *loop) {
			for _, c := range lp.blocked {
				unsent, waiting = c.unsent(), c.buffered()
				ok = c.phase != phaseSuspended && waiting > 0
			}
		})
		return ok
	})
	if unsent > flushBytes+8*len(unit) {
		t.Errorf("%d bytes of replies wait, %d bytes of commands are left: it was fed on", unsent, waiting)
	}
}

func TestAClientThatSendsFasterThanItReadsIsBoundedHoweverLongItGoesOn(t *testing.T) {
	s := start(t, func(o *Options, _ *session.Options) { o.Loops = 1; o.MaxStashBytes = 4 << 10 })
	c := s.dial()
	c.Conn.(*net.TCPConn).SetReadBuffer(32 << 10)
	c.expect("220")
	go func() {
		for flood := strings.Repeat("EHLO c\r\n", 10_000); ; {
			if _, err := io.WriteString(c.Conn, flood); err != nil {
				return
			}
		}
	}()
	// Each time that it has read everything there is, gnet reads the socket again.
	most := 0
	for range 40 {
		if _, err := io.CopyN(io.Discard, c.r, 256<<10); err != nil {
			t.Fatal(err)
		}
		s.onLoop(func(lp *loop) {
			lp.wheel.each(func(c *conn) { most = max(most, c.buffered()) })
		})
	}
	if most > s.o.MaxStashBytes+64<<10 {
		t.Errorf("%d bytes piled up behind a session that was stopped", most)
	}
}

func TestASlowReaderThatGoesOnReadingIsServed(t *testing.T) {
	s := start(t, func(o *Options, _ *session.Options) { o.UnreadTimeout = patience })
	c := s.dial()
	c.expect("220")
	const commands = 100_000
	go io.WriteString(c.Conn, strings.Repeat("NOOP\r\n", commands)+"QUIT\r\n")
	waitFor(t, "the replies to pile up", func() bool { return s.meter.events[EventPaused].Load() > 0 })
	for range commands {
		c.expect("250 2.0.0")
	}
	c.expect("221")
	c.expectEOF()
}

func TestSilentAndDribblingClientsEndAtTheirDeadline(t *testing.T) {
	// One limit each: what the test says in the other phase has time.
	inCommands := start(t, func(_ *Options, so *session.Options) { so.CommandTimeout = 150 * time.Millisecond })
	inMessages := start(t, func(_ *Options, so *session.Options) {
		so.CommandTimeout, so.DataTimeout = time.Hour, 150*time.Millisecond
	})
	silent, dribbling, inData := inCommands.dial(), inCommands.dial(), inMessages.dial()
	inData.send("EHLO c\r\n" + group)
	inData.expect("220", "250", "250", "250", "354")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				dribbling.Write([]byte("x"))
				inData.Write([]byte("x"))
			}
		}
	})
	for _, c := range []*client{silent, dribbling} {
		c.expect("220", "421 4.4.2")
	}
	inData.expect("421 4.4.2")
	close(stop)
	wg.Wait()
	for _, c := range []*client{silent, dribbling, inData} {
		c.Close()
	}
	waitFor(t, "all to be gone", func() bool { return inCommands.Connections()+inMessages.Connections() == 0 })
	if len(inMessages.backend.all()) != 0 {
		t.Error("a message without an end was queued")
	}
}

func TestACommandTimeoutHoldsBehindALongMessageAndALongCommit(t *testing.T) {
	s := start(t, func(o *Options, so *session.Options) {
		o.Tick, so.CommandTimeout, so.DataTimeout = time.Minute, time.Hour, 100*time.Hour // a turn of the wheel is 512 minutes
	})
	hold := s.hold()
	long, waiting := s.dial(), s.dial()
	for _, c := range []*client{long, waiting} {
		c.expect("220")
		c.send("EHLO c\r\n" + group)
		c.expect("250", "250", "250", "354")
	}
	waiting.send("x\r\n.\r\n")
	waitFor(t, "the message to reach the writer", func() bool { n, _ := s.writer.Pending(); return n == 1 })
	s.pass(2 * time.Hour) // both are looked at, and placed far ahead
	long.send("x\r\n.\r\n")
	for range 2 {
		hold <- struct{}{}
	}
	for _, c := range []*client{long, waiting} {
		c.expect("250 2.6.0")
	}
	s.pass(time.Hour) // much less than the turn in which they were placed
	for _, c := range []*client{long, waiting} {
		c.expect("421 4.4.2")
	}
}

func TestAMessageWhoseClientLeftBeforeTheCommitStays(t *testing.T) {
	s := start(t, nil)
	s.hold()
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n" + group + "x\r\n.\r\n")
	c.expect("250", "250", "250", "354")
	waitFor(t, "the message to reach the writer", func() bool { n, _ := s.writer.Pending(); return n == 1 })
	c.Close()
	waitFor(t, "the client to be gone", func() bool { return s.Connections() == 0 })
	s.release()
	waitFor(t, "the orphan", func() bool { return s.meter.events[EventOrphan].Load() == 1 })
	if len(s.backend.all()) != 1 {
		t.Error("the message is gone")
	}
	waitFor(t, "its memory to come back", func() bool { return s.o.Budget.Used() == 0 })
}

func TestAMessageCommittedAfterTheLoopsEndedIsLoggedAndLeaksNothing(t *testing.T) {
	var lines lockedBuffer
	s := start(t, func(o *Options, _ *session.Options) { o.Lines = &lines })
	s.hold()
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n" + group + "x\r\n.\r\n")
	c.expect("250", "250", "250", "354")
	waitFor(t, "the message to reach the writer", func() bool { n, _ := s.writer.Pending(); return n == 1 })
	s.Server.Close()
	if err := <-s.served; err != nil {
		t.Fatal(err)
	}
	s.served <- nil
	s.release()
	if err := s.writer.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.Settle()
	if id := s.backend.all()[0].id; !strings.Contains(lines.String(), id) {
		t.Errorf("message %s is queued and not in the log %q", id, lines.String())
	}
	if s.meter.events[EventOrphan].Load() != 1 || s.o.Budget.Used() != 0 {
		t.Errorf("%d orphans, %d bytes held, want 1 and 0", s.meter.events[EventOrphan].Load(), s.o.Budget.Used())
	}
}

func TestConnectionsThatBreakOffLeakNothing(t *testing.T) {
	s := start(t, nil)
	for i := range 200 {
		c := s.dial()
		switch i % 4 {
		case 0: // at once
		case 1:
			c.send("EHLO c\r\nMAIL FROM:<a@exam")
		case 2:
			c.send("EHLO c\r\n" + group + strings.Repeat("text ", 5000))
		case 3:
			c.send("EHLO c\r\n" + group + "x\r\n.\r\n")
			c.Conn.(*net.TCPConn).SetLinger(0) // a reset, perhaps while the commit runs
		}
		c.Close()
	}
	waitFor(t, "all connections to be gone", func() bool { return s.Connections() == 0 })
	waitFor(t, "all memory to come back", func() bool { return s.o.Budget.Used() == 0 })
}

func TestDrainRefusesNewcomersFinishesTransactionsAndSays421(t *testing.T) {
	s := start(t, nil)
	idle, busy := s.dial(), s.dial()
	idle.expect("220")
	busy.expect("220")
	busy.send("EHLO c\r\n" + group + "half a mess")
	busy.expect("250", "250", "250", "354")
	drained := make(chan error, 1)
	go func() {
		drained <- s.Drain(t.Context())
	}()
	idle.expect("421 4.3.2")
	idle.expectEOF()
	s.dial().expect("421 4.3.2")
	busy.send("age\r\n.\r\n")
	busy.expect("250 2.6.0", "421 4.3.2")
	busy.expectEOF()
	idle.Close()
	busy.Close()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	if len(s.backend.all()) != 1 {
		t.Error("the message of the open transaction is gone")
	}
}

func TestDrainGivesUpWithItsContext(t *testing.T) {
	s := start(t, nil)
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n" + group)
	c.expect("250", "250", "250", "354")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Drain with an open transaction: %v", err)
	}
}

func TestTheLast421IsReadThoughTheClientStillSends(t *testing.T) {
	s := start(t, func(_ *Options, so *session.Options) { so.MaxErrors = 5 })
	for range 20 {
		c := s.dial()
		c.expect("220")
		c.send(strings.Repeat("JUNK\r\n", 1000))
		c.expect("500", "500", "500", "500", "500", "421 4.7.0")
		c.expectEOF()
	}
}

func TestHTTPIsCutOff(t *testing.T) {
	s := start(t, nil)
	c := s.dial()
	c.expect("220")
	c.send("POST / HTTP/1.1\r\nHost: mx\r\nContent-Length: 100\r\n\r\nMAIL FROM:<a@b.example>\r\n")
	c.reply()
	c.expectEOF()
	if s.meter.refusals.Load() != 1 {
		t.Errorf("%d refusals, want 1: nothing behind the first line is looked at", s.meter.refusals.Load())
	}
}

func TestUnixSocketAndTCPListenersServeTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lmtp.sock")
	s := start(t, func(o *Options, so *session.Options) {
		lmtp := session.Options{Hostname: so.Hostname, Listener: "lmtp", LMTP: true}
		second := session.Options{Hostname: so.Hostname, Listener: "second"}
		o.Listeners = append(o.Listeners,
			Listener{Name: "lmtp", Network: "unix", Address: path, Session: session.NewServer(lmtp)},
			Listener{Name: "second", Network: "tcp", Address: "127.0.0.1:0", Session: session.NewServer(second)})
	})
	c := dial(t, "unix", path)
	c.expect("220 mx.example.net LMTP")
	c.send("LHLO c\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<c@example.net>\r\nDATA\r\nx\r\n.\r\n")
	c.expect("250", "250", "250", "250", "354", "250 2.6.0", "250 2.6.0")
	if m := s.backend.all()[0]; m.listener != "lmtp" || m.client.IsValid() {
		t.Errorf("%+v", m)
	}
	if err := smtp.SendMail(s.Addr(2), nil, "a@example.org", []string{"b@example.net"}, []byte("x\r\n")); err != nil {
		t.Fatal(err)
	}
	if m := s.backend.all()[1]; m.listener != "second" {
		t.Errorf("%+v", m)
	}
}

func TestAnAddressInUseIsAnError(t *testing.T) {
	s := start(t, nil)
	_, err := New(Options{Listeners: []Listener{{Name: "x", Network: "tcp", Address: s.Addr(0)}}, Writer: s.writer})
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("second server on the same port: %v", err)
	}
}

// freePort gives an address that is free, and a function that says whether it is free again, reserved by nobody.
func freePort(t *testing.T) (addr string, free func() bool) {
	addr = nettest.Address(t)
	strict := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 0) }), err)
	}}
	return addr, func() bool {
		l, err := strict.Listen(context.Background(), "tcp", addr)
		if err != nil {
			return false
		}
		l.Close()
		return true
	}
}

func TestAServerThatDoesNotServeLetsGoOfItsPorts(t *testing.T) {
	addr, free := freePort(t)
	good := Listener{Name: "good", Network: "tcp", Address: addr}
	s, err := New(Options{Listeners: []Listener{good}})
	if err != nil {
		t.Fatal(err)
	}
	if free() {
		t.Fatal("the port is not held for Serve")
	}
	s.Close()
	if !free() {
		t.Error("the port is held after Close")
	}
	if err := s.Serve(); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
	if _, err := New(Options{Listeners: []Listener{good, {Name: "bad", Network: "carrier pigeon"}}}); err == nil {
		t.Error("a network that does not exist was taken")
	}
	if !free() {
		t.Error("the port is held after New failed")
	}
	if _, err := New(Options{Listeners: []Listener{good, good}}); err == nil {
		t.Error("two listeners on one address were taken: clients of the second would be the first one's")
	}
	if !free() {
		t.Error("the port is held after New refused it for a second listener")
	}
}

func TestASocketPathThatIsSomethingElseIsNotRemoved(t *testing.T) {
	_, err := New(Options{Listeners: []Listener{{Name: "x", Network: "unix", Address: t.TempDir()}}})
	if err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Fatalf("a folder in the socket's place: %v", err)
	}
}

func TestASocketPathThatGnetWouldReadAsAnotherIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mail")
	if err := os.MkdirAll(filepath.Join(dir, "keep"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir + "#1", dir + "?1", dir + "/keep/../sock"} {
		if _, err := New(Options{Listeners: []Listener{{Name: "x", Network: "unix", Address: path}}}); err == nil {
			t.Errorf("%s taken", path)
		}
	}
	percent := filepath.Join(t.TempDir(), "50%25 off")
	s := start(t, func(o *Options, _ *session.Options) { o.Listeners[0].Network, o.Listeners[0].Address = "unix", percent })
	dial(t, "unix", s.Addr(0)).expect("220")
}

func TestTheSocketOfABusyProcessIsNotRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "busy.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for { // until its backlog is full
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer c.Close()
	}
	if _, err := New(Options{Listeners: []Listener{{Name: "x", Network: "unix", Address: path}}}); err == nil {
		t.Error("the path of a process that listens was taken")
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("its socket is gone: %v", err)
	}
}

func TestIPv4ClientsOfADualStackListenerAreUnmapped(t *testing.T) {
	var saw atomic.Value
	s := start(t, func(o *Options, _ *session.Options) {
		o.Listeners[0].Address = ":0"
		o.Listeners[0].MayRelay = func(a netip.Addr) bool { saw.Store(a); return true }
	})
	_, port, _ := net.SplitHostPort(s.Addr(0))
	if err := smtp.SendMail("127.0.0.1:"+port, nil, "a@example.org", []string{"b@example.net"}, []byte("x\r\n")); err != nil {
		t.Fatal(err)
	}
	if a := saw.Load().(netip.Addr); a != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("client is %v", a)
	}
}

// bomb is a meter that panics once, as a bug of ours would.
type bomb struct {
	*counter
	armed *atomic.Bool
}

func (b bomb) NewLoop() LoopMeter { return b }
func (b bomb) Reply(stage session.Stage, code uint16) {
	if stage == session.StageMail && b.armed.Swap(false) {
		panic("our bug")
	}
}

func TestAPanicCostsOneConnectionAndIsLogged(t *testing.T) {
	var armed atomic.Bool
	s := start(t, func(o *Options, _ *session.Options) {
		o.Meter = bomb{o.Meter.(*counter), &armed}
		o.Loops = 1
	})
	other, victim := s.dial(), s.dial()
	other.expect("220")
	victim.expect("220")
	armed.Store(true)
	victim.send("EHLO c\r\nMAIL FROM:<a@example.org>\r\n")
	io.Copy(io.Discard, victim.r)
	waitFor(t, "the victim to be gone", func() bool { return s.Connections() == 1 })
	other.send("EHLO c\r\n" + group + "x\r\n.\r\n")
	other.expect("250", "250", "250", "354", "250 2.6.0")
	if s.meter.events[EventPanic].Load() != 1 || !strings.Contains(s.log.String(), "our bug") {
		t.Errorf("panic counted %d times, log %q", s.meter.events[EventPanic].Load(), s.log.String())
	}
}

func TestWhenTheEnginesStopUnaskedServeFails(t *testing.T) {
	s := start(t, nil)
	for _, e := range s.engines {
		<-e.booted
		if err := e.eng.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-s.served; !errors.Is(err, ErrStopped) {
		t.Fatalf("Serve gave %v, want ErrStopped", err)
	}
	s.served <- nil
}

func TestTheSameRefusalIsLoggedOncePerSession(t *testing.T) {
	s := start(t, nil)
	c := s.dial()
	c.expect("220")
	c.send(strings.Repeat("JUNK\r\n", 10) + "MAIL FROM:<x\x1b[31m\r\n")
	for range 10 {
		c.expect("500")
	}
	c.expect("50")
	waitFor(t, "the log", func() bool { return strings.Contains(s.log.String(), "stage=mail") })
	if n := strings.Count(s.log.String(), "unknown_command"); n != 1 {
		t.Errorf("%d lines for ten unknown commands, want 1:\n%s", n, s.log.String())
	}
	if strings.Contains(s.log.String(), "\x1b") {
		t.Error("a control character of the client's reached the log")
	}
}
