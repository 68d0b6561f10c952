package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/internal/admin"
	"github.com/fastedge/fastedge/internal/config"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/queue/spool"
)

type queueCmd struct {
	Stat    queueStatCmd    `cmd:"" help:"Count messages and bytes."`
	List    queueListCmd    `cmd:"" help:"List messages, oldest first."`
	Show    queueShowCmd    `cmd:"" help:"Show all about messages but their text."`
	Cat     queueCatCmd     `cmd:"" help:"Print a message as it is to be handed on, byte for byte."`
	Hold    queueHoldCmd    `cmd:"" help:"Keep messages until they are released."`
	Release queueReleaseCmd `cmd:"" help:"Make held or dead messages ready again."`
	Retry   queueRetryCmd   `cmd:"" help:"Make waiting messages due now."`
	Drop    queueDropCmd    `cmd:"" help:"Forget messages for good. Asks nothing."`
}

type messageIDs struct {
	IDs []string `arg:"" name:"id" help:"Message ids, as in the 250 reply."`
}

type (
	queueStatCmd struct {
		JSON bool `help:"Print JSON."`
	}
	queueListCmd struct {
		State []string `placeholder:"STATE" help:"Only messages in these states: ready, waiting, leased, held, dead, damaged."`
		JSON  bool     `help:"Print one JSON object a line."`
	}
	queueShowCmd struct {
		messageIDs
		JSON bool `help:"Print one JSON object a line."`
	}
	queueCatCmd struct {
		ID string `arg:"" help:"Message id."`
	}
	queueHoldCmd struct {
		messageIDs
		Reason string `default:"by an operator" help:"Shown in lists."`
	}
	queueReleaseCmd struct{ messageIDs }
	queueRetryCmd   struct{ messageIDs }
	queueDropCmd    struct{ messageIDs }
)

// inspect calls do with the queue: through the running server if there is one, otherwise on the spool itself.
func (a *app) inspect(do func(queue.Inspector) error) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	client, err := admin.Dial(cfg.AdminSocket())
	if err == nil {
		defer client.Close()
		return do(client)
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return err // there is a server, perhaps, but we may not ask it
	}
	if !cfg.UsesSpool() && !cfg.UsesJetStream() {
		return fmt.Errorf("no server runs, and the queue engine %q has nothing on disk", cfg.Queue.Engine)
	}
	q, closeAll, err := openInspector(cfg, slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	return errors.Join(do(q), closeAll())
}

// holdReason is why mail is held for want of a next hop.
const holdReason = "no next hop"

// spoolOptions is the spool as the configuration wants it.
func spoolOptions(cfg *config.Config, log *slog.Logger) spool.Options {
	durability, err := spool.ParseDurability(cfg.Queue.Durability)
	if err != nil {
		panic("fastedge: durability passed the configuration's check: " + err.Error())
	}
	o := spool.Options{
		Durability:  durability,
		SegmentSize: int64(cfg.Queue.SegmentSize),
		MinFree:     int64(cfg.Queue.MinFree),
		RememberFor: cfg.HTTP.IdempotencyTime,
		// The HTTP edge keeps to its limit by itself; the spool counts a key until all of its file is out of date.
		MaxRemembered: 2 * cfg.HTTP.IdempotencyKeys,
		Log:           log,
	}
	if o.MinFree == 0 {
		o.MinFree = -1 // the spool's zero is its default
	}
	if len(cfg.Relay.NextHop) == 0 && !cfg.UsesJetStream() {
		o.Hold = holdReason
	}
	return o
}

// each calls do for every id, goes on after errors and tells of each.
func (a *app) each(ids []string, do func(q queue.Inspector, id envelope.ID) error) error {
	return a.inspect(func(q queue.Inspector) error {
		failed := false
		for _, text := range ids {
			id, err := envelope.ParseID(text)
			if err == nil {
				err = do(q, id)
			}
			if err != nil {
				fmt.Fprintf(a.stderr, "fastedge: %s: %v\n", printable(text), err)
				failed = true
			}
		}
		if failed {
			return errReported
		}
		return nil
	})
}

