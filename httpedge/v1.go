package httpedge

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

// The API below /v1: one message a request, problems (RFC 9457) for what is refused.

// intake is one submission of the API: what is asked for, as far as it has come in, and what has become of it. It goes with a lane.
type intake struct {
	lane    *lane
	poster  poster
	m       message
	data    pool.Chain // the message, until the session has it
	results []recipientResult
	sum     hash.Hash // over everything that was submitted
	key     [32]byte  // of idempotency; zero: none
	payload [32]byte
	answer  []byte
	id      envelope.ID
	replay  bool // this is an earlier request's answer
	dry     bool // ?validate=only
	named   bool // there is an X-Client-Address

	began, decoded, judged, committed time.Time // for Server-Timing, which a batch has not
}

var errMemory = errors.New("httpedge: limits.memory is spent")

// intake gives an empty one with a lane; release takes it back.
func (s *Server) intake() *intake {
	in, ok := s.intakes.Get().(*intake)
	if !ok {
		in = &intake{sum: sha256.New()}
	}
	in.lane = s.lane()
	in.m.charge.budget = s.o.Budget
	return in
}

func (s *Server) release(in *intake) {
	s.park(in.lane)
	s.clear(in)
	s.intakes.Put(in)
}

// clear leaves nothing of the message; the lane is no longer in's.
func (s *Server) clear(in *intake) {
	s.dropKey(in) // only a panic has left one
	in.data.Release()
	in.m.reset()
	clear(in.results)
	results := in.results[:0]
	if cap(results) > maxKeptRcpts {
		results = nil
	}
	*in = intake{m: in.m, sum: in.sum, results: results, answer: in.answer[:0]}
}

// take is the sink of message data.
func (in *intake) take(p []byte) error {
	if in.data.Len()+int64(len(p)) > in.lane.at.Session.MaxMessageBytes {
		return errTooLarge
	}
	if !in.data.Append(in.lane.res.Envelopes.Chunks, p) {
		return errMemory
	}
	return nil
}

// refusesPost checks all of a POST below /v1 but what is submitted.
func (s *Server) refusesPost(ctx *fasthttp.RequestCtx, c *conn, p *poster, batch bool) bool {
	h := &ctx.Request.Header
	if string(h.Method()) != fasthttp.MethodPost {
		ctx.Response.Header.Set("Allow", "POST")
		return s.problem(ctx, c, httpProblem("method", "POST only"))
	}
	if t := s.identify(ctx, c, p); t != nil {
		return s.away(ctx, c, t)
	}
	if p := mayAsk(ctx, c, batch); p != nil {
		return s.problem(ctx, c, *p)
	}
	most := s.lineBytes(c.at)
	switch t := h.ContentType(); {
	case batch:
		most = s.o.MaxBatchBytes
		if !isMediaType(t, "application/x-ndjson") && !isMediaType(t, "application/jsonl") && !isMediaType(t, "application/ndjson") {
			return s.problem(ctx, c, httpProblem("media_type", "application/x-ndjson is wanted"))
		}
	case isMessageRFC822(t):
		most = c.at.Session.MaxMessageBytes
	case !isMediaType(t, "application/json"):
		return s.problem(ctx, c, httpProblem("media_type", "message/rfc822 or application/json is wanted"))
	}
	switch length, ok := bodyLength(h); {
	case !ok:
		return s.problem(ctx, c, httpProblem("length_required", "Content-Length or Transfer-Encoding: chunked is wanted"))
	case length > most:
		return s.problem(ctx, c, httpProblem("size", "The body has more than "+strconv.FormatInt(most, 10)+" bytes"))
	}
	if p := s.notNow(c); p != nil {
		return s.problem(ctx, c, *p)
	}
	return false
}

// mayAsk refuses options that are not known, or not for batches: ignored, they would send mail that was to be checked only, or twice.
func mayAsk(ctx *fasthttp.RequestCtx, c *conn, batch bool) *problem {
	wrong := ""
	if len(ctx.URI().QueryString()) > 0 {
		switch values := ctx.QueryArgs().PeekMulti("validate"); {
		case len(values) == 0:
		case batch:
			wrong = "validate is for single messages"
		case len(values) > 1 || string(values[0]) != "only":
			wrong = "validate=only is all that there is of validate"
		}
	}
	if batch && c.fields.has(fieldKey) {
		wrong = "Idempotency-Key is for single messages; a line of a batch has idempotency_key"
	}
	if wrong == "" {
		return nil
	}
	p := httpProblem("syntax", wrong)
	return &p
}

