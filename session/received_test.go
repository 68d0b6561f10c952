package session

import (
	"bytes"
	"fmt"
	"net/mail"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

var arrival = time.Date(2026, 11, 22, 9, 0, 39, 0, time.FixedZone("CET", 3600))

func received(client envelope.Client, utf8 bool, paths ...string) string {
	env := &envelope.Envelope{ID: envelope.ID{15: 1}, Client: client, SMTPUTF8: utf8, Arrived: arrival}
	for _, p := range paths {
		env.AddRecipient([]byte(p), nil, 0)
	}
	return string(appendReceived(nil, env, nil, "", "mx.example.net"))
}

func client(addr, helo, protocol string) envelope.Client {
	c := envelope.Client{Helo: []byte(helo), Protocol: protocol}
	if addr != "" {
		c.Addr = netip.MustParseAddrPort(addr)
	}
	return c
}

// RFC 5321 §4.4: the field's clauses, in their order, dated in UTC.
func TestReceivedField(t *testing.T) {
	const rest = "\r\n\tby mx.example.net (fastedge) with ESMTP id 00000000000000000000000001"
	const date = ";\r\n\tSun, 22 Nov 2026 08:00:39 +0000\r\n"
	for _, c := range []struct{ name, got, want string }{
		{"IPv4", received(client("192.0.2.7:1", "c.example", "ESMTP"), false, "b@example.net"),
			"Received: from c.example ([192.0.2.7])" + rest + "\r\n\tfor <b@example.net>" + date},
		{"IPv6", received(client("[2001:db8::7]:1", "c.example", "ESMTP"), false, "b@example.net"),
			"Received: from c.example ([IPv6:2001:db8::7])" + rest + "\r\n\tfor <b@example.net>" + date},
		{"IPv4 in IPv6", received(client("[::ffff:192.0.2.7]:1", "c.example", "ESMTP"), false, "b@example.net"),
			"Received: from c.example ([192.0.2.7])" + rest + "\r\n\tfor <b@example.net>" + date},
		{"unix socket", received(client("", "c.example", "ESMTP"), false, "b@example.net"),
			"Received: from c.example" + rest + "\r\n\tfor <b@example.net>" + date},
		{"two recipients, neither told (RFC 5321 §7.2)", received(client("192.0.2.7:1", "c.example", "ESMTP"), false, "b@x", "c@x"),
			"Received: from c.example ([192.0.2.7])" + rest + date},
		{"UTF-8 without SMTPUTF8", received(client("192.0.2.7:1", "c.example", "ESMTP"), false, "é@x"),
			"Received: from c.example ([192.0.2.7])" + rest + date},
		{"UTF-8 with SMTPUTF8 (RFC 6531 §3.7.3)", received(client("192.0.2.7:1", "c.example", "ESMTP"), true, "é@x"),
			"Received: from c.example ([192.0.2.7])" + rest + "\r\n\tfor <é@x>" + date},
		{"no HELO name", received(client("192.0.2.7:1", "", "ESMTP"), false),
			"Received: from unknown ([192.0.2.7])" + rest + date},
	} {
		if c.got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.name, c.got, c.want)
		}
	}
}

// Whatever a stranger says, the field stays one field, its lines stay within RFC 5322 §2.1.1 and its date can be read.
func FuzzReceived(f *testing.F) {
	f.Add("c.example", "b@example.net", true)
	f.Add("a\r\nX-Evil: 1", "b@x>\r\n\r\nbody", true)
	f.Add("a(b", `"a;b(c"@x`, false)
	f.Add(strings.Repeat("x", 5000), strings.Repeat("y", 5000), false)
	f.Fuzz(func(t *testing.T, helo, path string, utf8 bool) {
		field := received(client("192.0.2.7:1", helo, "ESMTP"), utf8, path)
		lines := strings.Split(strings.TrimSuffix(field, "\r\n"), "\r\n")
		for i, l := range lines {
			if len(l) > 998 || strings.ContainsAny(l, "\r\n\x00") || i > 0 && l[0] != '\t' {
				t.Fatalf("line %q of %q", l, field)
			}
		}
		m, err := mail.ReadMessage(strings.NewReader(field + "\r\nbody"))
		if err != nil || len(m.Header) != 1 {
			t.Fatalf("%v: %q gives %v", err, field, m)
		}
		value := m.Header.Get("Received")
		if _, err := mail.ParseDate(value[strings.LastIndexByte(value, ';')+1:]); err != nil {
			t.Fatalf("date of %q: %v", field, err)
		}
	})
}

