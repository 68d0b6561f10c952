package httpedge

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fastedge/fastedge/envelope"
)

// A batch is many messages in one request, a line each, and as many lines of answers in the same order. A goroutine reads and submits, up to
// batchWindow messages ahead of the commit, so that they share commits; the answers are sent as they come, while the request is still being read.

const (
	// batchWindow is how many messages of one batch may wait for their commit.
	batchWindow = 128
	// maxExtraLanes is how many lanes all batches together may have beyond their first, until they are answered; in equal shares, of minExtraLanes or more
	// while there are any. With 100 batches some 600 messages share a commit. More would share its cost with few others, and none of their memory would
	// be in the processor's caches any more when it is over.
	maxExtraLanes = 512
	minExtraLanes = 2
	// answerDelay is how long answers wait for more while the client is within a line, or there are lines that it has sent: a write for each commit's
	// few was a sixth of a batch's cost. At the end of a line the client may be waiting itself, so then they are sent at once.
	answerDelay = 50 * time.Millisecond
	// maxChunkBytes of answers go together: with the chunk's own lines they are what fasthttp writes at a time.
	maxChunkBytes = 4096 - 16
)

// batch is one request under way. It is the response's body: fasthttp reads the answers from it while it writes them.
type batch struct {
	srv     *Server
	c       *conn
	poster  poster
	lines   lineReader
	body    io.Closer     // what they are read from
	header  int           // bytes of the request's header fields, and
	length  int           // of its body
	begun   bool          // the reader runs: since the first Read, for before that fasthttp itself looks at the body
	pending chan line     // in order
	places  chan struct{} // one back for each line that is answered
	stop    chan struct{} // closed by Close
	ended   chan struct{} // closed when the reader has ended
	extra   int           // lanes beyond the first, given back by Close; the reader's
	failed  bool          // the reader has panicked; known when pending is closed
	waiting atomic.Bool   // the reader waits for the client to begin a line
	waits   chan struct{} // capacity 1: it has begun to

	out    []byte // answers not yet read, from used
	used   int
	charge charge // for them
	delay  *time.Timer

	mu      sync.Mutex // of what follows
	stopped bool
	ids     *envelope.IDSource // of all its lanes: one that is at hand, where each lane's own would come from memory
	idle    []*intake          // whose dialogues go on with the next line; no more than there are lanes
}

// line is one line that was looked at: in waits for its commit, or refused is its answer, which is written at once, for its recipients are borrowed.
type line struct {
	number  int
	in      *intake
	refused []byte
	charge  charge // for refused
}

// postBatch takes many messages.
func (s *Server) postBatch(ctx *fasthttp.RequestCtx, c *conn) {
	b := &batch{
		srv: s, c: c, pending: make(chan line, batchWindow), places: make(chan struct{}, batchWindow),
		stop: make(chan struct{}), ended: make(chan struct{}), waits: make(chan struct{}, 1),
	}
	if s.refusesPost(ctx, c, &b.poster, true) {
		return
	}
	if !ctx.Request.Header.IsHTTP11() {
		s.problem(ctx, c, httpProblem("syntax", "A batch needs HTTP/1.1: its answer comes in chunks"))
		return
	}
	r, err := s.inflater.bodyReader(ctx.Request.Header.Peek("Content-Encoding"), &batchBody{b, c.wholeBody(ctx)}, s.o.MaxBatchBytes, s.o.MaxBatchBytes)
	if err != nil {
		s.problem(ctx, c, s.bodyProblem(err))
		return
	}
	b.lines.Reset(r, batchLimits{MaxLineBytes: s.lineBytes(c.at), MaxBytes: s.o.MaxBatchBytes, MaxLines: s.o.MaxBatchMessages})
	b.places <- struct{}{}
	b.body = r
	b.header, b.length = len(ctx.Request.Header.RawHeaders()), max(ctx.Request.Header.ContentLength(), 0)
	ctx.Response.Header.SetContentType("application/x-ndjson")
	ctx.Response.SetBodyStream(b, -1)
}

