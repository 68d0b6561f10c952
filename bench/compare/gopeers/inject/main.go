// Inject takes messages by HTTP as one writes it with net/http on an afternoon: it reads all of a request, appends it to a file and answers when the
// file is synced. It is the twin that fastedge is compared with by bench/http.
//
//	inject [-group] ADDRESS FILE
//
// POST / takes message/rfc822 with the envelope in header fields, in base64; POST /v1/messages takes JSON with the message as a string, as KumoMTA's
// injection does: what a peer of that kind does is decode it, and keep the envelope and the message. Without -group each request has a sync of its own,
// under a lock; with -group those that came during a sync share the next one.
package main

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// file is what messages are appended to. It grows, so that each sync writes the new size, too.
type file struct {
	group bool

	mu      sync.Mutex
	f       *os.File
	waiting []byte
	next    *commit
	running bool
}

// commit is one sync that requests share.
type commit struct {
	done chan struct{}
	err  error
}

// keep returns when record is on disk.
func (s *file) keep(record []byte) error {
	s.mu.Lock()
	if !s.group {
		defer s.mu.Unlock()
		return s.write(record)
	}
	s.waiting = append(s.waiting, record...)
	if s.next == nil {
		s.next = &commit{done: make(chan struct{})}
	}
	mine := s.next
	if !s.running {
		s.running = true
		go s.run()
	}
	s.mu.Unlock()
	<-mine.done
	return mine.err
}

// run commits until nothing waits.
func (s *file) run() {
	var batch []byte
	for {
		s.mu.Lock()
		if s.next == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		now := s.next
		s.next = nil
		batch, s.waiting = s.waiting, batch[:0]
		s.mu.Unlock()
		now.err = s.write(batch)
		close(now.done)
	}
}

func (s *file) write(p []byte) error {
	if _, err := s.f.Write(p); err != nil {
		return err
	}
	return syscall.Fdatasync(int(s.f.Fd()))
}

// record is the envelope and the message behind their lengths.
func record(from string, to []string, message []byte) []byte {
	var b []byte
	for _, part := range []string{from, strings.Join(to, ",")} {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	b = binary.AppendUvarint(b, uint64(len(message)))
	return append(b, message...)
}

func main() {
	group := flag.Bool("group", false, "requests share syncs")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("usage: inject [-group] ADDRESS FILE")
	}
	f, err := os.OpenFile(flag.Arg(1), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	s := &file{group: *group, f: f}
	http.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		from, bad := base64.StdEncoding.DecodeString(r.Header.Get("X-Envelope-Sender"))
		var to []string
		for _, one := range r.Header.Values("X-Envelope-Recipient") {
			address, err := base64.StdEncoding.DecodeString(one)
			if err != nil {
				bad = err
			}
			to = append(to, string(address))
		}
		message, err := io.ReadAll(r.Body)
		if bad != nil || err != nil || len(to) == 0 {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		if err := s.keep(record(string(from), to, message)); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("X-Smtp-Reply", `250; message="2.6.0 Message accepted for delivery"`)
	})
	http.HandleFunc("POST /v1/messages", func(w http.ResponseWriter, r *http.Request) {
		var m struct {
			From string   `json:"mail_from"`
			To   []string `json:"rcpt_to"`
			Raw  string   `json:"raw"`
		}
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil || len(m.To) == 0 {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		if err := s.keep(record(m.From, m.To, []byte(m.Raw))); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"success_count": len(m.To), "fail_count": 0, "failed_recipients": []string{}, "errors": []string{}})
	})
	server := http.Server{Addr: flag.Arg(0), ReadTimeout: time.Minute, WriteTimeout: time.Minute}
	log.Fatal(server.ListenAndServe())
}
