package session

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/smtpcodec"
)

var start = time.Date(2026, 11, 22, 8, 0, 39, 0, time.UTC)

func newResources() (*Resources, *pool.Budget) {
	budget := pool.NewBudget(0)
	return &Resources{Envelopes: envelope.NewList(pool.NewList(1<<20, budget))}, budget
}

func open(t testing.TB, o Options) (*Session, *Resources, *pool.Budget) {
	t.Helper()
	res, budget := newResources()
	s := new(Session)
	s.Open(NewServer(o), res, Peer{Addr: netip.MustParseAddrPort("192.0.2.7:40025"), ID: envelope.ID{1}}, start, nil)
	return s, res, budget
}

// feed gives text to s and fails unless the replies begin with the given texts, one a line.
func feed(t testing.TB, s *Session, text string, want ...string) Step {
	t.Helper()
	n, out, step := s.Feed([]byte(text), start, nil)
	lines := strings.Split(strings.TrimSuffix(string(out), "\r\n"), "\r\n")
	if len(out) == 0 {
		lines = nil
	}
	if len(lines) != len(want) {
		t.Fatalf("%q: replies %q, want %q", text, lines, want)
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Fatalf("%q: reply %q, want %q", text, lines[i], want[i])
		}
	}
	if step == NeedInput && n != len(text) {
		t.Fatalf("%q: %d bytes used", text, n)
	}
	return step
}

const group = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"

// An idle session costs its caller this much and a HELO name: 15,000 held sessions are the figure of the main issue.
func TestIdleSessionIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Session{}); size > 256 {
		t.Errorf("a Session has %d bytes, want at most 256", size)
	}
	if size := unsafe.Sizeof(transaction{}); size > 384 {
		t.Errorf("a transaction has %d bytes, want at most 384", size)
	}
	s, _, budget := open(t, Options{})
	s.Feed([]byte("EHLO client.example.com\r\n"), start, nil)
	if s.tx != nil || cap(s.helo) > 64 || budget.Used() != 0 {
		t.Errorf("after EHLO: transaction %v, %d bytes of name, %d bytes of chunks", s.tx, cap(s.helo), budget.Used())
	}
	feed(t, s, group+"x\r\n.\r\n", "250", "250", "354")
	s.TakeEnvelope(envelope.ID{}).Release()
	s.Committed(nil, nil, start, nil)
	if s.tx != nil {
		t.Error("a transaction is attached after the message")
	}
}

// Steady state: no command and no message allocates.
func TestCommandsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s, _, _ := open(t, Options{MaxErrors: 1 << 30})
	out := make([]byte, 0, 4096)
	run := func(text string) func() {
		in := []byte(text)
		return func() {
			rest := in
			for {
				n, _, step := s.Feed(rest, start, out)
				rest = rest[n:]
				if step != AwaitCommit {
					return
				}
				env := s.TakeEnvelope(envelope.ID{15: 1})
				s.Committed(nil, nil, start, out)
				env.Release()
			}
		}
	}
	run("EHLO client.example.com\r\n" + group + "x\r\n.\r\n")()
	for _, text := range []string{
		"EHLO client.example.com\r\n",
		"HELO client.example.com\r\nEHLO client.example.com\r\n",
		"NOOP\r\n",
		"RSET\r\n",
		"VRFY someone\r\n",
		"nonsense\r\n",
		"MAIL FROM:<a@example.com> SIZE=100 BODY=8BITMIME\r\nRSET\r\n",
		"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<c@example.net>\r\nRSET\r\n",
		"MAIL FROM:<a\r\n",
		group + strings.Repeat("An ordinary line of text.\r\n", 1000) + ".\r\n",
		"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nBDAT 5\r\nabcdeBDAT 5 LAST\r\nabcde",
	} {
		if n := testing.AllocsPerRun(200, run(text)); n != 0 {
			t.Errorf("%.40q: %v allocations", text, n)
		}
	}
}

