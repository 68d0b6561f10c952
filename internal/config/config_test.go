package config

import (
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the .want files in testdata")

// Each file in testdata and everything that is wrong with it, as an operator sees it, is in the .want file beside it.
func TestEveryProblemIsReportedWithItsPlace(t *testing.T) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = load(filepath.Base(file), data, nil, nil)
			got := "ok\n"
			if err != nil {
				got = err.Error() + "\n"
			}
			want := strings.TrimSuffix(file, ".toml") + ".want"
			if *update {
				if err := os.WriteFile(want, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(text) {
				t.Errorf("got:\n%s\nwant:\n%s", got, text)
			}
		})
	}
}

// mustLoad loads a text that has to be right.
func mustLoad(t *testing.T, text string, env []string, flags ...Flag) *Config {
	t.Helper()
	file := "f.toml"
	if text == "" {
		file = ""
	}
	c, err := load(file, []byte(text), env, flags)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// problemsOf loads a text that has to be wrong.
func problemsOf(t *testing.T, text string, env []string, flags ...Flag) Problems {
	t.Helper()
	file := "f.toml"
	if text == "" {
		file = ""
	}
	_, err := load(file, []byte(text), env, flags)
	var problems Problems
	if !errors.As(err, &problems) || len(problems) == 0 {
		t.Fatalf("got error %v, want problems", err)
	}
	return problems
}

// plain is a configuration without what only says where it came from.
func plain(c Config) Config {
	c.origins, c.doc = nil, nil
	return c
}

func TestDefaultFileLoadsAsDefault(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "")
	var text strings.Builder
	if err := WriteDefault(&text); err != nil {
		t.Fatal(err)
	}
	c := mustLoad(t, text.String(), nil)
	if got, want := plain(*c), Default(); !equal(got, want) {
		t.Errorf("the default file loads as\n%+v\nwant\n%+v\nfile:\n%s", got, want, text.String())
	}
	if none := mustLoad(t, "", nil); !equal(plain(*none), Default()) {
		t.Errorf("no file loads as\n%+v", *none)
	}
}

// The tables of spf.on have names from a closed set, so each of their keys has a variable.
func TestEnvironmentSetsWhatResultsOfSPFDo(t *testing.T) {
	file := "[spf.on.fail]\ncode = 451\nmessage = \"4.7.23 File\"\n[spf.on.none]\ncode = 250\n"
	c := mustLoad(t, file, []string{
		"FASTEDGE_SPF_ON_FAIL_MESSAGE=4.7.23 Variable", "FASTEDGE_SPF_ON_TEMPERROR_CODE=450", "FASTEDGE_SPF_ON_NONE_CODE=550",
		"FASTEDGE_SPF_ON_PERMERROR_MESSAGE=5.7.24 No", "FASTEDGE_SPF_ON_PERMERROR_CODE=550", "FASTEDGE_SPF_ON_SOFTFAIL_CODE=250",
		"FASTEDGE_SPF_ON_PASS_CODE=250", "FASTEDGE_SPF_ON_NEUTRAL_CODE=250",
	})
	want := map[string]SPFAction{"fail": {451, "4.7.23 Variable"}, "temperror": {450, ""}, "none": {550, ""}, "permerror": {550, "5.7.24 No"},
		"softfail": {250, ""}, "pass": {250, ""}, "neutral": {250, ""}}
	if !maps.Equal(c.SPF.On, want) {
		t.Errorf("%v, want %v", c.SPF.On, want)
	}
	for key, from := range map[string]string{"spf.on.fail.code": "f.toml:2", "spf.on.fail.message": "FASTEDGE_SPF_ON_FAIL_MESSAGE",
		"spf.on.none.code": "FASTEDGE_SPF_ON_NONE_CODE", "spf.on.temperror.message": "default"} {
		if got := c.Origin(key).String(); got != from {
			t.Errorf("%s is from %q, want %q", key, got, from)
		}
	}
	if c := mustLoad(t, "", []string{"FASTEDGE_SPF_ON_FAIL_MESSAGE=5.7.23 No"}); c.SPF.On["fail"] != (SPFAction{550, "5.7.23 No"}) || len(c.SPF.On) != 1 {
		t.Errorf("%v", c.SPF.On)
	}
	if fresh := Default(); fresh.SPF.On["fail"].Message != "" || len(fresh.SPF.On) != 1 {
		t.Errorf("the defaults have changed: %v", fresh.SPF.On)
	}
}

