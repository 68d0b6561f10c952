package relay

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/smtpcodec"
)

// fakeHop is a next hop on loopback that follows RFC 5321 unless its script says otherwise.
type fakeHop struct {
	t      testing.TB
	ln     net.Listener
	lmtp   bool
	offers []string
	// script may answer a command itself: a reply without CRLF, "" for the usual one, hang for none, or closeNow. verb is "CONNECT" for the
	// greeting and "END" for the end of the message. A reply that starts with 421 closes. rcpts are those accepted so far.
	script func(s *fakeSession, verb, line string) string

	// cut closes a session when that many bytes of replies have been written; negative: never.
	cut int

	mu       sync.Mutex
	sessions []*fakeSession
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

const (
	hang     = "hang"
	closeNow = "close"
)

// fakeSession is what one connection has said. Fields are guarded by hop.mu for readers other than its goroutine.
type fakeSession struct {
	hop      *fakeHop
	n        int // sessions before
	commands []string
	reads    []string // what came in one read
	messages []fakeMessage
	mail     string
	rcpts    []string
}

// fakeMessage is one that came to its end; data has the stuffing removed.
type fakeMessage struct {
	mail  string
	rcpts []string
	data  string
	bdat  bool
}

func newHop(t testing.TB, offers ...string) *fakeHop {
	return newHopOn(t, "tcp", "127.0.0.1:0", offers...)
}

func newHopOn(t testing.TB, network, address string, offers ...string) *fakeHop {
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHop{t: t, ln: ln, offers: offers, cut: -1, conns: map[net.Conn]bool{}}
	h.wg.Go(h.accept)
	t.Cleanup(h.close)
	return h
}

func newLMTP(t testing.TB, offers ...string) *fakeHop {
	h := newHop(t, offers...)
	h.speak(true)
	return h
}

// on and speak change script and lmtp.
func (h *fakeHop) on(script func(s *fakeSession, verb, line string) string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.script = script
}

func (h *fakeHop) speak(lmtp bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lmtp = lmtp
}

func (h *fakeHop) close() {
	h.ln.Close()
	h.mu.Lock()
	for c := range h.conns {
		c.Close()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

func (h *fakeHop) next() NextHop {
	return NextHop{LMTP: h.lmtp, Network: h.ln.Addr().Network(), Address: h.ln.Addr().String()}
}

func (h *fakeHop) accept() {
	for {
		nc, err := h.ln.Accept()
		if err != nil {
			return
		}
		h.mu.Lock()
		s := &fakeSession{hop: h, n: len(h.sessions)}
		h.sessions = append(h.sessions, s)
		h.conns[nc] = true
		h.mu.Unlock()
		h.wg.Go(func() {
			s.serve(nc)
			nc.Close()
			h.mu.Lock()
			delete(h.conns, nc)
			h.mu.Unlock()
		})
	}
}

// sessionCount, allCommands, allMessages read what was recorded.
func (h *fakeHop) sessionCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

func (h *fakeHop) allCommands() (all []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		all = append(all, s.commands...)
	}
	return all
}

func (h *fakeHop) allReads() (all []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		all = append(all, s.reads...)
	}
	return all
}

func (h *fakeHop) allMessages() (all []fakeMessage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		all = append(all, s.messages...)
	}
	return all
}

// recorder notes every read.
type recorder struct {
	nc net.Conn
	s  *fakeSession
}

func (r recorder) Read(p []byte) (int, error) {
	n, err := r.nc.Read(p)
	r.s.hop.mu.Lock()
	if len(r.s.reads) < 50 {
		r.s.reads = append(r.s.reads, string(p[:n]))
	}
	r.s.hop.mu.Unlock()
	return n, err
}

