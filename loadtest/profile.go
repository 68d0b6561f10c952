package loadtest

import (
	"fmt"
	"strings"
)

// profiles are loads with a name. What a user sets beside one takes precedence over it.
var profiles = map[string]struct {
	size       string
	recipients Range
	pipelining string
	slow, bad  float64
}{
	"small":   {size: "lognormal:3KiB:0.6", recipients: Range{1, 1}, pipelining: "group"},
	"mixed":   {size: "lognormal:15KiB:1.6", recipients: Range{1, 3}, pipelining: "group"},
	"bulk":    {size: "64KiB..1MiB", recipients: Range{1, 10}, pipelining: "group"},
	"hostile": {size: "lognormal:8KiB:1.2", recipients: Range{1, 3}, pipelining: "group", slow: 0.05, bad: 0.2},
}

// ApplyProfile sets what is still unset to the values of a profile.
func (o *Options) ApplyProfile(name string) error {
	if name == "" {
		return nil
	}
	p, ok := profiles[name]
	if !ok {
		return fmt.Errorf("%q is not a profile; there are %s", name, strings.Join(ProfileNames(), ", "))
	}
	o.Profile = name
	if o.Size.isZero() {
		size, err := ParseSizes(p.size)
		if err != nil {
			panic("loadtest: profile " + name + ": " + err.Error())
		}
		o.Size = size
	}
	if o.Recipients == (Range{}) && o.To == "" {
		o.Recipients = p.recipients
	}
	if o.Pipelining == "" && o.Protocol != "http" {
		o.Pipelining = p.pipelining
	}
	if o.SlowClients == 0 {
		o.SlowClients = p.slow
	}
	if o.BadClients == 0 {
		o.BadClients = p.bad
	}
	return nil
}

// ProfileNames lists the profiles, gentlest first.
func ProfileNames() []string { return []string{"small", "mixed", "bulk", "hostile"} }
