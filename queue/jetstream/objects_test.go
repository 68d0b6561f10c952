package jetstream

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	js "github.com/nats-io/nats.go/jetstream"

	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// put stores an object of its own.
func put(t testing.TB, q *Queue, name string, content []byte) {
	t.Helper()
	err := q.putObject(name, int64(len(content)), func(yield func([]byte) bool) { yield(content) }, time.Now().Add(patience))
	if err != nil {
		t.Fatal(err)
	}
}

func TestSystemsThatShareABucketSweepOnlyWhatIsTheirs(t *testing.T) {
	s := alone(t, t.TempDir())
	a := opened(t, Options{ObjectBucket: "SHARED"}, s)
	later := func() time.Time { return time.Now().Add(48 * time.Hour) }
	other := Options{Stream: "OTHER", Subject: "other.inbound", DeadSubject: "other.dead", ObjectBucket: "SHARED", Now: later}
	b := opened(t, other, s)
	want := mustCommit(t, a, queuetest.NewMaker(nil), 1, 3<<20)
	maker := queuetest.NewMaker(nil)
	orphan, _ := maker.Submission(10, 1)
	put(t, a, orphan.Env.ID.String(), []byte("nobody points to this, but it is not b's"))
	before := messages(t, a, a.o.objStream())
	b.sweepObjects()
	if n := messages(t, a, a.o.objStream()); n != before {
		t.Errorf("%d messages in the bucket, %d before another system's sweep", n, before)
	}
	if d := lease(t, a); !bytes.Equal(text(t, d), want[0].Text) {
		t.Error("the message has changed")
	}
	other.URLs = []string{s.ClientURL()}
	found, err := Check(t.Context(), other)
	if err != nil || !strings.Contains(strings.Join(found.Notes, "\n"), "bucket SHARED is that of the stream MAIL") {
		t.Errorf("check: %+v, %v", found, err)
	}
}

func TestEachStreamHasABucketOfItsOwn(t *testing.T) {
	for stream, want := range map[string]string{"": "MAIL_LARGE", "OTHER": "OTHER_LARGE"} {
		o := Options{Stream: stream}
		if err := o.defaults(); err != nil || o.ObjectBucket != want {
			t.Errorf("%q: %s, %v", stream, o.ObjectBucket, err)
		}
	}
}

// A long message that no relay has come for in days is not one without a message.
func TestTheObjectOfAMessageThatWaitsForDaysIsNotSwept(t *testing.T) {
	s := alone(t, t.TempDir())
	clock := queuetest.NewClock()
	q := opened(t, Options{Now: clock.Now}, s)
	want := mustCommit(t, q, queuetest.NewMaker(nil), 1, 3<<20)
	clock.Add(time.Until(clock.Now())) // as the server's
	clock.Add(72 * time.Hour)
	q.sweepObjects()
	if d := lease(t, q); !bytes.Equal(text(t, d), want[0].Text) {
		t.Error("the message has changed")
	}
}

