package spf

// Check is one evaluation of RFC 7208 §4. The zero Check is of no use before Reset.
type Check struct {
	// Trace is called for each Step of the walk when it is not nil. Set it after New or Reset, before the first Feed.
	Trace func(Step)

	p      Params
	query  Query
	result Result
	asking bool
}

// New starts a check.
func New(p Params) *Check {
	c := new(Check)
	c.Reset(p)
	return c
}

// Reset starts another check in c, whatever has become of the one before. It keeps Trace.
func (c *Check) Reset(p Params) { c.p = p; c.asking = false }

// Next gives the query that waits for its answer: the same until Feed. It is not ok when the check is over and Result has the outcome.
func (c *Check) Next() (q Query, ok bool) { return c.query, c.asking }

// Feed brings the answer to the query that Next gave. It may keep a reference to what a points to until the check is over.
func (c *Check) Feed(a Answer) {}

// GiveUp ends a check that waits: the result is TempError with that problem ("timed out"). A check that is over keeps its result.
func (c *Check) GiveUp(problem string) {}

// Result is the outcome, once Next has none to ask.
func (c *Check) Result() Result { return c.result }
