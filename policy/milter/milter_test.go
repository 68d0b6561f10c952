package milter

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	protocol "github.com/emersion/go-milter"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
)

// event is a message from a@example.net to two recipients.
func event() *policy.Event {
	e := &policy.Event{
		Stage: policy.AtMessage, Size: 99, Envelope: &envelope.Envelope{ReversePath: []byte("a@example.net"), Body: envelope.Body8BitMIME},
		Client: policy.Client{Addr: netip.MustParseAddrPort("192.0.2.1:40000"), Listener: "mx", Helo: []byte("mail.example.net"), User: "ann", Mechanism: "PLAIN"},
	}
	e.Envelope.AddRecipient([]byte("b@example.org"), nil, 0)
	e.Envelope.AddRecipient([]byte("c@example.org"), nil, 0)
	return e
}

const message = "From: a\r\nSubject:  two\r\n\tlines\r\nEmpty:\r\nOld : x\r\n\r\nbody\r\n\r\n.end\r\n"

// recorder writes down what it is shown. What it answers to a step is in answers, by the step's word.
type recorder struct {
	protocol.NoOpMilter
	mu      *sync.Mutex
	seen    *[]string
	answers map[string]protocol.Response
	end     func(m *protocol.Modifier)
}

func (r recorder) step(word, format string, args ...any) (protocol.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*r.seen = append(*r.seen, word+" "+fmt.Sprintf(format, args...))
	if a := r.answers[word]; a != nil {
		return a, nil
	}
	return protocol.RespContinue, nil
}

func (r recorder) Connect(host, family string, port uint16, addr net.IP, m *protocol.Modifier) (protocol.Response, error) {
	return r.step("connect", "%s %s %d %s %s", host, family, port, addr, m.Macros["j"])
}

func (r recorder) Helo(name string, m *protocol.Modifier) (protocol.Response, error) {
	return r.step("helo", "%s", name)
}

func (r recorder) MailFrom(from string, m *protocol.Modifier) (protocol.Response, error) {
	return r.step("mail", "%s %s %s", from, m.Macros["{auth_authen}"], m.Macros["{auth_type}"])
}

func (r recorder) RcptTo(to string, m *protocol.Modifier) (protocol.Response, error) {
	return r.step("rcpt", "%s", to)
}

func (r recorder) Header(name, value string, m *protocol.Modifier) (protocol.Response, error) {
	return r.step("header", "%q %q", name, value)
}

func (r recorder) Headers(textproto.MIMEHeader, *protocol.Modifier) (protocol.Response, error) {
	return r.step("eoh", "")
}

func (r recorder) BodyChunk(chunk []byte, m *protocol.Modifier) (protocol.Response, error) {
	if len(chunk) > 100 {
		return r.step("body", "%d bytes", len(chunk))
	}
	return r.step("body", "%q", chunk)
}

func (r recorder) Body(m *protocol.Modifier) (protocol.Response, error) {
	if r.end != nil {
		r.end(m)
	}
	return r.step("end", "")
}

// serve runs a recorder behind a socket.
func serve(t *testing.T, steps protocol.OptProtocol, answers map[string]protocol.Response, end func(*protocol.Modifier)) (*Milter, *[]string) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "milter"))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen []string
	srv := &protocol.Server{Protocol: steps, NewMilter: func() protocol.Milter { return recorder{mu: &mu, seen: &seen, answers: answers, end: end} }}
	go srv.Serve(ln)
	t.Cleanup(func() { ln.Close() })
	return open(t, Options{Network: "unix", Address: ln.Addr().String(), Hostname: "mx1"}), &seen
}

