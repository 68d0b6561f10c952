package jetstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	js "github.com/nats-io/nats.go/jetstream"
)

// Misconfigured says how the cluster differs from what the promise needs.
type Misconfigured struct{ Differences []string }

func (m *Misconfigured) Error() string {
	return "jetstream: " + strings.Join(m.Differences, "; ")
}

// batchMode is how a commit is published.
type batchMode int32

const (
	modeAsync  batchMode = iota // one by one, each acknowledged
	modeFast                    // one flow, acknowledged now and then and at its end
	modeAtomic                  // all or nothing, acknowledged at its end

	modes = iota
)

// String is for operators.
func (m batchMode) String() string {
	switch m {
	case modeFast:
		return "in fast batches"
	case modeAtomic:
		return "in atomic batches"
	}
	return "one by one"
}

// serverAtLeast says whether the server we talk to is of that version.
func serverAtLeast(nc *nats.Conn, major, minor int) bool {
	v, _, _ := strings.Cut(nc.ConnectedServerVersion(), "-")
	parts := strings.Split(v, ".")
	if len(parts) < 2 {
		return false
	}
	a, err1 := strconv.Atoi(parts[0])
	b, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (a > major || a == major && b >= minor)
}

// want is the streams as Create makes them, the mail stream first.
func (q *Queue) want() []js.StreamConfig {
	o := &q.o
	maxBytes := int64(-1)
	if o.MaxBytes > 0 {
		maxBytes = o.MaxBytes
	}
	mail := js.StreamConfig{
		Name: o.Stream, Subjects: []string{o.Subject}, Retention: js.WorkQueuePolicy, Discard: js.DiscardNew, Storage: js.FileStorage,
		Replicas: o.Replicas, Duplicates: o.Duplicates, MaxBytes: maxBytes, MaxMsgs: -1, MaxMsgsPerSubject: -1, MaxConsumers: -1, AllowDirect: true,
		Description: "mail on its way to the next hop",
	}
	if serverAtLeast(q.nc, 2, 14) {
		// Duplicates within atomic batches, and fast batches, came with 2.14.
		mail.AllowAtomicPublish, mail.AllowBatchPublish = true, true
	}
	beside := func(name, subject, what string) js.StreamConfig {
		return js.StreamConfig{
			Name: name, Subjects: []string{subject}, Retention: js.LimitsPolicy, Discard: js.DiscardOld, Storage: js.FileStorage, Replicas: o.Replicas,
			MaxMsgsPerSubject: 1, MaxMsgs: -1, MaxBytes: -1, MaxConsumers: -1, AllowDirect: true, Description: what,
		}
	}
	return []js.StreamConfig{
		mail,
		beside(o.stateStream(), o.stateSubject("*"), "what the last attempt said of a message"),
		beside(o.heldStream(), o.heldSubject("*"), "mail held by an operator"),
		beside(o.deadStream(), o.deadSubject("*"), "mail that was refused for good"),
	}
}

// setup creates or verifies the streams. Runs on Open's goroutine, then on watch's.
func (q *Queue) setup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*q.o.Timeout)
	defer cancel()
	f, err := q.prepare(ctx, q.o.Create)
	if err != nil {
		return err
	}
	if wrong := append(f.Wrong, f.Missing...); len(wrong) > 0 {
		return &Misconfigured{wrong}
	}
	if notes := strings.Join(f.Notes, "; "); notes != q.noted { // once, not after each look
		for _, note := range f.Notes {
			q.o.Log.Warn("jetstream: " + note)
		}
		q.noted = notes
	}
	mail := &f.mail.Config
	q.maxMsgSize.Store(int64(mail.MaxMsgSize))
	ways := []batchMode{modeAsync}
	if mail.AllowBatchPublish && q.o.Batch != "off" {
		ways = append(ways, modeFast)
	}
	if mail.AllowAtomicPublish && q.o.Batch != "off" {
		ways = append(ways, modeAtomic)
	}
	mode := modeAsync
	switch {
	case q.o.Batch == "fast" && mail.AllowBatchPublish:
		mode = modeFast
	case q.o.Batch == "atomic" && mail.AllowAtomicPublish:
		mode = modeAtomic
	}
	q.mode.Store(int32(mode))
	if !slices.Equal(ways, q.ways) {
		q.ways = ways
		q.choose.offer(ways...)
	}
	q.mailStream(f.mail.Created)
	q.ready.Store(true)
	return nil
}

