package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func hashOf(b []byte) []byte {
	h := sha256.New()
	h.Write(b)
	return h.Sum(nil)
}

var home, away = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::1")

// countedUsers counts the hashes that are computed.
func countedUsers(t testing.TB, users ...User) (*Users, *atomic.Int64) {
	t.Helper()
	u, n := testUsers(t, users...), new(atomic.Int64)
	inner := u.pbkdf2
	u.pbkdf2 = func(password string, k *SCRAMKeys) (SCRAMKeys, error) {
		n.Add(1)
		return inner(password, k)
	}
	return u, n
}

// passwordClock is a time that tests set.
type passwordClock struct{ at time.Time }

func (c *passwordClock) now() time.Time { return c.at }

func TestPasswordsThatWereRightAreNotHashedAgain(t *testing.T) {
	users, hashed := countedUsers(t, scramUser(t, "alice", "secret"), scramUser(t, "bob", "other"))
	clock := &passwordClock{noon}
	p := NewPasswords(testService(t, Options{StepTimeout: time.Minute, Store: users}), PasswordsOptions{Now: clock.now})
	check := func(user, password string, want error, hashes int64) {
		t.Helper()
		before := hashed.Load()
		identity, err := p.Check(context.Background(), user, password, home)
		if !errors.Is(err, want) || (want == nil) != (identity == user && user != "") {
			t.Errorf("%s %s: %q %v, want %v", user, password, identity, err, want)
		}
		if got := hashed.Load() - before; got != hashes {
			t.Errorf("%s %s: %d hashes, want %d", user, password, got, hashes)
		}
	}
	check("alice", "secret", nil, 1)
	check("alice", "secret", nil, 0)
	check("alice", "Secret", ErrAuthFailed, 1)
	check("alice", "Secret", ErrAuthFailed, 1) // a no is never remembered
	check("bob", "secret", ErrAuthFailed, 1)
	check("alices", "ecret", ErrAuthFailed, 1)  // the same octets in a row
	check("nobody", "secret", ErrAuthFailed, 1) // costs what a known one does
	check("", "secret", ErrAuthFailed, 0)
	check("alice", "", ErrAuthFailed, 1)
	check("alice\x00secret", "", ErrAuthFailed, 0)
	check("\x00alice", "secret", ErrAuthFailed, 0)
	check("alice", "secret\x00", ErrAuthFailed, 0)
	check("alice", "\xff", ErrAuthFailed, 0)
	check("alice", strings.Repeat("x", MaxResponseBytes), ErrAuthFailed, 0)
	clock.at = clock.at.Add(time.Minute - 1)
	check("alice", "secret", nil, 0)
	clock.at = clock.at.Add(1)
	check("alice", "secret", nil, 1)
	p.Forget()
	check("alice", "secret", nil, 1)
}

func TestPasswordsCacheCanBeSwitchedOff(t *testing.T) {
	users, hashed := countedUsers(t, scramUser(t, "alice", "secret"))
	p := NewPasswords(testService(t, Options{StepTimeout: time.Minute, Store: users}), PasswordsOptions{CacheTime: -1})
	for range 3 {
		if _, err := p.Check(context.Background(), "alice", "secret", home); err != nil {
			t.Error(err)
		}
	}
	if hashed.Load() != 3 {
		t.Errorf("%d hashes", hashed.Load())
	}
}

func TestRememberedPasswordsAreBounded(t *testing.T) {
	var users []User
	for i := range 5 {
		users = append(users, scramUser(t, fmt.Sprint("user", i), "secret"))
	}
	clock := &passwordClock{noon}
	p := NewPasswords(testService(t, Options{StepTimeout: time.Minute, Store: testUsers(t, users...)}), PasswordsOptions{CacheEntries: 2, Now: clock.now})
	for _, u := range users {
		clock.at = clock.at.Add(time.Second)
		if _, err := p.Check(context.Background(), u.Name, "secret", home); err != nil || len(p.right) > 2 {
			t.Error(err, len(p.right))
		}
	}
	for _, name := range []string{"user3", "user4"} { // the last ones
		if _, ok := p.known(p.sum(name, "secret")); !ok {
			t.Error(name)
		}
	}
}

