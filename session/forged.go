package session

import (
	"bytes"

	"github.com/fastedge/fastedge/pool"
)

// RFC 8601 §5: an Authentication-Results field that bears our name and that we have not written is somebody's forgery, and whoever reads the
// message later would believe it. It is the one thing that is ever taken out of a message.

const resultsName = "authentication-results"

// maxResultsID is how much of a field's value is looked at for the authserv-id; a longer comment before it is no honest one, and counts as ours.
const maxResultsID = 1024

// maxForged is how many such fields are taken out of one message. Honest mail has none, and one with more is refused.
const maxForged = 64

// maxSearched bounds the header section that is searched, because that happens on the event loop: a MiB takes some 3 ms there. A message with a
// longer one is refused, as what is not searched could hold a forgery.
const maxSearched = 1 << 20

// removeForged takes the fields out of the header section that claim to be the results of id. It says whether there were too many, or more to
// search than maxSearched.
func removeForged(data *pool.Chain, id string) (tooMany bool) {
	ranges, whole := findForged(data, id)
	if len(ranges) > maxForged || !whole {
		return true
	}
	if len(ranges) > 0 {
		data.Delete(ranges)
	}
	return false
}

// findForged gives such fields, each from its name to its last CRLF, at most one more than maxForged. It reads the header section once, in
// whatever pieces it lies, and says whether that was all of it.
func findForged(data *pool.Chain, id string) (found []pool.Range, whole bool) {
	const (
		name    = iota // as much of the name was read as matched
		colon          // all of it; blanks, then a colon
		value          // of a field with that name
		other          // another field
		newline        // behind a line of it: a blank goes on with the field
	)
	state, matched, ours := name, 0, false
	var text []byte // of the value
	at, start := int64(0), int64(0)
	lineEmpty := true
	begin := func() { state, matched, ours, text, start, lineEmpty = name, 0, false, text[:0], at, true }
	for c := data.First(); c != nil; c = c.Next() {
		p := c.Bytes()
		if left := maxSearched - at; int64(len(p)) > left {
			if left == 0 {
				return found, false
			}
			p = p[:left]
		}
		for i := 0; i < len(p); i++ {
			b := p[i]
			if state == newline {
				if b == ' ' || b == '\t' {
					if ours {
						state = value
					} else {
						state = other
					}
				} else {
					if ours && claims(text, id) {
						if found = append(found, pool.Range{From: start, To: at}); len(found) > maxForged {
							return found, true
						}
					}
					begin()
				}
			}
			switch state {
			case name:
				switch {
				case matched < len(resultsName) && b|0x20 == resultsName[matched] && (b != '\r' && b != '\n'):
					matched++
					lineEmpty = false
					if matched == len(resultsName) {
						state = colon
					}
				case b == '\n':
					if lineEmpty {
						return found, true // the body begins
					}
					state = newline
				case b == '\r':
				default:
					lineEmpty = false
					state = other
				}
			case colon:
				switch b {
				case ' ', '\t', '\r':
				case ':':
					state, ours = value, true
				case '\n':
					state = newline
				default:
					state = other
				}
			case value:
				if b == '\n' {
					state = newline
				} else if len(text) < maxResultsID {
					text = append(text, b)
				}
			case other:
				// The rest of the line is nothing to us.
				n := bytes.IndexByte(p[i:], '\n')
				if n < 0 {
					at += int64(len(p) - i)
					i = len(p)
					continue
				}
				at += int64(n)
				i += n
				state = newline
			}
			at++
		}
	}
	if at < data.Len() {
		return found, false
	}
	if ours && claims(text, id) { // a message that ends within its header section
		found = append(found, pool.Range{From: start, To: at})
	}
	return found, true
}

// claims says that a value begins with our authserv-id: [CFWS] value [CFWS] (RFC 8601 §2.2).
func claims(text []byte, id string) bool {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch b := text[i]; {
		case b == '\\' && depth > 0:
			i++
		case b == '(':
			depth++
		case b == ')' && depth > 0:
			depth--
		case depth > 0, b == ' ', b == '\t', b == '\r':
		default:
			rest := text[i:]
			if rest[0] == '"' {
				end := bytes.IndexByte(rest[1:], '"')
				if end < 0 {
					return true
				}
				return bytes.EqualFold(bytes.ReplaceAll(rest[1:1+end], []byte(`\`), nil), []byte(id))
			}
			if end := bytes.IndexAny(rest, "; \t\r("); end >= 0 {
				rest = rest[:end]
			} else if len(text) >= maxResultsID {
				return true
			}
			return bytes.EqualFold(rest, []byte(id))
		}
	}
	return len(text) >= maxResultsID
}
