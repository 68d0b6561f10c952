//go:build interop

package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// These tests drive the real program with other people's: swaks, Postfix's smtp-source and smtp-sink, Python's smtplib. .ci/run
// installs them; without one of them its tests fail rather than being skipped.

// mails are messages shaped as the world sends them, by name. All end their lines with CRLF.
func mails() map[string][]byte {
	r := rand.New(rand.NewPCG(7, 7))
	random := make([]byte, 7<<20)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	encoded := base64.StdEncoding.EncodeToString(random)
	var attachment strings.Builder
	attachment.WriteString("Subject: 10 MiB attachment\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"=_b\"\r\n\r\n" +
		"--=_b\r\nContent-Type: text/plain\r\n\r\nsee attachment\r\n--=_b\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	for len(encoded) > 76 {
		attachment.WriteString(encoded[:76] + "\r\n")
		encoded = encoded[76:]
	}
	attachment.WriteString(encoded + "\r\n--=_b--\r\n")
	return map[string][]byte{
		"plain": []byte("From: Alice <alice@example.org>\r\nTo: bob@example.net\r\nSubject: plain\r\nMessage-ID: <1@example.org>\r\n" +
			"Date: Sun, 22 Nov 2026 08:00:39 +0000\r\n\r\nHello Bob,\r\n\r\nsee you.\r\n"),
		"leading-dots": []byte("Subject: dots\r\n\r\n.\r\n..\r\n...\r\n.leading\r\n..two\r\n . blank first\r\nx.\r\n"),
		"only-a-dot":   []byte("Subject: one dot\r\n\r\n.\r\n"),
		"8-bit": []byte("Subject: latin\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
			"caf\xe9 cr\xe8me \xff\xfe\x80\r\n"),
		"utf-8-header":        []byte("From: Jürgen <j@example.org>\r\nSubject: Grüße aus Köln – 日本\r\n\r\nüber alle Maßen\r\n"),
		"long-lines":          []byte("Subject: long\r\n\r\n" + strings.Repeat("x", 998) + "\r\n" + strings.Repeat("y", 9000) + "\r\nend\r\n"),
		"empty-body":          []byte("From: a@example.org\r\nSubject: nothing below\r\n\r\n"),
		"headers-only":        []byte("From: a@example.org\r\nSubject: no empty line either\r\n"),
		"blank-line-in-front": []byte("\r\nno header section at all\r\n"),
		"odd-headers": []byte("Subject:no blank\r\nX-Two:  blanks\r\nDKIM-Signature: v=1; b=" + strings.Repeat("AbCd+/", 29) + "\r\n" +
			"X-Folded: a\r\n\tb\r\n  c\r\nfrom: lower\r\n \r\nbody?\r\n"),
		"mbox-from":   []byte("Subject: mbox\r\n\r\nFrom here on\r\n>From there\r\n"),
		"ten-mib":     []byte(attachment.String()),
		"crlf-only":   []byte(strings.Repeat("\r\n", 100)),
		"tabs-and-ff": []byte("Subject: ctl\r\n\r\na\tb\x0bc\x0cd\x1be\x7f\r\n"),
	}
}

// awkward are messages that only BDAT can carry unchanged.
func awkward() map[string][]byte {
	return map[string][]byte{
		"no-final-newline": []byte("Subject: cut\r\n\r\nno newline at the end"),
		"empty":            {},
		"nuls":             []byte("Subject: nul\r\n\r\na\x00b\x00\x00c\r\n"),
		"dot-at-the-end":   []byte("Subject: dot\r\n\r\nbody\r\n."),
	}
}

func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		path = filepath.Join("/usr/sbin", program)
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%s is not installed; .ci/run installs it", program)
		}
	}
	return path
}

// chain is an edge that hands everything to a next hop, which is a second fastedge that holds it.
type chain struct {
	t    *testing.T
	edge *process
	hop  *process
}

func newChain(t *testing.T) *chain {
	hop := serve(t, t.TempDir(), minimalConfig)
	return &chain{t: t, hop: hop, edge: serve(t, t.TempDir(), minimalConfig+"[relay]\nnext_hop = [\"smtp://"+hop.addr[0]+"\"]\n")}
}

