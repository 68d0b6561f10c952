package resolver

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fastedge/fastedge/spf"
)

// Who knows the time is believed about what is cached, and about nothing else.
func TestLookupAtGoesByTheCallersTime(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, q *dns.Msg) { says(0, "@ 300 TXT one")(w, q) })
	r, clock := resolve(t, Options{MaxStale: -1}, s)
	want(t, ask(t, r, txt("a.example")), `["one"]`)
	at := func(at time.Duration, name string) (future, bool) {
		f := make(future, 2)
		a, now := r.LookupAt(epoch.Add(at), txt(name), nobody, func(a spf.Answer) { f <- a })
		if now {
			f <- a
		}
		return f, now
	}
	clock.nanos.Store(int64(time.Hour)) // too old by the clock, not by the caller's time
	f, now := at(299*time.Second, "a.example")
	if want(t, f.get(t), `["one"]`); !now {
		t.Error("what is cached is asked for")
	}
	if n := s.asked.Load(); n != 1 {
		t.Errorf("%d questions", n)
	}
	f, now = at(300*time.Second, "a.example") // too old by both
	if want(t, f.get(t), `["one"]`); now || s.asked.Load() != 2 {
		t.Errorf("at once: %v, after %d questions", now, s.asked.Load())
	}
	// The time that a question may take is counted by the clock, or this one would be over before it is asked.
	f, now = at(-time.Hour, "b.example")
	if want(t, f.get(t), `["one"]`); now {
		t.Error("an answer to what was never asked")
	}
}
