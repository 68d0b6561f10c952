package smtpcodec

import (
	"fmt"
	"strings"
	"testing"
)

func TestReplyAppendTable(t *testing.T) {
	long := strings.Repeat("x", 600)
	for _, c := range []struct {
		name string
		r    Reply
		want string
	}{
		{"plain", Reply{250, EnhancedCode{}, "Ok"}, "250 Ok\r\n"},
		{"enhanced code, RFC 2034 §4", Reply{250, EnhancedCode{2, 1, 0}, "Ok"}, "250 2.1.0 Ok\r\n"},
		{"class follows the code", Reply{550, EnhancedCode{2, 3, 4}, "No"}, "550 5.3.4 No\r\n"},
		{"no class 3", Reply{354, EnhancedCode{3, 0, 0}, "Go"}, "354 Go\r\n"},
		{"several lines, code on each", Reply{550, EnhancedCode{5, 7, 23}, "One\nTwo"}, "550-5.7.23 One\r\n550 5.7.23 Two\r\n"},
		{"EHLO", Reply{250, EnhancedCode{}, "mx.example\nSIZE 10\nHELP"}, "250-mx.example\r\n250-SIZE 10\r\n250 HELP\r\n"},
		{"empty text keeps its blank, RFC 4954 §4", Reply{Code: 334}, "334 \r\n"},
		{"empty lines", Reply{Code: 250, Text: "\n"}, "250-\r\n250 \r\n"},
		{"hostile bytes", Reply{Code: 250, Text: "a\rb\x00c\x1b[d\x7f\xff\t."}, "250 a?b?c?[d???.\r\n"},
		{"512 bytes are a line, RFC 5321 §4.5.3.1.5", Reply{Code: 250, Text: long[:506]}, "250 " + long[:506] + "\r\n"},
		{"513 are cut", Reply{Code: 250, Text: long[:507]}, "250 " + long[:506] + "\r\n"},
		{"cut with an enhanced code", Reply{250, EnhancedCode{2, 0, 0}, long + "\nb"}, "250-2.0.0 " + long[:500] + "\r\n250 2.0.0 b\r\n"},
	} {
		if got := string(c.r.AppendTo([]byte("x"))); got != "x"+c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestReplyWithoutACodePanics(t *testing.T) {
	for _, code := range []uint16{0, 25, 199, 600, 2500} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%d is written", code)
				}
			}()
			(&Reply{Code: code}).AppendTo(nil)
		}()
	}
}

func TestParseReplyTable(t *testing.T) {
	many := strings.Repeat("250-x\r\n", MaxReplyLines-1)
	for _, c := range []struct {
		name, in string
		want     Reply
		n        int
		err      error
	}{
		{"plain", "250 Ok\r\n", Reply{250, EnhancedCode{}, "Ok"}, 8, nil},
		{"what follows stays", "250 Ok\r\n354 Go\r\n", Reply{250, EnhancedCode{}, "Ok"}, 8, nil},
		{"code alone, RFC 5321 §4.2", "250\r\n", Reply{Code: 250}, 5, nil},
		{"code and blank", "250 \r\n", Reply{Code: 250}, 6, nil},
		{"several lines", "250-a\r\n250-b\r\n250 c\r\n", Reply{250, EnhancedCode{}, "a\nb\nc"}, 21, nil},
		{"code alone ends several lines", "250-a\r\n250\r\n", Reply{250, EnhancedCode{}, "a\n"}, 12, nil},
		{"enhanced code", "550 5.1.1 No\r\n", Reply{550, EnhancedCode{5, 1, 1}, "No"}, 14, nil},
		{"enhanced code and no text", "550 5.1.1\r\n", Reply{550, EnhancedCode{5, 1, 1}, ""}, 11, nil},
		{"enhanced code on each line", "550-5.7.23 a\r\n550 5.7.23 b\r\n", Reply{550, EnhancedCode{5, 7, 23}, "a\nb"}, 28, nil},
		{"enhanced code on the first line only", "550-5.7.23 a\r\n550 b\r\n", Reply{550, EnhancedCode{5, 7, 23}, "a\nb"}, 21, nil},
		{"another code in a later line is text", "550-5.7.23 a\r\n550 5.7.2 b\r\n", Reply{550, EnhancedCode{5, 7, 23}, "a\n5.7.2 b"}, 27, nil},
		{"a code of another class is text", "250 5.1.1 x\r\n", Reply{250, EnhancedCode{}, "5.1.1 x"}, 13, nil},
		{"a version number is text", "220 2.0.0beta\r\n", Reply{220, EnhancedCode{}, "2.0.0beta"}, 15, nil},
		{"a code without a subject is text", "250 2..1 x\r\n", Reply{250, EnhancedCode{}, "2..1 x"}, 12, nil},
		{"a code without a detail is text", "250 2.1. x\r\n", Reply{250, EnhancedCode{}, "2.1. x"}, 12, nil},
		{"four digits are text", "250 2.0.1000 x\r\n", Reply{250, EnhancedCode{}, "2.0.1000 x"}, 16, nil},
		{"controls in the text", "250 a\x00b\x1b\r\n", Reply{250, EnhancedCode{}, "a?b?"}, 10, nil},
		{"UTF-8 in the text", "250 \u00e9\r\n", Reply{250, EnhancedCode{}, "\u00e9"}, 8, nil},
		{"nothing yet", "", Reply{}, 0, nil},
		{"half a code", "25", Reply{}, 0, nil},
		{"half a line", "250 Ok\r", Reply{}, 0, nil},
		{"half a reply", "250-a\r\n250", Reply{}, 0, nil},
		{"two codes in one reply", "250-a\r\n251 b\r\n", Reply{}, 0, ErrReplySyntax},
		{"two codes, the second half there", "250-a\r\n550", Reply{}, 0, ErrReplySyntax},
		{"no code", "hello\r\n", Reply{}, 0, ErrReplySyntax},
		{"no code, seen at the first byte", "h", Reply{}, 0, ErrReplySyntax},
		{"1yz", "150 x\r\n", Reply{}, 0, ErrReplySyntax},
		{"6yz", "650 x\r\n", Reply{}, 0, ErrReplySyntax},
		{"four digits", "2500 x\r\n", Reply{}, 0, ErrReplySyntax},
		{"empty line", "\r\n", Reply{}, 0, ErrReplySyntax},
		{"short line", "25\r\n", Reply{}, 0, ErrReplySyntax},
		{"bare LF", "250 Ok\n", Reply{}, 0, ErrReplySyntax},
		{"bare LF behind the code", "250\n", Reply{}, 0, ErrReplySyntax},
		{"bare CR", "250 O\rk\r\n", Reply{}, 0, ErrReplySyntax},
		{"1000 lines", many + "250 x\r\n", Reply{Code: 250, Text: strings.Repeat("x\n", MaxReplyLines-1) + "x"}, 7 * MaxReplyLines, nil},
		{"1001 lines", many + "250-x\r\n250 x\r\n", Reply{}, 0, ErrReplyTooLong},
		{"64 KiB", "250 " + strings.Repeat("x", MaxReplyBytes-6) + "\r\n", Reply{Code: 250, Text: strings.Repeat("x", MaxReplyBytes-6)}, MaxReplyBytes, nil},
		{"one byte more", "250 " + strings.Repeat("x", MaxReplyBytes-5) + "\r\n", Reply{}, 0, ErrReplyTooLong},
		{"64 KiB without an end", "250 " + strings.Repeat("x", MaxReplyBytes-4), Reply{}, 0, ErrReplyTooLong},
	} {
		r, n, err := ParseReply([]byte(c.in))
		if r != c.want || n != c.n || err != c.err {
			t.Errorf("%s: got %.80q %v, %d, %v", c.name, r.Text, r.Enhanced, n, err)
		}
	}
}

