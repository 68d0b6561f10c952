package report

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func written(t testing.TB, r *Run) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRunThatWasWrittenReadsBack(t *testing.T) {
	for name, r := range map[string]*Run{"open": synthetic(1, "open"), "troubled": troubled(), "idle": idle(), "empty": {Schema: Schema}} {
		text := written(t, r)
		back, err := Read(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if again := written(t, back); !bytes.Equal(again, text) {
			t.Errorf("%s: written twice, different", name)
		}
		for i := range r.Phases {
			if !back.Phases[i].Histogram.Equals(r.Phases[i].Histogram.Histogram) {
				t.Errorf("%s: another distribution of %s", name, r.Phases[i].Name)
			}
		}
		if !reflect.DeepEqual(back.Totals, r.Totals) || !reflect.DeepEqual(back.Thresholds, r.Thresholds) || len(back.Series) != len(r.Series) {
			t.Errorf("%s: other figures", name)
		}
	}
}

func TestHistogramHasFiguresForPeople(t *testing.T) {
	h := NewHistogram()
	for ms := range 1000 {
		h.Record(time.Duration(ms+1) * time.Millisecond)
	}
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"count": 1000, "min": 1, "max": 1000, "mean": 500.5, "p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "p99.99": 1000} {
		if got, _ := m[name].(float64); got < want*0.998 || got > want*1.002 {
			t.Errorf("%s: %v, want about %v", name, m[name], want)
		}
	}
	if s, _ := m["hdr"].(string); !strings.HasPrefix(s, "HISTFAAA") {
		t.Errorf("hdr is not V2 compressed: %.20q", s)
	}
}

func TestRecordClampsAndNilIsEmpty(t *testing.T) {
	h := NewHistogram()
	h.Record(-time.Second)
	h.Record(0)
	h.Record(100 * time.Hour)
	if h.Count() != 3 || h.MinMs() != 0.001 || h.MaxMs() < 3600e3 {
		t.Errorf("%d samples, %v to %v ms", h.Count(), h.MinMs(), h.MaxMs())
	}
	none := (&Run{}).Phase("ack", "2xx")
	if none != nil || none.Count() != 0 || none.Ms(50)+none.MinMs()+none.MaxMs()+none.MeanMs() != 0 {
		t.Error("a phase that did not happen has figures")
	}
}

func TestReadRefuses(t *testing.T) {
	good := string(written(t, idle()))
	for name, c := range map[string]struct{ text, message string }{
		"nothing":            {"", "EOF|unexpected end"},
		"another file":       {`{"rows": []}`, "no schema"},
		"a list":             {`[]`, "cannot unmarshal"},
		"a later schema":     {strings.Replace(good, `"schema": 1`, `"schema": 2`, 1), "schema 2 is of a later version"},
		"two objects":        {good + "{}", "after top-level"},
		"cut short":          {good[:len(good)/2], "unexpected end"},
		"a count by hand":    {strings.Replace(good, `"count": 5000`, `"count": 6000`, 1), "says 6000 samples and holds 5000"},
		"no distribution":    {`{"schema":1,"phases":[{"histogram":{"count":3}}]}`, `without "hdr"`},
		"bad base64":         {`{"schema":1,"phases":[{"histogram":{"count":3,"hdr":"?"}}]}`, "base64"},
		"a short histogram":  {`{"schema":1,"phases":[{"histogram":{"count":3,"hdr":"AAAA"}}]}`, "cut short"},
		"many phases":        {`{"schema":1,"phases":[` + strings.Repeat("{},", 64) + `{}]}`, "65 phases"},
		"five digits, 50 MB": {`{"schema":1,"phases":[{"histogram":{"count":1,"hdr":"` + wideHDR(t) + `"}}]}`, "5 significant digits"},
	} {
		_, err := Read(strings.NewReader(c.text))
		if err == nil {
			t.Errorf("%s: taken", name)
			continue
		}
		found := false
		for want := range strings.SplitSeq(c.message, "|") {
			found = found || strings.Contains(err.Error(), want)
		}
		if !found {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(io.MultiReader(strings.NewReader(good), spaces(MaxRunBytes))); err == nil || !strings.Contains(err.Error(), "longer than 64 MiB") {
		t.Errorf("a run that does not end: %v", err)
	}
	if _, err := Read(io.LimitReader(io.MultiReader(strings.NewReader(good), spaces(MaxRunBytes)), MaxRunBytes)); err != nil {
		t.Errorf("a run of exactly 64 MiB: %v", err)
	}
}

func TestUnknownFieldsArePassedOver(t *testing.T) {
	text := strings.Replace(string(written(t, idle())), `"tool":`, `"a_later_field": {"x": [1]}, "tool":`, 1)
	if _, err := Read(strings.NewReader(text)); err != nil {
		t.Error(err)
	}
}

// spaces is n octets of white space.
func spaces(n int64) io.Reader { return io.LimitReader(spaceReader{}, n) }

type spaceReader struct{}

func (spaceReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func FuzzRead(f *testing.F) {
	f.Add(written(f, idle()))
	f.Add([]byte(`{"schema":1,"seconds":1e308,"series":[{"at":1e308,"offered":9223372036854775807,"ack_p99_ms":1e308},{"at":-1e308,"ack_p50_ms":-5}],` +
		`"totals":{"acknowledged":-5},"server":{},"verdict":{},"thresholds":[{"text":"x"}],"search":[{"rate":-1}]}`))
	f.Add([]byte(`{"schema":1,"seconds":1,"parameters":{"loop":"open","rate":1e300},"series":[{"at":1,"offered":1},{"at":1}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Read(bytes.NewReader(text))
		if err != nil {
			return
		}
		// What can be read can be written, read again, and shown in every way.
		first := written(t, r)
		back, err := Read(bytes.NewReader(first))
		if err != nil {
			t.Fatalf("%v in what Write wrote:\n%s", err, first)
		}
		if second := written(t, back); !bytes.Equal(first, second) {
			t.Fatalf("written twice, different:\n%s\n%s", first, second)
		}
		for name, write := range map[string]func(io.Writer) error{
			"text":     func(w io.Writer) error { return WriteText(w, r, Style{Color: true, Phases: true}) },
			"csv":      func(w io.Writer) error { return WriteCSV(w, r) },
			"gobench":  func(w io.Writer) error { return WriteGoBench(w, r) },
			"markdown": func(w io.Writer) error { return WriteMarkdown(w, r) },
			"html":     func(w io.Writer) error { return WriteHTML(w, r, r) },
		} {
			var b bytes.Buffer
			if err := write(&b); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if name == "html" {
				wellFormed(t, b.Bytes())
			}
		}
	})
}
