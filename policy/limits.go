package policy

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/fastedge/fastedge/smtpcodec"
)

// Limit says which limit a client has run into.
type Limit uint8

// The limits of a Gate. LimitNone means that the client may go on.
const (
	LimitNone Limit = iota
	LimitPerAddress
	LimitPerPrefix
	LimitRate
	LimitMessageRate
	NumLimits
)

var limitKeys = [NumLimits]string{
	"none", "limits.connections_per_ip", "limits.connections_per_prefix", "limits.connection_rate", "limits.message_rate",
}

// String is the limit's configuration key.
func (l Limit) String() string {
	if l < NumLimits {
		return limitKeys[l]
	}
	return "unknown"
}

// Each limit has a reply of its own that names it, so that an operator who reads it in somebody else's log knows which one to raise.
// All are 4yz: they are over by themselves. X.7.0 and X.7.1 are RFC 3463 §3.8.
var limitReplies = [NumLimits]*smtpcodec.Reply{
	LimitPerAddress:  tryLater(421, 0, "Too many connections from your address (limits.connections_per_ip), try again later"),
	LimitPerPrefix:   tryLater(421, 0, "Too many connections from your network (limits.connections_per_prefix), try again later"),
	LimitRate:        tryLater(421, 0, "Connections from your network come too fast (limits.connection_rate), try again later"),
	LimitMessageRate: tryLater(450, 1, "Messages from your network come too fast (limits.message_rate), try again later"),
}

func tryLater(code, detail uint16, text string) *smtpcodec.Reply {
	return &smtpcodec.Reply{Code: code, Enhanced: smtpcodec.EnhancedCode{Class: code / 100, Subject: 7, Detail: detail}, Text: text}
}

// Reply is what a client over the limit is told; nil for LimitNone. It is shared and for reading only.
func (l Limit) Reply() *smtpcodec.Reply {
	if l < NumLimits {
		return limitReplies[l]
	}
	return nil
}

// GateOptions are the limits of a Gate. The zero value of a limit means that there is none.
type GateOptions struct {
	// PerAddress is how many connections one address may have open at once. An IPv6 address counts as its /64: that is what one host
	// or one customer has at least, and it may pick any address in it.
	PerAddress int
	// PerPrefix is how many connections one prefix may have open at once.
	PerPrefix int
	// Rate is how many new connections a minute one prefix may open, in the long run. A minute's worth may come at once, when the
	// prefix was quiet for a minute. Connections that are refused do not count.
	Rate int
	// MessageRate is the same for messages; each MAIL counts.
	MessageRate int
	// Prefix4 is the length of an IPv4 prefix, 1 to 32. Zero means 24.
	Prefix4 int
	// Prefix6 is the length of an IPv6 prefix, 1 to 64. Zero means 56.
	Prefix6 int
	// Exempt are networks without these limits.
	Exempt *Networks
	// MaxEntries is how many prefixes are remembered, about 64 bytes each. When there are more, the one without an open connection
	// that was quiet for the longest time is forgotten, with what it owes to the rates. Prefixes with open connections are never
	// forgotten: when there are more of these than MaxEntries, there are as many entries as these, which limits.connections bounds.
	// Zero means 100,000.
	MaxEntries int
	// Now is the clock of Validate. Nil means time.Now.
	Now func() time.Time
}

const (
	defaultPrefix4    = 24
	defaultPrefix6    = 56
	defaultMaxEntries = 100_000

	// gateShards share the work of several loops: an address and its prefix are always in the same one.
	gateShards = 16
)

// Gate counts who is connected, per address and per prefix, and how fast they come. Its methods may be called by any goroutine and do
// not block for longer than a map access. A nil Gate has no limits.
//
// The rates are a generic cell rate algorithm: one time per prefix, the moment at which everything that it has had would be paid for.
type Gate struct {
	o        GateOptions
	conns    rate
	messages rate
	shards   [gateShards]gateShard
}

type gateShard struct {
	mu        sync.Mutex
	max       int               // entries
	addresses map[uint64]int32  // connections open; an entry is there only while there are some
	prefixes  map[uint64]uint32 // index in entries
	entries   []gateEntry       // [0] is the ring of idle entries, oldest first
	free      uint32            // first of the list of unused entries, linked by next; 0: none
	_         [32]byte          // the next shard's lock has a cache line of its own
}

