package health_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
)

// onEachNetwork runs a test over TCP and over a unix socket.
func onEachNetwork(t *testing.T, test func(t *testing.T, listen func() net.Listener)) {
	if runtime.GOOS != "linux" {
		t.Skip("only on Linux can the queue be taken over")
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			test(t, func() net.Listener {
				address := "127.0.0.1:0"
				if network == "unix" {
					dir, err := os.MkdirTemp("", "") // that of the test has its name, and a socket's path has few bytes
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { os.RemoveAll(dir) })
					address = filepath.Join(dir, "s")
				}
				l, err := net.Listen(network, address)
				if err != nil {
					t.Fatal(err)
				}
				return l
			})
		})
	}
}

// greet returns n clients of l that have said hello, though nobody has called Accept for them.
func greet(t *testing.T, l net.Listener, n int) (clients []net.Conn) {
	for range n {
		c, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, "hello")
		clients = append(clients, c)
	}
	return clients
}

// What the system has accepted in our name is served, although nobody had called
// Accept for it when listening stopped.
func TestStopListeningTakesOverTheQueue(t *testing.T) {
	onEachNetwork(t, stopListeningTakesOverTheQueue)
}

func stopListeningTakesOverTheQueue(t *testing.T, listen func() net.Listener) {
	inner := listen()
	l, stop := health.NewListener(inner)
	defer time.AfterFunc(10*time.Second, func() { l.Close() }).Stop() // an Accept that nothing comes to
	clients := greet(t, inner, 5)
	stop()
	if c, err := net.Dial(inner.Addr().Network(), inner.Addr().String()); err == nil {
		c.Close()
		t.Error("a connection was accepted after the stop")
	}
	for range clients {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Errorf("read %q, %v", b, err)
		}
		if _, err := io.WriteString(c, "there"); err != nil {
			t.Error(err)
		}
	}
	for _, c := range clients {
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "there" {
			t.Errorf("the client read %q, %v", b, err)
		}
	}
	// A server that is not shut down yet must not see an error.
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	l.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ended with %v", err)
	}
}

// Whoever got a connection while listening stops gets an answer on it, however
// close the two come.
func TestStopListeningResetsNobody(t *testing.T) {
	onEachNetwork(t, stopListeningResetsNobody)
}

func stopListeningResetsNobody(t *testing.T, listen func() net.Listener) {
	for range 20 {
		inner := listen()
		l, stop := health.NewListener(inner)
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
		reached := sync.OnceFunc(func() { close(enough) })
		for range 16 {
			clients.Go(func() {
				defer reached()
				for n := 0; ; n++ {
					if n == 20 {
						reached()
					}
					c, err := net.Dial(inner.Addr().Network(), inner.Addr().String())
					if err != nil {
						return // nobody listens any more
					}
					b := make([]byte, 5)
					_, err = io.WriteString(c, "hello")
					if err == nil {
						_, err = io.ReadFull(c, b)
					}
					c.Close()
					if err != nil {
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
}

// http.Server.Shutdown drops a request that has been read and has not reached its
// handler. A slow ConnState hook, which runs just there, makes that moment long.
func TestRequestOnItsWayToTheHandlerIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, leave := context.WithCancel(t.Context())
		l := listenPipe()
		h := health.New(health.WithDrainWait(time.Second))
		srv := &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }),
			ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateActive {
					time.Sleep(500 * time.Millisecond) // in a synctest bubble
				}
			},
		}
		returned := make(chan error, 1)
		go func() { returned <- h.Serve(ctx, l, srv) }()
		client := &http.Client{Transport: &http.Transport{DialContext: l.dial}}
		leave()
		time.Sleep(800 * time.Millisecond) // in a synctest bubble: 200 ms before the server shuts down
		resp, err := client.Post("http://x/", "text/plain", nil)
		if err != nil {
			t.Fatalf("the request was dropped: %v", err)
		}
		resp.Body.Close()
		if err := <-returned; err != nil {
			t.Error(err)
		}
	})
}

// A connection that never sends anything does not keep the server.
func TestSilentConnectionDoesNotKeepTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, leave := context.WithCancel(t.Context())
		l := listenPipe()
		h := health.New(health.WithDrainWait(time.Second))
		returned := make(chan error, 1)
		go func() { returned <- h.Serve(ctx, l, &http.Server{Handler: http.NotFoundHandler()}) }()
		leave()
		synctest.Wait()
		c, err := l.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		if err := <-returned; err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > 9*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}
