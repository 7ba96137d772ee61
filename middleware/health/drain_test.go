package health_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/middleware/health"
)

// A pipeListener hands out net.Pipe connections, which synctest understands.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func listenPipe() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type shutdownFunc func(context.Context) error

func (f shutdownFunc) Shutdown(ctx context.Context) error { return f(ctx) }

// journal records what happened when, in virtual time since it was made.
type journal struct {
	mu    sync.Mutex
	began time.Time
	lines []string
}

func (j *journal) add(what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf("%v %s", time.Since(j.began), what))
}

func TestDrainOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{began: time.Now()}
		h := health.New(health.WithDrainWait(6 * time.Second))
		l := listenPipe()
		srv := &http.Server{Handler: h.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * time.Second) // in a synctest bubble
		}))}
		served := make(chan error, 1)
		go func() { served <- srv.Serve(l) }()
		client := &http.Client{Transport: &http.Transport{DialContext: l.dial}}
		get := func(path string) (int, bool) {
			resp, err := client.Get("http://x" + path)
			if err != nil {
				return 0, false
			}
			resp.Body.Close()
			return resp.StatusCode, resp.Close
		}

		if status, last := get("/"); status != 200 || last {
			t.Fatalf("before: %d, Connection: close %v", status, last)
		}
		j.began = time.Now()
		drained := make(chan error, 1)
		go func() {
			drained <- h.Drain(t.Context(), srv,
				shutdownFunc(func(context.Context) error { j.add("pool"); return nil }),
				shutdownFunc(func(context.Context) error { j.add("jobs"); return nil }))
		}()
		synctest.Wait()
		if status, _ := get("/readyz"); status != 503 {
			t.Errorf("readyz %d as soon as draining", status)
		}
		if status, last := get("/"); status != 200 || !last { // 0-3 s
			t.Errorf("draining: %d, Connection: close %v; want served, and told to go", status, last)
		}
		time.Sleep(2 * time.Second) // in a synctest bubble
		status, _ := get("/")       // 5-8 s: in flight when the listener closes
		j.add(fmt.Sprint("last request ", status))
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if status, _ := get("/"); status != 0 {
			t.Errorf("served after the drain: %d", status)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		// Shutdown looks for idle connections at growing intervals, so the pools
		// follow the last request by up to half a second.
		if len(j.lines) != 3 || j.lines[0] != "8s last request 200" ||
			!strings.HasSuffix(j.lines[1], "pool") || !strings.HasSuffix(j.lines[2], "jobs") {
			t.Errorf("order: %v", j.lines)
		}
		client.CloseIdleConnections()
	})
}

func TestDrainCutsWhatOutlivesTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New(health.WithDrainWait(0), health.WithShutdownTimeout(4*time.Second))
		l := listenPipe()
		cut := make(chan error, 1)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			cut <- r.Context().Err()
		})}
		go srv.Serve(l)
		tr := &http.Transport{DialContext: l.dial}
		go tr.RoundTrip(httptest.NewRequest("GET", "http://x/", nil))
		synctest.Wait()

		began := time.Now()
		released := errors.New("pool is stuck")
		err := h.Drain(t.Context(), srv,
			shutdownFunc(func(context.Context) error { return released }),
			shutdownFunc(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }))
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, released) {
			t.Errorf("error %v", err)
		}
		// Both the server and the second of the rest ran out of time.
		for _, says := range []string{"health: requests still running after the shutdown timeout were cut: context deadline exceeded", "health: shutting down health_test.shutdownFunc: context deadline exceeded"} {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("error %q does not say %q", err, says)
			}
		}
		if d := time.Since(began); d != 9*time.Second {
			t.Errorf("took %v, want 4 s for the server and 5 s for the rest", d)
		}
		<-cut
		tr.CloseIdleConnections()
	})
}

func TestTimeoutsOfZeroLeaveNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New(health.WithDrainWait(0), health.WithShutdownTimeout(0), health.WithReleaseTimeout(0))
		l := listenPipe()
		cut := make(chan struct{})
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			close(cut)
		})}
		go srv.Serve(l)
		tr := &http.Transport{DialContext: l.dial}
		go tr.RoundTrip(httptest.NewRequest("GET", "http://x/", nil))
		synctest.Wait()

		began, ended := time.Now(), false
		h.Drain(t.Context(), srv, shutdownFunc(func(ctx context.Context) error {
			ended = ctx.Err() != nil
			return nil
		}))
		<-cut
		if d := time.Since(began); d != 0 || !ended {
			t.Errorf("took %v, last called with an ended context: %v", d, ended)
		}
		tr.CloseIdleConnections()
	})
}

func TestDrainHurriesWhenItsContextEnds(t *testing.T) {
	for name, idle := range map[string]time.Duration{"the wait in full": 0, "the wait until nothing arrives": time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := health.New(health.WithDrainWait(time.Hour), health.WithDrainIdle(idle))
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				began, called := time.Now(), false
				h.Drain(ctx, &http.Server{}, shutdownFunc(func(ctx context.Context) error {
					called = ctx.Err() != nil
					return nil
				}))
				if d := time.Since(began); d != time.Second || !called {
					t.Errorf("took %v, last called with an ended context: %v", d, called)
				}
			})
		})
	}
}

