package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/smtpcodec"
	"github.com/fastedge/fastedge/spf"
)

// talkAbout runs a message through Results as far as its fields.
func talkAbout(k *talk, sender string) {
	k.t.Helper()
	k.at(AtConnect)
	k.helo(string(k.client.Helo))
	if got := k.mail(sender); got != "" {
		k.t.Fatal(got)
	}
	k.at(AtRcpt)
	k.at(AtData)
	if got := k.at(AtMessage); got != "" {
		k.t.Fatal(got)
	}
}

func TestResultsAreWrittenIntoTwoFields(t *testing.T) {
	const spfPass = "Received-SPF: pass\r\n" +
		"\t(mx1.example.net: sender SPF authorized)\r\n" +
		"\tclient-ip=192.0.2.7;\r\n" +
		"\tenvelope-from=\"a@pass.example\";\r\n" +
		"\thelo=mail.example.com;\r\n" +
		"\tidentity=mailfrom; receiver=mx1.example.net;\r\n" +
		"\tmechanism=\"ip4:192.0.2.7\"\r\n"
	login := func(c *Client) { c.User, c.Mechanism = "ann", "SCRAM-SHA-256" }
	for _, c := range []struct {
		ip, helo, sender string
		change           func(*Client)
		want             string
	}{
		{"192.0.2.7", "mail.example.com", "a@pass.example", nil, spfPass +
			"Authentication-Results: mx1.example.net;\r\n" +
			"\tspf=pass smtp.mailfrom=a@pass.example;\r\n" +
			"\tiprev=pass policy.iprev=192.0.2.7 (mail.example.com)\r\n"},
		{"2001:db8::8", "mail.example.com", "a@temperror.example", nil, "Received-SPF: temperror\r\n" +
			"\t(mx1.example.net: SPF Temporary Error: no answer for TXT of temperror.example)\r\n" +
			"\tclient-ip=\"2001:db8::8\";\r\n" +
			"\tenvelope-from=\"a@temperror.example\";\r\n" +
			"\thelo=mail.example.com;\r\n" +
			"\tidentity=mailfrom; receiver=mx1.example.net;\r\n" +
			"\tproblem=\"no answer for TXT of temperror.example\"\r\n" +
			"Authentication-Results: mx1.example.net;\r\n" +
			"\tspf=temperror smtp.mailfrom=a@temperror.example;\r\n" +
			"\tiprev=permerror policy.iprev=\"2001:db8::8\"\r\n"},
		{"192.0.2.8", "pass.example", "", nil, "Received-SPF: fail\r\n" +
			"\t(mx1.example.net: SPF fail - not authorized)\r\n" +
			"\tclient-ip=192.0.2.8;\r\n" +
			"\tenvelope-from=\"\";\r\n" +
			"\thelo=pass.example;\r\n" +
			"\tidentity=helo; receiver=mx1.example.net;\r\n" +
			"\tmechanism=all\r\n" +
			"Authentication-Results: mx1.example.net;\r\n" +
			"\tspf=fail smtp.helo=pass.example;\r\n" +
			"\tiprev=fail policy.iprev=192.0.2.8\r\n"},
		{"192.0.2.10", "fail.example", "\"a b\\\"c\"@pass.example", nil, "Received-SPF: fail\r\n" +
			"\t(mx1.example.net: SPF fail - not authorized)\r\n" +
			"\tclient-ip=192.0.2.10;\r\n" +
			"\tenvelope-from=\"\\\"a b\\\\\\\"c\\\"@pass.example\";\r\n" +
			"\thelo=fail.example;\r\n" +
			"\tidentity=helo; receiver=mx1.example.net;\r\n" +
			"\tmechanism=all\r\n" +
			"Authentication-Results: mx1.example.net;\r\n" +
			"\tspf=fail smtp.helo=fail.example;\r\n" +
			"\tiprev=temperror policy.iprev=192.0.2.10\r\n"},
		// SPF is not for those who log in.
		{"192.0.2.7", "[10.0.0.1]", "a@pass.example", login, "Authentication-Results: mx1.example.net;\r\n" +
			"\tiprev=pass policy.iprev=192.0.2.7 (mail.example.com);\r\n" +
			"\tauth=pass (SCRAM-SHA-256) smtp.auth=ann\r\n"},
		{"127.0.0.1", "localhost", "a@pass.example", login, "Authentication-Results: mx1.example.net;\r\n" +
			"\tauth=pass (SCRAM-SHA-256) smtp.auth=ann\r\n"},
		{"", "localhost", "a@pass.example", func(c *Client) { c.User = "ann b@example.org" }, "Authentication-Results: mx1.example.net;\r\n" +
			"\tauth=pass smtp.auth=\"ann b@example.org\"\r\n"},
		// Nothing is known.
		{"127.0.0.1", "localhost", "a@pass.example", nil, ""},
		{"", "localhost", "a@pass.example", nil, ""},
	} {
		dns := newDNS(spfZone + ptrZone)
		s := mustSPF(t, SPFOptions{Resolver: dns, HeloFirst: true, Hostname: "mx1.example.net"})
		v := NewResults(ResultsOptions{Hostname: "mx1.example.net", SPF: s, PTR: NewPTR(PTROptions{Resolver: dns}), Logins: true})
		k := newTalk(t, v, c.ip, c.helo)
		if c.change != nil {
			c.change(&k.client)
		}
		talkAbout(k, c.sender)
		if k.fields != c.want {
			t.Errorf("%s, %q:\n%s\nwant\n%s", c.ip, c.sender, k.fields, c.want)
		}
		if want := map[string]string{"192.0.2.7": "mail.example.com"}[c.ip]; k.host != want {
			t.Errorf("%s: host %q", c.ip, k.host)
		}
		k.at(AtClose)
	}
}

