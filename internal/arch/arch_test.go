// Package arch holds the project's structure as a test: who may import whom, and which package is the door to which module.
package arch

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fastedge/fastedge"

// mayImport is the policy: each package, and what of ours it may import. A package that is not listed fails the test: a new one is
// argued in ARCHITECTURE.md and written here. Tests of a package may import what it may, and the packages in testOnly.
var mayImport = map[string]string{
	// Level 0: values and machines that know nothing of each other.
	"pool":             "",
	"smtpcodec":        "",
	"internal/metrics": "",
	"spf":              "",
	// Level 1
	"resolver":         "spf",
	"envelope":         "pool",
	"internal/logline": "envelope",
	"auth":             "",
	"policy":           "smtpcodec spf envelope pool",
	// Level 2
	"policy/rules":      "policy smtpcodec envelope",
	"policy/hook":       "policy smtpcodec envelope",
	"policy/milter":     "policy smtpcodec envelope",
	"session":           "smtpcodec policy envelope pool",
	"queue":             "envelope smtpcodec",
	"internal/proxyhdr": "policy",
	// Level 3
	"queue/spool":           "queue envelope pool",
	"queue/jetstream":       "queue envelope pool",
	"queue/forward":         "queue envelope pool",
	"queue/queuetest":       "queue envelope pool",
	"relay":                 "queue envelope pool smtpcodec",
	"internal/nettest":      "",
	"internal/openapicheck": "",
	"internal/smtptest":     "session policy spf smtpcodec envelope pool",
	"internal/admin":        "queue envelope",
	// Level 4
	"loop":     "session queue auth envelope policy pool smtpcodec internal/logline internal/proxyhdr",
	"httpedge": "session queue auth envelope policy pool smtpcodec internal/logline internal/proxyhdr",
	// The load tester is for any mail server: nothing of it knows ours.
	"loadtest":         "loadtest/ledger loadtest/live loadtest/machine loadtest/report loadtest/sink",
	"loadtest/report":  "",
	"loadtest/live":    "",
	"loadtest/machine": "loadtest/report",
	"loadtest/ledger":  "loadtest/report",
	"loadtest/sink":    "loadtest/ledger",
	// Level 5: cmd/fastedge builds everything, and it alone reads the configuration.
	"internal/config": "",
	"internal/certs":  "",
	"cmd/fastedge":    "*",
	// Nobody imports these; they drive programs from outside.
	"bench":         "*",
	"bench/report":  "",
	"internal/arch": "",
}

// testOnly may be imported by tests anywhere, and by no other code.
var testOnly = []string{"queue/queuetest", "internal/smtptest", "internal/nettest", "internal/openapicheck"}

// door is the one package that may import a third-party module, by prefix. Everything else stays out.
var door = map[string][]string{
	"github.com/panjf2000/gnet/v2":            {"loop"},
	"github.com/pelletier/go-toml/v2":         {"internal/config"},
	"github.com/alecthomas/kong":              {"cmd/fastedge"},
	"github.com/prometheus/client_golang":     {"internal/metrics"},
	"github.com/prometheus/client_model":      {"internal/metrics"},
	"github.com/HdrHistogram/hdrhistogram-go": {"loadtest", "loadtest/report"},
	"github.com/emersion/go-sasl":             {"auth"},
	"github.com/xdg-go/scram":                 {"auth"},
	"github.com/xdg-go/stringprep":            {"auth"},
	"golang.org/x/crypto":                     {"auth"},
	"golang.org/x/term":                       {"cmd/fastedge"},
	"golang.org/x/net/idna":                   {"spf"},
	"golang.org/x/net/publicsuffix":           {"resolver"},
	"github.com/pires/go-proxyproto":          {"internal/proxyhdr"},
	"github.com/valyala/fasthttp":             {"httpedge"},
	"github.com/klauspost/compress":           {"httpedge"},
	"github.com/nats-io/nats.go":              {"queue/jetstream"},
	"github.com/nats-io/nats-server/v2":       {"queue/jetstream", "queue/forward", "cmd/fastedge"}, // in tests
	"github.com/nats-io/jwt/v2":               {"cmd/fastedge"},                                     // in tests
	"github.com/nats-io/nkeys":                {"cmd/fastedge"},                                     // in tests
	"github.com/synadia-io/orbit.go":          {"queue/jetstream"},
	"github.com/gaissmai/bart":                {"policy"},
	"github.com/expr-lang/expr":               {"policy/rules"},
	"github.com/emersion/go-milter":           {"policy/milter"},
	"github.com/emersion/go-message":          {"policy/milter"},
	"github.com/miekg/dns":                    {"resolver"},
	"github.com/maypok86/otter/v2":            {"resolver"},
	"blitiri.com.ar/go/spf":                   {"spf"}, // in tests, as an oracle
	"gopkg.in/yaml.v3":                        {"spf"}, // in tests: the suites
	"golang.org/x/sys/unix":                   {"loop", "loadtest/live", "loadtest/machine"},
}

// pure packages decide and convert; they see no socket, file, clock or goroutine.
var pure = []string{"smtpcodec", "session", "spf"}

var impure = []string{"net", "os", "os/exec", "syscall", "io/ioutil", "net/http", "log", "log/slog", "sync", "context"}

type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImportsFollowThePolicy(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		allowed, known := mayImport[name]
		if !known {
			t.Errorf("%s is not in the import table", name)
			continue
		}
		for _, imp := range p.Imports {
			check(t, name, imp, allowed, false)
		}
		for _, imp := range append(p.TestImports, p.XTestImports...) {
			check(t, name, imp, allowed, true)
		}
	}
}

func check(t *testing.T, name, imp, allowed string, test bool) {
	t.Helper()
	if ours, ok := strings.CutPrefix(imp, module+"/"); ok {
		switch {
		case allowed == "*", slices.Contains(strings.Fields(allowed), ours), test && ours == name:
		case test && slices.Contains(testOnly, ours):
		default:
			t.Errorf("%s must not import %s", name, ours)
		}
		if !test && slices.Contains(testOnly, ours) {
			t.Errorf("%s imports %s outside a test", name, ours)
		}
		return
	}
	if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
		if !test && slices.Contains(pure, name) && slices.Contains(impure, imp) {
			t.Errorf("%s is pure and must not import %q", name, imp)
		}
		return
	}
	for prefix, doors := range door {
		if imp == prefix || strings.HasPrefix(imp, prefix+"/") {
			if !slices.Contains(doors, name) {
				t.Errorf("%s must not import %s: its door is %s", name, imp, strings.Join(doors, ", "))
			}
			return
		}
	}
	t.Errorf("%s imports %s, which has no door", name, imp)
}
