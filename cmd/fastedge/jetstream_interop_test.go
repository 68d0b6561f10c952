//go:build interop

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/internal/nettest"
	"github.com/fastedge/fastedge/loadtest/report"
	"github.com/fastedge/fastedge/loadtest/sink"
	"github.com/fastedge/fastedge/queue"
)

// The tests of this file run fastedge over real nats-server processes: the version that go.mod names, and Debian's.

// natsLimit ends a server that a test has left behind, in seconds.
const natsLimit = "600"

var buildNATS = sync.OnceValues(func() (string, error) {
	// Beside the test's own program, so that who removes that removes both.
	program := filepath.Join(filepath.Dir(os.Args[0]), "nats-server")
	out, err := exec.Command("go", "build", "-o", program, "github.com/nats-io/nats-server/v2").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
})

func natsServer(t *testing.T) string {
	t.Helper()
	program, err := buildNATS()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// natsNode is one server.
type natsNode struct {
	name, url, monitor, config string
	cmd                        *exec.Cmd
	log                        *logTail
	done                       chan struct{}
}

// natsCluster is one server, or several that know each other.
type natsCluster struct {
	t       *testing.T
	program string
	nodes   []*natsNode
}

func startNATS(t *testing.T, program string, n int, extra string) *natsCluster {
	t.Helper()
	c := &natsCluster{t: t, program: program}
	var routes []string
	for range n {
		routes = append(routes, "nats://"+nettest.Address(t))
	}
	for i := range n {
		dir := t.TempDir()
		node := &natsNode{name: fmt.Sprintf("n%d", i+1), url: nettest.Address(t), monitor: nettest.Address(t), config: filepath.Join(dir, "nats.conf")}
		text := fmt.Sprintf("server_name: %s\nlisten: %q\nhttp: %q\njetstream { store_dir: %q }\n%s\n", node.name, node.url, node.monitor, filepath.Join(dir, "js"), extra)
		if n > 1 {
			text += fmt.Sprintf("cluster { name: test, listen: %s, routes: [%s] }\n", strings.TrimPrefix(routes[i], "nats://"), strings.Join(routes, ", "))
		}
		if err := os.WriteFile(node.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, node)
		c.start(node)
		t.Cleanup(func() { c.kill(node) })
	}
	return c
}

func (c *natsCluster) start(node *natsNode) {
	c.t.Helper()
	node.log, node.done = &logTail{}, make(chan struct{})
	// timeout makes a process group of its own, which is how both are ended.
	node.cmd = exec.Command("timeout", "-s", "KILL", natsLimit, c.program, "-c", node.config)
	node.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	node.cmd.Stderr = node.log
	if err := node.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	cmd, done := node.cmd, node.done
	go func() { cmd.Wait(); close(done) }()
	c.wait(node.name+" to be ready", func() bool { return strings.Contains(node.log.String(), "Server is ready") })
}

// kill ends a server as a power switch would.
func (c *natsCluster) kill(node *natsNode) {
	syscall.Kill(-node.cmd.Process.Pid, syscall.SIGKILL)
	<-node.done
}

func (c *natsCluster) wait(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			for _, node := range c.nodes {
				c.t.Logf("%s:\n%s", node.name, node.log)
			}
			c.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// urls is all servers as queue.jetstream.url wants them.
func (c *natsCluster) urls() string {
	var all []string
	for _, node := range c.nodes {
		all = append(all, "nats://"+node.url)
	}
	return strings.Join(all, ",")
}

// streamState is what a server says of a stream.
type streamState struct {
	Name    string `json:"name"`
	Cluster struct {
		Leader   string `json:"leader"`
		Replicas []struct {
			Current bool `json:"current"`
			Offline bool `json:"offline"`
		} `json:"replicas"`
	} `json:"cluster"`
	State struct {
		Messages uint64 `json:"messages"`
		FirstSeq uint64 `json:"first_seq"`
		LastSeq  uint64 `json:"last_seq"`
	} `json:"state"`
	Consumers []json.RawMessage `json:"consumer_detail"` // for the log: a server that does not lead a consumer may be behind
}

// stream asks the stream's leader, or gives nil when there is none now.
func (c *natsCluster) stream(name string) *streamState {
	client := http.Client{Timeout: 5 * time.Second}
	for _, node := range c.nodes {
		answer, err := client.Get("http://" + node.monitor + "/jsz?streams=true&consumers=true")
		if err != nil {
			continue
		}
		var all struct {
			Accounts []struct {
				Streams []*streamState `json:"stream_detail"`
			} `json:"account_details"`
		}
		err = json.NewDecoder(answer.Body).Decode(&all)
		answer.Body.Close()
		if err != nil {
			continue
		}
		for _, account := range all.Accounts {
			for _, s := range account.Streams {
				if s.Name == name && s.Cluster.Leader == node.name {
					return s
				}
			}
		}
	}
	return nil
}

// whole says whether the stream has a leader and all its copies are as new as that.
func (c *natsCluster) whole(name string) bool {
	s := c.stream(name)
	if s == nil || len(s.Cluster.Replicas) != len(c.nodes)-1 {
		return false
	}
	for _, r := range s.Cluster.Replicas {
		if !r.Current || r.Offline {
			return false
		}
	}
	return true
}

// jetstreamConfig is a fastedge over the cluster; more goes behind [queue.jetstream].
func jetstreamConfig(c *natsCluster, engine, more string) string {
	return strings.Replace(minimalConfig, "[queue]\n", "[queue]\nengine = \""+engine+"\"\n", 1) +
		fmt.Sprintf("[queue.jetstream]\nurl = %q\nreplicas = %d\n%s\n", c.urls(), len(c.nodes), more)
}

// running is a load in a process of its own, which ends when it is told to.
type running struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  string
	text *logTail
	done chan struct{}
}

func startRunning(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{t: t, out: filepath.Join(t.TempDir(), "run.json"), text: &logTail{}, done: make(chan struct{})}
	r.cmd = exec.Command(os.Args[0], append([]string{"loadtest", "run", "--quiet", "--duration", "10m", "--out", r.out}, args...)...)
	r.cmd.Env = append(os.Environ(), "FASTEDGETEST_BE_FASTEDGE=1")
	r.cmd.Stdout, r.cmd.Stderr = r.text, r.text
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.cmd.Wait(); close(r.done) }()
	t.Cleanup(func() { r.cmd.Process.Kill(); <-r.done })
	return r
}

