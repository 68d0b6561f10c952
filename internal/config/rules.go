package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// rules checks what concerns several keys, and fills in listener names. Keys with a problem of their own are left alone.
func (l *loader) rules() {
	c := l.cfg
	l.listeners()
	l.posting()
	l.encryption()
	l.logins()
	l.proxies()
	l.openRelay()
	l.submission()
	l.jetStream()
	l.validators()
	l.senders()
	l.lists()
	if n := len(c.DNS.Servers); n > maxServers {
		l.reportAt("dns.servers", fmt.Sprintf("%d servers are too many: at most %d", n, maxServers))
	}
	l.nextHops()
	if !l.bad["limits.memory"] && !l.bad["limits.message_size"] && c.Limits.Memory < c.Limits.MessageSize {
		l.reportAt("limits.memory", fmt.Sprintf("%v is less than limits.message_size (%v): no message of that size could be taken",
			c.Limits.Memory, c.Limits.MessageSize))
	}
	if !l.bad["relay.retry"] && len(c.Relay.Retry) == 0 {
		l.reportAt("relay.retry", "needs at least one wait")
	}
	if !l.bad["state_dir"] && len(c.AdminSocket()) > maxUnixPath {
		l.reportAt("state_dir", fmt.Sprintf("too long: the admin socket in it may have a path of %d bytes at most", maxUnixPath))
	}
}

func listenKey(i int, name string) string {
	return "listen[" + strconv.Itoa(i) + "]." + name
}

// listeners names the nameless, and refuses to open the same name or address twice.
func (l *loader) listeners() {
	c := l.cfg
	if len(c.Listen) == 0 && !l.bad["listen"] {
		l.reportAt("listen", "needs at least one table")
	}
	if l.bad["listen"] && len(c.Listen) == 0 {
		return
	}
	for i := range c.Listen {
		one := &c.Listen[i]
		if one.Name == "" && !l.bad[listenKey(i, "name")] {
			one.Name = one.Protocol
		}
		for j := range i {
			if c.Listen[j].Name == one.Name && one.Name != "" && !l.bad[listenKey(i, "name")] && !l.bad[listenKey(i, "protocol")] {
				l.reportAt(listenKey(i, "name"), fmt.Sprintf("%q is the name of another listener: each needs its own", one.Name))
				break
			}
		}
		address := listenKey(i, "address")
		if l.bad[address] {
			continue
		}
		if one.Address.Network == "" {
			l.reportAt(address, "missing")
			continue
		}
		for j := range i {
			if other := c.Listen[j]; one.Address.overlaps(other.Address) {
				l.reportAt(address, fmt.Sprintf("%v overlaps with %v of listener %q", one.Address, other.Address, other.Name))
				break
			}
		}
		if one.Address.overlaps(c.Admin.HTTP) && !l.bad["admin.http"] {
			l.reportAt(address, fmt.Sprintf("%v overlaps with admin.http (%v)", one.Address, c.Admin.HTTP))
		}
		if one.Protocol == "http" && one.Address.Network == "unix" {
			l.reportAt(address, "HTTP is served over TCP only: write \"127.0.0.1:8025\", for example")
		}
		if _, port := one.Address.HostPort(); one.Protocol == "lmtp" && one.Address.Network == "tcp" && port == 25 {
			l.reportAt(address, "LMTP may not use TCP port 25 (RFC 2033 §5)")
		}
	}
}

// posting fills in who may post without credentials. Over SMTP nobody posts.
func (l *loader) posting() {
	for i := range l.cfg.Listen {
		one, key := &l.cfg.Listen[i], listenKey(i, "post_from")
		switch {
		case l.bad[key] || l.bad[listenKey(i, "protocol")]:
		case one.Protocol != "http":
			if len(one.PostFrom) > 0 {
				l.reportAt(key, fmt.Sprintf("is for protocol = \"http\"; what %s clients may do is in relay_from and domains.accept", strings.ToUpper(one.Protocol)))
			}
		case l.cfg.Origin(key).Kind == "default":
			one.PostFrom = slices.Clone(loopback)
		case len(one.PostFrom) == 0 && len(one.Auth) == 0 && !l.bad[listenKey(i, "auth")]:
			l.reportAt(key, "nobody could post: name networks, or set auth of this listener")
		}
	}
}

