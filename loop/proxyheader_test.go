package loop

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
)

// v2 makes a PROXY header of version 2.
func v2(command, family byte, rest ...[]byte) string {
	body := bytes.Join(rest, nil)
	h := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), command, family)
	h = binary.BigEndian.AppendUint16(h, uint16(len(body)))
	return string(append(h, body...))
}

func tlv(kind byte, value string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value))), value...)
}

var (
	inet4, _ = hex.DecodeString("c0000209c6336401115c0019")
	inet6, _ = hex.DecodeString("20010db800000000000000000000000920010db8000000000000000000000001115c0019")
)
