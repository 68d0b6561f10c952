// Package smtpcodec turns the bytes of SMTP and LMTP into values and back: command lines, paths, ESMTP parameters, the mail data
// that follows DATA and BDAT, replies, and xtext. It serves the server side (session) and the client side (relay, which reads
// replies).
//
// It leaves to others: which command is legal when and what is answered to it (session), whether an address exists or may be used
// (policy), and how many bytes a message may have (the caller of DataScanner counts what it was given).
//
// It is pure: no input or output, no clock, no goroutines, no global state that changes. Values may be used from any goroutine, a
// DataScanner by one at a time.
//
// Ownership: every []byte argument is borrowed until the function returns. Results such as Path and MailArgs point into the line
// they were parsed from and live as long as that line does; functions named Append write to the caller's dst. Only ParseReply
// allocates (the text of the reply), and ParseMail and ParseRcpt do for an IPv6 address literal.
//
// Split invariance: a byte stream gives the same lines, output, flags and ends however it is cut into pieces.
//
// Nothing that ParseMail, ParseRcpt and ValidHelo accept has a control character in it, C1 controls in UTF-8 included, so an
// accepted path, parameter or name can stand in a log line, a header field or a reply without being able to break it. ORCPT, ENVID
// and AUTH hold no ASCII control after decoding either.
//
// RFCs: 5321 (SMTP), 1870 (SIZE), 2034 and 3463 (enhanced status codes), 3030 (BDAT, BINARYMIME), 3461 (DSN, xtext), 4954 (AUTH=),
// 6152 (8BITMIME), 6531 (SMTPUTF8), 6533 (utf-8 addresses in ORCPT). Knowing departures are marked "Deviation:" in the source.
package smtpcodec
