package spool

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// Durability says what a commit waits for.
type Durability uint8

const (
	// Fsync: a committed message is on stable storage.
	Fsync Durability = iota
	// OS: a committed message has been handed to the operating system. It survives the process, not a power cut.
	OS
)

func (d Durability) String() string { return [...]string{"fsync", "os"}[d] }

// ParseDurability reads "fsync" or "os".
func ParseDurability(s string) (Durability, error) {
	switch s {
	case "fsync":
		return Fsync, nil
	case "os":
		return OS, nil
	}
	return 0, fmt.Errorf("spool: durability is %q; it must be fsync or os", s)
}

// Options of a spool. Zero values mean the defaults named.
type Options struct {
	Durability Durability
	// SegmentSize is the size of a segment file in bytes, rounded up to 4 KiB. A longer message gets a file of its own. Default 256 MiB.
	SegmentSize int64
	// MinFree is how many bytes of the file system stay free: with less, Room gives ErrNoSpace. It must be larger than all messages
	// that can be between Room and Commit. Default 1 GiB; negative means none.
	MinFree int64
	// MaxMessages is the most messages the spool holds; more are refused with ErrFull. Each takes about 150 bytes of memory, so the
	// default of 10 million is 1.5 GB.
	MaxMessages int
	// Hold, when not empty, is why nothing can be handed on ("no next hop"): mail without a state of its own is shown as held for
	// that reason until SetHold("") or an Open without it. Nothing of this is stored.
	Hold string
	// RememberFor is how long an idempotency key is kept, from the arrival of its message, also when the message is done by then. Default 24 h.
	RememberFor time.Duration
	// MaxRemembered is the most idempotency keys that are kept; a message with one more is refused with ErrFull. They are on disk only: about
	// 110 bytes each and the answer, while the message is there once more in its record. Default 1,000,000.
	MaxRemembered int
	// Now is the clock for due times and for the age of idempotency keys. Default time.Now.
	Now func() time.Time
	// Log gets damage, disk trouble and recovery. Default slog.Default().
	Log *slog.Logger
	// FS is the file system. Default the operating system's.
	FS FS

	// manual leaves out the goroutines: tests call prepareStep and flushAcks themselves, so that a seed fixes what happens.
	manual bool
	// spaceAge is how old an answer of statfs may be. Default 1 s.
	spaceAge time.Duration
	// salt is for tests that want the same bytes each time.
	salt func() uint64
	// openFiles is maxOpenSegments unless set.
	openFiles int
	// ackCompact is ackCompactBytes, ackReserve is ackReserveBytes unless set.
	ackCompact, ackReserve int64
}

const (
	maxSpares         = 2         // finished segment files kept for reuse: 512 MiB with the default size
	zeroSliceBytes    = 4 << 20   // written between two syncs while a segment is zeroed: some 5 ms of a slow disk
	forgetBytes       = 4 << 20   // of a segment are dropped from the page cache at once
	smallRecordBytes  = 256 << 10 // up to this a leased message is read at once and kept in memory until settled
	scanWindowBytes   = 1 << 20   // read at a time at recovery and when a large message is verified
	blankBytes        = 64 << 10  // of zeros where a record should be are the end of a segment
	maxScratchBytes   = 4 << 20   // kept between commits for headers and envelopes
	inlineDataBytes   = 1 << 10   // shorter data is copied beside its header: cheaper than one more buffer for the kernel
	maxReplyBytes     = 512       // of a reply or reason that is kept
	ackBatchRecords   = 256       // that many settled messages are written at once without waiting
	ackWriteEvery     = 10 * time.Millisecond
	ackSyncEvery      = time.Second
	retryAfterTrouble = time.Second
)