// countReceived is the oracle of fieldCounter: it has the whole message.
func countReceived(message []byte) (n int) {
	for len(message) > 0 {
		line, rest, _ := bytes.Cut(message, []byte("\n"))
		if len(bytes.TrimSuffix(line, []byte("\r"))) == 0 {
			return n
		}
		name, _, colon := bytes.Cut(line, []byte(":"))
		if colon && strings.EqualFold(strings.TrimRight(string(name), " \t"), "received") {
			n++
		}
		message = rest
	}
	return n
}

// Every message of up to 6 pieces of what matters to the counter, cut at every byte, counts as it does for the oracle.
func TestFieldCounterAgreesWithOracle(t *testing.T) {
	pieces := []string{"Received", ":", " ", "\r\n", "x"}
	var walk func(message string, depth int)
	walk = func(message string, depth int) {
		want := countReceived([]byte(message))
		for cut := range len(message) + 1 {
			var f fieldCounter
			f.scan([]byte(message[:cut]))
			f.scan([]byte(message[cut:]))
			if f.count != want {
				t.Fatalf("%q cut at %d: %d fields, want %d", message, cut, f.count, want)
			}
		}
		if depth > 0 {
			for _, p := range pieces {
				walk(message+p, depth-1)
			}
		}
	}
	walk("", 6)
}

// What is found out about a message goes with it: what our own field says, whoever else has made one.
func TestResultsAreTakenFromTheFirstOfOurFields(t *testing.T) {
	const other = "Received-SPF: pass\r\n\t(mx: ok)\r\n\tAuthentication-Results: mx; folded=x\r\n"
	for fields, want := range map[string]string{
		"":    "",
		other: "",
		"Authentication-Results: mx;\r\n\tspf=pass smtp.mailfrom=a@b.c;\r\n\tiprev=fail\r\n":                                         "spf=pass smtp.mailfrom=a@b.c; iprev=fail",
		other + "Authentication-Results: mx; auth=pass\r\n" + other + "Authentication-Results: milter; dkim=pass\r\n":                "auth=pass",
		"Authentication-Results: mx;\r\n  \tspf=none \t\r\nX: y\r\n\tz\r\n":                                                          "spf=none",
		"Authentication-Results: mx\r\nAuthentication-Results: mx; \r\n\t\r\n\tspf=none\r\nAuthentication-Results: mx; spf=pass\r\n": "spf=none",
		"X-Authentication-Results: mx; spf=pass\r\nauthentication-results: mx; spf=pass\r\n":                                         "",
		"Authentication-Results: mx; spf=pass":                                                                                       "spf=pass",
	} {
		if got := string(appendResults([]byte("before"), []byte(fields))); got != "before"+want {
			t.Errorf("%q: %q", fields, got)
		}
	}
}

func FuzzFieldCounter(f *testing.F) {
	f.Add([]byte("RECEIVED : a\r\n\tReceived: b\r\nReceived: c\r\n\r\nReceived: d\r\n"), 5)
	f.Fuzz(func(t *testing.T, message []byte, cut int) {
		if len(message) > 0 {
			cut = int(uint(cut) % uint(len(message)))
		} else {
			cut = 0
		}
		var c fieldCounter
		c.scan(message[:cut])
		c.scan(message[cut:])
		// The oracle differs where CR stands alone; such a message is refused for that.
		if bytes.Count(message, []byte("\r")) == bytes.Count(message, []byte("\r\n")) && c.count != countReceived(message) {
			t.Fatalf("%q: %d, want %d", message, c.count, countReceived(message))
		}
	})
}

