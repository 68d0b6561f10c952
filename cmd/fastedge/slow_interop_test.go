//go:build interop

package main

import (
	"io"
	"strings"
	"testing"
	"time"
)

// It needs no other programs, but the minute over which the rate is averaged; other tests run meanwhile.
func TestMessageDataMustComeAtTheLeastRate(t *testing.T) {
	t.Parallel()
	p := serve(t, t.TempDir(), edgeConfig("tls = \"opportunistic\"\n", "[limits]\ndata_rate = \"10B\"\n"))
	begin := func(c *smtpClient, err error) *smtpClient {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(100 * time.Second))
		c.must(t, oneGroup, "250", "250", "354")
		return c
	}
	good, slow := begin(hello(p.addr[0])), begin(hello(p.addr[0]))
	secret := begin(helloTLS(p.addr[0], trusting()))
	line := strings.Repeat("x", 98) + "\r\n"
	io.WriteString(good, strings.Repeat(line, 7)) // 700 of the 600 bytes of a minute
	for _, c := range []*smtpClient{slow, secret} {
		io.WriteString(c, strings.Repeat(line, 5))
	}
	for _, c := range []*smtpClient{slow, secret} {
		if reply := c.must(t, "", "421 4.4.2"); !strings.Contains(reply, "limits.data_rate") {
			t.Errorf("reply %q does not name the limit", reply)
		}
		if err := c.ended(); err != nil {
			t.Error(err)
		}
	}
	good.must(t, ".\r\n", "250 2.6.0")
	p.wait("one message", func() bool { return p.lines(`"msg":"accepted"`) == 1 })
}