func open(t *testing.T, o Options) *Milter {
	t.Helper()
	o.Timeout = time.Minute
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// show gives the verdict as the client would read it.
func show(m *Milter, message string) (reply, fields string, err error) {
	r, f, err := m.show(context.Background(), event(), strings.NewReader(message))
	if r.Code != 0 {
		reply = strings.ReplaceAll(strings.TrimSuffix(string(r.AppendTo(nil)), "\r\n"), "\r\n", "|")
	}
	return reply, string(f), err
}

func TestAMilterIsShownTheWholeSession(t *testing.T) {
	m, seen := serve(t, 0, nil, nil)
	if reply, fields, err := show(m, message); reply != "" || fields != "" || err != nil {
		t.Fatalf("%q, %q, %v", reply, fields, err)
	}
	want := []string{
		"connect [192.0.2.1] tcp4 40000 192.0.2.1 mx1", "helo mail.example.net", "mail a@example.net ann PLAIN", "rcpt b@example.org",
		"rcpt c@example.org", `header "From" "a"`, `header "Subject" " two\n\tlines"`, `header "Empty" ""`, `header "Old" "x"`, "eoh ",
		`body "body\r\n\r\n.end\r\n"`, "end ",
	}
	if got := strings.Join(*seen, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s", got)
	}
	*seen = nil
	if _, _, err := show(m, "a: b\r\n\r\n"+strings.Repeat("x", 150_000)); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(*seen, "\n"); !strings.HasSuffix(got, "body 65535 bytes\nbody 65535 bytes\nbody 18930 bytes\nend ") {
		t.Errorf("chunks:\n%s", got)
	}
}

func TestStepsThatAMilterDoesNotWantAreLeftOut(t *testing.T) {
	m, seen := serve(t, protocol.OptNoConnect|protocol.OptNoHelo|protocol.OptNoRcptTo|protocol.OptNoHeaders|protocol.OptNoBody|protocol.OptNoEOH, nil, nil)
	if _, _, err := show(m, message); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(*seen, "|"); got != "mail a@example.net ann PLAIN|end " {
		t.Errorf("got %s", got)
	}
}

func TestAnswersBecomeReplies(t *testing.T) {
	reply := func(text string) protocol.Response { return protocol.NewResponse('y', []byte(text+"\x00")) }
	for _, step := range []string{"connect", "helo", "mail", "rcpt", "header", "eoh", "body", "end"} {
		for _, c := range []struct {
			answer protocol.Response
			want   string
			err    bool
		}{
			{protocol.RespAccept, "", false},
			{protocol.RespReject, "550 5.7.1 Message refused by content filter", false},
			{protocol.RespDiscard, "550 5.7.1 Message refused by content filter", false},
			{protocol.RespTempFail, "451 4.7.1 Message deferred by content filter, try again later", false},
			{reply("554 5.7.9 spam"), "554 5.7.9 spam", false},
			{reply("452 later"), "452 later", false},
			{reply("554-5.7.1 a\r\n554 5.7.1 b"), "554-5.7.1 a|554 5.7.1 b", false},
			{reply("554 5.7.1 a\nb\x01\xff\rc"), "554-5.7.1 a|554 5.7.1 b???c", false},
			{reply("250 ok"), "", true},
			{reply("999 x"), "", true},
			{reply("5x0 x"), "", true},
			{reply("-50 x"), "", true},
			{protocol.NewResponse('y', []byte("5")), "", true},
			{protocol.NewResponse('s', nil), "", true}, // was not negotiated
			{protocol.NewResponse('?', nil), "", true},
		} {
			m, seen := serve(t, 0, map[string]protocol.Response{step: c.answer}, nil)
			got, _, err := show(m, message)
			if got != c.want || (err != nil) != c.err {
				t.Errorf("%s: %q to %s: %q, %v", step, c.answer.Response().Data, (*seen)[len(*seen)-1], got, err)
			}
		}
	}
}

func TestFieldsAreAddedAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		end    func(m *protocol.Modifier)
		reply  string
		fields string
		err    string
	}{
		{func(m *protocol.Modifier) { m.AddHeader("X-A", "b"); m.InsertHeader(0, "X-C", "d") }, "", "X-A: b\r\nX-C: d\r\n", ""},
		{func(m *protocol.Modifier) { m.AddHeader("X-A", "b\r\n\tc\nd\n \n") }, "", "X-A: b\r\n\tc\r\n\td\r\n", ""},
		{func(m *protocol.Modifier) { m.AddHeader("X-A", " spaced\x01\xe4\rx") }, "", "X-A: spaced???x\r\n", ""},
		{func(m *protocol.Modifier) { m.AddHeader("X-A", "") }, "", "X-A:\r\n", ""},
		{func(m *protocol.Modifier) { m.AddHeader("X-A", strings.Repeat("y", 2000)) }, "", "X-A: " + strings.Repeat("y", 993) + "\r\n", ""},
		{func(m *protocol.Modifier) { m.AddHeader("X A", "b") }, "", "", "field called"},
		{func(m *protocol.Modifier) { m.AddHeader("", "b") }, "", "", "without a name"},
		{func(m *protocol.Modifier) { m.AddHeader("X-A: evil\r\nX", "b") }, "", "", "field called"},
		{func(m *protocol.Modifier) {
			for range 100 {
				m.AddHeader("X-A", strings.Repeat("y", 900))
			}
		}, "", "", "more than"},
		{func(m *protocol.Modifier) { m.ChangeHeader(1, "Subject", "x"); m.AddHeader("X-A", "b") }, "", "X-A: b\r\n", ""},
		{func(m *protocol.Modifier) { m.Quarantine("bad") }, "550 5.7.1 Message refused by content filter", "", ""},
		{func(m *protocol.Modifier) { m.AddRecipient("x@example.com") }, "", "", "not negotiated"},
		{func(m *protocol.Modifier) { m.DeleteRecipient("b@example.org") }, "", "", "not negotiated"},
		{func(m *protocol.Modifier) { m.ReplaceBody([]byte("x")) }, "", "", "not negotiated"},
		{func(m *protocol.Modifier) { m.ChangeFrom("x") }, "", "", "not negotiated"},
	} {
		m, _ := serve(t, 0, nil, c.end)
		reply, fields, err := show(m, message)
		if reply != c.reply || fields != c.fields || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q, %q, %v; want %q, %q, %s", reply, fields, err, c.reply, c.fields, c.err)
		}
	}
}

