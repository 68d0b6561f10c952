// Package policy decides about clients, envelopes and messages. A Validator is asked at the stages of a session and gives a reply, now or
// later. Here are, among others, those that need nothing but facts and a file:
//
//   - Relay: who may send where. It is older than Validator, and the session asks it directly.
//   - Clients and Networks: addresses that are denied or allowed.
//   - Gate: connections and messages, at once and a minute.
//   - Recipients: forward-paths that exist.
//   - Blocking: code that takes its time, on goroutines of its own.
//
// Its sub-packages decide by expressions (rules), by an HTTP server (hook) and by a milter (milter). What runs on an event loop does not
// block and, but for a refusal that names a path, does not allocate. Sockets and goroutines are in Blocking and the sub-packages only.
package policy

import (
	"fmt"
	"strings"

	"github.com/fastedge/fastedge/smtpcodec"
)

// relayingDenied is the answer to a forward-path that is neither ours nor this client's to use; X.7.1 is RFC 3463 §3.8.
var relayingDenied = smtpcodec.Reply{
	Code:     550,
	Enhanced: smtpcodec.EnhancedCode{Class: 5, Subject: 7, Detail: 1},
	Text:     "Relaying denied",
}

// Relay knows the domains that mail is accepted for from anybody. It is immutable; any goroutine may use it.
type Relay struct {
	exact      map[string]struct{} // "example.net"
	subdomains map[string]struct{} // "example.org" for "*.example.org"
}

// maxDomainBytes is RFC 5321 §4.5.3.1.2's limit; a domain beyond it is nobody's.
const maxDomainBytes = 255

// NewRelay takes domains ("example.net") and patterns for all their subdomains at any depth, but not themselves ("*.example.org").
// Case does not matter in ASCII; U-labels and A-labels are different names here.
func NewRelay(accept []string) (*Relay, error) {
	r := &Relay{exact: map[string]struct{}{}, subdomains: map[string]struct{}{}}
	for _, pattern := range accept {
		domain, wild := strings.CutPrefix(lowerASCII(pattern), "*.")
		if domain == "" || len(domain) > maxDomainBytes || strings.ContainsAny(domain, "*[]@ ") || strings.HasPrefix(domain, ".") {
			return nil, fmt.Errorf("policy: %q is neither a domain nor *.domain", pattern)
		}
		if wild {
			r.subdomains[domain] = struct{}{}
		} else {
			r.exact[domain] = struct{}{}
		}
	}
	return r, nil
}

// Accept decides about one forward-path: nil accepts. mayRelay is whether this client may send anywhere.
//
// <postmaster> without a domain is always accepted (RFC 5321 §4.5.1). An address literal is nobody's domain.
func (r *Relay) Accept(path smtpcodec.Path, mayRelay bool) *smtpcodec.Reply {
	if mayRelay || len(path.Domain) == 0 && isPostmaster(path.Local) || r.listed(path.Domain) {
		return nil
	}
	return &relayingDenied
}

// listed looks the domain up, then each domain above it.
func (r *Relay) listed(domain []byte) bool {
	if len(domain) == 0 || len(domain) > maxDomainBytes || domain[0] == '[' {
		return false
	}
	var buf [maxDomainBytes]byte
	lower := buf[:len(domain)]
	for i, c := range domain {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	// A conversion within a map index does not allocate.
	if _, ok := r.exact[string(lower)]; ok {
		return true
	}
	if len(r.subdomains) == 0 {
		return false
	}
	for i, c := range lower {
		if c == '.' && i > 0 {
			if _, ok := r.subdomains[string(lower[i+1:])]; ok {
				return true
			}
		}
	}
	return false
}

// isPostmaster compares without regard to case, as RFC 5321 §4.5.1 wants for this one local part.
func isPostmaster(local []byte) bool {
	const name = "postmaster"
	if len(local) != len(name) {
		return false
	}
	for i, c := range local {
		if c|0x20 != name[i] {
			return false
		}
	}
	return true
}

func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
