package auth

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DovecotOptions of a Dovecot store.
type DovecotOptions struct {
	// Address is the path of a socket of Dovecot's auth service, of the kind auth-client, or host:port of an inet_listener of it.
	Address          string
	Service          string        // what Dovecot's rules see as the service; default "smtp"
	MaxPending       int           // exchanges under way, with Dovecot or the client to speak; beyond it Dovecot "cannot tell". Default 4096.
	HandshakeTimeout time.Duration // from dialling to the end of Dovecot's greeting; default 5 s
	Retry            time.Duration // how long after a failure the socket is left alone; default 1 s
}

const (
	// maxDovecotLineBytes is the longest line either side may send; Dovecot reads no longer ones.
	maxDovecotLineBytes = 16384
	// maxDovecotMechanisms bounds the greeting.
	maxDovecotMechanisms = 64
	dovecotWriteTimeout  = 10 * time.Second
)

// Dovecot is a Store that lets Dovecot check, over its authentication client protocol, version 1. All exchanges share one connection, which is
// made when it is first needed and again when it breaks; two goroutines serve it. Passwords (PLAIN, LOGIN) are checked with Dovecot's PLAIN;
// whatever else Dovecot offers and this package knows is relayed response by response, so Dovecot alone knows the keys. Its
// SCRAM-SHA-256-PLUS is left out: Dovecot would have to know our channel. No worker waits for Dovecot, which likes to answer refusals late.
// Any goroutine.
type Dovecot struct {
	o DovecotOptions

	mechanisms atomic.Pointer[[]string] // of the last greeting; nil before the first

	mu       sync.Mutex
	conn     *dovecotConn
	failedAt time.Time
	failure  error
	closed   bool
}

// NewDovecot makes the store and begins to connect. It does not wait: until Dovecot has greeted, only PLAIN and LOGIN are offered.
func NewDovecot(o DovecotOptions) (*Dovecot, error) {
	if o.Address == "" {
		return nil, errors.New("auth: Dovecot's socket is not named")
	}
	if o.Service == "" {
		o.Service = "smtp"
	}
	if o.MaxPending <= 0 {
		o.MaxPending = 4096
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 5 * time.Second
	}
	if o.Retry == 0 {
		o.Retry = time.Second
	}
	d := &Dovecot{o: o}
	_, _ = d.current()
	return d, nil
}

// Connect waits until Dovecot has greeted, or says why it has not.
func (d *Dovecot) Connect(ctx context.Context) error {
	c, err := d.current()
	if err != nil {
		return err
	}
	select {
	case <-c.greeted:
		return c.dead()
	case <-ctx.Done():
		return fmt.Errorf("auth: Dovecot: %w", ctx.Err())
	}
}

// Close ends the connection; exchanges under way cannot be told.
func (d *Dovecot) Close() error {
	d.mu.Lock()
	c := d.conn
	d.closed, d.conn = true, nil
	d.mu.Unlock()
	if c != nil {
		c.fail(errors.New("closed"))
	}
	return nil
}

// Supports implements Store.
func (d *Dovecot) Supports(mechanism string) bool {
	offered := d.mechanisms.Load()
	if mechanism == LOGIN {
		mechanism = PLAIN
	}
	if offered == nil {
		_, _ = d.current()
		return mechanism == PLAIN
	}
	return mechanism != SCRAMSHA256Plus && slices.Contains(*offered, mechanism)
}

