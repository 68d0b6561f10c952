package policy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"math/bits"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fastedge/fastedge/smtpcodec"
)

// RecipientMap knows which recipients exist. It is read from a file of lines:
//
//	# a comment
//	user@example.net    this one exists
//	@example.org        everybody there does
//	!gone@example.org   but not this one
//
// A domain without a line is not the map's business: domains.accept alone decides about it. So a map may list the users of some domains
// and leave others to the next hop, and a forgotten domain is not bounced as a whole; HasDomain finds it. In a domain that has a line, who
// is not listed does not exist. A line with "!" is about its one address only.
//
// <postmaster>, and postmaster in each domain that has a line, exist without being listed (RFC 5321 §4.5.1), unless a line with "!" says
// otherwise.
//
// Deviation: RFC 5321 §2.4 says that the case of a local part means something to its host. No mail system in use gives Bob and bob to two
// people, and senders do write either, so both parts are compared without regard to the case of ASCII letters. A quoted local part is the
// same as the one without quotes, where both are legal (§4.1.2).
//
// It is immutable; any goroutine may use it, and a nil one is empty. It needs about 30 bytes for an address of 22: the bytes of all
// lines, one after the other, and a hash table of 32-bit offsets into them, instead of a Go map of strings.
type RecipientMap struct {
	seed       maphash.Seed
	arena      []byte   // [0] is unused; then entries: kind, length, that many bytes
	table      []uint32 // offset of an entry; 0: none. Open addressing, three quarters full
	delimiters string
	delimits   [256]bool // the same, by byte
	lines      int       // that say something
}

// The kinds of an entry. Those of a domain stand under "@domain".
const (
	recipientExists byte = iota
	recipientGone        // "!"
	domainListed         // some lines speak of it
	domainAny            // everybody there exists
)

// MaxRecipientLines is how long a file of recipients may be, and maxRecipientLine is the longest line in bytes: a path, its mark, some
// blanks or a comment.
const (
	MaxRecipientLines = 10_000_000
	maxRecipientLine  = 1024
)

// maxDelimiters is how many characters may set off a subaddress.
const maxDelimiters = 8

// LoadRecipients reads a file of recipients. Each character of delimiters sets off a subaddress: with "+", user+anything@domain is
// user@domain, unless user+anything@domain has a line of its own (RFC 5233 §1). Any wrong line is an error that names it, and so is
// a file that changes while it is read.
func LoadRecipients(path, delimiters string) (*RecipientMap, error) {
	m, _, err := loadRecipients(path, delimiters)
	return m, err
}

func loadRecipients(path, delimiters string) (*RecipientMap, os.FileInfo, error) {
	// Before it is opened: opening a pipe would wait, and with it every other file that is watched.
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() && !fi.IsDir() {
		return nil, nil, fmt.Errorf("policy: recipients: %s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("policy: recipients: %w", err)
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("policy: recipients: %w", err)
	}
	m, err := readRecipients(f, before.Size(), delimiters)
	if err != nil {
		return nil, nil, fmt.Errorf("policy: recipients: %s: %w", path, err)
	}
	if after, err := f.Stat(); err != nil || !sameFile(before, after) {
		return nil, nil, fmt.Errorf("policy: recipients: %s: the file has changed while it was read", path)
	}
	return m, before, nil
}

func sameFile(a, b os.FileInfo) bool {
	return a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && os.SameFile(a, b)
}

// recipientReader is a map in the making.
type recipientReader struct {
	m       *RecipientMap
	offsets []uint32          // of the entries, in the order of the lines
	lines   []uint32          // which line made the entry
	domains map[string]uint32 // offset of the domain's entry
	last    string            // domain of the line before: most files are sorted
}

func readRecipients(r io.Reader, size int64, delimiters string) (*RecipientMap, error) {
	if err := checkDelimiters(delimiters); err != nil {
		return nil, err
	}
	m := &RecipientMap{seed: maphash.MakeSeed(), delimiters: delimiters}
	for _, c := range []byte(delimiters) {
		m.delimits[c] = true
	}
	m.arena = make([]byte, 1, max(min(size, math.MaxUint32), 0)+64)
	in := &recipientReader{m: m, domains: map[string]uint32{}}
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 64<<10), maxRecipientLine)
	n := 0
	for scan.Scan() {
		if n++; n > MaxRecipientLines {
			return nil, fmt.Errorf("more than %d lines", MaxRecipientLines)
		}
		line := scan.Bytes()
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\ufeff")) // some editors begin files with a byte order mark
		}
		if err := in.line(line, uint32(n)); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := scan.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fmt.Errorf("line %d: longer than %d bytes", n+1, maxRecipientLine)
	} else if err != nil {
		return nil, err
	}
	if cap(m.arena)-len(m.arena) > len(m.arena)/8 { // much was comment
		m.arena = slices.Clip(append([]byte(nil), m.arena...))
	}
	return m, in.index()
}

