package sink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// MaxMaxLineBytes is the most that Options.MaxLineBytes may be.
const MaxMaxLineBytes = 64 << 10

const (
	readBytes      = 32 << 10 // a command group, or a piece of message data, in one read
	writeBytes     = 4 << 10
	maxDropped     = 1 << 20  // of a line that is too long, before the connection is closed
	maxKeptArena   = 64 << 10 // of addresses, from one mail transaction to the next
	verbConnect    = "CONNECT"
	verbEnd        = "END"
	replyOK        = "250 2.0.0 ok\r\n"
	replyTaken     = "250 2.0.0 taken\r\n"
	replySyntax    = "501 5.5.4 syntax error in parameters\r\n"
	replySequence  = "503 5.5.1 bad sequence of commands\r\n"
	replyTooLong   = "500 5.5.2 line too long\r\n"
	replyBareLF    = "500 5.5.2 lines end with CRLF\r\n"
	replyUnknown   = "500 5.5.1 command not known\r\n"
	replyTooBig    = "552 5.3.4 message too big\r\n"
	replyTimeout   = "421 4.4.2 timeout\r\n"
	replyNotStored = "451 4.3.0 the message can't be stored\r\n"
)

// stage is how far a session has come.
type stage uint8

const (
	connected stage = 1 << iota // nothing yet
	greeted                     // HELO, EHLO or LHLO
	haveReversePath
	haveForwardPath
	inChunks // BDAT, not the last

	anywhere = connected | greeted | haveReversePath | haveForwardPath | inChunks
)

// verb is a row of the table of commands (RFC 5321 §4.1.4). run gets what follows the verb; a connection ends when it says so.
type verb struct {
	name string
	in   stage // elsewhere it is answered with 503
	run  func(*session, []byte) (end bool)
}

var verbs []verb

func init() {
	verbs = []verb{
		{"EHLO", connected | greeted | haveReversePath | haveForwardPath, (*session).ehlo},
		{"HELO", connected | greeted | haveReversePath | haveForwardPath, (*session).helo},
		{"LHLO", connected | greeted | haveReversePath | haveForwardPath, (*session).lhlo},
		{"MAIL", greeted, (*session).mail},
		{"RCPT", haveReversePath | haveForwardPath, (*session).rcpt},
		{"DATA", haveForwardPath, (*session).data},
		{"BDAT", anywhere, (*session).bdat}, // elsewhere its octets must be read all the same
		{"RSET", anywhere, (*session).rset},
		{"NOOP", anywhere, (*session).noop},
		{"VRFY", anywhere, (*session).vrfy},
		{"QUIT", anywhere, (*session).quit},
		{"STARTTLS", greeted, (*session).starttls},
		{"XLEDGER", anywhere, (*session).xledger},
	}
}

func verbNamed(name string) (verb, bool) {
	for _, v := range verbs {
		if v.name == name {
			return v, true
		}
	}
	return verb{}, false
}

// lookup finds the row of a command line: the verb, then a blank or the end.
func lookup(line []byte) (v *verb, args []byte) {
	name, args, _ := bytes.Cut(line, []byte(" "))
	for i := range verbs {
		if v := &verbs[i]; len(v.name) == len(name) && v.name[0] == name[0]&^0x20 && bytes.EqualFold([]byte(v.name), name) {
			return v, args
		}
	}
	return nil, nil
}

type recipient struct {
	addr []byte // in session.arena
	plan plan   // AtData
}

// session is one connection.
type session struct {
	ctx context.Context
	s   *Sink
	c   net.Conn // under TLS when that has begun
	raw net.Conn
	r   *bufio.Reader // of reader
	w   *bufio.Writer
	rnd *rand.Rand
	end time.Time // of the command line that is being read; zero while message data is

	stage      stage
	hello      []byte
	arena      []byte // addresses of this transaction
	parameters []byte // of MAIL
	reverse    []byte
	recipients []recipient

	in message
}

// message is the message data that is being received.
type message struct {
	open     bool
	number   uint64
	size     int64
	closeAt  int64 // close the connection when so many octets have come; 0: never
	flip     bool  // change its last octet
	held     int   // that octet, or -1
	inspect  *ledger.Inspection
	stored   *stored
	deliver  [][]byte
	piece    func([]byte) // write, bound once
	oneOctet [1]byte
}