// CheckPassword implements PasswordChecker.
func (d *Dovecot) CheckPassword(ctx context.Context, l Login) (user string, err error) {
	type answer struct {
		user string
		err  error
	}
	answers := make(chan answer, 1)
	d.checkPasswordLater(ctx, l, func(user string, err error) { answers <- answer{user, err} })
	select {
	case a := <-answers:
		return a.user, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (d *Dovecot) checkPasswordLater(ctx context.Context, l Login, done func(user string, err error)) {
	e := d.relay(PLAIN, l.Peer)
	e.next(ctx, []byte(l.ActAs+"\x00"+l.User+"\x00"+l.Password), func(_ []byte, over bool, user string, err error) {
		if err == nil && !over {
			e.stop()
			err = errors.New("auth: Dovecot: a challenge instead of an answer to PLAIN")
		}
		done(user, err)
	})
}

func (d *Dovecot) relay(mechanism string, p Peer) relayed {
	return &dovecotExchange{d: d, mechanism: mechanism, peer: p}
}

// dovecotExchange is one exchange that Dovecot carries out.
type dovecotExchange struct {
	d         *Dovecot
	mechanism string
	peer      Peer

	mu   sync.Mutex
	conn *dovecotConn // nil before the first response
	id   uint32
}

func (e *dovecotExchange) next(ctx context.Context, response []byte, done func(challenge []byte, over bool, user string, err error)) {
	e.mu.Lock()
	conn, id := e.conn, e.id
	e.mu.Unlock()
	first := conn == nil
	if first {
		var err error
		if conn, err = e.d.current(); err != nil {
			done(nil, true, "", err)
			return
		}
		if id, err = conn.open(); err != nil {
			done(nil, true, "", err)
			return
		}
		e.mu.Lock()
		e.conn, e.id = conn, id
		e.mu.Unlock()
	}
	var line []byte
	if first {
		line = e.begin(id, response)
	} else {
		line = fmt.Appendf(nil, "CONT\t%d\t%s\n", id, base64.StdEncoding.EncodeToString(response))
	}
	if len(line) > maxDovecotLineBytes {
		e.stop()
		done(nil, true, "", errMalformed)
		return
	}
	forget := context.AfterFunc(ctx, e.stop)
	conn.ask(id, line, func(r dovecotReply) {
		forget()
		done(r.challenge, r.over, r.user, r.err)
	})
}

// begin is the AUTH line. Values are escaped: a client chooses some of them.
func (e *dovecotExchange) begin(id uint32, response []byte) []byte {
	line := fmt.Appendf(nil, "AUTH\t%d\t%s\tservice=%s\tnologin", id, e.mechanism, escapeDovecot(e.d.o.Service))
	if e.peer.TLS != nil || e.peer.Secured || e.peer.Addr.Addr().Unmap().IsLoopback() {
		line = append(line, "\tsecured"...)
	}
	if a := e.peer.Addr; a.IsValid() {
		line = fmt.Appendf(line, "\trip=%s\trport=%d", a.Addr().Unmap().WithZone(""), a.Port())
	}
	if e.peer.Session != "" {
		line = append(line, "\tsession="+escapeDovecot(e.peer.Session)...)
	}
	if e.peer.Certificate != "" {
		line = append(line, "\tvalid-client-cert\tcert_username="+escapeDovecot(e.peer.Certificate)...)
	}
	if response != nil { // must be the last one
		line = append(line, "\tresp="+base64.StdEncoding.EncodeToString(response)...)
	}
	return append(line, '\n')
}

func (e *dovecotExchange) stop() {
	e.mu.Lock()
	conn, id := e.conn, e.id
	e.mu.Unlock()
	if conn != nil {
		conn.drop(id)
	}
}

var dovecotEscapes = strings.NewReplacer("\x00", "\x010", "\x01", "\x011", "\t", "\x01t", "\r", "\x01r", "\n", "\x01n")
var dovecotUnescapes = strings.NewReplacer("\x010", "\x00", "\x011", "\x01", "\x01t", "\t", "\x01r", "\r", "\x01n", "\n", "\x01", "")

func escapeDovecot(s string) string   { return dovecotEscapes.Replace(s) }
func unescapeDovecot(s string) string { return dovecotUnescapes.Replace(s) }

// current is the connection, perhaps one that is not greeted yet, or the recent reason why there is none. It does not block.
func (d *Dovecot) current() (*dovecotConn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, errors.New("auth: Dovecot: closed")
	case d.conn != nil:
		return d.conn, nil
	case d.failure != nil && time.Since(d.failedAt) < d.o.Retry:
		return nil, d.failure
	}
	d.conn = &dovecotConn{
		d:       d,
		greeted: make(chan struct{}),
		broken:  make(chan struct{}),
		out:     make(chan []byte, 2*d.o.MaxPending),
		pending: map[uint32]func(dovecotReply){},
	}
	go d.conn.run()
	return d.conn, nil
}

// dovecotReply is what an exchange hears of Dovecot.
type dovecotReply struct {
	challenge []byte
	over      bool
	user      string
	err       error
}

// dovecotConn is one connection. It dials by itself; what is asked before the greeting waits in out.
type dovecotConn struct {
	d       *Dovecot
	greeted chan struct{} // closed by the greeting or a failure
	broken  chan struct{} // closed by the failure
	out     chan []byte   // lines, each with its LF

	mu      sync.Mutex
	net     net.Conn
	lastID  uint32
	pending map[uint32]func(dovecotReply) // nil while the client, not Dovecot, is to speak
	err     error                         // why it is over
}

// dead is why the connection is over, or nil.
func (c *dovecotConn) dead() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// open gives an id to an exchange. Ids are never used again on a connection.
func (c *dovecotConn) open() (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return 0, c.err
	case len(c.pending) >= c.d.o.MaxPending:
		return 0, fmt.Errorf("auth: Dovecot: %d exchanges are under way", c.d.o.MaxPending)
	case c.lastID == 1<<31-1: // after a year at 60 a second
		err := errors.New("all ids of the connection are used")
		go c.fail(err)
		return 0, fmt.Errorf("auth: Dovecot: %w", err)
	}
	c.lastID++
	c.pending[c.lastID] = nil
	return c.lastID, nil
}