// equal compares configurations; an empty list is a list that was not given.
func equal(a, b Config) bool { return len(Changed(&a, &b)) == 0 }

func TestDefaultFileNamesEveryKey(t *testing.T) {
	var text strings.Builder
	if err := WriteDefault(&text); err != nil {
		t.Fatal(err)
	}
	forEachKey(reflect.TypeFor[Config](), "", func(key string, typ reflect.Type) {
		if typ.Kind() == reflect.Map {
			return
		}
		if isTables(typ) {
			if !strings.Contains(text.String(), "[["+key+"]]\n") {
				t.Errorf("[[%s]] is missing", key)
			}
			for _, f := range fieldsOf(typ.Elem()) {
				if !strings.Contains(text.String(), "\n"+f.name+" = ") && !strings.Contains(text.String(), "\n# "+f.name+" = ") {
					t.Errorf("%s[].%s is missing", key, f.name)
				}
			}
			return
		}
		name := key[strings.LastIndexByte(key, '.')+1:]
		if !strings.Contains(text.String(), "\n"+name+" = ") && !strings.Contains(text.String(), "\n# "+name+" = ") {
			t.Errorf("%s is missing", key)
		}
	})
	for line := range strings.SplitSeq(text.String(), "\n") {
		if strings.HasPrefix(line, "# ") && len(line) > commentColumns && !strings.Contains(line, " = ") {
			t.Errorf("long line: %s", line)
		}
	}
}

