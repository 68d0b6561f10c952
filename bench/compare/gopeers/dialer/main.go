// Dialer does to a mail server what the load generator does not: it counts TLS handshakes that resume nothing, holds connections that
// have shaken hands, and has others stall.
//
//	dialer certificate DIR                       # cert.pem and key.pem: ECDSA P-256, self-signed
//	dialer sessions [flags] ADDRESS N            # so many sessions, and what they took, as one line of JSON
//	dialer hold [flags] ADDRESS N SECONDS        # connect, EHLO, with -tls STARTTLS, a handshake and EHLO; then silence
//	dialer handshake ADDRESS N SECONDS           # connect, EHLO, STARTTLS, half a ClientHello; then silence
//	dialer login ADDRESS N SECONDS               # connect, EHLO, AUTH LOGIN; then silence, or from every second one a byte a second
//	dialer handshake+login ADDRESS N SECONDS     # N of each
//	dialer heap ADDRESS                          # bytes of live heap of a Go program with net/http/pprof
//	dialer dns ADDRESS                           # a DNS server with records of senders, and a domain for which it is silent
//	dialer checks ADDRESS N SECONDS              # PROXY, EHLO, MAIL by a sender of that domain; then what they were answered
//	dialer senders ADDRESS N                     # PROXY, EHLO, MAIL by senders of other domains; how long the replies took
//	dialer posts [flags] ADDRESS N               # so many messages by HTTP, in the form of -form, and what they took, as one line of JSON
//	dialer trickle [flags] ADDRESS N SECONDS     # N clients that post -size bytes by HTTP, -rate bytes a second each
//
// The holding ones print "N held" as soon as they are, connect again when the server closes, and end after SECONDS or by TERM.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const patience = 30 * time.Second // for one reply, or one handshake

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "dialer:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: dialer certificate DIR | sessions [flags] ADDRESS N | hold|handshake|login [flags] ADDRESS N SECONDS | heap|dns ADDRESS | checks ADDRESS N SECONDS | senders ADDRESS N | posts [flags] ADDRESS N | trickle [flags] ADDRESS N SECONDS")

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	fl := flag.NewFlagSet(args[0], flag.ContinueOnError)
	var t talk
	secure := fl.Bool("tls", false, "STARTTLS")
	hybrid := fl.Bool("hybrid", false, "offer the post-quantum hybrid key exchange, too, as Go does by default; otherwise X25519 only")
	connections := fl.Int("connections", 100, "at the same time")
	var l load
	fl.StringVar(&l.form, "form", "plain", "of posts: plain, rfc822, json or batch")
	fl.IntVar(&l.batch, "batch", 100, "messages of one request, with -form batch")
	fl.IntVar(&l.size, "size", 4096, "octets of a message, of posts and trickle")
	rate := fl.Int("rate", 4096, "bytes a second of each client of trickle")
	if err := fl.Parse(args[1:]); err != nil {
		return err
	}
	if *secure {
		t.config = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, ClientSessionCache: &t}
		if !*hybrid {
			t.config.CurvePreferences = []tls.CurveID{tls.X25519}
		}
	}
	t.address = fl.Arg(0)
	n, _ := strconv.Atoi(fl.Arg(1))
	seconds, _ := strconv.Atoi(fl.Arg(2))
	l.address, l.connections = fl.Arg(0), *connections
	switch verb := args[0]; {
	case verb == "posts" && fl.NArg() == 2 && n > 0:
		return l.posts(n)
	case verb == "trickle" && fl.NArg() == 3 && n > 0 && seconds > 0 && *rate >= 4:
		return l.trickle(n, *rate, time.Duration(seconds)*time.Second)
	case verb == "certificate" && fl.NArg() == 1:
		return certificate(fl.Arg(0))
	case verb == "heap" && fl.NArg() == 1:
		return heap(fl.Arg(0))
	case verb == "dns" && fl.NArg() == 1:
		return dns(fl.Arg(0))
	case verb == "checks" && fl.NArg() == 3 && n > 0 && seconds > 0:
		t.proxied = true
		return t.checks(n, seconds)
	case verb == "senders" && fl.NArg() == 2 && n > 0:
		t.proxied = true
		return t.senders(n)
	case verb == "sessions" && fl.NArg() == 2 && n > 0:
		return t.sessions(n, *connections)
	case fl.NArg() == 3 && n > 0 && seconds > 0:
		var states []state
		for name := range strings.SplitSeq(verb, "+") {
			st := map[string]state{"hold": t.hold, "handshake": t.handshake, "login": t.login}[name]
			if st == nil {
				return errUsage
			}
			states = append(states, st)
		}
		return t.keep(n, states, time.Duration(seconds)*time.Second)
	}
	return errUsage
}

