package auth

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/emersion/go-sasl"
)

// advance runs the mechanism on one response. It ends in one call of finish, perhaps later, from a store's goroutine.
// Runs on: worker.
func (x *Exchange) advance(st *step) {
	// At each step: an exchange may have begun before the others from its address failed.
	if !x.s.throttle.allowsAddress(x.peer.Addr.Addr()) {
		st.conclude(errThrottled)
		return
	}
	if x.steps == 0 {
		x.start()
	}
	if x.steps++; x.steps > MaxSteps {
		st.conclude(errMalformed)
		return
	}
	if x.relayed != nil {
		x.advanceRelayed(st)
		return
	}
	if x.server == nil {
		st.conclude(fmt.Errorf("auth: the store says that it can check %s, and has no way to", x.mechanism))
		return
	}
	challenge, done, err := x.server.Next(st.response)
	switch {
	case err != nil:
		st.conclude(err)
	case !done:
		st.finish(Outcome{Result: Continue, Challenge: challenge})
	case x.pending != nil:
		x.check(st, *x.pending)
	default:
		st.conclude(nil)
	}
}

// start builds the mechanism's server; x.server stays nil when the store lacks what it needs.
func (x *Exchange) start() {
	store := capable(x.s.o.Store, x.mechanism)
	_, checksPasswords := store.(PasswordChecker)
	_, checksLater := store.(laterChecker)
	switch x.mechanism {
	case PLAIN:
		if checksPasswords || checksLater {
			x.server = strict{sasl.NewPlainServer(x.plain)}
		}
		return
	case LOGIN:
		if checksPasswords || checksLater {
			x.server = &loginServer{x: x}
		}
		return
	}
	if r, ok := store.(relayer); ok {
		x.relayed = r.relay(x.mechanism, x.peer)
		return
	}
	switch x.mechanism {
	case EXTERNAL:
		if _, ok := store.(IdentityChecker); ok {
			x.server = strict{sasl.NewExternalServer(x.external)}
		}
	case OAUTHBEARER:
		if c, ok := store.(TokenChecker); ok {
			x.server = newOAuthBearer(x, c)
		}
	case XOAUTH2:
		if c, ok := store.(TokenChecker); ok {
			x.server = &xoauth2Server{x: x, store: c}
		}
	case SCRAMSHA256, SCRAMSHA256Plus:
		if h, ok := store.(KeyHolder); ok {
			x.server = &scramServer{x: x, store: h}
		}
	case CRAMMD5:
		if h, ok := store.(KeyHolder); ok {
			x.server = &cramServer{x: x, store: h}
		}
	}
}

// context is that of the step under way. Runs on: worker.
func (x *Exchange) context() context.Context {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.step == nil { // cancelled meanwhile
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return ctx
	}
	return x.step.ctx
}

// claims notes whom the client says it is, before any store is asked, and refuses names that have failed too often.
func (x *Exchange) claims(name string) error {
	x.tried = name
	if !x.s.throttle.allowsAccount(x.peer.Addr.Addr(), name) {
		return errThrottled
	}
	return nil
}

// check asks the store about a password or an identity, as the last act of an exchange.
func (x *Exchange) check(st *step, l Login) {
	if err := x.claims(l.User); err != nil {
		st.conclude(err)
		return
	}
	answered := func(user string, err error) {
		x.user, err = l.identity(user, err)
		st.conclude(err)
	}
	store := capable(x.s.o.Store, x.mechanism)
	if x.mechanism == EXTERNAL {
		answered(store.(IdentityChecker).CheckIdentity(st.ctx, l))
		return
	}
	if c, ok := store.(laterChecker); ok {
		c.checkPasswordLater(st.ctx, l, answered)
		return
	}
	answered(store.(PasswordChecker).CheckPassword(st.ctx, l))
}

// advanceRelayed hands the response on. Names in it are only looked at for the count of failures.
func (x *Exchange) advanceRelayed(st *step) {
	if x.mechanism == CRAMMD5 && x.steps == 1 && st.response != nil {
		st.conclude(errMalformed) // RFC 4954 §4: no initial response where the server speaks first
		return
	}
	if name := claimed(x.mechanism, st.response, x.peer); name != "" {
		if err := x.claims(name); err != nil {
			st.conclude(err)
			return
		}
	}
	x.relayed.next(st.ctx, st.response, func(challenge []byte, over bool, user string, err error) {
		switch {
		case err != nil:
			if x.tried == "" {
				x.tried = user
			}
			st.conclude(err)
		case !over:
			st.finish(Outcome{Result: Continue, Challenge: challenge})
		case user == "":
			st.conclude(errors.New("auth: success without a user"))
		default:
			if x.tried == "" {
				x.tried = user
			}
			x.user = user
			st.conclude(nil)
		}
	})
}

