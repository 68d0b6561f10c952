package policy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/smtpcodec"
	"github.com/fastedge/fastedge/spf"
)

// scriptedDNS answers from a zone: at once, or, while it holds, when it is told to. What is not in the zone is Empty.
type scriptedDNS struct {
	mu      sync.Mutex
	zone    map[spf.Query]spf.Answer
	hold    bool
	asked   []string
	waiting []heldLookup
}

type heldLookup struct {
	q    spf.Query
	done func(spf.Answer)
}

// newDNS takes lines like "TXT example.com v=spf1 -all", "A host 192.0.2.1 192.0.2.2", "PTR name host" or "TXT name !" for a failure. Several TXT
// lines of a name are several records.
func newDNS(lines string) *scriptedDNS {
	d := &scriptedDNS{zone: map[spf.Query]spf.Answer{}}
	types := map[string]spf.QueryType{"TXT": spf.TypeTXT, "A": spf.TypeA, "AAAA": spf.TypeAAAA, "PTR": spf.TypePTR}
	texts := map[string][]string{}
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		words := strings.SplitN(line, " ", 3)
		q, a := spf.Query{Name: words[1], Type: types[words[0]]}, spf.Answer{Status: spf.Found}
		switch {
		case words[2] == "!":
			a.Status = spf.Failed
		case q.Type == spf.TypeTXT:
			texts[q.Name] = append(texts[q.Name], words[2])
			a.TXT = spf.NewTXT(texts[q.Name])
		case q.Type == spf.TypePTR:
			a.Hosts = strings.Fields(words[2])
		default:
			for word := range strings.FieldsSeq(words[2]) {
				a.Addrs = append(a.Addrs, netip.MustParseAddr(word))
			}
		}
		d.zone[q] = a
	}
	return d
}

func (d *scriptedDNS) answerTo(q spf.Query) spf.Answer {
	if a, ok := d.zone[q]; ok {
		return a
	}
	return spf.Answer{Status: spf.Empty}
}

func (d *scriptedDNS) Lookup(q spf.Query, _ netip.Addr, done func(spf.Answer)) (spf.Answer, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, q.Type.String()+" "+q.Name)
	if d.hold {
		d.waiting = append(d.waiting, heldLookup{q, done})
		return spf.Answer{}, false
	}
	return d.answerTo(q), true
}

// answer answers the i-th lookup that waits. false: there is none.
func (d *scriptedDNS) answer(i int) bool {
	d.mu.Lock()
	if i < 0 || i >= len(d.waiting) {
		d.mu.Unlock()
		return false
	}
	one := d.waiting[i]
	d.waiting = slices.Delete(d.waiting, i, i+1)
	a := d.answerTo(one.q)
	d.mu.Unlock()
	one.done(a)
	return true
}

// answerAll answers what waits, and what is asked then.
func (d *scriptedDNS) answerAll() {
	for d.answer(0) {
	}
}

// talk is one session as a validator that remembers sees it.
type talk struct {
	t       testing.TB
	v       Validator
	client  Client
	slot    any
	env     *envelope.Envelope
	path    smtpcodec.Path
	pending *Pending
	woken   chan struct{}
	fields  string
	host    string
}

func newTalk(t testing.TB, v Validator, ip, helo string) *talk {
	k := &talk{t: t, v: v}
	if ip != "" {
		k.client.Addr = netip.AddrPortFrom(netip.MustParseAddr(ip), 25000)
	}
	k.client.Helo = []byte(helo)
	return k
}

// at asks about a stage, if the validator wants that. The reply is "" for success and "..." when it takes its time.
func (k *talk) at(st Stage) string {
	k.t.Helper()
	if !k.v.Stages().Has(st) {
		return ""
	}
	e := &Event{Stage: st, Client: k.client}
	if r, ok := k.v.(Rememberer); ok && r.Remembers() {
		e.Slot = &k.slot
	}
	if st >= AtMail && st <= AtMessage {
		e.Envelope, e.Path = k.env, k.path
	}
	k.fields = ""
	if err := k.v.Validate(e); err != nil {
		k.t.Fatal(err)
	}
	k.host = e.Host
	if p := e.Pended(); p != nil {
		k.pending, k.woken = p, make(chan struct{})
		p.Arm(func(*Pending) { close(k.woken) })
		return "..."
	}
	k.fields = string(e.Fields)
	return replyText(e.Reply)
}

func replyText(r smtpcodec.Reply) string {
	if r.Code == 0 {
		return ""
	}
	return strings.TrimSuffix(string(r.AppendTo(nil)), "\r\n")
}

// helo and mail begin anew, as the commands do.
func (k *talk) helo(name string) string {
	k.t.Helper()
	k.client.Helo = []byte(name)
	return k.at(AtHelo)
}

func (k *talk) mail(sender string) string {
	k.t.Helper()
	k.env = &envelope.Envelope{ReversePath: []byte(sender)}
	k.path = smtpcodec.Path{Mailbox: k.env.ReversePath}
	if at := strings.LastIndexByte(sender, '@'); at >= 0 {
		k.path = mailbox(sender)
	}
	return k.at(AtMail)
}

// decision is what was pended for.
func (k *talk) decision() string {
	k.t.Helper()
	<-k.woken
	r, fields, err := k.pending.Decision()
	if err != nil {
		k.t.Fatal(err)
	}
	k.fields = string(fields)
	return replyText(r)
}

// quiet says that the question is not answered yet.
func (k *talk) quiet() bool {
	select {
	case <-k.woken:
		return false
	default:
		return true
	}
}

// told collects what SPFOptions.Told is told.
type told struct {
	mu   sync.Mutex
	list []string
}

func (l *told) tell(result spf.Code, action SPFAction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, result.String()+" "+action.String())
}

func (l *told) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.Join(l.list, ", ")
	l.list = nil
	return text
}

