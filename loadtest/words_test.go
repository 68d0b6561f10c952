package loadtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// parsed is a table of words and what they mean; "" is an error.
func parsed[T any](t *testing.T, parse func(string) (T, error), want map[string]string) {
	t.Helper()
	for word, meaning := range want {
		v, err := parse(word)
		if got := fmt.Sprint(v); err == nil && got != meaning || (err != nil) != (meaning == "") {
			t.Errorf("%q is %v, %v; want %q", word, got, err, meaning)
		}
		if err != nil && !strings.Contains(err.Error(), `"`) {
			t.Errorf("%q: the error quotes nothing: %v", word, err)
		}
	}
}

func TestWordsAreUnderstoodOrRefused(t *testing.T) {
	parsed(t, ParseRange, map[string]string{"3": "3", "1..5": "1..5", "2..2": "2", "5..1": "", "": "", "x": "", "1..": "", "..2": "", "1...2": "", "1-2": ""})
	parsed(t, ParseShare, map[string]string{"30%": "0.3", "0.3": "0.3", "0": "0", "1": "1", "100%": "1", "0%": "0", "101%": "", "1.01": "", "-1%": "",
		"NaN": "", "": "", "%": "", "x": "", "Inf": "", "50%%": ""})
	parsed(t, ParseRate, map[string]string{"5000": "5000", "5000/s": "5000", "300/m": "5", "60/min": "1", "3600/h": "1", "1,000/s": "1000", "1000000": "1e+06",
		"1000001": "", "0": "", "-1": "", "": "", "5/d": "", "x/s": "", "NaN": "", "Inf": "", "0.5/s": "0.5"})
	parsed(t, ParseBytes, map[string]string{"4096": "4096", "4KiB": "4096", "4 KiB": "4096", "1.5k": "1500", "10MB": "10000000", "1MiB": "1048576", "0": "0",
		"": "", "KiB": "", "4X": "", "-4": "", ".": "", "1e9": "", "999999999999GB": ""})
	parsed(t, ParseSizes, map[string]string{"512": "512", "511": "", "4KiB": "4KiB", "64MiB": "64MiB", "67108865": "", "1KiB..64KiB": "1KiB..64KiB",
		"64KiB..1KiB": "", "..": "", "1KiB..": "", "lognormal:16KiB:1.5": "lognormal:16KiB:1.5", "lognormal:16KiB": "lognormal:16KiB", "lognormal:": "",
		"lognormal:1KiB:0": "", "lognormal:1KiB:5": "lognormal:1KiB:5", "lognormal:1KiB:5.1": "", "lognormal:1KiB:x": "", "lognormal:1:1": "", "x": "", "": ""})
	parsed(t, ParseRamp, map[string]string{"0..10000/s:120s": "0..10000/s:2m0s", "100..10:1m": "100..10/s:1m0s", "60/m..120/m:1s": "1..2/s:1s",
		"0..0:1s": "", "10..0:1s": "", "1..2": "", "1:2s": "", "1..2:x": "", "1..2:0s": "", "1..2:-1s": "", "1..1000001:1s": "", "x..2:1s": "", "": ""})
}

func TestSizesAreWithinTheirBoundsAndAscend(t *testing.T) {
	for _, text := range []string{"512", "1KiB..64KiB", "lognormal:1KiB:5", "lognormal:16KiB:1.5", "lognormal:64MiB:2"} {
		s, err := ParseSizes(text)
		if err != nil {
			t.Fatal(err)
		}
		all := s.classes(rand.New(rand.NewPCG(1, 2)))
		if !slices.IsSorted(all) || all[0] < minMessageBytes || all[len(all)-1] > MaxMessageBytes {
			t.Errorf("%s: from %d to %d", text, all[0], all[len(all)-1])
		}
	}
	s, _ := ParseSizes("lognormal:16KiB:1")
	all := s.classes(rand.New(rand.NewPCG(1, 2)))
	if median := all[len(all)/2]; median < 12<<10 || median > 20<<10 {
		t.Errorf("median %d", median)
	}
}

