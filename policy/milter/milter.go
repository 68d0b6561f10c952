// Package milter shows messages to a milter, the mail filter protocol that Sendmail has begun and Postfix speaks too: rspamd, ClamAV,
// OpenDKIM and many others sit behind it. It is the door to emersion/go-milter.
//
// A milter expects to be told of each step of a session as it happens. Here it is told everything at once, when the message is complete:
// who has connected, HELO, MAIL, each RCPT, the header fields, the body, the end. So one connection serves one message, a client that never
// gets so far costs the milter nothing, and nothing waits for it in between. What a milter answers to an early step therefore counts for
// the whole message: a recipient that it refuses refuses the message, whose sender is told.
//
//	accept, continue    the message passes
//	reject              550 5.7.1
//	tempfail            451 4.7.1
//	reply code          that reply, 400 to 599; another code is an error
//	discard             550 5.7.1: after a 250 the message must be handed on, so there is none
//	quarantine          550 5.7.1, as there is no place for it
//	add header          a field before the message
//
// Nothing else is negotiated: the bytes of a message are never changed. A milter that wants to change or remove a header field all the same
// is not obeyed in this, which the log says; one that changes recipients, the reverse-path or the body has not understood and is an error.
// The DATA step and rejected recipients are not shown.
//
// An error, also a milter that is not there or too slow, defers the message or accepts it, as on_error says.
package milter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	protocol "github.com/emersion/go-milter"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Options are one [[milter]] of the configuration.
type Options struct {
	Name     string // for logs; empty means the address
	Network  string // tcp or unix
	Address  string // host:port or path
	Hostname string // our own, for the macro j
	// Timeout is the time for one message, waiting for a worker included. Zero means 30 s.
	Timeout time.Duration
	OnError policy.OnError
	// Workers is how many messages are shown at once, and so how many connections there are. Zero means 64.
	Workers int
	// MaxQueued is how many more may wait. Zero means 4096.
	MaxQueued int
	Log       *slog.Logger
}

const (
	defaultTimeout   = 30 * time.Second
	defaultWorkers   = 64
	defaultMaxQueued = 4096

	// MaxFields is how many header fields a message may have that is shown to a milter. Each may cost a round trip; no honest message
	// comes near. One with more is refused with 554 5.6.0: what the milter does not see may not pass it.
	MaxFields = 2000
	// maxFieldBytes is how much of one header field is shown: packets of the protocol have 65,535 bytes at most in libmilter.
	maxFieldBytes = 60 << 10
	// maxChunkBytes is the piece in which the body is shown, for the same reason.
	maxChunkBytes = 65535
	// maxAddedBytes bounds the header fields that one milter may add to one message.
	maxAddedBytes = 32 << 10
	maxAddedLine  = 998 // RFC 5322 §2.1.1
	// maxAnswerBytes is how much a milter may say about one message.
	maxAnswerBytes = 4 << 20
)

// Milter is a Validator that shows messages to a milter, at AtMessage.
type Milter struct {
	*policy.Blocking
	o   Options
	old atomic.Bool // the milter knows none of the protocol's later steps
}

// Kind is policy.Kinded's.
func (*Milter) Kind() policy.Kind { return policy.KindMilter }