// Every key has a rule with a meaning, and every rule a key.
func TestKeysAndRulesAgree(t *testing.T) {
	seen := map[string]bool{}
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		for _, f := range fieldsOf(typ) {
			key, ft := join(path, f.name), typ.Field(f.index).Type
			seen[key] = true
			if keys[key].doc == "" {
				t.Errorf("%s: no meaning in the table of keys", key)
			}
			switch {
			case isTable(ft):
				walk(key, ft)
			case ft.Kind() == reflect.Slice && isTable(ft.Elem()):
				walk(key+"[]", ft.Elem())
			case ft.Kind() == reflect.Map:
				walk(key+".*", ft.Elem())
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	for key := range keys {
		if !seen[key] {
			t.Errorf("rule for %s, which is no key", key)
		}
	}
}

func TestPrecedenceIsFlagThenEnvironmentThenFileThenDefault(t *testing.T) {
	file := "state_dir = \"/file\"\n[log]\nlevel = \"warn\"\n"
	env := []string{"FASTEDGE_STATE_DIR=/env", "OTHER=1", "FASTEDGE_LOG_LEVEL=error"}
	flag := Flag{Name: "--state-dir", Key: "state_dir", Value: "/flag"}
	for _, c := range []struct {
		text            string
		env             []string
		flags           []Flag
		dir, dirOrigin  string
		level, levelWas string
	}{
		{"", nil, nil, "./fastedge-data", "default", "info", "default"},
		{file, nil, nil, "/file", "f.toml:1", "warn", "f.toml:3"},
		{file, env, nil, "/env", "FASTEDGE_STATE_DIR", "error", "FASTEDGE_LOG_LEVEL"},
		{file, env, []Flag{flag}, "/flag", "--state-dir", "error", "FASTEDGE_LOG_LEVEL"},
		{"", []string{"STATE_DIRECTORY=/var/lib/a:/var/lib/b"}, nil, "/var/lib/a", "default", "info", "default"},
	} {
		got := mustLoad(t, c.text, c.env, c.flags...)
		if got.StateDir != c.dir || got.Origin("state_dir").String() != c.dirOrigin {
			t.Errorf("state_dir is %q from %q, want %q from %q", got.StateDir, got.Origin("state_dir"), c.dir, c.dirOrigin)
		}
		if got.Log.Level != c.level || got.Origin("log.level").String() != c.levelWas {
			t.Errorf("log.level is %q from %q, want %q from %q", got.Log.Level, got.Origin("log.level"), c.level, c.levelWas)
		}
	}
}

func TestEnvironmentSetsEveryKindOfKey(t *testing.T) {
	c := mustLoad(t, "", []string{
		"FASTEDGE_HOSTNAME=mx.example.net",
		"FASTEDGE_LIMITS_MESSAGE_SIZE=1MiB",
		"FASTEDGE_LIMITS_CONNECTIONS=7",
		"FASTEDGE_TIMEOUTS_DRAIN=0",
		"FASTEDGE_RELAY_NEXT_HOP=smtp://10.0.0.1, lmtp+unix:///run/lmtp",
		"FASTEDGE_RELAY_RETRY=10s,1m",
		"FASTEDGE_DOMAINS_ACCEPT=",
		"FASTEDGE_ADMIN_HTTP=",
		"FASTEDGE_CLIENTS_DENY=192.0.2.0/24, 2001:db8::/32",
		"FASTEDGE_TLS_SESSION_TICKETS=true",
		"FASTEDGE_LIMITS_DATA_RATE=1kB",
		"FASTEDGE_SMTP_GREET_DELAY=2s",
		"FASTEDGE_DOMAINS_SUBADDRESS=",
	})
	hops := []NextHop{{Network: "tcp", Addr: "10.0.0.1:25"}, {LMTP: true, Network: "unix", Addr: "/run/lmtp"}}
	if c.Hostname != "mx.example.net" || c.Limits.MessageSize != 1<<20 || c.Limits.Connections != 7 || c.Timeouts.Drain != 0 ||
		!slices.Equal(c.Relay.NextHop, hops) || !slices.Equal(c.Relay.Retry, []time.Duration{10 * time.Second, time.Minute}) ||
		len(c.Domains.Accept) != 0 || c.Admin.HTTP.Network != "" || len(c.Clients.Deny) != 2 || !c.TLS.SessionTickets ||
		c.Limits.DataRate != 1000 || c.SMTP.GreetDelay != 2*time.Second || c.Domains.Subaddress != "" {
		t.Errorf("got %+v", c)
	}
}

func TestBadVariablesAreNamed(t *testing.T) {
	for _, c := range []struct{ variable, want string }{
		{"FASTEDGE_LIMITS_CONECTIONS=3", "FASTEDGE_LIMITS_CONECTIONS: no such variable (did you mean FASTEDGE_LIMITS_CONNECTIONS?)"},
		{"FASTEDGE_XYZZY=3", "FASTEDGE_XYZZY: no such variable"},
		{"FASTEDGE_LIMITS_CONNECTIONS=many", `FASTEDGE_LIMITS_CONNECTIONS: "many" is not a whole number`},
		{"FASTEDGE_LIMITS_CONNECTIONS=0", "FASTEDGE_LIMITS_CONNECTIONS: 0 is out of range (1 to 1000000)"},
		{"FASTEDGE_TIMEOUTS_DATA=5", `FASTEDGE_TIMEOUTS_DATA: "5" has no unit: ` + durationHint},
		{"FASTEDGE_LISTEN=:25", "FASTEDGE_LISTEN: listen is a table and can only be set in a file"},
		{"FASTEDGE_SPF_ON=1", "FASTEDGE_SPF_ON: spf.on is a table and can only be set in a file"},
		{"FASTEDGE_SPF_ON_FAIL_CODE=no", `FASTEDGE_SPF_ON_FAIL_CODE: "no" is not a whole number`},
		{"FASTEDGE_SPF_ON_PASS_CODE=100", "FASTEDGE_SPF_ON_PASS_CODE: 100 is out of range (200 to 599)"},
		{"FASTEDGE_SPF_ON_FAIL_MESSAGE=5.7.23 {x}", "FASTEDGE_SPF_ON_FAIL_MESSAGE: only {reason} may stand in braces"},
		{"FASTEDGE_SPF_ON_NONE_MESSAGE=2.0.0 x", "spf.on.none.code: missing"},
		{"FASTEDGE_SPF_ON_FALE_CODE=550", "FASTEDGE_SPF_ON_FALE_CODE: no such variable (did you mean FASTEDGE_SPF_ON_FAIL_CODE?)"},
		{"FASTEDGE_TLS_SESSION_TICKETS=yes", `FASTEDGE_TLS_SESSION_TICKETS: "yes" is neither true nor false`},
		{"FASTEDGE_DNS_SERVERS=localhost:53", `FASTEDGE_DNS_SERVERS: "localhost:53" is not a DNS server: write "127.0.0.1:53", "[::1]:53", or an IP address alone`},
		{"FASTEDGE_RULE=x", "FASTEDGE_RULE: rule is a table and can only be set in a file"},
		{"FASTEDGE_QUEUE_JETSTREAM_URL=nats://x", `FASTEDGE_QUEUE_JETSTREAM_URL: is for queue.engine = "jetstream" or "spool+jetstream" only`},
		{"FASTEDGE_QUEUE_ENGINE=jet", `FASTEDGE_QUEUE_ENGINE: "jet" is none of spool, jetstream, spool+jetstream, discard`},
		{"FASTEDGE_LIMITS_MEMORY=1MiB", "FASTEDGE_LIMITS_MEMORY: 1MiB is less than limits.message_size (25MiB): no message of that size could be taken"},
	} {
		if got := problemsOf(t, "", []string{c.variable}); got.Error() != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.variable, got, c.want)
		}
	}
}

