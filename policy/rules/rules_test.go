package rules

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

func mailbox(s string) smtpcodec.Path {
	p := smtpcodec.Path{Mailbox: []byte(s), Local: []byte(s)}
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		p.Local, p.Domain = p.Mailbox[:at], p.Mailbox[at+1:]
	}
	return p
}

// eventAt is a session of user@Example.NET from 192.0.2.1 with two recipients.
func eventAt(at policy.Stage) *policy.Event {
	e := &policy.Event{Stage: at, Client: policy.Client{
		Addr: netip.MustParseAddrPort("192.0.2.1:40000"), Listener: "mx", Helo: []byte("Mail.Example.NET"), Protocol: "ESMTP",
	}}
	if at >= policy.AtMail {
		e.Envelope = &envelope.Envelope{ReversePath: []byte("User@Example.NET"), Recipients: make([]envelope.Recipient, 2)}
	}
	switch at {
	case policy.AtMail:
		e.Path, e.Size = mailbox("User@Example.NET"), 1000
	case policy.AtRcpt:
		e.Path = mailbox("List-A@Example.ORG")
	case policy.AtMessage:
		e.Size = 2000
	}
	return e
}

func mustCompile(t testing.TB, o Options, list ...Rule) *Set {
	t.Helper()
	s, err := Compile(list, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask gives the reply as a client would read it; empty for success in the session's own words.
func ask(t testing.TB, s *Set, e *policy.Event) string {
	t.Helper()
	if err := s.Validate(e); err != nil {
		t.Fatal(err)
	}
	if e.Reply.Code == 0 {
		return ""
	}
	return strings.ReplaceAll(strings.TrimSuffix(string(e.Reply.AppendTo(nil)), "\r\n"), "\r\n", "|")
}

// example is one of the six in the package's comment, read from the source so that they stay true.
func example(t *testing.T, n int) Rule {
	t.Helper()
	source, err := os.ReadFile("rules.go")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(source), fmt.Sprintf("//\t# %d. ", n))
	if !ok {
		t.Fatalf("example %d is gone", n)
	}
	var r Rule
	for _, line := range strings.Split(text, "\n")[1:] {
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "//\t"), " = ")
		if !ok {
			break
		}
		switch value = strings.Trim(value, `'`); key {
		case "at":
			if r.At, err = policy.ParseStage(strings.Trim(value, `"`)); err != nil {
				t.Fatal(err)
			}
		case "when":
			r.When = value
		case "reply":
			r.Reply = strings.Trim(value, `"`)
		case "accept":
			r.Accept = true
		case "mode":
			r.Observe = true
		}
	}
	return r
}

