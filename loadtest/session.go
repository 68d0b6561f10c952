package loadtest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// client is the machine that speaks one connection. It does no I/O: a driver writes what is in wire.out, calls flushed when all of it
// is written, feed with what arrives, and lost when the connection ends. Times are nanoseconds of the run's clock.
type client interface {
	wire() *wire
	open(now int64) // the connection is there
	feed(in []byte, now int64)
	flushed(now int64)
	secured(now int64)          // the TLS handshake that wantTLS asked for is done
	start(m message, now int64) // a parked client gets a message
	quit(now int64)             // a parked client says goodbye
	lost(why string, now int64)
}

// wire is what a client wants of its driver.
type wire struct {
	out      [][]byte // to be written, in order; parts are shared and only read
	wish     wish
	ended    bool  // with wantClose: the session ended in order
	awaiting bool  // a reply is due
	since    int64 // since when: the last progress, for the timeout
	fresh    bool  // nothing of out has been written
	store    [4][]byte
}

// queue adds parts to what is to be written.
func (w *wire) queue(parts ...[]byte) {
	if len(w.out) == 0 {
		w.out, w.fresh = w.store[:0], true
	}
	w.out = append(w.out, parts...)
}

// left is how many octets are still to be written.
func (w *wire) left() (n int) {
	for _, part := range w.out {
		n += len(part)
	}
	return n
}

// wrote takes n written octets off, and says whether that was all.
func (w *wire) wrote(n int) bool {
	w.fresh = w.fresh && n == 0
	for len(w.out) > 0 && n >= len(w.out[0]) {
		n -= len(w.out[0])
		w.out = w.out[1:]
	}
	if len(w.out) == 0 {
		return true
	}
	w.out[0] = w.out[0][n:]
	return false
}

type wish uint8

const (
	wantNothing wish = iota
	wantTLS          // handshake, then secured
	wantClose        // all is said; the connection may be closed
)

// host gives messages to clients.
type host interface {
	// take gives the next message that is due.
	take(now int64) (message, bool)
	// park keeps a client for which nothing is due. finished says that nothing ever will be.
	park(c client) (finished bool)
}

// expected is a reply that has been asked for.
type expected uint8

const (
	replyBanner expected = iota
	replyEHLO
	replyHELO
	replySTARTTLS
	replyAuth
	replyMail
	replyRcpt
	replyData
	replyEnd // to the end of data; LMTP: one for each accepted recipient
	replyRset
	replyQuit
)

// phaseOf is where a refusal of that reply is noted.
var phaseOf = [...]phase{
	replyBanner: phaseBanner, replyEHLO: phaseEHLO, replyHELO: phaseEHLO, replySTARTTLS: phaseTLS, replyAuth: phaseAuth,
	replyMail: phaseMail, replyRcpt: phaseRcpt, replyData: phaseData, replyEnd: phaseAck, replyRset: phaseMail, replyQuit: phaseSession,
}

// extensions is a set of what EHLO offered.
type extensions uint8

const (
	offersPipelining extensions = 1 << iota
	offersChunking
	offersSTARTTLS
	offersAuth
	offersPlain // of AUTH
	offersLogin
)

// extensionNames is in the order of the bits.
var extensionNames = [...]string{"PIPELINING", "CHUNKING", "STARTTLS", "AUTH"}

// maxReplyLine bounds a reply line, maxReplyLines the lines of one reply. RFC 5321 §4.5.3.1.5 allows 512 octets a line.
const (
	maxReplyLine  = 4096
	maxReplyLines = 1000
)

// session is an SMTP or LMTP session.
type session struct {
	io    wire
	plan  *plan
	tally *tally
	host  host
	make  *composer
	// preamble is written before anything is read: a PROXY header.
	preamble []byte
	startTLS bool // this session is to use it
	teller   bool // the tally shows the banner and the extensions of this session
	left     int  // messages that this session may still begin; -1: no limit

	expect []expected
	next   int // index of expect
	begun  int64
	sent   int64 // when out was last written whole

	line  []byte // of a reply, so far
	code  int    // of the reply's first line; 0: none read
	text  []byte // the first line, for people; only of refusals
	lines int

	offers     extensions
	secure     bool
	authStep   int
	pipelining bool // what the plan wants and the target offers

	// The transaction.
	cur        message
	active     bool
	asked      int      // RCPT replies seen
	rcptSent   int      // RCPT commands written
	accepted   []uint16 // recipients that wait for the end of data
	answered   int      // of accepted, by LMTP's replies to the data
	mailOK     bool
	bodyQueued bool // the message data is in out, or written
	failure    outcome
	best       outcome
	following  message // tight: its command group is in out behind the data, or written
	ahead      bool    // there is one
	behind     int     // octets of that group

	scratch []byte // what out points into
}