// Each part works without the others.
func TestResultsOfSomeChecksOnly(t *testing.T) {
	dns := newDNS(spfZone + ptrZone)
	for _, c := range []struct {
		o      ResultsOptions
		stages Stages
		want   string // the methods
	}{
		{ResultsOptions{}, On(AtMessage), ""},
		{ResultsOptions{Logins: true}, On(AtMessage), "auth"},
		{ResultsOptions{PTR: NewPTR(PTROptions{Resolver: dns})}, On(AtConnect, AtMessage, AtClose), "iprev"},
		{ResultsOptions{SPF: mustSPF(t, SPFOptions{Resolver: dns})}, On(AtMail, AtMessage, AtClose), "spf"},
		{ResultsOptions{SPF: mustSPF(t, SPFOptions{Resolver: dns, Enforce: true, At: AtData, HeloFirst: true})},
			On(AtHelo, AtMail, AtData, AtMessage, AtClose), "spf"},
	} {
		c.o.Hostname = "mx"
		v := NewResults(c.o)
		if v.Stages() != c.stages {
			t.Errorf("%+v: stages %b, want %b", c.o, v.Stages(), c.stages)
		}
		k := newTalk(t, v, "192.0.2.7", "mail.example.com")
		if c.o.SPF == nil {
			k.client.User = "ann"
		}
		talkAbout(k, "a@pass.example")
		_, results, _ := strings.Cut(k.fields, "Authentication-Results: mx;\r\n\t")
		method, _, _ := strings.Cut(results, "=")
		if method != c.want || strings.Count(k.fields, "Authentication-Results") > 1 || strings.Contains(k.fields, "Received-SPF") != (c.want == "spf") {
			t.Errorf("%q", k.fields)
		}
		k.at(AtClose)
	}
}