func (o *Options) defaults() {
	if o.SegmentSize <= 0 {
		o.SegmentSize = 256 << 20
	}
	o.SegmentSize = max(roundUp(o.SegmentSize, batchAlign), fileHeaderBytes+batchAlign)
	if o.MinFree == 0 {
		o.MinFree = 1 << 30
	}
	if o.MaxMessages == 0 {
		o.MaxMessages = 10_000_000
	}
	if o.RememberFor == 0 {
		o.RememberFor = 24 * time.Hour
	}
	if o.MaxRemembered == 0 {
		o.MaxRemembered = 1_000_000
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.FS == nil {
		o.FS = osFS{}
	}
	if o.spaceAge == 0 {
		o.spaceAge = time.Second
	}
	if o.salt == nil {
		o.salt = newSalt
	}
	if o.openFiles == 0 {
		o.openFiles = maxOpenSegments
	}
	if o.ackCompact == 0 {
		o.ackCompact = ackCompactBytes
	}
	if o.ackReserve == 0 {
		o.ackReserve = ackReserveBytes
	}
}

// Spool is an open spool directory. It is a queue.Backend, a queue.Source, a queue.Inspector and a queue.Rememberer; all methods but
// Commit and Close may be called from any goroutine at any time.
type Spool struct {
	o    Options
	dir  string
	lock io.Closer
	acks *ackLog

	files files // of sealed segments

	// keyIO is held while key files are written, renamed or removed. It is taken before mu.
	keyIO sync.Mutex

	// committing is held by Commit and Close; it protects the fields of the block.
	committing sync.Mutex
	current    *segment // takes the next batch; nil when there is none yet, or it failed
	// Of the batch being committed, reused for the next:
	envelopes    []byte   // in binary form, one behind the other
	envelopeEnds []int    // where each ends
	scratch      []byte   // headers, envelopes, trace fields, short data and fill as they are written
	buffers      [][]byte // the whole write, in order

	// mu protects the rest, and what segment and message say it does. It is never held during input or output.
	mu          sync.Mutex
	closed      bool
	nextSegment uint64
	segments    []*segment // with records, in the order of use
	indexing    []*segment // with something to write to their index files
	ready       *segment   // prepared in the background, empty
	spares      []*segment // whole files whose messages are all done
	retired     []*segment // to be closed and removed, or made spares
	// leaving has the numbers of finished segments until their files are durably gone or renamed: the ack log must know until then.
	leaving   map[uint64]struct{}
	wantReady bool // there was a commit: keep a segment ready
	byID      map[envelope.ID]*message
	fifo      messageFIFO
	due       messageHeap
	leases    map[*queue.Delivery]*message
	waiters   []chan struct{} // of Lease, longest waiting first; each has room for one signal
	// Of idempotency keys: segments with something to write to their key files; segments whose messages are all done, and whose keys must be
	// safe before they go; the key files of segments that are gone; the number of all keys.
	keying     []*segment
	finishing  []*segment
	kept       []keptKeys
	remembered int
	hold       string
	counts     [queue.Damaged + 1]int
	bytes      int64
	stats      queue.Stats // Committed, Commits, Syncs, SyncErrors, Damaged, Alarm

	nextSeq   atomic.Uint64 // of the next record; only the committer moves it
	live      atomic.Int64  // messages, for Room
	written   atomic.Int64  // bytes committed, for the preparing goroutine
	freeAsked atomic.Int64  // when, in nanoseconds since opened
	freeBytes atomic.Int64
	opened    time.Time

	prepareWake chan struct{} // room for one
	stop        chan struct{}
	workers     sync.WaitGroup
}

// Open opens the spool in dir, making it if there is none. After a crash it first finds out what is there; see the package comment.
// Another process that has it open makes this fail with ErrInUse.
func Open(dir string, o Options) (*Spool, error) {
	o.defaults()
	s := &Spool{
		o: o, dir: dir, hold: o.Hold, opened: time.Now(),
		byID: map[envelope.ID]*message{}, leases: map[*queue.Delivery]*message{}, leaving: map[uint64]struct{}{},
		prepareWake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	s.freeAsked.Store(math.MinInt64)
	s.files = files{max: o.openFiles, open: func(number uint64) (File, error) { return o.FS.Open(s.path(segmentName(number))) }}
	if err := o.FS.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	lock, err := o.FS.Lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	s.lock = lock
	if err := s.recover(); err != nil {
		s.closeFiles()
		lock.Close()
		return nil, fmt.Errorf("spool: open %s: %w", dir, err)
	}
	if !o.manual {
		s.workers.Add(2)
		go s.prepareLoop()
		go s.acks.loop()
	}
	return s, nil
}

// Close makes what was settled durable, marks where the last segment ends, and gives the directory free. Deliveries still out are
// leased again after the next Open.
func (s *Spool) Close() error {
	s.committing.Lock()
	defer s.committing.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return queue.ErrClosed
	}
	s.closed = true
	for _, ch := range s.waiters {
		ch <- struct{}{}
	}
	s.waiters = nil
	s.mu.Unlock()
	close(s.stop)
	s.workers.Wait()

	if s.current != nil {
		s.seal(s.current, false)
		s.current = nil
	}
	err := s.acks.flush(true)
	s.retireStep()
	s.closeFiles()
	return errors.Join(err, s.lock.Close())
}

func (s *Spool) closeFiles() {
	s.files.closeAll()
	for _, seg := range s.spares {
		seg.file.Close()
	}
	if s.ready != nil {
		s.ready.file.Close()
	}
	if s.acks != nil && s.acks.file != nil {
		s.acks.file.Close()
	}
}

// Room says whether a message could be taken now. It asks the file system at most once a second.
func (s *Spool) Room() error {
	if s.live.Load() >= int64(s.o.MaxMessages) {
		return queue.ErrFull
	}
	if free := s.free(); s.o.MinFree > 0 && free < s.o.MinFree {
		s.wakePrepare() // to remove spare files
		return fmt.Errorf("%w: %d bytes free, %d wanted", queue.ErrNoSpace, free, s.o.MinFree)
	}
	return nil
}

// free gives the free bytes as of the last second; one caller of many asks.
func (s *Spool) free() int64 {
	now := int64(time.Since(s.opened))
	if asked := s.freeAsked.Load(); (asked == math.MinInt64 || now-asked >= int64(s.o.spaceAge)) && s.freeAsked.CompareAndSwap(asked, now) {
		free, err := s.o.FS.Free(s.dir)
		if err != nil {
			s.o.Log.Error("spool: free space is unknown", "dir", s.dir, "error", err)
			free = 0
		}
		s.freeBytes.Store(free)
		return free
	}
	return s.freeBytes.Load()
}

// SetHold changes Options.Hold: with a reason, mail without a state of its own is held from now on; with "" it becomes ready.
func (s *Spool) SetHold(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.hold
	s.hold = reason
	if (was == "") == (reason == "") {
		return
	}
	for _, seg := range s.segments {
		for _, m := range seg.msgs {
			switch {
			case m == nil:
			case reason == "" && m.heldHere:
				s.setState(m, queue.Ready)
			case reason != "" && m.state == queue.Ready && !m.decided:
				s.setState(m, queue.Held)
				m.heldHere = true
			}
		}
	}
	s.wake(len(s.waiters))
}

// Stats counts. Bytes are those of the messages as handed on, not of the files.
func (s *Spool) Stats() queue.Stats {
	free := s.free()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Messages = make(map[string]int, len(s.counts))
	for state, n := range s.counts {
		st.Messages[queue.State(state).String()] = n
	}
	st.Bytes = s.bytes
	st.FreeBytes = free
	st.Durability = s.o.Durability.String()
	st.Segments = len(s.segments) + len(s.spares)
	if s.ready != nil {
		st.Segments++
	}
	for _, seg := range s.segments {
		if m := seg.oldest(); m != nil {
			st.Oldest = m.id.Time()
			break
		}
	}
	if st.Alarm == "" && s.o.MinFree > 0 && free < s.o.MinFree {
		st.Alarm = "free space is below " + strconv.FormatInt(s.o.MinFree, 10) + " bytes: no mail is taken"
	}
	return st
}

// alarm notes what an operator must look at; the first one stays, as it is the likely cause of the others.
func (s *Spool) alarm(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stats.Alarm == "" {
		s.stats.Alarm = s.o.Now().UTC().Format(time.RFC3339) + ": " + text
	}
}
