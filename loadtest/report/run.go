// Package report is what a load test leaves behind: the record of a run (run.json), and its renderings as a block of text, a page of
// HTML, CSV and Go benchmark lines. It compares runs, too.
//
// Everything here works on values: nothing is measured and no target is spoken to.
package report

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Schema is the version of run.json. A reader refuses a higher one; a field that is added does not raise it.
const Schema = 1

// Run is one load test, from its parameters to its verdict. It is what --out writes.
type Run struct {
	Schema  int       `json:"schema"`
	Tool    string    `json:"tool"`  // what made it, with version
	ID      string    `json:"id"`    // 16 hexadecimal digits; in every message of the run
	Label   string    `json:"label"` // what was measured, in the user's words; default: the target's address
	Started time.Time `json:"started"`

	Parameters Parameters `json:"parameters"`
	Machine    Machine    `json:"machine"`
	Target     Target     `json:"target"`

	// Seconds is the length of the measured part: warm-up and the wait for the last replies are not in it.
	Seconds float64 `json:"seconds"`
	Ended   string  `json:"ended"` // why: "duration", "messages", "interrupted", "target gone"

	Totals     Totals      `json:"totals"`
	Phases     []Phase     `json:"phases"`
	Replies    []Reply     `json:"replies"` // refusals and errors by text, most frequent first, at most MaxReplies
	Series     []Second    `json:"series"`
	Generator  Usage       `json:"generator"`
	Server     *Usage      `json:"server,omitempty"` // with --pid
	Idle       *Idle       `json:"idle,omitempty"`   // when connections were only held, with --pid
	Verdict    *Verdict    `json:"verdict,omitempty"`
	Thresholds []Threshold `json:"thresholds,omitempty"`
	FindMax    string      `json:"find_max,omitempty"` // the condition of --find-max
	Search     []Trial     `json:"search,omitempty"`   // with --find-max: every rate that was tried
	Warnings   []Warning   `json:"warnings,omitempty"`
}

// MaxReplies bounds Run.Replies; the rest is summed up in one entry with the text "other".
const MaxReplies = 40

// Parameters say what load was applied. Two runs whose Parameters differ are unlike: compare refuses them.
type Parameters struct {
	Protocol      string  `json:"protocol"`           // smtp, lmtp, http
	Loop          string  `json:"loop"`               // closed, open
	Rate          float64 `json:"rate,omitempty"`     // messages a second that arrive; open loop only
	Arrivals      string  `json:"arrivals,omitempty"` // constant, poisson
	Ramp          string  `json:"ramp,omitempty"`     // as given: "0..10000/s:120s"
	Connections   int     `json:"connections"`
	PerConnection int     `json:"per_connection"` // messages in a session; 0: no limit
	Duration      string  `json:"duration,omitempty"`
	Messages      int64   `json:"messages,omitempty"`
	Warmup        string  `json:"warmup,omitempty"`
	Profile       string  `json:"profile,omitempty"`
	Size          string  `json:"size"` // as given: "4KiB", "1KiB..64KiB", "lognormal:16KiB:1.5"
	Recipients    string  `json:"recipients"`
	Pipelining    string  `json:"pipelining"`         // off, group, tight
	BDAT          float64 `json:"bdat,omitempty"`     // share of messages, 0 to 1
	STARTTLS      float64 `json:"starttls,omitempty"` // share of connections
	ImplicitTLS   bool    `json:"implicit_tls,omitempty"`
	Auth          string  `json:"auth,omitempty"` // mechanism, never the password
	Sources       string  `json:"sources,omitempty"`
	Proxy         string  `json:"proxy,omitempty"`        // v1, v2
	SlowClients   float64 `json:"slow_clients,omitempty"` // share of connections
	BadClients    float64 `json:"bad_clients,omitempty"`
	SessionsOnly  bool    `json:"sessions_only,omitempty"` // connect, EHLO, QUIT: no mail
	Idle          bool    `json:"idle,omitempty"`          // connections that are only held
	Workers       int     `json:"workers"`
}