// New gives a milter. It does not connect.
func New(o Options) (*Milter, error) {
	if o.Network != "tcp" && o.Network != "unix" || o.Address == "" {
		return nil, fmt.Errorf("milter: %q is no address of a milter", o.Network+":"+o.Address)
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.MaxQueued <= 0 {
		o.MaxQueued = defaultMaxQueued
	}
	if o.Name == "" {
		o.Name = o.Address
	}
	m := &Milter{o: o}
	m.Blocking = policy.NewBlocking(policy.BlockingOptions{
		Name: "milter " + o.Name, Stages: policy.On(policy.AtMessage), Workers: o.Workers, MaxQueued: o.MaxQueued, Timeout: o.Timeout,
		OnError: o.OnError, Log: o.Log,
		Do: func(ctx context.Context, p *policy.Pending) (smtpcodec.Reply, []byte, error) {
			return m.show(ctx, &p.Event, p.Body())
		},
	})
	return m, nil
}

// verdict ends the showing of a message before its end; it is no failure.
type verdict struct{ reply smtpcodec.Reply }

func (v *verdict) Error() string { return "milter: " + v.reply.Text }

func refuse(code, subject, detail uint16, text string) error {
	return &verdict{smtpcodec.Reply{Code: code, Enhanced: smtpcodec.EnhancedCode{Class: code / 100, Subject: subject, Detail: detail}, Text: text}}
}

// show runs on a worker.
func (m *Milter) show(ctx context.Context, e *policy.Event, body io.Reader) (smtpcodec.Reply, []byte, error) {
	fields, err := m.talk(ctx, e, body)
	if v, ok := errors.AsType[*verdict](err); ok {
		return v.reply, nil, nil
	}
	return smtpcodec.Reply{}, fields, err
}

func (m *Milter) talk(ctx context.Context, e *policy.Event, body io.Reader) (fields []byte, err error) {
	d := &dialer{ctx: ctx}
	defer d.close() // also when the negotiation fails, for which the client does not
	s, err := m.session(d)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	t := talk{s: s, e: e, hostname: m.o.Hostname}
	done, err := t.envelope()
	if done || err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(body, 4<<10)
	if done, err = t.header(in); done || err != nil {
		return nil, err
	}
	if done, err = t.body(in); done || err != nil {
		return nil, err
	}
	changes, act, err := s.End()
	if err != nil {
		return nil, err
	}
	if _, err = decide(act); err != nil {
		return nil, err
	}
	return m.added(e, changes)
}

// The steps, and the answers to steps, that a milter may leave out. Protocol versions before 6 know the first seven only. OptSkip is not
// among them: the client does not know its answer.
const (
	oldSteps = protocol.OptNoConnect | protocol.OptNoHelo | protocol.OptNoMailFrom | protocol.OptNoRcptTo | protocol.OptNoBody |
		protocol.OptNoHeaders | protocol.OptNoEOH
	allSteps = oldSteps | protocol.OptNoUnknown | protocol.OptNoData | protocol.OptNoHeaderReply | protocol.OptNoConnReply |
		protocol.OptNoHeloReply | protocol.OptNoMailReply | protocol.OptNoRcptReply | protocol.OptNoDataReply |
		protocol.OptNoUnknownReply | protocol.OptNoEOHReply | protocol.OptNoBodyReply | protocol.OptHeaderLeadingSpace
)

// session connects and negotiates. What an old milter does not know may not even be offered, so it is asked twice, once.
func (m *Milter) session(d *dialer) (*protocol.ClientSession, error) {
	o := protocol.ClientOptions{
		Dialer: d, ReadTimeout: m.o.Timeout, WriteTimeout: m.o.Timeout, ActionMask: protocol.OptAddHeader, ProtocolMask: allSteps,
	}
	if m.old.Load() {
		o.ProtocolMask = oldSteps
	}
	s, err := protocol.NewClientWithOptions(m.o.Network, m.o.Address, o).Session()
	if err == protocol.ErrUnsupportedMilterVersion && o.ProtocolMask == allSteps {
		d.close()
		m.old.Store(true)
		o.ProtocolMask = oldSteps
		s, err = protocol.NewClientWithOptions(m.o.Network, m.o.Address, o).Session()
	}
	return s, err
}

// dialer makes the one connection, and ends it with the context: the client has time limits for single reads only.
type dialer struct {
	ctx  context.Context
	conn net.Conn
	stop func() bool
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.conn = conn
	d.stop = context.AfterFunc(d.ctx, func() { conn.Close() })
	return &limitedConn{Conn: conn, left: maxAnswerBytes}, nil
}

// limitedConn ends when the milter has said too much: changes are collected until the last one.
type limitedConn struct {
	net.Conn
	left int
}

func (c *limitedConn) Read(p []byte) (n int, err error) {
	if c.left <= 0 {
		return 0, fmt.Errorf("milter: says more than %d bytes", maxAnswerBytes)
	}
	n, err = c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func (d *dialer) close() {
	if d.conn != nil {
		d.stop()
		d.conn.Close()
	}
}

// talk is one message shown to one milter. Its methods say done when the milter wants to see no more and has accepted.
type talk struct {
	s        *protocol.ClientSession
	e        *policy.Event
	hostname string
}

// decide turns an action into: go on, done, or a verdict as error.
func decide(act *protocol.Action) (done bool, err error) {
	switch act.Code {
	case protocol.ActContinue:
		return false, nil
	case protocol.ActAccept:
		return true, nil
	case protocol.ActReject, protocol.ActDiscard:
		return true, refuse(550, 7, 1, "Message refused by content filter")
	case protocol.ActTempFail:
		return true, refuse(451, 7, 1, "Message deferred by content filter, try again later")
	case protocol.ActReplyCode:
		reply, err := parseReply(act.SMTPCode, act.SMTPText)
		if err != nil {
			return true, err
		}
		return true, &verdict{reply}
	}
	return true, fmt.Errorf("milter: unexpected action %q", byte(act.Code))
}

// parseReply reads what a milter gives as SMTPCode, with the text behind it. Further lines begin with the code again.
func parseReply(code int, text string) (smtpcodec.Reply, error) {
	if code < 400 || code > 599 {
		return smtpcodec.Reply{}, fmt.Errorf("milter: reply code %d", code)
	}
	digits := strconv.Itoa(code)
	lines := strings.Split(strings.TrimRight(text, "\r\n"), "\n")
	for i, line := range lines {
		line = strings.TrimSuffix(line, "\r")
		if rest, ok := strings.CutPrefix(line, digits); ok && i > 0 {
			line = strings.TrimLeft(rest, " -")
		}
		separator := "-"
		if i == len(lines)-1 {
			separator = " "
		}
		lines[i] = digits + separator + strings.ReplaceAll(line, "\r", "?") + "\r\n"
	}
	reply, n, err := smtpcodec.ParseReply([]byte(strings.Join(lines, "")))
	if err != nil || n == 0 {
		return smtpcodec.Reply{}, fmt.Errorf("milter: reply %d %.80q: %w", code, text, err)
	}
	return reply, nil
}

// envelope shows who wants to send what to whom.
func (t *talk) envelope() (done bool, err error) {
	c := &t.e.Client
	env := t.e.Envelope
	if env == nil {
		env = &envelope.Envelope{}
	}
	family, host, text := protocol.FamilyUnknown, "localhost", ""
	if addr := c.Addr.Addr().Unmap(); addr.IsValid() {
		if family = protocol.FamilyInet; addr.Is6() {
			family = protocol.FamilyInet6
		}
		text = addr.WithZone("").String()
		host = "[" + text + "]" // nobody has looked the name up
	}
	steps := []func() (*protocol.Action, error){
		func() (*protocol.Action, error) {
			if err := t.macros(protocol.CodeConn, "j", t.hostname, "{daemon_name}", c.Listener, "{client_addr}", text, "v", "fastedge"); err != nil {
				return nil, err
			}
			return t.s.Conn(host, family, c.Addr.Port(), text)
		},
		func() (*protocol.Action, error) {
			if len(c.Helo) == 0 {
				return &protocol.Action{Code: protocol.ActContinue}, nil
			}
			if c.TLS != nil {
				cn := ""
				if x := c.TLS.Certificate; x != nil && x.Verified {
					cn = x.CommonName
				}
				if err := t.macros(protocol.CodeHelo, "{tls_version}", c.TLS.Version, "{cipher}", c.TLS.Cipher, "{cert_subject}", cn); err != nil {
					return nil, err
				}
			}
			return t.s.Helo(cstring(string(c.Helo)))
		},
		func() (*protocol.Action, error) {
			if err := t.macros(protocol.CodeMail, "i", env.ID.String(), "{auth_authen}", c.User, "{auth_type}", c.Mechanism,
				"{mail_addr}", string(env.ReversePath)); err != nil {
				return nil, err
			}
			return t.s.Mail(cstring(string(env.ReversePath)), mailParams(t.e, env))
		},
	}
	for _, r := range env.Recipients {
		steps = append(steps, func() (*protocol.Action, error) { return t.s.Rcpt(cstring(string(r.Path)), nil) })
	}
	for _, step := range steps {
		act, err := step()
		if err != nil {
			return true, err
		}
		if done, err = decide(act); done || err != nil {
			return true, err
		}
	}
	return false, nil
}

// mailParams are the parameters of MAIL as far as they say something about the message.
func mailParams(e *policy.Event, env *envelope.Envelope) (params []string) {
	params = append(params, "SIZE="+strconv.FormatInt(e.Size, 10))
	switch env.Body {
	case envelope.Body8BitMIME:
		params = append(params, "BODY=8BITMIME")
	case envelope.BodyBinaryMIME:
		params = append(params, "BODY=BINARYMIME")
	}
	if env.SMTPUTF8 {
		params = append(params, "SMTPUTF8")
	}
	return params
}

// macros leaves out those without a value.
func (t *talk) macros(code protocol.Code, pairs ...string) error {
	var set []string
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			set = append(set, pairs[i], cstring(pairs[i+1]))
		}
	}
	if len(set) == 0 {
		return nil
	}
	return t.s.Macros(code, set...)
}