func mustSPF(t testing.TB, o SPFOptions) *SPF {
	t.Helper()
	s, err := NewSPF(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Each domain has the result of its name.
const spfZone = `
	TXT pass.example v=spf1 ip4:192.0.2.7 -all
	TXT fail.example v=spf1 -all
	TXT softfail.example v=spf1 ~all
	TXT neutral.example v=spf1 ?all
	TXT temperror.example !
	TXT permerror.example v=spf1 nonsense -all
	TXT told.example v=spf1 -all exp=why.told.example
	TXT why.told.example {reason} 100% %{s} not from %{i}
	TXT long.example v=spf1 a:host.long.example -all
	A host.long.example 192.0.2.99`

var spfResults = map[spf.Code]string{ // why
	spf.None: "no SPF record", spf.Neutral: "access neither permitted nor denied", spf.Pass: "sender SPF authorized", spf.Fail: "SPF fail - not authorized",
	spf.SoftFail: "domain owner discourages use of this host", spf.TempError: "SPF Temporary Error: no answer for TXT of temperror.example",
	spf.PermError: "SPF Permanent Error: ",
}

func TestEachResultGetsTheReplyOfItsRule(t *testing.T) {
	for result, why := range spfResults {
		subject := map[spf.Code]string{spf.Fail: "7.23 SPF validation failed: ", spf.TempError: "7.24 SPF validation error: ",
			spf.PermError: "7.24 SPF validation error: "}[result] // RFC 7372 §3.2
		if subject == "" {
			subject = "7.0 SPF " + result.String() + ": "
		}
		for _, c := range []struct {
			rule    *SPFRule
			enforce bool
			want    string // a beginning
			action  string
		}{
			{nil, true, "", "none"},
			{nil, false, "", "none"},
			{&SPFRule{Code: 550}, true, "550 5." + subject + why, "refused"},
			{&SPFRule{Code: 550}, false, "", "observed"},
			{&SPFRule{Code: 451}, true, "451 4." + subject + why, "refused"},
			{&SPFRule{Code: 451}, false, "", "observed"},
			{&SPFRule{Code: 250}, true, "250 2." + subject + why, "accepted"},
			{&SPFRule{Code: 250}, false, "", "none"},
			{&SPFRule{Code: 554, Message: "5.7.1 No"}, true, "554 5.7.1 No", "refused"},
			{&SPFRule{Code: 554, Message: "5.7.1 No: {reason}, {reason}"}, true, "554 5.7.1 No: " + why, "refused"},
			{&SPFRule{Code: 250, Message: "2.1.0 Ok; {reason}"}, true, "250 2.1.0 Ok; " + why, "accepted"},
			{&SPFRule{Code: 550, Message: "{reason}"}, true, "550 5.7.0 " + why, "refused"},
			{&SPFRule{Code: 421, Message: "4.7.1 Bye"}, true, "421 4.7.1 Bye", "refused"},
		} {
			var l told
			o := SPFOptions{Resolver: newDNS(spfZone), Enforce: c.enforce, Told: l.tell}
			if c.rule != nil {
				o.Rules = map[spf.Code]SPFRule{result: *c.rule}
			}
			k := newTalk(t, mustSPF(t, o), "192.0.2.7", "mail.example.com")
			got := k.mail("a@" + result.String() + ".example")
			if !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") {
				t.Errorf("%v, enforce %v, rule %v: %q, want %q", result, c.enforce, c.rule, got, c.want)
			}
			if got := l.take(); got != result.String()+" "+c.action {
				t.Errorf("%v, enforce %v, rule %v: told %q, want %q", result, c.enforce, c.rule, got, c.action)
			}
		}
	}
}

// A client that keeps us from finding its fail, by spending its share of lookups, is not let in for that.
func TestAClientDoesNotGetPastSPFByAFloodOfItsOwn(t *testing.T) {
	const later = "451 4.7.24 SPF validation error: SPF Temporary Error: too many lookups under way for this client, not asked for TXT of "
	for _, c := range []struct {
		helo, mail spf.Cause
		o          SPFOptions
		want, told string
	}{
		{mail: spf.CauseClient, o: SPFOptions{Enforce: true}, want: later + "mail.example", told: "temperror refused"},
		{mail: spf.CauseClient, o: SPFOptions{Enforce: true, Rules: map[spf.Code]SPFRule{spf.TempError: {Code: 250, Message: "2.1.0 Ok"}}},
			want: "250 2.1.0 Ok", told: "temperror accepted"},
		{mail: spf.CauseClient, o: SPFOptions{}, told: "temperror observed"},
		{mail: spf.CauseBusy, o: SPFOptions{Enforce: true}, told: "temperror none"},
		{mail: spf.CauseDNS, o: SPFOptions{Enforce: true}, told: "temperror none"},
		{helo: spf.CauseClient, mail: 99, o: SPFOptions{Enforce: true, HeloFirst: true}, want: later + "helo.example", told: "temperror refused"},
		{helo: spf.CauseClient, mail: 99, o: SPFOptions{HeloFirst: true}, told: "pass none"},
		{helo: spf.CauseBusy, mail: 99, o: SPFOptions{Enforce: true, HeloFirst: true}, told: "pass none"},
	} {
		for _, held := range []bool{false, true} {
			dns := newDNS("TXT mail.example v=spf1 ip4:192.0.2.7 -all")
			dns.hold = held
			dns.zone[spf.Query{Name: "helo.example", Type: spf.TypeTXT}] = spf.Answer{Cause: c.helo}
			if c.mail != 99 {
				dns.zone[spf.Query{Name: "mail.example", Type: spf.TypeTXT}] = spf.Answer{Cause: c.mail}
			}
			var l told
			c.o.Resolver, c.o.Told = dns, l.tell
			k := newTalk(t, mustSPF(t, c.o), "192.0.2.7", "")
			k.helo("helo.example")
			got := k.mail("a@mail.example")
			dns.answerAll()
			if got == "..." {
				got = k.decision()
			}
			if told := l.take(); got != c.want || told != c.told {
				t.Errorf("%+v, held %v: %q, told %s", c, held, got, told)
			}
		}
	}
}

// What a stranger wrote is neither looked at for marks nor formatted.
func TestAnExplanationIsNoTemplate(t *testing.T) {
	s := mustSPF(t, SPFOptions{Resolver: newDNS(spfZone), Enforce: true, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: "5.7.23 SPF: {reason}!"}}})
	// %{s} needs no escape of ours; the lone % makes the explanation void (RFC 7208 §6.2), so the phrase stands there.
	if got := newTalk(t, s, "192.0.2.7", "h.example").mail("a@told.example"); got != "550 5.7.23 SPF: SPF fail - not authorized!" {
		t.Error(got)
	}
	d := newDNS("TXT told.example v=spf1 -all exp=why.told.example\nTXT why.told.example {reason} 100%% %{s} not from %{i}")
	s = mustSPF(t, SPFOptions{Resolver: d, Enforce: true, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: "5.7.23 SPF: {reason}!"}}})
	if got := newTalk(t, s, "192.0.2.7", "h.example").mail("a@told.example"); got != "550 5.7.23 SPF: {reason} 100% a@told.example not from 192.0.2.7!" {
		t.Error(got)
	}
}

