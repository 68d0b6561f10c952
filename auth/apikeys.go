package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// An API key is a word for programs, which show it with each request over HTTP (RFC 6750 §2.1):
//
//	fe_IIIIIIII_SSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSCC
//
// I are the 8 characters of the id, which is no secret and stands in logs; S the 32 of the secret, 190 random bits; C a checksum, by which a key
// that was cut off or mistyped is told from one that is not known. All are letters and digits.
const (
	keyPrefix   = "fe_"
	idChars     = 8
	secretChars = 32
	sumChars    = 2
	secretAt    = len(keyPrefix) + idChars + 1
	keyChars    = secretAt + secretChars + sumChars
)

const (
	// KeyIDBytes is the length of Key.ID.
	KeyIDBytes = idChars
	// MaxKeysFileBytes is the largest keys file that is read; it has room for some 50,000 keys.
	MaxKeysFileBytes = 16 << 20
	// MaxKeyRate is the most messages an hour that a key can be bound to; a key without such a bound has none.
	MaxKeyRate = 1_000_000_000
	// MaxKeyDomains is how many domains a key can be bound to.
	MaxKeyDomains = 100
	// maxKeysLineBytes is the longest line of a keys file: MaxKeyDomains of the usual length, or fewer long ones.
	maxKeysLineBytes = 16384
)

// Errors of Keys.Check.
var (
	ErrUnknownKey = errors.New("auth: unknown API key")
	ErrKeyExpired = errors.New("auth: the API key has expired")
	// ErrMalformedKey is for what is no key of ours, or is not all of it; it is also ErrUnknownKey.
	ErrMalformedKey = fmt.Errorf("%w: that is none, or not all of it", ErrUnknownKey)
)

// Key is one line of a keys file. Who holds one must not change it.
type Key struct {
	ID      string   // 8 letters and digits; not a secret
	Name    string   // whose key it is; as a user's name, and several keys may have the same
	Senders []string // domains it may send as, as PrepareDomain gives them; empty: any
	// Rate is how many messages an hour may be sent with the key; 0: as many as one likes.
	Rate    int
	Created time.Time // in seconds, UTC; zero: not known
	Expires time.Time // the first moment at which it is not good any more; zero: never

	// hash is of the whole key as text. A fast one is right here: nobody can try 2^190 secrets, as one could try a person's passwords,
	// so a slow one would cost us time on each request and a thief nothing. Unsalted: no two keys are alike.
	hash [sha256.Size]byte
	used *rate // shared by all tables that have the id; nil without Rate
}

// NewKey makes a key and the text that is to be given to its owner: it can't be found out later. The caller fills in the rest of the Key.
func NewKey(name string) (k Key, text string) {
	b := make([]byte, 0, keyChars)
	b = append(b, keyPrefix...)
	b = appendRandom(b, idChars)
	b = append(b, '_')
	b = appendRandom(b, secretChars)
	b = appendSum(b)
	return Key{ID: string(b[len(keyPrefix):][:idChars]), Name: name, hash: sha256.Sum256(b)}, string(b)
}

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// appendRandom appends n characters, each as likely as any other.
func appendRandom(dst []byte, n int) []byte {
	var random [64]byte
	for {
		rand.Read(random[:]) // never fails
		for _, r := range random {
			if n == 0 {
				return dst
			}
			if r < 4*62 { // the other eight would make some characters likelier
				dst = append(dst, base62[r%62])
				n--
			}
		}
	}
}

// appendSum appends the checksum of what there is.
func appendSum(dst []byte) []byte {
	sum := crc32.ChecksumIEEE(dst) % (62 * 62)
	return append(dst, base62[sum/62], base62[sum%62])
}

