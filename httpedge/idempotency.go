package httpedge

// maxKeyBytes is the longest idempotency key.
const maxKeyBytes = 255

// validKey says whether p may be an idempotency key: 1 to 255 visible ASCII characters.
func validKey(p []byte) bool {
	for _, c := range p {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(p) > 0 && len(p) <= maxKeyBytes
}
