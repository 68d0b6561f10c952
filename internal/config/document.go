package config

import (
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a parsed file: its values, and where each key and value stands.
//
// go-toml decodes straight into structs, but then stops at the first bad value and knows positions of unknown keys only. So it decodes
// into maps here, which finds all mistakes of syntax, and a second pass over its syntax tree notes the positions.
type document struct {
	file   string
	data   []byte
	values map[string]any
	// spans has the position of each value under its path, and that of its key under the path and "=".
	spans map[string]span
}

// span is a stretch of bytes in the file.
type span struct{ offset, length int }

func parseDocument(file string, data []byte) (*document, *Problem) {
	d := &document{file: file, data: data, spans: map[string]span{}}
	if err := toml.Unmarshal(data, &d.values); err != nil {
		p := Problem{File: file, Message: strings.TrimPrefix(err.Error(), "toml: ")}
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, column := at.Position()
			p = d.problemAt(d.offsetOf(line, column), 1)
			p.Message = strings.TrimPrefix(at.Error(), "toml: ")
		}
		return nil, &p
	}
	d.index()
	return d, nil
}

// offsetOf turns go-toml's line and byte column into an offset.
func (d *document) offsetOf(line, column int) int {
	offset := 0
	for ; line > 1; line-- {
		offset += strings.IndexByte(string(d.data[offset:]), '\n') + 1
	}
	return min(offset+column-1, len(d.data))
}

// problemAt gives a problem with its position and source line filled in.
func (d *document) problemAt(offset, length int) Problem {
	start := strings.LastIndexByte(string(d.data[:offset]), '\n') + 1
	end := len(d.data)
	if n := strings.IndexByte(string(d.data[start:]), '\n'); n >= 0 {
		end = start + n
	}
	return Problem{
		File:   d.file,
		Line:   1 + strings.Count(string(d.data[:start]), "\n"),
		Column: 1 + utf8.RuneCount(d.data[start:offset]),
		Source: veil(strings.TrimRight(string(d.data[start:end]), " \t\r")),
		width:  utf8.RuneCount(d.data[offset:min(offset+length, max(end, offset))]),
	}
}

// secrets are values of secret keys, as far as they are on the line, and what stands before @ in URLs. A line with a mistake of syntax has them too.
var secrets = sync.OnceValue(func() *regexp.Regexp {
	var names []string
	for key, r := range keys {
		if r.secret {
			names = append(names, regexp.QuoteMeta(key[strings.LastIndexByte(key, '.')+1:]))
		}
	}
	slices.Sort(names)
	return regexp.MustCompile(`\b(?:` + strings.Join(names, "|") + `)["']?\s*=\s*(?:"+((?:[^"\\]|\\.)*)|'+([^']*)|([^\s,}]+))|//([^/\s"']*)@`)
})

// veil puts an asterisk in place of each character of a secret, for lines are shown to people and end in logs.
func veil(line string) string {
	var b strings.Builder
	last := 0
	for _, m := range secrets().FindAllStringSubmatchIndex(line, -1) {
		start, end := slices.Max(m[2:]), slices.Max(m[2:]) // of the one group that matched
		for i := 2; i < len(m); i += 2 {
			if m[i] >= 0 {
				start = m[i]
			}
		}
		b.WriteString(line[last:start])
		b.WriteString(strings.Repeat("*", utf8.RuneCountInString(line[start:end])))
		last = end
	}
	return b.String() + line[last:]
}

// index notes the positions of all keys and values.
func (d *document) index() {
	p := unstable.Parser{}
	p.Reset(d.data)
	arrays := map[string]int{} // tables so far of each [[array]]
	note := func(path string, n *unstable.Node) {
		if n.Raw.Length > 0 {
			d.spans[path] = span{int(n.Raw.Offset), int(n.Raw.Length)}
		}
	}
	// header resolves the key of a table or key-value; within arrays of tables it means the last one.
	header := func(base string, key unstable.Iterator, newElement bool) string {
		path := base
		for key.Next() {
			path = join(path, string(key.Node().Data))
			if newElement && key.IsLast() {
				note(path+"=", key.Node())
				arrays[path]++
			}
			if n := arrays[path]; n > 0 {
				path += "[" + strconv.Itoa(n-1) + "]"
			}
			if _, seen := d.spans[path+"="]; !seen {
				note(path+"=", key.Node())
			}
		}
		return path
	}
	var value func(path string, n *unstable.Node)
	var keyValue func(base string, n *unstable.Node)
	value = func(path string, n *unstable.Node) {
		note(path, n)
		switch n.Kind {
		case unstable.Array:
			for i, it := 0, n.Children(); it.Next(); i++ {
				value(path+"["+strconv.Itoa(i)+"]", it.Node())
			}
		case unstable.InlineTable:
			for it := n.Children(); it.Next(); {
				keyValue(path, it.Node())
			}
		}
	}
	keyValue = func(base string, n *unstable.Node) { value(header(base, n.Key(), false), n.Value()) }

	table := ""
	for p.NextExpression() {
		switch n := p.Expression(); n.Kind {
		case unstable.Table:
			table = header("", n.Key(), false)
		case unstable.ArrayTable:
			table = header("", n.Key(), true)
		case unstable.KeyValue:
			keyValue(table, n)
		}
	}
}