// isKeyText says that a text looks like a key, and is all of it.
func isKeyText(b []byte) bool {
	if len(b) != keyChars || string(b[:len(keyPrefix)]) != keyPrefix || b[secretAt-1] != '_' {
		return false
	}
	for _, part := range [...][]byte{b[len(keyPrefix) : secretAt-1], b[secretAt:]} {
		for _, c := range part {
			if !isAlphanumeric(c) {
				return false
			}
		}
	}
	sum := crc32.ChecksumIEEE(b[:keyChars-sumChars]) % (62 * 62)
	return b[keyChars-2] == base62[sum/62] && b[keyChars-1] == base62[sum%62]
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// keyID is a look-up key that needs no allocation.
type keyID [idChars]byte

// MaySend says whether messages with this reverse-path, without angle brackets, may be sent with the key. A key that is bound to domains wants
// one of them after the last @, whatever the case of ASCII letters; "*.example.org" is every subdomain, but not example.org itself. The null
// reverse-path is no domain, so such a key may not have it: bounces of others' mail are not what its owner sends.
func (k *Key) MaySend(reversePath []byte) bool {
	if len(k.Senders) == 0 {
		return true
	}
	at := bytes.LastIndexByte(reversePath, '@')
	if at < 0 {
		return false
	}
	domain := reversePath[at+1:]
	for _, s := range k.Senders {
		tail, sub := strings.CutPrefix(s, "*")
		switch {
		case !sub && foldEqual(domain, s):
			return true
		case sub && len(domain) > len(tail) && foldEqual(domain[len(domain)-len(tail):], tail):
			return true
		}
	}
	return false
}

// foldEqual compares, whatever the case of ASCII letters. lower has no capitals.
func foldEqual(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// PrepareDomain gives the domain of Key.Senders as the file wants it, or says what is wrong with it. U-labels and A-labels of a domain are not the same to
// us: a sender of both needs both.
func PrepareDomain(s string) (string, error) {
	lower := []byte(s)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] = c | 0x20
		}
	}
	s = string(lower)
	name := strings.TrimPrefix(s, "*.")
	bad := fmt.Errorf(`%q is not a domain: write one like "example.org", or "*.example.org" for its subdomains`, s)
	if name == "" || len(name) > 253 {
		return "", bad
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", bad
		}
		for _, c := range []byte(label) {
			if !isAlphanumeric(c) && c != '-' && c != '_' && c < 0x80 {
				return "", bad
			}
		}
	}
	if prepared, err := prepare(name); err != nil || prepared != name {
		return "", bad
	}
	return s, nil
}

// Expired says that the key is not good any more.
func (k *Key) Expired(now time.Time) bool { return !k.Expires.IsZero() && !now.Before(k.Expires) }

// AppendTo appends the key's line, without a line end.
func (k *Key) AppendTo(dst []byte) []byte {
	dst = fmt.Appendf(dst, "%s %s sha256=%s", k.ID, k.Name, base64.StdEncoding.EncodeToString(k.hash[:]))
	if !k.Created.IsZero() {
		dst = k.Created.UTC().AppendFormat(append(dst, " created="...), time.RFC3339)
	}
	if !k.Expires.IsZero() {
		dst = k.Expires.UTC().AppendFormat(append(dst, " expires="...), time.RFC3339)
	}
	if k.Rate > 0 {
		dst = fmt.Appendf(dst, " rate=%d", k.Rate)
	}
	if len(k.Senders) > 0 {
		dst = fmt.Appendf(dst, " senders=%s", strings.Join(k.Senders, ","))
	}
	return dst
}

// ParseKey reads one line, as AppendTo writes it.
func ParseKey(line string) (Key, error) {
	if len(line) > maxKeysLineBytes {
		return Key{}, fmt.Errorf("the line has %d bytes, more than %d", len(line), maxKeysLineBytes)
	}
	fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) < 3 {
		return Key{}, errors.New("a line has an id, a name and sha256=HASH")
	}
	k := Key{ID: fields[0], Name: fields[1]}
	if len(k.ID) != idChars || strings.ContainsFunc(k.ID, func(r rune) bool { return r > 'z' || !isAlphanumeric(byte(r)) }) {
		// It is not shown: somebody may have written the whole key there.
		return Key{}, fmt.Errorf("the id must have %d letters and digits", idChars)
	}
	if err := CheckUserName(k.Name); err != nil {
		return Key{}, errors.New(strings.Replace(err.Error(), "the user name", "the name", 1))
	}
	seen := map[string]bool{}
	for _, field := range fields[2:] {
		word, value, _ := strings.Cut(field, "=")
		var err error
		switch word {
		case "sha256":
			var sum []byte
			if sum, err = decode(base64.StdEncoding, value, sha256.Size, sha256.Size); err == nil {
				k.hash = [sha256.Size]byte(sum)
			}
		case "created":
			k.Created, err = parseKeyTime(value)
		case "expires":
			k.Expires, err = parseKeyTime(value)
		case "rate":
			k.Rate, err = number(value, 1, MaxKeyRate)
		case "senders":
			k.Senders, err = parseDomains(value)
		default:
			// The word is not shown: it may be part of a key.
			return Key{}, errors.New("there are only sha256=, created=, expires=, rate= and senders= after the name")
		}
		if err != nil {
			return Key{}, fmt.Errorf("%s: %w", word, err)
		}
		if seen[word] {
			return Key{}, fmt.Errorf("%s stands twice", word)
		}
		seen[word] = true
	}
	if !seen["sha256"] {
		return Key{}, errors.New("sha256= is missing")
	}
	return k, nil
}

