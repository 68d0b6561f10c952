package session

import (
	"strconv"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/smtpcodec"
)

// data starts the mail data (RFC 5321 §4.1.1.4).
func (s *Session) data(arg []byte, now time.Time, out []byte) []byte {
	if s.state == recipientsRefused {
		// RFC 2920 §3.1: a client that pipelined DATA behind refused RCPT must not get a 354.
		return s.refuse(out, StageData, &refuseNoRecipients, arg)
	}
	if s.tx.env.Body == envelope.BodyBinaryMIME {
		// RFC 3030 §3: BINARYMIME only travels by BDAT.
		return s.refuse(out, StageData, &refuseSequence, arg)
	}
	return s.judge(policy.AtData, now, out)
}

// rateWindow is the time over which the rate of message data is averaged.
const rateWindow = time.Minute

// dataTime starts the time for the data of a message.
func (s *Session) dataTime(now time.Time) {
	s.tx.dataDeadline, s.tx.look = now.Add(s.sv.DataTimeout), now.Add(rateWindow)
	s.dataDeadline()
}

// dataDeadline sets the session's deadline while data comes in: the end of the time for it, or the next look at its rate. A new BDAT puts
// off neither.
func (s *Session) dataDeadline() {
	s.deadline = s.tx.dataDeadline
	if s.sv.MinDataRate > 0 && s.tx.look.Before(s.deadline) {
		s.deadline = s.tx.look
	}
}

// inData says that data of a message is on its way in.
func (s *Session) inData() bool {
	return s.tx != nil && (s.phase == phaseData || s.phase == phaseChunk && s.chunkRefused == nil)
}

// keepsUp is asked when the deadline has come: data that has come fast enough since the last look gets a new one.
func (s *Session) keepsUp(now time.Time) bool {
	if s.sv.MinDataRate == 0 || !s.inData() || !now.Before(s.tx.dataDeadline) {
		return false
	}
	came := s.tx.size - s.tx.lookedAt
	if came < s.sv.MinDataRate*int64(rateWindow/time.Second) {
		return false
	}
	s.tx.lookedAt, s.tx.look = s.tx.size, now.Add(rateWindow)
	s.dataDeadline()
	return true
}

// dataBegins follows DATA with 354, and the first BDAT of a message with its octets.
func (s *Session) dataBegins(told *smtpcodec.Reply, now time.Time, out []byte) []byte {
	if s.chunkWaits {
		s.chunkWaits = false
		s.phase = phaseChunk
		s.dataTime(now)
		s.enter(haveChunks)
		return out
	}
	s.phase = phaseData
	s.dataTime(now)
	if told != nil && told.Code == 354 {
		return s.answer(out, StageData, told)
	}
	return s.answer(out, StageData, &replyStartData)
}

// dataRefused refuses DATA. The transaction stays open, as after any other refused command; the octets of a BDAT come all the same.
func (s *Session) dataRefused(r *smtpcodec.Reply, why Reason, now time.Time, out []byte) []byte {
	if !s.chunkWaits || r.Code == 421 || r.Code == 221 {
		s.chunkWaits = false
		return s.refuseWith(out, StageData, r, why, nil)
	}
	s.chunkWaits = false
	s.phase = phaseChunk
	s.chunkRefused = &refusal{*r, why}
	s.deadline = now.Add(s.sv.DataTimeout)
	return out
}

// bdat reads the command; its octets follow (RFC 3030 §2). They follow a refused BDAT as well, so every refusal is kept until they are
// consumed and none of them can be read as a command.
func (s *Session) bdat(arg []byte, now time.Time, out []byte) []byte {
	size, last, bad := smtpcodec.ParseBdat(arg)
	if bad != smtpcodec.ErrNone {
		// How many octets follow is unknown. Going on would run them as commands.
		out = s.refuse(out, StageData, &refuseSyntax, arg)
		s.close()
		return out
	}

	s.chunkRefused = nil
	switch {
	case s.state == connected:
		s.chunkRefused = &refuseSequence
	case !s.sv.chunking || !s.extended:
		s.chunkRefused = &refuseNotImplemented
	case s.state == recipientsRefused:
		s.chunkRefused = &refuseNoRecipients
	case s.state != haveForwardPath && s.state != haveChunks:
		s.chunkRefused = &refuseSequence
	}
	s.phase = phaseChunk
	s.chunkLeft, s.chunkSize, s.chunkLast = size, size, last
	if s.chunkRefused != nil {
		s.deadline = now.Add(s.sv.DataTimeout)
		return out
	}
	if s.state == haveForwardPath {
		s.chunkWaits = true
		s.phase = phaseCommand
		return s.judge(policy.AtData, now, out)
	}
	s.dataDeadline()
	return out
}

