package outbound_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware/outbound"
)

// group opens after three failures in a row.
func group(opts ...breaker.GroupOption) *breaker.Group {
	return breaker.NewGroup(append([]breaker.GroupOption{breaker.WithConsecutiveFailures(3), breaker.WithJitter(0)}, opts...)...)
}

func TestO1BreakerPerHostInAnyCase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"bad.test": always(500), "Bad.Test": always(500), "good.test": always(200)}, outbound.Breaker(group()))
		for range 2 {
			get(t, rt, "http://bad.test/")
		}
		get(t, rt, "http://Bad.Test/")
		_, err := get(t, rt, "http://bad.test/")
		if !errors.Is(err, breaker.ErrOpen) {
			t.Errorf("bad.test after three failures: %v", err)
		}
		if status, err := get(t, rt, "http://good.test/"); status != 200 {
			t.Errorf("good.test suffers for another: %v", err)
		}
	})
}

var floodHosts = flag.Int("hosts", 20_000, "distinct hosts of the flood")

func TestO1FloodOfHostsLeavesOpenBreakersOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := group(breaker.WithOpenTime(time.Hour, time.Hour))
		rt := outbound.New(flood{}, outbound.Breaker(g))
		for range 3 {
			get(t, rt, "http://bad.test/")
		}
		req := request(t.Context(), "GET", "http://x/", nil)
		for i := range *floodHosts {
			req.URL.Host = fmt.Sprintf("h%d.test", i)
			if _, err := do(rt, req); err != nil {
				t.Fatal(err)
			}
		}
		keys := 0
		for range g.All() {
			keys++
		}
		if keys > 1024 {
			t.Errorf("%d breakers are kept", keys)
		}
		if _, err := get(t, rt, "http://bad.test/"); !errors.Is(err, breaker.ErrOpen) {
			t.Errorf("the flood closed an open breaker: %v", err)
		}
	})
}

// flood is every host there is; one is bad.
type flood struct{}

func (flood) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == "bad.test" {
		return &http.Response{StatusCode: 500, Body: http.NoBody}, nil
	}
	return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
}

func TestO2SettledAtTheHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := group(breaker.WithSlowCalls(time.Second, 0.5), breaker.WithFailureRatio(0.5, 1))
		rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
			resp, _ := answer(200)
			resp.Body = io.NopCloser(&slowReader{pause: time.Minute, left: 3})
			return resp, nil
		}}, outbound.Breaker(g))
		for range 5 {
			if _, err := get(t, rt, "http://a.test/"); err != nil {
				t.Fatalf("a body that takes minutes made a slow call: %v", err)
			}
		}
	})
}

type slowReader struct {
	pause time.Duration
	left  int
}

func (s *slowReader) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	s.left--
	time.Sleep(s.pause) // in a synctest bubble
	return copy(p, "x"), nil
}

func TestO2SlowIsTheTimeToTheHeader(t *testing.T) {
	slowBody := func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(lateReader{strings.NewReader("x")})}, nil
	}
	for _, tc := range []struct {
		name string
		host func(*http.Request) (*http.Response, error)
		open bool
	}{
		{"a header that takes long", sleepy(2*time.Second, 200), true},
		{"a body that takes long", slowBody, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				options := []breaker.Option{breaker.WithSlowCalls(time.Second, 0.8), breaker.WithFailureRatio(0, 3), breaker.WithWindow(10 * time.Second)}
				g := breaker.NewGroup(options[0], options[1], options[2])
				set := newSet(t, urls("http://a.test"), outbound.WithEjection(options...))
				for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
					rt := outbound.New(world{"a.test": tc.host}, layer)
					for range 4 {
						get(t, rt, "http://a.test/")
					}
				}
				if open := g.Get("a.test").Stats().Openings > 0; open != tc.open {
					t.Errorf("Breaker opened: %v, want %v", open, tc.open)
				}
				if open := set.Stats().Endpoints[0].Breaker.Openings > 0; open != tc.open {
					t.Errorf("Balance ejected: %v, want %v", open, tc.open)
				}
			})
		})
	}
}

type lateReader struct{ io.Reader }

func (r lateReader) Read(p []byte) (int, error) {
	time.Sleep(2 * time.Second) // in a synctest bubble
	return r.Reader.Read(p)
}

func TestO2BodyThatBreaksOffIsAFailure(t *testing.T) {
	cut := func(*http.Request) (*http.Response, error) {
		resp, _ := answer(200)
		resp.Body = &cutBody{}
		return resp, nil
	}
	for _, tc := range []struct {
		name string
		read func(*http.Response, context.CancelFunc)
		open bool
	}{
		{"read to the cut", func(r *http.Response, _ context.CancelFunc) { io.Copy(io.Discard, r.Body) }, true},
		{"closed before it", func(r *http.Response, _ context.CancelFunc) {}, false},
		{"caller cancelled before it", func(r *http.Response, cancel context.CancelFunc) { cancel(); io.Copy(io.Discard, r.Body) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := breaker.NewGroup(breaker.WithFailureRatio(0.5, 5))
				rt := outbound.New(world{"a.test": cut}, outbound.Breaker(g))
				var err error
				for range 5 {
					ctx, cancel := context.WithCancel(t.Context())
					var resp *http.Response
					resp, err = rt.RoundTrip(request(ctx, "GET", "http://a.test/", nil))
					if err != nil {
						cancel()
						break
					}
					tc.read(resp, cancel)
					resp.Body.Close()
					cancel()
				}
				if got := g.Get("a.test").State() == breaker.Open; got != tc.open {
					t.Errorf("open %v, want %v; %v", got, tc.open, err)
				}
			})
		})
	}
}

