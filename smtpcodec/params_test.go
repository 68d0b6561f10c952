package smtpcodec

import (
	"strings"
	"testing"
)

func TestMailParameterTable(t *testing.T) {
	none := MailArgs{Size: -1}
	for _, c := range []struct {
		params string
		offer  Offer
		want   MailArgs
		err    SyntaxError
		bad    string
	}{
		// RFC 1870 §3
		{"SIZE=0", OfferSize, MailArgs{Size: 0}, ErrNone, ""},
		{"size=5", OfferSize, MailArgs{Size: 5}, ErrNone, ""},
		{"  SIZE=5  ", OfferSize, MailArgs{Size: 5}, ErrNone, ""},
		{"SIZE=1000000000000000000", OfferSize, MailArgs{Size: MaxSize}, ErrNone, ""},
		{"SIZE=1000000000000000001", OfferSize, none, ErrSyntax, "SIZE=1000000000000000001"},
		{"SIZE=18446744073709551617", OfferSize, none, ErrSyntax, "SIZE=18446744073709551617"},
		{"SIZE=000000000000000000001", OfferSize, none, ErrSyntax, "SIZE=000000000000000000001"},
		{"SIZE", OfferSize, none, ErrSyntax, "SIZE"},
		{"SIZE=", OfferSize, none, ErrSyntax, "SIZE="},
		{"SIZE=-5", OfferSize, none, ErrSyntax, "SIZE=-5"},
		{"SIZE=ASDF", OfferSize, none, ErrSyntax, "SIZE=ASDF"},
		{"SIZE=5=5", OfferSize, none, ErrSyntax, "SIZE=5=5"},
		{"SIZE=5", 0, none, ErrUnknown, "SIZE=5"},
		{"SIZE=5 SIZE=5", OfferSize, none, ErrDuplicate, "SIZE=5"},
		// RFC 6152 §2, RFC 3030 §3
		{"BODY=7BIT", Offer8BitMIME, MailArgs{Size: -1, Body: Body7Bit}, ErrNone, ""},
		{"body=8bitmime", Offer8BitMIME, MailArgs{Size: -1, Body: Body8BitMIME}, ErrNone, ""},
		{"BODY=BINARYMIME", OfferBinaryMIME, MailArgs{Size: -1, Body: BodyBinaryMIME}, ErrNone, ""},
		{"BODY=BINARYMIME", Offer8BitMIME, none, ErrUnknown, "BODY=BINARYMIME"},
		{"BODY=8BITMIME", 0, none, ErrUnknown, "BODY=8BITMIME"},
		{"BODY=NONSENSE", Offer8BitMIME, none, ErrSyntax, "BODY=NONSENSE"},
		{"BODY", Offer8BitMIME, none, ErrSyntax, "BODY"},
		// RFC 6531 §3.4
		{"SMTPUTF8", OfferSMTPUTF8, MailArgs{Size: -1, SMTPUTF8: true}, ErrNone, ""},
		{"SMTPUTF8=1", OfferSMTPUTF8, none, ErrSyntax, "SMTPUTF8=1"},
		{"SMTPUTF8", 0, none, ErrUnknown, "SMTPUTF8"},
		// RFC 3461 §4.3, §4.4
		{"RET=FULL", OfferDSN, MailArgs{Size: -1, Ret: RetFull}, ErrNone, ""},
		{"RET=hdrs", OfferDSN, MailArgs{Size: -1, Ret: RetHdrs}, ErrNone, ""},
		{"RET=SOME", OfferDSN, none, ErrSyntax, "RET=SOME"},
		{"RET=FULL", 0, none, ErrUnknown, "RET=FULL"},
		{"ENVID=a+20b", OfferDSN, MailArgs{Size: -1, EnvID: []byte("a+20b")}, ErrNone, ""},
		{"ENVID=" + strings.Repeat("e", 100), OfferDSN, MailArgs{Size: -1, EnvID: []byte(strings.Repeat("e", 100))}, ErrNone, ""},
		{"ENVID=" + strings.Repeat("e", 101), OfferDSN, none, ErrSyntax, "ENVID=" + strings.Repeat("e", 101)},
		{"ENVID=a+0Ab", OfferDSN, none, ErrSyntax, "ENVID=a+0Ab"},
		{"ENVID=a+7Fb", OfferDSN, none, ErrSyntax, "ENVID=a+7Fb"},
		{"ENVID=a+E9b", OfferDSN, none, ErrSyntax, "ENVID=a+E9b"},
		{"ENVID=a+2", OfferDSN, none, ErrSyntax, "ENVID=a+2"},
		{"ENVID=a+2b", OfferDSN, none, ErrSyntax, "ENVID=a+2b"},
		{"ENVID", OfferDSN, none, ErrSyntax, "ENVID"},
		// RFC 4954 §5
		{"AUTH=<>", 0, MailArgs{Size: -1, Auth: []byte("<>")}, ErrNone, ""},
		{"AUTH=a+40example.com", OfferAuth, MailArgs{Size: -1, Auth: []byte("a+40example.com")}, ErrNone, ""},
		{"AUTH=a@example.com", OfferAuth, MailArgs{Size: -1, Auth: []byte("a@example.com")}, ErrNone, ""},
		{"AUTH=login", OfferAuth, MailArgs{Size: -1, Auth: []byte("login")}, ErrNone, ""},
		{"AUTH=a@example.com", 0, none, ErrUnknown, "AUTH=a@example.com"},
		{"AUTH=a+0D+0Ab", OfferAuth, none, ErrSyntax, "AUTH=a+0D+0Ab"},
		{"AUTH=\"a", OfferAuth, none, ErrSyntax, "AUTH=\"a"},
		{"AUTH=a+20b", OfferAuth, none, ErrSyntax, "AUTH=a+20b"},
		{"AUTH=" + strings.Repeat("a", 257), OfferAuth, none, ErrSyntax, "AUTH=" + strings.Repeat("a", 257)},
		{"AUTH", OfferAuth, none, ErrSyntax, "AUTH"},
		// RFC 5321 §4.1.2
		{"FOO=1", allOffers, none, ErrUnknown, "FOO=1"},
		{"TWO", allOffers, none, ErrUnknown, "TWO"},
		{"SIZE=5 X-FOO", allOffers, none, ErrUnknown, "X-FOO"},
		{"NOTIFY=NEVER", allOffers, none, ErrUnknown, "NOTIFY=NEVER"},
		{"-X=1", allOffers, none, ErrSyntax, "-X=1"},
		{"=1", allOffers, none, ErrSyntax, "=1"},
		{"A_B=1", allOffers, none, ErrSyntax, "A_B=1"},
		{"S\u017fZE=1", allOffers, none, ErrSyntax, "S\u017fZE=1"},
		{"ENVID=\u00e9", allOffers, none, ErrSyntax, "ENVID=\u00e9"},
		{"SIZE=5 BODY=7BIT SMTPUTF8 RET=FULL ENVID=x AUTH=<>", allOffers,
			MailArgs{Size: 5, Body: Body7Bit, SMTPUTF8: true, Ret: RetFull, EnvID: []byte("x"), Auth: []byte("<>")}, ErrNone, ""},
	} {
		a, err := ParseMail([]byte("FROM:<a@b> "+c.params), c.offer)
		if err != c.err || string(a.BadParam) != c.bad {
			t.Errorf("%q: got %d about %q, want %d", c.params, err, a.BadParam, c.err)
			continue
		}
		w := c.want
		if err == ErrNone && (a.Size != w.Size || a.Body != w.Body || a.Ret != w.Ret || a.SMTPUTF8 != w.SMTPUTF8 ||
			string(a.EnvID) != string(w.EnvID) || string(a.Auth) != string(w.Auth)) {
			t.Errorf("%q: got %+v", c.params, a)
		}
	}
}

