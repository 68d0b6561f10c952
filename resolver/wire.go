package resolver

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/fastedge/fastedge/spf"
)

// What an answer may hold. One that holds more is Failed, not cut: a policy that was read in part is another policy.
const (
	MaxAnswerRRs = 64       // records in the answer section, those of the CNAME chain included
	MaxTXTBytes  = 16 << 10 // of all strings of a TXT record set
	MaxChain     = 8        // CNAME records between the question and its answer
	maxOtherRRs  = 96       // records in the authority and additional sections; the root's referral has 13 + 26
)

// EDNSBytes is the datagram size that is offered: it fits into an IPv6 packet of minimal size with room for headers.
const EDNSBytes = 1232

const (
	headerBytes      = 12
	maxNameBytes     = 255                        // RFC 1035 §2.3.4
	maxQuestionBytes = maxNameBytes + 4           // name, type and class
	maxQueryBytes    = 12 + maxQuestionBytes + 11 // header, question, OPT
)

func wireType(t spf.QueryType) uint16 {
	switch t {
	case spf.TypeTXT:
		return dns.TypeTXT
	case spf.TypeA:
		return dns.TypeA
	case spf.TypeAAAA:
		return dns.TypeAAAA
	case spf.TypeMX:
		return dns.TypeMX
	case spf.TypePTR:
		return dns.TypePTR
	}
	return 0
}

// appendQuestion encodes q. false means that no such name can exist, or no such type: nobody is asked then. The bytes of a label are taken as
// they are, since SPF macros put all sorts of them into names.
func appendQuestion(dst []byte, q spf.Query) ([]byte, bool) {
	t := wireType(q.Type)
	if t == 0 || len(q.Name) == 0 || len(q.Name) > maxNameBytes-2 {
		return dst, false
	}
	for name, more := q.Name, true; more; {
		var label string
		label, name, more = strings.Cut(name, ".")
		if len(label) == 0 || len(label) > 63 {
			return dst, false
		}
		dst = append(dst, byte(len(label)))
		dst = append(dst, label...)
	}
	dst = append(dst, 0)
	dst = binary.BigEndian.AppendUint16(dst, t)
	return binary.BigEndian.AppendUint16(dst, dns.ClassINET), true
}

// mixCase gives each letter of the name in question a random case, by the bits of random, which it reads over and over (0x20).
func mixCase(question, random []byte) {
	bit := 0
	for i := 0; question[i] != 0; {
		n := int(question[i])
		for j := i + 1; j <= i+n; j++ {
			if c := question[j] | 0x20; c >= 'a' && c <= 'z' {
				question[j] = c ^ random[bit/8%len(random)]>>(bit%8)&1<<5
				bit++
			}
		}
		i += n + 1
	}
}

// appendQuery encodes a query for question: RD and AD set (RFC 6840 §5.7: tell us what you validated), one question, and OPT if edns.
func appendQuery(dst []byte, id uint16, question []byte, edns bool) []byte {
	dst = binary.BigEndian.AppendUint16(dst, id)
	dst = append(dst, 0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, b2i(edns))
	dst = append(dst, question...)
	if edns {
		// The root's name, type OPT, the size, no extended rcode, version 0, no DO, no options.
		dst = append(dst, 0, 0, byte(dns.TypeOPT), EDNSBytes>>8, EDNSBytes&0xff, 0, 0, 0, 0, 0, 0)
	}
	return dst
}

