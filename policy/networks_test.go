package policy

import "net/netip"

// networks is a set from the words of a configuration.
func networks(words ...string) *Networks { return NewNetworks(prefixes(words...)) }

func prefixes(words ...string) (all []netip.Prefix) {
	for _, w := range words {
		all = append(all, netip.MustParsePrefix(w))
	}
	return all
}
