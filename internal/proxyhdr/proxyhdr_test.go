package proxyhdr

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

// v2 makes a header of version 2.
func v2(command, family byte, rest ...[]byte) string {
	body := bytes.Join(rest, nil)
	h := append([]byte(v2Sign), command, family)
	h = binary.BigEndian.AppendUint16(h, uint16(len(body)))
	return string(append(h, body...))
}

func tlv(kind byte, value string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value))), value...)
}

func fromHex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

var (
	inet4 = fromHex("c0000209 c6336401 115c 0019")
	inet6 = fromHex("20010db8000000000000000000000009 20010db8000000000000000000000001 115c 0019")
)

// parseProxy does what a loop does with the first bytes of a listed proxy.
func parseProxy(in string) (h Header, n int, err error) {
	if n, err = Frame([]byte(in)); n == 0 || err != nil {
		return h, n, err
	}
	h, err = new(Reader).Parse([]byte(in)[:n])
	return h, n, err
}

var goodProxyHeaders = []struct {
	name, header, client string
	local                bool
}{
	{"v1 TCP4", "PROXY TCP4 192.0.2.9 198.51.100.1 4444 25\r\n", "192.0.2.9:4444", false},
	{"v1 TCP6", "PROXY TCP6 2001:DB8::9 2001:db8::1 4444 25\r\n", "[2001:db8::9]:4444", false},
	{"v1 TCP6, IPv4-mapped", "PROXY TCP6 ::ffff:192.0.2.9 ::ffff:198.51.100.1 4444 25\r\n", "192.0.2.9:4444", false},
	{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", "", false},
	{"v1 UNKNOWN, longest line", "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", "", false},
	{"v2 INET", v2(0x21, 0x11, inet4), "192.0.2.9:4444", false},
	{"v2 INET6", v2(0x21, 0x21, inet6), "[2001:db8::9]:4444", false},
	{"v2 LOCAL", v2(0x20, 0x00), "", true},
	{"v2 LOCAL with a family and no address", v2(0x20, 0x11), "", true},
	{"v2 LOCAL with an address", v2(0x20, 0x11, inet4), "", true},
	{"v2 PROXY, unspecified family", v2(0x21, 0x00), "", false},
	{"v2 PROXY, unspecified family, TLV", v2(0x21, 0x00, tlv(0x05, "id")), "", false},
	{"v2 with TLVs", v2(0x21, 0x11, inet4, tlv(0x04, "padding"), tlv(0xE0, "custom\x00")), "192.0.2.9:4444", false},
	{"v2 of the longest size", v2(0x21, 0x11, inet4, tlv(0x04, strings.Repeat("x", maxBytes-15))), "192.0.2.9:4444", false},
}

func TestProxyHeadersInAnyNumberOfPieces(t *testing.T) {
	for _, tc := range goodProxyHeaders {
		for cut := range len(tc.header) {
			if n, err := Frame([]byte(tc.header[:cut])); n != 0 || err != nil {
				t.Fatalf("%s, cut at %d: %d, %v", tc.name, cut, n, err)
			}
		}
		h, n, err := parseProxy(tc.header + "EHLO c\r\n")
		if err != nil || n != len(tc.header) || h.Local != tc.local {
			t.Errorf("%s: length %d of %d, local %v, %v", tc.name, n, len(tc.header), h.Local, err)
			continue
		}
		var want netip.AddrPort
		if tc.client != "" {
			want = netip.MustParseAddrPort(tc.client)
		}
		if h.Client != want {
			t.Errorf("%s: client %v, want %v", tc.name, h.Client, want)
		}
	}
}

var badProxyHeaders = []struct{ name, header string }{
	{"something else", "EHLO c\r\n"},
	{"another first word", "NOPROXY UNKNOWN\r\n"},
	{"lower case", "proxy TCP4 192.0.2.9 198.51.100.1 4444 25\r\n"},
	{"no blank", "PROXYTCP4 192.0.2.9 198.51.100.1 4444 25\r\n"},
	{"bad family", "PROXY TEST 0.0.0.0 0.0.0.0 0 0\r\n"},
	{"IPv6 in TCP4", "PROXY TCP4 ::0 ::0 0 0\r\n"},
	{"IPv4 in TCP6", "PROXY TCP6 0.0.0.0 0.0.0.0 0 0\r\n"},
	{"ports that are no numbers", "PROXY TCP4 0.0.0.0 0.0.0.0 abc def\r\n"},
	{"port too big", "PROXY TCP4 0.0.0.0 0.0.0.0 100000 0\r\n"},
	{"port with a leading zero", "PROXY TCP4 192.0.2.9 198.51.100.1 04444 25\r\n"},
	{"port with a sign", "PROXY TCP4 192.0.2.9 198.51.100.1 +444 25\r\n"},
	{"negative port", "PROXY TCP4 192.0.2.9 198.51.100.1 -4 25\r\n"},
	{"octet with a leading zero", "PROXY TCP4 192.0.2.09 198.51.100.1 4444 25\r\n"},
	{"octet too big", "PROXY TCP4 192.0.2.256 198.51.100.1 4444 25\r\n"},
	{"zone", "PROXY TCP6 fe80::1%eth0 2001:db8::1 4444 25\r\n"},
	{"three fields", "PROXY TCP4 192.0.2.9 198.51.100.1 4444\r\n"},
	{"five fields", "PROXY TCP4 192.0.2.9 198.51.100.1 4444 25 26\r\n"},
	{"two blanks", "PROXY  TCP4 192.0.2.9 198.51.100.1 4444 25\r\n"},
	{"blank at the end", "PROXY TCP4 192.0.2.9 198.51.100.1 4444 25 \r\n"},
	{"bare LF", "PROXY TCP4 192.0.2.9 198.51.100.1 4444 25\n"},
	{"no CRLF in 107 bytes", "PROXY UNKNOWN " + strings.Repeat("x", 93)},
	{"another signature", "\r\n\r\n\x00\r\nQUIX\n\x21\x11\x00\x0c" + string(inet4)},
	{"v2 version 1", v2(0x11, 0x11, inet4)},
	{"v2 version 3", v2(0x31, 0x11, inet4)},
	{"v2 command 2", v2(0x22, 0x11, inet4)},
	{"v2 family 4", v2(0x21, 0x41, inet4)},
	{"v2 transport 3", v2(0x21, 0x13, inet4)},
	{"v2 INET, no transport", v2(0x21, 0x10, inet4)},
	{"v2 datagrams", v2(0x21, 0x12, inet4)},
	{"v2 IPv6 datagrams", v2(0x21, 0x22, inet6)},
	{"v2 UNIX", v2(0x21, 0x31, make([]byte, 216))},
	{"v2 UNIX datagrams", v2(0x21, 0x32, make([]byte, 216))},
	{"v2 INET, 11 bytes", v2(0x21, 0x11, inet4[:11])},
	{"v2 INET6, 35 bytes", v2(0x21, 0x21, inet6[:35])},
	{"v2 INET6 with an INET block", v2(0x21, 0x21, inet4)},
	{"v2 without an address", v2(0x21, 0x11)},
	{"v2 one byte too long", v2(0x21, 0x11, inet4, tlv(0x04, strings.Repeat("x", maxBytes-14)))},
	{"v2 with half a TLV", v2(0x21, 0x11, inet4, []byte{0x05, 0, 9, 'x'})},
	{"v2 with two bytes of a TLV", v2(0x21, 0x11, inet4, []byte{0x05, 0})},
	{"v2 with a TLS TLV that is too short", v2(0x21, 0x11, inet4, tlv(0x20, "\x01"))},
	{"v2 with a TLS TLV without a version", v2(0x21, 0x11, inet4, tlv(0x20, "\x01\x00\x00\x00\x00"))},
	{"v2 with a wrong checksum", v2(0x21, 0x11, inet4, tlv(0x03, "abcd"))},
	{"v2 with a short checksum", v2(0x21, 0x11, inet4, tlv(0x03, "abc"))},
}

func TestMalformedProxyHeadersAreRefusedWhateverFollows(t *testing.T) {
	for _, tc := range badProxyHeaders {
		for _, behind := range []string{"", "EHLO c\r\n"} {
			if h, n, err := parseProxy(tc.header + behind); err == nil {
				t.Errorf("%s: taken as %d bytes, client %v", tc.name, n, h.Client)
			}
		}
	}
}

func TestAProxyTellsOfItsClientsTLS(t *testing.T) {
	const cn = "J\u00f6rg"
	ssl := "\x07\x00\x00\x00\x00" + string(tlv(0x21, "TLSv1.3")) + string(tlv(0x23, "TLS_AES_128_GCM_SHA256")) + string(tlv(0x22, cn))
	h, _, err := parseProxy(v2(0x21, 0x11, inet4, tlv(0x02, "mx.example.net"), tlv(0x05, "id-1"), tlv(0x20, ssl)))
	if err != nil || h.TLS == nil || h.TLS.Certificate == nil {
		t.Fatalf("%+v, %v", h, err)
	}
	got, cert := *h.TLS, *h.TLS.Certificate
	if got.Version != "TLS1.3" || got.Cipher != "TLS_AES_128_GCM_SHA256" || got.ServerName != "mx.example.net" || !got.Proxied {
		t.Errorf("%+v", got)
	}
	if !cert.Verified || cert.CommonName != cn || h.UniqueID != "id-1" {
		t.Errorf("%+v, unique id %q", cert, h.UniqueID)
	}
	// verify is 0 without a certificate, too: nobody is verified by that.
	h, _, err = parseProxy(v2(0x21, 0x11, inet4, tlv(0x20, "\x01\x00\x00\x00\x00"+string(tlv(0x21, "TLSv1.2")))))
	if err != nil || h.TLS == nil || h.TLS.Certificate != nil || h.TLS.Version != "TLS1.2" {
		t.Errorf("%+v, %v", h.TLS, err)
	}
	h, _, err = parseProxy(v2(0x21, 0x11, inet4, tlv(0x20, "\x00\x00\x00\x00\x01")))
	if err != nil || h.TLS != nil {
		t.Errorf("a client without TLS: %+v, %v", h.TLS, err)
	}
	hostile := "\x01\x00\x00\x00\x00" + string(tlv(0x21, "TLSv1.3\r\nX: y")) + string(tlv(0x23, "a b"))
	h, _, err = parseProxy(v2(0x21, 0x11, inet4, tlv(0x20, hostile), tlv(0x02, "x\r\n")))
	if err != nil || h.TLS == nil || h.TLS.Version != "" || h.TLS.Cipher != "" || h.TLS.ServerName != "" {
		t.Errorf("bytes that would break a header field were taken over: %+v, %v", h.TLS, err)
	}
}

func TestAProxyHeadersChecksumIsVerified(t *testing.T) {
	// The decoy holds what the checksum's own place looks like with another value.
	h := []byte(v2(0x21, 0x11, inet4, tlv(0xE0, string(tlv(0x03, "\x00\x00\x00\x00"))), tlv(0x03, "\x00\x00\x00\x00"), tlv(0x05, "id")))
	sum := crc32.Checksum(h, crc32.MakeTable(crc32.Castagnoli))
	at := bytes.LastIndex(h, tlv(0x03, "\x00\x00\x00\x00")) + 3
	binary.BigEndian.PutUint32(h[at:], sum)
	if _, _, err := parseProxy(string(h)); err != nil {
		t.Error(err)
	}
	h[len(h)-1]++
	if _, _, err := parseProxy(string(h)); err == nil {
		t.Error("a changed header was taken")
	}
}

func TestOnlyAPROXYHeaderLooksLikeOne(t *testing.T) {
	for in, want := range map[string][2]bool{
		"":                      {false, true},
		"P":                     {false, true},
		"PROXY":                 {false, true},
		"PROXY ":                {true, false},
		"PROXY TCP4 1":          {true, false},
		"PROXYING\r\n":          {false, false},
		"EHLO c\r\n":            {false, false},
		"\r\n":                  {false, false},
		"\r\n\r\n":              {false, false},
		"\r\n\r\n\x00":          {true, false},
		v2(0x21, 0x11, inet4):   {true, false},
		"\r\n\r\n\x00\r\nQUIX":  {false, false},
		"\x16\x03\x01\x02\x00x": {false, false},
	} {
		if sent, more := Unwanted([]byte(in)); sent != want[0] || more != want[1] {
			t.Errorf("%q: sent %v, more %v, want %v", in, sent, more, want)
		}
	}
}

// Whatever comes: no panic, the same result however it is cut, no more bytes taken than the header has, and what is taken is what
// the header's own encoder would have written for that client.
func FuzzProxyHeader(f *testing.F) {
	for _, tc := range goodProxyHeaders {
		f.Add([]byte(tc.header + "EHLO c\r\n"))
	}
	for _, tc := range badProxyHeaders {
		f.Add([]byte(tc.header))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, wholeErr := Frame(in)
		if whole > len(in) || whole > v2Fixed+maxBytes {
			t.Fatalf("%d bytes of %d", whole, len(in))
		}
		first, firstErr := 0, error(nil)
		for n := 1; n <= len(in) && first == 0 && firstErr == nil; n++ {
			first, firstErr = Frame(in[:n])
		}
		if first != whole || (firstErr == nil) != (wholeErr == nil) {
			t.Fatalf("whole: %d, %v; byte by byte: %d, %v", whole, wholeErr, first, firstErr)
		}
		if whole == 0 || wholeErr != nil {
			return
		}
		before := bytes.Clone(in)
		h, err := new(Reader).Parse(in[:whole])
		if !bytes.Equal(in, before) {
			t.Fatal("the borrowed bytes were changed")
		}
		if sent, _ := Unwanted(in); !sent {
			t.Fatal("a header that an unlisted peer could send")
		}
		if err != nil || !h.Client.IsValid() {
			return
		}
		if h.Client.Addr().Is4In6() || h.Client.Addr().Zone() != "" || h.Local {
			t.Fatalf("client %v, local %v", h.Client, h.Local)
		}
		written := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(h.Client), net.TCPAddrFromAddrPort(h.Client))
		again, err := written.Format()
		if err != nil {
			t.Fatal(err)
		}
		if h2, err := new(Reader).Parse(again); err != nil || h2.Client != h.Client {
			t.Fatalf("%v became %v, %v", h.Client, h2.Client, err)
		}
	})
}
