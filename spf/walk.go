package spf

// StepKind says what a Step tells.
type StepKind uint8

const (
	StepRecord   StepKind = iota + 1 // a record was found: Domain has it, Text is the record
	StepNoRecord                     // Domain has no record
	StepTerm                         // a term is to be evaluated: Text is the term with its qualifier
	StepAnswer                       // Query was answered, Status and Count
	StepMatch                        // the term in Text matched: Code is what that means for the record
	StepLeave                        // the record of the include in Text is done: Code is its result; Domain and Depth are above it
	StepRedirect                     // redirect= leads to Domain, whose record is next
	StepResult                       // the check is over: Code, and the reason in Text
)

var stepNames = [...]string{"?", "record", "no record", "term", "answer", "match", "leave", "redirect", "result"}

func (k StepKind) String() string { return stepNames[k] }

// Step is one step of the walk through the records, for people who want to see why. Text and Domain may hold what strangers wrote, but
// only bytes 0x20 to 0x7E. A check tells of its steps in order: a term, the answers that it needed, and a match; or the next term.
type Step struct {
	Kind   StepKind
	Depth  int    // of includes; 0 is the record of the domain checked
	Domain string // whose record is read
	Text   string
	Query  Query
	Status Status
	Count  int // records in the answer
	Code   Code
}
