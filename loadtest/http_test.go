package loadtest

import (
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// post is an HTTP session whose only request is written.
func post(t *testing.T, messages int) *scene {
	t.Helper()
	s := newScene(t, Options{Protocol: "http"}, 1, messages)
	s.open(0)
	s.flush()
	return s
}

func TestResponsesAreSortedAndSplitAnywhere(t *testing.T) {
	for response, want := range map[string]string{
		"HTTP/1.1 204 No Content\r\n\r\n":                                                         "A 1 0 0 0",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":                                            "A 1 0 0 0",
		"HTTP/1.1 202 Accepted\r\ncontent-length: 5\r\nX: y\r\n\r\nhello":                         "A 1 0 0 0",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok":             "A 1 0 0 0",
		"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok":                                          "A 1 0 0 0",
		"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy":                                      "R 0 1 0 0",
		"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n":                                          "R 0 1 0 0",
		"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n":                                            "R 0 0 1 0",
		"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n":                                            "R 0 0 1 0",
		"HTTP/1.1 200 OK\r\nX-Smtp-Reply: 451 4.3.0 no\r\nContent-Length: 0\r\n\r\n":              "R 0 1 0 0",
		"HTTP/1.1 500 No\r\nx-smtp-reply: 250 2.0.0 ok\r\nContent-Length: 0\r\n\r\n":              "A 1 0 0 0",
		"HTTP/1.1 503 No\r\nX-Smtp-Reply: 554 no\r\nContent-Length: 0\r\n\r\n":                    "R 0 0 1 0",
		"HTTP/1.1 200 OK\r\n\r\n":                                                                 "? 0 0 0 1",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n":                                           "? 0 0 0 1",
		"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n":                                            "? 0 0 0 1",
		"HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n":                                        "? 0 0 0 1",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":                          "? 0 0 0 1",
		"HTTP/1.1 2x0 OK\r\n\r\n":                                                                 "? 0 0 0 1",
		"220 mail.example ESMTP\r\n\r\n":                                                          "? 0 0 0 1",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxResponse) + "\r\nContent-Length: 0\r\n": "? 0 0 0 1",
	} {
		cuts := []int{len(response)}
		if len(response) < 1000 {
			for k := range response {
				cuts = append(cuts, k)
			}
		}
		for _, k := range cuts {
			s := post(t, 1)
			s.feed(response[:k], whole)
			s.feed(response[k:], whole)
			if got := s.notes() + " " + s.counts(); got != want || s.tally.inFlight != 0 || s.wire().wish != wantClose {
				t.Fatalf("%.200q split at %d: %s, want %s; %d in flight", response, k, got, want, s.tally.inFlight)
			}
			if s.wire().ended != (want[0] != '?') {
				t.Fatalf("%.200q: ended %v", response, s.wire().ended)
			}
			if k < len(response) && len(response) < 1000 {
				s := post(t, 1)
				s.feed(response[:k], 1)
				s.lost("gone", 9)
				if got := s.notes() + " " + s.counts(); got != "? 0 0 0 1" && got != want || got == "A 1 0 0 0" && k < len(response) {
					t.Fatalf("%q cut at %d: %s", response, k, got)
				}
			}
		}
	}
}

func TestAConnectionIsUsedForTheNextRequestUnlessItCloses(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	s := post(t, 2)
	s.feed(ok, 1)
	if out := s.flush(); !strings.HasPrefix(out, "POST / HTTP/1.1\r\nHost: 127.0.0.1:25\r\n") {
		t.Errorf("wrote %.100q", out)
	}
	s.feed(strings.Replace(ok, "OK\r\n", "OK\r\nConnection: Close\r\n", 1), whole)
	if s.notes() != "A A" || !s.wire().ended || s.tally.totals.Sessions != 1 {
		t.Errorf("%s", s.notes())
	}
	s = post(t, 2)
	s.feed(strings.Replace(ok, "OK\r\n", "OK\r\nConnection: Close\r\n", 1), whole)
	if s.notes() != "A" || !s.wire().ended {
		t.Errorf("goes on after close: %s", s.notes())
	}
	s = post(t, 2)
	s.feed(ok+ok, whole)
	if s.notes() != "A -" || s.wire().ended || s.wire().wish != wantClose {
		t.Errorf("a response to what was not asked: %s", s.notes())
	}
}

