package httpedge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/logline"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Listener is one address that clients post to.
type Listener struct {
	Name string
	// Address is host:port. Port 0 picks a free one: see Server.Addr.
	Address string
	// Session decides every reply. Its HTTP must be set, and MaxErrors above MaxRecipients, or some wrong addresses end the dialogue.
	Session *session.Server
	// MayRelay says whether a client address may send to any domain, MayPost whether it may post without credentials; nil means none may.
	MayRelay, MayPost func(netip.Addr) bool
	// AuthRequired wants credentials of everybody.
	AuthRequired bool
	// Bearer, Basic and External say which credentials are taken: API keys, passwords, client certificates.
	Bearer, Basic, External bool
	// Proxies says whether a peer is a proxy that must send a PROXY header; nil means none is.
	Proxies func(netip.Addr) bool
	// Gate counts connections per client; nil has no limits.
	Gate *policy.Gate
	// TLS makes it HTTPS; nil: clear. What its callbacks choose may change while the server runs.
	TLS *tls.Config
	// TLSFacts makes what validators see of a handshake. Giving nil fails it. nil: version, cipher and server name.
	TLSFacts func(tls.ConnectionState) *policy.TLS
}

// Options of a Server. Zero values mean the defaults named.
type Options struct {
	Listeners []Listener
	Writer    *queue.Writer
	// Budget bounds the bytes of message data, together with the other edges: limits.memory.
	Budget *pool.Budget
	// Keys are the API keys that Bearer needs, Passwords what Basic and External need.
	Keys      *auth.Keys
	Passwords *auth.Passwords
	// Inspector shows messages that are in the queue; nil: none can be shown.
	Inspector queue.Inspector
	// Durability is the word for it in answers: "fsync", "os", or the name of an engine.
	Durability string

	// Path is what the paths of the plain protocol match, nil for any; Method is its verb. Defaults: any path, POST.
	Path   *regexp.Regexp
	Method string
	// The header fields of the plain protocol. Defaults: X-Envelope-Sender, X-Envelope-Recipient, X-Ehlo.
	SenderHeader, RecipientHeader, EhloHeader string
	// Success is the status of an accepted message in the plain protocol, 200 or 204. Default 200.
	Success int

	// MaxConnections is the most connections open at once over all listeners: http.connections; more get 503. Default 4096.
	MaxConnections int
	// MaxHeaderBytes is the most bytes of a request's line and header fields: http.header_bytes; more get 431. Default 64 KiB.
	MaxHeaderBytes int
	// MaxBatchMessages, MaxBatchLineBytes and MaxBatchBytes bound POST /v1/messages:batch. Defaults: 10,000, four thirds of the message size and
	// 64 KiB, 1 GiB.
	MaxBatchMessages  int
	MaxBatchLineBytes int64
	MaxBatchBytes     int64
	// Remembered keeps idempotency keys beyond a restart; nil: the engine can't, and requests with a key are refused.
	Remembered queue.Rememberer
	// MaxIdempotencyKeys is how many are known at once; more get 503. IdempotencyTime is how long each is. Defaults: 1,000,000, 24 h.
	MaxIdempotencyKeys int
	IdempotencyTime    time.Duration

	// HeaderTimeout is the time for a request's header, IdleTimeout that between requests; a body has the session's DataTimeout. Defaults: 10 s, 60 s.
	HeaderTimeout, IdleTimeout time.Duration
	// HandshakeTimeout is the time for a TLS handshake, ProxyTimeout that for a PROXY header. Defaults: 30 s, 5 s.
	HandshakeTimeout, ProxyTimeout time.Duration

	Log *slog.Logger
	// Lines gets the line that every message causes, some at a time, in LineFormat; whole lines, from any goroutine. Its Write must not block, and may
	// not keep what it is given. nil: no such lines.
	Lines      io.Writer
	LineFormat logline.Format
	Meter      Meter // may be nil

	paceWindow time.Duration // shorter in tests
}

