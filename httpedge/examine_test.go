package httpedge

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
)

// statusesOf gives the statuses of everything that comes back, and what is stored.
func statusesOf(e *edge, request string) (statuses []string, got string) {
	e.Helper()
	got = e.raw(request)
	for line := range strings.Lines(got) {
		if strings.HasPrefix(line, "HTTP/1.1 ") {
			statuses = append(statuses, line[9:12])
		}
	}
	return statuses, got
}

// A request line that ends with a bare LF, or stands behind such an empty line, is refused, and so is all that follows: first on the connection,
// behind a request, in its packet or in one of its own.
func TestARequestLineEndsWithCRLF(t *testing.T) {
	one := func(path, end, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1%sHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s", path, end, toHeader, len(body), body)
	}
	e := serve(t, nil)
	for name, tc := range map[string]struct {
		request, want string
	}{
		"all is well":               {one("/", "\r\n", "1") + one("/", "\r\n", "2") + one("/", "\r\n", "3"), "[200 200 200]"},
		"an empty line before it":   {"\r\n" + one("/", "\r\n", "1") + "\r\n\r\n" + one("/", "\r\n", "2"), "[200 200]"},
		"the first":                 {one("/", "\n", "1") + one("/", "\r\n", "2"), "[400]"},
		"the second":                {one("/", "\r\n", "1") + one("/", "\n", "2") + one("/", "\r\n", "3"), "[200 400]"},
		"behind an empty body":      {one("/", "\r\n", "") + one("/", "\n", "2") + one("/", "\r\n", "3"), "[200 400]"},
		"behind a large body":       {one("/", "\r\n", strings.Repeat("x", 300_000)) + one("/", "\n", "2"), "[200 400]"},
		"an empty line with LF":     {"\n" + one("/", "\r\n", "1"), "[400]"},
		"such a line later":         {one("/", "\r\n", "1") + "\n" + one("/", "\r\n", "2"), "[200 400]"},
		"a body that looks like it": {one("/", "\r\n", "POST / HTTP/1.1\r\n\r\n") + one("/", "\r\n", "2"), "[200 200]"},
		"of GET":                    {"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\nGET /openapi.json HTTP/1.1\nHost: x\r\n\r\n", "[200 400]"},
	} {
		statuses, got := statusesOf(e, tc.request)
		if fmt.Sprint(statuses) != tc.want {
			t.Errorf("%s: %v %.500q", name, statuses, got)
		}
		e.queue.taken()
	}
	// In pieces: wherever a packet ends.
	request := one("/", "\r\n", "abc") + "\r\n" + one("/x", "\n", "2")
	for size := 1; size < len(request); size += 7 {
		c := e.dial()
		for i := 0; i < len(request); i += size {
			if _, err := c.Write([]byte(request[i:min(i+size, len(request))])); err != nil {
				break
			}
		}
		if statuses, got := statusesOfConn(c); fmt.Sprint(statuses) != "[200 400]" {
			t.Errorf("pieces of %d: %q", size, got)
		}
		e.queue.taken()
	}
	// Behind a batch.
	line := simple + "\n"
	batch := fmt.Sprintf("POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s", asNDJSON, 3*len(line), strings.Repeat(line, 3))
	if statuses, got := statusesOf(e, batch+one("/", "\r\n", "1")+batch+one("/", "\n", "1")); fmt.Sprint(statuses) != "[200 200 200 400]" {
		t.Errorf("behind a batch: %v %q", statuses, got)
	}
	// Behind one that ended early, of which the rest is passed over.
	e = serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.MaxBatchMessages = 1 })
	long := fmt.Sprintf("POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s", asNDJSON, 1500*len(line), strings.Repeat(line, 1500))
	for end, want := range map[string]string{"\r\n": "[200 200]", "\n": "[200 400]"} {
		if statuses, got := statusesOf(e, long+one("/", end, "1")); fmt.Sprint(statuses) != want {
			t.Errorf("behind a batch that ended early: %v %q", statuses, got)
		}
	}
}

