package relay

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/smtpcodec"
)

// attempt is one delivery while it is tried.
type attempt struct {
	r        *Relay
	d        *queue.Delivery
	msg      message
	outcomes []queue.Outcome // one per recipient; given to the source in the end
	todo     []int           // recipients not yet settled in this attempt, in order
	settled  []bool          // by recipient
	hop      *hop            // the last one spoken to, nil before
	damaged  error           // the source says that the message must not be handed on
}

// settle records what became of recipient i in this attempt.
func (a *attempt) settle(i int, state queue.RcptState, reply string) {
	a.outcomes[i] = queue.Outcome{State: state, Reply: reply}
	a.settled[i] = true
}

// settleAll does so for everyone not yet settled.
func (a *attempt) settleAll(state queue.RcptState, reply string) {
	for _, i := range a.todo {
		if !a.settled[i] {
			a.settle(i, state, reply)
		}
	}
	a.todo = a.todo[:0]
}

// outcome is what a reply means for the recipients it speaks of.
func outcome(reply *smtpcodec.Reply) queue.RcptState {
	switch reply.Code / 100 {
	case 2:
		return queue.Delivered
	case 5:
		return queue.Failed
	}
	return queue.Pending
}

// run makes transactions on c until nobody is left to try, or c has done its share, or an error. An error leaves todo as it is: the
// caller decides what becomes of it.
func (c *conn) run(a *attempt) error {
	for len(a.todo) > 0 && !c.broken && !c.spent() {
		if err := a.msg.rewind(); err != nil {
			return err
		}
		t := transaction{c: c, a: a, rcpts: a.todo[:min(len(a.todo), c.offers.recipients())]}
		if refusal := t.requirements(); refusal != "" {
			a.settleAll(queue.Failed, refusal)
			return nil
		}
		if err := t.run(); err != nil {
			return err
		}
		a.dropSettled()
	}
	return nil
}

// dropSettled takes the settled recipients off todo.
func (a *attempt) dropSettled() {
	rest := a.todo[:0]
	for _, i := range a.todo {
		if !a.settled[i] {
			rest = append(rest, i)
		}
	}
	a.todo = rest
}

// transaction is one mail transaction: MAIL, some RCPTs, the message.
type transaction struct {
	c     *conn
	a     *attempt
	rcpts []int // those to be tried now
	bdat  bool  // the message goes with BDAT, otherwise with DATA

	waiting  []command // written, or in c.out; replies to come in this order
	mail     mailState
	accepted []int // recipients with a 2yz, in order
	started  bool  // DATA was answered with 354
}

type mailState uint8

const (
	mailOpen     mailState = iota // no reply to MAIL yet
	mailAccepted                  // 2yz
	mailRefused                   // 4yz or 5yz; everyone is settled
)

// command is one that awaits its reply; rcpt is the recipient of stepRcpt.
type command struct {
	at   step
	rcpt int
}

// requirements says why this next hop can't take the message, in the form of a 5yz reply, or nothing. It also chooses between DATA
// and BDAT.
func (t *transaction) requirements() string {
	offers, env, msg := &t.c.offers, t.a.d.Env, &t.a.msg
	if offers.maxBytes > 0 && t.a.d.Size > offers.maxBytes {
		return fmt.Sprintf("552 5.3.4 message of %d bytes is over the limit of %s, %d", t.a.d.Size, t.c.hop.name, offers.maxBytes)
	}
	if env.SMTPUTF8 && !offers.utf8 {
		return "553 5.6.7 " + t.c.hop.name + " does not offer SMTPUTF8" // RFC 6531 §3.2
	}
	// RFC 8689 §4.2.1: TLS, a certificate that is right, and the promise to ask the same of the next one; or the message goes back.
	if env.RequireTLS && !(offers.requireTLS && t.c.secured()) {
		return "550 5.7.30 REQUIRETLS support required"
	}
	if env.Body == envelope.BodyBinaryMIME {
		// RFC 3030 §3: convert or return; we never alter a message.
		if !offers.binary || !offers.chunking {
			return "554 5.6.3 " + t.c.hop.name + " does not offer BINARYMIME and CHUNKING"
		}
		t.bdat = true
		return ""
	}
	if !msg.small {
		// BDAT costs less for both sides. Without it a bare CR or LF further on is found while sending.
		t.bdat = offers.chunking
		return ""
	}
	switch shape := msg.shape(); {
	case shape.bareNewline && !offers.chunking:
		return t.bareNewline()
	case shape.bareNewline:
		// Deviation: RFC 3030 §3 wants BINARYMIME for what is not lines ended by CRLF. The client did not declare it either; the
		// octets are counted, so nothing in them can be taken for a command, and they arrive as they came.
		t.bdat = true
	case shape.openEnd, shape.nul:
		t.bdat = offers.chunking
	}
	return ""
}