// The object is there, the message has got no answer; the same message comes again.
func TestALongMessageThatIsSentAgainUsesTheObjectThatIsThere(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	maker := queuetest.NewMaker(nil)
	sub, m := maker.Submission(3<<20, 1)
	for range 3 {
		q.committing.Lock()
		err := q.pack(&submitted{s: sub}, time.Now().Add(patience))
		q.committing.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	chunks := (len(m.Text) + chunkBytes - 1) / chunkBytes
	if n := messages(t, q, q.o.objStream()); n != chunks+1 {
		t.Errorf("%d messages in the bucket, not %d and a description", n, chunks)
	}
	// One that has lost a chunk is no use.
	first, err := q.get(t.Context(), q.o.objStream(), getRequest{NextFor: "$O." + q.o.ObjectBucket + ".C.>"})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.remove(t.Context(), q.o.objStream(), first.seq); err != nil {
		t.Fatal(err)
	}
	q.Commit([]*queue.Submission{sub})
	if sub.Err != nil {
		t.Fatal(sub.Err)
	}
	if n := messages(t, q, q.o.objStream()); n != chunks+1 {
		t.Errorf("%d messages in the bucket, not %d and a description", n, chunks)
	}
	d := lease(t, q)
	if !bytes.Equal(text(t, d), m.Text) {
		t.Error("the message has changed")
	}
	if err := q.Settle(d, []queue.Outcome{deliveredOutcome}, time.Time{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bucket is empty", func() bool { return messages(t, q, q.o.objStream()) == 0 })
}

// What a death left between the chunks and their description goes after a day, without a restart.
func TestChunksWithoutADescriptionAreSweptAfterADay(t *testing.T) {
	s := alone(t, t.TempDir())
	clock := queuetest.NewClock()
	clock.Add(time.Until(clock.Now()))
	q := opened(t, Options{Now: clock.Now}, s)
	chunk := func(stream, unique string) {
		t.Helper()
		_, err := q.publish(t.Context(), q.o.objStream(), &nats.Msg{
			Subject: q.chunkSubject(unique), Data: []byte("a chunk"), Header: nats.Header{hdrStream: {stream}, hdrObject: {"gone"}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	chunk(q.o.Stream, "ours1")
	chunk("OTHER", "theirs")
	kept := mustCommit(t, q, queuetest.NewMaker(nil), 1, 2<<20)
	chunk(q.o.Stream, "ours2")
	chunk(q.o.Stream, "ours2")
	before := messages(t, q, q.o.objStream())
	q.sweepObjects()
	if n := messages(t, q, q.o.objStream()); n != before {
		t.Errorf("swept while they are young: %d of %d are left", n, before)
	}
	clock.Add(25 * time.Hour)
	eventually(t, "all but theirs are swept", func() bool { return messages(t, q, q.o.objStream()) == before-3 })
	if d := lease(t, q); !bytes.Equal(text(t, d), kept[0].Text) {
		t.Error("the message has changed")
	}
}

func TestAnObjectStaysWhenItsMessageMayBeThere(t *testing.T) {
	p := &publisher{q: &Queue{}, wake: make(chan struct{}, 1), items: []itemState{sent, resend, done}}
	p.f = &flight{n: 3, unsure: make([]bool, 3)}
	if todo := p.begin(); len(todo) != 2 || fmt.Sprint(p.f.unsure) != "[true false false]" {
		t.Errorf("%v to do, unsure of %v", todo, p.f.unsure)
	}
}

func TestStreamsAndConsumersThatBreakThePromiseAreRefused(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	o := Options{URLs: []string{s.ClientURL()}, Log: quiet}
	ctx := t.Context()
	consumer := func(change func(*js.ConsumerConfig)) func() {
		return func() {
			t.Helper()
			c := *q.wantConsumer()
			change(&c)
			if _, err := q.js.CreateConsumer(ctx, q.o.Stream, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	stream := func(name string, change func(*js.StreamConfig)) func() {
		return func() { t.Helper(); alter(t, q, name, change) }
	}
	few := func(c *js.StreamConfig) { c.MaxMsgs = 3 }
	for _, test := range []struct {
		make func()
		want string
		note bool
	}{
		{consumer(func(c *js.ConsumerConfig) { c.HeadersOnly = true }), "consumer fastedge gives headers only", false},
		{consumer(func(c *js.ConsumerConfig) { c.MaxRequestExpires = time.Second }), "lets a request wait for 1s", false},
		{consumer(func(c *js.ConsumerConfig) { c.MemoryStorage = true }), "is kept in memory", true},
		{consumer(func(c *js.ConsumerConfig) { c.InactiveThreshold = time.Hour }), "is removed when no relay asks for 1h", true},
		{consumer(func(c *js.ConsumerConfig) { c.MaxRequestBatch = 7 }), "gives at most 7 messages at once", true},
		{stream("MAIL_HELD", few), "stream MAIL_HELD throws the oldest away beyond 3 messages", false},
		{stream("MAIL_DEAD", func(c *js.StreamConfig) { c.MaxBytes = 10000 }), "stream MAIL_DEAD throws the oldest away beyond 10000 bytes", false},
		{stream("MAIL_STATE", few), "stream MAIL_STATE throws the oldest away", false},
		{stream("OBJ_MAIL_LARGE", func(c *js.StreamConfig) { c.MaxMsgs, c.Discard = 9, js.DiscardOld }), "object bucket MAIL_LARGE throws the oldest away", false},
		{stream("OBJ_MAIL_LARGE", func(c *js.StreamConfig) { c.AllowRollup = false }), "does not let a description be replaced", false},
		{stream("MAIL", func(c *js.StreamConfig) {
			c.SubjectTransform = &js.SubjectTransformConfig{Source: "mail.inbound", Destination: "elsewhere"}
		}), "stream MAIL changes subjects", false},
		{stream("MAIL", func(c *js.StreamConfig) { c.RePublish = &js.RePublish{Source: ">", Destination: "copy.>"} }), "stream MAIL copies each message to copy.>", true},
		{func() {
			// Not with batches, and not by an update.
			if err := q.js.DeleteStream(ctx, "MAIL"); err != nil {
				t.Fatal(err)
			}
			c := q.want()[0]
			c.AllowAtomicPublish, c.AllowBatchPublish, c.PersistMode = false, false, js.AsyncPersistMode
			if _, err := q.js.CreateStream(ctx, c); err != nil {
				t.Fatal(err)
			}
		}, "stream MAIL acknowledges what it has not written yet", false},
	} {
		for _, name := range []string{"MAIL", "MAIL_HELD", "MAIL_DEAD", "MAIL_STATE", "OBJ_MAIL_LARGE"} { // all as they should be
			if err := q.js.DeleteStream(ctx, name); err != nil && !errors.Is(err, js.ErrStreamNotFound) {
				t.Fatal(err)
			}
		}
		if err := q.setup(ctx); err != nil {
			t.Fatal(err)
		}
		test.make()
		found, err := Check(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		said := found.Wrong
		if test.note {
			said = found.Notes
		}
		if !strings.Contains(strings.Join(said, "\n"), test.want) || !test.note == (len(found.Wrong) == 0) {
			t.Errorf("not %q: %+v", test.want, found)
		}
		q2, err := Open(ctx, o)
		if wrong, ok := errors.AsType[*Misconfigured](err); ok == test.note {
			t.Errorf("open: %v, %v", wrong, err)
		}
		if err == nil {
			q2.Close()
		}
	}
}

// Somebody makes the consumer leave bodies out while mail is there.
func TestAConsumerThatLeavesBodiesOutDestroysNothing(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	maker := queuetest.NewMaker(nil)
	mustCommit(t, q, maker, 1, 1000)
	if err := q.Settle(lease(t, q), []queue.Outcome{deliveredOutcome}, time.Time{}); err != nil {
		t.Fatal(err)
	}
	c := *q.wantConsumer()
	c.HeadersOnly = true
	if _, err := q.js.UpdateConsumer(t.Context(), q.o.Stream, c); err != nil {
		t.Fatal(err)
	}
	want := mustCommit(t, q, maker, 2, 1000)
	first, second := lease(t, q), lease(t, q)
	if !bytes.Equal(text(t, first), want[0].Text) {
		t.Error("the message has changed")
	}
	if err := q.Kill(second, []queue.Outcome{refusedOutcome}, "refused"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is dead", func() bool { return messages(t, q, q.o.deadStream()) == 1 })
	var b bytes.Buffer
	if err := q.Cat(want[1].ID, &b); err != nil || !bytes.Equal(b.Bytes(), want[1].Text) {
		t.Errorf("the dead one: %d bytes, %v", b.Len(), err)
	}
}

// What is set aside is read again before the original goes.
func TestTheOriginalStaysWhenItsCopyIsNotKept(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	want := mustCommit(t, q, queuetest.NewMaker(nil), 1, 1000)
	alter(t, q, q.o.deadStream(), func(c *js.StreamConfig) {
		c.SubjectTransform = &js.SubjectTransformConfig{Source: q.o.deadSubject("*"), Destination: "elsewhere.{{wildcard(1)}}"}
	})
	if err := q.Kill(lease(t, q), []queue.Outcome{refusedOutcome}, "refused"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an operator is told", func() bool { return strings.Contains(q.Stats().Alarm, "not kept") })
	if n := messages(t, q, q.o.Stream); n != 1 {
		t.Errorf("%d originals", n)
	}
	alter(t, q, q.o.deadStream(), func(c *js.StreamConfig) { c.SubjectTransform = nil })
	eventually(t, "it is set aside", func() bool { return messages(t, q, q.o.Stream) == 0 })
	var b bytes.Buffer
	if err := q.Cat(want[0].ID, &b); err != nil || !bytes.Equal(b.Bytes(), want[0].Text) {
		t.Errorf("%d bytes, %v", b.Len(), err)
	}
}

func TestALimitThatSomebodySetLaterIsAnAlarm(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	alter(t, q, q.o.heldStream(), func(c *js.StreamConfig) { c.MaxMsgs = 3 })
	if alarm := q.Stats().Alarm; !strings.Contains(alarm, "MAIL_HELD throws the oldest away") {
		t.Errorf("alarm %q", alarm)
	}
}
