package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/fastedge/fastedge/loadtest"
	"github.com/fastedge/fastedge/loadtest/live"
	"github.com/fastedge/fastedge/loadtest/report"
)

// loadtestCmd is the load tester for any mail server. It shares nothing with the server but this command line.
type loadtestCmd struct {
	Run     loadtestRunCmd     `cmd:"" help:"Apply a load to a mail server, measure, and verify that nothing was lost."`
	Sink    loadtestSinkCmd    `cmd:"" help:"Receive mail by SMTP or LMTP, count it, and misbehave on request."`
	Report  loadtestReportCmd  `cmd:"" help:"Render a stored run."`
	Compare loadtestCompareCmd `cmd:"" help:"Put two stored runs, or two sets of runs, side by side."`
}

type loadtestRunCmd struct {
	Target string `arg:"" help:"HOST:PORT, or unix:/path."`
	Label  string `help:"What is measured, for reports (default: the target)."`

	Rate          rateFlag      `group:"Load" placeholder:"N/s" help:"Open loop: so many messages are due each second (or N/m, N/h). Without it a closed loop: each connection sends when its last message was answered."`
	Arrivals      string        `group:"Load" enum:"constant,poisson" default:"constant" help:"How they are spread: constant or poisson."`
	Ramp          rampFlag      `group:"Load" placeholder:"A..B/s:T" help:"Open loop whose rate goes from A to B within T."`
	FindMax       string        `group:"Load" placeholder:"COND" help:"Search the highest rate at which COND holds, such as 'ack.p99<50ms'."`
	Connections   int           `group:"Load" default:"100" help:"Connections at one time."`
	PerConnection int           `group:"Load" placeholder:"N" help:"Messages in a session, then QUIT and connect again (default: all)."`
	Duration      time.Duration `group:"Load" short:"d" placeholder:"T" help:"Length of the measured part (default 10s, or until --messages)."`
	Messages      int64         `group:"Load" short:"n" placeholder:"N" help:"End after so many messages."`
	Warmup        time.Duration `group:"Load" placeholder:"T" help:"Load before the measured part."`
	Profile       string        `group:"Load" placeholder:"NAME" help:"small, mixed, bulk or hostile; other flags take precedence."`
	SessionsOnly  bool          `group:"Load" help:"Connect, EHLO, QUIT; no mail."`
	Hold          time.Duration `group:"Load" placeholder:"T" help:"Only hold connections open, after EHLO, so long; with --pid prints memory for each."`

	Size       sizeFlag       `group:"Messages" placeholder:"SIZE" help:"Octets of a message: 4KiB (default), 1KiB..64KiB, or lognormal:16KiB:1.5."`
	Recipients rangeFlag      `group:"Messages" placeholder:"N" help:"Recipients of a message: 3, or 1..5 (default 1)."`
	Pipelining pipeliningFlag `group:"Messages" placeholder:"MODE" help:"off; group (MAIL, RCPT and DATA in one write; the default of the bare flag); tight (the message and the next group in one write)."`
	BDAT       shareFlag      `name:"bdat" group:"Messages" placeholder:"SHARE" help:"Send by BDAT: all messages, or a share such as 30%."`
	From       string         `group:"Messages" placeholder:"ADDR" help:"Reverse-path (default sender@client.test). # becomes 0 to 9 in turn."`
	To         string         `group:"Messages" placeholder:"ADDR" help:"One fixed recipient instead of made-up ones."`
	Domain     string         `group:"Messages" placeholder:"NAME" help:"Domain of made-up recipients (default bench.test)."`

	LMTP        bool         `name:"lmtp" group:"Protocol" xor:"protocol" help:"Speak LMTP."`
	HTTP        bool         `name:"http" group:"Protocol" xor:"protocol" help:"POST messages to an edge by HTTP."`
	HTTPPath    string       `name:"http-path" group:"Protocol" placeholder:"PATH" help:"Path of the POST (default /)."`
	STARTTLS    shareFlag    `name:"starttls" group:"Protocol" placeholder:"SHARE" help:"Use STARTTLS on all connections, or a share such as 60%."`
	ImplicitTLS bool         `name:"implicit-tls" group:"Protocol" help:"TLS from the first octet. Certificates are never verified."`
	ServerName  string       `group:"Protocol" placeholder:"NAME" help:"Name for TLS (SNI)."`
	Auth        string       `group:"Protocol" placeholder:"USER:PASSWORD" help:"Authenticate, by PLAIN or LOGIN. @FILE reads it from a file."`
	EHLO        string       `name:"ehlo" group:"Protocol" placeholder:"NAME" help:"Name in EHLO (default client.test)."`
	Sources     []string     `group:"Protocol" placeholder:"PREFIX" help:"Client addresses to connect from in turn, such as 127.0.1.0/24."`
	Proxy       string       `group:"Protocol" enum:"off,v1,v2" default:"off" help:"Begin with a PROXY protocol header with an invented client address: v1 or v2."`
	SlowClients shareFlagArg `group:"Protocol" placeholder:"SHARE" help:"Share of connections that write 2 KiB a second."`
	BadClients  shareFlagArg `group:"Protocol" placeholder:"SHARE" help:"Misbehaving connections, as a share of the others, beside them: smuggling, floods, resets."`

	Verify    string   `group:"Proof" default:"none" placeholder:"HOW" help:"sink, sink:ADDRESS (one is started here; the target relays to it), sink://ADDRESS (asks one that runs), spool:DIR, receipts:FILE, none."`
	Threshold []string `group:"Proof" sep:"none" placeholder:"COND" help:"Fail unless it holds: ack.p99<20ms, rate>5000, lost==0. May be repeated."`

	PID     int    `name:"pid" group:"Report" placeholder:"PID" help:"Root of the target's processes: CPU, memory and context switches are sampled."`
	Disk    string `group:"Report" placeholder:"DIR" help:"Measure the sync time of this directory's disk, to doubt a 250 that came faster (default: that of --verify spool:)."`
	Out     string `group:"Report" short:"o" placeholder:"FILE" help:"Write the run as JSON."`
	HTML    string `name:"html" group:"Report" placeholder:"FILE" help:"Write the run as one HTML page."`
	CSV     string `name:"csv" group:"Report" placeholder:"FILE" help:"Write the seconds as CSV."`
	Bench   string `group:"Report" placeholder:"FILE" help:"Append the run in Go benchmark format, for benchstat."`
	Phases  bool   `group:"Report" help:"Print a table of all phases."`
	Quiet   bool   `group:"Report" short:"q" help:"No live view."`
	Workers int    `group:"Report" placeholder:"N" help:"Generator threads (default: half of the processors)."`
	Seed    uint64 `group:"Report" placeholder:"N" help:"Of sizes, arrivals and faults (default 1)."`

	Timeout      time.Duration `placeholder:"T" help:"Longest wait for a reply (default 60s)."`
	MaxWaiting   int           `placeholder:"N" help:"Open loop: arrivals that may wait for a connection before more are dropped (default 10 for each connection)."`
	IOwnThisHost string        `name:"i-own-this-host" placeholder:"NAME" help:"Repeat the target's host when it is not this machine."`
}

