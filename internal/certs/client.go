package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
)

// ClientCertificates says what a listener wants of its clients.
type ClientCertificates uint8

const (
	// Off does not ask for certificates.
	Off ClientCertificates = iota
	// Request asks, and goes on whatever comes: no certificate, an expired one, one of an unknown authority. Facts tells which it was.
	Request
	// Require ends the handshake without a certificate and, when there is Options.ClientCA, with one that those authorities do not vouch
	// for.
	Require
)

// ParseClientCertificates reads "off", "request" and "require".
func ParseClientCertificates(word string) (ClientCertificates, error) {
	switch word {
	case "off":
		return Off, nil
	case "request":
		return Request, nil
	case "require":
		return Require, nil
	}
	return Off, fmt.Errorf("certs: %q is none of off, request, require", word)
}

// askClients sets what concerns client certificates. crypto/tls is told to verify nothing but that the client has the key: it would do so
// with the authorities of the moment in which the configuration was made. Nor are authorities named in the request: clients whose
// certificate comes from another one would then not show it at all.
func (s *Store) askClients(c *tls.Config, client ClientCertificates) {
	switch client {
	case Request:
		c.ClientAuth = tls.RequestClientCert
	case Require:
		c.ClientAuth = tls.RequireAnyClientCert
		if s.o.ClientCA != "" {
			c.VerifyConnection = func(cs tls.ConnectionState) error { return s.verify(cs) } // resumed sessions too
		}
	}
}

// verify says why the authorities do not vouch for a client. A chain may cost up to 100 checks of signatures.
func (s *Store) verify(cs tls.ConnectionState) error {
	o := x509.VerifyOptions{
		Roots:         s.set.Load().clientCA,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   s.o.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range cs.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := cs.PeerCertificates[0].Verify(o)
	return err
}

// Facts is what is known after a handshake. It is immutable and holds on to nothing of the connection.
type Facts struct {
	Version    string  // "TLS1.3"
	Cipher     string  // "TLS_AES_128_GCM_SHA256"
	ServerName string  // that the client asked for; empty when it did not
	Client     *Client // nil when it gave no certificate
}

// Client is what a client's certificate says. Everything but Fingerprint is the client's own claim unless Verified, and may have any bytes
// in it.
type Client struct {
	Verified    bool   // by Options.ClientCA or the system's authorities, for client authentication, and valid now
	CommonName  string // empty when it has more than maxNameBytes
	Subject     string // RFC 2253; empty when it has more than maxSubjectBytes
	Names       []string
	Fingerprint string // SHA-256 of the certificate, lower-case hex
}

// What a certificate says is kept as long as the session. What is too long is left out: a cut name would be somebody else's.
const (
	maxNames        = 32   // DNS names and mail addresses of the subjectAltName that are told
	maxNameBytes    = 320  // a mail address has 64 + 1 + 255 at most (RFC 5321 §4.5.3.1)
	maxSubjectBytes = 1024 // all parts of the subject
)

// Facts reads what a finished handshake tells. With a client certificate it verifies signatures, a few hundred microseconds: it belongs on the
// handshake's goroutine, not on an event loop.
func (s *Store) Facts(cs tls.ConnectionState) Facts {
	f := Facts{
		Version:    strings.ReplaceAll(tls.VersionName(cs.Version), " ", ""),
		Cipher:     tls.CipherSuiteName(cs.CipherSuite),
		ServerName: strings.Clone(cs.ServerName),
	}
	if len(cs.PeerCertificates) == 0 {
		return f
	}
	leaf := cs.PeerCertificates[0]
	sum := sha256.Sum256(leaf.Raw)
	c := &Client{Verified: s.verify(cs) == nil, Fingerprint: hex.EncodeToString(sum[:])}
	if name := leaf.Subject.CommonName; len(name) <= maxNameBytes {
		c.CommonName = strings.Clone(name)
	}
	if len(leaf.RawSubject) <= maxSubjectBytes {
		if subject := leaf.Subject.String(); len(subject) <= maxSubjectBytes {
			c.Subject = subject
		}
	}
	for _, list := range [...][]string{leaf.DNSNames, leaf.EmailAddresses} {
		for _, name := range list {
			if len(name) <= maxNameBytes && len(c.Names) < maxNames {
				c.Names = append(c.Names, strings.Clone(name))
			}
		}
	}
	f.Client = c
	return f
}
