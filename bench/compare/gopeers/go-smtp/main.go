// Go-smtp is the smallest server that github.com/emersion/go-smtp makes: it takes every message and throws it away. With TLS_DIR it
// offers STARTTLS, with DEBUG_ADDRESS it serves profiles.
package main

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	_ "net/http/pprof"
	"os"

	"github.com/emersion/go-smtp"
)

type discard struct{}

func (discard) NewSession(*smtp.Conn) (smtp.Session, error)    { return discard{}, nil }
func (discard) Mail(from string, opts *smtp.MailOptions) error { return nil }
func (discard) Rcpt(to string, opts *smtp.RcptOptions) error   { return nil }
func (discard) Reset()                                         {}
func (discard) Logout() error                                  { return nil }

func (discard) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: go-smtp ADDRESS")
	}
	s := smtp.NewServer(discard{})
	s.Addr = os.Args[1]
	s.Domain = "mx.bench.example"
	if dir := os.Getenv("TLS_DIR"); dir != "" {
		pair, err := tls.LoadX509KeyPair(dir+"/cert.pem", dir+"/key.pem")
		if err != nil {
			log.Fatal(err)
		}
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}
	}
	if address := os.Getenv("DEBUG_ADDRESS"); address != "" {
		go func() { log.Fatal(http.ListenAndServe(address, nil)) }()
	}
	log.Fatal(s.ListenAndServe())
}