// A right password must not be told from a wrong one where guesses are refused, not even when it is remembered.
func TestRememberedPasswordsAreNoWayRoundTheLimits(t *testing.T) {
	users, _ := countedUsers(t, scramUser(t, "alice", "secret"))
	s := testService(t, Options{StepTimeout: time.Minute, Store: users, Throttle: ThrottleOptions{PerAddress: 2, PerAccount: 5}})
	p := NewPasswords(s, PasswordsOptions{})
	check := func(addr netip.Addr, password string, want error) {
		t.Helper()
		if _, err := p.Check(context.Background(), "alice", password, addr); !errors.Is(err, want) {
			t.Errorf("%v %s: %v, want %v", addr, password, err, want)
		}
	}
	check(home, "secret", nil)
	check(away, "wrong", ErrAuthFailed)
	check(away, "wrong", ErrAuthFailed)
	check(away, "wrong", ErrAuthThrottled)
	check(away, "secret", ErrAuthThrottled)
	check(home, "secret", nil)
	for i := range 3 {
		check(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), "wrong", ErrAuthFailed)
	}
	check(netip.AddrFrom4([4]byte{198, 51, 100, 9}), "secret", ErrAuthThrottled) // too many for the account
	check(home, "secret", nil)                                                   // but from here its owner came before
}

// gated is a store that answers when it is told to.
type gated struct {
	asked chan Login
	reply chan error
}

func (g *gated) Supports(mechanism string) bool { return mechanism == PLAIN }

func (g *gated) CheckPassword(ctx context.Context, l Login) (string, error) {
	g.asked <- l
	select {
	case err := <-g.reply:
		return "", err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// An answer that was on its way when users changed may be of yesterday's users.
func TestPasswordsAskedForBeforeAChangeOfUsersAreNotRemembered(t *testing.T) {
	g := &gated{make(chan Login), make(chan error)}
	p := NewPasswords(testService(t, Options{StepTimeout: time.Minute, Store: g}), PasswordsOptions{})
	done := make(chan error)
	check := func() { _, err := p.Check(context.Background(), "alice", "secret", home); done <- err }
	go check()
	if l := <-g.asked; l.User != "alice" || l.Password != "secret" || l.Peer.Addr.Addr() != home || l.Peer.Listener != "http" || !l.Peer.Secured {
		t.Errorf("%+v", l)
	}
	p.Forget()
	g.reply <- nil
	if err := <-done; err != nil || len(p.right) != 0 {
		t.Error(err, len(p.right))
	}
	go check()
	<-g.asked // again
	g.reply <- nil
	if err := <-done; err != nil || len(p.right) != 1 {
		t.Error(err, len(p.right))
	}
}

func TestPasswordsThatCannotBeChecked(t *testing.T) {
	g := &gated{make(chan Login, 1), make(chan error, 1)}
	p := NewPasswords(testService(t, Options{StepTimeout: time.Minute, Store: g}), PasswordsOptions{})
	g.reply <- io.ErrUnexpectedEOF
	if _, err := p.Check(context.Background(), "alice", "secret", home); !errors.Is(err, ErrAuthUnavailable) {
		t.Error(err)
	}
	<-g.asked
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-g.asked; cancel() }()
	if _, err := p.Check(ctx, "alice", "secret", home); !errors.Is(err, ErrAuthUnavailable) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := p.CheckCertificate(context.Background(), "alice", home); !errors.Is(err, ErrAuthUnavailable) { // the store can't
		t.Error(err)
	}
}

func TestCertificatesAreUsers(t *testing.T) {
	p := NewPasswords(testService(t, Options{StepTimeout: time.Minute, Store: testUsers(t, User{Name: "alice"}, User{Name: "bob", Disabled: true})}), PasswordsOptions{})
	for name, want := range map[string]error{"alice": nil, "bob": ErrAuthFailed, "carol": ErrAuthFailed, "": ErrAuthFailed} {
		identity, err := p.CheckCertificate(context.Background(), name, home)
		if !errors.Is(err, want) || (want == nil) != (identity == name && name != "") {
			t.Errorf("%q: %q %v", name, identity, err)
		}
	}
}

func TestPasswordsFromManyAtOnce(t *testing.T) {
	users, _ := countedUsers(t, scramUser(t, "alice", "secret"))
	p := NewPasswords(testService(t, Options{StepTimeout: time.Minute, Store: users}), PasswordsOptions{CacheEntries: 1})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 5 {
				if i%8 == 0 && j == 2 {
					p.Forget()
				}
				if identity, err := p.Check(context.Background(), "alice", "secret", home); err != nil || identity != "alice" {
					t.Error(identity, err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkRememberedPassword is what Basic costs a request after the first; its twin hashes each time.
func BenchmarkRememberedPassword(b *testing.B) {
	for _, o := range []struct {
		name string
		PasswordsOptions
	}{{"remembered", PasswordsOptions{CacheTime: time.Hour}}, {"hashed", PasswordsOptions{CacheTime: -1}}} {
		b.Run(o.name, func(b *testing.B) {
			p := NewPasswords(testService(b, Options{StepTimeout: time.Minute, Store: testUsers(b, scramUser(b, "alice", "secret"))}), o.PasswordsOptions)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Check(context.Background(), "alice", "secret", home); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
