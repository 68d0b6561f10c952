package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func recipients(t testing.TB, delimiters, text string) *RecipientMap {
	t.Helper()
	m, err := readRecipients(strings.NewReader(text), int64(len(text)), delimiters)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const recipientFile = `# who is there
ann@example.net
  Bob.Smith@Example.NET	

"john doe"@example.net
ann+lists@example.net
!ann+spam@example.net
!carol@example.net
post-master@example.net
@example.org
!gone@example.org
!only@example.edu
ünï@bücher.example
!postmaster@strict.example
x@strict.example
user@[192.0.2.1]
`

func TestOnlyListedRecipientsExist(t *testing.T) {
	m := recipients(t, "", recipientFile)
	plus := recipients(t, "+-", recipientFile)
	for to, want := range map[string]struct{ exact, plus bool }{
		"ann@example.net":                                 {true, true},
		"ANN@EXAMPLE.NET":                                 {true, true},
		"bob.smith@example.net":                           {true, true},
		"bobsmith@example.net":                            {false, false},
		"nobody@example.net":                              {false, false},
		"carol@example.net":                               {false, false},
		"carol+x@example.net":                             {false, false},
		"ann+x@example.net":                               {false, true},
		"Ann+X+Y-z@example.net":                           {false, true},
		"ann-x@example.net":                               {false, true},
		"ann+@example.net":                                {false, true},
		"+ann@example.net":                                {false, false},
		"ann+lists@example.net":                           {true, true},
		"ann+spam@example.net":                            {false, false}, // has a line of its own
		"ann+spam+x@example.net":                          {false, false}, // and is the longest user that is known
		"post-master@example.net":                         {true, true},
		"post-master+x@example.net":                       {false, true}, // not the user "post"
		"post+x@example.net":                              {false, false},
		`"ann"@example.net`:                               {true, true}, // RFC 5321 §4.1.2
		`"a\nn"@example.net`:                              {true, true},
		`"john doe"@example.net`:                          {true, true},
		`"john doe+x"@example.net`:                        {false, true},
		`john@example.net`:                                {false, false},
		`"ann@example.net"@example.net`:                   {false, false},
		"anybody@example.org":                             {true, true},
		"gone@example.org":                                {false, false},
		"GONE@example.org":                                {false, false},
		"gone+x@example.org":                              {true, false},
		"anybody@sub.example.org":                         {true, true}, // no line speaks of it
		"only@example.edu":                                {false, false},
		"other@example.edu":                               {true, true}, // a line with "!" is about one address
		"x@elsewhere.test":                                {true, true},
		"ünï@bücher.example":                              {true, true},
		"ÜNï@bücher.example":                              {false, false}, // only ASCII has one case here
		"postmaster":                                      {true, true},
		"Postmaster@example.net":                          {true, true}, // RFC 5321 §4.5.1
		"postmaster+x@example.net":                        {false, true},
		"postmaster@strict.example":                       {false, false},
		"user@[192.0.2.1]":                                {true, true},
		"other@[192.0.2.1]":                               {false, false},
		strings.Repeat("a", 240) + "@example.net":         {false, false},
		"ann" + strings.Repeat("+", 200) + "@example.net": {false, true},
	} {
		if got := m.Exists(mailbox(to)); got != want.exact {
			t.Errorf("%.60q: %v", to, got)
		}
		if got := plus.Exists(mailbox(to)); got != want.plus {
			t.Errorf("%.60q with subaddresses: %v", to, got)
		}
	}
	for domain, want := range map[string]bool{"Example.net": true, "example.org": true, "example.edu": false, "elsewhere.test": false, "": false} {
		if got := m.HasDomain(domain); got != want {
			t.Errorf("%s: %v", domain, got)
		}
	}
	if m.Len() != 14 {
		t.Errorf("%d lines", m.Len())
	}
	var none *RecipientMap
	if !none.Exists(mailbox("a@b.example")) || none.Len() != 0 || none.HasDomain("b.example") || !recipients(t, "+", "#").Exists(mailbox("a@b.example")) {
		t.Error("an empty map refuses")
	}
}

func TestWrongLinesAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"a@example.net\nb\n":                      `line 2: "b" is neither`,
		"\n\n@\n":                                 `line 3: "@" is not @domain`,
		"a@":                                      "line 1:",
		"a b@example.net":                         "line 1:",
		"a@example.net b@example.net":             "line 1:",
		"a@example.net # comment":                 "line 1:",
		"<a@example.net>":                         "line 1:",
		"a@*.example.net":                         "line 1:",
		"@*.example.net":                          "line 1:",
		"a@example.net.":                          "line 1:",
		"a@exa\x00mple.net":                       "line 1:",
		"a\xff@example.net":                       "line 1:",
		"postmaster":                              "line 1:",
		"@a:b@example.net":                        "line 1:", // a source route
		"!@example.net":                           `line 1: "!" before a whole domain`,
		"a@example.net\n!A@example.net":           "line 2: \"a@example.net\" stands in another line",
		"!a@example.net\n# x\na@example.net":      "line 3:",
		"x\u2028@example.net":                     "line 1:",
		"\ufeffa@example.net b":                   "line 1:",
		strings.Repeat("a", 250) + "@example.net": "line 1:",
		"a@example.net\n#" + strings.Repeat("x", 70_000): "line 2: longer than 1024 bytes",
	} {
		if _, err := readRecipients(strings.NewReader(text), 0, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
	for _, text := range []string{"a@example.net\na@EXAMPLE.net\n@example.net\n@Example.net\n", "a@example.net\r\n!b@example.net\r\n", "", "# x", "\ufeff# x"} {
		if _, err := readRecipients(strings.NewReader(text), 0, ""); err != nil {
			t.Errorf("%.60q: %v", text, err)
		}
	}
	for _, delimiters := range []string{"a", "Z", "5", "@", ".", `"`, " ", "\n", "ä", "+++++++++"} {
		if _, err := readRecipients(strings.NewReader(""), 0, delimiters); err == nil {
			t.Errorf("delimiters %q were taken", delimiters)
		}
	}
}

func TestUnknownRecipientsAreRefusedAtRcpt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "recipients")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := NewRecipients(file, ""); err == nil {
		t.Fatal("a file that is not there was taken")
	}
	write("ann@example.net\n")
	r, err := NewRecipients(file, "+")
	if err != nil {
		t.Fatal(err)
	}
	rcpt := func(to string) string {
		e := &Event{Stage: AtRcpt, Path: mailbox(to)}
		if err := r.Validate(e); err != nil {
			t.Fatal(err)
		}
		if e.Reply.Code == 0 {
			return ""
		}
		return strings.TrimSpace(string(e.Reply.AppendTo(nil)))
	}
	if r.Stages() != On(AtRcpt) {
		t.Error("stages")
	}
	for to, want := range map[string]string{
		"ann+x@example.net": "", "bob@example.net": "550 5.1.1 <bob@example.net> No such recipient here", "bob@elsewhere.test": "",
		"bób@example.net": "550 5.1.1 No such recipient here", // not every client may be sent these bytes
	} {
		if got := rcpt(to); got != want {
			t.Errorf("%s: %q", to, got)
		}
	}

	if changed, err := r.Reload(); changed || err != nil {
		t.Errorf("nothing has changed: %v, %v", changed, err)
	}
	write("bob@example.net\n# longer\n")
	if changed, err := r.Reload(); !changed || err != nil {
		t.Errorf("%v, %v", changed, err)
	}
	if rcpt("bob@example.net") != "" || rcpt("ann@example.net") == "" {
		t.Error("the old map is in use")
	}
	// A wrong file, an empty one and none leave the old map in use, and are told each time.
	for _, text := range []string{"bob@example.net\nwrong line\n", "", "# nobody\n"} {
		write(text)
		for range 2 {
			if changed, err := r.Reload(); changed || err == nil {
				t.Errorf("%q: %v, %v", text, changed, err)
			}
		}
		if rcpt("bob@example.net") != "" || rcpt("ann@example.net") == "" {
			t.Errorf("%q: another map is in use", text)
		}
	}
	os.Remove(file)
	if changed, err := r.Reload(); changed || err == nil {
		t.Errorf("no file: %v, %v", changed, err)
	}
	// The same size, another file: only its time tells.
	write("ann@example.net\n")
	os.Chtimes(file, time.Time{}, time.Unix(1e9, 0))
	if changed, err := r.Reload(); !changed || err != nil || rcpt("ann@example.net") != "" {
		t.Errorf("%v, %v", changed, err)
	}
	write("bob@example.net\n")
	os.Chtimes(file, time.Time{}, time.Unix(1e9+1, 0))
	if changed, err := r.Reload(); !changed || err != nil || rcpt("bob@example.net") != "" {
		t.Errorf("%v, %v", changed, err)
	}
}