// Wherever a connection is lost, nothing stays in use.
func TestAbortLeaksNoChunk(t *testing.T) {
	stream := "EHLO a\r\n" + group + strings.Repeat("text\r\n", 3) + ".\r\n" +
		"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nBDAT 10\r\n0123456789BDAT 5 LAST\r\n01234QUIT\r\n"
	for _, take := range []bool{false, true} {
		for cut := range len(stream) + 1 {
			s, _, budget := open(t, Options{})
			rest := []byte(stream[:cut])
			var taken *envelope.Envelope
			for {
				n, _, step := s.Feed(rest, start, nil)
				rest = rest[n:]
				if step != AwaitCommit {
					break
				}
				if len(rest) == 0 { // the connection is lost while the message is being committed
					if take {
						taken = s.TakeEnvelope(envelope.ID{})
					}
					break
				}
				s.TakeEnvelope(envelope.ID{}).Release()
				s.Committed(nil, nil, start, nil)
			}
			s.Abort()
			s.Abort()
			if taken != nil {
				taken.Release()
			}
			if used := budget.Used(); used != 0 {
				t.Fatalf("lost after %q: %d bytes in use", stream[:cut], used)
			}
		}
	}
}

// A refused message gives its chunks back before its end has come.
func TestRefusedMessageHoldsNoMemory(t *testing.T) {
	for name, c := range map[string]struct {
		options Options
		data    string
	}{
		"size":         {Options{MaxMessageBytes: 1000}, strings.Repeat("0123456789\r\n", 100)},
		"bare newline": {Options{}, "a\nb\r\n"},
		"loop":         {Options{MaxReceived: 1}, "Received: a\r\nReceived: b\r\nReceived: c\r\n"},
	} {
		s, _, budget := open(t, c.options)
		feed(t, s, "HELO a\r\n"+group, "250", "250", "250", "354")
		feed(t, s, c.data)
		if used := budget.Used(); used != 0 {
			t.Errorf("%s: %d bytes in use", name, used)
		}
		feed(t, s, ".\r\n", "55")
	}
}

// The limit is on message bytes at any size, at the limit and one past it, for DATA in pieces of any size.
func TestMessageSizeLimitAtChunkBorders(t *testing.T) {
	for _, limit := range []int{8<<10 - 1, 8 << 10, 8<<10 + 1, 40<<10 - 2, 40 << 10, 40<<10 + 3, 72 << 10, 200 << 10} {
		for _, over := range []int{0, 1} {
			body := bytes.Repeat([]byte("."), limit+over-2)
			wire := append([]byte("."), body...) // dot-stuffed
			wire = append(wire, "\r\n.\r\n"...)
			for _, piece := range []int{1 << 30, 4093, 1000} {
				s, _, budget := open(t, Options{MaxMessageBytes: int64(limit)})
				feed(t, s, "HELO a\r\n"+group, "250", "250", "250", "354")
				var out []byte
				step := NeedInput
				for rest := wire; len(rest) > 0; {
					n := min(piece, len(rest))
					_, out, step = s.Feed(rest[:n], start, out)
					rest = rest[n:]
				}
				switch {
				case over == 1 && string(out) != "552 5.3.4 Message exceeded size limit\r\n":
					t.Fatalf("limit %d, one more: %q", limit, out)
				case over == 0 && step != AwaitCommit:
					t.Fatalf("limit %d: step %d, %q", limit, step, out)
				case over == 0:
					env := s.TakeEnvelope(envelope.ID{})
					got := bytes.Join(env.Data.AppendBuffers(nil), nil)
					if !bytes.Equal(got, append(body, '\r', '\n')) {
						t.Fatalf("limit %d, pieces of %d: data differ", limit, piece)
					}
					env.Release()
				}
				s.Abort()
				if budget.Used() != 0 {
					t.Fatalf("limit %d: %d bytes in use", limit, budget.Used())
				}
			}
		}
	}
}

// A bare CR held back at the end of a chunk is written over two chunks without getting lost.
func TestDataAcrossChunkBorders(t *testing.T) {
	for pad := 8<<10 - 6; pad < 8<<10+2; pad++ {
		body := strings.Repeat("x", pad) + "\r\n.a\r\n\r\n..\r\n" + strings.Repeat("y", 10)
		s, _, _ := open(t, Options{})
		feed(t, s, "HELO a\r\n"+group, "250", "250", "250", "354")
		wire := strings.ReplaceAll("\r\n"+body, "\r\n.", "\r\n..")[2:] + "\r\n.\r\n"
		if feed(t, s, wire) != AwaitCommit {
			t.Fatal("no message")
		}
		env := s.TakeEnvelope(envelope.ID{})
		if got := string(bytes.Join(env.Data.AppendBuffers(nil), nil)); got != body+"\r\n" {
			t.Fatalf("pad %d: %q", pad, got[pad-3:])
		}
		env.Release()
	}
}

