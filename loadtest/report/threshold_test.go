package report

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// wideHDR is a valid histogram whose counts take 50 MB.
func wideHDR(t *testing.T) string {
	h := hdrhistogram.New(1, 1<<62, 5)
	if err := h.RecordValue(1); err != nil {
		t.Fatal(err)
	}
	text, err := h.EncodeV2()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestThresholdsAreParsed(t *testing.T) {
	for text, want := range map[string]Condition{
		"ack.p99<20ms":            {"ack.p99<20ms", "ack.p99", "<", 20, "ms"},
		" connect.p99.9 <= 500us": {"connect.p99.9<=500us", "connect.p99.9", "<=", 0.5, "ms"},
		"session.max < 1.5 s":     {"session.max<1.5s", "session.max", "<", 1500, "ms"},
		"ack.5xx.p50>1µs":         {"ack.5xx.p50>1µs", "ack.5xx.p50", ">", 0.001, "ms"},
		"transaction.mean!=2m":    {"transaction.mean!=2m", "transaction.mean", "!=", 120000, "ms"},
		"rate>=5000/s":            {"rate>=5000/s", "rate", ">=", 5000, "/s"},
		"rate>18M/h":              {"rate>18M/h", "rate", ">", 5000, "/s"},
		"rate>5k":                 {"rate>5k", "rate", ">", 5000, "/s"},
		"lost==0":                 {"lost==0", "lost", "==", 0, ""},
		"errors<1k":               {"errors<1k", "errors", "<", 1000, ""},
		"4xx<0.5%":                {"4xx<0.5%", "4xx", "<", 0.5, "%"},
		"cpu<500ms":               {"cpu<500ms", "cpu", "<", 0.5, "s"},
		"rss<512MiB":              {"rss<512MiB", "rss", "<", 512 << 20, "B"},
		"rss<1GB":                 {"rss<1GB", "rss", "<", 1e9, "B"},
		"tls.min<=3ms\t":          {"tls.min<=3ms", "tls.min", "<=", 3, "ms"},
	} {
		got, err := ParseThreshold(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func TestThresholdErrorsPointAtThePlace(t *testing.T) {
	var b bytes.Buffer
	for _, text := range []string{
		"", "<20ms", "ack", "ack.<1ms", "ack.p99", "ack.p101<1ms", "ack.p9x<20ms", "ack.4xx.q<20ms", "ak.p99<20ms", "speed>3", "ack.p99=20ms", "ack.p99<", "ack.p99<20",
		"ack.p99<20xs", "ack.p99 <  -3ms", "ack.p99<2..0ms", "rate>5000/w", "lost==0ms", "rss<100", "rss<512Mib", "cpu<1GiB", "ack.p99<20ms x", "ack.p99<1e9ms",
		"ack.p99<99999999999999999999ms", "größe<1", "ack.p99<20\x1b[31m", "ack.p99<" + strings.Repeat("1", 200),
	} {
		_, err := ParseThreshold(text)
		if err == nil {
			t.Errorf("%q: taken", text)
			continue
		}
		b.WriteString(err.Error())
		b.WriteString("\n\n")
	}
	golden(t, "threshold-errors.txt", b.Bytes())
}

func TestThresholdsAreChecked(t *testing.T) {
	r := synthetic(1, "open")
	bare := &Run{Totals: Totals{Offered: 200, Deferred: 1, Errors: 2}, Seconds: 1}
	for _, c := range []struct {
		run     *Run
		text    string
		pass    bool
		missing string
	}{
		{r, "ack.p99<50ms", true, ""},
		{r, "ack.p99<5ms", false, ""},
		{r, "ack.p50>=1ms", true, ""},
		{r, "session.min>1us", true, ""},
		{r, "session.mean<1s", true, ""},
		{r, "session.max<=1ms", false, ""},
		{r, "rate>4k/s", true, ""},
		{r, "sessions>100/s", true, ""},
		{r, "lost==0", true, ""},
		{r, "lost!=0", false, ""},
		{r, "rss<200MB", true, ""},
		{r, "cpu<0.1", false, ""},
		{bare, "4xx<=0.5%", true, ""},
		{bare, "4xx<0.5%", false, ""},
		{bare, "4xx==1", true, ""},
		{bare, "errors<=1%", true, ""},
		{bare, "5xx==0", true, ""},
		{bare, "dropped==0", true, ""},
		{bare, "lost==0", false, "it takes --verify"},
		{bare, "rss<1GiB", false, "it takes --pid"},
		{bare, "ack.p50<1s", false, "no ack of outcome 2xx"},
		{&Run{}, "rate>1", false, "no length"},
		{&Run{}, "errors<1%", false, "no message was offered"},
		{&Run{Server: &Usage{}}, "cpu<1s", false, "no message was acknowledged"},
	} {
		cond, err := ParseThreshold(c.text)
		if err != nil {
			t.Fatal(err)
		}
		got := cond.Check(c.run)
		if got.Pass != c.pass || !strings.Contains(got.Missing, c.missing) || (got.Missing == "") != (c.missing == "") || got.Text != c.text {
			t.Errorf("%s: %+v", c.text, got)
		}
	}
}

func TestEveryMetricOfTheDocumentIsKnown(t *testing.T) {
	r := synthetic(1, "open")
	for metric, want := range map[string]string{"ack.p99": "ms", "transaction.p50": "ms", "session.max": "ms", "connect.p99.9": "ms", "rate": "/s", "lost": "", "errors": "",
		"4xx": "", "5xx": "", "dropped": "", "cpu": "s", "rss": "B", "duplicates": "", "corrupt": "", "phantom": "", "sessions": "/s"} {
		if v, unit, err := r.Lookup(metric); err != nil || unit != want || v < 0 {
			t.Errorf("%s: %v %q, %v", metric, v, unit, err)
		}
	}
	if _, _, err := r.Lookup("ack.q99"); err == nil {
		t.Error("ack.q99 was found")
	}
}

func FuzzParseThreshold(f *testing.F) {
	for _, text := range []string{"ack.p99<20ms", "rate >= 5000/s", "lost==0", "4xx<0.5%", "rss<512MiB", "connect.4xx.p99.9!=1µs", "é<1", "ack.p99<20"} {
		f.Add(text)
	}
	r := synthetic(1, "closed")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseThreshold(text)
		if err != nil {
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != 3 || len(lines[2]) > 2+maxConditionBytes+1 {
				t.Fatalf("%q: %q", text, err)
			}
			return
		}
		if again, err := ParseThreshold(c.Text); err != nil || again != c {
			t.Fatalf("%q: %+v reads back as %+v, %v", text, c, again, err)
		}
		threshold := c.Check(r)
		if _, err := json.Marshal(threshold); err != nil {
			t.Fatal(err)
		}
		_ = threshold.actual()
	})
}
