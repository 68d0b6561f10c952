// Package proxyhdr reads the PROXY header that a load balancer puts in front of a connection to tell whose it is. The specification is
// HAProxy's proxy-protocol.txt; its sections are cited as "PROXY §". It opens nothing and waits for nothing: bytes come in, a header comes
// out. Header and Reader belong to one goroutine; the functions may be called by any.
package proxyhdr

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

const (
	v1Sign   = "PROXY "                                           // PROXY §2.1
	v2Sign   = "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a" // PROXY §2.2
	v2Fixed  = 16                                                 // signature, version and command, family, length
	v2Told   = 5                                                  // bytes after which nothing but the signature of version 2 is left: a NUL is in them
	maxLine  = 107                                                // PROXY §2.1, CRLF included
	maxBytes = 4096                                               // what may follow the fixed part of version 2; addresses and TLVs of real proxies take some hundred
	maxName  = 255                                                // bytes of a name in a TLV; longer ones are not taken over
)

// What may be wrong with the beginning of a connection. The texts stand in the log.
var (
	ErrMissing  = errors.New("PROXY header missing: this peer is listed in proxy_protocol_from and must send one")
	ErrUnlisted = errors.New("PROXY header from a peer that is not listed in proxy_protocol_from")
	ErrTime     = errors.New("PROXY header: not complete in time")
	ErrHalf     = errors.New("PROXY header: the peer left in the middle of it")
	errTooLong  = errors.New("PROXY header: too long")
	errVersion  = errors.New("PROXY header: unknown version or command")
	errFamily   = errors.New("PROXY header: address family or transport that no mail comes by")
	errChecksum = errors.New("PROXY header: wrong CRC32c")
)

// Frame finds out how long the header is that in begins with: 0 while that can't be said yet. An error means that no further byte
// can make a header of it.
func Frame(in []byte) (n int, err error) {
	switch {
	case prefixed(in, v1Sign):
		line := in[:min(len(in), maxLine)]
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			return end + 1, nil
		}
		if len(line) == maxLine {
			return 0, errTooLong
		}
		return 0, nil
	case prefixed(in, v2Sign):
		if len(in) < v2Fixed {
			return 0, nil
		}
		rest := int(binary.BigEndian.Uint16(in[v2Fixed-2:]))
		if rest > maxBytes {
			return 0, errTooLong
		}
		if n = v2Fixed + rest; n > len(in) {
			n = 0
		}
		return n, nil
	}
	return 0, ErrMissing
}

// prefixed says that in begins with sign, as far as it goes.
func prefixed(in []byte, sign string) bool {
	n := min(len(in), len(sign))
	return string(in[:n]) == sign[:n]
}

// Unwanted looks at the first bytes of a client that may not send a header: sent when they are one. more means that they may become
// one; no command is complete in them, so waiting keeps nobody waiting for a reply.
func Unwanted(in []byte) (sent, more bool) {
	if len(in) >= v2Told && prefixed(in, v2Sign) {
		return true, false
	}
	if prefixed(in, v1Sign) {
		return len(in) >= len(v1Sign), len(in) < len(v1Sign)
	}
	return false, false
}

// Header is what a PROXY header says.
type Header struct {
	// Client is the address that the proxy serves; not valid when the header names none, and the socket's is meant.
	Client netip.AddrPort
	// Local is the proxy's own connection, a health check as a rule (LOCAL of version 2). Without it and without a client the proxy
	// does not know the address (UNKNOWN of version 1): the client may be anybody.
	Local    bool
	TLS      *policy.TLS // what the proxy tells of its client's TLS; nil: nothing, or there was none
	UniqueID string
}

// Reader parses headers, one at a time. Each loop has one, because the parser wants a bufio.Reader.
type Reader struct {
	b bytes.Reader
	r *bufio.Reader
	// copied is for a header that has to be changed before it is parsed.
	copied []byte
}

