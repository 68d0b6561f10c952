package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/internal/metrics"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/forward"
	"github.com/fastedge/fastedge/queue/jetstream"
	"github.com/fastedge/fastedge/queue/spool"
)

// engine is what a queue engine offers the server. Source and Inspector are nil for one that keeps nothing.
type engine struct {
	queue.Backend
	source    queue.Source
	inspector queue.Inspector
	// local is the part of the inspector that says whether mail can be taken here, and what is in this machine's metrics.
	local queue.Inspector
	// forwarded is how mail goes on from here to JetStream; nil when it does not.
	forwarded func() metrics.ForwardStats
}

// engines are the values of queue.engine. A new one is a row here, and passes queue/queuetest.
var engines = map[string]func(*config.Config, *slog.Logger) (engine, error){
	"spool":           openSpool,
	"jetstream":       openJetStream,
	"spool+jetstream": openSpoolJetStream,
	"discard":         openDiscard,
}

func openEngine(cfg *config.Config, log *slog.Logger) (engine, error) {
	open := engines[cfg.Queue.Engine]
	if open == nil {
		return engine{}, fmt.Errorf("queue.engine %q is not built yet", cfg.Queue.Engine)
	}
	return open(cfg, log)
}

func newSpool(cfg *config.Config, log *slog.Logger) (*spool.Spool, error) {
	// The directory above the spool holds the admin socket too: nobody else's business.
	if err := os.MkdirAll(cfg.StateDir, 0o750); err != nil {
		return nil, err
	}
	return spool.Open(cfg.SpoolDir(), spoolOptions(cfg, log))
}

func openSpool(cfg *config.Config, log *slog.Logger) (engine, error) {
	s, err := newSpool(cfg, log)
	if err != nil {
		return engine{}, err
	}
	return engine{Backend: s, source: s, inspector: s, local: s}, nil
}

// jetstreamOptions is the cluster as the configuration wants it.
func jetstreamOptions(cfg *config.Config, log *slog.Logger) jetstream.Options {
	js := &cfg.Queue.JetStream
	o := jetstream.Options{
		URLs:         js.URL,
		Stream:       js.Stream,
		Subject:      js.Subject,
		Replicas:     js.Replicas,
		Create:       js.Create,
		Credentials:  js.Credentials,
		User:         js.User,
		Password:     js.Password,
		CA:           js.CA,
		Cert:         js.Cert,
		Key:          js.Key,
		Durable:      js.Durable,
		Batch:        js.Batch,
		Window:       js.Window,
		WindowBytes:  int64(js.WindowBytes),
		Timeout:      js.Timeout,
		Duplicates:   js.Duplicates,
		MaxBytes:     int64(js.MaxBytes),
		DeadSubject:  js.DeadSubject,
		ObjectBucket: js.ObjectBucket,
		Log:          log,
	}
	if len(cfg.Relay.NextHop) == 0 {
		o.Hold = holdReason
	}
	return o
}

// maxFirstLook is how long a start waits for a cluster; one that is away is looked for from then on.
const maxFirstLook = 10 * time.Second

func newJetStream(o jetstream.Options) (*jetstream.Queue, error) {
	ctx, cancel := context.WithTimeout(context.Background(), maxFirstLook)
	defer cancel()
	return jetstream.Open(ctx, o)
}

func openJetStream(cfg *config.Config, log *slog.Logger) (engine, error) {
	q, err := newJetStream(jetstreamOptions(cfg, log))
	if err != nil {
		return engine{}, err
	}
	return engine{Backend: q, source: q, inspector: q, local: q}, nil
}

// maxForwardBatch is the most messages that go from the spool to JetStream in one commit.
const maxForwardBatch = 1024

// spoolJetStream acknowledges with the spool and hands on from JetStream; a forwarder brings mail from the one to the other. Its own methods
// are the spool's: an edge asks nothing else.
type spoolJetStream struct {
	*spool.Spool
	there   *jetstream.Queue
	forward *forward.Forwarder
	stop    context.CancelFunc
	stopped chan struct{}
}

func openSpoolJetStream(cfg *config.Config, log *slog.Logger) (engine, error) {
	here, err := newSpool(cfg, log)
	if err != nil {
		return engine{}, err
	}
	there, err := newJetStream(jetstreamOptions(cfg, log))
	if err != nil {
		return engine{}, errors.Join(err, here.Close())
	}
	e := &spoolJetStream{Spool: here, there: there, stopped: make(chan struct{})}
	e.forward = forward.New(here, there, forward.Options{
		Batch: min(cfg.Queue.JetStream.Window, maxForwardBatch), Window: int64(cfg.Queue.JetStream.WindowBytes), Log: log,
	})
	ctx, stop := context.WithCancel(context.Background())
	e.stop = stop
	go func() {
		defer close(e.stopped)
		if err := e.forward.Run(ctx); err != nil && ctx.Err() == nil {
			log.Error("forward: ended", "error", err)
		}
	}()
	return engine{
		Backend: e, source: there, inspector: both{here, there, e.forward}, local: here, forwarded: func() metrics.ForwardStats {
			st := e.forward.Stats()
			return metrics.ForwardStats{Forwarded: st.Forwarded, Failed: st.Failed, Deferred: st.Deferred, InHand: st.InHand, Up: st.Up}
		},
	}, nil
}

// Close ends the forwarder, whose messages in hand go back to the spool, then both engines.
func (e *spoolJetStream) Close() error {
	e.stop()
	<-e.stopped
	return errors.Join(e.Spool.Close(), e.there.Close())
}

