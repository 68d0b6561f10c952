package report

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
)

func TestUnlikeRunsAreRefusedAndNamed(t *testing.T) {
	a, b := synthetic(1, "closed"), synthetic(2, "closed")
	b.Parameters.Connections, b.Parameters.Size, b.Parameters.Auth, b.Parameters.Workers = 100, "64KiB", "PLAIN", 9
	b.Label = "other"
	_, err := Compare(a, b, false)
	var unlike *UnlikeError
	if !errors.As(err, &unlike) || len(unlike.Differences) != 3 {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{"connections      200, and 100", "size             4KiB, and 64KiB", "auth             not set, and PLAIN"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	c, err := Compare(a, b, true)
	if err != nil || len(c.Unlike) != 3 {
		t.Errorf("forced: %v", err)
	}
	b.Parameters = a.Parameters
	b.Parameters.Workers = 9
	if _, err := Compare(a, b, false); err != nil {
		t.Errorf("like runs: %v", err)
	}
	if _, err := CompareSets(nil, []*Run{a}, true); err == nil {
		t.Error("a side without runs was taken")
	}
}

func TestComparisonsAreAsCommitted(t *testing.T) {
	sets := func(label string, seeds ...uint64) (runs []*Run) {
		for _, s := range seeds {
			r := synthetic(s, "closed")
			r.Label = label
			runs = append(runs, r)
		}
		return runs
	}
	faster := sets("candidate", 21, 22, 23, 24, 25)
	for _, r := range faster {
		r.Totals.Acknowledged += r.Totals.Acknowledged / 5
		r.Server.CPUPerThousand *= 0.7
	}
	write := func(name string, a, b []*Run, force bool) {
		c, err := CompareSets(a, b, force)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := c.WriteText(&out, Style{}); err != nil {
			t.Fatal(err)
		}
		golden(t, name, out.Bytes())
	}
	write("compare-sets.txt", sets("postfix", 11, 12, 13, 14, 15), faster, false)
	write("compare-one.txt", sets("postfix", 11), sets("postfix", 12), false)
	write("compare-forced.txt", sets("postfix", 11), []*Run{troubled()}, true)
}

func TestMannWhitney(t *testing.T) {
	seq := func(from, n int) (list []float64) {
		for i := range n {
			list = append(list, float64(from+i))
		}
		return list
	}
	for _, c := range []struct {
		a, b []float64
		want float64
	}{
		// Exact: 2 divided by the number of divisions when one side is above the other.
		{seq(1, 5), seq(6, 5), 2.0 / 252},
		{seq(6, 5), seq(1, 5), 2.0 / 252},
		{seq(1, 3), seq(4, 3), 2.0 / 20},
		{seq(1, 4), seq(5, 4), 2.0 / 70},
		{[]float64{1, 3}, []float64{2, 4}, 4.0 / 6}, // rank sums of pairs of 1..4: 3 4 5 5 6 7; at least 1 away from 5: 4 of 6
		{[]float64{5, 5, 5}, []float64{5, 5, 5}, 1},
		{[]float64{1, 1, 2}, []float64{2, 3, 3}, 4.0 / 20}, // ties: doubled ranks 3 3 7 7 11 11; 13 or less, or 29 or more
		{[]float64{1}, []float64{2, 3}, 1},
		{seq(1, 40), seq(41, 40), 0},
	} {
		if got := mannWhitney(c.a, c.b); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%v, %v: %v, want %v", c.a, c.b, got, c.want)
		}
	}
	// The approximation agrees with the exact count where they meet.
	a, b := seq(1, 30), seq(12, 30)
	exact := mannWhitney(a, b)
	approx := mannWhitney(append(a, 15.5), append(b, 25.5, 26.5))
	if exact > 0.05 || math.Abs(math.Log10(exact)-math.Log10(approx)) > 0.5 {
		t.Errorf("exact %v, approximation %v", exact, approx)
	}
}
