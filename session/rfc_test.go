package session

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/smtpcodec"
)

// One requirement a test, with the section that makes it. What needs a dialogue of some length is a transcript in testdata instead.

// greetedSession is a session after EHLO.
func greetedSession(t *testing.T, o Options) *Session {
	t.Helper()
	s, _, _ := open(t, o)
	s.Feed([]byte("EHLO client.example.com\r\n"), start, nil)
	return s
}

// RFC 5321 §3.1, §4.2: the greeting is 220 with the host name first. §4.3.1.
func TestGreetingNamesTheHost(t *testing.T) {
	for _, c := range []struct {
		lmtp bool
		want string
	}{
		{false, "220 mx.example.net ESMTP Mail Gateway\r\n"},
		{true, "220 mx.example.net LMTP Mail Gateway\r\n"},
	} {
		res, _ := newResources()
		var s Session
		out, step := s.Open(NewServer(Options{Hostname: "mx.example.net", LMTP: c.lmtp}), res, Peer{}, start, []byte("x"))
		if string(out) != "x"+c.want || step != NeedInput {
			t.Errorf("%q, step %d", out, step)
		}
	}
}

// RFC 5321 §4.1.1.1: a session needs EHLO or HELO before MAIL (§4.1.4), and §4.5.1 the minimum set of commands works.
func TestMinimumImplementation(t *testing.T) {
	s, _, _ := open(t, Options{})
	feed(t, s, "MAIL FROM:<a@example.com>\r\n", "503")
	for _, c := range []string{"HELO a", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.net>", "RSET", "NOOP", "VRFY b", "QUIT"} {
		_, out, _ := s.Feed([]byte(c+"\r\n"), start, nil)
		if out[0] != '2' {
			t.Errorf("%s: %q", c, out)
		}
	}
}

// RFC 5321 §4.5.1: mail for postmaster is accepted in any case of the word, with and without domain.
func TestPostmasterIsAccepted(t *testing.T) {
	s := greetedSession(t, Options{})
	feed(t, s, "MAIL FROM:<>\r\nRCPT TO:<Postmaster>\r\nRCPT TO:<POSTMASTER@example.net>\r\n", "250", "250", "250")
}

// RFC 5321 §4.5.5: the null reverse-path is accepted.
func TestNullReversePathIsAccepted(t *testing.T) {
	s := greetedSession(t, Options{})
	feed(t, s, "MAIL FROM:<>\r\n", "250 2.1.0 <> Ok")
	if s.ReversePath() != nil {
		t.Errorf("reverse-path %q", s.ReversePath())
	}
}

// RFC 5321 §4.1.1.5: RSET has no argument and ends the transaction; §4.1.1.10: QUIT has none either.
func TestRsetAndQuitTakeNoArgument(t *testing.T) {
	s := greetedSession(t, Options{})
	feed(t, s, "RSET x\r\nQUIT x\r\nDATA x\r\n", "501", "501", "501")
}

// RFC 5321 §4.1.1.11: MAIL with an unknown parameter is 555, as is RCPT.
func TestUnknownParameterIs555(t *testing.T) {
	s := greetedSession(t, Options{})
	feed(t, s, "MAIL FROM:<a@x> FOO=1\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x> FOO\r\n", "555 5.5.4", "250", "555 5.5.4")
}

// RFC 5321 §4.2: each reply line is the code, a blank or hyphen, text, CRLF; §4.5.3.1.5: at most 512 bytes.
func TestLongPathsFitReplyLines(t *testing.T) {
	s := greetedSession(t, Options{})
	path := strings.Repeat("a", 64) + "@" + strings.Repeat("b", 60) + "." + strings.Repeat("c", 60) + "." + strings.Repeat("d", 60)
	_, out, _ := s.Feed([]byte("MAIL FROM:<"+path+">\r\n"), start, nil)
	if string(out) != "250 2.1.0 <"+path+"> Ok\r\n" {
		t.Errorf("%q", out)
	}
}

// RFC 5321 §4.5.3.1.4: command lines of 512 bytes are accepted; the default takes four times that.
func TestCommandLineOf512Bytes(t *testing.T) {
	s := greetedSession(t, Options{})
	feed(t, s, "NOOP "+strings.Repeat("x", 505)+"\r\n", "250")
	feed(t, s, "NOOP "+strings.Repeat("x", 2041)+"\r\n", "250")
	feed(t, s, "NOOP "+strings.Repeat("x", 2042)+"\r\nNOOP\r\n", "500 5.5.2 Line too long", "250")
}

