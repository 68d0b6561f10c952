package session

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// judged is what a session does at one stage once its validators have been asked. The handler of a command does its own checks, then
// calls judge, and everything that is left to do stands in the row: a validator may take its time, and the handler's stack is gone by then.
type judged struct {
	stage Stage
	// accept goes on. told is the validators' own positive reply, nil when none of them had one.
	accept func(s *Session, told *smtpcodec.Reply, now time.Time, out []byte) []byte
	// refuse undoes what the handler has done, and answers.
	refuse func(s *Session, r *smtpcodec.Reply, why Reason, now time.Time, out []byte) []byte
}

// judgements has a row for each stage that a session waits at. It is filled in by init because its functions lead back to judge.
var judgements [policy.AtMessage + 1]judged

func init() {
	judgements = [...]judged{
		policy.AtConnect: {StageConnect, (*Session).clientTaken, (*Session).clientRefused},
		policy.AtTLS:     {StageTLS, (*Session).tlsTaken, (*Session).tlsRefused},
		policy.AtHelo:    {StageHelo, (*Session).heloTaken, (*Session).heloRefused},
		policy.AtAuth:    {StageAuth, (*Session).loginTaken, (*Session).loginRefused},
		policy.AtMail:    {StageMail, (*Session).reversePathTaken, (*Session).reversePathRefused},
		policy.AtRcpt:    {StageRcpt, (*Session).forwardPathTaken, (*Session).forwardPathRefused},
		policy.AtData:    {StageData, (*Session).dataBegins, (*Session).dataRefused},
		policy.AtMessage: {StageMessage, (*Session).messageTaken, (*Session).messageRefused},
	}
}

// judge asks the validators of a stage and then does what its row says. When one of them takes its time the session is suspended, and
// Decided goes on.
func (s *Session) judge(at policy.Stage, now time.Time, out []byte) []byte {
	if len(s.sv.at[at]) == 0 {
		return judgements[at].accept(s, nil, now, out)
	}
	s.told = nil
	return s.judgeFrom(at, 0, now, out)
}

func (s *Session) judgeFrom(at policy.Stage, from int, now time.Time, out []byte) []byte {
	list := s.sv.at[at]
	for i := from; i < len(list); i++ {
		e := s.event(at, &list[i])
		e.Now = now
		err := validate(list[i], e)
		if e.Host != "" && s.tx != nil {
			s.tx.host = e.Host
		}
		if p := e.Pended(); p != nil && err == nil {
			s.pending, s.asked, s.askedOf = p, at, uint16(i)
			s.phase, s.deadline = phasePolicy, now.Add(s.sv.PolicyTimeout)
			return out
		} else if p != nil {
			p.Cancel()
		}
		if r, failed := s.hear(at, &list[i], e.Reply, e.Fields, err); r != nil {
			return judgements[at].refuse(s, r, list[i].why(failed), now, out)
		}
	}
	return judgements[at].accept(s, s.told, now, out)
}

// why is the word for a validator's refusal.
func (v *placed) why(failed bool) Reason {
	if failed {
		return ReasonValidator
	}
	return v.reason
}

// hear takes one validator's answer: nil goes on, anything else refuses.
func (s *Session) hear(at policy.Stage, v *placed, r smtpcodec.Reply, fields []byte, err error) (refuse *smtpcodec.Reply, failed bool) {
	if err == nil && r.Code != 0 && (r.Code < 200 || r.Code > 599) {
		err = policy.ErrReply
	}
	if err == nil && len(fields) > 0 && s.tx != nil {
		switch tx := s.tx; {
		case len(tx.fields)+len(fields) > maxFieldBytes:
			err = errFields
		case v.discreet:
			tx.fields = slices.Insert(tx.fields, int(tx.facts), fields...)
			tx.facts += uint32(len(fields))
		default:
			tx.fields = append(tx.fields, fields...)
		}
	}
	switch {
	case err != nil:
		if s.res.Observer != nil {
			s.res.Observer.ValidatorFailed(s, at, err)
		}
		return &refuseFailed.reply, true
	case r.Code == 0 || at == policy.AtData && r.Code == 354:
		return nil, false
	case r.Code/100 == 2 && r.Code != 221:
		told := r // on the heap only here
		s.told = &told
		return nil, false
	}
	refused := r
	return &refused, false
}

// maxFieldBytes bounds the header fields that validators put before one message.
const maxFieldBytes = 64 << 10

var (
	errFields = errors.New("session: validators add too many header fields")
	errLate   = errors.New("session: no answer in time")
)

// validate asks one validator. Its panic is an error: the client is not to lose its session to somebody else's bug.
func validate(v placed, e *policy.Event) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("session: validator %T panicked: %v", v.Validator, r)
		}
	}()
	return v.Validate(e)
}

