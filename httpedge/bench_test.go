package httpedge

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fastedge/fastedge/internal/logline"
	"github.com/fastedge/fastedge/pool"
	"github.com/fastedge/fastedge/queue"
	"github.com/fastedge/fastedge/session"
)

// nowhere is a queue that throws messages away.
type nowhere struct{}

func (nowhere) Commit([]*queue.Submission) {}
func (nowhere) Room() error                { return nil }
func (nowhere) Close() error               { return nil }

// replay is the connection of a client that posts the same request for as long as more says so, each when the one before was answered. It
// belongs to the goroutine that serves it.
type replay struct {
	net.Conn // nil: what else a server might call is not there
	more     func() bool
	request  []byte
	left     []byte
	answer   []byte // the last one, as much as fits
	begun    bool
	over     bool
	ahead    bool // answers are not looked at: net/http asks for the next request before it gives one
}

func (r *replay) Read(p []byte) (int, error) {
	if len(r.left) == 0 {
		if r.begun && !r.ahead && !bytes.HasPrefix(r.answer, []byte("HTTP/1.1 20")) {
			panic(fmt.Sprintf("answered %q", r.answer))
		}
		r.begun = true
		if r.over = r.over || !r.more(); r.over {
			return 0, io.EOF
		}
		r.left = r.request
		if !r.ahead {
			r.answer = r.answer[:0]
		}
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

func (r *replay) Write(p []byte) (int, error) {
	if r.ahead {
		return len(p), nil
	}
	r.answer = append(r.answer, p[:min(len(p), cap(r.answer)-len(r.answer))]...)
	return len(p), nil
}

var benchClient = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000}

func (r *replay) Close() error                     { return nil }
func (r *replay) LocalAddr() net.Addr              { return benchClient }
func (r *replay) RemoteAddr() net.Addr             { return benchClient }
func (r *replay) SetDeadline(time.Time) error      { return nil }
func (r *replay) SetReadDeadline(time.Time) error  { return nil }
func (r *replay) SetWriteDeadline(time.Time) error { return nil }

func newReplay(request []byte, more func() bool) *replay {
	return &replay{more: more, request: request, answer: make([]byte, 0, 4096)}
}

// benchServer serves over replays, with a discarding queue and, as usual, a line for each message.
func benchServer(tb testing.TB) *Server {
	tb.Helper()
	w := queue.NewWriter(nowhere{}, queue.Limits{})
	so := session.Options{Hostname: "mx.example.net", Listener: "http", HTTP: true, MaxErrors: 2000}
	s, err := New(Options{
		Writer: w, Budget: pool.NewBudget(64 << 20), Lines: io.Discard, LineFormat: logline.JSON,
		Listeners: []Listener{{Name: "http", Address: "127.0.0.1:0", MayPost: everybody, MayRelay: everybody, Session: session.NewServer(so)}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		s.Close()
		w.Close(context.Background())
	})
	return s
}

// posted is a message of size bytes.
func posted(size int) []byte {
	head := "From: <a@example.net>\r\nTo: <b@example.org>\r\nSubject: something to measure\r\nMessage-ID: <1@example.net>\r\nDate: Sun, 22 Nov 2026 20:00:00 +0000\r\n\r\n"
	line := strings.Repeat("abcdefghij", 7) + "123456\r\n"
	text := head + strings.Repeat(line, (size-len(head))/len(line))
	return []byte(text[:len(text)-2] + strings.Repeat("-", size-len(text)) + "\r\n")
}

// envelopeFields are the header fields of one sender and one recipient.
var envelopeFields = "X-Envelope-Sender: " + base64.StdEncoding.EncodeToString([]byte("sender@client.test")) + "\r\n" +
	"X-Envelope-Recipient: " + base64.StdEncoding.EncodeToString([]byte("recipient-1234@bench.test")) + "\r\n" +
	"X-Ehlo: client.test\r\n"

func requestOf(path, contentType, fields string, body []byte) []byte {
	return append([]byte("POST "+path+" HTTP/1.1\r\nHost: 127.0.0.1:8025\r\nContent-Type: "+contentType+"\r\n"+fields+
		"Content-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"), body...)
}

// inJSON is a message as POST /v1/messages takes it.
func inJSON(message []byte) []byte {
	text, _ := json.Marshal(map[string]any{"mail_from": "sender@client.test", "rcpt_to": []string{"recipient-1234@bench.test"}, "raw": string(message)})
	return text
}

func plainRequest(size int) []byte {
	return requestOf("/", "message/rfc822", envelopeFields, posted(size))
}

// BenchmarkPost is what one request costs without a socket and without a disk. The twin does the same with net/http in the way that comes to
// mind first: it decodes the addresses, reads all of the body and throws it away, with no policy, no check of message data and no log line.
func BenchmarkPost(b *testing.B) {
	pool.WithoutPoison(func() { benchmarkPost(b) })
}

func benchmarkPost(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, form := range []struct {
			name    string
			request []byte
		}{
			{"plain", plainRequest(size)},
			{"v1-rfc822", requestOf("/v1/messages", "message/rfc822", envelopeFields, posted(size))},
			{"v1-json", requestOf("/v1/messages", "application/json", "", inJSON(posted(size)))},
			{"v1-batch-of-16", requestOf("/v1/messages:batch", "application/x-ndjson", "", bytes.Repeat(append(inJSON(posted(size)), '\n'), 16))},
		} {
			b.Run(fmt.Sprintf("%s/%dKiB", form.name, size>>10), func(b *testing.B) {
				s := benchServer(b)
				b.SetBytes(int64(size))
				if strings.HasPrefix(form.name, "v1-batch") {
					b.SetBytes(int64(16 * size))
				}
				b.ReportAllocs()
				serveReplay(b, s, newReplay(form.request, b.Loop))
			})
		}
		b.Run(fmt.Sprintf("net-http/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			serveNaively(newReplay(plainRequest(size), b.Loop))
		})
	}
}

// serveReplay serves one connection to its end.
func serveReplay(tb testing.TB, s *Server, r *replay) {
	c := s.doors[0].admit(r)
	if c == nil {
		tb.Fatal("no room")
	}
	if err := s.http.ServeConn(c); err != nil {
		tb.Fatal(err)
	}
}

// oneConn is a listener with one connection.
type oneConn struct {
	c    chan net.Conn
	done chan struct{}
}

func (l oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l oneConn) Close() error   { return nil }
func (l oneConn) Addr() net.Addr { return benchClient }

// serveNaively serves one connection to its end with net/http.
func serveNaively(r *replay) {
	l := oneConn{make(chan net.Conn, 1), make(chan struct{})}
	r.ahead = true
	l.c <- r
	s := http.Server{
		ReadHeaderTimeout: time.Minute,
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				close(l.done)
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from, bad := base64.StdEncoding.DecodeString(r.Header.Get("X-Envelope-Sender"))
			for _, one := range r.Header.Values("X-Envelope-Recipient") {
				if _, err := base64.StdEncoding.DecodeString(one); err != nil {
					bad = err
				}
			}
			body, err := io.ReadAll(r.Body)
			if bad != nil || err != nil || len(from) == 0 || len(body) == 0 {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			w.Header().Set("X-Smtp-Reply", `250; message="2.6.0 Message accepted for delivery"`)
		}),
	}
	s.Serve(l) // net.ErrClosed, by done
}

