package auth

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
)

const (
	// MaxUsersFileBytes is the largest users file that is read.
	MaxUsersFileBytes = 64 << 20
	// MaxUserBytes is the longest user name in the users file.
	MaxUserBytes = 255
	// maxUsersLineBytes is the longest line of it.
	maxUsersLineBytes = 4096
	// maxUsersErrors is how many bad lines one error tells of.
	maxUsersErrors = 10
)

// Argon2id is a password hash (RFC 9106).
type Argon2id struct {
	MemoryKiB, Passes uint32
	Lanes             uint8
	Salt, Hash        []byte
}

// What new hashes cost: 19 MiB and two passes, some tens of milliseconds of one core. As one hash a core runs at a time, all the memory
// that logins can ask for is cores × 19 MiB.
const (
	argonMemoryKiB = 19 * 1024
	argonPasses    = 2
	argonLanes     = 1
	argonHashBytes = 32
)

// NewArgon2id hashes a password, which is prepared first.
func NewArgon2id(password string, salt []byte) (Argon2id, error) {
	prepared, err := prepare(password)
	if err != nil {
		return Argon2id{}, err
	}
	a := Argon2id{MemoryKiB: argonMemoryKiB, Passes: argonPasses, Lanes: argonLanes, Salt: salt}
	a.Hash = argon2.IDKey([]byte(prepared), a.Salt, a.Passes, a.MemoryKiB, a.Lanes, argonHashBytes)
	return a, nil
}

// User is one line of a users file. One with neither SCRAM nor Argon2id can log in by certificate only.
type User struct {
	Name     string
	SCRAM    *SCRAMKeys
	Argon2id *Argon2id
	CRAM     *CRAMKeys
	Disabled bool
}

// AppendTo appends the user's line, without a line end.
func (u *User) AppendTo(dst []byte) []byte {
	b64 := base64.StdEncoding.EncodeToString
	dst = append(dst, u.Name...)
	if k := u.SCRAM; k != nil {
		dst = fmt.Appendf(dst, " scram-sha-256=%d:%s:%s:%s", k.Iterations, b64(k.Salt), b64(k.StoredKey[:]), b64(k.ServerKey[:]))
	}
	if a := u.Argon2id; a != nil {
		raw := base64.RawStdEncoding.EncodeToString
		dst = fmt.Appendf(dst, " argon2id=$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, a.MemoryKiB, a.Passes, a.Lanes, raw(a.Salt), raw(a.Hash))
	}
	if k := u.CRAM; k != nil {
		dst = fmt.Appendf(dst, " cram-md5=%s:%s", b64(k.Inner[:]), b64(k.Outer[:]))
	}
	if u.Disabled {
		dst = append(dst, " disabled"...)
	}
	return dst
}

// CheckUserName says what is wrong with a name for the users file, which is to be prepared already.
func CheckUserName(name string) error {
	prepared, err := prepare(name)
	switch {
	case name == "":
		return errors.New("the user name is empty")
	case len(name) > MaxUserBytes:
		return fmt.Errorf("the user name has %d bytes, more than %d", len(name), MaxUserBytes)
	case err != nil:
		return errors.New("the user name has characters that SASLprep (RFC 4013) does not allow")
	case prepared != name:
		return fmt.Errorf("the user name must be written as SASLprep (RFC 4013) gives it: %q", prepared)
	case strings.ContainsAny(name, " #"):
		return errors.New("the user name has a blank or a #")
	}
	return nil
}

// PrepareUserName gives the name as the users file wants it, or says what is wrong with it.
func PrepareUserName(name string) (string, error) {
	if prepared, err := prepare(name); err == nil {
		name = prepared
	}
	return name, CheckUserName(name)
}

// ParseUser reads one line, as AppendTo writes it.
func ParseUser(line string) (User, error) {
	if len(line) > maxUsersLineBytes {
		return User{}, fmt.Errorf("the line has %d bytes, more than %d", len(line), maxUsersLineBytes)
	}
	fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) == 0 {
		return User{}, errors.New("the line is empty")
	}
	u := User{Name: fields[0]}
	if err := CheckUserName(u.Name); err != nil {
		return User{}, err
	}
	for _, field := range fields[1:] {
		key, value, _ := strings.Cut(field, "=")
		again := false
		var err error
		switch {
		case key == "scram-sha-256":
			again = u.SCRAM != nil
			u.SCRAM, err = parseSCRAMKeys(value)
		case key == "argon2id":
			again = u.Argon2id != nil
			u.Argon2id, err = parseArgon2id(value)
		case key == "cram-md5":
			again = u.CRAM != nil
			u.CRAM, err = parseCRAMKeys(value)
		case field == "disabled":
			again = u.Disabled
			u.Disabled = true
		default:
			// The value is not shown: somebody may have written a password there.
			return User{}, errors.New("there are only scram-sha-256=, argon2id=, cram-md5= and disabled after the user name")
		}
		if err != nil {
			return User{}, fmt.Errorf("%s: %w", key, err)
		}
		if again {
			return User{}, fmt.Errorf("%s stands twice", key)
		}
	}
	return u, nil
}

