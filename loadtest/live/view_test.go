package live

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", name, got)
	}
}

func width(n int) func() int { return func() int { return n } }

const title = "127.0.0.1:2525   open loop, 5,000/s, 200 connections"

// running is a run after n of 60 seconds.
func running(n int) Snapshot {
	return Snapshot{
		Elapsed: time.Duration(n) * time.Second, Left: time.Duration(60-n) * time.Second, Progress: float64(n) / 60, Phase: "running",
		Rate: 5000 + 3000*math.Sin(float64(n)/3), Offered: 5000,
		InFlight: 100, Waiting: 7, Connections: 200,
		Acknowledged: 4123 * int64(n), Deferred: int64(n), Errors: int64(n / 10), Dropped: 12,
		AckP50: 1234 * time.Microsecond, AckP99: 8800 * time.Microsecond,
		ServerCPU: 0.314, ServerRSS: 142 << 20, GeneratorCPU: 0.378,
	}
}

func closedLoop(n int) Snapshot {
	s := running(n)
	s.Offered, s.Waiting, s.Dropped, s.ServerCPU, s.ServerRSS = 0, 0, 0, 0, 0
	return s
}

func TestTheBlockAtSeveralWidths(t *testing.T) {
	var got strings.Builder
	for _, w := range []int{140, 100, 80, 60, 40, 20, 11, 3} {
		fmt.Fprintf(&got, "%d columns:\n", w)
		screen := newScreen(w)
		v := New(screen, Options{Title: title, Terminal: true, Color: true, Unicode: true, Width: width(w)})
		for n := range 40 {
			v.Draw(running(n))
		}
		got.WriteString(screen.String())
		if screen.wrapped {
			t.Errorf("%d columns: a line was wrapped", w)
		}
	}
	golden(t, "block.txt", got.String())
}

func TestTheBlockInOtherPhases(t *testing.T) {
	var got strings.Builder
	for _, s := range []Snapshot{
		{Phase: "connecting", Progress: -1, Connections: 3},
		{Phase: "warm-up", Elapsed: 2 * time.Second, Left: 3 * time.Second, Progress: 0.4, Rate: 12.34, AckP50: 950 * time.Microsecond, AckP99: 2500 * time.Millisecond},
		closedLoop(30),
		{Phase: "running", Elapsed: 3725 * time.Second, Progress: math.NaN(), Rate: math.Inf(1)},
		{Phase: "draining", Elapsed: time.Minute, Progress: 1.5, InFlight: 12, Deferred: 1234567, Refused: 9, AckP99: time.Hour},
		{Phase: "verifying", Elapsed: 61 * time.Second, Progress: 1, ServerRSS: 5 << 30},
	} {
		screen := newScreen(80)
		v := New(screen, Options{Title: "mx.example.net:25\x1b[2J   closed loop, ünïcode", Terminal: true, Width: width(80)})
		v.Draw(s)
		got.WriteString(screen.String() + "\n")
	}
	golden(t, "phases.txt", got.String())
}

// Every octet that goes to the terminal: two pictures and the end.
func TestControlSequences(t *testing.T) {
	var out bytes.Buffer
	v := New(&out, Options{Title: title, Terminal: true, Color: true, Unicode: true, Width: width(60)})
	var got strings.Builder
	step := func(name string) {
		fmt.Fprintf(&got, "%s:\n", name)
		for line := range strings.Lines(out.String()) {
			fmt.Fprintf(&got, "%q\n", line)
		}
		out.Reset()
	}
	v.Draw(running(1))
	step("first")
	v.Draw(running(2))
	step("second")
	v.Close()
	step("close")
	v.Close()
	step("close again")
	golden(t, "sequences.txt", got.String())
}

func TestWithoutColorThereIsNone(t *testing.T) {
	var out bytes.Buffer
	v := New(&out, Options{Title: title, Terminal: true, Width: width(80)})
	v.Draw(running(3))
	if sgr := regexp.MustCompile("\x1b\\[[0-9;]*m").Find(out.Bytes()); sgr != nil {
		t.Errorf("%q", sgr)
	}
	if n := strings.IndexFunc(out.String(), func(r rune) bool { return r > '~' }); n >= 0 {
		t.Errorf("not ASCII at %d: %q", n, out.String())
	}
}

