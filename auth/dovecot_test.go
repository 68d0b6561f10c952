package auth

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const greeting = "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\nMECH\tSCRAM-SHA-256\tmutual-auth\nMECH\tCRAM-MD5\tdictionary\tactive\n" +
	"MECH\tSCRAM-SHA-256-PLUS\nMECH\tGSSAPI\nSPID\t17\nCUID\t1\nCOOKIE\t0123456789abcdef0123456789abcdef\nDONE\n"

// peerDovecot is a scripted Dovecot. talk gets each line of the client after the handshake and writes what it likes.
type peerDovecot struct {
	path        string
	connections atomic.Int32
	lines       chan string // every line of a client
}

func newPeerDovecot(t *testing.T, greeting string, talk func(line string, w io.Writer)) *peerDovecot {
	t.Helper()
	d := &peerDovecot{path: filepath.Join(t.TempDir(), "s"), lines: make(chan string, 10000)}
	l, err := net.Listen("unix", d.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.connections.Add(1)
			go func() {
				defer c.Close()
				if _, err := io.WriteString(c, greeting); err != nil {
					return
				}
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					d.lines <- strings.TrimSuffix(line, "\n")
					if strings.HasPrefix(line, "BYE") {
						return
					}
					talk(strings.TrimSuffix(line, "\n"), c)
				}
			}()
		}
	}()
	return d
}

func (d *peerDovecot) store(t *testing.T, o DovecotOptions) *Dovecot {
	t.Helper()
	o.Address = d.path
	if o.Retry == 0 {
		o.Retry = -1
	}
	store, err := NewDovecot(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = store.Connect(ctx)
	return store
}

// dovecotPlain answers AUTH PLAIN: alice's password is right, bob's database is down.
func dovecotPlain(line string, w io.Writer) {
	f := strings.Split(line, "\t")
	if f[0] != "AUTH" {
		return
	}
	resp, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(f[len(f)-1], "resp="))
	switch string(resp) {
	case "\x00alice\x00secret":
		fmt.Fprintf(w, "OK\t%s\tuser=alice@example.org\n", f[1])
	case "\x00bob\x00secret":
		fmt.Fprintf(w, "FAIL\t%s\tuser=bob\ttemp\n", f[1])
	case "\x00code\x00secret":
		fmt.Fprintf(w, "FAIL\t%s\tuser=code\tcode=temp_fail\n", f[1])
	case "master\x00alice\x00secret":
		fmt.Fprintf(w, "OK\t%s\tuser=master\n", f[1])
	case "\x00locked\x00secret":
		fmt.Fprintf(w, "OK\t%s\tuser=locked\tnologin\treason=away\n", f[1])
	case "\x00proxied\x00secret":
		fmt.Fprintf(w, "OK\t%s\tuser=proxied\tproxy\thost=192.0.2.1\n", f[1])
	case "\x00nobody\x00named":
		fmt.Fprintf(w, "OK\t%s\n", f[1])
	case "\x00odd\x00challenge":
		fmt.Fprintf(w, "CONT\t%s\t\n", f[1])
	default:
		fmt.Fprintf(w, "FAIL\t%s\tuser=alice\treason=no\n", f[1])
	}
}