func TestARampReachesEachCountInTime(t *testing.T) {
	for _, r := range []Ramp{{0, 1000, 10 * time.Second}, {1000, 10, 10 * time.Second}, {50, 50, time.Second}, {1, 1e6, time.Minute}} {
		over := r.Over.Seconds()
		last := 0.0
		for i := range 1000 {
			at := 2 * over * float64(i) / 1000
			part := min(at, over)
			n := r.From*part + (r.To-r.From)*part*part/2/over + r.To*max(0, at-over)
			if got := r.reaches(n); math.Abs(got-at) > 1e-6*over {
				t.Fatalf("%v: %v messages after %v s, want %v", &r, n, got, at)
			}
			if got := r.reaches(n); got < last {
				t.Fatalf("%v goes back", &r)
			} else {
				last = got
			}
		}
	}
}

// good is what a run needs.
func goodOptions() Options { return Options{Target: "127.0.0.1:25"} }

func TestEachLimitIsTestedAtItAndOnePastIt(t *testing.T) {
	sources := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	for name, test := range map[string]struct{ at, past func(*Options) }{
		"connections":           {func(o *Options) { o.Connections = 25000 }, func(o *Options) { o.Connections = 25001 }},
		"connections, 1 source": {func(o *Options) { o.Connections, o.Sources = 25000, sources("127.0.1.1/32") }, func(o *Options) { o.Connections, o.Sources = 25001, sources("127.0.1.1/32") }},
		"connections, sources":  {func(o *Options) { o.Connections, o.Sources = MaxConnections, sources("127.0.1.0/24") }, func(o *Options) { o.Connections, o.Sources = MaxConnections+1, sources("127.0.1.0/24") }},
		"connections, least":    {func(o *Options) { o.Connections = 1 }, func(o *Options) { o.Connections = -1 }},
		"rate":                  {func(o *Options) { o.Rate = MaxRate }, func(o *Options) { o.Rate = MaxRate + 1 }},
		"rate is a number":      {func(o *Options) { o.Rate = 0 }, func(o *Options) { o.Rate = math.NaN() }},
		"ramp":                  {func(o *Options) { o.Ramp = &Ramp{0, MaxRate, MaxDuration} }, func(o *Options) { o.Ramp = &Ramp{0, MaxRate + 1, time.Second} }},
		"ramp's length":         {func(o *Options) { o.Ramp = &Ramp{0, 1, MaxDuration} }, func(o *Options) { o.Ramp = &Ramp{0, 1, MaxDuration + 1} }},
		"ramp's end":            {func(o *Options) { o.Ramp = &Ramp{9, 0.1, 1} }, func(o *Options) { o.Ramp = &Ramp{9, 0, 1} }},
		"messages":              {func(o *Options) { o.Messages = MaxMessages }, func(o *Options) { o.Messages = MaxMessages + 1 }},
		"messages, least":       {func(o *Options) { o.Messages = 1 }, func(o *Options) { o.Messages = -1 }},
		"duration":              {func(o *Options) { o.Duration = MaxDuration }, func(o *Options) { o.Duration = MaxDuration + 1 }},
		"warmup":                {func(o *Options) { o.Warmup = MaxDuration }, func(o *Options) { o.Warmup = MaxDuration + 1 }},
		"hold":                  {func(o *Options) { o.Hold = MaxDuration }, func(o *Options) { o.Hold = MaxDuration + 1 }},
		"hold, least":           {func(o *Options) { o.Hold = 1 }, func(o *Options) { o.Hold = -1 }},
		"timeout":               {func(o *Options) { o.Timeout = MaxDuration }, func(o *Options) { o.Timeout = MaxDuration + 1 }},
		"size":                  {func(o *Options) { o.Size = FixedSize(MaxMessageBytes) }, func(o *Options) { o.Size = FixedSize(MaxMessageBytes + 1) }},
		"size, least":           {func(o *Options) { o.Size = FixedSize(minMessageBytes) }, func(o *Options) { o.Size = FixedSize(minMessageBytes - 1) }},
		"recipients":            {func(o *Options) { o.Recipients = Range{1, MaxRecipients} }, func(o *Options) { o.Recipients = Range{1, MaxRecipients + 1} }},
		"recipients, least":     {func(o *Options) { o.Recipients = Range{1, 2} }, func(o *Options) { o.Recipients = Range{0, 2} }},
		"workers":               {func(o *Options) { o.Workers = MaxWorkers }, func(o *Options) { o.Workers = MaxWorkers + 1 }},
		"max-waiting":           {func(o *Options) { o.MaxWaiting = MaxWaiting }, func(o *Options) { o.MaxWaiting = MaxWaiting + 1 }},
		"proxy":                 {func(o *Options) { o.Proxy = 2 }, func(o *Options) { o.Proxy = 3 }},
		"bdat":                  {func(o *Options) { o.BDAT = 1 }, func(o *Options) { o.BDAT = math.Nextafter(1, 2) }},
		"starttls":              {func(o *Options) { o.STARTTLS = 0.5 }, func(o *Options) { o.STARTTLS = math.NaN() }},
		"slow clients":          {func(o *Options) { o.SlowClients = 1 }, func(o *Options) { o.SlowClients = 1.1 }},
		"bad clients":           {func(o *Options) { o.BadClients = 1 }, func(o *Options) { o.BadClients = -0.1 }},
		"per connection":        {func(o *Options) { o.PerConnection = 1 }, func(o *Options) { o.PerConnection = -1 }},
		"pid":                   {func(o *Options) { o.PID = 1 }, func(o *Options) { o.PID = -1 }},
		"from":                  {func(o *Options) { o.From = strings.Repeat("x", 255) }, func(o *Options) { o.From = strings.Repeat("x", 256) }},
		"from on one line":      {func(o *Options) { o.From = "a@b" }, func(o *Options) { o.From = "a\r\nQUIT" }},
		"to without brackets":   {func(o *Options) { o.To = "a@b" }, func(o *Options) { o.To = "a@b>" }},
		"to and recipients":     {func(o *Options) { o.To, o.Recipients = "a@b", Range{1, 1} }, func(o *Options) { o.To, o.Recipients = "a@b", Range{1, 2} }},
		"TLS one way":           {func(o *Options) { o.TLS = true }, func(o *Options) { o.TLS, o.STARTTLS = true, 0.1 }},
		"http":                  {func(o *Options) { o.Protocol = "http" }, func(o *Options) { o.Protocol, o.BDAT = "http", 1 }},
		"protocol":              {func(o *Options) { o.Protocol = "lmtp" }, func(o *Options) { o.Protocol = "imap" }},
		"pipelining":            {func(o *Options) { o.Pipelining = "tight" }, func(o *Options) { o.Pipelining = "loose" }},
		"sessions only":         {func(o *Options) { o.SessionsOnly = true }, func(o *Options) { o.SessionsOnly, o.Rate = true, 1 }},
		"hold or sessions only": {func(o *Options) { o.Hold = 1 }, func(o *Options) { o.Hold, o.SessionsOnly = 1, true }},
	} {
		at, past := goodOptions(), goodOptions()
		test.at(&at)
		test.past(&past)
		if _, err := at.withDefaults(); err != nil {
			t.Errorf("%s at the limit: %v", name, err)
		}
		if _, err := past.withDefaults(); err == nil {
			t.Errorf("%s past the limit is taken", name)
		}
	}
}

