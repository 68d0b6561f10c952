// Package rules decides about sessions by expressions of the operator's, the [[rule]] entries of the configuration. It is the door to
// expr-lang/expr.
//
// A rule stands at a stage and has an expression over the facts that are known there; see Facts. The rules of a stage are tried in their
// order. The first one whose expression is true decides: with its reply, or, with accept, that no further rule of the stage is tried. Six
// examples:
//
//	# 1. Mail that claims to be ours comes from our own users only.
//	at = "mail"
//	when = 'sender_domain == "example.net" && user == "" && !may_relay'
//	reply = "550 5.7.1 Log in to send as example.net"
//
//	# 2. The backup's messages pass the rules below.
//	at = "mail"
//	when = 'in_network(client_ip, "10.0.8.0/24", "2001:db8:8::/48")'
//	accept = true
//
//	# 3. Nobody in the world is called like us.
//	at = "helo"
//	when = 'helo in ["localhost", "example.net", "mx1.example.net"] && !in_network(client_ip, "127.0.0.0/8")'
//	reply = "550 5.7.1 That is not your name"
//
//	# 4. A mailing list takes mail in TLS only.
//	at = "rcpt"
//	when = 'recipient_local startsWith "list-" && recipient_domain == "example.net" && !tls'
//	reply = "530 5.7.0 Must issue a STARTTLS command first"
//
//	# 5. What would be refused if large messages to many were?
//	at = "message"
//	when = 'size > 10 * 1024 * 1024 && recipients > 20'
//	reply = "552 5.3.4 Too large for so many"
//	mode = "observe"
//
//	# 6. Dial-up names, by a pattern (RE2 syntax); 421 closes the session.
//	at = "helo"
//	when = 'any(["dyn", "dsl", "dialup"], helo contains #) || helo matches "^[0-9]+([.-][0-9]+){3}[.-]"'
//	reply = "421 4.7.0 Use your provider's mail server"
//
// Operators: == != < > <= >=, and or not (&& || !), in, contains, startsWith, endsWith, matches, + - * / %, ?:, and the functions
// in_network, len, lower, upper, trim, trimPrefix, trimSuffix, indexOf, lastIndexOf, any, all and none. Everything else of the expression
// language is refused, because with it a few bytes of expression can need a lot of time or memory: what is left has a bound that is known
// when the rules are compiled. Patterns and networks are constants for the same reason.
//
// Rules run on the event loops. They have no state, and facts are filled in only when a rule of the stage uses them.
package rules

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/expr-lang/expr/vm"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

// Rule is one [[rule]] of the configuration.
type Rule struct {
	Name string       // for logs and metrics; it may be empty
	At   policy.Stage // AtConnect to AtMessage
	When string       // the expression; it gives a bool
	// Reply is "550 5.7.1 text", unless Accept. 4yz and 5yz refuse; 421 and 221 close the session as well; another 2yz accepts with these
	// words and ends the stage as Accept does, where a success has such a reply: 220 at connect, 235 at auth, any at helo (EHLO keeps its
	// own), mail and rcpt.
	Reply   string
	Accept  bool // no further rule of the stage is tried
	Observe bool // counts and logs only; the rules behind it are tried
}

// Options are for all rules together.
type Options struct {
	// Log gets a line for each rule in observe mode that matches. Nil means none.
	Log *slog.Logger
	// Observed is told of each rule that matches, also of those that only observe. It runs on the event loop and borrows e. Nil means
	// nobody.
	Observed func(rule string, e *policy.Event)
}

// Error is what is wrong with one field of one rule. Offset is where, in bytes into the field's value.
type Error struct {
	Rule    int    // index
	Field   string // "when", "reply" or "at"
	Offset  int
	Message string
}

// Error names the rule by its index.
func (e *Error) Error() string {
	return fmt.Sprintf("rules: rule[%d].%s: %s (at byte %d)", e.Rule, e.Field, e.Message, e.Offset)
}

// Problems gives the *Error values that an error of Compile is made of.
func Problems(err error) (all []*Error) {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range many.Unwrap() {
			all = append(all, Problems(err)...)
		}
		return all
	}
	if one, ok := errors.AsType[*Error](err); ok {
		all = append(all, one)
	}
	return all
}

// Set is the rules of all stages as one Validator. It is immutable; all event loops use it at the same time.
type Set struct {
	o  Options
	at [policy.AtMessage + 1]stage
	on policy.Stages
}

// stage is the rules of one stage.
type stage struct {
	rules    []rule
	facts    []fact    // what they use
	networks []network // in_network with its constants
	frames   sync.Pool // of *frame
}

type rule struct {
	Rule
	reply   smtpcodec.Reply
	program *vm.Program
}

// frame is what one run needs. env keeps the facts of the run before: those that are the same again, like the listener, are not
// allocated again.
type frame struct {
	vm  vm.VM
	env map[string]any
}

