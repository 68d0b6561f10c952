// Package admin is fastedge's own HTTP: the queue commands over a unix socket, and health, metrics and profiles, read-only, over TCP.
//
// Control serves the unix socket; who may open the socket may do everything, so its mode is the access control. Public serves TCP and
// changes nothing; against web pages that reach for it through the operator's browser it checks Host and Origin. A Client is a
// queue.Inspector on the other end of the socket. Whatever is asked here runs on goroutines of its own and never on an event loop.
package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// Options are what the handlers show.
type Options struct {
	Queue   queue.Inspector // nil answers every queue request with 503
	Metrics http.Handler    // nil: no /metrics
	// NotReady gives the reasons why no mail should be sent here now: draining, no space. nil or none means ready.
	NotReady func() []string
	// Hostname is one more Host that Public takes, besides localhost and IP addresses.
	Hostname string
}

// writeTimeout bounds how long a client of the socket may leave an answer unread.
const writeTimeout = 30 * time.Second

// Control is the handler for the unix socket. It includes what Public has.
func Control(o Options) http.Handler {
	q := control{o.Queue}
	mux := readOnly(o)
	mux.HandleFunc("GET /api/v1/queue", q.guard(q.list))
	mux.HandleFunc("GET /api/v1/queue/stat", q.guard(q.stat))
	mux.HandleFunc("GET /api/v1/queue/{id}", q.guard(q.show))
	mux.HandleFunc("GET /api/v1/queue/{id}/cat", q.guard(q.cat))
	mux.HandleFunc("POST /api/v1/queue/{id}/hold", q.act(func(id envelope.ID, r *http.Request) error {
		reason, err := io.ReadAll(io.LimitReader(r.Body, maxReasonBytes))
		if err != nil {
			return err
		}
		return q.Inspector.Hold(id, string(reason))
	}))
	mux.HandleFunc("POST /api/v1/queue/{id}/release", q.act(func(id envelope.ID, _ *http.Request) error { return q.Release(id) }))
	mux.HandleFunc("POST /api/v1/queue/{id}/retry", q.act(func(id envelope.ID, _ *http.Request) error { return q.Retry(id) }))
	mux.HandleFunc("POST /api/v1/queue/{id}/drop", q.act(func(id envelope.ID, _ *http.Request) error { return q.Drop(id) }))
	return mux
}

// maxReasonBytes bounds why a message is held.
const maxReasonBytes = 512

// Public is the handler for TCP.
func Public(o Options) http.Handler {
	return guardOrigin(o.Hostname, readOnly(o))
}

func readOnly(o Options) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		var reasons []string
		if o.NotReady != nil {
			reasons = o.NotReady()
		}
		if len(reasons) == 0 {
			io.WriteString(w, "ok\n")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, strings.Join(reasons, "\n")+"\n")
	})
	if o.Metrics != nil {
		mux.Handle("GET /metrics", o.Metrics)
	}
	mux.HandleFunc("GET /debug/pprof/", localOnly(pprof.Index))
	mux.HandleFunc("GET /debug/pprof/cmdline", localOnly(pprof.Cmdline))
	mux.HandleFunc("GET /debug/pprof/profile", localOnly(pprof.Profile))
	mux.HandleFunc("GET /debug/pprof/symbol", localOnly(pprof.Symbol))
	mux.HandleFunc("GET /debug/pprof/trace", localOnly(pprof.Trace))
	return mux
}

// localOnly keeps profiles, which cost CPU and show memory, to this machine wherever admin.http listens.
func localOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && !peer.Addr().Unmap().IsLoopback() {
			http.Error(w, "profiles are for this machine alone", http.StatusForbidden)
			return
		}
		next(w, r)
	}
}