// cstring has no NUL, which would begin another string in a packet.
func cstring(s string) string {
	if strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(s, "\x00", "?")
}

// header shows the header section and leaves in at the body.
func (t *talk) header(in *bufio.Reader) (done bool, err error) {
	space := t.s.ProtocolOption(protocol.OptHeaderLeadingSpace)
	err = readHeader(in, func(name, value string) error {
		if !space {
			value = strings.TrimPrefix(value, " ")
		}
		act, err := t.s.HeaderField(name, value)
		if err != nil {
			return err
		}
		if done, err = decide(act); done && err == nil {
			err = errDone
		}
		return err
	})
	if err == errDone {
		return true, nil
	}
	if err != nil {
		return true, err
	}
	act, err := t.s.HeaderEnd()
	if err != nil {
		return true, err
	}
	return decide(act)
}

var errDone = errors.New("milter: accepted")

// readHeader gives each header field to each, lines of a folded one with "\n" between them, as Sendmail and Postfix do, and reads the empty
// line behind the last one. A line that is no header field, and is not a folded one's, ends the header section as well, and belongs
// to the body. NUL becomes "?".
func readHeader(in *bufio.Reader, each func(name, value string) error) error {
	var field []byte // of which maxFieldBytes are kept
	colon := -1
	n := 0
	flush := func() error {
		if colon < 0 {
			return nil
		}
		if n++; n > MaxFields {
			return refuse(554, 6, 0, "Too many header fields")
		}
		name := strings.TrimRight(cstring(string(field[:colon])), " \t") // RFC 5322 §4.5: blanks before the colon are obsolete
		value := cstring(string(field[colon+1:]))
		field, colon = field[:0], -1
		return each(name, value)
	}
	for {
		first, err := in.Peek(2)
		if err != nil && err != io.EOF {
			return err
		}
		switch {
		case len(first) == 0:
			return flush()
		case first[0] == ' ' || first[0] == '\t':
			if colon < 0 {
				return nil // a message that begins with a blank has no header section
			}
			if len(field) < maxFieldBytes {
				field = append(field, '\n')
			}
		case first[0] == '\n' || len(first) == 2 && first[0] == '\r' && first[1] == '\n':
			if err := flush(); err != nil {
				return err
			}
			_, err := in.Discard(1 + bytes.IndexByte(first, '\n'))
			return err
		default:
			if err := flush(); err != nil {
				return err
			}
			if colon, err = fieldName(in); err != nil || colon < 0 {
				return err
			}
		}
		if field, err = appendLine(field, in); err != nil {
			return err
		}
	}
}