// smallestRoom is what smtpcodec.DataScanner needs to make progress.
const smallestRoom = 4

// room gives where to decode to: the end of the message, or waste. small is for the last bytes of a chunk, see keep.
func (s *Session) room(small *[smallestRoom]byte) []byte {
	tx := s.tx
	if !tx.wasted {
		room := tx.env.Data.Spare(s.res.Envelopes.Chunks)
		switch {
		case room == nil:
			tx.outOfMemory = true
			s.discard()
		case len(room) < smallestRoom:
			return small[:]
		default:
			return room
		}
	}
	if s.res.waste == nil {
		s.res.waste = make([]byte, wasteBytes)
	}
	return s.res.waste
}

// keep counts decoded, which was written to what room gave, and notes what is wrong with the message so far.
func (s *Session) keep(decoded []byte, small *[smallestRoom]byte) {
	tx := s.tx
	tx.size += int64(len(decoded))
	if tx.wasted {
		return
	}
	if len(decoded) > 0 {
		tx.received.scan(decoded)
		if &decoded[0] != &small[0] {
			tx.env.Data.Extend(len(decoded))
		} else if !tx.env.Data.Append(s.res.Envelopes.Chunks, decoded) {
			tx.outOfMemory = true
		}
	}
	if s.verdict() != nil {
		s.discard()
	}
}

// discard makes the rest of the data be thrown away and gives back what was kept: a message that will be refused holds no memory.
func (s *Session) discard() {
	s.tx.wasted = true
	s.tx.env.Data.Release()
}

// forbidden is what the message data may not hold.
func (s *Session) forbidden() smtpcodec.DataFlags {
	switch {
	case s.tx.env.Body == envelope.BodyBinaryMIME: // RFC 3030 §3: CR and LF have no meaning there
		return 0
	case s.sv.Normalize:
		return smtpcodec.DataBareCR
	}
	return smtpcodec.DataBareCR | smtpcodec.DataBareLF
}

// verdict says what is wrong with the message so far, nil when nothing is. The order is fixed and each cause only ever comes true,
// so the answer does not depend on how the data was cut.
func (s *Session) verdict() *refusal {
	tx := s.tx
	switch {
	case tx.size > s.sv.MaxMessageBytes:
		return &refuseTooBig
	case tx.outOfMemory:
		return &refuseMemory
	case tx.scan.Flags()&s.forbidden() != 0:
		return &refuseBareInData
	case tx.received.count > s.sv.MaxReceived:
		return &refuseLoop
	}
	return nil
}

// scanData decodes mail data into the envelope until its end.
func (s *Session) scanData(in []byte) (consumed int, done bool) {
	var small [smallestRoom]byte
	for consumed < len(in) && !done {
		room := s.room(&small)
		var n, c int
		n, c, done = s.tx.scan.Scan(room, in[consumed:])
		consumed += c
		s.keep(room[:n], &small)
	}
	return consumed, done
}

// scanChunk copies octets of the BDAT being read. Those of a refused one are stepped over.
func (s *Session) scanChunk(in []byte) (consumed int) {
	if int64(len(in)) > s.chunkLeft {
		in = in[:s.chunkLeft]
	}
	if s.chunkRefused != nil {
		s.chunkLeft -= int64(len(in))
		return len(in)
	}
	var small [smallestRoom]byte
	for consumed < len(in) {
		room := s.room(&small)
		n, c := s.tx.scan.ScanChunk(room, in[consumed:])
		consumed += c
		s.keep(room[:n], &small)
	}
	s.chunkLeft -= int64(consumed)
	return consumed
}

