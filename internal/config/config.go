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
	Clients  Clients    `toml:"clients"`
	Domains  Domains    `toml:"domains"`
	Rule     []Rule     `toml:"rule"`
	Hook     []Hook     `toml:"hook"`
	Milter   []Milter   `toml:"milter"`
	SMTP     SMTP       `toml:"smtp"`
	HTTP     HTTP       `toml:"http"`
	Limits   Limits     `toml:"limits"`
	Timeouts Timeouts   `toml:"timeouts"`
	SPF      SPF        `toml:"spf"`
	DNSBL    DNSBL      `toml:"dnsbl"`
	PTR      PTR        `toml:"ptr"`
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
	Name               string         `toml:"name"`
	Address            Address        `toml:"address"`
	Protocol           string         `toml:"protocol"`
	TLS                string         `toml:"tls"`
	ClientCertificates string         `toml:"client_certificates"`
	ProxyProtocolFrom  []netip.Prefix `toml:"proxy_protocol_from"`
	RelayFrom          []netip.Prefix `toml:"relay_from"`
	PostFrom           []netip.Prefix `toml:"post_from"` // of HTTP only; otherwise empty
	Auth               []string       `toml:"auth"`
	AuthRequired       bool           `toml:"auth_required"`
}

// TLS is [tls].
type TLS struct {
	Certificates   []Certificate `toml:"certificates"`
	MinVersion     string        `toml:"min_version"`
	SessionTickets bool          `toml:"session_tickets"`
	ReloadEvery    time.Duration `toml:"reload_every"`
	ClientCA       string        `toml:"client_ca"`
}

// Certificate is one pair of PEM files.
type Certificate struct {
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
}

// Auth is [auth].
type Auth struct {
	Users   string        `toml:"users"`
	HTTP    string        `toml:"http"`
	Dovecot string        `toml:"dovecot"`
	Keys    string        `toml:"keys"`
	Timeout time.Duration `toml:"timeout"`
	CRAMMD5 bool          `toml:"cram_md5"`
}

// Clients is [clients].
type Clients struct {
	Allow []netip.Prefix `toml:"allow"`
	Deny  []netip.Prefix `toml:"deny"`
}

// Domains is [domains].
type Domains struct {
	Accept     []string `toml:"accept"`
	Recipients string   `toml:"recipients"`
	Subaddress string   `toml:"subaddress"`
}

// Rule is one [[rule]] table. Exactly one of Reply and Accept is set.
type Rule struct {
	Name   string `toml:"name"` // never empty after Load: "rule1" and so on
	At     string `toml:"at"`
	When   string `toml:"when"`
	Reply  string `toml:"reply"`
	Accept bool   `toml:"accept"`
	Mode   string `toml:"mode"`
}

// Hook is one [[hook]] table.
type Hook struct {
	Name    string        `toml:"name"` // never empty after Load: "hook1" and so on
	At      []string      `toml:"at"`
	URL     string        `toml:"url"`
	Timeout time.Duration `toml:"timeout"`
	Cache   time.Duration `toml:"cache"` // 0: answers are not kept
	OnError string        `toml:"on_error"`
}

// Milter is one [[milter]] table.
type Milter struct {
	Name    string        `toml:"name"` // never empty after Load: "milter1" and so on
	Address Endpoint      `toml:"address"`
	Timeout time.Duration `toml:"timeout"`
	OnError string        `toml:"on_error"`
}

// SMTP is [smtp].
type SMTP struct {
	LineEndings  string        `toml:"line_endings"`
	Hide         []string      `toml:"hide"`
	GreetDelay   time.Duration `toml:"greet_delay"`
	EarlyTalkers string        `toml:"early_talkers"`
}

// HTTP is [http].
type HTTP struct {
	Path            string        `toml:"path"` // a regular expression; empty: any path
	Method          string        `toml:"method"`
	SenderHeader    string        `toml:"sender_header"`
	RecipientHeader string        `toml:"recipient_header"`
	EhloHeader      string        `toml:"ehlo_header"`
	Success         int           `toml:"success"`     // 200 or 204
	Connections     int           `toml:"connections"` // over all listeners
	HeaderBytes     Size          `toml:"header_bytes"`
	BatchMessages   int           `toml:"batch_messages"`
	BatchLine       Size          `toml:"batch_line"` // never 0 after Load: by default what fits limits.message_size
	BatchBytes      Size          `toml:"batch_bytes"`
	IdempotencyKeys int           `toml:"idempotency_keys"`
	IdempotencyTime time.Duration `toml:"idempotency_time"`
}

// Limits is [limits].
type Limits struct {
	Connections          int  `toml:"connections"`
	ConnectionsPerIP     int  `toml:"connections_per_ip"`
	ConnectionsPerPrefix int  `toml:"connections_per_prefix"`
	ConnectionRate       int  `toml:"connection_rate"` // a minute
	MessageRate          int  `toml:"message_rate"`    // a minute
	MessageSize          Size `toml:"message_size"`
	Recipients           int  `toml:"recipients"`
	Errors               int  `toml:"errors"`
	JunkCommands         int  `toml:"junk_commands"`
	AuthFailures         int  `toml:"auth_failures"`
	Handshakes           int  `toml:"handshakes"`
	DataRate             Size `toml:"data_rate"` // a second
	Memory               Size `toml:"memory"`
}