func TestTheMapIsReadAgainWhileItIsAsked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "recipients")
	os.WriteFile(file, []byte("ann@example.net\n"), 0o600)
	r, err := NewRecipients(file, "")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 2000 {
				e := &Event{Stage: AtRcpt, Path: mailbox("ann@example.net")}
				if r.Validate(e); e.Reply.Code != 0 {
					t.Error("somebody who is in each version is unknown")
				}
			}
		})
	}
	for i := range 20 {
		os.WriteFile(file, fmt.Appendf(nil, "ann@example.net\nuser%d@example.net\n", i*i*i), 0o600)
		if _, err := r.Reload(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

func TestLookupsDoNotAllocate(t *testing.T) {
	m := recipients(t, "+-", recipientFile)
	paths := []string{"ann@example.net", "nobody+x-y@example.net", "anybody@example.org", "x@elsewhere.test", `"john doe"@Example.net`, "postmaster"}
	for _, to := range paths {
		path := mailbox(to)
		if allocs := testing.AllocsPerRun(100, func() { m.Exists(path) }); allocs != 0 {
			t.Errorf("%s: %v allocations", to, allocs)
		}
	}
}

// FuzzRecipientMap: a file is refused, or its lines are what the map says.
func FuzzRecipientMap(f *testing.F) {
	f.Add(recipientFile, "ann+x@example.net", "+")
	f.Add("@a.b\n!c@a.b", "c@a.b", "+-")
	f.Fuzz(func(t *testing.T, text, to, delimiters string) {
		m, err := readRecipients(strings.NewReader(text), int64(len(text)), delimiters)
		if err != nil {
			return
		}
		m.Exists(mailbox(to))
		for line := range strings.SplitSeq(strings.TrimPrefix(text, "\ufeff"), "\n") {
			line = strings.Trim(line, " \t\r")
			if line == "" || line[0] == '#' {
				continue
			}
			address, gone := strings.CutPrefix(line, "!")
			if address[0] == '@' {
				if !m.HasDomain(address[1:]) {
					t.Errorf("%q: no domain %q", text, address)
				}
				continue
			}
			path, err := parseRecipient(address)
			if err != nil || m.Exists(path) == gone {
				t.Errorf("%q: %q: %v", text, line, err)
			}
		}
	})
}

// addresses are n lines of 24 bytes with their ends.
func addresses(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "user%07d@example.net\n", i)
	}
	return b.String()
}

