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
	check func(string) error // the value, or each element, as text
	// min and max bound a number, size or duration, or each element: bytes, nanoseconds. Only when max is set.
	min, max int64
	secret   bool // a value that is set is not shown to anybody
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

	"listen":            {doc: "One table for each address. A file with any [[listen]] replaces the default one."},
	"listen[].name":     {doc: "For logs, metrics and Received fields. Default: the protocol.", check: checkName},
	"listen[].address":  {doc: `"127.0.0.1:2525", ":25" for all addresses, "[::1]:25", or "unix:/path" (not for http).`},
	"listen[].protocol": {words: words("smtp lmtp http"), doc: "smtp | lmtp | http"},
	"listen[].tls": {words: words("off opportunistic required implicit"),
		doc: "off | opportunistic | required | implicit. opportunistic offers STARTTLS, required refuses MAIL without it, implicit begins with TLS (port 465). For http: off | required, which is HTTPS."},
	"listen[].client_certificates": {words: words("off request require"),
		doc: "off | request | require. request asks for a certificate and takes whatever comes; require ends the handshake without one."},
	"listen[].proxy_protocol_from": {
		doc: "These peers must speak the PROXY protocol, version 1 or 2; nobody else may."},
	"listen[].relay_from": {doc: "Networks that may send to any domain. Unix sockets always may."},
	"listen[].post_from": {
		doc: `HTTP only: networks that may post without credentials. Default: this machine. [] is nobody.`},
	"listen[].auth": {words: words(mechanisms + " " + schemes),
		doc: `SASL mechanisms to offer, like ["SCRAM-SHA-256", "PLAIN"]; offered over TLS only, which a proxy may have ended, except to this machine. ` +
			`For http: "BEARER" (auth.keys), "BASIC" (a user's password) and "EXTERNAL" (a client certificate).`},
	"listen[].auth_required": {doc: "Refuse MAIL before AUTH with 530. For http: credentials are wanted also from post_from."},

	"tls": {doc: "Certificates and versions for STARTTLS and implicit TLS."},
	"tls.certificates": {
		doc: `[{ cert = "chain.pem", key = "key.pem" }], chosen by the name that the client asks for; the first is for all other names.`},
	"tls.certificates[].cert": {check: notEmpty, doc: "PEM file with the certificate chain."},
	"tls.certificates[].key":  {check: notEmpty, doc: "PEM file with the private key."},
	"tls.min_version":         {words: words("1.2 1.3"), doc: "1.2 | 1.3"},
	"tls.session_tickets":     {doc: "Whether clients may resume TLS sessions."},
	"tls.reload_every": {min: second, max: 24 * hour,
		doc: "How often the files are looked at, those of auth.users, auth.keys and domains.recipients too. What is bad in a new file is logged and the old one kept."},
	"tls.client_ca": {doc: `PEM file with the authorities that vouch for client certificates; "" for those of the system.`},

	"auth":          {doc: "Who may log in."},
	"auth.users":    {doc: "File written by `fastedge auth add`; never plain passwords."},
	"auth.http":     {check: optional(checkURL), doc: "URL that is asked about passwords and tokens, with one POST each."},
	"auth.dovecot":  {check: optional(checkSocket), doc: `Dovecot's socket for authentication clients, like "/run/dovecot/auth-client".`},
	"auth.keys":     {doc: "File of API keys for HTTP, written by `fastedge auth key add`; never the keys themselves."},
	"auth.timeout":  {min: 10 * ms, max: hour, doc: "The longest that one step of a login may take; then it is 454."},
	"auth.cram_md5": {doc: "Allow CRAM-MD5, which needs password equivalents on the server and is broken."},

	"clients":       {doc: "Which addresses may connect. The longest network that an address is in decides."},
	"clients.allow": {doc: "Networks that may, also within those of deny."},
	"clients.deny":  {doc: "Networks that get 554 instead of a greeting."},

	"domains": {doc: "Where mail may go."},
	"domains.accept": {check: checkPattern,
		doc: `Domains to accept mail for from anybody; "*.example.org" is every subdomain, but not example.org itself.`},
	"domains.recipients": {doc: "File with the recipients that exist; others are refused at RCPT with 550."},
	"domains.subaddress": {check: checkDelimiters,
		doc: `Characters that end the user's name in user+anything@domain; "" when there are no subaddresses.`},

	"rule":        {doc: "Rules of your own, asked in the order of the file. The first that applies at a stage decides there."},
	"rule[].name": {check: checkName, doc: "For logs and metrics. Default: rule1 and so on."},
	"rule[].at":   {words: words(stages), doc: "connect | helo | tls | auth | mail | rcpt | data | message"},
	"rule[].when": {check: notEmpty, doc: `An expression that is true or false, like 'sender_domain == "example.org" and not tls'.`},
	"rule[].reply": {check: optional(checkReply),
		doc: `The answer when it is true, like "550 5.7.1 Not from here". 2xx accepts with that text, 421 closes.`},
	"rule[].accept": {doc: "Or: no further rule of this stage is asked."},
	"rule[].mode":   {words: words("enforce observe"), doc: "enforce | observe. observe only counts and logs what would have been answered."},

	"hook":           {doc: "HTTP services that are asked with a POST of what is known of the client and the transaction."},
	"hook[].name":    {check: checkName, doc: "For logs and metrics. Default: hook1 and so on."},
	"hook[].at":      {words: words(stages), doc: `Any of ["connect", "helo", "tls", "auth", "mail", "rcpt", "data", "message"].`},
	"hook[].url":     {check: checkURL, doc: `Like "http://127.0.0.1:8080/policy".`},
	"hook[].timeout": {min: 10 * ms, max: hour, doc: "For one question, the wait for a free connection included."},
	"hook[].cache":   {max: 24 * hour, doc: "How long an answer counts for the same question; 0 is not at all."},
	"hook[].on_error": {words: words("defer accept"),
		doc: "defer | accept, when the service does not answer. defer is 451, and the client comes back."},

	"milter":           {doc: "Filters that speak Sendmail's milter protocol, like rspamd. They see complete messages."},
	"milter[].name":    {check: checkName, doc: "For logs and metrics. Default: milter1 and so on."},
	"milter[].address": {doc: `"host:port" or "unix:/path".`},
	"milter[].timeout": {min: 10 * ms, max: hour, doc: "For one message."},
	"milter[].on_error": {words: words("defer accept"),
		doc: "defer | accept, when the filter does not answer. defer is 451, and the client comes back."},

	"smtp": {doc: "The dialogue."},
	"smtp.line_endings": {words: words("strict normalize"),
		doc: "strict refuses bare CR and bare LF; normalize turns a bare LF in message data into CRLF (never into an end of data)."},
	"smtp.hide":          {check: checkKeyword, doc: `EHLO keywords not to offer, like ["CHUNKING", "DSN"].`},
	"smtp.greet_delay":   {max: 30 * second, doc: "How long the greeting waits, for clients that talk before it to give themselves away. 0 is not at all."},
	"smtp.early_talkers": {words: words("count refuse"), doc: "count | refuse. What becomes of clients that talk before the greeting; refuse is 421."},

	"http": {doc: "Mail by POST. The first six keys are for the protocol whose envelope is in header fields; paths below /v1 are not."},
	"http.path": {check: optional(checkPath),
		doc: `Its paths, as a regular expression that must match at the start, like "/submit$". "" is any path; others get 404.`},
	"http.method":           {check: checkMethod, doc: "Its method; others get 405."},
	"http.sender_header":    {check: checkField, doc: "The field with the reverse-path, in base64."},
	"http.recipient_header": {check: checkField, doc: "The field with forward-paths, in base64, separated by commas or semicolons; it may be repeated."},
	"http.ehlo_header":      {check: checkField, doc: "The field with the client's name for itself."},
	"http.success":          {min: 200, max: 204, doc: "200 | 204. The status of an accepted message."},
	"http.connections":      {min: 1, max: 1_000_000, doc: "Open connections over all HTTP listeners; more are refused with 503. limits.connections does not count them."},
	"http.header_bytes":     {min: 4 * kib, max: mib, doc: "Request line and header fields together; more get 431."},
	"http.batch_messages":   {min: 1, max: 10_000_000, doc: "Messages of one batch; more get 413 each."},
	"http.batch_line":       {min: kib, max: 4 * gib, doc: "The longest line of a batch. Default: four thirds of limits.message_size, and 64KiB."},
	"http.batch_bytes":      {min: kib, max: tib, doc: "All of one batch, as sent and unpacked."},
	"http.idempotency_keys": {min: 1, max: 100_000_000, doc: "Idempotency keys that are remembered, for all clients together; more get 503."},
	"http.idempotency_time": {min: second, max: 30 * 24 * hour, doc: "How long a key is remembered."},

	"limits":             {doc: "What clients may use. Each refusal names the limit."},
	"limits.connections": {min: 1, max: 1_000_000, doc: "Open client connections of SMTP and LMTP; more get 421. The descriptor limit must allow for them."},
	"limits.connections_per_ip": {max: 1_000_000,
		doc: "The same for one client address, or one /64 in IPv6. 0 is no limit."},
	"limits.connections_per_prefix": {max: 1_000_000, doc: "The same for one /24, or one /56 in IPv6. 0 is no limit."},
	"limits.connection_rate":        {max: 1_000_000, doc: "New connections a minute from one /24 or /56; more get 421. 0 is no limit."},
	"limits.message_rate": {max: 1_000_000,
		doc: "Messages a minute from one /24 or /56; more get 450. Clients that logged in or may relay are free. 0 is no limit."},
	"limits.message_size":  {min: kib, max: 2 * gib, doc: "The largest message; larger ones get 552."},
	"limits.recipients":    {min: 1, max: 100_000, doc: "Recipients of one message; more get 452, or by HTTP 422 (plain protocol: 550). RFC 5321 §4.5.3.1.8 wants at least 100."},
	"limits.errors":        {min: 1, max: 1_000_000, doc: "Refused commands after which a session is closed with 421."},
	"limits.junk_commands": {min: 1, max: 1_000_000, doc: "NOOP, RSET, VRFY and the like for each message; one more closes the session with 421."},
	"limits.auth_failures": {min: 1, max: 1000, doc: "Failed logins that are answered with 535; the next one closes the session with 421."},
	"limits.handshakes":    {min: 1, max: 1_000_000, doc: "TLS handshakes at once; more STARTTLS get 454, and more implicit TLS is closed."},
	"limits.data_rate": {max: gib,
		doc: "Bytes a second that message data must come with at least, averaged over a minute; slower clients get 421, or by HTTP 408. 0 is no limit."},
	"limits.memory": {min: mib, max: tib, doc: "All message bytes that are not yet durable. When spent, clients get 452 and come back."},

	"timeouts":              {doc: "How long clients may take. RFC 5321 §4.5.3.2 wants 5m for commands and for data at least."},
	"timeouts.command":      {min: 10 * ms, max: 24 * hour, doc: "One command, from the last reply to its end."},
	"timeouts.data":         {min: 10 * ms, max: 24 * hour, doc: "The data of one message, from 354 to its end."},
	"timeouts.handshake":    {min: 10 * ms, max: hour, doc: "A TLS handshake, from the reply to STARTTLS or the connection to its end."},
	"timeouts.proxy_header": {min: 10 * ms, max: hour, doc: "The PROXY protocol's header, from the connection on."},
	"timeouts.policy":       {min: 10 * ms, max: hour, doc: "The longest that one rule, hook or filter may take about one command, and a step of a login; then it is 451 or 454."},
	"timeouts.http_header":  {min: 10 * ms, max: hour, doc: "An HTTP request's line and header fields, from their first byte on. The body has timeouts.data."},
	"timeouts.http_idle":    {min: 10 * ms, max: 24 * hour, doc: "How long an HTTP connection may wait for its next request."},
	"timeouts.drain":        {max: 24 * hour, doc: "How long TERM waits for open transactions."},

	"spf":            {doc: "Sender Policy Framework, RFC 7208. Clients that may relay, have logged in or are on this machine are not checked."},
	"spf.mode":       {words: words(modes), doc: "off | observe | enforce. observe counts, logs and writes header fields, and applies no rule."},
	"spf.identity":   {words: words("mail helo-then-mail"), doc: "mail | helo-then-mail. The second checks the HELO name too, whose fail decides."},
	"spf.enforce_at": {words: words("mail rcpt data"), doc: "mail | rcpt | data. The check begins at MAIL, so later is less waiting."},
	"spf.skip":       {doc: "Networks that are not checked, like those of your own relays."},
	"spf.timeout": {min: 10 * ms, max: hour,
		doc: "For all lookups of one transaction together; then the result is temperror. Less than timeouts.policy."},
	"spf.void_lookups": {max: 100, doc: "Lookups that may come back empty; one more is permerror, RFC 7208 §4.6.4."},
	"spf.headers":      {doc: "Whether the results are written into the message, as Received-SPF and Authentication-Results; fields there that claim to be ours are removed then. Its envelope has them in any case."},
	"spf.on": {words: words("none neutral pass fail softfail temperror permerror"),
		doc: "The reply for a result. A result without a table changes nothing; a code of 250 accepts, and leaves no more than these words."},
	"spf.on.*.code": {min: 200, max: 599, doc: "Reply code, 2yz, 4yz or 5yz."},
	"spf.on.*.message": {
		doc: `Enhanced status code and text, in which {reason} is why: the domain's own explanation, or a phrase. "" is that of RFC 7372.`},

	"dnsbl":           {doc: "DNS lists of bad clients and of good ones, RFC 5782. All are asked at once, before the greeting. Clients that may relay or have private addresses are not."},
	"dnsbl.mode":      {words: words(modes), doc: "off | observe | enforce. observe counts and logs only, and no greeting waits for it."},
	"dnsbl.threshold": {min: 1, max: 1_000_000, doc: "The sum of the weights of lists from which a client is refused."},
	"dnsbl.code":      {min: 400, max: 599, doc: "Reply code, 4yz or 5yz."},
	"dnsbl.message": {
		doc: `Enhanced status code and text. {zone} is the first list that has the client, and {reason} what it says about it. "" is "Service unavailable; client blocked by {zone}: {reason}".`},
	"dnsbl.skip": {doc: "Networks that are not looked up."},
	"dnsbl.timeout": {min: 10 * ms, max: hour,
		doc: "How long the greeting waits (enforce). A list that has not answered by then has not listed; one that never does is soon not waited for. Less than timeouts.policy."},
	"dnsbl.list":          {doc: "One table for each list."},
	"dnsbl.list[].zone":   {check: checkZone, doc: `Its domain, like "zen.example.org".`},
	"dnsbl.list[].weight": {min: -1_000_000, max: 1_000_000, doc: "What being listed adds to a client's sum. A negative one is a list of good clients."},
	"dnsbl.list[].answers": {
		doc: "Answers that count as listed, as networks. Default: 127.0.0.0/8 but for 127.255.255.0/24, by which lists say that they don't answer you."},

	"ptr": {doc: "The clients' own names."},
	"ptr.mode": {words: words("on off"),
		doc: "on | off. Looks up the client's name and its addresses, which must have the client's, for Received and Authentication-Results. Mail never waits for it."},

	"dns": {doc: "The resolver."},
	"dns.servers": {check: checkServer,
		doc: `Servers like "127.0.0.1:53" or "[::1]:53", best one that validates on this machine. Default: those of /etc/resolv.conf.`},
	"dns.timeout":        {min: 10 * ms, max: hour, doc: "For one query, all tries together."},
	"dns.cache_bytes":    {min: 64 * kib, max: 64 * gib, doc: "Memory for answers."},
	"dns.max_inflight":   {min: 1, max: 1_000_000, doc: "Queries that may wait for their answers at once; more fail."},
	"dns.max_per_zone":   {min: 1, max: 1_000_000, doc: "The same for names of one domain, as registered (example.net, example.co.uk), whose servers may be silent."},
	"dns.max_per_client": {min: 1, max: 1_000_000, doc: "The same for one client address, or one /64 in IPv6. A client that spends them is told to come back, where a list or SPF would have decided (enforce)."},

	"queue": {doc: "What takes responsibility for accepted mail."},
	"queue.engine": {words: words("spool jetstream spool+jetstream discard"),
		doc: "spool | jetstream | spool+jetstream | discard. spool keeps mail on this machine, jetstream on NATS servers; spool+jetstream accepts into the " +
			"spool and hands on to NATS. discard throws mail away: for benchmarks only."},
	"queue.durability": {words: words("fsync os"),
		doc: "fsync | os. With os a power cut may lose acknowledged mail."},
	"queue.min_free":     {max: math.MaxInt64, doc: "Free space below which mail is refused with 452, so that the disk never fills up."},
	"queue.segment_size": {min: mib, max: 4 * gib, doc: "Size of one file of the spool."},

	"queue.jetstream":          {doc: "NATS JetStream, when one machine is not enough. Only with an engine that has it in its name."},
	"queue.jetstream.url":      {doc: "Servers, separated by commas: nats://host:port, or tls://host:port."},
	"queue.jetstream.stream":   {check: checkStream, doc: "Name of the stream."},
	"queue.jetstream.subject":  {check: checkSubject, doc: "Subject to publish to."},
	"queue.jetstream.replicas": {min: 1, max: 5, doc: "Copies of each message, on as many servers."},
	"queue.jetstream.create": {
		doc: "Whether stream and consumer are made, and changed to what is said here, at the start. false: they are only verified."},
	"queue.jetstream.credentials": {doc: "File with a user's JWT and seed (.creds)."},
	"queue.jetstream.user":        {doc: "Or: a user's name."},
	"queue.jetstream.password":    {secret: true, doc: "And the password. Better in the environment than in a file that others read."},
	"queue.jetstream.ca":          {doc: `PEM file with the authorities of the servers; "" for those of the system.`},
	"queue.jetstream.cert":        {doc: "PEM file with a client certificate."},
	"queue.jetstream.key":         {doc: "PEM file with its private key."},
	"queue.jetstream.durable":     {check: checkStream, doc: "Name of the consumer that the relays share."},
	"queue.jetstream.batch": {words: words("auto fast atomic off"),
		doc: "auto | fast | atomic | off. How messages are put together on the way; auto measures which is the fastest."},
	"queue.jetstream.window":       {min: 1, max: 1_000_000, doc: "Messages that may wait for the servers' word; more get 451."},
	"queue.jetstream.window_bytes": {min: mib, max: 64 * gib, doc: "The same in bytes."},
	"queue.jetstream.timeout":      {min: 10 * ms, max: hour, doc: "How long the servers may take to acknowledge a message; then it is 451."},
	"queue.jetstream.duplicates": {min: 100 * ms, max: 7 * 24 * hour,
		doc: "How long the stream knows a message again, so that one that is published twice is kept once."},
	"queue.jetstream.max_bytes":     {max: math.MaxInt64, doc: "Size of the stream; when it is full, mail is refused with 452. 0 is no limit."},
	"queue.jetstream.dead_subject":  {check: orEmpty(checkSubject), doc: `Where the relay puts messages that it gives up; "" is the subject with dead as its last word, so mail.dead.`},
	"queue.jetstream.object_bucket": {check: orEmpty(checkBucket), doc: `Object store for messages that are larger than what the servers take; "" is the stream's name with _LARGE.`},

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

// mechanisms and stages are the words of the packages that serve them, strongest and earliest first.
const (
	schemes    = "BEARER BASIC" // of HTTP; EXTERNAL is one too
	mechanisms = "SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL OAUTHBEARER XOAUTH2 PLAIN LOGIN CRAM-MD5"
	modes      = "off observe enforce"
	stages     = "connect helo tls auth mail rcpt data message"
)

// optional makes a check that lets the empty text pass, for "none".
func optional(check func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return check(s)
	}
}

// ehloKeywords are those that fastedge offers; RFC 1869 keywords do not mind case.
var ehloKeywords = words("PIPELINING SIZE 8BITMIME BINARYMIME CHUNKING SMTPUTF8 ENHANCEDSTATUSCODES DSN LIMITS STARTTLS AUTH")

func checkKeyword(s string) error {
	if !slices.Contains(ehloKeywords, strings.ToUpper(s)) {
		return fmt.Errorf("%q is not offered: one of %s", s, strings.Join(ehloKeywords, ", "))
	}
	return nil
}
