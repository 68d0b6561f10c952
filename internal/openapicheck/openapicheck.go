// Package openapicheck compares what an HTTP server takes and gives with an OpenAPI 3.1 document, so that the document can't say one thing
// and the server do another. Tests use it and nothing else does.
//
// It knows the part of OpenAPI and JSON Schema that our document is written in, and refuses a document with a keyword beyond that: a
// keyword that nobody looks at would be a promise that nobody checks. It is stricter than OpenAPI where that finds mistakes: an answer may
// have no status, header field and media type that the document does not name.
//
// Bodies are checked when they are JSON (any type that ends with json), or NDJSON: application/x-ndjson, whose schema is that of one line.
package openapicheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Doc is a document. Any goroutine.
type Doc struct {
	root map[string]any
	mu   sync.Mutex
	used map[string]bool // names of component schemas that something has fitted
}

// Load reads a document, and checks that its references lead somewhere, that it has no keyword which is not known here, and that its
// examples fit their schemas.
func Load(text []byte) (*Doc, error) {
	root, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("openapicheck: %w", err)
	}
	object, ok := root.(map[string]any)
	if !ok {
		return nil, errors.New("openapicheck: no object")
	}
	d := &Doc{root: object, used: map[string]bool{}}
	if version, _ := object["openapi"].(string); !strings.HasPrefix(version, "3.1.") {
		return nil, fmt.Errorf("openapicheck: OpenAPI %q", version)
	}
	var faults []error
	for name, schema := range d.components("schemas") {
		faults = append(faults, d.checkSchema(schema, "#/components/schemas/"+name)...)
	}
	for _, kind := range []string{"responses", "parameters", "headers"} {
		for name, part := range d.components(kind) {
			faults = append(faults, d.checkPart(part, "#/components/"+kind+"/"+name)...)
		}
	}
	for path, item := range child(object, "paths") {
		faults = append(faults, d.checkPart(item, "#/paths/"+path)...)
	}
	for path, item := range child(object, "paths") {
		for _, name := range pathNames(path) {
			if !declares(d, item, name) {
				faults = append(faults, fmt.Errorf("%s: path parameter %q is not declared", path, name))
			}
		}
	}
	clear(d.used) // by examples
	return d, errors.Join(faults...)
}

// decode reads one JSON value; numbers stay as they are written.
func decode(text []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}

func child(v any, name string) map[string]any {
	object, _ := v.(map[string]any)
	inner, _ := object[name].(map[string]any)
	return inner
}

func (d *Doc) components(kind string) map[string]any { return child(d.root["components"], kind) }

// resolve follows a $ref.
func (d *Doc) resolve(v any) (map[string]any, error) {
	for range 10 {
		object, ok := v.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%v is no object", v)
		}
		ref, ok := object["$ref"].(string)
		if !ok {
			return object, nil
		}
		if v = d.at(ref); v == nil {
			return nil, fmt.Errorf("$ref %q leads nowhere", ref)
		}
	}
	return nil, errors.New("$ref goes round in a circle")
}

// at gives what a reference within the document leads to (RFC 6901 §6), nil when that is nothing.
func (d *Doc) at(ref string) any {
	rest, ok := strings.CutPrefix(ref, "#/")
	if !ok {
		return nil
	}
	var v any = d.root
	for _, step := range strings.Split(rest, "/") {
		object, _ := v.(map[string]any)
		v = object[strings.NewReplacer("~1", "/", "~0", "~").Replace(step)]
	}
	return v
}

// At gives the part of the document that a reference such as "#/info/title" leads to, nil when that is nothing. Objects are
// map[string]any, numbers json.Number.
func (d *Doc) At(ref string) any { return d.at(ref) }