// lineBytes is the longest JSON text of one message.
func (s *Server) lineBytes(at *Listener) int64 {
	if s.o.MaxBatchLineBytes > 0 {
		return s.o.MaxBatchLineBytes
	}
	return at.Session.MaxMessageBytes/3*4 + 64<<10
}

// away answers who may not post.
func (s *Server) away(ctx *fasthttp.RequestCtx, c *conn, t *turnedAway) bool {
	return s.problem(ctx, c, t.problem())
}

func (t *turnedAway) problem() problem {
	p := problemFor(t.reply, t.reason)
	if t.wait > 0 {
		p.RetryAfter = t.wait
	}
	return p
}

// problem answers with p and closes the connection, unless the body was read to its end: see keep.
func (s *Server) problem(ctx *fasthttp.RequestCtx, c *conn, p problem) bool {
	s.write(ctx, p)
	ctx.SetConnectionClose()
	return true
}

func (s *Server) write(ctx *fasthttp.RequestCtx, p problem) { s.writeCharged(ctx, p, &charge{}) }

// writeCharged is write for a problem whose recipients somebody has a charge for.
func (s *Server) writeCharged(ctx *fasthttp.RequestCtx, p problem, from *charge) {
	h := &ctx.Response.Header
	ctx.SetStatusCode(p.Status)
	h.SetContentType("application/problem+json")
	if p.Status == fasthttp.StatusUnauthorized {
		ctx.Conn().(*conn).at.challenges(h)
	}
	if p.RetryAfter > 0 {
		h.SetBytesV("Retry-After", strconv.AppendInt(nil, p.retrySeconds(), 10))
	}
	if p.Status == fasthttp.StatusUnsupportedMediaType && p.Reason == "encoding" {
		h.Set("Accept-Encoding", acceptEncoding)
	}
	answerWith(ctx, p.AppendTo(nil), from)
}

// postMessage takes one message.
func (s *Server) postMessage(ctx *fasthttp.RequestCtx, c *conn) {
	in := s.intake()
	defer s.release(in)
	in.began = time.Now()
	if s.refusesPost(ctx, c, &in.poster, false) {
		return
	}
	in.lane.at, in.lane.admitted = c.at, true
	in.named = c.fields.has(fieldClient)
	in.dry = len(ctx.URI().QueryString()) > 0 && ctx.QueryArgs().Has("validate") // which is "only", see mayAsk
	key := ctx.Request.Header.Peek("Idempotency-Key")                            // now: afterwards it might be from the trailer section
	if p, read := s.decode(ctx, in); p != nil {
		s.write(ctx, *p)
		if !read {
			ctx.SetConnectionClose()
		}
		return
	}
	if c.fields.has(fieldKey) {
		if p := s.useKey(in, key); p != nil {
			s.write(ctx, *p)
			return
		}
	}
	p := s.speak(in)
	in.judged = time.Now()
	if p == nil && !in.replay && !in.dry {
		p = s.finish(in)
	}
	in.committed = time.Now()
	s.timing(ctx, in)
	if p != nil {
		s.writeCharged(ctx, *p, &in.m.charge)
		return
	}
	h := &ctx.Response.Header
	h.SetContentType("application/json")
	if in.dry {
		ctx.SetStatusCode(fasthttp.StatusOK)
		answerWith(ctx, appendValidated(nil, in.results), &in.m.charge)
		return
	}
	ctx.SetStatusCode(fasthttp.StatusAccepted)
	var room [64]byte
	h.SetBytesV("Location", in.id.AppendTo(append(room[:0], messagePath...)))
	if in.replay {
		h.Set("Idempotency-Replayed", "true")
	}
	answerWith(ctx, appendAccepted(nil, in.id, s.o.Durability, in.results), &in.m.charge)
}

