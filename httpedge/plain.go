package httpedge

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// The plain protocol: POST, message/rfc822, the envelope in header fields, and the SMTP reply in X-Smtp-Reply, which is what its clients look at.

// action answers one request.
type action func(s *Server, ctx *fasthttp.RequestCtx, c *conn)

// route says who answers a request, by its path as it was sent: what stands in front of us may have rules of its own for paths below /v1, and must
// not mean another one by them. So /x/../v1/messages and /%761/messages lead nowhere, and neither do ways out of /v1.
func (s *Server) route(ctx *fasthttp.RequestCtx) action {
	path := ctx.URI().PathOriginal()
	switch {
	case string(path) == "/v1/messages":
		return (*Server).postMessage
	case string(path) == "/v1/messages:batch":
		return (*Server).postBatch
	case len(path) > len(messagePath) && string(path[:len(messagePath)]) == messagePath:
		return (*Server).getMessage
	case string(path) == "/openapi.json":
		return (*Server).getOpenAPI
	case isAPI(path), isAPI(ctx.Path()):
		return (*Server).getNothing
	}
	return (*Server).postPlain
}

const messagePath = "/v1/messages/"

// isAPI says that a path is not one of the plain protocol's.
func isAPI(path []byte) bool {
	return len(path) >= 4 && string(path[:4]) == "/v1/" || string(path) == "/v1" || string(path) == "/openapi.json"
}

// refusedAtOnce answers requests whose refusal does not depend on the body.
func (s *Server) refusedAtOnce(ctx *fasthttp.RequestCtx, c *conn) bool {
	var p poster
	switch path := ctx.URI().PathOriginal(); {
	case string(path) == "/v1/messages", string(path) == "/v1/messages:batch":
		return s.refusesPost(ctx, c, &p, string(path) != "/v1/messages")
	case isAPI(path), isAPI(ctx.Path()):
		s.route(ctx)(s, ctx, c) // whose answer is not about a body
		return true
	}
	return s.refusesPlain(ctx, c, &p)
}

var (
	replyNoRecipients = refusal(554, 5, 1, "No valid recipients")
	replyTooManyRcpts = refusal(550, 5, 3, "Too many recipients for one request, see limits.recipients; send it to some of them at a time")
	replyBadHeader    = refusal(501, 5, 4, "Syntax error in parameters or arguments")
	replyTooBig       = refusal(552, 3, 4, "Message exceeded size limit")
	replyTooSlow      = refusal(451, 4, 2, "Message came too slowly")
	replyCutOff       = refusal(451, 4, 2, "Message is not complete")
)

// refusesPlain checks all of a request but the envelope and the message, in the order of the protocol: path, method, type, credentials, length.
func (s *Server) refusesPlain(ctx *fasthttp.RequestCtx, c *conn, p *poster) bool {
	h := &ctx.Request.Header
	if s.o.Path != nil {
		if at := s.o.Path.FindIndex(ctx.URI().PathOriginal()); at == nil || at[0] != 0 {
			return s.bare(ctx, fasthttp.StatusNotFound)
		}
	}
	if string(h.Method()) != s.o.Method {
		ctx.Response.Header.Set("Allow", s.o.Method)
		return s.bare(ctx, fasthttp.StatusMethodNotAllowed)
	}
	if t := h.ContentType(); len(t) > 0 && !isMessageRFC822(t) {
		return s.bare(ctx, fasthttp.StatusUnsupportedMediaType)
	}
	if len(h.Peek("Content-Encoding")) > 0 {
		return s.bare(ctx, fasthttp.StatusUnsupportedMediaType)
	}
	if t := s.identify(ctx, c, p); t != nil {
		status := plainStatus(t.reply, s.o.Success)
		switch {
		case t.challenge:
			status = fasthttp.StatusUnauthorized
		case t.reason == "forbidden":
			status = fasthttp.StatusForbidden
		}
		return s.toldToWait(ctx, status, t.reply, t.wait)
	}
	switch length, ok := bodyLength(h); {
	case !ok:
		return s.bare(ctx, fasthttp.StatusLengthRequired)
	case length > c.at.Session.MaxMessageBytes:
		return s.told(ctx, fasthttp.StatusRequestEntityTooLarge, replyTooBig)
	}
	return false
}

// bodyLength is what a request announces, -1 when it is chunked; ok is false when it does neither.
func bodyLength(h *fasthttp.RequestHeader) (length int64, ok bool) {
	n := h.ContentLength()
	if n > 0 || n == -1 {
		return int64(n), true
	}
	// Without either fasthttp puts a length of 0 in itself, so the bytes that came are looked at.
	return 0, hasField(h.RawHeaders(), "content-length")
}

