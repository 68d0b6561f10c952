// Package loop is the door to the network: it moves bytes between sockets and sessions on gnet's event loops, one loop a core.
//
// It decides nothing about mail. A session (package session) says what to answer; the loop reads, writes, keeps time, hands finished
// envelopes to the queue.Writer and resumes the session when the commit is there. What is decided here is what a peer may cost:
// connections, handshakes, bytes that wait behind a suspended session, replies that are not read, time.
//
// # The life of a connection
//
// A connection is in one phase (conn.go), which says whose its next byte is: the PROXY header's (proxy.go), the TLS handshake's (tls.go),
// nobody's while the greeting is held back, the session's, nobody's while the session waits for somebody else, nobody's while the last
// replies go out. arrive.go has the way to the session, conn.go that of the session: what it wants next is done in conn.act and nowhere
// else. A session waits for a commit, a validator, a SASL step (sasl.go) or a handshake; who is waited for works on another goroutine and
// posts a task to the loop. Whatever is posted for a connection that is closed, or waits for something else by then, is dropped.
//
// # TLS
//
// crypto/tls runs over memory. It can't be suspended in the midst of a handshake, so each handshake has a goroutine, which holds one of as
// many CPU tokens as there are cores while it computes and none while it waits for its client: thousands of stalled handshakes cost
// memory and hold nobody up. Once the handshake is over the loop alone uses the tls.Conn, for which missing bytes are a temporary error.
// Pausing, stashes, blocked writers and deadlines are the same as in clear; what a stash holds is plaintext that the session has not taken
// and ciphertext that was not decrypted.
//
// # gnet
//
// gnet is fenced: only engine.go, transport.go and epoll_linux.go know it, behind the methods of *conn in transport.go (peek, consume,
// write, pause, resume, shutdownWrite, close) and *loop.post. The traps that are fenced there, each with its reason, are
//
//   - an accept error other than the harmless ones stops the whole engine: the connection cap stays below the descriptor limit, and an
//     engine that stops unasked makes Serve return an error;
//   - Peek(0) and Discard(n<=0) mean "everything": rawPeek and rawConsume are the only callers;
//   - after a failed write the connection is closed already: rawWrite is the only caller and looks at closed;
//   - reads can't be paused: pause does it through the loop's epoll descriptor;
//   - a panic in a callback would end the process: every entry recovers, closes that connection and counts it;
//   - Wake and Execute allocate: completions go through a mailbox with one Execute per loop and commit;
//   - a unix socket switches SO_REUSEPORT off for its engine: each gets an engine of its own.
//
// Goroutines: everything of a loop and its connections is touched by that loop's goroutine only, but for the mailbox (mutex), the
// counters that Server sums (atomics), and a handshake: its goroutine has the tls.Conn to itself, and shares with the loop what stands
// under the handshake's mutex.
package loop