// countdown gives more for n requests.
func countdown(n int) func() bool {
	return func() bool {
		n--
		return n >= 0
	}
}

// allocationsOf is how many allocations serve makes for each request of a connection, beyond those for the connection itself.
func allocationsOf(serve func(n int)) float64 {
	const few, many = 10, 510
	serve(many) // pools are full, tables are grown
	base := testing.AllocsPerRun(3, func() { serve(few) })
	return (testing.AllocsPerRun(3, func() { serve(many) }) - base) / (many - few)
}

// The whole way of a message: policy, message data, envelope, queue, log line and answer. The bare handler reads the body, sets the same
// header fields, and does nothing else.
func TestAPostAllocatesNothingOfOurOwn(t *testing.T) {
	if raceDetector {
		t.Skip("pools lose what they are given under the race detector")
	}
	pool.WithoutPoison(func() { postAllocatesNothing(t) })
}

func postAllocatesNothing(t *testing.T) {
	s := benchServer(t)
	for _, size := range []int{4 << 10, 64 << 10} {
		request := plainRequest(size)
		ours := allocationsOf(func(n int) { serveReplay(t, s, newReplay(request, countdown(n))) })
		bare := allocationsOf(func(n int) {
			if err := bareServer.ServeConn(newReplay(request, countdown(n))); err != nil {
				t.Fatal(err)
			}
		})
		t.Logf("%d KiB: %.3f allocations a request, of which fasthttp's are %.3f", size>>10, ours, bare)
		// A collection may empty a pool at any time, so it is not exactly none.
		if own := ours - bare; own > 0.1 {
			t.Errorf("%d KiB: %.3f allocations of our own", size>>10, own)
		}
	}
}

var (
	bareReply, bareID = []byte(`250; message="2.6.0 Message accepted for delivery"`), []byte("01JD0000000000000000000000")
	barePieces        = make([]byte, bodyPiece)
)

// bareServer does with fasthttp what every handler must.
var bareServer = fasthttp.Server{
	Handler: func(ctx *fasthttp.RequestCtx) {
		if stream := ctx.RequestBodyStream(); stream != nil {
			for {
				if _, err := stream.Read(barePieces); err != nil {
					break
				}
			}
		} else if len(ctx.Request.Body()) == 0 {
			ctx.SetStatusCode(fasthttp.StatusBadRequest)
		}
		ctx.Response.Header.SetBytesV("X-Smtp-Reply", bareReply)
		ctx.Response.Header.SetBytesV("X-Queue-Id", bareID)
	},
	HeaderReceived: func(*fasthttp.RequestHeader) fasthttp.RequestConfig {
		return fasthttp.RequestConfig{ReadTimeout: time.Minute}
	},
	ReadBufferSize:               64 << 10,
	ReadTimeout:                  time.Minute,
	WriteTimeout:                 time.Minute,
	MaxRequestBodySize:           streamFrom,
	StreamRequestBody:            true,
	ReduceMemoryUsage:            true,
	DisablePreParseMultipartForm: true,
	NoDefaultServerHeader:        true,
	NoDefaultContentType:         true,
}