// timing tells where the time went (Server-Timing), in milliseconds.
func (s *Server) timing(ctx *fasthttp.RequestCtx, in *intake) {
	var room [128]byte
	b := room[:0]
	last := in.began
	for _, part := range [...]struct {
		name string
		end  time.Time
	}{{"body", in.decoded}, {"policy", in.judged}, {"commit", in.committed}} {
		if part.end.IsZero() {
			continue
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(append(b, part.name...), ";dur="...)
		b = strconv.AppendFloat(b, float64(part.end.Sub(last).Microseconds())/1000, 'f', 3, 64)
		last = part.end
	}
	ctx.Response.Header.SetBytesV("Server-Timing", b)
}

// decode reads the body and, for message/rfc822, the header fields, into in. read says that the body was read to its end.
func (s *Server) decode(ctx *fasthttp.RequestCtx, in *intake) (p *problem, read bool) {
	h := &ctx.Request.Header
	rfc822 := isMessageRFC822(h.ContentType())
	sess := in.lane.at.Session
	most := s.lineBytes(in.lane.at)
	if rfc822 {
		most = sess.MaxMessageBytes
		if p := s.headers(h, in); p != nil {
			return p, false
		}
	}
	r, err := s.inflater.bodyReader(h.Peek("Content-Encoding"), ctx.Conn().(*conn).wholeBody(ctx), most, most)
	if err == nil {
		if rfc822 {
			err = s.readRaw(r, in)
		} else {
			err = decodeMessage(r, limits{MaxMessageBytes: sess.MaxMessageBytes, MaxRecipients: sess.MaxRecipients}, &in.m, in.take)
		}
		r.Close()
	}
	in.decoded = time.Now()
	if err != nil {
		p := s.bodyProblem(err)
		return &p, false
	}
	return nil, true
}

func (s *Server) readRaw(r io.Reader, in *intake) error {
	b := s.piece()
	defer s.pieces.Put(b)
	for {
		n, err := r.Read(b[:])
		if n > 0 {
			if bad := in.take(b[:n]); bad != nil {
				return bad
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// bodyProblem says what was wrong with a body.
func (s *Server) bodyProblem(err error) problem {
	var bad *requestError
	var late net.Error
	switch {
	case errors.As(err, &bad):
		return requestProblem(bad)
	case errors.Is(err, errMemory):
		return problemFor(replyMemory, session.ReasonMemory.String())
	case errors.Is(err, errTooLarge):
		return problemFor(replyTooBig, session.ReasonSize.String())
	case errors.Is(err, errEncoding):
		return httpProblem("encoding", "Content-Encoding must be gzip, zstd or identity")
	case errors.Is(err, errBadEncoding):
		return httpProblem("bad_encoding", "")
	case errors.Is(err, errInflateBusy):
		return httpProblem("too_busy", "Too many compressed bodies at a time")
	case errors.Is(err, errTooSlow):
		s.meter.Event(EventTimeout)
		return httpProblem("data_rate", "")
	case errors.As(err, &late) && late.Timeout():
		s.meter.Event(EventTimeout)
		return httpProblem("timeout", "")
	}
	return httpProblem("syntax", "The body is not complete")
}

// headers reads the envelope of a message/rfc822 request.
func (s *Server) headers(h *fasthttp.RequestHeader, in *intake) *problem {
	wrong := func(name string, err error) *problem {
		p := httpProblem("syntax", name+": "+err.Error())
		p.SMTPCode, p.EnhancedStatus = replyBadHeader.Code, replyBadHeader.Enhanced
		return &p
	}
	m := &in.m
	m.reset()
	var err error
	if m.arena, err = decodeAddress(m.arena, h.Peek(s.o.SenderHeader)); err != nil {
		return wrong(s.o.SenderHeader, err)
	}
	m.MailFrom = m.arena
	most, fits := in.lane.at.Session.MaxRecipients, true
	for _, value := range h.PeekAll(s.o.RecipientHeader) {
		splitRecipients(value, func(item []byte) bool {
			if len(m.Rcpts) == most {
				fits = false
				return false
			}
			start := len(m.arena)
			if m.arena, err = decodeAddress(m.arena, item); err != nil {
				return false
			}
			m.Rcpts = append(m.Rcpts, rcpt{Address: m.arena[start:len(m.arena):len(m.arena)]})
			return true
		})
		switch {
		case err != nil:
			return wrong(s.o.RecipientHeader, err)
		case !fits:
			p := requestProblem(tooManyRecipients(most))
			return &p
		case !m.charge.covers(len(m.Rcpts), len(m.arena)):
			p := s.bodyProblem(errMemory)
			return &p
		}
	}
	m.Helo = h.Peek(s.o.EhloHeader)
	if in.named {
		ok := false
		if m.Client, ok = parseClient(h.Peek("X-Client-Address")); !ok {
			return wrong("X-Client-Address", errors.New(wantAddress))
		}
		m.ClientHelo = m.Helo
	}
	return nil
}

// useKey looks an idempotency key up. A problem refuses; otherwise in is a replay, or the key is reserved for it.
func (s *Server) useKey(in *intake, value []byte) *problem {
	if s.keys == nil {
		p := httpProblem("not_offered", "This queue can't keep idempotency keys")
		p.Status = fasthttp.StatusUnprocessableEntity
		return &p
	}
	var room [maxKeyBytes]byte
	key, ok := parseKey(room[:0], value)
	if !ok {
		p := httpProblem("idempotency_key", "1 to 255 visible ASCII characters are wanted")
		return &p
	}
	if in.dry {
		return nil
	}
	in.keyed(key)
	state, first := s.keys.begin(in.key, in.payload, time.Now())
	switch state {
	case keyFresh:
		return nil
	case keyReplay:
		in.replay, in.id = true, first.ID
		in.key = [32]byte{}
		in.replayed(first.Answer)
		return nil
	}
	in.key = [32]byte{}
	reasons := map[keyState]string{keyMismatch: "idempotency_mismatch", keyInFlight: "idempotency_inflight", keyFull: "idempotency_full"}
	p := httpProblem(reasons[state], "")
	return &p
}

// replayed makes the results of the first request again. Its recipients are this one's: otherwise the payload would be another.
func (in *intake) replayed(answer []byte) {
	in.results, _ = parseAnswer(in.results[:0], answer)
	if len(in.results) != len(in.m.Rcpts) { // it does not say: there were too many different replies to keep
		in.results = in.results[:0]
	}
	for i := range in.results {
		in.results[i].Address = in.m.Rcpts[i].Address
	}
}

// keyed makes the two hashes: of who asks with which key, and for what.
func (in *intake) keyed(key []byte) {
	h := in.sum
	h.Reset()
	part := func(p []byte) {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	// A new API key of the same name is another credential.
	credential := append(append(append([]byte(nil), in.poster.mechanism...), 0), in.poster.user...)
	switch {
	case in.poster.key != nil:
		credential = append(append(credential, 0), in.poster.key.ID...)
	case in.poster.user == "":
		credential = appendPrefix(credential, in.poster.client.Addr())
	}
	in.key = keyOf(credential, key)

	h.Reset()
	m := &in.m
	part(m.MailFrom)
	for i := range m.Rcpts {
		part(m.Rcpts[i].Address)
		part(m.Rcpts[i].ORcpt)
		part([]byte{byte(m.Rcpts[i].Notify)})
	}
	part(m.Helo)
	part(m.Client.AsSlice())
	part(m.ClientHelo)
	part([]byte{byte(m.Ret), b2i(m.SMTPUTF8), b2i(m.RequireTLS)})
	part(m.EnvID)
	part(m.Metadata)
	for c := in.data.First(); c != nil; c = c.Next() {
		h.Write(c.Bytes())
	}
	h.Sum(in.payload[:0])
}

// appendPrefix appends what a client without credentials is known by: its address, of IPv6 the /64, within which a host has as many as it likes.
func appendPrefix(dst []byte, a netip.Addr) []byte {
	if a = a.Unmap(); a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		a = p.Addr()
	}
	return append(dst, a.AsSlice()...)
}

func b2i(b bool) byte {
	if b {
		return 1
	}
	return 0
}

var (
	replyRecipientOk = refusal(250, 1, 5, "Ok")
	awaySpeaker      = turnedAway{reply: refusal(550, 7, 0, "Only who may send to any domain may name the client"), reason: "forbidden"}
)

// speak holds the dialogue, and hands the message over unless it is a dry run. nil: it waits for the commit. The key is free again after a problem.
func (s *Server) speak(in *intake) (p *problem) {
	if in.replay {
		return nil
	}
	if p = s.dialogue(in); p != nil {
		in.lane.over()
		s.dropKey(in)
	}
	return p
}

func (s *Server) dropKey(in *intake) {
	if in.key != [32]byte{} {
		s.keys.drop(in.key)
		in.key = [32]byte{}
	}
}

func (s *Server) dialogue(in *intake) *problem {
	l, m, now := in.lane, &in.m, time.Now()
	if len(m.Rcpts) == 0 {
		p := problemFor(replyNoRecipients, session.ReasonNoRecipients.String())
		return &p
	}
	if m.Client.IsValid() && !in.poster.speaksFor(m.Client) {
		p := awaySpeaker.problem()
		return &p
	}
	if t := s.maySend(&in.poster, m.MailFrom, in.dry, now); t != nil {
		p := t.problem()
		return &p
	}
	helo := m.Helo
	if m.Client.IsValid() && len(m.ClientHelo) > 0 {
		helo = m.ClientHelo
	}
	params := parameters{size: in.data.Len(), smtpUTF8: m.SMTPUTF8, envID: m.EnvID}
	switch m.Ret {
	case envelope.RetFull:
		params.ret = "FULL"
	case envelope.RetHdrs:
		params.ret = "HDRS"
	}
	for i := range m.Rcpts {
		params.smtpUTF8 = params.smtpUTF8 || !isASCII(m.Rcpts[i].Address)
	}
	if m.Client.IsValid() && l.greeted { // who is somebody else
		l.over()
	}
	if !l.begin(l.at, &in.poster, helo, now) || !l.mail(m.MailFrom, &params, now) {
		return in.refusal()
	}
	in.results = in.results[:0]
	taken := 0
	for i := range m.Rcpts {
		r := recipientResult{Address: m.Rcpts[i].Address, Reply: replyRecipientOk}
		if l.rcpt(m.Rcpts[i].Address, m.Rcpts[i].ORcpt, m.Rcpts[i].Notify, now) {
			taken++
		} else if r.Reply = l.answer(); l.code == 421 {
			return in.refusal()
		}
		in.results = append(in.results, r)
	}
	if taken == 0 {
		p := in.refusal()
		p.Recipients = in.results
		return p
	}
	for c := in.data.Pop(); c != nil; c = in.data.Pop() {
		ok := l.data(c.Bytes(), now)
		c.Release()
		if !ok {
			return in.refusal()
		}
	}
	if l.waited {
		now = time.Now()
	}
	if !l.end(now) {
		return in.refusal()
	}
	if in.dry {
		return nil
	}
	if in.key != [32]byte{} {
		in.answer = appendAnswer(in.answer[:0], in.results)
	}
	in.id = l.submit(now, in.addTo)
	return nil
}

// addTo gives the envelope what the session knows nothing of.
func (in *intake) addTo(env *envelope.Envelope) {
	env.RequireTLS = in.m.RequireTLS
	env.Metadata = env.Keep(in.m.Metadata)
	if in.key != [32]byte{} {
		env.Idempotency = envelope.Idempotency{Key: in.key, Payload: in.payload, Answer: env.Keep(in.answer)}
	}
}

// refusal is the problem for the session's last reply.
func (in *intake) refusal() *problem {
	p := problemFor(in.lane.answer(), in.lane.reason.String())
	return &p
}

// finish waits for the queue.
func (s *Server) finish(in *intake) *problem {
	ok := in.lane.wait()
	if !ok {
		s.dropKey(in)
		return in.refusal()
	}
	if in.key != [32]byte{} {
		s.keys.done(in.key, in.id, in.answer)
		in.key = [32]byte{}
	}
	return nil
}

// getMessage shows a message that is still in the queue.
func (s *Server) getMessage(ctx *fasthttp.RequestCtx, c *conn) {
	var p poster
	if m := string(ctx.Method()); m != fasthttp.MethodGet && m != fasthttp.MethodHead {
		ctx.Response.Header.Set("Allow", "GET, HEAD")
		s.problem(ctx, c, httpProblem("method", "GET only"))
		return
	}
	if t := s.identify(ctx, c, &p); t != nil {
		s.away(ctx, c, t)
		return
	}
	if entry, ok := s.find(&p, string(ctx.URI().PathOriginal()[len(messagePath):])); ok {
		ctx.Response.Header.SetContentType("application/json")
		ctx.Response.SetBodyRaw(appendEntry(nil, &entry))
		return
	}
	s.write(ctx, httpProblem("not_found", "No such message in the queue: it is not known, or it has been handed on"))
}

// find looks a message up for p. Somebody else's is as unknown as one that there is not.
func (s *Server) find(p *poster, text string) (e queue.Entry, ok bool) {
	id, err := envelope.ParseID(text)
	if err != nil || s.o.Inspector == nil {
		return e, false
	}
	e, err = s.o.Inspector.Show(id)
	return e, err == nil && p.maySee(&e)
}

// maySee says whose message it is: that of who logged in with the same name; without a login, that of the same address, or of anybody without
// one for who may send to any domain.
func (p *poster) maySee(e *queue.Entry) bool {
	if p.user != "" || e.User != "" {
		return e.User == p.user
	}
	if p.mayRelay {
		return true
	}
	client, err := netip.ParseAddrPort(e.Client)
	return err == nil && p.client.IsValid() && client.Addr().Unmap() == p.client.Addr()
}

func (s *Server) getNothing(ctx *fasthttp.RequestCtx, c *conn) {
	s.problem(ctx, c, httpProblem("not_found", "No such path, see /openapi.json"))
}

func (s *Server) getOpenAPI(ctx *fasthttp.RequestCtx, c *conn) {
	if m := string(ctx.Method()); m != fasthttp.MethodGet && m != fasthttp.MethodHead {
		ctx.Response.Header.Set("Allow", "GET, HEAD")
		s.problem(ctx, c, httpProblem("method", "GET only"))
		return
	}
	ctx.Response.Header.SetContentType("application/json")
	ctx.Response.SetBodyRaw(openAPI)
}
