package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// Client asks a running server over its unix socket. It is a queue.Inspector; errors of package queue come back as the same values.
type Client struct {
	http *http.Client
}

// Dial looks whether a server answers on the socket at path.
func Dial(path string) (*Client, error) {
	probe, err := net.DialTimeout("unix", path, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	probe.Close()
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		ResponseHeaderTimeout: time.Minute,
	}}}, nil
}

// Close lets go of idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// do sends one request; the caller closes the body of a good answer.
func (c *Client) do(method, path, body string) (*http.Response, error) {
	// The host is not looked up, but HTTP wants one.
	req, err := http.NewRequest(method, "http://localhost/api/v1/queue"+path, strings.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	var a answer
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&a); err != nil || a.Error == "" {
		return nil, fmt.Errorf("admin: the server answered %s", res.Status)
	}
	return nil, a.asError()
}

// asError turns an answer back into the error that it was.
func (a answer) asError() error {
	for _, known := range codes {
		if known.name == a.Code {
			if a.Error == known.err.Error() {
				return known.err
			}
			return remoteError{a.Error, known.err}
		}
	}
	return errors.New(a.Error)
}

// remoteError keeps the server's text and the value that errors.Is finds.
type remoteError struct {
	text string
	is   error
}

func (e remoteError) Error() string { return e.text }
func (e remoteError) Unwrap() error { return e.is }

func (c *Client) get(path string, v any) error {
	res, err := c.do("GET", path, "")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(v); err != nil {
		return fmt.Errorf("admin: answer to %s: %w", path, err)
	}
	return nil
}

func (c *Client) post(id envelope.ID, action, body string) error {
	res, err := c.do("POST", "/"+id.String()+"/"+action, body)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// Stats is zero when the server does not answer; StatsErr says why.
func (c *Client) Stats() queue.Stats {
	s, _ := c.StatsErr()
	return s
}

// StatsErr is Stats with its error.
func (c *Client) StatsErr() (s queue.Stats, err error) {
	err = c.get("/stat", &s)
	return s, err
}

// List decodes entries as they come.
func (c *Client) List(yield func(queue.Entry) bool) error { return c.ListStates(nil, yield) }

// ListStates is List for messages in some states alone; none means all.
func (c *Client) ListStates(states []queue.State, yield func(queue.Entry) bool) error {
	query := url.Values{}
	for _, s := range states {
		query.Add("state", s.String())
	}
	path := ""
	if len(query) > 0 {
		path = "?" + query.Encode()
	}
	res, err := c.do("GET", path, "")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	wrap := func(err error) error { return fmt.Errorf("admin: list: %w", err) }
	d := json.NewDecoder(res.Body)
	for range 3 { // {, "messages", [
		if _, err := d.Token(); err != nil {
			return wrap(err)
		}
	}
	for d.More() {
		var e queue.Entry
		if err := d.Decode(&e); err != nil {
			return wrap(err)
		}
		if !yield(e) {
			return nil
		}
	}
	if _, err := d.Token(); err != nil { // ]
		return wrap(err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return wrap(err)
		}
		var text string
		if err := d.Decode(&text); err != nil {
			return wrap(err)
		}
		if key == "error" {
			return errors.New(text)
		}
	}
	if _, err := d.Token(); err != nil { // }: an answer that was cut off must not pass for a short queue
		return wrap(err)
	}
	return nil
}

// Show asks for one message.
func (c *Client) Show(id envelope.ID) (e queue.Entry, err error) {
	err = c.get("/"+id.String(), &e)
	return e, err
}

// Cat copies the message to w.
func (c *Client) Cat(id envelope.ID, w io.Writer) error {
	res, err := c.do("GET", "/"+id.String()+"/cat", "")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(w, res.Body); err != nil {
		return fmt.Errorf("admin: message %v: %w", id, err)
	}
	return nil
}

// Hold keeps a message until it is released.
func (c *Client) Hold(id envelope.ID, reason string) error { return c.post(id, "hold", reason) }

// Release makes a held or dead message ready again.
func (c *Client) Release(id envelope.ID) error { return c.post(id, "release", "") }

// Retry makes a waiting message due now.
func (c *Client) Retry(id envelope.ID) error { return c.post(id, "retry", "") }

// Drop forgets a message for good.
func (c *Client) Drop(id envelope.ID) error { return c.post(id, "drop", "") }

var _ queue.Inspector = (*Client)(nil)