func (s *fakeSession) serve(nc net.Conn) {
	h := s.hop
	in := bufio.NewReaderSize(recorder{nc, s}, 64<<10)
	h.mu.Lock()
	lmtp, cut := h.lmtp, h.cut
	h.mu.Unlock()
	if cut < 0 {
		cut = 1 << 30
	}
	// say writes the script's reply, or the usual one; false ends the session.
	said := ""
	say := func(verb, line, usual string) bool {
		said = usual
		h.mu.Lock()
		script := h.script
		h.mu.Unlock()
		if script != nil {
			if scripted := script(s, verb, line); scripted != "" {
				said = scripted
			}
		}
		switch said {
		case hang:
			return true
		case closeNow:
			return false
		}
		out := said + "\r\n"
		if len(out) > cut {
			io.WriteString(nc, out[:cut])
			return false
		}
		cut -= len(out)
		_, err := io.WriteString(nc, out)
		return err == nil && !strings.HasPrefix(said, "421")
	}
	if !say("CONNECT", "", "220 fake ESMTP") {
		return
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\r\n")
		h.mu.Lock()
		s.commands = append(s.commands, line)
		h.mu.Unlock()
		verb, arg, _ := strings.Cut(line, " ")
		ok := true
		switch verb {
		case "EHLO", "LHLO":
			if lmtp != (verb == "LHLO") {
				ok = say(verb, line, "500 5.5.1 wrong greeting")
				break
			}
			ok = say(verb, line, ehlo(h.offers))
		case "HELO":
			ok = say(verb, line, "250 fake")
		case "RSET":
			s.mail, s.rcpts = "", nil
			ok = say(verb, line, "250 2.0.0 reset")
		case "MAIL":
			if s.mail != "" {
				ok = say(verb, line, "503 5.5.1 nested MAIL")
				break
			}
			if ok = say(verb, line, "250 2.1.0 sender ok"); said[0] == '2' {
				s.mail, s.rcpts = arg, nil
			}
		case "RCPT":
			if s.mail == "" {
				ok = say(verb, line, "503 5.5.1 need MAIL")
				break
			}
			if ok = say(verb, line, "250 2.1.5 recipient ok"); said[0] == '2' {
				s.rcpts = append(s.rcpts, arg)
			}
		case "DATA":
			usual := "354 go on"
			if len(s.rcpts) == 0 {
				usual = "554 5.5.1 no valid recipients"
			}
			if ok = say(verb, line, usual); !ok || !strings.HasPrefix(said, "354") {
				break
			}
			data, err := readData(in)
			if err != nil {
				return
			}
			ok = s.end(say, lmtp, data, false)
		case "BDAT":
			size, _, _ := strings.Cut(arg, " ")
			n, err := strconv.Atoi(size)
			if err != nil || !strings.HasSuffix(arg, " LAST") {
				h.t.Errorf("unexpected %q", line)
				return
			}
			data := make([]byte, n)
			if _, err := io.ReadFull(in, data); err != nil {
				return
			}
			ok = s.end(say, lmtp, string(data), true)
		case "QUIT":
			say(verb, line, "221 2.0.0 bye")
			return
		default:
			ok = say(verb, line, "500 5.5.2 what")
		}
		if !ok {
			return
		}
	}
}

// end notes a message and replies, once for each recipient with LMTP.
func (s *fakeSession) end(say func(verb, line, usual string) bool, lmtp bool, data string, bdat bool) bool {
	m := fakeMessage{mail: s.mail, rcpts: s.rcpts, data: data, bdat: bdat}
	s.hop.mu.Lock()
	s.messages = append(s.messages, m)
	s.hop.mu.Unlock()
	s.mail, s.rcpts = "", nil
	if !lmtp {
		return say("END", "", "250 2.0.0 taken")
	}
	for _, rcpt := range m.rcpts {
		if !say("END", rcpt, "250 2.0.0 taken for "+rcpt) {
			return false
		}
	}
	return true
}

func ehlo(offers []string) string {
	lines := append([]string{"fake says hello"}, offers...)
	for i, line := range lines {
		if i < len(lines)-1 {
			lines[i] = "250-" + line
		} else {
			lines[i] = "250 " + line
		}
	}
	return strings.Join(lines, "\r\n")
}

// readData reads up to the terminator with the codec's scanner.
func readData(in *bufio.Reader) (string, error) {
	var scanner smtpcodec.DataScanner
	var data []byte
	dst := make([]byte, 128<<10)
	want := 1
	for {
		if _, err := in.Peek(want); err != nil {
			return "", err
		}
		src, _ := in.Peek(in.Buffered())
		n, consumed, done := scanner.Scan(dst, src)
		data = append(data, dst[:n]...)
		in.Discard(consumed)
		if done {
			return string(data), nil
		}
		want = in.Buffered() + 1
	}
}

// result is what the relay made of one lease.
type result struct {
	id       envelope.ID
	outcomes []queue.Outcome
	next     time.Time
	killed   string
}

// memSource is a queue.Source in memory. A message that stays pending is due again at once when again is set.
type memSource struct {
	again bool

	mu      sync.Mutex
	ready   []*queue.Delivery
	leased  int // leases so far
	wake    chan struct{}
	results chan result
}

func newSource() *memSource {
	return &memSource{wake: make(chan struct{}, 1), results: make(chan result, 100000)}
}

func (s *memSource) add(ds ...*queue.Delivery) {
	s.mu.Lock()
	s.ready = append(s.ready, ds...)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *memSource) counts() (ready, leased int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ready), s.leased
}

func (s *memSource) Lease(ctx context.Context) (*queue.Delivery, error) {
	for {
		s.mu.Lock()
		if len(s.ready) > 0 {
			d := s.ready[0]
			s.ready = s.ready[1:]
			s.leased++
			s.mu.Unlock()
			return d, nil
		}
		s.mu.Unlock()
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *memSource) Settle(d *queue.Delivery, outcomes []queue.Outcome, next time.Time) error {
	s.results <- result{id: d.Env.ID, outcomes: outcomes, next: next}
	if s.again {
		for _, o := range outcomes {
			if o.State == queue.Pending {
				d.Attempts++
				d.Outcomes = outcomes
				s.add(d)
				break
			}
		}
	}
	return nil
}

func (s *memSource) Kill(d *queue.Delivery, outcomes []queue.Outcome, reason string) error {
	s.results <- result{id: d.Env.ID, outcomes: outcomes, killed: reason}
	return nil
}

var testNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// mail makes a message that has just arrived.
func mail(data string, rcpts ...string) *queue.Delivery {
	env := &envelope.Envelope{ReversePath: []byte("sender@example.org"), Arrived: testNow}
	env.ID[0] = 1
	for _, r := range rcpts {
		env.Recipients = append(env.Recipients, envelope.Recipient{Path: []byte(r)})
	}
	return &queue.Delivery{
		Env: env, Size: int64(len(data)), Outcomes: make([]queue.Outcome, len(rcpts)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(data)), nil },
	}
}

