package loadtest

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// message is one message on its way. Its octets are made when they are sent.
type message struct {
	seq        uint64
	class      int   // index of plan.classes
	recipients int   // how many
	bdat       bool  // sent with CHUNKING
	due        int64 // when it was to begin, in nanoseconds of the run's clock
}

// Body lines are 76 octets and CRLF, as base64 and most mail programs make them. One in dottedLines begins with a dot, so that
// dot-stuffing is proven on the way.
const (
	lineLen     = 78
	dottedLines = 64
	dottedLine  = 3
)

// body is what all messages of a run share: a long text of which each message has a prefix. Two forms: as it is, and dot-stuffed for DATA.
type body struct {
	plain, stuffed []byte
}

func newBody(n int) body {
	const words = "The quick brown fox jumps over the lazy dog and 0123456789 more of them, daily. "
	var b body
	for line := 0; len(b.plain) < n; line++ {
		at := len(b.plain)
		if line%dottedLines == dottedLine {
			b.plain = append(b.plain, '.')
			b.stuffed = append(b.stuffed, '.', '.')
		}
		text := len(b.plain)
		b.plain = append(b.plain, fmt.Sprintf("%06d ", line%1e6)...)
		for len(b.plain)-at < lineLen-2 {
			b.plain = append(b.plain, words[(len(b.plain)+line*7)%len(words)])
		}
		b.plain = append(b.plain, "\r\n"...)
		b.stuffed = append(b.stuffed, b.plain[text:]...)
	}
	return b
}

// dots is how many octets longer the first n are in the stuffed form.
func dots(n int) int {
	lines := (n + lineLen - 1) / lineLen // begun
	return (lines + dottedLines - 1 - dottedLine) / dottedLines
}

// sizeClass is a size that the run uses.
type sizeClass struct {
	size   int // octets of message data
	prefix int // octets of body.plain in it
}

// Lengths that are the same for all messages of a run, so that sizes can be planned.
const (
	seqDigits = 10
	tailText  = "-- the end of message 0000000000 of run 0000000000000000\r\n"
)

// composer makes the octets of messages. One for each goroutine that sends.
type composer struct {
	plan   *plan
	random *rand.Rand
	hashes []*ledger.BodyHash // by size class
	tail   []byte
}

func newComposer(p *plan, stream uint64) *composer {
	c := &composer{plan: p, random: rand.New(rand.NewPCG(p.Seed, stream)), hashes: make([]*ledger.BodyHash, len(p.classes))}
	// Now rather than at first use: a long body would delay what is being measured.
	for i, class := range p.classes {
		if i > 0 && class.prefix == p.classes[i-1].prefix {
			c.hashes[i] = c.hashes[i-1]
		} else {
			c.hashes[i] = ledger.NewBodyHash(p.body.plain[:class.prefix])
		}
	}
	return c
}

// draw decides what the next message is like.
func (c *composer) draw(seq uint64, due int64) message {
	m := message{seq: seq, due: due, recipients: c.plan.Recipients.Min}
	if n := len(c.plan.classes); n > 1 {
		m.class = c.random.IntN(n)
	}
	if more := c.plan.Recipients.Max - c.plan.Recipients.Min; more > 0 {
		m.recipients += c.random.IntN(more + 1)
	}
	m.bdat = c.plan.BDAT > 0 && (c.plan.BDAT >= 1 || c.random.Float64() < c.plan.BDAT)
	return m
}

// size is the octets of m's data.
func (c *composer) size(m message) int { return c.plan.classes[m.class].size }