// endData is reached behind the final dot.
func (s *Session) endData(now time.Time, out []byte) []byte {
	if why := s.verdict(); why != nil {
		return s.refuseMessage(out, why, s.perRecipient())
	}
	s.phase = phaseCommand
	return s.judgeMessage(now, out)
}

// judgeMessage is reached when a message is complete and the session has nothing against it.
func (s *Session) judgeMessage(now time.Time, out []byte) []byte {
	if id := s.sv.AuthservID; id != "" && removeForged(&s.tx.env.Data, id) {
		return s.refuseMessage(out, &refuseForged, s.perRecipient())
	}
	return s.judge(policy.AtMessage, now, out)
}

// messageTaken stops the session until Committed. It has no reply: that is the point.
func (s *Session) messageTaken(_ *smtpcodec.Reply, now time.Time, out []byte) []byte {
	s.tx.env.Arrived = now
	s.phase, s.deadline = phaseCommit, time.Time{}
	return out
}

func (s *Session) messageRefused(r *smtpcodec.Reply, why Reason, now time.Time, out []byte) []byte {
	return s.refuseMessage(out, &refusal{*r, why}, s.perRecipient())
}

// endChunk is reached behind the last octet of a BDAT.
func (s *Session) endChunk(now time.Time, out []byte) []byte {
	s.phase = phaseCommand
	if why := s.chunkRefused; why != nil {
		return s.refuse(out, StageData, why, nil)
	}
	tx := s.tx
	if s.chunkLast {
		// Not into room: a message that just fills its chunks must not need one more to end.
		var small [smallestRoom]byte
		s.keep(small[:tx.scan.EndChunks(small[:])], &small)
	}
	if why := s.verdict(); why != nil {
		// RFC 3030 §2: the failed message is over. Further BDAT of it find no transaction and get 503.
		replies := 1
		if s.chunkLast {
			replies = s.perRecipient()
		}
		return s.refuseMessage(out, why, replies)
	}
	if s.chunkLast {
		return s.judgeMessage(now, out)
	}
	s.tell(StageData, 250)
	out = strconv.AppendInt(append(out, "250 2.0.0 "...), s.chunkSize, 10)
	return append(out, " octets received\r\n"...)
}

// perRecipient is how many replies end the data: with LMTP one for each accepted RCPT (RFC 2033 §4.2).
func (s *Session) perRecipient() int {
	if s.sv.LMTP {
		return s.tx.recipients
	}
	return 1
}

// refuseMessage answers a message that was read to its end and is not taken, and ends the transaction (RFC 5321 §4.1.1.4).
func (s *Session) refuseMessage(out []byte, why *refusal, replies int) []byte {
	for range replies - 1 {
		out = why.reply.AppendTo(out)
	}
	s.phase = phaseCommand
	out = s.refuse(out, StageMessage, why, nil)
	s.dropTransaction()
	return out
}

// beginsWithBlank says that the first byte of a message is SP or HTAB.
func beginsWithBlank(data *pool.Chain) bool {
	for c := data.First(); c != nil; c = c.Next() {
		if p := c.Bytes(); len(p) > 0 {
			return p[0] == ' ' || p[0] == '\t'
		}
	}
	return false
}

// TakeEnvelope moves ownership of the finished envelope to the caller; id becomes its ID and stands in its Received field.
// It is called once for each AwaitCommit.
func (s *Session) TakeEnvelope(id envelope.ID) *envelope.Envelope {
	if s.phase != phaseCommit || s.tx.env == nil {
		panic("session: no envelope to take")
	}
	tx := s.tx
	env := tx.env
	env.ID, tx.id = id, id
	if len(tx.fields) > 0 { // in these facts are first
		s.res.scratch = appendResults(s.res.scratch[:0], tx.fields)
		env.Results = env.Keep(s.res.scratch)
	}
	s.res.scratch = append(s.res.scratch[:0], tx.fields[tx.facts:]...)
	s.res.scratch = appendReceived(s.res.scratch, env, s.peer.TLS, tx.host, s.sv.Hostname)
	if beginsWithBlank(&env.Data) {
		// RFC 5322 §2.2.3: a line that begins so would be a folded line of our last field, and say there what a stranger likes. He has sent no
		// header section that begins with a field, so ours ends here (§2.1) and all that he sent is body, byte for byte.
		s.res.scratch = append(s.res.scratch, "\r\n"...)
	}
	env.Trace = env.Keep(s.res.scratch)
	if s.sv.LMTP {
		for i := range env.Recipients {
			tx.paths = append(tx.paths, env.Recipients[i].Path...)
			tx.ends = append(tx.ends, len(tx.paths))
		}
	}
	tx.env = nil
	return env
}