// verdict ends the load and gives what its ledger says.
func (r *running) verdict() *report.Run {
	r.t.Helper()
	r.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Fatalf("the load does not end:\n%s", r.text)
	}
	runs, err := readRuns(r.out)
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.text)
	}
	return runs[0]
}

// kill -9 of the relay, of a node, of the leader and of the edge, while mail comes in: everything that was acknowledged arrives, and mail goes on by itself
// each time.
func TestMailSurvivesTheLossOfTheRelayOfANodeOfTheLeaderAndOfTheEdge(t *testing.T) {
	for _, engine := range []string{"jetstream", "spool+jetstream"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			received, err := sink.New(sink.Options{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			sinking := make(chan struct{})
			go func() { defer close(sinking); received.Serve(ctx) }()
			defer func() { stop(); <-sinking }()

			c := startNATS(t, natsServer(t), 3, "")
			edgeDir, addr := t.TempDir(), freeAddress(t)
			edgeConfig := atPort(jetstreamConfig(c, engine, ""), addr)
			edge := serve(t, edgeDir, edgeConfig)
			relayConfig := jetstreamConfig(c, "jetstream", "") + "[relay]\nnext_hop = [\"smtp://" + received.Addr().String() + "\"]\nretry = [\"500ms\"]\n"
			relay := serve(t, t.TempDir(), relayConfig)
			c.wait("a whole cluster", func() bool { return c.whole("MAIL") })

			load := startRunning(t, addr, "--rate", "100/s", "--connections", "10", "--timeout", "30s", "--size", "1KiB..16KiB", "--verify", "sink://"+received.Addr().String())
			goesOn := func(what string) {
				t.Helper()
				before, start := received.Counters().Messages, time.Now()
				for received.Counters().Messages < before+100 {
					if time.Since(start) > patience {
						t.Fatalf("mail does not go on after %s\nedge:\n%s\nrelay:\n%s\nload:\n%s", what, edge.log, relay.log, load.text)
					}
					time.Sleep(20 * time.Millisecond)
				}
				t.Logf("%s: 100 messages %.1f s after %s", engine, time.Since(start).Seconds(), what)
			}
			goesOn("the start")
			relay.kill() // what it had in hand comes again half a minute later, while other things happen
			relay = serve(t, relay.dir, relayConfig)
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("relay: %s\n%s", relay.fastedge("queue", "stat"), relay.log)
				}
			})
			goesOn("the loss of the relay")
			// of gives a node that is, or is not, the stream's leader.
			of := func(leader bool) *natsNode {
				var node *natsNode
				c.wait("a leader", func() bool {
					s := c.stream("MAIL")
					if s == nil {
						return false
					}
					i := slices.IndexFunc(c.nodes, func(n *natsNode) bool { return (n.name == s.Cluster.Leader) == leader })
					node = c.nodes[i]
					return true
				})
				return node
			}
			for _, leader := range []bool{false, true} {
				node := of(leader)
				c.kill(node)
				goesOn(fmt.Sprintf("the loss of %s (leader: %v)", node.name, leader))
				c.start(node)
				c.wait("a whole cluster", func() bool { return c.whole("MAIL") })
			}
			if engine == "spool+jetstream" {
				// More than a majority is gone: mail is taken all the same, and waits.
				for _, node := range c.nodes {
					c.kill(node)
				}
				edge.wait("the outage to be noticed", func() bool { return strings.Contains(edge.log.String(), "forward: messages are not taken") })
				n := edge.lines(`"msg":"accepted"`)
				edge.wait("mail to be taken meanwhile", func() bool { return edge.lines(`"msg":"accepted"`) > n+100 })
				if st := edge.stat(t); st.Parts["spool"].Messages["leased"]+st.Parts["spool"].Messages["ready"] == 0 || st.Alarm == "" {
					t.Errorf("while the cluster is away: %+v", st)
				}
				for _, node := range c.nodes {
					c.start(node)
				}
				goesOn("the loss of all nodes")
			}
			edge.kill()
			edge = serve(t, edgeDir, edgeConfig)
			goesOn("the loss of the edge")

			// What a killed node had given out comes again when its time is over.
			last := c.stream("MAIL")
			c.wait("a leader", func() bool { last = c.stream("MAIL"); return last != nil })
			var now *streamState
			t.Cleanup(func() {
				if t.Failed() && now != nil {
					t.Logf("up to %d, MAIL: %+v, consumer: %s", last.State.LastSeq, now.State, now.Consumers)
				}
			})
			// A stream that is a queue forgets what is acknowledged.
			c.wait("all that came before to be handed on", func() bool {
				if s := c.stream("MAIL"); s != nil {
					now = s
				}
				return now != nil && now.State.FirstSeq > last.State.LastSeq
			})
			r := load.verdict()
			v := r.Verdict
			t.Logf("%s: %d acknowledged, %d received, %d lost, %d duplicates, %d unknown (%d of them twice), %d answered 4yz and handed on all the same; %d deferred",
				engine, v.Acknowledged, v.Received, v.Lost, v.Duplicates, v.Unknown, v.Repeats, v.Phantom, r.Totals.Deferred)
			if v.Lost != 0 || v.Corrupt != 0 || v.Acknowledged < 300 {
				t.Errorf("verdict %+v\nedge:\n%s\nrelay:\n%s", v, edge.log, relay.log)
			}
			if engine == "spool+jetstream" && (v.Phantom != 0 || r.Totals.Deferred != 0) {
				t.Errorf("the spool has said no: %d deferred, %d of them handed on", r.Totals.Deferred, v.Phantom)
			}
		})
	}
}