func newSession(ctx context.Context, s *Sink, c net.Conn, number uint64) *session {
	t := &session{ctx: ctx, s: s, c: c, raw: c, stage: connected, rnd: rand.New(rand.NewPCG(s.o.Seed, number))}
	t.r = bufio.NewReaderSize(reader{t}, max(readBytes, s.o.MaxLineBytes))
	t.w = bufio.NewWriterSize(writer{t}, writeBytes)
	t.in.inspect = ledger.NewInspection(&s.register)
	t.in.piece = t.write
	return t
}

// reader gives the replies so far to the client before it waits for more, so that a command group is answered in one piece.
type reader struct{ t *session }

func (r reader) Read(p []byte) (int, error) {
	t := r.t
	if err := t.w.Flush(); err != nil {
		return 0, err
	}
	end := t.end
	if end.IsZero() {
		end = time.Now().Add(t.s.o.IdleTimeout)
	}
	t.c.SetReadDeadline(end)
	return t.c.Read(p)
}

type writer struct{ t *session }

func (w writer) Write(p []byte) (int, error) {
	w.t.c.SetWriteDeadline(time.Now().Add(w.t.s.o.IdleTimeout))
	return w.t.c.Write(p)
}

func (t *session) reply(text string) { t.w.WriteString(text) }

func (t *session) bad(text string) {
	t.s.count.syntaxErrors.Add(1)
	t.reply(text)
}

// run is the session from greeting to end. The caller closes the connection.
func (t *session) run() {
	defer t.abandon()
	t.delay(verbConnect)
	protocol := "ESMTP"
	if t.s.o.LMTP {
		protocol = "LMTP"
	}
	t.reply("220 " + t.s.o.Hostname + " " + protocol + " load test sink\r\n")
	for {
		line, err := t.line()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.reply(replyTimeout)
				t.w.Flush()
			}
			return
		}
		if line == nil {
			continue
		}
		v, args := lookup(line)
		switch {
		case v == nil:
			t.bad(replyUnknown)
		case t.stage&v.in == 0:
			t.delay(v.name)
			t.bad(replySequence)
		default:
			if v.name != "BDAT" { // its delay stands behind the octets
				t.delay(v.name)
			}
			if v.run(t, args) {
				t.w.Flush()
				return
			}
		}
	}
}

// line reads one command line, without CRLF; nil for one that has been answered already.
func (t *session) line() (line []byte, err error) {
	t.end = time.Now().Add(t.s.o.CommandTimeout)
	line, err = t.r.ReadSlice('\n')
	if err == nil && len(line) <= t.s.o.MaxLineBytes {
		if len(line) < 2 || line[len(line)-2] != '\r' {
			t.bad(replyBareLF)
			return nil, nil
		}
		return line[:len(line)-2], nil
	}
	for dropped := len(line); err == bufio.ErrBufferFull; dropped += len(line) {
		if dropped > maxDropped {
			t.bad(replyTooLong)
			t.w.Flush()
			return nil, bufio.ErrTooLong
		}
		line, err = t.r.ReadSlice('\n')
	}
	if err == nil {
		t.bad(replyTooLong)
	}
	return nil, err
}

// delay waits as long as Options.Delays has for a verb. What was said before is not held back.
func (t *session) delay(verb string) {
	if t.s.o.Delays == nil {
		return
	}
	t.wait(t.s.o.Delays[verb])
}

func (t *session) wait(d Span) {
	if d.Max == 0 {
		return
	}
	t.w.Flush()
	t.s.pause(t.ctx, d.Min+time.Duration(t.rnd.Int64N(int64(d.Max-d.Min)+1)))
}

func (t *session) ehlo(args []byte) bool {
	if t.s.o.LMTP {
		t.bad(replyUnknown) // RFC 2033 §4.1
		return false
	}
	return t.hellos(args)
}

func (t *session) lhlo(args []byte) bool {
	if !t.s.o.LMTP {
		t.bad(replyUnknown)
		return false
	}
	return t.hellos(args)
}

