// Package httpedge takes messages by HTTP: the plain protocol, a POST with the envelope in header fields, on any path, and an API below /v1.
//
// # One dialogue for all edges
//
// A POST is an SMTP transaction that is spoken inside the process. A lane (lane.go) holds a session.Session and says EHLO, MAIL, RCPT and BDAT to it;
// whatever the session, the validators and the queue answer is the answer to the request. So addresses, sizes, line ends, rules, SPF, the Received
// field and the 250 are decided where they are decided for SMTP, and nowhere else.
//
// # Who does what
//
//	listener.go     connections: their number, the PROXY header, TLS
//	firstline.go    how a request line ends, which fasthttp does not tell
//	pace.go         how fast a body must come
//	server.go       fasthttp, and what it takes too easily
//	credentials.go  who posts, and what for
//	plain.go        the plain protocol: X-Envelope-Sender, X-Envelope-Recipient, X-Smtp-Reply
//	v1.go, batch.go the API: JSON, NDJSON, problems, idempotency
//
// # Goroutines and memory
//
// fasthttp serves each connection on a goroutine, which waits for validators and for the commit: only connections are waiting there, and
// Options.MaxConnections bounds them. Bodies are streamed into the pooled chunks of the session, counted in the same budget as message data from
// SMTP, and so are many recipients and the answer about them (charge.go); what finds the budget spent is refused with 452. Nothing of a request is kept after its handler has returned.
package httpedge
