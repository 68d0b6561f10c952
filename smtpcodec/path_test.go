package smtpcodec

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestReversePathTable(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	domain := func(n int) string { // n bytes of legal labels
		s := strings.Repeat(label63+".", 4)
		return s[:n-1] + "x"
	}
	for _, c := range []struct {
		name, arg     string
		local, domain string
		err           SyntaxError
	}{
		{"ordinary", "FROM:<user@example.com>", "user", "example.com", ErrNone},
		{"the keyword's case does not matter, RFC 5321 §2.4", "from:<user@example.com>", "user", "example.com", ErrNone},
		{"null reverse-path, RFC 5321 §4.5.5", "FROM:<>", "", "", ErrNone},
		{"blanks behind the colon are taken", "FROM:   <user@example.com>", "user", "example.com", ErrNone},
		{"blanks before the colon are not", "FROM :<user@example.com>", "", "", ErrSyntax},
		{"TAB is no blank", "FROM:\t<user@example.com>", "", "", ErrSyntax},
		{"no argument", "", "", "", ErrSyntax},
		{"no path", "FROM:", "", "", ErrSyntax},
		{"the wrong keyword", "TO:<user@example.com>", "", "", ErrSyntax},
		{"a keyword misspelt", "FRM:<user@example.com>", "", "", ErrSyntax},
		{"no angle brackets", "FROM:user@example.com", "", "", ErrSyntax},
		{"no closing bracket", "FROM:<user@example.com", "", "", ErrSyntax},
		{"no opening bracket", "FROM:user@example.com>", "", "", ErrSyntax},
		{"text behind the bracket", "FROM:<user@example.com>junk", "", "", ErrSyntax},
		{"two brackets", "FROM:<<user@example.com>>", "", "", ErrSyntax},
		{"source route, RFC 5321 appendix C", "FROM:<@a.example,@b.example:user@example.com>", "user", "example.com", ErrNone},
		{"source route over a literal", "FROM:<@[IPv6:::1]:user@example.com>", "user", "example.com", ErrNone},
		{"source route without a mailbox", "FROM:<@a.example:>", "", "", ErrBadSender},
		{"source route without a colon", "FROM:<@a.example>", "", "", ErrBadSender},
		{"source route with a bad domain", "FROM:<@a..example:user@example.com>", "", "", ErrBadSender},
		{"source route with a stray comma", "FROM:<@a,:user@example.com>", "", "", ErrBadSender},
		{"source route with an open literal", "FROM:<@[a:user@example.com>", "", "", ErrBadSender},
		{"no domain", "FROM:<root>", "", "", ErrBadSender},
		{"postmaster alone is no reverse-path", "FROM:<postmaster>", "", "", ErrBadSender},
		{"empty domain", "FROM:<user@>", "", "", ErrBadSender},
		{"empty local part", "FROM:<@example.com>", "", "", ErrBadSender},
		{"two at signs", "FROM:<a@b@example.com>", "", "", ErrBadSender},
		{"blank in the mailbox", "FROM:<a b@example.com>", "", "", ErrBadSender},
		{"blank before the bracket", "FROM:<user@example.com >", "", "", ErrBadSender},
		{"quoted local part", `FROM:<"a b"@example.com>`, `"a b"`, "example.com", ErrNone},
		{"quoted angle bracket", `FROM:<"a>b"@example.com>`, `"a>b"`, "example.com", ErrNone},
		{"quoted pair", `FROM:<"a\">b"@example.com>`, `"a\">b"`, "example.com", ErrNone},
		{"quoted at sign", `FROM:<"a@b"@example.com>`, `"a@b"`, "example.com", ErrNone},
		{"empty quoted string", `FROM:<""@example.com>`, `""`, "example.com", ErrNone},
		{"quotes inside an atom", `FROM:<test">"addr@example.com>`, "", "", ErrBadSender},
		{"text behind the quotes", `FROM:<"a"b@example.com>`, "", "", ErrBadSender},
		{"open quotes", `FROM:<"a@example.com>`, "", "", ErrSyntax},
		{"a backslash outside quotes", `FROM:<a\b@example.com>`, "", "", ErrBadSender},
		{"all of atext", "FROM:<!#$%&'*+-/=?^_`{|}~@example.com>", "!#$%&'*+-/=?^_`{|}~", "example.com", ErrNone},
		{"dots anywhere in the local part", "FROM:<.a..b.@example.com>", ".a..b.", "example.com", ErrNone},
		{"address literal, RFC 5321 §4.1.3", "FROM:<a@[192.0.2.1]>", "a", "[192.0.2.1]", ErrNone},
		{"IPv6 literal", "FROM:<a@[IPv6:2001:db8::1]>", "a", "[IPv6:2001:db8::1]", ErrNone},
		{"IPv6 literal, case", "FROM:<a@[ipv6:::ffff:192.0.2.1]>", "a", "[ipv6:::ffff:192.0.2.1]", ErrNone},
		{"IPv6 without its tag", "FROM:<a@[2001:db8::1]>", "", "", ErrBadSender},
		{"IPv6 with a zone", "FROM:<a@[IPv6:fe80::1%eth0]>", "", "", ErrBadSender},
		{"IPv4 with the IPv6 tag", "FROM:<a@[IPv6:192.0.2.1]>", "", "", ErrBadSender},
		{"IPv4 field over 255", "FROM:<a@[192.0.2.256]>", "", "", ErrBadSender},
		{"IPv4 field with a leading zero", "FROM:<a@[192.0.2.01]>", "", "", ErrBadSender},
		{"IPv4 with three fields", "FROM:<a@[192.0.2]>", "", "", ErrBadSender},
		{"IPv4 with five fields", "FROM:<a@[192.0.2.1.1]>", "", "", ErrBadSender},
		{"empty literal", "FROM:<a@[]>", "", "", ErrBadSender},
		{"open literal", "FROM:<a@[192.0.2.1>", "", "", ErrBadSender},
		{"general-address-literal", "FROM:<a@[x400:abc]>", "", "", ErrBadSender},
		{"one label is a domain", "FROM:<a@localhost>", "a", "localhost", ErrNone},
		{"underscore in a domain", "FROM:<a@my_host.example>", "a", "my_host.example", ErrNone},
		{"dot at the end", "FROM:<a@example.com.>", "", "", ErrBadSender},
		{"dot at the start", "FROM:<a@.example.com>", "", "", ErrBadSender},
		{"two dots", "FROM:<a@example..com>", "", "", ErrBadSender},
		{"hyphen at a label's end", "FROM:<a@example-.com>", "", "", ErrBadSender},
		{"hyphen at a label's start", "FROM:<a@-example.com>", "", "", ErrBadSender},
		{"a slash in a domain", "FROM:<a@exa/mple.com>", "", "", ErrBadSender},
		{"63 octets are a label", "FROM:<a@" + label63 + ".com>", "a", label63 + ".com", ErrNone},
		{"64 are not", "FROM:<a@" + label63 + "a.com>", "", "", ErrBadSender},
		{"local part over 64 octets", "FROM:<" + strings.Repeat("l", 65) + "@example.com>", strings.Repeat("l", 65), "example.com", ErrNone},
		{"256 octets are a path, RFC 5321 §4.5.3.1.3", "FROM:<a@" + domain(252) + ">", "a", domain(252), ErrNone},
		{"257 are not", "FROM:<a@" + domain(253) + ">", "", "", ErrBadSender},
		{"NUL", "FROM:<a\x00@example.com>", "", "", ErrSyntax},
		{"NUL behind the path", "FROM:<a@example.com>\x00SIZE=1", "", "", ErrSyntax},
		{"CR", "FROM:<a\r@example.com>", "", "", ErrSyntax},
		{"LF in quotes", "FROM:<\"a\nb\"@example.com>", "", "", ErrSyntax},
		{"DEL", "FROM:<a\x7f@example.com>", "", "", ErrSyntax},
		{"TAB in quotes", "FROM:<\"a\tb\"@example.com>", "", "", ErrSyntax},
		{"not UTF-8", "FROM:<a\xff@example.com>", "", "", ErrSyntax},
		{"C1 control", "FROM:<a\xc2\x85@example.com> SMTPUTF8", "", "", ErrSyntax},
		{"line separator", "FROM:<a\xe2\x80\xa8@example.com> SMTPUTF8", "", "", ErrSyntax},
		{"UTF-8 without SMTPUTF8", "FROM:<s\u00e9nder@example.com>", "", "", ErrUTF8},
		{"UTF-8 without SMTPUTF8, and AUTH", "FROM:<s\u00e9nder@example.com> AUTH=<>", "", "", ErrUTF8},
		{"UTF-8 in a dropped source route", "FROM:<@b\u00fccher.example:a@example.com>", "", "", ErrUTF8},
		{"UTF-8 with SMTPUTF8 behind it, RFC 6531 §3.4", "FROM:<s\u00e9nder@b\u00fccher.example> SMTPUTF8", "s\u00e9nder", "b\u00fccher.example", ErrNone},
		{"a U-label over 63 octets", "FROM:<a@" + strings.Repeat("\u00fc", 40) + ".example> SMTPUTF8", "a", strings.Repeat("\u00fc", 40) + ".example", ErrNone},
	} {
		a, err := ParseMail([]byte(c.arg), OfferSMTPUTF8)
		if err != c.err || err == ErrNone && (string(a.Path.Local) != c.local || string(a.Path.Domain) != c.domain) {
			t.Errorf("%s: %q: got %q @ %q, %d, want %q @ %q, %d", c.name, c.arg, a.Path.Local, a.Path.Domain, err, c.local, c.domain, c.err)
		}
		if want := c.local + "@" + c.domain; err == ErrNone && want != "@" && string(a.Path.Mailbox) != want {
			t.Errorf("%s: mailbox %q", c.name, a.Path.Mailbox)
		}
	}
}

