package smtptest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// line is one line of a transcript.
type line struct {
	mark byte   // '#', 'C' (with CRLF), '+' (without), 'S', 'M', '!', or 0 for an empty line
	text string // behind the mark
	data []byte // of C lines: the bytes
}

// parse reads a transcript. Errors name the line.
func parse(path string) ([]line, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var lines []line
	for i, text := range strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n") {
		l, err := parseLine(text)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		lines = append(lines, l)
	}
	if len(lines) == 0 || lines[0].mark != '#' {
		return nil, fmt.Errorf("%s:1: the first line must say what the transcript is for", path)
	}
	return lines, nil
}

func parseLine(text string) (line, error) {
	if text == "" {
		return line{}, nil
	}
	mark, rest, _ := strings.Cut(text, " ")
	var data []byte
	var err error
	switch mark {
	case "#":
		return line{mark: '#', text: rest}, nil
	case "!":
		return line{mark: '!', text: rest}, nil
	case "S:", "M:":
		return line{mark: mark[0], text: rest}, nil
	case "C:":
		data, err = unescape(rest)
		return line{mark: 'C', text: rest, data: append(data, '\r', '\n')}, err
	case "C+":
		data, err = unescape(rest)
		return line{mark: '+', text: rest, data: data}, err
	}
	return line{}, fmt.Errorf("unknown mark %q", mark)
}

func (l line) String() string {
	marks := map[byte]string{'#': "# ", '!': "! ", 'C': "C: ", '+': "C+ ", 'S': "S: ", 'M': "M: "}
	if l.text == "" {
		return strings.TrimRight(marks[l.mark], " ")
	}
	return marks[l.mark] + l.text
}

var simpleEscapes = map[byte]byte{'r': '\r', 'n': '\n', 't': '\t', '0': 0, '\\': '\\'}

func unescape(text string) ([]byte, error) {
	var out []byte
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			out = append(out, text[i])
			continue
		}
		rest := text[i+1:]
		switch {
		case rest == "":
			return nil, fmt.Errorf("a single backslash at the end")
		case rest[0] == 'x' && len(rest) >= 3:
			v, err := strconv.ParseUint(rest[1:3], 16, 8)
			if err != nil {
				return nil, err
			}
			out = append(out, byte(v))
			i += 3
		case rest[0] == '{':
			inside, _, closed := strings.Cut(rest[1:], "}")
			count, repeated, ok := strings.Cut(inside, "*")
			n, err := strconv.Atoi(count)
			if !closed || !ok || err != nil {
				return nil, fmt.Errorf("want \\{number*text}")
			}
			piece, err := unescape(repeated)
			if err != nil {
				return nil, err
			}
			out = append(out, bytes.Repeat(piece, n)...)
			i += 2 + len(inside)
		default:
			c, ok := simpleEscapes[rest[0]]
			if !ok {
				return nil, fmt.Errorf("unknown escape \\%c", rest[0])
			}
			out = append(out, c)
			i++
		}
	}
	return out, nil
}

// matches says whether got is want, in which … stands for anything.
func matches(want, got string) bool {
	parts := strings.Split(want, "…")
	if len(parts) == 1 {
		return want == got
	}
	if !strings.HasPrefix(got, parts[0]) {
		return false
	}
	got = got[len(parts[0]):]
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(got, part)
		if i < 0 {
			return false
		}
		got = got[i+len(part):]
	}
	return strings.HasSuffix(got, last)
}
