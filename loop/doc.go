// Package loop is the door to the network: it moves bytes between sockets and sessions on gnet's event loops, one loop a core.
//
// It decides nothing about mail. A session (package session) says what to answer; the loop reads, writes, keeps time, hands finished
// envelopes to the queue.Writer and resumes the session when the commit is there. What is decided here is what a peer may cost:
// connections, bytes that wait behind a suspended session, replies that are not read, time.
//
// gnet is fenced: only engine.go, transport.go and epoll_linux.go know it, behind the methods of *conn in transport.go (peek, consume,
// write, pause, resume, shutdownWrite, close) and *loop.post. The traps that are fenced there, each with its reason, are
//
//   - an accept error other than the harmless ones stops the whole engine: the connection cap stays below the descriptor limit, and an
//     engine that stops unasked makes Serve return an error;
//   - Peek(0) and Discard(n<=0) mean "everything": peek and consume are the only callers;
//   - after a failed write the connection is closed already: write is the only caller and looks at closed;
//   - reads can't be paused: pause does it through the loop's epoll descriptor;
//   - a panic in a callback would end the process: every entry recovers, closes that connection and counts it;
//   - Wake and Execute allocate: completions go through a mailbox with one Execute per loop and commit;
//   - a unix socket switches SO_REUSEPORT off for its engine: each gets an engine of its own.
//
// Goroutines: everything of a loop and its connections is touched by that loop's goroutine only, but for the mailbox (mutex) and the
// counters that Server sums (atomics).
package loop
