package loop

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// validator is one made of a function.
type validator struct {
	stages policy.Stages
	f      func(*policy.Event) error
}

func (v validator) Stages() policy.Stages          { return v.stages }
func (v validator) Validate(e *policy.Event) error { return v.f(e) }

func withValidator(f func(*policy.Event) error, stages ...policy.Stage) func(*Options, *session.Options) {
	return func(_ *Options, so *session.Options) {
		so.Validators = append(so.Validators, validator{policy.On(stages...), f})
	}
}

// pends hands every question to the test.
func pends() (questions chan *policy.Pending, f func(*policy.Event) error) {
	questions = make(chan *policy.Pending, 100)
	return questions, func(e *policy.Event) error { questions <- e.Pend(); return nil }
}

var waitingStages = []policy.Stage{policy.AtConnect, policy.AtHelo, policy.AtMail, policy.AtRcpt, policy.AtData, policy.AtMessage}

func TestValidatorsMayAnswerLaterFromAnyGoroutineAtEveryStage(t *testing.T) {
	for name, answer := range map[string]func(p *policy.Pending){
		"at once":        func(p *policy.Pending) { p.Done(smtpcodec.Reply{}, nil) },
		"by a goroutine": func(p *policy.Pending) { go p.Done(smtpcodec.Reply{}, nil) },
		"after a read of the message": func(p *policy.Pending) {
			go func() { io.Copy(io.Discard, p.Body()); p.Done(smtpcodec.Reply{}, []byte("X-Seen: yes\r\n")) }()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, withValidator(func(e *policy.Event) error { answer(e.Pend()); return nil }, waitingStages...))
			c := s.dial()
			c.send("EHLO c\r\n" + group + "x\r\n.\r\n" + group + "y\r\n.\r\nQUIT\r\n") // all waits for the greeting
			c.expect("220", "250", "250", "250", "354", "250 2.6.0", "250", "250", "354", "250 2.6.0", "221")
			c.expectEOF()
			if n := len(s.backend.all()); n != 2 {
				t.Errorf("%d messages", n)
			}
		})
	}
}

func TestTheFirstAnswerOfAValidatorCounts(t *testing.T) {
	questions, f := pends()
	s := start(t, withValidator(f, policy.AtMail))
	c := s.dial()
	c.send("EHLO c\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\n")
	c.expect("220", "250")
	p := <-questions
	refusal := smtpcodec.Reply{Code: 550, Enhanced: smtpcodec.EnhancedCode{Class: 5, Subject: 7, Detail: 1}, Text: "Not from you"}
	if !p.Done(refusal, nil) || p.Done(smtpcodec.Reply{}, nil) {
		t.Error("who was first is told wrong")
	}
	c.expect("550 5.7.1 Not from you", "503") // the RCPT behind it waited for its turn
}

func TestAValidatorThatNeverAnswersIs451AndTheSessionGoesOn(t *testing.T) {
	questions, f := pends()
	s := start(t, both(withValidator(f, policy.AtMail), func(_ *Options, so *session.Options) { so.PolicyTimeout = 100 * time.Millisecond }))
	c := s.dial()
	c.send("EHLO c\r\nMAIL FROM:<a@example.org>\r\nNOOP\r\n")
	c.expect("220", "250", "451 4.3.0", "250 2.0.0")
	if late := <-questions; late.Done(smtpcodec.Reply{}, nil) {
		t.Error("an answer that came too late was taken")
	}
	if s.event(EventValidatorFailed) != 1 || !strings.Contains(s.log.String(), "stage=mail") {
		t.Errorf("counted %d times:\n%s", s.event(EventValidatorFailed), s.log)
	}
}