// RFC 5321 §4.5.3.1.8: 100 recipients are accepted.
func TestAHundredRecipients(t *testing.T) {
	s := greetedSession(t, Options{})
	feed(t, s, "MAIL FROM:<a@x>\r\n", "250")
	for range 100 {
		feed(t, s, "RCPT TO:<b@x>\r\n", "250")
	}
}

// RFC 5321 §4.5.3.1.10: the recipient past the limit is 452.
func TestTooManyRecipientsIs452(t *testing.T) {
	s := greetedSession(t, Options{})
	s.Feed([]byte("MAIL FROM:<a@x>\r\n"+strings.Repeat("RCPT TO:<b@x>\r\n", 1000)), start, nil)
	feed(t, s, "RCPT TO:<b@x>\r\n", "452 4.5.3")
	if s.tx.recipients != 1000 {
		t.Errorf("%d recipients", s.tx.recipients)
	}
}

// RFC 5321 §4.5.3.2.7: five minutes for a command, cumulative here; §3.8: 421 before a server closes.
func TestCommandTimeLimit(t *testing.T) {
	s := greetedSession(t, Options{})
	if got := s.Deadline().Sub(start); got != 5*time.Minute {
		t.Errorf("%v for a command", got)
	}
	s.Feed([]byte("NO"), start.Add(4*time.Minute), nil)
	if got := s.Deadline().Sub(start); got != 5*time.Minute {
		t.Errorf("%v after two bytes", got)
	}
	if out, step := s.Expire(start.Add(5*time.Minute-1), nil); len(out) != 0 || step != NeedInput {
		t.Errorf("too early: %q", out)
	}
	out, step := s.Expire(start.Add(5*time.Minute), nil)
	if string(out) != "421 4.4.2 Connection timed out\r\n" || step != Close || !s.Deadline().IsZero() {
		t.Errorf("%q, step %d, deadline %v", out, step, s.Deadline())
	}
	if out, step := s.Expire(start.Add(time.Hour), nil); len(out) != 0 || step != Close {
		t.Errorf("after the end: %q", out)
	}
}

// RFC 5321 §6.3: at least 100 Received fields pass before a message is taken to loop.
func TestAHundredReceivedFields(t *testing.T) {
	for _, c := range []struct {
		fields int
		step   Step
	}{{100, AwaitCommit}, {101, NeedInput}} {
		s := greetedSession(t, Options{})
		s.Feed([]byte(group+strings.Repeat("Received: x\r\n", c.fields)), start, nil)
		_, out, step := s.Feed([]byte(".\r\n"), start, nil)
		if step != c.step || step == NeedInput && string(out) != "554 5.4.6 Too many hops, mail loop\r\n" {
			t.Errorf("%d fields: step %d, %q", c.fields, step, out)
		}
	}
}

// RFC 1870 §5: SIZE names the limit; §6.1: a larger declaration is 552.
func TestSizeIsAnnouncedAndEnforced(t *testing.T) {
	s, _, _ := open(t, Options{MaxMessageBytes: 12345})
	_, out, _ := s.Feed([]byte("EHLO a\r\n"), start, nil)
	if !bytes.Contains(out, []byte("\r\n250-SIZE 12345\r\n")) {
		t.Errorf("%q", out)
	}
	feed(t, s, "MAIL FROM:<a@x> SIZE=12346\r\nMAIL FROM:<a@x> SIZE=12345\r\n", "552 5.3.4 Message size exceeds 12345 limit", "250")
}

// RFC 2034 §4: every 2yz, 4yz and 5yz reply but those to EHLO, HELO and connect has an enhanced code, of the class of its reply code.
func TestEveryReplyHasAnEnhancedCodeOfItsClass(t *testing.T) {
	check := func(name string, r *smtpcodec.Reply) {
		if r.Code != 354 && (r.Enhanced.Class != r.Code/100 || r.Text == "") {
			t.Errorf("%s: %d %v %q", name, r.Code, r.Enhanced, r.Text)
		}
	}
	for _, r := range []*smtpcodec.Reply{&replyOk, &replyBye, &replyHelp, &replyVrfy, &replyStartData, &replySenderOk, &replyRecipientOk} {
		check("reply", r)
	}
	for _, f := range []*refusal{&refuseSyntax, &refuseUnknownCommand, &refuseSequence, &refuseNotImplemented, &refuseWrongDialect,
		&refuseUnknownParameter, &refuseBadSender, &refuseBadRecipient, &refuseUTF8, &refuseLineTooLong, &refuseBareInCommand, &refuseNoRecipients,
		&refuseTooManyRcpt, &refuseBareInData, &refuseTooBig, &refuseLoop, &refuseMemory, &closeTimeout, &closeShutdown, &closeTooManyErrors,
		&closeTooManyTransactions, &closeHTTP} {
		check(f.reason.String(), &f.reply)
		if f.reason == ReasonNone {
			t.Errorf("%q has no reason", f.reply.Text)
		}
	}
}

