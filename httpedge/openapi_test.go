package httpedge

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/openapicheck"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

func loadOpenAPI(t testing.TB) *openapicheck.Doc {
	t.Helper()
	doc, err := openapicheck.Load(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// part gives an object of the document.
func part(t *testing.T, doc *openapicheck.Doc, ref string) map[string]any {
	t.Helper()
	object, ok := doc.At(ref).(map[string]any)
	if !ok {
		t.Fatalf("%s is not in the document", ref)
	}
	return object
}

func TestTheDocumentNamesEveryProblem(t *testing.T) {
	doc := loadOpenAPI(t)
	documented := part(t, doc, "#/x-problems")
	want := map[string]problemKind{otherProblem.reason: otherProblem}
	for _, k := range problemKinds {
		if other, twice := want[k.reason]; twice {
			t.Errorf("%q and %q are one reason", other.title, k.title)
		}
		want[k.reason] = k
	}
	for reason, k := range want {
		entry, _ := documented[reason].(map[string]any)
		statuses := []int{k.refused, k.later}
		slices.Sort(statuses)
		if got := fmt.Sprint(entry["status"]); entry["title"] != k.title || got != fmt.Sprint(slices.Compact(statuses)) {
			t.Errorf("%s: %v, and not %q with %v", reason, entry, k.title, statuses)
		}
		if text, _ := entry["description"].(string); text == "" {
			t.Errorf("%s has no description", reason)
		}
	}
	if len(documented) != len(want) {
		t.Errorf("%d reasons are documented, and there are %d", len(documented), len(want))
	}
	enum, _ := part(t, doc, "#/components/schemas/Problem/properties/reason")["enum"].([]any)
	for _, word := range enum {
		if _, known := want[word.(string)]; !known {
			t.Errorf("%v is no reason", word)
		}
	}
	if len(enum) != len(want) {
		t.Errorf("%d reasons are possible, and there are %d", len(enum), len(want))
	}
}

func TestTheDocumentHasTheMembersOfAMessage(t *testing.T) {
	doc := loadOpenAPI(t)
	for schema, want := range map[string][]string{
		"Message": messageMembers[:memberKey], "BatchLine": messageMembers, "Recipient": recipientMembers, "Client": clientMembers, "DSN": dsnMembers,
	} {
		got := slices.Sorted(maps.Keys(part(t, doc, "#/components/schemas/"+schema+"/properties")))
		if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, and not %q", schema, got, want)
		}
	}
	for ref, want := range map[string][]string{"DSN/properties/ret": retWords, "Notify/items": notifyWords} {
		if got := part(t, doc, "#/components/schemas/"+ref)["enum"]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, and not %v", ref, got, want)
		}
	}
	for ref, want := range map[string]int{
		"Address": MaxAddressBytes, "Message/properties/helo": MaxHeloBytes, "Client/properties/helo": MaxHeloBytes, "DSN/properties/envid": maxEnvIDBytes,
		"Recipient/properties/orcpt": maxORcptBytes, "IdempotencyKey": maxKeyBytes, "SMTPReply": MaxSMTPReplyBytes,
	} {
		if got := part(t, doc, "#/components/schemas/"+ref)["maxLength"]; got != json.Number(fmt.Sprint(want)) {
			t.Errorf("%s: %v, and not %d", ref, got, want)
		}
	}
}

func TestTheDocumentHasTheMembersOfAnEntry(t *testing.T) {
	doc := loadOpenAPI(t)
	for schema, v := range map[string]any{"QueueEntry": queue.Entry{}, "QueueRecipient": queue.EntryRcpt{}} {
		var want, required []string
		for i := range reflect.TypeOf(v).NumField() {
			name, options, _ := strings.Cut(reflect.TypeOf(v).Field(i).Tag.Get("json"), ",")
			want = append(want, name)
			if options == "" {
				required = append(required, name)
			}
		}
		object := part(t, doc, "#/components/schemas/"+schema)
		if got := slices.Sorted(maps.Keys(part(t, doc, "#/components/schemas/"+schema+"/properties"))); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s: %q, and not %q", schema, got, want)
		}
		if fmt.Sprint(object["required"]) != fmt.Sprint(required) {
			t.Errorf("%s: %v are required, and not %v", schema, object["required"], required)
		}
	}
}

