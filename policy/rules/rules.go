package rules

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/fastedge/fastedge/policy"
)

// Rule is one [[rule]] of the configuration.
type Rule struct {
	Name    string
	At      policy.Stage // AtConnect to AtMessage
	When    string       // the expression; it gives a bool
	Reply   string       // "550 5.7.1 text": a reply, unless Accept
	Accept  bool         // no further rule of the stage is asked
	Observe bool         // counts and logs only
}

// Options are for all rules together.
type Options struct {
	Log      *slog.Logger                       // gets what rules in observe mode would have done
	Observed func(rule string, e *policy.Event) // is called for each rule that matches, on the event loop
}

// Error is what is wrong with one field of one rule. Offset is where, in bytes into the field's value.
type Error struct {
	Rule    int    // index
	Field   string // when, reply, at, name
	Offset  int
	Message string
}

// Error names the rule by its index.
func (e *Error) Error() string {
	return fmt.Sprintf("rules: rule[%d].%s: %s (at offset %d)", e.Rule, e.Field, e.Message, e.Offset)
}

// Compile makes one validator of all rules. Its error is a join of *Error, one for each wrong rule.
func Compile(list []Rule, o Options) (policy.Validator, error) {
	return nil, errors.New("rules: not built")
}
