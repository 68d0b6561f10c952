package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"sync"
	"time"
)

// Errors of Passwords.
var (
	ErrAuthFailed      = errors.New("auth: wrong user or password")
	ErrAuthUnavailable = errors.New("auth: credentials cannot be checked now")
	// ErrAuthThrottled is for an address or an account with too many failures; see ThrottleOptions.
	ErrAuthThrottled = errors.New("auth: too many failures")
)

// PasswordsOptions of a Passwords. Zero values mean the defaults.
type PasswordsOptions struct {
	CacheTime    time.Duration    // how long a password that was right is taken without asking again; default 60 s, negative: not at all
	CacheEntries int              // passwords that are remembered; default 4096
	Listener     string           // what stores are told as the listener; default "http"
	Now          func() time.Time // default time.Now
}

// Passwords checks users and passwords for those who may wait and whose clients show them with every request: HTTP's Basic (RFC 7617). It is
// a Service's PLAIN: on its workers, with its limits of failures, late with a no, and at the same cost for users who are not known.
//
// Passwords that were right are remembered for a while, for a hash that is hard to guess is too dear for every request. What is kept is
// HMAC-SHA-256 of user and password, with a key that this process made up: a look into its memory gives no password away that is worth the name,
// and no guess can be tried elsewhere. Any goroutine.
type Passwords struct {
	s *Service
	o PasswordsOptions

	hashes sync.Pool // of *keyedHash

	mu    sync.Mutex
	right map[[sha256.Size]byte]success
	// round counts the calls of Forget: an answer that was asked for before one is not kept after it.
	round uint64
}

// success is a password that was right.
type success struct {
	identity string
	until    time.Time
}

// keyedHash has room for what it hashes.
type keyedHash struct {
	hash.Hash
	text []byte
}

// NewPasswords makes one that asks s. It starts no goroutine and needs no closing.
func NewPasswords(s *Service, o PasswordsOptions) *Passwords {
	if o.CacheTime == 0 {
		o.CacheTime = time.Minute
	}
	if o.CacheEntries <= 0 {
		o.CacheEntries = 4096
	}
	if o.Listener == "" {
		o.Listener = "http"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	var key [sha256.Size]byte
	rand.Read(key[:]) // never fails
	p := &Passwords{s: s, o: o, right: map[[sha256.Size]byte]success{}}
	p.hashes.New = func() any { return &keyedHash{Hash: hmac.New(sha256.New, key[:])} }
	return p
}

// Check waits until the password is checked, or ctx ends, and returns who the user is to us. addr is the client's, for the limits of failures
// and for stores; the caller sees to it that nobody listens on the way. Errors are ErrAuthFailed, ErrAuthThrottled and ErrAuthUnavailable.
// Runs on: any goroutine but an event loop's.
func (p *Passwords) Check(ctx context.Context, user, password string, addr netip.Addr) (identity string, err error) {
	// A right password in the cache is no way round the limits: whoever guesses would learn from it.
	if !p.s.throttle.allowsAddress(addr) || !p.s.throttle.allowsAccount(addr, user) {
		return "", p.late(ctx, ErrAuthThrottled)
	}
	sum := p.sum(user, password)
	if identity, ok := p.known(sum); ok {
		return identity, nil
	}
	p.mu.Lock()
	round := p.round
	p.mu.Unlock()
	response := make([]byte, 0, len(user)+len(password)+2)
	response = append(append(append(append(response, 0), user...), 0), password...)
	if identity, err = p.ask(ctx, PLAIN, Peer{Addr: netip.AddrPortFrom(addr, 0), Listener: p.o.Listener, Secured: true}, response); err == nil {
		p.remember(sum, identity, round)
	}
	return identity, err
}

// CheckCertificate is Check for the name in a client certificate that was verified: it must be a user's, who need have no password.
func (p *Passwords) CheckCertificate(ctx context.Context, name string, addr netip.Addr) (identity string, err error) {
	return p.ask(ctx, EXTERNAL, Peer{Addr: netip.AddrPortFrom(addr, 0), Listener: p.o.Listener, Secured: true, Certificate: name}, []byte{})
}

// Forget forgets all passwords: users have changed.
func (p *Passwords) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.round++
	clear(p.right)
}

// ask carries out one exchange with one response.
func (p *Passwords) ask(ctx context.Context, mechanism string, peer Peer, response []byte) (string, error) {
	x := p.s.Begin(mechanism, peer)
	if x == nil {
		return "", fmt.Errorf("%w: no store can do %s", ErrAuthUnavailable, mechanism)
	}
	defer x.Cancel()
	answers := make(chan Outcome, 1)
	x.Step(response, true, func(o Outcome) { answers <- o })
	select {
	case <-ctx.Done():
		return "", fmt.Errorf("%w: %w", ErrAuthUnavailable, ctx.Err())
	case o := <-answers:
		switch o.Result {
		case Success:
			return o.User, nil
		case Failed, Malformed: // a NUL, or what is not UTF-8, is nobody's password
			return "", ErrAuthFailed
		case Throttled:
			return "", ErrAuthThrottled
		case Continue: // neither mechanism asks back
			return "", fmt.Errorf("%w: the store asks back", ErrAuthUnavailable)
		}
		return "", ErrAuthUnavailable
	}
}

// late tells a no as late as the service does.
func (p *Passwords) late(ctx context.Context, no error) error {
	if p.s.o.FailureDelay <= 0 {
		return no
	}
	timer := time.NewTimer(p.s.o.FailureDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return no
}

// sum is the key of user and password in the cache; the length keeps "a", "bc" from being "ab", "c".
func (p *Passwords) sum(user, password string) (sum [sha256.Size]byte) {
	h := p.hashes.Get().(*keyedHash)
	h.text = binary.BigEndian.AppendUint32(h.text[:0], uint32(len(user)))
	h.text = append(append(h.text, user...), password...)
	h.Reset()
	h.Write(h.text)
	h.Sum(sum[:0])
	clear(h.text)
	if cap(h.text) <= MaxResponseBytes {
		p.hashes.Put(h)
	}
	return sum
}

func (p *Passwords) known(sum [sha256.Size]byte) (identity string, ok bool) {
	now := p.o.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	one, ok := p.right[sum]
	if !ok || now.Before(one.until) {
		return one.identity, ok
	}
	delete(p.right, sum)
	return "", false
}

func (p *Passwords) remember(sum [sha256.Size]byte, identity string, round uint64) {
	if p.o.CacheTime < 0 {
		return
	}
	until := p.o.Now().Add(p.o.CacheTime)
	p.mu.Lock()
	defer p.mu.Unlock()
	if round != p.round {
		return
	}
	if _, ok := p.right[sum]; !ok && len(p.right) >= p.o.CacheEntries {
		evict(p.right, func(x, y success) bool { return x.until.Before(y.until) })
	}
	p.right[sum] = success{identity, until}
}
