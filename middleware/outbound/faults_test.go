package outbound_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/middleware/outbound"
)

// The faults that a network has, through net/http as it is. What becomes of an
// empty list, of endpoints that are all ejected, duplicate, or of weight zero or
// below, is in set_test.go; of a body that cannot be replayed and a Retry-After
// of a year in retry_test.go.

func TestFaultDNSUnreachable(t *testing.T) {
	// The resolver refuses: there is none at this address.
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return nil, refusedDial()
	}}
	base := &http.Transport{DialContext: (&net.Dialer{Resolver: resolver}).DialContext}
	g := group()
	rt := outbound.New(base, outbound.Retry(outbound.WithBackoff(0, 0)), outbound.Breaker(g))
	_, err := get(t, rt, "http://nowhere.test/")
	if _, ok := errors.AsType[*net.DNSError](err); !ok {
		t.Errorf("error %v", err)
	}
	if n := rt.Stats().Retries; n != 1 {
		t.Errorf("%d retries of a resolver that may come back", n)
	}
	get(t, rt, "http://nowhere.test/")
	if _, err := get(t, rt, "http://nowhere.test/"); !errors.Is(err, breaker.ErrOpen) {
		t.Errorf("after three failures: %v", err)
	}
}

func TestFaultBackendAcceptsAndNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		silent := n.listen("silent.test:80")
		go func() { // takes connections, reads what comes and says nothing
			for {
				c, err := silent.Accept()
				if err != nil {
					return
				}
				go io.Copy(io.Discard, c)
			}
		}()
		defer silent.Close()
		n.serve(t, "good.test:80", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
		base := n.transport()
		defer base.CloseIdleConnections()

		rt := outbound.New(base, outbound.Timeout(time.Second))
		began := time.Now()
		_, err := get(t, rt, "http://silent.test/")
		if _, ok := errors.AsType[*outbound.TimeoutError](err); !ok || time.Since(began) != time.Second {
			t.Errorf("alone: %v after %v", err, time.Since(began))
		}

		set := newSet(t, urls("http://silent.test", "http://good.test"))
		rt = outbound.New(base, outbound.Balance(set), outbound.Retry(), outbound.Timeout(time.Second))
		for range 50 {
			if status, err := get(t, rt, "http://svc/"); status != 200 {
				t.Fatalf("with another endpoint: %v", err)
			}
		}
		if e := set.Stats().Endpoints[0]; !e.Ejected || e.Requests != 5 {
			t.Errorf("ejected %v after %d requests", e.Ejected, e.Requests)
		}
	})
}

func TestFaultBackendCutsMidBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		var calls atomic.Int64
		n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "the first half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		base := n.transport()
		defer base.CloseIdleConnections()
		set := newSet(t, urls("http://a.test"))
		rt := outbound.New(base, outbound.Retry(), outbound.Hedge(), outbound.Timeout(time.Minute), outbound.Balance(set))
		resp, err := rt.RoundTrip(request(t.Context(), "GET", "http://svc/", nil))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "the first half" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read %q, %v; want what came and an error", b, err)
		}
		if calls.Load() != 1 {
			t.Errorf("%d calls: a response that has begun was asked for again", calls.Load())
		}
		if e := set.Stats().Endpoints[0]; e.Failures != 1 || e.InFlight != 0 {
			t.Errorf("%d failures, %d in flight", e.Failures, e.InFlight)
		}
		for range 6 {
			if resp, err := rt.RoundTrip(request(t.Context(), "GET", "http://svc/", nil)); err == nil {
				io.ReadAll(resp.Body)
				resp.Body.Close()
			}
		}
		if e := set.Stats().Endpoints[0]; e.Failures < 5 || !e.Ejected && e.Breaker.State == breaker.Closed && e.Breaker.Consecutive < 1 {
			t.Errorf("a backend that cuts every body: %+v", e)
		}
	})
}

func TestFaultBackendIsGone(t *testing.T) {
	// A POST of a long body to a dead endpoint is sent to the other: nothing of it
	// was read.
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		var got atomic.Int64
		n.serve(t, "good.test:80", func(w http.ResponseWriter, r *http.Request) {
			k, _ := io.Copy(io.Discard, r.Body)
			got.Add(k)
		})
		base := n.transport()
		defer base.CloseIdleConnections()
		set := newSet(t, urls("http://gone.test", "http://good.test"))
		rt := outbound.New(base, outbound.Balance(set), outbound.Retry())
		const size = 100 << 10
		// The endpoint is drawn for each: it may take more than a few until the dead one has failed often enough.
		sent := int64(0)
		for ; sent < 200 && !set.Stats().Endpoints[0].Ejected; sent++ {
			body := io.MultiReader(strings.NewReader(strings.Repeat("x", size)))
			if status, err := do(rt, request(t.Context(), "POST", "http://svc/", body)); status != 200 {
				t.Fatalf("request %d: %v", sent, err)
			}
		}
		if got.Load() != sent*size {
			t.Errorf("%d bytes arrived, want %d", got.Load(), sent*size)
		}
		if e := set.Stats().Endpoints[0]; !e.Ejected {
			t.Errorf("%+v", e)
		}
	})
}

