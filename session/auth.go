package session

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// maxAuthLineBytes is the longest line of a SASL exchange, CRLF included: RFC 4954 §4 wants 12,288 bytes of base64 taken.
const maxAuthLineBytes = 12288 + 2

// login is who the client has shown to be.
type login struct{ user, mechanism string }

// exchange is one AUTH command from its line to its verdict.
type exchange struct {
	mechanism string
	user      string // shown to be, not yet allowed by the validators
	response  []byte // decoded, not yet taken
	present   bool   // the client has sent a response; without one the mechanism begins
	first     bool
}

// AuthRequest is what AwaitAuth wants worked out.
type AuthRequest struct {
	Mechanism string
	Response  []byte // decoded; the caller's now
	Present   bool   // false for AUTH without an initial response (RFC 4954 §4)
	First     bool   // a new exchange; an older one is over, whatever became of it
}

// AuthResult is what became of one step of a SASL exchange.
type AuthResult uint8

// The results and their replies.
const (
	AuthContinue    AuthResult = iota // 334 and a challenge
	AuthOK                            // 235 2.7.0, if the validators agree
	AuthFailed                        // 535 5.7.8
	AuthMalformed                     // 501 5.5.2
	AuthUnavailable                   // 454 4.7.0: it can't be known now
	AuthThrottled                     // 454 4.7.0: too many failures
)

// AuthAnswer ends AwaitAuth.
type AuthAnswer struct {
	Result    AuthResult
	Challenge []byte // AuthContinue: not yet encoded, borrowed
	User      string // AuthOK: the authorization identity
}

// auth begins an exchange (RFC 4954 §4). What follows the mechanism is a password as likely as not: nobody is told of it.
func (s *Session) auth(arg []byte, now time.Time, out []byte) []byte {
	word, initial, _ := bytes.Cut(arg, []byte(" "))
	name := word[:min(len(word), maxMechanismBytes)]
	switch {
	case !s.extended || s.login != nil:
		return s.refuse(out, StageAuth, &refuseSequence, name)
	case s.peer.TLS == nil && !s.sv.AuthInClear:
		return s.refuse(out, StageAuth, &refuseAuthInClear, name)
	}
	list := s.offers().mechanisms
	i := slices.IndexFunc(list, func(m string) bool { return strings.EqualFold(m, string(name)) })
	if i < 0 || len(word) > maxMechanismBytes {
		return s.refuse(out, StageAuth, &refuseMechanism, name)
	}
	s.sasl = &exchange{mechanism: list[i], first: true}
	if initial = bytes.Trim(initial, " \t"); len(initial) > 0 {
		return s.respond(initial, now, out)
	}
	return s.askMechanism(now, out)
}

// maxMechanismBytes is RFC 4422 §3.1.
const maxMechanismBytes = 20

// authLine is the client's answer to a 334.
func (s *Session) authLine(line []byte, status smtpcodec.LineStatus, now time.Time, out []byte) []byte {
	s.phase = phaseCommand
	if status == smtpcodec.LineBare {
		return s.endAuth(out, &refuseAuthEncoding)
	}
	if len(line) == 0 { // a response of no bytes
		s.sasl.response, s.sasl.present = nil, true
		return s.askMechanism(now, out)
	}
	return s.respond(line, now, out)
}

// respond decodes a response, the initial one or a later one.
func (s *Session) respond(text []byte, now time.Time, out []byte) []byte {
	x := s.sasl
	switch {
	case len(text) == 1 && text[0] == '*': // RFC 4954 §4
		return s.endAuth(out, &refuseAuthCanceled)
	case len(text) == 1 && text[0] == '=' && x.first: // an initial response of no bytes
		x.response, x.present = nil, true
		return s.askMechanism(now, out)
	}
	// Strict: RFC 4954 §4 says nothing of white space or other characters in between.
	response := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(response, text)
	if err != nil || bytes.ContainsAny(text, "\r\n") {
		return s.endAuth(out, &refuseAuthEncoding)
	}
	x.response, x.present = response[:n], true
	return s.askMechanism(now, out)
}

