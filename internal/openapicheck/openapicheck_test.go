package openapicheck

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

const document = `{
	"openapi": "3.1.0",
	"paths": {
		"/things": {
			"post": {
				"parameters": [{"name": "X-Count", "in": "header", "required": true, "schema": {"type": "integer", "minimum": 1}}, {"$ref": "#/components/parameters/dry"}],
				"requestBody": {"required": true, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}, "example": {"name": "x"}},
					"application/x-ndjson": {"schema": {"$ref": "#/components/schemas/Thing"}}, "text/plain": {}}},
				"responses": {
					"202": {"description": "", "headers": {"Location": {"required": true, "schema": {"type": "string", "pattern": "^/things/"}}, "X-Left": {"schema": {"type": "integer"}}},
						"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}}},
					"204": {"description": ""},
					"405": {"$ref": "#/components/responses/Method"}
				}
			}
		},
		"/things/{id}": {"parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "string", "maxLength": 3}}],
			"get": {"responses": {"200": {"description": "", "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Answer"}}}}}}},
		"/things/all": {"get": {"responses": {"default": {"description": ""}}}}
	},
	"components": {
		"parameters": {"dry": {"name": "dry", "in": "query", "schema": {"type": "boolean"}}},
		"responses": {"Method": {"description": "", "headers": {"Allow": {"required": true, "schema": {"type": "string"}}}}},
		"schemas": {
			"Thing": {"type": "object", "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^[a-z]*$"}, "sizes": {"type": "array", "items": {"type": "number",
				"minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 2, "uniqueItems": true}, "when": {"type": "string", "format": "date-time"}, "kind": {"enum": ["a", 1]},
				"from": {"type": "string", "format": "ip"}, "fixed": {"const": true}, "none": {"type": ["null", "boolean"]}, "free": {"type": "object", "additionalProperties": {"type": "integer"}}},
				"required": ["name"], "additionalProperties": false, "examples": [{"name": "abc"}]},
			"Answer": {"oneOf": [{"$ref": "#/components/schemas/Thing"}, {"$ref": "#/components/schemas/Other"}]},
			"Other": {"type": "object", "required": ["other"], "properties": {"other": {"type": "integer"}}}
		}
	}
}`

