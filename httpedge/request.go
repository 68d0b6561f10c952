package httpedge

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/bits"
	"net/netip"
	"strconv"
	"sync"
	"unicode/utf8"
	"unsafe"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Bounds of members of a JSON body, in bytes of their value unless it says otherwise; MaxAddressBytes is that of an address.
const (
	MaxHeloBytes     = 255     // helo and client.helo: RFC 5321 §4.5.3.1.2
	MaxMetadataBytes = 4 << 10 // without blanks
	MaxMetadataDepth = 16      // arrays and objects in each other, the outermost counted
	maxORcptBytes    = 500     // RFC 3461 §4.2, encoded
	maxEnvIDBytes    = 100     // RFC 3461 §4.4, encoded
	maxMemberBytes   = 32      // of a member's name; no name that we know is longer
	maxKeptArena     = 8 << 10 // of a message that is used again: no more than what is free of charge, see charge.go
	maxKeptRcpts     = 64      // the same
)

// message is what a JSON body of POST /v1/messages, or a line of a batch, says. Its slices live in its arena until the next
// decodeMessage into it.
type message struct {
	MailFrom   []byte     // empty for <>
	Rcpts      []rcpt     // may be empty: that is for the caller to refuse
	Helo       []byte     // what X-Ehlo says; empty when not given
	Client     netip.Addr // the client that the mail came from, for SPF and rules; invalid when not given
	ClientHelo []byte     // its HELO name
	SMTPUTF8   bool
	RequireTLS bool
	Ret        envelope.Ret
	EnvID      []byte // in xtext, as after ENVID=
	Metadata   []byte // a JSON object without blanks; empty when not given
	Key        []byte // idempotency_key, empty when not given
	RawBytes   int64  // how many bytes of message data went to the sink

	notify envelope.Notify // for recipients without one of their own
	arena  []byte
	charge charge // for the recipients
}

// rcpt is one recipient of a message.
type rcpt struct {
	Address []byte
	ORcpt   []byte          // as after ORCPT=, empty when not given
	Notify  envelope.Notify // its own, or the message's; zero when neither was given
}

// reset empties m, and lets go of memory that only an unusual message has needed.
func (m *message) reset() {
	m.charge.release()
	rcpts, arena := m.Rcpts[:0], m.arena[:0]
	if cap(rcpts) > maxKeptRcpts {
		rcpts = nil
	}
	if cap(arena) > maxKeptArena {
		arena = nil
	}
	*m = message{Rcpts: rcpts, arena: arena, charge: m.charge}
}

// limits bound what decodeMessage takes. The size of the whole JSON text is for the reader to bound.
type limits struct {
	MaxMessageBytes int64 // of message data, decoded
	MaxRecipients   int
	Key             bool // idempotency_key is a known member: in lines of a batch
}

// requestError is a fault of the request's body: what is wrong, and where.
type requestError struct {
	Reason  string // a key of problemKinds
	Text    string // for people; may hold some of the client's own words
	Pointer []byte // JSON pointer (RFC 6901); empty for the whole
}

func (e *requestError) Error() string {
	if len(e.Pointer) == 0 {
		return "httpedge: request: " + e.Text
	}
	return "httpedge: request: " + string(e.Pointer) + ": " + e.Text
}

// decodeMessage reads one JSON object up to the end of r into m. Its members come in any order, so message data is given to sink in
// pieces while m is still being filled, decoded, borrowed until sink returns; the caller keeps it, and throws it away after an error.
// A body of any size needs one buffer of decoderBytes.
//
// It is strict (RFC 8259, and the I-JSON of RFC 7493 §2): a member that it does not know, or that comes twice, is an error, and so are
// bytes that are not UTF-8 and half surrogate pairs. The error is a *requestError, what r or sink has returned, or errMemory when m's budget
// has no room for the recipients.
func decodeMessage(r io.Reader, limit limits, m *message, sink func(p []byte) error) error {
	d := decoders.Get().(*decoder)
	m.reset()
	d.src, d.m, d.limit, d.sink = r, m, limit, sink
	err := d.message()
	*d = decoder{path: d.path[:0], room: d.room}
	decoders.Put(d)
	return err
}

// decoderBytes is what a decoder reads at a time. Message data reaches the sink in pieces of up to that size.
const decoderBytes = 16 << 10