// Whoever has read enough of a stream closes it while a Read waits. That Read
// fails, and the host has not.
func TestO2BodyClosedDuringAReadIsNoFailure(t *testing.T) {
	for name, layers := range map[string]func(*outbound.Set, *breaker.Group) []outbound.Layer{
		"Breaker": func(_ *outbound.Set, g *breaker.Group) []outbound.Layer { return []outbound.Layer{outbound.Breaker(g)} },
		"Balance": func(s *outbound.Set, _ *breaker.Group) []outbound.Layer { return []outbound.Layer{outbound.Balance(s)} },
		"all inside": func(_ *outbound.Set, g *breaker.Group) []outbound.Layer {
			return []outbound.Layer{outbound.Breaker(g), outbound.Retry(), outbound.Hedge(), outbound.Timeout(time.Minute, outbound.WithStall(time.Hour))}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set, g := newSet(t, urls("http://a.test")), group()
				rt := outbound.New(world{"a.test": func(*http.Request) (*http.Response, error) {
					resp, _ := answer(200)
					resp.Body = &streamBody{closed: make(chan struct{}), read: make(chan struct{})}
					return resp, nil
				}}, layers(set, g)...)
				for range 10 {
					resp, err := rt.RoundTrip(request(t.Context(), "GET", "http://a.test/", nil))
					if err != nil {
						t.Fatal(err)
					}
					read := make(chan error)
					go func() {
						_, err := resp.Body.Read(make([]byte, 1))
						read <- err
					}()
					synctest.Wait()
					resp.Body.Close()
					if err := <-read; err == nil {
						t.Error("the read went on")
					}
				}
				if f, b := set.Stats().Endpoints[0].Failures, g.Get("a.test").Stats(); f != 0 || b.Failures != 0 || b.State != breaker.Closed {
					t.Errorf("%d failures of the endpoint; of the host %+v", f, b)
				}
			})
		})
	}
}

// A streamBody is one of HTTP/2 as far as Close is concerned, which returns when
// the stream is over and the Read that waited has failed.
type streamBody struct{ closed, read chan struct{} }

func (s *streamBody) Read([]byte) (int, error) {
	<-s.closed
	defer time.AfterFunc(time.Millisecond, func() { close(s.read) })
	return 0, errors.New("http2: response body closed")
}

func (s *streamBody) Close() error {
	close(s.closed)
	<-s.read
	return nil
}

func TestO3UpgradedConnectionStaysWritable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		set := newSet(t, urls("http://a.test"))
		for name, layers := range map[string][]outbound.Layer{
			"breaker, timeout, retry, hedge": {outbound.Breaker(nil), outbound.Timeout(time.Second), outbound.Retry(), outbound.Hedge()},
			"balance":                        {outbound.Balance(set)},
		} {
			resp := upgraded(t, ours, layers)
			rw, ok := resp.Body.(io.ReadWriteCloser)
			if !ok {
				t.Fatalf("%s: body of a 101 is %T, not a connection", name, resp.Body)
			}
			go rw.Write([]byte("ping"))
			buf := make([]byte, 4)
			if _, err := io.ReadFull(theirs, buf); err != nil || string(buf) != "ping" {
				t.Errorf("%s: %q %v", name, buf, err)
			}
		}
		ours.Close()
	})
}

// upgraded returns the answer to an upgrade to conn, through layers.
func upgraded(t *testing.T, conn io.ReadWriteCloser, layers []outbound.Layer) *http.Response {
	t.Helper()
	rt := outbound.New(world{"a.test": func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 101, Header: http.Header{"Upgrade": {"echo"}}, Body: conn}, nil
	}}, layers...)
	req := request(t.Context(), "GET", "http://a.test/", nil)
	req.Header.Set("Upgrade", "echo")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// Through a ReverseProxy, what a backend still has to say to a client that has said all reaches it.
func TestO3UpgradedConnectionClosesByHalves(t *testing.T) {
	for name, layers := range map[string][]outbound.Layer{
		"breaker, timeout, retry, hedge": {outbound.Breaker(nil), outbound.Timeout(time.Second), outbound.Retry(), outbound.Hedge()},
		"balance":                        {outbound.Balance(newSet(t, urls("http://a.test")))},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			conn := &halfConn{Conn: ours}
			resp := upgraded(t, conn, layers)
			defer resp.Body.Close()
			w, ok := resp.Body.(interface{ CloseWrite() error })
			if !ok {
				t.Fatalf("the body of a 101 is %T, without CloseWrite", resp.Body)
			}
			if err := w.CloseWrite(); err != nil || !conn.half {
				t.Errorf("%v; reached the connection: %v", err, conn.half)
			}
		})
	}
}

// A halfConn knows that it will not be written to any more.
type halfConn struct {
	net.Conn
	half bool
}

func (c *halfConn) CloseWrite() error { c.half = true; return nil }

func TestO3RejectionClosesTheBodyAndIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := outbound.New(world{"a.test": always(503)}, outbound.Breaker(group()))
		for range 3 {
			get(t, rt, "http://a.test/")
		}
		body := &closing{Reader: strings.NewReader("x")}
		resp, err := rt.RoundTrip(request(t.Context(), "POST", "http://a.test/", body))
		open, ok := errors.AsType[*breaker.OpenError](err)
		if resp != nil || !ok || open.Name != "a.test" || open.RetryAfter != 5*time.Second {
			t.Errorf("response %v, error %+v", resp, err)
		}
		if !body.closed.Load() {
			t.Error("the request body was left open")
		}
		if n := rt.Stats().Open; n != 1 {
			t.Errorf("%d refusals counted", n)
		}
		// http.Client wraps the error.
		_, err = (&http.Client{Transport: rt}).Get("http://a.test/")
		if _, ok := errors.AsType[*breaker.OpenError](err); !ok {
			t.Errorf("http.Client: %v", err)
		}
	})
}

