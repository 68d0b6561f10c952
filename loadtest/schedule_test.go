package loadtest

import (
	"math"
	"testing"
	"time"
)

// timetable is a schedule of its own with a clock of the test.
func timetable(t *testing.T, o Options, share float64) *schedule {
	t.Helper()
	o.Target, o.Connections, o.Size = "127.0.0.1:25", 100, FixedSize(600)
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	s := newSchedule(newPlan(o), newControl(), 0, int(100*share))
	s.control.flowing.Store(true)
	return &s
}

// dueBy goes on to a moment and gives all that was due until then.
func (s *schedule) dueBy(now time.Duration) (all []int64) {
	s.begin(0)
	for {
		at, ok := s.due(int64(now))
		if !ok {
			return all
		}
		all = append(all, at)
	}
}

func TestEvenArrivalsComeEvenly(t *testing.T) {
	s := timetable(t, Options{Rate: 1000}, 1)
	var all []int64
	for now := time.Duration(0); now <= 10*time.Second; now += 3 * time.Millisecond {
		for _, at := range s.dueBy(now) {
			if at > int64(now) || at < int64(now-4*time.Millisecond) {
				t.Fatalf("due at %d, and it is %d", at, now)
			}
			all = append(all, at)
		}
	}
	if len(all) != 9999 && len(all) != 10000 {
		t.Errorf("%d arrivals in 10 s", len(all))
	}
	for i, at := range all {
		if want := int64(i+1) * 1e6; at < want-1 || at > want+1 {
			t.Fatalf("the %dth is due at %d", i, at)
		}
	}
	if s.tally.totals.Offered != int64(len(all)) {
		t.Errorf("offered %d", s.tally.totals.Offered)
	}
}

// A driver that was held up for a second gets what was due meanwhile, at the times when it was.
func TestArrivalsThatAreLateKeepTheirTimes(t *testing.T) {
	s := timetable(t, Options{Rate: 100}, 1)
	if all := s.dueBy(time.Second); len(all) != 100 || all[0] != 1e7 || all[99] != 1e9 {
		t.Errorf("%d arrivals", len(all))
	}
	m := s.message(12345)
	if m.due != 12345 {
		t.Error("a message is due when it is sent")
	}
}

func TestPoissonArrivalsHaveTheMeanAndTheSpread(t *testing.T) {
	s := timetable(t, Options{Rate: 1000, Poisson: true}, 1)
	all := s.dueBy(50 * time.Second)
	if n := float64(len(all)); math.Abs(n-50000) > 1500 {
		t.Errorf("%v arrivals in 50 s", n)
	}
	var sum, squares float64
	for i := 1; i < len(all); i++ {
		d := float64(all[i]-all[i-1]) / 1e6
		sum, squares = sum+d, squares+d*d
	}
	n := float64(len(all) - 1)
	if mean, deviation := sum/n, math.Sqrt(squares/n-sum*sum/n/n); math.Abs(mean-1) > 0.03 || math.Abs(deviation-1) > 0.05 {
		t.Errorf("mean %v ms, deviation %v", mean, deviation)
	}
}

func TestARampHasItsArea(t *testing.T) {
	for _, share := range []float64{1, 0.5, 0.01} {
		s := timetable(t, Options{Ramp: &Ramp{0, 10000, 10 * time.Second}}, share)
		for now, want := range map[time.Duration]float64{time.Second: 500, 10 * time.Second: 50000, 12 * time.Second: 70000} {
			s := *s
			s.started = false
			s.count, s.tally = 0, newTally()
			if n := float64(len(s.dueBy(now))) / share; math.Abs(n-want) > 0.001*want+1/share {
				t.Errorf("share %v: %v arrivals after %v, want %v", share, n, now, want)
			}
		}
	}
}

func TestDriversTakeTurns(t *testing.T) {
	o, err := Options{Target: "127.0.0.1:25", Connections: 4, Rate: 100}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	p := newPlan(o)
	seen := map[int64]bool{}
	for i := range 4 {
		s := newSchedule(p, newControl(), i, 1)
		s.control.flowing.Store(true)
		for _, at := range s.dueBy(time.Second) {
			seen[at/1e6] = true
		}
	}
	if len(seen) < 96 || len(seen) > 101 {
		t.Errorf("%d different moments of 100 arrivals", len(seen))
	}
}