// rig is a running relay.
type rig struct {
	t      *testing.T
	src    *memSource
	relay  *Relay
	log    *logBuffer
	cancel context.CancelFunc
	done   chan error
}

// logBuffer is a log that tests read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rigs counts those running; tests run one after the other.
var rigs int

// start runs a relay with short timeouts until the test ends, and then checks that none of its goroutines is left.
func start(t *testing.T, o Options, hops ...*fakeHop) *rig {
	t.Helper()
	for _, h := range hops {
		o.NextHops = append(o.NextHops, h.next())
	}
	g := &rig{t: t, src: newSource(), log: new(logBuffer), done: make(chan error, 1)}
	if o.Hostname == "" {
		o.Hostname = "relay.example.net"
	}
	if o.Now == nil {
		o.Now = func() time.Time { return testNow }
	}
	if o.MinBackoff == 0 {
		o.MinBackoff, o.MaxBackoff = 5*time.Millisecond, 20*time.Millisecond
	}
	if o.Timeouts == (Timeouts{}) {
		o.Timeouts = patience
	}
	o.Log = slog.New(slog.NewJSONHandler(g.log, nil))
	var err error
	if g.relay, err = New(g.src, o); err != nil {
		t.Fatal(err)
	}
	rigs++
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	go func() { g.done <- g.relay.Run(ctx) }()
	t.Cleanup(func() {
		g.stop()
		if rigs--; rigs == 0 {
			checkGoroutines(t)
		}
	})
	return g
}

// patience is for dialogues in which no time runs out, however busy the machine is.
var patience = uniformTimeouts(time.Minute)

func uniformTimeouts(d time.Duration) Timeouts {
	return Timeouts{Dial: d, Greeting: d, Hello: d, Mail: d, Rcpt: d, DataInit: d, DataBlock: d, DataDone: d, Quit: d}
}

// stop ends the relay and waits for it.
func (g *rig) stop() {
	if g.cancel == nil {
		return
	}
	g.cancel()
	g.cancel = nil
	select {
	case <-g.done:
	case <-time.After(time.Minute):
		g.t.Errorf("Run does not return; goroutines:\n%s", stacks())
	}
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// checkGoroutines fails when a goroutine of the relay (not of the fake) is still there. Functions that are just returning get a moment.
func checkGoroutines(t *testing.T) {
	t.Helper()
	var left string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		left = ""
		for _, g := range strings.Split(stacks(), "\n\n") {
			if strings.Contains(g, "relay.(*Relay)") || strings.Contains(g, "relay.(*connections)") || strings.Contains(g, "relay.(*conn)") {
				left = g
			}
		}
		if left == "" {
			return
		}
	}
	t.Errorf("left after Run:\n%s", left)
}

// result waits for the next settled message.
func (g *rig) result() result {
	g.t.Helper()
	select {
	case r := <-g.src.results:
		return r
	case <-time.After(time.Minute):
		g.t.Fatalf("no result; log:\n%s\n%s", g.log, stacks())
		panic("unreachable")
	}
}

// deliver hands one message over and gives its result.
func (g *rig) deliver(d *queue.Delivery) result {
	g.t.Helper()
	g.src.add(d)
	return g.result()
}

// wantOutcomes compares outcomes with strings such as "delivered 250 2.0.0": the state and the start of the reply.
func wantOutcomes(t *testing.T, r result, want ...string) {
	t.Helper()
	if len(r.outcomes) != len(want) {
		t.Fatalf("%d outcomes, want %d: %+v", len(r.outcomes), len(want), r.outcomes)
	}
	for i, o := range r.outcomes {
		if got := fmt.Sprintf("%s %s", o.State, o.Reply); !strings.HasPrefix(got, want[i]) {
			t.Errorf("recipient %d: %q, want %q", i, got, want[i])
		}
		if len(o.Reply) > maxOutcomeBytes || !printable([]byte(strings.ReplaceAll(o.Reply, " ", ""))) {
			t.Errorf("recipient %d: reply is too long or not printable: %q", i, o.Reply)
		}
	}
}

// answer makes a script that answers some commands, chosen by a part of "VERB line".
func answer(pairs ...string) func(*fakeSession, string, string) string {
	return func(_ *fakeSession, verb, line string) string {
		for i := 0; i < len(pairs); i += 2 {
			if strings.Contains(verb+"|"+line, pairs[i]) {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func count(commands []string, prefix string) (n int) {
	for _, c := range commands {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}
