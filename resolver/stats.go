package resolver

import (
	"net/netip"
	"time"
)

// Stats are counters since New, except Inflight, Waiting, the sizes of the caches and the state of the servers.
type Stats struct {
	// Answered from the cache.
	Hits         uint64
	NegativeHits uint64
	FailureHits  uint64
	Stale        uint64 // answers past their time served instead of Failed

	Misses    uint64 // lookups that a question was made for
	Coalesced uint64 // lookups that joined a question of another
	Prefetch  uint64 // questions for what is about to expire

	// Failed without a question, or pushed out.
	OverInflight uint64 // MaxInflight
	OverClient   uint64 // MaxPerClient
	OverZone     uint64 // MaxPerZone
	OverWaiting  uint64 // MaxWaiting
	Jostled      uint64 // questions that were pushed out by new ones

	// Tries on the wire.
	Sent         uint64 // all
	Retransmits  uint64
	Withheld     uint64 // retransmissions that were put off: MaxRetransmits or MaxZoneRetransmits
	Hedges       uint64
	Probes       uint64 // sent to a silent server along with another
	ByTCP        uint64
	WithoutEDNS  uint64 // asked again after FORMERR or NOTIMP
	SocketErrors uint64 // sockets that could not be opened or written to

	// What came back.
	Answers       uint64 // taken
	Authentic     uint64 // of these, those that the server says it has validated (AD); nothing depends on it
	Strays        uint64 // wrong id: duplicates, answers that come too late, forgeries
	WrongQuestion uint64 // right id, other question, or no answer at all
	WrongCase     uint64 // right id and name, other capitals
	Malformed     uint64 // right id and question, undecodable
	Truncated     uint64
	TooBig        uint64 // more than MaxAnswerRRs, MaxTXTBytes or MaxChain
	ServFail      uint64
	Refused       uint64
	OtherRcodes   uint64 // and referrals
	Timeouts      uint64 // questions without any answer in Timeout

	Inflight int // questions open
	Waiting  int // lookups that wait for them

	Positive, Negative, Failure CacheStats
	Servers                     []ServerStats
}

// CacheStats of one of the three caches.
type CacheStats struct {
	Entries int
	Bytes   int64
	Max     int64
}

// ServerStats of one server.
type ServerStats struct {
	Addr     netip.AddrPort
	Up       bool
	RTT      time.Duration // smoothed; 0 before the first answer
	Sent     uint64
	Answers  uint64
	Inflight int
}
