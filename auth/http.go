package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

// HTTPOptions of an HTTP store.
type HTTPOptions struct {
	URL string // http or https; http only to a loopback address, unless Clear is set
	// Mechanisms the service checks; default PLAIN and LOGIN. OAUTHBEARER, XOAUTH2 and EXTERNAL may be added.
	Mechanisms []string
	Timeout    time.Duration // of one call; default 5 s
	MaxConns   int           // connections to the service; default 64
	Header     http.Header   // sent with each call, like Authorization
	Clear      bool          // passwords may go over the network in clear
	Client     *http.Client  // default: no proxy, no redirects
}

// MaxHTTPAnswerBytes is the longest answer of the service that is read; a longer one means that it cannot tell.
const MaxHTTPAnswerBytes = 64 << 10

// HTTP is a Store that asks a service with one POST a login. The body is an HTTPQuestion in JSON. The answer is 200 with
//
//	{"ok": true, "user": "alice@example.org"}
//	{"ok": false}
//
// where user is the authorization identity, by default the user asked about. With act_as the service must answer that very user, or the login
// is refused: a service that does not know the field cannot let anybody act as somebody else. Any other answer, and none in time, means
// that the service cannot tell. Any goroutine.
type HTTP struct {
	o      HTTPOptions
	client *http.Client
}

// HTTPQuestion is the body of a call.
type HTTPQuestion struct {
	Mechanism     string `json:"mechanism"`
	User          string `json:"user,omitempty"`   // with EXTERNAL the identity of the verified certificate
	ActAs         string `json:"act_as,omitempty"` // only if it is another than user
	Password      string `json:"password,omitempty"`
	Token         string `json:"token,omitempty"`
	ClientAddress string `json:"client_address,omitempty"`
	ClientPort    uint16 `json:"client_port,omitempty"`
	Helo          string `json:"helo,omitempty"`
	Listener      string `json:"listener,omitempty"`
	Session       string `json:"session,omitempty"`
	TLS           bool   `json:"tls"`
}

// NewHTTP makes the store; it does not call the service.
func NewHTTP(o HTTPOptions) (*HTTP, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("auth: %q is not an http or https URL", o.URL)
	}
	if u.Scheme == "http" && !o.Clear && !isLoopback(u.Hostname()) {
		return nil, fmt.Errorf("auth: passwords would go to %s in clear; use https", u.Host)
	}
	if len(o.Mechanisms) == 0 {
		o.Mechanisms = []string{PLAIN, LOGIN}
	}
	for _, m := range o.Mechanisms {
		if !slices.Contains([]string{PLAIN, LOGIN, EXTERNAL, OAUTHBEARER, XOAUTH2}, m) {
			return nil, fmt.Errorf("auth: an HTTP service cannot check %s", m)
		}
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 64
	}
	client := o.Client
	if client == nil {
		client = &http.Client{
			// No proxy from the environment: it would see the passwords.
			Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: o.Timeout}).DialContext,
				ForceAttemptHTTP2:   true,
				MaxConnsPerHost:     o.MaxConns,
				MaxIdleConnsPerHost: o.MaxConns,
				IdleConnTimeout:     time.Minute,
				TLSHandshakeTimeout: o.Timeout,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &HTTP{o, client}, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// Supports implements Store.
func (h *HTTP) Supports(mechanism string) bool { return slices.Contains(h.o.Mechanisms, mechanism) }

// CheckPassword implements PasswordChecker.
func (h *HTTP) CheckPassword(ctx context.Context, l Login) (string, error) { return h.ask(ctx, l) }

// CheckToken implements TokenChecker.
func (h *HTTP) CheckToken(ctx context.Context, l Login) (string, error) { return h.ask(ctx, l) }

// CheckIdentity implements IdentityChecker.
func (h *HTTP) CheckIdentity(ctx context.Context, l Login) (string, error) { return h.ask(ctx, l) }

// ask never puts what it sent into an error.
func (h *HTTP) ask(ctx context.Context, l Login) (string, error) {
	q := HTTPQuestion{
		Mechanism: l.Mechanism, User: l.User, ActAs: l.ActAs, Password: l.Password, Token: l.Token,
		ClientPort: l.Peer.Addr.Port(), Helo: l.Peer.Helo, Listener: l.Peer.Listener, Session: l.Peer.Session, TLS: l.Peer.TLS != nil || l.Peer.Secured,
	}
	if a := l.Peer.Addr.Addr(); a.IsValid() {
		q.ClientAddress = a.Unmap().String()
	}
	body, err := json.Marshal(q)
	if err != nil {
		return "", fmt.Errorf("auth: HTTP service: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, h.o.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.o.URL, bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("auth: HTTP service: %w", err)
	}
	for k, v := range h.o.Header {
		req.Header[k] = v
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header["X-Idempotency-Key"] = nil // not sent; lets net/http ask again when a kept connection turns out to be closed
	answer, err := h.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("auth: HTTP service: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, MaxHTTPAnswerBytes+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("auth: HTTP service: %w", err)
	case len(text) > MaxHTTPAnswerBytes:
		return "", fmt.Errorf("auth: HTTP service: the answer has more than %d bytes", MaxHTTPAnswerBytes)
	case answer.StatusCode != http.StatusOK:
		return "", fmt.Errorf("auth: HTTP service: %s", answer.Status)
	}
	var a struct {
		OK   *bool  `json:"ok"`
		User string `json:"user"`
	}
	if err := json.Unmarshal(text, &a); err != nil || a.OK == nil {
		return "", errors.New(`auth: HTTP service: the answer is not {"ok": true, "user": ...} or {"ok": false}`)
	}
	if !*a.OK {
		return "", ErrRefused
	}
	return a.User, nil
}