func TestBadSPFRulesAreRefused(t *testing.T) {
	for _, c := range []struct {
		rule SPFRule
		want string
	}{
		{SPFRule{Code: 0}, "0 is no reply code"},
		{SPFRule{Code: 221}, "221 is no reply code"},
		{SPFRule{Code: 354}, "354 is no reply code"},
		{SPFRule{Code: 600}, "600 is no reply code"},
		{SPFRule{Code: 550, Message: "5.7.1 {Reason}"}, "only {reason} can be filled in"},
		{SPFRule{Code: 550, Message: "5.7.1 {reason"}, "only {reason} can be filled in"},
		{SPFRule{Code: 550, Message: "5.7.1 {{reason}}"}, "only {reason} can be filled in"},
		{SPFRule{Code: 550, Message: "5.7.1 Größe"}, "printable ASCII"},
		{SPFRule{Code: 550, Message: "5.7.1 No\r\n250 Yes"}, "printable ASCII"},
		{SPFRule{Code: 451, Message: "5.7.1 No"}, "no enhanced status code of class 4"},
		{SPFRule{Code: 550, Message: "5.7.1234 No"}, "no enhanced status code of class 5"},
	} {
		_, err := NewSPF(SPFOptions{Resolver: newDNS(""), Rules: map[spf.Code]SPFRule{spf.Fail: c.rule}})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "policy: SPF rule for fail: ") {
			t.Errorf("%v: %v", c.rule, err)
		}
	}
	for _, at := range []Stage{AtHelo, AtMessage, AtQueued} {
		if _, err := NewSPF(SPFOptions{At: at}); err == nil {
			t.Errorf("enforced at %v", at)
		}
	}
	if _, err := NewSPF(SPFOptions{Rules: map[spf.Code]SPFRule{spf.PermError + 1: {Code: 550}}}); err == nil {
		t.Error("a rule for a result that there is not")
	}
}

// The check begins at MAIL and is joined where it is enforced, however long it takes.
func TestSPFIsJoinedWhereItIsEnforced(t *testing.T) {
	for _, at := range []Stage{AtMail, AtRcpt, AtData} {
		for _, early := range []bool{true, false} {
			var l told
			d := newDNS(spfZone)
			d.hold = true
			s := mustSPF(t, SPFOptions{Resolver: d, Enforce: true, At: at, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: "5.7.23 {reason}"}}, Told: l.tell})
			k := newTalk(t, s, "192.0.2.7", "h.example")
			const want = "550 5.7.23 SPF fail - not authorized"
			for _, st := range []Stage{AtMail, AtRcpt, AtRcpt, AtData} {
				got := ""
				if st == AtMail {
					got = k.mail("a@long.example")
					if len(d.asked) != 1 {
						t.Errorf("asked %q at MAIL", d.asked)
					}
					if early {
						d.answerAll()
					}
				} else {
					got = k.at(st)
				}
				if st != at {
					if got != "" {
						t.Errorf("enforced at %v: %q at %v", at, got, st)
					}
					continue
				}
				if got == "..." {
					d.answer(0)
					if len(d.asked) == 2 && len(d.waiting) == 1 && !k.quiet() {
						t.Error("an answer before the check is over")
					}
					d.answerAll()
					got = k.decision()
				} else if !early {
					if st == AtRcpt && len(d.waiting) == 0 { // the second RCPT
						early = true
					} else {
						t.Errorf("enforced at %v: did not wait", at)
					}
				}
				if got != want {
					t.Errorf("enforced at %v: %q", at, got)
				}
			}
			if got := l.take(); got != "fail refused" {
				t.Errorf("enforced at %v: told %q", at, got)
			}
		}
	}
}

// Observing never lets a command wait.
func TestObservingDelaysNoCommand(t *testing.T) {
	var l told
	d := newDNS(spfZone)
	d.hold = true
	s := mustSPF(t, SPFOptions{Resolver: d, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550}}, Told: l.tell})
	k := newTalk(t, s, "192.0.2.7", "h.example")
	for _, st := range []Stage{AtMail, AtRcpt, AtData, AtMessage} {
		if st == AtMail {
			k.mail("a@fail.example")
		} else if got := k.at(st); got != "" {
			t.Errorf("%v: %q", st, got)
		}
	}
	if got := l.take(); got != "" {
		t.Errorf("told %q", got)
	}
	d.answerAll()
	if got := l.take(); got != "fail observed" {
		t.Errorf("told %q", got)
	}
	k.at(AtClose)
}

