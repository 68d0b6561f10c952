package httpedge

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/smtpcodec"
)

func TestAddressesAreBase64OfUTF8(t *testing.T) {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, c := range []struct {
		in, want string
		err      error
	}{
		{"", "", nil},
		{" \t", "", nil},
		{"c8OpbmRlckBleGFtcGxlLmNvbQ==", "sénder@example.com", nil},
		{"c8OpbmRlckBleGFtcGxlLmNvbQ", "sénder@example.com", nil},
		{" cjFAZXhhbXBsZS5jb20= ", "r1@example.com", nil},
		{encode(strings.Repeat("a", MaxAddressBytes)), strings.Repeat("a", MaxAddressBytes), nil},
		{encode(strings.Repeat("a", MaxAddressBytes+1)), "", errAddressTooLong},
		{strings.Repeat("A", 1<<16), "", errAddressTooLong},
		{"a@example.com", "", errBase64},
		{"cjFAZXhhbXBsZS5jb20==", "", errBase64},
		{"c8OpbmRlckBleGFtcGxlLmNvbQ=", "", errBase64},
		{"YR==", "", errBase64}, // bits behind the end
		{"Y", "", errBase64},
		{"=", "", errBase64},
		{"YWJj YWJj", "", errBase64},
		{"YWJj\r\nYWJj", "", errBase64},
		{"-_-_", "", errBase64}, // the alphabet of URLs
		{"YWJj\xff", "", errBase64},
		{encode("a@x>\r\nRCPT TO:<evil@x"), "", errAddressText},
		{encode("a\x00@x"), "", errAddressText},
		{encode("a\u0085@x"), "", errAddressText},
		{encode("a\u2028@x"), "", errAddressText},
		{encode("\xff@x"), "", errAddressText},
	} {
		got, err := decodeAddress([]byte("kept:"), []byte(c.in))
		if err != c.err || string(got) != "kept:"+c.want {
			t.Errorf("%.80q: %q, %v, and not %q, %v", c.in, got, err, c.want, c.err)
		}
	}
}

func TestRecipientListsAreSplit(t *testing.T) {
	for in, want := range map[string][]string{
		"":                          nil,
		" ":                         nil,
		"YQ==":                      {"YQ=="},
		"YQ==, Yg==":                {"YQ==", "Yg=="},
		"YQ== \t;\tYg== ,Yw==":      {"YQ==", "Yg==", "Yw=="},
		"YQ==,":                     {"YQ=="},
		",; ,YQ==,,;Yg==;":          {"YQ==", "Yg=="},
		"YQ== Yg==":                 {"YQ== Yg=="},
		strings.Repeat(",", 100000): nil,
	} {
		var got []string
		splitRecipients([]byte(in), func(item []byte) bool { got = append(got, string(item)); return true })
		if !slices.Equal(got, want) {
			t.Errorf("%.80q: %q", in, got)
		}
	}
	var got []string
	splitRecipients([]byte("a,b,c"), func(item []byte) bool { got = append(got, string(item)); return len(got) < 2 })
	if !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("stopped after %q", got)
	}
}

// What the clients of the protocol look for in X-Smtp-Reply.
var (
	clientsCode      = regexp.MustCompile(`^\s*(\d\d\d)\s*;`)
	clientsParameter = regexp.MustCompile(`\s(\w+)\s*=\s*"(.*?)"`)
)

// parseAsClientsDo gives code, message and command.
func parseAsClientsDo(value string) (code, message, command string) {
	if m := clientsCode.FindStringSubmatch(value); m != nil {
		code = m[1]
	}
	for _, m := range clientsParameter.FindAllStringSubmatch(value, -1) {
		switch m[1] {
		case "message":
			message = m[2]
		case "command":
			command = m[2]
		}
	}
	return code, message, command
}

// parseSMTPReply reads the whole format: what its writer meant, quotes and all.
func parseSMTPReply(value string) (code int, message, command string, ok bool) {
	m := regexp.MustCompile(`^(\d{3}); message="((?:[ !#-\[\]-~]|\\["\\])*)"(?:; command="([A-Z]+)")?$`).FindStringSubmatch(value)
	if m == nil {
		return 0, "", "", false
	}
	code, _ = strconv.Atoi(m[1])
	return code, regexp.MustCompile(`\\(.)`).ReplaceAllString(m[2], "$1"), m[3], true
}