// askMechanism suspends the session until AuthDone.
func (s *Session) askMechanism(now time.Time, out []byte) []byte {
	s.phase, s.deadline = phaseAuth, now.Add(s.sv.PolicyTimeout)
	return out
}

// AuthRequest is what AwaitAuth is about. It is called once for each.
func (s *Session) AuthRequest() AuthRequest {
	if s.phase != phaseAuth {
		panic("session: no SASL step to take")
	}
	x := s.sasl
	r := AuthRequest{Mechanism: x.mechanism, Response: x.response, Present: x.present, First: x.first}
	x.response, x.present, x.first = nil, false, false
	return r
}

// AuthDone ends AwaitAuth.
func (s *Session) AuthDone(a AuthAnswer, now time.Time, out []byte) ([]byte, Step) {
	if s.phase != phaseAuth {
		panic("session: AuthDone without a SASL step")
	}
	s.phase = phaseCommand
	switch a.Result {
	case AuthContinue:
		s.phase = phaseAuthLine
		s.tell(StageAuth, 334)
		out = append(out, "334 "...) // RFC 4954 §4: the blank stays when the challenge is empty
		out = base64.StdEncoding.AppendEncode(out, a.Challenge)
		out = append(out, "\r\n"...)
	case AuthOK:
		s.sasl.user = a.User
		s.login = &login{user: a.User, mechanism: s.sasl.mechanism}
		out = s.judge(policy.AtAuth, now, out)
	case AuthMalformed:
		out = s.endAuth(out, &refuseAuthMalformed)
	case AuthUnavailable:
		out = s.endAuth(out, &refuseAuthUnavailable)
	case AuthThrottled:
		out = s.endAuth(out, &refuseAuthThrottled)
	default:
		out = s.endAuth(out, &refuseAuthFailed)
	}
	out = s.settle(out, now)
	return out, s.step()
}

// LogIn is for an edge that has checked the client's credentials itself: behind EHLO, outside a transaction. It is as if AUTH had succeeded; the
// validators may still refuse.
func (s *Session) LogIn(user, mechanism string, now time.Time, out []byte) ([]byte, Step) {
	if s.phase != phaseCommand || s.state != greeted {
		panic("session: LogIn outside of greeted")
	}
	s.login = &login{user: user, mechanism: mechanism}
	out = s.settle(s.judge(policy.AtAuth, now, out), now)
	return out, s.step()
}

// endAuth refuses, and counts what costs a guess.
func (s *Session) endAuth(out []byte, f *refusal) []byte {
	s.sasl, s.login = nil, nil
	if f == &refuseAuthFailed || f == &refuseAuthThrottled {
		f = s.authFailure(f)
	}
	return s.refuse(out, StageAuth, f, nil)
}

// authFailure counts one, and gives f or, past the limit, the 421 in its place.
func (s *Session) authFailure(f *refusal) *refusal {
	if s.authFailures++; s.authFailures > uint32(s.sv.MaxAuthFailures) {
		return &closeTooManyAuthFailures
	}
	return f
}

func (s *Session) loginTaken(told *smtpcodec.Reply, now time.Time, out []byte) []byte {
	s.sasl = nil
	if told != nil && told.Code == 235 {
		return s.answer(out, StageAuth, told)
	}
	return s.answer(out, StageAuth, &replyAuthOk)
}

// notLoggedIn: the password was right, and a validator did not like it all the same. To the client it is one more failure.
func (s *Session) loginRefused(r *smtpcodec.Reply, why Reason, now time.Time, out []byte) []byte {
	s.sasl, s.login = nil, nil
	if f := s.authFailure(nil); f != nil {
		return s.refuse(out, StageAuth, f, nil)
	}
	return s.refuseWith(out, StageAuth, r, why, nil)
}
