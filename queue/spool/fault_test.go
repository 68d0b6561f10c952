package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/queuetest"
)

// fixture is a spool on a crashFS without goroutines.
type fixture struct {
	testing.TB
	fs    *crashFS
	maker *queuetest.Maker
	clock *queuetest.Clock
	o     Options
	*Spool
}

func newFixture(t testing.TB, o Options) *fixture {
	clock := queuetest.NewClock()
	fx := &fixture{TB: t, fs: newCrashFS(rand.New(rand.NewPCG(1, 2))), clock: clock, maker: queuetest.NewMaker(clock)}
	o.Log, o.Now, o.manual, o.ackReserve, o.spaceAge, o.openFiles = quiet, clock.Now, true, 4<<10, time.Nanosecond, 2
	if o.MinFree == 0 {
		o.MinFree = -1
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = 64 << 10
	}
	fx.o = o
	fx.open(fx.fs)
	return fx
}

func (fx *fixture) open(fs *crashFS) {
	fx.Helper()
	fx.fs, fx.o.FS = fs, fs
	s, err := Open("spool", fx.o)
	if err != nil {
		fx.Fatal(err)
	}
	fx.Spool = s
}

// commit commits messages of these sizes as one batch.
func (fx *fixture) commit(sizes ...int) (msgs []queuetest.Message, err error) {
	var batch []*queue.Submission
	for _, size := range sizes {
		sub, m := fx.maker.Submission(size, 1)
		batch, msgs = append(batch, sub), append(msgs, m)
	}
	fx.Commit(batch)
	for _, sub := range batch {
		err = errors.Join(err, sub.Err)
	}
	return msgs, err
}

func (fx *fixture) mustCommit(sizes ...int) []queuetest.Message {
	fx.Helper()
	msgs, err := fx.commit(sizes...)
	if err != nil {
		fx.Fatal(err)
	}
	return msgs
}