// openRelay refuses listeners that strangers can reach and that would take mail for anywhere from them, or, without a single accepted
// domain or network, for nowhere.
func (l *loader) openRelay() {
	c := l.cfg
	for i, one := range c.Listen {
		relayFrom := listenKey(i, "relay_from")
		if one.Address.Network == "" || l.bad[listenKey(i, "address")] || l.bad[relayFrom] || l.bad["domains.accept"] {
			continue
		}
		// Who comes through a proxy is not on this machine, though the proxy may be.
		if one.Address.IsLocal() && len(one.ProxyProtocolFrom) == 0 {
			continue
		}
		everybody := slices.IndexFunc(one.RelayFrom, tooWide)
		switch {
		case everybody >= 0:
			l.reportAt(relayFrom, fmt.Sprintf("%v would make %v an open relay: name the networks that are yours", one.RelayFrom[everybody], one.Address))
		case one.AuthRequired && len(one.Auth) > 0:
			// Whoever has logged in may send anywhere, and nobody else anything.
		case one.Address.IsLocal(): // mail for nowhere is no harm there
		case one.Protocol == "http":
			l.openPost(i)
		case len(c.Domains.Accept) == 0 && !slices.ContainsFunc(one.RelayFrom, func(p netip.Prefix) bool { return !p.Addr().IsLoopback() }):
			l.reportAt(listenKey(i, "address"), fmt.Sprintf(
				"%v is open to other machines: set domains.accept, or relay_from or auth_required of this listener", one.Address))
		}
	}
}

// openPost refuses an HTTP listener that other machines reach for nothing, or that takes posts from them for nowhere.
func (l *loader) openPost(i int) {
	one, stranger := l.cfg.Listen[i], func(p netip.Prefix) bool { return !p.Addr().IsLoopback() }
	if l.bad[listenKey(i, "post_from")] || l.bad[listenKey(i, "auth")] {
		return
	}
	posting := slices.IndexFunc(one.PostFrom, stranger)
	switch {
	case posting < 0 && len(one.Auth) == 0:
		l.reportAt(listenKey(i, "address"), fmt.Sprintf("%v is open to other machines, which may not post: set auth or post_from of this listener", one.Address))
	case posting >= 0 && len(l.cfg.Domains.Accept) == 0 && !slices.ContainsFunc(one.RelayFrom, stranger):
		l.reportAt(listenKey(i, "post_from"), fmt.Sprintf("%v may post, but to nowhere: set domains.accept, or relay_from of this listener", one.PostFrom[posting]))
	}
}

func certificateKey(i int, name string) string {
	return "tls.certificates[" + strconv.Itoa(i) + "]." + name
}

// encryption checks what TLS needs. A listener that only this machine can reach does without a certificate of its owner's.
func (l *loader) encryption() {
	c := l.cfg
	for i, pair := range c.TLS.Certificates {
		l.required(certificateKey(i, "cert"), pair.Cert == "")
		l.required(certificateKey(i, "key"), pair.Key == "")
	}
	for i, one := range c.Listen {
		tls, certificates := listenKey(i, "tls"), listenKey(i, "client_certificates")
		if l.bad[listenKey(i, "address")] || l.bad[tls] {
			continue
		}
		switch {
		case one.Protocol == "http" && one.TLS == "opportunistic":
			l.reportAt(tls, `HTTP has no STARTTLS: write "required" for HTTPS, or "off"`)
		case one.TLS == "off":
			if one.ClientCertificates != "off" && !l.bad[certificates] {
				l.reportAt(certificates, "comes with TLS only: set tls of this listener")
			}
		case one.Address.Network == "unix":
			l.reportAt(tls, fmt.Sprintf("%v never leaves this machine: TLS is for TCP", one.Address))
		case len(c.TLS.Certificates) == 0 && !one.Address.IsLocal() && !l.bad["tls.certificates"]:
			l.reportAt(tls, fmt.Sprintf("%q needs tls.certificates: %v is open to other machines, and only on loopback a self-made certificate is used",
				one.TLS, one.Address))
		}
	}
}