// The transport in a ReverseProxy: a client that leaves is not the fault of the
// backend, a backend that cuts is.
func TestReverseProxy(t *testing.T) {
	for _, tc := range []struct {
		name    string
		backend http.HandlerFunc
		leave   bool
		open    bool
	}{
		{"clients leave", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, true, false},
		{"clients leave mid-body", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, true, false},
		{"backend cuts", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, false, true},
		{"backend cuts mid-body", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				n.serve(t, "backend.test:80", tc.backend)
				base := n.transport()
				g := breaker.NewGroup(breaker.WithFailureRatio(0.5, 5))
				to, _ := url.Parse("http://backend.test")
				proxy := &httputil.ReverseProxy{
					Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(to) },
					Transport:    outbound.New(base, outbound.Breaker(g), outbound.Retry(), outbound.Timeout(time.Hour)),
					ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(502) },
				}
				n.serve(t, "proxy.test:80", proxy.ServeHTTP)
				outside := n.transport()
				for range 12 {
					ctx, leave := context.WithCancel(t.Context())
					if tc.leave {
						time.AfterFunc(time.Second, leave)
					}
					do(outside, request(ctx, "GET", "http://proxy.test/", nil))
					leave()
					synctest.Wait()
				}
				if got := g.Get("backend.test").State() != breaker.Closed; got != tc.open {
					t.Errorf("open %v, want %v: %+v", got, tc.open, g.Get("backend.test").Stats())
				}
				outside.CloseIdleConnections()
				base.CloseIdleConnections()
			})
		})
	}
}

// A client that leaves in the middle of an upload is seen only as a request body
// that ends too soon.
func TestReverseProxyBrokenUpload(t *testing.T) {
	for _, tc := range []struct {
		name    string
		clients bool // cut the upload, otherwise the backend does
		open    bool
	}{
		{"clients leave: nothing", true, false},
		{"the backend cuts: failure", false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				n.serve(t, "backend.test:80", func(w http.ResponseWriter, r *http.Request) {
					if !tc.clients {
						panic(http.ErrAbortHandler)
					}
					io.Copy(io.Discard, r.Body)
				})
				base := n.transport()
				g := breaker.NewGroup(breaker.WithFailureRatio(0.5, 5))
				set := newSet(t, urls("http://backend.test"), outbound.WithEjection(breaker.WithFailureRatio(0.5, 5)))
				for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
					proxy := &httputil.ReverseProxy{
						Rewrite:      func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "backend.test" },
						Transport:    outbound.New(base, layer, outbound.Retry()),
						ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(502) },
					}
					srv := &http.Server{Handler: proxy}
					l := n.listen("proxy.test:80")
					go srv.Serve(l)
					for range 12 {
						c, err := l.dial(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						go io.Copy(io.Discard, c)
						fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nthe first bytes")
						synctest.Wait()
						c.Close()
						synctest.Wait()
					}
					time.Sleep(time.Second) // in a synctest bubble: net/http lingers for half of that
					srv.Close()
				}
				if got := g.Get("backend.test").State() != breaker.Closed; got != tc.open {
					t.Errorf("Breaker: open %v, want %v: %+v", got, tc.open, g.Get("backend.test").Stats())
				}
				if e := set.Stats().Endpoints[0]; (e.Failures > 0) != tc.open || e.InFlight != 0 {
					t.Errorf("Balance: %+v", e)
				}
				base.CloseIdleConnections()
			})
		})
	}
}