var decoders = sync.Pool{New: func() any { return &decoder{room: new(decoderRoom)} }}

// decoderRoom is the memory of a decoder: what was read, and what was decoded from base64.
type decoderRoom struct {
	in    [decoderBytes]byte
	plain [decoderBytes]byte
}

// decoder is a pull scanner for the one object that is a message. It holds no more of the text than its buffer.
type decoder struct {
	src   io.Reader
	room  *decoderRoom
	r, w  int // room.in[r:w] is read and not looked at
	m     *message
	limit limits
	sink  func(p []byte) error

	path    []byte // JSON pointer to the value that is being read
	textMax int    // most bytes of the text that is being read
	textEnd int    // the same as an index into m.arena

	carry   [4]byte // base64: characters of a group that is not complete
	carried int
	padded  bool // "=" has been seen: nothing may follow
	decoded int  // room.plain[:decoded] is for the sink
}

func (d *decoder) fault(text string) error { return d.refuse("syntax", text) }

func (d *decoder) refuse(reason, text string) error {
	return &requestError{Reason: reason, Text: text, Pointer: bytes.Clone(d.path)}
}

// more reads more bytes behind those that are not looked at. It gives io.EOF at the end of the source.
func (d *decoder) more() error {
	in := d.room.in[:]
	if d.r > 0 {
		d.w = copy(in, in[d.r:d.w])
		d.r = 0
	}
	for range 100 {
		n, err := d.src.Read(in[d.w:])
		d.w += n
		if n > 0 {
			return nil // an error comes again with the next call
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// must is more where the text can't end.
func (d *decoder) must() error {
	err := d.more()
	if err == io.EOF {
		return d.fault("the JSON text ends too early")
	}
	return err
}

// isBlank: RFC 8259 §2.
func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// peek skips blanks and gives the next byte without taking it.
func (d *decoder) peek() (byte, error) {
	for {
		for ; d.r < d.w; d.r++ {
			if c := d.room.in[d.r]; !isBlank(c) {
				return c, nil
			}
		}
		if err := d.must(); err != nil {
			return 0, err
		}
	}
}

// expect skips blanks and takes c, the first byte of what is described by what.
func (d *decoder) expect(c byte, what string) error {
	got, err := d.peek()
	if err != nil {
		return err
	}
	if got != c {
		return d.fault("expected " + what + ", found " + kindOf(got))
	}
	d.r++
	return nil
}

// kindOf names a JSON value by its first byte.
func kindOf(c byte) string {
	switch {
	case c == '{':
		return "an object"
	case c == '[':
		return "an array"
	case c == '"':
		return "a string"
	case c == 't' || c == 'f':
		return "true or false"
	case c == 'n':
		return "null"
	case c == '-' || c >= '0' && c <= '9':
		return "a number"
	}
	return strconv.QuoteRuneToASCII(rune(c))
}

// object is where the reader of an object stands.
type object struct {
	names []string // of its members, at most 32
	seen  uint32   // bit i: names[i] was there
	begun bool
}

func (o *object) has(i int) bool { return o.seen&(1<<i) != 0 }

// member goes to the value of the next member of o and gives its index in o.names, or -1 at the end of the object.
func (d *decoder) member(o *object) (i int, err error) {
	if more, err := d.step(&o.begun, '{', '}', "an object"); err != nil || !more {
		return -1, err
	}
	kept := len(d.m.arena)
	name, err := d.readText(maxMemberBytes)
	d.m.arena = d.m.arena[:kept]
	if err != nil {
		return -1, err
	}
	for i := range o.names {
		if string(name) != o.names[i] {
			continue
		}
		d.path = append(append(d.path, '/'), name...)
		if o.has(i) {
			return -1, d.fault("member stands twice")
		}
		o.seen |= 1 << i
		return i, d.expect(':', `":"`)
	}
	d.path = append(d.path, '/')
	for _, c := range name {
		switch c { // RFC 6901 §3
		case '~':
			d.path = append(d.path, "~0"...)
		case '/':
			d.path = append(d.path, "~1"...)
		default:
			d.path = append(d.path, c)
		}
	}
	return -1, d.fault("unknown member")
}

// element goes to element i of an array, which begins with 0; more is false at the end of the array.
func (d *decoder) element(i int) (more bool, err error) {
	begun := i > 0
	more, err = d.step(&begun, '[', ']', "an array")
	if more {
		d.path = strconv.AppendInt(append(d.path, '/'), int64(i), 10)
	}
	return more, err
}

// step takes what stands before a member or an element, or the end: then more is false. The last step of the path is that of the one
// before, and is cut off.
func (d *decoder) step(begun *bool, open, end byte, what string) (more bool, err error) {
	if *begun {
		d.path = d.path[:bytes.LastIndexByte(d.path, '/')]
		c, err := d.peek()
		if err != nil {
			return false, err
		}
		if c != ',' && c != end {
			return false, d.fault(`expected "," or the end of ` + what + ", found " + kindOf(c))
		}
		d.r++
		return c == ',', nil
	}
	*begun = true
	if err := d.expect(open, what); err != nil {
		return false, err
	}
	c, err := d.peek()
	if c == end && err == nil {
		d.r++
		return false, nil
	}
	return err == nil, err
}

// The members of a message; the indexes follow below.
var messageMembers = []string{"mail_from", "rcpt_to", "raw", "raw_base64", "helo", "client", "smtputf8", "requiretls", "dsn", "metadata", "idempotency_key"}

const (
	memberMailFrom = iota
	memberRcptTo
	memberRaw
	memberRawBase64
	memberHelo
	memberClient
	memberSMTPUTF8
	memberRequireTLS
	memberDSN
	memberMetadata
	memberKey // the last: only lines of a batch have it
)

// message reads the whole text.
func (d *decoder) message() error {
	o := object{names: messageMembers}
	if !d.limit.Key {
		o.names = o.names[:memberKey]
	}
	for {
		i, err := d.member(&o)
		if err == nil && i >= 0 {
			err = d.messageMember(i)
		}
		if err != nil {
			return err
		}
		if i < 0 {
			break
		}
	}
	if err := d.nothingMore(); err != nil {
		return err
	}
	switch {
	case !o.has(memberMailFrom):
		return d.fault(`member "mail_from" is missing; "" stands for the empty reverse-path`)
	case !o.has(memberRcptTo):
		return d.fault(`member "rcpt_to" is missing`)
	case !o.has(memberRaw) && !o.has(memberRawBase64):
		return d.fault(`member "raw" or "raw_base64" is missing`)
	case o.has(memberRaw) && o.has(memberRawBase64):
		return d.fault(`members "raw" and "raw_base64" exclude each other`)
	}
	for i := range d.m.Rcpts {
		if r := &d.m.Rcpts[i]; r.Notify == 0 {
			r.Notify = d.m.notify
		}
	}
	return nil
}

// nothingMore reads to the end of the source: only blanks may come.
func (d *decoder) nothingMore() error {
	for {
		for ; d.r < d.w; d.r++ {
			if !isBlank(d.room.in[d.r]) {
				return d.fault("something follows the object")
			}
		}
		if err := d.more(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (d *decoder) messageMember(i int) (err error) {
	m := d.m
	switch i {
	case memberMailFrom:
		m.MailFrom, err = d.word(MaxAddressBytes)
	case memberRcptTo:
		err = d.recipients()
	case memberRaw:
		err = d.str((*decoder).takeRaw)
	case memberRawBase64:
		err = d.rawBase64()
	case memberHelo:
		m.Helo, err = d.word(MaxHeloBytes)
	case memberClient:
		err = d.client()
	case memberSMTPUTF8:
		m.SMTPUTF8, err = d.boolean()
	case memberRequireTLS:
		m.RequireTLS, err = d.boolean()
	case memberDSN:
		err = d.dsn()
	case memberMetadata:
		err = d.metadata()
	case memberKey:
		if m.Key, err = d.word(maxKeyBytes); err == nil && !validKey(m.Key) {
			err = d.refuse("idempotency_key", "expected 1 to 255 visible ASCII characters")
		}
	}
	return err
}

func (d *decoder) recipients() error {
	start := len(d.m.arena)
	for i := 0; ; i++ {
		more, err := d.element(i)
		if err != nil || !more {
			return err
		}
		if i == d.limit.MaxRecipients {
			err := tooManyRecipients(i)
			err.Pointer = bytes.Clone(d.path)
			return err
		}
		var r rcpt
		c, err := d.peek()
		switch {
		case err != nil:
		case c == '{':
			err = d.recipient(&r)
		default:
			r.Address, err = d.word(MaxAddressBytes)
		}
		if err != nil {
			return err
		}
		d.m.Rcpts = append(d.m.Rcpts, r)
		if !d.m.charge.covers(len(d.m.Rcpts), len(d.m.arena)-start) {
			return errMemory
		}
	}
}

func tooManyRecipients(most int) *requestError {
	return &requestError{Reason: "too_many_recipients", Text: "more than " + strconv.Itoa(most) + " recipients"}
}

var recipientMembers = []string{"address", "notify", "orcpt"}

func (d *decoder) recipient(r *rcpt) error {
	o := object{names: recipientMembers}
	for {
		i, err := d.member(&o)
		switch {
		case err != nil:
		case i == 0:
			r.Address, err = d.word(MaxAddressBytes)
		case i == 1:
			r.Notify, err = d.notify()
		case i == 2:
			r.ORcpt, err = d.orcpt()
		case !o.has(0):
			return d.fault(`member "address" is missing`)
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// orcpt reads addr-type ";" address (RFC 3461 §4.2). The address is plain text here; as after ORCPT= it is encoded.
func (d *decoder) orcpt() ([]byte, error) {
	text, err := d.word(maxORcptBytes)
	if err != nil {
		return nil, err
	}
	const want = `expected an address type, ";" and an address, as in "rfc822;user@example.com"`
	kind, address, _ := bytes.Cut(text, semicolon)
	if len(kind) == 0 || len(address) == 0 {
		return nil, d.fault(want)
	}
	for _, c := range kind { // the letters of registered types; RFC 3461 §4.2 has any atom
		if c|0x20 < 'a' && (c < '0' || c > '9') && c != '-' || c|0x20 > 'z' {
			return nil, d.fault(want)
		}
	}
	start := len(d.m.arena)
	out := append(append(d.m.arena, kind...), ';')
	if bytes.EqualFold(kind, kindUTF8) {
		out = appendUTF8Addr(out, address)
	} else if printable(address) {
		out = smtpcodec.AppendXtext(out, address)
	} else {
		return nil, d.fault("expected printable ASCII, or the address type utf-8")
	}
	d.m.arena = out
	if len(out)-start > maxORcptBytes {
		return nil, d.tooLong(maxORcptBytes)
	}
	return out[start:len(out):len(out)], nil
}

var (
	semicolon = []byte{';'}
	kindUTF8  = []byte("utf-8")
)

// appendUTF8Addr appends address, which is UTF-8, as utf-8-addr-xtext (RFC 6533 §3): it needs no SMTPUTF8.
func appendUTF8Addr(dst, address []byte) []byte {
	for len(address) > 0 {
		r, size := utf8.DecodeRune(address)
		address = address[size:]
		if r > ' ' && r < 0x7F && r != '+' && r != '=' && r != '\\' {
			dst = append(dst, byte(r))
			continue
		}
		dst = append(dst, '\\', 'x', '{')
		shift := max(8, (bits.Len32(uint32(r))+3)&^3) // two digits or more
		for shift > 0 {
			shift -= 4
			dst = append(dst, "0123456789ABCDEF"[r>>shift&15])
		}
		dst = append(dst, '}')
	}
	return dst
}

func printable(p []byte) bool {
	for _, c := range p {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

var clientMembers = []string{"address", "helo"}

func (d *decoder) client() error {
	o := object{names: clientMembers}
	for {
		i, err := d.member(&o)
		switch {
		case err != nil:
		case i == 0:
			d.m.Client, err = d.address()
		case i == 1:
			d.m.ClientHelo, err = d.word(MaxHeloBytes)
		case !o.has(0):
			return d.fault(`member "address" is missing`)
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// address reads an IP address.
func (d *decoder) address() (netip.Addr, error) {
	text, err := d.word(len("0000:0000:0000:0000:0000:ffff:255.255.255.255"))
	if err != nil {
		return netip.Addr{}, err
	}
	addr, ok := parseClient(text)
	if !ok {
		return netip.Addr{}, d.fault(wantAddress)
	}
	return addr, nil
}

const wantAddress = "expected an IPv4 or IPv6 address"

// parseClient reads the address of a client that somebody names. A zone is refused: it means nothing on another machine than the client's.
func parseClient(text []byte) (addr netip.Addr, ok bool) {
	// The string does not outlive the call: a zone and the error would keep it. A copy would be the only allocation of a message.
	if len(text) == 0 || bytes.IndexByte(text, '%') >= 0 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(unsafe.String(&text[0], len(text)))
	return addr.Unmap(), err == nil
}

var (
	dsnMembers  = []string{"ret", "envid", "notify"}
	retWords    = []string{"full", "hdrs"}
	notifyWords = []string{"never", "success", "failure", "delay"}
)

func (d *decoder) dsn() error {
	o := object{names: dsnMembers}
	for {
		i, err := d.member(&o)
		switch {
		case err != nil:
		case i == 0:
			var word int
			word, err = d.oneOf(retWords, `expected "full" or "hdrs"`)
			d.m.Ret = envelope.RetFull + envelope.Ret(word)
		case i == 1:
			d.m.EnvID, err = d.envID()
		case i == 2:
			d.m.notify, err = d.notify()
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// envID reads plain text and gives it as after ENVID= (RFC 3461 §4.4).
func (d *decoder) envID() ([]byte, error) {
	text, err := d.word(maxEnvIDBytes)
	if err != nil {
		return nil, err
	}
	if len(text) == 0 || !printable(text) {
		return nil, d.fault("expected printable ASCII, not empty")
	}
	start := len(d.m.arena)
	d.m.arena = smtpcodec.AppendXtext(d.m.arena, text)
	out := d.m.arena[start:len(d.m.arena):len(d.m.arena)]
	if len(out) > maxEnvIDBytes {
		return nil, d.tooLong(maxEnvIDBytes)
	}
	return out, nil
}

// notify reads the words of NOTIFY (RFC 3461 §4.1).
func (d *decoder) notify() (set envelope.Notify, err error) {
	for i := 0; ; i++ {
		more, err := d.element(i)
		if err != nil {
			return 0, err
		}
		if !more && i == 0 {
			return 0, d.fault("expected at least one word")
		}
		if !more {
			return set, nil
		}
		word, err := d.oneOf(notifyWords, `expected "never", "success", "failure" or "delay"`)
		if err != nil {
			return 0, err
		}
		bit := envelope.NotifyNever << word
		if set&bit != 0 {
			return 0, d.fault("word stands twice")
		}
		if set |= bit; set&envelope.NotifyNever != 0 && set != envelope.NotifyNever {
			return 0, d.fault(`"never" excludes the others`)
		}
	}
}

// oneOf reads a string that is one of words, and gives its index.
func (d *decoder) oneOf(words []string, want string) (int, error) {
	kept := len(d.m.arena)
	text, err := d.word(maxMemberBytes)
	d.m.arena = d.m.arena[:kept]
	if err != nil {
		return 0, err
	}
	for i := range words {
		if string(text) == words[i] {
			return i, nil
		}
	}
	return 0, d.fault(want)
}

func (d *decoder) boolean() (bool, error) {
	c, err := d.peek()
	switch {
	case err != nil:
		return false, err
	case c == 't':
		return true, d.literal("true")
	case c == 'f':
		return false, d.literal("false")
	}
	return false, d.fault("expected true or false, found " + kindOf(c))
}

// literal takes word, whose first byte is there.
func (d *decoder) literal(word string) error {
	for i := range len(word) {
		if d.r == d.w {
			if err := d.must(); err != nil {
				return err
			}
		}
		if d.room.in[d.r] != word[i] {
			return d.fault("expected " + word)
		}
		d.r++
	}
	return nil
}

// word reads a string of at most limit bytes into the arena: UTF-8 without control characters.
func (d *decoder) word(limit int) ([]byte, error) {
	text, err := d.readText(limit)
	if err == nil && !smtpcodec.ValidText(text) {
		err = d.fault("control character in the string")
	}
	return text, err
}

// readText reads any string of at most limit bytes into the arena.
func (d *decoder) readText(limit int) ([]byte, error) {
	start := len(d.m.arena)
	d.textEnd, d.textMax = start+limit, limit
	if err := d.str((*decoder).takeText); err != nil {
		return nil, err
	}
	return d.m.arena[start:len(d.m.arena):len(d.m.arena)], nil
}

func (d *decoder) takeText(p []byte) error {
	if len(d.m.arena)+len(p) > d.textEnd {
		return d.tooLong(d.textMax)
	}
	d.m.arena = append(d.m.arena, p...)
	return nil
}

func (d *decoder) tooLong(limit int) error {
	return d.fault("longer than " + strconv.Itoa(limit) + " bytes")
}

// str reads a string and gives take its bytes in pieces, with escapes decoded, borrowed until it returns. Escapes are decoded in the
// buffer itself, since none is shorter than what it stands for: a message whose every line ends with an escaped CRLF goes on in large
// pieces, too.
func (d *decoder) str(take func(d *decoder, p []byte) error) error {
	if err := d.expect('"', "a string"); err != nil {
		return err
	}
	in := d.room.in[:]
	start, end := d.r, d.r // in[start:end] is decoded and not taken
	// What came before a fault is taken first: it may be at fault itself, and which of the two is told must not depend on the split.
	fault := func(text string) error {
		if err := d.flush(take, start, end); err != nil {
			return err
		}
		return d.fault(text)
	}
	for {
		n := plainRun(in[d.r:d.w])
		if end != d.r {
			copy(in[end:], in[d.r:d.r+n])
		}
		d.r, end = d.r+n, end+n
		if rest := in[d.r:d.w]; len(rest) > 0 {
			switch c := rest[0]; {
			case c == '"':
				d.r++
				return d.flush(take, start, end)
			case c == '\\':
				if len(rest) > 1 && simpleEscapes[rest[1]] != 0 { // line ends, mostly
					in[end] = simpleEscapes[rest[1]]
					d.r, end = d.r+2, end+1
					continue
				}
				if r, size := unescape(rest); size > 0 {
					end += utf8.EncodeRune(in[end:d.r+size], r)
					d.r += size
					continue
				} else if size < 0 {
					return fault("bad escape in the string")
				}
			case c < ' ':
				return fault("control character in the string that is not escaped")
			case utf8.FullRune(rest):
				return fault("not UTF-8")
			}
		}
		// The next thing to look at is not there, or not all of it.
		if err := d.flush(take, start, end); err != nil {
			return err
		}
		if err := d.must(); err != nil {
			return err
		}
		start, end = d.r, d.r
	}
}

func (d *decoder) flush(take func(d *decoder, p []byte) error, start, end int) error {
	if start == end {
		return nil
	}
	return take(d, d.room.in[start:end])
}

// plainRun is the length of what stands for itself at the start of p: valid UTF-8 without quote, backslash and C0. It looks at eight
// bytes at a time (BenchmarkDecodeMessage).
func plainRun(p []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for {
		for i+8 <= len(p) {
			v := binary.LittleEndian.Uint64(p[i:])
			// The lowest byte whose high bit is set here is the first that is 8-bit, below ' ', a quote or a backslash.
			found := (v | (v - ones*' ') | ((v ^ ones*'"') - ones) | ((v ^ ones*'\\') - ones)) & highs
			if found != 0 {
				i += bits.TrailingZeros64(found) / 8
				break
			}
			i += 8
		}
		for ; i < len(p) && p[i] < utf8.RuneSelf; i++ {
			if c := p[i]; c < ' ' || c == '"' || c == '\\' {
				return i
			}
		}
		if i == len(p) {
			return i
		}
		// Text in other scripts has one such character after the other.
		for i < len(p) && p[i] >= utf8.RuneSelf {
			_, size := utf8.DecodeRune(p[i:])
			if size == 1 {
				return i
			}
			i += size
		}
	}
}

// simpleEscapes are what a letter behind a backslash stands for; 0: it is none.
var simpleEscapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// unescape decodes the escape at the start of p (RFC 8259 §7). size is how long it is, 0 when p ends before its end, -1 when it is
// none or half a surrogate pair.
func unescape(p []byte) (r rune, size int) {
	if len(p) < 2 {
		return 0, 0
	}
	if c := simpleEscapes[p[1]]; c != 0 {
		return rune(c), 2
	}
	if p[1] != 'u' {
		return 0, -1
	}
	r, size = fourHex(p[2:])
	if size <= 0 {
		return 0, size
	}
	switch {
	case r >= 0xDC00 && r < 0xE000:
		return 0, -1
	case r < 0xD800 || r >= 0xE000:
		return r, 6
	}
	second := p[6:]
	for i := range min(len(second), 2) {
		if second[i] != "\\u"[i] {
			return 0, -1
		}
	}
	if len(second) < 2 {
		return 0, 0
	}
	low, size := fourHex(second[2:])
	if size <= 0 {
		return 0, size
	}
	if low < 0xDC00 || low >= 0xE000 {
		return 0, -1
	}
	return (r-0xD800)<<10 + low - 0xDC00 + 0x10000, 12
}

// fourHex reads four hexadecimal digits; size is as in unescape.
func fourHex(p []byte) (v rune, size int) {
	for i := range min(len(p), 4) {
		c := p[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, -1
		}
		v = v<<4 | rune(c)
	}
	if len(p) < 4 {
		return 0, 0
	}
	return v, 4
}

// takeRaw hands message data on.
func (d *decoder) takeRaw(p []byte) error {
	if d.m.RawBytes += int64(len(p)); d.m.RawBytes > d.limit.MaxMessageBytes {
		return d.refuse("size", "message data of more than "+strconv.FormatInt(d.limit.MaxMessageBytes, 10)+" bytes")
	}
	return d.sink(p)
}

// rawBase64 reads message data in base64 (RFC 4648 §4). Line ends within it are skipped, since many encoders write them (RFC 2045 §6.8),
// and padding may be missing; everything else is as strict as in decodeAddress.
func (d *decoder) rawBase64() error {
	if err := d.str((*decoder).takeBase64); err != nil {
		return err
	}
	if d.carried > 0 {
		if d.padded {
			return d.fault("not base64")
		}
		n, err := base64Unpadded.Decode(d.room.plain[d.decoded:], d.carry[:d.carried])
		if err != nil {
			return d.fault("not base64")
		}
		d.decoded += n
	}
	return d.takePlain()
}

// takeBase64 decodes a piece of base64 text.
func (d *decoder) takeBase64(p []byte) error {
	for len(p) > 0 {
		run := p
		if i := bytes.IndexByte(run, '\n'); i >= 0 {
			run = run[:i]
		}
		if i := bytes.IndexByte(run, '\r'); i >= 0 {
			run = run[:i]
		}
		p = p[min(len(run)+1, len(p)):]
		for len(run) > 0 {
			n, err := d.decode64(run)
			if err != nil {
				return err
			}
			run = run[n:]
		}
	}
	return nil
}

// decode64 decodes some of run, which is not empty and without line ends, and says how much.
func (d *decoder) decode64(run []byte) (n int, err error) {
	if d.padded {
		return 0, d.fault("not base64")
	}
	plain := d.room.plain[:]
	if len(plain)-d.decoded < 3 {
		if err := d.takePlain(); err != nil {
			return 0, err
		}
	}
	groups := run
	if d.carried > 0 || len(run) < 4 {
		n = copy(d.carry[d.carried:], run)
		if d.carried += n; d.carried < 4 {
			return n, nil
		}
		d.carried = 0
		groups = d.carry[:]
	} else {
		n = min(len(run)/4, (len(plain)-d.decoded)/3) * 4
		groups = run[:n]
	}
	got, err := base64Padded.Decode(plain[d.decoded:], groups)
	if err != nil {
		return 0, d.fault("not base64")
	}
	d.padded = got < len(groups)/4*3
	d.decoded += got
	return n, nil
}

// takePlain hands on what was decoded.
func (d *decoder) takePlain() error {
	p := d.room.plain[:d.decoded]
	d.decoded = 0
	if len(p) == 0 {
		return nil
	}
	return d.takeRaw(p)
}

// metadata reads any JSON object into the arena, as it is but for blanks between its parts.
func (d *decoder) metadata() error {
	if c, err := d.peek(); err != nil {
		return err
	} else if c != '{' {
		return d.fault("expected an object, found " + kindOf(c))
	}
	start := len(d.m.arena)
	d.textEnd, d.textMax = start+MaxMetadataBytes, MaxMetadataBytes
	if err := d.copyValue(1); err != nil {
		return err
	}
	d.m.Metadata = d.m.arena[start:len(d.m.arena):len(d.m.arena)]
	return nil
}

// copyValue copies one JSON value into the arena. Members that stand twice are not noticed: what they mean is for who reads them.
func (d *decoder) copyValue(depth int) error {
	c, err := d.peek()
	if err != nil {
		return err
	}
	switch {
	case c == '{' || c == '[':
		return d.copyNested(c, depth)
	case c == '"':
		return d.copyString()
	case c == '-' || c >= '0' && c <= '9':
		return d.copyNumber()
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if c == word[0] {
			if err := d.literal(word); err != nil {
				return err
			}
			return d.put(word)
		}
	}
	return d.fault("expected a value, found " + kindOf(c))
}

func (d *decoder) copyNested(open byte, depth int) error {
	if depth > MaxMetadataDepth {
		return d.fault("deeper than " + strconv.Itoa(MaxMetadataDepth) + " levels")
	}
	end, what := byte(']'), "an array"
	if open == '{' {
		end, what = '}', "an object"
	}
	d.r++
	if err := d.put(string(rune(open))); err != nil {
		return err
	}
	for first := true; ; first = false {
		c, err := d.peek()
		if err != nil {
			return err
		}
		if c == end && first {
			break
		}
		if !first {
			if c != ',' && c != end {
				return d.fault(`expected "," or the end of ` + what + ", found " + kindOf(c))
			}
			if c == end {
				break
			}
			d.r++
			if err := d.put(","); err != nil {
				return err
			}
		}
		if open == '{' {
			if _, err := d.peek(); err != nil {
				return err
			}
			if err := d.copyString(); err != nil {
				return err
			}
			if err := d.expect(':', `":"`); err != nil {
				return err
			}
			if err := d.put(":"); err != nil {
				return err
			}
		}
		if err := d.copyValue(depth + 1); err != nil {
			return err
		}
	}
	d.r++
	return d.put(string(rune(end)))
}

func (d *decoder) put(s string) error {
	if len(d.m.arena)+len(s) > d.textEnd {
		return d.tooLong(d.textMax)
	}
	d.m.arena = append(d.m.arena, s...)
	return nil
}

// copyString copies a string as it is, escapes too, after a look at each of them.
func (d *decoder) copyString() error {
	if err := d.expect('"', "a string"); err != nil {
		return err
	}
	if err := d.put(`"`); err != nil {
		return err
	}
	in := d.room.in[:]
	for {
		n := plainRun(in[d.r:d.w])
		ended, wrong := false, ""
		if rest := in[d.r+n : d.w]; len(rest) > 0 {
			switch c := rest[0]; {
			case c == '"':
				n++
				ended = true
			case c == '\\':
				if _, size := unescape(rest); size < 0 {
					wrong = "bad escape in the string"
				} else {
					n += size
				}
			case c < ' ':
				wrong = "control character in the string that is not escaped"
			case utf8.FullRune(rest):
				wrong = "not UTF-8"
			}
		}
		// As in str: what came before a fault may be at fault itself.
		if err := d.takeText(in[d.r : d.r+n]); err != nil {
			return err
		}
		d.r += n
		switch {
		case ended:
			return nil
		case wrong != "":
			return d.fault(wrong)
		case n == 0:
			if err := d.must(); err != nil {
				return err
			}
		}
	}
}

// copyNumber copies a number as it is (RFC 8259 §6).
func (d *decoder) copyNumber() error {
	start := len(d.m.arena)
	for {
		for d.r < d.w {
			c := d.room.in[d.r]
			if (c < '0' || c > '9') && c != '-' && c != '+' && c != '.' && c != 'e' && c != 'E' {
				if !validNumber(d.m.arena[start:]) {
					return d.fault("malformed number")
				}
				return nil
			}
			if len(d.m.arena) == d.textEnd {
				return d.tooLong(d.textMax)
			}
			d.m.arena = append(d.m.arena, c)
			d.r++
		}
		if err := d.must(); err != nil {
			return err
		}
	}
}

func validNumber(p []byte) bool {
	digits := func() bool {
		n := 0
		for n < len(p) && p[n] >= '0' && p[n] <= '9' {
			n++
		}
		p = p[n:]
		return n > 0
	}
	if len(p) > 0 && p[0] == '-' {
		p = p[1:]
	}
	if len(p) > 1 && p[0] == '0' && p[1] >= '0' && p[1] <= '9' || !digits() {
		return false
	}
	if len(p) > 0 && p[0] == '.' {
		if p = p[1:]; !digits() {
			return false
		}
	}
	if len(p) > 0 && (p[0] == 'e' || p[0] == 'E') {
		if p = p[1:]; len(p) > 0 && (p[0] == '-' || p[0] == '+') {
			p = p[1:]
		}
		if !digits() {
			return false
		}
	}
	return len(p) == 0
}
