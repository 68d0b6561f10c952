package openapicheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// schemaKeywords are those that fit looks at, and those that only say something to people.
var schemaKeywords = strings.Fields(`$ref type enum const required properties additionalProperties items minItems maxItems uniqueItems minLength maxLength pattern minimum
	maximum format oneOf description title examples default contentEncoding contentMediaType readOnly`)

// checkSchema looks at a schema itself, and fits its examples into it.
func (d *Doc) checkSchema(v any, at string) (faults []error) {
	schema, ok := v.(map[string]any)
	if !ok {
		return []error{fmt.Errorf("%s: no object", at)}
	}
	if _, err := d.resolve(schema); err != nil {
		return []error{fmt.Errorf("%s: %w", at, err)}
	}
	for key, inner := range schema {
		here := at + "/" + key
		switch {
		case !slices.Contains(schemaKeywords, key):
			faults = append(faults, fmt.Errorf("%s: keyword is not known", here))
		case key == "pattern":
			if _, err := regexp.Compile(fmt.Sprint(inner)); err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", here, err))
			}
		case key == "properties":
			for name, s := range child(schema, key) {
				faults = append(faults, d.checkSchema(s, here+"/"+name)...)
			}
		case key == "items", key == "additionalProperties" && inner != false && inner != true:
			faults = append(faults, d.checkSchema(inner, here)...)
		case key == "oneOf":
			list, _ := inner.([]any)
			for i, s := range list {
				faults = append(faults, d.checkSchema(s, here+"/"+strconv.Itoa(i))...)
			}
		case key == "required":
			list, _ := inner.([]any)
			properties := child(schema, "properties")
			for _, name := range list {
				if _, known := properties[fmt.Sprint(name)]; !known && properties != nil {
					faults = append(faults, fmt.Errorf("%s: %v is no property", here, name))
				}
			}
		case key == "examples":
			list, _ := inner.([]any)
			for i, example := range list {
				if err := d.fit(schema, example, ""); err != nil {
					faults = append(faults, fmt.Errorf("%s/%d: %w", here, i, err))
				}
			}
		}
	}
	return faults
}

// fit says why v does not fit a schema; at is the JSON pointer to v.
func (d *Doc) fit(s any, v any, at string) error {
	object, ok := s.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: no schema", at)
	}
	schema, err := d.resolve(object)
	if err != nil {
		return err
	}
	if err := d.fitHere(schema, v, at); err != nil {
		return err
	}
	ref, _ := object["$ref"].(string)
	if name, ok := strings.CutPrefix(ref, "#/components/schemas/"); ok {
		d.mu.Lock()
		d.used[name] = true
		d.mu.Unlock()
	}
	return nil
}

func (d *Doc) fitHere(schema map[string]any, v any, at string) error {
	if at == "" {
		at = "body"
	}
	if want, ok := schema["type"]; ok && !hasType(v, want) {
		return fmt.Errorf("%s: %s is not of type %v", at, short(v), want)
	}
	if list, ok := schema["enum"].([]any); ok && !slices.ContainsFunc(list, func(e any) bool { return reflect.DeepEqual(e, v) }) {
		return fmt.Errorf("%s: %s is not in %v", at, short(v), list)
	}
	if want, ok := schema["const"]; ok && !reflect.DeepEqual(want, v) {
		return fmt.Errorf("%s: %s is not %v", at, short(v), want)
	}
	if list, ok := schema["oneOf"].([]any); ok {
		var faults []error
		fits := 0
		for _, one := range list {
			if err := d.fit(one, v, at); err != nil {
				faults = append(faults, err)
			} else {
				fits++
			}
		}
		if fits != 1 {
			return fmt.Errorf("%s: %s fits %d schemas of oneOf: %w", at, short(v), fits, errors.Join(faults...))
		}
	}
	switch v := v.(type) {
	case map[string]any:
		return d.fitObject(schema, v, at)
	case []any:
		return d.fitArray(schema, v, at)
	case string:
		return fitString(schema, v, at)
	case json.Number:
		n, err := v.Float64()
		if low, ok := number(schema, "minimum"); err != nil || ok && n < low {
			return fmt.Errorf("%s: %s is less than %v", at, v, low)
		}
		if high, ok := number(schema, "maximum"); ok && n > high {
			return fmt.Errorf("%s: %s is more than %v", at, v, high)
		}
	}
	return nil
}

func (d *Doc) fitObject(schema, v map[string]any, at string) error {
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, ok := v[name.(string)]; !ok {
			return fmt.Errorf("%s: %v is missing", at, name)
		}
	}
	properties := child(schema, "properties")
	for name, inner := range v {
		rule, known := properties[name]
		if !known {
			rule = schema["additionalProperties"]
			if rule == false {
				return fmt.Errorf("%s: %q is not in the schema", at, name)
			}
			if rule == nil || rule == true {
				continue
			}
		}
		if err := d.fit(rule, inner, at+"/"+name); err != nil {
			return err
		}
	}
	return nil
}

func (d *Doc) fitArray(schema map[string]any, v []any, at string) error {
	if low, ok := number(schema, "minItems"); ok && float64(len(v)) < low {
		return fmt.Errorf("%s: %d elements are less than %v", at, len(v), low)
	}
	if high, ok := number(schema, "maxItems"); ok && float64(len(v)) > high {
		return fmt.Errorf("%s: %d elements are more than %v", at, len(v), high)
	}
	for i, inner := range v {
		if schema["uniqueItems"] == true && slices.ContainsFunc(v[:i], func(other any) bool { return reflect.DeepEqual(inner, other) }) {
			return fmt.Errorf("%s/%d: %s stands twice", at, i, short(inner))
		}
		if rule, ok := schema["items"]; ok {
			if err := d.fit(rule, inner, at+"/"+strconv.Itoa(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func fitString(schema map[string]any, v, at string) error {
	chars := float64(utf8.RuneCountInString(v))
	if low, ok := number(schema, "minLength"); ok && chars < low {
		return fmt.Errorf("%s: %s is shorter than %v", at, short(v), low)
	}
	if high, ok := number(schema, "maxLength"); ok && chars > high {
		return fmt.Errorf("%s: %s is longer than %v", at, short(v), high)
	}
	var err error
	if pattern, ok := schema["pattern"].(string); ok {
		var fits bool
		if fits, err = regexp.MatchString(pattern, v); !fits && err == nil {
			err = fmt.Errorf("%s does not match %s", short(v), pattern)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	switch schema["format"] {
	case "date-time":
		_, err = time.Parse(time.RFC3339Nano, v)
	case "ipv4", "ipv6", "ip":
		_, err = netip.ParseAddr(v)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

// hasType says whether v is of the type, or of one of the types, that want names.
func hasType(v any, want any) bool {
	if list, ok := want.([]any); ok {
		return slices.ContainsFunc(list, func(one any) bool { return hasType(v, one) })
	}
	switch v := v.(type) {
	case nil:
		return want == "null"
	case bool:
		return want == "boolean"
	case string:
		return want == "string"
	case []any:
		return want == "array"
	case map[string]any:
		return want == "object"
	case json.Number:
		_, err := v.Int64()
		return want == "number" || want == "integer" && err == nil
	}
	return false
}

func number(schema map[string]any, key string) (float64, bool) {
	n, ok := schema[key].(json.Number)
	if !ok {
		return 0, false
	}
	f, err := n.Float64()
	return f, err == nil
}

// short is a value for a message.
func short(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	if len(text) > 100 {
		return string(text[:100]) + "..."
	}
	return string(text)
}
