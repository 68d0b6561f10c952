package session

import "github.com/fastedge/fastedge/smtpcodec"

// refusal is a 4yz or 5yz reply together with the word that logs and metrics know it by.
type refusal struct {
	reply  smtpcodec.Reply
	reason Reason
}

// reply makes a reply whose enhanced code has the class of the reply code (RFC 2034 §4).
func reply(code, subject, detail uint16, text string) smtpcodec.Reply {
	return smtpcodec.Reply{Code: code, Enhanced: smtpcodec.EnhancedCode{Class: code / 100, Subject: subject, Detail: detail}, Text: text}
}

func refuse(code, subject, detail uint16, text string, why Reason) refusal {
	return refusal{reply: reply(code, subject, detail, text), reason: why}
}

// Every fixed reply. Those with a number or a name in them are made from these or from texts in NewServer.
// They are values for reading only: a session appends them and never changes them.
var (
	replyOk   = reply(250, 0, 0, "Ok")
	replyBye  = reply(221, 0, 0, "Bye")
	replyHelp = reply(214, 0, 0, "See RFC 5321")

	// RFC 5321 §3.5.3: 252 when the server does not say whether the mailbox exists. The code is 2.5.0, "other protocol status"
	// (RFC 3463 §3.6): 2.5.2 would mean a syntax error in a success, and 2.1.5 that the address is valid.
	replyVrfy = reply(252, 5, 0, "Cannot VRFY user, but will accept message and attempt delivery")

	// RFC 5321 §4.2.1: 354 is no final reply, so it has no enhanced code (RFC 2034 §3 gives codes to 2yz, 4yz and 5yz only).
	replyGoAhead = reply(220, 7, 0, "Go ahead")                  // RFC 3207 §4
	replyAuthOk  = reply(235, 7, 0, "Authentication successful") // RFC 4954 §4

	replyStartData = smtpcodec.Reply{Code: 354, Text: "Start mail input; end with <CRLF>.<CRLF>"}
	// For a path that may not be printed; see appendPathOk.
	replySenderOk    = reply(250, 1, 0, "Ok")
	replyRecipientOk = reply(250, 1, 5, "Ok")

	refuseSyntax           = refuse(501, 5, 4, "Syntax error in parameters or arguments", ReasonSyntax)
	refuseUnknownCommand   = refuse(500, 5, 2, "Syntax error, command unrecognized", ReasonUnknownCommand)
	refuseSequence         = refuse(503, 5, 1, "Bad sequence of commands", ReasonSequence)
	refuseNotImplemented   = refuse(502, 5, 1, "Command not implemented", ReasonNotOffered)
	refuseWrongDialect     = refuse(500, 5, 1, "This is LMTP, use LHLO", ReasonSequence)
	refuseUnknownParameter = refuse(555, 5, 4, "MAIL FROM/RCPT TO parameters not recognized or not implemented", ReasonUnknownParameter)
	refuseBadSender        = refuse(501, 1, 7, "Bad sender's mailbox address syntax", ReasonBadSender)
	refuseBadRecipient     = refuse(501, 1, 3, "Bad recipient's mailbox address syntax", ReasonBadRecipient)
	refuseUTF8             = refuse(553, 6, 7, "Non-ASCII addresses need SMTPUTF8", ReasonUTF8)
	refuseLineTooLong      = refuse(500, 5, 2, "Line too long", ReasonLineTooLong)
	refuseBareInCommand    = refuse(500, 5, 2, "Bare CR or LF in command, lines end with CRLF", ReasonBareNewline)
	refuseNoRecipients     = refuse(554, 5, 1, "No valid recipients", ReasonNoRecipients)
	refuseTooManyRcpt      = refuse(452, 5, 3, "Too many recipients", ReasonTooManyRecipients)

	refuseNeedTLS  = refuse(530, 7, 0, "Must issue a STARTTLS command first", ReasonTLS) // RFC 3207 §4
	refuseNeedAuth = refuse(530, 7, 0, "Authentication required", ReasonAuth)            // RFC 4954 §6
	refuseFailed   = refuse(451, 3, 0, "Requested action aborted, try again later", ReasonValidator)

	// RFC 4954 §4 and §6.
	refuseAuthInClear     = refuse(538, 7, 11, "Encryption required for authentication", ReasonAuth)
	refuseMechanism       = refuse(504, 5, 4, "Unrecognized authentication type", ReasonAuth)
	refuseAuthCanceled    = refuse(501, 7, 0, "Authentication canceled by client", ReasonAuth)
	refuseAuthEncoding    = refuse(501, 5, 2, "Cannot decode authentication response", ReasonAuth)
	refuseAuthMalformed   = refuse(501, 5, 2, "Invalid authentication response", ReasonAuth)
	refuseAuthLineTooLong = refuse(500, 5, 6, "Authentication exchange line is too long", ReasonLineTooLong)
	refuseAuthFailed      = refuse(535, 7, 8, "Authentication credentials invalid", ReasonAuthFailed)
	refuseAuthUnavailable = refuse(454, 7, 0, "Temporary authentication failure", ReasonAuthUnavailable)
	refuseAuthThrottled   = refuse(454, 7, 0, "Too many authentication failures, try again later", ReasonAuthFailures)

	refuseBareInData = refuse(554, 6, 0, "Bare CR or LF in message, lines end with CRLF", ReasonBareNewline)
	refuseTooBig     = refuse(552, 3, 4, "Message exceeded size limit", ReasonSize)
	refuseLoop       = refuse(554, 4, 6, "Too many hops, mail loop", ReasonLoop)
	refuseForged     = refuse(554, 7, 1, "Header section too long, or too many Authentication-Results fields in our name", ReasonForged)
	refuseMemory     = refuse(452, 3, 1, "Insufficient system storage, try again later", ReasonMemory)

	// 421 always closes the session (RFC 5321 §3.8).
	closeTimeout             = refuse(421, 4, 2, "Connection timed out", ReasonTimeout)
	closeShutdown            = refuse(421, 3, 2, "Service shutting down", ReasonShutdown)
	closeTooManyErrors       = refuse(421, 7, 0, "Too many errors", ReasonTooManyErrors)
	closeTooManyAuthFailures = refuse(421, 7, 0, "Too many authentication failures, see limits.auth_failures", ReasonAuthFailures)
	closeTooMuchJunk         = refuse(421, 7, 0, "Too many commands without mail, see limits.junk_commands", ReasonJunk)
	closeTooSlow             = refuse(421, 4, 2, "Message data comes too slowly, see limits.data_rate", ReasonDataRate)
	closeTooManyTransactions = refuse(421, 7, 0, "Too many transactions, open a new session", ReasonTooManyTransactions)
	closeHTTP                = refuse(421, 7, 0, "This is a mail server, not HTTP", ReasonHTTP)
)

// syntaxRefusals turns what the codec found wrong with an argument into a reply.
var syntaxRefusals = [...]*refusal{
	smtpcodec.ErrSyntax:    &refuseSyntax,
	smtpcodec.ErrBadSender: &refuseBadSender,
	smtpcodec.ErrBadRcpt:   &refuseBadRecipient,
	smtpcodec.ErrUTF8:      &refuseUTF8,             // RFC 6531 §3.5
	smtpcodec.ErrUnknown:   &refuseUnknownParameter, // RFC 5321 §4.1.1.11
	smtpcodec.ErrDuplicate: &refuseSyntax,
}

// reasonOf names a refusal that another part of the program made, from its enhanced code (RFC 3463).
func reasonOf(r *smtpcodec.Reply) Reason {
	switch [2]uint16{r.Enhanced.Subject, r.Enhanced.Detail} {
	case [2]uint16{3, 1}: // mail system full
		return ReasonDisk
	case [2]uint16{3, 2}: // system not accepting network messages
		return ReasonShutdown
	case [2]uint16{7, 1}: // delivery not authorized
		return ReasonRelay
	}
	if r.Enhanced.Subject == 1 { // addressing
		return ReasonRecipient
	}
	return ReasonQueue
}