func TestOtherVersionsOfHTTPAreRefused(t *testing.T) {
	e := serve(t, nil)
	for version, want := range map[string]string{"1.0": "200", "1.1": "200", "1.2": "505", "2.0": "505", "0.9": "505", "3.0": "505"} {
		for _, path := range []string{"/", "/v1/messages"} {
			got, text := statusesOf(e, fmt.Sprintf("POST %s HTTP/%s\r\nHost: x\r\n%s\r\n%s\r\nContent-Length: 1\r\n\r\nx", path, version, rfc822, toHeader))
			if fmt.Sprint(got) != "["+want+"]" && !(path != "/" && want == "200" && got[0] == "202") {
				t.Errorf("HTTP/%s %s: %q", version, path, text)
			}
		}
	}
}

// A field that says one thing and stands twice is refused, also when it says the same twice, or nothing: which of the two somebody in front of us has
// gone by is not known.
func TestAFieldThatSaysOneThingStandsOnce(t *testing.T) {
	e := serve(t, nil)
	for _, field := range []string{
		"Content-Encoding: identity", "Idempotency-Key: k", fromHeader, "X-Ehlo: a.example", "X-Client-Address: 192.0.2.1", "Authorization: Bearer x", rfc822,
		"Expect: 100-continue", "Idempotency-Key:", "x-client-ADDRESS: 192.0.2.1",
	} {
		for _, path := range []string{"/", "/v1/messages", "/v1/messages:batch", "/openapi.json"} {
			statuses, got := statusesOf(e, "POST "+path+" HTTP/1.1\r\nHost: x\r\n"+toHeader+"\r\n"+toHeader+"\r\n"+field+"\r\n"+strings.ToUpper(field[:3])+field[3:]+"\r\nContent-Length: 1\r\n\r\nx")
			if fmt.Sprint(statuses) != "[400]" || (path != "/") != strings.Contains(got, "stands twice") {
				t.Errorf("%s %s: %q", path, field, got)
			}
		}
	}
	if mail := e.queue.taken(); len(mail) > 0 {
		t.Errorf("%d messages", len(mail))
	}
	if resp, _ := e.do("POST", "/", "x", toHeader, toHeader, fromHeader, rfc822); resp.StatusCode != 200 {
		t.Errorf("two recipients: %d", resp.StatusCode)
	}
}

// X-Client-Address and client.address are read by the same rules.
func TestANamedClientIsAnAddressWithoutAZone(t *testing.T) {
	var seen netip.Addr
	e := serve(t, func(_ *Options, _ *Listener, so *session.Options) {
		so.Validators = []policy.Validator{says{policy.On(policy.AtMail), func(e *policy.Event) { seen = e.Client.Addr.Addr() }}}
	})
	for text, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "2001:db8::7": "2001:db8::7", "::ffff:192.0.2.7": "192.0.2.7", "fe80::1%eth0": "", "": "", "localhost": "", "192.0.2.7:25": "", "192.0.2.07": "", "[::1]": "",
	} {
		for _, ask := range []func() int{
			func() int {
				resp, _ := e.do("POST", "/v1/messages", from(`["b@example.net"]`, `"raw":"","client":{"address":"`+text+`"}`), asJSON)
				return resp.StatusCode
			},
			func() int {
				resp, _ := e.do("POST", "/v1/messages", "x", rfc822, toHeader, "X-Client-Address: "+text)
				return resp.StatusCode
			},
			func() int {
				resp, _ := e.do("POST", "/", "x", rfc822, toHeader, "X-Client-Address: "+text)
				return resp.StatusCode
			},
		} {
			seen = netip.Addr{}
			if got := ask(); (got == 400) != (want == "") || want != "" && seen.String() != want {
				t.Errorf("%q: %d, seen as %v", text, got, seen)
			}
		}
	}
}