func TestMissingFileIsAProblem(t *testing.T) {
	_, err := Load("testdata/none.toml", nil)
	if err == nil || err.Error() != "testdata/none.toml: no such file or directory" {
		t.Errorf("got %v", err)
	}
}

// A problem that somebody else finds in a text points at the byte to blame, whatever form the text is written in.
func TestProblemsWithinTextsPointAtTheByte(t *testing.T) {
	for name, c := range map[string]struct{ file, blame, want string }{
		"basic": {
			"[[rule]]\nat = \"mail\"\nwhen = \"tls and nonsense\"\naccept = true\n", "nonsense",
			"f.toml:3:17: rule[0].when: what is nonsense?\n    when = \"tls and nonsense\"\n                    ^"},
		"basic with escapes": {
			"[[rule]]\nat = \"mail\"\nwhen = \"helo == \\\"\\u00e4\\\" and nonsense\"\naccept = true\n", "nonsense",
			"f.toml:3:32: rule[0].when: what is nonsense?\n    when = \"helo == \\\"\\u00e4\\\" and nonsense\"\n                                   ^"},
		"literal": {
			"[[rule]]\nat = \"mail\"\nwhen = 'helo == \"ä\" and nonsense'\naccept = true\n", "nonsense",
			"f.toml:3:25: rule[0].when: what is nonsense?\n    when = 'helo == \"ä\" and nonsense'\n                            ^"},
		"basic of several lines": {
			"[[rule]]\nat = \"mail\"\nwhen = \"\"\"\ntls and \\\n\n   \\t nonsense\"\"\"\naccept = true\n", "nonsense",
			"f.toml:6:7: rule[0].when: what is nonsense?\n       \\t nonsense\"\"\"\n          ^"},
		"literal of several lines": {
			"[[rule]]\nat = \"mail\"\nwhen = '''\ntls\n  and nonsense\n'''\naccept = true\n", "nonsense",
			"f.toml:5:7: rule[0].when: what is nonsense?\n      and nonsense\n          ^"},
		"lines that end with CRLF": {
			"[[rule]]\r\nat = \"mail\"\r\nwhen = \"\"\"\r\ntls\r\n  and nonsense\"\"\"\r\naccept = true\r\n", "nonsense",
			"f.toml:5:7: rule[0].when: what is nonsense?\n      and nonsense\"\"\"\n          ^"},
		"quotes at both ends": {
			"[[rule]]\nat = \"mail\"\nwhen = \"\"\"\"\" == nonsense or helo == \"\"\"\"\"\naccept = true\n", "nonsense",
			"f.toml:3:17: rule[0].when: what is nonsense?\n    when = \"\"\"\"\" == nonsense or helo == \"\"\"\"\"\n                    ^"},
		"inline table": {
			"rule = [{ at = \"mail\", when = 'nonsense', accept = true }]\n", "nonsense",
			"f.toml:1:32: rule[0].when: what is nonsense?\n    rule = [{ at = \"mail\", when = 'nonsense', accept = true }]\n                                   ^"},
		"the end": {
			"rule = [{ at = \"mail\", when = 'not', accept = true }]\n", "",
			"f.toml:1:35: rule[0].when: what is ?\n    rule = [{ at = \"mail\", when = 'not', accept = true }]\n                                      ^"},
	} {
		cfg := mustLoad(t, c.file, nil)
		at := strings.Index(cfg.Rule[0].When, c.blame)
		if c.blame == "" {
			at = len(cfg.Rule[0].When)
		}
		if got := cfg.ProblemAt("rule[0].when", at, "what is %s?", c.blame).String(); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, c.want)
		}
	}
	cfg := mustLoad(t, "[auth]\nusers = '/etc/users'\ntimeout = \"1s\"\n", []string{"FASTEDGE_DOMAINS_RECIPIENTS=/r"})
	for key, want := range map[string]string{
		"auth.users":         "f.toml:2:9: auth.users: x\n    users = '/etc/users'\n            ^^^^^^^^^^^^",
		"auth.cram_md5":      "f.toml:1:2: auth.cram_md5: x\n    [auth]\n     ^^^^", // not set: the table around it
		"domains.recipients": "FASTEDGE_DOMAINS_RECIPIENTS: x",
		"tls.client_ca":      "tls.client_ca: x",
	} {
		if got := cfg.ProblemAt(key, -1, "x").String(); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", key, got, want)
		}
	}
	if got := cfg.ProblemAt("auth.users", 1000, "x").String(); !strings.HasPrefix(got, "f.toml:2:20: ") {
		t.Errorf("past the end: %s", got)
	}
	if got := mustLoad(t, "", nil).ProblemAt("auth.users", 3, "x").String(); got != "auth.users: x" {
		t.Errorf("without a file: %s", got)
	}
}