// Machine is where it was measured; generator and target are on the same machine unless the target is not loopback.
type Machine struct {
	Date       string  `json:"date"`
	Host       string  `json:"host"` // a hash: runs of one machine can be told from others without its name
	CPU        string  `json:"cpu"`
	Cores      int     `json:"cores"`              // that this process may use
	Platform   string  `json:"platform,omitempty"` // "linux/amd64"
	Kernel     string  `json:"kernel"`
	MemoryMiB  int64   `json:"memory_mib"`
	Go         string  `json:"go"`
	FileSystem string  `json:"file_system,omitempty"` // of the directory given by --disk or --verify spool:
	SyncP50Ms  float64 `json:"sync_p50_ms,omitempty"` // one 4 KiB write and fdatasync in that directory
	SyncP99Ms  float64 `json:"sync_p99_ms,omitempty"`
}

// Target is what answered.
type Target struct {
	Address string   `json:"address"`
	Banner  string   `json:"banner"`
	EHLO    []string `json:"ehlo"` // the extension lines of the first session
}

// Totals count messages of the measured part, warm-up excluded, by what became of them. A message to several recipients counts once:
// by the reply to its data, or as refused when no recipient was taken.
type Totals struct {
	Offered      int64 `json:"offered"` // arrivals due (open loop) or begun (closed loop)
	Acknowledged int64 `json:"acknowledged"`
	Deferred     int64 `json:"deferred"` // 4yz
	Refused      int64 `json:"refused"`  // 5yz
	Errors       int64 `json:"errors"`   // connection lost or reply not understood
	Waited       int64 `json:"waited"`   // open loop: arrivals that found no free connection
	Dropped      int64 `json:"dropped"`  // open loop: arrivals beyond the cap of those that wait
	Sessions     int64 `json:"sessions"` // completed, from connect to QUIT
	Bytes        int64 `json:"bytes"`    // message data of acknowledged messages
	BadClients   int64 `json:"bad_clients,omitempty"`
}

// Reply is a refusal or an error, and how often it came. Text is the reply's first line as the target wrote it, or "connection: …",
// cut to 200 octets, with control characters replaced.
type Reply struct {
	Phase string `json:"phase"`
	Text  string `json:"text"`
	Count int64  `json:"count"`
}

// Phase is the distribution of one phase's latency for one outcome. A command group is one phase.
type Phase struct {
	Name      string    `json:"name"`    // one of PhaseNames
	Outcome   string    `json:"outcome"` // one of OutcomeNames
	Histogram Histogram `json:"histogram"`
}

// PhaseNames in the order in which a session goes through them. "ack" is from the last octet of the message to its reply; "transaction"
// is from the intended start of a message (open loop: when it was due) to that reply; "session" is from connect to the end of QUIT.
var PhaseNames = []string{"connect", "banner", "ehlo", "tls", "auth", "mail", "rcpt", "data", "group", "ack", "transaction", "session"}

// OutcomeNames say how a phase ended.
var OutcomeNames = []string{"2xx", "4xx", "5xx", "error"}

// Histogram is an HDR histogram of microseconds, three significant digits, 1 µs to 1 h. In JSON it is an object with count, min, max,
// mean, the percentiles 50, 90, 99, 99.9 and 99.99, all in milliseconds, and "hdr", the V2 compressed form, from which it is read back.
type Histogram struct {
	*hdrhistogram.Histogram
}

