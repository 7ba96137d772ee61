package middleware_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillgate/spillgate/breaker"
	"github.com/spillgate/spillgate/cache"
	"github.com/spillgate/spillgate/limiter"
	"github.com/spillgate/spillgate/middleware"
	"github.com/spillgate/spillgate/pool"
)

// The rules that a breaker around HTTP follows have the numbers R1 to R16 in the names of their tests.
// They run against an http.Server whose connections are pipes in memory, in a bubble: the protocol is
// the real one, and time is not.

// pipes is a network of one server, in memory.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{accept: make(chan net.Conn), closed: make(chan struct{})} }

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipes) Addr() net.Addr { return pipeAddr{} }

func (l *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.accept <- pipeConn{there}:
		return here, nil
	case <-l.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "192.0.2.1:1234" }

type pipeConn struct{ net.Conn }

func (pipeConn) RemoteAddr() net.Addr { return pipeAddr{} }

// guarded is a handler behind a breaker on a server, and a client of it.
type guarded struct {
	*testing.T
	b      *breaker.Breaker
	client *http.Client
	server *http.Server
	scheme string
	ended  chan struct{} // a handler has returned, or panicked, through all layers
}

var testCertificate = sync.OnceValue(func() tls.Certificate {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	return s.TLS.Certificates[0]
})

var protocolsOfRules = []string{"HTTP/1.1", "HTTP/1.1 TLS", "HTTP/2 TLS", "h2c"}

// onEachProtocol runs f against a fresh one for each protocol.
func onEachProtocol(t *testing.T, protos []string, group []breaker.GroupOption, opts []middleware.BreakerOption, h http.Handler, f func(*guarded)) {
	t.Helper()
	for _, proto := range protos {
		t.Run(proto, func(t *testing.T) {
			testCertificate()
			synctest.Test(t, func(t *testing.T) { f(newGuarded(t, proto, group, opts, h)) })
		})
	}
}

func newGuarded(t *testing.T, proto string, group []breaker.GroupOption, opts []middleware.BreakerOption, h http.Handler) *guarded {
	g := breaker.NewGroup(append([]breaker.GroupOption{breaker.WithJitter(0), breaker.WithRamp(0), breaker.WithProbes(1)}, group...)...)
	s := &guarded{T: t, b: g.Get(""), ended: make(chan struct{}, 1000), scheme: "http"}
	layer := middleware.Breaker(g, opts...)
	inner := layer.Handler(h)
	s.server = &http.Server{
		ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { s.ended <- struct{}{} }()
			inner.ServeHTTP(w, r)
		}),
	}
	l := newPipes()
	tr := &http.Transport{DialContext: l.dial, Protocols: new(http.Protocols), DisableCompression: true}
	s.server.Protocols = new(http.Protocols)
	listener := net.Listener(l)
	switch proto {
	case "HTTP/1.1":
		tr.Protocols.SetHTTP1(true)
		s.server.Protocols.SetHTTP1(true)
	case "h2c":
		tr.Protocols.SetUnencryptedHTTP2(true)
		s.server.Protocols.SetUnencryptedHTTP2(true)
	default:
		s.scheme = "https"
		two := proto == "HTTP/2 TLS"
		tr.Protocols.SetHTTP1(!two)
		tr.Protocols.SetHTTP2(two)
		s.server.Protocols.SetHTTP1(!two)
		s.server.Protocols.SetHTTP2(two)
		next := "http/1.1"
		if two {
			next = "h2"
		}
		tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, NextProtos: []string{next}}
		listener = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{testCertificate()}, NextProtos: []string{next}})
	}
	s.client = &http.Client{Transport: tr}
	served := make(chan struct{})
	go func() { defer close(served); s.server.Serve(listener) }()
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		s.server.Close()
		<-served
	})
	return s
}

func (s *guarded) request(method, path string, edit func(*http.Request)) *http.Request {
	r, err := http.NewRequestWithContext(s.Context(), method, s.scheme+"://site.example"+path, nil)
	if err != nil {
		s.Fatal(err)
	}
	if edit != nil {
		edit(r)
	}
	return r
}

// get makes a request, reads the whole response and waits for the handler's end. The status is 0 if there
// was no response.
func (s *guarded) get(path string, edit ...func(*http.Request)) (int, http.Header) {
	s.Helper()
	r := s.request("GET", path, nil)
	for _, f := range edit {
		f(r)
	}
	resp, err := s.client.Do(r)
	status, header := 0, http.Header(nil)
	if err == nil {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		status, header = resp.StatusCode, resp.Header
	}
	<-s.ended
	return status, header
}

// leave makes a request and leaves after d, whatever came until then.
func (s *guarded) leave(path string, d time.Duration) {
	s.Helper()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	r := s.request("GET", path, nil).WithContext(ctx)
	time.AfterFunc(d, cancel)
	if resp, err := s.client.Do(r); err == nil {
		<-ctx.Done()
		resp.Body.Close()
	}
	<-s.ended
}

func (s *guarded) wantState(want breaker.State) {
	s.Helper()
	if got := s.b.State(); got != want {
		s.Fatalf("state is %v, want %v; %+v", got, want, s.b.Stats())
	}
}

func (s *guarded) wantCounts(successes, failures, ignored uint64) {
	s.Helper()
	if n := s.b.Stats(); n.Successes != successes || n.Failures != failures || n.Ignored != ignored {
		s.Errorf("%d successes, %d failures, %d ignored, want %d, %d, %d",
			n.Successes, n.Failures, n.Ignored, successes, failures, ignored)
	}
}

func answers(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// statusByPath answers with the status that the path names: /503.
func statusByPath(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(strings.Trim(r.URL.Path, "/"))
	if err != nil {
		code = http.StatusOK
	}
	w.WriteHeader(code)
}

// untilGone waits for what happens to the request, at most a day.
func untilGone(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-time.After(24 * time.Hour):
	}
}

func TestR1APanicIsAFailureAndTravelsOnUntouched(t *testing.T) {
	mine := fmt.Errorf("mine")
	for name, thrown := range map[string]any{"error": mine, "ErrAbortHandler": http.ErrAbortHandler, "after 200": "late", "Goexit": nil} {
		t.Run(name, func(t *testing.T) {
			onEachProtocol(t, protocolsOfRules, nil, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if name == "after 200" {
					io.WriteString(w, "so far so good")
				}
				if name == "Goexit" {
					runtime.Goexit()
				}
				throwForR1(thrown)
			}), func(s *guarded) {
				inner := s.server.Handler
				var caught any
				var stack string
				s.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer func() {
						if caught = recover(); caught != nil {
							stack = string(debug.Stack())
							panic(http.ErrAbortHandler)
						}
					}()
					inner.ServeHTTP(w, r)
				})
				s.get("/")
				synctest.Wait()
				if caught != thrown {
					s.Errorf("caught %v, want %v", caught, thrown)
				}
				if thrown != nil && !strings.Contains(stack, "throwForR1") {
					s.Errorf("the stack of the panic is lost:\n%s", stack)
				}
				s.wantCounts(0, 1, 0)
			})
		})
	}
}