type note struct {
	stage  Stage
	code   uint16
	reason Reason
	arg    string
}

type notebook struct{ replied, refused []note }

func (n *notebook) Replied(st Stage, code uint16) {
	n.replied = append(n.replied, note{stage: st, code: code})
}

func (n *notebook) Refused(s *Session, st Stage, r *smtpcodec.Reply, why Reason, arg []byte) {
	n.refused = append(n.refused, note{st, r.Code, why, string(arg)})
}

func (n *notebook) ValidatorFailed(s *Session, at policy.Stage, err error) {}

// The observer hears of each decision once, and why a refusal was one.
func TestObserverIsToldOfEachDecision(t *testing.T) {
	s, res, _ := open(t, Options{LMTP: true, MaxMessageBytes: 10})
	book := new(notebook)
	res.Observer = book
	feed(t, s, "FOO bar\r\nLHLO a\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b>\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\nDATA\r\n0123456789\r\n.\r\nQUIT\r\n",
		"500", "250-", "250-", "250-", "250-", "250-", "250-", "250-", "250-", "250-", "250 ", "250 2.1.0", "501", "250", "250", "354", "552", "552", "221")
	wantReplied := []note{{StageOther, 500, 0, ""}, {StageHelo, 250, 0, ""}, {StageMail, 250, 0, ""}, {StageRcpt, 501, 0, ""},
		{StageRcpt, 250, 0, ""}, {StageRcpt, 250, 0, ""}, {StageData, 354, 0, ""}, {StageMessage, 552, 0, ""}, {StageOther, 221, 0, ""}}
	wantRefused := []note{{StageOther, 500, ReasonUnknownCommand, "FOO"}, {StageRcpt, 501, ReasonBadRecipient, "TO:<b>"},
		{StageMessage, 552, ReasonSize, ""}}
	if fmt.Sprint(book.replied) != fmt.Sprint(wantReplied) {
		t.Errorf("replied %v\nwant    %v", book.replied, wantReplied)
	}
	if fmt.Sprint(book.refused) != fmt.Sprint(wantRefused) {
		t.Errorf("refused %v\nwant    %v", book.refused, wantRefused)
	}
}

// The names of reasons and stages are complete and differ.
func TestReasonsHaveWords(t *testing.T) {
	seen := map[string]bool{}
	for r := range NumReasons {
		if w := r.String(); w == "" || seen[w] {
			t.Errorf("reason %d is %q", r, w)
		} else {
			seen[w] = true
		}
	}
	for st := range NumStages {
		if st.String() == "" {
			t.Errorf("stage %d has no name", st)
		}
	}
}

// Accept's answer is used as it is: any 2yz accepts (C22), 421 closes, anything else refuses.
func TestAcceptDecides(t *testing.T) {
	answers := map[string]*smtpcodec.Reply{
		"moved":  {Code: 251, Enhanced: smtpcodec.EnhancedCode{Class: 2, Subject: 1, Detail: 5}, Text: "Will forward"},
		"gone":   {Code: 550, Enhanced: smtpcodec.EnhancedCode{Class: 5, Subject: 1, Detail: 1}, Text: "No such user"},
		"hangup": {Code: 421, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 3, Detail: 2}, Text: "Go away"},
	}
	s, _, budget := open(t, Options{Accept: func(p smtpcodec.Path, relay bool) *smtpcodec.Reply { return answers[string(p.Local)] }})
	feed(t, s, "HELO a\r\nMAIL FROM:<>\r\nRCPT TO:<gone@x>\r\nDATA\r\nRCPT TO:<moved@x>\r\nRCPT TO:<other@x>\r\n",
		"250", "250", "550 5.1.1 No such user", "554", "251 2.1.5 Will forward", "250 2.1.5 <other@x> Ok")
	if s.tx.recipients != 2 {
		t.Errorf("%d recipients", s.tx.recipients)
	}
	if feed(t, s, "RCPT TO:<hangup@x>\r\nNOOP\r\n", "421 4.3.2 Go away") != Close || s.InTransaction() || budget.Used() != 0 {
		t.Error("the session is not closed")
	}
}

