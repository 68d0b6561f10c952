package httpedge

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

func TestKeysAreQuotedOrBare(t *testing.T) {
	for in, want := range map[string]string{
		"k":                                  "k",
		" \tk-1.~!{}\\ ":                     `k-1.~!{}\`,
		`"k"`:                                "k",
		`"a\"b\\c"`:                          `a"b\c`,
		`a"b`:                                `a"b`,
		strings.Repeat("k", 255):             strings.Repeat("k", 255),
		`"` + strings.Repeat("k", 255) + `"`: strings.Repeat("k", 255),
	} {
		got, ok := parseKey([]byte("kept"), []byte(in))
		if !ok || string(got) != "kept"+want {
			t.Errorf("%q: %q, %t", in, got, ok)
		}
	}
	for _, in := range []string{"", " ", `""`, `"`, `"k`, `k"k"` + "\x7f", `"k"x`, `"k" ; a=b`, `"a b"`, "a b", `"a\b"`, `"a\`, "é", "k\x00", strings.Repeat("k", 256), `"` + strings.Repeat("k", 256) + `"`} {
		if got, ok := parseKey([]byte("kept"), []byte(in)); ok || string(got) != "kept" {
			t.Errorf("%q: %q, %t", in, got, ok)
		}
	}
}

func TestKeysOfOtherCredentialsAreOthers(t *testing.T) {
	seen := map[[32]byte]bool{}
	for _, c := range [][2]string{{"", "ab"}, {"a", "b"}, {"ab", ""}, {"b", "a"}, {strings.Repeat("c", 600), "k"}} {
		seen[keyOf([]byte(c[0]), []byte(c[1]))] = true
	}
	if len(seen) != 5 {
		t.Errorf("%d different", len(seen))
	}
}

// numbered makes a key or payload of a number.
func numbered(n int) [32]byte { return sha256.Sum256(fmt.Append(nil, n)) }

func idAt(at time.Time) envelope.ID { return envelope.NewIDSource([32]byte{1}).Next(at) }

var keyTime = time.UnixMilli(1_700_000_000_000)

func TestAKeyGoesFromFreshToReplay(t *testing.T) {
	keys := newKeys(10, time.Hour)
	begin := func(key, payload int, at time.Time, want keyState) queue.Remembered {
		t.Helper()
		state, first := keys.begin(numbered(key), numbered(payload), at)
		if state != want {
			t.Errorf("state %d and not %d", state, want)
		}
		return first
	}
	begin(1, 1, keyTime, keyFresh)
	begin(1, 1, keyTime, keyInFlight)
	begin(1, 2, keyTime, keyMismatch)
	begin(2, 1, keyTime, keyFresh)
	keys.drop(numbered(2))
	begin(2, 2, keyTime, keyFresh)
	id := idAt(keyTime)
	answer := []byte("answer")
	keys.done(numbered(1), id, answer)
	clear(answer) // it was copied
	if first := begin(1, 1, keyTime, keyReplay); first.ID != id || string(first.Answer) != "answer" || first.Key != numbered(1) || first.Payload != numbered(1) {
		t.Errorf("%+v", first)
	}
	begin(1, 2, keyTime, keyMismatch)
	begin(1, 2, keyTime.Add(time.Hour-time.Millisecond), keyMismatch)
	begin(1, 2, keyTime.Add(time.Hour), keyFresh)
	if n := keys.keys.Load(); n != 2 {
		t.Errorf("%d keys", n)
	}
	if n := keys.answers.Load(); n != 0 {
		t.Errorf("%d bytes of answers", n)
	}
}

func TestKeysInFlightAreNotForgotten(t *testing.T) {
	keys := newKeys(10, time.Hour)
	keys.begin(numbered(1), numbered(1), keyTime)
	if state, _ := keys.begin(numbered(1), numbered(1), keyTime.Add(48*time.Hour)); state != keyInFlight {
		t.Errorf("state %d", state)
	}
}

func TestKeysThatAreNotInFlightCannotBeDone(t *testing.T) {
	keys := newKeys(10, time.Hour)
	keys.load(queue.Remembered{ID: idAt(keyTime), Idempotency: envelope.Idempotency{Key: numbered(1)}})
	for name, f := range map[string]func(){
		"done": func() { keys.done(numbered(2), idAt(keyTime), nil) }, "drop": func() { keys.drop(numbered(2)) }, "drop what is done": func() { keys.drop(numbered(1)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestTheTableIsBounded(t *testing.T) {
	const most = 100
	keys := newKeys(most, time.Hour)
	for i := range most {
		if state, _ := keys.begin(numbered(i), numbered(i), keyTime); state != keyFresh {
			t.Fatalf("key %d: state %d", i, state)
		}
	}
	if state, _ := keys.begin(numbered(most), numbered(most), keyTime); state != keyFull {
		t.Errorf("state %d", state)
	}
	if state, _ := keys.begin(numbered(3), numbered(3), keyTime); state != keyInFlight {
		t.Errorf("a key that is known: state %d", state)
	}
	for i := range most {
		keys.done(numbered(i), idAt(keyTime), nil)
	}
	if state, _ := keys.begin(numbered(most), numbered(most), keyTime.Add(time.Hour-time.Millisecond)); state != keyFull {
		t.Errorf("state %d", state)
	}
	// All shards make room, and not only that of the key.
	for i := range most {
		if state, _ := keys.begin(numbered(most+i), numbered(0), keyTime.Add(time.Hour)); state != keyFresh {
			t.Fatalf("key %d after an hour: state %d", i, state)
		}
	}
}

func TestAnswersAreBoundedInAll(t *testing.T) {
	keys := newKeys(1000, time.Hour) // 128,000 bytes of answers
	answer := make([]byte, envelope.MaxAnswerBytes)
	n := 0
	for ; n < 1000; n++ {
		if state, _ := keys.begin(numbered(n), numbered(n), keyTime); state == keyFull {
			break
		}
		keys.done(numbered(n), idAt(keyTime), answer)
	}
	if want := (1000*answerBytesPerKey + len(answer) - 1) / len(answer); n != want {
		t.Errorf("%d answers, and not %d", n, want)
	}
	if state, _ := keys.begin(numbered(n), numbered(n), keyTime.Add(time.Hour)); state != keyFresh {
		t.Errorf("after an hour: state %d", state)
	}
	if left := keys.answers.Load(); left != 0 {
		t.Errorf("%d bytes of answers are left", left)
	}
}

func TestRememberedKeysAreLoaded(t *testing.T) {
	keys := newKeys(2, time.Hour)
	remembered := func(key, payload int, at time.Time, answer string) queue.Remembered {
		return queue.Remembered{ID: idAt(at), Idempotency: envelope.Idempotency{Key: numbered(key), Payload: numbered(payload), Answer: []byte(answer)}}
	}
	keys.load(remembered(1, 1, keyTime, "first"))
	keys.load(remembered(1, 2, keyTime.Add(time.Minute), "second")) // of one key the last counts
	keys.load(remembered(2, 2, keyTime.Add(-time.Hour), "old"))
	keys.load(remembered(3, 3, keyTime, "one too many"))
	if state, first := keys.begin(numbered(1), numbered(2), keyTime.Add(time.Hour)); state != keyReplay || string(first.Answer) != "second" {
		t.Errorf("state %d, %q", state, first.Answer)
	}
	if state, _ := keys.begin(numbered(3), numbered(3), keyTime.Add(time.Minute/2)); state != keyReplay {
		t.Errorf("a newer key than another: state %d", state)
	}
	if state, _ := keys.begin(numbered(2), numbered(2), keyTime.Add(time.Hour)); state != keyFresh {
		t.Errorf("the oldest: state %d", state)
	}
}

// A table that has become smaller keeps the newest keys: they come as they have arrived, or nearly so.
func TestASmallerTableKeepsTheNewestKeys(t *testing.T) {
	const all, room = 500, 100
	keys := newKeys(room, time.Hour)
	for i := range all {
		k := i ^ 1 // pairs the wrong way round
		keys.load(queue.Remembered{ID: idAt(keyTime.Add(time.Duration(k) * time.Second)), Idempotency: envelope.Idempotency{Key: numbered(k), Payload: numbered(k)}})
	}
	if n := keys.keys.Load(); n != room {
		t.Errorf("%d keys", n)
	}
	for k := range all {
		if _, known := keys.shard(numbered(k)).known[numbered(k)]; known != (k >= all-room) {
			t.Errorf("key %d: known %v", k, known)
		}
	}
	// Answers are bounded, too.
	keys = newKeys(4, time.Hour)
	for k := range 4 {
		keys.load(queue.Remembered{ID: idAt(keyTime.Add(time.Duration(k) * time.Second)), Idempotency: envelope.Idempotency{Key: numbered(k), Answer: make([]byte, 4*answerBytesPerKey)}})
	}
	if _, known := keys.shard(numbered(3)).known[numbered(3)]; !known || keys.keys.Load() != 1 {
		t.Errorf("known %v, %d keys", known, keys.keys.Load())
	}
}

// The table does what a plain map would do, whatever comes in whatever order.
func TestTheTableIsAMap(t *testing.T) {
	const most, ttl = 40, 1000 * time.Millisecond
	type entry struct {
		payload int
		at      time.Time // zero while in flight
	}
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		keys, model := newKeys(most, ttl), map[int]entry{}
		ids := envelope.NewIDSource([32]byte{byte(seed)})
		now := keyTime
		for range 5000 {
			now = now.Add(time.Duration(random.IntN(30)) * time.Millisecond)
			for k, e := range model {
				if !e.at.IsZero() && !e.at.Add(ttl).After(now) {
					delete(model, k)
				}
			}
			k, payload := random.IntN(60), random.IntN(2)
			e, known := model[k]
			want := keyFresh
			switch {
			case known && e.payload != payload:
				want = keyMismatch
			case known && e.at.IsZero():
				want = keyInFlight
			case known:
				want = keyReplay
			case len(model) == most:
				want = keyFull
			}
			if known && e.at.IsZero() && random.IntN(2) == 0 {
				if random.IntN(4) == 0 {
					keys.drop(numbered(k))
					delete(model, k)
				} else {
					id := ids.Next(now)
					keys.done(numbered(k), id, nil)
					model[k] = entry{e.payload, id.Time()}
				}
				continue
			}
			if got, _ := keys.begin(numbered(k), numbered(payload), now); got != want {
				t.Fatalf("seed %d: key %d: state %d and not %d", seed, k, got, want)
			}
			if want == keyFresh {
				model[k] = entry{payload: payload}
			}
		}
		held := 0
		for i := range keys.shards {
			s := &keys.shards[i]
			held += len(s.known)
			if len(s.expiring) > 4*most {
				t.Errorf("seed %d: %d keys wait for their end", seed, len(s.expiring))
			}
		}
		if int64(held) != keys.keys.Load() {
			t.Errorf("seed %d: %d keys are held, %d counted", seed, held, keys.keys.Load())
		}
	}
}

func TestOneOfManyGetsAKey(t *testing.T) {
	keys := newKeys(1000, time.Hour)
	var fresh, group sync.WaitGroup
	var mu sync.Mutex
	won := map[int]int{}
	for range 8 {
		group.Go(func() {
			for k := range 100 {
				if state, _ := keys.begin(numbered(k), numbered(k), keyTime); state == keyFresh {
					mu.Lock()
					won[k]++
					mu.Unlock()
					fresh.Go(func() { keys.done(numbered(k), idAt(keyTime), nil) })
				}
			}
		})
	}
	group.Wait()
	fresh.Wait()
	for k := range 100 {
		if won[k] != 1 {
			t.Errorf("key %d was fresh %d times", k, won[k])
		}
	}
}

func TestAnswersAreKeptForReplays(t *testing.T) {
	many := func(n int, text func(i int) string, code func(i int) uint16) (rcpts []recipientResult) {
		for i := range n {
			rcpts = append(rcpts, recipientResult{Reply: reply(code(i), uint16(i%2*999), uint16(i%3*499), text(i))})
		}
		return rcpts
	}
	accepted := func(int) uint16 { return 250 }
	mixed := func(i int) uint16 { return 250 + uint16(i%2)*300 }
	none := func(int) string { return "" }
	own := func(i int) string { return fmt.Sprintf("<recipient-%d@example.com> ok", i) }
	for _, c := range []struct {
		name  string
		rcpts []recipientResult
		texts bool
	}{
		{"nobody", nil, true},
		{"one", twoResults[:1], true},
		{"two", twoResults, true},
		{"many alike", slicesRepeat(recipientResult{Reply: reply(250, 1, 5, "Ok")}, 50_000), true},
		{"texts that fit", many(200, own, accepted), true},
		{"texts that don't fit", many(1000, own, accepted), false},
		{"1,000 recipients, all different", many(1000, own, mixed), false},
		{"no texts", many(1000, none, mixed), true},
	} {
		answer := appendAnswer([]byte("kept"), c.rcpts)[len("kept"):]
		if len(answer) > envelope.MaxAnswerBytes {
			t.Errorf("%s: %d bytes", c.name, len(answer))
		}
		want := make([]recipientResult, len(c.rcpts))
		for i := range c.rcpts {
			want[i].Reply = c.rcpts[i].Reply
			if !c.texts {
				want[i].Reply.Text = ""
			}
		}
		got, ok := parseAnswer(nil, answer)
		if !ok || len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %t, %d recipients of %d", c.name, ok, len(got), len(want))
		}
	}
	// Too much of everything: then it says nothing, and does not say a wrong thing.
	answer := appendAnswer(nil, many(20_000, own, mixed))
	if got, ok := parseAnswer(twoResults[:1], answer); !ok || len(got) != 1 || !bytes.Equal(answer, []byte{answerUnlisted}) {
		t.Errorf("%d bytes, %d recipients, %t", len(answer), len(got), ok)
	}
}

func slicesRepeat(r recipientResult, n int) (rcpts []recipientResult) {
	for range n {
		rcpts = append(rcpts, r)
	}
	return rcpts
}

// FuzzParseAnswer: no bytes make a panic or more recipients than there may be, and what is read is written again the same.
func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{answerUnlisted})
	f.Add(appendAnswer(nil, twoResults))
	f.Add([]byte{answerCodes, 0xFF, 0xFF, 0x7F, 0xFA, 1, 2, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		got, ok := parseAnswer(nil, in)
		if !ok {
			if got != nil {
				t.Fatalf("%d recipients of an answer that is none", len(got))
			}
			return
		}
		if len(got) > maxAnswerRecipients {
			t.Fatalf("%d recipients", len(got))
		}
		if in[0] == answerTexts && len(in) <= envelope.MaxAnswerBytes && len(got) > 0 {
			again, ok := parseAnswer(nil, appendAnswer(nil, got))
			if !ok || !reflect.DeepEqual(again, got) {
				t.Fatalf("%q: %d recipients, %d again", in, len(got), len(again))
			}
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte(`"a\"b"`))
	f.Add([]byte("k-1"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, ok := parseKey(nil, in)
		if !ok {
			return
		}
		if !validKey(got) {
			t.Fatalf("%q: %q", in, got)
		}
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(string(got))
		if again, ok := parseKey(nil, []byte(`"`+quoted+`"`)); !ok || !bytes.Equal(again, got) {
			t.Fatalf("%q is %q, and quoted %q", in, got, again)
		}
	})
}

// newHashes gives a function whose every result is new.
func newHashes() func() [32]byte {
	random := rand.NewChaCha8([32]byte{2})
	return func() (key [32]byte) {
		random.Read(key[:])
		return key
	}
}

// Every key is new, 50,000 a second, and forgotten after a second.
func BenchmarkKeys(b *testing.B) {
	const most = 100_000
	answer := appendAnswer(nil, twoResults[:1])
	ids := envelope.NewIDSource([32]byte{1})
	b.Run("impl=fastedge", func(b *testing.B) {
		keys := newKeys(most, time.Second)
		now, next := keyTime, newHashes()
		b.ReportAllocs()
		for b.Loop() {
			now = now.Add(20 * time.Microsecond)
			key := next()
			if state, _ := keys.begin(key, key, now); state == keyFresh {
				keys.done(key, ids.Next(now), answer)
			}
		}
	})
	b.Run("impl=naive", func(b *testing.B) { // one lock, no keys in flight, and a look at every key once a second
		var mu sync.Mutex
		known := map[[32]byte]keyEntry{}
		now, swept, next := keyTime, keyTime, newHashes()
		b.ReportAllocs()
		for b.Loop() {
			now = now.Add(20 * time.Microsecond)
			key := next()
			mu.Lock()
			if now.Sub(swept) > time.Second {
				for k, e := range known {
					if now.Sub(e.id.Time()) > time.Second {
						delete(known, k)
					}
				}
				swept = now
			}
			if _, ok := known[key]; !ok {
				known[key] = keyEntry{key, ids.Next(now), bytes.Clone(answer)}
			}
			mu.Unlock()
		}
	})
}
