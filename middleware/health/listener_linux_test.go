package health_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"

	"github.com/spillgate/spillgate/middleware/health"
)

// A process that has run out of file descriptors when it is told to leave has the longest queue of all. Each that is served makes room for another.
func TestStopListeningTakesOverTheQueueWithoutFileDescriptors(t *testing.T) {
	onEachNetwork(t, func(t *testing.T, listen func() net.Listener) {
		inner := listen()
		l, stop := health.NewListener(inner)
		clients := greet(t, inner, 20)
		exhaust(t, 3)

		var served sync.WaitGroup
		served.Go(func() { // as net/http does
			for {
				c, err := l.Accept()
				if errors.Is(err, syscall.EMFILE) {
					continue
				}
				if err != nil {
					return
				}
				served.Go(func() {
					defer c.Close()
					b := make([]byte, 5) // io.Copy would take file descriptors of its own
					io.ReadFull(c, b)
					c.Write(b)
				})
			}
		})
		stop()
		for i, c := range clients {
			b := make([]byte, 5)
			if _, err := io.ReadFull(c, b); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		}
		l.Close()
		served.Wait()
	})
}

// exhaust leaves the process no more than room file descriptors until the test ends.
func exhaust(t *testing.T, room int) {
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	few := old
	few.Cur = min(few.Cur, 256)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	var taken []int
	t.Cleanup(func() {
		for _, fd := range taken {
			syscall.Close(fd)
		}
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)
	})
	for {
		fd, err := syscall.Dup(0)
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	for _, fd := range taken[len(taken)-room:] {
		syscall.Close(fd)
	}
	taken = taken[:len(taken)-room]
}