func (s *session) wire() *wire { return &s.io }

func (s *session) open(now int64) {
	s.begun, s.sent = now, now
	if len(s.preamble) > 0 {
		s.io.queue(s.preamble)
	}
	s.await(replyBanner, now)
}

func (s *session) await(e expected, now int64) {
	if s.next == len(s.expect) {
		s.expect, s.next = s.expect[:0], 0
	}
	s.expect = append(s.expect, e)
	s.io.awaiting, s.io.since = true, now
}

// say queues a command and awaits its reply.
func (s *session) say(command string, e expected, now int64) {
	s.scratch = append(s.scratch[:0], command...)
	s.io.queue(s.scratch)
	s.await(e, now)
}

func (s *session) flushed(now int64) {
	s.io.since, s.sent = now, now
}

// bodySent says whether the message data was handed over to its last octet: only then can the target have accepted it.
func (s *session) bodySent() bool { return s.bodyQueued && s.io.left() <= s.behind }

func (s *session) feed(in []byte, now int64) {
	s.io.since = now
	for len(in) > 0 && s.io.wish == wantNothing {
		lf := bytes.IndexByte(in, '\n')
		if lf < 0 {
			if len(s.line)+len(in) > maxReplyLine {
				s.lost("reply line too long", now)
				return
			}
			s.line = append(s.line, in...)
			return
		}
		line := in[:lf+1]
		if len(s.line) > 0 {
			s.line = append(s.line, line...)
			line = s.line
		}
		in = in[lf+1:]
		s.replyLine(line, now)
		s.line = s.line[:0]
	}
}

// replyLine takes one line of a reply, CRLF or LF included. RFC 5321 §4.2.
func (s *session) replyLine(line []byte, now int64) {
	if len(line) > maxReplyLine {
		s.lost("reply line too long", now)
		return
	}
	text := bytes.TrimRight(line, "\r\n")
	code := replyCode(text)
	if code == 0 || s.code != 0 && s.code != code {
		s.lost("not a reply: "+string(text), now)
		return
	}
	if s.code == 0 {
		s.code, s.lines = code, 0
		s.text = append(s.text[:0], text...)
	}
	if s.unasked() {
		// A server may say 421 before it closes.
		s.lost("unasked: "+string(text), now)
		return
	}
	s.lines++
	what := s.expect[s.next]
	if what == replyEHLO && code/100 == 2 {
		s.offer(text[min(4, len(text)):])
	}
	if len(text) > 3 && text[3] == '-' {
		if s.lines > maxReplyLines {
			s.lost("reply with too many lines", now)
		}
		return
	}
	s.code = 0
	// LMTP answers the data once for each recipient that it took.
	if what != replyEnd || !s.moreEnds() {
		s.next++
	}
	s.io.awaiting = s.next < len(s.expect)
	if code == 421 && what != replyQuit {
		s.closing(what, now)
		return
	}
	s.handle(what, code, now)
}

// replyCode is the code at the start of a reply line, 200 to 599; 0: it is no reply line.
func replyCode(text []byte) int {
	if len(text) < 3 || text[0] < '2' || text[0] > '5' || !isDigit(text[1]) || !isDigit(text[2]) ||
		len(text) > 3 && text[3] != ' ' && text[3] != '-' {
		return 0
	}
	return int(text[0]-'0')*100 + int(text[1]-'0')*10 + int(text[2]-'0')
}

