package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	regexpsyntax "regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Address is where a listener listens.
type Address struct {
	Network string // "tcp" or "unix"; empty for an address that is not set
	Addr    string // "host:port", ":port", or the socket's path
}

// maxUnixPath is sizeof(sun_path) less the final NUL on Linux.
const maxUnixPath = 107

// ParseAddress reads "host:port", ":port", "[v6]:port" or "unix:/path". Host is an IP address or localhost: a name could stand for
// another address tomorrow, and the open-relay guard decides by the address.
func ParseAddress(s string) (Address, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return parseUnix(path)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Address{}, fmt.Errorf(`%q is not an address: write "127.0.0.1:25", ":25", "[::1]:25" or "unix:/path"`, s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Address{}, fmt.Errorf("%q: the port must be a number from 0 to 65535", s)
	}
	if host == "localhost" || host == "" {
		return Address{"tcp", s}, nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return Address{}, fmt.Errorf("%q: the host must be an IP address, localhost, or nothing for all addresses", s)
	}
	return Address{"tcp", s}, nil
}

func parseUnix(path string) (Address, error) {
	switch {
	case !strings.HasPrefix(path, "/"):
		return Address{}, fmt.Errorf("%q: the path of a unix socket must begin with /", "unix:"+path)
	case len(path) > maxUnixPath:
		return Address{}, fmt.Errorf("%q: the path of a unix socket may have %d bytes at most", "unix:"+path, maxUnixPath)
	}
	return Address{"unix", path}, nil
}

func (a Address) String() string {
	if a.Network == "unix" {
		return "unix:" + a.Addr
	}
	return a.Addr
}

// UnmarshalText is ParseAddress; an empty text is an address that is not set.
func (a *Address) UnmarshalText(text []byte) (err error) {
	*a = Address{}
	if len(text) > 0 {
		*a, err = ParseAddress(string(text))
	}
	return err
}

// MarshalText is String.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// HostPort splits a TCP address. All addresses of the machine are the zero Addr; localhost is 127.0.0.1.
func (a Address) HostPort() (netip.Addr, uint16) {
	host, port, _ := net.SplitHostPort(a.Addr)
	n, _ := strconv.ParseUint(port, 10, 16)
	if host == "localhost" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(n)
	}
	ip, _ := netip.ParseAddr(host)
	if ip.IsUnspecified() {
		return netip.Addr{}, uint16(n)
	}
	return ip.Unmap().WithZone(""), uint16(n)
}

// IsLocal says that only this machine can connect: a unix socket or a loopback address.
func (a Address) IsLocal() bool {
	if a.Network == "unix" {
		return true
	}
	ip, _ := a.HostPort()
	return ip.IsLoopback()
}

// overlaps says that the two can't both listen, or would share connections through SO_REUSEPORT.
func (a Address) overlaps(b Address) bool {
	if a.Network != b.Network {
		return false
	}
	if a.Network == "unix" {
		return a.Addr == b.Addr
	}
	ipA, portA := a.HostPort()
	ipB, portB := b.HostPort()
	return portA == portB && portA != 0 && (ipA == ipB || !ipA.IsValid() || !ipB.IsValid())
}

// NextHop is one place that accepted mail is handed to.
type NextHop struct {
	LMTP    bool
	Network string // "tcp" or "unix"
	Addr    string // "host:port", or the socket's path
}

const nextHopHint = `write "smtp://host:25", "lmtp://host:24" or "lmtp+unix:///path"`

