package auth

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// keysFileWith writes a keys file.
func keysFileWith(t testing.TB, keys ...Key) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	var text []byte
	for i := range keys {
		text = append(keys[i].AppendTo(text), '\n')
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openKeys(t testing.TB, keys ...Key) *Keys {
	t.Helper()
	k, err := OpenKeys(keysFileWith(t, keys...))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// rewrite replaces the file, so that it looks different.
func rewrite(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestAPIKeyIsFoundByItsTextOnly(t *testing.T) {
	one, text := NewKey("billing")
	two, other := NewKey("billing")
	if one.ID == two.ID || text == other || len(text) != keyChars || !strings.HasPrefix(text, "fe_"+one.ID+"_") {
		t.Fatal(text, other)
	}
	keys := openKeys(t, one, two)
	for id, text := range map[string]string{one.ID: text, two.ID: other} {
		if k, err := keys.Check([]byte(text), noon); err != nil || k.ID != id || k.Name != "billing" {
			t.Errorf("%s: %+v %v", text, k, err)
		}
	}
	// One's id with the other's secret: nobody's, though it is well formed.
	mixed := appendSum([]byte(text[:secretAt] + other[secretAt:keyChars-sumChars]))
	if _, err := keys.Check(mixed, noon); err != ErrUnknownKey {
		t.Error(err)
	}
	stranger, strange := NewKey("stranger")
	if _, err := keys.Check([]byte(strange), noon); err != ErrUnknownKey {
		t.Error(stranger.ID, err)
	}
	for i := range keyChars {
		if _, err := keys.Check([]byte(text[:i]), noon); err != ErrMalformedKey {
			t.Errorf("cut to %d: %v", i, err)
		}
		wrong := []byte(text)
		wrong[i] ^= 1
		if _, err := keys.Check(wrong, noon); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("wrong at %d: %v", i, err)
		}
		if i >= len(keyPrefix) && i != secretAt-1 && isAlphanumeric(wrong[i]) {
			if _, err := keys.Check(wrong, noon); err != ErrMalformedKey { // one wrong character never has the right checksum
				t.Errorf("mistyped at %d: %v", i, err)
			}
		}
	}
	if _, err := keys.Check([]byte(text+" "), noon); err != ErrMalformedKey {
		t.Error(err)
	}
}

func TestAPIKeyExpires(t *testing.T) {
	k, text := NewKey("a")
	k.Expires = noon
	keys := openKeys(t, k)
	if _, err := keys.Check([]byte(text), noon.Add(-1)); err != nil {
		t.Error(err)
	}
	if _, err := keys.Check([]byte(text), noon); err != ErrKeyExpired {
		t.Error(err)
	}
	wrong := appendSum([]byte(text[:secretAt] + strings.Repeat("x", secretChars)))
	if _, err := keys.Check(wrong, noon); err != ErrUnknownKey { // whoever can't show it is not told that it has expired
		t.Error(err)
	}
}

func TestAPIKeyLineRoundTrip(t *testing.T) {
	k, text := NewKey("jürgen@example.org")
	full := k
	full.Created, full.Expires, full.Rate, full.Senders = noon, noon.AddDate(1, 0, 0), 100, []string{"example.org", "*.example.net", "bücher.example"}
	for _, k := range []Key{k, full} {
		line := string(k.AppendTo(nil))
		back, err := ParseKey(line)
		if err != nil || !reflect.DeepEqual(back, k) {
			t.Errorf("%s: %+v %v", line, back, err)
		}
		if strings.Contains(line, text[secretAt:keyChars-sumChars]) {
			t.Error("the secret is in the file")
		}
	}
}

func TestBadAPIKeyLinesAreRefused(t *testing.T) {
	k, text := NewKey("a")
	good := string(k.AppendTo(nil))
	sum := strings.TrimPrefix(good, k.ID+" a ")
	many := strings.Repeat("d%d.example,", MaxKeyDomains)
	var numbers []any
	for i := range MaxKeyDomains {
		numbers = append(numbers, i)
	}
	for line, want := range map[string]string{
		k.ID:                 "an id, a name and sha256=",
		k.ID + " a":          "an id, a name and sha256=",
		k.ID + " a rate=1":   "sha256= is missing",
		text + " a " + sum:   "the id must have 8",
		"ABCDEFG- a " + sum:  "the id must have 8",
		k.ID + " a#b " + sum: "the name has a blank or a #",
		k.ID + " " + strings.Repeat("a", 256) + " " + sum: "the name has 256 bytes",
		k.ID + " a sha256=AAAA":                           "has 3 bytes, not 32",
		k.ID + " a sha256=" + text:                        "is not base64",
		good + " " + sum:                                  "sha256 stands twice",
		good + " rate=0":                                  "must be a number from 1 to",
		good + " rate=1000000001":                         "must be a number from 1 to",
		good + " rate=1 rate=2":                           "rate stands twice",
		good + " created=yesterday":                       "created: must be a time",
		good + " expires=2026-01-01":                      "expires: must be a time",
		good + " expires=2026-01-01T00:00:00+01:00":       "expires: must be a time",
		good + " senders=":                                "is not a domain",
		good + " senders=a..b":                            "is not a domain",
		good + " senders=*":                               "is not a domain",
		good + " senders=a,A":                             "a stands twice",
		good + " senders=" + fmt.Sprintf(many, numbers...) + "x.example": "more than 100 domains",
		good + " " + text: "there are only sha256=",
		good + strings.Repeat(" ", maxKeysLineBytes): "more than 16384",
	} {
		_, err := ParseKey(line)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", line, err, want)
		} else if strings.Contains(err.Error(), text[secretAt:]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	path := keysFileWith(t)
	rewrite(t, path, "# ours\n\n"+good+"\n"+k.ID+" again "+sum+"\nbad\n")
	_, err := OpenKeys(path)
	if err == nil || !strings.Contains(err.Error(), path+":4: key "+k.ID+" stands twice") || !strings.Contains(err.Error(), path+":5: ") {
		t.Error(err)
	}
}

// Whoever can write the file gives himself a key.
func TestKeysFileThatOthersCanChangeIsRefused(t *testing.T) {
	k, _ := NewKey("a")
	path := keysFileWith(t, k)
	for mode, fine := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: true, 0o644: false, 0o660: false, 0o602: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeys(path); (err == nil) != fine {
			t.Errorf("%v: %v", mode, err)
		}
		if err := UpdateKeys(path, false, func(*KeysFile) error { return nil }); (err == nil) != fine && mode != 0o400 {
			t.Errorf("%v: changed: %v", mode, err)
		}
	}
}

func TestKeysReload(t *testing.T) {
	one, oneText := NewKey("one")
	one.Rate = 2
	path := keysFileWith(t, one)
	keys, err := OpenKeys(path)
	if err != nil || keys.Len() != 1 {
		t.Fatal(err)
	}
	check := func(text string) *Key {
		k, _ := keys.Check([]byte(text), noon)
		return k
	}
	if wait := keys.Take(check(oneText), 2, noon); wait != 0 {
		t.Fatal(wait)
	}
	two, twoText := NewKey("two")
	one.Name, one.Senders = "first", []string{"example.org"}
	rewrite(t, path, string(one.AppendTo(nil))+"\n"+string(two.AppendTo(nil))+"\n")
	if changed, err := keys.Reload(); !changed || err != nil || keys.Len() != 2 || check(twoText) == nil || check(oneText).Name != "first" {
		t.Error(changed, err, keys.Len())
	}
	if changed, err := keys.Reload(); changed || err != nil {
		t.Error(changed, err)
	}
	if wait := keys.Take(check(oneText), 1, noon); wait != 30*time.Minute {
		t.Errorf("what was used is forgotten: %v", wait)
	}
	for _, bad := range []string{"nonsense\n", ""} {
		if bad == "" {
			os.Remove(path)
		} else {
			rewrite(t, path, bad)
		}
		if changed, err := keys.Reload(); changed || err == nil || check(oneText) == nil {
			t.Errorf("%q: %v %v", bad, changed, err)
		}
	}
	rewrite(t, path, string(two.AppendTo(nil)))
	if changed, err := keys.Reload(); !changed || err != nil || check(oneText) != nil || check(twoText) == nil {
		t.Error("a revoked key is still good", changed, err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if changed, err := keys.Reload(); changed || err == nil || check(twoText) == nil {
		t.Error("the new mode is not seen", changed, err)
	}
}

func TestKeyBoundToDomainsSendsAsTheseOnly(t *testing.T) {
	bound := Key{Senders: []string{"example.org", "*.example.net"}}
	for path, want := range map[string]bool{
		"a@example.org": true, "a@EXAMPLE.Org": true, `"x@example.net"@example.org`: true, "a@a.example.net": true, "a@A.B.example.NET": true,
		"": false, "a": false, "a@": false, "a@example.com": false, "a@sub.example.org": false, "a@example.net": false, "a@.example.net": false,
		"a@xexample.net": false, "a@example.org.": false, "a@example.org@example.com": false, "a@[192.0.2.1]": false,
	} {
		if got := bound.MaySend([]byte(path)); got != want {
			t.Errorf("<%s>: %v", path, got)
		}
		if free := (&Key{}); !free.MaySend([]byte(path)) {
			t.Errorf("<%s>: a key that is bound to nothing may not send", path)
		}
	}
}

func TestRateOfAKey(t *testing.T) {
	k, text := NewKey("a")
	k.Rate = 60
	keys := openKeys(t, k)
	key, err := keys.Check([]byte(text), noon)
	if err != nil {
		t.Fatal(err)
	}
	at := noon
	take := func(n int, want time.Duration) {
		t.Helper()
		if got := keys.Take(key, n, at); got != want {
			t.Errorf("%d at %v: %v, want %v", n, at.Sub(noon), got, want)
		}
	}
	take(61, Never)
	take(60, 0) // an hour's at once
	take(1, time.Minute)
	take(60, time.Hour)
	at = at.Add(time.Minute)
	take(2, time.Minute)
	take(1, 0)
	take(1, time.Minute)
	at = at.Add(10 * time.Hour)
	take(60, 0) // silence is saved up for an hour, not for ten
	take(1, time.Minute)
	at = noon.Add(-24 * time.Hour) // the clock was set back
	take(1, time.Minute)
	take(0, 0)
	if free := (&Key{}); keys.Take(free, 1<<40, at) != 0 {
		t.Error("a key without a rate has one")
	}
}

func TestRateIsExactUnderConcurrency(t *testing.T) {
	k, text := NewKey("a")
	k.Rate = 1000
	keys := openKeys(t, k)
	key, err := keys.Check([]byte(text), noon)
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				if keys.Take(key, 1, noon) == 0 {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if taken.Load() != 1000 {
		t.Errorf("%d of 1000", taken.Load())
	}
}

func TestChecksOfKeysDoNotAllocate(t *testing.T) {
	k, text := NewKey("a")
	k.Rate, k.Senders = MaxKeyRate, []string{"example.net", "*.example.org"}
	keys := openKeys(t, k)
	token, path := []byte(text), []byte("a@b.Example.org")
	n := testing.AllocsPerRun(100, func() {
		key, err := keys.Check(token, noon)
		if err != nil || !key.MaySend(path) || keys.Take(key, 1, noon) != 0 {
			t.Fatal("not good", err)
		}
		if _, err := keys.Check(token[:9], noon); err == nil {
			t.Fatal("good")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestUpdateKeysChangesAllOrNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	k, _ := NewKey("a")
	add := func(f *KeysFile) error { return f.Add(k) }
	if err := UpdateKeys(path, false, add); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := UpdateKeys(path, true, func(f *KeysFile) error { return errors.Join(f.Add(k), os.ErrInvalid) }); !errors.Is(err, os.ErrInvalid) {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a refused change leaves a file")
	}
	if err := UpdateKeys(path, true, add); err != nil {
		t.Error(err)
	}
	if err := UpdateKeys(path, true, add); err == nil || !strings.Contains(err.Error(), "already") {
		t.Error(err)
	}
	spoilt := Key{ID: "12345678", Name: "two words"}
	if err := UpdateKeys(path, true, func(f *KeysFile) error { return f.Add(spoilt) }); err == nil || !strings.Contains(err.Error(), "spoil") {
		t.Error(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Error(info.Mode(), err)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			one, _ := NewKey("b")
			if err := UpdateKeys(path, true, func(f *KeysFile) error { return f.Add(one) }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if keys, err := OpenKeys(path); err != nil || keys.Len() != 11 {
		t.Error("some of 11 keys are lost", err)
	}
	if err := UpdateKeys(path, false, func(f *KeysFile) error {
		if f.Remove("nobody") || !f.Remove(k.ID) {
			t.Error("wrong answers")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if keys, err := OpenKeys(path); err != nil || keys.Len() != 10 || slices.ContainsFunc(keys.All(), func(o *Key) bool { return o.ID == k.ID }) {
		t.Error(err)
	}
}

func TestDomainsOfKeysArePrepared(t *testing.T) {
	for in, want := range map[string]string{
		"Example.ORG": "example.org", "*.Example.org": "*.example.org", "a_b.example": "a_b.example", "bücher.example": "bücher.example",
		"": "", "*": "", "*.": "", "a.*.b": "", ".a": "", "a.": "", "-a": "", "a-.b": "", "a b": "", "a,b": "", "a@b": "", "[192.0.2.1]": "",
		"\xff.example": "", "a\x00b": "", strings.Repeat("a", 64): "", strings.Repeat("a.", 127) + "a": "",
	} {
		got, err := PrepareDomain(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", in, got, err)
		}
	}
}

// FuzzKeyLine: what is read is written as a line that gives the same, and that has no line end in it.
func FuzzKeyLine(f *testing.F) {
	k, _ := NewKey("a")
	f.Add(string(k.AppendTo(nil)))
	k.Created, k.Expires, k.Rate, k.Senders = noon, noon.AddDate(1, 0, 0), 100, []string{"example.org", "*.example.net"}
	f.Add(string(k.AppendTo(nil)))
	f.Fuzz(func(t *testing.T, line string) {
		k, err := ParseKey(line)
		if err != nil {
			return
		}
		again := string(k.AppendTo(nil))
		back, err := ParseKey(again)
		if err != nil || !reflect.DeepEqual(back, k) || strings.ContainsAny(again, "\r\n") {
			t.Fatalf("%q: %+v\n%q: %+v %v", line, k, again, back, err)
		}
	})
}

// FuzzKeyText: no text but the key itself is good, and one that is malformed does not look like a key to anybody.
func FuzzKeyText(f *testing.F) {
	k, text := NewKey("a")
	keys := openKeys(f, k)
	for _, s := range []string{text, text[:20], text + "x", "fe_", "", strings.ToUpper(text)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, token []byte) {
		key, err := keys.Check(token, noon)
		if (err == nil) != (string(token) == text) || (key == nil) != (err != nil) {
			t.Fatalf("%q: %v %v", token, key, err)
		}
		if err != ErrMalformedKey && !isKeyText(token) {
			t.Fatalf("%q: %v", token, err)
		}
	})
}

// BenchmarkKeyCheck is what a request over HTTP pays for its credentials; its twin looks the whole key up in a map, hashed all the same.
func BenchmarkKeyCheck(b *testing.B) {
	var all []Key
	var token []byte
	naive := map[string]*Key{}
	for range 1000 {
		k, text := NewKey("a")
		all, token = append(all, k), []byte(text)
		naive[string(k.hash[:])] = &k
	}
	keys := openKeys(b, all...)
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := keys.Check(token, noon); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("naive", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if h := hashOf(token); naive[string(h)] == nil {
				b.Fatal("not found")
			}
		}
	})
}
