package ledger

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/loadtest/report"
)

// deliver passes a good message to the register.
func deliver(g *Register, run RunID, seq uint64, i int) {
	g.Enter(AppendRecipient(nil, run, seq, i, "load.test"), Finding{Mark: Mark{Run: run, Seq: seq}, Marked: true, BodyIntact: true, HeadIntact: true})
}

func TestEnterKnowsDeliveriesByAddressAndMark(t *testing.T) {
	good := Finding{Mark: Mark{Run: testRun, Seq: 17}, Marked: true, BodyIntact: true, HeadIntact: true}
	changed, altered, other, otherRun := good, good, good, good
	changed.BodyIntact = false
	altered.HeadIntact = false
	other.Mark.Seq = 18
	otherRun.Mark.Run = 99
	const addressed, fixed = "<lt.0000000017.0002.0123456789abcdef@load.test>", "postmaster@load.test"
	for _, test := range []struct {
		name    string
		to      string
		f       Finding
		seq     uint64
		i       int
		times   int
		why     Corruption
		altered int64
	}{
		{"good", addressed, good, 17, 2, 1, Intact, 0},
		{"fixed address", fixed, good, 17, 0, 1, Intact, 0},
		{"body changed", addressed, changed, 17, 2, 1, BodyChanged, 0},
		{"fixed address, body changed", fixed, changed, 17, 0, 1, BodyChanged, 0},
		{"header altered", addressed, altered, 17, 2, 1, Intact, 1},
		{"mark of another message", addressed, other, 17, 2, 1, MarkContradicts, 0},
		{"mark of another run", addressed, otherRun, 17, 2, 1, MarkContradicts, 0},
		{"no mark", addressed, Finding{}, 17, 2, 1, MarkMissing, 0},
	} {
		var g Register
		g.Enter([]byte(test.to), test.f)
		r := g.Receipts(testRun)
		if r == nil {
			t.Errorf("%s: no receipts", test.name)
			continue
		}
		times, corrupt := r.Count(test.seq, test.i)
		received, corrupted, altered, _ := r.Totals()
		if times != test.times || corrupt != (test.why != Intact) || received != 1 || altered != test.altered {
			t.Errorf("%s: %d times, corrupt %v, %d received, %d altered", test.name, times, corrupt, received, altered)
		}
		if test.why != Intact && (corrupted != 1 || !reflect.DeepEqual(r.Corrupt(), []Corrupt{{test.seq, test.i, test.why}})) {
			t.Errorf("%s: %v", test.name, r.Corrupt())
		}
	}
	var g Register
	g.Enter([]byte(fixed), Finding{})
	if len(g.Runs()) != 0 || g.Strangers() != 1 {
		t.Errorf("a stranger: runs %v, %d strangers", g.Runs(), g.Strangers())
	}
}

func TestInspectionEntersEachRecipient(t *testing.T) {
	var g Register
	in := NewInspection(&g)
	var to [][]byte
	for i := range 3 {
		to = append(to, AppendRecipient(nil, testRun, 5, i, "load.test"))
	}
	in.Reset(to...)
	clear(to[1]) // borrowed until Reset returns
	in.Write(message(5, "", "Subject: a\r\n", "Hello\r\n"))
	in.Close()
	for i := range 3 {
		if n, corrupt := g.Receipts(testRun).Count(5, i); n != 1 || corrupt {
			t.Errorf("recipient %d: %d times, corrupt %v", i, n, corrupt)
		}
	}
	in.Close() // nothing is entered twice
	if n, _ := g.Receipts(testRun).Count(5, 0); n != 1 {
		t.Errorf("after a second Close: %d times", n)
	}
}

func TestCountsSaturate(t *testing.T) {
	var g Register
	for want := 1; want <= 5; want++ {
		deliver(&g, testRun, 7, 1)
		if n, _ := g.Receipts(testRun).Count(7, 1); n != min(want, 3) {
			t.Errorf("after %d deliveries: %d", want, n)
		}
	}
	for _, near := range []uint64{6, 8} {
		if n, _ := g.Receipts(testRun).Count(near, 1); n != 0 {
			t.Errorf("message %d: %d", near, n)
		}
	}
}

func TestReceiptsBoundary(t *testing.T) {
	var g Register
	deliver(&g, testRun, MaxDeliveries-1, MaxRecipients-1)
	deliver(&g, testRun, MaxDeliveries, 0)
	r := g.Receipts(testRun)
	if n, _ := r.Count(MaxDeliveries-1, MaxRecipients-1); n != 1 || r.Beyond() != 1 {
		t.Errorf("%d times, %d beyond", n, r.Beyond())
	}
	if n, _ := r.Count(MaxDeliveries, 0); n != 0 {
		t.Errorf("beyond: %d times", n)
	}
}

