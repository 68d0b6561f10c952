package loadtest

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// chatter is what a target might say at any moment.
var chatter = []string{
	"250 ok\r\n", "250 ok\r\n", "250 ok\r\n", "250 ok\r\n", "250 ok\r\n", "354 go on\r\n", "354 go on\r\n", "220 go on\r\n", "235 ok\r\n", "334 more\r\n", "221 bye\r\n",
	"451 no\r\n", "550 no\r\n", "421 bye\r\n", "250-ok\r\n", "550-no\r\n", "250\n", "999 what\r\n", "junk\r\n", "\r\n", "25",
	"250-x\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 STARTTLS\r\n", "250 ok\r\n250 ok\r\n250 ok\r\n354 go on\r\n", "250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n",
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n",
}

// wanted is the reply that a client waits for.
func (s *scene) wanted() string {
	c, ok := s.client.(*session)
	if !ok {
		return "HTTP/1.1 204 Yes\r\n\r\n"
	}
	if c.next == len(c.expect) {
		return ""
	}
	switch c.expect[c.next] {
	case replyEHLO:
		return "250-x\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 STARTTLS\r\n"
	case replyAuth:
		return "235 ok\r\n"
	case replyData:
		return "354 go on\r\n"
	}
	return "250 ok\r\n"
}

// muddle lets a client meet a target that says and takes what it likes. The first octets are the options, each of the others is an event.
// Whatever happens: each message is counted once, none is in flight at the end, none has two notes (the ledger would panic), and what is
// acknowledged was written to its end.
func muddle(t *testing.T, events []byte) (acknowledged, unknown int) {
	if len(events) < 2 {
		return 0, 0
	}
	o := Options{Pipelining: []string{"off", "group", "tight"}[events[0]%3], Protocol: []string{"smtp", "smtp", "lmtp", "http"}[events[0]>>2%4]}
	if o.Protocol == "http" {
		o.Pipelining = "off"
	} else {
		if events[0]&16 != 0 {
			o.BDAT = 0.5
		}
		if events[0]&32 != 0 {
			o.STARTTLS = 1
		}
		if events[0]&64 != 0 {
			o.Auth = &Auth{User: "u", Password: "p"}
		}
	}
	o.PerConnection = int(events[1] % 4)
	s := newScene(t, o, 1+int(events[1]>>2%3), 20)
	s.stage.waits = events[1]&128 != 0
	var written []byte
	s.open(0)
	for i, e := range events[2:] {
		s.now = int64(i + 1)
		w := s.wire()
		if w.wish == wantClose {
			break
		}
		if w.wish == wantTLS {
			s.secured(s.now)
			continue
		}
		if s.stage.parked && !w.awaiting {
			s.stage.parked = false
			if m, ok := s.stage.take(s.now); ok {
				s.start(m, s.now)
			} else {
				s.quit(s.now)
			}
			continue
		}
		switch {
		case e < 128: // write: mostly all
			n := w.left()
			if e%4 == 3 {
				n = min(n, 1+int(e)*7)
			}
			all := bytes.Join(w.out, nil)
			written = append(written, all[:n]...)
			if n > 0 && w.wrote(n) {
				s.flushed(s.now)
			}
		case e == 255:
			s.lost("gone", s.now)
		case e > 240:
			s.client.feed([]byte(s.wanted()), s.now)
		default:
			s.client.feed([]byte(chatter[int(e)%len(chatter)]), s.now)
		}
	}
	s.lost("gone", s.now+1)
	n := s.tally.totals
	if sum := n.Acknowledged + n.Deferred + n.Refused + n.Errors; sum != int64(s.stage.given) || s.tally.inFlight != 0 {
		t.Fatalf("%v: %d messages given, %s, %d in flight", events, s.stage.given, s.counts(), s.tally.inFlight)
	}
	end := func(seq uint64) []byte {
		return append(appendDigits([]byte("-- the end of message "), seq, seqDigits), " of run "+s.plan.runText+"\r\n"...)
	}
	for seq := range s.plan.book.Issued() {
		for i := range s.stage.recips {
			o := s.plan.book.Outcome(seq, i)
			switch o {
			case ledger.Acknowledged:
				acknowledged++
			case ledger.Unknown:
				unknown++
			}
			if o >= ledger.Unknown && !bytes.Contains(written, end(seq)) {
				t.Fatalf("%v: message %d is %v, and was not written", events, seq, o)
			}
		}
	}
	return acknowledged, unknown
}

func TestATargetThatSaysAnythingIsCountedRight(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var acknowledged, unknown int
	for range 3000 {
		events := []byte{byte(random.Uint32()), byte(random.Uint32())}
		for range random.IntN(60) {
			said := byte(128 + random.IntN(127))
			if random.IntN(20) > 0 {
				said = 254 // what is wanted, most of the time
			}
			events = append(events, byte(random.IntN(2)*random.IntN(128)), said)
		}
		a, u := muddle(t, events)
		acknowledged, unknown = acknowledged+a, unknown+u
	}
	if acknowledged < 1000 || unknown < 50 {
		t.Errorf("only %d acknowledged, %d unknown: it says too much nonsense", acknowledged, unknown)
	}
}

func FuzzMuddle(f *testing.F) {
	f.Add([]byte{1, 0, 0, 135, 0, 156, 0, 157, 0, 135})
	f.Fuzz(func(t *testing.T, events []byte) { muddle(t, events) })
}