// Findings are how streams, bucket and consumer differ from what Options want.
type Findings struct {
	Wrong   []string // what breaks the promise: Open refuses
	Missing []string // what does not exist: Open makes it if Create says so, and else refuses
	Notes   []string // what an operator should know

	mail *js.StreamInfo // the mail stream as it is; nil when it is missing
}

// Check says how streams, bucket and consumer differ from what o wants, without changing anything. An error means that it could not look.
func Check(ctx context.Context, o Options) (*Findings, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	q := &Queue{o: o}
	q.brk.now = o.Now
	q.pub.init(q)
	q.ctx, q.cancel = context.WithCancel(context.Background())
	defer q.cancel()
	if err := q.connect(ctx); err != nil {
		return nil, err
	}
	defer q.nc.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*o.Timeout)
	defer cancel()
	return q.prepare(ctx, false)
}

// prepare looks at everything that is needed, and makes what is missing if create says so.
func (q *Queue) prepare(ctx context.Context, create bool) (*Findings, error) {
	o, f := &q.o, &Findings{}
	for i, want := range q.want() {
		info, err := q.streamInfo(ctx, want.Name)
		if isAPI(err, js.JSErrCodeStreamNotFound) {
			if !create {
				f.Missing = append(f.Missing, fmt.Sprintf("stream %s does not exist", want.Name))
				continue
			}
			if info, err = q.createStream(ctx, want); err == nil && q.ready.Load() {
				o.Log.Error("jetstream: the stream was gone, with all that was in it, and is made again", "stream", want.Name)
			} else if err == nil {
				o.Log.Info("jetstream: stream made", "stream", want.Name, "replicas", info.Config.Replicas)
			}
		}
		if err != nil {
			return nil, err
		}
		wrong, notes := differences(&want, &info.Config)
		f.Wrong, f.Notes = append(f.Wrong, wrong...), append(f.Notes, notes...)
		if i == 0 {
			f.mail = info
			if err := quorum(info); err != nil {
				f.Notes = append(f.Notes, trouble(err))
			}
			switch {
			case o.Batch == "fast" && !info.Config.AllowBatchPublish:
				f.Notes = append(f.Notes, fmt.Sprintf("stream %s takes no fast batches (allow_batched; servers from 2.14 on): messages are published one by one", o.Stream))
			case o.Batch == "atomic" && !info.Config.AllowAtomicPublish:
				f.Notes = append(f.Notes, fmt.Sprintf("stream %s takes no atomic batches (allow_atomic; servers from 2.14 on): messages are published one by one", o.Stream))
			}
		}
	}
	info, err := q.streamInfo(ctx, o.objStream())
	switch {
	case isAPI(err, js.JSErrCodeStreamNotFound) && create:
		if _, err := q.js.CreateObjectStore(ctx, js.ObjectStoreConfig{
			Bucket: o.ObjectBucket, Replicas: o.Replicas, Storage: js.FileStorage, Description: "messages longer than max_payload",
			Metadata: map[string]string{ownerKey: o.Stream},
		}); err != nil {
			return nil, fmt.Errorf("jetstream: create object bucket %s: %w", o.ObjectBucket, err)
		}
	case isAPI(err, js.JSErrCodeStreamNotFound):
		f.Missing = append(f.Missing, fmt.Sprintf("object bucket %s does not exist", o.ObjectBucket))
	case err != nil:
		return nil, err
	default:
		if owner := info.Config.Metadata[ownerKey]; owner != "" && owner != o.Stream {
			f.Notes = append(f.Notes, fmt.Sprintf("object bucket %s is that of the stream %s", o.ObjectBucket, owner))
		}
		wrong := bucketDifferences(o, &info.Config)
		f.Wrong = append(f.Wrong, wrong...)
	}
	var c js.ConsumerInfo
	switch err := q.api(ctx, "CONSUMER.INFO."+o.Stream+"."+o.Durable, struct{}{}, &c); {
	case isAPI(err, js.JSErrCodeConsumerNotFound), isAPI(err, js.JSErrCodeStreamNotFound):
	case err != nil:
		return nil, err
	default:
		wrong, notes := consumerDifferences(q.wantConsumer(), &c.Config)
		f.Wrong, f.Notes = append(f.Wrong, wrong...), append(f.Notes, notes...)
	}
	return f, nil
}

