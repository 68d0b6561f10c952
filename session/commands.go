package session

import (
	"bytes"
	"time"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// argument says what a verb wants behind it.
type argument uint8

const (
	argOptional argument = iota
	argNone
	argRequired
)

// command is one row of the command table. What it leaves empty is allowed; the checks run in the order of the fields.
type command struct {
	stage Stage
	// only names the kind of listener that knows the verb; the others answer elsewhere.
	only      dialect
	elsewhere *refusal
	// offered says that the listener has what the verb needs; without it the verb is known and not implemented.
	offered func(sv *Server) bool
	// arg is checked before the state, so that a malformed command is a 501 wherever it stands.
	arg       argument
	malformed func(arg []byte) bool
	// text is for the verbs whose argument nobody parses: it may not have controls, NUL or broken UTF-8 all the same.
	text bool
	// junk marks what brings no mail on its way; see Options.MaxJunk.
	junk bool
	// run is called in the states of in; in all others the reply is otherwise.
	in        state
	otherwise *refusal
	run       func(s *Session, arg []byte, now time.Time, out []byte) []byte
}

type dialect uint8

const (
	bothDialects dialect = iota
	smtpOnly
	lmtpOnly
)

// commands is the order of the dialogue (RFC 5321 §4.1.4, RFC 3030 §2, RFC 2033 §4).
//
// There is no mark for the commands that end a command group (RFC 2920 §3.1): whether bytes behind DATA or QUIT came in the same
// segment is an accident of the network, so they are answered in order, or left alone, in either case.
var commands = [smtpcodec.NumVerbs]command{
	smtpcodec.VerbEHLO: {stage: StageHelo, only: smtpOnly, elsewhere: &refuseWrongDialect, arg: argRequired, junk: true, in: anywhere, otherwise: &refuseSequence, run: (*Session).ehlo},
	smtpcodec.VerbHELO: {stage: StageHelo, only: smtpOnly, elsewhere: &refuseWrongDialect, arg: argRequired, junk: true, in: anywhere, otherwise: &refuseSequence, run: (*Session).heloCommand},
	smtpcodec.VerbLHLO: {stage: StageHelo, only: lmtpOnly, elsewhere: &refuseUnknownCommand, arg: argRequired, junk: true, in: anywhere, otherwise: &refuseSequence, run: (*Session).ehlo},

	smtpcodec.VerbMAIL: {stage: StageMail, arg: argRequired, malformed: malformedMail, in: greeted, otherwise: &refuseSequence, run: (*Session).mail},
	smtpcodec.VerbRCPT: {stage: StageRcpt, arg: argRequired, malformed: malformedRcpt,
		in: haveReversePath | recipientsRefused | haveForwardPath, otherwise: &refuseSequence, run: (*Session).rcpt},
	smtpcodec.VerbDATA: {stage: StageData, arg: argNone, in: recipientsRefused | haveForwardPath, otherwise: &refuseSequence, run: (*Session).data},
	// BDAT has no states here: its octets follow whatever the reply is, so the handler runs anywhere and decides itself.
	smtpcodec.VerbBDAT: {stage: StageData, in: always, run: (*Session).bdat},

	smtpcodec.VerbRSET: {stage: StageOther, arg: argNone, junk: true, in: always, run: (*Session).rset},
	smtpcodec.VerbNOOP: {stage: StageOther, text: true, junk: true, in: always, run: (*Session).noop},
	smtpcodec.VerbVRFY: {stage: StageOther, arg: argRequired, text: true, junk: true, in: always, run: (*Session).vrfy},
	smtpcodec.VerbHELP: {stage: StageOther, text: true, junk: true, in: always, run: (*Session).help},
	smtpcodec.VerbQUIT: {stage: StageOther, arg: argNone, in: always, run: (*Session).quit},

	smtpcodec.VerbEXPN:     {stage: StageOther, junk: true, otherwise: &refuseNotImplemented}, // RFC 5321 §3.5.1: need not be supported
	smtpcodec.VerbSTARTTLS: {stage: StageTLS, offered: (*Server).offersTLS, arg: argNone, in: greeted | inTransaction, otherwise: &refuseSequence, run: (*Session).starttls},
	// RFC 4954 §4: not within a transaction, and not before EHLO.
	smtpcodec.VerbAUTH: {stage: StageAuth, offered: (*Server).offersAuth, arg: argRequired, in: greeted, otherwise: &refuseSequence, run: (*Session).auth},

	smtpcodec.VerbUnknown: {stage: StageOther, otherwise: &refuseUnknownCommand},
	smtpcodec.VerbHTTP:    {stage: StageOther, otherwise: &closeHTTP},
}

// everything is for looking at the shape of an argument only: no parameter is unknown.
const everything = smtpcodec.OfferSize | smtpcodec.Offer8BitMIME | smtpcodec.OfferBinaryMIME | smtpcodec.OfferSMTPUTF8 |
	smtpcodec.OfferDSN | smtpcodec.OfferAuth

func malformedMail(arg []byte) bool {
	_, err := smtpcodec.ParseMail(arg, everything)
	return err == smtpcodec.ErrSyntax
}

func malformedRcpt(arg []byte) bool {
	_, err := smtpcodec.ParseRcpt(arg, everything, true)
	return err == smtpcodec.ErrSyntax
}

// command runs one complete line.
func (s *Session) command(line []byte, status smtpcodec.LineStatus, now time.Time, out []byte) []byte {
	if status == smtpcodec.LineBare {
		// RFC 5321 §2.3.8. Nothing in the line is run: a next hop, or a client, that takes LF for a line end sees several commands.
		return s.refuse(out, StageOther, &refuseBareInCommand, s.tellable(line))
	}
	verb, arg := smtpcodec.ParseCommand(line)
	c := &commands[verb]
	if c.junk {
		if s.junk++; s.junk > uint32(s.sv.MaxJunk) {
			return s.refuse(out, c.stage, &closeTooMuchJunk, nil)
		}
	}
	told := arg
	if verb == smtpcodec.VerbAUTH {
		// RFC 4954 §4: an initial response is a password. Observers write arguments down, so for them it ends here.
		if i := bytes.IndexAny(arg, " \t"); i >= 0 {
			told = arg[:i]
		}
	}
	switch {
	case c.only != bothDialects && (c.only == lmtpOnly) != s.sv.LMTP:
		return s.refuse(out, c.stage, c.elsewhere, told)
	case c.offered != nil && !c.offered(s.sv):
		return s.refuse(out, c.stage, &refuseNotImplemented, told)
	case c.arg == argNone && len(arg) > 0, c.arg == argRequired && len(arg) == 0:
		return s.refuse(out, c.stage, &refuseSyntax, told)
	case c.text && !smtpcodec.ValidText(arg):
		return s.refuse(out, c.stage, &refuseSyntax, arg)
	case c.in&s.state != 0:
		return c.run(s, arg, now, out)
	case c.malformed != nil && c.malformed(arg):
		// Only looked at here, because run parses for itself.
		return s.refuse(out, c.stage, &refuseSyntax, arg)
	case verb == smtpcodec.VerbUnknown:
		return s.refuse(out, c.stage, c.otherwise, s.tellable(line))
	}
	return s.refuse(out, c.stage, c.otherwise, told)
}

// tellable is what observers, who write arguments down, may see of a line that is no command: it may be AUTH with a line end or a blank too
// many, whose response is a password, or the response alone, of a client that does not wait for replies.
func (s *Session) tellable(line []byte) []byte {
	if len(s.sv.Auth) > 0 {
		return nil
	}
	line = bytes.TrimLeft(line, " \t")
	if end := bytes.IndexAny(line, " \t"); end >= 0 {
		line = line[:end]
	}
	return line
}

// maxHeloBytes is the longest domain (RFC 5321 §4.5.3.1.2).
const maxHeloBytes = 255

// ehlo answers EHLO and LHLO. Both reset the transaction, as RSET does (RFC 5321 §4.1.4).
//
// Deviation: RFC 5321 §4.1.1.1 begins the first line with the server's domain. The dialogue that this server is made after says
// "Hello" and the client's name there; no client reads the word, and the domain stands in the greeting.
func (s *Session) ehlo(arg []byte, now time.Time, out []byte) []byte {
	return s.greet(arg, true, now, out)
}

func (s *Session) heloCommand(arg []byte, now time.Time, out []byte) []byte {
	return s.greet(arg, false, now, out)
}

// greet takes the client's name. A name that is none leaves everything as it was; one that a validator refuses leaves a session that has
// not been greeted.
//
// Deviation: RFC 5321 §4.1.1.1 wants a domain or an address literal. Real clients send bare host names and names with underscores,
// so any printable word that smtpcodec.ValidHelo takes is good here.
func (s *Session) greet(name []byte, extended bool, now time.Time, out []byte) []byte {
	if len(name) > maxHeloBytes || !smtpcodec.ValidHelo(name) {
		return s.refuse(out, StageHelo, &refuseSyntax, name)
	}
	s.dropTransaction()
	s.helo = append(s.helo[:0], name...)
	s.extended = extended
	s.enter(connected)
	return s.judge(policy.AtHelo, now, out)
}

func (s *Session) heloTaken(told *smtpcodec.Reply, now time.Time, out []byte) []byte {
	s.enter(greeted)
	s.tell(StageHelo, 250)
	if !s.extended {
		if told != nil {
			return told.AppendTo(out)
		}
		out = append(append(out, "250 Hello "...), s.helo...)
		return append(out, "\r\n"...)
	}
	f := s.offers()
	out = append(append(out, f.ehlo...), s.helo...)
	return append(out, f.ehloRest...)
}

func (s *Session) heloRefused(r *smtpcodec.Reply, why Reason, now time.Time, out []byte) []byte {
	return s.refuseWith(out, StageHelo, r, why, s.helo)
}

func (s *Session) rset(arg []byte, now time.Time, out []byte) []byte {
	s.dropTransaction()
	return s.say(policy.AtRset, &replyOk, out)
}

// say answers a command that always succeeds. Validators may change the words, and with 421 end the session.
func (s *Session) say(at policy.Stage, r *smtpcodec.Reply, out []byte) []byte {
	if len(s.sv.at[at]) == 0 {
		return s.answer(out, StageOther, r)
	}
	told := s.tellOf(at, *r)
	if told.Code/100 == 2 {
		return s.answer(out, StageOther, &told)
	}
	return s.refuseWith(out, StageOther, &told, ReasonPolicy, nil)
}

func (s *Session) noop(arg []byte, now time.Time, out []byte) []byte {
	return s.answer(out, StageOther, &replyOk)
}

func (s *Session) vrfy(arg []byte, now time.Time, out []byte) []byte {
	return s.answer(out, StageOther, &replyVrfy)
}

func (s *Session) help(arg []byte, now time.Time, out []byte) []byte {
	return s.answer(out, StageOther, &replyHelp)
}

func (s *Session) quit(arg []byte, now time.Time, out []byte) []byte {
	out = s.say(policy.AtQuit, &replyBye, out)
	s.close()
	return out
}