func load(t *testing.T) *Doc {
	t.Helper()
	d, err := Load([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// says checks an error's text; an empty want is for none.
func says(t *testing.T, what string, err error, want string) {
	t.Helper()
	switch {
	case err == nil && want != "":
		t.Errorf("%s: accepted, and not refused with %q", what, want)
	case err != nil && want == "":
		t.Errorf("%s: %v", what, err)
	case err != nil && !strings.Contains(err.Error(), want):
		t.Errorf("%s: %v, and not %q", what, err, want)
	}
}

func TestDocumentsWithFaultsAreRefused(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{`"3.1.0"`, `"3.0.0"`, "OpenAPI \"3.0.0\""},
		{`"maxLength": 3, "pattern"`, `"maxLenght": 3, "pattern"`, "/maxLenght: keyword is not known"},
		{`"^[a-z]*$"`, `"["`, "missing closing ]"},
		{`"#/components/schemas/Thing"`, `"#/components/schemas/Thin"`, "leads nowhere"},
		{`{"$ref": "#/components/parameters/dry"}`, `{"$ref": "#/components/parameters/wet"}`, "leads nowhere"},
		{`"required": ["name"]`, `"required": ["nam"]`, "nam is no property"},
		{`[{"name": "abc"}]`, `[{"name": "abcd"}]`, "longer than 3"},
		{`"example": {"name": "x"}`, `"example": {"nam": "x"}`, "name is missing"},
		{`"name": "id"`, `"name": "ID"`, `path parameter "id" is not declared`},
		{`"204"`, `"2XX"`, "status is not known"},
		{`"requestBody"`, `"body"`, "keyword is not known"},
		{`"openapi"`, `openapi`, "invalid character"},
	} {
		text := strings.Replace(document, c.old, c.new, 1)
		if text == document {
			t.Fatalf("%s is not in the document", c.old)
		}
		_, err := Load([]byte(text))
		says(t, c.new, err, c.want)
	}
}

func TestBodiesAreFittedIntoSchemas(t *testing.T) {
	d := load(t)
	for body, want := range map[string]string{
		`{"name":"abc","sizes":[1.5,2],"when":"2026-01-02T03:04:05.678Z","kind":"a","fixed":true,"none":null,"free":{"x":1},"from":"::1"}`: "",
		`{"name":"x","kind":1,"none":false}`:     "",
		`{"name":"x","kind":"b"}`:                "is not in",
		`[]`:                                     "not of type object",
		`{"name":"x"} {}`:                        "more than one JSON value",
		`{"name":"x"`:                            "unexpected EOF",
		`{}`:                                     "name is missing",
		`{"name":"x","y":1}`:                     `"y" is not in the schema`,
		`{"name":7}`:                             "body/name: 7 is not of type string",
		`{"name":""}`:                            "shorter than 1",
		`{"name":"éééé"}`:                        "longer than 3",
		`{"name":"A"}`:                           "does not match",
		`{"name":"x","sizes":[]}`:                "less than 1",
		`{"name":"x","sizes":[1,2,3]}`:           "more than 2",
		`{"name":"x","sizes":[1,1]}`:             "stands twice",
		`{"name":"x","sizes":[-1]}`:              "/sizes/0: -1 is less than 0",
		`{"name":"x","sizes":[10]}`:              "more than 9",
		`{"name":"x","sizes":["1"]}`:             "not of type number",
		`{"name":"x","when":"2026-01-02 03:04"}`: "cannot parse",
		`{"name":"x","from":"192.0.2"}`:          "IPv4 address too short",
		`{"name":"x","fixed":false}`:             "is not true",
		`{"name":"x","none":1}`:                  "not of type",
		`{"name":"x","free":{"x":1.5}}`:          "not of type integer",
	} {
		err := d.CheckRequest("POST", "/things", http.Header{"Content-Type": {"application/json; charset=utf-8"}, "X-Count": {"1"}}, []byte(body))
		says(t, body, err, want)
	}
}

func TestRequestsAreChecked(t *testing.T) {
	d := load(t)
	const good = `{"name":"x"}`
	for _, c := range []struct{ method, path, contentType, count, body, want string }{
		{"POST", "/things?dry=true", "application/json", "3", good, ""},
		{"POST", "/things", "text/plain", "3", "anything", ""},
		{"POST", "/things", "application/x-ndjson", "3", good + "\n\r\n" + good + "\n", ""},
		{"POST", "/things", "application/x-ndjson", "3", good + "\n{}", "line 2: body: name is missing"},
		{"POST", "/things", "application/json", "0", good, "X-Count: body: 0 is less than 1"},
		{"POST", "/things", "application/json", "x", good, `"x" is not of type integer`},
		{"POST", "/things", "application/json", "", good, "X-Count is missing"},
		{"POST", "/things?dry=1", "application/json", "1", good, "dry: body"},
		{"POST", "/things?wet=1", "application/json", "1", good, `query parameter "wet" is not known`},
		{"POST", "/things", "", "1", good, "no Content-Type"},
		{"POST", "/things", "image/png", "1", good, `media type "image/png"`},
		{"POST", "/thing", "application/json", "1", good, "no path"},
		{"PUT", "/things", "application/json", "1", good, "no such method"},
		{"GET", "/things/abc", "", "", "", ""},
		{"GET", "/things/abcd", "", "", "", "longer than 3"},
		{"GET", "/things/all", "", "", "", ""},
		{"GET", "/things/all", "", "", "x", "a body"},
	} {
		header := http.Header{}
		if c.contentType != "" {
			header.Set("Content-Type", c.contentType)
		}
		if c.count != "" {
			header.Set("X-Count", c.count)
		}
		says(t, c.method+" "+c.path+" "+c.body, d.CheckRequest(c.method, c.path, header, []byte(c.body)), c.want)
	}
}

func TestAnswersAreChecked(t *testing.T) {
	d := load(t)
	for _, c := range []struct {
		method, path string
		status       int
		header       string
		body, want   string
	}{
		{"POST", "/things", 202, "Location: /things/1|X-Left: 7|Content-Type: application/json|Date: x", `{"name":"x"}`, ""},
		{"POST", "/things?dry=true", 202, "Location: /things/1|Content-Type: application/json", `{"other":1}`, ""},
		{"POST", "/things", 202, "Location: /things/1|Content-Type: application/json", `{"name":"x","other":1}`, ""},
		{"POST", "/things", 202, "Location: /things/1|Content-Type: application/json", `{"name":7}`, "fits 0 schemas"},
		{"POST", "/things", 202, "Content-Type: application/json", `{"other":1}`, "Location is missing"},
		{"POST", "/things", 202, "Location: /x|Content-Type: application/json", `{"other":1}`, "does not match"},
		{"POST", "/things", 202, "Location: /things/1|X-Left: seven|Content-Type: application/json", `{"other":1}`, "X-Left: body"},
		{"POST", "/things", 202, "Location: /things/1|X-Right: 7|Content-Type: application/json", `{"other":1}`, "header field X-Right is not in the document"},
		{"POST", "/things", 202, "Location: /things/1|Content-Type: text/plain", `x`, `media type "text/plain"`},
		{"POST", "/things", 202, "Location: /things/1", `{"other":1}`, "Content-Type"},
		{"POST", "/things", 204, "", "", ""},
		{"POST", "/things", 204, "", "x", "a body, of 1 bytes"},
		{"POST", "/things", 201, "", "", "201: status is not in the document"},
		{"PUT", "/things", 405, "Allow: POST", "", ""},
		{"PUT", "/things", 405, "", "", "Allow is missing"},
		{"PUT", "/things", 200, "", "", "no such method"},
		{"GET", "/things/1", 200, "Content-Type: application/problem+json", `{"other":1}`, ""},
		{"GET", "/things/all", 418, "", "", ""},
		{"HEAD", "/things/1", 405, "", "", "status is not in the document"},
		{"GET", "/nothing", 200, "", "", "no path"},
	} {
		header := http.Header{}
		for field := range strings.SplitSeq(c.header, "|") {
			if name, value, ok := strings.Cut(field, ": "); ok {
				header.Add(name, value)
			}
		}
		says(t, c.method+" "+c.path+" "+c.header+" "+c.body, d.CheckResponse(c.method, c.path, c.status, header, []byte(c.body)), c.want)
	}
}

func TestOneOfIsExactlyOne(t *testing.T) {
	text := strings.Replace(document, `"required": ["other"], `, "", 1)
	d, err := Load([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	err = d.CheckResponse("GET", "/things/1", 200, http.Header{"Content-Type": {"application/problem+json"}}, []byte(`{"name":"x"}`))
	says(t, "both", err, "fits 2 schemas")
}

func TestUnusedSchemasAreNamed(t *testing.T) {
	d := load(t)
	if got := d.Unused(); !slices.Equal(got, []string{"Answer", "Other", "Thing"}) {
		t.Errorf("at first %q", got)
	}
	header := http.Header{"Content-Type": {"application/problem+json"}}
	d.CheckResponse("GET", "/things/1", 200, header, []byte(`{"other":"x"}`))
	if got := d.Unused(); len(got) != 3 {
		t.Errorf("after an answer that did not fit %q", got)
	}
	d.CheckResponse("GET", "/things/1", 200, header, []byte(`{"other":1}`))
	if got := d.Unused(); !slices.Equal(got, []string{"Thing"}) {
		t.Errorf("in the end %q", got)
	}
	if got, _ := d.At("#/paths/~1things~1{id}/get/responses/200/description").(string); got != "" {
		t.Errorf("%q", got)
	}
}