// createStream makes a stream; a server that does not know a feature gets it without.
func (q *Queue) createStream(ctx context.Context, want js.StreamConfig) (*js.StreamInfo, error) {
	stream, err := q.js.CreateStream(ctx, want)
	// A server that is still removing the account's last stream takes the directory away below the new one.
	for tries := 0; tries < 5 && isAPI(err, 10049); tries++ {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		stream, err = q.js.CreateStream(ctx, want)
	}
	if isAPI(err, 10025) { // invalid JSON: it does not know a field
		want.AllowAtomicPublish, want.AllowBatchPublish = false, false
		stream, err = q.js.CreateStream(ctx, want)
	}
	if errors.Is(err, js.ErrStreamNameAlreadyInUse) { // somebody was quicker
		return q.streamInfo(ctx, want.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("jetstream: create stream %s: %w", want.Name, err)
	}
	return stream.CachedInfo(), nil
}

func differences(want, have *js.StreamConfig) (wrong, notes []string) {
	bad := func(format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("stream %s ", want.Name)+fmt.Sprintf(format, args...))
	}
	if have.Retention != want.Retention {
		bad("has retention %v, not %v", have.Retention, want.Retention)
	}
	if have.Replicas < want.Replicas {
		bad("has %d replicas, not %d", have.Replicas, want.Replicas)
	}
	if have.Storage != want.Storage {
		bad("has storage %v, not %v", have.Storage, want.Storage)
	}
	if want.Retention == js.WorkQueuePolicy {
		if have.Discard != want.Discard {
			bad("throws old mail away when it is full (discard %v, not %v)", have.Discard, want.Discard)
		}
		switch {
		case have.Duplicates == 0:
			bad("has no duplicate window (%v is wanted)", want.Duplicates)
		case have.Duplicates < want.Duplicates:
			bad("has a duplicate window of %v, not %v", have.Duplicates, want.Duplicates)
		}
		if have.MaxMsgsPerSubject > 0 {
			bad("has at most %d messages to a subject", have.MaxMsgsPerSubject)
		}
		if want.MaxBytes > 0 && have.MaxBytes != want.MaxBytes {
			notes = append(notes, fmt.Sprintf("stream %s takes at most %d bytes, not %d", want.Name, have.MaxBytes, want.MaxBytes))
		}
	} else {
		if have.MaxMsgsPerSubject != 1 {
			bad("keeps %d messages to a subject, not 1", have.MaxMsgsPerSubject)
		}
		forgetsOld(have, bad)
	}
	cannotKeep(have, bad)
	if have.RePublish != nil {
		notes = append(notes, fmt.Sprintf("stream %s copies each message to %s", want.Name, have.RePublish.Destination))
	}
	for _, subject := range want.Subjects {
		if !slices.Contains(have.Subjects, subject) {
			bad("does not take subject %s", subject)
		}
	}
	return wrong, notes
}

// cannotKeep says what no stream of ours may have.
func cannotKeep(have *js.StreamConfig, bad func(format string, args ...any)) {
	if have.MaxAge > 0 {
		bad("throws mail away after %v", have.MaxAge)
	}
	if have.PersistMode == js.AsyncPersistMode {
		bad("acknowledges what it has not written yet (persist_mode async)")
	}
	if have.NoAck {
		bad("does not acknowledge (no_ack)")
	}
	if have.Sealed || have.DenyDelete || have.DenyPurge {
		bad("does not let messages be deleted")
	}
	if have.Mirror != nil {
		bad("is a mirror")
	}
	if have.SubjectTransform != nil {
		bad("changes subjects (subject_transform)")
	}
	if have.AllowMsgCounter {
		bad("is a counter")
	}
}

// forgetsOld says whether a stream makes room by throwing away.
func forgetsOld(have *js.StreamConfig, bad func(format string, args ...any)) {
	if have.Discard != js.DiscardOld {
		return
	}
	if have.MaxMsgs > 0 {
		bad("throws the oldest away beyond %d messages (discard old)", have.MaxMsgs)
	}
	if have.MaxBytes > 0 {
		bad("throws the oldest away beyond %d bytes (discard old)", have.MaxBytes)
	}
}

func bucketDifferences(o *Options, have *js.StreamConfig) (wrong []string) {
	bad := func(format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("object bucket %s ", o.ObjectBucket)+fmt.Sprintf(format, args...))
	}
	if have.Replicas < o.Replicas {
		bad("has %d replicas, not %d", have.Replicas, o.Replicas)
	}
	if have.Storage != js.FileStorage {
		bad("has storage %v, not %v", have.Storage, js.FileStorage)
	}
	if have.Retention != js.LimitsPolicy {
		bad("has retention %v, not %v", have.Retention, js.LimitsPolicy)
	}
	if have.MaxMsgsPerSubject > 0 {
		bad("has at most %d messages to a subject", have.MaxMsgsPerSubject)
	}
	if !have.AllowRollup {
		bad("does not let a description be replaced (allow_rollup_hdrs)")
	}
	forgetsOld(have, bad)
	cannotKeep(have, bad)
	return wrong
}

