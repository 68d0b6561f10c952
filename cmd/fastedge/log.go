package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/internal/logline"
)

// newLogger gives the logger that the configuration asks for, writing to out through a logWriter, which the caller closes last.
func newLogger(c config.Log, out io.Writer) (*slog.Logger, *logWriter) {
	w := newLogWriter(out, maxLogBacklogBytes)
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic("fastedge: log level passed the configuration's check: " + c.Level)
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "text" || c.Format == "auto" && isTerminal(out) {
		w.format = logline.Text
		return slog.New(slog.NewTextHandler(w, options)), w
	}
	return slog.New(slog.NewJSONHandler(visible{w}, options)), w
}

// visible escapes in JSON lines what slog's JSON handler leaves as it is and a terminal obeys: DEL, C1 controls (U+009B begins an escape
// sequence), and marks that turn the direction of text. Lines hold arguments of strangers. slog's text handler quotes all that itself.
type visible struct{ to io.Writer }

// Write takes a whole line. JSON has characters over ASCII only inside strings, so an escape means the same there.
func (v visible) Write(line []byte) (int, error) {
	plain := true
	for _, c := range line {
		plain = plain && c < 0x7F
	}
	if plain {
		return v.to.Write(line)
	}
	safe := make([]byte, 0, len(line)+64)
	for rest := line; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		switch {
		case r < 0x7F || unicode.IsPrint(r):
			safe = append(safe, rest[:n]...)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			safe = fmt.Appendf(safe, `\u%04x\u%04x`, high, low)
		default:
			safe = fmt.Appendf(safe, `\u%04x`, r)
		}
		rest = rest[n:]
	}
	if _, err := v.to.Write(safe); err != nil {
		return 0, err
	}
	return len(line), nil
}

// isTerminal tells a terminal from a pipe or file. /dev/null is a character device too.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// maxLogBacklogBytes is what may wait for a slow reader of the log: some 4,000 lines.
const maxLogBacklogBytes = 1 << 20

// logWriter lets event loops log: Write copies the line and returns, a goroutine writes it out. When more than max bytes wait, lines
// are dropped and counted; blocking would stop every client of the loop because somebody paused a terminal.
type logWriter struct {
	out    io.Writer
	max    int
	format logline.Format // of what is written here

	mu      sync.Mutex
	more    sync.Cond // there is something in waiting, or closed is set
	waiting []byte
	dropped uint64
	closed  bool

	done chan struct{}
}

func newLogWriter(out io.Writer, max int) *logWriter {
	w := &logWriter{out: out, max: max, done: make(chan struct{})}
	w.more.L = &w.mu
	go w.run()
	return w
}

// Write takes whole lines, or drops and counts them. It never blocks and never fails.
func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.waiting)+len(line) > w.max {
		w.dropped += uint64(bytes.Count(line, []byte{'\n'}))
		return len(line), nil
	}
	if len(w.waiting) == 0 {
		w.more.Signal()
	}
	w.waiting = append(w.waiting, line...)
	return len(line), nil
}

func (w *logWriter) run() {
	defer close(w.done)
	var writing []byte
	for {
		w.mu.Lock()
		for len(w.waiting) == 0 && !w.closed {
			w.more.Wait()
		}
		if len(w.waiting) == 0 {
			w.mu.Unlock()
			return
		}
		w.waiting, writing = writing[:0], w.waiting
		w.mu.Unlock()
		w.out.Write(writing) // there is nowhere left to tell of an error
	}
}

// Dropped counts the lines that were dropped.
func (w *logWriter) Dropped() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

// maxLastLines is how long the end waits for whoever reads the log: a paused terminal must not keep the process from ending.
const maxLastLines = 2 * time.Second

var errLogNotRead = errors.New("the log is not read, its last lines are lost")

// Close writes what is waiting, if it can be written by and by. Later lines are dropped.
func (w *logWriter) Close() error {
	w.mu.Lock()
	w.closed = true
	w.more.Signal()
	w.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-time.After(maxLastLines):
		return errLogNotRead
	}
}