func TestForwardPathTable(t *testing.T) {
	for _, c := range []struct {
		arg  string
		utf8 bool
		want string
		err  SyntaxError
	}{
		{"TO:<user@example.com>", false, "user@example.com", ErrNone},
		{"to: <user@example.com>", false, "user@example.com", ErrNone},
		{"TO:<postmaster>", false, "postmaster", ErrNone}, // RFC 5321 §4.1.1.3, §4.5.1
		{"TO:<PostMaster>", false, "PostMaster", ErrNone},
		{"TO:<@a.example:postmaster>", false, "postmaster", ErrNone},
		{"TO:<@a.example:user@example.com>", false, "user@example.com", ErrNone},
		{"TO:<>", false, "", ErrBadRcpt},
		{"TO:<user>", false, "", ErrBadRcpt},
		{"TO:<postmasterx>", false, "", ErrBadRcpt},
		{"TO:<a b@example.com>", false, "", ErrBadRcpt},
		{"TO:<user@example.com", false, "", ErrSyntax},
		{"T:<user@example.com>", false, "", ErrSyntax},
		{"", false, "", ErrSyntax},
		{"TO:<user@example.com>junk", false, "", ErrSyntax},
		{"TO:<\u00fcser@example.com>", false, "", ErrUTF8},
		{"TO:<\u00fcser@example.com>", true, "\u00fcser@example.com", ErrNone},
		{"TO:<\xfcser@example.com>", true, "", ErrSyntax},
	} {
		a, err := ParseRcpt([]byte(c.arg), 0, c.utf8)
		if err != c.err || err == ErrNone && string(a.Path.Mailbox) != c.want {
			t.Errorf("%q: got %q, %d", c.arg, a.Path.Mailbox, err)
		}
	}
}

