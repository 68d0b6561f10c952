package smtpcodec

import (
	"strings"
	"testing"
)

func TestParseCommandTable(t *testing.T) {
	for _, c := range []struct {
		line string
		verb Verb
		arg  string
	}{
		{"NOOP", VerbNOOP, ""},
		{"noop", VerbNOOP, ""}, // RFC 5321 §2.4
		{"nOoP x", VerbNOOP, "x"},
		{"MAIL FROM:<a@b> SIZE=1", VerbMAIL, "FROM:<a@b> SIZE=1"},
		{"QUIT  \t ", VerbQUIT, ""}, // RFC 5321 §4.1.1
		{"EHLO \t a b  c ", VerbEHLO, "a b  c"},
		{"STARTTLS", VerbSTARTTLS, ""},
		{"starttls x", VerbSTARTTLS, "x"},
		{"cmd ARG ", VerbUnknown, "ARG"},
		{"cmd123", VerbUnknown, ""},
		{"cmd\xff", VerbUnknown, ""},
		{"BANNER_", VerbUnknown, ""},
		{"", VerbUnknown, ""},
		{" ", VerbUnknown, ""},
		{" QUIT", VerbUnknown, "QUIT"},
		{"\tQUIT", VerbUnknown, "QUIT"},
		{"QUIT\x00", VerbUnknown, ""},
		{"QUIT\r", VerbUnknown, ""},
		{"MAI\x0c", VerbUnknown, ""}, // 0x0C and 'l' share the low bits
		{"\x0dAIL", VerbUnknown, ""},
		{"MAIL:FROM", VerbUnknown, ""},
		{"\xc5\xbftarttls", VerbUnknown, ""}, // long s
		{"GET / HTTP/1.1", VerbHTTP, "/ HTTP/1.1"},
		{"PRI * HTTP/2.0", VerbHTTP, "* HTTP/2.0"},
		{"POST /x", VerbHTTP, "/x"},
		{"GET", VerbUnknown, ""},
		{"GET ", VerbHTTP, ""},
		{"POSTX /", VerbUnknown, "/"},
	} {
		v, arg := ParseCommand([]byte(c.line))
		if v != c.verb || string(arg) != c.arg {
			t.Errorf("%q: got %v %q, want %v %q", c.line, v, arg, c.verb, c.arg)
		}
	}
}

func TestEveryVerbIsKnownByItsName(t *testing.T) {
	for v := VerbHELO; v < VerbHTTP; v++ {
		for _, line := range []string{v.String(), strings.ToLower(v.String())} {
			if got, _ := ParseCommand([]byte(line)); got != v {
				t.Errorf("%q is %v", line, got)
			}
		}
	}
	for word := range strings.FieldsSeq("GET POST PUT HEAD OPTIONS DELETE CONNECT PATCH TRACE PRI") {
		if got, _ := ParseCommand([]byte(word + " /")); got != VerbHTTP {
			t.Errorf("%q is %v", word, got)
		}
	}
	if NumVerbs.String() != "unknown" {
		t.Error(NumVerbs)
	}
}

// Setting bit 5 of each byte must not let any other byte pass for a letter.
func TestVerbsHaveNoNeighbours(t *testing.T) {
	for v := VerbHELO; v < VerbHTTP; v++ {
		name := v.String()
		for i := range len(name) {
			for c := range 256 {
				w := []byte(name)
				w[i] = byte(c)
				if verbOf(w) == v && byte(c)&^0x20 != name[i] {
					t.Fatalf("%q is taken for %v", w, v)
				}
			}
		}
	}
}

// RFC 3030 §2.
func TestParseBdatTable(t *testing.T) {
	for _, c := range []struct {
		arg  string
		size int64
		last bool
		err  SyntaxError
	}{
		{"0", 0, false, ErrNone},
		{"0 LAST", 0, true, ErrNone},
		{"86 last", 86, true, ErrNone},
		{"86   LAST", 86, true, ErrNone},
		{"1000000000000000000", MaxSize, false, ErrNone},
		{"00000000000000000001", 1, false, ErrNone},
		{"000000000000000000001", 0, false, ErrSyntax}, // 21 digits
		{"1000000000000000001", 0, false, ErrSyntax},
		{"9223372036854775808", 0, false, ErrSyntax},
		{"18446744073709551626", 0, false, ErrSyntax}, // 2^64 + 10
		{"99999999999999999999", 0, false, ErrSyntax},
		{"", 0, false, ErrSyntax},
		{"LAST", 0, false, ErrSyntax},
		{" 1", 0, false, ErrSyntax},
		{"-1", 0, false, ErrSyntax},
		{"+1", 0, false, ErrSyntax},
		{"1.5", 0, false, ErrSyntax},
		{"0x10", 0, false, ErrSyntax},
		{"10 LASTX", 0, false, ErrSyntax},
		{"10 LAST LAST", 0, false, ErrSyntax},
		{"10\tLAST", 0, false, ErrSyntax},
		{"10\x00 LAST", 0, false, ErrSyntax},
	} {
		size, last, err := ParseBdat([]byte(c.arg))
		if size != c.size || last != c.last || err != c.err {
			t.Errorf("%q: got %d, %v, %d", c.arg, size, last, err)
		}
	}
}

func TestHeloNamesThatCouldBreakAReceivedFieldAreRefused(t *testing.T) {
	for _, name := range []string{
		"mail.example.com", "localhost", "WIN-7_X", "192.0.2.1", "[192.0.2.1]", "[IPv6:2001:db8::1]", "[::1]", "::1", "a+b", "x",
		strings.Repeat("a", 255),
	} {
		if !ValidHelo([]byte(name)) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{
		"", "a b", "a b  c", "a\tb", "a\x00", "a\rb", "a\nb", "\x7f", "a(b", "a)b", "a;b", "a,b", "<a>", "a\"b", "a\\b", "a@b", "[]", "[", "]",
		"[a", "a]", "a[b]", "[a]b", "[a]b]", "[[a]]", "b\xc3\xbccher.example", "\xff", strings.Repeat("a", 256),
	} {
		if ValidHelo([]byte(name)) {
			t.Errorf("%q is taken", name)
		}
	}
}

func TestCommandsDoNotAllocate(t *testing.T) {
	in := []byte("MAIL FROM:<@relay.example:\"a b\"@[192.0.2.1]> SIZE=10 BODY=8BITMIME RET=FULL ENVID=a+20b AUTH=a+40b\r\n" +
		"RCPT TO:<someone@example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@example.net\r\nBDAT 100 LAST\r\nEHLO mail.example.com\r\n")
	offer := OfferSize | Offer8BitMIME | OfferDSN | OfferAuth
	if a := testing.AllocsPerRun(100, func() {
		for rest := in; len(rest) > 0; {
			line, n, st := ScanLine(rest, 2048, false)
			if st != LineOK {
				t.Fatal(st)
			}
			rest = rest[n:]
			err := ErrNone
			switch v, arg := ParseCommand(line); v {
			case VerbMAIL:
				_, err = ParseMail(arg, offer)
			case VerbRCPT:
				_, err = ParseRcpt(arg, offer, false)
			case VerbBDAT:
				_, _, err = ParseBdat(arg)
			case VerbEHLO:
				err = syntaxUnless(ValidHelo(arg))
			}
			if err != ErrNone {
				t.Fatalf("%q: %d", line, err)
			}
		}
	}); a != 0 {
		t.Fatal(a)
	}
}