func (c *loadtestRunCmd) options() (loadtest.Options, error) {
	o := loadtest.Options{
		Target: c.Target, Label: c.Label, HTTPPath: c.HTTPPath, Rate: float64(c.Rate), Poisson: c.Arrivals == "poisson", Ramp: c.Ramp.Ramp,
		Connections: c.Connections, PerConnection: c.PerConnection, Duration: c.Duration, Messages: c.Messages, Warmup: c.Warmup,
		MaxWaiting: c.MaxWaiting, Size: c.Size.Sizes, Recipients: loadtest.Range(c.Recipients), Pipelining: string(c.Pipelining),
		BDAT: float64(c.BDAT), STARTTLS: float64(c.STARTTLS), TLS: c.ImplicitTLS, ServerName: c.ServerName,
		From: c.From, To: c.To, Domain: c.Domain, EHLO: c.EHLO, SlowClients: float64(c.SlowClients), BadClients: float64(c.BadClients),
		SessionsOnly: c.SessionsOnly, Hold: c.Hold, Timeout: c.Timeout, Workers: c.Workers, Seed: c.Seed, PID: c.PID, Disk: c.Disk,
		IOwnThisHost: c.IOwnThisHost,
	}
	switch {
	case c.LMTP:
		o.Protocol = "lmtp"
	case c.HTTP:
		o.Protocol = "http"
	}
	switch c.Proxy {
	case "v1":
		o.Proxy = 1
	case "v2":
		o.Proxy = 2
	}
	for _, s := range c.Sources {
		p, err := netip.ParsePrefix(s)
		if !strings.Contains(s, "/") {
			var one netip.Addr
			one, err = netip.ParseAddr(s)
			p = netip.PrefixFrom(one, one.BitLen())
		}
		if err != nil {
			return o, fmt.Errorf("--sources %q is no prefix such as 127.0.1.0/24, and no address", s)
		}
		o.Sources = append(o.Sources, p)
	}
	if c.Auth != "" {
		secret := c.Auth
		if name, ok := strings.CutPrefix(secret, "@"); ok {
			text, err := os.ReadFile(name)
			if err != nil {
				return o, fmt.Errorf("--auth: %w", err)
			}
			secret = strings.TrimRight(string(text), "\r\n")
		}
		user, password, ok := strings.Cut(secret, ":")
		if !ok {
			return o, errors.New("--auth is USER:PASSWORD or @FILE")
		}
		o.Auth = &loadtest.Auth{User: user, Password: password}
	}
	if dir, ok := strings.CutPrefix(c.Verify, "spool:"); ok && o.Disk == "" {
		o.Disk = dir
	}
	return o, o.ApplyProfile(c.Profile)
}