// logins checks that somebody can log in with each mechanism that is offered, and that nobody does so in clear.
func (l *loader) logins() {
	c := l.cfg
	for i, one := range c.Listen {
		auth := listenKey(i, "auth")
		if one.AuthRequired && len(one.Auth) == 0 {
			what := "mechanisms"
			if one.Protocol == "http" {
				what = "kinds of credentials"
			}
			l.reportAt(listenKey(i, "auth_required"), "needs "+what+" in auth of this listener: nobody could log in")
		}
		if len(one.Auth) > 0 && one.TLS == "off" && !one.endedByProxy() && !one.Address.IsLocal() && !l.bad[listenKey(i, "tls")] && !l.bad[listenKey(i, "address")] {
			l.reportAt(auth, fmt.Sprintf("is never offered in clear to other machines: set tls of this listener (%v)", one.Address))
		}
		for j, mechanism := range one.Auth {
			key := auth + "[" + strconv.Itoa(j) + "]"
			if l.bad[key] {
				continue
			}
			if slices.Contains(one.Auth[:j], mechanism) {
				l.reportAt(key, fmt.Sprintf("%q stands there twice", mechanism))
			} else if why := l.unusable(mechanism, i); why != "" {
				l.reportAt(key, fmt.Sprintf("%s: %s", mechanism, why))
			}
		}
	}
}

// endedByProxy says that clients may come over TLS although the listener has none: a proxy in front tells so in its header (PROXY
// protocol version 2, PP2_TYPE_SSL), and which certificate it verified.
func (one *Listener) endedByProxy() bool { return one.TLS == "off" && len(one.ProxyProtocolFrom) > 0 }

// unusable says why nobody could use a mechanism on listener i.
func (l *loader) unusable(mechanism string, i int) string {
	one, store := l.cfg.Listen[i], l.cfg.Auth
	if l.bad[listenKey(i, "protocol")] {
		return ""
	}
	isScheme := slices.Contains(words(schemes), mechanism)
	switch {
	case isScheme && one.Protocol != "http":
		return "is for protocol = \"http\"; SMTP has SASL mechanisms, like PLAIN and OAUTHBEARER"
	case !isScheme && one.Protocol == "http" && mechanism != "EXTERNAL":
		return "is a SASL mechanism; HTTP has BEARER, BASIC and EXTERNAL"
	case mechanism == "BEARER":
		if store.Keys == "" && !l.bad["auth.keys"] {
			return "there are no keys: set auth.keys"
		}
		return ""
	}
	if l.bad["auth.users"] || l.bad["auth.http"] || l.bad["auth.dovecot"] {
		return ""
	}
	if mechanism == "EXTERNAL" {
		if one.ClientCertificates == "off" && !one.endedByProxy() && !l.bad[listenKey(i, "client_certificates")] {
			return "is by client certificate: set client_certificates of this listener"
		}
		if l.cfg.TLS.ClientCA == "" && one.TLS != "off" && !l.bad["tls.client_ca"] {
			return "needs tls.client_ca: with the authorities of the system anybody could get a certificate in another's name"
		}
		return ""
	}
	if store.Users == "" && store.HTTP == "" && store.Dovecot == "" {
		return "nobody could log in: set auth.users, auth.http or auth.dovecot"
	}
	switch mechanism {
	case "SCRAM-SHA-256-PLUS":
		if one.TLS == "off" && !l.bad[listenKey(i, "tls")] {
			return "is bound to TLS (RFC 5802 §6): set tls of this listener"
		}
		fallthrough
	case "SCRAM-SHA-256":
		if store.Users == "" && store.Dovecot == "" {
			return "a service over HTTP (auth.http) can't do it: it sees passwords only. Set auth.users or auth.dovecot"
		}
	case "CRAM-MD5":
		if store.Users == "" && store.Dovecot == "" {
			return "a service over HTTP (auth.http) can't do it: it sees passwords only. Set auth.users or auth.dovecot"
		}
		if !store.CRAMMD5 && !l.bad["auth.cram_md5"] {
			return "is broken and must be allowed with auth.cram_md5"
		}
	case "OAUTHBEARER", "XOAUTH2":
		if store.HTTP == "" && store.Dovecot == "" {
			return "a file of users has no tokens: set auth.http or auth.dovecot"
		}
	}
	return ""
}

