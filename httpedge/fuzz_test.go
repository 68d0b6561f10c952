package httpedge

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

// script is a connection whose client has sent everything and left, and that keeps what it is answered.
type script struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// FuzzRequest sends anything to a whole server. It never panics, it holds nothing afterwards, and its answers are HTTP. And a message that it has
// taken by the plain protocol is one that net/http finds in the same bytes, too, at the same place: nothing that another reader takes for a body, a
// trailer or a header has become a request.
func FuzzRequest(f *testing.F) {
	head := "POST / HTTP/1.1\r\nHost: x\r\n" + toHeader + "\r\n"
	for _, seed := range []string{
		head + "Content-Length: 3\r\n\r\nabc" + head + "Content-Length: 1\r\n\r\nd",
		head + "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n" + head + "Content-Length: 0\r\n\r\n",
		head + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
		"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 86\r\n\r\n" + simple,
		"POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n57\r\n" + simple + "\n\r\n0\r\n\r\n",
		"GET /v1/messages/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\nHEAD /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST http://x/a?b#c HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Envelope-Recipient: !\r\nContent-Length: 10\r\n\r\n",
		"\r\n\r\n" + head + "Content-Length: 0\r\nTransfer-Encoding: identity\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	store := &memory{}
	m := &panics{}
	budget := pool.NewBudget(64 << 20)
	w := queue.NewWriter(store, queue.Limits{})
	s, err := New(Options{
		Listeners: []Listener{{
			Name: "fuzz", Address: "127.0.0.1:0", MayPost: everybody, MayRelay: everybody,
			Session: session.NewServer(session.Options{Hostname: "mx.example.net", HTTP: true, MaxErrors: 2000, MaxMessageBytes: 64 << 10}),
		}},
		Writer: w, Budget: budget, Meter: m, Remembered: store,
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, in []byte) {
		io := &script{in: bytes.NewReader(in)}
		c := &conn{Conn: io, raw: io, srv: s, at: &s.o.Listeners[0], arrived: true, client: netip.MustParseAddrPort("127.0.0.1:1")}
		s.http.ServeConn(c)
		c.Close()
		if m.n.Load() > 0 {
			t.Fatalf("%d panics", m.n.Swap(0))
		}
		if used, lanes := budget.Used(), s.extra.Load(); used != 0 || lanes != 0 {
			t.Fatalf("%d bytes and %d lanes are held", used, lanes)
		}
		there := store.taken()
		checkAnswers(t, io.out.Bytes())
		expected := plainBodies(in)
		for _, got := range there {
			if strings.Contains(string(got.env.Client.Listener), "fuzz") && !bytes.Contains(in, []byte("/v1")) && !bytes.Contains(in, []byte("%")) {
				at := -1
				for i, body := range expected {
					if body == got.data {
						at = i
						break
					}
				}
				if at < 0 {
					t.Fatalf("%q is stored, and another reader finds %q", got.data, expected)
				}
				expected = expected[at+1:]
			}
		}
	})
}

// plainBodies are the bodies of the requests that net/http finds.
func plainBodies(in []byte) (all []string) {
	r := bufio.NewReader(bytes.NewReader(in))
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return all
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return all
		}
		all = append(all, string(body))
	}
}

// checkAnswers says whether all that was written are answers.
func checkAnswers(t *testing.T, out []byte) {
	t.Helper()
	for r := bufio.NewReader(bytes.NewReader(out)); ; {
		if _, err := r.Peek(1); err != nil {
			return
		}
		start, _ := r.Peek(12)
		if !bytes.HasPrefix(start, []byte("HTTP/1.1 ")) {
			t.Fatalf("%q is written, which begins no answer: %q", start, out)
		}
		if bytes.Contains(out, []byte("Content-Type")) { // answers to HEAD have none of the bodies that they announce
			return
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%v: %q", err, out)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatalf("%v: %q", err, out)
		}
	}
}

// panics counts our bugs.
type panics struct {
	noMeter
	n atomic.Int64
}

func (m *panics) Event(e Event) {
	if e == EventPanic {
		m.n.Add(1)
	}
}