func TestCloseLeavesNothingAndShowsTheCursor(t *testing.T) {
	for _, w := range []int{5, 40, 80, 120} {
		screen := newScreen(w)
		v := New(screen, Options{Title: title, Terminal: true, Color: true, Width: width(w)})
		fmt.Fprint(screen, "$\r\n")
		v.Draw(running(1))
		if !screen.hidden {
			t.Errorf("%d: the cursor blinks", w)
		}
		v.Draw(closedLoop(2)) // fewer lines
		v.Draw(running(3))
		v.Close()
		if got := screen.String(); got != "$\n" || screen.hidden || screen.noWrap {
			t.Errorf("%d columns: %q left, cursor hidden: %v, wrapping off: %v", w, got, screen.hidden, screen.noWrap)
		}
	}
}

func TestAChangedWidthLeavesNoRemains(t *testing.T) {
	w := 100
	screen := newScreen(w)
	v := New(screen, Options{Title: title, Terminal: true, Width: func() int { return w }})
	fmt.Fprint(screen, "$\r\n")
	for _, w = range []int{100, 50, 37, 80, 30, 29, 200, 12} {
		screen.resize(w)
		v.Draw(running(5))
		fresh := newScreen(w)
		New(fresh, Options{Title: title, Terminal: true, Width: width(w)}).Draw(running(5))
		if got, want := screen.String(), "$\n"+fresh.String(); got != want {
			t.Fatalf("%d columns: got\n%swant\n%s", w, got, want)
		}
	}
}

func TestALowTerminalGetsTheFirstLines(t *testing.T) {
	screen := newScreen(80)
	v := New(screen, Options{Title: title, Terminal: true, Width: width(80), Height: func() int { return 3 }})
	v.Draw(running(1))
	v.Draw(running(2))
	if got := screen.String(); strings.Count(got, "\n") != 3 || !strings.HasPrefix(got, title) {
		t.Error(got)
	}
}

func TestPrintStaysAboveTheBlock(t *testing.T) {
	screen := newScreen(80)
	v := New(screen, Options{Title: title, Terminal: true, Width: width(80)})
	v.Print("before")
	v.Draw(closedLoop(1))
	v.Print("mean\x1b[1Awhile")
	v.Draw(closedLoop(2))
	if got := screen.String(); !strings.HasPrefix(got, "before\nmean?[1Awhile\n"+title+"\nrunning") || strings.Count(got, "running") != 1 {
		t.Error(got)
	}
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	v := New(&out, Options{Title: title, Unicode: true})
	for _, s := range []Snapshot{
		{Phase: "connecting"}, {Phase: "warm-up", Elapsed: time.Second, Rate: 45.6, Acknowledged: 45, AckP50: 900 * time.Microsecond, AckP99: 12 * time.Second},
		closedLoop(2), closedLoop(12), closedLoop(120), closedLoop(12345), {Phase: "draining", Elapsed: 12346 * time.Second},
	} {
		v.Draw(s)
	}
	v.Close()
	out.WriteString("\nopen loop, the server watched:\n")
	v = New(&out, Options{})
	for n := range 4 {
		v.Draw(running(n * n * 7))
	}
	out.WriteString("\n60, 30 and 2 columns:\n")
	for _, w := range []int{60, 30, 2} {
		New(&out, Options{Width: width(w)}).Draw(running(12))
	}
	golden(t, "lines.txt", out.String())
	if strings.ContainsAny(out.String(), "\x1b\r") {
		t.Error("control characters")
	}
}

func TestTheSparklineHoldsAMinute(t *testing.T) {
	v := New(&bytes.Buffer{}, Options{})
	for n := range 4 * 100 { // four times a second
		v.Draw(Snapshot{Elapsed: time.Duration(n) * time.Second / 4, Rate: float64(n)})
	}
	if len(v.rate) != maxRates || v.rate[0] != 4*40+3 || v.rate[maxRates-1] != 399 {
		t.Errorf("%d values, %v to %v", len(v.rate), v.rate[0], v.rate[len(v.rate)-1])
	}
}

