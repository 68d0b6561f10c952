package loop

import (
	"strings"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
)

// authResults are the session's words for what package auth says.
var authResults = [...]session.AuthResult{
	auth.Continue:    session.AuthContinue,
	auth.Success:     session.AuthOK,
	auth.Failed:      session.AuthFailed,
	auth.Malformed:   session.AuthMalformed,
	auth.Unavailable: session.AuthUnavailable,
	auth.Throttled:   session.AuthThrottled,
}

// stepAuth takes the client's response to the SASL mechanism, which works it out elsewhere.
func (c *conn) stepAuth(now time.Time, out []byte) ([]byte, session.Step) {
	lp := c.lp
	r := c.sess.AuthRequest()
	if r.First {
		c.dropExchange()
		if s := c.lst().Auth; s != nil {
			c.exchange = s.Begin(r.Mechanism, c.authPeer())
		}
	}
	x := c.exchange
	if x == nil {
		return c.sess.AuthDone(session.AuthAnswer{Result: session.AuthUnavailable}, now, out)
	}
	c.phase = phaseSuspended
	x.Step(r.Response, r.Present, func(o auth.Outcome) { // another goroutine
		lp.post(task{kind: taskResume, resume: func(now time.Time) { lp.authDone(c, x, o, now) }})
	})
	return out, session.NeedInput
}

// authDone resumes the session whose SASL step is worked out.
func (lp *loop) authDone(c *conn, x *auth.Exchange, o auth.Outcome, now time.Time) {
	if c.closed || c.exchange != x || c.phase != phaseSuspended {
		return
	}
	defer lp.recovered(c)
	if o.Result != auth.Continue {
		c.exchange = nil
	}
	a := session.AuthAnswer{Result: session.AuthUnavailable, Challenge: o.Challenge, User: o.User}
	if int(o.Result) < len(authResults) {
		a.Result = authResults[o.Result]
	}
	lp.cur = c
	c.phase = phaseOpen
	out, step := c.sess.AuthDone(a, now, lp.out[:0])
	c.burst(now, out, step)
}

// dropExchange ends the exchange that nobody waits for any more.
func (c *conn) dropExchange() {
	if c.exchange != nil {
		c.exchange.Cancel()
		c.exchange = nil
	}
}

// authPeer is what package auth may know of the client.
func (c *conn) authPeer() auth.Peer {
	p := c.sess.Peer()
	a := auth.Peer{
		Addr:        p.Addr,
		Listener:    c.name(),
		Helo:        string(c.sess.Helo()),
		Session:     p.ID.String(),
		Secured:     p.TLS != nil || !p.Addr.IsValid(), // a unix socket has no address
		Certificate: certificateIdentity(p.TLS),
		Offered:     c.lst().Session.Auth,
	}
	if c.sec != nil {
		cs := c.sec.tls.ConnectionState()
		a.TLS, a.ServerCertificate = &cs, c.sec.leaf
	}
	return a
}

// certificateIdentity is who a client is by its certificate, for EXTERNAL: the first mail address in it, else its common name; nobody when
// it was not verified.
func certificateIdentity(t *policy.TLS) string {
	if t == nil || t.Certificate == nil || !t.Certificate.Verified {
		return ""
	}
	for _, name := range t.Certificate.Names {
		if strings.Contains(name, "@") {
			return name
		}
	}
	return t.Certificate.CommonName
}