func throwForR1(v any) { panic(v) }

// backend returns a proxy to a backend that speaks HTTP over a pipe of its own.
func backend(serve func(net.Conn, *http.Request)) http.Handler {
	return &httputil.ReverseProxy{
		ErrorLog: log.New(io.Discard, "", 0),
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "backend"}) },
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				here, there := net.Pipe()
				go func() {
					defer there.Close()
					r, err := http.ReadRequest(bufio.NewReader(there))
					if err == nil {
						serve(there, r)
					}
				}()
				return here, nil
			},
		},
	}
}

func TestR2UpstreamCutsThroughAProxyOpenIt(t *testing.T) {
	for name, head := range map[string]string{
		"in a body of known length": "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning",
		"in a chunked body":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"before the header":         "",
	} {
		t.Run(name, func(t *testing.T) {
			onEachProtocol(t, protocolsOfRules, nil, nil, backend(func(c net.Conn, _ *http.Request) {
				io.WriteString(c, head)
			}), func(s *guarded) {
				for i := range 20 {
					s.wantState(breaker.Closed)
					s.wantCounts(0, uint64(i), 0)
					s.get("/")
				}
				s.wantState(breaker.Open)
			})
		})
	}
}

func TestR2R3ClientsThatLeaveNeverOpenIt(t *testing.T) {
	body := strings.Repeat("x", 1<<16)
	for name, h := range map[string]http.Handler{
		"a proxy before the header": backend(func(c net.Conn, _ *http.Request) { io.Copy(io.Discard, c) }),
		"a proxy in the body": backend(func(c net.Conn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"+body)
			io.Copy(io.Discard, c)
		}),
		"a handler that waits": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { untilGone(r) }),
		"a handler that says 500 then": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			untilGone(r)
			http.Error(w, "cancelled", http.StatusInternalServerError)
		}),
		"a handler that panics then": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			untilGone(r)
			panic(http.ErrAbortHandler)
		}),
		"a handler that writes": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				io.WriteString(w, body)
			}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			onEachProtocol(t, protocolsOfRules, []breaker.GroupOption{breaker.WithConsecutiveFailures(3)}, nil, h, func(s *guarded) {
				for range 30 {
					s.leave("/", time.Second)
				}
				s.wantState(breaker.Closed)
				s.wantCounts(0, 0, 30)
			})
		})
	}
}

func TestR4ATooSlowHandlerIsNotAClientThatLeft(t *testing.T) {
	var seen error
	onEachProtocol(t, protocolsOfRules, nil, []middleware.BreakerOption{middleware.WithClassify(func(_ *http.Request, _ int, err error) breaker.Outcome {
		seen = err
		return breaker.Failure
	})}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/leave" {
			untilGone(r)
			return
		}
		time.Sleep(3 * time.Second) // in a synctest bubble
		for range 100 {
			w.Write(make([]byte, 1<<16))
		}
		untilGone(r)
	}), func(s *guarded) {
		s.server.WriteTimeout = 3 * time.Second
		s.get("/")
		s.wantCounts(0, 1, 0)
		if !errors.Is(seen, os.ErrDeadlineExceeded) {
			s.Errorf("WithClassify is told %v, want os.ErrDeadlineExceeded", seen)
		}
		s.leave("/leave", time.Second) // this one did leave
		s.wantCounts(0, 1, 1)
	})
}

// The server's time runs from the client's request on, and in a cache that may have waited for another one before the handler was asked.
func TestR4ATooSlowHandlerInsideACacheIsNotAClientThatLeft(t *testing.T) {
	late := time.Time{}
	onEachProtocol(t, protocolsOfRules, nil, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/leave" {
			untilGone(r)
			return
		}
		time.Sleep(time.Until(late)) // in a synctest bubble
		for range 100 {
			w.Write(make([]byte, 1<<16))
		}
		untilGone(r)
	}), func(s *guarded) {
		s.server.WriteTimeout = 3 * time.Second
		s.server.Handler = middleware.Cache(cache.New(1<<20, cache.WithCollapseWait(2*time.Second))).Handler(s.server.Handler)
		late = time.Now().Add(4 * time.Second)
		var wg sync.WaitGroup
		wg.Go(func() { s.get("/") })
		wg.Go(func() { s.get("/") })
		wg.Wait()
		s.wantCounts(0, 2, 0)
		wg.Go(func() { s.leave("/leave", 2900*time.Millisecond) })
		wg.Go(func() { s.leave("/leave", 2500*time.Millisecond) }) // these did leave
		wg.Wait()
		s.wantCounts(0, 2, 2)
	})
}

// Who does not take what is written to him is cut off by the server's WriteTimeout as well, and the handler was not too slow: whoever reads
// slowly could close a route to all.
func TestR1AClientThatDoesNotTakeItsAnswerIsNotATooSlowHandler(t *testing.T) {
	const size = 8 << 20 // more than a connection of HTTP/2 takes before anybody reads
	part := strings.Repeat("x", 1<<16)
	for name, write := range map[string]func(w http.ResponseWriter, r *http.Request){
		"Write": func(w http.ResponseWriter, _ *http.Request) {
			for range size / len(part) {
				w.Write([]byte(part))
			}
		},
		"WriteString": func(w http.ResponseWriter, _ *http.Request) {
			for range size / len(part) {
				io.WriteString(w, part)
			}
		},
		"a flush after each few bytes": func(w http.ResponseWriter, _ *http.Request) {
			for range size / 1000 {
				if _, err := io.WriteString(w, part[:1000]); err != nil {
					return
				}
				if err := http.NewResponseController(w).Flush(); err != nil {
					return
				}
			}
		},
		"a copy from memory": func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat(part, size/len(part))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			onEachProtocol(t, []string{"HTTP/1.1", "h2c"}, nil, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				write(w, r)
				untilGone(r)
			}), func(s *guarded) {
				s.server.WriteTimeout = 3 * time.Second
				s.leave("/", 5*time.Second)
				s.wantCounts(0, 0, 1)
			})
		})
	}
}

// Nor is a body that does not come as it was said to a failure of the handler that cannot read it: a proxy answers 502 then, and a few such
// requests, all on one connection of HTTP/2, would close its route to all.
func TestR1ABodyThatCannotBeReadIsTheClientsFault(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer r.Body.Close()
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil { // as Server.ReadTimeout does
			panic(err)
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			if r.URL.Path == "/abort" {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		if _, err := r.Body.Read(make([]byte, 1)); err != io.EOF {
			panic(err)
		}
		r.Body.Close()
		r.Body.Read(make([]byte, 1)) // the handler's own fault
		w.WriteHeader(http.StatusBadGateway)
	})
	send := func(s *guarded, path string, length int64, body io.ReadCloser) {
		r := s.request("POST", path, nil)
		r.Body, r.ContentLength = body, length
		if resp, err := s.client.Do(r); err == nil {
			resp.Body.Close()
		}
		<-s.ended
	}
	onEachProtocol(t, []string{"HTTP/1.1", "h2c"}, nil, nil, h, func(s *guarded) {
		for i, path := range []string{"/", "/abort"} {
			slow, w := io.Pipe()
			time.AfterFunc(4*time.Second, func() { w.Close() })
			send(s, path, 100, slow)
			s.wantCounts(0, 0, uint64(i+1))
		}
		send(s, "/", 3, io.NopCloser(strings.NewReader("all")))
		s.wantCounts(0, 1, 2)
	})
	t.Run("chunks that are none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newGuarded(t, "HTTP/1.1", nil, nil, h)
			c, err := s.client.Transport.(*http.Transport).DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
			<-s.ended
			s.wantCounts(0, 0, 1)
		})
	})
}