func TestO4WhatAnErrorSaysAboutTheHost(t *testing.T) {
	hang := func(req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	deadline := func(d time.Duration) func(context.Context) (context.Context, context.CancelFunc) {
		return func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, d) }
	}
	cancelled := func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		time.AfterFunc(time.Millisecond, cancel)
		return ctx, cancel
	}
	// http.Client has two timers for its Timeout, and the transport may see the other one first.
	errCancelled := errors.New("net/http: request canceled")
	late := func(*http.Request) (*http.Response, error) {
		time.Sleep(time.Millisecond) // in a synctest bubble
		return nil, errCancelled
	}
	lateBody := func(*http.Request) (*http.Response, error) {
		time.Sleep(time.Millisecond) // in a synctest bubble
		return &http.Response{StatusCode: 200, Body: io.NopCloser(iotest.ErrReader(errCancelled))}, nil
	}
	unaware := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return unawareContext{ctx, time.Now().Add(time.Millisecond)}, func() {}
	}
	slow := breaker.WithSlowCalls(time.Second, 1)
	for _, tc := range []struct {
		name    string
		host    func(*http.Request) (*http.Response, error)
		ctx     func(context.Context) (context.Context, context.CancelFunc)
		options []breaker.GroupOption
		layers  []outbound.Layer
		open    bool
	}{
		{name: "caller cancels: nothing", host: hang, ctx: cancelled},
		{name: "caller in a hurry, slow call known: nothing", host: hang, ctx: deadline(time.Millisecond), options: []breaker.GroupOption{slow}},
		{name: "caller's deadline after a slow call: failure", host: hang, ctx: deadline(2 * time.Second), options: []breaker.GroupOption{slow}, open: true},
		{name: "caller's deadline, no slow call known: failure", host: hang, ctx: deadline(time.Second), open: true},
		{name: "caller in a hurry, the context does not say so yet: nothing", host: late, ctx: unaware, options: []breaker.GroupOption{slow}},
		{name: "caller's body is late, the context does not say so yet: nothing", host: lateBody, ctx: unaware, options: []breaker.GroupOption{slow, breaker.WithFailureRatio(1, 3)}},
		{name: "our timeout per try: failure", host: hang, ctx: deadline(time.Hour), layers: []outbound.Layer{outbound.Timeout(time.Second)}, open: true},
		{name: "connection refused: failure", host: func(*http.Request) (*http.Response, error) { return nil, refusedDial() }, open: true},
		{name: "name does not exist: failure", host: func(*http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}
		}, open: true},
		{name: "connection refused: failure", host: func(*http.Request) (*http.Response, error) { return nil, refusedDial() }, open: true},
		{name: "no file descriptor left: nothing", host: func(*http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", syscall.EMFILE)}
		}},
		{name: "no file descriptor left in the system: nothing", host: func(*http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", syscall.ENFILE)}
		}},
		{name: "no port left: nothing", host: func(*http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 80}, Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)}
		}},
		{name: "no address for IPv6: failure", host: func(*http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 80}, Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)}
		}, open: true},
		{name: "Request used again, whose body has been read: nothing", host: func(*http.Request) (*http.Response, error) {
			return nil, errors.New("http: ContentLength=4 with Body length 0") // so says net/http
		}},
		{name: "the same of a broken connection: nothing", host: func(*http.Request) (*http.Response, error) {
			return nil, errors.New("net/http: HTTP/1.x transport connection broken: http: ContentLength=4 with Body length 0")
		}},
		{name: "a host that says so: failure", host: func(*http.Request) (*http.Response, error) {
			return nil, errors.New(`net/http: HTTP/1.x transport connection broken: malformed HTTP response "http: ContentLength=4"`)
		}, open: true},
		{name: "500: failure", host: always(500), open: true},
		{name: "502: failure", host: always(502), open: true},
		{name: "503: failure", host: always(503), open: true},
		{name: "503 with Retry-After: nothing", host: always(503, "Retry-After", "1")},
		{name: "504: failure", host: always(504), open: true},
		{name: "501: success", host: always(501)},
		{name: "404: success", host: always(404)},
		{name: "304: success", host: always(304)},
		{name: "429: nothing", host: always(429)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := group(tc.options...)
				rt := outbound.New(world{"a.test": tc.host}, append(tc.layers, outbound.Breaker(g))...)
				for range 3 {
					ctx, cancel := t.Context(), context.CancelFunc(func() {})
					if tc.ctx != nil {
						ctx, cancel = tc.ctx(ctx)
					}
					do(rt, request(ctx, "GET", "http://a.test/", nil))
					cancel()
				}
				if got := g.Get("a.test").State() == breaker.Open; got != tc.open {
					t.Errorf("open %v, want %v", got, tc.open)
				}
			})
		})
	}
}

// An unawareContext has not noticed that its deadline is over.
type unawareContext struct {
	context.Context
	deadline time.Time
}

func (c unawareContext) Deadline() (time.Time, bool) { return c.deadline, true }

func TestO4CallersBodyThatFailsSaysNothingAboutTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
		base := n.transport()
		defer base.CloseIdleConnections()
		g := group()
		set := newSet(t, urls("http://a.test"))
		for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
			rt := outbound.New(base, layer, outbound.Retry())
			body := func() (io.ReadCloser, error) {
				r, w := io.Pipe()
				go func() {
					io.WriteString(w, "the first part")
					w.CloseWithError(errCut)
				}()
				return r, nil
			}
			for i := range 12 {
				r, _ := body()
				req := request(t.Context(), "PUT", "http://a.test/", r)
				if i%2 == 1 { // as that of a file, which is opened once more
					req.GetBody = body
				}
				if _, err := do(rt, req); !errors.Is(err, errCut) {
					t.Errorf("the caller's own error became %v", err)
				}
			}
		}
		if s := g.Get("a.test").State(); s != breaker.Closed {
			t.Errorf("Breaker: %v", s)
		}
		if e := set.Stats().Endpoints[0]; e.Failures != 0 || e.InFlight != 0 {
			t.Errorf("Balance: %d failures, %d in flight", e.Failures, e.InFlight)
		}
		time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
	})
}

