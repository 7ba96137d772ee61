package outbound

import (
	"errors"
	"syscall"
)

// scarce reports whether this process had no file descriptor left for a connection. Plan 9 has no number for other wants.
func scarce(err error) bool { return errors.Is(err, syscall.EMFILE) }