// talk is what all connections share. As a tls.ClientSessionCache it counts the session tickets and keeps none.
type talk struct {
	address string
	config  *tls.Config // nil: in clear
	proxied bool        // begin with the PROXY protocol
	next    atomic.Uint32
	tickets atomic.Int64

	mu       sync.Mutex
	errors   int
	first    string // of the errors
	security string // version, cipher and key exchange of a session
}

func (t *talk) Get(string) (*tls.ClientSessionState, bool)    { return nil, false }
func (t *talk) Put(_ string, session *tls.ClientSessionState) { t.tickets.Add(1) }
func (t *talk) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.errors++
	if t.first == "" {
		t.first = err.Error()
	}
}

// client is one connection; it is of one goroutine.
type client struct {
	net.Conn
	r *bufio.Reader
}

// ipBindAddressNoPort is IP_BIND_ADDRESS_NO_PORT: the kernel picks the port when it knows the destination, so ports are not used up.
const ipBindAddressNoPort = 24

// dial connects from one of 250 addresses and reads the greeting.
func (t *talk) dial() (*client, error) {
	i := t.next.Add(1)
	d := net.Dialer{
		Timeout:   patience,
		LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%250))},
		Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, ipBindAddressNoPort, 1)
			})
		},
	}
	conn, err := d.Dial("tcp", t.address)
	if err != nil {
		return nil, err
	}
	c := &client{conn, bufio.NewReaderSize(conn, 1024)}
	_ = c.SetDeadline(time.Now().Add(patience))
	if t.proxied {
		_, _ = io.WriteString(c, proxyHeader(i)) // what comes instead of the greeting tells
	}
	if err := c.expect("220"); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// expect reads one reply, of as many lines as it has.
func (c *client) expect(code string) error {
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", code, err)
		}
		if len(line) < 4 || string(line[:3]) != code {
			return fmt.Errorf("got %.100q, want %s", line, code)
		}
		if line[3] != '-' {
			return nil
		}
	}
}

func (c *client) ask(command, code string) error {
	if _, err := io.WriteString(c, command+"\r\n"); err != nil {
		return err
	}
	return c.expect(code)
}