func (c *loadtestRunCmd) Run(a *app) error {
	o, err := c.options()
	if err != nil {
		return usageError{err}
	}
	var conditions []report.Condition
	for _, text := range c.Threshold {
		condition, err := report.ParseThreshold(text)
		if err != nil {
			return usageError{fmt.Errorf("--threshold %w", err)}
		}
		conditions = append(conditions, condition)
	}
	var condition report.Condition
	if c.FindMax != "" {
		if condition, err = report.ParseThreshold(c.FindMax); err != nil {
			return usageError{fmt.Errorf("--find-max %w", err)}
		}
	}
	if err := c.checkPaths(); err != nil {
		return err
	}
	verifier, err := loadtest.NewVerifier(c.Verify)
	if err != nil {
		return usageError{fmt.Errorf("--verify: %w", err)}
	}
	if verifier != nil {
		defer verifier.Close()
	}

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	context.AfterFunc(ctx, cancel) // a second interrupt does not wait for replies and verdict
	hooks := loadtest.Hooks{Verifier: verifier, Tool: "fastedge loadtest " + readBuildInfo().Version}
	screen := viewOn(a.stderr, c)
	if screen != nil {
		hooks.View, hooks.Every = screen.view.Draw, screen.every
	}
	var run *report.Run
	if c.FindMax != "" {
		conditions = append(conditions, condition)
		run, err = loadtest.FindMax(ctx, o, hooks, condition, nil)
	} else {
		run, err = loadtest.Run(ctx, o, hooks)
	}
	if screen != nil {
		screen.view.Close()
	}
	if wrong := (*loadtest.OptionsError)(nil); errors.As(err, &wrong) {
		return usageError{err}
	}
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted before there was anything to report")
	}
	if err != nil {
		return err
	}
	for _, condition := range conditions {
		run.Thresholds = append(run.Thresholds, condition.Check(run))
	}
	// What was measured is told first: a file may be one that cannot be written.
	if err := report.WriteText(a.stdout, run, report.Style{Color: colored(a.stdout), Phases: c.Phases}); err != nil {
		return err
	}
	if err := c.write(run); err != nil {
		return err
	}
	if !run.Pass() {
		return errReported
	}
	if c.Hold == 0 && !c.SessionsOnly && run.Totals.Acknowledged == 0 {
		return errors.New("nothing was acknowledged")
	}
	return nil
}

