package health

import "net"

// NewListener returns a listener and what stops it.
func NewListener(l net.Listener) (net.Listener, func()) {
	wrapped := newListener(l)
	return wrapped, wrapped.stop
}
