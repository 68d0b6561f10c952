package loadtest

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// planOf is a plan of messages of one size.
func planOf(t testing.TB, n int) *plan {
	t.Helper()
	o, err := Options{Target: "127.0.0.1:25", Size: FixedSize(n)}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return newPlan(o)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// unstuff takes away what DATA added: the end of data, and a dot of each line that begins with two. RFC 5321 §4.5.2.
func unstuff(t *testing.T, data []byte) []byte {
	t.Helper()
	data, ok := bytes.CutSuffix(data, []byte("\r\n.\r\n"))
	if !ok {
		t.Fatal("no end of data")
	}
	return bytes.ReplaceAll(append(data, "\r\n"...), []byte("\r\n.."), []byte("\r\n."))
}

func TestMessagesHaveTheSizeAskedForAndAreWhole(t *testing.T) {
	smallest := planOf(t, 512).classes[0].size
	if smallest > 700 {
		t.Errorf("the smallest message has %d octets", smallest)
	}
	sizes := []int{16 << 10, 65535, 65536, 100_001, 1 << 20}
	for n := 512; n <= 3000; n++ {
		sizes = append(sizes, n)
	}
	for n := 5000; n < 5000+2*lineLen*dottedLines; n += 61 {
		sizes = append(sizes, n)
	}
	register := &ledger.Register{}
	for _, n := range sizes {
		p := planOf(t, n)
		c := newComposer(p, 1)
		m := c.draw(1234567890, 0)
		_, head, shared, tail := c.data([]byte("prefix"), m, true)
		plain := join(head, shared, tail)
		_, head, shared, tail = c.data(nil, m, false)
		if got := unstuff(t, join(head, shared, tail)); !bytes.Equal(got, plain) {
			t.Fatalf("%d: the stuffed form is another message", n)
		}
		if len(plain) != max(n, smallest) || c.size(m) != len(plain) {
			t.Fatalf("%d: has %d octets, and says %d", n, len(plain), c.size(m))
		}
		if rest := bytes.ReplaceAll(plain, []byte("\r\n"), nil); bytes.ContainsAny(rest, "\r\n") || !bytes.HasSuffix(plain, []byte("\r\n")) {
			t.Fatalf("%d: a bare CR or LF, or no CRLF at the end", n)
		}
		for line := range bytes.SplitSeq(plain, []byte("\r\n")) {
			if len(line) > 998 {
				t.Fatalf("%d: a line of %d octets", n, len(line))
			}
		}
		if n > 5000 && !bytes.Contains(plain, []byte("\r\n.")) {
			t.Fatalf("%d: no line begins with a dot", n)
		}
		field, _, _ := bytes.Cut(plain, []byte("\r\n"))
		header, body, _ := bytes.Cut(plain, []byte("\r\n\r\n"))
		mark, ok := ledger.ParseMark(field)
		if !ok || mark.Seq != m.seq || mark.Run != p.run || mark.Body != sha256.Sum256(body) || mark.Head != ledger.HeadSum(append(header, "\r\n"...)[ledger.MarkLen:]) {
			t.Fatalf("%d: mark %+v, %v", n, mark, ok)
		}
		in := ledger.NewInspection(register)
		in.Reset(p.appendRecipient(nil, m.seq, 0))
		in.Write(plain)
		if f := in.Finish(); !f.Marked || !f.BodyIntact || !f.HeadIntact {
			t.Fatalf("%d: a receiver finds %+v", n, f)
		}
	}
}

func TestEachMessageHasAnotherBody(t *testing.T) {
	p := planOf(t, 600)
	c := newComposer(p, 1)
	seen := map[[32]byte]bool{}
	for seq := range uint64(100) {
		_, head, shared, tail := c.data(nil, c.draw(seq, 0), true)
		_, body, _ := bytes.Cut(join(head, shared, tail), []byte("\r\n\r\n"))
		seen[sha256.Sum256(body)] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d bodies", len(seen))
	}
}

func TestMessagesAreDrawnWithinTheirBounds(t *testing.T) {
	o, err := Options{Target: "127.0.0.1:25", Size: Sizes{"x", 1000, 9000, 0, 0}, Recipients: Range{2, 4}, BDAT: 0.25}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	c := newComposer(newPlan(o), 1)
	var bytes, bdat, recipients int
	const n = 20000
	for seq := range uint64(n) {
		m := c.draw(seq, 0)
		if size := c.size(m); size < 1000 || size > 9000 || m.recipients < 2 || m.recipients > 4 {
			t.Fatalf("%d octets to %d", size, m.recipients)
		}
		bytes += c.size(m)
		recipients += m.recipients
		if m.bdat {
			bdat++
		}
	}
	if mean := bytes / n; mean < 4800 || mean > 5200 {
		t.Errorf("mean size %d", mean)
	}
	if bdat < n/5 || bdat > n*3/10 || recipients < n*29/10 || recipients > n*31/10 {
		t.Errorf("%d by BDAT, %d recipients", bdat, recipients)
	}
}