func parseSCRAMKeys(value string) (*SCRAMKeys, error) {
	parts := strings.Split(value, ":")
	if len(parts) != 4 {
		return nil, errors.New("must be ITERATIONS:SALT:STOREDKEY:SERVERKEY")
	}
	var k SCRAMKeys
	n, err := number(parts[0], MinIterations, MaxIterations)
	if err != nil {
		return nil, fmt.Errorf("iterations: %w", err)
	}
	k.Iterations = n
	if k.Salt, err = decode(base64.StdEncoding, parts[1], 8, 64); err != nil {
		return nil, fmt.Errorf("salt: %w", err)
	}
	for i, dst := range [][]byte{k.StoredKey[:], k.ServerKey[:]} {
		key, err := decode(base64.StdEncoding, parts[2+i], sha256.Size, sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", [...]string{"stored key", "server key"}[i], err)
		}
		copy(dst, key)
	}
	return &k, nil
}

func parseCRAMKeys(value string) (*CRAMKeys, error) {
	inner, outer, ok := strings.Cut(value, ":")
	if !ok {
		return nil, errors.New("must be INNER:OUTER")
	}
	var k CRAMKeys
	for i, dst := range [][]byte{k.Inner[:], k.Outer[:]} {
		state, err := decode(base64.StdEncoding, [...]string{inner, outer}[i], len(dst), len(dst))
		if err != nil {
			return nil, err
		}
		copy(dst, state)
	}
	return &k, nil
}

func parseArgon2id(value string) (*Argon2id, error) {
	parts := strings.Split(value, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return nil, fmt.Errorf("must be $argon2id$v=%d$m=KIB,t=PASSES,p=LANES$SALT$HASH", argon2.Version)
	}
	costs := strings.Split(parts[3], ",")
	// The limits bound what one login can ask of the machine: 256 MiB.
	limits := [...]struct {
		key      string
		low, top int
	}{{"m=", 8, 256 * 1024}, {"t=", 1, 64}, {"p=", 1, 16}}
	if len(costs) != len(limits) {
		return nil, errors.New("costs must be m=KIB,t=PASSES,p=LANES")
	}
	var got [len(limits)]int
	for i, l := range limits {
		text, ok := strings.CutPrefix(costs[i], l.key)
		if !ok {
			return nil, errors.New("costs must be m=KIB,t=PASSES,p=LANES")
		}
		n, err := number(text, l.low, l.top)
		if err != nil {
			return nil, fmt.Errorf("%s %w", l.key, err)
		}
		got[i] = n
	}
	a := Argon2id{MemoryKiB: uint32(got[0]), Passes: uint32(got[1]), Lanes: uint8(got[2])}
	var err error
	if a.Salt, err = decode(base64.RawStdEncoding, parts[4], 8, 64); err != nil {
		return nil, fmt.Errorf("salt: %w", err)
	}
	if a.Hash, err = decode(base64.RawStdEncoding, parts[5], 16, 64); err != nil {
		return nil, fmt.Errorf("hash: %w", err)
	}
	return &a, nil
}

// number takes decimal digits only, without a zero in front.
func number(s string, low, top int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || strconv.Itoa(n) != s || n < low || n > top {
		return 0, fmt.Errorf("must be a number from %d to %d", low, top)
	}
	return n, nil
}

// decode is strict: no line breaks, no stray bits.
func decode(e *base64.Encoding, s string, low, top int) ([]byte, error) {
	b, err := e.Strict().DecodeString(s)
	if err != nil || e.EncodeToString(b) != s {
		return nil, errors.New("is not base64")
	}
	if len(b) < low || len(b) > top {
		if low == top {
			return nil, fmt.Errorf("has %d bytes, not %d", len(b), low)
		}
		return nil, fmt.Errorf("has %d bytes, not %d to %d", len(b), low, top)
	}
	return b, nil
}

// Table is a users file as it was read. It does not change, and may be read from any goroutine.
type Table struct {
	users    map[string]User
	byName   []string // sorted
	withPass []string // of byName, those with SCRAM or Argon2id
	withKeys []string // of byName, those with SCRAM
	anyCRAM  bool
}

// Load reads a users file. The error tells of each bad line, by number.
func Load(path string) (*Table, error) {
	text, _, err := readUsers(path)
	if err != nil {
		return nil, err
	}
	return parseTable(path, text)
}

func readUsers(path string) (text []byte, info os.FileInfo, err error) {
	return readFile("users file", path, MaxUsersFileBytes)
}

