package loadtest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/loadtest/ledger"
	"github.com/fastedge/fastedge/loadtest/report"
)

// stage is the host of one client in a test: it gives so many messages, and then none ever.
type stage struct {
	c        *composer
	plan     *plan
	recips   int
	messages int
	given    int
	parked   bool
	waits    bool // messages may still come
	bdat     func(n int) bool
}

func (h *stage) take(now int64) (message, bool) {
	if h.given == h.messages {
		return message{}, false
	}
	h.given++
	m := h.c.draw(h.plan.book.Next(), now)
	m.recipients = h.recips
	if h.bdat != nil {
		m.bdat = h.bdat(h.given)
	}
	return m, true
}

func (h *stage) park(client) bool {
	h.parked = h.waits
	return !h.waits
}

// scene is one client without a network.
type scene struct {
	client
	plan  *plan
	tally *tally
	stage *stage
	out   []byte // all that it wrote
	now   int64
}

func newScene(t testing.TB, o Options, recips, messages int) *scene {
	t.Helper()
	o.Target = "127.0.0.1:25"
	o.Connections = 1
	o.Size = FixedSize(1000)
	o.Recipients = Range{1, max(recips, 1)}
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	p := newPlan(o)
	s := &scene{plan: p, tally: &tally{replies: make(map[report.Reply]int64), notOffered: make(map[string]bool), muted: true}, stage: &stage{plan: p, c: newComposer(p, 1), recips: recips, messages: messages}}
	s.client = p.newClient(s.tally, s.stage, s.stage.c, 0, o.STARTTLS > 0)
	if o.SessionsOnly {
		s.tally.inFlight = 1 // as its driver does
	}
	return s
}

// inFlight is what the tally has, but for a session that its driver would count as lost.
func (s *scene) inFlight() int64 {
	if s.plan.SessionsOnly && !s.wire().ended {
		return s.tally.inFlight - 1
	}
	return s.tally.inFlight
}

// flush writes what is queued, and gives it.
func (s *scene) flush() string {
	before := len(s.out)
	for w := s.wire(); len(w.out) > 0; {
		part := w.out[0]
		s.out = append(s.out, part...)
		if w.wrote(len(part)) {
			s.now++
			s.flushed(s.now)
		}
	}
	return string(s.out[before:])
}

func (s *scene) feed(text string, step int) {
	for len(text) > 0 {
		n := min(step, len(text))
		s.now++
		s.client.feed([]byte(text[:n]), s.now)
		text = text[n:]
	}
}

// notes is the ledger: a letter for each delivery, a word for each message.
func (s *scene) notes() string {
	var words []string
	for seq := range s.plan.book.Issued() {
		var word []byte
		for i := range s.stage.recips {
			word = append(word, "-R?A"[s.plan.book.Outcome(seq, i)])
		}
		words = append(words, string(word))
	}
	return strings.Join(words, " ")
}

// counts is acknowledged, deferred, refused, errors.
func (s *scene) counts() string {
	n := s.tally.totals
	return fmt.Sprintf("%d %d %d %d", n.Acknowledged, n.Deferred, n.Refused, n.Errors)
}

var dataPattern = regexp.MustCompile(`(?s)X-Loadtest: .*?-- the end of message (\d+) of run [0-9a-f]{16}\r\n(\.\r\n)?`)
var rcptPattern = regexp.MustCompile(`<lt\.0*(\d+)\.0*(\d+)\.[0-9a-f]{16}@bench.test>`)

// plainly is what was written, with short words for addresses and data.
func plainly(out string) string {
	out = dataPattern.ReplaceAllStringFunc(out, func(data string) string {
		if strings.HasSuffix(data, "\r\n.\r\n") {
			return "(data)\r\n.\r\n"
		}
		return "(" + strconv.Itoa(len(data)) + ")\r\n"
	})
	out = rcptPattern.ReplaceAllStringFunc(out, func(a string) string {
		m := rcptPattern.FindStringSubmatch(a)
		seq, _ := strconv.Atoi(m[1])
		i, _ := strconv.Atoi(m[2])
		return fmt.Sprintf("<%d.%d>", seq, i)
	})
	return strings.ReplaceAll(out, "<sender@client.test>", "<s>")
}

// transcript is a conversation: lines that begin with "S: " are fed, those with "C: " must then have been written, no more and no less.
// "TLS" is a handshake, "CLOSED" the end of the connection, "END" a client that wants to close: in order with "END ok".
type transcript struct {
	name     string
	o        Options
	recips   int
	messages int
	bdat     func(n int) bool
	text     string
	notes    string
	counts   string
}

