package config

import (
	"encoding"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// EnvPrefix begins the names of variables that set keys: FASTEDGE_LIMITS_MESSAGE_SIZE is limits.message_size.
const EnvPrefix = "FASTEDGE_"

// Flag is a key that was set on the command line.
type Flag struct {
	Name  string // as the user knows it: "--state-dir"
	Key   string // "state_dir"
	Value string
}

// Load reads the file at path (none when path is empty), lays env (as of os.Environ) and then flags over it, and checks the result as
// far as that needs no look at the machine. The error is a Problems with everything that is wrong.
func Load(path string, env []string, flags ...Flag) (*Config, error) {
	var data []byte
	if path != "" {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			var cause *fs.PathError
			if errors.As(err, &cause) {
				err = cause.Err
			}
			return nil, Problems{{File: path, Message: fmt.Sprintf("%s: %v", path, err)}}
		}
	}
	return load(path, data, env, flags)
}

// load is Load after reading the file.
func load(file string, data []byte, env []string, flags []Flag) (*Config, error) {
	cfg := defaults(lookup(env, "STATE_DIRECTORY"))
	cfg.origins = map[string]Origin{}
	l := loader{cfg: &cfg, bad: map[string]bool{}}
	if file != "" {
		doc, problem := parseDocument(file, data)
		if problem != nil {
			return nil, Problems{*problem}
		}
		l.doc, cfg.doc = doc, doc
		l.table(place{}, doc.values, reflect.ValueOf(&cfg).Elem())
	}
	l.environment(env)
	for _, f := range flags {
		l.overlay(f.Key, Origin{Kind: "flag", Where: f.Name}, f.Value)
	}
	l.rules()
	if err := l.problems.OrNil(); err != nil {
		return nil, err
	}
	return &cfg, nil
}

// Origin says where a value came from.
type Origin struct {
	Kind  string // default, file, env or flag
	Where string // "fastedge.toml:12", the variable, the flag; empty for a default
}

func (o Origin) String() string {
	if o.Where == "" {
		return o.Kind
	}
	return o.Where
}

// Origin says where the value of a key, such as "limits.connections", came from. The keys of a [[listen]] are "listen[0].name" and so on.
func (c *Config) Origin(key string) Origin {
	if o, ok := c.origins[key]; ok {
		return o
	}
	return Origin{Kind: "default"}
}

// loader fills one Config.
type loader struct {
	cfg      *Config
	doc      *document // nil without a file
	problems Problems
	bad      map[string]bool // keys that have a problem already: rules about several keys leave them alone
}

// place is a key: path as users see it, rule as the table of keys has it, and the variable or flag that sets it, if not the file.
type place struct {
	path, rule string
	overlay    *Origin
}

func (p place) key(name string) place {
	return place{join(p.path, name), join(p.rule, name), p.overlay}
}

func (p place) element(i int) place {
	return place{p.path + "[" + strconv.Itoa(i) + "]", p.rule + "[]", p.overlay}
}

// report notes what is wrong with the value at p.
func (l *loader) report(p place, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if p.overlay == nil {
		l.reportAt(p.path, message)
		return
	}
	l.bad[p.path] = true
	l.problems = append(l.problems, Problem{Source: p.overlay.Where}.about(p.path, message))
}

// reportAt notes what is wrong with a key wherever it was set.
func (l *loader) reportAt(path, message string) {
	l.bad[path] = true
	l.problems = append(l.problems, l.cfg.problemAt(l.doc, path).about(path, message))
}

// reportWithin is reportAt for the byte at offset of a text.
func (l *loader) reportWithin(path string, offset int, message string) {
	l.bad[path] = true
	l.problems = append(l.problems, l.cfg.ProblemAt(path, offset, "%s", message))
}

// problemAt gives a problem with the place where a key was set.
func (c *Config) problemAt(doc *document, path string) (problem Problem) {
	origin := c.Origin(path)
	if doc != nil && (origin.Kind == "file" || origin.Kind == "default") {
		problem, _ = doc.at(path)
	} else if origin.Kind != "default" {
		problem.Source = origin.Where
	}
	return problem
}