func TestDetect(t *testing.T) {
	t.Setenv("LC_ALL", "C.UTF-8")
	t.Setenv("TERM", "xterm")
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if o := Detect(f); o.Terminal || o.Color || o.Width != nil || !o.Unicode {
		t.Errorf("a file: %+v", o)
	}
	if o := Detect(nil); o.Terminal {
		t.Errorf("no file: %+v", o)
	}
	t.Setenv("LC_ALL", "C")
	if Detect(f).Unicode {
		t.Error("block characters in the C locale")
	}
	master, slave := terminal(t)
	defer master.Close()
	defer slave.Close()
	t.Setenv("NO_COLOR", "")
	t.Setenv("COLUMNS", "33")
	if o := Detect(slave); !o.Terminal || !o.Color || o.Width() != 33 { // it has no size of its own yet
		t.Errorf("a terminal: %+v, width %d", o, o.Width())
	}
	resizeTerminal(t, slave, 77, 10)
	if o := Detect(slave); o.Width() != 77 || o.Height() != 10 {
		t.Errorf("size %d, %d", o.Width(), o.Height())
	}
	t.Setenv("NO_COLOR", "1")
	if o := Detect(slave); !o.Terminal || o.Color {
		t.Errorf("NO_COLOR: %+v", o)
	}
	t.Setenv("TERM", "dumb")
	if o := Detect(slave); o.Terminal || o.Color || o.Width() != 77 {
		t.Errorf("TERM=dumb: %+v", o)
	}
}

// screen is as much of a terminal as the view needs. Like most it breaks long lines again when it gets narrower.
type screen struct {
	width                   int
	rows                    [][]rune
	joined                  []bool // the row is the rest of the one before
	x, y                    int
	hidden, noWrap, wrapped bool
}

func newScreen(width int) *screen {
	return &screen{width: width, rows: [][]rune{nil}, joined: []bool{false}}
}

func (s *screen) Write(p []byte) (int, error) {
	for text := string(p); text != ""; {
		r, n := utf8.DecodeRuneInString(text)
		if strings.HasPrefix(text, "\x1b[") {
			n = 2 + strings.IndexFunc(text[2:], func(r rune) bool { return r >= '@' }) + 1
			s.control(text[2:n-1], text[n-1])
		} else {
			s.character(r)
		}
		text = text[n:]
	}
	return len(p), nil
}

func (s *screen) control(arg string, final byte) {
	n := 0
	fmt.Sscanf(strings.TrimPrefix(arg, "?"), "%d", &n)
	switch final {
	case 'A':
		s.y = max(s.y-max(n, 1), 0)
	case 'K':
		if s.y+1 < len(s.joined) {
			s.joined[s.y+1] = false
		}
		s.rows[s.y] = s.rows[s.y][:min(s.at(), len(s.rows[s.y]))]
	case 'J':
		s.rows[s.y] = s.rows[s.y][:min(s.at(), len(s.rows[s.y]))]
		s.rows, s.joined = s.rows[:s.y+1], s.joined[:s.y+1]
	case 'h', 'l':
		switch n {
		case 25:
			s.hidden = final == 'l'
		case 7:
			s.noWrap = final == 'l'
		}
	}
}

// at is the column of the cursor: behind the last column it stands on it.
func (s *screen) at() int { return min(s.x, s.width-1) }

func (s *screen) character(r rune) {
	switch r {
	case '\r':
		s.x = 0
	case '\n':
		s.down(false)
	default:
		if s.x == s.width {
			s.wrapped = true
			if s.noWrap {
				s.x--
			} else {
				s.x = 0
				s.down(true)
			}
		}
		for len(s.rows[s.y]) <= s.x {
			s.rows[s.y] = append(s.rows[s.y], ' ')
		}
		s.rows[s.y][s.x] = r
		s.x++
	}
}

func (s *screen) down(joined bool) {
	if s.y++; s.y == len(s.rows) {
		s.rows, s.joined = append(s.rows, nil), append(s.joined, joined)
	}
}

func (s *screen) resize(width int) {
	fresh := newScreen(width)
	for i, row := range s.rows {
		if i > 0 && !s.joined[i] {
			fresh.character('\r')
			fresh.character('\n')
		}
		for _, r := range row {
			fresh.character(r)
		}
	}
	fresh.wrapped, fresh.hidden = false, s.hidden
	*s = *fresh
}

func (s *screen) String() string {
	var b strings.Builder
	for i, row := range s.rows {
		if i == len(s.rows)-1 && len(row) == 0 {
			break
		}
		b.WriteString(strings.TrimRight(string(row), " ") + "\n")
	}
	return b.String()
}