// A copy from what is itself slow is no sign of a slow client, nor is one from the output of a command, which is an *os.File.
func TestR4ATooSlowSourceIsNotASlowClient(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer in.Close()
	onEachProtocol(t, []string{"HTTP/1.1", "h2c"}, nil, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, to := io.Pipe()
		go func() {
			to.Write(make([]byte, 1<<16))
			time.Sleep(4 * time.Second) // in a synctest bubble
			for range 100 {
				to.Write(make([]byte, 1<<16))
			}
			to.Close()
		}()
		if r.URL.Path == "/command" {
			io.Copy(w, pipe{from, out})
		} else {
			io.Copy(w, from)
		}
		from.Close()
		untilGone(r)
	}), func(s *guarded) {
		s.server.WriteTimeout = 3 * time.Second
		s.get("/")
		s.wantCounts(0, 1, 0)
		s.get("/command")
		s.wantCounts(0, 2, 0)
	})
}

// The time is no sign: a handler may have moved its deadline.
func TestR4AHandlerThatHasMoreTimeIsNotTooSlow(t *testing.T) {
	onEachProtocol(t, protocolsOfRules, nil, nil, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			panic(err)
		}
		time.Sleep(10 * time.Second) // in a synctest bubble
	}), func(s *guarded) {
		s.server.WriteTimeout = 3 * time.Second
		code, _ := s.get("/")
		if code != 200 {
			s.Errorf("status %d, want 200", code)
		}
		s.wantCounts(1, 0, 0)
	})
}

// Nor does a client that leaves then say that the handler was too slow.
func TestR1AClientLeavesAHandlerThatHasMoreTime(t *testing.T) {
	onEachProtocol(t, protocolsOfRules, nil, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			panic(err)
		}
		io.WriteString(w, "the first part of a long download")
		w.(http.Flusher).Flush()
		untilGone(r)
	}), func(s *guarded) {
		s.server.WriteTimeout = 3 * time.Second
		s.leave("/", 10*time.Second)
		s.wantCounts(0, 0, 1)
	})
}

func TestR4ClientsThatGiveUpOnAHungHandlerOpenIt(t *testing.T) {
	onEachProtocol(t, protocolsOfRules, []breaker.GroupOption{breaker.WithSlowCalls(2*time.Second, 0.8)}, nil,
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { untilGone(r) }),
		func(s *guarded) {
			leave := func(d time.Duration) {
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() { s.leave("/", d) })
				}
				wg.Wait()
			}
			leave(1900 * time.Millisecond)
			s.wantState(breaker.Closed)
			time.Sleep(time.Minute) // in a synctest bubble
			leave(2 * time.Second)
			s.wantState(breaker.Open)
		})
}

func TestR4AHungHandlerOpensItWithNoRequestEnded(t *testing.T) {
	onEachProtocol(t, []string{"HTTP/1.1", "h2c"}, []breaker.GroupOption{breaker.WithSlowCalls(2*time.Second, 0.8)}, nil,
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { untilGone(r) }),
		func(s *guarded) {
			ctx, cancel := context.WithCancel(s.Context())
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() { s.client.Do(s.request("GET", "/", nil).WithContext(ctx)) })
			}
			time.Sleep(3 * time.Second) // in a synctest bubble
			if code, _ := s.get("/"); code != http.StatusServiceUnavailable {
				s.Errorf("got %d from a handler on which 20 requests hang", code)
			}
			cancel()
			wg.Wait()
			for range 20 {
				<-s.ended
			}
		})
}

func TestR5ADeadlineOfOursIsAFailure(t *testing.T) {
	onEachProtocol(t, protocolsOfRules, nil, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { untilGone(r) }), func(s *guarded) {
		inner := s.server.Handler
		s.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			inner.ServeHTTP(w, r.WithContext(ctx))
		})
		s.get("/")
		s.wantCounts(0, 1, 0)
	})
}

func TestR6ATimeoutHandlerInsideIsAFailure(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { untilGone(r) })
	onEachProtocol(t, protocolsOfRules, nil, nil, http.TimeoutHandler(h, time.Second, ""), func(s *guarded) {
		s.get("/")
		s.wantCounts(0, 1, 0)
	})
}

func TestR6AnUnreadBodyHidesThatTheClientLeft(t *testing.T) {
	// HTTP/1.1 cannot see it before the body is read: then the status decides.
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(2 * time.Second) // in a synctest bubble
		w.WriteHeader(http.StatusBadGateway)
	})
	onEachProtocol(t, []string{"HTTP/1.1"}, nil, nil, h, func(s *guarded) {
		body, more := io.Pipe()
		go more.Write(make([]byte, 1<<16))
		ctx, cancel := context.WithTimeout(s.Context(), time.Second)
		defer cancel()
		r := s.request("POST", "/", func(r *http.Request) { r.Body = body })
		s.client.Do(r.WithContext(ctx))
		<-s.ended
		s.wantCounts(0, 1, 0)
		more.Close()
		body.Close()
	})
}

// The answer to a HEAD is its header, with which HTTP/2 ends the request, and net/http its context, while the handler still writes a body that nobody is
// sent.
func TestR6WhoAskedForTheHeaderHasNotLeft(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/page":
		case "/bytes":
			w.Write(make([]byte, 10_000))
		case "/error":
			w.WriteHeader(http.StatusInternalServerError)
		case "/panic":
			defer panic(http.ErrAbortHandler)
		case "/gone":
			untilGone(r)
			return
		case "/proxy":
			untilGone(r)
			w.WriteHeader(http.StatusBadGateway)
			return
		case "/proxy/page":
			untilGone(r)
			w.WriteHeader(http.StatusBadGateway)
			w.Write(make([]byte, 10_000))
		case "/proxy/text":
			untilGone(r)
			w.WriteHeader(http.StatusBadGateway)
		}
		io.WriteString(w, strings.Repeat("x", 10_000))
		if r.ProtoMajor == 2 {
			untilGone(r)
		}
	})
	onEachProtocol(t, protocolsOfRules, nil, nil, h, func(s *guarded) {
		head := func(r *http.Request) { r.Method = "HEAD" }
		s.get("/page", head)
		s.get("/bytes", head)
		s.wantCounts(2, 0, 0)
		s.get("/error", head)
		s.wantCounts(2, 1, 0)
		s.get("/panic", head)
		s.wantCounts(2, 2, 0)
		for i, path := range []string{"/gone", "/proxy", "/proxy/page", "/proxy/text"} {
			ctx, cancel := context.WithTimeout(s.Context(), time.Second)
			s.get(path, head, func(r *http.Request) { *r = *r.WithContext(ctx) })
			cancel()
			s.wantCounts(2, 2, uint64(i+1))
		}
	})
}