func BenchmarkRecipients(b *testing.B) {
	const n = 1_000_000
	text := addresses(n)
	m := recipients(b, "+", text)
	known := mailbox("User0123456@example.net")
	unknown := mailbox("nobody+x@example.net")
	naive := map[string]bool{}
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		naive[line] = true
	}
	for name, path := range map[string]string{"known": string(known.Mailbox), "unknown": string(unknown.Mailbox)} {
		p := mailbox(path)
		b.Run("lookup="+name+"/impl=fastedge", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if m.Exists(p) != (name == "known") {
					b.Fatal(path)
				}
			}
		})
		b.Run("lookup="+name+"/impl=naive", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				key := strings.ToLower(string(p.Mailbox))
				if naive[key] != (name == "known") && naive["@"+key[strings.IndexByte(key, '@')+1:]] {
					b.Fatal(path)
				}
			}
		})
	}
	heap := func() uint64 {
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return ms.HeapAlloc
	}
	b.Run("load/impl=fastedge", func(b *testing.B) {
		before := heap()
		var m *RecipientMap
		for b.Loop() {
			m = recipients(b, "+", text)
		}
		b.ReportMetric(float64(heap()-before)/n, "heap-bytes/entry")
		b.ReportMetric(float64(m.Bytes())/n, "bytes/entry")
		runtime.KeepAlive(m)
	})
	b.Run("load/impl=naive", func(b *testing.B) {
		before := heap()
		var m map[string]bool
		for b.Loop() {
			m = map[string]bool{}
			for line := range strings.SplitSeq(text, "\n") {
				m[strings.Clone(line)] = true
			}
		}
		b.ReportMetric(float64(heap()-before)/n, "heap-bytes/entry")
		runtime.KeepAlive(m)
	})
}
