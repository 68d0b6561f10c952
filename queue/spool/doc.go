// Package spool is the embedded queue engine: a segmented, append-only log with group commit.
//
// # The promise
//
// When Commit returns without an error on a submission, that message is on stable storage (Durability Fsync) or with the operating
// system (OS). From then on, whatever happens to the process or the machine, it is leased, byte for byte as it was submitted, until it
// is settled, or an operator drops it. It may be leased again after it was settled, when the crash came within about a second. A message
// that no longer matches its checksum is never leased: it stays as damaged, is logged with its id, and is counted.
//
// A message whose commit failed may be leased after a restart only when the disk that failed the commit also refused the note of it.
//
// An idempotency key is part of its message's record: it is remembered exactly when the message is taken. It stays so for Options.RememberFor
// from the message's arrival, also when the message is done by then.
//
// # Files
//
//	lock          flock of the process that has the spool open; its number as text
//	NNNNNNNN.seg  a segment: messages. The number grows and is never used again.
//	NNNNNNNN.idx  where the records of that segment are: a hint that spares reading the segment at the next start
//	NNNNNNNN.keys the idempotency keys in that segment, only when it has any: a hint while the segment is there; afterwards all there is of them
//	*.keys.tmp    a complete key file being written
//	NNNNNNNN.ack  the ack log: what has become of the messages. There is one, or two for a moment; the higher number counts.
//	*.ack.tmp     an ack log being written; removed by Open
//	*.damaged     a file that could not be read, set aside for the operator; never touched again
//
// Integers are little-endian. Checksums are CRC32C. Segments, ack logs and key files begin with 4096 bytes that hold the file header twice, at 0 and
// at 512, so that one bad sector leaves one:
//
//	offset  width
//	0       8      "fedgspol"
//	8       4      checksum of bytes 12 to 63
//	12      4      format version, 1
//	16      4      1 segment, 2 ack log, 3 key file
//	20      4      zero
//	24      8      number, as in the file's name
//	32      8      salt: random, new for each use of a file; a key file has its segment's
//	40      24     zero
//
// Salt, kind and number start every other checksum in the file. So a file used again does not replay what it held before, and
// a sender who puts the image of a record into a message does not know how to make it pass for one.
//
// A record in a segment starts at a multiple of 64 bytes, the first of each batch at a multiple of 4096; zeros fill the rest:
//
//	offset  width
//	0       4      "FEm1"
//	4       4      checksum of bytes 8 to 63
//	8       8      sequence number: grows by one from record to record, over all segments
//	16      16     message id
//	32      4      envelope length, e
//	36      4      trace field length, t
//	40      8      data length, d
//	48      4      checksum of the envelope, started with the sequence number
//	52      4      checksum of the trace field and of 4 bytes, the data's own checksum; started with the sequence number
//	56      4      where the batch starts, in units of 4096: all before was durable when this was written
//	60      4      bit 0 on the last record of a batch, bit 1 when the envelope has an idempotency key
//	64      e      envelope (envelope.AppendBinary)
//	64+e    t      trace field
//	64+e+t  d      message data
//
// A record in the ack log starts at a multiple of 8 bytes:
//
//	offset  width
//	0       4      checksum of bytes 4 to 7+n
//	4       3      payload length, n
//	7       1      kind: 1 done, 2 state, 3 mark, 4 bitmap, 5 counters, 6 hole; acks.go has the payloads
//	8       n      payload
//
// An index file is a row of blocks, each with the entries of some records that follow one another:
//
//	offset  width
//	0       4      "FEi1"
//	4       4      checksum of the rest of the block
//	8       8      sequence number of the first record
//	16      8      where the segment's next batch starts
//	24      8      number of entries
//	32      40     an entry: id, offset, lengths of envelope, trace field and data (16, 8, 4, 4 and 8 bytes); the highest bit of the last is set
//	               when the envelope has an idempotency key
//
// A record in a key file starts at a multiple of 8 bytes, right behind the one before; sequence numbers grow:
//
//	offset  width
//	0       4      "FEk1"
//	4       4      checksum of the rest of the record
//	8       8      sequence number of the message
//	16      16     message id; its time is when the key began to count
//	32      32     key
//	64      32     payload
//	96      4      answer length, a, at most 8192
//	100     a      answer, then zeros up to a multiple of 8
//
// # How it is written
//
// Commit writes a batch with one pwritev, straight from the messages' chunks, and one fdatasync. The segment has been filled with
// zeros before, or held mail that is done, so that the sync has no metadata to write. When none is ready (the first moments, or mail
// faster than zeros can be written) a makeshift one with space merely reserved takes its place.
//
// Mail that is held for want of a next hop is dropped from the page cache once durable: nobody reads it soon, and the memory serves the next
// batches. Mail with a next hop is read from the cache a moment later.
//
// After a failed write or sync the batch fails as a whole. The segment is never written to or synced again (the kernel may have dropped
// the pages, and a second sync would say yes); it is cut where the batch began. The next commit begins another segment.
//
// A segment is removed, or renamed and used again, when all its messages are done. Commit does not touch an older segment, and Open never
// appends to one: it seals what it finds, and the first commit begins a new one.
//
// Index files are written with the ack log, a block at a time, and never synced; a batch is noted there when it is durable. So are key files
// while their segment is there. Before a segment is noted as gone its key file is written once more as a whole, under another name, synced,
// renamed, and the directory synced; what it lacks is read from the segment. If that fails the segment stays, and it is tried again every
// second. A key file is removed when its newest key has been remembered for RememberFor.
//
// The ack log is written every 10 ms and synced every second, and rewritten from memory when it has grown to four times what it needs.
//
// # States after a crash, and what Open does with each
//
//	a segment whose header has another number     being renamed for reuse: empty; used or removed
//	a segment of zeros, or without records        being prepared: empty; used or removed
//	a segment with neither header intact          damage: set aside, reported; the rest is opened
//	an index file, or as much of it as is intact   its records are where it says; the segment is read from there on
//	a key file beside its segment                 what is intact from its beginning, and agrees with the segment, spares reading those messages
//	                                              again; the other records with keys are read and noted. Damage is of no account
//	a key file whose segment is gone              complete: its keys are remembered. Damage: it is set aside, reported, and its intact records
//	                                              go on in a new file
//	a complete key file under its first name      beside one with the right name: removed; else it gets that name
//	a segment without messages, its keys unsafe   it was not noted as gone: its keys are made safe, then it goes
//	a sealed segment                              headers only are read, up to the end noted in the ack log
//	a segment without an end noted                headers are read, and whole records behind the last note; it is synced, cut and sealed
//	  records after the last batch's start:
//	    header or content wrong                   a torn write, never acknowledged: dropped, logged
//	  records before:
//	    header wrong                              damage: the next record is searched for; logged, counted
//	    content wrong                             damage: the message is kept as damaged; logged, counted
//	a segment noted as gone                       its removal was not durable: removed now
//	a segment noted as cut                        what is behind the cut was refused when it was submitted: ignored
//	the ack log's end torn                        what was settled last is leased again
//	the ack log damaged in the middle             the record is skipped, logged; what it settled is leased again
//	two ack logs                                  the rewrite was complete: the older one is removed
//	no ack log                                    everything found is leased (again)
//
// In the last batch of a segment, which no other followed, damage and a torn write look alike: it is logged, and not counted as damage.
// A note of the end within a second, and one on Close, make that window small.
//
// # Goroutines and ownership
//
// Commit and Close run on their caller's, one at a time. One goroutine prepares and removes segments and makes keys safe, one writes the ack
// log, index files and key files. All else runs on the caller's and takes Spool.mu for memory work only; disks are never waited for under it.
// Commit borrows envelopes until it returns. A Delivery's bytes are its own and live as long as it is referred to.
//
// Keys are on disk only; they are counted in memory. The edge that has to compare them gets them at its start, from Remembered.
//
// The index takes about 150 bytes for each message that is not done. A leased message of up to 256 KiB is in memory whole; longer ones are
// verified and read in pieces. At most 64 older segments keep a file open; the others are opened when they are read.
package spool
