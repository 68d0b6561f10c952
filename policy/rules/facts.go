package rules

import (
	"net/netip"

	"github.com/fastedge/fastedge/policy"
)

// fact is one name that expressions may use.
type fact struct {
	name  string
	about string // what it means, for the documentation
	from  policy.Stages
	kind  any // a zero value of its type
	set   func(env map[string]any, name string, e *policy.Event)
}

// The stages at which things are known.
const (
	everywhere  = policy.Stages(1<<(policy.AtMessage+1) - 1)
	sinceHelo   = everywhere &^ (1<<policy.AtConnect | 1<<policy.AtTLS) // STARTTLS forgets the name (RFC 3207 §4.2)
	sinceAuth   = everywhere &^ (1<<policy.AtConnect | 1<<policy.AtTLS | 1<<policy.AtHelo)
	sinceMail   = everywhere & (1<<policy.AtMail | 1<<policy.AtRcpt | 1<<policy.AtData | 1<<policy.AtMessage)
	sinceRcpt   = sinceMail &^ (1 << policy.AtMail)
	atRcpt      = policy.Stages(1 << policy.AtRcpt)
	atMailOrEnd = policy.Stages(1<<policy.AtMail | 1<<policy.AtMessage)
)

// facts are all there is. Domains and HELO names are in lower case (ASCII), everything else is as the client sent it. What a client has
// not given is "", 0 or false.
var facts = []fact{
	{"client_ip", "the client's address; empty on a unix socket", everywhere, "", func(env map[string]any, name string, e *policy.Event) {
		setAddr(env, name, e.Client.Addr.Addr())
	}},
	{"proxy_ip", "the address of the proxy in front; empty without PROXY protocol", everywhere, "", func(env map[string]any, name string, e *policy.Event) {
		setAddr(env, name, e.Client.ProxyAddr.Addr())
	}},
	{"listener", "the listener's name", everywhere, "", func(env map[string]any, name string, e *policy.Event) {
		setString(env, name, e.Client.Listener)
	}},
	{"may_relay", "the client is listed in relay_from", everywhere, false, func(env map[string]any, name string, e *policy.Event) {
		env[name] = e.Client.MayRelay
	}},
	{"tls", "the connection is encrypted", everywhere, false, func(env map[string]any, name string, e *policy.Event) {
		env[name] = e.Client.TLS != nil
	}},
	{"tls_version", `"TLS1.3"`, everywhere, "", func(env map[string]any, name string, e *policy.Event) {
		setString(env, name, tlsOf(e).Version)
	}},
	{"tls_cipher", `"TLS_AES_128_GCM_SHA256"`, everywhere, "", func(env map[string]any, name string, e *policy.Event) {
		setString(env, name, tlsOf(e).Cipher)
	}},
	{"tls_server_name", "the name that the client asked for (SNI)", everywhere, "", func(env map[string]any, name string, e *policy.Event) {
		setString(env, name, tlsOf(e).ServerName)
	}},
	{"tls_certificate", "the common name, or else the first other name, of the client's certificate, when it is verified", everywhere, "",
		func(env map[string]any, name string, e *policy.Event) {
			cn := ""
			if c := tlsOf(e).Certificate; c != nil && c.Verified {
				if cn = c.CommonName; cn == "" && len(c.Names) > 0 {
					cn = c.Names[0]
				}
			}
			setString(env, name, cn)
		}},
	{"tls_fingerprint", "SHA-256 of the client's certificate, verified or not, in lower-case hex", everywhere, "", func(env map[string]any, name string, e *policy.Event) {
		fp := ""
		if c := tlsOf(e).Certificate; c != nil {
			fp = c.Fingerprint
		}
		setString(env, name, fp)
	}},
	{"helo", "what HELO, EHLO or LHLO gave", sinceHelo, "", func(env map[string]any, name string, e *policy.Event) {
		setLower(env, name, e.Client.Helo)
	}},
	{"protocol", "the word of RFC 3848: SMTP, ESMTPSA, LMTP, ...", sinceHelo, "", func(env map[string]any, name string, e *policy.Event) {
		setString(env, name, e.Client.Protocol)
	}},
	{"user", "who has logged in", sinceAuth, "", func(env map[string]any, name string, e *policy.Event) {
		setString(env, name, e.Client.User)
	}},
	{"mechanism", "the SASL mechanism of the login", sinceAuth, "", func(env map[string]any, name string, e *policy.Event) {
		setString(env, name, e.Client.Mechanism)
	}},
	{"sender", "the reverse-path; empty for <>", sinceMail, "", func(env map[string]any, name string, e *policy.Event) {
		setBytes(env, name, sender(e))
	}},
	{"sender_local", "its local part", sinceMail, "", func(env map[string]any, name string, e *policy.Event) {
		local, _ := cut(sender(e))
		setBytes(env, name, local)
	}},
	{"sender_domain", "its domain", sinceMail, "", func(env map[string]any, name string, e *policy.Event) {
		_, domain := cut(sender(e))
		setLower(env, name, domain)
	}},
	{"recipient", "the forward-path in question", atRcpt, "", func(env map[string]any, name string, e *policy.Event) {
		setBytes(env, name, e.Path.Mailbox)
	}},
	{"recipient_local", "its local part", atRcpt, "", func(env map[string]any, name string, e *policy.Event) {
		setBytes(env, name, e.Path.Local)
	}},
	{"recipient_domain", "its domain; empty for <postmaster>", atRcpt, "", func(env map[string]any, name string, e *policy.Event) {
		setLower(env, name, e.Path.Domain)
	}},
	{"recipients", "how many forward-paths were accepted before", sinceRcpt, 0, func(env map[string]any, name string, e *policy.Event) {
		n := 0
		if e.Envelope != nil {
			n = len(e.Envelope.Recipients)
		}
		setInt(env, name, n)
	}},
	{"size", "bytes of message data; at mail what the client announced", atMailOrEnd, 0, func(env map[string]any, name string, e *policy.Event) {
		setInt(env, name, int(e.Size))
	}},
}

