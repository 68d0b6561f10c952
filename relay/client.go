package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fastedge/fastedge/smtpcodec"
)

// step is where a session stands: the reply that is awaited. It has a deadline and a name in replies and logs.
type step uint8

const (
	stepGreeting step = iota
	stepHello
	stepRset
	stepMail
	stepRcpt
	stepData
	stepEndOfData
	stepQuit
	numSteps
)

var stepNames = [numSteps]string{"greeting", "EHLO", "RSET", "MAIL", "RCPT", "DATA", "end of data", "QUIT"}

func (s step) String() string { return stepNames[s] }

// Sizes of one connection and one delivery.
const (
	// maxReplyBytes is the longest reply read, all its lines together. RFC 5321 §4.5.3.1.5 allows 512 a line; a long EHLO reply has
	// some 30 short ones. A next hop that sends more has lost its mind, or is not one.
	maxReplyBytes = 8 << 10
	// maxGroupReplies is the most commands written before their replies are read. Replies that we do not read yet wait in the socket
	// buffers; 104 × 512 bytes always fit, so the next hop is never kept from reading our commands while we are kept from
	// reading its replies (RFC 2920 §3.1 leaves that to the client). RSET, MAIL, 100 RCPT and DATA are one group.
	maxGroupReplies = 104
	// maxRecipients is the most recipients of a transaction when the next hop names no limit: RFC 5321 §4.5.3.1.8.
	maxRecipients = 100
	// maxOfferedRecipients is the most when LIMITS RCPTMAX offers more.
	maxOfferedRecipients = 1000
)

// The ways in which a connection becomes useless. Each leaves the open recipients pending; text is the reply kept for them.

// errShutdown: the grace is over.
var errShutdown = &hopError{text: "451 4.3.2 relay is shutting down"}

// hopError is trouble with the connection or the next hop's protocol.
type hopError struct{ text string }

func (e *hopError) Error() string { return e.text }

// reason is what stands behind "EOF" or a long net error.
func reason(err error) string {
	var op *net.OpError
	var dns *net.DNSError
	var sys *os.SyscallError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timed out"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed by next hop"
	case errors.Is(err, net.ErrClosed):
		return "cut off by shutdown"
	case errors.As(err, &dns):
		return dns.Err
	case errors.As(err, &sys):
		return sys.Err.Error()
	case errors.As(err, &op):
		return op.Err.Error()
	}
	return err.Error()
}

// offers is what the next hop said in its EHLO reply.
type offers struct {
	pipelining, size, eightBit, binary, chunking, utf8, dsn, requireTLS bool

	maxBytes   int64 // SIZE; 0: none stated
	maxRcpts   int   // LIMITS RCPTMAX; 0: none stated
	maxPerConn int   // LIMITS MAILMAX; 0: none stated
}

// parse reads the lines of an EHLO reply after the first (RFC 5321 §4.1.1.1). Unknown keywords and unreadable values are passed over.
func (o *offers) parse(text string) {
	*o = offers{}
	_, text, _ = strings.Cut(text, "\n")
	for line := range strings.SplitSeq(text, "\n") {
		keyword, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch strings.ToUpper(keyword) {
		case "PIPELINING":
			o.pipelining = true
		case "SIZE":
			o.size = true
			if n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64); err == nil && n > 0 {
				o.maxBytes = n
			}
		case "8BITMIME":
			o.eightBit = true
		case "BINARYMIME":
			o.binary = true
		case "CHUNKING":
			o.chunking = true
		case "SMTPUTF8":
			o.utf8 = true
		case "DSN":
			o.dsn = true
		case "REQUIRETLS":
			o.requireTLS = true
		case "LIMITS":
			for limit := range strings.FieldsSeq(rest) {
				name, value, _ := strings.Cut(limit, "=")
				n, err := strconv.ParseUint(value, 10, 31)
				if err != nil || n == 0 {
					continue
				}
				switch strings.ToUpper(name) {
				case "RCPTMAX":
					o.maxRcpts = int(n)
				case "MAILMAX":
					o.maxPerConn = int(n)
				}
			}
		}
	}
}

// recipients is how many go into one transaction.
func (o *offers) recipients() int {
	if o.maxRcpts > 0 {
		return min(o.maxRcpts, maxOfferedRecipients)
	}
	return maxRecipients
}

// secured says that the connection is encrypted and that its other end has shown a certificate which was verified (RFC 8689 §4.2.1). The relay
// itself speaks TLS to nobody; Options.Dial may. It is true from the end of the handshake on, that is, once there was an EHLO reply.
func (c *conn) secured() bool {
	t, ok := c.nc.(interface{ ConnectionState() tls.ConnectionState })
	return ok && len(t.ConnectionState().VerifiedChains) > 0
}