// proxies checks who may speak for others: what a proxy says about its client is believed.
func (l *loader) proxies() {
	for i, one := range l.cfg.Listen {
		key := listenKey(i, "proxy_protocol_from")
		if len(one.ProxyProtocolFrom) > 0 && one.Address.Network == "unix" && !l.bad[listenKey(i, "address")] {
			l.reportAt(key, fmt.Sprintf("whoever connects to %v has no address to be listed", one.Address))
		}
		for j, network := range one.ProxyProtocolFrom {
			if element := key + "[" + strconv.Itoa(j) + "]"; !l.bad[element] && tooWide(network) {
				l.reportAt(element, fmt.Sprintf("with %v anybody could claim any address: name the networks of your proxies", network))
			}
		}
	}
}

// validators checks rules, hooks and milters, and names the nameless.
func (l *loader) validators() {
	c := l.cfg
	for i := range c.Rule {
		one, key := &c.Rule[i], elementKey("rule", i)
		l.required(key("at"), one.At == "")
		l.required(key("when"), one.When == "")
		switch {
		case l.bad[key("reply")] || l.bad[key("accept")] || l.bad["rule["+strconv.Itoa(i)+"]"]:
		case one.Reply == "" && !one.Accept:
			l.reportAt(key("reply"), "a rule needs a reply, or accept = true")
		case one.Reply != "" && one.Accept:
			l.reportAt(key("accept"), "a rule has either a reply or accept = true")
		}
	}
	for i := range c.Hook {
		one, key := &c.Hook[i], elementKey("hook", i)
		l.required(key("at"), len(one.At) == 0)
		l.required(key("url"), one.URL == "")
		for j, stage := range one.At {
			if slices.Contains(one.At[:j], stage) {
				l.reportAt(key("at")+"["+strconv.Itoa(j)+"]", fmt.Sprintf("%q stands there twice", stage))
			}
		}
	}
	for i := range c.Milter {
		l.required(elementKey("milter", i)("address"), c.Milter[i].Address.Network == "")
	}
	names(l, "rule", c.Rule, func(r *Rule) *string { return &r.Name })
	names(l, "hook", c.Hook, func(h *Hook) *string { return &h.Name })
	names(l, "milter", c.Milter, func(m *Milter) *string { return &m.Name })
}

// senders checks the replies to results of SPF.
func (l *loader) senders() {
	for _, result := range slices.Sorted(maps.Keys(l.cfg.SPF.On)) {
		one, key := l.cfg.SPF.On[result], "spf.on."+result
		switch {
		case l.bad[key+".code"] || l.bad[key]:
		case one.Code == 0:
			l.reportAt(key+".code", "missing")
		default:
			l.template(key, one.Code, one.Message, "{reason}")
		}
	}
}