func TestHeloFailDecidesWhereItIsAsked(t *testing.T) {
	rules := map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: "5.7.23 {reason}"}, spf.SoftFail: {Code: 450, Message: "4.7.23 soft"}}
	for _, c := range []struct{ helo, sender, want string }{
		{"fail.example", "a@pass.example", "550 5.7.23 SPF fail - not authorized"},
		{"fail.example", "a@softfail.example", "550 5.7.23 SPF fail - not authorized"},
		{"softfail.example", "a@pass.example", ""},
		{"pass.example", "a@softfail.example", "450 4.7.23 soft"},
		{"pass.example", "a@fail.example", "550 5.7.23 SPF fail - not authorized"},
		{"temperror.example", "a@pass.example", ""},
		{"[192.0.2.7]", "a@pass.example", ""},
		{"fail.example", "", "550 5.7.23 SPF fail - not authorized"},
		{"pass.example", "", ""},
	} {
		for _, when := range []string{"at once", "before MAIL", "after MAIL"} {
			d := newDNS(spfZone)
			d.hold = when != "at once"
			k := newTalk(t, mustSPF(t, SPFOptions{Resolver: d, Enforce: true, HeloFirst: true, Rules: rules}), "192.0.2.7", "")
			if got := k.helo(c.helo); got != "" {
				t.Errorf("%+v: %q at HELO", c, got)
			}
			if when == "before MAIL" {
				d.answerAll()
			}
			got := k.mail(c.sender)
			if got == "..." {
				d.answerAll()
				got = k.decision()
			}
			if got != c.want {
				t.Errorf("%+v, %s: %q", c, when, got)
			}
			// The next transaction of the same HELO name asks about its own sender, and no more about the name.
			before := len(d.asked)
			if got = k.mail("a@neutral.example"); got == "..." {
				d.answerAll()
				got = k.decision()
			}
			if want := map[bool]string{true: c.want, false: ""}[c.helo == "fail.example"]; got != want {
				t.Errorf("%+v, %s: next transaction %q", c, when, got)
			}
			for _, q := range d.asked[before:] {
				if q != "TXT neutral.example" {
					t.Errorf("%+v, %s: asked %s", c, when, q)
				}
			}
		}
	}
	// Without it the name is never asked about, unless the sender is null.
	d := newDNS(spfZone)
	k := newTalk(t, mustSPF(t, SPFOptions{Resolver: d, Enforce: true, Rules: rules}), "192.0.2.7", "fail.example")
	if got := k.mail("a@pass.example"); got != "" || len(d.asked) != 1 {
		t.Errorf("%q, asked %q", got, d.asked)
	}
	if got := k.mail(""); got != "550 5.7.23 SPF fail - not authorized" {
		t.Errorf("null sender: %q", got)
	}
}

func TestSomeClientsAreNotChecked(t *testing.T) {
	rules := map[spf.Code]SPFRule{spf.Fail: {Code: 550}}
	for _, c := range []struct {
		ip      string
		change  func(*Client)
		checked bool
	}{
		{"192.0.2.7", nil, true},
		{"2001:db8::7", nil, true},
		{"10.0.0.1", nil, true},
		{"", nil, false}, // a unix socket
		{"127.0.0.1", nil, false},
		{"::1", nil, false},
		{"::ffff:127.0.0.1", nil, false},
		{"198.51.100.7", nil, false}, // in Skip
		{"::ffff:198.51.100.7", nil, false},
		{"192.0.2.7", func(c *Client) { c.MayRelay = true }, false},
		{"192.0.2.7", func(c *Client) { c.User = "ann" }, false},
	} {
		for _, helo := range []bool{false, true} {
			d := newDNS(spfZone)
			k := newTalk(t, mustSPF(t, SPFOptions{Resolver: d, Enforce: true, HeloFirst: helo, Rules: rules, Skip: networks("198.51.100.0/24")}), c.ip, "")
			if c.change != nil {
				c.change(&k.client)
			}
			k.helo("pass.example")
			if got := k.mail("a@fail.example"); (got != "") != c.checked || (len(d.asked) > 0) != c.checked {
				t.Errorf("%+v, HELO %v: %q, asked %q", c, helo, got, d.asked)
			}
			k.at(AtClose)
		}
	}
	// A login after HELO ends the checks of a session.
	d := newDNS(spfZone)
	k := newTalk(t, mustSPF(t, SPFOptions{Resolver: d, Enforce: true, HeloFirst: true, Rules: rules}), "192.0.2.7", "")
	k.helo("fail.example")
	k.client.User = "ann"
	if got := k.mail("a@fail.example"); got != "" {
		t.Error(got)
	}
}

// A silent server ends in temperror, and what it says later changes nothing.
func TestAnSPFCheckEndsInTime(t *testing.T) {
	var checked []SPFChecked
	d := newDNS(spfZone)
	d.hold = true
	s := mustSPF(t, SPFOptions{Resolver: d, Enforce: true, HeloFirst: true, Timeout: time.Millisecond,
		Rules:   map[spf.Code]SPFRule{spf.TempError: {Code: 451}, spf.Fail: {Code: 550}},
		Checked: func(c SPFChecked) { checked = append(checked, c) }})
	k := newTalk(t, s, "192.0.2.7", "")
	k.helo("fail.example")
	const late = "451 4.7.24 SPF validation error: SPF Temporary Error: Timed out"
	if got := k.mail("a@fail.example"); got != "..." || k.decision() != late {
		t.Errorf("%q", got)
	}
	if len(checked) != 2 || checked[0].Result.Code != spf.TempError || checked[1].Identity != spf.MailFrom || checked[1].Sender != "a@fail.example" {
		t.Errorf("checked %+v", checked)
	}
	first := k.slot.(*spfState).run
	if got := k.mail("b@fail.example"); got != "..." {
		t.Errorf("%q", got)
	}
	if k.slot.(*spfState).run == first {
		t.Error("a check began where an answer to another is still to come")
	}
	d.answer(0) // HELO's, too late
	if got := k.decision(); got != late {
		t.Errorf("%q", got)
	}
	d.answerAll()
	d.hold = false
	if got := k.mail("c@fail.example"); got != "550 5.7.23 SPF validation failed: SPF fail - not authorized" {
		t.Errorf("%q", got)
	}
}