// The envelope carries what the queue and the next hop need, and no slice of the caller's input.
func TestEnvelopeIsFilled(t *testing.T) {
	s, _, _ := open(t, Options{Listener: "mx", Hostname: "mx.example.net"})
	in := []byte("EHLO client.example.com\r\nMAIL FROM:<a@example.com> RET=HDRS ENVID=x+2By BODY=8BITMIME\r\n" +
		"RCPT TO:<b@example.net> NOTIFY=FAILURE ORCPT=rfc822;q@example.net\r\nDATA\r\ntext\r\n.\r\n")
	later := start.Add(time.Minute)
	if _, _, step := s.Feed(in, later, nil); step != AwaitCommit || !s.Deadline().IsZero() {
		t.Fatalf("step %d, deadline %v", step, s.Deadline())
	}
	for i := range in {
		in[i] = 0xDB // the loop's buffer is used again
	}
	id := envelope.ID{15: 9}
	env := s.TakeEnvelope(id)
	got := fmt.Sprintf("%s %s %s %d %d %v %v %s %s %s %s %d %s %s %v", env.ID, env.ReversePath, env.EnvID, env.Body, env.Ret, env.SMTPUTF8, env.Client.Addr,
		env.Client.Helo, env.Client.Protocol, env.Client.Listener, env.Recipients[0].Path, env.Recipients[0].Notify, env.Recipients[0].ORcpt,
		env.Client.Session, env.Arrived.Equal(later))
	want := "00000000000000000000000009 a@example.com x+2By 2 2 false 192.0.2.7:40025 client.example.com ESMTP mx b@example.net 4 rfc822;q@example.net " +
		envelope.ID{1}.String() + " true"
	if got != want {
		t.Errorf("envelope\n got %s\nwant %s", got, want)
	}
	wantTrace := "Received: from client.example.com ([192.0.2.7])\r\n\tby mx.example.net (fastedge) with ESMTP id 00000000000000000000000009\r\n" +
		"\tfor <b@example.net>;\r\n\tSun, 22 Nov 2026 08:01:39 +0000\r\n"
	if string(env.Trace) != wantTrace {
		t.Errorf("trace\n got %q\nwant %q", env.Trace, wantTrace)
	}
	env.Release()
	if out, step := s.Committed(nil, nil, later, nil); step != NeedInput || string(out) != "250 2.6.0 Message queued as 00000000000000000000000009\r\n" {
		t.Errorf("%d %q", step, out)
	}
}

// Our own bugs are loud.
func TestMisuseOfTheCommitPanics(t *testing.T) {
	panics := func(name string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", name)
			}
		}()
		f()
	}
	s, _, _ := open(t, Options{})
	panics("TakeEnvelope without a message", func() { s.TakeEnvelope(envelope.ID{}) })
	panics("Committed without a message", func() { s.Committed(nil, nil, start, nil) })
	feed(t, s, "HELO a\r\n"+group+"x\r\n.\r\n", "250", "250", "250", "354")
	panics("Feed while a message waits", func() { s.Feed([]byte("NOOP\r\n"), start, nil) })
	panics("250 without the envelope taken", func() { s.Committed(nil, nil, start, nil) })
	s.TakeEnvelope(envelope.ID{})
	panics("TakeEnvelope twice", func() { s.TakeEnvelope(envelope.ID{}) })
	if out, step := s.Shutdown(start, nil); len(out) != 0 || step != NeedInput {
		t.Errorf("Shutdown while a message waits: %q, step %d", out, step)
	}
	if out, step := s.Expire(start.Add(time.Hour), nil); len(out) != 0 || step != NeedInput {
		t.Errorf("Expire while a message waits: %q, step %d", out, step)
	}
	if out, step := s.Committed(nil, nil, start, nil); step != Close || strings.Count(string(out), "\r\n") != 2 {
		t.Errorf("after Shutdown: %q, step %d", out, step)
	}
}

// Every row of the command table can be reached and answers something; so does every verb.
func TestEveryVerbIsAnsweredInEveryState(t *testing.T) {
	setups := map[state]string{
		connected: "", greeted: "EHLO a\r\n", haveReversePath: "EHLO a\r\nMAIL FROM:<a@x>\r\n",
		recipientsRefused: "EHLO a\r\nMAIL FROM:<a@x>\r\nRCPT TO:<>\r\n", haveForwardPath: "EHLO a\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\n",
		haveChunks: "EHLO a\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nBDAT 1\r\nx",
	}
	for st, text := range setups {
		for verb := range smtpcodec.NumVerbs {
			for _, arg := range []string{"", " x", " 0", " FROM:<a@x>", " TO:<b@x>"} {
				s, _, _ := open(t, Options{})
				s.Feed([]byte(text), start, nil)
				if s.state != st {
					t.Fatalf("%q leads to state %d, want %d", text, s.state, st)
				}
				_, out, _ := s.Feed([]byte(verb.String()+arg+"\r\n"), start, nil)
				if s.phase != phaseData && (len(out) < 6 || !bytes.HasSuffix(out, []byte("\r\n"))) {
					t.Errorf("%s%s in state %d: %q", verb, arg, st, out)
				}
				s.Abort()
			}
		}
	}
}

