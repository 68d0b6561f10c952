package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
)

// dnsZone answers TXT and A questions over UDP on loopback, from records like "TXT example.com"; names that are not there do not exist, and those
// whose record is "servfail" fail.
func dnsZone(t *testing.T, records map[string][]string) (server string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := dnsAnswer(buf[:n], records); reply != nil {
				conn.WriteTo(reply, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

// dnsAnswer makes the reply to a query of one question.
func dnsAnswer(query []byte, records map[string][]string) []byte {
	var labels []string
	at := 12
	for at < len(query) && query[at] != 0 {
		end := at + 1 + int(query[at])
		if end > len(query) {
			return nil
		}
		labels = append(labels, string(query[at+1:end]))
		at = end
	}
	if at += 5; at > len(query) {
		return nil
	}
	qtype := int(query[at-4])<<8 | int(query[at-3])
	name := strings.ToLower(strings.Join(labels, "."))
	found, exists := records[map[int]string{1: "A ", 16: "TXT "}[qtype]+name]
	reply := append([]byte(nil), query[:at]...)
	reply[2], reply[3] = 0x81, 0x80
	for i := 4; i < 12; i++ {
		reply[i] = 0
	}
	reply[5], reply[7] = 1, byte(len(found))
	switch {
	case len(found) == 1 && found[0] == "servfail":
		reply[3], reply[7] = 0x82, 0
		return reply
	case !exists:
		reply[3] = 0x83
	}
	for _, text := range found {
		data := append([]byte{byte(len(text))}, text...)
		if qtype == 1 {
			data = net.ParseIP(text).To4()
		}
		reply = append(reply, 0xC0, 12, 0, byte(qtype), 0, 1, 0, 0, 0, 60, 0, byte(len(data)))
		reply = append(reply, data...)
	}
	return reply
}

func TestSPFCheckShowsResultReasonAndWalk(t *testing.T) {
	server := dnsZone(t, map[string][]string{
		"TXT example.com":      {"other text", "v=spf1 a:mx.example.com include:_spf.example.com -all exp=why.example.com"},
		"TXT _spf.example.com": {"v=spf1 ip4:192.0.2.128/25 exists:no.example.com -all"},
		"A mx.example.com":     {"192.0.2.25"},
		"TXT why.example.com":  {"%{i} is not ours, says %{r}"},
		"TXT soft.example":     {"v=spf1 ~all"},
		"TXT bad.example":      {"v=spf1 ip4:nonsense -all"},
		"TXT broken.example":   {"servfail"},
		"TXT helo.example":     {"v=spf1 ip4:192.0.2.7 -all"},
		"TXT empty.example":    {"nothing about senders"},
	})
	check := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		var out, errs bytes.Buffer
		args = append([]string{"spf", "check", "--server", server}, args...)
		if got := run(args, strings.NewReader(""), &out, &errs); got != want {
			t.Errorf("%v: exit code %d, want %d: %s", args, got, want, errs.String())
		}
		return out.String(), errs.String()
	}

	out, _ := check(0, "--ip", "192.0.2.7", "--from", "a@example.com", "--helo", "x.example.com", "--receiver", "mx1.example.net")
	for _, want := range []string{
		"result       fail\n", "reason       192.0.2.7 is not ours, says mx1.example.net\n", "explanation  192.0.2.7 is not ours",
		"domain       example.com\n", "mechanism    all\n", "lookups      3 of 10\n", "voids        1 of 2\n", "queries      5 in ",
		"\nexample.com has v=spf1 a:mx.example.com include:_spf.example.com -all exp=why.example.com\n  a:mx.example.com\n    A mx.example.com: 1 found, ",
		"\n  include:_spf.example.com\n", "\n  _spf.example.com has v=spf1 ip4:192.0.2.128/25", "A no.example.com: nothing there, ", "its result is fail\n", "matches: fail\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}

	for _, c := range []struct {
		ip, from, helo, want string // result, mechanism, domain
	}{
		{"192.0.2.200", "a@example.com", "x.example.com", "pass include:_spf.example.com example.com"},
		{"192.0.2.25", "<a@EXAMPLE.com>", "", "pass a:mx.example.com example.com"},
		{"::ffff:192.0.2.25", "a@example.com", "", "pass a:mx.example.com example.com"},
		{"2001:db8::1", "a@soft.example", "", "softfail all soft.example"},
		{"[2001:db8::1]", "a@soft.example", "", "softfail all soft.example"},
		{"[ipv6:2001:db8::1]", "\"a <b\"@soft.example", "", "softfail all soft.example"},
		{"[192.0.2.200]", "a@example.com", "x.example.com", "pass include:_spf.example.com example.com"},
		{"192.0.2.7", "", "helo.example", "pass ip4:192.0.2.7 helo.example"},
		{"192.0.2.8", "<>", "helo.example", "fail all helo.example"},
		{"192.0.2.8", "a@bad.example", "", "permerror  bad.example"},
		{"192.0.2.8", "a@broken.example", "", "temperror  broken.example"},
		{"192.0.2.8", "a@empty.example", "", "none  empty.example"},
		{"192.0.2.8", "a@nowhere.example", "", "none  nowhere.example"},
		{"192.0.2.8", "a@localhost", "", "none  "},
	} {
		out, _ := check(0, "--ip", c.ip, "--from", c.from, "--helo", c.helo, "--json")
		var got map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if result := fmt.Sprint(got["result"], " ", got["mechanism"], " ", got["domain"]); result != c.want {
			t.Errorf("%+v: %s", c, out)
		}
		keys := slices.Sorted(maps.Keys(got))
		if !slices.Equal(keys, []string{"domain", "elapsed_ms", "explanation", "lookups", "mechanism", "queries", "reason", "result", "voids"}) {
			t.Errorf("keys %v", keys)
		}
		if got["reason"] == "" || got["explanation"] != "" {
			t.Errorf("%+v: %s", c, out)
		}
	}

	for _, args := range [][]string{
		{"--ip", "192.0.2", "--from", "a@example.com"},
		{"--from", "a@example.com"},
		{"--ip", "192.0.2.1"},
		{"--ip", "192.0.2.1", "--from", ""},
		{"--ip", "192.0.2.1", "--from", "a@example.com", "extra"},
		{"--ip", "", "--from", "a@example.com"},
		{"--ip", "IPv6:2001:db8::1", "--from", "a@example.com"},
		{"--ip", "[IPv6:2001:db8::1", "--from", "a@example.com"},
		{"--ip", "[]", "--from", "a@example.com"},
		{"--ip", "192.0.2.1", "--from", "Bob <a@example.com>"},
		{"--ip", "192.0.2.1", "--from", "\"Bob\" <a@example.com>"},
		{"--ip", "192.0.2.1", "--from", "<a@example.com"},
		{"--ip", "192.0.2.1", "--from", "a@example.com, b@example.com"},
		{"--ip", "192.0.2.1", "--from", "a@example.com", "--server", ""},
		{"--ip", "192.0.2.1", "--from", "a@example.com", "--server", ":53"},
		{"--ip", "192.0.2.1", "--from", "a@example.com", "--server", "127.0.0.1:0"},
		{"--ip", "192.0.2.1", "--from", "a@example.com", "--server", "127.0.0.1:many"},
	} {
		if out, errs := check(2, args...); out != "" || !strings.HasPrefix(errs, "fastedge: ") {
			t.Errorf("%v: stdout %q, stderr %q", args, out, errs)
		}
	}
}

// A server that is not there is not the domain's fault, and nothing to wait for.
func TestSPFCheckTellsThatTheServerIsNotThere(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	t.Setenv("FASTEDGE_DNS_TIMEOUT", "1h")
	t.Setenv("FASTEDGE_SPF_TIMEOUT", "1h")
	var out, errs bytes.Buffer
	args := []string{"spf", "check", "--ip", "192.0.2.1", "--from", "a@example.com", "--server", conn.LocalAddr().String()}
	if code := run(args, nil, &out, &errs); code != 0 ||
		!strings.Contains(out.String(), "reason       SPF Temporary Error: connection refused by every DNS server, asked for TXT of example.com\n") {
		t.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
	}
}

// Servers and limits are those of the configuration, which is checked first.
func TestSPFCheckUsesTheConfiguration(t *testing.T) {
	server := dnsZone(t, map[string][]string{"TXT example.com": {"v=spf1 a:a.example.com ip4:192.0.2.1 exp=why.example.com -all"}})
	t.Setenv("FASTEDGE_DNS_SERVERS", server)
	t.Setenv("FASTEDGE_SPF_VOID_LOOKUPS", "0")
	var out, errs bytes.Buffer
	args := []string{"spf", "check", "--ip", "192.0.2.1", "--from", "a@example.com"}
	if code := run(args, nil, &out, &errs); code != 0 || !strings.HasPrefix(out.String(), "result       permerror\n") {
		t.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
	}
	t.Setenv("FASTEDGE_SPF_VOID_LOOKUPS", "-2")
	if code := run(args, nil, &out, &errs); code != 78 {
		t.Errorf("exit code %d", code)
	}
}