func TestQueueCommandsSeeWhatJetStreamHolds(t *testing.T) {
	servers := map[string]string{"go.mod": natsServer(t)}
	if debian, err := exec.LookPath("/usr/sbin/nats-server"); err == nil {
		servers["Debian"] = debian
	}
	for name, program := range servers {
		for _, engine := range []string{"jetstream", "spool+jetstream"} {
			t.Run(engine+" "+name, func(t *testing.T) {
				c := startNATS(t, program, 1, "")
				dir := t.TempDir()
				p := serve(t, dir, jetstreamConfig(c, engine, ""))
				texts := map[string]string{}
				var ids []string
				for _, text := range []string{"Subject: one\r\n\r\nbody\r\n", "Subject: 2 MiB\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 2<<20/78), "Subject: three\r\n\r\n"} {
					id := delivered(p, text)
					texts[id] = text
					ids = append(ids, id)
				}
				p.wait("all to be in JetStream", func() bool {
					st := p.stat(t)
					return engine == "jetstream" || st.Parts["spool"].Bytes == 0
				})
				see := func() {
					t.Helper()
					st := p.stat(t)
					if n := st.Messages["held"] + st.Messages["ready"]; n != 3 || st.Alarm != "" {
						t.Errorf("queue stat: %+v", st)
					}
					list := string(p.fastedge("queue", "list"))
					for _, id := range ids {
						if !strings.Contains(list, id) {
							t.Errorf("queue list without %s:\n%s", id, list)
						}
						if out := p.fastedge("queue", "cat", id); string(withoutTrace(t, out)) != texts[id] {
							t.Errorf("queue cat %s: %d bytes, %.100q", id, len(out), out)
						}
						var e queue.Entry
						if err := json.Unmarshal(p.fastedge("queue", "show", "--json", id), &e); err != nil || e.ReversePath != "a@example.org" || e.Recipients[0].ForwardPath != "b@example.net" {
							t.Errorf("queue show %s: %v, %+v", id, err, e)
						}
					}
				}
				see()
				if code := p.term(); code != 0 {
					t.Errorf("exit code %d:\n%s", code, p.log)
				}
				see() // without a server, straight from the cluster
			})
		}
	}
}