// A client that has read nothing is owed little more than MaxReplyBytes, however many short commands with long answers it pipelines, and
// none of them is lost.
func TestRepliesOfOneFeedAreBounded(t *testing.T) {
	for _, text := range []string{"EHLO x\r\n", "HELP\r\n", "NOOP\r\n", "MAIL FROM:<a@x>\r\nRSET\r\n"} {
		s, _, _ := open(t, Options{MaxJunk: 1e6})
		_, one, _ := s.Feed([]byte("EHLO x\r\n"), start, nil)
		in := []byte(strings.Repeat(text, 4000))
		const before = "unsent"
		var all []byte
		for len(in) > 0 {
			n, out, step := s.Feed(in, start, []byte(before))
			got := len(out) - len(before)
			if n == 0 || step != NeedInput || got >= MaxReplyBytes+len(one) || n < len(in) && got < MaxReplyBytes {
				t.Fatalf("%q: step %d, %d of %d bytes used, %d bytes of replies", text, step, n, len(in), got)
			}
			all = append(all, out[len(before):]...)
			in = in[n:]
		}
		_, out, _ := s.Feed([]byte(text), start, nil)
		if !bytes.Equal(all, bytes.Repeat(out, 4000)) {
			t.Errorf("%q: replies are missing", text)
		}
	}
}

// AUTH that was not offered is refused before anybody looks at the password that may stand behind it.
func TestCredentialsAreNotShownToTheObserver(t *testing.T) {
	s, res, _ := open(t, Options{})
	book := new(notebook)
	res.Observer = book
	feed(t, s, "EHLO a\r\nauth PLAIN AHVzZXIAaHVudGVyMg==\r\nAUTH\tLOGIN\tdXNlcg==\r\nAUTH\r\n",
		"250-", "250-", "250-", "250-", "250-", "250-", "250-", "250-", "250-", "250 ", "502 5.5.1", "502 5.5.1", "502 5.5.1")
	want := []note{{StageAuth, 502, ReasonNotOffered, "PLAIN"}, {StageAuth, 502, ReasonNotOffered, "LOGIN"}, {StageAuth, 502, ReasonNotOffered, ""}}
	if fmt.Sprint(book.refused) != fmt.Sprint(want) {
		t.Errorf("refused %v\nwant    %v", book.refused, want)
	}
}

// remembering counts its calls in its slot, if it has one.
type remembering struct {
	name  string
	has   bool
	calls []string
}

func (r *remembering) Stages() policy.Stages {
	return policy.On(policy.AtHelo, policy.AtMail, policy.AtRcpt)
}
func (r *remembering) Remembers() bool { return r.has }
func (r *remembering) Validate(e *policy.Event) error {
	if !r.has {
		r.calls = append(r.calls, fmt.Sprint(e.Slot))
		return nil
	}
	was, _ := (*e.Slot).(string)
	*e.Slot = was + r.name
	r.calls = append(r.calls, (*e.Slot).(string))
	return nil
}

// The first validator that remembers has its slot in the session and the others have theirs elsewhere; none has another's, nor another session's.
func TestEachValidatorHasASlotOfItsOwnInEachSession(t *testing.T) {
	all := []*remembering{{name: "a", has: true}, {name: "-"}, {name: "b", has: true}, {name: "c", has: true}}
	var o Options
	for _, v := range all {
		o.Validators = append(o.Validators, v)
	}
	for range 2 {
		s, _, _ := open(t, o)
		s.Feed([]byte("EHLO client.example.com\r\n"), start, nil)
		feed(t, s, "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n", "250", "250")
		for _, v := range all {
			want := []string{v.name, v.name + v.name, v.name + v.name + v.name}
			if !v.has {
				want = []string{"<nil>", "<nil>", "<nil>"}
			}
			if !slices.Equal(v.calls, want) {
				t.Errorf("%s: %q, want %q", v.name, v.calls, want)
			}
			v.calls = nil
		}
	}
}
