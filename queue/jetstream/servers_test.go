package jetstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/fastedge/fastedge/internal/nettest"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// patience is how long a test waits for what must come. The machine may be busy; nothing is measured with it.
const patience = 2 * time.Minute

// opened opens a queue on servers, and closes it at the end.
func opened(t testing.TB, o Options, servers ...*server.Server) *Queue {
	t.Helper()
	for _, s := range servers {
		o.URLs = append(o.URLs, s.ClientURL())
	}
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	if o.Log == nil {
		o.Log = quiet
	}
	o.Create = true
	q, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil && !errors.Is(err, queue.ErrClosed) {
			t.Error(err)
		}
	})
	return q
}

// die ends q as kill -9 would: nothing is given back.
func (q *Queue) die() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.cancel()
	q.nc.Close()
	q.loops.Wait()
}

// eventually waits until ok says yes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func roomy(q *Queue) func() bool { return func() bool { return q.Room() == nil } }

// commit commits n messages of size bytes and gives what became of each.
func commit(q *Queue, maker *queuetest.Maker, n, size int) (subs []*queue.Submission, messages []queuetest.Message) {
	for range n {
		sub, m := maker.Submission(size, 1)
		subs, messages = append(subs, sub), append(messages, m)
	}
	q.Commit(subs)
	return subs, messages
}

func mustCommit(t testing.TB, q *Queue, maker *queuetest.Maker, n, size int) []queuetest.Message {
	t.Helper()
	subs, messages := commit(q, maker, n, size)
	for _, s := range subs {
		if s.Err != nil {
			t.Fatal(s.Err)
		}
		s.Env.Release()
	}
	return messages
}

func lease(t testing.TB, q *Queue) *queue.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d, err := q.Lease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func text(t testing.TB, d *queue.Delivery) []byte {
	t.Helper()
	r, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	deliveredOutcome = queue.Outcome{State: queue.Delivered, Reply: "250 2.0.0 Ok"}
	deferredOutcome  = queue.Outcome{State: queue.Pending, Reply: "451 4.3.0 Later"}
	refusedOutcome   = queue.Outcome{State: queue.Failed, Reply: "550 5.1.1 No such user"}
)

// cluster is three servers in this process.
type cluster struct {
	t       testing.TB
	options [3]*server.Options
	servers [3]*server.Server
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{t: t}
	var routes []string
	var ports [3]int
	for i := range ports {
		ports[i] = nettest.Port(t)
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[i]))
	}
	for i := range c.options {
		c.options[i] = &server.Options{
			ServerName: fmt.Sprintf("n%d", i), Host: "127.0.0.1", Port: nettest.Port(t), JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: ports[i], PoolSize: -1},
			Routes:  server.RoutesFromStr(strings.Join(routes, ",")),
		}
		c.start(i)
	}
	t.Cleanup(func() {
		for _, s := range c.servers {
			s.Shutdown()
		}
		for _, s := range c.servers {
			s.WaitForShutdown()
		}
	})
	eventually(t, "the cluster has a leader and all its servers", func() bool {
		for _, s := range c.servers {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == len(c.servers) {
				return true
			}
		}
		return false
	})
	return c
}

func (c *cluster) start(i int) {
	c.t.Helper()
	s, err := server.NewServer(c.options[i].Clone())
	if err != nil {
		c.t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		c.t.Fatal("a server does not start")
	}
	c.servers[i] = s
}

func (c *cluster) stop(i int) {
	c.servers[i].Shutdown()
	c.servers[i].WaitForShutdown()
}

// leader is the server that leads the stream.
func (c *cluster) leader(stream string) int {
	for i, s := range c.servers {
		if s.Running() && s.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
			return i
		}
	}
	return -1
}

// proxy stands between a client and a server, and can be cut off, or made to pass nothing on.
type proxy struct {
	listener net.Listener
	target   string

	mu      sync.Mutex
	stalled chan struct{} // closed when it passes on again; nil when it does
	slow    int           // bytes passed on at once, 0 no limit
	conns   map[net.Conn]bool
	after   int64 // bytes to the server until reached is closed
	reached chan struct{}
}

func newProxy(t testing.TB, s *server.Server) *proxy {
	t.Helper()
	u, err := url.Parse(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: u.Host, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); p.resume(); p.cut() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *proxy) url() string { return "nats://" + p.listener.Addr().String() }

func (p *proxy) serve(c net.Conn) {
	s, err := net.Dial("tcp", p.target)
	if err != nil {
		c.Close()
		return
	}
	p.mu.Lock()
	p.conns[c], p.conns[s] = true, true
	p.mu.Unlock()
	go p.pass(c, s, true)
	p.pass(s, c, false)
}

func (p *proxy) pass(from, to net.Conn, toServer bool) {
	defer from.Close()
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		p.mu.Lock()
		stalled, slow := p.stalled, p.slow
		p.mu.Unlock()
		if stalled != nil {
			<-stalled
			continue
		}
		if slow == 0 {
			slow = len(b)
		}
		n, err := from.Read(b[:min(slow, len(b))])
		p.mu.Lock()
		stalled = p.stalled
		p.mu.Unlock()
		if stalled != nil {
			<-stalled
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
			if toServer {
				p.mu.Lock()
				if p.after -= int64(n); p.after <= 0 && p.reached != nil {
					close(p.reached)
					p.reached = nil
				}
				p.mu.Unlock()
			}
		}
		if err != nil {
			return
		}
	}
}

// stall passes nothing on, in either direction: a partition that no end of a connection tells of.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled == nil {
		p.stalled = make(chan struct{})
	}
}

func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled != nil {
		close(p.stalled)
		p.stalled = nil
	}
}

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
		delete(p.conns, c)
	}
}