// checkPaths finds the directories that do not exist: at the end of a long run is too late.
func (c *loadtestRunCmd) checkPaths() error {
	if dir, ok := strings.CutPrefix(c.Verify, "spool:"); ok {
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("--verify: %w", err)
		}
	}
	for _, name := range []string{c.Out, c.HTML, c.CSV, c.Bench} {
		if _, err := os.Stat(filepath.Dir(name)); name != "" && err != nil {
			return err
		}
	}
	return nil
}

// screen is a live view and how often it is drawn.
type screen struct {
	view  *live.View
	every time.Duration
}

// viewOn shows progress on standard error, so that standard output has the result alone.
func viewOn(w io.Writer, c *loadtestRunCmd) *screen {
	f, ok := w.(*os.File)
	if !ok || c.Quiet {
		return nil
	}
	o := live.Detect(f)
	loop := "closed loop"
	if c.Rate > 0 || c.Ramp.Ramp != nil || c.FindMax != "" {
		loop = "open loop"
	}
	o.Title = c.Target + ", " + loop
	if o.Terminal {
		return &screen{live.New(f, o), 250 * time.Millisecond}
	}
	return &screen{live.New(f, o), time.Second}
}

// write writes the files that were asked for.
func (c *loadtestRunCmd) write(run *report.Run) error {
	render := renderings{
		c.Out:  func(w io.Writer) error { return report.Write(w, run) },
		c.HTML: func(w io.Writer) error { return report.WriteHTML(w, run) },
		c.CSV:  func(w io.Writer) error { return report.WriteCSV(w, run) },
	}
	if err := render.write(); err != nil {
		return err
	}
	if c.Bench == "" {
		return nil
	}
	f, err := os.OpenFile(c.Bench, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	return errors.Join(report.WriteGoBench(f, run), f.Close())
}

func colored(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && live.Detect(f).Color
}

// renderings are files to write, by name; an empty name is none.
type renderings map[string]func(io.Writer) error

func (r renderings) write() error {
	for name, write := range r {
		if name == "" {
			continue
		}
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return err
		}
		if err := os.WriteFile(name, b.Bytes(), 0o666); err != nil {
			return err
		}
	}
	return nil
}

type loadtestReportCmd struct {
	Files    []string `arg:"" name:"FILE" type:"existingfile" help:"Runs that --out wrote."`
	HTML     string   `name:"html" placeholder:"FILE" help:"Write one HTML page of all of them."`
	CSV      string   `name:"csv" placeholder:"FILE" help:"Write the seconds of the first as CSV."`
	Bench    bool     `help:"Print Go benchmark lines, for benchstat."`
	Markdown bool     `help:"Print rows of a Markdown table."`
	Phases   bool     `help:"Print a table of all phases."`
}

func (c *loadtestReportCmd) Run(a *app) error {
	runs, err := readRuns(c.Files...)
	if err != nil {
		return err
	}
	render := renderings{
		c.HTML: func(w io.Writer) error { return report.WriteHTML(w, runs[0], runs[1:]...) },
		c.CSV:  func(w io.Writer) error { return report.WriteCSV(w, runs[0]) },
	}
	if err := render.write(); err != nil {
		return err
	}
	switch {
	case c.Bench:
		return report.WriteGoBench(a.stdout, runs...)
	case c.Markdown:
		return report.WriteMarkdown(a.stdout, runs...)
	case c.HTML != "" || c.CSV != "":
		return nil
	}
	for _, run := range runs {
		if err := report.WriteText(a.stdout, run, report.Style{Color: colored(a.stdout), Phases: c.Phases}); err != nil {
			return err
		}
	}
	return nil
}

