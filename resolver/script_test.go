package resolver

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fastedge/fastedge/spf"
)

// scripted is a DNS server that does what a test tells it to, by UDP and TCP on one port of 127.0.0.1.
type scripted struct {
	addr  string
	asked atomic.Int64
	tcp   atomic.Int64 // connections accepted

	mu     sync.Mutex
	count  map[string]int // questions by name and type
	ports  map[string]bool
	script func(w dns.ResponseWriter, q *dns.Msg)
	query  chan *dns.Msg // each question, if anybody reads
	quiet  atomic.Bool   // none is put there
}

type countingListener struct {
	net.Listener
	n *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

// serve starts a server that answers with script.
func serve(t testing.TB, script func(w dns.ResponseWriter, q *dns.Msg)) *scripted {
	t.Helper()
	s := &scripted{count: map[string]int{}, ports: map[string]bool{}, script: script, query: make(chan *dns.Msg, 4096)}
	var pc net.PacketConn
	var ln net.Listener
	for range 20 {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if pc, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
			break
		}
		ln.Close()
	}
	if pc == nil {
		t.Fatal("no port free for UDP and TCP")
	}
	s.addr = ln.Addr().String()
	pc.(*net.UDPConn).SetReadBuffer(4 << 20)
	var up sync.WaitGroup
	for _, srv := range []*dns.Server{
		{PacketConn: pc, Handler: dns.HandlerFunc(s.handle)},
		{Listener: countingListener{ln, &s.tcp}, Handler: dns.HandlerFunc(s.handle), MaxTCPQueries: -1},
	} {
		up.Add(1)
		srv.NotifyStartedFunc = up.Done
		done := make(chan struct{})
		go func() {
			defer close(done)
			srv.ActivateAndServe()
		}()
		t.Cleanup(func() {
			srv.Shutdown()
			<-done
		})
	}
	up.Wait()
	return s
}

func key(q *dns.Msg) string {
	return strings.ToLower(q.Question[0].Name) + " " + dns.TypeToString[q.Question[0].Qtype]
}

func (s *scripted) handle(w dns.ResponseWriter, q *dns.Msg) {
	s.asked.Add(1)
	s.mu.Lock()
	s.count[key(q)]++
	s.ports[w.RemoteAddr().String()] = true
	script := s.script
	s.mu.Unlock()
	if !s.quiet.Load() {
		select {
		case s.query <- q.Copy():
		default:
		}
	}
	script(w, q)
}

func (s *scripted) setScript(script func(w dns.ResponseWriter, q *dns.Msg)) {
	s.mu.Lock()
	s.script = script
	s.mu.Unlock()
}

func (s *scripted) questions(name, typ string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count[dns.Fqdn(name)+" "+typ]
}

// next waits for a question.
func (s *scripted) next(t testing.TB) *dns.Msg {
	t.Helper()
	select {
	case q := <-s.query:
		return q
	case <-time.After(20 * time.Second):
		t.Fatal("the server is not asked")
		return nil
	}
}

func isTCP(w dns.ResponseWriter) bool {
	_, ok := w.RemoteAddr().(*net.TCPAddr)
	return ok
}

// answer makes an answer of records in zone file form; "@" in them is the question's name.
func answer(q *dns.Msg, rcode int, records ...string) *dns.Msg {
	m := new(dns.Msg).SetRcode(q, rcode)
	m.RecursionAvailable = true
	for _, s := range records {
		auth := strings.HasPrefix(s, "!")
		s = strings.TrimPrefix(s, "!")
		if rest, ok := strings.CutPrefix(s, "@ "); ok {
			s = q.Question[0].Name + " " + rest
		}
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		if auth {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	return m
}

// says is a script that gives every question the same answer.
func says(rcode int, records ...string) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(answer(q, rcode, records...)) }
}

func silent(dns.ResponseWriter, *dns.Msg) {}

// pack encodes m, whatever is wrong with it.
func pack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// handClock is moved by hand.
type handClock struct {
	nanos atomic.Int64
}

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func (c *handClock) now() time.Time { return epoch.Add(time.Duration(c.nanos.Load())) }

// resolve starts a resolver with a clock moved by hand.
func resolve(t testing.TB, o Options, servers ...*scripted) (*Resolver, *handClock) {
	t.Helper()
	c := new(handClock)
	if o.Clock == nil {
		o.Clock = c.now
	}
	for _, s := range servers {
		o.Servers = append(o.Servers, s.addr)
	}
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r, c
}

func (c *handClock) advance(r *Resolver, d time.Duration) {
	c.nanos.Add(int64(d))
	r.poke()
}

var (
	txt = func(name string) spf.Query { return spf.Query{Name: name, Type: spf.TypeTXT} }
	a   = func(name string) spf.Query { return spf.Query{Name: name, Type: spf.TypeA} }

	nobody netip.Addr
)

// future is an answer to come.
type future chan spf.Answer

// start looks q up.
func start(r *Resolver, q spf.Query) future {
	f := make(future, 2)
	if a, now := r.Lookup(q, nobody, func(a spf.Answer) { f <- a }); now {
		f <- a
	}
	return f
}

func (f future) get(t testing.TB) spf.Answer {
	t.Helper()
	select {
	case a := <-f:
		return a
	case <-time.After(20 * time.Second):
		t.Fatal("no answer")
		return spf.Answer{}
	}
}

// ask looks q up and waits.
func ask(t testing.TB, r *Resolver, q spf.Query) spf.Answer {
	t.Helper()
	return start(r, q).get(t)
}

// cached wants the answer to be there at once.
func cached(t testing.TB, r *Resolver, q spf.Query) spf.Answer {
	t.Helper()
	a, now := r.Lookup(q, nobody, func(spf.Answer) {})
	if !now {
		t.Fatalf("%v is not cached", q)
	}
	return a
}

// eventually waits for something that another goroutine is about to do.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
		time.Sleep(time.Millisecond)
	}
}

func text(a spf.Answer) string {
	switch {
	case a.Status == spf.Failed:
		return "failed"
	case a.Status == spf.Empty:
		return "empty"
	case a.TXT != nil:
		return fmt.Sprintf("%q", a.TXT.Strings)
	case a.Hosts != nil:
		return fmt.Sprint(a.Hosts)
	}
	return fmt.Sprint(a.Addrs)
}

func want(t testing.TB, got spf.Answer, is string) {
	t.Helper()
	if g := text(got); g != is {
		t.Fatalf("%s, want %s", g, is)
	}
}
