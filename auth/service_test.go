package auth

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"
)

const testIterations = MinIterations

func scramUser(t testing.TB, name, password string) User {
	t.Helper()
	k, err := NewSCRAMKeys(password, []byte("0123456789abcdef"), testIterations)
	if err != nil {
		t.Fatal(err)
	}
	return User{Name: name, SCRAM: &k}
}

// argonUser has a hash that is cheap to check.
func argonUser(t testing.TB, name, password string) User {
	t.Helper()
	a := Argon2id{MemoryKiB: 8, Passes: 1, Lanes: 1, Salt: []byte("fedcba9876543210"), Hash: make([]byte, 32)}
	a.Hash = NewUsers(nil).argon2(password, &a)
	return User{Name: name, Argon2id: &a}
}

func testUsers(t testing.TB, users ...User) *Users {
	t.Helper()
	table, err := NewTable(users...)
	if err != nil {
		t.Fatal(err)
	}
	return NewUsers(table)
}

func testService(t testing.TB, o Options) *Service {
	t.Helper()
	if o.FailureDelay == 0 {
		o.FailureDelay = -1
	}
	if o.Throttle.PerAddress == 0 && o.Throttle.PerAccount == 0 {
		o.Throttle = ThrottleOptions{PerAddress: -1, PerAccount: -1}
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var client = Peer{Addr: netip.MustParseAddrPort("192.0.2.7:4711"), Helo: "client.example.org", Listener: "submission", Session: "s1"}

// respond gives one response and waits for the answer.
func respond(t testing.TB, x *Exchange, response []byte, present bool) Outcome {
	t.Helper()
	answers := make(chan Outcome, 2)
	x.Step(response, present, func(o Outcome) { answers <- o })
	select {
	case o := <-answers:
		return o
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: no answer to %q", x.mechanism, response)
		return Outcome{}
	}
}

// converse steps through the responses; the first may be nil for none. It returns all challenges and the last outcome.
func converse(t testing.TB, s *Service, mechanism string, p Peer, responses ...[]byte) (challenges []string, last Outcome) {
	t.Helper()
	x := s.Begin(mechanism, p)
	if x == nil {
		t.Fatalf("%s is not supported", mechanism)
	}
	defer x.Cancel()
	for i, r := range responses {
		last = respond(t, x, r, i > 0 || r != nil)
		if last.Result != Continue {
			if i < len(responses)-1 {
				t.Fatalf("%s: %v after response %d of %d", mechanism, last.Result, i+1, len(responses))
			}
			return challenges, last
		}
		challenges = append(challenges, string(last.Challenge))
	}
	return challenges, last
}

// login lets a client of go-sasl's kind talk to the service. late sends the initial response only when asked for.
func login(t testing.TB, s *Service, p Peer, c sasl.Client, late bool) Outcome {
	t.Helper()
	mechanism, ir, err := c.Start()
	if err != nil {
		t.Fatal(err)
	}
	x := s.Begin(mechanism, p)
	if x == nil {
		t.Fatalf("%s is not supported", mechanism)
	}
	defer x.Cancel()
	var o Outcome
	switch {
	case late && ir != nil:
		if o = respond(t, x, nil, false); o.Result != Continue || mechanism != LOGIN && len(o.Challenge) != 0 {
			t.Fatalf("%s without an initial response: %v %q", mechanism, o.Result, o.Challenge)
		}
		o = respond(t, x, ir, true)
	default:
		o = respond(t, x, ir, ir != nil)
	}
	for o.Result == Continue {
		r, err := c.Next(o.Challenge)
		var refused *sasl.OAuthBearerError
		switch {
		case errors.As(err, &refused):
			r = []byte{1}
		case err != nil:
			t.Logf("%s: client: %v", mechanism, err)
			return Outcome{Result: Malformed, Tried: "client gave up"}
		}
		o = respond(t, x, r, true)
	}
	return o
}

// scramClient makes a sasl.Client of xdg-go/scram's.
type scramClient struct {
	mechanism string
	c         *scram.ClientConversation
}

func newSCRAMClient(t testing.TB, user, password, actAs string) *scramClient {
	t.Helper()
	c, err := scram.SHA256.NewClient(user, password, actAs)
	if err != nil {
		t.Fatal(err)
	}
	return &scramClient{SCRAMSHA256, c.NewConversation()}
}

func (c *scramClient) Start() (string, []byte, error) {
	first, err := c.c.Step("")
	return c.mechanism, []byte(first), err
}

func (c *scramClient) Next(challenge []byte) ([]byte, error) {
	r, err := c.c.Step(string(challenge))
	return []byte(r), err
}

// scripted is a store whose answers a test gives.
type scripted struct {
	mechanisms string
	calls      atomic.Int32
	password   func(ctx context.Context, l Login) (string, error)
	token      func(ctx context.Context, l Login) (string, error)
}

func (s *scripted) Supports(m string) bool { return strings.Contains(" "+s.mechanisms+" ", " "+m+" ") }

func (s *scripted) CheckPassword(ctx context.Context, l Login) (string, error) {
	s.calls.Add(1)
	return s.password(ctx, l)
}

func (s *scripted) CheckToken(ctx context.Context, l Login) (string, error) {
	s.calls.Add(1)
	return s.token(ctx, l)
}

func (s *scripted) CheckIdentity(ctx context.Context, l Login) (string, error) {
	s.calls.Add(1)
	return s.password(ctx, l)
}

// secret is a store with alice's password and token.
func secret() *scripted {
	return &scripted{
		mechanisms: "PLAIN LOGIN OAUTHBEARER XOAUTH2",
		password: func(_ context.Context, l Login) (string, error) {
			if l.User == "alice" && l.Password == "secret" {
				return "", nil
			}
			return "", ErrRefused
		},
		token: func(_ context.Context, l Login) (string, error) {
			if l.Token == "t0ken" {
				return "alice", nil
			}
			return "", ErrRefused
		},
	}
}

func plainMessage(actAs, user, password string) []byte {
	return []byte(actAs + "\x00" + user + "\x00" + password)
}

func TestServiceWithoutAStoreIsRefused(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no error")
	}
	if _, err := New(Options{Store: secret(), Rand: strings.NewReader("short")}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("without randomness:", err)
	}
}

func TestSupportsFollowsTheStoreAndTheSwitch(t *testing.T) {
	cram, _ := NewCRAMKeys("secret")
	all := scramUser(t, "alice", "secret")
	all.CRAM = &cram
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"SCRAM keys", Options{Store: testUsers(t, scramUser(t, "alice", "x"))}, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN"},
		{"hashes only", Options{Store: testUsers(t, argonUser(t, "alice", "x"))}, "EXTERNAL PLAIN LOGIN"},
		{"CRAM keys, not switched on", Options{Store: testUsers(t, all)}, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN"},
		{"CRAM keys", Options{Store: testUsers(t, all), CRAMMD5: true}, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN CRAM-MD5"},
		{"tokens", Options{Store: secret()}, "OAUTHBEARER XOAUTH2 PLAIN LOGIN"},
		{"both", Options{Store: Stores(testUsers(t, all), secret())}, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL OAUTHBEARER XOAUTH2 PLAIN LOGIN"},
	} {
		s := testService(t, c.o)
		var got []string
		for _, m := range Mechanisms() {
			if s.Supports(m) {
				got = append(got, m)
			}
			if (s.Begin(m, client) != nil) != s.Supports(m) {
				t.Errorf("%s: Begin and Supports differ on %s", c.name, m)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
		if s.Supports("plain") || s.Supports("GSSAPI") || s.Supports("") {
			t.Errorf("%s: supports what it does not know", c.name)
		}
		if s.Offers(SCRAMSHA256Plus, client) || s.Offers(EXTERNAL, client) {
			t.Errorf("%s: -PLUS and EXTERNAL are offered to a client in clear without a certificate", c.name)
		}
	}
}

// gate is a store that answers when it is told to.
type gate struct {
	scripted
	entered chan string
	open    chan error
}

func newGate() *gate {
	g := &gate{entered: make(chan string, 100), open: make(chan error)}
	g.mechanisms = "PLAIN"
	g.password = func(_ context.Context, l Login) (string, error) {
		g.entered <- l.User
		return "", <-g.open
	}
	return g
}

func TestQueueFullIsUnavailableAtOnce(t *testing.T) {
	g := newGate()
	s := testService(t, Options{Store: g, Workers: 2, MaxQueued: 3})
	answers := make(chan Outcome, 10)
	send := func() *Exchange {
		x := s.Begin(PLAIN, client)
		x.Step(plainMessage("", "alice", "x"), true, func(o Outcome) { answers <- o })
		return x
	}
	for range 2 {
		send()
		<-g.entered
	}
	var waiting []*Exchange
	for range 3 { // at the limit
		waiting = append(waiting, send())
	}
	select {
	case o := <-answers:
		t.Fatal("answered at the limit:", o.Result)
	default:
	}
	send() // one past
	if o := <-answers; o.Result != Unavailable {
		t.Errorf("one past the limit: %v", o.Result)
	}
	waiting[1].Cancel() // makes room
	send()
	for range 5 {
		g.open <- nil
		if o := <-answers; o.Result != Success || o.User != "alice" {
			t.Errorf("%v %q", o.Result, o.User)
		}
	}
	if n := g.calls.Load(); n != 5 {
		t.Errorf("the store was asked %d times, want 5", n)
	}
}

func TestHangingStoreIsUnavailableInTime(t *testing.T) {
	g := newGate()
	s := testService(t, Options{Store: g, Workers: 1, StepTimeout: 20 * time.Millisecond})
	hangs := s.Begin(PLAIN, client)
	if o := respond(t, hangs, plainMessage("", "alice", "x"), true); o.Result != Unavailable {
		t.Errorf("running: %v", o.Result)
	}
	waits := s.Begin(PLAIN, client)
	if o := respond(t, waits, plainMessage("", "alice", "x"), true); o.Result != Unavailable {
		t.Errorf("waiting: %v", o.Result)
	}
	close(g.open) // too late: nobody is told
	idle(s)
	if n := g.calls.Load(); n > 1 { // or not at all, by a worker that came too late for the first
		t.Errorf("the store was asked %d times, want once: a step that is given up must not run", n)
	}
}

// idle waits until no worker runs.
func idle(s *Service) {
	for {
		s.mu.Lock()
		running := s.running
		s.mu.Unlock()
		if running == 0 {
			return
		}
		runtime.Gosched()
	}
}

func TestTroubledStoreIsUnavailableAndLoggedWithoutThePassword(t *testing.T) {
	for name, password := range map[string]func(context.Context, Login) (string, error){
		"error":    func(context.Context, Login) (string, error) { return "", errors.New("disk on fire") },
		"panic":    func(context.Context, Login) (string, error) { panic("disk on fire") },
		"nameless": func(_ context.Context, l Login) (string, error) { return "", context.DeadlineExceeded },
	} {
		var log bytes.Buffer
		store := &scripted{mechanisms: "PLAIN", password: password}
		s := testService(t, Options{Store: store, Log: slog.New(slog.NewTextHandler(&log, nil))})
		for range 3 {
			if _, o := converse(t, s, PLAIN, client, plainMessage("", "alice", "verysecret")); o.Result != Unavailable {
				t.Errorf("%s: %v", name, o.Result)
			}
		}
		if name != "panic" && strings.Count(log.String(), "\n") != 1 {
			t.Errorf("%s: logged\n%s", name, log.String())
		}
		if strings.Contains(log.String(), "verysecret") {
			t.Errorf("%s: the password is in the log:\n%s", name, log.String())
		}
	}
}

func TestCancelMeansNoAnswer(t *testing.T) {
	g := newGate()
	s := testService(t, Options{Store: g, Workers: 1})
	var told atomic.Int32
	x := s.Begin(PLAIN, client)
	x.Step(plainMessage("", "alice", "x"), true, func(Outcome) { told.Add(1) })
	<-g.entered
	queued := s.Begin(PLAIN, client)
	queued.Step(plainMessage("", "bob", "x"), true, func(Outcome) { told.Add(1) })
	idle := s.Begin(PLAIN, client)
	between := s.Begin(LOGIN, client)
	if between != nil {
		t.Fatal("LOGIN is supported")
	}
	for _, x := range []*Exchange{x, queued, idle} {
		x.Cancel()
		x.Cancel()
		x.Step([]byte("more"), true, func(Outcome) { told.Add(1) })
	}
	g.open <- nil
	// The next exchange is answered after the worker is through with the cancelled ones.
	last := s.Begin(PLAIN, client)
	done := make(chan Outcome, 1)
	last.Step(plainMessage("", "carol", "x"), true, func(o Outcome) { done <- o })
	g.open <- nil
	<-done
	if n := told.Load(); n != 0 {
		t.Errorf("%d answers after Cancel", n)
	}
	if who := <-g.entered; who != "carol" {
		t.Errorf("the store was asked about %s, whose client was gone", who)
	}
}

func TestCancelAndAnswerRace(t *testing.T) {
	s := testService(t, Options{Store: secret(), Workers: 4})
	var wg sync.WaitGroup
	for range 500 {
		x := s.Begin(PLAIN, client)
		var told, cancelled atomic.Int32
		wg.Go(func() {
			x.Step(plainMessage("", "alice", "secret"), true, func(Outcome) {
				if told.Add(1) > 1 {
					t.Error("two answers")
				}
			})
		})
		wg.Go(func() { x.Cancel(); cancelled.Add(1) })
	}
	wg.Wait()
}

func TestStepAfterTheEndPanics(t *testing.T) {
	s := testService(t, Options{Store: secret()})
	x := s.Begin(PLAIN, client)
	respond(t, x, plainMessage("", "alice", "secret"), true)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	x.Step(nil, true, func(Outcome) {})
}

func TestWaitingExchangesHoldNoGoroutine(t *testing.T) {
	g := newGate()
	s := testService(t, Options{Store: g, Workers: 2, FailureDelay: time.Hour})
	refusing := testService(t, Options{Store: secret(), Workers: 2, FailureDelay: time.Hour})
	before := runtime.NumGoroutine()
	var xs []*Exchange
	for range 1000 {
		// Queued, held back, and between two steps.
		x := s.Begin(PLAIN, client)
		x.Step(plainMessage("", "alice", "x"), true, func(Outcome) {})
		y := refusing.Begin(PLAIN, client)
		y.Step(plainMessage("", "alice", "wrong"), true, func(Outcome) { t.Error("told before the delay") })
		z := refusing.Begin(LOGIN, client)
		respond(t, z, nil, false)
		xs = append(xs, x, y, z)
	}
	if n := runtime.NumGoroutine() - before; n > 8 {
		t.Errorf("%d goroutines for 3000 exchanges", n)
	}
	for _, x := range xs {
		x.Cancel()
	}
	close(g.open)
}

func TestRefusalIsToldLate(t *testing.T) {
	s := testService(t, Options{Store: secret(), Workers: 1, FailureDelay: time.Hour})
	refused := s.Begin(PLAIN, client)
	refused.Step(plainMessage("", "alice", "wrong"), true, func(Outcome) { t.Error("told at once") })
	// The only worker is free meanwhile, and success is told at once.
	if _, o := converse(t, s, PLAIN, client, plainMessage("", "alice", "secret")); o.Result != Success {
		t.Errorf("%v", o.Result)
	}
	refused.Cancel()

	s = testService(t, Options{Store: secret(), FailureDelay: time.Millisecond})
	if _, o := converse(t, s, PLAIN, client, plainMessage("", "alice", "wrong")); o.Result != Failed || o.Tried != "alice" {
		t.Errorf("%v %q", o.Result, o.Tried)
	}
}

func TestResponseLengthAtTheLimitAndPast(t *testing.T) {
	s := testService(t, Options{Store: secret()})
	message := plainMessage("", "alice", strings.Repeat("x", MaxResponseBytes-len("\x00alice\x00")))
	if _, o := converse(t, s, PLAIN, client, message); o.Result != Failed {
		t.Errorf("%d bytes: %v", len(message), o.Result)
	}
	if _, o := converse(t, s, PLAIN, client, append(message, 'x')); o.Result != Malformed {
		t.Errorf("%d bytes: %v", len(message)+1, o.Result)
	}
}
