//go:build interop

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// These tests post with curl and with Python's http.client to the real program.

// postServer is a server with HTTP for this machine, HTTPS for who has credentials, and the same behind a proxy.
type postServer struct {
	*process
	http, https, proxied string
	key                  string // an API key for example.org
	client               pair   // the certificate of a user
	ca                   string
	dir                  string // for files
}

func newPostServer(t *testing.T) *postServer {
	t.Helper()
	s := &postServer{dir: t.TempDir()}
	authority := newAuthority(t)
	server := authority.issue("server", false, "mx.example.net", "127.0.0.1")
	s.client, s.ca = authority.issue("client", false, "carol"), authority.file
	users, keys := filepath.Join(s.dir, "users"), filepath.Join(s.dir, "keys")
	addUser(t, users, "alice", "pass word:é")
	addUser(t, users, "carol", "another")
	code, out, stderr := cliRun("auth", "key", "add", "--keys", keys, "shop", "--sender-domain", "example.org")
	if s.key = strings.TrimSpace(out); code != exitOK || !strings.HasPrefix(s.key, "fe_") {
		t.Fatalf("auth key add: %d %q %s", code, out, stderr)
	}
	https := `
protocol = "http"
address = "127.0.0.1:0"
tls = "required"
client_certificates = "request"
post_from = []
relay_from = []
auth = ["BEARER", "BASIC", "EXTERNAL"]
`
	s.process = serve(t, t.TempDir(), httpConfig+"[[listen]]\nname = \"https\"\n"+https+"[[listen]]\nname = \"proxied\"\nproxy_protocol_from = [\"127.0.0.1\"]\n"+https+`
[tls]
certificates = [`+server.toml()+`]
client_ca = "`+s.ca+`"
[auth]
users = "`+users+`"
keys = "`+keys+`"
[domains]
accept = ["example.net"]
`)
	s.http, s.https, s.proxied = "http://"+s.addr[1], "https://"+s.addr[2], "https://"+s.addr[3]
	return s
}