// A client may begin another transaction while the check of the one before is still about: what counts is the present sender.
func TestTheSenderOfTheBeforeNeverDecides(t *testing.T) {
	for _, heloFirst := range []bool{false, true} {
		var l told
		d := newDNS(spfZone)
		d.hold = true
		s := mustSPF(t, SPFOptions{Resolver: d, Enforce: true, HeloFirst: heloFirst, At: AtData, Told: l.tell,
			Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: "5.7.23 no"}}})
		k := newTalk(t, s, "192.0.2.7", "")
		k.helo("softfail.example")
		k.mail("a@pass.example") // RSET: nobody asks any more
		k.mail("a@fail.example")
		if got := k.at(AtData); got != "..." {
			t.Errorf("%q", got)
		}
		d.answerAll()
		if got := k.decision(); got != "550 5.7.23 no" {
			t.Errorf("HELO first %v: %q", heloFirst, got)
		}
		if got := l.take(); got != "fail refused" {
			t.Errorf("told %q", got)
		}
		// A question that was given up after timeouts.policy, its answer coming in the next transaction.
		k.mail("a@fail.example")
		k.at(AtData)
		k.pending.Cancel()
		late := k.woken
		k.mail("a@pass.example")
		d.answerAll()
		if got := k.at(AtData); got != "" {
			t.Errorf("HELO first %v: %q", heloFirst, got)
		}
		select {
		case <-late:
			t.Error("a question that was cancelled was answered")
		default:
		}
	}
	// HELO's fail counts for every transaction that is begun while it is not known.
	d := newDNS(spfZone)
	d.hold = true
	s := mustSPF(t, SPFOptions{Resolver: d, Enforce: true, HeloFirst: true, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: "5.7.23 no"}}})
	k := newTalk(t, s, "192.0.2.7", "")
	k.helo("fail.example")
	for range 3 {
		if got := k.mail("a@pass.example"); got != "..." {
			t.Errorf("%q", got)
		}
		k.pending.Cancel()
	}
	k.mail("b@pass.example")
	d.answerAll()
	if got := k.decision(); got != "550 5.7.23 no" {
		t.Errorf("%q", got)
	}
}

// A client that is gone leaves a check behind, which ends by itself and is not used for anybody else before.
func TestAClientThatIsGoneMeanwhile(t *testing.T) {
	d := newDNS(spfZone)
	d.hold = true
	s := mustSPF(t, SPFOptions{Resolver: d, Enforce: true, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: "5.7.23 no"}}})
	k := newTalk(t, s, "192.0.2.7", "h.example")
	k.mail("a@long.example")
	run := k.slot.(*spfState).run
	k.pending.Cancel()
	k.at(AtClose)
	if k.slot.(*spfState).run != nil {
		t.Error("the session still has it")
	}
	other := newTalk(t, s, "192.0.2.7", "h.example")
	other.mail("a@pass.example")
	if other.slot.(*spfState).run == run {
		t.Error("used for somebody else")
	}
	d.answerAll()
	if got := other.decision(); got != "" {
		t.Errorf("%q", got)
	}
	select {
	case <-k.woken:
		t.Error("somebody gone was woken")
	default:
	}
}

// Whatever order clients and answers take, the reply is about the sender of MAIL and the name of HELO.
func TestAnyOrderOfCommandsAndAnswers(t *testing.T) {
	results := []string{"pass", "fail", "softfail", "none", "permerror", "long"}
	rules := map[spf.Code]SPFRule{}
	for code := range spf.PermError + 1 {
		rules[code] = SPFRule{Code: 550, Message: "5.7.23 " + code.String()}
	}
	want := func(helo, sender string) string {
		code := func(name string) string {
			if name == "long" {
				return "fail"
			}
			return name
		}
		if code(helo) == "fail" {
			return "550 5.7.23 fail"
		}
		return "550 5.7.23 " + code(sender)
	}
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 5))
		d := newDNS(spfZone)
		s := mustSPF(t, SPFOptions{Resolver: d, Enforce: true, HeloFirst: true, At: []Stage{AtMail, AtRcpt, AtData}[seed%3], Rules: rules})
		var talks []*talk
		var helos, senders []string
		for range 3 {
			talks = append(talks, newTalk(t, s, "192.0.2.7", ""))
			helos, senders = append(helos, ""), append(senders, "")
		}
		for range 60 {
			i := r.IntN(len(talks))
			k := talks[i]
			d.hold = r.IntN(4) > 0
			switch r.IntN(6) {
			case 0:
				if k.pending == nil {
					helos[i] = results[r.IntN(len(results))]
					k.helo(helos[i] + ".example")
					senders[i] = ""
				}
			case 1:
				if k.pending == nil && helos[i] != "" {
					senders[i] = results[r.IntN(len(results))]
					got := k.mail("a@" + senders[i] + ".example")
					check(t, k, s.o.At == AtMail, got, want(helos[i], senders[i]))
				}
			case 2:
				if k.pending == nil && senders[i] != "" && s.o.At != AtMail {
					check(t, k, true, k.at(s.o.At), want(helos[i], senders[i]))
				}
			case 3: // timeouts.policy
				if k.pending != nil {
					k.pending.Cancel()
					k.pending, senders[i] = nil, ""
				}
			default:
				d.answer(r.IntN(max(len(d.waiting), 1)))
			}
			for i, k := range talks {
				if k.pending != nil && !k.quiet() {
					if got := k.decision(); got != want(helos[i], senders[i]) {
						t.Fatalf("seed %d: HELO %s, sender %s: %q", seed, helos[i], senders[i], got)
					}
					k.pending = nil
				}
			}
		}
		for _, k := range talks {
			k.at(AtClose)
		}
		d.answerAll()
	}
}