// fieldName is the length of the header field name at the start of the line, -1 when there is none (RFC 5322 §3.6.8).
func fieldName(in *bufio.Reader) (int, error) {
	const maxName = 512
	line, err := in.Peek(maxName)
	if err != nil && err != io.EOF {
		return 0, err
	}
	for i, c := range line {
		switch {
		case c == ':':
			if i == 0 {
				return -1, nil
			}
			return i, nil
		case c == ' ' || c == '\t':
			// Only blanks may follow up to the colon.
			rest := bytes.TrimLeft(line[i:], " \t")
			if i == 0 || len(rest) == 0 || rest[0] != ':' {
				return -1, nil
			}
			return len(line) - len(rest), nil
		case c < ' ' || c == 0x7F:
			return -1, nil
		}
	}
	return -1, nil
}

// appendLine reads to the end of the line and appends it without its end, as long as there is room.
func appendLine(dst []byte, in *bufio.Reader) ([]byte, error) {
	for {
		piece, err := in.ReadSlice('\n')
		if room := maxFieldBytes - len(dst); room > 0 {
			dst = append(dst, piece[:min(len(piece), room)]...)
		}
		switch err {
		case bufio.ErrBufferFull:
			continue
		case nil:
			return bytes.TrimSuffix(bytes.TrimSuffix(dst, []byte("\n")), []byte("\r")), nil
		case io.EOF:
			return dst, nil
		default:
			return dst, err
		}
	}
}

