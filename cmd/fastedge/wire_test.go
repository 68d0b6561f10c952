package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/auth"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// wireCase is a dialogue over a real socket. Its steps are
//
//	> text        sent, with CRLF
//	! text        sent as it is
//	1 text        sent as it is, a byte at a time
//	< pattern     the next reply begins with this regular expression
//	tls           a handshake
//	half          the client has nothing more to send
//	end           the server closes without another byte
//	alert         the server closes; what comes before is no reply, a TLS alert as a rule
//	mail WORD IP  a message is accepted, and its Received field says WORD (RFC 3848) and the address
type wireCase struct {
	name string
	on   string // listener
	step []string
	logs string // the words that one new log line has
}

const (
	v2Head  = "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
	v2Addr4 = "\xc0\x00\x02\x09\xc6\x33\x64\x01\x11\x5c\x00\x19" // 192.0.2.9:4444 to 198.51.100.1:25
	v2Addr6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x11\x5c\x00\x19"
)

// credentials of X12: authorization identity testzid, user testuser.
const wireCredentials = "dGVzdHppZAB0ZXN0dXNlcgB0ZXN0cGFzc3dvcmQ="

// Where our column differs from python-slimta's, a comment says so.
var wireCases = []wireCase{
	{name: "X08 STARTTLS", on: "starttls", step: []string{
		"< 220 ", "> EHLO x", "< 250-.*STARTTLS", "> STARTTLS", `< 220 2\.7\.0`, "tls", "> QUIT", "< 221 ", "end"}},
	{name: "X09 after STARTTLS the session is new", on: "starttls", step: []string{
		"< 220 ", "> EHLO x", "< 250-", "> STARTTLS", "< 220 ", "tls", "> MAIL FROM:<a@b>", `< 503 5\.5\.1`}},
	{name: "X10 STARTTLS before EHLO, with an argument", on: "starttls", step: []string{
		"< 220 ", "> STARTTLS", "< 503 ", "> EHLO x", "< 250-", "> STARTTLS badarg", "< 501 "}},
	// Ours: closed. A 421 in clear could be taken for something that came over TLS.
	{name: "X10 garbage instead of a handshake", on: "starttls", logs: "TLS handshake", step: []string{
		"< 220 ", "> EHLO x", "< 250-", "> STARTTLS", "< 220 ", "> this is no handshake", "alert"}},
	{name: "X11 implicit TLS", on: "implicit", step: []string{"tls", "< 220 ", "> EHLO x", "< 250-", "> QUIT", "< 221 ", "end"}},
	{name: "X11 implicit TLS does not offer STARTTLS", on: "implicit", step: []string{"tls", "< 220 ", "> EHLO x", "< 250-", "> STARTTLS", "< 503 "}},
	{name: "X11 garbage on implicit TLS", on: "implicit", logs: "TLS handshake", step: []string{"> this is no handshake", "alert"}},
	{name: "X12 AUTH PLAIN with an initial response", on: "clear", step: []string{
		"< 220 ", "> EHLO x", "< 250-.*AUTH PLAIN LOGIN", "> AUTH PLAIN " + wireCredentials, `< 235 2\.7\.0`, "mail ESMTPA 127.0.0.1"}},
	{name: "X36 AUTH PLAIN, the response on a line of its own", on: "clear", step: []string{
		"< 220 ", "> EHLO x", "< 250-", "> AUTH PLAIN", `< 334 \r\n$`, "> " + wireCredentials, "< 235 "}},
	{name: "X37 AUTH canceled", on: "clear", step: []string{
		"< 220 ", "> EHLO x", "< 250-", "> AUTH PLAIN *", `< 501 5\.7\.0`, "> AUTH PLAIN", "< 334 ", "> *", `< 501 5\.7\.0`}},
	{name: "X38 AUTH LOGIN", on: "clear", step: []string{
		"< 220 ", "> EHLO x", "< 250-", "> AUTH LOGIN", "< 334 VXNlcm5hbWU6", "> dGVzdHVzZXI=", "< 334 UGFzc3dvcmQ6", "> dGVzdHBhc3N3b3Jk", "< 235 "}},
	{name: "X38 AUTH LOGIN with the user's name", on: "clear", step: []string{
		"< 220 ", "> EHLO x", "< 250-", "> AUTH LOGIN dGVzdHVzZXI=", "< 334 UGFzc3dvcmQ6", "> dGVzdHBhc3N3b3Jk", "< 235 "}},
	{name: "X39 no such mechanism", on: "clear", step: []string{
		"< 220 ", "> EHLO x", "< 250-", "> AUTH TEST", `< 504 5\.5\.4`, "> AUTH B@D", `< 504 5\.5\.4`}},
	{name: "X50 SMTP", on: "clear", step: []string{"< 220 ", "> HELO x", "< 250 ", "mail SMTP 127.0.0.1"}},
	{name: "X50 ESMTP", on: "clear", step: []string{"< 220 ", "> EHLO x", "< 250-", "mail ESMTP 127.0.0.1"}},
	{name: "X50 ESMTPS", on: "starttls", step: []string{
		"< 220 ", "> EHLO x", "< 250-", "> STARTTLS", "< 220 ", "tls", "> EHLO x", "< 250-", "mail ESMTPS 127.0.0.1"}},
	{name: "X50 ESMTPSA", on: "starttls", step: []string{
		"< 220 ", "> EHLO x", "< 250-", "> STARTTLS", "< 220 ", "tls", "> EHLO x", "< 250-", "> AUTH PLAIN " + wireCredentials, "< 235 ",
		"mail ESMTPSA 127.0.0.1"}},
	{name: "X50 SMTPS", on: "implicit", step: []string{"tls", "< 220 ", "> HELO x", "< 250 ", "mail SMTPS 127.0.0.1"}},

	{name: "X80 PROXY TCP4", on: "proxy", step: []string{
		"> PROXY TCP4 127.0.0.1 0.0.0.0 1234 5678", "< 220 ", "> EHLO x", "< 250-", "mail ESMTP 127.0.0.1"}},
	{name: "X80 PROXY TCP4 of a stranger", on: "proxy", step: []string{
		"> PROXY TCP4 192.0.2.9 198.51.100.1 4444 25", "< 220 ", "> EHLO x", "< 250-", "mail ESMTP 192.0.2.9"}},
	{name: "X81 PROXY TCP6", on: "proxy", step: []string{
		"> PROXY TCP6 ::1 ::0 8765 4321", "< 220 ", "> EHLO x", "< 250-", "mail ESMTP IPv6:::1"}},
	// Ours: the socket's address, which gives no rights.
	{name: "X82 PROXY UNKNOWN", on: "proxy", step: []string{
		"> PROXY UNKNOWN", "< 220 ", "> EHLO x", "< 250-", "mail ESMTP 127.0.0.1",
		"> MAIL FROM:<a@b>", "< 250 ", "> RCPT TO:<a@elsewhere.example>", `< 550 5\.7\.1`}},
	// Ours, X83 to X90: closed without a byte, and one line in the log. slimta goes on without an address.
	{name: "X83 NOPROXY", on: "proxy", logs: "PROXY header missing", step: []string{"> NOPROXY UNKNOWN", "end"}},
	{name: "X84 half a header", on: "proxy", logs: "left in the middle", step: []string{"! PROXY UNKNOWN", "half", "end"}},
	{name: "X85 unknown family", on: "proxy", logs: "PROXY header: ", step: []string{"> PROXY TEST 0.0.0.0 0.0.0.0 0 0", "end"}},
	{name: "X86 IPv6 addresses in TCP4", on: "proxy", logs: "PROXY header: ", step: []string{"> PROXY TCP4 ::0 ::0 0 0", "end"}},
	{name: "X87 IPv4 addresses in TCP6", on: "proxy", logs: "PROXY header: ", step: []string{"> PROXY TCP6 0.0.0.0 0.0.0.0 0 0", "end"}},
	{name: "X88 ports that are no numbers", on: "proxy", logs: "PROXY header: ", step: []string{"> PROXY TCP4 0.0.0.0 0.0.0.0 abc def", "end"}},
	{name: "X89 a port that is too large", on: "proxy", logs: "PROXY header: ", step: []string{"> PROXY TCP4 0.0.0.0 0.0.0.0 100000 0", "end"}},
	{name: "X90 107 bytes without CRLF", on: "proxy", logs: "PROXY header: too long", step: []string{
		"! PROXY UNKNOWN " + strings.Repeat("x", 107-len("PROXY UNKNOWN ")), "end"}},
	{name: "X91 version 2", on: "proxy", step: []string{
		"! " + v2Head + "\x21\x11\x00\x0c" + v2Addr4, "< 220 ", "> EHLO x", "< 250-", "mail ESMTP 192.0.2.9"}},
	{name: "X92 version 2, IPv6", on: "proxy", step: []string{
		"! " + v2Head + "\x21\x21\x00\x24" + v2Addr6, "< 220 ", "> EHLO x", "< 250-", "mail ESMTP IPv6:2001:db8::9"}},
	// Ours: served, with the socket's address. slimta closes, and a load balancer takes the server for dead.
	{name: "X93 LOCAL", on: "proxy", step: []string{
		"! " + v2Head + "\x20\x00\x00\x00", "< 220 ", "> EHLO x", "< 250-", "mail ESMTP 127.0.0.1"}},
	{name: "X94 a TLV that nobody knows", on: "proxy", step: []string{
		"! " + v2Head + "\x21\x11\x00\x11" + v2Addr4 + "\xe0\x00\x02ab", "< 220 ", "> EHLO x", "< 250-", "mail ESMTP 192.0.2.9"}},
	{name: "X95 version 1 in binary", on: "proxy", logs: "PROXY header: ", step: []string{"! " + v2Head + "\x11\x11\x00\x0c" + v2Addr4, "end"}},
	{name: "X95 unknown command", on: "proxy", logs: "PROXY header: ", step: []string{"! " + v2Head + "\x22\x11\x00\x0c" + v2Addr4, "end"}},
	{name: "X95 unknown family", on: "proxy", logs: "PROXY header: ", step: []string{"! " + v2Head + "\x21\x41\x00\x0c" + v2Addr4, "end"}},
	{name: "X95 short address", on: "proxy", logs: "PROXY header: ", step: []string{"! " + v2Head + "\x21\x11\x00\x04" + v2Addr4[:4], "end"}},
	{name: "X96 version 2 in pieces of a byte", on: "proxy", step: []string{
		"1 " + v2Head + "\x21\x11\x00\x0c" + v2Addr4, "< 220 ", "> EHLO x", "< 250-", "mail ESMTP 192.0.2.9"}},
	// The greeting and the reply to EHLO; nothing of EHLO is lost with the header.
	{name: "X97 header and EHLO in one segment", on: "proxy", step: []string{
		"! PROXY TCP4 192.0.2.9 198.51.100.1 4444 25\r\nEHLO x\r\n", "< 220 ", "< 250-"}},
	{name: "PROXY header from a peer that is not listed", on: "clear", logs: "not listed", step: []string{
		"< 220 ", "> PROXY TCP4 192.0.2.9 198.51.100.1 4444 25", "end"}},
	{name: "PROXY version 2 from a peer that is not listed", on: "starttls", logs: "not listed", step: []string{
		"< 220 ", "! " + v2Head + "\x21\x11\x00\x0c" + v2Addr4, "end"}},
	{name: "PROXY header before implicit TLS", on: "proxied-tls", step: []string{
		"> PROXY TCP4 192.0.2.9 198.51.100.1 4444 25", "tls", "< 220 ", "> EHLO x", "< 250-", "mail ESMTPS 192.0.2.9"}},
	{name: "a listed peer that stops in its header", on: "hasty", logs: "not complete in time", step: []string{"! PROXY", "end"}},
	{name: "a listed peer that says nothing", on: "hasty", step: []string{"end"}},
}