func (t *transaction) bareNewline() string {
	return "554 5.6.3 message has a bare CR or LF, and " + t.c.hop.name + " does not offer CHUNKING"
}

// run carries the transaction out. Without an error, every recipient of rcpts has been settled, except those to be tried in another
// transaction. With an error the connection is of no use any more.
func (t *transaction) run() error {
	c := t.c
	c.served++
	if err := t.openTransaction(); err != nil {
		return err
	}
	switch {
	case t.mail != mailAccepted, len(t.accepted) == 0:
		return t.abandon()
	case !t.bdat && !t.started:
		c.dirty = true // DATA was refused: everyone is settled, the transaction stays open (RFC 5321 §4.1.1.4)
		return nil
	}
	if err := t.sendMessage(); err != nil {
		return err
	}
	return t.finalReplies()
}

// checkPaths fails what can't be written into a command: with a CR or LF in it, it would be two. The edges refuse such paths; this is
// the last gate. It gives false when nobody is left to try.
func (a *attempt) checkPaths() bool {
	env := a.d.Env
	if hasControl(env.ReversePath) || hasControl(env.EnvID) {
		a.settleAll(queue.Failed, "553 5.1.7 reverse-path or ENVID holds a control character")
		return false
	}
	for _, i := range a.todo {
		if rcpt := &env.Recipients[i]; hasControl(rcpt.Path) || hasControl(rcpt.ORcpt) {
			a.settle(i, queue.Failed, "553 5.1.3 forward-path or ORCPT holds a control character")
		}
	}
	a.dropSettled()
	return len(a.todo) > 0
}

func hasControl(p []byte) bool {
	for _, ch := range p {
		if ch < ' ' || ch == 0x7F {
			return true
		}
	}
	return false
}

// openTransaction sends the commands up to DATA, in command groups when the next hop offers PIPELINING, otherwise one by one.
//
// BDAT is not part of the group, though RFC 3030 §4.2 allows it: with all recipients refused, a next hop that fails to skip
// the octets would run the message as commands.
func (t *transaction) openTransaction() error {
	c := t.c
	if c.dirty {
		c.out = append(c.out, "RSET\r\n"...)
		if err := t.queued(command{at: stepRset}); err != nil {
			return err
		}
	}
	c.out = t.appendMail(c.out)
	if err := t.queued(command{at: stepMail}); err != nil {
		return err
	}
	for _, i := range t.rcpts {
		if t.mail == mailRefused {
			return nil
		}
		c.out = t.appendRcpt(c.out, &t.a.d.Env.Recipients[i])
		if err := t.queued(command{at: stepRcpt, rcpt: i}); err != nil {
			return err
		}
	}
	// Replies that are still to come may all be refusals; then DATA is refused too, or answered with 354 and ended at once. When all
	// have come and nobody was accepted, DATA is not sent.
	if !t.bdat && t.mail != mailRefused && (len(t.waiting) > 0 || len(t.accepted) > 0) {
		c.out = append(c.out, "DATA\r\n"...)
		if err := t.queued(command{at: stepData}); err != nil {
			return err
		}
	}
	return t.exchange()
}

// queued counts a command appended to c.out, and sends what has gathered when it may not wait.
func (t *transaction) queued(cmd command) error {
	t.waiting = append(t.waiting, cmd)
	if t.c.offers.pipelining && len(t.waiting) < maxGroupReplies {
		return nil
	}
	return t.exchange()
}

// exchange writes the gathered commands and takes their replies.
func (t *transaction) exchange() error {
	if len(t.waiting) == 0 {
		return nil
	}
	// When the write fails the next hop may have said why before it closed.
	writeErr := t.c.flush(t.waiting[0].at)
	for n, cmd := range t.waiting {
		reply, err := t.c.reply(cmd.at)
		if err != nil {
			if writeErr != nil && n == 0 {
				return writeErr
			}
			return err
		}
		if err := t.answered(cmd, &reply); err != nil {
			return err
		}
	}
	t.waiting = t.waiting[:0]
	return nil
}