func TestR7TheFirstFinalStatusCounts(t *testing.T) {
	for _, c := range []struct {
		name                string
		h                   http.HandlerFunc
		successes, failures uint64
	}{
		{"103, then 503: failure", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusServiceUnavailable)
		}, 0, 1},
		{"100 and 102, then 200: success", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusContinue)
			w.WriteHeader(http.StatusProcessing)
			w.WriteHeader(http.StatusOK)
		}, 1, 0},
		{"nothing written: success", func(http.ResponseWriter, *http.Request) {}, 1, 0},
		{"200, then 500: success", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
			w.WriteHeader(http.StatusInternalServerError)
		}, 1, 0},
		{"a body, then 500: success", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "hello")
			w.WriteHeader(http.StatusInternalServerError)
		}, 1, 0},
		{"500, then 200: failure", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			w.WriteHeader(http.StatusOK)
		}, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEachProtocol(t, protocolsOfRules, nil, nil, c.h, func(s *guarded) {
				s.get("/")
				s.wantCounts(c.successes, c.failures, 0)
			})
		})
	}
}

func TestR8WhichStatusIsAFailure(t *testing.T) {
	failures := map[int]bool{500: true, 502: true, 503: true, 504: true}
	onEachProtocol(t, protocolsOfRules, []breaker.GroupOption{breaker.WithFailureRatio(0, 1)}, nil, http.HandlerFunc(statusByPath), func(s *guarded) {
		for code := 200; code < 600; code++ {
			if http.StatusText(code) == "" {
				continue
			}
			before := s.b.Stats()
			s.get("/" + strconv.Itoa(code))
			n := s.b.Stats()
			var got, want string
			switch {
			case n.Failures > before.Failures:
				got = "failure"
			case n.Ignored > before.Ignored:
				got = "ignored"
			case n.Successes > before.Successes:
				got = "success"
			}
			switch {
			case failures[code]:
				want = "failure"
			case code == http.StatusTooManyRequests:
				want = "ignored"
			default:
				want = "success"
			}
			if got != want {
				s.Errorf("%d is %s, want %s", code, got, want)
			}
			time.Sleep(time.Second) // in a synctest bubble
		}
	})
}

// A proxy answers 502 to what it cannot send on. Over HTTP/2 net/http takes any method and host, and over HTTP/1.1 the name of any protocol: a few such requests
// would close a route to all.
func TestR8AMalformedRequestIsTheClientsFault(t *testing.T) {
	for _, tc := range []struct {
		method, host, upgrade string
		ignored               bool
	}{
		{"GET", "a.test", "", false},
		{"GET", "", "", false},
		{"GET", "[fe80::1%25eth0]:8080", "", false},
		{"GET", "münchen.example", "", false},
		{"!#$%&'*+-.^_`|~09azAZ", "a!$&'()*+,;=_~-%20.test", "", false},
		{"G T", "a.test", "", true},
		{"G\xff", "a.test", "", true},
		{"G(T", "a.test", "", true},
		{"GET", "a b", "", true},
		{"GET", "a/b", "", true},
		{"GET", "user@a.test", "", true},
		{"GET", "a\x7f", "", true},
		{"GET", "xn--bcher-kva.example", "", false},
		{"GET", "xn--b\u00fccher.example", "", true},
		{"GET", "a.test", "websocket", false},
		{"GET", "a.test", "SPDY/3.1, h2c", false},
		{"GET", "a.test", "websocket\xff", true},
		{"GET", "a.test", "web\tsocket", true},
	} {
		for _, status := range []int{502, 200} {
			g := breaker.NewGroup()
			h := middleware.Breaker(g).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }))
			r := httptest.NewRequest("GET", "/", nil)
			r.Method, r.Host = tc.method, tc.host
			if tc.upgrade != "" {
				r.Header.Set("Upgrade", tc.upgrade)
			}
			h.ServeHTTP(httptest.NewRecorder(), r)
			want := [3]uint64{1, 0, 0}
			switch {
			case status == 200:
				want = [3]uint64{0, 1, 0}
			case tc.ignored:
				want = [3]uint64{0, 0, 1}
			}
			if s := g.Get("").Stats(); [3]uint64{s.Failures, s.Successes, s.Ignored} != want {
				t.Errorf("%q for %q to %q, %d: %d failures, %d successes, %d ignored; want %v", tc.method, tc.host, tc.upgrade, status, s.Failures, s.Successes, s.Ignored, want)
			}
		}
	}
}

// Nobody closes a route to others by a request that net/http takes and a ReverseProxy does not send on.
func TestRequestThatAProxyRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, request string
		http2         bool // is what the backend speaks
	}{
		{"protocol that is no ASCII", "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: \xff\r\n\r\n", false},
		{"host that cannot be encoded", "GET http://xn--%C3%A9.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", false},
		{"name of a trailer that is none", "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: a b\r\n\r\n1\r\na\r\n0\r\n\r\n", false},
		{"target without a path", "GET mailto:a HTTP/1.1\r\nHost: a.test\r\n\r\n", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			back := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			back.EnableHTTP2 = tc.http2
			back.StartTLS()
			defer back.Close()
			to, err := url.Parse(back.URL)
			if err != nil {
				t.Fatal(err)
			}
			proxy := httputil.NewSingleHostReverseProxy(to)
			proxy.Transport = back.Client().Transport
			proxy.ErrorLog = log.New(io.Discard, "", 0)
			front := httptest.NewServer(middleware.Breaker(breaker.NewGroup()).Handler(proxy))
			defer front.Close()
			conn, err := net.Dial("tcp", front.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			from := bufio.NewReader(conn)
			for range 40 {
				if _, err := io.WriteString(conn, tc.request); err != nil {
					t.Fatal(err)
				}
				res, err := http.ReadResponse(from, nil)
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode != 502 {
					t.Fatalf("status %d", res.StatusCode)
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil {
					t.Fatal(err)
				}
			}
			res, err := front.Client().Get(front.URL)
			if err != nil {
				t.Fatal(err)
			}
			if res.Body.Close(); res.StatusCode != 200 {
				t.Errorf("status %d for others", res.StatusCode)
			}
		})
	}
}