const hello = `
S: 220 there
C: EHLO client.test
S: 250-there
S: 250-PIPELINING
S: 250-STARTTLS
S: 250-AUTH PLAIN LOGIN
S: 250 CHUNKING
`

const helloGroup = hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: RCPT TO:<0.1>
C: DATA
`

const helloBDAT = hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: RCPT TO:<0.1>
C: BDAT 1000 LAST
C: (1000)
`

const bye = `
C: QUIT
S: 221 bye
END ok
`

func every(int) bool { return true }

var transcripts = []transcript{
	{name: "one command at a time", recips: 2, messages: 1, notes: "AA", counts: "1 0 0 0", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: RCPT TO:<0.1>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "group", o: Options{Pipelining: "group"}, recips: 2, messages: 1, notes: "AA", counts: "1 0 0 0", text: helloGroup + `
S: 250 ok
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "two senders", o: Options{Pipelining: "tight", From: "s#@c#.example"}, recips: 1, messages: 2, notes: "A A", counts: "2 0 0 0", text: hello + `
C: MAIL FROM:<s0@c0.example>
C: RCPT TO:<0.0>
C: DATA
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
C: MAIL FROM:<s1@c1.example>
C: RCPT TO:<1.0>
C: DATA
S: 250 ok
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "two messages, tight", o: Options{Pipelining: "tight"}, recips: 1, messages: 2, notes: "A A", counts: "2 0 0 0", text: hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: DATA
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
C: MAIL FROM:<s>
C: RCPT TO:<1.0>
C: DATA
S: 250 ok
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "tight, the first refused at the end", o: Options{Pipelining: "tight"}, recips: 1, messages: 2, notes: "R A", counts: "1 1 0 0", text: hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: DATA
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
C: MAIL FROM:<s>
C: RCPT TO:<1.0>
C: DATA
S: 451 no
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "tight, the second refused at RCPT", o: Options{Pipelining: "tight"}, recips: 1, messages: 2, notes: "A R", counts: "1 0 1 0", text: hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: DATA
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
C: MAIL FROM:<s>
C: RCPT TO:<1.0>
C: DATA
S: 250 ok
S: 250 ok
S: 550 no
S: 503 nobody
C: RSET
S: 250 ok` + bye},
	{name: "tight, 421 instead of the end of the first", o: Options{Pipelining: "tight"}, recips: 1, messages: 2, notes: "R R", counts: "0 2 0 0", text: hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: DATA
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
C: MAIL FROM:<s>
C: RCPT TO:<1.0>
C: DATA
S: 421 shutting down
END`},
	{name: "tight, lost before any reply", o: Options{Pipelining: "tight"}, recips: 1, messages: 2, notes: "? -", counts: "0 0 0 2", text: hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: DATA
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
C: MAIL FROM:<s>
C: RCPT TO:<1.0>
C: DATA
CLOSED
END`},
	{name: "tight, BDAT behind DATA", o: Options{Pipelining: "tight", BDAT: 0.5}, bdat: func(n int) bool { return n == 2 }, recips: 1, messages: 2,
		notes: "A A", counts: "2 0 0 0", text: hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: DATA
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
C: MAIL FROM:<s>
C: RCPT TO:<1.0>
S: 250 ok
S: 250 ok
S: 250 ok
C: BDAT 1000 LAST
C: (1000)
S: 250 ok` + bye},
	{name: "tight, BDAT behind DATA refused", o: Options{Pipelining: "tight", BDAT: 0.5}, bdat: func(n int) bool { return n == 2 }, recips: 1, messages: 2,
		notes: "A R", counts: "1 0 1 0", text: hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: DATA
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
C: MAIL FROM:<s>
C: RCPT TO:<1.0>
S: 250 ok
S: 250 ok
S: 550 no
C: RSET
S: 250 ok` + bye},
	{name: "BDAT one command at a time", o: Options{BDAT: 1}, bdat: every, recips: 1, messages: 1, notes: "A", counts: "1 0 0 0", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: BDAT 1000 LAST
C: (1000)
S: 250 ok` + bye},
	{name: "BDAT in the group", o: Options{Pipelining: "group", BDAT: 1}, bdat: every, recips: 2, messages: 1, notes: "RA", counts: "1 0 0 0", text: helloBDAT + `
S: 250 ok
S: 450 busy
S: 250 ok
S: 250 ok` + bye},
	{name: "BDAT after a refused MAIL", o: Options{Pipelining: "group", BDAT: 1}, bdat: every, recips: 2, messages: 1, notes: "RR", counts: "0 0 1 0", text: helloBDAT + `
S: 550 no
S: 503 no mail
S: 503 no mail
S: 503 nobody` + bye},
	{name: "BDAT without recipients leaves a transaction that RSET ends", o: Options{Pipelining: "group", BDAT: 1}, bdat: every, recips: 2, messages: 1,
		notes: "RR", counts: "0 1 0 0", text: helloBDAT + `
S: 250 ok
S: 450 no
S: 550 no
S: 554 nobody
C: RSET
S: 250 ok` + bye},
	{name: "BDAT without recipients that is taken all the same", o: Options{Pipelining: "group", BDAT: 1}, bdat: every, recips: 2, messages: 1,
		notes: "RR", counts: "0 0 1 0", text: helloBDAT + `
S: 250 ok
S: 550 no
S: 550 no
S: 250 whatever
C: RSET
S: 250 ok` + bye},
	{name: "BDAT and CHUNKING is not offered", o: Options{BDAT: 1}, bdat: every, recips: 1, messages: 1, notes: "A", counts: "1 0 0 0", text: `
S: 220 there
C: EHLO client.test
S: 250 there
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "BDAT answered before it is due", o: Options{Pipelining: "group", BDAT: 1}, bdat: every, recips: 2, messages: 1, notes: "??", counts: "0 0 0 1",
		text: helloBDAT + `
S: 250 ok
CLOSED
END`},
	{name: "group and PIPELINING is not offered", o: Options{Pipelining: "group"}, recips: 1, messages: 1, notes: "A", counts: "1 0 0 0", text: `
S: 220 there
C: EHLO client.test
S: 250 there
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "one recipient of several refused", recips: 2, messages: 1, notes: "RA", counts: "1 0 0 0", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 550 no
C: RCPT TO:<0.1>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "all recipients refused", recips: 2, messages: 2, notes: "RR AA", counts: "1 0 1 0", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 550 no
C: RCPT TO:<0.1>
S: 450 no
C: RSET
S: 250 ok
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<1.0>
S: 250 ok
C: RCPT TO:<1.1>
S: 251 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "MAIL refused", recips: 1, messages: 1, notes: "R", counts: "0 1 0 0", text: hello + `
C: MAIL FROM:<s>
S: 451 later` + bye},
	{name: "MAIL refused in a group", o: Options{Pipelining: "group"}, recips: 2, messages: 1, notes: "RR", counts: "0 0 1 0", text: helloGroup + `
S: 550 no
S: 503 no mail
S: 503 no mail
S: 503 no mail` + bye},
	{name: "DATA refused", recips: 1, messages: 1, notes: "R", counts: "0 1 0 0", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 452 full
C: RSET
S: 250 ok` + bye},
	{name: "DATA refused in a group", o: Options{Pipelining: "group"}, recips: 2, messages: 1, notes: "RR", counts: "0 0 1 0", text: helloGroup + `
S: 250 ok
S: 250 ok
S: 250 ok
S: 554 no
C: RSET
S: 250 ok` + bye},
	{name: "354 without recipients gets an end of data. RFC 2920 section 3.1", o: Options{Pipelining: "group"}, recips: 2, messages: 1, notes: "RR",
		counts: "0 0 1 0", text: helloGroup + `
S: 250 ok
S: 550 no
S: 550 no
S: 354 go on
C: .
S: 554 nobody` + bye},
	{name: "354 without recipients, and 250 for nothing", o: Options{Pipelining: "group"}, recips: 2, messages: 1, notes: "RR",
		counts: "0 1 0 0", text: helloGroup + `
S: 250 ok
S: 450 no
S: 450 no
S: 354 go on
C: .
S: 250 fine` + bye},
	{name: "refused at the end", recips: 1, messages: 2, notes: "R R", counts: "0 1 1 0", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 554 no
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<1.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 451 no` + bye},
	{name: "a session's limit", o: Options{PerConnection: 1, Pipelining: "tight"}, recips: 1, messages: 2, notes: "A", counts: "1 0 0 0", text: hello + `
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: DATA
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "HELO where EHLO is not known", o: Options{Pipelining: "group"}, recips: 1, messages: 1, notes: "A", counts: "1 0 0 0", text: `
S: 220-there
S: 220 is more
C: EHLO client.test
S: 502-what is that
S: 502 PIPELINING
C: HELO client.test
S: 250 ok
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "EHLO refused for now", recips: 1, messages: 1, notes: "", counts: "0 0 0 0", text: `
S: 220 there
C: EHLO client.test
S: 450 busy
END`},
	{name: "a greeting that refuses", recips: 1, messages: 1, notes: "", counts: "0 0 0 0", text: `
S: 554 no
END`},
	{name: "replies of several lines, and without text", recips: 1, messages: 1, notes: "A", counts: "1 0 0 0", text: hello + `
C: MAIL FROM:<s>
S: 250-one
S: 250-
S: 250 three
C: RCPT TO:<0.0>
S: 250
C: DATA
S: 354
C: (data)
C: .
S: 250-almost
S: 250 ok` + bye},
	{name: "LMTP has a reply for each recipient", o: Options{Protocol: "lmtp", Pipelining: "group"}, recips: 4, messages: 1, notes: "ARRA", counts: "1 0 0 0", text: `
S: 220 there
C: LHLO client.test
S: 250-there
S: 250 PIPELINING
C: MAIL FROM:<s>
C: RCPT TO:<0.0>
C: RCPT TO:<0.1>
C: RCPT TO:<0.2>
C: RCPT TO:<0.3>
C: DATA
S: 250 ok
S: 250 ok
S: 550 no
S: 250 ok
S: 250 ok
S: 354 go on
C: (data)
C: .
S: 250 ok
S: 451-not
S: 451 now
S: 250 ok` + bye},
	{name: "LMTP, refused by all", o: Options{Protocol: "lmtp"}, recips: 2, messages: 1, notes: "RR", counts: "0 1 0 0", text: `
S: 220 there
C: LHLO client.test
S: 250 there
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: RCPT TO:<0.1>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 451 no
S: 554 no` + bye},
	{name: "LMTP, 421 for the second recipient", o: Options{Protocol: "lmtp"}, recips: 3, messages: 1, notes: "AR?", counts: "1 0 0 0", text: `
S: 220 there
C: LHLO client.test
S: 250 there
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: RCPT TO:<0.1>
S: 250 ok
C: RCPT TO:<0.2>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 250 ok
S: 421 no
END`},
	{name: "LMTP, BDAT", o: Options{Protocol: "lmtp", BDAT: 1}, bdat: every, recips: 2, messages: 1, notes: "AR", counts: "1 0 0 0", text: `
S: 220 there
C: LHLO client.test
S: 250-there
S: 250 CHUNKING
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: RCPT TO:<0.1>
S: 250 ok
C: BDAT 1000 LAST
C: (1000)
S: 250 ok
S: 550 no` + bye},
	{name: "STARTTLS, and EHLO again", o: Options{STARTTLS: 1, Pipelining: "group"}, recips: 1, messages: 1, notes: "A", counts: "1 0 0 0", text: hello + `
C: STARTTLS
S: 220 go on
TLS
C: EHLO client.test
S: 250 there
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 250 ok` + bye},
	{name: "STARTTLS is not offered", o: Options{STARTTLS: 1}, recips: 1, messages: 1, notes: "", counts: "0 0 0 0", text: `
S: 220 there
C: EHLO client.test
S: 250 there
END`},
	{name: "STARTTLS refused", o: Options{STARTTLS: 1}, recips: 1, messages: 1, notes: "", counts: "0 0 0 0", text: hello + `
C: STARTTLS
S: 454 not now
END`},
	{name: "AUTH PLAIN", o: Options{Auth: &Auth{User: "tim", Password: "tanstaaftanstaaf"}}, recips: 1, messages: 0, notes: "", counts: "0 0 0 0", text: hello + `
C: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm
S: 235 ok` + bye},
	{name: "AUTH LOGIN", o: Options{Auth: &Auth{Mechanism: "LOGIN", User: "tim", Password: "tanstaaf"}}, recips: 1, messages: 1, notes: "R", counts: "0 0 1 0", text: hello + `
C: AUTH LOGIN
S: 334 VXNlcm5hbWU6
C: dGlt
S: 334 UGFzc3dvcmQ6
C: dGFuc3RhYWY=
S: 235 ok
C: MAIL FROM:<s>
S: 550 no` + bye},
	{name: "AUTH LOGIN where that is all there is", o: Options{Auth: &Auth{User: "tim", Password: "x"}}, recips: 1, messages: 0, notes: "", counts: "0 0 0 0", text: `
S: 220 there
C: EHLO client.test
S: 250-there
S: 250 AUTH CRAM-MD5 LOGIN
C: AUTH LOGIN
S: 334 VXNlcm5hbWU6
C: dGlt
S: 334 UGFzc3dvcmQ6
C: eA==
S: 235 ok` + bye},
	{name: "AUTH refused", o: Options{Auth: &Auth{User: "tim", Password: "wrong"}}, recips: 1, messages: 1, notes: "", counts: "0 0 0 0", text: hello + `
C: AUTH PLAIN AHRpbQB3cm9uZw==
S: 535 AHRpbQB3cm9uZw== is wrong
END`},
	{name: "AUTH PLAIN asked again", o: Options{Auth: &Auth{User: "tim", Password: "wrong"}}, recips: 1, messages: 1, notes: "", counts: "0 0 0 0", text: hello + `
C: AUTH PLAIN AHRpbQB3cm9uZw==
S: 334 really
END`},
	{name: "sessions only", o: Options{SessionsOnly: true}, notes: "", counts: "0 0 0 0", text: hello + bye},
	{name: "a PROXY header", o: Options{Proxy: 1}, recips: 1, messages: 0, notes: "", counts: "0 0 0 0", text: `
C: PROXY TCP4 198.18.0.0 127.0.0.1 1024 25
` + hello + bye},
	{name: "421 to MAIL", recips: 1, messages: 2, notes: "R", counts: "0 1 0 0", text: hello + `
C: MAIL FROM:<s>
S: 421 over the limit
END`},
	{name: "421 in a group", o: Options{Pipelining: "group"}, recips: 2, messages: 2, notes: "RR", counts: "0 1 0 0", text: helloGroup + `
S: 250 ok
S: 421-over the
S: 421 limit
END`},
	{name: "421 after the data", recips: 1, messages: 1, notes: "R", counts: "0 1 0 0", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 421 not any more
END`},
	{name: "closed instead of a reply to the data", recips: 2, messages: 1, notes: "??", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: RCPT TO:<0.1>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
CLOSED
END`},
	{name: "closed instead of a reply to DATA", recips: 1, messages: 1, notes: "-", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
CLOSED
END`},
	{name: "no reply", recips: 1, messages: 1, notes: "-", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
S: hello
END`},
	{name: "no reply to the data", recips: 1, messages: 1, notes: "?", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 2500 ok
END`},
	{name: "354 to the data", recips: 1, messages: 1, notes: "?", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 354 go on
END`},
	{name: "a reply that contradicts itself", recips: 1, messages: 1, notes: "?", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 354 go on
C: (data)
C: .
S: 250-ok
S: 550 or not
END`},
	{name: "250 to DATA", recips: 1, messages: 1, notes: "R", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
C: RCPT TO:<0.0>
S: 250 ok
C: DATA
S: 250 ok
C: RSET
S: 250 ok` + bye},
	{name: "more replies than commands", recips: 1, messages: 1, notes: "-", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
S: 250 ok
S: 250 ok
END`},
	{name: "a line that is too long", recips: 1, messages: 1, notes: "-", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
S: 250 ` + strings.Repeat("x", maxReplyLine) + `
END`},
	{name: "the longest line", recips: 1, messages: 1, notes: "R", counts: "0 0 1 0", text: hello + `
C: MAIL FROM:<s>
S: 550 ` + strings.Repeat("x", maxReplyLine-6) + bye},
	{name: "a reply with too many lines", recips: 1, messages: 1, notes: "-", counts: "0 0 0 1", text: hello + `
C: MAIL FROM:<s>
` + strings.Repeat("S: 250-x\n", maxReplyLines+1) + `END`},
	{name: "a reply with as many lines as may be", recips: 1, messages: 1, notes: "R", counts: "0 0 1 0", text: hello + `
C: MAIL FROM:<s>
` + strings.Repeat("S: 550-x\n", maxReplyLines) + `S: 550 x` + bye},
	{name: "closed instead of a reply to QUIT", recips: 1, messages: 0, notes: "", counts: "0 0 0 0", text: hello + `
C: QUIT
CLOSED
END`},
}

