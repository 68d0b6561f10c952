package bench

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/session"
)

// BenchmarkSessionWithSPF is a message of 4 KiB through a whole session, in turn by 100 sessions, so that nothing stays in the first cache from one
// message to the next but what they share; and what a spool does with its envelope and header fields, but for the disk. The senders have five records, all
// cached. Without SPF forged fields are looked for too, as cmd/fastedge does. Senders of two domains take turns, whose results stand for a second, so that
// they are hardly ever checked; with checked the clock goes two seconds forth and back, and all are.
func BenchmarkSessionWithSPF(b *testing.B) { pool.WithoutPoison(func() { benchSessionWithSPF(b) }) }

func benchSessionWithSPF(b *testing.B) {
	const hostname = "mx.example.net"
	s := newSenders(b, 0, 10*time.Second)
	for _, c := range []struct {
		name string
		o    session.Options
	}{
		{"off", session.Options{AuthservID: hostname, Validators: []policy.Validator{policy.NewResults(policy.ResultsOptions{Hostname: hostname})}}},
		{"enforce-no-fields", session.Options{Validators: []policy.Validator{s.spf}}},
		{"enforce", session.Options{AuthservID: hostname, Validators: []policy.Validator{policy.NewResults(policy.ResultsOptions{Hostname: hostname, SPF: s.spf})}}},
		{"enforce-checked", session.Options{AuthservID: hostname, Validators: []policy.Validator{policy.NewResults(policy.ResultsOptions{Hostname: hostname, SPF: s.spf})}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.o.Hostname = hostname
			sv, now := session.NewServer(c.o), time.Now()
			res := &session.Resources{Envelopes: envelope.NewList(pool.NewList(1<<20, nil))}
			var out, stored []byte
			sessions := make([]session.Session, 100)
			for i := range sessions {
				peer := session.Peer{Addr: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1+i))}
				out, _ = sessions[i].Open(sv, res, peer, now, out[:0])
				_, out, _ = sessions[i].Feed([]byte("EHLO mail.customer.example\r\n"), now, out[:0])
			}
			var groups [][]byte
			for _, sender := range []string{"sales@customer.example", "sales@consumer.example"} {
				groups = append(groups, []byte("MAIL FROM:<"+sender+"> SIZE=4096\r\nRCPT TO:<user77@example.net>\r\nDATA\r\n"))
			}
			data := []byte("From: <sales@customer.example>\r\nTo: <user77@example.net>\r\nSubject: ordinary\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 57) + ".\r\n")
			next := 0
			message := func() error {
				one, group := &sessions[next%len(sessions)], groups[next/len(sessions)%len(groups)]
				next++
				if strings.HasSuffix(c.name, "checked") {
					now = now.Add(time.Duration(next%2*4-2) * time.Second)
				}
				var step session.Step
				if _, out, step = one.Feed(group, now, out[:0]); step == session.AwaitPolicy { // into the cache
					woken := make(chan bool)
					one.Pending().Arm(func(*policy.Pending) { close(woken) })
					<-woken
					if out, step = one.Decided(now, out[:0]); step == session.NeedInput {
						_, out, _ = one.Feed(group[bytes.Index(group, []byte("RCPT")):], now, out)
					}
				}
				if _, out, step = one.Feed(data, now, out[:0]); step != session.AwaitCommit {
					return fmt.Errorf("step %d: %s", step, out)
				}
				env := one.TakeEnvelope(envelope.ID{1})
				stored = append(env.AppendBinary(stored[:0]), env.Trace...)
				crc32.Update(env.Data.Sum(), castagnoli, stored)
				out, _ = one.Committed(env, nil, now, out[:0])
				env.Release()
				return nil
			}
			for range 2 * len(sessions) {
				if err := message(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := message(); err != nil {
					b.Fatal(err)
				}
			}
			if strings.HasPrefix(c.name, "enforce-no") == bytes.Contains(stored, []byte("\tspf=pass smtp.mailfrom=")) && c.name != "off" {
				b.Fatalf("%s", stored)
			}
			b.ReportMetric(float64(len(stored)), "B-stored/op")
		})
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
