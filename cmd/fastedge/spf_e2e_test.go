package main

import (
	"bytes"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
)

// These tests check senders from end to end, with DNS answers from this process. Clients come through the PROXY protocol, because this machine's
// own addresses are never checked. spf_interop_test.go does the same with real DNS servers.

// sendersConfig is a server that enforces SPF, asks servers, and believes any proxy on this machine. more are tables.
func sendersConfig(admin, servers, more string) string {
	return edgeConfig("proxy_protocol_from = [\"127.0.0.0/8\"]\n", ourDomain+fmt.Sprintf(`
[log]
level = "debug"
[admin]
http = %q
[dns]
servers = [%q]
timeout = "2s"
[spf]
mode = "enforce"
timeout = "5s"
[spf.on.softfail]
code = 250
message = "2.1.0 Accepted, although: {reason}"
[spf.on.temperror]
code = 451
[spf.on.permerror]
code = 550
`, admin, servers)+more)
}

// behindProxy connects as a client with another address and reads the greeting, whose beginning is given.
func behindProxy(t *testing.T, addr, client, greeting string) *smtpClient {
	t.Helper()
	c, err := dialSMTP("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	family, to := "TCP4", "127.0.0.1"
	if strings.Contains(client, ":") {
		family, to = "TCP6", "::1"
	}
	if reply := c.must(t, fmt.Sprintf("PROXY %s %s %s 4444 25\r\n", family, client, to), ""); !matches(greeting, reply) {
		t.Fatalf("greeting %q, want %s", reply, greeting)
	}
	return c
}

// fields gives the header fields of a message in the queue, unfolded.
func (p *process) fields(id string) (fields []string) {
	p.t.Helper()
	head, _, _ := bytes.Cut(p.fastedge("queue", "cat", id), []byte("\r\n\r\n"))
	unfolded := regexp.MustCompile(`\r\n[\t ]+`).ReplaceAllString(string(head), " ")
	return strings.Split(unfolded, "\r\n")
}

// senderRecords are for dnsZone.
var senderRecords = map[string][]string{
	"TXT fail.test":      {"v=spf1 ip4:198.51.100.0/24 -all exp=why.test"},
	"TXT why.test":       {"ask %{d} about %{i}"},
	"TXT soft.test":      {"v=spf1 ~all"},
	"TXT pass.test":      {"v=spf1 include:_spf.pass.test -all"},
	"TXT _spf.pass.test": {"v=spf1 ip4:192.0.2.0/24 -all"},
	"TXT temp.test":      {"servfail"},
}

func TestEachResultOfSPFHasItsReply(t *testing.T) {
	admin := freeAddress(t)
	p := serve(t, t.TempDir(), sendersConfig(admin, dnsZone(t, senderRecords), "[ptr]\nmode = \"off\"\n"))
	for _, test := range []struct{ from, reply, result, action string }{
		{"a@fail.test", "550 5.7.23 SPF validation failed: fail.test explains: ask fail.test about 192.0.2.7\r\n", "fail", "refused"},
		{"a@soft.test", "250 2.1.0 Accepted, although: domain owner discourages use of this host\r\n", "softfail", "accepted"},
		{"a@pass.test", "250 2.1.0 ", "pass", "none"},
		{"a@temp.test", "451 4.7.24 SPF validation error: ", "temperror", "refused"},
	} {
		c := behindProxy(t, p.addr[0], "192.0.2.7", "220 ")
		reply := c.must(t, "EHLO client.test\r\nMAIL FROM:<"+test.from+">\r\n", "250-", test.reply)
		p.waitLine(`"msg":"spf"`, `"from":"`+test.from+`"`, `"result":"`+test.result+`"`)
		if got := metric(t, admin, "fastedge_spf_results_total", `result="`+test.result+`"`, `action="`+test.action+`"`); got != 1 {
			t.Errorf("%s is counted %v times as %s", test.result, got, test.action)
		}
		if !strings.HasPrefix(reply, "250") {
			continue
		}
		c.must(t, "RCPT TO:<b@example.net>\r\nDATA\r\n", "250", "354")
		m := queuedAs.FindStringSubmatch(c.must(t, "Subject: x\r\n\r\n.\r\n", "250 2.6.0"))
		if fields := p.fields(m[1]); !strings.HasPrefix(fields[0], "Received-SPF: "+test.result+" (") ||
			fields[1] != "Authentication-Results: mx.example.net; spf="+test.result+" smtp.mailfrom="+test.from ||
			!strings.HasPrefix(fields[2], "Received: from client.test ([192.0.2.7])") {
			t.Errorf("%q", fields)
		}
	}
}

// A pass does not let the next sender of the same session through.
func TestSPFChecksThePresentSenderOfASession(t *testing.T) {
	p := serve(t, t.TempDir(), sendersConfig(freeAddress(t), dnsZone(t, senderRecords), ""))
	c := behindProxy(t, p.addr[0], "192.0.2.7", "220 ")
	c.must(t, "EHLO client.test\r\n", "250-")
	for range 2 {
		c.must(t, "MAIL FROM:<a@pass.test>\r\nRCPT TO:<b@example.net>\r\nRSET\r\nMAIL FROM:<a@fail.test>\r\n", "250", "250 2.1.5", "250", "550 5.7.23")
		c.must(t, "RCPT TO:<b@example.net>\r\n", "503")
		c.must(t, "MAIL FROM:<a@pass.test>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n", "250", "250", "354")
		c.must(t, "Subject: x\r\n\r\n.\r\n", "250 2.6.0")
	}
}

func TestObservedSPFIsWrittenDownAndRefusesNobody(t *testing.T) {
	admin := freeAddress(t)
	p := serve(t, t.TempDir(), strings.Replace(sendersConfig(admin, dnsZone(t, senderRecords), ""), `"enforce"`, `"observe"`, 1))
	c := behindProxy(t, p.addr[0], "192.0.2.7", "220 ")
	c.must(t, "EHLO client.test\r\nMAIL FROM:<a@fail.test>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n", "250-", "250 2.1.0", "250", "354")
	m := queuedAs.FindStringSubmatch(c.must(t, "Subject: x\r\n\r\n.\r\n", "250 2.6.0"))
	if fields := p.fields(m[1]); !strings.HasPrefix(fields[0], "Received-SPF: fail (mx.example.net: fail.test explains: ask fail.test about 192.0.2.7) ") ||
		!strings.HasPrefix(fields[1], "Authentication-Results: mx.example.net; spf=fail smtp.mailfrom=a@fail.test") {
		t.Errorf("%q", fields)
	}
	p.waitLine(`"msg":"spf"`, `"result":"fail"`)
	if metric(t, admin, "fastedge_spf_results_total", `result="fail"`, `action="observed"`) != 1 {
		t.Error("what would have been refused is not counted as observed")
	}
}

// Whoever reads the queue finds the results also where the messages do not tell them.
func TestResultsThatAreNotWrittenIntoMessagesStandInTheQueue(t *testing.T) {
	p := serve(t, t.TempDir(), strings.Replace(sendersConfig(freeAddress(t), dnsZone(t, senderRecords), ""), "[spf]\n", "[spf]\nheaders = false\n", 1))
	c := behindProxy(t, p.addr[0], "192.0.2.7", "220 ")
	c.must(t, "EHLO client.test\r\nMAIL FROM:<a@soft.test>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n", "250-", "250 2.1.0", "250", "354")
	m := queuedAs.FindStringSubmatch(c.must(t, "Authentication-Results: mx.example.net; spf=pass\r\n\r\n.\r\n", "250 2.6.0"))
	if fields := p.fields(m[1]); len(fields) != 2 || !strings.HasPrefix(fields[0], "Received: ") || fields[1] != "Authentication-Results: mx.example.net; spf=pass" {
		t.Errorf("%q", fields)
	}
	if shown := string(p.fastedge("queue", "show", m[1])); !strings.Contains(shown, "spf=softfail smtp.mailfrom=a@soft.test") {
		t.Errorf("%s", shown)
	}
}

func TestSilentDNSDefersAndNeverHoldsACommandLongerThanItsLimit(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p := serve(t, t.TempDir(), strings.Replace(sendersConfig(freeAddress(t), silent.LocalAddr().String(), ""), `timeout = "5s"`, `timeout = "300ms"`, 1))
	c := behindProxy(t, p.addr[0], "192.0.2.7", "220 ")
	c.must(t, "EHLO client.test\r\nMAIL FROM:<a@pass.test>\r\nNOOP\r\n", "250-", "451 4.7.24 SPF validation error: ", "250")
	p.waitLine(`"msg":"spf"`, `"result":"temperror"`, `"reason":"Timed out"`)
	// Clients on this machine are not checked.
	direct := serve(t, t.TempDir(), strings.Replace(sendersConfig(freeAddress(t), silent.LocalAddr().String(), ""), "proxy_protocol_from", "# proxy_protocol_from", 1))
	if _, err := connect(t, direct.addr[0]).deliver("Subject: x\r\n\r\n"); err != nil {
		t.Error(err)
	}
}
