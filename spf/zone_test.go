package spf

import (
	"net/netip"
	"slices"
	"strings"
)

// rr is a record of a zone for tests. A type of TIMEOUT, SERVFAIL or CNAMELOOP is an error for all types that the name has no records of;
// a value of TIMEOUT is one for that type.
type rr struct {
	kind  string
	value string
	pref  int
}

// zone is DNS for tests, by lower-case name. SPF records stand for TXT where a name has no TXT record; the value NONE is no record, but
// prevents that.
type zone map[string][]rr

func (z zone) lookup(q Query) Answer { return z.follow(q.Name, q.Type, 0) }

func (z zone) follow(name string, t QueryType, depth int) Answer {
	if depth > 8 {
		return Answer{Status: Failed}
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	records := z[name]
	kind := t.String()
	if t == TypeTXT && !slices.ContainsFunc(records, func(r rr) bool { return r.kind == "TXT" }) {
		kind = "SPF"
	}
	failed, alias := false, ""
	var found []rr
	for _, r := range records {
		switch {
		case r.kind == kind && r.value == "TIMEOUT", r.kind == "TIMEOUT", r.kind == "SERVFAIL", r.kind == "CNAMELOOP":
			failed = true
		case r.kind == kind && r.value == "NONE":
		case r.kind == kind:
			found = append(found, r)
		case r.kind == "CNAME":
			alias = r.value
		}
	}
	switch {
	case len(found) > 0:
		return answer(t, found)
	case failed:
		return Answer{Status: Failed}
	case alias != "":
		return z.follow(alias, t, depth+1)
	}
	return Answer{Status: Empty}
}

func answer(t QueryType, found []rr) Answer {
	slices.SortStableFunc(found, func(a, b rr) int { return a.pref - b.pref })
	a := Answer{Status: Found}
	var values []string
	for _, r := range found {
		values = append(values, r.value)
	}
	switch t {
	case TypeTXT:
		a.TXT = NewTXT(values)
	case TypeMX, TypePTR:
		a.Hosts = values
	default:
		for _, v := range values {
			a.Addrs = append(a.Addrs, netip.MustParseAddr(v))
		}
	}
	return a
}
