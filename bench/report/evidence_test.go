package main

import (
	"slices"
	"strings"
	"testing"
)

// traces of one message each, cut to the calls that matter. The file's name and the order are what the class depends on.
var traces = []struct {
	name, class string
	trace       string
	lines       []string
}{
	{"synced before the reply", classDurable, `
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "354 go on\r\n", 11) = 11
8 write(12</q/incoming/A1>, "...MARK...", 400) = 400
8 fsync(12</q/incoming/A1>) = 0
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "250 2.0.0 Ok\r\n", 14) = 14
`, []string{`write(A1, … message …)`, `fsync(A1) = 0`, `write(client, "250 …")`}},
	{"never synced", classAccepted, `
7 sendto(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "354 go on\r\n", 11, 0, NULL, 0) = 11
7 writev(12</q/A1>, [{iov_base="headers", iov_len=7}, {iov_base="...MARK...", iov_len=10}], 2) = 17
7 fsync(13</q/other>) = 0
7 sendto(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "250 2.0.0 Ok\r\n", 14, 0, NULL, 0) = 14
`, []string{`writev(A1, … message …)`, `sendto(client, "250 …")`}},
	{"synced after the reply", classAccepted, `
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "354 go on\r\n", 11) = 11
7 write(12</q/A1>, "...MARK...", 400) = 400
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "250 2.0.0 Ok\r\n", 14) = 14
7 fsync(12</q/A1>) = 0
`, nil},
	{"the sync had begun but not returned", classAccepted, `
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "354 go on\r\n", 11) = 11
7 write(12</q/A1>, "...MARK...", 400) = 400
8 fdatasync(12</q/A1> <unfinished ...>
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "250 2.0.0 Ok\r\n", 14) = 14
8 <... fdatasync resumed>) = 0
`, nil},
	{"the sync failed", classAccepted, `
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "354 go on\r\n", 11) = 11
7 write(12</q/A1>, "...MARK...", 400) = 400
7 fsync(12</q/A1>) = -1 EIO (Input/output error)
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "250 2.0.0 Ok\r\n", 14) = 14
`, nil},
	{"the sync began before the write had returned", classAccepted, `
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "354 go on\r\n", 11) = 11
7 pwrite64(12</q/A1>, "...MARK...", 400, 0 <unfinished ...>
8 fdatasync(12</q/A1>) = 0
7 <... pwrite64 resumed>) = 400
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "250 2.0.0 Ok\r\n", 14) = 14
`, nil},
	{"renamed, then synced under the new name", classDurable, `
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "354 go on\r\n", 11) = 11
7 write(12</q/tmp/A1>, "...MARK...", 400) = 400
7 rename("/q/tmp/A1", "/q/new/B2") = 0
7 fsync(12</q/new/B2>) = 0
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "250 2.0.0 Ok\r\n", 14) = 14
`, nil},
	{"a descriptor whose writes are synced", classDurable, `
7 openat(AT_FDCWD</>, "/q/A1", O_WRONLY|O_DSYNC) = 12</q/A1>
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "354 go on\r\n", 11) = 11
7 write(12</q/A1>, "...MARK...", 400) = 400
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "250 2.0.0 Ok\r\n", 14) = 14
`, []string{`write(A1, … message …)`, `write(client, "250 …")`}},
	{"only handed to another process", classDiscard, `
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "354 go on\r\n", 11) = 11
7 write(5<UNIX-STREAM:[11->12]>, "...MARK...", 400) = 400
7 write(6</dev/null>, "...MARK...", 400) = 400
7 sync() = 0
7 write(9<TCP:[127.0.0.1:2600->127.0.0.1:4000]>, "250 2.0.0 Ok\r\n", 14) = 14
`, []string{`write(client, "250 …")`}},
}

func TestClassIsWhatTheSystemCallsSay(t *testing.T) {
	for _, c := range traces {
		e, err := judge(c.trace, 2600, []string{"MARK"})
		if err != nil || e.Class != c.class {
			t.Errorf("%s: %s, %v; want %s", c.name, e.Class, err, c.class)
		}
		if c.lines != nil && !slices.Equal(e.Lines, c.lines) {
			t.Errorf("%s: %q", c.name, e.Lines)
		}
	}
}

func TestTheWeakestMessageDecides(t *testing.T) {
	durable, accepted := traces[0].trace, strings.ReplaceAll(traces[1].trace, "MARK", "SECOND")
	if e, err := judge(durable+accepted, 2600, []string{"MARK", "SECOND"}); err != nil || e.Class != classAccepted {
		t.Error(e, err)
	}
	if _, err := judge(durable, 2600, []string{"MARK", "SECOND"}); err == nil {
		t.Error("a message without a reply was judged")
	}
}