func TestWireCases(t *testing.T) {
	service := authService(t, func(q auth.HTTPQuestion) bool { return q.User == "testuser" && q.Password == "testpassword" })
	mechanisms := "auth = [\"PLAIN\", \"LOGIN\"]\n"
	listeners := []string{"clear", "starttls", "implicit", "proxy", "proxied-tls"}
	p := serve(t, t.TempDir(), edgeConfig(mechanisms, `
[[listen]]
name = "starttls"
address = "127.0.0.1:0"
tls = "opportunistic"
`+mechanisms+`
[[listen]]
name = "implicit"
address = "127.0.0.1:0"
tls = "implicit"
[[listen]]
name = "proxy"
address = "127.0.0.1:0"
proxy_protocol_from = ["127.0.0.1"]
[[listen]]
name = "proxied-tls"
address = "127.0.0.1:0"
tls = "implicit"
proxy_protocol_from = ["127.0.0.1"]
[timeouts]
proxy_header = "1m"
[auth]
http = "`+service+"\"\n"+ourDomain))
	addr := map[string]string{}
	for i, name := range listeners {
		addr[name] = p.addr[i]
	}
	// There the time for a header runs out.
	hasty := serve(t, t.TempDir(), edgeConfig("proxy_protocol_from = [\"127.0.0.1\"]\n", "[timeouts]\nproxy_header = \"500ms\"\n"))
	addr["hasty"] = hasty.addr[0]
	for _, c := range wireCases {
		t.Run(c.name, func(t *testing.T) {
			p := p
			if c.on == "hasty" {
				p = hasty
			}
			before := p.lines(c.logs)
			if err := runWireCase(p, addr[c.on], c.step); err != nil {
				t.Fatalf("%v\n%s", err, p.log)
			}
			if c.logs != "" {
				p.wait("a log line with "+c.logs, func() bool { return p.lines(c.logs) > before })
			}
		})
	}
}