// RFC 5321 §4.5.3.1.2: no path can hold a domain of 255 octets, so the limit is tested below the path.
func TestDomainIsAtMost255Octets(t *testing.T) {
	d := bytes.Repeat([]byte("a."), 128)
	if !validDomain(d[:255]) || validDomain(append(d[:255:255], 'a')) {
		t.Fatal("the limit is not 255")
	}
}

// hasControl is the property that every accepted value must not have.
func hasControl(p []byte) bool {
	for _, r := range string(p) {
		if r < ' ' || r >= 0x7f && r <= 0x9f {
			return true
		}
	}
	return !utf8.Valid(p)
}

func checkPath(t *testing.T, p Path) {
	t.Helper()
	for _, f := range [][]byte{p.Mailbox, p.Local, p.Domain} {
		if hasControl(f) {
			t.Fatalf("control character accepted in %q", p.Mailbox)
		}
	}
	if want := string(p.Local) + "@" + string(p.Domain); len(p.Domain) > 0 && want != string(p.Mailbox) || len(p.Mailbox)+2 > MaxPathBytes {
		t.Fatalf("%q: local %q, domain %q", p.Mailbox, p.Local, p.Domain)
	}
}

const allOffers = OfferSize | Offer8BitMIME | OfferBinaryMIME | OfferSMTPUTF8 | OfferDSN | OfferAuth

