package session

import (
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/smtpcodec"
)

// transaction is what a session holds from MAIL to the end of the data. It comes from Resources and goes back there.
type transaction struct {
	env          *envelope.Envelope // nil once taken
	scan         smtpcodec.DataScanner
	received     fieldCounter
	size         int64 // message bytes so far, thrown away ones included
	recipients   int   // accepted
	dataDeadline time.Time
	wasted       bool // data is decoded and thrown away; verdict says why
	outOfMemory  bool

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
		return s.sv.offer
	}
	return 0
}

// mail opens a transaction (RFC 5321 §3.3, §4.1.1.2).
func (s *Session) mail(arg []byte, now time.Time, out []byte) []byte {
	a, bad := smtpcodec.ParseMail(arg, s.offer())
	if bad != smtpcodec.ErrNone {
		return s.refuse(out, StageMail, syntaxRefusals[bad], arg)
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
	tx.scan.Normalize = s.sv.Normalize && env.Body != envelope.BodyBinaryMIME
	s.enter(haveReversePath)
	s.tell(StageMail, 250)
	return appendPathOk(out, "250 2.1.0 <", a.Path.Mailbox, &replySenderOk)
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
		decided = s.sv.Accept(a.Path, s.peer.MayRelay)
	}
	if decided != nil && decided.Code/100 != 2 {
		s.refusedRecipient()
		return s.refuseWith(out, StageRcpt, decided, reasonOf(decided), arg)
	}

	s.tx.env.AddRecipient(a.Path.Mailbox, a.ORcpt, envelope.Notify(a.Notify))
	s.tx.recipients++
	s.enter(haveForwardPath)
	if decided != nil { // 251, say: any 2yz is an acceptance
		return s.answer(out, StageRcpt, decided)
	}
	s.tell(StageRcpt, 250)
	return appendPathOk(out, "250 2.1.5 <", a.Path.Mailbox, &replyRecipientOk)
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