// serveRaw answers each connection with bytes, whatever is asked.
func serveRaw(t *testing.T, f func(conn net.Conn)) *Milter {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				f(conn)
			}()
		}
	}()
	return open(t, Options{Network: "tcp", Address: ln.Addr().String()})
}

func packet(code byte, data ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(1+len(data))), append([]byte{code}, data...)...)
}

func negotiated(version byte, steps uint32) []byte {
	return packet('O', append([]byte{0, 0, 0, version, 0, 0, 0, 1}, binary.BigEndian.AppendUint32(nil, steps)...)...)
}

func TestAMilterThatTalksNonsenseIsAnError(t *testing.T) {
	for name, say := range map[string][]byte{
		"nothing":           nil,
		"no packet":         []byte("220 mx ESMTP\r\n"),
		"length 0":          {0, 0, 0, 0},
		"huge":              {0xff, 0xff, 0xff, 0xff, 'O'},
		"no negotiation":    packet('c'),
		"short":             packet('O', 0, 0),
		"version 0":         negotiated(0, 0),
		"then it hangs up":  negotiated(6, 0),
		"field without NUL": append(negotiated(6, 0xffff), packet('h', []byte("X-A")...)...),
		"endless fields":    append(negotiated(6, 0xfffff), bytes.Repeat(packet('h', append([]byte("X-A\x00"), bytes.Repeat([]byte("y"), 1<<16)...)...), 100)...),
		"endless progress":  append(negotiated(6, 0), bytes.Repeat(packet('p', make([]byte, 1<<16)...), 100)...),
	} {
		m := serveRaw(t, func(conn net.Conn) {
			conn.Write(say)
			conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, conn)
		})
		if reply, fields, err := show(m, message); err == nil {
			t.Errorf("%s: %q, %q", name, reply, fields)
		}
	}
}

