package smtpcodec

const upperHex = "0123456789ABCDEF"

// AppendXtext appends p encoded as xtext (RFC 3461 §4): printable ASCII but "+" and "=" as it is, any other byte as "+" and two
// upper-case hexadecimal digits.
func AppendXtext(dst, p []byte) []byte {
	for _, c := range p {
		if isXchar(c) {
			dst = append(dst, c)
		} else {
			dst = append(dst, '+', upperHex[c>>4], upperHex[c&15])
		}
	}
	return dst
}

// ParseXtext appends the bytes that xtext in stands for to dst. When in is not xtext, ok is false and out is what came before the
// fault. It is strict: lower-case digits, "=", blanks and 8-bit bytes are faults. The decoded bytes may be any, controls included;
// whoever uses them must look.
func ParseXtext(dst, in []byte) (out []byte, ok bool) {
	for len(in) > 0 {
		c, size := xtextByte(in)
		if size == 0 {
			return dst, false
		}
		dst = append(dst, c)
		in = in[size:]
	}
	return dst, true
}

// xtextByte decodes the first byte of in, which is not empty; size is 0 when it is not xtext.
func xtextByte(in []byte) (c byte, size int) {
	if isXchar(in[0]) {
		return in[0], 1
	}
	if in[0] != '+' || len(in) < 3 {
		return 0, 0
	}
	hi, lo := hexDigit(in[1]), hexDigit(in[2])
	if hi < 0 || lo < 0 {
		return 0, 0
	}
	return byte(hi<<4 | lo), 3
}

func isXchar(c byte) bool { return c > ' ' && c < 0x7F && c != '+' && c != '=' }

// hexDigit takes upper-case digits only (RFC 3461 §4, RFC 6533 §3); -1 is for anything else.
func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
