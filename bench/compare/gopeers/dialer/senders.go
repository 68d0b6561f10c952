package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Clients come through the PROXY protocol, because a server does not check senders on its own machine.

// proxyHeader gives client i an address of its own within 198.18.0.0/15.
func proxyHeader(i uint32) string {
	return fmt.Sprintf("PROXY TCP4 198.%d.%d.%d 127.0.0.1 %d 25\r\n", 18+i>>16&1, i&255, i>>8&255, 1024+i%60000)
}

// The domains of dns: the records of customer.example, and of those with a digit behind, redirect to one that includes three others, of which the last
// lists the clients; any name below busy.example lists them itself; for those below silent.example nobody answers.
var records = map[string]string{
	"\x08customer\x07example":                "v=spf1 redirect=_spf.provider.example",
	"\x04_spf\x08provider\x07example":        "v=spf1 include:_netblocks.provider.example include:_netblocks2.provider.example include:_netblocks3.provider.example ~all",
	"\x0a_netblocks\x08provider\x07example":  netblocks("ip4:203.0.%d.0/24"),
	"\x0b_netblocks2\x08provider\x07example": netblocks("ip6:2001:db8:%d::/48"),
	"\x0b_netblocks3\x08provider\x07example": netblocks("ip4:203.1.%d.0/24", "ip4:198.18.0.0/15"),
}

const another = "\x09customer0\x07example"

func netblocks(pattern string, more ...string) string {
	text := "v=spf1"
	for i := range 10 {
		text += " " + fmt.Sprintf(pattern, 16*i)
	}
	for _, m := range more {
		text += " " + m
	}
	return text + " ~all"
}

// dns answers TXT questions at address, for an hour each, until the process is ended.
func dns(address string) error {
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	_ = conn.(*net.UDPConn).SetReadBuffer(4 << 20)
	for buf := make([]byte, 2048); ; {
		n, from, err := conn.ReadFrom(buf[:512])
		if err != nil {
			return err
		}
		end := bytes.IndexByte(buf[12:max(n, 12)], 0) + 12 // of the name
		if end < 12 || end+5 > n {
			continue
		}
		name := bytes.ToLower(buf[12:end])
		text := records[string(name)]
		if len(name) == len(another) && string(name[:9]) == another[:9] && string(name[10:]) == another[10:] {
			text = "v=spf1 redirect=_spf.provider.example"
		}
		switch {
		case bytes.HasSuffix(name, []byte("\x06silent\x07example")):
			continue
		case bytes.HasSuffix(name, []byte("\x04busy\x07example")):
			text = "v=spf1 ip4:198.18.0.0/15 -all"
		}
		out := buf[:end+5]
		buf[2], buf[3] = 0x81, 0x80
		copy(buf[4:12], []byte{0, 1, 0, 0, 0, 0, 0, 0})
		switch {
		case text == "":
			buf[3] |= 3 // no such name
		case buf[end+2] == 16: // TXT
			buf[7] = 1
			strings := (len(text) + 254) / 255
			out = append(out, 0xC0, 12, 0, 16, 0, 1, 0, 0, 0x0E, 0x10, byte((len(text)+strings)>>8), byte(len(text)+strings))
			for len(text) > 0 {
				l := min(len(text), 255)
				out = append(append(out, byte(l)), text[:l]...)
				text = text[l:]
			}
		}
		if _, err := conn.WriteTo(out, from); err != nil {
			return err
		}
	}
}

// checks has n clients wait for the check of a sender below silent.example, fifty at a time on their way to it, prints "n held" when all do, and
// when all have been answered what they got, as one line of JSON. Times are counted from each client's MAIL.
func (t *talk) checks(n, seconds int) error {
	var held, deferred atomic.Int64
	var mu sync.Mutex
	var took []float64
	var all sync.WaitGroup
	gate := make(chan struct{}, 50)
	for i := range n {
		all.Go(func() {
			gate <- struct{}{}
			c, err := t.greet()
			if err == nil {
				defer c.Close()
				_, err = fmt.Fprintf(c, "MAIL FROM:<a@d%d.silent.example>\r\n", i)
			}
			begun := time.Now()
			if <-gate; err != nil {
				t.failed(err)
				return
			}
			if held.Add(1) == int64(n) {
				fmt.Println(n, "held")
			}
			_ = c.SetDeadline(begun.Add(time.Duration(seconds) * time.Second))
			if err := c.expect("451"); err != nil {
				t.failed(err)
				return
			}
			deferred.Add(1)
			mu.Lock()
			took = append(took, time.Since(begun).Seconds())
			mu.Unlock()
		})
	}
	all.Wait()
	if len(took) == 0 {
		return errors.New("nobody was deferred: " + t.first)
	}
	return tell(map[string]any{"deferred": deferred.Load(), "errors": t.errors, "first_error": t.first, "first_s": slices.Min(took), "last_s": slices.Max(took)})
}

// senders gives n senders, each of a domain that was never asked for, one after the other, and prints how long the replies to MAIL took.
func (t *talk) senders(n int) error {
	c, err := t.greet()
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	var took []float64
	for i := range n {
		begun := time.Now()
		if err := c.ask(fmt.Sprintf("MAIL FROM:<a@d%d.busy.example>", i), "250"); err != nil {
			return err
		}
		took = append(took, time.Since(begun).Seconds()*1000)
		if i%10 == 9 { // a session may only have so many commands without mail
			_, _ = io.WriteString(c, "QUIT\r\n")
			c.Close()
			if c, err = t.greet(); err != nil {
				return err
			}
			continue
		}
		if err := c.ask("RSET", "250"); err != nil {
			return err
		}
	}
	slices.Sort(took)
	return tell(map[string]any{"mail_p50_ms": took[len(took)/2], "mail_p99_ms": took[len(took)*99/100]})
}

func tell(what map[string]any) error {
	out, err := json.Marshal(what)
	fmt.Println(string(out))
	return err
}