// both is the spool with JetStream behind it, for the queue commands. A message on its way from the one to the other may be seen in both.
type both struct {
	here    *spool.Spool
	there   queue.Inspector
	forward *forward.Forwarder // nil when nobody forwards now
}

// Stats are sums; what is said of commits and of storage is the spool's.
func (b both) Stats() queue.Stats {
	here, there := b.here.Stats(), b.there.Stats()
	st := here
	st.Messages = maps.Clone(here.Messages)
	for state, n := range there.Messages {
		st.Messages[state] += n
	}
	st.Bytes += there.Bytes
	st.Damaged += there.Damaged
	st.Partial = there.Partial
	if st.Oldest.IsZero() || !there.Oldest.IsZero() && there.Oldest.Before(st.Oldest) {
		st.Oldest = there.Oldest
	}
	st.Parts = map[string]queue.Stats{"spool": here, "jetstream": there}
	var alarms []string
	for _, alarm := range []string{here.Alarm, there.Alarm} {
		if alarm != "" {
			alarms = append(alarms, alarm)
		}
	}
	if b.forward != nil && there.Alarm == "" {
		if f := b.forward.Stats(); !f.Up {
			alarms = append(alarms, fmt.Sprintf("%s: mail waits in the spool: %s", f.Since.UTC().Format(time.RFC3339), f.Error))
		}
	}
	st.Alarm = strings.Join(alarms, "; ")
	return st
}

// List gives what has been forwarded first: it is older.
func (b both) List(yield func(queue.Entry) bool) error {
	more := true
	err := b.there.List(func(e queue.Entry) bool {
		more = yield(e)
		return more
	})
	if !more {
		return err
	}
	return errors.Join(b.here.List(yield), err)
}

// Show and all that follow look here first, where looking is cheap.
func (b both) Show(id envelope.ID) (queue.Entry, error) {
	e, err := b.here.Show(id)
	if errors.Is(err, queue.ErrNotFound) {
		return b.there.Show(id)
	}
	return e, err
}

func (b both) Cat(id envelope.ID, w io.Writer) error {
	return b.either(id, func(i queue.Inspector) error { return i.Cat(id, w) })
}

func (b both) Hold(id envelope.ID, reason string) error {
	return b.either(id, func(i queue.Inspector) error { return i.Hold(id, reason) })
}

func (b both) Release(id envelope.ID) error {
	return b.either(id, func(i queue.Inspector) error { return i.Release(id) })
}

func (b both) Retry(id envelope.ID) error {
	return b.either(id, func(i queue.Inspector) error { return i.Retry(id) })
}

func (b both) Drop(id envelope.ID) error {
	return b.either(id, func(i queue.Inspector) error { return i.Drop(id) })
}

func (b both) either(id envelope.ID, do func(queue.Inspector) error) error {
	err := do(b.here)
	if errors.Is(err, queue.ErrNotFound) {
		return do(b.there)
	}
	return err
}

// openInspector opens a queue that no server has open, for the queue commands. close must be called.
func openInspector(cfg *config.Config, log *slog.Logger) (i queue.Inspector, closeAll func() error, err error) {
	var here *spool.Spool
	if cfg.UsesSpool() {
		// Opening would make an empty spool: harmless, but the answer to a mistyped directory would be an empty list.
		if _, err := os.Stat(cfg.SpoolDir()); err != nil {
			return nil, nil, fmt.Errorf("no server runs and there is no spool in %s: is -c or --state-dir missing?", cfg.StateDir)
		}
		if here, err = spool.Open(cfg.SpoolDir(), spoolOptions(cfg, log)); err != nil {
			return nil, nil, err
		}
		if !cfg.UsesJetStream() {
			return here, here.Close, nil
		}
	}
	o := jetstreamOptions(cfg, log)
	o.Create = false
	there, err := newJetStream(o)
	switch {
	case err != nil && here != nil:
		return nil, nil, errors.Join(err, here.Close())
	case err != nil:
		return nil, nil, err
	case here != nil:
		return both{here, there, nil}, func() error { return errors.Join(here.Close(), there.Close()) }, nil
	}
	return there, there.Close, nil
}

// checkJetStream says what of the cluster is not as the configuration wants it, without changing anything: problems where serve would not
// start, warnings where it would. A cluster that does not answer is a warning: serve starts without it.
func checkJetStream(cfg *config.Config) (warnings []config.Problem, problems config.Problems) {
	if !cfg.UsesJetStream() {
		return nil, nil
	}
	const key = "queue.jetstream"
	ctx, cancel := context.WithTimeout(context.Background(), maxFirstLook)
	defer cancel()
	found, err := jetstream.Check(ctx, jetstreamOptions(cfg, slog.New(slog.DiscardHandler)))
	if err == nil {
		list := func(to *[]config.Problem, differences []string) {
			for _, difference := range differences {
				*to = append(*to, config.Problem{Key: key, Message: key + ": " + difference})
			}
		}
		list((*[]config.Problem)(&problems), found.Wrong)
		if cfg.Queue.JetStream.Create { // serve makes it
			list(&warnings, found.Missing)
		} else {
			list((*[]config.Problem)(&problems), found.Missing)
		}
		list(&warnings, found.Notes)
	}
	switch {
	case err == nil:
	case jetstream.Transient(err):
		warnings = append(warnings, config.Problem{Key: key, Message: key + ": not verified: " + err.Error()})
	default:
		problems = append(problems, config.Problem{Key: key, Message: err.Error()})
	}
	return warnings, problems
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