// Committed ends AwaitCommit. refusal nil means that the message is durable: this is the only place that says so to a client.
// refusal may also stand for a message that never was taken (a full queue), which is then released. env is the envelope that was taken, borrowed
// from its owner, who releases it afterwards. Codes 421 and 221 close the session.
//
// Validators may put other words in place of a 250, or refuse in its place: the client sends the message again then, which is twice rather than
// never. Nothing turns a refusal into a 250.
func (s *Session) Committed(env *envelope.Envelope, refusal *smtpcodec.Reply, now time.Time, out []byte) ([]byte, Step) {
	if s.phase != phaseCommit {
		panic("session: Committed without a message that awaits it")
	}
	if refusal == nil && s.tx.env != nil {
		panic("session: a message is committed whose envelope was never taken")
	}
	var told *smtpcodec.Reply
	if len(s.sv.at[policy.AtQueued]) > 0 {
		told, refusal = s.tellQueued(env, refusal)
	}
	s.phase = phaseCommand
	switch {
	case refusal != nil:
		for range s.perRecipient() - 1 {
			out = refusal.AppendTo(out)
		}
		out = s.refuseWith(out, StageMessage, refusal, reasonOf(refusal), nil)
	case told != nil:
		for range s.perRecipient() - 1 {
			out = told.AppendTo(out)
		}
		out = s.answer(out, StageMessage, told)
		s.junk = 0
	default:
		out = s.appendQueued(out)
		s.tell(StageMessage, 250)
		s.junk = 0
	}
	s.dropTransaction()
	return s.settle(out, now), s.step()
}

// tellQueued asks the validators what to make of the queue's answer: told replaces the 250, refused refuses.
func (s *Session) tellQueued(env *envelope.Envelope, refusal *smtpcodec.Reply) (told, refused *smtpcodec.Reply) {
	reply := smtpcodec.Reply{Code: 250, Enhanced: smtpcodec.EnhancedCode{Class: 2, Subject: 6}, Text: "Message queued as " + s.tx.id.String()}
	if refusal != nil {
		reply = *refusal
	}
	mine := s.tx.env
	if mine == nil {
		s.tx.env = env
	}
	r := s.tellOf(policy.AtQueued, reply)
	s.tx.env = mine
	switch {
	case r.Code/100 == 2 && r.Code != 221 && refusal == nil:
		if r == reply {
			return nil, nil
		}
		return &r, nil
	case r.Code/100 == 2:
		return nil, refusal // what is not queued is not acknowledged, whoever says so
	}
	return nil, &r
}

// appendQueued appends the 250 that takes responsibility for a message (RFC 5321 §4.2.5), with LMTP one for each recipient in the
// order of the RCPT commands (RFC 2033 §4.2).
func (s *Session) appendQueued(out []byte) []byte {
	tx := s.tx
	if !s.sv.LMTP {
		return s.appendQueuedAs(append(out, "250 2.6.0 "...))
	}
	start := 0
	for _, end := range tx.ends {
		out = append(out, "250 2.6.0 "...)
		if path := tx.paths[start:end]; printable(path) {
			out = append(out, '<')
			out = append(out, path...)
			out = append(out, "> "...)
		}
		out = s.appendQueuedAs(out)
		start = end
	}
	return out
}

func (s *Session) appendQueuedAs(out []byte) []byte {
	if s.sv.HTTP {
		return append(out, "Message accepted for delivery\r\n"...)
	}
	out = append(out, "Message queued as "...)
	out = s.tx.id.AppendTo(out)
	return append(out, "\r\n"...)
}