// RFC 7208 §6.2: a domain's explanation is told apart from our words.
func TestTheExplanationOfADomainIsNotOurs(t *testing.T) {
	long := strings.Repeat("x", 60)
	for _, c := range []struct{ txt, domain, want, reply string }{
		{"ask (us)", "told.example", `\t(mx: told.example explains: ask \(us\))`, "550 5.7.23 SPF validation failed: told.example explains: ask (us)"},
		{strings.Repeat("%{s}", 99), long + "." + long + "." + long + ".told.example", "", ""},
		{"ask", "a/b.example", `\t(mx: the domain explains: ask)`, "550 5.7.23 SPF validation failed: the domain explains: ask"},
	} {
		dns := newDNS("TXT told.example v=spf1 redirect=" + c.domain + "\nTXT " + c.domain + " v=spf1 -all exp=why.example")
		if c.domain == "told.example" {
			dns = newDNS("TXT told.example v=spf1 -all exp=why.example")
		}
		dns.zone[spf.Query{Name: "why.example", Type: spf.TypeTXT}] = spf.Answer{Status: spf.Found, TXT: spf.NewTXT([]string{c.txt})}
		o := SPFOptions{Resolver: dns, Hostname: "mx"}
		k := newTalk(t, NewResults(ResultsOptions{Hostname: "mx", SPF: mustSPF(t, o)}), "192.0.2.7", "h.example")
		talkAbout(k, "a@told.example")
		if !strings.Contains(k.fields, strings.ReplaceAll(c.want, `\t`, "\t")) {
			t.Errorf("%s: %s", c.domain, k.fields)
		}
		for line := range strings.Lines(k.fields) {
			if len(line) > 998 {
				t.Errorf("a line of %d bytes", len(line))
			}
		}
		for message, want := range map[string]string{"": c.reply, "5.7.1 No, {reason}": "550 5.7.1 No, " + c.txt} {
			o.Enforce, o.Rules = true, map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: message}}
			got := newTalk(t, mustSPF(t, o), "192.0.2.7", "h.example").mail("a@told.example")
			if want := want; c.reply != "" && got != want {
				t.Errorf("%s: %q, want %q", c.domain, got, want)
			}
			if message == "" && len(got) > 510 {
				t.Errorf("a reply of %d bytes", len(got))
			}
		}
	}
}

// The envelope has what was found also where the message does not tell it.
func TestResultsForTheEnvelopeOnly(t *testing.T) {
	dns := newDNS(spfZone + ptrZone)
	v := NewResults(ResultsOptions{Hostname: "mx", EnvelopeOnly: true, PTR: NewPTR(PTROptions{Resolver: dns}), SPF: mustSPF(t, SPFOptions{Resolver: dns})})
	if !Discreet(v).Discreet() || NewResults(ResultsOptions{}).Discreet() {
		t.Error("who is discreet?")
	}
	k := newTalk(t, v, "192.0.2.7", "mail.example.com")
	talkAbout(k, "a@pass.example")
	if want := "Authentication-Results: mx;\r\n\tspf=pass smtp.mailfrom=a@pass.example;\r\n\tiprev=pass policy.iprev=192.0.2.7 (mail.example.com)\r\n"; k.fields != want {
		t.Errorf("%q, want %q", k.fields, want)
	}
	k.at(AtClose)
}

// The end of data waits for SPF, never for the client's name; and each message tells of its own sender.
func TestFieldsWaitForSPFButNotForTheName(t *testing.T) {
	dns := newDNS(spfZone + ptrZone)
	dns.hold = true
	v := NewResults(ResultsOptions{Hostname: "mx", SPF: mustSPF(t, SPFOptions{Resolver: dns, Hostname: "mx"}), PTR: NewPTR(PTROptions{Resolver: dns})})
	k := newTalk(t, v, "192.0.2.7", "h.example")
	k.at(AtConnect)
	k.mail("a@fail.example")
	if got := k.at(AtMessage); got != "..." {
		t.Fatalf("%q", got)
	}
	dns.answer(1) // SPF's; the name's is still to come
	if got := k.decision(); got != "" || !strings.Contains(k.fields, "\tspf=fail smtp.mailfrom=a@fail.example;\r\n\tiprev=temperror policy.iprev=192.0.2.7\r\n") {
		t.Errorf("%q, fields %s", got, k.fields)
	}
	dns.answerAll() // the name's
	k.mail("b@pass.example")
	dns.answerAll()
	if got := k.at(AtMessage); got != "" || !strings.Contains(k.fields, "\tspf=pass smtp.mailfrom=b@pass.example;\r\n\tiprev=pass policy.iprev=192.0.2.7 (mail.example.com)\r\n") {
		t.Errorf("%q, fields %s", got, k.fields)
	}
	k.mail("c@fail.example")
	if got := k.at(AtMessage); got != "..." || k.host != "mail.example.com" {
		t.Errorf("%q, host %q while SPF is waited for", got, k.host)
	}
	k.pending.Cancel()
	k.at(AtClose)
	dns.answerAll()
}

// word is a piece of a structured header field: a comment, a quoted string or anything else up to blanks and semicolons.
type word struct {
	kind  byte // '(', '"', ';' or 'a'
	value string
}