// step is a part of a transcript: replies, or an event, and what is written afterwards.
type step struct {
	replies, event, written string
}

func (tr *transcript) steps() (steps []step) {
	cur := step{}
	for line := range strings.Lines(tr.text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "":
		case strings.HasPrefix(line, "S:"):
			if cur.written != "" || cur.event != "" {
				steps, cur = append(steps, cur), step{}
			}
			cur.replies += strings.TrimPrefix(strings.TrimPrefix(line, "S:"), " ") + "\r\n"
		case strings.HasPrefix(line, "C: "):
			cur.written += line[3:] + "\r\n"
		default:
			steps, cur = append(steps, cur), step{event: line}
		}
	}
	return append(steps, cur)
}

// play goes through a transcript; replies come in pieces of n octets. After limit octets of replies the connection is lost.
func (tr *transcript) play(t *testing.T, n, limit int) *scene {
	t.Helper()
	s := newScene(t, tr.o, tr.recips, tr.messages)
	s.stage.bdat = tr.bdat
	s.open(0)
	first := true
	for _, st := range tr.steps() {
		switch st.event {
		case "":
			if first && st.replies == "" {
				break
			}
			text := st.replies
			if limit >= 0 && len(text) > limit {
				s.feed(text[:limit], n)
				s.flush()
				s.lost("gone", s.now)
				return s
			}
			limit -= len(text)
			s.feed(text, n)
		case "TLS":
			if s.wire().wish != wantTLS {
				t.Fatalf("does not want TLS")
			}
			s.secured(s.now)
		case "CLOSED":
			s.lost("gone", s.now)
		case "END", "END ok":
			if limit < 0 || n == 1<<20 {
				if w := s.wire(); w.wish != wantClose || w.ended != (st.event == "END ok") {
					t.Fatalf("wish %v, ended %v; want %s", w.wish, w.ended, st.event)
				}
			}
		}
		first = false
		if got := plainly(s.flush()); got != st.written {
			t.Fatalf("after %q %s:\nwrote %q\nwant  %q", st.replies, st.event, got, st.written)
		}
	}
	if s.wire().wish == wantNothing {
		t.Fatal("the transcript ended before the session")
	}
	return s
}