// Some answer while the request still comes; that the response then ends with it is no fault of theirs.
func TestO4CallersBodyThatFailsAfterTheHeaderSaysNothingAboutTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			if _, err := io.Copy(w, r.Body); err != nil {
				panic(http.ErrAbortHandler)
			}
		})
		base := n.transport()
		defer base.CloseIdleConnections()
		g := group()
		set := newSet(t, urls("http://a.test"))
		for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
			for range 6 {
				r, w := io.Pipe()
				resp, err := outbound.New(base, layer, outbound.Retry()).RoundTrip(request(t.Context(), "PUT", "http://a.test/", r))
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(w, "the first part")
				w.CloseWithError(errCut)
				if _, err := io.ReadAll(resp.Body); err == nil {
					t.Error("the response did not end with the request")
				}
				resp.Body.Close()
			}
		}
		if s := g.Get("a.test").Stats(); s.Failures != 0 || s.State != breaker.Closed {
			t.Errorf("Breaker: %+v", s)
		}
		if e := set.Stats().Endpoints[0]; e.Failures != 0 || e.Breaker.Failures != 0 || e.InFlight != 0 {
			t.Errorf("Balance: %+v", e)
		}
		time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
	})
}

func TestO4FileThatHasBecomeShorterSaysNothingAboutTheHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
		base := n.transport()
		defer base.CloseIdleConnections()
		g := group()
		for range 6 {
			req := request(t.Context(), "PUT", "http://a.test/", nil)
			req.GetBody = func() (io.ReadCloser, error) { return os.Open(path) }
			req.Body, _ = req.GetBody()
			req.ContentLength = 100
			if _, err := do(outbound.New(base, outbound.Breaker(g)), req); err == nil {
				t.Error("no error")
			}
		}
		if s := g.Get("a.test").Stats(); s.State != breaker.Closed || s.Failures != 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
	})
}

// net/http sends a body that it knows to be in memory with the header, in one packet.
func TestBodyFromMemoryIsSentWithItsHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
		for _, body := range []io.Reader{strings.NewReader("{}"), bytes.NewReader([]byte("{}")), bytes.NewBufferString("{}")} {
			for _, layer := range []outbound.Layer{outbound.Breaker(nil), outbound.Balance(newSet(t, urls("http://a.test")))} {
				var writes atomic.Int64
				base := n.transport()
				dial := base.DialContext
				base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					c, err := dial(ctx, network, addr)
					return writing{c, &writes}, err
				}
				req := request(t.Context(), "POST", "http://a.test/", body)
				req.Body, _ = req.GetBody()
				if _, err := do(outbound.New(base, layer), req); err != nil || writes.Load() != 1 {
					t.Errorf("%T: %d writes, %v", body, writes.Load(), err)
				}
				base.CloseIdleConnections()
			}
		}
	})
}

// A writing counts the writes to a connection.
type writing struct {
	net.Conn
	n *atomic.Int64
}

func (w writing) Write(p []byte) (int, error) { w.n.Add(1); return w.Conn.Write(p) }

// Whoever can have a character of theirs put into a header could open the breaker for everybody.
// fromMemory gives a request a body of n bytes as [http.NewRequest] does, and a length that may be another.
func fromMemory(n, length int) func(*http.Request) {
	return func(r *http.Request) {
		with, _ := http.NewRequest("PUT", "http://a.test/", bytes.NewReader(make([]byte, n)))
		r.Method, r.Body, r.GetBody, r.ContentLength = "PUT", with.Body, with.GetBody, int64(length)
	}
}

func TestO4RequestThatCannotBeSentSaysNothingAboutTheHost(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*http.Request)
		sent   bool
	}{
		{"well formed", func(r *http.Request) { r.Header.Set("X-User", "a\tb é !~") }, true},
		{"name of all characters there are", func(r *http.Request) { r.Header["!#$%&'*+-.^_`|~09azAZ"] = []string{"x"} }, true},
		{"line break in a value", func(r *http.Request) { r.Header.Set("X-User", "a\nb") }, false},
		{"DEL in a value", func(r *http.Request) { r.Header.Set("X-User", "a\x7fb") }, false},
		{"space in a name", func(r *http.Request) { r.Header["X User"] = []string{"a"} }, false},
		{"name that is not ASCII", func(r *http.Request) { r.Header["É"] = []string{"a"} }, false},
		{"name of bytes that are no UTF-8", func(r *http.Request) { r.Header["X\xff"] = []string{"a"} }, false},
		{"empty name", func(r *http.Request) { r.Header[""] = []string{"a"} }, false},
		{"line break in a trailer", func(r *http.Request) { r.Trailer = http.Header{"X-User": {"a\rb"}} }, false},
		{"line break in the query", func(r *http.Request) { r.URL.RawQuery = "q=a\nb" }, false},
		{"method that is no token", func(r *http.Request) { r.Method = "G T" }, false},
		{"length of no body", func(r *http.Request) { r.Method, r.ContentLength = "PUT", 5 }, false},
		{"body from memory, as long as it says", fromMemory(20_000, 20_000), true},
		{"body from memory, shorter", fromMemory(3, 5), false},
		{"long body from memory, shorter", fromMemory(10_000, 20_000), false},
		{"chunks from memory", fromMemory(20_000, -1), true},
		{"method of bytes that are no UTF-8", func(r *http.Request) { r.Method = "G\xff" }, false},
		{"host that is encoded", func(r *http.Request) { r.Host = "b\u00fccher.test" }, true},
		{"host that cannot be encoded", func(r *http.Request) { r.Host = "xn--b\u00fccher.test" }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				var cut atomic.Bool
				n.serve(t, "a.test:80", func(http.ResponseWriter, *http.Request) {
					if cut.Load() {
						panic(http.ErrAbortHandler)
					}
				})
				base := n.transport()
				defer base.CloseIdleConnections()
				g := group()
				set := newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1), outbound.WithEjection(breaker.WithConsecutiveFailures(3)))
				call := func(layer outbound.Layer) uint64 {
					rt := outbound.New(base, layer, outbound.Retry(outbound.WithBackoff(0, 0)))
					for range 3 {
						req := request(t.Context(), "GET", "http://a.test/", nil)
						tc.change(req)
						if _, err := do(rt, req); (err == nil) != (tc.sent && !cut.Load()) {
							t.Errorf("%v", err)
						}
					}
					return rt.Stats().Retries
				}
				for range 2 {
					for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
						if n := call(layer); (n > 0) != (tc.sent && cut.Load()) {
							t.Errorf("%d retries", n)
						}
					}
					open := tc.sent && cut.Load()
					if s := g.Get("a.test").State(); (s == breaker.Open) != open {
						t.Errorf("Breaker: %v", s)
					}
					if e := set.Stats().Endpoints[0]; e.Ejected != open {
						t.Errorf("Balance: ejected %v", e.Ejected)
					}
					cut.Store(true)
				}
				time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
			})
		})
	}
}