func TestOnlyThisMachineIsTestedUnlessTheUserOwnsTheOther(t *testing.T) {
	for target, own := range map[string]struct {
		name string
		ok   bool
	}{
		"127.0.0.1:25": {"", true}, "127.9.9.9:25": {"", true}, "[::1]:25": {"", true}, "localhost:25": {"", true}, "unix:/x": {"", true},
		"[::ffff:127.0.0.1]:25": {"", true},
		"192.0.2.1:25":          {"192.0.2.1", true}, "192.0.2.2:25": {"", false}, "192.0.2.3:25": {"192.0.2.1", false}, "192.0.2.4:25": {"192.0.2.4:25", false},
		"[2001:db8::1]:25": {"", false}, "[2001:db8::2]:25": {"2001:db8::2", true}, "example.net:25": {"", false}, "example.org:25": {"example.com", false},
		"0.0.0.0:25": {"", false}, ":25": {"", false}, "[::]:25": {"", false}, "127.0.0.1": {"", false}, "127.0.0.1:": {"", false}, "": {"", false},
		"localhost.example.net:25": {"", false}, "127.0.0.1.example.net:25": {"", false}, "2130706433:25": {"", false},
	} {
		o := Options{Target: target, IOwnThisHost: own.name}
		_, err := o.withDefaults()
		if (err == nil) != own.ok {
			t.Errorf("%q, own %q: %v", target, own.name, err)
		}
	}
	o := Options{Target: "127.0.0.1:25", Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	if _, err := o.withDefaults(); err == nil {
		t.Error("sources that are not loopback are taken")
	}
}

// A name may resolve to anything: the address counts.
func TestANameThatLeadsElsewhereIsRefused(t *testing.T) {
	for _, o := range []Options{{Target: "192.0.2.1:25"}, {Target: "192.0.2.1:25", IOwnThisHost: "localhost"}, {Target: "0.0.0.0:25", IOwnThisHost: "x"}} {
		if _, err := resolve(&o); err == nil || !strings.Contains(err.Error(), "not loopback") {
			t.Errorf("%+v: %v", o.Target, err)
		}
	}
	o := Options{Target: "127.0.0.1:25", Sources: []netip.Prefix{netip.MustParsePrefix("::1/128")}}
	if _, err := resolve(&o); err == nil {
		t.Error("IPv6 sources for an IPv4 target")
	}
	for _, target := range []string{"127.0.0.1:25", "[::1]:25", "unix:/tmp/x", "localhost:25"} {
		o := Options{Target: target}
		if _, err := resolve(&o); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestSourcesAreTakenInTurn(t *testing.T) {
	o := Options{Sources: []netip.Prefix{netip.MustParsePrefix("127.0.1.254/31"), netip.MustParsePrefix("127.0.255.254/15"), netip.MustParsePrefix("::1/128")}}
	for i, want := range map[int]string{0: "127.0.1.254", 1: "127.0.1.255", 2: "127.0.0.0", 3: "127.0.0.1", 258: "127.0.1.0", 65537: "127.0.255.255"} {
		if got, ok := o.source(i); !ok && i < 65536 || ok && got.String() != want && i < 65536 {
			t.Errorf("%d: %v, want %s", i, got, want)
		}
	}
	if _, ok := (&Options{}).source(3); ok {
		t.Error("a source where there is none")
	}
}

func TestAProfileSetsWhatIsUnset(t *testing.T) {
	for _, name := range ProfileNames() {
		o := goodOptions()
		if err := o.ApplyProfile(name); err != nil {
			t.Fatal(err)
		}
		if _, err := o.withDefaults(); err != nil || o.Profile != name || o.Size.isZero() || o.Pipelining != "group" {
			t.Errorf("%s: %v, %+v", name, err, o)
		}
	}
	o := goodOptions()
	o.Size, o.Recipients, o.Pipelining, o.SlowClients, o.BadClients = FixedSize(999), Range{7, 7}, "off", 0.3, 0.4
	before := o
	if err := o.ApplyProfile("hostile"); err != nil {
		t.Fatal(err)
	}
	before.Profile = "hostile"
	if fmt.Sprint(o) != fmt.Sprint(before) {
		t.Errorf("a profile overrides: %+v", o)
	}
	o = goodOptions()
	o.Protocol, o.To = "http", "a@b"
	if err := o.ApplyProfile("mixed"); err != nil || o.Pipelining != "" || o.Recipients != (Range{}) {
		t.Errorf("%v %+v", err, o)
	}
	if _, err := o.withDefaults(); err != nil {
		t.Error(err)
	}
	if err := o.ApplyProfile("nonsense"); err == nil || !strings.Contains(err.Error(), "small, mixed, bulk, hostile") {
		t.Error(err)
	}
	if err := o.ApplyProfile(""); err != nil {
		t.Error(err)
	}
}

func TestVerifierWords(t *testing.T) {
	for word, name := range map[string]string{"": "none", "none": "none", "sink": "sink 127.0.0.1:2526", "sink:127.0.0.1:99": "sink 127.0.0.1:99",
		"sink://127.0.0.1:99": "sink 127.0.0.1:99", "spool:/x": "spool:/x", "receipts:/x": "receipts:/x", "spool:": "", "receipts": "", "nats:x": "", "x": ""} {
		v, err := NewVerifier(word)
		switch {
		case name == "" && err == nil, name != "" && err != nil, name == "none" && v != nil:
			t.Errorf("%q: %v, %v", word, v, err)
		case v != nil && v.Name() != name:
			t.Errorf("%q: %s", word, v.Name())
		}
	}
}