func reply(code, subject, detail uint16, text string) smtpcodec.Reply {
	return smtpcodec.Reply{Code: code, Enhanced: smtpcodec.EnhancedCode{Class: code / 100, Subject: subject, Detail: detail}, Text: text}
}

func TestSMTPReplyIsWhatClientsLookFor(t *testing.T) {
	for _, c := range []struct {
		reply         smtpcodec.Reply
		command, want string
	}{
		{reply(250, 6, 0, "Message accepted for delivery"), "", `250; message="2.6.0 Message accepted for delivery"`},
		{reply(451, 3, 0, "Try again later"), "MAIL", `451; message="4.3.0 Try again later"; command="MAIL"`},
		{smtpcodec.Reply{Code: 550, Text: "Nope"}, "", `550; message="Nope"`},
		{smtpcodec.Reply{Code: 550}, "", `550; message=""`},
		{reply(550, 7, 1, "one\ntwo\nthree"), "RCPT", `550; message="5.7.1 one two three"; command="RCPT"`},
		{smtpcodec.Reply{Code: 554, Text: `say "no" \ maybe`}, "", `554; message="say \"no\" \\ maybe"`},
		{smtpcodec.Reply{Code: 554, Text: "a\r\x00\té"}, "", `554; message="a?????"`},
		{smtpcodec.Reply{Code: 550, Text: strings.Repeat("x", 600)}, "", `550; message="` + strings.Repeat("x", 512-15) + `"`},
		{smtpcodec.Reply{Code: 550, Text: strings.Repeat(`"`, 600)}, "RCPT", `550; message="` + strings.Repeat(`\"`, (512-15-16)/2) + `"; command="RCPT"`},
	} {
		got := string(appendSMTPReply(nil, c.reply, c.command))
		if got != c.want {
			t.Errorf("%s\nand not\n%s", got, c.want)
		}
		code, message, command := parseAsClientsDo(got)
		if code != fmt.Sprint(c.reply.Code) || command != c.command || message == "" && c.reply.Text != "" {
			t.Errorf("%s: clients read %q, %q, %q", got, code, message, command)
		}
	}
}

func TestStatusOfThePlainProtocol(t *testing.T) {
	for code, want := range map[uint16]int{250: 204, 251: 204, 421: 503, 450: 503, 451: 503, 452: 503, 454: 503, 535: 401, 500: 500, 530: 500, 550: 500, 552: 500, 554: 500, 354: 500} {
		if got := plainStatus(smtpcodec.Reply{Code: code}, 204); got != want {
			t.Errorf("%d: %d and not %d", code, got, want)
		}
	}
	if got := plainStatus(smtpcodec.Reply{Code: 250}, 200); got != 200 {
		t.Error(got)
	}
}

func TestMediaTypesAreCompared(t *testing.T) {
	for in, want := range map[string]bool{
		"message/rfc822": true, "Message/RFC822": true, " message/rfc822 ": true, "message/rfc822; charset=utf-8": true, "message/rfc822 ;x": true,
		"": false, "text/plain": false, "message/rfc8222": false, "message": false, ";message/rfc822": false, "message/rfc822, text/plain": false, "\"message/rfc822\"": false,
	} {
		if got := isMessageRFC822([]byte(in)); got != want {
			t.Errorf("%q: %t", in, got)
		}
	}
}

// FuzzDecodeAddress: what is accepted encodes to what it was, padding and blanks around aside, and is text without controls.
func FuzzDecodeAddress(f *testing.F) {
	for _, s := range []string{"", "c8OpbmRlckBleGFtcGxlLmNvbQ==", "YQ", "YR==", "YWJj\n", "DQo="} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := decodeAddress(nil, in)
		if err != nil {
			if len(got) > 0 {
				t.Fatalf("%q: %q with %v", in, got, err)
			}
			return
		}
		want := bytes.TrimRight(bytes.Trim(in, " \t"), "=")
		if again := base64.RawStdEncoding.EncodeToString(got); again != string(want) || !smtpcodec.ValidText(got) || len(got) > MaxAddressBytes {
			t.Fatalf("%q: %q, which is %q", in, got, again)
		}
	})
}

