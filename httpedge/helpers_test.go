package httpedge

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/auth"
)

// statusesOfConn is statusesOf for what was sent already.
func statusesOfConn(c net.Conn) (statuses []string, got string) {
	defer c.Close()
	c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "HTTP/1.1 ") {
			statuses = append(statuses, line[9:12])
		}
	}
	return statuses, string(b)
}

func rateOf(n int) func(k *auth.Key) { return func(k *auth.Key) { k.Rate = n } }

// stuck is a store of passwords that can't be asked.
func stuck(t *testing.T) func(*Options) {
	t.Helper()
	service, err := auth.New(auth.Options{Store: unavailable{}, Hostname: "mx.example.net", FailureDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return func(o *Options) { o.Passwords = auth.NewPasswords(service, auth.PasswordsOptions{}) }
}