// Every byte of a text that go-toml reads has its place within it, in order.
func FuzzPlacesInTexts(f *testing.F) {
	for _, s := range []string{`"a\"b\\\u00e4\U0001F600\t"`, "'a\\b'", "\"\"\"\r\na\\ \n  b\"\"\"", "'''\n''a'''", `""`, "''", `"\x41\e"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		doc, problem := parseDocument("f.toml", []byte("v = "+raw))
		if problem != nil {
			return
		}
		text, ok := doc.values["v"].(string)
		if !ok || doc.spans["v"].length == 0 {
			return
		}
		last := 0
		for i := range len(text) + 1 {
			at, ok := doc.within("v", i)
			if !ok || at < last || at > len(doc.data) {
				t.Fatalf("%q: byte %d at %d, %v, after %d", raw, i, at, ok, last)
			}
			last = at
		}
		if read, _ := readString(string(doc.data[doc.spans["v"].offset:][:doc.spans["v"].length])); read != text {
			t.Fatalf("%q is %q, read as %q", raw, text, read)
		}
	})
}

// Only the zero configuration and what the operator named may be reached by strangers.
func TestOpenRelayGuard(t *testing.T) {
	for _, c := range []struct {
		address, relayFrom, accept string
		fine                       bool
	}{
		{`127.0.0.1:25`, ``, ``, true},
		{`[::1]:25`, ``, ``, true},
		{`localhost:25`, ``, ``, true},
		{`127.9.9.9:25`, `"0.0.0.0/0"`, ``, true}, // only this machine can get there
		{`unix:/tmp/s`, ``, ``, true},
		{`:25`, ``, ``, false},
		{`0.0.0.0:25`, ``, ``, false},
		{`[::]:25`, ``, ``, false},
		{`10.0.0.1:25`, ``, ``, false},
		{`[::ffff:127.0.0.1]:25`, ``, ``, true},
		{`[fe80::1%lo]:25`, ``, ``, false},
		{`:25`, ``, `"example.net"`, true},
		{`:25`, `"10.0.0.0/8"`, ``, true},
		{`:25`, `"10.0.0.0/8"`, `"example.net"`, true},
		{`:25`, `"fc00::/7"`, ``, true},
		{`:25`, `"fe80::/10"`, ``, true},
		{`:25`, `"127.0.0.0/8", "::1/128"`, ``, false}, // nobody could send anything
		{`:25`, ``, ``, false},
		{`:25`, `"0.0.0.0/0"`, `"example.net"`, false},
		{`:25`, `"::/0"`, `"example.net"`, false},
		{`:25`, `"0.0.0.0/1", "128.0.0.0/1"`, `"example.net"`, false},
		{`:25`, `"2000::/3"`, `"example.net"`, false},
		{`:25`, `"10.0.0.0/8", "0.0.0.0/0"`, ``, false},
		{`:25"; auth`, ``, ``, false},
		{`:25"; auth_required`, ``, ``, true},
		{`:25"; auth_required`, `"0.0.0.0/0"`, ``, false},
	} {
		address, more, _ := strings.Cut(c.address, "\"; ")
		text := "[auth]\nusers = \"/u\"\n[tls]\ncertificates = [{cert = \"/c\", key = \"/k\"}]\n[domains]\naccept = [" + c.accept + "]\n[[listen]]\naddress = \"" + address + "\"\n"
		if more != "" {
			text += "tls = \"required\"\nauth = [\"PLAIN\"]\nauth_required = " + strconv.FormatBool(more == "auth_required") + "\n"
		}
		if c.relayFrom != "" {
			text += "relay_from = [" + c.relayFrom + "]\n"
		}
		_, err := load("f.toml", []byte(text), nil, nil)
		if (err == nil) != c.fine {
			t.Errorf("address %s, relay_from [%s], accept [%s]: %v", c.address, c.relayFrom, c.accept, err)
		}
	}
}