func TestWhatTheDocumentAllowsIsWhatIsDecoded(t *testing.T) {
	doc := loadOpenAPI(t)
	limit := testLimits
	limit.Key = false
	for _, in := range []string{
		from(`["b@example.net"]`, `"raw":""`), from(`[]`, `"raw_base64":"YQ"`), from(`[]`, `"raw":"","raw_base64":""`), from(`[]`, `"helo":""`), from(`[7]`, `"raw":""`),
		from(`[{"address":"x","notify":["never"],"orcpt":"utf-8;é"}]`, `"raw":""`), from(`[{}]`, `"raw":""`), from(`[{"address":"x","notify":[]}]`, `"raw":""`),
		from(`[{"address":"x","notify":["delay","delay"]}]`, `"raw":""`), from(`[{"address":"x","orcpt":"x"}]`, `"raw":""`), `{"rcpt_to":[],"raw":""}`, `[]`,
		with(`"x":1`), with(`"idempotency_key":"k"`), with(`"smtputf8":1`), with(`"client":{"address":"::1"}`), with(`"client":{"address":"localhost"}`), with(`"client":{"helo":"x"}`),
		with(`"dsn":{"ret":"hdrs","envid":"e 1","notify":["success"]}`), with(`"dsn":{"ret":"HDRS"}`), with(`"dsn":{"envid":""}`), with(`"metadata":{"a":[]}`), with(`"metadata":7`),
		with(`"helo":null`), `{"mail_from":"` + strings.Repeat("a", MaxAddressBytes+1) + `","rcpt_to":[],"raw":""}`,
	} {
		decoded := decode(strings.NewReader(in), limit).err
		allowed := doc.CheckRequest("POST", "/v1/messages", http.Header{"Content-Type": {"application/json"}}, []byte(in))
		if (decoded == nil) != (allowed == nil) {
			t.Errorf("%.200s\ndecoded: %v\nallowed: %v", in, decoded, allowed)
		}
	}
}

// spoken is a server whose every request and answer is compared with the document.
type spoken struct {
	*edge
	doc *openapicheck.Doc
}

// good sends a request that the document allows; bad one that it may not. Both give answers that it allows.
func (s *spoken) good(status int, method, path, body string, headers ...string) (*http.Response, string) {
	s.Helper()
	if err := s.doc.CheckRequest(method, path, headerOf(headers), []byte(body)); err != nil {
		s.Error(err)
	}
	return s.bad(status, method, path, body, headers...)
}

func (s *spoken) bad(status int, method, path, body string, headers ...string) (*http.Response, string) {
	s.Helper()
	resp, answer := s.do(method, path, body, headers...)
	if resp.StatusCode != status {
		s.Errorf("%s %s: %d and not %d: %s", method, path, resp.StatusCode, status, answer)
	}
	if err := s.doc.CheckResponse(method, path, resp.StatusCode, resp.Header, []byte(answer)); err != nil {
		s.Errorf("%v\n%s", err, answer)
	}
	return resp, answer
}

func headerOf(fields []string) http.Header {
	header := http.Header{}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		header.Add(name, value)
	}
	return header
}

// shown is an inspector with one message.
type shown struct {
	queue.Inspector
	entry queue.Entry
}

func (s shown) Show(id envelope.ID) (queue.Entry, error) {
	if id != s.entry.ID {
		return queue.Entry{}, queue.ErrNotFound
	}
	return s.entry, nil
}

