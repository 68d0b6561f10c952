package loadtest

import (
	"bytes"
	"encoding/base64"
	"strconv"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// httpSession posts messages to an edge over one connection: Content-Type message/rfc822, the envelope in X-Envelope-Sender and
// X-Envelope-Recipient (base64), the SMTP reply in X-Smtp-Reply. Without that field the status decides: 2xx good, 429 and 503 deferred,
// the rest refused.
type httpSession struct {
	io       wire
	plan     *plan
	tally    *tally
	host     host
	make     *composer
	preamble []byte
	left     int

	begun, sent int64
	cur         message
	active      bool
	scratch     []byte
	address     []byte // a forward-path, while it is encoded
	in          []byte // the response's head, so far
	skip        int64  // octets of its body still to come
	result      outcome
	closes      bool // the target ends the connection behind this response
}

// maxResponse bounds the head of a response, and its body.
const maxResponse = 64 << 10

func (h *httpSession) wire() *wire { return &h.io }

func (h *httpSession) open(now int64) {
	h.begun, h.sent = now, now
	if len(h.preamble) > 0 {
		h.io.queue(h.preamble)
	}
	if !h.plan.TLS {
		h.ready(now)
	}
}

func (h *httpSession) secured(now int64) {
	h.tally.took(phaseTLS, good, now-h.sent)
	h.io.wish = wantNothing
	h.ready(now)
}

func (h *httpSession) ready(now int64) {
	h.tally.ready++
	if h.plan.SessionsOnly {
		h.quit(now)
		return
	}
	h.proceed(now)
}

func (h *httpSession) proceed(now int64) {
	h.io.awaiting = false
	if h.plan.Hold > 0 {
		h.host.park(h)
		return
	}
	if h.left == 0 {
		h.quit(now)
	} else if m, ok := h.host.take(now); ok {
		h.start(m, now)
	} else if h.host.park(h) {
		h.quit(now)
	}
}

func (h *httpSession) quit(now int64) {
	h.tally.took(phaseSession, good, now-h.begun)
	h.tally.completed(h.plan.SessionsOnly, now)
	h.io.wish, h.io.ended, h.io.awaiting = wantClose, true, false
}

func (h *httpSession) start(m message, now int64) {
	h.cur, h.active = m, true
	if h.left > 0 {
		h.left--
	}
	h.tally.inFlight++
	b64 := base64.StdEncoding
	buf := append(h.scratch[:0], "POST "...)
	buf = append(buf, h.plan.HTTPPath...)
	buf = append(buf, " HTTP/1.1\r\nHost: "...)
	if h.plan.unix() {
		buf = append(buf, "localhost"...)
	} else {
		buf = append(buf, h.plan.Target...)
	}
	buf = append(buf, "\r\nContent-Type: message/rfc822\r\nX-Ehlo: "...)
	buf = append(buf, h.plan.EHLO...)
	buf = append(buf, "\r\nX-Envelope-Sender: "...)
	h.address = append(h.address[:0], h.plan.sender(m)...)
	buf = b64.AppendEncode(buf, h.address)
	for i := range m.recipients {
		h.address = h.plan.appendRecipient(h.address[:0], m.seq, i)
		buf = append(buf, "\r\nX-Envelope-Recipient: "...)
		buf = b64.AppendEncode(buf, h.address)
	}
	buf = append(buf, "\r\nContent-Length: "...)
	buf = strconv.AppendInt(buf, int64(h.make.size(m)), 10)
	buf = append(buf, "\r\n\r\n"...)
	begin := len(buf)
	grown, head, shared, tail := h.make.data(buf, m, true)
	h.scratch = grown
	h.io.queue(grown[:begin+len(head)], shared, tail)
	h.io.awaiting, h.io.since = true, now
}

func (h *httpSession) flushed(now int64) {
	h.io.since, h.sent = now, now
}

func (h *httpSession) feed(in []byte, now int64) {
	h.io.since = now
	for len(in) > 0 && h.io.wish == wantNothing {
		if h.skip > 0 {
			n := min(h.skip, int64(len(in)))
			h.skip -= n
			in = in[n:]
			if h.skip == 0 {
				h.answered(now)
			}
			continue
		}
		if !h.active || len(h.io.out) > 0 && h.io.fresh {
			h.lost("unasked response", now)
			return
		}
		before := len(h.in)
		h.in = append(h.in, in...)
		end := bytes.Index(h.in, []byte("\r\n\r\n"))
		if end < 0 {
			const version = "HTTP/1."
			switch {
			case len(h.in) > maxResponse:
				h.lost("response head too long", now)
			case len(h.in) >= len(version) && !bytes.HasPrefix(h.in, []byte(version)):
				line, _, _ := bytes.Cut(h.in, []byte("\r\n")) // an SMTP server's greeting, say: no empty line will ever follow
				h.lost("not a response: "+string(line[:min(len(line), 60)]), now)
			}
			return
		}
		in = in[end+4-before:]
		h.head(h.in[:end+2], now)
		h.in = h.in[:0]
	}
}

// head takes the status line and the fields of a response. RFC 9112 §4.
func (h *httpSession) head(head []byte, now int64) {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	status := 0
	if len(line) >= 12 && bytes.HasPrefix(line, []byte("HTTP/1.")) {
		status, _ = strconv.Atoi(string(line[9:12]))
	}
	if status < 200 {
		if status >= 100 {
			return // an interim response
		}
		h.lost("not a response: "+string(line[:min(len(line), 60)]), now)
		return
	}
	switch {
	case status < 300:
		h.result = good
	case status == 429, status == 503:
		h.result = deferred
	default:
		h.result = refused
	}
	text := line
	h.closes = bytes.HasPrefix(line, []byte("HTTP/1.0"))
	length, known := int64(0), status == 204
	for len(rest) > 0 {
		var field []byte
		field, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, _ := bytes.Cut(field, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")) && status != 204:
			n, err := strconv.ParseInt(string(value), 10, 64)
			length, known = n, err == nil && n >= 0 && n <= maxResponse
		case bytes.EqualFold(name, []byte("Connection")):
			h.closes = h.closes || bytes.EqualFold(value, []byte("close"))
		case bytes.EqualFold(name, []byte("X-Smtp-Reply")) && len(value) >= 3:
			if code, err := strconv.Atoi(string(value[:3])); err == nil {
				h.result, text = outcomeOf(code), value
			}
		}
	}
	if !known {
		h.lost("response without a usable Content-Length", now)
		return
	}
	if h.result != good {
		h.tally.note(phaseAck, string(text))
	}
	if h.skip = length; length == 0 {
		h.answered(now)
	}
}

func (h *httpSession) answered(now int64) {
	early := len(h.io.out) > 0 // what is left of the request cannot be taken back
	if early && h.result == good {
		h.result = failed // of what?
	}
	note := ledger.Acknowledged
	if h.result != good {
		note = ledger.Refused
	}
	h.settle(note)
	h.tally.took(phaseAck, h.result, now-h.sent)
	h.finish(h.result, now)
	switch {
	case early:
		h.tally.took(phaseSession, failed, now-h.begun)
		h.io.out = nil
		h.io.wish, h.io.awaiting = wantClose, false
	case h.closes:
		h.quit(now)
	default:
		h.proceed(now)
	}
}

func (h *httpSession) settle(o ledger.Outcome) {
	for i := range h.cur.recipients {
		h.plan.book.Note(h.cur.seq, i, o)
	}
}

func (h *httpSession) finish(o outcome, now int64) {
	h.tally.took(phaseTransaction, o, now-h.cur.due)
	h.tally.ended(o, h.make.size(h.cur), now)
	h.active = false
}

func (h *httpSession) lost(why string, now int64) {
	if h.io.wish == wantClose {
		return
	}
	at := phaseAck
	if h.io.wish == wantTLS {
		at = phaseTLS
	}
	h.tally.note(at, "connection: "+why)
	h.tally.took(phaseSession, failed, now-h.begun)
	if h.active {
		if len(h.io.out) == 0 {
			h.settle(ledger.Unknown)
		}
		h.finish(failed, now)
	}
	h.io.out = nil
	h.io.wish, h.io.awaiting = wantClose, false
}