// at gives a problem at the value of path, or else at its key, or at the nearest table around it. false: the file has none of these.
func (d *document) at(path string) (Problem, bool) {
	for {
		for _, at := range [...]string{path, path + "="} {
			if s, ok := d.spans[at]; ok {
				return d.problemAt(s.offset, s.length), true
			}
		}
		dot := strings.LastIndexAny(path, ".[")
		if dot < 0 {
			return Problem{}, false
		}
		path = path[:dot]
	}
}

// atKey is at, but at the key itself.
func (d *document) atKey(path string) Problem {
	if s, ok := d.spans[path+"="]; ok {
		return d.problemAt(s.offset, s.length)
	}
	p, _ := d.at(path)
	return p
}

// within gives the offset in the file of a byte of the text at path. false: there is no text.
func (d *document) within(path string, offset int) (int, bool) {
	s, ok := d.spans[path]
	if !ok {
		return 0, false
	}
	raw := string(d.data[s.offset : s.offset+s.length])
	text, places := readString(raw)
	// Our reading of the string must be go-toml's; else the start of the value is as exact as it gets.
	var parsed struct {
		V *string `toml:"v"`
	}
	if err := toml.Unmarshal([]byte("v = "+raw), &parsed); err != nil || parsed.V == nil {
		return 0, false
	}
	if *parsed.V != text {
		return s.offset, true
	}
	return s.offset + places[min(offset, len(text))], true
}

// readString reads a TOML string in any of its four forms. places has the offset in raw of each byte of the text, and of its end.
// What is no string gives any text: the caller compares.
func readString(raw string) (text string, places []int) {
	quote := raw[:min(1, len(raw))]
	basic := quote == `"`
	long := len(raw) >= 6 && strings.HasPrefix(raw, strings.Repeat(quote, 3))
	at, end := 1, len(raw)-1
	if long {
		at, end = 3, len(raw)-3
		// A line end right after the opening does not belong to the text.
		if strings.HasPrefix(raw[at:], "\r\n") {
			at += 2
		} else if strings.HasPrefix(raw[at:], "\n") {
			at++
		}
	}
	var b strings.Builder
	for at < end {
		value, length := raw[at:at+1], 1
		if basic && raw[at] == '\\' {
			value, length = readEscape(raw[at:end])
		}
		b.WriteString(value)
		for range len(value) {
			places = append(places, at)
		}
		at += length
	}
	return b.String(), append(places, at)
}

// readEscape reads an escape sequence of a basic string: what it stands for, and its length.
func readEscape(raw string) (value string, length int) {
	if len(raw) < 2 {
		return raw, len(raw)
	}
	digits := 0
	switch raw[1] {
	case 'b':
		return "\b", 2
	case 't':
		return "\t", 2
	case 'n':
		return "\n", 2
	case 'f':
		return "\f", 2
	case 'r':
		return "\r", 2
	case 'e':
		return "\x1b", 2
	case 'x':
		digits = 2
	case 'u':
		digits = 4
	case 'U':
		digits = 8
	case ' ', '\t', '\r', '\n':
		// A line end behind a backslash, and all white space after it, is not there.
		return "", len(raw) - len(strings.TrimLeft(raw[1:], " \t\r\n"))
	default: // \" and \\
		return raw[1:2], 2
	}
	if len(raw) < 2+digits {
		return raw, len(raw)
	}
	n, err := strconv.ParseUint(raw[2:2+digits], 16, 31)
	if err != nil {
		return raw[:2], 2
	}
	return string(rune(n)), 2 + digits
}

// join appends one part of a key to a path.
func join(path, part string) string {
	for _, c := range part {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			part = strconv.Quote(part)
			break
		}
	}
	if part == "" {
		part = `""`
	}
	if path == "" {
		return part
	}
	return path + "." + part
}