// Compile checks the rules and makes one validator of them. Its error joins an *Error for each field that is wrong; see Problems. Without
// rules the validator is asked nowhere.
func Compile(list []Rule, o Options) (*Set, error) {
	s := &Set{o: o}
	var problems []error
	for i, r := range list {
		if r.At > policy.AtMessage {
			problems = append(problems, &Error{Rule: i, Field: "at", Message: fmt.Sprintf("no rule can stand at %s: nothing is answered there", r.At)})
			continue
		}
		c := rule{Rule: r}
		if c.Name == "" {
			c.Name = fmt.Sprintf("rule %d at %s", i+1, r.At)
		}
		if !r.Accept {
			var err *Error
			if c.reply, err = parseReply(r.Reply); err == nil && !fits(c.reply.Code, r.At) {
				err = &Error{Message: fmt.Sprintf("%d is no success at %s; accept = true lets the client go on", c.reply.Code, r.At)}
			}
			if err != nil {
				err.Rule, err.Field = i, "reply"
				problems = append(problems, err)
			}
		}
		var err *Error
		if c.program, err = compile(r.When, r.At, &s.at[r.At]); err != nil {
			err.Rule, err.Field = i, "when"
			problems = append(problems, err)
			continue
		}
		s.at[r.At].rules = append(s.at[r.At].rules, c)
		s.on |= policy.On(r.At)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return s, nil
}

// Kind is policy.Kinded's.
func (s *Set) Kind() policy.Kind { return policy.KindRule }

// Stages are those that have rules.
func (s *Set) Stages() policy.Stages { return s.on }

// memoryBudget is how many elements the arrays of one run may have; the bound of the work is set by compile.
const memoryBudget = maxWork

// Validate tries the rules of the stage. An expression that fails (a division by zero) is an error of the validator. Runs on: event loop.
func (s *Set) Validate(e *policy.Event) error {
	if e.Stage > policy.AtMessage {
		return nil
	}
	st := &s.at[e.Stage]
	f, _ := st.frames.Get().(*frame)
	if f == nil {
		f = &frame{env: make(map[string]any, len(st.facts)+len(st.networks))}
		f.vm.MemoryBudget = memoryBudget
	}
	defer st.frames.Put(f)
	st.fill(f.env, e)
	for i := range st.rules {
		r := &st.rules[i]
		result, err := f.vm.Run(r.program, f.env)
		if err != nil {
			return fmt.Errorf("rules: %s: %w", r.Name, err)
		}
		matches, ok := result.(bool)
		if !ok {
			return fmt.Errorf("rules: %s: the result is no bool", r.Name)
		}
		if !matches {
			continue
		}
		if s.o.Observed != nil {
			s.o.Observed(r.Name, e)
		}
		if r.Observe {
			s.logObserved(r, e)
			continue
		}
		if !r.Accept {
			e.Set(r.reply)
		}
		return nil
	}
	return nil
}

func (s *Set) logObserved(r *rule, e *policy.Event) {
	if s.o.Log == nil {
		return
	}
	would := "accept"
	if !r.Accept {
		would = strings.TrimRight(string(r.reply.AppendTo(nil)), "\r\n")
	}
	s.o.Log.Info("rule matches", "rule", r.Name, "stage", e.Stage.String(), "session", e.Client.ID.String(), "client", e.Client.Addr.String(),
		"would", would)
}

// fits says whether the session can give a reply with this code at the stage.
func fits(code uint16, at policy.Stage) bool {
	if code/100 != 2 || code == 221 {
		return true
	}
	switch at {
	case policy.AtConnect:
		return code == 220
	case policy.AtAuth:
		return code == 235
	}
	// A handshake has no reply, DATA's is 354, and the reply to a message is the queue's.
	return at == policy.AtHelo || at == policy.AtMail || at == policy.AtRcpt
}

// parseReply reads "550 5.7.1 text", with more lines of text behind \n.
func parseReply(s string) (smtpcodec.Reply, *Error) {
	wrong := func(at int, format string, args ...any) (smtpcodec.Reply, *Error) {
		return smtpcodec.Reply{}, &Error{Offset: at, Message: fmt.Sprintf(format, args...)}
	}
	if len(s) < 4 || s[3] != ' ' {
		return wrong(0, `a reply is a code of three digits, an enhanced code if wanted, and text, like "550 5.7.1 No"`)
	}
	for i := range len(s) {
		if c := s[i]; (c < ' ' || c > '~') && c != '\n' {
			return wrong(i, "a reply is printable ASCII")
		}
	}
	first, rest, more := strings.Cut(s, "\n")
	if len(first)+len("\r\n") > smtpcodec.MaxReplyLineBytes {
		return wrong(smtpcodec.MaxReplyLineBytes-len("\r\n"), "a line of a reply has at most %d bytes", smtpcodec.MaxReplyLineBytes)
	}
	r, n, err := smtpcodec.ParseReply([]byte(first + "\r\n"))
	if err != nil || n == 0 || r.Code/100 != 2 && r.Code/100 != 4 && r.Code/100 != 5 {
		return wrong(0, "%q is no reply code that a rule can give: 2yz, 4yz or 5yz", s[:3])
	}
	if r.Enhanced == (smtpcodec.EnhancedCode{}) && looksEnhanced(first[4:]) {
		return wrong(4, "an enhanced code after %d begins with %d and has three numbers of up to three digits", r.Code, r.Code/100)
	}
	if more {
		r.Text += "\n" + rest
	}
	// What a client reads is what the operator wrote: a line that would be cut is an error here.
	bare := smtpcodec.Reply{Code: r.Code, Enhanced: r.Enhanced}
	around := len(bare.AppendTo(nil)) // code, enhanced code, CRLF
	for i, line := range strings.Split(r.Text, "\n") {
		if around+len(line) > smtpcodec.MaxReplyLineBytes {
			return wrong(0, "line %d of the reply has more than %d bytes", i+1, smtpcodec.MaxReplyLineBytes)
		}
	}
	return r, nil
}

// looksEnhanced says that text begins with digits, a dot and digits.
func looksEnhanced(text string) bool {
	word, _, _ := strings.Cut(text, " ")
	return strings.Count(word, ".") == 2 && strings.Trim(word, "0123456789.") == "" && word[0] != '.'
}
