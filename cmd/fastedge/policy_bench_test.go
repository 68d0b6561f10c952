package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/session"
)

// What policy costs a session: the same commands with and without rules, a recipient map and limits, as bench/policy has them.
func BenchmarkPolicy(b *testing.B) {
	dir := b.TempDir()
	recipients := filepath.Join(dir, "recipients")
	var list strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&list, "user%d@example.net\n", i)
	}
	if err := os.WriteFile(recipients, []byte(list.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	const rules = `
[[rule]]
at = "helo"
when = 'helo == "localhost"'
reply = "550 5.7.1 no"
[[rule]]
at = "mail"
when = 'sender_domain == "example.net" && user == "" && !in_network(client_ip, "10.0.0.0/8")'
reply = "550 5.7.1 no"
[[rule]]
at = "mail"
when = 'size > 20000000'
reply = "552 5.3.4 no"
[[rule]]
at = "rcpt"
when = 'recipient_local startsWith "x-" && !tls'
reply = "550 5.7.1 no"
[[rule]]
at = "message"
when = 'recipients > 500 && size > 10000000'
reply = "552 5.3.4 no"
`
	for _, c := range []struct{ name, text string }{
		{"none", "[domains]\naccept = [\"example.net\"]\n[spf]\nmode = \"off\"\n[ptr]\nmode = \"off\"\n"},
		{"senders", "[domains]\naccept = [\"example.net\"]\n"},
		{"all", "[domains]\naccept = [\"example.net\"]\nrecipients = \"" + recipients + "\"\n[limits]\nmessage_rate = 1000000\nconnections_per_prefix = 100000\n" + rules},
	} {
		b.Run(c.name, func(b *testing.B) {
			file := filepath.Join(dir, c.name+".toml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				b.Fatal(err)
			}
			cfg, err := config.Load(file, nil)
			if err != nil {
				b.Fatal(err)
			}
			p, problems := newParts(cfg, slog.New(slog.DiscardHandler), nil)
			if len(problems) > 0 {
				b.Fatal(problems)
			}
			defer p.close()
			sv := session.NewServer(session.Options{Accept: p.relay.Accept, Validators: p.validators, AuthservID: p.authservID})
			pool.WithoutPoison(func() { benchSession(b, sv) })
		})
	}
}

func benchSession(b *testing.B, sv *session.Server) {
	res := &session.Resources{Envelopes: envelope.NewList(pool.NewList(1<<20, nil))}
	var s session.Session
	now := time.Now()
	out, _ := s.Open(sv, res, session.Peer{Addr: netip.MustParseAddrPort("127.0.0.1:4711")}, now, nil)
	_, out, _ = s.Feed([]byte("EHLO client.example.com\r\n"), now, out[:0])
	group := []byte("MAIL FROM:<sender@client.example.com> SIZE=4096\r\nRCPT TO:<user77@example.net>\r\nDATA\r\n")
	body := []byte(strings.Repeat(strings.Repeat("x", 70)+"\r\n", 57) + ".\r\n")
	b.ReportAllocs()
	for b.Loop() {
		_, out, _ = s.Feed(group, now, out[:0])
		var step session.Step
		_, out, step = s.Feed(body, now, out[:0])
		if step != session.AwaitCommit {
			b.Fatalf("step %d: %s", step, out)
		}
		env := s.TakeEnvelope(envelope.ID{1})
		out, _ = s.Committed(env, nil, now, out[:0])
		env.Release()
	}
}
