package jobs

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
)

// mint makes and recognises the ids of one engine. An id is 128 random bits and a code over
// them that only the engine can compute: it tells one that was given out and is
// forgotten by now from one that never was, without remembering either.
type mint struct{ key [32]byte }

const (
	idRandom = 16
	idCode   = 8
)

func newMint() *mint {
	m := new(mint)
	rand.Read(m.key[:])
	return m
}

func (m *mint) id() string {
	var b [idRandom + idCode]byte
	rand.Read(b[:idRandom])
	copy(b[idRandom:], m.code(b[:idRandom]))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (m *mint) code(random []byte) []byte {
	h := hmac.New(sha256.New, m.key[:])
	h.Write(random)
	return h.Sum(nil)[:idCode]
}

// gaveOut reports whether id is one of this mint's.
func (m *mint) gaveOut(id string) bool {
	var b [idRandom + idCode]byte
	if len(id) != base64.RawURLEncoding.EncodedLen(len(b)) {
		return false
	}
	if _, err := base64.RawURLEncoding.Decode(b[:], []byte(id)); err != nil {
		return false
	}
	return hmac.Equal(b[idRandom:], m.code(b[:idRandom]))
}
