package loadtest

import (
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/fastedge/fastedge/loadtest/report"
)

// phase is an index of report.PhaseNames.
type phase uint8

const (
	phaseConnect phase = iota
	phaseBanner
	phaseEHLO
	phaseTLS
	phaseAuth
	phaseMail
	phaseRcpt
	phaseData
	phaseGroup
	phaseAck
	phaseTransaction
	phaseSession
	phases
)

// outcome is an index of report.OutcomeNames.
type outcome uint8

const (
	good outcome = iota // 2yz, and 354 to DATA
	deferred
	refused
	failed // no reply, or none that could be understood
	outcomes
)

// outcomeOf sorts a reply code.
func outcomeOf(code int) outcome {
	switch code / 100 {
	case 2:
		return good
	case 4:
		return deferred
	case 5:
		return refused
	}
	return failed
}

// tally is what one driver has counted. Its owner holds mu while it works on sessions (an epoll worker: for a turn), so that the
// run's clock can look in between.
type tally struct {
	mu       sync.Mutex
	totals   report.Totals
	phases   [phases][outcomes]*hdrhistogram.Histogram
	second   *hdrhistogram.Histogram // acks since the last look, coarser
	lag      *hdrhistogram.Histogram // how late timers fired
	replies  map[report.Reply]int64  // Count is zero in the key
	inFlight int64                   // messages begun and not ended; with sessions-only, sessions
	waiting  int64
	last     int64 // when the last of them ended
	open     int64 // connections
	ready    int64 // sessions that got through the greeting, TLS and AUTH, ever
	muted    bool  // count outcomes, not latencies: slow clients would be measured, not the target

	banner     string
	words      []string
	notOffered map[string]bool
}

// maxReplyTexts bounds the different refusals that are told apart.
const maxReplyTexts = 1000

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, time.Hour.Microseconds(), 3) }

func newTally() *tally {
	return &tally{
		second:     hdrhistogram.New(1, time.Hour.Microseconds(), 2),
		lag:        newHistogram(),
		replies:    make(map[report.Reply]int64),
		notOffered: make(map[string]bool),
	}
}

// took records that a phase took d nanoseconds.
func (t *tally) took(p phase, o outcome, d int64) {
	if t.muted {
		return
	}
	h := t.phases[p][o]
	if h == nil {
		h = newHistogram()
		t.phases[p][o] = h
	}
	us := min(max(d/1000, 1), time.Hour.Microseconds())
	_ = h.RecordValue(us) // within bounds
	if p == phaseAck && o == good {
		_ = t.second.RecordValue(us)
	}
}

func (t *tally) late(d int64) { _ = t.lag.RecordValue(min(max(d/1000, 1), time.Hour.Microseconds())) }

// ended counts a message whose fate is known now.
func (t *tally) ended(o outcome, bytes int, now int64) {
	t.inFlight--
	t.last = now
	switch o {
	case good:
		t.totals.Acknowledged++
		t.totals.Bytes += int64(bytes)
	case deferred:
		t.totals.Deferred++
	case refused:
		t.totals.Refused++
	default:
		t.totals.Errors++
	}
}

// completed counts a session that ended in order.
func (t *tally) completed(sessionsOnly bool, now int64) {
	t.totals.Sessions++
	if sessionsOnly {
		t.inFlight--
		t.last = now
	}
}

// note remembers the text of a refusal or an error.
func (t *tally) note(p phase, text string) {
	key := report.Reply{Phase: report.PhaseNames[p], Text: printable(text)}
	if _, known := t.replies[key]; !known && len(t.replies) >= maxReplyTexts {
		key = report.Reply{Phase: "any", Text: "other"}
	}
	t.replies[key]++
}

// printable cuts a target's text to 200 octets and replaces what a terminal would act on.
func printable(s string) string {
	b := []byte(s[:min(len(s), 200)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// restart forgets what was counted, for the end of the warm-up. What is in flight or waits goes on, and will be counted when it ends; so it
// counts as offered.
func (t *tally) restart() {
	t.totals = report.Totals{Offered: t.inFlight + t.waiting}
	for p := range t.phases {
		for _, h := range t.phases[p] {
			if h != nil {
				h.Reset()
			}
		}
	}
	t.second.Reset()
	t.lag.Reset()
	clear(t.replies)
}

// sum is several tallies together, at one moment.
type sum struct {
	totals                         report.Totals
	inFlight, waiting, open, ready int64
	last                           int64
	second                         *hdrhistogram.Histogram
	phases                         [phases][outcomes]*hdrhistogram.Histogram
	lag                            *hdrhistogram.Histogram
	replies                        map[report.Reply]int64
}

// look adds up counters. With whole, histograms and refusals too; with second, the acks since the last look are taken out.
func look(all []*tally, second, whole bool) sum {
	var s sum
	if second {
		s.second = hdrhistogram.New(1, time.Hour.Microseconds(), 2)
	}
	if whole {
		s.lag, s.replies = newHistogram(), make(map[report.Reply]int64)
	}
	for _, t := range all {
		t.mu.Lock()
		add(&s.totals, &t.totals)
		s.inFlight += t.inFlight
		s.waiting += t.waiting
		s.open += t.open
		s.ready += t.ready
		s.last = max(s.last, t.last)
		if second {
			s.second.Merge(t.second)
			t.second.Reset()
		}
		if whole {
			for p := range t.phases {
				for o, h := range t.phases[p] {
					if h == nil || h.TotalCount() == 0 {
						continue
					}
					if s.phases[p][o] == nil {
						s.phases[p][o] = newHistogram()
					}
					s.phases[p][o].Merge(h)
				}
			}
			s.lag.Merge(t.lag)
			for key, n := range t.replies {
				s.replies[key] += n
			}
		}
		t.mu.Unlock()
	}
	return s
}

func add(to, t *report.Totals) {
	to.Offered += t.Offered
	to.Acknowledged += t.Acknowledged
	to.Deferred += t.Deferred
	to.Refused += t.Refused
	to.Errors += t.Errors
	to.Waited += t.Waited
	to.Dropped += t.Dropped
	to.Sessions += t.Sessions
	to.Bytes += t.Bytes
	to.BadClients += t.BadClients
}

// phaseList is the histograms that have something in them, in the order of a session.
func (s *sum) phaseList() []report.Phase {
	var list []report.Phase
	for p := range s.phases {
		for o, h := range s.phases[p] {
			if h != nil {
				list = append(list, report.Phase{Name: report.PhaseNames[p], Outcome: report.OutcomeNames[o], Histogram: report.Histogram{Histogram: h}})
			}
		}
	}
	return list
}

// replyList is the refusals, most frequent first.
func (s *sum) replyList() []report.Reply {
	var list []report.Reply
	for key, n := range s.replies {
		key.Count = n
		list = append(list, key)
	}
	slices.SortFunc(list, func(a, b report.Reply) int {
		switch {
		case a.Count != b.Count:
			return int(b.Count - a.Count)
		case a.Text < b.Text:
			return -1
		case a.Text > b.Text:
			return 1
		}
		return 0
	})
	if len(list) > report.MaxReplies {
		other := report.Reply{Phase: "any", Text: "other"}
		for _, r := range list[report.MaxReplies-1:] {
			other.Count += r.Count
		}
		list = append(list[:report.MaxReplies-1], other)
	}
	return list
}