const whole = 1 << 20

func (tr *transcript) octets() (n int) {
	for _, st := range tr.steps() {
		n += len(st.replies)
	}
	return n
}

func TestTranscripts(t *testing.T) {
	for _, tr := range transcripts {
		t.Run(tr.name, func(t *testing.T) {
			for _, n := range []int{whole, 1, 2, 3, 7} {
				s := tr.play(t, n, -1)
				if s.notes() != tr.notes || s.counts() != tr.counts || s.inFlight() != 0 {
					t.Errorf("in pieces of %d: notes %q, want %q; counts %q, want %q; %d in flight", n, s.notes(), tr.notes, s.counts(), tr.counts, s.tally.inFlight)
				}
			}
		})
	}
}

// Where the replies are split makes no difference: two pieces, at every position.
func TestASplitReplyStreamGivesTheSame(t *testing.T) {
	for nth, tr := range transcripts {
		if tr.name == "more replies than commands" {
			continue // that there are too many shows only if they come at once
		}
		t.Run(tr.name, func(t *testing.T) {
			want := tr.play(t, whole, -1)
			steps := tr.steps()
			for at, st := range steps {
				if len(st.replies) > 3000 || nth > 0 && strings.Contains(hello, st.replies[:min(10, len(st.replies))]) {
					continue // of long lines there are other tests, and one of the first replies is enough
				}
				for k := 1; k < len(st.replies); k++ {
					s := newScene(t, tr.o, tr.recips, tr.messages)
					s.stage.bdat = tr.bdat
					s.open(0)
					for i, other := range steps {
						switch {
						case i == at:
							s.feed(other.replies[:k], whole)
							s.flush()
							s.feed(other.replies[k:], whole)
						case other.event == "TLS":
							s.secured(s.now)
						case other.event == "CLOSED":
							s.lost("gone", s.now)
						default:
							s.feed(other.replies, whole)
						}
						s.flush()
					}
					if s.notes() != want.notes() || s.counts() != want.counts() || plainly(string(s.out)) != plainly(string(want.out)) {
						t.Fatalf("split at %d of %q: %s, %s", k, st.replies, s.notes(), s.counts())
					}
				}
			}
		})
	}
}

