package relay

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// NextHop is where messages go.
type NextHop struct {
	LMTP    bool
	Network string // "tcp" or "unix"
	Address string // host:port, or the path of the socket
}

// ParseNextHop reads smtp://host[:25], lmtp://host[:24], smtp+unix:///path or lmtp+unix:///path. An IPv6 address stands in
// brackets.
func ParseNextHop(s string) (NextHop, error) {
	bad := func(why string) (NextHop, error) {
		return NextHop{}, fmt.Errorf("relay: next hop %q: %s", s, why)
	}
	u, err := url.Parse(s)
	if err != nil {
		return bad("not a URL")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return bad("only scheme, host and port (or the path of a socket) may be given")
	}
	scheme, isUnix := strings.CutSuffix(u.Scheme, "+unix")
	h := NextHop{Network: "tcp"}
	port := "25"
	switch scheme {
	case "smtp":
	case "lmtp":
		h.LMTP, port = true, "24" // RFC 2033 §5: never port 25
	default:
		return bad("the scheme must be smtp, lmtp, smtp+unix or lmtp+unix")
	}
	if isUnix {
		if u.Host != "" || len(u.Path) < 2 {
			return bad("a socket is written " + u.Scheme + ":///path")
		}
		h.Network, h.Address = "unix", u.Path
		return h, nil
	}
	if u.Path != "" && u.Path != "/" {
		return bad("a path belongs to +unix only")
	}
	if u.Hostname() == "" {
		return bad("host missing")
	}
	if p := u.Port(); p != "" {
		port = p
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return bad("port must be 1 to 65535")
	}
	h.Address = net.JoinHostPort(u.Hostname(), port)
	return h, nil
}

// String gives the form that ParseNextHop reads.
func (h NextHop) String() string {
	scheme := "smtp"
	if h.LMTP {
		scheme = "lmtp"
	}
	if h.Network == "unix" {
		return scheme + "+unix://" + h.Address
	}
	return scheme + "://" + h.Address
}