// A client that sends slowly says nothing about the host: else a few of them would close it to all.
func TestSlowUploadIsNoFaultOfTheHost(t *testing.T) {
	reads := func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }
	hangs := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		time.Sleep(time.Hour) // in a synctest bubble
	}
	deaf := func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Hour) // in a synctest bubble
	}
	second, minute := time.Second, time.Minute
	for _, tc := range []struct {
		name            string
		host            http.HandlerFunc
		pause           time.Duration // of the client, before the second half of its body
		timeout, caller time.Duration
		failures, slow  uint64
	}{
		{"the time is over while the client sends", reads, minute, second, time.Hour, 0, 0},
		{"the caller's is", reads, minute, time.Hour, second, 0, 0},
		{"slow, and in time", reads, minute, time.Hour, time.Hour, 0, 0},
		{"the host has it all", hangs, 0, second, time.Hour, 1, 1},
		{"the host has it all, and the caller's time is over", hangs, 0, time.Hour, second, 1, 1},
		{"the host has it all, late", hangs, second, minute, time.Hour, 1, 1},
		{"the host does not take it", deaf, 0, second, time.Hour, 1, 1},
	} {
		for _, length := range []int64{-1, 200_000} {
			for name, guard := range map[string]func(*testing.T, *breaker.Group) (outbound.Layer, func() breaker.Stats){
				"Breaker": func(_ *testing.T, g *breaker.Group) (outbound.Layer, func() breaker.Stats) {
					return outbound.Breaker(g), func() breaker.Stats { return g.Get("a.test").Stats() }
				},
				"Balance": func(t *testing.T, _ *breaker.Group) (outbound.Layer, func() breaker.Stats) {
					s := newSet(t, urls("http://a.test"), outbound.WithEjection(breaker.WithSlowCalls(500*time.Millisecond, 1), breaker.WithWindow(time.Hour)))
					return outbound.Balance(s), func() breaker.Stats { return s.Stats().Endpoints[0].Breaker }
				},
			} {
				t.Run(fmt.Sprintf("%s, length %d, %s", tc.name, length, name), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						n := newNetwork()
						srv := n.serve(t, "a.test:80", tc.host)
						base := n.transport()
						layer, stats := guard(t, breaker.NewGroup(breaker.WithSlowCalls(500*time.Millisecond, 1), breaker.WithWindow(time.Hour)))
						rt := outbound.New(base, layer, outbound.Timeout(tc.timeout))
						ctx, cancel := context.WithTimeout(t.Context(), tc.caller)
						defer cancel()
						half := strings.NewReader(strings.Repeat("x", 100_000))
						req := request(ctx, "POST", "http://a.test/", io.MultiReader(half, &pause{tc.pause}, strings.NewReader(strings.Repeat("x", 100_000))))
						req.ContentLength = length
						do(rt, req)
						if s := stats(); s.Failures != tc.failures || s.Slow != tc.slow {
							t.Errorf("%d failures and %d slow calls, want %d and %d", s.Failures, s.Slow, tc.failures, tc.slow)
						}
						srv.Close()
						base.CloseIdleConnections()
						time.Sleep(2 * time.Hour) // in a synctest bubble: until all that hang are gone
					})
				})
			}
		}
	}
}

// A host is overdue while it does not take the body of a request, and when it has all that it is to answer; not while clients send.
func TestHostIsOverdueWhenItHasTheBody(t *testing.T) {
	hangs := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		time.Sleep(time.Minute) // in a synctest bubble
	}
	deaf := func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Minute) // in a synctest bubble
	}
	body := func(first string, wait time.Duration) func() io.Reader {
		return func() io.Reader { return io.MultiReader(strings.NewReader(first), &pause{wait}) }
	}
	for _, tc := range []struct {
		name string
		host http.HandlerFunc
		dial time.Duration
		body func() io.Reader
		open bool
	}{
		{"clients send for a minute", hangs, 0, body("x", time.Minute), false},
		{"the host takes a minute", hangs, 0, body("x", 0), true},
		{"the host takes a minute to be connected to", hangs, time.Minute, body("x", 0), true},
		{"the host does not take what there is", deaf, 0, body(strings.Repeat("x", 100_000), time.Minute), true},
		{"the host does not take what comes from memory", deaf, 0, func() io.Reader { return strings.NewReader(strings.Repeat("x", 100_000)) }, true},
	} {
		for name, guard := range map[string]func(*testing.T, ...breaker.Option) (outbound.Layer, func() breaker.State){
			"Breaker": func(_ *testing.T, opts ...breaker.Option) (outbound.Layer, func() breaker.State) {
				var of []breaker.GroupOption
				for _, o := range opts {
					of = append(of, o)
				}
				g := breaker.NewGroup(of...)
				return outbound.Breaker(g), func() breaker.State { return g.Get("a.test").State() }
			},
			"Balance": func(t *testing.T, opts ...breaker.Option) (outbound.Layer, func() breaker.State) {
				s := newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1), outbound.WithEjection(opts...))
				return outbound.Balance(s), func() breaker.State { return s.Stats().Endpoints[0].Breaker.State }
			},
		} {
			t.Run(tc.name+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := newNetwork()
					n.serve(t, "a.test:80", tc.host)
					base := n.transport()
					dial := base.DialContext
					base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
						time.Sleep(tc.dial) // in a synctest bubble
						return dial(ctx, network, addr)
					}
					layer, state := guard(t, breaker.WithWindow(10*time.Second), breaker.WithSlowCalls(time.Second, 0.8))
					rt := outbound.New(base, layer)
					ctx, cancel := context.WithCancel(t.Context())
					var clients sync.WaitGroup
					for range 40 {
						clients.Go(func() {
							do(rt, request(ctx, "POST", "http://a.test/", tc.body()))
						})
					}
					gone, leave := context.WithCancel(ctx)
					leave()
					for range 9 {
						time.Sleep(time.Second)                             // in a synctest bubble
						do(rt, request(gone, "GET", "http://a.test/", nil)) // has the breaker look
					}
					if s := state(); (s != breaker.Closed) != tc.open {
						t.Errorf("the breaker is %v", s)
					}
					cancel()
					clients.Wait()
					base.CloseIdleConnections()
					time.Sleep(time.Hour) // in a synctest bubble: until all that hang are gone
				})
			})
		}
	}
}