// The connection may end after every octet of the replies. A delivery is acknowledged from the last octet of its 250 on, unknown only from the
// last octet of its data on, and every message is counted once.
func TestLostAfterEveryOctet(t *testing.T) {
	for _, tr := range transcripts {
		if tr.octets() > 3000 {
			continue
		}
		t.Run(tr.name, func(t *testing.T) {
			var stream string
			for _, st := range tr.steps() {
				stream += st.replies
			}
			final := tr.play(t, whole, -1)
			before := ""
			for k := range len(stream) + 1 {
				s := tr.play(t, whole, k)
				n := s.tally.totals
				if sum := n.Acknowledged + n.Deferred + n.Refused + n.Errors; sum != int64(s.stage.given) || s.inFlight() != 0 {
					t.Fatalf("after %q: %d messages, %s; %d in flight", stream[:k], s.stage.given, s.counts(), s.tally.inFlight)
				}
				if s.wire().wish != wantClose {
					t.Fatalf("after %q it does not close", stream[:k])
				}
				for seq := range s.plan.book.Issued() {
					sent := bytes.Contains(s.out, fmt.Appendf(nil, "-- the end of message %010d of run", seq))
					for i := range tr.recips {
						got, last := s.plan.book.Outcome(seq, i), final.plan.book.Outcome(seq, i)
						at := int(seq)*(tr.recips+1) + i
						switch {
						case got == ledger.Acknowledged && last != got, got == ledger.Refused && last != got && last != ledger.Unsent:
							t.Errorf("after %q: %v, and later %v", stream[:k], got, last)
						case got == ledger.Acknowledged && before[at] != 'A':
							if line := stream[strings.LastIndexByte(stream[:k-1], '\n')+1 : k]; before[at] != '?' || line[0] != '2' || line[len(line)-1] != '\n' {
								t.Errorf("acknowledged by %q after %q", line, before[at])
							}
						case got == ledger.Unknown && !sent:
							t.Errorf("after %q: unknown, and the data was not sent", stream[:k])
						case got == ledger.Unsent && sent:
							t.Errorf("after %q: unsent, and the data was", stream[:k])
						}
					}
				}
				before = s.notes()
			}
		})
	}
}