// Meter counts. Any goroutine.
type Meter interface {
	Connection(listener int, r ConnResult)
	OpenConnections(listener int, delta int)
	Reply(stage session.Stage, code uint16)
	Refusal(stage session.Stage, reason session.Reason, code uint16)
	// Message counts a message that got its answer: size in bytes, ack from the end of data to the answer.
	Message(protocol string, accepted bool, size int64, ack time.Duration)
	Handshake(ok bool, version string, d time.Duration)
	Event(e Event)
	// Request counts an answer by its status.
	Request(status int)
}

// ConnResult is what became of a new connection.
type ConnResult uint8

// Connections are accepted, over http.connections, or over a limit of the Gate.
const (
	ConnAccepted ConnResult = iota
	ConnOverLimit
	ConnPerAddress
	ConnPerPrefix
	ConnRate
)

// Event is something rare that is counted.
type Event uint8

// The events.
const (
	EventPanic           Event = iota // our bug: one request answered with 500
	EventTimeout                      // a body came too slowly
	EventOrphan                       // the client left before its answer; the message stays
	EventProxyMissing                 // closed: a listed proxy that sent something else, or nothing in time
	EventProxyBad                     // closed: a malformed PROXY header
	EventHandshakeFailed              // closed: no TLS handshake came about
	EventValidatorFailed              // a validator did not decide
	NumEvents
)

// noMeter counts nothing.
type noMeter struct{}

func (noMeter) Connection(int, ConnResult)                    {}
func (noMeter) OpenConnections(int, int)                      {}
func (noMeter) Reply(session.Stage, uint16)                   {}
func (noMeter) Refusal(session.Stage, session.Reason, uint16) {}
func (noMeter) Message(string, bool, int64, time.Duration)    {}
func (noMeter) Handshake(bool, string, time.Duration)         {}
func (noMeter) Event(Event)                                   {}
func (noMeter) Request(int)                                   {}

// Server takes messages by HTTP.
type Server struct {
	o             Options
	log           *slog.Logger
	meter         Meter
	http          fasthttp.Server
	doors         []*door
	keys          *keyTable // nil: idempotency keys are refused
	inflater      *inflater
	chunks        *pool.List // of all lanes
	lines         lines
	intakes       sync.Pool     // of *intake
	pieces        sync.Pool     // of *[bodyPiece]byte
	idSources     sync.Pool     // of *envelope.IDSource, for batches
	batches       atomic.Int64  // that are being read or answered
	extra         atomic.Int64  // lanes that batches have beyond their first
	bodyTime      time.Duration // the longest of all listeners
	single        []string      // header fields that may stand once
	singleLengths uint64        // bit n: one of these, or one about the body's length, has n bytes

	draining  atomic.Bool
	logErr    atomic.Int64 // when the queue's trouble was last told of, in seconds since 1970
	logFailed atomic.Int64 // the same for validators

	mu    sync.Mutex
	lanes *lane // idle ones
	idle  int
	conns map[*conn]struct{}
}

// maxIdleLanes bounds the idle ones: each keeps some 20 KiB. Twice as many as batches may have beyond their first.
const maxIdleLanes = 1024

// maxIdleChunkBytes bounds the idle chunks, which lanes share: 2,048 small messages, twice as many as batches may have under way.
const maxIdleChunkBytes = 16 << 20

// inflateBytes is how much memory all bodies that are decompressed may take together.
const inflateBytes = 256 << 20

var (
	noContext = context.Background()

	replyDraining = refusal(421, 3, 2, "Shutting down, try again later")
	replyMemory   = refusal(452, 3, 1, "Too much mail in progress, see limits.memory; try again later")
)

// maxLoggedArg bounds what of a hostile argument stands in a log line, in bytes.
const maxLoggedArg = 128