func TestR8ClassifyReplacesTheTable(t *testing.T) {
	var asked []string
	onEachProtocol(t, []string{"HTTP/1.1"}, []breaker.GroupOption{breaker.WithFailureRatio(0, 1)}, []middleware.BreakerOption{
		middleware.WithClassify(func(r *http.Request, status int, err error) breaker.Outcome {
			asked = append(asked, fmt.Sprint(r.URL.Path, " ", status, " ", err))
			if status == http.StatusNotFound {
				return breaker.Failure
			}
			return breaker.Success
		}),
	}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/panic":
			panic(http.ErrAbortHandler)
		case "/leave":
			untilGone(r)
		default:
			statusByPath(w, r)
		}
	}), func(s *guarded) {
		s.get("/404")
		s.get("/500")
		s.get("/none")
		s.leave("/leave", time.Second)
		s.get("/panic")
		s.wantCounts(3, 1, 1)
		want := []string{"/404 404 <nil>", "/500 500 <nil>", "/none 200 <nil>", "/panic 0 " + middleware.ErrPanicked.Error()}
		if fmt.Sprint(asked) != fmt.Sprint(want) {
			s.Errorf("asked %q, want %q", asked, want)
		}
	})
}

// A function that panics panics in the request, and leaves no call behind that would be overdue for ever, nor a probe.
func TestR8APanicInClassifyLeavesNoCallBehind(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"at the end": func(http.ResponseWriter, *http.Request) {},
		"when an event stream begins": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := breaker.NewGroup(breaker.WithSlowCalls(time.Second, 0.5))
				b := g.Get("")
				guarded := middleware.Breaker(g, middleware.WithClassify(func(*http.Request, int, error) breaker.Outcome {
					panic("no class")
				})).Handler(h)
				ask := func() {
					defer func() {
						if e := recover(); e != "no class" {
							t.Errorf("the panic is %v, want that of the function", e)
						}
					}()
					guarded.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
				}
				ask()
				if s := b.Stats(); s.InFlight != 0 || s.Ignored != 1 {
					t.Errorf("%d in flight, %d ignored; want 0 and 1", s.InFlight, s.Ignored)
				}
				for b.State() == breaker.Closed {
					call, err := b.Allow()
					if err != nil {
						t.Fatal(err)
					}
					call.Done(breaker.Failure, 0)
				}
				time.Sleep(b.RetryAfter()) // in a synctest bubble
				ask()
				if s := b.Stats(); s.State != breaker.HalfOpen || s.ProbesOut != 0 {
					t.Errorf("%v with %d probes out, want half-open with none", s.State, s.ProbesOut)
				}
			})
		})
	}
}

// A connection that was hijacked belongs to nobody but the handler, which does not get it if the function panics.
func TestR8APanicInClassifyClosesAHijackedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		guarded := middleware.Breaker(breaker.NewGroup(), middleware.WithClassify(func(*http.Request, int, error) breaker.Outcome {
			panic("no class")
		})).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.NewResponseController(w).Hijack()
		}))
		func() {
			defer func() { recover() }()
			guarded.ServeHTTP(hijackWriter{httptest.NewRecorder(), there}, httptest.NewRequest("GET", "/", nil))
		}()
		here.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := here.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client of the connection has %v, want its end", err)
		}
	})
}

type hijackWriter struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (w hijackWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.conn, nil, nil }

// Each way to write is an answer from its first byte on, with its bytes counted, whatever the writer below can do.
func TestEachWayToWriteIsAnAnswer(t *testing.T) {
	const slow = time.Second
	later := func() { time.Sleep(2 * slow) } // in a synctest bubble
	readFrom := func(w io.Writer, text string) {
		if n, err := io.Copy(w, io.LimitReader(strings.NewReader(text), 100)); int(n) != len(text) || err != nil {
			t.Errorf("copied %d bytes of %q: %v", n, text, err)
		}
	}
	ways := map[string]struct {
		write func(http.ResponseWriter)
		slow  bool
	}{
		"nothing":             {func(http.ResponseWriter) {}, true},
		"ReadFrom of nothing": {func(w http.ResponseWriter) { readFrom(w, "") }, true},
		"Write":               {func(w http.ResponseWriter) { w.Write([]byte("answer")) }, false},
		"io.WriteString": {func(w http.ResponseWriter) {
			if n, err := io.WriteString(w, "answer"); n != 6 || err != nil {
				t.Errorf("wrote %d bytes: %v", n, err)
			}
		}, false},
		"ReadFrom": {func(w http.ResponseWriter) { readFrom(w, "answer") }, false},
		"Write, and ReadFrom later": {func(w http.ResponseWriter) {
			w.Write([]byte("ans"))
			later()
			readFrom(w, "wer")
		}, false},
		"ReadFrom of nothing, and WriteString later": {func(w http.ResponseWriter) {
			readFrom(w, "")
			later()
			io.WriteString(w, "answer")
		}, true},
		"Flush, and Write later": {func(w http.ResponseWriter) {
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			} else {
				w.WriteHeader(200)
			}
			later()
			w.Write([]byte("answer"))
		}, false},
	}
	p := &plainWriter{http.Header{}}
	for below, w := range map[string]http.ResponseWriter{"a plain writer": p, "one that takes readers": wR{p}, "one that flushes": wF{p}} {
		for name, c := range ways {
			t.Run(name+" to "+below, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := breaker.NewGroup(breaker.WithSlowCalls(slow, 0.5))
					bytes := int64(len("answer"))
					if strings.HasSuffix(name, "nothing") {
						bytes = 0
					}
					var done middleware.Result
					middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						c.write(w)
						later()
						if bytes > 0 {
							w.WriteHeader(500) // too late
						}
					}), middleware.Breaker(g), middleware.WithTrace(&middleware.Trace{Done: func(_ *http.Request, r middleware.Result) { done = r }})).
						ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
					if s := g.Get("").Stats(); s.Slow == 1 != c.slow || s.Failures != 0 || done.Status != 200 || done.Bytes != bytes {
						t.Errorf("slow %d, failures %d, %+v; want slow %v, no failure, and %d bytes with status 200", s.Slow, s.Failures, done, c.slow, bytes)
					}
				})
			})
		}
	}
}

// What a function of WithOnChange takes on the goroutine of a probe is no time of the handler's.
func TestR8AProbeIsNotSlowForWhatOnChangeTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup(breaker.WithSlowCalls(time.Second, 0.5), breaker.WithOnChange(func(breaker.Change) {
			time.Sleep(2 * time.Second) // in a synctest bubble
		}))
		b := g.Get("")
		guarded := middleware.Breaker(g).Handler(answers(http.StatusOK))
		for b.State() == breaker.Closed {
			call, err := b.Allow()
			if err != nil {
				t.Fatal(err)
			}
			call.Done(breaker.Failure, 0)
		}
		for range b.Settings().Probes {
			time.Sleep(b.RetryAfter()) // in a synctest bubble
			guarded.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		}
		if s := b.Stats(); s.State != breaker.Closed {
			t.Errorf("%v after all probes have passed at once", s.State)
		}
	})
}

