package smtpcodec

import "bytes"

// MaxTextLineBytes is the longest line of mail data that RFC 5321 §4.5.3.1.6 allows, CRLF and the dot of dot-stuffing excluded.
// Longer lines are kept and flagged with DataLongLine.
const MaxTextLineBytes = 998

// DataFlags are what a DataScanner saw in the data so far. None of them stops the scanner: an error inside mail data is reported
// after its real end, because stopping early would turn the rest into commands. There is no flag for bytes over 127: nobody asks for
// it, and looking for them costs 11 % of BenchmarkDataScan.
type DataFlags uint8

const (
	DataBareLF   DataFlags = 1 << iota // LF without CR before it (RFC 5321 §2.3.8)
	DataBareCR                         // CR without LF after it (RFC 5321 §2.3.8)
	DataNUL                            // RFC 5321 §4.1.1.4 advises against controls, RFC 5322 §4 no longer allows this one
	DataLongLine                       // a line over MaxTextLineBytes
)

// dataState says what has just been read.
type dataState uint8

const (
	dataLineStart dataState = iota // CRLF, or nothing yet
	dataDot                        // CRLF "."; the dot is held back: stuffing, or the end
	dataDotCR                      // CRLF "." CR; the CR is held back too: it may be the end
	dataInLine                     // a byte of a line that was not CR
	dataInLineCR                   // CR inside a line
)

// DataScanner removes dot-stuffing (RFC 5321 §4.5.2) and finds the end of mail data (RFC 5321 §4.1.1.4) in one fused pass, and
// notes what the data should not hold. The zero value is ready for the start of the data, which counts as standing behind a CRLF.
//
// The five bytes CRLF "." CRLF are the only end and a dot is removed only behind CRLF, with Normalize too: everything else that
// looks like an end (LF.LF, LF.CRLF, CRLF.LF, CR.CR, ...) is data. This is what stops SMTP smuggling, because no next hop can see
// an end where this scanner saw none. Bare CR is kept as it is; bare LF is kept, or with Normalize written as CRLF; both are flagged.
type DataScanner struct {
	// Normalize turns bare LF into CRLF in the output; it never ends the data.
	Normalize bool

	state   dataState
	flags   DataFlags
	line    int // output bytes since the last line end, a CR whose LF has not come yet included
	longest int // the longest of the lines that have ended
	nuls    int64
}

// Flags is what was seen so far. A CR at the end of what was scanned is undecided and not counted until the next byte, or EndChunks.
func (d *DataScanner) Flags() DataFlags {
	if d.LongestLine() > MaxTextLineBytes {
		return d.flags | DataLongLine
	}
	return d.flags
}

// NULs is how many NUL bytes the data had so far.
func (d *DataScanner) NULs() int64 { return d.nuls }

// LongestLine is the length in bytes of the longest line so far, the unfinished one included; CRLF and removed dots are not counted.
// A bare LF ends a line only with Normalize.
func (d *DataScanner) LongestLine() int {
	open := d.line
	if d.state == dataInLineCR {
		open--
	}
	return max(d.longest, open)
}

// Reset makes d ready for the next message; Normalize stays.
func (d *DataScanner) Reset() { *d = DataScanner{Normalize: d.Normalize} }

// Scan borrows in and writes the decoded bytes to dst[:n]. dst and in must not overlap. With done, consumed stands just behind the
// end of the data and what follows in in is commands. consumed < len(in) without done means that dst is full, or that one byte is
// left and the next input needs two: the caller comes back with a new dst and the rest of in. Any dst of 4 bytes or more makes progress.
//
// One call writes at most len(in)+2 bytes, or 2*len(in)+2 with Normalize.
func (d *DataScanner) Scan(dst, in []byte) (n, consumed int, done bool) {
	return d.scan(dst, in, true)
}

// ScanChunk is Scan for the octets of BDAT (RFC 3030 §2), which have no dot-stuffing and no end mark: only copy, checks and
// Normalize. State carries from chunk to chunk, so a CRLF may be cut by a chunk's end. Use Scan or ScanChunk for one message, not both.
func (d *DataScanner) ScanChunk(dst, in []byte) (n, consumed int) {
	n, consumed, _ = d.scan(dst, in, false)
	return n, consumed
}

// EndChunks is called after the last chunk: a CR at the very end was bare. It writes nothing today; dst is for a scanner that holds
// bytes back.
func (d *DataScanner) EndChunks(dst []byte) (n int) {
	if d.state == dataInLineCR {
		d.flags |= DataBareCR
		d.state = dataInLine
	}
	return 0
}

// dataBlock is how much input one turn of scan works on. The turn reads it three times (LF search, CR count, NUL count)
// and copies it; 16 KiB in and 16 KiB out fit a 32 KiB first-level cache. 4 KiB is 3 % slower, 64 KiB no faster. BenchmarkDataScan.
const dataBlock = 16 << 10

