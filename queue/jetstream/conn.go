package jetstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	js "github.com/nats-io/nats.go/jetstream"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// Queue is a connection to a stream. It is a queue.Backend, a queue.Source and a queue.Inspector; all methods but Commit and Close may be
// called from any goroutine at any time.
type Queue struct {
	o       Options
	nc      *nats.Conn
	js      js.JetStream
	inbox   string // subjects of answers start with it
	pulled  *nats.Subscription
	brk     breaker
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	loops   sync.WaitGroup
	probeAt chan struct{} // capacity 1: look at the cluster now

	committing sync.Mutex // held by Commit
	pub        publisher
	scratch    []byte // a message's body while it is published; protected by committing

	ready      atomic.Bool  // streams have been verified
	maxMsgSize atomic.Int64 // longest message that the stream takes, header included; 0 is no limit of its own
	mode       atomic.Int32 // batchMode; not with auto
	ways       []batchMode  // that setup has found
	choose     chooser      // of auto
	fullUntil  atomic.Int64 // by Options.Now, nanoseconds: the stream refused a message for want of room

	committed, commits, failures, damaged atomic.Uint64
	asyncErr                              atomic.Pointer[string] // what the server last complained of

	mu       sync.Mutex
	closed   bool
	byID     map[envelope.ID]*entry // messages that are here: fetched, leased, waiting, or being settled
	buffer   []*entry               // fetched and not yet leased, oldest first
	waiting  dueHeap
	leases   map[*queue.Delivery]*entry
	leasers  []chan struct{} // each is waiting for a message
	pull     pull
	consumer *consumer      // nil until the first Lease
	running  sync.WaitGroup // settlements, and the binding of the consumer
	closing  chan struct{}  // closed when Close begins
	// What was settled and is not with the cluster yet.
	unsettled struct {
		messages, max int
		bytes         int64 // of their data
		stuck         int   // those that have failed stuckTries times
		reason        string
		since         time.Time
	}
	// Requests of settlements with the cluster now. What only acknowledges does not queue behind what writes: the latter may be impossible for long.
	acks, moves chan struct{}
	sweeping    sync.Mutex
	swept       struct{ descriptions, chunks uint64 } // where the next sweep goes on; protected by sweeping

	mailMade time.Time // when the mail stream was made: with another one sequence numbers mean other messages

	noted     string      // what setup has told the log
	suspected atomic.Bool // a stream seems to be gone: watch verifies all of them

	oldest struct { // cache of Stats
		sync.Mutex
		seq [3]uint64
		at  [3]time.Time
	}
}

// Open connects, and creates or verifies the streams. A cluster that can't be reached is no error: commits fail with ErrUnavailable until
// it is there. Wrong credentials, and streams that can't keep the promise, are errors; a *Misconfigured names each difference.
func Open(ctx context.Context, o Options) (*Queue, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	q := &Queue{
		o: o, probeAt: make(chan struct{}, 1), byID: map[envelope.ID]*entry{}, leases: map[*queue.Delivery]*entry{},
		acks: make(chan struct{}, maxAcks), moves: make(chan struct{}, maxMoves), closing: make(chan struct{}),
	}
	q.unsettled.max = maxUnsettled
	q.brk.now = o.Now
	q.ctx, q.cancel = context.WithCancel(context.Background())
	q.pub.init(q)
	err := q.connect(ctx)
	if err == nil {
		err = q.setup(ctx)
	}
	if err != nil {
		var wrong *Misconfigured
		if errors.As(err, &wrong) || !Transient(err) {
			q.cancel()
			if q.nc != nil {
				q.nc.Close()
			}
			return nil, err
		}
		if q.nc == nil {
			if err := q.connectLater(); err != nil {
				q.cancel()
				return nil, err
			}
		}
		q.brk.trip(trouble(err))
		o.Log.Error("jetstream: not reachable; mail is refused with 451 until it is", "error", err)
	}
	q.loops.Go(q.watch)
	return q, nil
}

// connect tries each server once.
func (q *Queue) connect(ctx context.Context) error {
	options, err := q.natsOptions()
	if err != nil {
		return err
	}
	dial := min(q.o.Timeout, 2*time.Second)
	if deadline, ok := ctx.Deadline(); ok {
		dial = min(dial, max(time.Until(deadline)/time.Duration(len(q.o.URLs)), time.Millisecond))
	}
	options = append(options, nats.Timeout(dial))
	nc, err := nats.Connect(strings.Join(q.o.URLs, ","), options...)
	if refusedByTLS(err) { // or it was on its way down
		nc, err = nats.Connect(strings.Join(q.o.URLs, ","), options...)
	}
	if err != nil {
		hint := ""
		if refusedByTLS(err) && q.o.Cert == "" {
			hint = " (does it want a certificate of ours?)"
		}
		return fmt.Errorf("jetstream: connect to %s: %w%s", q.servers(), err, hint)
	}
	return q.use(nc)
}