func TestRcptParameterTable(t *testing.T) {
	for _, c := range []struct {
		params string
		utf8   bool
		notify uint8
		orcpt  string
		err    SyntaxError
	}{
		// RFC 3461 §4.1
		{"NOTIFY=NEVER", false, NotifyNever, "", ErrNone},
		{"notify=success,failure,delay", false, NotifySuccess | NotifyFailure | NotifyDelay, "", ErrNone},
		{"NOTIFY=DELAY", false, NotifyDelay, "", ErrNone},
		{"NOTIFY=NEVER,DELAY", false, 0, "", ErrSyntax},
		{"NOTIFY=DELAY,NEVER", false, 0, "", ErrSyntax},
		{"NOTIFY=DELAY,", false, 0, "", ErrSyntax},
		{"NOTIFY=,DELAY", false, 0, "", ErrSyntax},
		{"NOTIFY=ALWAYS", false, 0, "", ErrSyntax},
		{"NOTIFY", false, 0, "", ErrSyntax},
		{"NOTIFY=DELAY NOTIFY=DELAY", false, 0, "", ErrDuplicate},
		// RFC 3461 §4.2
		{"ORCPT=rfc822;a+2Bb@example.com", false, 0, "rfc822;a+2Bb@example.com", ErrNone},
		{"ORCPT=x400;any+20thing;else", false, 0, "x400;any+20thing;else", ErrNone},
		{"ORCPT=rfc822;" + strings.Repeat("o", 493), false, 0, "rfc822;" + strings.Repeat("o", 493), ErrNone},
		{"ORCPT=rfc822;" + strings.Repeat("o", 494), false, 0, "", ErrSyntax},
		{"ORCPT=rfc822;a+0Ab", false, 0, "", ErrSyntax}, // a line break in a spool file has been a root hole
		{"ORCPT=rfc822;a+0Db", false, 0, "", ErrSyntax},
		{"ORCPT=rfc822;a+00b", false, 0, "", ErrSyntax},
		{"ORCPT=rfc822;a+7Fb", false, 0, "", ErrSyntax},
		{"ORCPT=rfc822;a+0ab", false, 0, "", ErrSyntax},
		{"ORCPT=rfc822;\u00fc", true, 0, "", ErrSyntax},
		{"ORCPT=rfc822;", false, 0, "", ErrSyntax},
		{"ORCPT=;a", false, 0, "", ErrSyntax},
		{"ORCPT=a@example.com", false, 0, "", ErrSyntax},
		{"ORCPT=r(c;a", false, 0, "", ErrSyntax},
		{"ORCPT", false, 0, "", ErrSyntax},
		// RFC 6533 §3
		{"ORCPT=utf-8;a@example.com", false, 0, "utf-8;a@example.com", ErrNone},
		{"ORCPT=UTF-8;\\x{E9}\\x{1F600}\\x{2B}@example.com", false, 0, "UTF-8;\\x{E9}\\x{1F600}\\x{2B}@example.com", ErrNone},
		{"ORCPT=utf-8;\u00e9@example.com", true, 0, "utf-8;\u00e9@example.com", ErrNone},
		{"ORCPT=utf-8;\u00e9@example.com", false, 0, "", ErrSyntax},
		{"ORCPT=utf-8;\\x{0A}", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;\\x{7F}", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;\\x{85}", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;\\x{D800}", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;\\x{110000}", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;\\x{1000041}", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;\\x{}", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;\\x{41", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;\\x", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;a\\b", true, 0, "", ErrSyntax},
		{"ORCPT=utf-8;a+2Bb", true, 0, "", ErrSyntax},
		{"SIZE=1", false, 0, "", ErrUnknown},
		{"FOO", false, 0, "", ErrUnknown},
	} {
		a, err := ParseRcpt([]byte("TO:<a@b> "+c.params), allOffers, c.utf8)
		if err != c.err || err == ErrNone && (a.Notify != c.notify || string(a.ORcpt) != c.orcpt) {
			t.Errorf("%q: got %d, %q, error %d, want %d", c.params, a.Notify, a.ORcpt, err, c.err)
		}
		if (err != ErrNone) != (len(a.BadParam) > 0) {
			t.Errorf("%q: error %d about %q", c.params, err, a.BadParam)
		}
	}
	if _, err := ParseRcpt([]byte("TO:<a@b> NOTIFY=NEVER"), allOffers&^OfferDSN, false); err != ErrUnknown {
		t.Errorf("NOTIFY without DSN: %d", err)
	}
}

// RFC 3461 §4.
func TestXtextTable(t *testing.T) {
	for _, c := range []struct {
		in, out string
		ok      bool
	}{
		{"", "", true},
		{"abc", "abc", true},
		{"a+2Bb", "a+b", true},
		{"+00+FF", "\x00\xFF", true},
		{"a=b", "a", false},
		{"a b", "a", false},
		{"a+2bb", "a", false},
		{"a+2", "a", false},
		{"a+", "a", false},
		{"a+G0", "a", false},
		{"\x7f", "", false},
		{"\xe9", "", false},
	} {
		out, ok := ParseXtext(nil, []byte(c.in))
		if string(out) != c.out || ok != c.ok {
			t.Errorf("%q: got %q, %v", c.in, out, ok)
		}
	}
	if got := AppendXtext([]byte("x:"), []byte("a+b=c d\n\xe9~!")); string(got) != "x:a+2Bb+3Dc+20d+0A+E9~!" {
		t.Errorf("%q", got)
	}
}

func FuzzXtext(f *testing.F) {
	for _, s := range []string{"", "a+b=c", "\x00\xff ", "+2B", "+2b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		x := AppendXtext(nil, p)
		if out, ok := ParseXtext(nil, x); !ok || string(out) != string(p) {
			t.Fatalf("%q became %q became %q", p, x, out)
		}
		if out, ok := ParseXtext(nil, p); ok {
			if again, ok := ParseXtext(nil, AppendXtext(nil, out)); !ok || string(again) != string(out) {
				t.Fatalf("%q", p)
			}
		}
	})
}