// unasked says whether no reply can come now: nothing was asked, or what was asked is not written yet. Only the end of data may be
// answered early.
func (s *session) unasked() bool {
	switch {
	case s.next == len(s.expect):
		return true
	case len(s.io.out) == 0:
		return false
	}
	return s.io.fresh || s.next == len(s.expect)-1 && s.expect[s.next] != replyEnd
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// moreEnds says whether another reply to the data follows this one. RFC 2033 §4.2.
func (s *session) moreEnds() bool {
	return s.plan.Protocol == "lmtp" && s.answered+1 < len(s.accepted)
}

// offer takes one line of the reply to EHLO: the first is a greeting, the others are extensions.
func (s *session) offer(line []byte) {
	if s.teller {
		if s.lines == 1 {
			s.tally.words = []string{}
		} else if len(s.tally.words) < 100 {
			s.tally.words = append(s.tally.words, printable(string(line)))
		}
	}
	if s.lines == 1 {
		return
	}
	name, rest, _ := bytes.Cut(line, []byte(" "))
	for i, word := range extensionNames {
		if !bytes.EqualFold(name, []byte(word)) {
			continue
		}
		s.offers |= 1 << i
		if 1<<i == offersAuth {
			rest = bytes.ToUpper(rest)
			if bytes.Contains(rest, []byte("PLAIN")) {
				s.offers |= offersPlain
			}
			if bytes.Contains(rest, []byte("LOGIN")) {
				s.offers |= offersLogin
			}
		}
	}
}

// handle acts on one whole reply.
func (s *session) handle(what expected, code int, now int64) {
	o := outcomeOf(code)
	d := now - s.sent
	if o == failed && what != replyData && what != replyAuth {
		s.lost("out of place: "+string(s.text), now) // 3yz
		return
	}
	switch what {
	case replyBanner:
		s.tally.took(phaseBanner, o, d)
		if o != good {
			s.giveUp(what, o, now)
			return
		}
		if s.tally.banner == "" {
			s.tally.banner, s.teller = printable(string(s.text)), true
		}
		s.say(s.plan.greeting, replyEHLO, now)
	case replyEHLO, replyHELO:
		s.tally.took(phaseEHLO, o, d)
		switch {
		case o == refused && what == replyEHLO && s.plan.Protocol == "smtp":
			s.say("HELO "+s.plan.EHLO+"\r\n", replyHELO, now)
		case o != good:
			s.giveUp(what, o, now)
		default:
			s.greeted(now)
		}
	case replySTARTTLS:
		if o != good {
			s.giveUp(what, o, now)
			return
		}
		s.io.wish = wantTLS
	case replyAuth:
		s.auth(code, now)
	case replyMail:
		if !s.pipelining {
			s.tally.took(phaseMail, o, d)
		}
		s.mailOK = o == good
		s.worse(what, o)
		if !s.pipelining {
			if s.mailOK {
				s.rcpt(now)
			} else {
				s.transactionEnds(now)
			}
		}
	case replyRcpt:
		s.rcptReply(o, d, now)
	case replyData:
		s.dataReply(code, o, d, now)
	case replyEnd:
		s.endReply(o, d, now)
	case replyRset:
		s.proceed(now)
	case replyQuit:
		s.tally.took(phaseSession, good, now-s.begun)
		s.tally.completed(s.plan.SessionsOnly, now)
		s.io.wish, s.io.ended = wantClose, true
	}
}

// greeted is after the reply to EHLO: TLS, AUTH, or mail.
func (s *session) greeted(now int64) {
	p := s.plan
	switch {
	case s.startTLS && !s.secure:
		if s.offers&offersSTARTTLS == 0 {
			s.tally.notOffered["STARTTLS"] = true
			s.lost("STARTTLS is not offered", now)
			return
		}
		s.say("STARTTLS\r\n", replySTARTTLS, now)
		return
	case p.Auth != nil && s.authStep == 0:
		s.authenticate(now)
		return
	}
	s.pipelining = p.Pipelining != "off"
	if s.pipelining && s.offers&offersPipelining == 0 {
		s.tally.notOffered["PIPELINING"] = true
		s.pipelining = false
	}
	if p.BDAT > 0 && s.offers&offersChunking == 0 {
		s.tally.notOffered["CHUNKING"] = true
	}
	s.tally.ready++
	if p.SessionsOnly {
		s.say("QUIT\r\n", replyQuit, now)
		return
	}
	s.proceed(now)
}

func (s *session) secured(now int64) {
	s.tally.took(phaseTLS, good, now-s.sent)
	s.io.wish = wantNothing
	s.secure = true
	s.sent = now
	if s.plan.TLS {
		return // the banner comes now
	}
	s.offers = 0 // RFC 3207 §4.2
	s.say(s.plan.greeting, replyEHLO, now)
}

func (s *session) authenticate(now int64) {
	a := s.plan.Auth
	mechanism := a.Mechanism
	if mechanism == "" {
		mechanism = "PLAIN"
		if s.offers&(offersPlain|offersLogin) == offersLogin {
			mechanism = "LOGIN"
		}
	}
	s.authStep = 1
	if mechanism == "LOGIN" {
		s.say("AUTH LOGIN\r\n", replyAuth, now)
		return
	}
	s.authStep = 3
	s.say("AUTH PLAIN "+a.plain()+"\r\n", replyAuth, now)
}

// plain is the initial response of PLAIN. RFC 4616 §2.
func (a *Auth) plain() string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + a.User + "\x00" + a.Password))
}