func TestAMilterThatIsNotThereIsAnError(t *testing.T) {
	m := open(t, Options{Network: "unix", Address: filepath.Join(t.TempDir(), "nobody")})
	if _, _, err := show(m, message); err == nil {
		t.Error("no error")
	}
}

func TestASilentMilterEndsWithTheTime(t *testing.T) {
	m := serveRaw(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, _, err := m.show(ctx, event(), strings.NewReader(message))
		done <- err
	}()
	cancel()
	if err := <-done; err == nil {
		t.Error("no error")
	}
}

// A milter that knows version 6 wants the blank after the colon, and no answers asked for.
func TestOptionsOfVersion6(t *testing.T) {
	var got []string
	m := serveRaw(t, func(conn net.Conn) {
		const quiet = protocol.OptNoConnReply | protocol.OptNoHeloReply | protocol.OptNoMailReply | protocol.OptNoRcptReply | protocol.OptNoHeaderReply |
			protocol.OptNoEOHReply | protocol.OptNoBodyReply | protocol.OptHeaderLeadingSpace
		conn.Write(negotiated(6, uint32(quiet)))
		for in := bufio.NewReader(conn); ; {
			var length uint32
			if binary.Read(in, binary.BigEndian, &length) != nil {
				return
			}
			data := make([]byte, length)
			io.ReadFull(in, data)
			switch data[0] {
			case 'L', 'M', 'D':
				got = append(got, string(data))
			case 'E':
				conn.Write(append(packet('h', []byte("X-A\x00 b\x00")...), packet('a')...))
			}
		}
	})
	reply, fields, err := show(m, message)
	if reply != "" || fields != "X-A: b\r\n" || err != nil {
		t.Errorf("%q, %q, %v", reply, fields, err)
	}
	text := fmt.Sprintf("%q", got)
	for _, want := range []string{`"LFrom\x00 a\x00"`, `"LSubject\x00  two\n\tlines\x00"`, `"M<a@example.net>\x00SIZE=99\x00BODY=8BITMIME\x00"`, `{auth_authen}\x00ann\x00`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

func TestHeaderSections(t *testing.T) {
	for in, want := range map[string]string{
		"":                          `[] ""`,
		"\r\n":                      `[] ""`,
		"\r\nbody":                  `[] "body"`,
		"body":                      `[] "body"`,
		"no field here\r\na: b\r\n": `[] "no field here\r\na: b\r\n"`,
		" folded first\r\n\r\nx":    `[] " folded first\r\n\r\nx"`,
		"a: b":                      `[a=" b"] ""`,
		"a: b\r\n":                  `[a=" b"] ""`,
		"a: b\r\nbody":              `[a=" b"] "body"`,
		"a: b\r\n\r\nc: d\r\n":      `[a=" b"] "c: d\r\n"`,
		"a: b\n\nc":                 `[a=" b"] "c"`,
		"a:\r\n \r\n\tc\r\n\r\n":    `[a="\n \n\tc"] ""`,
		"a : b\r\nc\t\t:d\r\n\r\n":  `[a=" b" c="d"] ""`,
		":x\r\n\r\n":                `[] ":x\r\n\r\n"`,
		"a b: c\r\n\r\n":            `[] "a b: c\r\n\r\n"`,
		"a: b\x00c\r\n\r\n":         `[a=" b?c"] ""`,
		"a\x00: b\r\n\r\n":          `[] "a\x00: b\r\n\r\n"`,
		"a: b\r\n\rx":               `[a=" b"] "\rx"`,
		"a: b\rc\r\n\r\n":           `[a=" b\rc"] ""`,
		"\xe4: b\r\n\r\n":           `["\xe4"=" b"] ""`,
	} {
		r := bufio.NewReader(strings.NewReader(in))
		var fields []string
		err := readHeader(r, func(name, value string) error {
			if name == "\xe4" {
				name = `"\xe4"`
			}
			fields = append(fields, fmt.Sprintf("%s=%q", name, value))
			return nil
		})
		rest, _ := io.ReadAll(r)
		if got := fmt.Sprintf("%v %q", fields, rest); got != want || err != nil {
			t.Errorf("%q: %s, %v, want %s", in, got, err, want)
		}
	}
}

func TestHeaderSectionsHaveBounds(t *testing.T) {
	count := func(message string) (n, longest int, err error) {
		err = readHeader(bufio.NewReader(strings.NewReader(message)), func(name, value string) error {
			n, longest = n+1, max(longest, len(value))
			return nil
		})
		return n, longest, err
	}
	if n, _, err := count(strings.Repeat("a: b\r\n", MaxFields) + "\r\n"); n != MaxFields || err != nil {
		t.Errorf("%d fields, %v", n, err)
	}
	if n, _, err := count(strings.Repeat("a: b\r\n", MaxFields+1) + "\r\n"); n != MaxFields || err == nil || err.Error() != "milter: Too many header fields" {
		t.Errorf("%d fields, %v", n, err)
	}
	if n, longest, err := count("a: " + strings.Repeat("x", 1<<20) + "\r\nb: c\r\n\r\n"); n != 2 || longest >= maxFieldBytes || err != nil {
		t.Errorf("%d fields, %d bytes, %v", n, longest, err)
	}
	if n, longest, err := count("a:\r\n" + strings.Repeat(" x\r\n", 1<<18) + "b: c\r\n\r\n"); n != 2 || longest > maxFieldBytes || err != nil {
		t.Errorf("%d fields, %d bytes, %v", n, longest, err)
	}
	cut := errors.New("gone")
	if err := readHeader(bufio.NewReader(io.MultiReader(strings.NewReader("a: b\r\n c"), errReader{cut})), func(string, string) error { return nil }); err != cut {
		t.Errorf("got %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestWrongOptionsAreRefused(t *testing.T) {
	for _, o := range []Options{{}, {Network: "udp", Address: "a:1"}, {Network: "tcp"}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// FuzzReadHeader: whatever the message, what is shown has no NUL and no line end that begins a line without a blank, and nothing but line ends,
// and what NUL became, is lost of a message with short fields.
func FuzzReadHeader(f *testing.F) {
	f.Add([]byte(message))
	f.Add([]byte("a: b\n c\r\n\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(in), 16)
		r = bufio.NewReaderSize(r, 600)
		shown := 0
		err := readHeader(r, func(name, value string) error {
			shown += len(name) + len(value)
			if name == "" || strings.ContainsAny(name, ": \t\r\n\x00") || strings.Contains(value, "\x00") {
				t.Errorf("%q: %q", name, value)
			}
			for _, line := range strings.Split(value, "\n")[1:] {
				if line == "" || line[0] != ' ' && line[0] != '\t' {
					t.Errorf("%q: %q", name, value)
				}
			}
			return nil
		})
		rest, _ := io.ReadAll(r)
		if err == nil && !bytes.HasSuffix(in, rest) || shown+len(rest) > len(in) {
			t.Errorf("%q leaves %q", in, rest)
		}
	})
}

// FuzzAddedField: what a milter adds is one header field, however it tries.
func FuzzAddedField(f *testing.F) {
	f.Add("X-A", "b\r\n\r\nbody")
	f.Add("X-A", "b\nX-C: d")
	f.Fuzz(func(t *testing.T, name, value string) {
		out, err := appendField(nil, name, value)
		if err != nil {
			return
		}
		lines := strings.Split(string(out), "\r\n")
		if lines[len(lines)-1] != "" || !strings.HasPrefix(lines[0], name+":") {
			t.Errorf("%q, %q: %q", name, value, out)
		}
		for i, line := range lines[:len(lines)-1] {
			if len(line) > maxAddedLine || strings.ContainsAny(line, "\r\n\x00") || i > 0 && (line[0] != ' ' && line[0] != '\t' || strings.TrimSpace(line) == "") {
				t.Errorf("%q, %q: %q", name, value, out)
			}
		}
	})
}