func TestAValidatorIsToldThatItsClientHasLeft(t *testing.T) {
	gone := make(chan struct{})
	questions, f := pends()
	s := start(t, withValidator(func(e *policy.Event) error {
		err := f(e)
		e.Pended().OnCancel(func() { close(gone) })
		return err
	}, policy.AtMessage))
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n" + group + strings.Repeat("text\r\n", 1000) + ".\r\n")
	c.expect("250", "250", "250", "354")
	p := <-questions
	c.Close()
	<-gone
	if _, err := io.ReadAll(p.Body()); err != io.ErrUnexpectedEOF {
		t.Errorf("the body of a message that is gone: %v", err)
	}
	if p.Done(smtpcodec.Reply{}, nil) {
		t.Error("an answer for nobody was taken")
	}
	waitFor(t, "the end", func() bool { return s.Connections() == 0 && s.o.Budget.Used() == 0 })
}

func TestAnswersAndClientsThatLeaveAtTheSameTime(t *testing.T) {
	s := start(t, both(withValidator(func(e *policy.Event) error {
		p := e.Pend()
		go func() { io.Copy(io.Discard, p.Body()); p.Done(smtpcodec.Reply{}, nil) }()
		return nil
	}, waitingStages...)))
	var clients sync.WaitGroup
	for i := range 100 {
		c := s.dial()
		clients.Go(func() {
			io.WriteString(c.Conn, "EHLO c\r\n"+group+strings.Repeat("text\r\n", 1+i*10)+".\r\n")
			time.Sleep(time.Duration(i%10) * time.Millisecond)
			c.Close()
		})
	}
	clients.Wait()
	waitFor(t, "the end", func() bool { return s.Connections() == 0 && s.o.Budget.Used() == 0 })
	if n := s.event(EventPanic); n != 0 {
		t.Errorf("%d panics:\n%s", n, s.log)
	}
}

func TestAFailingValidatorIs451AndLoggedOnceASecond(t *testing.T) {
	s := start(t, both(withValidator(func(*policy.Event) error { return errors.New("out of order") }, policy.AtMail),
		func(o *Options, _ *session.Options) { o.Loops = 1 }))
	c := s.dial()
	c.send("EHLO c\r\n" + strings.Repeat("MAIL FROM:<a@example.org>\r\n", 5))
	c.expect("220", "250", "451 4.3.0", "451 4.3.0", "451 4.3.0", "451 4.3.0", "451 4.3.0")
	if n := strings.Count(s.log.String(), "out of order"); s.event(EventValidatorFailed) != 5 || n < 1 || n > 2 {
		t.Errorf("counted %d times, logged %d times", s.event(EventValidatorFailed), n)
	}
}

func TestDrainWaitsForAValidator(t *testing.T) {
	questions, f := pends()
	s := start(t, withValidator(f, policy.AtHelo))
	c := s.dial()
	c.send("EHLO c\r\n")
	c.expect("220")
	p := <-questions
	drained := make(chan error)
	go func() { drained <- s.Drain(t.Context()) }()
	waitFor(t, "the drain to begin", s.draining.Load)
	p.Done(smtpcodec.Reply{}, nil)
	c.expect("250", "421 4.3.2")
	c.expectEOF()
	c.Close()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
}

// oneUser is a store with one user.
type oneUser struct {
	hang  chan struct{} // when set, checks wait for it to be closed
	asked atomic.Int64
}

func (s *oneUser) Supports(m string) bool { return m == auth.PLAIN || m == auth.LOGIN }