func readRuns(names ...string) ([]*report.Run, error) {
	var runs []*report.Run
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		run, err := report.Read(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		runs = append(runs, run)
	}
	return runs, nil
}

type loadtestCompareCmd struct {
	A     string `arg:"" help:"A run, or several: a,b,c or a pattern in quotes."`
	B     string `arg:"" help:"The other side."`
	Force bool   `help:"Compare runs with unlike parameters."`
	HTML  string `name:"html" placeholder:"FILE" help:"Write one HTML page."`
}

func (c *loadtestCompareCmd) Run(a *app) error {
	sides := [2][]*report.Run{}
	for i, list := range []string{c.A, c.B} {
		var names []string
		for _, pattern := range strings.Split(list, ",") {
			found, err := filepath.Glob(pattern)
			if err != nil || len(found) == 0 {
				return fmt.Errorf("%s: no such file", pattern)
			}
			names = append(names, found...)
		}
		var err error
		if sides[i], err = readRuns(names...); err != nil {
			return err
		}
	}
	comparison, err := report.CompareSets(sides[0], sides[1], c.Force)
	if err != nil {
		return err
	}
	if err := (renderings{c.HTML: comparison.WriteHTML}).write(); err != nil {
		return err
	}
	return comparison.WriteText(a.stdout, report.Style{Color: colored(a.stdout)})
}

// usageError is a wrong command line: exit code 2.
type usageError struct{ error }

// Flags with values of their own kind. Those that can stand bare take the next word only when it is a value.

type rateFlag float64

func (f *rateFlag) UnmarshalText(text []byte) error {
	v, err := loadtest.ParseRate(string(text))
	*f = rateFlag(v)
	return err
}

type rampFlag struct{ *loadtest.Ramp }

func (f *rampFlag) UnmarshalText(text []byte) (err error) {
	f.Ramp, err = loadtest.ParseRamp(string(text))
	return err
}

type sizeFlag struct{ loadtest.Sizes }

func (f *sizeFlag) UnmarshalText(text []byte) (err error) {
	f.Sizes, err = loadtest.ParseSizes(string(text))
	return err
}

type rangeFlag loadtest.Range

func (f *rangeFlag) UnmarshalText(text []byte) error {
	r, err := loadtest.ParseRange(string(text))
	*f = rangeFlag(r)
	return err
}

type shareFlagArg float64

func (f *shareFlagArg) UnmarshalText(text []byte) error {
	v, err := loadtest.ParseShare(string(text))
	*f = shareFlagArg(v)
	return err
}

// shareFlag is a share; bare it is all.
type shareFlag float64

func (f *shareFlag) IsBool() bool { return true }

func (f *shareFlag) Decode(ctx *kong.DecodeContext) error {
	*f = 1
	return optional(ctx, func(text string) error {
		v, err := loadtest.ParseShare(text)
		if err == nil {
			*f = shareFlag(v)
		}
		return err
	})
}

// pipeliningFlag is a mode; bare it is group.
type pipeliningFlag string

func (f *pipeliningFlag) IsBool() bool { return true }

func (f *pipeliningFlag) Decode(ctx *kong.DecodeContext) error {
	*f = "group"
	return optional(ctx, func(text string) error {
		switch text {
		case "off", "group", "tight":
			*f = pipeliningFlag(text)
			return nil
		}
		return fmt.Errorf("%q is not off, group or tight", text)
	})
}

// optional gives the flag's value to set: what stands behind "=", or the next word unless that can only be the target.
func optional(ctx *kong.DecodeContext, set func(string) error) error {
	token := ctx.Scan.Peek()
	text, ok := token.Value.(string)
	if !ok {
		return nil
	}
	if token.Type == kong.FlagValueToken {
		ctx.Scan.Pop()
		return set(text)
	}
	if token.Type != kong.UntypedToken || strings.HasPrefix(text, "-") || strings.Contains(text, ":") {
		return nil
	}
	ctx.Scan.Pop()
	return set(text)
}
