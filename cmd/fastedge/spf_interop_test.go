//go:build interop

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/resolver"
	"github.com/fastedge/fastedge/spf"
)

// These tests put nsd and unbound behind the real program. Clients come through the PROXY protocol, because this machine's own addresses are never
// checked. Nothing is asked outside of this machine: what unbound has no zone for does not exist.

// senderZones are what nsd serves, by the zones' names. A record begins in the first column with its name below the zone.
var senderZones = map[string]string{
	"spf.test": `
fail        TXT   "v=spf1 ip4:198.51.100.0/24 -all exp=why.spf.test"
why         TXT   "%{i} is none of " "%{d}'s, says %{r}"
softfail    TXT   "another text"
softfail    TXT   "v=spf1 ip4:198.51.100.0/24 ~all"
neutral     TXT   "v=spf1 ?all"
none        TXT   "no word about senders"
pass        TXT   "v=spf1 redirect=_spf.spf.test"
_spf        TXT   "v=spf1 include:_net1.spf.test include:_net2.spf.test ~all"
_net1       TXT   "v=spf1 ip4:198.51.100.0/24 ip6:2001:db8:1::/48 ~all"
_net2       TXT   "v=spf1 ip4:192.0.2.0/26 ip6:2001:db8::/48 ~all"
syntax      TXT   "v=spf1 ip4:nonsense -all"
two         TXT   "v=spf1 -all"
two         TXT   "v=spf1 +all"
voids       TXT   "v=spf1 a:n1.spf.test a:n2.spf.test a:n3.spf.test +all"
temp        TXT   "v=spf1 include:gone.silent.test -all"
alias       CNAME alias2
alias2      CNAME fail
hosts       TXT   "v=spf1 mx:mail.spf.test -all"
mail        MX    10 mx1
mail        MX    20 mx2
mx1         A     198.51.100.1
mx2         A     192.0.2.7
mx2         AAAA  2001:db8::7
exists      TXT   "v=spf1 exists:%{ir}.%{l1r-}.list.spf.test -all"
7.2.0.192.joe.list A 127.0.0.2
named       TXT   "v=spf1 ptr -all"
www.named   A     192.0.2.7
`,
	"signed.test": `
@           TXT   "v=spf1 ip4:192.0.2.7 -all"
`,
	"bogus.test": `
@           TXT   "v=spf1 +all"
`,
	"2.0.192.in-addr.arpa": `
7           PTR   www.named.spf.test.
8           PTR   mx1.spf.test.
10          PTR   mx1.spf.test.
`,
	"8.b.d.0.1.0.0.2.ip6.arpa": `
7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0 PTR mx2.spf.test.
`,
	"bl.test": `
10.2.0.192  A     127.0.0.2
10.2.0.192  TXT   "192.0.2.10 sends what nobody wants {zone}"
11.2.0.192  A     127.0.0.3
12.2.0.192  A     127.255.255.254
13.2.0.192  A     127.0.0.2
13.2.0.192  TXT   "also on the list of good clients"
b.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2 A 127.0.0.2
`,
	"wl.test": `
13.2.0.192  A     127.0.0.2
`,
}

// dnsServers are nsd, which serves senderZones, and unbound in front of it, which validates signed.test, and bogus.test with a key that is not its own.
// Nobody answers for silent.test.
type dnsServers struct {
	nsd, unbound string        // addresses
	asked        *atomic.Int64 // datagrams that came for silent.test
}