// readField reads a header field as RFC 5322 does, without looking at how it was written. ok is false for what is none.
func readField(text string) (name string, words []word, rest string, ok bool) {
	// Unfold: the field ends at a CRLF that no blank follows.
	end := 0
	for {
		i := strings.Index(text[end:], "\r\n")
		if i < 0 {
			return "", nil, "", false
		}
		if i > 998 {
			return "", nil, "", false
		}
		if end += i + 2; end == len(text) || text[end] != ' ' && text[end] != '\t' {
			break
		}
	}
	field, rest := strings.ReplaceAll(text[:end-2], "\r\n", ""), text[end:]
	name, body, ok := strings.Cut(field, ":")
	for _, b := range []byte(field) {
		ok = ok && (b >= ' ' && b <= '~' || b == '\t')
	}
	for i := 0; i < len(body) && ok; {
		switch c := body[i]; c {
		case ' ', '\t':
			i++
		case ';':
			words = append(words, word{';', ";"})
			i++
		case '(', '"':
			closing := map[byte]byte{'(': ')', '"': '"'}[c]
			value := ""
			for i++; i < len(body) && body[i] != closing; i++ {
				if body[i] == c {
					return name, words, rest, false // a nested comment, which we never write
				}
				if body[i] == '\\' {
					i++
				}
				if i < len(body) {
					value += string(body[i])
				}
			}
			ok = i < len(body)
			words = append(words, word{c, value})
			i++
		default:
			from := i
			for i < len(body) && !strings.ContainsRune(" \t;()\"\\", rune(body[i])) {
				i++
			}
			ok = i > from
			words = append(words, word{'a', body[from:i]})
		}
	}
	return name, words, rest, ok
}

// pairs gives key=value pairs in order; a key and its quoted value are one.
func pairs(words []word) (list []word, comments []string) {
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case w.kind == '(':
			comments = append(comments, w.value)
		case w.kind == 'a' && strings.HasSuffix(w.value, "=") && i+1 < len(words) && words[i+1].kind == '"':
			list = append(list, word{'a', w.value + words[i+1].value})
			i++
		default:
			list = append(list, w)
		}
	}
	return list, comments
}

// shown says that got is what a field may have of value: printable, and cut only when it is long.
func shown(got, value string) bool {
	clean := strings.Map(func(r rune) rune { return r }, value)
	want := make([]byte, 0, len(clean))
	for _, b := range []byte(value) {
		if b < ' ' || b > '~' {
			b = '?'
		}
		want = append(want, b)
	}
	return got == string(want) || len(want)*2 > maxValueBytes && len(got)*2 >= maxValueBytes-2 && strings.HasPrefix(string(want), got)
}

// No byte of a stranger's ends a field, a line, a comment or a quoted string: reading the fields gives back what was put in, and nothing else.
func FuzzFields(f *testing.F) {
	f.Add("mail.example.com", "a@b.c", "why", "include:x", "ann", "PLAIN", uint8(3))
	f.Add("a\r\nX: y", "\"\r\n\r\n\"@b", "text) (x", "a\\", "ann\"; spf=pass", "PLAIN) spf=pass (", uint8(2))
	f.Add("[IPv6:::1]", "\\", ");\\", "\"\\\"", "", "", uint8(5))
	f.Add(strings.Repeat("\"", 500), strings.Repeat("\\", 999), strings.Repeat("(", 401), strings.Repeat(")", 2000), strings.Repeat("a", 401), "\x00\xff", uint8(6))
	f.Add("a/b", "a@b@c", "", "", "a@b.", ".", uint8(0))
	f.Fuzz(func(t *testing.T, helo, sender, why, mechanism, user, how string, code uint8) {
		result := spf.Result{Code: spf.Code(code % 7), Reason: why, Mechanism: mechanism, Problem: why}
		e := &Event{Envelope: &envelope.Envelope{ReversePath: []byte(sender)}}
		e.Client = Client{Helo: []byte(helo), User: user, Mechanism: how}
		e.Client.Addr = newTalk(t, nil, "192.0.2.7", "").client.Addr
		identity := spf.Identity(code / 128)
		r := NewResults(ResultsOptions{Hostname: "mx.example.net", Logins: true})
		fields := string(r.appendFields(nil, e, &spfOutcome{result: &result, identity: identity}, "host.example", iprevPass))

		name, words, rest, ok := readField(fields)
		list, comments := pairs(words)
		if !ok || name != "Received-SPF" || len(comments) != 1 {
			t.Fatalf("%q\n%v", fields, words)
		}
		if who, text, _ := strings.Cut(comments[0], ": "); who != "mx.example.net" || !shown(text, whyOf(&result)) {
			t.Fatalf("comment %q in %q", comments[0], fields)
		}
		want := []string{result.Code.String(), "client-ip=192.0.2.7", "envelope-from=" + sender, "helo=" + helo, "identity=" + identity.String(), "receiver=mx.example.net"}
		if mechanism != "" {
			want = append(want, "mechanism="+mechanism)
		}
		if why != "" && result.Code >= spf.TempError {
			want = append(want, "problem="+why)
		}
		compare(t, fields, list, want, map[int]bool{0: true})

		name, words, rest, ok = readField(rest)
		list, comments = pairs(words)
		wantComments := 1
		if user != "" && how != "" {
			wantComments++
		}
		if !ok || name != "Authentication-Results" || rest != "" || len(comments) != wantComments || comments[0] != "host.example" {
			t.Fatalf("%q\n%v", fields, words)
		}
		if wantComments == 2 && !shown(comments[1], how) {
			t.Fatalf("comment %q in %q", comments[1], fields)
		}
		what := "smtp.mailfrom=" + sender
		if identity == spf.Helo || sender == "" {
			what = "smtp.helo=" + helo
		}
		want = []string{"mx.example.net", "spf=" + result.Code.String(), what, "iprev=pass", "policy.iprev=192.0.2.7"}
		bare := map[int]bool{1: true, 3: true}
		if user != "" {
			want = append(want, "auth=pass", "smtp.auth="+user)
			bare[5] = true
		}
		compare(t, fields, list, want, bare)
	})
}

