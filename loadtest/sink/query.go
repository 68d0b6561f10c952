package sink

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/fastedge/fastedge/loadtest/ledger"
)

// The answer to XLEDGER is "250-" and up to 480 characters of base64 on each line, and "250 2.0.0 end" on the last. Each line is padded by
// itself, so that they decode one by one.
const (
	ledgerLineOctets = 360

	// replyUnknownRun tells this refusal from that of a client which may not ask, and of a server that knows no such command.
	replyUnknownRun = "550 5.0.0"

	queryTimeout  = 2 * time.Minute
	maxQueryBytes = 2 << 30 // of base64: more than the receipts of ledger.MaxDeliveries take
)

// xledger answers loopback clients only: receipts tell who was sent mail.
func (t *session) xledger(args []byte) bool {
	if !isLoopback(t.raw.RemoteAddr()) {
		t.reply("550 5.7.1 for loopback clients only\r\n")
		return false
	}
	run, err := ledger.ParseRunID(strings.TrimSpace(string(args)))
	if err != nil {
		t.bad(replySyntax)
		return false
	}
	receipts := t.s.register.Receipts(run)
	if receipts == nil {
		t.reply(replyUnknownRun + " nothing arrived of this run\r\n")
		return false
	}
	text := receipts.AppendTo(nil)
	line := make([]byte, 0, 512)
	for len(text) > 0 {
		n := min(len(text), ledgerLineOctets)
		line = base64.StdEncoding.AppendEncode(append(line[:0], "250-"...), text[:n])
		t.w.Write(append(line, "\r\n"...))
		text = text[n:]
	}
	t.reply("250 2.0.0 end\r\n")
	return false
}

// ErrUnknownRun is Query's answer when nothing of the run has arrived, or it was dropped for newer ones (ledger.MaxRuns).
var ErrUnknownRun = errors.New("nothing arrived of this run")

func isLoopback(addr net.Addr) bool {
	switch a := addr.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// Query asks the sink at addr (host:port, or "unix:" and a path) for the receipts of a run. It gives up after two minutes.
func Query(addr string, run ledger.RunID) (*ledger.Receipts, error) {
	r, err := query(addr, run)
	if err != nil {
		return nil, fmt.Errorf("sink: ask %s for run %v: %w", addr, run, err)
	}
	return r, nil
}

func query(addr string, run ledger.RunID) (*ledger.Receipts, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	c, err := net.DialTimeout(network, addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(queryTimeout))
	in := bufio.NewReader(io.LimitReader(c, maxQueryBytes))
	for {
		line, err := replyLine(in)
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(line, "220") {
			return nil, fmt.Errorf("it says %q", line)
		}
		if strings.HasPrefix(line, "220 ") {
			break
		}
	}
	if _, err := fmt.Fprintf(c, "XLEDGER %v\r\n", run); err != nil {
		return nil, err
	}
	receipts, err := ledger.ReadReceipts(&ledgerReader{in: in})
	if err != nil {
		return nil, err
	}
	if receipts.Run() != run {
		return nil, fmt.Errorf("it gave run %v", receipts.Run())
	}
	io.WriteString(c, "QUIT\r\n")
	return receipts, nil
}

// replyLine reads a line of at most the reader's buffer.
func replyLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadSlice('\n')
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return strings.TrimRight(string(line), "\r\n"), err
}

// ledgerReader gives what the lines of an answer encode.
type ledgerReader struct {
	in    *bufio.Reader
	left  []byte
	ended bool
}

func (r *ledgerReader) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		line, err := replyLine(r.in)
		if err != nil {
			return 0, err
		}
		switch text, more := strings.CutPrefix(line, "250-"); {
		case more:
			if r.left, err = base64.StdEncoding.DecodeString(text); err != nil {
				return 0, fmt.Errorf("it says %.100q", line)
			}
		case strings.HasPrefix(line, "250 "):
			r.ended = true
		case strings.HasPrefix(line, replyUnknownRun):
			return 0, ErrUnknownRun
		default:
			return 0, fmt.Errorf("it says %.100q", line)
		}
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}
