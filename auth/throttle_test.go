package auth

import (
	"net/netip"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

func newClock() *clock { return &clock{time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)} }

func from(addr string) Peer {
	p := client
	p.Addr = netip.AddrPortFrom(netip.MustParseAddr(addr), 1025)
	return p
}

// attempt logs in by PLAIN at a service whose store is secret().
func attempt(t *testing.T, s *Service, p Peer, user, password string) Result {
	t.Helper()
	_, o := converse(t, s, PLAIN, p, plainMessage("", user, password))
	return o.Result
}

func TestFailuresOfAnAddressAreThrottledAtTheLimitAndRecover(t *testing.T) {
	c := newClock()
	store := secret()
	s := testService(t, Options{Store: store, Throttle: ThrottleOptions{PerAddress: 3, PerAccount: -1, Window: 3 * time.Minute, Now: c.now}})
	bad, other := from("192.0.2.1"), from("192.0.2.2")
	for i := range 3 {
		if r := attempt(t, s, bad, "alice", "wrong"); r != Failed {
			t.Fatalf("failure %d: %v", i+1, r)
		}
	}
	asked := store.calls.Load()
	if r := attempt(t, s, bad, "alice", "secret"); r != Throttled {
		t.Errorf("one past the limit: %v", r)
	}
	if store.calls.Load() != asked {
		t.Error("the store was asked")
	}
	if r := attempt(t, s, other, "alice", "secret"); r != Success {
		t.Errorf("another address: %v", r)
	}
	c.advance(time.Minute - time.Second)
	if r := attempt(t, s, bad, "alice", "secret"); r != Throttled {
		t.Errorf("before a third of the window: %v", r)
	}
	c.advance(time.Second)
	if r := attempt(t, s, bad, "alice", "wrong"); r != Failed {
		t.Errorf("after it: %v", r)
	}
	if r := attempt(t, s, bad, "alice", "secret"); r != Throttled {
		t.Errorf("and one more: %v", r)
	}
	c.advance(3 * time.Minute)
	for range 5 { // success costs nothing
		if r := attempt(t, s, bad, "alice", "secret"); r != Success {
			t.Errorf("after the window: %v", r)
		}
	}
}

func TestFailuresAreCountedPerIPv6Network(t *testing.T) {
	s := testService(t, Options{Store: secret(), Throttle: ThrottleOptions{PerAddress: 1, PerAccount: -1}})
	attempt(t, s, from("2001:db8:1:2::1"), "alice", "wrong")
	if r := attempt(t, s, from("2001:db8:1:2:ffff::2"), "alice", "secret"); r != Throttled {
		t.Errorf("the same /64: %v", r)
	}
	if r := attempt(t, s, from("2001:db8:1:3::1"), "alice", "secret"); r != Success {
		t.Errorf("another /64: %v", r)
	}
	attempt(t, s, from("192.0.2.1"), "alice", "wrong")
	if r := attempt(t, s, from("::ffff:192.0.2.1"), "alice", "secret"); r != Throttled {
		t.Errorf("the same address in IPv6: %v", r)
	}
}

