package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// aKey makes the key of message id: all of it follows from the id.
func aKey(id envelope.ID, answer int) envelope.Idempotency {
	k := envelope.Idempotency{Answer: bytes.Repeat(id[15:], answer)}
	copy(k.Key[:], "key")
	copy(k.Key[3:], id[:])
	copy(k.Payload[:], id[:])
	return k
}

// keyed commits one batch of messages with keys, of these sizes, and gives the keys.
func (fx *fixture) keyed(sizes ...int) (keys map[envelope.ID]envelope.Idempotency, err error) {
	var batch []*queue.Submission
	keys = map[envelope.ID]envelope.Idempotency{}
	for i, size := range sizes {
		sub, m := fx.maker.Submission(size, 1)
		sub.Env.Idempotency = aKey(m.ID, 7*i)
		batch, keys[m.ID] = append(batch, sub), aKey(m.ID, 7*i)
	}
	fx.Commit(batch)
	for _, sub := range batch {
		err = errors.Join(err, sub.Err)
	}
	return keys, err
}

func (fx *fixture) mustKeyed(sizes ...int) map[envelope.ID]envelope.Idempotency {
	fx.Helper()
	keys, err := fx.keyed(sizes...)
	if err != nil {
		fx.Fatal(err)
	}
	return keys
}