// answered takes one reply.
func (t *transaction) answered(cmd command, reply *smtpcodec.Reply) error {
	c, a := t.c, t.a
	if reply.Code == 421 {
		return c.closing(reply)
	}
	class := reply.Code / 100
	if class == 3 && !(cmd.at == stepData && reply.Code == 354) {
		return c.unexpected(cmd.at, reply)
	}
	switch cmd.at {
	case stepRset:
		if class != 2 {
			return c.unexpected(cmd.at, reply)
		}
		c.dirty = false
	case stepMail:
		c.untried = false
		if !c.proved {
			c.proved = true
			c.r.conns.proven(c.hop)
		}
		if class == 2 {
			t.mail, c.dirty = mailAccepted, true
			return nil
		}
		t.mail = mailRefused
		a.settleAll(outcome(reply), replyText(reply))
	case stepRcpt:
		switch {
		case t.mail == mailRefused: // 503 in all likelihood
		case class == 2:
			t.accepted = append(t.accepted, cmd.rcpt)
		case t.tooMany(reply): // stays in todo
		default:
			a.settle(cmd.rcpt, outcome(reply), replyText(reply))
		}
	case stepData:
		switch {
		case reply.Code == 354:
			t.started = true
		case class == 2:
			return c.unexpected(cmd.at, reply)
		default:
			t.settleAccepted(reply)
		}
	}
	return nil
}

// tooMany says that a recipient was refused only because the transaction has enough of them (RFC 5321 §4.5.3.1.10): it goes into the
// next one. That somebody was accepted before makes each transaction settle at least one recipient, so this ends.
func (t *transaction) tooMany(reply *smtpcodec.Reply) bool {
	if len(t.accepted) == 0 {
		return false
	}
	e := reply.Enhanced
	// RFC 5321 §4.5.3.1.10 asks to take 552 as 452 here; with an enhanced code, 552 5.2.2 is a full mailbox and something else.
	return reply.Code == 452 && (e.Class == 0 || e.Subject == 5 && e.Detail == 3) || reply.Code == 552 && e.Subject == 5 && e.Detail == 3
}

func (t *transaction) settleAccepted(reply *smtpcodec.Reply) {
	state, text := outcome(reply), replyText(reply)
	for _, i := range t.accepted {
		t.a.settle(i, state, text)
	}
}

// abandon ends a transaction in which nobody was accepted. The transaction may still be open: RSET comes before the next one.
func (t *transaction) abandon() error {
	c := t.c
	if !t.started {
		return nil
	}
	if c.hop.LMTP {
		// RFC 2033 §4.2: DATA must be refused then. How many replies follow the data otherwise is anybody's guess.
		c.outOfStep(stepData, "354 without a recipient")
		return nil
	}
	// RFC 2920 §3.1: DATA was accepted though nobody was; only the terminator is sent, and the reply means nothing.
	if c.write(stepEndOfData, terminator) != nil {
		return nil
	}
	if reply, err := c.reply(stepEndOfData); err == nil && reply.Code == 421 {
		c.broken = true
	}
	c.dirty = false
	return nil
}

var terminator = []byte(".\r\n")

// sendMessage sends the message data. After an error the next hop has not seen its end, and must not take the message (RFC 5321
// §4.1.1.4, RFC 3030 §2).
func (t *transaction) sendMessage() error {
	send := t.sendData
	if t.bdat {
		send = t.sendChunk
	}
	err := send()
	if err == nil {
		return nil
	}
	t.c.broken = true
	if gone := (*hopError)(nil); errors.As(err, &gone) {
		// The next hop closed, or stopped reading, in the midst of the data: it may have said why.
		if reply, replyErr := t.c.replyWithin(stepEndOfData, t.c.r.o.Timeouts.Quit); replyErr == nil && reply.Code >= 400 {
			if !t.c.hop.LMTP { // there, one reply is about one recipient
				t.settleAccepted(&reply)
			}
			return &hopError{replyText(&reply)}
		}
	}
	return err
}

// errBareNewline: a large message turned out, halfway through, to be none that DATA can carry.
var errBareNewline = errors.New("relay: bare CR or LF in message data")

// sendData sends the message with dots stuffed, the terminator in the same write as the last block.
func (t *transaction) sendData() error {
	var s stuffer
	var ok bool
	out, left := t.a.msg.buf.out[:0], t.a.d.Size
	err := t.a.msg.blocks(func(block []byte) error {
		if out, ok = s.appendTo(out[:0], block); !ok {
			return errBareNewline
		}
		if left -= int64(len(block)); left == 0 {
			return nil
		}
		return t.c.write(stepEndOfData, out)
	})
	if err != nil {
		return err
	}
	if out, ok = s.finish(out); !ok {
		return errBareNewline
	}
	return t.c.write(stepEndOfData, out)
}