func (d *DataScanner) scan(dst, in []byte, stuffed bool) (n, consumed int, done bool) {
	for consumed < len(in) {
		c := in[consumed]
		// In the undecided states c tells what the bytes before it were; unless it belongs to them, it stays for the next turn.
		switch {
		case d.state == dataLineStart && stuffed && c == '.':
			d.state = dataDot
			consumed++
		case d.state == dataDot && c == '\r':
			d.state = dataDotCR
			consumed++
		case d.state == dataDot: // RFC 5321 §4.5.2: the dot was stuffing, it is gone
			d.state = dataInLine
		case d.state == dataDotCR && c == '\n': // RFC 5321 §4.1.1.4: the end
			d.state = dataLineStart
			return n, consumed + 1, true
		case d.state == dataDotCR: // a bare CR behind stuffing
			if n == len(dst) {
				return n, consumed, false
			}
			dst[n] = '\r'
			n++
			d.line = 1
			d.flags |= DataBareCR
			d.state = dataInLine
		case d.state == dataInLineCR && c == '\n':
			if n == len(dst) {
				return n, consumed, false
			}
			dst[n] = '\n'
			n++
			consumed++
			d.longest = max(d.longest, d.line-1)
			d.line = 0
			d.state = dataLineStart
		case d.state == dataInLineCR:
			d.flags |= DataBareCR
			d.state = dataInLine
		default:
			w, used, end := d.scanBlock(dst[n:], in[consumed:], stuffed)
			n += w
			consumed += used
			if end || used == 0 {
				return n, consumed, end
			}
		}
	}
	return n, consumed, false
}

// scanBlock is the fast path: it takes up to dataBlock bytes of in, beginning inside a line or at the start of one that has no
// dot to remove. used is 0 only when dst has no room.
//
// Bytes are copied in runs that end only where something is removed or added, not line by line. Bare CRs are not searched for: there
// is one exactly when the block has more CRs than CRLFs.
func (d *DataScanner) scanBlock(dst, in []byte, stuffed bool) (n, used int, end bool) {
	b := in[:min(len(in), len(dst), dataBlock)]
	if len(b) == 0 {
		return 0, 0, false
	}
	var (
		room    = len(dst) - len(b) // for the CRs that Normalize adds
		copied  = 0                 // b[:copied] is in dst, or was removed
		start   = -d.line           // where the output's line began, counted in b
		crlfs   = 0                 // line ends in b, that of the terminator too
		pending = 0                 // 1 when b ends with a CR that is undecided
		longest = d.longest
		state   = dataInLine
	)
lines:
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			break
		}
		i += at
		at = i + 1
		if i == 0 || b[i-1] != '\r' {
			if d.Normalize {
				if room > 0 {
					room--
				} else if b = b[:len(b)-1]; i == len(b) { // the added CR pushes the last byte of b out, which is this LF
					break
				}
				n += copy(dst[n:], b[copied:i])
				dst[n] = '\r'
				n++
				copied = i
				longest = max(longest, i-start)
				start = at
			}
			d.flags |= DataBareLF
			continue
		}
		crlfs++
		longest = max(longest, i-1-start)
		start = at
		if !stuffed || at == len(b) || b[at] != '.' {
			continue
		}
		n += copy(dst[n:], b[copied:at])
		copied = at + 1 // the dot goes in any case
		start = copied
		switch rest := b[copied:]; {
		case len(rest) == 0:
			state = dataDot
		case rest[0] != '\r': // RFC 5321 §4.5.2
			at = copied
			continue
		case len(rest) == 1:
			state, pending = dataDotCR, 1
		case rest[1] != '\n': // a bare CR behind stuffing
			at = copied
			continue
		default: // RFC 5321 §4.1.1.4
			b = b[:copied+2]
			crlfs++
			state, end = dataLineStart, true
		}
		copied, start = len(b), len(b)
		break lines
	}
	if len(b) == 0 {
		return 0, 0, false
	}
	if state == dataInLine { // b ended where in or dst did: its last bytes say what comes next
		n += copy(dst[n:], b[copied:])
		switch k := len(b); {
		case b[k-1] == '\r':
			state, pending = dataInLineCR, 1
		case k > 1 && b[k-1] == '\n' && b[k-2] == '\r':
			state = dataLineStart
		}
	}
	d.state, d.line, d.longest = state, len(b)-start, longest
	if bytes.Count(b, cr) != crlfs+pending {
		d.flags |= DataBareCR
	}
	if k := bytes.Count(b, nul); k > 0 {
		d.nuls += int64(k)
		d.flags |= DataNUL
	}
	return n, len(b), end
}

var cr, nul = []byte{'\r'}, []byte{0}
