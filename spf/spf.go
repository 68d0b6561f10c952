package spf

import (
	"net/netip"
	"time"
)

// Code is a result of RFC 7208 §2.6.
type Code uint8

const (
	None      Code = iota // no domain that could have a record, or no record there
	Neutral               // the domain says nothing about this host; to be treated like None (RFC 7208 §8.2)
	Pass                  // the host may send for the domain
	Fail                  // the host may not
	SoftFail              // the host probably may not
	TempError             // DNS did not answer; later it may
	PermError             // the domain's records can't be understood
)

var codeNames = [...]string{"none", "neutral", "pass", "fail", "softfail", "temperror", "permerror"}

// String gives the word of RFC 7208 §2.6, as Received-SPF and Authentication-Results want it.
func (c Code) String() string { return codeNames[c] }

// Identity says whose domain is checked.
type Identity uint8

const (
	MailFrom Identity = iota // the reverse-path; postmaster@HELO for the null reverse-path (RFC 7208 §2.4)
	Helo                     // the name given by HELO or EHLO (RFC 7208 §2.3)
)

func (i Identity) String() string {
	if i == Helo {
		return "helo"
	}
	return "mailfrom"
}

// DefaultMaxVoid is what RFC 7208 §4.6.4 recommends.
const DefaultMaxVoid = 2

// Params is what a check is about. Nothing of it needs to be valid: what can't be checked gives None.
type Params struct {
	// IP is the client's address; an IPv4-mapped IPv6 address counts as IPv4. The zero Addr gives None.
	IP netip.Addr
	// Helo is what the client gave by HELO or EHLO, %{h}.
	Helo string
	// Sender is the reverse-path without angle brackets; empty is the null reverse-path. Its domain may have U-labels (RFC 8616).
	Sender string
	// Receiver is our own host name, %{r} in explanations. Empty means "unknown".
	Receiver string
	Identity Identity
	// MaxVoid is how many lookups may come back without data; one more gives PermError (RFC 7208 §4.6.4). Zero means DefaultMaxVoid,
	// a negative value means that none may.
	MaxVoid int
	// Now is %{t} in explanations.
	Now time.Time
}

// QueryType is the type of record that is asked for.
type QueryType uint8

const (
	TypeTXT QueryType = iota + 1
	TypeA
	TypeAAAA
	TypeMX
	TypePTR
)

var typeNames = [...]string{"?", "TXT", "A", "AAAA", "MX", "PTR"}

func (t QueryType) String() string { return typeNames[t] }

// Query is one question to DNS.
type Query struct {
	// Name is in lower case, without a trailing dot: at most 253 bytes in labels of 1 to 63. A record may make any byte from 0x20 to 0x7E
	// part of a label (spaces, slashes, quotes; RFC 7208 §7.1). This is no presentation format: a backslash is a byte like others.
	Name string
	Type QueryType
}

// Status says how a query went. The zero value is a failure, so an Answer that nobody filled in passes for nothing else.
type Status uint8

const (
	Failed Status = iota // SERVFAIL, REFUSED, timeout, ...: whatever was neither Found nor Empty
	Found                // there are records of the type asked for, behind CNAMEs perhaps
	Empty                // NOERROR without such a record, or NXDOMAIN: a void lookup (RFC 7208 §4.6.4)
)

// Cause says why an Answer is Failed, or a Result TempError: the fault is not always DNS's.
type Cause uint8

const (
	CauseDNS         Cause = iota // SERVFAIL, REFUSED, a timeout, ...
	CauseUnreachable              // nobody listens at the address of any DNS server
	CauseBusy                     // it was not asked: too many lookups are under way, or too many within the domain
	CauseClient                   // it was not asked: too many are under way for this client
)

// Answer is what DNS said. It is immutable from the moment it is fed to a check, and may be fed to many: a cache keeps and shares it.
// Only the field of the query's type is looked at.
type Answer struct {
	Status Status
	Cause  Cause        // of Failed
	TXT    *TXT         // of TypeTXT, made by NewTXT
	Addrs  []netip.Addr // of TypeA and TypeAAAA, in any order
	Hosts  []string     // of TypeMX the hosts in order of preference, of TypePTR the names; a trailing dot and capitals do no harm
}

// Result is what a check came to. Its strings are safe to print in a reply or a header: bytes 0x20 to 0x7E and nothing else.
type Result struct {
	Code Code
	// Mechanism is the term that decided, as written but without its qualifier, such as "include:_spf.example.com"; of nested
	// records the outermost. It is "default" when no term matched, and empty with None. With TempError and PermError it is the
	// term that was being evaluated, if any.
	Mechanism string
	// Domain is whose record the Mechanism is of: the domain checked, or the one a redirect= led to. With TempError and PermError
	// it is whose record was being read.
	Domain string
	// Explanation is the domain's own text for a Fail (RFC 7208 §6.2), at most MaxExplanationBytes, or empty. A stranger wrote it: say so
	// where it is shown, and never take it for a template.
	Explanation string
	// Reason says the result for people: the Explanation when there is one, else a fixed phrase. Empty with None.
	Reason string
	// Problem says what went wrong, with TempError and PermError, and why there was nothing to check, with None.
	Problem string
	Lookups int // terms that asked DNS, at most MaxLookups unless that is the Problem
	Voids   int // queries that came back without data, but for names of the client and explanations: what is held against MaxVoid
	Queries int // all queries, those for records and explanations included
	// Cause is why the lookup failed that made the result TempError.
	Cause Cause
	// LocalPart says that the sender's local-part had a say, by a macro %{s} or %{l}. Without it, every sender of the domain has this result.
	LocalPart bool
}

// Limits of RFC 7208 §4.6.4.
const (
	MaxLookups  = 10 // include, a, mx, ptr, exists and redirect in all records of one check
	MaxMXHosts  = 10 // in one MX answer; more give PermError
	MaxPTRNames = 10 // in one PTR answer; those after are ignored
)

// MaxExplanationBytes is the longest explanation: it has to fit in one reply line of 512 bytes (RFC 5321 §4.5.3.1.5) along with its codes
// and some words of ours. A longer one is cut.
const MaxExplanationBytes = 400