// RFC 2033 §4.2: no reply for a recipient that was refused at RCPT, one for each other, in order; §4.1: LHLO only.
func TestLmtpRepliesPerRecipient(t *testing.T) {
	s, _, _ := open(t, Options{LMTP: true})
	s.Feed([]byte("LHLO a\r\nMAIL FROM:<a@x>\r\nRCPT TO:<1@x>\r\nRCPT TO:<>\r\nRCPT TO:<2@x>\r\nDATA\r\nx\r\n.\r\n"), start, nil)
	s.TakeEnvelope(envelope.ID{15: 1}).Release()
	out, _ := s.Committed(nil, nil, start, nil)
	want := "250 2.6.0 <1@x> Message queued as 00000000000000000000000001\r\n250 2.6.0 <2@x> Message queued as 00000000000000000000000001\r\n"
	if string(out) != want {
		t.Errorf("%q", out)
	}
}

// RFC 3030 §2: DATA in a chunked message is 503, and the message goes on.
func TestDataAfterBdatIs503(t *testing.T) {
	s := greetedSession(t, Options{})
	feed(t, s, "MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nBDAT 2\r\nabDATA\r\n", "250", "250", "250 2.0.0 2 octets received", "503")
	if feed(t, s, "BDAT 0 LAST\r\n") != AwaitCommit {
		t.Error("the message is lost")
	}
}

// RFC 3030 §3: BODY=BINARYMIME with DATA is 503.
func TestBinaryMimeNeedsBdat(t *testing.T) {
	s := greetedSession(t, Options{})
	feed(t, s, "MAIL FROM:<a@x> BODY=BINARYMIME\r\nRCPT TO:<b@x>\r\nDATA\r\n", "250", "250", "503 5.5.1")
}

// RFC 6531 §3.5: an address outside ASCII without SMTPUTF8 is 553, with code X.6.7.
func TestUTF8NeedsSMTPUTF8(t *testing.T) {
	s := greetedSession(t, Options{})
	feed(t, s, "MAIL FROM:<é@x>\r\nMAIL FROM:<é@x> SMTPUTF8\r\nRCPT TO:<ü@x>\r\n", "553 5.6.7", "250 2.1.0 Ok", "250 2.1.5 Ok")
}

// RFC 9422 §4: RCPTMAX always, MAILMAX when there is one.
func TestLimitsAreAnnounced(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "\r\n250 LIMITS RCPTMAX=1000\r\n"},
		{Options{MaxRecipients: 7, MaxTransactions: 3}, "\r\n250 LIMITS RCPTMAX=7 MAILMAX=3\r\n"},
		{Options{MaxTransactions: 1e9}, "\r\n250 LIMITS RCPTMAX=1000 MAILMAX=999999\r\n"},
	} {
		s, _, _ := open(t, c.o)
		if _, out, _ := s.Feed([]byte("EHLO a\r\n"), start, nil); !bytes.HasSuffix(out, []byte(c.want)) {
			t.Errorf("%q", out)
		}
	}
}

// Each keyword can be hidden by itself, and takes those that need it along.
func TestEveryExtensionCanBeHidden(t *testing.T) {
	for _, e := range extensions {
		s, _, _ := open(t, Options{TLS: TLSOpportunistic, Auth: []string{"PLAIN"}, AuthInClear: true, Hide: []string{strings.ToLower(e.word)}})
		_, out, _ := s.Feed([]byte("EHLO a\r\n"), start, nil)
		for _, other := range extensions {
			shown := bytes.Contains(out, []byte("250-"+other.word)) || bytes.Contains(out, []byte("250 "+other.word))
			if want := other.word != e.word && other.needs != e.word; shown != want {
				t.Errorf("hiding %s: %s shown is %v", e.word, other.word, shown)
			}
		}
		if !KnownExtension(e.word) || KnownExtension(e.word+"X") {
			t.Errorf("KnownExtension(%s)", e.word)
		}
	}
}