var chunks = sync.Pool{New: func() any { return new([maxChunkBytes]byte) }}

// body shows the rest.
func (t *talk) body(in *bufio.Reader) (done bool, err error) {
	if t.s.ProtocolOption(protocol.OptNoBody) {
		return false, nil
	}
	buf := chunks.Get().(*[maxChunkBytes]byte)
	defer chunks.Put(buf)
	for {
		n, err := io.ReadFull(in, buf[:])
		if n > 0 {
			act, err := t.s.BodyChunk(buf[:n])
			if err != nil {
				return true, err
			}
			if done, err := decide(act); done || err != nil {
				return true, err
			}
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			// The second is also what a reader gives whose client is gone; nobody hears the verdict then.
			return false, nil
		default:
			return true, err
		}
	}
}

// added takes what the milter wants to be changed.
func (m *Milter) added(e *policy.Event, changes []protocol.ModifyAction) (fields []byte, err error) {
	for i := range changes {
		c := &changes[i]
		switch c.Code {
		case protocol.ActAddHeader, protocol.ActInsertHeader:
			if fields, err = appendField(fields, c.HeaderName, c.HeaderValue); err != nil {
				return nil, err
			}
			if len(fields) > maxAddedBytes {
				return nil, fmt.Errorf("milter: more than %d bytes of header fields", maxAddedBytes)
			}
		case protocol.ActQuarantine:
			return nil, refuse(550, 7, 1, "Message refused by content filter")
		case protocol.ActChangeHeader:
			if m.o.Log != nil {
				m.o.Log.Info("milter wants to change a header field, which is not done", "milter", m.o.Name, "field", c.HeaderName,
					"session", e.Client.ID.String())
			}
		default:
			return nil, fmt.Errorf("milter: wants a change (%q) that was not negotiated", byte(c.Code))
		}
	}
	return fields, nil
}

// appendField makes a whole header field. Lines of the value may end in "\n" or CRLF; those after the first are folded, whether the
// milter has done so or not, so that a value stays one field. What may not stand in a field becomes "?", and a line that is too long is
// cut.
func appendField(dst []byte, name, value string) ([]byte, error) {
	if name == "" {
		return nil, errors.New("milter: adds a header field without a name")
	}
	for i := range len(name) { // RFC 5322 §3.6.8
		if c := name[i]; c <= ' ' || c > '~' || c == ':' {
			return nil, fmt.Errorf("milter: adds a header field called %.80q", name)
		}
	}
	if len(name) > maxAddedLine/2 {
		return nil, fmt.Errorf("milter: adds a header field with a name of %d bytes", len(name))
	}
	start := len(dst)
	dst = append(dst, name...)
	dst = append(dst, ':')
	first := true
	for line := range strings.SplitSeq(value, "\n") {
		line = strings.TrimRight(line, "\r \t")
		if line == "" && !first {
			continue // RFC 5322 §3.2.2: no line of a folded field is blanks only
		}
		if !first {
			dst = append(dst, "\r\n"...)
			start = len(dst)
		}
		if line != "" && line[0] != ' ' && line[0] != '\t' {
			if first {
				dst = append(dst, ' ')
			} else {
				dst = append(dst, '\t')
			}
		}
		first = false
		for _, c := range []byte(line) {
			if len(dst)-start == maxAddedLine {
				break
			}
			if c < ' ' && c != '\t' || c > '~' {
				c = '?'
			}
			dst = append(dst, c)
		}
	}
	return append(dst, "\r\n"...), nil
}
