package report

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// examples are pages of every kind, by file name.
func examples(t testing.TB) map[string][]byte {
	t.Helper()
	pages := map[string][]byte{}
	write := func(name string, f func(io.Writer) error) {
		var b bytes.Buffer
		if err := f(&b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		pages[name] = b.Bytes()
	}
	open := synthetic(1, "open")
	open.Parameters.Rate, open.Parameters.Arrivals = 5000, "constant"
	closed, other := synthetic(2, "closed"), synthetic(3, "closed")
	other.Label = "exim"
	var a, b []*Run
	for i := range uint64(5) {
		a = append(a, synthetic(11+i, "closed"))
		r := synthetic(21+i, "closed")
		r.Label = "candidate"
		r.Totals.Acknowledged += r.Totals.Acknowledged / 5
		r.Server.CPUPerThousand *= 0.7
		b = append(b, r)
	}
	write("open.html", func(w io.Writer) error { return WriteHTML(w, open) })
	write("closed.html", func(w io.Writer) error { return WriteHTML(w, closed) })
	write("troubled.html", func(w io.Writer) error { return WriteHTML(w, troubled()) })
	write("several.html", func(w io.Writer) error { return WriteHTML(w, closed, other, open) })
	write("idle.html", func(w io.Writer) error { return WriteHTML(w, idle()) })
	write("empty.html", func(w io.Writer) error { return WriteHTML(w, &Run{}) })
	write("compare.html", func(w io.Writer) error {
		c, err := CompareSets(a, b, false)
		if err != nil {
			return err
		}
		return c.WriteHTML(w)
	})
	write("compare-forced.html", func(w io.Writer) error {
		c, err := Compare(closed, troubled(), true)
		if err != nil {
			return err
		}
		return c.WriteHTML(w)
	})
	return pages
}

// TestExamplesForTheEye writes the pages where FASTEDGE_REPORT_EXAMPLES says, to be looked at.
func TestExamplesForTheEye(t *testing.T) {
	dir := os.Getenv("FASTEDGE_REPORT_EXAMPLES")
	if dir == "" {
		t.Skip("FASTEDGE_REPORT_EXAMPLES is not set")
	}
	for name, page := range examples(t) {
		if err := os.WriteFile(filepath.Join(dir, name), page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// wellFormed parses the page as XML after what HTML writes otherwise: void elements, and attributes without a value.
func wellFormed(t testing.TB, page []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(page))
	d.Strict = false // for the doctype and void elements; everything we open we close
	d.AutoClose = []string{"meta", "link", "br"}
	d.Entity = xml.HTMLEntity
	for {
		_, err := d.Token()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
	}
}

func TestPagesAreSelfContained(t *testing.T) {
	for name, page := range examples(t) {
		wellFormed(t, page)
		text := string(page)
		for _, bad := range []string{"<script", " style=", "@import", "url(", "NaN", "+Inf", "-Inf", "%!", "ZgotmplZ", "<img"} {
			if i := strings.Index(text, bad); i >= 0 {
				t.Errorf("%s: has %q: …%s…", name, bad, text[max(0, i-80):min(len(text), i+80)])
			}
		}
		for _, m := range regexp.MustCompile(`(?:href|src)="([^"]*)"`).FindAllStringSubmatch(text, -1) {
			if !strings.HasPrefix(m[1], "data:") {
				t.Errorf("%s: refers to %s", name, m[1])
			}
		}
		if n := len(page); n > 400<<10 && name != "several.html" {
			t.Errorf("%s: %d KiB", name, n>>10)
		}
		ids := map[string]bool{}
		for _, m := range regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(text, -1) {
			if ids[m[1]] {
				t.Errorf("%s: the id %s twice", name, m[1])
			}
			ids[m[1]] = true
		}
		for _, m := range regexp.MustCompile(`aria-labelledby="([^"]*)"`).FindAllStringSubmatch(text, -1) {
			for id := range strings.FieldsSeq(m[1]) {
				if !ids[id] {
					t.Errorf("%s: no element %s", name, id)
				}
			}
		}
	}
}

func TestLongRunsMakeSmallPages(t *testing.T) {
	r := synthetic(1, "open")
	second := r.Series[0]
	r.Series = nil
	for i := range 86400 {
		second.At = float64(i + 1)
		r.Series = append(r.Series, second)
	}
	r.Seconds = 86400
	var b bytes.Buffer
	if err := WriteHTML(&b, r); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, b.Bytes())
	if b.Len() > 400<<10 || !strings.Contains(b.String(), ">24:00:00<") {
		t.Errorf("%d KiB", b.Len()>>10)
	}
	// A constant series stays what it is when seconds are gathered.
	for _, stretch := range bins(r.Series, maxBins) {
		if math.Abs(stretch.acked-float64(second.Acknowledged)) > 1e-6 || math.Abs(stretch.ackP99-second.AckP99Ms) > 1e-6 {
			t.Fatalf("%+v", stretch)
		}
	}
}

func TestSamePageTwice(t *testing.T) {
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := WriteHTML(w, troubled(), synthetic(2, "closed")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two pages of one run differ")
	}
}

func TestWhatTheTargetWroteIsText(t *testing.T) {
	pages := examples(t)
	for _, name := range []string{"troubled.html", "compare-forced.html"} {
		page := pages[name]
		d := xml.NewDecoder(bytes.NewReader(page))
		d.Strict = false
		d.AutoClose = []string{"meta", "link", "br"}
		d.Entity = xml.HTMLEntity
		var text strings.Builder
		for {
			token, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			switch token := token.(type) {
			case xml.StartElement:
				if n := token.Name.Local; n == "img" || n == "script" || n == "i" || n == "iframe" {
					t.Errorf("%s: an element %s", name, n)
				}
				for _, a := range token.Attr {
					if strings.HasPrefix(a.Name.Local, "on") {
						t.Errorf("%s: an attribute %s", name, a.Name.Local)
					}
				}
			case xml.CharData:
				text.Write(token)
			}
		}
		if !strings.Contains(text.String(), `<img src=x onerror="alert(1)">`) {
			t.Errorf("%s: the label is not shown as it was given", name)
		}
		if name == "troubled.html" {
			for _, want := range []string{"</title><script>alert(1)</script>", `554 5.7.1 <img src=x onerror=alert(3)> "spam" & 'eggs'`, "<img src=x onerror=alert(2)>",
				"something <i>new</i>", "corrupt: sequence 17 <b>bold</b>"} {
				if !strings.Contains(text.String(), want) {
					t.Errorf("no text %s", want)
				}
			}
		}
	}
}

// A second without any acknowledgement, as while a target restarts, is a gap in the line of its latency and not a latency of zero.
func TestASecondWithoutAcksIsAGap(t *testing.T) {
	var series []Second
	for i := range 9 {
		s := Second{At: float64(i + 1), Acknowledged: 100, AckP50Ms: 2, AckP99Ms: 5}
		if i == 4 {
			s = Second{At: 5}
		}
		series = append(series, s)
	}
	p := ackPlot(bins(series, 100))
	for _, line := range p.lines {
		if len(line.points) != 8 || !line.points[4].lifted || line.points[3].lifted {
			t.Errorf("%s: %+v", line.name, line.points)
		}
		if d := path(line.points); strings.Count(d, "M") != 2 {
			t.Errorf("%s: %s", line.name, d)
		}
	}
}
