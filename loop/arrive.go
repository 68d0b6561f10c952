package loop

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/fastedge/fastedge/internal/proxyhdr"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// What happens on a connection before its session is open, in this order, each only where the listener wants it: the PROXY header, the
// gate, the handshake of implicit TLS, the greeting held back. A plain connection goes through all of it inside OnOpen.

var replyEarly = smtpcodec.Reply{Code: 421, Enhanced: smtpcodec.EnhancedCode{Class: 4, Subject: 7, Detail: 0}, Text: "You spoke before the greeting"}

// arrival is what a connection needs only while it waits for its session.
type arrival struct {
	peer     session.Peer
	deadline time.Time
	early    bool // the client did not wait for the greeting
	local    bool // a proxy's own connection
}

// firstBytes says what the first bytes of a client mean besides themselves.
type firstBytes uint8

const (
	firstSeen     firstBytes = iota // nothing more
	firstUnlisted                   // a PROXY header would be an offence
	firstLocal                      // without any, a LOCAL connection was a health check
)

// wait keeps p until the phase is over.
func (c *conn) wait(ph phase, p session.Peer, until time.Time) {
	c.phase = ph
	c.pre = &arrival{peer: p, deadline: until}
	c.hasten()
}

// looksGood looks at the first bytes that came and says whether to go on with them now.
func (c *conn) looksGood() bool {
	if c.first == firstUnlisted {
		sent, more := proxyhdr.Unwanted(c.rawPeek())
		if more {
			return false
		}
		if sent {
			c.first = firstSeen
			c.badProxy(EventProxyUnlisted, proxyhdr.ErrUnlisted)
			return false
		}
	}
	c.first = firstSeen
	return true
}

// badProxy ends a connection without a byte, and says so: this is what an operator looks for when mail does not come.
func (c *conn) badProxy(e Event, why error) {
	c.lp.meter.Event(e)
	c.lp.logEnd(c, why.Error())
	c.phase = phaseLingering // counted
	c.close()
}

// proxied looks for the whole of the PROXY header.
func (c *conn) proxied(now time.Time) {
	in := c.rawPeek()
	n, err := proxyhdr.Frame(in)
	switch {
	case err == proxyhdr.ErrMissing:
		c.badProxy(EventProxyMissing, err)
		return
	case err != nil:
		c.badProxy(EventProxyBad, err)
		return
	case n == 0:
		return
	}
	h, err := c.lp.proxy.Parse(in[:n])
	if err != nil {
		c.badProxy(EventProxyBad, err)
		return
	}
	c.rawConsume(n)

	l, p := c.lst(), c.pre.peer
	socket := p.Addr
	p.Proxy, p.TLS = &socket, h.TLS
	switch {
	case h.Client.IsValid():
		p.Addr = h.Client
		p.MayRelay = l.MayRelay != nil && l.MayRelay(p.Addr.Addr())
		c.pre.peer = p
		if limit := c.lp.ask(l, int(c.listener), p.Addr.Addr(), now); limit != policy.LimitNone {
			if c.phase = phaseLingering; l.Implicit {
				c.close()
			} else {
				c.say(limit.Reply(), now)
			}
			return
		}
		c.gated = l.Gate != nil
	case h.Local:
		c.pre.local = true
		if c.rawBuffered() == 0 {
			c.first = firstLocal
		}
		p.MayRelay = l.MayRelay != nil && l.MayRelay(p.Addr.Addr())
	default:
		// The client may be anybody, the proxy's own address means nothing.
	}
	c.pre.peer = p
	c.lp.meter.Connection(int(c.listener), ConnAccepted)
	if h.UniqueID != "" && c.lp.log.Enabled(noContext, slog.LevelDebug) {
		c.lp.log.LogAttrs(noContext, slog.LevelDebug, "proxied", slog.String("session", p.ID.String()),
			slog.String("client", p.Addr.String()), slog.String("proxy", socket.String()), slog.String("unique_id", h.UniqueID))
	}
	c.secureOrGreet(p, now)
}

// secureOrGreet is reached when it is known who the client is.
func (c *conn) secureOrGreet(p session.Peer, now time.Time) {
	if !c.lst().Implicit {
		c.greet(p, now)
		return
	}
	if !c.lp.srv.claimHandshake() {
		c.lp.meter.Event(EventHandshakeLimit)
		c.close()
		return
	}
	c.pre = &arrival{peer: p, local: c.pre != nil && c.pre.local}
	c.startHandshake(now)
}

// greet opens the session, or holds the greeting back.
func (c *conn) greet(p session.Peer, now time.Time) {
	l := c.lst()
	if l.GreetDelay <= 0 || p.MayRelay || c.pre != nil && c.pre.local {
		c.open(p, now)
		return
	}
	c.wait(phaseGreet, p, now.Add(l.GreetDelay))
	if c.buffered() > 0 {
		c.early(now)
	}
}

// early is called for bytes that come before the greeting.
func (c *conn) early(now time.Time) {
	if c.pre.early {
		c.boundStash(now)
		return
	}
	n := len(c.peek())
	c.consume(0)
	switch {
	case c.closed:
	case c.sec != nil && c.sec.err != nil:
		c.tlsOver()
	case n == 0: // a part of a record
	default:
		c.pre.early = true
		c.lp.meter.Event(EventEarlyTalker)
		if !c.lst().RefuseEarly {
			c.boundStash(now)
			return
		}
		c.lp.logEnd(c, "spoke before the greeting")
		c.say(&replyEarly, now)
	}
}

// say sends the last reply of a connection that has no session yet.
func (c *conn) say(r *smtpcodec.Reply, now time.Time) {
	c.flush(r.AppendTo(c.lp.out[:0]), now)
	if !c.closed {
		c.finish(now)
	}
}

// open begins the session.
func (c *conn) open(p session.Peer, now time.Time) {
	lp := c.lp
	lp.cur = c
	c.phase = phaseOpen
	out, step := c.sess.Open(c.lst().Session, &lp.res, p, now, lp.out[:0])
	c.pre = nil
	if lp.srv.draining.Load() { // since the connection was accepted
		if o, st := c.sess.Shutdown(now, lp.out[:0]); st == session.Close {
			out, step = o, st
		}
	}
	c.burst(now, out, step)
}

// peer is what is known of the client so far.
func (c *conn) peer() session.Peer {
	if c.pre != nil {
		return c.pre.peer
	}
	return c.sess.Peer()
}

// address is the client's, as far as it is known; a proxy's own while it has not told its client's.
func (c *conn) address() netip.AddrPort { return c.peer().Addr }

func (c *conn) lst() *Listener { return &c.lp.srv.o.Listeners[c.listener] }
