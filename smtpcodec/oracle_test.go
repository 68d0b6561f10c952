package smtpcodec

// byteScanner is DataScanner written one byte at a time: plain enough to be checked by eye against RFC 5321 §4.1.1.4 and §4.5.2, and
// the oracle of the fast one for inputs too long for decodeByLines. It is also the baseline of BenchmarkDataScan.
type byteScanner struct {
	normalize bool
	chunks    bool // BDAT: no dot-stuffing, no end
	state     dataState
	flags     DataFlags
	line      int
	longest   int
	nuls      int64
}

func (d *byteScanner) scan(dst, in []byte) (out []byte, consumed int, done bool) {
	for i, c := range in {
		switch c {
		case 0:
			d.nuls++
			d.flags |= DataNUL
		case '\n':
			switch d.state {
			case dataDotCR:
				d.state = dataLineStart
				return dst, i + 1, true
			case dataInLineCR:
				dst = append(dst, c)
				d.endLine(d.line - 1)
				d.state = dataLineStart
			default:
				d.flags |= DataBareLF
				if d.normalize {
					dst = append(dst, '\r', '\n')
					d.endLine(d.line)
				} else {
					dst = append(dst, c)
					d.line++
				}
				d.state = dataInLine
			}
			continue
		}
		if d.state == dataDotCR {
			dst = append(dst, '\r') // was held back
			d.line++
		}
		if d.state == dataDotCR || d.state == dataInLineCR {
			d.flags |= DataBareCR
			d.state = dataInLine
		}
		switch {
		case c == '.' && d.state == dataLineStart && !d.chunks:
			d.state = dataDot
		case c == '\r' && d.state == dataDot:
			d.state = dataDotCR
		case c == '\r':
			dst = append(dst, c)
			d.line++
			d.state = dataInLineCR
		default:
			dst = append(dst, c)
			d.line++
			d.state = dataInLine
		}
	}
	return dst, len(in), false
}

func (d *byteScanner) endLine(length int) {
	d.longest = max(d.longest, length)
	d.line = 0
}

// result is what DataScanner's methods say after the same input.
func (d *byteScanner) result() (flags DataFlags, nuls int64, longest int) {
	longest = d.line
	if d.state == dataInLineCR {
		longest--
	}
	longest = max(longest, d.longest)
	if longest > MaxTextLineBytes {
		d.flags |= DataLongLine
	}
	return d.flags, d.nuls, longest
}