// refusedByTLS says that the server, or we, ended the connection for what was in the handshake. With TLS 1.3 a client has often
// completed it by then, and may see the end of the connection before it sees the server's alert.
func refusedByTLS(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return true // an alert
	}
	timeout, ok := errors.AsType[net.Error](err)
	return errors.Is(err, nats.ErrTLS) && !(ok && timeout.Timeout())
}

// connectLater gives a connection that goes on trying.
func (q *Queue) connectLater() error {
	options, err := q.natsOptions()
	if err != nil {
		return err
	}
	nc, err := nats.Connect(strings.Join(q.o.URLs, ","), append(options, nats.Timeout(time.Second), nats.RetryOnFailedConnect(true))...)
	if err != nil {
		return fmt.Errorf("jetstream: connect to %s: %w", q.servers(), err)
	}
	return q.use(nc)
}

func (q *Queue) use(nc *nats.Conn) (err error) {
	q.nc = nc
	q.inbox = nc.NewInbox()
	if q.js, err = js.New(nc, js.WithDefaultTimeout(q.o.Timeout)); err != nil {
		return fmt.Errorf("jetstream: %w", err)
	}
	listen := func(tail string, handler nats.MsgHandler) (sub *nats.Subscription) {
		if err != nil {
			return nil
		}
		if sub, err = nc.Subscribe(q.inbox+tail, handler); err == nil {
			// The window and the prefetch bound what can come; nats.go's own bounds would drop silently.
			err = sub.SetPendingLimits(-1, -1)
		}
		return sub
	}
	listen(".p.*.*", q.pub.acked)
	listen(".b.>", q.pub.batchAcked)
	q.pulled = listen(".f.*", q.fetched)
	if err != nil {
		return fmt.Errorf("jetstream: %w", err)
	}
	return nil
}

// servers are the URLs without what may be secret in them.
func (q *Queue) servers() string {
	shown := make([]string, len(q.o.URLs))
	for i, url := range q.o.URLs {
		scheme, rest, ok := strings.Cut(url, "://")
		if !ok {
			scheme, rest = "nats", url
		}
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			rest = rest[at+1:]
		}
		shown[i] = scheme + "://" + rest
	}
	return strings.Join(shown, ", ")
}

func (q *Queue) natsOptions() ([]nats.Option, error) {
	o := &q.o
	options := []nats.Option{
		nats.Name("fastedge"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 250*time.Millisecond),
		// Nothing is kept for a server that is not there: it would be published late, after the client got its 451.
		nats.ReconnectBufSize(-1),
		nats.FlusherTimeout(o.Timeout), // a server that does not read must not block a commit
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.IgnoreAuthErrorAbort(), // a cluster that refuses us for a while is one that is away
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { q.disconnected(err) }),
		nats.ReconnectHandler(func(*nats.Conn) { q.reconnected() }),
		nats.ConnectHandler(func(*nats.Conn) { q.reconnected() }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { q.complained(err) }),
	}
	if o.User != "" {
		options = append(options, nats.UserInfo(o.User, o.Password))
	}
	if o.Credentials != "" {
		options = append(options, nats.UserCredentials(o.Credentials))
	}
	if o.CA != "" {
		options = append(options, nats.RootCAs(o.CA))
	}
	if o.Cert != "" || o.Key != "" {
		options = append(options, nats.ClientCert(o.Cert, o.Key))
	}
	return options, nil
}

func (q *Queue) disconnected(err error) {
	if q.ctx.Err() != nil {
		return
	}
	reason := "connection lost"
	if err != nil {
		reason += ": " + err.Error()
	}
	if q.brk.trip(reason) {
		q.o.Log.Warn("jetstream: connection lost; mail is refused with 451 until it is back", "error", err)
	}
	q.pub.interrupt()
}

func (q *Queue) reconnected() {
	q.pub.interrupt()
	q.choose.again()
	q.mu.Lock()
	q.pull.lost()
	q.mu.Unlock()
	q.probeNow()
}

// complained takes what the server says of something sent earlier, such as a missing permission.
func (q *Queue) complained(err error) {
	if q.ctx.Err() != nil || err == nil {
		return
	}
	text := printable(err.Error(), maxReplyBytes)
	if old := q.asyncErr.Swap(&text); old == nil || *old != text {
		q.o.Log.Warn("jetstream: the server complains", "error", err)
	}
}

func (q *Queue) probeNow() {
	select {
	case q.probeAt <- struct{}{}:
	default:
	}
}

