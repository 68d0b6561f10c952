package session

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/pool"
)

// The dialogue that is measured: one message of 4 KiB in an open session, after EHLO.
func benchMessage(recipients int) (commands []string, data string) {
	commands = append(commands, "MAIL FROM:<sender@client.example.com> SIZE=4096 BODY=8BITMIME\r\n")
	for i := range recipients {
		commands = append(commands, fmt.Sprintf("RCPT TO:<recipient%d@server.example.com>\r\n", i))
	}
	data = "Subject: a message\r\n\r\n" + strings.Repeat("An ordinary line of text, as there are many of them in mail.\r\n", 65) + ".\r\n"
	return append(commands, "DATA\r\n"), data
}

func BenchmarkFeed(b *testing.B) { pool.WithoutPoison(func() { benchFeed(b) }) }

func benchFeed(b *testing.B) {
	for _, c := range []struct {
		pipelining string
		recipients int
	}{{"group", 1}, {"group", 10}, {"off", 1}} {
		commands, data := benchMessage(c.recipients)
		pieces := append(commands, data)
		if c.pipelining == "group" {
			pieces = []string{strings.Join(commands, ""), data}
		}
		var ins [][]byte
		bytesPerMessage := 0
		for _, p := range pieces {
			ins = append(ins, []byte(p))
			bytesPerMessage += len(p)
		}
		name := fmt.Sprintf("pipelining=%s/rcpts=%d/impl=", c.pipelining, c.recipients)
		b.Run(name+"fastedge", func(b *testing.B) {
			s, _, _ := open(b, Options{Hostname: "mx.example.net"})
			out := make([]byte, 0, 4096)
			s.Feed([]byte("EHLO client.example.com\r\n"), start, nil)
			b.SetBytes(int64(bytesPerMessage))
			b.ReportAllocs()
			for b.Loop() {
				var step Step
				for _, in := range ins {
					_, _, step = s.Feed(in, start, out)
				}
				if step != AwaitCommit {
					b.Fatal("no message")
				}
				env := s.TakeEnvelope(envelope.ID{15: 1})
				s.Committed(nil, nil, start, out)
				env.Release()
			}
		})
		if c.pipelining == "group" {
			b.Run(name+"naive", func(b *testing.B) {
				var whole []byte
				for _, in := range ins {
					whole = append(whole, in...)
				}
				b.SetBytes(int64(bytesPerMessage))
				b.ReportAllocs()
				for b.Loop() {
					if n := naiveServer(whole); n != 1 {
						b.Fatal("no message")
					}
				}
			})
		}
	}
}

// BenchmarkCommand is one command and its reply.
func BenchmarkCommand(b *testing.B) {
	for _, text := range []string{"NOOP\r\n", "EHLO client.example.com\r\n", "MAIL FROM:<a@example.com>\r\nRSET\r\n"} {
		b.Run("verb="+strings.Fields(text)[0], func(b *testing.B) {
			s, _, _ := open(b, Options{})
			s.Feed([]byte("EHLO client.example.com\r\n"), start, nil)
			in, out := []byte(text), make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				s.Feed(in, start, out)
			}
		})
	}
}

// naiveServer is the twin: what one writes in an afternoon with bufio, strings and fmt. It is not correct (any line end ends the
// data, nothing is checked), which only makes it faster.
func naiveServer(in []byte) (messages int) {
	r := bufio.NewReader(bytes.NewReader(in))
	var out bytes.Buffer
	var from string
	var to []string
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return messages
		}
		line = strings.TrimRight(line, "\r\n")
		verb, arg, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "MAIL":
			path, params, _ := strings.Cut(strings.TrimPrefix(arg, "FROM:"), " ")
			for _, p := range strings.Fields(params) {
				if name, value, _ := strings.Cut(p, "="); strings.EqualFold(name, "SIZE") {
					var size int
					fmt.Sscan(value, &size)
				}
			}
			from = strings.Trim(path, "<>")
			fmt.Fprintf(&out, "250 2.1.0 <%s> Ok\r\n", from)
		case "RCPT":
			path := strings.Trim(strings.TrimPrefix(arg, "TO:"), "<>")
			to = append(to, path)
			fmt.Fprintf(&out, "250 2.1.5 <%s> Ok\r\n", path)
		case "DATA":
			fmt.Fprintf(&out, "354 Start mail input; end with <CRLF>.<CRLF>\r\n")
			var body strings.Builder
			for {
				l, err := r.ReadString('\n')
				if err != nil {
					return messages
				}
				if l == ".\r\n" {
					break
				}
				body.WriteString(strings.TrimPrefix(l, "."))
			}
			_ = fmt.Sprintf("Received: from %s for %s", from, strings.Join(to, ",")) + body.String()
			messages++
			fmt.Fprintf(&out, "250 2.6.0 Message queued as %d\r\n", messages)
		default:
			fmt.Fprintf(&out, "500 5.5.2 Syntax error, command unrecognized\r\n")
		}
	}
}
