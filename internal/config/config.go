// Package config reads fastedge's configuration: a strict TOML file, FASTEDGE_* variables and flags over defaults that are safe to
// run with no file at all.
//
// Load gathers every mistake before it fails, each with file, line, column and a caret where the file is to blame. Syntax is
// go-toml's; which keys there are is in the structs below, and what each may be (range, words, whether it is built yet) and means is
// the table in keys.go, from which the commented default file is written too. Rules that concern several keys are in rules.go, what the
// machine must offer in machine.go.
//
// The package imports none of ours. After CheckMachine, which may lower limits.connections, a Config no longer changes and may be read
// from any goroutine.
package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is everything fastedge can be told. Field names follow the keys; keys.go says what they mean.
type Config struct {
	Hostname string     `toml:"hostname"`
	StateDir string     `toml:"state_dir"`
	Listen   []Listener `toml:"listen"`
	TLS      TLS        `toml:"tls"`
	Auth     Auth       `toml:"auth"`
	Domains  Domains    `toml:"domains"`
	SMTP     SMTP       `toml:"smtp"`
	Limits   Limits     `toml:"limits"`
	Timeouts Timeouts   `toml:"timeouts"`
	SPF      SPF        `toml:"spf"`
	DNS      DNS        `toml:"dns"`
	Queue    Queue      `toml:"queue"`
	Relay    Relay      `toml:"relay"`
	Admin    Admin      `toml:"admin"`
	Log      Log        `toml:"log"`

	origins map[string]Origin // by key; a key that is missing has its default
	doc     *document         // nil without a file
}

// Listener is one [[listen]] table.
type Listener struct {
	Name              string         `toml:"name"`
	Address           Address        `toml:"address"`
	Protocol          string         `toml:"protocol"`
	TLS               string         `toml:"tls"`
	ProxyProtocolFrom []netip.Prefix `toml:"proxy_protocol_from"`
	RelayFrom         []netip.Prefix `toml:"relay_from"`
	Auth              []string       `toml:"auth"`
	AuthRequired      bool           `toml:"auth_required"`
}

// TLS is [tls].
type TLS struct {
	Certificates   []Certificate `toml:"certificates"`
	MinVersion     string        `toml:"min_version"`
	SessionTickets bool          `toml:"session_tickets"`
	ReloadEvery    time.Duration `toml:"reload_every"`
}

// Certificate is one pair of PEM files.
type Certificate struct {
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
}

// Auth is [auth].
type Auth struct {
	Users string `toml:"users"`
}

// Domains is [domains].
type Domains struct {
	Accept     []string `toml:"accept"`
	Recipients string   `toml:"recipients"`
}

// SMTP is [smtp].
type SMTP struct {
	LineEndings string   `toml:"line_endings"`
	Hide        []string `toml:"hide"`
}

// Limits is [limits].
type Limits struct {
	Connections      int  `toml:"connections"`
	ConnectionsPerIP int  `toml:"connections_per_ip"`
	MessageSize      Size `toml:"message_size"`
	Recipients       int  `toml:"recipients"`
	Errors           int  `toml:"errors"`
	Memory           Size `toml:"memory"`
}

// Timeouts is [timeouts].
type Timeouts struct {
	Command time.Duration `toml:"command"`
	Data    time.Duration `toml:"data"`
	Drain   time.Duration `toml:"drain"`
}

// SPF is [spf]. On has one entry per result that is not left to its default action.
type SPF struct {
	Mode        string               `toml:"mode"`
	Identity    string               `toml:"identity"`
	EnforceAt   string               `toml:"enforce_at"`
	Skip        []netip.Prefix       `toml:"skip"`
	Timeout     time.Duration        `toml:"timeout"`
	VoidLookups int                  `toml:"void_lookups"`
	On          map[string]SPFAction `toml:"on"`
}

// SPFAction is one [spf.on.RESULT] table.
type SPFAction struct {
	Code    int    `toml:"code"`
	Message string `toml:"message"`
}

// DNS is [dns].
type DNS struct {
	Servers     []string      `toml:"servers"`
	Timeout     time.Duration `toml:"timeout"`
	CacheBytes  Size          `toml:"cache_bytes"`
	MaxInflight int           `toml:"max_inflight"`
}

// Queue is [queue].
type Queue struct {
	Engine      string    `toml:"engine"`
	Durability  string    `toml:"durability"`
	MinFree     Size      `toml:"min_free"`
	SegmentSize Size      `toml:"segment_size"`
	JetStream   JetStream `toml:"jetstream"`
}