func (t *session) hellos(args []byte) bool {
	if !t.greet(args) {
		return false
	}
	t.reply("250-" + t.s.o.Hostname + "\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-ENHANCEDSTATUSCODES\r\n")
	if t.s.tls != nil && t.c == t.raw {
		t.reply("250-STARTTLS\r\n")
	}
	t.reply("250 SIZE " + strconv.FormatInt(t.s.o.MaxMessageBytes, 10) + "\r\n")
	return false
}

func (t *session) helo(args []byte) bool {
	if t.s.o.LMTP {
		t.bad(replyUnknown)
	} else if t.greet(args) {
		t.reply("250 " + t.s.o.Hostname + "\r\n")
	}
	return false
}

// greet begins anew, as RSET does (RFC 5321 §4.1.4).
func (t *session) greet(args []byte) bool {
	name := bytes.TrimSpace(args)
	if len(name) == 0 {
		t.bad(replySyntax)
		return false
	}
	t.hello = append(t.hello[:0], name...)
	t.stage = greeted
	t.resetTransaction()
	return true
}

// resetTransaction forgets reverse-path, forward-paths and message data.
func (t *session) resetTransaction() {
	t.abandon()
	clear(t.recipients)
	t.recipients = t.recipients[:0]
	if t.arena = t.arena[:0]; cap(t.arena) > maxKeptArena {
		t.arena, t.recipients = nil, nil
	}
	t.reverse, t.parameters = nil, nil
	if t.stage != connected {
		t.stage = greeted
	}
}

// keep copies p into the arena.
func (t *session) keep(p []byte) []byte {
	start := len(t.arena)
	t.arena = append(t.arena, p...)
	return t.arena[start:len(t.arena):len(t.arena)]
}

// path takes the path of MAIL or RCPT off args: "FROM:<a@b> rest". Blanks behind the colon are tolerated. A source route is dropped
// (RFC 5321 §4.1.1.3).
func path(args []byte, word string) (path, rest []byte, ok bool) {
	if len(args) < len(word) || !bytes.EqualFold(args[:len(word)], []byte(word)) {
		return nil, nil, false
	}
	args = bytes.TrimLeft(args[len(word):], " ")
	if len(args) == 0 || args[0] != '<' {
		return nil, nil, false
	}
	quoted := false
	for i := 1; i < len(args); i++ {
		switch c := args[i]; {
		case c < ' ' || c == 0x7F:
			return nil, nil, false
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == '>' && !quoted:
			path, rest = args[1:i], args[i+1:]
			if len(rest) > 0 && rest[0] != ' ' {
				return nil, nil, false
			}
			if len(path) > 0 && path[0] == '@' {
				n := bytes.IndexByte(path, ':')
				if n < 0 {
					return nil, nil, false
				}
				path = path[n+1:]
			}
			return path, bytes.TrimLeft(rest, " "), true
		}
	}
	return nil, nil, false
}

