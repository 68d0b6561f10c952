package httpedge

import (
	"bytes"

	"github.com/valyala/fasthttp"

	"github.com/fastedge/fastedge/pool"
)

// What recipients and the answers about them take of limits.memory. A few kilobytes in gzip may name thousands of recipients, and their answer
// may wait for a client that does not read it.
const (
	// freeEnvelopeBytes are not counted: some 40 recipients, so that an ordinary message costs the budget nothing. 4,096 connections and 1,024
	// lanes × 16 KiB = 80 MiB.
	freeEnvelopeBytes = 16 << 10
	// copiesOfAddress: in the request's arena, in the session's envelope or in the reply that refuses it, and twice in an answer that quotes it.
	copiesOfAddress = 4
	// recipientBytes is for what does not grow with the address: rcpt, recipientResult, envelope.Recipient, and the words around it in the answer.
	recipientBytes = 256
	// chargeStep is how much is reserved at a time.
	chargeStep = 16 << 10
)

// charge is a part of a budget that somebody holds. It is moved with take, never copied.
type charge struct {
	budget *pool.Budget
	held   int
}

// covers makes the charge large enough for so many recipients, whose addresses and parameters have so many bytes. false: the budget is spent.
func (c *charge) covers(rcpts, addressBytes int) bool {
	more := rcpts*recipientBytes + addressBytes*copiesOfAddress - freeEnvelopeBytes - c.held
	if more <= 0 {
		return true
	}
	more = (more + chargeStep - 1) / chargeStep * chargeStep
	if !c.budget.Reserve(more) {
		return false
	}
	c.held += more
	return true
}

// take moves what from holds to c, which keeps what it has.
func (c *charge) take(from *charge) {
	if from.held > 0 {
		c.budget = from.budget
		c.held += from.held
		from.held = 0
	}
}

func (c *charge) release() {
	if c.held > 0 {
		c.budget.GiveBack(c.held)
		c.held = 0
	}
}

// chargedBody is a response that holds a part of the budget until it is sent, or can't be.
type chargedBody struct {
	bytes.Reader
	charge charge
}

// Close is called by fasthttp, whatever becomes of the response.
func (b *chargedBody) Close() error {
	b.charge.release()
	return nil
}

// answerWith makes text the response. It takes what is held for it.
func answerWith(ctx *fasthttp.RequestCtx, text []byte, from *charge) {
	if from.held == 0 {
		ctx.Response.SetBodyRaw(text)
		return
	}
	b := &chargedBody{}
	b.Reset(text)
	b.charge.take(from)
	ctx.Response.SetBodyStream(b, len(text))
}