func TestShowSaysWhereValuesCameFrom(t *testing.T) {
	c := mustLoad(t, "[limits]\nerrors = 5\n\n[[listen]]\naddress = \"127.0.0.1:26\"\n", []string{"FASTEDGE_LOG_LEVEL=warn"})
	var text strings.Builder
	if err := c.Show(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"errors = 5 ", "# f.toml:2\n", "# f.toml:5\n", "# FASTEDGE_LOG_LEVEL\n", "recipients = 1000", "# default\n", "name = \"smtp\""} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	again, err := load("shown.toml", []byte(text.String()), nil, nil)
	if err != nil || !equal(plain(*again), plain(*c)) {
		t.Errorf("what was shown does not load as the same: %v\n%s", err, text.String())
	}
	i := slices.IndexFunc(c.Settings(), func(s Setting) bool { return s.Key == "listen[0].address" })
	if i < 0 || c.Settings()[i] != (Setting{"listen[0].address", `"127.0.0.1:26"`, "f.toml:5"}) {
		t.Errorf("settings: %v", c.Settings())
	}
}

func TestChangedNamesKeys(t *testing.T) {
	a := mustLoad(t, "[[listen]]\naddress = \"127.0.0.1:25\"\n", nil)
	b := mustLoad(t, "[limits]\nerrors = 5\n[[listen]]\naddress = \"127.0.0.1:26\"\n", nil)
	if got := Changed(a, b); !slices.Equal(got, []string{"listen[0]", "limits.errors"}) {
		t.Errorf("got %v", got)
	}
	if got := Changed(a, a); got != nil {
		t.Errorf("got %v", got)
	}
}