// Run of the verbs that act on messages.
func (c *queueHoldCmd) Run(a *app) error {
	return a.each(c.IDs, func(q queue.Inspector, id envelope.ID) error { return q.Hold(id, c.Reason) })
}

func (c *queueReleaseCmd) Run(a *app) error { return a.each(c.IDs, queue.Inspector.Release) }
func (c *queueRetryCmd) Run(a *app) error   { return a.each(c.IDs, queue.Inspector.Retry) }
func (c *queueDropCmd) Run(a *app) error    { return a.each(c.IDs, queue.Inspector.Drop) }

// Run writes the raw message and nothing else.
func (c *queueCatCmd) Run(a *app) error {
	return a.each([]string{c.ID}, func(q queue.Inspector, id envelope.ID) error { return q.Cat(id, a.stdout) })
}

func (c *queueStatCmd) Run(a *app) error {
	return a.inspect(func(q queue.Inspector) error {
		s, err := stats(q)
		if err != nil {
			return err
		}
		var partial error
		if s.Partial { // as list says it
			partial = fmt.Errorf("not all of the queue could be asked: %s", printable(s.Alarm))
		}
		if c.JSON {
			return errors.Join(json.NewEncoder(a.stdout).Encode(s), partial)
		}
		t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
		for state := queue.Ready; state <= queue.Damaged; state++ {
			fmt.Fprintf(t, "%s\t%d\n", state, s.Messages[state.String()])
		}
		for _, name := range slices.Sorted(maps.Keys(s.Parts)) {
			part, n := s.Parts[name], 0
			for _, of := range part.Messages {
				n += of
			}
			fmt.Fprintf(t, "in %s\t%d, %s\n", name, n, bytesText(part.Bytes))
		}
		fmt.Fprintf(t, "bytes\t%s\n", bytesText(s.Bytes))
		if !s.Oldest.IsZero() {
			fmt.Fprintf(t, "oldest\t%s\n", age(time.Since(s.Oldest)))
		}
		fmt.Fprintf(t, "free\t%s\n", bytesText(s.FreeBytes))
		fmt.Fprintf(t, "segments\t%d\n", s.Segments)
		fmt.Fprintf(t, "durability\t%s\n", s.Durability)
		if s.Damaged > 0 || s.SyncErrors > 0 {
			fmt.Fprintf(t, "since start\t%d records damaged, %d syncs failed\n", s.Damaged, s.SyncErrors)
		}
		if s.Alarm != "" {
			fmt.Fprintf(t, "ALARM\t%s\n", printable(s.Alarm))
		}
		return errors.Join(t.Flush(), partial)
	})
}

// stats asks with an error where there can be one.
func stats(q queue.Inspector) (queue.Stats, error) {
	if client, ok := q.(*admin.Client); ok {
		return client.StatsErr()
	}
	return q.Stats(), nil
}

// rowsPerBlock is how many rows are aligned together, so that a queue of millions is printed as it comes.
const rowsPerBlock = 1000

func (c *queueListCmd) Run(a *app) error {
	var states []queue.State
	for _, name := range c.State {
		var s queue.State
		if err := s.UnmarshalText([]byte(name)); err != nil {
			return fmt.Errorf("no such state: %s", printable(name))
		}
		states = append(states, s)
	}
	return a.inspect(func(q queue.Inspector) error {
		t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
		encoder := json.NewEncoder(a.stdout)
		now, rows := time.Now(), 0
		var printErr error
		err := listStates(q, states, func(e queue.Entry) bool {
			if c.JSON {
				printErr = encoder.Encode(e)
				return printErr == nil
			}
			if rows == 0 {
				fmt.Fprintln(t, "ID\tSTATE\tAGE\tSIZE\tFROM\tTO\tREASON")
			}
			rows++
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, e.State, age(now.Sub(e.Arrived)), bytesText(e.Size),
				path(e.ReversePath), recipientsText(e.Recipients), printable(reason(e, now)))
			if rows%rowsPerBlock == 0 {
				printErr = t.Flush()
			}
			return printErr == nil
		})
		if err := errors.Join(printErr, t.Flush(), err); err != nil {
			return err
		}
		if rows == 0 && !c.JSON {
			fmt.Fprintln(a.stderr, "no messages")
		}
		return nil
	})
}

