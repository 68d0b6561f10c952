package session

import (
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// starttls (RFC 3207 §4). Whether there is room for one more handshake is for the caller to say, so nothing is answered here.
func (s *Session) starttls(arg []byte, now time.Time, out []byte) []byte {
	if !s.extended || s.peer.TLS != nil { // RFC 3207 §4.2: not a second time
		return s.refuse(out, StageTLS, &refuseSequence, arg)
	}
	s.phase, s.deadline = phaseTLS, time.Time{}
	return out
}

// AnswerTLS answers STARTTLS: 220 when refusal is nil, and the session waits for Secured. What the client has sent in clear behind the
// command must be thrown away then (RFC 3207 §4.2; CVE-2011-0411).
func (s *Session) AnswerTLS(refusal *smtpcodec.Reply, now time.Time, out []byte) ([]byte, Step) {
	if s.phase != phaseTLS {
		panic("session: AnswerTLS without STARTTLS")
	}
	if refusal != nil {
		s.phase = phaseCommand
		out = s.settle(s.refuseWith(out, StageTLS, refusal, ReasonTLS, nil), now)
		return out, s.step()
	}
	return s.answer(out, StageTLS, &replyGoAhead), StartTLS
}

// Secured ends STARTTLS after the handshake. RFC 3207 §4.2: the session is back at its beginning, without a greeting, and nothing that the
// client said in clear is left, its name and its login included.
func (s *Session) Secured(t *policy.TLS, now time.Time, out []byte) ([]byte, Step) {
	if s.phase != phaseTLS || t == nil {
		panic("session: Secured without a handshake")
	}
	s.dropTransaction()
	s.enter(connected)
	s.helo, s.login, s.extended = s.helo[:0], nil, false
	s.peer.TLS, s.upgraded, s.vouched = t, true, true
	s.phase = phaseCommand
	out = s.settle(s.judge(policy.AtTLS, now, out), now)
	return out, s.step()
}
