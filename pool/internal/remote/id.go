package remote

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
)

// Mint makes and recognises the ids of all engines that have the same jobs, whose key it is. An id is 128 random bits and a code over
// them that only these engines can compute: it tells one that was given out and is forgotten by now from one that never was, and what is no id
// does not get as far as the server.
type Mint string

const (
	keySize  = 32
	idRandom = 16
	idCode   = 8
)

// NewMint returns another than any before.
func NewMint() Mint {
	b := make([]byte, keySize)
	rand.Read(b)
	return Mint(b)
}

// ID returns a new id.
func (m Mint) ID() string {
	var b [idRandom + idCode]byte
	rand.Read(b[:idRandom])
	copy(b[idRandom:], m.code(b[:idRandom]))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (m Mint) code(random []byte) []byte {
	h := hmac.New(sha256.New, []byte(m))
	h.Write(random)
	return h.Sum(nil)[:idCode]
}

// GaveOut reports whether id is one of this mint's.
func (m Mint) GaveOut(id string) bool {
	b, ok := DecodeID(id)
	return ok && hmac.Equal(b[idRandom:], m.code(b[:idRandom]))
}

// DecodeID reports whether id may be one of some mint.
func DecodeID(id string) (b [idRandom + idCode]byte, ok bool) {
	if len(id) != base64.RawURLEncoding.EncodedLen(len(b)) {
		return b, false
	}
	_, err := base64.RawURLEncoding.Decode(b[:], []byte(id))
	return b, err == nil
}