// Every schema of the document is met by a request or an answer here, and nothing that the server says is missing in it.
func TestTheServerDoesWhatTheDocumentSays(t *testing.T) {
	doc := loadOpenAPI(t)
	entry := queue.Entry{ID: testID, Arrived: testID.Time(), Next: testID.Time().Add(time.Minute), Metadata: json.RawMessage(`{"a":1}`),
		Recipients: []queue.EntryRcpt{{ForwardPath: "b@example.net", State: queue.Failed, Reply: "550 no"}}}
	s := &spoken{doc: doc, edge: serve(t, func(o *Options, _ *Listener, so *session.Options) {
		o.Inspector = shown{entry: entry}
		so.MaxMessageBytes = 1000
		so.Validators = []policy.Validator{says{policy.On(policy.AtRcpt), func(e *policy.Event) {
			switch {
			case strings.HasPrefix(string(e.Path.Mailbox), "no"):
				e.Refuse(550, 1, 1, "nobody")
			case strings.HasPrefix(string(e.Path.Mailbox), "later"):
				e.Refuse(451, 7, 1, "not now")
			}
		}}}
	})}
	full := `{"mail_from":"a@example.com","rcpt_to":["b@example.net","no@example.net",{"address":"c@example.net","notify":["delay"],"orcpt":"rfc822;x@example.com"}],
		"raw":"Subject: x\r\n\r\n","helo":"h.example","client":{"address":"192.0.2.7","helo":"c.example"},"smtputf8":true,"requiretls":true,
		"dsn":{"ret":"full","envid":"e","notify":["never"]},"metadata":{"a":{}}}`

	s.good(202, "POST", "/v1/messages", full, asJSON)
	s.good(202, "POST", "/v1/messages", simple, asJSON, "Idempotency-Key: k1", "Content-Encoding: identity")
	if resp, _ := s.good(202, "POST", "/v1/messages", simple, asJSON, `Idempotency-Key: k1`); resp.Header.Get("Idempotency-Replayed") != "true" {
		t.Error("not replayed")
	}
	s.good(422, "POST", "/v1/messages", full, asJSON, `Idempotency-Key: k1`)
	s.good(200, "POST", "/v1/messages?validate=only", simple, asJSON)
	s.good(202, "POST", "/v1/messages", "Subject: x\r\n\r\n", rfc822, fromHeader, toHeader, "X-Ehlo: h.example")
	s.good(202, "POST", "/v1/messages", "Subject: x\r\n\r\n", rfc822, fromHeader, toHeader, "X-Ehlo: h.example", "X-Client-Address: 192.0.2.7")
	s.good(403, "POST", "/v1/messages", strings.Replace(simple, `"b@`, `"no@`, 1), asJSON)
	s.good(503, "POST", "/v1/messages", strings.Replace(simple, `"b@`, `"later@`, 1), asJSON)
	s.good(413, "POST", "/v1/messages", from(`["b@example.net"]`, `"raw":"`+strings.Repeat("x", 1001)+`"`), asJSON)
	s.good(422, "POST", "/v1/messages", from(`[]`, `"raw":""`), asJSON)
	s.bad(400, "POST", "/v1/messages", `{"x":1}`, asJSON)
	s.bad(400, "POST", "/v1/messages", simple, asJSON, "Idempotency-Key: a b")
	s.bad(400, "POST", "/v1/messages", simple, asJSON, "Content-Encoding: gzip")
	s.bad(415, "POST", "/v1/messages", simple, asJSON, "Content-Encoding: br")
	s.bad(415, "POST", "/v1/messages", simple, "Content-Type: text/plain")
	s.bad(405, "DELETE", "/v1/messages", "")

	s.good(200, "POST", "/v1/messages:batch", batchLines(full, strings.Replace(simple, "{", `{"idempotency_key":"k1",`, 1),
		strings.Replace(simple, `"b@`, `"later@`, 1)), asNDJSON)
	s.bad(200, "POST", "/v1/messages:batch", "{}\n"+simple+"\n[", asNDJSON)
	s.bad(415, "POST", "/v1/messages:batch", simple, asJSON)
	s.bad(405, "GET", "/v1/messages:batch", "")

	s.good(200, "GET", "/v1/messages/"+testID.String(), "")
	s.good(404, "GET", "/v1/messages/01jd3z8v6n3m5f7q9r2t4w6y8b", "")
	s.good(404, "GET", "/v1/messages/x", "")
	s.bad(405, "POST", "/v1/messages/x", "")
	s.good(200, "GET", "/openapi.json", "")
	s.bad(405, "POST", "/openapi.json", "")

	s.good(200, "POST", "/", "Subject: x\r\n\r\n", rfc822, fromHeader, toHeader, "X-Ehlo: h.example")
	s.good(500, "POST", "/", "Subject: x\r\n\r\n", rfc822, "X-Envelope-Recipient: "+b64("no@example.net"))
	s.good(503, "POST", "/", "Subject: x\r\n\r\n", rfc822, "X-Envelope-Recipient: "+b64("later@example.net"))
	s.good(413, "POST", "/", strings.Repeat("x", 1001), rfc822, toHeader)
	s.bad(400, "POST", "/", "x", rfc822)
	s.bad(400, "POST", "/", "x", rfc822, "X-Envelope-Recipient: !")
	s.bad(405, "PUT", "/", "x")
	s.bad(415, "POST", "/", "x", asJSON, toHeader)

	if unused := doc.Unused(); len(unused) > 0 {
		t.Errorf("nothing has met %q", unused)
	}
}

func TestCredentialsAreAskedForAsTheDocumentSays(t *testing.T) {
	s := &spoken{doc: loadOpenAPI(t), edge: serve(t, func(_ *Options, l *Listener, _ *session.Options) {
		l.AuthRequired, l.Bearer, l.Basic = true, true, true
	})}
	s.good(401, "POST", "/v1/messages", simple, asJSON)
	s.good(401, "POST", "/v1/messages:batch", batchLines(simple), asNDJSON)
	s.good(401, "GET", "/v1/messages/"+testID.String(), "")
	s.good(401, "POST", "/", "x", rfc822, toHeader)
	s = &spoken{doc: loadOpenAPI(t), edge: serve(t, func(_ *Options, l *Listener, _ *session.Options) { l.MayPost = nil })}
	s.bad(403, "POST", "/v1/messages", simple, asJSON)
	s.bad(403, "POST", "/", "x", rfc822, toHeader)
}

// batchLines makes lines of messages, whatever line ends their JSON has.
func batchLines(messages ...string) string {
	for i := range messages {
		messages[i] = strings.Join(strings.Fields(strings.ReplaceAll(messages[i], "Subject: x", "Subject:x")), "")
	}
	return strings.Join(messages, "\n") + "\n"
}