// drain leases and settles everything due and gives the texts by id.
func drain(t testing.TB, s *Spool) map[envelope.ID][]byte {
	t.Helper()
	texts := map[envelope.ID][]byte{}
	for s.fifoLen() > 0 {
		// The rest may be damaged, and then there is none to wait for.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Millisecond)
		d, err := s.Lease(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		r, err := d.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if texts[d.Env.ID] != nil {
			t.Fatalf("%s leased twice", d.Env.ID)
		}
		texts[d.Env.ID] = text
		outcomes := make([]queue.Outcome, len(d.Env.Recipients))
		for i := range outcomes {
			outcomes[i].State = queue.Delivered
		}
		if err := s.Settle(d, outcomes, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	return texts
}

func TestAFailedSyncRefusesTheBatchAndEndsTheSegment(t *testing.T) {
	fx := newFixture(t, Options{})
	before := fx.mustCommit(100, 2000)
	name := segmentName(fx.current.number)
	fx.fs.failSync = func(file string) error {
		if file == name {
			return syscall.EIO
		}
		return nil
	}
	if _, err := fx.commit(100, 100, 100); !errors.Is(err, syscall.EIO) {
		t.Fatalf("commit: %v", err)
	}
	fx.fs.failSync = nil
	syncs, writes := fx.fs.syncs[name], fx.fs.writes[name]
	after := fx.mustCommit(100)
	fx.acks.flush(true)
	if fx.fs.syncs[name] != syncs || fx.fs.writes[name] != writes {
		t.Error("the segment was written or synced again")
	}
	if st := fx.Stats(); st.SyncErrors != 1 || st.Alarm == "" || st.Committed != 3 {
		t.Errorf("stats %+v", st)
	}
	for _, left := range []*crashFS{fx.fs.Clone(), fx.fs.Crash()} {
		fx.open(left)
		if n := fx.Stats().Damaged; n != 0 {
			t.Errorf("%d records damaged", n)
		}
		got := drain(t, fx.Spool)
		if len(got) != 3 {
			t.Errorf("%d messages, want the 3 acknowledged ones", len(got))
		}
		for _, m := range slices.Concat(before, after) {
			if !bytes.Equal(got[m.ID], m.Text) {
				t.Errorf("%s is lost or altered", m.ID)
			}
		}
	}
}

func TestNothingIsAcknowledgedWhileEverySyncFails(t *testing.T) {
	fx := newFixture(t, Options{})
	fx.fs.failSync = func(string) error { return syscall.EIO }
	for range 50 {
		if _, err := fx.commit(10); !errors.Is(err, syscall.EIO) {
			t.Fatalf("commit: %v", err)
		}
		fx.retireStep()
	}
	if n := len(fx.fs.files); n > 4 {
		t.Errorf("%d files are left", n)
	}
	fx.fs.failSync = nil
	fx.mustCommit(10)
}

// What lies ready for the next mail must not be what keeps it out.
func TestSpareFilesAreGivenBackWhenTheyTakeTheReserve(t *testing.T) {
	fx := newFixture(t, Options{MinFree: 10_000})
	for range 6 { // one segment each, prepared but for the first
		fx.mustCommit(50_000)
		if err := fx.prepareStep(); err != nil {
			t.Fatal(err)
		}
	}
	drain(t, fx.Spool)
	fx.retireStep()
	if len(fx.spares) != maxSpares {
		t.Fatalf("%d spare files, want %d", len(fx.spares), maxSpares)
	}
	fx.fs.space = 10_000 // somebody else's files
	fx.retireStep()
	if len(fx.spares) != maxSpares {
		t.Fatalf("%d spare files at the reserve, want %d", len(fx.spares), maxSpares)
	}
	fx.fs.space = 9_999
	if err := fx.Room(); !errors.Is(err, queue.ErrNoSpace) {
		t.Fatalf("room below the reserve: %v", err)
	}
	select {
	case <-fx.prepareWake: // what follows is the preparing goroutine's
	default:
		t.Fatal("nobody is told that space is short")
	}
	fx.retireStep()
	if len(fx.spares) != 0 {
		t.Fatalf("%d spare files below the reserve", len(fx.spares))
	}
	if err := fx.Room(); err != nil {
		t.Fatalf("the spare files' space did not come back: %v", err)
	}
	fx.mustCommit(50_000)
}

func TestAFullDiskRefusesMailAndRecovers(t *testing.T) {
	fx := newFixture(t, Options{MinFree: 10_000, SegmentSize: 1 << 20})
	first := fx.mustCommit(100)
	fx.fs.space = 9_999
	if err := fx.Room(); !errors.Is(err, queue.ErrNoSpace) {
		t.Fatalf("room below the reserve: %v", err)
	}
	fx.fs.space = 10_000
	if err := fx.Room(); err != nil {
		t.Fatalf("room at the reserve: %v", err)
	}
	fx.fs.space = 5_000
	if _, err := fx.commit(20_000); !errors.Is(err, queue.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("commit on a full disk: %v", err)
	}
	fx.fs.space = 0
	if _, err := fx.commit(100); !errors.Is(err, queue.ErrNoSpace) {
		t.Fatalf("commit on a full disk: %v", err)
	}
	if fx.Stats().SyncErrors != 0 {
		t.Error("a full disk counts as a failed sync")
	}
	fx.retireStep()

	// A restart on the full disk works, and what is there can be handed on and forgotten.
	if err := fx.acks.flush(true); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	left := fx.fs.Kill()
	left.space = 0
	fx.open(left)
	if got := drain(t, fx.Spool); len(got) != 1 || !bytes.Equal(got[first[0].ID], first[0].Text) {
		t.Fatalf("%d messages after the restart", len(got))
	}
	fx.retireStep()
	if fx.fs.space == 0 {
		t.Error("no space came back")
	}
	fx.fs.space = 1 << 30
	fx.mustCommit(20_000)
	if err := fx.Room(); err != nil {
		t.Errorf("room: %v", err)
	}
	if alarm := fx.Stats().Alarm; alarm != "" {
		t.Errorf("alarm %q stays", alarm)
	}
}

func TestMessagesOverTheLimitAreRefused(t *testing.T) {
	fx := newFixture(t, Options{MaxMessages: 3})
	msgs, err := fx.commit(1, 1, 1, 1)
	if !errors.Is(err, queue.ErrFull) {
		t.Fatalf("the fourth: %v", err)
	}
	if err := fx.Room(); !errors.Is(err, queue.ErrFull) {
		t.Errorf("room: %v", err)
	}
	if err := fx.Drop(msgs[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := fx.Room(); err != nil {
		t.Errorf("room: %v", err)
	}
	fx.mustCommit(1)
}

func TestAReusedSegmentNeverReplays(t *testing.T) {
	fx := newFixture(t, Options{})
	fx.mustCommit(10)
	if err := fx.prepareStep(); err != nil {
		t.Fatal(err)
	}
	// Now in a whole segment; fill it with messages and forget them.
	for range 20 {
		fx.mustCommit(3000)
	}
	drain(t, fx.Spool)
	fx.seal(fx.current, false)
	fx.current = nil
	fx.retireStep()
	if len(fx.spares) == 0 {
		t.Fatal("no segment is kept for reuse")
	}
	spare := segmentName(fx.spares[0].number)
	old := bytes.Clone(fx.fs.files[fx.path(spare)].data)
	fx.ready = nil
	msgs := fx.mustCommit(10)
	if fx.fs.files[fx.path(spare)] != nil || !bytes.Contains(fx.fs.files[fx.path(segmentName(fx.current.number))].data, old[20_000:30_000]) {
		t.Fatal("the file was not used again as it was")
	}
	for _, left := range []*crashFS{fx.fs.Clone(), fx.fs.Crash()} {
		fx.open(left)
		got := drain(t, fx.Spool)
		if len(got) != 1 || got[msgs[0].ID] == nil || fx.Stats().Damaged != 0 {
			t.Errorf("%d messages, %d damaged; want the one committed last", len(got), fx.Stats().Damaged)
		}
	}
}

// TestAnImageOfARecordInAMessageIsNoRecord: a sender who guessed everything but the salt puts a record into the data, and the header in
// front is damaged, so that recovery searches the data.
func TestAnImageOfARecordInAMessageIsNoRecord(t *testing.T) {
	fx := newFixture(t, Options{})
	sub, _ := fx.maker.Submission(0, 1)
	forged := &envelope.Envelope{ID: envelope.ID{7}}
	env := forged.AppendBinary(nil)
	for salt := range uint64(3) {
		seed := fileHeader{kind: kindSegment, number: 1, salt: salt}.seed()
		h := recordHeader{seq: 2, id: forged.ID, envBytes: uint32(len(env)), batch: 1}
		h.bodyCRC = bodySum(contentSeed(seed, h.seq), 0)
		h.envCRC = crc32.Update(contentSeed(seed, h.seq), castagnoli, env)
		image := append(h.appendTo(nil, seed), env...)
		for range 64 { // at each offset to the alignment
			sub.Env.Data.Append(fx.maker.Chunks(), append(image, 0))
		}
	}
	fx.Commit([]*queue.Submission{sub})
	left := fx.fs.Clone()
	left.files[fx.path(segmentName(1))].data[fileHeaderBytes] ^= 1
	fx.open(left)
	if got := drain(t, fx.Spool); len(got) != 0 {
		t.Errorf("%d messages were found", len(got))
	}
}

// TestOneTurnedBit turns a bit in every byte of every file, in a spool closed in order and in one that was killed.
func TestOneTurnedBit(t *testing.T) {
	for _, how := range []string{"closed", "killed", "killed before a note"} {
		t.Run(how, func(t *testing.T) {
			fx := newFixture(t, Options{})
			sizes := [][]int{{0}, {10, 700}, {1500, 3, 64}, {5000}, {20}}
			want := map[envelope.ID][]byte{}
			var last envelope.ID
			for _, batch := range sizes {
				for _, m := range fx.mustCommit(batch...) {
					want[m.ID] = m.Text
				}
			}
			done := fx.mustCommit(77)
			if err := fx.Hold(done[0].ID, "x"); err != nil {
				t.Fatal(err)
			}
			if err := fx.Drop(done[0].ID); err != nil {
				t.Fatal(err)
			}
			switch how {
			case "closed":
				if err := fx.Close(); err != nil {
					t.Fatal(err)
				}
			case "killed":
				fx.acks.flush(true)
			default: // then the last batch is taken for one that was never acknowledged, and its loss is not counted
				last = fx.mustCommit(99)[0].ID
				want[last] = nil
				fx.List(func(e queue.Entry) bool {
					if e.ID == last {
						var out bytes.Buffer
						fx.Cat(last, &out)
						want[last] = out.Bytes()
					}
					return true
				})
			}
			base := fx.fs.Kill()
			rng := rand.New(rand.NewPCG(3, 4))
			opened, lost := 0, 0
			for name, f := range base.files {
				log := strings.HasSuffix(name, ".ack")
				for at := range f.data {
					if log && at > 1024 && f.data[at] == 0 && at%7 != 0 {
						continue // the ack log's reserve is long
					}
					if (testing.Short() || raceEnabled) && at%11 != 0 {
						continue // every byte is for the run that is quick: one goroutine opens and reads
					}
					left := base.Clone()
					left.files[name].data[at] ^= 1 << rng.IntN(8)
					fx.open(left)
					opened++
					got := drain(t, fx.Spool)
					missing, uncounted := 0, 0
					for id, text := range want {
						if out, ok := got[id]; !ok {
							if missing++; id == last {
								uncounted++
							}
						} else if !bytes.Equal(out, text) {
							t.Fatalf("%s: byte %d: an altered message was handed on", name, at)
						}
						delete(got, id)
					}
					if how == "killed before a note" && missing == 0 && got[done[0].ID] == nil {
						missing, uncounted = 1, 0 // it was dropped, but nothing says so: hit by the bit, it counts
					}
					delete(got, done[0].ID) // settled, but the note may be what was hit
					if len(got) > 0 {
						t.Fatalf("%s: byte %d: a message appeared", name, at)
					}
					damaged := int(fx.Stats().Damaged)
					if missing > 1 || missing > damaged+uncounted || damaged > 1 || log && missing > 0 {
						t.Fatalf("%s: byte %d: %d messages lost, %d counted as damaged", name, at, missing, damaged)
					}
					lost += missing
				}
			}
			t.Logf("%d turned bits, %d of them cost a message", opened, lost)
		})
	}
}

// TestATornTailIsCutAtEveryLength cuts the segment of a killed spool everywhere: what lies before the cut is there.
func TestATornTailIsCutAtEveryLength(t *testing.T) {
	fx := newFixture(t, Options{})
	type placed struct {
		queuetest.Message
		end int64
	}
	var want []placed
	for _, size := range []int{100, 0, 3000, 50} {
		msgs := fx.mustCommit(size, size/2)
		for _, m := range msgs {
			entry := fx.byID[m.ID]
			want = append(want, placed{m, entry.bodyOffset() + entry.size()})
		}
	}
	name := fx.path(segmentName(fx.current.number))
	base := fx.fs.Kill()
	step := 1
	if testing.Short() || raceEnabled {
		step = 13
	}
	for n := fileHeaderBytes; n <= len(base.files[name].data); n += step {
		left := base.Clone()
		f := left.files[name]
		f.data, f.stable = f.data[:n:n], f.stable[:n:n]
		fx.open(left)
		again := left.Clone()
		check := func() {
			got := drain(t, fx.Spool)
			count := 0
			for _, m := range want {
				if m.end > int64(n) {
					continue
				}
				count++
				if !bytes.Equal(got[m.ID], m.Text) {
					t.Fatalf("cut at %d: the message that ends at %d is lost or altered", n, m.end)
				}
			}
			if len(got) != count {
				t.Fatalf("cut at %d: %d messages, want %d", n, len(got), count)
			}
		}
		check()
		fx.open(again)
		check()
	}
}

func TestADamagedMessageStaysForTheOperator(t *testing.T) {
	fx := newFixture(t, Options{})
	msgs := fx.mustCommit(1000, 500_000, 1000)
	long := fx.byID[msgs[1].ID]
	fx.fs.files[fx.path(segmentName(long.seg.number))].data[long.off+400_000] ^= 4
	if got := drain(t, fx.Spool); len(got) != 2 {
		t.Fatalf("%d messages handed on, want 2", len(got))
	}
	check := func() {
		e, err := fx.Show(msgs[1].ID)
		if err != nil || e.State != queue.Damaged || e.Reason == "" || e.ReversePath == "" {
			t.Errorf("show: %+v, %v", e, err)
		}
		var out bytes.Buffer
		if err := fx.Cat(msgs[1].ID, &out); !errors.Is(err, queue.ErrCorrupt) || out.Len() > 0 {
			t.Errorf("cat: %v, %d bytes", err, out.Len())
		}
	}
	check()
	if n := fx.Stats().Damaged; n != 1 {
		t.Errorf("%d counted", n)
	}
	if err := fx.Close(); err != nil {
		t.Fatal(err)
	}
	fx.open(fx.fs.Kill())
	check()
	if err := fx.Drop(msgs[1].ID); err != nil {
		t.Error(err)
	}
}

func TestMailWithoutANextHopIsHeldUntilThereIsOne(t *testing.T) {
	fx := newFixture(t, Options{Hold: "no next hop"})
	msgs := fx.mustCommit(1, 2, 3)
	if err := fx.Hold(msgs[1].ID, "suspicious"); err != nil {
		t.Fatal(err)
	}
	if e, _ := fx.Show(msgs[0].ID); e.State != queue.Held || e.Reason != "no next hop" {
		t.Errorf("entry %+v", e)
	}
	if err := fx.Close(); err != nil {
		t.Fatal(err)
	}
	fx.open(fx.fs.Kill())
	if n := fx.Stats().Messages["held"]; n != 3 {
		t.Fatalf("%d held after a restart", n)
	}
	fx.SetHold("")
	if got := drain(t, fx.Spool); len(got) != 2 {
		t.Errorf("%d messages came out, want all but the one held by hand", len(got))
	}
	fx.SetHold("no next hop again")
	if e, _ := fx.Show(msgs[1].ID); e.Reason != "suspicious" {
		t.Errorf("entry %+v", e)
	}
	if err := fx.Release(msgs[1].ID); err != nil {
		t.Fatal(err)
	}
	if got := drain(t, fx.Spool); len(got) != 1 {
		t.Error("what an operator releases is not held for want of a next hop")
	}
}

func TestTheAckLogStaysBounded(t *testing.T) {
	fx := newFixture(t, Options{ackCompact: 32 << 10})
	keep := fx.mustCommit(100)
	if err := fx.Hold(keep[0].ID, "for later"); err != nil {
		t.Fatal(err)
	}
	largest := int64(0)
	for range 300 {
		fx.mustCommit(10, 10, 10, 10)
		drain(t, fx.Spool)
		fx.acks.flush(false)
		fx.retireStep()
		largest = max(largest, fx.acks.end)
	}
	if largest > 40<<10 {
		t.Errorf("the ack log grew to %d bytes", largest)
	}
	fx.acks.flush(true)
	fx.open(fx.fs.Crash())
	if e, err := fx.Show(keep[0].ID); err != nil || e.State != queue.Held || e.Reason != "for later" {
		t.Errorf("%+v, %v", e, err)
	}
	if n := fx.live.Load(); n != 1 {
		t.Errorf("%d messages", n)
	}
}

func TestASecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{MinFree: -1, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = Open(dir, Options{Log: quiet})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "process ") {
		t.Errorf("second open: %v", err)
	}
}

func TestAFinishedSegmentStaysFinished(t *testing.T) {
	fx := newFixture(t, Options{})
	fx.mustCommit(10, 10)
	fx.acks.flush(true)
	drain(t, fx.Spool)
	fx.seal(fx.current, false)
	fx.current = nil
	// The file is not removed yet, and a new ack log knows no message in it.
	fx.acks.behind = true
	if err := fx.acks.flush(true); err != nil {
		t.Fatal(err)
	}
	fx.open(fx.fs.Crash())
	if n := fx.live.Load(); n != 0 {
		t.Errorf("%d messages came back", n)
	}
}

func TestUpdateWordIsTheChecksumOfItsBytes(t *testing.T) {
	for _, v := range []uint32{0, 1, 0x01020304, 0xFFFFFFFF} {
		want := crc32.Update(77, castagnoli, binary.LittleEndian.AppendUint32(nil, v))
		if got := updateWord(77, v); got != want {
			t.Errorf("%#x: %#x, want %#x", v, got, want)
		}
	}
}

func TestEachBatchBeginsOnAPage(t *testing.T) {
	fx := newFixture(t, Options{})
	for _, sizes := range [][]int{{0}, {5000, 1}, {100}, {3500}} {
		msgs := fx.mustCommit(sizes...)
		if off := fx.byID[msgs[0].ID].off; off%4096 != 0 {
			t.Errorf("a batch begins at %d", off)
		}
	}
}

// FuzzReplay opens a spool whose segment and ack log are what the fuzzer makes of real ones: no panic, and no message comes out that
// was not committed. With resum, headers get the checksum they should have, so that their fields are tried too.
func FuzzReplay(f *testing.F) {
	fx := newFixture(f, Options{SegmentSize: 16 << 10, salt: func() uint64 { return 42 }})
	want := map[envelope.ID][]byte{}
	for i, size := range []int{0, 100, 2000} {
		sub, _ := fx.maker.Submission(size, 1)
		sub.Env.ID = envelope.ID{byte(i + 1)} // the same for each process of the fuzzer
		sub.Env.Arrived = time.Unix(0, 0)
		sub.Env.Trace = []byte("Received: by mx.test\r\n")
		text := bytes.Clone(sub.Env.Trace)
		for c := sub.Env.Data.First(); c != nil; c = c.Next() {
			text = append(text, c.Bytes()...)
		}
		want[sub.Env.ID] = text
		fx.Commit([]*queue.Submission{sub})
	}
	fx.acks.flush(true)
	base := fx.fs.Kill()
	seg, log := fx.path(segmentName(1)), fx.path(ackName(1))
	content := bytes.TrimRight(base.files[log].data, "\x00")
	f.Add(base.files[seg].data, content, false)
	f.Add(base.files[seg].data, content[:fileHeaderBytes], true)
	f.Add(base.files[seg].data[:5000], content[:fileHeaderBytes], false)
	f.Fuzz(func(t *testing.T, segment, acks []byte, resum bool) {
		segment, acks = bytes.Clone(segment), bytes.Clone(acks)
		if resum {
			seed := fileHeader{kind: kindSegment, number: 1, salt: 42}.seed()
			for at := fileHeaderBytes; at+recordHeaderBytes <= len(segment); at += recordAlign {
				if b := segment[at : at+recordHeaderBytes]; [4]byte(b) == recordMagic {
					binary.LittleEndian.PutUint32(b[4:], crc32.Update(seed, castagnoli, b[8:]))
				}
			}
			seed = fileHeader{kind: kindAcks, number: 1, salt: 42}.seed()
			for at := fileHeaderBytes; at+ackHeaderBytes <= len(acks); {
				n := int(acks[at+4]) | int(acks[at+5])<<8
				if at+ackHeaderBytes+n > len(acks) {
					break
				}
				binary.LittleEndian.PutUint32(acks[at:], crc32.Update(seed, castagnoli, acks[at+4:at+ackHeaderBytes+n]))
				at += int(roundUp(int64(ackHeaderBytes+n), ackAlign))
			}
		}
		left := base.Clone()
		left.files[seg].data = segment
		left.files[log].data = acks
		o := fx.o
		o.FS = left
		s, err := Open("spool", o)
		if err != nil {
			return
		}
		s.List(func(queue.Entry) bool { return true })
		for id, text := range drain(t, s) {
			// A header with a right sum may name another id; the text must be one of ours all the same.
			if !bytes.Equal(want[id], text) && !(resum && slices.ContainsFunc(slices.Collect(maps.Values(want)), func(w []byte) bool {
				return bytes.Equal(w, text)
			})) {
				t.Fatalf("message %s came out with %d bytes that were never committed", id, len(text))
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