// watch runs until Close: it probes a cluster that does not answer, and keeps leases alive.
func (q *Queue) watch() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	beat := time.NewTicker(q.o.AckWait / 3)
	defer beat.Stop()
	var verified, sweep time.Time
	lastError := ""
	for {
		select {
		case <-q.ctx.Done():
			return
		case <-beat.C:
			q.heartbeat()
			continue
		case <-ticker.C:
		case <-q.probeAt:
		}
		select { // what follows may wait for the cluster, again and again: leases come first
		case <-beat.C:
			q.heartbeat()
		default:
		}
		if q.brk.is(stateOpen) || !q.ready.Load() {
			if err := q.probe(); err == nil {
				q.brk.probed()
				lastError = ""
			} else {
				q.brk.trip(trouble(err))
				if text := err.Error(); text != lastError && q.ctx.Err() == nil && !errors.Is(err, nats.ErrDisconnected) {
					q.o.Log.Error("jetstream: the cluster does not answer as it should", "error", err)
					lastError = text
				}
			}
		}
		if now := time.Now(); q.ready.Load() && now.Sub(verified) >= tick && q.suspected.Swap(false) {
			verified = now
			q.verify()
		}
		if q.ready.Load() && !q.brk.is(stateOpen) {
			q.repull()
			if now := q.o.Now(); !now.Before(sweep) {
				sweep = now.Add(sweepEvery)
				q.loops.Go(q.sweepObjects)
			}
		}
	}
}

// probe asks whether a commit could succeed now: connected, streams verified, the mail stream has a leader, and enough of its servers are there.
func (q *Queue) probe() error {
	if !q.nc.IsConnected() {
		return nats.ErrDisconnected
	}
	ctx, cancel := q.looking()
	defer cancel()
	if !q.ready.Load() {
		return q.setup(ctx)
	}
	info, err := q.streamInfo(ctx, q.o.Stream)
	if isAPI(err, js.JSErrCodeStreamNotFound) {
		return q.setup(ctx)
	}
	if err != nil {
		return err
	}
	return quorum(info)
}

// looking bounds what watch asks, which keeps leases alive besides.
func (q *Queue) looking() (context.Context, context.CancelFunc) {
	return context.WithTimeout(q.ctx, min(q.o.Timeout, max(q.o.AckWait/3, 2*time.Second)))
}

// suspect is told that a stream did not answer as one that is there. It may be looking for a leader, or have been deleted.
func (q *Queue) suspect() {
	q.suspected.Store(true)
	q.probeNow()
}

// verify makes streams again that somebody has deleted, or refuses mail until they are there. A cluster that does not answer is no news here.
func (q *Queue) verify() {
	ctx, cancel := q.looking()
	defer cancel()
	err := q.setup(ctx)
	if _, wrong := errors.AsType[*Misconfigured](err); !wrong {
		return
	}
	q.ready.Store(false)
	q.brk.trip(trouble(err))
	q.o.Log.Error("jetstream: mail is refused with 451", "error", err)
}

func quorum(info *js.StreamInfo) error {
	c := info.Cluster
	if c == nil || info.Config.Replicas < 2 {
		return nil
	}
	if c.Leader == "" {
		return fmt.Errorf("jetstream: stream %s has no leader", info.Config.Name)
	}
	there := 1
	for _, peer := range c.Replicas {
		if !peer.Offline {
			there++
		}
	}
	if there*2 <= info.Config.Replicas {
		return fmt.Errorf("jetstream: stream %s has no quorum: %d of %d servers", info.Config.Name, there, info.Config.Replicas)
	}
	return nil
}

// Close makes what was settled durable as far as the cluster answers within Timeout, gives leased messages back, and disconnects.
func (q *Queue) Close() error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return queue.ErrClosed
	}
	q.closed = true
	close(q.closing)
	for _, ch := range q.leasers {
		close(ch)
	}
	q.leasers = nil
	q.mu.Unlock()

	settled := make(chan struct{})
	go func() { q.running.Wait(); close(settled) }()
	timer := time.NewTimer(q.o.Timeout)
	defer timer.Stop()
	select {
	case <-settled:
	case <-timer.C:
	}
	if q.nc.IsConnected() {
		// First nobody asks for messages any more, and what is on its way here comes in: else it would come back here, or get lost for AckWait.
		drained := make(chan struct{})
		q.pulled.SetClosedHandler(func(string) { close(drained) })
		if q.pulled.Drain() == nil {
			timer.Reset(q.o.Timeout)
			select {
			case <-drained:
			case <-timer.C:
			}
		}
		q.giveBack()
		q.nc.FlushTimeout(q.o.Timeout)
	}
	q.cancel()
	q.nc.Close()
	q.committing.Lock() // a commit under way has seen the connection close
	defer q.committing.Unlock()
	q.loops.Wait()
	q.running.Wait()
	return nil
}

