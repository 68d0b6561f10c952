package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

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
		var made *parts
		var problems config.Problems
		if made, problems = newParts(cfg, slog.New(slog.DiscardHandler), nil); len(problems) > 0 {
			err = problems
		} else {
			made.close()
		}
	}
	if err == nil {
		var warnings []config.Problem
		var busy []string
		warnings, busy, err = cfg.CheckMachine()
		result.Warnings = append(append(result.Warnings, cfg.Warnings()...), warnings...)
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