func checkDelimiters(delimiters string) error {
	if len(delimiters) > maxDelimiters {
		return fmt.Errorf("more than %d delimiters", maxDelimiters)
	}
	for _, c := range []byte(delimiters) {
		if c <= ' ' || c > '~' || c == '@' || c == '"' || c == '.' || 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' {
			return fmt.Errorf("%q cannot set off a subaddress", c)
		}
	}
	return nil
}

func (in *recipientReader) line(line []byte, n uint32) error {
	line = bytes.TrimRight(bytes.TrimLeft(line, " \t"), " \t\r")
	if len(line) == 0 || line[0] == '#' {
		return nil
	}
	address, gone := bytes.CutPrefix(line, []byte("!"))
	kind := recipientExists
	if gone {
		kind = recipientGone
	}
	in.m.lines++
	if len(address) > 0 && address[0] == '@' {
		if gone {
			return errors.New(`"!" before a whole domain: remove its lines, or take it out of domains.accept`)
		}
		if _, err := parseRecipient("x" + string(address)); err != nil {
			return fmt.Errorf("%.80q is not @domain", line)
		}
		return in.domain(lowerASCII(string(address)), domainAny, n)
	}
	path, err := parseRecipient(string(address))
	if err != nil {
		return fmt.Errorf("%.80q is neither user@domain nor @domain", line)
	}
	if !gone {
		if err := in.domain(lowerASCII("@"+string(path.Domain)), domainListed, n); err != nil {
			return err
		}
	}
	var buf [smtpcodec.MaxPathBytes]byte
	key, _ := appendKey(buf[:0], path)
	return in.add(kind, key, n)
}

// parseRecipient takes what RCPT would take: nothing else can be asked for.
func parseRecipient(address string) (smtpcodec.Path, error) {
	a, err := smtpcodec.ParseRcpt([]byte("TO:<"+address+">"), 0, true)
	if err != smtpcodec.ErrNone || len(a.Path.Domain) == 0 || string(a.Path.Mailbox) != address {
		return smtpcodec.Path{}, errors.New("no mailbox")
	}
	return a.Path, nil
}

// domain sees to it that the domain, "@" before it, has an entry; domainAny is stronger than domainListed.
func (in *recipientReader) domain(key string, kind byte, n uint32) error {
	if key == in.last && kind == domainListed {
		return nil
	}
	in.last = key
	at, ok := in.domains[key]
	if !ok {
		in.domains[key] = uint32(len(in.m.arena))
		return in.add(kind, []byte(key), n)
	}
	if kind == domainAny {
		in.m.arena[at] = domainAny
	}
	return nil
}

func (in *recipientReader) add(kind byte, key []byte, n uint32) error {
	at := len(in.m.arena)
	if at+2+len(key) > math.MaxUint32 {
		return errors.New("more than 4 GiB of addresses")
	}
	in.m.arena = append(in.m.arena, kind, byte(len(key)))
	in.m.arena = append(in.m.arena, key...)
	in.offsets, in.lines = append(in.offsets, uint32(at)), append(in.lines, n)
	return nil
}

// index makes the hash table. A line that stands twice does no harm; one with and one without "!" is an error, because the order of lines
// means nothing.
func (in *recipientReader) index() error {
	m := in.m
	m.table = make([]uint32, len(in.offsets)*4/3+1)
	for i, at := range in.offsets {
		key := m.key(at)
		slot := m.slot(key)
		for ; m.table[slot] != 0; slot = m.after(slot) {
			other := m.table[slot]
			if !bytes.Equal(m.key(other), key) {
				continue
			}
			if m.arena[other] != m.arena[at] {
				return fmt.Errorf("line %d: %.80q stands in another line, one of them with \"!\"", in.lines[i], key)
			}
			break
		}
		if m.table[slot] == 0 {
			m.table[slot] = at
		}
	}
	return nil
}

func (m *RecipientMap) key(at uint32) []byte {
	n := uint32(m.arena[at+1])
	return m.arena[at+2 : at+2+n]
}

// slot is where the search for a key begins.
func (m *RecipientMap) slot(key []byte) int {
	hi, _ := bits.Mul64(maphash.Bytes(m.seed, key), uint64(len(m.table)))
	return int(hi)
}

func (m *RecipientMap) after(slot int) int {
	if slot++; slot == len(m.table) {
		return 0
	}
	return slot
}

func (m *RecipientMap) find(key []byte) (kind byte, ok bool) {
	for slot := m.slot(key); m.table[slot] != 0; slot = m.after(slot) {
		if at := m.table[slot]; bytes.Equal(m.key(at), key) {
			return m.arena[at], true
		}
	}
	return 0, false
}