// openListener is for strangers.
const openListener = "\nhostname = \"mx.a.b\"\ndomains.accept = [\"a.b\"]\n[[listen]]\naddress = \":25\"\n"

// What the file says about results of SPF is laid over the rules that there are without it.
func TestSPFRulesAreLaidOverTheDefaultOnes(t *testing.T) {
	for text, want := range map[string]map[string]SPFAction{
		"":                                   {"fail": {550, ""}},
		"spf.mode = \"enforce\"":             {"fail": {550, ""}},
		"spf.on.fail.code = 451":             {"fail": {451, ""}},
		"spf.on.fail.message = \"5.7.1 No\"": {"fail": {550, "5.7.1 No"}},
		"spf.on.softfail = { code = 250, message = \"{reason}\" }": {"fail": {550, ""}, "softfail": {250, "{reason}"}},
	} {
		c := mustLoad(t, text, nil)
		if !maps.Equal(c.SPF.On, want) {
			t.Errorf("%s: %v", text, c.SPF.On)
		}
		var shown strings.Builder
		if err := c.Show(&shown); err != nil {
			t.Fatal(err)
		}
		if again := mustLoad(t, shown.String(), nil); !maps.Equal(again.SPF.On, want) {
			t.Errorf("%s: shown as\n%s", text, shown.String())
		}
	}
	if fresh := Default(); fresh.SPF.On["fail"].Code != 550 || len(fresh.SPF.On) != 1 {
		t.Error("a file changed the defaults")
	}
}