// A pause is a body that is empty, after a while.
type pause struct{ time.Duration }

func (p *pause) Read([]byte) (int, error) {
	time.Sleep(p.Duration) // in a synctest bubble
	return 0, io.EOF
}

// HTTP/1, TLS and HTTP/2 through all layers: what arrives is what was sent.
func TestThroughRealServers(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Proto", r.Proto)
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL, b)
		w.Header().Set("X-Sum", "42")
	})
	plain := httptest.NewServer(h)
	defer plain.Close()
	secure := httptest.NewUnstartedServer(h)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	for _, srv := range []*httptest.Server{plain, secure} {
		set := newSet(t, urls(srv.URL))
		rt := outbound.New(srv.Client().Transport, outbound.Balance(set), outbound.Retry(), outbound.Hedge(), outbound.Timeout(time.Minute))
		client := &http.Client{Transport: rt}
		resp, err := client.Post("http://svc/a?b=c", "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "POST /a?b=c hello" || resp.Trailer.Get("X-Sum") != "42" {
			t.Errorf("%s: %q, trailer %v", resp.Proto, b, resp.Trailer)
		}
		client.CloseIdleConnections()
	}
}

// A host that has begun its answer, and waits for the rest of the request, does not stall.
func TestResponseThatWaitsForTheUploadIsNoFaultOfTheHost(t *testing.T) {
	for _, tc := range []struct {
		name   string
		upload string // how it ends
		open   bool
	}{
		{"the caller pauses: nothing", "pause", false},
		{"the caller has sent all: failure", "end", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
					http.NewResponseController(w).EnableFullDuplex()
					w.(http.Flusher).Flush()
					io.Copy(io.Discard, r.Body)
					<-r.Context().Done()
				})
				base := n.transport()
				defer base.CloseIdleConnections()
				g := group()
				set := newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1), outbound.WithEjection(breaker.WithConsecutiveFailures(3)))
				for _, layer := range []outbound.Layer{outbound.Breaker(g), outbound.Balance(set)} {
					rt := outbound.New(base, layer, outbound.Timeout(time.Second, outbound.WithStall(time.Second)))
					for range 3 {
						r, w := io.Pipe()
						resp, err := rt.RoundTrip(request(t.Context(), "POST", "http://a.test/", r))
						if err != nil {
							t.Fatal(err)
						}
						io.WriteString(w, "the first part")
						if tc.upload == "end" {
							w.Close()
						}
						if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("it did not stall: %v", err)
						}
						resp.Body.Close()
						w.Close()
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

// forgotten is a connection that something on the way may forget: from then on what is written is lost.
type forgotten struct {
	net.Conn
	gone atomic.Bool
}

func (f *forgotten) Write(p []byte) (int, error) {
	if f.gone.Load() {
		return len(p), nil
	}
	return f.Conn.Write(p)
}

// Over HTTP/2 all requests share a connection. If that is dead the host is there all the same.
func TestProbeFindsAHostBehindADeadConnection(t *testing.T) {
	for name, layer := range map[string]func(*testing.T) outbound.Layer{
		"Breaker": func(*testing.T) outbound.Layer { return outbound.Breaker(group()) },
		"Balance": func(t *testing.T) outbound.Layer {
			return outbound.Balance(newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				l := n.listen("a.test:80")
				srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), Protocols: new(http.Protocols)}
				srv.Protocols.SetUnencryptedHTTP2(true)
				go srv.Serve(l)
				defer srv.Close()
				base := n.transport()
				base.Protocols = srv.Protocols
				defer base.CloseIdleConnections()
				var conns []*forgotten
				base.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
					c, err := l.dial(ctx)
					if err != nil {
						return nil, err
					}
					conns = append(conns, &forgotten{Conn: c})
					return conns[len(conns)-1], nil
				}
				rt := outbound.New(base, layer(t), outbound.Timeout(time.Second))
				if _, err := get(t, rt, "http://a.test/"); err != nil || len(conns) != 1 {
					t.Fatalf("%d connections: %v", len(conns), err)
				}
				conns[0].gone.Store(true)
				answersWithin(t, rt, 30*time.Second)
				for _, c := range conns {
					c.Conn.Close()
				}
			})
		})
	}
}

