package policy_test

import (
	"bytes"
	"fmt"

	"github.com/fastedge/fastedge/policy"
)

// membersOnly lets nobody send who has not logged in.
type membersOnly struct{}

func (membersOnly) Stages() policy.Stages { return policy.On(policy.AtMail) }

func (membersOnly) Validate(e *policy.Event) error {
	if e.Client.User == "" {
		e.Refuse(530, 7, 0, "Authentication required") // RFC 4954 §6
	}
	return nil
}

// Only authenticated users may MAIL: a validator in Go is one type with two methods.
func Example() {
	var v policy.Validator = membersOnly{}
	for _, user := range []string{"", "ann"} {
		e := &policy.Event{Stage: policy.AtMail, Client: policy.Client{User: user}}
		if err := v.Validate(e); err != nil {
			fmt.Println(err)
		}
		if e.Reply.Code == 0 {
			fmt.Printf("%q may send\n", user)
		} else {
			fmt.Printf("%q: %s\n", user, bytes.TrimSpace(e.Reply.AppendTo(nil)))
		}
	}
	// Output:
	// "": 530 5.7.0 Authentication required
	// "ann" may send
}