// read takes the lines in. Runs on: a goroutine of the batch's own.
func (b *batch) read() {
	b.srv.batches.Add(1)
	b.ids = b.srv.idSources.Get().(*envelope.IDSource)
	defer b.srv.idSources.Put(b.ids)
	defer close(b.pending)
	defer close(b.ended) // first: whoever has seen the last answer finds it closed
	defer func() { b.c.pace = pace{} }()
	defer b.body.Close()
	defer func() {
		if r := recover(); r != nil {
			b.srv.panicked(r)
			b.failed = true
		}
	}()
	for b.place() {
		b.c.pace.waiting(time.Now().Add(b.c.at.Session.DataTimeout)) // each line has the time of a message
		text, number, err := b.lines.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			p := b.srv.bodyProblem(err)
			b.pending <- line{number: number, refused: appendBatchProblem(nil, number, &p)}
			return
		}
		b.c.pace.message(b.c.at.Session.MinDataRate, b.srv.o.paceWindow)
		one := b.srv.takeLine(b, text, number)
		b.c.pace.over()
		b.pending <- one // there is room: a place was taken
	}
}

// batchBody is the body as it comes from the client.
type batchBody struct {
	b   *batch
	src io.Reader
}

// Read tells the one who answers when there is no next line.
func (r *batchBody) Read(p []byte) (int, error) {
	b := r.b
	if b.lines.open {
		return r.src.Read(p)
	}
	b.waiting.Store(true)
	select {
	case b.waits <- struct{}{}:
	default:
	}
	n, err := r.src.Read(p)
	b.waiting.Store(false)
	return n, err
}

// place waits until one more line may be under way. The first lane is always there, others while there are some.
func (b *batch) place() bool {
	select {
	case <-b.places:
		return true
	case <-b.stop:
		return false
	default:
	}
	if share := maxExtraLanes / max(b.srv.batches.Load(), 1); int64(b.extra) < min(max(share, minExtraLanes), batchWindow-1) {
		if b.srv.extra.Add(1) <= maxExtraLanes {
			b.extra++
			return true
		}
		b.srv.extra.Add(-1)
	}
	select {
	case <-b.places:
		return true
	case <-b.stop:
		return false
	}
}

// takeLine decodes and judges one line, and hands its message over.
func (s *Server) takeLine(b *batch, text io.Reader, number int) line {
	in := b.intake()
	taken := false
	defer func() {
		if !taken {
			s.release(in)
		}
	}()
	if p := s.notNow(b.c); p != nil {
		return line{number: number, refused: appendBatchProblem(nil, number, p)}
	}
	in.poster = b.poster
	in.lane.at, in.lane.admitted, in.lane.ids = b.c.at, true, b.ids
	sess := b.c.at.Session
	err := decodeMessage(text, limits{MaxMessageBytes: sess.MaxMessageBytes, MaxRecipients: sess.MaxRecipients, Key: true}, &in.m, in.take)
	var p *problem
	switch {
	case err != nil:
		bad := s.bodyProblem(err)
		p = &bad
	case len(in.m.Key) > 0:
		p = s.useKey(in, in.m.Key)
	}
	if p == nil {
		p = s.speak(in)
	}
	if p != nil {
		one := line{number: number, refused: appendBatchProblem(nil, number, p)}
		one.charge.take(&in.m.charge)
		return one
	}
	taken = true
	return line{number: number, in: in}
}

// intake gives one whose dialogue goes on, or another.
func (b *batch) intake() *intake {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.idle); n > 0 {
		in := b.idle[n-1]
		b.idle = b.idle[:n-1]
		return in
	}
	return b.srv.intake()
}

