package loop

import "github.com/fastedge/fastedge/policy"

// validator is one made of a function.
type validator struct {
	stages policy.Stages
	f      func(*policy.Event) error
}

func (v validator) Stages() policy.Stages          { return v.stages }
func (v validator) Validate(e *policy.Event) error { return v.f(e) }
