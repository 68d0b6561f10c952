package relay

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/smtpcodec"
)

// stuffByte is the oracle: one byte at a time, no state but the output.
func stuffByte(in []byte) (out []byte, ok bool) {
	for i, c := range in {
		if c == '\n' && (i == 0 || in[i-1] != '\r') || c == '\r' && (i+1 == len(in) || in[i+1] != '\n') {
			return nil, false
		}
		if c == '.' && (i == 0 || in[i-1] == '\n') {
			out = append(out, '.')
		}
		out = append(out, c)
	}
	if len(in) > 0 && !bytes.HasSuffix(in, []byte("\r\n")) {
		out = append(out, "\r\n"...)
	}
	return append(out, ".\r\n"...), true
}

// Every message of up to 8 symbols, cut in two at every place: stuffing agrees with the oracle, and the codec's scanner gives the
// message back.
func TestStuffAllShortInputs(t *testing.T) {
	const symbols = ".\r\na"
	var in [8]byte
	dst := make([]byte, 64)
	for length := range len(in) + 1 {
		for n := range 1 << (2 * length) {
			for i := range length {
				in[i] = symbols[n>>(2*i)&3]
			}
			msg := in[:length]
			want, valid := stuffByte(msg)
			for cut := range length + 1 {
				var s stuffer
				out, ok := s.appendTo(nil, msg[:cut])
				if ok {
					out, ok = s.appendTo(out, msg[cut:])
				}
				if ok {
					out, ok = s.finish(out)
				}
				if ok != valid || ok && !bytes.Equal(out, want) {
					t.Fatalf("%q cut at %d: %q %v, want %q %v", msg, cut, out, ok, want, valid)
				}
			}
			if !valid {
				continue
			}
			var scanner smtpcodec.DataScanner
			m, consumed, done := scanner.Scan(dst, want)
			back := strings.TrimSuffix(string(dst[:m]), "\r\n")
			if !done || consumed != len(want) || back != strings.TrimSuffix(string(msg), "\r\n") {
				t.Fatalf("%q stuffed %q scanned back as %q", msg, want, dst[:m])
			}
		}
	}
}

// The worst case for the size of the output: a dot on every line.
func TestStuffedBlockFitsItsBuffer(t *testing.T) {
	block := bytes.Repeat([]byte(".\r\n"), maxBlockBytes/3+1)[:maxBlockBytes]
	var s stuffer
	out, ok := s.appendTo(nil, block)
	if !ok {
		t.Fatal("refused")
	}
	if out, ok = s.finish(out); !ok || len(out) > outBytes {
		t.Fatalf("%d bytes, buffer holds %d", len(out), outBytes)
	}
}

// ordinary is mail as it is: lines of some 70 characters, a few dots at line starts.
func ordinary(size int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < size; i++ {
		if i%50 == 0 {
			b.WriteByte('.')
		}
		b.WriteString("the quick brown fox jumps over the lazy dog and over the lazy dog.\r\n")
	}
	return b.Bytes()
}

func BenchmarkStuff(b *testing.B) {
	msg := ordinary(48 << 10)[:48<<10]
	dst := make([]byte, 0, outBytes)
	b.Run("impl=fastedge/size=48KiB", func(b *testing.B) {
		b.SetBytes(int64(len(msg)))
		b.ReportAllocs()
		for b.Loop() {
			var s stuffer
			s.appendTo(dst, msg)
		}
	})
	b.Run("impl=naive/size=48KiB", func(b *testing.B) {
		b.SetBytes(int64(len(msg)))
		b.ReportAllocs()
		for b.Loop() {
			out := dst[:0]
			prev := byte('\n')
			bare := false
			for _, c := range msg {
				if prev == '\n' && c == '.' {
					out = append(out, '.')
				}
				if (c == '\n') != (prev == '\r') {
					bare = true
				}
				out = append(out, c)
				prev = c
			}
			_ = bare
		}
	})
}