func TestR9OurOwnRefusalsAreIgnored(t *testing.T) {
	full := limiter.NewConcurrency(1, limiter.WithQueue(0, 0))
	permit, ok := full.TryAcquire(limiter.Request{})
	if !ok {
		t.Fatal("no permit")
	}
	defer permit.Release(limiter.Ignored)
	inner := breaker.NewGroup()
	inner.Get("").ForceOpen()
	for name, h := range map[string]http.Handler{
		"a full limiter":     middleware.Concurrency(full).Handler(answers(http.StatusOK)),
		"an open breaker":    middleware.Breaker(inner).Handler(answers(http.StatusOK)),
		"a quota further in": answers(http.StatusTooManyRequests),
	} {
		t.Run(name, func(t *testing.T) {
			onEachProtocol(t, protocolsOfRules, nil, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/fail":
					w.WriteHeader(500)
				case "/ok":
				default:
					h.ServeHTTP(w, r)
				}
			}), func(s *guarded) {
				for range 40 {
					s.get("/")
				}
				s.wantState(breaker.Closed)
				s.wantCounts(0, 0, 40)
				for range 20 {
					s.get("/fail")
				}
				s.wantState(breaker.Open)
				time.Sleep(5 * time.Second) // in a synctest bubble
				for range 10 {
					if code, _ := s.get("/"); code == 0 {
						s.Fatal("no response")
					}
					s.wantState(breaker.HalfOpen) // the one place for a probe is free again
				}
				s.get("/ok")
				s.wantState(breaker.Closed)
			})
		})
	}
}

// What a request waits for a layer of ours that refuses it in the end is no time of its handler.
func TestR9ARefusalAfterAWaitIsNotSlow(t *testing.T) {
	var inner http.Handler
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inner.ServeHTTP(w, r) })
	options := []breaker.GroupOption{breaker.WithSlowCalls(900*time.Millisecond, 0.8), breaker.WithFailureRatio(0, 5)}
	onEachProtocol(t, []string{"HTTP/1.1", "h2c"}, options, nil, h, func(s *guarded) {
		full := limiter.NewConcurrency(1, limiter.WithQueue(10, time.Second))
		inner = middleware.Concurrency(full).Handler(answers(http.StatusOK))
		permit, ok := full.TryAcquire(limiter.Request{})
		if !ok {
			s.Fatal("no permit")
		}
		defer permit.Release(limiter.Ignored)
		for range 10 {
			if code, _ := s.get("/"); code != 503 {
				s.Fatalf("status %d, want the 503 of the limiter", code)
			}
		}
		if n := s.b.Stats(); n.State != breaker.Closed || n.Slow != 0 {
			s.Errorf("%v with %d slow requests, want closed with none", n.State, n.Slow)
		}
	})
}

func TestR10TheTimeToTheFirstByteIsWhatIsSlow(t *testing.T) {
	slow := []breaker.GroupOption{breaker.WithSlowCalls(time.Second, 0.8), breaker.WithFailureRatio(0, 10)}
	for _, c := range []struct {
		name string
		h    http.HandlerFunc
		slow bool
	}{
		{"a download that takes long", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(200)
			time.Sleep(5 * time.Second) // in a synctest bubble
		}, false},
		{"an event stream", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for range 5 {
				io.WriteString(w, "data: x\n\n")
				http.NewResponseController(w).Flush()
				time.Sleep(time.Second) // in a synctest bubble
			}
		}, false},
		{"a copy from a slow source", func(w http.ResponseWriter, _ *http.Request) {
			r, in := io.Pipe()
			go func() {
				for range 5 {
					io.WriteString(in, "x")
					time.Sleep(time.Second) // in a synctest bubble
				}
				in.Close()
			}()
			io.Copy(w, r)
		}, false},
		{"early hints, then nothing for long", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			time.Sleep(time.Second) // in a synctest bubble
			w.WriteHeader(200)
		}, true},
		{"a header that takes long", func(w http.ResponseWriter, _ *http.Request) { time.Sleep(time.Second); w.WriteHeader(200) }, true}, // in a synctest bubble
		{"a handler that never writes", func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) }, true},                      // in a synctest bubble
	} {
		t.Run(c.name, func(t *testing.T) {
			onEachProtocol(t, []string{"HTTP/1.1", "h2c"}, slow, nil, c.h, func(s *guarded) {
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() { s.get("/") })
				}
				time.Sleep(3 * time.Second) // in a synctest bubble: while they run, and after
				for _, want := range []bool{c.slow, c.slow} {
					if got := s.b.State() != breaker.Closed; got != want {
						s.Errorf("slow: %v, want %v; %+v", got, want, s.b.Stats())
					}
					wg.Wait()
				}
			})
		})
	}
}

// HTTP/2 opens a websocket so, and no writer there can be hijacked.
func TestR11ATunnelIsJudgedWhenItBegins(t *testing.T) {
	g := breaker.NewGroup()
	p := pool.New(pool.WithSlots(1))
	h := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		if s := g.Get("").Stats(); s.Successes != 1 || s.InFlight != 0 {
			t.Errorf("while it is open: %+v", s)
		}
		if n := p.Stats().Used; n != 0 {
			t.Errorf("it has %d slots while it is open, want none", n)
		}
	}), middleware.Breaker(g), middleware.Pool(p))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("CONNECT", "/ws", nil))
	if s := g.Get("").Stats(); s.Successes != 1 || s.Failures != 0 {
		t.Errorf("at the end: %+v", s)
	}
}

func TestR11WhatLastsIsJudgedWhenItBegins(t *testing.T) {
	fail := false
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hijack":
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			io.Copy(io.Discard, c)
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			http.NewResponseController(w).Flush()
			untilGone(r)
		case "/fail":
			w.WriteHeader(500)
			return
		}
		if fail {
			panic(http.ErrAbortHandler)
		}
	})
	for _, path := range []string{"/hijack", "/events"} {
		protos := protocolsOfRules
		if path == "/hijack" {
			protos = protocolsOfRules[:2]
		}
		t.Run(path, func(t *testing.T) {
			onEachProtocol(t, protos, nil, nil, h, func(s *guarded) {
				fail = false
				for range 20 {
					s.get("/fail")
				}
				time.Sleep(5 * time.Second) // in a synctest bubble
				s.wantState(breaker.HalfOpen)
				// It does not ask for what lasts, so it becomes the probe: it must not be one for hours.
				resp, err := s.client.Do(s.request("GET", path, nil))
				if err != nil {
					s.Fatal(err)
				}
				s.wantState(breaker.Closed)
				fail = true
				resp.Body.Close()
				<-s.ended
			})
		})
	}
	t.Run("a panic later makes it a failure", func(t *testing.T) {
		onEachProtocol(t, protocolsOfRules[:2], nil, nil, h, func(s *guarded) {
			fail = true
			resp, err := s.client.Do(s.request("GET", "/hijack", nil))
			if err != nil {
				s.Fatal(err)
			}
			s.wantCounts(1, 0, 0)
			resp.Body.Close()
			<-s.ended
			s.wantCounts(0, 1, 0)
		})
	})
}

