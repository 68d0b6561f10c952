// Go-smtp is the smallest server that github.com/emersion/go-smtp makes: it takes every message and throws it away.
package main

import (
	"io"
	"log"
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
	log.Fatal(s.ListenAndServe())
}
