package loop

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/fastedge/fastedge/policy"
)

// The PROXY protocol: a header in front of everything else in which a load balancer tells whose connection it is. The specification is
// HAProxy's proxy-protocol.txt; its sections are cited as "PROXY §".
const (
	proxyV1       = "PROXY "                                           // PROXY §2.1
	proxyV2       = "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a" // PROXY §2.2
	proxyV2Fixed  = 16                                                 // signature, version and command, family, length
	proxyV2Told   = 5                                                  // bytes after which nothing but the signature of version 2 is left: a NUL is in them
	maxProxyLine  = 107                                                // PROXY §2.1, CRLF included
	maxProxyBytes = 4096                                               // what may follow the fixed part of version 2; addresses and TLVs of real proxies take some hundred
	maxProxyName  = 255                                                // bytes of a name in a TLV; longer ones are not taken over
)

// What may be wrong with the beginning of a connection. The texts stand in the log.
var (
	errProxyMissing  = errors.New("PROXY header missing: this peer is listed in proxy_protocol_from and must send one")
	errProxyUnlisted = errors.New("PROXY header from a peer that is not listed in proxy_protocol_from")
	errProxyTime     = errors.New("PROXY header: not complete in time")
	errProxyHalf     = errors.New("PROXY header: the peer left in the middle of it")
	errProxyTooLong  = errors.New("PROXY header: too long")
	errProxyVersion  = errors.New("PROXY header: unknown version or command")
	errProxyFamily   = errors.New("PROXY header: address family or transport that no mail comes by")
	errProxyChecksum = errors.New("PROXY header: wrong CRC32c")
)

// frameProxy finds out how long the header is that in begins with: 0 while that can't be said yet. An error means that no further byte
// can make a header of it.
func frameProxy(in []byte) (n int, err error) {
	switch {
	case prefixed(in, proxyV1):
		line := in[:min(len(in), maxProxyLine)]
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			return end + 1, nil
		}
		if len(line) == maxProxyLine {
			return 0, errProxyTooLong
		}
		return 0, nil
	case prefixed(in, proxyV2):
		if len(in) < proxyV2Fixed {
			return 0, nil
		}
		rest := int(binary.BigEndian.Uint16(in[proxyV2Fixed-2:]))
		if rest > maxProxyBytes {
			return 0, errProxyTooLong
		}
		if n = proxyV2Fixed + rest; n > len(in) {
			n = 0
		}
		return n, nil
	}
	return 0, errProxyMissing
}

// prefixed says that in begins with sign, as far as it goes.
func prefixed(in []byte, sign string) bool {
	n := min(len(in), len(sign))
	return string(in[:n]) == sign[:n]
}

// unwantedProxy looks at the first bytes of a client that may not send a header: sent when they are one. more means that they may become
// one; no command is complete in them, so waiting keeps nobody waiting for a reply.
func unwantedProxy(in []byte) (sent, more bool) {
	if len(in) >= proxyV2Told && prefixed(in, proxyV2) {
		return true, false
	}
	if prefixed(in, proxyV1) {
		return len(in) >= len(proxyV1), len(in) < len(proxyV1)
	}
	return false, false
}

// proxyHeader is what a header says.
type proxyHeader struct {
	// client is the address that the proxy serves; not valid when the header names none, and the socket's is meant.
	client netip.AddrPort
	// local is the proxy's own connection, a health check as a rule (LOCAL of version 2). Without it and without a client the proxy
	// does not know the address (UNKNOWN of version 1): the client may be anybody.
	local    bool
	tls      *policy.TLS // what the proxy tells of its client's TLS; nil: nothing, or there was none
	uniqueID string
}

// proxyReader parses headers, one at a time. Each loop has one, because the parser wants a bufio.Reader.
type proxyReader struct {
	b bytes.Reader
	r *bufio.Reader
	// copied is for a header that has to be changed before it is parsed.
	copied []byte
}

