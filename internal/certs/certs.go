// Package certs holds the certificates of the listeners: it reads them, chooses one for each handshake, takes new ones without a
// restart, and says who a client is by its own certificate.
//
// A Store always serves its newest set. It gives crypto/tls a GetCertificate, and no GetConfigForClient: nothing else of a configuration
// changes while the process runs, so there is nothing to copy for each handshake. (BenchmarkHandshake has that as a twin: 0.6 KiB more, and no
// time that could be seen.) The authorities for client certificates do change, but it is our own VerifyConnection that looks at them.
//
// There is no watcher of files: the caller asks Reload now and then. All methods may be called from any goroutine. The package imports
// none of ours, and leaves it to its caller to log what Reload says.
package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Pair names two PEM files: the certificate with its chain, leaf first, and its private key. They may be the same file.
type Pair struct{ Cert, Key string }

// Options say which certificates there are, and what is asked of clients.
type Options struct {
	Pairs          []Pair // the first serves clients that ask for no name that we have
	MinVersion     string // "1.2" or "1.3"; empty means 1.2
	SessionTickets bool   // whether clients may resume sessions
	ClientCA       string // PEM file with the authorities for client certificates; empty for the system's
	Hostname       string // for a self-made certificate
	// SelfMade makes a certificate in memory when there are no pairs. It is for listeners that only this machine reaches: nobody can
	// verify it.
	SelfMade bool
	Log      *slog.Logger     // warnings about certificates that are not valid now; nil means none
	Now      func() time.Time // nil means time.Now
}

// Error is what is wrong with one file.
type Error struct {
	Pair  int    // index into Options.Pairs; -1 for ClientCA
	Field string // "cert", "key" or "client_ca"
	Path  string
	Err   error
}

func (e *Error) Error() string { return e.Path + ": " + e.Err.Error() }

// Problems gives each *Error in an error of Load or Reload.
func Problems(err error) (all []*Error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range joined.Unwrap() {
			all = append(all, Problems(one)...)
		}
		return all
	}
	if one := (*Error)(nil); errors.As(err, &one) {
		all = append(all, one)
	}
	return all
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Key is the configuration key that names the file.
func (e *Error) Key() string {
	if e.Pair < 0 {
		return "tls." + e.Field
	}
	return "tls.certificates[" + strconv.Itoa(e.Pair) + "]." + e.Field
}

// maxFileBytes is the largest file that is read; the authorities of a whole system have 250 KB.
const maxFileBytes = 4 << 20

// Store has the certificates in force.
type Store struct {
	o          Options
	minVersion uint16
	set        atomic.Pointer[set]

	mu    sync.Mutex // held by Reload
	pairs []*pair
	ca    authorities
}

// pair is one pair of files.
type pair struct {
	tried   digest // what the files had when they were read last, or the error
	trouble error  // what is wrong with that
	serving digest // what the files had that are in force
	cert    *tls.Certificate
}

// authorities is the file of ClientCA.
type authorities struct {
	tried   digest
	trouble error
	serving digest
	pool    *x509.CertPool // nil: the system's
}

type digest [sha256.Size]byte

// Load reads all files. The error joins an *Error for each that can't be used.
func Load(o Options) (*Store, error) {
	s := &Store{o: o}
	if s.o.Log == nil {
		s.o.Log = slog.New(slog.DiscardHandler)
	}
	if s.o.Now == nil {
		s.o.Now = time.Now
	}
	switch o.MinVersion {
	case "", "1.2":
		s.minVersion = tls.VersionTLS12
	case "1.3":
		s.minVersion = tls.VersionTLS13
	default:
		return nil, fmt.Errorf("certs: %q is no TLS version that is served: 1.2 or 1.3", o.MinVersion)
	}
	if len(o.Pairs) == 0 && !o.SelfMade {
		return nil, errors.New("certs: there is no certificate")
	}
	for range o.Pairs {
		s.pairs = append(s.pairs, &pair{})
	}
	if _, err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads the files again. Those that have changed and are good are in force for handshakes that begin from now on; for each that
// is bad the old one stays. changed says that anything is new. The error joins an *Error for each file that is bad, as long as it is; the
// text stays the same, so that a caller can log it once.
//
// A self-made certificate is made anew in the last third of its time.
func (s *Store) Reload() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.o.Pairs {
		changed = s.reloadPair(i, s.pairs[i]) || changed
	}
	changed = s.reloadAuthorities() || changed
	var bad []error
	for _, p := range s.pairs {
		bad = append(bad, p.trouble)
	}
	bad = append(bad, s.ca.trouble)
	if len(s.o.Pairs) == 0 && s.selfMadeIsOld() {
		cert, err := selfMade(s.o.Hostname, s.o.Now())
		if err != nil {
			bad = append(bad, fmt.Errorf("certs: self-made certificate: %w", err))
		} else {
			s.pairs = []*pair{{cert: cert}}
			changed = true
		}
	}
	if changed && s.complete() {
		var list []*tls.Certificate
		for _, p := range s.pairs {
			list = append(list, p.cert)
		}
		s.set.Store(newSet(list, s.ca.pool))
	}
	return changed, errors.Join(bad...)
}