// Strangers are looked up; whoever can only come from this machine is not.
func TestDNSIsAskedAboutStrangersOnly(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                  false,
		openListener:                        true,
		"spf.mode = \"off\"" + openListener: true, // for names
		"[[listen]]\naddress = \"127.0.0.1:25\"\nproxy_protocol_from = [\"127.0.0.1\"]":                                true,
		"spf.mode = \"off\"\nptr.mode = \"off\"" + openListener:                                                        false,
		"spf.mode = \"off\"\nptr.mode = \"off\"\ndnsbl.list = [{ zone = \"a\" }]" + openListener:                       true,
		"spf.mode = \"off\"\nptr.mode = \"off\"\ndnsbl = { mode = \"off\", list = [{ zone = \"a\" }] }" + openListener: false,
	} {
		if got := mustLoad(t, text, nil).AsksDNS(); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestTooManyNameServers(t *testing.T) {
	list := strings.Repeat("\"::1\", ", maxServers)
	mustLoad(t, "dns.servers = ["+list+"]", nil)
	if got := problemsOf(t, "dns.servers = ["+list+"\"::1\"]", nil); got[0].Key != "dns.servers" {
		t.Error(got)
	}
}

func TestWarnings(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "",
		"queue.durability = \"os\"":    "queue.durability",
		"queue.engine = \"discard\"":   "queue.engine",
		"queue.engine = \"jetstream\"": "queue.jetstream.replicas",
		"queue = { engine = \"jetstream\", jetstream.replicas = 3, durability = \"os\", min_free = \"1B\" }":                                                                                                                                         "",
		"queue = { engine = \"spool+jetstream\", jetstream.replicas = 3, durability = \"os\" }":                                                                                                                                                      "queue.durability",
		"queue = { engine = \"jetstream\", jetstream = { replicas = 3, user = \"a\", password = \"b\" } }":                                                                                                                                           "",
		"queue = { engine = \"jetstream\", jetstream = { replicas = 3, user = \"a\", password = \"b\", url = \"tls://a\" } }":                                                                                                                        "",
		"queue = { engine = \"jetstream\", jetstream = { replicas = 3, user = \"a\", password = \"b\", url = \"nats://[::1],nats://a\" } }":                                                                                                          "queue.jetstream.url",
		"smtp.hide = [\"starttls\", \"auth\"]\ntls.certificates = [{ cert = \"/c\", key = \"/k\" }]\nauth.keys = \"/k\"\n[[listen]]\nprotocol = \"http\"\naddress = \"127.0.0.1:25\"\ntls = \"required\"\nauth = [\"BEARER\"]\nauth_required = true": "",
		"queue.min_free = \"511MiB\"": "queue.min_free",
		"queue.min_free = \"512MiB\"": "",
		"hostname = \"mx\"\ndomains.accept = [\"a.b\"]\n[[listen]]\naddress = \":25\"": "hostname",
		"hostname = \"mx\"": "",
		"[[listen]]\naddress = \"127.0.0.1:25\"\ntls = \"required\"":                                                                    "listen[0].tls",
		"[[listen]]\naddress = \"127.0.0.1:25\"\ntls = \"required\"\n[smtp]\nhide = [\"starttls\"]":                                     "listen[0].tls smtp.hide",
		"auth.users = \"/u\"\nsmtp.hide = [\"AUTH\"]\n[[listen]]\naddress = \"127.0.0.1:25\"\nauth = [\"PLAIN\"]\nauth_required = true": "smtp.hide",
		"smtp.early_talkers = \"refuse\"":                                                                     "smtp.early_talkers",
		"smtp = { early_talkers = \"refuse\", greet_delay = \"1s\" }":                                         "",
		"timeouts.policy = \"5s\"\n[[hook]]\nat = [\"mail\"]\nurl = \"http://a/\"\non_error = \"accept\"":     "hook[0].timeout",
		"timeouts.policy = \"5001ms\"\n[[hook]]\nat = [\"mail\"]\nurl = \"http://a/\"\non_error = \"accept\"": "",
		"spf.timeout = \"30s\"":                                                                                   "", // nobody from another machine can come
		"spf.timeout = \"30s\"" + openListener:                                                                    "spf.timeout",
		"spf.timeout = \"29999ms\"" + openListener:                                                                "",
		"spf = { timeout = \"30s\", headers = false }" + openListener:                                             "spf.timeout",
		"spf = { timeout = \"30s\", headers = false, mode = \"enforce\" }" + openListener:                         "spf.timeout",
		"spf = { timeout = \"30s\", mode = \"off\" }" + openListener:                                              "",
		"dnsbl = { mode = \"enforce\", timeout = \"30s\", list = [{ zone = \"a.b\" }] }":                          "dnsbl.timeout",
		"dnsbl = { timeout = \"30s\", list = [{ zone = \"a.b\" }] }":                                              "", // no greeting waits
		"dns.max_per_client = 1\ndnsbl = { mode = \"enforce\", list = [{ zone = \"a.b\" }, { zone = \"c.d\" }] }": "dns.max_per_client",
		"dns.max_per_client = 1\ndnsbl = { list = [{ zone = \"a.b\" }, { zone = \"c.d\" }] }":                     "",
		"dnsbl = { timeout = \"30s\" }":                                                                           "",
		"dnsbl = { threshold = 3, list = [{ zone = \"a.b\", weight = 2 }, { zone = \"c\", weight = -1 }] }":       "dnsbl.threshold",
		"dnsbl = { threshold = 3, list = [{ zone = \"a.b\", weight = 2 }, { zone = \"c\" }] }":                    "",
		"[[milter]]\naddress = \"a:1\"":                                                                           "",
		"[[milter]]\naddress = \"a:1\"\non_error = \"accept\"":                                                    "milter[0].timeout",
	} {
		var got []string
		for _, w := range mustLoad(t, text, nil).Warnings() {
			got = append(got, w.Key)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}
