package config

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Size
	}{
		{"0", 0}, {"0B", 0}, {"1B", 1}, {"1kB", 1000}, {"1KiB", 1024}, {"25MiB", 25 << 20}, {"25MB", 25e6}, {"1GiB", 1 << 30},
		{"2GB", 2e9}, {"1TiB", 1 << 40}, {"3TB", 3e12}, {"9223372036854775807B", math.MaxInt64}, {"8388607TiB", 8388607 << 40},
	} {
		got, err := ParseSize(c.in)
		if err != nil || got != c.want {
			t.Errorf("%q: got %d, %v, want %d", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{"", "1", "25", "MiB", "-1B", "+1B", "1.5MiB", "25 MiB", "25M", "25mib", "25Mib", "9223372036854775808B",
		"8388608TiB", "9223373TB", "1KiB ", " 1KiB", "1KiB1", "0x1B", "１B"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
}

func TestDurations(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
	}{
		{"0", 0}, {"0s", 0}, {"1us", time.Microsecond}, {"5ms", 5 * time.Millisecond}, {"30s", 30 * time.Second}, {"5m", 5 * time.Minute},
		{"1h", time.Hour}, {"5d", 120 * time.Hour}, {"1d12h", 36 * time.Hour}, {"1h30m", 90 * time.Minute}, {"1.5h", 90 * time.Minute},
		{"106751d", 106751 * day}, {"9223372036854775807ns", math.MaxInt64},
	} {
		got, err := ParseDuration(c.in)
		if err != nil || got != c.want {
			t.Errorf("%q: got %v, %v, want %v", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{"", "5", "300", "-5m", "+5m", "5 m", "m", "5x", "5minutes", "1.5d", "106752d", "106751d24h", "9223372036854775808ns",
		"5m3", ".", ".s", "5m ", "99999999999999999999d"} {
		if got, err := ParseDuration(in); err == nil {
			t.Errorf("%q: got %v, want an error", in, got)
		}
	}
}

// Whatever is accepted is not negative, and its text form gives the same value back.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"0", "25MiB", "1kB", "9223372036854775807B", "8388607TiB", "25", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseSize(s)
		if err != nil {
			return
		}
		again, err := ParseSize(v.String())
		if v < 0 || err != nil || again != v {
			t.Fatalf("%q is %d, whose text %q is %d, %v", s, v, v.String(), again, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"0", "5m", "5d", "1d12h30m1.5s", "106751d23h47m16.854775807s", "1h2us", "5", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		again, err := ParseDuration(FormatDuration(d))
		if d < 0 || err != nil || again != d {
			t.Fatalf("%q is %d, whose text %q is %d, %v", s, d, FormatDuration(d), again, err)
		}
	})
}

// No file makes the loader panic, and what it accepts loads again from what it shows.
func FuzzLoad(f *testing.F) {
	f.Add([]byte("hostname = \"mx.example.net\"\n[[listen]]\naddress = \"127.0.0.1:25\"\n[limits]\nerrors = 3\n"))
	f.Add([]byte("[spf.on.fail]\ncode = 550\n[tls]\ncertificates = [{ cert = \"a\" }]\n"))
	f.Add([]byte("a.\"b\".c = [[1, {d = 2}]]\n[[listen.x]]\n"))
	f.Add([]byte("[[rule]]\nat = 'mail'\nwhen = 'tls'\nreply = '550 x'\n[[hook]]\nat = ['rcpt']\nurl = 'http://a'\n[[milter]]\naddress = 'unix:/a'\n"))
	f.Add([]byte("[[listen]]\naddress = ':25'\ntls = 'implicit'\nauth = ['EXTERNAL']\nproxy_protocol_from = ['::/0']\n[tls]\ncertificates = [{}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := load("fuzz.toml", data, nil, nil)
		if err != nil {
			_ = err.Error()
			return
		}
		var shown strings.Builder
		if err := c.Show(&shown); err != nil {
			t.Fatal(err)
		}
		again, err := load("shown.toml", []byte(shown.String()), nil, nil)
		if err != nil || !equal(plain(*again), plain(*c)) {
			t.Fatalf("%v\n%s", err, shown.String())
		}
	})
}

func TestRepliesOfRules(t *testing.T) {
	for _, s := range []string{"550 5.7.1 Not from here", "421 closing", "250 2.1.0 fine", "450 4.999.999 x", "554 5.0.0 a.b.c", "550 5.7 is text",
		"550 " + strings.Repeat("x", maxReplyText)} {
		if err := checkReply(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{"", "550", "550 ", "550 5.7.1", "550 5.7.1 ", "55 x", "5500 x", "5x0 x", "150 x", "350 x", "650 x", "560 x", "550 2.1.0 x",
		"550 5.1000.1 x", "550 5.01.1 x", "550-5.7.1 x", "550 5.7.1 a\r\nb", "550 \x7f", "550 grün", "550 " + strings.Repeat("x", maxReplyText+1)} {
		if err := checkReply(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}
