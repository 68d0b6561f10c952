package resolver

import (
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"
)

const (
	// MaxRetransmits is how many questions a second may be asked again only because no answer has come, over all zones. What is above that is put off until
	// its next time. 50,000 lookups that wait for silent domains would else be sent four times as often as they are asked for, and the questions that are answered
	// would wait behind them. Never counted are other servers that are asked because one has failed, is unreachable, or has not answered anybody.
	MaxRetransmits = 1000
	// MaxZoneRetransmits is the same for one zone. Each that is answered lets zoneResumes more go on.
	MaxZoneRetransmits = 50

	retransmitBurst = 64 // saved up
	zoneBurst       = 16
	zoneResumes     = 2
)

// zone is a domain about which questions are open. Guarded by Resolver.mu.
type zone struct {
	name  string
	open  int       // questions
	again allowance // of retransmissions
	off   list      // those that were put off
}

// allowance is a token bucket.
type allowance struct {
	tokens float64
	at     int64 // when there were so many
}

// grow adds what rate, in tokens a second, has brought since, up to burst.
func (a *allowance) grow(now int64, rate, burst float64) {
	a.tokens = min(a.tokens+float64(max(now-a.at, 0))*rate/float64(time.Second), burst)
	a.at = now
}

// zoneOf is the part of a name that one registrant is responsible for: the last label under which a registry lets others register names, and the one
// before it. Of a reverse name it is that of a /16 or, with IPv6, a /32. Domains that give names to their customers (the private section of the Public
// Suffix List) are one zone, for all of it is served by the same servers. It is a part of name.
func zoneOf(name string) string {
	if strings.HasSuffix(name, ".in-addr.arpa") {
		return lastLabels(name, 4)
	}
	if strings.HasSuffix(name, ".ip6.arpa") {
		return lastLabels(name, 10)
	}
	suffix, registry := publicsuffix.PublicSuffix(name)
	for !registry {
		_, parent, more := strings.Cut(suffix, ".")
		if !more {
			break
		}
		suffix, registry = publicsuffix.PublicSuffix(parent)
	}
	return lastLabels(name, strings.Count(suffix, ".")+2)
}

// lastLabels is the last n labels of name.
func lastLabels(name string, n int) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '.' {
			if n--; n == 0 {
				return name[i+1:]
			}
		}
	}
	return name
}
