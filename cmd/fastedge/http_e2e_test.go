package main

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/queue"
)

// httpConfig is minimalConfig with a second listener, for HTTP.
const httpConfig = minimalConfig + `
[[listen]]
name = "http"
address = "127.0.0.1:0"
protocol = "http"
`

// post sends one request and gives its answer.
func post(t *testing.T, url, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := (&http.Client{Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestHTTPAndSMTPShareQueuePolicyAndLog(t *testing.T) {
	dir := t.TempDir()
	p := serve(t, dir, httpConfig+`
[[rule]]
name = "nospam"
at = "rcpt"
when = "recipient_local == 'spam'"
reply = "550 5.7.1 not here"
`)
	url := "http://" + p.addr[1]
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	resp, _ := post(t, url+"/any/path", "Subject: by HTTP\r\n\r\nhi\r\n", "Content-Type: message/rfc822", "X-Envelope-Sender: "+encode("a@example.com"),
		"X-Envelope-Recipient: "+encode("b@example.net"))
	id := resp.Header.Get("X-Queue-Id")
	if resp.StatusCode != 200 || resp.Header.Get("X-Smtp-Reply") != `250; message="2.6.0 Message accepted for delivery"` {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	resp, _ = post(t, url, "x", "X-Envelope-Recipient: "+encode("spam@example.net"))
	if resp.StatusCode != 500 || !strings.HasPrefix(resp.Header.Get("X-Smtp-Reply"), `550; message="5.7.1 not here"`) {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	resp, body := post(t, url+"/v1/messages", `{"mail_from":"a@example.com","rcpt_to":["b@example.net"],"raw":"Subject: by JSON\r\n\r\n","metadata":{"k":"v"}}`,
		"Content-Type: application/json")
	var answer struct{ ID string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || resp.StatusCode != 202 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	got, err := http.Get(url + "/v1/messages/" + answer.ID)
	if err != nil || got.StatusCode != 200 {
		t.Fatal(got, err)
	}
	shown, _ := io.ReadAll(got.Body)
	got.Body.Close()
	if !strings.Contains(string(shown), `"metadata":{"k":"v"}`) {
		t.Errorf("%s", shown)
	}
	if out, err := command(t, dir, httpConfig, "queue", "show", answer.ID).CombinedOutput(); err != nil || !strings.Contains(string(out), `{"k":"v"}`) {
		t.Errorf("queue show: %v\n%s", err, out)
	}
	p.wait("its line in the log", func() bool { return strings.Contains(p.log.String(), `"message":"`+answer.ID+`"`) })
	if log := p.log.String(); !strings.Contains(log, `"proto":"HTTP"`) || !strings.Contains(log, `"reason":"rule"`) {
		t.Errorf("the log does not tell of it:\n%s", log)
	}
	if code := p.term(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	there := stored(t, dir)
	if string(there[id]) != "Subject: by HTTP\r\n\r\nhi\r\n" || string(there[answer.ID]) != "Subject: by JSON\r\n\r\n" {
		t.Errorf("%q", there)
	}
}

// A batch is cut off by kill -9 in its middle. Every line that was answered is there; and when the whole batch is sent again, every key has
// exactly one message: none was separated from its own.
func TestKill9DuringABatchKeepsAnsweredLinesAndTheirKeys(t *testing.T) {
	const lines = 3000
	dir := t.TempDir()
	var batch strings.Builder
	for i := range lines {
		fmt.Fprintf(&batch, `{"mail_from":"a@example.com","rcpt_to":["b@example.net"],"raw":"Subject: %d\r\n\r\n","idempotency_key":"key-%d"}`+"\n", i, i)
	}
	first := map[int]string{} // ids by line
	for round := range 4 {
		p := serve(t, dir, httpConfig)
		c, err := net.Dial("tcp", p.addr[1])
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		go fmt.Fprintf(c, "POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%s", batch.Len(), batch.String())
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		answers := bufio.NewReader(resp.Body)
		last := round == 3
		for i := 0; i < lines; i++ {
			text, err := answers.ReadString('\n')
			if err != nil {
				t.Fatalf("round %d, line %d: %v", round, i, err)
			}
			var one struct {
				ID       string
				Status   int
				Replayed bool
			}
			if err := json.Unmarshal([]byte(text), &one); err != nil || one.Status != 202 {
				t.Fatalf("round %d: %s", round, text)
			}
			if id, known := first[i]; known && (id != one.ID || !one.Replayed) {
				t.Fatalf("round %d: line %d was %s, and is %s", round, i, id, text)
			}
			first[i] = one.ID
			if !last && i == 200+700*round {
				break
			}
		}
		p.kill()
		c.Close()
	}
	there := stored(t, dir)
	for i, id := range first {
		if string(there[id]) != fmt.Sprintf("Subject: %d\r\n\r\n", i) {
			t.Fatalf("line %d, answered with %s, is %q", i, id, there[id])
		}
	}
	if len(there) != lines {
		t.Errorf("%d keys have %d messages", lines, len(there))
	}
}

// Keys outlive their messages: handed on, settled and forgotten, and after a restart.
func TestAKeyIsRememberedAfterItsMessageIsDone(t *testing.T) {
	dir := t.TempDir()
	body := `{"mail_from":"a@example.com","rcpt_to":["b@example.net"],"raw":"Subject: x\r\n\r\n"}`
	send := func(p *process) (string, bool) {
		resp, text := post(t, "http://"+p.addr[1]+"/v1/messages", body, "Content-Type: application/json", "Idempotency-Key: once")
		if resp.StatusCode != 202 {
			t.Fatalf("%d %s", resp.StatusCode, text)
		}
		return text, resp.Header.Get("Idempotency-Replayed") == "true"
	}
	p := serve(t, dir, httpConfig)
	answer, _ := send(p)
	if code := p.term(); code != 0 {
		t.Fatal(code)
	}
	s := openSpoolOf(t, dir)
	s.List(func(e queue.Entry) bool {
		if err := s.Drop(e.ID); err != nil {
			t.Error(err)
		}
		return true
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		p = serve(t, dir, httpConfig)
		if again, replayed := send(p); again != answer || !replayed {
			t.Errorf("replayed %v: %s after %s", replayed, again, answer)
		}
		p.kill()
	}
	if there := stored(t, dir); len(there) != 0 {
		t.Errorf("%d messages", len(there))
	}
}

// The kernel has no descriptors left for a while: accepting goes on afterwards.
func TestHTTPSurvivesRunningOutOfDescriptors(t *testing.T) {
	prlimit, err := exec.LookPath("prlimit")
	if err != nil {
		t.Skip("no prlimit")
	}
	p := serve(t, t.TempDir(), httpConfig)
	limit := func(n string) {
		t.Helper()
		if out, err := exec.Command(prlimit, "--pid", fmt.Sprint(p.cmd.Process.Pid), "--nofile="+n+":").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	limit("3")
	c, err := net.Dial("tcp", p.addr[1]) // the kernel completes it
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nX-Envelope-Recipient: YkBleGFtcGxlLm5ldA==\r\nContent-Length: 1\r\n\r\nx")
	p.wait("a word about it", func() bool { return strings.Contains(p.log.String(), "HTTP connections can't be accepted for now") })
	limit("400")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("%v %v", resp, err)
	}
}

// SPF, lists and limits go by the client that a poster names, whatever the poster may do: a real fail from DNS refuses by each protocol, a pass is written
// down, and the message goes to a domain that only the poster may send to.
func TestSPFIsCheckedForTheClientThatAPosterNames(t *testing.T) {
	p := serve(t, t.TempDir(), sendersConfig(freeAddress(t), dnsZone(t, senderRecords), `
[[listen]]
name = "http"
address = "127.0.0.1:0"
protocol = "http"
`))
	url := "http://" + p.addr[1]
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	inJSON := func(from, client string) string {
		return `{"mail_from":"` + from + `","rcpt_to":["b@elsewhere.test"],"raw":"Subject: x\r\n\r\n","client":{"address":"` + client + `","helo":"client.test"}}`
	}
	inFields := func(from, client string) []string {
		return []string{"Content-Type: message/rfc822", "X-Envelope-Sender: " + encode(from), "X-Envelope-Recipient: " + encode("b@elsewhere.test"),
			"X-Client-Address: " + client, "X-Ehlo: client.test"}
	}
	for _, tc := range []struct {
		from, client string
		refused      bool
	}{{"a@fail.test", "192.0.2.7", true}, {"a@pass.test", "192.0.2.7", false}, {"a@fail.test", "127.0.0.1", false}} {
		for form, ask := range map[string]func() (*http.Response, string){
			"JSON": func() (*http.Response, string) {
				return post(t, url+"/v1/messages", inJSON(tc.from, tc.client), "Content-Type: application/json")
			},
			"rfc822": func() (*http.Response, string) {
				return post(t, url+"/v1/messages", "Subject: x\r\n\r\n", inFields(tc.from, tc.client)...)
			},
			"plain": func() (*http.Response, string) {
				return post(t, url, "Subject: x\r\n\r\n", inFields(tc.from, tc.client)...)
			},
		} {
			resp, body := ask()
			reply := resp.Header.Get("X-Smtp-Reply")
			switch {
			case tc.refused && form == "plain":
				if resp.StatusCode != 500 || !strings.HasPrefix(reply, `550; message="5.7.23 `) {
					t.Errorf("%+v, plain: %d %s", tc, resp.StatusCode, reply)
				}
			case tc.refused:
				if resp.StatusCode != 403 || !strings.Contains(body, `"reason":"spf","smtp_code":550,"enhanced_status":"5.7.23"`) {
					t.Errorf("%+v, %s: %d %s", tc, form, resp.StatusCode, body)
				}
			case resp.StatusCode >= 300:
				t.Errorf("%+v, %s: %d %s %s", tc, form, resp.StatusCode, body, reply)
			default:
				id := resp.Header.Get("X-Queue-Id")
				if form != "plain" {
					var answer struct{ ID string }
					json.Unmarshal([]byte(body), &answer)
					id = answer.ID
				}
				fields := strings.Join(p.fields(id), "\n")
				if pass := strings.Contains(fields, "Received-SPF: pass ("); pass != (tc.from == "a@pass.test") || !strings.Contains(fields, "Received: from client.test ([") {
					t.Errorf("%+v, %s: %s", tc, form, fields)
				}
			}
		}
	}
}

func TestTheRecipientMapDecidesAboutHTTP(t *testing.T) {
	dir := t.TempDir()
	file := dir + "/recipients"
	if err := os.WriteFile(file, []byte("alice@example.net\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := serve(t, dir, httpConfig+"[domains]\naccept = [\"example.net\"]\nrecipients = \""+file+"\"\n")
	url := "http://" + p.addr[1]
	for name, refused := range map[string]bool{"alice": false, "alice+x": false, "bob": true} {
		resp, _ := post(t, url, "x", "X-Envelope-Recipient: "+base64.StdEncoding.EncodeToString([]byte(name+"@example.net")))
		if got := resp.Header.Get("X-Smtp-Reply"); refused != strings.HasPrefix(got, `550; message="5.1.1 `) || refused != (resp.StatusCode == 500) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, got)
		}
		resp, body := post(t, url+"/v1/messages", `{"mail_from":"","rcpt_to":["`+name+`@example.net"],"raw":""}`, "Content-Type: application/json")
		if refused != (resp.StatusCode == 422) || refused != strings.Contains(body, `"enhanced_status":"5.1.1"`) {
			t.Errorf("%s by /v1: %d %s", name, resp.StatusCode, body)
		}
	}
}

// HTTPS has the certificates that SMTP has, and takes new ones while connections stay open.
func TestACertificateThatIsReplacedIsUsedByHTTPS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	first := a.issue("server", false, "mx.example.net")
	p := serve(t, t.TempDir(), tlsConfig("", "reload_every = \"1s\"\n"+`
[[listen]]
name = "http"
address = "127.0.0.1:0"
protocol = "http"
tls = "required"
`, first))
	dial := func() *tls.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", p.addr[1], &tls.Config{InsecureSkipVerify: true, ServerName: "mx.example.net"})
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		return c
	}
	serial := func(c *tls.Conn) int64 { return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64() }
	ask := func(c *tls.Conn) {
		t.Helper()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nX-Envelope-Recipient: YkBleGFtcGxlLm5ldA==\r\nContent-Length: 1\r\n\r\nx")
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
			t.Errorf("%v %v", resp, err)
		}
	}
	open := dial()
	defer open.Close()
	if serial(open) != first.serial {
		t.Fatalf("certificate %d", serial(open))
	}
	ask(open)
	second := a.issue("server", false, "mx.example.net")
	p.wait("the new certificate", func() bool {
		c := dial()
		defer c.Close()
		return serial(c) == second.serial
	})
	ask(open)
}
