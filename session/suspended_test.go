package session

import (
	"strings"
	"testing"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/smtpcodec"
)

type pender struct{ asked *policy.Pending }

func (*pender) Stages() policy.Stages { return policy.On(policy.AtData) }

func (v *pender) Validate(e *policy.Event) error { v.asked = e.Pend(); return nil }

// Behind a BDAT without octets nothing more comes, so Decided is the last chance to answer it.
func TestDecidedAnswersABDATWithoutOctets(t *testing.T) {
	for bdat, want := range map[string]string{"BDAT 0": "250 2.0.0 0 octets", "BDAT 0 LAST": ""} {
		v := &pender{}
		s, _, _ := open(t, Options{Validators: []policy.Validator{v}})
		_, _, step := s.Feed([]byte("EHLO c\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\n"+bdat+"\r\n"), start, nil)
		if step != AwaitPolicy {
			t.Fatal(step)
		}
		v.asked.Done(smtpcodec.Reply{}, nil)
		out, step := s.Decided(start, nil)
		if want == "" && step != AwaitCommit || !strings.HasPrefix(string(out), want) {
			t.Errorf("%s: %q, step %d", bdat, out, step)
		}
		s.Abort()
	}
}

type argWatcher struct {
	Observer
	told strings.Builder
}

func (*argWatcher) Replied(Stage, uint16) {}
func (w *argWatcher) Refused(_ *Session, _ Stage, _ *smtpcodec.Reply, _ Reason, arg []byte) {
	w.told.Write(arg)
}

func TestObserversNeverSeePasswordsInLinesThatAreNoCommands(t *testing.T) {
	for _, mechanisms := range [][]string{nil, {"PLAIN"}} {
		for _, line := range []string{"AUTH PLAIN c2VjcmV0\nNOOP\r\n", " AUTH PLAIN c2VjcmV0\r\n", "AUTH LOGIN\n c2VjcmV0\r\n", "AUTHPLAIN c2VjcmV0\r\n"} {
			w := &argWatcher{}
			s, res, _ := open(t, Options{Auth: mechanisms, AuthInClear: true})
			res.Observer = w
			s.Feed([]byte("EHLO c\r\n"+line), start, nil)
			if strings.Contains(w.told.String(), "c2VjcmV0") {
				t.Errorf("%q: %q", line, w.told.String())
			}
			s.Abort()
		}
	}
}