// JetStream is [queue.jetstream].
type JetStream struct {
	URL      string `toml:"url"`
	Stream   string `toml:"stream"`
	Subject  string `toml:"subject"`
	Replicas int    `toml:"replicas"`
}

// Relay is [relay].
type Relay struct {
	NextHop     []NextHop       `toml:"next_hop"`
	Connections int             `toml:"connections"`
	Retry       []time.Duration `toml:"retry"`
	MaxAge      time.Duration   `toml:"max_age"`
}

// Admin is [admin].
type Admin struct {
	HTTP Address `toml:"http"`
}

// Log is [log].
type Log struct {
	Format string `toml:"format"`
	Level  string `toml:"level"`
}

// SpoolDir is where the spool engine keeps its files.
func (c *Config) SpoolDir() string { return filepath.Join(c.StateDir, "spool") }

// AdminSocket is where a running server listens for the queue commands.
func (c *Config) AdminSocket() string { return filepath.Join(c.StateDir, "admin.sock") }

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// defaultListener is what a [[listen]] table starts from.
func defaultListener() Listener {
	return Listener{Protocol: "smtp", TLS: "off", RelayFrom: slices.Clone(loopback)}
}

// Default is the configuration without a file: SMTP for this machine alone, any recipient, and the mail is held in ./fastedge-data.
func Default() Config { return defaults(os.Getenv("STATE_DIRECTORY")) }

// defaults takes systemd's STATE_DIRECTORY, a list of directories separated by colons of which the first is ours.
func defaults(stateDirectory string) Config {
	smtp := defaultListener()
	smtp.Name, smtp.Address = "smtp", Address{"tcp", "127.0.0.1:2525"}
	stateDir, _, _ := strings.Cut(stateDirectory, ":")
	if stateDir == "" {
		stateDir = "./fastedge-data"
	}
	return Config{
		Hostname: machineName(),
		StateDir: stateDir,
		Listen:   []Listener{smtp},
		TLS:      TLS{MinVersion: "1.2", ReloadEvery: 30 * time.Second},
		SMTP:     SMTP{LineEndings: "strict"},
		Limits: Limits{
			Connections: 20000,
			MessageSize: 25 << 20,
			Recipients:  1000,
			Errors:      20,
			Memory:      512 << 20,
		},
		Timeouts: Timeouts{Command: 5 * time.Minute, Data: 10 * time.Minute, Drain: time.Minute},
		// mode becomes "observe" with the issue that builds SPF.
		SPF: SPF{Mode: "off", Identity: "mail", EnforceAt: "mail", Timeout: 10 * time.Second, VoidLookups: 2},
		DNS: DNS{Timeout: 5 * time.Second, CacheBytes: 64 << 20, MaxInflight: 4096},
		Queue: Queue{
			Engine:      "spool",
			Durability:  "fsync",
			MinFree:     1 << 30,
			SegmentSize: 256 << 20,
			JetStream:   JetStream{Stream: "MAIL", Subject: "mail.inbound", Replicas: 3},
		},
		Relay: Relay{
			Connections: 32,
			Retry:       []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour},
			MaxAge:      5 * day,
		},
		Admin: Admin{HTTP: Address{"tcp", "127.0.0.1:9025"}},
		Log:   Log{Format: "auto", Level: "info"},
	}
}

// machineName is the machine's own name if it may stand in a greeting (RFC 5321 §4.2).
func machineName() string {
	name, err := os.Hostname()
	if err != nil || checkDomain(name, false) != nil {
		return "localhost"
	}
	return name
}

// Changed names the keys whose values differ between two configurations, in the order of the file. A [[listen]] that differs is
// named as a whole.
func Changed(a, b *Config) []string {
	var keys []string
	var walk func(path string, a, b reflect.Value)
	walk = func(path string, a, b reflect.Value) {
		if isTable(a.Type()) {
			for _, f := range fieldsOf(a.Type()) {
				walk(join(path, f.name), a.Field(f.index), b.Field(f.index))
			}
			return
		}
		if a.Kind() == reflect.Slice && isTable(a.Type().Elem()) && a.Len() == b.Len() {
			for i := range a.Len() {
				if !same(a.Index(i), b.Index(i)) {
					keys = append(keys, path+"["+strconv.Itoa(i)+"]")
				}
			}
			return
		}
		if !same(a, b) {
			keys = append(keys, path)
		}
	}
	walk("", reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem())
	return keys
}
