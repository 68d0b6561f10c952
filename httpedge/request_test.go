package httpedge

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/fastedge/fastedge/envelope"
)

var testLimits = limits{MaxMessageBytes: 1 << 20, MaxRecipients: 5, Key: true}

// decoded is what decodeMessage made of a text: values and data, or the error.
type decoded struct {
	m    message
	data []byte
	err  error
}

func decode(r io.Reader, limit limits) (d decoded) {
	d.err = decodeMessage(r, limit, &d.m, func(p []byte) error {
		if len(p) == 0 {
			return errors.New("empty piece")
		}
		d.data = append(d.data, p...)
		return nil
	})
	return d
}

// String is all that a caller can see; the data that came before an error is not part of it.
func (d decoded) String() string {
	if d.err != nil {
		var fault *requestError
		if errors.As(d.err, &fault) {
			return fmt.Sprintf("error %s %q: %s", fault.Reason, fault.Pointer, fault.Text)
		}
		return "error " + d.err.Error()
	}
	m := d.m
	var b strings.Builder
	fmt.Fprintf(&b, "from %q helo %q client %v %q utf8 %t tls %t ret %d envid %q metadata %q key %q", m.MailFrom, m.Helo, m.Client, m.ClientHelo, m.SMTPUTF8,
		m.RequireTLS, m.Ret, m.EnvID, m.Metadata, m.Key)
	for _, r := range m.Rcpts {
		fmt.Fprintf(&b, " to %q %q %d", r.Address, r.ORcpt, r.Notify)
	}
	fmt.Fprintf(&b, " %d %q", m.RawBytes, d.data)
	return b.String()
}

const fullMessage = `{"mail_from":"a@example.com","rcpt_to":["b@example.net",{"address":"c@example.net","notify":["success","delay"],"orcpt":"rfc822;c+d=e@example.net"},` +
	`{"address":"\u00e9@example.net","orcpt":"utf-8;é \\+😀@example.net"}],"raw":"Subject: h\u00e9\r\n\r\n\ud83d\ude00é\/\"\\\b\f\t\u0000\n","helo":"me.example",` +
	`"client":{"address":"::ffff:192.0.2.7","helo":"mail.example.com"},"smtputf8":true,"requiretls":false,"dsn":{"ret":"hdrs","envid":"a b+c","notify":["never"]},` +
	` "metadata" : { "a" : [ 1 , -0.5e+3 , "x\ny\u20ac é" , { } , [ ] , null , true , false ] } , "idempotency_key":"k-1"} ` + "\r\n"

