package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fastedge/fastedge/auth"
	"github.com/fastedge/fastedge/internal/config"
)

type keyCmd struct {
	Add    keyAddCmd    `cmd:"" help:"Make a key and print it. It can't be found out later."`
	Revoke keyRevokeCmd `cmd:"" help:"Take keys away, by their ids."`
	List   keyListCmd   `cmd:"" help:"List keys and what they may do, never the keys themselves."`
}

type keysFile struct {
	Keys string `placeholder:"FILE" help:"Keys file; default: auth.keys of the configuration."`
}

type (
	keyAddCmd struct {
		keysFile
		Name         string   `arg:"" help:"Whose key it is; blanks and # are not allowed."`
		SenderDomain []string `placeholder:"DOMAIN" sep:"none" help:"Only for messages from this domain, or its subdomains with *. before it. Once for each domain."`
		Rate         int      `placeholder:"N" help:"Messages an hour (default: no limit)."`
		Expires      string   `placeholder:"DURATION" help:"How long it is good, like 90d (default: until it is revoked)."`
	}
	keyRevokeCmd struct {
		keysFile
		IDs []string `arg:"" name:"id" help:"Ids of keys: the eight characters after fe_."`
	}
	keyListCmd struct {
		keysFile
		JSON bool `help:"Print one JSON object a line."`
	}
)

// path is the keys file the verb works on.
func (f keysFile) path(a *app) (string, error) {
	if f.Keys != "" {
		return f.Keys, nil
	}
	cfg, err := a.load()
	if err != nil {
		return "", err
	}
	if cfg.Auth.Keys == "" {
		return "", usageError{errors.New("no keys file: the configuration sets no auth.keys, and there is no --keys")}
	}
	return cfg.Auth.Keys, nil
}

// Run prints the key alone on stdout, so that a script can take it from there, and only once it is in the file.
func (c *keyAddCmd) Run(a *app) error {
	path, err := c.path(a)
	if err != nil {
		return err
	}
	name, err := auth.PrepareUserName(c.Name)
	if err != nil {
		return usageError{errors.New(strings.Replace(err.Error(), "the user name", "the name", 1))}
	}
	key, text := auth.NewKey(name)
	if err := c.scopes(&key, time.Now()); err != nil {
		return usageError{err}
	}
	if err := auth.UpdateKeys(path, true, func(f *auth.KeysFile) error { return f.Add(key) }); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "fastedge: key %s of %s is in %s; it is shown this once:\n", key.ID, name, path)
	_, err = fmt.Fprintln(a.stdout, text)
	return err
}

// scopes says what the key may do, and how long.
func (c *keyAddCmd) scopes(k *auth.Key, now time.Time) error {
	k.Created = now.UTC().Truncate(time.Second)
	if c.Rate < 0 || c.Rate > auth.MaxKeyRate {
		return fmt.Errorf("--rate must be 1 to %d", auth.MaxKeyRate)
	}
	k.Rate = c.Rate
	if len(c.SenderDomain) > auth.MaxKeyDomains {
		return fmt.Errorf("--sender-domain: more than %d domains", auth.MaxKeyDomains)
	}
	for _, d := range c.SenderDomain {
		domain, err := auth.PrepareDomain(d)
		if err != nil {
			return fmt.Errorf("--sender-domain: %w", err)
		}
		if !slices.Contains(k.Senders, domain) {
			k.Senders = append(k.Senders, domain)
		}
	}
	if c.Expires == "" {
		return nil
	}
	d, err := config.ParseDuration(c.Expires)
	switch {
	case err != nil:
		return fmt.Errorf("--expires: %w", err)
	case d < time.Second:
		return errors.New("--expires: a key must be good for a second or more")
	}
	k.Expires = k.Created.Add(d)
	return nil
}

// Run takes all the keys away or none.
func (c *keyRevokeCmd) Run(a *app) error {
	path, err := c.path(a)
	if err != nil {
		return err
	}
	return auth.UpdateKeys(path, false, func(f *auth.KeysFile) error {
		for _, id := range c.IDs {
			if !f.Remove(id) {
				if len(id) > auth.KeyIDBytes { // a whole key perhaps, which is nobody's business
					id = fmt.Sprintf("%.*s...", auth.KeyIDBytes, id)
				}
				return fmt.Errorf("%s is not in %s; nothing is changed", printable(id), path)
			}
		}
		return nil
	})
}

// Run shows what the file says of each key, but for the hash.
func (c *keyListCmd) Run(a *app) error {
	path, err := c.path(a)
	if err != nil {
		return err
	}
	keys, err := auth.OpenKeys(path)
	if err != nil {
		return err
	}
	now := time.Now()
	if c.JSON {
		enc := json.NewEncoder(a.stdout)
		for _, k := range keys.All() {
			line := struct {
				ID      string     `json:"id"`
				Name    string     `json:"name"`
				Senders []string   `json:"sender_domains"` // empty: any
				Rate    int        `json:"rate"`           // messages an hour; 0: no limit
				Created *time.Time `json:"created,omitempty"`
				Expires *time.Time `json:"expires,omitempty"`
				Expired bool       `json:"expired"`
			}{ID: k.ID, Name: k.Name, Senders: append([]string{}, k.Senders...), Rate: k.Rate, Expired: k.Expired(now)}
			if !k.Created.IsZero() {
				line.Created = &k.Created
			}
			if !k.Expires.IsZero() {
				line.Expires = &k.Expires
			}
			if err := enc.Encode(line); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tCREATED\tEXPIRES\tRATE/H\tSENDER DOMAINS")
	for _, k := range keys.All() {
		date := func(t time.Time) string {
			if t.IsZero() {
				return "-"
			}
			return t.Format("2006-01-02 15:04")
		}
		expires, rate, senders := date(k.Expires), "-", "any"
		if k.Expired(now) {
			expires += " (expired)"
		}
		if k.Rate > 0 {
			rate = strconv.Itoa(k.Rate)
		}
		if len(k.Senders) > 0 {
			senders = strings.Join(k.Senders, " ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Name, date(k.Created), expires, rate, senders)
	}
	return w.Flush()
}