// appendKey gives the form in which addresses are compared, and the length of its local part. It is never longer than the path.
func appendKey(dst []byte, path smtpcodec.Path) (key []byte, local int) {
	text := path.Local
	if len(text) >= 2 && text[0] == '"' {
		text = text[1 : len(text)-1]
		for i := 0; i < len(text); i++ {
			if text[i] == '\\' && i+1 < len(text) {
				i++
			}
			dst = append(dst, lowerByte(text[i]))
		}
	} else {
		for _, c := range text {
			dst = append(dst, lowerByte(c))
		}
	}
	local = len(dst)
	dst = append(dst, '@')
	for _, c := range path.Domain {
		dst = append(dst, lowerByte(c))
	}
	return dst, local
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// Exists says whether the map has nothing against the forward-path. It does not allocate.
func (m *RecipientMap) Exists(path smtpcodec.Path) bool {
	if m == nil || m.lines == 0 || len(path.Domain) == 0 || len(path.Local)+1+len(path.Domain) > smtpcodec.MaxPathBytes {
		return true // <postmaster>; no path is longer
	}
	var buf [smtpcodec.MaxPathBytes]byte
	key, local := appendKey(buf[:0], path)
	if kind, ok := m.find(key); ok {
		return kind == recipientExists
	}
	postmaster := string(key[:local]) == "postmaster"
	if m.delimiters != "" {
		// The longest user that is known wins: with "+-", ann-lee+x is ann-lee rather than ann.
		var cuts [maxSubaddressCuts]int
		n := 0
		for i := 1; i < local && n < len(cuts); i++ {
			if m.delimits[key[i]] {
				cuts[n] = i
				n++
			}
		}
		var cut [smtpcodec.MaxPathBytes]byte
		for ; n > 0; n-- {
			user := append(append(cut[:0], key[:cuts[n-1]]...), key[local:]...)
			if kind, ok := m.find(user); ok {
				return kind == recipientExists
			}
			postmaster = postmaster || string(key[:cuts[n-1]]) == "postmaster"
		}
	}
	kind, ok := m.find(key[local:])
	return !ok || kind == domainAny || postmaster
}

// maxSubaddressCuts is how many delimiters of one local part are tried.
const maxSubaddressCuts = 8

// HasDomain says that the domain has a line: unknown users of it are refused. The case of domain does not matter.
func (m *RecipientMap) HasDomain(domain string) bool {
	if m == nil || m.lines == 0 || len(domain) >= smtpcodec.MaxPathBytes {
		return false
	}
	_, ok := m.find([]byte("@" + lowerASCII(domain)))
	return ok
}

// Len is the number of lines that say something.
func (m *RecipientMap) Len() int {
	if m == nil {
		return 0
	}
	return m.lines
}

// Bytes is the memory that the map holds.
func (m *RecipientMap) Bytes() int64 {
	if m == nil {
		return 0
	}
	return int64(cap(m.arena)) + 4*int64(cap(m.table))
}

// Recipients is a Validator that refuses forward-paths that do not exist, at AtRcpt, from everybody: mail of our own users to a colleague
// who does not exist is a mistake, too. Its file may be read again while it works.
type Recipients struct {
	path       string
	delimiters string
	m          atomic.Pointer[RecipientMap]

	mu   sync.Mutex // of Reload
	seen os.FileInfo
}

// NewRecipients reads the file; see LoadRecipients.
func NewRecipients(path, delimiters string) (*Recipients, error) {
	m, seen, err := loadRecipients(path, delimiters)
	if err != nil {
		return nil, err
	}
	r := &Recipients{path: path, delimiters: delimiters, seen: seen}
	r.m.Store(m)
	return r, nil
}

// Map is the map in use.
func (r *Recipients) Map() *RecipientMap { return r.m.Load() }

// Reload reads the file again when its size, time or inode is another one. With an error the old map stays in use, and the next Reload
// tries again. A file in which nothing is left is an error, when the map had lines: somebody's export has gone wrong, and all unknown
// recipients would be accepted. Any goroutine but an event loop's may call it.
func (r *Recipients) Reload() (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now, err := os.Stat(r.path); err == nil && sameFile(r.seen, now) {
		return false, nil
	}
	m, seen, err := loadRecipients(r.path, r.delimiters)
	if err != nil {
		return false, err
	}
	if m.lines == 0 && r.m.Load().lines > 0 {
		return false, fmt.Errorf("policy: recipients: %s: no recipients are left in it", r.path)
	}
	r.seen = seen
	r.m.Store(m)
	return true, nil
}

// Stages is AtRcpt.
func (r *Recipients) Stages() Stages { return On(AtRcpt) }

// Validate refuses with 550 5.1.1 (RFC 3463 §3.2: bad destination mailbox address). Runs on: event loop.
func (r *Recipients) Validate(e *Event) error {
	if !r.m.Load().Exists(e.Path) {
		e.Refuse(550, 1, 1, noSuchRecipient(e.Path.Mailbox))
	}
	return nil
}

// noSuchRecipient names the path, when all of it may stand in a reply.
func noSuchRecipient(mailbox []byte) string {
	const text = "No such recipient here"
	for _, c := range mailbox {
		if c < ' ' || c > '~' {
			return text
		}
	}
	var b strings.Builder
	b.Grow(len(mailbox) + 3 + len(text))
	b.WriteByte('<')
	b.Write(mailbox)
	b.WriteString("> ")
	b.WriteString(text)
	return b.String()
}