// file makes a file for a client to send.
func (s *postServer) file(name string, data []byte) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// curl posts and gives what came back, with all header fields and what curl says of the transfer.
func (s *postServer) curl(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(need(s.t, "curl"), append([]string{"-sS", "-v", "-i", "--noproxy", "*", "--max-time", "100", "--cacert", s.ca}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("curl %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// fieldsFor are curl's options for the fields of both protocols.
func fieldsFor(from, to string) []string {
	return []string{"-H", "Content-Type: message/rfc822", "-H", "X-Envelope-Sender: " + b64(from), "-H", "X-Envelope-Recipient: " + b64(to)}
}

func TestCurlPostsInBothProtocols(t *testing.T) {
	s := newPostServer(t)
	small := []byte("Subject: small\r\n\r\nhello\r\n")
	large := append([]byte("Subject: large\r\n\r\n"), bytes.Repeat([]byte("0123456789abcdef0123456789abcdef0123456789abcdef\r\n"), 100_000)...) // 5 MB
	smallFile, largeFile := s.file("small", small), s.file("large", large)
	zipped := s.file("gzip", nil)
	if out, err := exec.Command("sh", "-c", "gzip -c "+largeFile+" > "+zipped).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	asJSON := `{"mail_from":"a@example.org","rcpt_to":["b@example.net"],"raw":"Subject: json\r\n\r\n"}`
	with := func(more ...string) []string { return append(fieldsFor("a@example.org", "b@example.net"), more...) }
	var want [][]byte
	for _, tc := range []struct {
		name   string
		args   []string
		words  []string
		stored []byte
	}{
		{"a file", with("--data-binary", "@"+smallFile, s.http+"/any"), []string{"HTTP/1.1 200", "X-Smtp-Reply: 250; message=", "X-Queue-Id: "}, small},
		{"a large file", with("--data-binary", "@"+largeFile, s.http), []string{"Expect: 100-continue", "HTTP/1.1 100", "HTTP/1.1 200"}, large},
		{"an upload by PUT", with("-T", smallFile, s.http+"/"), []string{"HTTP/1.1 405", "Allow: POST"}, nil},
		{"an upload by POST", with("-X", "POST", "-T", smallFile, s.http+"/"), []string{"HTTP/1.1 200"}, small},
		{"a large upload", with("-X", "POST", "-T", largeFile, s.http+"/v1/messages"), []string{"HTTP/1.1 202"}, large},
		{"an upload in chunks", with("-X", "POST", "-H", "Transfer-Encoding: chunked", "-T", largeFile, s.http+"/v1/messages"), []string{"HTTP/1.1 202"}, large},
		{"HTTP/1.0", with("-0", "--data-binary", "@"+smallFile, s.http), []string{"HTTP/1.1 200"}, small},
		{"an offer of HTTP/2", with("--http2", "--data-binary", "@"+smallFile, s.http), []string{"Upgrade: h2c", "HTTP/1.1 200"}, small},
		{"gzip", with("-H", "Content-Encoding: gzip", "--data-binary", "@"+zipped, s.http+"/v1/messages"), []string{"HTTP/1.1 202"}, large},
		{"gzip in the plain protocol", with("-H", "Content-Encoding: gzip", "--data-binary", "@"+zipped, s.http), []string{"HTTP/1.1 415"}, nil},
		{"another type", []string{"-d", "x=y", s.http}, []string{"HTTP/1.1 415"}, nil},
		{"a form", []string{"-F", "x=y", s.http}, []string{"HTTP/1.1 415"}, nil},
		{"no credentials", with("-d", "x", s.https), []string{"HTTP/1.1 401", `Www-Authenticate: Bearer realm="mail"`, "Www-Authenticate: Basic "}, nil},
		{"no credentials, large", with("--data-binary", "@"+largeFile, s.https+"/v1/messages"), []string{"HTTP/1.1 401", "authRequired"}, nil},
		{"a bearer", with("--oauth2-bearer", s.key, "--data-binary", "@"+smallFile, s.https+"/v1/messages"), []string{"HTTP/1.1 202"}, small},
		{"a large one of a bearer", with("--oauth2-bearer", s.key, "--data-binary", "@"+largeFile, s.https), []string{"HTTP/1.1 100", "HTTP/1.1 200"}, large},
		{"another's sender", append(fieldsFor("a@example.com", "b@example.net"), "--oauth2-bearer", s.key, "-d", "x", s.https), []string{"HTTP/1.1 403"}, nil},
		{"a wrong bearer", with("--oauth2-bearer", s.key+"x", "-d", "x", s.https), []string{"HTTP/1.1 401"}, nil},
		{"a password", with("-u", "alice:pass word:é", "--data-binary", "@"+smallFile, s.https), []string{"HTTP/1.1 200"}, small},
		{"a password when asked", with("--anyauth", "-u", "alice:pass word:é", "--data-binary", "@"+smallFile, s.https), []string{"HTTP/1.1 401", "HTTP/1.1 200"}, small},
		{"a wrong password", with("-u", "alice:pass", "-d", "x", s.https+"/v1/messages"), []string{"HTTP/1.1 401", "authFailed"}, nil},
		{"a certificate", with("--cert", s.client.cert, "--key", s.client.key, "--data-binary", "@"+smallFile, s.https), []string{"HTTP/1.1 200"}, small},
		{"a PROXY header", with("--haproxy-protocol", "--oauth2-bearer", s.key, "--data-binary", "@"+smallFile, s.proxied), []string{"HTTP/1.1 200"}, small},
		{"a PROXY header, a certificate", with("--haproxy-protocol", "--cert", s.client.cert, "--key", s.client.key, "--data-binary", "@"+smallFile, s.proxied), []string{"HTTP/1.1 200"}, small},
		{"JSON", []string{"--json", asJSON, s.http + "/v1/messages"}, []string{"HTTP/1.1 202", "application/json", `"durability":"fsync"`, "Server-Timing: "}, []byte("Subject: json\r\n\r\n")},
		{"a batch", []string{"-H", "Content-Type: application/x-ndjson", "-d", asJSON, s.http + "/v1/messages:batch"}, []string{"HTTP/1.1 200", `"line":1,"status":202`}, []byte("Subject: json\r\n\r\n")},
		{"the document", []string{"--compressed", s.http + "/openapi.json"}, []string{"HTTP/1.1 200", `"openapi"`}, nil},
		{"its header", []string{"-I", s.http + "/openapi.json"}, []string{"HTTP/1.1 200", "Content-Length: "}, nil},
		{"a connection for two", with("--data-binary", "@"+smallFile, s.http, s.http), []string{"e-using existing ", "HTTP/1.1 200"}, append(append([]byte{}, small...), small...)},
	} {
		out := s.curl(tc.args...)
		for _, w := range tc.words {
			if !strings.Contains(out, w) {
				t.Errorf("%s: no %q in\n%.3000s", tc.name, w, out)
			}
		}
		switch {
		case tc.name == "a connection for two":
			want = append(want, small, small)
		case tc.stored != nil:
			want = append(want, tc.stored)
		}
	}
	if code := s.term(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	checkPosted(t, stored(t, s.process.dir), want)
	for _, secret := range []string{s.key, "pass word", b64("alice:pass word:é")} {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
}

// A script for Python's http.client, and sockets for what that can't do. It says what went wrong, or nothing.
const pythonPosts = `
import base64, http.client, json, re, socket, sys
host, port = sys.argv[1].split(":")
e = lambda s: base64.b64encode(s.encode()).decode()
fields = [("Content-Type", "message/rfc822"), ("X-Envelope-Sender", e("a@example.org")), ("X-Envelope-Recipient", e("b@example.net"))]
body = b"Subject: python\r\n\r\n" + b"x" * 70 + b"\r\n"

def want(ok, *what):
    if not ok:
        print(*what)
        sys.exit(1)

# Keep-alive: many messages over one socket.
c = http.client.HTTPConnection(host, int(port), timeout=100)
for i in range(5):
    c.request("POST", "/in", body, dict(fields))
    sock = c.sock
    r = c.getresponse()
    want(r.status == 200 and r.read() == b"" and r.getheader("X-Queue-Id"), "keep-alive", i, r.status, r.headers)
    want(c.sock is sock, "the connection was closed")

# Chunked, from an iterator; also with nothing in it.
def pieces():
    for i in range(0, len(body), 7):
        yield body[i:i+7]
for path, status in (("/in", 200), ("/v1/messages", 202)):
    for it in (pieces(), iter([])):
        c.request("POST", path, it, dict(fields), encode_chunked=True)
        r = c.getresponse()
        want(r.status == status, "chunked", r.status, r.headers, r.read())
        r.read()

# Refused, then used again: http.client opens another connection by itself.
c.request("POST", "/in", body, {**dict(fields), "Content-Type": "text/html"})
r = c.getresponse(); r.read()
want(r.status == 415, "type", r.status)
c.request("POST", "/v1/messages", json.dumps({"mail_from": "a@example.org", "rcpt_to": ["b@example.net", "c@elsewhere@"], "raw": body.decode()}),
          {"Content-Type": "application/json"})
r = c.getresponse(); answer = json.load(r)
want(r.status == 202 and [x["code"] for x in answer["recipients"]] == [250, 501], "json", r.status, answer)

# A batch: as many lines back.
line = json.dumps({"mail_from": "", "rcpt_to": ["b@example.net"], "raw": body.decode()})
c.request("POST", "/v1/messages:batch", ((line + "\n").encode() for _ in range(50)), {"Content-Type": "application/x-ndjson"}, encode_chunked=True)
r = c.getresponse(); answers = [json.loads(l) for l in r.read().splitlines()]
want(r.status == 200 and [a["line"] for a in answers] == list(range(1, 51)) and all(a["status"] == 202 for a in answers), "batch", r.status, answers)

# Pipelined: three requests in one write.
s = socket.create_connection((host, int(port)), timeout=100)
request = ("POST / HTTP/1.1\r\nHost: x\r\n" + "".join("%s: %s\r\n" % f for f in fields) + "Content-Length: %d\r\n\r\n" % len(body)).encode() + body
s.sendall(request * 3)
f = s.makefile("rb")
for i in range(3):
    want(f.readline().startswith(b"HTTP/1.1 200 "), "pipelined", i)
    while f.readline() not in (b"\r\n", b""):
        pass
s.close()

# The bytes of a relay of the plain protocol, header and body in two writes, and what it looks for in the answer.
s = socket.create_connection((host, int(port)), timeout=100)
s.sendall(b"POST /inbound HTTP/1.1\r\nHost: 127.0.0.1:40673\r\nAccept-Encoding: identity\r\nContent-Length: 41\r\nContent-Type: message/rfc822\r\n"
          b"X-Ehlo: relay.example\r\nX-Envelope-Sender: c8OpbmRlckBleGFtcGxlLmNvbQ==\r\nX-Envelope-Recipient: cjFAZXhhbXBsZS5jb20=\r\nX-Envelope-Recipient: cjJAZXhhbXBsZS5jb20=\r\n\r\n")
s.sendall(b"From: x\r\nSubject: relayed\r\n\r\nhello ther\r\n")
r = http.client.HTTPResponse(s); r.begin(); r.read()
reply = r.getheader("X-Smtp-Reply", "")
want(r.status // 100 == 2 and re.match(r"^\s*(\d\d\d)\s*;", reply).group(1) == "250" and
     re.findall(r'\s(\w+)\s*=\s*"(.*?)"', reply) == [("message", "2.6.0 Message accepted for delivery")], "relay", r.status, reply)
`

func TestPythonPostsInBothProtocols(t *testing.T) {
	p := serve(t, t.TempDir(), httpConfig)
	script := filepath.Join(t.TempDir(), "posts.py")
	if err := os.WriteFile(script, []byte(pythonPosts), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(need(t, "python3"), script, p.addr[1]).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, p.log)
	}
	if code := p.term(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	body := []byte("Subject: python\r\n\r\n" + strings.Repeat("x", 70) + "\r\n")
	want := [][]byte{{}, {}, []byte("From: x\r\nSubject: relayed\r\n\r\nhello ther\r\n")}
	for range 5 + 2 + 1 + 50 + 3 {
		want = append(want, body)
	}
	checkPosted(t, stored(t, p.dir), want)
}

// checkPosted compares what is in the spool with what was sent.
func checkPosted(t *testing.T, there map[string][]byte, want [][]byte) {
	t.Helper()
	count := map[string]int{}
	for _, data := range want {
		count[string(data)]++
	}
	for id, data := range there {
		if count[string(data)]--; count[string(data)] < 0 {
			t.Errorf("%s was not sent: %.100q", id, data)
		}
	}
	for data, n := range count {
		if n > 0 {
			t.Errorf("%d times not there: %.100q", n, data)
		}
	}
	if len(there) != len(want) {
		t.Errorf("%d messages, and not %d", len(there), len(want))
	}
}