func TestAServerOfAnotherProtocolIsNotWaitedFor(t *testing.T) {
	s := post(t, 1)
	s.feed("220 mx.test ESMTP\r\n500 what?\r\n", 1)
	if w := s.wire(); s.notes() != "?" || w.wish != wantClose || w.ended {
		t.Errorf("waits for an empty line: %s", s.notes())
	}
}

func TestAnEarlyResponseIsNoAcknowledgement(t *testing.T) {
	for response, want := range map[string]string{
		"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n": "R 0 0 1 0", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n": "R 0 0 0 1",
	} {
		s := newScene(t, Options{Protocol: "http"}, 1, 2)
		s.open(0)
		w := s.wire()
		w.wrote(w.left() - 1)
		s.feed(response, whole)
		if got := s.notes() + " " + s.counts(); got != want || w.wish != wantClose || w.ended {
			t.Errorf("%q: %s", response, got)
		}
	}
	s := newScene(t, Options{Protocol: "http"}, 1, 1)
	s.open(0)
	s.wire().wrote(s.wire().left() - 1)
	s.lost("gone", 9)
	if s.notes() != "-" {
		t.Errorf("lost before the last octet: %s", s.notes())
	}
}

func TestPostsArriveAtAServer(t *testing.T) {
	for name, o := range map[string]Options{"closed": {}, "open": {Rate: 3000, MaxWaiting: 5000}, "one a connection": {PerConnection: 1}, "tls": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			seen := map[uint64]int{}
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				data, err := io.ReadAll(r.Body)
				field, _, _ := strings.Cut(string(data), "\r\n")
				_, body, _ := strings.Cut(string(data), "\r\n\r\n")
				mark, ok := ledger.ParseMark([]byte(field))
				to, _ := base64.StdEncoding.DecodeString(r.Header.Get("X-Envelope-Recipient"))
				from, _ := base64.StdEncoding.DecodeString(r.Header.Get("X-Envelope-Sender"))
				_, seq, _, ok2 := ledger.ParseRecipient(to)
				n := len(r.Header.Values("X-Envelope-Recipient"))
				if err != nil || !ok || !ok2 || mark.Body != sha256.Sum256([]byte(body)) || seq != mark.Seq || string(from) != "sender@client.test" ||
					r.URL.Path != "/in" || r.Header.Get("Content-Type") != "message/rfc822" || n < 1 || n > 3 {
					t.Errorf("%v %q %+v to %q from %q", err, field, r.Header, to, from)
				}
				mu.Lock()
				seen[seq]++
				mu.Unlock()
				w.WriteHeader(204)
			})
			server := httptest.NewUnstartedServer(handler)
			if o.TLS {
				server.StartTLS()
			} else {
				server.Start()
			}
			defer server.Close()
			o.Protocol, o.HTTPPath, o.Connections, o.Messages, o.Recipients = "http", "/in", 4, 200, Range{1, 3}
			o.Target = server.Listener.Addr().String()
			r, err := Run(t.Context(), o, Hooks{})
			if err != nil {
				t.Fatal(err)
			}
			checkSums(t, r)
			if r.Totals.Acknowledged != 200 || len(seen) != 200 || r.Seconds > 60 {
				t.Errorf("%+v, %d seen, %v s, %v", r.Totals, len(seen), r.Seconds, r.Replies)
			}
		})
	}
}

func TestPostsToAUnixSocketNameAHost(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/s"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(204)
	}), ReadHeaderTimeout: time.Minute}
	go server.Serve(l)
	defer server.Close()
	r, err := Run(t.Context(), Options{Target: "unix:" + path, Protocol: "http", Connections: 2, Messages: 20}, Hooks{})
	if err != nil || r.Totals.Acknowledged != 20 {
		t.Errorf("%v %+v", err, r)
	}
}
