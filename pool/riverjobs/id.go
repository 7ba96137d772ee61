package riverjobs

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
)

// mint makes and recognises the ids of all engines of a schema, whose key it is. An id is 128 random bits and a code over
// them that only these engines can compute: it tells one that was given out and is forgotten by now from one that never was, and what is no id
// does not get as far as the database.
type mint []byte

const (
	keySize  = 32
	idRandom = 16
	idCode   = 8
)

func (m mint) id() string {
	var b [idRandom + idCode]byte
	rand.Read(b[:idRandom])
	copy(b[idRandom:], m.code(b[:idRandom]))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (m mint) code(random []byte) []byte {
	h := hmac.New(sha256.New, m)
	h.Write(random)
	return h.Sum(nil)[:idCode]
}

// gaveOut reports whether id is one of this mint's.
func (m mint) gaveOut(id string) bool {
	var b [idRandom + idCode]byte
	if len(id) != base64.RawURLEncoding.EncodedLen(len(b)) {
		return false
	}
	if _, err := base64.RawURLEncoding.Decode(b[:], []byte(id)); err != nil {
		return false
	}
	return hmac.Equal(b[idRandom:], m.code(b[:idRandom]))
}

// lock is the number of an advisory lock, of which a database has one space for all its schemas.
func (m mint) lock(parts ...[]byte) int64 {
	h := hmac.New(sha256.New, m)
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return int64(binary.BigEndian.Uint64(h.Sum(nil)))
}
