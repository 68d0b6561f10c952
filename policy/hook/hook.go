package hook

import (
	"errors"
	"log/slog"
	"time"

	"github.com/fastedge/fastedge/policy"
)

// Options are one [[hook]] of the configuration.
type Options struct {
	Name    string
	Stages  policy.Stages
	URL     string        // http or https
	Timeout time.Duration // of one question. Zero means 5 s
	Cache   time.Duration // how long an answer holds. Zero means that none is kept
	OnError policy.OnError
	Log     *slog.Logger
}

// Hook is a Validator that asks an HTTP server.
type Hook struct{ *policy.Blocking }

// New gives a hook.
func New(o Options) (*Hook, error) { return nil, errors.New("hook: not built") }