func TestArrivalsWaitUpToTheCapAndAreDroppedBeyond(t *testing.T) {
	for share, most := range map[float64]int{1: 10, 0.5: 5, 0.01: 1} {
		s := timetable(t, Options{Rate: 1000, MaxWaiting: 10}, share)
		for i := range most {
			s.wait(int64(i))
		}
		if s.tally.totals.Dropped != 0 || s.tally.waiting != int64(most) {
			t.Errorf("at the cap %d are dropped, %d wait", s.tally.totals.Dropped, s.tally.waiting)
		}
		s.wait(99)
		if s.tally.totals.Dropped != 1 || s.tally.waiting != int64(most) || s.tally.totals.Waited != int64(most)+1 {
			t.Errorf("one past it %d are dropped, %d wait", s.tally.totals.Dropped, s.tally.waiting)
		}
		for i := range most {
			if m, ok := s.take(1000); !ok || m.due != int64(i) {
				t.Errorf("the %dth was due at %d, %v", i, m.due, ok)
			}
			s.wait(int64(i))
		}
		if n := cap(s.waiting); n > 64 {
			t.Errorf("room for %d", n)
		}
		s.control.stop()
		if !s.over() || s.tally.waiting != 0 || s.tally.totals.Dropped != int64(most)+1 {
			t.Errorf("at the end: %d wait, %d dropped", s.tally.waiting, s.tally.totals.Dropped)
		}
	}
}

func TestTheClosedLoopTakesWhatIsLeft(t *testing.T) {
	s := timetable(t, Options{Messages: 3}, 1)
	s.control.flowing.Store(false)
	if _, ok := s.take(0); ok || s.tally.totals.Offered != 0 {
		t.Error("a message before the start")
	}
	s.control.flowing.Store(true)
	s.control.left.Store(3)
	s.control.limited.Store(true)
	for range 3 {
		if _, ok := s.take(0); !ok {
			t.Fatal("none")
		}
	}
	if s.over() {
		t.Error("over before anybody was refused")
	}
	for range 2 {
		if _, ok := s.take(0); ok {
			t.Fatal("one too many")
		}
	}
	select {
	case <-s.control.exhausts:
	default:
		t.Error("the end is not told")
	}
	if !s.over() || s.tally.totals.Offered != 3 || s.control.ending.Err() == nil {
		t.Error("not over")
	}
}

func TestWhatWaitsIsStillSentWhenTheMessagesHaveRunOut(t *testing.T) {
	s := timetable(t, Options{Rate: 1000, Messages: 2}, 1)
	s.control.left.Store(2)
	s.control.limited.Store(true)
	for _, at := range s.dueBy(time.Second) {
		s.wait(at)
	}
	for range 2 {
		if s.over() {
			t.Fatal("over, and some wait")
		}
		if _, ok := s.take(0); !ok {
			t.Fatal("none waits")
		}
	}
	if !s.over() || s.tally.totals.Dropped != 0 {
		t.Error("not over")
	}
}

func TestNothingBeginsAfterTheStop(t *testing.T) {
	for _, o := range []Options{{}, {Rate: 1000}, {SessionsOnly: true}} {
		s := timetable(t, o, 1)
		s.control.stop()
		if _, ok := s.take(0); ok || len(s.dueBy(time.Second)) > 0 || s.beginSession() {
			t.Errorf("%+v begins", o)
		}
	}
}

func TestSessionsThatDidNotBeginAreNotCounted(t *testing.T) {
	s := timetable(t, Options{SessionsOnly: true, Messages: 1}, 1)
	s.control.left.Store(1)
	s.control.limited.Store(true)
	if !s.beginSession() {
		t.Fatal("refused")
	}
	s.cancelSession()
	if s.tally.totals.Offered != 0 || s.tally.inFlight != 0 || !s.beginSession() {
		t.Error("it was counted")
	}
	s.endSession(false, 7)
	if s.tally.totals.Errors != 1 || s.tally.last != 7 || s.tally.inFlight != 0 {
		t.Errorf("%+v", s.tally.totals)
	}
}