func runWireCase(p *process, addr string, steps []string) error {
	c, err := dialSMTP("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	for _, step := range steps {
		word, rest, _ := strings.Cut(step, " ")
		switch word {
		case ">":
			_, err = io.WriteString(c.Conn, rest+"\r\n")
		case "!":
			_, err = io.WriteString(c.Conn, rest)
		case "1":
			for i := range len(rest) {
				if _, err = io.WriteString(c.Conn, rest[i:i+1]); err != nil {
					break
				}
			}
		case "<":
			var reply string
			if reply, err = c.reply(); err == nil && !matches(rest, reply) {
				err = fmt.Errorf("reply %q", reply)
			}
		case "tls":
			err = c.secure(trusting())
		case "half":
			err = c.Conn.(*net.TCPConn).CloseWrite()
		case "end":
			err = c.ended()
		case "alert":
			var rest []byte
			if rest, err = io.ReadAll(c.r); len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' {
				err = fmt.Errorf("a reply in clear: %q", rest)
			} else if !errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil // a reset is an end, too
			}
		case "mail":
			err = c.deliveredAs(p, rest)
		default:
			err = errors.New("no such step")
		}
		if err != nil {
			return fmt.Errorf("%q: %w", step, err)
		}
	}
	return nil
}

// deliveredAs sends a message and looks at what the Received field says of how and from where it came.
func (c *smtpClient) deliveredAs(p *process, what string) error {
	word, ip, _ := strings.Cut(what, " ")
	id, err := c.deliver("Subject: as " + word + "\r\n\r\n")
	if err != nil {
		return err
	}
	if field := p.received(id); !strings.Contains(field, " with "+word+" ") || !strings.Contains(field, "(["+ip+"])") {
		return fmt.Errorf("not %s from %s: %s", word, ip, field)
	}
	return nil
}
