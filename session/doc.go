// Package session decides every reply of one SMTP (RFC 5321) or LMTP (RFC 2033) session.
//
// It is pure: bytes, the decisions of others and the time come in; replies and a Step come out. It opens no connection, reads no
// clock and starts no goroutine, so a whole session can be run from a string, byte by byte and cut anywhere, always with the
// same replies. One goroutine at a time uses a Session and the Resources it draws on.
//
// # The dialogue
//
// Open gives the greeting. Feed takes what the client sent, runs every complete command in it, and appends the replies in order
// (RFC 2920 §3.2), so that one burst of input costs its caller one write. The commands are a table (commands.go), the EHLO
// keywords are a table (extensions.go), the fixed replies are values (replies.go). STARTTLS is in tls.go, AUTH in auth.go.
//
// # Where a session is suspended
//
// A step other than NeedInput stops the session until its answer is there; it must not be fed meanwhile, and bytes that a client pipelined
// wait with the caller. Since nothing is parsed behind a suspended command, replies cannot be reordered.
//
//	AwaitCommit  the data is complete: the caller takes the envelope, makes it durable, and says so with Committed. That call holds the only
//	             250 that takes responsibility for a message (RFC 5321 §4.2.5). No deadline.
//	AwaitPolicy  a validator takes its time: whoever is armed with Pending is woken, and calls Decided
//	AwaitAuth    a response of the client's is to be put to a SASL mechanism: AuthRequest, AuthDone
//	StartTLS     STARTTLS came: AnswerTLS, and after the handshake Secured
//
// # Who decides
//
// The session's own checks come first (syntax, order, sizes), then Options.Accept for a forward-path, then the validators of package policy. What
// happens after them, at each stage, is one row of the table in judge.go: accept, and refuse.
//
// # What is never done
//
// An error inside message data never ends the data early: the rest would be read as commands. It is remembered, the data is read
// to its real end and thrown away, and only then is it refused. The octets of a refused BDAT are consumed in the same way.
//
// # Ownership
//
// Feed borrows its input until it returns; out is the caller's, grown by append. An open mail transaction owns an envelope and its
// chunks; TakeEnvelope moves both to the caller, RSET, a refusal and Abort release them. Between transactions a session owns
// nothing but its HELO name.
package session