// gateEntry is what is known of one prefix.
type gateEntry struct {
	key        uint64
	conns      int64 // when the connections are paid for; nanoseconds since 1970
	messages   int64 // the same for messages
	open       int32
	prev, next uint32 // in the ring of idle entries, while open is 0
}

// rate is a limit per minute.
type rate struct {
	cost  int64 // nanoseconds for one; 0: no limit
	depth int64 // nanoseconds that may be owed before the next one
}

func perMinute(n int) rate {
	if n <= 0 {
		return rate{}
	}
	cost := max(int64(time.Minute)/int64(n), 1)
	return rate{cost: cost, depth: cost * int64(n-1)}
}

// take counts one at now, unless too much is owed.
func (r rate) take(paid *int64, now int64) bool {
	if r.cost == 0 {
		return true
	}
	if *paid-now > r.depth {
		return false
	}
	*paid = max(*paid, now) + r.cost
	return true
}

// NewGate gives a gate, or nil when o has no limit: then nothing is counted. It panics on prefix lengths that are out of range.
func NewGate(o GateOptions) *Gate {
	if o.PerAddress <= 0 && o.PerPrefix <= 0 && o.Rate <= 0 && o.MessageRate <= 0 {
		return nil
	}
	orDefault := func(v *int, zero int) {
		if *v == 0 {
			*v = zero
		}
	}
	orDefault(&o.Prefix4, defaultPrefix4)
	orDefault(&o.Prefix6, defaultPrefix6)
	orDefault(&o.MaxEntries, defaultMaxEntries)
	if o.Prefix4 < 1 || o.Prefix4 > 32 || o.Prefix6 < 1 || o.Prefix6 > 64 {
		panic("policy: prefix length out of range")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	g := &Gate{o: o, conns: perMinute(o.Rate), messages: perMinute(o.MessageRate)}
	for i := range g.shards {
		sh := &g.shards[i]
		sh.max = max(o.MaxEntries/gateShards, 1)
		sh.addresses, sh.prefixes = map[uint64]int32{}, map[uint64]uint32{}
		sh.entries = make([]gateEntry, 1)
	}
	return g
}

// Admit decides about a new connection from addr, and counts it when it gives LimitNone: Leave must follow then, and only then. An
// address that is not valid (a unix socket) and exempt ones are always admitted.
func (g *Gate) Admit(addr netip.Addr, now time.Time) Limit {
	if g == nil {
		return LimitNone
	}
	address, prefix, ok := g.keys(addr)
	if !ok {
		return LimitNone
	}
	sh := g.shard(prefix)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if g.o.PerAddress > 0 && sh.addresses[address] >= int32(g.o.PerAddress) {
		return LimitPerAddress
	}
	if g.countsPrefixes() {
		e := sh.entry(prefix)
		if g.o.PerPrefix > 0 && e.open >= int32(g.o.PerPrefix) {
			return LimitPerPrefix
		}
		if !g.conns.take(&e.conns, now.UnixNano()) {
			return LimitRate
		}
		if e.open++; e.open == 1 {
			sh.unlink(e)
		}
	}
	if g.o.PerAddress > 0 {
		sh.addresses[address]++
	}
	return LimitNone
}

// Leave says that an admitted connection from addr has ended.
func (g *Gate) Leave(addr netip.Addr) {
	if g == nil {
		return
	}
	address, prefix, ok := g.keys(addr)
	if !ok {
		return
	}
	sh := g.shard(prefix)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if g.o.PerAddress > 0 {
		if n := sh.addresses[address]; n > 1 {
			sh.addresses[address] = n - 1
		} else {
			delete(sh.addresses, address)
		}
	}
	if !g.countsPrefixes() {
		return
	}
	i, ok := sh.prefixes[prefix]
	if !ok || sh.entries[i].open == 0 {
		panic("policy: a connection left the gate that was not admitted: " + addr.String())
	}
	e := &sh.entries[i]
	if e.open--; e.open > 0 {
		return
	}
	sh.link(i)
	// Without a rate nothing of it is worth remembering.
	if g.conns.cost == 0 && g.messages.cost == 0 || len(sh.prefixes) > sh.max {
		sh.forgetOldest()
	}
}

// AdmitMessage counts one message from addr, and gives LimitMessageRate when it comes too fast.
func (g *Gate) AdmitMessage(addr netip.Addr, now time.Time) Limit {
	if g == nil || g.messages.cost == 0 {
		return LimitNone
	}
	_, prefix, ok := g.keys(addr)
	if !ok {
		return LimitNone
	}
	sh := g.shard(prefix)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if !g.messages.take(&sh.entry(prefix).messages, now.UnixNano()) {
		return LimitMessageRate
	}
	return LimitNone
}

// Stages is AtMail when there is a message rate.
func (g *Gate) Stages() Stages {
	if g == nil || g.messages.cost == 0 {
		return 0
	}
	return On(AtMail)
}

// Validate refuses MAIL when messages come too fast. Clients that have logged in and those of relay_from are not counted. Runs on:
// event loop.
func (g *Gate) Validate(e *Event) error {
	if e.Client.MayRelay || e.Client.User != "" {
		return nil
	}
	now := e.Now
	if now.IsZero() {
		now = g.o.Now()
	}
	if l := g.AdmitMessage(e.Client.Addr.Addr(), now); l != LimitNone {
		e.Set(*l.Reply())
	}
	return nil
}

// Entries is how many prefixes are remembered.
func (g *Gate) Entries() (n int) {
	if g == nil {
		return 0
	}
	for i := range g.shards {
		sh := &g.shards[i]
		sh.mu.Lock()
		n += len(sh.prefixes)
		sh.mu.Unlock()
	}
	return n
}

func (g *Gate) countsPrefixes() bool { return g.o.PerPrefix > 0 || g.conns.cost > 0 }

// keys are what addr is counted under; false for those that are not. An IPv4 address is put where IPv6 has multicast, whence no client
// comes, so that both are numbers of 64 bits.
func (g *Gate) keys(addr netip.Addr) (address, prefix uint64, ok bool) {
	if !addr.IsValid() || g.o.Exempt.Contains(addr) {
		return 0, 0, false
	}
	if addr = addr.Unmap(); addr.Is4() {
		b := addr.As4()
		const multicast = 0xFFFF_FFFF << 32
		address = multicast | uint64(binary.BigEndian.Uint32(b[:]))
		return address, address &^ (1<<(32-g.o.Prefix4) - 1), true
	}
	b := addr.As16()
	address = binary.BigEndian.Uint64(b[:8])
	return address, address &^ (1<<(64-g.o.Prefix6) - 1), true
}

func (g *Gate) shard(prefix uint64) *gateShard {
	const golden = 0x9E37_79B9_7F4A_7C15 // 2^64 divided by the golden ratio spreads neighbours
	return &g.shards[prefix*golden>>60]
}

// entry finds or makes the entry of a prefix. The entry is borrowed until the next call.
func (sh *gateShard) entry(prefix uint64) *gateEntry {
	if i, ok := sh.prefixes[prefix]; ok {
		e := &sh.entries[i]
		if e.open == 0 { // it is not so quiet any more
			sh.unlink(e)
			sh.link(i)
		}
		return e
	}
	if len(sh.prefixes) >= sh.max {
		sh.forgetOldest()
	}
	i := sh.free
	if i != 0 {
		sh.free = sh.entries[i].next
	} else {
		i = uint32(len(sh.entries))
		sh.entries = append(sh.entries, gateEntry{})
	}
	sh.entries[i] = gateEntry{key: prefix}
	sh.prefixes[prefix] = i
	sh.link(i)
	return &sh.entries[i]
}

// forgetOldest removes the idle entry that has been idle for the longest time, if there is one.
func (sh *gateShard) forgetOldest() {
	i := sh.entries[0].next
	if i == 0 {
		return
	}
	e := &sh.entries[i]
	sh.unlink(e)
	delete(sh.prefixes, e.key)
	e.next, sh.free = sh.free, i
}

// link puts an entry at the young end of the ring of idle ones.
func (sh *gateShard) link(i uint32) {
	last := sh.entries[0].prev
	sh.entries[i].prev, sh.entries[i].next = last, 0
	sh.entries[last].next, sh.entries[0].prev = i, i
}

func (sh *gateShard) unlink(e *gateEntry) {
	sh.entries[e.prev].next, sh.entries[e.next].prev = e.next, e.prev
}
