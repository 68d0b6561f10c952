package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/fastedge/fastedge/internal/config"
)

type checkCmd struct {
	JSON bool `help:"Print the result as JSON."`
}

// checkResult is the output of check --json.
type checkResult struct {
	OK       bool             `json:"ok"`
	Problems config.Problems  `json:"problems"`
	Warnings []config.Problem `json:"warnings"`
}

// Run prints warnings and problems. Problems go to standard error unless they are asked for as JSON.
func (c *checkCmd) Run(a *app) error {
	cfg, err := a.load()
	result := checkResult{Problems: config.Problems{}, Warnings: []config.Problem{}}
	if err == nil {
		warnings, busy, machineErr := cfg.CheckMachine()
		result.Warnings = append(append(result.Warnings, cfg.Warnings()...), warnings...)
		made, problems := newParts(cfg, slog.New(&warningList{to: &result.Warnings}), nil)
		if made != nil {
			made.close()
		}
		warnings, wrong := checkJetStream(cfg)
		result.Warnings = append(result.Warnings, warnings...)
		err = joinProblems(machineErr, append(problems, wrong...))
		for _, address := range busy {
			result.Warnings = append(result.Warnings, config.Problem{
				Source: address, Message: "in use; fine if that is the fastedge that this file is for"})
		}
	}
	if err != nil && !errors.As(err, &result.Problems) {
		return err
	}
	result.OK = err == nil
	if c.JSON {
		encoder := json.NewEncoder(a.stdout)
		encoder.SetIndent("", "  ")
		if printErr := encoder.Encode(result); printErr != nil {
			return printErr
		}
		if err != nil {
			return errConfigReported
		}
		return nil
	}
	for _, w := range result.Warnings {
		fmt.Fprintln(a.stderr, "warning:", w)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, "ok")
	return err
}

// joinProblems puts what is wrong with the machine and with the parts in one list. A file that can't be read is in both: the machine's is
// at the very key.
func joinProblems(machine error, made config.Problems) error {
	var all config.Problems
	if machine != nil && !errors.As(machine, &all) {
		return machine
	}
	known := len(all)
	for _, one := range made {
		if !slices.ContainsFunc(all[:known], func(p config.Problem) bool {
			return p.Key == one.Key || strings.HasPrefix(p.Key, one.Key+"[")
		}) {
			all = append(all, one)
		}
	}
	return all.OrNil()
}

// warningList is a log whose warnings are part of the result: an expired certificate, for example.
type warningList struct{ to *[]config.Problem }

func (w *warningList) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}

func (w *warningList) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		return true
	})
	*w.to = append(*w.to, config.Problem{Message: text})
	return nil
}

// WithAttrs and WithGroup are not used by the parts.
func (w *warningList) WithAttrs([]slog.Attr) slog.Handler { return w }
func (w *warningList) WithGroup(string) slog.Handler      { return w }