// ProblemAt is a problem that somebody else has found in the value of a key, such as "rule[0].when". offset is the byte within the
// value, as a text, that is to blame; negative blames the whole value. Where the value came from a file, the caret stands below that
// byte, whatever form the text is written in.
func (c *Config) ProblemAt(key string, offset int, format string, args ...any) Problem {
	problem := c.problemAt(c.doc, key)
	if problem.Line > 0 && offset >= 0 {
		if at, ok := c.doc.within(key, offset); ok {
			problem = c.doc.problemAt(at, 1)
		}
	}
	return problem.about(key, fmt.Sprintf(format, args...))
}

// unknown reports a key that there is not; other is the one that was meant, if that can be guessed.
func (l *loader) unknown(p place, other string) {
	problem := l.doc.atKey(p.path)
	problem.Key = p.path
	problem.Message = "unknown key \"" + p.path + "\""
	if other != "" {
		problem.Message += fmt.Sprintf(" (did you mean %q?)", other)
	}
	l.problems = append(l.problems, problem)
}

// suggestKey finds a key that is spelled alike, or of the same name in another table.
func suggestKey(path string) string {
	general := regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "[]")
	names := make([]string, 0, len(keys))
	for k := range keys {
		names = append(names, k)
	}
	slices.Sort(names)
	best := nearest(general, names)
	if best == "" {
		last := general[strings.LastIndexByte(general, '.')+1:]
		for _, k := range names {
			if strings.HasSuffix(k, "."+last) {
				best = k
				break
			}
		}
	}
	return strings.ReplaceAll(best, "[]", "")
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// isTable says that a type is a table of keys and not a value with a text form.
func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(textUnmarshaler)
}

// isList says that a type is an array in the file, and not a list with a text form.
func isList(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && !reflect.PointerTo(t).Implements(textUnmarshaler)
}

// field is one key of a table.
type field struct {
	name  string
	index int
}

// fieldsOf gives the keys of a table in the order of the struct.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("toml"); name != "" {
			fields = append(fields, field{name, i})
		}
	}
	return fields
}

// table decodes a table into a struct that holds the defaults.
func (l *loader) table(p place, in map[string]any, v reflect.Value) {
	fields := fieldsOf(v.Type())
	for name, value := range in {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if i < 0 {
			l.unknown(p.key(name), suggestKey(p.key(name).path))
			continue
		}
		l.value(p.key(name), value, v.Field(fields[i].index))
	}
}

// value decodes one value over its default and checks it by its rule.
func (l *loader) value(p place, in any, v reflect.Value) {
	t := v.Type()
	switch {
	case isTable(t):
		if table, ok := in.(map[string]any); ok {
			l.table(p, table, v)
		} else {
			l.report(p, "must be a table: [%s]", p.path)
		}
		return
	case t.Kind() == reflect.Map:
		l.tableMap(p, in, v)
		return
	}
	if !l.convert(p, in, v) {
		return
	}
	if p.overlay != nil {
		l.cfg.origins[p.path] = *p.overlay
	} else if at, ok := l.doc.at(p.path); ok {
		l.cfg.origins[p.path] = Origin{"file", at.File + ":" + strconv.Itoa(at.Line)}
	}
}

