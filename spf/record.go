package spf

type record struct{}

// NewTXT takes ownership of a TXT record set, each element the joined character-strings of one record, and parses the SPF record in it.
func NewTXT(strings []string) *TXT { return &TXT{Strings: strings} }
