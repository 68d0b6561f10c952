package smtpcodec

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/textproto"
	"regexp"
	"strings"
	"testing"
)

// ordinaryMessage is size bytes of 76-character lines, one in 20 of them dot-stuffed, without the end mark.
func ordinaryMessage(size int) []byte {
	line := strings.Repeat("The quick brown fox jumps. ", 3)[:74] + "\r\n"
	var b bytes.Buffer
	for k := 0; b.Len() < size; k++ {
		if k%20 == 7 {
			b.WriteString("..")
		}
		b.WriteString(line)
	}
	return append(b.Bytes()[:size-2], '\r', '\n')
}

var dataSizes = []struct {
	name string
	size int
}{{"4KiB", 4 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}}

func BenchmarkDataScan(b *testing.B) {
	for _, s := range dataSizes {
		b.Run("impl=fastedge/size="+s.name, func(b *testing.B) { benchScan(b, append(ordinaryMessage(s.size), ".\r\n"...), 64<<10) })
	}
	b.Run("impl=fastedge/size=64KiB/read=32KiB", func(b *testing.B) { benchScan(b, append(ordinaryMessage(64<<10), ".\r\n"...), 32<<10) })
	b.Run("impl=fastedge/size=64KiB/lines=empty", func(b *testing.B) {
		benchScan(b, append(bytes.Repeat([]byte("\r\n"), 32<<10), ".\r\n"...), 64<<10)
	})
	benchScanByteAtATime(b)
	benchScanTextproto(b)
}

func benchScan(b *testing.B, wire []byte, chunk int) {
	dst := make([]byte, chunk)
	var d DataScanner
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	for b.Loop() {
		d.Reset()
		for in, done := wire, false; !done; {
			var consumed int
			_, consumed, done = d.Scan(dst, in)
			in = in[consumed:]
		}
	}
}

// The twin does the same work one byte at a time, over memory.
func benchScanByteAtATime(b *testing.B) {
	for _, s := range dataSizes {
		b.Run("impl=naive-bytes/size="+s.name, func(b *testing.B) {
			wire := append(ordinaryMessage(s.size), ".\r\n"...)
			dst := make([]byte, 0, len(wire)+2)
			b.SetBytes(int64(len(wire)))
			b.ReportAllocs()
			for b.Loop() {
				var d byteScanner
				if _, _, done := d.scan(dst[:0], wire); !done {
					b.Fatal("no end")
				}
			}
		})
	}
}

// The second twin is the standard library's reader of dot-stuffed text. It does less (no checks) and accepts bare LF as a line end.
func benchScanTextproto(b *testing.B) {
	for _, s := range dataSizes {
		b.Run("impl=naive-textproto/size="+s.name, func(b *testing.B) {
			wire := append(ordinaryMessage(s.size), ".\r\n"...)
			dst := make([]byte, len(wire)+2)
			br := bufio.NewReaderSize(nil, 64<<10)
			src := bytes.NewReader(nil)
			b.SetBytes(int64(len(wire)))
			b.ReportAllocs()
			for b.Loop() {
				src.Reset(wire)
				br.Reset(src)
				dot := textproto.NewReader(br).DotReader()
				if _, err := io.ReadFull(dot, dst); err != io.ErrUnexpectedEOF {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDataChunk(b *testing.B) {
	for _, s := range dataSizes {
		b.Run("size="+s.name, func(b *testing.B) {
			wire := ordinaryMessage(s.size)
			dst := make([]byte, len(wire))
			var d DataScanner
			b.SetBytes(int64(len(wire)))
			b.ReportAllocs()
			for b.Loop() {
				d.Reset()
				d.ScanChunk(dst, wire)
				d.EndChunks(nil)
			}
		})
	}
}

const (
	benchMail  = "MAIL FROM:<bounces+12345-user=example.net@mail.example.com> SIZE=43210 BODY=8BITMIME\r\n"
	benchOffer = OfferSize | Offer8BitMIME | OfferSMTPUTF8 | OfferDSN
)

func BenchmarkParseMail(b *testing.B) {
	b.Run("impl=fastedge", benchParseMail)
	b.Run("impl=naive", benchParseMailNaive)
}

func benchParseMail(b *testing.B) {
	in := []byte(benchMail)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		line, _, _ := ScanLine(in, 2048, false)
		v, arg := ParseCommand(line)
		a, err := ParseMail(arg, benchOffer)
		if v != VerbMAIL || err != ErrNone || a.Size != 43210 {
			b.Fatal(v, err, a.Size)
		}
	}
}

var (
	naiveMail  = regexp.MustCompile(`(?i)^FROM:\s*<([^<>@\s]+@[^<>@\s]+)?>(.*)$`)
	naiveParam = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9-]*)(=([!-<>-~]+))?$`)
)

// The twin is the handler one would write first: bufio, Fields, regular expressions, a map of parameters.
func benchParseMailNaive(b *testing.B) {
	in := []byte(benchMail)
	src := bytes.NewReader(in)
	br := bufio.NewReader(src)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		src.Reset(in)
		br.Reset(src)
		line, _ := br.ReadString('\n')
		verb, arg, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		m := naiveMail.FindStringSubmatch(arg)
		if strings.ToUpper(verb) != "MAIL" || m == nil {
			b.Fatal(verb, m)
		}
		params := map[string]string{}
		for _, f := range strings.Fields(m[2]) {
			p := naiveParam.FindStringSubmatch(f)
			if p == nil {
				b.Fatal(f)
			}
			params[strings.ToUpper(p[1])] = p[3]
		}
		if params["SIZE"] != "43210" {
			b.Fatal(params)
		}
	}
}

func BenchmarkParseRcpt(b *testing.B) {
	in := []byte("RCPT TO:<someone@example.net>\r\n")
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		line, _, _ := ScanLine(in, 2048, false)
		_, arg := ParseCommand(line)
		if _, err := ParseRcpt(arg, benchOffer, false); err != ErrNone {
			b.Fatal(err)
		}
	}
}

var benchReply = Reply{250, EnhancedCode{2, 1, 5}, "Recipient <someone@example.net> Ok"}

func BenchmarkReplyAppend(b *testing.B) {
	b.Run("impl=fastedge", benchReplyAppend)
	b.Run("impl=naive", benchReplyAppendSprintf)
}

func benchReplyAppend(b *testing.B) {
	dst := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		dst = benchReply.AppendTo(dst[:0])
	}
}

func benchReplyAppendSprintf(b *testing.B) {
	dst := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		dst = dst[:0]
		r := &benchReply
		lines := strings.Split(r.Text, "\n")
		for i, line := range lines {
			sep := " "
			if i < len(lines)-1 {
				sep = "-"
			}
			dst = append(dst, fmt.Sprintf("%d%s%d.%d.%d %s\r\n", r.Code, sep, r.Enhanced.Class, r.Enhanced.Subject, r.Enhanced.Detail, line)...)
		}
	}
}