// Parse reads the header that frame holds, exactly as long as Frame has said.
//
// What the parser lets pass and is refused here: UNIX and datagram addresses, which no mail comes by, and a wrong checksum. What it
// refuses and is taken here: PROXY with an unspecified family, which PROXY §2.2 leaves to the receiver, and which says as much as
// UNKNOWN of version 1.
func (p *Reader) Parse(frame []byte) (h Header, err error) {
	v2 := frame[0] == v2Sign[0]
	unspecified := false
	if v2 {
		if frame[12]>>4 != 2 || frame[12]&0xf > 1 {
			return h, errVersion
		}
		unspecified = frame[12]&0xf == 1 && frame[13] == 0
		if unspecified { // LOCAL is parsed in the same way, and its addresses are not looked at
			p.copied = append(p.copied[:0], frame...)
			frame, p.copied[12] = p.copied, 0x20
		}
	}
	if p.r == nil {
		p.r = bufio.NewReaderSize(nil, v2Fixed+maxBytes)
	}
	p.b.Reset(frame)
	p.r.Reset(&p.b)
	read, err := proxyproto.Read(p.r)
	if err != nil {
		return h, readable(err)
	}
	if !read.Command.IsLocal() {
		a, ok := read.SourceAddr.(*net.TCPAddr)
		if !ok {
			return h, errFamily
		}
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			return h, errFamily
		}
		h.Client = netip.AddrPortFrom(ip.Unmap(), uint16(a.Port))
	}
	h.Local = v2 && !unspecified && read.Command.IsLocal()
	if !v2 {
		return h, nil
	}
	tlvs, err := read.TLVs()
	if err != nil {
		return h, readable(err)
	}
	return h, h.take(tlvs, frame, unspecified)
}

// take reads the TLVs of a header of version 2 (PROXY §2.2.1).
func (h *Header) take(tlvs []proxyproto.TLV, frame []byte, unspecified bool) error {
	var authority string
	for _, t := range tlvs {
		switch t.Type {
		case proxyproto.PP2_TYPE_AUTHORITY:
			authority = word(t.Value)
		case proxyproto.PP2_TYPE_UNIQUE_ID: // opaque bytes, up to 128 (PROXY §2.2.5)
			h.UniqueID = word(t.Value)
		case proxyproto.PP2_TYPE_CRC32C:
			if unspecified {
				continue // the header was changed for the parser
			}
			if len(t.Value) != 4 || !checksumHolds(frame, t.Value) {
				return errChecksum
			}
		case proxyproto.PP2_TYPE_SSL:
			ssl, err := tlvparse.SSL(t)
			if err != nil {
				return readable(err)
			}
			if !ssl.ClientSSL() {
				continue
			}
			version, _ := ssl.SSLVersion()
			cipher, _ := ssl.SSLCipher()
			h.TLS = &policy.TLS{
				// "TLSv1.3" by the library that every proxy uses, "TLS1.3" here.
				Version: strings.Replace(word([]byte(version)), "TLSv", "TLS", 1),
				Cipher:  word([]byte(cipher)),
				Proxied: true,
			}
			if ssl.ClientCertConn() || ssl.ClientCertSess() {
				name, _ := ssl.ClientCN()
				h.TLS.Certificate = &policy.Certificate{Verified: ssl.Verified(), CommonName: cleanName(name)}
			}
		}
	}
	if h.TLS != nil {
		h.TLS.ServerName = authority
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksumHolds checks the header's CRC32c, which was computed with zeros in its own place (PROXY §2.2.4).
func checksumHolds(frame, sum []byte) bool {
	// The TLV's place is where its type, length and value stand. Another TLV's value could hold the same bytes; then a good header has
	// one place for which the checksum holds, and a bad one has none.
	pattern := append([]byte{byte(proxyproto.PP2_TYPE_CRC32C), 0, 4}, sum...)
	for from := v2Fixed; ; {
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

// word takes printable ASCII over, and nothing else: the words end up in header fields and logs.
func word(b []byte) string {
	if len(b) > maxName {
		return ""
	}
	for _, c := range b {
		if c <= ' ' || c > '~' {
			return ""
		}
	}
	return string(b)
}

// cleanName takes a certificate's name over, which may be UTF-8.
func cleanName(name string) string {
	control := func(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0x9f }
	if len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, control) {
		return ""
	}
	return name
}

// readable gives the parser's error our words in front; it quotes bytes of the header, which the log escapes.
func readable(err error) error {
	switch {
	case errors.Is(err, proxyproto.ErrUnsupportedProtocolVersionAndCommand):
		return errVersion
	case errors.Is(err, proxyproto.ErrUnsupportedAddressFamilyAndProtocol), errors.Is(err, proxyproto.ErrCantReadAddressFamilyAndProtocol):
		return errFamily
	}
	return errors.New("PROXY header: " + strings.TrimPrefix(err.Error(), "proxyproto: "))
}