// auth goes on with a SASL exchange. RFC 4954 §4.
func (s *session) auth(code int, now int64) {
	switch {
	case code == 334 && s.authStep == 1:
		s.authStep = 2
		s.say(base64.StdEncoding.EncodeToString([]byte(s.plan.Auth.User))+"\r\n", replyAuth, now)
	case code == 334 && s.authStep == 2:
		s.authStep = 3
		s.say(base64.StdEncoding.EncodeToString([]byte(s.plan.Auth.Password))+"\r\n", replyAuth, now)
	case code == 235:
		s.tally.took(phaseAuth, good, now-s.sent)
		s.greeted(now)
	default:
		s.tally.took(phaseAuth, outcomeOf(code), now-s.sent)
		s.giveUp(replyAuth, outcomeOf(code), now)
	}
}

// proceed begins the next message, waits for one, or ends the session.
func (s *session) proceed(now int64) {
	if s.plan.Hold > 0 {
		s.host.park(s)
		return
	}
	if s.left == 0 {
		s.quit(now)
		return
	}
	if m, ok := s.host.take(now); ok {
		s.start(m, now)
	} else if s.host.park(s) {
		s.quit(now)
	}
}

func (s *session) quit(now int64) { s.say("QUIT\r\n", replyQuit, now) }

func (s *session) start(m message, now int64) {
	s.tally.inFlight++
	s.transaction(m)
	if !s.pipelining {
		s.scratch = s.appendMail(s.scratch[:0], m)
		s.io.queue(s.scratch)
		s.await(replyMail, now)
		return
	}
	s.scratch = s.group(s.scratch[:0], m, now)
	if s.bdat() {
		s.chunk(s.scratch)
		s.await(replyEnd, now)
	} else {
		s.io.queue(s.scratch)
	}
}

// transaction makes m the current message.
func (s *session) transaction(m message) {
	s.cur, s.active = m, true
	s.asked, s.rcptSent, s.answered = 0, 0, 0
	s.accepted = s.accepted[:0]
	s.mailOK, s.bodyQueued, s.behind = false, false, 0
	s.failure, s.best = good, failed
	if s.left > 0 {
		s.left--
	}
}

func (s *session) bdat() bool { return s.cur.bdat && s.offers&offersChunking != 0 }

func (s *session) appendMail(dst []byte, m message) []byte {
	dst = append(append(dst, "MAIL FROM:<"...), s.plan.sender(m)...)
	return append(dst, ">\r\n"...)
}

// group appends the command group of m: MAIL, all RCPT, and DATA unless the data follows by BDAT. RFC 2920 §3.1.
func (s *session) group(dst []byte, m message, now int64) []byte {
	dst = s.appendMail(dst, m)
	s.await(replyMail, now)
	for i := range m.recipients {
		dst = s.appendRcpt(dst, m.seq, i)
		s.await(replyRcpt, now)
	}
	if !m.bdat || s.offers&offersChunking == 0 {
		dst = append(dst, "DATA\r\n"...)
		s.await(replyData, now)
	}
	return dst
}

func (s *session) appendRcpt(dst []byte, seq uint64, i int) []byte {
	dst = append(dst, "RCPT TO:<"...)
	dst = s.plan.appendRecipient(dst, seq, i)
	return append(dst, ">\r\n"...)
}

// rcpt sends the next RCPT, one at a time.
func (s *session) rcpt(now int64) {
	s.scratch = s.appendRcpt(s.scratch[:0], s.cur.seq, s.rcptSent)
	s.rcptSent++
	s.io.queue(s.scratch)
	s.await(replyRcpt, now)
}