func TestTheSixExamplesDoWhatTheySay(t *testing.T) {
	change := func(at policy.Stage, f func(e *policy.Event)) *policy.Event {
		e := eventAt(at)
		f(e)
		return e
	}
	var observed []string
	o := Options{Observed: func(rule string, _ *policy.Event) { observed = append(observed, rule) }}

	one := mustCompile(t, o, example(t, 1))
	if got := ask(t, one, eventAt(policy.AtMail)); got != "550 5.7.1 Log in to send as example.net" {
		t.Errorf("1: %q", got)
	}
	if got := ask(t, one, change(policy.AtMail, func(e *policy.Event) { e.Client.User = "user" })); got != "" {
		t.Errorf("1, logged in: %q", got)
	}
	if got := ask(t, one, change(policy.AtMail, func(e *policy.Event) { e.Client.MayRelay = true })); got != "" {
		t.Errorf("1, may relay: %q", got)
	}
	if got := ask(t, one, change(policy.AtMail, func(e *policy.Event) { e.Path = mailbox("a@b@example.org") })); got != "" {
		t.Errorf("1, another domain: %q", got)
	}

	two := mustCompile(t, o, example(t, 2), Rule{At: policy.AtMail, When: "true", Reply: "550 no"})
	for addr, want := range map[string]string{
		"10.0.8.9:1": "", "[::ffff:10.0.8.1]:1": "", "[2001:db8:8:1::5]:1": "", "10.0.9.1:1": "550 no", "[2001:db8:9::1]:1": "550 no",
	} {
		if got := ask(t, two, change(policy.AtMail, func(e *policy.Event) { e.Client.Addr = netip.MustParseAddrPort(addr) })); got != want {
			t.Errorf("2, %s: %q", addr, got)
		}
	}

	three := mustCompile(t, o, example(t, 3))
	for helo, want := range map[string]string{"MX1.Example.net": "550 5.7.1 That is not your name", "mail.example.net": ""} {
		if got := ask(t, three, change(policy.AtHelo, func(e *policy.Event) { e.Client.Helo = []byte(helo) })); got != want {
			t.Errorf("3, %s: %q", helo, got)
		}
	}

	four := mustCompile(t, o, example(t, 4))
	for to, want := range map[string]string{
		"list-a@Example.net": "530 5.7.0 Must issue a STARTTLS command first", "ann@example.net": "", "list-a@example.org": "",
	} {
		if got := ask(t, four, change(policy.AtRcpt, func(e *policy.Event) { e.Path = mailbox(to) })); got != want {
			t.Errorf("4, %s: %q", to, got)
		}
	}
	if got := ask(t, four, change(policy.AtRcpt, func(e *policy.Event) { e.Path, e.Client.TLS = mailbox("list-a@example.net"), &policy.TLS{} })); got != "" {
		t.Errorf("4, TLS: %q", got)
	}

	five := mustCompile(t, o, example(t, 5))
	observed = nil
	large := change(policy.AtMessage, func(e *policy.Event) { e.Size, e.Envelope.Recipients = 11<<20, make([]envelope.Recipient, 21) })
	if got := ask(t, five, large); got != "" || !slices.Equal(observed, []string{"rule 1 at message"}) {
		t.Errorf("5: %q, observed %q", got, observed)
	}

	six := mustCompile(t, o, example(t, 6))
	for helo, want := range map[string]string{
		"Host-1.DYN.example.org": "421 4.7.0 Use your provider's mail server", "192-0-2-1.example.org": "421 4.7.0 Use your provider's mail server",
		"mail.example.org": "",
	} {
		if got := ask(t, six, change(policy.AtHelo, func(e *policy.Event) { e.Client.Helo = []byte(helo) })); got != want {
			t.Errorf("6, %s: %q", helo, got)
		}
	}
}

func TestTheFirstRuleThatMatchesDecides(t *testing.T) {
	s := mustCompile(t, Options{},
		Rule{At: policy.AtRcpt, When: `recipient_local == "never"`, Reply: "550 5.1.1 first"},
		Rule{At: policy.AtMail, When: `true`, Reply: "550 of another stage"},
		Rule{At: policy.AtRcpt, When: `recipient_domain == "example.org"`, Reply: "250 2.1.5 second", Observe: true},
		Rule{At: policy.AtRcpt, When: `recipient == "List-A@Example.ORG" && recipients == 2`, Reply: "450 4.2.1 third\nwith a line"},
		Rule{At: policy.AtRcpt, When: `true`, Reply: "550 last"},
	)
	if got := ask(t, s, eventAt(policy.AtRcpt)); got != "450-4.2.1 third|450 4.2.1 with a line" {
		t.Errorf("got %q", got)
	}
	if s.Stages() != policy.On(policy.AtMail, policy.AtRcpt) {
		t.Errorf("stages %b", s.Stages())
	}
	if none := mustCompile(t, Options{}); none.Stages() != 0 {
		t.Error("no rules, but stages")
	}
}

func TestARuleThatFailsIsAnError(t *testing.T) {
	s := mustCompile(t, Options{}, Rule{Name: "broken", At: policy.AtRcpt, When: "10 % (recipients - 2) == 1", Reply: "550 no"})
	for range 2 { // the same frame again
		if err := s.Validate(eventAt(policy.AtRcpt)); err == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("got %v", err)
		}
	}
	e := eventAt(policy.AtRcpt)
	e.Envelope.Recipients = make([]envelope.Recipient, 5)
	if got := ask(t, s, e); got != "550 no" {
		t.Errorf("afterwards %q", got)
	}
}

func TestObserveWritesALine(t *testing.T) {
	var log bytes.Buffer
	s := mustCompile(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))},
		Rule{Name: "x", At: policy.AtMail, When: "true", Reply: "550 5.7.1 no", Observe: true},
		Rule{Name: "y", At: policy.AtMail, When: "true", Accept: true, Observe: true})
	if got := ask(t, s, eventAt(policy.AtMail)); got != "" {
		t.Errorf("got %q", got)
	}
	for _, want := range []string{`rule=x`, `would="550 5.7.1 no"`, `rule=y`, `would=accept`, `client=192.0.2.1:40000`, `stage=mail`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in %s", want, log.String())
		}
	}
}