// New binds the listeners, so that an address in use is an error here, and reads the idempotency keys that the engine has kept. Serve runs them.
func New(o Options) (*Server, error) {
	setDefault(&o.Method, "POST")
	setDefault(&o.SenderHeader, "X-Envelope-Sender")
	setDefault(&o.RecipientHeader, "X-Envelope-Recipient")
	setDefault(&o.EhloHeader, "X-Ehlo")
	setDefault(&o.Success, 200)
	setDefault(&o.MaxConnections, 4096)
	setDefault(&o.MaxHeaderBytes, 64<<10)
	setDefault(&o.MaxBatchMessages, 10_000)
	setDefault(&o.MaxBatchBytes, 1<<30)
	setDefault(&o.MaxIdempotencyKeys, 1_000_000)
	setDefault(&o.IdempotencyTime, 24*time.Hour)
	setDefault(&o.HeaderTimeout, 10*time.Second)
	setDefault(&o.IdleTimeout, time.Minute)
	setDefault(&o.HandshakeTimeout, 30*time.Second)
	setDefault(&o.ProxyTimeout, 5*time.Second)
	setDefault(&o.Durability, "fsync")
	setDefault(&o.paceWindow, paceWindow)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Meter == nil {
		o.Meter = noMeter{}
	}
	s := &Server{o: o, log: o.Log, meter: o.Meter, conns: map[*conn]struct{}{}, inflater: newInflater(inflateBytes)}
	s.chunks = pool.NewSharedList(maxIdleChunkBytes, o.Budget)
	s.idSources.New = func() any { return newIDSource() }
	s.lines.out = o.Lines
	s.single = o.singleFields()
	for _, name := range append(s.single[:len(s.single):len(s.single)], "content-length", "transfer-encoding") {
		if len(name) >= 64 {
			return nil, fmt.Errorf("httpedge: header field %q is too long a name", name)
		}
		s.singleLengths |= 1 << len(name)
	}
	for i := range o.Listeners {
		s.bodyTime = max(s.bodyTime, o.Listeners[i].bodyTime(o.paceWindow))
	}
	if o.Remembered != nil {
		s.keys = newKeys(o.MaxIdempotencyKeys, o.IdempotencyTime)
		err := o.Remembered.Remembered(time.Now().Add(-o.IdempotencyTime), func(r queue.Remembered) bool {
			s.keys.load(r)
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	s.http = fasthttp.Server{
		Handler: s.handle,
		ErrorHandler: func(ctx *fasthttp.RequestCtx, err error) {
			s.broken(ctx, err)
			s.meter.Request(ctx.Response.StatusCode())
		},
		ExpectHandler: s.expected,
		HeaderReceived: func(*fasthttp.RequestHeader) fasthttp.RequestConfig {
			return fasthttp.RequestConfig{ReadTimeout: s.bodyTime}
		},
		Logger:                       quiet{},
		Concurrency:                  o.MaxConnections + 64, // ours is the limit that counts
		ReadBufferSize:               o.MaxHeaderBytes,
		ReadTimeout:                  o.HeaderTimeout,
		WriteTimeout:                 o.HeaderTimeout,
		IdleTimeout:                  o.IdleTimeout,
		MaxRequestBodySize:           streamFrom,
		StreamRequestBody:            true,
		ReduceMemoryUsage:            true,
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		CloseOnShutdown:              true,
		LazyRequestTime:              true,
	}
	for i := range o.Listeners {
		d, err := newDoor(s, i)
		if err != nil {
			for _, d := range s.doors {
				d.Close()
			}
			return nil, err
		}
		s.doors = append(s.doors, d)
	}
	return s, nil
}

// streamFrom is how much of a body fasthttp reads before the handler runs, and 0 is not to be had. A client that is refused whatever its body is has
// its answer at once, and a body that does not come is our own affair, with the answer that its path has for it.
const streamFrom = 1

func setDefault[T comparable](value *T, otherwise T) {
	var zero T
	if *value == zero {
		*value = otherwise
	}
}

// quiet is fasthttp's logger: a client's mistakes are counted, not told.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

// bodyTime is how long a body is waited for until somebody looks, see pace.
func (l *Listener) bodyTime(window time.Duration) time.Duration {
	if l.Session.MinDataRate > 0 {
		return min(l.Session.DataTimeout, window)
	}
	return l.Session.DataTimeout
}

// Addr gives the address that listener i is bound to, with the port that was picked.
func (s *Server) Addr(i int) string { return s.doors[i].Addr().String() }

// Serve answers requests until Close, or until one of the listeners fails. It blocks.
func (s *Server) Serve() error {
	errs := make(chan error, len(s.doors))
	for _, d := range s.doors {
		go func() { errs <- s.http.Serve(d) }()
	}
	var first error
	for range s.doors {
		if err := <-errs; err != nil && !errors.Is(err, net.ErrClosed) && first == nil {
			first = err
			s.Close()
		}
	}
	return first
}

// Drain takes no new connections, answers 503 to new requests, lets those under way finish, and returns when no connection is left or with ctx's
// error.
func (s *Server) Drain(ctx context.Context) error {
	s.draining.Store(true)
	defer s.lines.noMore()
	return s.http.ShutdownWithContext(ctx)
}

// Close ends every connection. What was submitted is committed all the same.
func (s *Server) Close() {
	s.draining.Store(true)
	defer s.lines.noMore()
	for _, d := range s.doors {
		d.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.raw.Close()
	}
}

// piece gives a buffer that goes back to s.pieces.
func (s *Server) piece() *[bodyPiece]byte {
	if b, ok := s.pieces.Get().(*[bodyPiece]byte); ok {
		return b
	}
	return new([bodyPiece]byte)
}

// lane gives an idle lane, or a new one.
func (s *Server) lane() *lane {
	s.mu.Lock()
	l := s.lanes
	if l != nil {
		s.lanes, l.next = l.next, nil
		s.idle--
	}
	s.mu.Unlock()
	if l == nil {
		l = newLane(s)
	}
	return l
}

// park takes a lane back, whose dialogue it ends.
func (s *Server) park(l *lane) {
	l.over()
	if l.sub.Env != nil {
		return // after a panic: the queue's answer is still to come, and is nobody else's
	}
	l.last, l.admitted, l.ids = nil, false, l.own
	if cap(l.out) > maxKeptOut {
		l.out = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idle < maxIdleLanes {
		l.next, s.lanes = s.lanes, l
		s.idle++
	}
}

const maxKeptOut = 64 << 10

// Committed is queue.Owner: it wakes the handlers. Runs on: writer goroutine.
func (s *Server) Committed(batch []*queue.Submission) {
	for _, sub := range batch {
		sub.Token.(*lane).answered()
	}
}

// refuse is why no message may begin now; nil when one may.
func (s *Server) refuse() (*smtpcodec.Reply, session.Reason) {
	b := s.o.Budget
	switch {
	case s.draining.Load():
		return &replyDraining, session.ReasonShutdown
	case b != nil && b.Max() > 0 && b.Used() > b.Max()/4*3:
		return &replyMemory, session.ReasonMemory // what is left is for the messages that have begun
	}
	r := queue.Refusal(s.o.Writer.Room())
	switch {
	case r == nil:
		return nil, session.ReasonNone
	case r.Enhanced.Subject == 3 && r.Enhanced.Detail == 1: // mail system full
		return r, session.ReasonDisk
	case r.Code == 421:
		return r, session.ReasonShutdown
	}
	return r, session.ReasonQueue
}

// notNow refuses a message of which nothing has been read, and counts and logs that; nil when it may begin.
func (s *Server) notNow(c *conn) *problem {
	r, why := s.refuse()
	if r == nil {
		return nil
	}
	s.meter.Reply(session.StageMail, r.Code)
	s.meter.Refusal(session.StageMail, why, r.Code)
	if why != session.ReasonShutdown && s.log.Enabled(noContext, slog.LevelInfo) {
		s.log.LogAttrs(noContext, slog.LevelInfo, "refused",
			slog.String("listener", c.at.Name),
			slog.String("client", c.client.String()),
			slog.String("stage", session.StageMail.String()),
			slog.String("reason", why.String()),
			slog.Int("code", int(r.Code)),
			slog.String("reply", r.Text),
		)
	}
	p := problemFor(*r, why.String())
	return &p
}

// submitted counts and logs a message that has the queue's answer.
func (s *Server) submitted(l *lane, env *envelope.Envelope, err error, now time.Time) {
	s.meter.Message(env.Client.Protocol, err == nil, env.Size(), now.Sub(l.eod))
	if err != nil && onceASecond(&s.logErr, now) {
		s.log.Error("message not queued, client told to try again", "error", err)
	}
	if s.o.Lines != nil && s.log.Enabled(noContext, slog.LevelInfo) {
		l.line = s.o.LineFormat.Message(l.line[:0], now, env, l.tls, now.Sub(l.eod), err == nil)
		s.lines.add(l.line)
	}
}

// validatorFailed counts, and logs once a second at the most, because what fails for one message fails for all.
func (s *Server) validatorFailed(sess *session.Session, listener string, at policy.Stage, err error) {
	s.meter.Event(EventValidatorFailed)
	if onceASecond(&s.logFailed, time.Now()) {
		s.log.Error("a validator failed", "session", sess.Peer().ID.String(), "listener", listener, "stage", at.String(), "error", err)
	}
}

func onceASecond(last *atomic.Int64, now time.Time) bool {
	was, is := last.Load(), now.Unix()
	return was != is && last.CompareAndSwap(was, is)
}

// handle answers one request. A panic is our bug and costs one request.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if r := recover(); r != nil {
			s.panicked(r)
			ctx.Response.Reset()
			ctx.SetStatusCode(fasthttp.StatusInternalServerError)
			ctx.SetConnectionClose()
		}
		if ctx.Request.Header.ContentLength() == -1 {
			// Deviation: RFC 9112 §9.3 lets a connection go on. fasthttp takes a trailer section whose lines end with a bare LF, even the last one, so that
			// somebody in front of us may see its end elsewhere: nothing behind a chunked body is read.
			ctx.SetConnectionClose()
		}
		c := ctx.Conn().(*conn)
		c.pace = pace{}
		if _, batch := ctx.Response.BodyStream().(*batch); !batch { // which goes on being read
			c.requestOver(&ctx.Request.Header)
		}
		c.lingers.Store(ctx.Response.ConnectionClose())
		s.meter.Request(ctx.Response.StatusCode())
	}()
	c := ctx.Conn().(*conn)
	if err := s.examine(c, &ctx.Request.Header); err != nil {
		s.broken(ctx, err)
		return
	}
	if c.fields.has(fieldExpect) && !expectsContinue(&ctx.Request.Header) {
		s.unmet(ctx, c)
		return
	}
	s.route(ctx)(s, ctx, c)
}

// expectsContinue says that a request expects nothing but 100 Continue. One of HTTP/1.0 expects nothing (RFC 9110 §10.1.1).
func expectsContinue(h *fasthttp.RequestHeader) bool {
	return !h.IsHTTP11() || equalFold(h.Peek("Expect"), "100-continue")
}

// unmet answers who expects what we can't do.
func (s *Server) unmet(ctx *fasthttp.RequestCtx, c *conn) {
	if isAPI(ctx.URI().PathOriginal()) {
		s.problem(ctx, c, httpProblem("expectation", "100-continue is all that may be expected"))
		return
	}
	s.bare(ctx, fasthttp.StatusExpectationFailed)
}

var errPanicked = errors.New("httpedge: panicked")

// panicked counts and tells of our bug.
func (s *Server) panicked(why any) {
	s.meter.Event(EventPanic)
	s.log.Error("panic in the HTTP edge", "panic", why, "stack", string(debug.Stack()))
}

var (
	errMalformed = errors.New("bare LF, obs-fold, a blank in a name or two lengths in a header")
	errVersion   = errors.New("another version than HTTP/1.0 and HTTP/1.1")
)

// errRepeated is about a field that says one thing, and stands twice.
type errRepeated string

func (e errRepeated) Error() string { return string(e) + " stands twice" }

// fields is which of a request's header fields are there, of those that may stand once.
type fields uint32

// Their places in Server.single; others follow.
const (
	fieldClient = iota
	fieldKey
	fieldExpect
	numFields
)

func (f fields) has(place int) bool { return f&(1<<place) != 0 }

// singleFields gives the names of fields that may stand once, in lower case.
func (o *Options) singleFields() []string {
	names := make([]string, numFields, numFields+5)
	names[fieldClient], names[fieldKey], names[fieldExpect] = "x-client-address", "idempotency-key", "expect"
	return append(names, "authorization", "content-type", "content-encoding", strings.ToLower(o.SenderHeader), strings.ToLower(o.EhloHeader))
}

// examine looks at a request's line and header as they have come, which fasthttp takes too easily: whatever stands in front of us may have seen another
// request. The line ends with CRLF, and so do all header lines; none goes on in the next, no name has a blank in it, only one of them says how long
// the body is (RFC 9112 §2.2, §5.1, §5.2, §6.3), and what says one thing stands once: of two, somebody may take the first and somebody the last.
func (s *Server) examine(c *conn, h *fasthttp.RequestHeader) error {
	c.fields = 0
	if c.line.state != lineEnded {
		return errMalformed
	}
	if version := h.Protocol(); !h.IsHTTP11() && string(version) != "HTTP/1.0" {
		return errVersion
	}
	raw := h.RawHeaders()
	length, encoding := false, false
	for i := 0; i < len(raw); {
		end := bytes.IndexByte(raw[i:], '\n')
		if raw[i] == ' ' || raw[i] == '\t' || end == 0 || end > 0 && raw[i+end-1] != '\r' {
			return errMalformed
		}
		line := raw[i:]
		if end >= 0 {
			line = line[:end]
		}
		name := line[:max(bytes.IndexByte(line, ':'), 0)]
		for _, c := range name {
			if c <= ' ' {
				return errMalformed
			}
		}
		if s.singleLengths>>len(name)&1 != 0 {
			switch {
			case sameName(name, "content-length"):
				length = true
			case sameName(name, "transfer-encoding"):
				encoding = true
			}
			for place, single := range s.single {
				if !sameName(name, single) {
					continue
				}
				if c.fields.has(place) {
					return errRepeated(single)
				}
				c.fields |= 1 << place
			}
		}
		if end < 0 {
			break
		}
		i += end + 1
	}
	if length && encoding {
		return errMalformed
	}
	return nil
}

// sameName compares a field's name, which has no blanks and controls in it, with one in lower case.
func sameName(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if c|0x20 != lower[i]|0x20 {
			return false
		}
	}
	return true
}