// What a client sends to a reverse proxy goes on to its host: an offer of h2c comes with each first request of some.
func TestO4RequestThatHTTP2CannotSendSaysNothingAboutTheHost(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*http.Request)
		sent   bool
	}{
		{"plain", func(*http.Request) {}, true},
		{"connection kept", func(r *http.Request) { r.Header.Set("Connection", "keep-alive") }, true},
		{"offer of another protocol", func(r *http.Request) {
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "h2c")
		}, false},
		{"other connection options", func(r *http.Request) { r.Header.Set("Connection", "X-User") }, false},
		{"other transfer coding", func(r *http.Request) { r.Header.Set("Transfer-Encoding", "gzip") }, false},
		{"opaque target", func(r *http.Request) { r.URL.Opaque = "b" }, false},
		{"host that is none", func(r *http.Request) { r.Host = "a b" }, false},
		{"host that cannot be encoded", func(r *http.Request) { r.Host = "xn--b\u00fccher.test" }, false},
		{"more header than the server takes", func(r *http.Request) { r.Header.Set("X-User", strings.Repeat("a", 100<<10)) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var cut atomic.Bool
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				if cut.Load() {
					panic(http.ErrAbortHandler)
				}
			}))
			srv.EnableHTTP2 = true
			srv.Config.MaxHeaderBytes = 16 << 10
			srv.StartTLS()
			defer srv.Close()
			host := srv.Listener.Addr().String()
			g := group(breaker.WithConsecutiveFailures(4)) // which the first retry of what could be sent makes
			set := newSet(t, urls(srv.URL), outbound.WithMaxEjected(1), outbound.WithEjection(breaker.WithConsecutiveFailures(4)))
			call := func(layer outbound.Layer) uint64 {
				rt := outbound.New(srv.Client().Transport, layer, outbound.Retry(outbound.WithBackoff(0, 0)))
				// What the server takes is known when it has said so, which its first answer does.
				if _, err := get(t, rt, srv.URL); (err == nil) == cut.Load() {
					t.Errorf("plain: %v", err)
				}
				retries := rt.Stats().Retries
				for range 3 {
					req := request(t.Context(), "GET", srv.URL, nil)
					tc.change(req)
					if _, err := do(rt, req); (err == nil) != (tc.sent && !cut.Load()) {
						t.Errorf("%v", err)
					}
				}
				return rt.Stats().Retries - retries
			}
			for range 2 {
				for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
					if n := call(layer); (n > 0) != (tc.sent && cut.Load()) {
						t.Errorf("%d retries", n)
					}
				}
				open := tc.sent && cut.Load()
				if s := g.Get(host).State(); (s == breaker.Open) != open {
					t.Errorf("Breaker: %v", s)
				}
				if e := set.Stats().Endpoints[0]; e.Ejected != open {
					t.Errorf("Balance: ejected %v", e.Ejected)
				}
				cut.Store(true)
			}
		})
	}
}

// These are the errors of http3.Transport in quic-go for what it does not send. Its server takes an extended CONNECT from any client, and a
// reverse proxy hands it on.
func TestO4RequestThatHTTP3DoesNotSendSaysNothingAboutTheHost(t *testing.T) {
	for text, sent := range map[string]bool{
		"http3: server didn't enable Extended CONNECT":     false,
		"http3: unsupported protocol scheme: http":         false,
		"http3: no Host in request URL":                    false,
		"http3: nil Request.Header":                        false,
		"http3: parsing frame failed: H3_INTERNAL_ERROR":   true,
		"http3: invalid response: missing :status field":   true,
		"http3: too many 1xx informational responses":      true,
		"timeout: handshake did not complete in time":      true,
		"INTERNAL_ERROR (remote): server didn't enable it": true,
	} {
		t.Run(text, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := group(breaker.WithConsecutiveFailures(2))
				rt := outbound.New(world{"a.test": failing(errors.New(text))}, outbound.Breaker(g), outbound.Retry(outbound.WithBackoff(0, 0)))
				do(rt, request(t.Context(), "GET", "https://a.test/", nil))
				if open, n := g.Get("a.test").State() == breaker.Open, rt.Stats().Retries; open != sent || n > 0 != sent {
					t.Errorf("open %v after %d retries; want it to be sent: %v", open, n, sent)
				}
			})
		})
	}
}

// Through a proxy net/http does not send it, and a closed connection may be all that it says; http3.Transport of quic-go waits for an answer to what
// it has not sent.
func TestO4HostThatIsNoneSaysNothingWhateverTheError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, host := range []string{"", "a.test:80", "[::1]:80", "b\u00fccher.test", "a b", "a<b"} {
			g := group(breaker.WithConsecutiveFailures(2))
			rt := outbound.New(world{"a.test": failing(io.ErrClosedPipe)}, outbound.Breaker(g), outbound.Retry(outbound.WithBackoff(0, 0)))
			req := request(t.Context(), "GET", "http://a.test/", nil)
			req.Host = host
			do(rt, req)
			sent := !strings.ContainsAny(host, " <")
			if open, n := g.Get("a.test").State() == breaker.Open, rt.Stats().Retries; open != sent || n > 0 != sent {
				t.Errorf("%q: open %v after %d retries; want it to be sent: %v", host, open, n, sent)
			}
		}
	})
}