func TestFactsAreWhatTheSessionKnows(t *testing.T) {
	e := eventAt(policy.AtMessage)
	e.Client.ProxyAddr = netip.MustParseAddrPort("10.1.2.3:5")
	e.Client.User, e.Client.Mechanism = "ann", "PLAIN"
	e.Client.TLS = &policy.TLS{Version: "TLS1.3", Cipher: "C", ServerName: "sni.example",
		Certificate: &policy.Certificate{Verified: true, Names: []string{"first.example"}, Fingerprint: "ab"}}
	rcpt := eventAt(policy.AtRcpt)
	mail := eventAt(policy.AtMail)
	for when, e := range map[string]*policy.Event{
		`client_ip == "192.0.2.1" && proxy_ip == "10.1.2.3" && listener == "mx" && !may_relay`:                                        e,
		`tls && tls_version == "TLS1.3" && tls_cipher == "C" && tls_server_name == "sni.example"`:                                     e,
		`tls_certificate == "first.example" && tls_fingerprint == "ab"`:                                                               e,
		`helo == "mail.example.net" && protocol == "ESMTP" && user == "ann" && mechanism == "PLAIN"`:                                  e,
		`sender == "User@Example.NET" && sender_local == "User" && sender_domain == "example.net"`:                                    e,
		`recipients == 2 && size == 2000 && in_network(proxy_ip, "10.0.0.0/8", "::1") && not in_network(client_ip, "2001:db8::/32")`:  e,
		`recipient == "List-A@Example.ORG" && recipient_local == "List-A" && recipient_domain == "example.org" && sender_local != ""`: rcpt,
		`sender == "User@Example.NET" && size == 1000 && !tls && tls_version == "" && tls_certificate == "" && tls_fingerprint == ""`: mail,
	} {
		s := mustCompile(t, Options{}, Rule{At: e.Stage, When: when, Reply: "550 yes"})
		e.Reply = smtpcodec.Reply{}
		if got := ask(t, s, e); got != "550 yes" {
			t.Errorf("%s is not true", when)
		}
	}
	// A certificate that nobody has vouched for has no name, but a fingerprint.
	e.Client.TLS = &policy.TLS{Certificate: &policy.Certificate{CommonName: "liar", Fingerprint: "cd"}}
	e.Reply = smtpcodec.Reply{}
	if got := ask(t, mustCompile(t, Options{}, Rule{At: e.Stage, When: `tls_certificate == "" && tls_fingerprint == "cd"`, Reply: "550 yes"}), e); got != "550 yes" {
		t.Error("an unverified certificate has a name")
	}
	// Nothing stays from the event before.
	s := mustCompile(t, Options{}, Rule{At: policy.AtMail, When: `sender_domain == "example.net" || helo == "mail.example.net"`, Reply: "550 yes"})
	ask(t, s, eventAt(policy.AtMail))
	if got := ask(t, s, &policy.Event{Stage: policy.AtMail}); got != "" {
		t.Error("facts of another session")
	}
	// Every fact can be asked for wherever it is listed, also of an empty event.
	for _, f := range Facts() {
		for _, at := range f.At {
			when := map[string]string{"string": f.Name + ` == "x"`, "bool": f.Name, "int": f.Name + " == 7"}[f.Type]
			if got := ask(t, mustCompile(t, Options{}, Rule{At: at, When: when, Reply: "550 yes"}), &policy.Event{Stage: at}); got != "" {
				t.Errorf("%s at %s: %q", f.Name, at, got)
			}
		}
	}
}

