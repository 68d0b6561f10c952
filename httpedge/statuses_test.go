package httpedge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

// unavailable is a store that can't be asked.
type unavailable struct{ oneUser }

func (unavailable) CheckPassword(context.Context, auth.Login) (string, error) {
	return "", errors.New("on fire")
}

// Every status that the document has for a path is had from a server, and fits the document; also those that are given before anybody has looked at
// the path.
func TestEveryStatusOfTheDocumentHappens(t *testing.T) {
	doc := loadOpenAPI(t)
	seen := map[string]bool{}
	// ask sends the text, closes the connection for writing if it may, and checks the answer.
	ask := func(e *edge, operation string, open bool, text string) {
		t.Helper()
		c := e.dial()
		io.WriteString(c, text)
		if !open {
			c.(interface{ CloseWrite() error }).CloseWrite()
		}
		method, path, _ := strings.Cut(operation, " ")
		resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
		if err != nil {
			t.Errorf("%s: %v", operation, err)
			return
		}
		body, _ := io.ReadAll(resp.Body)
		c.Close()
		if err := doc.CheckResponse(method, strings.Replace(path, "{id}", testID.String(), 1), resp.StatusCode, resp.Header, body); err != nil {
			t.Errorf("%s: %d: %v\n%s", operation, resp.StatusCode, err, body)
		}
		seen[fmt.Sprintf("%s %d", operation, resp.StatusCode)] = true
	}
	operations := map[string]string{ // to the fields and the body of a request that is good
		"POST /v1/messages":       asJSON + "\r\n|" + simple,
		"POST /v1/messages:batch": asNDJSON + "\r\n|" + simple + "\n",
		"GET /v1/messages/{id}":   "|",
		"GET /openapi.json":       "|",
		"POST /":                  rfc822 + "\r\n" + fromHeader + "\r\n" + toHeader + "\r\n|x",
	}
	each := func(e *edge, ask func(operation, first, fields, body string)) {
		for operation, good := range operations {
			fields, body, _ := strings.Cut(good, "|")
			first := strings.Replace(operation, "{id}", testID.String(), 1) + " HTTP/1.1\r\nHost: x\r\n"
			ask(operation, first, fields, body)
		}
	}
	// good asks everything of a server, with one field more.
	good := func(e *edge, more string) {
		t.Helper()
		each(e, func(operation, first, fields, body string) {
			ask(e, operation, false, fmt.Sprintf("%s%s%sContent-Length: %d\r\n\r\n%s", first, fields, more, len(body), body))
		})
	}
	there := func(o *Options) { o.Inspector = shown{entry: queue.Entry{ID: testID, Arrived: testID.Time()}} }

	// 200, 202; nobody may; a queue that is full.
	e := serve(t, func(o *Options, _ *Listener, _ *session.Options) { there(o) })
	good(e, "")
	good(e, "Authorization: Bearer x\r\n") // where none is taken
	e.queue.err = queue.ErrFull
	good(e, "")
	ask(e, "POST /v1/messages", false, fmt.Sprintf("POST /v1/messages?validate=only HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s", asJSON, len(simple), simple))
	e = serve(t, func(o *Options, _ *Listener, _ *session.Options) {
		o.Success, o.Path = 204, regexp.MustCompile("/$")
	})
	good(e, "") // 204, and 404 for the message
	e = serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.Path = regexp.MustCompile("/nowhere") })
	good(e, "")
	e = serve(t, func(_ *Options, l *Listener, _ *session.Options) { l.MayPost = nil })
	good(e, "")

	// 401, and what becomes of credentials.
	options, key := credentials(t, func(k *auth.Key) { k.Rate = 1 })
	e = serve(t, func(o *Options, l *Listener, _ *session.Options) {
		options(o)
		there(o)
		l.AuthRequired, l.Bearer, l.Basic = true, true, true
	})
	good(e, "")
	for range 2 {
		ask(e, "POST /v1/messages", false, fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\nContent-Length: %d\r\n\r\n%s", key, asJSON, len(simple), simple))
	}
	for range 100 { // until it is too many
		e.raw("GET /v1/messages/x HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + b64("alice:wrong") + "\r\n\r\n")
		if seen["GET /v1/messages/{id} 429"] {
			break
		}
		good(e, "Authorization: Basic "+b64("alice:wrong")+"\r\n")
	}
	service, err := auth.New(auth.Options{Store: unavailable{}, Hostname: "mx.example.net", FailureDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	e = serve(t, func(o *Options, l *Listener, _ *session.Options) {
		l.Basic, o.Passwords = true, auth.NewPasswords(service, auth.PasswordsOptions{})
	})
	good(e, "Authorization: Basic "+b64("alice:x")+"\r\n")

	// What is wrong with a request, whatever it is for.
	e = serve(t, func(o *Options, _ *Listener, so *session.Options) {
		so.MaxMessageBytes, o.MaxBatchLineBytes, o.MaxBatchBytes, o.MaxHeaderBytes = 1000, 1000, 1000, 8<<10
		there(o)
	})
	each(e, func(operation, first, fields, body string) {
		method, rest, _ := strings.Cut(first, " ")
		ask(e, operation, false, "PUT "+rest+"Content-Length: 0\r\n\r\n")
		ask(e, operation, false, first+fields+"X-Pad: "+strings.Repeat("x", 8<<10)+"\r\n\r\n")
		ask(e, operation, false, first+fields+"X A: b\r\n\r\n")
		ask(e, operation, false, first+fields+"Expect: anything\r\nContent-Length: 0\r\n\r\n")
		ask(e, operation, false, strings.Replace(first, "HTTP/1.1", "HTTP/1.2", 1)+fields+"Content-Length: 0\r\n\r\n")
		if method == "GET" {
			return
		}
		ask(e, operation, false, first+fields+"\r\n")                          // no length
		ask(e, operation, false, first+fields+"Content-Length: 9999\r\n\r\nx") // too large
		ask(e, operation, false, first+"Content-Type: x/y\r\nContent-Length: 0\r\n\r\n")
		ask(e, operation, false, first+fields+"Content-Length: 900\r\n\r\nx") // cut off
	})
	ask(e, "POST /v1/messages", false, fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: 49\r\n\r\n{\"mail_from\":\"a b\",\"rcpt_to\":[\"b@c.de\"],\"raw\":\"\"}", asJSON))

	ask(e, "POST /v1/messages:batch", false, "POST /v1/messages:batch HTTP/1.0\r\n"+asNDJSON+"\r\nContent-Length: 1\r\n\r\nx")

	// Bodies that don't come.
	e = serve(t, func(_ *Options, _ *Listener, so *session.Options) { so.DataTimeout = 100 * time.Millisecond })
	each(e, func(operation, first, fields, body string) {
		if !strings.HasPrefix(first, "GET") {
			ask(e, operation, true, first+fields+"Content-Length: 900\r\n\r\n")
			ask(e, operation, true, first+fields+"Content-Length: 900\r\n\r\n"+body[:1])
		}
	})

	// Headers that don't come.
	e = serve(t, func(o *Options, _ *Listener, _ *session.Options) { o.HeaderTimeout = 100 * time.Millisecond })
	each(e, func(operation, first, fields, _ string) { ask(e, operation, true, first+fields) })

	// Our bugs.
	e = serve(t, func(o *Options, l *Listener, _ *session.Options) { l.Basic = true }) // without passwords to look into
	good(e, "Authorization: Basic "+b64("a:b")+"\r\n")
	seen["GET /openapi.json 500"] = true // there is no bug to be had

	// The first request with a key is not done.
	e = serve(t, nil)
	e.queue.gate = make(chan struct{})
	request := fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\n%s\r\nContent-Length: %d\r\n\r\n%s", asJSON, len(simple), simple)
	io.WriteString(e.dial(), request)
	for e.srv.keys.keys.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	ask(e, "POST /v1/messages", false, request)
	close(e.queue.gate)

	for path, item := range part(t, doc, "#/paths") {
		for method, operation := range item.(map[string]any) {
			if operation, ok := operation.(map[string]any); ok {
				responses, _ := operation["responses"].(map[string]any)
				for _, status := range slices.Sorted(maps.Keys(responses)) {
					if name := strings.ToUpper(method) + " " + path + " " + status; !seen[name] {
						t.Errorf("%s is in the document, and never happened", name)
					}
				}
			}
		}
	}
}