// ParseNextHop reads a next hop. The port may be left out: 25 for SMTP, 24 for LMTP.
func ParseNextHop(s string) (NextHop, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Opaque != "" {
		return NextHop{}, fmt.Errorf("%q is not a next hop: %s", s, nextHopHint)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return NextHop{}, fmt.Errorf("%q: a next hop has no user, query or fragment: %s", s, nextHopHint)
	}
	protocol, unix := strings.CutSuffix(u.Scheme, "+unix")
	if protocol != "smtp" && protocol != "lmtp" {
		return NextHop{}, fmt.Errorf("%q has an unknown scheme: %s", s, nextHopHint)
	}
	hop := NextHop{LMTP: protocol == "lmtp", Network: "tcp"}
	if unix {
		if u.Host != "" || len(u.Path) < 2 {
			return NextHop{}, fmt.Errorf("%q: a unix socket needs three slashes and a path: %s", s, nextHopHint)
		}
		if len(u.Path) > maxUnixPath {
			return NextHop{}, fmt.Errorf("%q: the path of a unix socket may have %d bytes at most", s, maxUnixPath)
		}
		hop.Network, hop.Addr = "unix", u.Path
		return hop, nil
	}
	if u.Hostname() == "" || u.Path != "" && u.Path != "/" {
		return NextHop{}, fmt.Errorf("%q needs a host and no path: %s", s, nextHopHint)
	}
	port := u.Port()
	if port == "" {
		port = "25"
		if hop.LMTP {
			port = "24"
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return NextHop{}, fmt.Errorf("%q: the port must be a number from 1 to 65535", s)
	}
	hop.Addr = net.JoinHostPort(u.Hostname(), port)
	return hop, nil
}

func (h NextHop) String() string {
	protocol := "smtp"
	if h.LMTP {
		protocol = "lmtp"
	}
	if h.Network == "unix" {
		return (&url.URL{Scheme: protocol + "+unix", Path: h.Addr}).String()
	}
	return protocol + "://" + h.Addr
}

// UnmarshalText is ParseNextHop.
func (h *NextHop) UnmarshalText(text []byte) (err error) {
	*h, err = ParseNextHop(string(text))
	return err
}

// MarshalText is String.
func (h NextHop) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Endpoint is a service that fastedge connects to. Unlike an Address its host may be a name.
type Endpoint struct {
	Network string // "tcp" or "unix"; empty for one that is not set
	Addr    string // "host:port", or the socket's path
}

// ParseEndpoint reads "host:port" or "unix:/path".
func ParseEndpoint(s string) (Endpoint, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		a, err := parseUnix(path)
		return Endpoint(a), err
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return Endpoint{}, fmt.Errorf(`%q is not an address: write "host:port" or "unix:/path"`, s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Endpoint{}, fmt.Errorf("%q: the port must be a number from 1 to 65535", s)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if err := checkDomain(host, false); err != nil {
			return Endpoint{}, err
		}
	}
	return Endpoint{"tcp", s}, nil
}

func (e Endpoint) String() string { return Address(e).String() }

// UnmarshalText is ParseEndpoint; an empty text is an endpoint that is not set.
func (e *Endpoint) UnmarshalText(text []byte) (err error) {
	*e = Endpoint{}
	if len(text) > 0 {
		*e, err = ParseEndpoint(string(text))
	}
	return err
}

// MarshalText is String.
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// NATSServers are URLs of NATS servers, which the file has in one text, separated by commas.
type NATSServers []string

// maxServersNATS is how many there may be.
const maxServersNATS = 64

const natsHint = `write "nats://host:4222" or "tls://host:4222", several with commas between them`

// UnmarshalText reads URLs that are separated by commas. At least one is needed.
func (n *NATSServers) UnmarshalText(text []byte) error {
	*n = nil
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSpace(part)
		u, err := url.Parse(part)
		switch {
		case err != nil || u.Scheme != "nats" && u.Scheme != "tls" || u.Hostname() == "":
			return fmt.Errorf("%q is not the URL of a NATS server: %s", redacted(part), natsHint)
		case u.User != nil:
			// A URL ends up in logs.
			return fmt.Errorf("%s://%s: user and password have keys of their own", u.Scheme, u.Host)
		case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
			return fmt.Errorf("%q: a NATS server has no path, query or fragment: %s", part, natsHint)
		}
		if port := u.Port(); port != "" {
			if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 {
				return fmt.Errorf("%q: the port must be a number from 1 to 65535", part)
			}
		}
		if *n = append(*n, part); len(*n) > maxServersNATS {
			return fmt.Errorf("there are more than %d servers", maxServersNATS)
		}
	}
	return nil
}

// redacted leaves out what stands before @.
func redacted(s string) string {
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		return "..." + s[at:]
	}
	return s
}