// hasField looks for a header field by its name, in lower case.
func hasField(raw []byte, name string) bool {
	for len(raw) > 0 {
		line := raw
		if end := bytes.IndexByte(raw, '\n'); end >= 0 {
			line, raw = raw[:end], raw[end+1:]
		} else {
			raw = nil
		}
		if field, _, ok := bytes.Cut(line, []byte(":")); ok && equalFold(field, name) {
			return true
		}
	}
	return false
}

// bare answers with a status alone. The body is not read, so the connection ends.
func (s *Server) bare(ctx *fasthttp.RequestCtx, status int) bool {
	ctx.SetStatusCode(status)
	ctx.SetConnectionClose()
	return true
}

// told answers with a status and a reply.
func (s *Server) told(ctx *fasthttp.RequestCtx, status int, r smtpcodec.Reply) bool {
	return s.toldToWait(ctx, status, r, 0)
}

// toldToWait is told for who may try again after so long; 0: it is not known how long.
func (s *Server) toldToWait(ctx *fasthttp.RequestCtx, status int, r smtpcodec.Reply, wait time.Duration) bool {
	s.say(ctx, status, r, wait)
	ctx.SetConnectionClose()
	return true
}

// say makes the answer. Every 503 and 429 has a Retry-After, and every 401 what the listener takes.
func (s *Server) say(ctx *fasthttp.RequestCtx, status int, r smtpcodec.Reply, wait time.Duration) {
	var room [MaxSMTPReplyBytes]byte
	h := &ctx.Response.Header
	ctx.SetStatusCode(status)
	h.SetBytesV("X-Smtp-Reply", appendSMTPReply(room[:0], r, ""))
	switch status {
	case fasthttp.StatusServiceUnavailable, fasthttp.StatusTooManyRequests:
		if wait == 0 {
			wait = retryAfterTrouble
		}
		h.SetBytesV("Retry-After", strconv.AppendInt(room[:0], int64((wait+time.Second-1)/time.Second), 10))
	case fasthttp.StatusUnauthorized:
		ctx.Conn().(*conn).at.challenges(h)
	}
}

// postPlain takes one message by the plain protocol.
func (s *Server) postPlain(ctx *fasthttp.RequestCtx, c *conn) {
	var p poster
	if s.refusesPlain(ctx, c, &p) {
		return
	}
	l := s.lane()
	defer s.park(l)
	read := s.plain(ctx, c, l, &p)
	if !read {
		ctx.SetConnectionClose() // what is left of the body is not to be read as a request
	}
}

// plain carries the message. It gives whether the body was read to its end.
func (s *Server) plain(ctx *fasthttp.RequestCtx, c *conn, l *lane, p *poster) (read bool) {
	h := &ctx.Request.Header
	now := time.Now()
	var room [MaxAddressBytes]byte
	path, err := decodeAddress(room[:0], h.Peek(s.o.SenderHeader))
	if err != nil {
		s.told(ctx, fasthttp.StatusBadRequest, replyBadHeader)
		return false
	}
	if c.fields.has(fieldClient) {
		client, ok := parseClient(h.Peek("X-Client-Address"))
		switch {
		case !ok:
			s.told(ctx, fasthttp.StatusBadRequest, replyBadHeader)
			return false
		case !p.speaksFor(client):
			s.told(ctx, fasthttp.StatusForbidden, awaySpeaker.reply)
			return false
		}
	}
	if t := s.maySend(p, path, false, now); t != nil {
		status := plainStatus(t.reply, 0)
		if t.reason == "forbidden" {
			status = fasthttp.StatusForbidden
		}
		s.toldToWait(ctx, status, t.reply, t.wait)
		return false
	}
	length, _ := bodyLength(h)
	if !l.begin(c.at, p, h.Peek(s.o.EhloHeader), now) {
		if l.reason == session.ReasonSyntax { // X-Ehlo is no name: as malformed as an address that is none
			s.told(ctx, fasthttp.StatusBadRequest, l.answer())
			return false
		}
		return s.refused(ctx, l)
	}
	if !l.mail(path, &parameters{size: max(length, 0), smtpUTF8: s.anyUTF8(h)}, now) {
		return s.refused(ctx, l)
	}
	taken := 0
	bad := false
	for _, value := range h.PeekAll(s.o.RecipientHeader) {
		splitRecipients(value, func(item []byte) bool {
			var rcpt []byte
			if rcpt, err = decodeAddress(room[:0], item); err != nil || len(rcpt) == 0 {
				bad = true
				return false
			}
			if taken == c.at.Session.MaxRecipients {
				l.refuse(session.StageRcpt, &replyTooManyRcpts, session.ReasonTooManyRecipients, rcpt)
				return false
			}
			taken++
			return l.rcpt(rcpt, nil, 0, now)
		})
		if bad || taken > 0 && l.code/100 != 2 {
			break
		}
	}
	switch {
	case bad:
		s.told(ctx, fasthttp.StatusBadRequest, replyBadHeader)
		return false
	case taken == 0:
		s.told(ctx, fasthttp.StatusBadRequest, replyNoRecipients)
		return false
	case l.code/100 != 2: // one answer for the message: a refused recipient refuses it
		return s.refused(ctx, l)
	}
	if status, why := s.readBody(ctx, l); why != nil {
		s.told(ctx, status, *why)
		return false
	} else if status != 0 {
		return s.refused(ctx, l)
	}
	if !l.end(time.Now()) {
		s.refused(ctx, l)
		return true
	}
	id := l.submit(time.Now(), nil)
	if !l.wait() {
		s.refused(ctx, l)
		return true
	}
	s.accepted(ctx, l, id)
	return true
}

