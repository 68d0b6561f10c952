package auth

import (
	"path/filepath"
	"syscall"
	"testing"
)

// A pipe in place of the file would make whoever opens it wait, for ever as likely as not.
func TestAPipeIsNoListOfUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	if _, err := Load(path); err == nil {
		t.Error("loaded")
	}
}