func TestFailuresForAnAccountAreThrottledExceptWhereItsOwnerLogsIn(t *testing.T) {
	c := newClock()
	store := secret()
	s := testService(t, Options{Store: store, Throttle: ThrottleOptions{PerAddress: -1, PerAccount: 4, Window: 4 * time.Minute, Now: c.now}})
	home := from("198.51.100.1")
	if r := attempt(t, s, home, "alice", "secret"); r != Success {
		t.Fatal(r)
	}
	for i := range 4 {
		if r := attempt(t, s, from("192.0.2."+string(rune('1'+i))), "alice", "wrong"); r != Failed {
			t.Errorf("failure %d: %v", i+1, r)
		}
	}
	asked := store.calls.Load()
	if r := attempt(t, s, from("203.0.113.1"), "alice", "secret"); r != Throttled {
		t.Errorf("a new address: %v", r)
	}
	if store.calls.Load() != asked {
		t.Error("the store was asked")
	}
	if _, o := converse(t, s, LOGIN, from("203.0.113.1"), []byte("alice"), []byte("secret")); o.Result != Throttled {
		t.Errorf("another mechanism: %v", o.Result)
	}
	if _, o := converse(t, s, XOAUTH2, from("203.0.113.1"), []byte("user=alice\x01auth=Bearer t0ken\x01\x01")); o.Result != Throttled {
		t.Errorf("by token: %v", o.Result)
	}
	if r := attempt(t, s, home, "alice", "secret"); r != Success {
		t.Errorf("the owner's address: %v", r)
	}
	if r := attempt(t, s, from("203.0.113.1"), "bob", "x"); r != Failed {
		t.Errorf("another account: %v", r)
	}
	c.advance(time.Minute)
	if r := attempt(t, s, from("203.0.113.1"), "alice", "secret"); r != Success {
		t.Errorf("after a quarter of the window: %v", r)
	}
}

func TestAllMechanismsCountFailuresAndMalformedOnesDoNot(t *testing.T) {
	k, _ := NewCRAMKeys("secret")
	u := scramUser(t, "alice", "secret")
	u.CRAM = &k
	certified := from("192.0.2.1")
	certified.Certificate = "nobody"
	for _, c := range []script{
		{PLAIN, []string{"\x00alice\x00wrong"}, nil, Failed, ""},
		{LOGIN, []string{"alice", "wrong"}, nil, Failed, ""},
		{CRAMMD5, []string{"-", "alice 00112233445566778899aabbccddeeff"}, nil, Failed, ""},
		{SCRAMSHA256, []string{"n,,n=alice,r=abc", "c=biws,r=abc,p=AAAA"}, nil, Failed, ""},
		{EXTERNAL, []string{""}, nil, Failed, ""},
		{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer x\x01\x01", "\x01"}, nil, Failed, ""},
		{XOAUTH2, []string{"user=alice\x01auth=Bearer x\x01\x01", ""}, nil, Failed, ""},
	} {
		tokens := secret()
		tokens.mechanisms = "OAUTHBEARER XOAUTH2"
		s := testService(t, Options{Store: Stores(testUsers(t, u), tokens), CRAMMD5: true, Throttle: ThrottleOptions{PerAddress: 1, PerAccount: 1}})
		script{PLAIN, []string{"x"}, nil, Malformed, ""}.run(t, s, certified)
		script{PLAIN, []string{"\x00alice\x00secret"}, nil, Success, "alice"}.run(t, s, certified)
		c.run(t, s, certified)
		script{PLAIN, []string{"\x00bob\x00secret"}, nil, Throttled, ""}.run(t, s, certified)
		if name := c.mechanism; name != EXTERNAL {
			script{PLAIN, []string{"\x00alice\x00secret"}, nil, Throttled, ""}.run(t, s, from("192.0.2.9"))
		}
	}
}

func TestThrottleTablesAreBounded(t *testing.T) {
	c := newClock()
	th := newThrottle(ThrottleOptions{PerAddress: 2, PerAccount: 2, MaxEntries: 50, Now: c.now})
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range 1000 {
		name := addr(i).String()
		th.failed(addr(i), name)
		th.succeeded(addr(i), name)
	}
	if len(th.addresses) != 50 || len(th.accounts) != 50 || len(th.friends) != 50 {
		t.Errorf("%d addresses, %d accounts, %d friends", len(th.addresses), len(th.accounts), len(th.friends))
	}
	last := addr(999)
	th.failed(last, "x")
	if th.allowsAddress(last) {
		t.Error("the latest address is forgotten")
	}
	long := string(make([]byte, 10000))
	th.failed(last, long)
	for name := range th.accounts {
		if len(name) > maxAccountBytes {
			t.Errorf("an account's key has %d bytes", len(name))
		}
	}
}
