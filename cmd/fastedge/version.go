package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
)

type versionCmd struct {
	JSON bool `help:"Print JSON."`
}

// buildInfo is what the Go tool noted in the binary.
type buildInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the work tree was not clean
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readBuildInfo() buildInfo {
	b := buildInfo{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (c *versionCmd) Run(a *app) error {
	b := readBuildInfo()
	if c.JSON {
		return json.NewEncoder(a.stdout).Encode(b)
	}
	revision := b.Revision
	if revision == "" {
		revision = "unknown revision"
	}
	if b.Modified {
		revision += ", modified"
	}
	_, err := fmt.Fprintf(a.stdout, "fastedge %s (%s) %s %s\n", b.Version, revision, b.Go, b.Platform)
	return err
}