// compare holds the pairs of a field against those wanted. Semicolons stand between them, but not after those in bare.
func compare(t *testing.T, fields string, list []word, want []string, bare map[int]bool) {
	t.Helper()
	at := 0
	next := func() (w word) {
		if at < len(list) {
			w = list[at]
		}
		at++
		return w
	}
	for i, one := range want {
		if i > 0 && !bare[i-1] {
			if w := next(); w.kind != ';' {
				t.Fatalf("%q\nno semicolon before %q: %v", fields, one, list)
			}
		}
		w := next()
		key, value, _ := strings.Cut(one, "=")
		gotKey, got, _ := strings.Cut(w.value, "=")
		if w.kind != 'a' || gotKey != key || !shown(got, value) {
			t.Fatalf("%q\n%q, want %q", fields, w.value, one)
		}
	}
	if at < len(list) {
		t.Fatalf("%q\nmore than wanted: %v", fields, list[at:])
	}
}

func TestValuesAreQuotedWhereNeedBe(t *testing.T) {
	for value, want := range map[string]string{
		"a": "a", "a.b": "a.b", "": `""`, ".a": `".a"`, "a.": `"a."`, "a..b": `"a..b"`, "a/b": `"a/b"`, "a=b": `"a=b"`, "a b": `"a b"`, "a@b": `"a@b"`,
		`a"b`: `"a\"b"`, `a\`: `"a\\"`, "a\x00\x7f\u00e4": `"a????"`, "(a)": `"(a)"`, "!#$%&'*+-^_`{|}~": "!#$%&'*+-^_`{|}~",
		strings.Repeat("x", maxValueBytes):         strings.Repeat("x", maxValueBytes),
		strings.Repeat("x", maxValueBytes+1):       `"` + strings.Repeat("x", maxValueBytes) + `"`,
		strings.Repeat("x", maxValueBytes-1) + `"`: `"` + strings.Repeat("x", maxValueBytes-1) + `"`,
	} {
		if got := string(appendPair(nil, "k=", value)); got != "k="+want {
			t.Errorf("%q: %s", value, got)
		}
	}
	for value, want := range map[string]string{
		"a@b.c": "a@b.c", "a+b@c": "a+b@c", "a@b@c": `"a@b@c"`, "@b": `"@b"`, "a@": `"a@"`, `"a"@b`: `"\"a\"@b"`, "a@[1.2.3.4]": `"a@[1.2.3.4]"`, "a": "a",
	} {
		if got := string(appendAddress(nil, value)); got != want {
			t.Errorf("%q: %s", value, got)
		}
	}
}

