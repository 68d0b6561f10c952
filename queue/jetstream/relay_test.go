package jetstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	js "github.com/nats-io/nats.go/jetstream"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// A relay dies with messages leased and waiting: another one gets them, and knows which recipients have theirs.
func TestAnotherRelayGoesOnWhereOneDied(t *testing.T) {
	s := alone(t, t.TempDir())
	o := Options{AckWait: time.Second}
	edge := opened(t, o, s)
	maker := queuetest.NewMaker(nil)
	var subs []*queue.Submission
	var messages []queuetest.Message
	for range 3 {
		sub, m := maker.Submission(100, 2)
		subs, messages = append(subs, sub), append(messages, m)
	}
	edge.Commit(subs)

	dies := opened(t, o, s)
	if err := dies.Settle(lease(t, dies), []queue.Outcome{deliveredOutcome, deferredOutcome}, time.Now()); err != nil {
		t.Fatal(err)
	}
	settled, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dies.settled(settled)
	lease(t, dies)
	lease(t, dies)
	dies.die()

	lives := opened(t, o, s)
	attempts := map[envelope.ID]int{}
	for range messages {
		d := lease(t, lives)
		attempts[d.Env.ID] = d.Attempts
		if want := d.Env.ID == messages[0].ID; want != (d.Outcomes[0] == deliveredOutcome && d.Outcomes[1] == deferredOutcome) {
			t.Errorf("%s: outcomes %v", d.Env.ID, d.Outcomes)
		}
		if err := lives.Settle(d, []queue.Outcome{deliveredOutcome, deliveredOutcome}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(attempts) != 3 || attempts[messages[0].ID] != 1 || attempts[messages[1].ID] != 0 {
		t.Errorf("attempts %v", attempts)
	}
	eventually(t, "nothing is left", func() bool {
		st := edge.Stats()
		return st.Alarm == "" && st.Messages["ready"]+st.Messages["leased"]+st.Messages["waiting"] == 0 && st.Bytes == 0
	})
}

// What waits at a relay is held or dropped from another machine: the relay does not count it any more.
func TestStatsLeaveOutWhatWasHeldOrDroppedElsewhere(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	m := mustCommit(t, q, queuetest.NewMaker(nil), 3, 10)
	for range m {
		if err := q.Settle(lease(t, q), []queue.Outcome{deferredOutcome}, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all wait", func() bool { return q.Stats().Messages["waiting"] == 3 && messages(t, q, q.o.stateStream()) == 3 })
	elsewhere := opened(t, Options{Hold: "no next hop"}, s)
	if err := elsewhere.Hold(m[0].ID, "a look"); err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Drop(m[1].ID); err != nil {
		t.Fatal(err)
	}
	if st := q.Stats().Messages; st["waiting"] != 1 || st["held"] != 1 || st["ready"]+st["leased"]+st["dead"] != 0 {
		t.Errorf("%v", st)
	}
}

// A relay tells the consumer that it lives, for all that it has leased, and for nothing that waits or is done.
func TestHeartbeatsKeepLeasesAlive(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{AckWait: time.Hour}, s)
	mustCommit(t, q, queuetest.NewMaker(nil), 3, 10)
	leased, waits, done := lease(t, q), lease(t, q), lease(t, q)
	if err := q.Settle(waits, []queue.Outcome{deferredOutcome}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := q.Settle(done, []queue.Outcome{deliveredOutcome}, time.Time{}); err != nil {
		t.Fatal(err)
	}
	within, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	q.settled(within)
	if err := q.nc.Flush(); err != nil { // what it has said of them is with the server, and not on its way
		t.Fatal(err)
	}
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	acks, err := nc.SubscribeSync("$JS.ACK.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	q.mu.Lock()
	want := q.leases[leased].ack
	q.mu.Unlock()
	q.heartbeat()
	if err := q.nc.Publish("$JS.ACK.end", nil); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		m, err := acks.NextMsgWithContext(within)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject == "$JS.ACK.end" {
			if n != 1 {
				t.Errorf("%d signs of life", n)
			}
			break
		}
		if m.Subject != want || string(m.Data) != "+WPI" {
			t.Errorf("%s: %q", m.Subject, m.Data)
		}
	}
}

// What an operator does on one machine counts on all.
func TestCommandsWorkOnMessagesOfOtherRelays(t *testing.T) {
	s := alone(t, t.TempDir())
	q, cli := opened(t, Options{}, s), opened(t, Options{}, s)
	maker := queuetest.NewMaker(nil)
	messages := mustCommit(t, q, maker, 3, 100)
	later := time.Now().Add(time.Hour)
	for range messages {
		if err := q.Settle(lease(t, q), []queue.Outcome{deferredOutcome}, later); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	q.settled(ctx)
	for _, m := range messages {
		e, err := cli.Show(m.ID)
		if err != nil || e.State != queue.Waiting || !e.Next.Equal(later) || e.Attempts != 1 || e.Recipients[0].Reply != deferredOutcome.Reply {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if st := cli.Stats(); st.Messages["waiting"] != 3 || st.Messages["ready"] != 0 || st.Messages["leased"] != 0 {
		t.Errorf("stats %+v", st)
	}
	if err := cli.Drop(messages[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := cli.Hold(messages[1].ID, "on request"); err != nil {
		t.Fatal(err)
	}
	if err := cli.Retry(messages[2].ID); err != nil {
		t.Fatal(err)
	}
	if err := cli.Retry(messages[1].ID); err == nil {
		t.Error("a held message was retried")
	}
	d := lease(t, q) // it had asked for messages before
	if d.Env.ID != messages[2].ID || d.Attempts != 1 {
		t.Fatalf("leased %s after %d attempts", d.Env.ID, d.Attempts)
	}
	if err := q.Kill(d, d.Outcomes, "too old"); err != nil {
		t.Fatal(err)
	}
	if e, err := q.Show(messages[1].ID); err != nil || e.State != queue.Held || e.Reason != "on request" {
		t.Errorf("held: %+v, %v", e, err)
	}
	q.settled(ctx)
	var listed []string
	if err := cli.List(func(e queue.Entry) bool { listed = append(listed, e.State.String()); return true }); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(listed, " "); got != "held dead" {
		t.Errorf("listed %s", got)
	}
	if err := cli.Release(messages[1].ID); err != nil {
		t.Fatal(err)
	}
	if d := lease(t, q); d.Env.ID != messages[1].ID || d.Attempts != 1 {
		t.Errorf("released: %s after %d attempts", d.Env.ID, d.Attempts)
	}
}

// Another program takes the mail with nothing but what the header says; and nothing of ours stands in its way.
func TestAnotherProgramCanConsumeTheStream(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{Hold: "no next hop"}, s)
	sub, m := queuetest.NewMaker(nil).Submission(500, 3)
	q.Commit([]*queue.Submission{sub})
	if sub.Err != nil {
		t.Fatal(sub.Err)
	}
	if e, err := q.Show(m.ID); err != nil || e.State != queue.Held || e.Reason != "no next hop" {
		t.Errorf("%+v, %v", e, err)
	}
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	api, err := js.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c, err := api.CreateConsumer(t.Context(), "MAIL", js.ConsumerConfig{Durable: "theirs", AckPolicy: js.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Next(js.FetchMaxWait(patience))
	if err != nil {
		t.Fatal(err)
	}
	h := got.Headers()
	if !bytes.Equal(got.Data(), m.Text) || h.Get("Fastedge-From") != "sender-1@example.net" || len(h.Values("Fastedge-To")) != 3 ||
		h.Get("Fastedge-Id") != m.ID.String() || h.Get("Fastedge-Client") != "192.0.2.1:4711" || got.Subject() != "mail.inbound" {
		t.Errorf("%v", h)
	}
	if err := got.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Show(m.ID); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("after their acknowledgement: %v", err)
	}
}

// What others publish on our subject is set aside, not lost, and does not stop anything.
func TestForeignAndDamagedMessagesAreSetAside(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	maker := queuetest.NewMaker(nil)
	sub, m := maker.Submission(100, 1)
	good := asSent(t, sub, m.Text)
	ctx := t.Context()
	if _, err := q.js.PublishMsg(ctx, &nats.Msg{Subject: "mail.inbound", Data: []byte("not a mail")}); err != nil {
		t.Fatal(err)
	}
	if _, err := q.js.PublishMsg(ctx, &nats.Msg{Subject: "mail.inbound"}); err != nil {
		t.Fatal(err)
	}
	if _, err := q.js.PublishMsg(ctx, &nats.Msg{Subject: "mail.inbound", Header: good.header, Data: append(bytes.Clone(m.Text), '!')}); err != nil {
		t.Fatal(err)
	}
	missing, _ := maker.Submission(100, 1)
	h := asSent(t, missing, nil).header
	h.Set(hdrObject, "no-such-object")
	if _, err := q.js.PublishMsg(ctx, &nats.Msg{Subject: "mail.inbound", Header: h}); err != nil {
		t.Fatal(err)
	}
	last := mustCommit(t, q, maker, 1, 10)
	if d := lease(t, q); d.Env.ID != last[0].ID {
		t.Fatalf("leased %s", d.Env.ID)
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	q.settled(within)
	states := map[queue.State]int{}
	if err := q.List(func(e queue.Entry) bool { states[e.State]++; return true }); err != nil {
		t.Fatal(err)
	}
	if states[queue.Damaged] != 4 || states[queue.Leased] != 1 {
		t.Errorf("listed %v", states)
	}
	if err := q.Cat(m.ID, io.Discard); !errors.Is(err, queue.ErrCorrupt) {
		t.Errorf("cat of a damaged message: %v", err)
	}
	if err := q.Hold(m.ID, ""); !errors.Is(err, queue.ErrCorrupt) {
		t.Errorf("hold of a damaged message: %v", err)
	}
	if st := q.Stats(); st.Damaged != 4 || st.Messages["dead"] != 4 {
		t.Errorf("%+v", st)
	}
}

// Messages longer than max_payload, and envelopes too long for a header: objects hold them, and go when they are done.
func TestObjectsComeAndGoWithTheirMessages(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	maker := queuetest.NewMaker(nil)
	objects := func() uint64 {
		t.Helper()
		info, err := q.streamInfo(t.Context(), q.o.objStream())
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Msgs
	}
	sub, m := maker.Submission(maxInMemory+1_000_000, 0)
	for i := range 1500 {
		sub.Env.AddRecipient(fmt.Appendf(nil, "%0200d@example.org", i), nil, 0)
	}
	m.Binary = sub.Env.AppendBinary(nil)
	q.Commit([]*queue.Submission{sub})
	if sub.Err != nil {
		t.Fatal(sub.Err)
	}
	if n := objects(); n < 40 {
		t.Errorf("%d messages in the bucket", n)
	}
	// Other clients of object stores can read them.
	store, err := q.js.ObjectStore(t.Context(), q.o.ObjectBucket)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := store.GetBytes(t.Context(), m.ID.String()); err != nil || !bytes.Equal(b, m.Text) {
		t.Errorf("as an object: %d bytes, %v", len(b), err)
	}
	if e, err := q.Show(m.ID); err != nil || len(e.Recipients) != 1500 || e.Size != int64(len(m.Text)) {
		t.Errorf("%d recipients, %d bytes, %v", len(e.Recipients), e.Size, err)
	}
	outcomes := make([]queue.Outcome, 1500)
	for i := range outcomes {
		outcomes[i] = refusedOutcome
	}
	d := lease(t, q)
	if !bytes.Equal(text(t, d), m.Text) || !bytes.Equal(d.Env.AppendBinary(nil), m.Binary) {
		t.Error("message or envelope have changed")
	}
	if err := q.Settle(d, outcomes, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := q.Release(m.ID); err != nil {
		t.Fatal(err)
	}
	d = lease(t, q)
	if !bytes.Equal(text(t, d), m.Text) {
		t.Error("the message has changed")
	}
	for i := range outcomes {
		outcomes[i] = deliveredOutcome
	}
	if err := q.Settle(d, outcomes, time.Time{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bucket is empty", func() bool { return objects() == 0 })
	if st := q.Stats(); st.Bytes != 0 {
		t.Errorf("%+v", st)
	}
}

func TestObjectsWithoutAMessageAreSweptAfterADay(t *testing.T) {
	s := alone(t, t.TempDir())
	clock := queuetest.NewClock()
	q := opened(t, Options{Now: clock.Now}, s)
	ids := envelope.NewIDSource([32]byte{1})
	orphan, kept := ids.Next(time.Now()).String(), ids.Next(time.Now())
	for _, name := range []string{orphan, kept.String()} {
		content := []byte("an object")
		if err := q.putObject(name, int64(len(content)), func(yield func([]byte) bool) { yield(content) }, time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := q.putRecord(t.Context(), kept, &record{State: queue.Waiting}); err != nil {
		t.Fatal(err)
	}
	exists := func(name string) bool {
		_, err := q.objectInfo(t.Context(), name)
		if err != nil && !errors.Is(err, queue.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	q.sweepObjects()
	if !exists(orphan) {
		t.Error("swept while it is young")
	}
	clock.Add(25 * time.Hour)
	q.sweepObjects()
	if exists(orphan) || !exists(kept.String()) {
		t.Error("the wrong one was swept")
	}
}

// Somebody dies between noting that a message is dead and taking it out of the stream: the next relay completes it.
func TestAMoveThatWasCutShortIsCompleted(t *testing.T) {
	s := alone(t, t.TempDir())
	q := opened(t, Options{}, s)
	messages := mustCommit(t, q, queuetest.NewMaker(nil), 2, 10)
	if _, err := q.putRecord(t.Context(), messages[0].ID, &record{State: queue.Dead, Attempts: 4, Reason: "refused"}); err != nil {
		t.Fatal(err)
	}
	if d := lease(t, q); d.Env.ID != messages[1].ID {
		t.Fatal("a dead message was leased")
	}
	e, err := q.Show(messages[0].ID)
	if err != nil || e.State != queue.Dead || e.Attempts != 4 || e.Reason != "refused" {
		t.Errorf("%+v, %v", e, err)
	}
}