// FuzzSplitRecipients: the items are those of a split by regular expression, without the empty ones.
func FuzzSplitRecipients(f *testing.F) {
	f.Add("YQ== , Yg==;;Yw==")
	separator := regexp.MustCompile(`[ \t]*[,;][ \t]*`)
	f.Fuzz(func(t *testing.T, in string) {
		var got []string
		splitRecipients([]byte(in), func(item []byte) bool { got = append(got, string(item)); return true })
		var want []string
		for _, item := range separator.Split(strings.Trim(in, " \t"), -1) {
			if item = strings.Trim(item, " \t"); item != "" {
				want = append(want, item)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%q: %q and not %q", in, got, want)
		}
	})
}

// FuzzSMTPReply: any reply gives one header value that can be read back: the whole text when it fits, its beginning otherwise.
func FuzzSMTPReply(f *testing.F) {
	f.Add(uint16(550), uint16(1), uint16(1), `no "such" user\`+"\nhere", true)
	f.Add(uint16(250), uint16(0), uint16(0), strings.Repeat(`\`, 500), false)
	f.Fuzz(func(t *testing.T, code, subject, detail uint16, text string, withCommand bool) {
		r := reply(200+code%400, subject%1000, detail%1000, text)
		command := ""
		if withCommand {
			command = "DATA"
		}
		value := string(appendSMTPReply([]byte("kept"), r, command))[len("kept"):]
		if len(value) > MaxSMTPReplyBytes {
			t.Fatalf("%d bytes", len(value))
		}
		gotCode, message, gotCommand, ok := parseSMTPReply(value)
		if !ok || gotCode != int(r.Code) || gotCommand != command {
			t.Fatalf("%q: %d %q %t", value, gotCode, gotCommand, ok)
		}
		want := []byte(fmt.Sprintf("%d.%d.%d %s", r.Code/100, r.Enhanced.Subject, r.Enhanced.Detail, text))
		for i, c := range want {
			if c == '\n' {
				want[i] = ' '
			} else if c < ' ' || c > '~' {
				want[i] = '?'
			}
		}
		if !strings.HasPrefix(string(want), message) || len(message) < len(want) && len(value) < MaxSMTPReplyBytes-1 {
			t.Fatalf("%q: %q and not %q", value, message, want)
		}
		if c, _, _ := parseAsClientsDo(value); c != fmt.Sprint(r.Code) {
			t.Fatalf("%q: clients read %q", value, c)
		}
	})
}

func TestHeadersAllocateNothing(t *testing.T) {
	room := make([]byte, 0, 1024)
	r := reply(550, 1, 1, `No such user "here"`)
	value := []byte("cjFAZXhhbXBsZS5jb20=, cjJAZXhhbXBsZS5jb20=")
	items := 0
	if n := testing.AllocsPerRun(100, func() {
		splitRecipients(value, func(item []byte) bool {
			if _, err := decodeAddress(room, item); err != nil {
				t.Fatal(err)
			}
			items++
			return true
		})
		appendSMTPReply(room, r, "RCPT")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDecodeAddress(b *testing.B) {
	in := []byte("c29tZWJvZHkud2l0aC5hLm5hbWVAbWFpbC5leGFtcGxlLmNvbQ==")
	b.Run("impl=fastedge", func(b *testing.B) {
		room := make([]byte, 0, 1024)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeAddress(room, in); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("impl=naive", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p, err := base64.StdEncoding.DecodeString(string(in))
			if err != nil || !smtpcodec.ValidText(p) {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAppendSMTPReply(b *testing.B) {
	r := reply(250, 6, 0, "Message queued as 01jd3z8v6n3m5f7q9r2t4w6y8a")
	b.Run("impl=fastedge", func(b *testing.B) {
		room := make([]byte, 0, 1024)
		b.ReportAllocs()
		for b.Loop() {
			appendSMTPReply(room, r, "")
		}
	})
	b.Run("impl=naive", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			text := strings.NewReplacer("\\", `\\`, `"`, `\"`, "\n", " ").Replace(r.Text)
			_ = fmt.Sprintf(`%d; message="%d.%d.%d %s"`, r.Code, r.Enhanced.Class, r.Enhanced.Subject, r.Enhanced.Detail, text)
		}
	})
}