// greet is everything before mail: EHLO, and with TLS STARTTLS, the handshake and EHLO.
func (t *talk) greet() (*client, error) {
	c, err := t.dial()
	if err != nil {
		return nil, err
	}
	if err = c.ask("EHLO client.test", "250"); err == nil && t.config != nil {
		err = t.secure(c)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (t *talk) secure(c *client) error {
	if err := c.ask("STARTTLS", "220"); err != nil {
		return err
	}
	conn := tls.Client(c.Conn, t.config)
	if err := conn.Handshake(); err != nil {
		return err
	}
	c.Conn = conn
	c.r.Reset(conn)
	if err := c.ask("EHLO client.test", "250"); err != nil {
		return err
	}
	s := conn.ConnectionState()
	key, ok := s.PeerCertificates[0].PublicKey.(*ecdsa.PublicKey)
	if s.DidResume || !ok {
		return fmt.Errorf("resumed: %v, key of the certificate: %T", s.DidResume, s.PeerCertificates[0].PublicKey)
	}
	security := fmt.Sprintf("%s, %s, %s, ECDSA %s", tls.VersionName(s.Version), tls.CipherSuiteName(s.CipherSuite), s.CurveID, key.Curve.Params().Name)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.security == "" {
		t.security = security
	}
	if t.security != security {
		return fmt.Errorf("now %s, before %s", security, t.security)
	}
	return nil
}

// sessions runs n sessions, and ends when the last has ended.
func (t *talk) sessions(n, connections int) error {
	var all sync.WaitGroup
	var taken, done atomic.Int64
	begin := time.Now()
	for range connections {
		all.Go(func() {
			for taken.Add(1) <= int64(n) {
				if err := t.session(); err != nil {
					t.failed(err)
					continue
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	seconds := time.Since(begin).Seconds()
	var used syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	cpu := time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
	out, err := json.Marshal(map[string]any{
		"sessions": done.Load(), "errors": t.errors, "first_error": t.first, "seconds": seconds,
		"per_second": math.Round(float64(done.Load()) / seconds), "gen_cpu_us": cpu * 1e6 / float64(max(done.Load(), 1)),
		"security": t.security, "tickets": t.tickets.Load(),
	})
	fmt.Println(string(out))
	return err
}

func (t *talk) session() error {
	c, err := t.greet()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.ask("QUIT", "221")
}

// state takes connection number i to where it is to stay, calls reached there, and returns when the server has closed it.
type state func(i int, reached func()) error

// keep has n connections in each state, fifty at a time on their way to it, until the time is over.
func (t *talk) keep(n int, states []state, length time.Duration) error {
	var held atomic.Int64
	gate := make(chan struct{}, 50)
	end := time.After(length)
	for _, st := range states {
		for i := range n {
			go func() {
				for {
					gate <- struct{}{}
					there := false
					err := st(i, func() { there = true; held.Add(1); <-gate })
					if there {
						held.Add(-1)
					} else {
						<-gate
					}
					t.failed(err)
					time.Sleep(100 * time.Millisecond)
				}
			}()
		}
	}
	for told := false; ; {
		select {
		case <-end:
			t.mu.Lock()
			defer t.mu.Unlock()
			fmt.Printf("%d held at the end, %d lost before. %s\n", held.Load(), t.errors, t.first)
			return nil
		case <-time.After(20 * time.Millisecond):
			if !told && held.Load() == int64(n*len(states)) {
				told = true
				fmt.Println(held.Load(), "held")
			}
		}
	}
}

// silence waits until the server closes.
func (c *client) silence() error {
	_ = c.SetDeadline(time.Time{})
	_, err := c.r.ReadByte()
	return fmt.Errorf("not held: %w", err)
}

func (t *talk) hold(_ int, reached func()) error {
	c, err := t.greet()
	if err != nil {
		return err
	}
	defer c.Close()
	reached()
	return c.silence()
}

// handshake sends the first half of a ClientHello.
func (t *talk) handshake(_ int, reached func()) error {
	c, err := t.greet()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.ask("STARTTLS", "220"); err != nil {
		return err
	}
	half := halfWriter{Conn: c.Conn}
	_ = tls.Client(&half, &tls.Config{InsecureSkipVerify: true}).Handshake()
	if !half.wrote {
		return errors.New("no ClientHello was written")
	}
	reached()
	return c.silence()
}

var errHalf = errors.New("half is enough")

// halfWriter lets half of the first write through.
type halfWriter struct {
	net.Conn
	wrote bool
}

func (h *halfWriter) Write(p []byte) (int, error) {
	if !h.wrote {
		_, err := h.Conn.Write(p[:len(p)/2])
		h.wrote = err == nil
	}
	return 0, errHalf
}

func (h *halfWriter) Read([]byte) (int, error) { return 0, errHalf }

func (t *talk) login(i int, reached func()) error {
	c, err := t.greet()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.ask("AUTH LOGIN", "334"); err != nil {
		return err
	}
	reached()
	if i%2 == 0 {
		return c.silence()
	}
	_ = c.SetDeadline(time.Time{})
	for {
		time.Sleep(time.Second)
		if _, err := io.WriteString(c, "A"); err != nil {
			return fmt.Errorf("not held: %w", err)
		}
	}
}

func certificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "mx.bench.example"},
		DNSNames:     []string{"mx.bench.example"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(30 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	write := func(name, kind string, bytes []byte) error {
		return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}), 0o600)
	}
	return errors.Join(write("cert.pem", "CERTIFICATE", leaf), write("key.pem", "PRIVATE KEY", secret))
}

// heap asks twice: what sync.Pools hold is free after the second collection.
func heap(address string) error {
	var text []byte
	for range 2 {
		response, err := http.Get("http://" + address + "/debug/pprof/heap?gc=1&debug=1")
		if err != nil {
			return err
		}
		text, err = io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return err
		}
	}
	_, after, ok := strings.Cut(string(text), "# HeapAlloc = ")
	if !ok {
		return errors.New("no HeapAlloc in the answer")
	}
	fmt.Println(strings.Fields(after)[0])
	return nil
}