func startDNS(t *testing.T) *dnsServers {
	t.Helper()
	s := &dnsServers{nsd: freeAddress(t), unbound: freeAddress(t), asked: new(atomic.Int64)}
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	go func() {
		for buf := make([]byte, 1500); ; s.asked.Add(1) {
			if _, _, err := silent.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	at := func(addr string) string { return strings.Replace(addr, ":", "@", 1) }

	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf("server:\n ip-address: %s\n username: \"\"\n server-count: 1\n rrl-ratelimit: 0\n zonesdir: %q\n database: \"\"\n"+
		" pidfile: \"\"\n xfrdir: %[2]q\n xfrdfile: \"xfrd\"\n zonelistfile: %q\nremote-control:\n control-enable: no\n", at(s.nsd), dir, filepath.Join(dir, "zones"))
	behind := fmt.Sprintf("stub-zone:\n name: silent.test\n stub-addr: %s\n", at(silent.LocalAddr().String()))
	zones := map[string]string{"big.test": bigZone()}
	for name, text := range senderZones {
		zones[name] = text
	}
	for name, text := range zones {
		write(name, "$ORIGIN "+name+".\n$TTL 60\n@ SOA ns.spf.test. postmaster.spf.test. 1 3600 600 86400 60\n@ NS ns.spf.test.\n"+strings.TrimLeft(text, "\n"))
		config += fmt.Sprintf("zone:\n name: %s\n zonefile: %s\n", name, name)
		behind += fmt.Sprintf("stub-zone:\n name: %s\n stub-addr: %s\n", name, at(s.nsd))
	}
	anchors := ""
	for _, name := range []string{"signed.test", "bogus.test"} {
		key := newZoneKey(t, dir, name)
		runIn(t, dir, "ldns-signzone", name, key)
		config = strings.Replace(config, " zonefile: "+name+"\n", " zonefile: "+name+".signed\n", 1)
		if name == "bogus.test" {
			key = newZoneKey(t, dir, name)
		}
		anchors += fmt.Sprintf(" trust-anchor-file: %q\n", filepath.Join(dir, key+".key"))
	}
	write("nsd.conf", config)
	daemon(t, s.nsd, "nsd", "-d", "-c", filepath.Join(dir, "nsd.conf"))

	host, port, _ := net.SplitHostPort(s.unbound)
	write("unbound.conf", fmt.Sprintf("server:\n interface: %s\n port: %s\n directory: %q\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n use-syslog: no\n"+
		" do-ip6: no\n access-control: 127.0.0.0/8 allow\n do-not-query-localhost: no\n unblock-lan-zones: yes\n module-config: \"validator iterator\"\n"+
		" local-zone: \".\" static\n local-zone: \"test.\" transparent\n local-zone: \"2.0.192.in-addr.arpa.\" transparent\n"+
		" local-zone: \"8.b.d.0.1.0.0.2.ip6.arpa.\" transparent\n%sremote-control:\n control-enable: no\n%s", host, port, dir, anchors, behind))
	daemon(t, s.unbound, "unbound", "-d", "-c", filepath.Join(dir, "unbound.conf"))
	return s
}

// bigZone has a record of more than 2 kB, whose strings are cut within its terms.
func bigZone() string {
	var b strings.Builder
	b.WriteString("v=spf1")
	for i := range 128 {
		fmt.Fprintf(&b, " ip4:198.51.100.%d", i)
	}
	b.WriteString(" ip4:192.0.2.7 -all")
	text, record := b.String(), "@ TXT"
	for len(text) > 0 {
		n := min(251, len(text))
		record += " " + strconv.Quote(text[:n])
		text = text[n:]
	}
	return record + "\n"
}

// newZoneKey makes a key for a zone and gives its files' name.
func newZoneKey(t *testing.T, dir, zone string) string {
	t.Helper()
	return strings.TrimSpace(runIn(t, dir, "ldns-keygen", "-k", "-r", "/dev/urandom", "-a", "ECDSAP256SHA256", zone))
}

func runIn(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command("timeout", append([]string{"60", need(t, program)}, args...)...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// daemon runs a server in the foreground, for two minutes at most, and waits until it takes connections at addr.
func daemon(t *testing.T, addr, program string, args ...string) {
	t.Helper()
	log := &logTail{}
	cmd := exec.Command(need(t, program), args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	end := time.AfterFunc(2*time.Minute, func() { cmd.Process.Signal(syscall.SIGTERM) })
	t.Cleanup(func() {
		end.Stop()
		cmd.Process.Signal(syscall.SIGTERM) // it ends its children
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			t.Logf("%s:\n%s", program, log)
		}
	})
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-done:
			t.Fatalf("%s has ended:\n%s", program, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

type senderCase struct {
	client, from, helo string
	reply              string // to MAIL, from its beginning
	result, action     string
	domain, mechanism  string
}

var senderCases = []senderCase{
	{client: "192.0.2.7", from: "a@fail.spf.test", reply: `550 5\.7\.23 SPF validation failed: fail\.spf\.test explains: 192\.0\.2\.7 is none of fail\.spf\.test's, says mx\.example\.net\r\n$`,
		result: "fail", action: "refused", domain: "fail.spf.test", mechanism: "all"},
	{client: "198.51.100.9", from: "a@fail.spf.test", reply: `250 2\.1\.0 <a@fail\.spf\.test> Ok\r\n$`, result: "pass", action: "none", domain: "fail.spf.test", mechanism: "ip4:198.51.100.0/24"},
	{client: "192.0.2.7", from: "a@softfail.spf.test", reply: `250 2\.1\.0 Accepted, although: domain owner discourages use of this host\r\n$`,
		result: "softfail", action: "accepted", domain: "softfail.spf.test", mechanism: "all"},
	{client: "192.0.2.7", from: "a@pass.spf.test", reply: `250 `, result: "pass", action: "none", domain: "_spf.spf.test", mechanism: "include:_net2.spf.test"},
	{client: "2001:db8::7", from: "a@pass.spf.test", reply: `250 `, result: "pass", action: "none", domain: "_spf.spf.test", mechanism: "include:_net2.spf.test"},
	{client: "192.0.2.77", from: "a@pass.spf.test", reply: `250 2\.1\.0 Accepted, although: `, result: "softfail", action: "accepted", domain: "_spf.spf.test", mechanism: "all"},
	{client: "192.0.2.7", from: "a@neutral.spf.test", reply: `250 `, result: "neutral", action: "none", domain: "neutral.spf.test", mechanism: "all"},
	{client: "192.0.2.7", from: "a@none.spf.test", reply: `250 `, result: "none", action: "none", domain: "none.spf.test"},
	{client: "192.0.2.7", from: "a@nowhere.spf.test", reply: `250 `, result: "none", action: "none", domain: "nowhere.spf.test"},
	{client: "192.0.2.7", from: "a@syntax.spf.test", reply: `550 5\.7\.24 SPF validation error: `, result: "permerror", action: "refused", domain: "syntax.spf.test"},
	{client: "192.0.2.7", from: "a@two.spf.test", reply: `550 5\.7\.24 SPF validation error: `, result: "permerror", action: "refused", domain: "two.spf.test"},
	{client: "192.0.2.7", from: "a@voids.spf.test", reply: `550 5\.7\.24 SPF validation error: `, result: "permerror", action: "refused", domain: "voids.spf.test", mechanism: "a:n3.spf.test"},
	{client: "192.0.2.7", from: "a@temp.spf.test", reply: `451 4\.7\.24 SPF validation error: `, result: "temperror", action: "refused"},
	{client: "192.0.2.7", from: "a@alias.spf.test", reply: `550 5\.7\.23 SPF validation failed: alias\.spf\.test explains: 192\.0\.2\.7 is none of alias\.spf\.test's`,
		result: "fail", action: "refused", domain: "alias.spf.test", mechanism: "all"},
	{client: "192.0.2.7", from: "a@big.test", reply: `250 `, result: "pass", action: "none", domain: "big.test", mechanism: "ip4:192.0.2.7"},
	{client: "192.0.2.8", from: "a@big.test", reply: `550 5\.7\.23 `, result: "fail", action: "refused", domain: "big.test", mechanism: "all"},
	{client: "192.0.2.7", from: "a@hosts.spf.test", reply: `250 `, result: "pass", action: "none", domain: "hosts.spf.test", mechanism: "mx:mail.spf.test"},
	{client: "2001:db8::7", from: "a@hosts.spf.test", reply: `250 `, result: "pass", action: "none", domain: "hosts.spf.test", mechanism: "mx:mail.spf.test"},
	{client: "192.0.2.7", from: "joe-2026@exists.spf.test", reply: `250 `, result: "pass", action: "none", domain: "exists.spf.test", mechanism: "exists:%{ir}.%{l1r-}.list.spf.test"},
	{client: "192.0.2.7", from: "a@named.spf.test", reply: `250 `, result: "pass", action: "none", domain: "named.spf.test", mechanism: "ptr"},
	{client: "192.0.2.8", from: "a@named.spf.test", reply: `550 5\.7\.23 `, result: "fail", action: "refused", domain: "named.spf.test", mechanism: "all"},
	{client: "192.0.2.7", from: "a@signed.test", reply: `250 `, result: "pass", action: "none", domain: "signed.test", mechanism: "ip4:192.0.2.7"},
	{client: "192.0.2.7", from: "", helo: "fail.spf.test", reply: `550 5\.7\.23 SPF validation failed: fail\.spf\.test explains: 192\.0\.2\.7 is none of fail\.spf\.test's`,
		result: "fail", action: "refused", domain: "fail.spf.test", mechanism: "all"},
}

func TestSPFByNsdAndByUnboundInFrontOfIt(t *testing.T) {
	dns := startDNS(t)
	for name, server := range map[string]string{"unbound": dns.unbound, "nsd alone": dns.nsd} {
		t.Run(name, func(t *testing.T) {
			admin := freeAddress(t)
			p := serve(t, t.TempDir(), sendersConfig(admin, server, ""))
			cases := senderCases
			if server == dns.unbound { // nsd does not know that it is bogus
				cases = append(cases[:len(cases):len(cases)], senderCase{client: "192.0.2.7", from: "a@bogus.test", reply: `451 4\.7\.24 `,
					result: "temperror", action: "refused", domain: "bogus.test"})
			}
			counted := map[[2]string]float64{}
			for _, test := range cases {
				counted[[2]string{test.result, test.action}]++
				checkSender(t, p, server, test)
			}
			for labels, n := range counted {
				if got := metric(t, admin, "fastedge_spf_results_total", `result="`+labels[0]+`"`, `action="`+labels[1]+`"`); got != n {
					t.Errorf("%v counted %v times, want %v", labels, got, n)
				}
			}
			if metric(t, admin, "fastedge_dns_tcp_total") == 0 {
				t.Error("a record of more than 2 kB came without TCP")
			}
		})
	}
}

// checkSender does one transaction and looks at all that tells of the result: the reply, the log, the header fields and the command.
func checkSender(t *testing.T, p *process, server string, test senderCase) {
	t.Helper()
	helo := cmp.Or(test.helo, "client.spf.test")
	c := behindProxy(t, p.addr[0], test.client, `220 `)
	defer c.Close()
	c.must(t, "EHLO "+helo+"\r\n", "250-")
	reply := c.must(t, "MAIL FROM:<"+test.from+">\r\n", "")
	if !matches(test.reply, reply) {
		t.Errorf("%s from %s: %q, want %s", test.from, test.client, reply, test.reply)
	}
	logged := []string{`"msg":"spf"`, `"client":"` + test.client + `"`, `"from":"` + test.from + `"`, `"result":"` + test.result + `"`,
		`"mechanism":"` + test.mechanism + `"`}
	if test.domain != "" {
		logged = append(logged, `"domain":"`+test.domain+`"`)
	}
	switch test.result {
	case "pass", "none", "neutral":
		logged = append(logged, `"level":"DEBUG"`)
	default:
		logged = append(logged, `"level":"INFO"`)
	}
	p.waitLine(logged...)
	if strings.HasPrefix(reply, "250") {
		c.must(t, "RCPT TO:<b@example.net>\r\nDATA\r\n", "250", "354")
		m := queuedAs.FindStringSubmatch(c.must(t, "Subject: x\r\n\r\n.\r\n", "250 2.6.0"))
		if m == nil {
			t.Fatal("no id")
		}
		fields := p.fields(m[1])
		received := "Received-SPF: " + test.result + " (mx.example.net: "
		clientIP := test.client
		if strings.Contains(clientIP, ":") { // no dot-atom (RFC 7208 §9.1)
			clientIP = strconv.Quote(clientIP)
		}
		if !strings.HasPrefix(fields[0], received) || !strings.Contains(fields[0], ") client-ip="+clientIP+"; envelope-from=\""+test.from+
			"\"; helo="+helo+"; identity=mailfrom; receiver=mx.example.net") {
			t.Errorf("%s from %s: %q does not begin with %q", test.from, test.client, fields[0], received)
		}
		results := "Authentication-Results: mx.example.net; spf=" + test.result + " smtp.mailfrom=" + test.from
		if !strings.HasPrefix(fields[1], results) {
			t.Errorf("%q does not begin with %q", fields[1], results)
		}
		if !strings.HasPrefix(fields[2], "Received: from "+helo+" (") {
			t.Errorf("Received is not the third field: %q", fields[:3])
		}
	}

	var got struct{ Result, Domain, Mechanism, Explanation string }
	out := p.fastedge("spf", "check", "--ip", test.client, "--from", test.from, "--helo", helo, "--server", server, "--json")
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Result != test.result || test.domain != "" && got.Domain != test.domain || got.Mechanism != test.mechanism {
		t.Errorf("spf check of %s from %s: %s", test.from, test.client, out)
	}
	if want := " is none of "; strings.Contains(test.reply, want) != strings.Contains(got.Explanation, want) {
		t.Errorf("spf check of %s from %s: explanation %q", test.from, test.client, got.Explanation)
	}
}

func TestUnboundValidatesAndItIsSeen(t *testing.T) {
	dns := startDNS(t)
	r, err := resolver.New(resolver.Options{Servers: []string{dns.unbound}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for i, test := range []struct {
		name      string
		status    spf.Status
		authentic uint64 // answers so far
	}{{"pass.spf.test", spf.Found, 0}, {"signed.test", spf.Found, 1}, {"no.signed.test", spf.Empty, 2}, {"bogus.test", spf.Failed, 2}} {
		a, err := r.LookupSync(ctx, spf.Query{Name: test.name, Type: spf.TypeTXT})
		if err != nil || a.Status != test.status || r.Stats().Authentic != test.authentic {
			t.Errorf("%d, %s: %+v, %v, %d authentic", i, test.name, a, err, r.Stats().Authentic)
		}
	}
}

func TestClientsNamesAreConfirmedByUnbound(t *testing.T) {
	dns := startDNS(t)
	admin := freeAddress(t)
	p := serve(t, t.TempDir(), sendersConfig(admin, dns.unbound, ""))
	for i, test := range []struct{ client, told, received, results string }{
		{"192.0.2.7", "pass", "(www.named.spf.test [192.0.2.7])", "iprev=pass policy.iprev=192.0.2.7 (www.named.spf.test)"},
		{"192.0.2.8", "fail", "([192.0.2.8])", "iprev=fail policy.iprev=192.0.2.8"},
		{"192.0.2.9", "permerror", "([192.0.2.9])", "iprev=permerror policy.iprev=192.0.2.9"},
		{"2001:db8::7", "pass", "(mx2.spf.test [IPv6:2001:db8::7])", `iprev=pass policy.iprev="2001:db8::7" (mx2.spf.test)`},
	} {
		c := behindProxy(t, p.addr[0], test.client, `220 `)
		// Mail does not wait for the name; the test does.
		p.wait("the name of "+test.client, func() bool { return metric(t, admin, "fastedge_ptr_results_total") == float64(i+1) })
		c.must(t, "EHLO client.test\r\nMAIL FROM:<a@none.spf.test>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n", "250-", "250", "250", "354")
		m := queuedAs.FindStringSubmatch(c.must(t, "Subject: x\r\n\r\n.\r\n", "250 2.6.0"))
		fields := p.fields(m[1])
		if !strings.HasSuffix(fields[1], "; "+test.results) {
			t.Errorf("%q does not end with %q", fields[1], test.results)
		}
		if !strings.HasPrefix(fields[2], "Received: from client.test "+test.received) {
			t.Errorf("%q has not %q", fields[2], test.received)
		}
	}
	for result, n := range map[string]float64{"pass": 2, "fail": 1, "permerror": 1} {
		if got := metric(t, admin, "fastedge_ptr_results_total", `"`+result+`"`); got != n {
			t.Errorf("%v %s", got, result)
		}
	}
}

func TestListsServedByNsdAndOneThatIsDead(t *testing.T) {
	dns := startDNS(t)
	admin := freeAddress(t)
	p := serve(t, t.TempDir(), sendersConfig(admin, dns.unbound, `
[dnsbl]
mode = "enforce"
timeout = "1s"
[[dnsbl.list]]
zone = "bl.test"
[[dnsbl.list]]
zone = "wl.test"
weight = -1
[[dnsbl.list]]
zone = "dead.silent.test"
weight = 10
`))
	for _, test := range []struct{ client, greeting string }{
		{"192.0.2.10", `554 5\.7\.1 Service unavailable; client blocked by bl\.test: 192\.0\.2\.10 sends what nobody wants \{zone\}\r\n$`},
		{"192.0.2.11", `554 5\.7\.1 Service unavailable; client blocked by bl\.test: listed\r\n$`},
		{"2001:db8::b", `554 5\.7\.1 Service unavailable; client blocked by bl\.test: listed\r\n$`},
		{"192.0.2.7", `220 `},  // on none
		{"192.0.2.12", `220 `}, // the list says that it does not answer us
		{"192.0.2.13", `220 `}, // on a list of good clients, too
	} {
		behindProxy(t, p.addr[0], test.client, test.greeting)
		if strings.HasPrefix(test.greeting, "554") {
			p.waitLine(`"msg":"dnsbl"`, `"client":"`+test.client+`"`, `"lists":["bl.test"]`, `"score":1`)
		} else if p.lines(`"msg":"dnsbl"`, `"client":"`+test.client+`"`) > 0 {
			t.Errorf("%s is said to be listed:\n%s", test.client, p.log)
		}
	}
	p.wait("the dead list to have failed", func() bool {
		return metric(t, admin, "fastedge_dnsbl_answers_total", "dead.silent.test", "failed") >= 1
	})
	for list, n := range map[string]float64{"bl.test": 4, "wl.test": 1, "dead.silent.test": 0} {
		if got := metric(t, admin, "fastedge_dnsbl_answers_total", `"`+list+`"`, `"listed"`); got != n {
			t.Errorf("%s has listed %v times, want %v", list, got, n)
		}
	}
}

func TestResultsInOurNameAreRemovedFromMailThatIsChecked(t *testing.T) {
	dns := startDNS(t)
	p := serve(t, t.TempDir(), sendersConfig(freeAddress(t), dns.unbound, ""))
	c := behindProxy(t, p.addr[0], "192.0.2.7", `220 `)
	c.must(t, "EHLO client.test\r\nMAIL FROM:<a@softfail.spf.test>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n", "250-", "250", "250", "354")
	m := queuedAs.FindStringSubmatch(c.must(t, "Authentication-Results: mx.example.net; spf=pass\r\n"+
		"authentication-results : (a comment)\r\n MX.example.NET 1;\r\n\tspf=pass smtp.mailfrom=spf.test\r\n"+
		"Authentication-Results: mx.elsewhere.example; spf=pass\r\nSubject: x\r\n\r\nAuthentication-Results: mx.example.net; spf=pass\r\n.\r\n", "250 2.6.0"))
	text := string(p.fastedge("queue", "cat", m[1]))
	head, body, _ := strings.Cut(text, "\r\n\r\n")
	if n := strings.Count(strings.ToLower(head), "authentication-results"); n != 2 || strings.Count(strings.ToLower(head), "mx.example.net;\r\n\tspf=softfail") != 1 ||
		!strings.Contains(head, "\r\nAuthentication-Results: mx.elsewhere.example; spf=pass\r\nSubject: x") || strings.Contains(head, "spf=pass smtp.mailfrom=spf.test") {
		t.Errorf("the header section is\n%s", head)
	}
	if body != "Authentication-Results: mx.example.net; spf=pass\r\n" {
		t.Errorf("the body is %q", body)
	}
}

// While hundreds wait for a domain whose servers are silent, others' mail is answered; in the end the hundreds are deferred.
func TestATarpitOfOneDomainLeavesOthersAlone(t *testing.T) {
	const waiting = 400
	dns := startDNS(t)
	admin := freeAddress(t)
	p := serve(t, t.TempDir(), strings.Replace(sendersConfig(admin, dns.unbound, "[ptr]\nmode = \"off\"\n"), `timeout = "2s"`, `timeout = "5s"`, 1))
	var all []*smtpClient
	for i := range waiting {
		client := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
		c := behindProxy(t, p.addr[0], client.String(), `220 `)
		c.must(t, "EHLO client.test\r\n", "250-")
		if _, err := io.WriteString(c.Conn, fmt.Sprintf("MAIL FROM:<a@d%d.silent.test>\r\n", i)); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	p.wait("questions to the tarpit", func() bool { return dns.asked.Load() >= 1 })
	tests := []struct{ from, reply string }{{"a@pass.spf.test", "250"}, {"a@fail.spf.test", "550 5.7.23"}, {"a@signed.test", "250"}, {"a@big.test", "250"}}
	for _, test := range tests {
		c := behindProxy(t, p.addr[0], "192.0.2.7", `220 `)
		c.must(t, "EHLO client.test\r\nMAIL FROM:<"+test.from+">\r\n", "250-", test.reply)
	}
	if n := p.lines(`"msg":"spf"`, `"result":"temperror"`); n > 0 {
		t.Errorf("%d that wait for the tarpit were answered before the others were", n)
	}
	for i, c := range all {
		if reply := c.must(t, "", ""); !strings.HasPrefix(reply, "451 4.7.24 SPF validation error: ") {
			t.Errorf("%d waited for %q", i, reply)
		}
	}
	if got := metric(t, admin, "fastedge_spf_results_total", `result="temperror"`, `action="refused"`); got != waiting {
		t.Errorf("%v temperrors are counted", got)
	}
}