func (s *session) rcptReply(o outcome, d, now int64) {
	if o == good {
		s.accepted = append(s.accepted, uint16(s.asked))
	} else {
		s.plan.book.Note(s.cur.seq, s.asked, ledger.Refused)
		s.worse(replyRcpt, o)
	}
	s.asked++
	switch {
	case !s.pipelining:
		s.tally.took(phaseRcpt, o, d)
	case !s.bdat() || s.bodyQueued:
		return
	case s.asked == s.cur.recipients:
		// Its group went ahead behind another message, and its data could not.
		s.tally.took(phaseGroup, s.failure, d)
	}
	switch {
	case s.asked < s.cur.recipients:
		if !s.pipelining {
			s.rcpt(now)
		}
	case len(s.accepted) == 0:
		s.transactionEnds(now)
	case s.bdat():
		s.chunk(s.scratch[:0])
		s.await(replyEnd, now)
	default:
		s.say("DATA\r\n", replyData, now)
	}
}

func (s *session) dataReply(code int, o outcome, d, now int64) {
	switch {
	case code == 354:
		o = good
	case o == good:
		o = failed
	}
	if s.pipelining {
		s.tally.took(phaseGroup, max(o, s.failure), d)
	} else {
		s.tally.took(phaseData, o, d)
	}
	switch {
	case o != good:
		s.worse(replyData, o)
		s.transactionEnds(now)
	case len(s.accepted) == 0:
		// RFC 2920 §3.1: the server took DATA without a recipient; it must get an end of data, and refuse it.
		s.say(".\r\n", replyEnd, now)
	default:
		s.body(now)
	}
}

// body queues the message data; in tight mode, with the next command group behind it.
func (s *session) body(now int64) {
	var head, shared, tail []byte
	s.scratch, head, shared, tail = s.make.data(s.scratch[:0], s.cur, false)
	s.bodyQueued = true
	s.await(replyEnd, now)
	if s.plan.Pipelining == "tight" && s.pipelining && s.left != 0 {
		if m, ok := s.host.take(now); ok {
			s.tally.inFlight++
			s.following, s.ahead = m, true
			before := len(s.scratch)
			s.scratch = s.group(s.scratch, m, now)
			s.behind = len(s.scratch) - before
			head, tail = s.scratch[:len(head)], s.scratch[len(head):]
		}
	}
	s.io.queue(head, shared, tail)
}

// chunk queues the whole message as one BDAT chunk behind prefix, which is the start of scratch. RFC 3030 §2.
func (s *session) chunk(prefix []byte) {
	buf := append(prefix, "BDAT "...)
	buf = strconv.AppendInt(buf, int64(s.make.size(s.cur)), 10)
	buf = append(buf, " LAST\r\n"...)
	start := len(buf)
	grown, head, shared, tail := s.make.data(buf, s.cur, true)
	s.scratch = grown
	s.bodyQueued = true
	s.io.queue(grown[:start+len(head)], shared, tail)
}

func (s *session) endReply(o outcome, d, now int64) {
	if s.bodyQueued && !s.bodySent() {
		// Answered before the message was sent: what is left of it cannot be taken back.
		s.worse(replyEnd, max(o, deferred))
		s.settle(ledger.Refused)
		s.finish(now)
		s.end(failed, now)
		return
	}
	note := ledger.Acknowledged
	if o != good {
		note = ledger.Refused
		s.worse(replyEnd, o)
	} else if len(s.accepted) > 0 {
		s.best = good
	}
	if s.plan.Protocol == "lmtp" {
		if s.answered < len(s.accepted) {
			s.plan.book.Note(s.cur.seq, int(s.accepted[s.answered]), note)
			s.answered++
		}
		if s.answered < len(s.accepted) {
			return
		}
	} else {
		for _, i := range s.accepted {
			s.plan.book.Note(s.cur.seq, int(i), note)
		}
		s.answered = len(s.accepted)
	}
	if len(s.accepted) > 0 {
		s.tally.took(phaseAck, min(o, s.best), d)
	}
	// The transaction is over at the target, too. RFC 3030 §2: but behind a BDAT that failed only RSET is sure to end it.
	s.mailOK = s.mailOK && s.bdat() && s.best != good
	s.transactionEnds(now)
}

// worse remembers the first thing that went wrong in a transaction, and what the target said.
func (s *session) worse(what expected, o outcome) {
	if o == good {
		return
	}
	if s.failure == good {
		s.failure = o
	}
	s.note(phaseOf[what], string(s.text))
}

// note enters what the target said. It may have said what we have said: passwords are not for reports.
func (s *session) note(p phase, text string) {
	if a := s.plan.Auth; a != nil {
		for _, secret := range []string{a.plain(), base64.StdEncoding.EncodeToString([]byte(a.Password)), a.Password} {
			if secret != "" {
				text = strings.ReplaceAll(text, secret, "(hidden)")
			}
		}
	}
	s.tally.note(p, text)
}