func TestRegisterKeepsTheLatestRuns(t *testing.T) {
	var g Register
	for run := RunID(1); run <= MaxRuns; run++ {
		deliver(&g, run, 0, 0)
	}
	if runs := g.Runs(); len(runs) != MaxRuns || runs[0] != 1 {
		t.Errorf("%v", runs)
	}
	deliver(&g, MaxRuns+1, 0, 0)
	if runs := g.Runs(); len(runs) != MaxRuns || runs[0] != 2 || g.Receipts(1) != nil {
		t.Errorf("one more: %v", runs)
	}
}

func TestCorruptListIsBounded(t *testing.T) {
	var g Register
	for seq := range uint64(MaxCorrupt + 1) {
		g.Enter(AppendRecipient(nil, testRun, seq, 0, "a"), Finding{})
	}
	r := g.Receipts(testRun)
	if _, corrupt, _, _ := r.Totals(); corrupt != MaxCorrupt+1 || len(r.Corrupt()) != MaxCorrupt {
		t.Errorf("%d corrupt, %d listed", corrupt, len(r.Corrupt()))
	}
}

// each outcome, arrived as often as said, and what must come of it
func TestJudge(t *testing.T) {
	for _, test := range []struct {
		name  string
		o     Outcome
		times int
		bad   bool // corrupt in one of them
		want  report.Verdict
	}{
		{"acknowledged, arrived", Acknowledged, 1, false, report.Verdict{Acknowledged: 1, Received: 1, Pass: true}},
		{"acknowledged, lost", Acknowledged, 0, false, report.Verdict{Acknowledged: 1, Lost: 1, Examples: []string{"lost: message 17 to recipient 1"}}},
		{"acknowledged, twice", Acknowledged, 2, false,
			report.Verdict{Acknowledged: 1, Received: 1, Duplicates: 1, Examples: []string{"duplicate: message 17 to recipient 1 arrived twice"}}},
		{"acknowledged, often", Acknowledged, 9, false,
			report.Verdict{Acknowledged: 1, Received: 1, Duplicates: 1, Examples: []string{"duplicate: message 17 to recipient 1 arrived three times or more"}}},
		{"acknowledged, corrupt and not lost", Acknowledged, 1, true,
			report.Verdict{Acknowledged: 1, Received: 1, Corrupt: 1, Examples: []string{"corrupt: message 17 to recipient 1 has no legible mark"}}},
		{"unknown, arrived", Unknown, 1, false, report.Verdict{Unknown: 1, Received: 1, Pass: true}},
		{"unknown, not", Unknown, 0, false, report.Verdict{Unknown: 1, Pass: true}},
		{"unknown, twice", Unknown, 2, false, report.Verdict{Unknown: 1, Received: 1, Repeats: 1, Pass: true}},
		{"refused", Refused, 0, false, report.Verdict{Refused: 1, Pass: true}},
		{"refused, arrived", Refused, 1, false,
			report.Verdict{Refused: 1, Received: 1, Phantom: 1, Examples: []string{"phantom: message 17 to recipient 1 arrived and was refused"}}},
		{"unsent", Unsent, 0, false, report.Verdict{Pass: true}},
		{"unsent, arrived", Unsent, 2, false,
			report.Verdict{Received: 1, Phantom: 1, Examples: []string{"phantom: message 17 to recipient 1 arrived and was unsent"}}},
	} {
		var g Register
		b := NewBook(testRun, 2)
		b.Note(17, 1, test.o)
		for n := range test.times {
			if test.bad && n == 0 {
				g.Enter(AppendRecipient(nil, testRun, 17, 1, "a"), Finding{})
			} else {
				deliver(&g, testRun, 17, 1)
			}
		}
		if got := Judge(b, g.of(testRun)); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", test.name, got, test.want)
		}
	}
}

func TestJudgeSeesPhantomsOutsideTheBook(t *testing.T) {
	var g Register
	b := NewBook(testRun, 2)
	b.Note(0, 0, Acknowledged)
	deliver(&g, testRun, 0, 0)
	deliver(&g, testRun, 1, 1)         // in the book's first page
	deliver(&g, testRun, 0, 2)         // beyond the stride
	deliver(&g, testRun, 1<<20, 0)     // beyond the book
	deliver(&g, testRun, 1<<20+1, 999) // both
	if v := Judge(b, g.Receipts(testRun)); v.Phantom != 4 || v.Received != 5 || v.Pass {
		t.Errorf("%+v", v)
	}
}