// data appends what comes before and after the shared body to buf, in this order, and returns the three parts; head and tail are slices of
// the grown buf. The tail has the end of data unless m goes by BDAT or HTTP. The message's own octets are only a few hundred.
func (c *composer) data(buf []byte, m message, plain bool) (grown, head, shared, tail []byte) {
	class := c.plan.classes[m.class]
	c.tail = c.plan.appendTail(c.tail[:0], m)

	start := len(buf)
	mark := ledger.Mark{Run: c.plan.run, Seq: m.seq, Body: c.hashes[m.class].Sum(c.tail)}
	buf = mark.Append(buf) // again below: the checksum of what follows it is not known yet
	rest := len(buf)
	buf = c.plan.appendHeader(buf, m)
	mark.Head = crc32.Checksum(buf[rest:], castagnoli)
	mark.Append(buf[:start])
	buf = append(buf, "\r\n"...)
	between := len(buf)
	buf = append(buf, c.tail...)
	if plain {
		shared = c.plan.body.plain[:class.prefix]
	} else {
		shared = c.plan.body.stuffed[:class.prefix+dots(class.prefix)]
		buf = append(buf, ".\r\n"...)
	}
	return buf, buf[start:between], shared, buf[between:]
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendHeader appends the header fields behind the mark.
func (p *plan) appendHeader(dst []byte, m message) []byte {
	dst = append(dst, p.fixedHeader...)
	dst = append(dst, "To: <"...)
	dst = p.appendRecipient(dst, m.seq, 0)
	dst = append(dst, ">\r\nMessage-ID: <"...)
	dst = appendDigits(dst, m.seq, seqDigits)
	dst = append(dst, '.')
	dst = append(dst, p.runText...)
	dst = append(dst, "@client.test>\r\n"...)
	return dst
}

// appendTail appends the body's last line, which makes each body another. A class whose prefix would end within a CRLF has it one octet
// longer.
func (p *plan) appendTail(dst []byte, m message) []byte {
	class := p.classes[m.class]
	pad := class.size - p.headerLen - class.prefix - len(tailText)
	for range pad {
		dst = append(dst, '-')
	}
	dst = append(dst, "-- the end of message "...)
	dst = appendDigits(dst, m.seq, seqDigits)
	dst = append(dst, " of run "...)
	dst = append(dst, p.runText...)
	return append(dst, "\r\n"...)
}

func (p *plan) sender(m message) string { return p.senders[m.seq%uint64(len(p.senders))] }

func (p *plan) appendRecipient(dst []byte, seq uint64, i int) []byte {
	if p.To != "" {
		return append(dst, p.To...)
	}
	return ledger.AppendRecipient(dst, p.run, seq, i, p.Domain)
}

// appendDigits appends v with leading zeros.
func appendDigits(dst []byte, v uint64, width int) []byte {
	var digits [20]byte
	text := strconv.AppendUint(digits[:0], v, 10)
	for i := len(text); i < width; i++ {
		dst = append(dst, '0')
	}
	return append(dst, text...)
}

// plan is what all sessions of a run share. It does not change once the run has begun.
type plan struct {
	Options
	run         ledger.RunID
	runText     string
	book        *ledger.Book
	body        body
	classes     []sizeClass
	fixedHeader string
	headerLen   int        // octets of the header section, mark and empty line included
	senders     [10]string // the reverse-paths, in turn by the number of a message
	greeting    string     // the EHLO or LHLO command
}

func newPlan(o Options) *plan {
	p := &plan{Options: o, run: ledger.NewRunID()}
	p.runText = p.run.String()
	p.book = ledger.NewBook(p.run, o.Recipients.Max)
	p.fixedHeader = "Date: " + time.Now().Format(time.RFC1123Z) + "\r\n" +
		"From: <" + strings.ReplaceAll(o.From, "#", "0") + ">\r\n" +
		"Subject: load test, run " + p.runText + "\r\n" +
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n"
	p.headerLen = ledger.MarkLen + len(p.appendHeader(nil, message{})) + 2
	sizes := o.Size.classes(rand.New(rand.NewPCG(o.Seed, 0)))
	p.body = newBody(sizes[len(sizes)-1])
	for _, size := range sizes {
		prefix := max(0, size-p.headerLen-len(tailText))
		if prefix%lineLen == lineLen-1 {
			prefix-- // not between CR and LF
		}
		// A header section that is longer than the size asked for makes the message longer.
		size = max(size, p.headerLen+prefix+len(tailText))
		p.classes = append(p.classes, sizeClass{size, prefix})
	}
	for i := range p.senders {
		p.senders[i] = strings.ReplaceAll(o.From, "#", strconv.Itoa(i))
	}
	verb := "EHLO "
	if o.Protocol == "lmtp" {
		verb = "LHLO "
	}
	p.greeting = verb + o.EHLO + "\r\n"
	return p
}

// newClient makes the client of connection i.
func (p *plan) newClient(t *tally, h host, c *composer, i int, startTLS bool) client {
	left := -1
	if p.PerConnection > 0 {
		left = p.PerConnection
	}
	var preamble []byte
	if p.Proxy > 0 && !p.TLS {
		preamble = proxyHeader(p.Proxy, i)
	}
	if p.Protocol == "http" {
		return &httpSession{plan: p, tally: t, host: h, make: c, left: left, preamble: preamble}
	}
	return &session{plan: p, tally: t, host: h, make: c, left: left, preamble: preamble, startTLS: startTLS}
}