// parseKeyTime wants the one spelling that AppendTo has.
func parseKeyTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.UTC().Format(time.RFC3339) != s || t.IsZero() {
		return time.Time{}, errors.New("must be a time like 2026-01-31T12:00:00Z")
	}
	return t.UTC(), nil
}

func parseDomains(s string) ([]string, error) {
	list := strings.Split(s, ",")
	if len(list) > MaxKeyDomains {
		return nil, fmt.Errorf("there are more than %d domains", MaxKeyDomains)
	}
	for i, d := range list {
		prepared, err := PrepareDomain(d)
		if err != nil {
			return nil, err
		}
		if slices.Contains(list[:i], prepared) {
			return nil, fmt.Errorf("%s stands twice", prepared)
		}
		list[i] = prepared
	}
	return list, nil
}

// parseKeyLine is ParseKey for a line of a file; ok is false for an empty one and for a comment.
func parseKeyLine(line []byte) (k Key, ok bool, err error) {
	text := strings.Trim(string(line), " \t\r\n")
	if text == "" || text[0] == '#' {
		return Key{}, false, nil
	}
	k, err = ParseKey(text)
	return k, err == nil, err
}

// keyTable is a keys file as it was read. It does not change.
type keyTable struct {
	byID map[keyID]*Key
	all  []*Key // as in the file
}

func parseKeys(path string, text []byte) (*keyTable, error) {
	t := &keyTable{byID: map[keyID]*Key{}}
	var errs []error
	bad, number := 0, 0
	for line := range bytes.Lines(text) {
		number++
		k, ok, err := parseKeyLine(line)
		if err == nil && ok {
			if _, twice := t.byID[keyID([]byte(k.ID))]; twice {
				err = fmt.Errorf("key %s stands twice", k.ID)
			}
		}
		if err != nil {
			if bad++; bad <= maxUsersErrors {
				errs = append(errs, fmt.Errorf("%s:%d: %w", path, number, err))
			}
			continue
		}
		if ok {
			if k.Rate > 0 {
				k.used = &rate{}
			}
			t.byID[keyID([]byte(k.ID))] = &k
			t.all = append(t.all, &k)
		}
	}
	if bad > maxUsersErrors {
		errs = append(errs, fmt.Errorf("%s: and %d more bad lines", path, bad-maxUsersErrors))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return t, nil
}

// Keys are the API keys of a file. Any goroutine; only OpenKeys and Reload touch the file.
type Keys struct {
	path  string
	table atomic.Pointer[keyTable]

	mu   sync.Mutex // of Reload
	last reading
}

// OpenKeys loads a keys file. Reload looks at it again; nothing does so by itself.
func OpenKeys(file string) (*Keys, error) {
	k := &Keys{path: file}
	if _, err := k.Reload(); err != nil {
		return nil, err
	}
	return k, nil
}

// readKeys reads a keys file that nobody but its owner can change, or others read.
func readKeys(path string) ([]byte, os.FileInfo, error) {
	text, info, err := readFile("keys file", path, MaxKeysFileBytes)
	if err != nil {
		return nil, nil, err
	}
	// Hashes of random keys tell a reader next to nothing, but whoever writes gives himself a key. A group may read: ours may differ from
	// the owner's.
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return nil, nil, fmt.Errorf("auth: keys file: %s has mode %04o, and others than its owner may change or read it: chmod 600 it", path, mode)
	}
	return text, info, nil
}

// Reload reads the file again if it looks different. A bad file, or none, is an error, and the old keys stay in force. What a key has used of
// its rate counts on.
func (k *Keys) Reload() (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last.same(k.path) {
		return false, nil
	}
	now := time.Now()
	text, info, err := readKeys(k.path)
	if err != nil {
		return false, err
	}
	next, old := reading{info, now, sha256.Sum256(text)}, k.table.Load()
	if old != nil && next.sum == k.last.sum {
		k.last = next
		return false, nil
	}
	t, err := parseKeys(k.path, text)
	if err != nil {
		return false, err
	}
	if old != nil {
		for id, one := range t.byID {
			if was := old.byID[id]; was != nil && was.used != nil && one.used != nil {
				one.used = was.used
			}
		}
	}
	k.table.Store(t)
	k.last = next
	return true, nil
}

// Len is the number of keys, expired ones too.
func (k *Keys) Len() int { return len(k.table.Load().all) }

