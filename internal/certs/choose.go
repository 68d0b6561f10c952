package certs

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
)

// set is what is in force together. It is immutable.
type set struct {
	all []*tls.Certificate // never empty; in the order of the configuration
	// exact and wild have the certificates for a name, and for the names below a domain ("example.net" for "*.example.net"). All lists are
	// in the order in which they are tried: cheapest signature first, then the order of the configuration.
	exact, wild map[string][]*tls.Certificate
	others      []*tls.Certificate // for all other names: those with the names of the first, then the rest
	clientCA    *x509.CertPool     // nil: the system's
}

func newSet(all []*tls.Certificate, clientCA *x509.CertPool) *set {
	s := &set{all: all, exact: map[string][]*tls.Certificate{}, wild: map[string][]*tls.Certificate{}, clientCA: clientCA}
	for _, c := range all {
		for _, name := range namesOf(c) {
			if domain, ok := strings.CutPrefix(name, "*."); ok {
				s.wild[domain] = append(s.wild[domain], c)
			} else {
				s.exact[name] = append(s.exact[name], c)
			}
		}
	}
	for _, list := range s.exact {
		sortByCost(list)
	}
	for _, list := range s.wild {
		sortByCost(list)
	}
	// A pair may be there twice, with an ECDSA and an RSA key.
	first := namesOf(all[0])
	var twins, rest []*tls.Certificate
	for _, c := range all {
		if slices.Equal(namesOf(c), first) {
			twins = append(twins, c)
		} else {
			rest = append(rest, c)
		}
	}
	sortByCost(twins)
	s.others = append(twins, rest...)
	return s
}

// namesOf gives the names that a certificate is for, in lower case and sorted. A certificate without any of today's kind is for the common
// name that it has.
func namesOf(c *tls.Certificate) []string {
	names := c.Leaf.DNSNames
	if len(names) == 0 {
		names = []string{c.Leaf.Subject.CommonName}
	}
	lower := make([]string, len(names))
	for i, name := range names {
		lower[i] = strings.ToLower(strings.TrimSuffix(name, "."))
	}
	slices.Sort(lower)
	return slices.Compact(lower)
}

func sortByCost(list []*tls.Certificate) {
	slices.SortStableFunc(list, func(a, b *tls.Certificate) int { return cmp.Compare(costOf(a), costOf(b)) })
}

// costOf ranks keys by what a signature costs us: with RSA of 2048 bits a handshake takes about a millisecond more than with ECDSA on P-256
// (BenchmarkHandshake).
func costOf(c *tls.Certificate) int {
	switch c.Leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return 0
	case ed25519.PublicKey:
		return 1
	}
	return 2
}

// named gives the certificates for a name, the exact ones before those with a wildcard; nil when there is none.
func (s *set) named(name string) (exact, wild []*tls.Certificate) {
	if name == "" {
		return nil, nil
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	// A wildcard stands for one label (RFC 6125 §6.4.3).
	if _, domain, ok := strings.Cut(name, "."); ok {
		wild = s.wild[domain]
	}
	return s.exact[name], wild
}

// choose gives the certificate for a handshake: the first for the name that the client can verify the signature of. A client that can do
// none of them gets one for another name, if it can do that: senders of mail mostly do not verify names, and encryption to an
// unverified name is better than a failed handshake and mail in clear (RFC 7435 §1).
func (s *set) choose(hello *tls.ClientHelloInfo) *tls.Certificate {
	if len(s.all) == 1 {
		return s.all[0]
	}
	// SupportsCertificate checks the name as well, which has been done, and which would refuse the certificate for all other names.
	anybody := *hello
	anybody.ServerName = ""
	exact, wild := s.named(hello.ServerName)
	var first *tls.Certificate
	for _, list := range [...][]*tls.Certificate{exact, wild, s.others} {
		for _, c := range list {
			if anybody.SupportsCertificate(c) == nil {
				return c
			}
			if first == nil {
				first = c
			}
		}
	}
	return first
}

// suites12 are those of TLS 1.2 with forward secrecy and authenticated encryption. crypto/tls orders them by what the hardware is good at,
// and those of TLS 1.3 are not configurable.
var suites12 = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// Witness may be the connection below a tls.Conn. It is told which certificate a handshake shows, on that handshake's goroutine: crypto/tls
// does not say it afterwards, and channel binding by it needs it (RFC 5929 §4). A resumed session shows none.
type Witness interface{ ServesCertificate(leaf *x509.Certificate) }

// Config is for one listener. It serves the newest certificates for ever and must not be copied per handshake. Each has session ticket
// keys of its own, so that a session from a listener that asks for no certificate can't be resumed at one that does. crypto/tls renews the
// keys every day.
//
// A server of crypto/tls never renegotiates.
func (s *Store) Config(client ClientCertificates) *tls.Config {
	c := &tls.Config{
		MinVersion:   s.minVersion,
		CipherSuites: suites12,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := s.set.Load().choose(hello)
			if conn, ok := hello.Conn.(Witness); ok {
				conn.ServesCertificate(c.Leaf)
			}
			return c, nil
		},
		SessionTicketsDisabled: !s.o.SessionTickets,
		Time:                   s.o.Now,
	}
	s.askClients(c, client)
	return c
}
