package config

import (
	"strings"
	"testing"
)

// Who comes through a proxy is not on this machine, though the proxy may be.
func TestNetworksBehindAProxyOnThisMachineMayNotBeTooWide(t *testing.T) {
	text := "[[listen]]\naddress = \"127.0.0.1:2525\"\nproxy_protocol_from = [\"127.0.0.1/32\"]\nrelay_from = [\"0.0.0.0/0\"]\n"
	if got := problemsOf(t, text, nil).Error(); !strings.Contains(got, "open relay") {
		t.Error(got)
	}
}