// anyUTF8 says that an address needs SMTPUTF8 (RFC 6531): clients of this protocol have no way to say so.
func (s *Server) anyUTF8(h *fasthttp.RequestHeader) bool {
	var room [MaxAddressBytes]byte
	found := false
	for _, value := range h.PeekAll(s.o.RecipientHeader) {
		splitRecipients(value, func(item []byte) bool {
			rcpt, err := decodeAddress(room[:0], item)
			found = err == nil && !isASCII(rcpt)
			return !found
		})
		if found {
			break
		}
	}
	return found
}

// bodyPiece is how much of a body is given to the session at once.
const bodyPiece = 32 << 10

// whole reads a body to its end, which it must have: fasthttp gives io.EOF also where a client has left in the middle, and what it has sent until
// then would be a message.
type whole struct {
	src  io.Reader
	left int64 // bytes that are still to come; negative in chunks, of which the last is read without reading further
	c    *conn
}

// wholeBody gives the body of the request, once. It is the connection's until the request is over.
func (c *conn) wholeBody(ctx *fasthttp.RequestCtx) io.Reader {
	c.body = whole{c: c}
	c.pace = pace{on: true, rate: c.at.Session.MinDataRate, limit: c.at.Session.DataTimeout, every: c.srv.o.paceWindow,
		asSet: c.at.bodyTime(c.srv.o.paceWindow) == c.srv.bodyTime}
	if stream := ctx.RequestBodyStream(); stream != nil {
		c.body.src, c.body.left = stream, int64(ctx.Request.Header.ContentLength())
	}
	return &c.body
}

func (w *whole) Read(p []byte) (int, error) {
	if w.src == nil {
		return 0, io.EOF
	}
	n, err := w.src.Read(p)
	chunked := w.left < 0
	w.left -= int64(n)
	switch {
	case err == nil:
	case err != io.EOF:
		err = w.c.pace.error(err)
	case chunked && w.c.ended, !chunked && w.left > 0:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// readBody gives the body to the session. why is what HTTP has against it; otherwise status is not 0 when the session did not want it.
func (s *Server) readBody(ctx *fasthttp.RequestCtx, l *lane) (status int, why *smtpcodec.Reply) {
	stream := ctx.Conn().(*conn).wholeBody(ctx)
	b := s.piece()
	defer s.pieces.Put(b)
	for {
		n, err := stream.Read(b[:])
		if n == streamFrom && err == nil { // which is all that it has for now
			n, err = stream.Read(b[streamFrom:])
			n += streamFrom
		}
		now := time.Now()
		switch {
		case n > 0 && l.late(now), n > 0 && !l.data(b[:n], now):
			return 1, nil
		case err == io.EOF:
			return 0, nil
		case err != nil:
			var late net.Error
			if errors.Is(err, errTooSlow) || errors.As(err, &late) && late.Timeout() {
				s.meter.Event(EventTimeout)
				return fasthttp.StatusRequestTimeout, &replyTooSlow
			}
			return fasthttp.StatusBadRequest, &replyCutOff
		}
	}
}

// refused answers with the session's refusal. It gives false: the body may not be read.
func (s *Server) refused(ctx *fasthttp.RequestCtx, l *lane) bool {
	r := l.answer()
	status := plainStatus(r, s.o.Success)
	if l.reason == session.ReasonSize {
		status = fasthttp.StatusRequestEntityTooLarge
	}
	s.say(ctx, status, r, 0)
	return false
}

// accepted answers for a message that is durable.
func (s *Server) accepted(ctx *fasthttp.RequestCtx, l *lane, id envelope.ID) {
	var room [MaxSMTPReplyBytes]byte
	h := &ctx.Response.Header
	ctx.SetStatusCode(s.o.Success)
	h.SetBytesV("X-Smtp-Reply", l.appendSaid(room[:0]))
	h.SetBytesV("X-Queue-Id", id.AppendTo(room[:0]))
}
