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
	for err == nil && ctx.Err() == nil {
		var m jetstream.Msg
		if m, err = c.Next(jetstream.FetchContext(ctx)); err != nil {
			break
		}
		body := m.Data()
		if object := m.Headers().Get("Fastedge-Object"); object != "" { // longer than the servers' max_payload
			store, _ := js.ObjectStore(ctx, "MAIL_LARGE")
			body, err = store.GetBytes(ctx, object)
		}
		if err == nil && handle(m.Headers().Get("Fastedge-From"), m.Headers()["Fastedge-To"], body) == nil {
			err = m.Ack() // without it the message comes again
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
	q := opened(t, Options{ObjectBucket: "MAIL_LARGE"}, s)
	maker := queuetest.NewMaker(nil)
	small, wantSmall := maker.Submission(4096, 2)
	large, wantLarge := maker.Submission(3<<20, 1)
	batch := []*queue.Submission{small, large}
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
		if got = append(got, message); len(got) == 2 {
			stop()
		}
		return nil
	})
	if len(got) != 2 || !bytes.Equal(got[0], wantSmall.Text) || !bytes.Equal(got[1], wantLarge.Text) {
		t.Errorf("%d messages, or altered: %v", len(got), err)
	}
}