// A second drain, as by a handler of a pre-stop hook and then by a signal, waits and releases as the first.
func TestDrainTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New(health.WithDrainWait(2 * time.Second))
		began, released := time.Now(), 0
		for range 2 {
			h.Drain(t.Context(), nil, shutdownFunc(func(context.Context) error { released++; return nil }))
		}
		if d := time.Since(began); d != 4*time.Second || released != 2 {
			t.Errorf("took %v, released %d times", d, released)
		}
	})
}

func TestDrainIdle(t *testing.T) {
	for _, tc := range []struct {
		name  string
		until time.Duration // requests arrive each second until then
		want  time.Duration
	}{
		{"nothing arrives", 0, 3 * time.Second},
		{"traffic ends", 10 * time.Second, 13 * time.Second},
		{"traffic goes on: the wait is the bound", time.Hour, 30 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := health.New(health.WithDrainWait(30*time.Second), health.WithDrainIdle(3*time.Second))
				served := h.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				began := time.Now()
				go func() {
					tick := time.NewTicker(time.Second)
					defer tick.Stop()
					for {
						select {
						case <-ctx.Done():
							return
						case <-tick.C:
							if time.Since(began) <= tc.until {
								probe(served, "GET", "/")
							}
							probe(served, "GET", "/readyz") // probes are not traffic
						}
					}
				}()
				if err := h.Drain(ctx, nil); err != nil {
					t.Error(err)
				}
				if d := time.Since(began); d != tc.want {
					t.Errorf("waited %v, want %v", d, tc.want)
				}
			})
		})
	}
}

// While draining, what a handler sends besides a plain response must arrive as
// it did before.
func TestDrainingServerOverTheWire(t *testing.T) {
	h := health.New(health.WithDrainWait(0))
	h.Drain(t.Context(), nil)
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		io.Copy(c, rw)
	}))
	defer echo.Close()
	to, _ := url.Parse(echo.URL)

	mux := http.NewServeMux()
	mux.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
	mux.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "ok")
	})
	mux.Handle("/upgrade", httputil.NewSingleHostReverseProxy(to))
	srv := httptest.NewUnstartedServer(h.Handler(mux))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	plain := httptest.NewServer(srv.Config.Handler)
	defer plain.Close()

	t.Run("HTTP/1 is told to close", func(t *testing.T) {
		resp, err := plain.Client().Get(plain.URL + "/plain")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if !resp.Close {
			t.Errorf("kept alive: %v", resp.Header)
		}
	})
	t.Run("HTTP/1 is told to close although it offers h2c", func(t *testing.T) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", plain.URL+"/plain", nil)
		req.Header.Set("Connection", "Upgrade, HTTP2-Settings")
		req.Header.Set("Upgrade", "h2c")
		req.Header.Set("HTTP2-Settings", "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA")
		resp, err := plain.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || !resp.Close {
			t.Errorf("%s, kept alive: %v", resp.Status, resp.Header)
		}
	})
	t.Run("HTTP/2 has no such header", func(t *testing.T) {
		resp, err := srv.Client().Get(srv.URL + "/plain")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.ProtoMajor != 2 || resp.Close || resp.Header.Get("Connection") != "" {
			t.Errorf("%s %v", resp.Proto, resp.Header)
		}
		// What reached the wire was cleaned by net/http, which would also close the connection for it.
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/plain", nil)
		r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
		srv.Config.Handler.ServeHTTP(w, r)
		if w.Header().Get("Connection") != "" {
			t.Errorf("the handler set %v", w.Header())
		}
	})
	t.Run("1xx", func(t *testing.T) {
		var hints []int
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hints = append(hints, code); return nil },
		})
		req, _ := http.NewRequestWithContext(ctx, "GET", plain.URL+"/early", nil)
		resp, err := plain.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !slices.Equal(hints, []int{103}) || string(body) != "ok" || !resp.Close {
			t.Errorf("hints %v, body %q, close %v", hints, body, resp.Close)
		}
	})
	t.Run("upgrade through ReverseProxy", func(t *testing.T) {
		c, err := net.Dial("tcp", plain.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Values("Connection"); resp.StatusCode != 101 || !slices.Equal(got, []string{"Upgrade"}) {
			t.Fatalf("%s, Connection %q", resp.Status, got)
		}
		io.WriteString(c, "hello")
		buf := make([]byte, 5)
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != "hello" {
			t.Errorf("echo %q, %v", buf, err)
		}
	})
}

// Clients that keep connections alive and send without a pause see no error
// while the server leaves, as long as they go elsewhere within the wait.
func TestDrainUnderTraffic(t *testing.T) {
	// The wait ends when the clients have noticed, not after a time.
	noticed := make(chan struct{})
	ctx, done := context.WithCancel(t.Context())
	go func() { <-noticed; done() }()
	h := health.New(health.WithDrainWait(time.Hour))
	handler := h.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "ok")
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler}
	go srv.Serve(l)
	base := "http://" + l.Addr().String()

	var sent, errs atomic.Int64
	warm := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				resp, err := client.Post(base+"/", "text/plain", strings.NewReader("body"))
				if err != nil {
					errs.Add(1)
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if n := sent.Add(1); n == 100 {
					close(warm)
				}
				if resp, err = client.Get(base + "/readyz"); err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != 200 {
					return // goes to another replica
				}
			}
		})
	}
	<-warm
	go func() { clients.Wait(); close(noticed) }()
	h.Drain(ctx, nil)
	srv.Shutdown(t.Context())
	t.Logf("%d requests, %d errors", sent.Load(), errs.Load())
}