// claimed is the name in a response that is relayed, or "".
func claimed(mechanism string, response []byte, p Peer) string {
	text := string(response)
	switch mechanism {
	case EXTERNAL:
		return p.Certificate
	case CRAMMD5:
		if i := strings.LastIndexByte(text, ' '); i > 0 {
			return text[:i]
		}
	case SCRAMSHA256, SCRAMSHA256Plus:
		if fields := strings.SplitN(text, ",", 4); len(fields) == 4 && strings.HasPrefix(fields[2], "n=") {
			if name, ok := decodeSASLName(fields[2][2:]); ok {
				return name
			}
		}
	case OAUTHBEARER:
		if fields := strings.SplitN(text, ",", 3); len(fields) == 3 && strings.HasPrefix(fields[1], "a=") {
			if name, ok := decodeSASLName(fields[1][2:]); ok {
				return name
			}
		}
	case XOAUTH2:
		if rest, ok := strings.CutPrefix(text, "user="); ok {
			name, _, _ := strings.Cut(rest, "\x01")
			return name
		}
	}
	return ""
}

// strict is a server of go-sasl whose own errors mean a malformed response.
type strict struct{ sasl.Server }

func (s strict) Next(response []byte) ([]byte, bool, error) {
	challenge, done, err := s.Server.Next(response)
	if err != nil && !errors.Is(err, ErrRefused) && !errors.Is(err, errThrottled) {
		err = fmt.Errorf("%w: %v", errMalformed, err)
	}
	return challenge, done, err
}

// plain takes what go-sasl has split at exactly two NULs (RFC 4616 §2).
func (x *Exchange) plain(actAs, user, password string) error {
	if user == "" || !utf8.ValidString(actAs) || !utf8.ValidString(user) || !utf8.ValidString(password) {
		return errMalformed
	}
	if actAs == user {
		actAs = ""
	}
	x.pending = &Login{Mechanism: PLAIN, User: user, ActAs: actAs, Password: password, Peer: x.peer}
	return nil
}

// external: the name comes from the certificate, the client may only repeat it or ask for another (RFC 4422 appendix A).
func (x *Exchange) external(actAs string) error {
	if !utf8.ValidString(actAs) {
		return errMalformed
	}
	if x.peer.Certificate == "" {
		return ErrRefused
	}
	if actAs == x.peer.Certificate {
		actAs = ""
	}
	x.pending = &Login{Mechanism: EXTERNAL, User: x.peer.Certificate, ActAs: actAs, Peer: x.peer}
	return nil
}

// loginServer is LOGIN: two prompts whose texts clients compare, so they are not ours to choose. An initial response is the user name.
type loginServer struct {
	x     *Exchange
	state loginState
	user  string
}

type loginState uint8

const (
	loginBegun loginState = iota
	loginAskedName
	loginAskedPassword
	loginDone
)

func (s *loginServer) Next(response []byte) ([]byte, bool, error) {
	if response == nil && s.state == loginBegun {
		s.state = loginAskedName
		return []byte("Username:"), false, nil
	}
	if bytes.IndexByte(response, 0) >= 0 || !utf8.Valid(response) {
		return nil, true, errMalformed
	}
	switch s.state {
	case loginBegun, loginAskedName:
		if len(response) == 0 {
			return nil, true, errMalformed
		}
		s.user, s.state = string(response), loginAskedPassword
		return []byte("Password:"), false, nil
	case loginAskedPassword:
		s.state = loginDone
		s.x.pending = &Login{Mechanism: LOGIN, User: s.user, Password: string(response), Peer: s.x.peer}
		return nil, true, nil
	}
	return nil, true, errMalformed
}

// cramServer is CRAM-MD5 (RFC 2195). The server speaks first.
type cramServer struct {
	x         *Exchange
	store     KeyHolder
	challenge []byte
}