// lists checks DNS lists and the reply to clients that are on them.
func (l *loader) lists() {
	c := &l.cfg.DNSBL
	if !l.bad["dnsbl.code"] {
		l.template("dnsbl", c.Code, c.Message, "{zone}", "{reason}")
	}
	for i := range c.List {
		one, key := &c.List[i], elementKey("dnsbl.list", i)
		l.required(key("zone"), one.Zone == "")
		if one.Weight == 0 && !l.bad[key("weight")] {
			l.reportAt(key("weight"), "0 would make no difference: write a positive number for bad clients, or a negative one for good clients")
		}
		for j := range i {
			if one.Zone != "" && strings.EqualFold(c.List[j].Zone, one.Zone) && !l.bad[key("zone")] {
				l.reportAt(key("zone"), fmt.Sprintf("%q stands there twice", one.Zone))
				break
			}
		}
	}
}

// template checks the code and message of a table: a reply in which only marks may stand in braces.
func (l *loader) template(table string, code int, message string, marks ...string) {
	if code/100 == 3 || code/10%10 > 5 || code == 221 {
		l.reportAt(table+".code", fmt.Sprintf("%d is no code for it: write one that begins with 2, 4 or 5, like 550, and does not close like 221", code))
		return
	}
	if key := table + ".message"; !l.bad[key] {
		if at, err := checkTemplate(code, message, marks...); err != nil {
			l.reportWithin(key, at, err.Error())
		}
	}
}

// elementKey gives the keys of one element of an array of tables.
func elementKey(array string, i int) func(name string) string {
	return func(name string) string { return array + "[" + strconv.Itoa(i) + "]." + name }
}

// required reports a key of an array of tables that is not set, unless the element is no table at all.
func (l *loader) required(key string, missing bool) {
	if element := key[:strings.LastIndexByte(key, '.')]; missing && !l.bad[key] && !l.bad[element] {
		l.reportAt(key, "missing")
	}
}

// names numbers the nameless elements of an array of tables, and refuses the same name twice.
func names[T any](l *loader, array string, list []T, name func(*T) *string) {
	for i := range list {
		key, own := elementKey(array, i)("name"), name(&list[i])
		if l.bad[key] {
			continue
		}
		if *own == "" {
			*own = array + strconv.Itoa(i+1)
		}
		for j := range i {
			if *name(&list[j]) == *own {
				l.reportAt(key, fmt.Sprintf("%q is the name of another %s: each needs its own", *own, array))
				break
			}
		}
	}
}

// Networks that are wide and still nobody's but the operator's: RFC 4193 and link-local.
var ownWide = []netip.Prefix{netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10")}

// tooWide says that a network can't be one organisation's: shorter than /8, or /16 in IPv6. So 0.0.0.0/1 and 128.0.0.0/1 together are
// caught as well as 0.0.0.0/0.
func tooWide(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8
	}
	return p.Bits() < 16 && !slices.ContainsFunc(ownWide, func(own netip.Prefix) bool {
		return own.Bits() <= p.Bits() && own.Contains(p.Addr())
	})
}

// nextHops refuses to hand mail to ourselves, which would send it round until its Received fields are too many.
func (l *loader) nextHops() {
	if l.bad["relay.next_hop"] {
		return
	}
	for h, hop := range l.cfg.Relay.NextHop {
		for i, one := range l.cfg.Listen {
			if l.bad[listenKey(i, "address")] || !hop.reaches(one.Address) {
				continue
			}
			l.reportAt("relay.next_hop["+strconv.Itoa(h)+"]", fmt.Sprintf("%v is listener %q itself: mail would go round in circles", hop, one.Name))
		}
	}
}

// reaches says that the next hop is surely this listener. Other names and addresses of the machine are not looked up.
func (h NextHop) reaches(a Address) bool {
	if h.Network != a.Network {
		return false
	}
	if h.Network == "unix" {
		return h.Addr == a.Addr
	}
	host, _, err := net.SplitHostPort(h.Addr)
	if err != nil {
		return false
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return false
	}
	ipHop, portHop := Address{"tcp", h.Addr}.HostPort()
	ip, port := a.HostPort()
	return portHop == port && (ipHop == ip || !ipHop.IsValid() || !ip.IsValid() && ipHop.IsLoopback())
}