func (q *Queue) wantConsumer() *js.ConsumerConfig {
	return &js.ConsumerConfig{
		Durable: q.o.Durable, FilterSubject: q.o.Subject, AckPolicy: js.AckExplicitPolicy, AckWait: q.o.AckWait, MaxDeliver: -1,
		MaxAckPending: q.o.MaxAckPending, DeliverPolicy: js.DeliverAllPolicy, Description: "relays of fastedge",
	}
}

func consumerDifferences(want, have *js.ConsumerConfig) (wrong, notes []string) {
	bad := func(format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("consumer %s ", want.Durable)+fmt.Sprintf(format, args...))
	}
	if have.AckPolicy != want.AckPolicy {
		bad("has ack policy %v, not %v", have.AckPolicy, want.AckPolicy)
	}
	if have.MaxDeliver > 0 {
		bad("gives up after %d deliveries", have.MaxDeliver)
	}
	if have.FilterSubject != "" && have.FilterSubject != want.FilterSubject || len(have.FilterSubjects) > 0 {
		bad("does not take subject %s", want.FilterSubject)
	}
	if have.DeliverSubject != "" {
		bad("is a push consumer")
	}
	if len(have.BackOff) > 0 {
		bad("has a back-off of its own")
	}
	if have.HeadersOnly {
		bad("gives headers only")
	}
	if have.DeliverPolicy != want.DeliverPolicy {
		bad("leaves messages out (deliver policy %v, not %v)", have.DeliverPolicy, want.DeliverPolicy)
	}
	if have.PriorityPolicy != want.PriorityPolicy {
		bad("has a priority policy")
	}
	if have.MaxRequestExpires > 0 && have.MaxRequestExpires < pullExpires {
		bad("lets a request wait for %v, not %v", have.MaxRequestExpires, pullExpires)
	}
	if have.MemoryStorage {
		notes = append(notes, fmt.Sprintf("consumer %s is kept in memory: what is leased when its server is lost is handed on twice", want.Durable))
	}
	if have.InactiveThreshold > 0 {
		notes = append(notes, fmt.Sprintf("consumer %s is removed when no relay asks for %v", want.Durable, have.InactiveThreshold))
	}
	if have.MaxRequestBatch > 0 {
		notes = append(notes, fmt.Sprintf("consumer %s gives at most %d messages at once", want.Durable, have.MaxRequestBatch))
	}
	if have.AckWait != want.AckWait {
		notes = append(notes, fmt.Sprintf("consumer %s has an ack wait of %v, not %v", want.Durable, have.AckWait, want.AckWait))
	}
	if have.MaxAckPending > 0 && have.MaxAckPending < want.MaxAckPending {
		notes = append(notes, fmt.Sprintf("consumer %s lets %d messages be leased or waiting, not %d", want.Durable, have.MaxAckPending, want.MaxAckPending))
	}
	return wrong, notes
}

// consumer is what relays need to know of theirs.
type consumer struct {
	created time.Time
	ackWait time.Duration
	most    int // messages that it gives at once; 0 is no limit
}

// openConsumer creates or verifies the consumer. Only relays do: a work queue has one consumer to a subject, and it may be another program's.
func (q *Queue) openConsumer(ctx context.Context) (*consumer, error) {
	var info js.ConsumerInfo
	err := q.api(ctx, "CONSUMER.INFO."+q.o.Stream+"."+q.o.Durable, struct{}{}, &info)
	if isAPI(err, js.JSErrCodeConsumerNotFound) && q.o.Create {
		var made js.Consumer
		if made, err = q.js.CreateConsumer(ctx, q.o.Stream, *q.wantConsumer()); err == nil {
			info = *made.CachedInfo()
		} else {
			err = fmt.Errorf("jetstream: create consumer %s: %w", q.o.Durable, err)
		}
	}
	if err != nil {
		return nil, err
	}
	if wrong, _ := consumerDifferences(q.wantConsumer(), &info.Config); len(wrong) > 0 {
		return nil, &Misconfigured{wrong}
	}
	return &consumer{created: info.Created, ackWait: max(info.Config.AckWait, time.Second), most: info.Config.MaxRequestBatch}, nil
}

func isAPI(err error, code js.ErrorCode) bool {
	api, ok := errors.AsType[*js.APIError](err)
	return ok && api.ErrorCode == code
}

func isNetError(err error) bool {
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}