func isASCII(p []byte) bool {
	for _, c := range p {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

func (t *session) mail(args []byte) bool {
	from, params, ok := path(args, "FROM:")
	if !ok || len(from) > 0 && bytes.IndexByte(from, '@') <= 0 {
		t.bad(replySyntax)
		return false
	}
	utf8, refusal := t.mailParameters(params)
	if refusal == "" && !utf8 && !isASCII(from) {
		refusal = "553 5.6.7 SMTPUTF8 is needed for this address\r\n" // RFC 6531 §3.5
	}
	if refusal != "" {
		t.bad(refusal)
		return false
	}
	if !t.s.bucket.take(t.s.o.Now()) {
		t.s.count.overRate.Add(1)
		if t.s.o.RateCloses {
			t.reply("421 4.7.0 too many messages, closing\r\n")
			return true
		}
		t.reply("451 4.7.1 too many messages, try again later\r\n")
		return false
	}
	t.reverse, t.parameters = t.keep(from), t.keep(params)
	t.stage = haveReversePath
	t.reply("250 2.1.0 ok\r\n")
	return false
}

// mailParameters checks what follows the reverse-path. refusal is empty when there is nothing to say against it.
func (t *session) mailParameters(params []byte) (utf8 bool, refusal string) {
	for p := range bytes.FieldsSeq(params) {
		name, value, _ := bytes.Cut(p, []byte("="))
		switch {
		case bytes.EqualFold(name, []byte("SIZE")):
			n, err := strconv.ParseInt(string(value), 10, 64)
			if err != nil && !errors.Is(err, strconv.ErrRange) || n < 0 {
				return utf8, replySyntax
			}
			if err != nil || n > t.s.o.MaxMessageBytes {
				return utf8, replyTooBig
			}
		case bytes.EqualFold(name, []byte("BODY")):
			if !bytes.EqualFold(value, []byte("7BIT")) && !bytes.EqualFold(value, []byte("8BITMIME")) {
				return utf8, replySyntax
			}
		case bytes.EqualFold(name, []byte("SMTPUTF8")):
			utf8 = true
		case bytes.EqualFold(name, []byte("RET")), bytes.EqualFold(name, []byte("ENVID")):
			// RFC 3461: taken, not acted on.
		default:
			return utf8, "555 5.5.4 parameter not known\r\n"
		}
	}
	return utf8, ""
}

func (t *session) rcpt(args []byte) bool {
	to, params, ok := path(args, "TO:")
	if ok {
		for p := range bytes.FieldsSeq(params) {
			name, _, _ := bytes.Cut(p, []byte("="))
			if !bytes.EqualFold(name, []byte("NOTIFY")) && !bytes.EqualFold(name, []byte("ORCPT")) {
				t.bad("555 5.5.4 parameter not known\r\n")
				return false
			}
		}
	}
	// RFC 5321 §4.1.1.3: postmaster may stand without a domain.
	if !ok || bytes.IndexByte(to, '@') <= 0 && !bytes.EqualFold(to, []byte("postmaster")) {
		t.bad(replySyntax)
		return false
	}
	if len(t.recipients) >= t.s.o.MaxRecipients {
		t.s.count.refusedRcpt.Add(1)
		t.reply("452 4.5.3 too many recipients\r\n")
		return false
	}
	p := t.s.planFor(AtRcpt, to)
	t.wait(p.delay)
	if p.reply == "" {
		p.reply = t.draw(t.s.o.Shares.SoftRcpt, t.s.o.Shares.HardRcpt, "450 4.2.0 not now", "550 5.1.1 no such user")
	}
	switch {
	case p.reply == "":
		t.reply("250 2.1.5 ok\r\n")
	case p.reply[0] == '2':
		t.reply(p.reply + "\r\n")
	default:
		t.s.count.refusedRcpt.Add(1)
		t.reply(p.reply + "\r\n")
		return false
	}
	t.recipients = append(t.recipients, recipient{t.keep(to), t.s.planFor(AtData, to)})
	t.stage = haveForwardPath
	return false
}

// draw gives soft or hard with their probabilities, mostly nothing.
func (t *session) draw(softShare, hardShare float64, soft, hard string) string {
	if softShare == 0 && hardShare == 0 {
		return ""
	}
	switch x := t.rnd.Float64(); {
	case x < softShare:
		return soft
	case x < softShare+hardShare:
		return hard
	}
	return ""
}

// begin starts the message data of the transaction.
func (t *session) begin() {
	m, o := &t.in, &t.s.o
	m.open, m.size, m.closeAt, m.held = true, 0, 0, -1
	m.number = t.s.number.Add(1)
	m.flip = everyNth(m.number, o.Corrupt)
	for i := range t.recipients {
		if n := t.recipients[i].plan.closeAfter; n > 0 && (m.closeAt == 0 || n < m.closeAt) {
			m.closeAt = n
		}
	}
	if m.closeAt == 0 && o.CloseShare > 0 && t.rnd.Float64() < o.CloseShare {
		m.closeAt = max(1, o.CloseAt)
	}
	m.inspect.Reset()
	if o.Store != "" {
		m.stored = t.s.newStored(m.number)
	}
}

func everyNth(number uint64, n int) bool { return n > 0 && number%uint64(n) == 0 }

// write takes a piece of message data. What is too long is only counted.
func (t *session) write(p []byte) {
	m := &t.in
	if len(p) == 0 {
		return
	}
	if m.size += int64(len(p)); m.size > t.s.o.MaxMessageBytes {
		return
	}
	if !m.flip {
		t.pass(p)
		return
	}
	if m.held >= 0 {
		m.oneOctet[0] = byte(m.held)
		t.pass(m.oneOctet[:])
	}
	t.pass(p[:len(p)-1])
	m.held = int(p[len(p)-1])
}

func (t *session) pass(p []byte) {
	t.in.inspect.Write(p)
	if t.in.stored != nil {
		t.in.stored.write(p)
	}
}

// abandon drops message data that did not come to its end.
func (t *session) abandon() {
	if t.in.stored != nil {
		t.in.stored.drop()
		t.in.stored = nil
	}
	t.in.open = false
}

// more waits for input and gives what there is, borrowed.
func (t *session) more() ([]byte, error) {
	t.end = time.Time{}
	if _, err := t.r.Peek(1); err != nil {
		return nil, err
	}
	return t.r.Peek(t.r.Buffered())
}

// closing says whether the connection is to be closed before the end of p, and if so closes it. seen counts octets of the client's.
func (t *session) closing(seen *int64, p []byte) bool {
	if t.in.closeAt == 0 {
		return false
	}
	if *seen += int64(len(p)); *seen < t.in.closeAt {
		return false
	}
	t.s.count.closedInData.Add(1)
	return true
}

func (t *session) data(args []byte) bool {
	if len(args) > 0 {
		t.bad(replySyntax)
		return false
	}
	t.reply("354 go ahead\r\n")
	t.begin()
	state, seen := lineStart, int64(0)
	for {
		p, err := t.more()
		if err != nil {
			return t.lost(err)
		}
		n, done := state.unstuff(p, t.in.piece)
		if t.closing(&seen, p[:n]) {
			return true
		}
		t.r.Discard(n)
		if done {
			t.finish()
			return false
		}
	}
}

// lost ends a session in message data.
func (t *session) lost(err error) bool {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.reply(replyTimeout)
	}
	return true
}

// bdat reads a chunk (RFC 3030 §2), also where none may come: its octets are not commands.
func (t *session) bdat(args []byte) bool {
	size, rest, _ := bytes.Cut(args, []byte(" "))
	n, err := strconv.ParseUint(string(size), 10, 62)
	last := bytes.EqualFold(rest, []byte("LAST"))
	if err != nil || len(rest) > 0 && !last {
		// How much follows is not known: anything after this would be taken for commands.
		t.bad(replySyntax)
		return true
	}
	wanted := t.stage == haveForwardPath || t.stage == inChunks
	if wanted && !t.in.open {
		t.begin()
		t.stage = inChunks
	}
	seen := t.in.size
	for left := n; left > 0; {
		p, err := t.more()
		if err != nil {
			return t.lost(err)
		}
		p = p[:min(uint64(len(p)), left)]
		if wanted {
			t.write(p)
			if t.closing(&seen, p) {
				return true
			}
		}
		t.r.Discard(len(p))
		left -= uint64(len(p))
	}
	t.delay("BDAT")
	switch {
	case !wanted:
		t.bad(replySequence)
	case last:
		t.finish()
	case t.in.size > t.s.o.MaxMessageBytes:
		t.reply(replyTooBig)
	default:
		t.reply(replyTaken)
	}
	return false
}

// finish ends the message: it decides, counts, and replies.
func (t *session) finish() {
	t.delay(verbEnd)
	m, o, count := &t.in, &t.s.o, &t.s.count
	refusal := "" // of the whole message
	if m.size > o.MaxMessageBytes {
		refusal = replyTooBig
	}
	for i := range t.recipients {
		t.wait(t.recipients[i].plan.delay)
	}
	if m.flip && m.held >= 0 {
		m.oneOctet[0] = byte(m.held) ^ 0x20
		t.pass(m.oneOctet[:])
	}
	f := m.inspect.Finish()

	// With SMTP one reply stands for all recipients; with LMTP each has its own (RFC 2033 §4.2).
	drawn := func() string {
		return t.draw(o.Shares.SoftData, o.Shares.HardData, "451 4.3.0 not now", "554 5.6.0 not wanted")
	}
	m.deliver = m.deliver[:0]
	if !o.LMTP && refusal == "" {
		said := ""
		for i := range t.recipients {
			if said = t.recipients[i].plan.reply; said != "" {
				break
			}
		}
		if said == "" {
			said = drawn()
		}
		if said != "" && said[0] != '2' {
			refusal = said + "\r\n"
		} else {
			for i := range t.recipients {
				t.recipients[i].plan.reply = said
			}
		}
	}
	for i := range t.recipients {
		r := &t.recipients[i]
		if refusal != "" {
			r.plan.reply = ""
			continue
		}
		if o.LMTP && r.plan.reply == "" {
			r.plan.reply = drawn()
		}
		if r.plan.reply == "" || r.plan.reply[0] == '2' {
			m.deliver = append(m.deliver, r.addr)
		}
	}
	if len(m.deliver) > 0 && !t.deliver(f) {
		refusal, m.deliver = replyNotStored, m.deliver[:0]
	}
	count.refusedData.Add(int64(len(t.recipients) - len(m.deliver)))
	for i := range t.recipients {
		switch reply := t.recipients[i].plan.reply; {
		case refusal != "":
			t.reply(refusal)
		case reply != "":
			t.w.WriteString(reply)
			t.reply("\r\n")
		default:
			t.reply(replyOK)
		}
		if !o.LMTP {
			break
		}
	}
	t.resetTransaction()
}

// deliver counts and stores the message for the recipients in m.deliver; false when it can't be stored.
func (t *session) deliver(f ledger.Finding) bool {
	m, o, count := &t.in, &t.s.o, &t.s.count
	lose := everyNth(m.number, o.Lose)
	if m.stored != nil && !lose {
		e := storedEnvelope{
			Received: time.Now(), Client: t.raw.RemoteAddr().String(), Hello: string(t.hello), Protocol: "ESMTP",
			ReversePath: string(t.reverse), Parameters: string(t.parameters),
		}
		if o.LMTP {
			e.Protocol = "LMTP"
		}
		for _, to := range m.deliver {
			e.Recipients = append(e.Recipients, string(to))
		}
		err := m.stored.keep(e)
		m.stored = nil
		if err != nil {
			count.storageErrors.Add(1)
			return false
		}
	}
	count.messages.Add(1)
	count.deliveries.Add(int64(len(m.deliver)))
	count.bytes.Add(m.size)
	if m.flip {
		count.corrupted.Add(1)
	}
	times := 1
	if everyNth(m.number, o.Repeat) {
		count.repeated.Add(1)
		times = 2
	}
	if lose {
		count.lost.Add(1)
		times = 0
	}
	for range times {
		for _, to := range m.deliver {
			t.s.register.Enter(to, f)
		}
	}
	return true
}

func (t *session) rset([]byte) bool {
	t.resetTransaction()
	t.reply(replyOK)
	return false
}

func (t *session) noop([]byte) bool {
	t.reply(replyOK)
	return false
}

func (t *session) vrfy(args []byte) bool {
	if len(args) == 0 {
		t.bad(replySyntax)
	} else {
		t.reply("252 2.1.5 send some mail, it will be counted\r\n")
	}
	return false
}

func (t *session) quit([]byte) bool {
	t.reply("221 2.0.0 bye\r\n")
	return true
}

func (t *session) starttls(args []byte) bool {
	switch {
	case t.s.tls == nil || t.c != t.raw:
		t.bad(replyUnknown)
		return false
	case len(args) > 0:
		t.bad(replySyntax)
		return false
	}
	t.reply("220 2.0.0 go ahead\r\n")
	if t.w.Flush() != nil {
		return true
	}
	// What the client sent ahead in the clear is dropped, and TLS begins with what follows (RFC 3207 §4.2).
	t.r.Discard(t.r.Buffered())
	t.raw.SetDeadline(time.Now().Add(t.s.o.CommandTimeout))
	secure := tls.Server(t.raw, t.s.tls)
	if secure.HandshakeContext(t.ctx) != nil {
		return true
	}
	t.s.count.handshakes.Add(1)
	t.c = secure
	t.hello = t.hello[:0]
	t.stage = connected
	t.resetTransaction()
	return false
}