func TestDovecotChecksPasswords(t *testing.T) {
	d := newPeerDovecot(t, greeting, dovecotPlain)
	s := testService(t, Options{Store: d.store(t, DovecotOptions{})})
	for _, c := range []script{
		{PLAIN, []string{"\x00alice\x00secret"}, nil, Success, "alice@example.org"},
		{LOGIN, []string{"-", "alice", "secret"}, []string{"Username:", "Password:"}, Success, "alice@example.org"},
		{PLAIN, []string{"\x00alice\x00wrong"}, nil, Failed, ""},
		{PLAIN, []string{"\x00bob\x00secret"}, nil, Unavailable, ""},
		{PLAIN, []string{"\x00code\x00secret"}, nil, Unavailable, ""},
		{PLAIN, []string{"master\x00alice\x00secret"}, nil, Success, "master"}, // Dovecot lets her
		{PLAIN, []string{"root\x00alice\x00secret"}, nil, Failed, ""},
		{PLAIN, []string{"\x00locked\x00secret"}, nil, Failed, ""},
		{PLAIN, []string{"\x00proxied\x00secret"}, nil, Unavailable, ""},
		{PLAIN, []string{"\x00nobody\x00named"}, nil, Unavailable, ""},
		{PLAIN, []string{"\x00odd\x00challenge"}, nil, Unavailable, ""},
		{PLAIN, []string{"\x00\x00secret"}, nil, Malformed, ""}, // never gets there
	} {
		c.run(t, s, client)
	}
	if n := d.connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestDovecotIsToldTheClient(t *testing.T) {
	d := newPeerDovecot(t, greeting, dovecotPlain)
	store := d.store(t, DovecotOptions{Service: "sub\tmission"})
	s := testService(t, Options{Store: store})
	p := client
	p.Addr = netip.MustParseAddrPort("[::ffff:192.0.2.7]:4711")
	p.Session, p.Certificate = "x\ny", "al\tice"
	script{PLAIN, []string{"\x00alice\x00secret"}, nil, Success, "alice@example.org"}.run(t, s, p)
	p.Addr = netip.MustParseAddrPort("127.0.0.1:25")
	script{PLAIN, []string{"\x00alice\x00secret"}, nil, Success, "alice@example.org"}.run(t, s, p)
	for _, want := range []string{"VERSION\t1\t1", "CPID\t",
		"AUTH\t1\tPLAIN\tservice=sub\x01tmission\tnologin\trip=192.0.2.7\trport=4711\tsession=x\x01ny\tvalid-client-cert\tcert_username=al\x01tice\tresp=AGFsaWNlAHNlY3JldA==",
		"AUTH\t2\tPLAIN\tservice=sub\x01tmission\tnologin\tsecured\trip=127.0.0.1\trport=25"} {
		if line := <-d.lines; !strings.HasPrefix(line, want) {
			t.Errorf("%q, want %q", line, want)
		}
	}
}

// The keys are Dovecot's; the responses go through as they are.
func TestDovecotCarriesOutOtherMechanisms(t *testing.T) {
	inner := cramService(t, Options{Store: nil}, "alice", "secret")
	exchanges := map[string]*Exchange{}
	d := newPeerDovecot(t, greeting, func(line string, w io.Writer) {
		f := strings.Split(line, "\t")
		var o Outcome
		switch f[0] {
		case "AUTH":
			exchanges[f[1]] = inner.Begin(f[2], client)
			text, present := strings.CutPrefix(f[len(f)-1], "resp=")
			response, _ := base64.StdEncoding.DecodeString(text)
			o = respond(t, exchanges[f[1]], response, present)
		case "CONT":
			response, _ := base64.StdEncoding.DecodeString(f[2])
			o = respond(t, exchanges[f[1]], response, true)
		default:
			return
		}
		switch o.Result {
		case Continue:
			fmt.Fprintf(w, "CONT\t%s\t%s\n", f[1], base64.StdEncoding.EncodeToString(o.Challenge))
		case Success:
			fmt.Fprintf(w, "OK\t%s\tuser=%s\n", f[1], o.User)
		default:
			fmt.Fprintf(w, "FAIL\t%s\n", f[1])
		}
	})
	s := testService(t, Options{Store: d.store(t, DovecotOptions{}), CRAMMD5: true})
	if s.Supports(SCRAMSHA256Plus) {
		t.Error("-PLUS is offered, and Dovecot cannot know our channel")
	}
	for password, want := range map[string]Result{"secret": Success, "wrong": Failed} {
		for _, late := range []bool{false, true} {
			if o := login(t, s, client, newSCRAMClient(t, "alice", password, ""), late); o.Result != want || want == Failed && o.Tried != "alice" {
				t.Errorf("SCRAM with %s: %v %q", password, o.Result, o.Tried)
			}
		}
		k, _ := NewCRAMKeys(password)
		x := s.Begin(CRAMMD5, client)
		o := respond(t, x, nil, false)
		if o = respond(t, x, fmt.Appendf(nil, "alice %x", k.digest(o.Challenge)), true); o.Result != want || want == Success && o.User != "alice" {
			t.Errorf("CRAM-MD5 with %s: %v", password, o.Result)
		}
	}
	script{CRAMMD5, []string{"alice 00112233445566778899aabbccddeeff"}, nil, Malformed, ""}.run(t, s, client)
}

func TestDovecotBeforeItsGreetingAndAfter(t *testing.T) {
	d := newPeerDovecot(t, "VERSION\t1\t1\nMECH\tCRAM-MD5\nDONE\n", func(string, io.Writer) {})
	store, err := NewDovecot(DovecotOptions{Address: filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if !store.Supports(PLAIN) || !store.Supports(LOGIN) || store.Supports(SCRAMSHA256) {
		t.Error("before")
	}
	greeted := d.store(t, DovecotOptions{})
	if greeted.Supports(PLAIN) || greeted.Supports(LOGIN) || !greeted.Supports(CRAMMD5) {
		t.Error("after")
	}
}

func TestDovecotOutOfOrderIsUnavailable(t *testing.T) {
	for name, bad := range map[string]string{
		"another version": "VERSION\t2\t0\nMECH\tPLAIN\nDONE\n",
		"no version":      "MECH\tPLAIN\nDONE\n",
		"a long line":     "VERSION\t1\t0\n" + strings.Repeat("x", maxDovecotLineBytes+1) + "\n",
		"no end":          "VERSION\t1\t0\n" + strings.Repeat("MECH\tX\n", 200),
	} {
		d := newPeerDovecot(t, bad, dovecotPlain)
		store := d.store(t, DovecotOptions{})
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := store.Connect(ctx); err == nil || ctx.Err() != nil {
			t.Errorf("%s: Connect: %v", name, err)
		}
		cancel()
		script{PLAIN, []string{"\x00alice\x00secret"}, nil, Unavailable, ""}.run(t, testService(t, Options{Store: store}), client)
	}
	for name, answer := range map[string]string{
		"no id": "OK\n", "a bad id": "OK\tx\tuser=alice\n", "bad base64": "CONT\t1\t!\n", "a long line": strings.Repeat("x", maxDovecotLineBytes+1) + "\n",
	} {
		d := newPeerDovecot(t, greeting, func(line string, w io.Writer) {
			if strings.HasPrefix(line, "AUTH") {
				io.WriteString(w, answer)
			}
		})
		s := testService(t, Options{Store: d.store(t, DovecotOptions{})})
		t.Run(name, func(t *testing.T) {
			script{PLAIN, []string{"\x00alice\x00secret"}, nil, Unavailable, ""}.run(t, s, client)
		})
	}
}

func TestDovecotIsConnectedAgain(t *testing.T) {
	var n atomic.Int32
	d := newPeerDovecot(t, greeting, func(line string, w io.Writer) {
		if strings.HasPrefix(line, "AUTH") && n.Add(1) == 1 {
			w.(net.Conn).Close()
			return
		}
		dovecotPlain(line, w)
	})
	s := testService(t, Options{Store: d.store(t, DovecotOptions{})})
	script{PLAIN, []string{"\x00alice\x00secret"}, nil, Unavailable, ""}.run(t, s, client)
	script{PLAIN, []string{"\x00alice\x00secret"}, nil, Success, "alice@example.org"}.run(t, s, client)
	if n := d.connections.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestDovecotThatIsNotThereIsNotDialledAtEveryLogin(t *testing.T) {
	store, err := NewDovecot(DovecotOptions{Address: filepath.Join(t.TempDir(), "none"), Retry: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	_ = store.Connect(context.Background())
	store.mu.Lock()
	at := store.failedAt
	store.mu.Unlock()
	s := testService(t, Options{Store: store})
	for range 10 {
		script{PLAIN, []string{"\x00alice\x00secret"}, nil, Unavailable, ""}.run(t, s, client)
	}
	store.mu.Lock()
	defer store.mu.Unlock()
	if store.failedAt != at || at.IsZero() {
		t.Error("dialled again")
	}
}

func TestManyWaitForDovecotWithoutAWorkerAndUpToTheLimit(t *testing.T) {
	held := make(chan string, 1000)
	d := newPeerDovecot(t, greeting, func(line string, w io.Writer) {
		f := strings.Split(line, "\t")
		switch {
		case f[0] == "AUTH":
			held <- f[1]
		case f[0] == "CANCEL":
			held <- line
		}
	})
	store := d.store(t, DovecotOptions{MaxPending: 100})
	s := testService(t, Options{Store: store, Workers: 1})
	var xs []*Exchange
	for range 100 {
		x := s.Begin(PLAIN, client)
		x.Step(plainMessage("", "alice", "secret"), true, func(o Outcome) { t.Error("answered:", o.Result) })
		xs = append(xs, x)
		<-held
	}
	script{PLAIN, []string{"\x00alice\x00secret"}, nil, Unavailable, ""}.run(t, s, client) // one past
	xs[0].Cancel()
	if line := <-held; line != "CANCEL\t1" {
		t.Error(line)
	}
	x := s.Begin(PLAIN, client)
	x.Step(plainMessage("", "alice", "secret"), true, func(Outcome) {})
	if id := <-held; id != "101" {
		t.Errorf("id %s: ids must not be used again", id)
	}
	for _, x := range append(xs, x) {
		x.Cancel()
	}
	store.mu.Lock()
	conn := store.conn
	store.mu.Unlock()
	for range 100 {
		<-held // the other CANCELs
	}
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if len(conn.pending) != 0 {
		t.Errorf("%d exchanges are still pending", len(conn.pending))
	}
}

func TestSilentDovecotIsUnavailableInTimeAndToldSo(t *testing.T) {
	cancelled := make(chan string, 10)
	d := newPeerDovecot(t, greeting, func(line string, w io.Writer) {
		if strings.HasPrefix(line, "CANCEL") {
			cancelled <- line
		}
	})
	s := testService(t, Options{Store: d.store(t, DovecotOptions{}), StepTimeout: 500 * time.Millisecond}) // Dovecot has been asked by then
	script{PLAIN, []string{"\x00alice\x00secret"}, nil, Unavailable, ""}.run(t, s, client)
	if line := <-cancelled; line != "CANCEL\t1" {
		t.Error(line)
	}
}

func TestDovecotAmongOtherStores(t *testing.T) {
	d := newPeerDovecot(t, greeting, dovecotPlain)
	s := testService(t, Options{Store: Stores(testUsers(t, scramUser(t, "carol", "x")), d.store(t, DovecotOptions{})), CRAMMD5: true})
	script{PLAIN, []string{"\x00carol\x00x"}, nil, Success, "carol"}.run(t, s, client)
	script{PLAIN, []string{"\x00alice\x00secret"}, nil, Success, "alice@example.org"}.run(t, s, client)
	script{PLAIN, []string{"\x00bob\x00secret"}, nil, Unavailable, ""}.run(t, s, client)
	if o := login(t, s, client, newSCRAMClient(t, "carol", "x", ""), false); o.Result != Success { // the file's keys
		t.Errorf("%v", o.Result)
	}
	if !s.Supports(CRAMMD5) { // Dovecot's
		t.Error("CRAM-MD5")
	}
}

// Whichever way an exchange ends, Dovecot's side of it ends too; otherwise MaxPending would be used up.
func TestAbandonedExchangesAreTakenBackFromDovecot(t *testing.T) {
	d := newPeerDovecot(t, greeting, func(line string, w io.Writer) {
		if f := strings.Split(line, "\t"); f[0] == "AUTH" {
			fmt.Fprintf(w, "CONT\t%s\t\n", f[1])
		}
	})
	store := d.store(t, DovecotOptions{})
	pending := func() int {
		store.mu.Lock()
		conn := store.conn
		store.mu.Unlock()
		conn.mu.Lock()
		defer conn.mu.Unlock()
		return len(conn.pending)
	}
	gate := newGate()
	for name, o := range map[string]Options{
		"cancelled": {StepTimeout: time.Hour},
		"late":      {StepTimeout: time.Second}, // which the steps before must not need
	} {
		o.Store, o.Workers, o.CRAMMD5 = Stores(gate, store), 1, true
		s := testService(t, o)
		between, queued := s.Begin(CRAMMD5, client), s.Begin(CRAMMD5, client)
		respond(t, between, nil, false)
		respond(t, queued, nil, false)
		blocks := s.Begin(PLAIN, client)
		blocks.Step(plainMessage("", "x", "x"), true, func(Outcome) {})
		<-gate.entered // the only worker is busy
		if n := pending(); n != 2 {
			t.Fatalf("%s: %d exchanges are under way, want 2", name, n)
		}
		answers := make(chan Outcome, 1)
		queued.Step([]byte("alice 00"), true, func(o Outcome) { answers <- o })
		if name == "cancelled" {
			queued.Cancel()
		} else if o := <-answers; o.Result != Unavailable {
			t.Errorf("%s: %v", name, o.Result)
		}
		between.Cancel()
		for end := time.Now().Add(time.Minute); pending() != 0; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("%s: %d exchanges are still under way", name, pending())
			}
		}
		blocks.Cancel()
		gate.open <- nil
		idle(s)
	}
}

func TestCancelAndDovecotRace(t *testing.T) {
	d := newPeerDovecot(t, greeting, func(line string, w io.Writer) {
		if f := strings.Split(line, "\t"); f[0] == "AUTH" {
			fmt.Fprintf(w, "CONT\t%s\t\n", f[1])
		}
	})
	store := d.store(t, DovecotOptions{})
	s := testService(t, Options{Store: store, CRAMMD5: true})
	var wg sync.WaitGroup
	for range 300 {
		x := s.Begin(CRAMMD5, client)
		wg.Go(func() { x.Step(nil, false, func(Outcome) {}) })
		wg.Go(func() { runtime.Gosched(); x.Cancel() })
	}
	wg.Wait()
	idle(s)
	store.mu.Lock()
	conn := store.conn
	store.mu.Unlock()
	for end := time.Now().Add(time.Minute); ; runtime.Gosched() {
		conn.mu.Lock()
		n := len(conn.pending)
		conn.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d exchanges are still under way", n)
		}
	}
}