func b2i(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// verdict is what a message turned out to be.
type verdict uint8

const (
	wrongQuestion verdict = iota // not an answer to this question: the wait goes on
	wrongCase                    // the name, in other capitals: the wait goes on
	malformed                    // the question, and then nonsense: the wait goes on
	truncated                    // TC: to be asked by TCP
	noEDNS                       // FORMERR or NOTIMP
	servFail
	refused
	otherRcode // another rcode, or a referral
	tooBig
	answered // Found or Empty
)

// reply is a decoded message.
type reply struct {
	verdict   verdict
	bare      bool // a header without a question, which is good for nothing but noEDNS
	authentic bool // AD
	answer    spf.Answer
	ttl       uint32 // seconds, of the answer or, when it is Empty, of the SOA record (RFC 2308 §5); 0 without one
}

// sameName says that two questions differ in nothing but capitals.
func sameName(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i, c := range a {
		if d := b[i]; c != d && (c^d != 0x20 || c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	// A length byte is never a letter's twin: 0x41^0x20 is above 63. Type and class could be, so they are compared again.
	return bytes.Equal(a[len(a)-4:], b[len(b)-4:])
}

// decode judges msg, which came where question was asked; anyCase takes other capitals too. It keeps nothing of msg. Hostile input.
// Runs on: reader goroutines, without a lock.
func decode(msg, question []byte, t spf.QueryType, anyCase bool) reply {
	if len(msg) < headerBytes || msg[2]&0xf8 != 0x80 { // QR set, opcode QUERY
		return reply{}
	}
	rcode := int(msg[3] & 0x0f)
	counts := [4]int{}
	for i := range counts {
		counts[i] = int(binary.BigEndian.Uint16(msg[4+2*i:]))
	}
	if counts[0] == 0 && len(msg) == headerBytes && (rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented) {
		// Old servers send nothing but the header. It answers nothing; it only makes the next try a plainer one.
		return reply{verdict: noEDNS, bare: true}
	}
	off := headerBytes + len(question)
	if counts[0] != 1 || len(msg) < off {
		return reply{}
	}
	if got := msg[headerBytes:off]; !bytes.Equal(got, question) {
		if !sameName(got, question) {
			return reply{}
		}
		if !anyCase {
			return reply{verdict: wrongCase}
		}
	}
	if msg[2]&0x02 != 0 {
		return reply{verdict: truncated}
	}
	switch rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeFormatError, dns.RcodeNotImplemented:
		return reply{verdict: noEDNS}
	case dns.RcodeServerFailure:
		return reply{verdict: servFail}
	case dns.RcodeRefused:
		return reply{verdict: refused}
	default:
		return reply{verdict: otherRcode}
	}
	if counts[1] > MaxAnswerRRs || counts[2]+counts[3] > maxOtherRRs {
		return reply{verdict: tooBig}
	}
	rep := decodeSections(msg, off, counts, rcode, t)
	rep.authentic = msg[3]&0x20 != 0
	return rep
}

// record is one resource record. Its name is in presentation form, as miekg/dns escapes it, so that a dot inside a label is no dot.
type record struct {
	name  string
	typ   uint16
	class uint16
	ttl   uint32
	data  int // offset of the data in the message
	next  int // offset behind it
}

func nextRecord(msg []byte, off int) (record, bool) {
	name, off, err := dns.UnpackDomainName(msg, off)
	if err != nil || len(msg)-off < 10 {
		return record{}, false
	}
	rr := record{
		name:  name,
		typ:   binary.BigEndian.Uint16(msg[off:]),
		class: binary.BigEndian.Uint16(msg[off+2:]),
		ttl:   binary.BigEndian.Uint32(msg[off+4:]),
		data:  off + 10,
	}
	rr.next = rr.data + int(binary.BigEndian.Uint16(msg[off+8:]))
	if rr.ttl > 1<<31-1 {
		rr.ttl = 0 // RFC 2181 §8
	}
	return rr, rr.next <= len(msg)
}

// decodeSections reads what follows the question at off. Only records of the question's name, or of the names that its CNAME records lead
// to, are taken; what a server adds for other names is nobody's answer.
func decodeSections(msg []byte, off int, counts [4]int, rcode int, t spf.QueryType) reply {
	owner, _, err := dns.UnpackDomainName(msg, headerBytes)
	if err != nil {
		return reply{verdict: malformed}
	}
	var answers [MaxAnswerRRs]record
	n := 0
	for range counts[1] {
		rr, ok := nextRecord(msg, off)
		if !ok {
			return reply{verdict: malformed}
		}
		off = rr.next
		if rr.class == dns.ClassINET {
			answers[n] = rr
			n++
		}
	}
	var soa, ns bool
	var soaOwner string
	var soaTTL uint32
	for i := range counts[2] + counts[3] {
		rr, ok := nextRecord(msg, off)
		if !ok {
			return reply{verdict: malformed}
		}
		off = rr.next
		switch {
		case rr.typ == dns.TypeSOA && i < counts[2] && !soa:
			// Two names and five numbers, the last of which is MINIMUM (RFC 2308 §5).
			if rr.next-rr.data < 22 {
				return reply{verdict: malformed}
			}
			soa, soaOwner = true, rr.name
			soaTTL = min(rr.ttl, binary.BigEndian.Uint32(msg[rr.next-4:]))
		case rr.typ == dns.TypeNS && i < counts[2]:
			ns = true
		case rr.typ == dns.TypeOPT && i >= counts[2] && msg[rr.data-6] != 0:
			// The first byte of what is the TTL elsewhere extends the rcode: BADVERS, for one (RFC 6891 §6.1.3).
			return reply{verdict: otherRcode}
		}
	}

	ttl := uint32(1<<31 - 1)
	for links := 0; ; links++ {
		i := slices.IndexFunc(answers[:n], func(rr record) bool { return rr.typ == dns.TypeCNAME && strings.EqualFold(rr.name, owner) })
		if i < 0 {
			break
		}
		if links == MaxChain {
			return reply{verdict: tooBig} // a loop ends here too
		}
		target, end, err := dns.UnpackDomainName(msg, answers[i].data)
		if err != nil || end != answers[i].next {
			return reply{verdict: malformed}
		}
		owner, ttl = target, min(ttl, answers[i].ttl)
	}

	var a spf.Answer
	if rcode == dns.RcodeSuccess {
		found := answers[:0]
		for _, rr := range answers[:n] {
			if rr.typ == wireType(t) && strings.EqualFold(rr.name, owner) {
				found = append(found, rr)
				ttl = min(ttl, rr.ttl)
			}
		}
		if len(found) > 0 {
			v := fill(&a, msg, found, t)
			return reply{verdict: v, answer: a, ttl: ttl}
		}
	}
	// Nothing of the kind. A server that does not recurse points to others instead (RFC 2308 §2.2): that is no answer.
	if rcode == dns.RcodeSuccess && !soa && ns && msg[2]&0x04 == 0 {
		return reply{verdict: otherRcode}
	}
	a.Status = spf.Empty
	if !soa || !dns.IsSubDomain(soaOwner, owner) {
		soaTTL = 0 // RFC 2308 §5: without a SOA record it should not be kept; MinTTL it is
	}
	return reply{verdict: answered, answer: a, ttl: min(ttl, soaTTL)}
}

// fill decodes records of type t into a.
func fill(a *spf.Answer, msg []byte, found []record, t spf.QueryType) verdict {
	a.Status = spf.Found
	switch t {
	case spf.TypeA, spf.TypeAAAA:
		a.Addrs = make([]netip.Addr, 0, len(found))
		for _, rr := range found {
			addr, ok := netip.AddrFromSlice(msg[rr.data:rr.next])
			if !ok || addr.Is4() != (t == spf.TypeA) {
				return malformed
			}
			a.Addrs = append(a.Addrs, addr)
		}
	case spf.TypeTXT:
		total := 0
		strs := make([]string, 0, len(found))
		for _, rr := range found {
			s, ok := joinStrings(msg[rr.data:rr.next])
			if !ok {
				return malformed
			}
			if total += len(s); total > MaxTXTBytes {
				return tooBig
			}
			strs = append(strs, s)
		}
		a.TXT = spf.NewTXT(strs)
	case spf.TypeMX, spf.TypePTR:
		prefix := 0
		if t == spf.TypeMX {
			prefix = 2
			for _, rr := range found {
				if rr.next-rr.data < 3 {
					return malformed
				}
			}
			slices.SortStableFunc(found, func(x, y record) int {
				return int(binary.BigEndian.Uint16(msg[x.data:])) - int(binary.BigEndian.Uint16(msg[y.data:]))
			})
		}
		a.Hosts = make([]string, 0, len(found))
		for _, rr := range found {
			host, end, err := dns.UnpackDomainName(msg, rr.data+prefix)
			if err != nil || end != rr.next {
				return malformed
			}
			if strings.Contains(host, `\`) {
				continue // a dot or a control character in a label: no host name, and it could not be asked for
			}
			if host != "." { // RFC 7505: no mail is taken here
				host = strings.TrimSuffix(host, ".")
			}
			a.Hosts = append(a.Hosts, strings.ToLower(host))
		}
	}
	return answered
}

// joinStrings puts the character-strings of a TXT record together, without a space (RFC 7208 §3.3).
func joinStrings(data []byte) (string, bool) {
	var b strings.Builder
	b.Grow(len(data))
	for len(data) > 0 {
		n := int(data[0])
		if n >= len(data) {
			return "", false
		}
		b.Write(data[1 : 1+n])
		data = data[1+n:]
	}
	return b.String(), true
}

// canonical gives a name as questions have it: lower case, no dot at the end. It allocates only for those that are not like that.
func canonical(name string) string {
	for i := range len(name) {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			lower := []byte(name)
			for j, c := range lower[i:] {
				if c >= 'A' && c <= 'Z' {
					lower[i+j] = c | 0x20
				}
			}
			name = string(lower)
			break
		}
	}
	return strings.TrimSuffix(name, ".")
}