func BenchmarkReceived(b *testing.B) {
	env := &envelope.Envelope{ID: envelope.ID{15: 1}, Client: client("192.0.2.7:1", "client.example.com", "ESMTP"), Arrived: arrival}
	env.AddRecipient([]byte("recipient@example.net"), nil, 0)
	b.Run("impl=fastedge", func(b *testing.B) {
		b.ReportAllocs()
		var dst []byte
		for b.Loop() {
			dst = appendReceived(dst[:0], env, nil, "", "mx.example.net")
		}
	})
	b.Run("impl=naive", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = fmt.Sprintf("Received: from %s ([%s])\r\n\tby %s (fastedge) with %s id %s\r\n\tfor <%s>;\r\n\t%s\r\n",
				env.Client.Helo, env.Client.Addr.Addr(), "mx.example.net", env.Client.Protocol, env.ID, env.Recipients[0].Path,
				env.Arrived.UTC().Format(time.RFC1123Z))
		}
	})
}

func BenchmarkFieldCounter(b *testing.B) {
	header := strings.Repeat("Received: from a.example by b.example; Sun, 22 Nov 2026 08:00:39 +0000\r\n", 3) +
		strings.Repeat("X-Header: an ordinary line of an ordinary header section\r\n", 20) + "\r\n"
	message := []byte(header + strings.Repeat("An ordinary line of the body, of an ordinary length.\r\n", 100))
	b.Run("impl=fastedge", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(header))) // the body is not looked at
		for b.Loop() {
			var f fieldCounter
			f.scan(message)
		}
	})
	b.Run("impl=naive", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(header))) // the body is not looked at
		for b.Loop() {
			countReceived(message)
		}
	})
}

// fieldsFirst puts fields of ours before each message.
type fieldsFirst string

func (fieldsFirst) Stages() policy.Stages { return policy.On(policy.AtMessage) }

func (f fieldsFirst) Validate(e *policy.Event) error {
	e.Fields = append(e.Fields, f...)
	return nil
}

// RFC 5322 §2.2.3: what begins with a blank goes on with the field before it. No stranger goes on with ours.
func TestMessageThatBeginsWithABlankIsNoPartOfOurFields(t *testing.T) {
	const ours = "Received-SPF: pass (mx.example.net: ok)\r\nAuthentication-Results: mx.example.net; spf=pass\r\n"
	for data, ends := range map[string]bool{
		" x; spf=pass smtp.mailfrom=ceo@bank.example\r\nSubject: x\r\n\r\nhi\r\n": true,
		"\tx\r\n":                    true,
		" \r\n":                      true,
		"\t\r\n\r\n":                 true,
		"Subject: x\r\n y\r\n":       false,
		"\r\n folded\r\n":            false, // the header section has ended
		"\r\n":                       false,
		"":                           false,
		"no field\r\n x: folded\r\n": false,
	} {
		for _, spf := range []bool{false, true} {
			for _, by := range []string{"DATA", "BDAT", "BDAT byte by byte"} {
				o, before := Options{Hostname: "mx.example.net", AuthservID: "mx.example.net"}, ""
				if spf {
					o.Validators, before = []policy.Validator{fieldsFirst(ours)}, ours
				}
				s, _, _ := open(t, o)
				text := "EHLO c\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n"
				switch by {
				case "DATA":
					text += "DATA\r\n" + data + ".\r\n"
				case "BDAT":
					text += fmt.Sprintf("BDAT 0\r\nBDAT %d LAST\r\n%s", len(data), data)
				default:
					for _, b := range []byte(data) {
						text += "BDAT 1\r\n" + string(b)
					}
					text += "BDAT 0 LAST\r\n"
				}
				if _, _, step := s.Feed([]byte(text), start, nil); step != AwaitCommit {
					t.Fatalf("%s, %q: step %d", by, data, step)
				}
				env := s.TakeEnvelope(envelope.ID{})
				whole := string(env.Trace) + string(bytes.Join(env.Data.AppendBuffers(nil), nil))
				m, err := mail.ReadMessage(strings.NewReader(whole + "\r\n\r\n"))
				if err == nil {
					received := m.Header.Get("Received")
					if !strings.HasPrefix(whole, before+"Received: ") || !strings.HasSuffix(received, "+0000") {
						t.Errorf("%s, %q: %q", by, data, whole)
					}
				} else if !strings.HasPrefix(data, "no field") {
					t.Errorf("%s, %q: %v", by, data, err)
				}
				if !strings.HasSuffix(whole, "\r\n"+data) || bytes.HasSuffix(env.Trace, []byte("\r\n\r\n")) != ends {
					t.Errorf("%s, %q: %q", by, data, whole)
				}
			}
		}
	}
}