// All are the keys in the order of the file.
func (k *Keys) All() []*Key { return slices.Clone(k.table.Load().all) }

// Check finds the key that a client shows. It takes no time to speak of and allocates nothing, and the time does not depend on how much of a
// secret is right.
func (k *Keys) Check(token []byte, now time.Time) (*Key, error) {
	if !isKeyText(token) {
		return nil, ErrMalformedKey
	}
	sum := sha256.Sum256(token)
	key := k.table.Load().byID[keyID(token[len(keyPrefix):][:idChars])]
	switch {
	case key == nil || subtle.ConstantTimeCompare(sum[:], key.hash[:]) != 1:
		return nil, ErrUnknownKey
	case key.Expired(now):
		return nil, ErrKeyExpired
	}
	return key, nil
}

// Never is what Take returns when n messages are more than the key's rate ever allows at once.
const Never = time.Duration(math.MaxInt64)

// Take counts n messages against the key's rate. It returns 0 when they may be sent; otherwise it counts nothing and returns how long to wait until
// they may, or Never. A rate is a store that holds one hour's messages and fills up evenly: who has been silent for an hour may send all at once. Any goroutine;
// it allocates nothing.
func (k *Keys) Take(key *Key, n int, now time.Time) (wait time.Duration) {
	if key.used == nil || n <= 0 {
		return 0
	}
	return key.used.take(n, key.Rate, now)
}

// rate is what a key has used, as the time at which it will all be paid back, in nanoseconds since 1970. One number, so that it needs no lock.
type rate struct{ paid atomic.Int64 }

// take is the generic cell rate algorithm: a message costs an hour divided by perHour, and up to an hour may be owed.
func (r *rate) take(n, perHour int, now time.Time) (wait time.Duration) {
	if n > perHour {
		return Never
	}
	cost := int64(time.Hour) / int64(perHour) * int64(n)
	at := now.UnixNano()
	for {
		old := r.paid.Load()
		// Beyond an hour ahead: the clock was set back, or the rate lowered. Nobody owes more than an hour.
		from := min(max(old, at), at+int64(time.Hour))
		owed := from + cost - at
		if owed > int64(time.Hour) {
			return time.Duration(owed - int64(time.Hour))
		}
		if r.paid.CompareAndSwap(old, from+cost) {
			return 0
		}
	}
}

// KeysFile is a keys file in the hands of UpdateKeys: its lines as they stand, comments too.
type KeysFile struct {
	lines [][]byte // with their line ends
}

// Add appends a key. It fails for an id that there is already.
func (f *KeysFile) Add(k Key) error {
	if f.find(k.ID) >= 0 {
		return fmt.Errorf("auth: there is a key %s already", k.ID)
	}
	if n := len(f.lines); n > 0 && !bytes.HasSuffix(f.lines[n-1], []byte("\n")) {
		f.lines[n-1] = append(f.lines[n-1], '\n')
	}
	f.lines = append(f.lines, append(k.AppendTo(nil), '\n'))
	return nil
}

// Remove takes a key out, and reports whether there was one.
func (f *KeysFile) Remove(id string) bool {
	i := f.find(id)
	if i < 0 {
		return false
	}
	f.lines = slices.Delete(f.lines, i, i+1)
	return true
}

func (f *KeysFile) find(id string) int {
	return slices.IndexFunc(f.lines, func(line []byte) bool {
		k, ok, err := parseKeyLine(line)
		return err == nil && ok && k.ID == id
	})
}

// UpdateKeys changes a keys file as Update changes a users file: as a whole or not at all, one writer after another, mode 0600. With
// create, a file that is missing is made.
func UpdateKeys(path string, create bool, change func(f *KeysFile) error) error {
	return updateFile("keys file", path, create, func(path string) error {
		text, info, err := readKeys(path)
		if err != nil {
			return err
		}
		if _, err := parseKeys(path, text); err != nil {
			return err
		}
		var f KeysFile
		for line := range bytes.Lines(text) {
			f.lines = append(f.lines, bytes.Clone(line))
		}
		if err := change(&f); err != nil {
			return err
		}
		changed := bytes.Join(f.lines, nil)
		if _, err := parseKeys(path, changed); err != nil {
			return fmt.Errorf("auth: the change would spoil the keys file: %w", err)
		}
		if len(changed) > MaxKeysFileBytes {
			return fmt.Errorf("auth: the keys file would have more than %d bytes", MaxKeysFileBytes)
		}
		if err := replace(path, changed, info); err != nil {
			return fmt.Errorf("auth: keys file: %w", err)
		}
		return nil
	})
}
