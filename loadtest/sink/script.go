package sink

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// Rule is what happens to recipients whose address matches a pattern, at one stage of the mail transaction. One of Reply, Delay and
// CloseAfter is set. Of the rules that match a recipient, the first of each sort counts.
type Rule struct {
	Stage   Stage
	Pattern string // "*" is any number of any characters; case does not matter
	Reply   string // "550 5.1.1 no such user"
	Delay   Span   // before the reply
	// CloseAfter closes the connection when so many octets of message data have come; AtData only, 1 or more.
	CloseAfter int64
}

// Stage of a mail transaction.
type Stage uint8

// AtData is the reply after the message data. With SMTP there is one for all recipients: that of the first with a rule.
const (
	AtRcpt Stage = iota
	AtData
)

// builtIn are the recipients that need no script.
var builtIn = []Rule{
	{Stage: AtRcpt, Pattern: "tempfail@*", Reply: "450 4.2.0 try again later"},
	{Stage: AtRcpt, Pattern: "permfail@*", Reply: "550 5.1.1 no such user"},
	{Stage: AtData, Pattern: "tempfail-data@*", Reply: "451 4.3.0 try again later"},
	{Stage: AtData, Pattern: "permfail-data@*", Reply: "554 5.6.0 not wanted"},
}

// ParseScript reads rules, one a line; "#" begins a comment:
//
//	rcpt nobody@* 550 5.1.1 no such user
//	data slow@* delay 2s
//	data slower@* delay 2s..5s
//	data x@* close-after 1000
func ParseScript(src io.Reader) (rules []Rule, err error) {
	lines := bufio.NewScanner(src)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		rule, err := parseRule(text)
		if err != nil {
			return nil, fmt.Errorf("sink: line %d of the script: %w", n, err)
		}
		if len(rules) == MaxRules {
			return nil, fmt.Errorf("sink: line %d of the script: more than %d rules", n, MaxRules)
		}
		rules = append(rules, rule)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("sink: read the script: %w", err)
	}
	return rules, nil
}

// ReadScript reads a file of rules.
func ReadScript(name string) ([]Rule, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	defer f.Close()
	return ParseScript(f)
}

func parseRule(text string) (r Rule, err error) {
	stage, rest, _ := strings.Cut(text, " ")
	pattern, action, _ := strings.Cut(strings.TrimSpace(rest), " ")
	action = strings.TrimSpace(action)
	switch stage {
	case "rcpt":
		r.Stage = AtRcpt
	case "data":
		r.Stage = AtData
	default:
		return r, fmt.Errorf("%q is neither rcpt nor data", stage)
	}
	if r.Pattern = pattern; pattern == "" || action == "" {
		return r, fmt.Errorf("wanted: %s PATTERN REPLY, delay or close-after", stage)
	}
	word, value, _ := strings.Cut(action, " ")
	switch value = strings.TrimSpace(value); word {
	case "delay":
		if r.Delay, err = ParseSpan(value); err != nil {
			return r, err
		}
		if r.Delay.Max == 0 {
			return r, fmt.Errorf("a delay of nothing")
		}
	case "close-after":
		r.CloseAfter, err = strconv.ParseInt(value, 10, 64)
		if err != nil || r.CloseAfter < 1 || r.Stage != AtData {
			return r, fmt.Errorf("close-after stands behind data and takes a number of octets")
		}
	default:
		if !isReply(action) {
			return r, fmt.Errorf("%q is no reply with 2yz, 4yz or 5yz and a text", action)
		}
		r.Reply = action
	}
	return r, nil
}

// isReply wants three digits, a blank and a printable text; the codes are those that can be final for a recipient.
func isReply(s string) bool {
	if len(s) < 5 || len(s) > 500 || strings.IndexByte("245", s[0]) < 0 || s[1] < '0' || s[1] > '5' || s[2] < '0' || s[2] > '9' || s[3] != ' ' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

// ParseSpan reads "2s" or "100ms..2s".
func ParseSpan(s string) (d Span, err error) {
	from, to, ranged := strings.Cut(s, "..")
	if d.Min, err = time.ParseDuration(from); err == nil {
		if d.Max = d.Min; ranged {
			d.Max, err = time.ParseDuration(to)
		}
	}
	if err != nil || d.Min < 0 || d.Max < d.Min {
		return Span{}, fmt.Errorf("%q is no delay such as 2s or 100ms..2s", s)
	}
	return d, nil
}

// matches says whether an address has the pattern's form.
func matches(pattern string, addr []byte) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return bytes.EqualFold([]byte(pattern), addr)
	}
	if len(addr) < len(first) || !bytes.EqualFold(addr[:len(first)], []byte(first)) {
		return false
	}
	addr = addr[len(first):]
	for {
		part, more, star := strings.Cut(rest, "*")
		if !star {
			return len(addr) >= len(part) && bytes.EqualFold(addr[len(addr)-len(part):], []byte(part))
		}
		// The first place where the part fits leaves most for those behind it.
		at := 0
		for ; ; at++ {
			if len(addr)-at < len(part) {
				return false
			}
			if bytes.EqualFold(addr[at:at+len(part)], []byte(part)) {
				break
			}
		}
		addr, rest = addr[at+len(part):], more
	}
}

// plan is what the rules have for one recipient at one stage.
type plan struct {
	reply      string
	delay      Span
	closeAfter int64
}

func (s *Sink) planFor(stage Stage, addr []byte) (p plan) {
	for _, rules := range [][]Rule{s.o.Rules, builtIn} {
		for i := range rules {
			r := &rules[i]
			if r.Stage != stage || !matches(r.Pattern, addr) {
				continue
			}
			switch {
			case r.CloseAfter > 0:
				if p.closeAfter == 0 {
					p.closeAfter = r.CloseAfter
				}
			case r.Delay.Max > 0:
				if p.delay.Max == 0 {
					p.delay = r.Delay
				}
			case p.reply == "":
				p.reply = r.Reply
			}
		}
	}
	return p
}
