package httpedge

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/smtpcodec"
)

// turnedAway is why somebody may not post, as both protocols need it.
type turnedAway struct {
	reply     smtpcodec.Reply
	reason    string        // a word of problemKinds
	challenge bool          // with credentials it might work
	wait      time.Duration // for Retry-After
}

var (
	awayNobody      = turnedAway{reply: refusal(530, 7, 0, "Credentials needed"), reason: "auth", challenge: true}
	awayUnknown     = turnedAway{reply: refusal(535, 7, 8, "Credentials not accepted"), reason: "auth_failed", challenge: true}
	awayUnavailable = turnedAway{reply: refusal(454, 7, 0, "Credentials can't be checked now"), reason: "auth_unavailable"}
	awayThrottled   = turnedAway{reply: refusal(454, 7, 0, "Too many failed logins, try again later"), reason: "auth_failures", wait: time.Minute}
	awayNotAllowed  = turnedAway{reply: refusal(550, 7, 0, "Posting not allowed from here, see post_from"), reason: "forbidden"}
	awayRate        = turnedAway{reply: refusal(450, 7, 0, "Too many messages with this key, try again later"), reason: "message_rate"}
	awaySender      = turnedAway{reply: refusal(550, 7, 0, "This key may not send as this sender"), reason: "forbidden"}
)

// refusal makes a reply whose enhanced code has the class of the reply code.
func refusal(code, subject, detail uint16, text string) smtpcodec.Reply {
	return smtpcodec.Reply{Code: code, Enhanced: smtpcodec.EnhancedCode{Class: code / 100, Subject: subject, Detail: detail}, Text: text}
}

// passwordTimeout is how long a password may take to be checked.
const passwordTimeout = 10 * time.Second

// identify finds out who posts. p is filled in as far as it is known; nil means that p may post.
func (s *Server) identify(ctx *fasthttp.RequestCtx, c *conn, p *poster) *turnedAway {
	*p = poster{client: c.client, proxy: c.proxy, tls: c.tls}
	at := c.at
	known := c.client.Addr().IsValid()
	p.mayRelay = known && at.MayRelay != nil && at.MayRelay(c.client.Addr())
	if header := ctx.Request.Header.Peek("Authorization"); len(header) > 0 {
		return s.credentials(header, c, p)
	}
	if name := certificateName(c); at.External && name != "" {
		return s.certificate(name, c, p)
	}
	switch {
	case at.AuthRequired:
		return &awayNobody
	case known && at.MayPost != nil && at.MayPost(c.client.Addr()):
		return nil
	case at.Bearer || at.Basic || at.External:
		return &awayNobody
	}
	return &awayNotAllowed
}

// certificateName is who a verified client certificate is for: its first mail address, otherwise its common name.
func certificateName(c *conn) string {
	if c.tls == nil || c.tls.Certificate == nil || !c.tls.Certificate.Verified {
		return ""
	}
	for _, n := range c.tls.Certificate.Names {
		if strings.Contains(n, "@") {
			return n
		}
	}
	return c.tls.Certificate.CommonName
}

// certificate logs the owner of a certificate in, who must be a user.
func (s *Server) certificate(name string, c *conn, p *poster) *turnedAway {
	ctx, cancel := context.WithTimeout(context.Background(), passwordTimeout)
	defer cancel()
	identity, err := s.o.Passwords.CheckCertificate(ctx, name, c.client.Addr())
	return p.loggedIn(identity, auth.EXTERNAL, err)
}

// loggedIn takes what a store has said.
func (p *poster) loggedIn(identity, mechanism string, err error) *turnedAway {
	switch {
	case err == nil:
		p.user, p.mechanism = identity, mechanism
		return nil
	case errors.Is(err, auth.ErrAuthThrottled):
		return &awayThrottled
	case errors.Is(err, auth.ErrAuthUnavailable):
		return &awayUnavailable
	}
	return &awayUnknown
}

// credentials checks an Authorization header (RFC 9110 §11.6.2). Wrong ones are refused, also from those who would not need any.
func (s *Server) credentials(header []byte, c *conn, p *poster) *turnedAway {
	scheme, rest, _ := bytes.Cut(header, []byte(" "))
	rest = trimBlanks(rest)
	switch {
	case c.at.Bearer && equalFold(scheme, "bearer"):
		key, err := s.o.Keys.Check(rest, time.Now())
		if err != nil {
			return &awayUnknown
		}
		p.key, p.user, p.mechanism = key, key.Name, "BEARER"
		return nil
	case c.at.Basic && equalFold(scheme, "basic"):
		return s.password(rest, c, p)
	}
	return &awayUnknown
}

// password checks user-id and password (RFC 7617).
func (s *Server) password(encoded []byte, c *conn, p *poster) *turnedAway {
	const most = 1024
	var room [most]byte
	if base64.StdEncoding.DecodedLen(len(encoded)) > most {
		return &awayUnknown
	}
	n, err := base64.StdEncoding.Decode(room[:], encoded)
	user, password, ok := bytes.Cut(room[:n], []byte(":"))
	if err != nil || !ok {
		return &awayUnknown
	}
	ctx, cancel := context.WithTimeout(context.Background(), passwordTimeout)
	defer cancel()
	identity, err := s.o.Passwords.Check(ctx, string(user), string(password), c.client.Addr())
	return p.loggedIn(identity, auth.PLAIN, err)
}

func equalFold(p []byte, lower string) bool { return isMediaType(p, lower) }

// maySend asks whether the poster's key allows one more message with this reverse-path. A dry run is none, and uses nothing up.
func (s *Server) maySend(p *poster, reversePath []byte, dry bool, now time.Time) *turnedAway {
	if p.key == nil {
		return nil
	}
	if !p.key.MaySend(reversePath) {
		return &awaySender
	}
	if dry {
		return nil
	}
	if wait := s.o.Keys.Take(p.key, 1, now); wait > 0 {
		t := awayRate
		t.wait = wait
		return &t
	}
	return nil
}

// challenges are the WWW-Authenticate values of a listener (RFC 9110 §11.6.1), for a 401. Certificates have none.
func (l *Listener) challenges(h *fasthttp.ResponseHeader) {
	h.Del("WWW-Authenticate")
	if l.Bearer {
		h.Add("WWW-Authenticate", `Bearer realm="mail"`)
	}
	if l.Basic {
		h.Add("WWW-Authenticate", `Basic realm="mail", charset="UTF-8"`)
	}
}

// speaksFor lets p speak for the client that the mail came from: validators see that one, and nothing of what p may do or is. It is for those who
// may send to any domain.
func (p *poster) speaksFor(client netip.Addr) bool {
	if !p.mayRelay && p.user == "" {
		return false
	}
	via := p.client
	p.client, p.proxy, p.named = netip.AddrPortFrom(client, 0), &via, true
	if p.tls != nil && p.tls.Certificate != nil {
		without := *p.tls
		without.Certificate = nil
		p.tls = &without
	}
	return true
}
