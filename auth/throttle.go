package auth

import (
	"net/netip"
	"sync"
	"time"
)

// ThrottleOptions bound failures. A count drains evenly: after Window it is down by the whole limit, so who waits may try again.
type ThrottleOptions struct {
	PerAddress int              // failures from an IPv4 address or an IPv6 /64 within Window; default 10, negative: no limit
	PerAccount int              // failures for one name within Window, from anywhere; default 100, negative: no limit
	Window     time.Duration    // default 10 minutes
	MaxEntries int              // addresses, accounts and known pairs remembered, each; default 65536
	Now        func() time.Time // default time.Now
}

// throttle counts failures. Any goroutine.
type throttle struct {
	o  ThrottleOptions
	mu sync.Mutex

	addresses map[netip.Prefix]bucket
	accounts  map[string]bucket
	// friends have logged in: the failures of strangers for this account do not lock them out. Only their own address counts.
	friends map[friend]time.Time
}

type friend struct {
	prefix  netip.Prefix
	account string
}

// bucket is a count that drains.
type bucket struct {
	level float64
	at    time.Time
}

func newThrottle(o ThrottleOptions) *throttle {
	if o.PerAddress == 0 {
		o.PerAddress = 10
	}
	if o.PerAccount == 0 {
		o.PerAccount = 100
	}
	if o.Window <= 0 {
		o.Window = 10 * time.Minute
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = 65536
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &throttle{o: o, addresses: map[netip.Prefix]bucket{}, accounts: map[string]bucket{}, friends: map[friend]time.Time{}}
}

// prefixOf is what failures are counted by: networks give one customer a whole /64.
func prefixOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the invalid prefix for the invalid address
	return p
}

// maxAccountBytes is how much of a name is a key. Longer names than any store has share a count.
const maxAccountBytes = 256

func accountKey(name string) string {
	if prepared, err := prepare(name); err == nil {
		name = prepared
	}
	if len(name) > maxAccountBytes {
		name = name[:maxAccountBytes]
	}
	return name
}

func (b bucket) now(t time.Time, limit int, window time.Duration) float64 {
	drained := float64(limit) * float64(t.Sub(b.at)) / float64(window)
	return max(0, b.level-max(0, drained))
}

// full is true when one more failure would be past the limit. The small difference is for what drains between two failures.
func (b bucket) full(t time.Time, limit int, window time.Duration) bool {
	return limit > 0 && b.now(t, limit, window) > float64(limit)-1
}

// allowsAddress reports whether the address may try.
func (t *throttle) allowsAddress(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.addresses[prefixOf(a)].full(t.o.Now(), t.o.PerAddress, t.o.Window)
}

// allowsAccount reports whether the address may try this name.
func (t *throttle) allowsAccount(a netip.Addr, name string) bool {
	name = accountKey(name)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.o.Now()
	if !t.accounts[name].full(now, t.o.PerAccount, t.o.Window) {
		return true
	}
	since, ok := t.friends[friend{prefixOf(a), name}]
	return ok && now.Sub(since) < friendFor
}

// friendFor is how long a login counts.
const friendFor = 7 * 24 * time.Hour

func (t *throttle) failed(a netip.Addr, name string) {
	key := accountKey(name)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.o.Now()
	if t.o.PerAddress > 0 {
		add(t.addresses, prefixOf(a), now, t.o.PerAddress, t.o)
	}
	if t.o.PerAccount > 0 && name != "" {
		add(t.accounts, key, now, t.o.PerAccount, t.o)
	}
}

// succeeded remembers the pair. It takes no failures back: a guesser with one account of his own would reset his count with it.
func (t *throttle) succeeded(a netip.Addr, name string) {
	if name == "" {
		return
	}
	key := friend{prefixOf(a), accountKey(name)}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.o.Now()
	if _, ok := t.friends[key]; !ok && len(t.friends) >= t.o.MaxEntries {
		evict(t.friends, func(x, y time.Time) bool { return x.Before(y) })
	}
	t.friends[key] = now
}

func add[K comparable](m map[K]bucket, key K, now time.Time, limit int, o ThrottleOptions) {
	b, ok := m[key]
	if !ok && len(m) >= o.MaxEntries {
		evict(m, func(x, y bucket) bool { return x.now(now, limit, o.Window) < y.now(now, limit, o.Window) })
	}
	m[key] = bucket{b.now(now, limit, o.Window) + 1, now}
}

// evictionSample is how many entries are looked at to make room for one. Maps are walked from a random place, so a guesser cannot
// choose which counts are forgotten, and of the sample the least counts go first.
const evictionSample = 16

func evict[K comparable, V any](m map[K]V, less func(x, y V) bool) {
	var victim K
	var least V
	n := 0
	for k, v := range m {
		if n == 0 || less(v, least) {
			victim, least = k, v
		}
		if n++; n == evictionSample {
			break
		}
	}
	delete(m, victim)
}