func (s *cramServer) Next(response []byte) ([]byte, bool, error) {
	if s.challenge == nil {
		if response != nil {
			return nil, true, errMalformed // RFC 4954 §4: no initial response where the server speaks first
		}
		s.challenge = fmt.Appendf(nil, "<%s.%d@%s>", s.x.s.nonce(), time.Now().Unix(), s.x.s.o.Hostname)
		return s.challenge, false, nil
	}
	i := bytes.LastIndexByte(response, ' ')
	if i <= 0 || bytes.IndexByte(response, 0) >= 0 || !utf8.Valid(response) {
		return nil, true, errMalformed
	}
	digest, err := hex.DecodeString(string(response[i+1:]))
	if err != nil || len(digest) != 16 {
		return nil, true, errMalformed
	}
	name := string(response[:i])
	if err := s.x.claims(name); err != nil {
		return nil, true, err
	}
	keys, known, err := s.store.CRAMKeys(s.x.context(), name)
	if err != nil {
		return nil, true, err
	}
	if !known {
		keys = CRAMKeys{Inner: [16]byte(s.x.s.fake("cram-inner", name)), Outer: [16]byte(s.x.s.fake("cram-outer", name))}
	}
	if right := hmac.Equal(keys.digest(s.challenge), digest); !right || !known {
		return nil, true, ErrRefused
	}
	s.x.user = name
	return nil, true, nil
}

// oauthError is the challenge that tells a client why its token was refused (RFC 7628 §3.2.2). It answers with anything, and fails.
type oauthError struct {
	Status  string `json:"status"`
	Schemes string `json:"schemes"`
	Scope   string `json:"scope,omitempty"`
}

// checkToken asks the store and notes who it is.
func (x *Exchange) checkToken(store TokenChecker, user, token string) error {
	if user != "" {
		if err := x.claims(user); err != nil {
			return err
		}
	}
	l := Login{Mechanism: x.mechanism, User: user, Token: token, Peer: x.peer}
	answered, err := store.CheckToken(x.context(), l)
	x.user, err = l.identity(answered, err)
	if err == nil && x.tried == "" {
		x.tried = x.user
	}
	return err
}

// oauthBearer is go-sasl's server with what it lacks: it knows only "n" and its own keys, decodes no names, and crashes on an
// empty answer to its error challenge.
type oauthBearer struct {
	x       *Exchange
	server  sasl.Server
	store   TokenChecker
	asked   bool  // the store was
	err     error // of the store
	refused bool  // the error challenge is out
}

func newOAuthBearer(x *Exchange, store TokenChecker) *oauthBearer {
	s := &oauthBearer{x: x, store: store}
	s.server = sasl.NewOAuthBearerServer(s.check)
	return s
}

func (s *oauthBearer) check(o sasl.OAuthBearerOptions) *sasl.OAuthBearerError {
	s.asked = true
	if o.Token == "" {
		s.err = errMalformed
	} else {
		s.err = s.x.checkToken(s.store, o.Username, o.Token)
	}
	if s.err != nil {
		return &sasl.OAuthBearerError{Status: "invalid_token", Schemes: "bearer"}
	}
	return nil
}

func (s *oauthBearer) Next(response []byte) ([]byte, bool, error) {
	if s.refused {
		return nil, true, ErrRefused // RFC 7628 §3.2.3: the answer is %x01, and whatever else it is, no other outcome is possible
	}
	if response != nil {
		plain, err := plainOAuthBearer(response)
		if err != nil {
			return nil, true, err
		}
		response = plain
	}
	challenge, done, err := s.server.Next(response)
	switch {
	case err != nil:
		return nil, true, fmt.Errorf("%w: %v", errMalformed, err)
	case done || response == nil:
		return challenge, done, nil
	case !s.asked:
		return nil, true, errMalformed
	case errors.Is(s.err, ErrRefused):
		s.refused = true
		return challenge, false, nil
	}
	return nil, true, s.err
}

