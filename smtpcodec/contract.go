// Package smtpcodec (stub contract: bodies are being written)
package smtpcodec

// Verb is a command word. The zero value is a word that is not known.
type Verb uint8

const (
	VerbUnknown Verb = iota
	VerbHELO
	VerbEHLO
	VerbLHLO
	VerbMAIL
	VerbRCPT
	VerbDATA
	VerbBDAT
	VerbRSET
	VerbNOOP
	VerbVRFY
	VerbEXPN
	VerbHELP
	VerbQUIT
	VerbSTARTTLS
	VerbAUTH
	VerbHTTP // GET, POST, PUT, HEAD, OPTIONS, DELETE, CONNECT, PATCH, TRACE, PRI: another protocol altogether
	NumVerbs
)

// LineStatus says what ScanLine found.
type LineStatus uint8

const (
	LineMore    LineStatus = iota // no line end yet, and fewer than max bytes: come back with more
	LineOK                        // a whole line
	LineTooLong                   // max bytes without a line end: skip with SkipLine, then refuse
	LineBare                      // a whole line (up to CRLF) with a bare CR or LF inside
)

// ScanLine finds the first line of in. line excludes CRLF, n includes it (0 with LineMore and LineTooLong). max counts CRLF.
// Only CRLF ends a line. bareLF true makes a bare LF end a line as well (smtp.line_endings = "normalize").
func ScanLine(in []byte, max int, bareLF bool) (line []byte, n int, st LineStatus) { panic("stub") }

// SkipLine is for the rest of a line that was too long: it gives how many bytes of in belong to it and whether its CRLF was among
// them. lastCR carries "the byte before in was CR" between calls.
func SkipLine(in []byte, lastCR *bool) (n int, done bool) { panic("stub") }

// ParseCommand splits a line into its verb and the argument: trailing white space cut, leading white space of the argument cut.
func ParseCommand(line []byte) (v Verb, arg []byte) { panic("stub") }

// Path is a reverse- or forward-path, borrowed from the line it was parsed from.
type Path struct {
	Mailbox []byte // as sent, between the angle brackets, source route removed; empty for <>
	Local   []byte // local part as sent, quotes included
	Domain  []byte // domain or address literal with its brackets; empty for <> and <postmaster>
}

// SyntaxError is why an argument was refused; the session maps it to a reply.
type SyntaxError uint8

const (
	ErrNone      SyntaxError = iota
	ErrSyntax                // malformed: 501 5.5.4
	ErrBadSender             // no valid mailbox: 501 5.1.7
	ErrBadRcpt               // no valid mailbox: 501 5.1.3
	ErrUTF8                  // 8-bit in a path without SMTPUTF8: 553 5.6.7
	ErrUnknown               // unknown parameter: 555 5.5.4
	ErrDuplicate             // a parameter twice: 501 5.5.4
)

// BodyType, Ret and Notify mirror RFC 6152/3030, RFC 3461 §4.3 and §4.1; numbers equal those of package envelope.
type BodyType uint8

const (
	BodyUnstated BodyType = iota
	Body7Bit
	Body8BitMIME
	BodyBinaryMIME
)

// Offer is the set of parameters that the session accepts now (those of the extensions it offered).
type Offer uint16

const (
	OfferSize Offer = 1 << iota
	Offer8BitMIME
	OfferBinaryMIME
	OfferSMTPUTF8
	OfferDSN
	OfferAuth
)

// MailArgs is a parsed "FROM:<...> params", borrowed from the line.
type MailArgs struct {
	Path     Path
	Size     int64 // -1 when not given
	Body     BodyType
	Ret      uint8  // 0 none, 1 FULL, 2 HDRS
	EnvID    []byte // as sent, xtext
	SMTPUTF8 bool
	Auth     []byte // AUTH= value as sent, nil when not given
	BadParam []byte // the parameter that ErrUnknown, ErrDuplicate or ErrSyntax is about
}

// RcptArgs is a parsed "TO:<...> params", borrowed from the line.
type RcptArgs struct {
	Path     Path
	Notify   uint8  // envelope.Notify bits: NEVER 1, SUCCESS 2, FAILURE 4, DELAY 8
	ORcpt    []byte // as sent
	BadParam []byte
}

func ParseMail(arg []byte, offer Offer) (a MailArgs, err SyntaxError)            { panic("stub") }
func ParseRcpt(arg []byte, offer Offer, utf8 bool) (a RcptArgs, err SyntaxError) { panic("stub") }
func ParseBdat(arg []byte) (size int64, last bool, err SyntaxError)              { panic("stub") }
func ValidHelo(arg []byte) bool                                                  { panic("stub") }

// DataFlags are what a DataScanner saw in the data so far.
type DataFlags uint8

const (
	DataBareLF DataFlags = 1 << iota
	DataBareCR
	DataNUL
	DataLongLine
	Data8Bit
)

// DataScanner removes dot-stuffing and finds the end of mail data in one fused pass.
type DataScanner struct {
	// Normalize turns bare LF into CRLF in the output; it never ends the data.
	Normalize bool
	state     uint8
	flags     DataFlags
	line      int
	longest   int
	nuls      int64
	in        int64
}

// Scan borrows in and writes the decoded bytes to dst[:n]. consumed < len(in) with done false means that dst is full (the caller
// gives a new dst and the rest of in). The output of one call is at most len(in)+2 bytes.
func (d *DataScanner) Scan(dst, in []byte) (n, consumed int, done bool) { panic("stub") }

// ScanChunk is Scan for BDAT: no dot-stuffing, no terminator, only copy and checks (and Normalize). consumed as in Scan.
func (d *DataScanner) ScanChunk(dst, in []byte) (n, consumed int) { panic("stub") }

// EndChunks is called after the last chunk: a CR at the very end was bare.
func (d *DataScanner) EndChunks(dst []byte) (n int) { panic("stub") }

func (d *DataScanner) Flags() DataFlags { return d.flags }
func (d *DataScanner) NULs() int64      { return d.nuls }
func (d *DataScanner) LongestLine() int { return d.longest } // bytes, CRLF excluded
func (d *DataScanner) Reset()           { *d = DataScanner{Normalize: d.Normalize} }

// EnhancedCode is an RFC 3463 status code; the class is that of the reply code. The zero value means none.
type EnhancedCode struct{ Class, Subject, Detail uint16 }

// Reply is one SMTP reply (RFC 5321 §4.2).
type Reply struct {
	Code     uint16
	Enhanced EnhancedCode
	Text     string // lines separated by \n
}

// AppendTo appends the reply as sent: every line with the code and, when set, the enhanced code, CRLF ended; bytes that may not
// stand in a reply (controls, 8-bit) become '?'; no line exceeds 512 bytes.
func (r *Reply) AppendTo(dst []byte) []byte { panic("stub") }

// ParseReply reads one whole reply from in: n bytes of it, 0 when more are needed.
func ParseReply(in []byte) (r Reply, n int, err error) { panic("stub") }

func AppendXtext(dst, p []byte) []byte                { panic("stub") }
func ParseXtext(dst, in []byte) (out []byte, ok bool) { panic("stub") }
