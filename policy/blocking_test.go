package policy

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/smtpcodec"
)

var errTest = errors.New("out of order")

// asked is one question to a blocking validator.
type asked struct {
	p     *Pending
	woken chan struct{}
}

func ask(t testing.TB, v Validator, helo string) asked {
	t.Helper()
	e := &Event{Stage: AtHelo, Client: Client{Helo: []byte(helo)}}
	if err := v.Validate(e); err != nil {
		t.Fatal(err)
	}
	if e.Pended() == nil {
		t.Fatal("no pending question")
	}
	a := asked{p: e.Pended(), woken: make(chan struct{})}
	a.p.Arm(func(*Pending) { close(a.woken) })
	return a
}

// answer waits for the decision.
func (a asked) answer() (string, error) {
	<-a.woken
	r, fields, err := a.p.Decision()
	if r.Code == 0 {
		return string(fields), err
	}
	return strings.TrimSpace(string(r.AppendTo(nil))) + string(fields), err
}

func blocking(t testing.TB, o BlockingOptions) *Blocking {
	t.Helper()
	o.Name, o.Stages = "test", On(AtHelo)
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	b := NewBlocking(o)
	t.Cleanup(b.Close)
	return b
}

func TestBlockingCodeDecides(t *testing.T) {
	b := blocking(t, BlockingOptions{Do: func(_ context.Context, p *Pending) (smtpcodec.Reply, []byte, error) {
		switch string(p.Client.Helo) {
		case "refuse":
			return smtpcodec.Reply{Code: 550, Text: "no"}, nil, nil
		case "mark":
			return smtpcodec.Reply{}, []byte("X-A: b\r\n"), nil
		case "fail":
			return smtpcodec.Reply{Code: 250, Text: "ignored"}, nil, errTest
		case "panic":
			panic("a bug")
		}
		return smtpcodec.Reply{}, nil, nil
	}})
	for helo, want := range map[string]string{"refuse": "550 no", "mark": "X-A: b\r\n", "": ""} {
		if got, err := ask(t, b, helo).answer(); got != want || err != nil {
			t.Errorf("%s: %q, %v", helo, got, err)
		}
	}
	if _, err := ask(t, b, "fail").answer(); !errors.Is(err, errTest) || !strings.Contains(err.Error(), "test: ") {
		t.Errorf("got %v", err)
	}
	if _, err := ask(t, b, "panic").answer(); err == nil || !strings.Contains(err.Error(), "a bug") {
		t.Errorf("got %v", err)
	}
	if st := b.Stats(); st.Failed != 2 || st.Late+st.Full != 0 {
		t.Errorf("%+v", st)
	}
}