func TestAnEarlyAnswerToTheDataEndsTheSession(t *testing.T) {
	for reply, counts := range map[string]string{"552 too big\r\n": "0 0 1 0", "451 no\r\n": "0 1 0 0", "250 ok\r\n": "0 1 0 0", "421 bye\r\n": "0 1 0 0"} {
		for _, mode := range []string{"off", "tight"} {
			s := newScene(t, Options{Pipelining: mode}, 1, 1)
			upToData(s)
			s.wire().wrote(100)
			s.feed(reply, whole)
			if s.wire().wish != wantClose || s.wire().ended || s.notes() != "R" || s.counts() != counts || len(s.wire().out) != 0 {
				t.Errorf("%s %q: %v, %s, %s", mode, reply, s.wire().wish, s.notes(), s.counts())
			}
		}
	}
}

// upToData is a session until message data is queued.
func upToData(s *scene) {
	s.open(0)
	s.feed("220 x\r\n", whole)
	s.flush()
	s.feed("250-x\r\n250 PIPELINING\r\n", whole)
	for range 5 {
		if bytes.HasPrefix(s.wire().out[0], []byte("X-Loadtest")) {
			return
		}
		if out := s.flush(); strings.HasSuffix(out, "DATA\r\n") {
			if strings.HasPrefix(out, "MAIL") {
				s.feed("250 ok\r\n250 ok\r\n", whole)
			}
			s.feed("354 ok\r\n", whole)
		} else {
			s.feed("250 ok\r\n", whole)
		}
	}
}