// Timeouts is [timeouts].
type Timeouts struct {
	Command     time.Duration `toml:"command"`
	Data        time.Duration `toml:"data"`
	Handshake   time.Duration `toml:"handshake"`
	ProxyHeader time.Duration `toml:"proxy_header"`
	Policy      time.Duration `toml:"policy"`
	HTTPHeader  time.Duration `toml:"http_header"`
	HTTPIdle    time.Duration `toml:"http_idle"`
	Drain       time.Duration `toml:"drain"`
}

// SPF is [spf].
type SPF struct {
	Mode        string         `toml:"mode"`
	Identity    string         `toml:"identity"`
	EnforceAt   string         `toml:"enforce_at"`
	Skip        []netip.Prefix `toml:"skip"`
	Timeout     time.Duration  `toml:"timeout"`
	VoidLookups int            `toml:"void_lookups"` // 0: none may come back empty
	Headers     bool           `toml:"headers"`
	// On has the rules by the word for a result. What the file says is laid over the default ones, key by key.
	On map[string]SPFAction `toml:"on"`
}

// SPFAction is one [spf.on.RESULT] table.
type SPFAction struct {
	Code    int    `toml:"code"`
	Message string `toml:"message"` // with {reason}; empty: that of RFC 7372
}

// DNSBL is [dnsbl].
type DNSBL struct {
	Mode      string         `toml:"mode"`
	Threshold int            `toml:"threshold"`
	Code      int            `toml:"code"`
	Message   string         `toml:"message"` // with {zone} and {reason}; empty: the usual one
	Skip      []netip.Prefix `toml:"skip"`
	Timeout   time.Duration  `toml:"timeout"`
	List      []DNSBLList    `toml:"list"`
}

// DNSBLList is one [[dnsbl.list]] table.
type DNSBLList struct {
	Zone    string         `toml:"zone"`
	Weight  int            `toml:"weight"` // negative: a list of good clients; never 0
	Answers []netip.Prefix `toml:"answers"`
}

// PTR is [ptr].
type PTR struct {
	Mode string `toml:"mode"`
}

// DNS is [dns].
type DNS struct {
	Servers      []string      `toml:"servers"` // IP addresses, each with or without a port; empty: those of the machine
	Timeout      time.Duration `toml:"timeout"`
	CacheBytes   Size          `toml:"cache_bytes"`
	MaxInflight  int           `toml:"max_inflight"`
	MaxPerClient int           `toml:"max_per_client"`
	MaxPerZone   int           `toml:"max_per_zone"`
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
	URL          NATSServers   `toml:"url"`
	Stream       string        `toml:"stream"`
	Subject      string        `toml:"subject"`
	Replicas     int           `toml:"replicas"`
	Create       bool          `toml:"create"` // false: stream and consumer are only verified
	Credentials  string        `toml:"credentials"`
	User         string        `toml:"user"`
	Password     string        `toml:"password"` // never shown
	CA           string        `toml:"ca"`
	Cert         string        `toml:"cert"`
	Key          string        `toml:"key"`
	Durable      string        `toml:"durable"` // name of the consumer
	Batch        string        `toml:"batch"`
	Window       int           `toml:"window"` // messages
	WindowBytes  Size          `toml:"window_bytes"`
	Timeout      time.Duration `toml:"timeout"`
	Duplicates   time.Duration `toml:"duplicates"`
	MaxBytes     Size          `toml:"max_bytes"` // of the stream; 0: no limit
	DeadSubject  string        `toml:"dead_subject"`
	ObjectBucket string        `toml:"object_bucket"`
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
	return Listener{Protocol: "smtp", TLS: "off", ClientCertificates: "off", RelayFrom: slices.Clone(loopback)}
}

// setDefaults fills an element of an array of tables with what it starts from.
func setDefaults(element any) {
	switch e := element.(type) {
	case *Listener:
		*e = defaultListener()
	case *Rule:
		*e = Rule{Mode: "enforce"}
	case *Hook:
		*e = Hook{Timeout: 5 * time.Second, OnError: "defer"}
	case *DNSBLList:
		*e = DNSBLList{Weight: 1}
	case *Milter:
		*e = Milter{Timeout: 30 * time.Second, OnError: "defer"}
	}
}

// Default is the configuration without a file: SMTP and HTTP for this machine alone, any recipient, and the mail is held in ./fastedge-data.
func Default() Config { return defaults(os.Getenv("STATE_DIRECTORY")) }

