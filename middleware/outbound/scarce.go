//go:build !plan9

package outbound

import (
	"errors"
	"net"
	"syscall"
)

// scarce reports whether this process, or all of its system, had no file descriptor or no port left for a connection.
func scarce(err error) bool {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return true
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		// Of IPv6 it may as well say that there is no way to the host: where a system does without, nobody has an address for it.
		op, ok := errors.AsType[*net.OpError](err)
		if !ok {
			return false
		}
		to, ok := op.Addr.(*net.TCPAddr)
		return ok && to.IP.To4() != nil
	}
	return false
}
