package health

import (
	"math"
	"net"
	"os"
	"syscall"
	"time"
)

// handshake is how long a client may take to answer a SYN-ACK.
const handshake = 100 * time.Millisecond

// takeQueue stops l listening and returns the connections that were waiting to
// be accepted. The system completes connections in our name, and a client may
// send its request on one before we know of it; closing the socket resets them.
// So new ones are refused first, then those whose handshake was under way get
// time, and only when all are taken out does the socket go.
func takeQueue(l net.Listener) (queued []net.Conn) {
	refuse := refuseNew
	switch l.(type) {
	case *net.TCPListener:
	case *net.UnixListener:
		refuse = stopListening // a unix socket keeps what is in its queue
	default:
		return nil
	}
	raw, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil
	}
	var fds []int
	raw.Control(func(fd uintptr) {
		if refuse(int(fd)) == nil {
			time.Sleep(handshake) // l's server goes on accepting
		}
		fds = acceptAll(int(fd))
		stopListening(int(fd))
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

// acceptAll returns the connections that can be accepted without waiting.
func acceptAll(fd int) (conns []int) {
	for {
		c, _, err := syscall.Accept4(fd, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		switch err {
		case nil:
			conns = append(conns, c)
		case syscall.EINTR, syscall.ECONNABORTED:
		default:
			return conns
		}
	}
}

// refuseNew makes the system refuse new connections to a listening socket, as if
// nobody listened, and leaves it those that have been accepted in its name or are
// under way: it ties the socket to a network interface that does not exist. A
// filter of packets would drop them without a word, and is not for the Multipath
// TCP that Go listens for. It needs Linux 5.7, or CAP_NET_RAW.
func refuseNew(fd int) error {
	const bindToIfindex = 62 // SO_BINDTOIFINDEX, the same on all systems that Go knows
	return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, bindToIfindex, math.MaxInt32)
}

func stopListening(fd int) error { return syscall.Shutdown(fd, syscall.SHUT_RD) }
