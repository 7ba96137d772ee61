package riverjobs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/spillgate/spillgate/pool/internal/remote"
)

// lockOf is the number of an advisory lock, of which a database has one space for all its schemas.
func lockOf(m remote.Mint, parts ...[]byte) int64 {
	h := hmac.New(sha256.New, []byte(m))
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return int64(binary.BigEndian.Uint64(h.Sum(nil)))
}
