package relay

// NextHop is where messages go.
type NextHop struct {
	LMTP    bool
	Network string // "tcp" or "unix"
	Address string // host:port, or the path of the socket
}

// String gives the form in which the configuration names a next hop: smtp://host:port, lmtp+unix:///path.
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