// ask sends a line of an open exchange and keeps whom to tell the reply. reply may be called before it returns.
func (c *dovecotConn) ask(id uint32, line []byte, reply func(dovecotReply)) {
	c.mu.Lock()
	_, known := c.pending[id]
	err := c.err
	switch {
	case err != nil:
	case !known:
		err = errors.New("auth: Dovecot: the exchange is over")
	default:
		select {
		case c.out <- line:
			c.pending[id] = reply
		default:
			delete(c.pending, id)
			err = errors.New("auth: Dovecot does not read")
		}
	}
	c.mu.Unlock()
	if err != nil {
		reply(dovecotReply{over: true, err: err})
	}
}

// drop ends an exchange that nobody waits for any more.
func (c *dovecotConn) drop(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.pending[id]; !known || c.err != nil {
		return
	}
	delete(c.pending, id)
	select {
	case c.out <- fmt.Appendf(nil, "CANCEL\t%d\n", id):
	default: // Dovecot forgets it by its own time limit
	}
}

// fail ends the connection once, and all that wait for it.
func (c *dovecotConn) fail(err error) {
	err = fmt.Errorf("auth: Dovecot: %w", err)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	waiting := c.pending
	c.pending = nil
	if c.net != nil {
		c.net.Close()
	}
	close(c.broken)
	c.mu.Unlock()

	d := c.d
	d.mu.Lock()
	if d.conn == c {
		d.conn = nil
	}
	select {
	case <-c.greeted: // it was well: the next exchange may connect at once
		d.failure = nil
	default:
		d.failedAt, d.failure = time.Now(), err
	}
	d.mu.Unlock()
	for _, reply := range waiting {
		if reply != nil {
			reply(dovecotReply{over: true, err: err})
		}
	}
}

// run dials, reads the greeting, and then replies until the connection breaks.
func (c *dovecotConn) run() {
	err := c.serve()
	c.fail(err)
	select {
	case <-c.greeted:
	default:
		close(c.greeted)
	}
}

func (c *dovecotConn) serve() error {
	network := "tcp"
	if strings.HasPrefix(c.d.o.Address, "/") {
		network = "unix"
	}
	nc, err := net.DialTimeout(network, c.d.o.Address, c.d.o.HandshakeTimeout)
	if err != nil {
		return err
	}
	defer nc.Close()
	c.mu.Lock()
	c.net = nc
	err = c.err
	c.mu.Unlock()
	if err != nil {
		return err // closed meanwhile
	}
	if err := nc.SetDeadline(time.Now().Add(c.d.o.HandshakeTimeout)); err != nil {
		return err
	}
	// Dovecot wants a process id that no other connection has; it does not look whose it is.
	if _, err := fmt.Fprintf(nc, "VERSION\t1\t1\nCPID\t%d\n", 1+rand.IntN(1<<31-2)); err != nil {
		return err
	}
	r := bufio.NewReaderSize(nc, maxDovecotLineBytes)
	offered, err := readGreeting(r)
	if err != nil {
		return err
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	c.d.mechanisms.Store(&offered)
	close(c.greeted)
	go c.write(nc)
	for {
		line, err := readDovecotLine(r)
		if err != nil {
			return err
		}
		if err := c.handle(line); err != nil {
			return err
		}
	}
}

func (c *dovecotConn) write(nc net.Conn) {
	for {
		select {
		case line := <-c.out:
			err := nc.SetWriteDeadline(time.Now().Add(dovecotWriteTimeout))
			if err == nil {
				_, err = nc.Write(line)
			}
			if err != nil {
				c.fail(err)
				return
			}
		case <-c.broken:
			return
		}
	}
}

func readDovecotLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			err = fmt.Errorf("a line of more than %d bytes", maxDovecotLineBytes)
		}
		return "", err
	}
	return string(line[:len(line)-1]), nil
}

