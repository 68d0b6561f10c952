// Package resolver asks recursive DNS servers, many questions at a time and without a goroutine per question, and keeps what they said.
//
// It is a stub: recursion, DNSSEC and bailiwick are the work of the servers it asks, best a validating resolver on this machine. What
// is left to a stub is done here: not to believe a stranger's datagram, not to wait for one slow server, to ask once however many
// want to know, to remember within a bound of bytes, and to say Failed in time when nobody answers.
//
//	a, now := r.Lookup(q, client, func(a spf.Answer) { ... })
//
// Lookup answers at once from the cache, without allocating, or calls back once. Answers are decoded, immutable and shared: a TXT
// answer carries the SPF record in it, parsed once. Blocklists and forward-confirmed PTR go the same way.
//
// # Questions on the wire
//
// Each server has up to Options.Sockets connected UDP sockets with ports chosen by the kernel, each with one reader goroutine and a table of
// the tries that wait on it; a socket is replaced after MaxSocketUses tries or SocketAge. Each try has a fresh random id
// (crypto/rand), a random socket, and random capitals in its name (0x20). A datagram that does not carry the id, the question and the
// capitals of a waiting try is counted and ignored, and the wait goes on (RFC 5452 §9.1). When a datagram with the right id has the
// wrong capitals or cannot be decoded, the next try goes by TCP, so that a server that does not preserve case still serves.
//
// A question that is not answered is asked again, at another server or from another socket, in times that double; the first is
// the smoothed round trip time of the server plus four times its variation (RFC 6298), MinRetransmit at least. When there
// are several servers, one more is asked early (a hedge) for a few per cent of the questions. A server that answers nobody is
// left out, and asked along with another one now and then until it answers again. SERVFAIL and REFUSED go on to the next server, FORMERR and NOTIMP
// are asked again once without EDNS0 (RFC 6891 §6.2.2), a truncated answer goes to the server's one TCP connection, which is kept and has
// many questions in flight (RFC 7766).
//
// Being asked again for want of an answer has an allowance, one for each domain and one for all (MaxZoneRetransmits, MaxRetransmits): of a domain with silent name
// servers that 50,000 lookups wait for, few questions are sent again, a packet that was lost of any other is, and what is above is put off until its next
// time, or until the domain answers something. New questions go before all that are sent again.
//
// # The cache
//
// There are three, so that none pushes another's entries out, each bounded in bytes: what is there, what is not there (RFC 2308), and
// what failed (RFC 9520). TTLs are clamped. What was asked for twice is fetched anew in the last tenth of its time. What is past its
// time is kept MaxStale longer and is served instead of Failed, or when the new answer has not come within StaleAfter (RFC 8767 §5).
//
// # Limits
//
// Questions in flight are bounded in all (MaxInflight: the oldest makes room for a new one), by domain (MaxPerZone, by the Public Suffix List) and
// so are those that one client has opened (MaxPerClient), and the lookups that wait. What is above them is Failed at once, or served stale, and counted. The caches
// are bounded in bytes, an answer by MaxAnswerRRs, MaxTXTBytes and MaxChain, a question by Timeout and MaxTries.
//
// # Goroutines and locks
//
// One goroutine, the driver, sends and keeps the time; one reads from each UDP socket; two belong to each TCP connection. Everything that waits
// is under one mutex, held for microseconds, however much waits (the times are in a wheel), and never over a read or a write. Callbacks run
// without it, on the goroutine that brought the answer, the driver, or a caller of Lookup or Close. They may call Lookup; they must not block: an
// event loop's posts to its mailbox.
//
// RFCs: 1035, 2181 §8 (TTLs), 2308, 3596, 5452, 6891, 7766, 8767, 9520.
package resolver
