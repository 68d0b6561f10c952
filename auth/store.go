package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// ErrRefused is a store's no: wrong credentials, an unknown user, a disabled one; clients are not told which. Any other error of a
// store means that it cannot tell, and the client may try later.
var ErrRefused = errors.New("auth: credentials refused")

// Store knows users. It says which mechanisms it can check, and implements the interfaces these need: PasswordChecker for PLAIN and
// LOGIN, TokenChecker for OAUTHBEARER and XOAUTH2, IdentityChecker for EXTERNAL, KeyHolder for SCRAM-SHA-256, its -PLUS and CRAM-MD5.
// Any goroutine may call any method. All but Supports may block, until their context ends.
type Store interface {
	// Supports must not block: event loops ask it.
	Supports(mechanism string) bool
}

// Login is what a client claims and shows as proof.
type Login struct {
	Mechanism string
	User      string // authentication identity; empty only with OAUTHBEARER, where the token says it
	ActAs     string // authorization identity, when the client asked for another than User; otherwise empty
	Password  string // PLAIN, LOGIN
	Token     string // OAUTHBEARER, XOAUTH2
	Peer      Peer
}

// PasswordChecker checks a user and a password. It returns the authorization identity, empty for Login.User. A login with ActAs
// succeeds only if the answer is ActAs itself.
type PasswordChecker interface {
	CheckPassword(ctx context.Context, l Login) (user string, err error)
}

// TokenChecker checks a bearer token. It returns the authorization identity, empty for Login.User.
type TokenChecker interface {
	CheckToken(ctx context.Context, l Login) (user string, err error)
}

// IdentityChecker says whether the identity of a verified client certificate, in Login.User, may log in.
type IdentityChecker interface {
	CheckIdentity(ctx context.Context, l Login) (user string, err error)
}

// KeyHolder has keys for challenges. For a user without such keys known is false, and no error: Service makes up keys that look real.
// SCRAMKeys then still gives the Iterations that a user of the store would have.
type KeyHolder interface {
	SCRAMKeys(ctx context.Context, user string) (keys SCRAMKeys, known bool, err error)
	CRAMKeys(ctx context.Context, user string) (keys CRAMKeys, known bool, err error)
}

// laterChecker is a PasswordChecker that answers by a call, so that no worker waits. done is called exactly once, from any goroutine,
// unless ctx ends first.
type laterChecker interface {
	checkPasswordLater(ctx context.Context, l Login, done func(user string, err error))
}

// relayer carries out whole exchanges elsewhere.
type relayer interface {
	// relay begins one; it must not block.
	relay(mechanism string, p Peer) relayed
}

// relayed is an exchange that is carried out elsewhere.
type relayed interface {
	// next hands on a response, nil for none. done is called exactly once, from any goroutine, unless ctx ends first. It gets a
	// challenge, or the user when the exchange is over. tried is the user of a refused one, as far as known.
	next(ctx context.Context, response []byte, done func(challenge []byte, over bool, user string, err error))
	// stop ends it, also while next waits. It must not block.
	stop()
}

// Stores asks several stores in turn. Passwords, tokens and identities are good if one store says so; a store that cannot tell makes
// the whole answer "cannot tell" unless another says yes. For SCRAM and CRAM-MD5 the first store that has keys for the user counts. A user
// disabled in one store is only unknown there: the others are asked all the same.
func Stores(stores ...Store) Store {
	if len(stores) == 1 {
		return stores[0]
	}
	return several(slices.Clone(stores))
}

type several []Store

func (ss several) Supports(mechanism string) bool {
	return slices.ContainsFunc(ss, func(s Store) bool { return s.Supports(mechanism) })
}

// firstYes asks the stores that support the mechanism and have what ask needs.
func (ss several) firstYes(mechanism string, ask func(Store) (string, error)) (string, error) {
	var trouble error
	for _, s := range ss {
		if !s.Supports(mechanism) {
			continue
		}
		user, err := ask(s)
		if err == nil {
			return user, nil
		}
		if !errors.Is(err, ErrRefused) && trouble == nil {
			trouble = err
		}
	}
	if trouble != nil {
		return "", trouble
	}
	return "", ErrRefused
}

func (ss several) CheckPassword(ctx context.Context, l Login) (string, error) {
	return ss.firstYes(l.Mechanism, func(s Store) (string, error) {
		c, ok := s.(PasswordChecker)
		if !ok {
			return "", ErrRefused
		}
		user, err := c.CheckPassword(ctx, l)
		return l.identity(user, err)
	})
}

func (ss several) CheckToken(ctx context.Context, l Login) (string, error) {
	return ss.firstYes(l.Mechanism, func(s Store) (string, error) {
		c, ok := s.(TokenChecker)
		if !ok {
			return "", ErrRefused
		}
		user, err := c.CheckToken(ctx, l)
		return l.identity(user, err)
	})
}

func (ss several) CheckIdentity(ctx context.Context, l Login) (string, error) {
	return ss.firstYes(l.Mechanism, func(s Store) (string, error) {
		c, ok := s.(IdentityChecker)
		if !ok {
			return "", ErrRefused
		}
		user, err := c.CheckIdentity(ctx, l)
		return l.identity(user, err)
	})
}

func (ss several) SCRAMKeys(ctx context.Context, user string) (keys SCRAMKeys, known bool, err error) {
	for i, h := range ss.holders(SCRAMSHA256) {
		k, known, err := h.SCRAMKeys(ctx, user)
		if err != nil || known {
			return k, known, err
		}
		if i == 0 {
			keys = k
		}
	}
	return keys, false, nil
}

func (ss several) CRAMKeys(ctx context.Context, user string) (keys CRAMKeys, known bool, err error) {
	for _, h := range ss.holders(CRAMMD5) {
		k, known, err := h.CRAMKeys(ctx, user)
		if err != nil || known {
			return k, known, err
		}
	}
	return CRAMKeys{}, false, nil
}

func (ss several) holders(mechanism string) (hs []KeyHolder) {
	for _, s := range ss {
		if h, ok := s.(KeyHolder); ok && s.Supports(mechanism) {
			hs = append(hs, h)
		}
	}
	return hs
}

// identity is the authorization identity that a store's answer gives, or ErrRefused when the client asked for another.
func (l *Login) identity(answered string, err error) (string, error) {
	switch {
	case err != nil:
		return "", err
	case l.ActAs != "" && answered != l.ActAs:
		return "", fmt.Errorf("%w: %s may not act as another", ErrRefused, l.Mechanism)
	case l.Token != "" && l.User != "" && answered != "" && answered != l.User:
		return "", fmt.Errorf("%w: the token is another user's", ErrRefused)
	case answered != "":
		return answered, nil
	case l.User == "":
		return "", fmt.Errorf("auth: the store accepts a %s login without naming the user", l.Mechanism)
	}
	return l.User, nil
}

// capable finds the store that is asked for a mechanism: s itself, or a member of it that carries out whole exchanges.
func capable(s Store, mechanism string) Store {
	if !s.Supports(mechanism) {
		return nil
	}
	ss, ok := s.(several)
	if !ok || mechanism == PLAIN || mechanism == LOGIN {
		return s
	}
	for _, m := range ss {
		if !m.Supports(mechanism) {
			continue
		}
		if _, ok := m.(relayer); !ok {
			return s
		}
	}
	for _, m := range ss {
		if m.Supports(mechanism) {
			return m
		}
	}
	return nil
}