// BenchmarkFields is the two fields of a common message, beside fmt.
func BenchmarkFields(b *testing.B) {
	result := spf.Result{Code: spf.Pass, Reason: "sender SPF authorized", Mechanism: "include:_spf.example.com"}
	e := &Event{Envelope: &envelope.Envelope{ReversePath: []byte("somebody@example.com")}}
	e.Client = Client{Helo: []byte("mail.example.com"), Addr: newTalk(b, nil, "192.0.2.7", "").client.Addr}
	r := NewResults(ResultsOptions{Hostname: "mx.example.net"})
	o := &spfOutcome{result: &result}
	var fields []byte
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			fields = r.appendFields(fields[:0], e, o, "host.example", iprevPass)
		}
	})
	b.Run("fmt", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = fmt.Sprintf("Received-SPF: %v\r\n\t(%s: %s)\r\n\tclient-ip=%s;\r\n\tenvelope-from=%q;\r\n\thelo=%s;\r\n\tidentity=%v; receiver=%s;\r\n\tmechanism=%q\r\n",
				result.Code, "mx.example.net", result.Reason, e.Client.Addr.Addr(), e.Envelope.ReversePath, e.Client.Helo, spf.MailFrom, "mx.example.net", result.Mechanism) +
				fmt.Sprintf("Authentication-Results: %s;\r\n\tspf=%v smtp.mailfrom=%s;\r\n\tiprev=%v policy.iprev=%s (%s)\r\n",
					"mx.example.net", result.Code, e.Envelope.ReversePath, "pass", e.Client.Addr.Addr(), "host.example")
		}
	})
}

// The fields of a kept result are written once, but for the reverse-path, and are what each message's own check would have written.
func TestKeptFieldsAreThoseOfACheck(t *testing.T) {
	long := strings.Repeat("a.very.long.name.", 14)
	dns := newDNS(`TXT pass.example v=spf1 ip4:192.0.2.7 ip6:2001:db8::7 -all
		TXT ` + long + `example v=spf1 ip4:192.0.2.7 -all
		TXT broken.example v=spf1 ip4:x -all
		TXT wide.example v=spf1 exists:` + strings.Repeat("%{d}.", 30) + `example ?all`)
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for _, o := range []ResultsOptions{{Hostname: "mx1.example.net"}, {Hostname: "mx1.example.net", EnvelopeOnly: true}, {Hostname: strings.Repeat("m", 60) + "(x).example", Logins: true}} {
		o.SPF = mustSPF(t, SPFOptions{Resolver: dns, Enforce: true})
		v := NewResults(o)
		for _, client := range []string{"192.0.2.7", "192.0.2.8", "::ffff:192.0.2.7", "2001:db8::7"} {
			for _, helo := range []string{"h.example", "[192.0.2.7]", "odd(name", strings.Repeat("h", 100)} {
				slots := make([]any, 2) // a session's own, and another's
				for _, sender := range []string{"a@pass.example", "b@pass.example", "an.odd)(\"one\x80@pass.example", "pass.example", "a@none.example", "a@broken.example",
					"a@wide.example", "a@" + long + "example", ""} {
					var said []string
					for _, slot := range []*any{new(any), &slots[0], &slots[0], &slots[1]} {
						e := &Event{Stage: AtMail, Slot: slot, Client: Client{Addr: netip.AddrPortFrom(netip.MustParseAddr(client), 25000), Helo: []byte(helo)},
							Path: smtpcodec.Path{Mailbox: []byte(sender)}, Envelope: &envelope.Envelope{ReversePath: []byte(sender)}}
						if len(said) > 0 { // the first one is never kept
							e.Now = now
						}
						if err := v.Validate(e); err != nil || e.Pended() != nil {
							t.Fatal(err)
						}
						e.Stage = AtMessage
						if err := v.Validate(e); err != nil {
							t.Fatal(err)
						}
						said = append(said, string(e.Fields))
					}
					for _, again := range said[1:] {
						if again != said[0] || again == "" {
							t.Errorf("%s, %q, %q: %q, of its own check %q", client, helo, sender, again, said[0])
						}
					}
				}
			}
		}
		kept := 0
		for i := range o.SPF.kept {
			if k := o.SPF.kept[i][0].Load(); k != nil {
				kept++
				if len(k.fields.text) == 0 {
					t.Errorf("%+v has no fields", k)
				}
			}
		}
		if kept < 10 {
			t.Errorf("%d results are kept", kept)
		}
	}
}