// In tight mode the end of data may be handed over while the next command group is not.
func TestTheEndOfDataCountsThoughTheNextGroupIsNotWritten(t *testing.T) {
	for _, missing := range []int{1, 10, 50} {
		for reply, want := range map[string]string{"250 ok\r\n": "A -", "": "? -", "550 no\r\n": "R -"} {
			s := newScene(t, Options{Pipelining: "tight"}, 1, 2)
			upToData(s)
			w := s.wire()
			w.wrote(w.left() - missing)
			s.feed(reply, whole)
			if w.wish != wantNothing {
				t.Fatalf("%q: closed", reply)
			}
			s.lost("gone", 9)
			if s.notes() != want || s.tally.inFlight != 0 {
				t.Errorf("%d octets missing, %q: %s, want %s", missing, reply, s.notes(), want)
			}
		}
	}
	s := newScene(t, Options{Pipelining: "tight"}, 1, 2)
	upToData(s)
	w := s.wire()
	behind := len(plainly("")) + s.client.(*session).behind
	w.wrote(w.left() - behind - 1)
	s.lost("gone", 9)
	if s.notes() != "- -" || s.counts() != "0 0 0 2" {
		t.Errorf("an octet before the end of data: %s %s", s.notes(), s.counts())
	}
}

func TestAParkedSessionStartsAndQuits(t *testing.T) {
	s := newScene(t, Options{Pipelining: "group"}, 1, 0)
	s.stage.waits = true
	s.open(0)
	s.feed("220 x\r\n", whole)
	s.flush()
	s.feed("250 x\r\n", whole)
	if !s.stage.parked || s.wire().awaiting || len(s.wire().out) > 0 {
		t.Fatal("not parked")
	}
	s.stage.messages++
	m, _ := s.stage.take(5)
	s.start(m, 5)
	if got := plainly(s.flush()); got != "MAIL FROM:<s>\r\n" {
		t.Errorf("wrote %q", got)
	}
	s.feed("550 no\r\n", whole)
	s.quit(7)
	if got := s.flush(); got != "QUIT\r\n" {
		t.Errorf("wrote %q", got)
	}
	s.feed("221 bye\r\n", whole)
	if !s.wire().ended || s.tally.totals.Sessions != 1 {
		t.Error("not ended")
	}
}

