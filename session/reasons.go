package session

import "github.com/fastedge/fastedge/policy"

// Reason is the closed set of words that say why something was refused; they label metrics and log lines.
type Reason uint8

// The words stand in reasons.
const (
	ReasonNone Reason = iota
	ReasonSyntax
	ReasonSequence
	ReasonUnknownCommand
	ReasonUnknownParameter
	ReasonNotOffered
	ReasonLineTooLong
	ReasonBareNewline
	ReasonUTF8
	ReasonBadSender
	ReasonBadRecipient
	ReasonRelay
	ReasonRecipient
	ReasonNoRecipients
	ReasonTooManyRecipients
	ReasonTooManyTransactions
	ReasonTooManyErrors
	ReasonSize
	ReasonLoop
	ReasonMemory
	ReasonDisk
	ReasonQueue
	ReasonTimeout
	ReasonHTTP
	ReasonShutdown
	ReasonPolicy // a validator's decision, of no kind that has a word of its own
	ReasonDenied
	ReasonMessageRate
	ReasonRule
	ReasonHook
	ReasonMilter
	ReasonSPF
	ReasonDNSBL
	ReasonValidator // a validator that failed
	ReasonTLS
	ReasonAuth
	ReasonAuthFailed
	ReasonAuthUnavailable
	ReasonAuthFailures
	ReasonJunk
	ReasonDataRate
	ReasonForged
	NumReasons
)

// reasons gives each Reason its word, and says whether it is a fault of the client's program: those count towards
// Options.MaxErrors. A recipient that is not ours or one too many is a fact about the mail, not about the program: a mailing list
// with thirty stale addresses must not be cut off from its valid ones, and a client that pipelined more RCPT than we take is to
// send the rest later.
var reasons = [NumReasons]struct {
	word   string
	counts bool
}{
	ReasonNone:                {word: "none"},
	ReasonSyntax:              {word: "syntax", counts: true},
	ReasonSequence:            {word: "sequence", counts: true},
	ReasonUnknownCommand:      {word: "unknown_command", counts: true},
	ReasonUnknownParameter:    {word: "unknown_parameter", counts: true},
	ReasonNotOffered:          {word: "not_offered", counts: true},
	ReasonLineTooLong:         {word: "line_too_long", counts: true},
	ReasonBareNewline:         {word: "bare_newline", counts: true},
	ReasonUTF8:                {word: "utf8", counts: true},
	ReasonBadSender:           {word: "bad_sender", counts: true},
	ReasonBadRecipient:        {word: "bad_recipient", counts: true},
	ReasonRelay:               {word: "relay"},
	ReasonRecipient:           {word: "recipient"},
	ReasonNoRecipients:        {word: "no_recipients", counts: true},
	ReasonTooManyRecipients:   {word: "too_many_recipients"},
	ReasonTooManyTransactions: {word: "too_many_transactions"},
	ReasonTooManyErrors:       {word: "too_many_errors"},
	ReasonSize:                {word: "size"},
	ReasonLoop:                {word: "loop"},
	ReasonMemory:              {word: "memory"},
	ReasonDisk:                {word: "disk"},
	ReasonQueue:               {word: "queue"},
	ReasonTimeout:             {word: "timeout"},
	ReasonHTTP:                {word: "http"},
	ReasonShutdown:            {word: "shutdown"},
	ReasonPolicy:              {word: "policy"},
	ReasonDenied:              {word: "denied"},
	ReasonMessageRate:         {word: "message_rate"},
	ReasonRule:                {word: "rule"},
	ReasonHook:                {word: "hook"},
	ReasonMilter:              {word: "milter"},
	ReasonSPF:                 {word: "spf"},
	ReasonDNSBL:               {word: "dnsbl"},
	ReasonValidator:           {word: "validator_failed"},
	ReasonTLS:                 {word: "tls"},
	ReasonAuth:                {word: "auth", counts: true},
	ReasonAuthFailed:          {word: "auth_failed"}, // limits.auth_failures counts these
	ReasonAuthUnavailable:     {word: "auth_unavailable"},
	ReasonAuthFailures:        {word: "auth_failures"},
	ReasonJunk:                {word: "junk_commands"},
	ReasonDataRate:            {word: "data_rate"},
	ReasonForged:              {word: "forged_results"},
}

// kindReasons are the words for what validators refuse.
var kindReasons = [policy.NumKinds]Reason{
	policy.KindOther:      ReasonPolicy,
	policy.KindClients:    ReasonDenied,
	policy.KindRate:       ReasonMessageRate,
	policy.KindRecipients: ReasonRecipient,
	policy.KindRule:       ReasonRule,
	policy.KindHook:       ReasonHook,
	policy.KindMilter:     ReasonMilter,
	policy.KindSPF:        ReasonSPF,
	policy.KindDNSBL:      ReasonDNSBL,
}

// String gives the word.
func (r Reason) String() string {
	if r < NumReasons {
		return reasons[r].word
	}
	return "unknown"
}
