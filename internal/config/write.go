package config

import (
	"bufio"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
)

// writeDefault is WriteDefault with c as the defaults.
func (c Config) writeDefault(w io.Writer) error {
	out := &tomlWriter{w: bufio.NewWriter(w)}
	out.line("# fastedge: every key with its default. Durations and sizes carry units: \"5m\", \"25MiB\".")
	out.line("# Environment variables override the file: FASTEDGE_LIMITS_MESSAGE_SIZE sets limits.message_size.")
	told := map[string]bool{} // a second listener needs no second explanation
	explain := func(rule string) {
		if !told[rule] {
			told[rule] = true
			out.line("")
			out.comment(keys[rule].doc)
		}
	}
	out.keyLine = func(key, rule, assignment string) {
		explain(rule)
		switch key {
		case "hostname", "state_dir", "http.batch_line":
			out.line("# " + assignment) // the default depends on the machine, or on another key
		default:
			out.line(assignment)
		}
	}
	out.header = func(header, rule string) {
		out.line("")
		explain(rule)
		out.line(header)
	}
	out.example = func(key, rule string, element reflect.Type) {
		out.line("")
		out.line("")
		out.comment(keys[rule].doc)
		out.line("# [[" + key + "]]")
		v := reflect.New(element)
		setDefaults(v.Interface())
		for _, f := range fieldsOf(element) {
			out.line("#")
			out.comment(keys[join(rule+"[]", f.name)].doc)
			out.line("# " + f.name + " = " + tomlValue(v.Elem().Field(f.index)))
		}
	}
	out.table("", "", reflect.ValueOf(c))
	return out.w.Flush()
}

// WriteDefault writes a file with every key, its meaning and its default. Loading it gives the same configuration as loading none.
func WriteDefault(w io.Writer) error { return Default().writeDefault(w) }

// Show writes the values in force as a file, each with where it came from.
func (c *Config) Show(w io.Writer) error {
	out := &tomlWriter{w: bufio.NewWriter(w)}
	out.keyLine = func(key, rule, assignment string) {
		if keys[rule].secret && !strings.HasSuffix(assignment, ` = ""`) {
			name, _, _ := strings.Cut(assignment, " = ")
			assignment = "# " + name + " is set, and not shown"
		}
		out.line(fmt.Sprintf("%-50s # %s", assignment, c.Origin(key)))
	}
	out.header = func(header, _ string) {
		out.line("")
		out.line(header)
	}
	out.table("", "", reflect.ValueOf(*c))
	return out.w.Flush()
}

// Setting is one value in force.
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"` // as the file would have it; a secret is not told
	Origin string `json:"origin"`
}

// Settings lists the values in force.
func (c *Config) Settings() []Setting {
	var list []Setting
	out := &tomlWriter{w: bufio.NewWriter(io.Discard), header: func(string, string) {}}
	out.keyLine = func(key, rule, assignment string) {
		_, value, _ := strings.Cut(assignment, " = ")
		if keys[rule].secret && value != `""` {
			value = "(not shown)"
		}
		list = append(list, Setting{key, value, c.Origin(key).String()})
	}
	out.table("", "", reflect.ValueOf(*c))
	return list
}

// tomlWriter walks a configuration in the order of its structs.
type tomlWriter struct {
	w       *bufio.Writer
	keyLine func(key, rule, assignment string)
	header  func(header, rule string)
	example func(key, rule string, element reflect.Type) // for an array of tables that has none; may be nil
}

func (o *tomlWriter) line(s string) {
	o.w.WriteString(s)
	o.w.WriteByte('\n')
}

// commentColumns is where comments are wrapped.
const commentColumns = 100

func (o *tomlWriter) comment(text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > commentColumns {
			o.line(line)
			line = "#"
		}
		line += " " + word
	}
	if line != "#" {
		o.line(line)
	}
}

// table writes the values of a table, then its tables: TOML has no way back to the outer table.
func (o *tomlWriter) table(path, rule string, v reflect.Value) {
	fields := fieldsOf(v.Type())
	for _, f := range fields {
		fv := v.Field(f.index)
		if isTable(fv.Type()) || fv.Kind() == reflect.Map || isTables(fv.Type()) {
			continue
		}
		o.keyLine(join(path, f.name), join(rule, f.name), f.name+" = "+tomlValue(fv))
	}
	for _, f := range fields {
		fv, key, fieldRule := v.Field(f.index), join(path, f.name), join(rule, f.name)
		switch {
		case isTable(fv.Type()):
			o.header("["+key+"]", fieldRule)
			o.table(key, fieldRule, fv)
		case fv.Kind() == reflect.Map:
			var missing []string
			for _, name := range keys[fieldRule].words {
				if element := fv.MapIndex(reflect.ValueOf(name)); element.IsValid() {
					o.header("["+join(key, name)+"]", fieldRule)
					o.table(join(key, name), fieldRule+".*", element)
				} else if o.example != nil {
					missing = append(missing, "# ["+join(key, name)+"]")
				}
			}
			for _, header := range missing {
				o.line("")
				o.line(header)
			}
		case isTables(fv.Type()):
			if fv.Len() == 0 && o.example != nil {
				o.example(key, fieldRule, fv.Type().Elem())
			}
			for i := range fv.Len() {
				o.header("[["+key+"]]", fieldRule)
				o.table(key+"["+strconv.Itoa(i)+"]", fieldRule+"[]", fv.Index(i))
			}
		}
	}
}

// isTables says that a type is an array of tables with headers of their own, like [[listen]]. Certificates are written in one line.
func isTables(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && isTable(t.Elem()) && t.Elem() != reflect.TypeFor[Certificate]()
}

// tomlValue is a value as a file has it.
func tomlValue(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Slice:
		if !isList(v.Type()) {
			break
		}
		elements := make([]string, v.Len())
		for i := range elements {
			elements[i] = tomlValue(v.Index(i))
		}
		return "[" + strings.Join(elements, ", ") + "]"
	case reflect.Int, reflect.Bool:
		return fmt.Sprint(v.Interface())
	case reflect.Struct:
		if isTable(v.Type()) {
			var parts []string
			for _, f := range fieldsOf(v.Type()) {
				parts = append(parts, f.name+" = "+tomlValue(v.Field(f.index)))
			}
			return "{ " + strings.Join(parts, ", ") + " }"
		}
	}
	return tomlString(scalarText(v))
}

// tomlString is a TOML basic string. strconv.Quote is not: it knows \x and \a.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7F:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