// submission checks what is special to HTTP, and fills in the length of a batch's lines.
func (l *loader) submission() {
	c := l.cfg
	if !l.bad["http.success"] && c.HTTP.Success != 200 && c.HTTP.Success != 204 {
		l.reportAt("http.success", fmt.Sprintf("%d is neither 200 nor 204", c.HTTP.Success))
	}
	fields := [...]struct{ key, name string }{
		{"http.sender_header", c.HTTP.SenderHeader}, {"http.recipient_header", c.HTTP.RecipientHeader}, {"http.ehlo_header", c.HTTP.EhloHeader},
	}
	for i, one := range fields {
		for _, other := range fields[:i] {
			if strings.EqualFold(one.name, other.name) && !l.bad[one.key] && !l.bad[other.key] {
				l.reportAt(one.key, fmt.Sprintf("%s is %s already", one.name, other.key))
				break
			}
		}
	}
	switch {
	case l.bad["http.batch_line"] || l.bad["http.batch_bytes"]:
	case c.Origin("http.batch_line").Kind == "default":
		if !l.bad["limits.message_size"] {
			c.HTTP.BatchLine = c.batchLine()
		}
	case c.HTTP.BatchLine > c.HTTP.BatchBytes:
		l.reportAt("http.batch_line", fmt.Sprintf("%v is more than http.batch_bytes (%v)", c.HTTP.BatchLine, c.HTTP.BatchBytes))
	}
}

// jetStream refuses keys that would change nothing, and credentials that are incomplete or ambiguous.
func (l *loader) jetStream() {
	c := l.cfg
	const table = "queue.jetstream."
	if !c.UsesJetStream() {
		if l.bad["queue.engine"] {
			return
		}
		// A file that was written from the defaults has all keys: only what differs is meant.
		standard := Default().Queue.JetStream
		have, want := reflect.ValueOf(c.Queue.JetStream), reflect.ValueOf(standard)
		for _, f := range fieldsOf(have.Type()) {
			if !l.bad[table+f.name] && !same(have.Field(f.index), want.Field(f.index)) {
				l.reportAt(table+f.name, `is for queue.engine = "jetstream" or "spool+jetstream" only`)
			}
		}
		return
	}
	js := &c.Queue.JetStream
	switch {
	case js.Password != "" && js.User == "":
		l.reportAt(table+"user", "missing: there is a password")
	case js.User != "" && js.Password == "":
		l.reportAt(table+"password", "missing: there is a user")
	case js.User != "" && js.Credentials != "":
		l.reportAt(table+"user", "either a user with a password, or credentials")
	}
	if (js.Cert == "") != (js.Key == "") {
		key := "cert"
		if js.Cert != "" {
			key = "key"
		}
		l.reportAt(table+key, "missing: a certificate and its key belong together")
	}
	if js.DeadSubject == js.Subject && !l.bad[table+"dead_subject"] && !l.bad[table+"subject"] {
		l.reportAt(table+"dead_subject", "is queue.jetstream.subject: dead mail would be tried again")
	}
}