func check(t *testing.T, k *talk, here bool, got, want string) {
	t.Helper()
	if got != "..." && (here && got != want || !here && got != "") {
		t.Fatalf("%q, want %q", got, want)
	}
	if got != "..." {
		k.pending = nil
	}
}

// Many sessions on several loops, their answers from other goroutines.
func TestManyChecksAtOnce(t *testing.T) {
	d := newDNS("")
	for i := range 50 {
		name := fmt.Sprintf("d%d.example", i)
		d.zone[spf.Query{Name: name, Type: spf.TypeTXT}] = spf.Answer{Status: spf.Found, TXT: spf.NewTXT([]string{"v=spf1 a:host." + name + " exp=why." + name + " -all"})}
		d.zone[spf.Query{Name: "why." + name, Type: spf.TypeTXT}] = spf.Answer{Status: spf.Found, TXT: spf.NewTXT([]string{"I am " + name})}
	}
	d.hold = true
	s := mustSPF(t, SPFOptions{Resolver: d, Enforce: true, HeloFirst: true, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: "5.7.23 {reason}"}},
		Told: func(spf.Code, SPFAction) {}, Checked: func(SPFChecked) {}})
	stop := make(chan struct{})
	var answering, talking sync.WaitGroup
	for range 3 {
		answering.Go(func() {
			for {
				select {
				case <-stop:
					d.answerAll()
					return
				default:
					if !d.answer(0) {
						time.Sleep(10 * time.Microsecond) // lets others run
					}
				}
			}
		})
	}
	for g := range 4 {
		talking.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 50 {
				k := newTalk(t, s, "192.0.2.7", "")
				k.helo("nowhere.example")
				for range r.IntN(4) + 1 {
					name := fmt.Sprintf("d%d.example", r.IntN(50))
					got := k.mail("a@" + name)
					if got == "..." && r.IntN(8) == 0 {
						k.pending.Cancel()
						continue
					}
					if got == "..." {
						got = k.decision()
					}
					if got != "550 5.7.23 I am "+name {
						t.Errorf("%s: %q", name, got)
					}
				}
				k.at(AtClose)
			}
		})
	}
	talking.Wait()
	close(stop)
	answering.Wait()
}

// narrowDNS lets three lookups wait: one more pushes out the oldest, which fails on the goroutine of the new one.
type narrowDNS struct{ scriptedDNS }

func (d *narrowDNS) Lookup(q spf.Query, _ netip.Addr, done func(spf.Answer)) (spf.Answer, bool) {
	d.mu.Lock()
	var out func(spf.Answer)
	if len(d.waiting) == 3 {
		out = d.waiting[0].done
		d.waiting = d.waiting[1:]
	}
	d.waiting = append(d.waiting, heldLookup{q, done})
	d.mu.Unlock()
	if out != nil {
		out(spf.Answer{})
	}
	return spf.Answer{}, false
}

// A lookup of one session may end those of others, on the loop of the one: everybody is answered, and nobody waits for another's lock.
func TestLookupsThatPushOthersOut(t *testing.T) {
	dns := &narrowDNS{scriptedDNS{zone: newDNS(spfZone + ptrZone + listZones).zone}}
	s := mustSPF(t, SPFOptions{Resolver: dns, Enforce: true, HeloFirst: true, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550, Message: "5.7.23 fail"},
		spf.TempError: {Code: 451, Message: "4.7.24 temperror"}}})
	v := NewResults(ResultsOptions{Hostname: "mx", SPF: s, PTR: NewPTR(PTROptions{Resolver: dns})})
	lists := mustDNSBL(t, DNSBLOptions{Resolver: dns, Zones: []DNSBLZone{{Zone: "bl.example.org"}, {Zone: "other.example.org"}, {Zone: "wl.example.org", Weight: -1}}})
	stop := make(chan struct{})
	var answering, talking sync.WaitGroup
	answering.Go(func() {
		for {
			select {
			case <-stop:
				dns.answerAll()
				return
			default:
				if !dns.answer(0) {
					time.Sleep(10 * time.Microsecond) // lets others run
				}
			}
		}
	})
	for range 4 {
		talking.Go(func() {
			for i := range 60 {
				first := newTalk(t, lists, "192.0.2.4", "")
				if got := first.at(AtConnect); got == "..." {
					first.decision()
				}
				k := newTalk(t, v, "192.0.2.14", "")
				k.at(AtConnect)
				k.helo("softfail.example")
				got := k.mail([]string{"a@fail.example", "a@long.example", "a@pass.example"}[i%3])
				if got == "..." {
					got = k.decision()
				}
				if got != "550 5.7.23 fail" && got != "451 4.7.24 temperror" {
					t.Errorf("%q", got)
				}
				if k.at(AtMessage) == "..." {
					k.decision()
				}
				k.at(AtClose)
			}
		})
	}
	talking.Wait()
	close(stop)
	answering.Wait()
}

