package jetstream

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// consume is the program that the guide shows, between the two marks.
func consume(ctx context.Context, url string, handle func(from string, to []string, message []byte) error) error {
	// guide
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, _ := jetstream.New(nc)
	c, err := js.CreateOrUpdateConsumer(ctx, "MAIL", jetstream.ConsumerConfig{Durable: "archive", FilterSubject: "mail.inbound", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		return err
	}
	store, err := js.ObjectStore(ctx, "MAIL_LARGE")
	for err == nil && ctx.Err() == nil {
		var m jetstream.Msg
		if m, err = c.Next(jetstream.FetchContext(ctx)); err != nil {
			break
		}
		h, body := m.Headers(), m.Data()
		if object := h.Get("Fastedge-Object"); object != "" { // longer than the servers' max_payload
			if body, err = store.GetBytes(ctx, object); err != nil {
				break
			}
		}
		if handle(h.Get("Fastedge-From"), h["Fastedge-To"], body) != nil {
			continue // it comes again
		}
		if err = m.DoubleAck(ctx); err != nil { // the servers have noted it: only now may its objects go
			break
		}
		for _, key := range []string{"Fastedge-Object", "Fastedge-Envelope-Object"} {
			if object := h.Get(key); object != "" && err == nil {
				err = store.Delete(ctx, object)
			}
		}
	}
	return err
	// /guide
}

func TestTheGuidesConsumerGetsMailAsItIsHandedOn(t *testing.T) {
	guide, err := os.ReadFile("GUIDE.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("consume_example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(source), "\t// guide\n")
	shown, _, _ = strings.Cut(shown, "\t// /guide\n")
	shown = strings.ReplaceAll("\n"+shown, "\n\t", "\n")
	if !strings.Contains(string(guide), "```go"+shown+"```") {
		t.Error("GUIDE.md does not show this program")
	}

	s := alone(t, t.TempDir())
	q := opened(t, Options{Batch: "off"}, s)
	maker := queuetest.NewMaker(nil)
	small, wantSmall := maker.Submission(4096, 2)
	large, wantLarge := maker.Submission(3<<20, 1)
	last, wantLast := maker.Submission(10, 1)
	batch := []*queue.Submission{small, large, last}
	q.Commit(batch)
	for _, sub := range batch {
		if sub.Err != nil {
			t.Fatal(sub.Err)
		}
		sub.Env.Release()
	}
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	var got [][]byte
	err = consume(ctx, s.ClientURL(), func(from string, to []string, message []byte) error {
		if len(got) == 0 && (from != "sender-1@example.net" || len(to) != 2 || to[1] != "rcpt-1@example.org") {
			t.Errorf("from %q to %q", from, to)
		}
		if got = append(got, message); len(got) == 3 {
			stop()
			return context.Canceled
		}
		return nil
	})
	if len(got) != 3 || !bytes.Equal(got[0], wantSmall.Text) || !bytes.Equal(got[1], wantLarge.Text) || !bytes.Equal(got[2], wantLast.Text) {
		t.Errorf("%d messages, or altered: %v", len(got), err)
	}
	if n, objects := messages(t, q, q.o.Stream), messages(t, q, q.o.objStream()); n != 1 || objects != 1 {
		t.Errorf("%d messages are left, and %d in the bucket: not the one that was not taken, and the note that the object is deleted", n, objects)
	}
}
