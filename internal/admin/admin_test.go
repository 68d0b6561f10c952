package admin

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// fakeQueue remembers what it was asked.
type fakeQueue struct {
	entries []queue.Entry
	text    []byte
	catErr  error // after text
	listErr error // after entries
	calls   []string
}

func (q *fakeQueue) Stats() queue.Stats {
	return queue.Stats{Messages: map[string]int{"held": len(q.entries)}, Durability: "fsync"}
}

func (q *fakeQueue) List(yield func(queue.Entry) bool) error {
	for _, e := range q.entries {
		if !yield(e) {
			return nil
		}
	}
	return q.listErr
}

func (q *fakeQueue) Show(id envelope.ID) (queue.Entry, error) {
	for _, e := range q.entries {
		if e.ID == id {
			return e, nil
		}
	}
	return queue.Entry{}, queue.ErrNotFound
}

func (q *fakeQueue) Cat(id envelope.ID, w io.Writer) error {
	if _, err := q.Show(id); err != nil {
		return err
	}
	if _, err := w.Write(q.text); err != nil {
		return err
	}
	return q.catErr
}

func (q *fakeQueue) act(name string, id envelope.ID) error {
	if _, err := q.Show(id); err != nil {
		return err
	}
	q.calls = append(q.calls, name)
	return nil
}

func (q *fakeQueue) Hold(id envelope.ID, reason string) error { return q.act("hold:"+reason, id) }
func (q *fakeQueue) Release(id envelope.ID) error             { return q.act("release", id) }
func (q *fakeQueue) Retry(id envelope.ID) error               { return queue.ErrLeased }
func (q *fakeQueue) Drop(id envelope.ID) error                { return q.act("drop", id) }

func id(n byte) envelope.ID { return envelope.ID{0, 1, 2, 3, 15: n} }

func twoMessages() *fakeQueue {
	return &fakeQueue{
		text: []byte("Subject: x\r\n\r\n\x00\xff.\r\n"),
		entries: []queue.Entry{
			{ID: id(1), State: queue.Held, Arrived: time.Unix(1, 0).UTC(), Size: 5, ReversePath: "a\x1b@b", Reason: "no next hop",
				Recipients: []queue.EntryRcpt{{ForwardPath: "c@d", State: queue.Failed, Reply: "550 5.1.1 no"}}},
			{ID: id(2), State: queue.Ready, Arrived: time.Unix(2, 0).UTC()},
		},
	}
}

// serve runs Control on a socket and gives a client for it.
func serve(t *testing.T, q queue.Inspector) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	server := NewServer(Control(Options{Queue: q}), slog.New(slog.DiscardHandler))
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func listAll(c *Client, states ...queue.State) (ids []envelope.ID, err error) {
	err = c.ListStates(states, func(e queue.Entry) bool {
		ids = append(ids, e.ID)
		return true
	})
	return ids, err
}

func TestClientSeesTheQueueAsItIs(t *testing.T) {
	q := twoMessages()
	c := serve(t, q)
	if s, err := c.StatsErr(); err != nil || s.Messages["held"] != 2 || s.Durability != "fsync" {
		t.Errorf("stats: %+v, %v", s, err)
	}
	if ids, err := listAll(c); err != nil || !slices.Equal(ids, []envelope.ID{id(1), id(2)}) {
		t.Errorf("list: %v, %v", ids, err)
	}
	if ids, err := listAll(c, queue.Ready, queue.Dead); err != nil || !slices.Equal(ids, []envelope.ID{id(2)}) {
		t.Errorf("list of ready and dead: %v, %v", ids, err)
	}
	if e, err := c.Show(id(1)); err != nil || e.ReversePath != "a\x1b@b" || e.State != queue.Held || e.Recipients[0] != q.entries[0].Recipients[0] {
		t.Errorf("show: %+v, %v", e, err)
	}
	var text bytes.Buffer
	if err := c.Cat(id(1), &text); err != nil || !bytes.Equal(text.Bytes(), q.text) {
		t.Errorf("cat: %q, %v", text.Bytes(), err)
	}
	for _, err := range []error{c.Hold(id(1), "because"), c.Release(id(1)), c.Drop(id(2))} {
		if err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(q.calls, []string{"hold:because", "release", "drop"}) {
		t.Errorf("calls: %v", q.calls)
	}
}

func TestListStopsWhenTheCallerDoes(t *testing.T) {
	c := serve(t, twoMessages())
	n := 0
	if err := c.List(func(queue.Entry) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d entries, %v", n, err)
	}
}

func TestEmptyQueue(t *testing.T) {
	if ids, err := listAll(serve(t, &fakeQueue{})); err != nil || ids != nil {
		t.Errorf("%v, %v", ids, err)
	}
}

func TestErrorsComeBackAsTheValuesTheyWere(t *testing.T) {
	q := twoMessages()
	c := serve(t, q)
	if _, err := c.Show(id(9)); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("show: %v", err)
	}
	if err := c.Cat(id(9), io.Discard); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("cat: %v", err)
	}
	if err := c.Drop(id(9)); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("drop: %v", err)
	}
	if err := c.Retry(id(1)); !errors.Is(err, queue.ErrLeased) {
		t.Errorf("retry: %v", err)
	}
}