// factNamed finds a fact, or nil.
func factNamed(name string) *fact {
	for i := range facts {
		if facts[i].name == name {
			return &facts[i]
		}
	}
	return nil
}

// Fact is a name for the documentation.
type Fact struct {
	Name, About string
	Type        string // "string", "bool" or "int"
	At          []policy.Stage
}

// Facts lists what expressions may use, in a fixed order.
func Facts() (all []Fact) {
	for _, f := range facts {
		d := Fact{Name: f.name, About: f.about, Type: "string"}
		switch f.kind.(type) {
		case bool:
			d.Type = "bool"
		case int:
			d.Type = "int"
		}
		for st := policy.AtConnect; st <= policy.AtMessage; st++ {
			if f.from.Has(st) {
				d.At = append(d.At, st)
			}
		}
		all = append(all, d)
	}
	return all
}

// network is one in_network with its constants; its answer is a fact of its own.
type network struct {
	name  string
	proxy bool // of proxy_ip instead of client_ip
	set   *policy.Networks
}

// fill puts into env what the rules of the stage use.
func (st *stage) fill(env map[string]any, e *policy.Event) {
	for i := range st.facts {
		f := &st.facts[i]
		f.set(env, f.name, e)
	}
	for i := range st.networks {
		n := &st.networks[i]
		addr := e.Client.Addr.Addr()
		if n.proxy {
			addr = e.Client.ProxyAddr.Addr()
		}
		env[n.name] = n.set.Contains(addr)
	}
}

var inClear policy.TLS

func tlsOf(e *policy.Event) *policy.TLS {
	if e.Client.TLS == nil {
		return &inClear
	}
	return e.Client.TLS
}

func sender(e *policy.Event) []byte {
	if e.Stage == policy.AtMail {
		return e.Path.Mailbox
	}
	if e.Envelope == nil {
		return nil
	}
	return e.Envelope.ReversePath
}

// cut separates a mailbox; the domain has no "@", so the last one separates.
func cut(mailbox []byte) (local, domain []byte) {
	for i := len(mailbox) - 1; i >= 0; i-- {
		if mailbox[i] == '@' {
			return mailbox[:i], mailbox[i+1:]
		}
	}
	return mailbox, nil
}

// The setters leave a value alone that is there already, because a new one would be allocated.

func setString(env map[string]any, name, v string) {
	if old, ok := env[name].(string); !ok || old != v {
		env[name] = v
	}
}

func setBytes(env map[string]any, name string, v []byte) {
	if old, ok := env[name].(string); !ok || old != string(v) {
		env[name] = string(v)
	}
}

func setLower(env map[string]any, name string, v []byte) {
	var buf [256]byte
	lower := append(buf[:0], v...)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	setBytes(env, name, lower)
}

func setInt(env map[string]any, name string, v int) {
	if old, ok := env[name].(int); !ok || old != v {
		env[name] = v
	}
}

func setAddr(env map[string]any, name string, addr netip.Addr) {
	var buf [64]byte
	text := buf[:0]
	if addr.IsValid() {
		text = addr.Unmap().AppendTo(text)
	}
	setBytes(env, name, text)
}