// What is accepted has no control bytes, and the path in canonical form gives the same path again.
func FuzzParseMail(f *testing.F) {
	for _, s := range []string{
		"FROM:<a@b>", "from: <>", "FROM:<\"a\\\" b\"@[192.0.2.1]> SIZE=1 BODY=8BITMIME", "FROM:<@a,@b:c@d> RET=FULL ENVID=a+2Bb",
		"FROM:<\u00fc@\u00fc.example> SMTPUTF8 AUTH=a+40b", "FROM:<a@[IPv6:::1]> AUTH=<> SIZE=99999999999999999999", "FROM:<a@b>x", "FROM:<a\xc2\x80@b> SMTPUTF8",
	} {
		f.Add([]byte(s), uint16(allOffers))
		f.Add([]byte(s), uint16(0))
	}
	f.Fuzz(func(t *testing.T, arg []byte, offer uint16) {
		a, err := ParseMail(arg, Offer(offer))
		if err != ErrNone {
			return
		}
		checkPath(t, a.Path)
		if hasControl(arg) || hasControl(a.EnvID) || hasControl(a.Auth) {
			t.Fatalf("control character accepted in %q", arg)
		}
		if a.Size < -1 || a.Size > MaxSize {
			t.Fatal(a.Size)
		}
		canonical := append(append([]byte("FROM:<"), a.Path.Mailbox...), "> SMTPUTF8"...)
		b, err := ParseMail(canonical, OfferSMTPUTF8)
		if err != ErrNone || !samePath(a.Path, b.Path) {
			t.Fatalf("%q parsed again: %q, %d", canonical, b.Path.Mailbox, err)
		}
	})
}

func samePath(a, b Path) bool {
	return bytes.Equal(a.Mailbox, b.Mailbox) && bytes.Equal(a.Local, b.Local) && bytes.Equal(a.Domain, b.Domain)
}

func FuzzParseRcpt(f *testing.F) {
	for _, s := range []string{
		"TO:<a@b>", "TO:<postmaster>", "TO:<>", "to: <@a:\"x\"@b> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+0Ab", "TO:<a@b> ORCPT=utf-8;\\x{1F600}@b NOTIFY=NEVER",
		"TO:<\u00fc@b> ORCPT=utf-8;\u00fc@b",
	} {
		f.Add([]byte(s), uint16(allOffers), true)
		f.Add([]byte(s), uint16(allOffers), false)
	}
	f.Fuzz(func(t *testing.T, arg []byte, offer uint16, utf8 bool) {
		a, err := ParseRcpt(arg, Offer(offer), utf8)
		if err != ErrNone {
			return
		}
		checkPath(t, a.Path)
		if hasControl(arg) || len(a.Path.Mailbox) == 0 {
			t.Fatalf("accepted %q", arg)
		}
		if kind, x, ok := bytes.Cut(a.ORcpt, []byte(";")); ok && !strings.EqualFold(string(kind), "utf-8") {
			decoded, ok := ParseXtext(nil, x)
			if !ok || bytes.ContainsFunc(decoded, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Fatalf("ORCPT %q decodes to %q", a.ORcpt, decoded)
			}
		}
		canonical := append(append([]byte("TO:<"), a.Path.Mailbox...), '>')
		b, err := ParseRcpt(canonical, 0, utf8)
		if err != ErrNone || !samePath(a.Path, b.Path) {
			t.Fatalf("%q parsed again: %q, %d", canonical, b.Path.Mailbox, err)
		}
	})
}
