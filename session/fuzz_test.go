package session_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/internal/smtptest"
	"github.com/fastedge/fastedge/session"
)

// fuzzOptions are small limits, so that short inputs reach them.
func fuzzOptions(kind uint8) session.Options {
	o := session.Options{Hostname: "mx.example.net", MaxMessageBytes: 64, MaxRecipients: 2, MaxErrors: 6, MaxLineBytes: 128, MaxReceived: 2, MaxTransactions: 5}
	o.LMTP, o.Normalize = kind&1 != 0, kind&2 != 0
	if kind&4 != 0 {
		o.MaxMessageBytes = 1 << 20
	}
	if kind&8 != 0 {
		o.Hide = []string{"CHUNKING"}
	}
	return o
}

// FuzzSession: any bytes in any pieces give the same replies and messages, without a panic; replies are lines of printable ASCII of
// at most 512 bytes (smtptest.Client notes an error otherwise); no memory stays in use.
func FuzzSession(f *testing.F) {
	const mail = "MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\n"
	for _, text := range []string{
		"EHLO a\r\n" + mail + "DATA\r\n..x\r\n.\r\nQUIT\r\n",
		"EHLO a\r\n" + mail + "BDAT 3\r\na\nbBDAT 2 LAST\r\n\r\nNOOP\r\n",
		"EHLO a\r\nMAIL FROM:<\xc3\xa9@x> SMTPUTF8 BODY=BINARYMIME\r\nRCPT TO:<\xc3\xa9@x> NOTIFY=NEVER\r\nBDAT 4 LAST\r\n\r\n\n\r",
		"LHLO a\r\n" + mail + "RCPT TO:<c@x>\r\nDATA\r\nReceived: a\r\n\n.\n.\r\n.\r\n" + mail,
		"NOOP " + strings.Repeat("x", 200) + "\rQUIT\r\nNOOP\nQUIT\r\n",
		"GET / HTTP/1.1\r\n\r\n",
		"BDAT 6\r\nQUIT\r\nBDAT -1\r\n",
	} {
		for kind := range uint8(4) {
			f.Add([]byte(text), uint16(3), kind)
		}
	}
	paths, _ := filepath.Glob("testdata/*.smtp")
	for i, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		var client strings.Builder
		for l := range strings.Lines(string(raw)) {
			if text, ok := strings.CutPrefix(l, "C: "); ok {
				client.WriteString(strings.TrimSuffix(text, "\n") + "\r\n")
			}
		}
		f.Add([]byte(client.String()), uint16(i), uint8(i))
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint16, kind uint8) {
		whole := transcript(t, in, kind, func(rest int) int { return rest })
		next := uint32(seed)
		random := func(rest int) int {
			next = next*1664525 + 1013904223
			return 1 + int(next>>16)%min(rest, 40)
		}
		for name, pieces := range map[string]func(int) int{
			"byte by byte": func(int) int { return 1 },
			"two pieces":   func(rest int) int { return max(1, min(rest, int(seed))) },
			"random":       random,
		} {
			if got := transcript(t, in, kind, pieces); got != whole {
				t.Fatalf("%q\nin one piece:\n%s\n%s:\n%s", in, whole, name, got)
			}
		}
	})
}

// transcript runs one session on in, fed in pieces of the length that size says, and gives what the server did.
func transcript(t *testing.T, in []byte, kind uint8, size func(rest int) int) string {
	c := smtptest.NewClient(fuzzOptions(kind), 1<<20, false)
	for len(in) > 0 {
		n := size(len(in))
		c.Send(in[:n])
		in = in[n:]
	}
	c.Lose()
	if used := c.Budget.Used(); used != 0 {
		t.Fatalf("%d bytes of message data in use", used)
	}
	text := strings.Join(c.Lines, "\n")
	if strings.Contains(text, "error: ") {
		for _, l := range c.Lines {
			if strings.HasPrefix(l, "error: ") {
				t.Fatal(l)
			}
		}
	}
	return text
}

// TestReplyCodesOfTheIssue is the list of what a client may meet, so that a changed code is noticed beside the transcripts.
func TestReplyCodesOfTheIssue(t *testing.T) {
	want := map[string]bool{}
	paths, _ := filepath.Glob("testdata/*.smtp")
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(raw)) {
			if len(l) > 12 && strings.HasPrefix(l, "S: ") && l[6] == ' ' {
				want[strings.Join(strings.Fields(l[3:])[:2], " ")] = true
			}
		}
	}
	for _, code := range []string{"250 2.1.0", "250 2.1.5", "250 2.6.0", "250 2.0.0", "221 2.0.0", "252 2.5.0", "214 2.0.0", "354 Start", "421 4.4.2", "421 4.3.2",
		"421 4.7.0", "451 4.3.0", "452 4.3.1", "452 4.5.3", "500 5.5.2", "500 5.5.1", "501 5.5.4", "501 5.1.3", "501 5.1.7", "502 5.5.1", "503 5.5.1",
		"550 5.7.1", "552 5.3.4", "553 5.6.7", "554 5.4.6", "554 5.5.1", "554 5.6.0", "555 5.5.4"} {
		if !want[code] {
			t.Errorf("no transcript has the reply %s", code)
		}
	}
	if len(paths) < 40 {
		t.Error(fmt.Sprint(len(paths), " transcripts"))
	}
}
