package auth

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/xdg-go/stringprep"
)

const (
	// MinIterations is the least that RFC 7677 §4 allows.
	MinIterations = 4096
	// DefaultIterations costs a core some tens of milliseconds: for the client at each SCRAM login, for us at each PLAIN login, where it
	// bounds how many guesses a core can be made to check. It is twenty-five times the RFC's least. Who fears a stolen file more than
	// slow phones takes argon2id, or more iterations.
	DefaultIterations = 100_000
	// MaxIterations bounds what a line of the users file can cost us.
	MaxIterations = 10_000_000
)

// SCRAMKeys are what a server needs for SCRAM-SHA-256 (RFC 5802 §3). A thief can act as the server with them, and must guess to act as the user.
type SCRAMKeys struct {
	Iterations int
	Salt       []byte
	StoredKey  [sha256.Size]byte
	ServerKey  [sha256.Size]byte
}

// NewSCRAMKeys derives the keys of a password, which is prepared first.
func NewSCRAMKeys(password string, salt []byte, iterations int) (SCRAMKeys, error) {
	prepared, err := prepare(password)
	if err != nil {
		return SCRAMKeys{}, err
	}
	return deriveSCRAM(prepared, salt, iterations)
}

func deriveSCRAM(prepared string, salt []byte, iterations int) (SCRAMKeys, error) {
	salted, err := pbkdf2.Key(sha256.New, prepared, salt, iterations, sha256.Size)
	if err != nil {
		return SCRAMKeys{}, fmt.Errorf("auth: SCRAM keys: %w", err)
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	return SCRAMKeys{
		Iterations: iterations,
		Salt:       salt,
		StoredKey:  sha256.Sum256(mac("Client Key")),
		ServerKey:  [sha256.Size]byte(mac("Server Key")),
	}, nil
}

// CRAMKeys are the MD5 states after the inner and the outer key block of HMAC (RFC 2195 §2 suggests to keep these, not the password). A thief
// can log in with them by CRAM-MD5.
type CRAMKeys struct {
	Inner, Outer [md5.Size]byte
}

// NewCRAMKeys derives the keys of a password, which is prepared first.
func NewCRAMKeys(password string) (CRAMKeys, error) {
	prepared, err := prepare(password)
	if err != nil {
		return CRAMKeys{}, err
	}
	key := []byte(prepared)
	if len(key) > md5.BlockSize {
		sum := md5.Sum(key)
		key = sum[:]
	}
	state := func(pad byte) (s [md5.Size]byte) {
		var block [md5.BlockSize]byte
		copy(block[:], key)
		for i := range block {
			block[i] ^= pad
		}
		h := md5.New()
		h.Write(block[:])
		saved, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			panic("auth: state of MD5: " + err.Error())
		}
		copy(s[:], saved[len(md5Magic):])
		return s
	}
	return CRAMKeys{Inner: state(0x36), Outer: state(0x5c)}, nil
}

// md5Magic begins the saved state of crypto/md5; then come the chaining value in big-endian words, the unfinished block and the
// length so far. TestCRAMExampleOfRFC2195 fails if that ever changes.
const md5Magic = "md5\x01"

// digest is HMAC-MD5 of the challenge.
func (k *CRAMKeys) digest(challenge []byte) []byte {
	resume := func(state [md5.Size]byte, data []byte) []byte {
		saved := append([]byte(md5Magic), state[:]...)
		saved = append(saved, make([]byte, md5.BlockSize)...)
		saved = binary.BigEndian.AppendUint64(saved, md5.BlockSize)
		h := md5.New()
		if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(saved); err != nil {
			panic("auth: state of MD5: " + err.Error())
		}
		h.Write(data)
		return h.Sum(nil)
	}
	return resume(k.Outer, resume(k.Inner, challenge))
}

// fake is 32 bytes that belong to a name and a use, the same each time, and unknown to everybody.
func (s *Service) fake(use, name string) []byte {
	h := hmac.New(sha256.New, s.fakeKey[:])
	fmt.Fprintf(h, "%s\x00%s", use, name)
	return h.Sum(nil)
}

var errUnprepared = errors.New("auth: the text has characters that SASLprep (RFC 4013) does not allow")

// prepare is SASLprep (RFC 4013) for names and passwords, which must not become empty.
func prepare(s string) (string, error) {
	if isPlainASCII(s) {
		return s, nil
	}
	if !utf8.ValidString(s) {
		return "", errUnprepared
	}
	p, err := stringprep.SASLprep.Prepare(s)
	if err != nil || p == "" {
		return "", errUnprepared // stringprep's error shows a character of the password
	}
	return p, nil
}

func isPlainASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}
