package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// load is one kind of HTTP submission.
type load struct {
	address     string
	form        string // plain, rfc822, json or batch
	batch       int    // messages of one request, for batch
	size        int    // octets of a message
	connections int
}

// request is one whole request with n messages.
func (l *load) request() (head, body []byte, n int) {
	text := "From: <sender@client.test>\r\nTo: <recipient@bench.test>\r\nSubject: a load\r\nMessage-ID: <1@client.test>\r\n" +
		"Date: Sun, 22 Nov 2026 20:00:00 +0000\r\n\r\n"
	line := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 2)[:76] + "\r\n"
	text += strings.Repeat(line, (l.size-len(text))/len(line))
	text = text[:len(text)-2] + strings.Repeat("-", max(0, l.size-len(text))) + "\r\n"

	path, kind, fields, n := "/", "message/rfc822", "", 1
	body = []byte(text)
	switch l.form {
	case "json", "batch":
		path, kind = "/v1/messages", "application/json"
		body, _ = json.Marshal(map[string]any{"mail_from": "sender@client.test", "rcpt_to": []string{"recipient@bench.test"}, "raw": text})
		if l.form == "batch" {
			path, kind, n = "/v1/messages:batch", "application/x-ndjson", l.batch
			body = bytes.Repeat(append(body, '\n'), n)
		}
	default:
		if l.form == "rfc822" {
			path = "/v1/messages"
		}
		b64 := base64.StdEncoding.EncodeToString
		fields = "X-Envelope-Sender: " + b64([]byte("sender@client.test")) + "\r\nX-Envelope-Recipient: " + b64([]byte("recipient@bench.test")) + "\r\nX-Ehlo: client.test\r\n"
	}
	head = fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\n%sContent-Length: %d\r\n\r\n", path, l.address, kind, fields, len(body))
	return head, body, n
}

// posts sends so many messages, each connection the next request when the last was answered, and prints what they took as one line of JSON.
func (l *load) posts(messages int) error {
	if l.batch < 1 || l.size < 512 || l.connections < 1 || !slices.Contains([]string{"plain", "rfc822", "json", "batch"}, l.form) {
		return errUsage
	}
	head, body, each := l.request()
	request := append(head, body...)
	var left atomic.Int64
	left.Store(int64((messages + each - 1) / each))
	var mu sync.Mutex
	var acks []time.Duration
	var bad error
	var all sync.WaitGroup
	begun := time.Now()
	for range l.connections {
		all.Go(func() {
			mine, err := l.connection(request, each, &left)
			mu.Lock()
			defer mu.Unlock()
			acks = append(acks, mine...)
			if bad == nil {
				bad = err
			}
		})
	}
	all.Wait()
	seconds := time.Since(begun).Seconds()
	if bad == nil && len(acks) == 0 {
		bad = errors.New("nothing was sent")
	}
	if bad != nil {
		return bad // a load with an error is no measurement
	}
	slices.Sort(acks)
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return err
	}
	sent := len(acks) * each
	ms := func(share float64) float64 { return acks[int(share*float64(len(acks)-1))].Seconds() * 1000 }
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"messages": sent, "errors": 0, "seconds": seconds, "per_second": float64(sent) / seconds, "ack_p50_ms": ms(0.5), "ack_p99_ms": ms(0.99),
		"gen_cpu_us": float64(use.Utime.Nano()+use.Stime.Nano()) / 1e3 / float64(sent),
	})
}

// connection sends requests while some are left, and gives how long each answer took.
func (l *load) connection(request []byte, each int, left *atomic.Int64) (acks []time.Duration, err error) {
	c, err := net.DialTimeout("tcp", l.address, patience)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	for left.Add(-1) >= 0 {
		begun := time.Now()
		c.SetDeadline(begun.Add(patience))
		written := make(chan error, 1)
		if len(request) < 64<<10 {
			_, err = c.Write(request)
			written <- err
		} else { // answers come while the request is still being sent
			go func() {
				_, err := c.Write(request)
				written <- err
			}()
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return acks, err
		}
		answer, err := io.ReadAll(resp.Body)
		if err == nil {
			err = <-written
		}
		if err != nil {
			return acks, err
		}
		if resp.StatusCode/100 != 2 || l.form == "batch" && bytes.Count(answer, []byte(`"status":202,`)) != each {
			return acks, fmt.Errorf("%s: %.300q", resp.Status, answer)
		}
		acks = append(acks, time.Since(begun))
	}
	return acks, nil
}

// trickle has n clients post size bytes, bytesPerSecond each, for so long. It prints "n held" when all have sent the head; then, at the end, how many are
// still being heard, how many were refused with a 4yz or 5yz meanwhile (they post again), and what was sent.
func (l *load) trickle(n, bytesPerSecond int, d time.Duration) error {
	head, body, _ := l.request()
	var ready, refused, broken, sent, live atomic.Int64
	stop := time.Now().Add(d)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			first := true
			time.Sleep(time.Duration(i) * time.Second / time.Duration(n)) // not all in the same tick
			for time.Now().Before(stop) {
				c, err := net.DialTimeout("tcp", l.address, patience)
				if err != nil {
					broken.Add(1)
					time.Sleep(time.Second)
					continue
				}
				live.Add(1)
				answered := make(chan struct{})
				go func() {
					defer close(answered)
					if resp, err := http.ReadResponse(bufio.NewReaderSize(c, 1024), nil); err == nil && resp.StatusCode >= 400 {
						refused.Add(1)
					}
				}()
				if _, err = c.Write(head); err == nil && first {
					first = false
					ready.Add(1)
				}
				at := 0
				for err == nil && at < len(body) && time.Now().Before(stop) {
					step := min(bytesPerSecond/4, len(body)-at)
					if _, err = c.Write(body[at : at+step]); err == nil {
						at += step
						sent.Add(int64(step))
					}
					select {
					case <-answered:
						err = io.EOF
					case <-time.After(250 * time.Millisecond):
					}
				}
				if time.Now().Before(stop) {
					live.Add(-1)
				}
				c.Close()
				<-answered
				time.Sleep(time.Second) // who is told to come again later
			}
		})
	}
	for ready.Load() < int64(n) && time.Now().Before(stop) {
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Println(strconv.FormatInt(ready.Load(), 10) + " held")
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"clients": n, "live": live.Load(), "refused": refused.Load(), "unconnected": broken.Load(), "sent_bytes": sent.Load()})
}
