package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"

	"github.com/fastedge/fastedge/auth"
)

type authCmd struct {
	Add    authAddCmd    `cmd:"" help:"Add a user, or give one a new password. It is asked for, or read from the first line of stdin."`
	Remove authRemoveCmd `cmd:"" help:"Remove users."`
	List   authListCmd   `cmd:"" help:"List users and what they can log in with."`
	Key    keyCmd        `cmd:"" help:"Make, revoke and list API keys for HTTP."`
}

type usersFile struct {
	File string `placeholder:"FILE" help:"Users file; default: auth.users of the configuration."`
}

type (
	authAddCmd struct {
		usersFile
		User            string `arg:"" help:"User name; blanks and # are not allowed."`
		PlainOnly       bool   `help:"Keep an argon2id hash, the hardest to guess from a stolen file: for PLAIN and LOGIN, not for SCRAM."`
		CRAMMD5         bool   `name:"cram-md5" help:"Keep what CRAM-MD5 needs, too. Whoever steals it can log in with it."`
		CertificateOnly bool   `help:"No password: the user logs in with a client certificate of that name."`
		Iterations      int    `placeholder:"N" help:"Cost of SCRAM-SHA-256, 4096 or more (default 100000)."`
	}
	authRemoveCmd struct {
		usersFile
		Users []string `arg:"" name:"user" help:"User names."`
	}
	authListCmd struct {
		usersFile
		JSON bool `help:"Print one JSON object a line."`
	}
)

// maxPasswordBytes is the longest password that is stored. A response that carries it must stay below auth.MaxResponseBytes.
const maxPasswordBytes = 1024

// path is the users file the verb works on.
func (f usersFile) path(a *app) (string, error) {
	if f.File != "" {
		return f.File, nil
	}
	cfg, err := a.load()
	if err != nil {
		return "", err
	}
	if cfg.Auth.Users == "" {
		return "", usageError{errors.New("no users file: the configuration sets no auth.users, and there is no --file")}
	}
	return cfg.Auth.Users, nil
}

// Run writes nothing before the password is complete.
func (c *authAddCmd) Run(a *app) error {
	if c.CertificateOnly && (c.PlainOnly || c.CRAMMD5) || c.PlainOnly && c.CRAMMD5 {
		return usageError{errors.New("--certificate-only, --plain-only and --cram-md5 exclude one another")}
	}
	if c.Iterations == 0 {
		c.Iterations = auth.DefaultIterations
	}
	if c.Iterations < auth.MinIterations || c.Iterations > auth.MaxIterations {
		return usageError{fmt.Errorf("--iterations must be %d to %d", auth.MinIterations, auth.MaxIterations)}
	}
	path, err := c.path(a)
	if err != nil {
		return err
	}
	name, err := auth.PrepareUserName(c.User)
	if err != nil {
		return usageError{err}
	}
	user := auth.User{Name: name}
	if !c.CertificateOnly {
		password, err := a.password(name)
		if err != nil {
			return err
		}
		if err := c.derive(&user, password); err != nil {
			return err
		}
	}
	replaced := false
	err = auth.Update(path, true, func(f *auth.UsersFile) error {
		if old, ok := f.User(name); ok {
			user.Disabled = old.Disabled
		}
		replaced = f.Set(user)
		return nil
	})
	if err != nil {
		return err
	}
	what := "added"
	if replaced {
		what = "changed"
	}
	fmt.Fprintf(a.stdout, "%s: %s, %s\n", name, what, strings.Join(mechanismsOf(user), " "))
	if user.Disabled {
		fmt.Fprintf(a.stderr, "fastedge: %s is still disabled in %s\n", name, path)
	}
	return nil
}

// derive makes what is kept of a password.
func (c *authAddCmd) derive(u *auth.User, password string) error {
	salt := make([]byte, auth.SaltBytes)
	rand.Read(salt) // never fails
	if c.PlainOnly {
		hash, err := auth.NewArgon2id(password, salt)
		u.Argon2id = &hash
		return err
	}
	keys, err := auth.NewSCRAMKeys(password, salt, c.Iterations)
	if err != nil {
		return err
	}
	u.SCRAM = &keys
	if c.CRAMMD5 {
		keys, err := auth.NewCRAMKeys(password)
		u.CRAM = &keys
		return err
	}
	return nil
}