// Whom a poster names is a stranger to validators, whatever the poster may do or is; the mail is relayed because the poster may, and is the poster's.
func TestANamedClientIsAStranger(t *testing.T) {
	options, key := credentials(t, nil)
	var seen []string
	e := serve(t, func(o *Options, l *Listener, so *session.Options) {
		options(o)
		l.Bearer = true
		l.MayRelay = func(a netip.Addr) bool { return true }
		relay, _ := policy.NewRelay(nil)
		so.Accept = relay.Accept
		so.Validators = []policy.Validator{says{policy.On(policy.AtConnect, policy.AtAuth, policy.AtMail, policy.AtRcpt, policy.AtMessage), func(e *policy.Event) {
			c := e.Client
			seen = append(seen, fmt.Sprint(e.Stage, c.Addr.Addr(), " ", c.MayRelay, " ", c.User, " ", c.ProxyAddr.Addr().IsValid()))
		}}}
	})
	named := strings.Replace(simple, `"raw"`, `"client":{"address":"192.0.2.66","helo":"c.example"},"raw"`, 1)
	stranger := "connect 192.0.2.66 false  true mail 192.0.2.66 false  true rcpt 192.0.2.66 false  true message 192.0.2.66 false  true"
	login := "connect 192.0.2.66 false  true auth 192.0.2.66 false shop true mail 192.0.2.66 false  true rcpt 192.0.2.66 false  true message 192.0.2.66 false  true"
	for i, tc := range []struct {
		path, body string
		fields     []string
		want       string
	}{
		{"/v1/messages", named, []string{asJSON}, stranger},
		{"/v1/messages", named, []string{asJSON, "Authorization: Bearer " + key}, login},
		{"/v1/messages", "x", []string{rfc822, toHeader, "X-Client-Address: 192.0.2.66", "X-Ehlo: c.example"}, stranger},
		{"/", "x", []string{rfc822, toHeader, "X-Client-Address: 192.0.2.66", "X-Ehlo: c.example"}, stranger},
		{"/", "x", []string{rfc822, toHeader, "X-Client-Address: 192.0.2.66", "Authorization: Bearer " + key}, login},
		{"/v1/messages:batch", named, []string{asNDJSON, "Authorization: Bearer " + key}, login},
		{"/", "x", []string{rfc822, toHeader}, "connect 127.0.0.1 true  false mail 127.0.0.1 true  false rcpt 127.0.0.1 true  false message 127.0.0.1 true  false"},
	} {
		seen = nil
		resp, body := e.do("POST", tc.path, tc.body, tc.fields...)
		mail := e.queue.taken()
		if got := strings.Join(seen, " "); resp.StatusCode >= 300 || len(mail) != 1 || got != tc.want {
			t.Errorf("%d: %d %s %d messages, validators saw\n%s\nand not\n%s", i, resp.StatusCode, body, len(mail), got, tc.want)
		} else if want := map[bool]string{true: "shop"}[tc.want == login]; string(mail[0].env.Client.User) != want {
			t.Errorf("%d: it is %q's", i, mail[0].env.Client.User)
		}
	}
	// Who may not relay may not name anybody either.
	e = serve(t, func(_ *Options, l *Listener, _ *session.Options) { l.MayRelay = nil })
	for _, path := range []string{"/", "/v1/messages"} {
		if resp, _ := e.do("POST", path, "x", rfc822, toHeader, "X-Client-Address: 192.0.2.66"); resp.StatusCode != 403 || len(e.queue.taken()) > 0 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

// Options that would be ignored are refused, for ignoring them would send mail.
func TestOptionsThatAreNotKnownAreRefused(t *testing.T) {
	e := serve(t, nil)
	for _, tc := range []struct {
		path, contentType, field string
	}{
		{"/v1/messages:batch?validate=only", asNDJSON, ""},
		{"/v1/messages:batch?validate=", asNDJSON, ""},
		{"/v1/messages:batch", asNDJSON, "Idempotency-Key: k"},
		{"/v1/messages?validate=yes", asJSON, ""},
		{"/v1/messages?validate", asJSON, ""},
		{"/v1/messages?validate=only&validate=only", asJSON, ""},
		{"/v1/messages?validate=only&%76alidate=no", asJSON, ""},
		{"/v1/messages", asJSON, "Idempotency-Key: "},
	} {
		fields := []string{tc.contentType}
		if tc.field != "" {
			fields = append(fields, tc.field)
		}
		resp, body := e.do("POST", tc.path, simple+"\n", fields...)
		if resp.StatusCode != 400 || resp.Header.Get("Content-Type") != "application/problem+json" || len(e.queue.taken()) > 0 {
			t.Errorf("%s %q: %d %s", tc.path, tc.field, resp.StatusCode, body)
		}
	}
	if resp, body := e.do("POST", "/v1/messages?x=y&%76alidate=only", simple, asJSON); resp.StatusCode != 200 || len(e.queue.taken()) > 0 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// Without credentials a key counts for one address, of IPv6 for one /64.
func TestIdempotencyKeysOfOtherAddressesAreOthers(t *testing.T) {
	e := serve(t, func(_ *Options, l *Listener, _ *session.Options) { l.Proxies = everybody })
	replayed := func(client string) bool {
		family := "TCP4 " + client + " 198.51.100.1"
		if strings.Contains(client, ":") {
			family = "TCP6 " + client + " 2001:db8::1"
		}
		got := e.raw(fmt.Sprintf("PROXY %s 4444 80\r\nPOST /v1/messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\nIdempotency-Key: k\r\nContent-Length: %d\r\n\r\n%s",
			family, asJSON, len(simple), simple))
		if !strings.HasPrefix(got, "HTTP/1.1 202") {
			t.Fatalf("%q", got)
		}
		return strings.Contains(got, "Idempotency-Replayed: true")
	}
	for _, tc := range []struct {
		client string
		known  bool
	}{
		{"192.0.2.1", false}, {"192.0.2.1", true}, {"192.0.2.2", false}, {"2001:db8:0:1::1", false}, {"2001:db8:0:1:ffff::2", true}, {"2001:db8:0:2::1", false},
	} {
		if got := replayed(tc.client); got != tc.known {
			t.Errorf("%s: replayed %v", tc.client, got)
		}
	}
	if n := len(e.queue.taken()); n != 4 {
		t.Errorf("%d messages", n)
	}
}

// Asking what would become of a message uses nothing up.
func TestValidateOnlyLeavesTheRateAlone(t *testing.T) {
	options, key := credentials(t, rateOf(1))
	e := serve(t, func(o *Options, l *Listener, _ *session.Options) {
		options(o)
		l.Bearer = true
	})
	bearer := "Authorization: Bearer " + key
	for i, want := range []int{200, 200, 202, 200, 429} {
		path := "/v1/messages?validate=only"
		if want == 202 || want == 429 {
			path = "/v1/messages"
		}
		if resp, body := e.do("POST", path, simple, asJSON, bearer); resp.StatusCode != want {
			t.Errorf("%d: %d %s", i, resp.StatusCode, body)
		}
	}
}

// Every 503 and 429 says when to come again, also one that is about credentials.
func TestWhoIsToComeLaterIsToldWhen(t *testing.T) {
	options, _ := credentials(t, nil)
	for _, o := range []func(*Options){options, stuck(t)} {
		e := serve(t, func(opt *Options, l *Listener, _ *session.Options) {
			o(opt)
			l.Basic = true
		})
		for _, path := range []string{"/", "/v1/messages"} {
			later := false
			for range 200 {
				resp, _ := e.do("POST", path, "x", rfc822, toHeader, "Authorization: Basic "+b64("alice:wrong"))
				if s := resp.StatusCode; s == 503 || s == 429 {
					later = true
					if resp.Header.Get("Retry-After") == "" {
						t.Errorf("%s: %d without Retry-After", path, s)
					}
					break
				} else if s != 401 || resp.Header.Get("WWW-Authenticate") == "" {
					t.Fatalf("%s: %d %v", path, s, resp.Header)
				}
			}
			if !later {
				t.Errorf("%s: never too many", path)
			}
		}
	}
}

// Whoever says 535, a 401 tells what is taken.
func TestEvery401HasAChallenge(t *testing.T) {
	e := serve(t, func(_ *Options, l *Listener, so *session.Options) {
		l.Bearer, l.Basic = true, true
		so.Validators = []policy.Validator{says{policy.On(policy.AtMail), func(e *policy.Event) { e.Refuse(535, 7, 8, "no") }}}
	})
	for _, path := range []string{"/", "/v1/messages"} {
		if resp, _ := e.do("POST", path, "x", rfc822, toHeader); resp.StatusCode != 401 || len(resp.Header.Values("WWW-Authenticate")) != 2 {
			t.Errorf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
	}
}

func TestOnly100ContinueMayBeExpected(t *testing.T) {
	e := serve(t, nil)
	for _, tc := range []struct{ path, version, expect, want string }{
		{"/", "1.1", "200-ok", "[417]"}, {"/v1/messages", "1.1", "100-continue, x", "[417]"}, {"/v1/messages", "1.1", "", "[417]"},
		{"/", "1.1", "100-Continue", "[100 200]"}, {"/v1/messages", "1.1", "100-continue", "[100 202]"}, {"/", "1.0", "x", "[200]"},
	} {
		got, text := statusesOf(e, fmt.Sprintf("POST %s HTTP/%s\r\nHost: x\r\nExpect: %s\r\n%s\r\n%s\r\nContent-Length: 1\r\n\r\nx", tc.path, tc.version, tc.expect, rfc822, toHeader))
		if fmt.Sprint(got) != tc.want || got[0] == "417" && (tc.path != "/") != strings.Contains(text, `"reason":"expectation"`) {
			t.Errorf("%+v: %q", tc, text)
		}
	}
}

// The names of the fields and the method are the operator's to choose.
func TestThePlainProtocolsNamesCanBeChosen(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) {
		o.Method, o.SenderHeader, o.RecipientHeader, o.EhloHeader = "PUT", "X-From", "X-To", "X-Name"
	})
	fields := []string{rfc822, "X-From: " + b64("a@example.com"), "X-To: " + b64("b@example.net"), "X-To: " + b64("c@example.net"), "X-Name: n.example"}
	resp, _ := e.do("PUT", "/", "x", fields...)
	mail := e.queue.taken()
	if resp.StatusCode != 200 || len(mail) != 1 || string(mail[0].env.ReversePath) != "a@example.com" || len(mail[0].env.Recipients) != 2 || string(mail[0].env.Client.Helo) != "n.example" {
		t.Errorf("%d %+v", resp.StatusCode, mail)
	}
	if resp, _ := e.do("POST", "/", "x", fields...); resp.StatusCode != 405 || resp.Header.Get("Allow") != "PUT" {
		t.Errorf("POST: %d %q", resp.StatusCode, resp.Header.Get("Allow"))
	}
	if resp, _ := e.do("PUT", "/", "x", rfc822, fromHeader, toHeader); resp.StatusCode != 400 {
		t.Errorf("the default names: %d", resp.StatusCode)
	}
	if resp, _ := e.do("POST", "/v1/messages", "x", fields...); resp.StatusCode != 202 { // the API has the same fields and its own method
		t.Errorf("/v1: %d", resp.StatusCode)
	}
	if got := e.raw("PUT / HTTP/1.1\r\nHost: x\r\nX-From: \r\nx-from: \r\nX-To: " + b64("b@example.net") + "\r\nContent-Length: 0\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("two senders: %q", got)
	}
}

// What the answer looks like is decided by the path, also when the request is broken.
func TestBrokenRequestsForTheAPIAreProblems(t *testing.T) {
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.MaxHeaderBytes = 4 << 10 })
	for _, tc := range []struct{ rest, want string }{
		{"X-Pad: " + strings.Repeat("x", 8<<10) + "\r\n\r\n", "431 headerTooLarge"},
		{"X-A: b\nContent-Length: 0\r\n\r\n", "400 syntax"},
		{"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "400 syntax"},
		{rfc822 + "\r\nContent-Length: 3\r\n\r\n", "400 syntax"},
	} {
		for _, path := range []string{"/", "/v1/messages", "/v1/messages?validate=only"} {
			got := e.raw("POST " + path + " HTTP/1.1\r\nHost: x\r\n" + tc.rest)
			head, body, _ := strings.Cut(got, "\r\n\r\n")
			status := head[9:12]
			if path != "/" {
				status += " " + parse[struct{ Reason string }](t, body).Reason
			}
			if path != "/" && status != tc.want || path == "/" && (status != tc.want[:3] || body != "") {
				t.Errorf("%s %.40q: %q", path, tc.rest, got)
			}
		}
	}
	if got := e.raw("HEAD /v1/messages/x HTTP/1.1\r\nHost: x\r\nX A: b\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400") || !strings.HasSuffix(got, "\r\n\r\n") {
		t.Errorf("HEAD: %q", got)
	}
}