// What the cache has answered stands for a client's next messages with the same name and domain of the sender for a second, in whatever session, unless
// the local-part had a say; and for nobody else's.
func TestADomainIsNotLookedUpAgainForASecond(t *testing.T) {
	d := newDNS(`TXT pass.example v=spf1 ip4:192.0.2.7 -all
		TXT fail.example v=spf1 -all
		TXT told.example v=spf1 -all exp=why.example
		TXT why.example at %{t}
		TXT local.example v=spf1 exists:%{l}.nobody.example ip4:192.0.2.7 -all
		TXT both.example v=spf1 include:%{s}.nobody.example exists:%{o}.nobody.example ip4:192.0.2.7 -all
		TXT a@both.example.nobody.example v=spf1 -all
		TXT b@both.example.nobody.example v=spf1 -all
		TXT broken.example !`)
	begun := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	longest := strings.Repeat("h", keptNames-len("pass.example"))
	for _, enforce := range []bool{true, false} {
		for _, c := range []struct {
			sender, helo string // before
			next, name   string // and then
			after        time.Duration
			asks         bool
		}{
			{"a@pass.example", "h.example", "a@pass.example", "h.example", 0, false},
			{"a@pass.example", "h.example", "a@pass.example", "h.example", keptTime - 1, false},
			{"a@pass.example", "h.example", "a@pass.example", "h.example", keptTime, true},
			{"a@pass.example", "h.example", "a@pass.example", "h.example", -1, true},
			{"a@pass.example", "h.example", "b@pass.example", "h.example", 0, false},
			{"a@pass.example", "h.example", "A@pass.example", "h.example", 0, false},
			{"a@pass.example", "h.example", "a@b@pass.example", "h.example", 0, false},
			{"a@pass.example", "h.example", "b@pass.example", "h.example", keptTime, true},
			{"a@pass.example", "h.example", "a@PASS.example", "h.example", 0, true},
			{"a@pass.example", "h.example", "pass.example", "h.example", 0, false},
			{"a@local.example", "h.example", "a@local.example", "h.example", 0, true},
			{"a@local.example", "h.example", "b@local.example", "h.example", 0, true},
			{"a@both.example", "h.example", "b@both.example", "h.example", 0, true},
			{"a@pass.example", "h.example", "a@pass.example", "i.example", 0, true},
			{"a@fail.example", "h.example", "a@fail.example", "h.example", 0, false},
			{"a@pass.example", "h.example", "a@fail.example", "h.example", 0, true},
			{"a@none.example", "h.example", "a@none.example", "h.example", 0, false},
			{"a@told.example", "h.example", "a@told.example", "h.example", 0, true},
			{"a@broken.example", "h.example", "a@broken.example", "h.example", 0, true},
			{"a@pass.example", longest, "a@pass.example", longest, 0, false},
			{"a@pass.example", longest + "h", "a@pass.example", longest + "h", 0, true},
			{"", "h.example", "", "h.example", 0, true},
			{"a@pass.example", "h.example", "", "h.example", 0, true},
		} {
			var results []string
			s := mustSPF(t, SPFOptions{Resolver: d, Enforce: enforce, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550}},
				Told: func(result spf.Code, action SPFAction) {
					results = append(results, result.String()+" "+action.String())
				},
				Checked: func(c SPFChecked) { results = append(results, c.Sender+" "+c.Result.Code.String()) }})
			var slot any
			mail := func(sender, helo string, at time.Time) (said []string, asked int) {
				d.asked, results = nil, nil
				e := &Event{Stage: AtMail, Now: at, Slot: &slot, Client: Client{Addr: netip.MustParseAddrPort("192.0.2.7:25000"), Helo: []byte(helo)},
					Path: smtpcodec.Path{Mailbox: []byte(sender)}}
				if err := s.Validate(e); err != nil || e.Pended() != nil {
					t.Fatal(err, e.Pended())
				}
				return append(results, replyText(e.Reply)), len(d.asked)
			}
			first, asked := mail(c.sender, c.helo, begun)
			if asked == 0 || len(first) != 3 {
				t.Fatalf("%q: %q after %d lookups", c.sender, first, asked)
			}
			again, asked := mail(c.next, c.name, begun.Add(c.after))
			if !c.asks {
				first[0] = strings.Replace(first[0], c.sender, c.next, 1)
			}
			if asked > 0 != c.asks || c.next == c.sender && c.after >= 0 && c.sender != "a@told.example" && !slices.Equal(again, first) || !c.asks && !slices.Equal(again, first) {
				t.Errorf("%+v: %q after %d lookups; before that %q", c, again, asked, first)
			}
			if third, asked := mail(c.next, c.name, begun.Add(c.after+keptTime)); asked == 0 || !slices.Equal(third[:2], again[:2]) {
				t.Errorf("%+v, a second later: %q after %d lookups", c, third, asked)
			}
		}
	}
}