// defaults takes systemd's STATE_DIRECTORY, a list of directories separated by colons of which the first is ours.
func defaults(stateDirectory string) Config {
	smtp := defaultListener()
	smtp.Name, smtp.Address = "smtp", Address{"tcp", "127.0.0.1:2525"}
	http := defaultListener()
	http.Name, http.Address, http.Protocol, http.PostFrom = "http", Address{"tcp", "127.0.0.1:8025"}, "http", slices.Clone(loopback)
	stateDir, _, _ := strings.Cut(stateDirectory, ":")
	if stateDir == "" {
		stateDir = "./fastedge-data"
	}
	c := Config{
		Hostname: machineName(),
		StateDir: stateDir,
		Listen:   []Listener{smtp, http},
		TLS:      TLS{MinVersion: "1.2", ReloadEvery: 30 * time.Second},
		Auth:     Auth{Timeout: 10 * time.Second},
		Domains:  Domains{Subaddress: "+"},
		SMTP:     SMTP{LineEndings: "strict", EarlyTalkers: "count"},
		HTTP: HTTP{
			Method:          "POST",
			SenderHeader:    "X-Envelope-Sender",
			RecipientHeader: "X-Envelope-Recipient",
			EhloHeader:      "X-Ehlo",
			Success:         200,
			Connections:     4096,
			HeaderBytes:     64 << 10,
			BatchMessages:   10_000,
			BatchBytes:      1 << 30,
			IdempotencyKeys: 1_000_000,
			IdempotencyTime: day,
		},
		Limits: Limits{
			Connections:  20000,
			MessageSize:  25 << 20,
			Recipients:   1000,
			Errors:       20,
			JunkCommands: 100,
			AuthFailures: 3,
			Handshakes:   4096,
			DataRate:     64,
			Memory:       512 << 20,
		},
		Timeouts: Timeouts{
			Command:     5 * time.Minute,
			Data:        10 * time.Minute,
			Handshake:   30 * time.Second,
			ProxyHeader: 5 * time.Second,
			Policy:      30 * time.Second,
			HTTPHeader:  10 * time.Second,
			HTTPIdle:    time.Minute,
			Drain:       time.Minute,
		},
		SPF: SPF{
			Mode:        "observe",
			Identity:    "mail",
			EnforceAt:   "mail",
			Timeout:     10 * time.Second,
			VoidLookups: 2,
			Headers:     true,
			On:          map[string]SPFAction{"fail": {Code: 550}},
		},
		DNSBL: DNSBL{
			Mode:      "observe",
			Threshold: 1,
			Code:      554,
			Timeout:   5 * time.Second,
		},
		PTR: PTR{Mode: "on"},
		DNS: DNS{Timeout: 5 * time.Second, CacheBytes: 64 << 20, MaxInflight: 4096, MaxPerClient: 256, MaxPerZone: 1024},
		Queue: Queue{
			Engine:      "spool",
			Durability:  "fsync",
			MinFree:     1 << 30,
			SegmentSize: 256 << 20,
			JetStream: JetStream{
				URL:         NATSServers{"nats://127.0.0.1:4222"},
				Stream:      "MAIL",
				Subject:     "mail.inbound",
				Replicas:    1,
				Create:      true,
				Durable:     "fastedge",
				Batch:       "auto",
				Window:      4096,
				WindowBytes: 64 << 20,
				Timeout:     5 * time.Second,
				Duplicates:  2 * time.Minute,
			},
		},
		Relay: Relay{
			Connections: 32,
			Retry:       []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour},
			MaxAge:      5 * day,
		},
		Admin: Admin{HTTP: Address{"tcp", "127.0.0.1:9025"}},
		Log:   Log{Format: "auto", Level: "info"},
	}
	c.HTTP.BatchLine = c.batchLine()
	return c
}

// batchLine is a line of a batch that the largest message fits into: base64 makes four octets of three, and addresses and options want some room. It
// is whole KiB, and no more than a batch may have.
func (c *Config) batchLine() Size {
	return min((c.Limits.MessageSize/3*4+4+64<<10+1023)>>10<<10, c.HTTP.BatchBytes)
}

// HasHTTP says that a listener takes mail by HTTP.
func (c *Config) HasHTTP() bool {
	return slices.ContainsFunc(c.Listen, func(l Listener) bool { return l.Protocol == "http" })
}

// UsesJetStream says that mail goes to JetStream, at once or by way of the spool.
func (c *Config) UsesJetStream() bool {
	return c.Queue.Engine == "jetstream" || c.Queue.Engine == "spool+jetstream"
}

// UsesSpool says that mail is kept on this machine.
func (c *Config) UsesSpool() bool {
	return c.Queue.Engine == "spool" || c.Queue.Engine == "spool+jetstream"
}

// AsksDNS says that something is to be looked up about clients: SPF, lists or their names. Clients on this machine never are.
func (c *Config) AsksDNS() bool {
	if c.SPF.Mode == "off" && c.PTR.Mode == "off" && (c.DNSBL.Mode == "off" || len(c.DNSBL.List) == 0) {
		return false
	}
	return slices.ContainsFunc(c.Listen, func(l Listener) bool { return !l.Address.IsLocal() || len(l.ProxyProtocolFrom) > 0 })
}

// machineName is the machine's own name if it may stand in a greeting (RFC 5321 §4.2).
func machineName() string {
	name, err := os.Hostname()
	if err != nil || checkDomain(name, false) != nil {
		return "localhost"
	}
	return name
}

// Changed names the keys whose values differ between two configurations, in the order of the file. An element of an array of tables that
// differs is named as a whole.
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
