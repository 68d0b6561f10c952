package session

import (
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// transaction is what a session holds from MAIL to the end of the data. It comes from Resources and goes back there.
type transaction struct {
	env          *envelope.Envelope // nil once taken
	scan         smtpcodec.DataScanner
	received     fieldCounter
	size         int64 // message bytes so far, thrown away ones included
	recipients   int   // accepted
	announced    int64 // SIZE= of MAIL, 0 when there was none
	dataDeadline time.Time
	look         time.Time // the next look at the data rate
	lookedAt     int64     // size at the last one
	wasted       bool      // data is decoded and thrown away; verdict says why
	outOfMemory  bool
	facts        uint32 // so many bytes of fields are for the envelope only, those of discreet validators

	// The path in question, and what came with a forward-path. They borrow from the command, or from asked while validators are asked.
	path   smtpcodec.Path
	orcpt  []byte
	notify envelope.Notify
	asked  []byte
	fields []byte // header fields that validators put before the message
	host   string // the client's verified name, if a validator has found it

	// After TakeEnvelope: what Committed prints. paths holds the forward-paths one after the other, ends where each one ends; only
	// LMTP fills them, because the envelope is out of reach by then.
	id    envelope.ID
	paths []byte
	ends  []int

	next *transaction // in the free list
}

// offer is the set of parameters that the client may use now: none after HELO (RFC 5321 §2.2.1).
func (s *Session) offer() smtpcodec.Offer {
	if s.extended {
		return s.offers().params
	}
	return 0
}

// question makes path, and orcpt, the ones that validators are asked about.
func (s *Session) question(at policy.Stage, path smtpcodec.Path, orcpt []byte) {
	tx := s.tx
	if len(s.sv.at[at]) > 0 {
		// An answer may take longer than the command's bytes live.
		tx.asked = append(append(tx.asked[:0], path.Mailbox...), orcpt...)
		whole := tx.asked[:len(path.Mailbox):len(path.Mailbox)]
		path.Mailbox, path.Local, path.Domain = whole, whole[:len(path.Local)], whole[len(whole)-len(path.Domain):]
		orcpt = tx.asked[len(whole):]
	}
	tx.path, tx.orcpt = path, orcpt
}

// mail opens a transaction (RFC 5321 §3.3, §4.1.1.2).
func (s *Session) mail(arg []byte, now time.Time, out []byte) []byte {
	a, bad := smtpcodec.ParseMail(arg, s.offer())
	if bad != smtpcodec.ErrNone {
		return s.refuse(out, StageMail, syntaxRefusals[bad], arg)
	}
	switch {
	case s.sv.TLS == TLSRequired && s.peer.TLS == nil:
		return s.refuse(out, StageMail, &refuseNeedTLS, arg)
	case s.sv.AuthRequired && s.login == nil:
		return s.refuse(out, StageMail, &refuseNeedAuth, arg)
	}
	s.transactions++
	switch {
	case s.sv.MaxTransactions > 0 && s.transactions > uint32(s.sv.MaxTransactions):
		// RFC 9422 §4 leaves the reply open. 421: whatever the client has left belongs into a new session, and a 45z would make
		// some clients put the message off for hours.
		return s.refuse(out, StageMail, &closeTooManyTransactions, arg)
	case a.Size > s.sv.MaxMessageBytes:
		return s.refuse(out, StageMail, &s.sv.oversized, arg) // RFC 1870 §6.1
	case s.res.Refuse != nil:
		why := s.res.RefuseReason
		if why == ReasonNone {
			why = reasonOf(s.res.Refuse)
		}
		return s.refuseWith(out, StageMail, s.res.Refuse, why, arg)
	}

	tx := s.res.transaction()
	s.tx = tx
	env := tx.env
	env.ReversePath = env.Keep(a.Path.Mailbox)
	env.EnvID = env.Keep(a.EnvID)
	env.Body = envelope.BodyType(a.Body)
	env.Ret = envelope.Ret(a.Ret)
	env.SMTPUTF8 = a.SMTPUTF8
	env.Client = envelope.Client{
		Addr:     s.peer.Addr,
		Helo:     env.Keep(s.helo),
		Protocol: s.Protocol(),
		Listener: s.sv.Listener,
		Session:  s.peer.ID,
	}
	if s.login != nil {
		env.Client.User = env.KeepString(s.login.user)
	}
	tx.scan.Normalize = s.sv.Normalize && env.Body != envelope.BodyBinaryMIME
	tx.announced = max(a.Size, 0)
	s.question(policy.AtMail, a.Path, nil)
	return s.judge(policy.AtMail, now, out)
}

func (s *Session) reversePathTaken(told *smtpcodec.Reply, now time.Time, out []byte) []byte {
	s.enter(haveReversePath)
	if told != nil {
		return s.answer(out, StageMail, told)
	}
	s.tell(StageMail, 250)
	return appendPathOk(out, "250 2.1.0 <", s.tx.env.ReversePath, &replySenderOk)
}

func (s *Session) reversePathRefused(r *smtpcodec.Reply, why Reason, now time.Time, out []byte) []byte {
	out = s.refuseWith(out, StageMail, r, why, s.tx.path.Mailbox)
	s.dropTransaction()
	return out
}

// rcpt adds a forward-path (RFC 5321 §3.3, §4.1.1.3). A refused one leaves the transaction open (RFC 2920 §3.1).
func (s *Session) rcpt(arg []byte, now time.Time, out []byte) []byte {
	a, bad := smtpcodec.ParseRcpt(arg, s.offer(), s.tx.env.SMTPUTF8)
	if bad != smtpcodec.ErrNone {
		s.refusedRecipient()
		return s.refuse(out, StageRcpt, syntaxRefusals[bad], arg)
	}
	if s.tx.recipients >= s.sv.MaxRecipients {
		// RFC 5321 §4.5.3.1.10: those accepted so far get the message, the client sends it again to the rest.
		return s.refuse(out, StageRcpt, &refuseTooManyRcpt, arg)
	}
	var decided *smtpcodec.Reply
	if s.sv.Accept != nil {
		decided = s.sv.Accept(a.Path, s.mayRelay())
	}
	if decided != nil && decided.Code/100 != 2 {
		s.refusedRecipient()
		return s.refuseWith(out, StageRcpt, decided, reasonOf(decided), arg)
	}
	s.tx.notify = envelope.Notify(a.Notify)
	s.question(policy.AtRcpt, a.Path, a.ORcpt)
	if len(s.sv.at[policy.AtRcpt]) == 0 {
		return s.forwardPathTaken(decided, now, out)
	}
	s.told = decided
	return s.judgeFrom(policy.AtRcpt, 0, now, out)
}

func (s *Session) forwardPathTaken(told *smtpcodec.Reply, now time.Time, out []byte) []byte {
	tx := s.tx
	tx.env.AddRecipient(tx.path.Mailbox, tx.orcpt, tx.notify)
	tx.recipients++
	s.enter(haveForwardPath)
	if told != nil { // 251, say: any 2yz is an acceptance
		return s.answer(out, StageRcpt, told)
	}
	s.tell(StageRcpt, 250)
	return appendPathOk(out, "250 2.1.5 <", tx.path.Mailbox, &replyRecipientOk)
}

func (s *Session) forwardPathRefused(r *smtpcodec.Reply, why Reason, now time.Time, out []byte) []byte {
	s.refusedRecipient()
	return s.refuseWith(out, StageRcpt, r, why, s.tx.path.Mailbox)
}

func (s *Session) refusedRecipient() {
	if s.state == haveReversePath {
		s.enter(recipientsRefused)
	}
}

// appendPathOk appends "<prefix><path>> Ok", or plain when the path may not be printed.
//
// RFC 6531 §3.5 would allow UTF-8 in replies of a transaction with SMTPUTF8. It is not used: a reply of ASCII is right for every
// client and for every log that it ends in.
func appendPathOk(out []byte, prefix string, path []byte, plain *smtpcodec.Reply) []byte {
	if !printable(path) {
		return plain.AppendTo(out)
	}
	out = append(append(out, prefix...), path...)
	return append(out, "> Ok\r\n"...)
}

// maxEchoBytes keeps a reply with a path in it within the 512 bytes of RFC 5321 §4.5.3.1.5.
const maxEchoBytes = 400

func printable(p []byte) bool {
	if len(p) > maxEchoBytes {
		return false
	}
	for _, c := range p {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}
