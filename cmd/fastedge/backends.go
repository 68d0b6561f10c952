package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/spool"
)

// engine is what a queue engine offers the server. Source and Inspector are nil for one that keeps nothing.
type engine struct {
	queue.Backend
	source    queue.Source
	inspector queue.Inspector
}

// engines are the values of queue.engine. A new one is a row here, and passes queue/queuetest.
var engines = map[string]func(*config.Config, *slog.Logger) (engine, error){
	"spool":   openSpool,
	"discard": openDiscard,
}

func openEngine(cfg *config.Config, log *slog.Logger) (engine, error) {
	open := engines[cfg.Queue.Engine]
	if open == nil {
		return engine{}, fmt.Errorf("queue.engine %q is not built yet", cfg.Queue.Engine)
	}
	return open(cfg, log)
}

func openSpool(cfg *config.Config, log *slog.Logger) (engine, error) {
	// The directory above the spool holds the admin socket too: nobody else's business.
	if err := os.MkdirAll(cfg.StateDir, 0o750); err != nil {
		return engine{}, err
	}
	s, err := spool.Open(cfg.SpoolDir(), spoolOptions(cfg, log))
	if err != nil {
		return engine{}, err
	}
	return engine{Backend: s, source: s, inspector: s}, nil
}

// discard says yes to everything and keeps nothing: for benchmarks of what stands in front of it.
type discard struct{}

func openDiscard(_ *config.Config, log *slog.Logger) (engine, error) {
	log.Warn("queue.engine = \"discard\": every message is acknowledged and thrown away")
	return engine{Backend: discard{}}, nil
}

func (discard) Commit([]*queue.Submission) {}
func (discard) Room() error                { return nil }
func (discard) Close() error               { return nil }