// remembered gives all keys of the spool.
func remembered(t testing.TB, s *Spool, since time.Time) map[envelope.ID]envelope.Idempotency {
	t.Helper()
	keys := map[envelope.ID]envelope.Idempotency{}
	err := s.Remembered(since, func(r queue.Remembered) bool {
		if _, again := keys[r.ID]; again {
			t.Errorf("the key of %s is given twice", r.ID)
		}
		keys[r.ID] = r.Idempotency
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return keys
}

func sameKey(a, b envelope.Idempotency) bool {
	return a.Key == b.Key && a.Payload == b.Payload && bytes.Equal(a.Answer, b.Answer)
}

func (fx *fixture) wantKeys(want map[envelope.ID]envelope.Idempotency) {
	fx.Helper()
	got := remembered(fx, fx.Spool, time.Time{})
	if !maps.EqualFunc(got, want, sameKey) {
		fx.Fatalf("%d keys are remembered, want %d, or they differ", len(got), len(want))
	}
	fx.mu.Lock()
	defer fx.mu.Unlock()
	if fx.Spool.remembered != len(want) {
		fx.Fatalf("%d keys are counted, want %d", fx.Spool.remembered, len(want))
	}
}

func (fx *fixture) filesLike(suffix string) (names []string) {
	for name := range fx.fs.files {
		if strings.HasSuffix(name, suffix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// endSegment makes the next commit begin another segment.
func (fx *fixture) endSegment() {
	fx.seal(fx.current, false)
	fx.current = nil
}

// withKeptKeys gives a spool whose messages with keys are all done, and their segments gone.
func withKeptKeys(t testing.TB) (fx *fixture, keys map[envelope.ID]envelope.Idempotency) {
	fx = newFixture(t, Options{})
	keys = map[envelope.ID]envelope.Idempotency{}
	for range 3 {
		maps.Copy(keys, fx.mustKeyed(10, 3000, 0, 400))
		fx.mustCommit(50)
		fx.endSegment()
	}
	drain(t, fx.Spool)
	if err := fx.retireStep(); err != nil {
		t.Fatal(err)
	}
	if len(fx.segments) != 0 {
		t.Fatalf("%d segments are left", len(fx.segments))
	}
	return fx, keys
}

func TestAKeyIsRememberedWithItsMessageAndBeyondIt(t *testing.T) {
	fx := newFixture(t, Options{})
	want := fx.mustKeyed(10, 3000, 0)
	fx.mustCommit(100)
	maps.Copy(want, fx.mustKeyed(5, 70_000))
	fx.wantKeys(want)
	fx.open(fx.fs.Kill())
	fx.wantKeys(want)
	fx.open(fx.fs.Crash())
	fx.wantKeys(want)
	if n := len(drain(t, fx.Spool)); n != 6 {
		t.Fatalf("%d messages", n)
	}
	fx.wantKeys(want)
	if err := fx.retireStep(); err != nil {
		t.Fatal(err)
	}
	if names := fx.filesLike(".seg"); len(names) != 0 && len(fx.spares) != len(names) {
		t.Fatalf("segments are left: %v", names)
	}
	fx.wantKeys(want)
	maps.Copy(want, fx.mustKeyed(1))
	fx.wantKeys(want)
	if err := fx.Close(); err != nil {
		t.Fatal(err)
	}
	fx.open(fx.fs.Crash())
	fx.wantKeys(want)
}

func TestOnlyKeysSinceThenAreGiven(t *testing.T) {
	fx := newFixture(t, Options{})
	early := fx.mustKeyed(1)
	fx.endSegment()
	fx.clock.Add(time.Minute)
	late := fx.mustKeyed(1, 2)
	for range 2 {
		if got := remembered(t, fx.Spool, fx.clock.Now()); !maps.EqualFunc(got, late, sameKey) {
			t.Errorf("%d keys since now, want 2", len(got))
		}
		if got := remembered(t, fx.Spool, fx.clock.Now().Add(time.Millisecond)); len(got) != 0 {
			t.Errorf("%d keys later than all", len(got))
		}
		if got := remembered(t, fx.Spool, fx.clock.Now().Add(-time.Minute)); len(got) != len(early)+len(late) {
			t.Errorf("%d keys since a minute", len(got))
		}
		n := 0
		if fx.Remembered(time.Time{}, func(queue.Remembered) bool { n++; return n < 2 }); n != 2 {
			t.Errorf("yield was called %d times", n)
		}
		drain(t, fx.Spool)
		fx.endSegment()
		if err := fx.retireStep(); err != nil {
			t.Fatal(err)
		}
		maps.Copy(late, fx.mustKeyed(3))
	}
}

func TestKeysComeInTheOrderOfTheirCommits(t *testing.T) {
	fx := newFixture(t, Options{})
	var want []envelope.ID
	add := func() {
		for id := range fx.mustKeyed(10) {
			want = append(want, id)
		}
	}
	add()
	if err := fx.prepareStep(); err != nil { // takes a number before the one that is used before it
		t.Fatal(err)
	}
	ready := fx.ready
	fx.ready = nil
	fx.endSegment()
	add()
	fx.endSegment()
	fx.ready = ready
	add()
	for range 2 {
		var got []envelope.ID
		fx.Remembered(time.Time{}, func(r queue.Remembered) bool { got = append(got, r.ID); return true })
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		drain(t, fx.Spool)
		if fx.current != nil {
			fx.endSegment()
		}
		fx.retireStep()
	}
}

func TestKeysAreForgottenInTime(t *testing.T) {
	fx := newFixture(t, Options{RememberFor: time.Hour})
	first := fx.mustKeyed(1, 2)
	fx.endSegment()
	fx.clock.Add(time.Minute)
	second := fx.mustKeyed(3)
	fx.endSegment()
	drain(t, fx.Spool)
	late := maps.Clone(second)
	maps.Copy(late, fx.mustKeyed(4)) // this message stays in the spool
	all := maps.Clone(first)
	maps.Copy(all, late)
	fx.retireStep()
	fx.clock.Add(59 * time.Minute) // the first ones are exactly an hour old
	fx.retireStep()
	fx.wantKeys(all)
	fx.clock.Add(time.Millisecond)
	fx.retireStep()
	fx.wantKeys(late)
	fx.open(fx.fs.Kill())
	fx.wantKeys(late)
	fx.clock.Add(time.Minute)
	fx.retireStep()
	fx.wantKeys(nil)
	if names := fx.filesLike(".keys"); len(names) != 0 {
		t.Errorf("%v are left", names)
	}
	if n := len(drain(t, fx.Spool)); n != 1 {
		t.Errorf("%d messages are left, want the one whose key was forgotten", n)
	}
	// After a restart they are not read again from the segment.
	fx.mustKeyed(1)
	fx.clock.Add(2 * time.Hour)
	fx.open(fx.fs.Kill())
	fx.retireStep()
	fx.wantKeys(nil)
}

func TestMoreKeysThanTheLimitAreRefused(t *testing.T) {
	fx := newFixture(t, Options{MaxRemembered: 3, RememberFor: time.Hour})
	fx.mustKeyed(1, 1)
	var batch []*queue.Submission
	for i := range 4 {
		sub, m := fx.maker.Submission(10, 1)
		if i != 1 {
			sub.Env.Idempotency = aKey(m.ID, 0)
		}
		batch = append(batch, sub)
	}
	fx.Commit(batch)
	for i, sub := range batch {
		if full := i > 1; errors.Is(sub.Err, queue.ErrFull) != full || !full && sub.Err != nil {
			t.Errorf("message %d of the batch: %v", i, sub.Err)
		}
	}
	if err := fx.Room(); err != nil {
		t.Errorf("there is room for mail without keys: %v", err)
	}
	drain(t, fx.Spool)
	if _, err := fx.keyed(1); !errors.Is(err, queue.ErrFull) {
		t.Errorf("the keys of messages that are done count as well: %v", err)
	}
	fx.open(fx.fs.Kill())
	if _, err := fx.keyed(1); !errors.Is(err, queue.ErrFull) {
		t.Errorf("after a restart: %v", err)
	}
	fx.clock.Add(time.Hour + time.Millisecond)
	select {
	case <-fx.prepareWake:
	default:
		t.Error("nobody is told to look for keys that have had their time")
	}
	fx.retireStep()
	fx.mustKeyed(1, 1, 1)
}

func TestAnAnswerOverItsLimitIsRefused(t *testing.T) {
	fx := newFixture(t, Options{})
	for _, tc := range []struct {
		bytes int
		ok    bool
	}{{envelope.MaxAnswerBytes, true}, {envelope.MaxAnswerBytes + 1, false}} {
		sub, m := fx.maker.Submission(10, 1)
		sub.Env.Idempotency = aKey(m.ID, tc.bytes)
		fx.Commit([]*queue.Submission{sub})
		if (sub.Err == nil) != tc.ok {
			t.Errorf("an answer of %d bytes: %v", tc.bytes, sub.Err)
		}
	}
	fx.open(fx.fs.Kill())
	if got := remembered(t, fx.Spool, time.Time{}); len(got) != 1 {
		t.Errorf("%d keys", len(got))
	}
}

func TestMailWithoutKeysHasNoKeyFiles(t *testing.T) {
	fx := newFixture(t, Options{})
	for range 10 {
		fx.mustCommit(3000, 20_000)
	}
	fx.acks.flush(true)
	drain(t, fx.Spool)
	fx.retireStep()
	fx.open(fx.fs.Kill())
	if names := slices.Concat(fx.filesLike(".keys"), fx.filesLike(".keys.tmp")); len(names) != 0 {
		t.Error(names)
	}
	fx.wantKeys(nil)
}

func TestARestartReadsNoMailForTheKeysThatTheKeyFileHas(t *testing.T) {
	fx := newFixture(t, Options{SegmentSize: 1 << 20})
	want, total := map[envelope.ID]envelope.Idempotency{}, 0
	for range 20 {
		maps.Copy(want, fx.mustKeyed(3000, 10, 4000, 0, 2500))
		total += 9510
		if err := fx.acks.flush(true); err != nil {
			t.Fatal(err)
		}
	}
	after := fx.fs.Kill()
	after.bytesRead = 0
	fx.open(after)
	if after.bytesRead > total/3 {
		t.Errorf("%d bytes read at the start for %d bytes of mail", after.bytesRead, total)
	}
	fx.wantKeys(want)
}

// The file beside a living segment is a hint: whatever becomes of it, the segment knows.
func TestTheKeysOfALivingSegmentNeedNoKeyFile(t *testing.T) {
	fx := newFixture(t, Options{})
	want := map[envelope.ID]envelope.Idempotency{}
	for range 3 {
		maps.Copy(want, fx.mustKeyed(100, 0))
		fx.acks.flush(true)
	}
	base := fx.fs.Kill()
	name := fx.path(keysName(1))
	whole := len(base.files[name].data)
	other := newFixture(t, Options{})
	other.mustKeyed(100)
	other.acks.flush(true)
	foreign := other.fs.files[name].data
	check := func(what string, change func(left *crashFS)) {
		left := base.Clone()
		change(left)
		fx.open(left)
		fx.wantKeys(want)
		// And what is kept when the segment goes is complete.
		drain(t, fx.Spool)
		fx.retireStep()
		fx.open(left.Crash())
		fx.wantKeys(want)
		if st := fx.Stats(); st.Damaged != 0 || t.Failed() {
			t.Fatalf("%s: %d damaged", what, st.Damaged)
		}
	}
	check("removed", func(left *crashFS) { left.Remove(name) })
	check("of another spool", func(left *crashFS) { left.files[name].data = slices.Clone(foreign) })
	check("unfinished copy instead", func(left *crashFS) {
		left.Rename(name, name+".tmp")
		left.files[name+".tmp"].data = left.files[name+".tmp"].data[:whole-8]
	})
	check("unfinished copy beside", func(left *crashFS) {
		f, _ := left.Create(name + ".tmp")
		f.WriteAt([]byte("begun"), 0)
	})
	for n := 0; n < whole; n += 1 + n/50 {
		check(fmt.Sprint("cut at ", n), func(left *crashFS) { left.files[name].data = left.files[name].data[:n] })
		check(fmt.Sprint("turned at ", n), func(left *crashFS) { left.files[name].data[n] ^= 4 })
	}
}

// A damaged file of a segment that is gone loses the keys that are hit, and no others; it is set aside once.
func TestADamagedKeyFileGivesWhatIsIntact(t *testing.T) {
	fx, all := withKeptKeys(t)
	base := fx.fs.Kill()
	names := fx.filesLike(".keys")
	if len(names) != 3 {
		t.Fatalf("%v", names)
	}
	whole := base.files[names[1]].data
	lost := map[int]int{}
	for at := 0; at < len(whole); at += 1 + 97*(min(1, max(0, at-600))*min(1, max(0, 4000-at))) {
		left := base.Clone()
		left.files[names[1]].data[at] ^= 16
		fx.open(left)
		got := remembered(t, fx.Spool, time.Time{})
		for id, k := range got {
			if !sameKey(k, all[id]) {
				t.Fatalf("a bit turned at %d makes another key", at)
			}
		}
		lost[len(all)-len(got)]++
		aside := left.files[names[1]+".damaged"] != nil
		if wrong := len(got) < len(all); aside != wrong || wrong != (fx.Stats().Damaged == 1) || wrong != (fx.Stats().Alarm != "") {
			t.Fatalf("a bit turned at %d: %d of %d keys, set aside %v, damaged %d", at, len(got), len(all), aside, fx.Stats().Damaged)
		}
		fx.open(left.Crash())
		if again := remembered(t, fx.Spool, time.Time{}); !maps.EqualFunc(again, got, sameKey) || fx.Stats().Damaged != 0 {
			t.Fatalf("a bit turned at %d: %d keys at the next start, %d before", at, len(again), len(got))
		}
	}
	if lost[0] == 0 || lost[1] == 0 || lost[2] > 0 || lost[3] > 0 {
		t.Errorf("lost %v: times by number of keys", lost)
	}
	for n := range len(whole) {
		if n%13 != 0 && n > 20 {
			continue
		}
		left := base.Clone()
		left.files[names[1]].data = slices.Clone(whole[:n])
		fx.open(left)
		if got := remembered(t, fx.Spool, time.Time{}); len(got) < len(all)-4 || n > 0 && len(got) == len(all) {
			t.Fatalf("cut at %d: %d keys", n, len(got))
		}
		if left.files[names[1]+".damaged"] == nil {
			t.Fatalf("cut at %d: not set aside", n)
		}
	}
}

// The copy of a damaged file's intact records survives a power cut at any moment of its making.
func TestADamagedKeyFileIsReplacedWhereverThePowerIsCut(t *testing.T) {
	fx, all := withKeptKeys(t)
	base := fx.fs.Kill()
	name := fx.filesLike(".keys")[1]
	base.files[name].data[len(base.files[name].data)-1] ^= 1
	base.files[name].stable = slices.Clone(base.files[name].data)
	for n := 1; ; n++ {
		for seed := range uint64(4) {
			left := base.Clone()
			left.rng = rand.New(rand.NewPCG(seed, uint64(n)))
			left.dieIn = n
			o := fx.o
			o.FS = left
			if s, err := Open("spool", o); err == nil {
				left.dieIn = 0
				if got := remembered(t, s, time.Time{}); len(got) != len(all)-1 {
					t.Fatalf("%d keys", len(got))
				}
				return
			}
			fx.open(left.Crash())
			if got := remembered(t, fx.Spool, time.Time{}); len(got) != len(all)-1 {
				t.Fatalf("power cut at change %d: %d keys, want %d", n, len(got), len(all)-1)
			}
		}
	}
}

// From the last message's end to the segment's reuse: at no moment is a key lost, and none is there without its message having been.
func TestAKeyOutlivesItsMessageWhereverThePowerIsCut(t *testing.T) {
	for _, d := range []Durability{Fsync, OS} {
		for n := 1; ; n++ {
			survived := false
			for seed := range uint64(6) {
				fx := newFixture(t, Options{Durability: d})
				want := fx.mustKeyed(10, 3000)
				fx.mustCommit(500)
				maps.Copy(want, fx.mustKeyed(400))
				fx.endSegment()
				maps.Copy(want, fx.mustKeyed(20))
				fx.fs.rng = rand.New(rand.NewPCG(seed, uint64(n)))
				fx.fs.dieIn = n
				drain(t, fx.Spool)
				fx.acks.flush(seed%2 == 0)
				fx.retireStep()
				fx.prepareStep()
				more, err := fx.keyed(30)
				if err == nil {
					maps.Copy(want, more)
				}
				fx.acks.flush(true)
				fx.retireStep()
				survived = survived || !fx.fs.dead
				left := fx.fs
				if d == Fsync && seed < 4 {
					left = left.Crash()
				} else {
					left = left.Kill()
				}
				for range 2 {
					fx.open(left)
					got := remembered(t, fx.Spool, time.Time{})
					for id, k := range want {
						if !sameKey(got[id], k) {
							t.Fatalf("%s, change %d, seed %d: the key of %s is lost", d, n, seed, id)
						}
					}
					for id := range got {
						if _, mine := want[id]; mine {
							continue
						}
						if _, err := fx.Show(id); err != nil {
							t.Fatalf("%s, change %d, seed %d: there is a key of %s, and no message: %v", d, n, seed, id, err)
						}
					}
					if n := fx.Stats().Damaged; n != 0 {
						t.Fatalf("%d damaged", n)
					}
					left = left.Kill()
				}
			}
			if survived {
				break
			}
		}
	}
}

// A message that a crash tore, and that was never acknowledged, leaves no key: not at the first start, and not at the second, when it is
// noted as done.
func TestATornMessageLeavesNoKey(t *testing.T) {
	fx := newFixture(t, Options{})
	want := fx.mustKeyed(100)
	fx.acks.flush(true)
	torn := fx.mustKeyed(2000)
	left := fx.fs.Kill()
	m := fx.segments[0].msgs[1]
	left.files[fx.path(segmentName(1))].data[m.bodyOffset()+1000] ^= 1
	for range 3 {
		fx.open(left)
		for id := range torn {
			if _, err := fx.Show(id); !errors.Is(err, queue.ErrNotFound) {
				t.Fatalf("the torn message: %v", err)
			}
		}
		fx.wantKeys(want)
		fx.acks.flush(true)
		left = left.Kill()
	}
	left.Remove(fx.path(keysName(1)))
	fx.open(left)
	fx.wantKeys(want)
	drain(t, fx.Spool)
	fx.retireStep()
	fx.wantKeys(want)
}

// A key goes with its message also when it is damage that takes the message away: the client may send it again.
func TestAKeyWhoseMessageIsLostIsForgotten(t *testing.T) {
	fx := newFixture(t, Options{})
	want := fx.mustKeyed(100)
	lost := fx.mustKeyed(100)
	maps.Copy(want, fx.mustKeyed(100, 100))
	fx.acks.flush(true)
	left := fx.fs.Kill()
	left.files[fx.path(segmentName(1))].data[fx.segments[0].msgs[1].off] ^= 1
	delete(left.files, fx.path(indexName(1)))
	fx.open(left)
	if n := fx.Stats().Damaged; n != 1 || len(lost) != 1 {
		t.Fatalf("%d damaged", n)
	}
	fx.wantKeys(want)
	drain(t, fx.Spool)
	fx.retireStep()
	fx.wantKeys(want)
}

func TestASegmentStaysUntilItsKeysAreSafe(t *testing.T) {
	for _, what := range []string{"write", "sync", "full"} {
		t.Run(what, func(t *testing.T) {
			fx := newFixture(t, Options{})
			want := fx.mustKeyed(100, 100)
			name := segmentName(fx.current.number)
			fail := func(file string) error {
				if strings.Contains(file, ".keys") {
					return syscall.EIO
				}
				return nil
			}
			switch what {
			case "write":
				fx.fs.failWrite = fail
			case "sync":
				fx.fs.failSync = fail
			case "full":
				fx.fs.space = 0
			}
			fx.acks.flush(false)
			drain(t, fx.Spool)
			fx.endSegment()
			for range 2 {
				if err := fx.retireStep(); err == nil {
					t.Fatal("no error")
				}
				if fx.fs.files[fx.path(name)] == nil || len(fx.segments) != 1 {
					t.Fatal("the segment is gone")
				}
				if st := fx.Stats(); (st.Alarm == "") != (what == "full") || st.Bytes != 0 {
					t.Errorf("stats %+v", st)
				}
			}
			fx.wantKeys(want)
			// Nor does it hold up the mail, or what has no keys.
			if what != "full" {
				fx.mustCommit(10)
				fx.endSegment()
				drain(t, fx.Spool)
				fx.retireStep()
				if len(fx.segments) != 1 {
					t.Errorf("%d segments", len(fx.segments))
				}
			}
			fx.fs.failWrite, fx.fs.failSync, fx.fs.space = nil, nil, -1
			crashed := fx.fs.Clone()
			if err := fx.retireStep(); err != nil {
				t.Fatal(err)
			}
			if len(fx.segments) != 0 {
				t.Error("the segment is still there")
			}
			fx.wantKeys(want)
			fx.open(fx.fs.Crash())
			fx.wantKeys(want)
			fx.open(crashed)
			fx.wantKeys(want)
			if n := len(drain(t, fx.Spool)); n > 2 {
				t.Errorf("%d messages came back", n)
			}
		})
	}
}

// The number of a key file is that of a segment that is gone; no later segment may get it, also when the ack log is lost.
func TestANewSegmentNeverTakesTheNumberOfAKeyFile(t *testing.T) {
	fx, want := withKeptKeys(t)
	left := fx.fs.Kill()
	for name := range left.files {
		if !strings.HasSuffix(name, ".keys") {
			delete(left.files, name)
		}
	}
	fx.open(left)
	fx.wantKeys(want)
	maps.Copy(want, fx.mustKeyed(1))
	fx.acks.flush(true)
	fx.wantKeys(want)
	fx.open(fx.fs.Crash())
	fx.wantKeys(want)
}

func TestMetadataAndRequireTLSAreShown(t *testing.T) {
	fx := newFixture(t, Options{})
	for _, tc := range []struct{ meta, want string }{{`{"a":[1]}`, `{"a":[1]}`}, {"", ""}, {"no JSON", ""}} {
		sub, m := fx.maker.Submission(10, 1)
		sub.Env.Metadata, sub.Env.RequireTLS = []byte(tc.meta), tc.meta != ""
		fx.Commit([]*queue.Submission{sub})
		e, err := fx.Show(m.ID)
		if err != nil || sub.Err != nil || string(e.Metadata) != tc.want || e.RequireTLS != (tc.meta != "") {
			t.Errorf("%q: %v, %v, %+v", tc.meta, sub.Err, err, e)
		}
	}
}

// FuzzKeyFile opens a spool with a key file that the fuzzer has made of a real one, beside its segment or without: no panic, and beside the
// segment exactly the keys that were committed come out, without it none that was not. With resum, records get the checksum that they should have;
// then any key may come out of a file whose segment is gone, but still each message's once.
func FuzzKeyFile(f *testing.F) {
	fx := newFixture(f, Options{SegmentSize: 16 << 10, salt: func() uint64 { return 42 }})
	want := map[envelope.ID]envelope.Idempotency{}
	for i := range 3 {
		sub, _ := fx.maker.Submission(100, 1)
		sub.Env.ID = envelope.ID{0, 0, byte(i + 1)} // the same for each process of the fuzzer
		sub.Env.Idempotency = aKey(sub.Env.ID, 300*i)
		want[sub.Env.ID] = aKey(sub.Env.ID, 300*i)
		fx.Commit([]*queue.Submission{sub})
		fx.acks.flush(false)
	}
	base := fx.fs.Kill()
	name := fx.path(keysName(1))
	content := base.files[name].data
	f.Add(content, false, true)
	f.Add(content, true, false)
	f.Add(content[:len(content)-100], false, false)
	f.Add(slices.Concat(content, content[fileHeaderBytes:]), true, true)
	f.Fuzz(func(t *testing.T, file []byte, resum, alive bool) {
		file = bytes.Clone(file)
		if resum {
			seed := fileHeader{kind: kindKeys, number: 1, salt: 42}.seed()
			for at := fileHeaderBytes; at+keyRecordBytes <= len(file); at += keyAlign {
				if b := file[at:]; [4]byte(b) == keyMagic {
					if n := roundUp(keyRecordBytes+int64(binary.LittleEndian.Uint32(b[96:])), keyAlign); n <= int64(len(b)) {
						binary.LittleEndian.PutUint32(b[4:], crc32.Update(seed, castagnoli, b[8:n]))
					}
				}
			}
		}
		left := base.Clone()
		left.files[name].data = file
		if !alive {
			delete(left.files, fx.path(segmentName(1)))
		}
		o := fx.o
		o.FS = left
		o.RememberFor = 1 << 62 // the messages are as old as time
		s, err := Open("spool", o)
		if err != nil {
			return
		}
		got := remembered(t, s, time.UnixMilli(-1<<40))
		if alive && !resum && !maps.EqualFunc(got, want, sameKey) {
			t.Fatalf("%d keys beside the segment", len(got))
		}
		for id, k := range got {
			if !resum && !sameKey(k, want[id]) {
				t.Fatalf("a key of %s that was never committed", id)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