// Each of several breakers is told of a request that it has let through: when it ends, when it begins to last, and when it waits further in.
func TestR11SeveralBreakersOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := breaker.WithSlowCalls(time.Second, 0.5)
		outer, inner := breaker.NewGroup(slow), breaker.NewGroup(slow)
		want := func(when string, successes, failures, slow, inFlight uint64) {
			t.Helper()
			for name, g := range map[string]*breaker.Group{"outer": outer, "inner": inner} {
				if s := g.Get("").Stats(); s.Successes != successes || s.Failures != failures || s.Slow != slow || s.InFlight != inFlight {
					t.Errorf("%s, the %s one: %d successes, %d failures, %d slow, %d in flight; want %d, %d, %d, %d",
						when, name, s.Successes, s.Failures, s.Slow, s.InFlight, successes, failures, slow, inFlight)
				}
			}
		}
		p := pool.New(pool.WithSlots(1))
		stack := middleware.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/events":
				w.Header().Set("Content-Type", "text/event-stream")
				w.(http.Flusher).Flush()
				want("while it streams", 1, 1, 0, 0)
			case "/answers":
				io.WriteString(w, "x")
				want("once it answers", 1, 1, 0, 0)
			case "/500":
				w.WriteHeader(500)
			}
		}), middleware.Breaker(outer), middleware.For("/", middleware.Breaker(inner)), middleware.For("/waits", middleware.Pool(p)))
		ask := func(path string) { stack.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil)) }
		ask("/500")
		want("a failure", 0, 1, 0, 0)
		ask("/events")
		want("a stream", 1, 1, 0, 0)
		ask("/answers")
		want("an answer", 2, 1, 0, 0)
		_, slot, err := p.Enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { ask("/waits") })
		time.Sleep(2 * time.Second) // in a synctest bubble
		want("while it waits for a slot", 2, 1, 0, 0)
		slot.Leave()
		wg.Wait()
		want("a wait further in, which is not slow", 3, 1, 0, 0)
	})
}

func TestR12OneClientCannotOpenARouteForAll(t *testing.T) {
	onEachProtocol(t, protocolsOfRules, []breaker.GroupOption{breaker.WithMinClients(3)},
		[]middleware.BreakerOption{middleware.WithBreakerClient(func(r *http.Request) string { return r.Header.Get("X-User") })},
		http.HandlerFunc(statusByPath), func(s *guarded) {
			as := func(user string) func(*http.Request) {
				return func(r *http.Request) { r.Header.Set("X-User", user) }
			}
			for range 100 {
				s.get("/500", as("mallory"))
			}
			s.wantState(breaker.Closed)
			// Clients are told apart by 6 bits of a hash with a random seed: eight others are two at least,
			// but for one seed in ten million million.
			for i := range 8 {
				s.get("/500", as("user"+strconv.Itoa(i)))
			}
			s.wantState(breaker.Open)
		})
	t.Run("the peer address by default", func(t *testing.T) {
		onEachProtocol(t, protocolsOfRules[:1], []breaker.GroupOption{breaker.WithMinClients(2)}, nil, http.HandlerFunc(statusByPath), func(s *guarded) {
			for range 100 {
				s.get("/500")
			}
			s.wantState(breaker.Closed)
			if n := s.b.Stats().Clients; n != 1 {
				s.Errorf("%d clients, want 1", n)
			}
		})
	})
}

func TestR13ARefusalSaysWhenToReturn(t *testing.T) {
	onEachProtocol(t, protocolsOfRules, nil, nil, http.HandlerFunc(statusByPath), func(s *guarded) {
		for range 20 {
			s.get("/500")
		}
		least, most := 1000, 0
		for range 100 {
			code, h := s.get("/")
			after, err := strconv.Atoi(h.Get("Retry-After"))
			if code != http.StatusServiceUnavailable || err != nil || after < 5 {
				s.Fatalf("%d, Retry-After %q, want 503 and at least 5", code, h.Get("Retry-After"))
			}
			least, most = min(least, after), max(most, after)
			if h.Get("Cache-Control") != "no-store" || h.Get("Content-Type") != "application/problem+json" {
				s.Fatalf("header %v", h)
			}
		}
		if least == most {
			s.Errorf("all are told to return after %d s", least)
		}
		resp, err := s.client.Do(s.request("HEAD", "/", nil))
		if err != nil {
			s.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 503 || len(body) > 0 {
			s.Errorf("HEAD: %d with a body of %d bytes", resp.StatusCode, len(body))
		}
		<-s.ended
		// What was promised holds: whoever returns when told is let in.
		time.Sleep(s.b.RetryAfter()) // in a synctest bubble
		if code, _ := s.get("/"); code != 200 {
			s.Errorf("%d at the time given", code)
		}
	})
}

func TestR13AFallbackAnswersInstead(t *testing.T) {
	var trace []middleware.Rejection
	onEachProtocol(t, protocolsOfRules, nil, []middleware.BreakerOption{
		middleware.WithTrace(&middleware.Trace{Rejected: func(_ *http.Request, j middleware.Rejection) { trace = append(trace, j) }}),
		middleware.WithFallback(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusNonAuthoritativeInfo)
		})),
	}, http.HandlerFunc(statusByPath), func(s *guarded) {
		trace = nil
		s.b.ForceOpen()
		code, h := s.get("/")
		if code != http.StatusNonAuthoritativeInfo || h.Get("Retry-After") == "" || h.Get("Cache-Control") != "no-store" {
			s.Errorf("%d %v", code, h)
		}
		if len(trace) != 1 || !errors.Is(trace[0].Err, breaker.ErrOpen) {
			s.Errorf("traced %v", trace)
		}
	})
}

func TestR14ProbesAreFewAndShort(t *testing.T) {
	release := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			<-release
		}
		statusByPath(w, r)
	})
	onEachProtocol(t, protocolsOfRules, []breaker.GroupOption{breaker.WithProbes(2)}, nil, h, func(s *guarded) {
		release = make(chan struct{})
		for range 20 {
			s.get("/500")
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		for name, edit := range map[string]func(*http.Request){
			"websocket":     func(r *http.Request) { r.Header.Set("Connection", "Upgrade"); r.Header.Set("Upgrade", "websocket") },
			"event stream":  func(r *http.Request) { r.Header.Set("Accept", "text/event-stream") },
			"event streams": func(r *http.Request) { r.Header.Set("Accept", "Text/Event-Stream, */*;q=0.1") },
		} {
			if name == "websocket" && s.scheme+s.Name() != "http"+s.Name() {
				continue // HTTP/2 does not carry it
			}
			if strings.HasSuffix(s.Name(), "h2c") && name == "websocket" {
				continue
			}
			if code, _ := s.get("/", edit); code != 503 {
				s.Errorf("a request for a %s was the probe: %d", name, code)
			}
		}
		s.wantState(breaker.HalfOpen)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { s.client.Do(s.request("GET", "/wait", nil)) })
		}
		synctest.Wait()
		time.Sleep(2 * time.Second) // in a synctest bubble
		for range 5 {
			code, h := s.get("/")
			if after, _ := strconv.Atoi(h.Get("Retry-After")); code != 503 || after < 3 {
				s.Errorf("a third probe of two: %d, Retry-After %d, want what is left of the lease", code, after)
			}
		}
		close(release)
		wg.Wait()
		<-s.ended
		<-s.ended
		s.wantState(breaker.Closed)
	})
}