// plainOAuthBearer checks a client response strictly (RFC 7628 §3.1) and leaves what go-sasl reads: the name decoded, and of the key-value
// pairs only host, port and auth.
func plainOAuthBearer(response []byte) ([]byte, error) {
	if !utf8.Valid(response) || bytes.IndexByte(response, 0) >= 0 {
		return nil, errMalformed
	}
	header, rest, ok := strings.Cut(string(response), "\x01")
	if !ok {
		return nil, errMalformed
	}
	fields := strings.Split(header, ",")
	if len(fields) != 3 || fields[2] != "" || fields[0] != "n" && fields[0] != "y" {
		return nil, errMalformed // "p": there is no OAUTHBEARER-PLUS
	}
	out := []byte("n,")
	if fields[1] != "" {
		name, ok := strings.CutPrefix(fields[1], "a=")
		if !ok {
			return nil, errMalformed
		}
		name, ok = decodeSASLName(name)
		if !ok || name == "" || strings.Contains(name, ",") {
			// A comma would end the field for go-sasl, and no store of ours has such names.
			return nil, errMalformed
		}
		out = append(out, "a="+name...)
	}
	out = append(out, ",\x01"...)
	// Each pair ends with %x01, and one more ends the list.
	pairs, ok := strings.CutSuffix(rest, "\x01\x01")
	if !ok {
		return nil, errMalformed
	}
	seen := ""
	for pair := range strings.SplitSeq(pairs, "\x01") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, errMalformed
		}
		switch key {
		case "auth", "host", "port":
			if strings.Contains(seen, key) {
				return nil, errMalformed
			}
			if _, err := strconv.ParseUint(value, 10, 16); key == "port" && err != nil {
				return nil, errMalformed
			}
			if scheme, token, _ := strings.Cut(value, " "); key == "auth" && (!strings.EqualFold(scheme, "bearer") || !validToken(token)) {
				return nil, errMalformed
			}
			seen += key
			out = append(out, pair+"\x01"...)
		}
	}
	if !strings.Contains(seen, "auth") {
		return nil, errMalformed
	}
	return append(out, 1), nil
}

// validToken is b64token of RFC 6750 §2.1.
func validToken(t string) bool {
	body := strings.TrimRight(t, "=")
	return body != "" && strings.IndexFunc(body, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._~+/", r))
	}) < 0
}

// decodeSASLName undoes =2C and =3D (RFC 5801 §4); any other = is wrong.
func decodeSASLName(s string) (string, bool) {
	plain := strings.NewReplacer("=2C", "", "=3D", "").Replace(s)
	if strings.ContainsAny(plain, "=,\x00") {
		return "", false
	}
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s), true
}

// xoauth2Server is XOAUTH2: user=NAME ^A auth=Bearer TOKEN ^A ^A.
type xoauth2Server struct {
	x     *Exchange
	store TokenChecker
	state xoauth2State
}

type xoauth2State uint8

const (
	xoauth2Begun xoauth2State = iota
	xoauth2Asked
	xoauth2Refused // the error challenge is out
)

func (s *xoauth2Server) Next(response []byte) ([]byte, bool, error) {
	if s.state == xoauth2Refused {
		return nil, true, ErrRefused
	}
	if response == nil {
		s.state = xoauth2Asked
		return []byte{}, false, nil
	}
	user, token, ok := parseXOAuth2(response)
	if !ok {
		return nil, true, errMalformed
	}
	err := s.x.checkToken(s.store, user, token)
	if !errors.Is(err, ErrRefused) {
		return nil, true, err
	}
	s.state = xoauth2Refused
	challenge, err := json.Marshal(oauthError{Status: "401", Schemes: "bearer"})
	return challenge, false, err
}

func parseXOAuth2(response []byte) (user, token string, ok bool) {
	text := string(response)
	if !utf8.ValidString(text) || strings.Contains(text, "\x00") {
		return "", "", false
	}
	fields := strings.Split(text, "\x01")
	if len(fields) != 4 || fields[2] != "" || fields[3] != "" {
		return "", "", false
	}
	user, isUser := strings.CutPrefix(fields[0], "user=")
	auth, isAuth := strings.CutPrefix(fields[1], "auth=")
	scheme, token, _ := strings.Cut(auth, " ")
	return user, token, isUser && isAuth && user != "" && strings.EqualFold(scheme, "bearer") && validToken(token)
}

// randomText is 24 random bytes in base64: printable, without a comma.
func (s *Service) randomText() string {
	var b [24]byte
	if _, err := io.ReadFull(s.o.Rand, b[:]); err != nil {
		panic("auth: no randomness: " + err.Error()) // the step is Unavailable
	}
	return base64.StdEncoding.EncodeToString(b[:])
}
