package health_test

import (
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
)

// Whoever got a connection while listening stops gets an answer on it, however
// close the two come.
func TestStopListeningResetsNobody(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only on Linux can the queue be taken over")
	}
	var connected, answered atomic.Int64
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, stop := health.NewListener(tcp)
		var served sync.WaitGroup
		served.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				served.Go(func() {
					defer c.Close()
					io.CopyN(c, c, 5)
				})
			}
		})
		var clients sync.WaitGroup
		enough := make(chan struct{})
		var once sync.Once
		for range 16 {
			clients.Go(func() {
				for n := 0; ; n++ {
					if n == 20 {
						once.Do(func() { close(enough) })
					}
					c, err := net.DialTimeout("tcp", tcp.Addr().String(), 50*time.Millisecond)
					if err != nil {
						return
					}
					connected.Add(1)
					b := make([]byte, 5)
					_, err = io.WriteString(c, "hello")
					if err == nil {
						_, err = io.ReadFull(c, b)
					}
					c.Close()
					if err == nil {
						answered.Add(1)
					} else {
						t.Errorf("after %d connections: %v", n, err)
					}
				}
			})
		}
		<-enough
		stop()
		clients.Wait()
		l.Close()
		served.Wait()
	}
	t.Logf("%d connections, %d answered", connected.Load(), answered.Load())
}