// readFile reads a file of so many bytes at most. what says what it is in errors.
func readFile(what, path string, limit int64) (text []byte, info os.FileInfo, err error) {
	// Before it is opened: opening a pipe would wait, and with it every other file that is watched.
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() && !fi.IsDir() {
		return nil, nil, fmt.Errorf("auth: %s: %s is not a file", what, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("auth: %s: %w", what, err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, nil, fmt.Errorf("auth: %s: %w", what, err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("auth: %s %s is not a regular file", what, path)
	}
	text, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, nil, fmt.Errorf("auth: %s: %w", what, err)
	}
	if int64(len(text)) > limit {
		return nil, nil, fmt.Errorf("auth: %s %s has more than %d bytes", what, path, limit)
	}
	return text, info, nil
}

// NewTable makes a table of users, whose names must be good and differ.
func NewTable(users ...User) (*Table, error) {
	var text []byte
	for i := range users {
		text = append(users[i].AppendTo(text), '\n')
	}
	return parseTable("users", text)
}

func parseTable(path string, text []byte) (*Table, error) {
	t := &Table{users: map[string]User{}}
	var errs []error
	bad, number := 0, 0
	for line := range bytes.Lines(text) {
		number++
		u, ok, err := parseLine(line)
		if err == nil && ok {
			if _, twice := t.users[u.Name]; twice {
				err = fmt.Errorf("user %s stands twice", u.Name)
			}
		}
		if err != nil {
			if bad++; bad <= maxUsersErrors {
				errs = append(errs, fmt.Errorf("%s:%d: %w", path, number, err))
			}
			continue
		}
		if ok {
			t.users[u.Name] = u
		}
	}
	if bad > maxUsersErrors {
		errs = append(errs, fmt.Errorf("%s: and %d more bad lines", path, bad-maxUsersErrors))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	t.byName = slices.Sorted(maps.Keys(t.users))
	for _, name := range t.byName {
		u := t.users[name]
		if u.SCRAM != nil {
			t.withKeys = append(t.withKeys, name)
		}
		if u.SCRAM != nil || u.Argon2id != nil {
			t.withPass = append(t.withPass, name)
		}
		t.anyCRAM = t.anyCRAM || u.CRAM != nil
	}
	return t, nil
}

// parseLine is ParseUser for a line of a file; ok is false for an empty one and for a comment.
func parseLine(line []byte) (u User, ok bool, err error) {
	text := strings.Trim(string(line), " \t\r\n")
	if text == "" || text[0] == '#' {
		return User{}, false, nil
	}
	u, err = ParseUser(text)
	return u, err == nil, err
}

// Len is the number of users.
func (t *Table) Len() int { return len(t.users) }

// All are the users, by name.
func (t *Table) All() []User {
	all := make([]User, 0, len(t.byName))
	for _, name := range t.byName {
		all = append(all, t.users[name])
	}
	return all
}

// Users is a Store that has the users of a file. Any goroutine.
type Users struct {
	path  string
	table atomic.Pointer[Table]
	// fakeKey chooses which user a name imitates that is not known.
	fakeKey [32]byte

	mu   sync.Mutex // of Reload
	last reading

	// What passwords are hashed with; tests count the calls.
	pbkdf2 func(password string, k *SCRAMKeys) (SCRAMKeys, error)
	argon2 func(password string, a *Argon2id) []byte
}

// NewUsers is a store with a fixed table.
func NewUsers(t *Table) *Users {
	u := &Users{
		pbkdf2: func(password string, k *SCRAMKeys) (SCRAMKeys, error) {
			return deriveSCRAM(password, k.Salt, k.Iterations)
		},
		argon2: func(password string, a *Argon2id) []byte {
			return argon2.IDKey([]byte(password), a.Salt, a.Passes, a.MemoryKiB, a.Lanes, uint32(len(a.Hash)))
		},
	}
	u.table.Store(t)
	rand.Read(u.fakeKey[:]) // never fails
	return u
}

// OpenUsers loads a users file. Reload looks at it again; nothing does so by itself.
func OpenUsers(path string) (*Users, error) {
	u := NewUsers(nil)
	u.path = path
	if _, err := u.Reload(); err != nil {
		return nil, err
	}
	return u, nil
}

// Table is the one in force.
func (u *Users) Table() *Table { return u.table.Load() }

// reading is how a file looked when it was read last.
type reading struct {
	info os.FileInfo
	at   time.Time
	sum  [sha256.Size]byte
}

// racyFor is how long after a change of the file its time may hide another one: file systems with coarse clocks.
const racyFor = 3 * time.Second

// same says that the file at path surely is what was read, without reading it.
func (r *reading) same(path string) bool {
	info, err := os.Stat(path)
	return err == nil && r.info != nil && os.SameFile(info, r.info) && info.Size() == r.info.Size() && info.Mode() == r.info.Mode() &&
		info.ModTime().Equal(r.info.ModTime()) && r.at.Sub(info.ModTime()) > racyFor
}

// Reload reads the file again if it looks different. A bad file, or none, is an error, and the old users stay in force.
func (u *Users) Reload() (changed bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.path == "" || u.last.same(u.path) {
		return false, nil
	}
	now := time.Now()
	text, info, err := readUsers(u.path)
	if err != nil {
		return false, err
	}
	next := reading{info, now, sha256.Sum256(text)}
	if u.table.Load() != nil && next.sum == u.last.sum {
		u.last = next
		return false, nil
	}
	t, err := parseTable(u.path, text)
	if err != nil {
		return false, err
	}
	u.table.Store(t)
	u.last = next
	return true, nil
}

// Supports is true for what at least one user has keys for. Passwords and certificates are always looked up.
func (u *Users) Supports(mechanism string) bool {
	t := u.table.Load()
	switch mechanism {
	case PLAIN, LOGIN, EXTERNAL:
		return true
	case SCRAMSHA256, SCRAMSHA256Plus:
		return len(t.withKeys) > 0
	case CRAMMD5:
		return t.anyCRAM
	}
	return false
}

// imitated is the user of the list whose kind of keys a name without any shows: always the same for a name, and each user for an equal share
// of names. So a file with old and new lines gives nobody away either. ok is false for an empty list.
func (u *Users) imitated(name string, t *Table, list []string) (User, bool) {
	if len(list) == 0 {
		return User{}, false
	}
	h := hmac.New(sha256.New, u.fakeKey[:])
	h.Write([]byte(name))
	return t.users[list[binary.BigEndian.Uint64(h.Sum(nil))%uint64(len(list))]], true
}

// hashing lets one hash run on each core: more at once would finish none earlier, and argon2 would take its memory each time.
var hashing = make(chan struct{}, runtime.GOMAXPROCS(0))

// CheckPassword costs the same whether the user is known, unknown, disabled or cannot have a password.
func (u *Users) CheckPassword(ctx context.Context, l Login) (string, error) {
	t := u.table.Load()
	name, nameErr := prepare(l.User)
	password, passwordErr := prepare(l.Password)
	if nameErr != nil {
		name = l.User
	}
	if passwordErr != nil {
		password = "\x00" // nobody's
	}
	user, known := t.users[name]
	if user.SCRAM == nil && user.Argon2id == nil {
		known = false
		var some bool
		if user, some = u.imitated(name, t, t.withPass); !some {
			user = User{SCRAM: &SCRAMKeys{Iterations: DefaultIterations, Salt: u.fakeKey[:SaltBytes]}}
		}
	}
	right, err := u.matches(ctx, &user, password)
	switch {
	case err != nil:
		return "", err
	case !right || !known || user.Disabled || nameErr != nil || passwordErr != nil:
		return "", ErrRefused
	}
	return name, nil
}

// matches hashes a prepared password as the user's was.
func (u *Users) matches(ctx context.Context, user *User, password string) (bool, error) {
	select {
	case hashing <- struct{}{}:
		defer func() { <-hashing }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if a := user.Argon2id; a != nil {
		return subtle.ConstantTimeCompare(u.argon2(password, a), a.Hash) == 1, nil
	}
	k, err := u.pbkdf2(password, user.SCRAM)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(k.StoredKey[:], user.SCRAM.StoredKey[:]) == 1, nil
}

// CheckIdentity wants the name in the file. The certificate is the proof, so no key is needed.
func (u *Users) CheckIdentity(_ context.Context, l Login) (string, error) {
	name, err := prepare(l.User)
	if err != nil {
		return "", ErrRefused
	}
	user, known := u.table.Load().users[name]
	if !known || user.Disabled {
		return "", ErrRefused
	}
	return name, nil
}

// SCRAMKeys implements KeyHolder.
func (u *Users) SCRAMKeys(_ context.Context, name string) (SCRAMKeys, bool, error) {
	t := u.table.Load()
	if prepared, err := prepare(name); err == nil {
		name = prepared
	}
	if user := t.users[name]; user.SCRAM != nil && !user.Disabled {
		return *user.SCRAM, true, nil
	}
	user, some := u.imitated(name, t, t.withKeys)
	if !some {
		return SCRAMKeys{}, false, nil
	}
	return SCRAMKeys{Iterations: user.SCRAM.Iterations}, false, nil
}

// CRAMKeys implements KeyHolder.
func (u *Users) CRAMKeys(_ context.Context, name string) (CRAMKeys, bool, error) {
	if prepared, err := prepare(name); err == nil {
		name = prepared
	}
	if user := u.table.Load().users[name]; user.CRAM != nil && !user.Disabled {
		return *user.CRAM, true, nil
	}
	return CRAMKeys{}, false, nil
}
