//go:build !linux

package health

import "net"

// takeQueue can do nothing about connections that wait to be accepted: closing
// the listener resets them.
func takeQueue(net.Listener, func(net.Conn)) {}
