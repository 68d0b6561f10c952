package live

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Detect finds out what can be drawn on a file: a block on a terminal that understands it (not TERM=dumb), colors unless NO_COLOR is set
// (no-color.org), block characters where the locale is UTF-8.
func Detect(f *os.File) Options {
	var o Options
	if o.Unicode = utf8Locale(); f == nil {
		return o
	}
	fd := int(f.Fd())
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
		return o
	}
	o.Width = func() int { return size(fd, "COLUMNS", func(w *unix.Winsize) uint16 { return w.Col }) }
	if term := os.Getenv("TERM"); term == "" || term == "dumb" {
		return o
	}
	o.Height = func() int { return size(fd, "LINES", func(w *unix.Winsize) uint16 { return w.Row }) }
	o.Terminal = true
	o.Color = os.Getenv("NO_COLOR") == ""
	return o
}

// size asks the terminal, and the environment where it does not know (a serial line); 0 when neither does.
func size(fd int, name string, of func(*unix.Winsize) uint16) int {
	if w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil && of(w) > 0 {
		return int(of(w))
	}
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// utf8Locale follows setlocale(3): the first of the three that is set decides.
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(os.Getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}