// Unused gives the names of the component schemas that no request or answer has fitted yet, sorted.
func (d *Doc) Unused() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.components("schemas") {
		if !d.used[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// partKeywords are those of everything that is not a schema.
var partKeywords = strings.Fields(`$ref summary description operationId tags security parameters requestBody responses headers content schema example examples
	required name in get post head put delete value 200 202 204 400 401 403 404 405 408 409 411 413 415 417 422 429 431 500 503 505 default`)

// checkPart looks at a path item, an operation, a response and the like, and all schemas and examples in them.
func (d *Doc) checkPart(v any, at string) (faults []error) {
	object, ok := v.(map[string]any)
	if !ok {
		return []error{fmt.Errorf("%s: no object", at)}
	}
	if _, err := d.resolve(object); err != nil {
		return []error{fmt.Errorf("%s: %w", at, err)}
	}
	for key, inner := range object {
		here := at + "/" + key
		switch {
		case !slices.Contains(partKeywords, key):
			faults = append(faults, fmt.Errorf("%s: keyword is not known", here))
		case key == "schema":
			faults = append(faults, d.checkSchema(inner, here)...)
			faults = append(faults, d.checkExamples(object, inner, here)...)
		case key == "content", key == "headers":
			for name, part := range child(object, key) {
				faults = append(faults, d.checkPart(part, here+"/"+name)...)
			}
		case key == "parameters":
			list, _ := inner.([]any)
			for i, part := range list {
				faults = append(faults, d.checkPart(part, here+"/"+strconv.Itoa(i))...)
			}
		case key == "responses":
			for status, part := range child(object, key) {
				if !slices.Contains(partKeywords, status) {
					faults = append(faults, fmt.Errorf("%s/%s: status is not known", here, status))
				}
				faults = append(faults, d.checkPart(part, here+"/"+status)...)
			}
		case slices.Contains([]string{"get", "post", "head", "put", "delete", "requestBody"}, key):
			faults = append(faults, d.checkPart(inner, here)...)
		}
	}
	return faults
}

// checkExamples fits a part's examples into its schema.
func (d *Doc) checkExamples(part map[string]any, schema any, at string) (faults []error) {
	try := func(name string, v any) {
		if err := d.fit(schema, v, ""); err != nil {
			faults = append(faults, fmt.Errorf("%s: example %s: %w", at, name, err))
		}
	}
	if v, ok := part["example"]; ok {
		try("", v)
	}
	for name, example := range child(part, "examples") {
		if object, ok := example.(map[string]any); ok {
			try(name, object["value"])
		}
	}
	return faults
}

func pathNames(path string) (names []string) {
	for _, step := range strings.Split(path, "/") {
		if strings.HasPrefix(step, "{") && strings.HasSuffix(step, "}") {
			names = append(names, step[1:len(step)-1])
		}
	}
	return names
}

func declares(d *Doc, item any, name string) bool {
	list, _ := item.(map[string]any)["parameters"].([]any)
	return slices.ContainsFunc(list, func(p any) bool {
		object, err := d.resolve(p)
		return err == nil && object["in"] == "path" && object["name"] == name
	})
}

// operation finds what the document says of a path and of a method there; op is nil when the path has no such method. values are the
// path's parameters.
func (d *Doc) operation(method, path string) (item map[string]any, op map[string]any, values map[string]string, err error) {
	path, _, _ = strings.Cut(path, "?")
	best := ""
	for template := range child(d.root, "paths") {
		// A path without parameters goes before one with some.
		if v, ok := matchPath(template, path); ok && (best == "" || len(v) == 0) {
			best, values = template, v
		}
	}
	if best == "" {
		return nil, nil, nil, fmt.Errorf("openapicheck: no path for %s", path)
	}
	item = child(child(d.root, "paths"), best)
	op = child(item, strings.ToLower(method))
	return item, op, values, nil
}

func matchPath(template, path string) (values map[string]string, ok bool) {
	want, got := strings.Split(template, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return nil, false
	}
	values = map[string]string{}
	for i, step := range want {
		if strings.HasPrefix(step, "{") && got[i] != "" {
			value, err := url.PathUnescape(got[i])
			if err != nil {
				return nil, false
			}
			values[step[1:len(step)-1]] = value
		} else if step != got[i] {
			return nil, false
		}
	}
	return values, true
}

// CheckRequest says what a request has that the document does not allow: an error for each fault, joined. path may have a query. The body
// is that without its content coding. Header fields that the document does not name are not looked at.
func (d *Doc) CheckRequest(method, path string, header http.Header, body []byte) error {
	item, op, values, err := d.operation(method, path)
	if err != nil {
		return err
	}
	where := method + " " + path
	if op == nil {
		return fmt.Errorf("openapicheck: %s: no such method", where)
	}
	_, rawQuery, _ := strings.Cut(path, "?")
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return fmt.Errorf("openapicheck: %s: %w", where, err)
	}
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("openapicheck: %s: "+format, append([]any{where}, args...)...))
	}
	for _, source := range []map[string]any{item, op} {
		list, _ := source["parameters"].([]any)
		for _, p := range list {
			param, err := d.resolve(p)
			if err != nil {
				fault("%w", err)
				continue
			}
			name, _ := param["name"].(string)
			var got []string
			switch param["in"] {
			case "path":
				got = []string{values[name]}
			case "query":
				got = query[name]
				query.Del(name)
			case "header":
				got = header.Values(name)
			}
			if len(got) == 0 && param["required"] == true {
				fault("%s is missing", name)
			}
			for _, value := range got {
				if err := d.fit(param["schema"], d.fromText(param["schema"], value), ""); err != nil {
					fault("%s: %w", name, err)
				}
			}
		}
	}
	for name := range query {
		fault("query parameter %q is not known", name)
	}
	rule := child(op, "requestBody")
	switch {
	case rule == nil && len(body) > 0:
		fault("a body")
	case rule != nil && header.Get("Content-Type") == "" && rule["required"] == true:
		fault("no Content-Type")
	case rule != nil && header.Get("Content-Type") != "":
		if err := d.content(child(rule, "content"), header.Get("Content-Type"), body); err != nil {
			fault("%w", err)
		}
	}
	return errors.Join(faults...)
}

