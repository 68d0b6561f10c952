// Package auth runs SASL exchanges (RFC 4422, RFC 4954) and checks credentials against a users file, an HTTP service or Dovecot.
//
// A Service serves all listeners. An event loop begins an Exchange for each AUTH command and gives it the client's responses, decoded, one
// Step at a time; the answer comes by a call from another goroutine, so that nothing here ever holds the loop up. Base64, "*", the reply
// texts, whether a mechanism may be offered in clear, and when AUTH is in order are the caller's.
//
// Steps run on at most Workers goroutines, which exist only while there is something to do; at most MaxQueued steps wait for one. A step
// that is not answered within StepTimeout is Unavailable, whatever the store does; the worker stays with the store, though, so a store
// should heed its context. A refusal is told FailureDelay late by a timer. A waiting exchange is some hundred bytes and no goroutine.
// Panics of stores and mechanisms end the one exchange.
//
// # What an attacker learns
//
// Unknown users, disabled ones and those without the keys for a mechanism are refused as a wrong password is: same answer, same work. For
// SCRAM such a name has a salt made from the name and a secret of the process, so it is the same at each try until a restart. Failures are
// counted per address (IPv6: per /64) and per account, see ThrottleOptions; beyond the limits the answer is Throttled, without a question
// to the store, until enough time has passed. Only the account's own earlier addresses are spared the account's limit, so that a
// stranger's guessing does not lock its owner out.
//
// # Mechanisms
//
// PLAIN and EXTERNAL are go-sasl's; OAUTHBEARER too, behind a strict parser. LOGIN, XOAUTH2 and CRAM-MD5 are here. SCRAM-SHA-256 and
// -PLUS are xdg-go/scram's, with the channel bindings tls-exporter (TLS 1.3, RFC 9266) and tls-server-end-point (RFC 5929). A client that
// says "y", that is, it could bind the channel but saw no -PLUS, although -PLUS was offered, is refused. SCRAM's last server message goes
// out as a challenge and wants an empty response, as 235 carries no data in SMTP (RFC 4954 §4).
//
// # Users file
//
// One user a line, written by "fastedge auth add"; lines that begin with # are comments. The file never holds a password:
//
//	NAME [scram-sha-256=ITERATIONS:SALT:STOREDKEY:SERVERKEY] [argon2id=$argon2id$v=19$m=KIB,t=PASSES,p=LANES$SALT$HASH]
//	     [cram-md5=INNER:OUTER] [disabled]
//
// NAME is prepared with SASLprep (RFC 4013), has no blank and no #, and at most 255 bytes. scram-sha-256 serves SCRAM, PLAIN and LOGIN;
// ITERATIONS is 4096 or more, the rest is base64. argon2id serves PLAIN and LOGIN only, is the harder one to guess from a stolen file, and is in
// the usual PHC form, so hashes made elsewhere can be pasted. With both, PLAIN is checked with argon2id. A user with argon2id alone cannot
// log in by a client that picks SCRAM because another user's keys had it offered: either all users have SCRAM keys, or leave SCRAM out of the
// listener's mechanisms. cram-md5 are HMAC-MD5's two states, in base64 of big-endian words. A NAME alone may log in with a client
// certificate of that name (EXTERNAL). A bad line makes the whole file bad: Load tells its number, and Users keeps what it had.
//
// # Keys file
//
// API keys are for programs that post over HTTP: Keys checks them, NewKey makes them. One key a line, written by "fastedge auth key add"; the file
// never holds a key, only its SHA-256, and must have mode 0600 (0640 will do):
//
//	ID NAME sha256=HASH [created=TIME] [expires=TIME] [rate=MESSAGES] [senders=DOMAIN,DOMAIN...]
//
// ID is the part of the key that is shown in logs, 8 letters and digits; NAME as in the users file, but for several keys if need be; HASH is
// base64; TIME is in UTC, like 2026-01-31T12:00:00Z; rate is for an hour; a DOMAIN may begin with "*." for its subdomains. A bad line makes
// the whole file bad: the old keys stay in force.
//
// Passwords over HTTP come with every request, so Passwords remembers for a minute those that were right: a user who is removed from a store that
// tells nobody about it, like Dovecot, is let in so much longer.
//
// # Ownership
//
// Step owns the response, the receiver of an Outcome its challenge. A Table does not change. Everything exported may be used from any goroutine.
package auth