// conn is one session with a next hop. It belongs to one goroutine at a time.
type conn struct {
	r    *Relay
	hop  *hop
	nc   net.Conn
	raw  syscall.RawConn // nil when nc has none
	stop func() bool     // undoes the hook that closes nc at the end of the grace

	offers    offers
	served    int       // transactions since the connection was made
	proved    bool      // has answered a MAIL
	untried   bool      // lent, and no MAIL has been answered since: the message can go to another connection as if nothing was
	dirty     bool      // a transaction was left open: RSET comes before the next MAIL
	broken    bool      // of no further use: closed, out of step, or about to be closed by the next hop
	idleSince time.Time // set when it is given back

	out  []byte // commands not yet written
	r0   int    // in[r0:w0] is read but not used
	w0   int
	in   [maxReplyBytes]byte
	peek [1]byte
}

// dialHop connects to h and says EHLO or LHLO. ctx bounds all of it; afterwards r.hard cuts the connection off.
func dialHop(ctx context.Context, r *Relay, h *hop) (*conn, error) {
	dialing, cancel := context.WithTimeout(ctx, r.o.Timeouts.Dial)
	defer cancel()
	nc, err := r.o.Dial(dialing, h.Network, h.Address)
	if err != nil {
		return nil, &hopError{"451 4.4.1 connect to " + h.name + ": " + reason(err)}
	}
	c := &conn{r: r, hop: h, nc: nc}
	if s, ok := nc.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	err = c.hello()
	stop()
	if err != nil {
		nc.Close()
		return nil, err
	}
	c.stop = context.AfterFunc(r.hard, func() { nc.Close() })
	return c, nil
}

// hello reads the greeting and introduces us.
func (c *conn) hello() error {
	greeting, err := c.reply(stepGreeting)
	if err != nil {
		return err
	}
	// RFC 5321 §3.1: 554 means that there is no mail service here. Such a next hop is misconfigured or under repair, which says
	// nothing about a message; the next one is tried, and mail waits.
	if greeting.Code != 220 {
		return c.unwelcome(stepGreeting, &greeting)
	}
	word := "EHLO "
	if c.hop.LMTP {
		word = "LHLO "
	}
	answer, err := c.command(stepHello, word+c.r.o.Hostname)
	if err != nil {
		return err
	}
	if answer.Code/100 == 2 {
		c.offers.parse(answer.Text)
		return nil
	}
	// RFC 5321 §3.2: a server that knows no EHLO. An LMTP server has no older greeting (RFC 2033 §4.1).
	if answer.Code/100 == 5 && !c.hop.LMTP {
		if answer, err = c.command(stepHello, "HELO "+c.r.o.Hostname); err != nil {
			return err
		}
		if answer.Code/100 == 2 {
			return nil
		}
	}
	return c.unwelcome(stepHello, &answer)
}

func (c *conn) unwelcome(at step, reply *smtpcodec.Reply) error {
	return &hopError{"451 4.4.1 " + c.hop.name + " refused at " + at.String() + ": " + replyText(reply)}
}

// command sends one line and awaits its reply.
func (c *conn) command(at step, line string) (smtpcodec.Reply, error) {
	c.out = append(append(c.out[:0], line...), "\r\n"...)
	if err := c.flush(at); err != nil {
		return smtpcodec.Reply{}, err
	}
	return c.reply(at)
}

// flush writes the commands gathered in c.out.
func (c *conn) flush(at step) error {
	err := c.write(at, c.out)
	if cap(c.out) > 64<<10 {
		c.out = nil
	}
	c.out = c.out[:0]
	return err
}

// write sends p. Unread replies at this point answer nothing that was asked: the next hop is out of step, and what it says
// next could be taken for the reply to another command.
func (c *conn) write(at step, p []byte) error {
	if c.r0 != c.w0 {
		return c.outOfStep(at, "a reply before its command")
	}
	c.nc.SetWriteDeadline(time.Now().Add(c.r.o.Timeouts.DataBlock))
	if _, err := c.nc.Write(p); err != nil {
		return c.lost(at, err)
	}
	return nil
}

// reply reads one reply, which must be complete within the step's time, however slowly its bytes drip.
func (c *conn) reply(at step) (smtpcodec.Reply, error) {
	return c.replyWithin(at, c.r.waits[at])
}

