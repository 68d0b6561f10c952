package session_test

import (
	"testing"

	"github.com/fastedge/fastedge/internal/smtptest"
)

func TestTranscripts(t *testing.T) { smtptest.Run(t, "testdata/*.smtp") }