// readGreeting reads up to DONE and gives the mechanisms that we know, in our order.
func readGreeting(r *bufio.Reader) ([]string, error) {
	var offered []string
	versioned := false
	for n := 0; n < maxDovecotMechanisms+16; n++ {
		line, err := readDovecotLine(r)
		if err != nil {
			return nil, err
		}
		fields := strings.Split(line, "\t")
		switch fields[0] {
		case "VERSION":
			if len(fields) < 2 || fields[1] != "1" {
				return nil, errors.New("it speaks another version of the protocol than 1")
			}
			versioned = true
		case "MECH":
			if len(fields) > 1 && slices.Contains(mechanisms, strings.ToUpper(fields[1])) {
				offered = append(offered, strings.ToUpper(fields[1]))
			}
		case "DONE":
			if !versioned {
				return nil, errors.New("it names no version of its protocol")
			}
			return offered, nil
		}
	}
	return nil, errors.New("its greeting does not end")
}

// handle takes one reply. Lines of other kinds, and for exchanges that are dropped, mean nothing.
func (c *dovecotConn) handle(line string) error {
	id, r, ok, err := parseDovecotReply(line)
	if err != nil || !ok {
		return err
	}
	c.mu.Lock()
	reply, known := c.pending[id]
	if r.over {
		delete(c.pending, id)
	} else if known {
		c.pending[id] = nil
	}
	c.mu.Unlock()
	if reply != nil {
		reply(r)
	}
	return nil
}

// parseDovecotReply reads OK, FAIL and CONT lines; ok is false for others.
func parseDovecotReply(line string) (id uint32, r dovecotReply, ok bool, err error) {
	fields := strings.Split(line, "\t")
	switch fields[0] {
	case "OK", "FAIL", "CONT":
	default:
		return 0, r, false, nil
	}
	if len(fields) < 2 {
		return 0, r, false, fmt.Errorf("%s without an id", fields[0])
	}
	n, err := strconv.ParseUint(fields[1], 10, 32)
	if err != nil {
		return 0, r, false, fmt.Errorf("%s with a bad id", fields[0])
	}
	if fields[0] == "CONT" {
		text := ""
		if len(fields) > 2 {
			text = fields[2]
		}
		if r.challenge, err = base64.StdEncoding.DecodeString(text); err != nil {
			return 0, r, false, errors.New("CONT with bad base64")
		}
		return uint32(n), r, true, nil
	}
	r.over = true
	temporary, locked, elsewhere := false, false, false
	for _, field := range fields[2:] {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "user":
			r.user = unescapeDovecot(value)
		case "temp":
			temporary = true
		case "code":
			temporary = temporary || value == "temp_fail"
		case "nologin": // the password is right, and the user may not log in
			locked = true
		case "proxy": // another server is to check the password; perhaps nobody has
			elsewhere = true
		}
	}
	switch {
	case fields[0] == "FAIL" && temporary:
		r.err = errors.New("auth: Dovecot: temporary failure")
	case fields[0] == "FAIL", locked:
		r.err = ErrRefused
	case elsewhere:
		r.err = errors.New("auth: Dovecot: it would proxy this user, which does not prove the password")
	case r.user == "":
		r.err = errors.New("auth: Dovecot: OK without a user")
	}
	return uint32(n), r, true, nil
}