func (c *conn) replyWithin(at step, wait time.Duration) (smtpcodec.Reply, error) {
	timed := false
	for {
		if c.r0 < c.w0 {
			reply, n, err := smtpcodec.ParseReply(c.in[c.r0:c.w0])
			if err != nil {
				return reply, c.outOfStep(at, "an unreadable reply")
			}
			if n > 0 {
				if c.r0 += n; c.r0 == c.w0 {
					c.r0, c.w0 = 0, 0
				}
				return reply, nil
			}
			if c.r0 > 0 {
				c.w0 = copy(c.in[:], c.in[c.r0:c.w0])
				c.r0 = 0
			}
			if c.w0 == len(c.in) {
				return reply, c.outOfStep(at, "a reply of more than "+strconv.Itoa(maxReplyBytes)+" bytes")
			}
		}
		if !timed {
			c.nc.SetReadDeadline(time.Now().Add(wait))
			timed = true
		}
		n, err := c.nc.Read(c.in[c.w0:])
		c.w0 += n
		if n == 0 && err != nil {
			return smtpcodec.Reply{}, c.lost(at, err)
		}
	}
}

// lost says that the connection is gone.
func (c *conn) lost(at step, err error) error {
	c.broken = true
	return &hopError{fmt.Sprintf("451 4.4.2 %s: connection lost at %s: %s", c.hop.name, at, reason(err))}
}

// outOfStep says that the next hop does not keep to the protocol. Nothing it says after that can be trusted.
func (c *conn) outOfStep(at step, what string) error {
	c.broken = true
	return &hopError{fmt.Sprintf("451 4.5.0 %s: out of step at %s: %s", c.hop.name, at, what)}
}

// unexpected is outOfStep for a reply code that has no meaning at this step.
func (c *conn) unexpected(at step, reply *smtpcodec.Reply) error {
	return c.outOfStep(at, "unexpected reply "+replyText(reply))
}

// closing is for a 421: the next hop will close, and what was sent after the command it answers is void (RFC 5321 §3.8).
func (c *conn) closing(reply *smtpcodec.Reply) error {
	c.broken = true
	return &hopError{replyText(reply)}
}

// alive asks without waiting whether a kept connection is still open and silent. Bytes that have come since the last reply mean a
// 421 in most cases, and otherwise a next hop that is out of step: neither can be used.
func (c *conn) alive() bool {
	if c.r0 != c.w0 {
		return false
	}
	if c.raw == nil {
		return true
	}
	c.nc.SetReadDeadline(time.Time{}) // that of the last reply may have passed, and would look like an error
	return silent(c.raw, c.peek[:])
}

// spent says that the connection has done its share.
func (c *conn) spent() bool {
	return c.served >= c.r.o.MaxPerConnection || c.offers.maxPerConn > 0 && c.served >= c.offers.maxPerConn
}

// quit ends the session in order: RFC 5321 §4.1.1.10 wants QUIT, and its reply awaited.
func (c *conn) quit() {
	if !c.broken {
		_, _ = c.command(stepQuit, "QUIT")
	}
}

func (c *conn) close() {
	c.stop()
	c.nc.Close()
}

// maxOutcomeBytes is the longest reply that queue.Outcome takes.
const maxOutcomeBytes = 512

// replyText gives a reply on one line as it is kept and logged: code, enhanced code, text, all of it printable.
func replyText(r *smtpcodec.Reply) string {
	b := make([]byte, 0, 16+len(r.Text))
	b = strconv.AppendUint(b, uint64(r.Code), 10)
	if e := r.Enhanced; e.Class != 0 {
		b = append(b, ' ')
		b = strconv.AppendUint(b, uint64(e.Class), 10)
		b = append(b, '.')
		b = strconv.AppendUint(b, uint64(e.Subject), 10)
		b = append(b, '.')
		b = strconv.AppendUint(b, uint64(e.Detail), 10)
	}
	if r.Text != "" {
		b = append(append(b, ' '), r.Text...)
	}
	return cleanBytes(b)
}

// clean makes s printable and short enough to keep.
func clean(s string) string { return cleanBytes([]byte(s)) }

func cleanBytes(b []byte) string {
	b = b[:min(len(b), maxOutcomeBytes)]
	for i, ch := range b {
		switch {
		case ch == '\n':
			b[i] = ' ' // between the lines of a reply
		case ch < ' ' || ch > '~':
			b[i] = '?'
		}
	}
	return string(b)
}

// printable: neither controls nor blanks nor 8-bit.
func printable(p []byte) bool {
	for _, ch := range p {
		if ch <= ' ' || ch > '~' {
			return false
		}
	}
	return true
}