// Over HTTP/2 net/http takes any :authority of a client, and a reverse proxy hands it on.
func TestO4HostThatAProxyCannotTakeSaysNothingAboutTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		n.serve(t, "proxy.test:80", func(http.ResponseWriter, *http.Request) {})
		base := n.transport()
		defer base.CloseIdleConnections()
		base.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy.test"})
		g := group()
		rt := outbound.New(base, outbound.Retry(), outbound.Breaker(g))
		for _, host := range []string{"a b", "a b", "a b", "a.test"} {
			req := request(t.Context(), "GET", "http://a.test/", nil)
			req.Host = host
			if _, err := do(rt, req); (err == nil) != (host == "a.test") {
				t.Errorf("Host %q: %v", host, err)
			}
		}
		if s := rt.Stats(); s.Retries != 0 {
			t.Errorf("%d retries", s.Retries)
		}
		time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
	})
}

// The value of a trailer is set while the body is read, at which a transport may still be when it has given the try up.
func TestTrailerIsLeftToWhoReadsTheBody(t *testing.T) {
	g := group()
	set := newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1), outbound.WithEjection(breaker.WithConsecutiveFailures(3)))
	var reading sync.WaitGroup
	base := world{"a.test": func(req *http.Request) (*http.Response, error) {
		reading.Go(func() { req.Body.Read(make([]byte, 1)) })
		return nil, errCut
	}}
	for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
		rt := outbound.New(base, layer)
		for range 3 {
			req := request(t.Context(), "PUT", "http://a.test/", nil)
			req.ContentLength, req.Trailer = -1, http.Header{"X-Sum": nil}
			req.Body = io.NopCloser(readerFunc(func([]byte) (int, error) {
				req.Trailer.Set("X-Sum", "1")
				return 0, io.EOF
			}))
			if _, err := do(rt, req); err == nil {
				t.Error("no error")
			}
			reading.Wait()
		}
	}
	if s := g.Get("a.test").State(); s != breaker.Open {
		t.Errorf("Breaker: %v", s)
	}
	if e := set.Stats().Endpoints[0]; !e.Ejected {
		t.Error("Balance: not ejected")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A server that redirects chooses the URL.
func TestO4SchemeOrHostThatIsNoneSaysNothingAboutTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		n.serve(t, "evil.test:80", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "ftp://a.test/", http.StatusFound)
		})
		base := n.transport()
		defer base.CloseIdleConnections()
		g := group()
		rt := outbound.New(base, outbound.Breaker(g), outbound.Retry(outbound.WithBackoff(0, 0)))
		for range 3 {
			if resp, err := (&http.Client{Transport: rt}).Get("http://evil.test/"); err == nil {
				resp.Body.Close()
				t.Errorf("status %d", resp.StatusCode)
			}
		}
		service := outbound.WithKey(func(*http.Request) string { return "a.test" })
		hostless := outbound.New(base, outbound.Breaker(g, service), outbound.Retry(outbound.WithBackoff(0, 0)))
		for range 3 {
			if _, err := do(hostless, request(t.Context(), "GET", "http:///path", nil)); err == nil {
				t.Error("no host, and no error")
			}
		}
		if s := g.Get("a.test").State(); s != breaker.Closed {
			t.Errorf("the breaker of the host is %v", s)
		}
		if n := rt.Stats().Retries + hostless.Stats().Retries; n != 0 {
			t.Errorf("%d retries", n)
		}
		time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
	})
}

func TestO4CallersBodyOfAnotherLengthSaysNothingAboutTheHost(t *testing.T) {
	const length = 100 << 10
	for _, tc := range []struct {
		name string
		body int
		cut  bool // by the host
		open bool
	}{
		{"as long as it says", length, false, false},
		{"as long as it says, and the host cuts: failure", length, true, true},
		{"shorter", length / 2, false, false},
		{"longer", length + 1, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					if tc.cut {
						panic(http.ErrAbortHandler)
					}
				})
				base := n.transport()
				defer base.CloseIdleConnections()
				g := group()
				set := newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1), outbound.WithEjection(breaker.WithConsecutiveFailures(3)))
				for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
					rt := outbound.New(base, layer)
					for range 3 {
						req := request(t.Context(), "PUT", "http://a.test/", io.MultiReader(bytes.NewReader(make([]byte, tc.body))))
						req.ContentLength = length
						// The answer to a body that is longer may come before net/http has seen that.
						if _, err := do(rt, req); (err == nil) != (tc.body == length && !tc.cut) && tc.body <= length {
							t.Errorf("%v", err)
						}
					}
				}
				if s := g.Get("a.test").State(); (s == breaker.Open) != tc.open {
					t.Errorf("Breaker: %v", s)
				}
				if e := set.Stats().Endpoints[0]; e.Ejected != tc.open {
					t.Errorf("Balance: ejected %v", e.Ejected)
				}
				time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
			})
		})
	}
}

// What the system says of an address that is not there is what is looked for.
func TestO4NoAddressOfOursSaysNothingAboutTheHost(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	base := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}}).DialContext}
	g := breaker.NewGroup(breaker.WithConsecutiveFailures(1))
	if _, err := get(t, outbound.New(base, outbound.Breaker(g)), srv.URL); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Skip(err)
	}
	if s := g.Get(strings.TrimPrefix(srv.URL, "http://")).Stats(); s.State != breaker.Closed || s.Ignored != 1 {
		t.Errorf("%v, %d ignored", s.State, s.Ignored)
	}
}

func TestBreakerHostThatNeverAnswersOpensBeforeAnyCallReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup(breaker.WithSlowCalls(time.Second, 0.8))
		rt := outbound.New(world{"a.test": func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		}}, outbound.Breaker(g))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 30 {
			go do(rt, request(ctx, "GET", "http://a.test/", nil))
		}
		time.Sleep(2100 * time.Millisecond) // in a synctest bubble
		if _, err := get(t, rt, "http://a.test/"); !errors.Is(err, breaker.ErrOpen) {
			t.Errorf("after 2.1 s: %v", err)
		}
		cancel()
	})
}

