// Command fastedge is an inbound mail edge: it accepts mail, makes it durable before it says so, and hands it on.
//
// One file per verb. What a verb does stands in the packages; here are flags, output and exit codes: 0 ok, 1 failure, 2 usage,
// 78 configuration (EX_CONFIG). wire.go builds the server from the configuration.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/alecthomas/kong"

	"github.com/fastedge/fastedge/internal/config"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitConfig  = 78 // EX_CONFIG of sysexits.h
)

func main() {
	if slices.Contains(os.Args[1:], "serve") {
		coarsenTimers(os.Args)
	}
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// app is what the verbs share.
type app struct {
	cli            *cli
	stdin          io.Reader
	stdout, stderr io.Writer
}

// cli is the command line; kong reads the tags.
type cli struct {
	ConfigFile string `name:"config" short:"c" placeholder:"FILE" help:"Configuration file (default: none, safe local defaults)."`
	StateDir   string `placeholder:"DIR" help:"Directory of the spool and the admin socket; overrides state_dir."`

	Serve  serveCmd  `cmd:"" help:"Run the server."`
	Check  checkCmd  `cmd:"" help:"Check the configuration and the machine, as serve does before it starts."`
	Config configCmd `cmd:"" help:"Print configurations."`
	Queue  queueCmd  `cmd:"" help:"Look into the queue and act on messages."`
	Auth   authCmd   `cmd:"" help:"Add, remove and list the users of the users file."`
	SPF    spfCmd    `cmd:"" name:"spf" help:"Check senders."`

	Loadtest loadtestCmd `cmd:"" help:"Load any mail server, measure it, and prove that it lost nothing."`

	Version versionCmd `cmd:"" help:"Print what was built, from what."`
}

// exitRequest carries kong's wish to exit after --help out of its parser.
type exitRequest int

// Failures that have been told already.
var (
	errReported       = errors.New("reported")
	errConfigReported = errors.New("configuration problems reported")
)

// run is the program without its process: args are without the program's name.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	var c cli
	parser, err := kong.New(&c,
		kong.Name("fastedge"),
		kong.Description("Inbound mail edge: accepts mail, makes it durable, hands it on."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exitRequest(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
	)
	if err != nil {
		panic(err) // the tags of cli are wrong
	}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case exitRequest:
			code = int(r)
		default:
			panic(r)
		}
	}()
	ctx, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "fastedge: %v\nTry \"fastedge --help\".\n", err)
		return exitUsage
	}
	err = ctx.Run(&app{&c, stdin, stdout, stderr})
	var problems config.Problems
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailure
	case errors.Is(err, errConfigReported):
		return exitConfig
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "fastedge: %v\nTry \"fastedge %s --help\".\n", err, ctx.Command())
		return exitUsage
	case errors.As(err, &problems):
		fmt.Fprintln(stderr, problems.Error())
		return exitConfig
	}
	fmt.Fprintf(stderr, "fastedge: %v\n", err)
	return exitFailure
}

// load gives the configuration in force: file, environment and flags.
func (a *app) load(flags ...config.Flag) (*config.Config, error) {
	if a.cli.StateDir != "" {
		flags = append(flags, config.Flag{Name: "--state-dir", Key: "state_dir", Value: a.cli.StateDir})
	}
	return config.Load(a.cli.ConfigFile, os.Environ(), flags...)
}