func TestReplyIsCompleteOnlyAtItsEnd(t *testing.T) {
	in := []byte("550-5.7.23 a\r\n550-\r\n550 5.7.23\r\n")
	for cut := range in {
		if r, n, err := ParseReply(in[:cut]); r != (Reply{}) || n != 0 || err != nil {
			t.Fatalf("cut at %d: %+v, %d, %v", cut, r, n, err)
		}
	}
	if r, n, err := ParseReply(in); r != (Reply{550, EnhancedCode{5, 7, 23}, "a\n\n"}) || n != len(in) || err != nil {
		t.Fatalf("%+v, %d, %v", r, n, err)
	}
}

func TestReplyAppendDoesNotAllocate(t *testing.T) {
	r := Reply{550, EnhancedCode{5, 7, 23}, "one\ntwo\x00"}
	dst := make([]byte, 0, 128)
	if a := testing.AllocsPerRun(100, func() { r.AppendTo(dst) }); a != 0 {
		t.Fatal(a)
	}
}

// Append then Parse gives the value back; what Parse accepts, Append and Parse keep.
func FuzzReply(f *testing.F) {
	f.Add(uint16(250), uint16(1), uint16(5), "Ok\nmore", []byte("250-2.1.0 a\r\n250 2.1.0 b\r\n"))
	f.Add(uint16(354), uint16(0), uint16(0), "", []byte("354\r\n"))
	f.Add(uint16(550), uint16(999), uint16(0), "5.1.1 looks like a code", []byte("550 5.1.1\r\n"))
	f.Fuzz(func(t *testing.T, code, subject, detail uint16, text string, wire []byte) {
		r := Reply{Code: 200 + code%400, Text: text}
		if r.Code/100 != 3 {
			r.Enhanced = EnhancedCode{r.Code / 100, subject % 1000, detail % 1000}
		}
		sent := r.AppendTo(nil)
		lines := strings.SplitAfter(string(sent), "\r\n")
		for _, line := range lines[:len(lines)-1] {
			if len(line) > MaxReplyLineBytes || strings.Trim(line, "\r\n") != line[:len(line)-2] {
				t.Fatalf("%q", line)
			}
			if strings.IndexFunc(line[:len(line)-2], func(c rune) bool { return c < ' ' || c > '~' }) >= 0 {
				t.Fatalf("%q", line)
			}
		}
		if len(sent) <= MaxReplyBytes && len(lines)-1 <= MaxReplyLines {
			room := MaxReplyLineBytes - len("250 \r\n")
			if r.Enhanced != (EnhancedCode{}) {
				room -= len(fmt.Sprintf("%d.%d.%d ", r.Enhanced.Class, r.Enhanced.Subject, r.Enhanced.Detail))
			}
			var kept []string
			for line := range strings.SplitSeq(text, "\n") {
				clean := []byte(line[:min(room, len(line))])
				for i, c := range clean {
					if c < ' ' || c > '~' {
						clean[i] = '?'
					}
				}
				kept = append(kept, string(clean))
			}
			want := Reply{r.Code, r.Enhanced, strings.Join(kept, "\n")}
			got, n, err := ParseReply(sent)
			if got != want || n != len(sent) || err != nil {
				t.Fatalf("%+v sent as %q, read as %+v, %d, %v", r, sent, got, n, err)
			}
		}

		p, n, err := ParseReply(wire)
		if err != nil || n == 0 {
			return
		}
		q, _, err := ParseReply(p.AppendTo(nil))
		if err != nil || q.Code != p.Code || strings.Count(q.Text, "\n") != strings.Count(p.Text, "\n") {
			t.Fatalf("%q read as %+v, then %+v, %v", wire, p, q, err)
		}
	})
}