func TestWrongRulesAreExplained(t *testing.T) {
	mail := func(when string) Rule { return Rule{At: policy.AtMail, When: when, Reply: "550 no"} }
	reply := func(r string) Rule { return Rule{At: policy.AtMail, When: "true", Reply: r} }
	for _, c := range []struct {
		rule   Rule
		field  string
		offset int
		want   string
	}{
		{mail(`user == "a" && recipient == "b"`), "when", 15, "recipient is not known at mail, only at rcpt"},
		{mail(`"ä" == user && recipients > 1`), "when", 16, "recipients is not known at mail"}, // bytes, not runes
		{mail(`SenderDomain == "a"`), "when", 0, "sender_domain is meant?"},
		{mail(`foo`), "when", 0, "there is no fact foo"},
		{mail(`user`), "when", 0, "bool"},
		{mail(`size`), "when", 0, "bool"},
		{mail(`size == "1"`), "when", 5, "mismatched types"},
		{mail(`user == `), "when", 7, "unexpected"},
		{mail(`user == "`), "when", 9, "literal not terminated"},
		{mail(``), "when", 0, "an expression is needed"},
		{mail(`  `), "when", 0, "an expression is needed"},
		{mail(strings.Repeat(" ", MaxExpressionBytes) + "true"), "when", MaxExpressionBytes, "at most 8192 bytes"},
		{mail(`user matches sender`), "when", 13, "a pattern must be a constant"},
		{mail(`any(["a"], user matches #)`), "when", 24, "a pattern must be a constant"},
		{mail(`user matches "("`), "when", 13, "missing closing )"},
		{mail(`user matches "(a{30}){30}"`), "when", 13, "the pattern is too large"},
		{mail(`in_network(client_ip, "10.0.0/8")`), "when", 22, "neither an address nor a network"},
		{mail(`in_network(client_ip, user)`), "when", 22, "must be a constant"},
		{mail(`in_network(user, "10.0.0.0/8")`), "when", 11, "in_network takes client_ip or proxy_ip"},
		{mail(`in_network(client_ip)`), "when", 0, "in_network takes"},
		{mail(`in_network == true`), "when", 0, "in_network is a function"},
		{mail(`system("ls")`), "when", 0, "there is no function system"},
		{mail(`repeat(user, 1000000) == "a"`), "when", 0, "repeat is not offered"},
		{mail(`any(1..1000000, # == 1)`), "when", 5, "written out"},
		{mail(`any(user, # == "a")`), "when", 4, "written out"},
		{mail(`any([1], any([1], # == 1))`), "when", 9, "cannot stand within"},
		{mail(`let x = user; x == "a"`), "when", 4, "let is not offered"},
		{mail(`$env["recipient"] == "a"`), "when", 4, "member"},
		{mail(`user.name == "a"`), "when", 5, "not offered"},
		{mail(`$env == 1`), "when", 0, "there is no fact $env"},
		{mail(`1 in 1..2`), "when", 6, ".. is not offered"},
		{mail(`{"a": 1} == {"a": 1}`), "when", 0, "not offered"},
		{mail(`any([` + strings.Repeat("1,", 1000) + `1], ` + strings.Repeat("# == 2 or ", 10) + `false)`), "when", 0, "steps"},
		{mail(strings.Repeat("1+", 2100) + "1 == 2"), "when", -1, "nodes"},
		{Rule{At: policy.AtQueued, When: "true", Accept: true}, "at", 0, "queued"},
		{Rule{At: policy.AtMessage, When: "true", Reply: "250 ok"}, "reply", 0, "250 is no success at message"},
		{Rule{At: policy.AtConnect, When: "true", Reply: "250 ok"}, "reply", 0, "250 is no success at connect"},
		{Rule{At: policy.AtConnect, When: "true", Reply: "220 hello"}, "", 0, ""},
		{Rule{At: policy.AtMessage, When: "true", Reply: "221 bye"}, "", 0, ""},
		{reply(``), "reply", 0, "three digits"},
		{reply(`550`), "reply", 0, "three digits"},
		{reply(`5500 x`), "reply", 0, "three digits"},
		{reply(`abc x`), "reply", 0, "no reply code"},
		{reply(`354 x`), "reply", 0, "no reply code"},
		{reply(`650 x`), "reply", 0, "no reply code"},
		{reply(`550 4.7.1 x`), "reply", 4, "begins with 5"},
		{reply(`550 5.7 x`), "", 0, ""},
		{reply("550 a\r\n250 b"), "reply", 5, "printable"},
		{reply("550 ä"), "reply", 4, "printable"},
		{reply("550 " + strings.Repeat("x", 507)), "reply", 510, "at most 512"},
		{reply("550 5.7.1 x\n" + strings.Repeat("x", 501)), "reply", 0, "line 2"},
		{reply("550 5.7.1 " + strings.Repeat("x", 500)), "", 0, ""},
		{reply("550 5.7.1 x\n" + strings.Repeat("x", 500)), "", 0, ""},
	} {
		_, err := Compile([]Rule{mail("true"), c.rule}, Options{})
		if c.field == "" {
			if err != nil {
				t.Errorf("%.60q, %.60q: %v", c.rule.When, c.rule.Reply, err)
			}
			continue
		}
		all := Problems(err)
		if len(all) != 1 {
			t.Errorf("%.60q: %v", c.rule.When, err)
			continue
		}
		if p := all[0]; p.Rule != 1 || p.Field != c.field || p.Offset != c.offset && c.offset >= 0 || !strings.Contains(p.Message, c.want) || strings.Contains(p.Message, "\n") {
			t.Errorf("%.60q, %.60q: %+v", c.rule.When, c.rule.Reply, *p)
		}
	}
	if _, err := Compile([]Rule{mail("foo"), reply("x"), mail("bar")}, Options{}); len(Problems(err)) != 3 {
		t.Errorf("all problems at once: %v", err)
	}
}