// MarshalText is the list with commas.
func (n NATSServers) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

func (n NATSServers) String() string { return strings.Join(n, ",") }

// maxSubject is the longest name or subject of ours in NATS.
const maxSubject = 255

// checkStream takes the name of a stream or a consumer: it is a part of subjects, and of file names on the server.
func checkStream(s string) error {
	if s == "" || len(s) > maxSubject || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`.*>/\`, r) }) {
		return fmt.Errorf(`%q is no name in NATS: 1 to %d printable ASCII characters, none of blank . * > / \`, s, maxSubject)
	}
	return nil
}

// checkSubject takes a subject to publish to, that is one without wildcards.
func checkSubject(s string) error {
	bad := func(why string) error { return fmt.Errorf("%q is no subject to publish to: %s", s, why) }
	switch {
	case s == "" || len(s) > maxSubject:
		return bad(fmt.Sprintf("it must have 1 to %d bytes", maxSubject))
	case s[0] == '$' || strings.HasPrefix(s, "_INBOX."):
		return bad("that is the server's own")
	}
	for token := range strings.SplitSeq(s, ".") {
		switch {
		case token == "":
			return bad("there is nothing between two dots, or at an end")
		case strings.ContainsAny(token, "*>"):
			return bad("it has a wildcard")
		case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
			return bad("it must be printable ASCII without blanks")
		}
	}
	return nil
}

// orEmpty lets "" stand for a default that depends on other keys.
func orEmpty(check func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return check(s)
	}
}

// checkBucket takes the name of an object store.
func checkBucket(s string) error {
	if s == "" || len(s) > maxSubject || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return fmt.Errorf("%q is no name of an object store: 1 to %d letters, digits, hyphens and underscores", s, maxSubject)
	}
	return nil
}

// maxPath is the longest pattern of paths, in bytes.
const maxPath = 1024

// checkPath takes a pattern that paths match from their start.
func checkPath(s string) error {
	if len(s) > maxPath {
		return fmt.Errorf("the pattern has more than %d bytes", maxPath)
	}
	re, err := regexp.Compile(s)
	if err != nil {
		var syntax *regexpsyntax.Error
		if errors.As(err, &syntax) {
			return fmt.Errorf("%q is not a pattern: %s: %s", s, syntax.Code, syntax.Expr)
		}
		return fmt.Errorf("%q is not a pattern: %w", s, err)
	}
	if prefix, _ := re.LiteralPrefix(); prefix != "" && prefix[0] != '/' {
		return fmt.Errorf("%q matches no path: they all begin with /", s)
	}
	return nil
}

// isToken says that s is a token of RFC 9110 §5.6.2, as methods and field names are.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

// maxToken is the longest method or field name that can be configured, in bytes.
const maxToken = 64

// checkMethod takes a method of HTTP whose requests have content (RFC 9110 §9.3). Methods mind case.
func checkMethod(s string) error {
	switch {
	case len(s) > maxToken || !isToken(s):
		return fmt.Errorf("%q is not a method", s)
	case slices.Contains([]string{"GET", "HEAD", "DELETE", "CONNECT", "OPTIONS", "TRACE"}, strings.ToUpper(s)):
		return fmt.Errorf("%s is for requests without content: write POST, PUT or a name of your own", s)
	}
	return nil
}

// ownFields are those that mean something to HTTP itself, or to us.
var ownFields = []string{"Authorization", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Expect", "Host",
	"Idempotency-Key", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade"}

// checkField takes the name of a header field for our own use.
func checkField(s string) error {
	switch {
	case len(s) > maxToken || !isToken(s):
		return fmt.Errorf("%q is not the name of a header field", s)
	case slices.ContainsFunc(ownFields, func(own string) bool { return strings.EqualFold(own, s) }):
		return fmt.Errorf("%s has another meaning in HTTP", s)
	}
	return nil
}

// checkURL takes the address of a service over HTTP.
func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return fmt.Errorf(`%q is not a URL of a service: write "http://host:port/path" or "https://host/path"`, s)
	case u.Fragment != "":
		return fmt.Errorf("%q: a service has no fragment (#)", s)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%q: the port must be a number from 1 to 65535", s)
		}
	}
	return nil
}

// checkSocket takes the path of a unix socket.
func checkSocket(s string) error {
	_, err := parseUnix(s)
	return err
}

// checkDelimiters takes characters that separate a user's name from what he adds to it: those of RFC 5322 §3.2.3's atext that are
// neither letter nor digit, and the dot.
func checkDelimiters(s string) error {
	for i, c := range s {
		if !strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", c) {
			return fmt.Errorf("%q can't separate a subaddress: only punctuation of unquoted local parts can", c)
		}
		if strings.ContainsRune(s[:i], c) {
			return fmt.Errorf("%q stands there twice", c)
		}
	}
	return nil
}

const replyHint = `write a reply code, an enhanced status code and a text, like "550 5.7.1 Not from here"`

// maxReplyText keeps a reply within the 512 bytes of RFC 5321 §4.5.3.1.5, with room for code, enhanced status code and CRLF.
const maxReplyText = 490

// checkReply takes a reply of one line (RFC 5321 §4.2): a code that begins with 2, 4 or 5, perhaps an enhanced status code of the same class (RFC 3463
// §2, RFC 2034 §4), and a text that can be printed.
func checkReply(s string) error {
	bad := func(why string) error { return fmt.Errorf("%q is not a reply: %s: %s", s, why, replyHint) }
	code, rest, _ := strings.Cut(s, " ")
	switch {
	case len(code) != 3 || strings.Trim(code, "0123456789") != "":
		return bad("it does not begin with three digits")
	case code[0] != '2' && code[0] != '4' && code[0] != '5':
		return bad("its code must begin with 2, 4 or 5")
	case code[1] > '5':
		return bad("its code must have 0 to 5 as its second digit")
	}
	text := rest
	if enhanced, after, _ := strings.Cut(rest, " "); looksEnhanced(enhanced) {
		class, detail, _ := strings.Cut(enhanced, ".")
		subject, detail, _ := strings.Cut(detail, ".")
		if class != code[:1] {
			return bad(fmt.Sprintf("the class of %s must be %c as in %s", enhanced, code[0], code))
		}
		for _, part := range [...]string{subject, detail} {
			if len(part) > 3 || len(part) > 1 && part[0] == '0' {
				return bad(enhanced + " is not an enhanced status code")
			}
		}
		text = after
	}
	switch {
	case strings.TrimSpace(text) == "":
		return bad("it has no text")
	case len(text) > maxReplyText:
		return fmt.Errorf("%.40q... is not a reply: its text has more than %d bytes", s, maxReplyText)
	}
	for _, c := range []byte(text) {
		if c < ' ' || c > '~' {
			return bad("its text must be printable ASCII")
		}
	}
	return nil
}

// checkTemplate takes the text of a reply in which only marks, like {reason}, may stand in braces. An empty one is somebody else's. at is the
// byte that is to blame.
func checkTemplate(code int, message string, marks ...string) (at int, err error) {
	for i := 0; i < len(message); i++ {
		switch c := message[i]; {
		case c < ' ' || c > '~':
			return i, errors.New("the text must be printable ASCII")
		case c == '{' || c == '}':
			k := slices.IndexFunc(marks, func(mark string) bool { return strings.HasPrefix(message[i:], mark) })
			if k < 0 {
				return i, fmt.Errorf("only %s may stand in braces", strings.Join(marks, " and "))
			}
			i += len(marks[k]) - 1
		}
	}
	if message == "" {
		return 0, nil
	}
	if len(message) > maxReplyText {
		return maxReplyText, fmt.Errorf("the text has more than %d bytes", maxReplyText)
	}
	enhanced, text, _ := strings.Cut(message, " ")
	if !looksEnhanced(enhanced) {
		text = message
	} else if class := strconv.Itoa(code / 100); !strings.HasPrefix(enhanced, class+".") {
		return 0, fmt.Errorf("the class of %s must be %s as in %d", enhanced, class, code)
	} else if checkReply(strconv.Itoa(code)+" "+enhanced+" x") != nil {
		return 0, fmt.Errorf("%s is not an enhanced status code", enhanced)
	}
	if strings.TrimSpace(text) == "" {
		return len(message), errors.New("there is no text")
	}
	return 0, nil
}

// looksEnhanced says that a word is meant to be an enhanced status code: numbers with two dots between them.
func looksEnhanced(word string) bool {
	parts := strings.Split(word, ".")
	return len(parts) == 3 && strings.Trim(word, "0123456789.") == "" && !slices.Contains(parts, "")
}

// parsePrefix reads "10.0.0.0/8", or a lone address as a network of one.
func parsePrefix(s string) (netip.Prefix, error) {
	var prefix netip.Prefix
	if ip, err := netip.ParseAddr(s); err == nil {
		if ip.Zone() != "" {
			return prefix, fmt.Errorf("%q: a network has no zone", s)
		}
		prefix = netip.PrefixFrom(ip, ip.BitLen())
	} else if prefix, err = netip.ParsePrefix(s); err != nil {
		return prefix, fmt.Errorf(`%q is not a network: write "10.0.0.0/8" or "2001:db8::/32"`, s)
	}
	switch {
	case prefix.Addr().Is4In6():
		// Peers are compared after unmapping, so such a network would silently match nobody.
		return prefix, fmt.Errorf("%q: write an IPv4-mapped network as IPv4", s)
	case prefix.Masked() != prefix:
		return prefix, fmt.Errorf("%q has bits after its prefix: write %q", s, prefix.Masked())
	}
	return prefix, nil
}

// checkDomain takes host names in RFC 5321 §4.1.2 spelling; utf8Too also U-labels (RFC 6531 §3.3).
func checkDomain(s string, utf8Too bool) error {
	bad := func(why string) error { return fmt.Errorf("%q is not a domain: %s", s, why) }
	switch {
	case s == "":
		return errors.New("a domain may not be empty")
	case len(s) > 253:
		return bad("it has more than 253 bytes")
	case !utf8.ValidString(s):
		return bad("it is not UTF-8")
	}
	for label := range strings.SplitSeq(s, ".") {
		switch {
		case label == "":
			return bad("it has an empty label")
		case len(label) > 63:
			return bad("a label has more than 63 bytes")
		case label[0] == '-' || label[len(label)-1] == '-':
			return bad("a label begins or ends with a hyphen")
		}
		for _, c := range label {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-':
			case c == '_': // not in RFC 5321, but found in the names of real machines
			case c >= 0x80 && utf8Too:
			default:
				return bad(fmt.Sprintf("%q may not stand in one", c))
			}
		}
	}
	return nil
}

// checkPattern takes a domain, or "*." and a domain.
func checkPattern(s string) error {
	rest := strings.TrimPrefix(s, "*.")
	if strings.Contains(rest, "*") {
		return fmt.Errorf(`%q: * may only stand for whole subdomains at the start, like "*.example.org"`, s)
	}
	return checkDomain(rest, true)
}

// maxServers is how many DNS servers there may be.
const maxServers = 16

// checkServer takes a DNS server: an IP address, with or without a port. A name could not be looked up before there is a resolver.
func checkServer(s string) error {
	if a, err := netip.ParseAddrPort(s); err == nil && a.Port() != 0 {
		return nil
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	return fmt.Errorf(`%q is not a DNS server: write "127.0.0.1:53", "[::1]:53", or an IP address alone`, s)
}

// maxZone leaves room for the nibbles of an IPv6 address in a name of 253 bytes (RFC 5782 §2.4).
const maxZone = 253 - 64

// checkZone takes the domain of a DNS list.
func checkZone(s string) error {
	if len(s) > maxZone {
		return fmt.Errorf("%.40q... has more than %d bytes: an IPv6 address before it would make the name too long", s, maxZone)
	}
	return checkDomain(s, false)
}

// checkName takes names that stand in logs, metrics and Received fields.
func checkName(s string) error {
	if s == "" || len(s) > 32 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return fmt.Errorf("%q is not a name: 1 to 32 letters, digits, hyphens and underscores", s)
	}
	return nil
}
