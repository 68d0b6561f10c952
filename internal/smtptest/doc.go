// Package smtptest runs transcripts of SMTP and LMTP sessions against package session; tests use it and nothing else does.
//
// A transcript is a text file, one scenario, its intent first:
//
//	# A refused recipient in a command group does not end the transaction. RFC 2920 §3.1.
//	! accept example.net
//	S: 220 mx.example.net ESMTP Mail Gateway
//	C: EHLO client.example.com
//	S: 250-…
//	C: MAIL FROM:<a@example.com>
//	C: RCPT TO:<nobody@example.org>
//	C: RCPT TO:<b@example.net>
//	S: 250 2.1.0 …
//	S: 550 5.7.1 …
//	S: 250 2.1.5 <b@example.net> Ok
//
// Lines begin with a mark:
//
//	# text       a comment
//	C: text      the client sends text and CRLF
//	C+ text      the client sends text and no CRLF
//	S: text      the server sends this line; … stands for any run of characters. "S: 250-…" stands for a whole reply of several
//	             lines, "S: <close>" is the end of the connection
//	M: text      a message is handed over: protocol, reverse-path and its parameters, each forward-path with its own, and the data in
//	             Go's quotes, parts divided by |; who has logged in, and fields that were added, stand before the data; … as above
//	! words      a directive
//
// In C lines \r \n \t \0 \\ and \xHH mean a byte, and \{1000*text} means text a thousand times.
//
// S and M lines are compared in order, and need not stand right behind the C line that causes them: a command group may be
// written as a group. Between two directives the client's bytes are one stream, and the transcript is run with this stream in one piece,
// line by line, byte by byte, and cut in two at every position. Every run must give the same lines. At the end of each the connection is
// lost and no byte of message data may be left in use.
//
// Directives of the listener, at the top of the file:
//
//	! lmtp  ! normalize  ! hide WORD...  ! size N  ! recipients N  ! errors N  ! line N  ! mailmax N  ! received N
//	! accept DOMAIN...   other recipients get 550 5.7.1; "postmaster" without domain is accepted
//	! relay              the peer may relay: accept is not asked
//	! memory N           bytes of message data that may be in use
//
//	! tls opportunistic|required  ! auth MECHANISM...  ! auth-in-clear  ! auth-required  ! auth-failures N  ! junk N  ! data-rate N
//	! secure [VERSION CIPHER] [certificate NAME [unverified]] [proxied]   the client comes with TLS
//	! at STAGE [<PATH>] REPLY     a validator that answers, for one path only if there is one; without a reply it agrees
//	! pend STAGE [<PATH>] REPLY   one that takes its time
//	! hang|fail|panic STAGE [<PATH>]   one that never answers, fails or panics
//	! field STAGE NAME: VALUE     one that adds a header field
//	! spf observe|enforce [mail|rcpt|data] [helo], then ! spf-on RESULT CODE MESSAGE   the policy for SPF results
//	! ptr                         clients' names are looked up
//	! dns [late:]NAME TXT|A|PTR VALUE   an answer of DNS; the value "failed" is none. What there is not does not exist
//	! authserv ID                 Authentication-Results that bear our name are forged
//
// and in the dialogue:
//
//	! commit 451 4.3.0 text   the next message is answered with this instead of being committed
//	! full 452 4.3.1 text     the same, but the envelope is never taken
//	! refuse 452 4.3.1 text   MAIL is refused from now on; without words, no longer
//	! wait 5m                 time passes, and Expire is called if it is due
//	! busy                    no handshake can begin from now on
//	! handshake [as secure]   the handshake behind STARTTLS is done. What the client sends between the two is in clear
//	! shutdown                Shutdown is called
//	! lost                    the connection is lost
//
// go test -run Transcripts ./session -update writes S and M lines anew in files that do not match; replies
// of several lines stay short in files that have one written as "S: 250-…". Commit only a difference that you understand.
package smtptest