// Where all clients offer h2c with each request, as Java's do, the next one is the probe all the same, and not the first after a lease.
func TestR14AnOfferOfH2CIsAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup(breaker.WithProbes(1))
		h := middleware.Breaker(g).Handler(http.HandlerFunc(statusByPath))
		ask := func(path string) int {
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("Connection", "Upgrade, HTTP2-Settings")
			r.Header.Set("Upgrade", "h2c")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Code
		}
		for range 20 {
			ask("/500")
		}
		if code := ask("/"); code != 503 {
			t.Fatalf("%d, want 503 of an open breaker", code)
		}
		time.Sleep(g.Get("").RetryAfter() + time.Second) // in a synctest bubble
		if code, state := ask("/"), g.Get("").State(); code != 200 || state != breaker.Closed {
			t.Errorf("%d of a breaker that is %v then; want 200 and closed", code, state)
		}
	})
}

// A tunnel, by which HTTP/2 opens a websocket, may last as well.
func TestR14ATunnelIsNoProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := breaker.NewGroup()
		h := middleware.Breaker(g).Handler(http.HandlerFunc(statusByPath))
		ask := func(method, path string) int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
			return w.Code
		}
		for range 20 {
			ask("GET", "/500")
		}
		time.Sleep(g.Get("").RetryAfter()) // in a synctest bubble
		if s := g.Get("").State(); s != breaker.HalfOpen {
			t.Fatalf("the breaker is %v, want half-open", s)
		}
		if code := ask("CONNECT", "/200"); code != 503 {
			t.Errorf("a tunnel was the probe: %d", code)
		}
		if code := ask("GET", "/200"); code != 200 {
			t.Errorf("a probe after it: %d, want 200", code)
		}
	})
}

func TestR14ALostProbeFailsWithItsLease(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			time.Sleep(time.Hour) // in a synctest bubble
		}
		statusByPath(w, r)
	})
	onEachProtocol(t, protocolsOfRules, nil, nil, h, func(s *guarded) {
		for range 20 {
			s.get("/500")
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		ctx, cancel := context.WithCancel(s.Context())
		defer cancel()
		go s.client.Do(s.request("GET", "/hang", nil).WithContext(ctx))
		synctest.Wait()
		s.wantState(breaker.HalfOpen)
		time.Sleep(5 * time.Second) // in a synctest bubble
		s.wantState(breaker.Open)
		time.Sleep(10 * time.Second) // in a synctest bubble
		s.get("/")
		s.wantState(breaker.Closed)
		time.Sleep(time.Hour) // in a synctest bubble
		<-s.ended
		if n := s.b.Stats(); n.Dropped != 1 || n.LostProbes != 1 {
			s.Errorf("%d dropped, %d lost, want 1 and 1", n.Dropped, n.LostProbes)
		}
	})
}

// A probe that has begun to answer has passed, however long its answer takes.
func TestR14AProbeThatStreamsPastItsLeasePasses(t *testing.T) {
	onEachProtocol(t, protocolsOfRules, nil, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stream" {
			statusByPath(w, r)
			return
		}
		for range 10 {
			io.WriteString(w, "x")
			time.Sleep(time.Second) // in a synctest bubble
		}
	}), func(s *guarded) {
		for range 20 {
			s.get("/500")
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		go s.get("/stream")
		time.Sleep(6 * time.Second) // in a synctest bubble
		s.wantState(breaker.Closed)
		time.Sleep(5 * time.Second) // in a synctest bubble
	})
}

func TestR15TrafficReturnsAlongARamp(t *testing.T) {
	onEachProtocol(t, []string{"HTTP/1.1", "h2c"}, []breaker.GroupOption{breaker.WithRamp(10 * time.Second)}, nil, http.HandlerFunc(statusByPath), func(s *guarded) {
		for range 20 {
			s.get("/500")
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		s.get("/")
		s.wantState(breaker.Closed)
		var passed []int
		for range 11 {
			n := 0
			for range 100 {
				if code, _ := s.get("/"); code == 200 {
					n++
				}
				time.Sleep(10 * time.Millisecond) // in a synctest bubble
			}
			passed = append(passed, n)
		}
		for i, n := range passed {
			want := []int{10, 15, 25, 35, 45, 55, 65, 75, 85, 95, 100}[i]
			if n < want-5 || n > want+5 {
				s.Errorf("%v of 100 pass in the seconds of the ramp; the %d. is off %d", passed, i, want)
			}
		}
	})
}

func TestR16AResultOfAnOlderStateIsDropped(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			time.Sleep(time.Minute) // in a synctest bubble
		}
		statusByPath(w, r)
	})
	onEachProtocol(t, protocolsOfRules, nil, nil, h, func(s *guarded) {
		go s.client.Do(s.request("GET", "/late", nil))
		synctest.Wait()
		for range 20 {
			s.get("/500")
		}
		time.Sleep(5 * time.Second) // in a synctest bubble
		s.wantState(breaker.HalfOpen)
		time.Sleep(time.Minute) // in a synctest bubble
		<-s.ended
		s.wantState(breaker.HalfOpen) // a success from before says nothing now
		if n := s.b.Stats().Dropped; n != 1 {
			s.Errorf("%d dropped, want 1", n)
		}
	})
}

func TestBreakerKeyNamesTheBreaker(t *testing.T) {
	g := breaker.NewGroup()
	byHost := middleware.Breaker(g, middleware.WithBreakerKey(func(r *http.Request) string { return r.Host })).Handler(answers(http.StatusBadGateway))
	byHost.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if s := g.Get("example.com").Stats(); s.Failures != 1 {
		t.Errorf("%+v", s)
	}
}

// In shadow a route that fails gets all its requests, and Stats say which it would not have got. When it is well again it would get them all.
func TestBreakerInShadow(t *testing.T) {
	group := []breaker.GroupOption{breaker.WithConsecutiveFailures(3), breaker.WithShadow(true)}
	onEachProtocol(t, protocolsOfRules, group, nil, http.HandlerFunc(statusByPath), func(s *guarded) {
		ask := func(code int) {
			s.Helper()
			if status, hd := s.get("/" + strconv.Itoa(code)); status != code || hd.Get("Retry-After") != "" {
				s.Errorf("status %d with %v, want %d", status, hd, code)
			}
		}
		for range 10 {
			ask(500)
		}
		s.wantState(breaker.Open)
		if n := s.b.Stats().Rejected; n != 7 {
			s.Errorf("%d rejected, want 7", n)
		}
		s.get("/200", func(r *http.Request) { r.Header.Set("Accept", "text/event-stream") })
		time.Sleep(5 * time.Second) // in a synctest bubble
		ask(200)
		s.wantState(breaker.Closed)
		ask(200)
		if n := s.b.Stats(); n.Rejected != 8 || n.Openings != 1 || n.Successes != 1 {
			s.Errorf("%+v, want 8 rejected, and a success since it closed", n)
		}
	})
}