func (s *oneUser) CheckPassword(ctx context.Context, l auth.Login) (string, error) {
	s.asked.Add(1)
	if s.hang != nil {
		select {
		case <-s.hang:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if l.User != "user" || l.Password != "password" {
		return "", auth.ErrRefused
	}
	return "user", nil
}

func withAuth(t *testing.T, store auth.Store, change func(*auth.Options)) func(*Options, *session.Options) {
	o := auth.Options{Store: store, FailureDelay: -1}
	if change != nil {
		change(&o)
	}
	service, err := auth.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return func(o *Options, so *session.Options) {
		o.Listeners[0].Auth, so.Auth, so.AuthInClear = service, []string{auth.PLAIN, auth.LOGIN}, true
	}
}

func encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

var goodLogin = "AUTH PLAIN " + encode("\x00user\x00password") + "\r\n"

func TestLoggingInOffTheLoop(t *testing.T) {
	var lines lockedBuffer
	s := start(t, both(withAuth(t, &oneUser{}, nil), func(o *Options, _ *session.Options) { o.Lines = &lines }))
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\nAUTH PLAIN " + encode("\x00user\x00wrong") + "\r\nNOOP\r\nAUTH LOGIN\r\n")
	c.expect("250", "535 5.7.8", "250 2.0.0")
	c.expect("334 " + encode("Username:"))
	c.send(encode("user") + "\r\n")
	c.expect("334 " + encode("Password:"))
	c.send("*\r\n")
	c.expect("501")
	c.send(goodLogin + group + "x\r\n.\r\nQUIT\r\n") // in one piece
	c.expect("235 2.7.0", "250", "250", "354", "250 2.6.0", "221")
	if m := s.backend.all()[0]; m.protocol != "ESMTPA" {
		t.Errorf("%+v", m)
	}
	s.Drain(t.Context())
	waitFor(t, "the message's line", func() bool {
		return strings.Contains(lines.String(), `"user":"user"`) || strings.Contains(lines.String(), "user=user")
	})
}

func TestLoggingInInsideTLS(t *testing.T) {
	s := start(t, both(withSTARTTLS, withAuth(t, &oneUser{}, nil), func(_ *Options, so *session.Options) { so.AuthInClear = false }))
	c := s.dial()
	c.expect("220")
	c.send("EHLO c\r\n" + goodLogin)
	c.expect("250", "538")
	c.starttls(clientTLS())
	c.send("EHLO c\r\n" + goodLogin + group + "x\r\n.\r\n")
	c.expect("250", "235", "250", "250", "354", "250 2.6.0")
	if m := s.backend.all()[0]; m.protocol != "ESMTPSA" {
		t.Errorf("%+v", m)
	}
}

func TestAUTHWithoutAServiceIs454(t *testing.T) {
	s := start(t, func(_ *Options, so *session.Options) { so.Auth, so.AuthInClear = []string{auth.PLAIN}, true })
	c := s.dial()
	c.send("EHLO c\r\n" + goodLogin + "NOOP\r\n")
	c.expect("220", "250", "454 4.7.0", "250 2.0.0")
}

func TestSlowLoginsKeepNobodyWaitingAndLeaveNothing(t *testing.T) {
	const slow = 50
	store := &oneUser{hang: make(chan struct{})}
	s := start(t, both(withAuth(t, store, func(o *auth.Options) { o.Workers = 2 }), func(_ *Options, so *session.Options) { so.PolicyTimeout = time.Hour }))
	var waiting []*client
	for range slow {
		c := s.dial()
		c.send("EHLO c\r\n" + goodLogin)
		c.expect("220", "250")
		waiting = append(waiting, c)
	}
	waitFor(t, "a check", func() bool { return store.asked.Load() > 0 })
	s.messageAfterGreeting()
	for _, c := range waiting[:slow/2] {
		c.Close()
	}
	waitFor(t, "those to be gone", func() bool { return s.Connections() == slow-slow/2 })
	close(store.hang)
	for _, c := range waiting[slow/2:] {
		c.expect("235")
	}
	if n := s.event(EventPanic); n != 0 {
		t.Errorf("%d panics:\n%s", n, s.log)
	}
}

func (s *server) messageAfterGreeting() {
	c := s.dial()
	c.expect("220")
	s.messageBy(c)
	c.send("QUIT\r\n")
	c.expect("221")
	c.Close()
	waitFor(s.t, "the message", func() bool { return len(s.backend.all()) > 0 })
}

func TestALoginThatTakesTooLongIs454AndItsAnswerIsIgnored(t *testing.T) {
	store := &oneUser{hang: make(chan struct{})}
	s := start(t, both(withAuth(t, store, nil), func(_ *Options, so *session.Options) { so.PolicyTimeout = time.Hour }))
	c := s.dial()
	c.send("EHLO c\r\n" + goodLogin)
	c.expect("220", "250")
	waitFor(t, "the check", func() bool { return store.asked.Load() == 1 })
	s.pass(time.Hour)
	c.expect("454 4.7.0")
	close(store.hang)
	c.send("NOOP\r\n" + goodLogin)
	c.expect("250 2.0.0", "235")
}
