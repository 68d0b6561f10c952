package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/xdg-go/scram"
)

// scramServer is SCRAM-SHA-256 and, with binding, SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677, RFC 9266).
type scramServer struct {
	x            *Exchange
	store        KeyHolder
	state        scramState
	conversation *scram.ServerConversation
	known        bool
	err          error // of the store
}

type scramState uint8

const (
	scramBegun scramState = iota
	scramAsked            // an empty challenge asked for the client's first message
	scramFirst            // salt and iterations are out
	scramFinal            // the server has proven itself; an empty response ends it (RFC 4954 §4: 235 carries no data)
)

func (s *scramServer) Next(response []byte) ([]byte, bool, error) {
	if response == nil && s.state == scramBegun {
		s.state = scramAsked
		return []byte{}, false, nil
	}
	switch s.state {
	case scramBegun, scramAsked:
		s.state = scramFirst
		challenge, err := s.first(string(response))
		return challenge, false, err
	case scramFirst:
		s.state = scramFinal
		proof := string(response)
		if !validSCRAM(proof) || !strings.HasPrefix(proof, "c=") || strings.Count(proof, ",") < 2 {
			return nil, true, errMalformed
		}
		verifier, err := s.conversation.Step(proof)
		switch {
		case err != nil && verifier == "": // it could not be parsed
			return nil, true, errMalformed
		case err != nil, !s.conversation.Valid(), !s.known:
			return nil, true, ErrRefused
		}
		if as := s.conversation.AuthzID(); as != "" && as != s.x.tried && as != s.x.user {
			return nil, true, ErrRefused
		}
		return []byte(verifier), false, nil
	}
	if len(response) != 0 {
		return nil, true, errMalformed
	}
	return nil, true, nil
}

// validSCRAM is true for text of which SCRAM messages are made.
func validSCRAM(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}

// first takes the client's first message: flag "," [authzid] "," "n=" name "," "r=" nonce [extensions].
func (s *scramServer) first(message string) ([]byte, error) {
	fields := strings.Split(message, ",")
	if !validSCRAM(message) || len(fields) < 4 {
		return nil, errMalformed
	}
	name, isName := strings.CutPrefix(fields[2], "n=")
	nonce, isNonce := strings.CutPrefix(fields[3], "r=")
	if !isName || !isNonce || name == "" || nonce == "" || strings.IndexFunc(nonce, func(r rune) bool { return r < '!' || r > '~' }) >= 0 {
		return nil, errMalformed
	}
	conversation, err := s.bind(fields[0])
	if err != nil {
		return nil, err
	}
	s.conversation = conversation
	challenge, err := s.conversation.Step(message)
	switch {
	case s.err != nil:
		return nil, s.err
	case err == nil:
		return []byte(challenge), nil
	case challenge == scram.ErrServerDoesSupportChannelBinding:
		return nil, ErrRefused // somebody hid the -PLUS from the client (RFC 5802 §6)
	}
	return nil, errMalformed
}

// bind begins the conversation that fits the client's flag: p=TYPE with -PLUS and only there, y or n without.
func (s *scramServer) bind(flag string) (*scram.ServerConversation, error) {
	server, err := scram.SHA256.NewServer(s.lookUp)
	if err != nil {
		return nil, err
	}
	server.WithNonceGenerator(s.x.s.nonce)
	kind, binds := strings.CutPrefix(flag, "p=")
	plus := s.x.mechanism == SCRAMSHA256Plus
	switch {
	case !binds && flag != "n" && flag != "y":
		return nil, errMalformed
	case plus != binds:
		return nil, ErrRefused
	case plus:
		available := bindings(s.x.peer)
		i := slices.IndexFunc(available, func(b scram.ChannelBinding) bool { return string(b.Type) == kind })
		if i < 0 {
			return nil, ErrRefused
		}
		return server.NewConversationWithChannelBindingRequired(available[i]), nil
	case s.x.offeredPlus():
		return server.NewConversationWithChannelBinding(bindings(s.x.peer)[0]), nil
	}
	return server.NewConversation(), nil
}

// offeredPlus reports whether the client could have seen SCRAM-SHA-256-PLUS.
func (x *Exchange) offeredPlus() bool {
	if x.peer.Offered != nil && !slices.Contains(x.peer.Offered, SCRAMSHA256Plus) {
		return false
	}
	return x.s.Offers(SCRAMSHA256Plus, x.peer)
}

// lookUp gives the user's keys, or made-up ones that are always the same for a name, so that asking twice does not tell who exists.
func (s *scramServer) lookUp(name string) (scram.StoredCredentials, error) {
	if s.err = s.x.claims(name); s.err != nil {
		return scram.StoredCredentials{}, s.err
	}
	keys, known, err := s.store.SCRAMKeys(s.x.context(), name)
	if err != nil {
		s.err = err
		return scram.StoredCredentials{}, err
	}
	s.known = known
	fakeSalt, fakeKey := s.x.s.fake("scram-salt", name)[:SaltBytes], s.x.s.fake("scram-key", name)
	if !known {
		keys.Salt = fakeSalt
		keys.StoredKey, keys.ServerKey = [32]byte(fakeKey), [32]byte(fakeKey)
		if keys.Iterations < MinIterations {
			keys.Iterations = DefaultIterations
		}
	}
	s.x.user = name
	if prepared, err := prepare(name); err == nil {
		s.x.user = prepared
	}
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(keys.Salt), Iters: keys.Iterations},
		StoredKey:  keys.StoredKey[:],
		ServerKey:  keys.ServerKey[:],
	}, nil
}

// SaltBytes is the length of the salts that are made here, for users and for names that are not.
const SaltBytes = 16

var errNoBinding = errors.New("auth: no channel to bind")

// bindings are the channel bindings of a connection, the best first: tls-exporter under TLS 1.3 (RFC 9266), tls-server-end-point under
// any TLS when the server's certificate is known and has a hash (RFC 5929 §4).
func bindings(p Peer) (bs []scram.ChannelBinding) {
	if p.TLS == nil {
		return nil
	}
	if p.TLS.Version >= tls.VersionTLS13 {
		if b, err := scram.NewTLSExporterBinding(p.TLS); err == nil {
			bs = append(bs, b)
		}
	}
	if b, err := endPoint(p.ServerCertificate); err == nil {
		bs = append(bs, b)
	}
	return bs
}

// endPoint is tls-server-end-point. The library looks for the server's certificate where a client has it.
func endPoint(leaf *x509.Certificate) (scram.ChannelBinding, error) {
	if leaf == nil {
		return scram.ChannelBinding{}, errNoBinding
	}
	return scram.NewTLSServerEndpointBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
}
