package spool

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/envelope"
)

// withMail gives a file system as kill -9 leaves it, with messages whose records are all noted in the index file.
func withMail(t *testing.T) (fx *fixture, texts map[envelope.ID][]byte, total int) {
	fx = newFixture(t, Options{SegmentSize: 1 << 20})
	texts = map[envelope.ID][]byte{}
	for range 20 {
		for _, m := range fx.mustCommit(3000, 10, 4000, 0, 2500) {
			texts[m.ID] = m.Text
			total += len(m.Text)
		}
		if err := fx.acks.flush(true); err != nil {
			t.Fatal(err)
		}
	}
	return fx, texts, total
}

func checkTexts(t *testing.T, got, want map[envelope.ID][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d messages, want %d", len(got), len(want))
	}
	for id, text := range want {
		if !bytes.Equal(got[id], text) {
			t.Fatalf("message %s came back altered", id)
		}
	}
}

func TestARestartReadsTheIndexInsteadOfTheSegments(t *testing.T) {
	fx, want, total := withMail(t)
	after := fx.fs.Kill()
	after.bytesRead = 0
	fx.open(after)
	if read := after.bytesRead; read > total/5 {
		t.Errorf("%d bytes read at the start for %d bytes of mail", read, total)
	}
	checkTexts(t, drain(t, fx.Spool), want)
}

func TestWithoutItsIndexOrWithHalfOfItASegmentIsReadAgain(t *testing.T) {
	fx, want, _ := withMail(t)
	base := fx.fs.Kill()
	name := ""
	for n := range base.files {
		if strings.HasSuffix(n, ".idx") {
			name = n
		}
	}
	if name == "" {
		t.Fatal("no index file")
	}
	whole := len(base.files[name].data)
	for n := 0; n < whole; n += 1 + n/40 {
		torn := base.Clone()
		torn.files[name].data = torn.files[name].data[:n]
		fx.open(torn)
		checkTexts(t, drain(t, fx.Spool), want)
	}
	gone := base.Clone()
	if err := gone.Remove(name); err != nil {
		t.Fatal(err)
	}
	fx.open(gone)
	checkTexts(t, drain(t, fx.Spool), want)
}

func TestAnIndexFileGoesWithItsSegment(t *testing.T) {
	fx, want, _ := withMail(t)
	checkTexts(t, drain(t, fx.Spool), want)
	if err := fx.Close(); err != nil {
		t.Fatal(err)
	}
	fx.open(fx.fs.Kill())
	if err := fx.Close(); err != nil {
		t.Fatal(err)
	}
	for name := range fx.fs.files {
		if strings.HasSuffix(name, ".idx") {
			t.Errorf("%s is still there, and no mail is", name)
		}
	}
}

func TestAnIndexOfAnotherUseOfTheFileIsNotBelieved(t *testing.T) {
	fx, want, _ := withMail(t)
	other, _, _ := withMail(t)
	foreign := other.fs.Kill()
	mixed := fx.fs.Kill()
	for name, f := range foreign.files {
		if strings.HasSuffix(name, ".idx") && mixed.files[name] != nil {
			mixed.files[name].data = f.data
		}
	}
	fx.open(mixed)
	checkTexts(t, drain(t, fx.Spool), want)
}

// Zeros where a record should be end the search only behind what is known to have been written: a stretch that the disk has lost must not
// take the mail behind it along.
func TestALostStretchOfASegmentDoesNotHideWhatLiesBehindIt(t *testing.T) {
	for _, how := range []string{"killed", "closed", "without an ack log"} {
		t.Run(how, func(t *testing.T) {
			fx, want, _ := withMail(t)
			from := fx.segments[0].msgs[5].off // where the second batch begins
			lost := map[envelope.ID]bool{}
			for _, m := range fx.segments[0].msgs {
				if m.off >= from && m.off < from+128<<10 {
					lost[m.id] = true
				}
			}
			if how == "closed" {
				if err := fx.Close(); err != nil {
					t.Fatal(err)
				}
			}
			after := fx.fs.Kill()
			for name, f := range after.files {
				switch {
				case strings.HasSuffix(name, ".seg") && int64(len(f.data)) > from+128<<10:
					clear(f.data[from : from+128<<10])
				case strings.HasSuffix(name, ".idx"), how == "without an ack log" && strings.HasSuffix(name, ".ack"):
					delete(after.files, name)
				}
			}
			fx.open(after)
			got := drain(t, fx.Spool)
			for id, text := range want {
				if !lost[id] && !bytes.Equal(got[id], text) {
					t.Fatalf("message %s lies outside the lost stretch and is gone; %d of %d came back, %d were wiped", id, len(got), len(want), len(lost))
				}
			}
			if len(lost) == 0 || len(lost) == len(want) || fx.Stats().Damaged == 0 {
				t.Errorf("%d of %d wiped, damaged %d", len(lost), len(want), fx.Stats().Damaged)
			}
		})
	}
}
