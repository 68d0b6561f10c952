package smtptest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fastedge/fastedge/policy"
	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

// validator stands for one at one stage, as a directive has it.
type validator struct {
	how   string
	at    policy.Stage
	path  string // only this one is meant; "" is all
	reply smtpcodec.Reply
	field []byte
}

// parseValidator reads STAGE [PATH] [REPLY], or STAGE FIELD.
func parseValidator(how, text string) (*validator, error) {
	word, rest, _ := strings.Cut(text, " ")
	at, err := policy.ParseStage(word)
	if err != nil {
		return nil, err
	}
	v := &validator{how: how, at: at}
	if how == "field" {
		v.field = []byte(rest + "\r\n")
		return v, nil
	}
	if path, ok := strings.CutPrefix(rest, "<"); ok {
		if v.path, rest, ok = strings.Cut(path, ">"); !ok {
			return nil, fmt.Errorf("%q has no end", path)
		}
		rest = strings.TrimSpace(rest)
	}
	if rest != "" {
		b, err := unescape(rest)
		if err != nil {
			return nil, err
		}
		reply, n, err := smtpcodec.ParseReply(append(b, '\r', '\n'))
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is no reply (%v)", rest, err)
		}
		v.reply = reply
	}
	return v, nil
}

func (v *validator) Stages() policy.Stages { return policy.On(v.at) }

func (v *validator) Validate(e *policy.Event) error {
	if v.path != "" && v.path != string(e.Path.Mailbox) {
		return nil
	}
	switch v.how {
	case "fail":
		return errors.New("broken")
	case "panic":
		panic("broken")
	case "hang":
		e.Pend()
	case "pend":
		e.Pend().Done(v.reply, nil)
	case "field":
		e.Fields = v.field
	default:
		if v.reply.Code != 0 {
			e.Set(v.reply)
		}
	}
	return nil
}

// parseTLS reads [VERSION CIPHER] [certificate NAME] [unverified] [proxied].
func parseTLS(words []string) (*policy.TLS, error) {
	t := &policy.TLS{Version: "TLS1.3", Cipher: "TLS_AES_128_GCM_SHA256"}
	for i := 0; i < len(words); i++ {
		switch {
		case strings.HasPrefix(words[i], "TLS") && i+1 < len(words):
			t.Version, t.Cipher = words[i], words[i+1]
			i++
		case words[i] == "certificate" && i+1 < len(words):
			t.Certificate = &policy.Certificate{Verified: true, CommonName: words[i+1]}
			i++
		case words[i] == "unverified" && t.Certificate != nil:
			t.Certificate.Verified = false
		case words[i] == "proxied":
			t.Proxied = true
		default:
			return nil, fmt.Errorf("%q says nothing about TLS", words[i])
		}
	}
	return t, nil
}

// mechanism stands for a SASL mechanism. The password of everybody is "secret"; a few users have a fate of their own. PLAIN takes it in one
// response, all others ask for the user and then for the password, as LOGIN does.
type mechanism struct {
	name string
	user string
	step int
}

func (c *Client) work(r session.AuthRequest) session.AuthAnswer {
	if r.First {
		c.sasl = &mechanism{name: r.Mechanism}
	}
	m := c.sasl
	if !r.Present {
		if m.name == "PLAIN" {
			return session.AuthAnswer{}
		}
		return session.AuthAnswer{Challenge: []byte("Username:")}
	}
	switch {
	case m.name == "EXTERNAL":
		return verdict("certificate", "secret")
	case m.name == "PLAIN":
		parts := strings.Split(string(r.Response), "\x00")
		if len(parts) != 3 {
			return session.AuthAnswer{Result: session.AuthMalformed}
		}
		return verdict(parts[1], parts[2])
	case m.step == 0:
		m.user, m.step = string(r.Response), 1
		return session.AuthAnswer{Challenge: []byte("Password:")}
	}
	return verdict(m.user, string(r.Response))
}

func verdict(user, password string) session.AuthAnswer {
	switch {
	case user == "nobodyknows":
		return session.AuthAnswer{Result: session.AuthUnavailable}
	case user == "throttled":
		return session.AuthAnswer{Result: session.AuthThrottled}
	case password != "secret":
		return session.AuthAnswer{Result: session.AuthFailed}
	}
	return session.AuthAnswer{Result: session.AuthOK, User: user}
}