// An answer that is cut off must never look like a whole message or a whole list.
func TestErrorsInTheMiddleAreNotSwallowed(t *testing.T) {
	q := twoMessages()
	q.catErr, q.listErr = queue.ErrCorrupt, errors.New("disk on fire")
	c := serve(t, q)
	if err := c.Cat(id(1), io.Discard); err == nil {
		t.Error("cat: no error")
	}
	if ids, err := listAll(c); err == nil || err.Error() != "disk on fire" || len(ids) != 2 {
		t.Errorf("list: %v, %v", ids, err)
	}
	q.text = nil
	if err := c.Cat(id(1), io.Discard); !errors.Is(err, queue.ErrCorrupt) {
		t.Errorf("cat of a message damaged from its start: %v", err)
	}
}

func TestEngineWithoutInspector(t *testing.T) {
	if _, err := serve(t, nil).StatsErr(); err == nil || !strings.Contains(err.Error(), "can't be looked into") {
		t.Errorf("%v", err)
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another fastedge") {
		t.Errorf("second process: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	first.Close()
	if _, err := Dial(path); err == nil {
		t.Error("dialled a dead socket")
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	second.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("a file was replaced")
	}
}

func TestPublicChangesNothing(t *testing.T) {
	h := Public(Options{Queue: twoMessages()})
	for _, target := range []string{"GET /api/v1/queue", "POST /api/v1/queue/" + id(1).String() + "/drop", "POST /livez"} {
		method, path, _ := strings.Cut(target, " ")
		r := httptest.NewRequest(method, "http://localhost"+path, nil)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", target, w.Code)
		}
	}
}

func TestBadRequests(t *testing.T) {
	h := Control(Options{Queue: twoMessages()})
	for target, want := range map[string]int{
		"GET /api/v1/queue?state=lost":                  http.StatusBadRequest,
		"GET /api/v1/queue/short":                       http.StatusBadRequest,
		"GET /api/v1/queue/" + id(9).String():           http.StatusNotFound,
		"GET /api/v1/queue/" + id(1).String() + "/drop": http.StatusMethodNotAllowed,
		"GET /nothing":                                  http.StatusNotFound,
	} {
		method, path, _ := strings.Cut(target, " ")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		if w.Code != want {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
	}
}

func TestHealth(t *testing.T) {
	var reasons []string
	h := Public(Options{NotReady: func() []string { return reasons }, Metrics: http.NotFoundHandler()})
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1:9025"+path, nil))
		return w.Code, w.Body.String()
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if code, body := get(path); code != 200 || body != "ok\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	reasons = []string{"draining", "no space"}
	if code, body := get("/readyz"); code != 503 || body != "draining\nno space\n" {
		t.Errorf("not ready: %d %q", code, body)
	}
	if code, _ := get("/livez"); code != 200 {
		t.Errorf("not ready, but alive: %d", code)
	}
}

// DNS rebinding: a page's own name points at us, and its browser sends that name.
func TestOnlyOwnNamesAndOriginsMayAsk(t *testing.T) {
	h := Public(Options{Hostname: "mx.example.net"})
	for _, c := range []struct {
		host, origin string
		want         int
	}{
		{"127.0.0.1:9025", "", 200},
		{"[::1]:9025", "", 200},
		{"localhost:9025", "", 200},
		{"LOCALHOST", "", 200},
		{"mx.example.net:9025", "", 200},
		{"evil.test:9025", "", 403},
		{"localhost.evil.test", "", 403},
		{"", "", 403},
		{"127.0.0.1:9025", "http://127.0.0.1:9025", 200},
		{"127.0.0.1:9025", "http://evil.test", 403},
		{"127.0.0.1:9025", "null", 403},
	} {
		r := httptest.NewRequest("GET", "/livez", nil)
		r.Host = c.host
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("Host %q, Origin %q: %d, want %d", c.host, c.origin, w.Code, c.want)
		}
	}
}

func TestProfilesAreForThisMachine(t *testing.T) {
	h := Public(Options{})
	for peer, want := range map[string]int{"127.0.0.1:5": 200, "[::1]:5": 200, "[::ffff:127.0.0.1]:5": 200, "192.0.2.1:5": 403, "@": 200} {
		r := httptest.NewRequest("GET", "http://localhost/debug/pprof/cmdline", nil)
		r.RemoteAddr = peer
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: %d, want %d", peer, w.Code, want)
		}
	}
}
