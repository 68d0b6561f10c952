//go:build interop

package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// These tests put HAProxy in front of the real program.

// proxySource is HAProxy's own address, the only one that is listed.
const proxySource = "127.0.0.9"

// behind is the file of a server behind HAProxy: strangers may send to example.net, 127.0.0.2 anywhere.
func behind(listen, rest string) string {
	return edgeConfig("proxy_protocol_from = [\""+proxySource+"\"]\nrelay_from = [\"127.0.0.2\"]\n"+listen, ourDomain+rest)
}

// haproxy starts HAProxy with a front for each line of servers, which has the front's bind options, "->" and the options of the server
// at address. It gives the fronts' addresses and the socket that tells how the servers are.
func haproxy(t *testing.T, more string, servers ...string) (fronts []string, stats string) {
	t.Helper()
	dir := t.TempDir()
	var config strings.Builder
	fmt.Fprintf(&config, `global
    stats socket %s/stats
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout check 2s
`, dir)
	for i, s := range servers {
		bind, server, _ := strings.Cut(s, "->")
		front := freeAddress(t)
		fronts = append(fronts, front)
		fmt.Fprintf(&config, "listen front%d\n    bind %s %s\n%s\n    server edge %s source %s\n", i, front, bind, more, server, proxySource)
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(need(t, "haproxy"), "-db", "-f", file)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-done })
	for _, front := range fronts {
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			if c, err := net.Dial("tcp", front); err == nil {
				c.Close()
				break
			}
			if time.Now().After(end) {
				t.Fatalf("HAProxy does not listen on %s:\n%s\n%s", front, &out, config.String())
			}
		}
	}
	return fronts, filepath.Join(dir, "stats")
}

// serverIsUp asks HAProxy for what its last health check said: L4OK, L6OK or L7OK.
func serverIsUp(t *testing.T, stats string) bool {
	t.Helper()
	c, err := net.Dial("unix", stats)
	if err != nil {
		return false // HAProxy gives the socket its name last
	}
	defer c.Close()
	io.WriteString(c, "show stat\n")
	text, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, ",edge,") {
			return strings.Contains(line, ",UP,") && (strings.Contains(line, ",L4OK,") || strings.Contains(line, ",L6OK,") || strings.Contains(line, ",L7OK,"))
		}
	}
	return false
}

func TestBehindHAProxyTheClientsAddressIsTheOneThatCounts(t *testing.T) {
	for _, send := range []string{"send-proxy", "send-proxy-v2"} {
		p := serve(t, t.TempDir(), behind("", ""))
		fronts, _ := haproxy(t, "", "->"+p.addr[0]+" "+send)
		for source, elsewhere := range map[string]string{"127.0.0.2": "250", "127.0.0.3": "550 5.7.1"} {
			c, err := dialFrom(source, fronts[0])
			if err != nil {
				t.Fatal(err)
			}
			c.must(t, "EHLO haproxy.example\r\n", "220", "250-")
			id, err := c.deliver("Subject: " + send + "\r\n\r\n")
			if err != nil {
				t.Fatal(err)
			}
			if field := p.received(id); !strings.Contains(field, "from haproxy.example (["+source+"])") {
				t.Errorf("%s: %s", send, field)
			}
			p.waitLine("accepted", id, `"client":"`+source+`"`)
			c.must(t, "MAIL FROM:<a@example.org>\r\nRCPT TO:<b@elsewhere.example>\r\n", "250", elsewhere)
			c.must(t, "QUIT\r\n", "221")
			c.Close()
		}
		p.waitLine("refused", `"client":"127.0.0.3:`, "b@elsewhere.example")
	}
}