// The result for a domain is that of other sessions of the client, and of no other client. Any number of domains is kept in the same room.
func TestAKeptResultIsOneClients(t *testing.T) {
	d := newDNS("TXT pass.example v=spf1 ip4:192.0.2.7 -all\nTXT other.example v=spf1 ip4:192.0.2.8 -all")
	s := mustSPF(t, SPFOptions{Resolver: d, Enforce: true, Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550}}})
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	mail := func(client, sender string) (reply string, asked int) {
		d.asked = nil
		var slot any // a session of its own
		e := &Event{Stage: AtMail, Now: now, Slot: &slot, Client: Client{Addr: netip.AddrPortFrom(netip.MustParseAddr(client), 25000), Helo: []byte("h.example")},
			Path: smtpcodec.Path{Mailbox: []byte(sender)}}
		if err := s.Validate(e); err != nil || e.Pended() != nil {
			t.Fatal(err, e.Pended())
		}
		return replyText(e.Reply), len(d.asked)
	}
	const fails = "550 5.7.23 SPF validation failed: SPF fail - not authorized"
	for i, c := range []struct {
		client, sender, reply string
		asked                 int
	}{
		{"192.0.2.7", "a@pass.example", "", 1}, {"192.0.2.7", "b@pass.example", "", 0}, {"::ffff:192.0.2.7", "b@pass.example", "", 0},
		{"192.0.2.8", "a@pass.example", fails, 1}, {"192.0.2.8", "a@pass.example", fails, 0}, {"192.0.2.7", "a@pass.example", "", 0},
		{"2001:db8::7", "a@pass.example", fails, 1}, {"192.0.2.7", "a@other.example", fails, 1}, {"192.0.2.8", "a@other.example", "", 1},
	} {
		if reply, asked := mail(c.client, c.sender); reply != c.reply || asked != c.asked {
			t.Errorf("%d: %q after %d lookups, want %q after %d", i, reply, asked, c.reply, c.asked)
		}
	}
	kept := 0
	for i := range 3 * keptResults {
		mail("192.0.2.7", "a@d"+strconv.Itoa(i)+".example")
	}
	for i := range s.kept {
		for j := range s.kept[i] {
			if s.kept[i][j].Load() != nil {
				kept++
			}
		}
	}
	if kept < keptResults*9/10 {
		t.Errorf("%d of %d places are used: domains fall on few", kept, keptResults)
	}
}

// Two results that fall on the same places are both kept; a third one takes the older's, and a newer one of the same key takes its own.
func TestAPairKeepsTheTwoYoungest(t *testing.T) {
	s := mustSPF(t, SPFOptions{Resolver: newDNS("")})
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	var p keptPair
	for i, c := range []struct{ domain, kept string }{
		{"a", "a"}, {"b", "ab"}, {"a", "ab"}, {"c", "ac"}, {"c", "ac"}, {"d", "dc"}, {"e", "de"},
	} {
		now = now.Add(time.Millisecond)
		key := keptKey{netip.MustParseAddr("192.0.2.7"), []byte("h.example"), []byte(c.domain)}
		p.keep(&key, s.newKept(now, &key, &spf.Result{Code: spf.Pass}))
		kept := ""
		for j := range p {
			if k := p[j].Load(); k != nil {
				kept += string(k.names[k.helo:][:k.domain])
			}
		}
		if k := p.find(now, &key); kept != c.kept || k == nil || k.begun != now {
			t.Errorf("%d: %q are kept, want %q; found %+v", i, kept, c.kept, k)
		}
	}
}

// warmSPF is a session whose sender's records are all cached: a provider's chain of three.
func warmSPF(t testing.TB) (v Validator, message func()) {
	d := newDNS(`TXT big.example v=spf1 include:_spf.provider.example ~all
		TXT _spf.provider.example v=spf1 include:_a.provider.example include:_b.provider.example ~all
		TXT _a.provider.example v=spf1 ip4:198.51.100.0/24 ~all
		TXT _b.provider.example v=spf1 ip4:192.0.2.0/24 ~all`)
	s := mustSPF(t, SPFOptions{Resolver: cachedDNS(d.zone), Enforce: true, Hostname: "mx1.example.net",
		Rules: map[spf.Code]SPFRule{spf.Fail: {Code: 550}}, Told: func(spf.Code, SPFAction) {}})
	v = NewResults(ResultsOptions{Hostname: "mx1.example.net", SPF: s})
	var slot any
	client := Client{Addr: netip.MustParseAddrPort("192.0.2.7:25000"), Helo: []byte("mail.big.example")}
	env := &envelope.Envelope{ReversePath: []byte("somebody@big.example")}
	e := &Event{}
	room := make([]byte, 1024)
	message = func() {
		for _, st := range [...]Stage{AtMail, AtMessage} {
			*e = Event{Stage: st, Client: client, Envelope: env, Path: smtpcodec.Path{Mailbox: env.ReversePath}, Slot: &slot, Fields: room[:0]}
			if err := v.Validate(e); err != nil || e.Reply.Code != 0 {
				t.Fatal(err, e.Reply)
			}
		}
		if !bytes.HasPrefix(e.Fields, []byte("Received-SPF: pass\r\n")) {
			t.Fatalf("%s", e.Fields)
		}
	}
	return v, message
}

// cachedDNS answers at once and without an allocation, like a warm cache.
type cachedDNS map[spf.Query]spf.Answer

func (d cachedDNS) Lookup(q spf.Query, _ netip.Addr, _ func(spf.Answer)) (spf.Answer, bool) {
	return d[q], true
}

// A session's next message by the same sender: the names are there already, and the session has room for the fields.
func TestACachedSenderIsCheckedWithoutAllocations(t *testing.T) {
	_, message := warmSPF(t)
	message()
	if n := testing.AllocsPerRun(200, message); n > 0 {
		t.Errorf("%v allocations for one message", n)
	}
}

// BenchmarkSPF is one message whose sender's four records are cached, with its reply and fields, beside the same without SPF.
func BenchmarkSPF(b *testing.B) {
	b.Run("cached-4", func(b *testing.B) {
		_, message := warmSPF(b)
		b.ReportAllocs()
		for b.Loop() {
			message()
		}
	})
	b.Run("skipped", func(b *testing.B) {
		s := mustSPF(b, SPFOptions{Resolver: cachedDNS{}, Enforce: true, Skip: networks("192.0.2.0/24")})
		var slot any
		env := &envelope.Envelope{ReversePath: []byte("somebody@big.example")}
		e := &Event{}
		client := Client{Addr: netip.MustParseAddrPort("192.0.2.7:25000"), Helo: []byte("mail.big.example")}
		b.ReportAllocs()
		for b.Loop() {
			*e = Event{Stage: AtMail, Client: client, Envelope: env, Path: smtpcodec.Path{Mailbox: env.ReversePath}, Slot: &slot}
			if err := s.Validate(e); err != nil {
				b.Fatal(err)
			}
		}
	})
}