// answersWithin asks until there is an answer.
func answersWithin(t *testing.T, rt http.RoundTripper, most time.Duration) {
	t.Helper()
	began := time.Now()
	for {
		_, err := get(t, rt, "http://a.test/")
		if took := time.Since(began); took > most {
			t.Errorf("after %v: %v", took, err)
			return
		}
		if err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond) // in a synctest bubble
	}
}

// Over HTTP/1.1 a host has many connections. If those that are idle are dead, as after what stands before it was replaced, the host is there
// all the same: a probe does not take one after the other, for as long as each opening lasts.
func TestProbeFindsAHostBehindManyDeadConnections(t *testing.T) {
	for name, layer := range map[string]func(*testing.T) outbound.Layer{
		"Breaker": func(*testing.T) outbound.Layer {
			return outbound.Breaker(breaker.NewGroup(breaker.WithConsecutiveFailures(5)))
		},
		"Balance": func(t *testing.T) outbound.Layer {
			return outbound.Balance(newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				hold := make(chan struct{})
				n.serve(t, "a.test:80", func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/hold" {
						<-hold
					}
				})
				base := n.transport()
				base.MaxIdleConnsPerHost = 64
				defer base.CloseIdleConnections()
				dial := base.DialContext
				var mu sync.Mutex
				var conns []*forgotten
				base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					c, err := dial(ctx, network, addr)
					if err != nil {
						return nil, err
					}
					mu.Lock()
					defer mu.Unlock()
					conns = append(conns, &forgotten{Conn: c})
					return conns[len(conns)-1], nil
				}
				rt := outbound.New(base, layer(t), outbound.Timeout(time.Second))
				var wg sync.WaitGroup
				for range 64 {
					wg.Go(func() { get(t, rt, "http://a.test/hold") })
				}
				synctest.Wait()
				close(hold)
				wg.Wait()
				synctest.Wait()
				mu.Lock()
				for _, c := range conns {
					c.gone.Store(true)
				}
				mu.Unlock()
				answersWithin(t, rt, 20*time.Second)
				for _, c := range conns {
					c.Conn.Close()
				}
			})
		})
	}
}

// Over HTTP/2 without TLS, too, a connection is not closed beneath a probe, which net/http does not send again then: where a host that hung is there again, the
// first probe finds it.
func TestProbeKeepsAConnectionOfH2C(t *testing.T) {
	for name, layer := range map[string]func(*testing.T) outbound.Layer{
		"Breaker": func(*testing.T) outbound.Layer { return outbound.Breaker(group()) },
		"Balance": func(t *testing.T) outbound.Layer {
			return outbound.Balance(newSet(t, urls("http://a.test"), outbound.WithMaxEjected(1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork()
				l := n.listen("a.test:80")
				var hangs atomic.Bool
				srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if hangs.Load() {
						<-r.Context().Done()
					}
				}), Protocols: new(http.Protocols)}
				srv.Protocols.SetUnencryptedHTTP2(true)
				go srv.Serve(l)
				defer srv.Close()
				base := n.transport()
				base.Protocols = srv.Protocols
				defer base.CloseIdleConnections()
				rt := outbound.New(base, layer(t), outbound.Timeout(time.Second))
				if _, err := get(t, rt, "http://a.test/"); err != nil {
					t.Fatal(err)
				}
				hangs.Store(true)
				refused := func(err error) bool {
					return errors.Is(err, breaker.ErrOpen) || errors.Is(err, outbound.ErrNoEndpoint)
				}
				for {
					if _, err := get(t, rt, "http://a.test/"); refused(err) {
						break
					}
				}
				hangs.Store(false)
				for {
					_, err := get(t, rt, "http://a.test/")
					if err == nil {
						break
					}
					if !refused(err) {
						t.Fatalf("the first probe: %v", err)
					}
					time.Sleep(100 * time.Millisecond) // in a synctest bubble
				}
			})
		})
	}
}