func TestAWrongPasswordOfJetStreamIsAnErrorAtOnce(t *testing.T) {
	c := startNATS(t, natsServer(t), 1, "authorization { user: mail, password: right }")
	for _, engine := range []string{"jetstream", "spool+jetstream"} {
		config := jetstreamConfig(c, engine, "user = \"mail\"\npassword = \"wrong\"")
		for verb, want := range map[string]int{"check": exitConfig, "serve": exitFailure} {
			if code, out := oneShot(t, config, verb); code != want || !regexp.MustCompile(`(?i)authorization`).MatchString(out) || strings.Contains(out, "wrong") {
				t.Errorf("%s %s: exit code %d, want %d\n%s", engine, verb, code, want, out)
			}
		}
		config = strings.Replace(config, "wrong", "right", 1)
		p := serve(t, t.TempDir(), config)
		delivered(p, "Subject: in\r\n\r\n")
		p.term()
	}
}

func TestCheckSaysHowTheStreamDiffers(t *testing.T) {
	c := startNATS(t, natsServer(t), 1, "")
	config := jetstreamConfig(c, "jetstream", "")
	if code, out := oneShot(t, config, "check"); code != exitOK || !strings.Contains(out, "stream MAIL does not exist") {
		t.Errorf("before the first start: %d\n%s", code, out)
	}
	if code, out := oneShot(t, config+"create = false\n", "check"); code != exitConfig || !strings.Contains(out, "stream MAIL does not exist") {
		t.Errorf("with nobody who makes it: %d\n%s", code, out)
	}
	if code, out := oneShot(t, config+"create = false\n", "serve"); code != exitFailure || !strings.Contains(out, "stream MAIL does not exist") {
		t.Errorf("serve with nobody who makes it: %d\n%s", code, out)
	}
	p := serve(t, t.TempDir(), config)
	p.wait("the stream", func() bool { return p.stat(t).Alarm == "" })
	p.term()
	if code, out := oneShot(t, config, "check"); code != exitOK || strings.Contains(out, "stream MAIL") {
		t.Errorf("after it: %d\n%s", code, out)
	}
	three := strings.Replace(config, "replicas = 1", "replicas = 3", 1)
	if code, out := oneShot(t, three, "check"); code != exitConfig || !strings.Contains(out, "stream MAIL has 1 replicas, not 3") {
		t.Errorf("with more replicas: %d\n%s", code, out)
	}
	if code, out := oneShot(t, three, "serve"); code != exitFailure || !strings.Contains(out, "stream MAIL has 1 replicas, not 3") {
		t.Errorf("serve with more replicas: %d\n%s", code, out)
	}
	away := strings.Replace(config, c.nodes[0].url, nettest.Nobody(t), 1)
	if code, out := oneShot(t, away, "check"); code != exitOK || !strings.Contains(out, "not verified") {
		t.Errorf("away: %d\n%s", code, out)
	}
}

// A cluster that is not there costs clients a 451, not a wait; it is taken when it comes.
func TestAnEdgeStartsWithoutItsClusterAndTakesItWhenItComes(t *testing.T) {
	c := startNATS(t, natsServer(t), 1, "")
	c.kill(c.nodes[0])
	p := serve(t, t.TempDir(), jetstreamConfig(c, "jetstream", "timeout = \"2s\""))
	client, err := hello(p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if reply, err := client.talk("MAIL FROM:<a@example.org>\r\n", "451 4.4"); err != nil {
		t.Errorf("MAIL without a cluster: %q, %v", reply, err)
	}
	c.start(c.nodes[0])
	delivered(p, "Subject: late\r\n\r\n")
}
