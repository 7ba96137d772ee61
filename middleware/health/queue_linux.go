package health

import (
	"errors"
	"math"
	"net"
	"os"
	"syscall"
	"time"
)

// handshake is how long a client may take to answer a SYN-ACK.
const handshake = 100 * time.Millisecond

// scarcity is how long those that wait to be accepted may wait for a file descriptor.
const scarcity = 500 * time.Millisecond

// takeQueue stops l listening and hands over the connections that were waiting to
// be accepted. The system completes connections in our name, and a client may
// send its request on one before we know of it; closing the socket resets them.
// So new ones are refused first, then those whose handshake was under way get
// time, and only when all are taken out does the socket go. Where file descriptors
// run out, the rest comes as those that were handed over are served.
func takeQueue(l net.Listener, hand func(net.Conn)) {
	refuse := refuseNew
	switch l.(type) {
	case *net.TCPListener:
	case *net.UnixListener:
		refuse = stopListening // a unix socket keeps what is in its queue
	default:
		return
	}
	raw, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		if refuse(int(fd)) == nil {
			time.Sleep(handshake) // l's server goes on accepting
		}
		acceptAll(int(fd), hand)
		stopListening(int(fd))
	})
}

// acceptAll hands over the connections that can be accepted without waiting for more of them.
func acceptAll(fd int, hand func(net.Conn)) {
	over := time.Now().Add(scarcity)
	again := func(err error) bool {
		scarce := errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
		if !scarce || time.Now().After(over) {
			return false
		}
		time.Sleep(5 * time.Millisecond)
		return true
	}
	for {
		c, _, err := syscall.Accept4(fd, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		switch {
		case err == nil:
			f := os.NewFile(uintptr(c), "")
			conn, err := net.FileConn(f) // with a file descriptor of its own
			for again(err) {
				conn, err = net.FileConn(f)
			}
			f.Close()
			if err == nil {
				hand(conn)
			}
		case err == syscall.EINTR, err == syscall.ECONNABORTED, again(err):
		default:
			return
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