// Second is one second of the measured part.
type Second struct {
	At           float64 `json:"at"` // seconds since its start
	Offered      int64   `json:"offered"`
	Acknowledged int64   `json:"acknowledged"`
	Deferred     int64   `json:"deferred"`
	Refused      int64   `json:"refused"`
	Errors       int64   `json:"errors"`
	Dropped      int64   `json:"dropped"`
	InFlight     int64   `json:"in_flight"` // transactions begun and not ended, at the end of the second
	Waiting      int64   `json:"waiting"`   // arrivals without a connection, at the end of the second
	AckP50Ms     float64 `json:"ack_p50_ms"`
	AckP99Ms     float64 `json:"ack_p99_ms"`
	ServerCPU    float64 `json:"server_cpu,omitempty"` // cores used by the target's processes
	ServerRSS    int64   `json:"server_rss,omitempty"` // bytes
}

// Usage is what a tree of processes used during the measured part.
type Usage struct {
	CPUSeconds      float64 `json:"cpu_seconds"`
	CPUPerThousand  float64 `json:"cpu_seconds_per_1000"` // messages acknowledged
	PeakRSS         int64   `json:"peak_rss_bytes"`
	ContextSwitches int64   `json:"context_switches"`
	Processes       int     `json:"processes"` // the most at one time
	// LagP99Ms is how late the generator's timers fired; generator only.
	LagP99Ms float64 `json:"lag_p99_ms,omitempty"`
}

// Idle is the memory of the target's processes before any connection and with all of them held, in bytes: resident, and proportional
// (each page that several processes share counts once).
type Idle struct {
	Connections int   `json:"connections"`
	RSSBefore   int64 `json:"rss_before_bytes"`
	RSSAfter    int64 `json:"rss_after_bytes"`
	PSSBefore   int64 `json:"pss_before_bytes"`
	PSSAfter    int64 `json:"pss_after_bytes"`
}

// Verdict is what the ledger says, counted in deliveries: a message to three recipients is three.
type Verdict struct {
	Verifier     string   `json:"verifier"` // "sink 127.0.0.1:2526", "spool:DIR"
	Acknowledged int64    `json:"acknowledged"`
	Refused      int64    `json:"refused"`
	Unknown      int64    `json:"unknown"`    // the connection was lost after the end of data: either may be true
	Received     int64    `json:"received"`   // different deliveries that arrived
	Lost         int64    `json:"lost"`       // acknowledged, not received
	Corrupt      int64    `json:"corrupt"`    // received with another body than was sent
	Duplicates   int64    `json:"duplicates"` // acknowledged deliveries that arrived more than once
	Repeats      int64    `json:"repeats"`    // unknown deliveries that arrived more than once: allowed, since a client would have sent again
	Phantom      int64    `json:"phantom"`    // received, though refused or never sent
	Altered      int64    `json:"altered"`    // header fields of ours changed on the way: told, not judged
	Examples     []string `json:"examples,omitempty"`
	Pass         bool     `json:"pass"`
}

// Threshold is a condition that the user set, such as ack.p99<20ms.
type Threshold struct {
	Text    string  `json:"text"`
	Actual  float64 `json:"actual"` // in the unit of the condition: milliseconds, messages a second, or a count
	Pass    bool    `json:"pass"`
	Missing string  `json:"missing,omitempty"` // why there is no Actual: "rss: not measured; it takes --pid"
}

// Trial is one step of --find-max.
type Trial struct {
	Rate   float64 `json:"rate"`
	Actual float64 `json:"actual"` // of the condition
	Pass   bool    `json:"pass"`
	// Kept is the share of what was due that was acknowledged, when it was too small for the trial to count. Zero: it was not.
	Kept float64 `json:"kept,omitempty"`
}

// Warning is a reason to doubt the figures. Code is stable, Text is for people.
type Warning struct {
	Code string `json:"code"` // generator-cpu, generator-lag, too-short, few-samples, faster-than-disk, shared-cores, target-closed, …
	Text string `json:"text"`
}

// Pass says whether verdict and thresholds hold.
func (r *Run) Pass() bool {
	if r.Verdict != nil && !r.Verdict.Pass {
		return false
	}
	for _, t := range r.Thresholds {
		if !t.Pass {
			return false
		}
	}
	return true
}
