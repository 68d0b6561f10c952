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
				c := New(Params{IP: netip.MustParseAddr(test.Host), Helo: test.Helo, Sender: test.MailFrom, Receiver: test.Receiver})
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

func TestRFC4408Suite(t *testing.T) { run(t, suite(t, "rfc4408-tests.yml"), 191, 22, nil) }

func TestPyspfSuite(t *testing.T) { run(t, suite(t, "pyspf-tests.yml"), 16, 0, nil) }

func TestBlitiriSuite(t *testing.T) { run(t, suite(t, "blitirispf-tests.yml"), 83, 0, nil) }