func TestA421ToAParkedSessionEndsIt(t *testing.T) {
	s := newScene(t, Options{}, 1, 0)
	s.stage.waits = true
	s.open(0)
	s.feed("220 x\r\n", whole)
	s.flush()
	s.feed("250 x\r\n", whole)
	s.feed("421 idle\r\n", whole)
	if s.wire().wish != wantClose || s.wire().ended {
		t.Error("it goes on")
	}
}

func TestThePasswordIsInNoText(t *testing.T) {
	for _, reply := range []string{"535 %s", "535 hunter22", "junk %s", "junk hunter22", "535-%s\r\n"} {
		s := newScene(t, Options{Auth: &Auth{User: "u", Password: "hunter22"}}, 1, 1)
		s.open(0)
		s.feed("220 x\r\n", whole)
		s.flush()
		s.feed("250-x\r\n250 AUTH PLAIN\r\n", whole)
		sent := strings.Fields(s.flush())[2]
		s.feed(strings.ReplaceAll(reply, "%s", strings.Repeat("x", 40)+sent)+"\r\n", whole)
		s.lost("gone", 9)
		texts := slices.Collect(maps.Keys(s.tally.replies))
		if len(texts) == 0 {
			t.Errorf("%q left no text", reply)
		}
		for _, r := range texts {
			if strings.Contains(r.Text, "hunter22") || strings.Contains(r.Text, sent) || strings.Contains(r.Text, base64.StdEncoding.EncodeToString([]byte("hunter22"))) {
				t.Errorf("%q", r.Text)
			}
		}
	}
}

func TestTheTargetIsDescribedOnceAndAsItIsUnderTLS(t *testing.T) {
	s := newScene(t, Options{STARTTLS: 1}, 1, 0)
	s.open(0)
	s.feed("220 there\r\n", whole)
	s.flush()
	s.feed("250-there\r\n250-ONE\r\n250 STARTTLS\r\n", whole)
	s.flush()
	s.feed("220 go\r\n", whole)
	s.secured(3)
	s.flush()
	s.feed("250-there\r\n250-TWO\r\n250 THREE\x1b\r\n", whole)
	if s.tally.banner != "220 there" || !slices.Equal(s.tally.words, []string{"TWO", "THREE?"}) {
		t.Errorf("%q %q", s.tally.banner, s.tally.words)
	}
}

func TestAMessageAllocatesNothing(t *testing.T) {
	for _, mode := range []string{"off", "group", "tight"} {
		for _, bdat := range []float64{0, 1} {
			s := newScene(t, Options{Pipelining: mode, BDAT: bdat}, 2, 1<<30)
			s.client.(*session).tally = newTally()
			s.tally = s.client.(*session).tally
			in := make([]byte, 1000)
			s.open(0)
			s.feed("220 x\r\n", whole)
			s.flush()
			line := func(text string) {
				s.client.feed(in[:copy(in, text)], 1)
				for w := s.wire(); len(w.out) > 0; {
					if w.wrote(len(w.out[0])) {
						s.flushed(1)
					}
				}
			}
			line("250-x\r\n250-CHUNKING\r\n250 PIPELINING\r\n")
			one := func() {
				switch {
				case mode == "off" && bdat == 0:
					line("250 ok\r\n")
					line("250 ok\r\n")
					line("250 ok\r\n")
					line("354 ok\r\n")
					line("250 ok\r\n")
				case mode == "off":
					line("250 ok\r\n")
					line("250 ok\r\n")
					line("250 ok\r\n")
					line("250 ok\r\n")
				case bdat == 0:
					line("250 ok\r\n250 ok\r\n250 ok\r\n354 ok\r\n")
					line("250 ok\r\n")
				default:
					line("250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n")
				}
			}
			for range 100 {
				one()
			}
			if n := testing.AllocsPerRun(1000, one); n != 0 {
				t.Errorf("%s, bdat %v: %v allocations", mode, bdat, n)
			}
			if s.tally.totals.Acknowledged < 1100 || s.tally.totals.Errors != 0 {
				t.Errorf("%s: %+v", mode, s.tally.totals)
			}
		}
	}
}

func TestProxyHeaders(t *testing.T) {
	if got := string(proxyHeader(1, 131071)); got != "PROXY TCP4 198.19.255.255 127.0.0.1 12095 25\r\n" {
		t.Errorf("v1: %q", got)
	}
	want := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc6\x12\x00\x01\x7f\x00\x00\x01\x04\x01\x00\x19"
	if got := string(proxyHeader(2, 1)); got != want {
		t.Errorf("v2: %q", got)
	}
}