// password asks twice on a terminal, otherwise it is the first line of stdin. It is never an argument, where every process could read it.
func (a *app) password(user string) (string, error) {
	if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		first, err := a.prompt(f, fmt.Sprintf("Password of %s: ", user))
		if err != nil {
			return "", err
		}
		second, err := a.prompt(f, "Once more: ")
		if err != nil {
			return "", err
		}
		if first != second {
			return "", errors.New("the two passwords differ; nothing is changed")
		}
		return checkedPassword(first)
	}
	line, err := bufio.NewReader(io.LimitReader(a.stdin, maxPasswordBytes+3)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("password from stdin: %w", err)
	}
	line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	return checkedPassword(line)
}

func checkedPassword(p string) (string, error) {
	if p == "" {
		return "", errors.New("the password is empty")
	}
	if len(p) > maxPasswordBytes {
		return "", fmt.Errorf("the password has more than %d bytes", maxPasswordBytes)
	}
	return p, nil
}

// prompt reads a line without echo. The echo is off before the prompt is shown: somebody may type ahead of it.
func (a *app) prompt(f *os.File, text string) (string, error) {
	fd := int(f.Fd())
	before, err := term.MakeRaw(fd) // control-C is a byte then, which ends ReadPassword
	if err != nil {
		return "", err
	}
	defer term.Restore(fd, before)
	line, err := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{f, a.stderr}, "").ReadPassword(text)
	if err != nil {
		return "", fmt.Errorf("password from the terminal: %w", err)
	}
	return line, nil
}

// Run removes all the users or none.
func (c *authRemoveCmd) Run(a *app) error {
	path, err := c.path(a)
	if err != nil {
		return err
	}
	return auth.Update(path, false, func(f *auth.UsersFile) error {
		for _, name := range c.Users {
			prepared, err := auth.PrepareUserName(name)
			if err != nil || !f.Remove(prepared) {
				return fmt.Errorf("%s is not in %s; nothing is changed", printable(name), path)
			}
		}
		return nil
	})
}

// Run shows names and kinds of keys, never the keys.
func (c *authListCmd) Run(a *app) error {
	path, err := c.path(a)
	if err != nil {
		return err
	}
	table, err := auth.Load(path)
	if err != nil {
		return err
	}
	if c.JSON {
		enc := json.NewEncoder(a.stdout)
		for _, u := range table.All() {
			line := struct {
				User       string   `json:"user"`
				Mechanisms []string `json:"mechanisms"`
				Iterations int      `json:"iterations,omitempty"`
				Disabled   bool     `json:"disabled"`
			}{User: u.Name, Mechanisms: mechanismsOf(u), Disabled: u.Disabled}
			if u.SCRAM != nil {
				line.Iterations = u.SCRAM.Iterations
			}
			if err := enc.Encode(line); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "USER\tITERATIONS\tMECHANISMS")
	for _, u := range table.All() {
		iterations := "-"
		if u.SCRAM != nil {
			iterations = strconv.Itoa(u.SCRAM.Iterations)
		}
		can := strings.Join(mechanismsOf(u), " ")
		if u.Disabled {
			can = "disabled (" + can + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", u.Name, iterations, can)
	}
	return w.Flush()
}

// mechanismsOf is what the user can log in with, as far as the server offers it; EXTERNAL any user can.
func mechanismsOf(u auth.User) []string {
	return slices.DeleteFunc(auth.Mechanisms(), func(m string) bool {
		switch m {
		case auth.SCRAMSHA256, auth.SCRAMSHA256Plus:
			return u.SCRAM == nil
		case auth.PLAIN, auth.LOGIN:
			return u.SCRAM == nil && u.Argon2id == nil
		case auth.CRAMMD5:
			return u.CRAM == nil
		}
		return m != auth.EXTERNAL
	})
}
