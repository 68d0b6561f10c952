package spf

// StepKind says what a Step tells.
type StepKind uint8

const (
	StepRecord   StepKind = iota + 1 // a record was found: Domain has it, Text is the record
	StepNoRecord                     // Domain has no record
	StepTerm                         // a term is to be evaluated: Text is the term with its qualifier
	StepAnswer                       // Query was answered, Status and Count
	StepMatch                        // the term matched
	StepLeave                        // the record of an include is done: Code is its result
	StepRedirect                     // redirect= leads to the record of Domain
	StepResult                       // the check is over: Code
)

// Step is one step of the walk through the records, for people who want to see why. Text and Domain may hold what strangers wrote, but
// only bytes 0x20 to 0x7E.
type Step struct {
	Kind   StepKind
	Depth  int // of includes; 0 is the record of the domain checked
	Domain string
	Text   string
	Query  Query
	Status Status
	Count  int // records in the answer
	Code   Code
}
