//go:build linux

package main

import (
	"fmt"
	"strings"
)

// message returns message data of exactly size octets, header section included and all lines ended by CRLF, followed
// by the "." CRLF that ends it (not counted: it is no part of the message). Body lines are 76 octets and CRLF, as
// base64 and most mail programs make them; the last one is cut to fit.
func message(size int) ([]byte, error) {
	const header = "Received: from origin.example (origin.example [192.0.2.7])\r\n" +
		"\tby client.example with ESMTPS id 4Q0000000000000\r\n" +
		"\tfor <recipient@bench.example>; Sun, 22 Nov 2026 10:00:00 +0000\r\n" +
		"Date: Sun, 22 Nov 2026 10:00:00 +0000\r\n" +
		"From: Sender <sender@client.example>\r\n" +
		"To: Recipient <recipient@bench.example>\r\n" +
		"Message-ID: <20261122100000.4711@client.example>\r\n" +
		"Subject: a message of a known size\r\n" +
		"MIME-Version: 1.0\r\n" +
		"Content-Type: text/plain; charset=us-ascii\r\n" +
		"\r\n"
	rest := size - len(header)
	if rest < 2 {
		return nil, fmt.Errorf("-size: the header section alone is %d octets", len(header)+2)
	}
	const line = "The quick brown fox jumps over the lazy dog, 0123456789 times a day or more."
	b := strings.Builder{}
	b.WriteString(header)
	for rest > 0 {
		n := min(len(line), rest-2)
		if left := rest - n - 2; left == 1 {
			n-- // a line cannot be shorter than its CRLF
		}
		b.WriteString(line[:n])
		b.WriteString("\r\n")
		rest -= n + 2
	}
	b.WriteString(".\r\n")
	return []byte(b.String()), nil
}
