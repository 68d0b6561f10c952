package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fastedge/fastedge/auth"
)

// withRecipients is a server that takes mail for those in the file only, and looks at its files once a second.
func withRecipients(t *testing.T, text, rest string) (p *process, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "recipients")
	replaceFile(t, file, []byte(text))
	return serve(t, t.TempDir(), edgeConfig(strangers, fmt.Sprintf("[tls]\nreload_every = \"1s\"\n%srecipients = %q\n%s", ourDomain, file, rest))), file
}

// exists asks about one recipient on a connection of its own.
func exists(t *testing.T, addr, recipient string) bool {
	t.Helper()
	c, err := hello(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.must(t, "MAIL FROM:<a@example.org>\r\n", "250")
	reply := c.must(t, "RCPT TO:<"+recipient+">\r\n", "")
	if !strings.HasPrefix(reply, "250 2.1.5") && !strings.HasPrefix(reply, "550 5.1.1") {
		t.Errorf("%s: reply %q", recipient, reply)
	}
	return strings.HasPrefix(reply, "250")
}

func TestUnknownRecipientsAreRefusedWith550(t *testing.T) {
	p, _ := withRecipients(t, "user@example.net\n!user+gone@example.net\n", "")
	for recipient, want := range map[string]bool{
		"user@example.net": true, "User@EXAMPLE.net": true, "user+lists@example.net": true, "postmaster@example.net": true, "postmaster": true,
		"nobody@example.net": false, "user+gone@example.net": false, "users@example.net": false, "nobody+user@example.net": false,
	} {
		if got := exists(t, p.addr[0], recipient); got != want {
			t.Errorf("%s: accepted is %v, want %v", recipient, got, want)
		}
	}
	c := connect(t, p.addr[0])
	c.must(t, "MAIL FROM:<a@example.org>\r\nRCPT TO:<user@elsewhere.example>\r\n", "250", "550 5.7.1")
	// A refused recipient does not end the transaction.
	c.must(t, "RCPT TO:<nobody@example.net>\r\nRCPT TO:<user@example.net>\r\nDATA\r\n", "550 5.1.1", "250", "354")
	c.must(t, "Subject: to one\r\n\r\n.\r\n", "250 2.6.0")
}

func TestAChangedFileOfRecipientsIsInForceWithoutARestart(t *testing.T) {
	t.Parallel()
	p, file := withRecipients(t, "user@example.net\n", "")
	open := connect(t, p.addr[0]) // sessions that are open see it, too
	replaceFile(t, file, []byte("user@example.net\nnew@example.net\n"))
	p.wait("the new recipient", func() bool { return exists(t, p.addr[0], "new@example.net") })
	open.must(t, "MAIL FROM:<a@example.org>\r\nRCPT TO:<new@example.net>\r\n", "250", "250")

	replaceFile(t, file, []byte("user@example.net\nnew@example.net\nother@example.net\nno address\n"))
	p.waitLine("ERROR", "the old recipients stay in force", "line 4")
	if exists(t, p.addr[0], "other@example.net") || !exists(t, p.addr[0], "new@example.net") {
		t.Error("a file with a wrong line is in force")
	}
	// The mended file is taken, and the trouble was told once.
	replaceFile(t, file, []byte("user@example.net\nother@example.net\n"))
	p.wait("the mended file", func() bool { return exists(t, p.addr[0], "other@example.net") })
	if exists(t, p.addr[0], "new@example.net") {
		t.Error("a recipient that was removed exists")
	}
	if n := p.lines("the old recipients stay in force"); n != 1 {
		t.Errorf("%d log lines about the wrong file, want one:\n%s", n, p.log)
	}
}

func TestARuleOfEachStage(t *testing.T) {
	service := authService(t, func(auth.HTTPQuestion) bool { return true })
	admin := freeAddress(t)
	p := serve(t, t.TempDir(), edgeConfig("tls = \"opportunistic\"\nauth = [\"PLAIN\"]\n", `
[admin]
http = "`+admin+`"
[auth]
http = "`+service+`"
[[rule]]
name = "at-connect"
at = "connect"
when = 'client_ip == "127.0.0.2"'
reply = "554 5.7.1 Not from there"
[[rule]]
name = "at-connect-421"
at = "connect"
when = 'in_network(client_ip, "127.0.3.0/24")'
reply = "421 4.7.0 Not now"
[[rule]]
name = "at-helo"
at = "helo"
when = 'helo == "mx.example.net"'
reply = "550 5.7.1 That is our name"
[[rule]]
name = "at-tls"
at = "tls"
when = 'tls_server_name == "forbidden.example.net"'
reply = "421 4.7.0 Not that name"
[[rule]]
name = "at-auth"
at = "auth"
when = 'user == "mallory"'
reply = "535 5.7.8 Ask the postmaster"
[[rule]]
name = "backup"
at = "mail"
when = 'sender == "backup@evil.example"'
accept = true
[[rule]]
name = "at-mail"
at = "mail"
when = 'sender_domain == "evil.example"'
reply = "550 5.7.1 No mail from evil.example"
[[rule]]
name = "observing"
at = "mail"
when = 'sender_local == "watched"'
reply = "550 5.7.1 It would be refused"
mode = "observe"
[[rule]]
name = "own-words"
at = "rcpt"
when = 'recipient_local == "welcome"'
reply = "250 2.1.5 Welcome"
[[rule]]
name = "at-rcpt"
at = "rcpt"
when = 'recipient_local == "full"'
reply = "452 4.2.2 Mailbox full"
[[rule]]
name = "at-data"
at = "data"
when = 'recipients > 2'
reply = "554 5.5.0 Too many for our taste"
[[rule]]
name = "at-message"
at = "message"
when = 'size > 1000'
reply = "552 5.3.4 Too large for our taste"
`))
	addr := p.addr[0]

	for source, want := range map[string]string{"127.0.0.2": "554 5.7.1 Not from there", "127.0.3.4": "421 4.7.0 Not now"} {
		c, err := dialFrom(source, addr)
		if err != nil {
			t.Fatal(err)
		}
		c.must(t, "", want)
		if strings.HasPrefix(want, "421") {
			if err := c.ended(); err != nil {
				t.Error(err)
			}
		} else { // RFC 5321 §3.1: the client is to say QUIT
			c.must(t, "EHLO x\r\nQUIT\r\n", "503", "221")
		}
		c.Close()
	}

	c := connect(t, addr)
	c.must(t, "EHLO mx.example.net\r\n", "550 5.7.1 That is our name")
	c.must(t, "EHLO other.example.net\r\n", "250-")

	forbidden := trusting()
	forbidden.ServerName = "forbidden.example.net"
	c.must(t, "STARTTLS\r\n", "220")
	if err := c.secure(forbidden); err != nil {
		t.Fatal(err)
	}
	c.must(t, "", "421 4.7.0 Not that name")
	if err := c.ended(); err != nil {
		t.Error(err)
	}

	c = connect(t, addr)
	c.must(t, "AUTH PLAIN "+plain("mallory", "x")+"\r\n", "535 5.7.8 Ask the postmaster")
	c.must(t, "AUTH PLAIN "+plain("ann", "x")+"\r\n", "235")

	c = connect(t, addr)
	c.must(t, "MAIL FROM:<x@evil.example>\r\n", "550 5.7.1 No mail from evil.example")
	c.must(t, "MAIL FROM:<backup@evil.example>\r\nRSET\r\n", "250 2.1.0", "250")
	c.must(t, "MAIL FROM:<watched@example.org>\r\n", "250 2.1.0")
	c.must(t, "RCPT TO:<full@example.net>\r\n", "452 4.2.2 Mailbox full")
	c.must(t, "RCPT TO:<welcome@example.net>\r\n", "250 2.1.5 Welcome")
	c.must(t, "RCPT TO:<b@example.net>\r\nRCPT TO:<c@example.net>\r\nDATA\r\n", "250", "250", "554 5.5.0 Too many for our taste")
	c.must(t, "RSET\r\n"+oneGroup, "250", "250", "250", "354")
	c.must(t, "Subject: large\r\n\r\n"+strings.Repeat(strings.Repeat("x", 70)+"\r\n", 20)+".\r\n", "552 5.3.4 Too large for our taste")
	if _, err := c.deliver("Subject: small\r\n\r\n"); err != nil {
		t.Error(err)
	}

	p.waitLine("observing", "550 5.7.1 It would be refused")
	for _, rule := range []string{"at-connect", "at-helo", "at-tls", "at-auth", "backup", "at-mail", "observing", "own-words", "at-rcpt", "at-data", "at-message"} {
		if n := metric(t, admin, "fastedge_rule_matches_total", fmt.Sprintf("rule=%q", rule)); n != 1 {
			t.Errorf("rule %s matched %v times, want once", rule, n)
		}
	}
}

func TestDeniedClientsGet554AndMayOnlyQuit(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("", "[clients]\ndeny = [\"127.0.0.0/24\"]\nallow = [\"127.0.0.1\"]\n"))
	connect(t, p.addr[0])
	c, err := dialFrom("127.0.0.7", p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.must(t, "EHLO x\r\nMAIL FROM:<a@example.org>\r\nQUIT\r\n", "554 5.7.1", "503 5.5.1", "503 5.5.1", "221")
	p.waitLine("refused", "127.0.0.7")
}

// admitted connects from an address and gives the first reply's connection, or nil and what was said instead of a greeting.
func admitted(t *testing.T, source, addr string) (c *smtpClient, refusal string) {
	t.Helper()
	conn, err := dialFrom(source, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	reply := conn.must(t, "", "")
	if strings.HasPrefix(reply, "220 ") {
		return conn, ""
	}
	if err := conn.ended(); err != nil {
		t.Errorf("after %q: %v", reply, err)
	}
	return nil, reply
}

func TestConnectionsOfOneAddressAndPrefixAreLimitedAndThePlaceComesBack(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("", "[clients]\nallow = [\"127.0.9.0/24\"]\n[limits]\nconnections_per_ip = 2\nconnections_per_prefix = 3\n"))
	addr := p.addr[0]
	var open []*smtpClient
	for _, source := range []string{"127.0.0.2", "127.0.0.2", "127.0.0.3"} {
		c, refusal := admitted(t, source, addr)
		if c == nil {
			t.Fatalf("%s at the limit: %q", source, refusal)
		}
		open = append(open, c)
	}
	if _, refusal := admitted(t, "127.0.0.2", addr); !strings.HasPrefix(refusal, "421 4.7.0") || !strings.Contains(refusal, "limits.connections_per_ip") {
		t.Errorf("the third of one address: %q", refusal)
	}
	if _, refusal := admitted(t, "127.0.0.4", addr); !strings.HasPrefix(refusal, "421 4.7.0") || !strings.Contains(refusal, "limits.connections_per_prefix") {
		t.Errorf("the fourth of one prefix: %q", refusal)
	}
	for range 5 {
		if c, refusal := admitted(t, "127.0.9.1", addr); c == nil {
			t.Errorf("an allowed client: %q", refusal)
		}
	}
	if c, refusal := admitted(t, "127.0.1.2", addr); c == nil {
		t.Errorf("another prefix: %q", refusal)
	}
	open[0].Close()
	p.wait("the place that became free", func() bool {
		c, _ := admitted(t, "127.0.0.2", addr)
		return c != nil
	})
}

func TestConnectionsThatComeTooFastGet421AndLaterAreServed(t *testing.T) {
	t.Parallel()
	const rate = 30 // a minute: one every two seconds
	p := serve(t, t.TempDir(), edgeConfig("", fmt.Sprintf("[limits]\nconnection_rate = %d\n", rate)))
	for i := range rate {
		c, refusal := admitted(t, "127.0.0.1", p.addr[0])
		if c == nil {
			t.Fatalf("connection %d: %q", i+1, refusal)
		}
		c.Close()
	}
	for i := range 2 * rate { // a slow machine has taken some seconds, each good for more connections
		c, refusal := admitted(t, "127.0.0.9", p.addr[0])
		if c == nil && strings.HasPrefix(refusal, "421 4.7.0") && strings.Contains(refusal, "limits.connection_rate") {
			break
		}
		if c == nil || i == 2*rate-1 {
			t.Fatalf("past the rate, from the same prefix: %q", refusal)
		}
		c.Close()
	}
	p.wait("the next connection", func() bool {
		c, _ := admitted(t, "127.0.0.1", p.addr[0])
		return c != nil
	})
}

func TestMessagesThatComeTooFastGet450AndLaterAreTaken(t *testing.T) {
	t.Parallel()
	const rate = 30
	p := serve(t, t.TempDir(), edgeConfig(strangers, ourDomain+fmt.Sprintf("[limits]\nmessage_rate = %d\n", rate)+
		"[[listen]]\nname = \"relay\"\naddress = \"127.0.0.1:0\"\n"))
	c := connect(t, p.addr[0])
	for i := range rate {
		if _, err := c.deliver("Subject: fast\r\n\r\n"); err != nil {
			t.Fatalf("message %d: %v", i+1, err)
		}
	}
	for i := range 2 * rate { // a slow machine has taken some seconds, each good for more messages
		reply := c.must(t, "MAIL FROM:<a@example.org>\r\n", "")
		if strings.HasPrefix(reply, "450 4.7.1") && strings.Contains(reply, "limits.message_rate") {
			break
		}
		if !strings.HasPrefix(reply, "250") || i == 2*rate-1 {
			t.Fatalf("past the rate: %q", reply)
		}
		c.must(t, "RCPT TO:<b@example.net>\r\nDATA\r\n", "250", "354")
		c.must(t, "Subject: still fast\r\n\r\n.\r\n", "250")
	}
	if _, err := connect(t, p.addr[1]).deliver("Subject: relay\r\n\r\n"); err != nil {
		t.Errorf("a client that may relay has no such limit: %v", err)
	}
	p.wait("the next message", func() bool {
		_, err := connect(t, p.addr[0]).deliver("Subject: slower\r\n\r\n")
		return err == nil
	})
}

func TestJunkCommandsAreAnsweredUpToTheLimit(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("", "[limits]\njunk_commands = 4\n"))
	c := connect(t, p.addr[0])
	c.must(t, "NOOP\r\nRSET\r\nVRFY x\r\n", "250", "250", "252") // and the EHLO before
	if _, err := c.deliver("Subject: mail counts it anew\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	c.must(t, "NOOP\r\nRSET\r\nNOOP\r\nNOOP\r\n", "250", "250", "250", "250")
	if reply := c.must(t, "NOOP\r\n", "421 4.7.0"); !strings.Contains(reply, "limits.junk_commands") {
		t.Errorf("one past the limit: %q", reply)
	}
	if err := c.ended(); err != nil {
		t.Error(err)
	}
}

func TestFailedLoginsAreAnsweredUpToTheLimit(t *testing.T) {
	t.Parallel()
	service := authService(t, func(q auth.HTTPQuestion) bool { return q.Password == "right" })
	p := serve(t, t.TempDir(), edgeConfig("auth = [\"PLAIN\"]\n", "[limits]\nauth_failures = 2\n[auth]\nhttp = \""+service+"\"\n"))
	c := connect(t, p.addr[0])
	for range 2 {
		c.must(t, "AUTH PLAIN "+plain("ann", "wrong")+"\r\n", "535 5.7.8")
	}
	if reply := c.must(t, "AUTH PLAIN "+plain("ann", "wrong")+"\r\n", "421 4.7.0"); !strings.Contains(reply, "limits.auth_failures") {
		t.Errorf("one past the limit: %q", reply)
	}
	if err := c.ended(); err != nil {
		t.Error(err)
	}
	connect(t, p.addr[0]).must(t, "AUTH PLAIN "+plain("ann", "right")+"\r\n", "235")
}

func TestHandshakesUnderWayAreLimitedAndThePlaceComesBack(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("tls = \"opportunistic\"\n", "[limits]\nhandshakes = 2\n"))
	var stalled []*smtpClient
	for range 2 {
		c := connect(t, p.addr[0])
		c.must(t, "STARTTLS\r\n", "220")
		stalled = append(stalled, c)
	}
	c := connect(t, p.addr[0])
	if reply := c.must(t, "STARTTLS\r\n", "454 4.7.0"); !strings.Contains(reply, "limits.handshakes") {
		t.Errorf("one past the limit: %q", reply)
	}
	if _, err := c.deliver("Subject: in clear, then\r\n\r\n"); err != nil {
		t.Errorf("after 454: %v", err)
	}
	stalled[0].Close()
	p.wait("a place", func() bool {
		c, err := helloTLS(p.addr[0], trusting())
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

func TestEarlyTalkersAreCounted(t *testing.T) {
	admin := freeAddress(t)
	p := serve(t, t.TempDir(), edgeConfig(strangers, ourDomain+"[smtp]\ngreet_delay = \"300ms\"\n[admin]\nhttp = \""+admin+"\"\n"))
	for try := 1; metric(t, admin, "fastedge_loop_events_total", "early_talker") == 0; try++ {
		if try > 10 { // on a busy machine one comes late for being early
			t.Fatal("no early talker is counted")
		}
		c, err := dialSMTP("tcp", p.addr[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.must(t, "EHLO early.example\r\n"+oneGroup, "220", "250-", "250", "250", "354")
		c.must(t, "Subject: early\r\n\r\n.\r\n", "250 2.6.0")
	}
	if n := metric(t, admin, "fastedge_loop_events_total", "early_talker"); n != 1 {
		t.Errorf("%v early talkers, want one", n)
	}
	connect(t, p.addr[0])
	if n := metric(t, admin, "fastedge_loop_events_total", "early_talker"); n != 1 {
		t.Errorf("%v early talkers after a client that waited, want one", n)
	}
}

func TestEarlyTalkersAreRefusedIfThatIsWanted(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig(strangers, ourDomain+"[smtp]\ngreet_delay = \"300ms\"\nearly_talkers = \"refuse\"\n"+
		"[[listen]]\nname = \"relay\"\naddress = \"127.0.0.1:0\"\n"))
	for try := 1; ; try++ {
		c, err := dialSMTP("tcp", p.addr[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if reply := c.must(t, "EHLO early.example\r\nMAIL FROM:<a@example.org>\r\n", ""); strings.HasPrefix(reply, "220") && try < 10 {
			continue // on a busy machine one comes late for being early
		} else if !strings.HasPrefix(reply, "421 4.7.0") {
			t.Fatalf("reply %q", reply)
		}
		if err := c.ended(); err != nil {
			t.Error(err)
		}
		break
	}
	p.waitLine("spoke before the greeting")
	if _, err := connect(t, p.addr[0]).deliver("Subject: patient\r\n\r\n"); err != nil {
		t.Error(err)
	}
	c, err := dialSMTP("tcp", p.addr[1])
	if err != nil { // who may relay does not wait, so nobody is early
		t.Fatal(err)
	}
	defer c.Close()
	c.must(t, "EHLO relay.example\r\n", "220", "250-")
}

// hookQuestion is what the test's service looks at.
type hookQuestion struct {
	Stage, Listener, Helo, Sender, Recipient string
	Recipients                               []string
	Client                                   struct{ IP string }
}

func TestAnHTTPHookAcceptsRefusesAndIsWaitedForOnlySoLong(t *testing.T) {
	var down atomic.Bool
	stop := make(chan struct{})
	asked := make(chan hookQuestion, 1000)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q hookQuestion
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Errorf("question: %v", err)
		}
		io.Copy(io.Discard, r.Body)
		asked <- q
		subject := q.Sender + " " + q.Recipient
		switch {
		case down.Load():
			http.Error(w, "down", http.StatusInternalServerError)
		case strings.Contains(subject, "slow@"):
			select { // never in time
			case <-r.Context().Done():
			case <-stop:
			}
		case q.Stage == "mail" && q.Sender == "refuse@example.org":
			io.WriteString(w, `{"action": "refuse", "code": 554, "enhanced": "5.7.1", "text": "The hook says no"}`)
		case q.Stage == "mail" && q.Sender == "defer@example.org":
			io.WriteString(w, `{"action": "defer"}`)
		case q.Stage == "message":
			io.WriteString(w, `{"action": "accept", "fields": ["X-Checked: by the hook"]}`)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	defer service.Close()
	defer close(stop)
	hooks := func(timeout, mail, rcpt string) string {
		return edgeConfig("", fmt.Sprintf(`
[[hook]]
name = "closed"
at = [%s]
url = %q
timeout = %q
[[hook]]
name = "open"
at = [%s]
url = %[2]q
timeout = %[3]q
on_error = "accept"
`, mail, service.URL, timeout, rcpt))
	}
	p := serve(t, t.TempDir(), hooks("1m", `"mail", "message"`, `"rcpt"`))
	c := connect(t, p.addr[0])
	id, err := c.deliver("Subject: hook\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if msg := string(p.fastedge("queue", "cat", id)); !strings.Contains(msg, "X-Checked: by the hook\r\n") {
		t.Errorf("the hook's field is not in the message:\n%s", msg)
	}
	for _, want := range []hookQuestion{{Stage: "mail", Sender: "a@example.org"}, {Stage: "rcpt", Sender: "a@example.org", Recipient: "b@example.net"},
		{Stage: "message", Sender: "a@example.org", Recipients: []string{"b@example.net"}}} {
		want.Listener, want.Helo, want.Client.IP = "mx", "test.example", "127.0.0.1"
		if got := <-asked; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("asked %+v, want %+v", got, want)
		}
	}
	c.must(t, "MAIL FROM:<refuse@example.org>\r\n", "554 5.7.1 The hook says no")
	c.must(t, "MAIL FROM:<defer@example.org>\r\n", "451 4.7.1")
	// Where little time is given, nothing but slow answers is asked for.
	hasty := connect(t, serve(t, t.TempDir(), hooks("200ms", `"mail"`, `"message"`)).addr[0])
	hasty.must(t, "MAIL FROM:<slow@example.org>\r\n", "451 4.3.0")
	hasty = connect(t, serve(t, t.TempDir(), hooks("200ms", `"message"`, `"rcpt"`)).addr[0])
	hasty.must(t, "MAIL FROM:<a@example.org>\r\nRCPT TO:<slow@example.net>\r\nRCPT TO:<slow@example.net>\r\nRSET\r\n", "250", "250", "250", "250")
	down.Store(true)
	c.must(t, "MAIL FROM:<a@example.org>\r\n", "451 4.3.0")
	down.Store(false)
	c.must(t, "MAIL FROM:<a@example.org>\r\n", "250")
	down.Store(true)
	c.must(t, "RCPT TO:<b@example.net>\r\nRSET\r\n", "250", "250")
	service.Close()
	c.must(t, "MAIL FROM:<a@example.org>\r\n", "451 4.3.0")
	p.waitLine("hook closed")
}

func TestUsersThatAuthAddAndRemoveWriteAreInForceWithoutARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "users")
	config := edgeConfig("auth = [\"PLAIN\"]\n", fmt.Sprintf("[tls]\nreload_every = \"1s\"\n[auth]\nusers = %q\n", file))
	add := func(user, password string) {
		t.Helper()
		cmd := command(t, dir, config, "auth", "add", user)
		cmd.Stdin = strings.NewReader(password + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("auth add: %v\n%s", err, out)
		}
	}
	add("first", "a first password")
	p := serve(t, dir, config)
	login := func(user, password string) string {
		c, err := hello(p.addr[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.must(t, "AUTH PLAIN "+plain(user, password)+"\r\n", "")
	}
	if reply := login("first", "a first password"); !strings.HasPrefix(reply, "235") {
		t.Errorf("the user that was there: %q", reply)
	}
	if reply := login("second", "a second password"); !strings.HasPrefix(reply, "535 5.7.8") {
		t.Errorf("nobody: %q", reply)
	}
	add("second", "a second password")
	p.waitLine("reload: new users")
	if reply := login("second", "a second password"); !strings.HasPrefix(reply, "235") {
		t.Errorf("after auth add: %q", reply)
	}
	p.fastedge("auth", "remove", "first")
	p.wait("the next look at the file", func() bool { return p.lines("reload: new users") == 2 })
	if reply := login("first", "a first password"); !strings.HasPrefix(reply, "535 5.7.8") {
		t.Errorf("after auth remove: %q", reply)
	}
	if list := string(p.fastedge("auth", "list")); !strings.Contains(list, "second") || strings.Contains(list, "first") {
		t.Errorf("auth list:\n%s", list)
	}
	if text, err := os.ReadFile(file); err != nil || strings.Contains(string(text), "password") {
		t.Errorf("the users file: %v\n%s", err, text)
	}
}

func TestCheckExplainsWhatIsWrongWithLineAndCaret(t *testing.T) {
	a := newAuthority(t)
	good, other := a.issue("good", false, "mx.example.net"), a.issue("other", false, "mx.example.net")
	missing := filepath.Join(a.dir, "none.pem")
	tls := func(cert, key string) string {
		return edgeConfig("tls = \"opportunistic\"\n", fmt.Sprintf("[tls]\ncertificates = [{ cert = %q, key = %q }]\n", cert, key))
	}
	rule := func(at, when, reply string) string {
		return edgeConfig("", fmt.Sprintf("[[rule]]\nat = %q\nwhen = '%s'\nreply = %q\n", at, when, reply))
	}
	open := func(listen string) string {
		return strings.Replace(edgeConfig(listen, ""), "127.0.0.1:0", "0.0.0.0:28425", 1)
	}
	caret := func(line, under string) string {
		return line + "\n    " + strings.Repeat(" ", strings.Index(line, under)) + "^"
	}
	for name, test := range map[string]struct {
		config string
		words  []string
	}{
		"a key that is missing":       {tls(good.cert, missing), []string{"fastedge.toml:", "tls.certificates[0].key", missing, "no such file", "^"}},
		"a certificate that is":       {tls(missing, good.key), []string{"tls.certificates[0].cert", missing, "no such file", "^"}},
		"another certificate's key":   {tls(good.cert, other.key), []string{"tls.certificates[0].key", "does not match", "^"}},
		"files the wrong way round":   {tls(good.key, good.cert), []string{"tls.certificates[0].", "^"}},
		"a rule with a name too many": {rule("mail", "sender_domian == \"x\"", "550 5.7.1 no"), []string{"rule[0].when", "sender_domian", caret("when = 'sender_domian == \"x\"'", "sender_domian")}},
		"a rule of types that do not fit": {rule("mail", "size > 5 and sender > 5", "550 5.7.1 no"),
			[]string{"rule[0].when", "when = 'size > 5 and sender > 5'", "^"}},
		"a rule about what is not known there": {rule("connect", "sender == \"x\"", "550 5.7.1 no"), []string{"rule[0].when", "sender", "connect", "^"}},
		"a rule with a wrong reply":            {rule("mail", "tls", "650 no"), []string{"rule[0].reply", "reply = \"650 no\"", "^"}},
		"an open relay":                        {open(""), []string{"listen[0].address", "0.0.0.0:28425 is open to other machines", "domains.accept", "^"}},
		"an open relay by relay_from":          {open("relay_from = [\"0.0.0.0/0\"]\n"), []string{"listen[0].relay_from", "open relay", "^"}},
		"TLS without a certificate, not local": {open("tls = \"opportunistic\"\n"), []string{"listen[0].tls", "needs tls.certificates", "^"}},
		"AUTH in clear, not local": {open("auth = [\"PLAIN\"]\n") + "[auth]\nhttp = \"http://127.0.0.1:1/\"\n",
			[]string{"listen[0].auth", "never offered in clear", "^"}},
		"recipients that are not there": {edgeConfig("", fmt.Sprintf("%srecipients = %q\n", ourDomain, missing)), []string{"domains.recipients", "no such file", "^"}},
		"users that are not there": {edgeConfig("auth = [\"PLAIN\"]\n", fmt.Sprintf("[auth]\nusers = %q\n", missing)),
			[]string{"auth.users", "no such file", "^"}},
	} {
		t.Run(name, func(t *testing.T) { checkFails(t, test.config, test.words...) })
	}
}

func TestAClientThatLeavesDuringAQuestionIsForgotten(t *testing.T) {
	admin := freeAddress(t)
	stop, asked := make(chan struct{}), make(chan struct{}, 100)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		asked <- struct{}{}
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	}))
	defer service.Close()
	defer close(stop)
	p := serve(t, t.TempDir(), edgeConfig("auth = [\"PLAIN\"]\n", fmt.Sprintf(`
[admin]
http = %q
[auth]
http = %q
timeout = "1m"
[timeouts]
policy = "2m"
drain = "1s"
[[hook]]
at = ["mail"]
url = %q
timeout = "1m"
`, admin, service.URL, service.URL)))
	for _, command := range []string{"MAIL FROM:<a@example.org>\r\n", "AUTH PLAIN " + plain("ann", "pencil") + "\r\n"} {
		for range 5 {
			c, err := hello(p.addr[0])
			if err != nil {
				t.Fatal(err)
			}
			c.must(t, command)
			<-asked
			c.Close()
		}
	}
	p.wait("all to be gone", func() bool { return metric(t, admin, "fastedge_connections_open") == 0 })
	// Nor does one that waits for its answer hold the end up.
	for _, command := range []string{"MAIL FROM:<a@example.org>\r\n", "AUTH PLAIN " + plain("ann", "pencil") + "\r\n"} {
		connect(t, p.addr[0]).must(t, command)
		<-asked
	}
	if code := p.term(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, p.log)
	}
}

func TestListsLimitsAndRelayingGoByTheClientBehindTheProxy(t *testing.T) {
	p := serve(t, t.TempDir(), edgeConfig("proxy_protocol_from = [\"127.0.0.1\"]\nrelay_from = [\"192.0.2.0/24\", \"127.0.0.0/8\"]\n",
		ourDomain+"[clients]\ndeny = [\"198.51.100.0/24\"]\n[limits]\nconnections_per_ip = 2\n"))
	through := func(source, want string) *smtpClient {
		t.Helper()
		c, err := dialSMTP("tcp", p.addr[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.must(t, "PROXY TCP4 "+source+" 203.0.113.1 4444 25\r\n", want)
		return c
	}
	through("198.51.100.7", "554 5.7.1")
	relay := "EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@elsewhere.example>\r\n"
	through("192.0.2.7", "220").must(t, relay, "250-", "250", "250")
	through("203.0.113.7", "220").must(t, relay, "250-", "250", "550 5.7.1")
	second := through("203.0.113.7", "220")
	if reply := through("203.0.113.7", "421 4.7.0"); reply.ended() != nil {
		t.Error("the connection of a client over its limit stays open")
	}
	through("203.0.113.8", "220")
	second.Close()
	p.wait("the place that became free", func() bool {
		c, err := dialSMTP("tcp", p.addr[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return strings.HasPrefix(c.must(t, "PROXY TCP4 203.0.113.7 203.0.113.1 4444 25\r\n", ""), "220")
	})
}