// booms demands that a request ends in the panic that something under test raises.
func booms(t *testing.T, rt http.RoundTripper) {
	t.Helper()
	defer func() {
		t.Helper()
		if v := recover(); v != "boom" {
			t.Errorf("recovered %v", v)
		}
	}()
	get(t, rt, "http://a.test/")
}

func TestBreakerPanicBeneathIsAFailureAndTravelsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := group()
		set := newSet(t, urls("http://a.test"), outbound.WithEjection(breaker.WithConsecutiveFailures(3)))
		boom := world{"a.test": func(*http.Request) (*http.Response, error) { panic("boom") }}
		for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
			rt := outbound.New(boom, layer, outbound.Retry(), outbound.Hedge(), outbound.Timeout(time.Second))
			for range 3 {
				booms(t, rt)
			}
		}
		if s := g.Get("a.test").State(); s != breaker.Open {
			t.Errorf("Breaker: %v", s)
		}
		if e := set.Stats().Endpoints[0]; e.Breaker.State != breaker.Open || e.InFlight != 0 {
			t.Errorf("Balance: %v, %d in flight", e.Breaker.State, e.InFlight)
		}
	})
}

func TestBreakerOutcomeAndKeyOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := group()
		rt := outbound.New(world{"a.test": always(404)}, outbound.Breaker(g,
			outbound.WithKey(func(r *http.Request) string { return r.URL.Host + " " + r.URL.Path }),
			outbound.WithOutcome(func(_ *http.Request, resp *http.Response, err error) breaker.Outcome {
				if err != nil || resp.StatusCode == 404 {
					return breaker.Failure
				}
				return breaker.Success
			})))
		for range 3 {
			get(t, rt, "http://a.test/lost")
		}
		if _, err := get(t, rt, "http://a.test/lost"); !errors.Is(err, breaker.ErrOpen) {
			t.Errorf("/lost: %v", err)
		}
		if _, err := get(t, rt, "http://a.test/other"); err != nil {
			t.Errorf("/other: %v", err)
		}
	})
}

func TestPanicInAFunctionOfTheUsersLosesNothing(t *testing.T) {
	boom := func(*http.Request, *http.Response, error) breaker.Outcome { panic("boom") }
	changes := []breaker.Option{breaker.WithConsecutiveFailures(1), breaker.WithOnChange(func(breaker.Change) { panic("boom") })}
	sets := []*outbound.Set{
		newSet(t, urls("http://a.test"), outbound.WithOutcome(boom)),
		newSet(t, urls("http://a.test"), outbound.WithEjection(changes...)),
	}
	for name, layer := range map[string]outbound.Layer{
		"WithOutcome of Breaker": outbound.Breaker(nil, outbound.WithOutcome(boom)),
		"WithOutcome of NewSet":  outbound.Balance(sets[0]),
		"WithOnChange":           outbound.Breaker(breaker.NewGroup(changes[0], changes[1])),
		"WithEjection":           outbound.Balance(sets[1]),
		"WithRetryIf":            outbound.Retry(outbound.WithRetryIf(func(*http.Request, *http.Response, error) bool { panic("boom") })),
	} {
		t.Run(name, func(t *testing.T) {
			l := limiter.NewConcurrency(1)
			body := &closing{Reader: strings.NewReader("body")}
			rt := outbound.New(world{"a.test": func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 503, Body: body}, nil
			}}, layer, outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return l })))
			booms(t, rt)
			if n := l.Stats().InFlight; n != 0 || !body.closed.Load() {
				t.Errorf("%d permits are held, the body is closed: %v", n, body.closed.Load())
			}
		})
	}
	for _, set := range sets {
		if n := set.Stats().Endpoints[0].InFlight; n != 0 {
			t.Errorf("%d are in flight at the endpoint", n)
		}
	}
}

// The host had answered when it was asked about.
func TestPanicInWithOutcomeSaysNothingAboutTheHost(t *testing.T) {
	boom := outbound.WithOutcome(func(*http.Request, *http.Response, error) breaker.Outcome { panic("boom") })
	g := breaker.NewGroup(breaker.WithConsecutiveFailures(1))
	set := newSet(t, urls("http://a.test"), boom, outbound.WithEjection(breaker.WithConsecutiveFailures(1)))
	for name, layer := range map[string]outbound.Layer{"Breaker": outbound.Breaker(g, boom), "Balance": outbound.Balance(set)} {
		t.Run(name, func(t *testing.T) { booms(t, outbound.New(world{"a.test": always(200)}, layer)) })
	}
	if s := g.Get("a.test").Stats(); s.Failures != 0 || s.Ignored != 1 {
		t.Errorf("Breaker: %d failures, %d ignored", s.Failures, s.Ignored)
	}
	if s := set.Stats().Endpoints[0].Breaker; s.Failures != 0 || s.Ignored != 1 {
		t.Errorf("Balance: %d failures, %d ignored", s.Failures, s.Ignored)
	}
}

// So it is where the change comes with something else that ends a call.
func TestPanicInOnChangeLosesNothing(t *testing.T) {
	for name, host := range map[string]func(*http.Request) (*http.Response, error){
		"a body that breaks off": func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF))}, nil
		},
		"a panic beneath": func(*http.Request) (*http.Response, error) { panic("beneath") },
	} {
		t.Run(name, func(t *testing.T) {
			set := newSet(t, urls("http://a.test"), outbound.WithEjection(breaker.WithConsecutiveFailures(1),
				breaker.WithOnChange(func(breaker.Change) { panic("boom") })))
			l := limiter.NewConcurrency(1)
			rt := outbound.New(world{"a.test": host}, outbound.Balance(set), outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return l })))
			booms(t, rt)
			if n := set.Stats().Endpoints[0].InFlight; n != 0 || l.Stats().InFlight != 0 {
				t.Errorf("%d are in flight at the endpoint, %d permits are held", n, l.Stats().InFlight)
			}
		})
	}
}

