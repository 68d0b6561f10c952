package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/fastedge/fastedge/internal/config"
)

type serveCmd struct {
	LogLevel string `placeholder:"LEVEL" help:"debug, info, warn or error; overrides log.level."`
}

func (c *serveCmd) load(a *app) (*config.Config, error) {
	if c.LogLevel == "" {
		return a.load()
	}
	return a.load(config.Flag{Name: "--log-level", Key: "log.level", Value: c.LogLevel})
}

// Run serves until a signal: TERM or INT drains, a second one stops at once, HUP reads the configuration again.
func (c *serveCmd) Run(a *app) error {
	cfg, err := c.load(a)
	if err != nil {
		return err
	}
	written := *cfg // what a reload is compared with; the machine may lower limits
	warnings, busy, err := cfg.CheckMachine()
	if err != nil {
		return err
	}
	if len(busy) > 0 {
		// The engine shares ports (SO_REUSEPORT): without this a second fastedge would silently get half of the first one's clients.
		return fmt.Errorf("address in use: %s", strings.Join(busy, ", "))
	}
	logger, logs := newLogger(cfg.Log, a.stderr)
	defer logs.Close()
	for _, w := range append(cfg.Warnings(), warnings...) {
		logger.Warn(w.Message)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	srv, err := wire(cfg, logger, logs)
	if err != nil {
		return err
	}
	if isTerminal(a.stdout) {
		banner(a.stdout, cfg)
	}
	return supervise(srv.Run, signals, func() { srv.lookAgain(); c.reload(a, &written, logger) }, logger)
}

// errStopped is what a second signal ends in: open transactions were cut off.
var errStopped = errors.New("stopped before it had drained")

// supervise runs until run returns or two signals came. The context of run ends with the first: run is to drain and return nil.
func supervise(run func(context.Context) error, signals <-chan os.Signal, reload func(), log *slog.Logger) error {
	ctx, drain := context.WithCancel(context.Background())
	defer drain()
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	for {
		select {
		case err := <-done:
			return err
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				reload()
			case ctx.Err() == nil:
				log.Info("draining: no new sessions, open transactions may finish; once more to stop now", "signal", s.String())
				drain()
			default:
				log.Warn("stopping now", "signal", s.String())
				return errStopped
			}
		}
	}
}

// reload checks the configuration as it is on disk now. What stands in it can't be changed in flight, so it says what a restart would
// change; the files that it names are read again by the server.
func (c *serveCmd) reload(a *app, old *config.Config, log *slog.Logger) {
	fresh, err := c.load(a)
	if err != nil {
		log.Error("reload: configuration refused, the old one stays in force", "error", err.Error())
		return
	}
	if changed := config.Changed(old, fresh); len(changed) > 0 {
		log.Warn("reload: these keys change with a restart only", "keys", changed)
		return
	}
	log.Info("reload: nothing has changed")
}

// banner tells a human at a terminal what runs where and what to try.
func banner(w io.Writer, c *config.Config) {
	var listeners []string
	for _, l := range c.Listen {
		listeners = append(listeners, fmt.Sprintf("%s %v", strings.ToUpper(l.Protocol), l.Address))
	}
	admin := "no admin port"
	if c.Admin.HTTP.Network != "" {
		admin = fmt.Sprintf("health and metrics http://%v", c.Admin.HTTP)
	}
	fmt.Fprintf(w, "%-10s %s; %s\n", "listening", strings.Join(listeners, ", "), admin)
	switch {
	case c.Queue.Engine == "discard":
		fmt.Fprintf(w, "%-10s nowhere: every message is thrown away (queue.engine = \"discard\")\n", "stored")
	default:
		fmt.Fprintf(w, "%-10s %s (%s)\n", "stored", c.SpoolDir(), c.Queue.Durability)
	}
	if len(c.Relay.NextHop) == 0 {
		fmt.Fprintf(w, "%-10s nowhere: mail is held until relay.next_hop is set\n", "handed on")
	} else {
		hops := make([]string, len(c.Relay.NextHop))
		for i, hop := range c.Relay.NextHop {
			hops[i] = hop.String()
		}
		fmt.Fprintf(w, "%-10s %s\n", "handed on", strings.Join(hops, ", "))
	}
	if l := c.Listen[0]; l.Address.Network == "tcp" {
		_, port := l.Address.HostPort()
		fmt.Fprintf(w, "%-10s swaks --server 127.0.0.1:%d --from me@example.org --to you@example.net\n", "send one", port)
	}
	fmt.Fprintf(w, "%-10s fastedge queue list --state-dir %s\n", "see it", c.StateDir)
}