// sendChunk sends the message as it is, in one chunk, the command in the same write as the first block.
func (t *transaction) sendChunk() error {
	c := t.c
	out := append(t.a.msg.buf.out[:0], "BDAT "...)
	out = strconv.AppendInt(out, t.a.d.Size, 10)
	out = append(out, " LAST\r\n"...)
	err := t.a.msg.blocks(func(block []byte) error {
		if len(out) > 0 {
			block = append(out, block...)
			out = out[:0]
		}
		return c.write(stepEndOfData, block)
	})
	if err == nil && len(out) > 0 { // an empty message
		err = c.write(stepEndOfData, out)
	}
	return err
}

// finalReplies takes the reply after the message: one for all, or one for each accepted recipient with LMTP (RFC 2033 §4.2).
func (t *transaction) finalReplies() error {
	c := t.c
	c.dirty = false
	speaksFor := t.accepted
	for len(t.accepted) > 0 {
		reply, err := c.reply(stepEndOfData)
		if err != nil {
			return err
		}
		switch {
		case reply.Code == 421:
			return c.closing(&reply)
		case reply.Code/100 == 3:
			return c.unexpected(stepEndOfData, &reply)
		}
		if c.hop.LMTP {
			speaksFor, t.accepted = t.accepted[:1], t.accepted[1:]
		} else {
			t.accepted = nil
		}
		state, text := outcome(&reply), replyText(&reply)
		for _, i := range speaksFor {
			t.a.settle(i, state, text)
		}
		// RFC 5321 §4.1.1.4: the reply after the data ends the transaction whatever it is. After a refused BDAT its state is
		// indeterminate (RFC 3030 §2), hence RSET.
		if t.bdat && state != queue.Delivered {
			c.dirty = true
		}
	}
	c.r.stats.bytes.Add(uint64(t.a.d.Size))
	if c.r0 != c.w0 {
		c.broken = true // more replies than were asked for
	}
	return nil
}

// appendMail appends the MAIL command with the parameters that the next hop offered to take.
func (t *transaction) appendMail(dst []byte) []byte {
	offers, env := &t.c.offers, t.a.d.Env
	dst = append(dst, "MAIL FROM:<"...)
	dst = append(dst, env.ReversePath...)
	dst = append(dst, '>')
	if offers.size {
		dst = append(dst, " SIZE="...)
		dst = strconv.AppendInt(dst, t.a.d.Size, 10)
	}
	switch {
	case env.Body == envelope.BodyBinaryMIME:
		dst = append(dst, " BODY=BINARYMIME"...)
	// Deviation: RFC 6152 §3 wants a conversion to 7-bit, or a bounce, when the next hop offers no 8BITMIME. Every server in use
	// is 8-bit clean, and we never alter a message; it goes as it is, without the parameter.
	case env.Body == envelope.Body8BitMIME && offers.eightBit:
		dst = append(dst, " BODY=8BITMIME"...)
	case env.Body == envelope.Body7Bit && offers.eightBit:
		dst = append(dst, " BODY=7BIT"...)
	}
	if env.SMTPUTF8 {
		dst = append(dst, " SMTPUTF8"...)
	}
	if env.RequireTLS {
		dst = append(dst, " REQUIRETLS"...)
	}
	if offers.dsn {
		switch env.Ret {
		case envelope.RetFull:
			dst = append(dst, " RET=FULL"...)
		case envelope.RetHdrs:
			dst = append(dst, " RET=HDRS"...)
		}
		if len(env.EnvID) > 0 {
			dst = append(append(dst, " ENVID="...), env.EnvID...)
		}
	}
	return append(dst, "\r\n"...)
}

// appendRcpt appends a RCPT command.
func (t *transaction) appendRcpt(dst []byte, rcpt *envelope.Recipient) []byte {
	dst = append(dst, "RCPT TO:<"...)
	dst = append(dst, rcpt.Path...)
	dst = append(dst, '>')
	if t.c.offers.dsn {
		if rcpt.Notify != 0 {
			dst = append(dst, " NOTIFY="...)
			for _, n := range notifyWords {
				if rcpt.Notify&n.bit != 0 {
					dst = append(append(dst, n.word...), ',')
				}
			}
			dst = dst[:len(dst)-1]
		}
		if len(rcpt.ORcpt) > 0 {
			dst = append(append(dst, " ORCPT="...), rcpt.ORcpt...)
		}
	}
	return append(dst, "\r\n"...)
}

var notifyWords = [...]struct {
	bit  envelope.Notify
	word string
}{
	{envelope.NotifyNever, "NEVER"}, {envelope.NotifySuccess, "SUCCESS"}, {envelope.NotifyFailure, "FAILURE"},
	{envelope.NotifyDelay, "DELAY"},
}