// guardOrigin refuses requests that a web page made a browser send. A page can point a name of its own at our address (DNS
// rebinding), so only names that nobody else controls may stand in Host: IP addresses, localhost and our own.
func guardOrigin(hostname string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		_, err := netip.ParseAddr(host)
		if err != nil && !strings.EqualFold(host, "localhost") && (hostname == "" || !strings.EqualFold(host, hostname)) {
			http.Error(w, "unknown Host", http.StatusForbidden)
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
			http.Error(w, "foreign Origin", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// NewServer gives an HTTP server whose clients can't hold connections open for nothing. log gets its complaints.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// A CPU profile takes 30 s; answers of unknown length move their own deadline on.
		WriteTimeout:   2 * time.Minute,
		IdleTimeout:    time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// Listen opens the unix socket at path with mode 0660. A socket that a dead process left is replaced; one that answers is an error.
func Listen(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("admin: %s exists and is not a socket", path)
		}
		// Only a refused connection means that nobody is there: a live process may just be too busy to answer.
		if conn, err := net.Dial("unix", path); !errors.Is(err, syscall.ECONNREFUSED) {
			if err == nil {
				conn.Close()
			}
			return nil, fmt.Errorf("admin: another fastedge listens on %s", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("admin: remove stale socket: %w", err)
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		listener.Close()
		return nil, fmt.Errorf("admin: %w", err)
	}
	return listener, nil
}

// control answers the queue requests.
type control struct{ queue.Inspector }

// answer is the JSON of everything but an entry or statistics.
type answer struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"` // one of codes
}

// codes are the errors that a Client gives back as the values they were.
var codes = []struct {
	name   string
	err    error
	status int
}{
	{"not_found", queue.ErrNotFound, http.StatusNotFound},
	{"leased", queue.ErrLeased, http.StatusConflict},
	{"damaged", queue.ErrCorrupt, http.StatusUnprocessableEntity},
	{"closed", queue.ErrClosed, http.StatusServiceUnavailable},
	{"bad_id", envelope.ErrBadID, http.StatusBadRequest},
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func writeError(w http.ResponseWriter, err error) {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			writeJSON(w, c.status, answer{Error: err.Error(), Code: c.name})
			return
		}
	}
	writeJSON(w, http.StatusInternalServerError, answer{Error: err.Error()})
}

// guard is for requests before there is a queue, and turns errors into answers.
func (q control) guard(serve func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if q.Inspector == nil {
			writeJSON(w, http.StatusServiceUnavailable, answer{Error: "this queue engine can't be looked into"})
			return
		}
		if err := serve(w, r); err != nil {
			writeError(w, err)
		}
	}
}

func (q control) act(do func(id envelope.ID, r *http.Request) error) http.HandlerFunc {
	return q.guard(func(w http.ResponseWriter, r *http.Request) error {
		id, err := envelope.ParseID(r.PathValue("id"))
		if err == nil {
			err = do(id, r)
		}
		if err == nil {
			writeJSON(w, http.StatusOK, answer{OK: true})
		}
		return err
	})
}

func (q control) stat(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, q.Stats())
	return nil
}

func (q control) show(w http.ResponseWriter, r *http.Request) error {
	id, err := envelope.ParseID(r.PathValue("id"))
	if err != nil {
		return err
	}
	entry, err := q.Show(id)
	if err == nil {
		writeJSON(w, http.StatusOK, entry)
	}
	return err
}

// list writes {"messages":[...]} as the queue gives the entries, since there may be millions. An error on the way stands behind them as
// "error".
func (q control) list(w http.ResponseWriter, r *http.Request) error {
	states := map[queue.State]bool{}
	for _, name := range r.URL.Query()["state"] {
		var s queue.State
		if err := s.UnmarshalText([]byte(name)); err != nil {
			writeJSON(w, http.StatusBadRequest, answer{Error: err.Error()})
			return nil
		}
		states[s] = true
	}
	w.Header().Set("Content-Type", "application/json")
	out := patient{w, http.NewResponseController(w)}
	io.WriteString(out, `{"messages":[`)
	encoder := json.NewEncoder(out)
	first := true
	var broken error
	err := q.List(func(e queue.Entry) bool {
		if len(states) > 0 && !states[e.State] {
			return true
		}
		if !first {
			_, broken = io.WriteString(out, ",")
		}
		first = false
		if broken == nil {
			broken = encoder.Encode(e)
		}
		return broken == nil
	})
	switch {
	case broken != nil:
		panic(http.ErrAbortHandler) // the client is gone
	case err != nil:
		text, _ := json.Marshal(err.Error())
		fmt.Fprintf(out, "],\"error\":%s}\n", text)
	default:
		io.WriteString(out, "]}\n")
	}
	return nil
}

// cat writes the message as it is to be handed on. Once bytes have left, an error can only cut the answer off.
func (q control) cat(w http.ResponseWriter, r *http.Request) error {
	id, err := envelope.ParseID(r.PathValue("id"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "message/rfc822")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	out := &counted{Writer: patient{w, http.NewResponseController(w)}}
	if err := q.Cat(id, out); err != nil {
		if out.n > 0 {
			panic(http.ErrAbortHandler)
		}
		return err
	}
	return nil
}

// patient gives the client writeTimeout for each write instead of for the whole answer.
type patient struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (p patient) Write(b []byte) (int, error) {
	p.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not supported by test recorders: then there is none
	return p.w.Write(b)
}

// counted knows whether anything has left.
type counted struct {
	io.Writer
	n int64
}

func (c *counted) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil // would send the header
	}
	n, err := c.Writer.Write(b)
	c.n += int64(n)
	return n, err
}