// listStates lets a server leave out what is not wanted.
func listStates(q queue.Inspector, states []queue.State, yield func(queue.Entry) bool) error {
	if client, ok := q.(*admin.Client); ok {
		return client.ListStates(states, yield)
	}
	return q.List(func(e queue.Entry) bool {
		return len(states) > 0 && !slices.Contains(states, e.State) || yield(e)
	})
}

func (c *queueShowCmd) Run(a *app) error {
	shown := 0
	return a.each(c.IDs, func(q queue.Inspector, id envelope.ID) error {
		e, err := q.Show(id)
		if err != nil {
			return err
		}
		if c.JSON {
			return json.NewEncoder(a.stdout).Encode(e)
		}
		if shown++; shown > 1 {
			fmt.Fprintln(a.stdout)
		}
		return show(a.stdout, e)
	})
}

func show(w io.Writer, e queue.Entry) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", key, printable(value))
		}
	}
	line("id", e.ID.String())
	line("state", e.State.String())
	line("reason", e.Reason)
	line("arrived", e.Arrived.UTC().Format(time.RFC3339Nano))
	line("size", strconv.FormatInt(e.Size, 10))
	line("from", path(e.ReversePath))
	line("client", e.Client)
	line("helo", e.Helo)
	line("user", e.User)
	line("results", e.Results)
	line("metadata", string(e.Metadata))
	if e.RequireTLS {
		line("requires", "TLS")
	}
	line("protocol", e.Protocol)
	line("listener", e.Listener)
	line("attempts", strconv.Itoa(e.Attempts))
	if !e.Next.IsZero() {
		line("next attempt", e.Next.UTC().Format(time.RFC3339Nano))
	}
	for _, r := range e.Recipients {
		text := path(r.ForwardPath) + " " + r.State.String()
		if r.Reply != "" {
			text += ": " + r.Reply
		}
		line("to", text)
	}
	return t.Flush()
}

// reason is why a message is still here, in a word or the next hop's reply.
func reason(e queue.Entry, now time.Time) string {
	if e.Reason != "" {
		return e.Reason
	}
	for _, r := range e.Recipients {
		if r.Reply != "" && r.State != queue.Delivered {
			return r.Reply
		}
	}
	if e.State == queue.Waiting && e.Next.After(now) {
		return "next attempt in " + age(e.Next.Sub(now))
	}
	return ""
}

func path(mailbox string) string { return "<" + printable(mailbox) + ">" }

func recipientsText(list []queue.EntryRcpt) string {
	switch len(list) {
	case 0:
		return "-"
	case 1:
		return path(list[0].ForwardPath)
	}
	return fmt.Sprintf("%s +%d", path(list[0].ForwardPath), len(list)-1)
}

// printable shows what strangers sent so that it can't move the cursor, hide text or break the table.
func printable(s string) string {
	plain := true
	for _, r := range s {
		plain = plain && r != utf8.RuneError && unicode.IsPrint(r)
	}
	if plain {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += n
	}
	return b.String()
}

// age is a duration in one or two units.
func age(d time.Duration) string {
	switch {
	case d < time.Second:
		return "0s"
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// bytesText is a size in the largest unit that leaves a whole number of them, to one decimal.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	return fmt.Sprintf("%.1f%ciB", v, units[i])
}