// parse reads the header that frame holds, exactly as long as frameProxy has said.
//
// What the parser lets pass and is refused here: UNIX and datagram addresses, which no mail comes by, and a wrong checksum. What it
// refuses and is taken here: PROXY with an unspecified family, which PROXY §2.2 leaves to the receiver, and which says as much as
// UNKNOWN of version 1.
func (p *proxyReader) parse(frame []byte) (h proxyHeader, err error) {
	v2 := frame[0] == proxyV2[0]
	unspecified := false
	if v2 {
		if frame[12]>>4 != 2 || frame[12]&0xf > 1 {
			return h, errProxyVersion
		}
		unspecified = frame[12]&0xf == 1 && frame[13] == 0
		if unspecified { // LOCAL is parsed in the same way, and its addresses are not looked at
			p.copied = append(p.copied[:0], frame...)
			frame, p.copied[12] = p.copied, 0x20
		}
	}
	if p.r == nil {
		p.r = bufio.NewReaderSize(nil, proxyV2Fixed+maxProxyBytes)
	}
	p.b.Reset(frame)
	p.r.Reset(&p.b)
	read, err := proxyproto.Read(p.r)
	if err != nil {
		return h, readableProxyError(err)
	}
	if !read.Command.IsLocal() {
		a, ok := read.SourceAddr.(*net.TCPAddr)
		if !ok {
			return h, errProxyFamily
		}
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			return h, errProxyFamily
		}
		h.client = netip.AddrPortFrom(ip.Unmap(), uint16(a.Port))
	}
	h.local = v2 && !unspecified && read.Command.IsLocal()
	if !v2 {
		return h, nil
	}
	tlvs, err := read.TLVs()
	if err != nil {
		return h, readableProxyError(err)
	}
	return h, h.take(tlvs, frame, unspecified)
}

// take reads the TLVs of a header of version 2 (PROXY §2.2.1).
func (h *proxyHeader) take(tlvs []proxyproto.TLV, frame []byte, unspecified bool) error {
	var authority string
	for _, t := range tlvs {
		switch t.Type {
		case proxyproto.PP2_TYPE_AUTHORITY:
			authority = proxyWord(t.Value)
		case proxyproto.PP2_TYPE_UNIQUE_ID: // opaque bytes, up to 128 (PROXY §2.2.5)
			h.uniqueID = proxyWord(t.Value)
		case proxyproto.PP2_TYPE_CRC32C:
			if unspecified {
				continue // the header was changed for the parser
			}
			if len(t.Value) != 4 || !checksumHolds(frame, t.Value) {
				return errProxyChecksum
			}
		case proxyproto.PP2_TYPE_SSL:
			ssl, err := tlvparse.SSL(t)
			if err != nil {
				return readableProxyError(err)
			}
			if !ssl.ClientSSL() {
				continue
			}
			version, _ := ssl.SSLVersion()
			cipher, _ := ssl.SSLCipher()
			h.tls = &policy.TLS{
				// "TLSv1.3" by the library that every proxy uses, "TLS1.3" here.
				Version: strings.Replace(proxyWord([]byte(version)), "TLSv", "TLS", 1),
				Cipher:  proxyWord([]byte(cipher)),
				Proxied: true,
			}
			if ssl.ClientCertConn() || ssl.ClientCertSess() {
				name, _ := ssl.ClientCN()
				h.tls.Certificate = &policy.Certificate{Verified: ssl.Verified(), CommonName: proxyName(name)}
			}
		}
	}
	if h.tls != nil {
		h.tls.ServerName = authority
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksumHolds checks the header's CRC32c, which was computed with zeros in its own place (PROXY §2.2.4).
func checksumHolds(frame, sum []byte) bool {
	// The TLV's place is where its type, length and value stand. Another TLV's value could hold the same bytes; then a good header has
	// one place for which the checksum holds, and a bad one has none.
	pattern := append([]byte{byte(proxyproto.PP2_TYPE_CRC32C), 0, 4}, sum...)
	for from := proxyV2Fixed; ; {
		at := bytes.Index(frame[from:], pattern)
		if at < 0 {
			return false
		}
		value := from + at + 3
		got := crc32.Update(0, castagnoli, frame[:value])
		got = crc32.Update(got, castagnoli, make([]byte, 4))
		got = crc32.Update(got, castagnoli, frame[value+4:])
		if got == binary.BigEndian.Uint32(sum) {
			return true
		}
		from = value
	}
}

// proxyWord takes printable ASCII over, and nothing else: the words end up in header fields and logs.
func proxyWord(b []byte) string {
	if len(b) > maxProxyName {
		return ""
	}
	for _, c := range b {
		if c <= ' ' || c > '~' {
			return ""
		}
	}
	return string(b)
}

// proxyName takes a certificate's name over, which may be UTF-8.
func proxyName(name string) string {
	control := func(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0x9f }
	if len(name) > maxProxyName || !utf8.ValidString(name) || strings.ContainsFunc(name, control) {
		return ""
	}
	return name
}

// readableProxyError gives the parser's error our words in front; it quotes bytes of the header, which the log escapes.
func readableProxyError(err error) error {
	switch {
	case errors.Is(err, proxyproto.ErrUnsupportedProtocolVersionAndCommand):
		return errProxyVersion
	case errors.Is(err, proxyproto.ErrUnsupportedAddressFamilyAndProtocol), errors.Is(err, proxyproto.ErrCantReadAddressFamilyAndProtocol):
		return errProxyFamily
	}
	return errors.New("PROXY header: " + strings.TrimPrefix(err.Error(), "proxyproto: "))
}
