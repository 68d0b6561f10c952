// Package jetstream is the queue engine for more than one machine: a NATS JetStream stream between edges and relays.
//
// # The promise
//
// When Commit returns without an error on a submission, the stream has acknowledged that message: as many servers as it has replicas keep it,
// or will after the loss of a minority. Whether "keep" means on disk is the servers' own setting: by default they sync every two minutes
// (jetstream.sync_interval), so that one server alone may lose what it acknowledged in a power cut, and several only when the power
// fails in all of them at once. From then on the message is leased, byte for byte, until it is settled, or an operator drops it. It may be leased more
// than once. A message without an answer in time is refused with ErrUnavailable, and may be in the stream all the same: the client that
// sends it again then has it delivered twice, and no id can tell, for it has another one.
//
// # Layout
//
//	stream            subject              holds
//	MAIL              mail.inbound         mail to hand on; a work queue: an acknowledged message is gone; a full one refuses new mail
//	MAIL_STATE        mail.inbound.state.ID   what the last attempt said, JSON (record); the last one of each id
//	MAIL_HELD         mail.inbound.held.ID    mail held by an operator
//	MAIL_DEAD         mail.dead.ID            mail refused for good, too old, damaged or not ours
//	OBJ_MAIL_LARGE                         an object store: messages that are longer than the servers' max_payload, and envelopes over 24 KiB
//
// A message's body is what is handed on: trace fields, then data. Nats-Msg-Id and Fastedge-Id are its id. Fastedge-From, -To (a field for each
// recipient), -Client, -Helo, -Protocol, -User, -Listener, -Arrived, -Results and -Metadata are for other consumers; in them a control
// character is a question mark, a field over 2 KiB is left out, and recipients beyond 12 KiB are only counted (-To-More): servers take
// headers up to 64 KiB. Fastedge-Envelope is base64 of the envelope's binary form, exactly; Fastedge-Sum the CRC32C of the body and of that
// form. With Fastedge-Object the body is empty, and stands in the bucket under that name.
//
// # Publishing
//
// A commit is one flight: at most Window messages and WindowBytes are without an acknowledgement. What has none when a connection is lost or a
// server changes is sent again; the stream knows the id. Three ways, by Options.Batch:
//
//	off     each message is acknowledged by itself
//	fast    one flow, acknowledged now and then and at its end; servers from 2.14 on, otherwise off
//	atomic  batches of up to 1000, stored whole or not at all: slower, but the one that a server with sync_interval "always" syncs once
//	auto    whichever of these has been the fastest for commits of about this many messages of about this length
//
// auto measures (chooser): no server says when it syncs, and what is six times as fast with sync_interval "always" is half as fast without. Each kind of
// commit has looks at each way at first and after a reconnect, then at one of them every 200 commits, rarely at one that is far slower; Stats says what it takes now. A lone message goes by
// itself. A guess from the servers' version, as it was before, was wrong in most of the cases that bench/README.md has.
//
// Measured with a server in the process, 4 KiB messages, 256 a commit, client and servers together: 31 µs of CPU a message for off, 30 for
// fast, 55 for atomic, 66 when each message waits for the one before; with three replicas 86, 77, 79. BenchmarkCommit repeats it. A fast batch in which anything goes
// wrong is not believed beyond what was acknowledged before: the rest goes out one by one.
//
// # When the cluster does not answer
//
// Every wait is bounded by Timeout. A lost connection, or two commits in a row without any answer, open the breaker: Room and Commit fail at once
// with ErrUnavailable. Each second, and when a connection comes back, a probe looks for a stream with a leader and a quorum; then the queue is
// ready, and the next commit closes the breaker or opens it again. A stream that does not answer as one that exists is looked for: with Create it is made
// again, without it mail is refused until it is there. Leases from a mail stream that was deleted are forgotten: its sequence numbers are
// those of other messages now. Open works without a cluster; it fails when it is told that it may not come
// in, or when a stream can't keep the promise.
//
// # Leasing
//
// Relays share one durable pull consumer. A relay fetches ahead (Prefetch), tells the consumer every third of AckWait that it lives, and loses
// its leases AckWait after its death. JetStream can't change a message, so what an attempt said is a record in another stream. The
// other way was to publish a successor with the outcomes in its header: it would copy every deferred body through the cluster at each
// attempt. The record is written first, then the message is given back with a delay: a death in between repeats an attempt. The relay that
// tried it wakes it at the time, in order; the consumer would AckWait later, for a relay that is gone. A message may be redelivered for
// reasons that are no attempt, so attempts are counted in the record.
//
// Messages that wait count against the consumer's MaxAckPending (65536): beyond that many deferred messages new ones wait in the stream until some of
// these are due. A relay's memory for one that waits is about 300 bytes.
//
// Dead, held and damaged messages are moved: record, copy, the copy read back, then acknowledgement, so that a death in between leaves two, and the next
// relay completes the move. What came damaged is read from the stream once more before.
//
// A settlement is tried until it succeeds, with pauses up to 5 s. A stream that takes nothing, full or gone, keeps its messages waiting, and nobody else's:
// acknowledgements have places of their own. With 1024 settlements unfinished, or 64 MiB of messages in them, nothing is leased; Stats has an
// alarm with the reason after the third failure.
//
// Objects go with their message. A commit that comes again finds its object by name, and uses it. What is left over, for an edge died at the wrong
// moment, is removed by a sweep at the start and every six hours: an object of this stream that is older than a day, whose message would be older
// than everything in the mail stream, and that no state, held or dead message has; and chunks of that age that no description points to.
// Whose an object is stands in its metadata, and in the header of its chunks, so that systems may share a bucket.
//
// # Goroutines and ownership
//
// Commit runs on its caller's, one at a time, and borrows the envelopes until it returns. nats.go calls acked, batchAcked and fetched on one goroutine
// each. watch probes and keeps leases alive. Each settlement has a goroutine; of those that only
// acknowledge 64 talk to the cluster at once, of the others 16, one try at a time.
// Queue.mu is for memory work; a message published under it waits for the connection at most Timeout.
package jetstream