// Random outcomes in random order against sums taken one by one.
func TestJudgeAddsUp(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const messages, stride = 50_000, 5
	b := NewBook(testRun, stride)
	var g Register
	var want report.Verdict
	for range messages {
		seq := b.Next()
		for i := range 1 + rnd.IntN(stride) {
			o := Outcome(rnd.IntN(4))
			if o != Unsent {
				b.Note(seq, i, o)
			}
			times := rnd.IntN(3)
			for range times {
				deliver(&g, testRun, seq, i)
			}
			want.Received += int64(min(times, 1))
			switch {
			case o == Acknowledged:
				want.Acknowledged++
				want.Lost += int64(1 - min(times, 1))
				want.Duplicates += int64(times / 2)
			case o == Unknown:
				want.Unknown++
				want.Repeats += int64(times / 2)
			default:
				want.Refused += int64(o)
				want.Phantom += int64(min(times, 1))
			}
		}
	}
	got := Judge(b, g.Receipts(testRun))
	if len(got.Examples) != maxExamples {
		t.Errorf("%d examples", len(got.Examples))
	}
	for _, kind := range []string{"lost: ", "duplicate: ", "phantom: "} {
		if !strings.Contains(strings.Join(got.Examples, "\n"), kind) {
			t.Errorf("no example of %q in %q", kind, got.Examples)
		}
	}
	got.Examples = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

func TestJudgeDoesNotPassWhatDidNotFit(t *testing.T) {
	var g Register
	b := NewBook(testRun, 1)
	b.Note(MaxDeliveries, 0, Acknowledged)
	if v := Judge(b, g.of(testRun)); v.Pass || len(v.Examples) != 1 {
		t.Errorf("%+v", v)
	}
	b = NewBook(testRun, 1)
	deliver(&g, testRun, MaxDeliveries, 0)
	if v := Judge(b, g.of(testRun)); v.Pass || len(v.Examples) != 1 {
		t.Errorf("%+v", v)
	}
}

// sampleReceipts have something of everything.
func sampleReceipts() *Receipts {
	rnd := rand.New(rand.NewPCG(3, 4))
	var g Register
	for seq := range uint64(40_000) {
		deliver(&g, testRun, seq, 0)
		if rnd.IntN(3) == 0 {
			deliver(&g, testRun, seq, 1)
		}
	}
	deliver(&g, testRun, MaxDeliveries-1, MaxRecipients-1)
	deliver(&g, testRun, MaxDeliveries, 0)
	g.Enter(AppendRecipient(nil, testRun, 5, 5, "a"), Finding{})
	g.Enter(AppendRecipient(nil, testRun, 6, 5, "a"), Finding{Mark: Mark{Run: testRun, Seq: 6}, Marked: true})
	g.Enter([]byte("stranger@load.test"), Finding{})
	return g.Receipts(testRun)
}

func same(a, b *Receipts) bool {
	return a.run == b.run && reflect.DeepEqual(a.pages, b.pages) && reflect.DeepEqual(a.corrupt, b.corrupt) &&
		a.strangers == b.strangers && a.beyond == b.beyond
}

func TestReceiptsRoundTrip(t *testing.T) {
	for name, r := range map[string]*Receipts{"empty": NewReceipts(1), "sample": sampleReceipts()} {
		text := r.AppendTo(nil)
		got, err := ReadReceipts(bytes.NewReader(text))
		if err != nil || !same(got, r) {
			t.Errorf("%s: %v", name, err)
		}
		file := filepath.Join(t.TempDir(), "receipts")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadReceiptsFile(file); err != nil || !same(got, r) {
			t.Errorf("%s, from a file: %v", name, err)
		}
	}
}

func TestReceiptsOfAGoodRunAreSmall(t *testing.T) {
	var g Register
	for seq := range uint64(1 << 20) {
		deliver(&g, testRun, seq, 0)
	}
	if n := len(g.Receipts(testRun).AppendTo(nil)); n > 2000 {
		t.Errorf("%d octets for a million deliveries", n)
	}
}

func TestDamagedReceiptsAreRefused(t *testing.T) {
	r := sampleReceipts()
	text := r.AppendTo(nil)
	step := max(1, len(text)/2000)
	for i := 0; i < len(text); i += step {
		if _, err := ReadReceipts(bytes.NewReader(text[:i])); !errors.Is(err, ErrBadReceipts) {
			t.Fatalf("cut at %d: %v", i, err)
		}
		bad := bytes.Clone(text)
		bad[i] ^= 0x10
		if _, err := ReadReceipts(bytes.NewReader(bad)); err == nil {
			t.Fatalf("bit changed at %d: taken", i)
		}
	}
	if _, err := ReadReceipts(bytes.NewReader(append(text, 0))); !errors.Is(err, ErrBadReceipts) {
		t.Errorf("one octet more: %v", err)
	}
}

func FuzzReadReceipts(f *testing.F) {
	var g Register
	deliver(&g, testRun, 5, 0)
	g.Enter(AppendRecipient(nil, testRun, 6, 5, "a"), Finding{})
	f.Add(NewReceipts(1).AppendTo(nil))
	f.Add(g.Receipts(testRun).AppendTo(nil))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ReadReceipts(bytes.NewReader(text))
		if err != nil {
			return
		}
		again, err := ReadReceipts(bytes.NewReader(r.AppendTo(nil)))
		if err != nil || !same(again, r) {
			t.Errorf("written again it reads differently: %v", err)
		}
	})
}

func BenchmarkJudge(b *testing.B) {
	const messages = 1 << 20
	book := NewBook(testRun, 1)
	var g Register
	for range messages {
		seq := book.Next()
		book.Note(seq, 0, Acknowledged)
		deliver(&g, testRun, seq, 0)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !Judge(book, g.Receipts(testRun)).Pass {
			b.Fatal("does not pass")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/messages, "ns/delivery")
}
