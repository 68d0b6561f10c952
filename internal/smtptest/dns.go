package smtptest

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/spf"
)

// zone is a policy.Resolver with a transcript's answers. Names that it does not have do not exist.
type zone struct {
	answers map[spf.Query]spf.Answer
	late    map[spf.Query]bool
	waiting []func() // late answers that were asked for
}

// Lookup is policy.Resolver's.
func (z *zone) Lookup(q spf.Query, _ netip.Addr, done func(spf.Answer)) (spf.Answer, bool) {
	a, ok := z.answers[q]
	if !ok {
		a = spf.Answer{Status: spf.Empty}
	}
	if z.late[q] {
		z.waiting = append(z.waiting, func() { done(a) })
		return spf.Answer{}, false
	}
	return a, true
}

// deliver gives the late answers that were asked for. It says whether there were any.
func (z *zone) deliver() bool {
	if z == nil || len(z.waiting) == 0 {
		return false
	}
	for len(z.waiting) > 0 {
		waiting := z.waiting
		z.waiting = nil
		for _, f := range waiting {
			f()
		}
	}
	return true
}

// add reads NAME TYPE VALUE; the value "failed" is no answer, and "late:" before the name has the answer come late.
func (z *zone) add(text string) error {
	words := strings.SplitN(text, " ", 3)
	if len(words) != 3 {
		return fmt.Errorf("dns wants a name, a type and a value")
	}
	q := spf.Query{Name: words[0]}
	late := false
	if q.Name, late = strings.CutPrefix(q.Name, "late:"); late {
		defer func() { z.late[q] = true }()
	}
	var a spf.Answer
	switch value := words[2]; {
	case words[1] == "TXT":
		q.Type = spf.TypeTXT
		a.TXT = spf.NewTXT([]string{value})
	case words[1] == "A":
		q.Type = spf.TypeA
	case words[1] == "PTR":
		q.Type = spf.TypePTR
		a.Hosts = strings.Fields(value)
	default:
		return fmt.Errorf("no type %q", words[1])
	}
	a.Status = spf.Found
	if words[2] == "failed" {
		a = spf.Answer{Status: spf.Failed}
	} else if q.Type == spf.TypeA {
		for _, word := range strings.Fields(words[2]) {
			addr, err := netip.ParseAddr(word)
			if err != nil {
				return err
			}
			a.Addrs = append(a.Addrs, addr)
		}
	}
	z.answers[q] = a
	return nil
}

// senders is what directives say of SPF and clients' names.
type senders struct {
	zone *zone
	spf  *policy.SPFOptions
	ptr  bool
}

func (s *senders) dns() *zone {
	if s.zone == nil {
		s.zone = &zone{answers: map[spf.Query]spf.Answer{}, late: map[spf.Query]bool{}}
	}
	return s.zone
}

// configure reads "observe" or "enforce", then mail, rcpt or data, then helo.
func (s *senders) configure(words []string) error {
	s.spf = &policy.SPFOptions{Resolver: s.dns(), Hostname: "mx.example.net", Rules: map[spf.Code]policy.SPFRule{}}
	for _, word := range words {
		switch word {
		case "observe":
		case "enforce":
			s.spf.Enforce = true
		case "helo":
			s.spf.HeloFirst = true
		default:
			at, err := policy.ParseStage(word)
			if err != nil {
				return err
			}
			s.spf.At = at
		}
	}
	return nil
}

// rule reads RESULT CODE [MESSAGE].
func (s *senders) rule(text string) error {
	words := strings.SplitN(text, " ", 3)
	if s.spf == nil || len(words) < 2 {
		return fmt.Errorf("spf-on wants a result and a code, behind spf")
	}
	code, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	r := policy.SPFRule{Code: uint16(code)}
	if len(words) == 3 {
		r.Message = words[2]
	}
	for c := spf.None; c <= spf.PermError; c++ {
		if c.String() == words[0] {
			s.spf.Rules[c] = r
			return nil
		}
	}
	return fmt.Errorf("%q is no result", words[0])
}

// validators gives the validators for all of it.
func (s *senders) validators() ([]policy.Validator, error) {
	o := policy.ResultsOptions{Hostname: "mx.example.net"}
	if s.spf != nil {
		var err error
		if o.SPF, err = policy.NewSPF(*s.spf); err != nil {
			return nil, err
		}
	}
	if s.ptr {
		o.PTR = policy.NewPTR(policy.PTROptions{Resolver: s.dns()})
	}
	if o.SPF == nil && o.PTR == nil {
		return nil, nil
	}
	return []policy.Validator{policy.NewResults(o)}, nil
}
