// Report turns what bench/compare/run and bench/packages measured into tables and a chart.
//
//	go run ./bench/report                      # write the tables of bench/results into README.md and bench/README.md, and the chart
//	go run ./bench/report print FILE           # print all tables of one result
//	go run ./bench/report chart FILE           # print its chart
//
// The rest is for the scripts:
//
//	report figures RUN                         # what is used of a run of the load generator, on one line
//	report quiet PID                           # CPU time of a process and its descendants, once they have come to rest
//	report evidence -port PORT TRACE MARK…     # class of a server, from what strace saw
//	report collect [-connections N] [-kind KIND] [-gobench OUTPUT] [-merge RESULT] FACTS RUNS
//	report gobench FACTS OUTPUT                # one JSON object for each run, or the output of go test -bench, to a result
//
// These files say where a table goes with a pair of markers, each on a line of its own:
//
//	<!-- bench:compare -->
//	<!-- /bench -->
//
// Whatever stands between them is replaced by the table of bench/results/compare.json; with bench:compare-all, all of it. The test in this folder fails
// when README and results disagree, so figures cannot be edited by hand or go stale.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

// readmes are the files with tables, from the top of the repository.
var readmes = []string{"README.md", filepath.Join("bench", "README.md")}

func run(args []string) error {
	verb := ""
	if len(args) > 0 {
		verb = args[0]
	}
	switch verb {
	case "":
		for _, path := range readmes {
			if err := writeReadme(path, filepath.Join("bench", "results")); err != nil {
				return err
			}
		}
		return writeChart(filepath.Join("bench", "results"))
	case "print":
		if len(args) != 2 {
			return errors.New("usage: report print FILE")
		}
		table, err := tableOf(args[1], true)
		if err != nil {
			return err
		}
		fmt.Print(table)
		return nil
	case "collect":
		fl := flag.NewFlagSet("collect", flag.ContinueOnError)
		connections := fl.Int("connections", 0, "connections open at the same time")
		kind := fl.String("kind", "", "of the tables: tls, policy, stalled or spf")
		bench := fl.String("gobench", "", "output of go test -bench, to be added")
		old := fl.String("merge", "", "a result whose other servers and scenarios are kept")
		if err := fl.Parse(args[1:]); err != nil {
			return err
		}
		if fl.NArg() != 2 {
			return errors.New("usage: report collect [-connections N] [-kind KIND] [-gobench OUTPUT] [-merge RESULT] FACTS RUNS")
		}
		res, err := fromFiles(fl.Arg(0), fl.Arg(1), collect)
		if err != nil {
			return err
		}
		res.Connections, res.Kind = *connections, *kind
		if *bench != "" {
			if err := res.addGo(*bench); err != nil {
				return err
			}
		}
		if *old != "" {
			if err := res.merge(*old); err != nil {
				return err
			}
		}
		return writeJSON(res)
	case "chart":
		if len(args) != 2 {
			return errors.New("usage: report chart FILE")
		}
		res, err := readResult(args[1])
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(res.chart())
		return err
	case "figures":
		if len(args) != 2 {
			return errors.New("usage: report figures RUN")
		}
		return printFigures(args[1])
	case "quiet":
		return printQuiet(args[1:])
	case "evidence":
		return printEvidence(args[1:])
	case "gobench":
		if len(args) != 3 {
			return errors.New("usage: report gobench FACTS OUTPUT")
		}
		res, err := fromFiles(args[1], args[2], collectGo)
		if err != nil {
			return err
		}
		return writeJSON(res)
	default:
		return fmt.Errorf("unknown verb %q; want none, print, chart, figures, quiet, evidence, collect or gobench", verb)
	}
}

// printEvidence prints the class that a trace shows and the lines that show it.
func printEvidence(args []string) error {
	fl := flag.NewFlagSet("evidence", flag.ContinueOnError)
	port := fl.Int("port", 0, "of the server")
	claimed := fl.String("claimed", "", "the class that the server is said to have")
	asJSON := fl.Bool("json", false, "print one JSON object")
	if err := fl.Parse(args); err != nil {
		return err
	}
	if fl.NArg() < 2 {
		return errors.New("usage: report evidence -port PORT [-claimed CLASS] TRACE MARK…")
	}
	trace, err := os.ReadFile(fl.Arg(0))
	if err != nil {
		return err
	}
	e, err := judge(string(trace), *port, fl.Args()[1:])
	if err != nil {
		return err
	}
	if *asJSON {
		if err := json.NewEncoder(os.Stdout).Encode(e); err != nil {
			return err
		}
	} else {
		fmt.Println(strings.Join(append([]string{e.Class}, e.Lines...), "\n"))
	}
	if *claimed != "" && *claimed != e.Class {
		return fmt.Errorf("claimed to be %s, and the trace shows %s", *claimed, e.Class)
	}
	return nil
}

func fromFiles(facts, runs string, collect func(facts, runs []byte) (result, error)) (result, error) {
	f, err := os.ReadFile(facts)
	if err != nil {
		return result{}, err
	}
	r, err := os.ReadFile(runs)
	if err != nil {
		return result{}, err
	}
	return collect(f, r)
}

func writeJSON(res result) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(res)
}

func writeReadme(path, results string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, n, err := fillMarkers(old, results)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if n == 0 {
		return fmt.Errorf("%s has no markers <!-- bench:NAME --> … <!-- /bench -->", path)
	}
	if bytes.Equal(text, old) {
		return nil
	}
	return os.WriteFile(path, text, 0o644)
}

var marked = regexp.MustCompile(`(?s)(<!-- bench:([a-z]+)(-all)? -->\n).*?(<!-- /bench -->)`)

// fillMarkers returns text with a fresh table between each pair of markers, and how many pairs there were. Markers of
// a result that nobody has measured yet are left as they are.
func fillMarkers(text []byte, results string) (filled []byte, pairs int, err error) {
	filled = marked.ReplaceAllFunc(text, func(all []byte) []byte {
		m := marked.FindSubmatch(all)
		pairs++
		table, e := tableOf(filepath.Join(results, string(m[2])+".json"), len(m[3]) > 0)
		if errors.Is(e, fs.ErrNotExist) {
			return all
		}
		if e != nil {
			err = e
			return all
		}
		return bytes.Join([][]byte{m[1], []byte("\n"), []byte(table), []byte("\n"), m[4]}, nil)
	})
	return filled, pairs, err
}

// tableOf returns the table of a result, or all its tables.
func tableOf(path string, all bool) (string, error) {
	res, err := readResult(path)
	if err != nil {
		return "", err
	}
	switch {
	case res.Kind != "":
		return res.special(all)
	case all && len(res.Servers) > 0:
		return res.full(), nil
	}
	return res.table(), nil
}

func readResult(path string) (result, error) {
	var res result
	text, err := os.ReadFile(path)
	if err != nil {
		return res, err
	}
	if err := json.Unmarshal(text, &res); err != nil {
		return res, fmt.Errorf("%s: %w", path, err)
	}
	return res, nil
}

// writeChart makes the chart of bench/results/compare.json, if that has been measured.
func writeChart(results string) error {
	res, err := readResult(filepath.Join(results, "compare.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(results, "compare.svg"), res.chart(), 0o644)
}
