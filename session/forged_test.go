package session

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/pool"
)

// RFC 8601 §5: what bears our name goes, in any spelling and folding; everything else stays, byte for byte.
func TestForgedResultsAreRemoved(t *testing.T) {
	const id = "mx.example.net"
	pad := "Subject: " + strings.Repeat("x", 9000) + "\r\n"
	const same = "\x00"
	for _, c := range []struct{ in, want string }{
		{"Authentication-Results: mx.example.net; spf=pass\r\nA: b\r\n\r\nbody", "A: b\r\n\r\nbody"},
		{"A: b\r\nauthentication-RESULTS :\tMX.Example.NET 1;\r\n spf=pass\r\n\tx\r\nC: d\r\n\r\n", "A: b\r\nC: d\r\n\r\n"},
		{"Authentication-Results: (c\\) (d)) \"mx.example.net\"; x\r\nAuthentication-Results:\r\n mx.example.net\r\n\r\n", "\r\n"},
		{"Authentication-Results: mx.example.net.evil; x\r\n\r\n", same},
		{"Authentication-Results: other.example; spf=pass mx.example.net\r\n\r\n", same},
		{"X-Authentication-Results: mx.example.net\r\n\r\n", same},
		{"Authentication-Result: mx.example.net\r\nAuthentication-Resultsx: mx.example.net\r\n\r\n", same},
		{"\r\nAuthentication-Results: mx.example.net; in the body\r\n", same},
		{"Authentication-Results: mx.example.net", ""},
		{"Authentication-Results: mx.example.net; x", ""},
		{strings.Repeat("Authentication-Results: mx.example.net; x\r\n", maxForged) + "\r\n", "\r\n"},
		{strings.Repeat("Authentication-Results: mx.example.net; x\r\n", maxForged+1) + "\r\n", same},
		{"Authentication-Results: (" + strings.Repeat("(", 3000) + " mx.example.net; x\r\nA: b\r\n\r\n", "A: b\r\n\r\n"},
		{pad + "Authentication-Results: mx.example.net; x\r\n" + pad + "\r\nbody", pad + pad + "\r\nbody"},
		{"A: b\r\n Authentication-Results: mx.example.net; folded\r\n\r\n", same},
		{"Authentication-Results: mx.example.net(c); x\r\n\r\n", "\r\n"},
		{"", same},
	} {
		want := c.want
		if want == same {
			want = c.in
		}
		for _, piece := range []int{1 << 20, 8192, 1000} {
			l := pool.NewList(1<<20, nil)
			var ch pool.Chain
			for in := []byte(c.in); len(in) > 0; {
				n := min(piece, len(in))
				ch.Append(l, in[:n])
				in = in[n:]
			}
			if tooMany := removeForged(&ch, id); tooMany != (strings.Count(c.in, "; x\r\n") > maxForged) {
				t.Errorf("%.80q: too many is %v", c.in, tooMany)
			}
			if got := string(bytes.Join(ch.AppendBuffers(nil), nil)); got != want {
				t.Fatalf("%.80q: %.80q, want %.80q", c.in, got, want)
			}
		}
	}
}

// Wherever a message's chunks end, the same is found.
func TestForgedResultsAreFoundInAnyPieces(t *testing.T) {
	const id = "mx.example.net"
	const kept = "A: b\r\n\tc\r\n"
	for _, forged := range []string{
		"Authentication-Results: mx.example.net; x\r\n",
		"authentication-results :\r\n (a \\( b) \"mx.example.net\" 1;\r\n\tx\r\n",
	} {
		text := kept + forged + kept + forged + "\r\n" + forged
		for cut := range len(text) + 1 {
			pad := "P: " + strings.Repeat("x", 8<<10-cut-len("P: \r\n")) + "\r\n" // up to the end of the first chunk, but for cut bytes
			l := pool.NewList(1<<20, nil)
			var ch pool.Chain
			ch.Append(l, []byte(pad+text))
			if n := len(ch.First().Bytes()); n != len(pad)+cut && cut < len(text) {
				t.Fatalf("the first chunk has %d bytes", n)
			}
			if removeForged(&ch, id) {
				t.Fatalf("%q cut at %d is refused", text, cut)
			}
			if got := string(bytes.Join(ch.AppendBuffers(nil), nil)); got != pad+kept+kept+"\r\n"+forged {
				t.Fatalf("%q cut at %d: %q", text, cut, got[len(pad):])
			}
		}
	}
}

// The search runs on the event loop, so it is bounded: a header section at the bound is searched, one past it is refused.
func TestTheSearchForForgedFieldsIsBounded(t *testing.T) {
	for extra, want := range map[int]bool{0: false, 1: true} {
		for _, end := range []string{"", "\r\n\r\nbody behind it"} {
			l := pool.NewList(4<<20, nil)
			var ch pool.Chain
			fill := maxSearched - len("A: ") - min(len(end), 4) + extra
			ch.Append(l, []byte("A: "+strings.Repeat("x", fill)+end))
			if got := removeForged(&ch, "mx.example.net"); got != want {
				t.Errorf("%d past the bound, end %q: refused is %v", extra, end, got)
			}
		}
	}
}
