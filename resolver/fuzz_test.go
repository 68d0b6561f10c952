package resolver

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fastedge/fastedge/spf"
)

// Any datagram: no panic, nothing but an answer to the very question is taken, and what is taken the library reads in the same way.
func FuzzDecode(f *testing.F) {
	add := func(name string, t spf.QueryType, rcode int, records ...string) {
		question, _ := appendQuestion(nil, spf.Query{Name: name, Type: t})
		q := new(dns.Msg).SetQuestion(dns.Fqdn(name), wireType(t))
		m := answer(q, rcode, records...)
		m.Compress = len(records)%2 == 0
		f.Add(pack(m), question, uint8(t))
		m.SetEdns0(EDNSBytes, false)
		f.Add(pack(m), question, uint8(t))
		m.Truncated = true
		f.Add(pack(m), question, uint8(t))
	}
	add("example.net", spf.TypeTXT, 0, `@ 60 TXT "v=spf1 -all" "x"`, `@ 60 TXT "\000\255"`)
	add("example.net", spf.TypeA, 0, "@ 60 CNAME b.example.net.", "b.example.net. 60 A 192.0.2.1", "!example.net. 60 NS ns.example.net.")
	add("example.net", spf.TypeAAAA, 0, "@ 60 AAAA 2001:db8::1")
	add("example.net", spf.TypeMX, 0, "@ 60 MX 10 a.example.net.", "@ 60 MX 0 .")
	add("1.2.0.192.in-addr.arpa", spf.TypePTR, 0, "@ 60 PTR a.example.net.")
	add("none.example.net", spf.TypeA, 3, "!example.net. 60 SOA ns. h. 1 2 3 4 60")
	add("example.net", spf.TypeA, 2)
	f.Fuzz(func(t *testing.T, msg, question []byte, typ uint8) {
		if len(question) < 5 || len(question) > maxQuestionBytes {
			return
		}
		qt := spf.QueryType(typ%5 + 1)
		for _, anyCase := range []bool{false, true} {
			before := bytes.Clone(msg)
			rep := decode(msg, question, qt, anyCase)
			if !bytes.Equal(before, msg) {
				t.Fatal("the message was written to")
			}
			if rep.verdict == wrongQuestion || rep.bare {
				continue
			}
			got := msg[headerBytes : headerBytes+len(question)]
			if !bytes.Equal(got, question) && !(anyCase && strings.EqualFold(string(got), string(question))) && rep.verdict != wrongCase {
				t.Fatalf("%x is taken for %x", got, question)
			}
			if rep.verdict != answered {
				if rep.answer.Status == spf.Found && rep.verdict != malformed && rep.verdict != tooBig {
					t.Fatalf("%+v", rep)
				}
				continue
			}
			oracle(t, msg, rep, qt)
		}
	})
}

// oracle compares an accepted answer with what the library makes of the message, if it can.
func oracle(t *testing.T, msg []byte, rep reply, qt spf.QueryType) {
	m := new(dns.Msg)
	if m.Unpack(msg) != nil {
		return // it decodes also what nobody asked for
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError || !m.Response || m.Truncated || len(m.Question) != 1 {
		t.Fatalf("taken: %v", m)
	}
	owner := m.Question[0].Name
	for range MaxChain + 1 {
		i := slices.IndexFunc(m.Answer, func(rr dns.RR) bool {
			h := rr.Header()
			return h.Rrtype == dns.TypeCNAME && h.Class == dns.ClassINET && strings.EqualFold(h.Name, owner)
		})
		if i < 0 {
			break
		}
		c, ok := m.Answer[i].(*dns.CNAME)
		if !ok {
			return
		}
		owner = c.Target
	}
	var addrs []netip.Addr
	texts, hosts, found := 0, 0, 0
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Class != dns.ClassINET || h.Rrtype != wireType(qt) || !strings.EqualFold(h.Name, owner) || m.Rcode != 0 {
			continue
		}
		found++
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A.To4())
			addrs = append(addrs, a)
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			addrs = append(addrs, a)
		case *dns.TXT:
			texts++
		case *dns.MX, *dns.PTR:
			hosts++
		}
	}
	if (found > 0) != (rep.answer.Status == spf.Found) {
		t.Fatalf("%+v, the library found %d records: %v", rep, found, m)
	}
	if rep.answer.Status != spf.Found {
		return
	}
	switch qt {
	case spf.TypeA, spf.TypeAAAA:
		if !slices.Equal(addrs, rep.answer.Addrs) {
			t.Fatalf("%v, the library: %v", rep.answer.Addrs, addrs)
		}
	case spf.TypeTXT:
		if len(rep.answer.TXT.Strings) != texts {
			t.Fatalf("%q, the library: %v", rep.answer.TXT.Strings, m.Answer)
		}
	default:
		if len(rep.answer.Hosts) > hosts {
			t.Fatalf("%q, the library: %v", rep.answer.Hosts, m.Answer)
		}
	}
}

