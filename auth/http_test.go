package auth

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// httpService is a service that answers as told, and a store that asks it.
func httpService(t *testing.T, o HTTPOptions, answer http.HandlerFunc) *HTTP {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	o.URL = server.URL
	h, err := NewHTTP(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.client.CloseIdleConnections)
	return h
}

func TestHTTPServiceIsToldTheLogin(t *testing.T) {
	var got atomic.Pointer[HTTPQuestion]
	var method, contentType, authorization atomic.Value
	h := httpService(t, HTTPOptions{Mechanisms: []string{PLAIN, LOGIN, OAUTHBEARER, EXTERNAL}, Header: http.Header{"Authorization": {"Bearer ours"}}},
		func(w http.ResponseWriter, r *http.Request) {
			var q HTTPQuestion
			d := json.NewDecoder(r.Body)
			d.DisallowUnknownFields()
			if err := d.Decode(&q); err != nil {
				t.Error(err)
			}
			got.Store(&q)
			method.Store(r.Method)
			contentType.Store(r.Header.Get("Content-Type"))
			authorization.Store(r.Header.Get("Authorization"))
			io.WriteString(w, `{"ok": true, "user": "`+q.ActAs+`"}`)
		})
	s := testService(t, Options{Store: h})
	p := client
	p.TLS, p.Certificate = &tls.ConnectionState{}, "carol"
	where := HTTPQuestion{ClientAddress: "192.0.2.7", ClientPort: 4711, Helo: "client.example.org", Listener: "submission", Session: "s1", TLS: true}
	for _, c := range []struct {
		script
		question HTTPQuestion
	}{
		{script{PLAIN, []string{"\x00alice\x00sec\"ret\u00e9"}, nil, Success, "alice"}, HTTPQuestion{Mechanism: PLAIN, User: "alice", Password: "sec\"ret\u00e9"}},
		{script{PLAIN, []string{"bob\x00alice\x00secret"}, nil, Success, "bob"}, HTTPQuestion{Mechanism: PLAIN, User: "alice", ActAs: "bob", Password: "secret"}},
		{script{LOGIN, []string{"alice", ""}, nil, Success, "alice"}, HTTPQuestion{Mechanism: LOGIN, User: "alice"}},
		{script{OAUTHBEARER, []string{"n,a=alice,\x01auth=Bearer t0ken\x01\x01"}, nil, Success, "alice"}, HTTPQuestion{Mechanism: OAUTHBEARER, User: "alice", Token: "t0ken"}},
		{script{EXTERNAL, []string{""}, nil, Success, "carol"}, HTTPQuestion{Mechanism: EXTERNAL, User: "carol"}},
	} {
		c.run(t, s, p)
		want := where
		want.Mechanism, want.User, want.ActAs, want.Password, want.Token = c.question.Mechanism, c.question.User, c.question.ActAs, c.question.Password, c.question.Token
		if q := got.Load(); q == nil || *q != want {
			t.Errorf("%s: asked %+v, want %+v", c.mechanism, q, want)
		}
	}
	if method.Load() != http.MethodPost || contentType.Load() != "application/json" || authorization.Load() != "Bearer ours" {
		t.Error(method.Load(), contentType.Load(), authorization.Load())
	}
}