func TestFailOpenAcceptsAndSaysSoOnceASecond(t *testing.T) {
	var log bytes.Buffer
	b := blocking(t, BlockingOptions{OnError: Accept, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Workers: 1, Do: func(context.Context, *Pending) (smtpcodec.Reply, []byte, error) {
			return smtpcodec.Reply{Code: 550}, []byte("X: y\r\n"), errTest
		}})
	for range 50 {
		if got, err := ask(t, b, "").answer(); got != "" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	b.Close()
	// A second or two may begin in the loop; fifty lines would be fifty.
	if n := strings.Count(log.String(), "\n"); n == 0 || n > 25 || !strings.Contains(log.String(), "out of order") {
		t.Errorf("%d lines:\n%s", n, &log)
	}
}

// hold is code that works on its questions until it is released, whatever its context says.
type hold struct {
	started chan string
	release chan struct{}
}

func newHold() hold { return hold{make(chan string, 100), make(chan struct{})} }

func (h hold) do(_ context.Context, p *Pending) (smtpcodec.Reply, []byte, error) {
	h.started <- string(p.Client.Helo)
	<-h.release
	return smtpcodec.Reply{Code: 250, Text: "done"}, nil, nil
}

func TestNoMoreWorkersThanAllowedAndNoMoreWaitersThanQueued(t *testing.T) {
	h := newHold()
	b := blocking(t, BlockingOptions{Workers: 3, MaxQueued: 2, Do: h.do})
	var all []asked
	for range 3 {
		all = append(all, ask(t, b, "a"))
		<-h.started // each has a worker of its own at once
	}
	for range 2 {
		all = append(all, ask(t, b, "b"))
	}
	if st := b.Stats(); st.Busy != 3 || st.Queued != 2 {
		t.Errorf("%+v", st)
	}
	if _, err := ask(t, b, "c").answer(); !errors.Is(err, ErrBusy) {
		t.Errorf("the sixth: %v", err)
	}
	close(h.release)
	for i, a := range all {
		if got, err := a.answer(); got != "250 done" || err != nil {
			t.Errorf("%d: %q, %v", i, got, err)
		}
	}
	if st := b.Stats(); st.Full != 1 || st.Failed != 0 || st.Queued != 0 {
		t.Errorf("%+v", st)
	}
}

func TestCodeThatIgnoresItsDeadlineKeepsItsWorkerOnly(t *testing.T) {
	h := newHold()
	b := blocking(t, BlockingOptions{Workers: 1, Timeout: 500 * time.Millisecond, Do: h.do}) // the first has begun by then
	first, second := ask(t, b, "first"), ask(t, b, "second")
	for _, a := range []asked{first, second} {
		if _, err := a.answer(); !errors.Is(err, ErrLate) {
			t.Errorf("got %v", err)
		}
	}
	<-h.started
	if st := b.Stats(); st.Late != 2 || st.Stuck > 1 || st.Busy != 1 {
		t.Errorf("%+v", st)
	}
	close(h.release)
	for b.Stats().Busy+b.Stats().Queued+b.Stats().Stuck > 0 {
		runtime.Gosched()
	}
	if len(h.started) != 0 {
		t.Error("a question that was late has been worked on")
	}
}

func TestAClientThatIsGoneEndsTheWork(t *testing.T) {
	started, ended := make(chan struct{}), make(chan error)
	b := blocking(t, BlockingOptions{Do: func(ctx context.Context, p *Pending) (smtpcodec.Reply, []byte, error) {
		close(started)
		<-ctx.Done()
		ended <- ctx.Err()
		return smtpcodec.Reply{}, nil, ctx.Err()
	}})
	a := ask(t, b, "")
	<-started
	a.p.Cancel()
	if err := <-ended; err != context.Canceled {
		t.Errorf("got %v", err)
	}
	select {
	case <-a.woken:
		t.Error("somebody was woken")
	default:
	}
	if st := b.Stats(); st.Failed != 0 {
		t.Errorf("%+v", st)
	}
}

func TestCloseAnswersEverybody(t *testing.T) {
	h := newHold()
	b := blocking(t, BlockingOptions{Workers: 1, Do: h.do})
	all := []asked{ask(t, b, ""), ask(t, b, "")}
	<-h.started
	b.Close()
	for i, a := range append(all, ask(t, b, "")) {
		if _, err := a.answer(); !errors.Is(err, ErrClosed) {
			t.Errorf("%d: %v", i, err)
		}
	}
	close(h.release)
}

func TestManyQuestionsAtOnceAreEachAnsweredOnce(t *testing.T) {
	b := blocking(t, BlockingOptions{Workers: 4, MaxQueued: 10_000, Timeout: 50 * time.Millisecond, Do: func(ctx context.Context, p *Pending) (smtpcodec.Reply, []byte, error) {
		if len(p.Client.Helo) == 0 {
			<-ctx.Done()
		}
		return smtpcodec.Reply{}, nil, nil
	}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 100 {
				a := ask(t, b, "x"[:min(1, k%20)])
				if i == 0 && k%7 == 0 {
					a.p.Cancel()
				} else {
					a.answer() // a second answer would close woken twice
				}
			}
		})
	}
	wg.Wait()
}

func TestBlockingRefusesStagesThatDoNotWait(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	NewBlocking(BlockingOptions{Stages: On(AtQuit), Do: newHold().do})
}

func TestOnErrorWords(t *testing.T) {
	for word, want := range map[string]OnError{"defer": Defer, "accept": Accept} {
		if got, err := ParseOnError(word); got != want || err != nil {
			t.Errorf("%s: %v, %v", word, got, err)
		}
	}
	if _, err := ParseOnError("refuse"); err == nil {
		t.Error("refuse was taken")
	}
}

func BenchmarkBlocking(b *testing.B) {
	v := blocking(b, BlockingOptions{Do: func(context.Context, *Pending) (smtpcodec.Reply, []byte, error) { return smtpcodec.Reply{}, nil, nil }})
	b.Run("impl=fastedge", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ask(b, v, "mail.example.net").answer()
		}
	})
	b.Run("impl=naive", func(b *testing.B) { // a goroutine for each question, without bound or deadline
		b.ReportAllocs()
		for b.Loop() {
			e := &Event{Stage: AtHelo, Client: Client{Helo: []byte("mail.example.net")}}
			p := e.Pend()
			a := asked{p: p, woken: make(chan struct{})}
			p.Arm(func(*Pending) { close(a.woken) })
			go p.Done(smtpcodec.Reply{}, nil)
			a.answer()
		}
	})
}