// same compares values. To it, unlike to reflect.DeepEqual, an empty list is a list that was not given.
func same(a, b reflect.Value) bool {
	switch {
	case a.Kind() == reflect.Slice:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !same(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case a.Kind() == reflect.Map && a.Len() == 0 && b.Len() == 0:
		return true
	case isTable(a.Type()):
		return !slices.ContainsFunc(fieldsOf(a.Type()), func(f field) bool { return !same(a.Field(f.index), b.Field(f.index)) })
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// tableMap decodes tables whose names come from a closed set over the default ones. Only spf.on is one.
func (l *loader) tableMap(p place, in any, v reflect.Value) {
	tables, ok := in.(map[string]any)
	if !ok {
		l.report(p, "must be a table: [%s]", p.path)
		return
	}
	for name, value := range tables {
		child := place{join(p.path, name), p.rule + ".*", nil}
		table, ok := value.(map[string]any)
		switch {
		case !slices.Contains(keys[p.rule].words, name):
			other := nearest(name, keys[p.rule].words)
			if other != "" {
				other = join(p.path, other)
			}
			l.unknown(child, other)
		case !ok:
			l.report(child, "must be a table: [%s]", child.path)
		default:
			element := reflect.New(v.Type().Elem()).Elem()
			if standard := v.MapIndex(reflect.ValueOf(name)); standard.IsValid() {
				element.Set(standard)
			}
			l.table(child, table, element)
			v.SetMapIndex(reflect.ValueOf(name), element)
		}
	}
}

// convert decodes a scalar or an array of them, or of tables, and checks it. false: a problem was reported.
func (l *loader) convert(p place, in any, v reflect.Value) bool {
	if isList(v.Type()) {
		elements, ok := in.([]any)
		if !ok {
			l.report(p, "must be an array, not %s", describe(in))
			return false
		}
		list := reflect.MakeSlice(v.Type(), len(elements), len(elements))
		fine := true
		for i, e := range elements {
			element := list.Index(i)
			if !isTable(element.Type()) {
				one := p.element(i)
				one.rule = p.rule
				fine = l.convert(one, e, element) && fine
				continue
			}
			table, ok := e.(map[string]any)
			if !ok {
				l.report(p.element(i), "must be a table, not %s", describe(e))
				fine = false
				continue
			}
			setDefaults(element.Addr().Interface())
			l.table(p.element(i), table, element)
		}
		v.Set(list)
		l.bad[p.path] = l.bad[p.path] || !fine
		return fine
	}
	err := setScalar(v, in)
	if err == nil {
		err = checkRule(keys[p.rule], v)
	}
	if err != nil {
		l.report(p, "%v", err)
	}
	return err == nil
}

// setScalar stores what the file has, by the type of the key.
func setScalar(v reflect.Value, in any) error {
	text, isText := in.(string)
	number, isNumber := in.(int64)
	switch target := v.Addr().Interface().(type) {
	case *time.Duration:
		if isNumber {
			text, isText = strconv.FormatInt(number, 10), true
		}
		if !isText {
			return fmt.Errorf("must be a duration in quotes, not %s", describe(in))
		}
		d, err := ParseDuration(text)
		*target = d
		return err
	case *Size:
		if isNumber {
			text, isText = strconv.FormatInt(number, 10), true
		}
		if !isText {
			return fmt.Errorf("must be a size in quotes, not %s", describe(in))
		}
		return target.UnmarshalText([]byte(text))
	case *netip.Prefix:
		if !isText {
			return fmt.Errorf("must be a network in quotes, not %s", describe(in))
		}
		prefix, err := parsePrefix(text)
		*target = prefix
		return err
	case encoding.TextUnmarshaler:
		if !isText {
			return fmt.Errorf("must be a text in quotes, not %s", describe(in))
		}
		return target.UnmarshalText([]byte(text))
	case *string:
		if !isText {
			return fmt.Errorf("must be a text in quotes, not %s", describe(in))
		}
		*target = text
	case *int:
		if !isNumber {
			return fmt.Errorf("must be a whole number, not %s", describe(in))
		}
		*target = int(number)
	case *bool:
		b, ok := in.(bool)
		if !ok {
			return fmt.Errorf("must be true or false, not %s", describe(in))
		}
		*target = b
	default:
		panic(fmt.Sprintf("config: no decoder for %s", v.Type()))
	}
	return nil
}

func describe(in any) string {
	switch in := in.(type) {
	case string:
		return fmt.Sprintf("%q", in)
	case int64, float64, bool:
		return fmt.Sprint(in)
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// checkRule says what is wrong with a decoded scalar.
func checkRule(r rule, v reflect.Value) error {
	if r.check != nil {
		return r.check(v.String())
	}
	if r.words != nil && v.Kind() == reflect.String {
		s := v.String()
		if !slices.Contains(r.words, s) {
			hint := ""
			if other := nearest(s, r.words); other != "" {
				hint = fmt.Sprintf(" (did you mean %q?)", other)
			}
			return fmt.Errorf("%q is none of %s%s", s, strings.Join(r.words, ", "), hint)
		}
	}
	if r.max != 0 {
		if n := v.Int(); n < r.min || n > r.max {
			low, high := reflect.New(v.Type()).Elem(), reflect.New(v.Type()).Elem()
			low.SetInt(r.min)
			high.SetInt(r.max)
			return fmt.Errorf("%s is out of range (%s to %s)", scalarText(v), scalarText(low), scalarText(high))
		}
	}
	return nil
}

// scalarText is a value as a user would write it, without quotes.
func scalarText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return FormatDuration(x)
	case fmt.Stringer:
		return x.String()
	}
	return fmt.Sprint(v.Interface())
}

// environment lays the FASTEDGE_* variables over the file.
func (l *loader) environment(env []string) {
	variables := map[string]string{} // name: key
	var names []string
	add := func(key string) {
		name := envName(key)
		variables[name] = key
		names = append(names, strings.TrimPrefix(name, EnvPrefix)) // what all begin with would make strangers look alike
	}
	forEachKey(reflect.TypeFor[Config](), "", func(key string, t reflect.Type) {
		add(key)
		if t.Kind() == reflect.Map {
			for _, word := range keys[key].words {
				for _, f := range fieldsOf(t.Elem()) {
					add(join(join(key, word), f.name))
				}
			}
		}
	})
	for _, entry := range slices.Sorted(slices.Values(env)) {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, EnvPrefix) {
			continue
		}
		key, ok := variables[name]
		if !ok {
			message := "no such variable"
			if other := nearest(strings.TrimPrefix(name, EnvPrefix), names); other != "" {
				message += fmt.Sprintf(" (did you mean %s?)", EnvPrefix+other)
			}
			l.problems = append(l.problems, Problem{Source: name, Message: message})
			continue
		}
		l.overlay(key, Origin{Kind: "env", Where: name}, value)
	}
}

func envName(key string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// forEachKey calls yield for each key that is a value or an array, in the order of the structs.
func forEachKey(t reflect.Type, path string, yield func(key string, t reflect.Type)) {
	for _, f := range fieldsOf(t) {
		key, ft := join(path, f.name), t.Field(f.index).Type
		if isTable(ft) {
			forEachKey(ft, key, yield)
		} else {
			yield(key, ft)
		}
	}
}

// overlay sets one key from a text: a list's elements are separated by commas.
func (l *loader) overlay(key string, origin Origin, text string) {
	p := place{path: key, rule: key, overlay: &origin}
	v := reflect.ValueOf(l.cfg).Elem()
	for part := range strings.SplitSeq(key, ".") {
		if v.Kind() == reflect.Map { // its tables can't be set in place
			all, name, element := v, reflect.ValueOf(part), reflect.New(v.Type().Elem()).Elem()
			if standard := all.MapIndex(name); standard.IsValid() {
				element.Set(standard)
			}
			defer func() { all.SetMapIndex(name, element) }()
			p.rule = strings.Replace(key, "."+part+".", ".*.", 1)
			v = element
			continue
		}
		fields := fieldsOf(v.Type())
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == part })
		if i < 0 {
			panic("config: overlay of unknown key " + key)
		}
		v = v.Field(fields[i].index)
	}
	var in any = text
	switch t := v.Type(); {
	case t.Kind() == reflect.Map || t.Kind() == reflect.Slice && isTable(t.Elem()):
		l.report(p, "%s is a table and can only be set in a file", key)
		return
	case isList(t):
		elements := []any{}
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				elements = append(elements, part)
			}
		}
		in = elements
	case t == reflect.TypeFor[int]():
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			l.report(p, "%q is not a whole number", text)
			return
		}
		in = n
	case t.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			l.report(p, "%q is neither true nor false", text)
			return
		}
		in = text == "true"
	}
	l.value(p, in, v)
}

// lookup finds a variable in an environment; the last one wins, as in os/exec.
func lookup(env []string, name string) string {
	for _, entry := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}