func TestWhereHAProxyEndsTLSTheSessionIsOneOverTLS(t *testing.T) {
	a := newAuthority(t)
	server, client := a.issue("server", false, "mx.example.net"), a.issue("client", false, "ann")
	both := filepath.Join(a.dir, "both.pem")
	var text []byte
	for _, file := range []string{server.cert, server.key} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	replaceFile(t, both, text)
	users := filepath.Join(t.TempDir(), "users")
	addUser(t, users, "ann", "pencil")
	p := serve(t, t.TempDir(), behind("auth = [\"PLAIN\", \"EXTERNAL\"]\n", fmt.Sprintf("[auth]\nusers = %q\n", users)))
	fronts, _ := haproxy(t, "", "ssl crt "+both+" ca-file "+a.file+" verify optional->"+p.addr[0]+" send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-cn,ssl-cipher,authority,crc32c,unique-id")
	for _, test := range []struct {
		version      uint16
		certificates []tls.Certificate
		login, word  string
	}{
		{tls.VersionTLS13, nil, "", "ESMTPS (TLS1.3 TLS_"},
		{tls.VersionTLS12, nil, "", "ESMTPS (TLS1.2 ECDHE-ECDSA-"},
		{tls.VersionTLS13, nil, "AUTH PLAIN " + plain("ann", "pencil"), "ESMTPSA (TLS1.3 TLS_"},
		{tls.VersionTLS13, []tls.Certificate{client.load(t)}, "AUTH EXTERNAL =", "ESMTPSA (TLS1.3 TLS_"},
	} {
		c, err := dialFrom("127.0.0.3", fronts[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := c.secure(&tls.Config{RootCAs: a.pool(), ServerName: "mx.example.net", MaxVersion: test.version, Certificates: test.certificates}); err != nil {
			t.Fatal(err)
		}
		if reply := c.must(t, "EHLO haproxy.example\r\n", "220", "250-"); strings.Contains(reply, "STARTTLS") {
			t.Errorf("STARTTLS is offered behind TLS: %q", reply)
		}
		if test.login != "" {
			c.must(t, test.login+"\r\n", "235")
		}
		id, err := c.deliver("Subject: behind TLS\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		if field := p.received(id); !strings.Contains(field, "([127.0.0.3])") || !strings.Contains(field, " with "+test.word) {
			t.Errorf("%s, not %s", field, test.word)
		}
		c.Close()
	}
	// A client that came to the proxy in clear is one from outside, though the proxy is on this machine: its password went over a network.
	clear, _ := haproxy(t, "", "->"+p.addr[0]+" send-proxy-v2-ssl")
	c, err := dialFrom("127.0.0.3", clear[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if offers := c.must(t, "EHLO haproxy.example\r\n", "220", "250-"); strings.Contains(offers, "AUTH") {
		t.Errorf("AUTH is offered in clear: %q", offers)
	}
	c.must(t, "AUTH PLAIN "+plain("ann", "pencil")+"\r\n", "538 5.7.11")
}

func TestSTARTTLSAndImplicitTLSWorkBehindHAProxy(t *testing.T) {
	implicit := "[[listen]]\nname = \"implicit\"\naddress = \"127.0.0.1:0\"\ntls = \"implicit\"\nproxy_protocol_from = [\"" + proxySource + "\"]\n"
	p := serve(t, t.TempDir(), behind("tls = \"opportunistic\"\n", implicit))
	fronts, _ := haproxy(t, "", "->"+p.addr[0]+" send-proxy", "->"+p.addr[1]+" send-proxy-v2")
	for i, way := range [][]string{{"-starttls", "smtp"}, nil} {
		d := sclient(t, fronts[i], append(way, "-bind", "127.0.0.3:0")...)
		id := d.sends()
		if field := p.received(id); !strings.Contains(field, "([127.0.0.3])") || !strings.Contains(field, " with ESMTPS (TLS1.3 ") {
			t.Errorf("%v: %s", way, field)
		}
		d.say("quit")
		d.ends()
	}
}

func TestHAProxysHealthChecksLeaveNoLogLines(t *testing.T) {
	for name, check := range map[string]struct{ more, server string }{
		"TCP without a header":      {"", "check inter 100ms"},
		"TCP with version 1":        {"", "send-proxy check check-send-proxy inter 100ms"},
		"TCP with LOCAL":            {"", "send-proxy-v2 check check-send-proxy inter 100ms"},
		"smtpchk with version 1":    {"    option smtpchk EHLO haproxy.example", "send-proxy check check-send-proxy inter 100ms"},
		"smtpchk with LOCAL":        {"    option smtpchk EHLO haproxy.example", "send-proxy-v2 check check-send-proxy inter 100ms"},
		"smtpchk HELO with LOCAL":   {"    option smtpchk", "send-proxy-v2 check check-send-proxy inter 100ms"},
		"TCP that reads the banner": {"    option tcp-check\n    tcp-check expect rstring ^220", "send-proxy-v2 check check-send-proxy inter 100ms"},
	} {
		t.Run(name, func(t *testing.T) {
			admin := freeAddress(t)
			p := serve(t, t.TempDir(), behind("", "[admin]\nhttp = \""+admin+"\"\n"))
			before := p.log.String()
			fronts, stats := haproxy(t, check.more, "->"+p.addr[0]+" "+check.server)
			p.wait("a good health check", func() bool { return serverIsUp(t, stats) })
			if name != "TCP without a header" { // HAProxy resets it before the kernel tells us of it
				p.wait("more of them", func() bool {
					return metric(t, admin, "fastedge_loop_events_total", "proxy_health_check")+metric(t, admin, "fastedge_connections_total", "accepted") >= 10
				})
			}
			// The server is up: a client is served.
			if strings.Contains(check.server, "send-proxy") {
				c, err := hello(fronts[0])
				if err != nil {
					t.Fatalf("HAProxy takes the server for dead: %v\n%s", err, p.log)
				}
				defer c.Close()
			}
			if after := p.log.String(); after != before {
				t.Errorf("health checks are logged:\n%s", strings.TrimPrefix(after, before))
			}
		})
	}
}

func TestAListedProxyWithoutHeaderAndAnUnlistedOneWithAreCutOff(t *testing.T) {
	p := serve(t, t.TempDir(), behind("", ""))
	// HAProxy that was told nothing of the PROXY protocol, and the one whose address is not listed.
	fronts, _ := haproxy(t, "", "->"+p.addr[0])
	c, err := dialSMTP("tcp", fronts[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.must(t, "EHLO without.example\r\n")
	if err := c.ended(); err != nil {
		t.Error(err)
	}
	p.waitLine("closed", `"listener":"mx"`, proxySource, "PROXY header missing")
	if c, err = dialFrom("127.0.0.4", p.addr[0]); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.must(t, "PROXY TCP4 127.0.0.2 127.0.0.1 4444 25\r\n", "220 ") // the greeting comes at once, to whoever is no proxy
	if err := c.ended(); err != nil {
		t.Error(err)
	}
	p.waitLine("closed", `"client":"127.0.0.4:`, "not listed")
	// Unlisted ones without a header are clients like any other.
	if c, err = dialFrom("127.0.0.4", p.addr[0]); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.must(t, "EHLO direct.example\r\n", "220", "250-")
}
