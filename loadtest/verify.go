package loadtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fastedge/fastedge/loadtest/ledger"
	"github.com/fastedge/fastedge/loadtest/sink"
)

// DefaultSink is where the verifier "sink" listens: a target with a next hop is to send there.
const DefaultSink = "127.0.0.1:2526"

// A verifier waits for verifyPatience without anything new before it takes the rest for lost. What is unknown may still be on its way, or
// come twice: it gets unknownPatience.
var (
	verifyPatience  = 15 * time.Second // a test shortens them
	unknownPatience = 2 * time.Second
)

// NewVerifier reads what --verify says:
//
//	none              nothing is verified
//	sink              a sink is started here, on DefaultSink; the target must relay to it
//	sink:ADDRESS      the same, on another address
//	sink://ADDRESS    a sink that runs already is asked
//	spool:DIR         fastedge's spool is read (or its state directory is named); mail must be held there, not relayed
//	receipts:FILE     what a sink has written down
func NewVerifier(s string) (Verifier, error) {
	kind, where, _ := strings.Cut(s, ":")
	switch {
	case s == "" || s == "none":
		return nil, nil
	case kind == "sink" && strings.HasPrefix(where, "//"):
		return &asking{addr: where[2:]}, nil
	case kind == "sink":
		if where == "" {
			where = DefaultSink
		}
		return &ownSink{addr: where}, nil
	case kind == "spool" && where != "":
		// The state directory will do as well.
		if below := filepath.Join(where, "spool"); isDir(below) {
			where = below
		}
		return reading{"spool:" + where, func(run ledger.RunID) (*ledger.Receipts, error) { return ledger.ReadSpool(where, run) }}, nil
	case kind == "receipts" && where != "":
		return reading{"receipts:" + where, func(ledger.RunID) (*ledger.Receipts, error) { return ledger.ReadReceiptsFile(where) }}, nil
	}
	return nil, fmt.Errorf("%q is not none, sink, sink:ADDRESS, sink://ADDRESS, spool:DIR or receipts:FILE", s)
}

// ownSink is a sink in this process.
type ownSink struct {
	addr string
	with sink.Options // faults, for tests
	sink *sink.Sink
	stop context.CancelFunc
	done chan error
}

func (s *ownSink) Name() string { return "sink " + s.addr }

func (s *ownSink) Begin() error {
	if s.sink != nil {
		return nil
	}
	s.with.Address = s.addr
	var err error
	if s.sink, err = sink.New(s.with); err != nil {
		return err
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	s.done = make(chan error, 1)
	go func() { s.done <- s.sink.Serve(ctx) }()
	return nil
}

func (s *ownSink) Receipts(ctx context.Context, book *ledger.Book) (*ledger.Receipts, error) {
	return patiently(ctx, book, func() (*ledger.Receipts, error) { return s.sink.Register().Receipts(book.Run()), nil })
}

func (s *ownSink) Close() error {
	if s.stop == nil {
		return nil
	}
	s.stop()
	return <-s.done
}

// asking is a sink that runs elsewhere on this machine.
type asking struct{ addr string }

func (a *asking) Name() string { return "sink " + a.addr }

// Begin sees whether anybody is there: at the end of a long run is too late.
func (a *asking) Begin() error {
	_, err := sink.Query(a.addr, 0)
	if errors.Is(err, sink.ErrUnknownRun) {
		return nil
	}
	return err
}

func (a *asking) Receipts(ctx context.Context, book *ledger.Book) (*ledger.Receipts, error) {
	return patiently(ctx, book, func() (*ledger.Receipts, error) {
		r, err := sink.Query(a.addr, book.Run())
		if errors.Is(err, sink.ErrUnknownRun) {
			return nil, nil
		}
		return r, err
	})
}

func (a *asking) Close() error { return nil }

// patiently asks until everything acknowledged was received, or nothing new has come for verifyPatience.
func patiently(ctx context.Context, book *ledger.Book, ask func() (*ledger.Receipts, error)) (*ledger.Receipts, error) {
	acknowledged, _, unknown := book.Count()
	var last int64
	alive := time.Now()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		r, err := ask()
		if err != nil {
			return nil, err
		}
		var received int64
		if r != nil {
			received, _, _, _ = r.Totals()
		}
		if received >= acknowledged {
			if unknown == 0 || time.Since(alive) > unknownPatience {
				return orEmpty(r, book), nil
			}
		}
		if received != last {
			last, alive = received, time.Now()
		}
		if time.Since(alive) > verifyPatience || ctx.Err() != nil {
			return orEmpty(r, book), nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// orEmpty is for a run of which nothing ever arrived.
func orEmpty(r *ledger.Receipts, book *ledger.Book) *ledger.Receipts {
	if r == nil {
		r = ledger.NewReceipts(book.Run())
	}
	return r
}

// reading is a verifier that reads files once.
type reading struct {
	name string
	read func(ledger.RunID) (*ledger.Receipts, error)
}

func (r reading) Name() string { return r.name }
func (r reading) Begin() error { return nil }
func (r reading) Close() error { return nil }

func (r reading) Receipts(_ context.Context, book *ledger.Book) (*ledger.Receipts, error) {
	return r.read(book.Run())
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}