func TestHTTPAnswers(t *testing.T) {
	for answer, want := range map[string]Result{
		`{"ok": true}`:                   Success,
		`{"ok": true, "user": "alice"}`:  Success,
		`{"ok": true, "quota": 3}`:       Success,
		`{"ok": false}`:                  Failed,
		`{"ok": false, "user": "alice"}`: Failed,
		`{}`:                             Unavailable,
		`{"user": "alice"}`:              Unavailable,
		`{"ok": "true"}`:                 Unavailable,
		`{"ok": 1}`:                      Unavailable,
		`{"ok": null}`:                   Unavailable,
		`{"ok": true} {"ok": false}`:     Unavailable,
		``:                               Unavailable,
		`true`:                           Unavailable,
		`OK`:                             Unavailable,
		`500`:                            Unavailable,
		`204`:                            Unavailable,
		`403`:                            Unavailable,
		`302`:                            Unavailable,
		`{"ok": true` + strings.Repeat(" ", 1<<16) + `}`: Unavailable,
		`{"ok": true` + strings.Repeat(" ", 65000) + `}`: Success,
		`{"ok": true` + strings.Repeat(" ", 65524) + `}`: Success,     // 65536 bytes
		`{"ok": true` + strings.Repeat(" ", 65525) + `}`: Unavailable, // one past
		"\xff": Unavailable,
		`{"ok": true, "user": "alice", "user": {"a": 1}}`: Unavailable,
	} {
		h := httpService(t, HTTPOptions{}, func(w http.ResponseWriter, r *http.Request) {
			switch answer {
			case "500", "204", "403":
				w.WriteHeader(map[string]int{"500": 500, "204": 204, "403": 403}[answer])
			case "302":
				http.Redirect(w, r, "/elsewhere", http.StatusFound)
			default:
				io.WriteString(w, answer)
			}
		})
		s := testService(t, Options{Store: h})
		if _, o := converse(t, s, PLAIN, client, plainMessage("", "alice", "x")); o.Result != want || want == Success && o.User != "alice" {
			t.Errorf("%.60s: %v %q, want %v", answer, o.Result, o.User, want)
		}
	}
}

func TestHTTPServiceThatIgnoresActAsLetsNobodyActAsAnother(t *testing.T) {
	for _, answer := range []string{`{"ok": true}`, `{"ok": true, "user": "alice"}`} {
		h := httpService(t, HTTPOptions{Mechanisms: []string{PLAIN, XOAUTH2}}, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, answer) })
		s := testService(t, Options{Store: h})
		script{PLAIN, []string{"root\x00alice\x00x"}, nil, Failed, ""}.run(t, s, client)
		script{PLAIN, []string{"\x00alice\x00x"}, nil, Success, "alice"}.run(t, s, client)
		if strings.Contains(answer, "user") {
			script{XOAUTH2, []string{"user=root\x01auth=Bearer x\x01\x01", ""}, nil, Failed, ""}.run(t, s, client)
		}
	}
}

func TestSilentHTTPServiceIsUnavailableInTime(t *testing.T) {
	release := make(chan struct{})
	h := httpService(t, HTTPOptions{Timeout: 20 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	var log bytes.Buffer
	s := testService(t, Options{Store: h, Log: slog.New(slog.NewTextHandler(&log, nil))})
	script{PLAIN, []string{"\x00alice\x00verysecret"}, nil, Unavailable, ""}.run(t, s, client)
	if !strings.Contains(log.String(), "HTTP service") || strings.Contains(log.String(), "verysecret") {
		t.Errorf("log: %s", log.String())
	}
	// A service that is not there.
	gone, err := NewHTTP(HTTPOptions{URL: "http://127.0.0.1:1/"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.CheckPassword(context.Background(), Login{Mechanism: PLAIN, User: "alice", Password: "verysecret"}); err == nil || strings.Contains(err.Error(), "verysecret") {
		t.Error(err)
	}
}

func TestHTTPServiceInClearElsewhereIsRefused(t *testing.T) {
	for url, ok := range map[string]bool{
		"http://127.0.0.1:8080/auth": true, "http://[::1]/": true, "http://localhost/": true, "https://auth.example.org/": true,
		"http://auth.example.org/": false, "http://192.0.2.1/": false, "ftp://127.0.0.1/": false, "127.0.0.1:80": false, "": false, "http://": false,
	} {
		if _, err := NewHTTP(HTTPOptions{URL: url}); (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
	if _, err := NewHTTP(HTTPOptions{URL: "http://192.0.2.1/", Clear: true}); err != nil {
		t.Error(err)
	}
	if _, err := NewHTTP(HTTPOptions{URL: "https://x/", Mechanisms: []string{SCRAMSHA256}}); err == nil {
		t.Error("SCRAM over HTTP")
	}
}
