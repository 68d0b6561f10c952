package httpedge

import (
	"bytes"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// lane carries one message from its first byte to its answer, by speaking to a session of its own. It belongs to one goroutine at a time, and is
// used again: Server.lane gives one, Server.park takes it back.
type lane struct {
	srv  *Server
	res  session.Resources
	sess session.Session
	ids  *envelope.IDSource // of a batch, or
	own  *envelope.IDSource

	at       *Listener
	admitted bool            // Server.refuse was asked before the message was read
	out      []byte          // what the session has said
	line     []byte          // the command being said
	code     int             // of the session's last reply; 0: it has said nothing
	last     []byte          // that reply, a part of out
	refusal  smtpcodec.Reply // the last refusal
	reason   session.Reason  // and why
	logged   uint64          // reasons of refusals already logged for this message
	waited   bool            // for a validator

	// greeted says that a dialogue is open in which a message was taken: the next one of the same client with the same name needs no greeting.
	greeted bool
	client  netip.AddrPort
	helo    []byte

	sub   queue.Submission
	queue atomic.Uint32 // asked, answered or awaited
	back  chan struct{} // capacity 1: what was awaited is answered
	eod   time.Time     // end of the data
	tls   string        // version, for the log
	next  *lane         // in the list of idle ones
}

func newLane(srv *Server) *lane {
	l := &lane{srv: srv, own: newIDSource(), back: make(chan struct{}, 1)}
	l.ids = l.own
	l.res = session.Resources{Envelopes: envelope.NewList(srv.chunks), Observer: l}
	return l
}

func newIDSource() *envelope.IDSource {
	var seed [32]byte
	rand.Read(seed[:]) // never fails
	return envelope.NewIDSource(seed)
}

// poster is who wants a message sent.
type poster struct {
	client    netip.AddrPort
	proxy     *netip.AddrPort // that the client came through
	tls       *policy.TLS
	mayRelay  bool
	named     bool   // client is whom the poster speaks for
	user      string // empty without credentials
	mechanism string
	key       *auth.Key // nil for other credentials
}

// begin opens the dialogue, or goes on with that of the lane's last message: helo is the client's name, empty for its address. false: l.answer says why
// not.
func (l *lane) begin(at *Listener, p *poster, helo []byte, now time.Time) bool {
	l.logged, l.reason, l.waited = 0, session.ReasonNone, false
	if l.res.Refuse, l.res.RefuseReason = nil, session.ReasonNone; !l.admitted {
		l.res.Refuse, l.res.RefuseReason = l.srv.refuse()
	}
	if l.greeted && l.client == p.client && bytes.Equal(l.helo, helo) {
		return true
	}
	if l.greeted {
		l.over()
	}
	l.at, l.tls = at, ""
	if p.tls != nil {
		l.tls = p.tls.Version
	}
	id := l.ids.Next(now)
	out, step := l.sess.Open(at.Session, &l.res, session.Peer{Addr: p.client, MayRelay: p.mayRelay, ID: id, TLS: p.tls, Proxy: p.proxy, Named: p.named}, now, l.out[:0])
	if !l.heard(out, step, now) {
		return false
	}
	l.line = append(l.line[:0], "EHLO "...)
	if len(helo) > 0 {
		l.line = append(l.line, helo...)
	} else {
		l.line = appendLiteral(l.line, p.client.Addr())
	}
	if !l.say(now) || p.user == "" {
		return l.code/100 == 2
	}
	out, step = l.sess.LogIn(p.user, p.mechanism, now, l.out[:0])
	return l.heard(out, step, now)
}

// appendLiteral appends an address literal (RFC 5321 §4.1.3).
func appendLiteral(dst []byte, a netip.Addr) []byte {
	a = a.Unmap().WithZone("")
	switch {
	case !a.IsValid():
		return append(dst, "localhost"...)
	case a.Is6():
		dst = append(dst, "[IPv6:"...)
	default:
		dst = append(dst, '[')
	}
	return append(a.AppendTo(dst), ']')
}

// parameters are what may stand behind the reverse-path; size 0: not known.
type parameters struct {
	size     int64
	smtpUTF8 bool
	body     string // "", "7BIT", "8BITMIME", "BINARYMIME"
	ret      string // "", "FULL", "HDRS"
	envID    []byte // xtext
}

// mail says MAIL. The path is a mailbox without angle brackets, or empty.
func (l *lane) mail(path []byte, p *parameters, now time.Time) bool {
	if !l.mayBeSaid(path, &replyBadSender) {
		return false
	}
	b := append(append(append(l.line[:0], "MAIL FROM:<"...), path...), '>')
	if p.size > 0 {
		b = strconv.AppendInt(append(b, " SIZE="...), p.size, 10)
	}
	if p.body != "" {
		b = append(append(b, " BODY="...), p.body...)
	}
	if p.smtpUTF8 || !isASCII(path) {
		b = append(b, " SMTPUTF8"...)
	}
	if p.ret != "" {
		b = append(append(b, " RET="...), p.ret...)
	}
	if len(p.envID) > 0 {
		b = append(append(b, " ENVID="...), p.envID...)
	}
	l.line = b
	return l.say(now)
}

// rcpt says RCPT; orcpt is the whole value of ORCPT, empty for none.
func (l *lane) rcpt(path, orcpt []byte, notify envelope.Notify, now time.Time) bool {
	if !l.mayBeSaid(path, &replyBadRecipient) || !l.mayBeSaid(orcpt, &replyBadRecipient) {
		return false
	}
	b := append(append(append(l.line[:0], "RCPT TO:<"...), path...), '>')
	if notify != 0 {
		b = appendNotify(append(b, " NOTIFY="...), notify)
	}
	if len(orcpt) > 0 {
		b = append(append(b, " ORCPT="...), orcpt...)
	}
	l.line = b
	return l.say(now)
}

// appendNotify appends the value of NOTIFY (RFC 3461 §4.1).
func appendNotify(dst []byte, set envelope.Notify) []byte {
	start := len(dst)
	for i, word := range [...]string{"NEVER", "SUCCESS", "FAILURE", "DELAY"} {
		if set&(1<<i) != 0 {
			if len(dst) > start {
				dst = append(dst, ',')
			}
			dst = append(dst, word...)
		}
	}
	return dst
}

// maxPathBytes is more than any path may have (RFC 5321 §4.5.3.1.3).
const maxPathBytes = 1024

var (
	replyBadSender    = refusal(501, 1, 7, "Bad sender's mailbox address syntax")
	replyBadRecipient = refusal(501, 1, 3, "Bad recipient's mailbox address syntax")
)

// mayBeSaid keeps out of a command what would end it, or end the path in it: whatever the session makes of the line, it is one line, and the path
// is all of the path. A quoted local part with a bracket in it is a mailbox (RFC 5321 §4.1.2) that nobody has.
func (l *lane) mayBeSaid(path []byte, otherwise *smtpcodec.Reply) bool {
	ok := len(path) <= maxPathBytes
	for _, c := range path {
		if c < ' ' || c == 0x7F || c == '<' || c == '>' {
			ok = false
		}
	}
	if !ok {
		l.refuse(session.StageMail, otherwise, session.ReasonSyntax, path)
	}
	return ok
}

// refuse is for what the session is not asked about.
func (l *lane) refuse(stage session.Stage, r *smtpcodec.Reply, why session.Reason, arg []byte) {
	l.code = int(r.Code)
	l.Refused(&l.sess, stage, r, why, arg)
}

func isASCII(p []byte) bool {
	for _, c := range p {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// data says a piece of the message. false: the session does not want more of it.
func (l *lane) data(p []byte, now time.Time) bool {
	l.line = strconv.AppendInt(append(l.line[:0], "BDAT "...), int64(len(p)), 10)
	return l.chunk(p, now)
}

// end says that the message is complete. true: it is to be submitted.
func (l *lane) end(now time.Time) bool {
	l.line = append(l.line[:0], "BDAT 0 LAST"...)
	l.chunk(nil, now)
	l.eod = now
	return l.waitsForCommit()
}

// waitsForCommit is so when the session has nothing to say before the message is durable.
func (l *lane) waitsForCommit() bool { return l.code == 0 }

func (l *lane) chunk(p []byte, now time.Time) bool {
	l.line = append(l.line, '\r', '\n')
	_, out, step := l.sess.Feed(l.line, now, l.out[:0])
	// Validators may take their time between the command and its octets.
	for step == session.AwaitPolicy {
		out, step = l.awaitPolicy(out)
	}
	for len(p) > 0 && step == session.NeedInput {
		var n int
		n, out, step = l.sess.Feed(p, now, out)
		p = p[n:]
	}
	return l.heard(out, step, now)
}

// say says the command in l.line and hears the answer out.
func (l *lane) say(now time.Time) bool {
	l.line = append(l.line, '\r', '\n')
	_, out, step := l.sess.Feed(l.line, now, l.out[:0])
	return l.heard(out, step, now)
}

// heard waits for validators and takes the session's last reply. true for 2yz.
func (l *lane) heard(out []byte, step session.Step, now time.Time) bool {
	for step == session.AwaitPolicy {
		out, step = l.awaitPolicy(out)
	}
	l.out = out
	l.code, l.last = 0, nil
	for start := 0; len(out) > 0; {
		end := bytes.IndexByte(out[start:], '\n') + start + 1
		if end-start >= 4 && out[start+3] == '-' { // EHLO's lines
			start = end
			continue
		}
		l.last, out, start = out[:end], out[end:], 0
	}
	if last := bytes.LastIndexByte(bytes.TrimSuffix(l.last, []byte("\n")), '\n') + 1; len(l.last) >= last+3 {
		l.code = int(l.last[last]-'0')*100 + int(l.last[last+1]-'0')*10 + int(l.last[last+2]-'0')
	}
	return l.code/100 == 2 && l.code != 221
}

// answer is the session's last reply as a value. A refusal is there already: the observer has seen it.
func (l *lane) answer() smtpcodec.Reply {
	if l.code/100 == 2 {
		r, _, _ := smtpcodec.ParseReply(l.last)
		return r
	}
	return l.refusal
}

// appendSaid appends the session's last reply, of 2yz, as a value of X-Smtp-Reply: what is on the line stands in the value as it is, so that nothing
// has to be parsed (TestAPostAllocatesNothingOfOurOwn).
func (l *lane) appendSaid(dst []byte) []byte {
	line, ok := bytes.CutSuffix(l.last, []byte("\r\n"))
	if !ok || len(line) < 4 || bytes.IndexByte(line, '\n') >= 0 || !bytes.HasPrefix(line[4:], []byte("2.")) {
		return appendSMTPReply(dst, l.answer(), "")
	}
	limit := len(dst) + MaxSMTPReplyBytes - len(`"`)
	dst = append(append(dst, line[:3]...), `; message="`...)
	return append(appendQuoted(dst, line[4:], limit), '"')
}

// awaitPolicy waits for a validator, as long as the session lets it.
func (l *lane) awaitPolicy(out []byte) ([]byte, session.Step) {
	l.waited = true
	p := l.sess.Pending()
	woken := make(chan struct{})
	p.Arm(func(*policy.Pending) { close(woken) })
	limit := time.NewTimer(time.Until(l.sess.Deadline()))
	defer limit.Stop()
	select {
	case <-woken:
		return l.sess.Decided(time.Now(), out)
	case <-limit.C:
		now := time.Now()
		if d := l.sess.Deadline(); now.Before(d) {
			now = d
		}
		return l.sess.Expire(now, out)
	}
}

// late is asked while data comes in. true: it comes too slowly, and l.answer says so.
func (l *lane) late(now time.Time) bool {
	if d := l.sess.Deadline(); d.IsZero() || now.Before(d) {
		return false
	}
	out, step := l.sess.Expire(now, l.out[:0])
	if step == session.NeedInput {
		return false
	}
	l.heard(out, step, now)
	return true
}

// submit hands the message over; extra may add to the envelope what the session knows nothing of. The answer comes with wait.
func (l *lane) submit(now time.Time, extra func(*envelope.Envelope)) envelope.ID {
	id := l.ids.Next(now)
	env := l.sess.TakeEnvelope(id)
	if extra != nil {
		extra(env)
	}
	l.sub = queue.Submission{Env: env, Owner: l.srv, Token: l}
	if err := l.srv.o.Writer.Submit(&l.sub); err != nil {
		l.sub.Err = err
		l.answered()
	}
	return id
}

// What the queue knows of a lane's submission.
const (
	asked    uint32 = iota // at most
	answered               // and nobody has looked
	awaited                // by a goroutine that sleeps
)

// answered is called when the submission has its answer. Of the many in a commit few are awaited at that moment: the others cost no channel.
func (l *lane) answered() {
	if l.queue.Swap(answered) == awaited {
		l.back <- struct{}{}
	}
}

// wait returns when the queue has answered; l.answer is what the client is told.
func (l *lane) wait() bool {
	if l.queue.CompareAndSwap(asked, awaited) {
		<-l.back
	}
	l.queue.Store(asked)
	now := time.Now()
	env, err := l.sub.Env, l.sub.Err
	l.sub = queue.Submission{}
	l.srv.submitted(l, env, err, now)
	out, step := l.sess.Committed(env, queue.Refusal(err), now, l.out[:0])
	env.Release()
	return l.heard(out, step, now)
}

// keep lets the dialogue go on with the next message, of the same poster.
func (l *lane) keep(p *poster, helo []byte) {
	l.greeted, l.client, l.helo = true, p.client, append(l.helo[:0], helo...)
}

// over ends the dialogue, whatever has become of it.
func (l *lane) over() {
	l.greeted = false
	l.sess.Abort()
}

// Replied is session.Observer.
func (l *lane) Replied(stage session.Stage, code uint16) { l.srv.meter.Reply(stage, code) }

// Refused is session.Observer: it counts each refusal, and logs the first of its kind for a message.
func (l *lane) Refused(s *session.Session, stage session.Stage, r *smtpcodec.Reply, reason session.Reason, arg []byte) {
	l.refusal, l.reason = *r, reason
	l.srv.meter.Refusal(stage, reason, r.Code)
	bit := uint64(1) << (uint(reason) & 63)
	if l.logged&bit != 0 || reason == session.ReasonShutdown || !l.srv.log.Enabled(noContext, slog.LevelInfo) {
		return
	}
	l.logged |= bit
	l.srv.log.LogAttrs(noContext, slog.LevelInfo, "refused",
		slog.String("session", s.Peer().ID.String()),
		slog.String("listener", l.at.Name),
		slog.String("client", s.Peer().Addr.String()),
		slog.String("helo", string(s.Helo())),
		slog.String("stage", stage.String()),
		slog.String("reason", reason.String()),
		slog.Int("code", int(r.Code)),
		slog.String("reply", r.Text),
		slog.String("arg", string(arg[:min(len(arg), maxLoggedArg)])),
	)
}

// ValidatorFailed is session.Observer.
func (l *lane) ValidatorFailed(s *session.Session, at policy.Stage, err error) {
	l.srv.validatorFailed(s, l.at.Name, at, err)
}
