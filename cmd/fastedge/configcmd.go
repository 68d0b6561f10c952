package main

import (
	"encoding/json"

	"github.com/fastedge/fastedge/internal/config"
)

type configCmd struct {
	Default configDefaultCmd `cmd:"" help:"Print a commented file with every key and its default."`
	Show    configShowCmd    `cmd:"" help:"Print the values in force and where each comes from."`
}

type configDefaultCmd struct{}

// Run does not load anything, so that it works beside a broken configuration.
func (*configDefaultCmd) Run(a *app) error { return config.WriteDefault(a.stdout) }

type configShowCmd struct {
	JSON bool `help:"Print one JSON array."`
}

func (c *configShowCmd) Run(a *app) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	if !c.JSON {
		return cfg.Show(a.stdout)
	}
	encoder := json.NewEncoder(a.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(cfg.Settings())
}
