package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fastedge/fastedge/loadtest/machine"
	"github.com/fastedge/fastedge/loadtest/sink"
)

type loadtestSinkCmd struct {
	Address string `arg:"" optional:"" default:"127.0.0.1:2526" help:"HOST:PORT or unix:/path to listen on (default: 127.0.0.1:2526)."`

	LMTP     bool          `name:"lmtp" help:"Speak LMTP."`
	TLS      bool          `name:"tls" help:"Offer STARTTLS, with a certificate made at start."`
	Store    string        `placeholder:"DIR" help:"Keep each message, as NAME.eml and NAME.json (default: discard)."`
	Receipts string        `placeholder:"FILE" help:"At the end write the receipts of the last run, for --verify receipts:FILE."`
	Duration time.Duration `short:"d" default:"24h" help:"End after this."`
	Quiet    bool          `short:"q" help:"No counters while it runs."`

	Script   string       `group:"Faults" placeholder:"FILE" help:"Replies, delays and disconnections by recipient, one rule a line: rcpt nobody@* 550 5.1.1 no; data slow@* delay 2s; data x@* close-after 1000."`
	SoftRcpt shareFlagArg `group:"Faults" placeholder:"SHARE" help:"Recipients refused with 450 at RCPT."`
	HardRcpt shareFlagArg `group:"Faults" placeholder:"SHARE" help:"Recipients refused with 550 at RCPT."`
	SoftData shareFlagArg `group:"Faults" placeholder:"SHARE" help:"Messages refused with 451 after the data."`
	HardData shareFlagArg `group:"Faults" placeholder:"SHARE" help:"Messages refused with 554 after the data."`
	Delay    []string     `group:"Faults" placeholder:"VERB=T" help:"Delay before a reply, such as RCPT=20ms or END=5ms..50ms; CONNECT is the greeting, END the end of data. May be repeated."`
	Close    shareFlagArg `group:"Faults" placeholder:"SHARE" help:"Messages in whose data the connection is closed."`
	CloseAt  int64        `group:"Faults" default:"1000" help:"After so many octets of it."`
	Limit    rateFlag     `group:"Faults" placeholder:"N/s" help:"Messages a second; over it MAIL gets 451, or 421 with --limit-closes."`

	LimitCloses bool   `group:"Faults" help:"Close the connection of who is over --limit."`
	Lose        oneIn  `group:"Lies" placeholder:"N" help:"Acknowledge one message in N without counting it: a verdict must FAIL then."`
	Corrupt     oneIn  `group:"Lies" placeholder:"N" help:"Change an octet of one message in N."`
	Repeat      oneIn  `group:"Lies" placeholder:"N" help:"Count one message in N twice."`
	Seed        uint64 `default:"1" help:"Of all chance."`

	IOwnThisHost string `name:"i-own-this-host" placeholder:"NAME" help:"Repeat the host of the address when it is not loopback: a sink takes mail from everybody and throws it away."`
}

func (c *loadtestSinkCmd) options() (sink.Options, error) {
	o := sink.Options{
		Address: c.Address, LMTP: c.LMTP, TLS: c.TLS, Store: c.Store,
		Shares:     sink.Shares{SoftRcpt: float64(c.SoftRcpt), HardRcpt: float64(c.HardRcpt), SoftData: float64(c.SoftData), HardData: float64(c.HardData)},
		CloseShare: float64(c.Close), CloseAt: c.CloseAt, Rate: float64(c.Limit), RateCloses: c.LimitCloses,
		Lose: int(c.Lose), Corrupt: int(c.Corrupt), Repeat: int(c.Repeat), Seed: c.Seed,
	}
	if host, _, _ := net.SplitHostPort(c.Address); !strings.HasPrefix(c.Address, "unix:") && !machine.LoopbackTarget(c.Address) && c.IOwnThisHost != host {
		return o, fmt.Errorf("%s is not loopback; if strangers may send here, say so: --i-own-this-host %s", c.Address, host)
	}
	if c.Script != "" {
		var err error
		if o.Rules, err = sink.ReadScript(c.Script); err != nil {
			return o, err
		}
	}
	for _, d := range c.Delay {
		verb, span, ok := strings.Cut(d, "=")
		within, err := sink.ParseSpan(span)
		if !ok || err != nil {
			return o, fmt.Errorf("--delay %q is not VERB=T or VERB=T..T, such as RCPT=20ms", d)
		}
		if o.Delays == nil {
			o.Delays = make(map[string]sink.Span)
		}
		o.Delays[strings.ToUpper(verb)] = within
	}
	return o, nil
}

func (c *loadtestSinkCmd) Run(a *app) error {
	o, err := c.options()
	if err != nil {
		return usageError{err}
	}
	s, err := sink.New(o)
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, c.Duration)
	defer stop()
	address := s.Addr().String()
	if s.Addr().Network() == "unix" {
		address = "unix:" + address
	}
	fmt.Fprintf(a.stderr, "sink: listening on %s; ask for receipts with --verify sink://%s\n", address, address)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var last sink.Counters
	for done := false; !done; {
		select {
		case err = <-served:
			done = true
		case <-tick.C:
			if now := s.Counters(); !c.Quiet && now.Messages != last.Messages {
				fmt.Fprintf(a.stderr, "%d messages/s  %d messages  %d connections  refused %d\n",
					now.Messages-last.Messages, now.Messages, now.Open, now.RefusedRcpt+now.RefusedData+now.OverRate)
				last = now
			}
		}
	}
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	cancel() // from here on an interrupt ends the program
	if runs := s.Register().Runs(); c.Receipts != "" && len(runs) > 0 {
		if err := os.WriteFile(c.Receipts, s.Register().Receipts(runs[len(runs)-1]).AppendTo(nil), 0o666); err != nil {
			return err
		}
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(s.Counters())
}

// oneIn is N, or 1/N.
type oneIn int

func (f *oneIn) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(strings.TrimPrefix(string(text), "1/"))
	if err != nil || n < 1 {
		return fmt.Errorf("%q is not N or 1/N", text)
	}
	*f = oneIn(n)
	return nil
}