func TestEveryMemberOfAMessageIsRead(t *testing.T) {
	got := decode(strings.NewReader(fullMessage), testLimits)
	want := decoded{m: message{
		MailFrom: []byte("a@example.com"), Helo: []byte("me.example"), Client: netip.MustParseAddr("192.0.2.7"), ClientHelo: []byte("mail.example.com"), SMTPUTF8: true,
		Ret: envelope.RetHdrs, EnvID: []byte("a+20b+2Bc"), Metadata: []byte(`{"a":[1,-0.5e+3,"x\ny\u20ac é",{},[],null,true,false]}`), Key: []byte("k-1"), RawBytes: 30,
		Rcpts: []rcpt{
			{Address: []byte("b@example.net"), Notify: envelope.NotifyNever},
			{Address: []byte("c@example.net"), ORcpt: []byte("rfc822;c+2Bd+3De@example.net"), Notify: envelope.NotifySuccess | envelope.NotifyDelay},
			{Address: []byte("é@example.net"), ORcpt: []byte(`utf-8;\x{E9}\x{20}\x{5C}\x{2B}\x{1F600}@example.net`), Notify: envelope.NotifyNever},
		},
	}, data: []byte("Subject: hé\r\n\r\n😀é/\"\\\b\f\t\x00\n")}
	if got.String() != want.String() {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestMembersOfAMessageComeInAnyOrder(t *testing.T) {
	members := []string{`"mail_from":""`, `"rcpt_to":["b@example.net",{"address":"c@example.net","notify":["failure"]}]`, `"raw_base64":"aGVsbG8="`, `"dsn":{"notify":["delay"]}`}
	want := decode(strings.NewReader("{"+strings.Join(members, ",")+"}"), testLimits)
	if want.err != nil || string(want.data) != "hello" || want.m.Rcpts[0].Notify != envelope.NotifyDelay || want.m.Rcpts[1].Notify != envelope.NotifyFailure {
		t.Fatal(want)
	}
	for range members {
		members = append(members[1:], members[0])
		for _, order := range [][]string{members, {members[1], members[0], members[3], members[2]}} {
			if got := decode(strings.NewReader("{"+strings.Join(order, ",")+"}"), testLimits); got.String() != want.String() {
				t.Errorf("%s:\n%s\nand not\n%s", order, got, want)
			}
		}
	}
}

// with gives a message with one member more.
func with(member string) string {
	return `{"mail_from":"a@example.com","rcpt_to":["b@example.net"],"raw":"x",` + member + `}`
}

// from gives a message whose recipients and data are these.
func from(rcpts, data string) string { return `{"mail_from":"","rcpt_to":` + rcpts + `,` + data + `}` }

func TestFaultsOfAMessageAreToldWithTheirPlace(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, c := range []struct{ in, reason, pointer, text string }{
		{``, "syntax", "", "the JSON text ends too early"},
		{` `, "syntax", "", "the JSON text ends too early"},
		{"\xEF\xBB\xBF{}", "syntax", "", `expected an object, found '\u00ef'`},
		{`[]`, "syntax", "", "expected an object, found an array"},
		{`"x"`, "syntax", "", "expected an object, found a string"},
		{`null`, "syntax", "", "expected an object, found null"},
		{`{`, "syntax", "", "the JSON text ends too early"},
		{`{}`, "syntax", "", `member "mail_from" is missing; "" stands for the empty reverse-path`},
		{`{"mail_from":""}`, "syntax", "", `member "rcpt_to" is missing`},
		{`{"mail_from":"","rcpt_to":[]}`, "syntax", "", `member "raw" or "raw_base64" is missing`},
		{from(`[]`, `"raw":"","raw_base64":""`), "syntax", "", `members "raw" and "raw_base64" exclude each other`},
		{`{"mail_from":"",}`, "syntax", "", `expected a string, found '}'`},
		{`{,}`, "syntax", "", `expected a string, found ','`},
		{`{"mail_from"}`, "syntax", "/mail_from", `expected ":", found '}'`},
		{`{"mail_from" "x"}`, "syntax", "/mail_from", `expected ":", found a string`},
		{`{"mail_from":"" "rcpt_to":[]}`, "syntax", "", `expected "," or the end of an object, found a string`},
		{`{"mail_from":""]`, "syntax", "", `expected "," or the end of an object, found ']'`},
		{`{mail_from:""}`, "syntax", "", `expected a string, found 'm'`},
		{`{"mail_from":null}`, "syntax", "/mail_from", "expected a string, found null"},
		{`{"mail_from":7}`, "syntax", "/mail_from", "expected a string, found a number"},
		{`{"mail_from":"a","mail_from":"a"}`, "syntax", "/mail_from", "member stands twice"},
		{`{"Mail_From":"a"}`, "syntax", "/Mail_From", "unknown member"},
		{`{"a/b~c":"a"}`, "syntax", "/a~1b~0c", "unknown member"},
		{`{"` + long + `":"a"}`, "syntax", "", "longer than 32 bytes"},
		{`{"` + long[:33] + `\x":"a"}`, "syntax", "", "longer than 32 bytes"},
		{`{"mail_from":"` + long + `"}`, "syntax", "/mail_from", "longer than 320 bytes"},
		{`{"mail_from":"a\r\nRCPT TO:<x@example.com>"}`, "syntax", "/mail_from", "control character in the string"},
		{`{"mail_from":"\u0085"}`, "syntax", "/mail_from", "control character in the string"},
		{"{\"mail_from\":\"a\nb\"}", "syntax", "/mail_from", "control character in the string that is not escaped"},
		{"{\"mail_from\":\"\xff\"}", "syntax", "/mail_from", "not UTF-8"},
		{`{"mail_from":"\x41"}`, "syntax", "/mail_from", "bad escape in the string"},
		{`{"mail_from":"\u00g0"}`, "syntax", "/mail_from", "bad escape in the string"},
		{`{"mail_from":"\ud83d"}`, "syntax", "/mail_from", "bad escape in the string"},
		{`{"mail_from":"\ud83d\n"}`, "syntax", "/mail_from", "bad escape in the string"},
		{`{"mail_from":"\ud83d\u0041"}`, "syntax", "/mail_from", "bad escape in the string"},
		{`{"mail_from":"\ude00"}`, "syntax", "/mail_from", "bad escape in the string"},
		{`{"mail_from":"\ud83d\ude0`, "syntax", "/mail_from", "the JSON text ends too early"},
		{with(`"x":1`), "syntax", "/x", "unknown member"},
		{with(`"helo":1`), "syntax", "/helo", "expected a string, found a number"},
		{with(`"helo":"` + long[:256] + `"`), "syntax", "/helo", "longer than 255 bytes"},
		{with(`"smtputf8":1`), "syntax", "/smtputf8", "expected true or false, found a number"},
		{with(`"smtputf8":tru`), "syntax", "/smtputf8", "expected true"},
		{with(`"requiretls":"true"`), "syntax", "/requiretls", "expected true or false, found a string"},
		{with(`"smtputf8":true1`), "syntax", "", `expected "," or the end of an object, found a number`},
		{with(`"client":"192.0.2.7"`), "syntax", "/client", "expected an object, found a string"},
		{with(`"client":{}`), "syntax", "/client", `member "address" is missing`},
		{with(`"client":{"address":"192.0.2.256"}`), "syntax", "/client/address", "expected an IPv4 or IPv6 address"},
		{with(`"client":{"address":""}`), "syntax", "/client/address", "expected an IPv4 or IPv6 address"},
		{with(`"client":{"address":"fe80::1%eth0"}`), "syntax", "/client/address", "expected an IPv4 or IPv6 address"},
		{with(`"client":{"address":"::1","name":"x"}`), "syntax", "/client/name", "unknown member"},
		{with(`"dsn":{"ret":"FULL"}`), "syntax", "/dsn/ret", `expected "full" or "hdrs"`},
		{with(`"dsn":{"envid":""}`), "syntax", "/dsn/envid", "expected printable ASCII, not empty"},
		{with(`"dsn":{"envid":"é"}`), "syntax", "/dsn/envid", "expected printable ASCII, not empty"},
		{with(`"dsn":{"envid":"` + long[:101] + `"}`), "syntax", "/dsn/envid", "longer than 100 bytes"},
		{with(`"dsn":{"envid":"` + strings.Repeat("+", 34) + `"}`), "syntax", "/dsn/envid", "longer than 100 bytes"},
		{with(`"dsn":{"notify":[]}`), "syntax", "/dsn/notify", "expected at least one word"},
		{with(`"dsn":{"notify":"never"}`), "syntax", "/dsn/notify", "expected an array, found a string"},
		{with(`"dsn":{"notify":["sometimes"]}`), "syntax", "/dsn/notify/0", `expected "never", "success", "failure" or "delay"`},
		{with(`"dsn":{"notify":["delay","delay"]}`), "syntax", "/dsn/notify/1", "word stands twice"},
		{with(`"dsn":{"notify":["delay","never"]}`), "syntax", "/dsn/notify/1", `"never" excludes the others`},
		{with(`"dsn":{"orcpt":"x"}`), "syntax", "/dsn/orcpt", "unknown member"},
		{with(`"idempotency_key":""`), "idempotency_key", "/idempotency_key", "expected 1 to 255 visible ASCII characters"},
		{with(`"idempotency_key":"a b"`), "idempotency_key", "/idempotency_key", "expected 1 to 255 visible ASCII characters"},
		{with(`"idempotency_key":"` + long[:256] + `"`), "syntax", "/idempotency_key", "longer than 255 bytes"},
		{with(`"metadata":[]`), "syntax", "/metadata", "expected an object, found an array"},
		{with(`"metadata":{"a":01}`), "syntax", "/metadata", "malformed number"},
		{with(`"metadata":{"a":1.}`), "syntax", "/metadata", "malformed number"},
		{with(`"metadata":{"a":-}`), "syntax", "/metadata", "malformed number"},
		{with(`"metadata":{"a":1e}`), "syntax", "/metadata", "malformed number"},
		{with(`"metadata":{"a":x}`), "syntax", "/metadata", `expected a value, found 'x'`},
		{with(`"metadata":{"a":1,}`), "syntax", "/metadata", `expected a string, found '}'`},
		{with(`"metadata":{"a":[1,]}`), "syntax", "/metadata", `expected a value, found ']'`},
		{with(`"metadata":{"a":[1 2]}`), "syntax", "/metadata", `expected "," or the end of an array, found a number`},
		{with(`"metadata":{"a":"\ud800"}`), "syntax", "/metadata", "bad escape in the string"},
		{with("\"metadata\":{\"a\":\"\xc3\"}"), "syntax", "/metadata", "not UTF-8"},
		{with(`"metadata":{"a":"` + long + `\x"}`), "syntax", "/metadata", "longer than 4096 bytes"},
		{with(`"metadata":{"a":"` + long + `"}`), "syntax", "/metadata", "longer than 4096 bytes"},
		{with(`"metadata":{"a":` + strings.Repeat("1", 5000) + `}`), "syntax", "/metadata", "longer than 4096 bytes"},
		{with(`"metadata":{"a":` + strings.Repeat("[", 16) + strings.Repeat("]", 16) + `}`), "syntax", "/metadata", "deeper than 16 levels"},
		{from(`"x"`, `"raw":""`), "syntax", "/rcpt_to", "expected an array, found a string"},
		{from(`["x",7]`, `"raw":""`), "syntax", "/rcpt_to/1", "expected a string, found a number"},
		{from(`["x",]`, `"raw":""`), "syntax", "/rcpt_to/1", "expected a string, found ']'"},
		{from(`["x",{}]`, `"raw":""`), "syntax", "/rcpt_to/1", `member "address" is missing`},
		{from(`[{"address":"x","addr":"y"}]`, `"raw":""`), "syntax", "/rcpt_to/0/addr", "unknown member"},
		{from(`[{"address":"x","orcpt":"rfc822"}]`, `"raw":""`), "syntax", "/rcpt_to/0/orcpt", `expected an address type, ";" and an address, as in "rfc822;user@example.com"`},
		{from(`[{"address":"x","orcpt":"a b;x"}]`, `"raw":""`), "syntax", "/rcpt_to/0/orcpt", `expected an address type, ";" and an address, as in "rfc822;user@example.com"`},
		{from(`[{"address":"x","orcpt":"rfc822;é"}]`, `"raw":""`), "syntax", "/rcpt_to/0/orcpt", "expected printable ASCII, or the address type utf-8"},
		{from(`[{"address":"x","orcpt":"rfc822;`+strings.Repeat("=", 200)+`"}]`, `"raw":""`), "syntax", "/rcpt_to/0/orcpt", "longer than 500 bytes"},
		{from(`["1","2","3","4","5","6"]`, `"raw":""`), "too_many_recipients", "/rcpt_to/5", "more than 5 recipients"},
		{from(`[]`, `"raw":7`), "syntax", "/raw", "expected a string, found a number"},
		{from(`[]`, "\"raw\":\"\xe9\""), "syntax", "/raw", "not UTF-8"},
		{from(`[]`, `"raw_base64":"!"`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw_base64":"YQ=="} x`), "syntax", "", "something follows the object"},
		{from(`[]`, `"raw_base64":"YQ==YQ=="`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw_base64":"YQ==\nYQ=="`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw_base64":"Y"`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw_base64":"YR"`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw_base64":"YR=="`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw_base64":"YQ="`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw_base64":"="`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw_base64":"YW Jj"`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw_base64":"YW-_"`), "syntax", "/raw_base64", "not base64"},
		{from(`[]`, `"raw":""`) + "{", "syntax", "", "something follows the object"},
	} {
		want := fmt.Sprintf("error %s %q: %s", c.reason, c.pointer, c.text)
		for _, r := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in))} {
			if got := decode(r, testLimits).String(); got != want {
				t.Errorf("%.200q:\n%s\nand not\n%s", c.in, got, want)
			}
		}
	}
}

func TestKeyIsAMemberInBatchesOnly(t *testing.T) {
	limit := testLimits
	limit.Key = false
	if got := decode(strings.NewReader(with(`"idempotency_key":"k"`)), limit).String(); got != `error syntax "/idempotency_key": unknown member` {
		t.Error(got)
	}
}

func TestBoundsOfAMessageAreTakenAndOneMoreIsNot(t *testing.T) {
	limit := limits{MaxMessageBytes: 6, MaxRecipients: 2, Key: true}
	for _, c := range []struct{ format, fits, over string }{
		{from(`[]`, `"raw":"%s"`), `abc\r\n\t`, `abc\r\n\t.`},
		{from(`[]`, `"raw_base64":"%s"`), "MTIzNDU2", "MTIzNDU2Nw"},
		{from(`[%s]`, `"raw":""`), `"a","b"`, `"a","b","c"`},
		{`{"mail_from":"%s","rcpt_to":[],"raw":""}`, strings.Repeat("a", MaxAddressBytes), strings.Repeat("a", MaxAddressBytes+1)},
		{from(`[]`, `"raw":"","helo":"%s"`), strings.Repeat("h", MaxHeloBytes), strings.Repeat("h", MaxHeloBytes+1)},
		{from(`[]`, `"raw":"","idempotency_key":"%s"`), strings.Repeat("k", 255), strings.Repeat("k", 256)},
		{from(`[]`, `"raw":"","dsn":{"envid":"%s"}`), strings.Repeat("e", 100), strings.Repeat("e", 101)},
		{from(`[{"address":"x","orcpt":"rfc822;%s"}]`, `"raw":""`), strings.Repeat("o", 493), strings.Repeat("o", 494)},
		{from(`[]`, `"raw":"","metadata":{ "a" : "%s" }`), strings.Repeat("m", MaxMetadataBytes-8), strings.Repeat("m", MaxMetadataBytes-7)},
		{from(`[]`, `"raw":"","metadata":{"a":%s}`), strings.Repeat("[", 15) + strings.Repeat("]", 15), strings.Repeat("[", 16) + strings.Repeat("]", 16)},
	} {
		if got := decode(strings.NewReader(fmt.Sprintf(c.format, c.fits)), limit); got.err != nil {
			t.Errorf(c.format+": %v", c.fits, got.err)
		}
		if got := decode(strings.NewReader(fmt.Sprintf(c.format, c.over)), limit); got.err == nil {
			t.Errorf(c.format+" is accepted", c.over)
		}
	}
}

func TestErrorsOfTheReaderAndTheSinkComeThrough(t *testing.T) {
	broken := errors.New("broken")
	if got := decode(io.MultiReader(strings.NewReader(fullMessage[:200]), iotest.ErrReader(broken)), testLimits); got.err != broken {
		t.Error(got.err)
	}
	if got := decode(io.MultiReader(strings.NewReader(from(`[]`, `"raw":""`)), iotest.ErrReader(io.ErrUnexpectedEOF)), testLimits); got.err != io.ErrUnexpectedEOF {
		t.Error(got.err)
	}
	if got := decode(stuckReader{}, testLimits); got.err != io.ErrNoProgress {
		t.Error(got.err)
	}
	for _, data := range []string{`"raw":"x"`, `"raw":"\n"`, `"raw_base64":"YQ"`} {
		var m message
		if err := decodeMessage(strings.NewReader(from(`[]`, data)), testLimits, &m, func([]byte) error { return broken }); err != broken {
			t.Error(data, err)
		}
	}
}

type stuckReader struct{}

func (stuckReader) Read([]byte) (int, error) { return 0, nil }

// readers gives in cut in several ways.
func readers(in []byte, seed uint32) []io.Reader {
	return []io.Reader{
		iotest.OneByteReader(bytes.NewReader(in)),
		iotest.HalfReader(bytes.NewReader(in)),
		iotest.DataErrReader(bytes.NewReader(in)),
		&randomReader{in: in, next: seed},
	}
}

// randomReader gives pieces of 0 to 15 bytes.
type randomReader struct {
	in   []byte
	next uint32
}

func (r *randomReader) Read(p []byte) (int, error) {
	if len(r.in) == 0 {
		return 0, io.EOF
	}
	r.next = r.next*1664525 + 1013904223
	n := copy(p, r.in[:min(len(r.in), int(r.next>>28))])
	r.in = r.in[n:]
	return n, nil
}

func TestEverySplitOfAMessageGivesTheSame(t *testing.T) {
	want := decode(strings.NewReader(fullMessage), testLimits).String()
	for cut := range len(fullMessage) {
		r := io.MultiReader(strings.NewReader(fullMessage[:cut]), strings.NewReader(fullMessage[cut:]))
		if got := decode(r, testLimits).String(); got != want {
			t.Fatalf("cut at %d:\n%s\nand not\n%s", cut, got, want)
		}
		if got := decode(strings.NewReader(fullMessage[:cut]), testLimits); cut < len(fullMessage)-3 && got.err == nil {
			t.Fatalf("%q is accepted", fullMessage[:cut])
		}
	}
	for i, r := range readers([]byte(fullMessage), 1) {
		if got := decode(r, testLimits).String(); got != want {
			t.Fatalf("reader %d:\n%s\nand not\n%s", i, got, want)
		}
	}
}

// The decoder's buffer has one end only, which every part of a message must be able to lie across.
func TestAMessageLiesAnywhereInTheBuffer(t *testing.T) {
	text := strings.TrimRight(fullMessage, " \r\n")
	want := decode(strings.NewReader(text), testLimits).String()
	for k := range len(text) {
		if got := decode(strings.NewReader(strings.Repeat(" ", decoderBytes-k)+text), testLimits).String(); got != want {
			t.Fatalf("%d bytes before the end of the buffer:\n%s\nand not\n%s", k, got, want)
		}
	}
}

func TestLargeDataArrivesWhole(t *testing.T) {
	var data []byte
	for i := range 40000 {
		data = append(data, "line "...)
		data = append(data, byte('a'+i%26))
		data = append(data, " é\r\n"...)
	}
	quoted, _ := json.Marshal(string(data))
	encoded := base64.StdEncoding.EncodeToString(data)
	var wrapped strings.Builder
	for rest := encoded; rest != ""; rest = rest[min(76, len(rest)):] {
		wrapped.WriteString(rest[:min(76, len(rest))] + `\r\n`)
	}
	for name, member := range map[string]string{
		"raw": `"raw":` + string(quoted), "base64": `"raw_base64":"` + encoded + `"`, "wrapped": `"raw_base64":"` + wrapped.String() + `"`,
		"php": `"raw_base64":"` + strings.ReplaceAll(encoded, "/", `\/`) + `"`,
	} {
		in := from(`["b@example.net"]`, member)
		for _, r := range append(readers([]byte(in), 7), strings.NewReader(in)) {
			if got := decode(r, testLimits); got.err != nil || !bytes.Equal(got.data, data) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got.data), len(data), got.err)
			}
		}
	}
}

func TestAMessageCanBeUsedAgain(t *testing.T) {
	var m message
	sink := func([]byte) error { return nil }
	if err := decodeMessage(strings.NewReader(fullMessage), testLimits, &m, sink); err != nil {
		t.Fatal(err)
	}
	if err := decodeMessage(strings.NewReader(from(`["x"]`, `"raw":""`)), testLimits, &m, sink); err != nil {
		t.Fatal(err)
	}
	if got, want := (decoded{m: m}).String(), decode(strings.NewReader(from(`["x"]`, `"raw":""`)), testLimits).String(); got != want {
		t.Errorf("%s\nand not\n%s", got, want)
	}
}

// FuzzDecodeMessage: every split gives the same; what is accepted is JSON, the document allows it, and encoding/json reads the same from it.
func FuzzDecodeMessage(f *testing.F) {
	f.Add([]byte(fullMessage), uint32(1))
	f.Add([]byte(from(`["x",{"address":"y"}]`, `"raw_base64":"YWJj\r\nZGU="`)), uint32(2))
	f.Add([]byte(with(`"metadata":{"a":[1,2.5e-7,{"b":"\ud83d\ude00"}]}`)), uint32(3))
	f.Add([]byte(with(`"client":{"address":"2001:db8::1"}`)), uint32(4))
	f.Add([]byte(from(`[]`, `"raw":"\ud83d`)), uint32(5))
	doc := loadOpenAPI(f)
	header := http.Header{"Content-Type": {"application/json"}}
	f.Fuzz(func(t *testing.T, in []byte, seed uint32) {
		got := decode(bytes.NewReader(in), testLimits)
		for i, r := range readers(in, seed) {
			if other := decode(r, testLimits).String(); other != got.String() {
				t.Fatalf("%q\nat once: %s\nreader %d: %s", in, got, i, other)
			}
		}
		if got.err != nil {
			return
		}
		checkWithEncodingJSON(t, in, got)
		if len(got.m.Key) > 0 {
			return // a member of batches only, and those are checked by lines
		}
		if err := doc.CheckRequest("POST", "/v1/messages", header, in); err != nil {
			t.Fatal(err)
		}
	})
}

// checkWithEncodingJSON compares what was decoded with what encoding/json makes of the text.
func checkWithEncodingJSON(t *testing.T, in []byte, got decoded) {
	t.Helper()
	if !json.Valid(in) || !utf8.Valid(in) {
		t.Fatalf("%q is accepted", in)
	}
	var twin struct {
		From   string            `json:"mail_from"`
		To     []json.RawMessage `json:"rcpt_to"`
		Raw    string            `json:"raw"`
		Base64 string            `json:"raw_base64"`
		Helo   string            `json:"helo"`
		Client struct {
			Address string `json:"address"`
			Helo    string `json:"helo"`
		} `json:"client"`
		SMTPUTF8   bool `json:"smtputf8"`
		RequireTLS bool `json:"requiretls"`
		DSN        struct {
			Ret    string   `json:"ret"`
			EnvID  string   `json:"envid"`
			Notify []string `json:"notify"`
		} `json:"dsn"`
		Metadata json.RawMessage `json:"metadata"`
		Key      string          `json:"idempotency_key"`
	}
	d := json.NewDecoder(bytes.NewReader(in))
	d.DisallowUnknownFields()
	if err := d.Decode(&twin); err != nil {
		t.Fatalf("%q: %v", in, err)
	}
	data := []byte(twin.Raw)
	if twin.Base64 != "" {
		// Blanks out, padding off: what is left must be the encoding of the data.
		plain := strings.TrimRight(strings.NewReplacer("\r", "", "\n", "").Replace(twin.Base64), "=")
		if base64.RawStdEncoding.EncodeToString(got.data) != plain {
			t.Fatalf("%q: data %q", in, got.data)
		}
		data = got.data
	}
	var metadata bytes.Buffer
	if twin.Metadata != nil {
		if err := json.Compact(&metadata, twin.Metadata); err != nil {
			t.Fatal(err)
		}
	}
	m := got.m
	var to []string
	for _, raw := range twin.To {
		var one struct{ Address string }
		if json.Unmarshal(raw, &one.Address) != nil {
			if err := json.Unmarshal(raw, &one); err != nil {
				t.Fatal(err)
			}
		}
		to = append(to, one.Address)
	}
	addresses := slices.Collect(func(yield func(string) bool) {
		for _, r := range m.Rcpts {
			if !yield(string(r.Address)) {
				return
			}
		}
	})
	for _, c := range [][2]string{
		{string(m.MailFrom), twin.From}, {string(got.data), string(data)}, {string(m.Helo), twin.Helo}, {string(m.ClientHelo), twin.Client.Helo},
		{string(m.Metadata), metadata.String()}, {string(m.Key), twin.Key}, {fmt.Sprint(m.SMTPUTF8, m.RequireTLS), fmt.Sprint(twin.SMTPUTF8, twin.RequireTLS)},
		{fmt.Sprintf("%q", addresses), fmt.Sprintf("%q", to)}, {fmt.Sprint(m.RawBytes), fmt.Sprint(len(data))},
		{fmt.Sprint(m.Client.IsValid()), fmt.Sprint(twin.Client.Address != "")},
		{fmt.Sprint(m.Ret), fmt.Sprint(slices.Index([]string{"", "full", "hdrs"}, twin.DSN.Ret))},
		{fmt.Sprint(len(m.EnvID) > 0), fmt.Sprint(twin.DSN.EnvID != "")},
	} {
		if c[0] != c[1] {
			t.Fatalf("%q: %q, and encoding/json has %q", in, c[0], c[1])
		}
	}
}

// FuzzMessageFromEncodingJSON: what encoding/json writes is accepted, with the same values.
func FuzzMessageFromEncodingJSON(f *testing.F) {
	f.Add("a@example.com", "b@example.net", "Subject: x\r\n\r\n<&>\u2028 \x00é😀", []byte{0, 255}, "h", "k")
	f.Fuzz(func(t *testing.T, from, to, raw string, data []byte, helo, meta string) {
		for _, s := range []string{from, to, helo, raw, meta} {
			if !utf8.ValidString(s) {
				return
			}
		}
		body := map[string]any{"mail_from": from, "rcpt_to": []any{to, map[string]any{"address": to}}, "helo": helo, "metadata": map[string]string{meta: raw}, "raw": raw}
		want := []byte(raw)
		if len(data) > 0 {
			delete(body, "raw")
			body["raw_base64"], want = data, data
		}
		in, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		got := decode(bytes.NewReader(in), testLimits)
		if got.err != nil {
			var fault *requestError
			known := errors.As(got.err, &fault) && (strings.HasPrefix(fault.Text, "longer than") || fault.Text == "control character in the string" || fault.Reason == "size")
			if !known {
				t.Fatalf("%q: %v", in, got.err)
			}
			return
		}
		if !bytes.Equal(got.data, want) || string(got.m.MailFrom) != from || string(got.m.Rcpts[1].Address) != to || string(got.m.Helo) != helo {
			t.Fatalf("%q:\n%s", in, got)
		}
	})
}

func TestDecodingAMessageAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector's sync.Pool forgets on purpose")
	}
	for _, in := range []string{fullMessage, from(`["b@example.net"]`, `"raw_base64":"`+strings.Repeat("YWJj", 20000)+`"`)} {
		var m message
		size := 0
		sink := func(p []byte) error { size += len(p); return nil }
		r := strings.NewReader(in)
		if n := testing.AllocsPerRun(200, func() {
			r.Reset(in)
			if err := decodeMessage(r, testLimits, &m, sink); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func BenchmarkDecodeMessage(b *testing.B) {
	data := bytes.Repeat([]byte("The quick brown fox jumps over the lazy dog, and then it does so once more.\r\n"), 54)
	quoted, _ := json.Marshal(string(data))
	for _, shape := range []struct{ name, in string }{
		{"raw-4KiB", from(`["b@example.net"]`, `"client":{"address":"192.0.2.7"},"raw":`+string(quoted))},
		{"base64-4KiB", from(`["b@example.net"]`, `"raw_base64":"`+base64.StdEncoding.EncodeToString(data)+`"`)},
		{"base64-1MiB", from(`["b@example.net"]`, `"raw_base64":"`+base64.StdEncoding.EncodeToString(bytes.Repeat(data, 250))+`"`)},
		{"utf8-4KiB", from(`["b@example.net"]`, `"raw":"`+strings.Repeat("日本語 ", 400)+`"`)},
	} {
		b.Run("impl=fastedge/"+shape.name, func(b *testing.B) {
			var m message
			size := 0
			sink := func(p []byte) error { size += len(p); return nil }
			r := strings.NewReader("")
			limit := limits{MaxMessageBytes: 25 << 20, MaxRecipients: 1000}
			b.SetBytes(int64(len(shape.in)))
			b.ReportAllocs()
			for b.Loop() {
				r.Reset(shape.in)
				if err := decodeMessage(r, limit, &m, sink); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("impl=naive/"+shape.name, func(b *testing.B) { // less strict, and the whole message is in memory three times
			r := strings.NewReader("")
			b.SetBytes(int64(len(shape.in)))
			b.ReportAllocs()
			for b.Loop() {
				var m struct {
					From   string            `json:"mail_from"`
					To     []json.RawMessage `json:"rcpt_to"`
					Raw    string            `json:"raw"`
					Base64 []byte            `json:"raw_base64"`
					Client struct{ Address netip.Addr }
				}
				r.Reset(shape.in)
				d := json.NewDecoder(r)
				d.DisallowUnknownFields()
				if err := d.Decode(&m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
