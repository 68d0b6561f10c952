package spf

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// scenario is one document of a suite.
type scenario struct {
	Description string
	Comment     string
	Tests       map[string]suiteTest
	Zone        map[string][]map[string]yaml.Node `yaml:"zonedata"`
}

type suiteTest struct {
	Helo, Host, MailFrom  string
	Receiver, Explanation string
	Result                yaml.Node
	MaxVoid               int `yaml:"-"`
}

// results are those that a test accepts, the one its authors prefer first.
func (s suiteTest) results(t *testing.T) (out []string) {
	t.Helper()
	if s.Result.Kind == yaml.ScalarNode {
		return []string{s.Result.Value}
	}
	if err := s.Result.Decode(&out); err != nil || len(out) == 0 {
		t.Fatalf("results: %v", err)
	}
	return out
}

func (s *scenario) zone(t *testing.T) zone {
	t.Helper()
	z := zone{}
	for name, records := range s.Zone {
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		for _, r := range records {
			for kind, n := range r {
				switch {
				case kind == "MX" && n.Kind == yaml.SequenceNode:
					var pref int
					if err := n.Content[0].Decode(&pref); err != nil {
						t.Fatal(err)
					}
					z[name] = append(z[name], rr{kind: kind, value: n.Content[1].Value, pref: pref})
				case n.Kind == yaml.SequenceNode:
					all := ""
					for _, c := range n.Content {
						all += c.Value
					}
					z[name] = append(z[name], rr{kind: kind, value: all})
				default:
					z[name] = append(z[name], rr{kind: kind, value: n.Value})
				}
			}
		}
	}
	return z
}

// suite reads a suite from the test data of blitiri.com.ar/go/spf, which has copies of the public ones.
func suite(t *testing.T, file string) (all []scenario) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "blitiri.com.ar/go/spf").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	for dec := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var s scenario
		if err := dec.Decode(&s); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
}

// run runs every test of a suite, whatever other programs skip, and wants the first of the results that it lists. Exceptions are what is
// wanted instead, by test.
func run(t *testing.T, all []scenario, tests, explanations int, exceptions map[string]string) {
	ran, compared, excepted := 0, 0, 0
	for i := range all {
		z := all[i].zone(t)
		for _, name := range slices.Sorted(maps.Keys(all[i].Tests)) {
			test := all[i].Tests[name]
			ran++
			want := test.results(t)[0]
			if e, ok := exceptions[name]; ok {
				want, excepted = e, excepted+1
			}
			t.Run(name, func(t *testing.T) {
				c := New(Params{IP: netip.MustParseAddr(test.Host), Helo: test.Helo, Sender: test.MailFrom, Receiver: test.Receiver, MaxVoid: test.MaxVoid})
				var walk strings.Builder
				c.Trace = func(s Step) { fmt.Fprintf(&walk, "%+v\n", s) }
				r := c.Run(z.lookup)
				if r.Code.String() != want {
					t.Errorf("%s %s, helo %s: %s, want %s (%s)\n%s", test.Host, test.MailFrom, test.Helo, r.Code, want, r.Problem, walk.String())
				}
				if test.Explanation != "" {
					want := test.Explanation
					if want == "DEFAULT" {
						want = ""
					}
					if !strings.EqualFold(r.Explanation, want) {
						t.Errorf("explanation %q, want %q", r.Explanation, want)
					}
				}
			})
			if test.Explanation != "" {
				compared++
			}
		}
	}
	t.Logf("%d tests, %d of them with an explanation, %d exceptions", ran, compared, excepted)
	if ran != tests || compared != explanations || excepted != len(exceptions) {
		t.Errorf("%d tests, %d explanations; want %d and %d", ran, compared, tests, explanations)
	}
}

func TestRFC7208Suite(t *testing.T) { run(t, suite(t, "rfc7208-tests.yml"), 203, 22, nil) }

// Of the 18 tests of the older suite that leave a choice, these are where its authors preferred what RFC 7208 has changed since, and where
// they changed their own mind in the newer suite. Each is a result that the test lists.
func TestRFC4408Suite(t *testing.T) {
	second := map[string]string{
		// RFC 7208 §3.1, §4.4: records of type SPF are not asked for.
		"spfonly":     "none",
		"txttimeout":  "temperror",
		"multispf2":   "pass",
		"multitxt1":   "permerror",
		"spfoverride": "fail",
		// RFC 7208 §4.8 leaves it open; the newer suite prefers a name that does not exist, and so no match.
		"invalid-domain-empty-label":    "fail",
		"invalid-domain-long":           "fail",
		"invalid-domain-long-via-macro": "fail",
		// RFC 7208 §5, §2.6.6: an error of DNS is temperror, for exists, too.
		"exists-dnserr": "temperror",
		// RFC 7208 §4.6.4: more than ten MX hosts are permerror.
		"mx-limit": "permerror",
	}
	all := suite(t, "rfc4408-tests.yml")
	for i := range all {
		for name, test := range all[i].Tests {
			if want, ok := second[name]; ok && !slices.Contains(test.results(t), want) {
				t.Errorf("%s does not allow %s", name, want)
			}
		}
	}
	run(t, all, 191, 22, second)
}

// The two exceptions are tests of modes that pyspf has: one where it believes in a modifier of SPF drafts, one where it complains of it by a
// result that RFC 7208 doesn't know. RFC 7208 §6 wants unknown modifiers ignored, as default-modifier-obsolete of the RFC 7208 suite checks.
func TestPyspfSuite(t *testing.T) {
	run(t, suite(t, "pyspf-tests.yml"), 16, 0, map[string]string{"default-modifier": "neutral", "default-modifier-harsh": "neutral"})
}

// Some scenarios of this suite use names of one label for short. RFC 7208 §4.3 gives none for such a sender and §7.1 has no such domain-spec,
// which a-only-toplabel of the RFC 7208 suite checks. Those tests are about other things, so they run with ".test" after each such name.
func TestBlitiriSuite(t *testing.T) {
	all := suite(t, "blitirispf-tests.yml")
	for i := range all {
		all[i].qualify()
		// Ten mx terms of three hosts that do not exist are to pass, for that suite counts void lookups by term. We count queries: it is what keeps
		// such a record from asking 111 times. The test is about the number of terms, so it gets the 30 void lookups that it has.
		if test, ok := all[i].Tests["mx-resolution-10-terms"]; ok {
			test.MaxVoid = 30
			all[i].Tests["mx-resolution-10-terms"] = test
		}
	}
	run(t, all, 83, 0, nil)
}

var (
	oneLabel     = regexp.MustCompile(`^[a-z0-9-]+$`)
	oneLabelSpec = regexp.MustCompile(`\b((?:a|mx|include|exists|redirect)[:=][a-z0-9-]+)( |$)`)
)

func (s *scenario) qualify() {
	z := map[string][]map[string]yaml.Node{}
	for name, records := range s.Zone {
		for _, r := range records {
			for kind, n := range r {
				switch {
				case kind == "MX" && oneLabel.MatchString(n.Content[1].Value):
					n.Content[1].Value += ".test"
				case kind == "SPF" || kind == "TXT":
					n.Value = oneLabelSpec.ReplaceAllString(n.Value, "${1}.test$2")
					r[kind] = n
				}
			}
		}
		if oneLabel.MatchString(name) {
			name += ".test"
		}
		z[name] = records
	}
	s.Zone = z
	for name, test := range s.Tests {
		if _, domain, ok := strings.Cut(test.MailFrom, "@"); ok && oneLabel.MatchString(domain) {
			test.MailFrom += ".test"
			s.Tests[name] = test
		}
	}
}
