package session

import (
	"net/netip"
	"slices"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Peer is what is known at connect. Named says that the client is somebody whom whoever speaks to us has named: MayRelay and a login are the speaker's.
// They allow it to relay; validators see a stranger, but at AtAuth, where the login is what they are asked about.
type Peer struct {
	Addr     netip.AddrPort  // the client's; zero on a unix socket
	MayRelay bool            // listed in relay_from
	Named    bool            // somebody else speaks for it
	ID       envelope.ID     // the session's id, as in the logs
	TLS      *policy.TLS     // nil in clear
	Proxy    *netip.AddrPort // a proxy's own address, nil without one
}

// Step is what the session wants next.
type Step uint8

// A caller acts on the step before it calls anything else.
const (
	NeedInput   Step = iota // feed more bytes when they come
	AwaitCommit             // take the envelope with TakeEnvelope, submit it, answer with Committed
	AwaitPolicy             // arm Pending; when it is answered, call Decided
	AwaitAuth               // take AuthRequest to the SASL mechanism, answer with AuthDone
	StartTLS                // call AnswerTLS, send the 220, throw away what else came in clear, shake hands, call Secured
	Close                   // send what was appended, then close
)

// MaxReplyBytes is how much Feed appends before it wants the replies sent; the last of them may go over it. An answer to EHLO is 25 times
// as long as a short EHLO, so without it 16 KiB of them would leave 400 KiB of replies for a client that may never read.
const MaxReplyBytes = 32 << 10

// phase says what the next byte from the client is part of.
type phase uint8

const (
	phaseClosed   phase = iota // nothing: before Open, and after a reply that closes
	phaseCommand               // a command line
	phaseSkipLine              // the rest of a line that was too long
	phaseData                  // mail data behind 354
	phaseChunk                 // the octets of a BDAT, also of a refused one
	phaseAuthLine              // the client's response to a SASL challenge
	phaseCommit                // nobody's yet: the message waits for its commit
	phasePolicy                // nobody's yet: a validator takes its time
	phaseAuth                  // nobody's yet: a SASL step is being worked out
	phaseTLS                   // nobody's yet: STARTTLS, and the handshake
)

// state is how far the dialogue has come (RFC 5321 §4.1.4). Each is a bit, so that the command table can name sets of them.
type state uint8

const (
	connected         state = 1 << iota // no HELO yet
	greeted                             // HELO, EHLO or LHLO accepted, no transaction
	haveReversePath                     // MAIL accepted, no RCPT yet
	recipientsRefused                   // MAIL accepted, every RCPT so far refused
	haveForwardPath                     // at least one RCPT accepted
	haveChunks                          // at least one BDAT accepted
	barred                              // refused in place of the greeting, or after a handshake

	anywhere = connected | greeted | inTransaction
	always   = anywhere | barred
	// inTransaction is where an envelope is attached.
	inTransaction = haveReversePath | recipientsRefused | haveForwardPath | haveChunks
)

// Session is one SMTP or LMTP session without I/O. It belongs to one goroutine. The zero value is ready for Open.
//
// It is small, because most sessions are idle: what only a mail transaction needs is in transaction, attached from MAIL to the end
// of the data.
type Session struct {
	sv  *Server
	res *Resources
	tx  *transaction // nil outside a transaction

	peer     Peer
	login    *login // nil before AUTH
	helo     []byte
	deadline time.Time // zero: never

	// The BDAT being read; here and not in transaction because a BDAT outside one is read too.
	chunkLeft    int64
	chunkSize    int64
	chunkRefused *refusal
	chunkLast    bool
	chunkWaits   bool // the first one: validators are asked before its octets are read

	phase    phase
	state    state
	lastCR   bool // in phaseSkipLine: the byte before was CR
	extended bool // EHLO or LHLO rather than HELO
	draining bool // 421 4.3.2 as soon as no transaction is open
	upgraded bool // TLS came by STARTTLS
	vouched  bool // the validators at AtTLS have been asked

	asked   policy.Stage     // of pending
	askedOf uint16           // its place in the list
	pending *policy.Pending  // the question that is waited for
	told    *smtpcodec.Reply // what validators want said in place of our own success
	sasl    *exchange        // the AUTH being worked out
	slot    any              // what the first validator remembers that does: here, where the session's next message finds it at hand;
	slots   *[]any           // and the others, made when the first of these is asked

	errors       uint32 // faulty commands, see reasons
	transactions uint32 // MAIL commands
	junk         uint32 // commands since the last message that brought none
	authFailures uint32
}

// Open starts the session and appends the greeting. It borrows nothing but sv and res.
func (s *Session) Open(sv *Server, res *Resources, p Peer, now time.Time, out []byte) ([]byte, Step) {
	p.Addr = netip.AddrPortFrom(p.Addr.Addr().Unmap().WithZone(""), p.Addr.Port())
	*s = Session{sv: sv, res: res, peer: p, helo: s.helo[:0], phase: phaseCommand, state: connected}
	s.await(now)
	out = s.judge(policy.AtConnect, now, out)
	return out, s.step()
}

// Feed borrows in until it returns, uses consumed bytes of it, and appends replies to out. Unused bytes are fed again with what
// comes after them. It stops at the first step other than NeedInput; bytes behind QUIT are left alone. A Feed before such a step is answered
// panics: its replies would overtake the answer's.
//
// It also stops behind a command when MaxReplyBytes or more were appended, with NeedInput and part of in unused: the caller sends the
// replies and feeds the rest, or waits until the client reads.
func (s *Session) Feed(in []byte, now time.Time, out []byte) (consumed int, o []byte, step Step) {
	had := len(out)
	if s.phase >= phaseCommit {
		panic("session: fed while it is suspended")
	}
	for {
		rest := in[consumed:]
		switch s.phase {
		case phaseCommand:
			line, n, status := smtpcodec.ScanLine(rest, s.sv.maxLine, s.sv.Normalize)
			switch status {
			case smtpcodec.LineMore:
				return consumed, out, NeedInput
			case smtpcodec.LineTooLong:
				s.phase, s.lastCR = phaseSkipLine, false
			default:
				consumed += n
				out = s.settle(s.command(line, status, now, out), now)
				if len(out)-had >= MaxReplyBytes && s.phase == phaseCommand {
					return consumed, out, NeedInput
				}
			}
		case phaseSkipLine:
			n, done := smtpcodec.SkipLine(rest, &s.lastCR)
			consumed += n
			if !done {
				return consumed, out, NeedInput
			}
			s.phase = phaseCommand
			out = s.settle(s.lineTooLong(out), now)
		case phaseAuthLine:
			line, n, status := smtpcodec.ScanLine(rest, maxAuthLineBytes, s.sv.Normalize)
			switch status {
			case smtpcodec.LineMore:
				return consumed, out, NeedInput
			case smtpcodec.LineTooLong:
				s.phase, s.lastCR = phaseSkipLine, false
			default:
				consumed += n
				out = s.settle(s.authLine(line, status, now, out), now)
			}
		case phaseData:
			n, done := s.scanData(rest)
			consumed += n
			if !done {
				return consumed, out, NeedInput
			}
			out = s.settle(s.endData(now, out), now)
		case phaseChunk:
			consumed += s.scanChunk(rest)
			if s.chunkLeft > 0 {
				return consumed, out, NeedInput
			}
			out = s.settle(s.endChunk(now, out), now)
		default:
			return consumed, out, s.step()
		}
	}
}

func (s *Session) lineTooLong(out []byte) []byte {
	if s.sasl != nil {
		s.sasl = nil
		return s.refuse(out, StageAuth, &refuseAuthLineTooLong, nil)
	}
	return s.refuse(out, StageOther, &refuseLineTooLong, nil)
}

// Deadline is when Expire is due; the zero time means never (a closed session, or one that is suspended for something with a time limit
// of its own: a commit, a handshake).
func (s *Session) Deadline() time.Time { return s.deadline }

// Expire is called after the deadline. A client that is late gets 421 4.4.2 and Close. A validator or a SASL step that is late has failed,
// and the session goes on; its answer is not wanted any more. Message data that comes fast enough gets a new deadline. Called early, as by a
// coarse timer, it does nothing.
func (s *Session) Expire(now time.Time, out []byte) ([]byte, Step) {
	switch {
	case s.phase == phaseClosed:
		return out, Close
	case s.deadline.IsZero() || now.Before(s.deadline):
		return out, NeedInput
	case s.phase == phasePolicy:
		s.dropQuestion()
		return s.goOn(smtpcodec.Reply{}, nil, errLate, now, out)
	case s.phase == phaseAuth:
		return s.AuthDone(AuthAnswer{Result: AuthUnavailable}, now, out)
	case s.keepsUp(now):
		return out, NeedInput
	case s.inData() && now.Before(s.tx.dataDeadline):
		return s.refuse(out, StageOther, &closeTooSlow, nil), Close
	}
	return s.refuse(out, StageOther, &closeTimeout, nil), Close
}

// Shutdown is called while draining: between transactions it appends 421 4.3.2 and gives Close; inside one it gives NeedInput, and
// the session says 421 by itself as soon as the transaction is over (RFC 5321 §3.8).
func (s *Session) Shutdown(now time.Time, out []byte) ([]byte, Step) {
	if s.phase == phaseClosed {
		return out, Close
	}
	s.draining = true
	if out = s.leave(out); s.phase == phaseClosed {
		return out, Close
	}
	return out, NeedInput
}

// Abort releases what the session holds; the connection is gone. It may be called at any time and more than once. An envelope that
// was taken stays its taker's, and neither Committed nor any other answer may follow.
func (s *Session) Abort() { s.close() }

// Peer is what Open was given.
func (s *Session) Peer() Peer { return s.peer }

// Helo borrows the client's name until the next call on s; empty before HELO.
func (s *Session) Helo() []byte { return s.helo }

// ReversePath borrows the reverse-path of the open transaction until the next call on s; nil when there is none, or its envelope
// was taken.
func (s *Session) ReversePath() []byte {
	if s.tx == nil || s.tx.env == nil {
		return nil
	}
	return s.tx.env.ReversePath
}

// InTransaction says whether a mail transaction is open, a message that awaits its commit included.
func (s *Session) InTransaction() bool { return s.tx != nil }

// Login gives the authorization identity and the SASL mechanism after AUTH; empty before.
func (s *Session) Login() (user, mechanism string) {
	if s.login == nil {
		return "", ""
	}
	return s.login.user, s.login.mechanism
}

// protocols are the words of RFC 3848, and of RFC 6531 §4.3 for a transaction with SMTPUTF8, that stand in Received fields: by dialogue,
// then by 1 for TLS and 2 for AUTH.
//
// Deviation: RFC 3848 has no word for HELO within TLS. SMTPS says what happened. Nor has it one for HTTP.
var protocols = [...][4]string{
	{"SMTP", "SMTPS", "SMTP", "SMTPS"},
	{"ESMTP", "ESMTPS", "ESMTPA", "ESMTPSA"},
	{"UTF8SMTP", "UTF8SMTPS", "UTF8SMTPA", "UTF8SMTPSA"},
	{"LMTP", "LMTPS", "LMTPA", "LMTPSA"},
	{"UTF8LMTP", "UTF8LMTPS", "UTF8LMTPA", "UTF8LMTPSA"},
	{"HTTP", "HTTPS", "HTTP", "HTTPS"},
}

// Protocols lists every word that Protocol can give.
func Protocols() (all []string) {
	for _, row := range protocols {
		for _, word := range row {
			if !slices.Contains(all, word) {
				all = append(all, word)
			}
		}
	}
	return all
}

// Protocol is the word of RFC 3848 for how the session is held now.
func (s *Session) Protocol() string {
	utf8 := s.tx != nil && s.tx.env != nil && s.tx.env.SMTPUTF8
	row, column := 0, 0
	switch {
	case s.sv.HTTP:
		row = 5
	case s.sv.LMTP && utf8:
		row = 4
	case s.sv.LMTP:
		row = 3
	case utf8:
		row = 2
	case s.extended:
		row = 1
	}
	if s.peer.TLS != nil {
		column = 1
	}
	if s.login != nil {
		column += 2
	}
	return protocols[row][column]
}

// security is what the client has reached.
func (s *Session) security() (sec security) {
	if t := s.peer.TLS; t != nil {
		sec = encrypted
		if !t.Proxied {
			sec |= bindable
		}
		if t.Certificate != nil && t.Certificate.Verified {
			sec |= certified
		}
	}
	return sec
}

func (s *Session) offers() *offers { return &s.sv.offers[s.security()] }

// mayRelay says that the client may send to any domain.
func (s *Session) mayRelay() bool { return s.peer.MayRelay || s.login != nil }

// step is what the session wants, by its phase.
func (s *Session) step() Step {
	switch s.phase {
	case phaseClosed:
		return Close
	case phaseCommit:
		return AwaitCommit
	case phasePolicy:
		return AwaitPolicy
	case phaseAuth:
		return AwaitAuth
	case phaseTLS:
		return StartTLS
	}
	return NeedInput
}

// settle runs after each complete command and message: the time for the next command begins, and a draining session ends when it
// is between transactions.
func (s *Session) settle(out []byte, now time.Time) []byte {
	if s.phase == phaseCommand || s.phase == phaseAuthLine {
		s.await(now)
	}
	return s.leave(out)
}

// await sets the deadline for the next command. It never runs because some bytes came, so a client that sends a byte a minute gains
// nothing.
func (s *Session) await(now time.Time) {
	s.deadline = now.Add(s.sv.CommandTimeout)
	// Between two BDAT the time for the data goes on.
	if s.state == haveChunks && s.tx.dataDeadline.Before(s.deadline) {
		s.deadline = s.tx.dataDeadline
	}
}

// enter is the one place that changes the state.
func (s *Session) enter(to state) { s.state = to }

// dropTransaction ends the transaction, if one is open, and releases what it holds (RFC 5321 §4.1.1.5).
func (s *Session) dropTransaction() {
	if s.tx == nil {
		return
	}
	s.res.release(s.tx)
	s.tx = nil
	s.enter(greeted)
}

// close ends the session for good and releases what it holds.
func (s *Session) close() {
	if s.phase == phaseClosed {
		return
	}
	s.dropQuestion()
	s.sasl = nil
	s.dropTransaction()
	s.phase, s.deadline = phaseClosed, time.Time{}
	s.tellOf(policy.AtClose, smtpcodec.Reply{})
}

// leave ends a draining session once it is between transactions and not inside a chunk or a line.
func (s *Session) leave(out []byte) []byte {
	if s.draining && s.tx == nil && (s.phase == phaseCommand || s.phase == phaseSkipLine || s.phase == phaseAuthLine) {
		return s.refuse(out, StageOther, &closeShutdown, nil)
	}
	return out
}

// tell counts a decision.
func (s *Session) tell(stage Stage, code uint16) {
	if s.res.Observer != nil {
		s.res.Observer.Replied(stage, code)
	}
}

// answer appends a positive reply.
func (s *Session) answer(out []byte, stage Stage, r *smtpcodec.Reply) []byte {
	s.tell(stage, r.Code)
	return r.AppendTo(out)
}

// refuse appends f, or the 421 that ends a session with too many errors in its place. arg is for the observer.
func (s *Session) refuse(out []byte, stage Stage, f *refusal, arg []byte) []byte {
	// A refused message is never an error of the dialogue: a 421 in place of its 554 would only make the client come again with it.
	if reasons[f.reason].counts && stage != StageMessage {
		s.errors++
		if s.errors > uint32(s.sv.MaxErrors) {
			f = &closeTooManyErrors
		}
	}
	return s.refuseWith(out, stage, &f.reply, f.reason, arg)
}

// refuseWith appends a refusal that may come from elsewhere. Codes 421 and 221 close the session whoever chose them.
func (s *Session) refuseWith(out []byte, stage Stage, r *smtpcodec.Reply, why Reason, arg []byte) []byte {
	s.tell(stage, r.Code)
	if s.res.Observer != nil {
		s.res.Observer.Refused(s, stage, r, why, arg)
	}
	if r.Code == 421 || r.Code == 221 {
		s.close()
	}
	return r.AppendTo(out)
}
