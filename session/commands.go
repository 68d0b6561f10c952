package session

import (
	"bytes"
	"time"

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
	// arg is checked before the state, so that a malformed command is a 501 wherever it stands.
	arg       argument
	malformed func(arg []byte) bool
	// text is for the verbs whose argument nobody parses: it may not have controls, NUL or broken UTF-8 all the same.
	text bool
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
	smtpcodec.VerbEHLO: {stage: StageHelo, only: smtpOnly, elsewhere: &refuseWrongDialect, arg: argRequired, in: anywhere, run: (*Session).ehlo},
	smtpcodec.VerbHELO: {stage: StageHelo, only: smtpOnly, elsewhere: &refuseWrongDialect, arg: argRequired, in: anywhere, run: (*Session).heloCommand},
	smtpcodec.VerbLHLO: {stage: StageHelo, only: lmtpOnly, elsewhere: &refuseUnknownCommand, arg: argRequired, in: anywhere, run: (*Session).ehlo},

	smtpcodec.VerbMAIL: {stage: StageMail, arg: argRequired, malformed: malformedMail, in: greeted, otherwise: &refuseSequence, run: (*Session).mail},
	smtpcodec.VerbRCPT: {stage: StageRcpt, arg: argRequired, malformed: malformedRcpt,
		in: haveReversePath | recipientsRefused | haveForwardPath, otherwise: &refuseSequence, run: (*Session).rcpt},
	smtpcodec.VerbDATA: {stage: StageData, arg: argNone, in: recipientsRefused | haveForwardPath, otherwise: &refuseSequence, run: (*Session).data},
	// BDAT has no states here: its octets follow whatever the reply is, so the handler runs anywhere and decides itself.
	smtpcodec.VerbBDAT: {stage: StageData, in: anywhere, run: (*Session).bdat},

	smtpcodec.VerbRSET: {stage: StageOther, arg: argNone, in: anywhere, run: (*Session).rset},
	smtpcodec.VerbNOOP: {stage: StageOther, text: true, in: anywhere, run: (*Session).noop},
	smtpcodec.VerbVRFY: {stage: StageOther, arg: argRequired, text: true, in: anywhere, run: (*Session).vrfy},
	smtpcodec.VerbHELP: {stage: StageOther, text: true, in: anywhere, run: (*Session).help},
	smtpcodec.VerbQUIT: {stage: StageOther, arg: argNone, in: anywhere, run: (*Session).quit},

	smtpcodec.VerbEXPN:     {stage: StageOther, otherwise: &refuseNotImplemented}, // RFC 5321 §3.5.1: need not be supported
	smtpcodec.VerbSTARTTLS: {stage: StageOther, otherwise: &refuseNotImplemented},
	smtpcodec.VerbAUTH:     {stage: StageOther, otherwise: &refuseNotImplemented},
	smtpcodec.VerbUnknown:  {stage: StageOther, otherwise: &refuseUnknownCommand},
	smtpcodec.VerbHTTP:     {stage: StageOther, otherwise: &closeHTTP},
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
		return s.refuse(out, StageOther, &refuseBareInCommand, line)
	}
	verb, arg := smtpcodec.ParseCommand(line)
	if verb == smtpcodec.VerbAUTH {
		// RFC 4954 §4: an initial response is a password. Observers write arguments down, so it ends here.
		if i := bytes.IndexAny(arg, " \t"); i >= 0 {
			arg = arg[:i]
		}
	}
	c := &commands[verb]
	switch {
	case c.only != bothDialects && (c.only == lmtpOnly) != s.sv.LMTP:
		return s.refuse(out, c.stage, c.elsewhere, arg)
	case c.arg == argNone && len(arg) > 0, c.arg == argRequired && len(arg) == 0:
		return s.refuse(out, c.stage, &refuseSyntax, arg)
	case c.text && !smtpcodec.ValidText(arg):
		return s.refuse(out, c.stage, &refuseSyntax, arg)
	case c.in&s.state != 0:
		return c.run(s, arg, now, out)
	case c.malformed != nil && c.malformed(arg):
		// Only looked at here, because run parses for itself.
		return s.refuse(out, c.stage, &refuseSyntax, arg)
	case verb == smtpcodec.VerbUnknown:
		return s.refuse(out, c.stage, c.otherwise, line)
	}
	return s.refuse(out, c.stage, c.otherwise, arg)
}

// maxHeloBytes is the longest domain (RFC 5321 §4.5.3.1.2).
const maxHeloBytes = 255

// ehlo answers EHLO and LHLO. Both reset the transaction, as RSET does (RFC 5321 §4.1.4).
//
// Deviation: RFC 5321 §4.1.1.1 begins the first line with the server's domain. The dialogue that this server is made after says
// "Hello" and the client's name there; no client reads the word, and the domain stands in the greeting.
func (s *Session) ehlo(arg []byte, now time.Time, out []byte) []byte {
	if !s.greet(arg, true) {
		return s.refuse(out, StageHelo, &refuseSyntax, arg)
	}
	s.tell(StageHelo, 250)
	out = append(append(out, s.sv.ehlo...), arg...)
	return append(out, s.sv.ehloRest...)
}

func (s *Session) heloCommand(arg []byte, now time.Time, out []byte) []byte {
	if !s.greet(arg, false) {
		return s.refuse(out, StageHelo, &refuseSyntax, arg)
	}
	s.tell(StageHelo, 250)
	out = append(append(out, "250 Hello "...), arg...)
	return append(out, "\r\n"...)
}

// greet takes the client's name. A refused name leaves everything as it was.
//
// Deviation: RFC 5321 §4.1.1.1 wants a domain or an address literal. Real clients send bare host names and names with underscores,
// so any printable word that smtpcodec.ValidHelo takes is good here.
func (s *Session) greet(name []byte, extended bool) bool {
	if len(name) > maxHeloBytes || !smtpcodec.ValidHelo(name) {
		return false
	}
	s.dropTransaction()
	s.helo = append(s.helo[:0], name...)
	s.extended = extended
	s.enter(greeted)
	return true
}

func (s *Session) rset(arg []byte, now time.Time, out []byte) []byte {
	s.dropTransaction()
	return s.answer(out, StageOther, &replyOk)
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
	s.close()
	return s.answer(out, StageOther, &replyBye)
}
