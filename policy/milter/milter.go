package milter

import (
	"errors"
	"log/slog"
	"time"

	"github.com/fastedge/fastedge/policy"
)

// Options are one [[milter]] of the configuration.
type Options struct {
	Name     string
	Network  string        // tcp or unix
	Address  string        // host:port or path
	Hostname string        // our own, for the macro j
	Timeout  time.Duration // of one message. Zero means 30 s
	OnError  policy.OnError
	Log      *slog.Logger
}

// Milter is a Validator that shows messages to a milter.
type Milter struct{ *policy.Blocking }

// New gives a milter.
func New(o Options) (*Milter, error) { return nil, errors.New("milter: not built") }