// event fills in the loop's one event, for a validator.
func (s *Session) event(at policy.Stage, v *placed) *policy.Event {
	e := &s.res.event
	*e = policy.Event{
		Stage: at,
		Client: policy.Client{
			Addr:     s.peer.Addr,
			ID:       s.peer.ID,
			Listener: s.sv.Listener,
			MayRelay: s.peer.MayRelay && !s.peer.Named,
			Helo:     s.helo,
			Protocol: s.Protocol(),
			TLS:      s.peer.TLS,
		},
	}
	e.Slot = s.slotOf(v)
	if s.peer.Proxy != nil {
		e.Client.ProxyAddr = *s.peer.Proxy
	}
	if s.login != nil && (!s.peer.Named || at == policy.AtAuth) {
		e.Client.User, e.Client.Mechanism = s.login.user, s.login.mechanism
	}
	if s.tx != nil && s.tx.env != nil {
		e.Envelope, e.Path, e.Size = s.tx.env, s.tx.path, s.tx.size
		e.Fields = s.tx.fields[len(s.tx.fields):] // what is appended there lies where hear will put it
		if at == policy.AtMail {
			e.Size = s.tx.announced
		}
	}
	return e
}

// slotOf is where a validator remembers, if it does.
func (s *Session) slotOf(v *placed) *any {
	switch v.slot {
	case -1:
		return nil
	case 0:
		return &s.slot
	}
	if s.slots == nil {
		slots := make([]any, s.sv.slots-1)
		s.slots = &slots
	}
	return &(*s.slots)[v.slot-1]
}

// Pending is the question that AwaitPolicy is about; nil when there is none. Arm says whom to wake, who then calls Decided.
func (s *Session) Pending() *policy.Pending { return s.pending }

// Decided ends AwaitPolicy, once the answer is there.
func (s *Session) Decided(now time.Time, out []byte) ([]byte, Step) {
	if s.phase != phasePolicy {
		panic("session: Decided without a question")
	}
	r, fields, err := s.pending.Decision()
	return s.goOn(r, fields, err, now, out)
}

// goOn hears the answer of the validator that was waited for, and asks those behind it.
func (s *Session) goOn(r smtpcodec.Reply, fields []byte, err error, now time.Time, out []byte) ([]byte, Step) {
	at, next := s.asked, int(s.askedOf)+1
	s.pending = nil
	s.phase = phaseCommand
	v := &s.sv.at[at][s.askedOf]
	if r, failed := s.hear(at, v, r, fields, err); r != nil {
		out = judgements[at].refuse(s, r, v.why(failed), now, out)
	} else {
		out = s.judgeFrom(at, next, now, out)
	}
	if s.phase == phaseChunk && s.chunkLeft == 0 { // a BDAT without octets: no input will come that could end it
		out = s.endChunk(now, out)
	}
	out = s.settle(out, now)
	return out, s.step()
}

// dropQuestion lets nobody answer any more.
func (s *Session) dropQuestion() {
	if s.pending != nil {
		s.pending.Cancel()
		s.pending = nil
	}
}

// tellOf asks the validators of a stage that the session does not wait at. reply is what will be answered; the result is what they made of it.
func (s *Session) tellOf(at policy.Stage, reply smtpcodec.Reply) smtpcodec.Reply {
	for i := range s.sv.at[at] {
		v := &s.sv.at[at][i]
		e := s.event(at, v)
		e.Reply = reply
		err := validate(*v, e)
		if r := e.Reply; err == nil && r != reply && (r.Code < 200 || r.Code > 599) {
			err = policy.ErrReply
		}
		if err != nil {
			if s.res.Observer != nil {
				s.res.Observer.ValidatorFailed(s, at, err)
			}
			continue
		}
		reply = e.Reply
	}
	return reply
}

// clientTaken is the greeting.
func (s *Session) clientTaken(told *smtpcodec.Reply, now time.Time, out []byte) []byte {
	if s.peer.TLS != nil && s.state == connected && !s.vouched {
		s.vouched = true
		return s.judge(policy.AtTLS, now, out)
	}
	if told != nil && told.Code == 220 {
		return s.answer(out, StageConnect, told)
	}
	s.tell(StageConnect, 220)
	return append(out, s.sv.greeting...)
}

// clientRefused refuses in place of the greeting. RFC 5321 §3.1: with anything but 421 the client is waited for until it says QUIT.
func (s *Session) clientRefused(r *smtpcodec.Reply, why Reason, now time.Time, out []byte) []byte {
	s.enter(barred)
	return s.refuseWith(out, StageConnect, r, why, nil)
}

// tlsTaken goes on after a handshake: with the greeting where TLS came first, else in silence (RFC 3207 §4.2).
func (s *Session) tlsTaken(told *smtpcodec.Reply, now time.Time, out []byte) []byte {
	if s.upgraded {
		return out
	}
	return s.clientTaken(nil, now, out)
}

// tlsRefused: where TLS came by STARTTLS there is no reply to be given, so the next command gets 503.
func (s *Session) tlsRefused(r *smtpcodec.Reply, why Reason, now time.Time, out []byte) []byte {
	if !s.upgraded {
		return s.clientRefused(r, why, now, out)
	}
	s.enter(barred)
	had := len(out)
	out = s.refuseWith(out, StageTLS, r, why, nil)
	if s.phase == phaseClosed {
		return out
	}
	return out[:had]
}