// expected is asked before 100 Continue: whoever will be refused whatever the body is, is refused now. Anything but 100 is the answer.
func (s *Server) expected(ctx *fasthttp.RequestCtx) (status int) {
	defer func() {
		if r := recover(); r != nil {
			s.panicked(r)
			ctx.Response.Reset()
			status = fasthttp.StatusInternalServerError
		}
		if status != fasthttp.StatusContinue {
			ctx.Conn().(*conn).lingers.Store(true)
			s.meter.Request(status)
		}
	}()
	if err := s.examine(ctx.Conn().(*conn), &ctx.Request.Header); err != nil {
		s.broken(ctx, err)
		return ctx.Response.StatusCode()
	}
	if s.refusedAtOnce(ctx, ctx.Conn().(*conn)) {
		return ctx.Response.StatusCode()
	}
	return fasthttp.StatusContinue
}

// broken answers what is not HTTP, or too much of it. The connection is closed behind it: where the next request begins is unknown.
func (s *Server) broken(ctx *fasthttp.RequestCtx, err error) {
	p := httpProblem("syntax", "")
	var small *fasthttp.ErrSmallBuffer
	var timeout net.Error
	var repeated errRepeated
	switch {
	case errors.As(err, &small):
		p = httpProblem("header_size", "The header has more than "+strconv.Itoa(s.o.MaxHeaderBytes)+" bytes")
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		p = httpProblem("size", "")
	case errors.As(err, &timeout) && timeout.Timeout():
		p = httpProblem("timeout", "")
	case err == errVersion:
		p.Status = fasthttp.StatusHTTPVersionNotSupported
	case err == errMalformed, errors.As(err, &repeated):
		p.Detail = err.Error()
	}
	ctx.Response.Reset()
	ctx.SetStatusCode(p.Status)
	c, ok := ctx.Conn().(*conn)
	switch {
	case ok && c.line.isHEAD():
		ctx.Response.SkipBody = true
	case ok && p.Status < 500 && c.line.isAPI():
		s.write(ctx, p)
	case p.Status == fasthttp.StatusRequestTimeout: // without it a relay of the plain protocol takes a 4xx for good
		var room [MaxSMTPReplyBytes]byte
		ctx.Response.Header.SetBytesV("X-Smtp-Reply", appendSMTPReply(room[:0], replyTooSlow, ""))
	}
	ctx.SetConnectionClose()
	if ok {
		c.lingers.Store(true)
	}
}