// transactionEnds closes the current message and goes on with the session.
func (s *session) transactionEnds(now int64) {
	reset := s.mailOK
	s.settle(ledger.Refused)
	s.finish(now)
	switch {
	case s.ahead:
		m := s.following
		s.ahead = false
		s.transaction(m)
	case reset:
		s.say("RSET\r\n", replyRset, now)
	default:
		s.proceed(now)
	}
}

// settle notes all deliveries of the current message that have no note yet.
func (s *session) settle(o ledger.Outcome) {
	if o == ledger.Unsent { // what a Book has from the start
		return
	}
	for _, i := range s.accepted[s.answered:] {
		s.plan.book.Note(s.cur.seq, int(i), o)
	}
	for i := s.asked; i < s.cur.recipients; i++ {
		s.plan.book.Note(s.cur.seq, i, o)
	}
	s.answered, s.asked = len(s.accepted), s.cur.recipients
}

// finish counts the current message.
func (s *session) finish(now int64) {
	o := s.best
	if o != good {
		o = s.failure
		if o == good {
			o = failed
		}
	}
	s.tally.took(phaseTransaction, o, now-s.cur.due)
	s.tally.ended(o, s.make.size(s.cur), now)
	s.active = false
}

// giveUp ends a session that was refused.
func (s *session) giveUp(what expected, o outcome, now int64) {
	s.note(phaseOf[what], string(s.text))
	s.end(o, now)
}

// closing takes a 421, which may come at any time instead of another reply: the target closes behind it. RFC 5321 §3.8.
func (s *session) closing(what expected, now int64) {
	if s.active {
		s.worse(what, deferred)
		if s.plan.Protocol == "lmtp" && what == replyEnd && s.bodySent() && s.answered < len(s.accepted) {
			// It speaks of one recipient; of the others nothing is known.
			s.plan.book.Note(s.cur.seq, int(s.accepted[s.answered]), ledger.Refused)
			s.answered++
			s.settle(ledger.Unknown)
		}
		s.settle(ledger.Refused)
		s.finish(now)
	} else {
		s.note(phaseOf[what], string(s.text))
	}
	if s.ahead {
		m := s.following
		s.ahead = false
		s.transaction(m)
		s.failure = deferred
		s.settle(ledger.Refused)
		s.finish(now)
	}
	s.end(deferred, now)
}

// lost ends a session whose connection broke, or whose peer does not speak the protocol. What was underway is settled: a message whose last
// octet was handed over is unknown, any other cannot have been accepted.
func (s *session) lost(why string, now int64) {
	if s.io.wish == wantClose {
		return
	}
	at := phaseSession
	if s.io.wish == wantTLS {
		at = phaseTLS
	} else if s.next < len(s.expect) {
		at = phaseOf[s.expect[s.next]]
	}
	if at == phaseSession && !s.active && s.next < len(s.expect) {
		// Closed instead of a reply to QUIT: not polite, and nothing is lost.
		s.end(failed, now)
		return
	}
	s.note(at, "connection: "+why)
	s.end(failed, now)
}

func (s *session) end(o outcome, now int64) {
	s.tally.took(phaseSession, o, now-s.begun)
	if s.active {
		note := ledger.Unsent
		if s.bodySent() {
			note = ledger.Unknown
		}
		s.settle(note)
		s.failure = failed
		s.best = failed
		s.finish(now)
	}
	if s.ahead {
		m := s.following
		s.ahead = false
		s.transaction(m)
		s.failure = failed
		s.settle(ledger.Unsent)
		s.finish(now)
	}
	s.io.out = nil
	s.io.wish, s.io.awaiting = wantClose, false
}

// proxyHeader is a PROXY protocol header with the i-th invented client address, of the range for benchmarks (RFC 2544: 198.18.0.0/15).
func proxyHeader(version, i int) []byte {
	i %= 1 << 17
	ip := [4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)}
	port := 1024 + i%60000
	if version == 1 {
		return fmt.Appendf(nil, "PROXY TCP4 %d.%d.%d.%d 127.0.0.1 %d 25\r\n", ip[0], ip[1], ip[2], ip[3], port)
	}
	h := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c")
	h = append(h, ip[:]...)
	h = append(h, 127, 0, 0, 1)
	return append(h, byte(port>>8), byte(port), 0, 25)
}