// Warnings are what an operator should know and may want.
func (c *Config) Warnings() []Problem {
	var list []Problem
	warn := func(key, format string, args ...any) {
		list = append(list, Problem{Key: key, Message: key + ": " + fmt.Sprintf(format, args...)})
	}
	if c.Queue.Engine == "discard" {
		warn("queue.engine", "discard throws every message away: for benchmarks only")
	} else if c.Queue.Durability == "os" && c.UsesSpool() {
		warn("queue.durability", "with os a power cut may lose acknowledged mail")
	}
	if c.UsesSpool() && c.Queue.MinFree < c.Limits.Memory {
		warn("queue.min_free", "%v is less than limits.memory (%v): the disk may fill up with messages that are on their way when it is reached",
			c.Queue.MinFree, c.Limits.Memory)
	}
	if js := &c.Queue.JetStream; c.UsesJetStream() {
		if js.Replicas == 1 {
			warn("queue.jetstream.replicas", "with one copy, mail is lost with the server that has it: 3 survive the loss of one server")
		}
		inClear := slices.ContainsFunc(js.URL, func(u string) bool { return strings.HasPrefix(u, "nats:") && !isLocalURL(u) })
		if js.Password != "" && inClear && js.CA == "" && js.Cert == "" {
			warn("queue.jetstream.url", "the password goes to another machine in clear: write tls:// or set queue.jetstream.ca")
		}
	}
	for i, one := range c.Listen {
		if one.TLS != "off" && len(c.TLS.Certificates) == 0 {
			warn(listenKey(i, "tls"), "%v has no certificate (tls.certificates): a self-made one is used, which no client can verify", one.Address)
		}
		if one.Protocol == "http" {
			continue // without EHLO
		}
		if one.TLS == "required" && c.hidden("STARTTLS") {
			warn("smtp.hide", "STARTTLS is not offered, but listener %q requires it", one.Name)
		}
		if one.AuthRequired && c.hidden("AUTH") {
			warn("smtp.hide", "AUTH is not offered, but listener %q requires it", one.Name)
		}
	}
	if c.SMTP.EarlyTalkers == "refuse" && c.SMTP.GreetDelay == 0 {
		warn("smtp.early_talkers", "without smtp.greet_delay nobody can talk early")
	}
	// A validator that is still at work when timeouts.policy ends has no say any more, nor has its on_error.
	late := func(key string, timeout time.Duration, onError string) {
		if onError == "accept" && timeout >= c.Timeouts.Policy {
			warn(key, "%s is not less than timeouts.policy (%s): the client is deferred before on_error = \"accept\" counts",
				FormatDuration(timeout), FormatDuration(c.Timeouts.Policy))
		}
	}
	for i, one := range c.Hook {
		late(elementKey("hook", i)("timeout"), one.Timeout, one.OnError)
	}
	for i, one := range c.Milter {
		late(elementKey("milter", i)("timeout"), one.Timeout, one.OnError)
	}
	// What waits for DNS is asked within a command, too.
	if c.SPF.Mode != "off" && c.AsksDNS() && c.SPF.Timeout >= c.Timeouts.Policy {
		warn("spf.timeout", "%s is not less than timeouts.policy (%s): the client is deferred before the result is temperror",
			FormatDuration(c.SPF.Timeout), FormatDuration(c.Timeouts.Policy))
	}
	if c.DNSBL.Mode != "off" && len(c.DNSBL.List) > 0 {
		enforce := c.DNSBL.Mode == "enforce"
		if enforce && c.DNSBL.Timeout >= c.Timeouts.Policy {
			warn("dnsbl.timeout", "%s is not less than timeouts.policy (%s): clients are turned away when a list does not answer",
				FormatDuration(c.DNSBL.Timeout), FormatDuration(c.Timeouts.Policy))
		}
		if enforce && c.DNS.MaxPerClient < len(c.DNSBL.List) {
			warn("dns.max_per_client", "%d is not enough for the %d lists: clients are told to come back later", c.DNS.MaxPerClient, len(c.DNSBL.List))
		}
		most := 0
		for _, list := range c.DNSBL.List {
			most += max(list.Weight, 0)
		}
		if most < c.DNSBL.Threshold {
			warn("dnsbl.threshold", "a client that is on all lists has %d: %d is never reached", most, c.DNSBL.Threshold)
		}
	}
	open := slices.ContainsFunc(c.Listen, func(l Listener) bool { return !l.Address.IsLocal() })
	if open && !strings.Contains(c.Hostname, ".") {
		warn("hostname", "%q is no full name: other servers may distrust it (RFC 5321 §4.1.1.1)", c.Hostname)
	}
	return list
}

// isLocalURL says that a URL is surely one of this machine.
func isLocalURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}

// hidden says that an EHLO keyword is not to be offered.
func (c *Config) hidden(keyword string) bool {
	return slices.ContainsFunc(c.SMTP.Hide, func(word string) bool { return strings.EqualFold(word, keyword) })
}