// Transient says of an error of Check whether Open would go on in spite of it, for waiting may help: the cluster is not there, has no leader
// yet, or has no JetStream.
func Transient(err error) bool {
	if refusedByTLS(err) {
		return false
	}
	if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) ||
		errors.Is(err, nats.ErrSecureConnRequired) || errors.Is(err, nats.ErrSecureConnWanted) || errors.Is(err, nats.ErrNkeysNotSupported) {
		return false
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return false
	}
	if api, ok := errors.AsType[*js.APIError](err); ok {
		return api.Code == 503
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoServers) || errors.Is(err, nats.ErrDisconnected) ||
		errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, nats.ErrStaleConnection) ||
		isNetError(err)
}

// trouble is err for an alarm.
func trouble(err error) string {
	return printable(strings.TrimPrefix(err.Error(), "jetstream: "), maxReplyBytes)
}

// api asks the JetStream API and reads the answer into out.
func (q *Queue) api(ctx context.Context, what string, in, out any) error {
	request, err := json.Marshal(in)
	if err != nil {
		panic("jetstream: request: " + err.Error())
	}
	m, err := q.nc.RequestWithContext(ctx, "$JS.API."+what, request)
	if err != nil {
		return fmt.Errorf("jetstream: %s: %w", what, err)
	}
	if bytes.Contains(m.Data, []byte(`"error":`)) { // cheap: the answer may be a long message, in base 64
		var failed struct {
			Error *js.APIError `json:"error"`
		}
		if err := json.Unmarshal(m.Data, &failed); err != nil {
			return fmt.Errorf("jetstream: %s: %w", what, err)
		}
		if failed.Error != nil {
			return fmt.Errorf("jetstream: %s: %w", what, failed.Error)
		}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Data, out); err != nil {
		return fmt.Errorf("jetstream: %s: %w", what, err)
	}
	return nil
}

func (q *Queue) streamInfo(ctx context.Context, name string) (*js.StreamInfo, error) {
	var info js.StreamInfo
	return &info, q.api(ctx, "STREAM.INFO."+name, struct{}{}, &info)
}

// getRequest asks for one message: Seq alone, the last of a subject, or the first of a subject from Seq on.
type getRequest struct {
	Seq     uint64 `json:"seq,omitempty"`
	LastFor string `json:"last_by_subj,omitempty"`
	NextFor string `json:"next_by_subj,omitempty"`
}

// get asks the stream's leader, whose answer is never behind. It gives ErrNotFound.
func (q *Queue) get(ctx context.Context, stream string, what getRequest) (*stored, error) {
	var answer struct {
		Message *struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := q.api(ctx, "STREAM.MSG.GET."+stream, what, &answer); err != nil {
		if api, ok := errors.AsType[*js.APIError](err); ok && api.ErrorCode == js.JSErrCodeMessageNotFound {
			return nil, queue.ErrNotFound
		}
		return nil, err
	}
	if answer.Message == nil {
		return nil, queue.ErrNotFound
	}
	a := answer.Message
	m := &stored{stream: stream, seq: a.Seq, subject: a.Subject, time: a.Time, data: a.Data}
	if len(a.Header) > 0 {
		header, err := nats.DecodeHeadersMsg(a.Header)
		if err != nil {
			return nil, fmt.Errorf("jetstream: message %d of %s: %w", a.Seq, stream, err)
		}
		m.header = header
	}
	return m, nil
}

// purge removes all messages of one subject.
func (q *Queue) purge(ctx context.Context, stream, subject string) error {
	return q.api(ctx, "STREAM.PURGE."+stream, struct {
		Filter string `json:"filter"`
	}{subject}, nil)
}

// remove removes one message. One that is gone is no error.
func (q *Queue) remove(ctx context.Context, stream string, seq uint64) error {
	err := q.api(ctx, "STREAM.MSG.DELETE."+stream, struct {
		Seq     uint64 `json:"seq"`
		NoErase bool   `json:"no_erase"`
	}{seq, true}, nil)
	if api, ok := errors.AsType[*js.APIError](err); ok && api.Code != 503 {
		// The servers have several codes for a sequence number without a message; a look tells.
		if _, look := q.get(ctx, stream, getRequest{Seq: seq}); errors.Is(look, queue.ErrNotFound) {
			return nil
		}
	}
	return err
}

// publish publishes one message and waits for the acknowledgement of that stream.
func (q *Queue) publish(ctx context.Context, stream string, m *nats.Msg) (seq uint64, err error) {
	ack, err := q.js.PublishMsg(ctx, m, js.WithExpectStream(stream))
	if err != nil {
		return 0, fmt.Errorf("jetstream: publish to %s: %w", m.Subject, err)
	}
	return ack.Sequence, nil
}