// finds is a discreet validator that answers at once, or later.
type finds struct {
	fieldsFirst
	later bool
}

func (finds) Discreet() bool { return true }

func (f finds) Validate(e *policy.Event) error {
	if !f.later {
		return f.fieldsFirst.Validate(e)
	}
	e.Pend().Done(smtpcodec.Reply{}, []byte(f.fieldsFirst))
	return nil
}

// What discreet validators find is for the queue, and the message does not tell it.
func TestDiscreetFindingsStandInTheEnvelopeOnly(t *testing.T) {
	const found = "Authentication-Results: mx.example.net;\r\n\tspf=pass smtp.mailfrom=a@example.com;\r\n\tiprev=pass\r\n"
	const others = "Authentication-Results: filter.example.net; dkim=pass\r\n"
	for _, later := range []bool{false, true} {
		s, _, _ := open(t, Options{Hostname: "mx.example.net", Validators: []policy.Validator{fieldsFirst(others), finds{found, later}}})
		feed(t, s, "EHLO c\r\n", slices.Repeat([]string{"250"}, 10)...)
		for range 2 { // the second recycles the first's
			text := []byte(group + "Subject: x\r\n.\r\n")
			n, _, step := s.Feed(text, start, nil)
			if step == AwaitPolicy && later {
				_, step = s.Decided(start, nil)
			}
			if step != AwaitCommit || n != len(text) {
				t.Fatalf("step %d, %d bytes used", step, n)
			}
			env := s.TakeEnvelope(envelope.ID{})
			if got := string(env.Results); got != "spf=pass smtp.mailfrom=a@example.com; iprev=pass" {
				t.Errorf("results %q", got)
			}
			if got, _, _ := strings.Cut(string(env.Trace), "Received: "); got != others {
				t.Errorf("fields %q", got)
			}
			env.Release()
			s.Committed(nil, nil, start, nil)
		}
	}
}

func TestDiscreetFindingsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const found = "Authentication-Results: mx.example.net;\r\n\tspf=pass smtp.mailfrom=a@example.com\r\n"
	s, _, _ := open(t, Options{Hostname: "mx.example.net", Validators: []policy.Validator{finds{fieldsFirst: found}}})
	out := make([]byte, 0, 4096)
	s.Feed([]byte("EHLO c\r\n"), start, out)
	text := []byte(group + "Subject: x\r\n.\r\n")
	if n := testing.AllocsPerRun(100, func() {
		if _, _, step := s.Feed(text, start, out); step != AwaitCommit {
			t.Fatal(step)
		}
		s.TakeEnvelope(envelope.ID{}).Release()
		s.Committed(nil, nil, start, out)
	}); n > 0 {
		t.Errorf("%v allocations for each message", n)
	}
}

func TestDatesAreThoseOfRFC5322(t *testing.T) {
	for _, at := range []time.Time{
		time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), time.Date(1999, 12, 31, 23, 59, 59, 999, time.UTC), time.Date(2028, 2, 29, 0, 0, 0, 0, time.UTC),
		time.Date(2026, 6, 30, 23, 30, 0, 0, time.FixedZone("", -5*3600)), time.Unix(0, 0), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	} {
		if got, want := string(appendDate(nil, at)), at.UTC().Format("Mon, 02 Jan 2006 15:04:05 +0000"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func BenchmarkDate(b *testing.B) {
	at := time.Date(2026, 11, 22, 8, 9, 10, 0, time.UTC)
	var dst []byte
	b.Run("impl=fastedge", func(b *testing.B) {
		for b.Loop() {
			dst = appendDate(dst[:0], at)
		}
	})
	b.Run("impl=naive", func(b *testing.B) {
		for b.Loop() {
			dst = at.AppendFormat(dst[:0], "Mon, 02 Jan 2006 15:04:05 +0000")
		}
	})
}
