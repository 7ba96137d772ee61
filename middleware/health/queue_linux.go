package health

import (
	"net"
	"os"
	"syscall"
)

// takeQueue stops l listening and returns the connections that were waiting to
// be accepted. The system completes connections in our name, and a client may
// send its request on one before we know of it; closing the socket resets them.
// So they are taken out first, and the socket stops in the next instant.
func takeQueue(l net.Listener) (queued []net.Conn) {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	var fds []int
	raw.Control(func(fd uintptr) {
		for {
			c, _, err := syscall.Accept4(int(fd), syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
			if err == syscall.EINTR || err == syscall.ECONNABORTED {
				continue
			}
			if err != nil {
				break
			}
			fds = append(fds, c)
		}
		syscall.Shutdown(int(fd), syscall.SHUT_RD) // ends listening
	})
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err == nil {
			queued = append(queued, c)
		}
	}
	return queued
}