// arrived waits until n messages are at the next hop and gives their data, our two Received fields removed.
func (c *chain) arrived(n int) (all [][]byte) {
	c.t.Helper()
	c.hop.wait(fmt.Sprintf("%d messages at the next hop", n), func() bool { return strings.Count(c.hop.log.String(), `"msg":"accepted"`) >= n })
	c.edge.term()
	c.hop.term()
	for _, data := range stored(c.t, c.hop.dir) {
		all = append(all, withoutTrace(c.t, data))
	}
	if len(all) != n {
		c.t.Errorf("%d messages arrived, want %d", len(all), n)
	}
	if left := stored(c.t, c.edge.dir); len(left) != 0 {
		c.t.Errorf("%d messages are still at the edge", len(left))
	}
	return all
}

// checkAll compares what arrived with what was sent, byte for byte, in any order. added is what the client puts behind each message.
func checkAll(t *testing.T, arrived [][]byte, sent map[string][]byte, added string) {
	t.Helper()
	for name, want := range sent {
		want = append(bytes.Clone(want), added...)
		found := false
		for _, got := range arrived {
			found = found || bytes.Equal(got, want)
		}
		if !found {
			t.Errorf("message %q (%d bytes) did not arrive as it was sent", name, len(want))
		}
	}
}

// runClient runs a client program, bounded in time.
func runClient(t *testing.T, stdin []byte, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command("timeout", append([]string{"60", need(t, name)}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestSwaksSendsEveryMessageThroughToTheNextHop(t *testing.T) {
	c := newChain(t)
	sent := mails()
	delete(sent, "ten-mib") // a minute of swaks' time; the other clients send it
	// swaks takes these for its own: it completes header sections, trims blank lines, and takes a last line "." for the end of its input.
	for _, name := range []string{"only-a-dot", "headers-only", "odd-headers", "blank-line-in-front", "crlf-only"} {
		delete(sent, name)
	}
	for name, msg := range sent {
		file := filepath.Join(t.TempDir(), "msg")
		if err := os.WriteFile(file, msg, 0o600); err != nil {
			t.Fatal(err)
		}
		out := runClient(t, nil, "swaks", "--server", c.edge.addr[0], "--from", "sender@example.org", "--to", "rcpt@example.net",
			"--data", "@"+file)
		if !strings.Contains(out, "250 2.6.0 Message queued as ") {
			t.Errorf("%s:\n%.3000s", name, out)
		}
	}
	checkAll(t, c.arrived(len(sent)), sent, "\r\n")
}

const pythonClient = `
import os, smtplib, sys
host, port = sys.argv[1].rsplit(":", 1)
folder = sys.argv[2]
s = smtplib.SMTP(host, int(port), timeout=30)
s.ehlo("python.example")
for name in sorted(os.listdir(folder)):
    with open(os.path.join(folder, name), "rb") as f:
        msg = f.read()
    refused = s.sendmail("sender@example.org", ["rcpt@example.net", "second@example.net"], msg, mail_options=["BODY=8BITMIME"])
    assert not refused, refused
s.quit()
`

func folder(t *testing.T, msgs map[string][]byte) string {
	dir := t.TempDir()
	for name, msg := range msgs {
		if err := os.WriteFile(filepath.Join(dir, name), msg, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPythonsSmtplibSendsEveryMessageThroughToTheNextHop(t *testing.T) {
	c := newChain(t)
	sent := mails()
	runClient(t, nil, "python3", "-c", pythonClient, c.edge.addr[0], folder(t, sent))
	checkAll(t, c.arrived(len(sent)), sent, "")
}

func TestSmtpSourceSendsEveryMessageThroughToTheNextHop(t *testing.T) {
	c := newChain(t)
	sent := mails()
	for name := range sent {
		// smtp-source reads lines and cuts the longest; what it does not carry is not ours to test here.
		if name == "long-lines" || name == "crlf-only" {
			delete(sent, name)
		}
	}
	for _, msg := range sent {
		file := filepath.Join(t.TempDir(), "msg")
		os.WriteFile(file, bytes.ReplaceAll(msg, []byte("\r\n"), []byte("\n")), 0o600)
		runClient(t, nil, "smtp-source", "-F", file, "-f", "sender@example.org", "-t", "rcpt@example.net", c.edge.addr[0])
	}
	checkAll(t, c.arrived(len(sent)), sent, "\r\n")
}

func TestSmtpSourceManySessionsAndMessages(t *testing.T) {
	c := newChain(t)
	runClient(t, nil, "smtp-source", "-s", "50", "-m", "2000", "-l", "4096", "-f", "sender@example.org", "-t", "rcpt@example.net", c.edge.addr[0])
	if got := len(c.arrived(2000)); got != 2000 {
		t.Errorf("%d messages arrived", got)
	}
}

func TestBDATCarriesWhatDATACannotByteForByte(t *testing.T) {
	c := newChain(t)
	sent := awkward()
	for name, msg := range mails() {
		sent[name] = msg
	}
	cl, err := hello(c.edge.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for name, msg := range sent {
		if _, err := cl.talk("MAIL FROM:<sender@example.org> BODY=8BITMIME\r\nRCPT TO:<rcpt@example.net>\r\n", "250", "250"); err != nil {
			t.Fatal(err)
		}
		half := len(msg) / 2
		if _, err := cl.talk(fmt.Sprintf("BDAT %d\r\n%s", half, msg[:half]), "250"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := cl.talk(fmt.Sprintf("BDAT %d LAST\r\n%s", len(msg)-half, msg[half:]), "250 2.6.0"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	checkAll(t, c.arrived(len(sent)), sent, "")
}

func TestPostfixsSmtpSinkReceivesEveryMessageByteForByte(t *testing.T) {
	sink := need(t, "smtp-sink")
	addr, dir := freeAddress(t), t.TempDir()
	cmd := exec.Command("timeout", "120", sink, "-u", "root", "-d", "msg.%M.", addr, "100")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Signal(os.Interrupt)
	edge := serve(t, t.TempDir(), minimalConfig+"[relay]\nnext_hop = [\"smtp://"+addr+"\"]\n")
	sent := mails()
	delete(sent, "long-lines") // smtp-sink's dump breaks lines over 1,024 bytes
	runClient(t, nil, "python3", "-c", pythonClient, edge.addr[0], folder(t, sent))
	var files []string
	edge.wait("all to be at smtp-sink", func() bool {
		files, _ = filepath.Glob(filepath.Join(dir, "msg.*"))
		st := edge.stat(t)
		return len(files) == len(sent) && st.Messages["ready"]+st.Messages["leased"]+st.Messages["waiting"] == 0
	})
	var arrived [][]byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		// smtp-sink's own lines stand in front, lines end in LF, and an empty line follows.
		_, b, ok := bytes.Cut(b, []byte(" (UTC)\n"))
		if !ok {
			t.Fatalf("%s has no Received field of smtp-sink", f)
		}
		b = bytes.TrimSuffix(b, []byte("\n"))
		arrived = append(arrived, withoutTrace(t, bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))))
	}
	checkAll(t, arrived, sent, "")
}

func TestLMTPOverAUnixSocketThroughToAnLMTPNextHop(t *testing.T) {
	hopDir, edgeDir := t.TempDir(), t.TempDir()
	sock := filepath.Join(hopDir, "lmtp.sock")
	hop := serve(t, hopDir, strings.Replace(strings.Replace(minimalConfig, `"127.0.0.1:0"`, `"unix:`+sock+`"`, 1), `name = "mx"`, `name = "mx"`+"\nprotocol = \"lmtp\"", 1))
	in := filepath.Join(edgeDir, "in.sock")
	edge := serve(t, edgeDir, strings.Replace(strings.Replace(minimalConfig, `"127.0.0.1:0"`, `"unix:`+in+`"`, 1), `name = "mx"`, `name = "mx"`+"\nprotocol = \"lmtp\"", 1)+
		"[relay]\nnext_hop = [\"lmtp+unix://"+sock+"\"]\n")
	c, err := dialSMTP("unix", in)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.talk("LHLO test.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<c@example.net>\r\nDATA\r\nSubject: lmtp\r\n\r\nx\r\n.\r\n",
		"220", "250", "250", "250", "250", "354", "250 2.6.0", "250 2.6.0"); err != nil {
		t.Fatal(err)
	}
	hop.wait("the message at the next hop", func() bool { return strings.Contains(hop.log.String(), `"msg":"accepted"`) })
	edge.term()
	hop.term()
	for _, data := range stored(t, hopDir) {
		if got := string(withoutTrace(t, data)); got != "Subject: lmtp\r\n\r\nx\r\n" {
			t.Errorf("arrived %q", got)
		}
	}
}

// strace attaches fault injection to a running fastedge and returns when it is in force.
func strace(t *testing.T, p *process, inject string) (stop func()) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "strace")
	cmd := exec.Command("timeout", "60", need(t, "strace"), "-f", "-qq", "-o", log, "-e", "trace=fdatasync,fsync,pwritev,pwrite64", "-e", inject, "-p", fmt.Sprint(p.cmd.Process.Pid))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.wait("strace to attach", func() bool {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
		return !bytes.Contains(status, []byte("TracerPid:\t0\n"))
	})
	time.Sleep(200 * time.Millisecond) // to the other threads
	return func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	}
}

func TestAFailingFdatasyncIs451AndNothingIsAcknowledged(t *testing.T) {
	p := serve(t, t.TempDir(), minimalConfig)
	c, err := hello(p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first, err := c.deliver("Subject: before\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	stop := strace(t, p, "inject=fdatasync,fsync:error=EIO")
	for range 5 {
		if _, err := c.talk(oneGroup+"Subject: lost\r\n\r\n.\r\n", "250", "250", "354", "451 4.3.0"); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	second, err := c.deliver("Subject: after\r\n\r\n")
	if err != nil {
		t.Fatalf("after the disk is well again: %v", err)
	}
	if st := p.stat(t); st.SyncErrors == 0 || st.Alarm == "" {
		t.Errorf("no alarm: %+v", st)
	}
	p.kill()
	there := stored(t, p.dir)
	if len(there) != 2 || there[first] == nil || there[second] == nil {
		t.Errorf("%d messages after the restart, want the two that were acknowledged", len(there))
	}
}

func TestAFullDiskIs452BeforeAcceptanceAndIntakeReturns(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root to mount a small file system")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v %s", err, out)
	}
	defer exec.Command("umount", "-l", dir).Run()
	config := strings.Replace(minimalConfig, "1MiB", "16MiB", 1)
	p := serve(t, dir, config)
	c, err := hello(p.addr[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var acked []string
	text := "Subject: fill\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 1<<20/78)
	full := false
	for i := 0; i < 200 && !full; i++ {
		reply, err := c.talk("MAIL FROM:<a@example.org>\r\n", "")
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(reply, "452 4.3.1") {
			full = true
			break
		}
		if _, err := c.talk("RCPT TO:<b@example.net>\r\nDATA\r\n", "250", "354"); err != nil {
			t.Fatal(err)
		}
		if reply, err = c.talk(text+".\r\n", ""); err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(reply, "250 2.6.0"):
			acked = append(acked, queuedAs.FindStringSubmatch(reply)[1])
		case strings.HasPrefix(reply, "452 4.3.1"):
			full = true
		default:
			t.Fatalf("reply %q while the disk fills", reply)
		}
	}
	if !full {
		t.Fatal("64 MiB hold 200 MiB")
	}
	if _, err := c.talk("EHLO still.here\r\n", "250"); err != nil {
		t.Error(err)
	}
	// Room again: mail is taken again within two seconds.
	for _, id := range acked {
		p.fastedge("queue", "drop", id)
	}
	back := time.Now()
	p.wait("intake to return", func() bool {
		reply, err := c.talk("MAIL FROM:<a@example.org>\r\n", "")
		if err != nil {
			t.Fatal(err)
		}
		return strings.HasPrefix(reply, "250")
	})
	t.Logf("%d messages of 1 MiB before 452; intake back %v after there was room", len(acked), time.Since(back).Round(time.Millisecond))
}

func TestARestartWith100000MessagesIsUpWithinASecond(t *testing.T) {
	dir := t.TempDir()
	config := strings.Replace(minimalConfig, "16MiB", "256MiB", 1)
	p := serve(t, dir, config)
	text := "Subject: many\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 4096/78)
	const messages, clients = 100_000, 50
	errs := make(chan error, clients)
	for range clients {
		go func() {
			c, err := hello(p.addr[0])
			if err != nil {
				errs <- err
				return
			}
			defer c.Close()
			for range messages / clients {
				if _, err := c.talk(oneGroup, "250", "250", "354"); err != nil {
					errs <- err
					return
				}
				if _, err := c.talk(text+".\r\n", "250 2.6.0"); err != nil {
					errs <- err
					return
				}
				c.SetDeadline(time.Now().Add(60 * time.Second))
			}
			errs <- nil
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	p.kill()
	start := time.Now()
	p = serve(t, dir, config)
	c, err := hello(p.addr[0])
	up := time.Since(start)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	st := p.stat(t)
	t.Logf("%d messages of 4 KiB in %d segments, kill -9: EHLO answered %v after the start", st.Messages["held"], st.Segments, up.Round(time.Millisecond))
	if st.Messages["held"] != messages {
		t.Errorf("%d messages after the restart, want %d", st.Messages["held"], messages)
	}
}