func TestRulesRunOnAllLoopsAtOnce(t *testing.T) {
	s := mustCompile(t, Options{}, Rule{At: policy.AtRcpt, When: `recipient_local == "a" && in_network(client_ip, "10.0.0.0/8")`, Reply: "550 no"})
	done := make(chan bool)
	for i := range 4 {
		go func() {
			e := eventAt(policy.AtRcpt)
			e.Path = mailbox([]string{"a@example.net", "b@example.net"}[i%2])
			e.Client.Addr = netip.MustParseAddrPort("10.0.0.1:1")
			good := true
			for range 1000 {
				e.Reply = smtpcodec.Reply{}
				good = good && s.Validate(e) == nil && (e.Reply.Code == 550) == (i%2 == 0)
			}
			done <- good
		}()
	}
	for range 4 {
		if !<-done {
			t.Error("a rule has seen another session's facts")
		}
	}
}

// FuzzRuleExpressions: whatever the expression, compiling and running it neither panics nor takes long. The bound of the work is
// maxWork steps; a second is far more than that, on a machine that does other things too.
func FuzzRuleExpressions(f *testing.F) {
	for _, when := range []string{
		`sender_domain == "x"`, `any(["a","b"], helo contains #)`, `in_network(client_ip, "10.0.0.0/8")`, `helo matches "^a+$"`,
		`size % recipients == 0 ? user in ["a"] : !tls`, `len(lower(sender) + upper(sender)) > 3`, `all([1,2,3], # * size > -1)`,
		`sender | lower() | trim(" ") == "a"`, `#`, `any([], true)`, `-1 .. 1`, "\xff", `((((((((`, `"\u{10ffff}" == user`, `1/0 == 1`,
	} {
		f.Add(when, uint8(policy.AtMessage), "Helo.example")
	}
	f.Fuzz(func(t *testing.T, when string, at uint8, helo string) {
		e := eventAt(policy.Stage(at) % (policy.AtMessage + 1))
		e.Client.Helo = []byte(helo)
		start := time.Now()
		s, err := Compile([]Rule{{At: e.Stage, When: when, Reply: "550 no"}}, Options{})
		if err != nil {
			for _, p := range Problems(err) {
				if p.Offset < 0 || p.Offset > len(when) {
					t.Errorf("offset %d of %q", p.Offset, when)
				}
			}
			return
		}
		first := s.Validate(e)
		if again := s.Validate(e); (first == nil) != (again == nil) {
			t.Errorf("%q: %v, then %v", when, first, again)
		}
		if took := time.Since(start); took > 20*time.Second && len(helo) < 10_000 {
			t.Errorf("%q took %s", when, took)
		}
	})
}

func BenchmarkValidate(b *testing.B) {
	domains := make([]string, 500)
	for i := range domains {
		domains[i] = fmt.Sprintf("%q", fmt.Sprintf("d%d.example", i))
	}
	for _, c := range []struct{ name, when string }{
		{"sender_domain", `sender_domain == "x"`},
		{"network", `in_network(client_ip, "10.0.0.0/8", "2001:db8::/32")`},
		{"in-500", `sender_domain in [` + strings.Join(domains, ",") + `]`},
		{"matches", `helo matches "^[0-9]+[.-]"`},
	} {
		s := mustCompile(b, Options{}, Rule{At: policy.AtMail, When: c.when, Reply: "550 no"})
		events := [2]*policy.Event{eventAt(policy.AtMail), eventAt(policy.AtMail)}
		events[1].Path = mailbox("somebody@else.example") // two senders in turns: no fact is there already
		b.Run("rule="+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := s.Validate(events[i&1]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	// The same decision in Go is what rules are measured against.
	b.Run("rule=sender_domain/impl=naive", func(b *testing.B) {
		events := [2]*policy.Event{eventAt(policy.AtMail), eventAt(policy.AtMail)}
		events[1].Path = mailbox("somebody@else.example")
		for i := 0; b.Loop(); i++ {
			if strings.ToLower(string(events[i&1].Path.Domain)) == "x" {
				b.Fatal("matches")
			}
		}
	})
}