// release keeps in for the next line when its message was taken, which makes that line's dialogue shorter.
func (b *batch) release(in *intake, taken bool) {
	if !taken || in.replay || in.m.Client.IsValid() || b.c.at.Session.MaxTransactions > 0 { // which is for clients that can see the dialogue
		b.srv.release(in)
		return
	}
	l := in.lane
	l.keep(&in.poster, in.m.Helo)
	b.srv.clear(in)
	in.lane = l
	b.mu.Lock()
	b.idle = append(b.idle, in)
	b.mu.Unlock()
}

// settle waits for a message whose answer nobody wants any more.
func (s *Server) settle(one *line) {
	one.charge.release()
	in := one.in
	if in == nil {
		return
	}
	if !in.replay {
		s.finish(in)
		s.meter.Event(EventOrphan)
	}
	s.release(in)
}

// Read gives answers, at least one when there is one more. Runs on: the connection's goroutine.
func (b *batch) Read(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		go b.read()
	}
	for b.used == len(b.out) {
		if b.out, b.used = b.out[:0], 0; cap(b.out) > maxKeptOut {
			b.out = nil
		}
		b.charge.release()
		one, ok := <-b.pending
		switch {
		case !ok && b.failed:
			return 0, errPanicked // an answer that is cut off, rather than one that seems complete
		case !ok:
			return 0, io.EOF
		}
		b.answer(one)
		b.gather(min(len(p), maxChunkBytes))
	}
	// For these answers; the ones before have gone. As long as a message may take: a client may send for a while before it reads.
	b.c.SetWriteDeadline(time.Now().Add(b.c.at.Session.DataTimeout))
	n := copy(p, b.out[b.used:])
	b.used += n
	return n, nil
}

// gather appends answers that can go with the first one, and leaves room for no other of its length.
func (b *batch) gather(room int) {
	room -= len(b.out)
	for delayed := false; len(b.out) < room; {
		var one line
		var ok bool
		select {
		case one, ok = <-b.pending:
		default: // all that was submitted is answered
			if b.waiting.Load() {
				return
			}
			if !delayed {
				delayed = true
				if b.delay == nil {
					b.delay = time.NewTimer(answerDelay)
				} else {
					b.delay.Reset(answerDelay)
				}
			}
			select {
			case one, ok = <-b.pending:
			case <-b.waits:
				continue
			case <-b.delay.C:
				return
			}
		}
		if !ok {
			return
		}
		b.answer(one)
	}
}

// answer waits for a line's commit and appends its answer.
func (b *batch) answer(one line) {
	s := b.srv
	if in := one.in; in == nil {
		b.out = append(b.out, one.refused...)
		b.charge.take(&one.charge)
	} else {
		var p *problem
		if !in.replay {
			p = s.finish(in)
		}
		if p != nil {
			b.out = appendBatchProblem(b.out, one.number, p)
		} else {
			b.out = appendBatchAccepted(b.out, one.number, in.id, s.o.Durability, in.replay, in.results)
		}
		b.charge.take(&in.m.charge)
		b.release(in, p == nil)
	}
	b.out = append(b.out, '\n')
	select {
	case b.places <- struct{}{}:
	default:
	}
}

// Close is called when the response is over, or can't be sent. What was submitted is waited for.
func (b *batch) Close() error {
	b.mu.Lock()
	if b.stopped {
		b.mu.Unlock()
		return nil
	}
	b.stopped = true
	close(b.stop)
	if !b.begun {
		b.mu.Unlock()
		return b.body.Close()
	}
	select {
	case <-b.ended:
	default:
		b.c.cutOff() // whatever the reader waits for
	}
	b.mu.Unlock()
	<-b.ended
	for one := range b.pending {
		b.srv.settle(&one)
	}
	for _, in := range b.idle {
		b.srv.release(in)
	}
	b.srv.batches.Add(-1)
	b.srv.extra.Add(-int64(b.extra))
	b.charge.release()
	b.c.line.next(b.header, b.length)
	return nil
}
