package config

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// rule says what the value of one key may be, and what it means.
type rule struct {
	doc   string
	words []string           // the value, or each element, is one of these
	later []string           // of words: those that are not built yet
	check func(string) error // the value, or each element, as text
	// min and max bound a number, size or duration, or each element: bytes, nanoseconds. Only when max is set.
	min, max int64
	// unbuilt keys may only have their default.
	unbuilt bool
}

func words(list string) []string { return strings.Fields(list) }

const (
	kib, mib, gib, tib = 1 << 10, 1 << 20, 1 << 30, 1 << 40

	ms     = int64(time.Millisecond)
	second = int64(time.Second)
	hour   = int64(time.Hour)
)

// keys has every key of the file. Arrays of tables have [] after their name, and spf.on has * for the result.
var keys = map[string]rule{
	"hostname": {check: func(s string) error { return checkDomain(s, false) },
		doc: "The name in the greeting, in EHLO replies and in Received fields. Default: the machine's name."},
	"state_dir": {check: notEmpty,
		doc: "Where the spool and the admin socket live. Default: $STATE_DIRECTORY, or ./fastedge-data."},

	"listen":                 {doc: "One table for each address. A file with any [[listen]] replaces the default one."},
	"listen[].name":          {doc: "For logs, metrics and Received fields. Default: the protocol.", check: checkName},
	"listen[].address":       {doc: `"127.0.0.1:2525", ":25" for all addresses, "[::1]:25", or "unix:/path".`},
	"listen[].protocol":      {words: words("smtp lmtp http"), later: words("http"), doc: "smtp | lmtp | http"},
	"listen[].tls":           {words: words("off opportunistic required implicit"), later: words("opportunistic required implicit"), doc: "off | opportunistic | required | implicit"},
	"listen[].relay_from":    {doc: "Networks that may send to any domain. Unix sockets always may."},
	"listen[].auth_required": {unbuilt: true, doc: "Refuse MAIL before AUTH."},
	"listen[].auth": {unbuilt: true, words: words("SCRAM-SHA-256 PLAIN LOGIN"),
		doc: `SASL mechanisms to offer, like ["SCRAM-SHA-256", "PLAIN"].`},
	"listen[].proxy_protocol_from": {unbuilt: true,
		doc: "These peers must speak the PROXY protocol, version 1 or 2; nobody else may."},

	"tls":                     {doc: "Certificates and versions for STARTTLS and implicit TLS."},
	"tls.certificates":        {unbuilt: true, doc: `[{ cert = "chain.pem", key = "key.pem" }]`},
	"tls.certificates[].cert": {check: notEmpty, doc: "PEM file with the certificate chain."},
	"tls.certificates[].key":  {check: notEmpty, doc: "PEM file with the private key."},
	"tls.min_version":         {unbuilt: true, words: words("1.2 1.3"), doc: "1.2 | 1.3"},
	"tls.session_tickets":     {unbuilt: true, doc: "Whether clients may resume TLS sessions."},
	"tls.reload_every": {unbuilt: true, min: second, max: 24 * hour,
		doc: "How often the files are looked at. A bad new certificate is logged and the old one kept."},

	"auth":       {doc: "Who may log in."},
	"auth.users": {unbuilt: true, doc: "File written by `fastedge auth add`; never plain passwords."},

	"domains": {doc: "Where mail may go."},
	"domains.accept": {check: checkPattern,
		doc: `Domains to accept mail for from anybody; "*.example.org" is every subdomain, but not example.org itself.`},
	"domains.recipients": {unbuilt: true, doc: "File with the recipients that exist; others are refused at RCPT."},

	"smtp": {doc: "The dialogue."},
	"smtp.line_endings": {words: words("strict normalize"),
		doc: "strict refuses bare CR and bare LF; normalize turns a bare LF in message data into CRLF (never into an end of data)."},
	"smtp.hide": {check: checkKeyword, doc: `EHLO keywords not to offer, like ["CHUNKING", "DSN"].`},

	"limits":             {doc: "What clients may use. Each refusal names the limit."},
	"limits.connections": {min: 1, max: 1_000_000, doc: "Open client connections; more get 421. The descriptor limit must allow for them."},
	"limits.connections_per_ip": {unbuilt: true, max: 1_000_000,
		doc: "The same for one client address. 0 is no limit."},
	"limits.message_size": {min: kib, max: 2 * gib, doc: "The largest message; larger ones get 552."},
	"limits.recipients":   {min: 1, max: 100_000, doc: "Recipients of one message; more get 452. RFC 5321 §4.5.3.1.8 wants at least 100."},
	"limits.errors":       {min: 1, max: 1_000_000, doc: "Refused commands after which a session is closed with 421."},
	"limits.memory":       {min: mib, max: tib, doc: "All message bytes that are not yet durable. When spent, clients get 452 and come back."},

	"timeouts":         {doc: "How long clients may take. RFC 5321 §4.5.3.2 wants 5m for commands and for data at least."},
	"timeouts.command": {min: 10 * ms, max: 24 * hour, doc: "One command, from the last reply to its end."},
	"timeouts.data":    {min: 10 * ms, max: 24 * hour, doc: "The data of one message, from 354 to its end."},
	"timeouts.drain":   {max: 24 * hour, doc: "How long TERM waits for open transactions."},

	"spf":              {doc: "Sender Policy Framework, RFC 7208."},
	"spf.mode":         {words: words("off observe enforce"), later: words("observe enforce"), doc: "off | observe | enforce"},
	"spf.identity":     {unbuilt: true, words: words("mail helo-then-mail"), doc: "mail | helo-then-mail"},
	"spf.enforce_at":   {unbuilt: true, words: words("mail rcpt data"), doc: "mail | rcpt | data"},
	"spf.skip":         {unbuilt: true, doc: "Networks that are not checked."},
	"spf.timeout":      {unbuilt: true, min: 10 * ms, max: hour, doc: "For all lookups of one check together."},
	"spf.void_lookups": {unbuilt: true, max: 100, doc: "Lookups without an answer before the result is permerror, RFC 7208 §4.6.4."},
	"spf.on": {unbuilt: true, words: words("pass fail softfail neutral none temperror permerror"),
		doc: "[spf.on.fail] and so on: the reply to a result."},
	"spf.on.*.code":    {min: 200, max: 599, doc: "Reply code."},
	"spf.on.*.message": {doc: "Enhanced status code and text; {reason} is filled in."},

	"dns":              {doc: "The resolver."},
	"dns.servers":      {unbuilt: true, doc: "Servers as host:port. Default: those of /etc/resolv.conf."},
	"dns.timeout":      {unbuilt: true, min: 10 * ms, max: hour, doc: "For one query."},
	"dns.cache_bytes":  {unbuilt: true, max: 64 * gib, doc: "Memory for answers."},
	"dns.max_inflight": {unbuilt: true, min: 1, max: 1_000_000, doc: "Queries that may wait for their answers at once."},

	"queue": {doc: "What takes responsibility for accepted mail."},
	"queue.engine": {words: words("spool jetstream discard"), later: words("jetstream"),
		doc: "spool | jetstream | discard. discard throws mail away: for benchmarks only."},
	"queue.durability": {words: words("fsync os"),
		doc: "fsync | os. With os a power cut may lose acknowledged mail."},
	"queue.min_free":     {max: math.MaxInt64, doc: "Free space below which mail is refused with 452, so that the disk never fills up."},
	"queue.segment_size": {min: mib, max: 4 * gib, doc: "Size of one file of the spool."},

	"queue.jetstream":          {doc: "NATS JetStream, when one machine is not enough."},
	"queue.jetstream.url":      {unbuilt: true, doc: "Servers, separated by commas."},
	"queue.jetstream.stream":   {unbuilt: true, doc: "Name of the stream."},
	"queue.jetstream.subject":  {unbuilt: true, doc: "Subject to publish to."},
	"queue.jetstream.replicas": {unbuilt: true, min: 1, max: 5, doc: "Copies of each message."},

	"relay": {doc: "Where accepted mail goes."},
	"relay.next_hop": {
		doc: `["smtp://host:25", "lmtp://host:24", "lmtp+unix:///path"], tried in turn. Without one, mail is held.`},
	"relay.connections": {min: 1, max: 10_000, doc: "Connections to the next hop at once."},
	"relay.retry":       {min: 10 * ms, max: 30 * 24 * hour, doc: "Waits between attempts; the last one repeats."},
	"relay.max_age":     {min: second, max: 365 * 24 * hour, doc: "Mail older than this is no longer tried and kept as dead."},

	"admin":      {doc: "Health, metrics and profiles over HTTP, read-only. The queue commands use a socket in state_dir instead."},
	"admin.http": {doc: `Address, or "" for none.`},

	"log":        {doc: "Logs go to standard error."},
	"log.format": {words: words("auto json text"), doc: "auto | json | text. auto is text on a terminal and JSON elsewhere."},
	"log.level":  {words: words("debug info warn error"), doc: "debug | info | warn | error"},
}

func notEmpty(s string) error {
	if s == "" {
		return fmt.Errorf("may not be empty")
	}
	return nil
}

// ehloKeywords are those that fastedge offers; RFC 1869 keywords do not mind case.
var ehloKeywords = words("PIPELINING SIZE 8BITMIME BINARYMIME CHUNKING SMTPUTF8 ENHANCEDSTATUSCODES DSN LIMITS")

func checkKeyword(s string) error {
	if !slices.Contains(ehloKeywords, strings.ToUpper(s)) {
		return fmt.Errorf("%q is not offered: one of %s", s, strings.Join(ehloKeywords, ", "))
	}
	return nil
}