// Any name: no panic, and a question that is made names what was asked for, whatever its capitals.
func FuzzQuestion(f *testing.F) {
	f.Add("example.net", []byte{1, 2, 3})
	f.Add("_spf.%{x}.\x00\xff.example", []byte{0xff})
	f.Add("a..b", []byte{0})
	f.Add(strings.Repeat("a.", 126)+"a", []byte{0xaa})
	f.Fuzz(func(t *testing.T, name string, random []byte) {
		q := spf.Query{Name: canonical(name), Type: spf.TypeA}
		if canonical(q.Name) != q.Name && !strings.HasSuffix(q.Name, ".") {
			t.Fatalf("%q is not canonical", q.Name)
		}
		question, ok := appendQuestion(nil, q)
		if !ok {
			return
		}
		if len(question) > maxQuestionBytes || len(question) != len(q.Name)+2+4 {
			t.Fatalf("%d bytes", len(question))
		}
		mixed := bytes.Clone(question)
		if len(random) > 0 {
			mixCase(mixed, random)
		}
		if !sameName(question, mixed) {
			t.Fatalf("%q and %q differ", question, mixed)
		}
		var labels []string
		for i := 0; mixed[i] != 0; i += int(mixed[i]) + 1 {
			labels = append(labels, string(mixed[i+1:i+1+int(mixed[i])]))
		}
		if back := canonical(strings.Join(labels, ".") + "."); back != q.Name {
			t.Fatalf("%q became %q", q.Name, back)
		}
		query := appendQuery(nil, 1, mixed, true)
		if m := new(dns.Msg); m.Unpack(query) != nil || len(m.Question) != 1 || m.IsEdns0() == nil || len(query) > maxQueryBytes {
			t.Fatalf("%x", query)
		}
	})
}

// deaf is a UDP socket that tells what is written to it and from which nothing comes.
type deaf struct {
	net.Conn
	wrote  chan []byte
	closed chan struct{}
}

func (d deaf) Write(b []byte) (int, error) {
	select {
	case d.wrote <- bytes.Clone(b):
	default:
	}
	return len(b), nil
}

func (d deaf) Read([]byte) (int, error) {
	<-d.closed
	return 0, net.ErrClosed
}

func (d deaf) Close() error                     { close(d.closed); return nil }
func (d deaf) SetWriteDeadline(time.Time) error { return nil }

// Any datagram on the socket of a question that waits: no panic, and if it ends the question with an answer, it carried the question. The
// fuzzer gets the id and the question right by the flags, or it would never come far.
func FuzzReceive(f *testing.F) {
	seed := func(rcode int, records ...string) {
		q := new(dns.Msg).SetQuestion("www.example.net.", dns.TypeA)
		f.Add(pack(answer(q, rcode, records...)), true, true)
	}
	seed(0, "@ 60 A 192.0.2.1")
	seed(0, "@ 60 CNAME a.example.net.", "a.example.net. 60 A 192.0.2.1")
	seed(3)
	seed(1)
	seed(2)
	f.Add([]byte{0, 0, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0}, true, false)
	f.Fuzz(func(t *testing.T, msg []byte, rightID, rightQuestion bool) {
		wrote := make(chan []byte, 16)
		r, err := New(Options{
			Servers: []string{"127.0.0.1:53"}, Sockets: 1, CacheBytes: MinCacheBytes,
			Clock: func() time.Time { return epoch },
			Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
				if network != "udp" {
					return nil, net.ErrClosed
				}
				return deaf{wrote: wrote, closed: make(chan struct{})}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := make(chan spf.Answer, 1)
		r.Lookup(spf.Query{Name: "www.example.net", Type: spf.TypeA}, netip.Addr{}, func(a spf.Answer) { got <- a })
		query := <-wrote
		question := query[headerBytes : len(query)-11]
		if rightID && len(msg) >= 2 {
			copy(msg, query[:2])
		}
		if rightQuestion && len(msg) >= headerBytes+len(question) {
			copy(msg[headerBytes:], question)
		}
		r.mu.Lock()
		l := r.servers[0].links[0]
		r.mu.Unlock()
		r.receive(l, msg)
		select {
		case a := <-got:
			if len(msg) < headerBytes+len(question) || !bytes.Equal(msg[:2], query[:2]) || !bytes.Equal(msg[headerBytes:headerBytes+len(question)], question) {
				t.Fatalf("%x ended %x with %v", msg, query, a)
			}
		default:
		}
	})
}