// Nor does it where a call that the limit refuses is the one to tell of a change that nobody was told of before.
func TestPanicInOnChangeOfARefusedCallLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := newSet(t, urls("http://a.test"), outbound.WithEjection(breaker.WithConsecutiveFailures(1), breaker.WithOpenTime(time.Second, time.Second),
			breaker.WithOnChange(func(breaker.Change) {
				time.Sleep(10 * time.Second) // in a synctest bubble
				panic("boom")
			})))
		rt := outbound.New(world{"a.test": always(503)}, outbound.Balance(set), outbound.Limit(outbound.WithRate(limiter.NewRate(0, 1))))
		go func() { // opens the breaker, and is still told of that when it becomes half-open
			defer func() { recover() }()
			get(t, rt, "http://a.test/")
		}()
		time.Sleep(5 * time.Second) // in a synctest bubble
		if _, err := get(t, rt, "http://a.test/"); !errors.Is(err, limiter.ErrRateLimited) {
			t.Fatalf("error %v, want the refusal of the limit", err)
		}
		time.Sleep(10 * time.Second) // in a synctest bubble
		booms(t, rt)
		if n := set.Stats().Endpoints[0].InFlight; n != 0 {
			t.Errorf("%d are in flight at the endpoint", n)
		}
	})
}

// closePanics is the body of a transport that somebody has wrapped, and cannot be closed.
type closePanics struct{ io.Reader }

func (closePanics) Close() error { panic("boom") }

func TestPanicInCloseOfABodyLosesNothing(t *testing.T) {
	set := newSet(t, urls("http://a.test"))
	l := limiter.NewConcurrency(1)
	limit := outbound.Limit(outbound.WithConcurrency(func() *limiter.Concurrency { return l }))
	host := world{"a.test": func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: closePanics{strings.NewReader("body")}}, nil
	}}
	for name, rt := range map[string]http.RoundTripper{
		"Limit":   outbound.New(host, limit),
		"Balance": outbound.New(host, outbound.Balance(set), limit),
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := rt.RoundTrip(request(t.Context(), "GET", "http://a.test/", nil))
			if err != nil {
				t.Fatal(err)
			}
			func() {
				defer func() {
					if v := recover(); v != "boom" {
						t.Errorf("recovered %v, want the panic of Close", v)
					}
				}()
				resp.Body.Close()
			}()
			if n := l.Stats().InFlight; n != 0 {
				t.Errorf("%d permits are held", n)
			}
		})
	}
	if n := set.Stats().Endpoints[0].InFlight; n != 0 {
		t.Errorf("%d are in flight at the endpoint", n)
	}
}

// servedWhenWell sends ten requests a second to a host that fails for 30 s and answers with a status for 90 s, and returns how many
// had that.
func servedWhenWell(layer outbound.Layer, status int, send func(http.RoundTripper) int) (served int) {
	var well atomic.Bool
	rt := outbound.New(world{"a.test": func(*http.Request) (*http.Response, error) {
		if well.Load() {
			return answer(status)
		}
		return answer(503)
	}}, layer)
	for i := range 1200 {
		well.Store(i >= 300)
		if send(rt) == status {
			served++
		}
		time.Sleep(100 * time.Millisecond) // in a synctest bubble
	}
	return served
}

// What a function of WithOnChange takes on the goroutine of a probe is no time of the host's.
func TestProbeIsNotSlowForWhatOnChangeTakes(t *testing.T) {
	slow, told := breaker.WithSlowCalls(time.Second, 0.5), breaker.WithOnChange(func(breaker.Change) {
		time.Sleep(2 * time.Second) // in a synctest bubble
	})
	for name, layer := range map[string]func(t *testing.T) outbound.Layer{
		"Breaker": func(*testing.T) outbound.Layer { return outbound.Breaker(group(slow, told)) },
		"Balance": func(t *testing.T) outbound.Layer {
			return outbound.Balance(newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1), outbound.WithEjection(slow, told)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				served := servedWhenWell(layer(t), 200, func(rt http.RoundTripper) int {
					status, _ := get(t, rt, "http://a.test/")
					return status
				})
				if served < 300 {
					t.Errorf("%d of 900 requests were served in the 90 s in which the host was well", served)
				}
			})
		})
	}
}

// Of clients that offer HTTP/2 with each request, as Java's, the first that comes when the open time is over is a probe.
func TestOfferOfHTTP2IsAProbe(t *testing.T) {
	for name, layer := range map[string]func(t *testing.T) outbound.Layer{
		"Breaker": func(*testing.T) outbound.Layer { return outbound.Breaker(group()) },
		"Balance": func(t *testing.T) outbound.Layer {
			return outbound.Balance(newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				status := 500
				rt := outbound.New(world{"a.test": func(*http.Request) (*http.Response, error) { return answer(status) }}, layer(t))
				offer := func() (int, error) {
					req := request(t.Context(), "GET", "http://a.test/", nil)
					req.Header.Set("Upgrade", "h2c")
					return do(rt, req)
				}
				for range 5 {
					offer()
				}
				if got, err := offer(); err == nil {
					t.Fatalf("status %d of a host that failed", got)
				}
				status = 200
				time.Sleep(6 * time.Second) // in a synctest bubble: open for 5 s and a fifth of it at most
				if got, err := offer(); got != 200 {
					t.Error(err)
				}
			})
		})
	}
}

// A host that is asked for nothing but upgrades has no other probes.
func TestUpgradesAloneBringAHostBack(t *testing.T) {
	for name, layer := range map[string]func(t *testing.T) outbound.Layer{
		"Breaker": func(*testing.T) outbound.Layer { return outbound.Breaker(group()) },
		"Balance": func(t *testing.T) outbound.Layer {
			return outbound.Balance(newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				upgraded := servedWhenWell(layer(t), 101, func(rt http.RoundTripper) int {
					req := request(t.Context(), "GET", "http://a.test/", nil)
					req.Header.Set("Upgrade", "websocket")
					status, _ := do(rt, req)
					return status
				})
				if upgraded < 300 {
					t.Errorf("%d of 900 upgrades in the 90 s in which the host was well", upgraded)
				}
			})
		})
	}
}