// ofHTTP are header fields of an answer that need not be in the document, since HTTP says all there is to say about them.
var ofHTTP = []string{"Connection", "Content-Length", "Content-Type", "Date", "Keep-Alive", "Server", "Trailer", "Transfer-Encoding", "Vary"}

// CheckResponse says what an answer to a request with that method and path has that the document does not allow: an error for each fault,
// joined. A method that the path does not have must be answered with the 405 that its other methods have.
func (d *Doc) CheckResponse(method, path string, status int, header http.Header, body []byte) error {
	item, op, _, err := d.operation(method, path)
	if err != nil {
		return err
	}
	where := fmt.Sprintf("%s %s: %d", method, path, status)
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("openapicheck: %s: "+format, append([]any{where}, args...)...))
	}
	if op == nil {
		if status != http.StatusMethodNotAllowed {
			fault("no such method, and not 405")
		}
		for _, name := range []string{"post", "get"} {
			if other := child(item, name); other != nil {
				op = other
				break
			}
		}
	}
	rule, err := d.resolve(orNil(child(op, "responses")[strconv.Itoa(status)], child(op, "responses")["default"]))
	if err != nil {
		fault("status is not in the document")
		return errors.Join(faults...)
	}
	fields := child(rule, "headers")
	known := slices.Clone(ofHTTP)
	for name, h := range fields {
		known = append(known, http.CanonicalHeaderKey(name))
		object, err := d.resolve(h)
		if err != nil {
			fault("%w", err)
			continue
		}
		values := header.Values(name)
		if len(values) == 0 && object["required"] == true {
			fault("%s is missing", name)
		}
		for _, value := range values {
			if err := d.fit(object["schema"], d.fromText(object["schema"], value), ""); err != nil {
				fault("%s: %w", name, err)
			}
		}
	}
	for name := range header {
		if !slices.Contains(known, http.CanonicalHeaderKey(name)) {
			fault("header field %s is not in the document", name)
		}
	}
	content := child(rule, "content")
	switch {
	case method == http.MethodHead:
		if len(body) > 0 {
			fault("a body")
		}
	case len(content) == 0 && len(body) > 0:
		fault("a body, of %d bytes", len(body))
	case len(content) > 0:
		if err := d.content(content, header.Get("Content-Type"), body); err != nil {
			fault("%w", err)
		}
	}
	return errors.Join(faults...)
}

func orNil(a, b any) any {
	if a != nil {
		return a
	}
	return b
}

// content fits a body into what the document has for its media type.
func (d *Doc) content(content map[string]any, contentType string, body []byte) error {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return fmt.Errorf("Content-Type %q: %w", contentType, err)
	}
	rule := child(content, media)
	if rule == nil {
		return fmt.Errorf("media type %q is not in the document", media)
	}
	schema, ok := rule["schema"]
	switch {
	case !ok:
	case media == "application/x-ndjson":
		for i, line := range bytes.Split(body, []byte{'\n'}) {
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			if err := d.fitText(schema, line); err != nil {
				return fmt.Errorf("line %d: %w", i+1, err)
			}
		}
	case strings.HasSuffix(media, "json"):
		return d.fitText(schema, body)
	}
	return nil
}

func (d *Doc) fitText(schema any, text []byte) error {
	v, err := decode(text)
	if err != nil {
		return err
	}
	return d.fit(schema, v, "")
}

// fromText makes a header's or parameter's text a value of the schema's type.
func (d *Doc) fromText(schema any, text string) any {
	object, err := d.resolve(schema)
	if err == nil {
		switch object["type"] {
		case "integer", "number":
			if _, err := strconv.ParseFloat(text, 64); err == nil {
				return json.Number(text)
			}
		case "boolean":
			if text == "true" || text == "false" {
				return text == "true"
			}
		}
	}
	return text
}