// complete says that there is something for each pair. Only within Load there may not be.
func (s *Store) complete() bool {
	for _, p := range s.pairs {
		if p.cert == nil {
			return false
		}
	}
	return len(s.pairs) > 0
}

// reloadPair says that a new pair is in force.
func (s *Store) reloadPair(i int, p *pair) bool {
	names := s.o.Pairs[i]
	content, sum, trouble := readPair(names, i)
	if sum == p.tried {
		return false
	}
	p.tried, p.trouble = sum, trouble
	if trouble != nil || sum == p.serving { // it may have been bad for a while, and be as it was
		return false
	}
	cert, trouble := content.parse(names, i)
	if trouble != nil {
		p.trouble = trouble
		return false
	}
	p.cert, p.serving = cert, sum
	s.warn(names.Cert, cert.Leaf)
	return true
}

// warn tells about a certificate that verifying clients will not take. It is used all the same: the clock may be the one that is wrong,
// and most senders do not verify.
func (s *Store) warn(path string, leaf *x509.Certificate) {
	switch now := s.o.Now(); {
	case now.After(leaf.NotAfter):
		s.o.Log.Warn("certificate has expired", "file", path, "not_after", leaf.NotAfter)
	case now.Before(leaf.NotBefore):
		s.o.Log.Warn("certificate is not valid yet", "file", path, "not_before", leaf.NotBefore)
	}
}

// pairContent is what a pair's files have.
type pairContent struct{ cert, key []byte }

// readPair gives the files' content. The digest is of the error when there is one, so that it can be told from another. Time stamps are
// not asked: to read a few KiB twice a minute costs less than to be wrong about them.
func readPair(p Pair, i int) (content pairContent, sum digest, err error) {
	if content.cert, err = readFile(p.Cert); err != nil {
		err = &Error{i, "cert", p.Cert, err}
	} else if content.key, err = readFile(p.Key); err != nil {
		err = &Error{i, "key", p.Key, err}
	}
	if err != nil {
		return content, sha256.Sum256([]byte("error: " + err.Error())), err
	}
	certSum, keySum := sha256.Sum256(content.cert), sha256.Sum256(content.key)
	return content, sha256.Sum256(append(certSum[:], keySum[:]...)), nil
}

var errNotPEM = errors.New("no certificate in PEM form in it")

// parse makes a certificate and checks that it belongs to the key.
func (c pairContent) parse(p Pair, i int) (*tls.Certificate, error) {
	if !hasPEM(c.cert, "CERTIFICATE") {
		return nil, &Error{i, "cert", p.Cert, errNotPEM}
	}
	if block := findPEM(c.key, func(b *pem.Block) bool {
		return b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != ""
	}); block != nil {
		return nil, &Error{i, "key", p.Key, errors.New("the key is encrypted, and there is nobody to ask for its password")}
	}
	for rest := c.cert; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return nil, &Error{i, "cert", p.Cert, err}
			}
		}
	}
	cert, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, &Error{i, "key", p.Key, err}
	}
	return &cert, nil
}

// findPEM gives the first block that is wanted, or nil.
func findPEM(data []byte, wanted func(*pem.Block) bool) *pem.Block {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil || wanted(block) {
			return block
		}
	}
}

func hasPEM(data []byte, kind string) bool {
	return findPEM(data, func(b *pem.Block) bool { return b.Type == kind }) != nil
}

// reloadAuthorities says that new ones are in force.
func (s *Store) reloadAuthorities() bool {
	path, a := s.o.ClientCA, &s.ca
	if path == "" {
		return false
	}
	data, err := readFile(path)
	sum := digest(sha256.Sum256(data))
	if err != nil {
		sum = sha256.Sum256([]byte("error: " + err.Error()))
	}
	if sum == a.tried {
		return false
	}
	a.tried, a.trouble = sum, nil
	if err == nil && sum == a.serving {
		return false
	}
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(data) {
		err = errNotPEM
	}
	if err != nil {
		a.trouble = &Error{-1, "client_ca", path, err}
		return false
	}
	a.pool, a.serving = pool, sum
	return true
}

// Expiry is when the first of the certificates in force expires.
func (s *Store) Expiry() time.Time {
	var first time.Time
	for _, c := range s.set.Load().all {
		if first.IsZero() || c.Leaf.NotAfter.Before(first) {
			first = c.Leaf.NotAfter
		}
	}
	return first
}

// readFile reads a file that is a file, and not too large.
func readFile(path string) ([]byte, error) {
	cause := func(err error) error {
		var at *os.PathError
		if errors.As(err, &at) {
			return at.Err
		}
		return err
	}
	info, err := os.Stat(path) // before it is opened: opening a pipe would wait
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	var data bytes.Buffer
	n, err := io.Copy(&data, io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, cause(err)
	}
	if n > maxFileBytes {
		return nil, fmt.Errorf("has more than %d bytes", maxFileBytes)
	}
	return data.Bytes(), nil
}
