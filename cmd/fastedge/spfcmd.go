package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/resolver"
	"github.com/fastedge/fastedge/spf"
)

type spfCmd struct {
	Check spfCheckCmd `cmd:"" help:"Check a sender (RFC 7208), and show the walk through the records. Servers and limits are those of the configuration."`
}

type spfCheckCmd struct {
	IP       string  `required:"" placeholder:"ADDRESS" help:"The client's address."`
	From     string  `required:"" placeholder:"ADDRESS" help:"The reverse-path; empty is the null sender, for which postmaster@HELO is checked."`
	Helo     string  `placeholder:"NAME" help:"What the client gave by HELO or EHLO."`
	Receiver string  `placeholder:"NAME" help:"Our name, for explanations (default: hostname of the configuration)."`
	Server   *string `placeholder:"HOST:PORT" help:"DNS server to ask (default: dns.servers)."`
	JSON     bool    `help:"Print one JSON object."`
}

// spfReport is the output of spf check --json.
type spfReport struct {
	Result      string `json:"result"`
	Explanation string `json:"explanation"`
	Reason      string `json:"reason"`
	Domain      string `json:"domain"`
	Mechanism   string `json:"mechanism"`
	Lookups     int    `json:"lookups"`
	Voids       int    `json:"voids"`
	Queries     int    `json:"queries"`
	ElapsedMS   int64  `json:"elapsed_ms"`
}

// Run asks like the server does, but with a cache of its own that is empty.
func (c *spfCheckCmd) Run(a *app) error {
	ip, err := clientAddress(c.IP)
	if err != nil {
		return usageError{fmt.Errorf("--ip: %w", err)}
	}
	from, err := reversePath(c.From)
	if err != nil {
		return usageError{fmt.Errorf("--from: %w", err)}
	}
	if from == "" && c.Helo == "" {
		return usageError{errors.New("the null sender needs --helo: its name is what is checked")}
	}
	cfg, err := a.load()
	if err != nil {
		return err
	}
	servers := cfg.DNS.Servers
	if c.Server != nil {
		server, err := serverAddress(*c.Server)
		if err != nil {
			return usageError{fmt.Errorf("--server: %w", err)}
		}
		servers = []string{server}
	}
	r, err := resolver.New(resolver.Options{Servers: servers, Timeout: cfg.DNS.Timeout, EndUnreachable: true})
	if err != nil {
		return err
	}
	defer r.Close()

	ctx, cancel := context.WithTimeout(context.Background(), cfg.SPF.Timeout)
	defer cancel()
	begun := time.Now()
	check := spf.New(spf.Params{
		IP: ip, Helo: c.Helo, Sender: from, Receiver: cmp.Or(c.Receiver, cfg.Hostname), MaxVoid: maxVoid(cfg), Now: begun,
	})
	var walk spfWalk
	check.Trace = walk.step
	for q, more := check.Next(); more; q, more = check.Next() {
		asked := time.Now()
		answer, err := r.LookupSync(ctx, q)
		walk.took = time.Since(asked)
		if err != nil {
			check.GiveUp("Timed out")
			break
		}
		check.Feed(answer)
	}
	return c.print(a.stdout, cfg, check.Result(), &walk, time.Since(begun))
}

// maxVoid is spf.void_lookups as package spf has it, where zero is its default.
func maxVoid(cfg *config.Config) int {
	if cfg.SPF.VoidLookups == 0 {
		return -1
	}
	return cfg.SPF.VoidLookups
}

// clientAddress takes an address as such, or as a literal of EHLO: [192.0.2.1], [IPv6:2001:db8::1].
func clientAddress(s string) (netip.Addr, error) {
	text := s
	if n := len(text); n > 2 && text[0] == '[' && text[n-1] == ']' {
		text = text[1 : n-1]
		if tag := "IPv6:"; len(text) > len(tag) && strings.EqualFold(text[:len(tag)], tag) {
			text = text[len(tag):]
		}
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return ip, fmt.Errorf("%q is no IP address", s)
	}
	return ip, nil
}

// reversePath takes an address with or without angle brackets, and not what else a From field may have.
func reversePath(s string) (string, error) {
	path := s
	if n := len(path); n >= 2 && path[0] == '<' && path[n-1] == '>' {
		path = path[1 : n-1]
	}
	bare := path
	if strings.HasPrefix(bare, `"`) { // a quoted local-part may have anything
		bare = bare[max(strings.LastIndexByte(bare, '@'), 0):]
	}
	if strings.ContainsAny(bare, "<> \t\r\n") {
		return "", fmt.Errorf("%q is no address: only what MAIL FROM has between < and > is wanted", s)
	}
	return path, nil
}

// serverAddress takes the address of a DNS server, or the name of its machine, with or without a port.
func serverAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), "53"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q: the port must be a number from 1 to 65535", s)
	}
	if host == "" {
		return "", fmt.Errorf("%q has no address", s)
	}
	addrs, err := net.LookupHost(host)
	if err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	return net.JoinHostPort(addrs[0], port), nil
}

func (c *spfCheckCmd) print(w io.Writer, cfg *config.Config, result spf.Result, walk *spfWalk, elapsed time.Duration) error {
	report := spfReport{
		Result:      result.Code.String(),
		Explanation: result.Explanation,
		Reason:      cmp.Or(result.Reason, result.Problem, "no SPF record"),
		Domain:      result.Domain,
		Mechanism:   result.Mechanism,
		Lookups:     result.Lookups,
		Voids:       result.Voids,
		Queries:     result.Queries,
		ElapsedMS:   elapsed.Milliseconds(),
	}
	if c.JSON {
		return json.NewEncoder(w).Encode(report)
	}
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-12s %s\n", name, value)
		}
	}
	line("result", report.Result)
	line("reason", report.Reason)
	line("explanation", report.Explanation)
	line("domain", report.Domain)
	line("mechanism", report.Mechanism)
	line("lookups", fmt.Sprintf("%d of %d", report.Lookups, spf.MaxLookups))
	line("voids", fmt.Sprintf("%d of %d", report.Voids, cfg.SPF.VoidLookups))
	line("queries", fmt.Sprintf("%d in %s", report.Queries, milliseconds(elapsed)))
	if walk.text.Len() > 0 {
		b.WriteString("\n" + walk.text.String())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// spfWalk writes a check's walk through the records, a step a line.
type spfWalk struct {
	text strings.Builder
	took time.Duration // of the last query
}

func (w *spfWalk) step(s spf.Step) {
	indent := 2 * s.Depth
	switch s.Kind {
	case spf.StepRecord:
		w.line(indent, "%s has %s", s.Domain, s.Text)
	case spf.StepNoRecord:
		w.line(indent, "%s has no record", s.Domain)
	case spf.StepTerm:
		w.line(indent+2, "%s", s.Text)
	case spf.StepAnswer:
		what := [...]string{spf.Failed: "failed", spf.Found: strconv.Itoa(s.Count) + " found", spf.Empty: "nothing there"}[s.Status]
		w.line(indent+4, "%v %s: %s, %s", s.Query.Type, s.Query.Name, what, milliseconds(w.took))
	case spf.StepMatch:
		w.line(indent+4, "matches: %v", s.Code)
	case spf.StepLeave:
		w.line(indent+4, "its result is %v", s.Code)
	case spf.StepRedirect:
		w.line(indent, "on to %s", s.Domain)
	}
}

func (w *spfWalk) line(indent int, format string, args ...any) {
	fmt.Fprintf(&w.text, "%*s%s\n", indent, "", fmt.Sprintf(format, args...))
}

// milliseconds is a time for people.
func milliseconds(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) + " ms"
}
